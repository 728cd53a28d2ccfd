"""A picture of an answer: three planes through it, as a radiologist expects to see them, with outlines and volumes.

The patient's right is on the left of the picture, anterior and superior are up, and all planes have one scale. No text
of the patient is on it.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import axes_towards, reorient
from isocenter.core.provenance import RESEARCH_USE
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.volume import Volume

#: Room for the planes, in pixels of the finished picture.
WIDTH, HEIGHT = 1240, 720
MARGIN, GAP = 16, 12
#: Everything but text is drawn this much larger and then reduced, which smooths the outlines.
FINE = 2
BACKGROUND, TEXT, FAINT = (16, 17, 20), (232, 234, 238), (150, 155, 165)
OUTLINE, FILL = 3, 0.25
#: Level and width in HU.
SOFT_TISSUE, LUNG = (40.0, 400.0), (-550.0, 1600.0)
_LUNG_WORDS = ("lung", "airway", "trachea", "bronch")
#: For labels without a colour: well apart from each other and from grey.
_PALETTE = ((255, 99, 71), (64, 190, 255), (120, 220, 90), (255, 190, 60), (200, 120, 255), (255, 120, 190), (60, 220, 200), (240, 240, 90))
_MOST_LABELS = 36


@dataclass(frozen=True)
class Plane:
    """One view. axis: the array axis (0 = z) of the LPS volume that it is perpendicular to. size: mm (height, width).

    sides: what lies left, right, up and down.
    """

    name: str
    axis: int
    index: int
    count: int
    size: tuple[float, float]
    sides: str

    def cut(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """The slice of an LPS array, rows downwards: superior is up where z is a row."""
        flat: NDArray[np.generic] = np.take(array, self.index, axis=self.axis)
        return flat if self.axis == 0 else flat[::-1]


def png(volume: Volume, result: Segmentation | None = None) -> bytes:
    """A PNG of `volume`, with the outlines of `result`'s labels where there is one."""
    from PIL import Image

    array = reorient(volume.array, volume.grid)
    mask = None if result is None else reorient(result.mask, volume.grid)
    planes = _planes(volume, array.shape, mask)
    scale, places, size = _layout(planes)
    labels = list(result.labels) if result is not None else []
    colours = _colours(labels)
    legend = _legend(labels, result, volume)
    columns = max(1, (size[0] - 2 * MARGIN) // 300)
    rows = -(-len(legend) // columns)
    canvas = Image.new("RGB", (size[0], size[1] + 24 * rows + 34), BACKGROUND)
    window = _window(volume, planes, array, labels)
    for plane, (left, top) in zip(planes, places, strict=True):
        canvas.paste(_panel(plane, array, mask, window, scale, colours), (left, top))
    _annotate(canvas, planes, places, scale, volume)
    _write_legend(canvas, legend, colours, size[1], columns, result)
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=6)
    return out.getvalue()


# -- what is shown ---------------------------------------------------------------------------------------------------------


def _planes(volume: Volume, shape: tuple[int, ...], mask: NDArray[np.generic] | None) -> list[Plane]:
    """The views: all three, or the one that a flat volume has."""
    axes, _ = axes_towards(volume.grid)
    spacing = [volume.spacing_zyx[axis] for axis in axes]
    height, depth, width = (n * s for n, s in zip(shape, spacing, strict=True))
    centre = _centre(shape, mask)
    every = [
        Plane("axial", 0, centre[0], shape[0], (depth, width), "RLAP"),
        Plane("coronal", 1, centre[1], shape[1], (height, width), "RLSI"),
        Plane("sagittal", 2, centre[2], shape[2], (height, depth), "APSI"),
    ]
    flat = [plane for plane in every if shape[plane.axis] == 1]
    return flat[:1] or every


def _centre(shape: tuple[int, ...], mask: NDArray[np.generic] | None) -> list[int]:
    """Per axis the slice with most of the mask (its centre of mass may lie outside of it), else the middle."""
    if mask is None:
        return [n // 2 for n in shape]
    inside = mask != 0
    slices = np.flatnonzero(inside.any(axis=(1, 2)))
    if not slices.size:
        return [n // 2 for n in shape]
    body = inside[slices[0] : slices[-1] + 1].view(np.uint8)
    flat = body.sum(axis=0, dtype=np.int64)
    counts = [body.sum(axis=(1, 2), dtype=np.int64), flat.sum(axis=1), flat.sum(axis=0)]
    return [int(np.argmax(counts[0])) + int(slices[0]), int(np.argmax(counts[1])), int(np.argmax(counts[2]))]


def _window(volume: Volume, planes: list[Plane], array: NDArray[np.generic], labels: list[Label]) -> tuple[float, float]:
    """Lowest and highest value that is shown."""
    if volume.unit == "HU":
        chest = bool(labels) and all(any(word in label.name for word in _LUNG_WORDS) for label in labels)
        level, width = LUNG if chest else SOFT_TISSUE
        return level - width / 2, level + width / 2
    if volume.source.format == "picture":
        return 0.0, float(2 ** (8 * volume.dtype.itemsize) - 1)
    values = np.concatenate([plane.cut(array).ravel()[::3] for plane in planes]).astype(np.float64)
    # Air and padding are most of many images and would eat up the contrast.
    body = values[values > values.min()]
    low, high = np.percentile(body, (1, 99.5)) if body.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _colours(labels: list[Label]) -> dict[int, tuple[int, int, int]]:
    """A colour for each label's value: its own, unless an earlier label looks the same."""
    chosen: dict[int, tuple[int, int, int]] = {}
    for index, label in enumerate(labels):
        wanted = _vivid(label.colour) if label.colour else _PALETTE[index % len(_PALETTE)]
        candidates = [wanted, *_PALETTE]
        chosen[label.value] = next((c for c in candidates if all(_apart(c, other) for other in chosen.values())), wanted)
    return chosen


def _vivid(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same hue, strong enough to stand out from grey: atlases' colours are those of flesh."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    red, green, blue = colorsys.hsv_to_rgb(hue, max(saturation, 0.6) if saturation > 0.04 else saturation, max(value, 0.9))
    return round(255 * red), round(255 * green), round(255 * blue)


def _apart(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether two colours can be told from each other."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) > 75**2


def _legend(labels: list[Label], result: Segmentation | None, volume: Volume) -> list[tuple[int, str, str]]:
    """(label value, name, size) of each label; value 0 is the line that stands for those left out."""
    if result is None:
        return []
    counts = np.zeros(65536, np.int64)
    for plane in result.mask:  # bincount takes eight bytes a voxel
        counts += np.bincount(plane.ravel(), minlength=65536)
    lines = [(label.value, label.name.replace("_", " "), _amount(int(counts[label.value]), volume)) for label in labels[:_MOST_LABELS]]
    more = len(labels) - len(lines)
    return [*lines, (0, f"and {more} more", "")] if more > 0 else lines


def _amount(voxels: int, volume: Volume) -> str:
    if not voxels:
        return "not found"
    if volume.source.scale != "full":
        return f"{voxels:,} {'pixels' if volume.shape[0] == 1 else 'voxels'}".replace(",", " ")
    millilitres = voxels * volume.grid.voxel_mm3 / 1000
    digits = 0 if millilitres >= 100 else 1 if millilitres >= 10 else 2
    return f"{millilitres:,.{digits}f} ml".replace(",", " ")


# -- where it is shown -----------------------------------------------------------------------------------------------------


def _layout(planes: list[Plane]) -> tuple[float, list[tuple[int, int]], tuple[int, int]]:
    """Pixels per mm, the upper left corner of each plane, and the size of the room that they take.

    Three planes stand in a row or, where that shows them larger, as the first beside the two others.
    """
    heights, widths = [p.size[0] for p in planes], [p.size[1] for p in planes]
    gaps = GAP * (len(planes) - 1)
    row = min((WIDTH - gaps) / sum(widths), HEIGHT / max(heights))
    beside = 0.0
    if len(planes) > 1:
        beside = min((WIDTH - GAP) / (widths[0] + max(widths[1:])), HEIGHT / heights[0], (HEIGHT - GAP) / sum(heights[1:]))
    scale = max(row, beside)
    sizes = [_pixels(plane, scale) for plane in planes]
    if row >= beside:
        tall = max(h for h, _ in sizes)
        lefts = [MARGIN + sum(w + GAP for _, w in sizes[:i]) for i in range(len(sizes))]
        places = [(left, MARGIN + (tall - h) // 2) for left, (h, _) in zip(lefts, sizes, strict=True)]
    else:
        left, wide = MARGIN + sizes[0][1] + GAP, max(sizes[1][1], sizes[2][1])
        column = sizes[1][0] + GAP + sizes[2][0]
        tall = max(sizes[0][0], column)
        top = MARGIN + (tall - column) // 2
        places = [
            (MARGIN, MARGIN + (tall - sizes[0][0]) // 2),
            (left + (wide - sizes[1][1]) // 2, top),
            (left + (wide - sizes[2][1]) // 2, top + sizes[1][0] + GAP),
        ]
    right = max(x + w for (x, _), (_, w) in zip(places, sizes, strict=True))
    bottom = max(y + h for (_, y), (h, _) in zip(places, sizes, strict=True))
    return scale, places, (max(right + MARGIN, 480), bottom + MARGIN)


def _pixels(plane: Plane, scale: float) -> tuple[int, int]:
    """Height and width in the finished picture."""
    return max(1, round(plane.size[0] * scale)), max(1, round(plane.size[1] * scale))


# -- how it is drawn -------------------------------------------------------------------------------------------------------


def _panel(
    plane: Plane,
    array: NDArray[np.generic],
    mask: NDArray[np.generic] | None,
    window: tuple[float, float],
    scale: float,
    colours: dict[int, tuple[int, int, int]],
) -> Any:
    """One plane as a Pillow image: grey values, and over them each label's veil and outline."""
    from PIL import Image

    height, width = _pixels(plane, scale)
    fine = (width * FINE, height * FINE)
    low, high = window
    grey = np.clip((plane.cut(array).astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    shown = np.asarray(Image.fromarray(grey).resize(fine, Image.Resampling.BICUBIC), np.float32)
    picture = np.repeat(shown[..., None], 3, axis=2)
    if mask is not None:
        values = plane.cut(mask)
        for value in np.intersect1d(np.unique(values), list(colours)).tolist():
            inside = (values == value).astype(np.uint8) * np.uint8(255)
            covered = np.asarray(Image.fromarray(inside).resize(fine, Image.Resampling.BILINEAR)) > 127
            colour = np.array(colours[value], np.float32)
            picture[covered] += FILL * (colour - picture[covered])
            picture[covered & ~_shrunk(covered, OUTLINE)] = colour
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).reduce(FINE)


def _shrunk(inside: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """`inside` without a rim of `by` pixels; the picture's border is no rim."""
    padded = np.pad(inside, by, mode="edge")
    height, width = inside.shape
    kept = inside.copy()
    for dy in range(-by, by + 1):
        for dx in range(-by, by + 1):
            if dx * dx + dy * dy <= by * by:
                kept &= padded[by + dy : by + dy + height, by + dx : by + dx + width]
    return kept


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _annotate(canvas: Any, planes: list[Plane], places: list[tuple[int, int]], scale: float, volume: Volume) -> None:
    """Sides of the patient, slice numbers and a scale bar, for what has a place in a patient."""
    from PIL import ImageDraw

    if volume.source.format == "picture":
        return
    draw = ImageDraw.Draw(canvas)
    small = _font(13)
    for plane, (left, top) in zip(planes, places, strict=True):
        for text, (x, y), anchor in captions(plane, *_pixels(plane, scale)):
            _say(draw, (left + x, top + y), text, small, anchor)
    if volume.source.scale != "none":
        _scale_bar(draw, planes[0], places[0], scale)


def captions(plane: Plane, height: int, width: int) -> list[tuple[str, tuple[int, int], str]]:
    """What is written on a plane: texts, their places in its picture, and Pillow's anchors."""
    left, right, *others = list(plane.sides)
    made = [(left, (6, height // 2), "lm"), (right, (width - 6, height // 2), "rm")]
    if height >= 90:
        made += zip(others, [(width // 2, 5), (width // 2, height - 5)], ["ma", "md"], strict=True)
    if width >= 150:
        # On a flat plane the corner is where the left side's letter stands: the name goes beside that.
        at, anchor = ((6, 5), "la") if height >= 60 else ((24, height // 2), "lm")
        made.append((f"{plane.name} {plane.index + 1}/{plane.count}", at, anchor))
    return made


def _scale_bar(draw: Any, plane: Plane, place: tuple[int, int], scale: float) -> None:
    """A bar of a round length, about a fifth of the first plane."""
    height, width = _pixels(plane, scale)
    length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100, 200) if mm * scale <= width / 4), default=0)
    if not length or height < 60:
        return
    x, y = place[0] + 10, place[1] + height - 12
    end = x + round(length * scale)
    draw.line([(x, y), (end, y)], fill=(0, 0, 0), width=4)
    draw.line([(x, y), (end, y)], fill=TEXT, width=2)
    _say(draw, ((x + end) // 2, y - 5), f"{length} mm", _font(12), "md")


def _say(draw: Any, at: tuple[int, int], text: str, font: Any, anchor: str) -> None:
    """Text that can be read on black and on white."""
    draw.text(at, text, fill=TEXT, font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _write_legend(
    canvas: Any, legend: list[tuple[int, str, str]], colours: dict[int, tuple[int, int, int]], top: int, columns: int, result: Segmentation | None
) -> None:
    """Names and sizes under the planes, and at the very end what made them."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    wide = (canvas.width - 2 * MARGIN) // columns
    for index, (value, name, amount) in enumerate(legend):
        x, y = MARGIN + index % columns * wide, top + index // columns * 24
        if value:
            draw.rounded_rectangle([x, y + 3, x + 14, y + 17], 3, fill=colours[value])
        name = name if len(name) <= 24 else f"{name[:23]}…"
        draw.text((x + 22, y + 10), name, fill=TEXT, font=_font(15), anchor="lm")
        draw.text((x + wide - 56, y + 10), amount, fill=FAINT if amount == "not found" else TEXT, font=_font(15), anchor="rm")
    made = f"{result.provenance.model} {result.provenance.version}  ·  " if result is not None else ""
    draw.text((MARGIN, canvas.height - 12), f"{made}{RESEARCH_USE}", fill=FAINT, font=_font(12), anchor="lm")
