"""Many tasks under all faults together: none lost, one prediction each, hardly anything computed twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis

from lookalike.queue import own_socket
from tests.clips import Scene, make_clip
from tests.soak.product import LEASE_S, POLL_S, UID, Product, running, wait_for
from tests.studio import running_studio

#: videos that are begun once more: of all of them, and, where there are few, of those that the faults took away
_MOST_EXTRA = 0.05
_TAKEN_AWAY = 8  # two workers killed, one stalled, both with their supervisor; and what a lost queue server leaves
_LOST_WEBHOOKS = 0.3
_LOST_REPLIES = 0.1
_POISON = 9999

Fault = Callable[[Product], str]


def chaos(folder: Path, tasks: int = 200, within_s: float = 900.0) -> list[tuple[str, str]]:
    """(fault, figure) of each, in the order in which they came; raises AssertionError where a promise is broken."""
    told: list[tuple[str, str]] = []
    chance = random.Random(7)
    began = time.monotonic()
    free_mb = shutil.disk_usage(folder).free / 1e6
    with running_studio() as studio, running(folder, studio, workers=2, disk_free_mb=free_mb / 2) as product:
        assert product.store is not None
        studio.loses = _LOST_REPLIES
        next_task = 1
        webhooks = lost = 0
        for n, fault in enumerate(_FAULTS):
            batch = range(next_task, next_task + (tasks - next_task + 1) // (len(_FAULTS) - n))
            next_task = batch.stop
            product.add_clips(batch)
            order = 2 * list(batch)  # each webhook comes twice, and in no order
            chance.shuffle(order)
            for task in order:
                if chance.random() < _LOST_WEBHOOKS:
                    lost += 1
                    continue
                webhooks += 1
                product.tell(task)
            told.append((_name(fault), fault(product)))
        told.append(
            ("webhooks twice, in no order, 30 % lost", f"{webhooks} sent, {lost} lost, {POLL_S:g} s between readings")
        )
        left_s = within_s - (time.monotonic() - began)
        product.wait_until_done(tasks + 1, left_s, failed=1)
        states = product.states()
        assert states.pop(_POISON) == "failed"
        assert set(states) == set(range(1, tasks + 1)), "a task was lost"
        wrong = product.wrong_predictions()
        assert not wrong, f"tasks without exactly one current prediction: {wrong}"
        told.append(("replies of Label Studio lost (10 %)", "one prediction each"))
        poison = next(row for row in product.store.video_status() if row.task == _POISON)
        assert "stopped 3 workers in a row" in poison.error, poison.error
        assert product.store.ledger.retry(ids=[poison.work]) == 1
        extra = product.computed() - 3 - tasks
        assert extra <= max(_MOST_EXTRA * tasks, _TAKEN_AWAY), f"{extra} videos were begun more than once"
        with product.store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        seconds = time.monotonic() - began
        told.append((f"all of it: {tasks} tasks", f"0 lost, 1 prediction each, {extra} begun again, {seconds:.0f} s"))
    return told


# --- the faults; each gives its figure ---


def worker_killed(product: Product) -> str:
    """A worker is killed while it is at work; another takes its place."""
    assert product.store is not None
    ledger = product.store.ledger

    def at_work() -> tuple[int, str] | None:
        if not ledger.unfinished("video", UID):  # it was quicker than we are: once more
            with ledger.begin() as connection:
                ledger.want(connection, "video", [(str(product.store.videos(UID)[-1].id), UID)])
        return product.worker_of("video")

    pid, subject = wait_for(at_work, 120)
    before = set(product.video_workers())
    product.kill(pid)
    died = time.monotonic()
    wait_for(lambda: set(product.video_workers()) - before, 30)
    restarted_s = time.monotonic() - died

    def done() -> bool:
        return any(row.subject == subject and row.state == "done" for row in ledger.rows(limit=10_000))

    wait_for(done, 120)
    return f"another was there after {restarted_s:.1f} s, its video done after {time.monotonic() - died:.1f} s"


def supervisor_killed(product: Product) -> str:
    """No process survives it; a new one goes on."""
    assert product.process is not None
    product.kill(product.process.pid)
    product.process.wait()
    died = time.monotonic()
    wait_for(lambda: not product.pids(), 60, lambda: f"still there: {product.pids()}")
    orphans_s = time.monotonic() - died
    product.start()
    return f"no process left after {orphans_s:.1f} s, all there again after {time.monotonic() - died:.1f} s"


def queue_server_killed(product: Product) -> str:
    product.kill(wait_for(product.queue_server, 30))
    died = time.monotonic()
    wait_for(lambda: _answers(product), 30)
    return f"back after {time.monotonic() - died:.1f} s"


def queue_server_wiped(product: Product) -> str:
    wait_for(lambda: _answers(product), 30)
    jobs = _client(product).dbsize()
    _client(product).flushall()
    return f"{jobs} keys gone"


def queue_file_corrupted(product: Product) -> str:
    """Garbage in the middle of its file: it refuses to start, is moved aside, and starts empty."""
    [file] = (product.data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    pid = wait_for(product.queue_server, 30)
    product.kill(pid, signal.SIGSTOP)  # until it is written: the next one may be there at once
    file.write_bytes(b"garbage\r\n" * 1000)
    product.kill(pid)
    died = time.monotonic()
    wait_for(lambda: _answers(product) and list(product.data_dir.glob("valkey.broken-*")), 60)
    return f"back, empty, after {time.monotonic() - died:.1f} s"


def queue_server_hung(product: Product) -> str:
    """Webhooks are answered as if nothing were."""
    wait_for(lambda: _answers(product), 30)
    for left in reversed(range(3)):  # a busy machine is slow now and then
        pid = product.queue_server()
        product.kill(pid, signal.SIGSTOP)
        try:
            answers = [product.tell(task, timeout_s=5) for task in list(product.studio.tasks)[-20:]]
        finally:
            product.kill(pid, signal.SIGCONT)
        assert {status for status, _ in answers} == {201}
        seconds = sorted(seconds for _, seconds in answers)
        if seconds[-1] < 1.0:
            break
        assert left, f"a webhook took {seconds[-1]:.2f} s"
    return f"20 webhooks meanwhile, the slowest {seconds[-1] * 1000:.0f} ms, half under {seconds[10] * 1000:.0f} ms"


def label_studio_down(product: Product) -> str:
    return _away(product, "down", True, 4)


def label_studio_broken(product: Product) -> str:
    return _away(product, "broken", True, 3)


def label_studio_slow(product: Product) -> str:
    return _away(product, "slow_s", 0.7, 5)


def worker_stalled(product: Product) -> str:
    """A worker sleeps past its lease and wakes up: what it writes then is not kept."""
    assert product.store is not None
    pid, subject = wait_for(lambda: product.worker_of("video"), 60)
    fence = _fence(product, subject)
    product.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        wait_for(lambda: _fence(product, subject) > fence or _state(product, subject) == "done", 90 + LEASE_S)
    finally:
        product.kill(pid, signal.SIGCONT)
    return f"its video was another's after {time.monotonic() - began:.1f} s; the lease is {LEASE_S:g} s"


def disk_full(product: Product) -> str:
    """Nothing new is taken in or worked on; it goes on by itself when there is room."""
    usage = shutil.disk_usage(product.data_dir)
    ballast = product.data_dir / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, usage.free // 2 + usage.free // 20)
    try:
        status = wait_for(lambda: product.tell(1)[0] == 503, 10)
        assert status
        time.sleep(3)
        before = product.delivered()
    finally:
        ballast.unlink()
    freed = time.monotonic()
    wait_for(lambda: product.tell(1)[0] == 201, 10)
    if before < len(product.states()):
        wait_for(lambda: product.delivered() > before, 60)
    return f"webhooks answered 503; went on {time.monotonic() - freed:.1f} s after there was room"


def poison_video(product: Product) -> str:
    """A video that kills its worker: set aside after three, with a reason; the others go on."""
    assert product.store is not None
    make_clip(product.clips / f"{_POISON}.mp4", [Scene(60, seed=n) for n in range(4)], size=(640, 360))
    product.studio.add_task(_POISON, 1, {"video": f"/data/local-files/?d={_POISON}.mp4"})
    wait_for(lambda: product.tell(_POISON)[0] == 201, 30)
    [video] = product.store.videos(UID, [_POISON])
    killed = 0

    def set_aside() -> bool:
        nonlocal killed
        found = product.worker_of("video")
        if found is not None and found[1] == str(video.id):
            killed += product.kill(found[0])
            wait_for(lambda: product.worker_of("video") != found, 30)
        return _state(product, str(video.id)) == "failed"

    wait_for(set_aside, 300)
    assert killed == 3
    return "set aside when it had stopped 3 workers"


_FAULTS: tuple[Fault, ...] = (
    worker_killed,
    queue_server_killed,
    queue_server_wiped,
    label_studio_down,
    queue_file_corrupted,
    worker_stalled,
    label_studio_broken,
    queue_server_hung,
    label_studio_slow,
    supervisor_killed,
    disk_full,
    poison_video,
    worker_killed,
)


# --- steps ---


def _away(product: Product, how: str, value: object, seconds: float) -> str:
    before = getattr(product.studio, how)
    setattr(product.studio, how, value)
    time.sleep(seconds)
    setattr(product.studio, how, before)
    count = product.delivered()
    back = time.monotonic()
    if count < len(product.states()):
        wait_for(lambda: product.delivered() > count, 60)
    return f"{seconds:g} s; the next delivery {time.monotonic() - back:.1f} s after it was back"


def _client(product: Product) -> Redis:
    return Redis(unix_socket_path=str(own_socket(product.data_dir)), socket_timeout=1)


def _answers(product: Product) -> bool:
    try:
        return bool(_client(product).ping())
    except Exception:
        return False


def _row(product: Product, subject: str) -> tuple[int, str]:
    assert product.store is not None
    return next(
        (row.fence, row.state)
        for row in product.store.ledger.rows(limit=100_000)
        if (row.kind, row.subject) == ("video", subject)
    )


def _fence(product: Product, subject: str) -> int:
    return _row(product, subject)[0]


def _state(product: Product, subject: str) -> str:
    return _row(product, subject)[1]


def _name(fault: Fault) -> str:
    return fault.__name__.replace("_", " ")
