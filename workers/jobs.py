"""The product, read aloud: what happens to a video, and to a project, from Label Studio and back.

    sync      read a project's tasks from Label Studio, so that a lost webhook is found
    video     fetch → keyframes → embeddings, kept in one transaction
    cluster   group all keyframes of a project, cut every timeline into segments
    deliver   make Label Studio hold exactly the prediction that the ledger holds
    companion give people the keyframes as tasks of a project of their own
    propagate read what people have labelled, guess what looks alike, show it on keyframes and timelines

Each job is a name and the id of a row of work. It claims the row, does its work, and keeps its results only if the
claim still holds. Every job may run twice.
"""

from __future__ import annotations

import base64
import functools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from lookalike import wire
from lookalike.errors import (
    LabelConfigError,
    LabelStudioError,
    LabelStudioNotFound,
    LookalikeError,
    MediaError,
    MediaUnreachable,
    QueueError,
    SettingsError,
)
from lookalike.label_studio import LabelStudio
from lookalike.ledger import Claim, ClaimLost
from lookalike.queue import Queue, redis_url
from lookalike.records import (
    Clustering,
    Embeddings,
    Extraction,
    Json,
    Keyframe,
    LabelConfig,
    Media,
    split_keyframe_id,
)
from lookalike.settings import Settings
from lookalike.store import Project, Store, StoredVideo, open_store
from workers import clustering, keyframes, loop, media, stills, timeline

if TYPE_CHECKING:
    from workers.embedders import Embedder
    from workers.propagation import Graph

log = logging.getLogger("lookalike.jobs")

#: pictures in memory at a time while a video is embedded
_PICTURES = 64
#: a project is clustered afresh when it has grown by this factor; in between, new keyframes join what is there
_REFIT_GROWTH = 1.5
_REFIT_GROWTH_AT_REST = 1.1
#: the places in "label these next" follow when nobody waits for their lookalikes any more
_PLACES_AFTER_S = 3.0


def video(work_id: int) -> None:
    """Fetch a video, find its keyframes, embed them."""
    _run(work_id, _video)


def cluster(work_id: int) -> None:
    """Group a project's keyframes and compose its predictions."""
    _run(work_id, _cluster)


def deliver(work_id: int) -> None:
    """Bring one prediction to Label Studio."""
    _run(work_id, _deliver)


def sync(work_id: int) -> None:
    """Read a project from Label Studio."""
    _run(work_id, _sync)


def companion(work_id: int) -> None:
    """Make or keep a project's companion of keyframes."""
    _run(work_id, _companion)


def propagate(work_id: int) -> None:
    """From people's labels to guesses, in both projects."""
    _run(work_id, _propagate)


@dataclass
class Workplace:
    """What a worker process keeps open from job to job: the store, the queue, Label Studio, a warm model."""

    settings: Settings
    store: Store
    queue: Queue
    name: str
    #: who looks like whom, of the last project that was propagated in: extending is quicker than building
    graph: tuple[str, Graph] | None = None
    #: what timelines showed when they were last composed: by which claim, and the names by keyframe
    named: tuple[Claim, dict[int, tuple[timeline.Named, ...]]] | None = None

    @functools.cached_property
    def listings(self) -> loop.Listings:
        return loop.Listings(2 * self.settings.poll_s)

    @functools.cached_property
    def label_studio(self) -> LabelStudio | None:
        settings = self.settings
        if not settings.label_studio_url:
            return None
        return LabelStudio(settings.label_studio_url, settings.label_studio_token)

    @functools.cached_property
    def embedder(self) -> Embedder:
        from workers.embedders import open_embedder  # torch: seconds and 300 MB that only video workers pay

        settings = self.settings
        return open_embedder(
            settings.embedder,
            device=settings.device,
            batch_size=settings.batch_size,
            cache_dir=settings.data_dir / "models",
        )

    def kick(self) -> None:
        """Wake whoever can go on; the supervisor's reconciler does the same a moment later."""
        try:
            self.queue.kick_due(self.store.ledger)
        except QueueError as error:
            log.warning("%s; the ledger remembers the work", error)


_workplace: Workplace | None = None


def open_workplace(settings: Settings, name: str) -> Workplace:
    """Open this process's workplace; once, before the first job."""
    global _workplace
    queue = Queue(redis_url(settings.redis_url, settings.data_dir))
    _workplace = Workplace(settings, open_store(settings.sqlalchemy_url), queue, name)
    return _workplace


