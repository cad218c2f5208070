"""The store's contract, over SQLite and over a real PostgreSQL."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from lookalike.errors import SettingsError, StoreError
from lookalike.labels import LabelRow
from lookalike.ledger import Claim, ClaimLost
from lookalike.records import Clustering, Embeddings, Extraction, Keyframe, VideoFacts, keyframe_id
from lookalike.schema import keyframes, metadata, predictions, vectors, work
from lookalike.store import Project, Store, VideoStatus, _is_another_file, open_store

PROJECT = "7.2026"
MODEL = "efficientnet-lite0"


@pytest.fixture
def project(store: Store) -> str:
    store.put_project(Project(PROJECT, 7, "Cats", "<View/>"))
    return PROJECT


def claim(store: Store, kind: Any, subject: str | int, **how: Any) -> Claim:
    (found,) = store.ledger.rows((work.c.kind == kind) & (work.c.subject == str(subject)))
    taken = store.ledger.claim(found.id, how.get("worker", "w"), lease_s=how.get("lease_s", 60), max_crashes=3)
    assert taken is not None, found
    return taken


def add(store: Store, *tasks: int) -> list[int]:
    """Video ids of new tasks."""
    store.add_videos(PROJECT, [(task, f"/data/{task}.mp4", {"video": f"/data/{task}.mp4"}) for task in tasks])
    return [video.id for video in store.videos(PROJECT, tasks)]


def extraction(video: int, frames: tuple[int, ...] = (0, 50), *, sharpness: float = 9.5) -> Extraction:
    found = tuple(
        Keyframe(keyframe_id(video, n), video, n, n / 25, sharpness, n, n + 9, n / 25, n / 25 + 0.36) for n in frames
    )
    return Extraction(
        VideoFacts(Fraction(30000, 1001), 100, 3.34, 1280, 720), found, (50,), tuple(-n - 1 for n in frames)
    )


def embeddings(found: Extraction, dim: int = 8, model: str = MODEL) -> Embeddings:
    ids = np.array([frame.id for frame in found.keyframes], np.int64)
    random = np.random.default_rng(int(ids.sum() % 1000))
    return Embeddings(ids, random.normal(size=(len(ids), dim)).astype(np.float32), model)


def finish_video(store: Store, video: int, frames: tuple[int, ...] = (0, 50)) -> Extraction:
    found = extraction(video, frames)
    store.put_extraction(claim(store, "video", video), found, embeddings(found))
    return found


def clustering_of(ids: list[int]) -> Clustering:
    n = len(ids)
    return Clustering(
        np.array(ids, np.int64), np.arange(n) % 2, np.array(ids[:2], np.int64), np.linspace(0.5, 1, n, dtype=np.float32)
    )


def put_clustering(store: Store, bodies: dict[int, Any]) -> int:
    return store.put_clustering(claim(store, "cluster", PROJECT), MODEL, clustering_of([2**30, 2**31]), 2, bodies)


class TestOpening:
    def test_open__again_keeps_all(self, store: Store, store_url: str, project: str) -> None:
        add(store, 1)
        again = open_store(store_url)
        assert [video.task for video in again.videos(PROJECT)] == [1]
        again.close()

    def test_open__by_many_processes_at_once(self, store_url: str) -> None:
        """The backend and the workers start together, on a database that none of them has seen."""
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            written = pool.map(open_and_write, [store_url] * 6, chunksize=1)
        with contextlib.closing(open_store(store_url)) as store:
            assert {project.uid for project in store.projects()} == set(written)

    def test_open__while_another_makes_the_file(self, tmp_path: Path) -> None:
        """SQLite refuses the change to WAL at once while another writes, whatever its busy timeout."""
        path = tmp_path / "ledger.sqlite3"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
            other.execute("BEGIN IMMEDIATE")
            opening = pool.submit(lambda: open_store(f"sqlite:///{path}").close())
            time.sleep(0.2)
            assert not opening.done()
            other.execute("ROLLBACK")
            opening.result(timeout=60)

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("mysql://host/name", "must be a sqlite or postgresql URL, got mysql"),
            ("ledger.sqlite3", "must be a SQLAlchemy URL such as sqlite:///"),
        ],
    )
    def test_open__url_that_is_none(self, url: str, says: str) -> None:
        with pytest.raises(SettingsError, match=says):
            open_store(url)

    def test_open__database_that_does_not_answer(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="the ledger cannot be used now") as error:
            open_store(f"postgresql://someone:sesame@/x?host={tmp_path}")
        assert "sesame" not in str(error.value)
        (tmp_path / "notes.txt").write_text("no database" * 100)
        with pytest.raises(StoreError, match="file is not a database"):
            open_store(f"sqlite:///{tmp_path / 'notes.txt'}")

    def test_ping(self, store: Store) -> None:
        store.ping()

    def test_ping__after_the_connection_was_cut(self, store: Store) -> None:
        if store.engine.dialect.name != "postgresql":
            pytest.skip("SQLite has no server that could cut a connection")
        with store.engine.connect() as one:
            number = one.execute(text("select pg_backend_pid()")).scalar_one()
        other = open_store(store.engine.url.render_as_string(hide_password=False))
        with contextlib.closing(other), other.engine.connect() as connection:
            assert connection.execute(text("select pg_terminate_backend(:number)"), {"number": number}).scalar_one()
        store.ping()


class TestAtOnce:
    def test_everything__waits_for_nothing_that_waits_for_it(self, store: Store, project: str) -> None:
        """PostgreSQL locks row by row: without an order, two transactions wait for each other, and one is ended."""
        videos = add(store, *range(1, 9))
        for video in videos:
            finish_video(store, video)
        # SQLite has one writer at a time, for whom the others wait in no order, and 20 s at most
        rounds = 40 if store.engine.dialect.name == "postgresql" else 5

        def again(act: Any) -> None:
            for _ in range(rounds):
                with contextlib.suppress(ClaimLost, AssertionError, ValueError):  # another was quicker, or it is gone
                    act()

        def fresh() -> list[int]:
            return [video.id for video in store.videos(PROJECT)]

        def come_and_go() -> None:
            store.delete_videos(PROJECT, [5, 3, 7, 1])
            add(store, 1, 3, 5, 7)

        def move() -> None:
            store.add_videos(PROJECT, [(n, f"/data/{n}-{time.time()}.mp4", {}) for n in (2, 3, 4)])

        def deliver() -> None:
            for row in store.ledger.due(["deliver"], 4):
                mine = store.ledger.claim(row.id, "w", lease_s=60, max_crashes=10**6)
                if mine is not None:
                    store.put_delivered(mine, "d")

        def extract() -> None:
            for row in store.ledger.due(["video"], 4):
                mine = store.ledger.claim(row.id, "w", lease_s=60, max_crashes=10**6)
                if mine is not None:
                    found = extraction(int(row.subject))
                    store.put_extraction(mine, found, embeddings(found))

        def group() -> None:
            store.want("cluster", PROJECT)
            put_clustering(store, {video: {"result": [time.time()]} for video in fresh()})

        acts = [come_and_go, move, deliver, extract, group, lambda: store.answering(PROJECT, fresh(), 0.0)]
        with ThreadPoolExecutor(2 * len(acts)) as pool:
            list(pool.map(again, 2 * acts))


class TestVideos:
    def test_project__round_trip(self, store: Store, project: str) -> None:
        store.put_project(Project(PROJECT, 7, "", ""))  # a webhook knows neither
        assert store.project(PROJECT) == Project(PROJECT, 7, "Cats", "<View/>")
        store.put_project(Project(PROJECT, 7, "Dogs", ""))
        assert store.projects() == [Project(PROJECT, 7, "Dogs", "<View/>")]
        assert store.project("8.2026") is None

    def test_add_videos__asks_for_each_once(self, store: Store, project: str) -> None:
        tasks = [(task, f"{task}.mp4", {"fps": 25, "name": "Ä\u2028\x01"}) for task in (3, 1, 2)]
        assert store.add_videos(PROJECT, tasks) == 3
        assert store.add_videos(PROJECT, tasks) == 0
        assert [work.subject for work in store.ledger.due(["video"], 10)] == [str(v.id) for v in store.videos(PROJECT)]
        (one,) = store.videos(PROJECT, [1])
        assert (one.task, one.url, one.data, one.fps) == (1, "1.mp4", {"fps": 25, "name": "Ä\u2028\x01"}, None)
        assert store.video(one.id) == one
        assert store.video(10**9) is None
        assert store.add_videos(PROJECT, []) == 0

    def test_add_videos__data_that_changed_is_taken_in(self, store: Store, project: str) -> None:
        store.add_videos(PROJECT, [(1, "1.mp4", {"fps": 25}), (2, "2.mp4", {})])
        assert store.add_videos(PROJECT, [(1, "1.mp4", {"fps": 30}), (2, "2.mp4", {})]) == 0
        assert [video.data for video in store.videos(PROJECT)] == [{"fps": 30}, {}]
        assert [work.subject for work in store.ledger.due(["cluster"], 10)] == [PROJECT]

    def test_add_videos__project_that_is_unknown(self, store: Store) -> None:
        with pytest.raises(StoreError, match="project or video was deleted"):
            store.add_videos("9.2026", [(1, "a.mp4", {})])

    def test_add_videos__at_once_from_many_sides(self, store: Store, project: str) -> None:
        """An import's webhook and the sync bring the same tasks, in whatever order."""
        tasks = [(task, f"{task}.mp4", {}) for task in range(200)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.add_videos(PROJECT, tasks[:: 1 if n % 2 else -1]), range(8)))
        assert len(store.videos(PROJECT)) == 200
        assert store.ledger.counts() == {("video", "due"): 200}

    def test_add_videos__5000_within_a_second(self, store: Store, project: str) -> None:
        tasks = [(task, f"{task}.mp4", {"video": f"{task}.mp4"}) for task in range(5000)]
        started = time.process_time()
        assert store.add_videos(PROJECT, tasks) == 5000
        assert time.process_time() - started < 1
        numbers = [task for task, _, _ in tasks]
        assert len(store.videos(PROJECT, numbers)) == 5000
        assert len(store.delete_videos(PROJECT, numbers)) == 5000

    def test_add_videos__an_address_that_was_signed_anew_is_worked_on_again(self, store: Store, project: str) -> None:
        video, other = add(store, 1, 2)
        finish_video(store, video)
        finish_video(store, other)
        put_clustering(store, {video: {"result": [1]}, other: {"result": [2]}})
        moved = "https://cdn.example/data/1.mp4?signature=2"
        assert store.add_videos(PROJECT, [(1, moved, {"fps": 10}), (2, "/data/2.mp4", {})]) == 1
        found = store.video(video)
        assert found is not None
        assert (found.url, found.data, found.fps, found.duration_s) == (moved, {"fps": 10}, None, None)
        assert store.keyframes([video, other])[video] == []
        assert len(store.keyframes([video, other])[other]) == 2
        assert set(store.predictions(PROJECT, [1, 2])) == {2}
        assert [w.subject for w in store.ledger.due(["video"], 10)] == [str(video)]

    def test_add_videos__another_file_is_another_video(self, store: Store, project: str) -> None:
        [before] = add(store, 1)
        finish_video(store, before)
        put_clustering(store, {before: {"result": [1]}})
        [shown, _] = store.keyframes([before])[before]
        store.labels.fold(PROJECT, {shown.id: shown.id})
        label = LabelRow(shown.id, "Cat", "companion", 70, 5, "a@b", 1.0)
        store.labels.put_labels(PROJECT, "companion", {70: "stamp"}, [label])
        store.labels.put_labels(PROJECT, "video", {1: "stamp"}, [])
        assert store.add_videos(PROJECT, [(1, "/data/another.mp4", {})]) == 1
        [video] = store.videos(PROJECT)
        assert (video.task, video.url) == (1, "/data/another.mp4")
        assert [w.subject for w in store.ledger.due(["video"], 10)] == [str(video.id)]
        assert store.labels.labels(PROJECT) == [], "people said that of another picture"
        assert store.labels.keyframe_tasks(PROJECT) == {}
        assert store.labels.readings(PROJECT, "video") == {}, "what they say of the task is to be read once more"

    def test_delete_videos__leaves_nothing(self, store: Store, project: str) -> None:
        gone, stays = add(store, 1, 2)
        for video in (gone, stays):
            finish_video(store, video)
        put_clustering(store, {gone: {}, stays: {}})
        assert store.delete_videos(PROJECT, [1, 99]) == [gone]
        assert store.delete_videos(PROJECT, [1]) == []
        with store.engine.connect() as connection:
            for table in (keyframes, vectors, predictions):
                assert {row.video for row in connection.execute(table.select())} == {stays}
        assert store.ledger.counts()[("deliver", "due")] == 1
        assert store.ledger.counts()[("cluster", "due")] == 1
        store.delete_project(PROJECT)
        with store.engine.connect() as connection:
            for table in metadata.sorted_tables:
                assert connection.execute(table.select()).all() == []

    def test_delete_videos__id_is_never_used_again(self, store: Store, project: str) -> None:
        (gone,) = add(store, 1)
        store.delete_videos(PROJECT, [1])
        (new,) = add(store, 2)
        assert new > gone


