"""Projects at a real Label Studio, with pictures or clips of known categories, worked on as a worker would."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from lookalike import wire
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion
from lookalike.ledger import Kind
from lookalike.queue import Queue
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store
from tests.services import LabelStudioServer, free_port
from workers import jobs
from workers.workplace import Workplace

PICTURES = Path(__file__).parents[3] / "shared" / "data" / "images" / "caltech20"
CATEGORIES = ("Faces", "Motorbikes", "airplanes", "car_side", "Leopards")
VERSION = "lookalike-efficientnet-lite0"
VIDEOS = (
    '<View><Video name="video" value="$video" frameRate="8"/><TimelineLabels name="timeline" toName="video">'
    '<Label value="Cluster (unnamed)" background="#9aa0a6"/>'
    + "".join(f'<Label value="{name}" background="#1a73e8"/>' for name in CATEGORIES)
    + "</TimelineLabels></View>"
)
IMAGES = (
    '<View><Image name="image" value="$image"/><Choices name="category" toName="image" showInline="true">'
    + "".join(f'<Choice value="{name}"/>' for name in (*CATEGORIES, wire.RESERVED_CATEGORY))
    + "</Choices></View>"
)


@dataclass
class Loop:
    """A project of videos or of pictures at a real Label Studio, worked on in this process."""

    studio: LabelStudio
    place: Workplace
    uid: str
    project: int
    truth: Mapping[str | tuple[str, int], str]  # category by picture's name, or by video's and scene

    @property
    def store(self) -> Store:
        return self.place.store

    @property
    def companion(self) -> Companion:
        found = self.store.labels.companion(self.uid)
        assert found is not None
        return found

    def work(self, *kinds: str, until_s: float = 300, may_fail: str = "") -> None:
        """Do what is due (of some kinds, or all) until nothing is, put-off work included.

        Work of the kind `may_fail` may be set aside.
        """
        deadline = time.monotonic() + until_s
        while time.monotonic() < deadline:
            rows = self.store.ledger.rows()
            waiting = [row for row in rows if row.state in ("due", "running") and (not kinds or row.kind in kinds)]
            failed = [row for row in rows if row.state == "failed" and row.kind != may_fail]
            assert not failed, [f"{row.kind}: {row.error}" for row in failed]
            if not waiting:
                return
            for row in self.store.ledger.due(kinds or tuple({row.kind for row in waiting}), 10):
                getattr(jobs, row.kind)(row.id)
            time.sleep(0.05)
        pytest.fail(f"still to do: {waiting}")

    def propagate(self) -> None:
        """What a webhook asks for."""
        self.ask("propagate")

    def ask(self, kind: Kind) -> None:
        self.store.want(kind, self.uid)
        self.work()

    def tasks(self) -> dict[int, dict[str, Any]]:
        return {task["id"]: task for task in self.studio.tasks(self.companion.label_studio_id)}

    def truth_of(self, task: dict[str, Any]) -> str:
        data = task["data"]
        if "time" in data:
            return self.truth[data["video"], int(data["time"])]
        return self.truth[wire.video_name(data["image"])]

    def label(self, task: int, *categories: str, studio: LabelStudio | None = None) -> int:
        """As the editor submits it; the annotation's id. `studio`: as whom."""
        value = {"choices": list(categories)}
        result = {"from_name": "category", "to_name": "image", "type": "choices", "value": value}
        path = f"/api/tasks/{task}/annotations/"
        made = (studio or self.studio)._object("POST", path, json={"result": [result], "lead_time": 1.5})
        return int(made["id"])

    def label_next(self) -> list[int]:
        """Label what tab 1 asks for, as it is; the tasks."""
        tasks, chosen = self.tasks(), self.tab("next")
        for task in chosen:
            self.label(task, self.truth_of(tasks[task]))
        return chosen

    def said(self) -> dict[int, set[str]]:
        """Categories that people gave, by task."""
        found: dict[int, set[str]] = {}
        for row in self.store.labels.labels(self.uid):
            found.setdefault(row.task, set()).add(row.category)
        return found

    def predictions(self) -> dict[int, str]:
        """Category by task, without those that only tell a cluster."""
        rows = self.studio._list("GET", "/api/predictions/", params={"project": self.companion.label_studio_id})
        assert len({row["task"] for row in rows}) == len(rows), "two predictions of one task"
        assert {row["model_version"] for row in rows} <= {VERSION}
        found = {row["task"]: row["result"][0]["value"]["choices"][0] for row in rows if row["result"]}
        return {task: category for task, category in found.items() if category != wire.RESERVED_CATEGORY}

    def tab(self, key: str) -> list[int]:
        """The tasks that a person sees in a tab, in order."""
        params = {"view": self.companion.tabs[key], "page_size": 500, "include": "id"}
        return [task["id"] for task in self.studio._object("GET", "/api/tasks", params=params)["tasks"]]

    def timelines(self) -> dict[str, list[str]]:
        """Segments' categories by video."""
        found = {}
        for task in self.studio.tasks(self.project):
            [prediction] = self.studio.predictions(task["id"])
            name = task["data"]["video"].split("-", 1)[1]
            found[name] = [region["value"]["timelinelabels"][0] for region in prediction["result"]]
        return found