# --- the jobs ---


def _video(place: Workplace, claim: Claim, stage: Callable[[str], None]) -> None:
    video, project = place.store.video(int(claim.subject)), place.store.project(claim.project)
    if video is None or project is None:
        return place.store.ledger.finish(claim)
    settings, config = place.settings, _label_config(project)
    find_keyframes = stills.extract if config and config.object_tag == "Image" else keyframes.extract
    _check_disk(settings)

    stage("fetching")
    downloads = settings.data_dir / "downloads" / str(video.id)  # two tasks may name one file
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        path = media.fetch(Media(video.project, video.task, video.url), downloads, settings, place.label_studio)
        stage("extracting")
        pictures = picture_folder(settings, video.id)
        try:
            extraction: Extraction = media.run_guarded(
                find_keyframes,
                path,
                video.id,
                pictures,
                keyframe_options(settings),
                timeout_s=settings.decode_timeout_s,
                memory_mb=settings.decode_memory_mb,
            )
        except MediaError as error:  # it knows the name of our copy; people know the task's
            raise type(error)(str(error).replace(path.name, media.shown_url(video.url), 1)) from error
        stage("embedding")
        embeddings = embed_pictures(place.embedder, extraction.keyframes, pictures)
        place.store.put_extraction(claim, extraction, embeddings)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _cluster(place: Workplace, claim: Claim, stage: Callable[[str], None]) -> None:
    project = place.store.project(claim.project)
    if project is None:
        return place.store.ledger.finish(claim)
    settings, model = place.settings, place.settings.embedder
    stage("clustering")
    waiting = place.store.ledger.unfinished("video", project.uid)
    known = place.store.clustering(project.uid, model)
    embeddings = place.store.load_embeddings(project.uid, model)
    grouped, fitted = regroup(known, embeddings, at_rest=waiting == 0, k=settings.clusters, seed=settings.seed)

    config = _label_config(project)
    moved = timeline.moved_videos(known[0] if known else None, grouped)
    bodies: dict[int, Json] = {}
    if config is not None:
        # the sizes of clusters, told in every segment, are brought up to date once nothing more is to come
        chosen = [video for video in place.store.videos(project.uid) if waiting == 0 or video.id in moved]
        named: Mapping[int, Sequence[timeline.Named]] = {}
        if (knowledge := loop.know(place.store, project, config, model)) is not None:
            named = loop.name(place.store, project.uid, config, knowledge)
        bodies = compose(place.store, config, chosen, grouped, wire.model_version(model), named)
    place.store.put_clustering(claim, model, grouped, fitted, bodies)
    place.store.want("companion", project.uid)
    place.store.want("propagate", project.uid)


def _deliver(place: Workplace, claim: Claim, stage: Callable[[str], None]) -> None:
    video = place.store.video(int(claim.subject))
    found = place.store.predictions(claim.project, [video.task]) if video else {}
    if video is None or video.task not in found:
        return place.store.ledger.finish(claim)
    if place.label_studio is None:
        raise SettingsError("label_studio_url is not set, so predictions only go out when Label Studio asks for them")
    prediction = found[video.task]
    stage("delivering")
    try:
        place.label_studio.put_prediction(video.task, prediction.body)
    except LabelStudioNotFound:
        forget_videos(place.store, place.settings, claim.project, [video.task])
        return
    place.store.put_delivered(claim, prediction.digest)


