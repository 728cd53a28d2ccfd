"""Prompts: where they may lie and which voxels they name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import line_nd, polygon

from isocenter.core.errors import PromptError
from isocenter.core.prompts import Box, Lasso, MaskPrompt, Point, Scribble, Text, check_inside, rasterise

SHAPE = (6, 20, 20)
voxel = st.tuples(st.integers(0, 5), st.integers(0, 19), st.integers(0, 19))


@given(path=st.lists(voxel, min_size=1, max_size=5))
def test_a_scribble_is_connected_and_holds_its_points(path: list[tuple[int, int, int]]) -> None:
    voxels = rasterise(Scribble(tuple(path)), SHAPE)
    found = {tuple(v) for v in voxels.tolist()}
    assert set(path) <= found
    assert len(found) == len(voxels)
    if len(path) == 2:
        reference = set(zip(*(a.tolist() for a in line_nd(path[0], path[1], endpoint=True)), strict=True))
        assert len(found) == len(reference)


@given(corners=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=3, max_size=8), axis=st.integers(0, 2))
def test_a_lasso_is_filled_like_a_polygon(corners: list[tuple[int, int]], axis: int) -> None:
    shape = tuple(6 if a == axis else 20 for a in range(3))
    path = []
    for u, v in corners:
        point = [u, v]
        point.insert(axis, 3)
        path.append((point[0], point[1], point[2]))
    lasso = Lasso(tuple(path))
    mask = np.zeros(shape, bool)
    mask[tuple(rasterise(lasso, (shape[0], shape[1], shape[2])).T)] = True
    plane = np.take(mask, 3, axis=lasso.axis) if lasso.axis == axis else None
    assert mask.any()
    if plane is not None:
        assert mask.sum() == plane.sum(), "only its plane"
        rows, columns = polygon([c[0] for c in corners], [c[1] for c in corners], (20, 20))
        filled = np.zeros((20, 20), bool)
        filled[rows, columns] = True
        # Both hold the interior; they differ at most on the outline's own voxels.
        assert not (filled & ~plane).any() or (filled & ~plane).sum() <= 4 * len(corners)


def test_what_lies_outside_is_named_in_the_users_order() -> None:
    for prompt in (Point((6, 0, 0)), Box((0, 0, 0), (7, 1, 1)), Scribble(((0, 0, 0), (0, 20, 0))), Point((0, -1, 0))):
        with pytest.raises(PromptError, match="outside the image"):
            check_inside([prompt], SHAPE)
    with pytest.raises(PromptError, match="x=1, y=2, z=30"):
        check_inside([Point((30, 2, 1))], SHAPE)
    with pytest.raises(PromptError, match="shape"):
        check_inside([MaskPrompt(np.zeros((1, 2, 3)))], SHAPE)
    check_inside([Text("liver"), Point((5, 19, 19)), Box((0, 0, 0), SHAPE)], SHAPE)


def test_prompts_are_valid_or_not_built() -> None:
    for wrong in (
        lambda: Box((0, 0, 0), (0, 1, 1)),
        lambda: Scribble(()),
        lambda: Lasso(((0, 0, 0), (1, 1, 1), (2, 2, 3))),
        lambda: Lasso(((0, 0, 0),)),
    ):
        with pytest.raises(PromptError):
            wrong()


def test_boxes_and_masks_name_their_voxels() -> None:
    box = Box((1, 2, 3), (3, 4, 5))
    mask = np.zeros(SHAPE, np.uint8)
    mask[box.slices] = 7
    assert np.array_equal(rasterise(box, SHAPE), rasterise(MaskPrompt(mask), SHAPE))
