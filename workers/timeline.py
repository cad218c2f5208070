"""From keyframes and their clusters to the segments of a video's timeline, and to its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike import wire
from lookalike.errors import LabelConfigError
from lookalike.records import Clustering, Json, Keyframe, LabelConfig, Segment, cluster_name, split_keyframe_id


@dataclass(frozen=True, slots=True)
class Named:
    """What people say, or what we guess, of a keyframe."""

    category: str
    score: float
    note: str  # the reason, for people


def read_config(xml: str) -> LabelConfig:
    """The control that predictions fill. Raises LabelConfigError, also where it has no label for unnamed clusters."""
    config = wire.parse_label_config(xml)
    if config.reserved is None:
        child = "Label" if config.control_tag == "TimelineLabels" else "Choice"
        raise LabelConfigError(
            f"{config.control_tag} {config.from_name} has no label for clusters that nobody has named yet; add "
            f'<{child} value="{wire.RESERVED_CATEGORY}"/> to it'
        )
    return config


def compose(
    config: LabelConfig,
    data: Mapping[str, Any],
    duration_s: float,
    keyframes: Sequence[Keyframe],
    clustering: Clustering,
    members: dict[int, str],
    version: str,
    named: Mapping[int, Sequence[Named]] | None = None,
) -> Json:
    """The prediction of a task: its timeline in segments, or one choice.

    `data`: the task's; `members`: from `describe_members`; `named`: the categories of keyframes that have some. All
    others are shown under the reserved label, or, where the configuration has none, not at all.
    """
    named = named or {}
    if config.control_tag == "TimelineLabels":
        segments = cluster_segments(keyframes, clustering, config.reserved, members, named)
        result = wire.timeline_result(config, segments, wire.frame_rate_of(config, data), duration_s)
    else:
        result = _named_choice(config, keyframes, named)
        if not result and config.reserved is not None:
            result = _choice(config, config.reserved, keyframes, clustering, members)
    return wire.prediction(result, None, version)


def cluster_segments(
    keyframes: Sequence[Keyframe],
    clustering: Clustering,
    category: str | None,
    members: dict[int, str],
    named: Mapping[int, Sequence[Named]] | None = None,
) -> list[Segment]:
    """One segment per shot, or per part of a shot whose keyframes are of one category, or of one unnamed cluster.

    `category`: what unnamed clusters are shown as, None for not at all; `members`: what to say of each cluster's size,
    by its number, from `describe_members`. A segment's score is the mean of its keyframes': the probability of the
    category, or the similarity to the middle of the cluster. The surest keyframe gives the reason.
    """
    ids = np.asarray([keyframe.id for keyframe in keyframes], dtype=np.int64)
    numbers, similarity = lookup(clustering, ids)
    names = [(named or {}).get(keyframe.id, ())[:1] for keyframe in keyframes]  # a timeline shows one at a time
    shown = [(name[0].category,) if name else int(number) for name, number in zip(names, numbers, strict=True)]
    segments: list[Segment] = []
    at = 0
    while at < len(keyframes):
        end = at + 1
        while (
            end < len(keyframes)
            and shown[end] == shown[at]
            and keyframes[end].shot == keyframes[at].shot
            and keyframes[end].first_frame == keyframes[end - 1].last_frame + 1
        ):
            end += 1
        first, last = keyframes[at], keyframes[end - 1]
        number = int(numbers[at])
        words = [name[0] for name in names[at:end] if name]
        if words:
            surest = max(words, key=lambda word: word.score)
            label, note, score = surest.category, surest.note, float(np.mean([word.score for word in words]))
        elif category is not None:
            label, note = category, f"{cluster_name(number)} · {members[number]}"
            score = float(similarity[at:end].mean())
        if words or (category is not None and number not in clustering.junk):
            segments.append(
                Segment(
                    first_frame=first.first_frame,
                    last_frame=last.last_frame,
                    first_s=first.first_s,
                    last_s=last.last_s,
                    category=label,
                    score=round(score, 3),
                    note=note,
                    key=f"{cluster_name(number)}-{first.frame_index}",
                )
            )
        at = end
    return segments


def describe_members(clustering: Clustering, noun: str = "video") -> dict[int, str]:
    """What a person wants to know of each cluster: how many keyframes it has, in how many videos.

    `noun`: what the files are; other than "video", each is one keyframe.
    """
    described = {-1: "like nothing else in this project"}
    order = np.argsort(clustering.clusters, kind="stable")
    videos = np.asarray([split_keyframe_id(int(i))[0] for i in clustering.keyframe_ids], dtype=np.int64)[order]
    numbers, starts = np.unique(clustering.clusters[order], return_index=True)
    parts = np.split(videos, starts[1:]) if len(videos) else []
    for number, part in zip(numbers, parts, strict=True):
        if number >= 0:
            count, among = len(part), len(np.unique(part))
            said = f"{count} {'keyframe' if noun == 'video' else noun}{'s' if count > 1 else ''} like this"
            if noun == "video":
                said += f" in {among} video{'s' if among > 1 else ''}"
            name = clustering.names.get(int(number))
            described[int(number)] = f"{name}, {said}" if name else said
    return described


def moved_videos(before: Clustering | None, after: Clustering) -> set[int]:
    """The videos with a keyframe whose cluster is another than before."""
    ids = after.keyframe_ids
    if before is not None:
        ids = ids[lookup(before, ids)[0] != after.clusters]
    return {split_keyframe_id(int(i))[0] for i in ids}


def lookup(clustering: Clustering, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(cluster number, similarity) of each keyframe; (-2, 0) for one that the clustering does not know."""
    numbers = np.full(len(ids), -2, np.int64)
    similarity = np.zeros(len(ids), np.float32)
    if len(clustering.keyframe_ids) and len(ids):
        # ascending from the store; those that have just joined stand at the end, whichever their ids
        order = np.argsort(clustering.keyframe_ids, kind="stable")
        at = order[np.minimum(np.searchsorted(clustering.keyframe_ids, ids, sorter=order), len(order) - 1)]
        known = clustering.keyframe_ids[at] == ids
        numbers[known] = clustering.clusters[at[known]]
        similarity[known] = clustering.similarity[at[known]]
    return numbers, similarity


