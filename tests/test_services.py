"""What is kept open from request to request: waking workers, room for more."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from redis import Redis

from backend.app import create_app
from lookalike.settings import Settings
from tests.test_contract import request_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock")  # no queue server


def test_kick__wakes_a_worker(settings: Settings, valkey: str) -> None:
    Redis.from_url(valkey).flushall()  # other tests kicked rows of the same numbers
    client = create_app(settings.with_(redis_url=valkey)).test_client()
    client.post("/predict", json=request_of("/predict one"))
    assert client.application.extensions["lookalike"].queue.depth() == {"videos": 1, "projects": 1}


def test_kick__a_dead_queue_server_is_told_once_in_a_while(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backend.services._QUEUE_REST_S", 600)
    client = create_app(settings).test_client()
    for number in range(5):
        body = request_of("/webhook TASKS_CREATED")
        body["tasks"][0]["id"] = number
        assert client.post("/webhook", json=body).status_code == 201
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the ledger remembers the work" in caplog.text


def test_kick__a_queue_server_that_hangs_costs_one_webhook_its_patience(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How long that is, is tried in test_queue."""
    monkeypatch.setattr("backend.services._QUEUE_REST_S", 600)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        deaf.listen(8)
        client = create_app(settings.with_(redis_url=f"unix://{tmp_path}/deaf.sock")).test_client()
        for number in range(5):
            body = request_of("/webhook TASKS_CREATED")
            body["tasks"][0]["id"] = number
            assert client.post("/webhook", json=body).status_code == 201
        deaf.accept()[0].close()
        deaf.setblocking(False)
        with pytest.raises(BlockingIOError):
            deaf.accept()
    assert [record.levelname for record in caplog.records] == ["WARNING"], "it is asked once"
    assert "Timeout" in caplog.text
