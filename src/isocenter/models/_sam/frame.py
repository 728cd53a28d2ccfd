"""Where a slice lies in a network's square picture, and the picture itself.

Every library of the family makes its own square: SAM scales the longer side and pads at the bottom and the right, MedSAM,
SAM 2 and SAM 3 stretch. A `Recipe` says which, a `Frame` carries prompts in and masks out. Positions are exact: voxel i
covers i to i + 1, its centre is i + 1/2, so a mirrored or turned copy of a scan gets the mirrored or turned answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isocenter.core.errors import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Pillow's codes of filters, as `preprocessor_config.json` holds them.
BILINEAR, BICUBIC = 2, 3


@dataclass(frozen=True)
class Recipe:
    """How a network wants its picture.

    size: side of the square in pixels. pad: the longer side fills it and the rest is padded with zeros; else stretched.
    pillow: resized by Pillow, else by torch's 8-bit antialiased kernel (what torchvision runs). minmax: scaled to 0..1 by
    the slice's own range instead of 255, as MedSAM does; such masks are thresholded as probabilities. mean, std: of 0..1.
    """

    size: int = 1024
    pad: bool = True
    pillow: bool = True
    resample: int = BILINEAR
    minmax: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def frame(self, shape: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0)) -> Frame:
        """The frame of slices of `shape` (rows, columns) with pixels of `spacing` (mm between rows, between columns)."""
        if not self.pad:
            return Frame(shape, (self.size, self.size), self.size, False)
        rows, columns = (float(n) for n in shape)
        # Anatomy keeps its proportions: pixels that are no squares are scaled to what they are in millimetres.
        if abs(spacing[0] / spacing[1] - 1) > 1e-3:
            rows, columns = rows * spacing[0], columns * spacing[1]
        scale = self.size / max(rows, columns)
        return Frame(shape, (max(1, int(rows * scale + 0.5)), max(1, int(columns * scale + 0.5))), self.size, True)

    def pixels(self, grey: NDArray[np.uint8], frame: Frame) -> torch.Tensor:
        """(3, size, size) float32 from a grey slice (rows, columns)."""
        inner = self._resized(grey, frame.inner).astype(np.float32)
        if self.minmax:
            low, high = float(inner.min()), float(inner.max())
            inner = (inner - np.float32(low)) / np.float32(max(high - low, 1e-8))
        else:
            inner = inner * np.float32(1 / 255)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        pixels = np.zeros((3, self.size, self.size), np.float32)
        pixels[:, : frame.inner[0], : frame.inner[1]] = (inner[None] - mean) / std
        return torch.from_numpy(pixels)

    def _resized(self, grey: NDArray[np.uint8], inner: tuple[int, int]) -> NDArray[np.uint8]:
        if self.pillow:
            from PIL import Image

            filtered = Image.fromarray(grey).resize((inner[1], inner[0]), Image.Resampling(self.resample))
            return np.asarray(filtered, np.uint8)
        mode = "bicubic" if self.resample == BICUBIC else "bilinear"
        plane = torch.from_numpy(np.ascontiguousarray(grey))[None, None]
        resized = torch.nn.functional.interpolate(plane, size=inner, mode=mode, antialias=True, align_corners=False)
        return np.asarray(resized[0, 0].numpy(), np.uint8)


@dataclass(frozen=True)
class Frame:
    """One slice in the square. shape: the slice's rows and columns; inner: the part of the square that it fills.

    padded: masks go by the full square, also where nothing was padded, which is what SAM's own processor does.
    """

    shape: tuple[int, int]
    inner: tuple[int, int]
    size: int
    padded: bool

    @property
    def scale(self) -> tuple[float, float]:
        """Square pixels per slice pixel, along rows and columns."""
        return self.inner[0] / self.shape[0], self.inner[1] / self.shape[1]

    def point(self, y: float, x: float) -> tuple[float, float]:
        """A voxel's centre as (x, y) of the square; the networks add the half pixel of a centre themselves."""
        return (x + 0.5) * self.scale[1] - 0.5, (y + 0.5) * self.scale[0] - 0.5

    def box(self, lo: Sequence[float], hi: Sequence[float]) -> tuple[float, float, float, float]:
        """The edges of the half-open box lo..hi (y, x) as (x1, y1, x2, y2) of the square."""
        (y0, x0), (y1, x1) = lo, hi
        sy, sx = self.scale
        return x0 * sx - 0.5, y0 * sy - 0.5, x1 * sx - 0.5, y1 * sy - 0.5

    def restore(self, masks: torch.Tensor) -> torch.Tensor:
        """(n, rows, columns) on the slice from a network's (n, m, m): un-padded, bilinear, as the libraries do it."""
        resize = torch.nn.functional.interpolate
        planes = masks[:, None].float()
        if self.padded:
            planes = resize(planes, size=(self.size, self.size), mode="bilinear", align_corners=False)
            planes = planes[..., : self.inner[0], : self.inner[1]]
        return resize(planes, size=self.shape, mode="bilinear", align_corners=False)[:, 0]


def said_by(folder: Path) -> Mapping[str, Any]:
    """What the folder's processor file says; nothing without one. Raises `ModelError` for one that cannot be read."""
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if (folder / name).is_file():
            said = _json(folder / name)
            inner = said.get("image_processor")
            return inner if isinstance(inner, dict) else said
    return {}


def recipe(
    said: Mapping[str, Any], size: int, *, stretch: bool, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Recipe:
    """The recipe that a processor file names (`said_by`); what it leaves out is the family's own.

    size: the pictures that the network itself expects. stretch: the family stretches, by torch's kernel, instead of
    padding. Raises `ModelError` for a recipe that no model of the family has.
    """
    square = said.get("size") or {}
    side = square.get("longest_edge") or square.get("height") or size
    if side != size or square.get("width", side) != side:
        raise ModelError(f"the model's pictures are of {size} x {size} pixels, its processor file says {dict(square)}")
    resample = said.get("resample", BILINEAR)
    if resample not in (BILINEAR, BICUBIC):
        raise ModelError("the model's pictures are resized with a filter that is not supported; bilinear and bicubic are")
    if said.get("do_normalize", True):
        mean, std = said.get("image_mean") or mean, said.get("image_std") or std
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError("the model's processor file names no usable image_mean and image_std")
    pad = "longest_edge" in square if square else not stretch
    triple = [(float(v[0]), float(v[1]), float(v[2])) for v in (mean, std)]
    return Recipe(size, pad, not stretch, int(resample), bool(said.get("minmax", False)), triple[0], triple[1])


#: MedSAM's own pictures: stretched by a bicubic filter, scaled by the slice's own range, not normalised.
MEDSAM = {"size": {"height": 1024, "width": 1024}, "resample": BICUBIC, "do_normalize": False, "minmax": True}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"the model's {path.name} cannot be read") from None
    if not isinstance(data, dict):
        raise ModelError(f"the model's {path.name} is not what it should be")
    return data
