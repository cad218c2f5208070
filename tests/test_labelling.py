"""A person's annotations at a real Label Studio: written once, changed, counted, and taken back exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend import labelling
from backend.labelling import Outcome, Place, label, place_of, take_back
from lookalike import wire
from lookalike.edits import Edit
from lookalike.errors import LabelStudioUnreachable, RequestError
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion
from lookalike.records import keyframe_id
from lookalike.store import Project, Store, open_store
from tests.e2e.loops import busy
from tests.services import LabelStudioServer
from workers.companion import label_config
from workers.readings import Listings, read_labels

pytestmark = pytest.mark.e2e

HOSTILE = '"><img src=x onerror=alert(1)>'
CATEGORIES = ("Car", "Bus", HOSTILE)
VIDEO = wire.parse_label_config(
    '<View><Video name="v" value="$video"/><TimelineLabels name="t" toName="v"><Label value="Car"/>'
    "</TimelineLabels></View>"
)


@dataclass
class Desk:
    """A companion of some keyframes at Label Studio; the second half of each ten are near-duplicates of the first."""

    studio: LabelStudio
    store: Store
    place: Place
    companion: Companion
    leaders: list[int]
    twins: dict[int, int]  # by leader
    tasks: dict[int, int]  # by leader

    def edit(self, category: str = "Car") -> int:
        return self.store.edits.add(self.place.project, "label", "ann", text=category)

    def label(self, category: str, keyframes: list[int], edit: int = 0) -> Outcome:
        return label(self.studio, self.store, self.place, edit or self.edit(category), category, keyframes)

    def undo(self, edit: int) -> labelling.TakenBack:
        found = self.store.edits.edit(self.place.project, edit)
        assert isinstance(found, Edit)
        return take_back(self.studio, self.store, self.place, found)

    def said(self, leader: int) -> list[list[str]]:
        """The choices of each annotation of a keyframe's task."""
        return [a["result"][0]["value"]["choices"] for a in self.studio.annotations(self.tasks[leader])]

    def annotate(self, leader: int, category: str) -> dict[str, Any]:
        """As the editor does it."""
        return self.studio.create_annotation(
            self.tasks[leader], wire.choices_result(self.place.config, [category])
        )  # fmt: skip


@pytest.fixture(scope="module")
def desk(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    studio = label_studio_server.client()
    xml = label_config(CATEGORIES, {}, multiple=False)
    videos, companion = studio.create_project("Clips", "<View/>"), studio.create_project("Keyframes", xml)
    uid, own = (wire.project_uid(p["id"], p["created_at"]) for p in (videos, companion))
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('desk') / 'ledger.sqlite3'}")
    store.put_project(Project(uid, videos["id"], "Clips", ""))
    store.add_videos(uid, [(1, "/a.mp4", {})])
    video = store.videos(uid)[0].id
    leaders = [keyframe_id(video, 10 * n) for n in range(60)]
    twins = {leader: leader + 1 for leader in leaders[:30]}
    known = Companion(uid, own, companion["id"], xml)
    store.labels.put_companion(known)
    store.labels.fold(uid, dict(zip(leaders, leaders, strict=True)) | {twin: n for n, twin in twins.items()})
    data = {leader: {"image": "/x.jpg", "keyframe": str(leader), "links": ""} for leader in leaders}
    made = studio.import_tasks(companion["id"], [{"data": values} for values in data.values()])
    tasks = dict(zip(leaders, made, strict=True))
    store.labels.put_tasks(uid, tasks, data)
    yield Desk(studio, store, place_of(known), known, leaders, twins, tasks)
    store.close()


def test_label__one_annotation_for_near_duplicates_by_the_person(desk: Desk) -> None:
    one, two, three = desk.leaders[:3]
    outcome = desk.label("Car", [one, desk.twins[one], desk.twins[two], three])
    assert sorted(outcome.done) == sorted([one, desk.twins[one], desk.twins[two], three])
    assert (outcome.skipped, outcome.failed) == ([], {})
    assert [desk.said(leader) for leader in (one, two, three)] == [[["Car"]]] * 3
    me = desk.studio.whoami()["id"]
    assert {a["completed_by"] for a in desk.studio.annotations(desk.tasks[two])} == {me}


