"""`lookalike restore FILE`: a backup comes back, to SQLite or PostgreSQL, from either."""

from __future__ import annotations

from pathlib import Path

import click

from lookalike.backup import described, read_archive
from lookalike.folder import locked
from lookalike.settings import Settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
@click.option("--force", is_flag=True, help="Replace what is there already.")
def command(file: Path, data_dir: Path | None, force: bool) -> None:
    """Bring back the ledger and the keyframe pictures of a backup, of this version or an older one.

    Stop `lookalike up`, `serve` and `work` first. The ledger goes where LOOKALIKE_STORE_URL says, by default into the
    data folder.
    """
    settings = Settings.from_environment(data_dir=data_dir)
    with locked(settings.data_dir):
        manifest = read_archive(settings, file, force=force)
    click.echo(f"{settings.data_dir}: {described(manifest)}, of {manifest['lookalike']}")
