"""The steps of `isocenter track` on one scan of 512 x 512 x 300, each beside its target and other people's code: `python -m benchmarks.track`.

Wall and processor seconds, medians of turns; memory in processes of its own. Names pick some: `python -m benchmarks.track resample growth`.
Targets are a fifth of what the reference design allows a scan on a CPU. Says how busy the machine was: under load look at processor seconds.
`study` runs the whole command on five visits that came as DICOM with masks (some minutes are spent on making them), then once more on the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.dicom import write_series
from benchmarks.volumes import timed
from isocenter.core.settings import Limits
from isocenter.core.volume import Volume

SHAPE = (300, 512, 512)
#: seconds a scan
TARGETS = {"convert": 2.0, "resample": 1.0, "window": 0.4, "measure": 0.2, "growth": 0.4, "update": 0.1, "counterfactual": 0.2}
#: seconds a scan for all steps together
WHOLE = 30.0


def scan() -> Volume:
    """Noise over a gradient, 0.75 x 0.75 x 1 mm."""
    noise = np.random.default_rng(1).integers(-60, 60, SHAPE, dtype=np.int16)
    return Volume(
        noise + np.linspace(-900, 200, SHAPE[1]).astype(np.int16)[None, :, None], spacing=(0.75, 0.75, 1.0), modality="CT", unit="HU", key="-"
    )


def lesions_mask() -> NDArray[np.uint8]:
    """Five lesions of 10 to 50 mm."""
    mask = np.zeros(SHAPE, np.uint8)
    for k, (centre, radius) in enumerate(
        (((60, 100, 120), 7), ((120, 300, 200), 14), ((180, 200, 400), 20), ((220, 400, 300), 27), ((260, 100, 350), 33))
    ):
        box = tuple(slice(max(0, c - radius), c + radius + 1) for c in centre)
        z, y, x = np.ogrid[box]
        mask[box][((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) <= radius**2] = k + 1
    return mask


def show(step: str, times: dict[str, tuple[float, float]]) -> None:
    """One line for each of those compared, the first is ours. A target is kept by the clock, or, where others held the cores, by processor time."""
    for k, (name, (wall, cpu)) in enumerate(times.items()):
        target = f"{TARGETS[step]:g}" if k == 0 else ""
        verdict = ("yes" if min(wall, cpu) <= TARGETS[step] else "NO") if k == 0 else ""
        print(f"| {step if k == 0 else ''} | {name} | {wall:.3f} | {cpu:.3f} | {target} | {verdict} |", flush=True)


def convert() -> None:
    """DICOM to .nii.gz."""
    from isocenter.io import door, write

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "series"
        folder.mkdir()
        write_series(folder, SHAPE[0], SHAPE[1], SHAPE[2])

        def ours() -> None:
            (Path(place) / "ours.nii.gz").write_bytes(write.encode_image(door.read_path(folder, limits=Limits()), ".nii.gz"))

        def simpleitk() -> None:
            import SimpleITK as sitk

            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
            sitk.WriteImage(reader.Execute(), str(Path(place) / "theirs.nii.gz"))

        ours()
        show("convert", timed({"isocenter": ours, "SimpleITK": simpleitk}, times=2))


def _resamplers(volume: Volume) -> dict[str, Callable[[], object]]:
    """To cubes of 1 mm, linear, float32."""
    from isocenter.analysis.preprocess import isotropic, resampled
    from isocenter.followup.files import save_preprocessed

    grid = isotropic(volume.grid, 1.0)

    def simpleitk() -> object:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(2)
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing(volume.spacing)
        z, y, x = grid.shape
        done = sitk.Resample(
            image, (x, y, z), sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, image.GetDirection(), 0.0, sitk.sitkFloat32
        )
        return sitk.GetArrayFromImage(done)

    def scipy() -> object:
        from scipy.ndimage import zoom

        return zoom(volume.array, [n / m for n, m in zip(grid.shape, volume.shape, strict=True)], np.float32, order=1, mode="nearest", grid_mode=True)

    def monai() -> object:
        import torch
        from monai.data import MetaTensor
        from monai.transforms import Spacing

        array = torch.from_numpy(np.array(volume.array, dtype=np.float32))[None]
        return Spacing(pixdim=(1.0, 1.0, 1.0), mode="bilinear")(MetaTensor(array, affine=torch.diag(torch.tensor([1.0, 0.75, 0.75, 1.0]))))

    def to_file() -> None:
        with tempfile.TemporaryDirectory() as place:
            save_preprocessed(Path(place) / "x.safetensors", volume, spacing_mm=1.0)

    return {
        "isocenter": lambda: resampled(volume, grid),
        "isocenter, windowed and to a file": to_file,
        "SimpleITK, 2 threads": simpleitk,
        "scipy": scipy,
        "MONAI Spacing": monai,
    }


def resample() -> None:
    """And the memory of it, against input and output together."""
    works = _resamplers(scan())
    for work in works.values():
        work()
    show("resample", timed(works, times=2))
    from isocenter.analysis.preprocess import isotropic

    limit = (np.prod(SHAPE) * 2 + isotropic(scan().grid, 1.0).voxels * 4) / 1e6
    print(f"\nPeak memory of resampling beyond the imports; input and output are {limit:.1f} MB together:")
    for name in works:
        told = subprocess.run([sys.executable, "-m", "benchmarks.track", "--memory", name], capture_output=True, text=True, check=True)
        print(f"- {name}: {told.stdout.strip()} MB")
    print()


def memory_of(name: str) -> None:
    """Peak of this process for one of the resamplers, its scan counted."""
    small = Volume(np.zeros((8, 8, 8), np.int16), spacing=(0.75, 0.75, 1.0), modality="CT", unit="HU", key="-")
    _resamplers(small)[name]()
    before = _resident()
    # Made without more memory than it takes, so that the peak is the resampler's.
    volume = Volume(np.full(SHAPE, 7, np.int16), spacing=(0.75, 0.75, 1.0), modality="CT", unit="HU", key="-")
    _resamplers(volume)[name]()
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
    print(f"{peak - before:.1f}")


def _resident() -> float:
    """MB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def window() -> None:
    """Of the resampled scan: subtract, scale, clip, in place."""
    from isocenter.analysis.preprocess import isotropic, resampled, windowed

    volume = scan()
    array = resampled(volume, isotropic(volume.grid, 1.0))

    def monai() -> object:
        from monai.transforms import ScaleIntensityRange

        return ScaleIntensityRange(-160, 240, 0.0, 1.0, clip=True)(array)

    show("window", timed({"isocenter": lambda: windowed(array, 40, 400), "MONAI ScaleIntensityRange": monai}))


