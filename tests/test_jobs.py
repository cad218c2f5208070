"""The jobs as a worker runs them: real clips, a real ledger and model; Label Studio, where there is one, in memory."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask import Flask

from lookalike import wire
from lookalike.errors import LabelStudioUnreachable, MediaError, QueueError
from lookalike.label_config import shipped_config
from lookalike.label_studio import LabelStudio
from lookalike.ledger import Claim, Work
from lookalike.records import Clustering, Embeddings, Json, keyframe_id
from lookalike.settings import Settings
from lookalike.store import Project
from tests.clips import BLACK, Scene, make_clip
from tests.services import free_port
from tests.studio import CREATED_AT, TOKEN, FakeStudio, running_studio, served
from workers import jobs
from workers.embedders import Embedder, Picture, Vectors, open_embedder
from workers.jobs import Workplace, embed_pictures, picture_folder, regroup

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
        self.name, self.dim, self.input_px = embedder.name, embedder.dim, embedder.input_px
        self._embedder, self._meanwhile = embedder, meanwhile

    def embed(self, images: Sequence[Picture]) -> Vectors:
        self._meanwhile()
        return self._embedder.embed(images)


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
    pictures = sorted(path.name for path in picture_folder(place.settings, video).iterdir())
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
        pictures = {path.name: path.read_bytes() for path in picture_folder(place.settings, video).iterdir()}
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
    assert "lies outside local_files_root" in said["../../etc/passwd"]


def test_video__unreachable_host_is_tried_later(place: Workplace) -> None:
    row = run(place, "video", add(place, 5, f"http://127.0.0.1:{free_port()}/street.mp4"))
    assert (row.state, row.tries) == ("due", 1)
    assert row.error.endswith("it is tried again later")
    assert place.store.video_status(UID)[0].state == "queued"


def test_video__full_disk_waits(opened: Open) -> None:
    place = opened(disk_free_mb=1e12)
    video = add_clip(place, 5, SHORT[:1])
    row = run(place, "video", video)
    assert (row.state, row.tries) == ("due", 1)
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
    assert f"video {video} project {UID}: dropped: video {video}: another worker has taken over" in caplog.text
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


def test_deliver__without_label_studio_says_so(place: Workplace) -> None:
    [video] = clustered(place, 5)
    row = run(place, "deliver", video)
    assert (row.state, row.error) == (
        "failed",
        "label_studio_url is not set, so predictions only go out when Label Studio asks for them",
    )
    for kind in ("companion", "propagate"):
        assert run(place, kind).state == "done"


def test_deliver__label_studio_down_now_is_delivered_later(
    opened: Open, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.label_studio._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("lookalike.ledger._RETRY_FIRST_S", 0.0)
    place = opened(studio)
    studio.add_task(5, 1, {"video": "x"})
    [video] = clustered(place, 5)
    fence = row_of(place, "video", video).fence
    studio.down = True
    row = run(place, "deliver", video)
    assert (row.state, row.tries) == ("due", 1)
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
    assert not picture_folder(place.settings, video).exists()
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
    assert [video.task for video in place.store.videos(UID)] == [6, 7]
    assert place.store.videos(UID, [7])[0].data == {"video": "/data/local-files/?d=7.mp4", "other": 1}
    assert row_of(place, "video", place.store.videos(UID, [7])[0].id).state == "due"
    assert row_of(place, "video", kept).state == "done"
    assert not picture_folder(place.settings, gone).exists()
    assert picture_folder(place.settings, kept).exists()
    assert row_of(place, "cluster").state == "due"
    assert studio.webhooks == {}


def test_sync__a_task_that_comes_in_while_it_reads_is_not_gone(
    opened: Open, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = opened(studio)
    read = LabelStudio.tasks

    def tasks(self: LabelStudio, project: int) -> Iterator[Json]:
        yield from read(self, project)
        studio.add_task(7, 1, {"video": "/data/local-files/?d=7.mp4"})
        add(place, 7, "/data/local-files/?d=7.mp4")  # as its webhook does

    monkeypatch.setattr(LabelStudio, "tasks", tasks)
    place.store.want("sync", UID)
    assert run(place, "sync").state == "done"
    [video] = place.store.videos(UID, [7])
    assert row_of(place, "video", video.id).state == "due"


def test_sync__an_address_that_has_changed_is_worked_on_again(opened: Open, studio: FakeStudio) -> None:
    place = opened(studio)
    [video] = clustered(place, 5)
    studio.add_task(5, 1, {"video": "/data/local-files/?d=other.mp4"})
    place.store.want("sync", UID)
    run(place, "sync")
    assert row_of(place, "video", video).state == "due"
    assert place.store.keyframes([video])[video] == []


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
    assert not picture_folder(place.settings, video).exists()


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
    assert (row.state, row.tries) == ("due", 1)
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


def test_embed_pictures__none(tmp_path: Path, embedder: Embedder) -> None:
    found = embed_pictures(embedder, [], tmp_path)
    assert (found.vectors.shape, found.keyframe_ids.shape, found.model) == ((0, 1280), (0,), "efficientnet-lite0")


def test_embed_pictures__more_than_fit_at_once_keep_their_order(
    place: Workplace, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = add_clip(place, 5)
    run(place, "video", video)
    frames, folder = place.store.keyframes([video])[video], picture_folder(place.settings, video)
    whole = embed_pictures(embedder, frames, folder)
    monkeypatch.setattr(jobs, "_PICTURES", 2)
    parts = embed_pictures(embedder, frames, folder)
    assert np.array_equal(parts.vectors, whole.vectors)
    assert parts.keyframe_ids.tolist() == [frame.id for frame in frames]
    (folder / f"{frames[1].frame_index:07d}.jpg").unlink()
    with pytest.raises(MediaError, match=r"\.jpg is missing or broken; ask for the video again"):
        embed_pictures(embedder, frames, folder)


def test_sweep_pictures__only_of_videos_that_nobody_knows(place: Workplace) -> None:
    known = add_clip(place, 5, SHORT[:1])
    for video in (known, known + 1):
        picture_folder(place.settings, video).mkdir(parents=True)
    jobs.sweep_pictures(place.store, place.settings)
    assert [path.name for path in place.settings.keyframes_dir.iterdir()] == [f"{known:09d}"]


def groups(*sizes: int, first_video: int = 1, seed: int = 0) -> Embeddings:
    """Vectors in as many groups far from each other, group by group; a video holds two keyframes."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(8, 32)) * 10
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    vectors = (middles[numbers] + random.normal(size=(len(numbers), 32))).astype(np.float32)
    ids = [keyframe_id(first_video + n // 2, n % 2) for n in range(len(numbers))]
    return Embeddings(np.asarray(ids, np.int64), vectors, "m")


def both(a: Embeddings, b: Embeddings) -> Embeddings:
    return Embeddings(np.concatenate([a.keyframe_ids, b.keyframe_ids]), np.concatenate([a.vectors, b.vectors]), a.model)


def numbers_of(grouped: Clustering, ids: Sequence[int]) -> list[int]:
    number = dict(zip(grouped.keyframe_ids.tolist(), grouped.clusters.tolist(), strict=True))
    return [number[each] for each in ids]


def test_regroup__first_time_fits_all() -> None:
    found = groups(6, 4)
    grouped, fitted = regroup(None, found, at_rest=False, k=2, seed=0)
    assert fitted == 10
    assert grouped.clusters.tolist() == [0] * 6 + [1] * 4


def test_regroup__the_same_again_is_the_same() -> None:
    found = groups(6, 4)
    known = regroup(None, found, at_rest=True, k=2, seed=0)
    again, fitted = regroup(known, found, at_rest=True, k=2, seed=0)
    assert fitted == 10
    for name in ("keyframe_ids", "clusters", "centroids", "similarity"):
        assert np.array_equal(getattr(again, name), getattr(known[0], name)), name


def test_regroup__new_keyframes_join_and_old_ones_keep_their_numbers() -> None:
    old = groups(9, 8, 7, 6)
    known = regroup(None, old, at_rest=False, k=4, seed=0)
    again = np.flatnonzero(old.keyframe_ids == known[0].centroids[3]).repeat(4)  # a whole fit would call them c0000
    new = Embeddings(keyframe_id(50, 0) + np.arange(4), old.vectors[again], "m")
    grouped, fitted = regroup(known, both(old, new), at_rest=False, k=4, seed=0)
    assert fitted == 30
    assert numbers_of(grouped, old.keyframe_ids.tolist()) == known[0].clusters.tolist()
    assert numbers_of(grouped, new.keyframe_ids.tolist()) == [3] * 4


@pytest.mark.parametrize(
    ("more", "at_rest", "refitted"),
    [(4, False, False), (5, False, True), (0, True, False), (1, True, True)],
)
def test_regroup__growth_fits_afresh_sooner_at_rest(more: int, at_rest: bool, refitted: bool) -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    grown = both(old, groups(0, more, first_video=50, seed=1))
    _, fitted = regroup(known, grown, at_rest=at_rest, k=2, seed=0)
    assert fitted == (10 + more if refitted else 10)


def test_regroup__fitted_afresh_the_numbers_keep_their_meaning() -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    grown = both(old, groups(0, 10, first_video=50, seed=1))  # the second group is the largest now
    grouped, fitted = regroup(known, grown, at_rest=True, k=2, seed=0)
    assert fitted == 20
    assert numbers_of(grouped, grown.keyframe_ids.tolist()) == [0] * 6 + [1] * 14


def test_regroup__removed_videos_leave() -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    left = Embeddings(old.keyframe_ids[:6], old.vectors[:6], "m")
    grouped, fitted = regroup(known, left, at_rest=True, k=2, seed=0)
    assert (grouped.keyframe_ids.tolist(), fitted) == (left.keyframe_ids.tolist(), 10)
    assert grouped.clusters.tolist() == [0] * 6
    assert grouped.centroids[1] == -1  # nothing else is ever called c0001
    none = Embeddings(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), "m")
    emptied, _ = regroup((grouped, fitted), none, at_rest=True, k=2, seed=0)
    assert len(emptied.keyframe_ids) == 0


def test_regroup__removed_and_added_at_once() -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    left = Embeddings(old.keyframe_ids[2:], old.vectors[2:], "m")
    now = both(left, groups(1, 1, first_video=50, seed=1))
    grouped, fitted = regroup(known, now, at_rest=True, k=2, seed=0)
    assert fitted == 10
    assert sorted(grouped.keyframe_ids.tolist()) == sorted(now.keyframe_ids.tolist())
    assert numbers_of(grouped, left.keyframe_ids.tolist()) == [0] * 4 + [1] * 4
    assert set(grouped.centroids.tolist()) <= set(now.keyframe_ids.tolist())


@pytest.mark.parametrize("group", [0, 1])
def test_regroup__a_cluster_whose_centroid_was_removed_gets_another(group: int) -> None:
    old = groups(6, 4)
    known = regroup(None, old, at_rest=False, k=2, seed=0)
    keep = old.keyframe_ids != known[0].centroids[group]
    left = Embeddings(old.keyframe_ids[keep], old.vectors[keep], "m")
    grouped, _ = regroup(known, left, at_rest=True, k=2, seed=0)
    members = grouped.keyframe_ids[grouped.clusters == group].tolist()
    assert grouped.centroids[group] in members


def test_by__portions() -> None:
    assert [list(some) for some in jobs._by([1, 2, 3], 2)] == [[1, 2], [3]]  # type: ignore[list-item]
    assert list(itertools.chain(*jobs._by([], 2))) == []


def test_status__a_configuration_without_the_reserved_label_has_nothing_to_show(place: Workplace) -> None:
    config = shipped_config("video_timeline").replace("Cluster (unnamed)", "Thing")
    place.store.put_project(Project(UID, 1, "Own labels", config))
    run(place, "video", add_clip(place, 5, SHORT[:1]))
    assert [video.state for video in place.store.video_status(UID)] == ["clustering"]
    run(place, "cluster")
    assert [video.state for video in place.store.video_status(UID)] == ["nothing to show yet"]
