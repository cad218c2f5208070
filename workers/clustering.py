"""Vectors in, groups of keyframes that look alike out.

With `workers.propagation` and `workers.agreement` the only door to scikit-learn. The default recipe (standardise,
length 1, PCA, length 1, KMeans) was measured against the seed article's (standardise, KMeans) on a held-out set: 3 to 8
points more of the images end up with the right label, and KMeans is about 8 times faster. What the others are good for
is in docs/clustering.md, with figures.

All runs on one thread: with two, on a machine whose two cores have other work, the same clusters of 145 keyframes took
0.3 s of CPU time instead of 0.04, and of 1,140 between 1 and 8 s instead of 0.2, because idle threads spin.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lookalike.grouping import (
    Numbers,
    Points,
    Proposal,
    Tree,
    Tried,
    by_size,
    clustering_of,
    cut,
    divide,
    middles,
    unit,
)
from lookalike.records import Clustering, Embeddings
from lookalike.settings import CLUSTERINGS
from workers.agreement import agree, cosine_distances, match, separation, silhouette

Vectors = NDArray[np.float32]  # (n, d), as a model gives them
Fit = Callable[[Points, int, int], Numbers]  # points, k, seed -> number of each one's cluster, at most k, without gaps

#: Cosine from which two proposed clusters are one. Features are centred, so unrelated keyframes have a cosine near 0.
_SAME = 0.8
#: Cosine from which a new keyframe is a known one over again, and belongs where that one does.
_TWIN = 0.98
_TWIN_PAIRS = 2**24  # looked at at a time: 64 MB
_MOST_CLUSTERS = 500
_MINIBATCH_FROM = 50_000
_PCA_SAMPLE = 20_000
_ROWS = 8192  # that are standardised at a time: 42 MB of 1280-d vectors, not a second copy of them all
#: leaves of a tree: every keyframe up to the first number, then groups. 4,000 leaves take 2 s of CPU, 8,000 took 9 s
_LEAVES, _LEAF_GROUPS = 4000, 2000
_HDBSCAN_SAMPLE = 10_000  # it compares all with all: 10,000 take 5 s
_HDBSCAN_NEAR = 0.5  # cosine to the group's middle
_HDBSCAN_DIMENSIONS = 30  # density means little in more: 128 took five times as long and found no better groups
_CURVE_SAMPLE = 3000


def cluster(
    embeddings: Embeddings, k: int = 0, seed: int = 0, method: str = "pca-kmeans", grown: Tree | None = None
) -> Clustering:
    """Keyframes that look alike, in k clusters; k = 0: as many as `_partition` proposes.

    Clusters are numbered by size, the largest first. Each has at least one keyframe, so there may be fewer than k where
    keyframes are equal. A keyframe that is like no other is a cluster of its own: whoever names it should be asked;
    only hdbscan, which finds the number of clusters itself, leaves such keyframes out of all clusters (-1). `grown` is
    the tree of these embeddings where there is one already, for ward. The same input and seed give the same result.
    Raises ValueError for a negative k, a method that is none, and a k for hdbscan.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    if method not in CLUSTERINGS:
        raise ValueError(f"method must be one of {', '.join(CLUSTERINGS)}, got {method!r}")
    if k and method == "hdbscan":
        raise ValueError(f"hdbscan finds the number of clusters itself: k must be 0, got {k}")
    ids = embeddings.keyframe_ids
    with threadpool_limits(1):
        if method == "ward":
            grown = grown or tree(embeddings, seed)
            return cut(grown, k or max(1, _proposed(grown.points, lambda k: divide(grown, ids, k))))
        points = features(embeddings, seed)
        if method == "hdbscan":
            numbers = _hdbscan(points, seed)
        elif method == "kmeans":
            k = k or int(_partition(points, 0, seed, _kmeans).max(initial=0)) + 1
            points, numbers = _article(embeddings, k, seed)
        else:
            numbers = _partition(points, k, seed, _minibatch if method == "minibatch" else _kmeans)
        return clustering_of(ids, by_size(numbers), points)


