"""Where one shot ends and the next begins, found in one pass over small samples of each frame.

A frame is seen as 9 x 16 block means of its three planes. A hard cut is a change of those means that stands out
against the frames around it, unless the picture from before comes back at once (a flash). A dissolve is a picture
halfway between two calm ends that differ. Black and blank pictures belong to no shot.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

#: points sampled per frame: luma, then two planes of half the size (3,456 bytes)
LUMA, CHROMA = (36, 64), (18, 32)
SAMPLES = LUMA[0] * LUMA[1] + 2 * CHROMA[0] * CHROMA[1]

#: frames after which hard cuts, and everything else, are certain
CUT_LAG, LAG = 8, 56

_ROWS, _COLUMNS = 9, 16
_BLOCKS = 3 * _ROWS * _COLUMNS

# Measured on real clips: hard cuts change the block means by 12..26 levels and 4..400 times as much as their
# neighbours; the fastest motion by up to 7 levels and 2 times.
_CUT_LEVELS, _CUT_RATIO = 4.5, 3.0
_NEIGHBOURS = 4
_FLASH_FRAMES, _FLASH_SHARE = 3, 0.4

_DISSOLVE_REACHES = (5, 10, 16, 24)  # half of its frames
_DISSOLVE_LEVELS, _DISSOLVE_RESIDUE, _DISSOLVE_CALM = 10.0, 0.22, 0.5
_DISSOLVE_ALIKE = 0.75  # correlation of its two ends
_DISSOLVE_BLOCK, _DISSOLVE_SHARE = 4.0, 0.6  # levels by which so many blocks change: things that move leave more alone

_BLACK_LEVEL, _BLACK_SHARE = 40, 0.985  # video black is 16
_BLANK_DEVIATION = 3.0  # levels


@dataclass(frozen=True, slots=True)
class Settled:
    """What is certain about the frames first .. first + n - 1."""

    first: int
    starts: NDArray[np.bool_]  # (n,) the frame begins a shot
    empty: NDArray[np.bool_]  # (n,) black or blank
    between: NDArray[np.bool_]  # (n,) part of a dissolve
    blocks: NDArray[np.float32]  # (n, 432) block means


def block_means(samples: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 3456) uint8 samples to (n, 432) block means, 0..255. One resize per plane for all frames: 2 us a frame."""
    n = len(samples)
    luma = LUMA[0] * LUMA[1]
    chroma = CHROMA[0] * CHROMA[1]
    planes = []
    for begin, (rows, columns) in ((0, LUMA), (luma, CHROMA), (luma + chroma, CHROMA)):
        tall = np.ascontiguousarray(samples[:, begin : begin + rows * columns]).reshape(n * rows, columns)
        small = cv2.resize(tall, (_COLUMNS, n * _ROWS), interpolation=cv2.INTER_AREA)
        planes.append(small.reshape(n, _ROWS * _COLUMNS))
    return np.concatenate(planes, axis=1).astype(np.float32)


