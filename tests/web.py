"""The web application over a made-up Label Studio, and a browser that has signed in; for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from backend.app import create_app
from lookalike.settings import Settings
from tests.studio import TOKEN, FakeStudio, running_studio

#: what a browser asks a page with
PAGE = {"Accept": "text/html,*/*;q=0.8"}
HOSTILE = '"><img src=x onerror=alert(1)>'


@contextmanager
def application(studio: FakeStudio, folder: Path, **settings: str) -> Iterator[Flask]:
    """The application with its data in a folder; no queue server answers it."""
    made = create_app(
        Settings(
            data_dir=folder,
            redis_url=f"unix://{folder}/nobody.sock",
            label_studio_url=studio.url,
            label_studio_token=TOKEN,
            **settings,
        )
    )
    try:
        yield made
    finally:
        made.extensions["lookalike"].close()


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with running_studio() as running:
        yield running


@pytest.fixture
def app(studio: FakeStudio, tmp_path: Path) -> Iterator[Flask]:
    with application(studio, tmp_path) as made:
        yield made


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    signed = app.test_client()
    signed.post("/login", data={"token": TOKEN}, headers=PAGE)
    return signed
