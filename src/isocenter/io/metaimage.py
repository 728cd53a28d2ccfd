"""MetaImage (`.mha`): ITK's own format, read where it holds its own voxels. Called by `nrrd.read`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from isocenter.core.errors import GeometryError, InputError, UnsupportedError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Source, Volume
from isocenter.io import gz, raw

_TYPES = {
    "met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4",
    "met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8", "met_float": "f4", "met_double": "f8",
}  # fmt: skip
#: The header's last line says where the voxels are.
_LAST = b"elementdatafile"
_MAX_HEADER = 1 << 16
_SPACINGS = ("elementspacing", "elementsize")


def read(file: BinaryIO, size: int, *, limits: Limits) -> Volume:
    """The volume in a MetaImage file of `size` bytes; `file` is seekable and stands at its start."""
    fields, offset = _fields(file)
    kind, channels = _kind(fields)
    grid = _grid(fields)
    packed = _is_true(fields, "compresseddata")
    available = (size - offset) * (gz.MAX_RATIO if packed else 1)
    voxels = math.prod(grid.shape)
    raw.check_declared(voxels, voxels * kind.itemsize * channels, available, limits)
    file.seek(offset)
    stream: raw.Stream = gz.Inflater(file, zlib=True) if packed else raw.Plain(file)
    flat, notes = raw.voxels(stream, voxels, kind, channels)
    stream.check()
    named = any(name in fields for name in _SPACINGS)
    scale, unscaled = raw.scale_of([named] * int(fields["ndims"]))
    return Volume.on_grid(flat.reshape(grid.shape), grid, source=Source("metaimage", unscaled + notes, scale=scale))


def _fields(file: BinaryIO) -> tuple[dict[str, str], int]:
    """The header's fields, lower-case names, and where the voxels begin."""
    data = file.read(_MAX_HEADER)
    fields: dict[str, str] = {}
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        name, found, value = data[start:end].partition(b"=")
        name = name.strip().lower()
        if not found or not name.isalnum():
            break
        fields[name.decode()] = value.decode("latin-1").strip()
        start = end + 1
        if name == _LAST:
            _check_place(fields)
            return fields, start
    raise InputError("not a MetaImage: its header does not end with ElementDataFile")


def _check_place(fields: Mapping[str, str]) -> None:
    if fields["elementdatafile"].lower() != "local":
        raise UnsupportedError("the MetaImage header's voxels lie in another file (.mhd and .raw); save it as one .mha")
    if not _is_true(fields, "binarydata", default=True):
        raise UnsupportedError("a MetaImage whose voxels are text is not read; save it as binary")
    if fields.get("headersize", "0") != "0":
        raise UnsupportedError("the MetaImage header skips bytes before the voxels; save it without HeaderSize")


def _is_true(fields: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    return fields[name][:1].lower() in ("t", "1", "y") if fields.get(name) else default


def _kind(fields: Mapping[str, str]) -> tuple[np.dtype[np.generic], int]:
    """The type of a number and how many of them a voxel has."""
    name = fields.get("elementtype", "").lower()
    channels = int(_numbers(fields, "elementnumberofchannels", 1)[0]) if "elementnumberofchannels" in fields else 1
    if name.removesuffix("_array") not in _TYPES:
        raise UnsupportedError(f"MetaImage type '{name[:20]}' is not read")
    kind = np.dtype(_TYPES[name.removesuffix("_array")])
    if channels not in (1, 3, 4) or (channels > 1 and kind != np.uint8):
        raise UnsupportedError(f"the file holds {channels} components a voxel; send the one that is meant")
    big = _is_true(fields, "binarydatabyteordermsb") or _is_true(fields, "elementbyteordermsb")
    return kind.newbyteorder(">" if big else "<"), channels


def _grid(fields: Mapping[str, str]) -> Grid:
    """The grid; MetaImage's frame is LPS, as ITK's. Each row of TransformMatrix is one axis' direction."""
    axes = int(_numbers(fields, "ndims", 1)[0])
    sizes = [int(n) for n in _numbers(fields, "dimsize", axes)] if 2 <= axes <= 4 else []
    if axes == 4 and sizes[3] > 1:
        raise UnsupportedError(f"the file holds {sizes[3]} volumes; send the one that is meant as a 3-D file")
    if not sizes or min(sizes) < 1 or max(sizes) > 1 << 40:
        raise UnsupportedError("an image of two or three axes, each of at least one voxel, is needed")
    affine = np.eye(4)
    spatial = min(axes, 3)
    spacing = _first(fields, _SPACINGS, axes, [1.0] * axes)
    turn = _first(fields, ("transformmatrix", "rotation", "orientation"), axes * axes, np.eye(axes).ravel().tolist())
    origin = _first(fields, ("offset", "position", "origin"), axes, [0.0] * axes)
    raw.check_affine(np.array([*spacing, *turn]))
    if min(spacing) <= 0:
        raise GeometryError("the MetaImage header's spacing must be positive")
    affine[:spatial, :spatial] = (np.array(turn).reshape(axes, axes).T * spacing)[:spatial, :spatial]
    affine[:spatial, 3] = origin[:spatial]
    raw.check_affine(affine)
    return Grid.from_affine_lps(affine, (*reversed(sizes[:3]),) if spatial == 3 else (1, sizes[1], sizes[0]))


def _first(fields: Mapping[str, str], names: tuple[str, ...], count: int, default: list[float]) -> list[float]:
    """The numbers of the first of several names for one thing."""
    name = next((n for n in names if n in fields), None)
    return _numbers(fields, name, count) if name else default


def _numbers(fields: Mapping[str, str], name: str, count: int) -> list[float]:
    try:
        values = [float(word) for word in fields.get(name, "").split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"the MetaImage header's {name} is not {count} numbers")
    return values
