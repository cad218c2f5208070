"""The loop: people's words come in from Label Studio, guesses go out to it. The I/O of `workers.companion`.

    keep_project · keep_tasks · keep_tabs    the companion project, made and kept
    read_labels                              what people have said, wherever they said it
    guess                                    what follows from it
    show                                     the guesses as predictions, only where they have changed

Everything may be repeated: what Label Studio shows is remembered after it was sent, and marked as in doubt before.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from lookalike import wire
from lookalike.errors import LabelConfigError, LabelStudioError, LabelStudioNotFound, RequestError
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion, LabelRow, Proposal, Source
from lookalike.records import (
    Clustering,
    Embeddings,
    Json,
    Keyframe,
    Label,
    LabelConfig,
    cluster_name,
    split_keyframe_id,
)
from lookalike.settings import Settings
from lookalike.store import Project, Store, StoredVideo
from workers import companion, planner, timeline
from workers.propagation import Graph, Outcome, Propagation, add, build_graph, propagate

log = logging.getLogger("lookalike.loop")

#: tasks that one job makes; then others get their turn, for one worker does everything that is short
TASKS_PER_JOB = 300
_PICTURE_PX = 640
_JPEG_QUALITY = 85
#: a guess below this is no guess: the task stays open and out of tab 3
_UNSURE = 0.5
#: a shown score may be this far off: replacing a prediction takes Label Studio 30 ms
_SAME_SCORE = 0.1
#: places of tab 1 that are kept in order after every label; each costs a call
_PLACES = 10
_NO_PLACE = 1_000_000
#: what we say of a task while we cannot know whether Label Studio kept what it was sent
_IN_DOUBT = "?"
#: keyframes up to which the planner takes a second at most
_QUICKLY_ADVISED = 15_000
_AT_REST_S = 30.0
#: a change may be committed a while after the time that it carries
_OVERLAP = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a project's keyframes, put together from the ledger."""

    grouped: Clustering
    standing_for: dict[int, int]  # keyframe -> representative
    agreed: dict[int, companion.Said]
    disputed: set[int]


class Listings:
    """The tasks of projects as Label Studio lists them, kept from job to job, so that only changes are asked for.

    On 2 busy cores a whole listing took 0.7 s per 1000 tasks, what has changed 0.1 s. What was deleted is not among
    the changes: it is found by the next whole listing.
    """

    def __init__(self, whole_every_s: float) -> None:
        self._whole_every_s = whole_every_s
        self._known: dict[str, tuple[float, dict[int, Json]]] = {}  # by project uid: when listed as a whole, tasks

    def forget(self) -> None:
        self._known.clear()

    def tasks(self, studio: LabelStudio, uid: str, label_studio_id: int) -> dict[int, Json]:
        """By id. Raises LabelStudioNotFound for a project that is gone."""
        at, known = self._known.get(uid, (-math.inf, {}))
        if not known or time.monotonic() - at > self._whole_every_s:
            at, known = time.monotonic(), {}
            query = None
        else:
            newest = datetime.fromisoformat(max(task["updated_at"] for task in known.values()))
            since = (newest - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            changed = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since}
            query = {"filters": {"conjunction": "and", "items": [changed]}}
        known = known | {task["id"]: task for task in studio.tasks(label_studio_id, query=query)}
        self._known[uid] = (at, known)
        return known


# --- the companion project ---


def keep_project(
    studio: LabelStudio, store: Store, settings: Settings, project: Project, config: LabelConfig
) -> Companion | None:
    """The companion as it is now, made where it is wanted and missing; None where there is to be none.

    One that a person has deleted stays away until somebody asks for it.
    """
    known = store.labels.companion(project.uid)
    if config.object_tag != "Video":
        return None
    if known is None or not known.uid:
        wanted = (
            known.asked if known else settings.keyframes_project == "auto" and config.control_tag == "TimelineLabels"
        )
        return _make_project(studio, store, settings, project, config) if wanted else None
    try:
        found = studio.project(known.label_studio_id)
    except LabelStudioNotFound:
        found = {}
    if not found or wire.project_uid(found["id"], found["created_at"]) != known.uid:
        log.warning("project %s: its keyframes project was deleted; 'lookalike keyframes' makes a new one", project.uid)
        store.labels.lose_companion(project.uid)
        return None
    return _keep_config(studio, store, project, config, known, found["label_config"])


