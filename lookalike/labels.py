"""Labels and what follows from them: people's words, guesses, runs, and the companion project that shows keyframes.

`Store.labels` has these verbs. A label is read from Label Studio and never made here; a guess is never a label.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, bindparam, delete, func, select, true, update

from lookalike import wire
from lookalike.ledger import Part, insert, portions
from lookalike.records import Json, LabelConfig, split_keyframe_id
from lookalike.schema import (
    companions,
    keyframe_tasks,
    keyframes,
    labels,
    outcomes,
    predictions,
    propagated,
    readings,
    runs,
    shown,
    videos,
    withdrawn,
    work,
)

Source = Literal["companion", "video"]  # where an annotation stands

#: a proposal whose score moves by less is left as it is: every label moves every score a little
_SAME_SCORE = 0.02


@dataclass(frozen=True, slots=True)
class Companion:
    """Where people label a project's keyframes: in a companion project, or, where its tasks are pictures, in itself."""

    project: str  # the uid of the project of videos, or of pictures
    uid: str  # its own; "" while it is only asked for, or once it was deleted at Label Studio
    label_studio_id: int
    label_config: str
    tabs: dict[str, int] = field(default_factory=dict)
    asked: bool = False

    @property
    def own(self) -> bool:
        """Whether the project is its own companion."""
        return self.uid == self.project

    @property
    def prefix(self) -> str:
        """Of our fields in the tasks' data: those of a person's own tasks may have a "category" already."""
        return wire.OUR_FIELDS if self.own else ""

    @property
    def config(self) -> LabelConfig:
        """The control that people label keyframes by. Raises LabelConfigError."""
        return wire.parse_label_config(self.label_config, "" if self.own else wire.KEYFRAME_CHOICES)


@dataclass(frozen=True, slots=True)
class KeyframeTask:
    """How a keyframe is shown to people: by the task of its leader, of which it is a near-duplicate, or itself."""

    keyframe: int
    leader: int
    image: str
    task: int | None


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One category that one annotation gives to one keyframe."""

    keyframe: int
    category: str
    source: Source
    task: int
    annotation: int
    person: str
    at: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """What we think of a keyframe that nobody has labelled."""

    keyframe: int
    category: str  # "" in conflict
    score: float
    nearest: tuple[int, ...]
    state: Literal["proposed", "unsure", "conflict"]
    run: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a run did to a keyframe."""

    keyframe: int
    before: tuple[str, ...]  # categories proposed
    after: tuple[str, ...]
    score: float = 0.0  # of what was proposed before


@dataclass(frozen=True, slots=True)
class Run:
    id: int
    project: str
    at: float
    undoes: int | None
    labels: int  # keyframes that people had labelled
    changes: tuple[Change, ...]
    advice: str


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    keyframe: int
    category: str
    score: float
    confirmed: bool