def article_cluster(embeddings: Embeddings, k: int, seed: int = 0) -> Clustering:
    """The recipe of the seed article, to compare with: StandardScaler and KMeans on the vectors as they are."""
    if not 1 <= k <= len(embeddings.vectors):
        raise ValueError(f"k must be between 1 and the number of keyframes, {len(embeddings.vectors)}, got {k}")
    return cluster(embeddings, k, seed, "kmeans")


def tree(embeddings: Embeddings, seed: int = 0) -> Tree:
    """Ward's hierarchical clustering of the same features as the default's, to be cut at any height.

    Up to 4,000 keyframes each is a leaf, and the tree is Ward's own; above, the leaves are 2,000 small groups, which
    count by their sizes.
    """
    with threadpool_limits(1):
        points = features(embeddings, seed)
        n = len(points)
        if n <= _LEAVES:
            leaves = np.arange(n, dtype=np.int64)
            merges, heights = _ward(points, np.ones(n))
        else:
            quick = KMeans(_LEAF_GROUPS, init="random", n_init=1, max_iter=5, random_state=seed)
            leaves = _without_gaps(_fitted(quick, points))
            merges, heights = _ward(_means(points, leaves), np.bincount(leaves).astype(np.float64))
    return Tree(embeddings.keyframe_ids, leaves, merges, heights, points)


def extend(
    clustering: Clustering, known: Embeddings, new: Embeddings, seed: int = 0, method: str = "pca-kmeans"
) -> Clustering:
    """The clustering with new keyframes added: those it holds keep their numbers.

    A new keyframe that is a known one over again (cosine at least .98) is where that one is. Another joins the nearest
    cluster where it is at least as similar to its middle as all but the least similar twentieth of the cluster's own.
    The others form clusters of their own, numbered after those that exist; with hdbscan they are like nothing else
    until all is clustered again, as what is dense can only be told among all.

    known: vectors of the keyframes clustered so far, new: vectors to add, both by the same model. Keyframes that are no
    longer among known leave the clustering; a number whose keyframes have all gone stays unused, with centroid -1.
    """
    if known.model != new.model:
        raise ValueError(f"known and new must be vectors of one model, got {known.model!r} and {new.model!r}")
    fresh = ~np.isin(new.keyframe_ids, known.keyframe_ids)
    ids = np.concatenate([known.keyframe_ids, new.keyframe_ids[fresh]])
    count = len(clustering.centroids)
    with threadpool_limits(1):
        points = _features([known.vectors, new.vectors[fresh]], seed)
        held, before = _looked_up(ids, clustering)
        numbers = before.copy()
        left = np.flatnonzero(~held)
        twins = _twins(points[left], points[held])
        numbers[left[twins >= 0]] = before[held][twins[twins >= 0]]
        left = left[twins < 0]
        numbers[left] = _joined(points[left], points[before >= 0], before[before >= 0], count)
        rest = left[numbers[left] < 0]
        if len(rest) and method != "hdbscan":
            fit = _minibatch if method == "minibatch" else _kmeans
            numbers[rest] = count + by_size(_partition(points[rest], 0, seed, fit))
    return clustering_of(ids, numbers, points, count)


