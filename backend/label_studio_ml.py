"""For teams that run label-studio-ml 2.x: the same answers as a `LabelStudioMLBase`, by the same functions.

    # _wsgi.py of such a team
    from label_studio_ml.api import init_app
    from backend.label_studio_ml import LookalikeModel
    app = init_app(model_class=LookalikeModel)

The settings come from the environment, and the workers run as always. Three things are label-studio-ml's own and stay
as they are: it passes no TASKS_CREATED on, so that new tasks are found by the project's next reading (`poll_s`) or when
one is opened; its /health names this class; and it loads torch where that is installed.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from flask import has_request_context, request
from label_studio_ml.model import LabelStudioMLBase

from backend import contract
from backend.services import Services, open_services
from lookalike import wire
from lookalike.settings import Settings


@functools.cache
def services() -> Services:
    """This process's ledger and queue, opened at the first request."""
    return open_services(Settings.from_environment())


class LookalikeModel(LabelStudioMLBase):  # type: ignore[misc]
    """One is made per request."""

    def setup(self) -> None:
        """Called at the end of the constructor, for every request; remembers the project."""
        self.set("model_version", services().model_version)
        if uid := self._uid():
            contract.remember(services(), uid, self.label_config or "")

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **_: Any
    ) -> list[dict[str, Any] | list[Any]]:
        """One result per task, in order; [] for "not ready yet"."""
        body = {
            "tasks": tasks,
            "project": self._uid(),
            "label_config": self.label_config,
            "params": {"context": context},
        }
        results: list[dict[str, Any] | list[Any]] = contract.predict(services(), body)["results"]
        return results

    def fit(self, event: str, data: dict[str, Any], **_: Any) -> Any:
        """What follows from a webhook is written to the ledger; nothing is trained here."""
        answer, _status = contract.webhook(services(), {**data, "action": event})
        return answer.get("result")

    def set_extra_params(self, extra_params: Any) -> None:
        """Label Studio's API sends an object, its form sends text; the base class takes text only."""
        super().set_extra_params(extra_params if isinstance(extra_params, str) else json.dumps(extra_params))

    def _uid(self) -> str | None:
        """Label Studio's "<id>.<created_at>": the base class keeps the id alone, which is given to another project
        after this one is deleted; the request at hand has it whole."""
        body = request.get_json(silent=True) if has_request_context() else None
        project = body.get("project") if isinstance(body, dict) else None
        named = project if isinstance(project, str) else self.project_id
        return contract.known_uid(services(), wire.parse_setup({"project": named}).project_uid)
