"""The parts of the demonstration, in the order in which they are shown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.cli.console import table, working
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.settings import settings
from isocenter.core.terminology import label
from isocenter.demo.robot import deepest, dice, next_click
from isocenter.demo.wire import BIOMEDPARSE, RefusedError, Wire

if TYPE_CHECKING:
    from rich.console import Console

    from isocenter.core.volume import Volume

Mask = NDArray[np.bool_]

#: A torso of 2 x 2 x 3 mm: fine enough for a picture, quick to make.
SHAPE = (128, 192, 192)
#: What is clicked in the phantom (names of its truth), and how often.
CLICKED, CLICKS = ("lesion_1", "kidney_left", "spleen"), 5
#: What is clicked in a scan of one's own: the first of these that words found there.
WORTH_A_CLICK = ("liver", "spleen", "kidney_left", "kidney_right", "lung_left", "lung_right", "bone", "body")
#: Words that cover most of the picture: written, but not painted over the others.
COVERING = ("body", "fat", "muscle", "air", "lungs")


class Show:
    """The demonstration on its way: the scan, its truth where known, and what was found."""

    volume: Volume
    scan: Path

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder
        self.truth: dict[str, Mask] = {}
        self.found: dict[str, Mask] = {}
        self.clicked: dict[str, Mask] = {}
        self._first_click = ""
        self._part = 0

    def heading(self, text: str) -> None:
        """Start a part."""
        self._part += 1
        self.console.print(f"\n[bold cyan]{self._part}[/bold cyan]  [bold]{text}[/bold]")

    def open(self, source: Path | None) -> None:
        """The phantom, or a scan of one's own; written as NIfTI, which every protocol here takes."""
        self.heading("The scan")
        if source is None:
            from isocenter.core.phantom import phantom

            with working("Making a CT phantom"):
                made = phantom(SHAPE)
            self.volume, self.truth = made.volume, made.masks
            self.console.print("   A made-up CT of a torso: its truth is known exactly, so every mask can be checked.")
        else:
            from isocenter.io import door

            with working("Reading the scan"):
                self.volume = door.read_path(source, limits=settings())
            for note in self.volume.source.notes:
                self.console.print(f"   {note}", markup=False)
        from isocenter.io import write

        z, y, x = self.volume.shape
        spacing = " x ".join(f"{s:.3g}" for s in self.volume.spacing)
        self.scan = self.folder / "scan.nii.gz"
        self.scan.write_bytes(write.encode_image(self.volume, ".nii.gz"))
        self.console.print(f"   {x} x {y} x {z} voxels of {spacing} mm, {self.volume.modality or 'modality unknown'}")

    def words(self, wire: Wire) -> None:
        """Words to masks over BiomedParse's protocol."""
        self.heading("By words")
        self.console.print(f"   POST {BIOMEDPARSE}/predict-3d-nifti", markup=False)
        wanted = [w for w in wire.labels() if not self.truth or w in self.truth]
        started = time.perf_counter()
        try:
            with working("Asking for " + ", ".join(wanted)):
                answers = wire.find(self.scan, wanted, self.volume.modality)
        except RefusedError as error:
            # No words for this kind of scan: that is an answer, and clicks work on any.
            self.console.print(f"   {error.message}", markup=False)
            return
        seconds = time.perf_counter() - started
        rows = []
        for word in answers:
            mask = word.mask != 0
            self.found[word.prompt] = mask
            rows.append((word.prompt, *self._judged(word.prompt, mask), f"{word.presence:.2f}"))
        columns = ("Word", "Volume", "Truth", "Dice", "Presence") if self.truth else ("Word", "Volume", "Presence")
        self._table(columns, rows)
        self.console.print(f"   {len(rows)} structures in {seconds:.1f} s, by the model '{answers[0].model}', which needs no weights")

    def clicks(self, wire: Wire) -> None:
        """Clicks to masks over MONAI Label's protocol, by a robot that knows the truth where there is one."""
        self.heading("By clicks")
        self.console.print("   POST /infer/segmentation", markup=False)
        wire.begin(self.scan)
        rows = []
        for name, target in self._targets().items():
            with working(f"Clicking on {name}"):
                rows.append((name, *self._click(wire, name, target)))
        counts = ("1 click", "3 clicks", f"{CLICKS} clicks") if self.truth else ("1 click",)
        self._table(("Structure", *(f"Dice, {c}" if self.truth else f"Volume, {c}" for c in counts), "Time per click"), rows)

    def _targets(self) -> dict[str, Mask]:
        if self.truth:
            return {name: self.truth[name] for name in CLICKED if self.truth[name].any()}
        for name in WORTH_A_CLICK:
            if name in self.found and self.found[name].any():
                return {name: self.found[name]}
        middle = np.zeros(self.volume.shape, bool)
        z, y, x = (n // 2 for n in self.volume.shape)
        middle[z, y, x] = True
        return {"middle": middle}

    def _click(self, wire: Wire, name: str, target: Mask) -> tuple[str, ...]:
        """Click on one structure; Dice after 1, 3 and 5 clicks, or the volume after one, and the median time."""
        from isocenter.io import door

        prompts: dict[str, list[list[int]]] = {"pos_points": [], "neg_points": []}
        mask = np.zeros(self.volume.shape, bool)
        scores, times, path = [], [], self.folder / f"click-{name}.nii.gz"
        for _ in range(CLICKS if self.truth else 1):
            voxel, positive = next_click(target, mask, self.volume.spacing_zyx) if self.truth else (deepest(target, self.volume.spacing_zyx), True)
            prompts["pos_points" if positive else "neg_points"].append([int(v) for v in reversed(voxel)])
            answer = wire.click(self.scan, prompts)
            path.write_bytes(answer.nifti)
            mask = door.read_path(path, limits=settings()).array != 0
            times.append(answer.seconds)
            scores.append(dice(mask, target))
        self._first_click = self._first_click or ",".join(str(v) for v in prompts["pos_points"][0])
        self.clicked[name] = mask
        median = f"{1000 * float(np.median(times)):.0f} ms"
        if not self.truth:
            return f"{self._millilitres(mask):.1f} ml", median
        return (*(f"{scores[n - 1]:.2f}" for n in (1, 3, CLICKS)), median)

    def keep(self) -> None:
        """Write every mask, and a picture of them."""
        from isocenter.io import preview, write

        self.heading("What you got")
        for name, mask in self.found.items():
            (self.folder / f"word-{name}.nii.gz").write_bytes(write.encode(self._drawn({name: mask}), ".nii.gz", self.volume))
        painted = {**self.clicked, **{n: m for n, m in self.found.items() if n not in COVERING}}
        (self.folder / "picture.png").write_bytes(preview.png(self.volume, self._drawn(painted)))
        self.console.print(f"   {self.folder / 'picture.png'}  the masks on the scan", markup=False)
        self.console.print(f"   {self.folder / 'word-*.nii.gz'}, click-*.nii.gz  one mask each, on the scan's own grid", markup=False)
        self.console.print(f"   {self.scan}  the scan", markup=False)

    def by_hand(self, wire: Wire) -> None:
        """The lines that do the same without this program."""
        self.heading("Do it yourself")
        scan = self.scan
        point = self._first_click or "0,0,0"
        params = f'{{"nninter": true, "pos_points": [[{point}]]}}'
        lines = (
            f"curl {wire.base}/",
            f"curl -F file=@{scan} -F prompts=lungs -F prompts=bone {wire.base}{BIOMEDPARSE}/predict-3d-nifti",
            f"curl -F file=@{scan} -F 'params={params}' '{wire.base}/infer/segmentation?output=image' -o mask.nii.gz",
            f"isocenter segment -i {scan} -o out --text lungs",
            f"isocenter segment -i {scan} -o out --point {point}",
        )
        for line in lines:
            self.console.print(f"   {line}", markup=False, soft_wrap=True)
        self.console.print(f"   {wire.base}/docs  all routes, to try out in the browser", markup=False)

    def _drawn(self, masks: dict[str, Mask]) -> Segmentation:
        """Masks as one label map; earlier ones win where they overlap."""
        drawn = np.zeros(self.volume.shape, np.uint8)
        labels: list[Label] = []
        for value, (name, mask) in enumerate(masks.items(), start=1):
            drawn[mask & (drawn == 0)] = value
            labels.append(label("lesion" if name.startswith("lesion") else name, value))
        return Segmentation(drawn, self.volume.grid, tuple(labels), Provenance("demo", "1", self.volume.key))

    def _judged(self, name: str, mask: Mask) -> tuple[str, ...]:
        size = f"{self._millilitres(mask):,.0f} ml".replace(",", " ")
        if not self.truth:
            return (size,)
        truth = self.truth[name]
        return size, f"{self._millilitres(truth):,.0f} ml".replace(",", " "), f"{dice(mask, truth):.3f}"

    def _millilitres(self, mask: Mask) -> float:
        return float(np.count_nonzero(mask)) * self.volume.grid.voxel_mm3 / 1000

    def _table(self, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        table(columns, rows, numbers=range(1, len(columns)), indent=3)
