"""ZIP archives: what PACS exports look like is read, what only an attack looks like is refused."""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import InputError, LimitError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.io.archive import Part, Walk
from tests.io.dicom_files import data_of, read_bytes, stack, voxels, zipped

ARRAY = voxels()
FILES = {f"DICOM/ST000001/SE000001/IM{k:06d}": data_of(d) for k, d in enumerate(stack(ARRAY))}


def members(data: bytes, limits: Limits | None = None) -> dict[str, bytes]:
    with tempfile.TemporaryFile(buffering=0) as file, Walk(limits or Limits()) as walk:
        file.write(data)
        return {part.name: part.read() for part in walk.parts(Part(len(data), file=file))}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_pacs_export(method: int) -> None:
    extra = {"DICOMDIR": b"x" * 200, "README.TXT": b"hello", "VIEWER/VIEWER.EXE": b"MZ" + bytes(5000), "__MACOSX/._IM": b"junk", "empty": b""}
    volume = read_bytes(zipped({**extra, **FILES}, method))
    np.testing.assert_array_equal(volume.array, ARRAY)
    assert len(volume.source.headers) == len(ARRAY)


def test_archives_inside_archives() -> None:
    inner = zipped(dict(list(FILES.items())[:2]))
    outer = zipped({"a.zip": zipped({"b.zip": inner}), **dict(list(FILES.items())[2:])})
    np.testing.assert_array_equal(read_bytes(outer).array, ARRAY)


def test_names_with_backslashes_and_umlauts() -> None:
    data = zipped({name.replace("/", "\\").replace("IM", "Bild-ü"): value for name, value in FILES.items()})
    np.testing.assert_array_equal(read_bytes(data).array, ARRAY)


def test_sixty_four_bit_sizes() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    np.testing.assert_array_equal(read_bytes(file.getvalue()).array, ARRAY)


def test_written_as_a_stream() -> None:
    """Sizes come after the members (bit 3 of the flags), so the local headers say 0."""

    class OneWay(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += data
            return len(data)

    file = OneWay()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    np.testing.assert_array_equal(read_bytes(bytes(file.data)).array, ARRAY)


def test_a_prefix_before_the_archive_is_not_needed_and_not_read() -> None:
    with pytest.raises(InputError):
        members(b"MZ" * 100 + zipped(FILES))


def test_what_holds_no_image() -> None:
    with pytest.raises(UnsupportedError, match="no image"):
        read_bytes(zipped({"a.txt": b"text"}))


# -- attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "C:\\x", "a/../../b", "..\\x"])
def test_names_that_point_outside(name: str) -> None:
    with pytest.raises(InputError, match="outside"):
        members(zipped({name: b"x"}))


def test_symbolic_links() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="symbolic link"):
        members(file.getvalue())


def test_encrypted_members() -> None:
    data = bytearray(zipped({"a": b"x" * 100}))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    with pytest.raises(UnsupportedError, match="encrypted"):
        members(bytes(data))


def test_other_methods() -> None:
    with pytest.raises(UnsupportedError, match="deflate"):
        members(zipped({"a": b"x" * 100}, zipfile.ZIP_LZMA))


def test_too_many_members() -> None:
    with pytest.raises(LimitError, match="max_archive_members = 8 000"):
        members(zipped({str(k): b"" for k in range(10_000)}, zipfile.ZIP_STORED))


def test_a_limit_counts_nested_members_too() -> None:
    inner = zipped({str(k): b"x" for k in range(60)})
    with pytest.raises(LimitError, match="max_archive_members"):
        members(zipped({"a.zip": inner, "b.zip": inner}), Limits(max_archive_members=100))


def test_too_deep() -> None:
    data = b"x"
    for k in range(5):
        data = zipped({f"{k}.zip": data})
    with pytest.raises(LimitError, match="max_archive_depth"):
        members(data)


def test_ratio_and_total_are_counted_while_inflating() -> None:
    data = bytearray(zipped({"a": bytes(80 * 1024 * 1024)}))
    # The directory's word is not taken: it says 10 bytes.
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, at + 24, 10)
    with pytest.raises(LimitError, match="max_archive_ratio"):
        members(bytes(data))
    with pytest.raises(LimitError, match="max_archive_bytes"):
        members(bytes(data), Limits(max_archive_bytes=1_000_000))


def test_overlapping_members() -> None:
    """Two lines of the directory that share one member's bytes."""
    data = zipped({"a": b"x" * 1000, "b": b"y" * 1000}, zipfile.ZIP_STORED)
    at = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", at + 4)
    broken = bytearray(data)
    struct.pack_into("<L", broken, second + 42, 0)
    with pytest.raises(InputError, match="overlap"):
        members(bytes(broken))
    longer = bytearray(data)
    struct.pack_into("<L", longer, at + 20, 1500)
    with pytest.raises(InputError, match="overlap"):
        members(bytes(longer))


@pytest.mark.parametrize("cut", [1, 10, 30, 60, 200])
def test_cut_short(cut: int) -> None:
    with pytest.raises(InputError):
        members(zipped(FILES)[:-cut])


def test_damaged_members() -> None:
    data = bytearray(zipped({"a": np.random.default_rng(0).integers(0, 9, 5000, dtype=np.uint8).tobytes()}))
    for k in range(60, 600, 5):
        data[k] ^= 0xFF
    with pytest.raises(InputError, match="damaged"):
        members(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_checksum(method: int) -> None:
    """One bit of a pixel is turned: without the sum it would be read as an image with a wrong value."""
    data = bytearray(zipped({"a": b"\x55" * 1000}, method))
    at = data.index(b"PK\x01\x02")
    data[at + 16] ^= 1
    with pytest.raises(InputError, match="checksum"):
        members(bytes(data))


def test_a_directory_that_points_anywhere() -> None:
    data = bytearray(zipped(FILES))
    at = data.rindex(b"PK\x05\x06")
    for start, size in ((2**32 - 2, 10), (0, 2**32 - 2), (5, 100)):
        struct.pack_into("<2L", data, at + 12, size, start)
        with pytest.raises(InputError):
            members(bytes(data))
