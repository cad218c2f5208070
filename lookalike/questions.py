"""What people search by, and what a search reads of the ledger: never more than its answer shows.

A picture, a region or words need the model, which only workers have: they are written down as a *question*, for which
a worker makes the vector. Questions are kept for a day, so that asking once more, or refining, is answered at once. Of
a picture that somebody sent, only the vector is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, Text, and_, bindparam, case, cast, delete, func, select, update

from lookalike.errors import NotYet
from lookalike.ledger import Claim, Ledger, Part, insert, portions
from lookalike.schema import keyframe_tasks, labels, questions, similar_tabs, vectors, videos, work

QuestionKind = Literal["image", "region", "text"]
_KEPT_S = 24 * 3600.0
#: of a project, each up to 16 MB; a worker answers five a second
_MOST_WAITING = 50
#: made once: with 100 keyframes, putting the statement together took as long as running it
_LEADERS = select(keyframe_tasks.c.keyframe, keyframe_tasks.c.leader).where(
    keyframe_tasks.c.keyframe.in_(bindparam("keyframes", expanding=True))
)
_STAMPS = select(work.c.kind, work.c.wanted, work.c.done, work.c.fence, work.c.updated_at).where(
    work.c.subject == bindparam("project"), work.c.kind.in_(("cluster", "propagate"))
)
#: work on a question that stopped its workers: it is as good as answered, by the reason
_SET_ASIDE = and_(work.c.kind == "question", work.c.subject == cast(questions.c.id, Text), work.c.state == "failed")
_ERROR = case((questions.c.error != "", questions.c.error), else_=func.coalesce(work.c.error, ""))


class Revision(NamedTuple):
    """Changes with what a search depends on; each part in the transaction, or after the one, that changes it."""

    vectors: int  # times that the project's keyframes have changed
    clusters: int
    labels: str


@dataclass(frozen=True, slots=True)
class Question:
    """Something that a worker makes a vector of."""

    id: int
    project: str
    model: str
    digest: str
    kind: QuestionKind
    content: bytes  # a picture's file; JSON {"keyframe", "box": [x, y, width, height] in 0..1}; UTF-8 text
    vector: NDArray[np.float32] | None  # (d,), once it is answered
    error: str

    @property
    def region(self) -> tuple[int, tuple[float, float, float, float]]:
        """(keyframe id, (x, y, width, height) as shares of the picture)."""
        found = json.loads(self.content)
        x, y, width, height = found["box"]
        return int(found["keyframe"]), (x, y, width, height)


@dataclass(frozen=True, slots=True)
class SimilarTab:
    """A tab "Similar to …" of the Data Manager."""

    project: str
    category: str
    uid: str  # of the project at Label Studio that has it
    tab: int
    asked: dict[str, Any]
    shown: dict[int, float]  # similarity by task


class Questions(Part):
    """Verbs on questions and on what searches read. Each raises StoreError where the database does not answer."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._ledger = Ledger(engine)

    # what a search depends on

    def revision(self, project: str) -> Revision:
        """Every change of a project's keyframes asks for `cluster` in the same transaction, so that how often it was
        asked for counts them; labels are read within `propagate`, which moves on after it."""
        with self.read() as connection:
            found = {row.kind: row for row in connection.execute(_STAMPS, {"project": project})}
        cluster, propagate = found.get("cluster"), found.get("propagate")
        return Revision(
            cluster.wanted if cluster else 0,
            cluster.done if cluster else 0,
            f"{propagate.fence} {propagate.updated_at}" if propagate else "",
        )

    def revisions(self, project: str, model: str) -> dict[int, int]:
        """By video that has vectors: the asking that they came of, another one whenever they are made anew."""
        of_video = and_(work.c.kind == "video", work.c.subject == cast(videos.c.id, Text))
        query = (
            select(vectors.c.video, work.c.done)
            .join(videos, videos.c.id == vectors.c.video)
            .outerjoin(work, of_video)
            .where(videos.c.project == project, vectors.c.model == model)
        )
        with self.read() as connection:
            return {video: done or 0 for video, done in connection.execute(query)}

    def vectors(
        self, model: str, video_ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float16]]]:
        """(video, keyframe ids (n,), vectors (n, d)) of those that have some."""
        c = vectors.c
        for some in portions(video_ids, 10):
            query = select(c.video, c.keyframe_ids, c.matrix, c.dim).where(c.video.in_(some), c.model == model)
            with self.read() as connection:
                rows = connection.execute(query).all()
            for video, ids, matrix, dim in rows:
                yield video, np.frombuffer(ids, np.int64), np.frombuffer(matrix, np.float16).reshape(-1, dim)

    def labelled(self, project: str) -> dict[int, tuple[str, ...]]:
        """What people called each keyframe that they labelled; the categories in their order."""
        c = labels.c
        query = select(c.keyframe, c.category).where(c.project == project).distinct().order_by(c.keyframe, c.category)
        found: dict[int, tuple[str, ...]] = {}
        with self.read() as connection:
            for keyframe, category in connection.execute(query):
                found[keyframe] = (*found.get(keyframe, ()), category)
        return found

    def leaders(self, keyframes: Sequence[int]) -> dict[int, int]:
        """Whose near-duplicate each of these keyframes is; its own where it is nobody's, or not known yet."""
        found = {keyframe: keyframe for keyframe in keyframes}
        with self.read() as connection:
            for some in portions(keyframes):
                found.update((row[0], row[1]) for row in connection.execute(_LEADERS, {"keyframes": some}))
        return found

    def videos_of(self, project: str, tasks: Sequence[int]) -> list[int]:
        """The videos of these tasks, as far as the project has them."""
        c = videos.c
        with self.read() as connection:
            return [
                video
                for some in portions(tasks)
                for video in connection.execute(select(c.id).where(c.project == project, c.task.in_(some))).scalars()
            ]

    # questions

    def ask(self, project: str, model: str, kind: QuestionKind, content: bytes) -> Question:
        """Write a question down, once, and ask for its answer; one that failed is tried again.

        Raises NotYet while too many of the project's wait.
        """
        digest = hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()[:32]
        known = self._question(and_(_of(project, model), questions.c.digest == digest))
        if known is not None and not known.error:
            return known
        now = time.time()
        row = {"project": project, "model": model, "digest": digest, "kind": kind, "content": content, "at": now}
        with self.begin() as connection:
            c = questions.c
            unanswered = and_(c.project == project, c.vector.is_(None), _ERROR == "")
            waiting = connection.execute(
                select(func.count()).select_from(questions).outerjoin(work, _SET_ASIDE).where(unanswered)
            ).scalar_one()
            if waiting >= _MOST_WAITING:
                raise NotYet(f"{waiting} questions of this project wait for a worker already; ask again in a moment")
            statement = insert(connection, questions).values(row)
            again = statement.on_conflict_do_update(
                index_elements=["project", "model", "digest"], set_={"error": "", "at": now, "content": content}
            )
            number = connection.execute(again.returning(questions.c.id)).scalar_one()
            self._ledger.want(connection, "question", [(str(number), project)])
        return Question(number, project, model, digest, kind, content, None, "")

    def question(self, number: int) -> Question | None:
        return self._question(questions.c.id == number)

    def asked(self, project: str, model: str, digest: str) -> Question | None:
        """A question that was asked before, by its digest."""
        return self._question(and_(_of(project, model), questions.c.digest == digest))

    def is_answered(self, number: int) -> bool:
        """Whether a worker has come to an end with it, it was set aside, or it is gone."""
        c = questions.c
        query = select(c.vector.is_not(None), _ERROR).outerjoin(work, _SET_ASIDE)
        with self.read() as connection:
            row = connection.execute(query.where(c.id == number)).one_or_none()
        return row is None or bool(row[0] or row[1])

    def answer(self, claim: Claim, vector: NDArray[np.float32] | None, error: str = "") -> None:
        """Keep a question's vector, or why there is none, and end the work. A picture is not kept any longer."""
        values: dict[str, Any] = {
            "vector": vector.astype(np.float32).tobytes() if vector is not None else None,
            "error": error,
        }
        values["content"] = case((questions.c.kind == "image", b""), else_=questions.c.content)
        with self._ledger.finishing(claim) as connection:
            connection.execute(update(questions).where(questions.c.id == int(claim.subject)).values(values))

    def forget(self) -> None:
        """Remove questions that are older than a day, and the work that they were."""
        before, c = time.time() - _KEPT_S, work.c
        settled = and_(c.kind == "question", c.state.in_(("done", "failed")), c.updated_at < before)
        with self.begin() as connection:
            connection.execute(delete(questions).where(questions.c.at < before))
            connection.execute(delete(work).where(settled))

    # tabs

    def ask_tab(self, project: str, category: str, asked: dict[str, Any]) -> None:
        """Ask for a tab, or for it to be brought up to date."""
        values = {"asked": json.dumps(asked)}
        row = {"project": project, "category": category, "uid": "", "tab": 0, "shown": "{}"}
        with self.begin() as connection:
            statement = insert(connection, similar_tabs).values(row | values)
            connection.execute(statement.on_conflict_do_update(index_elements=["project", "category"], set_=values))
            self._ledger.want(connection, "similar", [(project, project)])

    def tabs(self, project: str) -> list[SimilarTab]:
        c = similar_tabs.c
        query = select(c.project, c.category, c.uid, c.tab, c.asked, c.shown).where(c.project == project)
        with self.read() as connection:
            return [
                SimilarTab(
                    *row[:4], json.loads(row[4]), {int(task): score for task, score in json.loads(row[5]).items()}
                )
                for row in connection.execute(query.order_by(c.category))
            ]

    def put_tab(self, tab: SimilarTab) -> None:
        """What a tab shows by now; what was asked for meanwhile stays."""
        c = similar_tabs.c
        values = {"uid": tab.uid, "tab": tab.tab, "shown": json.dumps(tab.shown)}
        with self.begin() as connection:
            connection.execute(
                update(similar_tabs).where(c.project == tab.project, c.category == tab.category).values(values)
            )

    # steps

    def _question(self, condition: Any) -> Question | None:
        c = questions.c
        query = select(c.id, c.project, c.model, c.digest, c.kind, c.content, c.vector, _ERROR)
        with self.read() as connection:
            row = connection.execute(query.outerjoin(work, _SET_ASIDE).where(condition)).one_or_none()
        if row is None:
            return None
        vector = np.frombuffer(row.vector, np.float32) if row.vector is not None else None
        return Question(*row[:6], vector, row[7])


def _of(project: str, model: str) -> Any:
    return and_(questions.c.project == project, questions.c.model == model)