def _sync(place: Workplace, claim: Claim, stage: Callable[[str], None]) -> None:
    project = place.store.project(claim.project)
    if project is None or place.label_studio is None:
        return place.store.ledger.finish(claim)
    studio, store = place.label_studio, place.store
    place.listings.forget()
    stage("reading")
    try:
        found = studio.project(project.label_studio_id)
    except LabelStudioNotFound:
        found = {}
    if not found or wire.project_uid(found["id"], found["created_at"]) != project.uid:
        # gone, or its id is another project's by now: Label Studio's SQLite uses ids again
        tasks = [video.task for video in store.videos(project.uid)]
        forget_videos(store, place.settings, project.uid, tasks)
        store.delete_project(project.uid)
        return
    now = Project(project.uid, project.label_studio_id, found["title"], found["label_config"])
    if now != project:
        store.put_project(now)
    if now.label_config != project.label_config:
        store.want("cluster", project.uid)
    project = now
    config = _label_config(project)
    if config is not None:
        known = [video.task for video in store.videos(project.uid)]  # first: what comes in while we read is not gone
        alive: set[int] = set()
        new: list[tuple[int, str, Json]] = []
        for task in studio.tasks(project.label_studio_id):
            alive.add(task["id"])
            url = task["data"].get(config.data_key)
            if isinstance(url, str) and url:
                new.append((task["id"], url, task["data"]))
        store.add_videos(project.uid, new)
        gone = [task for task in known if task not in alive]
        forget_videos(store, place.settings, project.uid, gone)
    sweep_pictures(store, place.settings)
    if place.settings.basic_auth_user:
        # the hook that Label Studio made by itself carries no login
        _register_webhook(place, project.label_studio_id)
    store.want("companion", project.uid)
    store.want("propagate", project.uid)
    store.ledger.finish(claim)


def _companion(place: Workplace, claim: Claim, stage: Callable[[str], None]) -> None:
    project = place.store.project(claim.project)
    config = _label_config(project) if project else None
    if project is None or config is None or place.label_studio is None:
        return place.store.ledger.finish(claim)
    settings, store, studio = place.settings, place.store, place.label_studio
    stage("looking after the keyframes project")
    known = loop.keep_project(studio, store, settings, project, config)
    loop.fold(store, project.uid, settings.embedder)
    knowledge = loop.know(store, project, config, settings.embedder)
    if known is None or knowledge is None:
        return store.ledger.finish(claim)
    graph = _graph(place, project.uid, knowledge)
    more = loop.keep_tasks(studio, store, settings, known, knowledge, graph)
    loop.keep_tabs(studio, store, known, config)
    _, propagation, labels = loop.guess(store, settings, project.uid, config, knowledge, graph)
    if loop.is_time_to_advise(store, project.uid, graph):
        store.labels.put_advice(project.uid, loop.advise(graph, labels, config, propagation))
    ours = place.listings.tasks(studio, known.uid, known.label_studio_id)
    loop.keep_fields(studio, store, known, knowledge, graph, propagation, ours)
    try:
        _register_webhook(place, known.label_studio_id)
    except LabelStudioError as error:
        log.warning("labels of the keyframes project are only seen every %.0f s: %s", settings.poll_s, error)
    store.want("companion" if more else "propagate", project.uid)
    store.ledger.finish(claim)


def _propagate(place: Workplace, claim: Claim, stage: Callable[[str], None]) -> None:
    project = place.store.project(claim.project)
    config = _label_config(project) if project else None
    if project is None or config is None or place.label_studio is None:
        return place.store.ledger.finish(claim)
    settings, store, studio = place.settings, place.store, place.label_studio
    stage("reading labels")
    known = store.labels.companion(project.uid)
    ours = loop.read_labels(studio, store, project, config, known, place.listings)
    knowledge = loop.know(store, project, config, settings.embedder)
    if knowledge is None:
        return store.ledger.finish(claim)
    stage("propagating")
    graph = _graph(place, project.uid, knowledge)
    proposals, _, _ = loop.guess(store, settings, project.uid, config, knowledge, graph)
    said = {keyframe: word.categories for keyframe, word in knowledge.agreed.items()}
    with store.labels.running(claim) as connection:
        run = store.labels.put_run(connection, project.uid, proposals, said)
    stage("showing")
    named = loop.name(store, project.uid, config, knowledge)
    version = wire.model_version(settings.embedder)
    if known is not None and known.uid:
        try:
            loop.show(studio, store, known, knowledge, named, ours, version)
        except LabelStudioError:
            place.listings.forget()  # a task may be gone that we took for alive
            raise
    bodies = compose(store, config, _renamed(place, claim, named), knowledge.grouped, version, named)
    with store.labels.running(claim) as connection:
        store.put_predictions(connection, project.uid, bodies)
    place.named = (claim, named)
    if run is not None:
        store.want("companion", project.uid, delay_s=_PLACES_AFTER_S)
    store.ledger.finish(claim)


# --- the steps, as the command line takes them too ---


