"""`sam3`: SAM 3, by clicks and boxes with propagation (its tracker) and by words (its detector), through transformers.

Made for the published weights facebook/sam3, one folder from which two models are offered: the tracker under the folder's own
name (clicks, boxes, masks: `Sam3TrackerVideoModel`), the detector with `-text` behind it (words: `Sam3Model`). Folders of the
types `sam3_tracker_video`, `sam3_tracker` (single pictures) and `sam3` offer what they hold. The weights could not be tried
where this was written: the tests use random networks, compared with the library's own models and post-processing.

What is sliced is the array's first axis (z), the plane in which a scan was acquired. The tracker works as SAM 2 does, see
`isocenter.models.sam2`. The detector searches every slice by itself for all that the words name: a voxel's probability is the
highest of any detection whose score exceeds 0.5, so that one answer may hold several bodies. CT is shown in the soft tissue
window unless the installation fixes another, since words do not say where to look.

transformers' detector takes example boxes too, through torchvision, which is not used here; words alone are served.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isocenter.core.catalog import Entry
from isocenter.core.errors import ModelError
from isocenter.core.model import QUIET, Finding, ModelContext, ModelSpec, Question, Run, Task
from isocenter.core.volume import Volume
from isocenter.models._sam.model import SliceModel

if TYPE_CHECKING:
    from isocenter.models._sam.folder import Installed
    from isocenter.models._sam.still import Still
    from isocenter.models._sam.video import Tracker
    from isocenter.models._sam.words import Finder

_TYPES = {"sam3_video", "sam3", "sam3_tracker", "sam3_tracker_video"}
_ORIGINAL = "get the folder that Hugging Face holds, facebook/sam3"


def offer(folder: Path, entry: Entry | None = None) -> tuple[ModelSpec, ...]:
    """The models in a transformers folder (`config.json` of a SAM 3 type, `model.safetensors`, for words a tokenizer).

    entry.options: `window` ([lo, hi] in the scan's unit, instead of one chosen by what is clicked). Raises `ModelError`.
    """
    from isocenter.models._sam import folder as installed

    found = installed.look(folder, _TYPES, _ORIGINAL)
    name = installed.named(folder, entry)
    kind = found.config["model_type"]
    if kind == "sam3":
        return (_text(found, name, entry),)
    if kind != "sam3_video":
        return (_clicks(found, name, entry),)
    return _clicks(found, name, entry), _text(found, f"{name}-text", entry)


def _clicks(found: Installed, name: str, entry: Entry | None) -> ModelSpec:
    prefixes = ("tracker_model.", "tracker_neck.", "detector_model.vision_encoder.backbone.") if found.config["model_type"] == "sam3_video" else ("",)
    how = "clicks, boxes and masks, followed through the slices"
    return _spec(found, name, entry, Task.INTERACTIVE, "Sam3", prefixes, ("point", "box", "mask"), how)


def _text(found: Installed, name: str, entry: Entry | None) -> ModelSpec:
    if not any((found.folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise ModelError("the folder has no tokenizer.json; download the model again")
    prefixes = ("detector_model.",) if found.config["model_type"] == "sam3_video" else ("",)
    return _spec(found, name, entry, Task.TEXT, "Sam3Text", prefixes, ("text",), "everything that some words name, searched for slice by slice")


def _spec(
    found: Installed, name: str, entry: Entry | None, task: Task, cls: str, prefixes: tuple[str, ...], prompts: tuple[str, ...], how: str
) -> ModelSpec:
    from isocenter.models._sam import folder as installed

    parts = [found.resident(prefix) for prefix in prefixes]
    options = dict(entry.options) if entry else {}
    return ModelSpec(
        id=name,
        version=str(options.get("version", "3")),
        task=task,
        factory=f"isocenter.models.sam3:{cls}",
        description=f"SAM 3: {how} (the array's first axis)",
        prompts=prompts,
        options={"window": options.get("window")},
        licence=entry.licence if entry and entry.licence else "SAM License",
        resident_bytes={precision: sum(part[precision] for part in parts) for precision in parts[0]},
        **installed.shared(found, entry, installed.vit_bytes(installed.backbone(found.config))),
    )


class Sam3(SliceModel):
    """SAM 3's tracker."""

    def _read(self, context: ModelContext) -> Tracker | Still:
        from isocenter.models._sam.load import sam3

        return sam3(context)


class Sam3Text:
    """The model of words; holds nothing of any volume."""

    def __init__(self) -> None:
        self._finder: Finder | None = None

    def load(self, context: ModelContext) -> None:
        """Read the detector's weights and its tokenizer. Raises `ModelError`."""
        from isocenter.models import _hf

        with _hf.library():
            from isocenter.models._sam import words

            self._finder = words.load(context)

    def find(self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5, run: Run = QUIET) -> list[Finding]:
        """One finding a prompt, in order: any words in English, 32 tokens at most. Raises `PromptError` or `LimitError`."""
        if self._finder is None:
            raise ModelError("the model is not loaded")
        return self._finder.find(volume, prompts, threshold, run)

    def find_pictures(self, questions: Sequence[Question], *, run: Run = QUIET) -> list[list[Finding]]:
        """For each picture what `find` says of it alone; the network sees several at once. Raises as `find`, for all of them."""
        if self._finder is None:
            raise ModelError("the model is not loaded")
        return self._finder.find_pictures(questions, run)

    def close(self) -> None:
        """Give the memory back."""
        if self._finder is not None:
            self._finder.close()
            self._finder = None
