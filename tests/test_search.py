"""The page "Search": what it offers, what its results say, and that nobody searches in what is not theirs."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from backend.search import takes_words
from lookalike import wire
from lookalike.labels import LabelRow
from lookalike.schema import keyframe_tasks
from lookalike.store import Project
from tests.gallery import Gallery, claim, label_config, seed
from tests.studio import CREATED_AT, FakeStudio
from tests.web import HOSTILE, PAGE

URL = "/projects/7/search"
CATEGORIES = ("Car", HOSTILE, "Bicycle")


@pytest.fixture
def gallery(app: Flask, studio: FakeStudio) -> Gallery:
    config = label_config(CATEGORIES)
    studio.add_project(7, config)
    services = app.extensions["lookalike"]
    project = Project(wire.project_uid(7, CREATED_AT), 7, "Streets", config)
    return seed(
        services.store, services.settings, project, categories=CATEGORIES, pictures=[], names=[f"{HOSTILE}.mp4"]
    )


def post(client: FlaskClient, body: object) -> dict:  # type: ignore[type-arg]
    token = re.search(r'name="csrf" content="([^"]*)"', client.get(URL, headers=PAGE).text)
    assert token
    answer = client.post(URL, json=body, headers={"X-CSRF-Token": token[1]})
    assert answer.json is not None
    return {"status": answer.status_code, **answer.json}


def test_page__offers_what_the_project_has(client: FlaskClient, gallery: Gallery) -> None:
    page = client.get(URL, headers=PAGE).text
    options = re.findall(r"<option[^>]*>([^<]*)</option>", page)
    hostile = "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;"
    assert {"Car", hostile, f"{hostile}.mp4", "clip 1.mp4"} <= set(options)
    assert "Bicycle" not in options, "nobody has labelled one"
    assert sum(int(n) for n in re.findall(r">c\d{4} \((\d+)\)<", page)) == len(gallery.ids)
    assert 'aria-current="page">Search' in page
    assert "<img src=x" not in page


def test_page__words_where_the_model_takes_them(
    client: FlaskClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = client.get(URL, headers=PAGE).text
    assert "Words cannot be searched by: efficientnet-lite0 knows pictures only" in page
    assert 'name="text"' not in page
    monkeypatch.setattr("backend.search.takes_words", lambda embedder: True)
    page = client.get(URL, headers=PAGE).text
    assert "Words cannot be searched by" not in page
    assert 'name="text"' in page
    assert [
        takes_words(name)
        for name in (
            *("efficientnet-lite0", "google/siglip2-base-patch16-224", "openai/clip-vit-base-patch32@main"),
            *("facebook/dinov2-small#mean", "someone/some-model", "made/elsewhere.npz"),
        )
    ] == [False, True, True, False, True, False]


def test_results__tiles_with_similarity_and_the_nearest_labelled(client: FlaskClient, gallery: Gallery) -> None:
    bicycle = int(gallery.ids[gallery.truth == 2][0])
    found = post(client, {"like": [bicycle], "top": 5})
    ids = [int(n) for n in re.findall(r'data-id="(\d+)"', found["tiles"])]
    assert (found["count"], len(ids), found["searched"], found["complete"]) == (5, 5, len(gallery.ids), True)
    assert {int(gallery.truth[gallery.ids == k][0]) for k in ids} == {2}
    labelled = gallery.vectors[np.isin(gallery.ids, gallery.labelled)]
    for keyframe, said in zip(ids, re.findall(r"<span>([\d.]+) like ", found["tiles"]), strict=True):
        cosine = max(0.0, float((labelled @ gallery.vectors[gallery.ids == keyframe][0]).max()))
        assert float(said) == pytest.approx(cosine, abs=0.006)
    assert "<img src=x" not in found["tiles"]


def test_results__a_labelled_keyframe_is_not_its_own_example(app: Flask, gallery: Gallery) -> None:
    finder, (one, other) = app.extensions["lookalike"].finder, gallery.labelled
    nearest = finder.nearest_labelled(gallery.project.uid, [one, 99])
    assert {keyframe: example for keyframe, (example, _) in nearest.items()} == {one: other}


def test_results__the_nearest_of_more_than_are_compared_at_once(
    app: Flask, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, uid = app.extensions["lookalike"], gallery.project.uid
    rows = [
        LabelRow(int(k), "Car", "companion", 2000 + n, 500 + n, "ann@example.com", 1e9)
        for n, k in enumerate(gallery.ids[::3])
    ]
    services.store.labels.put_labels(uid, "companion", {row.task: "read" for row in rows}, rows)
    chosen = [int(k) for k in gallery.ids[1::3]]
    whole = services.finder.nearest_labelled(uid, chosen)
    monkeypatch.setattr("lookalike.finder._COMPARED", 4)
    apart = services.finder.nearest_labelled(uid, chosen)
    assert [example for example, _ in apart.values()] == [example for example, _ in whole.values()]
    assert [cosine for _, cosine in apart.values()] == pytest.approx([cosine for _, cosine in whole.values()])


def test_results__near_duplicates_are_a_number_on_a_tile(client: FlaskClient, app: Flask, gallery: Gallery) -> None:
    cars = [int(k) for k in gallery.ids[gallery.truth == 0]]
    leader, *copies = cars[1:4]
    with app.extensions["lookalike"].store.engine.begin() as connection:
        joined = update(keyframe_tasks).where(keyframe_tasks.c.keyframe.in_(copies))
        connection.execute(joined.values(leader=leader))
    folded = post(client, {"like": [cars[0]], "top": len(gallery.ids)})["tiles"]
    assert len(re.findall(r"\+2<span class=\"unseen\"> near-duplicates", folded)) == 1
    apart = post(client, {"like": [cars[0]], "top": len(gallery.ids), "fold": False})["tiles"]
    assert "near-duplicate" not in apart


def test_results__a_picture_is_waited_for(
    client: FlaskClient, app: Flask, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searches._WAIT_S", 0.0)
    body = {"like": [{"image": base64.b64encode(b"x" * 5_000_000).decode()}], "top": 3}
    first = post(client, body)
    assert (first["status"], first["state"]) == (202, "working")
    store = app.extensions["lookalike"].store
    store.questions.answer(claim(store, "question", "1"), gallery.vectors[gallery.truth == 1][0])
    found = post(client, body)
    assert [one["kind"] for one in found["asked"]] == ["image"]
    again = post(client, {"like": [{"asked": found["asked"][0]["asked"]}], "top": 3})
    assert again == found


def test_results__what_is_wrong_is_said(client: FlaskClient, gallery: Gallery) -> None:
    found = post(client, {"unlike": [int(gallery.ids[0])]})
    assert (found["status"], found["error"]["type"]) == (400, "RequestError")
    assert post(client, [])["status"] == 400


def test_results__for_nobody_else(client: FlaskClient, app: Flask, gallery: Gallery) -> None:
    assert app.test_client().get(URL).status_code == 401
    assert app.test_client().post(URL, json={"category": "Car"}).status_code == 401
    assert client.post(URL, json={"category": "Car"}).status_code == 403, "without the page's token"
    app.extensions["lookalike"].store.put_project(Project("9.1", 9, "Not theirs", "<View/>"))
    assert client.get(URL.replace("7", "9"), headers=PAGE).status_code == 404