def keyframe_options(settings: Settings) -> keyframes.KeyframeOptions:
    return keyframes.KeyframeOptions(
        mode=settings.keyframe_mode,
        share=settings.keyframe_share,
        width_px=settings.keyframe_width_px,
        max_pixels=settings.max_pixels,
        max_duration_s=settings.max_duration_s,
    )


def embed_pictures(embedder: Embedder, found: Sequence[Keyframe], folder: Path) -> Embeddings:
    """Vectors of the keyframes' pictures, (n, d) float32, a few pictures in memory at a time."""
    parts = [np.zeros((0, embedder.dim), np.float32)]
    for at in range(0, len(found), _PICTURES):
        pictures = [read_picture(folder / f"{frame.frame_index:07d}.jpg") for frame in found[at : at + _PICTURES]]
        parts.append(embedder.embed(pictures))
    ids = np.asarray([frame.id for frame in found], dtype=np.int64)
    return Embeddings(ids, np.concatenate(parts), embedder.name)


def read_picture(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(h, w, 3) RGB."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise MediaError(f"the keyframe picture {path.name} is missing or broken; ask for the video again")
    return np.asarray(picture, dtype=np.uint8)


def regroup(
    known: tuple[Clustering, int] | None, embeddings: Embeddings, *, at_rest: bool, k: int, seed: int
) -> tuple[Clustering, int]:
    """(clustering of all keyframes, keyframes at its last full fit).

    New keyframes join the clusters that there are, so that `c0007` keeps its meaning; the whole is fitted afresh, and
    numbered as before where it can be, once it has grown enough.
    """
    n = len(embeddings.keyframe_ids)
    if known is None:
        return clustering.cluster(embeddings, k=k, seed=seed), n
    before, fitted = known
    if n >= fitted * (_REFIT_GROWTH_AT_REST if at_rest else _REFIT_GROWTH):
        return clustering.renumber(before, clustering.cluster(embeddings, k=k, seed=seed)), n
    old = np.isin(embeddings.keyframe_ids, before.keyframe_ids)
    before = _without(before, ~np.isin(before.keyframe_ids, embeddings.keyframe_ids))
    if old.all():
        return before, fitted
    return (
        clustering.extend(before, _subset(embeddings, old), _subset(embeddings, ~old), seed=seed),
        fitted,
    )


def compose(
    store: Store,
    config: LabelConfig,
    videos: Sequence[StoredVideo],
    grouped: Clustering,
    version: str,
    named: Mapping[int, Sequence[timeline.Named]],
) -> dict[int, Json]:
    """The prediction of each video, by its id: its timeline cut into segments by category, or by unnamed cluster."""
    members = timeline.describe_members(grouped)
    bodies: dict[int, Json] = {}
    for some in _by(videos, 200):
        frames = store.keyframes([video.id for video in some])
        for video in some:
            if video.duration_s is None:
                continue
            nothing = config.reserved is None and not any(frame.id in named for frame in frames[video.id])
            if nothing and not store.predictions(video.project, [video.task]):
                continue  # nothing was shown either, that were to be withdrawn
            bodies[video.id] = timeline.compose(
                config, video.data, video.duration_s, frames[video.id], grouped, members, version, named
            )
    return bodies


def picture_folder(settings: Settings, video_id: int) -> Path:
    return settings.keyframes_dir / f"{video_id:09d}"


def sweep_pictures(store: Store, settings: Settings) -> None:
    """Remove the pictures of videos that the ledger no longer knows: a webhook may have removed those."""
    for folder in settings.keyframes_dir.glob("[0-9]*"):
        if folder.name.isdecimal() and store.video(int(folder.name)) is None:
            shutil.rmtree(folder, ignore_errors=True)


def forget_videos(store: Store, settings: Settings, project: str, tasks: Sequence[int]) -> None:
    for video_id in store.delete_videos(project, tasks) if tasks else []:
        shutil.rmtree(picture_folder(settings, video_id), ignore_errors=True)


# --- the edge of a job ---


def _run(work_id: int, job: Callable[[Workplace, Claim, Callable[[str], None]], None]) -> None:
    """Claim, do, and let no error go unrecorded."""
    place = _workplace
    if place is None:
        raise RuntimeError("open_workplace() comes before the first job")
    settings, ledger = place.settings, place.store.ledger
    claim = ledger.claim(work_id, place.name, lease_s=settings.lease_s, max_crashes=settings.max_attempts)
    if claim is None:
        return  # done, not due yet, or another worker's: the wake-up call came twice
    started = time.monotonic()
    outcome = "done"
    try:
        with _held(place, claim) as stage:
            job(place, claim, stage)
    except ClaimLost as error:
        outcome = f"dropped: {error}"
    except LookalikeError as error:
        outcome = str(error)
        if error.temporary:
            ledger.later(claim, outcome)
        else:
            ledger.fail(claim, outcome)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
        ledger.stumble(claim, outcome)
        raise
    finally:
        seconds = time.monotonic() - started
        log.info("%s %s project %s: %s (%.2f s)", claim.kind, claim.subject, claim.project, outcome, seconds)
        place.kick()


@contextmanager
def _held(place: Workplace, claim: Claim) -> Iterator[Callable[[str], None]]:
    """Renew the claim's lease from a thread while the job runs; yields the verb that tells where it is."""
    lease_s, ledger = place.settings.lease_s, place.store.ledger
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease_s / 3):
            try:
                if not ledger.renew(claim, lease_s=lease_s):
                    return
            except Exception as error:  # the ledger may be busy or away for a moment; the fence protects what counts
                log.warning("cannot renew the lease of %s %s: %s", claim.kind, claim.subject, error)

    def stage(name: str) -> None:
        if not ledger.renew(claim, lease_s=lease_s, stage=name):
            raise ClaimLost(f"{claim.kind} {claim.subject}: another worker has taken over")

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        over.set()
        thread.join()


