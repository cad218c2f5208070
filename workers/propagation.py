"""Labels spread to keyframes that look alike: each guess with a probability, its reason, and the promise kept.

    propagate()     labels in, guesses out
    build_graph()   who looks like whom: made once per project, extended by add()

Label spreading (Zhou et al., 2004) gives F = K Y with K = (1 - a)(I - a S)^-1, S the normalised graph and Y the labels.
K's column of a labelled keyframe is what that one label gives to all others: its influence. It falls off within a
few steps, so we keep it sparse and remember it in the graph. From that follows all that makes this quick and honest:
one more label costs one more column; the reason for a guess is the largest terms of its sum; and what the graph would
have said of a labelled keyframe before its own label is the sum without some terms, so labels are also a test.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lookalike.records import Embeddings, Label, PropagatedLabel

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: share of a keyframe's guess that comes from its neighbours, the rest from its own label (.8 and .95 were worse)
_ALPHA = 0.9
#: edges weigh cosine to this power: near-duplicates bind, loose neighbours hardly (1: -1.5 points, 16: -.4)
_POWER = 8
#: influence below this is dropped, times labels / 500 when there are more: many labels need not reach far
_SMALLEST_INFLUENCE = 1e-5
#: labels per category at which the classifier weighs as much as the graph
_CLASSIFIER_FROM = 5.0
#: how far the classifier's covariance is drawn to a sphere; needed while labels are fewer than dimensions
_SHRINKAGE = 0.2
#: the classifier is too sure of itself by about this factor
_TEMPERATURE = 0.3
#: log odds that a guess is right: a constant, its share's log odds, log nearness, the product of these two, the mean of
#: log nearness over all, the share of neighbours guessed the same, how crowded the category is, how much is still
#: unseen, and how soon labels repeat a category. Fitted on 81 classes of Caltech-101 and 61 of Grocery, in 288 tasks of
#: 8 to all of them, with as many pictures of each, with few of most, and with several classes in one category, at 1, 2
#: and 5 labels per category. Held-out classes: log loss .244; without neighbours and crowding .263
_PRIOR = (1.08, 0.78, 0.17, 0.19, 1.05, 3.05, -1.93, -2.58, -1.84)
#: repeats beyond this are not for want of looks that tell categories apart, but because people did not ask the planner
_MOST_REPEATS = 0.25
#: how much the constant differs from project to project, standard deviation
_BETWEEN_PROJECTS = 0.5
#: log odds by which held-back labels can show a project to be harder than all those that this was fitted on
_MOST_TOO_SURE = 6.0
#: standard deviations by which a project is taken to be harder than it looks, when the promise is kept (0: .93 of the
#: proposed were right on held-out classes of Grocery, of .95 asked)
_CAUTION = 1.0
#: an influence of this much is evidence; two categories that have it are in conflict
_NEAR = 0.2
#: axes of the features, at most, and keyframes that it takes for each
_AXES = 128
_PER_AXIS = 10
#: keyframes whose shares are held at once: 16384 x 1000 categories are 65 MB
_CHUNK = 16384
#: keyframes that the features are fitted on at most: of 100,000 they gave the same neighbours, in a fifth of the memory
_FIT_SAMPLE = 20_000
#: keyframes up to which each is compared with each: 25,000 take 5 s, 100,000 would take 75
_COMPARED_WITH_ALL = 25_000
#: beyond that, with those in the nearest of 2 sqrt(n) cells: finds .98 of the 10 nearest of 100,000 in 11 s
_CELLS_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Graph:
    """Who looks like whom. Extend it with `add`; what labels give to it is remembered inside."""

    keyframe_ids: Ints  # (n,)
    features: Floats  # (n, f), rows of length 1
    neighbours: NDArray[np.int32]  # (n, k) rows, nearest first; -1: not in this part of the graph
    similarity: Floats  # (n, k) cosine
    spreading: sp.csr_array  # (n, n) float32, symmetric, eigenvalues at most 1
    self_influence: Floats  # (n,) about the diagonal of K
    model: str
    k: int
    fitted_on: int  # keyframes that the features were fitted on
    _basis: tuple[StandardScaler, PCA]
    _rows: dict[int, int] = field(repr=False)  # keyframe id -> row
    _influence: dict[int, tuple[NDArray[np.int32], Floats]] = field(repr=False, default_factory=dict)


class Guess(NamedTuple):  # there may be 100,000 in a run, and a dataclass is slow to make
    """What we would say of a keyframe that stays open."""

    keyframe_id: int
    category: str
    score: float  # calibrated probability, 0..1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a person made of a proposed label: held-out evidence for the next calibration.

    One that was wrong because nobody had used the right category before is none: that category is known by now.
    """

    keyframe_id: int
    category: str
    score: float  # as it was proposed
    right: bool


