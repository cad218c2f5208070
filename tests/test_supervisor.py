"""Processes are started, watched, started again and stopped; none is left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lookalike.errors import SetupError, StoreError
from lookalike.settings import Settings
from lookalike.store import Project, open_store
from workers.supervisor import Service, Supervisor, reconcile

_SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def _service(command: list[str], name: str = "sleeper", **options: object) -> Service:
    return Service(name, lambda _start: command, dict(os.environ), **options)  # type: ignore[arg-type]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait(check, within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.05)
    return False


def test_supervisor__a_dead_process_is_started_again_and_its_death_is_told(tmp_path: Path) -> None:
    deaths: list[int] = []
    service = _service(_SLEEP, on_death=deaths.append)
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(service)
        assert service.process is not None
        first = service.process.pid
        os.kill(first, signal.SIGKILL)
        service.process.wait()

        def back() -> bool:
            supervisor.watch()
            return service.process is not None and service.process.pid != first

        assert _wait(back)
        assert deaths == [0]


def test_reconcile__a_ledger_that_is_away_for_a_moment_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.supervisor._LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("workers.supervisor._RESPAWN_FIRST_S", 0.0)

    def death(_start: int) -> None:
        raise StoreError("the ledger cannot be used now: it restarts")

    service = _service(_SLEEP, on_death=death, wait_s=0.0)
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
    with Supervisor(tmp_path / "logs") as supervisor, closing(open_store(settings.sqlalchemy_url)) as store:
        supervisor.start(service)
        assert service.process is not None
        service.process.kill()
        service.process.wait()
        deadline = time.monotonic() + 60
        reconcile(settings, store, supervisor, lambda: service.starts == 2 or time.monotonic() > deadline)
        assert service.starts == 2
    assert "the ledger cannot be used now: it restarts" in caplog.text


def test_reconcile__tells_a_trouble_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.supervisor._LOOK_EVERY_S", 0.0)
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
    with closing(open_store(settings.sqlalchemy_url)) as store:
        store.put_project(Project("1.1", 1, "clips", ""))
        looks = iter(range(5))
        reconcile(settings, store, Supervisor(tmp_path / "logs"), lambda: next(looks, None) is None)
    assert caplog.text.count("the queue server does not answer") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_supervisor__a_process_that_is_stopped_for_long_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have been stopped in the middle of a transaction: nobody else can write to the ledger then."""
    monkeypatch.setattr("workers.supervisor._STOPPED_S", 0.5)
    service = _service(_SLEEP)
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(service)
        assert service.process is not None
        first = service.process.pid
        os.kill(first, signal.SIGSTOP)
        supervisor.watch()
        time.sleep(0.2)
        os.kill(first, signal.SIGCONT)  # a moment is no matter
        supervisor.watch()
        os.kill(first, signal.SIGSTOP)
        stopped = time.monotonic()

        def back() -> bool:
            supervisor.watch()
            return service.process is not None and service.process.pid != first

        assert _wait(back)
        assert time.monotonic() - stopped > 0.5
        assert not _alive(first)
    assert "sleeper has been stopped for" in caplog.text


def test_reconcile__a_worker_that_is_silent_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code that hangs lets no thread run that would renew the lease."""
    monkeypatch.setattr("workers.supervisor._LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("workers.supervisor._SILENT_S", 0.3)
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
    hung, busy = _service(_SLEEP, "hung", label="hung"), _service(_SLEEP, "busy", label="busy")
    with Supervisor(tmp_path / "logs") as supervisor, closing(open_store(settings.sqlalchemy_url)) as store:
        store.put_project(Project("1.1", 1, "clips", ""))
        store.add_videos("1.1", [(1, "a.mp4", {}), (2, "b.mp4", {})])
        for row, service, lease_s in zip(store.ledger.due(["video"], 2), (hung, busy), (0.2, 60), strict=True):
            supervisor.start(service)
            assert store.ledger.claim(row.id, service.identity, lease_s=lease_s, max_crashes=3)
        deadline = time.monotonic() + 60
        reconcile(settings, store, supervisor, lambda: hung.starts == 2 or time.monotonic() > deadline)
        assert (hung.starts, busy.starts) == (2, 1)


def test_supervisor__stop_leaves_nothing(tmp_path: Path) -> None:
    services = [_service(_SLEEP, "one"), _service(_SLEEP, "two")]
    with Supervisor(tmp_path) as supervisor:
        for service in services:
            supervisor.start(service)
        pids = [service.process.pid for service in services if service.process]
    assert len(pids) == 2
    assert not any(_alive(pid) for pid in pids)


def test_supervisor__what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
    ]
    service = _service(stubborn, stop_s=0.3)
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(service)
        supervisor.wait(service, lambda: "up" in supervisor.log_of(service).read_text())
        assert service.process is not None
        pid = service.process.pid
    assert not _alive(pid)


def test_supervisor__a_process_that_dies_at_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    service = _service([sys.executable, "-c", "raise SystemExit('the disk is on fire')"])
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(service)
        with pytest.raises(SetupError, match="the disk is on fire"):
            supervisor.wait(service, lambda: False)


def test_supervisor__not_ready_in_time_is_reported(tmp_path: Path) -> None:
    service = _service(_SLEEP)
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(service)
        with pytest.raises(SetupError, match="not ready within"):
            supervisor.wait(service, lambda: False, 0.3)


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_supervisor__killed_itself__leaves_no_orphan(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from workers.supervisor import Service, Supervisor\n"
        "s = Service('child', lambda n: [sys.executable, '-c', 'import time; time.sleep(60)'], dict(os.environ))\n"
        f"Supervisor(Path({str(tmp_path)!r})).start(s)\n"
        "print(s.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _alive(child)
    parent.kill()
    parent.wait()
    assert _wait(lambda: not _alive(child))
