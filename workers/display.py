"""What people see in Label Studio of the loop: tasks to label, in tabs, with what we guess of them.

    keep_project · keep_tasks · keep_tabs · keep_fields    the companion project, made and kept
    show                                                   the guesses as predictions, only where they have changed

A project of pictures is its own companion: its tasks are there already, and get our fields, tabs and predictions.
Everything may be repeated: what Label Studio shows is remembered after it was sent, and marked as in doubt before.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from lookalike import wire
from lookalike.companion import describe
from lookalike.errors import LabelConfigError, LabelStudioError, LabelStudioNotFound
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion, Proposal
from lookalike.records import Clustering, Json, Keyframe, LabelConfig, cluster_name, split_keyframe_id
from lookalike.said import categories_of
from lookalike.settings import Settings
from lookalike.store import Project, Store, StoredVideo
from workers import companion, planner, timeline
from workers.loop import Knowledge
from workers.propagation import Graph, Propagation
from workers.timeline import Named

log = logging.getLogger("lookalike.loop")

#: tasks that one job makes; then others get their turn, for one worker does everything that is short
TASKS_PER_JOB = 300
_PICTURE_PX = 640
_JPEG_QUALITY = 85
#: a shown score may be this far off: replacing a prediction takes Label Studio 10 to 30 ms
_SAME_SCORE = 0.1
#: predictions that one job changes where they are, 0.2 s each
_IN_PLACE = 20
#: places of tab 1 that are kept in order after every label; each costs a call
_PLACES = 10
_NO_PLACE = 1_000_000
#: what we say of a task while we cannot know whether Label Studio kept what it was sent
_IN_DOUBT = "?"
#: … and where there is a prediction that says nothing any more
_EMPTIED = "-"


def keep_project(
    studio: LabelStudio, store: Store, settings: Settings, project: Project, config: LabelConfig
) -> Companion | None:
    """The companion as it is now, made where it is wanted and missing; None where there is to be none.

    One that a person has deleted stays away until somebody asks for it. Pictures are labelled where they are.
    """
    known = store.labels.companion(project.uid)
    pictures = config.object_tag == "Image"
    if known is not None and known.uid and known.own != pictures:
        store.labels.lose_companion(project.uid)  # the labeling configuration is for something else now
        known = None
    if pictures:
        before = known or Companion(project.uid, "", 0, "")
        known = replace(
            before, uid=project.uid, label_studio_id=project.label_studio_id, label_config=project.label_config
        )
        if known != before:
            store.labels.put_companion(known)
        return known
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


def keep_tabs(
    studio: LabelStudio, store: Store, settings: Settings, known: Companion, config: LabelConfig
) -> Companion:
    """Make the tabs that there never were, and drop those of categories that are gone; the companion with its tabs.

    People's own project is left as it is where the settings say so.
    """
    if known.own and settings.keyframes_project == "off" and not known.asked and not known.tabs:
        return known
    wanted = companion.tabs(categories_of(config), known.prefix)
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
                hidden_columns=companion.hidden_columns(known.prefix),
            )
            tabs[key] = made["id"]
    if tabs != known.tabs:
        known = replace(known, tabs=tabs)
        store.labels.put_companion(known)
    return known


def keep_tasks(
    studio: LabelStudio, store: Store, settings: Settings, known: Companion, knowledge: Knowledge, graph: Graph
) -> bool:
    """One task for each group of near-duplicates, the most useful first; whether there are more to make."""
    if known.own:
        _take_as_they_are(store, known)
        return False
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
            video=wire.video_name(video.url),
            link=_link(settings, project, video),
            page=_page(settings, project, leader),
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
    if not known.tabs:
        return
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
        place, before = places.get(int(number), _NO_PLACE), shown[task].get("order", 0)
        if leader in centroids and (place < _PLACES or before < _PLACES):
            now["order"] = place if place < _PLACES else _NO_PLACE
        wanted[task] = {key: value for key, value in now.items() if shown[task].get(key) != value}
    _set_fields(studio, store, known, shown, wanted)


def show(
    studio: LabelStudio,
    store: Store,
    known: Companion,
    knowledge: Knowledge,
    named: Mapping[int, Sequence[timeline.Named]],
    ours: Mapping[int, Json],
    version: str,
) -> bool:
    """Bring the companion's predictions and fields to what the ledger says; whether there is more to bring.

    `ours`: the tasks as they are at Label Studio. A task that a person has annotated keeps what it has. Somebody may
    have a task open, and cannot submit it once its prediction was deleted: a few change where they are, the likeliest
    to be open first; what is many goes at once, because in place it takes 0.2 s each.
    """
    pictures = known.config
    shown = store.labels.shown(known.project)
    proposals: dict[int, list[Proposal]] = defaultdict(list)
    for proposal in store.labels.proposals(known.project):
        proposals[proposal.keyframe].append(proposal)
    alive = {task: leader for task, leader in _alive(store, known, ours).items() if task in shown}
    unnamed = _unnamed(known, pictures, knowledge, sorted(alive.values()))
    new: list[int] = []
    other: list[int] = []  # another category, or none
    moved: list[int] = []  # another score: nobody waits for those
    wanted: dict[int, Json] = {}
    bodies: dict[int, Json] = {}
    held: dict[int, Json] = {}  # only for whom opens the task
    after: dict[int, Json] = {}

    def body(chosen: Sequence[Named], score: float) -> Json:
        result = wire.choices_result(pictures, [n.category for n in chosen], score=score, note=chosen[0].note)
        return wire.prediction(result, score, version)

    for task, leader in alive.items():
        representative = knowledge.standing_for.get(leader, leader)
        annotated = ours[task]["total_annotations"] > 0
        chosen = [n for n in named.get(leader, ()) if n.category in pictures.categories] if not annotated else []
        before = shown[task]
        state = _state(representative, proposals.get(representative, []), knowledge, annotated)
        fields = {"state": state, "category": chosen[0].category if chosen else ""}
        wanted[task] = {key: value for key, value in fields.items() if before.get(key, "") != value}
        if annotated:
            continue
        what = " ".join(n.category for n in chosen)
        score = round(float(np.mean([n.score for n in chosen])), 3) if chosen else 0.0
        note = unnamed[leader].note if leader in unnamed and not chosen else ""
        if note != before.get("unnamed", ""):
            after[task] = {**before, "unnamed": note}
            if note:
                held[task] = body([unnamed[leader]], unnamed[leader].score)
        there, there_score = before.get("prediction", ""), before.get("score", 0.0)
        if (there == what and abs(there_score - score) < _SAME_SCORE) or (there == _EMPTIED and not chosen):
            continue
        after[task] = {**before, "prediction": what, "score": score, "unnamed": note}
        if chosen:
            bodies[task] = body(chosen, score)
        (new if not there else moved if there == what else other).append(task)

    told = store.predictions(known.project, new) if known.own else {}
    opened = {task for task in new if task in told and told[task].answered_at}  # Label Studio keeps what it was told
    new, other = [task for task in new if task not in opened], [*opened, *other]
    centroids = _centroids(knowledge)
    other, moved = (sorted(tasks, key=lambda task: (alive[task] not in centroids, task)) for tasks in (other, moved))
    replaced, in_place = other[_IN_PLACE:], other[:_IN_PLACE]
    left = moved[_IN_PLACE - len(in_place) :]
    in_place += moved[: _IN_PLACE - len(in_place)]
    for task in in_place:
        after[task]["prediction"] = after[task]["prediction"] or _EMPTIED

    def remember(tasks: Sequence[int]) -> None:
        _remember(store, known, {task: after[task] for task in tasks}, alive, bodies | held)

    def import_(tasks: Sequence[int]) -> None:
        fresh = [{"task": task, **bodies[task]} for task in tasks if task in bodies]
        studio.import_predictions(known.label_studio_id, fresh)
        remember(tasks)

    sent = [*new, *replaced, *in_place]
    store.labels.put_shown(known.project, {task: {**shown[task], "prediction": _IN_DOUBT} for task in sent})
    import_(new)  # first: this is what people wait for
    # of people's own tasks only our predictions go: they may have others
    family = wire.MODEL_FAMILY if known.own else ""
    studio.delete_predictions(known.label_studio_id, replaced, family=family)
    import_(replaced)
    remember([task for task in after if task not in {*sent, *left}])
    shown |= {task: values for task, values in after.items() if task not in left}
    if known.tabs:
        early = {task: fields for task, fields in wanted.items() if task not in in_place}
        _set_fields(studio, store, known, shown, early)
    for task in in_place:
        nothing = held.get(task) or wire.prediction([], None, version)
        try:
            studio.put_prediction(task, bodies.get(task, nothing), family=wire.MODEL_FAMILY)
        except LabelStudioNotFound:
            log.info("task %s is gone", task)  # the next whole listing is without it
            continue
        remember([task])
    if known.tabs:
        _set_fields(studio, store, known, shown, {task: wanted[task] for task in in_place})
    if bodies or any(values.get("prediction") for values in shown.values()):
        _keep_version(studio, known, version)
    return bool(left)


# --- steps ---


def _make_project(
    studio: LabelStudio, store: Store, settings: Settings, project: Project, config: LabelConfig
) -> Companion:
    categories = categories_of(config)
    xml = companion.label_config(categories, wire.category_colours(project.label_config), multiple=config.multiple)
    description = describe(project.uid)
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

    It keeps those that people have added there, and those that they have used; what else they have put into its
    configuration, a smart tool say, stays.
    """
    wanted = categories_of(config)
    try:
        there = replace(known, label_config=at_studio).config
    except LabelConfigError as error:
        log.warning("the keyframes project %s: %s", known.label_studio_id, error)
        return known
    before = companion.tabs_of(known.tabs) or set(wanted)
    if before != set(wanted) or not set(wanted) <= set(there.categories):
        colours = wire.category_colours(project.label_config)
        # an annotation whose category is gone cannot be opened any more, and would be lost when it is corrected
        used = {row.category for row in store.labels.labels(project.uid)}
        kept = [c for c in there.categories if c not in wanted and (c not in before or c in used)]
        chosen = [*wanted, *kept]
        at_studio = wire.with_choices(at_studio, there.from_name, chosen, colours, multiple=config.multiple)
        studio.update_project(known.label_studio_id, label_config=at_studio)
    if at_studio != known.label_config:
        known = replace(known, label_config=at_studio)
        store.labels.put_companion(known)
    return known