def keep_tabs(studio: LabelStudio, store: Store, known: Companion, config: LabelConfig) -> None:
    """Make the tabs that there never were, and drop those of categories that are gone."""
    wanted = companion.tabs(companion.categories_of(config))
    tabs = dict(known.tabs)
    for key in [key for key in tabs if key not in wanted]:
        try:
            studio.delete_view(tabs[key])
        except LabelStudioNotFound:
            log.info("tab %s is gone already", key)
        del tabs[key]
    for key, tab in wanted.items():
        if key not in tabs:
            made = studio.create_view(
                known.label_studio_id,
                tab.title,
                tab.filters,
                ordering=tab.ordering,
                conjunction=tab.conjunction,
                grid=tab.grid,
                number_columns=tab.numbers,
                hidden_columns=companion.HIDDEN_COLUMNS,
            )
            tabs[key] = made["id"]
    if tabs != known.tabs:
        store.labels.put_companion(replace(known, tabs=tabs))


def keep_tasks(
    studio: LabelStudio, store: Store, settings: Settings, known: Companion, knowledge: Knowledge, graph: Graph
) -> bool:
    """One task for each group of near-duplicates, the most useful first; whether there are more to make."""
    project = known.project
    tasks = store.labels.keyframe_tasks(project)
    leaders = {task.leader for task in tasks.values()}
    have = {task.leader for task in tasks.values() if task.task is not None}
    missing = [leader for leader in sorted(leaders - have) if leader in tasks]
    if any(tasks[leader].image for leader in missing):
        missing = _adopt(studio, store, known, missing, knowledge, graph)
    if not missing:
        return False
    places = _places(graph, None, knowledge.grouped)
    cluster, similarity = timeline.lookup(knowledge.grouped, np.asarray(missing, np.int64))
    row = {leader: n for n, leader in enumerate(missing)}
    centroids = _centroids(knowledge)
    order = sorted(missing, key=lambda k: (k not in centroids, places.get(int(cluster[row[k]]), _NO_PLACE), k))
    chosen = order[:TASKS_PER_JOB]

    images = _upload(studio, store, settings, known, {leader: tasks[leader].image for leader in chosen})
    videos = {video.id: video for video in store.videos(project)}
    frames = _frames(store, list(images))
    data: dict[int, Json] = {}
    for leader, image in images.items():
        video = videos.get(split_keyframe_id(leader)[0])
        if video is None or leader not in frames:
            continue
        number = int(cluster[row[leader]])
        data[leader] = companion.task_data(
            frames[leader],
            image,
            number,
            similarity[row[leader]],
            centroid=leader in centroids,
            order=places.get(number, _NO_PLACE),
            video=companion.video_name(video.url),
            link=_link(settings, project, video),
        )
    made = studio.import_tasks(known.label_studio_id, [{"data": values} for values in data.values()])
    store.labels.put_tasks(project, dict(zip(data, made, strict=True)), data)
    return len(order) > TASKS_PER_JOB


def keep_fields(
    studio: LabelStudio,
    store: Store,
    known: Companion,
    knowledge: Knowledge,
    graph: Graph,
    propagation: Propagation | None,
    ours: Mapping[int, Json],
) -> None:
    """Bring the tasks' cluster, centroid and place up to date. `ours`: the tasks as they are at Label Studio."""
    shown = store.labels.shown(known.project)
    tasks = [(leader, task) for task, leader in sorted(_alive(store, known, ours).items()) if task in shown]
    cluster, _ = timeline.lookup(knowledge.grouped, np.asarray([leader for leader, _ in tasks], np.int64))
    centroids = _centroids(knowledge)
    places = _places(graph, propagation, knowledge.grouped)
    wanted: dict[int, Json] = {}
    for (leader, task), number in zip(tasks, cluster, strict=True):
        if number < -1:
            continue  # its video is being worked on
        now: Json = {"cluster": cluster_name(int(number)), "centroid": "yes" if leader in centroids else "no"}
        place, before = places.get(int(number), _NO_PLACE), shown[task]["order"]
        if leader in centroids and (place < _PLACES or before < _PLACES):
            now["order"] = place if place < _PLACES else _NO_PLACE
        wanted[task] = {key: value for key, value in now.items() if shown[task].get(key) != value}
    _set_fields(studio, store, known, shown, wanted)


