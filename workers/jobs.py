"""The product, read aloud: what happens to a video, and to a project, from Label Studio and back.

    sync      read a project's tasks from Label Studio, so that a lost webhook is found
    video     fetch → keyframes → embeddings, kept in one transaction
    embed     a project's keyframes once more, from their pictures, after another model was chosen
    cluster   group all keyframes of a project, cut every timeline into segments
    deliver   make Label Studio hold exactly the prediction that the ledger holds
    companion give people the keyframes as tasks of a project of their own
    propagate read what people have labelled, guess what looks alike, show it on keyframes and timelines
    question  make the vector of a picture, a region or words that people search by
    similar   keep the tabs "Similar to …" that people asked for
    map       lay a project's keyframes out in two dimensions

Each job is a name and the id of a row of work. It claims the row, does its work, and keeps its results only if the
claim still holds. Every job may run twice.
"""

from __future__ import annotations

import base64
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookalike import edits, wire
from lookalike.errors import (
    LabelConfigError,
    LabelStudioError,
    LabelStudioNotFound,
    LookalikeError,
    MediaError,
    MediaHeldUp,
    SettingsError,
    SetupError,
)
from lookalike.grouping import Choice, Fit, cut
from lookalike.labels import Run
from lookalike.ledger import Claim, portions
from lookalike.maps import Map
from lookalike.queue import Queue, redis_url
from lookalike.records import (
    Clustering,
    Extraction,
    Json,
    LabelConfig,
    Media,
    split_keyframe_id,
)
from lookalike.settings import Settings
from lookalike.store import Project, Store, StoredVideo, open_store
from workers import (
    answers,
    clustering,
    display,
    keyframes,
    loop,
    media,
    readings,
    regrouping,
    similar_tab,
    stills,
    timeline,
)
from workers.inputs import Origin, embed_keyframes
from workers.map import components, draw
from workers.workplace import Job, Stage, Workplace, do

if TYPE_CHECKING:
    from workers.propagation import Graph

log = logging.getLogger("lookalike.jobs")

#: for so long at a time a project is embedded again; then videos that have come in get their turn
_EMBED_S = 20.0
#: the places in "label these next" follow when nobody waits for their lookalikes any more
_PLACES_AFTER_S = 3.0
#: 50,000 keyframes take 100 s of one core and 1 GB
_MAP_WITHIN_S = 2 * 3600.0
_MAP_MEMORY_MB = 6000.0


def video(work_id: int) -> None:
    """Fetch a video, find its keyframes, embed them."""
    _run(work_id, _video)


def embed(work_id: int) -> None:
    """Embed a project's keyframes by the model that is chosen now."""
    _run(work_id, _embed)


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


def question(work_id: int) -> None:
    """Answer what somebody searches by."""
    _run(work_id, _question)


def similar(work_id: int) -> None:
    """Make or keep a project's tabs "Similar to …"."""
    _run(work_id, _similar)


def map(work_id: int) -> None:  # noqa: A001
    """Draw a project's map."""
    _run(work_id, _map)


_workplace: Workplace | None = None


def open_workplace(settings: Settings, name: str) -> Workplace:
    """Open this process's workplace; once, before the first job."""
    global _workplace
    queue = Queue(redis_url(settings.redis_url, settings.data_dir))
    _workplace = Workplace(settings, open_store(settings.sqlalchemy_url), queue, name)
    return _workplace


def _run(work_id: int, job: Job) -> None:
    if _workplace is None:
        raise RuntimeError("open_workplace() comes before the first job")
    do(_workplace, work_id, job)


# --- the jobs ---


