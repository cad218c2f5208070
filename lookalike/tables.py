"""Every row of a ledger, out of one database and into another, whatever their kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, MetaData, Table, func, inspect, select, text

from lookalike import migrations
from lookalike.errors import SetupError
from lookalike.ledger import translated
from lookalike.schema import metadata
from lookalike.store import open_engine

_ROWS = 500  # per statement
_VERSION = "alembic_version"  # Alembic's table, which is not backed up: what was restored gets its own
Row = dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A ledger as it is at one moment, whatever is written to it meanwhile."""

    version: str
    _connection: Connection
    _tables: MetaData

    def tables(self) -> list[str]:
        """Names, those that others refer to first."""
        return [table.name for table in self._tables.sorted_tables]

    def rows(self, table: str) -> Iterator[Row]:
        query = select(self._tables.tables[table])
        for row in self._connection.execution_options(yield_per=_ROWS).execute(query).mappings():
            yield {name: bytes(value) if isinstance(value, memoryview) else value for name, value in row.items()}

    def numbers(self) -> dict[str, int]:
        """The last number that each table has given to a row: none is ever used again."""
        connection = self._connection
        if connection.dialect.name == "sqlite":
            if not inspect(connection).has_table("sqlite_sequence"):
                return {}
            rows = connection.execute(text("SELECT name, seq FROM sqlite_sequence"))
            return {name: last for name, last in rows if name in self._tables.tables}
        numbers = {}
        for table, sequence in _sequences(connection, self._tables).items():
            last, used = connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()  # noqa: S608
            if used:
                numbers[table] = last
        return numbers


@contextmanager
def snapshot(url: str) -> Iterator[Snapshot]:
    """Raises SettingsError, StoreError, or SetupError where there is no ledger."""
    engine = open_engine(url)
    at_one_moment: Row = (
        {"reads": True}
        if engine.dialect.name == "sqlite"
        else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )
    try:
        with translated(), engine.connect().execution_options(**at_one_moment) as connection:
            version = migrations.version(connection)
            if version is None:
                raise SetupError("there is no ledger yet; nothing can be backed up")
            yield Snapshot(version, connection, _reflected(connection))
    finally:
        engine.dispose()


def load(
    url: str, version: str, tables: Mapping[str, Iterable[Row]], numbers: Mapping[str, int], *, force: bool
) -> None:
    """Make a ledger of these tables, all or nothing; one of an older version is brought up to date.

    Raises StoreError for one of a newer version, and SetupError, without `force`, where there are projects already.
    """
    engine = open_engine(url)
    try:
        with translated(), migrations.changing(engine) as connection:
            _clear(connection, force)
            migrations.bring(connection, version)
            made = _reflected(connection)
            for name, rows in tables.items():
                _insert(connection, made.tables[name], rows)
            _give_numbers(connection, made, numbers)
            migrations.bring(connection)
    finally:
        engine.dispose()


def _clear(connection: Connection, force: bool) -> None:
    there = _reflected(connection, _VERSION)
    projects = there.tables.get("projects")
    if projects is not None and not force:
        number = connection.execute(select(func.count()).select_from(projects)).scalar_one()
        if number:
            raise SetupError(
                f"the ledger has {number} projects already; restore to another --data-dir or LOOKALIKE_STORE_URL, or "
                "replace them by --force"
            )
    there.drop_all(connection)


def _reflected(connection: Connection, *more: str) -> MetaData:
    """The ledger's tables that there are: others may share the database, such as Label Studio with its tokens."""
    ours = {*metadata.tables, *more}
    tables = MetaData()
    tables.reflect(connection, only=lambda name, _: name in ours)
    return tables


def _insert(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    waiting = iter(rows)
    while some := list(islice(waiting, _ROWS)):
        connection.execute(table.insert(), some)


def _give_numbers(connection: Connection, tables: MetaData, numbers: Mapping[str, int]) -> None:
    if connection.dialect.name == "sqlite":
        for table, last in numbers.items():
            connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :table"), {"table": table})
            connection.execute(
                text("INSERT INTO sqlite_sequence VALUES (:table, :last)"), {"table": table, "last": last}
            )
        return
    for table, sequence in _sequences(connection, tables).items():
        if table in numbers:
            connection.execute(select(func.setval(sequence, numbers[table])))


def _sequences(connection: Connection, tables: MetaData) -> dict[str, str]:
    """PostgreSQL's sequences by the table whose rows they number."""
    found = {}
    for table in tables.sorted_tables:
        if "id" in table.columns:
            sequence = connection.execute(select(func.pg_get_serial_sequence(table.name, "id"))).scalar()
            if sequence:
                found[table.name] = sequence
    return found
