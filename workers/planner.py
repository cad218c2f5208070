"""Which keyframes to label next, and when to stop.

A label is worth what it newly reaches: the sum, over all keyframes, of its influence beyond what a label gives already,
times how unsure we are there. With no labels that is coverage (facility location over the graph's kernel); with labels
it turns by itself to where guesses are unsure. Picking greedily is within 1 - 1/e of the best choice (Nemhauser, 1978).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.records import Label
from workers.propagation import Graph, Propagation, influence, propagate, reached, relative_influence


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether to go on labelling."""

    stop: bool
    more: int | None  # centroids to label, about, until the target is reached; None: not within sight
    covered: float  # share of all keyframes that are labelled or proposed now
    target: float
    text: str  # for people


def next_to_label(graph: Graph, propagation: Propagation | None, n: int) -> tuple[int, ...]:
    """The `n` keyframe ids to label next, the most useful first; fewer if fewer are unlabelled. Deterministic.

    `propagation` is the last one on this graph, None before the first label. Raises ValueError for a negative n.
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    size = len(graph.keyframe_ids)
    labelled = np.zeros(size, bool) if propagation is None else propagation.labelled
    # coverage first: what we are unsure of counts more and more as the categories become known
    unsure = np.ones(size) if propagation is None else (1.0 - propagation.score) ** propagation.maturity
    known = _best_influence(graph, np.flatnonzero(labelled))
    # gains only shrink as more is chosen, so an old gain is a bound: only the tops of the heap are worked out again
    bound = reached(graph, unsure)
    influence(graph, np.argsort(-bound, kind="stable")[: 4 * n + 256])  # in one go: in threes it costs 6 times as much
    heap = [(-float(bound[row]), -1, int(row)) for row in np.flatnonzero(~labelled)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        if heap[0][1] == len(chosen):
            row = heapq.heappop(heap)[2]
            chosen.append(row)
            one = relative_influence(graph, [row])
            known[one.indices] = np.maximum(known[one.indices], one.data)
            continue
        stale = [heapq.heappop(heap) for _ in range(min(_AT_ONCE, len(heap)))]
        again = [row for _, made, row in stale if made != len(chosen)]
        reach = relative_influence(graph, again)
        gain = np.maximum(reach.data - known[reach.indices], 0) * unsure[reach.indices]
        gains = np.add.reduceat(np.r_[gain, 0.0], reach.indptr[:-1])
        for item in [(-float(g), len(chosen), row) for g, row in zip(gains, again, strict=True)]:
            heapq.heappush(heap, item)
        for item in stale:
            if item[1] == len(chosen):
                heapq.heappush(heap, item)
    return tuple(int(graph.keyframe_ids[row]) for row in chosen)


def stop_advice(
    graph: Graph,
    labels: Sequence[Label],
    categories: Sequence[str],
    propagation: Propagation,
    *,
    multiple: bool = False,
    target: float = 0.9,
) -> Advice:
    """How many more labels until `target` of the keyframes are labelled or proposed; costs a few propagations.

    Tries it out: the keyframes that would come next get their guesses as labels. That takes the guesses for right, so
    the number is a low estimate while categories are still unseen. Raises ValueError for a target outside 0..1.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target must be above 0 and at most 1, got {target}")
    size = max(1, len(graph.keyframe_ids))
    covered = _covered(propagation)
    promise = f"{propagation.promise:.0%}"
    if covered >= target:
        text = f"stop: {covered:.0%} of the keyframes reach {promise}, more labels change little"
        return Advice(True, 0, covered, target, text)
    guess = {g.keyframe_id: g.category for g in propagation.open}
    guess |= {p.keyframe_id: p.category for p in propagation.proposed}
    order = [identifier for identifier in next_to_label(graph, propagation, _LOOK_AHEAD) if identifier in guess]
    tried, reached_share = [0], [covered]
    while reached_share[-1] < target and tried[-1] < len(order):
        count = min(max(4, 2 * tried[-1]), len(order))
        imagined = [Label(identifier, guess[identifier], -1) for identifier in order[:count]]
        then = propagate(
            None, [*labels, *imagined], categories, multiple=multiple, promise=propagation.promise, graph=graph
        )
        tried.append(count)
        reached_share.append(_covered(then))
    if reached_share[-1] < target:
        if tried[-1] == 0:
            return Advice(False, None, covered, target, "label a few centroids first")
        per_label = (reached_share[-1] - covered) / tried[-1] * size
        if per_label < _LITTLE:
            text = "stop: more labels change little; look at what is unsure or in conflict"
            return Advice(True, None, covered, target, text)
        text = f"label more: {covered:.0%} of the keyframes reach {promise} so far"
        return Advice(False, None, covered, target, text)
    low, high = reached_share[-2], reached_share[-1]
    more = tried[-2] + math.ceil((tried[-1] - tried[-2]) * (target - low) / max(high - low, 1e-9))
    text = f"label about {more} more centroids to reach {promise} on {target:.0%} of the keyframes"
    return Advice(False, more, covered, target, text)


#: candidates whose gain is worked out together
_AT_ONCE = 128
#: labels that we look ahead at most
_LOOK_AHEAD = 512
#: keyframes that a label must newly settle, itself included, to be worth a look
_LITTLE = 1.5


def _covered(propagation: Propagation) -> float:
    settled = propagation.labelled.sum() + len({p.keyframe_id for p in propagation.proposed})
    return float(settled) / max(1, len(propagation.labelled))


def _best_influence(graph: Graph, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    known = np.zeros(len(graph.keyframe_ids))
    reach = relative_influence(graph, rows)
    np.maximum.at(known, reach.indices, reach.data)
    return known
