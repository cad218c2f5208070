"""What answering needs: the settings, the ledger, the queue, and what of them is kept open from request to request."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from dataclasses import dataclass, field

from backend.clusterings import Clusterings
from lookalike import wire
from lookalike.errors import QueueError, StoreError
from lookalike.finder import Finder
from lookalike.queue import Queue, redis_url
from lookalike.settings import Settings
from lookalike.store import Store, open_store

log = logging.getLogger("lookalike.backend")

#: of two requests that open a task at once, the second is answered this much later, so that Label Studio finds the row
#: that the first one has made …
_SECOND_WAITS_S = 1.0
#: … but no more than this many at a time: each holds one of the server's eight threads
_MAX_WAITING = 3
#: a burst of webhooks wakes the workers this often; the reconciler, twice a second, sees to the last of them
_KICK_EVERY_S = 0.2
#: how long a queue server that did not answer is left alone: each try takes 0.25 s of a webhook's one second
_QUEUE_REST_S = 2.0
#: how often it is looked whether there is room for more: with 100,000 videos waiting, counting them takes 80 ms
_LOOK_FOR_ROOM_EVERY_S = 1.0


@dataclass
class Services:
    """What answering needs: the settings, the ledger, the queue."""

    settings: Settings
    store: Store
    queue: Queue
    #: held by who writes: SQLite lets writers wait by sleeping longer and longer, the unlucky ones for a second and
    #: more. 8 connections, 250 webhooks each: p99 1,000 ms without, 250 ms with it
    turn: threading.Lock = field(default_factory=threading.Lock)
    #: held by who waits for a worker to read what is searched by: the other threads are for Label Studio and the pages
    waiting_for_answers: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_MAX_WAITING))
    _kicking: threading.Lock = field(default_factory=threading.Lock)
    _kick_after: float = 0.0
    _overload: tuple[float, str] = (-math.inf, "")  # when we looked, and what was said
    _waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_MAX_WAITING))

    def __post_init__(self) -> None:
        self.finder = Finder(self.store, self.settings)
        self.clusterings = Clusterings(self.store, self.finder)

    @property
    def model_version(self) -> str:
        return wire.model_version(self.settings.embedder)

    def kick(self) -> None:
        """Wake workers for what is due, if that can be done now; the reconciler wakes them a moment later if not."""
        if time.monotonic() < self._kick_after or not self._kicking.acquire(blocking=False):
            return
        try:
            self.queue.kick_due(self.store.ledger)
            self._kick_after = time.monotonic() + _KICK_EVERY_S
        except QueueError as error:
            self._kick_after = time.monotonic() + _QUEUE_REST_S
            log.warning("%s; the ledger remembers the work", error)
        except StoreError as error:
            log.warning("%s; the work is asked for already", error)
        finally:
            self._kicking.release()

    def wait_for_the_other(self) -> None:
        """Let a request that opened the same task a moment earlier come to its end."""
        if self._waiting.acquire(blocking=False):
            try:
                time.sleep(_SECOND_WAITS_S)
            finally:
                self._waiting.release()

    def overload(self) -> str:
        """Why no more work can be taken in now; empty if it can."""
        looked_at, said = self._overload
        if time.monotonic() - looked_at >= _LOOK_FOR_ROOM_EVERY_S:
            said = self._look_for_room()
            self._overload = (time.monotonic(), said)
        return said

    def close(self) -> None:
        self.finder.close()
        self.queue.close()
        self.store.close()

    def _look_for_room(self) -> str:
        due = self.store.ledger.counts().get(("video", "due"), 0)
        if due > self.settings.max_queue:
            return (
                f"{due} videos wait already, more than LOOKALIKE_MAX_QUEUE ({self.settings.max_queue}); try again later"
            )
        free_mb, least_mb = free_disk_mb(self.settings), self.settings.disk_free_mb
        if free_mb < least_mb:
            return f"{free_mb:.0f} MB of disk are free, less than LOOKALIKE_DISK_FREE_MB ({least_mb:g}); make room"
        return ""


def open_services(settings: Settings) -> Services:
    """Open the ledger and name the queue server, which need not be there yet.

    Raises SettingsError for a URL that is none, StoreError where the ledger cannot be opened.
    """
    queue = Queue(redis_url(settings.redis_url, settings.data_dir))
    return Services(settings, open_store(settings.sqlalchemy_url), queue)


def free_disk_mb(settings: Settings) -> float:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(settings.data_dir).free / 1e6
