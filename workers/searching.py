"""`lookalike bench --search`: what a search takes, over HTTP as it is served, beside the exact scan.

The vectors are made up, with the spread of EfficientNet-Lite0's: 1,000 keyframes around each of many middles, the
variance of axis i being 1 / i (.79 of it on the first 256 of 1280 axes, as in Caltech-101).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import SetupError
from lookalike.grouping import unit
from lookalike.labels import LabelRow
from lookalike.ledger import Claim
from lookalike.records import Clustering, Embeddings, Extraction, Json, Keyframe, VideoFacts, keyframe_id
from lookalike.settings import Settings, plain_environment
from lookalike.similarity import Index, View, query_of
from lookalike.store import Project, Store, open_store

T = TypeVar("T")

_DIM = 1280
_PER_VIDEO = 500
_PER_MIDDLE = 1000
#: categories, and keyframes that people have called so, of each
_KINDS, _LABELLED = 10, 10
_EXAMPLES = (1, 5, 10)
#: requests that are timed, and searches that are held against the exact scan
_REQUESTS, _SCANS = 60, 24
_SCANNED = 65_536  # rows at a time
_START_WITHIN_S = 60.0
_INDEX_WITHIN_S = 3600.0
_LOGIN = ("bench", "bench")


@dataclass(frozen=True, slots=True)
class Speed:
    """Searches of one size; times are medians, but for http_best_ms and http_cpu_ms."""

    keyframes: int
    http_ms: float  # a warm request, end to end, by the wall clock: another's load counts too
    http_best_ms: float  # the quickest: the least of that load
    http_cpu_ms: float  # what the server spends on one, on average
    search_cpu_ms: float  # … of which its index
    scan_cpu_ms: float  # exact, of float32 rows in memory
    times_faster: float
    recall_at_50: float
    added_mb: float  # private memory that the index and the searches added to the server
    resident_mb: float  # all that the server holds then
    index_s: float  # CPU seconds of making the index


def measure(sizes: Sequence[int]) -> list[Speed]:
    """Make projects of so many keyframes, serve them, and search. 1,000,000 take 8 GB of disk and some minutes."""
    return [_measure(size) for size in sizes]


def table(speeds: Sequence[Speed]) -> str:
    """The figures for people."""
    lines = [
        "keyframes   HTTP ms (best)   HTTP CPU ms   search CPU ms   exact scan CPU ms   times faster   recall@50   "
        "MB added (resident)"
    ]
    lines += [
        f"{s.keyframes:>9,}   {s.http_ms:>7.1f} ({s.http_best_ms:>4.1f})   {s.http_cpu_ms:>11.1f}   "
        f"{s.search_cpu_ms:>13.2f}   {s.scan_cpu_ms:>17.1f}   {s.times_faster:>12.1f}   {s.recall_at_50:>9.4f}   "
        f"{s.added_mb:>8.0f} ({s.resident_mb:.0f})"
        for s in speeds
    ]
    return "\n".join(lines)


def made_up(size: int, seed: int = 0) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """((n, 1280) rows of length 1, (n,) the middle that each lies around), `_PER_VIDEO` rows at a time."""
    random = np.random.default_rng(seed)
    scale = (1 / np.sqrt(np.arange(1, _DIM + 1))).astype(np.float32)
    middles = random.standard_normal((max(1, size // _PER_MIDDLE), _DIM), np.float32) * scale
    for at in range(0, size, _PER_VIDEO):
        count = min(_PER_VIDEO, size - at)
        noise = random.standard_normal((count, _DIM), np.float32) * scale
        around = random.integers(len(middles), size=count)
        yield unit(middles[around] + 0.8 * noise), around


def _measure(size: int) -> Speed:
    with TemporaryDirectory(prefix="lookalike-search-") as folder:
        settings = Settings(
            data_dir=Path(folder), port=_free_port(), basic_auth_user=_LOGIN[0], basic_auth_pass=_LOGIN[1]
        )
        store = open_store(settings.sqlalchemy_url)
        _fill(store, settings, size)
        store.close()
        served = _over_http(settings, size)
        [place] = (settings.data_dir / "index").iterdir()
        view = Index(place).view
        assert view is not None
        assert len(view) == size, f"the index has {len(view)} of {size}"
        searches, scans, recalls = _beside_the_scan(view)
    search, scan = statistics.median(searches), statistics.median(scans)
    return Speed(
        size,
        round(statistics.median(served.seconds) * 1000, 2),
        round(min(served.seconds) * 1000, 2),
        round(served.cpu_s * 1000, 2),
        round(search * 1000, 3),
        round(scan * 1000, 2),
        round(scan / search, 1),
        round(statistics.mean(recalls), 4),
        round(served.added_mb, 1),
        round(served.resident_mb, 1),
        round(served.index_s, 1),
    )


def _fill(store: Store, settings: Settings, size: int) -> None:
    """A project as workers leave it: every fourth keyframe is folded into the one before, some of each kind are
    labelled, and all are grouped."""
    kinds = [f"kind {n}" for n in range(max(1, min(_KINDS, size // _PER_MIDDLE)))]
    choices = "".join(f'<Choice value="{kind}"/>' for kind in kinds)
    project = Project(
        "1.1",
        1,
        "bench",
        f'<View><Video name="v" value="$video"/><Choices name="c" toName="v">{choices}</Choices></View>',
    )
    store.put_project(project)
    count = -(-size // _PER_VIDEO)
    store.add_videos(project.uid, [(n + 1, f"/data/upload/1/{n}.mp4", {}) for n in range(count)])
    parts = iter(made_up(size))
    ids_of, middles_of = [], []
    for row in store.ledger.due(("video",), count):
        claim = _claim(store, row.id)
        video, (vectors, middles) = int(claim.subject), next(parts)
        frames = tuple(Keyframe(keyframe_id(video, n), video, n, n / 25, 1.0, n, n) for n in range(len(vectors)))
        facts = VideoFacts(Fraction(25), len(frames), len(frames) / 25, 640, 360)
        embeddings = Embeddings(np.asarray([frame.id for frame in frames]), vectors, settings.embedder)
        store.put_extraction(claim, Extraction(facts, frames, (), (0,) * len(frames)), embeddings)
        ids_of.append(embeddings.keyframe_ids)
        middles_of.append(middles)
    ids, middles = np.concatenate(ids_of), np.concatenate(middles_of)
    store.labels.fold(project.uid, {int(k): int(ids[n - 1] if n % 4 == 3 else k) for n, k in enumerate(ids)})
    labelled = [(int(k), kind) for n, kind in enumerate(kinds) for k in ids[middles == n][:_LABELLED]]
    rows = [LabelRow(k, kind, "companion", 1 + n, 1 + n, "bench", float(n)) for n, (k, kind) in enumerate(labelled)]
    store.labels.put_labels(project.uid, "companion", {row.task: "read" for row in rows}, rows)
    centroids = ids[np.unique(middles, return_index=True)[1]]
    grouped = Clustering(ids, np.unique(middles, return_inverse=True)[1], centroids, np.ones(len(ids), np.float32))
    [row] = store.ledger.due(("cluster",), 1)
    store.put_clustering(_claim(store, row.id), settings.embedder, grouped, len(ids), {})


@dataclass(frozen=True, slots=True)
class _Served:
    seconds: list[float]  # of each warm request
    cpu_s: float  # of one, on average
    added_mb: float
    resident_mb: float
    index_s: float  # CPU seconds until the index was there


def _over_http(settings: Settings, size: int) -> _Served:
    """Searches as a program makes them: one connection, by category and by some keyframes, near-duplicates folded."""
    environment = plain_environment() | settings.to_environment()
    with subprocess.Popen(
        [sys.executable, "-m", "backend.serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            worker = _wait(lambda: _worker_of(server.pid), _START_WITHIN_S)
            connection = HTTPConnection("127.0.0.1", settings.port, timeout=120)
            _wait(lambda: _ask(connection, "/tabs") is not None, _START_WITHIN_S)
            before = _memory_mb(worker, "RssAnon")
            random = np.random.default_rng(1)

            def search(n: int) -> float:
                chosen = _keyframes(random.integers(size, size=_EXAMPLES[n % len(_EXAMPLES)]))
                query = "&".join(f"keyframe={keyframe}" for keyframe in chosen) if n % 4 else "category=kind+0"
                begun = time.perf_counter()
                found = _ask(connection, f"?top=50&{query}")
                took = time.perf_counter() - begun
                assert found is not None
                assert len(found["results"]) == 50, f"{len(found['results'])} were found"
                return took

            _wait(lambda: (_ask(connection, "?category=kind+0") or {}).get("complete"), _INDEX_WITHIN_S)
            index_s = _cpu_of(worker)
            for n in range(12):
                search(n)
            begun = _cpu_of(worker)
            seconds = [search(n) for n in range(_REQUESTS)]
            cpu_s = (_cpu_of(worker) - begun) / _REQUESTS
            resident = _memory_mb(worker, "VmRSS")
            return _Served(seconds, cpu_s, _memory_mb(worker, "RssAnon") - before, resident, index_s)
        finally:
            server.terminate()


def _beside_the_scan(view: View) -> tuple[list[float], list[float], list[float]]:
    """(CPU seconds of searches, of exact scans, recall@50 of each)"""
    random = np.random.default_rng(2)
    queries, found, searches = [], [], []
    for n in range(_SCANS):
        seed = view.vectors(np.asarray([random.integers(len(view))]))
        near, _ = view.search(query_of(seed, seed[:0], view.background), _EXAMPLES[n % len(_EXAMPLES)])
        queries.append(query_of(view.vectors(np.sort(near)), seed[:0], view.background))
        begun = time.thread_time()
        found.append(view.search(queries[-1], 50)[0])
        searches.append(time.thread_time() - begun)
    similarity = np.empty((_SCANS, len(view)), np.float32)
    scans = [0.0] * _SCANS
    for at in range(0, len(view), _SCANNED):
        rows = view.vectors(np.arange(at, min(at + _SCANNED, len(view))))  # not counted: a scan would hold them so
        for n, query in enumerate(queries):
            begun = time.thread_time()
            similarity[n, at : at + len(rows)] = rows @ query.vector
            scans[n] += time.thread_time() - begun
    exact = [np.argpartition(-row, 50)[:50] for row in similarity]
    return searches, scans, [float(np.isin(best, rows).mean()) for best, rows in zip(exact, found, strict=True)]


# --- steps ---


def _keyframes(numbers: NDArray[np.int64]) -> list[int]:
    """Of the keyframes that `_fill` makes, by their number."""
    return [keyframe_id(1 + number // _PER_VIDEO, number % _PER_VIDEO) for number in numbers.tolist()]


def _claim(store: Store, row: int) -> Claim:
    claim = store.ledger.claim(row, "bench", lease_s=_INDEX_WITHIN_S, max_crashes=3)
    assert claim is not None
    return claim


def _ask(connection: HTTPConnection, query: str) -> Json | None:
    """The answer; None while the index is made."""
    login = base64.b64encode(":".join(_LOGIN).encode()).decode()
    connection.request("GET", f"/api/projects/1/similar{query}", headers={"Authorization": f"Basic {login}"})
    answer = connection.getresponse()
    body: Json = json.loads(answer.read())
    assert answer.status in (200, 202), body
    return body if answer.status == 200 else None


def _wait(find: Callable[[], T | None], within_s: float) -> T:
    until = time.monotonic() + within_s
    while True:
        try:
            if found := find():
                return found
        except OSError:
            pass
        if time.monotonic() > until:
            raise SetupError("the server did not come up in time; look whether the machine is busy")
        time.sleep(0.1)


def _worker_of(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def _memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
