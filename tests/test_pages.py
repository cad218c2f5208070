"""The pages: what people see, and that hostile names stay text."""

from __future__ import annotations

import io
import re
import time

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from backend import pages
from lookalike import wire
from lookalike.labels import Companion
from lookalike.records import split_keyframe_id
from lookalike.store import Project
from tests.gallery import Gallery, claim, label_config, seed
from tests.studio import CREATED_AT, FakeStudio
from tests.web import HOSTILE, PAGE


def fill(app: Flask, studio: FakeStudio, number: int = 7, title: str = "Streets", **options: object) -> Gallery:
    categories = options.get("categories", ("Car", "Bus", "Bicycle"))
    config = label_config(categories)  # type: ignore[arg-type]
    studio.add_project(number, config)
    services = app.extensions["lookalike"]
    project = Project(wire.project_uid(number, CREATED_AT), number, title, config)
    return seed(services.store, services.settings, project, **options)  # type: ignore[arg-type]


def addresses(html: str) -> list[str]:
    """Of our own pages that a page links to."""
    return sorted(set(re.findall(r'href="(/projects[^"#]*)"', html)))


# --- what every page has ---


def test_page__policy_lets_nothing_in_but_our_own_files(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio)
    for path in ("/login", "/projects", "/projects/7", f"/projects/7/keyframes/{gallery.ids[0]}", "/projects/99"):
        answer = client.get(path, headers=PAGE)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["img-src"] == "'self'"
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", answer.text), path
        assert answer.headers["Cache-Control"] == "no-store"


def test_page__hostile_names_are_text(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio, title=HOSTILE, names=[f"{HOSTILE}.mp4"] * 2, categories=(HOSTILE, "Car", "Bus"))
    labelled = gallery.labelled[0]
    seen, todo = set(), ["/projects", f"/projects/7/keyframes/{labelled}"]
    while todo:
        path = todo.pop()
        seen.add(path)
        answer = client.get(path.replace("&amp;", "&"), headers=PAGE)
        if answer.mimetype == "text/html":
            assert answer.status_code == 200, path
            assert "<img src=x" not in answer.text, path
            todo += [found for found in addresses(answer.text) if found not in seen and len(seen) + len(todo) < 40]
    assert "&lt;img src=x" in client.get(f"/projects/7/keyframes/{labelled}", headers=PAGE).text


def test_page__of_a_keyframe_of_another_project_is_not_there(
    app: Flask, client: FlaskClient, studio: FakeStudio
) -> None:
    fill(app, studio)
    other = fill(app, studio, number=8)
    assert client.get(f"/projects/8/keyframes/{other.ids[0]}", headers=PAGE).status_code == 200
    page = client.get(f"/projects/7/keyframes/{other.ids[0]}", headers=PAGE)
    assert page.status_code == 404
    assert '<p><a href="/projects/7">' in page.text  # the way back


def test_error__is_a_page_for_a_browser_and_json_for_a_program(client: FlaskClient) -> None:
    page = client.get("/projects/99", headers=PAGE)
    assert page.mimetype == "text/html"
    assert "There is no project 99 here" in page.text
    assert 'href="/projects">Projects</a>' in page.text
    assert 'href="/login"' not in page.text
    program = client.get("/projects/99")
    assert program.get_json()["error"]["type"] == "NotFound"
    assert client.get("/nowhere", headers=PAGE).mimetype == "text/html"


def test_root__leads_a_browser_to_the_projects_and_tells_programs_that_we_live(client: FlaskClient) -> None:
    assert client.get("/", headers=PAGE).location == "/projects"
    assert client.get("/").get_json()["status"] == "UP"


# --- a project's page ---


def csrf(client: FlaskClient) -> dict[str, str]:
    found = re.search(r'<meta name="csrf" content="([^"]+)">', client.get("/projects", headers=PAGE).text)
    assert found
    return {"csrf": found[1]}


