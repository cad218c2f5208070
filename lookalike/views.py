"""What the pages read: queries that give no more than a page shows. `Store.…` and `Labels.…` have the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import BindParameter, Connection, Engine, and_, bindparam, func, select

from lookalike.errors import LabelConfigError
from lookalike.labels import LabelRow
from lookalike.ledger import Part, portions
from lookalike.records import Clustering, cluster_name
from lookalike.said import Said, categories_of, settle
from lookalike.schema import keyframe_tasks, keyframes, labels, outcomes, projects, propagated, runs, videos, work
from lookalike.store import Project
from lookalike.wire import parse_label_config, video_name

State = Literal["labelled", "disputed", "proposed", "unsure", "conflict", "open"]


@dataclass(frozen=True, slots=True)
class Summary:
    """A project in numbers."""

    videos: int = 0
    keyframes: int = 0
    labelled: int = 0  # keyframes with a person's word
    failed: int = 0  # videos


@dataclass(frozen=True, slots=True)
class Tile:
    """A keyframe as pages show it."""

    id: int
    label_studio_id: int  # of the project
    video_id: int
    video: str  # as people call it
    task: int  # the video's
    time_s: float
    version: str  # of its picture: another one, another picture
    cluster: int  # -1: like nothing else
    cluster_name: str  # c0007, or as people call it
    similarity: float  # cosine to the middle of its cluster
    state: State
    category: str = ""  # what people said, or we guess; several are joined by ", "
    score: float | None = None  # the guess's probability
    said: Said | None = None
    nearest: tuple[int, ...] = ()  # the labelled keyframes that gave the guess, nearest first
    run: int = 0  # that first made the guess


@dataclass(frozen=True, slots=True)
class Sight:
    """What is needed to show a keyframe's picture."""

    project: str  # uid
    label_studio_id: int
    version: str
    image: str  # its address at Label Studio, or that of its near-duplicate; "" if it was never uploaded


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far people's words and what follows from them reach, in keyframes, near-duplicates included."""

    keyframes: int
    labelled: int  # … by people
    proposed: int  # expected to be right as often as promised
    looked_at: int  # proposals that people have answered
    confirmed: int  # … of these, with yes

    @property
    def share(self) -> float:
        return (self.labelled + self.proposed) / self.keyframes if self.keyframes else 0.0


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a list."""

    id: int
    at: float
    undoes: int | None
    labels: int
    advice: str
    proposed: int  # keyframes that got a proposal
    withdrawn: int  # keyframes that lost theirs


class Views(Part):
    """Verbs that only read. Each raises StoreError where the database does not answer."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._changes: dict[int, tuple[int, int]] = {}  # (proposed, withdrawn) by run: runs never change

    def summaries(self, uids: Sequence[str]) -> dict[str, Summary]:
        """By project uid; some tens of them."""
        p = videos.c.project
        queries = {
            "videos": select(p, func.count()).where(p.in_(uids)).group_by(p),
            "keyframes": select(p, func.count())
            .join(keyframes, keyframes.c.video == videos.c.id)
            .where(p.in_(uids))
            .group_by(p),
            "labelled": select(labels.c.project, func.count(labels.c.keyframe.distinct()))
            .where(labels.c.project.in_(uids))
            .group_by(labels.c.project),
            "failed": select(work.c.project, func.count())
            .where(and_(work.c.project.in_(uids), work.c.kind.in_(("video", "deliver")), work.c.state == "failed"))
            .group_by(work.c.project),
        }
        numbers: dict[str, dict[str, int]] = {uid: {} for uid in uids}
        with self.read() as connection:
            for name, query in queries.items():
                for uid, number in connection.execute(query):
                    numbers[uid][name] = number
        return {uid: Summary(**found) for uid, found in numbers.items()}

    def coverage(self, uid: str) -> Coverage:
        """50 ms for 50,000 keyframes."""
        t, of = keyframe_tasks.c, keyframe_tasks.alias("of")
        said = select(of.c.leader).join(labels, labels.c.keyframe == of.c.keyframe).where(labels.c.project == uid)
        proposed = select(propagated.c.keyframe).where(propagated.c.project == uid, propagated.c.state == "proposed")
        mine = select(func.count()).where(t.project == uid)
        by_answer = select(outcomes.c.confirmed, func.count()).where(outcomes.c.project == uid)
        every = select(func.count()).join_from(keyframes, videos, videos.c.id == keyframes.c.video)
        with self.read() as connection:
            answers = {row[0]: row[1] for row in connection.execute(by_answer.group_by(outcomes.c.confirmed))}
            return Coverage(
                connection.execute(every.where(videos.c.project == uid)).scalar_one(),
                connection.execute(mine.where(t.leader.in_(said))).scalar_one(),
                connection.execute(mine.where(t.leader.in_(proposed), t.leader.not_in(said))).scalar_one(),
                sum(answers.values()),
                answers.get(1, 0),
            )

    def runs(self, uid: str, limit: int) -> list[RunRow]:
        """The last ones, the newest first; what they changed is counted once and remembered."""
        c = runs.c
        query = select(c.id, c.at, c.undoes, c.labels, c.advice).where(c.project == uid)
        with self.read() as connection:
            rows = connection.execute(query.order_by(c.id.desc()).limit(limit)).all()
            new = [row[0] for row in rows if row[0] not in self._changes]
            for run, text in connection.execute(select(c.id, c.changes).where(c.id.in_(new))):
                changes = json.loads(text)
                proposed = sum(1 for change in changes if change[2])
                self._changes[run] = (proposed, len(changes) - proposed)
        return [RunRow(*row, *self._changes[row[0]]) for row in rows]

    def pace(self, uid: str, within_s: float) -> float:
        """Videos worked on per second, over the last `within_s` seconds; 0 where none was, or only one."""
        since = time.time() - within_s
        c = work.c
        query = select(func.count(), func.min(c.updated_at)).where(
            c.project == uid, c.kind == "video", c.state == "done", c.updated_at > since
        )
        with self.read() as connection:
            number, first = connection.execute(query).one()
        return (number - 1) / max(1.0, time.time() - first) if number > 1 else 0.0

    def tiles(self, project: Project, ids: Sequence[int], grouped: Clustering | None) -> list[Tile]:
        """These keyframes, in this order; those that are gone or another project's are left out.

        `grouped`: the project's clustering, None before the first. 200 tiles take some 10 ms, whatever the project.
        """
        with self.read() as connection:
            rows = _facts(connection, project.uid, ids)
            groups = _groups(connection, project.uid, list(rows))
            standing_for = {member: leader for leader, members in groups.items() for member in members}
            agreed, disputed = _said(connection, project, standing_for)
            guesses = _guesses(connection, standing_for)
        leader_of = {keyframe: standing_for.get(keyframe, keyframe) for keyframe in rows}
        numbers, similarity = _lookup(grouped, list(rows))
        names: Mapping[int, str] = grouped.names if grouped is not None else {}
        found = {}
        for place, (keyframe, row) in enumerate(rows.items()):
            leader, number = leader_of[keyframe], int(numbers[place])
            said, guess = agreed.get(leader), guesses.get(leader)
            if said is not None:
                guess = ("labelled", ", ".join(said.categories), None, (), 0)
            elif leader in disputed:
                guess = ("disputed", "", None, (), 0)
            state, category, score, nearest, run = guess or ("open", "", None, (), 0)
            found[keyframe] = Tile(
                keyframe,
                project.label_studio_id,
                row[1],
                video_name(row[3]),
                row[4],
                row[2],
                _version(row[5]),
                number,
                names.get(number) or cluster_name(number),
                float(similarity[place]),
                state,
                category,
                score,
                said,
                nearest,
                run,
            )
        return [found[keyframe] for keyframe in ids if keyframe in found]

    def named(self, project: Project) -> dict[int, tuple[str, float]]:
        """(category, confidence) of all keyframes that people or we have named; "" where people disagree.

        The whole project, for its map: 0.3 s for 50,000 keyframes.
        """
        t, p = keyframe_tasks.c, propagated.c
        with self.read() as connection:
            rows = connection.execute(select(t.keyframe, t.leader).where(t.project == project.uid)).all()
            standing_for = {row[0]: row[1] for row in rows}
            said, disputed = _said(connection, project, standing_for, whole=True)
            query = select(p.keyframe, p.category, p.score).where(p.project == project.uid, p.state == "proposed")
            found = {row[0]: (row[1], row[2]) for row in connection.execute(query.order_by(p.score))}
        found |= {leader: (", ".join(word.categories), 1.0) for leader, word in said.items()}
        found |= dict.fromkeys(disputed, ("", 0.0))
        return {keyframe: found[leader] for keyframe, leader in standing_for.items() if leader in found}

    def video_names(self, uid: str, ids: Sequence[int]) -> list[str]:
        """What people call these videos, in this order; "" for one that is gone."""
        c = videos.c
        with self.read() as connection:
            found = {
                row[0]: video_name(row[1])
                for some in portions(ids)
                for row in connection.execute(select(c.id, c.url).where(c.project == uid, c.id.in_(some)))
            }
        return [found.get(video, "") for video in ids]

    def sight(self, keyframe: int) -> Sight | None:
        """Where a keyframe's picture may be had; None if there is no such keyframe."""
        own = select(
            projects.c.uid,
            projects.c.label_studio_id,
            keyframes.c.fingerprint,
            keyframe_tasks.c.image,
            keyframe_tasks.c.leader,
        )
        own = own.join(videos, videos.c.id == keyframes.c.video).join(projects, projects.c.uid == videos.c.project)
        own = own.outerjoin(keyframe_tasks, keyframe_tasks.c.keyframe == keyframes.c.id)
        with self.read() as connection:
            row = connection.execute(own.where(keyframes.c.id == keyframe)).one_or_none()
            if row is None:
                return None
            image = row[3]
            if not image and row[4] not in (None, keyframe):
                of_leader = select(keyframe_tasks.c.image).where(keyframe_tasks.c.keyframe == row[4])
                image = connection.execute(of_leader).scalar_one_or_none()
        return Sight(row[0], row[1], _version(row[2]), image or "")


