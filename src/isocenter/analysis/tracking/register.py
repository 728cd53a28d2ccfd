"""One scan brought onto another of the same patient, so that a place in one can be found in the other.

Rigid, then affine, by mutual information (Mattes et al., IEEE Trans Med Imaging 22:120, 2003) on grids of a few mm, begun
where the bodies' centres of mass coincide; then, where it is asked for, what `deform` finds. Quality is how alike the two
are afterwards where they overlap; a bad result is refused and says so, since a lesion carried to a wrong place is worse than
one that is not carried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.preprocess import isotropic
from isocenter.analysis.tracking.deform import Check, Region, carry, deform
from isocenter.core.errors import GeometryError
from isocenter.core.geometry import Grid
from isocenter.core.volume import Volume

#: Edge of the cubes that are compared, mm; finer for small fields of view.
_STEP = 4.0
_FEWEST = 32
#: Least correlation, and least share of the smaller scan that overlaps, of an accepted result.
LEAST_ALIKE, LEAST_OVERLAP = 0.6, 0.3


class Freedom(StrEnum):
    """How one scan may be bent to fit the other."""

    RIGID = "rigid"
    AFFINE = "affine"
    DEFORMABLE = "deformable"


@dataclass(frozen=True, eq=False)
class Registration:
    """matrix: 4 x 4, LPS mm of the moving scan to LPS mm of the fixed one. alike: correlation where they overlap.

    overlap: share of the moving scan's body that lies in the fixed scan. reason: why it was not accepted. regions: what
    deforms, none where that was not asked for; a region whose field was refused says why and is carried by the matrix alone.
    """

    matrix: NDArray[np.float64]
    alike: float
    overlap: float
    accepted: bool
    reason: str = ""
    regions: tuple[Region, ...] = ()

    def carry(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) LPS mm of the moving scan, in the fixed one."""
        return carry(points, self.matrix, self.regions)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "matrix": self.matrix.tolist(),
            "alike": round(self.alike, 4),
            "overlap": round(self.overlap, 4),
            "accepted": self.accepted,
            "reason": self.reason,
            "regions": [region.as_dict() for region in self.regions],
        }


@dataclass(frozen=True, eq=False)
class Coarse:
    """A scan on cubes of some mm, smoothed; all that `align` looks at. key: of the scan that it was made from."""

    array: NDArray[np.float32]
    grid: Grid
    modality: str | None
    key: str


def register(
    fixed: Volume,
    moving: Volume,
    *,
    freedom: Freedom = Freedom.AFFINE,
    lungs: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    check: Check = lambda share, what: None,
) -> Registration:
    """Bring `moving` onto `fixed`. Raises `GeometryError` for a grid whose axes are not at right angles.

    lungs: masks of them on the grids of `fixed` and `moving`, which deform on their own. check: see `deform`.
    """
    check(0.0, "aligning")
    found = align(coarse(fixed), coarse(moving), affine=freedom is not Freedom.RIGID)
    if freedom is not Freedom.DEFORMABLE or not found.accepted:
        return found
    return replace(found, regions=deform(fixed, moving, found.matrix, lungs=lungs, check=lambda share, what: check(0.1 + 0.9 * share, what)))


def align(fixed: Coarse, moving: Coarse, *, affine: bool) -> Registration:
    """Rigid and, if asked for, affine."""
    import SimpleITK as sitk

    if fixed.modality != moving.modality and None not in (fixed.modality, moving.modality):
        return Registration(np.eye(4), 0.0, 0.0, accepted=False, reason=f"one scan is {fixed.modality}, the other {moving.modality}")
    # The library's transforms run from its fixed image to its moving one: what is carried is "fixed" there.
    source, target = (moving.array, moving.grid), (fixed.array, fixed.grid)
    start = sitk.Euler3DTransform()
    centres = [_centre(*pair) for pair in (source, target)]
    start.SetCenter([float(v) for v in centres[0]])
    start.SetTranslation([float(v) for v in centres[1] - centres[0]])
    images = [_image(*pair) for pair in (source, target)]
    try:
        rigid = _optimise(images[0], images[1], start, steps=(4, 2, 1))
        matrix = _matrix(rigid)
        best = _quality(source, target, matrix)
        if affine:
            full = sitk.AffineTransform(3)
            full.SetCenter(rigid.GetCenter())
            full.SetMatrix(rigid.GetMatrix())
            full.SetTranslation(rigid.GetTranslation())
            stretched = _matrix(_optimise(images[0], images[1], full, steps=(2, 1)))
            better = _quality(source, target, stretched)
            # A patient does not swell by a quarter between visits.
            if better[0] > best[0] and 0.75 < abs(np.linalg.det(stretched[:3, :3])) < 1.33:
                matrix, best = stretched, better
    except RuntimeError:
        return Registration(np.eye(4), 0.0, 0.0, accepted=False, reason="the scans have too little in common to be compared")
    alike, overlap = best
    reason = ""
    if overlap < LEAST_OVERLAP:
        reason = f"only {100 * overlap:.0f} % of one scan lies in the other"
    elif alike < LEAST_ALIKE:
        reason = f"the scans do not look alike once aligned (correlation {alike:.2f}, {LEAST_ALIKE} is asked for)"
    return Registration(matrix, alike, overlap, accepted=not reason, reason=reason)


