"""NRRD (`.nrrd`, `.seg.nrrd`) and MetaImage (`.mha`), in; NRRD out.

Only files that hold their own voxels: a header that names another file is refused, since nobody's file is opened
because a client named it. Formats: teem.sourceforge.net/nrrd/format.html and ITK's MetaIO.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError, UnsupportedError
from isocenter.core.geometry import Grid
from isocenter.core.segmentation import Code, Segmentation
from isocenter.core.settings import Limits
from isocenter.core.volume import Scale, Source, Volume
from isocenter.io import gz, metaimage, raw

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
#: Signs that bring x and y of a named space to LPS.
_SPACES = {
    "left-posterior-superior": (1, 1), "lps": (1, 1), "right-anterior-superior": (-1, -1), "ras": (-1, -1),
    "left-anterior-superior": (1, -1), "las": (1, -1),
}  # fmt: skip
_UNITS = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "\u00b5m": 0.001, "micron": 0.001}
#: A header with a thousand of Slicer's segments has a tenth of it.
_MAX_HEADER = 4 << 20
_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_PACKED = {"raw": False, "gzip": True, "gz": True}


def read(file: BinaryIO, size: int, *, limits: Limits) -> Volume:
    """The volume in an NRRD or MetaImage file of `size` bytes; `file` is seekable and stands at its start.

    The header is checked before anything is allocated. Raises `InputError` and its kinds.
    """
    head = file.read(4)
    file.seek(0)
    if head != b"NRRD":
        return metaimage.read(file, size, limits=limits)
    fields, offset = _fields(file)
    plan = _plan(fields)
    packed = _PACKED[fields["encoding"]]
    needed = plan.voxels * plan.width
    raw.check_declared(plan.voxels, needed, (size - offset) * (gz.MAX_RATIO if packed else 1), limits)
    file.seek(offset)
    stream: raw.Stream = gz.Inflater(file) if packed else raw.Plain(file)
    flat, notes = raw.voxels(stream, plan.voxels, plan.kind, plan.channels)
    stream.check()
    source = Source("nrrd", plan.notes + notes, scale=plan.scale)
    return Volume.on_grid(flat.reshape(plan.grid.shape), plan.grid, source=source)


def _fields(file: BinaryIO) -> tuple[dict[str, str], int]:
    """The header's fields, lower-case names, and where the voxels begin. Comments and free keys are left out."""
    data = file.read(_MAX_HEADER)
    ends = [at + len(mark) for mark in (b"\n\n", b"\n\r\n") if (at := data.find(mark)) >= 0]
    if not ends:
        raise InputError("the NRRD header does not end")
    end = min(ends)
    fields: dict[str, str] = {}
    for line in data[:end].decode("utf-8", "replace").splitlines()[1:]:
        name, found, value = line.partition(": ")
        if found and not line.startswith("#") and ":=" not in name:
            fields[name.strip().lower().replace("datafile", "data file")] = value.strip()
    if "data file" in fields:
        raise UnsupportedError("the NRRD header's voxels lie in another file (.nhdr); save it as one .nrrd")
    encoding = fields["encoding"] = fields.get("encoding", "").lower()
    if encoding not in _PACKED:
        raise UnsupportedError(f"NRRD encoding '{encoding[:20]}' is not read; save it as raw or gzip")
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "byte skip", "lineskip", "byteskip")):
        raise UnsupportedError("the NRRD header skips bytes before the voxels; save it without")
    return fields, end


@dataclass(frozen=True)
class _Plan:
    """What is to be read: `grid.voxels` of `kind`, `channels` of them side by side."""

    grid: Grid
    kind: np.dtype[np.generic]
    channels: int
    notes: tuple[str, ...]
    scale: Scale

    @property
    def voxels(self) -> int:
        return math.prod(self.grid.shape)

    @property
    def width(self) -> int:
        """Bytes of a voxel."""
        return self.kind.itemsize * self.channels


