"""The use-cases, in the order in which they happen: open a scan, name or click what you want, take the mask away.

Everything here blocks and is meant for threads; `http/` calls it through the runtime's queue, the command line directly.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isocenter.answers import Clicked, Found, as_found, as_segmentation, label_map, provenance_of
from isocenter.core import naming, terminology
from isocenter.core.errors import LimitError, MemoryLimitError, ModelError, PromptError, UsageError
from isocenter.core.geometry import onto
from isocenter.core.model import QUIET, Finding, Interaction, LabelMap, ModelSpec, Prepared, Question, Run, Task
from isocenter.core.prompts import Box, MaskPrompt, Point, Prompt, Text, check_inside, rasterise
from isocenter.core.segmentation import Segmentation
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door
from isocenter.io.upload import Upload
from isocenter.models._kernel_cache import compile_ahead
from isocenter.models.registry import Registry
from isocenter.runtime.options import Options
from isocenter.runtime.runtime import Lease, Runtime
from isocenter.runtime.sessions import Session, Sessions
from isocenter.runtime.shared_order import SharedOrder
from isocenter.scans import Scans
from isocenter.store.artifacts import open_artifacts
from isocenter.store.orders import Orders

T = TypeVar("T")


class Service(Scans):
    """One Isocenter: its models, its caches and what can be done with them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.registry = Registry.of(settings)
        self.runtime = Runtime(workers=settings.workers, queue_size=settings.queue_size, options=Options.of(settings))
        self.sessions = Sessions(settings.session_cache_bytes, settings.session_ttl)
        #: Where servers that share a database tell each other in which order prompts came; set by whoever opens that database.
        self.orders: Orders | None = None
        self.runtime.closed = self._closed
        self.artifacts = open_artifacts(settings)
        self._closing = threading.Event()

    # 1. A scan comes in: `open` and the like, in `scans.py`.

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
        return as_found(lease, Question(volume, tuple(prompts), threshold), findings, time.perf_counter() - started)

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
                return as_found(lease, question, tuple(naming.findings(question.prompts, wanted, answer, question.threshold)), elapsed)

            return self._pictures(spec, question.volume, {}, named)

        def work(lease: Lease, batch: Sequence[Question]) -> list[Found]:
            started = time.perf_counter()
            answers = lease.model.find_pictures(batch, run=lease.run)
            elapsed = time.perf_counter() - started
            return [as_found(lease, asked, tuple(findings), elapsed) for asked, findings in zip(batch, answers, strict=True)]

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
        return as_segmentation(lease, volume, answer, kept, options or {}, time.perf_counter() - started)

    def label_soon(
        self, volume: Volume, *, model: str | None = None, options: Mapping[str, Any] | None = None, labels: Sequence[str] | None = None
    ) -> Future[list[Segmentation]]:
        """As `label`, in the runtime's queue, one answer in a list: a picture is answered together with other clients', as by `find_soon`."""
        spec = self._spec(model or self._meant_for(volume), Task.SEGMENT)
        if volume.shape[0] != 1 or self.runtime.together(spec) < 2:
            return self.runtime.submit(lambda: [self.label(volume, model=spec.id, options=options, labels=labels)])
        kept = [naming.label_of(name, spec.labels, spec.synonyms) for name in labels or ()]
        chosen = dict(options or {})
        return self._pictures(spec, volume, chosen, lambda lease, answer, elapsed: as_segmentation(lease, volume, answer, kept, chosen, elapsed))

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
        self.check(prompts, volume)

        def work(lease: Lease, batch: Sequence[tuple[Volume, Sequence[Prompt]]]) -> list[None]:
            lease.model.look([(self._prepared(lease, scan), said) for scan, said in batch], run=lease.run)
            return [None] * len(batch)

        return self.runtime.batched(spec, "look", [(volume, tuple(prompts))], work)

    @contextmanager
    def click(self, volume: Volume, prompts: Sequence[Prompt], *, owner: Hashable, model: str | None = None) -> Iterator[Clicked]:
        """The mask for all prompts said so far, in whatever order; the session is held until the block ends."""
        self.check(prompts, volume)
        spec = self._spec(model, Task.INTERACTIVE)
        started = time.perf_counter()
        order = SharedOrder.of(self.orders, (spec.id, volume.key, owner), prompts)

        def answer(lease: Lease) -> tuple[Lease, ExitStack, Session, Box | None, float]:
            prepared = self._prepared(lease, volume)
            ready = time.perf_counter()

            def begin() -> Interaction:
                interaction: Interaction = lease.model.begin(prepared)
                return interaction

            with ExitStack() as stack:
                session = stack.enter_context(self.sessions.hold((spec.id, volume.key, owner, lease.instance), order.prompts, begin))
                changed = order.follow(session)
                return lease, stack.pop_all(), session, changed, ready

        lease, held, session, changed, ready = self.runtime.call(spec, answer)
        with held:
            seconds = {"prepare": ready - started, "infer": time.perf_counter() - ready}
            provenance = provenance_of(lease, volume, order.prompts, {}, seconds, volume.source.notes)
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
        self.check([*prompts, *([roi] if roi else [])], volume)
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
        provenance = provenance_of(lease, volume, prompts, dict(options or {}), seconds, volume.source.notes)
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

    def check(self, prompts: Sequence[Prompt], volume: Volume) -> None:
        """Raise `LimitError` for too many prompts, `PromptError` for one that does not lie inside the volume."""
        points = sum(len(getattr(p, "path", ())) or 1 for p in prompts)
        if points > self.settings.max_prompts:
            raise LimitError(f"{points} prompt points in one request are too many", limit="max_prompts", value=self.settings.max_prompts)
        check_inside(prompts, volume.shape)

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


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold must lie between 0 and 1, not {threshold}")
