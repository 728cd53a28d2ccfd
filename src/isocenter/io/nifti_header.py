"""The header of NIfTI-1 and NIfTI-2 files: read with suspicion, written plainly.

After the NIfTI-1 standard's `nifti1.h` and its successor's `nifti2.h`. NIfTI's frame is RAS; it is left here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError, UnsupportedError
from isocenter.core.geometry import Grid
from isocenter.core.volume import Scale
from isocenter.io import raw

_V1 = [
    ("sizeof_hdr", "i4"), ("data_type", "S10"), ("db_name", "S18"), ("extents", "i4"), ("session_error", "i2"), ("regular", "S1"),
    ("dim_info", "u1"), ("dim", "i2", 8), ("intent_p", "f4", 3), ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"),
    ("slice_start", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"), ("scl_inter", "f4"), ("slice_end", "i2"),
    ("slice_code", "u1"), ("xyzt_units", "u1"), ("cal_max", "f4"), ("cal_min", "f4"), ("slice_duration", "f4"), ("toffset", "f4"),
    ("glmax", "i4"), ("glmin", "i4"), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i2"), ("sform_code", "i2"),
    ("quatern", "f4", 3), ("qoffset", "f4", 3), ("srow", "f4", (3, 4)), ("intent_name", "S16"), ("magic", "V4"),
]  # fmt: skip
_V2 = [
    ("sizeof_hdr", "i4"), ("magic", "V8"), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", 8), ("intent_p", "f8", 3),
    ("pixdim", "f8", 8), ("vox_offset", "i8"), ("scl_slope", "f8"), ("scl_inter", "f8"), ("cal_max", "f8"), ("cal_min", "f8"),
    ("slice_duration", "f8"), ("toffset", "f8"), ("slice_start", "i8"), ("slice_end", "i8"), ("descrip", "S80"), ("aux_file", "S24"),
    ("qform_code", "i4"), ("sform_code", "i4"), ("quatern", "f8", 3), ("qoffset", "f8", 3), ("srow", "f8", (3, 4)), ("slice_code", "i4"),
    ("xyzt_units", "i4"), ("intent_code", "i4"), ("intent_name", "S16"), ("dim_info", "u1"), ("unused", "V15"),
]  # fmt: skip
V1, V2 = np.dtype(_V1), np.dtype(_V2)

_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
#: Numpy types of the standard's datatype codes.
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
#: RGB24 and RGBA32: bytes of a voxel.
COLOUR = {128: 3, 2304: 4}
_OTHER = {1: "single bits", 32: "complex numbers", 1792: "complex numbers", 2048: "complex numbers", 1536: "128-bit numbers"}
#: Millimetres in the standard's units of length; 0 is "unknown", which everybody reads as millimetres.
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says. raw: its 348 or 540 bytes. shape: (z, y, x). kind: the file's numpy type, with its byte
    order. channels: bytes of a colour voxel, 0 for numbers. offset: where the voxels begin. scale: as `Source` has it.
    """

    raw: bytes
    shape: tuple[int, int, int]
    kind: np.dtype[np.generic]
    channels: int
    offset: int
    slope: float
    inter: float
    grid: Grid
    notes: tuple[str, ...] = ()
    scale: Scale = "full"

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels in the file."""
        return self.voxels * (self.channels or self.kind.itemsize)

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)


def is_long(head: bytes) -> bool:
    """Whether the first bytes are those of a NIfTI-2 header."""
    return head[:4] in (V2.itemsize.to_bytes(4, "little"), V2.itemsize.to_bytes(4, "big"))


def fields(head: bytes) -> NDArray[np.void]:
    """The header's fields by name, in the byte order that the file has. Raises `InputError` for what is no NIfTI."""
    for layout in (V1, V2):
        for order in _ORDERS:
            if len(head) >= layout.itemsize and int.from_bytes(head[:4], "little" if order == "<" else "big") == layout.itemsize:
                found = np.frombuffer(head[: layout.itemsize], layout.newbyteorder(order))[0]
                _check_magic(bytes(found["magic"]))
                return found  # type: ignore[no-any-return]
    raise InputError("not a NIfTI file: its header is too short or has no valid size")


