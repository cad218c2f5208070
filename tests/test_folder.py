"""The data folder is one program's at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.errors import SetupError
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
