"""A ledger's rows out of one database and into another: from SQLite to PostgreSQL and back."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from lookalike import migrations
from lookalike.errors import SetupError, StoreError
from lookalike.store import Project, Store, open_engine, open_store
from lookalike.tables import load, snapshot
from tests.services import PostgresServer
from tests.test_migrations import make_first
from tests.test_store import MODEL, PROJECT, add, claim, finish_video, put_clustering


@pytest.fixture(params=[("sqlite", "postgresql"), ("postgresql", "sqlite")], ids="-".join)
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Two empty databases, from one kind to the other."""
    server: PostgresServer = request.getfixturevalue("postgresql")
    url = {"sqlite": f"sqlite:///{tmp_path / 'ledger.sqlite3'}", "postgresql": server.new_database()}
    return url[request.param[0]], url[request.param[1]]


@pytest.fixture
def store_url(urls: tuple[str, str]) -> str:
    return urls[0]


@pytest.fixture
def other_url(urls: tuple[str, str]) -> str:
    return urls[1]


def fill(store: Store) -> None:
    store.put_project(Project(PROJECT, 7, "Käse \N{CHEESE WEDGE}", "<View/>"))
    first, second, last = add(store, 1, 2, 3)
    finish_video(store, first)
    put_clustering(store, {first: {"result": []}})
    store.ledger.fail(claim(store, "video", second), "broken")
    store.delete_videos(PROJECT, [3])
    assert last not in {video.id for video in store.videos(PROJECT)}
    store.ledger.tally("video", "done", "", [("whole", 5000.0)])  # a bucket without an upper bound


def content(url: str) -> dict[str, list[Any]]:
    with snapshot(url) as ledger:
        return {table: sorted(map(repr, ledger.rows(table))) for table in ledger.tables()}


def copy(url: str, other_url: str, **how: Any) -> None:
    with snapshot(url) as ledger:
        rows = {table: list(ledger.rows(table)) for table in ledger.tables()}
        version, numbers = ledger.version, ledger.numbers()
    load(other_url, version, rows, numbers, **{"force": False, **how})


def test_load__brings_back_every_row(store: Store, store_url: str, other_url: str) -> None:
    fill(store)
    copy(store_url, other_url)
    assert content(other_url) == content(store_url)
    with contextlib.closing(open_store(other_url)) as other:
        assert other.load_embeddings(PROJECT, MODEL).vectors.shape == (2, 8)
        gone = max(video.id for video in store.videos(PROJECT)) + 1
        [new] = add(other, 4)
        assert new > gone, "a number is never used again: pictures and keyframe ids are made of it"
        assert other.ledger.retry(PROJECT) == 1
        assert claim(other, "video", new)


def test_load__tables_of_others_in_the_same_database_are_none_of_ours(
    store: Store, store_url: str, other_url: str
) -> None:
    fill(store)
    for url in (store_url, other_url):
        with contextlib.closing(open_store(url)) as one, one.engine.begin() as connection:
            connection.execute(text("CREATE TABLE authtoken (secret TEXT)"))
            connection.execute(text("INSERT INTO authtoken VALUES ('sesame')"))
    assert "authtoken" not in content(store_url)
    copy(store_url, other_url, force=True)
    with contextlib.closing(open_store(other_url)) as other, other.engine.connect() as connection:
        assert connection.execute(text("SELECT secret FROM authtoken")).scalar() == "sesame"


def test_load__refuses_what_is_there_unless_forced(store: Store, store_url: str, other_url: str) -> None:
    fill(store)
    with contextlib.closing(open_store(other_url)) as other:
        other.put_project(Project("9.1", 9, "in the way", ""))
    before = content(other_url)
    with pytest.raises(SetupError, match="the ledger has 1 projects already; restore to another"):
        copy(store_url, other_url)
    assert content(other_url) == before
    copy(store_url, other_url, force=True)
    assert content(other_url) == content(store_url)


def test_load__one_that_fails_leaves_all_as_it_was(store: Store, store_url: str, other_url: str) -> None:
    fill(store)
    copy(store_url, other_url)
    before = content(other_url)
    with snapshot(store_url) as ledger, pytest.raises(KeyError):
        load(other_url, ledger.version, {"projects": [], "no such table": [{"a": 1}]}, {}, force=True)
    assert content(other_url) == before


@pytest.mark.parametrize("newer", [True, False])
def test_load__another_version(store_url: str, other_url: str, newer: bool) -> None:
    engine: Engine = open_engine(store_url)
    make_first(engine)
    engine.dispose()
    with snapshot(store_url) as ledger:
        assert ledger.version == migrations.FIRST
        rows = {table: list(ledger.rows(table)) for table in ledger.tables()}
    if newer:
        with pytest.raises(Exception, match="9999"):
            load(other_url, "9999", rows, {}, force=False)
        return
    load(other_url, migrations.FIRST, rows, {}, force=False)
    with contextlib.closing(open_store(other_url)) as other:
        assert [video.id for video in other.videos("7.1")] == [3, 4]
        with other.engine.connect() as connection:
            assert migrations.version(connection) == migrations.newest()


def test_snapshot__is_of_one_moment(store: Store, store_url: str) -> None:
    fill(store)
    with snapshot(store_url) as ledger:
        before = len(list(ledger.rows("videos")))
        writer = threading.Thread(target=add, args=(store, *range(100, 110)))
        writer.start()
        writer.join(10)
        assert not writer.is_alive(), "a backup must not hold up the work"
        assert len(list(ledger.rows("videos"))) == before
    with snapshot(store_url) as ledger:
        assert len(list(ledger.rows("videos"))) == before + 10


def test_snapshot__of_nothing(other_url: str) -> None:
    with pytest.raises(SetupError, match="there is no ledger yet"), snapshot(other_url):
        pytest.fail("there was one")


def test_snapshot__of_a_database_that_does_not_answer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'file'}"
    (tmp_path / "file").write_text("this is no database, however often one looks at it")
    with pytest.raises(StoreError), snapshot(url):
        pytest.fail("there was one")
