"""Tabs "Similar to …" at a real Label Studio: made, ordered, brought up to date while people label."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike import wire
from lookalike.finder import Finder
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion, LabelRow
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store
from tests.gallery import CATEGORIES, Gallery, claim, seed
from tests.services import LabelStudioServer
from workers import companion, similar_tab

UID = "7.1"


@pytest.fixture
def studio(label_studio_server: LabelStudioServer) -> Iterator[LabelStudio]:
    with label_studio_server.client() as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")) as opened:
        yield opened


@pytest.fixture
def finder(store: Store, tmp_path: Path) -> Iterator[Finder]:
    with contextlib.closing(Finder(store, Settings(data_dir=tmp_path))) as opened:
        yield opened


@pytest.fixture
def gallery(store: Store, tmp_path: Path) -> Gallery:
    return seed(store, Settings(data_dir=tmp_path), Project(UID, 7, "Streets", "<View/>"), keyframes=12, pictures=[])


@pytest.fixture
def known(studio: LabelStudio, store: Store, gallery: Gallery) -> Iterator[Companion]:
    """A companion at Label Studio with a task for each keyframe."""
    made = studio.create_project("Streets · keyframes", companion.label_config(CATEGORIES, {}, multiple=False))
    found = Companion(UID, wire.project_uid(made["id"], made["created_at"]), made["id"], made["label_config"])
    store.labels.put_companion(found)
    ids = gallery.ids.tolist()
    tasks = studio.import_tasks(
        found.label_studio_id, [{"data": {"image": "/x.jpg", "links": "", "keyframe": str(k)}} for k in ids]
    )
    store.labels.put_tasks(UID, dict(zip(ids, tasks, strict=True)), {k: {"keyframe": str(k)} for k in ids})
    yield found
    studio.delete_project(found.label_studio_id)


def in_tab(studio: LabelStudio, known: Companion, tab: int) -> list[int]:
    """The tasks that a tab shows, in its order."""
    answer = studio._call("GET", "/api/tasks", params={"project": known.label_studio_id, "view": tab, "page_size": 100})
    return [task["id"] for task in answer.json()["tasks"]]


@pytest.mark.e2e
def test_tab__most_similar_first_and_up_to_date(
    studio: LabelStudio, store: Store, finder: Finder, gallery: Gallery, known: Companion
) -> None:
    store.questions.ask_tab(UID, "Car", {"top": 6})
    store.questions.ask_tab(UID, "Bus", {"top": 4})
    similar_tab.keep(studio, store, finder, known)
    bus, car = store.questions.tabs(UID)
    assert {"Similar to Car", "Similar to Bus"} <= {v["data"]["title"] for v in studio.views(known.label_studio_id)}
    shown = in_tab(studio, known, car.tab)
    assert set(shown) == set(car.shown)
    assert [car.shown[task] for task in shown] == sorted(car.shown.values(), reverse=True)
    assert len(in_tab(studio, known, bus.tab)) == 4

    # somebody labels the best one: it is an example from now on, and another one comes in
    tasks = {row.task: row.keyframe for row in store.labels.keyframe_tasks(UID).values()}
    row = LabelRow(tasks[shown[0]], "Car", "companion", shown[0], 77, "ann@example.com", 2e9)
    store.want("propagate", UID)
    work = claim(store, "propagate", UID)
    store.labels.put_labels(UID, "companion", {shown[0]: "read"}, [row])
    store.ledger.finish(work)
    similar_tab.keep(studio, store, finder, known)
    after = in_tab(studio, known, car.tab)
    assert shown[0] not in after
    assert len(after) == 6
    assert [view["id"] for view in studio.views(known.label_studio_id)].count(car.tab) == 1

    # a person closes the tab; whoever asks again gets one
    studio.delete_view(car.tab)
    similar_tab.keep(studio, store, finder, known)
    again = next(tab for tab in store.questions.tabs(UID) if tab.category == "Car")
    assert again.tab != car.tab
    assert in_tab(studio, known, again.tab) == after


def test_field_of__any_category_is_a_field() -> None:
    fields = {similar_tab.field_of(category, "lookalike_") for category in ("Car", "car", '"><img src=x>', "Ü b.e r")}
    assert len(fields) == 4
    assert all(field.isidentifier() and field.startswith("lookalike_similar_") for field in fields)


def test_ranked__tasks_of_unlabelled_keyframes(store: Store, finder: Finder, gallery: Gallery) -> None:
    ids = gallery.ids.tolist()
    store.labels.put_tasks(UID, {k: 1000 + n for n, k in enumerate(ids)}, {k: {} for k in ids})
    shown = similar_tab.ranked(store, finder, UID, "Car", 5)
    assert len(shown) == 5
    assert all(0 < similarity <= 1 for similarity in shown.values())
    assert {1000 + ids.index(k) for k in gallery.labelled} & shown.keys() == set()
