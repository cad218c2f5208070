"""The jobs as a worker runs them: real clips, a real ledger and model; Label Studio, where there is one, in memory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask import Flask
from numpy.typing import NDArray
from sqlalchemy import update

from lookalike import edits, logs, wire
from lookalike.errors import EmbedderError, LabelStudioUnreachable, QueueError
from lookalike.grouping import Choice, cut
from lookalike.label_config import shipped_config
from lookalike.label_studio import LabelStudio
from lookalike.ledger import Claim, Work
from lookalike.records import Clustering, Json
from lookalike.schema import models, work
from lookalike.settings import Settings
from lookalike.store import Project
from tests.clips import BLACK, Scene, make_clip
from tests.services import free_port
from tests.studio import CREATED_AT, TOKEN, FakeStudio, running_studio, served
from workers import clustering, jobs
from workers.embedders import Embedder, Picture, Vectors, open_embedder
from workers.workplace import Workplace

UID = wire.project_uid(1, CREATED_AT)
TIMELINE = shipped_config("video_timeline")
SHORT = [Scene(15, seed=1), Scene(15, seed=2)]

Open = Callable[..., Workplace]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return open_embedder("efficientnet-lite0", device="cpu", cache_dir=tmp_path_factory.mktemp("models"))


@pytest.fixture
def opened(tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the process's workplace, with a project of video timelines in it; no queue server."""
    places: list[Workplace] = []
    monkeypatch.setattr(jobs, "_workplace", None)

    def open_place(studio: FakeStudio | None = None, **changes: Any) -> Workplace:
        if studio is not None:
            changes |= {"label_studio_url": studio.url, "label_studio_token": TOKEN}
        settings = Settings(
            data_dir=tmp_path / "data",
            local_files_root=str(tmp_path / "media"),
            redis_url=f"unix://{tmp_path}/none.sock",
            trusted_hosts="127.0.0.1",
            **changes,
        )
        place = jobs.open_workplace(settings, "w")
        place.embedder = embedder
        place.store.put_project(Project(UID, 1, "Clips", TIMELINE))
        places.append(place)
        return place

    yield open_place
    for place in places:
        place.store.close()


@pytest.fixture
def place(opened: Open) -> Workplace:
    return opened()


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with running_studio() as running:
        running.add_project(1, TIMELINE)
        yield running


def add(place: Workplace, task: int, url: str) -> int:
    """A task of the project; the id of its video."""
    place.store.add_videos(UID, [(task, url, {"video": url})])
    return place.store.videos(UID, [task])[0].id


def add_clip(place: Workplace, task: int, scenes: Sequence[Scene] = SHORT) -> int:
    make_clip(Path(place.settings.local_files_root) / f"{task}.mp4", scenes)
    return add(place, task, f"/data/local-files/?d={task}.mp4")


def row_of(place: Workplace, kind: str, subject: object = UID) -> Work:
    return next(row for row in place.store.ledger.rows() if (row.kind, row.subject) == (kind, str(subject)))


def run(place: Workplace, kind: str, subject: object = UID) -> Work:
    """Do the work as a worker would; how it came out."""
    getattr(jobs, kind)(row_of(place, kind, subject).id)
    return row_of(place, kind, subject)


def make_due(place: Workplace, row: Work) -> None:
    """As if the wait were over."""
    with place.store.engine.begin() as connection:
        connection.execute(update(work).where(work.c.id == row.id).values(next_at=0.0))


def ask_again(place: Workplace, kind: Any, subject: object = UID) -> None:
    with place.store.engine.begin() as connection:
        place.store.ledger.want(connection, kind, [(str(subject), UID)])


def body(place: Workplace, task: int) -> Json:
    return place.store.predictions(UID, [task])[task].body


def clustered(place: Workplace, *tasks: int) -> list[int]:
    """Videos of clips, done and clustered; their ids."""
    videos = [add_clip(place, task) for task in tasks]
    for video in videos:
        assert run(place, "video", video).state == "done"
    assert run(place, "cluster").state == "done"
    return videos


class Meddled:
    """The model, and something that happens while it is at work."""

    def __init__(self, embedder: Embedder, meanwhile: Callable[[], object]) -> None:
        self.name, self.dim, self.takes = embedder.name, embedder.dim, embedder.takes
        self._embedder, self._meanwhile = embedder, meanwhile

    def embed(self, images: Sequence[Picture]) -> Vectors:
        self._meanwhile()
        return self._embedder.embed(images)

    def embed_text(self, texts: Sequence[str]) -> Vectors:
        raise AssertionError("nobody asks for words here")


