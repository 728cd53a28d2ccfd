"""Segmentations as jobs: what a request may say, and the handler that turns a stored scan into the files that were asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isocenter.analysis.label_figures import LabelMeasured, label_figures
from isocenter.analysis.measurements import describe_image
from isocenter.core import naming
from isocenter.core.errors import PromptError, UnsupportedError, UsageError
from isocenter.core.model import ModelSpec, Run, Task
from isocenter.core.plain_prompts import parse_prompts
from isocenter.core.prompts import Box, Prompt, Text
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.io import door, picture, seg, sr_labels, write
from isocenter.io.upload import Upload
from isocenter.jobs.backend import Backend
from isocenter.jobs.handler import Handler, JobInput, JobResult, Product
from isocenter.jobs.studies import Study
from isocenter.jobs.table import NORMAL, Job, NewJob, Stored
from isocenter.models.registry import Registry
from isocenter.patients import job as tracking
from isocenter.service import Service

KIND = "segment"
SCAN = "scan"
#: Formats of results: the file's name and its media type.
FORMATS: Mapping[str, tuple[str, str]] = {
    "nifti": ("mask.nii.gz", "application/gzip"),
    "dicom_seg": ("mask.dcm", "application/dicom"),
    "dicom_sr": ("measurements.dcm", "application/dicom"),
    "npz": ("mask.npz", "application/octet-stream"),
    "nrrd": ("mask.nrrd", "application/octet-stream"),
    "seg_nrrd": ("mask.seg.nrrd", "application/octet-stream"),
    "stl": ("surface.stl", "model/stl"),
    "obj": ("surface.obj", "model/obj"),
    "measurements": ("measurements.json", "application/json"),
    "preview": ("preview.png", "image/png"),
    "image": ("image.nii.gz", "application/gzip"),
}
#: Those that refer to the scan's own DICOM files, and what they are called.
_OF_DICOM: Mapping[str, str] = {"dicom_seg": "DICOM SEG", "dicom_sr": "DICOM report"}
DEFAULT_FORMATS = ("nifti", "measurements", "preview")


@dataclass(frozen=True)
class SegmentRequest:
    """What to do with a scan.

    prompts: plain data as `parse_prompts` takes it. parameters: the model's own options; `threshold` for words. formats:
    of `FORMATS`. series_uid, modality, window: how to read the scan, as `Service.open` takes them. priority: 0..9. queue:
    "gpu" or "cpu", by default what the model gains from.
    """

    model: str | None = None
    prompts: Sequence[Any] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = DEFAULT_FORMATS
    series_uid: str | None = None
    modality: str | None = None
    window: str | None = None
    priority: int = NORMAL
    queue: str | None = None

    def check(self, registry: Registry) -> ModelSpec:
        """The model that will answer. Raises what would else only come out when the job runs."""
        unknown = [f for f in self.formats if f not in FORMATS]
        if unknown or not self.formats:
            raise UsageError(f"there is no format '{unknown[0][:40] if unknown else ''}'; there are: {', '.join(FORMATS)}")
        prompts = parse_prompts(self.prompts)
        words = any(isinstance(p, Text) for p in prompts)
        if words and not all(isinstance(p, Text) for p in prompts):
            raise PromptError("give either words or points, boxes, scribbles and lassos, not both")
        _threshold(self.parameters)
        if self.window is not None:
            picture.check_window(self.window, self.modality)
        if self.model is not None:
            spec = registry.spec(self.model)
        elif prompts:
            texts = [p.text for p in prompts if isinstance(p, Text)]
            spec = registry.first_for(texts, self.modality) if words else registry.first(Task.INTERACTIVE)
        else:
            raise UsageError("say what to segment: name a model that finds its structures by itself, or give prompts")
        if spec.task not in (Task.TEXT, Task.INTERACTIVE, Task.SCRIBBLES, Task.SEGMENT):
            raise UsageError(f"the model '{spec.id}' makes no masks")
        _check_kinds(spec, prompts, words=words)
        if strange := sorted(set(self.parameters) - {*spec.options, "threshold"}):
            known = ", ".join([*spec.options, *(["threshold"] if spec.task is Task.TEXT else [])])
            raise UsageError(f"the model '{spec.id}' has no parameter '{strange[0][:40]}'; it has: {known or 'none'}")
        return spec


def _check_kinds(spec: ModelSpec, prompts: Sequence[Prompt], *, words: bool) -> None:
    """Raise `PromptError` for prompts that a model does not take, as far as that can be told without loading it."""
    if spec.task is not Task.SEGMENT and not prompts:
        raise PromptError(f"the model '{spec.id}' needs prompts: {', '.join(spec.prompts)}")
    if prompts and words != (spec.task in (Task.TEXT, Task.SEGMENT)):
        raise PromptError(
            f"the model '{spec.id}' takes {', '.join(spec.prompts) or 'the names of its labels'}; {'no words' if words else 'no places'}"
        )
    if spec.task is Task.SEGMENT:
        for prompt in prompts:
            naming.label_of(prompt.text if isinstance(prompt, Text) else "", spec.labels, spec.synonyms)
    if spec.task is Task.SCRIBBLES and sum(isinstance(p, Box) for p in prompts) > 1:
        raise PromptError(f"the model '{spec.id}' takes one box at most, the region to stay in")


def _check_scan(service: Service, request: SegmentRequest, source: Upload | Study) -> None:
    """Raise what is known to go wrong with this very scan: by the kind of its file, and, where it is decoded already, by its size."""
    volume = service.known(source.digest, source.suffix[:16], series_uid=request.series_uid, modality=request.modality, window=request.window)
    if volume is not None:
        service.check(parse_prompts(request.prompts), volume)
        _check_dicom(request.formats, seg.refusal(volume))
        return
    kind = door.kind_of_upload(source) if isinstance(source, Upload) else "dicom"
    if request.window is not None and kind in ("dicom", "nifti", "nrrd"):
        raise UnsupportedError(picture.NO_PICTURE)
    _check_dicom(request.formats, seg.NO_DICOM if kind in ("nifti", "nrrd", "picture") else None)


def _check_dicom(formats: Sequence[str], reason: str | None) -> None:
    """Raise `UsageError` for formats of DICOM's, where there is a reason why these cannot be had."""
    for name in formats:
        if reason and name in _OF_DICOM:
            raise UsageError(reason.replace("DICOM SEG", _OF_DICOM[name]))


