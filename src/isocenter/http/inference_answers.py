"""Bodies of the ONNX inference service's protocol: its keys, in its order, from this program's studies, models and jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BaseModel, Field

from isocenter.core.errors import UsageError
from isocenter.core.model import ModelSpec, Task
from isocenter.core.parts import side_by_side
from isocenter.http.job_answers import stamp
from isocenter.jobs.studies import Study, StudySeries
from isocenter.jobs.table import Job, State, Stored
from isocenter.jobservice import FORMATS, SegmentRequest

#: The files that a job of this protocol makes, by what `output_format` asks for.
OUTPUTS = {"nifti": "nifti", "dicom-seg": "dicom_seg"}
#: Parameters of a sliding window, which models without one do without.
_WINDOW = ("step_size", "use_gaussian", "use_tta")
_FAMILIES = {"onnx_volume": "nnunet"}


class Submission(BaseModel):
    """What to run on an uploaded study. model_id: a model's id, or its name."""

    study_id: UUID
    series_id: UUID | None = None
    model_id: str = Field(max_length=128)
    parameters: dict[str, Any] | None = None


def model_id(name: str) -> str:
    """The id of a model in this protocol: the same on every server."""
    return str(uuid5(NAMESPACE_URL, f"isocenter:model:{name}"))


def offered(specs: Iterable[ModelSpec]) -> list[ModelSpec]:
    """The models that run on a scan without being told where to look: first those that take nothing, then those with words of their own."""
    own = [s for s in specs if s.task is Task.SEGMENT or (s.task is Task.TEXT and s.labels)]
    return sorted(own, key=lambda s: s.task is not Task.SEGMENT)


def request_of(spec: ModelSpec, parameters: dict[str, Any], series_uid: str | None) -> SegmentRequest:
    """The job that a submission asks for. Raises `UsageError` for parameters that the model does not have."""
    rest = dict(parameters)
    asked = rest.pop("output_format", "nifti")
    if not isinstance(asked, str) or asked not in OUTPUTS:
        raise UsageError(f"output_format must be one of {', '.join(OUTPUTS)}")
    known = {**spec.options, "threshold": 0.5} if spec.task is Task.TEXT else spec.options
    unknown = sorted(str(k)[:40] for k in rest if k not in known and k not in _WINDOW)
    if unknown:
        raise UsageError(f"the model '{spec.id}' has no parameter '{unknown[0]}'; it has: {', '.join(known) or 'none'}")
    return SegmentRequest(
        model=spec.id,
        prompts=[label.name for label in side_by_side(spec.labels)] if spec.task is Task.TEXT else [],
        parameters={k: v for k, v in rest.items() if k in known},
        formats=(OUTPUTS[asked], "image", "measurements"),
        series_uid=series_uid,
    )


def mask_of(job: Job) -> tuple[str, Stored] | None:
    """The mask among a job's files, and its name for who downloads it."""
    for name in OUTPUTS.values():
        stored = job.artifact(FORMATS[name][0])
        if stored is not None:
            return f"{job.id}_seg{'.dcm' if name == 'dicom_seg' else '.nii.gz'}", stored
    return None


def image_of(job: Job) -> tuple[str, Stored] | None:
    """The scan among a job's files."""
    stored = job.artifact(FORMATS["image"][0])
    return None if stored is None else (f"{job.id}_ct.nii.gz", stored)


def study_answer(study: Study) -> dict[str, Any]:
    """A study. Who the patient is was never stored, so `patient_id` is null."""
    return {
        "study_instance_uid": study.study_uid,
        "study_date": study.date,
        "study_time": study.time,
        "study_description": study.description,
        "patient_id": None,
        "modality": study.modality,
        "institution_name": study.institution,
        "id": study.id,
        "file_count": study.files,
        "created_at": stamp(study.created),
        "series": [_series(s, study) for s in study.series],
    }


def _series(series: StudySeries, study: Study) -> dict[str, Any]:
    facts = series.facts
    return {
        "series_instance_uid": facts.series_uid,
        "series_number": facts.number,
        "series_description": facts.description,
        "modality": facts.modality,
        "body_part_examined": facts.body_part,
        "id": series.id,
        "image_count": facts.images,
        "created_at": stamp(study.created),
    }


