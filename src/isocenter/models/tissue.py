"""`tissue`: words to masks on CT, from Hounsfield units and anatomy alone; no weights.

A stand-in for the networks of the catalog. What it finds and how well is measured in `docs/accuracy.md`. The work is
done in the patient's axes (LPS) on a grid of about 3 mm and drawn on the scan's own voxels; see `_tissue/scene.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from isocenter.core.errors import UnknownPromptError, UnsupportedError, UsageError
from isocenter.core.geometry import axes_towards, reorient, restore
from isocenter.core.model import QUIET, Finding, ModelContext, ModelSpec, Run, Task
from isocenter.core.terminology import label
from isocenter.core.volume import Volume
from isocenter.models._tissue.words import SYNONYMS, structure

if TYPE_CHECKING:
    from isocenter.models._tissue.scene import Scene

SPEC = ModelSpec(
    id="tissue",
    version="1.0",
    task=Task.TEXT,
    factory="isocenter.models.tissue:Tissue",
    description="Text prompts on CT by Hounsfield units and anatomy, without weights.",
    modalities=("CT",),
    prompts=("text",),
    labels=tuple(label(name, i + 1) for i, name in enumerate(SYNONYMS)),
    synonyms={word: name for name, words in SYNONYMS.items() for word in words},
    fallback=True,
)
#: What is found by air, which a picture with a narrow window no longer shows.
NEED_AIR = ("lungs", "lung_left", "lung_right", "airways", "air")
#: Scans whose analysis is kept: some 15 MB each.
KEPT = 4


class Tissue:
    """The model. May be used by several threads."""

    def __init__(self) -> None:
        self._scenes: OrderedDict[str, Scene] = OrderedDict()
        self._lock = Lock()

    def load(self, context: ModelContext) -> None:
        """Compile the kernels or take them from the cache."""
        from isocenter.models import _distance  # noqa: F401 - compiled when imported
        from isocenter.models._tissue import kernels  # noqa: F401

    def close(self) -> None:
        with self._lock:
            self._scenes.clear()

    def find(self, volume: Volume, prompts: Sequence[str], *, threshold: float = 0.5, run: Run = QUIET) -> list[Finding]:
        """One finding per prompt, on the volume's own voxels.

        The mask is where the probability, a multiple of 1/255, exceeds `threshold`. Raises `UnsupportedError` for
        anything but CT, `UnknownPromptError` for a word that is not understood; nothing is computed in either case.
        """
        names = self._understood(volume, prompts, threshold)
        from isocenter.models._tissue.answer import render
        from isocenter.models._tissue.places import PLACES

        straight = reorient(volume.array, volume.grid)
        scene = self._scene(volume, run)
        least = int(np.count_nonzero(np.arange(256) / 255 <= threshold))
        findings: list[Finding] = []
        done: dict[str, Finding] = {}
        for i, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
            if name not in done:
                run.check(i / len(prompts), f"looking for {prompt}")
                place = PLACES[name](scene)
                straight_p = render(scene.working, place, straight, run.check)
                probability = np.ascontiguousarray(restore(straight_p, volume.grid), np.uint8)
                mask = (probability >= least).view(np.uint8)
                notes: tuple[str, ...] = ()
                if scene.floor_hu is not None and name in NEED_AIR:
                    notes = (f"the values are cut off at {scene.floor_hu:.0f} HU, so that air and lung cannot be told from the surroundings",)
                done[name] = Finding(prompt, label(name), mask, probability, place.presence, notes)
            known = done[name]
            findings.append(Finding(prompt, known.label, known.mask, known.probability, known.presence, known.notes))
        run.check(1.0, "done")
        return findings

    def _understood(self, volume: Volume, prompts: Sequence[str], threshold: float) -> list[str]:
        """The structures that the prompts name."""
        if volume.modality != "CT":
            raise UnsupportedError(
                f"tissue works on CT in Hounsfield units only; this image is {volume.modality or 'of unknown modality'}. "
                "If it is a CT, say modality=CT; for other images `isocenter models list --all` names models that can be installed"
            )
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold must lie in 0 <= threshold <= 1, not {threshold:g}")
        names = [structure(prompt) for prompt in prompts]
        unknown = [prompt for prompt, name in zip(prompts, names, strict=True) if name is None]
        if unknown:
            shown = ", ".join(f'"{word[:60]}"' for word in unknown[:5])
            raise UnknownPromptError(
                f"tissue does not understand {shown}. It understands: {', '.join(n.replace('_', ' ') for n in SYNONYMS)}, and common words for them. "
                "`isocenter models list --all` shows models for more structures and how to install them"
            )
        return [name for name in names if name is not None]

    def _scene(self, volume: Volume, run: Run) -> Scene:
        """The analysis of a volume, kept for the next prompt."""
        from isocenter.models._tissue.scene import Scene

        with self._lock:
            scene = self._scenes.pop(volume.key, None)
        if scene is None:
            axes, _ = axes_towards(volume.grid)
            z, y, x = (volume.spacing_zyx[axis] for axis in axes)
            scene = Scene(reorient(volume.array, volume.grid), (z, y, x), lambda what: run.check(0.0, what))
        scene.step = lambda what: run.check(0.0, what)
        with self._lock:
            self._scenes[volume.key] = scene
            while len(self._scenes) > KEPT:
                self._scenes.popitem(last=False)
        return scene
