"""Numpy's `.npz`, readable by `numpy.load` without pickle, packed with ISA-L instead of zlib."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.lib import format as npy
from numpy.typing import NDArray

from isocenter.core.errors import InputError, UsageError
from isocenter.io import gz

#: 1980-01-01, the earliest date a ZIP can hold: equal arrays give equal bytes.
_DATE = 0x0021
_TOO_LARGE = 0xFFFFFFFF


def write(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """An `.npz` file of `arrays`, by key."""
    members: list[bytes] = []
    directory: list[bytes] = []
    position = 0
    for key, array in arrays.items():
        name = f"{key}.npy".encode()
        head = io.BytesIO()
        npy.write_array_header_1_0(head, npy.header_data_from_array_1_0(np.ascontiguousarray(array)))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        pieces, checksum, length = gz.deflate_all([head.getvalue(), data])
        packed = sum(map(len, pieces))
        if max(packed, length, position) >= _TOO_LARGE:
            raise UsageError("an array of 4 GiB or more does not fit an .npz file")
        facts = struct.pack("<5H3L2H", 20, 0, 8, 0, _DATE, checksum, packed, length, len(name), 0)
        directory.append(struct.pack("<4sH", b"PK\x01\x02", 20) + facts + struct.pack("<3H2L", 0, 0, 0, 0o600 << 16, position) + name)
        member = [b"PK\x03\x04" + facts + name, *pieces]
        position += sum(map(len, member))
        members += member
    size = sum(map(len, directory))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(directory), len(directory), size, position, 0)
    return b"".join([*members, *directory, end])


def read(path: Path, key: str) -> NDArray[np.generic] | None:
    """The array under `key`, or None when there is no such key. For files that this program wrote."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            if f"{key}.npy" not in archive.namelist():
                return None
            info = archive.getinfo(f"{key}.npy")
            if info.compress_type != zipfile.ZIP_DEFLATED:
                return _array(archive.read(info))
            file.seek(info.header_offset + 26)
            named, extra = struct.unpack("<2H", file.read(4))
            file.seek(named + extra, 1)
            return _array(isal_zlib.decompress(file.read(info.compress_size), -15, info.file_size))
    except (ValueError, KeyError, zipfile.BadZipFile, gz.DeflateError, struct.error):
        raise InputError("the .npz file is damaged") from None


def _array(data: bytes) -> NDArray[np.generic]:
    array: NDArray[np.generic] = npy.read_array(io.BytesIO(data), allow_pickle=False)
    return array
