"""The loop over pictures, against a real Label Studio: a project of pictures is labelled where it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lookalike import wire
from lookalike.companion import ask
from lookalike.undo import undo
from tests.e2e import loops
from tests.e2e.loops import CATEGORIES, VERSION, Loop
from tests.services import LabelStudioServer
from workers import jobs

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def loop(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    with loops.images(label_studio_server, tmp_path_factory.mktemp("pictures")) as found:
        yield found


def test_pictures__are_labelled_in_their_own_project(loop: Loop) -> None:
    assert loop.companion.own
    assert loop.companion.label_studio_id == loop.project
    views = {view["data"]["title"] for view in loop.studio.views(loop.project)}
    assert {"1 · Label these next", "2 · Confirm: Faces", "3 · Unsure or in conflict"} <= views
    assert "2 · Confirm: Cluster (unnamed)" not in views
    tasks = loop.tasks()
    assert len(tasks) == 50
    assert {task["data"]["category"] for task in tasks.values()} == {"theirs"}, "people's own fields stay"
    assert {task["data"]["lookalike_centroid"] for task in tasks.values()} == {"yes", "no"}
    assert len(loop.tab("next")) == 5
    assert {p["description"] for p in loop.studio.projects() if p["id"] > loop.project} == set(), "no companion"


def test_pictures__tell_their_cluster_to_whom_opens_them(loop: Loop) -> None:
    held = loop.store.predictions(loop.uid, list(loop.tasks()))
    assert len(held) == 50, "what /predict answers"
    results = [prediction.body["result"][0] for prediction in held.values()]
    assert {result["value"]["choices"][0] for result in results} == {wire.RESERVED_CATEGORY}
    assert all("picture" in result["meta"]["text"][0] for result in results)
    assert {video.state for video in loop.store.video_status(loop.uid)} == {"delivered"}
    assert not [row for row in loop.store.ledger.rows() if row.kind == "deliver"]
    assert loop.studio._list("GET", "/api/predictions/", params={"project": loop.project}) == []


def test_pictures__a_labelled_centroid_becomes_predictions_within_5_s(loop: Loop) -> None:
    labelled = loop.label_next()
    began = time.monotonic()
    loop.store.want("propagate", loop.uid)
    (row,) = loop.store.ledger.due(("propagate",), 1)
    jobs.propagate(row.id)
    seconds = time.monotonic() - began
    predicted, tasks = loop.predictions(), loop.tasks()
    print(f"{len(predicted)} predictions after {seconds:.2f} s")
    assert seconds < loops.busy(5)
    assert set(loop.said()) == set(labelled)
    lookalikes = {task: category for task, category in predicted.items() if task not in labelled}
    assert len(lookalikes) >= 20
    assert sum(loop.truth_of(tasks[t]) == c for t, c in lookalikes.items()) / len(lookalikes) >= 0.9


def test_pictures__tab_2_has_the_lookalikes_surest_first(loop: Loop) -> None:
    loop.work()
    predicted = loop.predictions()
    for category in CATEGORIES:
        assert set(loop.tab(f"confirm {category}")) == {t for t, c in predicted.items() if c == category}
    assert loop.studio.project(loop.project)["model_version"] == VERSION
    category = max(CATEGORIES, key=list(predicted.values()).count)
    scores = [loop.studio.predictions(task)[0]["score"] for task in loop.tab(f"confirm {category}")]
    assert scores == sorted(scores, reverse=True)


def test_pictures__reading_the_project_again_changes_nothing(loop: Loop) -> None:
    """What we put into the tasks' data is no edit by people."""
    before = loop.predictions(), {row.id: row.fence for row in loop.store.ledger.rows() if row.kind == "cluster"}
    loop.ask("sync")
    after = loop.predictions(), {row.id: row.fence for row in loop.store.ledger.rows() if row.kind == "cluster"}
    assert before == after


def test_pictures__undo_withdraws_exactly_the_run(loop: Loop) -> None:
    before, said = loop.predictions(), loop.said()
    undone = undo(loop.store, loop.store.labels.runs(loop.uid)[-1].id)
    loop.work()
    assert loop.predictions() == {}
    assert loop.said() == said
    assert all(loop.tab(f"confirm {category}") == [] for category in CATEGORIES)
    assert undone.run is not None
    undo(loop.store, undone.run.id)
    loop.work()
    assert loop.predictions() == before


def test_pictures__predictions_of_others_stay(loop: Loop) -> None:
    task, category = next(iter(loop.predictions().items()))
    value = {"from_name": "category", "to_name": "image", "type": "choices", "value": {"choices": [category]}}
    made = loop.studio.create_prediction(task, {"result": [value], "score": 0.4, "model_version": "theirs"})
    undone = undo(loop.store, loop.store.labels.runs(loop.uid)[0].id)
    loop.work()
    rows = {row["model_version"]: row for row in loop.studio.predictions(task)}
    assert rows["theirs"]["id"] == made["id"]
    assert category not in str(rows.get(VERSION))
    # the version whose scores they want to see is their choice as long as there is one
    loop.studio.update_project(loop.project, model_version="theirs")
    assert undone.run is not None
    undo(loop.store, undone.run.id)
    loop.work()
    assert loop.studio.project(loop.project)["model_version"] == "theirs"
    loop.studio.delete_prediction(made["id"])
    loop.propagate()
    assert loop.studio.project(loop.project)["model_version"] == VERSION
    assert loop.predictions()[task] == category


