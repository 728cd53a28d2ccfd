"""What a DICOM header says about its images, typed and checked: one `Slice` a frame, of plain, multi-frame and enhanced objects."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from isocenter.core.errors import GeometryError, InputError, LimitError, UnsupportedError
from isocenter.core.geometry import Triple
from isocenter.core.settings import Limits
from isocenter.io import dicom_elements, dicom_header
from isocenter.io.archive import Part, check_ratio
from isocenter.io.dicom_header import DETECTORS, FRAME_GROUPS, SHARED_GROUPS, Header, decimals
from isocenter.io.pixels import Form

#: Objects that are no images, by the beginning of their SOP class (PS3.4 annex B.5), most special first.
_NOT_IMAGES = (
    ("1.2.840.10008.5.1.4.1.1.66.4", "a DICOM segmentation"),
    ("1.2.840.10008.5.1.4.1.1.66.5", "a DICOM surface segmentation"),
    ("1.2.840.10008.5.1.4.1.1.66.7", "a DICOM segmentation"),
    ("1.2.840.10008.5.1.4.1.1.66", "DICOM raw data or a registration"),
    ("1.2.840.10008.5.1.4.1.1.88", "a DICOM structured report"),
    ("1.2.840.10008.5.1.4.1.1.104", "a document inside DICOM"),
    ("1.2.840.10008.5.1.4.1.1.11", "a DICOM presentation state"),
    ("1.2.840.10008.5.1.4.1.1.9", "a DICOM waveform"),
    ("1.2.840.10008.5.1.4.1.1.481.2", "an RT dose"),
    ("1.2.840.10008.5.1.4.1.1.481.3", "an RT structure set"),
    ("1.2.840.10008.5.1.4.1.1.481.5", "an RT plan"),
    ("1.2.840.10008.5.1.4.1.1.77.1.6", "a whole-slide microscopy image"),
    ("1.2.840.10008.1.3.10", "a DICOM directory"),
)
_NATIVE = {dicom_header.IMPLICIT, dicom_header.EXPLICIT, dicom_header.BIG_ENDIAN, dicom_header.GE_PRIVATE, dicom_header.DEFLATED}
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
#: Positions (mm), spacings and steps beyond this are damage, and would overflow what is computed from them.
_FARTHEST = 1e6
#: The same for rescale slope and intercept: values must stay finite in 32 bits.
_STEEPEST = 1e30
#: Rescale types that a CT in Hounsfield units has; many leave it out.
_HOUNSFIELD = ("HU", "")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame. position and orientation as in PS3.3 C.7.6.2 (LPS, mm; row direction first), spacing (between rows,
    between columns) in mm; None where the object has none. number: instance number, or the frame's place. time: sorts
    images of one place. calibrated: whether a rescale type, which for CT means Hounsfield units, applies (PS3.3 C.8.2.1.1.5).
    step: mm to the next frame as the header has it, 0 when it does not say.
    """

    part: Part
    header: Header
    form: Form
    frame: int
    frames: int
    position: Triple | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    slope: float
    intercept: float
    number: int
    time: tuple[float, ...]
    step: float
    localizer: bool
    calibrated: bool

    @property
    def compressed(self) -> bool:
        """Whether the pixels are encapsulated (PS3.5 annex A.4)."""
        return self.header.pixel_length < 0


def not_an_image(header: Header) -> str | None:
    """What an object is that holds no image that can be read, in words; None for an image."""
    kind = header.text(0x00080016)
    for prefix, words in _NOT_IMAGES:
        if kind == prefix or kind.startswith(prefix + "."):
            return words
    return "a DICOM object without pixels" if header.pixel_tag == 0 else None


def slices(part: Part, header: Header, limits: Limits) -> list[Slice]:
    """The frames of one file. Raises `LimitError` before anything is allocated for a file that declares too much."""
    form = _form(header)
    count = header.numbers(0x00280008)
    frames = int(count[0]) if count and math.isfinite(count[0]) else 1
    if frames < 1:
        raise InputError("a DICOM image declares no frames")
    if frames > limits.max_frames:
        raise too_many_frames(limits)
    _check_size(part, header, form, frames, limits)
    kinds = header.text(0x00080008).split("\\")
    if "MOSAIC" in kinds:
        raise UnsupportedError("a Siemens mosaic holds many slices in one picture; convert it with dcm2niix and send the NIfTI file")
    plain = _plain(part, header, form, frames, "LOCALIZER" in kinds)
    if FRAME_GROUPS not in header.values:
        return [plain] if frames == 1 else _frames(plain, header, limits)
    shared = _groups(header, SHARED_GROUPS, limits)
    frame_groups = _groups(header, FRAME_GROUPS, limits)
    if frame_groups and len(frame_groups) != frames:
        raise InputError("an enhanced DICOM image describes another number of frames than it holds")
    common = _placed(plain, shared[0], header, limits) if shared else plain
    return [
        _placed(replace(common, frame=k, number=k + 1), frame_groups[k] if frame_groups else {}, header, limits)
        for k in range(frames)
    ]  # fmt: skip