def renumber(old: Clustering, fresh: Clustering) -> Clustering:
    """The fresh clustering with the old numbers, so that `c0007` keeps its meaning when all is clustered again.

    Each fresh cluster gets the number of the old one with which it shares most keyframes, so that the sum over all
    pairs is largest; one that shares none, or is left over, gets a new number. A number is never used again for
    something else: old ones that nobody takes stay, without keyframes and with centroid -1.
    """
    _, before = _looked_up(fresh.keyframe_ids, old)
    numbers = np.full(len(fresh.centroids), -1, np.int64)
    for mine, theirs in match(fresh.clusters, before):
        numbers[mine] = theirs
    unmatched = numbers < 0
    numbers[unmatched] = len(old.centroids) + np.arange(unmatched.sum())

    centroids = np.full(max(len(old.centroids), numbers.max(initial=-1) + 1), -1, np.int64)
    centroids[numbers] = fresh.centroids
    clusters = np.where(fresh.clusters >= 0, numbers[fresh.clusters], -1) if len(numbers) else fresh.clusters
    return Clustering(fresh.keyframe_ids, clusters, centroids, fresh.similarity)


def propose_k(embeddings: Embeddings, seed: int = 0, made: int = 0) -> Proposal:
    """How many clusters `cluster` makes by itself, what other numbers would be like, and why it is this one.

    `made`: how many it has made, where that is known. The curve is measured over at most 3,000 keyframes, at about a
    dozen k.
    """
    with threadpool_limits(1):
        points = features(embeddings, seed)
        k = made or int(_partition(points, 0, seed, _kmeans).max(initial=-1)) + 1
        rows = np.sort(np.random.default_rng(seed).permutation(len(points))[:_CURVE_SAMPLE])
        curve = _curve(points[rows], k, seed)
    return Proposal(k, curve, _reason(len(points), k, curve))


def separated(embeddings: Embeddings, clustering: Clustering, seed: int = 0) -> float:
    """The mean silhouette of a clustering of these embeddings, in the default's features whatever its own were."""
    with threadpool_limits(1):
        return separation(features(embeddings, seed), clustering.clusters, seed)


# --- features


def features(embeddings: Embeddings, seed: int = 0) -> Points:
    """(n, d) -> (n, at most 128), rows of length 1 (or 0, where a row is the mean of all)."""
    return _features([embeddings.vectors], seed)