def submit(
    service: Service,
    backend: Backend,
    request: SegmentRequest,
    source: Upload | Study,
    *,
    key: str | None = None,
    owner: str | None = None,
    same_within: float | None = None,
    series_id: str | None = None,
) -> tuple[Job, bool]:
    """The job of a request, and whether it is new. source: an upload, which is kept, or a study that is there already."""
    spec = request.check(service.registry)
    _check_scan(service, request, source)
    settings = backend.settings
    suffix = source.suffix[:16] or ""
    scan = Stored(SCAN + suffix, source.digest, source.size if isinstance(source, Upload) else source.bytes)
    new = NewJob(
        kind=KIND,
        request={
            "model": spec.id,
            "prompts": list(request.prompts),
            "parameters": dict(request.parameters),
            "formats": list(dict.fromkeys(request.formats)),
            "series_uid": request.series_uid,
            "modality": request.modality,
            "window": request.window,
            "suffix": suffix,
        },
        inputs=(scan,),
        queue=request.queue or ("gpu" if any(d != "cpu" for d in spec.devices) else "cpu"),
        priority=request.priority,
        model=spec.id,
        owner=owner,
        study_id=None if isinstance(source, Upload) else source.id,
        series_id=series_id,
        max_attempts=settings.job_attempts,
    )
    files = {source.digest: source.file} if isinstance(source, Upload) else None
    within = settings.job_same_within if same_within is None else same_within
    return backend.submit(new, key=key, same_within=within, files=files)


def handler(service: Service) -> Handler:
    """What workers are given: segments a scan, or follows a patient, with this service's models."""

    def work(given: JobInput, run: Run) -> JobResult:
        if given.job.kind == tracking.KIND:
            return tracking.work(service, given, run)
        return _segment(service, given, run)

    return work


