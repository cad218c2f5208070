"""Keyframes as they are found, each with its picture in a part file, and the choice among them at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from workers.pictures import coarse, fingerprint, sharpness, upright

JPEG_QUALITY = 90

_SAME_MEAN, _SAME_MAX = 5.0, 24.0  # levels, of 16 x 9 block means: near-duplicates
_FLICKER = 4  # frames between two near-duplicates that are one shot nevertheless
_BLURRED = 0.3  # of the sharpness of its shot's sharpest keyframe


@dataclass(frozen=True, slots=True)
class Draft:
    """A keyframe, its picture written to a part file."""

    frame_index: int
    time_s: float
    sharpness: float
    first: int
    last: int
    shot: int
    fingerprint: int
    small: NDArray[np.float32] = field(compare=False)  # (9, 16, 3) block means


class Album:
    """Writes pictures as they come, and chooses among them at the end."""

    def __init__(self, out: Path, aspect: Fraction, width_px: int, share: float) -> None:
        self.share = share  # of the frames to keep, about
        self._out, self._aspect, self._width_px = out, aspect, width_px
        self._drafts: list[Draft] = []

    def add(self, frame: Any, index: int, time_s: float, first: int, last: int, shot_begins: bool) -> None:
        """A keyframe that stands for first..last; if it looks like the one before, that one stands for both."""
        picture = upright(frame, self._aspect, self._width_px)
        small = cv2.resize(coarse(picture), (16, 9), interpolation=cv2.INTER_AREA).astype(np.float32)
        before = self._drafts[-1] if self._drafts else None
        if before and first - before.last <= _FLICKER and same(before.small, small):
            self._drafts[-1] = replace(before, last=last)
            return
        shot = before.shot + shot_begins if before else 0
        sharp = sharpness(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
        done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        self._path(index, ".part").write_bytes(data.tobytes())
        self._drafts.append(Draft(index, time_s, sharp, first, last, shot, fingerprint(picture), small))

    def lengthen(self, first: int, last: int) -> None:
        """Frames without a candidate belong to the keyframe before them, if it is their neighbour."""
        if self._drafts and self._drafts[-1].last == first - 1:
            self._drafts[-1] = replace(self._drafts[-1], last=last)

    def publish(self) -> list[Draft]:
        """Choose, and give the pictures chosen their names."""
        chosen = [draft for _, shot in groupby(self._drafts, key=lambda d: d.shot) for draft in _clear(list(shot))]
        chosen = _within_budget(chosen, self.share)
        names = {draft.frame_index for draft in chosen}
        for draft in self._drafts:
            part = self._path(draft.frame_index, ".part")
            if draft.frame_index in names:
                part.replace(self._path(draft.frame_index))
            else:
                part.unlink()
        return chosen

    def _path(self, index: int, suffix: str = "") -> Path:
        return self._out / f"{index:07d}.jpg{suffix}"


def _clear(shot: list[Draft]) -> list[Draft]:
    """Without those that are much less sharp than the sharpest of the shot."""
    sharpest = max(draft.sharpness for draft in shot)
    return _joined(shot, [draft for draft in shot if draft.sharpness >= _BLURRED * sharpest])


def _within_budget(drafts: list[Draft], share: float) -> list[Draft]:
    """One keyframe for each shot; beyond it `share` of the frames of long shots, the newest pictures first."""
    by_shot = [list(shot) for _, shot in groupby(drafts, key=lambda d: d.shot)]
    budget = sum(max(0, round(share * (shot[-1].last - shot[0].first + 1)) - 1) for shot in by_shot)
    novelty = {
        draft.frame_index: float(np.abs(draft.small - before.small).mean())
        for shot in by_shot
        for before, draft in pairwise(shot)
    }
    extra = set(sorted(novelty, key=lambda index: -novelty[index])[:budget])
    return [
        draft
        for shot in by_shot
        for draft in _joined(shot, [d for d in shot if d.frame_index in extra or d.frame_index not in novelty])
    ]


def _joined(shot: list[Draft], kept: list[Draft]) -> list[Draft]:
    """The kept drafts of a shot, with the spans of the others: each reaches to where the next one kept begins."""
    ends = [draft.first - 1 for draft in kept[1:]] + [shot[-1].last]
    firsts = [shot[0].first] + [draft.first for draft in kept[1:]]
    return [replace(d, first=first, last=last) for d, first, last in zip(kept, firsts, ends, strict=True)]


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    difference = np.abs(a - b)
    return bool(difference.mean() < _SAME_MEAN and difference.max() < _SAME_MAX)
