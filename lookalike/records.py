"""The records that cross from one room to another.

All are frozen. Arrays are checked once, when the record is made; inside, they are trusted. Frames are counted from 0
everywhere but in `lookalike.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: frames per video that an id can tell apart: 2**24 frames are 155 hours at 30 frames/s
_FRAMES_PER_VIDEO = 1 << 24


def keyframe_id(video_id: int, frame_index: int) -> int:
    """The id of a keyframe: the same video and frame always give the same number, below 2**53 (JavaScript's limit)."""
    if not 0 <= frame_index < _FRAMES_PER_VIDEO:
        raise ValueError(f"frame_index must be between 0 and {_FRAMES_PER_VIDEO - 1}, got {frame_index}")
    return video_id * _FRAMES_PER_VIDEO + frame_index


def split_keyframe_id(identifier: int) -> tuple[int, int]:
    """(video_id, frame_index) of a keyframe id."""
    return divmod(identifier, _FRAMES_PER_VIDEO)


@dataclass(frozen=True, slots=True)
class Media:
    """One video of one task, as Label Studio names it."""

    project: str  # Label Studio's project uid, "<id>.<created_at>": ids alone are reused
    task: int
    url: str  # /data/upload/…, /data/local-files/?d=…, http(s)://…, or a path


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the decoder found out about a video."""

    fps: Fraction  # mean frames per second
    frame_count: int  # frames decoded, not what the header claims
    duration_s: float
    width_px: int  # as shown: turned upright, square pixels
    height_px: int


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A frame that stands for the frames around it."""

    id: int
    video_id: int
    frame_index: int  # 0-based, in the order shown
    time_s: float
    sharpness: float  # variance of the Laplacian of the grey picture, larger is sharper
    first_frame: int  # the span it stands for, 0-based, both ends included
    last_frame: int
    first_s: float = 0.0  # when these two are shown
    last_s: float = 0.0
    shot: int = 0  # number of the shot it lies in, from 0

    def __post_init__(self) -> None:
        if not self.first_frame <= self.frame_index <= self.last_frame:
            raise ValueError(
                f"a keyframe lies within its span, got frame {self.frame_index} outside "
                f"{self.first_frame}..{self.last_frame}"
            )


@dataclass(frozen=True, slots=True)
class Extraction:
    """What one pass over a video gives. A keyframe's picture is `<frame_index, 7 digits>.jpg` in its folder."""

    facts: VideoFacts
    keyframes: tuple[Keyframe, ...]
    cuts: tuple[int, ...]  # first frame of each shot but the first
    fingerprints: tuple[int, ...] = ()  # one per keyframe: 64 bits, signed, near-duplicates differ in few of them
    seconds: dict[str, float] = field(default_factory=dict)  # by step


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of keyframes by one model."""

    keyframe_ids: NDArray[np.int64]  # (n,)
    vectors: NDArray[np.float32]  # (n, d), as the model gives them, finite
    model: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.keyframe_ids.shape != (len(self.vectors),):
            raise ValueError(
                f"vectors must be (n, d) with n keyframe ids, got {self.vectors.shape} and {self.keyframe_ids.shape}"
            )
        if self.vectors.dtype != np.float32:
            raise ValueError(f"vectors must be float32, got {self.vectors.dtype}")
        if not np.isfinite(self.vectors).all():
            raise ValueError("vectors must be finite, got NaN or infinity")


@dataclass(frozen=True, slots=True)
class Clustering:
    """Which keyframes look alike. A centroid is a real keyframe: the one nearest the middle of its cluster."""

    keyframe_ids: NDArray[np.int64]  # (n,)
    clusters: NDArray[np.int64]  # (n,) number of the cluster, -1 = like nothing else
    centroids: NDArray[np.int64]  # (k,) keyframe id of cluster 0, 1, …
    similarity: NDArray[np.float32]  # (n,) cosine to the own cluster's middle, 0..1
    names: Mapping[int, str] = field(default_factory=dict)  # that people gave, by number
    junk: frozenset[int] = frozenset()  # numbers of clusters that people want to see no more of

    def __post_init__(self) -> None:
        n = len(self.keyframe_ids)
        if self.clusters.shape != (n,) or self.similarity.shape != (n,):
            raise ValueError(
                f"clusters and similarity must be ({n},), got {self.clusters.shape}, {self.similarity.shape}"
            )
        if n and self.clusters.max(initial=-1) >= len(self.centroids):
            raise ValueError(f"clusters must be below {len(self.centroids)}, got {int(self.clusters.max())}")


def cluster_name(number: int) -> str:
    """`c0007`: zero-padded, because Label Studio's Data Manager sorts and compares text."""
    return "c----" if number < 0 else f"c{number:04d}"


def cluster_number(name: str) -> int:
    """The number of `c0007`; -1 of `c----`. Raises ValueError for anything else."""
    if name == cluster_name(-1):
        return -1
    if not (name.startswith("c") and name[1:].isascii() and name[1:].isdecimal() and 5 <= len(name) <= 10):
        raise ValueError(f"a cluster has a name such as c0007, got {name[:40]!r}")
    return int(name[1:])


@dataclass(frozen=True, slots=True)
class Label:
    """A person's word: this keyframe shows this category."""

    keyframe_id: int
    category: str
    annotation_id: int  # Label Studio's


@dataclass(frozen=True, slots=True)
class PropagatedLabel:
    """A guess, with its probability and its reason."""

    keyframe_id: int
    category: str
    score: float  # calibrated probability, 0..1
    nearest: tuple[int, ...]  # the labelled keyframes that gave it, nearest first
    run_id: int


@dataclass(frozen=True, slots=True)
class Match:
    """A keyframe found by similarity search."""

    keyframe_id: int
    similarity: float  # cosine, 0..1


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The one control of a labeling configuration that we fill, and where its data comes from."""

    control_tag: str  # TimelineLabels, Choices, …
    from_name: str
    to_name: str
    object_tag: str  # Video, Image
    data_key: str  # the task's data field with the media's URL
    categories: tuple[str, ...]
    reserved: str | None  # the category that marks "a cluster that nobody has named yet"
    multiple: bool  # whether an object may have several categories
    frame_rate: str | None = None  # the Video tag's frameRate: a number, "$field", or None (Label Studio assumes 24)


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of a video's timeline that shows one cluster or category. 0-based, both ends included."""

    first_frame: int
    last_frame: int
    first_s: float
    last_s: float  # start of the last frame
    category: str
    score: float | None = None
    note: str = ""  # shown with the region: cluster, similarity, reason
    key: str = ""  # the same segment has the same key in every delivery


Json = dict[str, Any]