def _segment(service: Service, given: JobInput, run: Run) -> JobResult:
    asked = given.request
    seconds: dict[str, float] = {}
    run.check(0.0, "reading the scan")
    started = time.perf_counter()
    scan = given.job.inputs[0]
    how = {name: asked.get(name) for name in ("series_uid", "modality", "window")}
    volume = service.open_stored(given.files[scan.name], scan.digest, asked.get("suffix", ""), **how)
    _check_dicom(asked["formats"], seg.refusal(volume))
    seconds["read"] = time.perf_counter() - started
    run.check(0.1, "segmenting")
    within = Run(lambda f, message: run.progress(0.1 + 0.7 * f, message or "segmenting"), run.cancelled)
    result = _answer(service, volume, asked, within)
    seconds |= dict(result.provenance.seconds)
    run.check(0.8, "writing")
    started = time.perf_counter()
    measured = label_figures(result, volume)
    facts = describe(result, volume, measured)
    made: dict[str, bytes] = {}
    # A report refers to the DICOM SEG beside it, so that is written before.
    for number, name in enumerate(sorted(asked["formats"], key="dicom_sr".__eq__)):
        run.check(0.8 + 0.2 * number / len(asked["formats"]), f"writing {name}")
        if name == "dicom_sr":
            made[name] = sr_labels.write(result, volume, [m.reported() for m in measured], made.get("dicom_seg"))
        else:
            made[name] = encode(name, result, volume, facts)
    products = [Product(FORMATS[name][0], made[name], FORMATS[name][1]) for name in asked["formats"]]
    seconds["write"] = time.perf_counter() - started
    return JobResult(tuple(products), facts, seconds)


def _answer(service: Service, volume: Volume, asked: Mapping[str, Any], run: Run) -> Segmentation:
    prompts = parse_prompts(asked["prompts"])
    parameters = dict(asked["parameters"])
    threshold = _threshold(parameters)
    options = {k: v for k, v in parameters.items() if k != "threshold"}
    spec = service.registry.spec(asked["model"])
    if spec.task is Task.SCRIBBLES:
        boxes = [p for p in prompts if isinstance(p, Box)]
        rest = [p for p in prompts if not isinstance(p, Box)]
        return service.separate(volume, rest, roi=boxes[0] if boxes else None, options=options, model=spec.id)
    if spec.task is Task.SEGMENT and prompts:
        return service.label(volume, model=spec.id, options=options, labels=[p.text for p in prompts if isinstance(p, Text)], run=run)
    return service.segment(volume, prompts, threshold=threshold, model=spec.id, options=options or None, run=run)


def _threshold(parameters: Mapping[str, Any]) -> float:
    value = parameters.get("threshold", 0.5)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError("threshold must be a number from 0 to 1")
    return float(value)


def describe(result: Segmentation, volume: Volume, measured: Sequence[LabelMeasured] | None = None) -> dict[str, Any]:
    """What measurements.json holds: every class with its figures, the image, and how the answer came about.

    measured: what `label_figures` says of both, where it was computed already.
    """
    labels = [label.as_dict() for label in (label_figures(result, volume) if measured is None else measured)]
    return {"model": result.provenance.model, "labels": labels, "image": describe_image(volume), "provenance": result.provenance.as_dict()}


def encode(name: str, result: Segmentation, volume: Volume, facts: Mapping[str, Any]) -> bytes:
    """The bytes of a result in one of `FORMATS` but the report, which needs more."""
    if name == "measurements":
        return (json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n").encode()
    if name == "preview":
        from isocenter.io import preview

        return preview.png(volume, result)
    if name == "image":
        return write.encode_image(volume, ".nii.gz")
    if name in ("stl", "obj"):
        return _surfaces(name, result)
    return write.encode(result, FORMATS[name][0].removeprefix("mask"), volume)


def _surfaces(kind: str, result: Segmentation) -> bytes:
    """The surfaces of all labels that are there."""
    import numpy as np

    from isocenter.analysis.surface import mesh
    from isocenter.io import mesh as files

    meshes = []
    for label in result.labels:
        inside = result.mask == label.value
        used = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if not used[0].size:
            continue
        first = (int(used[0][0]), int(used[1][0]), int(used[2][0]))
        crop = inside[tuple(slice(int(u[0]), int(u[-1]) + 1) for u in used)]
        corners, triangles = mesh(crop, result.grid, first=first)
        meshes.append((corners, files.outward(corners, triangles), label.name))
    return files.stl(meshes) if kind == "stl" else files.obj(meshes)
