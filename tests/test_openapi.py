"""The API does what its description says, and says all that it does: asked by schemathesis, of the real application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from flask import Flask
from hypothesis import given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from backend.openapi import DESCRIPTION
from lookalike import wire
from lookalike.store import Project
from tests.gallery import seed
from tests.studio import CREATED_AT, TOKEN, running_studio
from tests.web import application

PROJECT = 7
HEADERS = {"Authorization": f"Token {TOKEN}"}
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    folder: Path = tmp_path_factory.mktemp("api")
    with running_studio() as studio, application(studio, folder) as made:
        studio.add_project(PROJECT, "<View/>")
        services = made.extensions["lookalike"]
        project = Project(wire.project_uid(PROJECT, CREATED_AT), PROJECT, "Streets", "<View/>")
        seed(services.store, services.settings, project, keyframes=20, pictures=[])
        yield made


@pytest.fixture(scope="module")
def schema(app: Flask) -> OpenApiSchema:
    return schemathesis.openapi.from_wsgi("/api/openapi.json", app, headers=HEADERS)


@pytest.mark.parametrize("path", DESCRIPTION["paths"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_api__does_what_it_says(
    app: Flask, schema: OpenApiSchema, path: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searches._WAIT_S", 0.0)  # no worker is there to answer

    @settings(max_examples=80)
    @given(case=schema[path][method].as_strategy())
    def asked(case: schemathesis.Case) -> None:
        case.path_parameters["project"] = PROJECT
        case.call_and_validate(headers=HEADERS, checks=CHECKS)

    asked()


def test_description__has_every_route_of_the_api_and_no_other(app: Flask) -> None:
    described = {
        (path, method) for path, item in DESCRIPTION["paths"].items() for method in item if method != "parameters"
    }
    served = {
        (rule.rule.replace("<int:label_studio_id>", "{project}"), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("api.") and not rule.rule.endswith("openapi.json")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == served
