"""The queue over a real Valkey: it wakes workers, runs nothing but our jobs, and loses nothing that matters."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback
from rq import Queue as RQQueue
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer

from lookalike.errors import QueueError, SettingsError, SetupError
from lookalike.ledger import KINDS, Work
from lookalike.queue import FUNCTIONS, NAMES, WINDOW, Queue, kinds_of, own_socket, queue_of, redis_url
from lookalike.store import Project, open_store
from tests.services import start_valkey

TRACE = "LEAVE_TRACE_IN"


class Server:
    """A queue server of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process, self.url = start_valkey(folder)

    def restart(self) -> None:
        self.process, self.url = start_valkey(self._folder)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.kill()


@pytest.fixture
def queue(server: Server) -> Iterator[Queue]:
    opened = Queue(server.url)
    yield opened
    opened.close()


def rows(*ids: int, kind: Any = "video", fence: int = 0) -> list[Work]:
    return [Work(n, kind, str(n), "7.2026", "due", "", "", 0, fence, 0.0, 0.0) for n in ids]


class TestNames:
    def test_every_kind_has_one_queue(self) -> None:
        assert {queue_of(kind) for kind in KINDS} == set(NAMES)
        assert [kind for kind in KINDS if queue_of(kind) == "videos"] == ["video", "embed", "map"]
        assert sorted(kind for name in NAMES for kind in kinds_of(name)) == sorted(KINDS)

    def test_redis_url__configured_or_own(self, tmp_path: Path) -> None:
        assert redis_url("redis://host", tmp_path) == "redis://host"
        assert redis_url("", tmp_path) == f"unix://{tmp_path}/valkey.sock"

    def test_own_socket__deep_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        deep = tmp_path / ("ä" * 50) / ("b" * 60)
        path = own_socket(deep)
        assert len(bytes(path)) <= 107
        assert path == own_socket(deep) != own_socket(deep / "c")
        assert path.parent.stat().st_mode & 0o777 == 0o700

    def test_own_socket__place_of_somebody_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        deep = tmp_path / ("b" * 120)
        folder = own_socket(deep).parent
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SetupError, match="belongs to somebody else"):
            own_socket(deep)

    def test_queue__url_that_is_none(self) -> None:
        with pytest.raises(SettingsError, match="must start with redis://, rediss:// or unix://"):
            Queue("localhost:6379")


class TestKick:
    def test_kick__once_for_each_waiting(self, queue: Queue) -> None:
        assert queue.kick(rows(1, 2)) == 2
        assert queue.kick(rows(1, 2, 3)) == 1
        assert queue.kick(rows(1, kind="sync")) == 1
        assert queue.kick(rows(1, fence=1)) == 1  # was claimed meanwhile, and is due again
        assert queue.kick([]) == 0
        assert queue.depth() == {"videos": 4, "projects": 1}

    def test_kick__no_more_than_the_window(self, server: Server, queue: Queue) -> None:
        many = rows(*range(WINDOW + 20))
        assert queue.kick(many) == WINDOW
        assert queue.kick(many) == 0
        with Redis.from_url(server.url) as redis:
            redis.rpop("rq:queue:lookalike-videos", 5)
        assert queue.kick(many) == 5
        assert queue.depth()["videos"] == WINDOW
        assert queue.kick(rows(*range(3), kind="deliver")) == 3  # the other queue has room of its own

    def test_kick_due__what_the_ledger_says(self, queue: Queue, tmp_path: Path) -> None:
        store = open_store(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
        store.put_project(Project("7.2026", 7, "", ""))
        store.add_videos("7.2026", [(task, f"{task}.mp4", {}) for task in range(100)])
        store.want("sync", "7.2026")
        assert queue.kick_due(store.ledger) == WINDOW + 1
        assert queue.kick_due(store.ledger) == 0
        store.close()

    def test_kick__carries_a_number_and_nothing_else(self, server: Server, queue: Queue) -> None:
        queue.kick(rows(17, kind="cluster"))
        with Redis.from_url(server.url) as redis:
            job = Job.fetch("cluster-17-0", connection=redis, serializer=JSONSerializer)
        assert (job.func_name, job.args, job.kwargs, job.meta) == ("workers.jobs.cluster", [17], {}, {})

    def test_kick__server_down(self, server: Server, queue: Queue) -> None:
        queue.ping()
        server.kill()
        for ask in (lambda: queue.kick(rows(1)), queue.ping, queue.depth):
            assert seconds(ask) < 1
        server.restart()
        queue.ping()

    def test_kick__server_hangs(self, server: Server, queue: Queue) -> None:
        """A plain client waits 59 s for a stopped server; Label Studio gives a webhook one."""
        queue.ping()
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            for ask in (lambda: queue.kick(rows(1)), queue.ping):
                assert seconds(ask) < 1
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert queue.kick(rows(1, 2)) >= 1

    def test_kick__survives_kill_9_of_the_server(self, server: Server, queue: Queue) -> None:
        queue.kick(rows(1, 2, 3))
        server.kill()
        server.restart()
        assert queue.depth()["videos"] == 3


class TestWork:
    def test_work__runs_our_jobs_and_nothing_else(self, server: Server, queue: Queue, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        with Redis.from_url(server.url) as redis:
            plant_foreign_jobs(redis, trace)
            number_of_foreign_jobs = queue.depth()["projects"]
            queue.kick(rows(17, kind="sync"))
            with worker(server, trace):
                wait_until(lambda: self.has_run(tmp_path / "trace.sync", 17))
            assert number_of_foreign_jobs == 8
            assert queue.depth()["projects"] == 0
            assert (tmp_path / "trace.sync").read_text() == "17\n"
            assert not trace.exists(), trace.read_text()

    def test_work__foreign_jobs_would_run_elsewhere(self, server: Server, tmp_path: Path) -> None:
        """The same jobs do run in a worker of RQ's own: what the test above refuses is real."""
        trace = tmp_path / "trace"
        code = f"""
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import DefaultSerializer, JSONSerializer
from tests.test_queue import plant_foreign_jobs
redis = Redis.from_url({server.url!r})
for serializer in (JSONSerializer, DefaultSerializer):
    plant_foreign_jobs(redis, {str(trace)!r})
    queue = Queue("lookalike-projects", connection=redis, serializer=serializer)
    SimpleWorker([queue], connection=redis, serializer=serializer).work(burst=True)
"""
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "/usr/bin:/bin", TRACE: str(trace)},
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parent.parent,
            timeout=120,
        )
        assert {"function", "system", "callback", "pickle"} <= set(trace.read_text().split())

    def test_work__is_seen_and_ends_politely(self, server: Server, queue: Queue, tmp_path: Path) -> None:
        with worker(server, tmp_path / "trace") as process:
            wait_until(lambda: queue.workers() == {"one"})
            process.terminate()
            assert process.wait(60) == 0
        assert queue.workers() == set()

    @staticmethod
    def has_run(trace: Path, number: int) -> bool:
        return trace.exists() and trace.read_text().endswith(f"{number}\n")

    def test_work__goes_on_in_the_same_process_when_the_server_is_back(
        self, server: Server, queue: Queue, tmp_path: Path
    ) -> None:
        """A new process would have to load its model anew."""
        with worker(server, tmp_path / "trace") as process:
            wait_until(lambda: queue.workers() == {"one"})
            for n in (1, 2):
                server.kill()
                time.sleep(1)  # it has noticed, and tries again
                server.restart()
                with Redis.from_url(server.url) as redis:
                    redis.flushall()
                queue.kick(rows(n, kind="sync"))
                wait_until(functools.partial(self.has_run, tmp_path / "trace.sync", n))
            assert process.poll() is None
            server.kill()
            time.sleep(1.5)
            process.terminate()  # it waits for a server that never comes back
            assert process.wait(60) in (0, 1)


