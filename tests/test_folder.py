"""The data folder is one program's at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike.cli import commands
from lookalike.errors import SettingsError, SetupError
from lookalike.folder import locked


def test_locked__one_per_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with locked(folder), pytest.raises(SetupError, match="another 'lookalike up' uses"), locked(folder):
        pytest.fail("the folder was locked twice")
    with locked(folder):  # free again
        assert folder.stat().st_mode & 0o077 == 0


def test_locked__a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be used: File exists"), locked(tmp_path / "file"):
        pytest.fail("a file was locked")


@pytest.mark.parametrize(
    "command",
    [
        *("status", "runs", "runs 3", "undo 3", "keyframes --project 1", "backup x.tar", "sign-in", "doctor"),
        *("similar --project 1 --category Car", "evaluate --project 1"),
    ],
)
def test_check_there__what_needs_a_ledger_makes_none(command: str, tmp_path: Path) -> None:
    said = r"there is no ledger in .*nowhere; name the folder that `lookalike up` uses by --data-dir"
    with pytest.raises(SettingsError, match=said):
        CliRunner().invoke(
            commands, [*command.split(), "--data-dir", str(tmp_path / "nowhere")], catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []
