"""Vectors in, groups of keyframes that look alike out.

With `workers.propagation` the only door to scikit-learn. The recipe (standardise, length 1, PCA, length 1, KMeans) was
measured against the seed article's (standardise, KMeans) on a held-out set: 3 to 8 points more of the images end up
with the right label, and KMeans is about 8 times faster.

All runs on one thread: with two, on a machine whose two cores have other work, the same clusters of 145 keyframes took
0.3 s of CPU time instead of 0.04, and of 1,140 between 1 and 8 s instead of 0.2, because idle threads spin.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering, KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lookalike.records import Clustering, Embeddings

Vectors = NDArray[np.float32]  # (n, d)
Numbers = NDArray[np.int64]  # (n,)

#: Cosine from which two proposed clusters are one. Features are centred, so unrelated keyframes have a cosine near 0.
_SAME = 0.8
_MOST_CLUSTERS = 500
_MINIBATCH_FROM = 50_000
_PCA_SAMPLE = 20_000


def cluster(embeddings: Embeddings, k: int = 0, seed: int = 0) -> Clustering:
    """Keyframes that look alike, in k clusters; k = 0: as many as `_partition` proposes.

    Clusters are numbered by size, the largest first. Each has at least one keyframe, so there may be fewer than k where
    keyframes are equal. A keyframe that is like no other is a cluster of its own: whoever names it should be asked.
    The same input and seed give the same result. Raises ValueError for a negative k.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    with threadpool_limits(1):
        points = _features(embeddings.vectors, seed)
        numbers = _by_size(_partition(points, k, seed))
    return _clustering(embeddings.keyframe_ids, numbers, points)


def article_cluster(embeddings: Embeddings, k: int, seed: int = 0) -> Clustering:
    """The recipe of the seed article, to compare with: StandardScaler and KMeans on the vectors as they are."""
    if not 1 <= k <= len(embeddings.vectors):
        raise ValueError(f"k must be between 1 and the number of keyframes, {len(embeddings.vectors)}, got {k}")
    with threadpool_limits(1):
        points = StandardScaler().fit_transform(embeddings.vectors)
        numbers = _by_size(_kmeans(points, k, seed))
    return _clustering(embeddings.keyframe_ids, numbers, points)


def extend(clustering: Clustering, known: Embeddings, new: Embeddings, seed: int = 0) -> Clustering:
    """The clustering with new keyframes added: those it holds keep their numbers.

    A new keyframe joins the nearest cluster where it is at least as similar to its middle as all but the least similar
    twentieth of the cluster's own; the others form clusters of their own, numbered after those that exist.

    known: vectors of the keyframes clustered so far, new: vectors to add, both by the same model. Keyframes that are no
    longer among known leave the clustering; a number whose keyframes have all gone stays unused, with centroid -1.
    """
    if known.model != new.model:
        raise ValueError(f"known and new must be vectors of one model, got {known.model!r} and {new.model!r}")
    fresh = ~np.isin(new.keyframe_ids, known.keyframe_ids)
    ids = np.concatenate([known.keyframe_ids, new.keyframe_ids[fresh]])
    vectors = np.concatenate([known.vectors, new.vectors[fresh]])
    with threadpool_limits(1):
        points = _features(vectors, seed)
        numbers = _joined(points, _looked_up(ids, clustering), len(clustering.centroids))
        rest = numbers < 0
        if rest.any():
            numbers[rest] = len(clustering.centroids) + _by_size(_partition(points[rest], 0, seed))
    return _clustering(ids, numbers, points, len(clustering.centroids))


def renumber(old: Clustering, fresh: Clustering) -> Clustering:
    """The fresh clustering with the old numbers, so that `c0007` keeps its meaning when all is clustered again.

    Each fresh cluster gets the number of the old one with which it shares most keyframes, so that the sum over all
    pairs is largest; one that shares none, or is left over, gets a new number. A number is never used again for
    something else: old ones that nobody takes stay, without keyframes and with centroid -1.
    """
    before = _looked_up(fresh.keyframe_ids, old)
    both = (before >= 0) & (fresh.clusters >= 0)
    shared = np.zeros((len(fresh.centroids), len(old.centroids)), np.int64)
    np.add.at(shared, (fresh.clusters[both], before[both]), 1)
    numbers = np.full(len(fresh.centroids), -1, np.int64)
    for mine, theirs in zip(*linear_sum_assignment(shared, maximize=True), strict=True):
        if shared[mine, theirs]:
            numbers[mine] = theirs
    unmatched = numbers < 0
    numbers[unmatched] = len(old.centroids) + np.arange(unmatched.sum())

    centroids = np.full(max(len(old.centroids), numbers.max(initial=-1) + 1), -1, np.int64)
    centroids[numbers] = fresh.centroids
    clusters = np.where(fresh.clusters >= 0, numbers[fresh.clusters], -1) if len(numbers) else fresh.clusters
    return Clustering(fresh.keyframe_ids, clusters, centroids, fresh.similarity)


# --- features


