"""DICOM images to a `Volume`: files are scanned, one series is chosen, stacked, and its pixels are read into one array."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError, LimitError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.core.volume import Series, Source, Volume
from isocenter.io import dicom_header, dicom_image, pixels, pixels_frames
from isocenter.io.archive import Part, Spool
from isocenter.io.dicom_image import MONOCHROME, Slice, too_many_frames
from isocenter.io.dicom_resample import resample
from isocenter.io.dicom_stack import Stack, stack
from isocenter.io.dicom_values import Values, native, swapped

#: Compressed frames for which starting one more decoder pays.
FRAMES_EACH = 8
#: What coded strings may hold (PS3.5 table 6.2-1). Anything else may be a person's words, and is treated as absent.
_CODE = re.compile(r"[A-Z0-9_]{1,16}")


class Scan:
    """The images that have been seen so far, by series.

    others: what objects that are no images are. refused: why series that hold other images cannot be read.
    Use it as a context manager: files that had to be inflated are kept until it is closed.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.series: dict[str, list[Slice]] = defaultdict(list)
        self.others: list[str] = []
        self.refused: dict[str, InputError] = {}
        self._frames = 0
        self._compressed = 0
        self._spool = Spool()

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def add(self, part: Part) -> None:
        """Read the header of one DICOM file."""
        part, header = dicom_header.read(part, self.limits, self._spool)
        if words := dicom_image.not_an_image(header):
            self.others.append(words)
            return
        uid = header.uid(0x0020000E)
        try:
            found = dicom_image.slices(part, header, self.limits)
        except (UnsupportedError, GeometryError) as error:
            self.refused.setdefault(uid, error)  # no reason to refuse the other series
            return
        for tag in dicom_header.GROUPS:
            header.values.pop(tag, None)  # the slices have what is in them, and they are long
        self._frames += len(found)
        if self._frames > self.limits.max_frames:
            raise too_many_frames(self.limits)
        if found[0].compressed:
            self._compressed += len(found)
            pixels.prepare(self.limits, 1 + self._compressed // FRAMES_EACH)
        self.series[uid] += found


def read(parts: Iterable[Part], *, limits: Limits, series_uid: str | None = None) -> Volume:
    """The volume of one series among DICOM files: the one named, or the one with most voxels."""
    with Scan(limits) as scan:
        for part in parts:
            scan.add(part)
        return volume(scan, series_uid)


def volume(scan: Scan, series_uid: str | None = None) -> Volume:
    """The volume of one series of a scan."""
    if not scan.series and scan.refused:
        raise next(iter(scan.refused.values()))
    if not scan.series:
        what = scan.others[0] if scan.others else "nothing that is DICOM"
        raise UnsupportedError(f"no image was found: this is {what}")
    found = tuple(_describe(uid, images) for uid, images in scan.series.items())
    uid, notes = _choose(found, series_uid, scan)
    if uid in scan.refused:
        raise scan.refused[uid]
    if scan.refused:
        notes.append(f"{len(scan.refused)} other series were found that cannot be read.")
    made = stack(scan.series[uid], scan.limits)
    images, grid = made.slices, made.grid
    if len(images) * images[0].form.rows * images[0].form.columns > scan.limits.max_voxels:
        raise LimitError("the series holds too many voxels", limit="max_voxels", value=scan.limits.max_voxels)
    array, headers = _load(images, scan.limits)
    notes += [*made.notes, *_remarks(made)]
    if made.places is not None:
        array, headers = resample(array, made.places, grid.shape), ()
        notes.append("The volume's slices are not those of the files, so a DICOM segmentation cannot refer to them.")
    modality = next(s.modality for s in found if s.uid == uid) or None
    source = Source(
        "dicom", tuple(notes), headers=headers, series=found, series_uid=uid or None, flipped=images[0].number > images[-1].number,
        scale=made.scale,
    )  # fmt: skip
    return Volume.on_grid(array, grid, modality=modality, unit="HU" if modality == "CT" and images[0].calibrated else "a.u.", source=source)


def _describe(uid: str, images: list[Slice]) -> Series:
    first = images[0]
    modality = first.header.text(0x00080060)
    return Series(uid, modality if _CODE.fullmatch(modality) else "", len(images), first.form.rows, first.form.columns)


def _choose(found: tuple[Series, ...], wanted: str | None, scan: Scan) -> tuple[str, list[str]]:
    if wanted is not None:
        if wanted in scan.refused:
            raise scan.refused[wanted]
        if wanted not in scan.series:
            raise InputError("no image of the series that was asked for was found; found were: " + ", ".join(s.uid for s in found[:8]))
        return wanted, []
    best = max(found, key=lambda s: sum(i.form.rows * i.form.columns for i in scan.series[s.uid]))
    if len(found) == 1:
        return best.uid, []
    return best.uid, [f"{len(found)} series were found; the largest, {best.uid} with {best.images} images, was read."]


def _remarks(made: Stack) -> list[str]:
    """What reading the values did to them."""
    first = made.slices[0]
    notes = []
    if first.form.photometric not in MONOCHROME:
        notes.append("The image is in colour; its brightness was read.")
    if first.form.photometric == "MONOCHROME1":
        notes.append("High values are shown dark (MONOCHROME1); the values are as stored.")
    if 0x00283000 in first.header.values:
        notes.append("The image has a modality lookup table, which was not applied.")
    return notes


# -- pixels ------------------------------------------------------------------------------------------------------------


def _load(images: list[Slice], limits: Limits) -> tuple[NDArray[np.generic], tuple[bytes, ...]]:
    """The values of all slices, (z, y, x), and the headers of their files: one a slice, or the one of a multi-frame file."""
    values = Values(images, limits)
    owners = images[:1] if images[0].frames > 1 and len({id(s.header) for s in images}) == 1 else images
    headers: tuple[bytes, ...] = ()
    # Headers larger than the voxels are an attack on memory, or of no use to anyone.
    if sum(image.header.end for image in owners) <= limits.max_header_bytes + values.array.nbytes:
        headers = tuple(image.part.read(0, image.header.end) for image in owners)
    packed = [k for k, image in enumerate(images) if image.compressed]
    for k, image in enumerate(images):
        if not image.compressed:
            _read(values, k, image)
    if packed:
        _decode(values, images, packed, limits)
    return values.array, headers


def _read(values: Values, index: int, image: Slice) -> None:
    """One uncompressed slice, straight to its place where the samples have 16 bits."""
    header, form = image.header, image.form
    count = form.nbytes if form.photometric != "YBR_FULL_422" else form.rows * form.columns * 2
    start = header.pixel_offset + image.frame * count
    place = values.raw(index, image)
    if place is None:
        data = image.part.read(start, count)
        if len(data) < count:
            raise InputError("a DICOM file is shorter than it was")
        if swapped(form) and form.allocated == 8 and image.part.read(header.end + 4, 2) == b"OW":
            raise UnsupportedError("8-bit DICOM images in big-endian words are not read")
        values.put(index, native(data, image), image)
        return
    if image.part.readinto(place.data.cast("B"), start) < count:
        raise InputError("a DICOM file is shorter than it was")
    if swapped(form):
        place.byteswap(inplace=True)
    values.put(index, place.view(form.dtype), image)


def _decode(values: Values, images: list[Slice], packed: list[int], limits: Limits) -> None:
    """The compressed slices, by way of the decoder processes."""
    pieces: dict[int, list[pixels_frames.Pieces]] = {}
    frames = []
    for k in packed:
        image = images[k]
        if id(image.header) not in pieces:
            pieces[id(image.header)] = pixels_frames.frames(image.part, image.header.pixel_offset, image.frames)
        frames.append(pixels.Frame(image.part, pieces[id(image.header)][image.frame], image.form))
    # Closed at once when a slice is refused: its decoders would else be held as long as the error is.
    with contextlib.closing(pixels.decode(frames, limits)) as decoded:
        for index, samples in decoded:
            values.put(packed[index], samples, images[packed[index]])