def coarse(volume: Volume) -> Coarse:
    """The scan on cubes of some mm, its values cut off where nothing is to be told from them.

    Smoothed by a Gaussian as wide as a cube (full width at half maximum), then linear between voxels. Both are linear along each
    axis, so each is one matrix, and a plane is at once as small as it ends up. Raises `GeometryError` for a sheared grid.
    """
    if not volume.grid.is_orthogonal:
        raise GeometryError("the axes of this scan are not at right angles; it cannot be registered")
    extent = [n * s for n, s in zip(volume.shape, volume.spacing_zyx, strict=True)]
    step = max(min(_STEP, sorted(extent)[1] / _FEWEST), min(volume.spacing))
    grid = isotropic(volume.grid, step)
    sigma = step / 2.355
    sigma = sigma if sigma > min(volume.spacing) / 2 else 0.0
    start = np.linalg.solve(volume.grid.affine_lps, (*grid.origin, 1.0))[:3]
    down, rows, columns = (
        _axis(n, m, float(start[2 - k]), step / s, sigma / s)
        for k, (n, m, s) in enumerate(zip(volume.shape, grid.shape, volume.spacing_zyx, strict=True))
    )
    small = np.empty((volume.shape[0], grid.shape[1], grid.shape[2]), np.float32)
    for k, plane in enumerate(volume.voxels):
        values = np.clip(plane, -1000, 300) if volume.unit == "HU" else plane
        narrow = rows @ values.astype(np.float32)
        small[k] = (columns @ np.ascontiguousarray(narrow.T)).T
    array = np.asarray(down @ small.reshape(len(small), -1)).reshape(grid.shape)
    return Coarse(array, grid, volume.modality, volume.key)


def _axis(count: int, wanted: int, start: float, step: float, sigma: float) -> Any:
    """(wanted, count), sparse: smoothing along an axis, then linear interpolation at `start + step * k`; all in voxels, edges go on beyond."""
    place = np.clip(start + step * np.arange(wanted), 0, count - 1)
    first = np.minimum(place.astype(int), max(count - 2, 0))
    linear = np.zeros((wanted, count))
    linear[np.arange(wanted), first] = 1 - (place - first)
    linear[np.arange(wanted), np.minimum(first + 1, count - 1)] += place - first
    from scipy.ndimage import convolve1d
    from scipy.sparse import csr_array
    from scipy.special import ive

    if not sigma:
        return csr_array(linear.astype(np.float32))

    # The discrete analog of the Gaussian (Lindeberg, IEEE Trans PAMI 12:234, 1990): right for narrow ones too.
    reach = math.ceil(4 * sigma) + 1
    kernel = ive(np.abs(np.arange(-reach, reach + 1)), sigma**2)
    smooth = convolve1d(np.eye(count), kernel / kernel.sum(), axis=0, mode="nearest")
    return csr_array((linear @ smooth).astype(np.float32))


def _image(array: NDArray[np.float32], grid: Grid) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection([float(v) for row in grid.direction for v in row])
    return image


def _body(array: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What is not background, by Otsu's threshold."""
    from skimage.filters import threshold_otsu

    return np.asarray(array > threshold_otsu(array)) if float(array.max()) > float(array.min()) else np.ones(array.shape, bool)


def _centre(array: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """LPS mm of the body's centre of mass."""
    index = np.argwhere(_body(array)).mean(axis=0)[::-1]
    return np.asarray(grid.affine_lps[:3, :3] @ index + grid.affine_lps[:3, 3])


def _optimise(source: Any, target: Any, start: Any, *, steps: tuple[int, ...]) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    # Places are shaken within a voxel; without a seed the clock gives one.
    method.SetMetricSamplingPercentage(0.1, 42)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(steps))
    method.SetSmoothingSigmasPerLevel([s / 2 if s > 1 else 0 for s in steps])
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-2, 60, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, True)
    # One thread adds up in one order: the same scans give the same answer.
    method.SetNumberOfThreads(1)
    method.Execute(source, target)
    return start


def _matrix(transform: Any) -> NDArray[np.float64]:
    """4 x 4 of a transform about a centre."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = shift + centre - linear @ centre
    return matrix


def _quality(source: tuple[NDArray[np.float32], Grid], target: tuple[NDArray[np.float32], Grid], matrix: NDArray[np.float64]) -> tuple[float, float]:
    """(correlation over the overlap, share of the source's body that lies in the target)."""
    from scipy.ndimage import affine_transform

    array, grid = source
    other, there = target
    to = np.linalg.inv(there.affine_lps) @ matrix @ grid.affine_lps
    linear, offset = to[:3, :3][::-1, ::-1], to[:3, 3][::-1]
    moved = affine_transform(other, linear, offset, output_shape=array.shape, order=1, cval=np.nan)
    inside = np.isfinite(moved)
    body = _body(array)
    overlap = float(np.mean(inside[body])) if body.any() else 0.0
    if inside.sum() < 100:
        return 0.0, overlap
    a, b = array[inside].astype(np.float64), moved[inside].astype(np.float64)
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0, overlap
    return float(np.corrcoef(a, b)[0, 1]), overlap