def _plan(fields: Mapping[str, str]) -> _Plan:
    name = " ".join(fields.get("type", "").lower().split())
    code = next((code for code, names in _TYPES.items() if name in names), None)
    if code is None:
        raise UnsupportedError(f"NRRD type '{name[:20]}' is not read")
    kind = np.dtype(code)
    if kind.itemsize > 1:
        endian = fields.get("endian", "").lower()
        if endian not in ("little", "big"):
            raise InputError("the NRRD header does not say the byte order of its voxels")
        kind = kind.newbyteorder("<" if endian == "little" else ">")
    sizes = [int(word) for word in fields.get("sizes", "").split() if word.isdecimal() and len(word) < 16]
    if not sizes or str(len(sizes)) != fields.get("dimension", "") or min(sizes) < 1:
        raise InputError("the NRRD header's sizes do not fit its dimension")
    spatial, channels = _axes(fields, sizes, kind)
    grid, notes, scale = _grid(fields, sizes, spatial)
    return _Plan(grid, kind, channels, notes, scale)


def _axes(fields: Mapping[str, str], sizes: list[int], kind: np.dtype[np.generic]) -> tuple[list[int], int]:
    """Which axes are space, and how many numbers a voxel has."""
    directions = _split_vectors(fields.get("space directions", ""))
    kinds = fields.get("kinds", "").lower().split()
    if len(directions) == len(sizes):
        spatial = [axis for axis, vector in enumerate(directions) if vector != "none"]
    elif len(kinds) == len(sizes):
        spatial = [axis for axis, word in enumerate(kinds) if word in ("domain", "space", "???")]
    else:
        spatial = list(range(min(len(sizes), 3)))
    others = [axis for axis in range(len(sizes)) if axis not in spatial and sizes[axis] > 1]
    channels = 1
    if others == [0] and len(kinds) == len(sizes) and "color" in kinds[0] and kind.itemsize == 1 and sizes[0] in (3, 4):
        channels, others = sizes[0], []
    if others:
        count = math.prod(sizes[axis] for axis in others)
        raise UnsupportedError(f"the file holds {count} volumes or components a voxel; send the one that is meant as a 3-D file")
    # A fourth axis of space of one step is no axis.
    while len(spatial) > 3 and sizes[spatial[-1]] == 1:
        spatial.pop()
    if not 2 <= len(spatial) <= 3:
        raise UnsupportedError(f"an image of {len(spatial)} axes in space; two or three are needed")
    return spatial, channels


def _grid(fields: Mapping[str, str], sizes: list[int], spatial: list[int]) -> tuple[Grid, tuple[str, ...], Scale]:
    """The grid in LPS, from whichever of the two ways of writing it the header has; notes; what of its scale the header states."""
    affine = np.eye(4)
    notes: tuple[str, ...] = ()
    given = [True] * len(spatial)
    space = fields.get("space", "").lower()
    directions = _split_vectors(fields.get("space directions", ""))
    if len(directions) == len(sizes):
        for column, axis in enumerate(spatial):
            vector = _numbers(directions[axis].strip("()"), "space directions", ",")
            affine[: len(vector[:3]), column] = vector[:3]
        origin = _numbers(fields.get("space origin", "").strip("()"), "space origin", ",")
        affine[: len(origin[:3]), 3] = origin[:3]
        raw.check_affine(affine)
        # Without a third vector the third axis is whatever is at right angles to the others.
        if len(spatial) == 2:
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    else:
        spacings = _numbers(fields.get("spacings", ""), "spacings") or [math.nan] * len(sizes)
        if len(spacings) != len(sizes):
            raise GeometryError("the NRRD header's spacings do not fit its dimension")
        given = [not math.isnan(spacings[axis]) for axis in spatial]  # the format's way to say that it is not known
        for column, axis in enumerate(spatial):
            affine[column, column] = spacings[axis] if given[column] else 1.0
    raw.check_affine(affine)
    if space in _SPACES:
        affine[:2] *= np.array(_SPACES[space])[:, None]
    else:
        notes = ("The header does not say how the image lies in the patient; its axes were taken as left, posterior, superior.",)
    units = {word.strip('"').lower() for word in fields.get("space units", "").split()} & set(_UNITS)
    if len(units) > 1:
        raise GeometryError("the NRRD header's axes have different units of length")
    affine[:3] *= _UNITS[units.pop()] if units else 1.0
    scale, unscaled = raw.scale_of(given)
    z, y, x = [*reversed([sizes[axis] for axis in spatial])] if len(spatial) == 3 else (1, sizes[spatial[1]], sizes[spatial[0]])
    return Grid.from_affine_lps(affine, (z, y, x)), unscaled + notes, scale