def test_label__again_writes_nothing_and_otherwise_changes(desk: Desk) -> None:
    one, two, three = desk.leaders[:3]
    again = desk.label("Car", [one, desk.twins[two]])
    assert (again.done, again.skipped) == ([], [one, desk.twins[two]])
    edit = desk.edit("Bus")
    changed = desk.label("Bus", [two, three], edit)
    assert sorted(changed.done) == [two, three]
    assert [desk.said(leader) for leader in (one, two, three)] == [[["Car"]], [["Bus"]], [["Bus"]]]
    undone = desk.undo(edit)
    assert (undone.done, undone.left_alone, undone.remaining) == (2, 0, 0)
    assert [desk.said(leader) for leader in (one, two, three)] == [[["Car"]]] * 3


def test_take_back__deletes_exactly_what_was_written(desk: Desk) -> None:
    chosen = desk.leaders[10:20]
    kept, changed, skipped = chosen[:3]
    desk.annotate(kept, "Car")  # before, by hand
    edit = desk.edit()
    outcome = desk.label("Car", chosen, edit)
    assert (len(outcome.done), outcome.skipped) == (9, [kept])
    [theirs] = desk.studio.annotations(desk.tasks[changed])
    desk.studio.update_annotation(theirs["id"], wire.choices_result(desk.place.config, ["Bus"]))  # after, by hand
    second = desk.annotate(skipped, "Bus")  # another word on the same picture
    undone = desk.undo(edit)
    assert (undone.done, undone.left_alone) == (8, 1)
    assert desk.said(kept) == [["Car"]]
    assert desk.said(changed) == [["Bus"]]
    assert [a["id"] for a in desk.studio.annotations(desk.tasks[skipped])] == [second["id"]]
    assert [desk.said(leader) for leader in chosen[3:]] == [[]] * 7
    assert desk.store.edits.written(edit) == []


def test_label__a_hostile_category_is_but_text(desk: Desk) -> None:
    leader = desk.leaders[25]
    assert desk.label(HOSTILE, [leader]).done == [leader]
    assert desk.said(leader) == [[HOSTILE]]


def test_label__partial_failure_says_which_and_goes_on(desk: Desk) -> None:
    gone, fine, unknown = desk.leaders[40], desk.leaders[41], desk.leaders[59] + 5
    desk.studio._call("DELETE", f"/api/tasks/{desk.tasks[gone]}/")
    outcome = desk.label("Car", [gone, fine, unknown])
    assert outcome.done == [fine]
    assert outcome.failed == {
        gone: "its task was deleted at Label Studio",
        unknown: "it has no task at Label Studio yet; try again in a moment",
    }


def test_label__a_task_number_that_is_another_pictures_by_now_is_left_alone(desk: Desk) -> None:
    leader = desk.leaders[42]
    [other] = desk.studio.import_tasks(
        desk.companion.label_studio_id, [{"data": {"image": "/y.jpg", "keyframe": "77", "links": ""}}]
    )
    data = {leader: {"keyframe": str(leader)}}
    desk.store.labels.put_tasks(desk.place.project, {leader: other}, data)
    outcome = desk.label("Car", [leader])
    assert list(outcome.failed) == [leader]
    assert desk.studio.annotations(other) == []
    desk.store.labels.put_tasks(desk.place.project, {leader: desk.tasks[leader]}, data)


class _Halting(LabelStudio):
    """Label Studio that breaks off in the middle."""

    def copy_annotation(self, project_id: int, annotation_id: int, task_ids: Any) -> None:
        raise LabelStudioUnreachable("Label Studio answered POST /api/dm/actions with 500 (database is locked)")


def test_label__what_was_written_before_a_failure_is_known(desk: Desk, label_studio_server: LabelStudioServer) -> None:
    one, *others = desk.leaders[43:46]
    edit = desk.edit()
    halting = _Halting(label_studio_server.url, label_studio_server.token)
    outcome = label(halting, desk.store, desk.place, edit, "Car", [one, *others])
    assert outcome.done == [one]
    assert set(outcome.failed) == set(others)
    assert "database is locked" in outcome.failed[others[0]]
    outcome = desk.label("Car", [one, *others], edit)
    assert (outcome.done, outcome.skipped) == (others, [one])
    assert desk.undo(edit).done == 3
    assert [desk.said(leader) for leader in (one, *others)] == [[], [], []]


