"""Gzip in and out: what any other reader reads, and no more than is asked for."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.core.errors import InputError
from isocenter.io import gz

DATA = np.random.default_rng(0).integers(0, 60, 5_000_000).astype(np.uint8).tobytes()


@pytest.mark.parametrize("size", [0, 1, 100, gz.BLOCK - 1, gz.BLOCK, gz.BLOCK + 1, 3 * gz.BLOCK, len(DATA)])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_one_member_that_every_reader_reads(size: int, level: int) -> None:
    packed = gz.compress(DATA[:size], level=level)
    inflater = zlib.decompressobj(31)
    assert inflater.decompress(packed) == DATA[:size]
    assert inflater.eof
    assert not inflater.unused_data
    assert packed == gz.compress(DATA[: size // 3], DATA[size // 3 : size], level=level) or size > 2


def test_parts_are_put_behind_one_another() -> None:
    assert gzip.decompress(gz.compress(b"head", memoryview(DATA), b"")) == b"head" + DATA


@given(st.lists(st.binary(max_size=2000), max_size=5), st.lists(st.integers(1, 700), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_reading_in_any_steps(members: list[bytes], steps: list[int]) -> None:
    stream = gz.Inflater(io.BytesIO(b"".join(map(gzip.compress, members)) or gzip.compress(b"")))
    whole, got = b"".join(members), b""
    for step in steps:
        got += stream.read(step)
    assert got == whole[: len(got)]
    assert len(got) == min(sum(steps), len(whole))


def test_zlib_streams() -> None:
    stream = gz.Inflater(io.BytesIO(zlib.compress(DATA) + b"more"), zlib=True)
    assert stream.read(len(DATA) + 10) == DATA
    stream.check()


def test_skipping_behind_the_end() -> None:
    stream = gz.Inflater(io.BytesIO(gzip.compress(DATA)))
    stream.skip(1000)
    assert stream.read(10) == DATA[1000:1010]
    with pytest.raises(InputError, match="cut short"):
        stream.skip(len(DATA))


def checked(packed: bytes) -> None:
    stream = gz.Inflater(io.BytesIO(packed))
    stream.read(len(DATA))
    stream.check()


def test_damage_and_truncation() -> None:
    packed = gzip.compress(DATA)
    for broken in (packed[:-1], packed[:-9], packed[: len(packed) // 2], packed[:12], packed[:3]):
        with pytest.raises(InputError):
            checked(broken)
    wrong = bytearray(packed)
    wrong[-5] ^= 255
    with pytest.raises(InputError, match="damaged"):
        checked(bytes(wrong))


def test_nothing_is_inflated_beyond_what_is_asked_for() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    file = Counting(gzip.compress(bytes(1 << 28)))
    assert gz.Inflater(file).read(100) == bytes(100)
    assert file.taken <= gz.CHUNK
