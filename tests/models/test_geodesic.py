"""The click engine: what its prompts promise, that undo is exact, and that it finds real organs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isocenter.core.errors import PromptError
from isocenter.core.model import ModelContext, Task
from isocenter.core.prompts import Box, Lasso, MaskPrompt, Point, Prompt, Scribble, Text
from isocenter.core.volume import Volume
from isocenter.models._geodesic.window import HALF, to_belief, to_logit
from isocenter.models.geodesic import SPEC, Geodesic

Shape = tuple[int, int, int]
SHAPE: Shape = (20, 40, 44)


def scene(shape: Shape = SHAPE, dtype: type = np.int16, spacing: tuple[float, float, float] = (1, 1, 1.5)) -> tuple[Volume, NDArray[np.bool_]]:
    """A bright ellipsoid in noise, and where it is."""
    axes = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = sum(((g - n / 2) / max(0.3 * n, 1)) ** 2 for g, n in zip(axes, shape, strict=True)) < 1
    values = np.random.default_rng(1).normal(100, 10, shape) + 80 * inside
    return Volume(values.astype(dtype), spacing), np.asarray(inside)


def dice(mask: NDArray[np.generic], target: NDArray[np.bool_]) -> float:
    return float(2 * ((mask != 0) & target).sum() / max(int((mask != 0).sum() + target.sum()), 1))


def around(inside: NDArray[np.bool_], spare: int) -> Box:
    """The smallest box around an object, `spare` voxels wider on all sides (not across a single slice)."""
    found = np.argwhere(inside)
    wider = spare * (np.array(inside.shape) > 1)
    lo, hi = (found.min(axis=0) - wider).tolist(), (found.max(axis=0) + 1 + wider).tolist()
    return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))


def beyond(mask: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The mask outside of a box."""
    rest = mask.copy()
    rest[box.slices] = 0
    return rest


@pytest.fixture(scope="module")
def engine() -> Geodesic:
    made = Geodesic()
    made.load(ModelContext())
    return made


def test_spec_names_the_class() -> None:
    assert SPEC.task is Task.INTERACTIVE
    assert SPEC.factory == f"{Geodesic.__module__}:{Geodesic.__qualname__}"
    assert set(SPEC.prompts) == {"point", "box", "scribble", "lasso", "mask"}


def test_listing_the_model_imports_no_numba() -> None:
    code = "import sys, isocenter.models.geodesic; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_one_click_finds_a_plain_object(engine: Geodesic, dtype: type) -> None:
    volume, inside = scene(dtype=dtype)
    session = engine.begin(engine.prepare(volume))
    changed = session.add([Point((10, 20, 22))])
    assert changed is not None
    assert session.mask.dtype == np.uint8
    assert session.mask.flags.c_contiguous
    assert dice(session.mask, inside) > 0.8


def test_one_click_finds_a_plain_object_in_a_picture(engine: Geodesic) -> None:
    volume, inside = scene((1, 80, 90), spacing=(1, 1, 1))
    session = engine.begin(engine.prepare(volume))
    session.add([Point((0, 40, 45))])
    assert dice(session.mask, inside) > 0.8


def test_scale_and_offset_of_the_intensities_do_not_matter(engine: Geodesic) -> None:
    volume, _ = scene(dtype=np.float64)
    masks = []
    for values in (volume.array, volume.array.astype(np.float64) * 0.001 + 7.0):
        session = engine.begin(engine.prepare(Volume(np.asarray(values), volume.spacing)))
        session.add([Point((10, 20, 22))])
        masks.append(session.mask)
    assert dice(masks[0], masks[1] != 0) > 0.98


@pytest.mark.parametrize(
    "values", [np.zeros(SHAPE, np.int16), np.full(SHAPE, np.nan, np.float32), np.eye(44, dtype=np.float32)[None, :40].repeat(20, 0) * 1e30]
)
def test_strange_volumes_get_an_answer(engine: Geodesic, values: NDArray[np.generic]) -> None:
    session = engine.begin(engine.prepare(Volume(values)))
    session.add([Point((10, 20, 22))])
    session.add([Point((10, 20, 30), positive=False)])
    assert session.mask[10, 20, 22] == 1
    assert session.mask[10, 20, 30] == 0