def test_label__refuses_what_makes_no_sense(desk: Desk) -> None:
    with pytest.raises(RequestError, match="'Boat' is not a category of this project; it has Car, Bus"):
        desk.label("Boat", desk.leaders[:1])
    with pytest.raises(RequestError, match="at most 200 keyframes are labelled at a time, got 201"):
        desk.label("Car", list(range(201)))
    with pytest.raises(RequestError, match="no project of keyframes"):
        place_of(None)


def test_label__the_loop_reads_what_was_written_and_taken_back(desk: Desk) -> None:
    """Label Studio does not list copied annotations as a change of their tasks."""
    project = desk.store.project(desk.place.project)
    assert project is not None
    listings = Listings(3600)

    def read() -> set[int]:
        read_labels(desk.studio, desk.store, project, VIDEO, desk.companion, listings)
        return {row.keyframe for row in desk.store.labels.labels(project.uid)}

    before = read()
    chosen = [leader for leader in desk.leaders[46:56] if leader not in before]
    edit = desk.edit()
    desk.label("Car", chosen, edit)
    assert read() == before | set(chosen)
    assert desk.store.edits.touched(project.uid, "companion") == {}
    desk.undo(edit)
    assert read() == before


def test_label__takes_milliseconds_per_keyframe(desk: Desk) -> None:
    video = desk.store.videos(desk.place.project)[0].id
    leaders = [keyframe_id(video, 1000 + n) for n in range(200)]
    data = {leader: {"image": "/x.jpg", "keyframe": str(leader), "links": ""} for leader in leaders}
    made = desk.studio.import_tasks(desk.companion.label_studio_id, [{"data": values} for values in data.values()])
    desk.store.labels.fold(desk.place.project, dict(zip(leaders, leaders, strict=True)))
    desk.store.labels.put_tasks(desk.place.project, dict(zip(leaders, made, strict=True)), data)
    began, edit = time.monotonic(), desk.edit()
    assert desk.label("Bus", leaders, edit).done == leaders
    written = time.monotonic() - began
    began = time.monotonic()
    assert desk.undo(edit).done == 200
    undone = time.monotonic() - began
    print(f"{written * 5:.1f} ms per keyframe written, {undone * 5:.1f} ms taken back, 200 at a time")
    assert written < busy(20), "one by one it would be 30 s and more"


def test_place__pictures_are_labelled_where_they_are(label_studio_server: LabelStudioServer, tmp_path: Path) -> None:
    xml = (
        '<View><Image name="i" value="$picture"/><Choices name="kind" toName="i" choice="multiple">'
        '<Choice value="Car"/><Choice value="Bus"/></Choices></View>'
    )
    studio = label_studio_server.client()
    made = studio.create_project("Pictures", xml)
    uid = wire.project_uid(made["id"], made["created_at"])
    [task] = studio.import_tasks(made["id"], [{"data": {"picture": "/x.jpg"}}])
    store = open_store(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    store.put_project(Project(uid, made["id"], "Pictures", xml))
    store.add_videos(uid, [(task, "/x.jpg", {})])
    leader = keyframe_id(store.videos(uid)[0].id, 0)
    known = Companion(uid, uid, made["id"], xml)
    store.labels.put_companion(known)
    store.labels.fold(uid, {leader: leader})
    store.labels.put_tasks(uid, {leader: task}, {leader: {}})
    place = place_of(known)
    edits = [store.edits.add(uid, "label", "ann", text=category) for category in ("Car", "Bus")]
    for edit, category in zip(edits, ("Car", "Bus"), strict=True):
        assert label(studio, store, place, edit, category, [leader]).done == [leader]
    [annotation] = studio.annotations(task)
    assert annotation["result"][0]["value"]["choices"] == ["Car", "Bus"], "several may be chosen: one more is added"
    last = store.edits.edit(uid, edits[1])
    assert last is not None
    assert take_back(studio, store, place, last).done == 1
    [annotation] = studio.annotations(task)
    assert annotation["result"][0]["value"]["choices"] == ["Car"]
    store.close()
