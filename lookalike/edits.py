"""What people do to clusters, labels and proposals, kept so that it can be undone and survives a new clustering.

An edit names keyframes, never a cluster's number alone: when all is clustered afresh, the cluster that an edit is
about is the one that most of its keyframes are in. `Store.clustering` gives the clustering with the edits applied.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, delete, exists, func, literal, select, update

from lookalike.grouping import unit
from lookalike.labels import KeyframeTask, Source
from lookalike.ledger import Part, insert, portions
from lookalike.records import Clustering, Json, split_keyframe_id
from lookalike.schema import (
    edit_keyframes,
    edits,
    keyframe_tasks,
    labels,
    propagated,
    readings,
    touched,
    videos,
    withdrawn,
    written,
)

Ids = NDArray[np.int64]  # (n,) keyframe ids
Kind = Literal["name", "junk", "keep", "exclude", "split", "merge", "group", "label", "reject", "propose"]
#: kinds that change the clustering
ON_CLUSTERS: tuple[Kind, ...] = ("name", "junk", "keep", "exclude", "split", "merge")

#: a cluster is known again by this many of its keyframes, the most similar ones
_KNOWN_BY = 100
#: of what was split off, the share of a cluster from which all of that cluster goes with it
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing that a person did."""

    id: int
    kind: Kind
    text: str  # the name of a cluster, the category of labels, or the number of groups: "" for as many as proposed
    number: int | None  # of the cluster that a split made
    person: str
    at: float
    undone: bool = False
    chosen: Ids = field(default_factory=lambda: np.zeros(0, np.int64))  # the keyframes that it was done to
    similarity: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))  # of the chosen
    cluster: Ids = field(default_factory=lambda: np.zeros(0, np.int64))  # by these the cluster is known again
    other: Ids = field(default_factory=lambda: np.zeros(0, np.int64))  # … and the one that was merged into it


@dataclass(frozen=True, slots=True)
class Written:
    """An annotation that was written at Label Studio in a person's name."""

    edit: int
    annotation: int
    keyframe: int
    task: int
    before: list[Json] | None  # its result before; None: there was no annotation
    after: list[Json]


@dataclass(frozen=True, slots=True)
class Counts:
    """A category in numbers of keyframes."""

    labelled: int = 0
    proposed: int = 0
    unsure: int = 0


# --- the clustering with edits ---


def apply(fitted: Clustering, made: Sequence[Edit]) -> Clustering:
    """The clustering as people want it. `fitted`: keyframe ids ascending; `made`: in the order of the making.

    A keyframe that was excluded is in no cluster (-1). A cluster that was split off keeps its number and its keyframes
    whatever happens to the others; an edit whose cluster has gone does nothing.
    """
    if not made:
        return fitted
    ids, numbers, similarity = fitted.keyframe_ids, fitted.clusters.copy(), fitted.similarity.copy()
    names: dict[int, str] = {}
    junk: set[int] = set()
    count = max(len(fitted.centroids), reserved(made))
    for edit in made:
        home = _home(ids, numbers, edit.cluster)
        if edit.kind == "split" and edit.number is not None:
            rows, known = _rows(ids, edit.chosen)
            mine = _home(ids, numbers, edit.chosen)
            whole = numbers == mine
            if None not in (mine, home) and mine != home and whole[rows].sum() >= _MOSTLY * whole.sum():
                numbers[whole] = edit.number  # the fit itself has set them apart by now
            numbers[rows] = edit.number
            similarity[rows] = edit.similarity[known]
        if home is None:
            continue
        if edit.kind == "name" and edit.text:
            names[home] = edit.text
        elif edit.kind == "name":
            names.pop(home, None)
        elif edit.kind == "junk":
            junk.add(home)
        elif edit.kind == "keep":
            junk.discard(home)
        elif edit.kind == "exclude":
            rows, _ = _rows(ids, edit.chosen)
            numbers[rows[numbers[rows] == home]] = -1
        elif edit.kind == "merge":
            other = _home(ids, numbers, edit.other)
            if other is not None and other != home:
                numbers[numbers == other] = home
                junk.discard(other)
                name = names.pop(other, "")
                names.setdefault(home, name)
    centroids = np.full(count, -1, np.int64)
    centroids[: len(fitted.centroids)] = fitted.centroids
    alive = set(np.unique(numbers).tolist()) - {-1}
    return Clustering(
        ids,
        numbers,
        _centroids(ids, numbers, centroids, similarity),
        similarity,
        {number: name for number, name in names.items() if name and number in alive},
        frozenset(junk & alive),
    )


