"""`lookalike doctor`: what is wrong between Label Studio, the backend and the workers, and how to mend it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import requests

from lookalike import wire
from lookalike.companion import described
from lookalike.errors import LabelConfigError, LabelStudioError, LookalikeError
from lookalike.folder import check_there
from lookalike.label_studio import LabelStudio
from lookalike.queue import Queue, redis_url
from lookalike.records import Json
from lookalike.settings import Settings
from lookalike.store import open_store

#: a companion is made first and gets its webhook when its tasks and tabs are there
_YOUNG_S = 120.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    trouble: str  # empty: all is well
    fact: str = ""

    def __str__(self) -> str:
        return f"wrong  {self.subject}: {self.trouble}" if self.trouble else f"ok     {self.subject}: {self.fact}"


@click.command()
@click.option("--label-studio", "label_studio_url", help="Address of Label Studio.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
@click.option("--project", type=int, help="Look at this project only.")
@click.option(
    "--connect",
    is_flag=True,
    help="Connect the project to the backend, if it is not, and drop an address where the backend was before.",
)
def command(label_studio_url: str | None, data_dir: Path | None, project: int | None, connect: bool) -> None:
    """Look at every part of the connection; exit status 1 if anything is wrong."""
    settings = Settings.from_environment(label_studio_url=label_studio_url, data_dir=data_dir).or_demo()
    check_there(settings)
    wrong = False
    for finding in examine(settings, project, connect=connect):
        click.echo(str(finding))
        wrong = wrong or bool(finding.trouble)
    sys.exit(1 if wrong else 0)


def examine(settings: Settings, only_project: int | None = None, *, connect: bool = False) -> Iterator[Finding]:
    """Look from the inside out: ledger, queue, backend, Label Studio, token, each project."""
    yield _own(settings, "ledger")
    yield _own(settings, "queue server")
    yield _backend(settings)
    if not settings.label_studio_url:
        yield Finding("Label Studio", "its address is not set: lookalike doctor --label-studio URL")
        return
    if not settings.label_studio_token:
        yield Finding(
            "token",
            "none is set; in Label Studio make a personal access token under Account & Settings, put it in a file and "
            "name that in LOOKALIKE_LABEL_STUDIO_TOKEN_FILE",
        )
        return
    try:
        with LabelStudio(settings.label_studio_url, settings.label_studio_token) as studio:
            yield Finding("Label Studio", "", f"{settings.label_studio_url} runs {studio.version()}")
            yield Finding("token", "", f"acts as {studio.whoami()['email']}")
            found = [studio.project(only_project)] if only_project else studio.projects()
            if not found:
                yield Finding("projects", "this account sees none; make one with the video_timeline.xml configuration")
            for project in found:
                if _is_companion(settings, project):
                    fact = "holds the keyframes of another project"
                    found_so = _webhook(studio, settings, project, fact, "it is registered again within a minute or so")
                    if found_so.trouble and _age_s(project) < _YOUNG_S:
                        found_so = Finding(found_so.subject, "", f"{fact}, was made a moment ago and is being set up")
                    yield found_so
                elif videos := described(project.get("description") or ""):
                    yield Finding(
                        _subject(project),
                        "",
                        f"holds keyframes of the videos of project {videos.split('.')[0]}, which is gone or served by "
                        "another; if nobody needs its labels, delete it under Settings, Danger Zone",
                    )
                else:
                    yield from _project(studio, settings, project, connect=connect)
    except LabelStudioError as error:
        yield Finding("Label Studio", str(error))


def _own(settings: Settings, subject: str) -> Finding:
    try:
        opened = (
            open_store(settings.sqlalchemy_url)
            if subject == "ledger"
            else Queue(redis_url(settings.redis_url, settings.data_dir))
        )
        with contextlib.closing(opened):
            opened.ping()
    except (LookalikeError, OSError) as error:  # the latter where data_dir cannot be made
        return Finding(subject, f"{error}; is 'lookalike up' running?")
    return Finding(subject, "", "answers")


def _backend(settings: Settings) -> Finding:
    with requests.Session() as session:
        session.trust_env = False  # as Label Studio would ask: without this machine's proxy
        try:
            answer = session.get(f"{settings.backend_url}/health", timeout=3)
        except requests.RequestException as error:
            why = type(error).__name__
            return Finding(
                "backend",
                f"{settings.backend_url} does not answer ({why}); start it with 'lookalike up', or say by "
                "LOOKALIKE_PORT at which port it is",
            )
    if answer.status_code != 200 or "Lookalike" not in answer.text:
        return Finding("backend", f"what answers at {settings.backend_url} is not Lookalike; another program's port?")
    return Finding("backend", "", f"{settings.backend_url} is up")


def _project(studio: LabelStudio, settings: Settings, project: Json, *, connect: bool) -> Iterator[Finding]:
    subject = _subject(project)
    try:
        config = wire.parse_label_config(project["label_config"])
    except LabelConfigError as error:
        yield Finding(subject, str(error))
        return
    if config.reserved is None:
        child = "Label" if config.control_tag == "TimelineLabels" else "Choice"
        yield Finding(
            f"{subject} labels",
            f"no label marks clusters that nobody has named yet; add <{child} value={wire.RESERVED_CATEGORY!r}/> "
            f"to {config.from_name}",
        )
    backends = studio.ml_backends(project["id"])
    ours = [backend for backend in backends if backend["url"].rstrip("/") == settings.backend_url]
    if connect:
        auth = (settings.basic_auth_user, settings.basic_auth_pass) if settings.basic_auth_user else None
        title = wire.model_version(settings.embedder)
        try:
            if not ours:
                ours = [studio.connect_ml(project["id"], settings.backend_url, title, auth)]
            studio.disconnect_moved_ml(project["id"], settings.backend_url, title)
            backends = studio.ml_backends(project["id"])
        except LabelStudioError as error:
            yield Finding(subject, str(error))
            return
    if not ours:
        others = f" (it has {', '.join(b['url'] for b in backends)})" if backends else ""
        yield Finding(
            subject,
            f"is not connected to {settings.backend_url}{others}; in its Settings, Model, connect a model at that "
            f"address, or: lookalike doctor --project {project['id']} --connect",
        )
        return
    first = not backends or backends[0]["url"].rstrip("/") == settings.backend_url
    if not first:
        yield Finding(
            subject, f"Label Studio asks only the first of its models, {backends[0]['url']}; disconnect that one"
        )
    state = ours[0].get("state", "")
    if state not in ("CO", "Connected", ""):
        why = ours[0].get("error_message") or "no reason given"
        yield Finding(subject, f"Label Studio says that the model is {state}: {why}")
    fact = f"connected{'' if first else ', though not asked'}, fills {config.control_tag} {config.from_name!r}"
    yield _webhook(studio, settings, project, fact, "then disconnect and connect the model again")


def _webhook(studio: LabelStudio, settings: Settings, project: Json, fact: str, then: str) -> Finding:
    if any(hook["url"] == f"{settings.backend_url}/webhook" for hook in studio.webhooks(project["id"])):
        return Finding(_subject(project), "", fact)
    return Finding(
        _subject(project),
        "has no webhook to the backend, so imports and labels are noticed late. Label Studio refused its address: "
        f"start it with LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false; {then}",
    )


def _is_companion(settings: Settings, project: Json) -> bool:
    try:
        with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
            return store.labels.owner(wire.project_uid(project["id"], project["created_at"])) is not None
    except (LookalikeError, OSError):
        return False  # what is wrong with the ledger has been told


def _age_s(project: Json) -> float:
    return time.time() - datetime.fromisoformat(project["created_at"]).timestamp()


def _subject(project: Json) -> str:
    return f"project {project['id']} {project['title']!r}"
