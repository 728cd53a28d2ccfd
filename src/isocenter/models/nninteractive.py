"""nnInteractive: clicks, boxes, scribbles and lassos, answered in 3-D, through its own inference session.

For `nnInteractive_v1.0` (weights under CC BY-NC-SA 4.0) and later checkpoint folders: `plans.json`, `dataset.json`,
`inference_session_class.json` or `inference_info.json`, `fold_*/checkpoint_final.pth` or the weights as safetensors. The scan
goes in as it is stored, in SimpleITK's order (z, y, x), unscaled and not resampled, as its authors ask for. The library
takes back one step; here every step can be taken back, exactly, by the library's own records. Work on a structure outlives
the eviction of the model and goes on with the network that is loaded next.

Published checkpoints know boxes in one plane: a solid box is asked in its middle plane, across its shortest side. On a GPU
the library computes in float16 whatever precision is asked for. The published weights were not at hand: what was tried are
small random networks, compared with the library's session voxel by voxel.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext, ModelSpec, Task
from isocenter.core.volume import Volume
from isocenter.models import _weights
from isocenter.models._nnunet import folder as _folder

if TYPE_CHECKING:
    from isocenter.models._nninteractive.loaded import Loaded
    from isocenter.models._nninteractive.work import Prepared, Work

_CITATION = "Isensee, Rokuss, Krämer et al., nnInteractive: Redefining 3D Promptable Segmentation, arXiv:2503.08373"


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The spec of a checkpoint folder; it may lie one or two folders below. Raises `ModelError` for an unusable one."""
    found = _folder.find(folder)
    if not any((found / name).is_file() for name in ("inference_info.json", "inference_session_class.json")):
        raise ModelError("its inference_session_class.json is missing; install the model again")
    plans = _folder.read_json(found / "plans.json")
    paths = _folder.checkpoints(found, None)
    if len(paths) != 1:
        raise ModelError(f"the folder holds {len(paths)} folds; nnInteractive uses one")
    try:
        for name in plans["configurations"]:
            _folder.check_network(_folder.inherited(plans["configurations"], name))
        patch = max((c["patch_size"] for c in plans["configurations"].values() if "patch_size" in c), key=math.prod)
        voxels = math.prod(int(n) for n in patch)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError("its plans.json is not as nnInteractive writes it") from None
    size = paths[0].stat().st_size
    scratch = voxels * 32 * 4 * 6
    return ModelSpec(
        id=entry.id if entry else folder.name,
        version=(entry.revision[:12] if entry else "") or "1",
        task=Task.INTERACTIVE,
        factory="isocenter.models.nninteractive:NNInteractive",
        description=(entry.description if entry else "") or "nnInteractive: points, boxes, scribbles and lassos in 3-D",
        dimensions=(2, 3),
        prompts=("point", "box", "scribble", "lasso", "mask"),
        licence=(entry.licence if entry else "") or "unknown",
        citation=(entry.citation if entry else "") or _CITATION,
        weights_sha256=_weights.sha256(paths),
        weights_bytes=size,
        weights=folder,
        packages=("torch", "nnInteractive"),
        resident_bytes={"float32": size, "float16": size},
        scratch_bytes={"float32": scratch, "float16": scratch // 2},
        devices=("cpu", "cuda", "mps"),
    )


class NNInteractive:
    """One checkpoint. For one caller at a time."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None

    def load(self, context: ModelContext) -> None:
        """Read the folder and build the network. Raises `ModelError`."""
        try:
            from isocenter.models._nninteractive import loaded
        except ImportError:
            raise ModelError("nnInteractive is not installed here; install it with: pip install 'isocenter[torch,nninteractive]'") from None
        self._loaded = loaded.Loaded(context)
        loaded.install(self._loaded)

    def close(self) -> None:
        """Give its memory back; sessions keep their masks and prompts, not the network."""
        if self._loaded is not None:
            from isocenter.models._nninteractive import loaded

            loaded.remove(self._loaded)
            self._loaded = None

    def prepare(self, volume: Volume) -> Prepared:
        """The scan in the network's scale. Raises `UnsupportedError` for one with nothing in it."""
        from isocenter.models._nninteractive.work import Prepared

        if self._loaded is None:
            raise ModelError("the model is not loaded")
        return Prepared(self._loaded, volume)

    def begin(self, prepared: Prepared) -> Work:
        """An empty mask, ready for prompts."""
        from isocenter.models._nninteractive.work import Work

        return Work(prepared)
