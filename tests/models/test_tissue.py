"""`tissue`: words to masks on CT, measured on the phantom and on real scans."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isocenter.core.errors import CancelledError, UnknownPromptError, UnsupportedError, UsageError
from isocenter.core.geometry import Grid, reorient
from isocenter.core.model import ModelContext, Run
from isocenter.core.phantom import Phantom, phantom, turned
from isocenter.core.volume import Volume
from isocenter.models.tissue import SPEC, Tissue

SIZE = (64, 80, 80)


@pytest.fixture(scope="module")
def torso() -> Phantom:
    return phantom(SIZE)


@pytest.fixture(scope="module")
def model() -> Tissue:
    tissue = Tissue()
    tissue.load(ModelContext())
    return tissue


def dice(a: np.ndarray, b: np.ndarray) -> float:
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * float(np.count_nonzero((a != 0) & (b != 0))) / both if both else 1.0


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("body", 0.98),
        ("lungs", 0.96),
        ("lung_left", 0.96),
        ("lung_right", 0.96),
        ("airways", 0.75),
        ("bone", 0.75),
        ("fat", 0.85),
        ("muscle", 0.7),
        ("liver", 0.88),
    ],
)
def test_the_phantom_is_found(torso: Phantom, model: Tissue, name: str, least: float) -> None:
    (found,) = model.find(torso.volume, [name])
    assert dice(found.mask, torso.masks[name]) >= least
    assert found.presence > 0.8
    assert found.label.name == name


ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*order)
]  # fmt: skip


@pytest.fixture(scope="module")
def coarse() -> Volume:
    return phantom((32, 40, 40)).volume


@given(orientation=st.sampled_from(ORIENTATIONS))
@settings(max_examples=48, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_orientation_gives_the_same_anatomy(coarse: Volume, model: Tissue, orientation: str) -> None:
    names = ["lung_left", "bone", "liver"]
    array = reorient(coarse.array, coarse.grid, orientation)
    other = Volume.on_grid(array, turned(coarse.grid, orientation), modality="CT", unit="HU")
    assert other.grid.orientation == orientation
    for a, b in zip(model.find(coarse, names), model.find(other, names), strict=True):
        assert a.mask.any()
        assert b.mask.shape == other.shape
        assert (reorient(b.mask, other.grid) == a.mask).all()
        assert (reorient(b.probability, other.grid) == a.probability).all()
        assert a.presence == b.presence


@given(one=st.floats(0, 1), other=st.floats(0, 1), name=st.sampled_from(["lungs", "bone", "fat", "body"]))
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_thresholds_nest(torso: Phantom, model: Tissue, one: float, other: float, name: str) -> None:
    low, high = sorted((one, other))
    (wide,), (narrow,) = (model.find(torso.volume, [name], threshold=t) for t in (low, high))
    assert (narrow.mask <= wide.mask).all()
    assert (wide.probability == narrow.probability).all()
    assert (wide.mask == (wide.probability / 255 > low)).all()


def test_probabilities_are_graded(torso: Phantom, model: Tissue) -> None:
    (found,) = model.find(torso.volume, ["lungs"])
    assert len(np.unique(found.probability)) > 50
    assert found.probability.dtype == found.mask.dtype == np.uint8


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("The Lungs", "lungs"),
        ("pulmonary", "lungs"),
        ("left lung", "lung_left"),
        ("lung, left", "lung_left"),
        ("right_lungs", "lung_right"),
        ("Skeleton", "bone"),
        ("fatty-tissue", "fat"),
        ("ADIPOSE", "fat"),
        ("windpipe", "airways"),
        ("the bronchi", "airways"),
        ("muscles", "muscle"),
        ("bowel gas", "air"),
        ("hepatic parenchyma", "liver"),
    ],
)
def test_other_words_are_understood(torso: Phantom, model: Tissue, words: str, name: str) -> None:
    (found,) = model.find(torso.volume, [words])
    assert found.prompt == words
    assert found.label.name == name


def test_an_unknown_word_is_refused_with_a_list(torso: Phantom, model: Tissue) -> None:
    with pytest.raises(UnknownPromptError, match=r'"pancreas".*lungs.*`isocenter models list --all`'):
        model.find(torso.volume, ["lungs", "pancreas"])


@pytest.mark.parametrize("modality", ["MR", None])
def test_other_images_are_refused(torso: Phantom, model: Tissue, modality: str | None) -> None:
    with pytest.raises(UnsupportedError, match="modality=CT"):
        model.find(torso.volume.with_modality(modality, "a.u."), ["lungs"])


def test_a_threshold_out_of_range_is_refused(torso: Phantom, model: Tissue) -> None:
    with pytest.raises(UsageError, match="threshold"):
        model.find(torso.volume, ["lungs"], threshold=1.5)


def test_it_stops_when_asked(torso: Phantom) -> None:
    tissue = Tissue()
    tissue.load(ModelContext())
    asked = iter([False] * 3 + [True] * 1000)
    with pytest.raises(CancelledError):
        tissue.find(torso.volume, ["lungs"], run=Run(cancelled=lambda: next(asked)))
    assert tissue.find(torso.volume, ["lungs"])[0].presence > 0.9, "one caller's change of mind is not the next one's"


def test_progress_is_told(torso: Phantom) -> None:
    told: list[float] = []
    tissue = Tissue()
    tissue.load(ModelContext())
    tissue.find(torso.volume, ["lungs", "bone"], run=Run(progress=lambda fraction, message: told.append(fraction)))
    assert told[-1] == 1.0
    assert len(told) > 4


def test_oblique_scans_keep_the_patients_sides(torso: Phantom, model: Tissue) -> None:
    turn = np.deg2rad(20)
    c, s = float(np.cos(turn)), float(np.sin(turn))
    grid = Grid(torso.volume.shape, torso.volume.spacing, (10.0, 20.0, 30.0), ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)))
    oblique = Volume.on_grid(torso.volume.array, grid, modality="CT", unit="HU")
    (found,) = model.find(oblique, ["left lung"])
    assert dice(found.mask, torso.masks["lung_left"]) > 0.96


@pytest.mark.parametrize(("name", "least"), [("lungs", 0.96), ("lung_left", 0.95), ("bone", 0.7), ("fat", 0.8), ("body", 0.97)])
def test_a_single_slice_is_answered(torso: Phantom, model: Tissue, name: str, least: float) -> None:
    z = 40
    (found,) = model.find(replace(torso.volume, voxels=torso.volume.array[z : z + 1], key=""), [name])
    assert dice(found.mask, torso.masks[name][z : z + 1]) >= least


@pytest.mark.parametrize("fill", [-1000, 0, 60])
def test_nothing_is_found_in_nothing(model: Tissue, fill: int) -> None:
    blank = Volume(np.full((12, 20, 20), fill, np.int16), modality="CT")
    for found in model.find(blank, ["lungs", "lung left", "airways", "bone", "air", "liver"]):
        assert not found.mask.any()
        assert found.presence < 0.1


def test_an_anisotropic_scan_is_answered(model: Tissue) -> None:
    thick = phantom((40, 160, 96), (4.0, 2.4, 9.0))
    for name, least in (("lungs", 0.96), ("lung_right", 0.96), ("liver", 0.85), ("body", 0.98)):
        (found,) = model.find(thick.volume, [name])
        assert dice(found.mask, thick.masks[name]) >= least, name


def test_lungs_that_touch_are_parted(model: Tissue) -> None:
    made = phantom(SIZE, noise_hu=0)
    array = np.array(made.volume.array, np.int16)
    x = SIZE[2] // 2
    bridge = np.s_[36:44, 22:26, x - 6 : x + 6]  # lung tissue in front of the heart, from one side to the other
    array[bridge] = np.where(array[bridge] < 100, -850, array[bridge])
    joined = replace(made.volume, voxels=array, key="")
    left, right = model.find(joined, ["left lung", "right lung"])
    assert not (left.mask & right.mask).any()
    assert dice(left.mask, made.masks["lung_left"]) > 0.95
    assert dice(right.mask, made.masks["lung_right"]) > 0.95


def test_the_table_is_no_part_of_the_body(model: Tissue) -> None:
    made = phantom((20, 128, 128), (3.0, 3.0, 4.0))
    back = int(np.argwhere(made.masks["body"])[:, 1].max())
    array = np.array(made.volume.array, np.int16)
    array[:, back + 2 : back + 4, 20:108] = 40  # a plate as dense as flesh, 6 mm thick, close behind the patient
    (found,) = model.find(replace(made.volume, voxels=array, key=""), ["body"])
    assert not found.mask[:, back + 2 :].any()
    assert dice(found.mask, made.masks["body"]) > 0.98


def test_several_prompts_share_one_analysis(torso: Phantom) -> None:
    tissue = Tissue()
    tissue.find(torso.volume, ["lungs"])
    (first,) = tissue._scenes.values()
    both = tissue.find(torso.volume, ["lungs", "Lung", "body"])
    assert next(iter(tissue._scenes.values())) is first
    assert both[0].mask is both[1].mask
    assert both[1].prompt == "Lung"
    tissue.close()
    assert not tissue._scenes


def test_few_analyses_are_kept(model: Tissue) -> None:
    tissue = Tissue()
    for value in range(7):
        tissue.find(Volume(np.full((4, 8, 8), value, np.int16), modality="CT"), ["body"])
    assert len(tissue._scenes) == 4


def test_a_picture_with_a_narrow_window_says_what_it_lost(torso: Phantom, model: Tissue) -> None:
    z = 20
    array = np.clip(np.array(torso.volume.array[z : z + 1], np.int16), -160, 240)
    lungs, body = model.find(replace(torso.volume, voxels=array, key=""), ["lungs", "body"])
    assert not lungs.mask.any()
    assert any("cut off at -160 HU" in note for note in lungs.notes)
    assert dice(body.mask, torso.masks["body"][z : z + 1]) > 0.95
    assert not body.notes


def test_odd_values_do_no_harm(torso: Phantom, model: Tissue) -> None:
    array = np.array(torso.volume.array, np.float32)
    array[:, :3] = np.nan
    array[:, 3:5] = np.inf
    array[:, 5:6] = -3024
    (found,) = model.find(replace(torso.volume, voxels=array, key=""), ["lungs"])
    assert dice(found.mask, torso.masks["lungs"]) > 0.96


def test_the_spec_names_what_the_model_finds() -> None:
    from isocenter.models._tissue.places import PLACES

    assert [label.name for label in SPEC.labels] == list(PLACES)
    assert set(SPEC.synonyms.values()) == set(PLACES)
    assert SPEC.fallback
