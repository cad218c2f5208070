"""Questions answered: the vector of a picture, of a region of a keyframe, or of words that people search by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import MediaError, RequestError
from lookalike.questions import Question
from lookalike.settings import Settings
from workers import media, stills
from workers.inputs import read_picture
from workers.keyframes import KeyframeOptions

if TYPE_CHECKING:
    from workers.embedders import Embedder

Picture = NDArray[np.uint8]  # (h, w, 3) RGB

#: a region below this has too little in it to look like anything
_LEAST_PX = 8
_DECODE_WITHIN_S = 20.0


def vector_of(
    question: Question, embedder: Embedder, settings: Settings, picture_of: Callable[[int], Path]
) -> NDArray[np.float32]:
    """(d,) float32, not normalised. picture_of: keyframe id -> its picture.

    Raises MediaError, EmbedderError or RequestError where there is none, with the reason.
    """
    if question.kind == "text":
        return _row(embedder.embed_text([question.content.decode()]))
    if embedder.takes != "pictures":
        raise RequestError(
            f"embedder {embedder.name} takes {embedder.takes}, no pictures; search by a keyframe instead"
        )
    if question.kind == "image":
        return _row(embedder.embed([read_uploaded(question.content, settings)]))
    keyframe, box = question.region
    return _row(embedder.embed([crop(read_picture(picture_of(keyframe)), box)]))


def read_uploaded(content: bytes, settings: Settings) -> Picture:
    """A picture's file, of unknown origin. Raises MediaError."""
    with tempfile.NamedTemporaryFile(prefix="lookalike-question-") as file:
        file.write(content)
        file.flush()
        try:
            return read_file(Path(file.name), settings)
        except MediaError as error:  # it knows the name of our copy
            raise type(error)(str(error).replace(Path(file.name).name, "the picture")) from error


def read_file(path: Path, settings: Settings) -> Picture:
    """A picture, decoded in a guarded child. Raises MediaError."""
    with tempfile.TemporaryDirectory(prefix="lookalike-question-") as folder:
        media.run_guarded(
            stills.extract,
            path,
            0,
            Path(folder),
            KeyframeOptions.of(settings),
            timeout_s=min(_DECODE_WITHIN_S, settings.decode_timeout_s),
            memory_mb=settings.decode_memory_mb,
        )
        return read_picture(Path(folder, "0000000.jpg"))


def crop(picture: Picture, box: tuple[float, float, float, float]) -> Picture:
    """box: x, y, width, height as shares of the picture. Raises RequestError for one outside of it, or too small."""
    height, width = picture.shape[:2]
    left, top = round(box[0] * width), round(box[1] * height)
    right, bottom = round((box[0] + box[2]) * width), round((box[1] + box[3]) * height)
    part = picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    if min(part.shape[:2]) < _LEAST_PX:
        raise RequestError(
            f"the region is {part.shape[1]} x {part.shape[0]} pixels of a picture of {width} x {height}; "
            f"choose one of at least {_LEAST_PX} x {_LEAST_PX}"
        )
    return part


def _row(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors[0], np.float32)
