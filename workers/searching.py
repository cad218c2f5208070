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
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import SetupError
from lookalike.grouping import unit
from lookalike.records import Embeddings, Extraction, Keyframe, VideoFacts, keyframe_id
from lookalike.settings import Settings, plain_environment
from lookalike.similarity import Index, View, query_of
from lookalike.store import Project, Store, open_store

T = TypeVar("T")

_DIM = 1280
_PER_VIDEO = 500
_PER_MIDDLE = 1000
_EXAMPLES = (1, 5, 10)
_QUERIES = 24
_START_WITHIN_S = 60.0
_INDEX_WITHIN_S = 3600.0
_LOGIN = ("bench", "bench")


@dataclass(frozen=True, slots=True)
class Speed:
    """Searches of one size; times are medians."""

    keyframes: int
    http_ms: float  # a warm request, end to end, by the wall clock: another's load counts too
    http_best_ms: float  # the quickest: the least of that load
    search_cpu_ms: float
    scan_cpu_ms: float  # exact, of rows in memory
    times_faster: float
    recall_at_50: float
    resident_mb: float  # the server, after its searches
    index_s: float  # CPU seconds of making the index


def measure(sizes: Sequence[int]) -> list[Speed]:
    """Make projects of so many keyframes, serve them, and search. 1,000,000 take 8 GB of disk and some minutes."""
    return [_measure(size) for size in sizes]


def table(speeds: Sequence[Speed]) -> str:
    """The figures for people."""
    lines = ["keyframes   http ms (best)   search CPU ms   exact scan CPU ms   times faster   recall@50   resident MB"]
    lines += [
        f"{s.keyframes:>9,}   {s.http_ms:>7.1f} ({s.http_best_ms:>4.1f})   {s.search_cpu_ms:>13.2f}   "
        f"{s.scan_cpu_ms:>17.1f}   {s.times_faster:>12.1f}   {s.recall_at_50:>9.4f}   {s.resident_mb:>11.0f}"
        for s in speeds
    ]
    return "\n".join(lines)


