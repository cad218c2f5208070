"""Labels, guesses, runs and companions in the ledger, over SQLite and over a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lookalike.labels import Companion, LabelRow, Proposal
from lookalike.ledger import ClaimLost
from lookalike.records import keyframe_id
from lookalike.schema import work
from lookalike.store import Project, Store

PROJECT = "7.2026"


@pytest.fixture
def videos(store: Store) -> list[int]:
    store.put_project(Project(PROJECT, 7, "Cats", "<View/>"))
    store.add_videos(PROJECT, [(task, f"/data/{task}.mp4", {}) for task in (1, 2)])
    return [video.id for video in store.videos(PROJECT)]


def label(
    keyframe: int, category: str, annotation: int, *, task: int = 1, person: str = "a@b", at: float = 1.0
) -> LabelRow:
    return LabelRow(keyframe, category, "companion", task, annotation, person, at)


def proposed(keyframe: int, category: str, score: float = 0.97) -> Proposal:
    return Proposal(keyframe, category, score, (keyframe + 1,), "proposed")


def run(store: Store, proposals: list[Proposal], said: dict[int, tuple[str, ...]] | None = None):  # type: ignore[no-untyped-def]
    with store.labels.begin() as connection:
        return store.labels.put_run(connection, PROJECT, proposals, said or {})


def test_labels__a_reading_takes_the_place_of_the_last(store: Store, videos: list[int]) -> None:
    k = keyframe_id(videos[0], 5)
    first = [label(k, "Cat", 11)]
    for _ in range(2):  # the same event twice
        store.labels.put_labels(PROJECT, "companion", {1: "t1"}, first)
    assert store.labels.labels(PROJECT) == first
    assert store.labels.readings(PROJECT, "companion") == {1: "t1"}
    store.labels.put_labels(PROJECT, "companion", {1: "t2"}, [label(k, "Dog", 11, at=2.0)])
    assert [row.category for row in store.labels.labels(PROJECT)] == ["Dog"]
    store.labels.put_labels(PROJECT, "companion", {1: None}, [])
    assert store.labels.labels(PROJECT) == []
    assert store.labels.readings(PROJECT, "companion") == {}


def test_labels__of_the_video_and_of_the_companion_live_side_by_side(store: Store, videos: list[int]) -> None:
    k = keyframe_id(videos[0], 5)
    store.labels.put_labels(PROJECT, "companion", {1: "t"}, [label(k, "Cat", 11)])
    store.labels.put_labels(PROJECT, "video", {1: "t"}, [replace(label(k, "Cat", 11), source="video")])
    store.labels.put_labels(PROJECT, "video", {1: None}, [])
    assert [row.source for row in store.labels.labels(PROJECT)] == ["companion"]


def test_labels__come_in_the_order_in_which_they_were_given(store: Store, videos: list[int]) -> None:
    rows = [label(keyframe_id(videos[0], n), "Cat", n, task=n, at=10.0 - n) for n in range(1, 4)]
    store.labels.put_labels(PROJECT, "companion", {1: "t", 2: "t", 3: "t"}, rows)
    assert [row.annotation for row in store.labels.labels(PROJECT)] == [3, 2, 1]


def test_labels__stay_when_a_video_is_worked_on_again_and_go_with_it(store: Store, videos: list[int]) -> None:
    k = keyframe_id(videos[0], 5)  # no such keyframe is in the ledger now, as while its video is worked on
    store.labels.put_labels(PROJECT, "companion", {1: "t"}, [label(k, "Cat", 11)])
    store.delete_videos(PROJECT, [1])
    assert store.labels.labels(PROJECT) == []
    # read again while the video is gone: nothing to label, and no error
    store.labels.put_labels(PROJECT, "companion", {1: "t"}, [label(k, "Cat", 11)])
    assert store.labels.labels(PROJECT) == []


def test_run__says_what_changed_and_nothing_is_no_run(store: Store, videos: list[int]) -> None:
    a, b = keyframe_id(videos[0], 1), keyframe_id(videos[1], 1)
    first = run(store, [proposed(a, "Cat"), proposed(b, "Cat")])
    assert [(c.keyframe, c.before, c.after) for c in first.changes] == [(a, (), ("Cat",)), (b, (), ("Cat",))]
    assert run(store, [proposed(a, "Cat", 0.965), proposed(b, "Cat")]) is None
    assert {p.score for p in store.labels.proposals(PROJECT)} == {0.97}, "a score that hardly moves stays"
    second = run(store, [proposed(a, "Dog"), replace(proposed(b, "Cat"), state="unsure")])
    assert [(c.keyframe, c.before, c.after) for c in second.changes] == [(a, ("Cat",), ("Dog",)), (b, ("Cat",), ())]
    assert second.changes[0].score == 0.97
    assert store.labels.runs(PROJECT) == [second, first]
    assert store.labels.run(first.id) == first
    assert store.labels.run(99) is None
    store.labels.put_advice(PROJECT, "label 3 more")
    assert [r.advice for r in store.labels.runs(PROJECT)] == ["label 3 more", ""]


def test_run__what_a_person_labelled_is_an_outcome_and_no_change(store: Store, videos: list[int]) -> None:
    a, b = keyframe_id(videos[0], 1), keyframe_id(videos[1], 1)
    run(store, [proposed(a, "Cat"), proposed(b, "Cat", 0.9)])
    assert run(store, [], {a: ("Cat",), b: ("Dog",)}) is None
    found = {o.keyframe: (o.category, o.score, o.confirmed) for o in store.labels.outcomes(PROJECT)}
    assert found == {a: ("Cat", 0.97, True), b: ("Cat", 0.9, False)}
    assert store.labels.proposals(PROJECT) == []


def test_run__an_answer_that_was_taken_back_is_no_outcome_any_more(store: Store, videos: list[int]) -> None:
    a, b = keyframe_id(videos[0], 1), keyframe_id(videos[1], 1)
    run(store, [proposed(a, "Cat"), proposed(b, "Cat", 0.9)])
    run(store, [], {a: ("Cat",), b: ("Dog",)})
    again = run(store, [proposed(b, "Cat", 0.9)], {a: ("Cat",)})
    assert again is not None
    assert [(c.keyframe, c.before, c.after) for c in again.changes] == [(b, (), ("Cat",))]
    assert {o.keyframe for o in store.labels.outcomes(PROJECT)} == {a}
    run(store, [proposed(b, "Cat", 0.9)], {a: ("Dog",)})  # a person has thought better of it
    assert store.labels.outcomes(PROJECT) == []


def test_withdrawn__until_it_is_allowed_again(store: Store, videos: list[int]) -> None:
    pair = (keyframe_id(videos[0], 1), "Cat")
    with store.labels.begin() as connection:
        store.labels.withdraw(connection, PROJECT, {pair})
        store.labels.withdraw(connection, PROJECT, {pair})
    assert store.labels.withdrawn(PROJECT) == {pair}
    with store.labels.begin() as connection:
        store.labels.allow(connection, {pair})
    assert store.labels.withdrawn(PROJECT) == set()


def test_running__keeps_nothing_once_the_claim_is_lost(store: Store, videos: list[int]) -> None:
    store.want("propagate", PROJECT)
    [row] = store.ledger.rows(work.c.kind == "propagate")
    claim = store.ledger.claim(row.id, "w", lease_s=0, max_crashes=3)
    assert store.ledger.claim(row.id, "other", lease_s=60, max_crashes=3) is not None
    assert claim is not None
    with pytest.raises(ClaimLost), store.ledger.running(claim) as connection:
        store.labels.put_run(connection, PROJECT, [proposed(keyframe_id(videos[0], 1), "Cat")], {})
    assert store.labels.proposals(PROJECT) == []


def test_companion__is_known_by_both_projects_and_lost_with_its_labels(store: Store, videos: list[int]) -> None:
    known = Companion(PROJECT, "8.2027", 8, "<View/>", {"next": 4}, False)
    store.labels.put_companion(known)
    assert store.labels.companion(PROJECT) == known
    assert store.labels.owner("8.2027") == store.labels.owner_of(8) == PROJECT
    assert store.labels.owner(PROJECT) is None
    assert store.labels.owner("") is None
    k = keyframe_id(videos[0], 5)
    store.labels.fold(PROJECT, {k: k})
    store.labels.put_tasks(PROJECT, {k: 70}, {k: {"state": "open"}})
    store.labels.put_labels(PROJECT, "companion", {70: "t"}, [label(k, "Cat", 1, task=70)])
    store.labels.put_labels(PROJECT, "video", {1: "t"}, [replace(label(k, "Cat", 2), source="video")])
    store.labels.lose_companion(PROJECT)
    found = store.labels.companion(PROJECT)
    assert found is not None
    assert found.uid == ""
    assert store.labels.owner_of(8) is None
    assert store.labels.keyframe_tasks(PROJECT) == {}
    assert store.labels.shown(PROJECT) == {}
    assert [row.source for row in store.labels.labels(PROJECT)] == ["video"]


def test_companion__keeps_to_its_own_choices_whatever_people_put_above_them(store: Store, videos: list[int]) -> None:
    choices = '<Choices name="{}" toName="i"><Choice value="{}"/></Choices>'
    xml = f'<View>{choices.format("blurred", "Yes")}{choices.format("{}", "Cat")}<Image name="i" value="$i"/></View>'
    known = Companion(PROJECT, "8.2027", 8, xml.format("category"))
    assert (known.config.from_name, known.config.categories) == ("category", ("Cat",))
    assert replace(known, uid=PROJECT).config.from_name == "blurred", "people's own project is read as any"
    assert replace(known, label_config=xml.format("renamed")).config.from_name == "blurred"


def test_ask_for_companion__changes_nothing_of_one_that_is_there(store: Store, videos: list[int]) -> None:
    store.labels.ask_for_companion(PROJECT)
    assert store.labels.companion(PROJECT) == Companion(PROJECT, "", 0, "", asked=True)
    known = Companion(PROJECT, "8.2027", 8, "<View/>", {"next": 4})
    store.labels.put_companion(known)
    store.labels.ask_for_companion(PROJECT)
    assert store.labels.companion(PROJECT) == replace(known, asked=True)


def test_companion__a_project_of_pictures_is_its_own(store: Store, videos: list[int]) -> None:
    known = Companion(PROJECT, PROJECT, 7, "<View/>")
    store.labels.put_companion(known)
    assert (known.own, known.prefix) == (True, "lookalike_")
    assert store.labels.owner(PROJECT) is None, "its webhooks and predictions are those of any project"
    assert store.labels.owner_of(7) is None


def test_put_sent__what_went_out_many_at_once_is_delivered(store: Store, videos: list[int]) -> None:
    a, b = videos
    for there, gone in (({a, b}, set()), ({a}, {b})):
        with store.labels.begin(PROJECT) as connection:
            store.put_predictions(connection, PROJECT, {video: {"result": [len(there)]} for video in there})
            store.labels.put_sent(connection, there, gone)
        found = store.predictions(PROJECT, [1, 2])
        assert {p.video for p in found.values()} == there
        assert all(p.delivered == p.digest for p in found.values())
        assert store.ledger.rows(work.c.kind == "deliver") == []


def test_keyframe_tasks__near_duplicates_share_a_task_whenever_they_come(store: Store, videos: list[int]) -> None:
    a, b, c = keyframe_id(videos[0], 1), keyframe_id(videos[0], 9), keyframe_id(videos[1], 1)
    store.labels.fold(PROJECT, {a: a, b: a})
    store.labels.put_images({a: "/data/upload/1.jpg"})
    store.labels.put_tasks(PROJECT, {a: 70}, {a: {"state": "open"}})
    store.labels.fold(PROJECT, {c: a})
    assert {row.task for row in store.labels.keyframe_tasks(PROJECT).values()} == {70}
    store.delete_videos(PROJECT, [1])
    assert list(store.labels.keyframe_tasks(PROJECT)) == [c]
    store.labels.put_shown(PROJECT, {70: {"state": "proposed"}})
    assert store.labels.shown(PROJECT) == {70: {"state": "proposed"}}


def test_everything_goes_with_the_project(store: Store, videos: list[int]) -> None:
    k = keyframe_id(videos[0], 5)
    store.labels.put_companion(Companion(PROJECT, "8.2027", 8, "<View/>"))
    store.labels.put_labels(PROJECT, "companion", {1: "t"}, [label(k, "Cat", 11)])
    run(store, [proposed(k, "Cat")])
    store.delete_project(PROJECT)
    assert store.labels.companion(PROJECT) is None
    assert store.labels.labels(PROJECT) == store.labels.proposals(PROJECT) == store.labels.runs(PROJECT) == []
