"""Bytes changed at random, in DICOM files and archives of them: a typed error or a valid volume, in bounded time and memory.

Derandomised, so that CI sees the same cases each time; `ISOCENTER_FUZZ=20000` tries that many new ones. The door's last
net, which turns a parser's own faults into an error, is taken away here: the parsers must have none.
"""

from __future__ import annotations

import os
import random
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from isocenter.core.errors import IsocenterError
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import door, pixels
from tests.io.dicom_files import data_of, element, enhanced, image, preamble, read_bytes, stack, voxels, zipped

LIMITS = Limits(max_voxels=4_000_000, decode_seconds=5)
EXTRA = int(os.environ.get("ISOCENTER_FUZZ", "0"))

#: What breaks parsers: edges of integers, delimiters, numbers that are none.
SPICE = (
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x01\0", b"\xfe\xff\0\xe0", b"\xfe\xff\x0d\xe0",
    b"\xfe\xff\xdd\xe0", b"SQ", b"UN", b"OW", b"\xe0\x7f\x10\0", b"nan ", b"-1", b"1e999", b"\\", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06",
)  # fmt: skip


def seeds() -> dict[str, bytes]:
    """Small valid inputs of every kind."""
    plain = image(voxels()[0])
    big = image(voxels()[0], syntax=ExplicitVRBigEndian)
    packed, squeezed = image(voxels((1, 32, 32))[0]), image(voxels((1, 64, 64))[0])
    packed.compress(RLELossless)
    squeezed.compress(JPEG2000Lossless)
    table = bytes(range(256))
    palette: dict[str, Any] = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in ("Red", "Green", "Blue")}
    tables: dict[str, Any] = {f"{name}PaletteColorLookupTableData": table for name in ("Red", "Green", "Blue")}
    files = {f"{k}": data_of(d) for k, d in enumerate(stack(voxels((3, 6, 5))))}
    found = {
        "explicit": data_of(plain),
        "implicit": data_of(image(voxels()[0], syntax=ImplicitVRLittleEndian)),
        "big endian": data_of(big),
        "deflated": data_of(image(voxels()[0], syntax=DeflatedExplicitVRLittleEndian)),
        "run lengths": data_of(packed),
        "jpeg 2000": data_of(squeezed),
        "palette": data_of(image(voxels((1, 6, 5), dtype=np.uint8)[0], PhotometricInterpretation="PALETTE COLOR", **palette, **tables)),
        "enhanced": data_of(enhanced(voxels((3, 6, 5)), [(0, 0, k) for k in range(3)])),
        "stored": zipped(files, zipfile.ZIP_STORED),
        "zipped": zipped(files),
    }
    return found


SEEDS = seeds()


def changed(data: bytes, rng: random.Random) -> bytes:
    """One to six changes: bytes overwritten, inserted, removed, repeated, lengths turned around, the end cut off."""
    result = bytearray(data)
    # Headers are where the parsers work; pixels only now and then.
    reach = len(result) if rng.random() < 0.3 else min(len(result), 2000)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(max(min(reach, len(result)), 1))
        kind = rng.choice((0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6))
        if kind == 0:
            result[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            spice = rng.choice(SPICE)
            result[at : at + len(spice)] = spice
        elif kind == 2:
            result[at:at] = rng.choice(SPICE)
        elif kind == 3:
            del result[at : at + rng.choice((1, 2, 4, 8, 50))]
        elif kind == 4:
            result[at:at] = result[at : at + rng.choice((4, 8, 60, 300))]
        elif kind == 5 and len(result) > at + 4:
            struct.pack_into("<L", result, at, rng.choice((0, 1, 7, 255, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)))
        elif kind == 6 and rng.random() < 0.2:
            del result[at:]
    return bytes(result)


@pytest.fixture(scope="module", autouse=True)
def _without_a_net() -> Iterator[None]:
    def bare(read: Callable[[], Volume]) -> Volume:
        return read()

    guarded, door._guarded = door._guarded, bare
    pixels.start(1, LIMITS)
    yield
    pixels.stop()
    door._guarded = guarded


def check(data: bytes) -> None:
    start = time.process_time()
    try:
        volume = read_bytes(data, limits=LIMITS)
    except IsocenterError:
        pass
    else:
        assert volume.array.ndim == 3
        assert np.isfinite(volume.grid.affine_lps).all()
        assert volume.array.size <= LIMITS.max_voxels
    assert time.process_time() - start < 8


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_themselves_are_read(name: str) -> None:
    assert read_bytes(SEEDS[name]).array.size > 0


@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=EXTRA or 250, derandomize=not EXTRA, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**63))
def test_changed_bytes(name: str, seed: int) -> None:
    check(changed(SEEDS[name], random.Random(seed)))


