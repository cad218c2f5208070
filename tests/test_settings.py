"""Settings: read from the environment alone, checked at once, told to nobody."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from lookalike.errors import SettingsError
from lookalike.settings import PREFIX, Settings, plain_environment, table

ROOT = Path(__file__).parent.parent
SECRETS = {"store_url", "redis_url", "label_studio_token", "basic_auth_pass"}


def test_from_environment__reads_each_type(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "LOOKALIKE_DATA_DIR": str(tmp_path),
            "LOOKALIKE_PORT": "9191",
            "LOOKALIKE_POLL_S": "2.5",
            "LOOKALIKE_EMBEDDER": "a/model",
            "HOME": "/nowhere",
            "PORT": "1",
        }
    )
    assert (settings.data_dir, settings.port, settings.poll_s, settings.embedder) == (tmp_path, 9191, 2.5, "a/model")
    assert Settings.from_environment({}) == Settings()


def test_from_environment__is_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_PORT", "9192")
    assert Settings.from_environment().port == 9192


def test_from_environment__override_wins() -> None:
    environment = {"LOOKALIKE_PORT": "9191", "LOOKALIKE_WORKERS": "3"}
    settings = Settings.from_environment(environment, port=9292, workers=None)
    assert (settings.port, settings.workers) == (9292, 3)


def test_from_environment__home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.from_environment({"LOOKALIKE_DATA_DIR": "~/x"}).data_dir == tmp_path / "x"


def test_from_environment__secret_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame\n")
    settings = Settings.from_environment({"LOOKALIKE_LABEL_STUDIO_TOKEN_FILE": str(tmp_path / "token")})
    assert settings.label_studio_token == "sesame"


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("LOOKALIKE_COLOUR", "red", "LOOKALIKE_COLOUR is not a setting; the settings are LOOKALIKE_DATA_DIR, "),
        ("LOOKALIKE_PROMIS", "0.9", "LOOKALIKE_PROMIS is not a setting; is LOOKALIKE_PROMISE meant?"),
        ("LOOKALIKE_PORT", "high", "LOOKALIKE_PORT must be a whole number, got 'high'"),
        ("LOOKALIKE_PORT", "1.5", "LOOKALIKE_PORT must be a whole number, got '1.5'"),
        ("LOOKALIKE_PORT", "0", "LOOKALIKE_PORT must be between 1 and 65535, got 0"),
        ("LOOKALIKE_PORT", "65536", "LOOKALIKE_PORT must be between 1 and 65535, got 65536"),
        ("LOOKALIKE_POLL_S", "soon", "LOOKALIKE_POLL_S must be a number, got 'soon'"),
        ("LOOKALIKE_POLL_S", "nan", "LOOKALIKE_POLL_S must be at least 1, got nan"),
        ("LOOKALIKE_WORKERS", "0", "LOOKALIKE_WORKERS must be between 1 and 256, got 0"),
        ("LOOKALIKE_KEYFRAME_SHARE", "1.1", "LOOKALIKE_KEYFRAME_SHARE must be between 0.0001 and 1, got 1.1"),
        ("LOOKALIKE_KEYFRAME_MODE", "slow", "LOOKALIKE_KEYFRAME_MODE must be one of exact, fast, got 'slow'"),
        ("LOOKALIKE_LABEL_STUDIO_URL", "localhost:8080", "must start with http:// or https://, got 'localhost:8080'"),
        ("LOOKALIKE_BASIC_AUTH_USER", "me", "LOOKALIKE_BASIC_AUTH_USER and LOOKALIKE_BASIC_AUTH_PASS go together"),
        ("LOOKALIKE_PORT_FILE", "/etc/port", "LOOKALIKE_PORT_FILE: only secrets are read from a file"),
        ("LOOKALIKE_STORE_URL_FILE", "/not/there", "cannot read /not/there: No such file or directory"),
    ],
)
def test_from_environment__wrong_value_is_told(variable: str, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment({variable: text})
    assert says in str(error.value)


def test_bounds__defaults_and_edges_are_allowed() -> None:
    for f in fields(Settings):
        for bound in (f.metadata["low"], f.metadata["high"]):
            if bound is not None:
                assert getattr(Settings().with_(**{f.name: bound}), f.name) == bound


def test_to_environment__round_trip(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, store_url="postgresql://a:b@c/d", port=1, poll_s=1.25, keyframe_mode="fast", workers=2
    )
    assert Settings.from_environment(settings.to_environment()) == settings
    assert Settings().to_environment() == {}


def test_secrets__are_not_shown() -> None:
    settings = Settings(
        store_url="postgresql://me:sesame1@host/name",
        redis_url="redis://:sesame2@host",
        label_studio_token="sesame3",
        basic_auth_user="me",
        basic_auth_pass="sesame4",
    )
    assert "sesame" not in repr(settings)
    assert "sesame" not in f"{settings}"
    assert {f.name for f in fields(Settings) if f.metadata["secret"]} == SECRETS


def test_addresses__follow_from_each_other(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.sqlalchemy_url == f"sqlite:///{tmp_path}/ledger.sqlite3"
    assert settings.with_(store_url="postgresql://h/n").sqlalchemy_url == "postgresql://h/n"
    assert settings.backend_url == settings.page_url == "http://127.0.0.1:9090"
    assert settings.with_(connect_url="http://backend:9090/").backend_url == "http://backend:9090"
    assert settings.with_(public_url="https://page").page_url == "https://page"


def test_plain_environment__has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOKALIKE_LABEL_STUDIO_TOKEN", "LABEL_STUDIO_PORT", "PORT", "DEBUG", "USER_TOKEN"):
        monkeypatch.setenv(name, "x")
    environment = plain_environment()
    assert environment["PATH"] == os.environ["PATH"]
    assert not [name for name in environment if "LABEL_STUDIO" in name or name in ("PORT", "DEBUG", "USER_TOKEN")]


def test_readme__has_the_table_of_settings() -> None:
    """Made by `python -c 'from lookalike.settings import table; print(table())'`."""
    readme = ROOT / "README.md"
    assert readme.exists(), "README.md is missing"
    written = {line for line in readme.read_text().splitlines() if line.startswith(f"| `{PREFIX}")}
    true = {line for line in table().splitlines() if line.startswith(f"| `{PREFIX}")}
    assert len(true) == len(fields(Settings))
    assert written - true == set(), "README.md says of settings what is not so"
    assert true - written == set(), "README.md does not say this of settings"


def test_or_demo__stands_in_only_where_nothing_is_set(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.or_demo() == settings
    login = {"email": "a@b.c", "password": "p", "token": "t0ken", "url": "http://127.0.0.1:8080", "backend_port": 9191}
    (tmp_path / "login.json").write_text(json.dumps(login))
    demo = settings.or_demo()
    assert (demo.label_studio_url, demo.label_studio_token, demo.port) == ("http://127.0.0.1:8080", "t0ken", 9191)
    own = settings.with_(label_studio_url="http://example.com")
    assert own.or_demo() == own
    (tmp_path / "login.json").write_text("{")
    with pytest.raises(SettingsError, match="login"):
        settings.or_demo()
