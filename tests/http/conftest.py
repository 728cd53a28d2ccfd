"""An application in process for most tests, and a real server process for what only a real one shows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from isocenter.core.phantom import Phantom, phantom
from isocenter.core.settings import Settings
from isocenter.http.app import create_app
from isocenter.io import nifti
from tests.ports import free_port


@pytest.fixture(scope="session")
def ct() -> Phantom:
    """A small torso CT with its truth."""
    return phantom((48, 64, 64))


@pytest.fixture(scope="session")
def ct_nifti(ct: Phantom) -> bytes:
    return nifti.write(ct.volume.array, ct.volume.grid)


@pytest.fixture(scope="session")
def app_settings(home: Path) -> Settings:
    return Settings(home=home, decoders=0)


@pytest.fixture(scope="session")
def client(app_settings: Settings) -> Iterator[TestClient]:
    """A client of an application without a key; faults raise in the test."""
    with TestClient(create_app(app_settings), base_url="http://127.0.0.1") as client:
        yield client


@contextmanager
def serve(home: Path, *flags: str, ports: int = 1, **env: str) -> Iterator[tuple[list[str], Callable[[], str]]]:
    """A server process of its own; yields (its addresses, a function that stops it and returns its log)."""
    chosen = [free_port() for _ in range(ports)]
    arguments = [sys.executable, "-m", "isocenter", "serve", *flags, *(word for port in chosen for word in ("--port", str(port)))]
    log = (home / f"serve-{chosen[0]}.log").open("w+")
    process = subprocess.Popen(
        arguments, env={**os.environ, "ISOCENTER_HOME": str(home), **env}, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=home
    )

    def stop() -> str:
        process.terminate()
        process.wait(120)
        return Path(log.name).read_text()

    try:
        addresses = [f"http://127.0.0.1:{port}" for port in chosen]
        wait_until_ready(addresses[0], process, Path(log.name))
        yield addresses, stop
    finally:
        process.kill()
        process.wait()
        log.close()


def wait_until_ready(address: str, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=30):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"not ready: {log.read_text()}")


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The address of a real server on this machine."""
    with serve(home) as (addresses, _):
        yield addresses[0]


def dicom_series(
    array: NDArray[np.int16],
    *,
    spacing: tuple[float, float, float] = (6.0, 6.0, 8.0),
    patient: str = "one",
    reverse_numbers: bool = False,
    uid: str = "1.2.826.0.1.3680043.8.498.1",
) -> list[bytes]:
    """An uncompressed axial CT series of `array` (z, y, x) in HU; spacing (x, y, z) in mm."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    files = []
    for index, plane in enumerate(array):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{uid}.{index + 1}"
        dataset.PatientID = dataset.PatientName = patient
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = f"{uid}.1000", f"{uid}.1001", f"{uid}.1002"
        dataset.Modality, dataset.InstanceNumber = "CT", len(array) - index if reverse_numbers else index + 1
        dataset.Rows, dataset.Columns = plane.shape
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-192.0, -192.0, spacing[2] * index]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = plane.astype("<i2").tobytes()
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def zipped(files: list[bytes], folder: str = "patient/study/series") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index, data in enumerate(files):
            archive.writestr(f"{folder}/IM{index:04d}", data)
    return buffer.getvalue()