def test_project__tells_how_far_it_is_and_what_failed(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio)
    store, uid = app.extensions["lookalike"].store, gallery.project.uid
    store.add_videos(uid, [(500, "/data/upload/7/0123abcd-bridge.mkv", {}), (501, "/data/x/market.mp4", {})])
    ids = {video.task: str(video.id) for video in store.videos(uid)}
    store.ledger.fail(claim(store, "video", ids[500]), "bridge.mkv is no video; convert it")
    store.ledger.renew(claim(store, "video", ids[501]), lease_s=60, stage="embedding")
    for path in ("/projects/7", "/projects/7/overview"):
        text = client.get(path, headers=PAGE).text
        assert "bridge.mkv is no video; convert it" in text
        assert "1 embedding" in text
        assert re.search(r"<dd>60</dd>", text)
        covered = 2 + len(gallery.run.changes)
        assert f"{covered / 2:.1f} ×" in text
    assert "market.mp4" in client.get("/projects/7/videos?state=embedding", headers=PAGE).text
    assert "market.mp4" not in client.get("/projects/7/videos?state=failed", headers=PAGE).text
    answer = client.post("/projects/7/retry", data=csrf(client), headers=PAGE)
    assert answer.status_code == 303
    assert store.video_counts(uid) == {"nothing to show yet": 2, "queued": 1, "embedding": 1}
    assert "1 tried again" in client.get("/projects/7", headers=PAGE).text


def test_project__next_step_while_there_is_nothing_to_label(
    app: Flask, client: FlaskClient, studio: FakeStudio
) -> None:
    studio.add_project(7, label_config())
    store, uid = app.extensions["lookalike"].store, wire.project_uid(7, CREATED_AT)
    store.put_project(Project(uid, 7, "Streets", label_config()))

    def next_step() -> str:
        text = client.get("/projects/7", headers=PAGE).text
        return text.split("Next step</h2>", 1)[1].split("</section>", 1)[0]

    assert f'href="{studio.url}/projects/7/data/import"' in next_step()
    assert "No videos yet" in client.get("/projects/7/videos", headers=PAGE).text
    store.add_videos(uid, [(1, "https://host.example/a.mp4", {})])
    assert "on their way" in next_step()
    [video] = store.videos(uid)
    store.ledger.later(claim(store, "video", str(video.id)), "host.example does not answer", delay_s=0)
    assert "host.example does not answer" in client.get("/projects/7", headers=PAGE).text
    store.ledger.fail(claim(store, "video", str(video.id)), "a.mp4 is no video")
    assert "Mend what the list says" in next_step()
    assert "0 of 1 videos done" in client.get("/projects/7", headers=PAGE).text


def test_project__runs_are_undone_from_the_page(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio)
    store, uid = app.extensions["lookalike"].store, gallery.project.uid
    before = len(store.labels.proposals(uid, "proposed"))
    assert before
    path = f"/projects/7/runs/{gallery.run.id}/undo"
    assert client.post(path, headers=PAGE).status_code == 403
    assert len(store.labels.proposals(uid, "proposed")) == before
    client.post(path, data=csrf(client), headers=PAGE)
    assert store.labels.proposals(uid, "proposed") == []
    text = client.get("/projects/7", headers=PAGE).text
    assert f"{before} proposals withdrawn" in text
    assert f"Undid run {gallery.run.id}" in text
    other = fill(app, studio, number=8)
    assert client.post(f"/projects/7/runs/{other.run.id}/undo", data=csrf(client), headers=PAGE).status_code == 404


def test_project__asks_for_its_companion_and_links_to_it(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio)
    store, uid = app.extensions["lookalike"].store, gallery.project.uid
    assert "Make a project of its keyframes" in client.get("/projects/7", headers=PAGE).text
    client.post("/projects/7/companion", data=csrf(client), headers=PAGE)
    assert "on their way" in client.get("/projects/7", headers=PAGE).text
    store.labels.put_companion(Companion(uid, "9.1", 9, "<View/>", {"next": 41}, True))
    assert f"{studio.url}/projects/9/data?tab=41" in client.get("/projects/7", headers=PAGE).text
    assert client.get("/projects/9", headers=PAGE).location == "/projects/7"
    del studio.projects[7]
    app.extensions["lookalike_access"]._projects._known.clear()  # a minute later
    assert (
        client.get("/projects/9", headers=PAGE).status_code == 404
    )  # whose keyframes these are is told to nobody else


