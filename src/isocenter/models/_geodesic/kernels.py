"""numba kernels of the click engine; all work on C-ordered (z, y, x) arrays of one working window.

Every kernel has an explicit signature, so importing this file compiles it once, or takes it from the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isocenter.models._numba import kernel

FAR = 2**31 - 1
"""Arrival of voxels that the front did not reach."""

BUCKETS = 2048
"""Length of the circular bucket queue; one step costs less than this."""


@kernel("i4[:](f4[:,:,:], f4[:,:,:], u1[:,:,:], i4[:], f4[:], f4, f4, i8)")
def flood(
    values: NDArray[np.float32],
    unary: NDArray[np.float32],
    closed: NDArray[np.uint8],
    seeds: NDArray[np.int32],
    steps: NDArray[np.float32],
    spatial: float,
    edge: float,
    limit: int,
) -> NDArray[np.int32]:
    """Geodesic arrival from `seeds` by an exact bucket queue (Dial 1969), 6-neighbours, early stopping.

    A step of length l (mm over the working spacing, `steps` per axis) from u to v costs
    l * (spatial + unary[v] + edge * |values[v] - values[u]|) in units of 1/16, at least 1. Voxels with closed != 0 are
    never entered. The flood ends when `limit` voxels have been settled; the rest stays at FAR.
    """
    nz, ny, nx = values.shape
    n = nz * ny * nx
    val = values.ravel()
    una = unary.ravel()
    shut = closed.ravel()
    arrival = np.full(n, FAR, np.int32)
    settled = np.zeros(n, np.uint8)
    after = np.full(n, -1, np.int32)
    before = np.full(n, -1, np.int32)
    head = np.full(BUCKETS, -1, np.int32)
    queued = 0
    for s in seeds:
        if arrival[s] != 0:
            arrival[s] = 0
            after[s] = head[0]
            if head[0] >= 0:
                before[head[0]] = s
            head[0] = s
            queued += 1
    now = 0
    done = 0
    while queued > 0 and done < limit:
        slot = now & (BUCKETS - 1)
        u = head[slot]
        if u < 0:
            now += 1
            continue
        head[slot] = after[u]
        if after[u] >= 0:
            before[after[u]] = -1
        queued -= 1
        settled[u] = 1
        done += 1
        z = u // (ny * nx)
        y = (u // nx) % ny
        x = u % nx
        for k in range(6):
            axis = k >> 1
            if k == 0:
                if z == 0:
                    continue
                v = u - ny * nx
            elif k == 1:
                if z == nz - 1:
                    continue
                v = u + ny * nx
            elif k == 2:
                if y == 0:
                    continue
                v = u - nx
            elif k == 3:
                if y == ny - 1:
                    continue
                v = u + nx
            elif k == 4:
                if x == 0:
                    continue
                v = u - 1
            else:
                if x == nx - 1:
                    continue
                v = u + 1
            if settled[v] or shut[v]:
                continue
            cost = 16.0 * steps[axis] * (spatial + una[v] + edge * abs(val[v] - val[u]))
            t = now + min(max(int(cost), 1), BUCKETS - 1)
            old = arrival[v]
            if t < old:
                if old != FAR:
                    if before[v] >= 0:
                        after[before[v]] = after[v]
                    else:
                        head[old & (BUCKETS - 1)] = after[v]
                    if after[v] >= 0:
                        before[after[v]] = before[v]
                else:
                    queued += 1
                b = t & (BUCKETS - 1)
                arrival[v] = t
                before[v] = -1
                after[v] = head[b]
                if head[b] >= 0:
                    before[head[b]] = v
                head[b] = v
    for v in range(n):
        if not settled[v]:
            arrival[v] = FAR
    return arrival


@kernel("f8[:,:](u1[:,:,:], f4[:,:,:], u1[:,:,:], i8[:], f4[:], i8)")
def nested_statistics(
    level: NDArray[np.uint8], values: NDArray[np.float32], mask: NDArray[np.uint8], click: NDArray[np.int64], steps: NDArray[np.float32], count: int
) -> NDArray[np.float64]:
    """Sums over `count` nested regions at once; region k holds the voxels with level <= k.

    Returns (count, 18): 0 voxels, 1-3 sum of offsets from the click (z, y, x, in `steps`), 4 sum of values, 5 sum of
    squared values, 6 smallest distance from the click to a voxel outside, 7 outer area, 8 part of it on the box's faces,
    9 sum of |difference| (over the root of the step) over the outer faces that do not touch `mask`, 10 their area, 11 area of them with
    |difference| > 1, 12 area with |difference| > 2, 13 sum of |difference| inside, 14 inner area, 15 area that touches
    `mask`, 16 sum of |difference| over it, 17 sum of squared distances from the click.
    """
    nz, ny, nx = level.shape
    out = np.zeros((count + 1, 18), np.float64)
    near = np.full(count + 1, 1e9, np.float64)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                a = min(level[z, y, x], count)
                va = values[z, y, x]
                dz = (z - click[0]) * steps[0]
                dy = (y - click[1]) * steps[1]
                dx = (x - click[2]) * steps[2]
                r2 = dz * dz + dy * dy + dx * dx
                if mask[z, y, x] == 0 or a < count:
                    r = np.sqrt(r2)
                    if r < near[a]:
                        near[a] = r
                if a < count:
                    out[a, 0] += 1
                    out[a, 1] += dz
                    out[a, 2] += dy
                    out[a, 3] += dx
                    out[a, 4] += va
                    out[a, 5] += va * va
                    out[a, 17] += r2
                for axis in range(3):
                    z2 = z + (axis == 0)
                    y2 = y + (axis == 1)
                    x2 = x + (axis == 2)
                    area = 1.0 / steps[axis]
                    at = z if axis == 0 else (y if axis == 1 else x)
                    if at == 0 and a < count:
                        out[a, 7] += area
                        out[a, 8] += area
                    if z2 >= nz or y2 >= ny or x2 >= nx:
                        if a < count:
                            out[a, 7] += area
                            out[a, 8] += area
                        continue
                    b = min(level[z2, y2, x2], count)
                    if a == count and b == count:
                        continue
                    d = abs(va - values[z2, y2, x2]) / np.sqrt(steps[axis])
                    lo = min(a, b)
                    hi = max(a, b)
                    out[hi, 13] += d * area
                    out[hi, 14] += area
                    if lo == hi:
                        continue
                    outer_mask = mask[z, y, x] if a > b else mask[z2, y2, x2]
                    out[lo, 7] += area
                    out[hi, 7] -= area
                    if hi == count and outer_mask != 0:
                        out[lo, 15] += area
                        out[lo, 16] += d * area
                        continue
                    out[lo, 9] += d * area
                    out[hi, 9] -= d * area
                    out[lo, 10] += area
                    out[hi, 10] -= area
                    if d > 1:
                        out[lo, 11] += area
                        out[hi, 11] -= area
                    if d > 2:
                        out[lo, 12] += area
                        out[hi, 12] -= area
    for k in range(1, count):
        for c in range(18):
            if c != 6:
                out[k, c] += out[k - 1, c]
    smallest = near[count]
    for k in range(count - 1, -1, -1):
        out[k, 6] = smallest
        smallest = min(smallest, near[k])
    return out[:count]


@kernel("f4[:,:,::1](f4[:,:,::1], f4[:])", fastmath={"contract"})
def smooth(values: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Separable (w, 1, w) / (1 + 2 w) smoothing, w per axis (z, y, x); edges repeat."""
    nz, ny, nx = values.shape
    a = values
    b = np.empty_like(values)
    c = np.empty_like(values)
    for axis in range(3):
        w = weights[axis]
        if w <= 0:
            continue
        norm = np.float32(1.0) / (np.float32(1.0) + np.float32(2.0) * w)
        side = w * norm
        for z in range(nz):
            for y in range(ny):
                here = a[z, y]
                out = b[z, y]
                if axis == 2:
                    out[0] = norm * here[0] + side * (here[0] + here[min(1, nx - 1)])
                    for x in range(1, nx - 1):
                        out[x] = norm * here[x] + side * (here[x - 1] + here[x + 1])
                    if nx > 1:
                        out[nx - 1] = norm * here[nx - 1] + side * (here[nx - 2] + here[nx - 1])
                else:
                    before = a[max(z - 1, 0), y] if axis == 0 else a[z, max(y - 1, 0)]
                    after = a[min(z + 1, nz - 1), y] if axis == 0 else a[z, min(y + 1, ny - 1)]
                    for x in range(nx):
                        out[x] = norm * here[x] + side * (before[x] + after[x])
        a, b, c = b, c, b
    return a


