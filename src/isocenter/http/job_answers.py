"""The native job and study API's bodies."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from isocenter.jobs.studies import Study, StudySeries
from isocenter.jobs.table import NORMAL, Job, Stored
from isocenter.jobservice import DEFAULT_FORMATS, SegmentRequest


class JobRequest(BaseModel):
    """What to do with a scan. Positions are voxel indices [x, y, z] as the image's own file counts them, from 0."""

    model_config = ConfigDict(extra="forbid")

    study_id: str | None = Field(None, max_length=64, description="An uploaded study, where no file comes along.")
    series_id: str | None = Field(None, max_length=64, description="A series of it, by id or UID; the largest by default.")
    model: str | None = Field(None, max_length=128, description="Model id; by default the first that takes such prompts.")
    prompts: list[Any] = Field(
        default_factory=list,
        max_length=10_000,
        description="Words, or objects with one of `text`, `point` [x,y,z], `box` [x0,y0,z0,x1,y1,z1], `scribble` or `lasso` [[x,y,z], ...], and "
        "perhaps `positive`.",
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="The model's own options; `threshold` (0..1) for words.")
    formats: list[str] = Field(default_factory=lambda: list(DEFAULT_FORMATS), max_length=20, description="What to write.")
    priority: int = Field(NORMAL, ge=0, le=9, description="9 is the most urgent.")
    queue: str | None = Field(None, pattern="^(gpu|cpu)$", description="Whose work it is; by default what the model gains from.")
    series_uid: str | None = Field(None, max_length=64, description="Which DICOM series, where a file holds several.")
    modality: str | None = Field(None, max_length=16, description="What the scan is, where its file does not say.")
    window: str | None = Field(None, max_length=32, description="`W/L` in HU of a picture of a CT.")

    def to_request(self, series_uid: str | None) -> SegmentRequest:
        """As the job service takes it."""
        return SegmentRequest(
            model=self.model,
            prompts=self.prompts,
            parameters=self.parameters,
            formats=tuple(self.formats),
            series_uid=self.series_uid if series_uid is None else series_uid,
            modality=self.modality,
            window=self.window,
            priority=self.priority,
            queue=self.queue,
        )


class ArtifactAnswer(BaseModel):
    """A result file. blake3: of its bytes."""

    name: str
    bytes: int
    media_type: str
    blake3: str
    url: str


class JobAnswer(BaseModel):
    """A job. progress: 0..1. result: measurements and provenance of a completed one. seconds: by stage.

    kept: it stays whatever its age.
    """

    id: str
    status: str
    progress: float
    message: str
    model: str | None
    queue: str
    priority: int
    attempts: int
    study_id: str | None
    series_id: str | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    error_code: str | None
    error: str | None
    seconds: dict[str, float]
    artifacts: list[ArtifactAnswer]
    kept: bool
    result: dict[str, Any] | None = None


class JobPage(BaseModel):
    """A page of jobs, newest first. count: how many there are in all."""

    data: list[JobAnswer]
    count: int


class SeriesAnswer(BaseModel):
    """A series of a study."""

    id: str
    series_uid: str
    modality: str
    images: int
    number: int | None
    description: str
    body_part: str


class StudyAnswer(BaseModel):
    """An uploaded study. Whose it is is not told."""

    id: str
    study_uid: str
    created_at: str
    bytes: int
    files: int
    study_date: str
    study_time: str
    description: str
    institution: str
    modality: str
    series: list[SeriesAnswer]


class StudyPage(BaseModel):
    """A page of studies, newest first. count: how many there are in all."""

    data: list[StudyAnswer]
    count: int


def stamp(seconds: float | None) -> str | None:
    """ISO 8601 in UTC of seconds since 1970."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def job_answer(job: Job, base: str = "/api/v1/jobs", *, result: bool = True) -> JobAnswer:
    """A job as the API tells it. result: with its measurements."""

    def artifact(stored: Stored) -> ArtifactAnswer:
        url = f"{base}/{job.id}/artifacts/{stored.name}"
        return ArtifactAnswer(name=stored.name, bytes=stored.bytes, media_type=stored.media_type, blake3=stored.digest, url=url)

    return JobAnswer(
        id=job.id,
        status=job.state.value,
        progress=job.progress,
        message=job.message,
        model=job.model,
        queue=job.queue,
        priority=job.priority,
        attempts=job.attempts,
        study_id=job.study_id,
        series_id=job.series_id,
        created_at=stamp(job.created) or "",
        started_at=stamp(job.started),
        completed_at=stamp(job.finished),
        error_code=job.error_code,
        error=job.error,
        seconds=dict(job.seconds),
        artifacts=[artifact(a) for a in job.artifacts],
        kept=job.kept,
        result=dict(job.facts) if result and job.facts else None,
    )


def series_answer(series: StudySeries) -> SeriesAnswer:
    """A series as the API tells it."""
    facts = series.facts.as_dict()
    return SeriesAnswer(id=series.id, **{k: v for k, v in facts.items() if k != "metadata"})


def study_answer(study: Study) -> StudyAnswer:
    """A study as the API tells it."""
    return StudyAnswer(
        id=study.id,
        study_uid=study.study_uid,
        created_at=stamp(study.created) or "",
        bytes=study.bytes,
        files=study.files,
        study_date=study.date,
        study_time=study.time,
        description=study.description,
        institution=study.institution,
        modality=study.modality,
        series=[series_answer(s) for s in study.series],
    )
