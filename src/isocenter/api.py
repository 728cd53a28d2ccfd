"""The Python API: a scan in, a mask out, in this process and without a server."""

from __future__ import annotations

from functools import lru_cache
from os import PathLike
from pathlib import Path

from isocenter.core.model import ModelSpec
from isocenter.core.prompts import Prompt, Text
from isocenter.core.segmentation import Segmentation
from isocenter.core.settings import settings
from isocenter.core.volume import Volume
from isocenter.io import write
from isocenter.service import Service


@lru_cache(maxsize=1)
def _service() -> Service:
    return Service(settings())


def load(path: str | PathLike[str], *, series_uid: str | None = None, modality: str | None = None) -> Volume:
    """Read a scan: NIfTI, DICOM (file, folder, ZIP), NRRD, MetaImage, PNG or JPEG.

    series_uid chooses among several DICOM series (default: the largest); modality ("CT", "MR") overrides what the file
    says or what was inferred. Raises `IsocenterError` with a sentence that says what is wrong.
    """
    return _service().open_path(Path(path), series_uid=series_uid, modality=modality)


def segment(volume: Volume, *prompts: str | Prompt, model: str | None = None, threshold: float = 0.5) -> Segmentation:
    """Masks for words ("liver", "left lung") or for points, boxes, scribbles, lassos and masks, on the volume's own grid.

    Points and the like are voxel indices (z, y, x). model: an id out of `list_models()`; default: the first that takes such
    prompts. threshold: for words, a voxel is inside when its probability is larger.
    """
    given = [Text(p) if isinstance(p, str) else p for p in prompts]
    return _service().segment(volume, given, model=model, threshold=threshold)


def save(result: Segmentation, path: str | PathLike[str], volume: Volume) -> Path:
    """Write a segmentation of `volume`; the format is the path's suffix.

    `.nii.gz`, `.nii`, `.nrrd`, `.seg.nrrd`, `.npz`, `.png` (one slice), or `.dcm` for DICOM SEG (of a DICOM volume).
    """
    target = Path(path)
    target.write_bytes(write.encode(result, write.suffix_of(target.name), volume))
    return target


def list_models() -> list[ModelSpec]:
    """The models that can answer here."""
    return _service().models()
