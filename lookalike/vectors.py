"""Vectors that were made elsewhere: an `.npz` or a Parquet file with one row per vector.

    vector     (n, d) numbers; in an .npz the array may be called vectors or X as well
    path       which file a row is of: its name, or as much of the end of its path as tells it from others
    task       or which of Label Studio's tasks, by its number
    time_s     when in the video, where a file has more than one row
    label      its category, for `lookalike evaluate`; in an .npz it may be called y, with `classes` if y are numbers

An `embeddings.npz` of `lookalike prelabel` is such a file too.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import MediaError, RequestError, SetupError
from lookalike.records import Embeddings, Keyframe

#: a row may be this far outside the span of the keyframe that it is given to
_NEAR_S = 1.0
#: what Label Studio puts before the name of a file that is uploaded
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


@dataclass(frozen=True, slots=True)
class VectorFile:
    """What such a file holds; empty strings, -1 and NaN where it does not say."""

    path: Path
    vectors: NDArray[np.float32]  # (n, d), finite
    files: tuple[str, ...]  # (n,)
    tasks: NDArray[np.int64]  # (n,)
    times_s: NDArray[np.float64]  # (n,)
    labels: tuple[str, ...]  # (n,) or ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises RequestError with what is missing or wrong, SetupError where reading Parquet needs a package."""
        columns = _parquet(path) if path.suffix == ".parquet" else _npz(path)
        vectors = columns["vector"]
        if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fiu":
            raise RequestError(f"{path}: the vectors must be (n, d) numbers, got {vectors.shape} {vectors.dtype}")
        n = len(vectors)
        for name, values in columns.items():
            if len(values) != n:
                raise RequestError(f"{path}: {name} must have a row for each of the {n} vectors, it has {len(values)}")
        vectors = vectors.astype(np.float32)
        if not (sound := np.isfinite(vectors).all(axis=1)).all():
            raise RequestError(f"{path}: vectors must be finite, row {int(sound.argmin())} has NaN or infinity")
        try:
            return cls(
                path,
                vectors,
                tuple(_path_of(str(file)) for file in columns.get("path", [""] * n)),
                np.asarray(columns.get("task", np.full(n, -1)), np.int64),
                np.asarray(columns.get("time_s", np.full(n, np.nan)), np.float64),
                tuple(str(label) for label in columns.get("label", ())),
            )
        except (TypeError, ValueError) as error:
            raise RequestError(f"{path}: task must be whole numbers and time_s seconds: {error}") from None

    def of(self, frames: Sequence[Keyframe], name: str, task: int = -1) -> Embeddings:
        """The keyframes' vectors, (n, d) float32: of each the row of this task or file that is nearest in time.

        name: the file's path or address, or the end of it. Raises MediaError where there is none.
        """
        name = _path_of(name)
        rows = self._rows(name, task)
        if not len(rows):
            where = f"task {task} or file {_stem(name)!r}" if task >= 0 else f"file {_stem(name)!r}"
            raise MediaError(f"{self.path.name} has no vector of {where}")
        chosen = []
        times = self.times_s[rows]
        if np.isnan(times).any() and len(rows) > 1:
            raise MediaError(f"{self.path.name} has {len(rows)} vectors of {_stem(name)!r}, but no time_s for each")
        for frame in frames:
            nearest = 0 if len(rows) == 1 else int(np.abs(times - frame.time_s).argmin())
            first, last = min(frame.first_s, frame.time_s), max(frame.last_s, frame.time_s)
            if not np.isnan(times[nearest]) and not first - _NEAR_S <= times[nearest] <= last + _NEAR_S:
                raise MediaError(
                    f"{self.path.name} has no vector of {_stem(name)!r} within {_NEAR_S:g} s of the keyframe at "
                    f"{frame.time_s:.2f} s; the nearest is at {times[nearest]:.2f} s"
                )
            chosen.append(rows[nearest])
        ids = np.asarray([frame.id for frame in frames], np.int64)
        return Embeddings(ids, self.vectors[np.asarray(chosen, np.int64)], str(self.path))

    def _rows(self, name: str, task: int) -> NDArray[np.int64]:
        if task >= 0 and len(found := np.flatnonzero(self.tasks == task)):
            return found
        asked = PurePosixPath(name).parts
        by_file: dict[str, list[int]] = defaultdict(list)
        for row, file in enumerate(self.files):
            if file and _stem(file) in (_stem(name), _UPLOAD.sub("", _stem(name))):
                by_file[file].append(row)
        if len(by_file) > 1:  # files of one name: the one whose folders are alike too
            alike = {file: _common_end(PurePosixPath(file).parts, asked) for file in by_file}
            most = max(alike.values())
            by_file = {file: rows for file, rows in by_file.items() if alike[file] == most}
            if len(by_file) > 1:
                raise MediaError(f"{self.path.name} has vectors of {' and '.join(sorted(by_file))}: which is {name}?")
        return np.asarray(next(iter(by_file.values()), []), np.int64)


def _path_of(name: str) -> str:
    """Of an address, as tasks have them, the path in it."""
    is_address = name.startswith(("/data/", "http://", "https://"))
    return unquote(name.rpartition("?d=")[2]) if is_address else name


def _stem(name: str) -> str:
    return PurePosixPath(name).name


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        count += 1
    return count


def _npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"cannot read {path} as .npz: {error}") from None
    vectors = next((name for name in ("vector", "vectors", "X") if name in arrays), None)
    if vectors is None:
        raise RequestError(f"{path} must hold the array vector, vectors or X; it has {', '.join(arrays) or 'none'}")
    columns = {"vector": arrays[vectors]}
    columns |= {name: arrays[name] for name in ("path", "task", "time_s") if name in arrays}
    if "files" in arrays and "video" in arrays:  # our own
        columns["path"] = arrays["files"][arrays["video"]]
    if "label" in arrays or "y" in arrays:
        y = arrays.get("label", arrays.get("y"))
        assert y is not None
        columns["label"] = arrays["classes"][y] if "classes" in arrays and y.dtype.kind in "iu" else y
    return columns


def _parquet(path: Path) -> Mapping[str, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SetupError(f"{path.name} needs the package pyarrow: pip install 'lookalike[parquet]'") from None
    wanted = ("vector", "path", "task", "time_s", "label")
    try:
        has = parquet.read_schema(path).names
        if "vector" not in has:
            raise RequestError(f"{path} must have the column vector; it has {', '.join(has)}")
        table = parquet.read_table(path, columns=[name for name in wanted if name in has])
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise RequestError(f"cannot read {path} as Parquet: {error}") from None
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in table.column_names}
    try:
        columns["vector"] = np.asarray(columns["vector"], np.float32)
    except (TypeError, ValueError):
        raise RequestError(f"{path}: the vectors must all be of one length, and numbers") from None
    return columns
