"""`lookalike backup` and `lookalike restore`, as they are called."""

from __future__ import annotations

import contextlib
from pathlib import Path

from click.testing import CliRunner

from lookalike import backup, restore
from lookalike.errors import SetupError
from lookalike.folder import locked
from lookalike.settings import Settings
from lookalike.store import open_store
from tests.test_tables import content, fill


def backed_up(tmp_path: Path) -> tuple[Settings, Path]:
    settings = Settings(data_dir=tmp_path / "data")
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        fill(store)
    file = tmp_path / "backup.tar"
    result = CliRunner().invoke(backup.command, [str(file), "--data-dir", str(settings.data_dir)], env={})
    assert result.output.startswith(f"{file}: 1 project, 2 videos, 0 pictures, "), result.output
    return settings, file


def test_restore__what_was_backed_up(tmp_path: Path) -> None:
    settings, file = backed_up(tmp_path)
    other = Settings(data_dir=tmp_path / "other")
    result = CliRunner().invoke(restore.command, [str(file), "--data-dir", str(other.data_dir)], env={})
    assert result.exit_code == 0, result.output
    assert result.output == f"{other.data_dir}: 1 project, 2 videos, 0 pictures, of 0.1.0\n"
    assert content(other.sqlalchemy_url) == content(settings.sqlalchemy_url)
    again = CliRunner().invoke(restore.command, [str(file), "--data-dir", str(other.data_dir)], env={})
    assert "the ledger has 1 projects already" in str(again.exception)
    forced = CliRunner().invoke(restore.command, [str(file), "--data-dir", str(other.data_dir), "--force"], env={})
    assert forced.exit_code == 0, forced.output


def test_restore__not_beneath_one_that_runs(tmp_path: Path) -> None:
    settings, file = backed_up(tmp_path)
    with locked(settings.data_dir):
        arguments = [str(file), "--data-dir", str(settings.data_dir), "--force"]
        result = CliRunner().invoke(restore.command, arguments, env={})
    assert isinstance(result.exception, SetupError)
    assert "another 'lookalike up' uses" in str(result.exception)
