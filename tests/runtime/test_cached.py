"""A scan cached for networks is a scan again: as safetensors, and as the torch file that other programs leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.analysis.preprocess import preprocess
from isocenter.core.errors import InputError, LimitError, ModelError, UsageError
from isocenter.core.settings import Limits, Settings
from isocenter.core.volume import Volume
from isocenter.followup.files import save_preprocessed
from isocenter.io import nifti
from isocenter.runtime import cached
from isocenter.service import Service
from isocenter.trackservice import TrackOptions, track

TURNED = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def scan() -> Volume:
    voxels = np.random.default_rng(5).integers(-300, 300, (9, 14, 18), dtype=np.int16)
    voxels[2:7, 3:10, 4:12] = 60
    return Volume(voxels, (1.0, 1.0, 1.0), (-20.0, 4.0, 7.5), TURNED, "CT", "HU")


def facts(scan: Volume) -> dict[str, Any]:
    """What the reference program puts into its file, as arrays."""
    made = preprocess(scan)
    return {
        "volume": made.array,
        "spacing": np.array(made.grid.spacing),
        "origin": np.array(made.grid.origin),
        "direction": np.array(made.grid.direction).reshape(9),
        "window_center": made.centre,
        "window_width": made.width,
    }


def same(read: Volume, scan: Volume) -> None:
    assert read.grid.same_as(scan.grid)
    assert (read.modality, read.unit) == ("CT", "HU")
    assert np.abs(read.array - np.clip(scan.array, -160, 240)).max() < 1e-3
    assert any("-160 to 240" in note for note in read.source.notes)


def test_safetensors_come_back_as_they_were(scan: Volume, tmp_path: Path) -> None:
    save_preprocessed(tmp_path / "a.safetensors", scan)
    same(cached.read(tmp_path / "a.safetensors", Limits(), "ct"), scan)
    unknown = cached.read(tmp_path / "a.safetensors", Limits())
    assert (unknown.modality, unknown.unit) == (None, "a.u.")
    with pytest.raises(LimitError, match="voxels"):
        cached.read(tmp_path / "a.safetensors", Limits(max_voxels=100))
    with pytest.raises(UsageError):
        cached.read(tmp_path / "a.safetensors", Limits(), "C/T")


def test_a_torch_file_is_read_without_running_what_it_holds(scan: Volume, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = {name: torch.as_tensor(np.asarray(value)) if np.ndim(value) else value for name, value in facts(scan).items()}
    torch.save(values, tmp_path / "preprocessed.pt")
    same(cached.read(tmp_path / "preprocessed.pt", Limits(), "CT"), scan)
    # Its six keys alone are asked for; whatever is not a tensor, a number or a container of these is refused unread.
    torch.save({**values, "note": Path("x")}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="holds more than"):
        cached.read(tmp_path / "evil.pt", Limits())
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="none of its keys"):
        cached.read(tmp_path / "list.pt", Limits())
    with pytest.raises(LimitError):
        cached.read(tmp_path / "preprocessed.pt", Limits(max_voxels=100))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"window_width": None}, "lacks window_width"),
        ({"volume": np.zeros((9, 14, 18), np.float32)}, "shape"),
        ({"spacing": np.ones(2)}, "spacing does not hold 3"),
        ({"window_width": np.zeros(1)}, "window without a width"),
        ({"volume": np.full((1, 2, 2, 2), np.nan, np.float32)}, "no numbers"),
        ({"direction": np.zeros(9)}, "direction"),
        ({"spacing": np.array([1.0, 0.0, 1.0])}, "spacing"),
    ],
)
def test_what_is_no_cached_scan_is_refused(scan: Volume, changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from isocenter.core.errors import IsocenterError

    held = {name: value for name, value in {**facts(scan), **changed}.items() if value is not None}
    save_file({name: np.atleast_1d(np.ascontiguousarray(value)) for name, value in held.items()}, tmp_path / "x.safetensors")
    with pytest.raises(IsocenterError, match=words):
        cached.read(tmp_path / "x.safetensors", Limits())
    (tmp_path / "y.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="damaged"):
        cached.read(tmp_path / "y.safetensors", Limits())


def test_a_visit_may_be_a_cached_scan(scan: Volume, home: Path, tmp_path: Path) -> None:
    save_preprocessed(tmp_path / "preprocessed.safetensors", scan)
    mask = np.zeros(scan.shape, np.uint8)
    mask[2:7, 3:10, 4:12] = 1
    (tmp_path / "mask.nii.gz").write_bytes(nifti.write(mask, scan.grid, header=None, compress=True))
    visit = {"day": 0, "image": "preprocessed.safetensors", "mask": "mask.nii.gz", "modality": "CT"}
    (tmp_path / "study.json").write_text(json.dumps({"patient_id": "p", "visits": [visit]}))
    service = Service(Settings(home=home))
    try:
        options = TrackOptions(registration=None, preprocessed=False, formats=("json",))
        (measured,) = track(service, tmp_path, tmp_path / "out", options=options).visits
    finally:
        service.close()
    (found,) = measured.found or ()
    assert found.size.volume_mm3 == pytest.approx(5 * 7 * 8)
    assert found.size.intensities is not None
    assert found.size.intensities.mean == pytest.approx(60, abs=0.01)
    assert any("cut off" in note for note in measured.notes)


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    hidden = (
        "import sys, importlib.util as u; find = u.find_spec; u.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)\n"
        "from pathlib import Path; from isocenter.core.settings import Limits; from isocenter.runtime import cached\n"
        "try: cached.read(Path(sys.argv[1]), Limits())\nexcept Exception as e: print(e)"
    )
    told = subprocess.run([sys.executable, "-c", hidden, str(tmp_path / "x.pt")], capture_output=True, text=True, check=True).stdout
    assert "isocenter[torch]" in told
