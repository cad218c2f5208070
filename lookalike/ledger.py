"""The ledger of work: what is to be done, who is at it, and what became of it.

A row of work is asked for (`want`), claimed by one worker for a while (`claim`, `renew`), and comes to one of three
ends: `finish`, `later`, `fail` (or `stumble`, over a bug). A worker that dies leaves a lease behind that runs out, or
that the supervisor releases. Each claim raises the row's fence; a worker whose fence is no longer the row's has lost
its claim, and nothing it writes is kept. The queue server only wakes workers up: losing it loses nothing.

Asking again while a row runs is not lost: `wanted` counts the askings, and a row whose last asking came after its claim
is due again when it finishes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Engine, and_, case, delete, func, or_, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from lookalike.errors import StoreError
from lookalike.schema import durations, endings, projects, work

T = TypeVar("T")

Kind = Literal["video", "embed", "cluster", "deliver", "sync", "companion", "propagate", "question", "similar", "map"]
#: kinds that burn CPU or GPU for long; all others are short and share a queue of their own
SLOW: tuple[Kind, ...] = ("video", "embed", "map")
KINDS: tuple[Kind, ...] = (
    *("question", "video", "embed", "cluster", "deliver", "sync", "companion", "propagate", "similar", "map"),
)

#: what becomes of a job; "died": its worker did
Outcome = Literal["done", "later", "failed", "stumbled", "dropped", "died"]

#: states of work that is not settled
_OPEN = ("due", "running")
_RETRY_FIRST_S = 1.0
_RETRY_MOST_S = 300.0
#: upper bounds of the histogram's buckets, in seconds
_BUCKETS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, math.inf)


class ClaimLost(StoreError):
    """Another worker has this row now, or the row is gone; what we have computed is not needed."""

    temporary = False


@dataclass(frozen=True, slots=True)
class Work:
    """A row of work as the outside sees it."""

    id: int
    kind: Kind
    subject: str
    project: str
    state: Literal["due", "running", "done", "failed"]
    stage: str
    error: str
    tries: int
    fence: int
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a row until the lease runs out."""

    id: int
    kind: Kind
    subject: str
    project: str
    fence: int
    asking: int  # the value of `wanted` that this claim serves
    tries: int


