"""What Prometheus reads: the ledger and the queue at the time of asking, and the requests that were answered.

What workers did, and how long it took, they write into the ledger: one process tells of all.

No project, task or video is ever a label: their number has no bound.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter as Count
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from lookalike import __version__
from lookalike.errors import QueueError, StoreError
from lookalike.queue import Queue
from lookalike.store import Store

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
        try:
            yield from self._of_ledger()
            up.add_metric(("ledger",), 1)
        except StoreError:
            up.add_metric(("ledger",), 0)
        try:
            yield from self._of_queue()
            up.add_metric(("queue",), 1)
        except QueueError:
            up.add_metric(("queue",), 0)
        yield up

    def _of_ledger(self) -> list[Metric]:
        ledger = self._store.ledger
        work = GaugeMetricFamily("lookalike_work", "Rows of the ledger.", labels=("kind", "state"))
        for (kind, state), number in sorted(ledger.counts().items()):
            work.add_metric((kind, state), number)
        oldest = GaugeMetricFamily(
            "lookalike_oldest_age_seconds",
            "How long the oldest work that is not done has been asked for.",
            labels=("kind",),
        )
        for kind, seconds in sorted(ledger.waits().items()):
            oldest.add_metric((kind,), seconds)
        jobs = CounterMetricFamily("lookalike_jobs", "Jobs that ended.", labels=("kind", "outcome"))
        retries = CounterMetricFamily(
            "lookalike_retries", "Jobs that have to run once more, and why.", labels=("kind", "reason")
        )
        ended: Count[tuple[str, str]] = Count()
        again: Count[tuple[str, str]] = Count()
        for (kind, outcome, reason), number in ledger.endings().items():
            ended[kind, outcome] += number
            if outcome in ("later", "stumbled", "died"):
                again[kind, reason or "WorkerDied"] += number
        for family, counts in ((jobs, ended), (retries, again)):
            for key, number in sorted(counts.items()):
                family.add_metric(key, number)
        stages = HistogramMetricFamily(
            "lookalike_stage_duration_seconds", "Time that a stage of a job took.", labels=("kind", "stage")
        )
        for key, buckets in sorted(ledger.durations().items()):
            bounds, sizes, sums = zip(*buckets, strict=True)
            names = ("+Inf" if bound == math.inf else repr(bound) for bound in bounds)
            stages.add_metric(key, list(zip(names, itertools.accumulate(sizes), strict=True)), sum(sums))
        return [work, oldest, jobs, retries, stages]

    def _of_queue(self) -> list[Metric]:
        jobs = GaugeMetricFamily("lookalike_queue_jobs", "Jobs that wait for a worker.", labels=("queue",))
        for name, number in self._queue.depth().items():
            jobs.add_metric((name,), number)
        workers = GaugeMetricFamily("lookalike_workers", "Workers that are there.")
        workers.add_metric((), len(self._queue.workers()))
        return [jobs, workers]
