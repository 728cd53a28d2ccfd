"""What an affine transform leaves over: breathing, and organs that shift. A dense displacement field for each region.

Demons with symmetric forces (Thirion, Med Image Anal 2:243, 1998; Vercauteren et al., NeuroImage 45:S61, 2009) over four
resolutions. Lungs slide along the chest's wall, so where both scans show lungs they get a field of their own, from images
in which all else is blank; a place is carried by the field of the region that it lies in. A field is kept only if it makes
the region more alike, folds nowhere to speak of, and the way back leads to where it began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.volume import Volume

#: Iterations on grids 8, 4, 2 and 1 steps wide; sd of the smoothing of the field, in their voxels.
_LEVELS = ((8, 100), (4, 100), (2, 60), (1, 30))
_SMOOTH = 1.5
#: Voxels of the finest grid at most: bounds time (some 15 s of a core a region) and memory (some 400 MB).
_VOXELS = 2_000_000
#: Values beyond which nothing is told apart, HU: of air and vessels in lungs, of the soft tissue around them.
_LUNG_HU, _BODY_HU = (-1000.0, -300.0), (-150.0, 250.0)
#: What a field must reach: correlation, mean distance mm after there and back, and share of the region that may be folded.
LEAST_ALIKE, MOST_RETURN_MM, MOST_FOLDED = 0.6, 3.0, 0.01
#: Lungs of less than this are not registered on their own, ml.
_LEAST_LUNG_ML = 200.0

Check = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Region:
    """A displacement field and where it holds.

    shift: (z, y, x, 3) float32, LPS mm to add (x, y, z) before the affine matrix; on cubes of `step` mm along LPS axes, the
    first one's centre at `origin`. inside: (z, y, x) bool. alike: correlation inside after the affine matrix, and with the
    field. return_mm: mean and 95th percentile of the distance after there and back. folded: share of the region whose Jacobian is
    not above 0. jacobian: its 0.1st and 99.9th percentile. reason: why the field is not used, "" where it is.
    """

    name: str
    shift: NDArray[np.float32]
    inside: NDArray[np.bool_]
    origin: tuple[float, float, float]
    step: float
    alike: tuple[float, float]
    return_mm: tuple[float, float]
    folded: float
    jacobian: tuple[float, float]
    reason: str = ""

    def holds(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of (n, 3) LPS mm lie in the region."""
        index = np.rint(self._index(points)).astype(int)
        within = np.all((index >= 0) & (index < self.inside.shape), axis=1)
        z, y, x = np.where(within[:, None], index, 0).T
        return np.asarray(within & np.asarray(self.inside[z, y, x]), dtype=np.bool_)

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) mm to add to LPS points; beyond the grid as at its edge."""
        from scipy.ndimage import map_coordinates

        index = self._index(points).T
        return np.stack([map_coordinates(self.shift[..., k], index, order=1, mode="nearest") for k in range(3)], axis=1).astype(np.float64)

    def _index(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(((points - np.array(self.origin)) / self.step)[:, ::-1])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the field."""
        return {
            "region": self.name,
            "step_mm": round(self.step, 3),
            "alike_before": round(self.alike[0], 4),
            "alike": round(self.alike[1], 4),
            "return_mm": [round(v, 3) for v in self.return_mm],
            "folded": round(self.folded, 5),
            "jacobian": [round(v, 3) for v in self.jacobian],
            "used": not self.reason,
            "reason": self.reason,
        }


def carry(points: NDArray[np.float64], matrix: NDArray[np.float64], regions: Sequence[Region]) -> NDArray[np.float64]:
    """(n, 3) LPS mm of the moving scan, in the fixed one: by the first region that holds each point, then the matrix."""
    moved = np.array(points, dtype=np.float64)
    left = np.ones(len(moved), bool)
    for region in regions:
        here = left & region.holds(points)
        left &= ~here
        if not region.reason and here.any():
            moved[here] += region.at(np.asarray(points)[here])
    return np.asarray(moved @ matrix[:3, :3].T + matrix[:3, 3])


