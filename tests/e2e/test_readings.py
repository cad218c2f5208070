"""Nothing that people say is lost: labels read back from a real Label Studio in which things go wrong."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import requests

from lookalike import wire
from lookalike.label_studio import LabelStudio, first_token
from lookalike.ledger import Work
from tests.e2e import loops
from tests.e2e.loops import CATEGORIES, IMAGES, Loop
from tests.services import LabelStudioServer
from workers import jobs

pytestmark = pytest.mark.e2e

OTHER = ("second@example.com", "lookalike-test")


@pytest.fixture(scope="module")
def loop(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    with loops.images(label_studio_server, tmp_path_factory.mktemp("readings"), 6) as found:
        found.label_next()
        found.propagate()
        yield found


@pytest.fixture(scope="module")
def second(label_studio_server: LabelStudioServer) -> LabelStudio:
    """Label Studio as another annotator, who came by an invitation."""
    server = label_studio_server
    invited = str(server.client()._object("GET", "/api/invite")["invite_url"])
    address = server.url + invited[invited.index("/user/signup") :]
    with requests.Session() as browser:
        browser.get(address)
        form = {"email": OTHER[0], "password": OTHER[1], "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        assert browser.post(address, data=form, allow_redirects=False).status_code == 302
    return server.client(first_token(server.url, *OTHER))


def open_task(loop: Loop) -> int:
    return next(task for task, listed in loop.tasks().items() if not listed["total_annotations"])


def propagate_once(loop: Loop) -> Work:
    """One try at it, however it comes out."""
    loop.store.want("propagate", loop.uid)
    (row,) = loop.store.ledger.due(("propagate",), 1)
    jobs.propagate(row.id)
    return next(found for found in loop.store.ledger.rows() if found.id == row.id)


def test_readings__a_label_that_comes_twice_is_one(loop: Loop) -> None:
    task = open_task(loop)
    loop.label(task, "Faces")
    for _ in range(3):  # the webhook comes again and again, and so does the label
        loop.propagate()
    first = loop.store.labels.labels(loop.uid)
    loop.label(task, "Faces")
    loop.propagate()
    assert loop.said()[task] == {"Faces"}
    assert len(loop.store.labels.labels(loop.uid)) == len(first) + 1
    assert task not in loop.tab("unsure")
    assert loop.tasks()[task]["data"]["lookalike_state"] == "labelled"


def test_readings__the_last_word_counts_in_whatever_order_it_is_heard(loop: Loop) -> None:
    task = open_task(loop)
    older = loop.label(task, "Faces")
    loop.label(task, "car_side")
    value = {"from_name": "category", "to_name": "image", "type": "choices", "value": {"choices": ["airplanes"]}}
    loop.studio._object("PATCH", f"/api/annotations/{older}/", json={"result": [value]})
    loop.propagate()  # of all three at once, the event of the last one first
    [row] = [row for row in loop.store.labels.labels(loop.uid) if row.annotation == older]
    assert row.category == "airplanes"
    project = loop.store.project(loop.uid)
    assert project is not None
    knowledge = jobs.loop.know(loop.store, project, wire.parse_label_config(IMAGES), "efficientnet-lite0")
    assert knowledge is not None
    assert knowledge.agreed[row.keyframe].categories == ("airplanes",)


def test_readings__two_annotators_who_disagree_are_a_conflict_in_tab_3(loop: Loop, second: LabelStudio) -> None:
    task = open_task(loop)
    loop.label(task, "Faces")
    loop.propagate()
    assert task not in loop.tab("unsure")
    theirs = loop.label(task, "Leopards", studio=second)
    loop.propagate()
    people = {row.person: row.category for row in loop.store.labels.labels(loop.uid) if row.task == task}
    assert people == {LabelStudioServer.email: "Faces", OTHER[0]: "Leopards"}
    assert task in loop.tab("unsure")
    assert loop.tasks()[task]["data"]["lookalike_state"] == "conflict"
    second._call("DELETE", f"/api/annotations/{theirs}/")
    loop.propagate()
    assert task not in loop.tab("unsure")
    assert loop.said()[task] == {"Faces"}


def test_readings__a_database_that_is_locked_loses_no_label(loop: Loop, label_studio_server: LabelStudioServer) -> None:
    """For real: somebody else holds the write lock of Label Studio's SQLite."""
    task = open_task(loop)
    before, predicted = loop.said(), loop.predictions()
    loop.label(task, loop.truth_of(loop.tasks()[task]))
    loop.studio.delete_predictions(loop.project, list(predicted))
    shown = loop.store.labels.shown(loop.uid)
    loop.store.labels.put_shown(loop.uid, {other: {**shown[other], "prediction": ""} for other in predicted})
    database = next(label_studio_server.data_dir.glob("*.sqlite3"))
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        row = propagate_once(loop)
        holder.execute("ROLLBACK")
    assert row.state == "due"
    assert "500" in row.error, row.error
    assert set(loop.said()) == {*before, task}, "what was read is kept"
    loop.propagate()
    labelled = {t for t, listed in loop.tasks().items() if listed["total_annotations"]}
    rows = loop.studio._list("GET", "/api/predictions/", params={"project": loop.project})
    assert len({r["task"] for r in rows}) == len(rows), "none twice"
    proposed = {p.keyframe for p in loop.store.labels.proposals(loop.uid, "proposed")}
    videos = {video.id: video.task for video in loop.store.videos(loop.uid)}
    assert loop.predictions().keys() - labelled == {videos[keyframe >> 24] for keyframe in proposed}


