"""Vectors made elsewhere: read from .npz and Parquet, and given to the keyframes of their files, tasks and times."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import MediaError, RequestError, SetupError
from lookalike.records import Keyframe, keyframe_id
from lookalike.vectors import VectorFile

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")


def frames(*times_s: float) -> list[Keyframe]:
    """Keyframes at these times, each standing for a second around it."""
    return [
        Keyframe(keyframe_id(3, n), 3, n, time, 1.0, n, n, max(0.0, time - 0.5), time + 0.5)
        for n, time in enumerate(times_s)
    ]


def npz(folder: Path, **arrays: Any) -> VectorFile:
    np.savez(folder / "v.npz", **arrays)
    return VectorFile.read(folder / "v.npz")


def parquet(folder: Path, columns: dict[str, list[Any]]) -> VectorFile:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "v.parquet")
    return VectorFile.read(folder / "v.parquet")


VECTORS = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]


@pytest.mark.parametrize("form", ["npz", pytest.param("parquet", marks=needs_pyarrow)])
def test_of__the_row_nearest_in_time(tmp_path: Path, form: str) -> None:
    columns = {"vector": VECTORS, "path": ["a.mp4", "a.mp4", "b.mp4"], "time_s": [1.0, 5.0, 1.0]}
    file = npz(tmp_path, **columns) if form == "npz" else parquet(tmp_path, columns)
    found = file.of(frames(0.8, 5.2), "clips/a.mp4")
    assert found.vectors.tolist() == [[1, 0], [2, 0]]
    assert found.vectors.dtype == np.float32
    assert found.keyframe_ids.tolist() == [keyframe_id(3, 0), keyframe_id(3, 1)]
    with pytest.raises(MediaError, match=r"no vector of 'a.mp4' within 1 s of the keyframe at 9.00 s; .* at 5.00 s"):
        file.of(frames(9.0), "a.mp4")
    with pytest.raises(MediaError, match=r"v\.\w+ has no vector of file 'c.mp4'"):
        file.of(frames(1.0), "c.mp4")


def test_of__one_row_is_for_the_whole_file(tmp_path: Path) -> None:
    file = npz(tmp_path, X=VECTORS, path=["a.mp4", "b.mp4", "c.mp4"])
    assert file.of(frames(0.0, 70.0), "b.mp4").vectors.tolist() == [[2, 0], [2, 0]]


def test_of__a_task_by_its_number_before_its_name(tmp_path: Path) -> None:
    file = npz(tmp_path, vectors=VECTORS, task=[7, 8, -1], path=["", "", "a.mp4"])
    assert file.of(frames(1.0), "/data/upload/1/a.mp4", task=8).vectors.tolist() == [[2, 0]]
    assert file.of(frames(1.0), "/data/upload/1/a.mp4", task=9).vectors.tolist() == [[3, 0]]
    with pytest.raises(MediaError, match=r"no vector of task 9 or file 'x\.mp4'"):
        file.of(frames(1.0), "x.mp4", task=9)


@pytest.mark.parametrize(
    "address",
    [
        "a.mp4",
        "/data/upload/3/0a1b2c3d-a.mp4",
        "/data/local-files/?d=clips/a.mp4",
        "/data/local-files/?d=a.mp4",
        "https://host/x/a.mp4",
    ],
)
def test_of__as_label_studio_names_files(tmp_path: Path, address: str) -> None:
    file = npz(tmp_path, X=VECTORS[:2], path=["a.mp4", "b.mp4"])
    assert file.of(frames(1.0), address).vectors.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "address", ["/data/local-files/?d=a%20b.mp4", "https://host/x/a%20b.mp4", "/data/upload/1/a%20b.mp4"]
)
def test_of__files_named_by_the_addresses_of_their_tasks(tmp_path: Path, address: str) -> None:
    file = npz(tmp_path, X=VECTORS[:2], path=["b.mp4", address])
    assert file.of(frames(1.0), address).vectors.tolist() == [[2, 0]]


def test_of__files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    file = npz(tmp_path, X=VECTORS, path=["cats/1/a.mp4", "dogs/1/a.mp4", "b.mp4"])
    assert file.of(frames(1.0), "/home/me/dogs/1/a.mp4").vectors.tolist() == [[2, 0]]
    with pytest.raises(MediaError, match=r"has vectors of cats/1/a.mp4 and dogs/1/a.mp4: which is 1/a.mp4\?"):
        file.of(frames(1.0), "1/a.mp4")


def test_of__several_rows_without_times(tmp_path: Path) -> None:
    file = npz(tmp_path, X=VECTORS, path=["a.mp4"] * 3)
    with pytest.raises(MediaError, match=r"has 3 vectors of 'a\.mp4', but no time_s for each"):
        file.of(frames(1.0), "a.mp4")


def test_read__labels_and_those_of_numbers(tmp_path: Path) -> None:
    assert npz(tmp_path, X=VECTORS, y=["fox", "owl", "fox"]).labels == ("fox", "owl", "fox")
    assert npz(tmp_path, X=VECTORS, y=[1, 0, 1], classes=["owl", "fox"]).labels == ("fox", "owl", "fox")
    assert npz(tmp_path, X=VECTORS).labels == ()


def test_read__what_prelabel_writes(tmp_path: Path) -> None:
    file = npz(
        tmp_path,
        vectors=np.array(VECTORS, np.float16),
        files=["x/a.mp4", "x/b.mp4"],
        video=[0, 0, 1],
        time_s=[1.0, 2.0, 1.0],
    )
    assert file.files == ("x/a.mp4", "x/a.mp4", "x/b.mp4")
    assert file.of(frames(2.0), "a.mp4").vectors.tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"z": VECTORS}, "must hold the array vector, vectors or X; it has z"),
        ({"X": [1.0, 2.0]}, r"the vectors must be \(n, d\) numbers, got \(2,\) float64"),
        ({"X": [["a", "b"]]}, r"must be \(n, d\) numbers"),
        ({"X": [[1.0, np.nan]]}, "vectors must be finite, row 0 has NaN"),
        ({"X": VECTORS, "path": ["a"]}, "path must have a row for each of the 3 vectors, it has 1"),
        ({"X": VECTORS, "task": ["a", "b", "c"]}, "task must be whole numbers and time_s seconds"),
    ],
)
def test_read__what_is_wrong(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        npz(tmp_path, **arrays)


@pytest.mark.parametrize("name", ["none.npz", "none.parquet", "broken.npz", "broken.parquet"])
def test_read__no_such_file_or_none_that_is_one(tmp_path: Path, name: str) -> None:
    (tmp_path / f"broken{Path(name).suffix}").write_bytes(b"PK nothing")
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(RequestError, match="cannot read"):
        VectorFile.read(tmp_path / name)


@needs_pyarrow
def test_read__parquet_without_vectors(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="must have the column vector; it has path"):
        parquet(tmp_path, {"path": ["a"]})
    with pytest.raises(RequestError, match="must all be of one length"):
        parquet(tmp_path, {"vector": [[1.0], [1.0, 2.0]]})


def test_read__parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SetupError, match=r"needs the package pyarrow: pip install 'lookalike\[parquet\]'"):
        VectorFile.read(tmp_path / "v.parquet")
