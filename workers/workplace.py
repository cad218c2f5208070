"""Where jobs are done: what a worker process keeps open from one to the next, and the edge of each.

A job claims its row of work and holds on to it while it runs; whatever comes of it is written down, and no error goes
unrecorded.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lookalike.errors import EmbedderError, LookalikeError, MediaError, QueueError, StoreError
from lookalike.finder import Finder
from lookalike.label_studio import LabelStudio
from lookalike.ledger import Claim, ClaimLost, Outcome
from lookalike.logs import about, trace_id
from lookalike.queue import Queue
from lookalike.settings import Settings
from lookalike.store import Store
from workers import media, readings, timeline
from workers.inputs import Origin, embed_keyframes

if TYPE_CHECKING:
    from workers.embedders import Embedder
    from workers.propagation import Graph

log = logging.getLogger("lookalike.jobs")

#: of how many files of a project it is looked whether their vectors, made elsewhere, are still those
_LOOKED_AT = 50
#: how often it is looked whether Label Studio is back, or room on the disk
_OUTAGE_S = 5.0


@dataclass
class Workplace:
    """What a worker process keeps open from job to job: the store, the queue, Label Studio, a warm model."""

    settings: Settings
    store: Store
    queue: Queue
    name: str
    #: who looks like whom, of the last project that was propagated in: extending is quicker than building
    graph: tuple[str, Graph] | None = None
    #: what timelines showed when they were last composed: by which claim, and the names by keyframe
    named: tuple[Claim, dict[int, tuple[timeline.Named, ...]]] | None = None

    @functools.cached_property
    def listings(self) -> readings.Listings:
        return readings.Listings(2 * self.settings.poll_s)

    @functools.cached_property
    def finder(self) -> Finder:
        return Finder(self.store, self.settings)

    @functools.cached_property
    def label_studio(self) -> LabelStudio | None:
        settings = self.settings
        if not settings.label_studio_url:
            return None
        return LabelStudio(settings.label_studio_url, settings.label_studio_token)

    @functools.cached_property
    def embedder(self) -> Embedder:
        from workers.embedders import open_embedder  # torch: seconds and 300 MB that only video workers pay
        from workers.preparation import probe_picture

        settings = self.settings
        embedder = open_embedder(
            settings.embedder,
            device=settings.device,
            batch_size=settings.batch_size,
            inference=settings.inference,
            cache_dir=settings.data_dir / "models",
        )
        if embedder.takes == "pictures" and not self.store.is_same_model(
            embedder.name, embedder.embed([probe_picture()])[0]
        ):
            raise EmbedderError(
                f"embedder {embedder.name} is not the model that made the vectors kept under this name; choose the one "
                "that it was (NAME@REVISION), or give the new one another name: a folder of its own"
            )
        if embedder.takes == "keyframes" and (file := self._given_otherwise(embedder)):
            raise EmbedderError(
                f"embedder {embedder.name} holds other vectors of {file} than those kept under its name; put the file "
                "back that it was, or give the new one another name"
            )
        return embedder

    def _given_otherwise(self, embedder: Embedder) -> str:
        """A file of which vectors made elsewhere are no more what they were, of a few of each project; or empty."""
        for project in self.store.projects():
            made = sorted(self.store.questions.revisions(project.uid, embedder.name))
            few = made[:: -(-len(made) // _LOOKED_AT) or 1]
            for video_id, ids, before in self.store.questions.vectors(embedder.name, few):
                video, row = self.store.video(video_id), {int(keyframe): n for n, keyframe in enumerate(ids)}
                if video is None:
                    continue  # deleted a moment ago
                origin = Origin(video.url, task=video.task)
                frames = [frame for frame in self.store.keyframes([video_id])[video_id] if frame.id in row]
                try:
                    now = embed_keyframes(embedder, frames, self.settings.data_dir, origin, self.settings).vectors
                except MediaError:
                    continue  # it is left out now, which mixes nothing
                kept = before[[row[frame.id] for frame in frames]]
                if now.shape != kept.shape or not np.allclose(now, kept, rtol=0.01, atol=0.01 * np.abs(now).max()):
                    return media.shown_url(video.url)
        return ""

    def model(self, project: str) -> str:
        """The model that a project is shown by: the one before, until all is embedded by the one that is chosen."""
        return self.store.serving(project, self.settings.embedder)

    def kick(self) -> None:
        """Wake whoever can go on; the supervisor's reconciler does the same a moment later."""
        try:
            self.queue.kick_due(self.store.ledger)
        except QueueError as error:
            log.warning("%s; the ledger remembers the work", error)


