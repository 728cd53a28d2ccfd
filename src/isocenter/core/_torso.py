"""The anatomy of the phantom: implicit functions of the patient's millimetres, in the order in which they are painted.

x to the left, y to the back, z to the head, all in mm; z = 0 is the top of the right half of the diaphragm. An implicit
function gives the signed distance to a surface in mm, negative inside, exact or to first order. Sizes follow an average
adult, values (HU) a portal venous phase scan. Arguments are open grids: x of shape (1, 1, X), y (1, Y, 1), z (Z, 1, 1).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import Triple

Array = NDArray[np.float32]
Distance = Callable[[Array, Array, Array], Array]
Value = float | Callable[[Array, Array, Array], Array]

#: What a voxel mostly is. Parts painted later take voxels from earlier ones.
NAMES = (
    "outside", "fat", "muscle", "soft", "lung_left", "lung_right", "airways", "heart", "aorta", "liver", "lesion_1", "lesion_2", "spleen",
    "kidney_left", "kidney_right", "stomach", "bowel_gas", "spine", "ribs", "sternum", "vein", "table",
)  # fmt: skip
CODE = {name: i for i, name in enumerate(NAMES)}


@dataclass(frozen=True)
class Lesion:
    """A round lesion: centre in the anatomy's mm (x, y, z), radius in mm, value in HU."""

    centre: Triple
    radius: float
    hu: float = 55.0


LESIONS = (Lesion((-88.0, -12.0, -55.0), 15.0), Lesion((-46.0, -42.0, -28.0), 9.0))


@dataclass(frozen=True)
class Part:
    """One thing to paint: `distance` within the box `lo`..`hi` (x, y, z in mm); `code` None leaves the truth as it is."""

    distance: Distance
    hu: Value
    code: int | None
    lo: Triple = (-1e4, -1e4, -1e4)
    hi: Triple = (1e4, 1e4, 1e4)


# -- implicit functions ------------------------------------------------------------------------------------------------


def _ellipsoid(centre: Triple, semi: Triple) -> Distance:
    """First-order distance to an ellipsoid."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        u, v, w = (np.float32(1 / s) * (p - np.float32(c)) for p, c, s in zip((x, y, z), centre, semi, strict=True))
        k = np.sqrt(u * u + v * v + w * w)
        slope = np.sqrt((u / semi[0]) ** 2 + (v / semi[1]) ** 2 + (w / semi[2]) ** 2)
        return np.asarray(k * (k - 1) / np.maximum(slope, 1e-6), np.float32)

    return distance


def _capsule(a: Triple, b: Triple, ra: float, rb: float) -> Distance:
    """Distance to a straight tube from a to b whose radius goes from ra to rb."""
    start, along = np.array(a, np.float32), np.array(b, np.float32) - np.array(a, np.float32)
    length = np.float32(max(float(along @ along), 1e-6))

    def distance(x: Array, y: Array, z: Array) -> Array:
        px, py, pz = x - start[0], y - start[1], z - start[2]
        t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / length, 0, 1)
        away = np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2 + (pz - t * along[2]) ** 2)
        return np.asarray(away - (ra + (rb - ra) * t), np.float32)

    return distance


def _grow(inner: Distance, mm: float) -> Distance:
    return lambda x, y, z: inner(x, y, z) - np.float32(mm)


def _all(*inner: Distance) -> Distance:
    """Where all are inside."""
    return lambda x, y, z: functools.reduce(np.maximum, (d(x, y, z) for d in inner))


def _any(*inner: Distance) -> Distance:
    """Where any is inside."""
    return lambda x, y, z: functools.reduce(np.minimum, (d(x, y, z) for d in inner))


def _without(inner: Distance, *others: Distance) -> Distance:
    return lambda x, y, z: functools.reduce(np.maximum, (-d(x, y, z) for d in others), inner(x, y, z))


def _slab(axis: int, lo: float, hi: float) -> Distance:
    """Between two planes across an axis (0, 1, 2 for x, y, z)."""

    def distance(*place: Array) -> Array:
        flat = np.abs(place[axis] - np.float32((lo + hi) / 2)) - np.float32((hi - lo) / 2)
        return np.broadcast_to(flat, np.broadcast_shapes(*(p.shape for p in place)))

    return distance


def _trunk(half_width: Sequence[float], half_depth: Sequence[float], middle: float = 0.0) -> Distance:
    """A rounded cross-section whose half width and half depth (mm) change with the height `HEIGHTS`; open above and below."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        a = np.interp(z, HEIGHTS, half_width).astype(np.float32)
        b = np.interp(z, HEIGHTS, half_depth).astype(np.float32)
        v = y - np.float32(middle)
        r = (np.abs(x / a) ** 2.4 + np.abs(v / b) ** 2.4) ** np.float32(1 / 2.4)
        return np.asarray(np.hypot(x, v) * (1 - 1 / np.maximum(r, 1e-3)), np.float32)

    return distance


