"""Reading and writing NIfTI, against nibabel and SimpleITK in the same run: 512 x 512 x 300 voxels."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from isocenter.core.geometry import Grid
from isocenter.core.phantom import phantom
from isocenter.core.prompts import Box
from isocenter.core.settings import Limits
from isocenter.io import nifti

SHAPE = (300, 512, 512)
AFFINE = np.diag([0.8, 0.8, 1.5, 1.0])


def best(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the quickest run: what the work costs when nobody disturbs it."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def inputs() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A CT of the benchmark's size and its liver's mask: the phantom, its voxels repeated, with a scanner's noise."""
    small = phantom((75, 128, 128), noise_hu=0)
    scale = tuple(big // little for big, little in zip(SHAPE, small.volume.shape, strict=True))
    ct = small.volume.array.astype(np.float32)
    mask = small.masks["liver"].astype(np.uint8)
    for axis, by in enumerate(scale):
        ct, mask = np.repeat(ct, by, axis), np.repeat(mask, by, axis)
    noise = np.random.default_rng(0).normal(0, 12, SHAPE).astype(np.float32)
    noisy: NDArray[np.int16] = np.clip(ct + noise, -1024, 3071).astype(np.int16)
    return noisy, mask


def line(work: str, who: str, seconds: float, ours: float, size: int, our_size: int) -> None:
    """Print a peer's time and size, and how ours compare."""
    print(f"{work:18} {who:22} {seconds:7.3f} s  {seconds / ours:6.1f} x ours   {size / 1e6:8.2f} MB, ours {our_size / size:5.3f} of it")


def writing(name: str, array: NDArray[np.generic], folder: Path) -> Path:
    """Compare the writers; returns the file that nibabel made."""
    grid = Grid.from_affine_ras(AFFINE, array.shape)
    ours = best(lambda: nifti.write(array, grid))
    our_size = len(nifti.write(array, grid))
    print(f"{name + ' write':18} {'isocenter':22} {ours:7.3f} s  {'':14} {our_size / 1e6:8.2f} MB")
    path = folder / f"{name}.nii.gz"
    image = nib.Nifti1Image(array.T, AFFINE)
    line(f"{name} write", "nibabel (default)", best(lambda: nib.save(image, path), 2), ours, path.stat().st_size, our_size)
    itk, itk_path = SimpleITK.GetImageFromArray(array), folder / f"{name}-itk.nii.gz"
    seconds = best(lambda: SimpleITK.WriteImage(itk, itk_path, useCompression=True), 2)
    line(f"{name} write", "SimpleITK", seconds, ours, itk_path.stat().st_size, our_size)
    return path


def reading(name: str, path: Path) -> None:
    """Compare the readers on one file."""
    data = path.read_bytes()
    ours = best(lambda: nifti.read(io.BytesIO(data), len(data), limits=Limits()))
    print(f"{name + ' read':18} {'isocenter (hashed)':22} {ours:7.3f} s")
    peers: dict[str, Callable[[], object]] = {
        "nibabel asarray": lambda: np.asarray(nib.load(path).dataobj),
        "nibabel get_fdata": lambda: nib.load(path).get_fdata(),
        "SimpleITK": lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)),
    }
    for who, work in peers.items():
        seconds = best(work, 2)
        print(f"{name + ' read':18} {who:22} {seconds:7.3f} s  {seconds / ours:6.1f} x ours")


def wire(mask: NDArray[np.uint8]) -> None:
    """The wire mask of MONAI Label's generation 2: whole, and after a click that changed a small box."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    whole = best(lambda: nifti.write_wire(mask))
    kept = nifti.WireMask(shape)
    kept.update(mask, Box((0, 0, 0), shape))
    kept.gz()
    box = Box((100, 200, 200), (140, 260, 260))

    def click() -> bytes:
        kept.update(mask, box)
        return kept.gz(avoid=(b"\r\n\r\n",))

    peer = best(lambda: nib.Nifti1Image(mask, np.eye(4)).to_bytes(), 1)
    print(f"{'wire mask':18} {'isocenter, whole':22} {whole:7.3f} s;  after a click {best(click):.4f} s")
    print(f"{'wire mask':18} {'nibabel, not packed':22} {peer:7.3f} s  {peer / whole:6.1f} x ours")


def main() -> None:
    """Run all of it."""
    ct, mask = inputs()
    with tempfile.TemporaryDirectory() as folder:
        reading("CT", writing("CT", ct, Path(folder)))
        reading("mask", writing("mask", mask, Path(folder)))
    wire(mask)


if __name__ == "__main__":
    main()