def _video(place: Workplace, claim: Claim, stage: Stage) -> None:
    video, project = place.store.video(int(claim.subject)), place.store.project(claim.project)
    if video is None or project is None:
        return place.store.ledger.finish(claim)
    settings, config = place.settings, _label_config(project)
    if not video.url:
        field = config.data_key if config else "its data"
        raise MediaError(f"the task has no address in {field!r}; write one there, or delete the task")
    find_keyframes = stills.extract if config and config.object_tag == "Image" else keyframes.extract
    _check_disk(settings)

    stage("fetching")
    downloads = settings.data_dir / "downloads" / str(video.id)  # two tasks may name one file
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        path = media.fetch(Media(video.project, video.task, video.url), downloads, settings, place.label_studio)
        stage("extracting")
        pictures = settings.picture_folder(video.id)
        try:
            extraction: Extraction = media.run_guarded(
                find_keyframes,
                path,
                video.id,
                pictures,
                keyframes.KeyframeOptions.of(settings),
                timeout_s=settings.decode_timeout_s,
                memory_mb=settings.decode_memory_mb,
            )
        except MediaError as error:  # it knows the name of our copy; people know the task's
            raise type(error)(str(error).replace(path.name, media.shown_url(video.url), 1)) from error
        stage("embedding")
        origin = Origin(video.url, path, video.task, pictures=find_keyframes is stills.extract)
        embeddings = embed_keyframes(place.embedder, extraction.keyframes, pictures, origin, settings)
        place.store.put_extraction(claim, extraction, embeddings)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _embed(place: Workplace, claim: Claim, stage: Stage) -> None:
    store, settings, until = place.store, place.settings, time.monotonic() + _EMBED_S
    missing = set(store.unembedded(claim.project, settings.embedder))
    left = [video for video in store.videos(claim.project) if video.id in missing]
    again = []
    for number, video in enumerate(left):
        if time.monotonic() > until:  # videos that came in meanwhile get their turn
            store.want("embed", claim.project)
            break
        stage(f"embedding again ({len(left) - number} left)")
        found = store.keyframes([video.id])[video.id]
        origin = Origin(video.url, task=video.task)
        try:
            embeddings = embed_keyframes(place.embedder, found, settings.picture_folder(video.id), origin, settings)
        except MediaError:  # a picture is gone, or the model takes the sound: the video is needed
            again.append(video.id)
            continue
        store.put_vectors(claim, video.id, embeddings)
    store.want_videos(claim.project, again)
    store.want("cluster", claim.project)
    store.ledger.finish(claim)


def _cluster(place: Workplace, claim: Claim, stage: Stage) -> None:
    project = place.store.project(claim.project)
    if project is None:
        return place.store.ledger.finish(claim)
    settings, before = place.settings, place.model(claim.project)
    # another model's clusters take the place of those before once it has seen everything
    model = before if place.store.unembedded(project.uid, settings.embedder) else settings.embedder
    stage("clustering")
    waiting = place.store.ledger.unfinished("video", project.uid)
    known = place.store.fitted_clustering(project.uid, before)
    made = place.store.edits.on_clusters(project.uid)
    taken = place.store.edits.numbers(project.uid)
    if known is not None:
        unsplit = np.isin(known[0].clusters, place.store.edits.undone_splits(project.uid))
        known = edits.reserve(regrouping.without(known[0], unsplit), taken), known[1]
    embeddings = place.store.load_embeddings(project.uid, model)
    choice, last = _choice(place, project.uid), place.store.fit(project.uid, model, with_tree=False)
    n, at_rest = len(embeddings.keyframe_ids), waiting == 0
    changed = model != before or (last.choice != choice if last else choice.k != settings.clusters)
    outgrown = regrouping.is_outgrown(known, n, at_rest=at_rest)
    # the same keyframes in another number of groups
    recounted = changed and not outgrown and last is not None and replace(last.choice, k=choice.k) == choice
    start, grown = known, None
    if recounted:
        last = place.store.fit(project.uid, model)
    if recounted and known and choice.k and last and last.tree:
        start = edits.reserve(clustering.renumber(known[0], cut(last.tree, choice.k)), taken), known[1]
        grown, changed = last.tree, False
    elif (changed or outgrown) and choice.method == "ward":
        grown = clustering.tree(embeddings, choice.seed)
    grouped, fitted = regrouping.regroup(
        start,
        embeddings,
        at_rest=at_rest,
        k=choice.k,
        seed=choice.seed,
        method=choice.method,
        grown=grown,
        afresh=changed,
        made=made,
    )
    fit = None
    if recounted or changed or outgrown:
        by_itself = not settings.clusters and choice.method != "hdbscan"
        proposal = last.proposal if recounted and last and by_itself else None
        if by_itself and at_rest and proposal is None:
            count = 0 if choice.k else len(np.unique(grouped.clusters))
            proposal = clustering.propose_k(embeddings, choice.seed, count)
        fit = Fit(choice, proposal, grown)
    shown = edits.apply(grouped, made)

    config = _label_config(project)
    moved = timeline.moved_videos(edits.apply(known[0], made) if known else None, shown)
    bodies: dict[int, Json] = {}
    # those of pictures go out many at once, with what is guessed of them
    if config is not None and (config.object_tag != "Image" or place.label_studio is None):
        # the sizes of clusters, told in every segment, are brought up to date once nothing more is to come
        chosen = [video for video in place.store.videos(project.uid) if waiting == 0 or video.id in moved]
        named: Mapping[int, Sequence[timeline.Named]] = {}
        if (knowledge := loop.know(place.store, project, config, model)) is not None:
            named = loop.name(place.store, project.uid, config, knowledge)
        bodies = compose(place.store, config, chosen, shown, wire.model_version(settings.embedder), named)
    if place.store.edits.numbers(project.uid) != taken:
        return place.store.ledger.later(claim, "a cluster was split meanwhile", 0)  # its number may be a new one's
    place.store.put_clustering(claim, model, grouped, fitted, bodies, fit, alone=model == settings.embedder)
    place.store.want("companion", project.uid)
    place.store.want("propagate", project.uid)


