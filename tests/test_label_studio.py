"""The client against a real Label Studio, and against servers that misbehave on purpose."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import (
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioRefused,
    LabelStudioUnreachable,
)
from lookalike.label_studio import Filter, LabelStudio, first_token
from tests.services import LabelStudioServer, free_port

CONFIG = (Path(__file__).parent.parent / "label_config" / "video_timeline.xml").read_text()
SECRET = "SENTINEL0123456789"


def jwt(token_type: str) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"token_type": token_type}).encode()).decode().rstrip("=")
    return f"{SECRET}.{claims}.{SECRET}"


class FakeServer:
    """Answers from a list of (status, body); the last one for ever. Remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = [(200, {})]
        self.asked: list[tuple[str, str, str]] = []  # method, path, Authorization
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                outer.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
                if self.path == "/api/token/refresh/" and outer.refresh is not None:
                    status, body = outer.refresh
                else:
                    status, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                data = json.dumps(body).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://elsewhere.example/x?sig=SENTINEL")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Silent."""

        self.refresh: tuple[int, Any] | None = (200, {"access": "a1"})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr("lookalike.label_studio._FIRST_PAUSE_S", 0.01)
    server = FakeServer()
    yield server
    server.close()


# --- without Label Studio ---


def test_token__personal_token_is_exchanged_once_for_many_calls(fake: FakeServer) -> None:
    client = LabelStudio(fake.url, jwt("refresh"))
    client.whoami()
    client.whoami()
    assert [(path, authorization) for _, path, authorization in fake.asked] == [
        ("/api/token/refresh/", ""),
        ("/api/current-user/whoami", "Bearer a1"),
        ("/api/current-user/whoami", "Bearer a1"),
    ]


def test_token__is_renewed_before_it_runs_out(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = LabelStudio(fake.url, jwt("refresh"))
    client.whoami()
    now = time.monotonic()
    monkeypatch.setattr("lookalike.label_studio.time.monotonic", lambda: now + 299)
    client.whoami()
    assert [path for _, path, _ in fake.asked].count("/api/token/refresh/") == 2


def test_token__is_renewed_once_when_refused(fake: FakeServer) -> None:
    fake.answers = [(401, {"detail": "Given token not valid for any token type"}), (200, {"id": 7})]
    assert LabelStudio(fake.url, jwt("refresh")).whoami() == {"id": 7}
    assert [path for _, path, _ in fake.asked].count("/api/token/refresh/") == 2


def test_token__is_renewed_and_the_whole_file_sent_again(fake: FakeServer, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"what is seen")
    fake.answers = [(401, {"detail": "no"}), (200, {"file_upload_ids": [3]}), (200, [{"file": "upload/1/clip.mp4"}])]
    assert LabelStudio(fake.url, jwt("refresh")).upload_files(1, [clip]) == ["/data/upload/1/clip.mp4"]
    sent = [body for (_, path, _), body in zip(fake.asked, fake.bodies, strict=True) if "/import?" in path]
    assert [body.count(b"what is seen") for body in sent] == [1, 1]


def test_token__refused_for_good_says_so(fake: FakeServer) -> None:
    fake.answers = [(401, {"detail": "no"})]
    with pytest.raises(LabelStudioRefused, match="does not accept LOOKALIKE_LABEL_STUDIO_TOKEN"):
        LabelStudio(fake.url, jwt("refresh")).whoami()
    assert len(fake.asked) == 4  # refresh, try, refresh, try


def test_address__of_another_program(fake: FakeServer) -> None:
    fake.answers = [(404, {"detail": "no"})] * 2
    client = LabelStudio(fake.url, "a" * 40)
    for ask in (client.whoami, client.version):
        with pytest.raises(LabelStudioNotFound, match=r"^no Label Studio answers at http"):
            ask()


def test_token__revoked_personal_token_says_what_to_do(fake: FakeServer) -> None:
    fake.refresh = (401, {"detail": "Token is blacklisted"})
    with pytest.raises(LabelStudioRefused, match=r"revoked .* Account & Settings"):
        LabelStudio(fake.url, jwt("refresh")).whoami()


def test_token__legacy_switched_off_says_what_to_do(fake: FakeServer) -> None:
    detail = "legacy token authentication has been disabled for this organization"
    fake.answers = [(401, {"detail": detail})]
    with pytest.raises(LabelStudioRefused, match="make a personal access token"):
        LabelStudio(fake.url, "a" * 40).whoami()


def test_token__access_token_is_recognised(fake: FakeServer) -> None:
    with pytest.raises(LabelStudioRefused, match="lives five minutes"):
        LabelStudio(fake.url, jwt("access"))


@pytest.mark.parametrize("token", ["", "two words", "line\n", "naïve"])
def test_token__must_be_one_word(token: str) -> None:
    with pytest.raises(LabelStudioRefused, match="one word"):
        LabelStudio("http://localhost:1", token)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500, 302])
