"""What the doctor says of a connection, part by part, when something is missing and when all is well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from flask import Flask

from backend.app import create_app
from lookalike import wire
from lookalike.companion import describe
from lookalike.doctor import command, examine
from lookalike.label_config import shipped_config
from lookalike.labels import Companion
from lookalike.settings import Settings
from lookalike.store import Project, open_store
from tests.services import free_port
from tests.studio import CREATED_AT, TOKEN, FakeStudio, running_studio, served

TIMELINE = shipped_config("video_timeline")
UNRESERVED = TIMELINE.replace('<Label value="Cluster (unnamed)" background="#9aa0a6"/>', "")
UNRESERVED_CHOICES = shipped_config("video_choices").replace('<Choice value="Cluster (unnamed)"/>', "")
NO_VIDEO = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>'


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with running_studio() as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, valkey: str, studio: FakeStudio) -> Iterator[Settings]:
    """Everything runs: a ledger, a queue server, our backend, and a Label Studio that knows us."""
    chosen = Settings(
        data_dir=tmp_path / "data", redis_url=valkey, label_studio_url=studio.url, label_studio_token=TOKEN
    )
    with served(create_app(chosen)) as url:
        yield chosen.with_(connect_url=url)


def said(settings: Settings, project: int | None = None, *, connect: bool = False) -> list[str]:
    return [str(finding) for finding in examine(settings, project, connect=connect)]


def connect(studio: FakeStudio, settings: Settings, project: int = 1) -> None:
    url = settings.backend_url
    studio.models[project] = {"id": project, "project": project, "url": url, "state": "CO"}
    studio.webhooks[project] = {"id": project, "project": project, "url": f"{url}/webhook"}


def test_examine__nothing_runs(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(data_dir=tmp_path, port=port, redis_url=f"unix://{tmp_path}/none.sock")
    ledger, queue, backend, studio = said(settings)
    assert ledger == "ok     ledger: answers"
    assert queue.startswith("wrong  queue server: the queue server does not answer: ")
    assert queue.endswith("; is 'lookalike up' running?")
    assert backend == (
        f"wrong  backend: http://127.0.0.1:{port} does not answer (ConnectionError); start it with 'lookalike up', "
        "or say by LOOKALIKE_PORT at which port it is"
    )
    assert studio == "wrong  Label Studio: its address is not set: lookalike doctor --label-studio URL"


def test_examine__a_ledger_that_cannot_be_made_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = said(Settings(data_dir=tmp_path / "file", redis_url="unix:///none.sock", port=free_port()))[0]
    assert ledger.startswith("wrong  ledger: ")


def test_examine__all_is_well(settings: Settings, studio: FakeStudio) -> None:
    studio.add_project(1, TIMELINE)
    connect(studio, settings)
    assert said(settings) == [
        "ok     ledger: answers",
        "ok     queue server: answers",
        f"ok     backend: {settings.backend_url} is up",
        f"ok     Label Studio: {studio.url} runs 1.23.2",
        "ok     token: acts as admin@example.com",
        "ok     project 1 'project 1': connected, fills TimelineLabels 'timeline'",
    ]


def test_examine__another_program_on_our_port(settings: Settings) -> None:
    other = Flask("other")
    other.add_url_rule("/health", view_func=lambda: "healthy")
    with served(other) as url:
        backend = said(settings.with_(connect_url=url))[2]
    assert backend == f"wrong  backend: what answers at {url} is not Lookalike; another program's port?"


def test_examine__the_backend_is_asked_without_a_proxy(
    settings: Settings, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert said(settings)[2] == f"ok     backend: {settings.backend_url} is up"


def test_examine__no_token(settings: Settings) -> None:
    finding = said(settings.with_(label_studio_token=""))[-1]
    assert finding.startswith("wrong  token: none is set; in Label Studio make a personal access token")


def test_examine__wrong_token(settings: Settings, studio: FakeStudio) -> None:
    finding = said(settings.with_(label_studio_token="f" * 40))[-1]
    assert finding.startswith(
        "wrong  Label Studio: Label Studio does not accept LOOKALIKE_LABEL_STUDIO_TOKEN (Invalid token.)"
    )
    assert "f" * 40 not in finding


def test_examine__label_studio_is_down(settings: Settings) -> None:
    finding = said(settings.with_(label_studio_url=f"http://127.0.0.1:{free_port()}"))[-1]
    assert finding.startswith("wrong  Label Studio: ")


def test_examine__no_project(settings: Settings, studio: FakeStudio) -> None:
    assert said(settings)[-1].startswith("wrong  projects: this account sees none; make one")
    assert said(settings, 7)[-1].startswith("wrong  Label Studio: Label Studio knows nothing at GET /api/projects/7/")


def test_examine__not_connected_says_how_to_and_connect_does_it(settings: Settings, studio: FakeStudio) -> None:
    studio.add_project(1, TIMELINE)
    assert said(settings)[-1] == (
        f"wrong  project 1 'project 1': is not connected to {settings.backend_url}; in its Settings, Model, connect a "
        "model at that address, or: lookalike doctor --project 1 --connect"
    )
    assert said(settings, 1, connect=True)[-1].startswith("ok     project 1 'project 1': connected")
    assert [model["title"] for model in studio.models.values()] == ["lookalike-efficientnet-lite0"]


def test_examine__another_model_stands_before_ours(settings: Settings, studio: FakeStudio) -> None:
    studio.add_project(1, TIMELINE)
    studio.models[1] = {"id": 1, "project": 1, "url": "http://other:9090", "state": "CO"}
    assert "(it has http://other:9090)" in said(settings)[-1]
    studio.models[2] = {"id": 2, "project": 1, "url": settings.backend_url, "state": "CO"}
    assert any("asks only the first of its models, http://other:9090; disconnect" in line for line in said(settings))


def test_examine__connect_drops_an_address_where_the_backend_was_before(settings: Settings, studio: FakeStudio) -> None:
    title = wire.model_version(settings.embedder)
    studio.add_project(1, TIMELINE)
    studio.projects[1]["model_version"] = title
    old = {"id": 1, "project": 1, "url": "http://127.0.0.1:1", "title": title, "state": "DI"}
    studio.models[1] = old
    studio.webhooks[1] = {"id": 1, "project": 1, "url": "http://127.0.0.1:1/webhook"}
    studio.webhooks[2] = {"id": 2, "project": 1, "url": "http://127.0.0.1:2/webhook"}
    assert said(settings, connect=True)[-1].startswith("ok     project 1 'project 1': connected, fills")
    assert [model["url"] for model in studio.models.values()] == [settings.backend_url]
    hooks = [hook["url"] for hook in studio.webhooks.values()]
    assert hooks == ["http://127.0.0.1:2/webhook", f"{settings.backend_url}/webhook"]
    assert studio.projects[1]["model_version"] == title

    ours = studio.models.popitem()[1]
    studio.models |= {1: old, 2: ours | {"id": 2}}  # both: as an earlier version left it
    assert not any(line.startswith("wrong") for line in said(settings, connect=True))
    assert [model["url"] for model in studio.models.values()] == [settings.backend_url]


@pytest.mark.parametrize(
    "other", [{"title": "Somebody's"}, {"url": "http://other:9090"}, {"state": "CO"}], ids=["title", "host", "answers"]
)
def test_examine__connect_leaves_models_of_others(
    settings: Settings, studio: FakeStudio, other: dict[str, str]
) -> None:
    studio.add_project(1, TIMELINE)
    ours = {"url": "http://127.0.0.1:1", "title": wire.model_version(settings.embedder), "state": "DI"}
    studio.models[1] = {"id": 1, "project": 1, **ours, **other}
    wrong, connected = said(settings, connect=True)[-2:]
    assert wrong.endswith("; disconnect that one")
    assert "connected, though not asked, fills" in connected
    assert len(studio.models) == 2


def test_examine__label_studio_cannot_reach_the_model(settings: Settings, studio: FakeStudio) -> None:
    studio.add_project(1, TIMELINE)
    connect(studio, settings)
    studio.models[1] |= {"state": "ER", "error_message": "connection refused"}
    assert "wrong  project 1 'project 1': Label Studio says that the model is ER: connection refused" in said(settings)


def test_examine__webhook_missing(settings: Settings, studio: FakeStudio) -> None:
    studio.add_project(1, TIMELINE)
    connect(studio, settings)
    studio.webhooks.clear()
    finding = said(settings)[-1]
    assert finding.startswith("wrong  project 1 'project 1': has no webhook to the backend")
    assert "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false" in finding


def test_examine__labeling_configuration(settings: Settings, studio: FakeStudio) -> None:
    studio.add_project(1, UNRESERVED)
    studio.add_project(2, NO_VIDEO)
    studio.add_project(3, UNRESERVED_CHOICES)
    connect(studio, settings)
    unreserved, fills, no_video, choices, _ = said(settings)[-5:]
    assert unreserved == (
        "wrong  project 1 'project 1' labels: no label marks clusters that nobody has named yet; "
        "add <Label value='Cluster (unnamed)'/> to timeline"
    )
    assert fills.startswith("ok     project 1")
    assert no_video.startswith(
        "wrong  project 2 'project 2': the labeling configuration has no control that we can fill"
    )
    assert choices.endswith("; add <Choice value='Cluster (unnamed)'/> to category")


def test_examine__a_keyframes_project_needs_a_webhook_but_no_model(
    settings: Settings, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.add_project(1, TIMELINE)
    studio.add_project(2, shipped_config("keyframe_choices"))
    connect(studio, settings)
    videos, keyframes = (wire.project_uid(number, CREATED_AT) for number in (1, 2))
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        store.put_project(Project(videos, 1, "videos", TIMELINE))
        store.labels.put_companion(Companion(videos, keyframes, 2, ""))
    assert said(settings)[-1].startswith("wrong  project 2 'project 2': has no webhook to the backend")
    monkeypatch.setattr("lookalike.doctor._YOUNG_S", 1e12)
    assert said(settings)[-1].endswith(
        "holds the keyframes of another project, was made a moment ago and is being set up"
    )
    studio.webhooks[9] = {"id": 9, "project": 2, "url": f"{settings.backend_url}/webhook"}
    assert said(settings)[-1] == "ok     project 2 'project 2': holds the keyframes of another project"


def test_examine__keyframes_of_a_project_that_is_gone_are_not_to_be_connected(
    settings: Settings, studio: FakeStudio
) -> None:
    studio.add_project(2, TIMELINE)
    studio.projects[2]["description"] = describe("1.2026")
    last = said(settings)[-1]
    assert last.startswith("ok     project 2 'project 2': holds keyframes of the videos of project 1, which is gone")
    studio.projects[2]["description"] = "Somebody's own"
    assert "--connect" in said(settings)[-1]


def test_command__exit_status_says_whether_anything_is_wrong(
    settings: Settings, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    studio.add_project(1, TIMELINE)
    wrong = CliRunner().invoke(command, [])
    assert (wrong.exit_code, "is not connected" in wrong.stdout) == (1, True)
    mended = CliRunner().invoke(command, ["--project", "1", "--connect"])
    assert (mended.exit_code, "wrong" in mended.stdout) == (0, False)
