"""`sam2`: SAM 2 and MedSAM2, followed through the slices with the network's own memory, through transformers' `Sam2VideoModel`.

Made for the published weights facebook/sam2.1-hiera-tiny, -small, -base-plus and -large (whose folders hold the video
network), and for MedSAM2; original checkpoints (sam2.1_hiera_tiny.pt, MedSAM2_latest.pt) are brought to that layout by
`convert`. Those weights could not be tried where this was written: the tests use random networks, compared with the
library's own processor, session and model.

What is sliced is the array's first axis (z), the plane in which a scan was acquired. Points (positive and negative), boxes
and masks on any slices condition the memory; from the first of these slices the structure is followed upwards and then
downwards, until three slices in a row hold none of it. A deep box bounds that. A mask on one slice is taken as the truth
there and followed; of masks on several slices, those are kept and what lies between them is filled in. A folder of the type
`sam2` holds the network for single pictures alone; it is followed as SAM is, see `isocenter.models.sam`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isocenter.core.catalog import Entry
from isocenter.core.model import ModelContext, ModelSpec, Task
from isocenter.models._sam.model import SliceModel

if TYPE_CHECKING:
    from isocenter.models._sam.still import Still
    from isocenter.models._sam.video import Tracker

_ORIGINAL = "convert it with `isocenter.models.sam2.convert(checkpoint, folder)`"


def offer(folder: Path, entry: Entry | None = None) -> ModelSpec:
    """The model in a transformers folder (`config.json` of type `sam2_video` or `sam2`, `model.safetensors`).

    entry.options: `window` ([lo, hi] in the scan's unit, instead of one chosen by what is clicked). Raises `ModelError`.
    """
    from isocenter.models._sam import folder as installed

    found = installed.look(folder, {"sam2", "sam2_video"}, _ORIGINAL)
    name = installed.named(folder, entry)
    options = dict(entry.options) if entry else {}
    video = found.config.get("model_type") == "sam2_video"
    how = "followed through the acquired slices (the array's first axis) with its own memory" if video else "slice by slice"
    return ModelSpec(
        id=name,
        version=str(options.get("version", "2.1")),
        task=Task.INTERACTIVE,
        factory="isocenter.models.sam2:Sam2",
        description=f"{'MedSAM2' if 'medsam' in name.lower() else 'SAM 2'}: clicks, boxes and masks, {how}",
        prompts=("point", "box", "mask"),
        options={"window": options.get("window")},
        licence=entry.licence if entry and entry.licence else "Apache-2.0",
        resident_bytes=found.resident(),
        **installed.shared(found, entry, installed.hiera_bytes(found.config)),
    )


class Sam2(SliceModel):
    """SAM 2 or MedSAM2."""

    def _read(self, context: ModelContext) -> Tracker | Still:
        from isocenter.models._sam.load import sam2

        return sam2(context)


def convert(checkpoint: Path, folder: Path, *, image_size: int | None = None) -> None:
    """Write a checkpoint as it was first published (sam2's names, also MedSAM2's) as a transformers folder.

    image_size: side of the network's pictures, which a checkpoint does not say: 512 for MedSAM2, told by the file's name if
    not given, else 1024. Raises `ModelError`.
    """
    from isocenter.models._sam import convert_sam2

    guessed = 512 if "medsam2" in checkpoint.name.lower().replace("_", "").replace("-", "") else 1024
    convert_sam2.convert(checkpoint, folder, image_size=image_size or guessed)
