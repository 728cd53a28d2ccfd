"""The minimum cut itself: Boykov and Kolmogorov's two search trees, written for voxel grids.

Y. Boykov and V. Kolmogorov, "An experimental comparison of min-cut/max-flow algorithms for energy minimization in
vision", IEEE PAMI 26 (2004). Capacities are integers, so the answer is exact and the same on every machine.

A node has six arcs, in the order -z +z -y +y -x +x, so that the arc back is `k ^ 1`. A neighbour's index is either a
fixed distance away (a full grid: `table` is None, and numba drops the other branch) or stands in `table` (a band of
voxels). There is no test for the grid's edge anywhere: arcs that would leave it have capacity zero in both directions,
and spare nodes at both ends of the arrays keep the indices inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isocenter.models._numba import kernel

Array = Any  # numba infers the types of arrays; annotations would only repeat them

SOURCE, SINK = 1, 2
#: Values of `parent` beside 0..5, the arc to the parent.
TERMINAL, ORPHAN, NONE = 6, 7, 8
FAR = 1 << 30
#: Places in `state`: the queue of active nodes, the ring of orphans, the clock.
HEAD, COUNT, FIRST, WAITING, TIME = 0, 1, 2, 3, 4


@kernel(inline="always")
def _towards(node: int, arc: int, strides: Array, table: Array) -> Any:
    """The node at the other end of an arc."""
    if table is None:
        return node + strides[arc]
    return table[node, arc]


@kernel()
def _activate(node: int, queued: Array, queue: Array, state: Array) -> None:
    """Put a node at the end of the queue of nodes whose tree may grow there; a node is in it once at most."""
    if queued[node]:
        return
    queued[node] = 1
    end = state[HEAD] + state[COUNT]
    if end >= queue.size:
        end -= queue.size
    queue[end] = node
    state[COUNT] += 1


@kernel()
def _orphan(node: int, front: bool, parent: Array, orphans: Array, state: Array) -> None:
    """Cut a node off its tree and note it, before or after those that wait already."""
    parent[node] = ORPHAN
    if front:
        state[FIRST] = state[FIRST] - 1 if state[FIRST] > 0 else orphans.size - 1
        orphans[state[FIRST]] = node
    else:
        end = state[FIRST] + state[WAITING]
        orphans[end if end < orphans.size else end - orphans.size] = node
    state[WAITING] += 1


@kernel()
def _grow(
    node: int, residual: Array, strides: Array, table: Array, tree: Array, parent: Array, clock: Array, queued: Array, queue: Array, state: Array
) -> int:
    """Let a tree take in the free neighbours of one node; the arc on which it meets the other tree, or -1."""
    own = tree[node]
    for arc in range(6):
        other = _towards(node, arc, strides, table)
        flows = residual[node, arc] if own == SOURCE else residual[other, arc ^ 1]
        if flows <= 0:
            continue
        if parent[other] == NONE:
            tree[other] = own
            parent[other] = arc ^ 1
            clock[other, 0] = clock[node, 0]
            clock[other, 1] = clock[node, 1] + 1
            _activate(other, queued, queue, state)
        elif tree[other] != own:
            return arc
        elif clock[other, 0] <= clock[node, 0] and clock[other, 1] > clock[node, 1]:
            # A shorter way to the terminal: short trees are what keeps the augmenting paths short.
            parent[other] = arc ^ 1
            clock[other, 0] = clock[node, 0]
            clock[other, 1] = clock[node, 1] + 1
    return -1


@kernel()
def _augment(
    node: int, arc: int, residual: Array, excess: Array, strides: Array, table: Array, parent: Array, tree: Array, orphans: Array, state: Array
) -> int:
    """Send as much as fits along the path through one arc between the trees; what gets full makes orphans."""
    other = _towards(node, arc, strides, table)
    if tree[node] == SINK:
        node, other, arc = other, node, arc ^ 1
    flow = residual[node, arc]
    at = node
    while parent[at] != TERMINAL:
        up = parent[at]
        at = _towards(at, up, strides, table)
        flow = min(flow, residual[at, up ^ 1])
    flow = min(flow, excess[at])
    at = other
    while parent[at] != TERMINAL:
        flow = min(flow, residual[at, parent[at]])
        at = _towards(at, parent[at], strides, table)
    flow = min(flow, -excess[at])

    residual[node, arc] -= flow
    residual[other, arc ^ 1] += flow
    for start, own in ((node, SOURCE), (other, SINK)):
        at = start
        while parent[at] != TERMINAL:
            up = parent[at]
            above = _towards(at, up, strides, table)
            given = flow if own == SOURCE else -flow
            residual[at, up] += given
            residual[above, up ^ 1] -= given
            left = residual[above, up ^ 1] if own == SOURCE else residual[at, up]
            if left == 0:
                _orphan(at, True, parent, orphans, state)
            at = above
        excess[at] -= flow if own == SOURCE else -flow
        if excess[at] == 0:
            _orphan(at, True, parent, orphans, state)
    return int(flow)


@kernel()
def _distance(node: int, strides: Array, table: Array, parent: Array, clock: Array, now: int) -> int:
    """Arcs from a node to its terminal, `FAR` when an orphan lies between; remembers it along the way."""
    length = 0
    at = node
    while True:
        if clock[at, 0] == now:
            length += clock[at, 1]
            break
        length += 1
        up = parent[at]
        if up == TERMINAL:
            clock[at, 0] = now
            clock[at, 1] = 1
            break
        if up >= ORPHAN:
            return FAR
        at = _towards(at, up, strides, table)
    found = length
    at = node
    while clock[at, 0] != now:
        clock[at, 0] = now
        clock[at, 1] = length
        length -= 1
        at = _towards(at, parent[at], strides, table)
    return found


@kernel()
def _adopt(
    node: int,
    residual: Array,
    strides: Array,
    table: Array,
    tree: Array,
    parent: Array,
    clock: Array,
    queued: Array,
    queue: Array,
    orphans: Array,
    state: Array,
) -> None:
    """Find an orphan the nearest new parent in its tree, or set it free and orphan its children."""
    own = tree[node]
    best, nearest = -1, FAR
    for arc in range(6):
        other = _towards(node, arc, strides, table)
        flows = residual[other, arc ^ 1] if own == SOURCE else residual[node, arc]
        if flows > 0 and tree[other] == own and parent[other] != NONE:
            distance = _distance(other, strides, table, parent, clock, state[TIME])
            if distance < nearest:
                best, nearest = arc, distance
    if best >= 0:
        parent[node] = best
        clock[node, 0] = state[TIME]
        clock[node, 1] = nearest + 1
        return
    parent[node] = NONE
    for arc in range(6):
        other = _towards(node, arc, strides, table)
        if tree[other] != own or parent[other] == NONE:
            continue
        flows = residual[other, arc ^ 1] if own == SOURCE else residual[node, arc]
        if flows > 0:
            _activate(other, queued, queue, state)
        if parent[other] == arc ^ 1:
            _orphan(other, False, parent, orphans, state)


@kernel()
def solve(residual: Array, excess: Array, strides: Array, table: Array, first: int, last: int, side: Array) -> int:
    """Maximum flow through nodes first..last-1; writes 1 into `side` where a node is cut off from the sink.

    residual (nodes, 6) int32: capacities, used up. excess (nodes,) int32: capacity from the source minus that to the
    sink, used up. A node that neither tree reached may lie on either side; it is given to the sink's (background), so
    the foreground is the smallest of all minimum cuts. Returns the flow between the trees (without what a node passes
    directly from source to sink).
    """
    nodes = excess.size
    tree = np.zeros(nodes, np.uint8)
    parent = np.full(nodes, NONE, np.uint8)
    clock = np.zeros((nodes, 2), np.int32)
    queued = np.zeros(nodes, np.uint8)
    queue = np.empty(last - first, np.int32)
    orphans = np.empty(last - first, np.int32)
    state = np.zeros(5, np.int64)
    for node in range(first, last):
        if excess[node] != 0:
            tree[node] = SOURCE if excess[node] > 0 else SINK
            parent[node] = TERMINAL
            clock[node, 1] = 1
            _activate(node, queued, queue, state)
    total = 0
    node = -1
    while True:
        if node < 0 or parent[node] == NONE:
            if state[COUNT] == 0:
                break
            node = queue[state[HEAD]]
            state[HEAD] = state[HEAD] + 1 if state[HEAD] + 1 < queue.size else 0
            state[COUNT] -= 1
            queued[node] = 0
            if parent[node] == NONE:
                continue
        arc = _grow(node, residual, strides, table, tree, parent, clock, queued, queue, state)
        state[TIME] += 1
        if arc < 0:
            node = -1
            continue
        total += _augment(node, arc, residual, excess, strides, table, parent, tree, orphans, state)
        while state[WAITING] > 0:
            orphan = orphans[state[FIRST]]
            state[FIRST] = state[FIRST] + 1 if state[FIRST] + 1 < orphans.size else 0
            state[WAITING] -= 1
            _adopt(orphan, residual, strides, table, tree, parent, clock, queued, queue, orphans, state)
    for node in range(first, last):
        side[node - first] = tree[node] == SOURCE and parent[node] != NONE
    return total
