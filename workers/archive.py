"""Many files through keyframes and embedding, each once: what is known of a file is kept until the file changes.

Files are decoded in guarded children, several at a time, while this process makes thumbnails and embeds those that are
done. Everything is written beside its place and then renamed: whenever we are stopped, what is there is whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lookalike import __version__
from lookalike.errors import LookalikeError, SetupError
from lookalike.models import VECTOR_FILES
from lookalike.records import Extraction, Json, Keyframe, VideoFacts
from lookalike.settings import Settings
from workers import keyframes, media, sheet, stills
from workers.embedders import Embedder, open_embedder
from workers.inputs import Origin, embed_keyframes

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Source:
    """A file to work on."""

    path: Path  # absolute
    name: str  # for people: relative to the common folder
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """What was found below the paths that a person named."""

    folder: Path  # that has all of them in it
    sources: tuple[Source, ...]  # each once, in the order of their names
    refused: tuple[tuple[str, str], ...]  # (name, why) of each path that gives nothing


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a file."""

    source: Source
    extraction: Extraction | None = None  # None: it failed
    vectors: NDArray[np.float16] | None = None  # (n, d), one per keyframe
    number: int = 0  # the video_id of its keyframes, once all files have one
    error: str = ""
    cpu_s: Mapping[str, float] = field(default_factory=dict)  # by stage
    kept: bool = False  # known from an earlier run

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        return self.extraction.keyframes if self.extraction else ()

    @property
    def trouble(self) -> str:
        """The error, to be said after the file's name."""
        return self.error.removeprefix(f"{self.source.path.name} ")


def find_sources(paths: Sequence[Path], suffixes: Sequence[str], skip: Path, *, advice: str = "") -> Found:
    """Files as named, and those with the suffixes in folders and below. `skip`: a folder that is not looked into;
    `advice`: what else may be done about a folder without any.

    Names that begin with a dot are passed over in folders (macOS leaves `._clip.mp4` behind). A link to a file counts
    as the file; links to folders are not followed.
    """
    named = [Path(os.path.abspath(path)) for path in paths]
    folder = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in named]))
    skipped = skip.resolve()
    files: dict[Path, Path] = {}
    refused = []
    for path in named:
        if not path.is_dir():
            files.setdefault(path.resolve(), path)
            continue
        inside = list(_files_below(path, suffixes, skipped))
        for file in inside:
            files.setdefault(file.resolve(), file)
        if not inside:
            refused.append(
                (_name(path, folder), f"is a folder without any of {', '.join(suffixes)}; name another{advice}")
            )
    sources = []
    for path in sorted(files.values()):
        try:
            status = path.stat()
            sources.append(Source(path, _name(path, folder), status.st_size, status.st_mtime_ns))
        except OSError as error:
            refused.append((_name(path, folder), f"cannot be opened: {(error.strerror or 'no such file').lower()}"))
    return Found(folder, tuple(sources), tuple(refused))


