"""A real scan through a real network, three ways: `python -m benchmarks.endtoend [--crop 96]`.

The T1 of the data folder through `model18cls`: by `isocenter batch`; as a job over HTTP, with PostgreSQL, Redis and Celery, in
the queue `gpu` that no card works on, so that a processor's worker takes it; and once more as a DICOM series whose answer is a
DICOM SEG. The SEG is read back by highdicom and compared with the NIfTI mask, read by nibabel, at places in the patient.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door
from isocenter.io.nifti import write as as_nifti
from isocenter.models._onnx import meshnet

DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "brainchop_mit"
NETWORK = "model18cls"


@dataclass
class Found:
    """What came out. jobs: as the server told them, by input. claims: (what happened, by which worker) of each job, in order."""

    structures: int = 0
    same_labels: float = 0.0
    seg_same: float = 0.0
    seg_structures: int = 0
    volume_ml: float = 0.0
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def t1(crop: int | None) -> Volume:
    """The scan, or a cube out of its middle."""
    scan = door.read_path(DATA / "t1_crop.nii.gz", limits=Settings(), modality="MR")
    if crop is None:
        return scan
    low = [(size - crop) // 2 for size in scan.shape]
    array = np.ascontiguousarray(scan.array[tuple(slice(at, at + crop) for at in low)])
    axes = np.array(scan.direction) * np.array(scan.spacing)
    origin = np.array(scan.origin) + axes @ np.array(low[::-1], float)
    return Volume(array, scan.spacing, (float(origin[0]), float(origin[1]), float(origin[2])), scan.direction, modality="MR")


def as_series(scan: Volume) -> bytes:
    """A ZIP of an uncompressed MR series with a volume's values and geometry."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    study, series, frame = (generate_uid() for _ in range(3))
    x, y, z = np.array(scan.direction).T
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k, plane in enumerate(scan.array):
            data = Dataset()
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MRImageStorage
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
            data.PatientID, data.PatientName, data.Modality, data.InstanceNumber = "T1", "T1", "MR", k + 1
            data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20260101", "120000", "1", "1"
            data.PatientBirthDate, data.PatientSex, data.ReferringPhysicianName, data.SeriesNumber = "", "", "", 1
            data.Rows, data.Columns = plane.shape
            data.PixelSpacing, data.SliceThickness = [scan.spacing[1], scan.spacing[0]], scan.spacing[2]
            data.ImageOrientationPatient = [round(float(v), 8) for v in (*x, *y)]
            data.ImagePositionPatient = [round(float(v), 6) for v in np.array(scan.origin) + k * scan.spacing[2] * z]
            data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
            data.PixelData = plane.astype("<u2").tobytes()
            file = io.BytesIO()
            data.save_as(file, enforce_file_format=True)
            archive.writestr(f"IM{k:04d}", file.getvalue())
    return packed.getvalue()