def test_errors__never_show_the_token(fake: FakeServer, status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for token in (SECRET, jwt("refresh")):
        client = LabelStudio(fake.url, token)
        fake.answers = [(status, {"detail": "x"})]
        with pytest.raises(LabelStudioError) as caught:
            client.whoami()
        assert "SENTINEL" not in f"{caught.value!r} {client!r} {caplog.text}"


def test_retry__gateway_errors_and_locked_database(fake: FakeServer) -> None:
    fake.answers = [(503, {}), (500, {"detail": "database is locked"}), (502, {}), (200, {"id": 1})]
    assert LabelStudio(fake.url, "a" * 40).whoami() == {"id": 1}
    assert len(fake.asked) == 4


@pytest.mark.parametrize("status", [408, 429, 504])
def test_retry__not_now_is_not_never(fake: FakeServer, status: int) -> None:
    fake.answers = [(status, {}), (200, {"id": 1})]
    assert LabelStudio(fake.url, "a" * 40).whoami() == {"id": 1}
    fake.answers = [(status, {})]
    with pytest.raises(LabelStudioUnreachable) as caught:
        LabelStudio(fake.url, "a" * 40, tries=1).whoami()
    assert caught.value.temporary


def test_retry__gives_up_after_the_tries(fake: FakeServer) -> None:
    fake.answers = [(503, {})]
    with pytest.raises(LabelStudioUnreachable, match="503"):
        LabelStudio(fake.url, "a" * 40, tries=2).whoami()
    assert len(fake.asked) == 2


def test_retry__a_post_is_sent_once(fake: FakeServer) -> None:
    fake.answers = [(503, {})]
    with pytest.raises(LabelStudioUnreachable):
        LabelStudio(fake.url, "a" * 40).create_prediction(1, {"result": []})
    assert len(fake.asked) == 1


def test_retry__other_server_errors_are_not_repeated(fake: FakeServer) -> None:
    fake.answers = [(500, {"detail": "division by zero"})]
    with pytest.raises(LabelStudioUnreachable, match="division by zero"):
        LabelStudio(fake.url, "a" * 40).whoami()
    assert len(fake.asked) == 1


def test_unreachable__nobody_listens() -> None:
    with pytest.raises(LabelStudioUnreachable, match="is it running") as caught:
        LabelStudio(f"http://127.0.0.1:{free_port()}", "a" * 40, tries=1).whoami()
    assert caught.value.temporary


def test_unreachable__silence_is_cut_off(fake: FakeServer) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = LabelStudio(f"http://127.0.0.1:{silent.getsockname()[1]}", "a" * 40, tries=1, timeout=0.2)
        with pytest.raises(LabelStudioUnreachable, match="ReadTimeout"):
            client.whoami()


def test_address__redirect_is_not_followed(fake: FakeServer) -> None:
    fake.answers = [(302, {})]
    with pytest.raises(LabelStudioError, match=r"redirects .* set LOOKALIKE_LABEL_STUDIO_URL"):
        LabelStudio(fake.url, "a" * 40).whoami()


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://user:pass@x"])
def test_address__must_be_http(url: str) -> None:
    with pytest.raises(LabelStudioError, match="must look like") as caught:
        LabelStudio(url, "a" * 40)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("/data/upload/1/a.mp4", True),
        ("http://studio.example:8080/data/upload/1/a.mp4", True),
        ("HTTP://STUDIO.example:8080/data/upload/1/a.mp4", True),
        ("http://user@studio.example:8080/x", True),
        ("//evil.example/a.mp4", False),
        ("http://studio.example/a.mp4", False),
        ("https://studio.example:8080/a.mp4", False),
        ("http://studio.example.evil.example:8080/a.mp4", False),
        ("http://studio.example:8080@evil.example/a.mp4", False),
        ("http://evil.example#studio.example:8080", False),
        ("http://studio.example:99999/", False),
    ],
)
def test_media__own_addresses(url: str, own: bool) -> None:
    assert LabelStudio("http://studio.example:8080", "a" * 40).is_own(url) is own