def _check_magic(magic: bytes) -> None:
    if magic[:4] in (b"n+1\0", b"n+2\0"):
        return
    if magic[:4] in (b"ni1\0", b"ni2\0"):
        raise UnsupportedError("a NIfTI header whose voxels lie in another file (.hdr and .img); convert the pair to one .nii or .nii.gz")
    raise UnsupportedError("an ANALYZE file, which does not say where its voxels lie; convert it to NIfTI")


def parse(head: bytes) -> Header:
    """What the header says, checked. Nothing is allocated."""
    found = fields(head)
    shape = _shape([int(n) for n in found["dim"]])
    code = int(found["datatype"])
    if code not in TYPES and code not in COLOUR:
        raise UnsupportedError(f"voxels of {_OTHER.get(code, f'an unknown type (datatype {code})')} cannot be segmented")
    order = found.dtype["dim"].base.byteorder
    kind = np.dtype(TYPES.get(code, "u1")).newbyteorder(order)
    offset = float(found["vox_offset"])
    if not math.isfinite(offset) or offset < 0:
        raise InputError("the NIfTI header's vox_offset is not a valid position")
    # Some writers leave it 0; the voxels then follow the header and its four flag bytes.
    start = max(int(offset), found.dtype.itemsize + 4) if offset < found.dtype.itemsize else int(offset)
    slope, inter = _scaling(float(found["scl_slope"]), float(found["scl_inter"]))
    # Nonsense in the header gives nonsense here, which is refused right after.
    with np.errstate(all="ignore"):
        affine, notes, placed = _affine(found, shape)
    # A spacing of 0 is none; who has a usable sform needs no other.
    steps = found["pixdim"][1 : 3 if found["dim"][0] == 2 else 4]
    scale, unscaled = ("full", ()) if placed else raw.scale_of([bool(step != 0) for step in steps])
    head = head[: found.dtype.itemsize]
    return Header(head, shape, kind, COLOUR.get(code, 0), start, slope, inter, Grid.from_affine_ras(affine, shape), unscaled + notes, scale)


def _shape(dim: list[int]) -> tuple[int, int, int]:
    """(z, y, x) of the header's `dim`."""
    axes = dim[0]
    if not 1 <= axes <= 7:
        raise InputError(f"the NIfTI header declares {axes} dimensions")
    sizes = dim[1 : axes + 1]
    if min(sizes) < 1:
        raise InputError("the NIfTI header declares an axis without voxels")
    if (count := math.prod(sizes[3:])) != 1:
        raise UnsupportedError(f"the file holds {count} volumes (a series in time or of directions); send the one that is meant as a 3-D file")
    if axes < 2:
        raise UnsupportedError("the file holds a single line of voxels")
    x, y, z = (*sizes[:3], 1)[:3]
    return z, y, x


def _scaling(slope: float, inter: float) -> tuple[float, float]:
    """A slope of 0 or that is no number means "not scaled"."""
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise InputError("the NIfTI header's scl_inter is not a number")
    return slope, inter


def _affine(found: NDArray[np.void], shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], tuple[str, ...], bool]:
    """Voxel (x, y, z) to RAS mm: the sform if there is one, else the qform, else spacing alone with 0 in the centre; notes; whether by sform."""
    notes: tuple[str, ...] = ()
    usable = False
    affine = np.eye(4)
    if found["sform_code"] > 0:
        affine[:3] = found["srow"]
        usable = bool(np.abs(affine).max() < raw.MOST_MM) and abs(np.linalg.det(affine[:3, :3])) > 0
        if not usable and found["qform_code"] <= 0:
            raise GeometryError("the NIfTI header's sform is no usable matrix, and there is no qform")
        if not usable:
            notes = ("The header's sform is not usable; its qform was taken.",)
            affine = _qform(found)
    elif found["qform_code"] > 0:
        affine = _qform(found)
    else:
        spacing = _spacing(found)
        # As nibabel has it: without a word on orientation, x runs to the left (the old ANALYZE convention).
        steps = spacing * (-1, 1, 1)
        affine[:3, :3] = np.diag(steps)
        affine[:3, 3] = -steps * (np.array(shape[::-1]) - 1) / 2
        notes = ("The header does not say how the image lies in the patient; left and right may be exchanged.",)
    raw.check_affine(affine)
    affine[:3] *= _UNITS.get(int(found["xyzt_units"]) & 7, 1.0)
    return affine, notes, usable


