"""A project that grows: what joins, what is fitted afresh, and that numbers keep their meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lookalike.records import Clustering, Embeddings, keyframe_id
from workers.regrouping import regroup


def groups(*sizes: int, first_video: int = 1, seed: int = 0) -> Embeddings:
    """Vectors in as many groups far from each other, group by group; a video holds two keyframes."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(8, 32)) * 10
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    vectors = (middles[numbers] + random.normal(size=(len(numbers), 32))).astype(np.float32)
    ids = [keyframe_id(first_video + n // 2, n % 2) for n in range(len(numbers))]
    return Embeddings(np.asarray(ids, np.int64), vectors, "m")


def both(a: Embeddings, b: Embeddings) -> Embeddings:
    return Embeddings(np.concatenate([a.keyframe_ids, b.keyframe_ids]), np.concatenate([a.vectors, b.vectors]), a.model)


def numbers_of(grouped: Clustering, ids: Sequence[int]) -> list[int]:
    number = dict(zip(grouped.keyframe_ids.tolist(), grouped.clusters.tolist(), strict=True))
    return [number[each] for each in ids]


def test_regroup__first_time_fits_all() -> None:
    found = groups(6, 4)
    grouped, fitted = regroup(None, found, at_rest=False, k=2, seed=0)
    assert fitted == 10
    assert grouped.clusters.tolist() == [0] * 6 + [1] * 4


def test_regroup__the_same_again_is_the_same() -> None:
    found = groups(6, 4)
    known = regroup(None, found, at_rest=True, k=2, seed=0)
    again, fitted = regroup(known, found, at_rest=True, k=2, seed=0)
    assert fitted == 10
    for name in ("keyframe_ids", "clusters", "centroids", "similarity"):
        assert np.array_equal(getattr(again, name), getattr(known[0], name)), name


def test_regroup__new_keyframes_join_and_old_ones_keep_their_numbers() -> None:
    old = groups(9, 8, 7, 6)
    known = regroup(None, old, at_rest=False, k=4, seed=0)
    again = np.flatnonzero(old.keyframe_ids == known[0].centroids[3]).repeat(4)  # a whole fit would call them c0000
    new = Embeddings(keyframe_id(50, 0) + np.arange(4), old.vectors[again], "m")
    grouped, fitted = regroup(known, both(old, new), at_rest=False, k=4, seed=0)
    assert fitted == 30
    assert numbers_of(grouped, old.keyframe_ids.tolist()) == known[0].clusters.tolist()
    assert numbers_of(grouped, new.keyframe_ids.tolist()) == [3] * 4


@pytest.mark.parametrize(
    ("more", "at_rest", "refitted"),
    [(4, False, False), (5, False, True), (0, True, False), (1, True, True)],
)
def test_regroup__growth_fits_afresh_sooner_at_rest(more: int, at_rest: bool, refitted: bool) -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    grown = both(old, groups(0, more, first_video=50, seed=1))
    _, fitted = regroup(known, grown, at_rest=at_rest, k=2, seed=0)
    assert fitted == (10 + more if refitted else 10)


def test_regroup__fitted_afresh_the_numbers_keep_their_meaning() -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    grown = both(old, groups(0, 10, first_video=50, seed=1))  # the second group is the largest now
    grouped, fitted = regroup(known, grown, at_rest=True, k=2, seed=0)
    assert fitted == 20
    assert numbers_of(grouped, grown.keyframe_ids.tolist()) == [0] * 6 + [1] * 14


def test_regroup__removed_videos_leave() -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    left = Embeddings(old.keyframe_ids[:6], old.vectors[:6], "m")
    grouped, fitted = regroup(known, left, at_rest=True, k=2, seed=0)
    assert (grouped.keyframe_ids.tolist(), fitted) == (left.keyframe_ids.tolist(), 10)
    assert grouped.clusters.tolist() == [0] * 6
    assert grouped.centroids[1] == -1  # nothing else is ever called c0001
    none = Embeddings(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), "m")
    emptied, _ = regroup((grouped, fitted), none, at_rest=True, k=2, seed=0)
    assert len(emptied.keyframe_ids) == 0


def test_regroup__removed_and_added_at_once() -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    left = Embeddings(old.keyframe_ids[2:], old.vectors[2:], "m")
    now = both(left, groups(1, 1, first_video=50, seed=1))
    grouped, fitted = regroup(known, now, at_rest=True, k=2, seed=0)
    assert fitted == 10
    assert sorted(grouped.keyframe_ids.tolist()) == sorted(now.keyframe_ids.tolist())
    assert numbers_of(grouped, left.keyframe_ids.tolist()) == [0] * 4 + [1] * 4
    assert set(grouped.centroids.tolist()) <= set(now.keyframe_ids.tolist())


@pytest.mark.parametrize("group", [0, 1])
def test_regroup__a_cluster_whose_centroid_was_removed_gets_another(group: int) -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    keep = old.keyframe_ids != known[0].centroids[group]
    left = Embeddings(old.keyframe_ids[keep], old.vectors[keep], "m")
    grouped, _ = regroup(known, left, at_rest=True, k=2, seed=0)
    members = grouped.keyframe_ids[grouped.clusters == group].tolist()
    assert grouped.centroids[group] in members


def test_regroup__by_another_method_numbers_keep_their_meaning() -> None:
    old = groups(9, 8, 7)
    known = regroup(None, old, at_rest=True, k=3, seed=0)
    again, fitted = regroup(known, old, at_rest=True, k=3, seed=0, method="ward", afresh=True)
    assert fitted == 24
    assert again.clusters.tolist() == known[0].clusters.tolist()
