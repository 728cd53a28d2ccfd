"""Slices of several volumes seen in one pass, before the prompts that point at them are answered one by one.

Seeing a slice takes nearly all of a click's time on these networks, and needs nothing but the slice and its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from isocenter.core.model import Run
from isocenter.core.prompts import Prompt
from isocenter.models._sam import windows
from isocenter.models._sam.features import Key, Prepared
from isocenter.models._sam.frame import Recipe
from isocenter.models._sam.network import Network
from isocenter.models._sam.session import by_slice
from isocenter.models._sam.windows import Window


class Seeing(Protocol):
    """A loaded network, of single pictures or of films. batch: slices at once, as its scratch memory was declared for."""

    @property
    def network(self) -> Network: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def window(self) -> Window | None: ...

    @property
    def batch(self) -> int: ...

    def encode(self, pixels: Sequence[Any], network: Network) -> list[tuple[Any, ...]]:
        """The features of pictures (3, size, size), in host memory."""


def look(net: Seeing, wanted: Sequence[tuple[Prepared, Sequence[Prompt]]], run: Run) -> None:
    """Keep the features of the slices that positive prompts point at and that nobody saw yet; of many slices the first ones."""
    missing: dict[tuple[int, Key], Prepared] = {}
    for prepared, prompts in wanted:
        keys = by_slice(prompts, prepared.volume.shape).slices
        window = windows.choose(prepared.volume, prompts, net.window)
        new = [z for z in sorted(keys) if keys[z].positive and not prepared.saw(z, net.network.fingerprint)]
        missing |= {(id(prepared), (z, window, net.network.fingerprint)): prepared for z in new[: net.batch]}
    views = [(key, prepared) for (_, key), prepared in missing.items()]
    step = min(run.batch or net.batch, net.batch)
    for start in range(0, len(views), step):
        run.check(start / len(views), f"slice {start + 1} of {len(views)}")
        part = views[start : start + step]
        made = net.encode([pixels(prepared, key[0], key[1], net.recipe) for key, prepared in part], net.network)
        for (key, prepared), tensors in zip(part, made, strict=True):
            prepared.keep(key, tensors)


def pixels(prepared: Prepared, z: int, window: Window, recipe: Recipe) -> Any:
    """Slice z through a window as the network's picture, (3, size, size)."""
    return recipe.pixels(windows.to_grey(prepared.volume.voxels[z], window), recipe.frame(prepared.plane, prepared.spacing))
