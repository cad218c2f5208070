"""The map: a project's keyframes in two dimensions, what looks alike side by side.

t-SNE (van der Maaten and Hinton, 2008) with the approximation of Linderman et al. (2019), by openTSNE: its time grows
with the number of keyframes, not with its square. A map that is drawn stays: a project that has grown a little gets its
new keyframes beside those that they look like, at once, and nothing else moves.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from lookalike.grouping import unit
from lookalike.maps import Map

Matrix = NDArray[np.float32]  # (n, d)

#: principal components that are looked at: 50 have .9 of what 1280 have, and neighbours are found ten times as quickly
_COMPONENTS = 50
#: keyframes from which the components are found
_SAMPLE = 10_000
_PERPLEXITY = 30.0
_EARLY_STEPS, _STEPS = 250, 250
#: a new keyframe is put among this many that it looks like
_NEIGHBOURS = 5
#: share of new keyframes, and of those that are gone, up to which the map is kept
_FEW = 0.2
#: below this a drawing says nothing
_LEAST = 5
_NICE = 10


def draw(ids: NDArray[np.int64], points: Matrix, known: Map | None) -> Map:
    """The map of keyframes with these `components`. `known`: the one there is; all of it may be old.

    Lowers the priority of this process for good: run it in one of its own. The same input gives the same map.
    50,000 keyframes take about a minute and a half of one core.
    """
    os.nice(_NICE)
    if known is not None and len(known.keyframe_ids):
        here = np.isin(ids, known.keyframe_ids)
        alive = np.isin(known.keyframe_ids, ids)
        if (~here).mean() <= _FEW and (~alive).mean() <= _FEW and len(ids) <= known.fitted * (1 + _FEW):
            return Map(ids, _beside(ids, points, here, known), known.fitted)
    return Map(ids, _laid_out(points), len(ids))


def components(vectors: Matrix) -> Matrix:
    """(n, 50) principal components of the directions of (n, d) vectors; (n, d) where there are not so many."""
    directions = unit(vectors)
    if min(directions.shape) <= _COMPONENTS:
        return directions
    step = -(-len(directions) // _SAMPLE)
    sample = directions[::step]
    middle = sample.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(sample - middle, rowvar=False))
    return np.asarray((directions - middle) @ axes[:, : -_COMPONENTS - 1 : -1], np.float32)


def _laid_out(points: Matrix) -> Matrix:
    n = len(points)
    if n < _LEAST:
        angles = 2 * np.pi * np.arange(n) / max(1, n)
        return np.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2, np.float32)
    from openTSNE import TSNEEmbedding, affinity, initialization, nearest_neighbors
    from sklearn.neighbors import NearestNeighbors

    perplexity = min(_PERPLEXITY, (n - 1) / 3)
    k = max(1, min(n - 1, int(3 * perplexity)))
    # exact: for 50,000 keyframes in a third of the time of openTSNE's approximate index
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points)
    distances, neighbours = found.kneighbors()
    known = nearest_neighbors.PrecomputedNeighbors(neighbours, distances)
    near = affinity.PerplexityBasedNN(knn_index=known, perplexity=perplexity, n_jobs=1)
    layout = TSNEEmbedding(
        initialization.pca(points, random_state=0), near, n_jobs=1, random_state=0, negative_gradient_method="fft"
    )
    layout.optimize(n_iter=_EARLY_STEPS, exaggeration=12, momentum=0.5, inplace=True)
    layout.optimize(n_iter=_STEPS, momentum=0.8, inplace=True)
    return _fit_in(np.asarray(layout, np.float32))


def _beside(ids: NDArray[np.int64], points: Matrix, here: NDArray[np.bool_], known: Map) -> Matrix:
    """The known map with new keyframes at the median of those that they look like most."""
    from sklearn.neighbors import NearestNeighbors

    order = np.argsort(known.keyframe_ids)
    rows = order[np.searchsorted(known.keyframe_ids, ids[here], sorter=order)]
    places = np.empty((len(ids), 2), np.float32)
    places[here] = known.places[rows]
    if not here.all():
        found = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, int(here.sum())), algorithm="brute").fit(points[here])
        near = found.kneighbors(points[~here], return_distance=False)
        places[~here] = np.median(known.places[rows][near], axis=1)
    return places


def _fit_in(layout: Matrix) -> Matrix:
    """Within -1 … 1, both axes alike; a few stray ones do not make everything else small."""
    low, high = np.percentile(layout, [0.5, 99.5], axis=0)
    scale = max(float((high - low).max()) / 2, 1e-12) * 1.05
    return np.asarray(np.clip((layout - (low + high) / 2) / scale, -1, 1), np.float32)