def _features(vectors: Vectors, seed: int) -> Vectors:
    """(n, d) -> (n, at most 128), rows of length 1 (or 0, where a row is the mean of all).

    PCA keeps a tenth of n dimensions, and is not whitened: whitening destroys small sets (423 frames: purity .52
    instead of .87). Below 30 keyframes there is nothing to estimate it from.
    """
    if not len(vectors):
        return vectors
    points: Vectors = normalize(StandardScaler().fit_transform(vectors), copy=False)
    dimensions = min(128, len(points) // 10, points.shape[1])
    if dimensions >= 3 and points.any():
        sample = np.random.default_rng(seed).permutation(len(points))[:_PCA_SAMPLE]
        pca = PCA(dimensions, random_state=seed).fit(points[np.sort(sample)])
        points = normalize(pca.transform(points), copy=False)
    return points.astype(np.float32, copy=False)


def _middles(points: Vectors, numbers: Numbers, count: int) -> Vectors:
    """(count, d): mean direction of each cluster's points, length 1 (0 where there are none)."""
    sums = np.zeros((count, points.shape[1]), np.float32)
    np.add.at(sums, numbers, points)
    return np.asarray(normalize(sums), np.float32) if count else sums


# --- partitions


def _partition(points: Vectors, k: int, seed: int) -> Numbers:
    """The number of each point's cluster; k = 0: proposed.

    Proposed are 2 * sqrt(n) clusters (at most 500), of which those are then one whose middles are alike (average
    linkage, cosine above 0.8): annotators name centroids, so that too many clusters cost them little, and too few hide
    whole categories.
    """
    n = len(points)
    if n < 2:
        return np.zeros(n, np.int64)
    if k:
        return _kmeans(points, min(k, n), seed)
    numbers = _kmeans(points, min(n, _MOST_CLUSTERS, round(2 * n**0.5)), seed)
    middles = _middles(points, numbers, numbers.max() + 1)
    if len(middles) < 2:
        return numbers
    distances = 1 - middles @ middles.T
    merging = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=1 - _SAME)
    return np.asarray(merging.fit_predict(distances.clip(0)), np.int64)[numbers]


def _kmeans(points: Vectors, k: int, seed: int) -> Numbers:
    """Numbers 0..j-1 without gaps; j < k where there are fewer than k different points."""
    n = len(points)
    if n >= _MINIBATCH_FROM:
        kmeans = MiniBatchKMeans(k, batch_size=4096, n_init=3, random_state=seed)
    else:
        kmeans = KMeans(k, n_init=3 if n <= 2000 else 1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than k: see above
        numbers = kmeans.fit_predict(points)
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _by_size(numbers: Numbers) -> Numbers:
    """The same groups, numbered by size, the largest first; of equal ones the one that comes first."""
    _, first, numbers, sizes = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[numbers]


def _joined(points: Vectors, numbers: Numbers, count: int) -> Numbers:
    """The numbers, and those of points without one (-1) that are similar enough to a cluster that has points."""
    has = numbers >= 0
    if not has.any():
        return numbers
    middles = _middles(points[has], numbers[has], count)
    own = (points[has] * middles[numbers[has]]).sum(axis=1)
    least = _least_similarities(own, numbers[has], count)
    similarity = points[~has] @ middles.T
    similarity[:, ~np.isin(np.arange(count), numbers)] = -np.inf  # emptied numbers attract nothing
    nearest = similarity.argmax(axis=1)
    joined = numbers.copy()
    joined[~has] = np.where(similarity[np.arange(len(nearest)), nearest] >= least[nearest], nearest, -1)
    return joined


# --- records


def _clustering(ids: Numbers, numbers: Numbers, points: Vectors, count: int = 0) -> Clustering:
    """The record: centroids and similarities in the space that was clustered; at least `count` numbers."""
    count = max(count, int(numbers.max(initial=-1)) + 1)
    directions = normalize(points) if len(points) else points
    middles = _middles(directions, numbers, count)
    similarity = (directions * middles[numbers]).sum(axis=1)
    # a point without direction is the mean of all: like its middle if that has none either
    similarity[~directions.any(axis=1) & ~middles[numbers].any(axis=1)] = 1
    centroids = np.full(count, -1, np.int64)
    order = np.lexsort((-ids, similarity))  # the last written wins: the most similar, of equal ones the smallest id
    centroids[numbers[order]] = ids[order]
    return Clustering(ids, numbers, centroids, similarity.clip(0, 1).astype(np.float32))


def _looked_up(ids: Numbers, clustering: Clustering) -> Numbers:
    """The number of each id in a clustering, -1 where it is not in it."""
    if not len(clustering.keyframe_ids):
        return np.full(len(ids), -1, np.int64)
    order = np.argsort(clustering.keyframe_ids)
    place = np.searchsorted(clustering.keyframe_ids, ids, sorter=order).clip(max=len(order) - 1)
    found = order[place]
    return np.where(clustering.keyframe_ids[found] == ids, clustering.clusters[found], -1)


def _least_similarities(similarity: Vectors, numbers: Numbers, count: int) -> Vectors:
    """(count,): the similarity that a twentieth of each cluster's points stay below; for clusters too small to tell
    (below 5), the median over the others, or the similarity from which clusters are one."""
    least = np.full(count, np.nan, np.float32)
    for number, size in enumerate(np.bincount(numbers, minlength=count)):
        if size >= 5:
            least[number] = np.quantile(similarity[numbers == number], 0.05)
    usual = np.nanmedian(least) if not np.isnan(least).all() else _SAME
    return np.where(np.isnan(least), np.float32(usual), least)
