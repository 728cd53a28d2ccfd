"""The parts of the demonstration, in the order in which they are shown."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isocenter.cli.chosen import settings
from isocenter.cli.console import table, working
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.terminology import label
from isocenter.demo.robot import dice, next_click
from isocenter.demo.wire import BIOMEDPARSE, RefusedError, Wire

if TYPE_CHECKING:
    from rich.console import Console

    from isocenter.core.volume import Volume

Mask = NDArray[np.bool_]

#: A torso of 2.4 x 2.4 x 3.4 mm: fine enough for a picture, quick to make.
SHAPE = (112, 160, 160)
#: What is clicked in the phantom: names of its truth.
CLICKED = ("lesion_1", "kidney_left", "spleen")
#: After how many clicks the result is shown; the last is how many there are.
_SHOWN = (1, 3, 5)
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
        self._models: dict[str, str] = {}
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
                self._paragraph(note)
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
            if self.truth or error.status >= 500:
                raise
            # No words for this kind of scan: that is an answer, and clicks work on any.
            self._paragraph(error.message)
            return
        seconds = time.perf_counter() - started
        rows = []
        for word in answers:
            mask = word.mask != 0
            self.found[word.prompt], self._models[word.prompt] = mask, word.model
            rows.append((word.prompt, *self._judged(word.prompt, mask), f"{word.presence:.2f}"))
        columns = ("Word", "Volume", "Truth", "Dice", "Presence") if self.truth else ("Word", "Volume", "Presence")
        self._table(columns, rows)
        self.console.print(f"   {len(rows)} structures in {seconds:.1f} s, by the model '{answers[0].model}'")

    def clicks(self, wire: Wire) -> None:
        """Clicks to masks over MONAI Label's protocol, by a robot that knows what it wants."""
        self.heading("By clicks")
        self.console.print("   POST /infer/segmentation", markup=False)
        wire.begin(self.scan)
        rows = []
        for name, target in self._targets().items():
            with working(f"Clicking on {name}"):
                rows.append((name, *self._click(wire, name, target)))
        shown = [f"{n} click{'s' if n > 1 else ''}" for n in _SHOWN]
        self._table(("Structure", *(f"Dice, {s}" if self.truth else s for s in shown), "Time per click"), rows)

    def _targets(self) -> dict[str, Mask]:
        """What to click on: in the phantom its truth, in other scans what words found, or else whatever lies in the middle."""
        if self.truth:
            return {name: self.truth[name] for name in CLICKED if self.truth[name].any()}
        for name in WORTH_A_CLICK:
            if name in self.found and self.found[name].any():
                return {name: self.found[name]}
        middle = np.zeros(self.volume.shape, bool)
        middle[tuple(n // 2 for n in middle.shape)] = True
        return {"middle": middle}

    def _click(self, wire: Wire, name: str, target: Mask) -> tuple[str, ...]:
        """Click on one structure; Dice (or the volume, without a truth) after some of the clicks, and the median time."""
        from isocenter.io import door

        prompts: dict[str, list[list[int]]] = {"pos_points": [], "neg_points": []}
        mask = np.zeros(self.volume.shape, bool)
        times, shown, path = [], [], self.folder / f"click-{name}.nii.gz"
        for count in range(1, max(_SHOWN) + 1):
            voxel, positive = next_click(target, mask, self.volume.spacing_zyx)
            prompts["pos_points" if positive else "neg_points"].append([int(v) for v in reversed(voxel)])
            answer = wire.click(self.scan, prompts)
            path.write_bytes(answer.nifti)
            mask = door.read_path(path, limits=settings()).array != 0
            times.append(answer.seconds)
            if count in _SHOWN:
                shown.append(f"{dice(mask, target):.2f}" if self.truth else self._size(mask))
            if name == "middle":
                break  # nobody knows where its boundary is, so there is no second place to click at
        self._first_click = self._first_click or ",".join(str(v) for v in prompts["pos_points"][0])
        self.clicked[name], self._models[name] = mask, answer.model
        missing = ["-"] * (len(_SHOWN) - len(shown))
        return (*shown, *missing, f"{1000 * float(np.median(times)):.0f} ms")

    def keep(self) -> None:
        """Write every mask, and a picture of them."""
        from isocenter.io import preview, write

        self.heading("What you got")
        names = ["scan.nii.gz", *(f"click-{name}.nii.gz" for name in self.clicked)]
        for name, mask in self.found.items():
            names.append(f"word-{name}.nii.gz")
            (self.folder / names[-1]).write_bytes(write.encode(self._drawn({name: mask}), ".nii.gz", self.volume))
        self._paragraph("Masks on the scan's own grid, and pictures of them:")
        painted = {name: mask for name, mask in self.found.items() if name not in COVERING}
        for picture, masks in (("words.png", painted), ("clicks.png", self.clicked)):
            if masks:
                (self.folder / picture).write_bytes(preview.png(self.volume, self._drawn(masks)))
                self._paragraph(str(self.folder / picture))
        self._paragraph(f"{self.folder}/ {', '.join(names)}")

    def follow(self) -> None:
        """A second patient over five visits, whose lesions' true volumes are known, to a report."""
        from isocenter.demo.patient import SHAPE as SMALL
        from isocenter.demo.patient import write_study
        from isocenter.service import Service
        from isocenter.trackservice import TrackOptions, track

        self.heading("A patient over time")
        place = self.folder / "patient"
        with working("Making five visits of a patient under treatment"):
            truths = write_study(place, shape=SMALL, masks=True)
        service = Service(settings())
        started = time.perf_counter()
        try:
            with working("Following two lesions from visit to visit"):
                case = track(service, place, place / "report", options=TrackOptions(preprocessed=False))
        finally:
            service.close()
        judged = {r.day: str(r.category) for r in case.responses["recist_1.1"]}
        rows: list[tuple[str, ...]] = []
        for truth in truths:
            visit = next(v for v in case.visits if v.timepoint.day == truth.day)
            lesions = case.at(visit.timepoint.timepoint_id)
            volume = sum(lesion.volume_mm3 or 0 for lesion in lesions) / 1000
            total = sum(lesion.longest_mm or 0 for lesion in lesions)
            true = f"{sum(truth.volumes_mm3) / 1000:.1f} ml"
            rows.append((f"day {truth.day:g}", f"{volume:.1f} ml", true, f"{total:.1f} mm", judged.get(truth.day, "baseline")))
        self._table(("Visit", "Volume", "Truth", "Sum of diameters", "RECIST 1.1"), rows)
        path = next(g.forecast for g in case.growth if g.track == "total")
        if path is not None:
            low, middle, high = (v[-1] / 1000 for v in (path.low_mm3, path.median_mm3, path.high_mm3))
            self._paragraph(f"Forecast for day {path.days[-1]:g}: {middle:.1f} ml, between {low:.1f} and {high:.1f} ml ({100 * path.level:.0f} %)")
        self._paragraph(f"{place / 'report' / 'report.html'}  the report, in {time.perf_counter() - started:.1f} s")

    def by_hand(self, wire: Wire) -> None:
        """The lines that do the same without this program."""
        self.heading("Do it yourself")
        scan = shlex.quote(str(self.scan))
        point = self._first_click or "0,0,0"
        params = f'{{"nninter": true, "pos_points": [[{point}]], "result_space": "world"}}'
        curl = "curl -H X-API-Key:$ISOCENTER_API_KEY" if settings().api_key else "curl"
        word = next((name for name, mask in self.found.items() if mask.any() and name not in COVERING), "bone")
        lines = (
            f"{curl} {wire.base}/info/",
            f"{curl} -F file=@{scan} -F prompts={word} {wire.base}{BIOMEDPARSE}/predict-3d-nifti",
            f"{curl} -F file=@{scan} -F 'params={params}' '{wire.base}/infer/segmentation?output=image' -o mask.nii.gz",
            f"isocenter segment -i {scan} -o out --text {word}",
            f"isocenter segment -i {scan} -o out --point {point}",
            *([f"isocenter track {shlex.quote(str(self.folder / 'patient'))} -o report"] if self.truth else []),
        )
        for line in lines:
            self.console.print(f"   {line}", markup=False, soft_wrap=True)
        self.console.print(f"   {wire.base}/docs  all routes, to try out in the browser", markup=False)

    def _paragraph(self, text: str) -> None:
        """Print a sentence, indented on every line that it takes."""
        from rich.padding import Padding
        from rich.text import Text

        self.console.print(Padding(Text(text), (0, 0, 0, 3), expand=False))

    def _drawn(self, masks: dict[str, Mask]) -> Segmentation:
        """Masks as one label map, by the model that made the first; earlier ones win where they overlap."""
        from isocenter.models import registry

        model = self._models[next(iter(masks))]
        drawn = np.zeros(self.volume.shape, np.uint8)
        labels: list[Label] = []
        for value, (name, mask) in enumerate(masks.items(), start=1):
            drawn[mask & (drawn == 0)] = value
            labels.append(label("lesion" if name.startswith("lesion") else name, value))
        return Segmentation(drawn, self.volume.grid, tuple(labels), Provenance(model, registry.spec(model).version, self.volume.key))

    def _judged(self, name: str, mask: Mask) -> tuple[str, ...]:
        if not self.truth:
            return (self._size(mask),)
        truth = self.truth[name]
        return self._size(mask), self._size(truth), f"{dice(mask, truth):.3f}"

    def _size(self, mask: Mask) -> str:
        """Volume of a mask in words."""
        millilitres = float(np.count_nonzero(mask)) * self.volume.grid.voxel_mm3 / 1000
        if not millilitres:
            return "empty"
        return f"{millilitres:,.0f} ml".replace(",", " ") if millilitres >= 100 else f"{millilitres:.1f} ml"

    def _table(self, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        table(columns, rows, numbers=range(1, len(columns)), indent=3)