# --- steps ---

#: made once: with 100 keyframes, putting a statement together takes as long as running it
_THESE: BindParameter[int] = bindparam("ids", expanding=True)
#: asked for by keyframe alone: with the project as well, SQLite goes through all that it has, 30 ms for 200,000
_FACTS = (
    select(
        *(keyframes.c[name] for name in ("id", "video", "time_s")),
        *(videos.c.url, videos.c.task, keyframes.c.fingerprint, videos.c.project),
    )
    .join(videos, videos.c.id == keyframes.c.video)
    .where(keyframes.c.id.in_(_THESE))
)
_GROUPS = select(keyframe_tasks.c.leader, keyframe_tasks.c.keyframe).where(
    keyframe_tasks.c.project == bindparam("project"),
    keyframe_tasks.c.leader.in_(select(keyframe_tasks.c.leader).where(keyframe_tasks.c.keyframe.in_(_THESE))),
)
_LABELS = select(*(labels.c[name] for name in LabelRow.__dataclass_fields__))
_LABELS_OF = _LABELS.where(labels.c.keyframe.in_(_THESE))
_GUESSES = (
    select(*(propagated.c[name] for name in ("keyframe", "state", "category", "score", "nearest", "run")))
    .where(propagated.c.keyframe.in_(_THESE))
    .order_by(propagated.c.score.desc())
)