def test_media__token_goes_nowhere_else(fake: FakeServer) -> None:
    client = LabelStudio("http://studio.example:8080", "a" * 40)
    with pytest.raises(LabelStudioError, match="only sent to"):
        client.open_media(fake.url + "/a.mp4")
    assert fake.asked == []


def test_media__path_below_a_prefix_and_odd_names(fake: FakeServer) -> None:
    client = LabelStudio(fake.url + "/studio", "a" * 40)
    path = "/data/upload/1/a #1.mp4"
    for url in (path, "/studio" + path, fake.url + "/studio" + path):
        client.open_media(url).close()
    assert {path for _, path, _ in fake.asked} == {"/studio/data/upload/1/a%20%231.mp4"}


def test_media__redirect_is_handed_back(fake: FakeServer) -> None:
    fake.answers = [(302, {})]
    with LabelStudio(fake.url, "a" * 40).open_media("/tasks/1/resolve/?fileuri=x") as response:
        assert response.status_code == 302


def test_chosen_tasks__no_address_is_longer_than_servers_take(fake: FakeServer) -> None:
    fake.answers = [(200, {"tasks": [{"id": 1}]})]
    ids = range(100_000, 101_000)
    assert len(list(LabelStudio(fake.url, "a" * 40).chosen_tasks(1, ids))) == len(fake.asked) == 5
    assert max(len(path) for _, path, _ in fake.asked) < 4096
    assert all(any(str(task) in path for _, path, _ in fake.asked) for task in ids)


def test_view__operator_that_breaks_the_page_is_refused(fake: FakeServer) -> None:
    with pytest.raises(LabelStudioError, match="in_list"):
        LabelStudio(fake.url, "a" * 40).create_view(1, "x", [Filter("id", "in_list", [1])])
    assert fake.asked == []


# --- with Label Studio ---


@pytest.fixture
def client(label_studio_server: LabelStudioServer) -> Iterator[LabelStudio]:
    with label_studio_server.client() as client:
        yield client


@pytest.fixture
def project(client: LabelStudio) -> Iterator[int]:
    project_id = client.create_project("Timeline", CONFIG)["id"]
    yield project_id
    client.delete_project(project_id)


@pytest.mark.e2e
def test_real__both_kinds_of_token(label_studio_server: LabelStudioServer) -> None:
    for token in (label_studio_server.token, label_studio_server.legacy_token):
        client = label_studio_server.client(token)
        assert client.whoami()["email"] == label_studio_server.email
        assert client.version() == "1.23.2"


@pytest.mark.e2e
def test_real__first_token_is_given_once(label_studio_server: LabelStudioServer) -> None:
    server = label_studio_server
    with pytest.raises(LabelStudioRefused, match="already"):
        first_token(server.url, server.email, server.password)
    with pytest.raises(LabelStudioRefused, match="does not accept the password"):
        first_token(server.url, server.email, "wrong")


@pytest.mark.e2e
def test_real__wrong_tokens(label_studio_server: LabelStudioServer) -> None:
    with pytest.raises(LabelStudioRefused, match="does not accept"):
        label_studio_server.client("f" * 40).whoami()
    with pytest.raises(LabelStudioRefused, match="personal access token"):
        label_studio_server.client(jwt("refresh")).whoami()


