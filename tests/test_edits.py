"""What people do to clusters holds, is undone, and survives a new clustering; in each kind of database."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lookalike.edits import Counts, Edit, Written, apply, halves, known_by, purity, reserve, reserved, unedited
from lookalike.labels import LabelRow, Proposal
from lookalike.records import Clustering, keyframe_id
from lookalike.store import Project, Store
from workers.clustering import renumber

UID = "1.5"


def clustering(*clusters: Sequence[int]) -> Clustering:
    """Keyframes by cluster; the first of each is the centroid, the later ones are less and less similar."""
    rows = sorted((keyframe, n, 1 - at / 10) for n, group in enumerate(clusters) for at, keyframe in enumerate(group))
    ids, numbers, similarity = zip(*rows, strict=True)
    centroids = [group[0] if group else -1 for group in clusters]
    return Clustering(np.array(ids), np.array(numbers), np.array(centroids), np.array(similarity, np.float32))


def members(grouped: Clustering) -> dict[int, list[int]]:
    return {int(n): grouped.keyframe_ids[grouped.clusters == n].tolist() for n in np.unique(grouped.clusters)}


FITTED = clustering([1, 2, 3, 4], [5, 6, 7], [8, 9])


def made(kind: str, number: int | None = None, text: str = "", **ids: Sequence[int]) -> Edit:
    keyframes = {role: np.array(sorted(rows), np.int64) for role, rows in ids.items()}
    similarity = np.linspace(0.5, 0.9, len(keyframes.get("chosen", ()))).astype(np.float32)
    return Edit(1, kind, text, number, "ann", 0.0, similarity=similarity, **keyframes)  # type: ignore[arg-type]


# --- on clusters ---


def test_apply__nothing_leaves_it_as_it_is() -> None:
    assert apply(FITTED, []) is FITTED


def test_apply__a_name_goes_with_the_keyframes() -> None:
    edits = [made("name", text="red cars", cluster=[5, 6, 7])]
    assert apply(FITTED, edits).names == {1: "red cars"}
    assert apply(clustering([8, 9], [1, 2, 3, 4, 5], [6, 7]), edits).names == {2: "red cars"}
    assert apply(FITTED, [*edits, made("name", text="", cluster=[5, 6, 7])]).names == {}


def test_apply__junk_and_back() -> None:
    junk = made("junk", cluster=[8, 9])
    assert apply(FITTED, [junk]).junk == {2}
    assert apply(FITTED, [junk, made("keep", cluster=[8, 9])]).junk == frozenset()
    assert apply(clustering([1, 2, 3]), [junk]).junk == frozenset()


def test_apply__excluded_members_leave_the_cluster_and_no_other() -> None:
    edits = [made("exclude", chosen=[1, 3], cluster=[2, 4])]
    grouped = apply(FITTED, edits)
    assert members(grouped) == {-1: [1, 3], 0: [2, 4], 1: [5, 6, 7], 2: [8, 9]}
    assert grouped.centroids.tolist() == [2, 5, 8], "the excluded centroid is replaced by the most similar member"
    # the fit has put 1 elsewhere: there it may stay
    assert members(apply(clustering([2, 3, 4], [1, 5, 6, 7], [8, 9]), edits)) == {
        -1: [3], 0: [2, 4], 1: [1, 5, 6, 7], 2: [8, 9],
    }  # fmt: skip


def test_apply__a_split_has_its_own_number_centroid_and_similarity() -> None:
    grouped = apply(FITTED, [made("split", 7, chosen=[3, 4], cluster=[1, 2])])
    assert members(grouped) == {0: [1, 2], 1: [5, 6, 7], 2: [8, 9], 7: [3, 4]}
    assert grouped.centroids.tolist() == [1, 5, 8, -1, -1, -1, -1, 4]
    assert grouped.similarity[grouped.keyframe_ids == 4] == np.float32(0.9)


def test_apply__a_split_stays_together_after_a_new_fit() -> None:
    edits = [made("split", 7, chosen=[3, 4], cluster=[1, 2])]
    torn = clustering([1, 2, 3], [4, 5, 6, 7], [8, 9])
    assert members(apply(torn, edits))[7] == [3, 4]
    # the fit has set them apart itself, with a new lookalike among them
    apart = clustering([1, 2], [5, 6, 7], [8, 9], [3, 4, 10])
    assert members(apply(apart, edits)) == {0: [1, 2], 1: [5, 6, 7], 2: [8, 9], 7: [3, 4, 10]}
    # they are but a small part of another cluster, which stays
    small = clustering([1, 2], [3, 4, 5, 6, 7], [8, 9])
    assert members(apply(small, edits)) == {0: [1, 2], 1: [5, 6, 7], 2: [8, 9], 7: [3, 4]}


def test_apply__a_merge_and_what_comes_after_it() -> None:
    merge = made("merge", cluster=[1, 2, 3, 4], other=[5, 6, 7])
    assert members(apply(FITTED, [merge])) == {0: [1, 2, 3, 4, 5, 6, 7], 2: [8, 9]}
    assert apply(FITTED, [merge]).centroids.tolist() == [1, -1, 8]
    named = made("name", text="wheels", cluster=[5, 6, 7])
    assert apply(FITTED, [named, merge]).names == {0: "wheels"}
    again = made("split", 3, chosen=[5, 6], cluster=[1, 2, 3, 4, 7])
    assert members(apply(FITTED, [merge, again])) == {0: [1, 2, 3, 4, 7], 2: [8, 9], 3: [5, 6]}
    # the merge undone, what was split off is set apart from the others anyway
    assert members(apply(FITTED, [again])) == {0: [1, 2, 3, 4], 2: [8, 9], 3: [5, 6, 7]}


def test_apply__keyframes_that_are_gone_do_no_harm() -> None:
    edits = [
        made("exclude", chosen=[3, 99], cluster=[98, 99]),
        made("split", 5, chosen=[97, 98], cluster=[1]),
        made("merge", cluster=[1], other=[99]),
    ]
    assert members(apply(FITTED, edits)) == members(FITTED)
    empty = Clustering(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert len(apply(empty, edits).keyframe_ids) == 0


def test_reserve__a_new_fit_never_takes_a_splits_number() -> None:
    edits = [made("split", 3, chosen=[3, 4], cluster=[1, 2])]
    known = reserve(FITTED, reserved(edits))
    assert reserved(edits) == len(known.centroids) == 4
    fresh = clustering([1, 2, 3, 4], [5, 6, 7], [8, 9], [10, 11])
    assert set(members(renumber(known, fresh))) == {0, 1, 2, 4}
    assert set(members(apply(renumber(known, fresh), edits))) == {0, 1, 2, 3, 4}
    assert reserve(known, 4) is known


def test_unedited__new_keyframes_join_what_people_made_and_the_others_stay() -> None:
    edits = [made("split", 3, chosen=[3, 4], cluster=[1, 2]), made("exclude", chosen=[9], cluster=[8])]
    edited = apply(FITTED, edits)
    joined = Clustering(
        np.append(edited.keyframe_ids, [10, 11]),
        np.append(edited.clusters, [3, 2]),
        edited.centroids,
        np.append(edited.similarity, [0.95, 0.3]).astype(np.float32),
    )
    fitted = unedited(FITTED, joined)
    assert members(fitted) == {0: [1, 2, 3, 4], 1: [5, 6, 7], 2: [8, 9, 11], 3: [10]}
    assert fitted.centroids.tolist() == [1, 5, 8, 10]
    assert members(apply(fitted, edits)) == {-1: [9], 0: [1, 2], 1: [5, 6, 7], 2: [8, 11], 3: [3, 4, 10]}


def test_known_by__the_most_similar_members() -> None:
    assert known_by(FITTED, 0) == [1, 2, 3, 4]
    assert known_by(FITTED, 0, {1, 4}) == [2, 3]
    assert len(known_by(clustering(range(500)), 0)) == 100


def test_halves__are_the_two_kinds_whatever_their_sizes() -> None:
    random = np.random.default_rng(0)
    kinds = np.repeat([0, 1], [90, 10])
    vectors = np.eye(8, dtype=np.float32)[kinds] + 0.05 * random.normal(size=(100, 8)).astype(np.float32)
    assert halves(vectors).tolist() == (kinds == 1).tolist()
    assert not halves(np.ones((5, 8), np.float32)).any()
    assert halves(np.eye(2, 8, dtype=np.float32)).sum() == 1
    assert not halves(np.ones((1, 8), np.float32)).any()


@pytest.mark.parametrize(
    ("counts", "share"), [({"a": 3, "b": 1}, 0.75), ({"a": 1}, 1.0), ({}, 0.0)], ids=["mixed", "pure", "unlabelled"]
)
def test_purity(counts: dict[str, int], share: float) -> None:
    assert purity(counts) == share


# --- in the ledger ---


@pytest.fixture
def project(store: Store) -> Store:
    store.put_project(Project(UID, 1, "Clips", ""))
    store.put_project(Project("2.5", 2, "Others", ""))
    return store


def test_edits__come_back_as_they_were_made(project: Store) -> None:
    edits = project.edits
    edits.add(UID, "name", "ann", text='"><img src=x onerror=alert(1)>', cluster=[5, 6, 7])
    edits.add(UID, "split", "ann", number=9, chosen={4: 0.5, 3: 0.75}, cluster=[1, 2])
    edits.add(UID, "merge", "bob", cluster=[1], other=[8, 9])
    edits.add(UID, "label", "ann", text="Car")
    edits.add("2.5", "junk", "ann", cluster=[1])
    name, split, merge = edits.on_clusters(UID)
    assert (name.text, name.cluster.tolist()) == ('"><img src=x onerror=alert(1)>', [5, 6, 7])
    assert (split.number, split.chosen.tolist(), split.similarity.tolist()) == (9, [3, 4], [0.75, 0.5])
    assert (merge.person, merge.other.tolist()) == ("bob", [8, 9])
    assert [edit.kind for edit in edits.last(UID)] == ["label", "merge", "split", "name"]
    assert [edit.kind for edit in edits.last(UID, "bob")] == ["merge"]
    assert edits.edit("2.5", split.id) is None


def test_edits__undone_and_made_again(project: Store) -> None:
    edits = project.edits
    first = edits.add(UID, "split", "ann", number=9, chosen=[3], cluster=[1])
    second = edits.add(UID, "junk", "bob", cluster=[1])
    stamps = [edits.stamp(UID)]
    found = edits.to_undo(UID, "ann")
    assert found is not None
    assert found.id == first
    edits.put_undone(first)
    stamps.append(edits.stamp(UID))
    assert [edit.id for edit in edits.on_clusters(UID)] == [second]
    assert edits.to_undo(UID, "ann") is None
    assert (edits.undone_splits(UID), edits.numbers(UID)) == ([9], 10)
    edits.put_undone(first, False)
    stamps.append(edits.stamp(UID))
    assert [edit.id for edit in edits.on_clusters(UID)] == [first, second]
    edits.add(UID, "label", "ann", text="Car")
    assert len({*stamps, edits.stamp(UID)}) == 4


def test_edits__go_with_their_project(project: Store) -> None:
    edit = project.edits.add(UID, "exclude", "ann", chosen=[3], cluster=[1])
    project.edits.put_written(UID, "companion", [Written(edit, 1, 3, 30, None, [{}])])
    project.delete_project(UID)
    assert project.edits.last(UID) == []
    assert project.edits.written(edit) == []


def test_written__is_known_until_it_is_taken_back(project: Store) -> None:
    edits = project.edits
    edit = edits.add(UID, "label", "ann", text="Car")
    rows = [
        Written(edit, 11, 5, 50, None, [{"value": {"choices": ["Car"]}}]),
        Written(edit, 12, 6, 60, [{"value": {"choices": ["Bus"]}}], [{"value": {"choices": ["Car"]}}]),
    ]
    edits.put_written(UID, "companion", rows)
    edits.put_written(UID, "companion", [Written(edit, 12, 6, 60, [{"late": 1}], [{"value": {"choices": ["Van"]}}])])
    last, first = edits.written(edit)
    assert first == rows[0]
    assert (last.before, last.after) == (rows[1].before, [{"value": {"choices": ["Van"]}}])
    assert [row.annotation for row in edits.written(edit, limit=1)] == [12]
    edits.forget_written(UID, "companion", [last])
    assert edits.written(edit) == [first]


def test_touched__tasks_are_read_once_more(project: Store) -> None:
    edits = project.edits
    edit = edits.add(UID, "label", "ann", text="Car")
    project.labels.put_labels(UID, "companion", {50: "stamp", 70: "stamp"}, [])
    edits.put_written(UID, "companion", [Written(edit, 11, 5, 50, None, [{}])])
    assert project.labels.readings(UID, "companion") == {50: "", 70: "stamp"}, "what was read of it does not count"
    seen = edits.touched(UID, "companion")
    assert set(seen) == {50}
    edits.put_written(UID, "companion", [Written(edit, 11, 5, 50, None, [{}])])  # while it was being read
    edits.put_read(UID, "companion", seen)
    again = edits.touched(UID, "companion")
    assert set(again) == {50}
    edits.put_read(UID, "companion", again)
    assert edits.touched(UID, "companion") == {}


def test_pages__what_is_known_of_categories(project: Store) -> None:
    project.add_videos(UID, [(1, "/a.mp4", {})])
    video = project.videos(UID)[0].id
    first, twin, second, third, fourth = (keyframe_id(video, n) for n in range(5))
    labels, edits = project.labels, project.edits
    labels.fold(UID, {first: first, twin: first, second: second, third: third, fourth: fourth})
    rows = [
        LabelRow(k, "Car", "companion", 50 + k % 2, 1 + k % 2, "ann", at)
        for k, at in ((first, 1.0), (twin, 1.0), (second, 2.0))
    ]
    labels.put_labels(UID, "companion", {50: "read", 51: "read"}, rows)
    guesses = [
        Proposal(third, "Car", 0.9, (first,), "proposed"),
        Proposal(fourth, "Car", 0.6, (), "unsure"),
        Proposal(second, "", 0.0, (), "conflict"),
    ]
    with labels.begin() as connection:
        labels.put_run(connection, UID, guesses, {})
    assert edits.counts(UID) == {"Car": Counts(labelled=3, proposed=1, unsure=1)}
    assert edits.labelled(UID, "Car", first=0, count=9) == [second, first], "the last first, one of near-duplicates"
    assert edits.guessed(UID, "Car", surest=True, first=0, count=9) == [third, fourth]
    assert edits.guessed(UID, "Car", surest=False, first=0, count=1) == [fourth]
    assert edits.proposed(UID) == [(third, "Car")]
    assert edits.proposals_of(UID, [third, second, twin]) == [(third, "Car")]
    with labels.begin() as connection:
        labels.withdraw(connection, UID, [(third, "Car")])
    assert edits.guessed(UID, "Car", surest=True, first=0, count=9) == [fourth]
    assert edits.counts(UID) == {"Car": Counts(labelled=3, unsure=1)}
    assert edits.rejected(UID, "Car", [third, fourth]) == {third}
    assert {k: row.leader for k, row in edits.tasks(UID, [twin, third]).items()} == {twin: first, third: third}
    assert edits.tasks("2.5", [twin]) == {}
    assert edits.addresses([first]) == {first: "/a.mp4"}
    edits.add(UID, "propose", "ann", text="Bus", chosen=[third])
    again = edits.add(UID, "propose", "ann", text="Van", chosen=[third])
    assert edits.vouched(UID) == {third: "Van"}, "the last word"
    edits.put_undone(again)
    assert edits.vouched(UID) == {third: "Bus"}


def test_clustering__is_the_edited_one_for_everybody(project: Store) -> None:
    project.want("cluster", UID)
    [row] = project.ledger.due(["cluster"], 1)
    claim = project.ledger.claim(row.id, "w", lease_s=60, max_crashes=3)
    assert claim is not None
    project.put_clustering(claim, "model", FITTED, 9, {})
    project.edits.add(UID, "exclude", "ann", chosen=[4], cluster=[1, 2, 3])
    found, fitted = project.clustering(UID, "model"), project.fitted_clustering(UID, "model")
    assert found is not None
    assert fitted is not None
    assert members(found[0])[-1] == [4]
    assert members(fitted[0]) == members(FITTED)