def points() -> st.SearchStrategy[Prompt]:
    place = st.tuples(*(st.integers(0, n - 1) for n in SHAPE))
    return st.one_of(
        st.builds(Point, place, st.booleans()),
        st.builds(lambda a, b, p: Scribble((a, b), p), place, place, st.booleans()),
    )


@st.composite
def boxes(draw: st.DrawFn) -> Prompt:
    lo = [draw(st.integers(0, n - 2)) for n in SHAPE]
    hi = [min(a + draw(st.integers(1, n // 2)), n) for a, n in zip(lo, SHAPE, strict=True)]
    return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]), draw(st.booleans()))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.lists(st.one_of(points(), boxes()), min_size=1, max_size=2), min_size=1, max_size=4))
def test_what_prompts_promise(engine: Geodesic, steps: list[list[Prompt]]) -> None:
    """Points are always obeyed, nothing changes outside the box returned, `undo` is exact, all of it repeats."""
    prepared = engine.prepare(scene()[0])
    session, again = engine.begin(prepared), engine.begin(prepared)
    states = [(session.mask.copy(), session.probability())]
    for prompts in steps:
        changed = session.add(prompts)
        moved = states[-1][0] != session.mask
        if changed is None:
            assert not moved.any()
        else:
            moved[changed.slices] = False
            assert not moved.any()
        asked: dict[tuple[int, int, int], bool] = {}
        for prompt in (p for step in steps[: len(states)] for p in step):
            if isinstance(prompt, Point):
                asked[prompt.zyx] = prompt.positive
            elif isinstance(prompt, Scribble):
                asked |= dict.fromkeys((prompt.path[0], prompt.path[-1]), prompt.positive)
        if not any(isinstance(p, Box | Scribble) for step in steps for p in step):
            assert all(bool(session.mask[zyx]) == positive for zyx, positive in asked.items())
        assert np.array_equal(session.probability() > 0.5, session.mask == 1)
        states.append((session.mask.copy(), session.probability()))
        again.add(prompts)
        assert np.array_equal(again.mask, session.mask)
    for mask, probability in reversed(states[:-1]):
        session.undo()
        assert np.array_equal(session.mask, mask)
        assert np.array_equal(session.probability(), probability)
    assert session.undo() is None


def test_undo_then_another_prompt_is_as_if_nothing_had_been(engine: Geodesic) -> None:
    prepared = engine.prepare(scene()[0])
    plain, detour = engine.begin(prepared), engine.begin(prepared)
    plain.add([Point((10, 20, 22))])
    detour.add([Point((10, 20, 22))])
    detour.add([Point((10, 20, 28), positive=False)])
    detour.undo()
    for session in (plain, detour):
        session.add([Point((5, 20, 22), positive=False)])
    assert np.array_equal(plain.mask, detour.mask)


def test_a_positive_prompt_only_adds_and_a_negative_one_only_takes_away(engine: Geodesic) -> None:
    session = engine.begin(engine.prepare(scene()[0]))
    session.add([Point((10, 20, 22))])
    before = session.mask.copy()
    session.add([Point((2, 5, 5))])
    assert (session.mask >= before).all()
    before = session.mask.copy()
    session.add([Point((10, 22, 24), positive=False)])
    assert (session.mask <= before).all()


def test_a_prompt_changes_nothing_far_away(engine: Geodesic) -> None:
    values = np.random.default_rng(0).normal(0, 10, (40, 100, 100)).astype(np.float32)
    start = np.zeros(values.shape, np.uint8)
    start[10:30, 20:40, 20:40] = start[10:30, 60:80, 60:80] = 1
    session = engine.begin(engine.prepare(Volume(values + 80 * start)))
    session.add([MaskPrompt(start)])
    session.add([Point((20, 30, 37), positive=False)])
    assert np.array_equal(session.mask[:, 55:, 55:], start[:, 55:, 55:])


