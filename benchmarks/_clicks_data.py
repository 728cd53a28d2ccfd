"""Real scans with their masks, and the robot user, for `clicks.py` and `_clicks_fit.py`.

Data is looked for in ISOCENTER_TEST_DATA, by default ../shared/data beside the project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cc3d
import edt
import nibabel as nib
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from PIL import Image

from isocenter.core.volume import Volume

DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Case:
    """One scan and the structures to find in it."""

    volume: Volume
    targets: dict[str, Mask]


def _volume(array: NDArray[np.generic], spacing_zyx: tuple[float, ...]) -> Volume:
    z, y, x = (float(s) for s in spacing_zyx)
    return Volume(np.ascontiguousarray(array), (x, y, z))


def _labels(segmentation: NDArray[np.generic], smallest: int = 400) -> dict[str, Mask]:
    values, counts = np.unique(segmentation, return_counts=True)
    return {str(v): segmentation == v for v, n in zip(values, counts, strict=True) if v != 0 and n > smallest}


def _nifti(path: str) -> tuple[NDArray[np.generic], tuple[float, ...]]:
    image = nib.load(DATA / path)
    return np.asanyarray(image.dataobj).transpose(2, 1, 0), tuple(float(s) for s in image.header.get_zooms()[::-1])


def _pair(image: str, labels: str, rows: slice = slice(None)) -> list[Case]:
    array, spacing = _nifti(f"totalsegmentator/{image}.nii.gz")
    segmentation, _ = _nifti(f"totalsegmentator/{labels}.nii.gz")
    return [Case(_volume(array[rows], spacing), _labels(segmentation[rows]))]


def dicom_ct(factor: int) -> list[Case]:
    """The DICOM CT, cropped to its labels, rows and columns reduced by `factor`."""
    folder = DATA / "totalsegmentator"
    reader = SimpleITK.ImageSeriesReader()
    image = SimpleITK.ReadImage(reader.GetGDCMSeriesFileNames(str(folder / "example_ct_dicom")))
    labels = SimpleITK.Resample(
        SimpleITK.ReadImage(str(folder / "example_seg_dicom.nii.gz")), image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0
    )
    array, segmentation = SimpleITK.GetArrayFromImage(image).astype(np.float32), SimpleITK.GetArrayFromImage(labels)
    rows, columns = (np.flatnonzero((segmentation > 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    y = slice(max(rows[0] - 20, 0), rows[-1] + 20)
    x = slice(max(columns[0] - 20, 0), columns[-1] + 20)
    array, segmentation = array[:, y, x], segmentation[:, y, x]
    ny, nx = (n // factor for n in array.shape[1:])
    array = array[:, : ny * factor, : nx * factor].reshape(-1, ny, factor, nx, factor).mean(axis=(2, 4))
    spacing = image.GetSpacing()
    return [
        Case(
            _volume(array, (spacing[2], spacing[1] * factor, spacing[0] * factor)),
            _labels(segmentation[:, : ny * factor : factor, : nx * factor : factor]),
        )
    ]


def sam_med2d() -> list[Case]:
    """CT and MR slices as 8-bit pictures, with single structures."""
    cases = []
    for path in sorted((DATA / "sam_med2d/images").glob("*.png")):
        picture = np.asarray(Image.open(path).convert("L"))[None]
        masks = {}
        for file in sorted((DATA / "sam_med2d/masks").glob(f"{path.stem}_*.png")):
            mask = np.asarray(Image.open(file).convert("L"))[None] > 0
            if mask.shape == picture.shape and mask.any():
                masks[file.stem.removeprefix(path.stem + "_")] = mask
        if masks:
            cases.append(Case(_volume(picture, (1, 1, 1)), masks))
    return cases


def _pyradiomics(name: str) -> list[Case]:
    image = SimpleITK.ReadImage(str(DATA / f"pyradiomics/{name}_image.nrrd"))
    label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(DATA / f"pyradiomics/{name}_label.nrrd")))
    return [Case(_volume(SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]), {"tumour": label > 0})]


def brain_t1(factor: int) -> list[Case]:
    """A T1 brain reduced from 1 mm by `factor`, with a network's 17 structures."""
    image, _ = _nifti("brainchop_mit/t1_crop.nii.gz")
    labels, _ = _nifti("brainchop_mit/reference_outputs/model18cls_t1_crop_argmax.nii.gz")
    n = 256 // factor
    image, labels = (a[: n * factor, : n * factor, : n * factor] for a in (image, labels))
    image = image.astype(np.float32).reshape(n, factor, n, factor, n, factor).mean(axis=(1, 3, 5))
    labels = labels[::factor, ::factor, ::factor]
    inside = np.argwhere(labels != 0)
    box = tuple(slice(max(a - 4, 0), b + 4) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
    return [Case(_volume(image[box], (factor, factor, factor)), _labels(labels[box]))]


def lung_ct() -> list[Case]:
    """The lungs of a CT, one by one."""
    image = SimpleITK.ReadImage(str(DATA / "elastix_lung/3DCT_lung_baseline.mha"))
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(DATA / "elastix_lung/3DCT_lung_baseline_mask.mha")))
    return [Case(_volume(SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]), _labels(cc3d.connected_components(mask)))]


