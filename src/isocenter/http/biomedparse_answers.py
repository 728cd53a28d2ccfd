"""The shapes of BiomedParse's answers: its own keys first and in its order, then Isocenter's."""

from __future__ import annotations

from pydantic import BaseModel


class Health(BaseModel):
    """State of the service. problem: why the model that was chosen for words cannot answer, where it cannot."""

    status: str
    gpu_available: bool
    problem: str | None = None


class Result2D(BaseModel):
    """One prompt's answer in a picture. mask and heatmap are base64 of 8-bit PNGs of the picture's size."""

    prompt: str
    description: str
    classification_confidence: float
    mask_confidence: float
    mask_format: str
    mask: str
    heatmap: str | None
    model: str
    version: str
    weights_sha256: str | None
    notes: list[str]


class Result3D(BaseModel):
    """One prompt's answer in a volume. affine maps (x, y, z, 1) to RAS millimetres; spacing is (z, y, x) as `axis_order` says."""

    prompt: str
    description: str
    presence_confidence: float
    mask_confidence: float
    mask_format: str
    mask_shape: list[int]
    mask_url: str
    heatmap_url: str | None
    axis_order: str
    affine: list[list[float]]
    spacing: list[float]
    series_uid: str | None
    model: str
    version: str
    weights_sha256: str | None
    notes: list[str]


class Answer2D(BaseModel):
    """All prompts' answers, in their order."""

    status: str
    results: list[Result2D]


class Answer3D(BaseModel):
    """All prompts' answers, in their order."""

    status: str
    results: list[Result3D]


class Array(BaseModel):
    """An array as bytes in C order."""

    shape: list[int]
    dtype: str
    data_base64: str
