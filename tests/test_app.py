"""Who may ask, how much, and how errors look."""

from __future__ import annotations

import base64
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from lookalike.errors import StoreError
from lookalike.settings import Settings

ROUTES = [
    ("GET", "/"),
    ("GET", "/versions"),
    ("GET", "/metrics"),
    ("GET", "/ready"),
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("GET", "/nowhere"),
]


def basic(login: str, encoding: str = "utf-8") -> str:
    return "Basic " + base64.b64encode(login.encode(encoding)).decode()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock")


@pytest.fixture
def client(settings: Settings) -> Iterator[FlaskClient]:
    app = create_app(settings)
    yield app.test_client()
    app.extensions["lookalike"].close()


@pytest.fixture
def guarded(settings: Settings) -> Iterator[FlaskClient]:
    app = create_app(settings.with_(basic_auth_user="jürgen", basic_auth_pass="pässword:1"))
    yield app.test_client()
    app.extensions["lookalike"].close()


# --- who may ask ---


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic \xff\xfe",
        "Bearer abc",
        "Digest username=x",
        "Token 0123456789abcdef0123456789abcdef01234567",
        basic("jürgen"),
        basic("jürgen:"),
        basic("jürgen:pässword"),
        basic("jürgen:pässword:12"),
        basic("jurgen:passw?rd:1"),
        basic("\0"),
    ],
)
def test_login__anything_but_the_right_one_is_401(
    guarded: FlaskClient, method: str, route: str, header: str | None
) -> None:
    answer = guarded.open(route, method=method, headers={"Authorization": header} if header is not None else {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert answer.get_json()["error"]["type"] == "Unauthorized"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_login__right_in_both_encodings_and_any_case_of_the_scheme(guarded: FlaskClient, encoding: str) -> None:
    header = basic("jürgen:pässword:1", encoding)
    assert guarded.get("/versions", headers={"Authorization": header}).status_code == 200
    assert guarded.get("/versions", headers={"Authorization": header.replace("Basic", "basic")}).status_code == 200


def test_login__health_is_open_but_tells_a_wrong_login(guarded: FlaskClient) -> None:
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/health", headers={"Authorization": basic("jürgen:wrong")}).status_code == 401


# --- how errors look ---


@pytest.mark.parametrize("route", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'"x"',
        b"\xff\xfe",
        b'{"project": []}',
        b'{"action": 7, "project": {}, "tasks": 7}',
        b'{"project": "1.2; drop table"}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"x": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_error__what_we_cannot_read_is_400(client: FlaskClient, route: str, body: bytes) -> None:
    answer = client.post(route, data=body, content_type="application/json")
    if body == b'{"action": 7, "project": {}, "tasks": 7}' and route == "/setup":
        pytest.skip("/setup has no action and no tasks")
    assert answer.status_code == 400
    assert set(answer.get_json()) == {"error"}
    assert set(answer.get_json()["error"]) == {"type", "message"}


def test_error__malformed_json_is_told_in_the_status_line(client: FlaskClient) -> None:
    answer = client.post("/webhook", data=b'{"action":', content_type="application/json")
    assert answer.status == "400 the body is no JSON: Expecting value: line 1 column 11 (char 10)"


def test_error__half_a_surrogate_pair_is_400(client: FlaskClient) -> None:
    config = '<View><Video name="v" value="$v"/></View>\ud800'
    body = {"action": "PROJECT_UPDATED", "project": {"id": 1, "created_at": "2026-11-23T07:13:48Z"}}
    body["project"]["label_config"] = config  # type: ignore[index]
    answer = client.post("/webhook", data=json.dumps(body), content_type="application/json")
    assert answer.status_code == 400


def test_error__any_content_type_is_read_as_json(client: FlaskClient) -> None:
    assert client.post("/predict", data=b'{"tasks": []}', content_type="text/plain").get_json() == {"results": []}


def test_error__no_such_route_or_method(client: FlaskClient) -> None:
    assert client.get("/nowhere").status_code == 404
    answer = client.get("/predict")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]
    for refusal in (client.get("/nowhere"), answer):
        assert set(refusal.get_json()["error"]) == {"type", "message"}


@pytest.mark.parametrize(("route", "size"), [("/setup", 4_000_001), ("/predict", 64_000_001), ("/webhook", 64_000_001)])
def test_error__too_large_is_413(client: FlaskClient, route: str, size: int) -> None:
    answer = client.post(route, data=b"{}", environ_overrides={"CONTENT_LENGTH": str(size)})
    assert answer.status_code == 413
    assert set(answer.get_json()["error"]) == {"type", "message"}


def test_error__of_ours_shows_nothing_but_its_number(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("/home/somebody/secret")

    monkeypatch.setattr("lookalike.wire.parse_predict", broken)
    answer = client.post("/predict", json={"tasks": []})
    error = answer.get_json()["error"]
    assert answer.status_code == 500
    assert set(error) == {"type", "message", "id"}
    assert "secret" not in answer.get_data(as_text=True) + str(answer.headers)
    assert error["id"] in caplog.text
    assert "/home/somebody/secret" in caplog.text


def test_error__ledger_that_cannot_be_used_is_503(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise StoreError("the ledger cannot be used now: database is locked")

    monkeypatch.setattr(client.application.extensions["lookalike"].store, "project", locked)
    body = {"project": "1.1000000000", "schema": "<View></View>"}
    answer = client.post("/setup", json=body)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.get_json()["error"]["message"] == "the ledger cannot be used now: database is locked"


def test_error__status_line_has_no_markup_and_no_line_break(client: FlaskClient) -> None:
    schema = "<View><Choices name='&lt;b&gt;&#10;ä' toName='x'><Choice value='a'/></Choices></View>"
    answer = client.post("/setup", json={"project": "1.2", "schema": schema})
    assert answer.status_code == 422
    assert not set("<>\r\n") & set(answer.status)
    assert answer.status.isascii()


# --- what every answer has ---


def test_answer__headers(client: FlaskClient) -> None:
    for answer in (client.get("/health"), client.get("/nowhere"), client.post("/predict", data=b"{")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_answer__is_logged_in_one_line_without_query_or_body(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lookalike.backend"):
        client.get("/health?token=SENTINEL")
        client.get("/SENTINEL%0aforged")
    lines = [record.getMessage().rsplit(" ", 2)[0] for record in caplog.records]  # but the milliseconds
    assert lines == ["GET /health 200", "GET unknown 404"]
    assert "SENTINEL" not in caplog.text


def test_import__brings_no_model_and_no_decoder() -> None:
    heavy = "torch", "transformers", "sklearn", "cv2", "av", "workers"
    code = f"import backend.serve, sys; print([module for module in {heavy} if module in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


#: what is answered without a login, and what it answers
OPEN = {
    ("/health", "GET"): 200,
    ("/login", "GET"): 200,
    ("/login", "POST"): 401,  # what was given is looked at there
    ("/login/<address>", "GET"): 401,
}


@pytest.mark.parametrize(
    "header",
    [
        "",
        basic("jürgen:wrong"),
        basic("jürgen:wrong", "latin-1"),
        "Basic ÿþ\udcff",
        "Bearer x",
        "Token " + "0" * 40,
        "ü",
        ",",
    ],
    ids=ascii,
)
def test_every_route__is_closed_to_whoever_has_no_login(
    guarded: FlaskClient, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walks the application's own list of routes, so that a new one is not forgotten."""
    monkeypatch.setattr("backend.access._GUESSES", 1000)
    asked = 0
    for rule in guarded.application.url_map.iter_rules():
        path = re.sub(r"<(int|float):[^>]+>", "1", rule.rule)
        path = re.sub(r"<[^>]+>", "x", path)
        if rule.endpoint.endswith("static"):
            continue  # the same files for everybody
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            headers = {"Authorization": header.encode("utf-8", "surrogateescape").decode("latin-1")} if header else {}
            answer = guarded.open(path, method=method, headers=headers, json={} if method != "GET" else None)
            if (rule.rule, method) in OPEN and not (rule.rule == "/health" and header):
                assert answer.status_code == OPEN[rule.rule, method], (method, rule.rule, answer.status)
            elif answer.status_code == 302:
                assert answer.headers["Location"].split("?")[0] == "/login", (method, rule.rule)
            else:
                assert answer.status_code in (401, 403), (method, rule.rule, answer.status)
            assert "Traceback" not in answer.get_data(as_text=True)
            asked += 1
    assert asked > 15
