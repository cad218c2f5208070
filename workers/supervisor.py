"""Starts processes, watches them, stops them; and sees to it that nothing due is forgotten."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.errors import LookalikeError, SetupError
from lookalike.queue import Queue, redis_url
from lookalike.settings import Settings, plain_environment
from lookalike.store import Store

log = logging.getLogger("lookalike.supervisor")

_LOOK_EVERY_S = 0.5
_RESPAWN_FIRST_S = 0.2
_RESPAWN_MOST_S = 30.0
_STOPPED_S = 20.0  # shorter than a lease: whoever waits for the lock that it holds may renew theirs in time
_SILENT_S = 30.0
_SETTLED_S = 20.0  # a process that lived this long is respawned at once when it dies
_LOG_MB = 20
#: for glibc: the arrays of a project go back to the system when a job is over. After 1,500 small videos the worker that
#: clusters held 15 MB more than after 200, and 61 MB without; in the workers of videos a model's buffers are to stay
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass
class Service:
    """A process to keep alive."""

    name: str
    command: Callable[[int], Sequence[str]]  # from the number of the start, 0, 1, …
    environment: Mapping[str, str]
    stop_s: float = 30.0  # how long it may take to stop by itself
    stop_last: bool = False  # others need it to end in order
    on_death: Callable[[int], None] = lambda _start: None
    label: str = ""  # of workers: each start calls itself by this and its number
    # what is going on
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    ended: int = 0  # the status that it ended with the last time; a signal's is negative
    started_at: float = 0.0
    wait_s: float = _RESPAWN_FIRST_S
    next_start: float = field(default=0.0)
    stopped_at: float = 0.0  # since when it has been stopped (SIGSTOP, a debugger); 0: it is not

    @property
    def identity(self) -> str:
        """What the worker that runs now calls itself."""
        return f"{self.label}-{max(self.starts - 1, 0)}"


class Supervisor:
    """Owns processes; a context manager that leaves none behind, however it ends."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._services: list[Service] = []

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, service: Service) -> None:
        """Start a process and keep it going from now on."""
        self._services.append(service)
        self._spawn(service)

    def wait(self, service: Service, ready: Callable[[], bool], within_s: float = 120.0) -> None:
        """Wait until a process that was started is ready.

        Raises SetupError with the end of its log where it dies first or takes longer than `within_s`.
        """
        deadline = time.monotonic() + within_s
        while not ready():
            if service.process is None or service.process.poll() is not None:
                raise SetupError(
                    f"{service.name} does not start. The end of {self.log_of(service)}:\n{self._tail(service)}"
                )
            if time.monotonic() > deadline:
                raise SetupError(f"{service.name} was not ready within {within_s:.0f} s; see {self.log_of(service)}")
            time.sleep(0.1)

    def forget(self, service: Service) -> None:
        """Leave a process that has ended at that."""
        self._services.remove(service)

    def watch(self) -> None:
        """Start again what has died, and end what has been stopped for long: it may hold the ledger's lock."""
        now = time.monotonic()
        for service in self._services:
            if service.process is not None and _is_stopped(service.process.pid):
                service.stopped_at = service.stopped_at or now
                if now - service.stopped_at > _STOPPED_S:
                    self._end(service, f"has been stopped for {_STOPPED_S:.0f} s")
            else:
                service.stopped_at = 0.0
            if service.process is not None and service.process.poll() is not None:
                service.ended = service.process.returncode
                log.warning("%s ended with status %s", service.name, service.ended)
                service.process = None
                if now - service.started_at > _SETTLED_S:
                    service.wait_s = _RESPAWN_FIRST_S
                service.next_start = now + service.wait_s
                service.wait_s = min(_RESPAWN_MOST_S, service.wait_s * 2)
                service.on_death(service.starts - 1)
            if service.process is None and now >= service.next_start:
                self._spawn(service)

    def end(self, workers: Collection[str]) -> None:
        """End these workers, as far as they are ours, by force; others take their places."""
        for service in self._services:
            if service.label and service.identity in workers and service.process is not None:
                self._end(service, f"has not been heard of for {_SILENT_S:.0f} s since its lease ran out")

    def stop(self) -> None:
        """Stop everything, politely, then by force; what the others need to end in order (`stop_last`) comes last."""
        for last in (False, True):
            services = [s for s in reversed(self._services) if s.stop_last is last and s.process is not None]
            for service in services:
                assert service.process is not None
                service.process.terminate()
            for service in services:
                self._bury(service)
        self._services.clear()

    def log_of(self, service: Service) -> Path:
        return self._logs / f"{service.name}.log"

    def _spawn(self, service: Service) -> None:
        path = self.log_of(service)
        if path.exists() and path.stat().st_size > _LOG_MB * 1e6:
            path.replace(path.with_suffix(".log.old"))
        with path.open("ab") as out:
            service.process = subprocess.Popen(
                list(service.command(service.starts)),
                env=dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, so that we can stop them in order
                preexec_fn=_die_with_parent,
            )
        service.starts += 1
        service.started_at = time.monotonic()

    def _end(self, service: Service, why: str) -> None:
        assert service.process is not None
        log.warning("%s %s and is killed", service.name, why)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()

    def _bury(self, service: Service) -> None:
        assert service.process is not None
        try:
            service.process.wait(service.stop_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %.0f s and was killed", service.name, service.stop_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()

    def _tail(self, service: Service) -> str:
        lines = self.log_of(service).read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-8:])


def worker_services(settings: Settings, store: Store) -> list[Service]:
    """The workers that a machine runs: some for videos, one for everything short."""
    environment = {**plain_environment(), **settings.to_environment()}
    services = []
    for queue, number in [("projects", 1)] + [("videos", n + 1) for n in range(settings.workers)]:
        label = f"{socket.gethostname()}-{os.getpid()}-{queue}-{number}"

        def command(start: int, queue: str = queue, label: str = label) -> Sequence[str]:
            return [sys.executable, "-m", "workers.worker", "--queue", queue, "--name", f"{label}-{start}"]

        def on_death(start: int, label: str = label) -> None:
            store.ledger.release(f"{label}-{start}")

        given = environment if queue == "videos" else _GIVE_BACK | environment
        services.append(Service(f"worker-{queue}-{number}", command, given, on_death=on_death, label=label))
    return services


def reconcile(
    settings: Settings,
    store: Store,
    supervisor: Supervisor,
    until: Callable[[], bool],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Until told to stop: watch the processes, wake workers for what is due, ask for each project's sync in time.

    `look` is called each time, too.
    """
    queue = Queue(redis_url(settings.redis_url, settings.data_dir))
    next_sync = 0.0
    told = ""
    while not until():
        said = ""
        try:
            supervisor.watch()
            supervisor.end(store.ledger.silent(_SILENT_S))  # native code that hangs lets no thread renew the lease
            look()
            if time.monotonic() >= next_sync:
                for project in store.projects():
                    store.want("sync", project.uid)
                next_sync = time.monotonic() + settings.poll_s
            queue.kick_due(store.ledger)
        except LookalikeError as error:
            said = str(error)
        if said and said != told:  # once, not twice a second
            log.warning("%s", said)
        told = said
        time.sleep(_LOOK_EVERY_S)


def stop_on_signals() -> Callable[[], bool]:
    """From now on SIGINT and SIGTERM end nothing by themselves; tells whether one has come."""
    asked = False

    def ask(_signal: int, _frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    return lambda: asked


def _is_stopped(pid: int) -> bool:
    """Linux: whether the process has been stopped by a signal, or by a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _die_with_parent() -> None:
    """Linux: a child is killed when its parent dies, however it dies."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