def _named_choice(
    config: LabelConfig, keyframes: Sequence[Keyframe], named: Mapping[int, Sequence[Named]]
) -> list[Json]:
    """The categories that keyframes have, or, where only one may be chosen, that of most frames; [] if none has any."""
    words: dict[str, list[Named]] = {}
    frames: dict[str, int] = {}
    for keyframe in keyframes:
        for word in named.get(keyframe.id, ()):
            words.setdefault(word.category, []).append(word)
            frames[word.category] = frames.get(word.category, 0) + keyframe.last_frame - keyframe.first_frame + 1
    if not words:
        return []
    chosen = sorted(words, key=lambda category: -frames[category])[: None if config.multiple else 1]
    surest = max(words[chosen[0]], key=lambda word: word.score)
    score = round(float(np.mean([word.score for word in words[chosen[0]]])), 3)
    return wire.choices_result(config, chosen, score=score, note=surest.note, key="named")


def _choice(
    config: LabelConfig,
    category: str,
    keyframes: Sequence[Keyframe],
    clustering: Clustering,
    members: dict[int, str],
) -> list[Json]:
    """The reserved choice, saying which cluster most of the frames belong to; nothing without a keyframe of any use."""
    numbers, similarity = lookup(clustering, np.asarray([keyframe.id for keyframe in keyframes], np.int64))
    useful = ~np.isin(numbers, list(clustering.junk))
    keyframes = [keyframe for keyframe, use in zip(keyframes, useful, strict=True) if use]
    numbers, similarity = numbers[useful], similarity[useful]
    if not keyframes:
        return []
    frames = np.asarray([keyframe.last_frame - keyframe.first_frame + 1 for keyframe in keyframes])
    found, row = np.unique(numbers, return_inverse=True)
    number = int(found[np.bincount(row, weights=frames).argmax()])
    others = f", and {len(found) - 1} other cluster{'s' if len(found) > 2 else ''}" if len(found) > 1 else ""
    score = round(float(similarity[numbers == number].mean()), 3)
    note = f"{cluster_name(number)} · {members[number]}{others}"
    return wire.choices_result(config, [category], score=score, note=note, key=cluster_name(number))