def plant_foreign_jobs(redis: Any, trace: Path | str) -> None:
    """What somebody who has taken the queue server might put there."""
    of_json = RQQueue("lookalike-projects", connection=redis, serializer=JSONSerializer)
    of_pickle = RQQueue("lookalike-projects", connection=redis, serializer=DefaultSerializer)
    callback = Callback("tests.test_queue.leave_trace_of_callback")
    ours = FUNCTIONS["deliver"]
    of_json.enqueue_call("tests.test_queue.leave_trace", args=("function",), job_id="a")
    of_json.enqueue_call("os.system", args=(f"echo system >> {trace}",), job_id="b")
    of_json.enqueue_call("workers.jobs.log.info", args=("x",), job_id="c")
    of_json.enqueue_call(ours, args=(1,), on_success=callback, job_id="d")
    of_json.enqueue_call("os.getcwd", on_success=callback, on_failure=callback, on_stopped=callback, job_id="e")
    of_json.enqueue_call("nothing.there", on_failure=callback, job_id="f")
    of_pickle.enqueue_call(ours, args=(Unpickled(trace),), job_id="g")
    with_instance = of_json.enqueue_call(ours, job_id="h")
    redis.hset("rq:job:h", "data", with_instance.serializer.dumps(["sync", "a text is an instance too", [], {}]))


class Unpickled:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path | str) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"echo pickle >> {self._trace}",)


def leave_trace(word: str) -> None:
    with Path(os.environ[TRACE]).open("a") as trace:
        trace.write(word + "\n")


def leave_trace_of_callback(*_: object) -> None:
    leave_trace("callback")


class worker:  # noqa: N801
    """A worker process whose jobs only note that they ran."""

    def __init__(self, server: Server, trace: Path) -> None:
        self._server, self._trace = server, trace

    def __enter__(self) -> subprocess.Popen[bytes]:
        code = f"""
import sys, types
jobs = types.ModuleType("workers.jobs")
jobs.deliver = lambda work_id: None
jobs.sync = lambda work_id: print(work_id, file=open({str(self._trace)!r} + ".sync", "a"), flush=True)
sys.modules["workers.jobs"] = jobs
from lookalike.queue import work_forever
work_forever({self._server.url!r}, "projects", "one")
"""
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={"PATH": "/usr/bin:/bin", TRACE: str(self._trace)},
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parent.parent,
        )
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def seconds(ask: Any) -> float:
    """How long it takes to raise QueueError, at best: a busy machine is slow now and then, a client always."""

    def once() -> float:
        started = time.monotonic()
        with pytest.raises(QueueError, match="the queue server does not answer"):
            ask()
        return time.monotonic() - started

    return min(once() for _ in range(3))


def wait_until(true: Any, within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "took too long"
        time.sleep(0.05)
