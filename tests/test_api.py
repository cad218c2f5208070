"""The JSON API: who may ask, how searches are read, what is told of results."""

from __future__ import annotations

import base64
import threading
import time
from queue import SimpleQueue

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from lookalike import wire
from lookalike.store import Project
from tests.gallery import Gallery, claim, label_config, seed
from tests.studio import CREATED_AT, TOKEN, FakeStudio

URL = "/api/projects/7/similar"
HEADERS = {"Authorization": f"Token {TOKEN}"}


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def gallery(app: Flask, studio: FakeStudio) -> Gallery:
    config = label_config()
    studio.add_project(7, config)
    services = app.extensions["lookalike"]
    project = Project(wire.project_uid(7, CREATED_AT), 7, "Streets", config)
    return seed(services.store, services.settings, project, keyframes=40, pictures=[])


def test_similar__of_a_category(client: FlaskClient, gallery: Gallery) -> None:
    answer = client.get(URL, query_string={"category": "Car", "top": 5}, headers=HEADERS)
    assert answer.status_code == 200
    assert answer.json is not None
    assert (answer.json["searched"], answer.json["examples"], answer.json["complete"]) == (80, 1, True)
    results = answer.json["results"]
    assert len(results) == 5
    first = results[0]
    assert first["video"] in ("clip 0.mp4", "clip 1.mp4")
    assert first["thumbnail"] == f"/thumbnails/{first['keyframe']}.jpg"
    assert first["cluster"] == "c0000"
    assert first["proposed"] == "Car"
    assert first["labels"] == []
    assert first["nearest"]["example"] == gallery.labelled[0]
    assert [r["similarity"] for r in results] == sorted((r["similarity"] for r in results), reverse=True)


def test_similar__the_same_by_post(client: FlaskClient, gallery: Gallery) -> None:
    by_get = client.get(f"{URL}?category=Car&top=5&task=101&labelled=no&fold=no&cluster=c0000", headers=HEADERS)
    body = {"category": "Car", "top": 5, "tasks": [101], "labelled": False, "fold": False, "clusters": ["c0000"]}
    by_post = client.post(URL, json=body, headers=HEADERS)
    assert by_get.json == by_post.json
    assert {result["task"] for result in by_get.json["results"]} == {101}  # type: ignore[index]


def test_similar__more_and_less_like_keyframes(client: FlaskClient, gallery: Gallery) -> None:
    car, bus = (int(gallery.ids[gallery.truth == kind][0]) for kind in (0, 1))
    answer = client.get(f"{URL}?keyframe={bus}&unlike={car}&top=10", headers=HEADERS)
    found = [result["keyframe"] for result in answer.json["results"]]  # type: ignore[index]
    assert {int(gallery.truth[np.searchsorted(gallery.ids, k)]) for k in found} == {1}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "name a category"),
        ("category=Boat", "nobody has labelled a keyframe 'Boat' yet"),
        ("category=Car&top=0", "top must be a whole number from 1 to 1000, got '0'"),
        ("category=Car&top=x", "top must be a whole number, got 'x'"),
        ("keyframe=99", "keyframe 99 is not in this project"),
        ("category=Car&cluster=7", "a cluster has a name such as c0007, got '7'"),
        ("category=Car&labelled=maybe", "labelled must be yes or no, got 'maybe'"),
        ("category=Car&colour=red", "'colour' is no parameter of a search"),
    ],
)
def test_similar__what_is_wrong_is_said(client: FlaskClient, gallery: Gallery, query: str, message: str) -> None:
    answer = client.get(f"{URL}?{query}", headers=HEADERS)
    assert answer.status_code == 400
    assert message in answer.json["error"]["message"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the body must be a JSON object"),
        ({"categories": "Car"}, "'categories' is no field of a search"),
        ({"like": ["5"]}, "each of like must be a keyframe's id"),
        ({"like": [True]}, "each of like must be a keyframe's id"),
        ({"like": [{"image": "no base64"}]}, "image must be a picture's file in base64"),
        ({"like": [{"keyframe": 5, "box": [0, 0, 2, 1]}]}, "box must be [x, y, width, height]"),
        ({"like": [{"asked": "abc"}]}, "'abc' was not asked within the last day"),
        ({"like": 5}, "like must be a list"),
        ({"text": 5}, "text must be text"),
        ({"category": "Car", "fold": "no"}, "fold must be true or false"),
        ({"category": "Car", "top": 1.5}, "top must be a whole number from 1 to 1000"),
    ],
)
def test_similar__what_is_wrong_in_a_body_is_said(
    client: FlaskClient, gallery: Gallery, body: object, message: str
) -> None:
    answer = client.post(URL, json=body, headers=HEADERS)
    assert answer.status_code == 400
    assert message in answer.json["error"]["message"]  # type: ignore[index]