HEIGHTS = (-260.0, -160.0, -70.0, 20.0, 100.0, 160.0, 260.0)
_BODY = _trunk((168, 164, 154, 157, 163, 165, 160), (114, 113, 110, 114, 112, 101, 88))
_FLESH = _trunk((148, 145, 141, 146, 153, 156, 152), (95, 94, 93, 101, 101, 91, 80))
_CAVITY = _trunk((128, 126, 126, 130, 124, 96, 60), (74, 73, 74, 80, 78, 62, 40), -8.0)


def _floor(x: Array, y: Array) -> Array:
    """Height (mm) of the diaphragm: two domes, the right one higher, that fall towards the wall."""
    out = np.maximum(np.abs(x) - 45, 0) / 80
    return np.asarray(np.where(x < 0, 0, -12) - 70 * (out**2 + ((y + 12) / 108) ** 2), np.float32)


def _above(offset: float) -> Distance:
    return lambda x, y, z: np.asarray(_floor(x, y) + np.float32(offset) - z, np.float32)


def _below(offset: float) -> Distance:
    return lambda x, y, z: np.asarray(z - _floor(x, y) - np.float32(offset), np.float32)


# -- the anatomy -------------------------------------------------------------------------------------------------------

_HEART = _any(_ellipsoid((30, -32, 30), (46, 40, 42)), _ellipsoid((2, -26, 48), (38, 34, 40)))
_AORTA = (
    (-8, -22, 62),
    (-12, -26, 92),
    (-4, -14, 112),
    (10, 8, 118),
    (20, 30, 108),
    (23, 38, 90),
    (22, 40, 20),
    (16, 36, -60),
    (6, 30, -150),
    (2, 30, -260),
)
_CARINA = (-2.0, 12.0, 98.0)
_SPINE_Y = ((-260, 52), (-120, 46), (0, 54), (100, 58), (260, 50))


def _spine_y(z: float) -> float:
    return float(np.interp(z, [p[0] for p in _SPINE_Y], [p[1] for p in _SPINE_Y]))


def anatomy(lesions: tuple[Lesion, ...], seed: int, table: bool) -> list[Part]:
    """All parts, in painting order."""
    parts = [*_table()] if table else []
    parts += [Part(_BODY, 20, CODE["muscle"]), Part(_grow(_BODY, -2), -105, CODE["fat"]), Part(_FLESH, 58, CODE["muscle"])]
    parts += [Part(_without(_grow(_FLESH, -9), _grow(_FLESH, -11.5)), -70, CODE["fat"]), Part(_CAVITY, -100, CODE["fat"])]
    parts += [Part(_all(_grow(_CAVITY, 1), _above(-7), _below(0)), 50, CODE["muscle"], hi=(200, 200, 20), lo=(-200, -200, -160))]
    parts += [*_abdomen(), *_liver(lesions), *_chest(seed), *_spine(), *_ribs()]
    return parts


def _table() -> list[Part]:
    """A thin-walled carbon shell under the back, filled with foam."""
    plate = _all(_ellipsoid((0, -330, 0), (520, 462, 1e6)), _slab(0, -178, 178))
    hollow = _all(_grow(plate, -2.5), _slab(1, 118, 400))
    outside = _all(plate, _slab(1, 115, 400))
    return [Part(outside, -250, CODE["table"]), Part(hollow, -930, CODE["table"])]