@pytest.mark.parametrize(
    ("before", "now", "another"),
    [
        ("/data/upload/7/a.mp4", "https://studio/data/upload/7/a.mp4", False),
        ("https://x/a.mp4?signature=1", "https://x/a.mp4?signature=2", False),
        ("/tasks/1/presign/?fileuri=eA", "/tasks/1/resolve/?fileuri=eA", False),
        (
            "/tasks/1/resolve/?fileuri=czM6Ly9hL3g=",
            "/tasks/1/resolve/?fileuri=czM6Ly9iL3g",
            False,
        ),  # s3://a/x, s3://b/x
        ("/data/local-files/?d=a.mp4", "/data/local-files/?d=moved/a.mp4", False),
        ("", "/a.mp4", False),
        ("/data/upload/7/a.mp4", "/data/upload/7/b.mp4", True),
        ("/data/local-files/?d=a.mp4", "/data/local-files/?d=b.mp4", True),
        ("/tasks/1/resolve/?fileuri=eA", "/tasks/1/resolve/?fileuri=eQ", True),
        ("/a.mp4", "http://[", True),
        ("/a.mp4", "/tasks/1/resolve/?fileuri=gA", True),
    ],
)
def test_is_another_file(before: str, now: str, another: bool) -> None:
    assert _is_another_file(now, before) == another


