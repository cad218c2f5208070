"""The product as it runs, from `lookalike up` down, with real clips; and the hands to break it with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from lookalike import wire
from lookalike.label_config import shipped_config
from lookalike.queue import own_socket
from lookalike.store import Store, open_store
from tests.clips import Scene, make_clip
from tests.services import ROOT, free_port
from tests.studio import CREATED_AT, TOKEN, FakeStudio

PROJECT = 1
UID = wire.project_uid(PROJECT, CREATED_AT)
CONFIG = shipped_config("video_timeline")
LEASE_S = 4.0
POLL_S = 3.0
_CLIPS = 6  # that differ; all others are copies


class Product:
    """`lookalike up` in a folder, serving a Label Studio. Start it again as often as you like."""

    def __init__(self, folder: Path, studio: FakeStudio, *, workers: int = 1, **settings: object) -> None:
        self.data_dir = folder / "data"
        self.clips = folder / "clips"
        self.clips.mkdir(parents=True)
        self.studio = studio
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = folder / "up.log"
        self._workers = workers
        self._settings = {
            "lease_s": LEASE_S,
            "poll_s": POLL_S,
            "local_files_root": self.clips,
            "label_studio_token": TOKEN,
            "log_format": "json",
            "keyframes_project": "off",
            "disk_free_mb": 50,
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.store: Store | None = None
        if PROJECT not in studio.projects:
            studio.add_project(PROJECT, CONFIG)

    # its life

    def start(self, within_s: float = 240.0) -> None:
        """Returns when the backend and the workers are there."""
        at = self._log.stat().st_size if self._log.exists() else 0
        port = self.url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "lookalike.cli", "up", "--label-studio", self.studio.url]
        command += ["--data-dir", str(self.data_dir), "--ports", f"1,{port}", "--workers", str(self._workers)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOOKALIKE_")}
        environment |= {f"LOOKALIKE_{name.upper()}": str(value) for name, value in self._settings.items()}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        wait_for(lambda: "serving" in self.said()[at:] or self.process.poll() is not None, within_s)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.said()[at:]
        self.store = self.store or open_store(f"sqlite:///{self.data_dir / 'ledger.sqlite3'}")
        body = {"project": UID, "schema": CONFIG, "hostname": self.studio.url}
        assert requests.post(f"{self.url}/setup", json=body, timeout=60).status_code == 200

    def stop(self) -> tuple[int, float]:
        """(exit status, seconds that it took), politely."""
        assert self.process is not None
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(90)
        return status, time.monotonic() - began

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        if self.store is not None:
            self.store.close()

    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # its parts

    def pids(self, part: str = "") -> list[int]:
        """Processes of this product: those with `part` in their command line; zombies have none."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                mine = str(self.data_dir) in command or f"LOOKALIKE_DATA_DIR={self.data_dir}" in (
                    (folder / "environ").read_text(errors="replace")
                )
                if mine and command and part in command and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found

    def video_workers(self) -> list[int]:
        return self.pids("workers.worker --queue videos")

    def queue_server(self) -> int | None:
        """Its process; none while it is started again."""
        socket = str(own_socket(self.data_dir))
        return next(iter(self.pids(socket)), None)

    def kill(self, pid: int | None, how: signal.Signals = signal.SIGKILL) -> bool:
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, how)
                return True
        return False

    def worker_of(self, kind: str) -> tuple[int, str] | None:
        """(process, subject) of a worker that is at work of this kind."""
        assert self.store is not None
        for row in self.store.ledger.rows(limit=100_000):
            if row.kind == kind and row.state == "running":
                name = self.worker_name(row.id)
                for pid in self.pids(f"--name {name}"):
                    return pid, row.subject
        return None

    def worker_name(self, work_id: int) -> str:
        assert self.store is not None
        with self.store.engine.connect() as connection:
            return str(connection.exec_driver_sql(f"SELECT worker FROM work WHERE id = {work_id}").scalar() or "?")

    # its work

    def add_clips(self, tasks: range) -> None:
        """Tasks at Label Studio, with a small real clip each. Nobody is told."""
        for number in range(_CLIPS):
            path = self.clips / f"clip{number}.mp4"
            if not path.exists():
                make_clip(path, [Scene(8, seed=number), Scene(8, seed=number + 50)], size=(160, 90))
        for task in tasks:
            shutil.copy(self.clips / f"clip{task % _CLIPS}.mp4", self.clips / f"{task}.mp4")
            self.studio.add_task(task, PROJECT, {"video": f"/data/local-files/?d={task}.mp4"})

    def tell(self, *tasks: int, timeout_s: float = 1.0) -> tuple[int, float]:
        """(status, seconds) of the webhook that Label Studio sends for tasks: once, for a second. 0: no answer."""
        body: dict[str, Any] = {
            "action": "TASKS_CREATED",
            "project": {"id": PROJECT, "created_at": CREATED_AT, "title": "Clips", "label_config": CONFIG},
            "tasks": [{"id": task, "data": self.studio.tasks[task]["data"]} for task in tasks],
        }
        began = time.monotonic()
        try:
            status = requests.post(f"{self.url}/webhook", json=body, timeout=timeout_s).status_code
        except requests.RequestException:
            status = 0
        return status, time.monotonic() - began

    def states(self) -> dict[int, str]:
        """By task."""
        assert self.store is not None
        return {status.task: status.state for status in self.store.video_status(UID)}

    def delivered(self) -> int:
        return sum(state == "delivered" for state in self.states().values())

    def wait_until_done(self, tasks: int, within_s: float, failed: int = 0) -> None:
        def done() -> bool:
            states = list(self.states().values())
            return len(states) == tasks and states.count("delivered") == tasks - failed

        wait_for(done, within_s, lambda: f"{self.states()}\n{self.said()[-2000:]}")

    def wrong_predictions(self) -> list[int]:
        """Tasks that do not have exactly the one prediction that the ledger says they should have."""
        assert self.store is not None
        held: dict[int, list[dict[str, Any]]] = {task: [] for task in self.studio.tasks}
        for row in list(self.studio.predictions.values()):
            held[row["task"]].append(row)
        wanted = self.store.predictions(UID, list(held))
        return [
            task
            for task, rows in held.items()
            if task in wanted
            and (len(rows) != 1 or json.dumps(rows[0]["result"]) != json.dumps(wanted[task].body["result"]))
        ]

    def computed(self) -> int:
        """How often work on a video was begun, other than to find out that it has to wait."""
        assert self.store is not None
        begun = sum(row.fence for row in self.store.ledger.rows(limit=100_000) if row.kind == "video")
        waited = sum(
            n for (kind, outcome, _), n in self.store.ledger.endings().items() if (kind, outcome) == ("video", "later")
        )
        return begun - waited


@contextmanager
def running(folder: Path, studio: FakeStudio, **how: Any) -> Iterator[Product]:
    product = Product(folder, studio, **how)
    try:
        product.start()
        yield product
    finally:
        product.close()


def wait_for(check: Callable[[], Any], within_s: float, why: Callable[[], str] = lambda: "") -> Any:
    """What `check` gives once it gives something."""
    until = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < until, f"not within {within_s:g} s; {why()}"
        time.sleep(0.05)
    return found


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
