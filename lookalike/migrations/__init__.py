"""The ledger's schema, version by version, by Alembic.

    python -m lookalike.migrations "what has changed"    writes the next version from lookalike/schema.py

Versions are numbered 0001, 0002, … without branches; the newest is what `lookalike/schema.py` says, which a test holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, create_engine, func, inspect, select, text

from lookalike.errors import StoreError
from lookalike.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

_HERE = Path(__file__).parent
#: the version of the ledgers that were made before versions were written down
FIRST = "0001"
#: PostgreSQL's lock for whoever makes or changes tables: any number that nobody else locks by
_LOCK = 0x100CA11CE


def newest() -> str:
    """The version that this program knows."""
    return max((path.name[:4] for path in (_HERE / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")), default="0000")


def version(connection: Connection) -> str | None:
    """The ledger's version; None for an empty database."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return FIRST if "work" in tables else None


def upgrade(engine: Engine, to: str = "") -> None:
    """Make the tables, or bring them to version `to`, by default the newest, all or nothing; one process at a time.

    Raises StoreError where a newer program has been here.
    """
    wanted = to or newest()
    with engine.execution_options(reads=True).connect() as connection:
        if _check(connection, wanted) == wanted and inspect(connection).has_table("alembic_version"):
            return
    with changing(engine) as connection:
        bring(connection, wanted)


@contextmanager
def changing(engine: Engine) -> Iterator[Connection]:
    """A transaction in which tables may be made and changed, while all others who would do so wait."""
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        if sqlite:  # a step that has to copy a table drops the old one, and with it every row that refers to it
            _switch_foreign_keys(connection, "OFF")
        try:
            with connection.begin():
                if not sqlite:
                    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                yield connection
        finally:
            if sqlite:
                _switch_foreign_keys(connection, "ON")


def bring(connection: Connection, to: str = "") -> None:
    """What `upgrade` does, within `changing`. Raises StoreError for a version that this program does not know."""
    from alembic import command

    wanted = to or newest()
    if not FIRST <= wanted <= newest():
        raise StoreError(f"this Lookalike knows the ledger's versions up to {newest()}, not {wanted[:20]!r}")
    now = _check(connection, wanted)  # again: another process may have been quicker
    config = _config(connection)
    if now is None and wanted == newest():
        metadata.create_all(connection)
        command.stamp(config, wanted)
        return
    if now is not None:
        command.stamp(config, now)
    command.upgrade(config, wanted)


def write(message: str) -> Path:
    """Write the version that leads from the newest one to what `lookalike/schema.py` says; its file."""
    from alembic import command

    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/ledger.sqlite3")
        try:
            with engine.begin() as connection:
                config = _config(connection)
                command.upgrade(config, "head")
                made = command.revision(config, message, autogenerate=True, rev_id=f"{int(newest()) + 1:04d}")
        finally:
            engine.dispose()
    assert made is not None
    assert not isinstance(made, list)
    return Path(made.path)


def _check(connection: Connection, wanted: str) -> str | None:
    now = version(connection)
    if now is not None and now > wanted:
        raise StoreError(
            f"the ledger was written by a newer Lookalike (its version is {now}, this one knows {newest()}); "
            "install the newer one again, or restore a backup of before"
        )
    return now


def _switch_foreign_keys(connection: Connection, switch: str) -> None:
    """Outside of a transaction, where alone SQLite listens."""
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute(f"PRAGMA foreign_keys = {switch}")


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return config
