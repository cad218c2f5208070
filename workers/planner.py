"""Which keyframes to label next, and when to stop.

A label is worth what it newly reaches: the sum, over all keyframes, of its influence beyond what a label gives already,
times how unsure we are there. With no labels that is coverage (facility location over the graph's kernel); with labels
it turns by itself to where guesses are unsure. Picking greedily is within 1 - 1/e of the best choice (Nemhauser, 1978).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.records import Label
from workers.propagation import Graph, Propagation, narrow, propagate, reached, relative_influence, rows_of


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
    candidates = np.fromiter(islice(_coming(graph, unsure, labelled, known), _CANDIDATES * n + 64), np.int64)
    reach = relative_influence(graph, candidates)

    def gain(i: int) -> float:
        part = slice(reach.indptr[i], reach.indptr[i + 1])
        at = reach.indices[part]
        return float(np.maximum(reach.data[part] - known[at], 0) @ unsure[at])

    # gains only shrink as more is chosen, so an old gain is a bound: only the top of the heap is worked out again
    heap = [(-gain(i), int(row), i, 0) for i, row in enumerate(candidates)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        _, row, i, made = heap[0]
        if made < len(chosen):
            heapq.heapreplace(heap, (-gain(i), row, i, len(chosen)))
            continue
        heapq.heappop(heap)
        chosen.append(row)
        part = slice(reach.indptr[i], reach.indptr[i + 1])
        at = reach.indices[part]
        known[at] = np.maximum(known[at], reach.data[part])
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
    """How many more labels until `target` of the keyframes are labelled or proposed; costs up to six propagations of a
    sample. `labels` are in the order in which people gave them.

    Tries it out: keyframes that would come next get their guesses as labels, in about the order of `next_to_label`,
    and what that settles is looked at. That takes the guesses for right, and so is the least it can take. The most is
    that times what the same trial would have been off by when there were half the labels. The number lies between, at
    their geometric mean: on classes of Caltech-101 and Grocery it was off by a factor of 1.5, the trial alone by 1.8.
    Raises ValueError for a target outside 0..1.
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
    unsure = (1.0 - propagation.score) ** propagation.maturity
    known = _best_influence(graph, np.flatnonzero(propagation.labelled))
    coming = _coming(graph, unsure, propagation.labelled, known)
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
    least = low[0] + math.ceil((high[0] - low[0]) * (target - low[1]) / max(high[1] - low[1], 1e-9))
    left = int((~propagation.labelled).sum())
    most = min(left, math.ceil(least * _optimism(graph, labels, categories, propagation, multiple)))
    more = math.isqrt(least * most)
    between = f" ({least} to {most})" if most > least else ""
    text = f"label about {more} more centroids{between} to reach {promise} on {target:.0%} of the keyframes"
    return Advice(False, more, covered, target, text)


#: keyframes of which one is chosen
_CANDIDATES = 4
#: numbers of further labels that are tried out
_TRIED = (16, 128, 512)
#: influence on others is mostly below this; then it settles as much as next_to_label (.03: 2 points less, .3: 4 more)
_WEAK = 0.1
#: keyframes that a trial is looked at on, with their neighbours: a share of them is known within 2 %
_SAMPLE = 512
#: a trial is taken to be off by no more than this factor, and half of too few labels tells nothing
_MOST_OPTIMISM, _ENOUGH_LABELS = 10.0, 8
#: keyframes that a label must newly settle, itself included, to be worth a look
_LITTLE = 1.5


def _covered(propagation: Propagation) -> float:
    settled = propagation.labelled.sum() + len({p.keyframe_id for p in propagation.proposed})
    return float(settled) / max(1, len(propagation.labelled))


def _coming(
    graph: Graph, unsure: NDArray[Any], labelled: NDArray[np.bool_], known: NDArray[np.float64]
) -> Iterator[int]:
    """Unlabelled rows in about the order of `next_to_label`; only the influence of those that are taken is worked out.

    Chosen in rounds that double, each as if its own were apart already; those near each other are left to later rounds.
    """
    left, most = ~labelled, 4
    while left.any():
        # next_to_label gains max(influence - known, 0): on others, most influence is weak, and gains where none is yet
        weak = unsure * np.maximum(1 - known / _WEAK, 0)
        gain = reached(graph, weak) + unsure * (1 - known) - weak
        free, taken = left.copy(), []
        for row in np.argsort(-gain, kind="stable"):
            if free[row]:
                taken.append(int(row))
                free[row] = free[graph.neighbours[row]] = False
                if len(taken) == most:
                    break
        yield from taken
        left[taken] = False
        most = max(most, int((~left).sum() - labelled.sum()))
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
    said[rows_of(graph, (label.keyframe_id for label in imagined))] = True
    part, asked = _sampled(graph, said)
    then = propagate(None, [*labels, *imagined], categories, multiple=multiple, promise=propagation.promise, graph=part)
    now = _proposed(graph, propagation)
    off = now[~said].mean() - now[asked].mean() if asked.any() else 0.0
    settled = np.clip(_proposed(graph, then)[asked].mean() + off, 0, 1) if asked.any() else 0.0
    return float((said.sum() + (~said).sum() * settled) / size)


def _optimism(
    graph: Graph, labels: Sequence[Label], categories: Sequence[str], propagation: Propagation, multiple: bool
) -> float:
    """Labels that it took to get from half of them to where we are, over those that it would have taken had the guesses
    of then been right: at least 1."""
    half = labels[: len(labels) // 2]
    if len(half) < _ENOUGH_LABELS:
        return 1.0
    part, asked = _sampled(graph, propagation.labelled)
    promise = propagation.promise
    before = propagate(None, half, categories, multiple=multiple, promise=promise, graph=part)
    guess = {g.keyframe_id: g.category for g in before.open} | {p.keyframe_id: p.category for p in before.proposed}
    imagined = [Label(k, guess[k], -1) for k in dict.fromkeys(x.keyframe_id for x in labels[len(half) :]) if k in guess]
    trial = propagate(None, [*half, *imagined], categories, multiple=multiple, promise=promise, graph=part)
    was, thought, found = (float(_proposed(graph, run)[asked].mean()) for run in (before, trial, propagation))
    return min(_MOST_OPTIMISM, max(1.0, (thought - was) / max(found - was, 1e-3)))


def _sampled(graph: Graph, said: NDArray[np.bool_]) -> tuple[Graph, NDArray[np.bool_]]:
    """The graph at a sample of the keyframes and those that are said, and (n,) which are of the sample and not said.

    The neighbours come along: whether they agree is part of a score.
    """
    size = len(graph.keyframe_ids)
    sample = np.zeros(size, bool)
    sample[np.random.default_rng(0).choice(size, min(size, _SAMPLE), replace=False)] = True
    part = sample | said
    part[graph.neighbours[sample]] = True
    return narrow(graph, np.flatnonzero(part), np.flatnonzero(said)), sample & ~said


def _proposed(graph: Graph, propagation: Propagation) -> NDArray[np.bool_]:
    found = np.zeros(len(graph.keyframe_ids), bool)
    found[rows_of(graph, (p.keyframe_id for p in propagation.proposed))] = True
    return found


def _best_influence(graph: Graph, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    known = np.zeros(len(graph.keyframe_ids))
    reach = relative_influence(graph, rows)
    np.maximum.at(known, reach.indices, reach.data)
    return known
