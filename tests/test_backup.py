"""Backups: what is in them, and what is refused."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike import backup
from lookalike.backup import described, read_archive, write_archive
from lookalike.errors import LookalikeError, SettingsError, SetupError
from lookalike.settings import Settings
from lookalike.store import open_store
from tests.test_store import PROJECT
from tests.test_tables import content, fill


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A ledger with pictures."""
    made = Settings(data_dir=tmp_path / "data", label_studio_token="sesame-token")
    with contextlib.closing(open_store(made.sqlalchemy_url)) as store:
        fill(store)
    for video in ("000000001", "000000002"):
        folder = made.keyframes_dir / video
        folder.mkdir(parents=True)
        for name in ("0000000.jpg", "0000050.jpg"):
            (folder / name).write_bytes(f"picture {video} {name}".encode())
    (made.keyframes_dir / "000000002" / "0000099.jpg.part").write_bytes(b"half")
    (made.keyframes_dir / "000000002" / "small").mkdir()
    (made.keyframes_dir / "000000002" / "small" / "0000050.jpg").write_bytes(b"made again when it is looked at")
    return made


def pictures(settings: Settings) -> dict[str, bytes]:
    files = (path for path in settings.keyframes_dir.rglob("*") if path.is_file())
    return {path.relative_to(settings.keyframes_dir).as_posix(): path.read_bytes() for path in files}


def test_backup__comes_back_whole(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    manifest = write_archive(settings, file)
    assert described(manifest) == "1 project, 2 videos, 4 pictures"
    assert file.stat().st_mode & 0o077 == 0
    for word in (b"sesame", b"made again"):
        assert word not in file.read_bytes()
    other = Settings(data_dir=tmp_path / "other")
    assert read_archive(other, file) == manifest
    assert content(other.sqlalchemy_url) == content(settings.sqlalchemy_url)
    expected = pictures(settings)
    for name in ("0000099.jpg.part", "small/0000050.jpg"):
        del expected[f"000000002/{name}"]
    assert pictures(other) == expected
    with contextlib.closing(open_store(other.sqlalchemy_url)) as store:
        assert store.project(PROJECT) is not None


def test_restore__over_what_is_there(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    write_archive(settings, file)
    before = content(settings.sqlalchemy_url)
    with pytest.raises(SetupError, match="has pictures already; restore to another --data-dir"):
        read_archive(settings, file)
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        store.delete_project(PROJECT)
    (settings.keyframes_dir / "000000001" / "0000000.jpg").write_bytes(b"another")
    read_archive(settings, file, force=True)
    assert content(settings.sqlalchemy_url) == before
    assert pictures(settings)["000000001/0000000.jpg"] == b"picture 000000001 0000000.jpg"


@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 0.9])
def test_restore__an_archive_that_is_cut_off_changes_nothing(settings: Settings, tmp_path: Path, keep: float) -> None:
    file = tmp_path / "backup.tar"
    write_archive(settings, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    before, shown = content(settings.sqlalchemy_url), pictures(settings)
    with pytest.raises(SetupError, match="is no backup that can be read"):
        read_archive(settings, file, force=True)
    assert (content(settings.sqlalchemy_url), pictures(settings)) == (before, shown)


def test_restore__writes_nothing_outside(tmp_path: Path) -> None:
    """An archive is a file that somebody gives us: names that lead elsewhere are passed over."""
    settings = Settings(data_dir=tmp_path / "data")
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        fill(store)
    file = tmp_path / "backup.tar"
    write_archive(settings, file)
    (tmp_path / "evil").write_bytes(b"evil")
    with tarfile.open(file, "a") as tar:
        for name in ("../evil1", "keyframes/../../evil2", "/evil3", "keyframes/1/../../../evil4", "login.json"):
            member = tarfile.TarInfo(name)
            member.size = 4
            with (tmp_path / "evil").open("rb") as content_:
                tar.addfile(member, content_)
        link = tarfile.TarInfo("keyframes/1/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    other = Settings(data_dir=tmp_path / "deep" / "other")
    read_archive(other, file)
    assert {path.name for path in (tmp_path / "deep").rglob("*")} <= {
        *("other", "keyframes", "ledger.sqlite3", "ledger.sqlite3-shm", "ledger.sqlite3-wal"),
    }


@pytest.mark.parametrize(
    "manifest",
    [
        *("[]", "{}", "5", "[" * 100_000, '{"format": 1, "rows": 5}', '{"format": 1, "rows": {"../x": 1}}'),
        '{"format": 1, "rows": {"projects": 1}, "version": "1", "numbers": 5}',
        '{"format": 1, "rows": {}, "version": "0099", "numbers": {}}',
        '{"format": 1, "rows": {"projects": 1}, "version": ["x"], "numbers": {}, "lookalike": "0"}',
    ],
    ids=lambda text: text[:40],
)
def test_restore__a_forged_archive_is_a_sentence(settings: Settings, tmp_path: Path, manifest: str) -> None:
    file = tmp_path / "backup.tar"
    (tmp_path / "manifest.json").write_text(manifest)
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "manifest.json", "manifest.json")
    before = content(settings.sqlalchemy_url)
    with pytest.raises(LookalikeError):
        read_archive(settings, file, force=True)
    assert content(settings.sqlalchemy_url) == before


def test_restore__a_layout_of_later(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    with tarfile.open(file, "w") as tar:
        (tmp_path / "manifest.json").write_text(json.dumps({"format": 2, "lookalike": "9.0", "rows": {}}))
        tar.add(tmp_path / "manifest.json", "manifest.json")
    with pytest.raises(SetupError, match=r"the backup is of layout 2, .* reads 1; restore it with Lookalike 9\.0"):
        read_archive(settings, file, force=True)


def test_backup__a_file_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be written: No such file or directory"):
        write_archive(settings, tmp_path / "gone" / "backup.tar")


def test_command__needs_a_ledger(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "backup.tar"), "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(backup.command, arguments, env={})
    assert isinstance(result.exception, SettingsError)
    assert f"there is no ledger in {tmp_path}" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
