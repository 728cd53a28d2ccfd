"""The use-cases, in the order in which they happen: open a scan, name or click what you want, take the mask away.

Everything here blocks and is meant for threads; `http/` calls it through the runtime's queue, the command line directly.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isocenter.core import naming, terminology
from isocenter.core.errors import LimitError, MemoryLimitError, ModelError, NotFoundError, PromptError, UsageError
from isocenter.core.geometry import onto
from isocenter.core.model import QUIET, Finding, Interaction, LabelMap, ModelSpec, Prepared, Question, Run, Task
from isocenter.core.prompts import Box, MaskPrompt, Point, Prompt, Text, check_inside, rasterise
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door, picture
from isocenter.io.upload import Upload
from isocenter.models._kernel_cache import compile_ahead
from isocenter.models.registry import Registry
from isocenter.runtime import cached
from isocenter.runtime.options import Options
from isocenter.runtime.runtime import Lease, Runtime
from isocenter.runtime.sessions import Session, Sessions, changes, identity, recalled
from isocenter.store.artifacts import open_artifacts
from isocenter.store.orders import History, Orders, digest
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
        self.registry = Registry.of(settings)
        self.volumes = VolumeStore(settings.volume_cache_bytes)
        self.runtime = Runtime(workers=settings.workers, queue_size=settings.queue_size, options=Options.of(settings))
        self.sessions = Sessions(settings.session_cache_bytes, settings.session_ttl)
        #: Where servers that share a database tell each other in which order prompts came; set by whoever opens that database.
        self.orders: Orders | None = None
        self.runtime.closed = self._closed
        self.artifacts = open_artifacts(settings)
        self._closing = threading.Event()

    # 1. A scan comes in.

    def open(self, upload: Upload, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
        """The volume in an upload; decoded once, however often the same bytes come. `window`: see `picture.to_hounsfield`."""

        def read(modality: str | None) -> Volume:
            return door.read_upload(upload, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.read((upload.digest, upload.suffix, series_uid, modality, window), lambda: _windowed(read, modality, window))

    def keep(self, upload: Upload, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> tuple[str, Volume]:
        """As `open`, and a key by which later requests may name it: of the bytes and of how they were read, never of a name."""
        volume = self.open(upload, series_uid=series_uid, modality=modality, window=window)
        how = repr((upload.digest, upload.suffix, series_uid, modality, window))
        key = hashlib.sha256(how.encode()).hexdigest()[:32]
        return key, self.volumes.put(volume, ("kept", key))

    def kept(self, key: str) -> Volume:
        """What `keep` gave a key to. Raises `NotFoundError` when it is gone."""
        volume = self.volumes.find(("kept", key))
        if volume is None:
            raise NotFoundError(
                "no scan is kept under this key, or not any more; send it again (behind a balancer with several servers: have it send "
                "a client always to the same one)"
            )
        return volume

    def known(self, upload: Upload) -> Volume | None:
        """The volume that `open` made of the same bytes before, if it is still here; nothing is decoded."""
        return self.volumes.find((upload.digest, upload.suffix, None, None, None))

    def open_stored(
        self, path: Path, digest: str, suffix: str, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None
    ) -> Volume:
        """As `open`, for an upload that was kept as a file: found again under the same digest, whichever way it comes."""

        def read(modality: str | None) -> Volume:
            return door.read_path(path, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.read((digest, suffix, series_uid, modality, window), lambda: _windowed(read, modality, window))

    def open_path(self, path: Path, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
        """The volume in a file or a folder of this machine; of files alone also scans that were cached for networks, see `runtime.cached`."""

        def read(modality: str | None) -> Volume:
            if path.suffix in cached.SUFFIXES and not path.is_dir():
                return cached.read(path, self.settings, modality)
            return door.read_path(path, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.put(_windowed(read, modality, window))

    # 2. Somebody names what they want ...

    def find(
        self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5, model: str | None = None, run: Run = QUIET, batch: int = 0
    ) -> Found:
        """Masks for words, on the volume's own grid; a model that takes no words (`Task.SEGMENT`) answers by its labels' names.

        batch: slices at once, 0 for as many as memory allows.
        """
        _check_threshold(threshold)
        spec = self._spec(model, Task.TEXT, Task.SEGMENT) if model else self.registry.first_for(prompts, volume.modality)
        wanted = [naming.label_of(prompt, spec.labels, spec.synonyms) for prompt in prompts] if spec.task is Task.SEGMENT else []
        started = time.perf_counter()

        def answer(lease: Lease) -> tuple[Lease, tuple[Finding, ...]]:
            if spec.task is Task.SEGMENT:
                return lease, tuple(naming.findings(prompts, wanted, lease.model.segment(volume, run=lease.run), threshold))
            return lease, tuple(lease.model.find(volume, list(prompts), threshold=threshold, run=lease.run))

        lease, findings = self.runtime.call(spec, answer, run=run, batch=batch)
        return _found(lease, Question(volume, tuple(prompts), threshold), findings, time.perf_counter() - started)

    def find_soon(self, question: Question, *, model: str | None = None) -> Future[list[Found]]:
        """As `find`, in the runtime's queue, one answer in a list: a picture (one slice) is answered together with those that
        other clients ask of the same model, where it can and where that gains anything.
        """
        _check_threshold(question.threshold)
        spec = self._spec(model, Task.TEXT, Task.SEGMENT) if model else self.registry.first_for(question.prompts, question.volume.modality)
        if question.volume.shape[0] != 1 or self.runtime.together(spec) < 2:
            return self.runtime.submit(lambda: [self.find(question.volume, question.prompts, threshold=question.threshold, model=spec.id)])
        if spec.task is Task.SEGMENT:
            wanted = [naming.label_of(prompt, spec.labels, spec.synonyms) for prompt in question.prompts]

            def named(lease: Lease, answer: LabelMap, elapsed: float) -> Found:
                return _found(lease, question, tuple(naming.findings(question.prompts, wanted, answer, question.threshold)), elapsed)

            return self._pictures(spec, question.volume, {}, named)

        def work(lease: Lease, batch: Sequence[Question]) -> list[Found]:
            started = time.perf_counter()
            answers = lease.model.find_pictures(batch, run=lease.run)
            elapsed = time.perf_counter() - started
            return [_found(lease, asked, tuple(findings), elapsed) for asked, findings in zip(batch, answers, strict=True)]

        return self.runtime.batched(spec, "pictures", [question], work)

    # ... or wants all that a model knows ...

    def label(
        self,
        volume: Volume,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        run: Run = QUIET,
    ) -> Segmentation:
        """The whole label map of a model that needs no prompts. labels: keep only these, by name; the others become background."""
        spec = self._spec(model or self._meant_for(volume), Task.SEGMENT)
        kept = [naming.label_of(name, spec.labels, spec.synonyms) for name in labels or ()]
        started = time.perf_counter()

        def segment(lease: Lease) -> tuple[Lease, LabelMap]:
            return lease, lease.model.segment(volume, options=options, run=lease.run)

        lease, answer = self.runtime.call(spec, segment, run=run)
        return _labelled(lease, volume, answer, kept, options or {}, time.perf_counter() - started)

    def label_soon(
        self, volume: Volume, *, model: str | None = None, options: Mapping[str, Any] | None = None, labels: Sequence[str] | None = None
    ) -> Future[list[Segmentation]]:
        """As `label`, in the runtime's queue, one answer in a list: a picture is answered together with other clients', as by `find_soon`."""
        spec = self._spec(model or self._meant_for(volume), Task.SEGMENT)
        if volume.shape[0] != 1 or self.runtime.together(spec) < 2:
            return self.runtime.submit(lambda: [self.label(volume, model=spec.id, options=options, labels=labels)])
        kept = [naming.label_of(name, spec.labels, spec.synonyms) for name in labels or ()]
        chosen = dict(options or {})
        return self._pictures(spec, volume, chosen, lambda lease, answer, elapsed: _labelled(lease, volume, answer, kept, chosen, elapsed))

    def _pictures(self, spec: ModelSpec, volume: Volume, options: Mapping[str, Any], told: Callable[[Lease, LabelMap, float], T]) -> Future[list[T]]:
        """What `told` makes of a picture's label map, which is computed together with those that are wanted with the same options."""

        def work(lease: Lease, batch: Sequence[tuple[Volume, Callable[[Lease, LabelMap, float], T]]]) -> list[T]:
            started = time.perf_counter()
            answers = lease.model.segment_pictures([picture for picture, _ in batch], options=options, run=lease.run)
            elapsed = time.perf_counter() - started
            return [each(lease, answer, elapsed) for (_, each), answer in zip(batch, answers, strict=True)]

        return self.runtime.batched(spec, ("pictures", repr(sorted(options.items()))), [(volume, told)], work)

    # ... or points at it, again and again ...

    def prepare(self, volume: Volume, model: str | None = None) -> Prepared:
        """Do ahead what depends on the volume alone, so that the first click is quick."""
        spec = self._spec(model, Task.INTERACTIVE)
        return self.runtime.call(spec, lambda lease: self._prepared(lease, volume))

    def look_soon(self, volume: Volume, prompts: Sequence[Prompt], model: str | None = None) -> Future[list[None]] | None:
        """Have a model see the slices that prompts point at, together with those that other clients point at, so that `click`
        finds them seen. None where that gains nothing.
        """
        spec = self._spec(model, Task.INTERACTIVE)
        if self.runtime.together(spec) < 2:
            return None
        self._check(prompts, volume)

        def work(lease: Lease, batch: Sequence[tuple[Volume, Sequence[Prompt]]]) -> list[None]:
            lease.model.look([(self._prepared(lease, scan), said) for scan, said in batch], run=lease.run)
            return [None] * len(batch)

        return self.runtime.batched(spec, "look", [(volume, tuple(prompts))], work)

    @contextmanager
    def click(self, volume: Volume, prompts: Sequence[Prompt], *, owner: Hashable, model: str | None = None) -> Iterator[Clicked]:
        """The mask for all prompts said so far, in whatever order; the session is held until the block ends."""
        self._check(prompts, volume)
        spec = self._spec(model, Task.INTERACTIVE)
        started = time.perf_counter()
        whose, history, known, prompts = self._recalled((spec.id, volume.key, owner), prompts)

        def answer(lease: Lease) -> tuple[Lease, ExitStack, Session, Box | None, float]:
            prepared = self._prepared(lease, volume)
            ready = time.perf_counter()

            def begin() -> Interaction:
                interaction: Interaction = lease.model.begin(prepared)
                return interaction

            with ExitStack() as stack:
                session = stack.enter_context(self.sessions.hold((spec.id, volume.key, owner, lease.instance), prompts, begin))
                # After a time without their database, what this server saw itself counts where the others know less.
                ordered = whose is not None and (session.told or known >= changes(session.said, [identity(p) for p in prompts])[0])
                changed = session.follow(prompts, ordered=ordered)
                session.told = self._tell(whose, history, session)
                return lease, stack.pop_all(), session, changed, ready

        lease, held, session, changed, ready = self.runtime.call(spec, answer)
        with held:
            seconds = {"prepare": ready - started, "infer": time.perf_counter() - ready}
            provenance = _provenance(lease, volume, prompts, {}, seconds, volume.source.notes)
            yield Clicked(session.interaction.mask, changed, session, provenance)

    def _recalled(self, key: Hashable, prompts: Sequence[Prompt]) -> tuple[str | None, History | None, int, Sequence[Prompt]]:
        """(whose prompts these are, None where no other server is told; what was said before by any server; how many of the
        prompts that knows; the prompts, those first and in its order).
        """
        histories = None if self.orders is None else self.orders.recall(whose := digest(key))
        if histories is None:
            return None, None, 0, prompts
        number, known, order = recalled(histories, [digest(identity(p)) for p in prompts])
        return whose, None if number is None else histories[number], known, [prompts[index] for index in order]

    def _tell(self, whose: str | None, history: History | None, session: Session) -> bool:
        """Have the other servers know what was said; whether they do."""
        return self.orders is not None and whose is not None and self.orders.note(whose, history, [digest(said) for said in session.said])

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

        def separate(lease: Lease) -> tuple[Lease, NDArray[np.uint8]]:
            return lease, lease.model.separate(volume, painted[0], painted[1], roi=roi, options=options or {})

        lease, mask = self.runtime.call(spec, separate)
        seconds = {"infer": time.perf_counter() - started}
        provenance = _provenance(lease, volume, prompts, dict(options or {}), seconds, volume.source.notes)
        return Segmentation(mask, volume.grid, (terminology.label("region"),), provenance)

    # ... or, from the command line and from Python, all of it in one call.

    def segment(
        self,
        volume: Volume,
        prompts: Sequence[Prompt],
        *,
        threshold: float = 0.5,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        run: Run = QUIET,
    ) -> Segmentation:
        """One label map from words (a label each, earlier words win where they overlap), from points, boxes and lines, or,
        where `model` names one that needs no prompts, of all that it finds.
        """
        words = [p.text for p in prompts if isinstance(p, Text)]
        if words and len(words) < len(prompts):
            raise PromptError("give either words or points, boxes, scribbles and lassos, not both")
        if not prompts and model is not None and self.registry.spec(model).task is Task.SEGMENT:
            return self.label(volume, model=model, options=options, run=run)
        if not prompts:
            raise PromptError("nothing was asked for: give a text, a point, a box, a scribble, a lasso or a mask")
        if words:
            return label_map(volume, self.find(volume, words, threshold=threshold, model=model, run=run))
        # Nobody comes back to this session, so it has an owner that nobody else can be.
        owner = object()
        try:
            with self.click(volume, prompts, owner=owner, model=model) as clicked:
                return Segmentation(clicked.mask.copy(), volume.grid, (terminology.label("region"),), clicked.provenance)
        finally:
            self.forget(owner)

    # ... or what their pictures look like to a model, as vectors.

    def describe(self, pictures: Sequence[NDArray[np.uint8]], *, model: str | None = None) -> NDArray[np.float32]:
        """(pictures, dimensions), each of length one."""
        return np.stack(self.describe_soon(pictures, model=model).result())

    def describe_soon(self, pictures: Sequence[NDArray[np.uint8]], *, model: str | None = None) -> Future[list[NDArray[np.float32]]]:
        """As `describe`, in the runtime's queue: pictures of several callers are computed together, except from an inference thread."""
        spec = self._spec(model, Task.DESCRIBE)

        def work(lease: Lease, batch: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
            return list(lease.model.describe(batch, run=lease.run))

        if not pictures:
            raise PromptError("give at least one picture")
        return self.runtime.batched(spec, "pictures", pictures, work)

    # 3. Housekeeping.

    def models(self) -> list[ModelSpec]:
        """All models that can answer here."""
        return list(self.registry.specs.values())

    def problem(self) -> str | None:
        """Why the model that the settings choose for words cannot answer; None when it can."""
        try:
            self.registry.first(Task.TEXT)
        except ModelError as error:
            return error.message
        return None

    def warm(self) -> None:
        """Load the weight-free models and have them answer once on a thimbleful of voxels.

        That compiles their kernels and imports what they need, so that the first client does not wait for it.
        """
        with ThreadPoolExecutor(2) as both:  # a core each; they share no kernel: of two writers to one index of the cache one would lose
            both.submit(compile_ahead, stop=self._closing)
            both.submit(compile_ahead, "isocenter.analysis.warm", stop=self._closing)
        if self._closing.is_set():
            return
        ball = sum((axis - 12) ** 2 for axis in np.ogrid[:24, :24, :24]) < 64
        tiny = Volume(np.where(ball, 60, -1000).astype(np.int16), modality="CT", unit="HU")
        for spec in self.registry.specs.values():
            if spec.weights_bytes or spec.weights is not None:
                continue
            with suppress(MemoryLimitError):  # said to whoever asks for that model
                if spec.task is Task.INTERACTIVE:
                    self.segment(tiny, [Point((12, 12, 12))], model=spec.id)
                elif spec.task is Task.TEXT:
                    self.find(tiny, [spec.labels[0].name], model=spec.id)
                else:
                    self.runtime.call(spec, lambda lease: None)

    def sweep(self) -> None:
        """Remove what is too old."""
        self.artifacts.sweep()
        self.sessions.sweep()

    def close(self) -> None:
        """Stop computing and give the memory back."""
        self._closing.set()
        self.runtime.close()

    def _spec(self, model: str | None, task: Task, *others: Task) -> ModelSpec:
        spec = self.registry.spec(model) if model else self.registry.first(task)
        if spec.task not in (task, *others):
            takes = ", ".join(spec.prompts) or ("the names of its labels, or nothing" if spec.task is Task.SEGMENT else "no prompts")
            raise PromptError(f"the model '{spec.id}' takes {takes}, not what was given")
        return spec

    def _meant_for(self, volume: Volume) -> str | None:
        """The model without prompts that answers when none was named: the first for this modality, where that one is not."""
        specs = [s for s in self.registry.specs.values() if s.task is Task.SEGMENT]
        suited = [s.id for s in specs if volume.modality in s.modalities] or [s.id for s in specs if not s.modalities]
        if volume.modality is None or not suited or self.registry.first(Task.SEGMENT).id in suited:
            return None
        return suited[0]

    def _closed(self, instance: str) -> None:
        """What people do with a model lives with that copy of it. Their next request begins anew, with all its prompts."""
        self.sessions.drop(lambda key: key[3] == instance)

    def _prepared(self, lease: Lease, volume: Volume) -> Prepared:
        make: Callable[[], Prepared] = lambda: lease.model.prepare(volume)  # noqa: E731 - typed for `derive`
        return self.volumes.derive(volume, lease.instance, make)

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


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold must lie between 0 and 1, not {threshold}")


def _labelled(lease: Lease, volume: Volume, answer: LabelMap, kept: Sequence[Label], options: Mapping[str, Any], elapsed: float) -> Segmentation:
    found = naming.only(answer, kept) if kept else answer
    settings = {**options, **({"labels": [label.name for label in kept]} if kept else {})}
    provenance = _provenance(lease, volume, [], settings, {"infer": elapsed}, volume.source.notes + answer.notes)
    return Segmentation(found.mask, volume.grid, found.labels, provenance, found.scores)


def _found(lease: Lease, asked: Question, findings: tuple[Finding, ...], elapsed: float) -> Found:
    notes = asked.volume.source.notes + tuple(dict.fromkeys(n for f in findings for n in f.notes))
    words = [Text(p) for p in asked.prompts]
    return Found(findings, _provenance(lease, asked.volume, words, {"threshold": asked.threshold}, {"infer": elapsed}, notes))


def _plain(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain data, for provenance; of a mask only its size."""
    if isinstance(prompt, MaskPrompt):
        return {"type": "mask", "positive": prompt.positive, "voxels": int(np.count_nonzero(prompt.mask))}
    data = asdict(prompt) if is_dataclass(prompt) else {}
    return {"type": type(prompt).__name__.lower(), **data}


def _provenance(
    lease: Lease, volume: Volume, prompts: Sequence[Prompt], settings: dict[str, Any], seconds: dict[str, float], notes: tuple[str, ...]
) -> Provenance:
    spec = lease.spec
    rounded = {stage: round(value, 4) for stage, value in seconds.items()}
    plain = tuple(_plain(p) for p in prompts)
    return Provenance(
        spec.id,
        spec.version,
        volume.key,
        spec.weights_sha256,
        plain,
        settings,
        device=lease.device,
        precision=lease.precision,
        seconds=rounded,
        notes=tuple(dict.fromkeys((*notes, *lease.notes))),
        fallback=spec.fallback,
    )


def label_map(volume: Volume, found: Found) -> Segmentation:
    """One label map from findings, a label each; earlier ones win where they overlap."""
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