def reserved(made: Iterable[Edit]) -> int:
    """Numbers below this may be those of clusters that people split off; a fit gives new ones from here on only."""
    return max((edit.number + 1 for edit in made if edit.number is not None), default=0)


def reserve(fitted: Clustering, count: int) -> Clustering:
    """The clustering with room for this many numbers, so that no later fit uses those of splits for something else."""
    missing = count - len(fitted.centroids)
    if missing <= 0:
        return fitted
    return replace(fitted, centroids=np.concatenate([fitted.centroids, np.full(missing, -1, np.int64)]))


def unedited(fitted: Clustering, extended: Clustering) -> Clustering:
    """What an edited clustering was extended to, without the edits: keyframes that were fitted are where they were,
    new ones where they have joined, be it a cluster that a split made. Both have the fitted ones first, in one order.
    """
    numbers = extended.clusters.copy()
    numbers[: len(fitted.clusters)] = fitted.clusters
    ids = extended.keyframe_ids
    order = np.argsort(ids)
    centroids = _centroids(ids[order], numbers[order], extended.centroids, extended.similarity[order])
    return replace(extended, clusters=numbers, centroids=centroids)


def known_by(grouped: Clustering, number: int, without: Collection[int] = ()) -> list[int]:
    """The keyframes by which a cluster is known again: its most similar members."""
    rows = np.flatnonzero(grouped.clusters == number)
    if len(without):
        rows = rows[~np.isin(grouped.keyframe_ids[rows], np.fromiter(without, np.int64))]
    order = np.lexsort((grouped.keyframe_ids[rows], -grouped.similarity[rows]))
    return [int(i) for i in grouped.keyframe_ids[rows[order[:_KNOWN_BY]]]]


