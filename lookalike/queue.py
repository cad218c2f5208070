"""The wake-up call: RQ over any Redis or Valkey. The one door to `rq` and `redis`.

What is to be done stands in the ledger; a job says only "claim row 17". Losing the server, a job, or all of them costs
a moment, never work: whoever looks at the ledger next kicks again. A job whose row was claimed meanwhile does nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue as RQQueue
from rq import SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from lookalike.errors import QueueError, SettingsError, SetupError
from lookalike.ledger import KINDS, SLOW, Kind, Ledger, Work

log = logging.getLogger("lookalike.queue")

#: a worker listens to one queue only: RQ keeps a popped job safe only then
NAMES = ("videos", "projects")
#: jobs that wait in the server at most; the rest waits in the ledger
WINDOW = 64
#: the only functions that a job may name
FUNCTIONS = {kind: f"workers.jobs.{kind}" for kind in KINDS}
_SERVER_REST_S = 0.5
_ANSWER_WITHIN_S = 0.25  # Label Studio gives a webhook one second


def queue_of(kind: Kind) -> str:
    return "videos" if kind in SLOW else "projects"


def kinds_of(name: str) -> tuple[Kind, ...]:
    return tuple(kind for kind in KINDS if queue_of(kind) == name)


def own_socket(data_dir: Path) -> Path:
    """Where our own Valkey listens: in the data folder, or, as a socket's path has at most 107 bytes, near it.

    Raises SetupError where that other place is not ours.
    """
    path = data_dir.resolve() / "valkey.sock"
    if len(bytes(path)) > 100:
        digest = hashlib.sha256(bytes(path)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"lookalike-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise SetupError(f"{folder} belongs to somebody else; choose a LOOKALIKE_DATA_DIR with a shorter path")
        path = folder / "valkey.sock"
    return path


def redis_url(configured: str, data_dir: Path) -> str:
    return configured or f"unix://{own_socket(data_dir)}"


class AllowedJob(Job):
    """A job that runs one of `FUNCTIONS` or nothing, so that a taken queue server is not code execution."""

    @property
    def func(self) -> Any:
        if self.func_name not in FUNCTIONS.values() or self.instance is not None:
            raise QueueError(f"the queue asked for {self.func_name!r}, which is no job of ours: refused")
        return super().func

    success_callback = failure_callback = stopped_callback = None


class Queue:
    """Kicks rows of work."""

    def __init__(self, url: str) -> None:
        try:
            # fails at once where the server hangs or is down: the ledger has the work already
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=_ANSWER_WITHIN_S,
                socket_connect_timeout=_ANSWER_WITHIN_S,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise SettingsError(
                f"LOOKALIKE_REDIS_URL must start with redis://, rediss:// or unix://: {error}"
            ) from None
        self._queues = {
            name: RQQueue(f"lookalike-{name}", connection=self._redis, serializer=JSONSerializer, job_class=AllowedJob)
            for name in NAMES
        }

    def kick(self, rows: Sequence[Work], timeout_s: float = 8 * 3600) -> int:
        """Wake workers for these rows, as far as there is room and nobody did so before; how many.

        Raises QueueError where the server does not answer; nothing is lost by that.
        """
        kicked = 0
        with _translated():
            for name, queue in self._queues.items():
                # the fence changes with each claim, so the id tells this waiting from an earlier one
                wanted = {f"{row.kind}-{row.id}-{row.fence}": row for row in rows if queue_of(row.kind) == name}
                if not wanted:
                    continue
                waiting = set(queue.get_job_ids())
                fresh = [job_id for job_id in wanted if job_id not in waiting]
                for job_id in fresh[: max(0, WINDOW - len(waiting))]:
                    row = wanted[job_id]
                    queue.enqueue_call(
                        FUNCTIONS[row.kind],
                        args=(row.id,),
                        job_id=job_id,
                        timeout=int(timeout_s),
                        result_ttl=0,
                        failure_ttl=3600,
                    )
                    kicked += 1
        return kicked

    def kick_due(self, ledger: Ledger) -> int:
        """Wake workers for whatever the ledger says is due; how many jobs were added."""
        return sum(self.kick(ledger.due(kinds_of(name), WINDOW)) for name in NAMES)

    def depth(self) -> dict[str, int]:
        """Jobs that wait, by queue."""
        with _translated():
            return {name: queue.count for name, queue in self._queues.items()}

    def workers(self) -> set[str]:
        """Names of the workers that are there."""
        with _translated():
            return {worker.name for worker in SimpleWorker.all(connection=self._redis)}

    def ping(self) -> None:
        """Raises QueueError where the server does not answer within 0.25 s."""
        with _translated():
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()


def work_forever(url: str, name: str, worker_name: str) -> None:
    """Run the jobs of one queue in this process, one after the other, until SIGTERM; a job in hand is finished first.

    No fork: the model stays warm, and a fork after torch has run hangs. RQ's worker ends when the queue server does not
    answer; the next one begins when it does, in the same process, whose model took seconds to load.
    """
    connection: Redis = Redis.from_url(url)
    queue = RQQueue(f"lookalike-{name}", connection=connection, serializer=JSONSerializer, job_class=AllowedJob)
    signal.signal(signal.SIGTERM, _leave)  # until RQ listens itself
    known: dict[str, Any] = {"connection": connection, "job_class": AllowedJob, "serializer": JSONSerializer}
    for number in itertools.count(1):
        # RQ may still know the one before by its name
        label = worker_name if number == 1 else f"{worker_name}-{number}"
        worker = None
        try:
            worker = _Worker([queue], name=label, **known)
            worker.work(logging_level="WARNING")
        except (RedisError, OSError) as error:
            log.warning("the queue server does not answer: %s", error)
        except SystemExit:
            if worker is not None:
                with contextlib.suppress(RedisError, OSError):
                    worker.register_death()  # type: ignore[no-untyped-call]
            raise
        if worker is not None:
            worker.is_over = True  # first: whoever asks from now on ends us at once
            if worker.is_to_stop:
                return
        time.sleep(_SERVER_REST_S)


def _leave(_signal: int, _frame: Any) -> None:
    raise SystemExit(0)


class _Worker(SimpleWorker):
    """Tells whether it was asked to stop."""

    is_to_stop = False
    is_over = False  # signals still come to it until the next one is at work

    def request_stop(self, signum: Any, frame: Any) -> None:
        if self.is_over:
            _leave(signum, frame)
        self.is_to_stop = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueError(f"the queue server does not answer: {str(error).rstrip('.')}") from error