#: tells where a job is
Stage = Callable[[str], None]
Job = Callable[[Workplace, Claim, Stage], None]


def do(place: Workplace, work_id: int, job: Job) -> None:
    """Claim a row of work, do it, and let no error go unrecorded. `job`: a function named after the row's kind."""
    settings, ledger = place.settings, place.store.ledger
    claim = ledger.claim(work_id, place.name, lease_s=settings.lease_s, max_crashes=settings.max_attempts)
    if claim is None:
        return  # done, not due yet, or another worker's: the wake-up call came twice
    if job.__name__ != f"_{claim.kind}":  # the queue server is not believed: one kind of work would end another
        log.warning("the queue asked for %s of work %d, which is %s: refused", job.__name__, work_id, claim.kind)
        return ledger.later(claim, "", 0.0, counts=False)
    with about(**_facts(place, claim)):
        try:
            _do(place, claim, job)
        finally:
            place.kick()


# --- steps ---


def _do(place: Workplace, claim: Claim, job: Job) -> None:
    ledger = place.store.ledger
    outcome: Outcome = "done"
    reason = said = ""
    reached = [("whole", time.monotonic())]  # stages, and when they began
    try:
        with _held(place, claim, reached) as stage:
            job(place, claim, stage)
    except ClaimLost as error:
        outcome, reason, said = "dropped", type(error).__name__, str(error)
    except LookalikeError as error:
        reason, said = type(error).__name__, str(error)
        outcome = _put_off(place, claim, error)
    except Exception as error:
        outcome, reason, said = "stumbled", type(error).__name__, f"{type(error).__name__}: {error}"
        ledger.stumble(claim, said)
        raise
    finally:
        ends = [began for _, began in reached[1:]] + [time.monotonic()]
        spent = [(name, end - began) for (name, began), end in zip(reached, ends, strict=True)]
        spent[0] = ("whole", ends[-1] - reached[0][1])
        with about(dur_ms=round(spent[0][1] * 1000)):
            log.info("%s %s: %s", claim.kind, claim.subject, f"{outcome}: {said}" if said else outcome)
        try:
            ledger.tally(claim.kind, outcome, reason, spent)
        except LookalikeError as error:
            log.warning("%s; this job is missing in the metrics", error)


def _put_off(place: Workplace, claim: Claim, error: LookalikeError) -> Outcome:
    """Try again later, for ever where all work waits for the same thing; else set it aside after so many tries."""
    ledger, tries = place.store.ledger, claim.tries + 1
    if error.outage:
        ledger.later(claim, str(error), _OUTAGE_S, counts=False)
    elif error.temporary and tries < place.settings.max_tries:
        ledger.later(claim, str(error))
    else:
        ledger.fail(claim, f"set aside after {tries} tries; the last: {error}" if error.temporary else str(error))
        return "failed"
    return "later"


def _facts(place: Workplace, claim: Claim) -> dict[str, object]:
    """What every line that this job logs is about."""
    task = None
    if claim.kind in ("video", "deliver"):
        try:
            video = place.store.video(int(claim.subject))
        except StoreError as error:
            log.warning("%s; the lines of %s %s have no task", error, claim.kind, claim.subject)
        else:
            task = video.task if video else None
    facts = {"job": f"{claim.kind}-{claim.id}", "attempt": claim.fence, "project": claim.project}
    return {**facts, **({} if task is None else {"task": task}), "trace_id": trace_id(claim.project, task)}


@contextmanager
def _held(place: Workplace, claim: Claim, reached: list[tuple[str, float]]) -> Iterator[Stage]:
    """Renew the claim's lease from a thread while the job runs; yields the verb that tells where it is."""
    lease_s, ledger = place.settings.lease_s, place.store.ledger
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease_s / 3):
            try:
                if not ledger.renew(claim, lease_s=lease_s):
                    return
            except Exception as error:  # the ledger may be busy or away for a moment; the fence protects what counts
                log.warning("cannot renew the lease of %s %s: %s", claim.kind, claim.subject, error)

    def stage(name: str) -> None:
        reached.append((name, time.monotonic()))
        if not ledger.renew(claim, lease_s=lease_s, stage=name):
            raise ClaimLost(f"{claim.kind} {claim.subject}: another worker has taken over")

    thread = threading.Thread(target=contextvars.copy_context().run, args=(renew,), name="lease", daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        over.set()
        thread.join()