SETS: dict[str, Callable[[], list[Case]]] = {
    "example_ct_sm": lambda: _pair("example_ct_sm", "example_seg"),
    "example_mr_sm": lambda: _pair("example_mr_sm", "example_seg_mr"),
    "example_ct": lambda: _pair("example_ct", "example_seg_fast_force_split"),
    "dicom_ct": lambda: dicom_ct(2),
    "sam_med2d": sam_med2d,
    "brain1": lambda: _pyradiomics("brain1"),
    "breast1": lambda: _pyradiomics("breast1"),
    "brain_t1": lambda: brain_t1(2),
    "lung_ct": lung_ct,
}


def deepest(inside: Mask, spacing_zyx: tuple[float, ...], border: bool = False) -> tuple[int, int, int]:
    """The voxel of `inside` farthest (mm) from any voxel outside; `border`: the end of the volume counts as outside."""
    depth = edt.edt(np.ascontiguousarray(inside), anisotropy=spacing_zyx, black_border=border)
    z, y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(z), int(y), int(x)


def next_click(
    mask: NDArray[np.uint8], target: Mask, spacing_zyx: tuple[float, ...], border: bool = False
) -> tuple[tuple[int, int, int], bool] | None:
    """Where the robot clicks and whether positively: the deepest point of the largest component of the larger error."""
    if not mask.any():
        return deepest(target, spacing_zyx, border), True
    missing, surplus = target & (mask == 0), ~target & (mask != 0)
    if not missing.any() and not surplus.any():
        return None
    positive = int(missing.sum()) >= int(surplus.sum())
    parts = cc3d.connected_components(missing if positive else surplus, connectivity=26)
    about = cc3d.statistics(parts, no_slice_conversion=False)
    largest = int(np.argmax(about["voxel_counts"][1:])) + 1
    # The nearest voxel outside of a component touches it: a box with a margin of one voxel holds all that counts.
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in about["bounding_boxes"][largest])
    if border:
        box = (slice(None),) * 3
    found = deepest(parts[box] == largest, spacing_zyx, border)
    z, y, x = (int(f + (s.start or 0)) for f, s in zip(found, box, strict=True))
    return (z, y, x), positive


def dice(mask: NDArray[np.generic], target: Mask) -> float:
    """Twice the overlap over the sum of both sizes."""
    inside = mask != 0
    return 2 * int((inside & target).sum()) / max(int(inside.sum()) + int(target.sum()), 1)


def each_target(cases: list[Case]) -> Iterator[tuple[Volume, str, Mask]]:
    """All structures of some scans."""
    for case in cases:
        for name, target in case.targets.items():
            yield case.volume, name, target
