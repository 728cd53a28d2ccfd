"""One scan brought onto another of the same patient, so that a place in one can be found in the other.

Rigid, then affine, by mutual information (Mattes et al., IEEE Trans Med Imaging 22:120, 2003) on grids of a few mm, begun
where the bodies' centres of mass coincide; then, where it is asked for, what `deform` finds. Quality is how alike the two
are afterwards where they overlap; a bad result is refused and says so, since a lesion carried to a wrong place is worse than
one that is not carried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.preprocess import isotropic, resampled
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
    found = _align(fixed, moving, affine=freedom is not Freedom.RIGID)
    if freedom is not Freedom.DEFORMABLE or not found.accepted:
        return found
    return replace(found, regions=deform(fixed, moving, found.matrix, lungs=lungs, check=lambda share, what: check(0.1 + 0.9 * share, what)))


def _align(fixed: Volume, moving: Volume, *, affine: bool) -> Registration:
    """Rigid and affine."""
    import SimpleITK as sitk

    if fixed.modality != moving.modality and None not in (fixed.modality, moving.modality):
        return Registration(np.eye(4), 0.0, 0.0, accepted=False, reason=f"one scan is {fixed.modality}, the other {moving.modality}")
    # The library's transforms run from its fixed image to its moving one: what is carried is "fixed" there.
    source, target = _coarse(moving), _coarse(fixed)
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


def _coarse(volume: Volume) -> tuple[NDArray[np.float32], Grid]:
    """The scan on cubes of some mm, its values cut off where nothing is to be told from them."""
    if not volume.grid.is_orthogonal:
        raise GeometryError("the axes of this scan are not at right angles; it cannot be registered")
    extent = [n * s for n, s in zip(volume.shape, volume.spacing_zyx, strict=True)]
    step = max(min(_STEP, sorted(extent)[1] / _FEWEST), min(volume.spacing))
    grid = isotropic(volume.grid, step)
    import SimpleITK as sitk

    array = resampled(volume, volume.grid)
    if volume.unit == "HU":
        np.clip(array, -1000, 300, out=array)
    smooth = _image(array, volume.grid)
    sigma = step / 2.355
    if sigma > min(volume.spacing) / 2:
        smooth = sitk.DiscreteGaussian(smooth, [sigma**2] * 3, 16, 0.05, True)
    blurred = Volume.on_grid(np.asarray(sitk.GetArrayViewFromImage(smooth)), volume.grid, key="-")
    return resampled(blurred, grid), grid


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
    from scipy.ndimage import map_coordinates

    array, grid = source
    other, there = target
    index = np.stack(np.meshgrid(*(np.arange(n) for n in array.shape), indexing="ij"), -1).reshape(-1, 3)[:, ::-1]
    to = np.linalg.inv(there.affine_lps) @ matrix @ grid.affine_lps
    places = (index @ to[:3, :3].T + to[:3, 3])[:, ::-1]
    inside = np.asarray(((places >= 0) & (places <= np.array(other.shape) - 1)).all(axis=1), dtype=np.bool_)
    body = _body(array).reshape(-1)
    overlap = float(np.mean(inside[body])) if body.any() else 0.0
    if inside.sum() < 100:
        return 0.0, overlap
    a = array.reshape(-1)[inside].astype(np.float64)
    b = map_coordinates(other, places[inside].T, order=1)
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0, overlap
    return float(np.corrcoef(a, b)[0, 1]), overlap
