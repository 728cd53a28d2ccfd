"""`isocenter segment` and `convert` on real inputs: what they write, and what they say when they cannot."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.phantom import Phantom, phantom
from isocenter.core.settings import settings
from isocenter.core.volume import Volume
from isocenter.demo.robot import deepest, dice
from isocenter.io import door, write


def run(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def read(path: Path) -> Volume:
    return door.read_path(path, limits=settings())


def typed(voxel: tuple[int, int, int]) -> str:
    """A voxel (z, y, x) as it is typed."""
    return ",".join(str(v) for v in reversed(voxel))


@pytest.fixture(scope="module")
def torso() -> Phantom:
    """Not in LPS, so that nothing passes by chance."""
    return phantom((48, 64, 64), orientation="RAS")


@pytest.fixture(scope="module")
def ct(torso: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    path.write_bytes(write.encode_image(torso.volume, ".nii.gz"))
    return path


def facts_of(folder: Path, name: str = "measurements.json") -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / name).read_text())
    return facts


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_words(ct: Path, torso: Phantom, tmp_path: Path) -> None:
    code, shown, said = run("segment", "-i", ct, "-o", tmp_path / "out", "--text", "lungs", "--text", "bones")
    assert code == 0, said
    assert "lungs" in shown
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"mask.nii.gz", "preview.png", "measurements.json"}
    mask = read(tmp_path / "out" / "mask.nii.gz")
    assert mask.grid.same_as(torso.volume.grid)
    assert dice(mask.array == 1, torso.masks["lungs"]) > 0.9
    facts = facts_of(tmp_path / "out")
    lungs, bone = facts["labels"]
    assert (lungs["name"], bone["name"]) == ("lungs", "bone")
    assert lungs["voxels"] == np.count_nonzero(mask.array == 1)
    assert lungs["unit"] == "HU"
    assert -900 < lungs["mean"] < -700
    assert facts["image"]["voxels"] == [64, 64, 48]
    assert facts["provenance"]["intended_use"].startswith("Research use only")
    drawn = picture(tmp_path / "out" / "preview.png")
    assert (drawn.max(axis=2) != drawn.min(axis=2)).any(), "the masks are drawn in colour"


def test_clicks_in_the_file_s_own_indices(ct: Path, torso: Phantom, tmp_path: Path) -> None:
    target = torso.masks["kidney_left"]
    at = typed(deepest(target, torso.volume.spacing_zyx))
    code, shown, said = run("segment", "-i", ct, "-o", tmp_path / "kidney.nrrd", "--point", at, "--negative", "0,0,0", "--json")
    assert code == 0, said
    facts = json.loads(shown)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kidney.nrrd", "kidney_measurements.json", "kidney_preview.png"]
    mask = read(tmp_path / "kidney.nrrd")
    assert mask.grid.same_as(torso.volume.grid)
    assert dice(mask.array != 0, target) > 0.5
    (entry,) = facts["labels"]
    assert entry["presence"] is None
    low, high = entry["box"]
    assert all(a <= int(v) <= b for a, v, b in zip(low, at.split(","), high, strict=True))
    assert facts["model"] == "geodesic"


def test_mask_to_start_from(ct: Path, torso: Phantom, tmp_path: Path) -> None:
    run("segment", "-i", ct, "-o", tmp_path / "first.nii.gz", "--point", typed(deepest(torso.masks["liver"], torso.volume.spacing_zyx)))
    code, _, said = run("segment", "-i", ct, "-o", tmp_path / "again.nii.gz", "--mask", tmp_path / "first.nii.gz")
    assert code == 0, said
    assert np.array_equal(read(tmp_path / "first.nii.gz").array != 0, read(tmp_path / "again.nii.gz").array != 0)
    other = tmp_path / "other.nii.gz"
    other.write_bytes(write.encode_image(phantom((24, 32, 32)).volume, ".nii.gz"))
    code, _, said = run("segment", "-i", ct, "-o", tmp_path / "never", "--mask", other)
    assert code == 3
    assert "grid" in said


@pytest.mark.parametrize("model", ["Histogram+GraphCut", "GMM+GraphCut"])
def test_lines_on_both_sides(ct: Path, torso: Phantom, tmp_path: Path, model: str) -> None:
    z, y, x = deepest(torso.masks["liver"], torso.volume.spacing_zyx)
    inside = f"{x - 2},{y},{z} {x + 2},{y},{z}"
    outside = f"2,{y},{z} 2,{y - 20},{z} 62,{y - 20},{z} 62,{y},{z}"
    code, _, said = run("segment", "-i", ct, "-o", tmp_path, "-m", model, "--scribble", inside, "--negative-scribble", outside, "--format", "npz")
    assert code == 0, said
    with np.load(tmp_path / "mask.npz") as arrays:
        mask = arrays["seg"]
    assert mask[z, y, x - 2 : x + 3].all()
    assert not mask[z, y, 2]
    lines = ["--scribble", inside, "--negative-scribble", outside]
    code, _, said = run("segment", "-i", ct, "-o", tmp_path / "hard.npz", "-m", model, *lines, "--option", "lamda=0")
    assert code == 0, said
    with np.load(tmp_path / "hard.npz") as arrays:
        assert (arrays["seg"] != mask).any(), "an option changes something"
    code, _, said = run("segment", "-i", ct, "-o", tmp_path, "-m", model, "--text", "liver")
    assert code == 2
    assert "not words" in said


def test_what_is_not_there_is_empty_and_not_zero(torso: Phantom, tmp_path: Path) -> None:
    """A scan without lungs: an answer all the same."""
    below = torso.volume.array[:14]
    scan = tmp_path / "pelvis.nii.gz"
    scan.write_bytes(write.encode_image(Volume(below, torso.volume.spacing, modality="CT", unit="HU"), ".nii.gz"))
    code, shown, said = run("segment", "-i", scan, "-o", tmp_path / "out", "--text", "airways")
    assert code == 0, said
    (entry,) = facts_of(tmp_path / "out")["labels"]
    assert entry["voxels"] == 0
    assert entry["presence"] < 0.5
    assert (entry["volume_ml"], entry["mean"], entry["reason"]) == (None, None, "the mask is empty")
    assert "empty" in shown


def test_partly_done(ct: Path, tmp_path: Path) -> None:
    code, shown, said = run("segment", "-i", ct, "-o", tmp_path, "--text", "lungs", "--text", "flux capacitor")
    assert code == 8
    assert "lungs" in shown
    assert "flux capacitor" in said
    facts = facts_of(tmp_path)
    assert [entry["name"] for entry in facts["labels"]] == ["lungs"]
    assert facts["failed"][0]["prompt"] == "flux capacitor"
    code, _, said = run("segment", "-i", ct, "-o", tmp_path / "none", "--text", "flux capacitor")
    assert code == 2
    assert "lungs" in said, "says what is understood"
    assert not (tmp_path / "none").exists()


def test_refusals(ct: Path, tmp_path: Path) -> None:
    for code, args in (
        (4, ["--point", "1,1,1", "-m", "nonesuch"]),
        (2, ["--point", "1000,1,1"]),
        (2, ["--point", "1,1,1", "--text", "liver"]),
        (2, ["--point", "1,1,1", "-o", str(tmp_path / "x.nrrd"), "--format", "npz"]),
        (2, ["--point", "1,1,1", "--format", "png"]),
        (2, ["--point", "1,1,1", "-m", "tissue"]),
        (2, ["--point", "1,1,1", "-m", "geodesic", "--option", "sigma=0.1"]),
        (2, ["--point", "1,1,1", "-o", str(tmp_path / "x.mha")]),
        (2, ["--point", "1,1,1", "-o", str(ct / "mask.nii.gz")]),
    ):
        found, _, said = run("segment", "-i", ct, "-o", tmp_path / "out", *args)
        assert (found, said.splitlines()[-1][:7]) == (code, "Error: "), args
    assert not (tmp_path / "x.mha").exists()


@pytest.mark.parametrize("name", ["mask.png", "mask.dcm"])
def test_what_a_format_cannot_hold_is_said_before_anything_is_computed(ct: Path, tmp_path: Path, name: str) -> None:
    code, _, said = run("segment", "-i", ct, "-o", tmp_path / name, "--point", "1,1,1")
    assert code == 2
    assert "use .nii.gz" in said
    assert "Segmenting" not in said


def test_picture(tmp_path: Path) -> None:
    y, x = np.ogrid[:80, :100]
    disc = (y - 40) ** 2 + (x - 60) ** 2 < 20**2
    grey = 40 + 150 * disc + np.random.default_rng(0).normal(0, 8, disc.shape)
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.png")
    code, _, said = run("segment", "-i", tmp_path / "photo.png", "-o", tmp_path / "disc.png", "--point", "60,40,0")
    assert code == 0, said
    assert dice(picture(tmp_path / "disc.png")[..., 0] > 0, disc) > 0.95
    facts = facts_of(tmp_path, "disc_measurements.json")
    (found,) = facts["labels"]
    assert (found["volume_mm3"], found["centroid_lps_mm"], facts["image"]["spacing_mm"]) == (None, None, None), "a photograph has no millimetres"
    assert "how large its pixels are" in found["reason"]


def test_convert(ct: Path, torso: Phantom, tmp_path: Path) -> None:
    code, _, said = run("convert", "-i", ct, "-o", tmp_path / "c.seg.nrrd")
    assert code == 2
    assert "holds a segmentation" in said
    for name in ("a.nii", "b.nii.gz", "c.nrrd"):
        code, shown, said = run("convert", "-i", ct, "-o", tmp_path / "new" / name)
        assert code == 0, said
        assert "64 x 64 x 48 voxels" in shown
        again = read(tmp_path / "new" / name)
        assert again.grid.same_as(torso.volume.grid)
        assert np.array_equal(again.array, torso.volume.array)
    code, shown, said = run("convert", "-i", ct, "-o", tmp_path / "d.png", "--json")
    assert code == 0, said
    assert json.loads(shown)["voxels"] == [64, 64, 48]
    assert picture(tmp_path / "d.png").size


def test_real_dicom(data: Path, tmp_path: Path) -> None:
    """The issue's own line: a liver that is there, and lungs that are not."""
    source = data / "totalsegmentator" / "example_ct_dicom"
    code, shown, said = run("segment", "-i", source, "-o", tmp_path, "--text", "body", "--text", "lungs", "--json")
    assert code == 0, said
    body, lungs = json.loads(shown)["labels"]
    assert body["volume_ml"] > 1000
    assert lungs["presence"] < 0.5
    mask = read(tmp_path / "mask.nii.gz")
    assert mask.grid.same_as(read(source).grid)
    code, _, said = run("segment", "-i", source, "-o", tmp_path / "seg.dcm", "--point", "250,250,10")
    assert code == 0, said
    assert os.path.getsize(tmp_path / "seg.dcm") > 1000
