"""The adapter for teams that run label-studio-ml, under label-studio-ml's own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from lookalike.settings import Settings
from tests.test_contract import BODY, UID, make_ready, request_of

pytest.importorskip("label_studio_ml.model", reason="no label-studio-ml 2.x: pip install '.[label-studio-ml]'")

from label_studio_ml import api, model
from label_studio_ml.cache import create_cache

from backend import label_studio_ml
from backend.services import Services, open_services


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock")
    opened = open_services(settings)
    monkeypatch.setattr(label_studio_ml, "services", lambda: opened)
    monkeypatch.setattr(model, "CACHE", create_cache("sqlite", path=str(tmp_path)))
    yield opened
    opened.close()


@pytest.fixture
def client(services: Services) -> FlaskClient:
    app = api.init_app(label_studio_ml.LookalikeModel)
    client: Any = app.test_client()
    return client


def test_adapter__health(client: FlaskClient) -> None:
    assert client.get("/health").get_json() == {"model_class": "LookalikeModel", "status": "UP"}


@pytest.mark.parametrize("extra", [{"k": 1}, '{"k": 1}', "", {}])
def test_adapter__setup_remembers_the_project(client: FlaskClient, services: Services, extra: object) -> None:
    answer = client.post("/setup", json=request_of("/setup") | {"extra_params": extra})
    assert (answer.status_code, answer.get_json()) == (200, {"model_version": "lookalike-efficientnet-lite0"})
    assert [project.uid for project in services.store.projects()] == [UID]


def test_adapter__predict_is_ours(client: FlaskClient, services: Services) -> None:
    body = request_of("/predict one")
    assert client.post("/predict", json=body).get_json() == {"results": [[]]}
    make_ready(services.store, UID)
    assert client.post("/predict", json=body).get_json() == {"results": [BODY]}


def test_adapter__predict_of_several_keeps_the_order(client: FlaskClient, services: Services) -> None:
    body = request_of("/predict one")
    client.post("/predict", json=body)
    make_ready(services.store, UID)
    body["tasks"] = [{**body["tasks"][0], "id": 2}, body["tasks"][0]]
    assert client.post("/predict", json=body).get_json() == {"results": [[], BODY]}


def test_adapter__webhook_asks_for_work(client: FlaskClient, services: Services) -> None:
    body = request_of("/webhook START_TRAINING")
    answer = client.post("/webhook", json=body)
    assert (answer.status_code, answer.get_json()) == (201, {"result": None, "status": "ok"})
    assert services.store.ledger.counts()["cluster", "due"] == 1


def test_adapter__answers_label_studio_mls_own_tests(client: FlaskClient) -> None:
    asked = {"project": "1.1000000000", "label_config": "<View></View>", "tasks": {"id": 1}, "params": {"context": {}}}
    assert client.post("/predict", json=asked).status_code == 200
    asked = {"project": "1.1000000000", "schema": "<View></View>", "extra_params": {}}
    assert client.post("/setup", json=asked).status_code == 200
    asked = {"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": "<View></View>"}}
    assert client.post("/webhook", json=asked).status_code == 201
    assert client.get("/metrics").status_code == 200
    assert client.get("/").status_code == 200
