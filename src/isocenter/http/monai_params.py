"""MONAI Label's `params`: the JSON in a form field that says what was clicked, turned into prompts once, here.

Only the keys named below are looked at; whatever else a client sends is ignored and can overwrite nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from isocenter.core.errors import PromptError, UsageError
from isocenter.core.prompts import Box, Lasso, Point, Prompt, Scribble, Voxel

KINDS = ("points", "boxes", "lassos", "scribbles")


@dataclass(frozen=True)
class Params:
    """A parsed request.

    mode: "init", "reset", "click" or "" (no `nninter` key). sam: the client asked for the SAM family. echo: the prompts
    as they came, by kind, for the answer. `prompts(depth)` gives them as voxels.
    """

    raw: dict[str, Any]
    mode: str
    sam: bool
    texts: tuple[str, ...]
    echo: dict[str, list[Any]]
    client: str
    extension: str = ".nii.gz"
    world: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def prompts(self, depth: int, *, flipped: bool) -> list[Prompt]:
        """Positives first, then negatives; z counts from the other end where the viewer shows the series `flipped`."""
        made: list[Prompt] = []
        for sign in ("pos", "neg"):
            for kind in KINDS:
                for item in self.echo.get(f"{sign}_{kind}", []):
                    made.append(_MAKERS[kind](item, sign == "pos", depth if flipped else 0))
        return made


def parse(text: str) -> Params:
    """Read `params`. Raises `UsageError` for anything that is not an object of the known form."""
    try:
        raw = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise UsageError('params must be JSON, such as {"nninter": "init"}') from None
    if not isinstance(raw, dict):
        raise UsageError('params must be a JSON object, such as {"nninter": "init"}')
    mode, sam = "", False
    if "nninter" in raw:
        value = raw["nninter"]
        sam = value is False or value == "false"
        mode = value if value in ("init", "reset") else "click"
    echo = {f"{sign}_{kind}": _list(raw, f"{sign}_{kind}") for sign in ("pos", "neg") for kind in KINDS}
    for key, item in _drawn(_list(raw, "prompt_info")):
        echo[key].append(item)
    texts = tuple(str(t).strip() for t in _list(raw, "texts") if str(t).strip())
    extension = raw.get("result_extension", ".nii.gz")
    if extension not in (".nii.gz", ".nii", ".nrrd", ".seg.nrrd"):
        raise UsageError("result_extension must be .nii.gz, .nii, .nrrd or .seg.nrrd")
    return Params(
        raw,
        mode,
        sam,
        texts,
        {key: items for key, items in echo.items() if items},
        str(raw.get("clientSessionID") or raw.get("client_id") or "")[:256],
        extension,
        raw.get("result_space") == "world",
        {key: raw[key] for key in ("num_bins", "num_mixtures", "lamda", "sigma") if key in raw},
    )


def _list(raw: dict[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise PromptError(f"{key} must be a list")
    return list(value)


def _drawn(prompt_info: list[Any]) -> Iterator[tuple[str, Any]]:
    """OHIF's `prompt_info` entries as items of the plain lists. Unknown kinds are ignored, as they always were."""
    for entry in prompt_info:
        if not isinstance(entry, dict) or not isinstance(data := entry.get("data"), dict):
            raise PromptError("each entry of prompt_info must be {type, data}")
        sign = "neg" if data.get("pointType") == "erase" else "pos"
        try:
            x, y, z = data["x"], data["y"], data["slice"]
            if entry.get("type") == "point":
                yield f"{sign}_points", [x, y, z]
            elif entry.get("type") == "box":
                yield f"{sign}_boxes", [[x, y, z], [x + max(data["width"] - 1, 0), y + max(data["height"] - 1, 0), z]]
        except (KeyError, TypeError):
            raise PromptError("a point in prompt_info needs x, y and slice; a box also width and height") from None


def _voxel(xyz: Any, depth: int) -> Voxel:
    """[x, y, z] as sent, to (z, y, x); with `depth`, z counts from the far end."""
    numbers = xyz if isinstance(xyz, list) and len(xyz) in (2, 3) else None
    if numbers is None or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and abs(v) < 1e9 for v in numbers):
        raise PromptError("a point must be [x, y, z], three finite numbers")
    x, y, z = (math.floor(v + 0.5) for v in (*numbers, 0)[:3])
    return (depth - 1 - z if depth else z), y, x


def _point(item: Any, positive: bool, depth: int) -> Prompt:
    return Point(_voxel(item, depth), positive)


def _box(item: Any, positive: bool, depth: int) -> Prompt:
    """Two corners [[x1,y1,z],[x2,y2,z]], or flat [x1,y1,x2,y2,z], both corners inside."""
    if isinstance(item, list) and len(item) == 5:
        x1, y1, x2, y2, z = item
        item = [[x1, y1, z], [x2, y2, z]]
    if not isinstance(item, list) or len(item) != 2:
        raise PromptError("a box must be [[x1, y1, z], [x2, y2, z]] or [x1, y1, x2, y2, z]")
    a, b = _voxel(item[0], depth), _voxel(item[1], depth)
    lo = (min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2]))
    hi = (max(a[0], b[0]) + 1, max(a[1], b[1]) + 1, max(a[2], b[2]) + 1)
    return Box(lo, hi, positive)


def _path(item: Any, depth: int) -> tuple[Voxel, ...]:
    if not isinstance(item, list) or not item:
        raise PromptError("a scribble or lasso must be a list of points [[x, y, z], ...]")
    return tuple(_voxel(p, depth) for p in item)


def _scribble(item: Any, positive: bool, depth: int) -> Prompt:
    return Scribble(_path(item, depth), positive)


def _lasso(item: Any, positive: bool, depth: int) -> Prompt:
    return Lasso(_path(item, depth), positive)


_MAKERS: dict[str, Callable[[Any, bool, int], Prompt]] = {"points": _point, "boxes": _box, "lassos": _lasso, "scribbles": _scribble}