class Archive:
    """The folder of results, as far as single files go: `keyframes/`, `thumbs/` and what is known in `videos/`."""

    def __init__(self, out: Path, settings: Settings, *, pictures: bool = False, embed: bool = True) -> None:
        """`pictures`: the files are pictures, each its own keyframe. `embed`: whether vectors are wanted too."""
        self.out, self.settings, self.pictures, self.embed = out, settings, pictures, embed
        self.options = keyframes.KeyframeOptions.of(settings)
        for name in ("keyframes", "thumbs", "videos"):
            try:
                (out / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SetupError(f"{out / name} cannot be made: {error.strerror}; choose another --out") from None

    @functools.cached_property
    def embedder(self) -> Embedder:
        settings = self.settings
        return open_embedder(
            settings.embedder,
            device=settings.device,
            batch_size=settings.batch_size,
            inference=settings.inference,
            cache_dir=self.out / "models",
        )

    def picture(self, source: Source, keyframe: Keyframe, folder: str = "keyframes") -> str:
        """Path of a keyframe's picture, or with "thumbs" of its thumbnail, relative to the folder of results."""
        return f"{folder}/{self.folder(source)}/{keyframe.frame_index:07d}.jpg"

    def folder(self, source: Source) -> str:
        """A name that is the file's alone, and safe in any file system and address."""
        digest = hashlib.sha256(os.fsencode(source.path)).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', source.path.name)[-80:].lstrip('.')}-{digest}"

    def load(self, source: Source) -> Result | None:
        """What is known of a file, unless it or the options have changed since, or a picture is missing."""
        try:
            with np.load(self._file(source), allow_pickle=False) as known:
                meta, vectors = json.loads(str(known["meta"])), known["vectors"]
            if meta["key"] != self._key(source):
                return None
            extraction = _extraction(meta["extraction"])
            if meta["embedder"] != self.model:
                vectors = None  # the pictures are there: only they are to be embedded again
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None
        for keyframe in extraction.keyframes:
            for kind in ("keyframes", "thumbs"):
                if not (self.out / self.picture(source, keyframe, kind)).is_file():
                    return None
        return Result(source, extraction, vectors, cpu_s=meta["cpu_s"], kept=vectors is not None or not self.embed)

    def save(self, result: Result) -> None:
        assert result.extraction is not None
        assert result.vectors is not None
        meta = {
            "key": self._key(result.source),
            "embedder": self.model if self.embed else "",
            "extraction": asdict(result.extraction),
            "cpu_s": dict(result.cpu_s),
        }
        save_npz(self._file(result.source), meta=json.dumps(meta, default=_plain), vectors=result.vectors)

    def _file(self, source: Source) -> Path:
        return self.out / "videos" / f"{self.folder(source)}.npz"

    @property
    def model(self) -> str:
        """The model's name; of vectors made elsewhere, which version of the file."""
        name = self.settings.embedder
        if not name.endswith(VECTOR_FILES):
            return name
        file = Path(name).expanduser().stat()
        return f"{name} of {file.st_size} bytes, {file.st_mtime_ns}"

    def _key(self, source: Source) -> Json:
        return {
            "lookalike": __version__,
            "size_bytes": source.size_bytes,
            "mtime_ns": source.mtime_ns,
            "pictures": self.pictures,
            **asdict(self.options),
        }


def work_through(sources: Sequence[Source], archive: Archive, workers: int) -> list[Result]:
    """Every file's result, in their order. `workers`: files decoded at a time.

    A file that fails is a result too. Raises SetupError where the disk is full and EmbedderError where the model
    cannot be had; what was done until then is kept, as it is when a person interrupts.
    """
    results = {source: result for source in sources if (result := archive.load(source)) and result.kept}
    new = [source for source in sources if source not in results]
    total = sum(source.size_bytes for source in new)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, unit="B", unit_scale=True, desc=f"{len(new)} new", disable=None if new else True) as bar,
    ):
        waiting = {pool.submit(_find_keyframes, source, archive): source for source in new}
        try:
            while waiting:
                done, _ = wait(waiting, _LOOK_EVERY_S, FIRST_COMPLETED)
                for future in done:
                    source = waiting.pop(future)
                    results[source] = result = _finish(source, future, archive)
                    if result.error:
                        bar.write(f"{source.name}: {result.trouble}", file=sys.stderr)
                finished = sum(source.size_bytes for source in new if source in results)
                begun = sum(_share_done(source, archive) * source.size_bytes for source in waiting.values())
                bar.update(max(0, int(finished + begun) - bar.n))
        except BaseException:
            _stop(pool, list(waiting))
            raise
    return [results[source] for source in sources]


def save_npz(path: Path, **arrays: Any) -> None:
    """`numpy.savez`, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


# --- one file ---


def _find_keyframes(source: Source, archive: Archive) -> Extraction:
    """In a thread: the file's keyframes, their pictures in their place."""
    known = archive.load(source)  # embedded by another model
    if known and known.extraction:
        return known.extraction
    settings = archive.settings
    free_mb = shutil.disk_usage(archive.out).free / 1e6
    if free_mb < settings.disk_free_mb:
        raise SetupError(
            f"{archive.out} has {free_mb:.0f} MB free and LOOKALIKE_DISK_FREE_MB asks for "
            f"{settings.disk_free_mb:g}; make room, "
            "then run the same command again: it goes on from here"
        )
    place = archive.out / "keyframes" / archive.folder(source)
    part = _part(source, archive)
    shutil.rmtree(part, ignore_errors=True)
    try:
        if archive.pictures:
            extraction = stills.extract(source.path, 0, part, archive.options)
        else:
            extraction = media.run_guarded(
                keyframes.extract,
                source.path,
                0,
                part,
                archive.options,
                functools.partial(np.save, part / "share.npy"),  # how far it is: read by _share_done
                timeout_s=settings.decode_timeout_s,
                memory_mb=settings.decode_memory_mb,
            )
            (part / "share.npy").unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return extraction


