"""A client for the REST API of Label Studio 1.23, and nothing but the calls that Lookalike makes.

Not the SDK: it takes 2.5 s and 190 MB to import, pins old numpy and OpenCV, and retries nothing.

Two kinds of token are known by their looks. A *personal access token* is a JWT refresh token: it is exchanged for an
access token that lives 300 s. A *legacy token* is 40 hexadecimal digits and is refused by new organizations unless
they allow it. No token is ever part of a message, a repr or a log line.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import requests

from lookalike import __version__
from lookalike.errors import (
    LabelStudioError,
    LabelStudioFailed,
    LabelStudioNotFound,
    LabelStudioRefused,
    LabelStudioUnreachable,
)
from lookalike.records import Json

#: tasks per page or import; 1000 is the fastest of 250, 1000 and 5000
_PAGE = 1000
_TASK_FIELDS = "id,data,created_at,updated_at,project,total_annotations,total_predictions"
#: of an annotation, and of the task around it: Label Studio applies one list to both
_ANNOTATION_FIELDS = "id,data,annotations,drafts,result,was_cancelled,completed_by,created_username,updated_at"
#: tasks that one request names in its address: servers refuse long ones
_CHOSEN = 200
_UPLOADS = 50
_DELETIONS = 50
#: an access token lives 300 s
_ACCESS_TOKEN_S = 240.0
_CONNECT_TIMEOUT_S = 5.0
_IMPORT_TIMEOUT_S = 300.0
_FIRST_PAUSE_S = 0.2
#: a proxy or an overloaded server says so of any request: too slow, too many, or nobody there
_NOT_NOW = (408, 429, 502, 503, 504)

#: what the Data Manager's page knows. The API takes others too (`in_list`), and then the page never opens again.
_OPERATORS = (
    "equal", "not_equal", "less", "greater", "less_or_equal", "greater_or_equal", "in", "not_in", "empty", "contains",
    "not_contains", "regex",
)  # fmt: skip


class Filter(NamedTuple):
    """One condition of a Data Manager tab, such as Filter("data.cluster", "equal", "c0007")."""

    column: str  # as in "filter:tasks:<column>"
    operator: str
    value: Any
    type: str = "String"  # String, Number, Boolean, Datetime, List


class LabelStudio:
    """Label Studio at one address, as one account. May be shared by threads.

    Every call raises LabelStudioRefused (401, 403), LabelStudioNotFound (404), LabelStudioUnreachable (no answer, 5xx;
    a later try may work) or LabelStudioError (anything else unexpected).
    """

    def __init__(self, url: str, token: str, *, timeout: float = 30.0, tries: int = 4) -> None:
        """`timeout`: longest silence in seconds. `tries`: how often a call that may be repeated is made at most."""
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise LabelStudioError(
                f"LOOKALIKE_LABEL_STUDIO_URL must look like http://localhost:8080, got {_shown(url)!r}"
            )
        if not re.fullmatch(r"[!-~]+", token):
            raise LabelStudioRefused("LOOKALIKE_LABEL_STUDIO_TOKEN must be one word without spaces; copy it again")
        self._token = token
        self._personal = _token_type(token) == "refresh"
        if _token_type(token) == "access":
            raise LabelStudioRefused(
                "LOOKALIKE_LABEL_STUDIO_TOKEN is an access token, which lives five minutes; "
                "give the personal access token of Account & Settings instead"
            )
        self._access = ""
        self._access_until = 0.0
        self._refreshing = threading.Lock()
        self._timeout = timeout
        self._tries = tries
        self._session = _session()

    def __repr__(self) -> str:
        return f"LabelStudio({_shown(self.url)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    # --- the server and the account ---

    def whoami(self) -> Json:
        return self._of_server("/api/current-user/whoami")

    def version(self) -> str:
        """Such as 1.23.2."""
        return str(self._of_server("/api/version").get("release", ""))

    def _of_server(self, path: str) -> Json:
        """What every Label Studio knows."""
        try:
            return self._object("GET", path)
        except LabelStudioNotFound:
            raise LabelStudioNotFound(
                f"no Label Studio answers at {_shown(self.url)}, but another program; "
                "is LOOKALIKE_LABEL_STUDIO_URL right?"
            ) from None

    # --- projects ---

    def create_project(self, title: str, label_config: str, **fields: Any) -> Json:
        if not 3 <= len(title) <= 50:
            raise LabelStudioError(f"a project's title must have 3 to 50 characters, got {len(title)}: {title[:60]!r}")
        return self._object("POST", "/api/projects/", json={"title": title, "label_config": label_config, **fields})

    def project(self, project_id: int) -> Json:
        return self._object("GET", f"/api/projects/{project_id}/")

    def projects(self) -> list[Json]:
        found: list[Json] = []
        page = 1
        while True:
            answer = self._object("GET", "/api/projects/", params={"page": page, "page_size": _PAGE})
            found += answer["results"]
            if not answer.get("next"):
                return found
            page += 1

    def update_project(self, project_id: int, **fields: Any) -> Json:
        """Change fields. Set `model_version` once predictions were sent, or the Data Manager shows no scores."""
        return self._object("PATCH", f"/api/projects/{project_id}/", json=fields)

    def delete_project(self, project_id: int) -> None:
        self._call("DELETE", f"/api/projects/{project_id}/")

    # --- tasks ---

    def tasks(self, project_id: int, *, query: Json | None = None) -> Iterator[Json]:
        """All tasks: id, data, created_at, updated_at, project, total_annotations, total_predictions.

        These fields take 0.7 s for 10,000 tasks, all fields 10 s. `query` as in the Data Manager: filters, ordering.
        """
        params: dict[str, Any] = {"project": project_id, "page_size": _PAGE, "include": _TASK_FIELDS}
        if query:
            params["query"] = json.dumps(query)
        page = 1
        while True:
            try:
                answer = self._object("GET", "/api/tasks", params=params | {"page": page})
            except LabelStudioNotFound:
                if page > 1:  # that is how Label Studio says that there are no more pages
                    return
                raise
            yield from answer["tasks"]
            if len(answer["tasks"]) < _PAGE:
                return
            page += 1

    def task(self, project_id: int, task_id: int) -> Json:
        """One task, with the fields of `tasks`.

        By way of the list: GET /api/tasks/<id> would make Label Studio ask its ML backend, us, for a prediction.
        """
        for task in self.chosen_tasks(project_id, [task_id]):
            return task
        raise LabelStudioNotFound(f"Label Studio has no task {task_id} in project {project_id}; it was deleted")

    def chosen_tasks(self, project_id: int, task_ids: Sequence[int]) -> Iterator[Json]:
        """Some tasks, with the fields of `tasks`; those that are gone are left out."""
        for first in range(0, len(task_ids), _CHOSEN):
            yield from self.tasks(project_id, query=_only(task_ids[first : first + _CHOSEN]))

    def import_tasks(self, project_id: int, tasks: Sequence[Json]) -> list[int]:
        """Ids of the new tasks, in order. A task is its data, or {"data": …, "predictions": […]}."""
        ids: list[int] = []
        for first in range(0, len(tasks), _PAGE):
            answer = self._object(
                "POST",
                f"/api/projects/{project_id}/import",
                params={"return_task_ids": "true"},
                json=list(tasks[first : first + _PAGE]),
                timeout=_IMPORT_TIMEOUT_S,
            )
            ids += answer["task_ids"]
        return ids

    def upload_files(self, project_id: int, paths: Sequence[Path]) -> list[str]:
        """Their addresses for task data, `/data/upload/…`, in order. Makes no tasks.

        One file per request, held in memory: meant for clips. Serve long videos as local files. Label Studio refuses
        uploads while the labeling configuration reads more than one field of the task's data.
        """
        urls = []
        for path in paths:
            answer = self._object(
                "POST",
                f"/api/projects/{project_id}/import",
                params={"commit_to_project": "false"},
                files={"file": (path.name, path.read_bytes())},  # an open file would be at its end when sent again
                timeout=_IMPORT_TIMEOUT_S,
            )
            (upload,) = answer["file_upload_ids"]
            (row,) = self._list("GET", f"/api/projects/{project_id}/file-uploads", params={"ids": f"[{upload}]"})
            urls.append("/data/" + row["file"].lstrip("/"))
        return urls

    def upload_pictures(self, project_id: int, pictures: Sequence[tuple[str, bytes]]) -> dict[str, str]:
        """Upload (name, JPEG) under names that differ; their addresses for task data, by name. Makes no tasks.

        Many per request: Label Studio answers 500 above 100. Refused while the labeling configuration reads more than
        one field of the task's data.
        """
        urls: dict[str, str] = {}
        for first in range(0, len(pictures), _UPLOADS):
            some = pictures[first : first + _UPLOADS]
            answer = self._object(
                "POST",
                f"/api/projects/{project_id}/import",
                params={"commit_to_project": "false"},
                files=[(name, (name, picture, "image/jpeg")) for name, picture in some],
                timeout=_IMPORT_TIMEOUT_S,
            )
            ids = json.dumps(answer["file_upload_ids"])
            for row in self._list("GET", f"/api/projects/{project_id}/file-uploads", params={"ids": ids}):
                # stored as upload/<project>/<8 hexadecimal digits>-<name>
                urls[row["file"].rsplit("/", 1)[-1].split("-", 1)[1]] = "/data/" + row["file"].lstrip("/")
        return urls

    def set_task_field(self, project_id: int, task_ids: Sequence[int], field: str, value: str | int | float) -> None:
        """Give one field of the tasks' data one value: 0.3 s for 200 tasks, where a PATCH takes as long for one."""
        kind = "String" if isinstance(value, str) else "Number"
        self._act(project_id, "add_data_field", task_ids, value_name=field, value_type=kind, value=value)

    # --- predictions ---

    def import_predictions(self, project_id: int, predictions: Sequence[Json]) -> None:
        """Add many predictions, each with its "task", in one call: every call counts all tasks of the project anew.

        Not to be repeated: Label Studio keeps every row it is sent. Raises LabelStudioError where it has dropped some,
        as it does without a word when they do not fit the labeling configuration.
        """
        if not predictions:
            return
        path = f"/api/projects/{project_id}/import/predictions"
        answer = self._object("POST", path, json=list(predictions), timeout=_IMPORT_TIMEOUT_S)
        if answer["created"] != len(predictions):
            raise LabelStudioError(
                f"Label Studio kept {answer['created']} of {len(predictions)} predictions of project {project_id}: the "
                "others do not fit its labeling configuration"
            )

    def delete_predictions(self, project_id: int, task_ids: Sequence[int], *, family: str = "") -> None:
        """Delete predictions of some tasks: all, or, with `family`, those whose version begins with it.

        Label Studio takes 6 to 30 ms each, and locks its SQLite meanwhile. One by one, where a task has others too,
        it takes 200 ms.
        """
        if not task_ids:
            return
        mixed: set[int] = set()
        if family and any(not version.startswith(family) for version in self.model_versions(project_id)):
            chosen = set(task_ids)
            rows = self._list("GET", "/api/predictions/", params={"project": project_id})
            rows = [{**row, "ours": str(row["model_version"]).startswith(family)} for row in rows]
            mixed = chosen & {row["task"] for row in rows if not row["ours"]}
            for row in rows:
                if row["ours"] and row["task"] in mixed:
                    self.delete_prediction(row["id"])
        alone = [task for task in task_ids if task not in mixed]
        for first in range(0, len(alone), _DELETIONS):
            self._act(project_id, "delete_tasks_predictions", alone[first : first + _DELETIONS])

    def model_versions(self, project_id: int) -> dict[str, int]:
        """How many predictions a project has, by version."""
        found = self._object("GET", f"/api/projects/{project_id}/model-versions/")
        return {version: count for version, count in found.items() if count}  # the chosen one is told even with none

    def predictions(self, task_id: int) -> list[Json]:
        try:
            return self._list("GET", "/api/predictions/", params={"task": task_id})
        except LabelStudioError as error:
            if "Select a valid choice" in str(error):  # 1.23.2 calls a task that is gone a wrong choice, with a 400
                raise LabelStudioNotFound(f"Label Studio has no task {task_id}; it was deleted") from None
            raise

    def create_prediction(self, task_id: int, prediction: Json) -> Json:
        """Not to be repeated: Label Studio keeps every row it is sent. See `put_prediction`."""
        return self._object("POST", "/api/predictions/", json={**prediction, "task": task_id})

    def update_prediction(self, prediction_id: int, prediction: Json) -> Json:
        return self._object("PATCH", f"/api/predictions/{prediction_id}/", json=prediction)

    def delete_prediction(self, prediction_id: int) -> None:
        self._call("DELETE", f"/api/predictions/{prediction_id}/")

    def put_prediction(self, task_id: int, prediction: Json, *, family: str = "") -> int:
        """Make this the task's one prediction of its model_version; its id. May be repeated, also at the same time.

        With `family`, predictions of every version that begins with it count as the same one: the newest takes the
        place of the older ones.
        """

        def ours() -> list[Json]:
            version = prediction["model_version"]
            rows = [
                row
                for row in self.predictions(task_id)
                if row["model_version"] == version or (family and str(row["model_version"]).startswith(family))
            ]
            # the same one is kept by everybody who looks
            return sorted(rows, key=lambda row: (row["model_version"] != version, row["id"]))

        rows = ours()
        if not rows:
            created = self.create_prediction(task_id, prediction)
            rows = ours() or [created]  # somebody else may have sent it at the same time
        kept, *extras = rows
        if any(kept.get(key) != value for key, value in prediction.items()):
            self.update_prediction(kept["id"], prediction)
        for extra in extras:
            try:
                self.delete_prediction(extra["id"])
            except LabelStudioNotFound:
                continue  # somebody else deleted it
        return int(kept["id"])

    # --- annotations ---

    def annotations(self, task_id: int) -> list[Json]:
        return self._list("GET", f"/api/tasks/{task_id}/annotations/")

    def annotated_tasks(self, project_id: int, task_ids: Sequence[int]) -> Iterator[Json]:
        """{"id", "data", "annotations", "drafts"} of some tasks: 0.5 s for 150. Those that are gone are left out."""
        for first in range(0, len(task_ids), _CHOSEN):
            some = task_ids[first : first + _CHOSEN]
            params = {
                "project": project_id,
                "page_size": len(some),
                "fields": "all",
                "include": _ANNOTATION_FIELDS,
                "query": json.dumps(_only(some)),
            }
            yield from self._object("GET", "/api/tasks", params=params)["tasks"]

    def create_annotation(self, task_id: int, result: Sequence[Json]) -> Json:
        """By the account of the token. Not to be repeated. 150 to 260 ms on SQLite."""
        return self._object("POST", f"/api/tasks/{task_id}/annotations/", json={"result": list(result)})

    def copy_annotation(self, project_id: int, annotation_id: int, task_ids: Sequence[int]) -> None:
        """Give some tasks an annotation with the same result, by the account of the token: 2 ms each on SQLite.

        Not to be repeated. Label Studio sends no webhook, and does not list the tasks as changed.
        """
        self._act(project_id, "propagate_annotations", task_ids, repeatable=False, source_annotation_id=annotation_id)

    def update_annotation(self, annotation_id: int, result: Sequence[Json]) -> None:
        self._object("PATCH", f"/api/annotations/{annotation_id}/", json={"result": list(result)})

    def delete_annotation(self, annotation_id: int) -> None:
        self._call("DELETE", f"/api/annotations/{annotation_id}/")

    def delete_annotations(self, project_id: int, task_ids: Sequence[int], annotator: int) -> None:
        """Delete all that a user annotated or drafted in some tasks: 2 ms each on SQLite, one by one 160 ms."""
        self._act(project_id, "delete_tasks_annotations", task_ids, annotator=str(annotator))

    # --- ML backends and webhooks ---

    def ml_backends(self, project_id: int) -> list[Json]:
        """Label Studio asks each backend's /health and /setup before it answers."""
        return self._list("GET", "/api/ml", params={"project": project_id})

    def connect_ml(self, project_id: int, url: str, title: str, auth: tuple[str, str] | None = None) -> Json:
        """Connect an ML backend, which must answer by now; one that is connected at this address is changed instead."""
        fields: Json = {"project": project_id, "url": url, "title": title}
        if auth:
            fields |= {"auth_method": "BASIC_AUTH", "basic_auth_user": auth[0], "basic_auth_pass": auth[1]}
        for row in self.ml_backends(project_id):
            if row["url"].rstrip("/") == url.rstrip("/"):
                return self._object("PATCH", f"/api/ml/{row['id']}", json=fields)
        try:
            return self._object("POST", "/api/ml", json=fields)
        except LabelStudioRefused:
            # Label Studio leaves a row without a webhook behind when it refuses the webhook's address
            for row in self.ml_backends(project_id):
                if row["url"].rstrip("/") == url.rstrip("/"):
                    self.disconnect_ml(row["id"])
            raise

    def disconnect_ml(self, backend_id: int) -> None:
        self._call("DELETE", f"/api/ml/{backend_id}")

    def disconnect_moved_ml(self, project_id: int, url: str, title: str, *, answering: bool = False) -> set[str]:
        """Disconnect what `connect_ml` left under this title at other loopback addresses, and remove its webhooks.

        Call it once the backend is connected at `url`. What answers there stays, unless `answering` is set. Gives the
        webhooks' addresses.
        """
        moved = [
            row
            for row in self.ml_backends(project_id)
            if row.get("title") == title
            and row["url"].rstrip("/") != url.rstrip("/")
            and urlsplit(row["url"]).hostname in ("127.0.0.1", "localhost", "::1")
            and (answering or row.get("state") in ("DI", "ER"))
        ]
        hooks = {f"{row['url'].rstrip('/')}/webhook" for row in moved}
        if not moved:
            return hooks
        version = self.project(project_id).get("model_version")
        for row in moved:
            self.disconnect_ml(row["id"])
        self.remove_webhooks(project_id, hooks)
        if version:  # Label Studio forgets it with a model of this title, though another has the same
            self.update_project(project_id, model_version=version)
        return hooks

    def remove_webhooks(self, project_id: int, urls: Collection[str]) -> None:
        for hook in self.webhooks(project_id):
            if hook["url"] in urls:
                self._call("DELETE", f"/api/webhooks/{hook['id']}/")

    def webhooks(self, project_id: int) -> list[Json]:
        return self._list("GET", "/api/webhooks/", params={"project": project_id})

    def register_webhook(self, project_id: int, url: str, headers: dict[str, str] | None = None) -> Json:
        """Have every event of the project sent to the address, with these headers: the hook that Label Studio makes
        for an ML backend carries no login. A hook at this address is changed instead of added; doubles are removed."""
        fields = {"headers": headers or {}, "send_payload": True, "send_for_all_actions": True, "is_active": True}
        known = [hook for hook in self.webhooks(project_id) if hook["url"] == url]
        if not known:
            return self._object("POST", "/api/webhooks/", json={"project": project_id, "url": url, **fields})
        for extra in known[1:]:
            self._call("DELETE", f"/api/webhooks/{extra['id']}/")
        if all(known[0].get(key) == value for key, value in fields.items() if key != "is_active"):
            return known[0]
        return self._object("PATCH", f"/api/webhooks/{known[0]['id']}/", json=fields)

    # --- tabs of the Data Manager ---

    def views(self, project_id: int) -> list[Json]:
        return self._list("GET", "/api/dm/views/", params={"project": project_id})

    def create_view(
        self,
        project_id: int,
        title: str,
        filters: Sequence[Filter] = (),
        *,
        ordering: str = "",
        conjunction: str = "and",
        grid: bool = False,
        number_columns: Sequence[str] = (),
        hidden_columns: Sequence[str] = (),
    ) -> Json:
        """A tab at `/projects/<id>/data?tab=<view id>`.

        `ordering`: one column, such as "-data.similarity" for the largest first; more than one is ignored by Label
        Studio. Data fields sort as text unless they are among `number_columns`.
        """
        for condition in filters:
            if condition.operator not in _OPERATORS:
                raise LabelStudioError(
                    f"a tab's operator must be one of {', '.join(_OPERATORS)}, got {condition.operator}; "
                    "the Data Manager's page would never open again"
                )
        items = [
            {"filter": f"filter:tasks:{f.column}", "operator": f.operator, "type": f.type, "value": f.value}
            for f in filters
        ]
        hidden = [f"tasks:{name}" for name in hidden_columns]
        minus, column = ("-", ordering[1:]) if ordering.startswith("-") else ("", ordering)
        data: Json = {
            "title": title,
            "type": "grid" if grid else "list",
            "target": "tasks",
            "gridWidth": 4,
            "filters": {"conjunction": conjunction, "items": items},
            "ordering": [f"{minus}tasks:{column}"] if column else [],
            "columnsDisplayType": {f"tasks:{name}": "Number" for name in number_columns},
            "hiddenColumns": {"explore": hidden, "labeling": hidden},
            "columnsWidth": {},
        }
        return self._object("POST", "/api/dm/views/", json={"project": project_id, "data": data})

    def delete_view(self, view_id: int) -> None:
        self._call("DELETE", f"/api/dm/views/{view_id}/")

    # --- media ---

    def is_own(self, url: str) -> bool:
        """Whether the address is Label Studio's: a path, or a URL with the same scheme, host and port."""
        return (url.startswith("/") and not url.startswith("//")) or _origin(url) == _origin(self.url)

    def open_media(self, url: str) -> requests.Response:
        """The answer, 200 or a redirect, its body unread; close it. Only for addresses of Label Studio's own.

        Redirects are not followed: they lead to storages, where the token has no business.
        """
        if not self.is_own(url):
            raise LabelStudioError(f"the Label Studio token is only sent to {_shown(self.url)}, not to {_shown(url)}")
        path = url if url.startswith("/") else "/" + url.split("://", 1)[1].partition("/")[2]
        prefix = urlsplit(self.url).path + "/"  # Label Studio may live below a path
        path = "/" + path.removeprefix(prefix).removeprefix("/").replace("#", "%23")  # a file's name may have one
        try:
            return self._call("GET", path, headers={"Accept-Encoding": "identity"}, stream=True, redirects=True)
        except LabelStudioUnreachable as error:
            if "has_permission" in str(error):  # 1.23.2 trips over uploads that are gone, instead of a 404
                raise LabelStudioNotFound(f"Label Studio has no file {_shown(url)}; it was deleted") from None
            raise

    # --- steps ---

    def _act(
        self, project_id: int, action: str, task_ids: Sequence[int], *, repeatable: bool = True, **fields: Any
    ) -> None:
        """A Data Manager action on some tasks."""
        if task_ids:
            self._object(
                "POST",
                "/api/dm/actions",
                params={"id": action, "project": project_id},
                json={**_only(task_ids), **fields},
                timeout=_IMPORT_TIMEOUT_S,
                repeatable=repeatable,
            )

    def _object(self, method: str, path: str, **options: Any) -> Json:
        answer = _json(self._call(method, path, **options))
        if not isinstance(answer, dict):
            raise LabelStudioError(f"Label Studio answered {method} {path} with something other than an object")
        return answer

    def _list(self, method: str, path: str, **options: Any) -> list[Json]:
        answer = _json(self._call(method, path, **options))
        if isinstance(answer, dict) and isinstance(answer.get("results"), list):
            answer = answer["results"]
        if not isinstance(answer, list):
            raise LabelStudioError(f"Label Studio answered {method} {path} with something other than a list")
        return answer

    def _call(self, method: str, path: str, *, redirects: bool = False, **options: Any) -> requests.Response:
        """One call with our token. An access token that is refused is renewed once: the clock may have jumped."""
        headers = options.pop("headers", {})
        response = self._send(method, path, headers=headers | self._authorization(), **options)
        if response.status_code == 401 and self._personal:
            response.close()
            self._access_until = 0.0
            response = self._send(method, path, headers=headers | self._authorization(), **options)
        if response.status_code < 300 or (redirects and response.is_redirect):
            return response
        raise _error(method, path, response)

    def _authorization(self) -> dict[str, str]:
        if not self._personal:
            return {"Authorization": f"Token {self._token}"}
        with self._refreshing:
            if time.monotonic() >= self._access_until:
                # a refresh may be repeated, POST or not
                response = self._send(
                    "POST", "/api/token/refresh/", repeatable=True, headers={}, json={"refresh": self._token}
                )
                if response.status_code in (400, 401, 403):
                    raise LabelStudioRefused(
                        f"Label Studio does not accept the personal access token ({_detail(response)}): it was revoked "
                        f"or belongs to another Label Studio; make a new one under Account & Settings"
                    )
                if response.status_code != 200:
                    raise _error("POST", "/api/token/refresh/", response)
                self._access = str(_json(response)["access"])
                self._access_until = time.monotonic() + _ACCESS_TOKEN_S
            return {"Authorization": f"Bearer {self._access}"}

    def _send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        repeatable: bool | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> requests.Response:
        """The answer, whatever its status. What may be repeated is, with pauses, while a later try may work."""
        repeatable = method != "POST" if repeatable is None else repeatable
        pause_s = _FIRST_PAUSE_S
        for left in reversed(range(self._tries)):
            try:
                response = self._session.request(
                    method,
                    self.url + path,
                    headers=headers,
                    timeout=(_CONNECT_TIMEOUT_S, timeout or self._timeout),
                    allow_redirects=False,
                    **options,
                )
            except requests.RequestException as error:
                if not left or not repeatable:
                    raise LabelStudioUnreachable(
                        f"Label Studio at {_shown(self.url)} does not answer ({type(error).__name__}); is it running?"
                    ) from error
            else:
                locked = response.status_code == 500 and "database is locked" in response.text
                if not left or not repeatable or not (locked or response.status_code in _NOT_NOW):
                    return response
                response.close()
            time.sleep(pause_s)
            pause_s *= 3
        raise AssertionError("tries must be at least 1")


