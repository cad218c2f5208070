"""A project's clusters as it grows: new keyframes join what there is, until all is fitted afresh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookalike import edits
from lookalike.grouping import Tree
from lookalike.records import Clustering, Embeddings
from workers import clustering

#: a project is clustered afresh when it has grown by this factor; in between, new keyframes join what is there
_REFIT_GROWTH = 1.5
_REFIT_GROWTH_AT_REST = 1.1


def regroup(
    known: tuple[Clustering, int] | None,
    embeddings: Embeddings,
    *,
    at_rest: bool,
    k: int,
    seed: int,
    method: str = "pca-kmeans",
    grown: Tree | None = None,
    afresh: bool = False,
    made: Sequence[edits.Edit] = (),
) -> tuple[Clustering, int]:
    """(clustering of all keyframes, keyframes at its last full fit).

    New keyframes join the clusters that there are, so that `c0007` keeps its meaning; the whole is fitted afresh, and
    numbered as before where it can be, once it has grown enough, or when asked to. `grown`: the tree of the embeddings
    where there is one. `made`: what people did to the clusters, which is not in `known`, nor in what is returned; new
    keyframes join the clusters as people see them.
    """
    n = len(embeddings.keyframe_ids)
    if known is None:
        return clustering.cluster(embeddings, k, seed, method, grown), n
    before, fitted = known
    if afresh or is_outgrown(known, n, at_rest=at_rest):
        return clustering.renumber(before, clustering.cluster(embeddings, k, seed, method, grown)), n
    old = np.isin(embeddings.keyframe_ids, before.keyframe_ids)
    before = without(before, ~np.isin(before.keyframe_ids, embeddings.keyframe_ids))
    if old.all():
        return before, fitted
    seen = edits.apply(before, made)
    extended = clustering.extend(seen, _subset(embeddings, old), _subset(embeddings, ~old), seed, method)
    return edits.unedited(before, extended) if made else extended, fitted


def is_outgrown(known: tuple[Clustering, int] | None, n: int, *, at_rest: bool) -> bool:
    """Whether n keyframes are too many for the last full fit of a clustering."""
    return known is None or n >= known[1] * (_REFIT_GROWTH_AT_REST if at_rest else _REFIT_GROWTH)


def without(grouped: Clustering, gone: NDArray[np.bool_]) -> Clustering:
    """The clustering without some keyframes; a cluster that loses its centroid gets the most similar member left."""
    ids, clusters, similarity = grouped.keyframe_ids[~gone], grouped.clusters[~gone], grouped.similarity[~gone]
    centroids = grouped.centroids.copy()
    for number in np.flatnonzero(~np.isin(centroids, ids)):
        members = np.flatnonzero(clusters == number)
        centroids[number] = ids[members[similarity[members].argmax()]] if len(members) else -1
    return Clustering(ids, clusters, centroids, similarity)


def _subset(embeddings: Embeddings, chosen: NDArray[np.bool_]) -> Embeddings:
    return Embeddings(embeddings.keyframe_ids[chosen], embeddings.vectors[chosen], embeddings.model)