def _take_as_they_are(store: Store, known: Companion) -> None:
    """Tasks of people's own project: those that are new, or show another picture than before."""
    tasks, shown = store.labels.keyframe_tasks(known.project), store.labels.shown(known.project)
    videos = {video.id: video for video in store.videos(known.project)}
    new: dict[int, StoredVideo] = {}
    for keyframe, row in tasks.items():
        video = videos.get(split_keyframe_id(keyframe)[0])
        if video is not None and (row.task != video.task or shown.get(video.task, {}).get("url") != video.url):
            new[keyframe] = video
    # a prediction may be there from before: of the picture that it showed, or sent one by one
    there = store.predictions(known.project, [video.task for video in new.values()]).keys() | shown.keys()
    store.labels.put_tasks(
        known.project,
        {keyframe: video.task for keyframe, video in new.items()},
        {k: {"url": v.url, "prediction": _IN_DOUBT if v.task in there else ""} for k, v in new.items()},
    )


def _unnamed(known: Companion, pictures: LabelConfig, knowledge: Knowledge, leaders: Sequence[int]) -> dict[int, Named]:
    """What a person's own tasks show, by leader, until something is known: which cluster they are of."""
    if not known.own or pictures.reserved is None:
        return {}
    numbers, similarity = timeline.lookup(knowledge.grouped, np.asarray(leaders, np.int64))
    members = timeline.describe_members(knowledge.grouped, noun="picture")
    return {
        leader: Named(pictures.reserved, round(float(near), 3), f"{cluster_name(number)} · {members[number]}")
        for leader, number, near in zip(leaders, numbers.tolist(), similarity, strict=True)
        if number in members and number not in knowledge.grouped.junk
    }


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
            picture = _small_picture(settings.picture_path(*split_keyframe_id(keyframe)))
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