def _deliver(place: Workplace, claim: Claim, stage: Stage) -> None:
    video = place.store.video(int(claim.subject))
    found = place.store.predictions(claim.project, [video.task]) if video else {}
    if video is None or video.task not in found:
        return place.store.ledger.finish(claim)
    if place.label_studio is None:
        raise SettingsError(
            "LOOKALIKE_LABEL_STUDIO_URL is not set, so predictions only go out when Label Studio asks for them"
        )
    prediction = found[video.task]
    stage("delivering")
    try:
        place.label_studio.put_prediction(video.task, prediction.body, family=wire.MODEL_FAMILY)
    except LabelStudioNotFound:
        forget_videos(place.store, place.settings, claim.project, [video.task])
        return
    place.store.put_delivered(claim, prediction.digest)


def _sync(place: Workplace, claim: Claim, stage: Stage) -> None:
    project = place.store.project(claim.project)
    if project is not None:
        _keep_model(place, project.uid)
    if project is None or place.label_studio is None:
        return place.store.ledger.finish(claim)
    studio, store = place.label_studio, place.store
    place.listings.forget()
    store.questions.forget()
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
        known = {video.task for video in store.videos(project.uid)}  # first: what comes in while we read is not gone
        alive: set[int] = set()
        new: list[tuple[int, str, Json]] = []
        for task in studio.tasks(project.label_studio_id):
            alive.add(task["id"])
            data = wire.data_of_others(task["data"])
            url = data.get(config.data_key)
            if isinstance(url, str) and url:
                new.append((task["id"], url, data))
            elif task["id"] not in known:
                new.append((task["id"], "", data))  # people are told, see `_video`; what we have is not thrown away
        store.add_videos(project.uid, new)
        # where tasks are deleted while pages are read, others move to a page that was read already
        alive |= {task["id"] for task in studio.chosen_tasks(project.label_studio_id, sorted(known - alive))}
        forget_videos(store, place.settings, project.uid, sorted(known - alive))
    sweep_pictures(store, place.settings)
    if place.settings.basic_auth_user:
        # the hook that Label Studio made by itself carries no login
        _register_webhook(place, project.label_studio_id)
    fit = store.fit(project.uid, place.settings.embedder, with_tree=False)
    if fit is not None and fit.choice != _choice(place, project.uid):
        store.want("cluster", project.uid)
    store.want("companion", project.uid)
    store.want("propagate", project.uid)
    store.ledger.finish(claim)


