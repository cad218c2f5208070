"""A film's sound track, cut where its pictures are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from lookalike.errors import MediaError
from lookalike.records import Keyframe
from workers.keyframes import FORMATS

#: what is heard around a keyframe, within its shot: as long as models of sound were trained on
HEARD_S = 10.0


@dataclass(frozen=True, slots=True)
class Window:
    """What is heard with one keyframe."""

    frame_index: int
    first_s: float
    last_s: float


def windows(frames: Sequence[Keyframe], heard_s: float = HEARD_S) -> list[Window]:
    """For each keyframe what of its shot lies within `heard_s` around it; of short shots that is all."""
    begins: dict[int, float] = {}
    ends: dict[int, float] = {}
    for frame in frames:
        begins[frame.shot] = min(begins.get(frame.shot, frame.time_s), frame.first_s)
        ends[frame.shot] = max(ends.get(frame.shot, frame.time_s), frame.last_s)
    found = []
    for frame in frames:
        begin, end = begins[frame.shot], ends[frame.shot]
        first = max(begin, min(frame.time_s - heard_s / 2, end - heard_s))
        found.append(Window(frame.frame_index, first, min(end, first + heard_s)))
    return found


def extract(path: Path, wanted: Sequence[Window], rate_hz: int, out: Path) -> bool:
    """Write what is heard in each window as `out/<frame_index, 7 digits>.npy`, (samples,) int16 mono at `rate_hz`.

    In one pass, holding no more than the windows that are open. Whether the file has sound at all: one without gives
    empty windows. Raises MediaError for what cannot be opened.
    """
    out.mkdir(parents=True, exist_ok=True)
    waiting = sorted(wanted, key=lambda window: window.first_s, reverse=True)
    open_now: list[tuple[Window, list[NDArray[np.int16]]]] = []
    heard = False
    for first_s, samples in _decoded(path, rate_hz):
        heard = True
        last_s = first_s + len(samples) / rate_hz
        while waiting and waiting[-1].first_s < last_s:
            open_now.append((waiting.pop(), []))
        for window, parts in open_now:
            begin = max(0, round((window.first_s - first_s) * rate_hz))
            end = max(0, round((window.last_s - first_s) * rate_hz))
            parts.append(samples[begin:end].copy())
        over = [entry for entry in open_now if entry[0].last_s <= last_s]
        open_now = [entry for entry in open_now if entry[0].last_s > last_s]
        for window, parts in over:
            _write(out, window, parts)
        if not waiting and not open_now:
            break
    for window, parts in (*open_now, *((window, []) for window in waiting)):
        _write(out, window, parts)
    return heard


def read(folder: Path, window: Window) -> NDArray[np.float32]:
    """(samples,) float32 mono, -1..1, of what `extract` wrote."""
    samples: NDArray[np.int16] = np.load(folder / f"{window.frame_index:07d}.npy", allow_pickle=False)
    return samples.astype(np.float32) / np.float32(32768)


def _write(out: Path, window: Window, parts: list[NDArray[np.int16]]) -> None:
    samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
    np.save(out / f"{window.frame_index:07d}.npy", samples)


def _decoded(path: Path, rate_hz: int) -> Iterator[tuple[float, NDArray[np.int16]]]:
    """(seconds from the start of the film, (samples,) int16 mono) piece by piece; what is damaged is passed over."""
    try:
        container = av.open(str(path), options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{path.name} cannot be opened: {error}") from None
    with container:
        if not container.streams.audio:
            return
        stream = container.streams.audio[0]
        pictures = [s.start_time * s.time_base for s in container.streams.video if s.start_time is not None]
        start_s = float(min(pictures, default=0))
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
        at_s: float | None = None
        for frame in _frames(container, stream):
            if frame.time is not None and (at_s is None or abs(frame.time - start_s - at_s) > 0.1):
                at_s = float(frame.time) - start_s  # a gap, or the start
            frame.pts = None  # the resampler would fill gaps as it likes
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray().reshape(-1)
                yield at_s or 0.0, samples
                at_s = (at_s or 0.0) + len(samples) / rate_hz


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        try:
            yield from packet.decode()
        except (av.error.FFmpegError, EOFError):
            continue
