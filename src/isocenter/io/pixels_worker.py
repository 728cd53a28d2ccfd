"""A decoder process: takes compressed frames from a socket and puts their samples into shared memory.

Started by `isocenter.io.pixels` as a script, not as part of the package, so that it stays small: GDCM's codecs (and one
for run lengths) alone read grey images; pydicom, which costs 90 MB, is imported when the first of the rest comes. A codec that
crashes, hangs or eats memory takes only this process with it.

A request is a line of JSON, then the frames' bytes; the shared memory's descriptor comes with the first. The first
answer is "+", ready; then one byte a frame: "." done, "!" cannot be decoded, "M" not enough memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from typing import Any

assert sys.platform != "win32"  # noqa: S101 - which has none of the limits; `pixels` starts none there

RLE = "1.2.840.10008.1.2.5"
J2K = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}


def precision(data: bytes, syntax: str) -> tuple[int, bool, int] | None:
    """(bits, signed, components) that a codestream states itself, None where it does not say so plainly.

    JPEG 2000: the SIZ segment (ISO 15444-1 A.5.1). JPEG and JPEG-LS: the frame header (ISO 10918-1 B.2.2).
    """
    if syntax in J2K:
        if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 43:
            return None
        return (data[42] & 0x7F) + 1, bool(data[42] & 0x80), int.from_bytes(data[40:42], "big")
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xC0, 0xC1, 0xC3, 0xF7):
            return data[position + 4], False, data[position + 9]
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def fits_gdcm(data: bytes, form: dict[str, Any]) -> bool:
    """Whether GDCM reads the frame without any of the corrections that pydicom knows."""
    syntax, stored = form["syntax"], form["stored"]
    if form["samples"] != 1 or form["allocated"] not in (8, 16) or syntax not in J2K | JPEG_LS | JPEG:
        return False
    said = precision(data, syntax)
    if said is None or said[0] != stored or said[2] != 1 or (stored <= 8) != (form["allocated"] == 8):
        return False
    if syntax in J2K:
        return bool(said[1] == form["signed"])
    if syntax in JPEG_LS:
        return bool(stored > 7 and not form["signed"])
    # pydicom hands 12-bit JPEG to nobody; GDCM reads it when it is told its true precision.
    return True


def with_gdcm(data: bytes, form: dict[str, Any]) -> bytes:
    """The samples of one grey frame, little endian."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((form["columns"], form["rows"], 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(form["syntax"])))
    image.SetPixelFormat(gdcm.PixelFormat(1, form["allocated"], form["stored"], form["stored"] - 1, int(form["signed"])))
    samples: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    return samples


def with_openjpeg(data: bytes, form: dict[str, Any]) -> bytes:
    """The samples of one grey JPEG 2000 frame that fits GDCM too, little endian: less work than there, but on one core."""
    from openjpeg.utils import decode_pixel_data

    return bytes(decode_pixel_data(data, version=2))


def with_rle(data: bytes, form: dict[str, Any]) -> bytes:
    """The samples of one grey run-length frame (PS3.5 annex G), little endian."""
    from rle.utils import decode_pixel_data

    frame = decode_pixel_data(data, version=2, rows=form["rows"], columns=form["columns"], bits_allocated=form["allocated"])
    return bytes(frame)


def with_pydicom(data: bytes, form: dict[str, Any]) -> bytes:
    """The samples of one frame, little endian, colour as red, green and blue by pixel."""
    import warnings

    import numpy as np
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    warnings.simplefilter("ignore")
    array, _ = get_decoder(UID(form["syntax"])).as_array(
        encapsulate([data]),
        rows=form["rows"],
        columns=form["columns"],
        samples_per_pixel=form["samples"],
        photometric_interpretation=form["photometric"],
        planar_configuration=form["planar"],
        bits_allocated=form["allocated"],
        bits_stored=form["stored"],
        pixel_representation=int(form["signed"]),
        number_of_frames=1,
        pixel_keyword="PixelData",
    )
    kind = f"<{'i' if form['signed'] else 'u'}{form['allocated'] // 8}"
    return bytes(np.ascontiguousarray(array, dtype=np.dtype(kind)).data)


def decode(data: bytes, form: dict[str, Any]) -> bytes:
    """The samples of one frame; raises whatever the codecs raise."""
    if fits_gdcm(data, form):
        # GDCM spreads one JPEG 2000 frame over the cores, at a fifth more work: good for a decoder that works alone.
        samples = (with_gdcm if form["alone"] or form["syntax"] not in J2K else with_openjpeg)(data, form)
    else:
        samples = (with_rle if form["syntax"] == RLE and form["samples"] == 1 else with_pydicom)(data, form)
    if len(samples) != form["rows"] * form["columns"] * form["samples"] * form["allocated"] // 8:
        raise ValueError("another number of samples than declared")
    return samples


def attempt(data: bytes, form: dict[str, Any], shared: int, offset: int) -> bytes:
    """Decode one frame into the shared memory and say how it went."""
    # The CPU limit is for one image: it starts from what the process has used already.
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + form["seconds"]) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    try:
        view = memoryview(decode(data, form))
        while view:
            done = os.pwrite(shared, view, offset)
            offset, view = offset + done, view[done:]
    except MemoryError:
        return b"M"
    except BaseException:  # codecs raise anything, a panic in Rust not even an Exception; the answer is the same
        return b"!"
    return b"."


def serve(link: socket.socket) -> None:
    """Answer requests until the other side hangs up."""
    message, descriptors, _, _ = socket.recv_fds(link, 1, 1)
    if not message or not descriptors:
        return
    requests = link.makefile("rb")
    link.sendall(b"+")
    while line := requests.readline():
        form = json.loads(line)
        # All of them first: who sends them has other decoders to feed, and a socket holds little.
        frames = [requests.read(count) for count in form["frames"]]
        for number, data in enumerate(frames):
            link.sendall(attempt(data, form, descriptors[0], number * form["stride"]))


def main() -> None:
    """`pixels_worker.py DESCRIPTOR MEMORY FOLDER...`: the socket, the memory limit in bytes, where libraries lie."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path += sys.argv[3:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
    except (ValueError, OSError):
        # macOS does not enforce it, and newer versions do not even take it.
        if sys.platform != "darwin":
            raise
    import gdcm  # noqa: F401 - loaded before the first request, that is what being ready means

    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
