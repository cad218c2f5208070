"""People's words, read back from Label Studio: whoever said them, wherever, in whatever order they came.

A webhook is only a hint. What the annotations say is read from those tasks that have changed, and takes the place of
what was known of them, so that reading twice does no harm and nothing is lost with a webhook.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from fractions import Fraction

from lookalike import wire
from lookalike.errors import LabelStudioNotFound, RequestError
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion, LabelRow, Source
from lookalike.records import Json, Keyframe, LabelConfig
from lookalike.store import Project, Store, StoredVideo

log = logging.getLogger("lookalike.loop")

#: a change may be committed a while after the time that it carries
_OVERLAP = timedelta(seconds=15)


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

    def tasks(
        self, studio: LabelStudio, uid: str, label_studio_id: int, touched: Collection[int] = ()
    ) -> dict[int, Json]:
        """By id. Raises LabelStudioNotFound for a project that is gone.

        `touched`: tasks to look at even if Label Studio does not say that they have changed.
        """
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
        if query:
            known |= {task["id"]: task for task in studio.chosen_tasks(label_studio_id, list(touched))}
        self._known[uid] = (at, known)
        return known


def read_labels(
    studio: LabelStudio,
    store: Store,
    project: Project,
    config: LabelConfig,
    known: Companion | None,
    listings: Listings,
) -> dict[int, Json]:
    """Bring the ledger's labels up to what Label Studio has; the tasks where people label keyframes, by id.

    A task is read where it has changed since the last time, so that it costs little to ask often.
    """
    videos = {video.task: video for video in store.videos(project.uid)}
    touched = store.edits.touched(project.uid, "video")
    listed = listings.tasks(studio, project.uid, project.label_studio_id, touched)
    ours = {task: values for task, values in listed.items() if task in videos}
    frames = store.keyframes([videos[task].id for task, values in ours.items() if values["total_annotations"]])
    version = _digest(config)

    def stamp_of_video(task: Json) -> str:
        return f"{task['updated_at']} {version} {len(frames[videos[task['id']].id])}"

    def rows_of_video(task: int, annotation: Json) -> list[LabelRow]:
        return _rows_of_video(config, videos[task], frames[videos[task].id], annotation)

    _read(studio, store, project.uid, project.label_studio_id, "video", ours, stamp_of_video, rows_of_video)
    store.edits.put_read(project.uid, "video", touched)
    if known is None or not known.uid:
        return {}
    if known.own:
        return ours

    groups: dict[int, list[int]] = defaultdict(list)
    leaders = {}
    for row in store.labels.keyframe_tasks(project.uid).values():
        if row.task is not None:
            groups[row.task].append(row.keyframe)
            leaders[row.task] = row.leader
    touched = store.edits.touched(project.uid, "companion")
    try:
        listed = listings.tasks(studio, known.uid, known.label_studio_id, touched)
    except LabelStudioNotFound:
        store.want("companion", project.uid)  # it finds out what has become of it
        return {}
    # Label Studio's SQLite uses the ids of deleted tasks again, for whatever comes next
    ours = {
        task: values
        for task, values in listed.items()
        if task in leaders and values["data"].get("keyframe") == str(leaders[task])
    }
    pictures = known.config
    version = _digest(pictures)

    def stamp_of_picture(task: Json) -> str:
        return f"{task['updated_at']} {version} {len(groups[task['id']])}"

    def rows_of_picture(task: int, annotation: Json) -> list[LabelRow]:
        said = [category for category in wire.read_annotation(pictures, annotation) if isinstance(category, str)]
        return [
            _row(keyframe, category, "companion", task, annotation) for keyframe in groups[task] for category in said
        ]

    _read(studio, store, project.uid, known.label_studio_id, "companion", ours, stamp_of_picture, rows_of_picture)
    store.edits.put_read(project.uid, "companion", touched)
    return ours


# --- steps ---


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
