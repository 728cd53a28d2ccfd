"""Small files that want a lot: each is refused in less than 3 s, and this process's memory grows by less than 100 MB."""

from __future__ import annotations

import gzip
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from isocenter.core.errors import InputError, LimitError
from isocenter.core.settings import Limits
from tests.io.dicom_files import bare, data_of, element, image, preamble, read_bytes, stack, voxels, zipped

MIB = 1024 * 1024


@contextmanager
def cheap() -> Iterator[None]:
    """Fails when the block takes 3 s of a processor or grows resident memory by 100 MB at its peak."""

    def field(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) * 1024

    measured = Path("/proc/self/clear_refs").exists()
    if measured:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = field("VmRSS")
    start = time.process_time()
    yield
    assert time.process_time() - start < 3
    if measured:
        assert field("VmHWM") - before < 100e6


def deflated(head: bytes, zeros: int) -> bytes:
    """`head` and MiB of zeros as a raw deflate stream; the zeros are packed once and repeated, since each block stands alone."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * zeros + packer.flush()


def deflated_private() -> bytes:
    """1 GiB in a private element before the pixels."""
    return preamble(DeflatedExplicitVRLittleEndian) + deflated(element(0x00090010, b"OB", b"", 1024 * MIB), 1024)


def deflated_pixels() -> bytes:
    """1 GiB of pixels, honestly declared: 16 384 x 16 384 of 32 bits are fewer voxels than the limit."""
    head = bare(16384, 16384, bits=32) + element(0x7FE00010, b"OW", b"", 1024 * MIB)
    return preamble(DeflatedExplicitVRLittleEndian) + deflated(head, 1024)


def deflated_elements() -> bytes:
    """A header of millions of empty elements."""
    return preamble(DeflatedExplicitVRLittleEndian) + deflated(element(0x00090010, b"LO", b"") * (30 * MIB // 8), 0)


def deflated_more_than_declared() -> bytes:
    head = bare(64, 64) + element(0x7FE00010, b"OW", b"", 512 * MIB)
    return preamble(DeflatedExplicitVRLittleEndian) + deflated(head, 512)


def encapsulated(rows: int, columns: int, syntax: str, frames: int = 1) -> bytes:
    fragment = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0"
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, len(fragment)) + fragment
    return preamble(syntax) + bare(rows, columns, frames) + element(0x7FE00010, b"OB", items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF)


def nested(depth: int, explicit: bool, defined: bool) -> bytes:
    """Sequences in sequences, then an image."""
    inner = b""
    for _ in range(depth):
        body = inner if defined else inner + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(body) if defined else 0xFFFFFFFF) + body
        value = item if defined else item + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
        length = len(value) if defined else 0xFFFFFFFF
        inner = element(0x00081140, b"SQ", value, length) if explicit else struct.pack("<HHL", 0x0008, 0x1140, length) + value
    return preamble(ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian) + inner + (bare(2, 2) if explicit else b"")


def many_deflated() -> bytes:
    """Deflated files of 50 MiB each in an archive that is itself hardly packed: each below the ratio limit's threshold."""
    one = preamble(DeflatedExplicitVRLittleEndian) + deflated(bare(5120, 5120) + element(0x7FE00010, b"OW", b"", 50 * MIB), 50)
    return zipped({str(k): one for k in range(200)}, zipfile.ZIP_STORED)


def nested_zips() -> bytes:
    """Each archive holds the next one twice."""
    data = b"x" * 1000
    for k in range(12):
        data = zipped({f"{k}a.zip": data, f"{k}b.zip": data})
    return data


def quine() -> bytes:
    """An archive that contains itself, by a member whose bytes are those of the whole file.

    The one member is stored and its data runs from the file's own start: a true quine for a reader that believes the
    directory, without the art of Cox's deflate quine.
    """
    name = b"self.zip"
    local = b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    size = len(local) + 46 + len(name) + 22
    central = b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def one_member(packed: bytes, unpacked: int, lines: int = 1) -> bytes:
    """An archive whose directory names one deflated member `lines` times."""
    local = b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 8, 0, 0, 0, len(packed), unpacked, 1, 0) + b"a" + packed
    line = b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, 20, 0, 8, 0, 0, 0, len(packed), unpacked, 1, 0, 0, 0, 0, 0, 0) + b"a"
    return local + line * lines + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, lines, lines, lines * len(line), len(local), 0)