@kernel("f4[:,:,:](i8[:,:], f4[:], i8, i8, i8, f4)")
def nearest(points: NDArray[np.int64], steps: NDArray[np.float32], nz: int, ny: int, nx: int, cap: float) -> NDArray[np.float32]:
    """Distance (in `steps`) from every voxel of a window to the nearest of a few points (n, 3), at most `cap`."""
    out = np.full((nz, ny, nx), cap, np.float32)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                best = cap * cap
                for p in range(points.shape[0]):
                    dz = (z - points[p, 0]) * steps[0]
                    dy = (y - points[p, 1]) * steps[1]
                    dx = (x - points[p, 2]) * steps[2]
                    best = min(best, dz * dz + dy * dy + dx * dx)
                out[z, y, x] = np.sqrt(best)
    return out


@kernel("void(f4[:,:,::1], u1[:,:,::1], i8[:], i8[:], i8, u1[:,:,::1])")
def enlarge(
    logit: NDArray[np.float32], live: NDArray[np.uint8], stride: NDArray[np.int64], lo: NDArray[np.int64], sign: int, belief: NDArray[np.uint8]
) -> None:
    """Write the logits of working voxels, linearly interpolated, into the volume's belief, of which they begin at `lo`.

    Only full-resolution voxels whose working voxel is live are written; scale and rounding as `window.to_belief`. sign: 1
    leaves what is inside inside, -1 what is outside outside, 0 writes all.
    """
    mz, my, mx = logit.shape
    nz, ny, nx = belief.shape
    scale = np.float32(127.0 / 6.0)
    row = np.empty(mx, np.float32)
    for z in range(lo[0], min(lo[0] + mz * stride[0], nz)):
        cz = (z - lo[0]) // stride[0]
        pz = min(max((z - lo[0] + 0.5) / stride[0] - 0.5, 0.0), mz - 1.0)
        z0 = int(pz)
        z1 = min(z0 + 1, mz - 1)
        fz = np.float32(pz - z0)
        for y in range(lo[1], min(lo[1] + my * stride[1], ny)):
            cy = (y - lo[1]) // stride[1]
            c0 = 0
            while c0 < mx and live[cz, cy, c0] == 0:
                c0 += 1
            if c0 == mx:
                continue
            c1 = mx
            while live[cz, cy, c1 - 1] == 0:
                c1 -= 1
            py = min(max((y - lo[1] + 0.5) / stride[1] - 0.5, 0.0), my - 1.0)
            y0 = int(py)
            y1 = min(y0 + 1, my - 1)
            fy = np.float32(py - y0)
            for c in range(max(c0 - 1, 0), min(c1 + 1, mx)):
                a = logit[z0, y0, c] * (1 - fy) + logit[z0, y1, c] * fy
                b = logit[z1, y0, c] * (1 - fy) + logit[z1, y1, c] * fy
                row[c] = (a * (1 - fz) + b * fz) * scale
            for c in range(c0, c1):
                if live[cz, cy, c] == 0:
                    continue
                here, left, right = row[c], row[max(c - 1, 0)], row[min(c + 1, mx - 1)]
                x0 = lo[2] + c * stride[2]
                for x in range(x0, min(x0 + stride[2], nx)):
                    f = np.float32((x - x0 + 0.5) / stride[2] - 0.5)
                    mixed = here + f * (right - here) if f > 0 else here + f * (here - left)
                    value = np.uint8(min(max(np.ceil(mixed) + np.float32(127.0), np.float32(0.0)), np.float32(255.0)))
                    if sign > 0:
                        value = max(value, min(belief[z, y, x], np.uint8(128)))
                    elif sign < 0:
                        value = min(value, max(belief[z, y, x], np.uint8(127)))
                    belief[z, y, x] = value


