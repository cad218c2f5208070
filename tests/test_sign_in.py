"""Addresses that sign in once, and the key behind them; sessions are tried in test_access."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike.errors import SettingsError, SetupError
from lookalike.settings import Settings
from lookalike.sign_in import SignIns, address, command
from lookalike.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/ledger.sqlite3")
    yield opened
    opened.close()


def test_key__is_one_for_all_who_start_at_once(tmp_path: Path, store: Store) -> None:
    made: list[SignIns] = []
    threads = [threading.Thread(target=lambda: made.append(SignIns(tmp_path, store.engine))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    text = made[0].seal({"name": "a"}, 60)
    assert all(one.open(text) is not None for one in made)


def test_key__that_is_none_is_a_sentence(tmp_path: Path, store: Store) -> None:
    (tmp_path / "session.key").write_text("nonsense")
    with pytest.raises(SetupError, match="delete it"):
        SignIns(tmp_path, store.engine)


def test_ticket__of_two_at_once_one_wins(tmp_path: Path, store: Store) -> None:
    sign_ins = SignIns(tmp_path, store.engine)
    ticket = sign_ins.ticket(60)
    won: list[bool] = []
    threads = [threading.Thread(target=lambda: won.append(sign_ins.redeem(ticket))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 5 + [True]


def test_ticket__that_is_old_or_changed_does_not_count(tmp_path: Path, store: Store) -> None:
    sign_ins = SignIns(tmp_path, store.engine)
    assert not sign_ins.redeem(sign_ins.ticket(-5))
    until, word, mark = sign_ins.ticket(60).split(".")
    for changed in (
        f"{until}0.{word}.{mark}",
        f"{until}.{word}x.{mark}",
        f"{until}.{word}.",
        f"..{mark}",
        "",
        "ä.ö.\ud800",
    ):
        assert not sign_ins.redeem(changed)
    assert sign_ins.redeem(f"{until}.{word}.{mark}")


def test_address__only_on_loopback_and_with_an_account(tmp_path: Path, store: Store) -> None:
    sign_ins = SignIns(tmp_path, store.engine)
    settings = Settings(label_studio_token="t" * 40)
    assert address(settings, sign_ins).startswith("http://127.0.0.1:9090/login/")
    with pytest.raises(SettingsError, match="LOOKALIKE_LABEL_STUDIO_TOKEN"):
        address(settings.with_(label_studio_token=""), sign_ins)
    with pytest.raises(SettingsError, match="sign in with your own"):
        address(settings.with_(host="0.0.0.0", basic_auth_user="a", basic_auth_pass="b"), sign_ins)


def test_command__prints_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_LABEL_STUDIO_TOKEN", "t" * 40)
    open_store(Settings(data_dir=tmp_path).sqlalchemy_url).close()
    done = CliRunner().invoke(command, ["--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("http://127.0.0.1:9090/login/")