def _companion(place: Workplace, claim: Claim, stage: Stage) -> None:
    project = place.store.project(claim.project)
    config = _label_config(project) if project else None
    if project is None or config is None or place.label_studio is None:
        return place.store.ledger.finish(claim)
    settings, store, studio = place.settings, place.store, place.label_studio
    stage("looking after the keyframes project")
    known = display.keep_project(studio, store, settings, project, config)
    loop.fold(store, project.uid, place.model(project.uid), apart=known is not None and known.own)
    knowledge = loop.know(store, project, config, place.model(project.uid))
    if known is None or knowledge is None:
        return store.ledger.finish(claim)
    graph = _graph(place, project.uid, knowledge)
    more = display.keep_tasks(studio, store, settings, known, knowledge, graph)
    known = display.keep_tabs(studio, store, settings, known, config)
    _, propagation, labels = loop.guess(store, settings, project.uid, config, knowledge, graph)
    if loop.is_time_to_advise(store, project.uid, graph):
        store.labels.put_advice(project.uid, loop.advise(graph, labels, config, propagation))
    ours = place.listings.tasks(studio, known.uid, known.label_studio_id)
    display.keep_fields(studio, store, known, knowledge, graph, propagation, ours)
    try:
        if not known.own:  # Label Studio makes one itself when a project is connected
            _register_webhook(place, known.label_studio_id)
    except LabelStudioError as error:
        log.warning("labels of the keyframes project are only seen every %.0f s: %s", settings.poll_s, error)
    store.want("companion" if more else "propagate", project.uid)
    store.ledger.finish(claim)


def _propagate(place: Workplace, claim: Claim, stage: Stage) -> None:
    project = place.store.project(claim.project)
    config = _label_config(project) if project else None
    if project is None or config is None or place.label_studio is None:
        return place.store.ledger.finish(claim)
    settings, store, studio = place.settings, place.store, place.label_studio
    stage("reading labels")
    known = store.labels.companion(project.uid)
    ours = readings.read_labels(studio, store, project, config, known, place.listings)
    knowledge = loop.know(store, project, config, place.model(project.uid))
    if knowledge is None:
        return store.ledger.finish(claim)
    stage("propagating")
    graph = _graph(place, project.uid, knowledge)
    proposals, _, _ = loop.guess(store, settings, project.uid, config, knowledge, graph)
    said = {keyframe: word.categories for keyframe, word in knowledge.agreed.items()}
    with store.ledger.running(claim) as connection:
        run = store.labels.put_run(connection, project.uid, proposals, said)
    stage("showing")
    named = loop.name(store, project.uid, config, knowledge)
    version = wire.model_version(settings.embedder)
    pictures = config.object_tag == "Image"
    if known is not None and known.uid and known.own == pictures:
        try:
            more = display.show(studio, store, known, knowledge, named, ours, version)
        except LabelStudioError:
            place.listings.forget()  # a task may be gone that we took for alive
            raise
        if more:
            store.want("propagate", project.uid)
    if pictures:
        return _follow_up(place, claim, run)
    bodies = compose(store, config, _renamed(place, claim, named), knowledge.grouped, version, named)
    with store.ledger.running(claim) as connection:
        store.put_predictions(connection, project.uid, bodies)
    place.named = (claim, named)
    _follow_up(place, claim, run)


def _follow_up(place: Workplace, claim: Claim, run: Run | None) -> None:
    if place.store.questions.tabs(claim.project):
        place.store.want("similar", claim.project, delay_s=_PLACES_AFTER_S)
    if run is not None:
        place.store.want("companion", claim.project, delay_s=_PLACES_AFTER_S)
    place.store.ledger.finish(claim)


def _question(place: Workplace, claim: Claim, stage: Stage) -> None:
    question = place.store.questions.question(int(claim.subject))
    if question is None or question.vector is not None:
        return place.store.ledger.finish(claim)
    stage("embedding")

    def picture_of(keyframe: int) -> Path:
        video_id, frame = split_keyframe_id(keyframe)
        video = place.store.video(video_id)
        if video is None or video.project != claim.project:
            raise MediaError(f"keyframe {keyframe} is not in this project")
        return place.settings.picture_path(video_id, frame)

    try:
        vector = answers.vector_of(question, place.embedder, place.settings, picture_of)
    except LookalikeError as error:
        if error.temporary:
            raise
        return place.store.questions.answer(claim, None, str(error))
    place.store.questions.answer(claim, vector)