def _graph(place: Workplace, project: str, knowledge: loop.Knowledge) -> Graph:
    before = place.graph[1] if place.graph and place.graph[0] == project else None
    graph = loop.extend_graph(place.store, project, place.settings.embedder, before, knowledge)
    place.graph = (project, graph)
    return graph


def _renamed(place: Workplace, claim: Claim, named: Mapping[int, tuple[timeline.Named, ...]]) -> Sequence[StoredVideo]:
    """The videos with a keyframe that is to show something else than last time; all, if that was not our doing."""
    videos = place.store.videos(claim.project)
    if place.named is None or (place.named[0].id, place.named[0].fence + 1) != (claim.id, claim.fence):
        return videos
    before = place.named[1]
    keyframes = {k for k in before.keys() | named.keys() if before.get(k) != named.get(k)}
    changed = {split_keyframe_id(keyframe)[0] for keyframe in keyframes}
    return [video for video in videos if video.id in changed]


def _register_webhook(place: Workplace, label_studio_id: int) -> None:
    settings = place.settings
    headers = {}
    if settings.basic_auth_user:
        login = f"{settings.basic_auth_user}:{settings.basic_auth_pass}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(login).decode()}"}
    assert place.label_studio is not None
    place.label_studio.register_webhook(label_studio_id, f"{settings.backend_url}/webhook", headers)


def _check_disk(settings: Settings) -> None:
    free_mb = shutil.disk_usage(settings.data_dir).free / 1e6
    if free_mb < settings.disk_free_mb:
        raise MediaUnreachable(
            f"waiting for disk: {free_mb:.0f} MB free, disk_free_mb asks for {settings.disk_free_mb:.0f}"
        )


def _label_config(project: Project) -> LabelConfig | None:
    try:
        return wire.parse_label_config(project.label_config)
    except LabelConfigError as error:
        log.warning("project %s: %s", project.uid, error)
        return None


def _without(grouped: Clustering, gone: NDArray[np.bool_]) -> Clustering:
    """The clustering without some keyframes; a cluster that loses its centroid gets the most similar member left."""
    ids, clusters, similarity = grouped.keyframe_ids[~gone], grouped.clusters[~gone], grouped.similarity[~gone]
    centroids = grouped.centroids.copy()
    for number in np.flatnonzero(~np.isin(centroids, ids)):
        members = np.flatnonzero(clusters == number)
        centroids[number] = ids[members[similarity[members].argmax()]] if len(members) else -1
    return Clustering(ids, clusters, centroids, similarity)


def _subset(embeddings: Embeddings, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Embeddings:
    return Embeddings(embeddings.keyframe_ids[chosen], embeddings.vectors[chosen], embeddings.model)


def _by(videos: Sequence[StoredVideo], size: int) -> Iterator[Sequence[StoredVideo]]:
    for at in range(0, len(videos), size):
        yield videos[at : at + size]
