"""How far two groupings of the same keyframes agree, and how well one of them separates what it groups.

Those like nothing else (-1) count as groups of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from lookalike.grouping import Numbers, Points


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two groupings; each is 1 where they are the same."""

    nmi: float  # normalised mutual information, 0..1
    ari: float  # adjusted Rand index, 0 for chance
    matched: int  # groups that have a counterpart: at least half of what either holds is in both
    of: int  # groups of two and more of the one that has fewer


def agree(one: Numbers, other: Numbers) -> Agreement:
    """Of two groupings (n,) of the same keyframes."""
    a, b = _alone(one), _alone(other)
    shared, sizes, others = _table(one, other)
    union = sizes[:, None] + others[None, :] - shared
    pairs = match(one, other)
    matched = sum(shared[i, j] * 2 >= union[i, j] and shared[i, j] > 1 for i, j in pairs)
    return Agreement(
        float(normalized_mutual_info_score(a, b)),
        float(adjusted_rand_score(a, b)),
        int(matched),
        int(min((sizes > 1).sum(), (others > 1).sum())),
    )


def match(one: Numbers, other: Numbers) -> list[tuple[int, int]]:
    """Pairs (group of one, group of the other), each at most once, so that they share as many keyframes as possible
    (the Hungarian method); only pairs that share any."""
    shared, _, _ = _table(one, other)
    pairs = zip(*linear_sum_assignment(shared, maximize=True), strict=True)
    return [(int(i), int(j)) for i, j in pairs if shared[i, j]]


def overlap(one: Numbers, other: Numbers) -> tuple[NDArray[np.float64], Numbers]:
    """(k,) for each group of one: its largest Jaccard index with a group of the other, and which that is (-1: none)."""
    shared, sizes, others = _table(one, other)
    if not shared.shape[1]:
        return np.zeros(len(sizes)), np.full(len(sizes), -1, np.int64)
    index = shared / np.maximum(sizes[:, None] + others[None, :] - shared, 1)
    best = index.argmax(axis=1)
    found = index[np.arange(len(sizes)), best]
    return found, np.where(found > 0, best, -1)


def separation(points: Points, numbers: Numbers, seed: int = 0, most: int = 3000) -> float:
    """The mean silhouette (cosine) of those in groups, over at most `most` of them; 0 where there is one group."""
    rows = np.flatnonzero((numbers >= 0) & points.any(axis=1))
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    distances = cosine_distances(points[rows])
    return silhouette(distances, numbers[rows])


def silhouette(distances: NDArray[np.float32], numbers: Numbers) -> float:
    """Of a grouping with these distances (n, n); 0 where it is undefined: fewer than 2 groups, or all of one."""
    if not 2 <= len(np.unique(numbers)) < len(numbers):
        return 0.0
    return float(silhouette_score(distances, numbers, metric="precomputed"))


def cosine_distances(points: Points) -> NDArray[np.float32]:
    """(n, n), of points of length 1; 0 on the diagonal."""
    distances = (1 - points @ points.T).clip(0)
    np.fill_diagonal(distances, 0)
    return np.asarray(distances, np.float32)


def _table(one: Numbers, other: Numbers) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(k, l) keyframes shared by each two groups, and the sizes (k,) and (l,)."""
    if one.shape != other.shape:
        raise ValueError(f"both groupings must be of the same keyframes, got {one.shape} and {other.shape}")
    k, m = (int(numbers.max(initial=-1)) + 1 for numbers in (one, other))
    shared = np.zeros((k, m), np.int64)
    both = (one >= 0) & (other >= 0)
    np.add.at(shared, (one[both], other[both]), 1)
    sizes, others = (np.bincount(numbers[numbers >= 0], minlength=c) for numbers, c in ((one, k), (other, m)))
    return shared, sizes, others


def _alone(numbers: Numbers) -> Numbers:
    """With a number of its own for each that is like nothing else."""
    apart = numbers < 0
    return np.where(apart, int(numbers.max(initial=-1)) + np.cumsum(apart), numbers)
