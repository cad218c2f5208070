"""The map: drawn by a worker, shown by the backend."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from lookalike import wire
from lookalike.maps import Map
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store
from tests.gallery import CATEGORIES, Gallery, claim, label_config, seed
from tests.studio import CREATED_AT, TOKEN, FakeStudio
from workers import jobs, media
from workers.map import components, draw


def drawn(points: np.ndarray, known: Map | None = None, ids: np.ndarray | None = None) -> Map:
    """In a process of its own, as in the job: drawing lowers the priority."""
    ids = np.arange(len(points), dtype=np.int64) if ids is None else ids
    return media.run_guarded(draw, ids, points, known, timeout_s=120, memory_mb=4000)


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """((n, 60) vectors around four directions, which one)"""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(1).normal(size=(4, 60))
    which = random.integers(4, size=n)
    return (middles[which] + 0.3 * random.normal(size=(n, 60))).astype(np.float32), which


def test_draw__what_looks_alike_lies_side_by_side_and_the_same_again() -> None:
    vectors, which = blobs(200)
    points = components(vectors)
    assert points.shape == (200, 50)
    found = drawn(points)
    assert found.fitted == 200
    assert np.abs(found.places).max() <= 1
    for n in range(200):
        order = ((found.places - found.places[n]) ** 2).sum(axis=1).argsort()[1:6]
        assert (which[order] == which[n]).mean() >= 0.8
    assert np.array_equal(drawn(points).places, found.places)


def test_draw__a_few_new_ones_come_beside_their_like_and_nothing_else_moves() -> None:
    vectors, which = blobs(220)
    points = components(vectors)
    known = drawn(points[:200])
    ids = np.arange(220, dtype=np.int64)[5:]  # five are gone, twenty are new
    more = drawn(points[5:], known, ids)
    assert np.array_equal(more.places[:195], known.places[5:])
    assert more.fitted == 200
    for row in range(195, 215):
        nearest = ((known.places - more.places[row]) ** 2).sum(axis=1).argmin()
        assert which[nearest] == which[5 + row]
    afresh = drawn(points[:100], known, np.arange(1000, 1100, dtype=np.int64))
    assert afresh.fitted == 100


@pytest.mark.parametrize("n", [0, 1, 2, 4, 5, 9])
def test_draw__of_next_to_nothing(n: int) -> None:
    found = drawn(components(blobs(n)[0]))
    assert found.places.shape == (n, 2)
    assert np.isfinite(found.places).all()


def test_draw__of_equal_ones() -> None:
    assert np.isfinite(drawn(components(np.ones((40, 60), np.float32))).places).all()


# --- the page ---


@pytest.fixture
def client(app: Flask, studio: FakeStudio) -> FlaskClient:
    studio.add_project(7, label_config())
    program = app.test_client()
    program.environ_base["HTTP_AUTHORIZATION"] = f"Token {TOKEN}"
    return program


@pytest.fixture
def gallery(app: Flask) -> Gallery:
    services = app.extensions["lookalike"]
    project = Project(wire.project_uid(7, CREATED_AT), 7, "Streets", label_config())
    return seed(services.store, services.settings, project)


def run_job(settings: Settings, uid: str) -> None:
    from lookalike.schema import work

    store = open_store(settings.sqlalchemy_url)
    [row] = store.ledger.rows((work.c.kind == "map") & (work.c.subject == uid))
    store.close()
    jobs.open_workplace(settings, "test")
    jobs.map(row.id)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    length = int.from_bytes(data[:8], "little")
    header, at, arrays = json.loads(data[8 : 8 + length]), 8 + length, {}
    kinds = [("ids", "<f8", 1), ("xy", "<f4", 2), ("cluster", "<i4", 1), ("video", "<u4", 1), ("category", "<i2", 1)]
    for name, kind, each in [*kinds, ("confidence", "u1", 1)]:
        assert at % np.dtype(kind).itemsize == 0  # JavaScript's arrays lie on multiples of their size
        arrays[name] = np.frombuffer(data, kind, header["n"] * each, at)
        at += arrays[name].nbytes
    assert at == len(data)
    return header, arrays


def test_page__asks_for_a_map_once_and_shows_it(app: Flask, client: FlaskClient, gallery: Gallery) -> None:
    services, uid = app.extensions["lookalike"], gallery.project.uid
    assert client.get("/projects/7/map/points").status_code == 404
    state = client.get("/projects/7/map/state").get_json()
    assert state == {"keyframes": 60, "drawn": 0, "fresh": False, "state": "", "error": ""}
    for _ in range(2):
        assert client.post("/projects/7/map/draw").get_json()["state"] == "due"
    run_job(services.settings, uid)
    state = client.get("/projects/7/map/state").get_json()
    assert state == {"keyframes": 60, "drawn": 60, "fresh": True, "state": "done", "error": ""}
    assert client.post("/projects/7/map/draw").get_json()["state"] == "done"  # nothing is new
    answer = client.get("/projects/7/map/points")
    header, arrays = unpack(answer.data)
    assert arrays["ids"].astype(np.int64).tolist() == gallery.ids.tolist()
    assert arrays["cluster"].tolist() == gallery.grouped.clusters.tolist()
    assert header["videos"] == ["clip 0.mp4", "clip 1.mp4"]
    assert arrays["video"].tolist() == [0] * 30 + [1] * 30
    names = [header["categories"][n] if n >= 0 else "" for n in arrays["category"]]
    place = gallery.ids.tolist().index(gallery.labelled[0])
    assert (names[place], arrays["confidence"][place]) == (CATEGORIES[0], 255)
    assert set(names) == {"Bus", "Car", ""}
    again = client.get("/projects/7/map/points", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_page__a_failed_map_is_asked_for_again_by_people_only(
    app: Flask, client: FlaskClient, gallery: Gallery
) -> None:
    store: Store = app.extensions["lookalike"].store
    client.post("/projects/7/map/draw")
    store.ledger.fail(claim(store, "map", gallery.project.uid), "no memory left")
    assert client.get("/projects/7/map/state").get_json()["error"] == "no memory left"
    assert client.post("/projects/7/map/draw").get_json()["state"] == "failed"
    assert client.post("/projects/7/map/draw", json={"again": True}).get_json()["state"] == "due"


def test_page__before_the_first_keyframe(app: Flask, client: FlaskClient) -> None:
    app.extensions["lookalike"].store.put_project(
        Project(wire.project_uid(7, CREATED_AT), 7, "Streets", label_config())
    )
    assert client.post("/projects/7/map/draw").get_json()["state"] == ""
    assert client.get("/projects/7/map", headers={"Accept": "text/html"}).status_code == 200
