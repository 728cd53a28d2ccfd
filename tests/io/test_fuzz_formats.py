"""Bytes gone wrong: every reader answers with a typed error or a valid volume, soon and in little memory."""

from __future__ import annotations

import gzip
import io
import resource
import time
import zlib
from collections.abc import Callable
from functools import cache
from typing import BinaryIO

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from isocenter.core.errors import IsocenterError
from isocenter.core.geometry import Grid
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume
from isocenter.io import nifti, nrrd, picture

#: Small, so that a mutated size that passes is still quick, and a wrong check shows in the memory.
LIMITS = Limits(max_voxels=1_000_000)
SECONDS, MEMORY = 5.0, 60e6
Reader = Callable[..., Volume]
VALUES = np.random.default_rng(0).integers(-1000, 2000, (6, 7, 8)).astype(np.int16)


def _png(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@cache
def seeds() -> dict[str, tuple[Reader, bytes, Callable[[bytes], bytes]]]:
    """By name: the reader, honest bytes to mutate, and what is done with them before they are read."""
    plain = nifti.write(VALUES, Grid(VALUES.shape), compress=False)
    second = bytes(nib.Nifti2Image(VALUES.T, np.eye(4)).to_bytes())
    scaled = bytes(nib.Nifti1Image(VALUES.T.astype(np.float32), np.eye(4)).to_bytes())
    attached = nrrd.write(VALUES, Grid(VALUES.shape), compress=False)
    head = b"ObjectType = Image\nNDims = 3\nCompressedData = %s\nElementSpacing = 1 1 2\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    head += b"DimSize = 8 7 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    grey = np.random.default_rng(0).integers(0, 256, (24, 16, 3)).astype(np.uint8)

    def same(data: bytes) -> bytes:
        return data

    return {
        "nifti-1": (nifti.read, plain, same),
        "nifti-2": (nifti.read, second, same),
        "nifti of fractions": (nifti.read, scaled, same),
        "nifti, packed after": (nifti.read, plain, lambda data: gzip.compress(data, 1)),
        "nifti, packed before": (nifti.read, gzip.compress(plain), same),
        "nrrd": (nrrd.read, attached, same),
        "nrrd, packed": (nrrd.read, nrrd.write(VALUES, Grid(VALUES.shape)), same),
        "mha": (nrrd.read, head % b"False" + VALUES.tobytes(), same),
        "mha, packed": (nrrd.read, head % b"True" + zlib.compress(VALUES.tobytes()), same),
        "png": (picture.read, _png(Image.fromarray(grey), "PNG"), same),
        "png, palette": (picture.read, _png(Image.fromarray(grey).convert("P"), "PNG"), same),
        "png, 16 bit": (picture.read, _png(Image.fromarray(grey[..., 0].astype(np.uint16) * 200), "PNG"), same),
        "jpeg": (picture.read, _png(Image.fromarray(grey), "JPEG"), same),
        "jpeg, progressive": (picture.read, _png(Image.fromarray(grey), "JPEG", progressive=True), same),
    }


@st.composite
def mutations(draw: st.DrawFn, length: int) -> Callable[[bytes], bytes]:
    """A few changes to bytes: some replaced, put in, taken out, doubled, or all behind a place cut off; mostly in the header."""
    near = st.integers(0, min(length, 420) - 1)
    places = st.one_of(near, near, st.integers(0, length - 1))
    numbers = st.sampled_from(
        [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"9" * 9, b"-1", b"nan"]
    )
    content = st.one_of(st.binary(min_size=1, max_size=4), numbers)
    steps = draw(
        st.lists(st.tuples(st.sampled_from(("set", "set", "set", "insert", "delete", "double", "cut")), places, content), min_size=1, max_size=5)
    )

    def apply(data: bytes) -> bytes:
        for action, at, what in steps:
            if action == "set":
                data = data[:at] + what + data[at + len(what) :]
            elif action == "insert":
                data = data[:at] + what + data[at:]
            elif action == "delete":
                data = data[:at] + data[at + len(what) :]
            elif action == "double":
                data = data[:at] + data[at : at + 64] + data[at:]
            else:
                data = data[:at]
        return data

    return apply


def check(reader: Callable[..., Volume], data: bytes) -> None:
    file: BinaryIO = io.BytesIO(data)
    started = time.process_time()
    try:
        volume = reader(file, len(data), limits=LIMITS)
    except IsocenterError:
        pass
    else:
        assert volume.grid.voxels <= LIMITS.max_voxels
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.grid.affine_lps).all()
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("name", list(seeds()))
def test_mutated_files(name: str) -> None:
    reader, honest, wrap = seeds()[name]
    check(reader, wrap(honest))

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(mutations(len(honest)))
    def run(mutate: Callable[[bytes], bytes]) -> None:
        check(reader, wrap(mutate(honest)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.mark.parametrize("reader", [nifti.read, nrrd.read, picture.read])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    data=st.one_of(
        st.binary(max_size=600),
        st.builds(lambda a, b: a + b, st.sampled_from([b"\x5c\1\0\0", b"NRRD0004\n", picture.PNG, b"\xff\xd8\xff"]), st.binary()),
    )
)
def test_any_bytes(reader: Reader, data: bytes) -> None:
    check(reader, data)
