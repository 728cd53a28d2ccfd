"""ONNX networks with an nnU-Net style `config.json`: any network that maps a volume, or slices, to scores by class.

For exports of nnU-Net (sliding window), MeshNet and other fully convolutional networks (whole or in tiles that bring their
surroundings along, never blended), and networks of one fixed input size; volumetric, or of slices (a patch of two numbers), which
take a volume's slices or pictures of several clients as their batch. Tried with the published weights of MeshNet
(`model5_gw_ae`, `model18cls`, `subcortical`) and of deepbrain, and with random networks against MONAI's sliding window. The
configuration's keys are in docs/models-onnx.md.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError, UnsupportedError, UsageError
from isocenter.core.geometry import reorient
from isocenter.core.model import QUIET, LabelMap, ModelContext, ModelSpec, Run, Task
from isocenter.core.volume import Volume
from isocenter.models._onnx import config, files
from isocenter.models._onnx.config import Inference, Plan, Shape

if TYPE_CHECKING:
    from isocenter.models._onnx.chain import Stream
    from isocenter.models._onnx.engine import Engine
    from isocenter.models._onnx.scene import Scene
    from isocenter.models._onnx.sink import Sink
    from isocenter.models._onnx.threads import Threads

#: The window of a network that takes any size, where its configuration names none.
_WINDOW: Shape = (128, 128, 128)
#: Activations up to which a chain of convolutions takes the whole volume at once, on the processor and on a GPU of unknown size.
_WHOLE_BYTES, _DEVICE_BYTES = 700 * 1024**2, 8 * 1024**3
#: Guess of the memory of a network's activations, a voxel of its window; measured peaks correct it.
_ACTIVATION_BYTES = 256
#: Slices at once that a network of slices is counted with.
_SLICES = 4


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The spec of an installed folder: an ONNX file and its `config.json`.

    Raises `ModelError` for a folder that cannot be used; the network itself is not opened.
    """
    raw = config.read(folder)
    path = files.find(folder, raw)
    files.check(path)
    plan = config.parse(raw, path.name)
    known = next((file.sha256 for file in entry.files if file.name == path.name), None) if entry else None
    size = path.stat().st_size
    patch = plan.patch or _WINDOW
    voxels = math.prod(patch) * (_SLICES if plan.flat else 1)
    scratch = voxels * (_ACTIVATION_BYTES + 8 * plan.classes) + 4 * plan.classes * patch[0] * 256 * 256
    # OpenVINO alone computes in bfloat16, which is quicker on some networks, and slower and worse on others.
    precisions = ("float32", "bfloat16") if importlib.util.find_spec("openvino") else ("float32",)
    return ModelSpec(
        id=entry.id if entry else folder.name,
        version=(entry.revision[:12] if entry and entry.revision else "") or plan.about.get("version", "1"),
        task=Task.SEGMENT,
        factory="isocenter.models.onnx_volume:OnnxVolume",
        description=(entry.description if entry else "") or plan.about.get("description", f"ONNX network with {len(plan.labels)} classes"),
        modalities=(plan.modality,) if plan.modality else (),
        dimensions=(2, 3) if plan.flat else (3,),
        labels=plan.labels,
        synonyms=plan.synonyms,
        options=_options(plan),
        licence=(entry.licence if entry else "") or plan.about.get("license", plan.about.get("licence", "unknown")),
        citation=(entry.citation if entry else "") or plan.about.get("citation", ""),
        weights_sha256=known or files.sha256(path),
        weights_bytes=size,
        weights=folder,
        resident_bytes=dict.fromkeys(precisions, 2 * size),
        scratch_bytes=dict.fromkeys(precisions, scratch),
        insisted=precisions[1:],
        devices=("cpu", "cuda"),
        together=plan.flat,
    )


def _options(plan: Plan) -> dict[str, Any]:
    """What a request may change, with its defaults."""
    common = {"keep_largest": bool(plan.largest)}
    if plan.inference is not Inference.SLIDING_WINDOW:
        return common
    return {"step_size": plan.step, "use_gaussian": plan.gaussian, "use_tta": plan.mirrored, **common}