def deform(
    fixed: Volume,
    moving: Volume,
    matrix: NDArray[np.float64],
    *,
    lungs: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    check: Check = lambda share, what: None,
    voxels: int = _VOXELS,
) -> tuple[Region, ...]:
    """Fields that refine `matrix` (4 x 4, LPS mm of `moving` to LPS mm of `fixed`), the lungs' first.

    lungs: masks (z, y, x) on the grids of `fixed` and `moving`; ignored where either shows less than 200 ml. check: is told
    the share done and may stop the work by raising. voxels: of the finest grid at most. The same scans give the same fields,
    but for rounding. Raises `RuntimeError` from the library.
    """
    regions: list[Region] = []
    if lungs is not None and min(m.sum() * v.grid.voxel_mm3 for m, v in zip(lungs, (fixed, moving), strict=True)) >= 1000 * _LEAST_LUNG_ML:
        pair = [_tissue(v, _LUNG_HU, m) for v, m in zip((moving, fixed), (lungs[1], lungs[0]), strict=True)]
        regions.append(_region("lungs", pair, _mask(moving, lungs[1]), matrix, _LUNG_HU[1], lambda s, w: check(s / 2, w), voxels))
        del pair
    hounsfield = fixed.unit == "HU" and moving.unit == "HU"
    limits = [_BODY_HU if hounsfield else _range(v) for v in (moving, fixed)]
    pair = [_tissue(v, limit) for v, limit in zip((moving, fixed), limits, strict=True)]
    if not hounsfield:
        pair = [_scaled(image, limit) for image, limit in zip(pair, limits, strict=True)]
    begun = len(regions) / 2
    regions.append(_region("body", pair, None, matrix, _BODY_HU[0] if hounsfield else 0.0, lambda s, w: check(begun + s * (1 - begun), w), voxels))
    return tuple(regions)


def _region(name: str, pair: Sequence[Any], mask: Any, matrix: NDArray[np.float64], blank: float, check: Check, voxels: int) -> Region:
    """One region's field and what it is worth. pair: images of moving and fixed scan; mask: of the moving one, None for all."""
    import SimpleITK as sitk

    frame = _frame(pair[0] if mask is None else mask, voxels, inside=mask is not None)
    there = sitk.AffineTransform(3)
    there.SetMatrix(matrix[:3, :3].ravel().tolist())
    there.SetTranslation(matrix[:3, 3].tolist())
    source = _fit(pair[0], frame, sitk.Transform(), blank)
    target = _fit(pair[1], frame, there, blank)
    # What only one of the scans shows is blank in both: there is nothing to pull it anywhere.
    seen = [
        sitk.Resample(_ones(image), frame, t, sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8)
        for image, t in zip(pair, (sitk.Transform(), there), strict=True)
    ]
    both = sitk.And(seen[0], seen[1])
    source, target = (sitk.Mask(image, both, blank) for image in (source, target))
    if mask is None:
        inside = sitk.GetArrayFromImage(both) > 0
        inside &= sitk.GetArrayViewFromImage(source) > blank
    else:
        # Vessels, and lesions within the lung, belong to it.
        whole = sitk.Resample(mask, frame, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8)
        inside = sitk.GetArrayFromImage(sitk.BinaryMorphologicalClosing(whole, [max(1, round(6 / frame.GetSpacing()[0]))] * 3)) > 0
    field = _demons(source, target, _LEVELS, lambda s, w: check(0.8 * s, f"{name}: {w}"))
    back = _demons(target, source, _LEVELS[:-1], lambda s, w: check(0.8 + 0.2 * s, f"{name}: {w} back"))
    shift = sitk.GetArrayFromImage(field).astype(np.float32)
    warped = sitk.Warp(target, field, sitk.sitkLinear, frame.GetSize(), frame.GetOrigin(), frame.GetSpacing(), frame.GetDirection(), blank)
    alike = (_correlation(source, target, inside), _correlation(source, warped, inside))
    home = _return(field, back, inside)
    jacobian = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))[inside]
    folded = float((jacobian <= 0).mean()) if jacobian.size else 1.0
    low, high = (float(v) for v in np.percentile(jacobian, [0.1, 99.9])) if jacobian.size else (0.0, 0.0)
    reason = ""
    if alike[1] < max(LEAST_ALIKE, alike[0]):
        reason = f"the {name} do not become alike by it (correlation {alike[0]:.2f} before, {alike[1]:.2f} after)"
    elif home[0] > MOST_RETURN_MM:
        reason = f"there and back ends {home[0]:.1f} mm away"
    elif folded > MOST_FOLDED:
        reason = f"{100 * folded:.1f} % of the {name} would be folded over"
    x, y, z = frame.GetOrigin()
    return Region(name, shift, inside, (x, y, z), frame.GetSpacing()[0], alike, home, folded, (low, high), reason)


def _demons(source: Any, target: Any, levels: Sequence[tuple[int, int]], check: Check) -> Any:
    """The field (float64 mm, on the source's grid) that leads from a place in the source to the same in the target."""
    import SimpleITK as sitk

    step = source.GetSpacing()[0]
    field = None
    for k, (shrink, rounds) in enumerate(levels):
        check(k / len(levels), f"deforming, level {k + 1} of {len(levels)}")
        a, b = (sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, shrink * step / 2), [shrink] * 3) if shrink > 1 else i for i in (source, target))
        method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        method.SetNumberOfIterations(rounds)
        method.SetSmoothDisplacementField(True)
        method.SetStandardDeviations(_SMOOTH)
        # Never halt early by a sum whose order threads decide.
        method.SetMaximumRMSError(0.0)
        if field is None:
            field = method.Execute(a, b)
        else:
            field = method.Execute(a, b, sitk.Resample(field, a, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64))
    if field is None or field.GetSize() == source.GetSize():
        return field
    return sitk.Resample(field, source, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)


