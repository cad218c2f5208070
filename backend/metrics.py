"""What Prometheus reads: the ledger and the queue at the time of asking, and the requests that were answered.

No project, task or video is ever a label: their number has no bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from lookalike import __version__
from lookalike.errors import QueueError, StoreError
from lookalike.ledger import KINDS
from lookalike.queue import Queue
from lookalike.store import Store, translated

#: seconds; Label Studio gives a webhook 1, /setup 3, /predict 100
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)


class Metrics:
    """One application's numbers, in a registry of their own."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(store, queue))
        self._requests = Counter("lookalike_requests", "Requests answered.", ("route", "code"), registry=self._registry)
        self._seconds = Histogram(
            "lookalike_request_duration_seconds",
            "Time from a request to its answer.",
            ("route",),
            registry=self._registry,
            buckets=_BUCKETS,
        )

    def answered(self, route: str, code: int, seconds: float) -> None:
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """(text, content type)"""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _State(Collector):
    """Reads the ledger and the queue when asked. One that does not answer is told as such, the rest is still told."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store = store
        self._queue = queue

    def describe(self) -> list[Metric]:
        return []  # nothing is read before somebody asks

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("lookalike_build", "The version that runs.", value={"version": __version__})
        up = GaugeMetricFamily("lookalike_part_up", "Whether a part answers.", labels=("part",))
        work = GaugeMetricFamily("lookalike_work", "Rows of the ledger.", labels=("kind", "state"))
        oldest = GaugeMetricFamily("lookalike_oldest_due_age_seconds", "How long the longest waiting work has waited.")
        jobs = GaugeMetricFamily("lookalike_queue_jobs", "Jobs that wait for a worker.", labels=("queue",))
        try:
            with translated():
                counts = self._store.ledger.counts()
                due = self._store.ledger.due(KINDS, 1)
            for (kind, state), number in sorted(counts.items()):
                work.add_metric((kind, state), number)
            oldest.add_metric((), max(0.0, time.time() - due[0].updated_at) if due else 0.0)
            up.add_metric(("ledger",), 1)
        except StoreError:
            up.add_metric(("ledger",), 0)
        try:
            for name, number in self._queue.depth().items():
                jobs.add_metric((name,), number)
            up.add_metric(("queue",), 1)
        except QueueError:
            up.add_metric(("queue",), 0)
        yield from (up, work, oldest, jobs)