class TestResults:
    def test_put_extraction__round_trip(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)
        found = finish_video(store, video)
        assert store.keyframes([video]) == {video: list(found.keyframes)}
        stored = store.video(video)
        assert stored is not None
        assert (stored.fps, stored.frame_count, stored.width_px) == (Fraction(30000, 1001), 100, 1280)
        assert store.ledger.counts() == {("video", "done"): 1, ("cluster", "due"): 1}

    def test_put_extraction__twice_gives_the_same_rows(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)
        finish_video(store, video)
        before = everything(store)
        with store.engine.begin() as connection:
            store.ledger.want(connection, "video", [(str(video), PROJECT)])
        finish_video(store, video)
        assert everything(store) == before

    def test_put_extraction__by_one_who_lost_the_claim(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)
        slow = claim(store, "video", video, lease_s=-1)
        quick = claim(store, "video", video, worker="quick")
        late = extraction(video, (7,))
        with pytest.raises(ClaimLost):
            store.put_extraction(slow, late, embeddings(late))
        assert everything(store) == {"keyframes": [], "vectors": []}
        found = extraction(video)
        store.put_extraction(quick, found, embeddings(found))
        with pytest.raises(ClaimLost):
            store.put_extraction(slow, late, embeddings(late))
        assert store.keyframes([video])[video] == list(found.keyframes)

    def test_put_extraction__no_keyframes(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)
        found = extraction(video, ())
        store.put_extraction(claim(store, "video", video), found, embeddings(found))
        assert store.keyframes([video]) == {video: []}
        assert store.load_embeddings(PROJECT, MODEL).vectors.shape == (0, 0)

    def test_put_extraction__ids_and_fingerprints_of_64_bits(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)
        last = 2**24 - 1
        frame = Keyframe(keyframe_id(2**28, last), video, last, 1e6, 0.0, last, last)
        facts = VideoFacts(Fraction(25), last + 1, 1e6, 1, 1)
        found = Extraction(facts, (frame,), (), (-(2**63),))
        store.put_extraction(claim(store, "video", video), found, None)
        assert store.keyframes([video])[video] == [frame]
        with store.engine.connect() as connection:
            assert connection.execute(keyframes.select()).one().fingerprint == -(2**63)

    def test_load_embeddings__float16_round_trip(self, store: Store, project: str) -> None:
        first, second = add(store, 1, 2)
        found = {video: extraction(video, tuple(range(0, 3 * video, 3))) for video in (second, first)}
        for video, some in found.items():
            store.put_extraction(claim(store, "video", video), some, embeddings(some))
        loaded = store.load_embeddings(PROJECT, MODEL)
        expected = [embeddings(found[video]) for video in (first, second)]
        assert loaded.vectors.dtype == np.float32
        assert loaded.keyframe_ids.tolist() == np.concatenate([e.keyframe_ids for e in expected]).tolist()
        assert (np.diff(loaded.keyframe_ids) > 0).all()
        np.testing.assert_array_equal(
            loaded.vectors, np.concatenate([e.vectors for e in expected]).astype(np.float16).astype(np.float32)
        )
        assert len(store.load_embeddings(PROJECT, "another model").vectors) == 0
        assert len(store.load_embeddings("8.2026", MODEL).vectors) == 0


