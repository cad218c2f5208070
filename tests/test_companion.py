"""What the companion project shows: pure functions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lookalike import wire
from lookalike.labels import LabelRow, Proposal
from lookalike.records import Clustering, Keyframe, keyframe_id
from lookalike.said import Said, representatives, settle
from workers import companion
from workers.companion import fold, name, task_data, title
from workers.timeline import cluster_segments, compose, describe_members

A, B, C, D = (keyframe_id(video, frame) for video, frame in ((1, 3), (1, 9), (2, 3), (3, 3)))
CATEGORIES = ("Cat", "Dog")


def row(keyframe: int, category: str, annotation: int, *, person: str = "a@b", at: float = 1.0) -> LabelRow:
    return LabelRow(keyframe, category, "companion", 1, annotation, person, at)


def grouped(*ids: int) -> Clustering:
    n = len(ids)
    return Clustering(
        np.array(sorted(ids), np.int64), np.zeros(n, np.int64), np.array(ids[:1], np.int64), np.full(n, 0.8, np.float32)
    )


@pytest.mark.parametrize("given", ["Cats", "", "x" * 60, "Ein sehr langer Titel, der nicht mehr passt, wirklich"])
def test_title__fits_label_studio(given: str) -> None:
    assert 3 <= len(title(given)) <= 50
    assert title(given).endswith(" · keyframes")


def test_label_config__has_the_categories_in_order_and_one_data_field() -> None:
    xml = companion.label_config(['Cat "big" & small', "Dog"], {"Dog": "#ff0000"}, multiple=False)
    found = wire.parse_label_config(xml)
    assert (found.object_tag, found.control_tag, found.data_key) == ("Image", "Choices", "image")
    assert found.categories == ('Cat "big" & small', "Dog")
    assert not found.multiple
    assert wire.parse_label_config(companion.label_config(["Dog"], {}, multiple=True)).multiple
    assert "#ff0000" in xml


def test_label_config__what_people_have_added_stays() -> None:
    theirs = """<View><Header value="Which animal?"/>
      <Rectangle name="look" toName="image" smart="true"/>
      <Choices name="animal" toName="image" required="true">
        <Choice value="Cat" hotkey="c"/><Choice alias="Dog" value="A dog" hint="barks"/><Choice value="Hen" hotkey="h"/>
      </Choices>
      <Image name="image" value="$image" zoom="true"/></View>"""
    xml = wire.with_choices(theirs, "animal", ["Dog", "Cat", "Cat & mouse"], {"Dog": "red"}, multiple=True)
    found = wire.parse_label_config(xml)
    assert (found.categories, found.multiple) == (("Dog", "Cat", "Cat & mouse"), True)
    assert "Hen" not in xml
    for kept in ("Which animal?", 'smart="true"', 'required="true"', 'zoom="true"', 'hotkey="c"', 'hint="barks"'):
        assert kept in xml


def test_tabs__use_only_what_the_page_knows() -> None:
    found = companion.tabs(CATEGORIES)
    assert list(found) == ["next", "confirm Cat", "confirm Dog", "unsure"]
    assert {f.operator for tab in found.values() for f in tab.filters} == {"equal"}
    own = companion.tabs(CATEGORIES, "lookalike_")
    assert own["next"].ordering == "data.lookalike_order"
    assert "data.category" not in companion.hidden_columns("lookalike_"), "that one is a person's own"
    assert companion.tabs_of({"next": 1, "confirm Cat": 2}) == {"Cat"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/data/upload/3/1a2b3c4d-street-1.mp4", "street-1.mp4"),
        ("/data/local-files/?d=day%201/street.mp4", "street.mp4"),
        ("https://host/videos/street.mp4?token=x", "street.mp4"),
        ("", ""),
    ],
)
def test_video_name(url: str, shown: str) -> None:
    assert wire.video_name(url) == shown


def test_task_data__a_file_name_is_no_markup() -> None:
    frame = Keyframe(A, 1, 3, 72.5, 1.0, 0, 9)
    data = task_data(frame, "/i.jpg", 7, 0.91234, centroid=True, order=2, video="a](b)*.mp4", link="/projects/1")
    assert data["cluster"] == "c0007"
    assert data["similarity"] == 0.912
    assert data["links"] == r"[a\]\(b\)\*.mp4 at 1:12](/projects/1) · c0007"
    page = "http://127.0.0.1:9090/projects/1/keyframes/7"
    data = task_data(frame, "/i.jpg", 7, 0.9, centroid=True, order=2, video="a.mp4", link="/projects/1", page=page)
    assert data["links"].endswith(f" · c0007 · [more like it]({page})")


class TestFold:
    def vectors(self, n: int) -> np.ndarray:
        return np.tile(np.array([[1, 0]], np.float32), (n, 1))

    def test_fold__few_bits_apart_is_the_same(self) -> None:
        ids = np.array([A, B, C])
        found = fold(ids, np.array([0, 0b111, 0b1111]), self.vectors(3), {})
        assert found == {A: A, B: A, C: C}, "three bits are near, four are not; the leader is what counts"

    def test_fold__negative_fingerprints(self) -> None:
        assert fold(np.array([A, B]), np.array([-1, -2]), self.vectors(2), {}) == {A: A, B: A}

    def test_fold__flat_pictures_that_the_model_tells_apart_stay_apart(self) -> None:
        vectors = np.array([[1, 0], [0, 1]], np.float32)
        assert fold(np.array([A, B]), np.array([0, 0]), vectors, {}) == {A: A, B: B}

    def test_fold__leaders_stay_leaders_even_when_they_are_gone(self) -> None:
        # A led B and was deleted; D is like B, and C comes before D
        found = fold(np.array([B, C, D]), np.array([0, 2**40 - 1, 1]), self.vectors(3), {B: A})
        assert found == {C: C, D: A}
        assert representatives([B, C, D], {B: A} | found) == {B: B, C: C, D: B}

    def test_fold__agrees_with_comparing_all_with_all(self) -> None:
        random = np.random.default_rng(0)
        base = random.integers(-(2**63), 2**63 - 1, 30)
        flips = np.array([sum(1 << int(b) for b in random.integers(0, 63, n % 4)) for n in range(120)])
        prints = np.repeat(base, 4) ^ flips
        ids = np.arange(120)
        found = fold(ids, prints, self.vectors(120), {})
        leaders: list[int] = []
        for i in range(120):
            near = [o for o in leaders if (int(np.uint64(prints[i])) ^ int(np.uint64(prints[o]))).bit_count() <= 3]
            assert (found[i] == i) == (not near), i
            if not near:
                leaders.append(i)


SAME = {A: A, B: B, C: A}  # C is a near-duplicate of A


class TestSettle:
    def test_settle__near_duplicates_are_labelled_once(self) -> None:
        agreed, disputed = settle([row(A, "Cat", 5), row(C, "Cat", 5)], SAME, CATEGORIES, multiple=False)
        assert (agreed, disputed) == ({A: Said(("Cat",), ("a@b",), 5, 1.0)}, set())

    @pytest.mark.parametrize("turned", [False, True])
    def test_settle__the_last_word_of_a_person_counts_in_any_order(self, turned: bool) -> None:
        rows = [row(A, "Cat", 5, at=1.0), row(A, "Dog", 6, at=2.0)]
        agreed, disputed = settle(rows[::-1] if turned else rows, SAME, CATEGORIES, multiple=False)
        assert (agreed[A].categories, disputed) == (("Dog",), set())

    def test_settle__two_persons_who_disagree_are_a_conflict(self) -> None:
        rows = [row(A, "Cat", 5), row(C, "Dog", 6, person="c@d", at=2.0), row(B, "Cat", 7)]
        agreed, disputed = settle(rows, SAME, CATEGORIES, multiple=False)
        assert (set(agreed), disputed) == ({B}, {A})

    def test_settle__two_categories_are_one_word_where_several_may_be_chosen(self) -> None:
        rows = [row(A, "Dog", 5), row(A, "Cat", 5)]
        assert settle(rows, SAME, CATEGORIES, multiple=True)[0][A].categories == ("Cat", "Dog")
        assert settle(rows, SAME, CATEGORIES, multiple=False) == ({}, {A})

    def test_settle__categories_and_keyframes_that_are_gone_are_left_out(self) -> None:
        rows = [row(A, "Bird", 5), row(D, "Cat", 6)]
        assert settle(rows, SAME, CATEGORIES, multiple=False) == ({}, set())


class TestName:
    def test_name__gives_the_reason_and_reaches_near_duplicates(self) -> None:
        agreed = {A: Said(("Cat",), ("a@b",), 5, 1.0)}
        guesses = [Proposal(B, "Cat", 0.97, (A,), "proposed"), Proposal(D, "Cat", 0.6, (A,), "unsure")]
        named = name(agreed, guesses, {A: A, B: B, C: A, D: D}, grouped(A, B), CATEGORIES)
        assert named[A] == named[C]
        assert named[A][0].note == "Cat, labelled by a@b"
        assert named[B][0].note == "Cat 0.97, like c0000-3 which a@b labelled"
        assert D not in named

    def test_name__a_persons_word_is_never_overwritten(self) -> None:
        agreed = {A: Said(("Cat",), ("a@b",), 5, 1.0)}
        named = name(agreed, [Proposal(A, "Dog", 0.99, (B,), "proposed")], {A: A}, grouped(A), CATEGORIES)
        assert [word.category for word in named[A]] == ["Cat"]

    def test_name__a_category_that_is_gone_is_not_shown(self) -> None:
        assert name({}, [Proposal(A, "Bird", 0.99, (B,), "proposed")], {A: A}, grouped(A), CATEGORIES) == {}


class TestTimeline:
    frames = tuple(
        Keyframe(keyframe_id(1, n + 3), 1, n + 3, n / 10, 1.0, n, n + 9, n / 10, n / 10 + 0.9, shot=n // 20)
        for n in (0, 10, 20, 30)
    )
    config = wire.parse_label_config(
        '<View><Video name="v" value="$v" frameRate="10"/><TimelineLabels name="t" toName="v">'
        '<Label value="Cluster (unnamed)"/><Label value="Cat"/><Label value="Dog"/></TimelineLabels></View>'
    )

    def named(self, *categories: str) -> dict[int, tuple[companion.Named, ...]]:
        return {
            frame.id: (companion.Named(category, 0.9 + n / 100, f"{category} {n}"),)
            for n, (frame, category) in enumerate(zip(self.frames, categories, strict=True))
            if category
        }

    def test_segments__of_one_category_in_one_shot_are_merged(self) -> None:
        clusters = grouped(*(frame.id for frame in self.frames))
        members = describe_members(clusters)
        found = cluster_segments(self.frames, clusters, "?", members, self.named("Cat", "Cat", "Cat", ""))
        assert [(s.category, s.first_frame, s.last_frame) for s in found] == [
            ("Cat", 0, 19),
            ("Cat", 20, 29),
            ("?", 30, 39),
        ]
        assert found[0].note == "Cat 1", "the surest gives the reason"
        assert found[0].score == 0.905
        assert len({s.key for s in found}) == 3

    def test_compose__frames_count_from_one(self) -> None:
        clusters = grouped(*(frame.id for frame in self.frames))
        body = compose(
            self.config,
            {},
            4.0,
            self.frames,
            clusters,
            describe_members(clusters),
            "v",
            self.named("Cat", "Dog", "", ""),
        )
        shown = [(r["value"]["timelinelabels"][0], *r["value"]["ranges"][0].values()) for r in body["result"]]
        assert shown[:2] == [("Cat", 1, 10), ("Dog", 11, 20)]
        assert wire.frame_rate_of(self.config, {}) == Fraction(10)

    def test_compose__without_a_reserved_label_only_what_is_named_is_shown(self) -> None:
        xml = (
            '<View><Video name="v" value="$v"/><TimelineLabels name="t" toName="v"><Label value="Cat"/>'
            "</TimelineLabels></View>"
        )
        clusters = grouped(*(frame.id for frame in self.frames))
        config = wire.parse_label_config(xml)
        body = compose(
            config, {}, 4.0, self.frames, clusters, describe_members(clusters), "v", self.named("", "Cat", "", "")
        )
        assert [r["value"]["timelinelabels"] for r in body["result"]] == [["Cat"]]

    def test_compose__choices_take_the_category_of_most_frames(self) -> None:
        xml = (
            '<View><Video name="v" value="$v"/><Choices name="c" toName="v"{}><Choice value="Cat"/>'
            '<Choice value="Dog"/></Choices></View>'
        )
        clusters = grouped(*(frame.id for frame in self.frames))
        named = self.named("Dog", "Cat", "Cat", "")
        for extra, chosen in (("", ["Cat"]), (' choice="multiple"', ["Cat", "Dog"])):
            config = wire.parse_label_config(xml.format(extra))
            body = compose(config, {}, 4.0, self.frames, clusters, describe_members(clusters), "v", named)
            assert body["result"][0]["value"]["choices"] == chosen
