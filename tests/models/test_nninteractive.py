"""nnInteractive: the masks of the library's own session, every step taken back exactly, work that outlives its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import _train_phantom_nnunet as trained
from isocenter.core.errors import ModelError, PromptError, UnsupportedError
from isocenter.core.model import ModelContext
from isocenter.core.prompts import Box, Lasso, MaskPrompt, Point, Prompt, Scribble, Text
from isocenter.core.volume import Volume
from isocenter.models.nninteractive import NNInteractive, offer

SHAPE = (18, 28, 23)
PROMPTS: list[Prompt] = [
    Point((9, 14, 8)),
    Point((4, 20, 15), positive=False),
    Scribble(((9, 5, 4), (9, 12, 16))),
    Scribble(((2, 3, 3), (15, 20, 18)), positive=False),
    Lasso(((6, 6, 5), (6, 18, 6), (6, 14, 17))),
    Box((7, 8, 6), (8, 20, 17)),
]


def write_folder(folder: Path, **legacy: Any) -> Path:
    """A small random checkpoint as nnInteractive publishes them; one more file of pickled odds and ends beside the weights."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plans = trained.plans()
    configuration = plans["configurations"].pop("3d_fullres")
    configuration |= {"patch_size": [52, 52, 52], "spacing": [1.0, 1.0, 1.0]}
    network = configuration["architecture"]["arch_kwargs"]
    network |= {"n_stages": 2, "features_per_stage": [2, 4], "kernel_sizes": [[3] * 3] * 2, "strides": [[1] * 3, [2] * 3]}
    network |= {"n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1]}
    plans["configurations"] = {"3d_fullres_ps16": configuration}
    torch.manual_seed(3)
    design = configuration["architecture"]
    module = get_network_from_plans(design["network_class_name"], network, design["_kw_requires_import"], 8, 2, deep_supervision=False)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    labels = {"background": 0} | {f"object_{i}": i for i in range(1, 5)}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "image"}, "labels": labels, "file_ending": ".b2nd"}))
    (folder / "inference_session_class.json").write_text(json.dumps({"point_radius": 3, "preferred_scribble_thickness": 2} | legacy))
    state = {
        "network_weights": module.state_dict(),
        "optimizer_state": {},
        "logging": {"x": [np.float64(1)]},
        "init_args": {"configuration": "3d_fullres_ps16", "device": torch.device("cpu")},
        "trainer_name": "nnInteractiveTrainer_stub",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(state, folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("nninteractive") / "nnInteractive_v1.0")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random network changes everything everywhere, so the library looks at ever more of the scan; where that is tested, once."""
    from nnInteractive.inference.inference_session import nnInteractiveInferenceSession

    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.0)


@pytest.fixture
def model(folder: Path) -> Any:
    made = load(folder)
    yield made
    made.close()


def load(folder: Path) -> NNInteractive:
    made = NNInteractive()
    made.load(ModelContext(spec=offer(folder), threads=1))
    return made


def scan(seed: int = 0) -> Volume:
    """An oblique, anisotropic one; nnInteractive works in voxels, so its place must not matter."""
    angle = np.deg2rad(20)
    direction = ((float(np.cos(angle)), 0.0, float(np.sin(angle))), (0.0, -1.0, 0.0), (float(np.sin(angle)), 0.0, float(-np.cos(angle))))
    array = np.random.default_rng(seed).normal(40, 100, SHAPE).astype(np.int16)
    array[:3] = 0
    return Volume(array, (0.7, 0.9, 4.0), (5.0, 6.0, 7.0), direction)


def by_library(folder: Path, volume: Volume, prompts: Sequence[Prompt]) -> list[NDArray[np.uint8]]:
    """The masks after each prompt, from a session as its authors' example makes one."""
    import torch
    from nnInteractive.inference.inference_session import nnInteractiveInferenceSession

    session = nnInteractiveInferenceSession(device=torch.device("cpu"), torch_n_threads=1, interactions_storage="blosc2")
    session.initialize_from_trained_model_folder(str(folder))
    session.set_image(np.array(volume.array)[None], {"spacing": volume.spacing_zyx})
    session.set_target_buffer(np.zeros(SHAPE, np.uint8))
    masks = []
    for prompt in prompts:
        np.random.seed(0)  # the library draws places to refine
        image = np.zeros(SHAPE, np.uint8)
        if isinstance(prompt, Point):
            session.add_point_interaction(prompt.zyx, include_interaction=prompt.positive)
        elif isinstance(prompt, Box):
            session.add_bbox_interaction([list(pair) for pair in zip(prompt.lo, prompt.hi, strict=True)], include_interaction=prompt.positive)
        elif isinstance(prompt, Lasso):
            draw(image, prompt)
            session.add_lasso_interaction(image, include_interaction=prompt.positive)
        elif isinstance(prompt, Scribble):
            draw(image, prompt)
            session.add_scribble_interaction(image, include_interaction=prompt.positive)
        masks.append(np.array(session.target_buffer))
    return masks


def stored(work: Any) -> NDArray[Any]:
    """What the session remembers of the prompts and of its last answer."""
    return np.array(work._session.interactions.numpy())


def draw(image: NDArray[np.uint8], prompt: Scribble | Lasso) -> None:
    """The outline's inside, or the line two voxels thick (and one across its plane)."""
    from isocenter.core.prompts import rasterise

    for z, y, x in rasterise(prompt, SHAPE):
        if isinstance(prompt, Lasso):
            image[z, y, x] = 1
        else:
            deep = 1 if len({p[0] for p in prompt.path}) == 1 else 2
            image[z : z + deep, y : y + 2, x : x + 2] = 1


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_the_librarys_masks(folder: Path, model: NNInteractive, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnInteractive.inference.inference_session import nnInteractiveInferenceSession

    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.2)
    volume = scan()
    work = model.begin(model.prepare(volume))
    for prompt, expected in zip(PROMPTS, by_library(folder, volume, PROMPTS), strict=True):
        before = work.mask.copy()
        box = work.add([prompt])
        assert expected.any()
        np.testing.assert_array_equal(work.mask, expected)
        assert box is not None
        outside = np.ones(SHAPE, bool)
        outside[box.slices] = False
        np.testing.assert_array_equal(work.mask[outside], before[outside])


def test_every_step_is_taken_back_exactly(model: NNInteractive) -> None:
    work = model.begin(model.prepare(scan()))
    assert work.undo() is None
    seen = []
    groups: list[list[Prompt]] = [PROMPTS[:1], PROMPTS[1:3], [MaskPrompt(np.pad(np.ones((4, 5, 6)), ((2, 12), (3, 20), (4, 13))))], PROMPTS[3:4]]
    for group in groups:
        seen.append((work.mask.copy(), stored(work)))
        work.add(group)
    held = work.nbytes
    for mask, prompts in reversed(seen):
        assert work.undo() is not None
        np.testing.assert_array_equal(work.mask, mask)
        np.testing.assert_array_equal(stored(work), prompts)
    assert work.undo() is None
    assert work.nbytes < held
    again = model.begin(model.prepare(scan()))
    again.add(PROMPTS[:1])
    work.add(PROMPTS[:1])
    np.testing.assert_array_equal(work.mask, again.mask)


def test_a_mask_to_start_from(model: NNInteractive) -> None:
    work = model.begin(model.prepare(scan()))
    start = np.zeros(SHAPE, np.int16)
    start[5:10, 6:14, 7:15] = 3
    work.add([MaskPrompt(start)])
    np.testing.assert_array_equal(work.mask, start != 0)
    work.add([Point((9, 14, 8))])
    other = model.begin(model.prepare(scan()))
    other.add([Point((9, 14, 8))])
    assert np.any(work.mask != other.mask), "what it starts from is part of what it sees"


def test_compressed_prompts_give_the_same(model: NNInteractive, monkeypatch: pytest.MonkeyPatch) -> None:
    from isocenter.models._nninteractive import loaded

    prepared = model.prepare(scan())
    dense = model.begin(prepared)
    monkeypatch.setattr(loaded, "DENSE_VOXELS", 10)
    packed = model.begin(prepared)
    for prompt in PROMPTS[:3]:
        dense.add([prompt])
        packed.add([prompt])
        np.testing.assert_array_equal(dense.mask, packed.mask)
    assert packed.nbytes < dense.nbytes
    packed.undo()
    dense.undo()
    np.testing.assert_array_equal(dense.mask, packed.mask)
    assert prepared.nbytes == 4 * np.prod(SHAPE)


def test_a_solid_box_is_asked_in_its_middle_plane(model: NNInteractive) -> None:
    prepared = model.prepare(scan())
    solid, flat = model.begin(prepared), model.begin(prepared)
    solid.add([Box((6, 8, 6), (10, 20, 17))])
    flat.add([Box((8, 8, 6), (9, 20, 17))])
    np.testing.assert_array_equal(solid.mask, flat.mask)


def test_work_outlives_its_model(folder: Path) -> None:
    first = load(folder)
    work = first.begin(first.prepare(scan()))
    whole = first.begin(first.prepare(scan()))
    work.add(PROMPTS[:1])
    assert work._session.network is None, "a session at rest holds no network"
    first.close()
    with pytest.raises(ModelError, match="not loaded"):
        work.add(PROMPTS[1:2])
    with pytest.raises(ModelError, match="not loaded"):
        first.prepare(scan())
    second = load(folder)
    work.add(PROMPTS[1:2])
    whole.add(PROMPTS[:1])
    whole.add(PROMPTS[1:2])
    np.testing.assert_array_equal(work.mask, whole.mask)
    second.close()


def test_what_it_does_not_take(model: NNInteractive) -> None:
    work = model.begin(model.prepare(scan()))
    work.add(PROMPTS[:1])
    before = work.mask.copy()
    cases: list[tuple[Prompt, str]] = [
        (Text("liver"), "not words"),
        (MaskPrompt(np.ones(SHAPE), positive=False), "leave one out"),
    ]
    for wrong, words in cases:
        with pytest.raises(PromptError, match=words):
            work.add([PROMPTS[1], wrong])
    np.testing.assert_array_equal(work.mask, before)
    for array in (np.zeros(SHAPE, np.int16), np.full(SHAPE, 7.0), np.where(np.arange(SHAPE[2]) > 3, np.nan, 1.0) * np.ones(SHAPE)):
        with pytest.raises(UnsupportedError):
            model.prepare(Volume(array))


def test_a_step_that_fails_changes_nothing(model: NNInteractive, monkeypatch: pytest.MonkeyPatch) -> None:
    work = model.begin(model.prepare(scan()))
    work.add(PROMPTS[:1])
    before, prompts = work.mask.copy(), stored(work)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("of the library")

    monkeypatch.setattr(work._session, "add_lasso_interaction", fail)
    with pytest.raises(ModelError, match="no answer"):
        work.add([PROMPTS[1], PROMPTS[4]])
    np.testing.assert_array_equal(work.mask, before)
    np.testing.assert_array_equal(stored(work), prompts)
    work.undo()
    assert not work.mask.any()


@pytest.mark.parametrize("damage", ["nan", "cut", "code", "newer", "metadata", "configuration"])
def test_bad_folders(tmp_path: Path, damage: str) -> None:
    import torch

    folder = write_folder(tmp_path / "model")
    path = folder / "fold_0" / "checkpoint_final.pth"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "code":
        text = (folder / "plans.json").read_text()
        (folder / "plans.json").write_text(text.replace("torch.nn.LeakyReLU", "os.system"))
    elif damage == "newer":
        (folder / "inference_info.json").write_text(json.dumps({"inference_class_min_version": "99.0.0"}))
    elif damage == "metadata":
        (folder / "inference_session_class.json").unlink()
    else:
        state = torch.load(path, weights_only=False)
        if damage == "nan":
            state["network_weights"] = {k: v * np.nan for k, v in state["network_weights"].items()}
        else:
            state["init_args"]["configuration"] = "another"
        torch.save(state, path)
    said = {
        "nan": "not finite",
        "cut": "cut off",
        "code": "as nonlin",
        "newer": "newer",
        "metadata": "is missing",
        "configuration": "not as nnInteractive",
    }

    def use() -> None:
        made = load(folder)
        made.begin(made.prepare(scan())).add(PROMPTS[:1])

    with pytest.raises(ModelError, match=said[damage]) as caught:
        use()
    assert str(tmp_path) not in caught.value.message