def measure() -> None:
    """All figures of five lesions, and their vectors of appearance."""
    from isocenter.analysis import appearance
    from isocenter.analysis.lesions import measure_lesion
    from isocenter.analysis.report.scans import each_lesion

    volume, mask = scan(), lesions_mask()

    def ours() -> None:
        for _, box, inside in each_lesion(mask, volume.grid, 30.0):
            size = measure_lesion(inside, box, volume.grid, volume)
            appearance.vector(inside, box, size, volume)

    def simpleitk() -> object:
        import SimpleITK as sitk

        found = sitk.LabelIntensityStatisticsImageFilter()
        found.Execute(sitk.ConnectedComponent(sitk.GetImageFromArray(mask)), sitk.GetImageFromArray(volume.array))
        return [(found.GetPhysicalSize(k), found.GetMean(k)) for k in found.GetLabels()]

    ours()
    show("measure", timed({"isocenter, with surface, calipers and vectors": ours, "SimpleITK, volumes and intensities": simpleitk}, times=2))


def growth() -> None:
    """All six laws, the update after a visit, one counterfactual."""
    import math

    from scipy.optimize import curve_fit

    from isocenter.analysis.growth.fit import fit_growth
    from isocenter.analysis.growth.forecast import forecast
    from isocenter.analysis.growth.scenarios import simulate
    from isocenter.analysis.growth.series import Series
    from isocenter.analysis.growth.therapy import Therapy
    from isocenter.analysis.warm import warm

    warm()
    days, volumes = [0.0, 40, 90, 150, 210, 260], [500.0, 900, 1400, 800, 500, 450]
    therapies = [Therapy("chemotherapy", 95.0, math.inf)]

    def fit() -> object:
        return fit_growth(Series.of(days, volumes), therapies)

    def update() -> None:
        series = Series.of(days, volumes)
        forecast(
            series,
            [300.0],
            therapies=therapies,
            effects_per_day={"chemotherapy": fit_growth(series, therapies).best.parameters["effect:chemotherapy"]},
        )

    known = fit_growth(Series.of(days, volumes), therapies)
    ahead = list(np.linspace(261.0, 400.0, 20))
    simulate(known, "earlier_treatment_2w", ahead)  # draws are made once

    def scipy() -> object:
        """A Gompertz alone, no treatment, one start."""
        return curve_fit(lambda t, a, r, k: k + (a - k) * np.exp(-r * t), days, np.log(volumes), p0=(6.0, 0.01, 7.0), maxfev=5000)

    show("growth", timed({"isocenter, six laws with treatment": fit, "scipy curve_fit, one law without": scipy}))
    show("update", timed({"isocenter, fits and forecast": update}))
    show("counterfactual", timed({"isocenter": lambda: simulate(known, "earlier_treatment_2w", ahead)}))


