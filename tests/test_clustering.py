"""Clustering: groups that a person would see, numbers that keep their meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lookalike.grouping import cut
from lookalike.records import Clustering, Embeddings
from lookalike.settings import CLUSTERINGS
from workers.clustering import article_cluster, cluster, extend, propose_k, renumber, separated, tree

CALTECH = Path(__file__).parents[1] / "../shared/data/emb/lite0_caltech101_f16.npz"


def embeddings(vectors, first_id=1000, model="test"):
    vectors = np.asarray(vectors, np.float32)
    return Embeddings(np.arange(first_id, first_id + len(vectors)), vectors, model)


def blobs(sizes, seed=0, dim=64, spread=0.15):
    """Points around well separated directions, and which direction each belongs to."""
    middles = np.random.default_rng(7).normal(size=(max(10, len(sizes)), dim))
    which = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(which), dim))
    return (middles[which] + spread * noise).astype(np.float32), which


def same_groups(a, b):
    return len(np.unique(np.stack([a, b]), axis=1).T) == len(np.unique(a)) == len(np.unique(b))


def test_cluster__finds_groups_and_numbers_them_by_size():
    vectors, which = blobs([20, 60, 40])
    found = cluster(embeddings(vectors), k=3)
    assert same_groups(found.clusters, which)
    assert np.bincount(found.clusters).tolist() == [60, 40, 20]


def test_cluster__centroid_is_the_most_similar_member():
    vectors, _ = blobs([30, 30])
    found = cluster(embeddings(vectors), k=2)
    for number, centroid in enumerate(found.centroids):
        members = found.clusters == number
        best = found.keyframe_ids[members][found.similarity[members].argmax()]
        assert centroid == best


@pytest.mark.parametrize("sizes", [[4, 4, 4], [30, 30, 30, 30], [100] * 6])
def test_cluster__proposed_k_keeps_groups_apart(sizes):
    vectors, which = blobs(sizes)
    found = cluster(embeddings(vectors))
    assert len(sizes) <= len(found.centroids) <= max(2 * len(which) ** 0.5, len(sizes))
    for number in range(len(found.centroids)):
        assert len(set(which[found.clusters == number])) == 1


def test_cluster__nearly_equal_frames_become_one_cluster_although_more_are_tried():
    vectors, which = blobs([100] * 6, spread=0.01)
    assert same_groups(cluster(embeddings(vectors)).clusters, which)


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 29, 30])
def test_cluster__any_size(n, k):
    vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    found = cluster(embeddings(vectors), k)
    assert (found.clusters >= 0).all()
    assert found.similarity.dtype == np.float32
    assert ((found.similarity >= 0) & (found.similarity <= 1)).all()
    assert set(found.clusters) == set(range(len(found.centroids)))
    if k:
        assert len(found.centroids) == min(n, k)
    for number, centroid in enumerate(found.centroids):
        assert found.clusters[found.keyframe_ids == centroid] == number


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("k", [0, 4])
def test_cluster__equal_frames_are_one_cluster(n, k):
    found = cluster(embeddings(np.full((n, 16), 3.5)), k)
    assert found.clusters.tolist() == [0] * n
    assert found.similarity.tolist() == [1.0] * n


def test_cluster__negative_k_is_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        cluster(embeddings(np.eye(3)), -1)


def test_cluster__same_seed_same_result():
    vectors, _ = blobs([50, 50, 50], spread=2.0)
    one, two = (cluster(embeddings(vectors), seed=3) for _ in range(2))
    assert (one.clusters == two.clusters).all()
    assert (one.centroids == two.centroids).all()
    assert (one.similarity == two.similarity).all()


def test_cluster__does_not_change_its_input():
    vectors, _ = blobs([20, 20])
    before = vectors.copy()
    cluster(embeddings(vectors))
    assert (vectors == before).all()


def test_cluster__large_projects_take_the_same_way():
    vectors, which = blobs([30_000, 20_000, 10_000], dim=16)
    found = cluster(embeddings(vectors), k=3)
    assert same_groups(found.clusters, which)


def test_article_cluster__finds_groups():
    vectors, which = blobs([20, 60, 40])
    assert same_groups(article_cluster(embeddings(vectors), 3).clusters, which)
    with pytest.raises(ValueError, match="between 1 and the number of keyframes, 3, got 4"):
        article_cluster(embeddings(np.eye(3)), 4)


@pytest.mark.skipif(not CALTECH.is_file(), reason="the embeddings of Caltech-101 are not here")
def test_cluster__real_photos_label_better_than_by_the_articles_recipe():
    saved = np.load(CALTECH)
    few = np.flatnonzero(np.isin(saved["y"], np.unique(saved["y"])[::5]))
    data, classes = embeddings(saved["X"][few]), saved["y"][few]

    def right(found):
        return (classes[found.centroids[found.clusters] - 1000] == classes).mean()

    k = len(np.unique(classes))  # few centroids: with many, both recipes are right about nearly all
    ours, article = (np.mean([right(f(data, k, seed)) for seed in range(3)]) for f in (cluster, article_cluster))
    assert ours > article + 0.02  # .89 and .84
    assert right(cluster(data)) > 0.85


@pytest.mark.parametrize("method", CLUSTERINGS)
@pytest.mark.parametrize("sizes", [[20, 60, 40], [7] * 10])
def test_cluster__every_method_finds_groups(method, sizes):
    vectors, which = blobs(sizes)
    found = cluster(embeddings(vectors), 0 if method == "hdbscan" else len(sizes), method=method)
    grouped = found.clusters >= 0
    assert grouped.mean() > 0.9
    assert same_groups(found.clusters[grouped], which[grouped])


@pytest.mark.parametrize("method", CLUSTERINGS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 10, 29, 30])
def test_cluster__every_method_at_any_size(method, n):
    vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    found = cluster(embeddings(vectors), method=method)
    assert found.keyframe_ids.tolist() == list(range(1000, 1000 + n))
    assert set(found.clusters) - {-1} == set(range(len(found.centroids)))
    assert method == "hdbscan" or (found.clusters >= 0).all()
    for number, centroid in enumerate(found.centroids):
        assert found.clusters[found.keyframe_ids == centroid] == number


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_cluster__every_method_is_the_same_by_the_same_seed(method):
    vectors, _ = blobs([50, 50, 50], spread=1.0)
    one, two = (cluster(embeddings(vectors), seed=3, method=method) for _ in range(2))
    assert (one.clusters == two.clusters).all()
    assert (one.centroids == two.centroids).all()
    assert (one.similarity == two.similarity).all()


@pytest.mark.parametrize("value", [3.5, 0.1, 1e-3])
@pytest.mark.parametrize("method", [m for m in CLUSTERINGS if m != "hdbscan"])
def test_cluster__every_method_takes_equal_frames_for_one_cluster(method, value):
    found = cluster(embeddings(np.full((40, 16), value)), method=method)
    assert found.clusters.tolist() == [0] * 40
    assert found.similarity.tolist() == [1.0] * 40


def test_cluster__hdbscan_leaves_out_what_is_like_nothing_else():
    vectors, _ = blobs([200, 100, 150, 120], dim=256)
    apart = np.random.default_rng(1).normal(size=(4, 256)).astype(np.float32)  # too few to be a group themselves
    found = cluster(embeddings(np.concatenate([vectors, apart])), method="hdbscan")
    assert found.clusters[570:].tolist() == [-1] * 4
    assert (found.similarity[found.clusters == -1] == 0).all()
    with pytest.raises(ValueError, match="k must be 0, got 5"):
        cluster(embeddings(vectors), 5, method="hdbscan")


def test_cluster__large_projects_by_hdbscan_join_a_sample(monkeypatch):
    monkeypatch.setattr("workers.clustering._HDBSCAN_SAMPLE", 300)
    vectors, which = blobs([300, 200, 100])
    found = cluster(embeddings(vectors), method="hdbscan")
    grouped = found.clusters >= 0
    assert grouped.mean() > 0.85
    for number in range(len(found.centroids)):
        assert len(set(which[found.clusters == number])) == 1


def test_cluster__large_projects_by_ward_have_groups_as_leaves(monkeypatch):
    monkeypatch.setattr("workers.clustering._LEAVES", 200)
    monkeypatch.setattr("workers.clustering._LEAF_GROUPS", 40)
    vectors, which = blobs([300, 200, 100])
    grown = tree(embeddings(vectors))
    assert len(grown.heights) < 40
    assert (np.diff(grown.heights) >= 0).all()
    assert same_groups(cut(grown, 3).clusters, which)


def test_cluster__ward_takes_a_tree_that_is_there():
    vectors, _ = blobs([20, 60, 40], spread=1.0)
    grown = tree(embeddings(vectors))
    found = cluster(embeddings(vectors), 5, method="ward", grown=grown)
    assert (found.clusters == cut(grown, 5).clusters).all()


def test_cluster__unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"one of pca-kmeans, .*, got 'agnes'"):
        cluster(embeddings(np.eye(3)), method="agnes")


def test_propose_k__says_what_cluster_makes_and_why():
    vectors, _ = blobs([100] * 6, spread=0.01)
    proposal = propose_k(embeddings(vectors))
    assert proposal.k == len(cluster(embeddings(vectors)).centroids) == 6
    best = max(proposal.curve, key=lambda tried: tried.silhouette)
    assert (best.k, round(best.silhouette, 2), round(best.explained, 2), best.stability) == (6, 1.0, 1.0, 1.0)
    assert [tried.k for tried in proposal.curve] == sorted({tried.k for tried in proposal.curve})
    assert proposal.reason.startswith("6 clusters: 49 were tried (2·√600), of which 43 looked like another")
    assert "most distinct at 6 (silhouette 1.00)" in proposal.reason
    assert proposal == propose_k(embeddings(vectors))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9])
def test_propose_k__of_next_to_nothing(n):
    some = embeddings(np.random.default_rng(0).normal(size=(n, 8)))
    proposal = propose_k(some)
    assert proposal.k == len(cluster(some).centroids)
    assert n > 3 or proposal.reason == f"{n} keyframes are too few to compare numbers of clusters"


def test_separated__is_measured_in_one_space_whatever_the_method():
    vectors, _ = blobs([40, 30, 20], spread=0.1)
    vectors[:, 0] += 1000  # drowns all else in the vectors as they are
    by_article = separated(embeddings(vectors), article_cluster(embeddings(vectors), 3))
    assert by_article == separated(embeddings(vectors), cluster(embeddings(vectors), 3)) > 0.9


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 40])
@pytest.mark.parametrize("method", CLUSTERINGS)
def test_extend__a_copy_is_where_its_original_is(n, method):
    vectors = np.random.default_rng(n).normal(size=(n, 8)).astype(np.float32)
    known = embeddings(vectors)
    old = cluster(known, method=method)
    grown = extend(old, known, embeddings(vectors, first_id=5000), method=method)
    assert grown.clusters[n:].tolist() == old.clusters.tolist()


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_extend__every_method_keeps_numbers_and_groups_what_is_new(method):
    vectors, which = blobs([40, 30, 20, 25])
    known, new = embeddings(vectors[which < 3]), embeddings(vectors[which == 3], first_id=5000)
    old = cluster(known, 0 if method == "hdbscan" else 3, method=method)
    grown = extend(old, known, new, method=method)
    assert (grown.clusters[:90] == old.clusters).all()
    fresh = grown.clusters[90:]
    assert (fresh == -1).all() if method == "hdbscan" else (fresh >= 3).all()
    assert set(grown.clusters) - {-1} == set(range(len(grown.centroids)))


def test_extend__what_was_like_nothing_else_stays_so():
    vectors, _ = blobs([20, 60, 40])
    apart = np.random.default_rng(1).normal(size=(12, 64)).astype(np.float32)
    known = embeddings(np.concatenate([vectors, apart]))
    old = cluster(known, method="hdbscan")
    more, _ = blobs([5, 5, 5], seed=4)
    grown = extend(old, known, embeddings(more, first_id=5000), method="hdbscan")
    assert (grown.clusters[:132] == old.clusters).all()


def test_extend__known_keep_their_numbers_and_new_ones_join():
    vectors, _ = blobs([40, 30, 20])
    known, old = embeddings(vectors), cluster(embeddings(vectors), 3)
    more, new_which = blobs([10, 10, 10], seed=1)
    grown = extend(old, known, embeddings(more, first_id=5000))
    assert grown.keyframe_ids.tolist() == [*range(1000, 1090), *range(5000, 5030)]
    assert (grown.clusters[:90] == old.clusters).all()
    assert (grown.clusters[90:] < 3).mean() >= 0.8  # blobs 0, 1, 2 are clusters 0, 1, 2; a few outliers may stand apart
    joined = grown.clusters[90:] < 3
    assert (grown.clusters[90:][joined] == new_which[joined]).all()


def test_extend__what_is_like_nothing_known_gets_new_numbers():
    vectors, which = blobs([40, 30, 20, 25])
    known, new = embeddings(vectors[which < 3]), embeddings(vectors[which == 3], first_id=5000)
    old = cluster(known, 3)
    grown = extend(old, known, new)
    assert (grown.clusters[:90] == old.clusters).all()
    assert (grown.clusters[90:] >= 3).all()
    assert set(grown.clusters) == set(range(len(grown.centroids)))


def test_extend__twice_is_once():
    vectors, which = blobs([40, 30, 20])
    known, new = embeddings(vectors[which < 2]), embeddings(vectors[which == 2], first_id=5000)
    once = extend(cluster(known, 2), known, new)
    both = Embeddings(once.keyframe_ids, np.concatenate([known.vectors, new.vectors]), "test")
    twice = extend(once, both, new)
    assert (twice.keyframe_ids == once.keyframe_ids).all()
    assert (twice.clusters == once.clusters).all()


def test_extend__from_nothing_and_by_nothing():
    nothing = embeddings(np.empty((0, 64)))
    vectors, _ = blobs([20, 10])
    some = embeddings(vectors)
    first = extend(cluster(nothing), nothing, some)
    assert (first.clusters == cluster(some).clusters).all()
    assert (extend(first, some, nothing).clusters == first.clusters).all()
    assert len(extend(cluster(nothing), nothing, nothing).clusters) == 0


def test_extend__emptied_number_keeps_no_members_and_attracts_none():
    vectors, which = blobs([30, 20, 10])
    old = cluster(embeddings(vectors), 3)
    kept = which != 1
    known = Embeddings(old.keyframe_ids[kept], vectors[kept], "test")
    grown = extend(old, known, embeddings(vectors[:5], first_id=5000))
    assert grown.centroids[1] == -1
    assert 1 not in grown.clusters
    assert (grown.clusters[:40] == old.clusters[kept]).all()


def test_extend__two_models_never_meet():
    a, b = embeddings(np.eye(3), model="a"), embeddings(np.eye(3), first_id=50, model="b")
    with pytest.raises(ValueError, match="one model, got 'a' and 'b'"):
        extend(cluster(a), a, b)


def clustering(numbers, first_id=1):
    numbers = np.array(numbers, np.int64)
    ids = np.arange(first_id, first_id + len(numbers))
    centroids = np.array([ids[numbers == c][0] for c in range(numbers.max() + 1)], np.int64)
    return Clustering(ids, numbers, centroids, np.ones(len(ids), np.float32))


def test_renumber__same_groups_get_their_old_numbers():
    old, fresh = clustering([0, 0, 1, 1, 2, 2]), clustering([2, 2, 0, 0, 1, 1])
    again = renumber(old, fresh)
    assert again.clusters.tolist() == old.clusters.tolist()
    assert again.centroids.tolist() == old.centroids.tolist()


def test_renumber__a_split_cluster_keeps_its_number_where_most_of_it_is():
    again = renumber(clustering([0, 0, 0, 1, 1]), clustering([1, 1, 0, 2, 2]))
    assert again.clusters.tolist() == [0, 0, 2, 1, 1]
    assert again.centroids.tolist() == [1, 4, 3]


def test_renumber__an_emptied_number_is_never_used_again():
    merged = renumber(clustering([0, 0, 0, 1, 1]), clustering([0, 0, 0, 0, 0]))
    assert merged.clusters.tolist() == [0] * 5
    assert merged.centroids.tolist() == [1, -1]
    split = renumber(merged, clustering([0, 0, 0, 1, 1]))
    assert split.clusters.tolist() == [0, 0, 0, 2, 2]
    assert split.centroids.tolist() == [1, -1, 4]


def test_renumber__nothing_in_common_means_new_numbers():
    again = renumber(clustering([0, 1]), clustering([0, 1], first_id=100))
    assert again.clusters.tolist() == [2, 3]
    assert again.centroids.tolist() == [-1, -1, 100, 101]


def test_renumber__nothing_at_all():
    nothing = cluster(embeddings(np.empty((0, 4))))
    assert renumber(nothing, clustering([0, 1])).clusters.tolist() == [0, 1]
    assert renumber(clustering([0, 1]), nothing).centroids.tolist() == [-1, -1]


def test_renumber__what_is_like_nothing_else_has_no_number():
    fresh = clustering([0, 0, 1, 1, 1])
    fresh = Clustering(fresh.keyframe_ids, np.array([0, -1, 1, 1, -1]), fresh.centroids, fresh.similarity)
    again = renumber(clustering([1, 1, 0, 0, 2]), fresh)
    assert again.clusters.tolist() == [1, -1, 0, 0, -1]
    assert again.centroids.tolist() == [3, 1, -1]


def test_renumber__after_a_refit_numbers_keep_their_content():
    vectors, which = blobs([40, 30, 20])
    old = cluster(embeddings(vectors), 3)
    more, more_which = blobs([5, 50, 100], seed=1)
    everything = embeddings(np.concatenate([vectors, more]))
    again = renumber(old, cluster(everything, 3))
    assert (again.clusters == np.concatenate([which, more_which])).all()