@dataclass(frozen=True, slots=True)
class Propagation:
    """One run: what is proposed, and what is left to people."""

    proposed: tuple[PropagatedLabel, ...]  # expected to reach the promise as a whole, surest first
    open: tuple[Guess, ...]  # the other unlabelled keyframes, surest first
    conflict: tuple[int, ...]  # keyframe ids with disagreeing evidence: labels of people, or of two categories nearby
    promise: float
    precision: float  # expected share of right ones among the proposed, nan if none
    precision_low: float  # 90 % interval
    precision_high: float
    coverage: float  # share of the unlabelled keyframes that are proposed
    keyframe_ids: Ints  # (n,) the graph's
    score: Floats  # (n,) of each keyframe's best guess; 1 where a person said it
    labelled: NDArray[np.bool_]  # (n,)
    maturity: float  # 0 with no labels, 0.5 at 5 per category, towards 1: what is known of the categories


def propagate(
    embeddings: Embeddings | None,
    labels: Sequence[Label],
    categories: Sequence[str],
    *,
    multiple: bool = False,
    promise: float = 0.95,
    run_id: int = 0,
    graph: Graph | None = None,
    outcomes: Sequence[Outcome] = (),
) -> Propagation:
    """Guess the labels of all keyframes from those of a few.

    `labels` come in the order in which people gave them; those of unknown keyframes or categories are left out (the
    video or the category is gone). A keyframe whose annotators disagree gives nothing and is in conflict. `graph`
    spares building one; `embeddings` are then not looked at. `outcomes` are what people made of earlier proposals.

    Scores: a logistic curve over how clear and how near the evidence is, whether neighbours agree, and how many share
    one guess that few labels speak for; moved up or down for this project by `outcomes`, and down where the labels are
    not what the earlier ones led to expect. Proposed are the surest guesses, as many as reach the promise on average
    even if the project is a standard deviation harder than it looks.

    Raises ValueError for a promise outside 0.5..1, and if neither embeddings nor a graph are given.
    """
    if not 0.5 <= promise < 1:
        raise ValueError(f"promise must be at least 0.5 and below 1, got {promise}")
    if graph is None:
        if embeddings is None:
            raise ValueError("give embeddings or a graph, got neither")
        graph = build_graph(embeddings)
    with threadpool_limits(
        1
    ):  # two threads of BLAS wait for each other where the cores have other work: 10 times as long
        return _propagate(graph, labels, categories, multiple, promise, run_id, outcomes)


def build_graph(embeddings: Embeddings, k: int = 10) -> Graph:
    """The `k` nearest neighbours of every keyframe, and how labels spread among them.

    Features: StandardScaler -> rows of length 1 -> PCA(min(128, n / 10)) -> rows of length 1; cosine.
    Raises ValueError if k is below 1 or two keyframes have one id.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    n = len(embeddings.vectors)
    with threadpool_limits(1):
        basis = _fit(embeddings.vectors)
        features = _features(basis, embeddings.vectors) if n > 1 else np.ones((n, 1), np.float32)
        near, similarity = _nearest_of_all(features, k)
        return _graph(embeddings.keyframe_ids, features, near, similarity, embeddings.model, k, n, basis)


def add(graph: Graph, embeddings: Embeddings) -> Graph:
    """The graph with those of `embeddings` that it lacks; built anew once it has doubled: the basis fits no more.

    A small one is built anew each time: it takes 0.1 s, and a basis of a few keyframes has only a few axes.

    `embeddings` holds all keyframes of the project, in any order; if some are gone from it, the graph is built anew.
    Raises ValueError if the embeddings come from another model.
    """
    if embeddings.model != graph.model:
        raise ValueError(f"a graph is of one model: it has {graph.model}, got {embeddings.model}; build a new one")
    new = ~np.isin(embeddings.keyframe_ids, graph.keyframe_ids)
    gone = len(embeddings.keyframe_ids) - int(new.sum()) < len(graph.keyframe_ids)
    if not new.any() and not gone:
        return graph
    if gone or len(embeddings.keyframe_ids) > 2 * graph.fitted_on or graph.fitted_on < _AXES * _PER_AXIS:
        return build_graph(embeddings, graph.k)
    with threadpool_limits(1):
        return _grown(graph, embeddings.keyframe_ids[new], _features(graph._basis, embeddings.vectors[new]))


def rows_of(graph: Graph, keyframe_ids: Iterable[int]) -> Ints:
    """(m,) the rows of keyframes in the graph's arrays. Raises KeyError for one that it does not have."""
    return np.fromiter((graph._rows[identifier] for identifier in keyframe_ids), np.int64)