_Guess = tuple[State, str, float | None, tuple[int, ...], int]  # …, category, score, nearest, run


def _facts(
    connection: Connection, project: str, ids: Sequence[int]
) -> dict[int, tuple[int, int, float, str, int, int]]:
    """(id, video, seconds, url, task, fingerprint) by keyframe."""
    return {
        row[0]: (row[0], row[1], row[2], row[3], row[4], row[5])
        for some in portions(ids)
        for row in connection.execute(_FACTS, {"ids": some})
        if row[6] == project
    }


def _groups(connection: Connection, project: str, ids: Sequence[int]) -> dict[int, list[int]]:
    """By leader, all near-duplicates of these keyframes."""
    groups: dict[int, list[int]] = {}
    for some in portions(ids):
        for leader, keyframe in connection.execute(_GROUPS, {"project": project, "ids": some}):
            groups.setdefault(leader, []).append(keyframe)
    return groups


def _said(
    connection: Connection, project: Project, standing_for: Mapping[int, int], *, whole: bool = False
) -> tuple[dict[int, Said], set[int]]:
    """What people say of these groups, by leader; `whole`: they are all of the project's."""
    try:
        config = parse_label_config(project.label_config)
    except LabelConfigError:
        return {}, set()
    if whole:
        rows = [LabelRow(*row) for row in connection.execute(_LABELS.where(labels.c.project == project.uid))]
    else:
        portioned = portions(list(standing_for))
        rows = [LabelRow(*row) for some in portioned for row in connection.execute(_LABELS_OF, {"ids": some})]
    return settle(rows, standing_for, categories_of(config), multiple=config.multiple)


def _guesses(connection: Connection, standing_for: Mapping[int, int]) -> dict[int, _Guess]:
    """What we think, by leader."""
    found: dict[int, _Guess] = {}
    for some in portions(list(standing_for)):
        for keyframe, state, category, score, nearest, run in connection.execute(_GUESSES, {"ids": some}):
            leader = standing_for[keyframe]
            if leader not in found:
                near = tuple(int(text) for text in nearest.strip("[] ").split(",") if text.strip())
                found[leader] = (state, category, score if category else None, near, run)
            elif found[leader][0] == state == "proposed":  # several categories at once
                first = found[leader]
                found[leader] = (state, f"{first[1]}, {category}", score, first[3], run)
    return found


def _lookup(grouped: Clustering | None, ids: Sequence[int]) -> tuple[Sequence[int], Sequence[float]]:
    """(cluster, similarity) of keyframes; -1 and 0 of those that were not there when it was made."""
    if grouped is None or not len(grouped.keyframe_ids):
        return [-1] * len(ids), [0.0] * len(ids)
    wanted = np.asarray(ids, np.int64)
    at = np.minimum(np.searchsorted(grouped.keyframe_ids, wanted), len(grouped.keyframe_ids) - 1)
    known = grouped.keyframe_ids[at] == wanted
    return (
        np.where(known, grouped.clusters[at], -1).tolist(),
        np.where(known, grouped.similarity[at], 0.0).tolist(),
    )


def _version(fingerprint: int) -> str:
    return f"{fingerprint & 0xFFFFFFFFFFFFFFFF:016x}"
