"""Grids and the turning of arrays, for all 48 orientations and oblique ones, against SimpleITK and nibabel."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Grid, onto, reorient, restore

ORIENTATIONS = ["".join(p) for axes in itertools.permutations(["LR", "PA", "SI"]) for p in itertools.product(*axes)]
UNIT = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def axis_grid(orientation: str, shape: tuple[int, int, int] = (3, 4, 5), spacing: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> Grid:
    columns = np.array([UNIT[letter] for letter in orientation], dtype=float).T
    rows = [tuple(row) for row in columns.tolist()]
    return Grid(shape, spacing, (7.0, -8.0, 9.0), (rows[0], rows[1], rows[2]))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any orthogonal grid: rotated by anything, perhaps left-handed."""
    matrix = Rotation.random(rng=np.random.default_rng(draw(st.integers(0, 10**6)))).as_matrix()
    matrix[:, 0] *= draw(st.sampled_from([1, -1]))
    size = st.integers(1, 6)
    mm = st.floats(0.1, 10)
    rows = [tuple(row) for row in matrix.tolist()]
    shape = draw(st.tuples(size, size, size))
    return Grid(shape, draw(st.tuples(mm, mm, mm)), draw(st.tuples(mm, mm, mm)), (rows[0], rows[1], rows[2]))


def test_there_are_48() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_as_itk_says_it(orientation: str) -> None:
    grid = axis_grid(orientation)
    assert grid.orientation == orientation
    assert sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(np.ravel(grid.direction).tolist()) == orientation
    ras = "".join(dict(zip("LRPASI", "LRPASI", strict=True))[c] for c in orientation)
    assert "".join(nibabel.aff2axcodes(grid.affine_ras)) == ras


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reorient_and_back(orientation: str) -> None:
    grid = axis_grid(orientation)
    array = np.arange(grid.voxels).reshape(grid.shape)
    image = sitk.GetImageFromArray(array)
    image.SetDirection(np.ravel(grid.direction).tolist())
    assert np.array_equal(reorient(array, grid), sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")))
    assert np.array_equal(restore(reorient(array, grid), grid), array)


@given(grid=grids())
def test_affines_there_and_back(grid: Grid) -> None:
    assert Grid.from_affine_lps(grid.affine_lps, grid.shape).same_as(grid, 1e-6)
    assert Grid.from_affine_ras(grid.affine_ras, grid.shape).same_as(grid, 1e-6)
    image = sitk.Image([int(n) for n in reversed(grid.shape)], sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(np.ravel(grid.direction).tolist())
    corner = [n - 1 for n in reversed(grid.shape)]
    assert np.allclose(image.TransformIndexToPhysicalPoint(corner), (grid.affine_lps @ [*corner, 1])[:3])
    assert grid.voxel_mm3 == pytest.approx(float(np.prod(grid.spacing)))
    assert grid.is_orthogonal


@given(grid=grids(), target=st.sampled_from(ORIENTATIONS))
def test_reorient_reaches_its_target(grid: Grid, target: str) -> None:
    array = np.arange(grid.voxels).reshape(grid.shape)
    turned = reorient(array, grid, target)
    assert np.array_equal(restore(turned, grid, target), array)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_onto_matches_voxels_by_place(orientation: str) -> None:
    """The same points stored in another order: `onto` finds each voxel again."""
    target = axis_grid("LPS")
    source = turned_grid(target, orientation)
    array = np.arange(source.voxels).reshape(source.shape)
    found = onto(array, source, target)
    place = np.linalg.inv(source.affine_lps) @ target.affine_lps
    for z, y, x in np.ndindex(target.shape):
        i, j, k = np.rint((place @ [x, y, z, 1])[:3]).astype(int)
        assert found[z, y, x] == array[k, j, i]


def turned_grid(grid: Grid, orientation: str) -> Grid:
    """The grid of the same points with axes towards `orientation`."""
    image = sitk.Image([int(n) for n in reversed(grid.shape)], sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(np.ravel(grid.direction).tolist())
    turned = sitk.DICOMOrient(image, orientation)
    rows = [tuple(row) for row in np.reshape(turned.GetDirection(), (3, 3)).tolist()]
    x, y, z = turned.GetSize()
    return Grid((z, y, x), turned.GetSpacing(), turned.GetOrigin(), (rows[0], rows[1], rows[2]))


def test_onto_refuses_another_grid() -> None:
    target = axis_grid("LPS")
    array: NDArray[np.int64] = np.zeros(target.shape, dtype=np.int64)
    for other in (axis_grid("LPS", spacing=(1.0, 2.0, 2.0)), Grid(target.shape, target.spacing, (0.0, 0.0, 0.0)), axis_grid("LPS", shape=(3, 4, 4))):
        with pytest.raises(GeometryError):
            onto(np.zeros(other.shape), other, target)
    assert onto(array, target, target).shape == target.shape


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (0, 1, 1)},
        {"spacing": (1.0, 0.0, 1.0)},
        {"spacing": (1.0, float("nan"), 1.0)},
        {"origin": (float("inf"), 0.0, 0.0)},
        {"direction": ((1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))},
        {"direction": ((2.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))},
    ],
)
def test_a_grid_is_valid_or_not_built(change: dict[str, object]) -> None:
    with pytest.raises(GeometryError):
        Grid(**{"shape": (1, 1, 1), **change})  # type: ignore[arg-type]


def test_a_shear_is_kept_and_said() -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.5
    grid = Grid.from_affine_ras(affine, (2, 2, 2))
    assert not grid.is_orthogonal
    assert np.allclose(grid.affine_ras, affine)
    assert grid.voxel_mm3 == pytest.approx(1.0)