@kernel("i8[:](u1[:,:,::1], u1[:,:,::1], i8[:], i8[:])")
def renew(belief: NDArray[np.uint8], mask: NDArray[np.uint8], lo: NDArray[np.int64], hi: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bring the mask up to date with the belief in the box [lo, hi); returns the box (lo, hi) around what changed.

    Rows that stay as they are are only read, so that they need no memory where nothing was ever written.
    """
    out = np.empty(6, np.int64)
    out[:3] = hi
    out[3:] = lo
    for z in range(lo[0], hi[0]):
        for y in range(lo[1], hi[1]):
            moved = np.uint8(0)
            for x in range(lo[2], hi[2]):
                moved |= (belief[z, y, x] >> np.uint8(7)) ^ mask[z, y, x]
            if moved == 0:
                continue
            first, last = hi[2], lo[2]
            for x in range(lo[2], hi[2]):
                value = belief[z, y, x] >> np.uint8(7)
                if value != mask[z, y, x]:
                    mask[z, y, x] = value
                    first = min(first, x)
                    last = x + 1
            out[0] = min(out[0], z)
            out[3] = z + 1
            out[1] = min(out[1], y)
            out[4] = max(out[4], y + 1)
            out[2] = min(out[2], first)
            out[5] = max(out[5], last)
    return out


@kernel("void(f4[:,::1], i8, i8, f4[:,::1])")
def add_blocks(plane: NDArray[np.float32], sy: int, sx: int, out: NDArray[np.float32]) -> None:
    """Add every voxel of a plane (y, x) to the block of `out` that it belongs to; NaN counts as nothing."""
    ny, nx = plane.shape
    for y in range(ny):
        row = out[y // sy]
        for block in range(row.shape[0]):
            total = np.float32(0)
            for x in range(block * sx, min(block * sx + sx, nx)):
                value = plane[y, x]
                if value == value:
                    total += value
            row[block] += total