def test_a_click_beside_the_outline_changes_twelve_steps_around_it_and_no_more(engine: Geodesic) -> None:
    """A layer is missing on one whole side: it is mended beyond the click's own neighbourhood, but not without end."""
    values = np.random.default_rng(0).normal(0, 10, (30, 60, 60)).astype(np.float32)
    whole = np.zeros(values.shape, np.bool_)
    whole[5:25, 15:45, 10:50] = True
    start = whole.copy()
    start[:, 15:17] = False
    session = engine.begin(engine.prepare(Volume(values + 80 * whole)))
    session.add([MaskPrompt(start)])
    session.add([Point((15, 15, 30))])
    changed = np.argwhere(session.mask != start)
    away = np.sqrt(((changed - (15, 15, 30)) ** 2).sum(axis=1))
    assert 8 < away.max() < 12
    assert dice(session.mask, whole) > dice(start, whole)


@pytest.mark.parametrize(
    "prompt",
    [
        Box((3, 6, 6), (17, 34, 38)),
        Box((10, 6, 6), (11, 34, 38)),
        Scribble(((10, 14, 16), (10, 26, 28))),
        Lasso(((10, 12, 14), (10, 28, 14), (10, 28, 30), (10, 12, 30))),
    ],
)
def test_every_kind_of_prompt_finds_the_object(engine: Geodesic, prompt: Prompt) -> None:
    volume, inside = scene()
    session = engine.begin(engine.prepare(volume))
    session.add([prompt])
    assert dice(session.mask, inside) > 0.75


@pytest.mark.parametrize("spare", [0, 3])
def test_a_box_finds_what_it_is_drawn_around(engine: Geodesic, spare: int) -> None:
    volume, inside = scene()
    session = engine.begin(engine.prepare(volume))
    box = around(inside, spare)
    session.add([box])
    assert dice(session.mask, inside) > 0.9
    assert not beyond(session.mask, box).any()


def test_a_box_finds_what_it_is_drawn_around_in_a_picture(engine: Geodesic) -> None:
    volume, inside = scene((1, 80, 90), spacing=(1, 1, 1))
    session = engine.begin(engine.prepare(volume))
    session.add([around(inside, 2)])
    assert dice(session.mask, inside) > 0.95


def test_a_box_in_one_slice_decides_that_slice_and_goes_on_beside_it(engine: Geodesic) -> None:
    volume, inside = scene()
    drawn = around(inside[10:11], 1)
    session = engine.begin(engine.prepare(volume))
    session.add([Box((10, *drawn.lo[1:]), (11, *drawn.hi[1:]))])
    assert dice(session.mask[10], inside[10]) > 0.95
    assert dice(session.mask, inside) > 0.8


def test_a_box_that_is_looked_at_coarsely_bounds_the_answer_all_the_same(engine: Geodesic) -> None:
    volume, inside = scene((61, 121, 133))
    session = engine.begin(engine.prepare(volume))
    cut = Box((21, 43, 39), (60, 81, 132))  # through the middle of it, on odd voxels
    session.add([cut])
    assert not beyond(session.mask, cut).any()
    assert dice(session.mask[cut.slices], inside[cut.slices]) > 0.9


def test_a_box_keeps_what_was_won_and_what_was_taken_away(engine: Geodesic) -> None:
    volume, inside = scene()
    session = engine.begin(engine.prepare(volume))
    session.add([Point((10, 20, 22))])
    before = session.mask != 0
    session.add([Point((10, 28, 22), positive=False)])
    kept = session.mask != 0
    lost = before & ~kept
    session.add([around(inside, 0)])
    assert (session.mask != 0)[kept].all()
    assert session.mask[10, 28, 22] == 0
    assert not lost.any() or (session.mask[lost] == 0).mean() > 0.5