class Part:
    """Some of the ledger's tables: a verb is a transaction, whose errors are StoreError with a sentence."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = reader(engine)

    @contextmanager
    def begin(self, project: str = "") -> Iterator[Connection]:
        """A transaction for several of the verbs that take one; with `project`, in turn with others that write it."""
        with translated(), self._engine.begin() as connection:
            if project:
                in_turn(connection, project)
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """What is read here belongs together; on SQLite it does not wait for writers."""
        with translated(), self._reader.connect() as connection:
            yield connection


class Ledger(Part):
    """Verbs on the table of work. Each is one transaction unless it is given a connection that is in one.

    Each raises StoreError where the database does not answer.
    """

    # asking

    def want(
        self,
        connection: Connection,
        kind: Kind,
        subjects: Iterable[tuple[str, str]],
        *,
        again: bool = True,
        delay_s: float = 0.0,
    ) -> None:
        """Ask for work on `(subject, project)` pairs.

        With `again`, a row that is done or running will run once more; without, asking twice is asking once. A failed
        row stays failed until `retry`, or until it is asked for again.
        """
        now = time.time()
        rows = [
            {
                "kind": kind,
                "subject": subject,
                "project": project,
                "state": "due",
                "wanted": 1,
                "next_at": now + delay_s,
                "created_at": now,
                "updated_at": now,
                "asked_at": now + delay_s,
            }
            for subject, project in sorted(subjects)  # in the same order everywhere: PostgreSQL locks row by row
        ]
        if not rows:
            return
        statement = insert(connection, work)
        if again:
            settled = or_(work.c.state == "done", work.c.state == "failed")  # IN takes no executemany
            put_off = and_(work.c.state == "due", work.c.next_at > now + delay_s)
            statement = statement.on_conflict_do_update(
                index_elements=["kind", "subject"],
                set_={
                    "wanted": work.c.wanted + 1,
                    "state": case((settled, "due"), else_=work.c.state),
                    "next_at": case((or_(settled, put_off), now + delay_s), else_=work.c.next_at),
                    "crashes": case((settled, 0), else_=work.c.crashes),
                    "tries": case((settled, 0), else_=work.c.tries),
                    "error": case((settled, ""), else_=work.c.error),
                    "updated_at": now,
                    "asked_at": case((settled, now + delay_s), else_=work.c.asked_at),
                },
            )
        else:
            statement = statement.on_conflict_do_nothing(index_elements=["kind", "subject"])
        connection.execute(statement, rows)

    def retry(self, project: str | None = None, ids: Sequence[int] = ()) -> int:
        """Make failed rows due again, of a project or by id; how many."""
        condition = work.c.state == "failed"
        if project is not None:
            condition = and_(condition, work.c.project == project)
        if ids:
            condition = and_(condition, work.c.id.in_(ids))
        now = time.time()
        values = {"state": "due", "crashes": 0, "tries": 0, "error": ""}
        values |= {"next_at": now, "updated_at": now, "asked_at": now}
        with self.begin() as connection:
            return connection.execute(update(work).where(condition).values(values)).rowcount

    # working

    def claim(self, work_id: int, worker: str, *, lease_s: float, max_crashes: int) -> Claim | None:
        """Take a row for `lease_s` seconds; None where it is not due, is another's, or has just been set aside.

        A row whose last `max_crashes` claims all ended without a word is set aside as failed: it kills its workers.
        """
        now = time.time()
        free = and_(work.c.id == work_id, work.c.state.in_(_OPEN), work.c.next_at <= now)
        poison = and_(free, work.c.crashes >= max_crashes)
        reason = case(
            (work.c.error != "", f"set aside after {max_crashes} failures in a row; the last: " + work.c.error),
            else_=f"set aside: it stopped {max_crashes} workers in a row without a word (out of memory, or a crash "
            "in native code); retry it when the file or the machine has changed",
        )
        take = (
            update(work)
            .where(free)
            .values(
                state="running",
                stage="",
                fence=work.c.fence + 1,
                crashes=work.c.crashes + 1,
                worker=worker,
                next_at=now + lease_s,
                updated_at=now,
            )
            .returning(work.c.kind, work.c.subject, work.c.project, work.c.fence, work.c.wanted, work.c.tries)
        )
        with self.begin() as connection:
            connection.execute(
                update(work).where(poison).values(state="failed", error=reason, worker="", updated_at=now)
            )
            row = connection.execute(take).one_or_none()
        return None if row is None else Claim(work_id, row[0], row[1], row[2], row[3], row[4], row[5])

    def renew(self, claim: Claim, *, lease_s: float, stage: str | None = None) -> bool:
        """Hold on to a claim, and tell where we are; False where it is lost."""
        now = time.time()
        values: dict[str, Any] = {"next_at": now + lease_s, "updated_at": now}
        if stage is not None:
            values["stage"] = stage
        with self.begin() as connection:
            return connection.execute(self._mine(claim).values(values)).rowcount == 1

    @contextmanager
    def finishing(self, claim: Claim) -> Iterator[Connection]:
        """A transaction that keeps what is written in it only if the claim still holds, and then ends the work.

        Raises ClaimLost, with nothing written, where it does not.
        """
        with self.begin(claim.project) as connection:
            self.finish(claim, connection)
            yield connection

    @contextmanager
    def running(self, claim: Claim) -> Iterator[Connection]:
        """The same for work that is not at its end yet."""
        with self.begin(claim.project) as connection:
            if connection.execute(self._mine(claim).values(updated_at=time.time())).rowcount != 1:
                raise _lost(claim)
            yield connection

    def finish(self, claim: Claim, connection: Connection | None = None) -> None:
        """Done. Raises ClaimLost, so that the transaction is rolled back, where the claim does not hold any more."""
        if connection is None:
            with self.begin() as connection:
                return self.finish(claim, connection)
        asked_again = work.c.wanted > claim.asking
        values = {
            "state": case((asked_again, "due"), else_="done"),
            "done": claim.asking,
            "asked_at": case((asked_again, time.time()), else_=work.c.asked_at),
            **self._orderly(),
        }
        if connection.execute(self._mine(claim).values(values)).rowcount != 1:
            raise _lost(claim)

    def later(self, claim: Claim, reason: str, delay_s: float | None = None, *, counts: bool = True) -> None:
        """Not now: try again after `delay_s`, by default after twice the last wait, up to five minutes.

        It counts as a try unless `counts` is false: where it says nothing about this piece of work.
        """
        if delay_s is None:
            delay_s = min(_RETRY_MOST_S, _RETRY_FIRST_S * 2 ** min(claim.tries, 20))
        values = {
            **self._orderly(),
            "state": "due",
            "error": reason,
            "tries": claim.tries + counts,
            "next_at": time.time() + delay_s,
        }
        with self.begin() as connection:
            connection.execute(self._mine(claim).values(values))

    def stumble(self, claim: Claim, reason: str) -> None:
        """An error that nobody foresaw: try again, but count it like a crash."""
        now = time.time()
        values = {"state": "due", "stage": "", "error": reason, "worker": "", "updated_at": now}
        with self.begin() as connection:
            connection.execute(self._mine(claim).values({**values, "next_at": now + _RETRY_FIRST_S}))

    def fail(self, claim: Claim, reason: str) -> None:
        """Never: set aside with its reason, until somebody asks again."""
        with self.begin() as connection:
            connection.execute(self._mine(claim).values({**self._orderly(), "state": "failed", "error": reason}))

    def release(self, worker: str | None = None) -> int:
        """Give back at once what a dead worker held; without a name, what all did. How many rows."""
        condition = work.c.state == "running"
        if worker is not None:
            condition = and_(condition, work.c.worker == worker)
        statement = update(work).where(condition).values(next_at=time.time()).returning(work.c.kind)
        with self.begin() as connection:
            released = Counter(connection.execute(statement).scalars())
            for kind in sorted(released):
                self._count(connection, kind, "died", "", released[kind])
        return released.total()

    def tally(self, kind: Kind, outcome: Outcome, reason: str, stages: Sequence[tuple[str, float]]) -> None:
        """Count how a job ended, why (an error's class), and how many seconds each stage of it took."""
        with self.begin() as connection:
            self._count(connection, kind, outcome, reason, 1)
            # in the same order everywhere, as in `want`
            for stage, seconds in sorted(stages):
                bound = next(bound for bound in _BUCKETS_S if seconds <= bound)
                row = {"kind": kind, "stage": stage, "at_most_s": bound, "count": 1, "seconds": seconds}
                statement = insert(connection, durations).values(row)
                more = {"count": durations.c.count + 1, "seconds": durations.c.seconds + seconds}
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["kind", "stage", "at_most_s"], set_=more)
                )

    # looking

    def due(self, kinds: Sequence[Kind], limit: int) -> list[Work]:
        """Rows that a worker could claim now, the longest waiting first."""
        # each kind and state by itself, as one walk along the index each: over all at once, 100,000 rows are sorted
        c, now = work.c, time.time()
        first = (
            select(c.id).where(c.kind == kind, c.state == state, c.next_at <= now).order_by(c.next_at).limit(limit)
            for kind in kinds
            for state in _OPEN
        )
        return self.rows(c.id.in_(union_all(*(select(some.subquery()) for some in first))), limit=limit)

    def rows(self, condition: Any = True, limit: int = 1000) -> list[Work]:
        columns = [work.c[name] for name in Work.__dataclass_fields__]
        query = select(*columns).where(condition).order_by(work.c.next_at, work.c.id).limit(limit)
        with self.read() as connection:
            return [Work(*row) for row in connection.execute(query)]

    def troubles(self, project: str) -> list[Work]:
        """Rows about the project as a whole, not about one video, that did not come to a good end."""
        whole = and_(work.c.project == project, work.c.kind.not_in(("video", "deliver")))
        return self.rows(and_(whole, work.c.error != ""))

    def counts(self, project: str | None = None) -> dict[tuple[str, str], int]:
        """Rows by (kind, state)."""
        query = select(work.c.kind, work.c.state, func.count()).group_by(work.c.kind, work.c.state)
        if project is not None:
            query = query.where(work.c.project == project)
        with self.read() as connection:
            return {(kind, state): n for kind, state, n in connection.execute(query)}

    def silent(self, since_s: float) -> set[str]:
        """Workers whose lease ran out that long ago without a word, and whose work nobody else has taken yet."""
        late = and_(work.c.state == "running", work.c.next_at < time.time() - since_s)
        with self.read() as connection:
            return set(connection.execute(select(work.c.worker).where(work.c.kind.in_(KINDS), late)).scalars())

    def waits(self) -> dict[str, float]:
        """How long the oldest row of each kind that is not settled has been asked for, in seconds."""
        since = case((work.c.asked_at > 0, work.c.asked_at), else_=work.c.updated_at)
        query = select(work.c.kind, func.min(since)).where(work.c.state.in_(_OPEN)).group_by(work.c.kind)
        now = time.time()
        with self.read() as connection:
            return {kind: max(0.0, now - asked_at) for kind, asked_at in connection.execute(query)}

    def endings(self) -> dict[tuple[str, str, str], int]:
        """Jobs that ended, by (kind, outcome, reason)."""
        c = endings.c
        with self.read() as connection:
            return {tuple(row[:3]): row[3] for row in connection.execute(select(c.kind, c.outcome, c.reason, c.count))}

    def durations(self) -> dict[tuple[str, str], list[tuple[float, int, float]]]:
        """By (kind, stage): (upper bound in seconds, jobs in the bucket, their seconds), every bucket, ascending."""
        found: dict[tuple[str, str], dict[float, tuple[int, float]]] = {}
        c = durations.c
        with self.read() as connection:
            for kind, stage, bound, count, seconds in connection.execute(
                select(c.kind, c.stage, c.at_most_s, c.count, c.seconds)
            ):
                found.setdefault((kind, stage), {})[bound] = (count, seconds)
        return {key: [(bound, *buckets.get(bound, (0, 0.0))) for bound in _BUCKETS_S] for key, buckets in found.items()}

    def unfinished(self, kind: Kind, project: str) -> int:
        """Rows of a project that are running, or due and not put off: what will be there soon."""
        soon = or_(work.c.state == "running", and_(work.c.state == "due", work.c.tries == 0))
        query = select(func.count()).where(work.c.kind == kind, work.c.project == project, soon)
        with self.read() as connection:
            return int(connection.execute(query).scalar_one())

    def forget(self, connection: Connection, kinds: Sequence[Kind], subjects: Sequence[str]) -> None:
        connection.execute(delete(work).where(work.c.kind.in_(kinds), work.c.subject.in_(subjects)))

    @staticmethod
    def _count(connection: Connection, kind: str, outcome: Outcome, reason: str, number: int) -> None:
        row = {"kind": kind, "outcome": outcome, "reason": reason, "count": number}
        statement = insert(connection, endings).values(row)
        more = {"count": endings.c.count + number}
        connection.execute(statement.on_conflict_do_update(index_elements=["kind", "outcome", "reason"], set_=more))

    @staticmethod
    def _mine(claim: Claim) -> Any:
        return update(work).where(work.c.id == claim.id, work.c.fence == claim.fence, work.c.state == "running")

    @staticmethod
    def _orderly() -> dict[str, Any]:
        now = time.time()
        return {
            "stage": "",
            "error": "",
            "worker": "",
            "crashes": 0,
            "tries": 0,
            "next_at": now,
            "updated_at": now,
        }


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(f"{claim.kind} {claim.subject}: another worker has taken over")