def _similar(place: Workplace, claim: Claim, stage: Stage) -> None:
    known = place.store.labels.companion(claim.project)
    if place.label_studio is not None and known is not None and known.uid:
        stage("looking after tabs")
        similar_tab.keep(place.label_studio, place.store, place.finder, known)
    place.store.ledger.finish(claim)


def _map(place: Workplace, claim: Claim, stage: Stage) -> None:
    store, model = place.store, place.model(claim.project)
    stage("drawing")
    embeddings = store.load_embeddings(claim.project, model)
    points, known = components(embeddings.vectors), store.maps.get(claim.project, model)
    try:
        drawn: Map = media.run_guarded(
            draw, embeddings.keyframe_ids, points, known, timeout_s=_MAP_WITHIN_S, memory_mb=_MAP_MEMORY_MB
        )
    except MediaError as error:
        raise SetupError(f"the map of {len(points)} keyframes cannot be drawn here: {error}") from error
    store.maps.put(store.ledger, claim, model, drawn)


# --- the steps, as the command line takes them too ---


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
    for some in portions(videos, 200):
        frames = store.keyframes([video.id for video in some])
        for video in some:
            if video.duration_s is None:
                continue
            if not np.isin([frame.id for frame in frames[video.id]], grouped.keyframe_ids).all():
                continue  # come in since, or embedded only by the model that is to serve next: a clustering follows
            nothing = config.reserved is None and not any(frame.id in named for frame in frames[video.id])
            if nothing and not store.predictions(video.project, [video.task]):
                continue  # nothing was shown either, that were to be withdrawn
            bodies[video.id] = timeline.compose(
                config, video.data, video.duration_s, frames[video.id], grouped, members, version, named
            )
    return bodies


def sweep_pictures(store: Store, settings: Settings) -> None:
    """Remove the pictures of videos that the ledger no longer knows: a webhook may have removed those."""
    folders = {int(folder.name): folder for folder in settings.keyframes_dir.glob("[0-9]*") if folder.name.isdecimal()}
    for video in folders.keys() - store.known_videos(sorted(folders)):
        shutil.rmtree(folders[video], ignore_errors=True)


def forget_videos(store: Store, settings: Settings, project: str, tasks: Sequence[int]) -> None:
    for video_id in store.delete_videos(project, tasks) if tasks else []:
        shutil.rmtree(settings.picture_folder(video_id), ignore_errors=True)


# --- steps ---


def _keep_model(place: Workplace, project: str) -> None:
    """Ask for what is left to do until a project is shown by the model that is chosen."""
    chosen = place.settings.embedder
    if place.store.unembedded(project, chosen):
        place.store.want("embed", project)
    elif place.model(project) != chosen:
        place.store.want("cluster", project)


def _graph(place: Workplace, project: str, knowledge: loop.Knowledge) -> Graph:
    before = place.graph[1] if place.graph and place.graph[0] == project else None
    graph = loop.extend_graph(place.store, project, place.model(project), before, knowledge)
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
        raise MediaHeldUp(
            f"waiting for disk: {free_mb:.0f} MB free, LOOKALIKE_DISK_FREE_MB asks for {settings.disk_free_mb:.0f}"
        )


def _label_config(project: Project) -> LabelConfig | None:
    try:
        return wire.parse_label_config(project.label_config)
    except LabelConfigError as error:
        log.warning("project %s: %s", project.uid, error)
        return None


def _choice(place: Workplace, project: str) -> Choice:
    """How a project is grouped: by the settings, but in as many groups as people have asked for."""
    settings, asked = place.settings, place.store.edits.grouping(project)
    k = int(asked.text) if asked and settings.clustering != "hdbscan" else settings.clusters
    return Choice(settings.clustering, k, settings.seed)