def _page(settings: Settings, project: str, keyframe: int) -> str:
    """The keyframe's page with us; "" where only this network knows our address, and not the annotators' browsers."""
    if not settings.public_url and not settings.is_on_loopback:
        return ""
    return f"{settings.page_url.rstrip('/')}/projects/{project.split('.')[0]}/keyframes/{keyframe}"


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
    """Change fields of tasks' data, all that get the same value at once; `shown` follows."""
    groups: dict[tuple[str, str | int], list[int]] = defaultdict(list)
    for task, fields in wanted.items():
        for key, value in fields.items():
            groups[key, value].append(task)
    for (key, value), tasks in groups.items():
        studio.set_task_field(known.label_studio_id, tasks, known.prefix + key, value)
        for task in tasks:
            shown[task][key] = value
        store.labels.put_shown(known.project, {task: shown[task] for task in tasks})


def _remember(
    store: Store, known: Companion, sent: Mapping[int, Json], alive: Mapping[int, int], bodies: Mapping[int, Json]
) -> None:
    """Label Studio shows this of these tasks now. What people's own tasks show is also what /predict answers."""
    store.labels.put_shown(known.project, sent)
    if known.own and sent:
        videos = {task: split_keyframe_id(alive[task])[0] for task in sent}
        there = {videos[task]: bodies[task] for task in sent if task in bodies}
        with store.labels.begin(known.project) as connection:
            store.put_predictions(connection, known.project, there)
            store.labels.put_sent(connection, there, set(videos.values()) - there.keys())


def _keep_version(studio: LabelStudio, known: Companion, version: str) -> None:
    """The Data Manager shows and sorts scores of one version only; somebody may have chosen another.

    In people's own project that is their choice, as long as they have predictions of that version.
    """
    found = studio.project(known.label_studio_id)
    chosen = str(found.get("model_version") or "")
    if chosen == version or wire.project_uid(found["id"], found["created_at"]) != known.uid:
        return
    if (
        known.own
        and not chosen.startswith(wire.MODEL_FAMILY)
        and chosen in studio.model_versions(known.label_studio_id)
    ):
        log.info("project %s shows the scores of %r, not ours: its settings say so", known.uid, chosen)
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
