"""The ledger's versions, over SQLite and over a real PostgreSQL: from the first release's tables to today's."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import Engine, MetaData, inspect, text

from lookalike import migrations
from lookalike.errors import StoreError
from lookalike.migrations import __main__ as writing
from lookalike.schema import metadata
from lookalike.store import Project, open_engine, open_store

#: a ledger as release 0.1.0 left it, in the middle of its work
ROWS: dict[str, list[dict[str, Any]]] = {
    "projects": [{"uid": "7.1", "label_studio_id": 7, "title": "Straßen", "label_config": "<View/>", "created_at": 1}],
    "videos": [
        {"id": 3, "project": "7.1", "task": 30, "url": "a.mp4", "data": "{}", "fps": "30000/1001", "created_at": 2},
        {"id": 4, "project": "7.1", "task": 40, "url": "b.mp4", "data": "{}", "created_at": 2},
    ],
    "vectors": [{"video": 3, "model": "m", "dim": 2, "keyframe_ids": b"\0\xff", "matrix": b"\1"}],
    "predictions": [{"video": 3, "body": "{}", "digest": "d", "delivered": "d"}],
    "labels": [
        {"keyframe": 50331648, "source": "companion", "annotation": 1, "category": "car", "project": "7.1", "video": 3,
         "task": 9, "person": "me", "at": 5},
    ],
    "work": [
        {"id": 11, "kind": "video", "subject": "3", "project": "7.1", "state": "done", "wanted": 1, "next_at": 1,
         "created_at": 1, "updated_at": 1},
        {"id": 12, "kind": "video", "subject": "4", "project": "7.1", "state": "running", "wanted": 1, "next_at": 1,
         "fence": 5, "crashes": 1, "created_at": 1, "updated_at": 1},
    ],
}  # fmt: skip


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    """An empty database, of each kind that there is."""
    engine = open_engine(store_url)
    yield engine
    engine.dispose()


def make_first(engine: Engine) -> None:
    """A ledger of release 0.1.0, which did not know of versions."""
    migrations.upgrade(engine, migrations.FIRST)
    tables = MetaData()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
        tables.reflect(connection)
        for name, rows in ROWS.items():
            for row in rows:
                connection.execute(tables.tables[name].insert(), row)


def version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return migrations.version(connection)


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), metadata)


def test_versions__lead_to_what_the_schema_says(engine: Engine) -> None:
    migrations.upgrade(engine, migrations.FIRST)
    migrations.upgrade(engine)
    assert not differences(engine), (
        "lookalike/schema.py says something else than the versions in lookalike/migrations/versions lead to. Write the "
        'next version: python -m lookalike.migrations "what has changed". If the newest one is not released yet, '
        "delete it first, so that it is written anew."
    )


def test_versions__are_in_a_row() -> None:
    numbers = sorted(path.name[:4] for path in Path(migrations.__file__).parent.glob("versions/[0-9]*.py"))
    assert numbers == [f"{n + 1:04d}" for n in range(len(numbers))]
    assert numbers[-1] == migrations.newest()


def test_upgrade__an_empty_database(engine: Engine) -> None:
    assert version(engine) is None
    migrations.upgrade(engine)
    assert version(engine) == migrations.newest()
    assert not differences(engine)


def test_upgrade__keeps_numbering_rows_anew_on_sqlite(tmp_path: Path) -> None:
    """A row's number is never used again: a claim on one that is gone must not fit a new one."""
    engine = open_engine(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    make_first(engine)
    migrations.upgrade(engine)
    with engine.connect() as connection:
        made = dict(connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'table'")).all())
    engine.dispose()
    for table in (table for table in metadata.sorted_tables if table.name in made):
        assert ("AUTOINCREMENT" in made[table.name]) is table.dialect_options["sqlite"]["autoincrement"], table.name


def test_upgrade__a_ledger_of_the_first_release_keeps_its_rows(store_url: str, engine: Engine) -> None:
    make_first(engine)
    with contextlib.closing(open_store(store_url)) as store:
        assert version(engine) == migrations.newest()
        assert store.projects() == [Project("7.1", 7, "Straßen", "<View/>")]
        assert [(video.id, video.fps) for video in store.videos("7.1")] == [(3, Fraction(30000, 1001)), (4, None)]
        assert store.predictions("7.1", [30])[30].delivered == "d"
        assert [row.category for row in store.labels.labels("7.1")] == ["car"]
        assert store.ledger.counts() == {("video", "done"): 1, ("video", "running"): 1}
        claim = store.ledger.claim(12, "w", lease_s=60, max_crashes=3)  # its lease has run out
        assert claim is not None
        assert claim.fence == 6
        store.ledger.finish(claim)
        assert store.add_videos("7.1", [(50, "c.mp4", {})]) == 1
        assert store.delete_videos("7.1", [30, 40]) == [3, 4]
        assert store.labels.labels("7.1") == []  # what hangs on a video goes with it


def test_upgrade__twice_changes_nothing(engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(metadata.tables["projects"].insert(), ROWS["projects"])
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM projects")).scalar() == 1


def test_upgrade__foreign_keys_hold_afterwards(engine: Engine) -> None:
    make_first(engine)
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM projects"))
        for table in ("videos", "vectors", "predictions", "labels", "work"):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0


def test_upgrade__a_newer_ledger_is_refused(store_url: str, engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError) as refused:
        open_store(store_url)
    assert str(refused.value) == (
        f"the ledger was written by a newer Lookalike (its version is 9999, this one knows {migrations.newest()}); "
        "install the newer one again, or restore a backup of before"
    )


def test_upgrade__one_that_fails_leaves_all_as_it_was(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    make_first(engine)
    before = set(inspect(engine).get_table_names())
    bring = migrations.bring

    def broken(*args: Any) -> None:
        bring(*args)
        raise OSError("the disk is on fire")

    monkeypatch.setattr(migrations, "bring", broken)
    with pytest.raises(OSError, match="on fire"):
        migrations.upgrade(engine)
    assert set(inspect(engine).get_table_names()) == before
    assert version(engine) == migrations.FIRST


@pytest.mark.parametrize("old", [True, False])
def test_upgrade__by_many_processes_at_once(store_url: str, engine: Engine, old: bool) -> None:
    if old:
        make_first(engine)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(time.sleep, [0.1] * 3)  # they are there
        assert pool.starmap(open_at, [(store_url, time.time() + 0.2)] * 3) == [migrations.newest()] * 3
    assert inspect(engine).has_table("work")


def open_at(url: str, when: float) -> str | None:
    time.sleep(max(0.0, when - time.time()))
    with contextlib.closing(open_store(url)) as store:
        return version(store.engine)


def test_write__the_next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy, where the newest version is missing, it is written anew."""
    copy = tmp_path / "migrations"
    (copy / "versions").mkdir(parents=True)
    source = Path(migrations.__file__).parent
    for name in ("env.py", "script.py.mako", *(f"versions/{p.name}" for p in source.glob("versions/[0-9]*.py"))):
        if not name.startswith(f"versions/{migrations.newest()}"):
            (copy / name).write_text((source / name).read_text())
    newest = migrations.newest()
    monkeypatch.setattr(migrations, "_HERE", copy)
    result = CliRunner().invoke(writing.main, ["what has changed"])
    assert result.exit_code == 0, result.output
    written = (copy / "versions" / f"{newest}_what_has_changed.py").read_text()
    assert f"revision = '{newest}'" in written
    assert "op." in written
