"""A clip whose hard cuts are known, because it is spliced from real ones: to measure how many are found."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
_TRIES = 1000  # for one shot; sources that have two different stretches need 2 to 20


def splice(sources: Sequence[Path], out: Path, shots: int = 60, seed: int = 0) -> list[int]:
    """Write `out` (x264, its default settings, 25 frames/s) with this many shots; the first frame of all but the first.

    Each shot is a stretch of a source that has no cut, dissolve, fade or black of its own; neighbours differ by at
    least 25 levels. Raises ValueError, with nothing written, for sources that do not have such shots.
    """
    chosen = list(_choose(sources, shots, random.Random(seed)))
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        for picture in (picture for shot in chosen for picture in shot):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return [int(end) for end in np.cumsum([len(shot) for shot in chosen])[:-1]]


def recall(found: Sequence[int], true: Sequence[int], tolerance: int = 2) -> float:
    """Share of the true cuts that have a found one within `tolerance` frames."""
    if not true:
        return 1.0
    return sum(any(abs(cut - f) <= tolerance for f in found) for cut in true) / len(true)


def _choose(sources: Sequence[Path], shots: int, random_: random.Random) -> Iterator[Sequence[NDArray[np.uint8]]]:
    stretches = [stretch for source in sources for stretch in _calm_stretches(source)]
    last: NDArray[np.uint8] | None = None
    for _ in range(shots):
        for _ in range(_TRIES if stretches else 0):
            frames = random_.choice(stretches)
            length = min(len(frames), random_.randint(*_SHOT))
            begin = random_.randint(0, len(frames) - length)
            shot = frames[begin : begin + length]
            if _distance(shot[0], shot[-1]) > _DRIFT or shot[0].mean() < _DARK:
                continue
            if last is None or _distance(last, shot[0]) >= _DIFFERENT:
                break
        else:
            raise ValueError(
                f"shots to splice must be calm and differ by {_DIFFERENT:g} levels, and {len(sources)} clips have no "
                "two of that kind in turn; name more, or more different, clips"
            )
        last = shot[-1]
        yield shot


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
