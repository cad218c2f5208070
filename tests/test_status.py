"""`lookalike status`, as a person and as a script see it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from lookalike.schema import work
from lookalike.settings import Settings
from lookalike.status import command
from lookalike.store import Project, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Settings(data_dir=tmp_path).sqlalchemy_url)
    yield opened
    opened.close()


@pytest.fixture
def half_done(store: Store) -> Store:
    """Three videos: one waits for a server, one is no video, one is queued."""
    store.put_project(Project("7.2026", 7, "Cats", ""))
    store.add_videos("7.2026", [(task, f"{task}.mp4", {}) for task in (11, 12, 13)])
    for row, what in zip(store.ledger.due(["video"], 2), ("later", "fail"), strict=True):
        claim = store.ledger.claim(row.id, "w", lease_s=60, max_crashes=3)
        assert claim is not None
        if what == "later":
            store.ledger.later(claim, "host.example does not answer")
        else:
            store.ledger.fail(claim, "it has no video in it")
    return store


def status(data_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(command, ["--data-dir", str(data_dir), *options], catch_exceptions=False)


def test_status__says_why(half_done: Store, tmp_path: Path) -> None:
    assert status(tmp_path).output.splitlines() == [
        "project 7 'Cats': 1 failed, 2 queued",
        "  task 12 failed just now: it has no video in it",
        "  task 11 waits (queued): host.example does not answer",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(30, "just now"), (600, "10 min ago"), (7200, "2 h ago"), (2e5, "2 d ago")]
)
def test_status__says_when(half_done: Store, tmp_path: Path, seconds: float, shown: str) -> None:
    with half_done.engine.begin() as connection:
        connection.execute(update(work).values(updated_at=time.time() - seconds))
    assert f"task 12 failed {shown}: " in status(tmp_path).output


def test_status__json(half_done: Store, tmp_path: Path) -> None:
    (project,) = json.loads(status(tmp_path, "--json").stdout)["projects"]
    assert (project["project"], project["title"]) == (7, "Cats")
    assert project["videos"] == {"failed": 1, "queued": 2}
    assert [(row["task"], row["error"]) for row in project["failed"]] == [(12, "it has no video in it")]
    assert [(row["task"], row["url"]) for row in project["waiting"]] == [(11, "11.mp4")]


def test_status__retry(half_done: Store, tmp_path: Path) -> None:
    result = status(tmp_path, "--retry", "--json")
    assert result.stderr == "asked again for 1 row of work\n"
    assert json.loads(result.stdout)["projects"][0]["videos"] == {"queued": 3}
    assert "asked again for 0 rows of work" in status(tmp_path, "--retry").output


def test_status__nothing_yet(store: Store, tmp_path: Path) -> None:
    assert status(tmp_path).output.startswith("no project yet: connect one to the ML backend in Label Studio")
    assert json.loads(status(tmp_path, "--json").stdout) == {"projects": []}