def halves(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n, d) -> (n,): the smaller of the two parts that 2-means finds among directions, starting along the main axis.

    One part is empty where all are equal.
    """
    points = unit(vectors)
    points = points - points.mean(0)
    axis = points[np.argmax((points**2).sum(1))]
    for _ in range(20):  # power iteration
        axis = points.T @ (points @ axis)
        axis = axis / max(1e-12, float(np.linalg.norm(axis)))
    side = points @ axis > 0
    for _ in range(20):
        if not 0 < side.sum() < len(side):
            break
        one, other = points[side].mean(0), points[~side].mean(0)
        before = side
        side = points @ (one - other) > (one @ one - other @ other) / 2
        if np.array_equal(before, side):
            break
    return np.asarray(side if 2 * side.sum() <= len(side) else ~side)


def purity(counts: Mapping[str, int]) -> float:
    """The share of the most frequent category among labelled keyframes, 0..1; 0 where there are none."""
    return max(counts.values(), default=0) / (sum(counts.values()) or 1)


# --- the edits of a ledger ---


class Edits(Part):
    """Verbs on what people did. Each raises StoreError where the database does not answer."""

    def add(
        self,
        project: str,
        kind: Kind,
        person: str,
        *,
        text: str = "",
        number: int | None = None,
        chosen: Mapping[int, float] | Sequence[int] = (),
        cluster: Sequence[int] = (),
        other: Sequence[int] = (),
        at: float | None = None,
    ) -> int:
        """Keep an edit; its id. `chosen`: keyframes, for a split with the similarity to their middle; `at`: now, unless
        it belongs to another, see `together`."""
        now = time.time() if at is None else at
        values = {"project": project, "kind": kind, "text": text, "number": number, "person": person}
        similarity = chosen if isinstance(chosen, Mapping) else {}
        with self.begin() as connection:
            row = insert(connection, edits).values(**values, at=now, changed_at=now, undone=0)
            made: int = connection.execute(row.returning(edits.c.id)).scalar_one()
            rows = [
                {"edit": made, "role": role, "keyframe": keyframe, "similarity": similarity.get(keyframe, 0.0)}
                for role, ids in (("chosen", chosen), ("cluster", cluster), ("other", other))
                for keyframe in dict.fromkeys(ids)
            ]
            if rows:
                connection.execute(insert(connection, edit_keyframes), rows)
        return made

    def on_clusters(self, project: str) -> list[Edit]:
        """Those that hold, in the order in which they were made, with their keyframes; for `apply`."""
        chosen = and_(edits.c.project == project, edits.c.kind.in_(ON_CLUSTERS), edits.c.undone == 0)
        with self.read() as connection:
            made = [_edit(row) for row in connection.execute(_query().where(chosen).order_by(edits.c.id))]
            return [self._with_keyframes(connection, edit) for edit in made] if made else []

    def grouping(self, project: str) -> Edit | None:
        """Who chose last how many groups there are; None where nobody did, or chose what would be without them."""
        chosen = and_(edits.c.project == project, edits.c.kind == "group", edits.c.undone == 0)
        with self.read() as connection:
            row = connection.execute(_query().where(chosen).order_by(edits.c.id.desc()).limit(1)).one_or_none()
        return _edit(row) if row and row.text else None

    def numbers(self, project: str) -> int:
        """As `reserved`, over undone splits too: they may be made again."""
        with self.read() as connection:
            found = connection.execute(select(func.max(edits.c.number)).where(edits.c.project == project)).scalar()
        return 0 if found is None else int(found) + 1

    def undone_splits(self, project: str) -> list[int]:
        """Numbers that a split gave which does not hold any more."""
        chosen = and_(edits.c.project == project, edits.c.kind == "split", edits.c.undone == 1)
        with self.read() as connection:
            return list(connection.execute(select(edits.c.number).where(chosen)).scalars())

    def edit(self, project: str, edit_id: int) -> Edit | None:
        """One of a project's edits, with its keyframes."""
        with self.read() as connection:
            row = connection.execute(_query().where(edits.c.project == project, edits.c.id == edit_id)).one_or_none()
            return self._with_keyframes(connection, _edit(row)) if row else None

    def last(self, project: str, person: str = "", limit: int = 20) -> list[Edit]:
        """The last ones, of one person or of all, undone ones too, the newest first, without their keyframes."""
        chosen = edits.c.project == project
        if person:
            chosen = and_(chosen, edits.c.person == person)
        with self.read() as connection:
            rows = connection.execute(_query().where(chosen).order_by(edits.c.id.desc()).limit(limit))
            return [_edit(row) for row in rows]

    def to_undo(self, project: str, person: str) -> Edit | None:
        """The last one of a person that still holds, with its keyframes."""
        chosen = and_(edits.c.project == project, edits.c.person == person, edits.c.undone == 0)
        with self.read() as connection:
            row = connection.execute(_query().where(chosen).order_by(edits.c.id.desc()).limit(1)).one_or_none()
            return self._with_keyframes(connection, _edit(row)) if row else None

    def together(self, project: str, edit: Edit) -> list[Edit]:
        """What a person did at once: all edits of that kind and that very time that still hold, with keyframes."""
        c = edits.c
        same = and_(c.project == project, c.person == edit.person, c.kind == edit.kind, c.at == edit.at, c.undone == 0)
        with self.read() as connection:
            made = [_edit(row) for row in connection.execute(_query().where(same).order_by(c.id))]
            return [self._with_keyframes(connection, one) for one in made]

    def put_undone(self, edit_id: int, undone: bool = True, connection: Connection | None = None) -> None:
        if connection is None:
            with self.begin() as connection:
                return self.put_undone(edit_id, undone, connection)
        values = {"undone": int(undone), "changed_at": time.time()}
        connection.execute(update(edits).where(edits.c.id == edit_id).values(values))

    def stamp(self, project: str) -> str:
        """Changes whenever something is done, undone or done again."""
        query = select(func.max(edits.c.id), func.max(edits.c.changed_at)).where(edits.c.project == project)
        with self.read() as connection:
            return " ".join(map(str, connection.execute(query).one()))

    # what a page shows of keyframes

    def tasks(self, project: str, keyframes: Sequence[int]) -> dict[int, KeyframeTask]:
        """How some keyframes of a project are shown at Label Studio, by keyframe."""
        c = keyframe_tasks.c
        query = select(c.keyframe, c.leader, c.image, c.task).where(c.project == project)
        with self.read() as connection:
            return {
                row[0]: KeyframeTask(*row)
                for some in portions(keyframes)
                for row in connection.execute(query.where(c.keyframe.in_(some)))
            }

    def addresses(self, keyframes: Iterable[int]) -> dict[int, str]:
        """The addresses of the videos, or pictures, that keyframes are of, by keyframe."""
        mine = {keyframe: split_keyframe_id(keyframe)[0] for keyframe in keyframes}
        with self.read() as connection:
            found = {
                row.id: row.url
                for some in portions(sorted(set(mine.values())))
                for row in connection.execute(select(videos.c.id, videos.c.url).where(videos.c.id.in_(some)))
            }
        return {keyframe: found[video] for keyframe, video in mine.items() if video in found}

    def vouched(self, project: str) -> dict[int, str]:
        """What people have proposed themselves, the last word of each keyframe: category by keyframe."""
        c = edit_keyframes.c
        query = select(c.keyframe, edits.c.text).join(edits, edits.c.id == c.edit)
        chosen = and_(edits.c.project == project, edits.c.kind == "propose", edits.c.undone == 0)
        with self.read() as connection:
            rows = connection.execute(query.where(chosen).order_by(edits.c.id))
            return {row.keyframe: row.text for row in rows}

    def proposed(self, project: str) -> list[tuple[int, str]]:
        """(keyframe, category) of all that is proposed."""
        c = propagated.c
        query = select(c.keyframe, c.category).where(c.project == project, c.state == "proposed")
        with self.read() as connection:
            return [(row.keyframe, row.category) for row in connection.execute(query)]

    def counts(self, project: str) -> dict[str, Counts]:
        """By category that people have used or that is proposed."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        p = propagated.c
        said = select(labels.c.category, literal("labelled"), func.count(labels.c.keyframe.distinct()))
        guessed = select(p.category, p.state, func.count()).where(p.project == project, p.state != "conflict")
        with self.read() as connection:
            for query in (
                said.where(labels.c.project == project).group_by(labels.c.category),
                guessed.where(~_is_withdrawn()).group_by(p.category, p.state),
            ):
                for category, what, number in connection.execute(query):
                    found[category][what] = number
        return {category: Counts(**numbers) for category, numbers in found.items()}

    def guessed(self, project: str, category: str, *, surest: bool, first: int, count: int) -> list[int]:
        """Some of the keyframes that may show a category, surest or least sure first; none that was rejected."""
        c = propagated.c
        chosen = and_(c.project == project, c.category == category, c.state.in_(("proposed", "unsure")))
        order = c.score.desc() if surest else c.score
        query = select(c.keyframe).where(chosen, ~_is_withdrawn()).order_by(order, c.keyframe)
        with self.read() as connection:
            return list(connection.execute(query.offset(first).limit(count)).scalars())

    def labelled(self, project: str, category: str, *, first: int, count: int) -> list[int]:
        """Some of the keyframes that people gave a category, the last first, one of near-duplicates."""
        c, t = labels.c, keyframe_tasks.c
        query = select(c.keyframe).outerjoin(keyframe_tasks, t.keyframe == c.keyframe)
        query = query.where(
            c.project == project, c.category == category, func.coalesce(t.leader, c.keyframe) == c.keyframe
        )
        query = query.group_by(c.keyframe).order_by(func.max(c.at).desc(), c.keyframe)
        with self.read() as connection:
            return list(connection.execute(query.offset(first).limit(count)).scalars())

    def rejected(self, project: str, category: str, keyframes: Sequence[int]) -> set[int]:
        """Those of some keyframes that a person has said not to show a category."""
        c = withdrawn.c
        query = select(c.keyframe).where(c.project == project, c.category == category)
        with self.read() as connection:
            return {
                keyframe
                for some in portions(keyframes)
                for keyframe in connection.execute(query.where(c.keyframe.in_(some))).scalars()
            }

    def proposals_of(self, project: str, keyframes: Sequence[int]) -> list[tuple[int, str]]:
        """(keyframe, category) of what is guessed of these keyframes, or of those whose near-duplicates they are."""
        c = propagated.c
        query = select(c.keyframe, c.category).where(c.project == project, c.category != "")
        leaders = {row.leader for row in self.tasks(project, keyframes).values()} | set(keyframes)
        with self.read() as connection:
            return [
                (row.keyframe, row.category)
                for some in portions(sorted(leaders))
                for row in connection.execute(query.where(c.keyframe.in_(some)))
            ]

    # annotations that were written

    def put_written(self, project: str, source: Source, rows: Sequence[Written]) -> None:
        """Remember annotations that were written, and have their tasks read."""
        with self.begin() as connection:
            if rows:
                statement = insert(connection, written)
                values = [
                    {
                        "edit": row.edit,
                        "annotation": row.annotation,
                        "keyframe": row.keyframe,
                        "task": row.task,
                        "before": None if row.before is None else json.dumps(row.before),
                        "after": json.dumps(row.after),
                    }
                    for row in rows
                ]
                # written twice within one edit: what stood there before stays what it was
                statement = statement.on_conflict_do_update(
                    index_elements=["edit", "annotation"], set_={"after": statement.excluded.after}
                )
                connection.execute(statement, values)
            self._touch(connection, project, source, {row.task for row in rows})

    def written(self, edit_id: int, limit: int = 1_000_000) -> list[Written]:
        """What of an edit stands at Label Studio, the last first."""
        c = written.c
        query = select(c.edit, c.annotation, c.keyframe, c.task, c.before, c.after).where(c.edit == edit_id)
        with self.read() as connection:
            rows = connection.execute(query.order_by(c.annotation.desc()).limit(limit)).all()
        return [Written(*row[:4], json.loads(row[4]) if row[4] else None, json.loads(row[5])) for row in rows]

    def forget_written(self, project: str, source: Source, rows: Sequence[Written]) -> None:
        """They were taken back."""
        with self.begin() as connection:
            for edit in {row.edit for row in rows}:
                for some in portions([row.annotation for row in rows if row.edit == edit]):
                    connection.execute(delete(written).where(written.c.edit == edit, written.c.annotation.in_(some)))
            self._touch(connection, project, source, {row.task for row in rows})

    def touched(self, project: str, source: Source) -> dict[int, float]:
        """Tasks to be read whatever Label Studio says of their last change, and since when."""
        c = touched.c
        with self.read() as connection:
            rows = connection.execute(select(c.task, c.at).where(c.project == project, c.source == source))
            return {row.task: row.at for row in rows}

    def put_read(self, project: str, source: Source, tasks: Mapping[int, float]) -> None:
        """They were read as of these times; what was touched since stays."""
        c = touched.c
        with self.begin() as connection:
            for task, at in tasks.items():
                chosen = and_(c.project == project, c.source == source, c.task == task, c.at <= at)
                connection.execute(delete(touched).where(chosen))

    @staticmethod
    def _touch(connection: Connection, project: str, source: Source, tasks: Collection[int]) -> None:
        if not tasks:
            return
        for some in portions(sorted(tasks)):
            c = readings.c
            chosen = and_(c.project == project, c.source == source, c.task.in_(some))
            connection.execute(update(readings).where(chosen).values(stamp=""))  # kept: it tells that labels are known
        now = time.time()
        statement = insert(connection, touched)
        statement = statement.on_conflict_do_update(index_elements=["project", "source", "task"], set_={"at": now})
        connection.execute(
            statement, [{"project": project, "source": source, "task": task, "at": now} for task in sorted(tasks)]
        )

    @staticmethod
    def _with_keyframes(connection: Connection, edit: Edit) -> Edit:
        c = edit_keyframes.c
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        query = select(c.role, c.keyframe, c.similarity).where(c.edit == edit.id).order_by(c.keyframe)
        for role, keyframe, similarity in connection.execute(query):
            found[role].append((keyframe, similarity))
        ids = {role: np.asarray([k for k, _ in rows], np.int64) for role, rows in found.items()}
        similarity = np.asarray([s for _, s in found.get("chosen", ())], np.float32)
        return replace(edit, similarity=similarity, **ids)  # type: ignore[arg-type]


def _query() -> Any:
    c = edits.c
    return select(c.id, c.kind, c.text, c.number, c.person, c.at, c.undone)


def _is_withdrawn() -> Any:
    of_row = and_(withdrawn.c.keyframe == propagated.c.keyframe, withdrawn.c.category == propagated.c.category)
    return exists().where(of_row)


def _edit(row: Any) -> Edit:
    return Edit(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6]))


def _rows(ids: Ids, wanted: Ids) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(rows of those wanted that there are, which of those wanted there are). `ids` ascend."""
    if not len(ids):
        return np.zeros(0, np.int64), np.zeros(len(wanted), bool)
    at = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
    known = ids[at] == wanted
    return at[known], known


def _home(ids: Ids, numbers: NDArray[np.int64], wanted: Ids) -> int | None:
    """The cluster that most of some keyframes are in; None where they are in none."""
    rows, _ = _rows(ids, wanted)
    found = numbers[rows]
    found = found[found >= 0]
    return int(np.bincount(found).argmax()) if len(found) else None


def _centroids(ids: Ids, numbers: Ids, centroids: Ids, similarity: NDArray[np.float32]) -> Ids:
    """The centroids, and for clusters that have lost theirs the most similar member; -1 where there are no members."""
    rows, known = _rows(ids, centroids)
    own = np.zeros(len(centroids), bool)
    own[known] = numbers[rows] == np.flatnonzero(known)
    order = np.lexsort((-ids, similarity))  # the last written wins: the most similar, of equal ones the smallest id
    order = order[numbers[order] >= 0]
    best = np.full(len(centroids), -1, np.int64)
    best[numbers[order]] = ids[order]
    return np.where(own, centroids, best)