def _spacing(found: NDArray[np.void]) -> NDArray[np.float64]:
    """The header's pixdim 1 to 3; a 2-D image's missing third one is 1, and so is any other 0, as nibabel repairs it."""
    spacing = np.abs(found["pixdim"][1:4].astype(np.float64))
    spacing[spacing == 0] = 1.0
    return spacing


def _qform(found: NDArray[np.void]) -> NDArray[np.float64]:
    """The matrix of the quaternion (nifti1.h, method 2)."""
    b, c, d = (float(v) for v in found["quatern"])
    square = 1.0 - (b * b + c * c + d * d)
    if not math.isfinite(square):
        raise GeometryError("the NIfTI header's quaternion is not a finite number")
    if square < 1e-7:
        # A half turn, stored with rounding errors: normalise, as the standard's own code does.
        length = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(square)
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    spacing = _spacing(found)
    if found["pixdim"][0] < 0:
        spacing[2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = found["qoffset"]
    return affine


def build(array: NDArray[np.generic], grid: Grid, *, like: bytes | None = None, description: str = "") -> bytes:
    """A NIfTI-1 header (NIfTI-2 where a source's was, or an axis is too long) with its four flag bytes, for `array` (z, y, x).

    like: the header of the NIfTI file that the grid came from; its sform, qform, spacing and units are repeated bit by bit.
    """
    source = fields(like) if like is not None else None
    wide = max(array.shape) > 32767 or (source is not None and source.dtype.itemsize == V2.itemsize)
    header = np.zeros((), V2 if wide else V1)
    header["sizeof_hdr"] = header.dtype.itemsize
    header["magic"] = b"n+2\0\r\n\x1a\n" if wide else b"n+1\0"
    code = next((c for c, name in TYPES.items() if np.dtype(name) == array.dtype.newbyteorder("=")), None)
    if code is None:
        raise UnsupportedError(f"NIfTI has no voxels of type {array.dtype}")
    header["datatype"], header["bitpix"] = code, array.dtype.itemsize * 8
    header["dim"] = (3, *reversed(array.shape), 1, 1, 1, 1)
    header["vox_offset"] = header.dtype.itemsize + 4
    header["scl_slope"] = 1
    header["descrip"] = description.encode("ascii", "replace")[:79]
    if not wide:
        header["regular"] = b"r"
    if source is not None:
        for name in ("qform_code", "sform_code", "quatern", "qoffset", "srow", "xyzt_units"):
            header[name] = source[name]
        # A 2-D source may have a third spacing of 0, which is read as 1.
        steps = np.where(source["pixdim"][1:4] == 0, 1, source["pixdim"][1:4])
        header["pixdim"] = (source["pixdim"][0], *steps, 1, 1, 1, 1)
    else:
        _place(header, grid)
    return header.tobytes() + bytes(4)


def _place(header: NDArray[np.void], grid: Grid) -> None:
    """Write the grid as sform and, where its axes are at right angles, as qform."""
    affine = grid.affine_ras
    header["xyzt_units"] = 2
    header["sform_code"] = 1
    header["srow"] = affine[:3]
    header["pixdim"] = (1, *grid.spacing, 1, 1, 1, 1)
    if not grid.is_orthogonal:
        return
    turn = affine[:3, :3] / np.array(grid.spacing)
    if np.linalg.det(turn) < 0:
        header["pixdim"][0] = -1
        turn = turn * (1, 1, -1)
    # The nearest rotation, since spacing and direction may carry rounding errors.
    left, _, right = np.linalg.svd(turn)
    header["quatern"] = _quaternion(left @ right)
    header["qoffset"] = affine[:3, 3]
    header["qform_code"] = 1


def _quaternion(turn: NDArray[np.float64]) -> tuple[float, float, float]:
    """b, c, d of a rotation matrix; a, which is not stored, is never negative.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack 2000), which is exact
    for half turns too, where dividing by a is not.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    a, b, c, d = np.linalg.eigh(symmetric)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return float(sign * b), float(sign * c), float(sign * d)
