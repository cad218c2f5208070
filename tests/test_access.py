"""Who asks, and what they may see: signing in and out, strangers, requests from elsewhere."""

from __future__ import annotations

import base64
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.app import create_app
from lookalike import wire
from lookalike.settings import Settings
from lookalike.sign_in import SignIns, address
from lookalike.store import Project
from tests.studio import CREATED_AT, TOKEN, FakeStudio, running_studio

PAGE = {"Accept": "text/html,*/*;q=0.8"}
CONFIG = (
    '<View><Video name="v" value="$video"/>'
    '<TimelineLabels name="t" toName="v"><Label value="Car"/></TimelineLabels></View>'
)
LOGIN = {"basic_auth_user": "jürgen", "basic_auth_pass": "pässword:1"}


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with running_studio() as running:
        running.add_project(7, CONFIG)
        yield running


@pytest.fixture
def app(studio: FakeStudio, tmp_path: Path) -> Iterator[Flask]:
    made = make_app(studio, tmp_path)
    yield made
    made.extensions["lookalike"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def make_app(studio: FakeStudio, data_dir: Path, **changes: str) -> Flask:
    settings = Settings(
        data_dir=data_dir,
        redis_url=f"unix://{data_dir}/nobody.sock",
        label_studio_url=studio.url,
        label_studio_token=TOKEN,
    )
    app = create_app(settings.with_(**changes))
    store = app.extensions["lookalike"].store
    store.put_project(Project(wire.project_uid(7, CREATED_AT), 7, "Cars", CONFIG))
    store.put_project(Project(wire.project_uid(8, CREATED_AT), 8, "Of others", CONFIG))
    return app


def sign_in(client: FlaskClient, token: str = TOKEN) -> TestResponse:
    return client.post("/login", data={"token": token}, headers=PAGE)


def csrf(client: FlaskClient) -> str:
    found = re.search(r'<meta name="csrf" content="([^"]+)">', client.get("/projects", headers=PAGE).text)
    assert found
    return found[1]


# --- signing in ---


def test_sign_in__a_stranger_is_led_to_the_page_and_back(client: FlaskClient) -> None:
    asked = client.get("/projects/7?x=1", headers=PAGE)
    assert asked.status_code == 302
    assert asked.location == "/login?next=/projects/7?x%3D1"
    page = client.get(asked.location, headers=PAGE)
    assert 'name="next" value="/projects/7?x=1"' in page.text
    signed = client.post("/login", data={"token": TOKEN, "next": "/projects/7?x=1"}, headers=PAGE)
    assert (signed.status_code, signed.location) == (303, "/projects/7?x=1")
    assert "Cars" in client.get("/projects/7", headers=PAGE).text


@pytest.mark.parametrize("elsewhere", ["//evil.example", "/\\evil.example", "https://evil.example", "/login", "\n/x"])
def test_sign_in__leads_to_no_other_site(client: FlaskClient, elsewhere: str) -> None:
    signed = client.post("/login", data={"token": TOKEN, "next": elsewhere}, headers=PAGE)
    assert signed.location == "/projects"


def test_sign_in__wrong_token_is_a_sentence(client: FlaskClient) -> None:
    answer = sign_in(client, "f" * 40)
    assert answer.status_code == 401
    assert "does not accept this token" in answer.text
    assert "Set-Cookie" not in answer.headers
    assert "f" * 40 not in answer.text


def test_sign_in__label_studio_that_does_not_answer_is_a_sentence(client: FlaskClient, studio: FakeStudio) -> None:
    studio.down = True
    answer = sign_in(client)
    assert answer.status_code == 503
    assert "try again later" in answer.text


def test_cookie__hides_the_token_and_is_for_this_site_only(client: FlaskClient) -> None:
    cookie = sign_in(client).headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    value = cookie.split("=", 1)[1].split(";")[0]
    readable = base64.urlsafe_b64decode(value + "==")
    assert TOKEN.encode() not in readable
    assert b"admin" not in readable


def test_cookie__is_secure_where_the_page_is(studio: FakeStudio, tmp_path: Path) -> None:
    app = make_app(studio, tmp_path, public_url="https://look.example")
    assert "Secure" in sign_in(app.test_client()).headers["Set-Cookie"]


def test_cookie__is_known_to_another_process_and_after_a_restart(
    client: FlaskClient, studio: FakeStudio, tmp_path: Path
) -> None:
    name, value = sign_in(client).headers["Set-Cookie"].split(";")[0].split("=", 1)
    other = make_app(studio, tmp_path).test_client()
    other.set_cookie(name, value)
    assert other.get("/projects", headers=PAGE).status_code == 200
    key = tmp_path / "session.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("change", [lambda v: v[:-2] + "AA", lambda v: "x", lambda v: "", lambda v: "ä" * 50])
def test_cookie__that_was_tampered_with_is_none(client: FlaskClient, app: Flask, change: object) -> None:
    name, value = sign_in(client).headers["Set-Cookie"].split(";")[0].split("=", 1)
    fresh = app.test_client()
    fresh.set_cookie(name, change(value))  # type: ignore[operator]
    assert fresh.get("/projects", headers=PAGE).status_code == 302


def test_sign_out__ends_the_session_even_for_a_copy_of_the_cookie(client: FlaskClient, app: Flask) -> None:
    name, value = sign_in(client).headers["Set-Cookie"].split(";")[0].split("=", 1)
    assert client.post("/logout", data={"csrf": csrf(client)}, headers=PAGE).location == "/login"
    copy = app.test_client()
    copy.set_cookie(name, value)
    assert copy.get("/projects", headers=PAGE).status_code == 302


def test_session__runs_out(app: Flask, client: FlaskClient) -> None:
    here = app.extensions["lookalike_access"]
    content = {"name": "a", "token": TOKEN, "csrf": "c"}
    for lasts_s, status in ((60.0, 200), (-1.0, 302)):
        client.set_cookie(here.cookie, here.sign_ins.seal(content, lasts_s))
        assert client.get("/projects", headers=PAGE).status_code == status
    client.set_cookie(here.cookie, here.sign_ins.ticket(60.0))
    assert client.get("/projects", headers=PAGE).status_code == 302  # one kind does not pass for the other


# --- the address that signs in once ---


def test_address__signs_in_once(app: Flask, studio: FakeStudio) -> None:
    here = app.extensions["lookalike_access"]
    path = "/" + address(here.settings, here.sign_ins).split("/", 3)[3]
    assert TOKEN not in path
    first = app.test_client()
    assert first.get(path, headers=PAGE).location == "/projects"
    assert "Cars" in first.get("/projects", headers=PAGE).text
    assert first.get(path, headers=PAGE).location == "/projects"  # used, by who is signed in
    second = app.test_client().get(path, headers=PAGE)
    assert second.status_code == 401
    assert "lookalike sign-in" in second.text


def test_address__is_for_this_machine(app: Flask) -> None:
    here = app.extensions["lookalike_access"]
    path = "/" + address(here.settings, here.sign_ins).split("/", 3)[3]
    for elsewhere in (
        {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}},
        *({"headers": PAGE | {name: "192.0.2.7"}} for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")),
    ):
        assert app.test_client().get(path, **elsewhere).status_code == 401  # type: ignore[arg-type]
    assert app.test_client().get(path, headers=PAGE).status_code == 303  # and was not used up by them


# --- programs ---


@pytest.mark.parametrize("scheme", ["Token", "Bearer", "token"])
def test_program__sends_its_token(client: FlaskClient, scheme: str) -> None:
    assert client.get("/projects/7", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
    answer = client.get("/projects/7", headers={"Authorization": f"{scheme} {'f' * 40}"})
    assert answer.status_code == 401
    assert answer.get_json()["error"]["type"] == "Unauthorized"


def test_program__without_anything_gets_401_as_json(client: FlaskClient) -> None:
    answer = client.get("/projects")
    assert answer.status_code == 401
    assert "/login" in answer.get_json()["error"]["message"]


# --- who may see what ---


def test_project__of_others_is_not_there(client: FlaskClient) -> None:
    sign_in(client)
    listed = client.get("/projects", headers=PAGE).text
    assert "Cars" in listed
    assert "Of others" not in listed
    hidden, unknown = (client.get(f"/projects/{number}", headers=PAGE) for number in (8, 9))
    assert hidden.status_code == unknown.status_code == 404
    assert hidden.text.replace("8", "9") == unknown.text.replace("8", "9")


def test_project__of_others_is_not_there_on_any_route(app: Flask, client: FlaskClient) -> None:
    """Walks the application's own list of routes, so that a new one is not forgotten."""
    sign_in(client)
    store = app.extensions["lookalike"].store
    store.add_videos(wire.project_uid(8, CREATED_AT), [(1, "/data/upload/8/a.mp4", {})])
    before = [(row.id, row.state) for row in store.ledger.rows()]
    token, asked = csrf(client), 0
    for rule in app.url_map.iter_rules():
        if "label_studio_id" not in rule.arguments:
            continue
        path = re.sub(r"<int[^>]*:label_studio_id>", "8", rule.rule)
        path = re.sub(r"<int[^>]*>", "1", path)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            body = {"json": {"edit": 1, "category": "Car"}} if method != "GET" else {}
            answer = client.open(path, method=method, headers=PAGE | {"X-CSRF-Token": token}, **body)  # type: ignore[arg-type]
            assert answer.status_code == 404, (method, rule.rule)
            asked += 1
    assert asked > 20
    assert [(row.id, row.state) for row in store.ledger.rows()] == before


def test_project__whose_id_is_anothers_by_now_is_not_there(client: FlaskClient, studio: FakeStudio) -> None:
    studio.add_project(8, CONFIG, "2027-01-01T00:00:00Z")
    sign_in(client)
    assert client.get("/projects/8", headers=PAGE).status_code == 404


def test_project__is_not_shown_to_whom_label_studio_no_longer_lets_in(
    client: FlaskClient, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(client)
    assert client.get("/projects/7", headers=PAGE).status_code == 200
    studio.token = "0" * 40
    assert client.get("/projects/7", headers=PAGE).status_code == 200  # believed for a minute …
    now = __import__("time").monotonic()
    monkeypatch.setattr("backend.access.time.monotonic", lambda: now + 61)
    assert client.get("/projects/7", headers=PAGE).status_code == 403  # … and no longer


# --- the backend's login ---


def test_basic__may_look_in_the_browser_and_by_program(studio: FakeStudio, tmp_path: Path) -> None:
    client = make_app(studio, tmp_path, **LOGIN).test_client()
    wrong = client.post("/login", data={"user": "jürgen", "password": "no"}, headers=PAGE)
    assert wrong.status_code == 401
    signed = client.post("/login", data={"user": "jürgen", "password": "pässword:1"}, headers=PAGE)
    assert signed.location == "/projects"
    assert "Cars" in client.get("/projects", headers=PAGE).text
    header = "Basic " + base64.b64encode("jürgen:pässword:1".encode()).decode()
    program = make_app(studio, tmp_path, **LOGIN).test_client()
    assert program.get("/projects/7", headers={"Authorization": header}).status_code == 200
    assert program.get("/projects/7").status_code == 401


def test_basic__with_another_password_signs_out_whoever_had_the_one_before(studio: FakeStudio, tmp_path: Path) -> None:
    before = make_app(studio, tmp_path, **LOGIN).test_client()
    signed = before.post("/login", data={"user": "jürgen", "password": "pässword:1"}, headers=PAGE)
    name, value = signed.headers["Set-Cookie"].split(";")[0].split("=", 1)
    for changed, status in ((LOGIN, 200), (LOGIN | {"basic_auth_pass": "another"}, 302), ({}, 302)):
        client = make_app(studio, tmp_path, **changed).test_client()
        client.set_cookie(name, value)
        assert client.get("/projects", headers=PAGE).status_code == status


def test_basic__is_nobody_at_label_studio(studio: FakeStudio, tmp_path: Path) -> None:
    from backend import access

    app = make_app(studio, tmp_path, **LOGIN)
    app.add_url_rule("/write", "pages.write", lambda: str(access.studio()), methods=["POST"])
    header = "Basic " + base64.b64encode("jürgen:pässword:1".encode()).decode()
    answer = app.test_client().post("/write", headers={"Authorization": header})
    assert answer.status_code == 403
    assert "sign in with your Label Studio token" in answer.get_json()["error"]["message"]
    assert app.test_client().post("/write", headers={"Authorization": f"Token {TOKEN}"}).status_code == 200


def test_contract__keeps_its_own_rules(studio: FakeStudio, tmp_path: Path) -> None:
    client = make_app(studio, tmp_path, **LOGIN).test_client()
    sign_in(client)
    assert client.post("/predict", json={"tasks": []}).status_code == 401  # a cookie is no login there
    assert client.get("/health").status_code == 200
    open_client = make_app(studio, tmp_path).test_client()
    assert open_client.post("/predict", json={"tasks": []}).status_code == 200


@pytest.mark.parametrize("route", ["/predict", "/webhook", "/setup"])
def test_contract__is_not_for_pages_in_a_browser(studio: FakeStudio, tmp_path: Path, route: str) -> None:
    """Without a login, a page that somebody has open could send us to work, or ours by a name of its own."""
    app = make_app(studio, tmp_path)
    store = app.extensions["lookalike"].store
    uid = wire.project_uid(7, CREATED_AT)
    store.add_videos(uid, [(1, "/data/upload/7/a.mp4", {})])
    event = json.dumps(
        {"action": "TASKS_DELETED", "project": {"id": 7, "created_at": CREATED_AT}, "tasks": [{"id": 1}]}
    )
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example:9090", "Host": "evil.example:9090", "Sec-Fetch-Site": "same-origin"},
    ):
        answer = app.test_client().post(route, data=event, headers=headers, content_type="text/plain")
        assert answer.status_code == 403
        assert "never a page in a browser" in answer.get_json()["error"]["message"]
    assert ("sync", "due") not in store.ledger.counts()
    if route == "/webhook":
        app.test_client().post(route, data=event, content_type="application/json")
        assert store.ledger.counts()["sync", "due"] == 1


# --- trying passwords ---


def test_login__too_many_wrong_ones_are_not_looked_at(
    studio: FakeStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(studio, tmp_path, **LOGIN)
    client, signed = app.test_client(), app.test_client()
    right = "Basic " + base64.b64encode("jürgen:pässword:1".encode()).decode()
    sign_in(signed)
    tries = [
        lambda: client.post("/login", data={"user": "jürgen", "password": "no"}, headers=PAGE),
        lambda: sign_in(client, "f" * 40),
        lambda: client.get("/projects/7", headers={"Authorization": "Token " + "f" * 40}),
        lambda: client.get("/projects/7", headers={"Authorization": "Basic eDp5"}),
        lambda: client.post("/webhook", json={}, headers={"Authorization": "Basic eDp5"}),
    ]
    assert {tries[n % 5]().status_code for n in range(30)} == {401}
    asked = len(studio.asked)
    for guess in tries:
        answer = guess()
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "60"
    assert len(studio.asked) == asked
    assert client.get("/projects/7", headers={"Authorization": right}).status_code == 429
    assert client.get("/health").status_code == 200
    assert signed.get("/projects/7", headers=PAGE).status_code == 200  # whoever is signed in goes on
    elsewhere = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}}
    assert client.get("/projects/7", headers={"Authorization": right}, **elsewhere).status_code == 200  # type: ignore[arg-type]
    now = __import__("time").monotonic()
    monkeypatch.setattr("backend.access.time.monotonic", lambda: now + 61)
    assert client.get("/projects/7", headers={"Authorization": right}).status_code == 200


# --- requests from elsewhere ---


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8080"},
    ],
)
def test_change__from_another_site_is_refused(client: FlaskClient, headers: dict[str, str]) -> None:
    sign_in(client)
    answer = client.post("/logout", data={"csrf": csrf(client)}, headers=PAGE | headers)
    assert answer.status_code == 403
    assert client.get("/projects", headers=PAGE).status_code == 200
    assert client.post("/login", data={"token": TOKEN}, headers=PAGE | headers).status_code == 403


def test_change__needs_the_pages_token(client: FlaskClient) -> None:
    sign_in(client)
    for data in ({}, {"csrf": ""}, {"csrf": "ä"}, {"csrf": "x" * 22}):
        assert client.post("/logout", data=data, headers=PAGE).status_code == 403
    ours = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "X-CSRF-Token": csrf(client)}
    assert client.post("/logout", headers=PAGE | ours).status_code == 302


def test_sign_ins__of_two_folders_do_not_know_each_other(app: Flask, tmp_path: Path) -> None:
    engine = app.extensions["lookalike"].store.engine
    one, other = SignIns(tmp_path / "a", engine), SignIns(tmp_path / "b", engine)
    text = one.seal({"name": "a"}, 60)
    assert one.open(text) is not None
    assert other.open(text) is None
    ticket = one.ticket(60)
    assert not other.redeem(ticket)
    assert one.redeem(ticket)
