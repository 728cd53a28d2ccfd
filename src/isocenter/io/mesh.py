"""Triangle surfaces as files: binary STL and Wavefront OBJ. Positions are LPS millimetres, and both files say so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Corners (n, 3) in LPS mm, triangles (m, 3) of their numbers, and a name.
Mesh = tuple[NDArray[np.float64], NDArray[np.int64], str]


def stl(meshes: Sequence[Mesh]) -> bytes:
    """All surfaces in one binary STL. Its header's `SPACE=LPS` is what 3D Slicer reads."""
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    pieces = []
    for corners, triangles, _ in meshes:
        placed = corners[triangles]
        normals = np.cross(placed[:, 1] - placed[:, 0], placed[:, 2] - placed[:, 0])
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        piece = np.zeros(len(triangles), kind)
        piece["normal"] = normals / np.where(lengths > 0, lengths, 1)
        piece["corners"] = placed
        pieces.append(piece)
    count = sum(map(len, pieces))
    return b"".join([b"SPACE=LPS isocenter".ljust(80), np.uint32(count).astype("<u4").tobytes(), *(piece.tobytes() for piece in pieces)])


def obj(meshes: Sequence[Mesh]) -> bytes:
    """All surfaces in one OBJ, a group each, by name."""
    lines = ["# SPACE=LPS, millimetres"]
    first = 1
    for corners, triangles, name in meshes:
        lines.append(f"g {'_'.join(name.split()) or 'region'}")
        lines += [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in corners.tolist()]
        lines += [f"f {a} {b} {c}" for a, b, c in (triangles + first).tolist()]
        first += len(corners)
    return ("\n".join(lines) + "\n").encode()


def outward(corners: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """The triangles of a closed surface, turned round where they look inside: counter-clockwise from outside."""
    a, b, c = (corners[triangles[:, k]] for k in range(3))
    inside_out = float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) < 0
    return triangles[:, ::-1] if inside_out else triangles