@contextlib.contextmanager
def videos(server: LabelStudioServer, folder: Path) -> Iterator[Loop]:
    """Five videos, each with two pictures of each category, a second each."""
    shown = pictures(folder, 10)
    truth: dict[str | tuple[str, int], str] = {}
    clips = []
    for n in range(5):
        scenes = [(name, shown[name][2 * n + k]) for k in range(2) for name in CATEGORIES]
        clips.append(folder / f"clip{n}.mp4")
        clip(clips[-1], [picture for _, picture in scenes])
        truth |= {(clips[-1].name, second): name for second, (name, _) in enumerate(scenes)}

    def fill(studio: LabelStudio, project: int) -> None:
        urls = studio.upload_files(project, clips)
        studio.import_tasks(project, [{"data": {"video": url}} for url in urls])

    with worked_on(server, folder, "Traffic, first cut", VIDEOS, fill, truth) as loop:
        yield loop


@contextlib.contextmanager
def images(server: LabelStudioServer, folder: Path, count: int = 10, **settings: Any) -> Iterator[Loop]:
    """`count` pictures of each category, each the task of a project of pictures."""
    shown = pictures(folder, count)
    found = {f"{name}-{n}.jpg": (name, path) for name in CATEGORIES for n, path in enumerate(shown[name])}

    def fill(studio: LabelStudio, project: int) -> None:
        urls = studio.upload_pictures(project, [(name, path.read_bytes()) for name, (_, path) in found.items()])
        studio.import_tasks(project, [{"data": {"image": url, "category": "theirs"}} for url in urls.values()])

    truth = {name: category for name, (category, _) in found.items()}
    with worked_on(server, folder, "Pictures, first cut", IMAGES, fill, truth, **settings) as loop:
        yield loop


def pictures(folder: Path, count: int) -> dict[str, list[Path]]:
    """`count` pictures by category: photographs where there are some, else drawn ones of as many kinds."""
    if PICTURES.exists():
        return {name: sorted((PICTURES / name).iterdir())[:count] for name in CATEGORIES}
    return {
        name: [_draw(kind, n, folder / f"{name}-{n}.jpg") for n in range(count)] for kind, name in enumerate(CATEGORIES)
    }


@contextlib.contextmanager
def worked_on(
    server: LabelStudioServer,
    folder: Path,
    title: str,
    config: str,
    fill: Callable[[LabelStudio, int], None],
    truth: Mapping[str | tuple[str, int], str] | Mapping[str, str],
    **changes: Any,
) -> Iterator[Loop]:
    studio = server.client()
    made = studio.create_project(title, config)
    uid = wire.project_uid(made["id"], made["created_at"])
    fill(studio, made["id"])
    settings = Settings(
        data_dir=folder / "data",
        label_studio_url=server.url,
        label_studio_token=server.token,
        keyframe_share=0.1,
        port=free_port(),
        **{"clusters": len(CATEGORIES), **changes},
    )
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        place = Workplace(settings, store, Queue(f"unix://{folder}/no-server"), "test")
        jobs._workplace = place
        store.put_project(Project(uid, made["id"], made["title"], config))
        store.want("sync", uid)
        found = Loop(studio, place, uid, made["id"], dict(truth))
        try:
            found.work()
            yield found
        finally:
            jobs._workplace = None


def busy(seconds: float) -> float:
    """How long that may take here which takes so long on a machine that nobody else uses."""
    return seconds * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


def clip(path: Path, pictures: list[Path]) -> None:
    """A second of each picture, at 8 frames/s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "18"}
        for n, picture in enumerate(pictures):
            image = cv2.resize(cv2.imread(str(picture)), (320, 240))
            for k in range(8):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
                frame.pts, frame.time_base = n * 8 + k, Fraction(1, 8)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _draw(kind: int, number: int, path: Path) -> Path:
    """Rings, stripes, dots, triangles or squares, in the kind's own colours, somewhere on the picture."""
    random = np.random.default_rng(100 * kind + number)
    hue = (36 * kind + int(random.integers(-6, 7))) % 180
    colours = np.uint8([[[hue, 200, 230], [(hue + 90) % 180, 120, 90 + 10 * (number % 5)]]])  # type: ignore[arg-type]
    front, back = (tuple(int(v) for v in c) for c in cv2.cvtColor(colours, cv2.COLOR_HSV2BGR)[0])
    picture = np.full((240, 320, 3), back, np.uint8)
    x, y = int(random.integers(90, 230)), int(random.integers(70, 170))
    size = int(random.integers(40, 70))
    if kind == 0:
        for radius in range(8, size, 12):
            cv2.circle(picture, (x, y), radius, front, 4)
    elif kind == 1:
        for at in range(x % 40, 320, 40):
            cv2.line(picture, (at, 0), (at + size, 240), front, 9)
    elif kind == 2:
        for _ in range(60):
            cv2.circle(picture, (int(random.integers(320)), int(random.integers(240))), 7, front, -1)
    elif kind == 3:
        corners = np.array([[x, y - size], [x - size, y + size], [x + size, y + size]], np.int32)
        cv2.fillPoly(picture, [corners], front)
    else:
        for row in range(0, 240, 30):
            for column in range(30 * (row // 30 % 2), 320, 60):
                cv2.rectangle(picture, (column + x % 30, row), (column + x % 30 + 29, row + 29), front, -1)
    cv2.imwrite(str(path), picture)
    return path