def test_readings__a_token_that_is_revoked_and_given_back_loses_no_label(
    loop: Loop, label_studio_server: LabelStudioServer, second: LabelStudio
) -> None:
    kept = loop.place.label_studio
    loop.place.label_studio = second
    try:
        task = open_task(loop)
        loop.label(task, loop.truth_of(loop.tasks()[task]))
        revoked = second._send(
            "POST", "/api/token/blacklist/", headers=second._authorization(), json={"refresh": second._token}
        )
        assert revoked.status_code == 204
        second._access_until = 0.0  # the access token that it has would last another five minutes
        row = propagate_once(loop)
        assert row.state == "due"
        assert "was revoked or belongs to another Label Studio; make a new one" in row.error
        assert task not in loop.said()
        loop.place.label_studio = label_studio_server.client(first_token(label_studio_server.url, *OTHER))
        loop.propagate()
        assert task in loop.said()
    finally:
        loop.place.label_studio = kept


def test_readings__a_category_that_is_removed_or_renamed_loses_no_label(loop: Loop) -> None:
    labels, predicted = loop.store.labels.labels(loop.uid), loop.predictions()
    assert "Leopards" in {row.category for row in labels}
    for xml in (
        IMAGES.replace('<Choice value="Leopards"/>', ""),
        IMAGES.replace('value="Leopards"', 'value="Big cats"'),
        IMAGES.replace('value="Leopards"', 'value="Leopards"/><Choice value="pizza"'),
    ):
        _set_config(loop, xml)
        loop.ask("sync")
        categories = set(wire.parse_label_config(xml).categories) - {wire.RESERVED_CATEGORY}
        assert set(loop.predictions().values()) <= categories
        assert {key for key in loop.companion.tabs if key.startswith("confirm ")} == {
            f"confirm {c}" for c in categories
        }
    _set_config(loop, IMAGES)
    loop.ask("sync")
    assert loop.store.labels.labels(loop.uid) == labels
    assert loop.predictions() == predicted


def _set_config(loop: Loop, xml: str) -> None:
    loop.studio.update_project(loop.project, label_config=xml)


def test_readings__a_task_whose_number_is_used_again_is_another_one(loop: Loop) -> None:
    last = max(loop.tasks())
    loop.label(last, "Faces")
    loop.propagate()
    assert last in loop.said()
    loop.studio._call("DELETE", f"/api/tasks/{last}/")
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    picture = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 2))[1].tobytes()
    loop.truth = {**loop.truth, "noise.jpg": CATEGORIES[0]}
    [url] = loop.studio.upload_pictures(loop.project, [("noise.jpg", picture)]).values()
    [again] = loop.studio.import_tasks(loop.project, [{"data": {"image": url}}])
    if again != last:
        pytest.skip(f"this Label Studio's database does not use the number {last} again, but {again}")
    loop.ask("sync")
    assert last not in loop.said()
    assert len(loop.studio.predictions(last)) <= 1
    assert loop.tasks()[last]["data"]["lookalike_state"] in ("open", "unsure", "proposed", "conflict")
    assert len(loop.tasks()) == 30


def test_readings__a_deleted_task_takes_its_label_with_it_and_no_other(loop: Loop) -> None:
    before = loop.said()
    task = next(iter(before))
    loop.studio._call("DELETE", f"/api/tasks/{task}/")
    loop.ask("sync")
    assert loop.said() == {other: words for other, words in before.items() if other != task}
    assert loop.store.videos(loop.uid, [task]) == []
