"""Measures whose values can be reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workers.agreement import Agreement, agree, cosine_distances, match, overlap, separation, silhouette


def numbers(*groups: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(groups, np.int64)


def test_agree__the_same_groups_by_other_numbers() -> None:
    assert agree(numbers(0, 0, 1, 1, 2), numbers(1, 1, 0, 0, 2)) == Agreement(1.0, 1.0, 2, 2)


def test_agree__a_group_in_two_halves_matches_one_of_them() -> None:
    found = agree(numbers(0, 0, 0, 0, 1, 1), numbers(0, 0, 2, 2, 1, 1))
    assert (found.matched, found.of) == (2, 2)
    assert 0 < found.ari < 1
    assert 0 < found.nmi < 1


def test_agree__those_like_nothing_else_are_not_one_group() -> None:
    alone = numbers(0, 0, -1, -1)
    assert agree(alone, numbers(0, 0, 1, 2)).ari == 1
    assert agree(alone, numbers(0, 0, 1, 1)).ari < 1
    assert agree(numbers(-1, -1), numbers(-1, -1)) == Agreement(1.0, 1.0, 0, 0)


def test_agree__of_two_sets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"same keyframes, got \(2,\) and \(3,\)"):
        agree(numbers(0, 1), numbers(0, 1, 2))


def test_match__shares_as_much_as_possible_in_all() -> None:
    # each would like 0 best; 1 and 1 share one, so that 0 and 0 keep three
    assert match(numbers(0, 0, 0, 1, 1, 1), numbers(0, 0, 0, 0, 0, 1)) == [(0, 0), (1, 1)]
    assert match(numbers(0, 1), numbers(-1, -1)) == []


def test_overlap__jaccard_of_the_best_counterpart() -> None:
    found, best = overlap(numbers(0, 0, 0, 1, 2), numbers(1, 1, 0, 0, -1))
    assert found.tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert best.tolist() == [1, 0, -1]


def test_separation__of_two_directions_is_one_and_of_a_mixture_is_not() -> None:
    points = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
    assert separation(points, numbers(0, 0, 0, 0, 1, 1, 1, 1)) == pytest.approx(1)
    assert separation(points, numbers(0, 1, 0, 1, 0, 1, 0, 1)) < 0
    assert separation(points, numbers(0, 0, 0, 0, 0, 0, 0, 0)) == 0
    assert separation(points, numbers(0, 0, 0, -1, 1, 1, 1, -1)) == pytest.approx(1)


def test_silhouette__is_nothing_where_it_is_undefined() -> None:
    assert silhouette(cosine_distances(np.eye(3, dtype=np.float32)), numbers(0, 1, 2)) == 0


def test_agree__a_pair_torn_apart_has_no_counterpart() -> None:
    found = agree(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 2, 2, 2]))
    assert (found.matched, found.of) == (1, 1)