def narrow(graph: Graph, rows: Ints, givers: Ints) -> Graph:
    """The graph at `rows` only, for propagating labels of `givers`, which are among them: what these give is what they
    give in the whole graph. Neighbours that are not among them are not looked at. It cannot be extended."""
    reach = influence(graph, givers)[:, rows]
    place = {int(row): i for i, row in enumerate(rows)}
    inside = np.full(len(graph.keyframe_ids), -1, np.int32)
    inside[rows] = np.arange(len(rows))
    columns = [slice(a, b) for a, b in pairwise(reach.indptr)]
    return replace(
        graph,
        keyframe_ids=graph.keyframe_ids[rows],
        features=graph.features[rows],
        neighbours=inside[graph.neighbours[rows]],
        self_influence=graph.self_influence[rows],
        _rows={int(identifier): i for i, identifier in enumerate(graph.keyframe_ids[rows])},
        _influence={
            place[int(giver)]: (reach.indices[column], reach.data[column])
            for giver, column in zip(givers, columns, strict=True)
        },
    )


def influence(graph: Graph, rows: Sequence[int] | Ints) -> sp.csr_array:
    """What each of `rows` gives to all keyframes: rows of K, (m, n) float32, sparse. Remembered in the graph."""
    missing = [int(row) for row in rows if int(row) not in graph._influence]
    smallest = _SMALLEST_INFLUENCE * max(1.0, len(rows) / 500)
    for start in range(0, len(missing), 256):
        part = missing[start : start + 256]
        matrix = _spread(graph.spreading, part, smallest)
        for i, row in enumerate(part):
            a, b = matrix.indptr[i], matrix.indptr[i + 1]
            graph._influence[row] = (matrix.indices[a:b].copy(), matrix.data[a:b].copy())
    columns = [graph._influence[int(row)] for row in rows]
    indptr = np.concatenate([[0], np.cumsum([len(c[0]) for c in columns])])
    if not columns:
        return sp.csr_array((0, len(graph.keyframe_ids)), dtype=np.float32)
    data, indices = np.concatenate([c[1] for c in columns]), np.concatenate([c[0] for c in columns])
    return sp.csr_array((data, indices, indptr), shape=(len(columns), len(graph.keyframe_ids)))


def relative_influence(graph: Graph, rows: Sequence[int] | Ints) -> sp.csr_array:
    """(m, n) influence of `rows`, relative to that on oneself: a cosine in the space of the kernel K, 1 on itself."""
    reach = influence(graph, rows)
    scale = 1 / np.sqrt(graph.self_influence)
    reach.data = reach.data * np.repeat(scale[np.asarray(rows, int)], np.diff(reach.indptr)) * scale[reach.indices]
    return reach


def reached(graph: Graph, weights: NDArray[Any]) -> NDArray[Any]:
    """(n,) what each keyframe would reach: its relative influence on all, times `weights` (n,), summed."""
    scale = 1 / np.sqrt(graph.self_influence)
    given = (1 - _ALPHA) * weights * scale
    # x = a S x + given, by Chebyshev's semi-iteration: 15 products where the power series takes 60
    before, total, faster = np.zeros_like(given), given, 2.0
    for _ in range(15):
        faster = 1 / (1 - _ALPHA**2 * faster / 4)
        before, total = total, faster * (_ALPHA * (graph.spreading @ total) + given - before) + before
    reach: NDArray[Any] = total * scale
    return reach