def test_similar__a_picture_is_asked_of_a_worker_and_kept(
    app: Flask, client: FlaskClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searches._WAIT_S", 0.2)
    body = {"like": [{"image": base64.b64encode(b"a picture").decode()}], "top": 3}
    answer = client.post(URL, json=body, headers=HEADERS)
    assert answer.status_code == 202
    assert answer.json["state"] == "working"  # type: ignore[index]
    assert answer.headers["Retry-After"] == "1"

    store = app.extensions["lookalike"].store

    def work() -> None:
        time.sleep(0.3)
        store.questions.answer(claim(store, "question", "1"), gallery.vectors[gallery.truth == 2][0] * 7)

    worker = threading.Thread(target=work)
    worker.start()
    monkeypatch.setattr("backend.searches._WAIT_S", 60.0)
    answer = client.post(URL, json=body, headers=HEADERS)
    worker.join()
    assert answer.status_code == 200
    assert answer.json is not None
    [asked] = answer.json["asked"]
    assert asked["kind"] == "image"
    assert {result["nearest"]["example"] for result in answer.json["results"]} == {asked["asked"]}
    again = client.post(URL, json={"like": [{"asked": asked["asked"]}], "top": 3}, headers=HEADERS)
    assert again.json == answer.json


def test_similar__few_wait_for_the_workers_at_a_time(
    client: FlaskClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has eight threads, and Label Studio gives a webhook one second."""
    monkeypatch.setattr("backend.searches._WAIT_S", 0.0)
    go_on, waited, answers = threading.Event(), list[int](), SimpleQueue[int]()

    def look(question: int) -> bool:
        waited.append(question)
        assert go_on.wait(60)
        return False

    def ask(number: int) -> None:
        answers.put(client.application.test_client().get(f"{URL}?text={number}", headers=HEADERS).status_code)

    client.get(f"{URL}?category=Car", headers=HEADERS)  # the index is there
    monkeypatch.setattr(client.application.extensions["lookalike"].store.questions, "is_answered", look)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    assert [answers.get(timeout=60) for _ in range(5)] == [202] * 5
    assert answers.empty()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(waited) == 3
    assert [answers.get() for _ in range(3)] == [202] * 3


def test_similar__why_a_worker_could_not_is_said(
    app: Flask, client: FlaskClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searches._WAIT_S", 0.0)
    assert client.get(f"{URL}?text=a+car", headers=HEADERS).status_code == 202
    store = app.extensions["lookalike"].store
    threading.Timer(
        0.3,
        lambda: store.questions.answer(claim(store, "question", "1"), None, "efficientnet-lite0 knows no words"),
    ).start()
    monkeypatch.setattr("backend.searches._WAIT_S", 60.0)
    answer = client.get(f"{URL}?text=a+car", headers=HEADERS)
    assert answer.status_code == 400
    assert answer.json["error"]["message"] == "efficientnet-lite0 knows no words"  # type: ignore[index]


def test_similar__of_a_project_that_one_may_not_see(
    app: Flask, client: FlaskClient, gallery: Gallery, studio: FakeStudio
) -> None:
    assert client.get(f"{URL}?category=Car").status_code == 401
    assert client.get(URL.replace("7", "8"), headers=HEADERS).status_code == 404
    services = app.extensions["lookalike"]
    services.store.put_project(Project("9.1", 9, "Not theirs", "<View/>"))
    assert client.get(URL.replace("7", "9"), headers=HEADERS).status_code == 404


def test_similar__from_another_sites_page(client: FlaskClient, gallery: Gallery) -> None:
    answer = client.post(URL, json={"category": "Car"}, headers={**HEADERS, "Origin": "https://elsewhere.example"})
    assert answer.status_code == 403


def test_tabs__are_asked_for_and_listed(app: Flask, client: FlaskClient, gallery: Gallery) -> None:
    assert client.get(f"{URL}/tabs", headers=HEADERS).json == {"tabs": []}
    assert client.post(f"{URL}/tabs", json={"category": "Car"}, headers=HEADERS).status_code == 202
    [tab] = client.get(f"{URL}/tabs", headers=HEADERS).json["tabs"]  # type: ignore[index]
    assert tab == {"category": "Car", "tasks": 0, "url": None}
    store = app.extensions["lookalike"].store
    assert claim(store, "similar", gallery.project.uid).kind == "similar"
    answer = client.post(f"{URL}/tabs", json={"category": "Boat"}, headers=HEADERS)
    assert answer.status_code == 400


def test_openapi__is_there_for_whoever_is_signed_in(client: FlaskClient) -> None:
    answer = client.get("/api/openapi.json", headers=HEADERS)
    assert answer.json is not None
    assert answer.json["openapi"] == "3.1.0"
    assert client.get("/api/openapi.json").status_code == 401
