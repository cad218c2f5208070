"""Label Studio's ML-backend contract: what it asks, and how we answer.

    GET  /health, /    alive?                      touches nothing
    POST /setup        a project is connected      remembered, its tasks are looked for
    POST /predict      what is in these tasks?     one result per task, in order; [] means "ask again later"
    POST /webhook      something has happened      written to the ledger, worked on later
    GET  /versions     which model versions are there

Every answer is given within milliseconds: the ledger is written first, workers are woken if the queue server answers,
and what they find out goes to Label Studio by itself. A webhook is a hint: Label Studio sends it once and forgets it,
so whatever is missed or turned away here is found when the project is read again (`poll_s`).

The functions above the routes know no Flask: the label-studio-ml adapter answers with the same ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request

from backend import searches
from backend.metrics import Metrics
from backend.services import Services, free_disk_mb
from lookalike import wire
from lookalike.errors import LabelConfigError, LookalikeError, RequestError, StoreError
from lookalike.ledger import portions
from lookalike.logs import about, trace_id
from lookalike.records import Json, LabelConfig
from lookalike.store import Project
from lookalike.wire import PredictRequest, TaskRef, WebhookEvent

log = logging.getLogger("lookalike.backend")

#: what label-studio-ml calls the model's class in /health
MODEL_CLASS = "Lookalike"

#: a prediction is given out once in this time: Label Studio's editor opens a task by two requests at once and saves
#: what each of them gets, and two seconds lie between two looks of a patient person
_ONE_ANSWER_S = 3.0

_ANNOTATED = frozenset(
    f"{noun}_{verb}" for noun in ("ANNOTATION", "ANNOTATIONS") for verb in ("CREATED", "UPDATED", "DELETED")
)
#: a person who labels quickly, or a script, sends many events: they are read together
_BURST_S = 0.3
#: what a project's labeling configuration is before anybody has written one
_BLANK_CONFIGS = ("", "<View></View>", "<View/>")


# --- the answers ---


def health() -> Json:
    return {"status": "UP", "model_class": MODEL_CLASS}


def versions(services: Services) -> Json:
    return {"versions": [services.model_version]}


def setup(services: Services, body: Any) -> Json:
    """Remember a project. Label Studio asks at connecting, at each page of the Data Manager, and before each /predict.

    Raises LabelConfigError for a configuration that has controls but none that we can fill: Label Studio then refuses
    to connect, or marks the backend as failing, and shows the reason. Answered with 200, such a project would look
    connected and never get anything, without a word. A configuration that is still blank is welcome.
    """
    asked = wire.parse_setup(body)  # reads no access_token: it is never stored, logged or used
    if "".join(asked.label_config.split()) not in _BLANK_CONFIGS:
        wire.parse_label_config(asked.label_config)
    uid = known_uid(services, asked.project_uid)
    if uid is not None and remember(services, uid, asked.label_config):
        services.kick()
    return {"model_version": services.model_version}


def predict(services: Services, body: Any) -> Json:
    """One result per task, in order: the prediction, or [] for "not ready yet".

    Label Studio saves nothing for [] and asks again when the task is opened again; by then the delivery has mostly
    brought the prediction by itself.
    """
    asked, tasks = _parse_tasks(body)
    if asked.context:
        return {"results": answer_interactively(services, asked, tasks)}
    uid = known_uid(services, asked.project_uid)
    config = _usable_config(asked.label_config, uid)
    results: list[Any] = [[] for _ in tasks]
    if uid is None or config is None:
        return {"results": results}
    remember(services, uid, asked.label_config)
    known = [task for task in tasks if task is not None]
    if overload := services.overload():
        log.warning("no new videos are taken in from /predict: %s", overload)
    else:
        with services.turn:
            new = _take_in(services, uid, config, known)
        if new:
            services.kick()

    ready = services.store.predictions(uid, [task.id for task in known])
    mine: set[int] = set()
    if ready:
        with services.turn:
            mine = services.store.answering(uid, [p.video for p in ready.values()], _ONE_ANSWER_S)
    for place, task in enumerate(tasks):
        if task is not None and task.id in ready and ready[task.id].video in mine:
            results[place] = ready[task.id].body
    if len(tasks) == 1 and ready and not mine:
        services.wait_for_the_other()
    return {"results": results}


def answer_interactively(
    services: Services, asked: PredictRequest, tasks: Sequence[TaskRef | None]
) -> list[Json | list[Json]]:
    """What to suggest for what a person has just drawn (`params.context`), per task.

    Label Studio draws the first one's regions in the same task and saves nothing, so that unlike elsewhere an empty
    prediction does no harm, and is what the editor can read.
    """
    return searches.suggest(services, asked, tasks)


def webhook(services: Services, body: Any) -> tuple[Json, int]:
    """Write down what has happened. (answer, status) as label-studio-ml gives them.

    Raises StoreError, which is answered with 503, while no more videos can be taken in. Label Studio does not send the
    event again, but the project's next reading finds the tasks, when there is room.
    """
    event = wire.parse_webhook(body)
    answer = _ACTIONS.get(event.action)
    if answer is None:
        return {"status": "Unknown event"}, 200
    uid = event.project_uid or _uid_of(services, event.project_id)
    if (owner := _owner(services, event.project_uid, event.project_id)) is not None:
        # the keyframes project is ours: its pictures are no videos
        with services.turn:
            services.store.want("sync" if event.action == "TASKS_DELETED" else "propagate", owner, delay_s=_BURST_S)
        services.kick()
        return {"result": None, "status": "ok"}, 201
    if uid is None:
        log.warning("%s names no project that we know; left to the next reading", event.action)
        return {"result": None, "status": "ok"}, 201
    remember(services, uid, event.label_config or "")
    with services.turn:
        result = answer(services, uid, event)
    services.kick()
    _tell(event, uid)
    return {"result": result, "status": "ok"}, 201


def failing_checks(services: Services) -> list[str]:
    """What keeps us from working; the log says why."""
    failing = []
    for name, check in (("ledger", services.store.ping), ("queue", services.queue.ping)):
        try:
            check()
        except LookalikeError as error:
            log.warning("not ready: %s", error)
            failing.append(name)
    if free_disk_mb(services.settings) < services.settings.disk_free_mb:
        failing.append("disk")
    return failing


# --- the routes ---


def blueprint(services: Services, metrics: Metrics) -> Blueprint:
    """Label Studio's routes, and two for whoever looks after the machine: /metrics and /ready."""
    routes = Blueprint("contract", __name__)

    @routes.get("/")
    @routes.get("/health")
    def get_health() -> Json:
        return health()

    @routes.get("/versions")
    def get_versions() -> Json:
        return versions(services)

    @routes.post("/setup")
    def post_setup() -> Json:
        return setup(services, _json_body())

    @routes.post("/predict")
    def post_predict() -> Json:
        return predict(services, _json_body())

    @routes.post("/webhook")
    def post_webhook() -> tuple[Json, int]:
        return webhook(services, _json_body())

    @routes.get("/metrics")
    def get_metrics() -> Response:
        text, content_type = metrics.render()
        return Response(text, content_type=content_type)

    @routes.get("/ready")
    def get_ready() -> tuple[Response, int]:
        failing = failing_checks(services)
        return jsonify(status="not ready" if failing else "ready", failing=failing), 503 if failing else 200

    return routes


