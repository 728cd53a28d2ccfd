"""DICOM to a volume against the public converters, in one run: `python benchmarks/dicom.py [--repeat N]`.

Each tool reads the same folder to an array and, where it is a converter, writes an uncompressed .nii; ours is timed both
ways. Prints medians and ratios (above 1: ours is faster). Nothing here is asserted: absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from isocenter.core.settings import Limits
from isocenter.io import door

DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
REAL = ("totalsegmentator/example_ct_dicom", "dcm_qa_decubitus/In/HFP", "dcm_qa_ct/In/GE", "niivue/dicom", "dcmqi/segmentations/ct-3slice")


def write_series(folder: Path, count: int = 300, rows: int = 512, columns: int = 512) -> None:
    """A CT of `count` uncompressed slices, 0.7 x 0.7 x 1 mm, with the header of a scanner's size."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 3000, (rows, columns + count), dtype=np.int16)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(count):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.Modality, data.PatientName, data.PatientID = "CT", "Bench^Mark", "1"
        data.StudyDate, data.StudyTime, data.StudyID, data.SeriesNumber = "20260101", "120000", "1", 1
        data.InstanceNumber, data.Manufacturer = k + 1, "Isocenter"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelSpacing, data.SliceThickness = [0.7, 0.7], 1.0
        data.ImagePositionPatient, data.ImageOrientationPatient = [-180.0, -180.0, float(k)], [1, 0, 0, 0, 1, 0]
        data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, -1024, 40, 400
        block = data.private_block(0x0009, "ISOCENTER BENCH", create=True)
        for element in range(60):
            block.add_new(element, "LO", f"private value {element}")
        data.PixelData = texture[:, k : k + columns].tobytes()
        data.save_as(folder / f"{k:04d}", enforce_file_format=True)


def ours(folder: Path, out: Path) -> None:
    door.read_path(folder, limits=Limits())


def ours_and_write(folder: Path, out: Path) -> None:
    volume = door.read_path(folder, limits=Limits())
    with (out / "ours.nii").open("wb") as file:
        file.write(bytes(352))
        volume.array.tofile(file)


def dcm2niix(folder: Path, out: Path) -> None:
    program = shutil.which("dcm2niix") or str(Path(sys.executable).with_name("dcm2niix"))
    subprocess.run([program, "-z", "n", "-b", "n", "-o", str(out), str(folder)], check=True, stdout=subprocess.DEVNULL)


def simpleitk(folder: Path, out: Path) -> None:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.GetArrayViewFromImage(reader.Execute())


def dicom2nifti(folder: Path, out: Path) -> None:
    import dicom2nifti as library

    library.dicom_series_to_nifti(str(folder), str(out / "d2n.nii"), reorient_nifti=False)


def pydicom_loop(folder: Path, out: Path) -> None:
    sets = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt"]
    sets.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    np.stack([d.pixel_array.astype(np.float32) * float(d.get("RescaleSlope", 1)) + float(d.get("RescaleIntercept", 0)) for d in sets])


TOOLS: tuple[Callable[[Path, Path], None], ...] = (ours, ours_and_write, dcm2niix, simpleitk, pydicom_loop, dicom2nifti)


def resident() -> int:
    """Private and shared memory of this process, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """The largest growth of resident memory inside the block, in bytes, as the list's one value."""
    start, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def table(folder: Path, repeat: int) -> None:
    """One line a tool."""
    medians: dict[str, float] = {}
    times: dict[str, list[float]] = {tool.__name__: [] for tool in TOOLS}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(repeat + 1):  # the first round warms caches and imports
            for tool in TOOLS:
                out = Path(tempfile.mkdtemp(dir=name))
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
                    tool(folder, out)
                    times[tool.__name__].append(time.perf_counter() - start)
                shutil.rmtree(out)
    for tool_name, values in times.items():
        if len(values) < 2:
            print(f"  {tool_name:16} fails")
            continue
        medians[tool_name] = statistics.median(values[1:])
        ratio = medians[tool_name] / medians["ours_and_write" if tool_name in ("dcm2niix", "dicom2nifti") else "ours"]
        print(f"  {tool_name:16}{medians[tool_name]:8.3f} s{ratio:8.2f}  (best {min(values[1:]):.3f} s)")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder, options.slices)
        with peak() as most:
            volume = door.read_path(folder, limits=Limits())
        print(f"{options.slices} x 512 x 512, uncompressed; memory grows by {most[0] / volume.array.nbytes:.2f} x the array")
        del volume
        table(folder, options.repeat)
    for real in REAL:
        if (DATA / real).is_dir():
            print(real)
            table(DATA / real, options.repeat)


if __name__ == "__main__":
    main()
