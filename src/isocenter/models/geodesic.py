"""`geodesic`: the interactive engine that needs no download, for any CT, MR, ultrasound or picture, in 2-D and 3-D.

This file is the model as the rest of the program sees it; `isocenter.models._geodesic` holds how it works, and
`docs/clicks.md` explains it. numba is only imported when the model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isocenter.core.model import ModelContext, ModelSpec, Task
from isocenter.core.volume import Volume

if TYPE_CHECKING:
    from isocenter.models._geodesic.prepared import Prepared
    from isocenter.models._geodesic.session import ClickSession

SPEC = ModelSpec(
    id="geodesic",
    version="1",
    task=Task.INTERACTIVE,
    factory="isocenter.models.geodesic:Geodesic",
    description="Clicks, boxes, lines and outlines on any scan or picture; nothing to download, runs on a CPU",
    modalities=(),
    dimensions=(2, 3),
    prompts=("point", "box", "scribble", "lasso", "mask"),
    resident_bytes={"float32": 0},
    scratch_bytes={"float32": 128 << 20},
)


class Geodesic:
    """The interactive model; holds nothing of any volume itself."""

    def load(self, context: ModelContext) -> None:
        """Compile the kernels, or take them from numba's cache."""
        warm()

    def prepare(self, volume: Volume) -> Prepared:
        """What depends on the volume alone; cheap, the rest is made where and when a prompt needs it."""
        from isocenter.models._geodesic.prepared import Prepared

        return Prepared(volume)

    def begin(self, prepared: Prepared) -> ClickSession:
        """An empty mask on the volume, ready for prompts."""
        from isocenter.models._geodesic.session import ClickSession

        return ClickSession(prepared)

    def close(self) -> None:
        """Nothing is held."""


def warm() -> None:
    """Compile every kernel, or load it from the cache: once per process, callable from any thread."""
    from isocenter.models import _distance  # noqa: F401
    from isocenter.models._geodesic import kernels, voxel_kernels  # noqa: F401  explicit signatures: importing compiles
