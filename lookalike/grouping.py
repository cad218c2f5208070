"""Groups of keyframes as records, and the tree that a hierarchical clustering leaves behind.

A tree is kept so that a page can cut it higher or lower and split one cluster without fitting anything again; so this
needs numpy only, and the web process may use it.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lookalike.records import Clustering

Points = NDArray[np.float32]  # (n, d) what was clustered: rows of length 1, or 0
Numbers = NDArray[np.int64]  # (n,) number of each one's group, -1: none

#: height of a merge below which the two differ by rounding only
_EQUAL = 1e-3


@dataclass(frozen=True, slots=True)
class Choice:
    """What a full fit depends on besides the keyframes."""

    method: str
    k: int  # 0: proposed
    seed: int

    def pack(self) -> str:
        """ward, clusters 12, seed 0"""
        return f"{self.method}, clusters {self.k}, seed {self.seed}"

    @classmethod
    def unpack(cls, text: str) -> Self:
        """Of what `pack` gave."""
        method, clusters, seed = text.split(", ")
        return cls(method, int(clusters.removeprefix("clusters ")), int(seed.removeprefix("seed ")))


@dataclass(frozen=True, slots=True)
class Tried:
    """What clusterings into k groups are like."""

    k: int
    silhouette: float  # Rousseeuw (1987), cosine, -1..1: how much nearer the own group is than the next
    explained: float  # share of the variance that lies between groups, 0..1
    stability: float  # adjusted Rand index of two fits, each on its own four fifths: 1 = the same groups


@dataclass(frozen=True, slots=True)
class Proposal:
    """How many clusters to make, and why."""

    k: int
    curve: tuple[Tried, ...]  # ascending by k
    reason: str  # for people

    def pack(self) -> str:
        """The proposal as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> Self:
        """Of what `pack` gave."""
        kept = json.loads(text)
        return cls(kept["k"], tuple(Tried(**each) for each in kept["curve"]), kept["reason"])


@dataclass(frozen=True, slots=True)
class Tree:
    """Every cut of a hierarchical clustering at once.

    A leaf is a keyframe, or in large projects a small group that is never divided. Node i below m is leaf i, node m + j
    is made by merge j; merges ascend by height.
    """

    keyframe_ids: NDArray[np.int64]  # (n,)
    leaves: NDArray[np.int64]  # (n,) leaf of each, 0..m-1
    merges: NDArray[np.int64]  # (m - 1, 2) the two nodes that become one
    heights: NDArray[np.float32]  # (m - 1,) Ward's distance between the two
    points: Points  # (n, d)

    def __post_init__(self) -> None:
        n, m = len(self.keyframe_ids), len(self.merges) + bool(len(self.keyframe_ids))
        if self.leaves.shape != (n,) or len(self.points) != n or (n and self.leaves.max() >= m):
            raise ValueError(f"leaves must be ({n},) and below {m}, got {self.leaves.shape}")
        if self.merges.shape != (max(0, m - 1), 2) or self.heights.shape != (max(0, m - 1),):
            raise ValueError(f"merges must be ({max(0, m - 1)}, 2) with a height each, got {self.merges.shape}")

    def pack(self) -> bytes:
        """The tree for a store; points as float16, like the vectors there."""
        file = io.BytesIO()
        np.savez(
            file,
            keyframe_ids=self.keyframe_ids,
            leaves=self.leaves.astype(np.int32),
            merges=self.merges.astype(np.int32),
            heights=self.heights,
            points=self.points.astype(np.float16),
        )
        return file.getvalue()

    @classmethod
    def unpack(cls, blob: bytes) -> Self:
        """Raises ValueError for anything else than `pack` gave."""
        try:
            with np.load(io.BytesIO(blob), allow_pickle=False) as kept:
                ids, leaves, merges = (kept[name].astype(np.int64) for name in ("keyframe_ids", "leaves", "merges"))
                return cls(ids, leaves, merges, kept["heights"], kept["points"].astype(np.float32))
        except (KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"this is no tree: {error}") from None


