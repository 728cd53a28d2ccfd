"""What lesions look like to a network: a vector for each, beside a visit's other files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isocenter.analysis.case import Found, MeasuredVisit
from isocenter.analysis.pictures import lesion_picture
from isocenter.core.errors import UsageError
from isocenter.core.model import QUIET, ModelSpec, Run, Task
from isocenter.core.volume import Volume
from isocenter.followup import files
from isocenter.followup.options import TrackOptions
from isocenter.io import door
from isocenter.service import Service


def embedder(service: Service, options: TrackOptions) -> ModelSpec | None:
    """The model that describes lesions, None where none is installed or wanted. Raises `UnknownModelError` and `UsageError`."""
    if options.embedder == "none":
        return None
    if options.embedder is None:
        return next((s for s in service.models() if s.task is Task.DESCRIBE), None)
    spec = service.registry.spec(options.embedder)
    if spec.task is not Task.DESCRIBE:
        raise UsageError(f"the model '{spec.id}' describes no pictures; `isocenter models list` shows which do")
    return spec


def embedding_name(spec: ModelSpec) -> str:
    """What a model's vectors are called in files and collections: they are compared only with those of the same weights."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{spec.id}-{(spec.weights_sha256 or spec.version)[:12]}")


def describe_lesions(service: Service, scan: Volume, found: Sequence[Found], spec: ModelSpec, run: Run = QUIET) -> NDArray[np.float32]:
    """(lesions, size): a vector of length one for each lesion of a scan."""
    pictures = [lesion_picture(scan, f.size) for f in found]
    run.check()
    return service.describe(pictures, model=spec.id)


def described(service: Service, visit: MeasuredVisit, folder: Path, spec: ModelSpec, run: Run) -> None:
    """`embedding-{model}.npy` beside a visit's other files; its rows are the lesions in their order."""
    name, key = embedding_name(spec), files.key_of(folder)
    file, state = folder / f"embedding-{name}.npy", folder / f"embedding-{name}.json"
    if file.is_file() and (files.read_json(state) or {}).get("key") == key:
        return
    scan = door.read_path(folder / "scan.nii.gz", limits=service.settings, modality=visit.timepoint.modality)
    files.save_array(file, describe_lesions(service, scan, visit.found or (), spec, run))
    files.save(state, files.json_bytes({"key": key, "model": spec.id, "version": spec.version, "weights_sha256": spec.weights_sha256}))
