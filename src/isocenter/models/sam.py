"""`sam`: Segment Anything (SAM) and MedSAM, slice by slice, through transformers' `SamModel`.

Made for the published weights facebook/sam-vit-base, -large and -huge, and wanglab/medsam-vit-base; original checkpoints
(sam_vit_b_01ec64.pth, medsam_vit_b.pth) are brought to that layout by `convert`. Those weights could not be tried where
this was written: the tests use random networks, compared with the library's own processor and model, and a tiny SAM that
was trained on the phantom.

What is sliced is the array's first axis (z), the plane in which a scan was acquired. A click or a box on one slice is
followed into the next ones; a mask is taken as a first guess, slice by slice, 4 to 8 of them at once. SAM takes positive
and negative points, boxes and masks. MedSAM was trained with boxes alone: a mask gives it boxes, and a positive click a box
of 40 mm around it, which is then drawn again around what was found; negative points it refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext, ModelSpec, Task
from isocenter.models._sam.model import SliceModel

if TYPE_CHECKING:
    from isocenter.models._sam.still import Still

_ORIGINAL = "convert it with `isocenter.models.sam.convert(checkpoint, folder)`"


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The model in a transformers folder (`config.json` of type "sam", `model.safetensors`).

    entry.options: `medsam` (bool: boxes alone, MedSAM's pictures; told by the name otherwise), `window` ([lo, hi] in the
    scan's unit, instead of one chosen by what is clicked), `click_mm` (side of MedSAM's box around a click, 40).
    Raises `ModelError`.
    """
    from isocenter.models._sam import folder as installed

    found = installed.look(folder, {"sam"}, _ORIGINAL)
    name = installed.named(folder, entry)
    options = dict(entry.options) if entry else {}
    vision = found.config.get("vision_config") or {}
    if not isinstance(vision, dict):
        raise ModelError("the model's config.json is not what it should be; download the model again")
    medsam = bool(options.get("medsam", "medsam" in f"{name} {folder.name}".lower()))
    kinds = "boxes, masks and positive clicks" if medsam else "clicks, boxes and masks"
    return ModelSpec(
        id=name,
        version=str(options.get("version", "1")),
        task=Task.INTERACTIVE,
        factory="isocenter.models.sam:Sam",
        description=f"{'MedSAM' if medsam else 'Segment Anything'}: {kinds}, followed through the acquired slices (the array's first axis)",
        prompts=("point", "box", "mask"),
        options={"medsam": medsam, "window": options.get("window"), "click_mm": float(options.get("click_mm", 40.0))},
        licence=entry.licence if entry and entry.licence else "Apache-2.0",
        resident_bytes=found.resident(),
        **installed.shared(found, entry, installed.sam_bytes(vision)),
    )


class Sam(SliceModel):
    """SAM or MedSAM."""

    def _read(self, context: ModelContext) -> Still:
        from isocenter.models._sam.still import load_sam

        return load_sam(context)


def convert(checkpoint: Path, folder: Path, *, medsam: bool | None = None) -> None:
    """Write a checkpoint as it was first published (segment-anything's names, also MedSAM's) as a transformers folder.

    medsam: whether it wants MedSAM's pictures; told by the file's name if not given. Raises `ModelError`.
    """
    from isocenter.models._sam import convert_sam

    convert_sam.convert(checkpoint, folder, medsam="medsam" in checkpoint.name.lower() if medsam is None else medsam)
