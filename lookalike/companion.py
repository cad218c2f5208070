"""`lookalike keyframes`: give a project of videos its companion project of keyframes."""

from __future__ import annotations

import re
from pathlib import Path

import click

from lookalike.errors import SetupError
from lookalike.folder import check_there
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store


@click.command()
@click.option("--project", "project_id", type=int, required=True, help="Number of the project of videos.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
def command(project_id: int, data_dir: Path | None) -> None:
    """Make the project where people label keyframes, or bring it up to date; the running workers do it."""
    settings = Settings.from_environment(data_dir=data_dir).or_demo()
    check_there(settings)
    store = open_store(settings.sqlalchemy_url)
    uid = ask(store, project_id)
    known = store.labels.companion(uid)
    if known is not None and known.uid:
        click.echo(f"{settings.label_studio_url}/projects/{known.label_studio_id}/data is brought up to date")
    else:
        click.echo("asked for; it appears at Label Studio as soon as the workers come to it")


def ask(store: Store, project_id: int) -> str:
    """Have the companion made even if settings say off or somebody deleted it; the project's uid.

    Raises SetupError for a project that we do not serve.
    """
    uid = find_project(store, project_id).uid
    store.labels.ask_for_companion(uid)
    store.want("companion", uid)
    return uid


def describe(uid: str) -> str:
    """What stands in a companion's description: by this it is known again, even if the ledger does not know it."""
    return f"Keyframes of the videos of project {uid}, kept by Lookalike."


def described(text: str) -> str:
    """The uid of the project of videos out of a companion's description; "" for another description."""
    found = re.fullmatch(re.escape(describe("uid")).replace("uid", r"(\d+\.\d+)"), text)
    return found[1] if found else ""


def find_project(store: Store, project_id: int) -> Project:
    """The project that we serve, by its number at Label Studio. Raises SetupError where there is none."""
    projects = store.projects()
    found = [project for project in projects if project.label_studio_id == project_id]
    if not found:
        known = ", ".join(str(project.label_studio_id) for project in projects) or "none"
        raise SetupError(f"project {project_id} is not connected to this backend; connected: {known}")
    return found[-1]  # Label Studio's SQLite uses ids again: the youngest is the living one
