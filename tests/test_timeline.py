"""From keyframes and clusters to segments."""

from dataclasses import replace

import numpy as np

from lookalike.label_config import shipped_config
from lookalike.records import Clustering, Keyframe, keyframe_id
from lookalike.wire import parse_label_config
from workers.timeline import Named, cluster_segments, compose, describe_members, lookup, moved_videos


def _frame(video: int, index: int, first: int, last: int) -> Keyframe:
    return Keyframe(
        keyframe_id(video, index), video, index, index / 10, 100.0, first, last, first_s=first / 10, last_s=last / 10
    )


def _clustering(ids: list[int], numbers: list[int], k: int) -> Clustering:
    order = np.argsort(ids)
    centroids = np.full(k, -1, np.int64)
    for i, number in zip(ids, numbers, strict=True):
        if number >= 0:
            centroids[number] = i
    return Clustering(
        np.asarray(ids, np.int64)[order],
        np.asarray(numbers, np.int64)[order],
        centroids,
        np.linspace(0.5, 1.0, len(ids), dtype=np.float32),
    )


def test_segments__neighbours_of_one_cluster_are_one_segment() -> None:
    frames = [_frame(1, 5, 0, 9), _frame(1, 12, 10, 19), _frame(1, 25, 20, 29)]
    grouped = _clustering([f.id for f in frames], [0, 0, 1], 2)
    segments = cluster_segments(frames, grouped, "Cluster (unnamed)", describe_members(grouped))
    assert [(s.first_frame, s.last_frame) for s in segments] == [(0, 19), (20, 29)]
    assert [(s.first_s, s.last_s) for s in segments] == [(0.0, 1.9), (2.0, 2.9)]
    assert segments[0].note == "c0000 · 2 keyframes like this in 1 video"
    assert segments[1].note == "c0001 · 1 keyframe like this in 1 video"
    assert segments[0].key != segments[1].key


def test_segments__a_cut_parts_two_segments_of_one_cluster() -> None:
    frames = [_frame(1, 5, 0, 9), replace(_frame(1, 15, 10, 19), shot=1)]
    grouped = _clustering([f.id for f in frames], [0, 0], 1)
    segments = cluster_segments(frames, grouped, "x", describe_members(grouped))
    assert [(s.first_frame, s.last_frame) for s in segments] == [(0, 9), (10, 19)]


def test_segments__a_black_stretch_parts_two_segments_of_one_cluster() -> None:
    frames = [_frame(1, 5, 0, 9), _frame(1, 25, 20, 29)]
    grouped = _clustering([f.id for f in frames], [0, 0], 1)
    segments = cluster_segments(frames, grouped, "x", describe_members(grouped))
    assert [(s.first_frame, s.last_frame) for s in segments] == [(0, 9), (20, 29)]


def test_segments__what_is_like_nothing_else_says_so() -> None:
    frames = [_frame(1, 5, 0, 9), _frame(1, 15, 10, 19)]
    grouped = _clustering([f.id for f in frames], [0, -1], 1)
    segments = cluster_segments(frames, grouped, "x", describe_members(grouped))
    assert segments[1].note == "c---- · like nothing else in this project"


def test_segments__junk_is_not_shown_but_what_people_said_of_it_is() -> None:
    frames = [_frame(1, 5, 0, 9), _frame(1, 15, 10, 19), _frame(1, 25, 20, 29)]
    grouped = replace(_clustering([f.id for f in frames], [0, 1, 1], 2), junk=frozenset([1]), names={0: "red cars"})
    named = {frames[2].id: (Named("Car", 1.0, "Car, labelled by ann"),)}
    segments = cluster_segments(frames, grouped, "x", describe_members(grouped), named)
    assert [s.category for s in segments] == ["x", "Car"]
    assert segments[0].note == "c0000 · red cars, 1 keyframe like this in 1 video"


def test_compose__a_video_of_nothing_but_junk_has_no_choice() -> None:
    config = parse_label_config(shipped_config("video_choices"))
    frames = [_frame(1, 5, 0, 9), _frame(1, 11, 10, 12)]
    grouped = _clustering([f.id for f in frames], [0, 1], 2)

    def choices(junk: set[int]) -> list[str]:
        edited = replace(grouped, junk=frozenset(junk))
        result = compose(config, {}, 2.0, frames, edited, describe_members(edited), "v")["result"]
        return [region["meta"]["text"][0] for region in result]

    assert choices({0}) == ["c0001 · 1 keyframe like this in 1 video"]
    assert choices({0, 1}) == []


def test_describe_members__counts_keyframes_and_videos() -> None:
    grouped = _clustering([keyframe_id(1, 0), keyframe_id(1, 9), keyframe_id(2, 0)], [0, 0, 0], 1)
    assert describe_members(grouped)[0] == "3 keyframes like this in 2 videos"


def test_moved_videos__only_those_whose_clusters_changed() -> None:
    a, b, c = keyframe_id(1, 0), keyframe_id(2, 0), keyframe_id(3, 0)
    before = _clustering([a, b], [0, 1], 2)
    assert moved_videos(None, before) == {1, 2}
    assert moved_videos(before, _clustering([a, b, c], [0, 1, 1], 2)) == {3}
    assert moved_videos(before, _clustering([a, b], [0, 0], 2)) == {2}
    assert moved_videos(before, before) == set()


def test_lookup__unknown_keyframes_are_minus_two() -> None:
    grouped = _clustering([keyframe_id(1, 3)], [0], 1)
    numbers, similarity = lookup(grouped, np.asarray([keyframe_id(1, 3), keyframe_id(9, 9)]))
    assert numbers.tolist() == [0, -2]
    assert similarity[1] == 0


def test_lookup__of_keyframes_that_joined_out_of_order() -> None:
    """A video that is done later than others that came after it: its ids are lower, and stand at the end."""
    ids = np.array([10, 30, 20, 5], np.int64)
    grouped = Clustering(ids, np.array([0, 1, 2, 3]), ids, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    numbers, similarity = lookup(grouped, np.array([5, 10, 20, 30, 7, 99], np.int64))
    assert numbers.tolist() == [3, 0, 2, 1, -2, -2]
    assert np.allclose(similarity[:4], [0.4, 0.1, 0.3, 0.2])