# --- people's words ---


def read_labels(
    studio: LabelStudio,
    store: Store,
    project: Project,
    config: LabelConfig,
    known: Companion | None,
    listings: Listings,
) -> dict[int, Json]:
    """Bring the ledger's labels up to what Label Studio has; the companion's tasks that are ours, by id.

    A task is read where it has changed since the last time, so that it costs little to ask often, and nothing is lost
    with a webhook.
    """
    videos = {video.task: video for video in store.videos(project.uid)}
    listed = listings.tasks(studio, project.uid, project.label_studio_id)
    ours = {task: values for task, values in listed.items() if task in videos}
    frames = store.keyframes([videos[task].id for task, values in ours.items() if values["total_annotations"]])
    version = _digest(config)

    def stamp_of_video(task: Json) -> str:
        return f"{task['updated_at']} {version} {len(frames[videos[task['id']].id])}"

    def rows_of_video(task: int, annotation: Json) -> list[LabelRow]:
        return _rows_of_video(config, videos[task], frames[videos[task].id], annotation)

    _read(studio, store, project.uid, project.label_studio_id, "video", ours, stamp_of_video, rows_of_video)
    if known is None or not known.uid:
        return {}

    groups: dict[int, list[int]] = defaultdict(list)
    leaders = {}
    for row in store.labels.keyframe_tasks(project.uid).values():
        if row.task is not None:
            groups[row.task].append(row.keyframe)
            leaders[row.task] = row.leader
    try:
        listed = listings.tasks(studio, known.uid, known.label_studio_id)
    except LabelStudioNotFound:
        store.want("companion", project.uid)  # it finds out what has become of it
        return {}
    # Label Studio's SQLite uses the ids of deleted tasks again, for whatever comes next
    ours = {
        task: values
        for task, values in listed.items()
        if task in leaders and values["data"].get("keyframe") == str(leaders[task])
    }
    pictures = wire.parse_label_config(known.label_config)
    version = _digest(pictures)

    def stamp_of_picture(task: Json) -> str:
        return f"{task['updated_at']} {version} {len(groups[task['id']])}"

    def rows_of_picture(task: int, annotation: Json) -> list[LabelRow]:
        said = [category for category in wire.read_annotation(pictures, annotation) if isinstance(category, str)]
        return [
            _row(keyframe, category, "companion", task, annotation) for keyframe in groups[task] for category in said
        ]

    _read(studio, store, project.uid, known.label_studio_id, "companion", ours, stamp_of_picture, rows_of_picture)
    return ours


def know(store: Store, project: Project, config: LabelConfig, model: str) -> Knowledge | None:
    """What the ledger knows; None before the first clustering."""
    found = store.clustering(project.uid, model)
    if found is None:
        return None
    tasks = store.labels.keyframe_tasks(project.uid)
    standing_for = companion.representatives(
        found[0].keyframe_ids.tolist(), {k: task.leader for k, task in tasks.items()}
    )
    agreed, disputed = companion.settle(
        store.labels.labels(project.uid), standing_for, companion.categories_of(config), multiple=config.multiple
    )
    return Knowledge(found[0], standing_for, agreed, disputed)


