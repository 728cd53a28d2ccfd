"""Reading at places of a file where the system has no call for it, and what is refused where no decoder can be started."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isocenter.core.errors import UnsupportedError
from isocenter.core.settings import Settings
from isocenter.io import archive, door, pixels, positioned
from isocenter.io.upload import Upload
from tests.conftest import ROOT
from tests.http.conftest import dicom_series, zipped
from tests.io.dicom_files import read_bytes
from tests.io.test_dicom_syntaxes import compressed


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it runs where POSIX's calls are missing."""
    for name in ("pread", "preadinto", "pwrite"):
        monkeypatch.setattr(archive, name, getattr(positioned, f"_{name}"))
    for name in ("pread", "preadv", "pwrite", "memfd_create"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(pixels, "POSSIBLE", False)


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb", buffering=0) as file, ThreadPoolExecutor(8) as pool:
        places = [(i * 7919) % len(data) for i in range(2000)]
        pieces = list(pool.map(lambda at: positioned._pread(file.fileno(), 100, at), places))
    assert pieces == [data[at : at + 100] for at in places]


def test_write_and_read_at_a_place() -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        assert positioned._pwrite(file.fileno(), memoryview(b"abc"), 5) == 3
        view = memoryview(bytearray(10))
        assert positioned._preadinto(file.fileno(), view, 3) == 5
        assert bytes(view[:5]) == b"\0\0abc"
        assert positioned._preadinto(file.fileno(), view, 8) == 0


@pytest.mark.usefixtures("windows")
def test_an_uncompressed_series_is_read_without_posix() -> None:
    import numpy as np

    array = np.arange(6 * 8 * 8, dtype=np.int16).reshape(6, 8, 8)
    with Upload.of(zipped(dicom_series(array)), "a.zip") as upload:
        assert np.array_equal(door.read_upload(upload, limits=Settings()).array, array)


@pytest.mark.usefixtures("windows")
def test_a_compressed_image_is_refused_without_posix() -> None:
    pixels.start(1, Settings())  # starts none
    with pytest.raises(UnsupportedError, match="compressed DICOM cannot be read on Windows"):
        read_bytes(compressed())


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_types_of_other_systems(platform: str, tmp_path: Path) -> None:
    """The layer that opens files and starts processes, as the other system's library is typed."""
    command = [sys.executable, "-m", "mypy", "--platform", platform, "--cache-dir", str(tmp_path), "--no-warn-unused-ignores"]
    places = [f"src/isocenter/io/{name}.py" for name in ("positioned", "archive", "upload", "pixels", "pixels_worker")]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