def too_many_frames(limits: Limits) -> LimitError:
    """The refusal of an input of more frames than are allowed."""
    return LimitError("the input holds too many DICOM frames", limit="max_frames", value=limits.max_frames)


def _form(header: Header) -> Form:
    """How the pixels are written (PS3.3 C.7.6.3), with the combinations that cannot be read refused."""
    allocated = header.number(0x00280100, 16)
    stored = header.number(0x00280101) or allocated
    samples = header.number(0x00280002, 1)
    photometric = header.text(0x00280004) or "MONOCHROME2"
    rows, columns = header.number(0x00280010), header.number(0x00280011)
    if rows < 1 or columns < 1:
        raise InputError("a DICOM image declares no rows or no columns")
    real = header.pixel_tag != dicom_elements.PIXELS
    if allocated not in ((32, 64) if real else (8, 16, 32)):
        raise UnsupportedError(f"DICOM images of {allocated} bits a sample are not read")
    if not 0 < stored <= allocated:
        raise InputError("a DICOM image declares more bits stored than allocated")
    if samples != (1 if photometric in (*MONOCHROME, "PALETTE COLOR") else 3):
        raise InputError("a DICOM image declares a number of samples that does not fit its photometric interpretation")
    if photometric not in (*MONOCHROME, "PALETTE COLOR", *_COLOUR) or (samples == 3 and allocated not in (8, 16)):
        raise UnsupportedError("DICOM images of this photometric interpretation are not read")
    signed = header.number(0x00280103) == 1
    return Form(header.syntax, rows, columns, samples, allocated, stored, signed, photometric, header.number(0x00280006))


def _check_size(part: Part, header: Header, form: Form, frames: int, limits: Limits) -> None:
    """Declared size against the limit and against what is there."""
    voxels = form.rows * form.columns * frames
    if voxels > limits.max_voxels:
        raise LimitError("a DICOM image declares too many voxels", limit="max_voxels", value=limits.max_voxels)
    declared = form.nbytes * frames
    if header.pixel_length < 0:
        if form.syntax in _NATIVE:
            raise InputError("a DICOM image says that its pixels are not compressed, but packs them as if they were")
        check_ratio("a DICOM image declares far more than its size can hold", declared, part.size, limits)
        return
    if form.photometric == "YBR_FULL_422":
        declared = declared // 3 * 2
    if header.pixel_length < declared:
        raise InputError("a DICOM image holds fewer pixels than it declares")
    if form.syntax not in _NATIVE:
        raise InputError("a DICOM image says that its pixels are compressed, but does not pack them so")


def _plain(part: Part, header: Header, form: Form, frames: int, localizer: bool) -> Slice:
    """From the attributes of the top level."""
    number = _loose(header, 0x00200013)
    time = (_loose(header, 0x00200100), _loose(header, 0x00180086), _loose(header, 0x00200012))
    position = header.numbers(0x00200032)
    return Slice(
        part, header, form, 0, frames, _position(position), _orientation(header.numbers(0x00200037)), _spacing(header.numbers(0x00280030)),
        _slope(_one(header, 0x00281053, 1.0)), _one(header, 0x00281052, 0.0), int(number), time,
        _step(_loose(header, 0x00180088)) or _step(_loose(header, 0x00180050)), localizer,
        0x00281052 in header.values and header.text(0x00281054) in _HOUNSFIELD,
    )  # fmt: skip


def _one(header: Header, tag: int, default: float) -> float:
    value = header.numbers(tag)
    if not value:
        return default
    return _checked(value[0])


def _loose(header: Header, tag: int) -> float:
    """A number that only helps to order images: 0 when it is absent or none."""
    try:
        return _one(header, tag, 0.0)
    except InputError:
        return 0.0


def _checked(value: float) -> float:
    if not abs(value) <= _STEEPEST:
        raise InputError("a DICOM header holds a number that is not finite or far too large")
    return value


def _step(value: float) -> float:
    """Thickness or distance of slices in mm; 0, as if there were none, when it cannot be."""
    return abs(value) if 1 / _FARTHEST <= abs(value) <= _FARTHEST else 0.0


def _position(value: tuple[float, ...] | None) -> Triple | None:
    if value is None:
        return None
    if len(value) != 3 or not all(abs(v) <= _FARTHEST for v in value):
        raise GeometryError("the position of a DICOM image is not three numbers of this world")
    return value[0], value[1], value[2]