def study() -> None:
    """`isocenter track` on five DICOM visits of 512 x 512 x 300 with masks of two lesions: first, and again with nothing changed."""
    from isocenter.demo.patient import DAYS
    from tests.dicom_study import write_dicom_study

    with tempfile.TemporaryDirectory() as place:
        source = Path(os.environ.get("ISOCENTER_BENCH_STUDY") or place) / "study"
        if not source.is_dir():
            # In a process of its own: what a process held before it started another one counts in that one's peak.
            making = get_context("spawn").Process(target=write_dicom_study, args=(source, DAYS, SHAPE))
            making.start()
            making.join()
        print(f"| `isocenter track`, {len(DAYS)} visits | wall s | processor s | a scan, wall s | target s a scan | peak MB | kept |")
        print("|---|---|---|---|---|---|---|")
        for name in ("first", "again, nothing changed", "again, `-f all`"):
            more = ["-f", "all"] if name.endswith("all`") else []
            command = [sys.executable, "-m", "isocenter", "track", str(source), "-o", str(Path(place) / "out"), *more]
            wall, cpu, peak = _ran(command)
            kept = "yes" if min(wall, cpu) / len(DAYS) <= WHOLE else "NO"
            print(f"| {name} | {wall:.1f} | {cpu:.1f} | {wall / len(DAYS):.1f} | {WHOLE:g} | {peak:.0f} | {kept} |", flush=True)


def _ran(command: list[str]) -> tuple[float, float, float]:
    """Wall and processor seconds of a command, and its peak in MB; what it said, where it failed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


STEPS = {work.__name__: work for work in (convert, resample, window, measure, growth)}


def main() -> None:
    """All steps, or those named."""
    if sys.argv[1:2] == ["--memory"]:
        memory_of(sys.argv[2])
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}\n")
    asked = sys.argv[1:] or [study.__name__, *STEPS]
    if study.__name__ in asked:  # first: a child's peak is counted from what its parent held when it began
        study()
    print("\n| step | by | wall s | processor s | target s | kept |\n|---|---|---|---|---|---|")
    for name in asked:
        if name in STEPS:
            STEPS[name]()


if __name__ == "__main__":
    main()