def _tube(points: Sequence[Triple], radii: Sequence[float], hu: Value, code: int | None, grow: float = 0.0) -> list[Part]:
    """A chain of straight tubes through points (mm); `grow` widens it."""
    parts = []
    for (a, b), (ra, rb) in zip(itertools.pairwise(points), itertools.pairwise(radii), strict=True):
        reach = max(ra, rb) + grow
        lo = (min(a[0], b[0]) - reach, min(a[1], b[1]) - reach, min(a[2], b[2]) - reach)
        hi = (max(a[0], b[0]) + reach, max(a[1], b[1]) + reach, max(a[2], b[2]) + reach)
        parts.append(Part(_capsule(a, b, ra + grow, rb + grow), hu, code, lo, hi))
    return parts


def _blob(centre: Triple, semi: Triple, hu: Value, code: int | None, *cut: Distance) -> Part:
    """An ellipsoid, cut by other implicit functions."""
    lo = (centre[0] - semi[0], centre[1] - semi[1], centre[2] - semi[2])
    hi = (centre[0] + semi[0], centre[1] + semi[1], centre[2] + semi[2])
    return Part(_all(_ellipsoid(centre, semi), *cut), hu, code, lo, hi)


def _abdomen() -> list[Part]:
    """Organs under the diaphragm but for the liver, and the gas in stomach and bowel (it rises to the front)."""
    inside, under = _grow(_CAVITY, -2), _below(-7)
    parts = [_blob((s * 42, 52, -210), (20, 22, 110), 60, CODE["muscle"]) for s in (-1, 1)]
    parts += _tube(((-18, 26, -20), (-20, 28, -90), (-14, 32, -260)), (11, 10, 10), 130, CODE["vein"])
    for side, x, y, z in (("right", -66.0, 34.0, -118.0), ("left", 60.0, 34.0, -124.0)):
        centre, code = (x, y, z), CODE[f"kidney_{side}"]
        hilum = (x * 0.72, y - 6.0, z)
        parts += [_blob(centre, (27, 25, 54), 185, code), _blob(centre, (19, 17, 44), 150, code), _blob(hilum, (13, 11, 24), -70, CODE["fat"])]
    left_kidney, stomach = _ellipsoid((60, 34, -124), (27, 25, 54)), _ellipsoid((62, -26, -52), (44, 44, 42))
    clear = _without(under, _grow(left_kidney, 3), _grow(stomach, 3))
    parts += [_blob((90, 18, -62), (42, 54, 50), 118, CODE["spleen"], inside, clear)]
    parts += _tube(((-20, -6, -98), (10, -14, -92), (44, 4, -84), (78, 14, -76)), (13, 10, 9, 7), 100, CODE["soft"])
    stomach = _all(stomach, inside, under)
    around = {"lo": (18.0, -70.0, -94.0), "hi": (106.0, 18.0, -10.0)}
    parts += [Part(stomach, 45, CODE["stomach"], **around), Part(_grow(stomach, -4), 15, CODE["stomach"], **around)]
    parts += [Part(_all(_grow(stomach, -4), _slab(1, -400, -44)), -1000, CODE["bowel_gas"], **around)]
    rng = np.random.default_rng(7)
    for _ in range(34):
        x, y, z = rng.uniform(-75, 75), rng.uniform(-60, 10), rng.uniform(-230, -125)
        semi = (rng.uniform(14, 26), rng.uniform(12, 18), rng.uniform(12, 22))
        parts.append(_blob((x, y, z), semi, rng.uniform(25, 60), CODE["soft"], inside, _slab(2, -400, -112)))
    colon = ((-98, 10, -240), (-98, 2, -150), (-80, -48, -138), (-20, -62, -150), (40, -60, -140), (90, -30, -120), (104, 12, -128), (104, 14, -240))
    parts += _tube(colon, (24, 22, 20, 17, 17, 17, 17, 16), 40, CODE["soft"])
    parts += _tube(colon[1:6], (15, 15, 13, 13, 13), -980, CODE["bowel_gas"])
    return parts


