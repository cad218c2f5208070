"""Which keyframes to label next, and when to stop.

A label is worth what it newly reaches: the sum, over all keyframes, of its influence beyond what a label gives already,
times how unsure we are there. With no labels that is coverage (facility location over the graph's kernel); with labels
it turns by itself to where guesses are unsure. Picking greedily is within 1 - 1/e of the best choice (Nemhauser, 1978).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

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
    """How many more labels until `target` of the keyframes are labelled or proposed; costs up to four propagations.

    Tries it out: keyframes that would come next get their guesses as labels, in about the order of `next_to_label`,
    and what that settles is looked at on a sample. That takes the guesses for right, so the number is a low estimate
    while categories are still unseen. Raises ValueError for a target outside 0..1.
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
    if not guess:
        return Advice(False, None, covered, target, "label a few centroids first")
    coming = _coming(graph, propagation)
    rows: list[int] = []

    def share(count: int) -> float:
        identifiers = [int(graph.keyframe_ids[row]) for row in rows[:count]]
        imagined = [Label(identifier, guess[identifier], -1) for identifier in identifiers if identifier in guess]
        return _imagine(graph, labels, imagined, categories, propagation, multiple)

    low, high = (0, covered), (0, covered)  # labels, share of the keyframes that they settle
    for count in _TRIED:
        rows += islice(coming, count - len(rows))
        if len(rows) > high[0]:
            low, high = high, (len(rows), share(len(rows)))
        if high[1] >= target or len(rows) < count:
            break
    if high[1] < target:
        per_label = (high[1] - covered) / high[0] * size
        if per_label < _LITTLE:
            text = "stop: more labels change little; look at what is unsure or in conflict"
            return Advice(True, None, covered, target, text)
        text = f"label more: {covered:.0%} of the keyframes reach {promise} so far"
        return Advice(False, None, covered, target, text)
    middle = math.isqrt(max(1, low[0]) * high[0])
    if low[0] < middle < high[0]:
        found = (middle, share(middle))
        low, high = (low, found) if found[1] >= target else (found, high)
    more = low[0] + math.ceil((high[0] - low[0]) * (target - low[1]) / max(high[1] - low[1], 1e-9))
    text = f"label about {more} more centroids to reach {promise} on {target:.0%} of the keyframes"
    return Advice(False, more, covered, target, text)


#: candidates whose gain is worked out together
_AT_ONCE = 128
#: numbers of further labels that are tried out
_TRIED = (16, 128, 512)
#: influence on others is mostly below this; then it settles as much as next_to_label (.03: 2 points less, .3: 4 more)
_WEAK = 0.1
#: keyframes that a trial is looked at on: a share of them is known within 1 %; 0.2 s each, all 14,000 took 0.6 s
_SAMPLE = 2048
#: keyframes that a label must newly settle, itself included, to be worth a look
_LITTLE = 1.5


def _covered(propagation: Propagation) -> float:
    settled = propagation.labelled.sum() + len({p.keyframe_id for p in propagation.proposed})
    return float(settled) / max(1, len(propagation.labelled))


def _coming(graph: Graph, propagation: Propagation) -> Iterator[int]:
    """Unlabelled rows in about the order of `next_to_label`; only the influence of those that are taken is worked out.

    Chosen in rounds that double, each as if its own were apart already; those near each other are left to later rounds.
    """
    unsure = (1.0 - propagation.score) ** propagation.maturity
    left = ~propagation.labelled
    known = _best_influence(graph, np.flatnonzero(propagation.labelled))
    while left.any():
        # next_to_label gains max(influence - known, 0): on others, most influence is weak, and gains where none is yet
        weak = unsure * np.maximum(1 - known / _WEAK, 0)
        gain = reached(graph, weak) + unsure * (1 - known) - weak
        free, taken = left.copy(), []
        for row in np.argsort(-gain, kind="stable"):
            if free[row]:
                taken.append(int(row))
                free[row] = free[graph.neighbours[row]] = False
                if len(taken) == max(4, int((~left).sum() - propagation.labelled.sum())):
                    break
        yield from taken
        left[taken] = False
        known = np.maximum(known, _best_influence(graph, np.asarray(taken)))


def _imagine(
    graph: Graph,
    labels: Sequence[Label],
    imagined: Sequence[Label],
    categories: Sequence[str],
    propagation: Propagation,
    multiple: bool,
) -> float:
    """The share of all keyframes that would be labelled or proposed with `imagined`, from a sample of them.

    The sample is the same in every trial, and how far it is off now is known: by that the estimate is set right.
    """
    size = len(graph.keyframe_ids)
    said = propagation.labelled.copy()
    said[[graph._rows[label.keyframe_id] for label in imagined]] = True
    sample = np.zeros(size, bool)
    sample[np.random.default_rng(0).choice(size, min(size, _SAMPLE), replace=False)] = True
    part = _part(graph, np.flatnonzero(sample | said), np.flatnonzero(said))
    then = propagate(None, [*labels, *imagined], categories, multiple=multiple, promise=propagation.promise, graph=part)
    asked = sample & ~said
    now = _proposed(graph, propagation)
    off = now[~said].mean() - now[asked].mean() if asked.any() else 0.0
    settled = np.clip(_proposed(graph, then)[asked].mean() + off, 0, 1) if asked.any() else 0.0
    return float((said.sum() + (~said).sum() * settled) / size)


def _part(graph: Graph, rows: NDArray[np.int64], givers: NDArray[np.int64]) -> Graph:
    """The graph at `rows` only, for propagating labels of `givers`, which are among them: their influence is that in
    the whole graph. It cannot be extended."""
    reach = influence(graph, givers)[:, rows]
    place = {int(row): i for i, row in enumerate(rows)}
    columns = [slice(a, b) for a, b in pairwise(reach.indptr)]
    return replace(
        graph,
        keyframe_ids=graph.keyframe_ids[rows],
        features=graph.features[rows],
        self_influence=graph.self_influence[rows],
        _rows={int(identifier): i for i, identifier in enumerate(graph.keyframe_ids[rows])},
        _influence={
            place[int(giver)]: (reach.indices[column], reach.data[column])
            for giver, column in zip(givers, columns, strict=True)
        },
    )


def _proposed(graph: Graph, propagation: Propagation) -> NDArray[np.bool_]:
    found = np.zeros(len(graph.keyframe_ids), bool)
    found[[graph._rows[p.keyframe_id] for p in propagation.proposed]] = True
    return found


def _best_influence(graph: Graph, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    known = np.zeros(len(graph.keyframe_ids))
    reach = relative_influence(graph, rows)
    np.maximum.at(known, reach.indices, reach.data)
    return known