def fold(store: Store, project: str, model: str) -> None:
    """Find out which new keyframes are near-duplicates of which."""
    ids, fingerprints = store.labels.fingerprints(project)
    known = {keyframe: task.leader for keyframe, task in store.labels.keyframe_tasks(project).items()}
    if all(keyframe in known for keyframe in ids.tolist()):
        return
    embeddings = store.load_embeddings(project, model)
    have = np.isin(ids, embeddings.keyframe_ids)
    rows = np.searchsorted(embeddings.keyframe_ids, ids[have])
    vectors = embeddings.vectors[rows] if have.any() else np.zeros((0, 1), np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    store.labels.fold(project, companion.fold(ids[have], fingerprints[have], vectors, known))


# --- guesses ---


def extend_graph(store: Store, project: str, model: str, graph: Graph | None, knowledge: Knowledge) -> Graph:
    """The graph of all representatives; the one there was, where nothing has changed: reading vectors takes longer."""
    wanted = np.asarray(sorted(set(knowledge.standing_for.values())), np.int64)
    if graph is not None and graph.model == model and np.array_equal(np.sort(graph.keyframe_ids), wanted):
        return graph
    embeddings = store.load_embeddings(project, model)
    chosen = np.isin(embeddings.keyframe_ids, wanted)
    own = Embeddings(embeddings.keyframe_ids[chosen], embeddings.vectors[chosen], embeddings.model)
    return build_graph(own) if graph is None or graph.model != model else add(graph, own)


def guess(
    store: Store, settings: Settings, project: str, config: LabelConfig, knowledge: Knowledge, graph: Graph
) -> tuple[list[Proposal], Propagation, list[Label]]:
    """What we think of every keyframe that people have not labelled."""
    categories = companion.categories_of(config)
    labels = [
        Label(keyframe, category, said.annotation)
        for keyframe, said in sorted(knowledge.agreed.items(), key=lambda item: item[1].at)
        for category in said.categories
    ]
    outcomes = [
        Outcome(o.keyframe, o.category, o.score, o.confirmed)
        for o in store.labels.outcomes(project)
        if o.category in categories
    ]
    found = propagate(
        None, labels, categories, multiple=config.multiple, promise=settings.promise, graph=graph, outcomes=outcomes
    )
    said = knowledge.agreed.keys() | knowledge.disputed
    withdrawn = store.labels.withdrawn(project)
    proposals = [
        Proposal(k, "", 0.0, (), "conflict") for k in sorted(knowledge.disputed | (set(found.conflict) - said))
    ]
    taken = {p.keyframe for p in proposals} | said
    restored = {p.keyframe: p for p in store.labels.proposals(project, "proposed")} if withdrawn else {}
    for p in found.proposed:
        if p.keyframe_id in taken:
            continue
        if (p.keyframe_id, p.category) not in withdrawn:
            proposals.append(Proposal(p.keyframe_id, p.category, round(p.score, 3), p.nearest, "proposed"))
        elif (before := restored.get(p.keyframe_id)) is not None and before.category != p.category:
            proposals.append(before)  # undoing a run has brought this back
        else:
            proposals.append(Proposal(p.keyframe_id, p.category, round(p.score, 3), p.nearest, "unsure"))
    taken |= {p.keyframe for p in proposals}
    for g in found.open:
        if g.keyframe_id not in taken and g.score >= _UNSURE:
            proposals.append(Proposal(g.keyframe_id, g.category, round(g.score, 3), (), "unsure"))
    return proposals, found, labels


def name(
    store: Store, project: str, config: LabelConfig, knowledge: Knowledge
) -> dict[int, tuple[timeline.Named, ...]]:
    """What timelines are to show of each keyframe, from the ledger."""
    return companion.name(
        knowledge.agreed,
        store.labels.proposals(project, "proposed"),
        knowledge.standing_for,
        knowledge.grouped,
        companion.categories_of(config),
    )


def is_time_to_advise(store: Store, project: str, graph: Graph) -> bool:
    """Whether the last run has no advice yet; in the largest projects only once nobody labels."""
    runs = store.labels.runs(project, limit=1)
    if not runs or runs[0].advice:
        return False
    last = max((row.at for row in store.labels.labels(project)), default=0.0)
    return len(graph.keyframe_ids) <= _QUICKLY_ADVISED or time.time() - last > _AT_REST_S


def advise(graph: Graph, labels: Sequence[Label], config: LabelConfig, propagation: Propagation) -> str:
    """The planner's sentence."""
    categories = companion.categories_of(config)
    return planner.stop_advice(graph, labels, categories, propagation, multiple=config.multiple).text


def show(
    studio: LabelStudio,
    store: Store,
    known: Companion,
    knowledge: Knowledge,
    named: Mapping[int, Sequence[timeline.Named]],
    ours: Mapping[int, Json],
    version: str,
) -> int:
    """Bring the companion's predictions and fields to what the ledger says; how many predictions were written.

    `ours`: the tasks as they are at Label Studio. A task that a person has annotated keeps what it has.
    """
    pictures = wire.parse_label_config(known.label_config)
    shown = store.labels.shown(known.project)
    proposals: dict[int, list[Proposal]] = defaultdict(list)
    for proposal in store.labels.proposals(known.project):
        proposals[proposal.keyframe].append(proposal)
    new: list[int] = []
    stale: list[int] = []
    wanted: dict[int, Json] = {}
    bodies: dict[int, Json] = {}
    for task, leader in _alive(store, known, ours).items():
        if task not in shown:
            continue
        representative = knowledge.standing_for.get(leader, leader)
        found = proposals.get(representative, [])
        annotated = ours[task]["total_annotations"] > 0
        chosen = [n for n in named.get(leader, ()) if n.category in pictures.categories] if not annotated else []
        before = shown[task]
        category = " ".join(n.category for n in chosen)
        state = _state(representative, found, knowledge, annotated)
        fields = {"state": state, "category": chosen[0].category if chosen else ""}
        wanted[task] = {key: value for key, value in fields.items() if before.get(key) != value}
        if annotated:
            continue
        score = round(float(np.mean([n.score for n in chosen])), 3) if chosen else 0.0
        there, there_score = before.get("prediction", ""), before.get("score", 0.0)
        if there == category and abs(there_score - score) < _SAME_SCORE:
            continue
        if chosen:
            result = wire.choices_result(pictures, [n.category for n in chosen], score=score, note=chosen[0].note)
            bodies[task] = {"task": task, **wire.prediction(result, score, version)}
        (stale if there else new).append(task)
        before["prediction"], before["score"] = category, score

    doubt = [task for task in (*new, *stale) if task in bodies or task in stale]
    after = {task: shown[task] for task in doubt}
    store.labels.put_shown(known.project, {task: {**shown[task], "prediction": _IN_DOUBT} for task in doubt})
    fresh = [bodies[task] for task in new if task in bodies]
    studio.import_predictions(known.label_studio_id, fresh)  # first: this is what people wait for
    store.labels.put_shown(known.project, {task: after[task] for task in new if task in bodies})
    studio.delete_predictions(known.label_studio_id, stale)
    studio.import_predictions(known.label_studio_id, [bodies[task] for task in stale if task in bodies])
    store.labels.put_shown(known.project, {task: after[task] for task in stale})
    _set_fields(studio, store, known, shown, wanted)
    if bodies or any(values.get("prediction") for values in shown.values()):
        _keep_version(studio, known, version)
    return len(bodies)


# --- steps: the companion project ---


def _make_project(
    studio: LabelStudio, store: Store, settings: Settings, project: Project, config: LabelConfig
) -> Companion:
    categories = companion.categories_of(config)
    xml = companion.label_config(categories, wire.category_colours(project.label_config), multiple=config.multiple)
    description = companion.describe(project.uid)
    found = next((p for p in studio.projects() if p.get("description") == description), None)
    if found is None:
        title = project.title or str(studio.project(project.label_studio_id)["title"])
        found = studio.create_project(companion.title(title), xml, description=description)
    uid = wire.project_uid(found["id"], found["created_at"])
    known = Companion(project.uid, uid, found["id"], found["label_config"] or xml)
    store.labels.put_companion(known)
    return known


def _keep_config(
    studio: LabelStudio, store: Store, project: Project, config: LabelConfig, known: Companion, at_studio: str
) -> Companion:
    """Give the companion the categories that the videos have, when those change.

    It keeps those that people have added there, and those that they have used.
    """
    wanted = companion.categories_of(config)
    try:
        have = wire.parse_label_config(at_studio).categories
    except LabelConfigError as error:
        log.warning("the keyframes project %s: %s", known.label_studio_id, error)
        return known
    before = companion.tabs_of(known.tabs) or set(wanted)
    if before != set(wanted) or not set(wanted) <= set(have):
        colours = wire.category_colours(project.label_config)
        # an annotation whose category is gone cannot be opened any more, and would be lost when it is corrected
        used = {row.category for row in store.labels.labels(project.uid)}
        kept = [c for c in have if c not in wanted and (c not in before or c in used)]
        at_studio = companion.label_config([*wanted, *kept], colours, multiple=config.multiple)
        studio.update_project(known.label_studio_id, label_config=at_studio)
    if at_studio != known.label_config:
        known = replace(known, label_config=at_studio)
        store.labels.put_companion(known)
    return known


def _adopt(
    studio: LabelStudio, store: Store, known: Companion, missing: Sequence[int], knowledge: Knowledge, graph: Graph
) -> list[int]:
    """We were stopped between importing tasks and remembering them: find those; the leaders still without one."""
    wanted = {str(leader): leader for leader in missing}
    found = {}
    data = {}
    for task in studio.tasks(known.label_studio_id):
        leader = wanted.get(str(task["data"].get("keyframe")))
        if leader is not None and leader not in found:
            found[leader], data[leader] = task["id"], task["data"]
    store.labels.put_tasks(known.project, found, data)
    return [leader for leader in missing if leader not in found]


def _upload(
    studio: LabelStudio, store: Store, settings: Settings, known: Companion, images: Mapping[int, str]
) -> dict[int, str]:
    """Addresses of the keyframes' pictures at Label Studio, each uploaded once; one that is lost is left out."""
    found = {keyframe: image for keyframe, image in images.items() if image}
    waiting = [keyframe for keyframe in images if keyframe not in found]
    for at in range(0, len(waiting), 50):
        pictures = []
        for keyframe in waiting[at : at + 50]:
            video, frame = split_keyframe_id(keyframe)
            picture = _small_picture(settings.keyframes_dir / f"{video:09d}" / f"{frame:07d}.jpg")
            if picture is not None:
                pictures.append((f"{keyframe}.jpg", picture))
        urls = studio.upload_pictures(known.label_studio_id, pictures)
        uploaded = {int(name.removesuffix(".jpg")): url for name, url in urls.items()}
        store.labels.put_images(uploaded)
        found |= uploaded
    return {keyframe: found[keyframe] for keyframe in images if keyframe in found}


def _small_picture(path: Path) -> bytes | None:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        log.warning("the keyframe picture %s is missing or broken; ask for the video again", path.name)
        return None
    scale = min(1.0, _PICTURE_PX / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())


def _frames(store: Store, ids: Sequence[int]) -> dict[int, Keyframe]:
    videos = sorted({split_keyframe_id(keyframe)[0] for keyframe in ids})
    return {frame.id: frame for frames in store.keyframes(videos).values() for frame in frames}


def _link(settings: Settings, project: str, video: StoredVideo) -> str:
    """From the companion's page to the video's task: both are at one address, whatever people call it."""
    prefix = urlsplit(settings.label_studio_url).path.rstrip("/")
    return f"{prefix}/projects/{project.split('.')[0]}/data?task={video.task}"


def _centroids(knowledge: Knowledge) -> set[int]:
    """The representatives of the clusters' centroids."""
    return {
        knowledge.standing_for[centroid]
        for centroid in knowledge.grouped.centroids.tolist()
        if centroid in knowledge.standing_for
    }


def _places(graph: Graph, propagation: Propagation | None, grouped: Clustering) -> dict[int, int]:
    """The planner's place of each cluster, from 1: that of its first keyframe among those to label next."""
    count = len(grouped.centroids)
    chosen = planner.next_to_label(graph, propagation, min(len(graph.keyframe_ids), 2 * count))
    clusters, _ = timeline.lookup(grouped, np.asarray(chosen, np.int64))
    places: dict[int, int] = {}
    for number in clusters.tolist():
        places.setdefault(number, len(places) + 1)
    return places


def _set_fields(
    studio: LabelStudio, store: Store, known: Companion, shown: dict[int, Json], wanted: Mapping[int, Json]
) -> None:
    """Change fields of tasks' data, all that get the same value at once."""
    groups: dict[tuple[str, str | int], list[int]] = defaultdict(list)
    for task, fields in wanted.items():
        for key, value in fields.items():
            groups[key, value].append(task)
    for (key, value), tasks in groups.items():
        studio.set_task_field(known.label_studio_id, tasks, key, value)
        for task in tasks:
            shown[task][key] = value
        store.labels.put_shown(known.project, {task: shown[task] for task in tasks})


def _keep_version(studio: LabelStudio, known: Companion, version: str) -> None:
    """The Data Manager shows and sorts scores of one version only; somebody may have chosen another."""
    found = studio.project(known.label_studio_id)
    if found.get("model_version") == version or wire.project_uid(found["id"], found["created_at"]) != known.uid:
        return
    try:
        studio.update_project(known.label_studio_id, model_version=version)
    except LabelStudioError as error:
        if error.temporary:
            raise
        log.warning("the keyframes project shows no scores: %s", error)  # no prediction of this version is left


def _alive(store: Store, known: Companion, ours: Mapping[int, Json]) -> dict[int, int]:
    """Leader by task."""
    rows = store.labels.keyframe_tasks(known.project).values()
    return {row.task: row.leader for row in rows if row.task is not None and row.task in ours}


def _state(keyframe: int, found: Sequence[Proposal], knowledge: Knowledge, annotated: bool) -> str:
    if keyframe in knowledge.disputed:
        return "conflict"
    if keyframe in knowledge.agreed or annotated:
        return "labelled"
    return found[0].state if found else "open"


# --- steps: people's words ---


def _read(
    studio: LabelStudio,
    store: Store,
    project: str,
    label_studio_id: int,
    source: Source,
    ours: Mapping[int, Json],
    stamp_of: Callable[[Json], str],
    rows_of: Callable[[int, Json], list[LabelRow]],
) -> None:
    """Read the annotations of the tasks (`ours`, as listed) whose stamp is not the one of the last reading."""
    known = store.labels.readings(project, source)
    stamps: dict[int, str | None] = {task: None for task in known if task not in ours}
    changed = []
    for task, values in ours.items():
        if not values["total_annotations"]:
            if task in known:
                stamps[task] = None
        elif known.get(task) != stamp_of(values):
            stamps[task] = stamp_of(values)
            changed.append(task)
    rows: list[LabelRow] = []
    for found in studio.annotated_tasks(label_studio_id, changed):
        for annotation in found["annotations"]:
            try:
                rows += rows_of(found["id"], annotation)
            except RequestError as error:
                log.warning("annotation %s of task %s is left out: %s", annotation.get("id"), found["id"], error)
    if stamps:
        store.labels.put_labels(project, source, stamps, rows)


def _digest(config: LabelConfig) -> str:
    """Changes with the categories: annotations that name one are then read once more."""
    return hashlib.sha256("\0".join(config.categories).encode()).hexdigest()[:8]


def _rows_of_video(
    config: LabelConfig, video: StoredVideo, frames: Sequence[Keyframe], annotation: Json
) -> list[LabelRow]:
    """A stretch of a timeline labels the keyframes in it; a choice all keyframes of the video, if it is one choice."""
    fps: Fraction = wire.frame_rate_of(config, video.data)
    found = wire.read_annotation(config, annotation, fps)
    rows = []
    for said in found:
        if isinstance(said, wire.TimedLabel):
            inside = [frame for frame in frames if said.first_s <= frame.time_s < said.last_s]
            rows += [_row(frame.id, said.category, "video", video.task, annotation) for frame in inside]
        elif len(found) == 1 or len(frames) == 1:
            rows += [_row(frame.id, said, "video", video.task, annotation) for frame in frames]
    return rows


def _row(keyframe: int, category: str, source: Source, task: int, annotation: Json) -> LabelRow:
    # " demo@example.com, 1"
    person = str(annotation.get("created_username") or "").rpartition(",")[0].strip()
    at = datetime.fromisoformat(annotation["updated_at"]).timestamp()
    return LabelRow(
        keyframe, category, source, task, annotation["id"], person or str(annotation.get("completed_by")), at
    )