def run(place: Path, database_url: str, redis_url: str, crop: int | None = None) -> Found:
    """All three ways. place: an empty folder."""
    found, scan = Found(), t1(crop)
    studies, home = place / "studies", place / "home"
    studies.mkdir()
    (studies / "t1.nii.gz").write_bytes(as_nifti(scan.array, scan.grid))
    env = {**os.environ, "ISOCENTER_HOME": str(home), "ISOCENTER_MIN_FREE_BYTES": "0", "HF_HUB_OFFLINE": "1"}
    names = json.loads((DATA / NETWORK / "colormap.json").read_text())["labels"]
    (place / "config.json").write_text(json.dumps(meshnet.configuration(names)))
    isocenter = [sys.executable, "-m", "isocenter"]
    network = str(DATA / "onnx" / f"{NETWORK}.onnx")
    subprocess.run([*isocenter, "models", "add", network, "--config", str(place / "config.json")], env=env, check=True, capture_output=True)

    started = time.perf_counter()
    batch = [*isocenter, "batch", str(studies), "-m", NETWORK, "-o", str(place / "out")]
    subprocess.run(batch, env=env, check=True, capture_output=True)
    found.seconds["batch"] = time.perf_counter() - started
    mask, affine = _nifti((place / "out" / "t1" / "mask.nii.gz").read_bytes())
    found.structures, found.volume_ml = len(np.unique(mask)) - 1, float((mask > 0).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)

    env |= {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with served(place, env, worker=True) as address:
        for name, content, formats in (
            ("t1.nii.gz", (studies / "t1.nii.gz").read_bytes(), ("nifti", "measurements")),
            ("t1.zip", as_series(scan), ("nifti", "dicom_seg", "measurements")),
        ):
            started = time.perf_counter()
            job = submit(address, name, content, [("model", NETWORK), ("queue", "gpu"), *(("formats", f) for f in formats)])
            found.seconds[name] = time.perf_counter() - started
            found.jobs[name] = job
            audit = json.loads(_get(f"{address}/api/v1/jobs/{job['id']}/audit"))
            found.claims[name] = [(event["what"], event.get("worker")) for event in audit]
            files = {a["name"]: _get(f"{address}/api/v1/jobs/{job['id']}/artifacts/{a['name']}") for a in job["artifacts"]}
            other, other_affine = _nifti(files["mask.nii.gz"])
            if name == "t1.nii.gz":
                found.same_labels = float((other == mask).mean())
            else:
                found.seg_same, found.seg_structures = _agreement(files["mask.dcm"], other, other_affine, job["result"])
        found.workers = _workers(_get(f"{address}/metrics").decode())
    return found


@contextmanager
def served(place: Path, env: dict[str, str], *, worker: bool = False) -> Iterator[str]:
    """The address of a server; with a worker on the processor beside it, which does the jobs where the environment names a broker."""
    from tests.ports import free_port

    port = free_port()
    programs = [["serve", "--port", str(port)], *([["worker", "--device", "cpu", "--concurrency", "1"]] if worker else [])]
    with (place / "log").open("ab") as log:
        processes = [
            subprocess.Popen([sys.executable, "-m", "isocenter", *words], env=env, stdout=log, stderr=log, cwd=place, start_new_session=True)
            for words in programs
        ]
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while not _ready(address, worker):
            if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
                raise RuntimeError((place / "log").read_text()[-3000:])
            time.sleep(0.1)
        yield address
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(address: str, worker: bool) -> bool:
    """The server is; and the worker, where there is one, has said that it is there."""
    try:
        _get(f"{address}/readyz")
        return not worker or _workers(_get(f"{address}/metrics").decode()).get("cpu", "0") != "0"
    except OSError:
        return False


def _workers(metrics: str) -> dict[str, str]:
    """Workers by queue, as /metrics says."""
    lines = [line for line in metrics.splitlines() if line.startswith("isocenter_workers{")]
    return {line.split('"')[1]: line.rsplit(" ", 1)[1].removesuffix(".0") for line in lines}


def submit(address: str, name: str, content: bytes, fields: list[tuple[str, str]]) -> dict[str, Any]:
    """Submit a job and wait for its end. Raises `RuntimeError` for one that did not complete."""
    mark = "isocenter-boundary"
    body = b"".join(f'--{mark}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode() for key, value in fields)
    body += f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + f"\r\n--{mark}--\r\n".encode()
    asked = urllib.request.Request(f"{address}/api/v1/jobs", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        job: dict[str, Any] = json.load(answer)
    deadline = time.monotonic() + 6000
    while job["status"] in ("pending", "running"):
        if time.monotonic() > deadline:
            raise TimeoutError(job)
        time.sleep(0.2)
        job = json.loads(_get(f"{address}/api/v1/jobs/{job['id']}"))
    if job["status"] != "completed":
        raise RuntimeError(job["error"])
    return job


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        data: bytes = answer.read()
    return data


def _nifti(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A mask [i, j, k] and its affine to the patient's millimetres, LPS, by nibabel alone."""
    import gzip

    import nibabel as nib

    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj).astype(np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine


def _agreement(seg: bytes, mask: NDArray[np.uint8], affine: NDArray[np.float64], result: dict[str, Any]) -> tuple[float, int]:
    """Part of all voxels for which SEG and mask name the same structure at the same place, and how many structures the SEG has."""
    import highdicom as hd

    read = hd.seg.segread(io.BytesIO(seg))
    volume = read.get_volume(combine_segments=True, dtype=np.uint8)
    names = {number: read.get_segment_description(number).segment_label for number in read.segment_numbers}
    values = {entry["name"]: entry["label"] for entry in result["labels"]}
    translated = np.zeros(256, np.uint8)
    for number, name in names.items():
        translated[number] = values[name]
    same = 0
    back = np.linalg.inv(volume.affine) @ affine
    rows = np.stack(np.meshgrid(*(np.arange(n) for n in mask.shape[:2]), indexing="ij"), -1).reshape(-1, 2)
    for k in range(mask.shape[2]):
        at = np.rint(back[:3, :2] @ rows.T + back[:3, 2:3] * k + back[:3, 3:4]).astype(int)
        inside = np.all((at >= 0) & (at < np.array(volume.spatial_shape)[:, None]), axis=0)
        there = np.zeros(len(rows), np.uint8)
        there[inside] = translated[volume.array[tuple(at[:, inside])]]
        same += int((there == mask[rows[:, 0], rows[:, 1], k]).sum())
    return same / mask.size, len(names)


if __name__ == "__main__":
    from tests.jobs import servers

    parser = argparse.ArgumentParser()
    parser.add_argument("--crop", type=int, help="edge of a cube out of the scan's middle; default: all of it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for sub in ("pg", "redis", "work"):
            (base / sub).mkdir()
        with servers.postgres(base / "pg") as postgres, servers.redis(base / "redis") as redis:
            out = run(base / "work", postgres.url("postgres"), f"redis://127.0.0.1:{redis.port}/0", asked.crop)
    print(f"structures {out.structures}, {out.volume_ml:.1f} ml; job equals batch in {100 * out.same_labels:.4f} % of the voxels")
    print(f"DICOM SEG of {out.seg_structures} structures equals the NIfTI mask at {100 * out.seg_same:.4f} % of the places")
    print(f"workers {out.workers}; {' '.join(f'{name} {seconds:.1f} s' for name, seconds in out.seconds.items())}")
    for name, job in out.jobs.items():
        print(name, "queue", job["queue"], "stages", {k: round(v, 2) for k, v in job["seconds"].items()}, out.claims[name])
