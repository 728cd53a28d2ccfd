"""nnU-Net v2: any trained-model folder, so also every task of TotalSegmentator, answering its whole label map.

For folders as nnU-Net v2 writes and publishes them (`plans.json`, `dataset.json`, `fold_*/checkpoint_final.pth`, or the
weights as safetensors), with one input image: 2d, 3d_lowres and 3d_fullres configurations, one fold or several averaged,
labels or nested regions, PlainConvUNet and ResidualEncoderUNet. Pickled weights are read with `weights_only=True` alone.
Class names come from `dataset.json`, or from the catalog where it names every label; words are understood by both.

nnU-Net does not turn scans into one orientation unless its reader does: what a network knows of left and right depends on
how its training data lay. A reader that reorients, the option `orientation` of the catalog or a key "orientation" in
`dataset.json` say so, and scans are turned into it and masks back, exactly. TotalSegmentator's networks were trained on
"RAS". Where nobody says, the scan goes in as it is stored, as nnU-Net itself does, and the answer has a note.

A folder of several networks that know different structures is one model where the catalog says `parts`: TotalSegmentator's
`total` consists of five.

Not supported, and refused with a sentence: networks of several input images, second stages of cascades, trainers with
networks of their own (Primus, MedNeXt). `postprocessing.pkl` is not read. Published weights were not at hand: what was
tried are networks trained here, random ones of both kinds and files as nnU-Net's trainer writes them; that the
published ones of TotalSegmentator and of the decathlon (liver, lung) load is expected and was not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError, UnsupportedError, UsageError
from isocenter.core.geometry import reorient, restore
from isocenter.core.model import QUIET, LabelMap, ModelContext, ModelSpec, Run, Task
from isocenter.core.segmentation import Label
from isocenter.core.volume import Volume
from isocenter.models import _weights
from isocenter.models._nnunet import folder as _folder

if TYPE_CHECKING:
    from isocenter.models._nnunet.folder import Trained
    from isocenter.models._nnunet.network import Network

_CITATION = "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature Methods 2021"
#: What a request may change, with its defaults. orientation "" is the network's own.
_OPTIONS: Mapping[str, Any] = {"mirror": True, "step": 0.5, "orientation": ""}


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The spec of a trained-model folder; it may lie one or two folders below, as archives have it.

    entry.options: configuration, folds, orientation, mirror, step, synonyms, and `parts` for a folder of several networks whose
    answers are one. Raises `ModelError` for an unusable folder.
    """
    known = dict(entry.options) if entry else {}
    parts = _folder.read_all(folder, known)
    names = list(entry.labels) if entry else []
    trained, labels = parts[0], _folder.joined(parts, names)
    checkpoints = [path for part in parts for path in part.checkpoints]
    sizes = [[path.stat().st_size for path in part.checkpoints] for part in parts]
    # All folds are kept in memory and one of them in the network besides.
    resident = sum(sum(size) + sum(size) // len(size) for size in sizes)
    scratch = max(_folder.scratch_bytes(part) for part in parts)
    options = {name: known.get(name, default) for name, default in _OPTIONS.items()} | {"orientation": trained.orientation or ""}
    kept = {name: known[name] for name in ("configuration", "folds", "parts") if name in known} | ({"names": names} if names else {})
    return ModelSpec(
        id=entry.id if entry else folder.name,
        version=(entry.revision[:12] if entry else "") or "1",
        task=Task.SEGMENT,
        factory="isocenter.models.nnunet:NNUNet",
        description=(entry.description if entry else "") or f"nnU-Net {trained.name} with {len(labels)} labels",
        modalities=(trained.modality,) if trained.modality else (),
        dimensions=(2, 3),
        labels=labels,
        synonyms=_synonyms(labels) | _own_names(parts, labels) | dict(known.get("synonyms") or {}),
        options=options | kept,
        licence=(entry.licence if entry else "") or "unknown",
        citation=(entry.citation if entry else "") or _CITATION,
        weights_sha256=_weights.sha256(checkpoints),
        weights_bytes=sum(map(sum, sizes)),
        weights=folder,
        packages=("torch", "nnunetv2"),
        resident_bytes=dict.fromkeys(("float32", "bfloat16", "float16"), resident),
        scratch_bytes={"float32": scratch, "bfloat16": scratch, "float16": scratch},
        devices=("cpu", "cuda", "mps"),
        together=all(len(part.configuration["patch_size"]) == 2 for part in parts),
    )


def _synonyms(labels: tuple[Label, ...]) -> dict[str, str]:
    """TotalSegmentator's "lung_upper_lobe_left" is a part of the left lung, but "kidney_left" is also asked for as plain "left kidney"."""
    found = {}
    for label in labels:
        name, _, side = label.name.rpartition("_")
        if name and side in ("left", "right"):
            found[f"{side} {name.replace('_', ' ')}"] = label.name
    return found


def _own_names(parts: tuple[Trained, ...], labels: tuple[Label, ...]) -> dict[str, str]:
    """The folder's own words for labels that the catalog calls otherwise; none that is another label's name."""
    taken = {label.name for label in labels}
    own = zip(_folder.joined(parts), labels, strict=True)
    return {was.name.replace("_", " "): label.name for was, label in own if was.name != label.name and was.name not in taken}


@dataclass(frozen=True)
class _Asked:
    mirror: bool
    step: float
    orientation: str


class NNUNet:
    """One trained model, or several that are parts of one. For one caller at a time."""

    def __init__(self) -> None:
        self._networks: tuple[Network, ...] = ()
        self._context = ModelContext()
        self._defaults: dict[str, Any] = {}

    def load(self, context: ModelContext) -> None:
        """Read plans and weights and build the network. Raises `ModelError`."""
        try:
            import torch

            from isocenter.models._nnunet import network
        except ImportError:
            raise ModelError("nnU-Net's library is not installed here; install it with: pip install 'isocenter[torch,nnunet]'") from None
        self._context = context
        self._defaults = dict(context.spec.options) if context.spec else {}
        if context.device == "cpu":
            torch.set_num_threads(max(1, context.threads))
        self._networks = tuple(network.build(part) for part in _folder.read_all(context.weights, self._defaults))

    def close(self) -> None:
        """Give its memory back."""
        self._networks = ()

    def segment(self, volume: Volume, *, options: Mapping[str, Any] | None = None, run: Run = QUIET) -> LabelMap:
        """All its labels. options: `mirror` (average over flips, where training allowed it), `step` (of the tiles, 0..1) and
        `orientation` (three letters; "stored" for the scan as it is).

        The tiles' size is part of the network; `run.batch` tiles are computed at once (1 by default, as nnU-Net does). Of several
        parts each answers by itself; where two claim a voxel it is the later one's, as TotalSegmentator has it.
        Raises `UnsupportedError` for a modality that it was not trained on, `UsageError` for an option that it does not know.
        """
        return self._segment([volume], options or {}, run)[0]

    def segment_pictures(self, volumes: Sequence[Volume], *, options: Mapping[str, Any] | None = None, run: Run = QUIET) -> list[LabelMap]:
        """For each volume of one slice what `segment` says of it alone; a 2-D network sees those of one size together.

        Raises as `segment`, for all of them.
        """
        return self._segment(volumes, options or {}, run)

    def _segment(self, volumes: Sequence[Volume], options: Mapping[str, Any], run: Run) -> list[LabelMap]:
        if not self._networks:
            raise ModelError("the model is not loaded")
        trained = self._networks[0].trained
        labels = _folder.joined([network.trained for network in self._networks], self._defaults.get("names") or ())
        asked = self._asked(options)
        kind = np.uint8 if max(label.value for label in labels) < 256 else np.uint16
        answers = [LabelMap(np.zeros(volume.shape, kind), labels, notes=_notes(volume, trained, asked)) for volume in volumes]
        scans, shown = [], []
        for number, volume in enumerate(volumes):
            if not np.any(volume.array):
                answers[number] = replace(answers[number], notes=(*answers[number].notes, "the scan holds nothing but zeros"))
                continue
            target = asked.orientation or volume.grid.orientation
            array = np.array(reorient(volume.array, volume.grid, target), dtype=np.float32)
            if not np.isfinite(array).all():
                raise UnsupportedError("the scan holds voxels that are not finite numbers; replace them first")
            # A grid of the turned spacing: the axes of `reorient`, in (z, y, x).
            scans.append((array, [float(volume.spacing_zyx[axis]) for axis in _axes(volume, target)]))
            shown.append((number, target))
        if not scans:
            return answers
        from isocenter.models._nnunet.predict import segment

        first = 1
        for part, network in enumerate(self._networks):
            found = segment(
                network,
                scans,
                device=self._context.device,
                precision=self._context.precision,
                mirror=asked.mirror,
                step=asked.step,
                run=_share(run, part, len(self._networks)),
            )
            # Of one network the numbers are the answer's own; of several each has those after its predecessor's.
            values = sorted(label.value for label in network.trained.labels)
            numbers = np.zeros(values[-1] + 1, kind)
            numbers[values] = values if len(self._networks) == 1 else np.arange(first, first + len(values))
            first += len(values)
            for (number, target), answer in zip(shown, found, strict=True):
                mine = restore(answer, volumes[number].grid, target)
                np.copyto(answers[number].mask, numbers[mine], where=mine != 0)
        return answers

    def _asked(self, options: Mapping[str, Any]) -> _Asked:
        merged = {**_OPTIONS, **self._defaults, **options}
        unknown = set(options) - set(_OPTIONS)
        if unknown:
            raise UsageError(f"'{min(unknown)[:40]}' is no option of this model; it takes: {', '.join(_OPTIONS)}")
        mirror, step, orientation = merged["mirror"], merged["step"], merged["orientation"]
        if not isinstance(mirror, bool):
            raise UsageError("mirror must be true or false")
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0.1 <= step <= 1:
            raise UsageError("step must be a number from 0.1 to 1")
        if orientation not in ("", "stored") and not _folder.is_orientation(orientation):
            raise UsageError('orientation must be three letters such as "RAS", or "stored" for the scan as it is')
        return _Asked(mirror, float(step), "" if orientation == "stored" else orientation)


def _share(run: Run, number: int, count: int) -> Run:
    """The part of a run's progress that one of several networks makes."""
    if count == 1:
        return run
    return Run(lambda done, message: run.progress((number + done) / count, f"part {number + 1} of {count}: {message}"), run.cancelled, run.batch)


def _axes(volume: Volume, target: str) -> tuple[int, int, int]:
    from isocenter.core.geometry import axes_towards

    return axes_towards(volume.grid, target)[0]


def _notes(volume: Volume, trained: Trained, asked: _Asked) -> tuple[str, ...]:
    """What the reader of the answer should know. Raises `UnsupportedError` for another modality."""
    notes = []
    if trained.modality and volume.modality not in (trained.modality, None):
        raise UnsupportedError(f"this network was trained on {trained.modality}, the scan is {volume.modality}; choose another model")
    if trained.modality and volume.modality is None:
        notes.append(f"nobody says what kind of scan this is; it was taken for {trained.modality}")
    if not asked.orientation:
        notes.append(
            f"nobody says how this network's training data lay; the scan went in as stored ({volume.grid.orientation}): check left and right"
        )
    if trained.regions:
        notes.append("the labels are nested regions; a voxel carries the innermost one's")
    return tuple(notes)