def _orientation(value: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Six direction cosines, both vectors scaled to length 1."""
    if value is None:
        return None
    if len(value) != 6 or not all(map(math.isfinite, value)):
        raise GeometryError("the orientation of a DICOM image is not six finite numbers")
    row, column = math.hypot(*value[:3]), math.hypot(*value[3:])
    if abs(row - 1) > 0.05 or abs(column - 1) > 0.05 or abs(sum(a * b for a, b in zip(value[:3], value[3:], strict=True))) > 0.01:
        raise GeometryError("the orientation of a DICOM image is not two unit vectors at right angles")
    return (*(v / row for v in value[:3]), *(v / column for v in value[3:]))


def _spacing(value: tuple[float, ...] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    if len(value) != 2 or not all(1 / _FARTHEST <= v <= _FARTHEST for v in value):
        raise GeometryError("the pixel spacing of a DICOM image is not two positive numbers of this world")
    return value[0], value[1]


def _frames(first: Slice, header: Header, limits: Limits) -> list[Slice]:
    """The frames of an object without functional groups. Only reconstructed nuclear medicine says where they lie.

    Its frames count slices (the frame increment pointer names the slice vector), and the sign of the spacing says whether
    they follow along the normal or against it (PS3.3 C.8.4.15). The position of any other object is that of one frame, or
    of none: they come in time, or in an order that nobody tells.
    """
    where: tuple[Triple | None, tuple[float, ...] | None] = None, None
    gap = header.numbers(0x00180088)
    if header.values.get(0x00280009) == struct.pack(header.encoding.order + "HH", 0x0054, 0x0080) and gap and _step(gap[0]):
        detectors = dicom_elements.items(header.values.get(DETECTORS, b""), header.encoding, limits)
        detector = dicom_elements.inside(detectors[0], header.encoding, limits) if detectors else {}
        where = (
            _position(decimals(detector.get(0x00200032))) or first.position,
            _orientation(decimals(detector.get(0x00200037))) or first.orientation,
        )
    position, orientation = where
    if position is None or orientation is None or gap is None:
        return [replace(first, frame=k, number=k + 1, position=None, orientation=None) for k in range(first.frames)]
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = b * f - c * e, c * d - a * f, a * e - b * d
    return [
        replace(first, frame=k, number=k + 1, position=_along(position, normal, k * gap[0]), orientation=orientation)
        for k in range(first.frames)
    ]  # fmt: skip


def _slope(value: float) -> float:
    if value == 0:
        raise InputError("a DICOM image has a rescale slope of 0, which would make all its values equal")
    return _checked(value)


def _along(start: Triple, normal: Triple, distance: float) -> Triple:
    return start[0] + distance * normal[0], start[1] + distance * normal[1], start[2] + distance * normal[2]


# -- enhanced objects (PS3.3 C.7.6.16) ---------------------------------------------------------------------------------

_Group = dict[int, bytes]


def _groups(header: Header, tag: int, limits: Limits) -> list[_Group]:
    """The items of a functional groups sequence: each a sequence's bytes by tag."""
    data = header.values.get(tag)
    if data is None:
        return []
    return [dicom_elements.inside(item, header.encoding, limits) for item in dicom_elements.items(data, header.encoding, limits)]


def _macro(group: _Group, tag: int, header: Header, limits: Limits) -> dict[int, bytes]:
    """The one item of a functional group macro; empty when the group does not have it."""
    data = group.get(tag)
    if data is None:
        return {}
    found = dicom_elements.items(data, header.encoding, limits)
    return dicom_elements.inside(found[0], header.encoding, limits) if found else {}


def _placed(base: Slice, group: _Group, header: Header, limits: Limits) -> Slice:
    """`base` with what a functional group says: pixel measures, plane position and orientation, value transformation."""
    changes: dict[str, object] = {}
    measures = _macro(group, 0x00289110, header, limits)
    if spacing := _spacing(decimals(measures.get(0x00280030))):
        changes["spacing"] = spacing
    for tag in (0x00180050, 0x00180088):
        for step in decimals(measures.get(tag)) or ():
            changes["step"] = _step(step)
    if position := _position(decimals(_macro(group, 0x00209113, header, limits).get(0x00200032))):
        changes["position"] = position
    if orientation := _orientation(decimals(_macro(group, 0x00209116, header, limits).get(0x00200037))):
        changes["orientation"] = orientation
    transformation = _macro(group, 0x00289145, header, limits)
    if 0x00281052 in transformation:
        changes["calibrated"] = transformation.get(0x00281054, b"").decode("latin-1").strip(" \0") in _HOUNSFIELD
    for name, tag in (("slope", 0x00281053), ("intercept", 0x00281052)):
        for number in decimals(transformation.get(tag)) or ():
            changes[name] = _slope(number) if name == "slope" else _checked(number)
    content = _macro(group, 0x00209111, header, limits)
    if time := list(_longs(content.get(0x00209128), header)):
        changes["time"] = (float(time[0]), 0.0, 0.0)
    return replace(base, **changes) if changes else base  # type: ignore[arg-type]


def _longs(value: bytes | None, header: Header) -> Iterator[int]:
    """The values of an unsigned long attribute (UL)."""
    if value and len(value) >= 4:
        yield from struct.unpack(f"{header.encoding.order}{len(value) // 4}L", value[: len(value) // 4 * 4])