def in_turn(connection: Connection, project: str) -> None:
    """Let transactions that write several rows of a project go one after the other: each begins with this.

    PostgreSQL locks row by row, in whatever order they are written, and would let two wait for each other.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        query = select(projects.c.uid).where(projects.c.uid == project)
        connection.execute(query.with_for_update(key_share=True))  # rows that refer to the project may still come in


def insert(connection: Connection, table: Any) -> Any:
    """`INSERT` of the connection's dialect: both know `on_conflict_…`."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


@contextmanager
def translated() -> Iterator[None]:
    """Database errors as StoreError, with a sentence and without the statement's parameters."""
    try:
        yield
    except IntegrityError as error:
        raise StoreError("the ledger refused a row whose project or video was deleted meanwhile") from error
    except (ProgrammingError, DataError):
        raise  # a mistake of ours
    except (DatabaseError, NoConnectionLeft) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise StoreError(f"the ledger cannot be used now: {reason}") from error


def reader(engine: Engine) -> Engine:
    """The same engine for transactions that only read: on SQLite they do not wait for writers."""
    return engine.execution_options(reads=True)


def portions(values: Sequence[T], size: int = 500) -> Iterator[Sequence[T]]:
    """A statement takes a bounded number of parameters: 999 in old SQLite."""
    for at in range(0, len(values), size):
        yield values[at : at + size]