def _json_body() -> Any:
    try:
        return json.loads(request.get_data())
    except RecursionError:
        raise RequestError("the body is nested too deeply; send what Label Studio sends") from None
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from None


def _tell(event: WebhookEvent, uid: str) -> None:
    """A line that has the trace id of each task, by which its jobs are found in the workers' logs."""
    for some in portions(event.task_ids, 100):
        facts: dict[str, object] = {"project": uid, "action": event.action}
        if len(some) == 1:
            facts |= {"task": some[0], "trace_id": trace_id(uid, some[0])}
        else:
            facts |= {"tasks": some, "trace_ids": [trace_id(uid, task) for task in some]}
        with about(**facts):
            log.info("webhook")


# --- the events ---


def _tasks_created(services: Services, uid: str, event: WebhookEvent) -> Json | None:
    if overload := services.overload():
        raise StoreError(overload)
    project = services.store.project(uid)
    config = _usable_config(project.label_config if project else "", uid)
    return None if config is None else {"new": _take_in(services, uid, config, event.tasks)}


def _tasks_deleted(services: Services, uid: str, event: WebhookEvent) -> Json | None:
    if services.settings.label_studio_url:  # where it can be asked: people's labels go with the tasks
        services.store.want("sync", uid, delay_s=_BURST_S)
        return None
    return {"deleted": len(services.store.delete_videos(uid, event.task_ids))}


