"""`lookalike runs`, as a person and as a script see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike.cli import commands
from lookalike.labels import Proposal
from lookalike.records import keyframe_id
from lookalike.runs import ago
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store

PROJECT = "7.2026"
A, B, C = keyframe_id(1, 0), keyframe_id(1, 50), keyframe_id(2, 90)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three runs: two cats; one of them a dog and another dog; no dog any more."""
    opened = open_store(Settings(data_dir=tmp_path).sqlalchemy_url)
    opened.put_project(Project(PROJECT, 7, "Cats", "<View/>"))
    opened.add_videos(PROJECT, [(11, "/data/1.mp4", {}), (12, "/data/2.mp4", {})])
    for guesses in ({A: "Cat", B: "Cat"}, {A: "Cat", B: "Dog", C: "Dog"}, {A: "Cat"}):
        proposals = [Proposal(keyframe, category, 0.97, (), "proposed") for keyframe, category in guesses.items()]
        with opened.labels.begin() as connection:
            opened.labels.put_run(connection, PROJECT, proposals, {})
    yield opened
    opened.close()


def runs(data_dir: Path, *arguments: str) -> str:
    found = CliRunner().invoke(commands, ["runs", "--data-dir", str(data_dir), *arguments], catch_exceptions=False)
    return found.stdout


def test_runs__the_last_ones_first(store: Store, tmp_path: Path) -> None:
    assert runs(tmp_path, "--project", "7").splitlines() == [
        "project 7 'Cats':",
        "  run 3 propagated just now: 0 keyframes proposed, 2 withdrawn",
        "  run 2 propagated just now: 2 keyframes proposed, 0 withdrawn",
        "  run 1 propagated just now: 2 keyframes proposed, 0 withdrawn",
    ]


def test_runs__what_one_changed(store: Store, tmp_path: Path) -> None:
    assert runs(tmp_path, "2").splitlines() == [
        "run 2 propagated just now: 2 keyframes proposed, 0 withdrawn",
        "  nothing -> Dog: 1 keyframe, in task 12",
        "  Cat -> Dog: 1 keyframe, in task 11",
    ]


def test_runs__the_difference_of_two(store: Store, tmp_path: Path) -> None:
    assert runs(tmp_path, "--diff", "1", "3").splitlines() == [
        "from run 1 to run 3:",
        "  Cat -> nothing: 1 keyframe, in task 11",
    ]
    assert runs(tmp_path, "--diff", "3", "1").splitlines()[1:] == ["  nothing -> Cat: 1 keyframe, in task 11"]
    assert runs(tmp_path, "--diff", "2", "2").splitlines()[1:] == ["  nothing"]


def test_runs__json_names_every_keyframe(store: Store, tmp_path: Path) -> None:
    found = json.loads(runs(tmp_path, "2", "--json"))
    assert found["run"] == 2
    assert found["keyframes"] == [
        {"keyframe": B, "task": 11, "before": ["Cat"], "after": ["Dog"]},
        {"keyframe": C, "task": 12, "before": [], "after": ["Dog"]},
    ]
    assert [run["run"] for run in json.loads(runs(tmp_path, "--json"))["projects"][0]["runs"]] == [3, 2, 1]
    assert json.loads(runs(tmp_path, "--diff", "1", "2", "--json"))["counts"] == [
        {"before": [], "after": ["Dog"], "keyframes": 1},
        {"before": ["Cat"], "after": ["Dog"], "keyframes": 1},
    ]


def test_runs__of_a_deleted_video_still_count(store: Store, tmp_path: Path) -> None:
    store.delete_videos(PROJECT, [12])
    assert "  nothing -> Dog: 1 keyframe" in runs(tmp_path, "2").splitlines()


def test_runs__of_no_project(tmp_path: Path) -> None:
    open_store(Settings(data_dir=tmp_path).sqlalchemy_url).close()
    assert runs(tmp_path).startswith("no project yet: connect one")


def test_runs__unknown_ones_say_so(store: Store, tmp_path: Path) -> None:
    for arguments, said in (
        (["9"], "there is no run 9; 'lookalike runs' shows the last ones"),
        (["--diff", "1", "9"], "there is no run 9"),
        (["--project", "8"], "project 8 is not connected to this backend; connected: 7"),
    ):
        found = CliRunner().invoke(commands, ["runs", "--data-dir", str(tmp_path), *arguments])
        assert said in str(found.exception)


def test_runs__of_two_projects_have_no_difference(store: Store, tmp_path: Path) -> None:
    store.put_project(Project("8.2026", 8, "Dogs", "<View/>"))
    store.add_videos("8.2026", [(1, "/data/1.mp4", {})])
    dog = Proposal(keyframe_id(store.videos("8.2026")[0].id, 1), "Dog", 0.97, (), "proposed")
    with store.labels.begin() as connection:
        store.labels.put_run(connection, "8.2026", [dog], {})
    found = CliRunner().invoke(commands, ["runs", "--data-dir", str(tmp_path), "--diff", "1", "4"])
    assert str(found.exception) == f"run 1 is of project {PROJECT}, run 4 of project 8.2026"


@pytest.mark.parametrize(("seconds", "shown"), [(1, "just now"), (90, "2 min ago"), (9e4, "1 d ago")])
def test_ago(seconds: float, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert ago(1e9 - seconds) == shown
