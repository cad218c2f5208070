"""The JSON API: similar keyframes, for programs and for the scripts of our own pages. /api/openapi.json tells all.

A program sends `Authorization: Token …` (or Bearer) with a Label Studio token, or the ML backend's login; see
`backend.access`. What takes longer than a few seconds is answered with 202: ask the same again.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Blueprint, Response, jsonify, request

from backend import openapi, pages, searches
from lookalike.errors import NotYet, RequestError
from lookalike.records import Json

_ASK_AGAIN_S = 1
#: base64 takes four characters for three bytes
MOST_BYTES = searches.MOST_IMAGE_BYTES * 4 // 3 + 1_000_000


def blueprint() -> Blueprint:
    """/api/openapi.json and what it describes."""
    routes = Blueprint("api", __name__)

    @routes.get("/api/openapi.json")
    def describe() -> Json:
        return openapi.DESCRIPTION

    @routes.get("/api/projects/<int:label_studio_id>/similar")
    def get_similar(label_studio_id: int) -> Json:
        project = pages.project_of(label_studio_id)
        return searches.search(pages.services(), project, _from_query())

    @routes.post("/api/projects/<int:label_studio_id>/similar")
    def post_similar(label_studio_id: int) -> Json:
        project = pages.project_of(label_studio_id)
        request.max_content_length = MOST_BYTES
        return searches.search(pages.services(), project, sent())

    @routes.get("/api/projects/<int:label_studio_id>/similar/tabs")
    def get_tabs(label_studio_id: int) -> Json:
        return searches.tabs(pages.services(), pages.project_of(label_studio_id).uid)

    @routes.post("/api/projects/<int:label_studio_id>/similar/tabs")
    def post_tab(label_studio_id: int) -> tuple[Json, int]:
        project = pages.project_of(label_studio_id)
        searches.ask_tab(pages.services(), project.uid, sent())
        return {"state": "working", "message": "the tab is being made; see GET for its address"}, 202

    routes.register_error_handler(NotYet, not_yet)
    return routes


def not_yet(error: NotYet) -> tuple[Response, int, dict[str, str]]:
    """202: ask the same again."""
    return jsonify(state="working", message=str(error)), 202, {"Retry-After": str(_ASK_AGAIN_S)}


def sent() -> Any:
    """The JSON of a request's body. Raises RequestError."""
    if not request.is_json:
        raise RequestError("the body must be JSON, sent with Content-Type: application/json")
    try:
        return json.loads(request.get_data(), parse_constant=_no_number)
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _from_query() -> Json:
    """A search's body as the query says it: `?category=Car&top=50&keyframe=1&keyframe=2&labelled=no`."""
    known = ("category", "keyframe", "unlike", "text", "top", "task", "cluster", "labelled", "fold")
    unknown = [name for name in request.args if name not in known]
    if unknown:
        raise RequestError(f"{unknown[0][:50]!r} is no parameter of a search; the parameters are {', '.join(known)}")
    body: Json = {name: request.args[name] for name in ("category", "text") if name in request.args}
    for name, field in (("keyframe", "like"), ("unlike", "unlike"), ("task", "tasks")):
        if name in request.args:
            body[field] = [_whole(name, text) for text in request.args.getlist(name)]
    if "cluster" in request.args:
        body["clusters"] = request.args.getlist("cluster")
    if "top" in request.args:
        body["top"] = _whole("top", request.args["top"])
    for name in ("labelled", "fold"):
        if name in request.args:
            body[name] = _yes(name, request.args[name])
    return body


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 18):
        raise RequestError(f"{name} must be a whole number, got {text[:40]!r}")
    return int(text)


def _yes(name: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise RequestError(f"{name} must be yes or no, got {text[:40]!r}")
    return text == "yes"
