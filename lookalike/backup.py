"""`lookalike backup FILE`: the ledger and the keyframe pictures in one archive, while everything goes on.

An archive is a tar with `manifest.json`, `tables/<name>.jsonl.gz` (a row a line, bytes in base64) and `keyframes/…`.
It knows no kind of database: what was backed up from SQLite may be restored to PostgreSQL. It holds no token, and
nothing of Label Studio's.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from lookalike import __version__
from lookalike.errors import SetupError
from lookalike.folder import check_there
from lookalike.records import Json
from lookalike.settings import Settings
from lookalike.tables import load, snapshot

#: of the archive's layout
_FORMAT = 1
_PICTURE = re.compile(r"keyframes/\d{1,20}/[\w.-]{1,100}")
#: what comes of an archive that is cut off, or that was not written by `write_archive`
_FORGED = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RecursionError),
    *(KeyError, ValueError, TypeError, AttributeError, AssertionError),
)
_TABLE = re.compile(r"tables/(\w{1,60})\.jsonl\.gz")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
def command(file: Path, data_dir: Path | None) -> None:
    """Write the ledger and the keyframe pictures into one archive. Nothing needs to be stopped."""
    settings = Settings.from_environment(data_dir=data_dir)
    check_there(settings)
    manifest = write_archive(settings, file)
    click.echo(f"{file}: {described(manifest)}, {file.stat().st_size / 1e6:.1f} MB")


def write_archive(settings: Settings, file: Path) -> Json:
    """Back up to `file`, whole or not at all; the manifest: rows by table, pictures.

    Raises SettingsError, StoreError, or SetupError where the file cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with contextlib.ExitStack() as held:
            held.callback(part.unlink, missing_ok=True)
            out = held.enter_context(open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"))
            tar = held.enter_context(tarfile.open(fileobj=out, mode="w"))
            ledger = held.enter_context(snapshot(settings.sqlalchemy_url))
            manifest: Json = {
                "format": _FORMAT,
                "lookalike": __version__,
                "created_at": time.time(),
                "version": ledger.version,
                "rows": {table: _add_table(tar, table, ledger.rows(table)) for table in ledger.tables()},
                "numbers": ledger.numbers(),
                "pictures": 0,
            }
            for picture in sorted(settings.keyframes_dir.glob("*/*.jpg")):
                name = picture.relative_to(settings.data_dir).as_posix()
                if _PICTURE.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError):  # its video was deleted meanwhile
                        tar.add(picture, name)
                        manifest["pictures"] += 1
            _add(tar, "manifest.json", io.BytesIO(json.dumps(manifest).encode()))
            tar.close()
            out.flush()
            os.fsync(out.fileno())
            part.replace(file)
    except OSError as error:
        raise SetupError(f"{file} cannot be written: {error.strerror}") from None
    return manifest


def read_archive(settings: Settings, file: Path, *, force: bool = False) -> Json:
    """Bring back what an archive holds, whole or not at all; its manifest.

    Raises SetupError for a file that is no archive of ours or a newer one's, and, without `force`, where there is
    something already.
    """
    try:
        with tarfile.open(file) as tar:
            manifest = _manifest(tar)
            _check_target(settings, force)
            part = settings.keyframes_dir.with_name("keyframes.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for member in tar:
                if _PICTURE.fullmatch(member.name) and member.isreg():
                    source = tar.extractfile(member)
                    assert source is not None
                    target = part / member.name.removeprefix("keyframes/")
                    target.parent.mkdir(exist_ok=True)
                    with source, target.open("wb") as out:
                        shutil.copyfileobj(source, out)
            load(
                settings.sqlalchemy_url,
                manifest["version"],
                {table: _rows(tar, table) for table in manifest["rows"]},  # in the order in which they came
                manifest["numbers"],
                force=force,
            )
            shutil.rmtree(settings.keyframes_dir, ignore_errors=True)
            part.replace(settings.keyframes_dir)
    except _FORGED as error:
        raise SetupError(f"{file} is no backup that can be read ({type(error).__name__}); it may be cut off") from None
    except OSError as error:
        raise SetupError(f"{file} cannot be restored: {error.strerror}") from None
    return manifest


def described(manifest: Json) -> str:
    rows = manifest["rows"]
    numbers = {"project": rows.get("projects", 0), "video": rows.get("videos", 0), "picture": manifest["pictures"]}
    return ", ".join(f"{number} {name}{'' if number == 1 else 's'}" for name, number in numbers.items())


def _add_table(tar: tarfile.TarFile, table: str, rows: Iterator[dict[str, Any]]) -> int:
    """How many rows."""
    number = 0
    with tempfile.TemporaryFile() as file:
        with gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as lines:
            for row in rows:
                values = {
                    name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
                    for name, value in row.items()
                }
                lines.write(json.dumps(values) + "\n")
                number += 1
        file.seek(0)
        _add(tar, f"tables/{table}.jsonl.gz", file)
    return number


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = content.seek(0, io.SEEK_END)
    member.mtime = int(time.time())
    content.seek(0)
    tar.addfile(member, content)


def _manifest(tar: tarfile.TarFile) -> Json:
    source = tar.extractfile("manifest.json")
    assert source is not None
    manifest = json.load(source)
    if manifest["format"] != _FORMAT:
        raise SetupError(
            f"the backup is of layout {manifest['format']}, and this Lookalike ({__version__}) reads {_FORMAT}; "
            f"restore it with Lookalike {manifest['lookalike']}"
        )
    assert all(_TABLE.fullmatch(f"tables/{table}.jsonl.gz") for table in manifest["rows"])
    return manifest  # type: ignore[no-any-return]


def _rows(tar: tarfile.TarFile, table: str) -> Iterator[dict[str, Any]]:
    source = tar.extractfile(f"tables/{table}.jsonl.gz")
    assert source is not None
    with source, gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield {
                name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
                for name, value in json.loads(line).items()
            }


def _check_target(settings: Settings, force: bool) -> None:
    if not force and settings.keyframes_dir.is_dir() and any(settings.keyframes_dir.iterdir()):
        raise SetupError(
            f"{settings.keyframes_dir} has pictures already; restore to another --data-dir, or replace them by --force"
        )