def test_a_box_where_all_looks_alike_is_answered_by_its_middle(engine: Geodesic) -> None:
    volume = Volume(np.full(SHAPE, 7, np.int16))
    session = engine.begin(engine.prepare(volume))
    box = Box((5, 12, 12), (14, 24, 30))
    session.add([box])
    assert session.mask[9, 18, 21] == 1
    assert not beyond(session.mask, box).any()


def test_a_negative_box_stays_empty(engine: Geodesic) -> None:
    session = engine.begin(engine.prepare(scene()[0]))
    box = Box((5, 12, 12), (14, 20, 30))
    session.add([Point((10, 20, 22)), Box(box.lo, box.hi, positive=False)])
    session.add([Point((15, 25, 22))])
    assert not session.mask[box.slices].any()


def test_a_mask_is_taken_and_corrected(engine: Geodesic) -> None:
    volume, inside = scene()
    session = engine.begin(engine.prepare(volume))
    session.add([MaskPrompt(inside)])
    assert np.array_equal(session.mask, inside)
    session.add([Point((10, 20, 22), positive=False)])
    assert session.mask[10, 20, 22] == 0


def test_prompts_that_it_cannot_take(engine: Geodesic) -> None:
    session = engine.begin(engine.prepare(scene()[0]))
    with pytest.raises(PromptError):
        session.add([Text("liver")])
    with pytest.raises(PromptError):
        session.add([Point((99, 0, 0))])
    assert session.add([Point((10, 20, 22), positive=False)]) is None
    assert not session.mask.any()


def test_belief_and_logit_agree() -> None:
    belief = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_logit(belief) > 0, belief >= HALF)
    assert np.array_equal(to_belief(to_logit(belief)), belief)


def test_a_large_volume_is_answered_coarsely_and_written_finely(engine: Geodesic) -> None:
    volume, inside = scene((60, 160, 160), spacing=(1, 1, 1))
    prepared = engine.prepare(volume)
    session = engine.begin(prepared)
    session.add([Point((30, 80, 80))])
    assert len(prepared.levels) > 1
    assert prepared.nbytes <= 2 * volume.array.size
    assert dice(session.mask, inside) > 0.9


def _organs(data: Path, image: str, labels: str) -> tuple[Volume, NDArray[np.generic]]:
    scan = nib.load(data / "totalsegmentator" / image)
    segmentation = nib.load(data / "totalsegmentator" / labels)
    values = np.asanyarray(scan.dataobj).transpose(2, 1, 0)
    spacing = tuple(float(s) for s in scan.header.get_zooms())
    return Volume(values, (spacing[0], spacing[1], spacing[2])), np.asanyarray(segmentation.dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize(
    ("image", "labels", "label", "least"),
    [
        ("example_ct_sm.nii.gz", "example_seg.nii.gz", 1, 0.8),
        ("example_ct_sm.nii.gz", "example_seg.nii.gz", 2, 0.75),
        ("example_ct_sm.nii.gz", "example_seg.nii.gz", 30, 0.75),
        ("example_mr_sm.nii.gz", "example_seg_mr.nii.gz", 1, 0.75),
    ],
)
def test_real_organs_in_five_clicks(engine: Geodesic, data: Path, image: str, labels: str, label: int, least: float) -> None:
    from benchmarks._clicks_data import next_click

    volume, segmentation = _organs(data, image, labels)
    target = segmentation == label
    session = engine.begin(engine.prepare(volume))
    for _ in range(5):
        asked = next_click(session.mask, target, volume.spacing_zyx)
        if asked is not None:
            session.add([Point(*asked)])
    assert dice(session.mask, target) > least


def test_kernels_work_without_a_cache_folder(tmp_path: Path) -> None:
    """As in a read-only image: compiled in the process, and the answer is the same."""
    blocked = tmp_path / "file"
    blocked.touch()
    code = "from isocenter.models.geodesic import warm; warm()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ) | {"NUMBA_CACHE_DIR": str(blocked / "cache")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