def is_empty(samples: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(n,) whether a frame is black or of one colour."""
    luma = samples[:, : LUMA[0] * LUMA[1]].astype(np.float32)
    mean = luma.mean(axis=1)
    empty = np.einsum("ij,ij->i", luma, luma) / luma.shape[1] - mean**2 < _BLANK_DEVIATION**2
    for i in np.flatnonzero(mean < 1.5 * _BLACK_LEVEL):
        empty[i] |= (luma[i] < _BLACK_LEVEL).mean() >= _BLACK_SHARE
    return np.asarray(empty)


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean difference of block means, in levels."""
    return np.asarray(np.abs(a - b).mean(axis=-1), dtype=np.float32)


def differ(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Whether two pictures, by their block means (432,), could be of two shots."""
    return bool(distance(a, b) >= _CUT_LEVELS)


class ShotFinder:
    """Takes the samples of all frames in order, gives what is certain, LAG frames later. Bounded memory."""

    def __init__(self, first_frame: int = 0) -> None:
        self.frame_count = first_frame
        self._first = first_frame  # frame index of row 0 below; LAG frames before the unsettled ones are kept
        self._settled = first_frame
        self._dissolved = -1  # last frame of the last dissolve found
        self._blocks = np.empty((0, _BLOCKS), np.float32)
        self._empty = np.empty(0, np.bool_)
        self.change = np.empty(0, np.float32)  # (n,) from the frame before, of the frames since `first`

    @property
    def first(self) -> int:
        return self._first

    def push(self, samples: NDArray[np.uint8]) -> None:
        """The samples (n, 3456) of the next n frames."""
        blocks = block_means(samples)
        before = self._blocks[-1:] if len(self._blocks) else blocks[:1]
        change = distance(blocks, np.concatenate([before, blocks[:-1]]))
        self._blocks = np.concatenate([self._blocks, blocks])
        self._empty = np.concatenate([self._empty, is_empty(samples)])
        self.change = np.concatenate([self.change, change])
        self.frame_count += len(samples)

    def breaks(self, begin: int, end: int) -> list[int]:
        """Frames of begin..end - 1 that begin a shot or an empty stretch by a hard cut."""
        hard = self._hard_cuts(begin, end)
        rows = np.arange(begin, end) - self._first
        turned = self._empty[rows] != self._empty[np.maximum(rows - 1, 0)]
        return [begin + int(i) for i in np.flatnonzero(hard | turned)]

    def breaks_before(self, blocks: NDArray[np.float32]) -> bool:
        """Whether a frame with these block means (432,), after all those pushed, would begin a shot."""
        if not len(self._blocks):
            return True
        change = float(distance(blocks, self._blocks[-1]))
        usual = float(self.change[1:][-_NEIGHBOURS:].mean()) if len(self.change) > 1 else 0.0
        return change >= max(_CUT_LEVELS, _CUT_RATIO * (usual + 0.5))

    def unrest(self, begin: int, end: int) -> NDArray[np.float32]:
        """(end - begin,) how much each frame differs from both its neighbours in its shot, in levels."""
        rows = np.arange(begin, end) - self._first
        before, after = self.change[rows], self.change[np.minimum(rows + 1, len(self.change) - 1)]
        calm = np.minimum(before, after)  # the first and last frame of a shot have one neighbour in it
        return np.where(np.maximum(before, after) > _CUT_RATIO * (calm + 0.5), 2 * calm + 0.5, before + after)

    def settle(self, last: bool = False) -> Settled:
        """Everything that has become certain since the last call; with `last` all the rest."""
        begin, end = self._settled, self.frame_count if last else max(self._settled, self.frame_count - LAG)
        starts = self._hard_cuts(begin, end)
        rows = slice(begin - self._first, end - self._first)
        empty = self._empty[rows].copy()
        middles, between = self._dissolves(begin, end)
        starts[middles] = True
        starts &= ~empty
        settled = Settled(begin, starts, empty, between, self._blocks[rows].copy())
        self._settled = end
        spare = max(0, end - LAG - self._first)
        self._blocks, self._empty, self.change = self._blocks[spare:], self._empty[spare:], self.change[spare:]
        self._first += spare
        return settled

    def _hard_cuts(self, begin: int, end: int) -> NDArray[np.bool_]:
        found = np.zeros(end - begin, np.bool_)
        for i in begin + np.flatnonzero(self.change[begin - self._first : end - self._first] >= _CUT_LEVELS):
            found[i - begin] = self._is_hard_cut(int(i) - self._first)
        return found

    def _is_hard_cut(self, row: int) -> bool:
        change, blocks = self.change, self._blocks
        if row == 0:
            return False
        around = np.concatenate([change[max(1, row - _NEIGHBOURS) : row], change[row + 1 : row + 1 + _NEIGHBOURS]])
        usual = float(around.mean()) if len(around) else 0.0
        if change[row] < _CUT_RATIO * (usual + 0.5):
            return False
        close = _FLASH_SHARE * change[row]
        after = blocks[row + 1 : row + 1 + _FLASH_FRAMES]  # does the picture from before come back?
        before = blocks[max(0, row - 1 - _FLASH_FRAMES) : row - 1]  # is this the picture that comes back?
        flash = (distance(after, blocks[row - 1]) < close).any() or (distance(before, blocks[row]) < close).any()
        return not bool(flash)

    def _dissolves(self, begin: int, end: int) -> tuple[list[int], NDArray[np.bool_]]:
        """The middle frames of dissolves in begin..end - 1 (from begin), and which frames they cover."""
        between = np.zeros(end - begin, np.bool_)
        luma = self._blocks[:, : _ROWS * _COLUMNS]
        residues = np.full(end - begin, np.inf, np.float32)  # how far a frame is from halfway, as a share
        reaches = np.zeros(end - begin, np.int64)
        for reach in _DISSOLVE_REACHES:
            middles = np.arange(max(begin, self._first + reach), min(end, self.frame_count - reach)) - self._first
            before, after = luma[middles - reach], luma[middles + reach]
            apart = distance(before, after)
            if not (apart > _DISSOLVE_LEVELS).any():
                continue
            earlier = distance(luma[np.maximum(middles - 2 * reach, 0)], before)
            later = distance(luma[np.minimum(middles + 2 * reach, len(luma) - 1)], after)
            residue = distance(luma[middles], np.float32(0.5) * (before + after)) / (apart + 1e-6)
            fits = (
                (apart > _DISSOLVE_LEVELS)
                & (np.maximum(earlier, later) < _DISSOLVE_CALM * apart)
                & (residue < _DISSOLVE_RESIDUE)
                & (_alike(before, after) < _DISSOLVE_ALIKE)
                & ((np.abs(before - after) > _DISSOLVE_BLOCK).mean(axis=1) > _DISSOLVE_SHARE)
                & ~self._empty[middles - reach]
                & ~self._empty[middles + reach]
            )
            for row in np.flatnonzero(fits):
                i = int(middles[row]) + self._first - begin
                steepest = self.change[max(1, middles[row] - reach) : middles[row] + reach + 1].max()
                if residue[row] < residues[i] and steepest < apart[row] / 2:  # no hard cut within
                    residues[i], reaches[i] = residue[row], reach
        found: list[int] = []
        for i in np.argsort(residues):
            if not np.isfinite(residues[i]):
                break
            reach = int(reaches[i])
            if between[max(0, i - reach) : i + reach + 1].any() or begin + int(i) - reach <= self._dissolved:
                continue
            found.append(int(i))
            between[max(0, i - reach) : i + reach + 1] = True
        if found:
            self._dissolved = begin + max(i + int(reaches[i]) for i in found)
        return found, between


def _alike(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) correlation of block means: a picture that only brightens stays alike."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-6))
