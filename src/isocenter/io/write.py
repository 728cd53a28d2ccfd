"""The one place that writes an answer: a format's name or a path's suffix in, bytes out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import UsageError
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.io import nifti, npz, nrrd, picture

#: What can be written, longest first, so that ".seg.nrrd" is not taken for ".nrrd".
SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".npz", ".png", ".dcm")
_ALIASES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "seg": ".dcm", "dicom": ".dcm", "dicom_seg": ".dcm"}


def suffix_of(name: str) -> str:
    """The format that a file name or a format's name stands for, as a suffix. Raises `UsageError` for others."""
    lower = name.lower()
    found = next((s for s in SUFFIXES if lower.endswith(s) or lower == s[1:]), None) or _ALIASES.get(lower)
    if found is None:
        raise UsageError(f"cannot tell the format from the name; use one of {', '.join(sorted(SUFFIXES))}")
    return found


def check(volume: Volume, suffix: str) -> None:
    """Raise `UsageError` where no segmentation of `volume` can be written in the format of `suffix`."""
    kind = suffix_of(suffix)
    if kind == ".png" and volume.shape[0] != 1:
        raise UsageError(f"a PNG holds one slice, the mask has {volume.shape[0]}; use .nii.gz")
    if kind == ".dcm":
        from isocenter.io import seg

        if reason := seg.refusal(volume):
            raise UsageError(reason)


def encode(result: Segmentation, suffix: str, volume: Volume) -> bytes:
    """The bytes of a segmentation of `volume` in the format of `suffix` (see `SUFFIXES`).

    Voxels, grid and affine are the volume's, bit by bit. Raises `UsageError` where the format cannot hold the result.
    """
    if not result.grid.same_as(volume.grid):
        raise UsageError("the segmentation belongs to another volume than the one it is to be written with")
    check(volume, suffix)
    kind = suffix_of(suffix)
    if kind in (".nii", ".nii.gz"):
        return nifti.write(result.mask, result.grid, header=nifti_header_of(volume), compress=kind == ".nii.gz", description=_description(result))
    if kind == ".nrrd":
        return nrrd.write(result.mask, result.grid, keys={"isocenter_provenance": nrrd.provenance_json(result)})
    if kind == ".seg.nrrd":
        return nrrd.write_segmentation(result)
    if kind == ".npz":
        return npz.write({"seg": result.mask, "provenance": np.frombuffer(nrrd.provenance_json(result).encode(), np.uint8)})
    if kind == ".png":
        return _png(result)
    from isocenter.io import seg

    return seg.write(result, volume)


def encode_image(volume: Volume, suffix: str) -> bytes:
    """The bytes of a scan itself: `.nii`, `.nii.gz`, `.nrrd` or `.npz`."""
    kind = suffix_of(suffix)
    if kind in (".nii", ".nii.gz"):
        return nifti.write(volume.array, volume.grid, header=nifti_header_of(volume), compress=kind == ".nii.gz")
    if kind == ".nrrd":
        return nrrd.write(volume.array, volume.grid)
    if kind == ".npz":
        return npz.write({"image": volume.array, "affine": volume.grid.affine_ras})
    raise UsageError(f"a scan cannot be written as {kind}; use .nii.gz, .nii, .nrrd or .npz")


def nifti_header_of(volume: Volume) -> bytes | None:
    """The header to repeat, where the volume came from NIfTI."""
    return volume.source.header if volume.source.format == "nifti" else None


def _description(result: Segmentation) -> str:
    """Which model made it, for headers with room for one line."""
    return f"isocenter {result.provenance.model} {result.provenance.version}"


def _png(result: Segmentation) -> bytes:
    """A picture's mask, 0 and 255; several labels keep their values."""
    plane: NDArray[np.unsignedinteger] = result.mask[0]
    if len(result.labels) == 1:
        return picture.png((plane != 0).astype(np.uint8) * np.uint8(255))
    if plane.max(initial=0) > 255:
        raise UsageError("a PNG mask holds labels up to 255; use .nii.gz")
    return picture.png(plane)
