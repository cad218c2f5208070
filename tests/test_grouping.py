"""Groupings as records, and a tree that is cut, split and kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, ward

from lookalike.grouping import Proposal, Tree, Tried, by_size, clustering_of, cut, divide, middles
from lookalike.records import Embeddings
from tests.test_clustering import blobs, embeddings, same_groups
from workers.clustering import tree


def small_tree() -> Tree:
    """Keyframes 10 and 11 are near each other, so are 12 and 13; 14 is nearer to the latter."""
    points = np.array([[1, 0], [0.98, 0.2], [0, 1], [0.2, 0.98], [-0.6, 0.8]], np.float32)
    return Tree(
        np.arange(10, 15),
        np.arange(5),
        np.array([[0, 1], [2, 3], [4, 6], [5, 7]]),
        np.array([0.2, 0.2, 0.9, 1.5], np.float32),
        points,
    )


def test_cut__higher_and_lower() -> None:
    grown = small_tree()
    assert cut(grown, 1).clusters.tolist() == [0] * 5
    assert cut(grown, 2).clusters.tolist() == [1, 1, 0, 0, 0]
    assert cut(grown, 3).clusters.tolist() == [0, 0, 1, 1, 2]
    assert sorted(cut(grown, 99).clusters.tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cut(grown, 0)


def test_cut__centroids_and_similarities_are_those_of_its_groups() -> None:
    grouped = cut(small_tree(), 2)
    assert grouped.centroids.tolist() == [12, 10]
    assert grouped.similarity[0] == pytest.approx(np.cos(np.arctan2(0.2, 0.98) / 2), abs=1e-3)


@pytest.mark.parametrize("k", [2, 5, 17])
def test_cut__is_wards_own(k: int) -> None:
    vectors, _ = blobs([40, 30, 20, 10], spread=1.0)
    grown = tree(embeddings(vectors))
    true = fcluster(ward(grown.points.astype(float)), k, "maxclust")
    assert same_groups(cut(grown, k).clusters, true)
    assert np.allclose(grown.heights, ward(grown.points.astype(float))[:, 2], atol=1e-4)


def test_cut__each_cut_divides_the_one_above() -> None:
    vectors, _ = blobs([40, 30, 20, 10], spread=1.5)
    grown = tree(embeddings(vectors))
    for k in range(2, 12):
        above, below = cut(grown, k - 1).clusters, cut(grown, k).clusters
        assert len(np.unique(np.stack([above, below]), axis=1).T) == k


def test_divide__one_cluster_alone() -> None:
    grown = small_tree()
    assert divide(grown, np.array([14, 12, 13])).tolist() == [1, 0, 0]
    assert divide(grown, np.array([14, 12, 13]), 3).tolist() == [0, 1, 2]
    assert divide(grown, np.array([12, 10])).tolist() == [0, 1]
    assert divide(grown, np.array([12])).tolist() == [0]
    assert divide(grown, np.array([], np.int64)).tolist() == []


def test_divide__equal_keyframes_are_never_parted() -> None:
    grown = tree(embeddings(np.repeat(np.random.default_rng(0).normal(size=(3, 8)), 4, axis=0)))
    assert cut(grown, 12).clusters.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert divide(grown, grown.keyframe_ids[:4]).tolist() == [0] * 4


def test_divide__what_is_younger_than_the_tree_is_told_apart() -> None:
    assert divide(small_tree(), np.array([10, 99, 12, 5])).tolist() == [0, -1, 1, -1]
    nothing = tree(embeddings(np.empty((0, 4))))
    assert divide(nothing, np.array([1, 2])).tolist() == [-1, -1]


def test_divide__groups_as_leaves_are_never_divided() -> None:
    grown = Tree(np.arange(4), np.array([0, 0, 1, 1]), np.array([[0, 1]]), np.ones(1, np.float32), np.eye(4))
    assert divide(grown, np.arange(4), 4).tolist() == [0, 0, 1, 1]


def test_tree__kept_and_read_again() -> None:
    vectors, _ = blobs([12, 9], spread=1.0)
    grown = tree(embeddings(vectors))
    again = Tree.unpack(grown.pack())
    assert np.allclose(again.points, grown.points, atol=1e-3)
    for name in ("keyframe_ids", "leaves", "merges", "heights"):
        assert np.array_equal(getattr(again, name), getattr(grown, name)), name
    with pytest.raises(ValueError, match="no tree"):
        Tree.unpack(b"PK\x03\x04 something else")


def test_tree__that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"merges must be \(1, 2\)"):
        Tree(np.arange(2), np.arange(2), np.zeros((1, 3), np.int64), np.ones(1, np.float32), np.eye(2))
    with pytest.raises(ValueError, match="leaves must be"):
        Tree(np.arange(2), np.array([0, 2]), np.array([[0, 1]]), np.ones(1, np.float32), np.eye(2))


def test_proposal__kept_and_read_again() -> None:
    proposal = Proposal(7, (Tried(2, 0.1, 0.2, 0.3), Tried(7, 0.4, 0.5, 0.6)), "because")
    assert Proposal.unpack(proposal.pack()) == proposal


def test_clustering_of__what_is_like_nothing_else_stays_out() -> None:
    points = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 0]], np.float32)
    grouped = clustering_of(np.array([5, 6, 7, 8]), np.array([0, 0, -1, -1]), points)
    assert grouped.clusters.tolist() == [0, 0, -1, -1]
    assert grouped.centroids.tolist() == [5]
    assert grouped.similarity[2:].tolist() == [0, 0]
    assert (grouped.similarity[:2] > 0.99).all()


def test_middles__of_empty_numbers_are_nothing() -> None:
    found = middles(np.array([[2, 0], [0, 3], [0, 1]], np.float32), np.array([0, 2, 2]), 4)
    assert found.tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]


def test_by_size__keeps_those_that_are_in_no_group() -> None:
    assert by_size(np.array([7, -1, 3, 3, -1, 9])).tolist() == [1, -1, 0, 0, -1, 2]


def test_tree__same_input_same_tree() -> None:
    vectors, _ = blobs([30, 30], spread=2.0)
    given = Embeddings(np.arange(60), vectors, "m")
    assert np.array_equal(tree(given).merges, tree(given).merges)
