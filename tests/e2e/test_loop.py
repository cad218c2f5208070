"""The loop over videos, against a real Label Studio: label centroids as an annotator would, see what follows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lookalike import wire
from lookalike.companion import ask
from lookalike.errors import LabelStudioUnreachable
from lookalike.label_studio import LabelStudio
from lookalike.undo import undo
from tests.e2e import loops
from tests.e2e.loops import CATEGORIES, VERSION, Loop
from tests.e2e.loops import VIDEOS as CONFIG
from tests.services import LabelStudioServer, free_port, wait_until_up
from workers import jobs
from workers import loop as steps

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def loop(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    with loops.videos(label_studio_server, tmp_path_factory.mktemp("loop")) as found:
        yield found


def test_loop__every_keyframe_is_a_task_of_the_companion(loop: Loop) -> None:
    assert loop.studio.project(loop.companion.label_studio_id)["title"] == "Traffic, first cut · keyframes"
    tasks = loop.tasks()
    assert len(tasks) == 50
    assert {task["data"]["centroid"] for task in tasks.values()} == {"yes", "no"}
    first = next(iter(tasks.values()))["data"]
    assert first["links"].startswith("[clip")
    assert loop.studio.open_media(first["image"]).status_code == 200
    assert len(loop.tab("next")) == 5
    views = {view["data"]["title"] for view in loop.studio.views(loop.companion.label_studio_id)}
    assert {"1 · Label these next", "2 · Confirm: Faces", "3 · Unsure or in conflict"} <= views


def test_loop__a_labelled_centroid_becomes_predictions_within_5_s(loop: Loop) -> None:
    tasks = loop.tasks()
    for task in loop.tab("next"):
        loop.label(task, loop.truth_of(tasks[task]))
    began = time.monotonic()
    loop.store.want("propagate", loop.uid)
    (row,) = loop.store.ledger.due(("propagate",), 1)
    jobs.propagate(row.id)
    seconds = time.monotonic() - began
    predicted = loop.predictions()
    print(f"{len(predicted)} predictions after {seconds:.2f} s")
    assert seconds < loops.busy(5)
    assert len(predicted) >= 20
    right = sum(loop.truth_of(tasks[task]) == category for task, category in predicted.items())
    assert right / len(predicted) >= 0.9


def test_loop__tab_2_has_the_lookalikes_surest_first(loop: Loop) -> None:
    loop.work()
    predicted = loop.predictions()
    for category in CATEGORIES:
        assert set(loop.tab(f"confirm {category}")) == {t for t, c in predicted.items() if c == category}
    assert not set(loop.tab("unsure")) & set(predicted)
    project = loop.studio.project(loop.companion.label_studio_id)
    assert project["model_version"] == VERSION


def test_loop__timelines_show_the_categories(loop: Loop) -> None:
    loop.work()
    shown = loop.timelines()
    named = [category for segments in shown.values() for category in segments if category != "Cluster (unnamed)"]
    assert len(named) >= 20
    [prediction] = loop.studio.predictions(next(iter(loop.studio.tasks(loop.project)))["id"])
    notes = [region["meta"]["text"][0] for region in prediction["result"]]
    assert any("labelled" in note for note in notes)


def test_loop__a_person_sees_the_tabs_and_the_link(
    loop: Loop, label_studio_server: LabelStudioServer, tmp_path: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    url, number = label_studio_server.url, loop.companion.label_studio_id
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/user/login/")
        page.fill("input[name=email]", label_studio_server.email)
        page.fill("input[name=password]", label_studio_server.password)
        page.click("button[type=submit]")
        page.wait_for_load_state()
        confirm = loop.tab("confirm Faces")
        page.goto(f"{url}/projects/{number}/data?tab={loop.companion.tabs['confirm Faces']}")
        page.get_by_text("2 · Confirm: Faces").first.wait_for()
        page.locator("img[src*='/data/upload/']").nth(min(4, len(confirm)) - 1).wait_for()
        page.screenshot(path=str(tmp_path / "confirm.png"))
        page.goto(f"{url}/projects/{number}/data?task={confirm[0]}")
        page.get_by_role("link", name=re.compile(r"clip\d\.mp4 at 0:0\d")).wait_for()
        for category in CATEGORIES:
            page.locator("label", has_text=category).first.wait_for()
        page.screenshot(path=str(tmp_path / "task.png"))
        browser.close()


def test_loop__undo_withdraws_exactly_the_run(loop: Loop) -> None:
    before, timelines = loop.predictions(), loop.timelines()
    run = loop.store.labels.runs(loop.uid)[-1]
    undone = undo(loop.store, run.id)
    loop.work()
    assert sum(undone.withdrawn.values()) == len(before)
    assert loop.predictions() == {}
    named = {c for segments in loop.timelines().values() for c in segments}
    assert len(loop.store.labels.labels(loop.uid)) == 5  # people's words stay
    assert named >= {"Cluster (unnamed)"}
    loop.propagate()
    assert loop.predictions() == {}, "what was undone came back"
    assert undone.run is not None
    undo(loop.store, undone.run.id)
    loop.work()
    assert loop.predictions() == before
    assert loop.timelines() == timelines


def test_loop__confirming_in_bulk_counts_as_labels(loop: Loop) -> None:
    tab = loop.tab("confirm Faces")
    assert tab
    act = {"selectedItems": {"all": False, "included": tab}, "model_version": VERSION}
    params = {"id": "predictions_to_annotations", "project": loop.companion.label_studio_id}
    loop.studio._object("POST", "/api/dm/actions", params=params, json=act)
    loop.propagate()
    said = {row.task for row in loop.store.labels.labels(loop.uid) if row.category == "Faces"}
    assert set(tab) <= said
    assert loop.tab("confirm Faces") == [] or not set(loop.tab("confirm Faces")) & set(tab)
    assert all(outcome.confirmed for outcome in loop.store.labels.outcomes(loop.uid) if outcome.category == "Faces")


def test_loop__a_corrected_and_a_deleted_annotation_change_what_follows(loop: Loop) -> None:
    row = next(row for row in loop.store.labels.labels(loop.uid) if row.category == "Motorbikes")
    path = f"/api/annotations/{row.annotation}/"
    result = {"from_name": "category", "to_name": "image", "type": "choices", "value": {"choices": ["car_side"]}}
    loop.studio._object("PATCH", path, json={"result": [result]})
    loop.propagate()
    assert {r.category for r in loop.store.labels.labels(loop.uid) if r.task == row.task} == {"car_side"}
    loop.studio._call("DELETE", path)
    loop.propagate()
    assert not [r for r in loop.store.labels.labels(loop.uid) if r.task == row.task]
    assert "Motorbikes" not in loop.predictions().values()
    loop.label(row.task, "Motorbikes")
    loop.propagate()


def test_loop__a_skip_is_no_label(loop: Loop) -> None:
    task = next(iter(loop.tab("confirm airplanes")))
    loop.studio._object("POST", f"/api/tasks/{task}/annotations/", json={"result": [], "was_cancelled": True})
    loop.propagate()
    assert not [row for row in loop.store.labels.labels(loop.uid) if row.task == task]
    assert loop.predictions()[task] == "airplanes"


def test_loop__two_who_disagree_are_a_conflict(loop: Loop, label_studio_server: LabelStudioServer) -> None:
    task = next(iter(loop.tab("confirm airplanes")))
    loop.label(task, "airplanes")
    loop.propagate()
    other = loop.label(task, "Leopards")
    # Label Studio's interface makes a second user through an invitation; here the ledger is told that there is one
    [row] = [r for r in loop.store.labels.labels(loop.uid) if r.task == task]
    reading = loop.store.labels.readings(loop.uid, "companion")
    rows = [row, *[_by_another(row, other)]]
    loop.store.labels.put_labels(loop.uid, "companion", {task: reading[task]}, rows)
    project = loop.store.project(loop.uid)
    assert project is not None
    knowledge = steps.know(loop.store, project, wire.parse_label_config(CONFIG), "efficientnet-lite0")
    assert knowledge is not None
    assert row.keyframe in knowledge.disputed
    loop.studio._call("DELETE", f"/api/annotations/{other}/")
    loop.propagate()


def _by_another(row: Any, annotation: int) -> Any:
    return replace(row, person="somebody@else", annotation=annotation, category="Leopards")


def test_loop__a_timeline_segment_labels_the_keyframes_in_it(loop: Loop) -> None:
    task = next(t for t in loop.studio.tasks(loop.project) if t["data"]["video"].endswith("-clip3.mp4"))
    value = {"ranges": [{"start": 1, "end": 8}], "timelinelabels": ["Faces"]}
    result = {"from_name": "timeline", "to_name": "video", "type": "timelinelabels", "value": value}
    path = f"/api/tasks/{task['id']}/annotations/"
    made = loop.studio._object("POST", path, json={"result": [result]})
    loop.propagate()
    [video] = loop.store.videos(loop.uid, [task["id"]])
    inside = {f.id for f in loop.store.keyframes([video.id])[video.id] if f.time_s < 1}
    assert {row.keyframe for row in loop.store.labels.labels(loop.uid) if row.source == "video"} == inside
    loop.studio._call("DELETE", f"/api/annotations/{made['id']}/")
    loop.propagate()
    assert not [row for row in loop.store.labels.labels(loop.uid) if row.source == "video"]


class _Studio(LabelStudio):
    """Label Studio that keeps what it is sent and then answers 500 "database is locked"; `meanwhile` happens then."""

    meanwhile: Callable[[], object] | None = None

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> None:
        super().import_predictions(project_id, predictions)
        if predictions and self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()


def _locked() -> None:
    raise LabelStudioUnreachable("Label Studio answered POST /api with 500 (database is locked); try again later")


def test_loop__a_locked_database_neither_loses_nor_doubles_a_prediction(loop: Loop) -> None:
    before = loop.predictions()
    loop.studio.delete_predictions(loop.companion.label_studio_id, list(before))
    loop.store.labels.put_shown(
        loop.uid, {t: {**shown, "prediction": ""} for t, shown in loop.store.labels.shown(loop.uid).items()}
    )
    flaky = _Studio(loop.place.settings.label_studio_url, loop.place.settings.label_studio_token)
    flaky.meanwhile = _locked
    assert before
    kept, loop.place.label_studio = loop.place.label_studio, flaky
    try:
        loop.propagate()
    finally:
        loop.place.label_studio = kept
    assert flaky.meanwhile is None
    unlabelled = {task for task, listed in loop.tasks().items() if not listed["total_annotations"]}
    assert loop.predictions() == {task: category for task, category in before.items() if task in unlabelled}


def test_loop__a_label_that_comes_while_a_run_is_going_is_not_lost(loop: Loop) -> None:
    tasks = loop.tasks()
    late, *others = [task for task in loop.predictions() if not tasks[task]["total_annotations"]]

    def meanwhile() -> None:
        loop.label(late, loop.truth_of(tasks[late]))
        loop.store.want("propagate", loop.uid)  # the webhook

    flaky = _Studio(loop.place.settings.label_studio_url, loop.place.settings.label_studio_token)
    flaky.meanwhile = meanwhile
    shown = loop.store.labels.shown(loop.uid)
    loop.studio.delete_predictions(loop.companion.label_studio_id, [others[0]])
    loop.store.labels.put_shown(loop.uid, {others[0]: {**shown[others[0]], "prediction": ""}})
    kept, loop.place.label_studio = loop.place.label_studio, flaky
    try:
        loop.propagate()
    finally:
        loop.place.label_studio = kept
    assert late in {row.task for row in loop.store.labels.labels(loop.uid)}


def test_loop__another_model_version_is_set_back(loop: Loop) -> None:
    # set back at the next propagation: with another one no scores are shown
    task = next(iter(loop.predictions()))
    loop.studio.create_prediction(task, {"result": [], "score": 0.1, "model_version": "another"})
    loop.studio.update_project(loop.companion.label_studio_id, model_version="another")
    loop.propagate()
    assert loop.studio.project(loop.companion.label_studio_id)["model_version"] == VERSION
    for row in loop.studio.predictions(task):
        if row["model_version"] == "another":
            loop.studio.delete_prediction(row["id"])


def test_loop__a_new_category_gets_its_choice_and_its_tab(loop: Loop) -> None:
    config = CONFIG.replace("</TimelineLabels>", '<Label value="pizza"/></TimelineLabels>')
    loop.studio.update_project(loop.project, label_config=config)
    loop.store.want("sync", loop.uid)
    loop.work()
    found = loop.studio.project(loop.companion.label_studio_id)
    assert "pizza" in wire.parse_label_config(found["label_config"]).categories
    assert "confirm pizza" in loop.companion.tabs


def test_loop__a_renamed_category_is_not_shown_and_loses_no_label(loop: Loop) -> None:
    before, labels = loop.predictions(), loop.store.labels.labels(loop.uid)
    config = loop.studio.project(loop.project)["label_config"]
    loop.studio.update_project(loop.project, label_config=config.replace('"car_side"', '"car"'))
    loop.store.want("sync", loop.uid)
    loop.work()
    pictures = wire.parse_label_config(loop.companion.label_config)
    assert {"car", "car_side"} <= set(pictures.categories), "people have used the old one"
    assert "confirm car" in loop.companion.tabs
    assert "confirm car_side" not in loop.companion.tabs
    assert "car_side" not in loop.predictions().values()
    assert not any("car_side" in segments for segments in loop.timelines().values())
    loop.studio.update_project(loop.project, label_config=config)
    loop.store.want("sync", loop.uid)
    loop.work()
    assert loop.store.labels.labels(loop.uid) == labels
    assert loop.predictions() == before


def test_loop__a_deleted_task_does_not_come_back_and_stops_nothing(loop: Loop) -> None:
    task = next(iter(loop.tab("confirm Leopards")))
    loop.studio._call("DELETE", f"/api/tasks/{task}/")
    before = len(loop.tasks())
    loop.store.want("sync", loop.uid)  # the webhook
    loop.propagate()
    assert len(loop.tasks()) == before
    assert task not in loop.tasks()


def test_loop__a_deleted_companion_stays_away_until_it_is_asked_for(loop: Loop) -> None:
    loop.studio.delete_project(loop.companion.label_studio_id)
    # another project gets its number, as in a Label Studio that was restored or set up anew, and its tasks' numbers
    xml = '<View><Image name="i" value="$image"/><Choices name="c" toName="i"><Choice value="Faces"/></Choices></View>'
    other = loop.studio.create_project("Nobody asked for help here", xml)
    loop.store.labels.put_companion(replace(loop.companion, label_studio_id=other["id"]))
    [theirs] = loop.studio.import_tasks(other["id"], [{"data": {"image": "/x.jpg"}}])
    loop.propagate()
    loop.store.want("companion", loop.uid)
    loop.work()
    assert loop.companion.uid == ""
    assert loop.studio.project(other["id"])["model_version"] == ""
    assert loop.studio.predictions(theirs) == []
    assert loop.studio.views(other["id"]) == []
    loop.propagate()
    assert set(loop.timelines()["clip0.mp4"]) == {"Cluster (unnamed)"}
    ask(loop.store, loop.project)
    loop.work()
    assert len(loop.tasks()) == 50


def test_loop__by_itself_within_5_s_of_a_label(loop: Loop) -> None:
    """Everything as a user runs it: webhook, queue, workers. The last test of the module."""
    settings = loop.place.settings
    port = settings.port
    command = [sys.executable, "-m", "lookalike.cli", "up", "--label-studio", settings.label_studio_url]
    process = subprocess.Popen(
        [*command, "--data-dir", str(settings.data_dir), "--ports", f"{free_port()},{port}"],
        env=os.environ | settings.to_environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/ready", process)
        time.sleep(6)  # what was asked for at its start is over
        assert process.poll() is None
        tasks = loop.tasks()
        centroids = loop.tab("next")
        for task in centroids:
            loop.label(task, loop.truth_of(tasks[task]))
        began = time.monotonic()
        found: dict[int, str] = {}
        while len(found) < 20 and time.monotonic() - began < 120:
            time.sleep(0.1)
            found = loop.predictions()
        seconds = time.monotonic() - began
        print(f"{len(found)} predictions {seconds:.1f} s after the last label")
        assert len(found) >= 20
        assert seconds < loops.busy(5)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