class TestPredictions:
    def test_put_clustering__round_trip(self, store: Store, project: str) -> None:
        finish_video(store, add(store, 1)[0])
        assert store.clustering(PROJECT, MODEL) is None
        ids = [30, 10, 20]
        shuffled = Clustering(
            np.array(ids, np.int64), np.array([1, 0, -1]), np.array([10, 30]), np.array([0.3, 0.1, 0], np.float32)
        )
        store.put_clustering(claim(store, "cluster", PROJECT), MODEL, shuffled, 3, {})
        found = store.clustering(PROJECT, MODEL)
        assert found is not None
        assert found[1] == 3
        assert found[0].keyframe_ids.tolist() == [10, 20, 30]
        assert found[0].clusters.tolist() == [0, -1, 1]
        assert found[0].centroids.tolist() == [10, 30]
        np.testing.assert_allclose(found[0].similarity, [0.1, 0, 0.3], rtol=1e-6)

    def test_put_clustering__only_what_changed_is_delivered(self, store: Store, project: str) -> None:
        one, two = add(store, 1, 2)
        finish_video(store, one)
        assert put_clustering(store, {one: {"a": 1, "b": [1.5, None]}, two: {"a": 2}, 10**6: {"a": "gone by now"}}) == 2
        for video, task in ((one, 1), (two, 2)):
            digest = store.predictions(PROJECT, [task])[task].digest
            store.put_delivered(claim(store, "deliver", video), digest)
        finish_video(store, two)
        assert put_clustering(store, {one: {"b": [1.5, None], "a": 1}, two: {"a": 3}}) == 1
        assert [w.subject for w in store.ledger.due(["deliver"], 10)] == [str(two)]
        found = store.predictions(PROJECT, [1, 2, 3])
        assert found[1].delivered == found[1].digest
        assert found[2].delivered != found[2].digest
        assert found[2].body == {"a": 3}
        assert store.predictions("8.2026", [1, 2]) == {}

    def test_put_delivered__by_one_who_lost_the_claim(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)
        finish_video(store, video)
        put_clustering(store, {video: {}})
        slow = claim(store, "deliver", video, lease_s=-1)
        claim(store, "deliver", video)
        with pytest.raises(ClaimLost):
            store.put_delivered(slow, "digest")
        assert store.predictions(PROJECT, [1])[1].delivered == ""

    def test_answering__each_video_to_one_of_many(self, store: Store, project: str) -> None:
        ids = add(store, *range(30))
        finish_video(store, ids[0])
        put_clustering(store, {video: {"result": []} for video in ids})
        with ThreadPoolExecutor(8) as pool:
            given = list(pool.map(lambda n: store.answering(PROJECT, ids[:: 1 if n % 2 else -1], 60), range(8)))
        assert sorted(video for some in given for video in some) == sorted(ids)
        assert store.answering(PROJECT, ids, 60) == set()
        assert store.answering(PROJECT, [*ids, 10**6], 0) == set(ids)

    def test_answering__is_looked_after_by_a_delivery(
        self, store: Store, project: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (video,) = add(store, 1)
        finish_video(store, video)
        put_clustering(store, {video: {}})
        store.put_delivered(claim(store, "deliver", video), store.predictions(PROJECT, [1])[1].digest)
        assert store.answering(PROJECT, [video], 60) == {video}
        assert store.ledger.due(["deliver"], 10) == []
        assert store.predictions(PROJECT, [1])[1].delivered == ""
        later = time.time() + 60
        monkeypatch.setattr("lookalike.ledger.time.time", lambda: later)
        assert [w.subject for w in store.ledger.due(["deliver"], 10)] == [str(video)]

    def test_answering__while_it_is_delivered(self, store: Store, project: str) -> None:
        """Each locks the prediction and the delivery; PostgreSQL lets nobody wait for one who waits for him."""
        ids = add(store, *range(40))
        finish_video(store, ids[0])
        put_clustering(store, {video: {"result": []} for video in ids})

        def deliver(video: int) -> None:
            mine = claim(store, "deliver", video)
            store.answering(PROJECT, [video], -1)
            store.put_delivered(mine, "digest")

        def answer(_: int) -> None:
            store.answering(PROJECT, ids, -1)

        with ThreadPoolExecutor(8) as pool:
            others = [pool.submit(answer, n) for n in range(20)]
            for done in [pool.submit(deliver, video) for video in ids] + others:
                done.result()


class TestStatus:
    def test_video_status__each_state(self, store: Store, project: str) -> None:
        (video,) = add(store, 1)

        def now() -> VideoStatus:
            (found,) = store.video_status(PROJECT)
            assert (found.video, found.task, found.url) == (video, 1, "/data/1.mp4")
            return found

        assert now().state == "queued"
        mine = claim(store, "video", video)
        assert now().state == "starting"
        store.ledger.renew(mine, lease_s=60, stage="embedding")
        assert now().state == "embedding"
        store.ledger.later(mine, "no answer", delay_s=0)
        assert (now().state, now().error) == ("queued", "no answer")
        mine = claim(store, "video", video)
        store.ledger.fail(mine, "not a video")
        assert (now().state, now().error, now().work) == ("failed", "not a video", mine.id)
        store.ledger.retry()
        finish_video(store, video)
        assert (now().state, now().error) == ("clustering", "")
        put_clustering(store, {video: {}})
        assert now().state == "delivering"
        sending = claim(store, "deliver", video)
        store.ledger.later(sending, "Label Studio is away", delay_s=0)
        assert (now().state, now().error) == ("delivering", "Label Studio is away")
        store.ledger.fail(claim(store, "deliver", video), "no token")
        assert (now().state, now().error, now().work) == ("failed", "no token", sending.id)
        assert store.ledger.retry(ids=[now().work]) == 1
        store.put_delivered(claim(store, "deliver", video), store.predictions(PROJECT, [1])[1].digest)
        assert (now().state, now().error) == ("delivered", "")
        store.want("cluster", PROJECT)
        put_clustering(store, {video: {"result": [], "score": 0.5}})
        assert now().state == "updating", "what people have is only not the newest"
        store.put_delivered(claim(store, "deliver", video), store.predictions(PROJECT, [1])[1].digest)
        assert store.answering(PROJECT, [video], 0) == {video}
        assert now().state == "updating"
        store.put_delivered(claim(store, "deliver", video), store.predictions(PROJECT, [1])[1].digest)
        assert now().state == "delivered"
        assert store.video_status("8.2026") == []
        assert store.video_status() == [now()]
        assert store.video_status(PROJECT, states=("delivered",)) == [now()]
        assert store.video_status(PROJECT, states=("failed", "queued")) == []
        assert store.video_status(PROJECT, after=video) == []
        add(store, 2, 3)
        assert store.video_counts(PROJECT) == {"delivered": 1, "queued": 2}

    def test_video_status__of_many(self, store: Store, project: str) -> None:
        add(store, *range(3000))
        started = time.process_time()
        assert len(store.video_status(PROJECT)) == 3000
        assert time.process_time() - started < 0.5  # 0.03 s; a scan per video takes minutes
        assert len(store.video_status(limit=10)) == 10


def test_sqlite__kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    store = open_store(url)
    store.put_project(Project(PROJECT, 7, "", ""))
    answered: set[int] = set()
    for round_ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.test_store", url, str(100_000 * (3 * round_ + n))], stdout=subprocess.PIPE
            )
            for n in range(3)
        ]
        for writer in writers:
            assert writer.stdout is not None
            answered |= {int(writer.stdout.readline()) for _ in range(10)}
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            # the last line may have been cut
            answered |= {
                int(line) for line in writer.communicate()[0].splitlines(keepends=True) if line.endswith(b"\n")
            }
        assert answered <= {video.task for video in store.videos(PROJECT)}
    assert len(store.video_status(PROJECT)) == len(store.videos(PROJECT))  # no video without its work
    store.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


def everything(store: Store) -> dict[str, list[Any]]:
    with store.engine.connect() as connection:
        return {
            table.name: sorted(connection.execute(table.select()).all(), key=lambda row: row[0])
            for table in (keyframes, vectors)
        }


def open_and_write(url: str) -> str:
    """In a process of its own: open an empty database, and write into it."""
    with contextlib.closing(open_store(url)) as store:
        store.put_project(Project(f"{os.getpid()}.2026", 1, "", ""))
    return f"{os.getpid()}.2026"


def write_for_ever(url: str, task: int) -> None:
    """Add one video after the other, and tell each that is in."""
    store = open_store(url)
    while True:
        store.add_videos(PROJECT, [(task, f"{task}.mp4", {})])
        print(task, flush=True)
        task += 1
        time.sleep(0.01)  # the others' turn: SQLite keeps no order among who waits


if __name__ == "__main__":
    write_for_ever(sys.argv[1], int(sys.argv[2]))
