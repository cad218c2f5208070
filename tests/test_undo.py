"""Undoing a propagation, in the ledger."""

from __future__ import annotations

from collections import Counter

import pytest
from click.testing import CliRunner

from lookalike.cli import commands
from lookalike.companion import ask
from lookalike.errors import SetupError
from lookalike.labels import LabelRow, Proposal
from lookalike.records import keyframe_id
from lookalike.schema import work
from lookalike.store import Project, Store
from lookalike.undo import undo

PROJECT = "7.2026"
A, B, C = keyframe_id(1, 0), keyframe_id(1, 50), keyframe_id(1, 90)


@pytest.fixture
def ledger(store: Store) -> Store:
    store.put_project(Project(PROJECT, 7, "Cats", "<View/>"))
    store.add_videos(PROJECT, [(1, "/data/1.mp4", {})])
    return store


def run(store: Store, guesses: dict[int, str], said: dict[int, tuple[str, ...]] | None = None) -> int:
    proposals = [Proposal(keyframe, category, 0.97, (C,), "proposed") for keyframe, category in guesses.items()]
    with store.labels.begin() as connection:
        made = store.labels.put_run(connection, PROJECT, proposals, said or {})
    assert made is not None
    return made.id


def proposed(store: Store) -> dict[int, str]:
    return {p.keyframe: p.category for p in store.labels.proposals(PROJECT, "proposed")}


def test_undo__withdraws_the_run_and_may_be_undone(ledger: Store) -> None:
    first = run(ledger, {A: "Cat", B: "Cat"})
    undone = undo(ledger, first)
    assert proposed(ledger) == {}
    assert (undone.withdrawn, undone.restored, undone.left) == (Counter(Cat=2), Counter(), 0)
    assert ledger.labels.withdrawn(PROJECT) == {(A, "Cat"), (B, "Cat")}
    assert [row.kind for row in ledger.ledger.rows(work.c.kind == "propagate")] == ["propagate"]
    assert undone.run is not None
    assert undone.run.undoes == first
    again = undo(ledger, undone.run.id)
    assert proposed(ledger) == {A: "Cat", B: "Cat"}
    assert again.restored == Counter(Cat=2)
    assert ledger.labels.withdrawn(PROJECT) == set()


def test_undo__brings_back_what_the_run_had_replaced(ledger: Store) -> None:
    run(ledger, {A: "Cat", B: "Cat"})
    second = run(ledger, {A: "Dog", B: "Cat"})
    undone = undo(ledger, second)
    assert proposed(ledger) == {A: "Cat", B: "Cat"}
    assert (undone.withdrawn, undone.restored) == (Counter(Dog=1), Counter(Cat=1))
    assert ledger.labels.proposals(PROJECT)[0].score == 0.97
    assert [(p.keyframe, p.category) for p in ledger.labels.brought_back(PROJECT)] == [(A, "Cat")]


def test_undo__leaves_alone_what_was_labelled_or_changed_since(ledger: Store) -> None:
    first = run(ledger, {A: "Cat", B: "Cat", C: "Cat"})
    ledger.labels.put_labels(PROJECT, "companion", {5: "t"}, [LabelRow(A, "Cat", "companion", 5, 1, "a@b", 1.0)])
    run(ledger, {B: "Dog", C: "Cat"}, {A: ("Cat",)})
    undone = undo(ledger, first)
    assert proposed(ledger) == {B: "Dog"}
    assert (undone.withdrawn, undone.left) == (Counter(Cat=1), 2)
    assert [row.category for row in ledger.labels.labels(PROJECT)] == ["Cat"]


def test_undo__what_a_later_run_made_again_is_that_runs(ledger: Store) -> None:
    first = run(ledger, {A: "Cat"})
    run(ledger, {B: "Cat"})
    run(ledger, {A: "Cat", B: "Cat"})
    assert undo(ledger, first).run is None
    assert proposed(ledger) == {A: "Cat", B: "Cat"}


def test_undo__of_all_runs_the_newest_first_leaves_nothing(ledger: Store) -> None:
    first = run(ledger, {A: "Cat"})
    second = run(ledger, {A: "Dog", B: "Dog"})
    third = run(ledger, {A: "Cat", B: "Dog", C: "Cat"})
    assert [undo(ledger, number).left for number in (third, second, first)] == [0, 0, 0]
    assert proposed(ledger) == {}


def test_undo__of_an_undoing_lets_the_run_be_undone_again(ledger: Store) -> None:
    first = run(ledger, {A: "Cat"})
    second = run(ledger, {A: "Dog"})
    undoing = undo(ledger, second).run
    assert undoing is not None
    assert undo(ledger, undoing.id).restored == Counter(Dog=1)
    assert undo(ledger, first).left == 1, "the second stands again"
    assert [undo(ledger, number).left for number in (second, first)] == [0, 0]
    assert proposed(ledger) == {}


def test_undo__of_an_undoing_of_an_undoing_lets_the_run_before_be_undone(ledger: Store) -> None:
    first = run(ledger, {A: "Cat"})
    last = run(ledger, {A: "Dog"})
    for _ in range(3):
        undoing = undo(ledger, last).run
        assert undoing is not None
        last = undoing.id
    assert proposed(ledger) == {A: "Cat"}
    assert undo(ledger, first).withdrawn == Counter(Cat=1)
    assert proposed(ledger) == {}


def test_undo__while_a_propagation_is_under_way(ledger: Store) -> None:
    undo(ledger, run(ledger, {A: "Cat"}))
    run(ledger, {A: "Cat", B: "Cat"})
    assert proposed(ledger) == {B: "Cat"}


def test_undo__twice_is_once(ledger: Store) -> None:
    first = run(ledger, {A: "Cat"})
    undo(ledger, first)
    assert undo(ledger, first).run is None


def test_undo__of_no_run_says_so(ledger: Store) -> None:
    with pytest.raises(SetupError, match="there is no run 99"):
        undo(ledger, 99)


def test_undo__the_command_says_what_it_did(ledger: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_STORE_URL", store_url)
    first = run(ledger, {A: "Cat", B: "Cat"})
    said = CliRunner().invoke(commands, ["undo", str(first)])
    assert said.output == "withdrawn: Cat on 2 keyframes\nthis is run 2; 'lookalike undo 2' takes it back\n"
    said = CliRunner().invoke(commands, ["undo", str(first)])
    assert "nothing of run 1 is left to undo" in said.output
    said = CliRunner().invoke(commands, ["status"])
    assert "run 2 undid run 1 just now: 0 keyframes proposed, 2 withdrawn" in said.output


def test_keyframes__asks_for_the_companion_of_the_living_project(ledger: Store) -> None:
    ledger.put_project(Project("7.2027", 7, "Another of the same number", "<View/>"))
    assert ask(ledger, 7) == "7.2027"
    found = ledger.labels.companion("7.2027")
    assert found is not None
    assert found.asked
    assert [row.subject for row in ledger.ledger.rows(work.c.kind == "companion")] == ["7.2027"]
    with pytest.raises(SetupError, match="project 9 is not connected to this backend; connected: 7, 7"):
        ask(ledger, 9)
