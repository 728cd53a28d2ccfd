"""The use-cases, in the order in which they happen: open a scan, name or click what you want, take the mask away.

Everything here blocks and is meant for threads; `http/` calls it through the runtime's queue, the command line directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isocenter.core import terminology
from isocenter.core.errors import LimitError, PromptError, UsageError
from isocenter.core.geometry import onto
from isocenter.core.model import Finding, Interaction, ModelSpec, Prepared, Task
from isocenter.core.prompts import Box, MaskPrompt, Point, Prompt, Text, check_inside, rasterise
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Segmentation
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door, picture
from isocenter.io.upload import Upload
from isocenter.models import registry
from isocenter.models._kernel_cache import compile_ahead
from isocenter.runtime.runtime import Runtime
from isocenter.runtime.sessions import Session, Sessions
from isocenter.store.artifacts import ArtifactStore
from isocenter.store.volumes import VolumeStore

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """Text prompts answered: one finding a prompt, in order, and how they came about."""

    findings: tuple[Finding, ...]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Clicked:
    """A click answered. mask (z, y, x) is the session's own: copy or encode it before the session is let go.

    changed: the box outside of which nothing changed since this session's last answer.
    """

    mask: NDArray[np.uint8]
    changed: Box | None
    session: Session
    provenance: Provenance


class Service:
    """One Isocenter: its models, its caches and what can be done with them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.volumes = VolumeStore(settings.volume_cache_bytes)
        self.runtime = Runtime(workers=settings.workers, queue_size=settings.queue_size)
        self.sessions = Sessions(settings.session_cache_bytes, settings.session_ttl)
        self.artifacts = ArtifactStore(settings.home / "artifacts", ttl=settings.artifact_ttl)

    # 1. A scan comes in.

    def open(self, upload: Upload, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
        """The volume in an upload; decoded once, however often the same bytes come. `window`: see `picture.to_hounsfield`."""

        def read(modality: str | None) -> Volume:
            return door.read_upload(upload, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.read((upload.digest, upload.suffix, series_uid, modality, window), lambda: _windowed(read, modality, window))

    def known(self, upload: Upload) -> Volume | None:
        """The volume that `open` made of the same bytes before, if it is still here; nothing is decoded."""
        return self.volumes.find((upload.digest, upload.suffix, None, None, None))

    def open_path(self, path: Path, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
        """The volume in a file or a folder of this machine."""

        def read(modality: str | None) -> Volume:
            return door.read_path(path, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.put(_windowed(read, modality, window))

    # 2. Somebody names what they want ...

    def find(self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5, model: str | None = None) -> Found:
        """Masks for words, on the volume's own grid."""
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold must lie between 0 and 1, not {threshold}")
        spec = self._spec(model, Task.TEXT)
        started = time.perf_counter()
        with self.runtime.lease(spec) as lease:
            findings = tuple(lease.model.find(volume, list(prompts), threshold=threshold))
        seconds = {"infer": time.perf_counter() - started}
        notes = volume.source.notes + tuple(dict.fromkeys(n for f in findings for n in f.notes))
        return Found(findings, _provenance(spec, volume, [Text(p) for p in prompts], {"threshold": threshold}, seconds, notes))

    # ... or points at it, again and again ...

    def prepare(self, volume: Volume, model: str | None = None) -> Prepared:
        """Do ahead what depends on the volume alone, so that the first click is quick."""
        spec = self._spec(model, Task.INTERACTIVE)
        with self.runtime.lease(spec) as lease:
            return self._prepared(lease.model, spec, volume)

    @contextmanager
    def click(self, volume: Volume, prompts: Sequence[Prompt], *, owner: Hashable, model: str | None = None) -> Iterator[Clicked]:
        """The mask for all prompts said so far, in whatever order; the session is held until the block ends."""
        self._check(prompts, volume)
        spec = self._spec(model, Task.INTERACTIVE)
        started = time.perf_counter()
        with self.runtime.lease(spec) as lease:
            prepared = self._prepared(lease.model, spec, volume)
            ready = time.perf_counter()

            def begin() -> Interaction:
                interaction: Interaction = lease.model.begin(prepared)
                return interaction

            with self.sessions.hold((spec.id, volume.key, owner), prompts, begin) as session:
                changed = session.follow(prompts)
                seconds = {"prepare": ready - started, "infer": time.perf_counter() - ready}
                provenance = _provenance(spec, volume, prompts, {}, seconds, volume.source.notes)
                yield Clicked(session.interaction.mask, changed, session, provenance)

    def forget(self, owner: Hashable, volume: Volume | None = None) -> int:
        """Drop an owner's sessions, on one volume or on all; returns how many."""
        return self.sessions.drop(lambda key: key[2] == owner and (volume is None or key[1] == volume.key))

    # ... or draws lines on both sides of it ...

    def drawn(self, label: Upload, volume: Volume, *, foreground: int, background: int) -> list[Prompt]:
        """Scribbles painted in a label map: two masks on the volume's grid. `.bin` is raw bytes, x fastest."""
        if label.suffix == ".bin":
            if label.size != volume.grid.voxels:
                raise PromptError(f"the label map holds {label.size} bytes, the image {volume.grid.voxels} voxels")
            values: NDArray[np.generic] = np.frombuffer(label.file.read(), dtype=np.uint8).reshape(volume.shape)
        else:
            painted = door.read_upload(label, limits=self.settings)
            values = onto(painted.array, painted.grid, volume.grid)
        return [MaskPrompt(values == foreground), MaskPrompt(values == background, positive=False)]

    def separate(
        self, volume: Volume, prompts: Sequence[Prompt], *, roi: Box | None = None, options: Mapping[str, Any] | None = None, model: str | None = None
    ) -> Segmentation:
        """The mask between foreground and background scribbles: what positive and negative prompts paint. `roi` bounds the mask."""
        spec = self._spec(model, Task.SCRIBBLES)
        self._check([*prompts, *([roi] if roi else [])], volume)
        painted = np.zeros((2, *volume.shape), dtype=bool)
        for prompt in prompts:
            if isinstance(prompt, Text | Box):
                raise PromptError(f"'{spec.id}' takes scribbles, lassos, points and masks, and one box as the region to stay in; not words")
            side = painted[0 if prompt.positive else 1]
            if isinstance(prompt, MaskPrompt):
                side |= prompt.mask != 0
            else:
                side[tuple(rasterise(prompt, volume.shape).T)] = True
        started = time.perf_counter()
        with self.runtime.lease(spec) as lease:
            mask = lease.model.separate(volume, painted[0], painted[1], roi=roi, options=options or {})
        seconds = {"infer": time.perf_counter() - started}
        provenance = _provenance(spec, volume, prompts, dict(options or {}), seconds, volume.source.notes)
        return Segmentation(mask, volume.grid, (terminology.label("region"),), provenance)

    # ... or, from the command line and from Python, all of it in one call.

    def segment(self, volume: Volume, prompts: Sequence[Prompt], *, threshold: float = 0.5, model: str | None = None) -> Segmentation:
        """One label map from words (a label each, earlier words win where they overlap) or from points, boxes and lines."""
        words = [p.text for p in prompts if isinstance(p, Text)]
        if words and len(words) < len(prompts):
            raise PromptError("give either words or points, boxes, scribbles and lassos, not both")
        if not prompts:
            raise PromptError("nothing was asked for: give a text, a point, a box, a scribble, a lasso or a mask")
        if words:
            return _label_map(volume, self.find(volume, words, threshold=threshold, model=model))
        # Nobody comes back to this session, so it has an owner that nobody else can be.
        owner = object()
        try:
            with self.click(volume, prompts, owner=owner, model=model) as clicked:
                return Segmentation(clicked.mask.copy(), volume.grid, (terminology.label("region"),), clicked.provenance)
        finally:
            self.forget(owner)

    # 3. Housekeeping.

    def models(self) -> list[ModelSpec]:
        """All models that can answer here."""
        return list(registry.specs().values())

    def warm(self) -> None:
        """Load the weight-free models and have them answer once on a thimbleful of voxels.

        That compiles their kernels and imports what they need, so that the first client does not wait for it.
        """
        compile_ahead()
        ball = sum((axis - 12) ** 2 for axis in np.ogrid[:24, :24, :24]) < 64
        tiny = Volume(np.where(ball, 60, -1000).astype(np.int16), modality="CT", unit="HU")
        for spec in registry.specs().values():
            if spec.weights_bytes:
                continue
            with self.runtime.lease(spec):
                pass
            if spec.task is Task.INTERACTIVE:
                self.segment(tiny, [Point((12, 12, 12))], model=spec.id)
            elif spec.task is Task.TEXT:
                self.find(tiny, [spec.labels[0].name], model=spec.id)

    def sweep(self) -> None:
        """Remove what is too old."""
        self.artifacts.sweep()
        self.sessions.sweep()

    def close(self) -> None:
        """Stop computing and give the memory back."""
        self.runtime.close()

    def _spec(self, model: str | None, task: Task) -> ModelSpec:
        spec = registry.spec(model) if model else registry.first(task)
        if spec.task is not task:
            raise PromptError(f"the model '{spec.id}' takes {', '.join(spec.prompts) or 'no prompts'}, not what was given")
        return spec

    def _prepared(self, model: Any, spec: ModelSpec, volume: Volume) -> Prepared:
        make: Callable[[], Prepared] = lambda: model.prepare(volume)  # noqa: E731 - typed for `derive`
        return self.volumes.derive(volume, spec.id, make)

    def _check(self, prompts: Sequence[Prompt], volume: Volume) -> None:
        points = sum(len(getattr(p, "path", ())) or 1 for p in prompts)
        if points > self.settings.max_prompts:
            raise LimitError(f"{points} prompt points in one request are too many", limit="max_prompts", value=self.settings.max_prompts)
        check_inside(prompts, volume.shape)


def _windowed(read: Callable[[str | None], Volume], modality: str | None, window: str | None) -> Volume:
    """What `read` gives for a modality; with a window, a picture as the CT that it shows."""
    if window is None:
        return read(modality)
    if (modality or "CT").upper() != "CT":
        raise UsageError("a window in Hounsfield units goes with modality=CT")
    return picture.to_hounsfield(read(None), window)


def _plain(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain data, for provenance; of a mask only its size."""
    if isinstance(prompt, MaskPrompt):
        return {"type": "mask", "positive": prompt.positive, "voxels": int(np.count_nonzero(prompt.mask))}
    data = asdict(prompt) if is_dataclass(prompt) else {}
    return {"type": type(prompt).__name__.lower(), **data}


def _provenance(
    spec: ModelSpec, volume: Volume, prompts: Sequence[Prompt], settings: dict[str, Any], seconds: dict[str, float], notes: tuple[str, ...]
) -> Provenance:
    rounded = {stage: round(value, 4) for stage, value in seconds.items()}
    plain = tuple(_plain(p) for p in prompts)
    return Provenance(
        spec.id,
        spec.version,
        volume.key,
        spec.weights_sha256,
        plain,
        settings,
        seconds=rounded,
        notes=tuple(dict.fromkeys(notes)),
        fallback=spec.fallback,
    )


def _label_map(volume: Volume, found: Found) -> Segmentation:
    mask = np.zeros(volume.shape, dtype=np.uint8 if len(found.findings) < 256 else np.uint16)
    labels, scores = [], {}
    for value, finding in enumerate(found.findings, start=1):
        mask[(finding.mask != 0) & (mask == 0)] = value
        labels.append(terminology.label(finding.label.name, value))
        scores[finding.label.name] = finding.presence
    probability = None
    if len(found.findings) == 1:
        probability = found.findings[0].probability.astype(np.float32) / np.float32(255)
    return Segmentation(mask, volume.grid, tuple(labels), found.provenance, scores, probability)