def test_page__numbers_that_no_database_has_are_no_fault(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    fill(app, studio)
    for number in (2**63, 10**25, "9" * 5000):
        for path in (
            *(f"/projects/{number}", f"/projects/7/keyframes/{number}", f"/thumbnails/{number}.jpg"),
            *(f"/projects/7/tiles?ids={number}", f"/projects/7/videos?after={number}"),
            *(f"/projects/7/category?name=Car&after={number}", f"/projects/7/clusters/{number}"),
        ):
            assert client.get(path, headers=PAGE).status_code in (200, 400, 404), path[:40]
        for path in ("/projects/7/retry", f"/projects/7/runs/{number}/undo"):
            answer = client.post(path, data=csrf(client) | {"work": str(number)}, headers=PAGE)
            assert answer.status_code in (303, 400, 404), path[:40]


def test_keyframe__says_why_it_has_its_label_and_what_is_like_it(
    app: Flask, client: FlaskClient, studio: FakeStudio
) -> None:
    gallery = fill(app, studio)
    labelled = gallery.labelled[0]
    change = next(change for change in gallery.run.changes if change.after == ("Car",))
    text = client.get(f"/projects/7/keyframes/{change.keyframe}", headers=PAGE).text
    reasons = text.split("Because it looks like", 1)[1].split("</section>", 1)[0]
    assert f'data-id="{labelled}"' in reasons
    assert f"run {gallery.run.id}" in text
    own = client.get(f"/projects/7/keyframes/{labelled}", headers=PAGE).text
    assert "by ann@example.com" in own
    assert "Because it looks like" not in own
    around = own.split("Around it in the video", 1)[1].split("</section>", 1)[0]
    video = labelled >> 24
    assert {int(found) >> 24 for found in re.findall(r'data-id="(\d+)"', around)} == {video}
    deadline = time.monotonic() + 60
    while (answer := client.get(f"/projects/7/keyframes/{labelled}/nearest", headers=PAGE)).status_code == 202:
        assert time.monotonic() < deadline
    near = [int(found) for found in re.findall(r'data-id="(\d+)"', answer.text)]
    truth = dict(zip(gallery.ids.tolist(), gallery.truth.tolist(), strict=True))
    assert labelled not in near
    assert near
    assert {truth[keyframe] for keyframe in near[:5]} == {truth[labelled]}


# --- pictures ---


def test_thumbnail__is_small_kept_and_remembered_by_browsers(
    app: Flask, client: FlaskClient, studio: FakeStudio
) -> None:
    gallery = fill(app, studio)
    page = client.get(f"/projects/7/keyframes/{gallery.ids[0]}", headers=PAGE).text
    address = re.search(r'src="(/thumbnails/[^"]+)"', page)
    assert address
    answer = client.get(address[1])
    assert answer.mimetype == "image/jpeg"
    assert Image.open(io.BytesIO(answer.data)).size == (320, 200)
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    again = client.get(address[1], headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    large = client.get(f"/pictures/{gallery.ids[0]}.jpg")
    assert Image.open(io.BytesIO(large.data)).size == (640, 400)
    assert large.headers["Cache-Control"] == "private, no-cache"  # the address does not say which picture


def test_thumbnail__follows_its_picture(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio)
    before = client.get(f"/thumbnails/{gallery.ids[0]}.jpg").data
    path = app.extensions["lookalike"].settings.picture_path(*split_keyframe_id(int(gallery.ids[0])))
    Image.new("RGB", (100, 400), "white").save(path, "JPEG")
    after = client.get(f"/thumbnails/{gallery.ids[0]}.jpg").data
    assert before != after
    assert Image.open(io.BytesIO(after)).size == (80, 320)


def test_thumbnail__of_a_strangers_project_is_not_there(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio)
    del studio.projects[7]
    for path in (f"/thumbnails/{gallery.ids[0]}.jpg", f"/pictures/{gallery.ids[0]}.jpg"):
        assert client.get(path).status_code == 404
        assert app.test_client().get(path).status_code == 401
    assert client.get("/thumbnails/12345678901.jpg").status_code == 404


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\xff\xd8\xff\xe0 cut off"])
def test_thumbnail__of_a_broken_picture_is_a_grey_one(
    app: Flask, client: FlaskClient, studio: FakeStudio, content: bytes
) -> None:
    gallery = fill(app, studio)
    app.extensions["lookalike"].settings.picture_path(*split_keyframe_id(int(gallery.ids[0]))).write_bytes(content)
    answer = client.get(f"/thumbnails/{gallery.ids[0]}.jpg")
    assert (answer.status_code, answer.mimetype) == (200, "image/svg+xml")
    assert "immutable" not in answer.headers["Cache-Control"]


def test_thumbnail__of_a_picture_elsewhere_is_a_grey_one(app: Flask, client: FlaskClient, studio: FakeStudio) -> None:
    gallery = fill(app, studio, pictures=[], truth=[0, 1, 2])
    assert client.get(f"/thumbnails/{gallery.ids[0]}.jpg").mimetype == "image/svg+xml"


# --- how numbers look ---


def test_numbers__as_people_write_them() -> None:
    assert [pages.clock(s) for s in (0, 59.9, 61, 3723)] == ["0:00", "0:59", "1:01", "1:02:03"]
    assert [pages.percent(p) for p in (0, 0.001, 0.5, 0.996, 1)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]
    assert pages.count(1234567) == "1\u202f234\u202f567"