def _features(parts: Sequence[Vectors], seed: int) -> Points:
    """`features` of all rows of the parts, one part after the other.

    PCA keeps a tenth of n dimensions, and is not whitened: whitening destroys small sets (423 frames: purity .52
    instead of .87). Below 30 keyframes there is nothing to estimate it from. Rows are standardised a few thousand at a
    time, so that there is never a second copy of all vectors.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return np.zeros((0, 1), np.float32)
    n, width = sum(map(len, parts)), parts[0].shape[1]
    scaler = StandardScaler()
    for rows in _portions(parts):
        scaler.partial_fit(rows)

    def standardised(rows: Vectors) -> Points:
        points: Points = scaler.transform(rows).astype(np.float32, copy=False)
        points[np.abs(points).max(axis=1) < 1e-4] = 0  # the mean of all: what is left of it is rounding
        return unit(points)

    dimensions = min(128, n // 10, width)
    if dimensions < 3:
        return np.concatenate([standardised(rows) for rows in _portions(parts)])
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:_PCA_SAMPLE])
    starts = np.cumsum([0, *map(len, parts)])
    sample = [
        part[chosen[(chosen >= at) & (chosen < at + len(part))] - at] for part, at in zip(parts, starts, strict=False)
    ]
    known = standardised(np.concatenate(sample))
    if not known.any():
        return np.zeros((n, dimensions), np.float32)
    pca = PCA(dimensions, random_state=seed).fit(known)
    return np.concatenate([unit(pca.transform(standardised(rows))) for rows in _portions(parts)])


def _portions(parts: Sequence[Vectors]) -> Iterator[Vectors]:
    for part in parts:
        for at in range(0, len(part), _ROWS):
            yield part[at : at + _ROWS]


# --- partitions


def _partition(points: Points, k: int, seed: int, fit: Fit) -> Numbers:
    """The number of each point's cluster; k = 0: proposed.

    Proposed are 2 * sqrt(n) clusters (at most 500), of which those are then one whose middles are alike (average
    linkage, cosine above 0.8): annotators name centroids, so that too many clusters cost them little, and too few hide
    whole categories.
    """
    n = len(points)
    if n < 2:
        return np.zeros(n, np.int64)
    if k:
        return fit(points, min(k, n), seed)
    return _merged(points, fit(points, _tried(n), seed))


def _proposed(points: Points, numbers_of: Callable[[int], Numbers]) -> int:
    """How many clusters `_partition` would propose if its clusters were those of `numbers_of`, by their number."""
    n = len(points)
    return len(np.unique(_merged(points, numbers_of(_tried(n))))) if n else 0


def _tried(n: int) -> int:
    return min(n, _MOST_CLUSTERS, round(2 * math.sqrt(n)))


def _merged(points: Points, numbers: Numbers) -> Numbers:
    middle = middles(points, numbers, int(numbers.max()) + 1)
    if len(middle) < 2:
        return numbers
    merging = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=1 - _SAME)
    return np.asarray(merging.fit_predict((1 - middle @ middle.T).clip(0)), np.int64)[numbers]


def _kmeans(points: Points, k: int, seed: int) -> Numbers:
    """Numbers 0..j-1 without gaps; j < k where there are fewer than k different points."""
    n = len(points)
    if n >= _MINIBATCH_FROM:
        return _minibatch(points, k, seed)
    return _without_gaps(_fitted(KMeans(k, n_init=3 if n <= 2000 else 1, random_state=seed), points))


def _minibatch(points: Points, k: int, seed: int) -> Numbers:
    return _without_gaps(_fitted(MiniBatchKMeans(k, batch_size=4096, n_init=3, random_state=seed), points))


def _article(embeddings: Embeddings, k: int, seed: int) -> tuple[Points, Numbers]:
    points = StandardScaler().fit_transform(embeddings.vectors) if len(embeddings.vectors) else embeddings.vectors
    if len(points) < 2:
        return points, np.zeros(len(points), np.int64)
    kmeans = KMeans(min(k, len(points)), n_init=3 if len(points) <= 2000 else 1, random_state=seed)
    return points, _without_gaps(_fitted(kmeans, points))


def _fitted(model: KMeans | MiniBatchKMeans, points: Points) -> Numbers:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than k
        return np.asarray(model.fit_predict(points), np.int64)


def _means(points: Points, numbers: Numbers) -> Points:
    """(k, d) of the groups 0..k-1, none of them empty."""
    order = np.argsort(numbers, kind="stable")
    _, starts, sizes = np.unique(numbers[order], return_index=True, return_counts=True)
    return np.asarray(np.add.reduceat(points[order], starts, axis=0) / sizes[:, None], np.float32)


def _without_gaps(numbers: Numbers) -> Numbers:
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _hdbscan(points: Points, seed: int) -> Numbers:
    """Dense groups of 5 and more, the smallest there are; -1 for the rest.

    The largest ones ("eom") put most of a fine-grained set into one (81 groceries: 3 of 4 in a cluster with others).
    In large projects a sample is grouped, and the others join as new keyframes do.
    """
    n = len(points)
    if n < 5:
        return np.full(n, -1, np.int64)
    points = unit(points[:, :_HDBSCAN_DIMENSIONS])
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:_HDBSCAN_SAMPLE])
    found = HDBSCAN(min_cluster_size=5, cluster_selection_method="leaf", copy=True).fit_predict(points[chosen])
    # to the group that falls apart last it counts whatever fell off on the way, however far away that is
    near = np.einsum("ij,ij->i", points[chosen], middles(points[chosen], found + 1, found.max() + 2)[found + 1])
    found = np.where(near >= _HDBSCAN_NEAR, found, -1)
    numbers = np.full(n, -1, np.int64)
    numbers[chosen] = found
    others = np.setdiff1d(np.arange(n), chosen)
    grouped = chosen[found >= 0]
    numbers[others] = _joined(points[others], points[grouped], numbers[grouped], int(found.max()) + 1)
    return numbers


def _ward(centers: Points, sizes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ward's merges and heights of m weighted points, as scipy numbers them.

    By nearest-neighbour chains (Murtagh, 1983): m steps of a matrix product each, without a matrix of distances.
    """
    m = len(centers)
    merges, heights = np.zeros((max(0, m - 1), 2), np.int64), np.zeros(max(0, m - 1), np.float32)
    centers, sizes = centers.copy(), sizes.copy()
    alive, packed = np.arange(m), centers.copy()  # the rows that may still stand for a group, next to each other
    squares = np.einsum("ij,ij->i", packed, packed)
    chain: list[int] = []
    chained = np.zeros(m, bool)  # nothing comes twice: by rounding alone, a chain of nearly equal ones would not end
    reached: list[float] = []  # distance of each link to the one before
    for step in range(m - 1):
        if 2 * (m - step) < len(alive):
            alive = alive[sizes[alive] > 0]
            packed = centers[alive]
            squares = np.einsum("ij,ij->i", packed, packed)
        if not chain:
            chain, reached = [int(alive[sizes[alive] > 0][0])], [np.inf]
        while True:
            chained[chain[-1]] = True
            tip, weights = chain[-1], sizes[alive]
            apart = (squares + centers[tip] @ centers[tip] - 2 * (packed @ centers[tip])).clip(0)
            apart = apart * (2 * sizes[tip] * weights / (sizes[tip] + weights))
            apart[(weights == 0) | chained[alive]] = np.inf
            nearest = int(apart.argmin())
            if apart[nearest] >= reached[-1]:
                break
            chain.append(int(alive[nearest]))
            reached.append(float(apart[nearest]))
        one, other = chain.pop(), chain.pop()
        chained[[one, other]] = False
        merges[step], heights[step] = (one, other), np.sqrt(reached.pop())
        reached.pop()
        total = sizes[one] + sizes[other]
        centers[other] = (sizes[one] * centers[one] + sizes[other] * centers[other]) / total
        sizes[other], sizes[one] = total, 0
        at = int(np.searchsorted(alive, other))
        packed[at], squares[at] = centers[other], centers[other] @ centers[other]
    return _numbered(merges, heights)


