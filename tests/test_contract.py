"""Label Studio's requests, as 1.23.2 sent them, and what comes of each."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.services import Services
from lookalike.labels import Companion
from lookalike.records import Clustering
from lookalike.schema import work
from lookalike.settings import Settings
from lookalike.store import Project, Store
from lookalike.wire import parse_webhook

REQUESTS = json.loads((Path(__file__).parent / "label_studio_requests.json").read_text())
TIMELINE = REQUESTS["/setup"]["schema"]
BODY = {
    "result": [
        {
            "id": "0-9",
            "from_name": "tl",
            "to_name": "video",
            "type": "timelinelabels",
            "value": {"ranges": [{"start": 1, "end": 10}], "timelinelabels": ["Car"]},
        }
    ],
    "score": 0.5,
    "model_version": "lookalike-efficientnet-lite0",
}
UID = "1.1795417854"


def request_of(name: str) -> dict:
    return copy.deepcopy(REQUESTS[name])


def bulk(number: int) -> dict:
    """`/predict many` as it was: one task, 1,200 times."""
    body = request_of("/predict many")
    task = body["tasks"][0]
    body["tasks"] = [{**task, "id": n + 1, "data": {"video": f"http://x/{n}.mp4"}} for n in range(number)]
    return body


def make_ready(store: Store, uid: str) -> None:
    """Give all of a project's videos a prediction, as the workers do."""
    store.want("cluster", uid)
    row = next(row for row in store.ledger.due(("cluster",), 100) if row.subject == uid)
    claim = store.ledger.claim(row.id, "test", lease_s=60, max_crashes=3)
    assert claim is not None
    nothing = Clustering(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    bodies = {video.id: BODY for video in store.videos(uid)}
    store.put_clustering(claim, "efficientnet-lite0", nothing, 0, bodies)


def work_of(services: Services) -> dict[tuple[str, str], int]:
    return services.store.ledger.counts()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock")  # no queue server


@pytest.fixture
def client(settings: Settings) -> Iterator[FlaskClient]:
    app = create_app(settings)
    yield app.test_client()
    app.extensions["lookalike"].close()


@pytest.fixture
def services(client: FlaskClient) -> Services:
    found = client.application.extensions["lookalike"]
    assert isinstance(found, Services)
    return found


# --- health, versions, ready ---


@pytest.mark.parametrize("route", ["/health", "/"])
def test_health__is_what_label_studio_ml_answers(client: FlaskClient, route: str) -> None:
    answer = client.get(route)
    assert answer.status_code == 200
    assert answer.get_json() == {"model_class": "Lookalike", "status": "UP"}


def test_health__touches_nothing(client: FlaskClient, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "store", None)
    monkeypatch.setattr(services, "queue", None)
    assert client.get("/health").status_code == 200


def test_versions__are_those_of_setup_and_predictions(client: FlaskClient) -> None:
    assert client.get("/versions").get_json() == {"versions": ["lookalike-efficientnet-lite0"]}


def test_ready__names_what_fails(client: FlaskClient) -> None:
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.get_json()["failing"] == ["queue"]


def test_ready__full_disk(settings: Settings, valkey: str) -> None:
    client = create_app(settings.with_(redis_url=valkey, disk_free_mb=1e12)).test_client()
    assert client.get("/ready").get_json()["failing"] == ["disk"]


def test_ready__all_well(settings: Settings, valkey: str) -> None:
    answer = create_app(settings.with_(redis_url=valkey, disk_free_mb=0)).test_client().get("/ready")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready", "failing": []})


# --- setup ---


def test_setup__remembers_the_project_and_looks_for_its_tasks(client: FlaskClient, services: Services) -> None:
    answer = client.post("/setup", json=request_of("/setup"))
    assert answer.status_code == 200
    assert answer.get_json() == {"model_version": "lookalike-efficientnet-lite0"}
    project = services.store.project(UID)
    assert project is not None
    assert (project.label_studio_id, project.label_config) == (1, TIMELINE)
    assert work_of(services) == {("sync", "due"): 1}


def test_setup__asked_again_writes_nothing(client: FlaskClient, services: Services) -> None:
    client.post("/setup", json=request_of("/setup"))
    row = services.store.ledger.due(("sync",), 1)[0]
    services.store.ledger.finish(services.store.ledger.claim(row.id, "test", lease_s=9, max_crashes=3))
    client.post("/setup", json=request_of("/setup"))
    assert work_of(services) == {("sync", "done"): 1}


@pytest.mark.parametrize("extra", [{"k": 1}, '{"k": 1}', "", None, {}])
def test_setup__extra_params_in_any_form(client: FlaskClient, extra: object) -> None:
    assert client.post("/setup", json=request_of("/setup") | {"extra_params": extra}).status_code == 200


def test_setup__extra_params_that_are_no_json_are_told(client: FlaskClient) -> None:
    answer = client.post("/setup", json=request_of("/setup") | {"extra_params": "clusters=20"})
    assert answer.status_code == 400
    assert "extra_params must be JSON" in answer.status  # the one thing that Label Studio shows


@pytest.mark.parametrize("schema", ["<View></View>", "<View>\n</View>", "", None])
def test_setup__blank_config_is_welcome(client: FlaskClient, schema: str | None) -> None:
    body = {"project": "1.1000000000", "schema": schema, "extra_params": {}}
    assert client.post("/setup", json=body).status_code == 200


def test_setup__config_without_a_control_for_us_is_refused_with_the_reason(
    client: FlaskClient, services: Services
) -> None:
    schema = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="x"/></Choices></View>'
    answer = client.post("/setup", json=request_of("/setup") | {"schema": schema})
    assert answer.status_code == 422
    assert answer.get_json()["error"]["type"] == "LabelConfigError"
    assert answer.status.startswith("422 the labeling configuration has no control that we can fill")
    assert services.store.projects() == []


def test_setup__never_keeps_or_logs_the_access_token(
    client: FlaskClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    token = "SENTINEL" + "0123456789abcdef" * 2
    with caplog.at_level(logging.DEBUG):
        client.post("/setup", json=request_of("/setup") | {"access_token": token})
    assert token not in caplog.text
    assert not any(token.encode() in path.read_bytes() for path in settings.data_dir.glob("ledger*"))


# --- predict ---


def test_predict__not_ready_answers_an_empty_list_and_starts_the_work(client: FlaskClient, services: Services) -> None:
    answer = client.post("/predict", json=request_of("/predict one"))
    assert (answer.status_code, answer.get_json()) == (200, {"results": [[]]})
    video = services.store.videos(UID)[0]
    assert (video.task, video.url) == (1, "/data/upload/1/954ee45b-clip10.mp4")
    assert work_of(services) == {("video", "due"): 1, ("sync", "due"): 1}


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given out is not given out again, however long the test takes."""
    monkeypatch.setattr("backend.contract._ONE_ANSWER_S", 600)


def sleeping(monkeypatch: pytest.MonkeyPatch, until: threading.Event) -> list[float]:
    """For how long requests sleep: they do so until the event instead."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert until.wait(60)

    monkeypatch.setattr("backend.services.time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    return slept


def test_predict__ready_is_given_out_once(
    client: FlaskClient, services: Services, once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/predict", json=request_of("/predict one"))
    make_ready(services.store, UID)
    at_once = threading.Event()
    at_once.set()
    slept = sleeping(monkeypatch, at_once)
    assert client.post("/predict", json=request_of("/predict one")).get_json() == {"results": [BODY]}
    assert slept == []
    assert client.post("/predict", json=request_of("/predict one")).get_json() == {"results": [[]]}
    assert slept == [1.0], "until Label Studio has saved what the other got"


def test_predict__ready_is_given_out_again_later(
    client: FlaskClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/predict", json=request_of("/predict one"))
    make_ready(services.store, UID)
    monkeypatch.setattr("backend.contract._ONE_ANSWER_S", 0.05)
    for _ in range(2):
        assert client.post("/predict", json=request_of("/predict one")).get_json() == {"results": [BODY]}
        time.sleep(0.1)


def test_predict__no_more_than_three_threads_wait(
    client: FlaskClient, services: Services, once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/predict", json=request_of("/predict one"))
    make_ready(services.store, UID)
    client.post("/predict", json=request_of("/predict one"))
    go_on, answers = threading.Event(), SimpleQueue[Any]()
    slept = sleeping(monkeypatch, go_on)

    def ask() -> None:
        answers.put(client.application.test_client().post("/predict", json=request_of("/predict one")).get_json())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert [answers.get(timeout=60) for _ in range(3)] == [{"results": [[]]}] * 3
    assert answers.empty()
    go_on.set()
    for thread in threads:
        thread.join()
    assert slept == [1.0] * 3


def test_predict__one_result_per_task_in_order(client: FlaskClient, services: Services) -> None:
    body = bulk(3)
    client.post("/predict", json=body)
    make_ready(services.store, body["project"])
    tasks = body["tasks"]
    new = {**tasks[0], "id": 99, "data": {"video": "http://x/new.mp4"}}
    answer = client.post("/predict", json=body | {"tasks": [tasks[2], new, tasks[0], tasks[1]]})
    assert answer.get_json()["results"] == [BODY, [], BODY, BODY]


@pytest.mark.parametrize("ready", [False, True])
def test_predict__1200_tasks_in_one_body_take_less_than_a_second(
    client: FlaskClient, services: Services, ready: bool, once: None
) -> None:
    body = bulk(1200)
    if ready:
        client.post("/predict", json=body)
        make_ready(services.store, body["project"])
    started = time.process_time()
    results = client.post("/predict", json=body).get_json()["results"]
    seconds = time.process_time() - started
    assert results == [BODY if ready else []] * 1200
    assert seconds < 1
    assert len(services.store.videos(body["project"])) == 1200
    # asked again at once, as two people at a time do: nobody waits
    started = time.process_time()
    assert client.post("/predict", json=body).get_json()["results"] == [[]] * 1200
    assert time.process_time() - started < 1


def test_predict__tasks_without_an_address_get_an_empty_list(
    client: FlaskClient, services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    body = request_of("/predict one")
    task = body["tasks"][0]
    odd = [{}, {"video": None}, {"video": 7}, {"video": ""}, {"video": ["a"]}, {"video": "a\0"}, {"video": "\ud800"}]
    body["tasks"] = [{**task, "id": n, "data": data} for n, data in enumerate(odd)] + [task]
    answer = client.post("/predict", json=body)
    assert (answer.status_code, answer.get_json()) == (200, {"results": [[]] * 8})
    assert [video.task for video in services.store.videos(UID)] == [1]
    assert "7 of 8 tasks have no address in 'video'" in caplog.text


def test_predict__one_task_that_is_none_does_not_spoil_the_others(client: FlaskClient, services: Services) -> None:
    body = request_of("/predict one")
    client.post("/predict", json=body)
    make_ready(services.store, UID)
    body["tasks"] = [{"data": {"video": "a.mp4"}}, None, 7, {"id": "x"}, {"id": 3, "data": "a"}, body["tasks"][0]]
    assert client.post("/predict", json=body).get_json() == {"results": [[], [], [], [], [], BODY]}


def test_predict__as_label_studio_ml_tests_it(client: FlaskClient) -> None:
    body = {
        "tasks": {"id": 1},
        "label_config": "<View></View>",
        "project": "1.1000000000",
        "params": {"context": {}},
    }
    answer = client.post("/predict", json=body)
    assert (answer.status_code, answer.get_json()) == (200, {"results": [[]]})


def test_predict__without_a_project_or_tasks(client: FlaskClient) -> None:
    assert client.post("/predict", json={}).get_json() == {"results": []}
    body = request_of("/predict one")
    del body["project"]
    assert client.post("/predict", json=body).get_json() == {"results": [[]]}


def test_predict__interactive_suggests_no_regions_and_saves_nothing(client: FlaskClient, services: Services) -> None:
    results = client.post("/predict", json=request_of("/predict ctx")).get_json()["results"]
    assert results == [{"result": [], "score": None, "model_version": "lookalike-efficientnet-lite0"}]
    assert services.store.projects() == []


def test_predict__full_takes_no_new_videos_but_gives_out_what_is_ready(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.services._LOOK_FOR_ROOM_EVERY_S", 0)
    client = create_app(settings.with_(max_queue=1)).test_client()
    store = client.application.extensions["lookalike"].store
    client.post("/predict", json=request_of("/predict one"))
    make_ready(store, UID)
    client.post("/predict", json=bulk(3))
    body = bulk(3)
    body["tasks"].append({**body["tasks"][0], "id": 77})
    assert client.post("/predict", json=body).get_json() == {"results": [[]] * 4}
    assert len(store.videos(body["project"])) == 3
    assert client.post("/predict", json=request_of("/predict one")).get_json() == {"results": [BODY]}


# --- webhook ---


def test_webhook__tasks_created_starts_the_work(client: FlaskClient, services: Services) -> None:
    answer = client.post("/webhook", json=request_of("/webhook TASKS_CREATED"))
    assert (answer.status_code, answer.get_json()) == (201, {"result": {"new": 1}, "status": "ok"})
    project = services.store.projects()[0]
    assert project.uid == "1.1795418028"  # the same as in /predict and /setup, from created_at
    assert [video.task for video in services.store.videos(project.uid)] == [1]
    assert work_of(services)["video", "due"] == 1


def test_webhook__the_same_event_again_changes_nothing(client: FlaskClient, services: Services) -> None:
    for new in (1, 0, 0):
        answer = client.post("/webhook", json=request_of("/webhook TASKS_CREATED"))
        assert answer.get_json()["result"] == {"new": new}
    assert work_of(services)["video", "due"] == 1


def test_webhook__a_storage_sync_of_5000_tasks(client: FlaskClient, services: Services) -> None:
    body = request_of("/webhook TASKS_CREATED")
    task = body["tasks"][0]
    body["tasks"] = [{**task, "id": n, "data": {"video": f"/data/upload/1/{n:08x}-clip.mp4"}} for n in range(5000)]
    started = time.process_time()
    assert client.post("/webhook", json=body).get_json()["result"] == {"new": 5000}
    assert time.process_time() - started < 1  # Label Studio hangs up after a second; the work is done all the same


def test_webhook__tasks_deleted_are_forgotten(client: FlaskClient, services: Services) -> None:
    client.post("/webhook", json=request_of("/webhook TASKS_CREATED"))
    body = request_of("/webhook TASKS_DELETED")
    body["project"]["id"] = 1
    body["tasks"] = [{"id": 1}, {"id": 999}]
    assert client.post("/webhook", json=body).get_json()["result"] == {"deleted": 1}
    assert services.store.videos("1.1795418028") == []


def test_webhook__what_is_said_to_be_deleted_is_looked_for_at_label_studio(settings: Settings) -> None:
    """Whoever may manage a project there sees the login that we have webhooks sent with."""
    app = create_app(settings.with_(label_studio_url="http://127.0.0.1:9"))
    store, client = app.extensions["lookalike"].store, app.test_client()
    client.post("/webhook", json=request_of("/webhook TASKS_CREATED"))
    [asked] = store.ledger.due(("sync",), 10)
    store.ledger.finish(store.ledger.claim(asked.id, "test", lease_s=9, max_crashes=3))
    body = request_of("/webhook TASKS_DELETED")
    body["project"]["id"] = 1
    assert client.post("/webhook", json=body | {"tasks": [{"id": 1}]}).status_code == 201
    assert [video.task for video in store.videos("1.1795418028")] == [1]
    assert [row.state for row in store.ledger.rows(work.c.kind == "sync")] == ["due"]
    app.extensions["lookalike"].close()


def test_webhook__tasks_of_another_project_are_not_touched(client: FlaskClient, services: Services) -> None:
    client.post("/webhook", json=request_of("/webhook TASKS_CREATED"))
    body = request_of("/webhook TASKS_DELETED") | {"tasks": [{"id": 1}]}
    assert client.post("/webhook", json=body).get_json()["result"] == {"deleted": 0}
    assert len(services.store.videos("1.1795418028")) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ANNOTATION_CREATED", "propagate"),
        ("ANNOTATION_UPDATED", "propagate"),
        ("ANNOTATIONS_CREATED", "propagate"),
        ("ANNOTATIONS_DELETED", "propagate"),
        ("START_TRAINING", "cluster"),
    ],
)
def test_webhook__event_asks_for_work(client: FlaskClient, services: Services, name: str, kind: str) -> None:
    body = request_of(f"/webhook {name}")
    client.post("/webhook", json=body)
    for row in services.store.ledger.due(("sync", "cluster"), 10):
        services.store.ledger.finish(services.store.ledger.claim(row.id, "test", lease_s=9, max_crashes=3))
    answer = client.post("/webhook", json=body)
    assert (answer.status_code, answer.get_json()) == (201, {"result": None, "status": "ok"})
    rows = services.store.ledger.rows(work.c.state == "due")  # those for labels wait a moment for more of them
    assert {row.kind for row in rows} - {"sync"} <= {kind, "propagate"}
    assert kind in {row.kind for row in rows}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ANNOTATION_CREATED", "propagate"),
        ("ANNOTATIONS_DELETED", "propagate"),
        ("TASKS_CREATED", "propagate"),
        ("TASKS_DELETED", "sync"),
        ("PROJECT_UPDATED", "propagate"),
    ],
)
def test_webhook__the_keyframes_project_asks_for_its_videos_project(
    client: FlaskClient, services: Services, name: str, kind: str
) -> None:
    body = request_of(f"/webhook {name}")
    uid = parse_webhook(body).project_uid
    assert uid is not None
    services.store.put_project(Project("99.1", 99, "Videos", ""))
    services.store.labels.put_companion(Companion("99.1", uid, int(uid.split(".")[0]), "<View/>"))
    assert client.post("/webhook", json=body).status_code == 201
    assert [(row.kind, row.subject) for row in services.store.ledger.rows()] == [(kind, "99.1")]
    assert [project.uid for project in services.store.projects()] == ["99.1"], "it is no project of videos"


def test_predict__a_keyframes_project_has_no_videos(client: FlaskClient, services: Services) -> None:
    body = request_of("/predict one")
    services.store.put_project(Project("99.1", 99, "Videos", ""))
    services.store.labels.put_companion(Companion("99.1", body["project"], 1, "<View/>"))
    assert client.post("/predict", json=body).get_json() == {"results": [[]]}
    assert client.post("/setup", json=request_of("/setup")).status_code == 200
    assert services.store.ledger.rows() == []


def test_webhook__another_config_reads_and_clusters_the_project_again(client: FlaskClient, services: Services) -> None:
    body = request_of("/webhook PROJECT_UPDATED")
    client.post("/webhook", json=body)
    assert work_of(services) == {("sync", "due"): 1}
    client.post("/webhook", json=body)
    assert work_of(services) == {("sync", "due"): 1}
    body["project"]["label_config"] = body["project"]["label_config"].replace("Person", "Bus")
    client.post("/webhook", json=body)
    assert work_of(services) == {("sync", "due"): 1, ("cluster", "due"): 1}
    assert "Bus" in services.store.projects()[0].label_config


def test_webhook__unknown_event(client: FlaskClient) -> None:
    answer = client.post("/webhook", json=request_of("/webhook START_TRAINING") | {"action": "PROJECT_CREATED"})
    assert (answer.status_code, answer.get_json()) == (200, {"status": "Unknown event"})


def test_webhook__as_label_studio_ml_tests_it(client: FlaskClient) -> None:
    body = {"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": "<View></View>"}}
    answer = client.post("/webhook", json=body)
    assert (answer.status_code, answer.get_json()) == (201, {"result": None, "status": "ok"})


def test_webhook__without_created_at_means_the_project_known_by_that_id(
    client: FlaskClient, services: Services
) -> None:
    client.post("/setup", json=request_of("/setup"))
    client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 1}})
    assert work_of(services)["cluster", "due"] == 1


def test_webhook__project_without_a_control_for_us(client: FlaskClient, services: Services) -> None:
    body = request_of("/webhook TASKS_CREATED")
    body["project"]["label_config"] = "<View></View>"
    answer = client.post("/webhook", json=body)
    assert (answer.status_code, answer.get_json()["result"]) == (201, None)
    assert services.store.videos("1.1795418028") == []


@pytest.mark.parametrize(
    ("changes", "said"), [({"max_queue": 1}, "LOOKALIKE_MAX_QUEUE (1)"), ({"disk_free_mb": 1e12}, "disk")]
)
def test_webhook__no_room_answers_503(
    settings: Settings, changes: dict[str, float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.services._LOOK_FOR_ROOM_EVERY_S", 0)
    client = create_app(settings.with_(**changes)).test_client()
    if "max_queue" in changes:
        client.post("/predict", json=bulk(2))
    answer = client.post("/webhook", json=request_of("/webhook TASKS_CREATED"))
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert said in answer.get_json()["error"]["message"]
    # what people have done is small, and is taken in all the same
    assert client.post("/webhook", json=request_of("/webhook ANNOTATION_CREATED")).status_code == 201
