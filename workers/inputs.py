"""What a model is given of a keyframe: its picture, what is heard or said with it, or the vector that it has by now."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from lookalike.errors import EmbedderError, MediaError
from lookalike.records import Embeddings, Keyframe
from lookalike.settings import Settings
from workers import captions, media, sound

if TYPE_CHECKING:
    from workers.embedders import Embedder

#: pictures, or sounds, in memory at a time while a file is embedded
_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that keyframes are of."""

    name: str  # its name, path or address, for people and to find its vectors by
    path: Path | None = None  # where it lies; None: it is not at hand
    task: int = -1  # Label Studio's, or -1
    pictures: bool = False  # it is a picture, not a film


def embed_keyframes(
    embedder: Embedder, frames: Sequence[Keyframe], folder: Path, origin: Origin, settings: Settings
) -> Embeddings:
    """Vectors of keyframes, (n, d) float32, whatever the model takes. `folder`: their pictures.

    Raises EmbedderError for a model that these files have nothing for, MediaError for a file that lacks it.
    """
    match embedder.takes:
        case "pictures":
            return embed_pictures(embedder, frames, folder)
        case "keyframes":
            found = embedder.file.of(frames, origin.name, origin.task)  # type: ignore[attr-defined]
            return Embeddings(found.keyframe_ids, found.vectors, embedder.name)
        case "text":
            return _embed_words(embedder, frames, origin)
        case _:
            return _embed_sound(embedder, frames, origin, settings)


def embed_pictures(embedder: Embedder, frames: Sequence[Keyframe], folder: Path) -> Embeddings:
    """Vectors of the keyframes' pictures, (n, d) float32, a few pictures in memory at a time.

    The next ones are read while the model is at work.
    """
    files = [folder / f"{frame.frame_index:07d}.jpg" for frame in frames]
    parts = [np.zeros((0, embedder.dim), np.float32)]
    some = max(_AT_A_TIME, 2 * getattr(embedder, "batch_size", 0))  # one batch is prepared while one is computed
    with ThreadPoolExecutor() as pool:
        coming = _reading(pool, files[:some])
        for at in range(0, len(files), some):
            pictures = [picture.result() for picture in coming]
            coming = _reading(pool, files[at + some : at + 2 * some])
            parts.append(embedder.embed(pictures))
    return _embeddings(embedder, frames, np.concatenate(parts))


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(h, w, 3) RGB."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise MediaError(f"the keyframe picture {path.name} is missing or broken; ask for the video again")
    return np.asarray(picture, dtype=np.uint8)


def _reading(pool: ThreadPoolExecutor, files: Sequence[Path]) -> list[Future[NDArray[np.uint8]]]:
    return [pool.submit(read_picture, file) for file in files]


def _embed_words(embedder: Embedder, frames: Sequence[Keyframe], origin: Origin) -> Embeddings:
    words = captions.read_captions(origin.name, origin.path)
    said = [words.at(window.first_s, window.last_s) for window in sound.windows(frames)]
    different = sorted(set(said))  # often there is one for the whole file
    row = {text: number for number, text in enumerate(different)}
    vectors = embedder.embed(different)
    return _embeddings(embedder, frames, vectors[[row[text] for text in said]])


def _embed_sound(embedder: Embedder, frames: Sequence[Keyframe], origin: Origin, settings: Settings) -> Embeddings:
    if origin.pictures:
        raise EmbedderError(f"{embedder.name} takes sound, and {origin.name} is a picture; choose a model of pictures")
    if origin.path is None:
        raise MediaError(f"{embedder.name} takes sound, and {origin.name} is not at hand; ask for the video again")
    windows = sound.windows(frames)
    heard = {(window.first_s, window.last_s): window for window in windows}  # keyframes of a short shot hear the same
    row = {span: number for number, span in enumerate(heard)}
    different = list(heard.values())
    parts = [np.zeros((0, embedder.dim), np.float32)]
    with tempfile.TemporaryDirectory(prefix="lookalike-sound-") as folder:
        media.run_guarded(
            sound.extract,
            origin.path,
            different,
            embedder.rate_hz,  # type: ignore[attr-defined]
            Path(folder),
            timeout_s=settings.decode_timeout_s,
            memory_mb=settings.decode_memory_mb,
        )
        for at in range(0, len(different), _AT_A_TIME):
            sounds = [sound.read(Path(folder), window) for window in different[at : at + _AT_A_TIME]]
            parts.append(embedder.embed(sounds))
    rows = [row[window.first_s, window.last_s] for window in windows]
    return _embeddings(embedder, frames, np.concatenate(parts)[rows])


def _embeddings(embedder: Embedder, frames: Sequence[Keyframe], vectors: NDArray[np.float32]) -> Embeddings:
    return Embeddings(np.asarray([frame.id for frame in frames], np.int64), vectors, embedder.name)
