"""A clip whose hard cuts are known, because it is spliced from real ones: to measure how many are found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_SIZE = (640, 360)
_FRAMES_PER_SOURCE = 200
_SHOT = (15, 90)  # frames
_STEP = 15.0  # mean levels: what only a cut changes from one frame to the next
_DRIFT = 12.0  # what a stretch changes from its begin to its end, unless it has a dissolve or a fade in it
_DIFFERENT = 25.0  # two pictures that nobody would call the same shot
_DARK = 25.0  # mean level: black stretches are no shots


def splice(sources: Sequence[Path], out: Path, shots: int = 60, seed: int = 0) -> list[int]:
    """Write `out` (x264, its default settings, 25 frames/s) with this many shots; the first frame of all but the first.

    Each shot is a stretch of a source that has no cut, dissolve, fade or black of its own; neighbours differ by at
    least 25 levels.
    """
    random_ = random.Random(seed)
    stretches = [stretch for source in sources for stretch in _calm_stretches(source)]
    cuts: list[int] = []
    count = 0
    last: NDArray[np.uint8] | None = None
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        while len(cuts) < shots - 1:
            frames = random_.choice(stretches)
            length = min(len(frames), random_.randint(*_SHOT))
            begin = random_.randint(0, len(frames) - length)
            chosen = frames[begin : begin + length]
            if _distance(chosen[0], chosen[-1]) > _DRIFT or chosen[0].mean() < _DARK:
                continue
            if last is not None and _distance(last, chosen[0]) < _DIFFERENT:
                continue
            if last is not None:
                cuts.append(count)
            for picture in chosen:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            count += length
            last = chosen[-1]
        container.mux(stream.encode(None))
    return cuts


def recall(found: Sequence[int], true: Sequence[int], tolerance: int = 2) -> float:
    """Share of the true cuts that have a found one within `tolerance` frames."""
    if not true:
        return 1.0
    return sum(any(abs(cut - f) <= tolerance for f in found) for cut in true) / len(true)


def _calm_stretches(path: Path) -> list[list[NDArray[np.uint8]]]:
    stretches: list[list[NDArray[np.uint8]]] = [[]]
    with suppress(av.error.FFmpegError), av.open(str(path)) as container:  # a damaged clip gives what it can
        for number, frame in enumerate(container.decode(video=0)):
            if number == _FRAMES_PER_SOURCE:
                break
            picture = frame.reformat(*_SIZE, "rgb24").to_ndarray()
            if stretches[-1] and _distance(stretches[-1][-1], picture) > _STEP:
                stretches.append([])
            stretches[-1].append(picture)
    return [stretch for stretch in stretches if len(stretch) >= _SHOT[0]]


def _distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a[::8, ::8].astype(np.int16) - b[::8, ::8]).mean())