class Mirrored(Meddled):
    """Another model: what the first sees in the pictures' mirror images."""

    def __init__(self, embedder: Embedder, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__(embedder, meanwhile)
        self.name = "mirrored"

    def embed(self, images: Sequence[Picture]) -> Vectors:
        return super().embed([np.ascontiguousarray(image[:, ::-1]) for image in images])


# --- from a clip to its prediction ---


def test_video_then_cluster__the_timeline_is_covered(opened: Open) -> None:
    place = opened(clusters=2)
    video = add_clip(place, 5, [Scene(40, seed=1), Scene(40, seed=2), Scene(40, seed=1)])
    assert run(place, "video", video).state == "done"

    stored = place.store.video(video)
    assert stored is not None
    assert (stored.frame_count, stored.duration_s, stored.width_px, stored.height_px) == (120, 4.8, 320, 180)
    frames = place.store.keyframes([video])[video]
    assert [(frame.first_frame, frame.last_frame) for frame in frames] == [(0, 39), (40, 79), (80, 119)]
    pictures = sorted(path.name for path in place.settings.picture_folder(video).iterdir())
    assert pictures == [f"{frame.frame_index:07d}.jpg" for frame in frames]
    vectors = place.store.load_embeddings(UID, "efficientnet-lite0")
    assert vectors.keyframe_ids.tolist() == [frame.id for frame in frames]
    assert vectors.vectors.shape == (3, 1280)
    assert not any((place.settings.data_dir / "downloads").iterdir())

    assert run(place, "cluster").state == "done"
    result = body(place, 5)["result"]
    ranges = [region["value"]["ranges"][0] for region in result]
    assert [(r["start"], r["end"]) for r in ranges] == [(1, 40), (41, 80), (81, 120)]
    assert all(region["value"]["timelinelabels"] == ["Cluster (unnamed)"] for region in result)
    first, second, third = (region["meta"]["text"][0] for region in result)
    assert first == third == "c0000 · 2 keyframes like this in 1 video"
    assert second == "c0001 · 1 keyframe like this in 1 video"
    assert {row.kind for row in place.store.ledger.rows() if row.state == "due"} == {
        "deliver",
        "companion",
        "propagate",
    }


def test_video__no_queue_server_is_a_warning(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QueueError):
        place.queue.ping()
    assert run(place, "video", add_clip(place, 5, SHORT[:1])).state == "done"
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage().endswith("; the ledger remembers the work")


def test_video__twice_changes_nothing(place: Workplace) -> None:
    [video] = clustered(place, 5)
    model = "efficientnet-lite0"

    def everything() -> tuple[Any, ...]:
        vectors, (grouped, fitted) = place.store.load_embeddings(UID, model), place.store.clustering(UID, model) or ()
        pictures = {path.name: path.read_bytes() for path in place.settings.picture_folder(video).iterdir()}
        return (
            place.store.keyframes([video]),
            vectors.keyframe_ids.tolist(),
            vectors.vectors.tobytes(),
            (grouped.clusters.tolist(), grouped.centroids.tolist(), fitted),
            pictures,
            place.store.predictions(UID, [5]),
        )

    before = everything()
    for kind, subject in (("video", video), ("cluster", UID)):
        ask_again(place, kind, subject)
        again = run(place, kind, subject)
        assert (again.state, again.fence) == ("done", 2)
    assert everything() == before


def test_video__a_wake_up_call_that_comes_twice_does_nothing(place: Workplace) -> None:
    video = add_clip(place, 5, SHORT[:1])
    assert run(place, "video", video).fence == 1
    shutil.rmtree(place.settings.local_files_root)
    again = run(place, "video", video)
    assert (again.state, again.fence, again.error) == ("done", 1, "")


def test_video__gone_meanwhile_is_done(place: Workplace) -> None:
    video = add_clip(place, 5, SHORT[:1])
    row = row_of(place, "video", video)
    place.store.delete_videos(UID, [5])
    jobs.video(row.id)  # its row has gone too
    assert place.store.video(video) is None


def test_video__black_has_no_keyframes_and_an_empty_timeline(place: Workplace) -> None:
    black, other = add_clip(place, 5, [BLACK(50)]), add_clip(place, 6)
    for video in (black, other):
        assert run(place, "video", video).state == "done"
        assert run(place, "cluster").state == "done"
        ask_again(place, "cluster")
    assert place.store.keyframes([black])[black] == []
    assert body(place, 5)["result"] == []
    assert len(body(place, 6)["result"]) == 2


def test_video__a_picture_is_one_keyframe_and_one_choice(place: Workplace) -> None:
    place.store.put_project(Project(UID, 1, "Pictures", shipped_config("keyframe_choices")))
    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    path = Path(place.settings.local_files_root) / "5.jpg"
    path.parent.mkdir()
    cv2.imwrite(str(path), cv2.GaussianBlur(picture, (0, 0), 2))
    row = run(place, "video", add(place, 5, "/data/local-files/?d=5.jpg"))
    assert (row.state, row.error) == ("done", "")
    assert run(place, "cluster").state == "done"
    [choice] = body(place, 5)["result"]
    assert choice["value"]["choices"] == ["Cluster (unnamed)"]


# --- what cannot be had ---


def test_video__broken_local_file_is_named_as_the_task_names_it(place: Workplace) -> None:
    root = Path(place.settings.local_files_root)
    root.mkdir()
    (root / "broken.mp4").write_bytes(b"this is no video" * 100)
    row = run(place, "video", add(place, 5, "/data/local-files/?d=broken.mp4"))
    assert row.state == "failed"
    assert row.error.startswith("/data/local-files/?d=broken.mp4 cannot be read as a video (")
    assert str(root) not in row.error


def test_video__broken_download_is_named_as_the_task_names_it(place: Workplace) -> None:
    """Our copy is called by a digest, which tells nobody anything."""
    web = Flask("web")
    web.add_url_rule("/street.mp4", view_func=lambda: b"this is no video" * 100)
    with served(web) as address:
        row = run(place, "video", add(place, 5, f"{address}/street.mp4"))
    assert row.state == "failed"
    assert row.error.startswith(f"{address}/street.mp4 cannot be read as a video (")
    assert not any((place.settings.data_dir / "downloads").iterdir())


def test_video__empty_folder_missing(place: Workplace) -> None:
    root = Path(place.settings.local_files_root)
    (root / "folder").mkdir(parents=True)
    (root / "empty.mp4").touch()
    said = {}
    for task, name in enumerate(["empty.mp4", "folder", "../../etc/passwd"], 1):
        row = run(place, "video", add(place, task, str(root / name)))
        assert row.state == "failed"
        said[name] = row.error
    assert said["empty.mp4"].endswith("empty.mp4 is empty; upload it again")
    assert said["folder"].endswith("folder is a folder, not a file")
    assert "lies outside LOOKALIKE_LOCAL_FILES_ROOT" in said["../../etc/passwd"]


def test_video__unreachable_host_is_tried_later(place: Workplace) -> None:
    row = run(place, "video", add(place, 5, f"http://127.0.0.1:{free_port()}/street.mp4"))
    assert (row.state, row.tries) == ("due", 1)
    assert row.error.endswith("it is tried again later")
    assert place.store.video_status(UID)[0].state == "queued"


def test_video__a_host_that_never_answers_is_set_aside(opened: Open) -> None:
    place = opened(max_tries=3)
    video = add(place, 5, f"http://127.0.0.1:{free_port()}/clip.mp4")
    for _ in range(3):
        row = run(place, "video", video)
        make_due(place, row)
    assert row.state == "failed"
    assert row.error.startswith("set aside after 3 tries; the last: http://127.0.0.1:")
    assert place.store.ledger.endings() == {
        ("video", "later", "MediaUnreachable"): 2,
        ("video", "failed", "MediaUnreachable"): 1,
    }
    place.store.ledger.retry(UID, [row.id])
    assert run(place, "video", video).state == "due"  # as often again


def test_video__waits_for_label_studio_for_ever(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio, max_tries=2)
    studio.down = True
    video = add(place, 5, "/data/upload/1/clip.mp4")
    assert place.label_studio is not None
    place.label_studio._tries = 1
    for _ in range(4):
        row = run(place, "video", video)
        assert (row.state, row.tries) == ("due", 0)
        make_due(place, row)


def test_deliver__a_lasting_refusal_is_set_aside(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio, max_tries=2)
    studio.add_task(5, 1, {"video": "5.mp4"})
    [video] = clustered(place, 5)
    studio.token = "another"
    assert run(place, "deliver", video).state == "due"
    make_due(place, row_of(place, "deliver", video))
    row = run(place, "deliver", video)
    assert row.state == "failed"
    assert "set aside after 2 tries; the last: Label Studio does not accept LOOKALIKE_LABEL_STUDIO_TOKEN" in row.error
    assert [status.state for status in place.store.video_status(UID)] == ["failed"]


def test_status__a_project_that_cannot_be_clustered_is_no_endless_wait(place: Workplace) -> None:
    video = add_clip(place, 5)
    run(place, "video", video)
    with place.store.engine.begin() as connection:
        connection.execute(update(work).where(work.c.kind == "cluster").values(state="failed", error="out of numbers"))
    [status] = place.store.video_status(UID)
    assert (status.state, status.error) == ("failed", "out of numbers")


def test_run__every_line_has_the_trace_of_its_task(
    opened: Open, studio: FakeStudio, caplog: pytest.LogCaptureFixture
) -> None:
    place = opened(studio)
    studio.add_task(5, 1, {"video": "5.mp4"})
    facts: list[dict[str, object]] = []
    caplog.handler.addFilter(lambda record: facts.append(dict(logs._facts.get({}))) or True)
    with caplog.at_level(logging.INFO, logger="lookalike.jobs"):
        [video] = clustered(place, 5)
        run(place, "deliver", video)
    by_job = {str(fact["job"]).split("-")[0]: fact for fact in facts if "job" in fact}
    assert by_job["video"]["trace_id"] == by_job["deliver"]["trace_id"] == logs.trace_id(UID, 5)
    assert by_job["video"]["task"] == 5
    assert by_job["cluster"]["trace_id"] == logs.trace_id(UID)
    assert {"fetching", "extracting", "embedding", "whole"} <= {
        stage for kind, stage in place.store.ledger.durations() if kind == "video"
    }


def test_video__full_disk_waits(opened: Open) -> None:
    place = opened(disk_free_mb=1e12)
    video = add_clip(place, 5, SHORT[:1])
    row = run(place, "video", video)
    assert (row.state, row.tries) == ("due", 0)
    assert row.error.startswith("waiting for disk: ")
    assert place.store.video(video).frame_count is None  # type: ignore[union-attr]


# --- the edge of a job ---


def test_run__a_lost_claim_writes_nothing(
    place: Workplace, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lookalike.jobs")
    video = add_clip(place, 5)
    row = row_of(place, "video", video)
    others: list[Claim | None] = []

    def take_over() -> None:
        place.store.ledger.release("w")
        others.append(place.store.ledger.claim(row.id, "other", lease_s=60, max_crashes=3))

    place.embedder = Meddled(embedder, take_over)
    jobs.video(row.id)
    assert others[0] is not None
    assert f"video {video}: dropped: video {video}: another worker has taken over" in caplog.text
    assert place.store.keyframes([video])[video] == []
    assert len(place.store.load_embeddings(UID, embedder.name).keyframe_ids) == 0
    after = row_of(place, "video", video)
    assert (after.state, after.fence, after.error) == ("running", 2, "")
    assert [each.kind for each in place.store.ledger.rows()] == ["video"]  # no clustering was asked for

    place.embedder = embedder
    place.store.ledger.later(others[0], "", delay_s=0)
    assert run(place, "video", video).state == "done"


def test_run__a_bug_is_recorded_raised_and_set_aside_after_three(
    place: Workplace, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.ledger._RETRY_FIRST_S", 0.0)
    video = add_clip(place, 5, SHORT[:1])
    place.embedder = Meddled(embedder, lambda: 1 // 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            run(place, "video", video)
        row = row_of(place, "video", video)
        assert (row.state, row.error.split(":")[0]) == ("due", "ZeroDivisionError")
    row = run(place, "video", video)
    assert row.state == "failed"
    assert row.error.startswith("set aside after 3 failures in a row; the last: ZeroDivisionError: ")

    place.embedder = embedder
    assert place.store.ledger.retry(UID) == 1
    assert run(place, "video", video).state == "done"


def test_run__needs_a_workplace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_workplace", None)
    with pytest.raises(RuntimeError, match="open_workplace"):
        jobs.cluster(1)


def test_run__tells_its_stage_while_it_runs(place: Workplace, embedder: Embedder) -> None:
    video = add_clip(place, 5, SHORT[:1])
    seen: list[str] = []
    place.embedder = Meddled(embedder, lambda: seen.append(place.store.video_status(UID)[0].state))
    assert run(place, "video", video).stage == ""
    assert seen == ["embedding"]


def test_cluster__configuration_that_we_cannot_fill(place: Workplace) -> None:
    place.store.put_project(Project(UID, 1, "Texts", "<View><Text name='t' value='$t'/></View>"))
    clustered(place, 5)
    assert place.store.predictions(UID, [5]) == {}
    assert place.store.clustering(UID, "efficientnet-lite0") is not None


# --- with a Label Studio ---


def test_deliver__once_and_again_is_one_prediction(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    studio.add_task(5, 1, {"video": "x"})
    [video] = clustered(place, 5)
    assert run(place, "deliver", video).state == "done"
    [sent] = studio.predictions.values()
    assert {key: sent[key] for key in body(place, 5)} == body(place, 5)
    assert [status.state for status in place.store.video_status(UID)] == ["delivered"]
    ask_again(place, "deliver", video)
    assert run(place, "deliver", video).state == "done"
    assert len(studio.predictions) == 1


def test_deliver__what_a_model_before_gave_is_replaced_and_other_peoples_is_not(
    opened: Open, studio: FakeStudio
) -> None:
    place = opened(studio)
    [video] = clustered(place, 5)
    studio.add_task(5, 1, {"video": "5.mp4"})
    for number, version in enumerate(("theirs", "lookalike-the-one-before"), 1):
        studio.predictions[number] = {"id": number, "task": 5, "model_version": version, "result": [], "score": 0.1}
    assert run(place, "deliver", video).state == "done"
    rows = {row["id"]: row["model_version"] for row in studio.predictions.values()}
    assert rows == {1: "theirs", 2: "lookalike-efficientnet-lite0"}
    assert studio.predictions[2]["result"] == body(place, 5)["result"]


def test_deliver__without_label_studio_says_so(place: Workplace) -> None:
    [video] = clustered(place, 5)
    row = run(place, "deliver", video)
    assert (row.state, row.error) == (
        "failed",
        "LOOKALIKE_LABEL_STUDIO_URL is not set, so predictions only go out when Label Studio asks for them",
    )
    for kind in ("companion", "propagate"):
        assert run(place, kind).state == "done"


def test_deliver__label_studio_down_now_is_delivered_later(
    opened: Open, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.label_studio._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("workers.workplace._OUTAGE_S", 0.0)
    place = opened(studio)
    studio.add_task(5, 1, {"video": "x"})
    [video] = clustered(place, 5)
    fence = row_of(place, "video", video).fence
    studio.down = True
    row = run(place, "deliver", video)
    assert (row.state, row.tries) == ("due", 0)
    assert "503" in row.error
    studio.down = False
    assert run(place, "deliver", video).state == "done"
    assert len(studio.predictions) == 1
    assert row_of(place, "video", video).fence == fence  # nothing was computed again


def test_deliver__task_gone_forgets_the_video(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    [video] = clustered(place, 5)
    jobs.deliver(row_of(place, "deliver", video).id)
    assert place.store.videos(UID) == []
    assert not place.settings.picture_folder(video).exists()
    assert row_of(place, "cluster").state == "due"


def test_sync__finds_new_tasks_and_forgets_those_that_are_gone(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    [gone, kept] = clustered(place, 5, 6)
    studio.add_task(6, 1, {"video": "/data/local-files/?d=6.mp4"})
    studio.add_task(7, 1, {"video": "/data/local-files/?d=7.mp4", "other": 1})
    studio.add_task(8, 1, {"text": "no video"})
    studio.add_task(9, 1, {"video": ["no", "address"]})
    studio.add_task(10, 2, {"video": "another project's"})
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    assert [video.task for video in place.store.videos(UID)] == [6, 7, 8, 9]
    assert place.store.videos(UID, [7])[0].data == {"video": "/data/local-files/?d=7.mp4", "other": 1}
    assert row_of(place, "video", place.store.videos(UID, [7])[0].id).state == "due"
    assert row_of(place, "video", kept).state == "done"
    assert not place.settings.picture_folder(gone).exists()
    assert place.settings.picture_folder(kept).exists()
    assert row_of(place, "cluster").state == "due"
    assert studio.webhooks == {}


def test_sync__a_task_without_an_address_is_told_and_mended(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    [kept] = clustered(place, 5)
    studio.add_task(5, 1, {"video": ""})
    studio.add_task(6, 1, {"video": ""})
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    assert place.store.keyframes([kept])[kept], "what is known of a video is not thrown away"
    [video] = place.store.videos(UID, [6])
    row = run(place, "video", video.id)
    assert row.error == "the task has no address in 'video'; write one there, or delete the task"
    assert {status.task: status.state for status in place.store.video_status(UID)}[6] == "failed"
    studio.tasks[6]["data"]["video"] = "/data/local-files/?d=5.mp4"
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    assert run(place, "video", video.id).state == "done"


def test_sync__a_task_that_comes_in_while_it_reads_is_not_gone(
    opened: Open, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = opened(studio)
    read = LabelStudio.tasks

    def tasks(self: LabelStudio, project: int, *, query: Json | None = None) -> Iterator[Json]:
        yield from read(self, project, query=query)
        studio.add_task(7, 1, {"video": "/data/local-files/?d=7.mp4"})
        add(place, 7, "/data/local-files/?d=7.mp4")  # as its webhook does

    monkeypatch.setattr(LabelStudio, "tasks", tasks)
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    [video] = place.store.videos(UID, [7])
    assert row_of(place, "video", video.id).state == "due"


def test_sync__a_task_that_a_listing_skipped_is_not_gone(
    opened: Open, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tasks of the first page are deleted before the second is read, those that move over are on neither."""
    place = opened(studio)
    [_, skipped] = clustered(place, 5, 6)
    for task in (5, 6):
        studio.add_task(task, 1, {"video": f"/data/local-files/?d={task}.mp4"})
    read = LabelStudio.tasks

    def tasks(self: LabelStudio, project: int, *, query: Json | None = None) -> Iterator[Json]:
        yield from (task for task in read(self, project, query=query) if query or task["id"] != 6)

    monkeypatch.setattr(LabelStudio, "tasks", tasks)
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    assert place.store.video(skipped) is not None


def test_sync__an_address_that_has_changed_is_worked_on_again(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    [before] = clustered(place, 5)
    studio.add_task(5, 1, {"video": "/data/local-files/?d=other.mp4"})
    place.store.want("sync", UID)
    run(place, "sync")
    [video] = place.store.videos(UID, [5])
    assert row_of(place, "video", video.id).state == "due"
    assert place.store.video(before) is None
    assert not place.settings.picture_folder(before).exists()


def test_sync__a_new_configuration_is_composed_for(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    clustered(place, 5)
    studio.add_task(5, 1, {"video": "/data/local-files/?d=5.mp4"})
    place.store.want("sync", UID)
    assert row_of(place, "cluster").state == "done"
    run(place, "sync")
    assert row_of(place, "cluster").state == "done"
    studio.projects[1] |= {"title": "New", "label_config": shipped_config("video_choices")}
    ask_again(place, "sync")
    run(place, "sync")
    assert row_of(place, "cluster").state == "due"
    run(place, "cluster")
    assert body(place, 5)["result"][0]["value"]["choices"] == ["Cluster (unnamed)"]


@pytest.mark.parametrize("used_again", [False, True])
def test_sync__a_deleted_project_is_forgotten(opened: Open, studio: FakeStudio, used_again: bool) -> None:
    """Label Studio's SQLite gives the id of a deleted project to the next one."""
    place = opened(studio)
    [video] = clustered(place, 5)
    del studio.projects[1]
    if used_again:
        studio.add_project(1, TIMELINE, created_at="2026-11-24T00:00:00.000000Z")
        studio.add_task(5, 1, {"video": "a stranger's"})
    place.store.want("sync", UID)
    jobs.sync(row_of(place, "sync").id)
    assert place.store.projects() == []
    assert place.store.video(video) is None
    assert not place.settings.picture_folder(video).exists()


def test_sync__label_studio_down_forgets_nothing(
    opened: Open, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.label_studio._FIRST_PAUSE_S", 0.001)
    place = opened(studio)
    clustered(place, 5)
    place.store.want("sync", UID)
    studio.down = True
    with pytest.raises(LabelStudioUnreachable):
        place.label_studio.version()  # type: ignore[union-attr]
    row = run(place, "sync")
    assert (row.state, row.tries) == ("due", 0)
    assert [video.task for video in place.store.videos(UID)] == [5]


def test_sync__webhook_carries_our_login(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio, basic_auth_user="ada", basic_auth_pass="lovelace")
    for _ in range(2):
        ask_again(place, "sync")
        assert run(place, "sync").state == "done"
    [hook] = studio.webhooks.values()
    assert hook["url"] == "http://127.0.0.1:9090/webhook"
    assert hook["headers"] == {"Authorization": "Basic YWRhOmxvdmVsYWNl"}


# --- steps ---


def test_sweep_pictures__only_of_videos_that_nobody_knows(place: Workplace) -> None:
    known = add_clip(place, 5, SHORT[:1])
    for video in (known, known + 1):
        place.settings.picture_folder(video).mkdir(parents=True)
    jobs.sweep_pictures(place.store, place.settings)
    assert [path.name for path in place.settings.keyframes_dir.iterdir()] == [f"{known:09d}"]


def test_status__a_configuration_without_the_reserved_label_has_nothing_to_show(place: Workplace) -> None:
    config = shipped_config("video_timeline").replace("Cluster (unnamed)", "Thing")
    place.store.put_project(Project(UID, 1, "Own labels", config))
    run(place, "video", add_clip(place, 5, SHORT[:1]))
    assert [video.state for video in place.store.video_status(UID)] == ["clustering"]
    run(place, "cluster")
    assert [video.state for video in place.store.video_status(UID)] == ["nothing to show yet"]


def test_cluster__a_fit_leaves_its_tree_and_its_reason(opened: Open) -> None:
    place = opened(clustering="ward")
    clustered(place, 5, 6)
    model = place.settings.embedder
    grouped, _ = place.store.clustering(UID, model) or pytest.fail("nothing was kept")
    fit = place.store.fit(UID, model)
    assert fit is not None
    assert fit.tree is not None
    assert fit.proposal is not None
    assert fit.tree.keyframe_ids.tolist() == grouped.keyframe_ids.tolist()
    assert cut(fit.tree, len(grouped.centroids)).clusters.tolist() == grouped.clusters.tolist()
    assert fit.proposal.k == len(grouped.centroids)
    ask_again(place, "cluster")
    run(place, "cluster")
    assert place.store.fit(UID, model) is not None, "what nothing was fitted for stays"


def test_cluster__a_tree_is_cut_where_a_person_wants_it(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    place = opened(clustering="ward")
    store, model = place.store, place.settings.embedder

    def clips(*tasks: int) -> None:
        for task in tasks:
            clip = add_clip(place, task, [Scene(15, seed=100 * task + n) for n in range(5)])
            assert run(place, "video", clip).state == "done"

    def grouped() -> Clustering:
        assert run(place, "cluster").state == "done"
        return (store.clustering(UID, model) or pytest.fail("nothing was kept"))[0]

    def cut_into(groups: int) -> tuple[Clustering, int]:
        asked = store.edits.add(UID, "group", "ann", text=str(groups))
        ask_again(place, "cluster")
        with monkeypatch.context() as here:
            here.setattr(clustering, "tree", lambda *_: pytest.fail("there is one"))
            return grouped(), asked

    clips(5, 6)
    first, fit = grouped(), store.fit(UID, model)
    assert fit
    assert fit.tree
    assert fit.proposal
    coarse, asked = cut_into(3)
    now = store.fit(UID, model)
    assert now
    assert now.tree
    assert (now.choice, now.proposal, now.tree.pack()) == (Choice("ward", 3, 0), fit.proposal, fit.tree.pack())
    assert len(np.unique(coarse.clusters)) == 3
    store.edits.add(UID, "name", "ann", text="street", cluster=edits.known_by(coarse, int(coarse.clusters[0])))
    fine, _ = cut_into(4)
    moved = fine.clusters != coarse.clusters
    assert len(set(coarse.clusters[moved])) == len(set(fine.clusters[moved])) == 1, "one came apart, the others stay"
    assert set(fine.clusters[moved]).isdisjoint(coarse.clusters), "a number is never used for something else"
    assert list(fine.names.values()) == ["street"]

    clips(7)  # half as many again: all is fitted afresh
    grown, refit = grouped(), store.fit(UID, model)
    assert refit
    assert refit.tree
    assert refit.choice == Choice("ward", 4, 0)
    assert len(refit.tree.keyframe_ids) == len(grown.keyframe_ids) > len(first.keyframe_ids)
    assert len(np.unique(grown.clusters)) == 4
    assert list(grown.names.values()) == ["street"]

    for edit in (asked, asked + 2):
        store.edits.put_undone(edit)
    ask_again(place, "cluster")
    assert len(np.unique(grouped().clusters)) > 4
    last = store.fit(UID, model)
    assert last
    assert last.proposal
    assert last.choice == Choice("ward", 0, 0)


def test_cluster__as_many_groups_as_a_person_wants_without_a_tree(opened: Open) -> None:
    place = opened()
    clustered(place, 5, 6)
    asked = place.store.edits.add(UID, "group", "ann", text="2")
    ask_again(place, "cluster")
    assert run(place, "cluster").state == "done"
    grouped, fit = place.store.clustering(UID, place.settings.embedder), place.store.fit(UID, place.settings.embedder)
    assert grouped
    assert fit
    assert fit.proposal
    assert len(np.unique(grouped[0].clusters)) == 2
    assert fit.choice == Choice("pca-kmeans", 2, 0)
    place.store.edits.add(UID, "group", "ann", text="")
    assert place.store.edits.grouping(UID) is None, "as proposed"
    place.store.edits.put_undone(asked + 1)
    chosen = place.store.edits.grouping(UID)
    assert chosen
    assert (chosen.text, chosen.person) == ("2", "ann")


def test_cluster__another_choice_fits_afresh(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    clustered(place, 5, 6)
    model = place.settings.embedder
    first = place.store.fit(UID, model)
    assert first is not None
    assert first.choice == Choice("pca-kmeans", 0, 0)
    place = opened(studio, clusters=1)
    studio.add_task(5, 1, {"video": "/data/local-files/?d=5.mp4"})
    studio.add_task(6, 1, {"video": "/data/local-files/?d=6.mp4"})
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    assert row_of(place, "cluster").state == "due"
    run(place, "cluster")
    grouped, _ = place.store.clustering(UID, model) or pytest.fail("nothing was kept")
    assert set(grouped.clusters.tolist()) == {0}
    fit = place.store.fit(UID, model)
    assert fit is not None
    assert (fit.choice, fit.proposal, fit.tree) == (Choice("pca-kmeans", 1, 0), None, None)
    place.store.want("sync", UID)
    run(place, "sync")
    assert row_of(place, "cluster").state == "done"


# --- another model ---


def models_of(place: Workplace) -> dict[str, int]:
    """Vectors by model."""
    named = ("efficientnet-lite0", "mirrored")
    return {name: len(place.store.load_embeddings(UID, name).keyframe_ids) for name in named}


def choose(place: Workplace, embedder: Embedder) -> None:
    """As after a start with another LOOKALIKE_EMBEDDER."""
    place.settings, place.embedder = place.settings.with_(embedder=embedder.name), embedder


def test_embed__the_old_model_serves_until_all_is_there(place: Workplace, embedder: Embedder) -> None:
    clustered(place, 5, 6)
    before = place.store.clustering(UID, "efficientnet-lite0")
    assert before is not None
    choose(place, Mirrored(embedder))
    assert place.model(UID) == "efficientnet-lite0"
    assert place.store.unembedded(UID, "mirrored") == [1, 2]

    new = add_clip(place, 7)  # comes in meanwhile: embedded by the new model at once
    run(place, "video", new)
    run(place, "cluster")
    assert place.model(UID) == "efficientnet-lite0"
    assert models_of(place) == {"efficientnet-lite0": 4, "mirrored": 2}

    fetched = [path.unlink() for path in Path(place.settings.local_files_root).iterdir()]  # the clips are not needed
    assert len(fetched) == 3
    ask_again(place, "embed")
    assert run(place, "embed").state == "done"
    assert models_of(place) == {"efficientnet-lite0": 4, "mirrored": 6}
    assert place.model(UID) == "efficientnet-lite0"  # until its clusters are made

    assert row_of(place, "cluster").state == "due"
    assert run(place, "cluster").state == "done"
    assert place.model(UID) == "mirrored"
    assert models_of(place) == {"efficientnet-lite0": 0, "mirrored": 6}
    assert place.store.clustering(UID, "efficientnet-lite0") is None
    after = place.store.clustering(UID, "mirrored")
    assert after is not None
    assert len(after[0].keyframe_ids) == 6
    # c0000 is still what it was: the clips show the same two scenes
    same = np.isin(after[0].keyframe_ids, before[0].keyframe_ids)
    assert after[0].clusters[same].tolist() == before[0].clusters.tolist()


def test_embed__a_picture_that_is_gone_asks_for_its_video(place: Workplace, embedder: Embedder) -> None:
    first, second = clustered(place, 5, 6)
    next(place.settings.picture_folder(first).iterdir()).unlink()
    choose(place, Mirrored(embedder))
    ask_again(place, "embed")
    run(place, "embed")
    assert row_of(place, "video", first).state == "due"
    assert row_of(place, "video", second).state == "done"
    run(place, "cluster")
    assert place.model(UID) == "efficientnet-lite0"
    run(place, "video", first)
    run(place, "cluster")
    assert place.model(UID) == "mirrored"


def test_embed__a_video_that_is_lost_does_not_hold_up_the_others(place: Workplace, embedder: Embedder) -> None:
    first, _ = clustered(place, 5, 6)
    next(place.settings.picture_folder(first).iterdir()).unlink()
    (Path(place.settings.local_files_root) / "5.mp4").unlink()
    choose(place, Mirrored(embedder))
    ask_again(place, "embed")
    run(place, "embed")
    with place.store.engine.begin() as connection:
        connection.execute(update(work).where(work.c.id == row_of(place, "video", first).id).values(state="failed"))
    assert run(place, "cluster").state == "done"
    assert place.model(UID) == "mirrored"


def test_embed__takes_turns_with_videos(place: Workplace, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    clustered(place, 5, 6)
    choose(place, Mirrored(embedder))
    monkeypatch.setattr(jobs, "_EMBED_S", -1.0)
    ask_again(place, "embed")
    assert run(place, "embed").state == "due"  # its time is over at once, and it comes again


def test_embed__video_that_became_another_meanwhile_is_left_alone(place: Workplace, embedder: Embedder) -> None:
    (video,) = clustered(place, 5)

    def replaced() -> None:
        make_clip(Path(place.settings.local_files_root) / "5.mp4", [Scene(40, seed=8)])
        place.embedder = Mirrored(embedder)
        ask_again(place, "video", video)
        run(place, "video", video)

    choose(place, Mirrored(embedder, replaced))
    ask_again(place, "embed")
    run(place, "embed")
    assert models_of(place) == {"efficientnet-lite0": 0, "mirrored": 1}


def test_embed__asked_for_where_something_is_missing(place: Workplace, embedder: Embedder) -> None:
    clustered(place, 5)
    ask_again(place, "sync")
    run(place, "sync")
    assert not [row for row in place.store.ledger.rows() if row.kind == "embed"]
    choose(place, Mirrored(embedder))
    ask_again(place, "sync")
    run(place, "sync")
    assert row_of(place, "embed").state == "due"


def test_embedder__other_weights_under_the_same_name_are_refused(opened: Open) -> None:
    place = opened()
    del place.embedder
    assert place.embedder.name == "efficientnet-lite0"
    assert place.store.is_same_model("x", np.array([1, 0, 0], np.float32))
    assert place.store.is_same_model("x", np.array([1, 0.1, 0], np.float32))
    assert not place.store.is_same_model("x", np.array([0, 1, 0], np.float32))
    assert not place.store.is_same_model("x", np.array([1, 0], np.float32))
    with place.store.engine.begin() as connection:
        connection.execute(update(models).values(probe=np.ones(1280, np.float32).tobytes()))
    del place.embedder
    with pytest.raises(EmbedderError, match="is not the model that made the vectors kept under this name"):
        place.embedder  # noqa: B018


def test_embedder__vectors_made_elsewhere_that_are_others_now(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "made.npz"

    def look_again(names: list[str], vectors: NDArray[np.float32]) -> None:
        np.savez(file, path=names, X=vectors)
        vars(place).pop("embedder", None)
        place.embedder  # noqa: B018

    made = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    place = opened(embedder=str(file))
    look_again(["5.mp4", "6.mp4"], made[:2])
    for task in (5, 6):
        assert run(place, "video", add_clip(place, task)).state == "done"
    look_again(["7.mp4", "6.mp4", "5.mp4"], made[::-1])  # more of them, in another order
    look_again(["5.mp4"], made[:1])
    for names, vectors in ((["5.mp4", "6.mp4"], made[1::-1]), (["5.mp4"], made[:1, :4])):
        with pytest.raises(
            EmbedderError, match=r"holds other vectors of \S+d=5\.mp4 than those kept under its name; put"
        ):
            look_again(names, vectors)


# --- what people did to clusters ---


def test_cluster__edits_hold_in_timelines_and_survive_new_keyframes_and_a_new_fit(opened: Open) -> None:
    place = opened(clusters=2)
    looks = [Scene(15, seed=1), Scene(15, seed=2), Scene(15, seed=1), Scene(15, seed=3)]
    first = add_clip(place, 1, looks)
    assert run(place, "video", first).state == "done"
    assert run(place, "cluster").state == "done"
    ids = [frame.id for frame in place.store.keyframes([first])[first]]
    store, model = place.store, "efficientnet-lite0"

    def numbers() -> dict[int, int]:
        found = store.clustering(UID, model)
        assert found is not None
        return dict(zip(found[0].keyframe_ids.tolist(), found[0].clusters.tolist(), strict=True))

    def shown(task: int) -> list[str]:
        return [region["meta"]["text"][0].split(" · ")[0] for region in body(place, task)["result"]]

    before = numbers()
    assert before[ids[0]] == before[ids[2]]
    home = before[ids[1]]
    rest = [keyframe for keyframe, number in before.items() if number == home and keyframe != ids[1]]
    new = max(before.values()) + 1
    split = store.edits.add(UID, "split", "ann", number=new, chosen={ids[1]: 1.0}, cluster=rest or [ids[3]])
    store.edits.add(UID, "junk", "ann", cluster=[ids[0], ids[2]])
    ask_again(place, "cluster")
    assert run(place, "cluster").state == "done"
    assert numbers() == {**before, ids[1]: new}
    assert f"c{new:04d}" in shown(1)
    assert f"c{before[ids[0]]:04d}" not in shown(1), "junk is not shown"

    second = add_clip(place, 2, looks)  # twice as many: all is fitted afresh
    assert run(place, "video", second).state == "done"
    assert run(place, "cluster").state == "done"
    after = numbers()
    assert after[ids[1]] == new
    junk = store.clustering(UID, model)
    assert junk is not None
    assert after[ids[0]] in junk[0].junk
    store.edits.put_undone(split)
    ask_again(place, "cluster")
    assert run(place, "cluster").state == "done"
    assert new not in numbers().values()


@pytest.mark.parametrize("asked", ["similar", "deliver", "question", "map", "sync"])
def test_run__a_forged_wake_up_call_ends_no_work_of_another_kind(
    place: Workplace, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    """Whoever has the queue server may name a function and a row: not one that would call a video done."""
    row = row_of(place, "video", add(place, 1, "/data/local-files/?d=a.mp4"))
    getattr(jobs, asked)(row.id)
    assert "refused" in caplog.text
    after = row_of(place, "video", row.subject)
    assert (after.state, after.kind) == ("due", "video")
