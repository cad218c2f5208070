"""The product under load: it answers, does not grow, and stops in order."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import requests

from tests.clips import Scene, make_clip
from tests.soak.product import PROJECT, UID, Product, memory_mb, running, wait_for
from tests.studio import running_studio


def health_while_videos_are_processed(folder: Path) -> str:
    """Label Studio asks for /health with a second's patience; half of the answers come within 50 ms."""
    with running_studio() as studio, running(folder, studio, workers=4) as product:
        clip = folder / "clip.mp4"
        make_clip(clip, [Scene(100, seed=n) for n in range(6)], size=(640, 360))
        for task in range(1, 41):
            shutil.copy(clip, product.clips / f"{task}.mp4")
            studio.add_task(task, PROJECT, {"video": f"/data/local-files/?d={task}.mp4"})
        assert product.tell(*range(1, 41))[0] == 201
        wait_for(lambda: _running(product), 60)
        seconds = []
        while _running(product):
            began = time.monotonic()
            assert requests.get(f"{product.url}/health", timeout=1).status_code == 200
            if _running(product) == 4:
                seconds.append(time.monotonic() - began)
            time.sleep(0.02)
        seconds.sort()
        assert len(seconds) >= 20, "the videos were done too soon to say anything"
        middle, slow = seconds[len(seconds) // 2] * 1000, seconds[int(len(seconds) * 0.99)] * 1000
        assert middle < 50, f"half of the answers took longer than {middle:.0f} ms"
        return f"half under {middle:.0f} ms, 99 % under {slow:.0f} ms, of {len(seconds)}"


def stops_in_order(folder: Path) -> str:
    """SIGTERM under load: requests in hand are answered, what is at work is finished, nothing is begun twice."""
    with running_studio() as studio, running(folder, studio) as product:
        product.add_clips(range(1, 41))
        assert product.tell(*range(1, 41))[0] == 201
        wait_for(lambda: product.delivered() >= 2, 120)
        statuses: list[int] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                try:
                    statuses.append(requests.get(f"{product.url}/versions", timeout=10).status_code)
                except requests.ConnectionError:
                    return  # it takes no new connection any more

        thread = threading.Thread(target=ask)
        thread.start()
        status, seconds = product.stop()
        over.set()
        thread.join(20)
        assert status == 0
        assert set(statuses) <= {200}
        assert seconds < 30, f"it took {seconds:.0f} s"
        assert not product.pids()
        product.start()
        product.wait_until_done(40, 300)
        assert product.computed() == 40, "something was begun twice"
        return f"{seconds:.1f} s, nothing begun twice"


def memory_over_many_tasks(folder: Path, tasks: int = 1500) -> str:
    """Workers, backend and supervisor take no more after many tasks than after some; nor do open files pile up."""
    with running_studio() as studio, running(folder, studio) as product:
        some = min(200, tasks // 4)
        product.add_clips(range(1, some + 1))  # the others later: reading the project would find them
        assert product.tell(*range(1, some + 1), timeout_s=10)[0] == 201
        product.wait_until_done(some, 6 * some)
        before, files = _sizes(product), _files(product)
        product.add_clips(range(some + 1, tasks + 1))
        for at in range(some + 1, tasks + 1, 50):
            product.tell(*range(at, min(at + 50, tasks + 1)), timeout_s=10)
        product.wait_until_done(tasks, 4.0 * tasks)
        time.sleep(2)
        after = _sizes(product)
        grown = {name: after[name] - before[name] for name in before}
        assert max(grown.values()) < 20, f"MB more than after {some} tasks: {grown}"
        assert _files(product) <= files + 20
        assert not product.wrong_predictions()
        named = ", ".join(f"{name} {mb:+.1f} MB" for name, mb in grown.items())
        return f"{tasks} tasks, since the first {some}: {named}"


def back_pressure(folder: Path) -> str:
    """A queue that is full is told with 503 and when to come back, and what was turned away is found later."""
    with running_studio() as studio, running(folder, studio, max_queue=5, poll_s=5) as product:
        product.add_clips(range(1, 61))
        answers = []
        for at in range(1, 61, 30):
            product.tell(*range(at, at + 30))
            time.sleep(1.1)  # it looks for room once a second
            body = {
                "action": "TASKS_CREATED",
                "project": {"id": PROJECT, "created_at": studio.projects[1]["created_at"]},
            }
            answers.append(requests.post(f"{product.url}/webhook", json={**body, "tasks": []}, timeout=5))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused, "nothing was ever turned away"
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
        product.wait_until_done(60, 300)
        return f"{len(refused)} of {len(answers)} turned away, all 60 tasks done"


def again_changes_nothing(folder: Path) -> str:
    """The whole project twice: no new prediction."""
    with running_studio() as studio, running(folder, studio) as product:
        product.add_clips(range(1, 11))
        product.tell(*range(1, 11))
        product.wait_until_done(10, 120)
        before = {number: dict(row) for number, row in studio.predictions.items()}
        product.stop()
        product.start()
        assert product.store is not None
        product.tell(*range(1, 11))
        product.store.want("sync", UID)
        product.store.want("cluster", UID)
        time.sleep(6)
        product.wait_until_done(10, 60)
        assert studio.predictions == before
        assert product.computed() == 10
        return "0 new predictions, 0 videos begun again"


# --- steps ---


def _running(product: Product) -> int:
    assert product.store is not None
    return product.store.ledger.counts().get(("video", "running"), 0)


_PARTS = {
    "videos": "--queue videos",
    "projects": "--queue projects",
    "backend": "backend.serve",
    "up": "lookalike.cli up",
}


def _sizes(product: Product) -> dict[str, float]:
    """MB of each part, all its processes together."""
    return {name: sum(memory_mb(pid) for pid in product.pids(part)) for name, part in _PARTS.items()}


def _files(product: Product) -> int:
    pids = [pid for part in _PARTS.values() for pid in product.pids(part)]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
