"""A person's words, written to Label Studio in that person's name, and taken back.

One annotation for all near-duplicates of a keyframe, on the task that shows them. What is written is remembered with
the edit that it belongs to, so that exactly that is taken back.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lookalike import wire
from lookalike.edits import Edit, Written
from lookalike.errors import LabelStudioError, LabelStudioNotFound, RequestError
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion, Source
from lookalike.records import Json, LabelConfig
from lookalike.said import categories_of
from lookalike.store import Store

#: annotations that one request writes or takes back at most: about a second on SQLite
MOST = 200
#: changes of annotations at a time; more only wait for each other in SQLite
_AT_ONCE = 3
#: held per project while annotations are written: two clicks at once would write twice
_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a project's keyframes are labelled."""

    project: str  # uid
    label_studio_id: int
    config: LabelConfig
    own: bool  # in the project itself, whose tasks are pictures

    @property
    def source(self) -> Source:
        return "video" if self.own else "companion"

    @property
    def categories(self) -> tuple[str, ...]:
        return categories_of(self.config)


@dataclass(slots=True)
class Outcome:
    """What became of some keyframes."""

    done: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)  # the person has said the same before
    failed: dict[int, str] = field(default_factory=dict)  # the reason, by keyframe


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What undoing did."""

    done: int
    left_alone: int  # changed since, by whomever
    remaining: int  # for the next request


def place_of(companion: Companion | None) -> Place:
    """Raises RequestError where there is nowhere to label yet."""
    if companion is None or not companion.uid:
        raise RequestError(
            "this project has no project of keyframes at Label Studio to write annotations to; "
            "`lookalike keyframes --project …` makes one"
        )
    return Place(companion.project, companion.label_studio_id, companion.config, companion.own)


def label(
    studio: LabelStudio, store: Store, place: Place, edit: int, category: str, keyframes: Sequence[int]
) -> Outcome:
    """Let the person whose token `studio` has say that keyframes show a category; at most MOST of them.

    Where the person has said something else before, that annotation is changed. A keyframe whose annotation cannot be
    written is told with the reason, and the others go on. Raises RequestError for a category that there is not, and
    LabelStudioError where nothing can be written at all.
    """
    if category not in place.categories:
        raise RequestError(f"{category!r} is not a category of this project; it has {', '.join(place.categories)}")
    if len(keyframes) > MOST:
        raise RequestError(f"at most {MOST} keyframes are labelled at a time, got {len(keyframes)}")
    outcome = Outcome()
    groups: dict[int, list[int]] = defaultdict(list)  # keyframes asked for, by task
    shown = store.edits.tasks(place.project, keyframes)
    for keyframe in keyframes:
        task = shown[keyframe].task if keyframe in shown else None
        if task is None:
            outcome.failed[keyframe] = "it has no task at Label Studio yet; try again in a moment"
        else:
            groups[task].append(keyframe)
    leaders = {row.task: row.leader for row in shown.values() if row.task is not None}
    me = int(studio.whoami()["id"])
    with _turns[place.project]:
        _label(studio, store, place, edit, category, groups, leaders, me, outcome)
    return outcome


def take_back(studio: LabelStudio, store: Store, place: Place, edit: Edit) -> TakenBack:
    """Delete or restore the annotations that an edit wrote, at most MOST of them; what was changed since stays.

    Raises LabelStudioError, with what was done until then done.
    """
    rows = store.edits.written(edit.id)
    remaining = max(0, len(rows) - MOST)
    rows = rows[:MOST]
    me = int(studio.whoami()["id"])
    with _turns[place.project]:
        found = _annotated(studio, place, {row.task for row in rows})
        alone: list[Written] = []  # the only thing that the person said there
        single: list[Written] = []
        left: list[Written] = []
        for row in rows:
            task = found.get(row.task)
            mine = [a for a in task["annotations"] if a["completed_by"] == me] if task else []
            now = next((a for a in mine if a["id"] == row.annotation), None)
            if now is None or _said(place, now) != _said(place, {"result": row.after}):
                left.append(row)
            elif row.before is None and len(mine) == 1 and not (task or {}).get("drafts"):
                alone.append(row)
            else:
                single.append(row)
        store.edits.forget_written(place.project, place.source, left)
        studio.delete_annotations(place.label_studio_id, [row.task for row in alone], me)
        store.edits.forget_written(place.project, place.source, alone)
        problems = _each(single, lambda row: _restore(studio, row))
        store.edits.forget_written(
            place.project, place.source, [row for row in single if row.annotation not in problems]
        )
    if problems:
        raise next(iter(problems.values()))
    return TakenBack(len(alone) + len(single), len(left), remaining)


# --- steps ---


def _label(
    studio: LabelStudio,
    store: Store,
    place: Place,
    edit: int,
    category: str,
    groups: Mapping[int, Sequence[int]],
    leaders: Mapping[int, int],
    me: int,
    outcome: Outcome,
) -> None:
    found = _annotated(studio, place, groups)
    addresses = store.edits.addresses(leaders.values()) if place.own else {}
    new: list[int] = []
    changes: list[Written] = []
    for task, keyframes in groups.items():
        row, leader = found.get(task), leaders[task]
        # Label Studio's SQLite uses the ids of deleted tasks again, for whatever comes next
        wanted = addresses.get(leader) if place.own else str(leader)
        key = place.config.data_key if place.own else "keyframe"
        if row is None or row["data"].get(key) != wanted:
            outcome.failed |= dict.fromkeys(keyframes, "its task was deleted at Label Studio")
            continue
        mine = _mine(row, me)
        if mine is None:
            new.append(task)
        elif (said := _said(place, mine)) == (after := _with(place, said, category)):
            outcome.skipped += keyframes
        else:
            others = [region for region in mine["result"] if region.get("from_name") != place.config.from_name]
            result = others + _result(place, after)
            changes.append(Written(edit, mine["id"], leader, task, mine["result"], result))

    problem = _create(studio, place, _result(place, {category}), new)
    made = _annotated(studio, place, new)
    written = []
    for task in new:
        mine = _mine(made[task], me) if task in made else None
        if mine is not None:
            written.append(Written(edit, mine["id"], leaders[task], task, None, mine["result"]))
            outcome.done += groups[task]
        else:
            outcome.failed |= dict.fromkeys(groups[task], problem or "Label Studio did not keep the annotation")
    store.edits.put_written(place.project, place.source, written)

    problems = _each(changes, lambda row: studio.update_annotation(row.annotation, row.after))
    changed = [change for change in changes if change.annotation not in problems]
    store.edits.put_written(place.project, place.source, changed)
    for change in changes:
        if change.annotation in problems:
            outcome.failed |= dict.fromkeys(groups[change.task], str(problems[change.annotation]))
        else:
            outcome.done += groups[change.task]


def _create(studio: LabelStudio, place: Place, result: list[Json], tasks: Sequence[int]) -> str:
    """One annotation, and copies of it: 100 times as quick as one by one. What went wrong, "" if nothing did."""
    try:
        if tasks:
            first = studio.create_annotation(tasks[0], result)
            studio.copy_annotation(place.label_studio_id, first["id"], tasks[1:])
    except LabelStudioError as error:
        return str(error)
    return ""


def _restore(studio: LabelStudio, row: Written) -> None:
    try:
        if row.before is None:
            studio.delete_annotation(row.annotation)
        else:
            studio.update_annotation(row.annotation, row.before)
    except LabelStudioNotFound:
        return  # somebody else has deleted it


def _each(rows: Sequence[Written], do: Callable[[Written], None]) -> dict[int, LabelStudioError]:
    """Do it to all, a few at a time; what went wrong, by annotation."""

    def tried(row: Written) -> LabelStudioError | None:
        try:
            do(row)
        except LabelStudioError as error:
            return error
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        errors = zip(rows, pool.map(tried, rows), strict=True)
        return {row.annotation: error for row, error in errors if error is not None}


def _annotated(studio: LabelStudio, place: Place, tasks: Collection[int]) -> dict[int, Json]:
    return {row["id"]: row for row in studio.annotated_tasks(place.label_studio_id, list(tasks))}


def _mine(task: Json, me: int) -> Json | None:
    """The person's last word in a task."""
    mine = [a for a in task["annotations"] if a["completed_by"] == me and not a["was_cancelled"]]
    return max(mine, key=lambda a: (a["updated_at"], a["id"]), default=None)


def _said(place: Place, annotation: Json) -> set[str]:
    return {category for category in wire.read_annotation(place.config, annotation) if isinstance(category, str)}


def _with(place: Place, said: set[str], category: str) -> set[str]:
    return said | {category} if place.config.multiple else {category}


def _result(place: Place, categories: set[str]) -> list[Json]:
    return wire.choices_result(place.config, [c for c in place.categories if c in categories])