def _liver(lesions: tuple[Lesion, ...]) -> list[Part]:
    """Right and left lobe under the diaphragm, the gallbladder and the lesions."""
    lobes = _any(_ellipsoid((-74, -4, -58), (64, 82, 82)), _ellipsoid((-12, -44, -34), (76, 32, 42)))
    kidney = _grow(_ellipsoid((-66, 34, -118), (27, 25, 54)), 4)
    liver = _without(_all(lobes, _grow(_CAVITY, -2), _below(-6)), kidney, _grow(_ellipsoid((62, -26, -52), (44, 44, 42)), 2))
    parts = [Part(liver, 108, CODE["liver"], (-150, -100, -145), (80, 90, 5))]
    parts += [_blob((-38, -48, -92), (14, 20, 26), 12, CODE["soft"])]
    for a, b, r in (
        ((-18, 0, -62), (-60, -10, -58), 6),
        ((-60, -10, -58), (-96, 12, -52), 3.5),
        ((-60, -10, -58), (-80, -40, -40), 3),
        ((-18, 20, -22), (-62, 4, -30), 4),
    ):
        parts += _tube((a, b), (r, r - 1.5), 150, None)
    for i, lesion in enumerate(lesions):
        parts += [_blob(lesion.centre, (lesion.radius,) * 3, lesion.hu, CODE[f"lesion_{min(i, 1) + 1}"], liver)]
    return parts


def _chest(seed: int) -> list[Part]:
    """Lungs with vessels, airways, heart and the great vessels."""
    spine = _grow(_capsule((0, 56, -80), (0, 56, 240), 22, 22), 0)
    aorta = _any(*(p.distance for p in _tube(_AORTA[3:8], (13,) * 5, 0, None, grow=2)))
    parts = []
    for name, s in (("lung_right", -1.0), ("lung_left", 1.0)):
        medial = functools.partial(_medial, s)
        shape = _all(_ellipsoid((s * 62, -4, 10), (68, 80, 162)), _grow(_CAVITY, -1), _above(0), medial)
        shape = _without(shape, _grow(_HEART, 4), spine, aorta)
        parts.append(Part(shape, _air_in_lung, CODE[name], (-135, -90, -90), (135, 85, 175)))
        parts += [Part(_all(p.distance, _grow(shape, -0.5)), p.hu, None, p.lo, p.hi) for p in _vessels(s, seed)]
    parts += [Part(_HEART, 105, CODE["heart"], (-40, -75, -15), (80, 15, 95)), _blob((34, -32, 28), (30, 26, 28), 140, CODE["heart"])]
    parts += _tube(((0, -20, 88), (18, -14, 100), (30, 4, 96)), (13, 12, 8), 140, CODE["vein"])
    parts += _tube(((-28, -22, 70), (-30, -18, 150), (-30, -14, 260)), (10, 8, 7), 130, CODE["vein"])
    parts += _tube(_AORTA, (15, 15, 14, 13, 13, 12, 12, 11, 9, 9), 150, CODE["aorta"])
    airways: list[tuple[Sequence[Triple], Sequence[float]]] = [
        (((0, 6, 260), (0, 8, 150), _CARINA), (9, 9, 8.5)),
        ((_CARINA, (-28, 14, 78), (-44, 18, 58), (-60, 28, 30)), (7, 6, 4.5, 3)),
        ((_CARINA, (34, 16, 74), (52, 22, 54), (66, 32, 28)), (6.5, 5.5, 4.5, 3)),
        (((-28, 14, 78), (-52, 0, 92), (-66, -8, 108)), (4.5, 3.5, 2.5)),
        (((34, 16, 74), (54, 2, 90), (66, -8, 106)), (4.5, 3.5, 2.5)),
    ]
    for points, radii in airways:
        parts += _tube(points, radii, 30, None, grow=1.5)
    for points, radii in airways:
        parts += _tube(points, radii, -990, CODE["airways"])
    return parts


def _medial(side: float, x: Array, y: Array, z: Array) -> Array:
    """The lung's inner border: 16 mm from the midline, less in front, where the lungs nearly meet."""
    return np.asarray(9 + 9 * np.clip((y + 60) / 60, 0, 1) - side * x + 0 * z, np.float32)


def _air_in_lung(x: Array, y: Array, z: Array) -> Array:
    """Lung tissue, denser at the back (the patient lies on it), with a faint grain."""
    grain = 14 * np.sin(x / 4.1 + np.sin(z / 5.3)) * np.sin(y / 3.7 + np.sin(x / 6.1)) * np.sin(z / 4.3)
    return np.asarray(-850 + 0.55 * y + grain, np.float32)


