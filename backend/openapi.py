"""The JSON API's description, as OpenAPI 3.1. A test asks everything in it of the real application."""

from __future__ import annotations

from typing import Any

from lookalike import __version__
from lookalike.finder import MOST

_ID = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
_CLUSTER = {"type": "string", "pattern": "^c([0-9]{4,9}|----)$", "examples": ["c0007"]}
_CATEGORY = {"type": "string", "maxLength": 1000, "description": "a category that people labelled keyframes with"}
_TEXT = {
    "type": "string",
    "maxLength": 1000,
    "description": "words; for models that embed words and pictures in one space, such as SigLIP 2 and CLIP",
}
_TOP = {"type": "integer", "minimum": 1, "maximum": MOST, "default": 50}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _answers(ok: dict[str, dict[str, Any]]) -> dict[str, Any]:
    errors = {
        "400": "something in the request cannot be read",
        "401": "nobody is signed in",
        "403": "another site's page, or an old form",
        "404": "no such project, for you",
        "413": "the body is too large",
        "415": "the body is no JSON",
        "503": "the ledger or Label Studio does not answer now",
    }
    return {**ok, **{code: _json(_ref("Error"), text) for code, text in errors.items()}}


_LIST_OF_IDS = {"type": "array", "items": _ID, "maxItems": 256}
_EXAMPLE = {
    "description": "something to be like, or not",
    "anyOf": [
        {**_ID, "description": "a keyframe's id"},
        {
            "type": "object",
            "description": "a region of a keyframe: x, y, width, height as shares of the picture, from the upper left",
            "properties": {
                "keyframe": _ID,
                "box": {
                    "type": "array",
                    "items": {"type": "number", "minimum": 0, "maximum": 1},
                    "minItems": 4,
                    "maxItems": 4,
                },
            },
            "required": ["keyframe", "box"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "description": "a picture's file, JPEG, PNG or WebP, of at most 16 MB",
            "properties": {"image": {"type": "string", "contentEncoding": "base64"}},
            "required": ["image"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "description": "a picture, region or words of an earlier search, by what its answer calls them",
            "properties": {"asked": {"type": "string"}},
            "required": ["asked"],
            "additionalProperties": False,
        },
    ],
}
_RESULT = {
    "type": "object",
    "properties": {
        "keyframe": _ID,
        "similarity": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "1: like the examples, 0: like anything in the project; of words alone, the cosine",
        },
        "task": {"type": "integer", "description": "Label Studio's task of the video, or picture"},
        "video": {"type": "string"},
        "time_s": {"type": "number"},
        "thumbnail": {"type": "string", "description": "address of its picture, below this server's"},
        "cluster": _CLUSTER,
        "labels": {"type": "array", "items": {"type": "string"}, "description": "what people called it"},
        "proposed": {"type": ["string", "null"], "description": "what propagation proposes"},
        "nearest": {
            "type": ["object", "null"],
            "description": "the example that it is most like: a keyframe's id, or what was `asked`",
            "properties": {"example": {"type": ["integer", "string"]}, "similarity": {"type": "number"}},
            "required": ["example", "similarity"],
        },
        "duplicates": {"type": "array", "items": _ID, "description": "near-duplicates that it stands for"},
    },
    "required": [
        "keyframe", "similarity", "task", "video", "time_s", "thumbnail", "cluster", "labels", "proposed", "nearest",
        "duplicates",
    ],
}  # fmt: skip
_FOUND = _answers(
    {
        "200": _json(_ref("Found"), "keyframes, most similar first"),
        "202": _json(_ref("Working"), "it takes longer; ask the same again"),
    }
)
_PROJECT = {
    "name": "project",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "description": "Label Studio's id of the project",
}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Lookalike",
        "version": __version__,
        "description": "Keyframes that look alike. Send `Authorization: Token <your Label Studio token>`.",
    },
    "security": [{"token": []}, {"login": []}],
    "paths": {
        "/api/projects/{project}/similar": {
            "parameters": [_PROJECT],
            "get": {
                "operationId": "getSimilar",
                "summary": "Keyframes like those of a category, chosen keyframes, or words",
                "parameters": [
                    _parameter("category", _CATEGORY, "like those that people labelled so"),
                    _parameter("keyframe", _LIST_OF_IDS, "like these; may be repeated"),
                    _parameter("unlike", _LIST_OF_IDS, "less like these; may be repeated"),
                    _parameter("text", _TEXT, "like what these words say"),
                    _parameter("top", _TOP, "how many"),
                    _parameter("task", _LIST_OF_IDS, "only of these tasks' videos; may be repeated"),
                    _parameter(
                        "cluster",
                        {"type": "array", "items": _CLUSTER},
                        "only of these clusters; may be repeated",
                    ),
                    _parameter("labelled", {"enum": ["yes", "no"]}, "only those that people labelled, or did not"),
                    _parameter("fold", {"enum": ["yes", "no"]}, "whether near-duplicates count once; yes by default"),
                ],
                "responses": _FOUND,
            },
            "post": {
                "operationId": "postSimilar",
                "summary": "The same, by pictures and regions as well",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Search")}}},
                "responses": _FOUND,
            },
        },
        "/api/projects/{project}/similar/tabs": {
            "parameters": [_PROJECT],
            "get": {
                "operationId": "getTabs",
                "summary": 'The tabs "Similar to …" at Label Studio that were asked for',
                "responses": _answers({"200": _json(_ref("Tabs"), "the tabs")}),
            },
            "post": {
                "operationId": "postTab",
                "summary": 'Have a tab "Similar to …" made, or brought up to date',
                "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("TabWanted")}}},
                "responses": _answers({"202": _json(_ref("Working"), "it is being made")}),
            },
        },
    },
    "components": {
        "securitySchemes": {
            "token": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "`Token …` or `Bearer …` with a Label Studio token",
            },
            "login": {"type": "http", "scheme": "basic", "description": "the ML backend's login"},
        },
        "schemas": {
            "Search": {
                "type": "object",
                "description": "at least one of category, like and text",
                "properties": {
                    "category": _CATEGORY,
                    "like": {"type": "array", "items": _EXAMPLE, "maxItems": 256},
                    "unlike": {"type": "array", "items": _EXAMPLE, "maxItems": 256},
                    "text": _TEXT,
                    "top": _TOP,
                    "tasks": {"type": ["array", "null"], "items": _ID, "description": "only of these tasks' videos"},
                    "clusters": {"type": ["array", "null"], "items": _CLUSTER},
                    "labelled": {"type": ["boolean", "null"]},
                    "fold": {"type": "boolean", "default": True},
                },
                "additionalProperties": False,
            },
            "Found": {
                "type": "object",
                "properties": {
                    "project": {"type": "integer"},
                    "results": {"type": "array", "items": _RESULT},
                    "searched": {"type": "integer", "description": "keyframes that there are"},
                    "examples": {"type": "integer", "description": "that the search was made of"},
                    "complete": {"type": "boolean", "description": "false: newer keyframes are being taken in"},
                    "asked": {
                        "type": "array",
                        "description": "pictures, regions and words of this search, to be named by later ones",
                        "items": {
                            "type": "object",
                            "properties": {
                                "asked": {"type": "string"},
                                "kind": {"enum": ["image", "region", "text"]},
                            },
                            "required": ["asked", "kind"],
                        },
                    },
                },
                "required": ["project", "results", "searched", "examples", "complete", "asked"],
            },
            "TabWanted": {
                "type": "object",
                "properties": {"category": _CATEGORY, "top": {**_TOP, "default": 100}},
                "required": ["category"],
                "additionalProperties": False,
            },
            "Tabs": {
                "type": "object",
                "properties": {
                    "tabs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "category": {"type": "string"},
                                "tasks": {"type": "integer"},
                                "url": {"type": ["string", "null"], "description": "null until it is there"},
                            },
                            "required": ["category", "tasks", "url"],
                        },
                    }
                },
                "required": ["tabs"],
            },
            "Working": {
                "type": "object",
                "properties": {"state": {"const": "working"}, "message": {"type": "string"}},
                "required": ["state", "message"],
            },
            "Error": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            "type": {"type": "string"},
                            "message": {"type": "string"},
                            "id": {"type": "string"},
                        },
                        "required": ["type", "message"],
                    }
                },
                "required": ["error"],
            },
        },
    },
}