HEADS = (b"", bytes(128) + b"DICM", b"PK\x03\x04", b"\x08\0\x05\0CS", SEEDS["explicit"][:330], SEEDS["zipped"][:60])
#: What single attributes may hold, as bytes; the reader believes none of it.
ODD = (
    *(b"nan", b"inf", b"-1e308", b"1e308", b"1e-300", b"0", b"-0", b"-1", b"1", b"3", b"65536", b"99999999999999999999", b"0.5", b"", b" ", b"x"),
    *(b"1\\2", b"0\\0\\0", b"1\\2\\3", b"nan\\0\\0", b"1e5\\1e5\\1e5", b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0", b"1\\0\\0\\1\\0\\0"),
    *(b"1e-5\\1e-5", b"1e5\\1e5", b"0\\1\\0\\0\\0\\-1", b"0.7\\0.7\\0\\0\\0\\1", b"MONOCHROME1", b"RGB", b"YBR_FULL_422"),
    *(b"LOCALIZER", b"MOSAIC", b"1.2.3.4.9", b"\xff" * 20),
)
TEXTS = (
    *(0x00080008, 0x00080060, 0x00180050, 0x00180088, 0x0020000E, 0x00200013, 0x00200032),
    *(0x00200037, 0x00200100, 0x00280008, 0x00280030, 0x00281052, 0x00281053),
)
NUMBERS = (0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)


def odd_series(rng: random.Random) -> bytes:
    """A small series whose attributes are odd here and there, in an archive."""
    wild = rng.sample(TEXTS + NUMBERS, rng.randint(1, 4))
    common = {tag: rng.choice(ODD) for tag in wild}
    files = {}
    for k in range(rng.choice((1, 3, 5))):
        depth = k * 2 + rng.choice((0, 0, 0.3))
        values = {0x00080016: b"1.2.840.10008.5.1.4.1.1.2\0", 0x00080018: f"1.{k}".encode(), 0x00080060: b"CT", 0x0020000E: b"1.2.3.4"}
        values |= {0x00200013: f"{k}".encode(), 0x00200032: f"0\\0\\{depth}".encode(), 0x00200037: b"1\\0\\0\\0\\1\\0"}
        values |= {0x00280004: b"MONOCHROME2", 0x00280030: b"1\\1"}
        numbers = {0x00280002: 1, 0x00280010: 6, 0x00280011: 5, 0x00280100: 16, 0x00280101: 12, 0x00280102: 11, 0x00280103: 0}
        for tag in wild:
            if tag in NUMBERS:
                numbers[tag] = rng.choice((0, 1, 3, 5, 6, 7, 8, 12, 15, 16, 32, 64, 255, 65535))
            else:
                values[tag] = common[tag] if rng.random() < 0.7 else rng.choice(ODD)
        parts = {tag: element(tag, b"LO", v + b" " * (len(v) % 2)) for tag, v in values.items()}
        parts |= {tag: element(tag, b"US", struct.pack("<H", v)) for tag, v in numbers.items()}
        pixels = bytes(rng.randrange(256) for _ in range(60))
        files[str(k)] = preamble(ExplicitVRLittleEndian) + b"".join(parts[tag] for tag in sorted(parts)) + element(0x7FE00010, b"OW", pixels)
    return zipped(files, zipfile.ZIP_STORED)


@settings(max_examples=EXTRA or 1000, derandomize=not EXTRA, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**63))
def test_odd_attributes(seed: int) -> None:
    check(odd_series(random.Random(seed)))


@settings(max_examples=EXTRA or 300, derandomize=not EXTRA, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    head=st.sampled_from([b"", bytes(128) + b"DICM", b"PK\x03\x04", b"\x08\0\x05\0CS", SEEDS["explicit"][:330], SEEDS["zipped"][:60]]),
    data=st.binary(max_size=600),
)
def test_noise(head: bytes, data: bytes) -> None:
    check(head + data)