def _finish(source: Source, future: Future[Extraction], archive: Archive) -> Result:
    """Thumbnails and vectors of a file whose keyframes were found; the edge where its errors become a result."""
    embedder = archive.embedder if archive.embed else None  # without a model no file can be done
    try:
        extraction = future.result()
        cpu_s = dict(extraction.seconds)
        with _cpu(cpu_s, "thumbnails"):
            shutil.rmtree(archive.out / "thumbs" / archive.folder(source), ignore_errors=True)
            for keyframe in extraction.keyframes:
                picture, thumbnail = (archive.picture(source, keyframe, kind) for kind in ("keyframes", "thumbs"))
                sheet.write_thumbnail(archive.out / picture, archive.out / thumbnail)
        vectors = np.zeros((len(extraction.keyframes), 0), np.float16)
        if embedder is not None:
            with _cpu(cpu_s, "embedding"):
                folder = archive.out / "keyframes" / archive.folder(source)
                origin = Origin(source.name, source.path, pictures=archive.pictures)
                found = embed_keyframes(embedder, extraction.keyframes, folder, origin, archive.settings)
                vectors = found.vectors.astype(np.float16)
        result = Result(source, extraction, vectors, cpu_s=cpu_s)
        archive.save(result)
        return result
    except SetupError:
        raise
    except LookalikeError as error:
        return Result(source, error=str(error))
    except Exception as error:  # a bug met by one file does not end a night's work; it is told, and in the report
        return Result(source, error=f"unforeseen, please report it: {type(error).__name__}: {error}")


def _part(source: Source, archive: Archive) -> Path:
    return archive.out / "keyframes" / f"{archive.folder(source)}.part"


def _share_done(source: Source, archive: Archive) -> float:
    """How far the child at work on this file is, 0..1."""
    try:
        return float(np.load(_part(source, archive) / "share.npy"))
    except (OSError, ValueError, EOFError):
        return 0.0  # not begun, or just being written


def _stop(pool: ThreadPoolExecutor, futures: Sequence[Future[Extraction]]) -> None:
    """End the children at once: each of our threads waits for one, and we for the threads."""
    pool.shutdown(wait=False, cancel_futures=True)
    while any(not future.done() for future in futures):
        for child in multiprocessing.active_children():
            child.kill()
        wait(futures, 0.1)


def _plain(value: Any) -> Any:
    """What JSON has no form for: rates, and numpy's numbers."""
    return str(value) if isinstance(value, Fraction) else value.item()


def _extraction(meta: Json) -> Extraction:
    facts = meta["facts"] | {"fps": Fraction(meta["facts"]["fps"])}
    return Extraction(
        VideoFacts(**facts),
        tuple(Keyframe(**keyframe) for keyframe in meta["keyframes"]),
        tuple(meta["cuts"]),
        tuple(meta["fingerprints"]),
        meta["seconds"],
    )


@contextmanager
def _cpu(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begun = time.process_time()
    yield
    seconds[stage] = time.process_time() - begun


# --- finding files ---


def _files_below(folder: Path, suffixes: Sequence[str], skipped: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and Path(place, name).resolve() != skipped]
        for name in names + folders:  # a folder named like a video is told of, and looked into too
            if name[0] != "." and name.lower().endswith(tuple(suffixes)):
                yield Path(place, name)


def _name(path: Path, folder: Path) -> str:
    """A path for people: relative to the common folder, anything that is no Unicode replaced."""
    relative = os.path.relpath(path, folder)
    return os.fsencode(path.name if relative == "." else relative).decode(errors="replace")
