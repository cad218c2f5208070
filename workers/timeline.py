"""From keyframes and their clusters to the segments of a video's timeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookalike.records import Clustering, Keyframe, Segment, cluster_name, split_keyframe_id


def cluster_segments(
    keyframes: Sequence[Keyframe], clustering: Clustering, category: str, members: dict[int, str]
) -> list[Segment]:
    """One segment per stretch of neighbouring keyframes of one cluster; each says what else looks like it.

    `members`: what to say of each cluster's size, by its number, from `describe_members`. A segment's score is the
    mean similarity of its keyframes to the middle of their cluster.
    """
    ids = np.asarray([keyframe.id for keyframe in keyframes], dtype=np.int64)
    numbers, similarity = lookup(clustering, ids)
    segments: list[Segment] = []
    at = 0
    while at < len(keyframes):
        end = at + 1
        while (
            end < len(keyframes)
            and numbers[end] == numbers[at]
            and keyframes[end].first_frame == keyframes[end - 1].last_frame + 1
        ):
            end += 1
        first, last = keyframes[at], keyframes[end - 1]
        number = int(numbers[at])
        segments.append(
            Segment(
                first_frame=first.first_frame,
                last_frame=last.last_frame,
                first_s=first.first_s,
                last_s=last.last_s,
                category=category,
                score=round(float(similarity[at:end].mean()), 3),
                note=f"{cluster_name(number)} · {members[number]}",
                key=f"{cluster_name(number)}-{first.frame_index}",
            )
        )
        at = end
    return segments


def describe_members(clustering: Clustering) -> dict[int, str]:
    """What a person wants to know of each cluster: how many keyframes it has, in how many videos."""
    described = {-1: "like nothing else in this project"}
    order = np.argsort(clustering.clusters, kind="stable")
    videos = np.asarray([split_keyframe_id(int(i))[0] for i in clustering.keyframe_ids], dtype=np.int64)[order]
    numbers, starts = np.unique(clustering.clusters[order], return_index=True)
    for number, part in zip(numbers, np.split(videos, starts[1:]), strict=True):
        if number >= 0:
            count, among = len(part), len(np.unique(part))
            described[int(number)] = (
                f"{count} keyframe{'s' if count > 1 else ''} like this in {among} video{'s' if among > 1 else ''}"
            )
    return described


def moved_videos(before: Clustering | None, after: Clustering) -> set[int]:
    """The videos with a keyframe whose cluster is another than before."""
    ids = after.keyframe_ids
    if before is not None:
        ids = ids[lookup(before, ids)[0] != after.clusters]
    return {split_keyframe_id(int(i))[0] for i in ids}


def lookup(clustering: Clustering, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(cluster number, similarity) of each keyframe; (-2, 0) for one that the clustering does not know.

    The clustering's keyframe ids must ascend, as the store gives them.
    """
    numbers = np.full(len(ids), -2, np.int64)
    similarity = np.zeros(len(ids), np.float32)
    if len(clustering.keyframe_ids) and len(ids):
        at = np.minimum(np.searchsorted(clustering.keyframe_ids, ids), len(clustering.keyframe_ids) - 1)
        known = clustering.keyframe_ids[at] == ids
        numbers[known] = clustering.clusters[at[known]]
        similarity[known] = clustering.similarity[at[known]]
    return numbers, similarity