class Labels(Part):
    """Verbs on labels, guesses, runs and companions. Each raises StoreError where the database does not answer."""

    # the companion project

    def companion(self, project: str) -> Companion | None:
        with self.read() as connection:
            row = connection.execute(select(companions).where(companions.c.project == project)).one_or_none()
        if row is None:
            return None
        return Companion(row[0], row[1], row[2], row[3], json.loads(row[4]), bool(row[5]))

    def put_companion(self, companion: Companion) -> None:
        values = {
            "uid": companion.uid,
            "label_studio_id": companion.label_studio_id,
            "label_config": companion.label_config,
            "tabs": json.dumps(companion.tabs),
            "asked": int(companion.asked),
        }
        with self.begin() as connection:
            statement = insert(connection, companions).values(project=companion.project, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["project"], set_=values))

    def ask_for_companion(self, project: str) -> None:
        """It is to be made, or kept, whatever the settings say; nothing else of it changes."""
        values = {"project": project, "uid": "", "label_studio_id": 0, "label_config": "", "tabs": "{}", "asked": 1}
        with self.begin() as connection:
            statement = insert(connection, companions).values(values)
            connection.execute(statement.on_conflict_do_update(index_elements=["project"], set_={"asked": 1}))

    def owner(self, uid: str) -> str | None:
        """The video project that a companion belongs to; None for a project that is no companion of another."""
        with self.read() as connection:
            query = select(companions.c.project).where(companions.c.uid == uid, companions.c.project != uid)
            return connection.execute(query).scalar_one_or_none() if uid else None

    def owner_of(self, label_studio_id: int) -> str | None:
        """The same for events that name the project by its id only."""
        with self.read() as connection:
            query = select(companions.c.project).where(
                companions.c.label_studio_id == label_studio_id,
                companions.c.uid != "",
                companions.c.uid != companions.c.project,
            )
            return connection.execute(query.order_by(companions.c.uid.desc()).limit(1)).scalar_one_or_none()

    def lose_companion(self, project: str) -> None:
        """Somebody deleted the companion at Label Studio: its tasks are gone and its labels with them."""
        with self.begin(project) as connection:
            connection.execute(
                update(companions)
                .where(companions.c.project == project)
                .values(uid="", label_studio_id=0, label_config="", tabs="{}", asked=0)
            )
            for table in (keyframe_tasks, shown):
                connection.execute(delete(table).where(table.c.project == project))
            for table in (labels, readings):
                connection.execute(delete(table).where(table.c.project == project, table.c.source == "companion"))

    # its tasks

    def fingerprints(self, project: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(keyframe ids ascending, their fingerprints)."""
        query = (
            select(keyframes.c.id, keyframes.c.fingerprint)
            .join(videos, videos.c.id == keyframes.c.video)
            .where(videos.c.project == project)
            .order_by(keyframes.c.id)
        )
        with self.read() as connection:
            rows = connection.execute(query).all()
        both = np.asarray([tuple(row) for row in rows], np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def keyframe_tasks(self, project: str) -> dict[int, KeyframeTask]:
        c = keyframe_tasks.c
        query = select(c.keyframe, c.leader, c.image, c.task).where(c.project == project).order_by(c.keyframe)
        with self.read() as connection:
            return {row[0]: KeyframeTask(*row) for row in connection.execute(query)}

    def fold(self, project: str, leaders: Mapping[int, int]) -> None:
        """Remember whose near-duplicate each keyframe is; one that joins others has their task at once."""
        if not leaders:
            return
        c = keyframe_tasks.c
        with self.begin(project) as connection:
            known = {
                row[0]: row[1]
                for row in connection.execute(
                    select(c.leader, func.max(c.task)).where(c.project == project).group_by(c.leader)
                )
            }
            statement = insert(connection, keyframe_tasks).on_conflict_do_nothing(index_elements=["keyframe"])
            rows = [
                {**_of(keyframe, project), "leader": leader, "task": known.get(leader)}
                for keyframe, leader in sorted(leaders.items())
            ]
            connection.execute(statement, rows)

    def put_images(self, images: Mapping[int, str]) -> None:
        """Remember the addresses of uploaded pictures, by keyframe."""
        with self.begin() as connection:
            for keyframe, image in images.items():
                connection.execute(
                    update(keyframe_tasks).where(keyframe_tasks.c.keyframe == keyframe).values(image=image)
                )

    def put_tasks(self, project: str, tasks: Mapping[int, int], data: Mapping[int, Json]) -> None:
        """Remember the tasks of leaders, for all their near-duplicates, and what each shows (`data`, by leader)."""
        c = keyframe_tasks.c
        with self.begin(project) as connection:
            for leader, task in tasks.items():
                group = and_(c.project == project, c.leader == leader)
                connection.execute(update(keyframe_tasks).where(group).values(task=task))
            self._put_shown(connection, project, {task: data[leader] for leader, task in tasks.items()})

    def shown(self, project: str) -> dict[int, Json]:
        """What each task of the companion shows."""
        with self.read() as connection:
            query = select(shown.c.task, shown.c.data).where(shown.c.project == project)
            return {task: json.loads(data) for task, data in connection.execute(query)}

    def put_shown(self, project: str, data: Mapping[int, Json]) -> None:
        with self.begin() as connection:
            self._put_shown(connection, project, data)

    def put_sent(self, connection: Connection, sent: Collection[int], gone: Collection[int] = ()) -> None:
        """Predictions that went out many at once, by video: Label Studio has these, and has those no more."""
        for some in portions(sorted(sent)):
            chosen = predictions.c.video.in_(some)
            connection.execute(update(predictions).where(chosen).values(delivered=predictions.c.digest))
            subjects = [str(video) for video in some]
            connection.execute(delete(work).where(work.c.kind == "deliver", work.c.subject.in_(subjects)))
        for some in portions(sorted(gone)):
            connection.execute(delete(predictions).where(predictions.c.video.in_(some)))

    # people's words

    def readings(self, project: str, source: Source) -> dict[int, str]:
        """Up to where each task's annotations were read."""
        c = readings.c
        with self.read() as connection:
            rows = connection.execute(select(c.task, c.stamp).where(c.project == project, c.source == source))
            return {row.task: row.stamp for row in rows}

    def put_labels(
        self, project: str, source: Source, stamps: Mapping[int, str | None], rows: Sequence[LabelRow]
    ) -> None:
        """What was read of some tasks takes the place of what was known of them.

        `stamps`: by task, None for one that is gone or has no annotation any more; `rows`: the tasks' labels.
        Reading twice, or in any order, comes to the same.
        """
        tasks = sorted(stamps)
        with self.begin(project) as connection:
            alive = set(connection.execute(select(videos.c.id).where(videos.c.project == project)).scalars())
            for some in portions(tasks):
                for table in (labels, readings):
                    connection.execute(
                        delete(table).where(
                            table.c.project == project, table.c.source == source, table.c.task.in_(some)
                        )
                    )
            read = [
                {"project": project, "source": source, "task": task, "stamp": stamp}
                for task, stamp in stamps.items()
                if stamp is not None
            ]
            if read:
                connection.execute(insert(connection, readings), read)
            new = [
                {
                    **_of(row.keyframe, project),
                    "source": row.source,
                    "annotation": row.annotation,
                    "category": row.category,
                    "task": row.task,
                    "person": row.person,
                    "at": row.at,
                }
                for row in rows
                if split_keyframe_id(row.keyframe)[0] in alive
            ]
            if new:
                statement = insert(connection, labels)
                key = ["keyframe", "source", "annotation", "category"]
                connection.execute(statement.on_conflict_do_nothing(index_elements=key), new)

    def labels(self, project: str) -> list[LabelRow]:
        """In the order in which people gave them."""
        c = labels.c
        query = select(c.keyframe, c.category, c.source, c.task, c.annotation, c.person, c.at)
        with self.read() as connection:
            rows = connection.execute(query.where(c.project == project).order_by(c.at, c.annotation, c.keyframe))
            return [LabelRow(*row) for row in rows]

    # guesses and runs

    def proposals(self, project: str, state: str | None = None) -> list[Proposal]:
        """What the last run says, the surest first; of one state, or of all."""
        c = propagated.c
        query = select(c.keyframe, c.category, c.score, c.nearest, c.state, c.run).where(c.project == project)
        if state is not None:
            query = query.where(c.state == state)
        with self.read() as connection:
            rows = connection.execute(query.order_by(c.score.desc(), c.keyframe)).all()
        return [Proposal(row[0], row[1], row[2], tuple(json.loads(row[3])), row[4], row[5]) for row in rows]

    def outcomes(self, project: str) -> list[StoredOutcome]:
        c = outcomes.c
        query = select(c.keyframe, c.category, c.score, c.confirmed).where(c.project == project)
        with self.read() as connection:
            return [StoredOutcome(row[0], row[1], row[2], bool(row[3])) for row in connection.execute(query)]

    def brought_back(self, project: str) -> list[Proposal]:
        """What is proposed because a person has undone what had withdrawn it."""
        undoing = select(runs.c.id).where(runs.c.project == project, runs.c.undoes.is_not(None))
        with self.read() as connection:
            found = set(connection.execute(undoing).scalars())
        return [p for p in self.proposals(project, "proposed") if p.run in found] if found else []

    def withdrawn(self, project: str) -> set[tuple[int, str]]:
        """(keyframe, category) that a person has undone."""
        with self.read() as connection:
            return self._withdrawn(connection, project)

    def put_run(
        self,
        connection: Connection,
        project: str,
        proposals: Sequence[Proposal],
        said: Mapping[int, Collection[str]],
        *,
        undoes: int | None = None,
    ) -> Run | None:
        """Replace a project's guesses; the run, None if nothing that people see has changed.

        `said`: by keyframe, the categories that people gave. A guess that a person has answered is kept as an outcome;
        one that a person has undone since it was made is left out.
        """
        never = self._withdrawn(connection, project)
        proposals = [p for p in proposals if p.state != "proposed" or (p.keyframe, p.category) not in never]
        c = propagated.c
        query = select(c.keyframe, c.category, c.score, c.run, c.state).where(c.project == project)
        before = {(row[0], row[1]): row for row in connection.execute(query)}
        old = _proposed((row[0], row[1], row[4]) for row in before.values())
        new = _proposed((p.keyframe, p.category, p.state) for p in proposals)
        changes = tuple(
            Change(
                keyframe,
                had := old.get(keyframe, ()),
                new.get(keyframe, ()),
                before[keyframe, had[0]][2] if had else 0.0,
            )
            for keyframe in sorted(old.keys() | new.keys())
            if old.get(keyframe, ()) != new.get(keyframe, ()) and keyframe not in said
        )
        run = None
        if changes:
            now = time.time()
            row = {
                "project": project,
                "at": now,
                "undoes": undoes,
                "labels": len(said),
                "changes": json.dumps([[c.keyframe, c.before, c.after, c.score] for c in changes]),
            }
            run_id = connection.execute(insert(connection, runs).values(row).returning(runs.c.id)).scalar_one()
            run = Run(run_id, project, now, undoes, len(said), changes, "")
        if undoes is None:
            self._forget_outcomes(connection, project, said)
        self._keep_outcomes(connection, project, before.values(), said)
        kept: set[tuple[int, str]] = set()
        rows = []
        for p in proposals:
            known = before.get((p.keyframe, p.category))
            same = known and known[4] == p.state and (p.state != "proposed" or abs(known[2] - p.score) < _SAME_SCORE)
            if same:
                kept.add((p.keyframe, p.category))  # as it was, so that nothing is delivered for nothing
                continue
            this = run.id if run else 0
            rows.append(
                {
                    **_of(p.keyframe, project),
                    "category": p.category,
                    "score": p.score,
                    "nearest": json.dumps(p.nearest),
                    "state": p.state,
                    "run": known[3] if known and known[4] == p.state else this,  # the one that first made it
                }
            )
        gone = [{"k": keyframe, "c": category} for keyframe, category in before.keys() - kept]
        if gone:
            # by key, many at a time
            connection.execute(
                delete(propagated).where(c.keyframe == bindparam("k"), c.category == bindparam("c")), gone
            )
        if rows:
            connection.execute(insert(connection, propagated), rows)
        return run

    def put_advice(self, project: str, text: str) -> None:
        """The planner's sentence goes with the last run."""
        with self.begin() as connection:
            last = select(func.max(runs.c.id)).where(runs.c.project == project).scalar_subquery()
            connection.execute(update(runs).where(runs.c.id == last).values(advice=text))

    def withdraw(self, connection: Connection, project: str, pairs: Collection[tuple[int, str]]) -> None:
        """Do not propose these (keyframe, category) any more."""
        rows = [{**_of(keyframe, project), "category": category} for keyframe, category in sorted(pairs)]
        if rows:
            statement = insert(connection, withdrawn)
            connection.execute(statement.on_conflict_do_nothing(index_elements=["keyframe", "category"]), rows)

    def allow(self, connection: Connection, pairs: Collection[tuple[int, str]]) -> None:
        """Propose these (keyframe, category) again."""
        c = withdrawn.c
        for keyframe, category in pairs:
            connection.execute(delete(withdrawn).where(c.keyframe == keyframe, c.category == category))

    def runs(self, project: str, limit: int = 20) -> list[Run]:
        """The last ones, the newest first."""
        return self._runs(runs.c.project == project, limit)

    def runs_after(self, old: Run, until: Run | None = None) -> list[Run]:
        """Those after `old`, up to and with `until` (None: the last), the oldest first."""
        c = runs.c
        last = c.id <= until.id if until else true()
        return self._runs(and_(c.project == old.project, c.id > old.id, last), None)[::-1]

    def run(self, run_id: int) -> Run | None:
        found = self._runs(runs.c.id == run_id, 1)
        return found[0] if found else None

    # steps

    def _runs(self, condition: Any, limit: int | None) -> list[Run]:
        c = runs.c
        query = select(c.id, c.project, c.at, c.undoes, c.labels, c.changes, c.advice).where(condition)
        with self.read() as connection:
            rows = connection.execute(query.order_by(c.id.desc()).limit(limit)).all()
        return [
            Run(*row[:5], tuple(Change(k, tuple(a), tuple(b), score) for k, a, b, score in json.loads(row[5])), row[6])
            for row in rows
        ]

    @staticmethod
    def _withdrawn(connection: Connection, project: str) -> set[tuple[int, str]]:
        query = select(withdrawn.c.keyframe, withdrawn.c.category).where(withdrawn.c.project == project)
        return {(keyframe, category) for keyframe, category in connection.execute(query)}

    @staticmethod
    def _put_shown(connection: Connection, project: str, data: Mapping[int, Json]) -> None:
        if not data:
            return
        statement = insert(connection, shown)
        statement = statement.on_conflict_do_update(
            index_elements=["project", "task"], set_={"data": statement.excluded.data}
        )
        rows = [{"project": project, "task": task, "data": json.dumps(values)} for task, values in data.items()]
        connection.execute(statement, rows)

    @staticmethod
    def _forget_outcomes(connection: Connection, project: str, said: Mapping[int, Collection[str]]) -> None:
        """An answer that was taken back, or is another by now, says nothing of our guesses any more."""
        c = outcomes.c
        query = select(c.keyframe, c.category, c.confirmed).where(c.project == project)
        for keyframe, category, confirmed in connection.execute(query).all():
            if keyframe not in said or confirmed != (category in said[keyframe]):
                connection.execute(delete(outcomes).where(c.keyframe == keyframe, c.category == category))

    @staticmethod
    def _keep_outcomes(
        connection: Connection, project: str, before: Collection[Any], said: Mapping[int, Collection[str]]
    ) -> None:
        rows = [
            {
                **_of(keyframe, project),
                "category": category,
                "score": score,
                "confirmed": int(category in said[keyframe]),
            }
            for keyframe, category, score, _run, state in before
            if state == "proposed" and keyframe in said
        ]
        if rows:
            statement = insert(connection, outcomes)
            statement = statement.on_conflict_do_update(
                index_elements=["keyframe", "category"],
                set_={"score": statement.excluded.score, "confirmed": statement.excluded.confirmed},
            )
            connection.execute(statement, rows)


def _of(keyframe: int, project: str) -> dict[str, Any]:
    return {"keyframe": keyframe, "project": project, "video": split_keyframe_id(keyframe)[0]}


def _proposed(rows: Iterator[tuple[int, str, str]] | Any) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for keyframe, category, state in rows:
        if state == "proposed":
            found[keyframe] = tuple(sorted((*found.get(keyframe, ()), category)))
    return found