def test_pictures__a_task_that_somebody_has_open_can_be_submitted(loop: Loop) -> None:
    """Label Studio refuses an annotation whose prediction was deleted meanwhile, and the person's work with it."""
    task, category = next(iter(loop.predictions().items()))
    [seen] = loop.studio.predictions(task)
    shown = loop.store.labels.shown(loop.uid)[task]
    loop.store.labels.put_shown(loop.uid, {task: {**shown, "score": shown["score"] - 0.3}})
    loop.studio.update_prediction(seen["id"], {"score": 0.5})  # the loop has learnt more since
    loop.propagate()
    [now] = loop.studio.predictions(task)
    assert (now["id"], now["score"]) == (seen["id"], pytest.approx(shown["score"], abs=0.1))
    body = {"result": seen["result"], "parent_prediction": seen["id"]}
    made = loop.studio._object("POST", f"/api/tasks/{task}/annotations/", json=body)
    loop.propagate()
    assert loop.said()[task] == {category}
    loop.studio._call("DELETE", f"/api/annotations/{made['id']}/")
    loop.propagate()


def test_pictures__a_task_that_somebody_has_open_can_be_submitted_when_its_guess_is_withdrawn(loop: Loop) -> None:
    task, category = next(iter(loop.predictions().items()))
    [seen] = loop.studio.predictions(task)
    undone = undo(loop.store, loop.store.labels.runs(loop.uid)[0].id)
    with loop.store.labels.begin() as connection:  # of this task only
        pairs = {pair for pair in loop.store.labels.withdrawn(loop.uid) if pair[0] >> 24 != _video(loop, task)}
        loop.store.labels.allow(connection, pairs)
    loop.work()
    assert task not in loop.predictions()
    body = {"result": seen["result"], "parent_prediction": seen["id"]}
    made = loop.studio._object("POST", f"/api/tasks/{task}/annotations/", json=body)
    loop.propagate()
    assert loop.said()[task] == {category}
    loop.studio._call("DELETE", f"/api/annotations/{made['id']}/")
    assert undone.run is not None
    undo(loop.store, undone.run.id)
    loop.work()


def _video(loop: Loop, task: int) -> int:
    [video] = loop.store.videos(loop.uid, [task])
    return video.id


def test_pictures__what_was_told_to_whom_opened_a_task_gives_way_to_a_guess(loop: Loop) -> None:
    task, category = next(iter(loop.predictions().items()))
    undone = undo(loop.store, loop.store.labels.runs(loop.uid)[0].id)
    loop.work()
    loop.studio.delete_predictions(loop.project, [task])  # Label Studio asks where there is none
    loop.store.labels.put_shown(loop.uid, {task: {**loop.store.labels.shown(loop.uid)[task], "prediction": ""}})
    assert loop.store.answering(loop.uid, [_video(loop, task)], 0.0) == {_video(loop, task)}  # /predict
    body = loop.store.predictions(loop.uid, [task])[task].body
    told = loop.studio.create_prediction(task, body)  # Label Studio keeps the answer
    loop.work()
    assert undone.run is not None
    undo(loop.store, undone.run.id)
    loop.work()
    [now] = loop.studio.predictions(task)
    assert now["id"] == told["id"]
    assert now["result"][0]["value"]["choices"] == [category]


def test_pictures__confirming_in_bulk_counts_as_labels(loop: Loop) -> None:
    category = max(CATEGORIES, key=list(loop.predictions().values()).count)
    tab = loop.tab(f"confirm {category}")
    act = {"selectedItems": {"all": False, "included": tab}, "model_version": VERSION}
    params = {"id": "predictions_to_annotations", "project": loop.project}
    loop.studio._object("POST", "/api/dm/actions", params=params, json=act)
    loop.propagate()
    assert all(loop.said()[task] == {category} for task in tab)
    assert not set(loop.tab(f"confirm {category}")) & set(tab)
    assert {o.confirmed for o in loop.store.labels.outcomes(loop.uid) if o.category == category} == {True}


def test_pictures__without_tabs_where_the_settings_say_so(
    label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory, loop: Loop
) -> None:
    place = loop.place
    with loops.images(label_studio_server, tmp_path_factory.mktemp("off"), 2, keyframes_project="off") as found:
        assert found.studio.views(found.project) == []
        assert not any(key.startswith(wire.OUR_FIELDS) for task in found.tasks().values() for key in task["data"])
        task = next(iter(found.tasks()))
        found.label(task, found.truth_of(found.tasks()[task]))
        found.propagate()
        assert found.said()
        ask(found.store, found.project)
        found.work()
        assert len(found.studio.views(found.project)) == 2 + len(CATEGORIES)
        found.studio.delete_project(found.project)
    jobs._workplace = place