def made_up(size: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """(n, 1280) rows of length 1, `_PER_VIDEO` at a time."""
    random = np.random.default_rng(seed)
    scale = (1 / np.sqrt(np.arange(1, _DIM + 1))).astype(np.float32)
    middles = random.standard_normal((max(1, size // _PER_MIDDLE), _DIM), np.float32) * scale
    for at in range(0, size, _PER_VIDEO):
        count = min(_PER_VIDEO, size - at)
        noise = random.standard_normal((count, _DIM), np.float32) * scale
        yield unit(middles[random.integers(len(middles), size=count)] + 0.8 * noise)


def _measure(size: int) -> Speed:
    with TemporaryDirectory(prefix="lookalike-search-") as folder:
        settings = Settings(
            data_dir=Path(folder), port=_free_port(), basic_auth_user=_LOGIN[0], basic_auth_pass=_LOGIN[1]
        )
        store = open_store(settings.sqlalchemy_url)
        project = _fill(store, settings, size)
        http, resident, took = _over_http(settings, size)
        [place] = (settings.data_dir / "index").iterdir()
        view = Index(place).view
        assert view is not None
        assert len(view) == size, f"{project.uid}: the index has {len(view)} of {size}"
        store.close()
        searches, scans, recalls = _beside_the_scan(view)
    search, scan = statistics.median(searches), statistics.median(scans)
    return Speed(
        size,
        round(statistics.median(http) * 1000, 2),
        round(min(http) * 1000, 2),
        round(search * 1000, 3),
        round(scan * 1000, 2),
        round(scan / search, 1),
        round(statistics.mean(recalls), 4),
        round(resident, 1),
        round(took, 1),
    )


def _fill(store: Store, settings: Settings, size: int) -> Project:
    """A project as workers leave it, as far as searches are concerned."""
    project = Project("1.1", 1, "bench", "<View/>")
    store.put_project(project)
    count = -(-size // _PER_VIDEO)
    store.add_videos(project.uid, [(n + 1, f"/data/upload/1/{n}.mp4", {}) for n in range(count)])
    rows = iter(made_up(size))
    for row in store.ledger.due(("video",), count):
        claim = store.ledger.claim(row.id, "bench", lease_s=_INDEX_WITHIN_S, max_crashes=3)
        assert claim is not None
        video, vectors = int(claim.subject), next(rows)
        frames = tuple(Keyframe(keyframe_id(video, n), video, n, n / 25, 1.0, n, n) for n in range(len(vectors)))
        facts = VideoFacts(Fraction(25), len(frames), len(frames) / 25, 640, 360)
        embeddings = Embeddings(np.asarray([frame.id for frame in frames]), vectors, settings.embedder)
        store.put_extraction(claim, Extraction(facts, frames, (), (0,) * len(frames)), embeddings)
    return project


def _over_http(settings: Settings, size: int) -> tuple[list[float], float, float]:
    """(seconds of warm requests, MB that the server holds, its CPU seconds until the index was there)"""
    environment = plain_environment() | settings.to_environment()
    with subprocess.Popen(
        [sys.executable, "-m", "backend.serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            worker = _wait(lambda: _worker_of(server.pid), _START_WITHIN_S)
            ids = [keyframe_id(1 + n, 1 + n % 7) for n in range(max(1, size // _PER_VIDEO))]
            random = np.random.default_rng(1)

            def asked(count: int) -> str:
                chosen = random.choice(ids, min(count, len(ids)), replace=False).tolist()
                return "&".join(f"keyframe={keyframe}" for keyframe in chosen) + "&top=50&fold=no"

            _wait(lambda: _ask(settings, asked(1)) is not None, _INDEX_WITHIN_S)
            took = _cpu_of(worker)
            for _ in range(5):
                _ask(settings, asked(5))
            seconds = []
            for n in range(_QUERIES):
                query = asked(_EXAMPLES[n % len(_EXAMPLES)])
                begun = time.perf_counter()
                found = _ask(settings, query)
                seconds.append(time.perf_counter() - begun)
                assert found == 50, f"{found} were found"
            return seconds, _resident_mb(worker), took
        finally:
            server.terminate()


def _beside_the_scan(view: View) -> tuple[list[float], list[float], list[float]]:
    """(CPU seconds of searches, of exact scans, recall@50 of each)"""
    random = np.random.default_rng(2)
    everything = np.concatenate(
        [view.vectors(np.arange(at, min(at + 8192, len(view)))).astype(np.float16) for at in range(0, len(view), 8192)]
    )
    searches, scans, recalls = [], [], []
    for n in range(_QUERIES // 2):
        count = _EXAMPLES[n % len(_EXAMPLES)]
        seed = view.vectors(np.asarray([random.integers(len(view))]))
        near, _ = view.search(query_of(seed, seed[:0], view.background), count)
        query = query_of(view.vectors(np.sort(near)), seed[:0], view.background)
        begun = time.thread_time()
        rows, _ = view.search(query, 50)
        searches.append(time.thread_time() - begun)
        similarity = np.empty(len(view), np.float32)
        spent = 0.0
        for at in range(0, len(view), 65_536):
            part = everything[at : at + 65_536].astype(np.float32)  # not counted: a scan would hold them so
            begun = time.thread_time()
            similarity[at : at + 65_536] = part @ query.vector
            spent += time.thread_time() - begun
        scans.append(spent)
        exact = np.argpartition(-similarity, 50)[:50]
        recalls.append(float(np.isin(exact, rows).mean()))
    return searches, scans, recalls


# --- steps ---


def _ask(settings: Settings, query: str) -> int | None:
    """How many were found; None while the index is made."""
    login = base64.b64encode(":".join(_LOGIN).encode()).decode()
    request = urllib.request.Request(  # noqa: S310
        f"{settings.backend_url}/api/projects/1/similar?{query}", headers={"Authorization": f"Basic {login}"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        body = json.load(answer)
        return len(body["results"]) if answer.status == 200 and body["complete"] else None


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


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
