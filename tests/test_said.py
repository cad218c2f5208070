"""Whose word counts; more of it is tried with the companion in test_companion."""

from __future__ import annotations

from lookalike.labels import LabelRow
from lookalike.said import Said, representatives, settle


def row(keyframe: int, category: str, person: str, annotation: int, at: float) -> LabelRow:
    return LabelRow(keyframe, category, "companion", 1, annotation, person, at)


def test_representatives__first_that_is_left_stands_for_a_leader_that_is_gone() -> None:
    assert representatives([2, 3, 4], {2: 1, 3: 1, 4: 4}) == {2: 2, 3: 2, 4: 4}


def test_settle__last_word_of_each_and_all_must_agree() -> None:
    standing_for = {1: 1, 2: 1, 3: 3}
    rows = [row(1, "Car", "ann", 1, 1.0), row(2, "Bus", "ann", 2, 2.0), row(3, "Car", "ann", 3, 3.0)]
    agreed, disputed = settle(rows, standing_for, ("Car", "Bus"), multiple=False)
    assert agreed == {1: Said(("Bus",), ("ann",), 2, 2.0), 3: Said(("Car",), ("ann",), 3, 3.0)}
    assert disputed == set()
    agreed, disputed = settle([*rows, row(3, "Bus", "bob", 4, 4.0)], standing_for, ("Car", "Bus"), multiple=False)
    assert (set(agreed), disputed) == ({1}, {3})


def test_settle__categories_that_are_no_more_are_left_out() -> None:
    assert settle([row(1, "Tram", "ann", 1, 1.0)], {1: 1}, ("Car",), multiple=False) == ({}, set())