def metadata_answer(study: Study, series: StudySeries) -> dict[str, Any]:
    """The technical attributes of a series' first image, by DICOM keyword, beside what the series is."""
    return {**_series(series, study), "study_id": study.id, "metadata": series.facts.metadata}


def model_answer(spec: ModelSpec) -> dict[str, Any]:
    """A model. Paths are relative to the models' folder, and null for a model without an ONNX file."""
    family = spec.factory.partition(":")[0].rpartition(".")[2]
    folder = spec.weights.name if spec.weights is not None and family == "onnx_volume" else None
    return {
        "name": spec.id,
        "model_type": _FAMILIES.get(family, family),
        "onnx_path": folder and f"{folder}/model.onnx",
        "config_path": folder and f"{folder}/config.json",
        "modality": spec.modalities[0] if spec.modalities else None,
        "description": spec.description,
        "is_active": True,
        "id": model_id(spec.id),
        "created_at": _installed(spec),
        "labels": [label.name for label in spec.labels],
        "fallback": spec.fallback,
    }


def _installed(spec: ModelSpec) -> str | None:
    try:
        return None if spec.weights is None else datetime.fromtimestamp(spec.weights.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
    except OSError:
        return None


def job_answer(job: Job) -> dict[str, Any]:
    """A job."""
    mask = mask_of(job)
    parameters = dict(job.request.get("parameters", {}))
    if "dicom_seg" in job.request.get("formats", ()):
        parameters["output_format"] = "dicom-seg"
    return {
        "status": job.state.value,
        "progress": job.progress,
        "error_message": job.error,
        "parameters": parameters,
        "result_path": f"inference_results/{job.id}/{mask[0]}" if mask else None,
        "metrics": metrics(job) if job.state is State.COMPLETED else None,
        "id": job.id,
        "model_id": model_id(job.model) if job.model else None,
        "study_id": job.study_id,
        "series_id": job.series_id,
        "created_at": stamp(job.created),
        "started_at": stamp(job.started),
        "completed_at": stamp(job.finished),
    }


def metrics(job: Job) -> dict[str, Any]:
    """What was found. volume_mm3 is by the voxels' true size; bounding_box is x_min, x_max, y_min, y_max, z_min, z_max, all inside."""
    labels = job.facts.get("labels", [])
    shape = list(reversed(job.facts.get("image", {}).get("voxels", [])))
    found = [entry for entry in labels if entry["voxels"]]
    return {
        "detected_classes": {
            entry["name"]: {
                "class_id": entry["label"],
                "voxel_count": entry["voxels"],
                "volume_mm3": entry["volume_mm3"],
                "mean_hu": entry.get("mean_hu"),
                "longest_mm": entry.get("longest_mm"),
                "short_axis_mm": entry.get("short_axis_mm"),
                "touches_border": entry.get("touches_border"),
                "bounding_box": None if entry["box"] is None else [v for pair in zip(*entry["box"], strict=True) for v in pair],
            }
            for entry in found
        },
        "total_foreground_voxels": sum(entry["voxels"] for entry in found),
        "output_shape": shape,
        "unique_class_ids": sorted([0] * _background(found, shape) + [entry["label"] for entry in found]),
    }


def _background(found: list[dict[str, Any]], shape: list[int]) -> bool:
    """Whether any voxel belongs to no class."""
    return sum(int(entry["voxels"]) for entry in found) < math.prod(shape)


def result_answer(job: Job) -> dict[str, Any] | None:
    """A completed job's result; None where it made no mask."""
    mask, image = mask_of(job), image_of(job)
    if mask is None:
        return None
    measured = metrics(job)
    folder = f"inference_results/{job.id}"
    return {
        "output_format": "dicom-seg" if mask[0].endswith(".dcm") else "nifti",
        "file_path": f"{folder}/{mask[0]}",
        "source_image_path": f"{folder}/{image[0]}" if image else None,
        "classes": measured["detected_classes"],
        "result_metadata": {**measured, "spacing_mm": job.facts.get("image", {}).get("spacing_mm"), "provenance": job.facts.get("provenance")},
        "id": str(uuid5(NAMESPACE_URL, f"isocenter:result:{job.id}")),
        "job_id": job.id,
        "created_at": stamp(job.finished),
    }