class OnnxVolume:
    """One network. For one caller at a time."""

    def load(self, context: ModelContext) -> None:
        """Open the network and compare it with its configuration. Raises `ModelError` where they do not fit each other."""
        from isocenter.models._onnx import chain, engine, slices, threads

        folder = context.weights
        raw = config.read(folder)
        path = files.find(folder, raw)
        files.check(path)
        wanted = context.spec.weights_sha256 if context.spec else None
        if wanted and files.sha256(path) != wanted:
            raise ModelError(f"'{path.name}' is not the file that it should be (its SHA-256 differs); install the model again")
        self._plan = plan = config.parse(raw, path.name)
        self._context = context
        self._stream: Stream | None = None
        whole = plan.inference is Inference.FULLY_CONVOLUTIONAL
        self._chain = chain.find(path) if whole and plan.tile is None and not plan.flat else None
        reach = self._chain.halo if self._chain else (0, 0, 0)
        z, y, x = (max(a, b) for a, b in zip(reach, plan.halo or (0, 0, 0), strict=True))
        self._halo = (z, y, x)
        made = engine.make(path, context, flat=plan.flat)
        self._engine: Engine = slices.SliceEngine(made) if plan.flat else made
        try:
            self._patch = _fits(plan, self._engine.image, self._engine.scores)
            if whole and plan.halo is None and self._chain is None:
                raise ModelError('config.json: a fully convolutional network of this kind needs "halo", how far it looks around each voxel')
        except ModelError:
            self._engine.close()
            raise
        self._threads: Threads = threads.Threads(context.threads)

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()
        if self._stream is not None:
            self._stream.close()
        self._threads.close()

    def segment(self, volume: Volume, *, options: Mapping[str, Any] | None = None, run: Run = QUIET) -> LabelMap:
        """The label map on the volume's own voxels.

        options: `step_size`, `use_gaussian` and `use_tta` of a sliding window, `keep_largest`. A network of slices takes
        `run.batch` of them at once. Raises `UnsupportedError` for a scan of another modality, or a single slice where the
        network is volumetric, `UsageError` for an option that is not known, `ModelError` for a network that answers with
        values that are no numbers.
        """
        chosen, notes = _checked(options or {}, _options(self._plan)), _suits(self._plan, volume)
        run.check(0.0, "preparing the scan")
        part = self._part(volume, notes)
        if self._plan.flat:
            name = self._sliced([part], chosen, run)
        elif self._plan.inference is Inference.SLIDING_WINDOW:
            name = self._blend(part.scene, part.inside, chosen, run)
        elif self._streams(part.scene, run):
            name = self._streamed(part.scene, part.inside, run)
        else:
            name = self._tiled(part.scene, part.inside, run)
        answer = self._answer(part, name, chosen, run)
        run.check(1.0, "done")
        return answer

    def segment_pictures(self, volumes: Sequence[Volume], *, options: Mapping[str, Any] | None = None, run: Run = QUIET) -> list[LabelMap]:
        """For each volume of one slice what `segment` says of it alone; a network of slices sees those of one size together.

        Raises as `segment`, for all of them.
        """
        chosen = _checked(options or {}, _options(self._plan))
        run.check(0.0, "preparing the pictures")
        parts = [self._part(volume, _suits(self._plan, volume)) for volume in volumes]
        alike: dict[tuple[int, ...], list[_Part]] = {}
        for part in parts:
            alike.setdefault(part.scene.shape[1:], []).append(part)
        name = self._engine.name
        for group in alike.values():
            name = self._sliced(group, chosen, run)
        return [self._answer(part, name, chosen, run) for part in parts]

    def _part(self, volume: Volume, notes: tuple[str, ...]) -> _Part:
        from isocenter.models._onnx.scene import prepare

        scene = prepare(volume, self._plan, self._patch, self._threads)
        mask = np.zeros(volume.shape, np.uint8 if self._plan.classes <= 256 else np.uint16)
        return _Part(scene, mask, reorient(mask, volume.grid, scene.orientation)[scene.box], (*notes, *scene.notes))

    def _answer(self, part: _Part, name: str, chosen: Mapping[str, Any], run: Run) -> LabelMap:
        plan = self._plan
        if chosen["keep_largest"]:
            from isocenter.models._onnx.components import keep_largest

            names = plan.largest or tuple(label.name for label in plan.labels)
            keep_largest(part.mask, [label.value for label in plan.labels if label.name in names], run)
        return LabelMap(part.mask, plan.labels, notes=(*part.notes, f"computed with {name}"))

    def _sliced(self, parts: Sequence[_Part], chosen: Mapping[str, Any], run: Run) -> str:
        """The slices of all parts, whose scenes are equally large in plane, through a network of slices."""
        from isocenter.models._onnx import slices, tiles, windows

        plan = self._plan
        work = np.concatenate([part.scene.work for part in parts]) if len(parts) > 1 else parts[0].scene.work
        sink = slices.SinkRow([(self._sink(part.scene, part.inside, 0), len(part.scene.work)) for part in parts])
        network, deep = _Checked(self._engine, plan), slices.depth(len(work), run.batch)
        if plan.inference is Inference.SLIDING_WINDOW:
            blend = windows.Blend(work, (deep, *self._patch[1:]), 0, network, sink, self._threads, flat=True)
            mirror = plan.mirror if chosen["use_tta"] else ()
            blend.run(float(chosen["step_size"]), gaussian=bool(chosen["use_gaussian"]), even=plan.even, mirror=mirror, run=run)
            return self._engine.name
        size = (deep, *work.shape[1:])
        if plan.inference is not Inference.FIXED:
            size = (deep, *tiles.core((deep, *work.shape[1:]), self._halo, plan.multiple, run.tile, plan.tile)[1:])
        tiles.run_tiles(work, size, self._halo, plan.multiple, network, sink, run)
        return self._engine.name

    def _sink(self, scene: Scene, inside: NDArray[Any], axis: int) -> Sink:
        """axis: 0 when slices come along z, 1 along y."""
        from isocenter.models._onnx.sink import Sink

        order = (1, 0, 2) if axis else (0, 1, 2)
        thick = None if scene.thick is None else order.index(scene.thick)
        a, b, x = (scene.shape[i] for i in order)
        return Sink((a, b, x), [scene.pad[i] for i in order], inside.transpose(order), self._plan.threshold, thick, self._threads)

    def _blend(self, scene: Scene, inside: NDArray[Any], chosen: Mapping[str, Any], run: Run) -> str:
        """Overlapping windows. This and the two ways below return the engine's name."""
        from isocenter.models._onnx import windows

        plan = self._plan
        axis = windows.slab_axis(scene.shape, self._patch)
        blend = windows.Blend(scene.work, self._patch, axis, _Checked(self._engine, plan), self._sink(scene, inside, axis), self._threads)
        mirror = plan.mirror if chosen["use_tta"] else ()
        blend.run(float(chosen["step_size"]), gaussian=bool(chosen["use_gaussian"]), even=plan.even, mirror=mirror, run=run)
        return self._engine.name

    def _streams(self, scene: Scene, run: Run) -> bool:
        """Whether a chain of convolutions flows slice by slice: where the whole volume's activations would take too much memory."""
        from isocenter.models._onnx.chain import whole_bytes

        limit = _WHOLE_BYTES if self._context.device == "cpu" else self._context.arena_bytes or _DEVICE_BYTES
        return self._chain is not None and whole_bytes(self._chain, scene.work.size) > limit * run.tile

    def _streamed(self, scene: Scene, inside: NDArray[Any], run: Run) -> str:
        from isocenter.models._onnx.chain import Stream

        assert self._chain is not None  # noqa: S101 - `_streams` has looked
        if self._stream is None:
            self._stream = Stream(self._chain, self._context)
        sink = self._sink(scene, inside, 0)
        for scores in self._stream.run(scene.work, run):
            sink.put(scores[0], range(scores.shape[2]))
        return self._stream.name

    def _tiled(self, scene: Scene, inside: NDArray[Any], run: Run) -> str:
        from isocenter.models._onnx import tiles

        plan = self._plan
        whole = plan.inference is Inference.FIXED or self._chain is not None
        size = scene.shape if whole else tiles.core(scene.shape, self._halo, plan.multiple, run.tile, plan.tile)
        tiles.run_tiles(scene.work, size, self._halo, plan.multiple, _Checked(self._engine, plan), self._sink(scene, inside, 0), run)
        return self._engine.name