def _propagate(
    graph: Graph,
    labels: Sequence[Label],
    categories: Sequence[str],
    multiple: bool,
    promise: float,
    run_id: int,
    outcomes: Sequence[Outcome],
) -> Propagation:
    rows, said, disputed = _settle(graph, labels, categories, multiple)
    n = len(graph.keyframe_ids)
    labelled = np.zeros(n, bool)
    labelled[rows] = True
    labelled[disputed] = True
    conflict = {int(graph.keyframe_ids[row]) for row in disputed}
    if not len(rows):
        return Propagation(
            (),
            (),
            tuple(sorted(conflict)),
            promise,
            math.nan,
            math.nan,
            math.nan,
            0.0,
            graph.keyframe_ids,
            labelled.astype(np.float32),
            labelled,
            0.0,
        )

    reach = relative_influence(graph, rows)
    evidence = _evidence(graph, reach, rows, said, multiple)
    first = {int(graph.keyframe_ids[rows[row]]) for row in set(said.argmax(axis=0).tolist())}  # to have a category
    telling = [outcome for outcome in outcomes if outcome.right or outcome.keyframe_id not in first]
    shift, deviation = _shift(graph, reach, rows, said, multiple, telling)
    odds = _odds(evidence, said, multiple) + shift
    score = _sigmoid(odds)

    unlabelled = ~labelled[evidence.row]
    torn = unlabelled & (evidence.near >= _NEAR) & (evidence.rival >= evidence.share / 2)
    conflict.update(graph.keyframe_ids[evidence.row[torn]].tolist())
    order = np.argsort(-score, kind="stable")
    order = order[(unlabelled & ~torn & (evidence.share > (0.5 if multiple else 0)))[order]]
    safe = np.cumsum(_sigmoid(odds[order] - _CAUTION * deviation)) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(safe >= promise)
    chosen = order[: enough[-1] + 1] if len(enough) else order[:0]

    reasons = _nearest_labels(graph, reach, rows, said, evidence.row[chosen], evidence.category[chosen])
    ids, guessed, scores = graph.keyframe_ids[evidence.row[chosen]], evidence.category[chosen], score[chosen]
    proposed = tuple(
        PropagatedLabel(identifier, categories[c], p, reason, run_id)
        for identifier, c, p, reason in zip(ids.tolist(), guessed.tolist(), scores.tolist(), reasons, strict=True)
    )
    best = np.zeros(n, np.float32)
    np.maximum.at(best, evidence.row, score)
    best[labelled] = 1
    decided = labelled.copy()
    decided[evidence.row[chosen]] = True
    left = np.argsort(-score, kind="stable")
    left = left[~decided[evidence.row[left]]]
    left = left[np.sort(np.unique(evidence.row[left], return_index=True)[1])]  # the best guess of each
    ids, guessed, scores = graph.keyframe_ids[evidence.row[left]], evidence.category[left], score[left]
    guesses = tuple(map(Guess, ids.tolist(), [categories[c] for c in guessed.tolist()], scores.tolist()))
    precision, low, high = (
        (float(_sigmoid(odds[chosen] + d * deviation).mean()) for d in (0, -1.645, 1.645))
        if len(chosen)
        else (math.nan, math.nan, math.nan)
    )
    coverage = len(np.unique(evidence.row[chosen])) / max(1, n - int(labelled.sum()))
    return Propagation(
        proposed,
        guesses,
        tuple(sorted(conflict)),
        promise,
        precision,
        low,
        high,
        coverage,
        graph.keyframe_ids,
        best,
        labelled,
        _maturity(said),
    )


def _grown(graph: Graph, keyframe_ids: Ints, fresh: Floats) -> Graph:
    features = np.concatenate([graph.features, fresh])
    old_n, n = len(graph.features), len(features)
    near, similarity = _nearest(fresh, features, graph.k, own=np.arange(old_n, n))
    # an old keyframe's list changes only if a new one is nearer than the last in it
    near_old, similarity_old = _nearest(graph.features, fresh, min(graph.k, n - old_n))
    both = np.concatenate([graph.similarity, similarity_old], axis=1)
    which = np.argsort(-both, axis=1, kind="stable")[:, : near.shape[1]]
    near_old = np.take_along_axis(np.concatenate([graph.neighbours, near_old + old_n], axis=1), which, axis=1)
    similarity_old = np.take_along_axis(both, which, axis=1)
    return _graph(
        np.concatenate([graph.keyframe_ids, keyframe_ids]),
        features,
        np.concatenate([near_old, near]).astype(np.int32),
        np.concatenate([similarity_old, similarity]),
        graph.model,
        graph.k,
        graph.fitted_on,
        graph._basis,
    )