@dataclass(frozen=True, slots=True)
class Fit:
    """What a full fit of a project's clusters leaves behind, for pages to draw and to cut."""

    choice: Choice  # another one asks for another fit
    proposal: Proposal | None  # None where a setting says the number of clusters, or the method did
    tree: Tree | None  # ward only


def cut(tree: Tree, k: int) -> Clustering:
    """The tree as k clusters, numbered by size; fewer where it has fewer leaves. Raises ValueError for k below 1."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return clustering_of(tree.keyframe_ids, divide(tree, tree.keyframe_ids, k), tree.points)


def divide(tree: Tree, keyframe_ids: NDArray[np.int64], parts: int = 2) -> Numbers:
    """(n,): in which part each of some keyframes is, when the tree is cut just low enough to have them in `parts`.

    The keyframes may be any: a cluster, a few that a person has selected. Parts are numbered by size; there are fewer
    where the keyframes lie in fewer leaves or are equal. Those that the tree does not know, being younger, have -1.
    """
    order = np.argsort(tree.keyframe_ids)
    place = np.searchsorted(tree.keyframe_ids, keyframe_ids, sorter=order).clip(max=max(0, len(order) - 1))
    numbers = np.full(len(keyframe_ids), -1, np.int64)
    if not len(order):
        return numbers
    known = tree.keyframe_ids[order[place]] == keyframe_ids
    leaves = tree.leaves[order[place[known]]]

    nodes = np.arange(2 * len(tree.merges) + 1)  # the node that each belongs to
    holds = np.zeros(len(nodes), bool)  # whether one of the keyframes is below it
    holds[leaves] = True
    groups = int(holds.sum())
    below = len(tree.merges)  # merges that are done
    first = len(tree.merges) + 1
    for merge, (one, other) in enumerate(tree.merges.tolist()):
        if holds[one] and holds[other]:
            if groups <= parts and tree.heights[merge] > _EQUAL:
                below = merge
                break
            groups -= 1
        holds[first + merge] = holds[one] or holds[other]
    for merge in range(below - 1, -1, -1):
        nodes[tree.merges[merge]] = nodes[first + merge]
    numbers[known] = by_size(nodes[leaves])
    return numbers


def clustering_of(ids: NDArray[np.int64], numbers: Numbers, points: Points, count: int = 0) -> Clustering:
    """The record of a grouping: centroids and similarities in the space of the points; at least `count` numbers."""
    count = max(count, int(numbers.max(initial=-1)) + 1)
    grouped = numbers >= 0
    directions = unit(points[grouped])
    mine = numbers[grouped]
    middle = middles(directions, mine, count)
    own = (directions * middle[mine]).sum(axis=1)
    # a point without direction is the mean of all: like its middle if that has none either
    own[~directions.any(axis=1) & ~middle[mine].any(axis=1)] = 1
    similarity = np.zeros(len(ids), np.float32)
    similarity[grouped] = own.clip(0, 1)
    centroids = np.full(count, -1, np.int64)
    best = np.lexsort((-ids[grouped], own))  # the last written wins: the most similar, of equal ones the smallest id
    centroids[mine[best]] = ids[grouped][best]
    return Clustering(ids, numbers, centroids, similarity)


def middles(points: Points, numbers: Numbers, count: int) -> Points:
    """(count, d): mean direction of each group's points, length 1 (0 where there are none)."""
    sums = np.zeros((count, points.shape[1]), np.float32)
    if len(points):
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        sums[present] = np.add.reduceat(points[order], starts, axis=0)
    return unit(sums)


def unit(vectors: NDArray[Any]) -> Points:
    """(n, d) or (d,) as float32 with length 1; those of length 0 as they are."""
    points = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.einsum("...i,...i->...", points, points))[..., None]
    return np.asarray(points / np.where(lengths > 0, lengths, 1), np.float32)


def by_size(numbers: Numbers) -> Numbers:
    """The same groups, numbered by size, the largest first; of equal ones the one that comes first. -1 stays."""
    grouped = numbers >= 0
    _, first, mine, sizes = np.unique(numbers[grouped], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    ranked = np.full(len(numbers), -1, np.int64)
    ranked[grouped] = rank[mine]
    return ranked