def overlapping() -> bytes:
    """1 000 lines of the directory for one member that inflates a thousandfold (Fifield's zip bomb in its simplest form)."""
    return one_member(deflated(b"", 10), 10 * MIB, 1000)


def zip_of_zeros() -> bytes:
    return one_member(deflated(b"", 1024), 1024 * MIB)


def gzip_of_zeros() -> bytes:
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + deflated(b"", 1024) + struct.pack("<2L", 0, 1024 * MIB)


def nifti_header() -> bytes:
    header = bytearray(352)
    struct.pack_into("<l8h", header, 0, 348, *[0] * 8)
    struct.pack_into("<8h", header, 40, 3, 1600, 1600, 570, 1, 1, 1, 1)
    struct.pack_into("<2h8f", header, 70, 4, 16, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header))


BOMBS: list[tuple[Callable[[], bytes], str | None, int]] = [
    (deflated_private, "max_header_bytes", 2 * MIB),
    (deflated_pixels, "max_archive_ratio", 2 * MIB),
    (deflated_elements, "max_elements", 2 * MIB),
    (deflated_more_than_declared, None, MIB),
    (lambda: encapsulated(30000, 30000, RLELossless), "max_voxels", 700),
    (lambda: encapsulated(19000, 19000, RLELossless), "max_archive_ratio", 700),
    (lambda: encapsulated(65535, 65535, JPEG2000Lossless), "max_voxels", 700),
    (lambda: encapsulated(512, 512, JPEG2000Lossless, frames=1400), "max_archive_ratio", 700),
    (lambda: nested(300, True, False), "max_nesting", 20_000),
    (lambda: nested(300, True, True), "max_nesting", 20_000),
    (lambda: nested(300, False, False), "max_nesting", 20_000),
    (lambda: nested(300, False, True), "max_nesting", 20_000),
    (lambda: preamble(ExplicitVRLittleEndian) + bare(1, 1, 60_000, 8) + element(0x7FE00010, b"OW", bytes(60_000)), "max_frames", 70_000),
    (many_deflated, "max_archive_ratio", 12 * MIB),
    (nested_zips, "max_archive_depth", 10 * MIB),
    (quine, None, 1000),
    (overlapping, None, 300_000),
    (zip_of_zeros, "max_archive_ratio", 2 * MIB),
    (lambda: zipped({str(k): b"" for k in range(10_000)}), "max_archive_members", 2 * MIB),
    (lambda: zipped({"../x": b""}), None, 1000),
    (gzip_of_zeros, None, 2 * MIB),
    (nifti_header, "max_voxels", 200),
]


@pytest.mark.parametrize(("make", "limit", "most"), BOMBS)
def test_refused_cheaply(make: Callable[[], bytes], limit: str | None, most: int) -> None:
    data = make()
    assert len(data) <= most
    with cheap(), pytest.raises(LimitError if limit else InputError) as caught:
        read_bytes(data)
    if limit:
        assert limit in caught.value.message


def test_a_long_deep_but_honest_header_is_read() -> None:
    """The limit is on nesting, not on sequences as such."""
    dataset = image(voxels()[0])
    data = data_of(dataset)
    at = data.index(element(0x00080016, b"UI", b"")[:4])
    inner = nested(60, True, False)[len(preamble(ExplicitVRLittleEndian)) : -len(bare(2, 2))]
    assert read_bytes(data[:at] + inner + data[at:]).shape == (1, 12, 10)


def test_a_million_pixels_of_air_are_honest() -> None:
    """A blank compressed series packs a thousandfold and is read."""
    dataset = image(np.full((2000, 2000), -1000, np.int16))
    dataset.compress(RLELossless)
    assert read_bytes(data_of(dataset)).array.max() == -1000


@pytest.mark.parametrize("part", [0.05, 0.3, 0.7, 0.99])
def test_truncated_files(part: float) -> None:
    data = data_of(image(voxels((1, 64, 64))[0]))
    with cheap(), pytest.raises(InputError):
        read_bytes(data[: int(len(data) * part)])


def test_truncated_inside_an_archive() -> None:
    files = {str(k): data_of(d) for k, d in enumerate(stack(voxels()))}
    files["2"] = files["2"][:-40]
    with pytest.raises(InputError, match="inside its pixels"):
        read_bytes(zipped(files))


def test_the_total_of_a_series_is_limited() -> None:
    files = {str(k): data_of(d) for k, d in enumerate(stack(voxels()))}
    with pytest.raises(LimitError, match="max_voxels"):
        read_bytes(zipped(files), limits=Limits(max_voxels=599))