def _annotated(services: Services, uid: str, _event: WebhookEvent) -> Json | None:
    services.store.want("propagate", uid, delay_s=_BURST_S)
    return None


def _train(services: Services, uid: str, _event: WebhookEvent) -> Json | None:
    services.store.want("cluster", uid)
    return None


def _project_updated(_services: Services, _uid: str, _event: WebhookEvent) -> Json | None:
    return None  # what has changed is remembered already, as for every event


_ACTIONS = {
    "TASKS_CREATED": _tasks_created,
    "TASKS_DELETED": _tasks_deleted,
    "PROJECT_UPDATED": _project_updated,
    "START_TRAINING": _train,
    **dict.fromkeys(_ANNOTATED, _annotated),
}


# --- the steps ---


def remember(services: Services, uid: str, label_config: str) -> bool:
    """Keep a project that is new or has another configuration, and ask for what follows; whether anything does.

    Nothing is written for one that is known: Label Studio calls /setup for every page that somebody opens.
    """
    known = services.store.project(uid)
    if known is not None and (not label_config or known.label_config == label_config):
        return False
    with services.turn:
        services.store.put_project(Project(uid, int(uid.split(".")[0]), "", label_config))
        services.store.want("sync", uid)  # another configuration may take its videos from another field of the tasks
        if known is not None:
            services.store.want("cluster", uid)
    return True


def _take_in(services: Services, uid: str, config: LabelConfig, tasks: Sequence[TaskRef]) -> int:
    """Ask for the tasks' videos to be worked on, once each; how many are new."""
    found = [(task.id, _address(task.data.get(config.data_key)), task.data) for task in tasks]
    good = [(task, url, data) for task, url, data in found if url]
    if bad := len(found) - len(good):
        log.warning("project %s: %d of %d tasks have no address in %r", uid, bad, len(found), config.data_key)
    return services.store.add_videos(uid, good)


def _address(value: Any) -> str:
    """The text, if it is some that can be stored: no database takes half a surrogate pair, PostgreSQL no NUL."""
    if not isinstance(value, str) or "\0" in value:
        return ""
    return "" if value.encode(errors="replace").decode() != value else value


def _usable_config(label_config: str, uid: str | None) -> LabelConfig | None:
    try:
        return wire.parse_label_config(label_config)
    except LabelConfigError as error:
        log.warning("project %s: %s", uid, error)
        return None


def _parse_tasks(body: Any) -> tuple[PredictRequest, list[TaskRef | None]]:
    """The request and its tasks, with None for one that we cannot read: the others still get their answers."""
    raw = body.get("tasks") if isinstance(body, dict) else None
    if not isinstance(raw, list):
        asked = wire.parse_predict(body)
        return asked, list(asked.tasks)
    asked = wire.parse_predict({**body, "tasks": []})
    tasks: list[TaskRef | None] = []
    for task in raw:
        try:
            tasks.append(wire.parse_task(task))
        except RequestError as error:
            log.warning("a task is answered with nothing: %s", error)
            tasks.append(None)
    return asked, tasks


def known_uid(services: Services, uid: str | None) -> str | None:
    """Label Studio's "<id>.<created_at>"; where only the id is given, as by some scripts, the project we know by it."""
    if _owner(services, uid, None) is not None:
        return None  # somebody connected a keyframes project, too: its pictures are no videos
    if uid is None or "." in uid:
        return uid
    return _uid_of(services, int(uid))


def _owner(services: Services, uid: str | None, label_studio_id: int | None) -> str | None:
    """The project of videos whose keyframes this project shows; None if it is no companion."""
    if uid is not None:
        return services.store.labels.owner(uid)
    return None if label_studio_id is None else services.store.labels.owner_of(label_studio_id)


def _uid_of(services: Services, label_studio_id: int | None) -> str | None:
    """The youngest project that we know by this id: Label Studio's SQLite uses ids again."""
    uids = [p.uid for p in services.store.projects() if p.label_studio_id == label_studio_id]
    return uids[-1] if uids else None
