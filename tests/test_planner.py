from __future__ import annotations

import re

import numpy as np
import pytest

from lookalike.records import Embeddings, Label
from workers import planner
from workers.planner import next_to_label, stop_advice
from workers.propagation import Graph, build_graph, propagate, relative_influence

NAMES = ["cat", "dog", "bird", "fish"]


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Groups of 60, 30, 20 and 10 keyframes, well apart; ids are rows."""
    rng = np.random.default_rng(0)
    vectors = (rng.normal(0, 2, (4, 32))[truth_numbers()] + rng.normal(0, 1, (120, 32))).astype(np.float32)
    return build_graph(Embeddings(np.arange(120), vectors, "t"))


def truth_numbers() -> list[int]:
    return [0] * 60 + [1] * 30 + [2] * 20 + [3] * 10


def truth(row: int) -> str:
    return NAMES[truth_numbers()[row]]


def test_next_to_label__covers_all_groups_the_largest_first(graph: Graph) -> None:
    order = next_to_label(graph, None, 8)
    assert truth(order[0]) == "cat"
    assert {truth(row) for row in order} == set(NAMES)
    assert len(set(order)) == 8


def test_next_to_label__is_the_greedy_choice_and_the_same_every_time(graph: Graph) -> None:
    kernel = relative_influence(graph, range(120)).toarray()
    known, best = np.zeros(120), []
    for _ in range(6):
        gains = np.maximum(kernel - known, 0).sum(axis=1)
        best.append(int(gains.argmax()))
        known = np.maximum(known, kernel[best[-1]])
    assert list(next_to_label(graph, None, 6)) == best
    assert next_to_label(graph, None, 6) == next_to_label(graph, None, 6)


def test_next_to_label__goes_where_no_label_reaches(graph: Graph) -> None:
    labels = [Label(row, truth(row), row) for row in (0, 5, 10, 60, 65, 90, 95)]
    run = propagate(None, labels, NAMES, graph=graph)
    order = next_to_label(graph, run, 2)
    assert "fish" in {truth(row) for row in order}
    assert not set(order) & {label.keyframe_id for label in labels}


def test_next_to_label__no_more_than_are_left(graph: Graph) -> None:
    assert sorted(next_to_label(graph, None, 500)) == list(range(120))
    assert next_to_label(graph, None, 0) == ()
    with pytest.raises(ValueError, match="n must be 0 or more, got -1"):
        next_to_label(graph, None, -1)


def test_stop_advice__counts_down_and_says_stop(graph: Graph) -> None:
    order = next_to_label(graph, None, 40)
    few = [Label(row, truth(row), row) for row in order[:3]]
    run = propagate(None, few, NAMES, graph=graph)
    advice = stop_advice(graph, few, NAMES, run)
    assert not advice.stop
    assert advice.more is not None
    assert advice.more > 0
    assert f"label about {advice.more} more centroids to reach 95% on 90% of the keyframes" == advice.text
    many = [Label(row, truth(row), row) for row in order]
    done = stop_advice(graph, many, NAMES, propagate(None, many, NAMES, graph=graph))
    assert done.stop
    assert done.covered >= 0.9
    assert done.text.startswith("stop")


def test_stop_advice__before_the_first_label(graph: Graph) -> None:
    advice = stop_advice(graph, [], NAMES, propagate(None, [], NAMES, graph=graph))
    assert not advice.stop
    assert advice.more is None
    with pytest.raises(ValueError, match="target must be"):
        stop_advice(graph, [], NAMES, propagate(None, [], NAMES, graph=graph), target=90)


def test_stop_advice__a_sample_tells_what_the_whole_would(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(1500) % 12
    vectors = (rng.normal(0, 0.9, (12, 32))[kind] + rng.normal(0, 1, (1500, 32))).astype(np.float32)
    graph, names = build_graph(Embeddings(np.arange(1500), vectors, "t")), [f"kind{k}" for k in range(12)]
    labels = [Label(row, names[kind[row]], row) for row in next_to_label(graph, None, 24)]
    run = propagate(None, labels, names, graph=graph)
    whole = stop_advice(graph, labels, names, run)
    assert whole.more is not None
    monkeypatch.setattr("workers.planner._SAMPLE", 400)
    part = stop_advice(graph, labels, names, run)
    assert part.more is not None
    assert part.more != whole.more, "the sample was not looked at"
    assert 0.7 < part.more / whole.more < 1.4
    assert part.covered == whole.covered
    # it is what the order of next_to_label comes to if the guesses are right
    guess = {g.keyframe_id: g.category for g in run.open} | {p.keyframe_id: p.category for p in run.proposed}
    more = [Label(row, guess[row], -1) for row in next_to_label(graph, run, whole.more)]
    then = propagate(None, [*labels, *more], names, graph=graph)
    assert (then.labelled.sum() + len(then.proposed)) / 1500 == pytest.approx(0.9, abs=0.1)


def test_stop_advice__what_it_took_so_far_tells_how_far_the_trial_is_off() -> None:
    rng = np.random.default_rng(1)
    kind, looks = np.arange(600) % 6, np.arange(600) % 60  # each kind has ten looks: one guesses wrong of most
    vectors = (rng.normal(0, 1.2, (60, 32))[looks] + rng.normal(0, 1, (600, 32))).astype(np.float32)
    graph, names = build_graph(Embeddings(np.arange(600), vectors, "t")), [f"kind{k}" for k in range(6)]
    labels: list[Label] = []
    run = None
    while len(labels) < 30:
        row = next_to_label(graph, run, 1)[0]
        labels.append(Label(row, names[kind[row]], row))
        run = propagate(None, labels, names, graph=graph)
    assert run is not None
    advice = stop_advice(graph, labels, names, run)
    between = re.search(r"about (\d+) more centroids \((\d+) to (\d+)\) to reach 95% on 90%", advice.text)
    assert between, advice.text
    more, least, most = map(int, between.groups())
    assert least < more == advice.more < most <= 570
    assert planner._optimism(graph, labels[:7], names, run, False) == 1, "half of 7 labels tells nothing"


def test_stop_advice__out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    graph = build_graph(Embeddings(np.arange(400), rng.normal(0, 1, (400, 64)).astype(np.float32), "t"))
    labels = [Label(row, NAMES[row % 4], row) for row in range(20)]
    monkeypatch.setattr("workers.planner._TRIED", (4, 16))
    advice = stop_advice(graph, labels, NAMES, propagate(None, labels, NAMES, graph=graph))
    assert advice.more is None
    assert advice.stop == advice.text.startswith("stop: more labels change little")