def _vessels(side: float, seed: int) -> list[Part]:
    """A tree that branches from the hilum into one lung."""
    rng = np.random.default_rng((seed, int(side) + 1))
    parts: list[Part] = []

    def branch(start: NDArray[np.float64], heading: NDArray[np.float64], radius: float, length: float) -> None:
        end = start + heading * length
        parts.extend(_tube((tuple(start), tuple(end)), (radius, radius * 0.8), 60, None))
        if radius > 1.0:
            for _ in range(3):
                turn = heading + rng.normal(0, 0.55, 3)
                branch(end, turn / np.linalg.norm(turn), radius * 0.66, length * 0.82)

    hilum = np.array([side * 34.0, 8.0, 68.0])
    for heading in ([1, 0.1, 0.9], [1, -0.6, 0.3], [1, 0.6, 0.1], [0.8, 0.2, -1], [0.7, 0.8, -0.9], [1, -0.5, -0.8]):
        way = np.array([side * heading[0], heading[1], heading[2]])
        branch(hilum, way / np.linalg.norm(way), 4.2, 34.0)
    return parts


def _bone(shape: Distance, lo: Triple, hi: Triple, code: int, cortex_mm: float = 1.8) -> list[Part]:
    """Compact bone around spongy bone."""
    return [Part(shape, 650, code, lo, hi), Part(_grow(shape, -cortex_mm), 210, code, lo, hi)]


def _spine() -> list[Part]:
    """Vertebrae of 24 mm with discs of 6 mm, arches around the canal, transverse and spinous processes."""
    parts: list[Part] = []
    for z in range(-255, 256, 30):
        y = _spine_y(z)
        parts += _tube(((0, y, z), (0, y, z + 30.0)), (17, 17), 85, CODE["soft"])
    for z in range(-255, 256, 30):
        y, code = _spine_y(z), CODE["spine"]
        lo, hi = (-50.0, y - 20, z - 32.0), (50.0, y + 62, z + 14.0)
        body = _all(_ellipsoid((0, y, z), (21, 16.5, 1e6)), _slab(2, z - 12, z + 12))
        ring = _all(_capsule((0, y + 25, z), (0, y + 25, z), 15, 15), _slab(2, z - 12, z + 6))
        spike = _capsule((0, y + 38, z - 4), (0, y + 52, z - 20), 3.6, 4.2)
        wings = [_capsule((s * 13, y + 22, z), (s * 36, y + 32, z - 2), 5, 3.8) for s in (-1.0, 1.0)]
        parts += _bone(_any(body, ring, spike, *wings), lo, hi, code)
    canal = [(0.0, _spine_y(z) + 25, float(z)) for z in (-260, -120, 0, 100, 260)]
    return parts + _tube(canal, (9,) * 5, 25, CODE["soft"])


def _ribs() -> list[Part]:
    """Ten pairs that slope down to the front, cartilage, sternum."""
    parts: list[Part] = []
    for number in range(11):
        top = 175.0 - 22 * number
        share = 1.0 if number < 7 else 0.8 - 0.13 * (number - 7)
        for s in (-1.0, 1.0):
            angles = np.linspace(-1.15, -1.15 + share * 2.75, 15)
            points = []
            for i, angle in enumerate(angles):
                z = top - 62 * (i / 14) ** 1.2 * share
                a, b = float(np.interp(z, HEIGHTS, (136, 134, 134, 138, 133, 106, 70))), float(np.interp(z, HEIGHTS, (82, 81, 82, 88, 86, 70, 48)))
                points.append((s * a * math.cos(angle), -8 - b * math.sin(angle), z))
            radii = [5.2] * len(points)
            parts += _tube(points, radii, 620, CODE["ribs"]) + _tube(points, radii, 240, CODE["ribs"], grow=-1.7)
            if number < 8:
                end, chest = points[-1], (s * 12.0, -92.0, max(points[-1][2] + 6, 0.0))
                parts += _tube((end, chest), (5.2, 5), 105, CODE["soft"])
    plate = _all(_capsule((0, -91, 8), (0, -84, 132), 13, 18), lambda x, y, z: np.abs(y + 92 - 0.056 * (z - 8)) - np.float32(5) + 0 * x)
    return parts + _bone(plate, (-20, -115, -10), (20, -60, 155), CODE["sternum"], 1.5)
