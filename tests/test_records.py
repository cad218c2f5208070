"""The records check what they are made of, once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.records import Clustering, Embeddings, Keyframe, cluster_name, keyframe_id, split_keyframe_id


@given(st.integers(1, 2**29 - 1), st.integers(0, 2**24 - 1))
def test_keyframe_id__round_trip(video: int, frame: int) -> None:
    identifier = keyframe_id(video, frame)
    assert split_keyframe_id(identifier) == (video, frame)
    assert identifier < 2**53  # JavaScript's numbers


@pytest.mark.parametrize("frame", [-1, 2**24])
def test_keyframe_id__frame_that_does_not_fit(frame: int) -> None:
    with pytest.raises(ValueError, match=f"frame_index must be between 0 and 16777215, got {frame}"):
        keyframe_id(1, frame)


def test_keyframe_id__sorts_by_video_and_frame() -> None:
    assert keyframe_id(1, 2**24 - 1) < keyframe_id(2, 0) < keyframe_id(2, 1)


@pytest.mark.parametrize(("first", "last"), [(11, 20), (0, 9)])
def test_keyframe__lies_within_its_span(first: int, last: int) -> None:
    Keyframe(1, 1, 10, 0.4, 1.0, 10, 10)
    with pytest.raises(ValueError, match=f"got frame 10 outside {first}..{last}"):
        Keyframe(1, 1, 10, 0.4, 1.0, first, last)


@pytest.mark.parametrize(
    ("ids", "vectors", "says"),
    [
        (np.arange(3), np.zeros((2, 4), np.float32), "n keyframe ids"),
        (np.arange(2), np.zeros(2, np.float32), "must be (n, d)"),
        (np.arange(2), np.zeros((2, 4), np.float64), "must be float32, got float64"),
        (np.arange(1), np.array([[1, np.nan]], np.float32), "must be finite"),
        (np.arange(1), np.array([[1, np.inf]], np.float32), "must be finite"),
    ],
)
def test_embeddings__checks_its_arrays(ids: Any, vectors: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Embeddings(ids, vectors, "model")
    assert says in str(error.value)


def test_embeddings__none() -> None:
    assert len(Embeddings(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), "model").vectors) == 0


def test_clustering__checks_its_arrays() -> None:
    ids, similarity = np.arange(2), np.ones(2, np.float32)
    Clustering(ids, np.array([0, -1]), np.array([1]), similarity)
    Clustering(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="clusters must be below 1, got 1"):
        Clustering(ids, np.array([0, 1]), np.array([1]), similarity)
    with pytest.raises(ValueError, match=r"clusters and similarity must be \(2,\)"):
        Clustering(ids, np.array([0]), np.array([1]), similarity)
    with pytest.raises(ValueError, match=r"clusters and similarity must be \(2,\)"):
        Clustering(ids, np.array([0, 0]), np.array([1]), similarity[:1])


def test_cluster_name__sorts_as_text() -> None:
    assert [cluster_name(n) for n in (0, 7, 123, -1)] == ["c0000", "c0007", "c0123", "c----"]
    assert sorted(map(cluster_name, range(200))) == list(map(cluster_name, range(200)))


def test_records__are_frozen() -> None:
    frame = Keyframe(1, 1, 10, 0.4, 1.0, 10, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.time_s = 1.0  # type: ignore[misc]