@pytest.mark.e2e
def test_real__projects_and_tasks(client: LabelStudio, project: int) -> None:
    assert project in [p["id"] for p in client.projects()]
    assert client.update_project(project, title="Renamed")["title"] == "Renamed"
    assert client.project(project)["title"] == "Renamed"
    assert list(client.tasks(project)) == []

    ids = client.import_tasks(project, [{"video": f"http://x.example/{n}.mp4"} for n in range(1003)])
    assert len(ids) == 1003
    tasks = {task["id"]: task for task in client.tasks(project)}
    assert sorted(tasks) == sorted(ids)  # over two pages
    assert tasks[ids[5]]["data"] == {"video": "http://x.example/5.mp4"}
    assert client.task(project, ids[5]) == tasks[ids[5]]
    with pytest.raises(LabelStudioNotFound, match="no task 999999"):
        client.task(project, 999999)


@pytest.mark.e2e
def test_real__missing_project(client: LabelStudio) -> None:
    with pytest.raises(LabelStudioNotFound):
        client.project(999999)
    with pytest.raises(LabelStudioNotFound):
        list(client.tasks(999999))
    with pytest.raises(LabelStudioError, match="3 to 50 characters"):
        client.create_project("ab", CONFIG)
    with pytest.raises(LabelStudioError, match="label_config"):
        client.create_project("abc", "<View><Bro")


@pytest.mark.e2e
def test_real__upload_and_read_back(client: LabelStudio, project: int, tmp_path: Path) -> None:
    first, second = tmp_path / "a b.mp4", tmp_path / "ü.mp4"
    first.write_bytes(b"first" * 1000)
    second.write_bytes(b"second")
    urls = client.upload_files(project, [first, second])
    assert all(url.startswith(f"/data/upload/{project}/") for url in urls)
    assert list(client.tasks(project)) == []
    client.import_tasks(project, [{"video": url} for url in urls])
    for url, path in zip(urls, (first, second), strict=True):
        with client.open_media(url) as response:
            assert response.content == path.read_bytes()
    with client.open_media(client.url + urls[1]) as response:
        assert response.content == b"second"
    with pytest.raises(LabelStudioNotFound, match="no file"):
        client.open_media("/data/upload/1/gone.mp4")


@pytest.mark.e2e
def test_real__put_prediction_leaves_exactly_one(client: LabelStudio, project: int) -> None:
    (task,) = client.import_tasks(project, [{"video": "http://x.example/a.mp4"}])
    region = {
        "id": "c0001-0",
        "from_name": "timeline",
        "to_name": "video",
        "type": "timelinelabels",
        "value": {"ranges": [{"start": 1, "end": 10}], "timelinelabels": ["Person"]},
        "meta": {"text": ["c0001"]},
        "score": 1 / 3,
    }
    wanted = {"result": [region], "score": 1 / 3, "model_version": "lookalike-1"}
    client.create_prediction(task, {"result": [], "model_version": "somebody-else"})

    first = client.put_prediction(task, wanted)
    (row,) = [r for r in client.predictions(task) if r["id"] == first]
    assert {key: row[key] for key in wanted} == wanted
    assert client.put_prediction(task, wanted) == first
    (again,) = [r for r in client.predictions(task) if r["id"] == first]
    assert again["updated_at"] == row["updated_at"]  # nothing was written

    assert client.put_prediction(task, wanted | {"score": 0.5}) == first
    client.create_prediction(task, wanted)  # Label Studio itself saves what /predict answered
    assert client.put_prediction(task, wanted) == first
    assert client.put_prediction(task, wanted | {"model_version": "lookalike-2"}, family="lookalike-") == first
    assert sorted(r["model_version"] for r in client.predictions(task)) == ["lookalike-2", "somebody-else"]
    assert client.update_project(project, model_version="lookalike-2")["model_version"] == "lookalike-2"
    assert client.annotations(task) == []


@pytest.mark.e2e
def test_real__put_prediction_at_the_same_time(client: LabelStudio, project: int) -> None:
    (task,) = client.import_tasks(project, [{"video": "http://x.example/a.mp4"}])
    wanted = {"result": [], "score": 0.5, "model_version": "lookalike-1"}
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(client.put_prediction, task, wanted) for _ in range(4)]:
            try:
                done.result()
            except LabelStudioUnreachable:
                continue  # SQLite was locked; the one who delivers tries again later
    client.put_prediction(task, wanted)
    assert len(client.predictions(task)) == 1