def _split_vectors(text: str) -> list[str]:
    """The vectors of "(1,0,0) none (0, 1,0)", each without blanks."""
    words: list[str] = []
    for part in text.replace("(", " (").replace(")", ") ").split():
        if words and words[-1].startswith("(") and not words[-1].endswith(")"):
            words[-1] += part
        else:
            words.append(part)
    return words


def _numbers(text: str, name: str, separator: str | None = None) -> list[float]:
    try:
        return [float(word) for word in text.split(separator)] if text else []
    except ValueError:
        raise InputError(f"the NRRD header's {name} are not numbers") from None


def write(array: NDArray[np.generic], grid: Grid, *, compress: bool = True, keys: Mapping[str, str] | None = None) -> bytes:
    """An NRRD file of `array` (z, y, x) on `grid`; `keys` are written as free key-value pairs. Equal input, equal bytes."""
    if tuple(array.shape) != grid.shape:
        raise GeometryError(f"the array has shape {tuple(array.shape)}, its grid {grid.shape}")
    array = np.ascontiguousarray(array, dtype=np.uint8 if array.dtype == bool else array.dtype.newbyteorder("<"))
    kind = _TYPES.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if kind is None:
        raise UnsupportedError(f"NRRD has no voxels of type {array.dtype}")
    z, y, x = array.shape
    columns = grid.affine_lps[:3].T.tolist()
    vectors = ["(" + ",".join(repr(float(v)) for v in column) + ")" for column in columns]
    lines = [
        "NRRD0005",
        f"type: {kind[-1]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {x} {y} {z}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        *(["endian: little"] if array.dtype.itemsize > 1 else []),
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {vectors[3]}",
        *(f"{name}:={_escape(value)}" for name, value in (keys or {}).items()),
    ]
    head = "\n".join(lines).encode() + b"\n\n"
    voxels = array.reshape(-1).view(np.uint8).data
    return b"".join((head, gz.compress(voxels) if compress else voxels))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def write_segmentation(result: Segmentation) -> bytes:
    """A `.seg.nrrd` as 3D Slicer's Segment Editor reads it: one layer, a name, colour and code for every label."""
    keys = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "isocenter_provenance": provenance_json(result),
    }
    extents = _extents(result)
    for index, label in enumerate(result.labels):
        red, green, blue = label.colour or (128, 174, 128)
        keys |= {
            f"Segment{index}_ID": f"Segment_{label.value}",
            f"Segment{index}_Name": label.name,
            f"Segment{index}_NameAutoGenerated": "0",
            f"Segment{index}_Color": f"{red / 255:.6f} {green / 255:.6f} {blue / 255:.6f}",
            f"Segment{index}_ColorAutoGenerated": "0",
            f"Segment{index}_Extent": extents.get(label.value, "0 -1 0 -1 0 -1"),
            f"Segment{index}_LabelValue": str(label.value),
            f"Segment{index}_Layer": "0",
            f"Segment{index}_Tags": f"TerminologyEntry:{_terminology(label.category, label.type)}|",
        }
    return write(result.mask, result.grid, keys=keys)


def provenance_json(result: Segmentation) -> str:
    """How the answer came about, on one line."""
    return json.dumps(result.provenance.as_dict(), default=str)


def _extents(result: Segmentation) -> dict[int, str]:
    """By label value, first and last index of x, y, z; Slicer writes 0 -1 for an empty segment."""
    from scipy.ndimage import find_objects

    boxes = find_objects(result.mask)
    found = {value: box for value, box in enumerate(boxes, start=1) if box is not None}
    return {value: " ".join(f"{axis.start} {axis.stop - 1}" for axis in reversed(box)) for value, box in found.items()}


def _terminology(category: Code | None, kind: Code | None) -> str:
    """Slicer's line for a coded segment: context, category, type, modifier, region context, region, its modifier."""
    category = category or Code("85756007", "SCT", "Tissue")
    kind = kind or Code("85756007", "SCT", "Tissue")
    codes = [f"{c.scheme}^{c.value}^{c.meaning}" for c in (category, kind)]
    return "~".join([_CONTEXT, *codes, "^^", "Anatomic codes - DICOM master list", "^^", "^^"])
