"""Small video files made on the spot, with cuts known by construction.

    cuts = make_clip(tmp_path / "a.mp4", [Scene(40, seed=1), Scene(30, seed=2, motion=3), BLACK(10)])

Pictures are drawn from a seed: textured, coloured, different from each other, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (height, width, 3), RGB

_MARGIN = 1.5  # a scene is drawn larger than the clip, so that the view can move over it


@dataclass(frozen=True)
class Scene:
    """Some frames of one picture."""

    frames: int
    seed: int = 0  # which picture
    motion: float = 0.0  # px per frame that the view moves
    dissolve: int = 0  # of its frames, how many blend over from the scene before
    blur_px: float = 0.0  # Gaussian sigma
    level: int | None = None  # a flat grey of this level instead of a picture
    fade: int = 0  # frames over which it comes out of black and goes back into it


def BLACK(frames: int) -> Scene:
    return Scene(frames, level=0)


def make_clip(
    path: Path,
    scenes: Sequence[Scene],
    *,
    size: tuple[int, int] = (320, 180),  # width, height as coded
    interlaced: bool = False,
    **how: Any,  # see write_clip
) -> tuple[int, ...]:
    """Write a clip; the first frame of each scene but the first. No scenes and `audio=True`: sound alone."""
    pictures = frames_of(scenes, size, per_frame=2 if interlaced else 1)
    write_clip(path, _weave(pictures) if interlaced else pictures, size=size, interlaced=interlaced, **how)
    return tuple(int(start) for start in np.cumsum([scene.frames for scene in scenes])[:-1])


def write_clip(
    path: Path,
    pictures: Iterable[Picture],
    *,
    size: tuple[int, int] = (320, 180),
    fps: Fraction | int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,  # of the encoder
    times_ms: Sequence[int] | None = None,  # one per frame: a variable frame rate
    rotation: int = 0,  # degrees, counter-clockwise, as a phone writes it
    sample_aspect: Fraction | None = None,
    interlaced: bool = False,
    audio: bool = False,
) -> None:
    """Encode pictures of one size."""
    unit = Fraction(1, 1000) if times_ms else 1 / Fraction(fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = None
        sound = container.add_stream("aac", rate=16000) if audio else None
        for i, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
                stream.options = _encoder_options(codec, interlaced) | (options or {})
                stream.codec_context.time_base = unit
                if sample_aspect:
                    stream.codec_context.sample_aspect_ratio = sample_aspect
                if rotation:
                    stream.set_display_rotation(rotation)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = times_ms[i] if times_ms else i, unit
            container.mux(stream.encode(frame))
        if sound:
            _write_silence(container, sound)
        if stream is not None:
            container.mux(stream.encode(None))


def frames_of(scenes: Sequence[Scene], size: tuple[int, int], per_frame: int = 1) -> Iterator[Picture]:
    """The pictures of a clip, one after the other; `per_frame` moments in each frame (2: fields)."""
    before: Picture | None = None
    for scene in scenes:
        picture: Picture | None = None
        for i in range(scene.frames * per_frame):
            moment = i / per_frame
            picture = _view(scene, size, moment)
            if moment < scene.dissolve and before is not None:
                share = (moment + 1) / (scene.dissolve + 1)
                picture = cv2.addWeighted(picture, share, before, 1 - share, 0)
            if scene.fade:
                light = min(1.0, moment / scene.fade, (scene.frames - 1 - moment) / scene.fade)
                picture = (picture * max(0.0, light)).astype(np.uint8)
            yield picture
        before = picture


def numbered(count: int, size: tuple[int, int] = (320, 180)) -> list[Picture]:
    """`count` pictures that say their own number as a 16-bit bar code, see `number_of`."""
    return [_with_number(i, size) for i in range(count)]


def number_of(picture: Picture) -> int:
    """The number that a picture of `numbered` says, after encoding, scaling or turning upright."""
    height, width = picture.shape[:2]
    grey = picture.mean(axis=2)
    bits = [grey[height // 2, int((k + 0.5) * width / 16)] > 127 for k in range(16)]
    return sum(1 << k for k, bit in enumerate(bits) if bit)


def _with_number(number: int, size: tuple[int, int]) -> Picture:
    width, height = size
    picture = _canvas(number % 5, size)[:height, :width].copy()
    for k in range(16):
        left, right = k * width // 16, (k + 1) * width // 16
        picture[height // 4 : 3 * height // 4, left:right] = 235 if number >> k & 1 else 20
    return picture


def _view(scene: Scene, size: tuple[int, int], moment: float) -> Picture:
    width, height = size
    if scene.level is not None:
        return np.full((height, width, 3), scene.level, np.uint8)
    canvas = _canvas(scene.seed, size)
    way = scene.motion * moment
    x = _to_and_fro(way, canvas.shape[1] - width)
    y = _to_and_fro(way * 0.6, canvas.shape[0] - height)
    picture = canvas[y : y + height, x : x + width].copy()
    return cv2.GaussianBlur(picture, (0, 0), scene.blur_px) if scene.blur_px else picture


def _to_and_fro(way: float, room: int) -> int:
    place = int(way) % (2 * room) if room else 0
    return min(place, 2 * room - place)


@lru_cache(maxsize=64)
def _canvas(seed: int, size: tuple[int, int]) -> Picture:
    """A picture with large and small shapes and some texture."""
    random = np.random.default_rng(seed)
    width, height = (int(side * _MARGIN) for side in size)
    corners = random.integers(30, 220, (2, 2, 3)).astype(np.uint8)
    canvas = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(24):
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        x, y = int(random.integers(0, width)), int(random.integers(0, height))
        reach = int(random.integers(height // 16, height // 3))
        if random.random() < 0.5:
            cv2.circle(canvas, (x, y), reach // 2, colour, -1)
        else:
            cv2.rectangle(canvas, (x, y), (x + reach, y + reach // 2), colour, -1)
    texture = cv2.resize(random.integers(-20, 21, (height // 2, width // 2, 1)).astype(np.float32), (width, height))
    return np.clip(canvas + texture[..., None], 0, 255).astype(np.uint8)


def _weave(fields: Iterator[Picture]) -> Iterator[Picture]:
    """Two moments into one frame: even lines of the first, odd lines of the second."""
    for first in fields:
        frame, second = first.copy(), next(fields)
        frame[1::2] = second[1::2]
        yield frame


def _encoder_options(codec: str, interlaced: bool) -> dict[str, str]:
    chosen = {"preset": "veryfast", "crf": "20"} if codec in ("libx264", "libx265") else {}
    return chosen | ({"flags": "+ildct+ilme"} if interlaced else {})


def _write_silence(container: Any, stream: Any) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