def _fit(vectors: Floats) -> tuple[StandardScaler, PCA]:
    n, d = vectors.shape
    if n < 2:
        return StandardScaler(), PCA()
    sample = vectors
    if n > _FIT_SAMPLE:
        sample = vectors[np.sort(np.random.default_rng(0).choice(n, _FIT_SAMPLE, replace=False))]
    scaler = StandardScaler().fit(sample)
    pca = PCA(min(_AXES, max(2, n // _PER_AXIS), n, d), svd_solver="randomized" if n > 500 else "full", random_state=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # keyframes that are all the same have no variance
        pca.fit(normalize(scaler.transform(sample), copy=False))
    return scaler, pca


def _features(basis: tuple[StandardScaler, PCA], vectors: Floats) -> Floats:
    """(n, f), rows of length 1."""
    scaler, pca = basis
    features = np.empty((len(vectors), pca.n_components_), np.float32)
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, start + _CHUNK)
        features[part] = normalize(pca.transform(normalize(scaler.transform(vectors[part]), copy=False)), copy=False)
    return features


def _graph(
    keyframe_ids: Ints,
    features: Floats,
    near: NDArray[np.int32],
    similarity: Floats,
    model: str,
    k: int,
    fitted_on: int,
    basis: tuple[StandardScaler, PCA],
) -> Graph:
    rows = {int(identifier): row for row, identifier in enumerate(keyframe_ids)}
    if len(rows) != len(keyframe_ids):
        raise ValueError(f"keyframe ids must differ, got {len(keyframe_ids) - len(rows)} that come twice")
    spreading = _spreading(near, similarity)
    return Graph(
        keyframe_ids,
        features,
        near,
        similarity,
        spreading,
        _self_influence(spreading),
        model,
        k,
        fitted_on,
        basis,
        rows,
    )


def _nearest(queries: Floats, among: Floats, k: int, own: Ints | None = None) -> tuple[NDArray[np.int32], Floats]:
    """(q, k) rows of `among` and their cosine, nearest first; `own` rows of the queries are left out."""
    k = min(k, len(among) - (own is not None))
    if k < 1 or not len(queries):
        return np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.float32)
    search = NearestNeighbors(algorithm="brute").fit(among)
    distance, near = search.kneighbors(queries, k + (own is not None))
    if own is not None:  # among equal ones the own row need not come first, or at all
        mine = near == own[:, None]
        mine[~mine.any(axis=1), -1] = True
        near, distance = near[~mine].reshape(-1, k), distance[~mine].reshape(-1, k)
    return near.astype(np.int32), (1 - distance**2 / 2).astype(np.float32)


def _nearest_of_all(features: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
    """(n, k) rows and their cosine, nearest first; of many keyframes only those of cells nearby are compared."""
    n = len(features)
    if n <= _COMPARED_WITH_ALL:
        return _nearest(features, features, k, own=np.arange(n))
    sample = features[np.sort(np.random.default_rng(0).choice(n, _FIT_SAMPLE, replace=False))]
    cells = MiniBatchKMeans(round(2 * n**0.5), batch_size=4096, n_init=1, random_state=0).fit(sample).cluster_centers_
    looked_at, _ = _nearest(features, cells, _CELLS_LOOKED_AT)  # the first is the own
    near = np.full((n, looked_at.shape[1], k + 1), -1, np.int32)
    similarity = np.full(near.shape, -np.inf, np.float32)
    order = np.argsort(looked_at, axis=None, kind="stable")
    starts = np.searchsorted(looked_at.ravel()[order], np.arange(len(cells) + 1))
    for a, b in pairwise(starts):
        queries, place = np.divmod(order[a:b], looked_at.shape[1])
        members = queries[place == 0]
        found, cosine = _nearest(features[queries], features[members], k + 1)
        near[queries, place, : found.shape[1]] = members[found]
        similarity[queries, place, : found.shape[1]] = cosine
    flat, cosines = near.reshape(n, -1), similarity.reshape(n, -1)
    cosines[flat == np.arange(n)[:, None]] = -np.inf
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    flat, cosines = np.take_along_axis(flat, best, axis=1), np.take_along_axis(cosines, best, axis=1)
    lonely = np.flatnonzero(cosines[:, -1] == -np.inf)  # their cells have too few members
    if len(lonely):
        flat[lonely], cosines[lonely] = _nearest(features[lonely], features, k, own=lonely)
    return flat, cosines


def _spreading(near: NDArray[np.int32], similarity: Floats) -> sp.csr_array:
    n, k = near.shape
    weights = np.maximum(similarity, 1e-3).ravel() ** _POWER
    own = np.repeat(np.arange(n, dtype=np.int32), k)
    one_way = sp.csr_array((weights, (own, near.ravel())), shape=(n, n))
    affinity = one_way.maximum(one_way.T).tocsr()
    scale = 1 / np.sqrt(np.maximum(affinity.sum(axis=1), 1e-20))
    affinity.data *= np.repeat(scale, np.diff(affinity.indptr)) * scale[affinity.indices]
    return affinity.astype(np.float32)


def _self_influence(spreading: sp.csr_array, probes: int = 32, steps: int = 15) -> Floats:
    """The diagonal of K: its first terms exactly, the rest by random signs (Hutchinson, 1990), within about 2 %.

    S is symmetric, so that the diagonal of S^(i+j) is the mean of S^i z times S^j z over the signs z: `steps` products
    give twice as many powers.
    """
    n = spreading.shape[0]
    back_in_two = np.asarray(spreading.power(2).sum(axis=1))  # S has no diagonal, S S has this one
    step = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (n, probes))
    later = np.zeros(n, np.float32)
    for power in range(steps):
        following = _ALPHA * (spreading @ step)
        if power:
            later += np.einsum("ij,ij->i", step, following)
            later += np.einsum("ij,ij->i", following, following)
        step = following
    diagonal: Floats = ((1 - _ALPHA) * (1 + _ALPHA**2 * back_in_two + np.maximum(later / probes, 0))).astype(np.float32)
    return diagonal


def _spread(spreading: sp.csr_array, rows: Sequence[int], smallest: float) -> sp.csr_array:
    """K's rows by its power series; each step drops what is too small to matter, so it stays near its start."""
    m, n = len(rows), spreading.shape[0]
    step = sp.csr_array(
        (np.full(m, 1 - _ALPHA, np.float32), np.asarray(rows, np.int32), np.arange(m + 1)), shape=(m, n)
    )
    total = step
    for _ in range(60):
        step = step @ spreading
        step.data *= _ALPHA
        step.data[step.data < smallest] = 0
        step.eliminate_zeros()
        if not step.nnz:
            break
        total = total + step
    return total.tocsr()


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Guesses: of each keyframe the best; with multiple categories all that are likelier than not, or the best."""

    row: Ints  # (g,)
    category: Ints  # (g,)
    share: Floats  # (g,) of the evidence that speaks for it, 0..1
    rival: Floats  # (g,) share of what speaks against it most
    near: Floats  # (g,) the strongest influence of one label, relative to that on itself: 0..1
    alike: Floats  # (g,) share of the nearest neighbours that have the same guess
    crowd: Floats  # (g,) log of how many keyframes have this guess, of the mean, over the root of its labels


def _settle(
    graph: Graph, labels: Sequence[Label], categories: Sequence[str], multiple: bool
) -> tuple[Ints, Floats, list[int]]:
    """(rows (m,), said (m, c) 0 or 1, disputed rows), in the order of each keyframe's first label."""
    number = {category: i for i, category in enumerate(categories)}
    voters: dict[int, set[int]] = defaultdict(set)
    votes: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for label in labels:
        row, category = graph._rows.get(label.keyframe_id), number.get(label.category)
        if row is not None and category is not None:
            voters[row].add(label.annotation_id)
            votes[row][category].add(label.annotation_id)
    rows, said, disputed = [], [], []
    for row, by_category in votes.items():
        half = len(voters[row]) / 2
        yes = [c for c, who in by_category.items() if len(who) > half]
        split = any(len(who) == half for who in by_category.values())
        if not yes or (split and multiple) or (len(yes) > 1 and not multiple):
            disputed.append(row)
            continue
        line = np.zeros(len(categories), np.float32)
        line[yes] = 1
        rows.append(row)
        said.append(line)
    return np.asarray(rows, np.int64), np.asarray(said, np.float32).reshape(len(rows), len(categories)), disputed


def _evidence(graph: Graph, reach: sp.csr_array, rows: Ints, said: Floats, multiple: bool) -> _Evidence:
    """What the labels say of all keyframes. `reach` is (m, n)."""
    by_category = sp.csr_array(said.T)
    count = np.maximum(said.sum(axis=0), 1)
    # a category with many labels is drawn to: by their square root it is half corrected (0: -.4 points, 1: the same)
    for_it = (sp.diags_array(1 / np.sqrt(count)) @ by_category @ reach).tocsc()
    any_label = (sp.csr_array(np.ones((1, len(rows)), np.float32)) @ reach).toarray().ravel() if multiple else None
    against_scale = 1 / np.sqrt(np.maximum(len(rows) - said.sum(axis=0), 1)) if multiple else None
    nearest = reach.max(axis=0).toarray().ravel()
    classify = _classifier(graph.features, rows, said, multiple)
    weight = _maturity(said)

    parts: list[tuple[Any, ...]] = []
    total = reach.shape[1]
    for start in range(0, total, _CHUNK):
        part = slice(start, min(start + _CHUNK, total))
        says = for_it[:, part].toarray().T
        if any_label is not None and against_scale is not None:
            against = np.maximum(any_label[part, None] - says * np.sqrt(count), 0) * against_scale
            everything = says + against
        else:
            everything = says.sum(axis=1, keepdims=True)
        trust = np.where(everything > 0, 1 - weight, 0)  # out of reach of the graph, the classifier speaks alone
        shares = trust * says / np.maximum(everything, 1e-12) + (1 - trust) * classify(graph.features[part])
        best = shares.argmax(axis=1)
        row = np.arange(len(shares))
        if multiple:
            likely = shares > 0.5
            likely[row, best] = True
            row, category = np.nonzero(likely)
            share = shares[row, category]
            rival = 1 - share
        else:
            category, share = best, shares[row, best]
            rival = np.partition(shares, -2, axis=1)[:, -2] if shares.shape[1] > 1 else np.zeros(len(shares))
        parts.append((row + start, category, share, rival, nearest[row + start]))
    row, category, share, rival, near = (np.concatenate(column) for column in zip(*parts, strict=True))
    # guesses come in the order of their rows, so that these numbers ascend
    guess, asked = row * said.shape[1] + category, graph.neighbours[row] * said.shape[1] + category[:, None]
    found = guess[np.minimum(np.searchsorted(guess, asked), len(guess) - 1)] == asked
    alike = found.sum(axis=1) / np.maximum((graph.neighbours[row] >= 0).sum(axis=1), 1)
    crowd = np.log((np.bincount(category, minlength=len(count)) + 1) * (said.any(axis=0).sum() / len(row)))
    return _Evidence(row, category, share, rival, near, alike, (crowd / np.sqrt(count))[category])


def _maturity(said: Floats) -> float:
    seen = int((said.sum(axis=0) > 0).sum())
    return len(said) / (len(said) + _CLASSIFIER_FROM * seen)


def _classifier(features: Floats, rows: Ints, said: Floats, multiple: bool) -> Callable[[Floats], Floats]:
    """Linear discriminant analysis, equal priors, shrunk covariance: (q, f) features -> (q, c) probabilities.

    In closed form, so that it is cheap to ask what it would have said earlier. At 5 labels per category it was 1 to 2
    points better than logistic regression on fine-grained data, and as good elsewhere.
    """
    here, d = features[rows], features.shape[1]
    count = said.sum(axis=0)
    means = (said.T @ here) / np.maximum(count, 1)[:, None]
    within = here - (said @ means) / said.sum(axis=1, keepdims=True)
    covariance = within.T @ within / max(1, len(rows) - int((count > 0).sum()))
    precision = np.linalg.inv((1 - _SHRINKAGE) * covariance + _SHRINKAGE / d * np.eye(d))  # rows have length 1
    if multiple:
        others = (here.sum(axis=0) - said.T @ here) / np.maximum(len(rows) - count, 1)[:, None]
        directions = (means - others) @ precision
        offsets = (directions * (means + others)).sum(axis=1) / 2
        known = (count > 0) & (count < len(rows))

        def one_by_one(q: Floats) -> Floats:
            odds = _TEMPERATURE * (q @ directions.T - offsets)
            return np.where(known, _sigmoid(odds), np.where(count > 0, 0.5, 0.0)).astype(np.float32)

        return one_by_one

    directions, offsets = means @ precision, (means @ precision * means).sum(axis=1) / 2

    def one_of_all(q: Floats) -> Floats:
        logits = np.where(count > 0, _TEMPERATURE * (q @ directions.T - offsets), -np.inf)
        likely = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Floats = (likely / likely.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    return one_of_all


def _odds(evidence: _Evidence, said: Floats, multiple: bool) -> NDArray[np.float64]:
    """Log odds that a guess is right, before anything is known of this project."""
    share, near = np.clip(evidence.share, 0.01, 0.99).astype(float), np.log(evidence.near.astype(float) + 0.01)
    clear = np.log(share / (1 - share))
    constant, by_clear, by_near, by_both, by_mean, by_alike, by_crowd, by_unseen, by_repeats = _PRIOR
    odds = constant + by_clear * clear + by_near * near + by_both * clear * near + by_alike * evidence.alike
    odds += by_mean * near.mean()
    if not multiple:
        odds += by_crowd * evidence.crowd + by_unseen * _unseen(said) + by_repeats * _repeats(said)
    return np.asarray(odds, np.float64)


def _unseen(said: Floats) -> float:
    """How much is still unseen, 0..1: the lesser of the share of the categories that have no label and the share of the
    later half of the labels that were their category's first. Each alone misleads: categories may be listed that are
    in no video, and the planner looks for what is new."""
    seen = said.any(axis=0)
    half = len(said) // 2
    fresh = int((said[:, seen].argmax(axis=0) >= half).sum()) / max(1, len(said) - half)
    return min(1 - float(seen.mean()), fresh)


def _repeats(said: Floats) -> float:
    """Share of the first labels, as many as there are categories by now, that named one again: the planner asks for
    what looks unlike all before, so that repeats mean that looks tell little about categories."""
    first = int(said.any(axis=0).sum())
    return min(_MOST_REPEATS, 1 - int(said[:first].any(axis=0).sum()) / first)


def _shift(
    graph: Graph, reach: sp.csr_array, rows: Ints, said: Floats, multiple: bool, outcomes: Sequence[Outcome]
) -> tuple[float, float]:
    """(shift, standard deviation) of the log odds for this project: what outcomes say, and before there are any, no
    more than the labels allow."""
    most = -_held_back(graph, reach, rows, said, multiple)
    scores = np.clip([o.score for o in outcomes], 0.01, 0.99)
    tested, hits = np.log(scores / (1 - scores)), np.array([float(o.right) for o in outcomes])
    shift, information = most, 1 / _BETWEEN_PROJECTS**2
    for _ in range(20):  # Newton's method for the posterior's top
        p = _sigmoid(tested + shift)
        information = 1 / _BETWEEN_PROJECTS**2 + float((p * (1 - p)).sum())
        step = (float((hits - p).sum()) - (shift - most) / _BETWEEN_PROJECTS**2) / information
        shift += step
        if abs(step) < 1e-6:
            break
    return shift, information**-0.5


def _held_back(graph: Graph, reach: sp.csr_array, rows: Ints, said: Floats, multiple: bool) -> float:
    """By how much the log odds must sink for the later half of the labels, as the earlier half would have guessed them,
    to be right no more seldom than chance allows; mostly 0.

    The planner asks where it is hard, so that how many are right tells little of the others (its correlation with what
    would set the odds right was between -.2 and .1). Far fewer than expected tell that looks and categories do not go
    together here. Leaving one label out of all would be no test: the others were chosen around it.
    """
    half = len(rows) // 2
    if not half:
        return 0.0
    place = np.full(len(graph.keyframe_ids), -1)
    place[rows[half:]] = np.arange(half, len(rows))
    guess = _evidence(graph, reach[:half], rows[:half], said[:half], multiple)
    asked = place[guess.row] >= 0
    odds = _odds(guess, said[:half], multiple)[asked]
    right = float(said[place[guess.row[asked]], guess.category[asked]].sum())
    for less in np.arange(0, _MOST_TOO_SURE, 0.1):
        p = _sigmoid(odds - less)
        if p.sum() - 2 * np.sqrt((p * (1 - p)).sum()) <= right:
            return float(less)
    return _MOST_TOO_SURE


def _nearest_labels(
    graph: Graph, reach: sp.csr_array, rows: Ints, said: Floats, at: Ints, categories: Ints, most: int = 3
) -> list[tuple[int, ...]]:
    """For each guess the labelled keyframes of its category that gave it most, the largest first."""
    columns = reach.tocsc()[:, at]
    guess = np.repeat(np.arange(len(at)), np.diff(columns.indptr))
    agrees = said[columns.indices, categories[guess]] > 0
    guess, giver, value = guess[agrees], columns.indices[agrees], columns.data[agrees]
    order = np.lexsort((-value, guess))
    guess, giver = guess[order], graph.keyframe_ids[rows[giver[order]]]
    starts = np.searchsorted(guess, np.arange(len(at) + 1))
    return [tuple(giver[a : min(b, a + most)].tolist()) for a, b in pairwise(starts)]


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-x)))
