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
        *("status", "doctor", "sign-in", "runs", "undo 5", "keyframes --project 7"),
        *("similar --project 7 --category Car", "evaluate --project 7"),
    ],
)
def test_commands_that_only_look__make_no_folder(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "nowhere"
    with pytest.raises(SettingsError, match=r"there is no .*nowhere yet; name the folder"):
        CliRunner().invoke(commands, [*command.split(), "--data-dir", str(folder)], catch_exceptions=False)
    assert not folder.exists()