def first_token(url: str, email: str, password: str, *, replace: bool = False, timeout: float = 30.0) -> str:
    """A personal access token for a user who has none, by way of the login page.

    Raises LabelStudioRefused for a wrong login, and where the user has a token already: it cannot be read again. With
    `replace`, it is revoked.
    """
    url = url.rstrip("/")
    with _session() as session:

        def call(method: str, path: str, **options: Any) -> requests.Response:
            try:
                return session.request(
                    method, url + path, timeout=(_CONNECT_TIMEOUT_S, timeout), allow_redirects=False, **options
                )
            except requests.RequestException as error:
                raise LabelStudioUnreachable(
                    f"Label Studio at {_shown(url)} does not answer ({type(error).__name__}); is it running?"
                ) from error

        def csrf() -> dict[str, str]:
            return {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": url + "/"}

        call("GET", "/user/login/")
        call("POST", "/user/login/", data={"email": email, "password": password}, headers=csrf())
        if "sessionid" not in session.cookies or call("GET", "/api/current-user/whoami").status_code != 200:
            raise LabelStudioRefused(f"Label Studio at {_shown(url)} does not accept the password of {email}")
        response = call("POST", "/api/token/", headers=csrf())
        if response.status_code == 409 and replace:
            for known in _json(call("GET", "/api/token/")):
                call("POST", "/api/token/blacklist/", json={"refresh": known["token"]}, headers=csrf())
            response = call("POST", "/api/token/", headers=csrf())
        if response.status_code == 409:
            raise LabelStudioRefused(
                f"{email} has a personal access token already, which Label Studio shows only once; set "
                "LOOKALIKE_LABEL_STUDIO_TOKEN to it, or revoke it under Account & Settings"
            )
        if response.status_code != 201:
            raise _error("POST", "/api/token/", response)
        return str(_json(response)["token"])


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # neither a proxy nor a .netrc of this machine may see the token
    session.headers["User-Agent"] = f"lookalike/{__version__}"
    return session


def _only(task_ids: Sequence[int]) -> Json:
    """Of a Data Manager's query: these tasks."""
    return {"selectedItems": {"all": False, "included": list(task_ids)}}


def _token_type(token: str) -> str:
    """ "refresh" or "access" for a JSON Web Token, "" for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return ""
    return str(claims.get("token_type", "")) if isinstance(claims, dict) else ""


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, (parts.hostname or "").rstrip("."), port
    except ValueError:
        return "", "", None


def _shown(url: str) -> str:
    """An address without its login and query, which may hold secrets."""
    return re.sub(r"//[^/@]*@", "//", url.split("?", 1)[0])


def _json(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        raise LabelStudioError(
            f"Label Studio answered {_shown(response.url)} with something other than JSON; "
            "is LOOKALIKE_LABEL_STUDIO_URL right?"
        ) from None


def _detail(response: requests.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.reason or ""
    detail = (body.get("validation_errors") or body.get("detail") or body) if isinstance(body, dict) else body
    return (detail if isinstance(detail, str) else json.dumps(detail))[:300]


def _error(method: str, path: str, response: requests.Response) -> LabelStudioError:
    status, detail, call = response.status_code, _detail(response), f"{method} {_shown(path)}"
    if status == 401 and "legacy" in detail:
        return LabelStudioRefused(
            "LOOKALIKE_LABEL_STUDIO_TOKEN is a legacy token, and this organization has switched those off; "
            "make a personal access token under Account & Settings and use that"
        )
    if status == 401:
        return LabelStudioRefused(
            f"Label Studio does not accept LOOKALIKE_LABEL_STUDIO_TOKEN ({detail}); make a new "
            "personal access token under Account & Settings"
        )
    if status == 403 and "reserved network address" in detail:
        return LabelStudioRefused(
            f"Label Studio will not call a private address ({detail}); start it with "
            "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false and LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false"
        )
    if status == 403:
        return LabelStudioRefused(f"Label Studio does not let this account do {call} ({detail}); give it the right to")
    if status == 404:
        return LabelStudioNotFound(f"Label Studio knows nothing at {call} ({detail}); it was deleted")
    if response.is_redirect:
        target = _shown(response.headers.get("Location", ""))
        return LabelStudioError(
            f"Label Studio redirects {call} to {target}; set LOOKALIKE_LABEL_STUDIO_URL to its real address"
        )
    if status >= 500 or status in _NOT_NOW:
        kind = LabelStudioUnreachable if status in _NOT_NOW else LabelStudioFailed
        return kind(f"Label Studio answered {call} with {status} ({detail}); try again later")
    return LabelStudioError(f"Label Studio answered {call} with {status} ({detail})")