def _numbered(merges: NDArray[np.int64], heights: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merges of rows in any order -> by height, of nodes: merge j makes node m + j."""
    order = np.argsort(heights, kind="stable")
    m = len(merges) + 1
    node = np.arange(m)  # the node that each row's group is now
    above = list(range(m))

    def row(each: int) -> int:
        while above[each] != each:
            above[each] = above[above[each]]
            each = above[each]
        return each

    named = np.zeros_like(merges)
    for j, (one, other) in enumerate(merges[order].tolist()):
        one, other = row(one), row(other)
        named[j] = sorted((node[one], node[other]))
        above[one] = other
        node[other] = m + j
    return named, heights[order]


# --- joining


def _joined(points: Points, members: Points, numbers: Numbers, count: int) -> Numbers:
    """For each point the number of the cluster that it is similar enough to, of those with these members; or -1."""
    if not len(numbers) or not len(points):
        return np.full(len(points), -1, np.int64)
    middle = middles(members, numbers, count)
    own = np.einsum("ij,ij->i", members, middle[numbers])
    least = _least_similarities(own, numbers, count)
    similarity = points @ middle.T
    similarity[:, ~np.isin(np.arange(count), numbers)] = -np.inf  # emptied numbers attract nothing
    nearest = similarity.argmax(axis=1)
    return np.where(similarity[np.arange(len(nearest)), nearest] >= least[nearest], nearest, -1)


def _twins(points: Points, known: Points) -> Numbers:
    """(n,) the row of the known point that each is over again, or -1. Two without direction, the mean of all, are."""
    found = np.full(len(points), -1, np.int64)
    if not len(known):
        return found
    still = np.flatnonzero(~known.any(axis=1))[:1]
    step = max(1, _TWIN_PAIRS // len(known))
    for at in range(0, len(points), step):
        some = points[at : at + step]
        similarity = some @ known.T
        nearest = similarity.argmax(axis=1)
        found[at : at + step] = np.where(similarity[np.arange(len(some)), nearest] >= _TWIN, nearest, -1)
    if len(still):
        found[~points.any(axis=1)] = still[0]
    return found


def _looked_up(ids: Numbers, clustering: Clustering) -> tuple[NDArray[np.bool_], Numbers]:
    """Whether each id is in a clustering, and its number there; -1 where it is not, too."""
    if not len(clustering.keyframe_ids):
        return np.zeros(len(ids), bool), np.full(len(ids), -1, np.int64)
    order = np.argsort(clustering.keyframe_ids)
    place = np.searchsorted(clustering.keyframe_ids, ids, sorter=order).clip(max=len(order) - 1)
    found = order[place]
    held = clustering.keyframe_ids[found] == ids
    return held, np.where(held, clustering.clusters[found], -1)


def _least_similarities(similarity: Points, numbers: Numbers, count: int) -> Points:
    """(count,): the similarity that a twentieth of each cluster's points stay below; for clusters too small to tell
    (below 5), the median over the others, or the similarity from which clusters are one."""
    least = np.full(count, np.nan, np.float32)
    for number, size in enumerate(np.bincount(numbers, minlength=count)):
        if size >= 5:
            least[number] = np.quantile(similarity[numbers == number], 0.05)
    usual = np.nanmedian(least) if not np.isnan(least).all() else _SAME
    return np.where(np.isnan(least), np.float32(usual), least)


# --- the proposal


def _curve(points: Points, k: int, seed: int) -> tuple[Tried, ...]:
    n = len(points)
    most = min(_MOST_CLUSTERS, n // 2)
    if most < 2 or not points.any():
        return ()
    steps = np.geomspace(2, most, 12).round().astype(int).tolist()
    tried = sorted({*steps, *([k] if 2 <= k <= most else [])})
    distances = cosine_distances(points)
    total = float(((points - points.mean(axis=0)) ** 2).sum())
    random = np.random.default_rng(seed)
    one, other = (np.sort(random.permutation(n)[: max(2, n * 4 // 5)]) for _ in range(2))
    curve = []
    for each in tried:
        numbers = _kmeans(points, each, seed)
        first, second = (_kmeans(points[rows], min(each, len(rows)), seed + i) for i, rows in enumerate((one, other)))
        curve.append(
            Tried(
                each,
                silhouette(distances, numbers),
                1 - float(((points - _means(points, numbers)[numbers]) ** 2).sum()) / total,
                agree(first[np.isin(one, other)], second[np.isin(other, one)]).ari,
            )
        )
    return tuple(curve)


def _reason(n: int, k: int, curve: Sequence[Tried]) -> str:
    if not curve:
        return f"{n} keyframes are too few to compare numbers of clusters"
    tried = _tried(n)
    like = f", of which {tried - k} looked like another and joined it" if tried > k else ""
    best = max(curve, key=lambda each: each.silhouette)
    said = (
        f"{k} clusters: {tried} were tried (2·√{n:,}{', at most 500' if tried == _MOST_CLUSTERS else ''}){like}. One "
        "too many costs a click, one too few hides a category, so it is better to have more of them than kinds of "
        f"pictures. Groups are most distinct at {best.k} (silhouette {best.silhouette:.2f})"
    )
    if best.k in (curve[0].k, curve[-1].k):
        return f"{said}, at the end of the range: these pictures have no natural number of groups."
    if 2 * best.k > 1.5 * k:
        return (
            f"{said}: if that is how many kinds there are, {2 * best.k} clusters would find the rare ones more surely."
        )
    return f"{said}, so there are clusters to spare."
