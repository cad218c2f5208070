"""From a decoded frame to a picture, and to the few numbers that say what is on it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from workers import shots

Picture = NDArray[np.uint8]  # (height, width, 3), BGR

_COMB = 300  # squared levels
_UNSPECIFIED = 2  # a colour space that nobody has named, see ITU-T H.273

#: planar formats whose samples can be read in place: bits per sample
_PLANAR = {f"yuv{j}{s}p": 8 for s in (420, 422, 444) for j in ("", "j")} | {
    f"yuv{s}p{bits}le": bits for s in (420, 422, 444) for bits in (10, 12)
}


def fingerprint(picture: Picture) -> int:
    """64 bits that differ in few places between pictures that look alike (difference hash), as a signed number.

    Each bit says whether one of 8 x 9 block means of the grey picture is brighter than its left neighbour.
    """
    small = cv2.resize(coarse(picture), (9, 8), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big", signed=True)


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a grey picture (Pech-Pacheco et al. 2000). Its mean is 0 but for the border."""
    return float(cv2.norm(cv2.Laplacian(grey, cv2.CV_16S)) ** 2 / grey.size)


def coarse(picture: Picture) -> Picture:
    """Every k-th point, about 160 x 90 of them: the mean of all takes 20 times as long and hardly differs."""
    return np.ascontiguousarray(picture[:: max(1, picture.shape[0] // 90), :: max(1, picture.shape[1] // 160)])


def upright(frame: Any, aspect: Fraction, width_px: int) -> Picture:
    """Upright, with square pixels, without combs, at most `width_px` wide, BGR."""
    hd = frame.colorspace == _UNSPECIFIED and frame.height >= 720  # players take HD for BT.709 if nothing is said
    picture = np.asarray(frame.to_ndarray(format="bgr24", src_colorspace="ITU709" if hd else None, threads=1))
    if frame.interlaced_frame:
        _comb_out(picture)
    picture = np.rot90(picture, round(frame.rotation / 90))
    width, height = shown_size(frame, aspect)
    if width > width_px:
        width, height = width_px, max(1, round(height * width_px / width))
    if picture.shape[:2] != (height, width):
        smaller = width * height < picture.shape[0] * picture.shape[1]
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.ascontiguousarray(picture)


def shown_size(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) of a decoded frame turned upright with square pixels."""
    size = max(1, round(frame.width * aspect)), int(frame.height)
    return (size[1], size[0]) if round(frame.rotation / 90) % 2 else size


def _comb_out(picture: Picture) -> None:
    """Where an odd line differs from both its neighbours to the same side, take their mean: spatial deinterlacing."""
    above = picture[0:-2:2].astype(np.int16)
    below = picture[2::2].astype(np.int16)
    odd = picture[1:-1:2]
    combed = ((odd - above) * (odd - below).clip(-100, 100)).max(axis=2, keepdims=True) > _COMB
    np.copyto(odd, ((above + below) >> 1).astype(np.uint8), where=combed)


def luma(frame: Any) -> NDArray[np.uint8]:
    """(height, width) uint8: a view of the frame's own memory where its format allows."""
    depth = _PLANAR.get(frame.format.name)
    if depth is None:
        frame, depth = frame.reformat(format="gray"), 8
    return _points(frame.planes[0], depth, (frame.height, frame.width), 0, 0, 1, 1)


class Sampler:
    """Reads few points of each frame out of its planes: converting a frame would cost more than decoding it."""

    def __init__(self) -> None:
        self._format: tuple[int, int, str] | None = None
        self._depth: int | None = None
        self._grids: list[tuple[tuple[int, int], int, int, int, int]] = []  # shape, top, left, down, right per plane

    def sample(self, frames: list[Any]) -> NDArray[np.uint8]:
        """(n, shots.SAMPLES) uint8 of n frames."""
        samples = np.empty((len(frames), shots.SAMPLES), np.uint8)
        for row, frame in zip(samples, frames, strict=True):
            if self._format != (frame.width, frame.height, frame.format.name):
                self._lay_grids(frame)
            if self._depth is None:
                frame = frame.reformat(2 * shots.LUMA[1], 2 * shots.LUMA[0], "yuv420p")
            begin = 0
            for plane, (shape, top, left, down, right) in zip(frame.planes, self._grids, strict=False):
                end = begin + shape[0] * shape[1]
                row[begin:end] = _points(plane, self._depth or 8, shape, top, left, down, right).ravel()
                begin = end
        return samples

    def _lay_grids(self, frame: Any) -> None:
        """Evenly over each plane; a format that cannot be read in place, or a tiny frame, is converted first."""
        self._format = frame.width, frame.height, frame.format.name
        self._depth = _PLANAR.get(frame.format.name)
        if frame.width < 2 * shots.LUMA[1] or frame.height < 2 * shots.LUMA[0]:
            self._depth = None
        if self._depth is None:
            frame = frame.reformat(2 * shots.LUMA[1], 2 * shots.LUMA[0], "yuv420p")
        self._grids = []
        for plane, (rows, columns) in zip(frame.planes, (shots.LUMA, shots.CHROMA, shots.CHROMA), strict=True):
            down, right = plane.height // rows, plane.width // columns
            top, left = (plane.height - (rows - 1) * down) // 2, (plane.width - (columns - 1) * right) // 2
            self._grids.append(((rows, columns), top, left, down, right))


def _points(
    plane: Any, depth: int, shape: tuple[int, int], top: int, left: int, down: int, right: int
) -> NDArray[np.uint8]:
    """Every `down`-th line and `right`-th point of a plane, as 8 bits."""
    if depth == 8:
        offset, strides = top * plane.line_size + left, (down * plane.line_size, right)
        return np.ndarray(shape, np.uint8, plane, offset, strides)
    offset, strides = top * plane.line_size + 2 * left, (down * plane.line_size, 2 * right)
    return (np.ndarray(shape, "<u2", plane, offset, strides) >> (depth - 8)).astype(np.uint8)