@pytest.mark.e2e
def test_real__deleted_task_is_not_found(client: LabelStudio, project: int) -> None:
    with pytest.raises((LabelStudioNotFound, LabelStudioError)) as caught:
        client.put_prediction(999999, {"result": [], "score": None, "model_version": "v"})
    assert not caught.value.temporary


@pytest.mark.e2e
def test_real__connect_ml_and_webhook_with_headers(client: LabelStudio, project: int, fake: FakeServer) -> None:
    fake.answers = [(200, {"status": "UP", "model_version": "v1"})]
    row = client.connect_ml(project, fake.url, "Lookalike", auth=("user", "pass"))
    assert row["state"] == "CO"  # connected
    assert ("GET", "/health", "Basic dXNlcjpwYXNz") in fake.asked
    assert client.connect_ml(project, fake.url, "Lookalike 2", auth=("user", "pass"))["id"] == row["id"]
    (backend,) = client.ml_backends(project)
    assert backend["title"] == "Lookalike 2"

    hook = client.register_webhook(project, fake.url + "/webhook", {"Authorization": "Basic dXNlcjpwYXNz"})
    assert [h["id"] for h in client.webhooks(project)] == [hook["id"]]
    client.import_tasks(project, [{"video": "http://x.example/a.mp4"}])
    assert ("POST", "/webhook", "Basic dXNlcjpwYXNz") in fake.asked


@pytest.mark.e2e
def test_real__a_backend_that_moved_to_another_port(client: LabelStudio, project: int, fake: FakeServer) -> None:
    fake.answers = [(200, {"status": "UP", "model_version": "v1"})]
    before = FakeServer()
    before.answers = fake.answers
    client.connect_ml(project, before.url, "Lookalike")
    before.close()
    row = client.connect_ml(project, fake.url, "Lookalike")
    assert client.project(project)["model_version"] == "Lookalike"
    client.disconnect_moved_ml(project, fake.url, "Somebody's")
    assert len(client.ml_backends(project)) == 2
    client.disconnect_moved_ml(project, fake.url, "Lookalike")
    assert [left["id"] for left in client.ml_backends(project)] == [row["id"]]
    assert [hook["url"] for hook in client.webhooks(project)] == [fake.url + "/webhook"]
    assert client.project(project)["model_version"] == "Lookalike"


@pytest.mark.e2e
def test_real__predictions_of_a_task_that_is_gone(client: LabelStudio, project: int) -> None:
    [task] = client.import_tasks(project, [{"data": {"video": "/a.mp4"}}])
    client._call("DELETE", f"/api/tasks/{task}/")
    with pytest.raises(LabelStudioNotFound, match=f"no task {task}"):
        client.predictions(task)


def test_real__unreachable_backend_is_not_connected(client: LabelStudio, project: int) -> None:
    with pytest.raises(LabelStudioError):
        client.connect_ml(project, f"http://127.0.0.1:{free_port()}", "Lookalike")


@pytest.mark.e2e
def test_real__view_filters_and_orders(client: LabelStudio, project: int) -> None:
    rows = [{"video": f"v{n}", "cluster": f"c000{n % 2}", "similarity": n / 10} for n in (3, 1, 2)]
    client.import_tasks(project, rows)
    view = client.create_view(
        project,
        "c0001 to confirm",
        [Filter("data.cluster", "equal", "c0001"), Filter("total_annotations", "equal", 0, "Number")],
        ordering="-data.similarity",
        grid=True,
        number_columns=["data.similarity"],
    )
    assert [v["id"] for v in client.views(project)] == [view["id"]]
    found = client._object("GET", "/api/tasks", params={"view": view["id"], "include": "id,data"})["tasks"]
    assert [task["data"]["video"] for task in found] == ["v3", "v1"]
    client.delete_view(view["id"])
    assert client.views(project) == []
