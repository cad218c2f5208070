"""`lookalike prelabel` as a person calls it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike.errors import LabelConfigError, LookalikeError, SettingsError, SetupError
from lookalike.queue import Queue
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store
from tests.clips import Scene, make_clip
from tests.services import ROOT
from workers import prelabel as module
from workers.prelabel import command, prelabel_project

UID = "7.1795418028"


def test_command__clips_to_contact_sheet(tmp_path: Path) -> None:
    make_clip(tmp_path / "in" / "a.mp4", [Scene(30, seed=1), Scene(30, seed=2)])
    out = tmp_path / "out"
    result = CliRunner().invoke(command, [str(tmp_path / "in"), "--out", str(out), "--clusters", "2"])
    assert (result.exit_code, result.stdout) == (0, f"1 video, 2 keyframes, 2 clusters → {out / 'clusters.html'}\n")
    assert {path.name for path in out.iterdir()} >= {"tasks.json", "embeddings.npz", "report.json", "clusters.html"}


def test_command__nothing_worked_is_status_1(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "gone.mp4"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    assert "gone.mp4: cannot be opened: no such file" in result.stderr


def test_command__ctrl_c_stops_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    make_clip(tmp_path / "long.mp4", [Scene(3000, seed=1, motion=2)], options={"preset": "ultrafast"})
    out = tmp_path / "out"
    process = subprocess.Popen(
        # behind the test, which sees in time that the clip is begun
        ["nice", "-n", "10", sys.executable, "-m", "lookalike.cli", "prelabel", tmp_path / "long.mp4", "--out", out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 240
    while not list(out.glob("keyframes/*.part/share.npy")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)  # returns only once no child holds the pipe either
    assert process.returncode == 130
    assert "stopped; what is done is kept" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name videos and a folder for the results"),
        (["x.mp4"], "name videos and a folder for the results"),
        (["x.mp4", "--project", "3"], "--project goes without PATHS"),
    ],
)
def test_command__what_does_not_go_together(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_command__bad_setting_is_named() -> None:
    result = CliRunner().invoke(command, ["x.mp4", "--out", "y", "--share", "7"])
    assert isinstance(result.exception, SettingsError)
    assert "LOOKALIKE_KEYFRAME_SHARE must be between" in str(result.exception)


# --- a connected project ---


@pytest.fixture
def settings(tmp_path: Path, valkey: str) -> Settings:
    return Settings(data_dir=tmp_path, redis_url=valkey)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = open_store(settings.sqlalchemy_url)
    yield store
    store.close()


def config() -> str:
    return module.LABEL_CONFIG.read_text()


def test_prelabel_project__waits_for_the_workers_and_tells(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.02)
    store.put_project(Project(UID, 7, "clips", config()))
    store.add_videos(UID, [(1, "/a.mp4", {})])
    (row,) = store.ledger.due(("video",), 10)
    claim = store.ledger.claim(row.id, "w", lease_s=60, max_crashes=3)
    assert claim
    store.ledger.fail(claim, "an earlier failure")  # is tried again

    def work() -> None:
        """A worker for whom every video is broken."""
        done: set[str] = set()
        while done < {"sync", "video"}:
            for row in store.ledger.due(("sync", "video"), 10):
                claim = store.ledger.claim(row.id, "w", lease_s=60, max_crashes=3)
                assert claim
                time.sleep(0.1)
                if row.kind == "sync":
                    store.ledger.finish(claim)
                else:
                    store.ledger.fail(claim, "a.mp4 is empty; upload it again")
                done.add(row.kind)

    worker = threading.Thread(target=work)
    worker.start()
    delivered = prelabel_project(7, settings)
    worker.join(10)
    assert delivered == 0
    said = capsys.readouterr()
    assert said.out == "1 video, 1 failed → project 7 'clips'\n"
    assert "task 1: a.mp4 is empty; upload it again" in said.err


def test_prelabel_project__nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="'lookalike up' is not running"):
        prelabel_project(7, Settings(data_dir=tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_prelabel_project__unknown_and_no_label_studio(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="project 7 is not connected yet"):
        prelabel_project(7, settings)


def test_prelabel_project__config_that_cannot_be_filled(settings: Settings, store: Store) -> None:
    store.put_project(Project(UID, 7, "clips", "<View><Text name='t' value='$t'/></View>"))
    with pytest.raises(LabelConfigError):
        prelabel_project(7, settings)


def test_prelabel_project__fetched_from_label_studio(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Studio:
        """One project, as the REST API gives it."""

        def __init__(self, url: str, token: str) -> None:
            assert (url, token) == ("http://studio", "token")

        def __enter__(self) -> Studio:
            return self

        def __exit__(self, *error: object) -> None: ...

        def project(self, number: int) -> dict[str, object]:
            return {"id": number, "created_at": "2026-11-23T07:13:48Z", "title": "new", "label_config": config()}

    class Told(LookalikeError):
        pass

    def stop(*_: object) -> None:
        raise Told

    monkeypatch.setattr(module, "LabelStudio", Studio)
    monkeypatch.setattr(module, "_watch", stop)
    with pytest.raises(Told):
        prelabel_project(7, settings.with_(label_studio_url="http://studio", label_studio_token="token"))
    (project,) = store.projects()
    assert (project.uid, project.title) == ("7.1795418028", "new")
    assert [row.kind for row in store.ledger.due(("sync",), 10)] == ["sync"]
    assert sum(Queue(settings.redis_url).depth().values()) >= 1