@dataclass(frozen=True, eq=False)
class _Part:
    """A scan on its way. mask: the answer on its voxels; inside: the view of it that the scene's voxels fill; notes: for the reader."""

    scene: Scene
    mask: NDArray[Any]
    inside: NDArray[Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Checked:
    """An engine whose answers have the classes that the configuration names."""

    engine: Engine
    plan: Plan

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = self.engine.run(image)
        if scores.ndim != 5 or not _classes_fit(scores.shape[1], self.plan):
            raise ModelError(f"the network answers {scores.shape[1]} classes, its config.json says {self.plan.classes} (the background counted)")
        return scores


def _classes_fit(found: int, plan: Plan) -> bool:
    return found == plan.classes or (found == 1 and plan.classes == 2)


def _fits(plan: Plan, image: tuple[int | None, ...], scores: tuple[int | None, ...]) -> Shape:
    """The input's size (z, y, x), where network and configuration agree. Raises `ModelError` where they do not."""
    if scores[1] is not None and not _classes_fit(scores[1], plan):
        raise ModelError(f"the network answers {scores[1]} classes, its config.json says {plan.classes} (the background counted)")
    sizes = image[2:]
    if plan.inference is Inference.FULLY_CONVOLUTIONAL:
        if any(sizes):
            raise ModelError(
                "the network takes one size of input only, so it cannot be run whole or in tiles; set inference to fixed or sliding_window"
            )
        return plan.patch or _WINDOW
    default = plan.patch or (None if plan.inference is Inference.FIXED else _WINDOW)
    if any(n is None for n in sizes) and default is None:
        raise ModelError("config.json: a network of free input size that is run as fixed needs model_parameters.patch_size, its [Z, Y, X]")
    patch = tuple(n or wanted for n, wanted in zip(sizes, default or (0, 0, 0), strict=True))
    if plan.patch is not None and patch != plan.patch:
        own = [str(n or "any") for n in sizes[plan.flat :]]
        raise ModelError(f"config.json says patch_size {list(plan.patch[plan.flat :])}, but the network takes [{', '.join(own)}]")
    return patch[0], patch[1], patch[2]


def _checked(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call over their defaults. Raises `UsageError` for one that is not known or out of range."""
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"the model does not know the option '{unknown[0][:40]}'; there are: {', '.join(known)}")
    chosen = {**known, **options}
    for name in ("use_gaussian", "use_tta", "keep_largest"):
        if name in chosen and not isinstance(chosen[name], bool):
            raise UsageError(f"{name} must be true or false")
    step = chosen.get("step_size", 0.5)
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0.05 <= step <= 1:
        raise UsageError("step_size must be a number of 0.05 to 1, the distance of windows as a part of their size")
    return chosen


def _suits(plan: Plan, volume: Volume) -> tuple[str, ...]:
    """What is to be said of a scan that may be of the wrong kind. Raises `UnsupportedError` for one that certainly is."""
    if min(volume.shape) < 2 and not plan.flat:
        raise UnsupportedError("the model takes volumes, not a single slice; send the whole series")
    if not plan.modality or volume.modality == plan.modality:
        return ()
    if volume.modality is not None:
        raise UnsupportedError(f"the model is for {plan.modality}, the scan is {volume.modality}; choose another model, or correct the modality")
    return (f"the scan does not say what it is; it was taken as {plan.modality}, which the model is for",)
