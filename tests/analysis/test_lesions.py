"""Sizes of lesions against brute force, geometry and other people's published numbers."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from isocenter.analysis.diameters import diameters, from_points, measuring_plane
from isocenter.analysis.lesions import lesions
from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Grid, reorient
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import door


def ellipsoid(shape: tuple[int, int, int], centre: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return np.asarray(sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1)


def brute(image: NDArray[np.bool_], matrix: NDArray[np.float64]) -> float:
    """Longest distance between any two outline points of one part, by trying all of them."""
    from scipy import ndimage

    parts, count = ndimage.label(image, structure=np.ones((3, 3)))
    best = 0.0
    for number in range(1, count + 1):
        points = []
        for r, c in np.argwhere(parts == number):
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                inside = 0 <= r + dr < image.shape[0] and 0 <= c + dc < image.shape[1] and parts[r + dr, c + dc] == number
                if not inside:
                    points.append(matrix @ (r + dr / 2, c + dc / 2))
        best = max(best, max(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(points, 2)))
    return best


@settings(deadline=None, derandomize=True)
@given(
    arrays(np.bool_, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.booleans()),
    st.floats(0.3, 3),
    st.floats(0.3, 3),
    st.floats(-0.5, 0.5),
)
def test_the_longest_diameter_is_that_of_a_search_over_the_outline(image: NDArray[np.bool_], dy: float, dx: float, shear: float) -> None:
    side = np.array([shear, 1.0, 0.0]) / np.hypot(shear, 1.0)
    direction = ((1.0, float(side[0]), 0.0), (0.0, float(side[1]), 0.0), (0.0, 0.0, 1.0))
    grid = Grid((1, *image.shape), (dx, dy, 5.0), direction=direction)
    found = diameters(image[None], grid, plane=0)
    if not image.any():
        assert found is None
        return
    assert found is not None
    matrix = np.array([side[:2] * dy, np.array([1.0, 0.0]) * dx]).T
    assert found.longest.length_mm == pytest.approx(brute(image, matrix), rel=1e-9)
    places = [[np.array(grid.affine_lps @ (*end, 1))[:3] for end in line.ends] for line in (found.longest, found.short)]
    for line, (a, b) in zip((found.longest, found.short), places, strict=True):
        assert np.linalg.norm(a - b) == pytest.approx(line.length_mm, abs=1e-6), "the end points are as far apart as the line is long"
    (a, b), (c, d) = places
    assert abs((b - a) @ (d - c)) < 1e-6 * max(1.0, found.longest.length_mm * found.short.length_mm), "at right angles"
    assert found.short.length_mm <= found.longest.length_mm + 1e-9


def test_rows_and_diagonals() -> None:
    grid = Grid((1, 9, 9), (0.5, 0.8, 3.0))
    row = np.zeros(grid.shape, bool)
    row[0, 4, 2:8] = True
    found = diameters(row, grid)
    assert found is not None
    assert found.longest.length_mm == pytest.approx(3.0)
    assert found.short.length_mm == pytest.approx(0.8)
    assert found.longest.ends == ((1.5, 4.0, 0.0), (7.5, 4.0, 0.0)) or found.longest.ends == ((7.5, 4.0, 0.0), (1.5, 4.0, 0.0))
    dot = np.zeros(grid.shape, bool)
    dot[0, 3, 3] = True
    found = diameters(dot, grid)
    assert found is not None
    assert found.longest.length_mm == pytest.approx(0.8)
    assert found.short.length_mm == pytest.approx(0.5)


def test_parts_that_do_not_touch_are_measured_one_by_one() -> None:
    grid = Grid((1, 5, 30), (1.0, 1.0, 5.0))
    two = np.zeros(grid.shape, bool)
    two[0, 2, 1:5] = two[0, 2, 20:29] = True
    found = diameters(two, grid)
    assert found is not None
    assert found.longest.length_mm == pytest.approx(9.0)


def test_the_short_axis_stays_within_the_outline() -> None:
    """An L: the width of its bounding strip is not a line through it."""
    grid = Grid((1, 30, 30), (1.0, 1.0, 5.0))
    bar = np.zeros(grid.shape, bool)
    bar[0, 14:16, 2:28] = True
    bar[0, 8:22, 26:28] = True
    found = diameters(bar, grid)
    assert found is not None
    assert found.short.length_mm < 15


@pytest.mark.parametrize("turn", [pytest.param(t, id=f"{t}") for t in ("LPS", "RAS", "PSL", "SRA", "IAR", "ASL")])
def test_orientation_changes_nothing(turn: str) -> None:
    shape, spacing = (20, 30, 40), (0.9, 1.1, 4.0)
    grid = Grid(shape, spacing, (5.0, -3.0, 7.0))
    mask = ellipsoid(shape, (10, 15.3, 20.2), (4.2, 8.5, 12.9))
    straight = lesions(mask, grid)[0]
    turned = np.ascontiguousarray(reorient(mask, grid, turn))
    columns = {"R": (-1.0, 0, 0), "L": (1.0, 0, 0), "A": (0, -1.0, 0), "P": (0, 1.0, 0), "I": (0, 0, -1.0), "S": (0, 0, 1.0)}
    steps = np.array([columns[letter] for letter in turn]).T
    sizes = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}
    order = [sizes[letter] for letter in turn]
    corner = np.array([0 if letter in "LPS" else (shape[2 - sizes[letter]] - 1) for letter in turn], float)
    affine = np.eye(4)
    affine[:3, :3] = steps * np.array([spacing[k] for k in order])
    back = np.zeros(3)
    for position, k in enumerate(order):
        back[k] = corner[position]
    affine[:3, 3] = (grid.affine_lps @ (*back, 1))[:3]
    other = Grid.from_affine_lps(affine, turned.shape)
    assert other.orientation == turn
    found = lesions(turned, other)[0]
    for name in ("volume_mm3", "mesh_volume_mm3", "surface_mm2", "max_3d_diameter_mm", "longest_mm", "short_axis_mm"):
        assert getattr(found, name) == pytest.approx(getattr(straight, name), rel=1e-6), name
    assert found.centroid_lps_mm == pytest.approx(straight.centroid_lps_mm, abs=1e-6)


def test_an_ellipsoid_has_the_size_of_an_ellipsoid() -> None:
    grid = Grid((60, 90, 90), (0.7, 0.7, 1.0))
    found = lesions(ellipsoid(grid.shape, (30, 45, 45), (20, 30, 40)), grid)[0]
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * 20 * 21 * 28, rel=0.01)
    assert found.longest_mm == pytest.approx(56, abs=0.75)  # a pixel: the outline lies half of one outside the last centres
    assert found.short_axis_mm == pytest.approx(42, abs=0.75)
    assert found.max_3d_diameter_mm == pytest.approx(56, rel=0.015)
    assert not found.touches_border


def test_lesions_are_split_sorted_and_kept_apart() -> None:
    grid = Grid((20, 20, 20))
    mask = np.zeros(grid.shape, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    mask[10:15, 10:15, 10:15] = 3
    mask[19, 19, 19] = 1
    image = Volume.on_grid(np.arange(8000, dtype=np.int16).reshape(grid.shape), grid, modality="CT", unit="HU")
    found = lesions(mask, grid, image)
    assert [m.voxels for m in found] == [125, 8, 1]
    assert [m.touches_border for m in found] == [False, False, True]
    assert found[0].box == ((10, 10, 10), (14, 14, 14))
    assert found[0].intensities is not None
    assert found[0].intensities.mean == image.array[10:15, 10:15, 10:15].mean()
    assert len(lesions(mask, grid, least_voxels=2)) == 2
    assert lesions(np.zeros(grid.shape, np.uint8), grid) == []


def test_a_mask_of_another_grid_is_refused() -> None:
    grid = Grid((4, 4, 4))
    mask = np.ones(grid.shape, np.uint8)
    with pytest.raises(GeometryError):
        lesions(mask, Grid((4, 4, 5)))
    with pytest.raises(GeometryError):
        lesions(mask, grid, Volume.on_grid(np.zeros(grid.shape, np.int16), Grid((4, 4, 4), (2.0, 1.0, 1.0)), modality="CT", unit="HU"))


def test_intensities_without_a_number_are_none_with_a_reason() -> None:
    grid = Grid((3, 3, 3))
    image = Volume.on_grid(np.full(grid.shape, np.nan, np.float32), grid, modality="MR", unit="a.u.")
    found = lesions(np.ones(grid.shape, np.uint8), grid, image)[0]
    assert found.intensities is None
    assert "intensities" in found.reasons


def test_thick_slices_are_measured_in_their_plane() -> None:
    assert measuring_plane(Grid((30, 30, 30), (1.0, 5.0, 1.0))) == 1
    assert measuring_plane(Grid((30, 30, 30), (1.0, 1.0, 1.2))) == 0
    sagittal = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    assert measuring_plane(Grid((30, 30, 30), (1.0, 1.0, 1.0), direction=sagittal)) == 1


@pytest.mark.parametrize("case", ["brain1", "breast1"])
def test_pyradiomics_published_baselines(data: Path, case: str) -> None:
    folder = data / "pyradiomics"
    with (folder / "baseline" / "baseline_shape.csv").open() as file:
        baseline = {row["featureName"]: row[case] for row in csv.DictReader(file)}
    label = door.read_path(folder / f"{case}_label.nrrd", limits=Limits())
    image = door.read_path(folder / f"{case}_image.nrrd", limits=Limits())
    from isocenter.analysis.surface import surface

    whole = surface(label.array != 0, label.grid)
    assert whole is not None
    pairs = {
        "original_shape_Maximum3DDiameter": whole.max_3d_diameter_mm,
        "original_shape_MeshVolume": whole.mesh_volume_mm3,
        "original_shape_SurfaceArea": whole.area_mm2,
        "original_shape_Sphericity": whole.sphericity,
        "original_shape_VoxelVolume": float(np.count_nonzero(label.array)) * label.grid.voxel_mm3,
    }
    for name, value in pairs.items():
        assert value == pytest.approx(float(baseline[name]), rel=0.01), name
    with (folder / "baseline" / "baseline_firstorder.csv").open() as file:
        baseline = {row["featureName"]: row[case] for row in csv.DictReader(file)}
    inside = lesions(label.array, label.grid, image)
    values = sum(m.intensities.mean * m.voxels for m in inside if m.intensities) / sum(m.voxels for m in inside)
    assert values == pytest.approx(float(baseline["original_firstorder_Mean"]), rel=1e-6)


def test_readers_end_points(data: Path) -> None:
    """906 pairs of lesions: the published diameters are in pixels, whatever their readme says; end points are to 0.1."""
    pairs = json.loads((data / "dlt_lesion_pairs" / "valid.json").read_text())
    assert len(pairs) == 906
    for pair in pairs.values():
        for side in ("source", "target"):
            points = np.array(pair[f"{side} recist coordinate"]).reshape(4, 2)
            long, short = pair[f"{side} recist diameter"]
            dx, dy = pair[f"{side} spacing"][:2]
            assert from_points(points, (1.0, 1.0)) == pytest.approx((long, short), abs=0.15)
            assert from_points(points, (dx, dy)) == pytest.approx((long * dx, short * dx), abs=0.15)
