from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from lookalike.records import Embeddings, Label
from workers import propagation
from workers.propagation import Outcome, Propagation, add, build_graph, influence, narrow, propagate, reached, rows_of

CATEGORIES = ["cat", "dog", "bird", "fish"]


def blobs(per: int = 30, apart: float = 2.0, seed: int = 0, kinds: int = 4) -> tuple[Embeddings, list[str]]:
    """`kinds` groups of `per` keyframes, each around its own middle in 32 dimensions; ids start at 100."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, apart, (kinds, 32))
    vectors = np.concatenate([middle + rng.normal(0, 1, (per, 32)) for middle in middles]).astype(np.float32)
    return Embeddings(np.arange(100, 100 + len(vectors)), vectors, "test"), [
        CATEGORIES[i // per] for i in range(kinds * per)
    ]


def labels_of(truth: list[str], rows: list[int], first_annotation: int = 1) -> list[Label]:
    return [Label(100 + row, truth[row], first_annotation + i) for i, row in enumerate(rows)]


def right_share(run: Propagation, truth: list[str]) -> float:
    return float(np.mean([truth[p.keyframe_id - 100] == p.category for p in run.proposed]))


def test_propagate__lookalikes_get_the_label() -> None:
    embeddings, truth = blobs()
    run = propagate(embeddings, labels_of(truth, [0, 1, 30, 31, 60, 61, 90, 91]), CATEGORIES, run_id=7)
    assert run.coverage > 0.8
    assert right_share(run, truth) == 1
    assert {p.run_id for p in run.proposed} == {7}
    assert all(0 <= p.score <= 1 for p in run.proposed)


def test_propagate__every_unlabelled_keyframe_is_proposed_or_open_and_labelled_ones_never() -> None:
    embeddings, truth = blobs(apart=0.5)
    labelled = [0, 1, 30, 31, 60, 90]
    run = propagate(embeddings, labels_of(truth, labelled), CATEGORIES)
    guessed = [p.keyframe_id for p in run.proposed] + [g.keyframe_id for g in run.open]
    assert sorted(guessed) == sorted(set(range(100, 220)) - {100 + row for row in labelled})
    assert [p.score for p in run.proposed] == sorted((p.score for p in run.proposed), reverse=True)
    assert run.score[labelled].tolist() == [1] * len(labelled)


def test_propagate__reason_is_the_nearest_label_of_that_category() -> None:
    embeddings, truth = blobs()
    vectors = embeddings.vectors.copy()
    vectors[5] = vectors[1] + 0.01  # keyframe 105 is nearly the labelled 101
    embeddings = Embeddings(embeddings.keyframe_ids, vectors, "test")
    run = propagate(embeddings, labels_of(truth, [0, 1, 30, 31, 60, 61, 90, 91]), CATEGORIES)
    by_id = {p.keyframe_id: p for p in run.proposed}
    assert by_id[105].nearest[0] == 101
    for proposed in run.proposed:
        assert 1 <= len(proposed.nearest) <= 3
        assert {truth[i - 100] for i in proposed.nearest} == {proposed.category}


def test_propagate__annotators_who_disagree_are_a_conflict_and_give_nothing() -> None:
    embeddings, truth = blobs()
    agreed = labels_of(truth, [0, 1, 30, 31])
    disputed = [Label(160, "bird", 50), Label(160, "fish", 51)]
    run = propagate(embeddings, agreed + disputed, CATEGORIES)
    assert 160 in run.conflict
    assert 160 not in {p.keyframe_id for p in run.proposed} | {g.keyframe_id for g in run.open}
    assert not {"bird", "fish"} & {p.category for p in run.proposed}


def test_propagate__majority_of_annotators_counts() -> None:
    embeddings, truth = blobs()
    votes = [Label(160, "bird", 50), Label(160, "bird", 51), Label(160, "fish", 52)]
    run = propagate(embeddings, labels_of(truth, [0, 1, 30, 31, 61, 90, 91]) + votes, CATEGORIES)
    assert 160 not in run.conflict
    assert any(160 in p.nearest and p.category == "bird" for p in run.proposed)


def test_propagate__conflict_is_left_alone() -> None:
    embeddings, truth = blobs()
    vectors = embeddings.vectors.copy()
    vectors[10] = vectors[11] = vectors[12] = vectors[0]  # four pictures that are the same, two labels
    embeddings = Embeddings(embeddings.keyframe_ids, vectors, "test")
    labels = [*labels_of(truth, [0, 1, 30, 31, 60, 61, 90, 91]), Label(110, "dog", 99)]
    run = propagate(embeddings, labels, CATEGORIES)
    assert {111, 112} <= set(run.conflict)
    assert not {111, 112} & {p.keyframe_id for p in run.proposed}


def test_propagate__labels_that_come_twice_or_of_things_gone_change_nothing() -> None:
    embeddings, truth = blobs()
    labels = labels_of(truth, [0, 1, 30, 31, 60, 61])
    gone = [Label(99999, "cat", 70), Label(195, "renamed away", 71)]
    graph = build_graph(embeddings)
    once = propagate(None, labels, CATEGORIES, graph=graph)
    again = propagate(None, labels + labels[:3] + gone, CATEGORIES, graph=graph)
    assert again.proposed == once.proposed
    assert again.open == once.open


def test_propagate__no_labels_no_guesses() -> None:
    embeddings, _ = blobs()
    run = propagate(embeddings, [], CATEGORIES)
    assert run.proposed == run.open == run.conflict == ()
    assert run.coverage == 0


def test_propagate__a_higher_promise_proposes_less() -> None:
    embeddings, truth = blobs(apart=0.8)
    graph, labels = build_graph(embeddings), labels_of(truth, [0, 1, 2, 3, 30, 31, 32, 33, 60, 61, 62, 90, 91, 92])
    counts = [len(propagate(None, labels, CATEGORIES, graph=graph, promise=p).proposed) for p in (0.6, 0.9, 0.99)]
    assert counts[0] > counts[2]
    assert counts == sorted(counts, reverse=True)
    run = propagate(None, labels, CATEGORIES, graph=graph, promise=0.6)
    assert run.precision_low <= run.precision <= run.precision_high
    assert run.precision >= 0.6


def test_propagate__wrong_proposals_make_it_careful_and_right_ones_sure() -> None:
    embeddings, truth = blobs(apart=1.0)
    graph, labels = build_graph(embeddings), labels_of(truth, [0, 1, 30, 31, 60, 61, 90, 91])
    bare = propagate(None, labels, CATEGORIES, graph=graph)

    def outcomes(right: bool) -> list[Outcome]:
        return [Outcome(100 + i, truth[i], 0.9, right) for i in range(30)]

    careful = propagate(None, labels, CATEGORIES, graph=graph, outcomes=outcomes(False))
    sure = propagate(None, labels, CATEGORIES, graph=graph, outcomes=outcomes(True))
    assert careful.score.mean() < bare.score.mean() < sure.score.mean()
    assert len(careful.proposed) < len(sure.proposed)


def test_propagate__the_first_of_a_category_says_nothing_against_the_others() -> None:
    embeddings, truth = blobs()
    graph, labels = build_graph(embeddings), labels_of(truth, [0, 30, 60, 90, 91])
    bare = propagate(None, labels, CATEGORIES, graph=graph)

    def with_wrong(row: int) -> Propagation:
        outcomes = [Outcome(100 + row, truth[0], 0.97, False)]
        return propagate(None, labels, CATEGORIES, graph=graph, outcomes=outcomes)

    assert with_wrong(90).score.tolist() == bare.score.tolist()
    assert with_wrong(91).score.mean() < bare.score.mean()


def test_propagate__keyframes_may_have_several_categories() -> None:
    rng = np.random.default_rng(0)
    has = rng.random((240, 3)) < 0.5
    vectors = np.concatenate([has * 5.0, np.zeros((240, 13))], axis=1) + rng.normal(0, 0.6, (240, 16))
    embeddings = Embeddings(np.arange(240), vectors.astype(np.float32), "test")
    names = ["indoor", "people", "night"]
    shown = [row for row in range(60) if has[row].any()]
    labels = [Label(row, names[c], row) for row in shown for c in np.flatnonzero(has[row])]
    run = propagate(embeddings, labels, names, multiple=True, promise=0.9)
    right = [has[p.keyframe_id, names.index(p.category)] for p in run.proposed]
    assert np.mean(right) > 0.9
    several = {p.keyframe_id for p in run.proposed}
    assert len(run.proposed) > len(several) > 80
    assert not several & set(shown)


def test_influence__is_the_series_of_label_spreading() -> None:
    embeddings, _ = blobs(per=10)
    graph = build_graph(embeddings, k=5)
    kernel = 0.1 * np.linalg.inv(np.eye(40) - 0.9 * graph.spreading.toarray())
    assert np.abs(influence(graph, [3, 17]).toarray() - kernel[[3, 17]]).max() < 2e-3
    assert np.abs(graph.self_influence / np.diag(kernel) - 1).mean() < 0.15


def test_reached__is_the_sum_of_all_influence() -> None:
    embeddings, _ = blobs(per=10)
    graph = build_graph(embeddings, k=5)
    kernel = 0.1 * np.linalg.inv(np.eye(40) - 0.9 * graph.spreading.toarray())
    relative = kernel / np.sqrt(np.outer(graph.self_influence, graph.self_influence))
    weights = np.arange(40) / 40
    assert reached(graph, weights) == pytest.approx(relative @ weights, rel=0.01)


def test_propagate__categories_that_nobody_has_named_yet_make_it_careful() -> None:
    embeddings, truth = blobs()
    graph, labels = build_graph(embeddings), labels_of(truth, [0, 30, 60, 90])
    listed = propagate(None, labels, CATEGORIES, graph=graph)
    unseen = propagate(None, labels, [*CATEGORIES, "frog", "horse"], graph=graph)
    assert unseen.score[5] < listed.score[5]
    # once the labels bring nothing new, it makes no difference what else is listed
    more = labels + labels_of(truth, list(range(1, 11)), 50)
    assert propagate(None, more, [*CATEGORIES, "frog"], graph=graph).score[40] == pytest.approx(
        propagate(None, more, CATEGORIES, graph=graph).score[40], abs=1e-3
    )


def test_narrow__says_of_keyframes_with_their_neighbours_what_the_whole_graph_says() -> None:
    embeddings, truth = blobs()
    graph, labels = build_graph(embeddings, 3), labels_of(truth, [0, 1, 30, 31, 60, 61, 90, 91])
    givers = rows_of(graph, [label.keyframe_id for label in labels])
    assert givers.tolist() == [0, 1, 30, 31, 60, 61, 90, 91]
    asked = np.arange(2, 120, 10)
    part = narrow(graph, np.union1d(givers, np.r_[asked, graph.neighbours[asked].ravel()]), givers)
    whole, some = (propagate(None, labels, CATEGORIES, graph=g) for g in (graph, part))
    guess = {g.keyframe_id: g.category for g in (*whole.proposed, *whole.open)}
    assert len(some.keyframe_ids) == len(part.features) < 60
    assert all(guess[g.keyframe_id] == g.category for g in (*some.proposed, *some.open))
    among = rows_of(part, graph.keyframe_ids[asked].tolist())
    assert some.score[among] == pytest.approx(whole.score[asked], abs=0.02)  # the means are those of the part


def test_propagate__neighbours_that_are_guessed_otherwise_make_it_careful() -> None:
    embeddings, truth = blobs()
    graph, labels = build_graph(embeddings), labels_of(truth, [0, 1, 30, 31, 60, 61, 90, 91])
    before = propagate(None, labels, CATEGORIES, graph=graph)
    astray = graph.neighbours.copy()
    astray[5] = np.arange(40, 50)  # dogs
    after = propagate(None, labels, CATEGORIES, graph=replace(graph, neighbours=astray))
    assert after.score[5] < before.score[5] - 0.1
    assert after.score[6] == pytest.approx(before.score[6])


def test_propagate__a_category_that_few_labels_and_many_guesses_name_makes_it_careful() -> None:
    embeddings, truth = blobs(per=40)
    lumped = ["cat" if name != "fish" else "fish" for name in truth]  # as if nobody could tell them apart
    graph = build_graph(embeddings)
    even = propagate(None, labels_of(truth, [0, 40, 80, 120]), CATEGORIES[:4], graph=graph)
    crowded = propagate(None, labels_of(lumped, [0, 120]), ["cat", "fish"], graph=graph)
    assert crowded.score[5] < even.score[5]


def test_propagate__labels_that_follow_no_looks_promise_nothing() -> None:
    embeddings, truth = blobs(per=60, apart=1.0)
    order = np.random.default_rng(0).permutation(240)[:60].tolist()
    chance = np.random.default_rng(1).choice(CATEGORIES, 240).tolist()
    graph = build_graph(embeddings)
    looks, none = (propagate(None, labels_of(named, order), CATEGORIES, graph=graph) for named in (truth, chance))
    assert looks.coverage > 0.9
    assert none.coverage < 0.1
    assert none.score[~none.labelled].mean() < 0.5


def test_build_graph__of_many_keyframes_finds_nearly_all_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 2, (60, 32))[rng.integers(0, 60, 3000)] + rng.normal(0, 1, (3000, 32))
    embeddings = Embeddings(np.arange(3000), vectors.astype(np.float32), "test")
    exact = build_graph(embeddings)
    monkeypatch.setattr(propagation, "_COMPARED_WITH_ALL", 1000)
    monkeypatch.setattr(propagation, "_FIT_SAMPLE", 2999)  # as good as all
    quick = build_graph(embeddings)
    found = [len({*a} & {*b}) / 10 for a, b in zip(exact.neighbours, quick.neighbours, strict=True)]
    assert np.mean(found) > 0.95
    assert not (quick.neighbours == np.arange(3000)[:, None]).any()
    assert (np.diff(quick.similarity, axis=1) <= 0).all()


def test_build_graph__of_many_equal_keyframes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "_COMPARED_WITH_ALL", 100)
    monkeypatch.setattr(propagation, "_FIT_SAMPLE", 200)
    vectors = np.concatenate([np.ones((290, 8)), np.random.default_rng(0).normal(0, 1, (10, 8))]).astype(np.float32)
    graph = build_graph(Embeddings(np.arange(300), vectors, "test"))
    assert graph.neighbours.shape == (300, 10)
    assert graph.neighbours.min() >= 0
    assert np.isfinite(graph.similarity).all()


def test_add__to_a_small_graph_is_a_fresh_one() -> None:
    embeddings, _ = blobs()
    part = Embeddings(embeddings.keyframe_ids[:60], embeddings.vectors[:60], "test")
    grown, fresh = add(build_graph(part), embeddings), build_graph(embeddings)
    assert grown.features.tolist() == fresh.features.tolist()


def test_add__new_keyframes_get_the_guess_that_a_fresh_graph_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.propagation._AXES", 8)  # so that 90 are enough for a basis
    embeddings, truth = blobs()
    order = np.random.default_rng(1).permutation(120)
    part = Embeddings(embeddings.keyframe_ids[order[:90]], embeddings.vectors[order[:90]], "test")
    grown = add(build_graph(part), embeddings)
    labels = labels_of(truth, [int(row) for row in order[:16]])
    run = propagate(None, labels, CATEGORIES, graph=grown)
    assert set(grown.keyframe_ids.tolist()) == set(range(100, 220))
    assert {100 + int(row) for row in order[90:]} & {p.keyframe_id for p in run.proposed}
    assert right_share(run, truth) == 1


def test_add__nothing_new_is_the_same_graph_and_gone_keyframes_leave() -> None:
    embeddings, _ = blobs(per=10)
    graph = build_graph(embeddings)
    assert add(graph, embeddings) is graph
    fewer = Embeddings(embeddings.keyframe_ids[5:], embeddings.vectors[5:], "test")
    assert add(graph, fewer).keyframe_ids.tolist() == fewer.keyframe_ids.tolist()
    with pytest.raises(ValueError, match="a graph is of one model"):
        add(graph, Embeddings(embeddings.keyframe_ids, embeddings.vectors, "other"))


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_propagate__few_keyframes(n: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    run = propagate(Embeddings(np.arange(n), vectors, "test"), [Label(0, "cat", 1)], CATEGORIES)
    assert len(run.proposed) + len(run.open) == max(0, n - 1)


def test_propagate__keyframes_that_are_all_equal() -> None:
    vectors = np.ones((40, 8), np.float32)
    run = propagate(Embeddings(np.arange(40), vectors, "test"), [Label(0, "cat", 1), Label(1, "cat", 2)], CATEGORIES)
    assert {g.category for g in run.open} | {p.category for p in run.proposed} == {"cat"}
    assert np.isfinite(run.score).all()


def test_propagate__says_what_is_wrong() -> None:
    embeddings, _ = blobs(per=3)
    with pytest.raises(ValueError, match=r"promise must be at least 0.5 and below 1, got 95"):
        propagate(embeddings, [], CATEGORIES, promise=95)
    with pytest.raises(ValueError, match="give embeddings or a graph"):
        propagate(None, [], CATEGORIES)
    twice = Embeddings(np.array([1, 1, 2]), np.eye(3, dtype=np.float32), "test")
    with pytest.raises(ValueError, match="1 that come twice"):
        build_graph(twice)


def test_propagate__one_more_label_is_quick() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 40, 4000)
    vectors = (rng.normal(0, 1, (40, 64))[kind] * 2 + rng.normal(0, 1, (4000, 64))).astype(np.float32)
    graph = build_graph(Embeddings(np.arange(4000), vectors, "test"))
    names = [str(c) for c in range(40)]
    labels = [Label(row, names[kind[row]], row) for row in range(200)]
    propagate(None, labels[:-1], names, graph=graph)
    started = time.process_time()
    propagate(None, labels, names, graph=graph)
    assert time.process_time() - started < 1.5  # about 0.1 s on one idle core
