"""A Label Studio in memory, on loopback, for tests that are in a hurry; the real one is in services."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.serving import make_server

TOKEN = "0123456789abcdef0123456789abcdef01234567"
CREATED_AT = "2026-11-23T07:13:48.000000Z"


_COUNTS = {"total_annotations": 0, "total_predictions": 0}


class FakeStudio:
    """Projects, tasks, predictions, models and webhooks, as dictionaries by id; whatever a test likes to put in."""

    def __init__(self) -> None:
        self.url = ""
        self.token = TOKEN
        self.down = False  # answers 503 to everything
        self.broken = False  # answers 500 to everything
        self.slow_s = 0.0  # takes so long for each answer
        self.loses = 0.0  # share of the predictions that it accepts without an answer
        self.projects: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: dict[int, dict[str, Any]] = {}
        self.models: dict[int, dict[str, Any]] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        self.asked: list[str] = []  # "GET /api/version"

    def add_project(self, number: int, config: str, created_at: str = CREATED_AT) -> None:
        self.projects[number] = {
            "id": number,
            "title": f"project {number}",
            "label_config": config,
            "created_at": created_at,
        }

    def add_task(self, number: int, project: int, data: dict[str, Any]) -> None:
        self.tasks[number] = {"id": number, "project": project, "data": data, "updated_at": CREATED_AT, **_COUNTS}


@contextmanager
def running_studio() -> Iterator[FakeStudio]:
    studio = FakeStudio()
    with served(_app(studio)) as url:
        studio.url = url
        yield studio


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The address of a Flask application that answers on loopback."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _app(studio: FakeStudio) -> Flask:
    app = Flask("fake-studio")
    app.url_map.strict_slashes = False

    def of_project(rows: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in list(rows.values()) if row["project"] == request.args.get("project", type=int)]

    def added(rows: dict[int, dict[str, Any]], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
        number = max(rows, default=0) + 1
        rows[number] = {"id": number, **(defaults or {}), **request.get_json()}
        return rows[number]

    @app.before_request
    def admit() -> ResponseReturnValue | None:
        studio.asked.append(f"{request.method} {request.path}")
        time.sleep(studio.slow_s)
        if studio.broken:
            return jsonify(detail="broken for a test"), 500
        if studio.down:
            return jsonify(detail="down for a test"), 503
        if request.headers.get("Authorization") != f"Token {studio.token}":
            return jsonify(detail="Invalid token."), 401
        return None

    @app.get("/api/version")
    def version() -> ResponseReturnValue:
        return jsonify(release="1.23.2")

    @app.get("/api/current-user/whoami")
    def whoami() -> ResponseReturnValue:
        return jsonify(email="admin@example.com")

    @app.get("/api/projects")
    def projects() -> ResponseReturnValue:
        return jsonify(results=list(studio.projects.values()), next=None)

    @app.route("/api/projects/<int:number>", methods=["GET", "PATCH"])
    def project(number: int) -> ResponseReturnValue:
        if number not in studio.projects:
            return _gone()
        if request.method == "PATCH":
            studio.projects[number] |= request.get_json()
        return jsonify(studio.projects[number])

    @app.get("/api/tasks")
    def tasks() -> ResponseReturnValue:
        if request.args.get("page", 1, type=int) > 1:
            return _gone()
        query = json.loads(request.args.get("query", "{}"))
        only = query.get("selectedItems", {}).get("included")
        return jsonify(tasks=[task for task in of_project(studio.tasks) if only is None or task["id"] in only])

    @app.route("/api/predictions", methods=["GET", "POST"])
    def predictions() -> ResponseReturnValue:
        if request.method == "POST":
            if request.get_json()["task"] not in studio.tasks:
                return _gone()
            row = added(studio.predictions)
            if random.random() < studio.loses:
                request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return jsonify(row), 201
        task = request.args.get("task", type=int)
        if task not in studio.tasks:
            return _gone()
        return jsonify([row for row in list(studio.predictions.values()) if row["task"] == task])

    @app.route("/api/predictions/<int:number>", methods=["PATCH", "DELETE"])
    def prediction(number: int) -> ResponseReturnValue:
        if number not in studio.predictions:
            return _gone()
        if request.method == "DELETE":
            del studio.predictions[number]
            return "", 204
        studio.predictions[number] |= request.get_json()
        return jsonify(studio.predictions[number])

    @app.route("/api/ml", methods=["GET", "POST"])
    def models() -> ResponseReturnValue:
        if request.method == "POST":  # Label Studio makes a webhook with it
            model = added(studio.models, {"state": "CO"})
            hook = max(studio.webhooks, default=0) + 1
            studio.webhooks[hook] = {"id": hook, "project": model["project"], "url": f"{model['url']}/webhook"}
            return jsonify(model), 201
        return jsonify(of_project(studio.models))

    @app.delete("/api/ml/<int:number>")
    def model(number: int) -> ResponseReturnValue:
        gone = studio.models.pop(number)
        of = studio.projects[gone["project"]]
        if of.get("model_version") == gone.get("title"):  # as Label Studio does
            of["model_version"] = ""
        return "", 204

    @app.route("/api/webhooks", methods=["GET", "POST"])
    def webhooks() -> ResponseReturnValue:
        if request.method == "POST":
            return jsonify(added(studio.webhooks)), 201
        return jsonify(of_project(studio.webhooks))

    @app.route("/api/webhooks/<int:number>", methods=["PATCH", "DELETE"])
    def webhook(number: int) -> ResponseReturnValue:
        if request.method == "DELETE":
            del studio.webhooks[number]
            return "", 204
        studio.webhooks[number] |= request.get_json()
        return jsonify(studio.webhooks[number])

    return app


def _gone() -> ResponseReturnValue:
    return jsonify(detail="Not found."), 404