def _return(field: Any, back: Any, inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and 95th percentile of how far there and back ends from where it began, mm."""
    import SimpleITK as sitk

    # The way back begins where the way there ends.
    there = sitk.DisplacementFieldTransform(sitk.Image(field))
    returned = sitk.Resample(back, field, there, sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
    away = np.linalg.norm(sitk.GetArrayViewFromImage(field) + sitk.GetArrayViewFromImage(returned), axis=-1)[inside]
    return (float(away.mean()), float(np.percentile(away, 95))) if away.size else (np.inf, np.inf)


def _correlation(a: Any, b: Any, inside: NDArray[np.bool_]) -> float:
    import SimpleITK as sitk

    x, y = (sitk.GetArrayViewFromImage(i)[inside].astype(np.float64) for i in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if x.size > 100 and x.std() > 1e-6 and y.std() > 1e-6 else 0.0


# Images


def _image(array: NDArray[np.generic], volume: Volume) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection([float(v) for row in volume.direction for v in row])
    return image


def _mask(volume: Volume, mask: NDArray[np.bool_]) -> Any:
    return _image(mask.astype(np.uint8), volume)


def _tissue(volume: Volume, limits: tuple[float, float], mask: NDArray[np.bool_] | None = None) -> Any:
    """The scan as float32 with its values cut off, averaged to voxels of a millimetre or more; outside of `mask` the upper limit."""
    import SimpleITK as sitk

    low, high = limits
    array = np.clip(volume.array, low, high)
    if mask is not None:
        array[~mask] = high
    # Averaged in the type that it has: a float copy of a large scan would weigh more than all the rest.
    factors = [max(1, int(1.5 / s)) for s in volume.spacing]
    return sitk.Cast(sitk.BinShrink(_image(array, volume), factors) if max(factors) > 1 else _image(array, volume), sitk.sitkFloat32)


def _range(volume: Volume) -> tuple[float, float]:
    """Values without a meaning of their own: from what Otsu's threshold calls background to the 99.5th percentile."""
    flat = np.asarray(volume.array).reshape(-1)
    sample = flat[:: max(1, flat.size // 500_000)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, [1, 99.5]) if sample.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _scaled(image: Any, limits: tuple[float, float]) -> Any:
    """Values of any scale to 0..1000, so that one set of forces serves."""
    return (image - limits[0]) * (1000.0 / (limits[1] - limits[0]))


def _frame(image: Any, voxels: int, *, inside: bool) -> Any:
    """An empty image of cubes along LPS axes over the whole of `image`, or over what is not 0 in it and 10 mm around."""
    import SimpleITK as sitk

    index = np.array([[0.0, n] for n in image.GetSize()]) - 0.5
    around = 0.0
    if inside:
        found = sitk.LabelShapeStatisticsImageFilter()
        found.Execute(image)
        box = np.array(found.GetBoundingBox(1), dtype=np.float64)
        index, around = np.stack([box[:3], box[:3] + box[3:]], axis=1) - 0.5, 10.0
    corners = [image.TransformContinuousIndexToPhysicalPoint([x, y, z]) for x in index[0] for y in index[1] for z in index[2]]
    low, high = np.min(corners, axis=0) - around, np.max(corners, axis=0) + around
    step = max(min(image.GetSpacing()), float(np.cbrt(np.prod(high - low) / voxels)))
    # Eight voxels at the coarsest level, or there is no gradient.
    size = [max(4, int(np.ceil(v / step))) for v in high - low]
    frame = sitk.Image(size, sitk.sitkUInt8)
    frame.SetSpacing([step] * 3)
    frame.SetOrigin((low + step / 2).tolist())
    return frame


def _fit(image: Any, frame: Any, transform: Any, blank: float) -> Any:
    import SimpleITK as sitk

    step = frame.GetSpacing()[0]
    if step > 1.5 * min(image.GetSpacing()):
        image = sitk.SmoothingRecursiveGaussian(image, 0.4 * step)
    return sitk.Resample(image, frame, transform, sitk.sitkLinear, blank, sitk.sitkFloat32)


def _ones(image: Any) -> Any:
    import SimpleITK as sitk

    ones = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(image)
    return ones
