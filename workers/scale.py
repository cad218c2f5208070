"""`lookalike bench --scale`: what one more label, and one percent more keyframes, cost in a large project.

Vectors are made up, so that it runs anywhere: categories have looks, looks have shots, shots have a few frames each, in
about the dimensions that a model's vectors have. The cosines to the nearest and the tenth neighbour (medians .86, .73)
are about those of Caltech-101 and Grocery (.86, .75).
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from lookalike.records import Embeddings, Json, Label
from workers import clustering, planner
from workers.propagation import add, build_graph, propagate

T = TypeVar("T")

#: figure: (what it says, what is asked for, of how many keyframes)
FIGURES: dict[str, tuple[str, dict[int, str]]] = {
    "label_all": ("s, all after one more label: propagation and plan", {14_000: "under 0.5"}),
    "label_propagate": ("s, propagation after one more label", {100_000: "under 2"}),
    "label_plan": ("s, plan after one more label", {}),
    "advice": ("s, how many more labels after 60", {}),
    "first_plan": ("s, plan before the first label", {}),
    "graph_build": ("s, neighbours of all", {}),
    "graph_build_to_add": ("times cheaper, 1 % more keyframes", {}),
    "graph_build_to_label": ("times cheaper, one more label", {}),
    "cluster": ("s, clusters of all", {}),
    "cluster_to_extend": ("times cheaper, 1 % more keyframes", {}),
    "peak_mb": ("MB, peak memory of all this, vectors included", {100_000: "under 3000"}),
}
_DIMENSIONS, _LATENT = 1280, 160
_CATEGORIES = 100
_FIRST_LABELS, _LABELS = 60, 300
_MORE_LABELS = 3


def measure(sizes: Sequence[int]) -> dict[int, Json]:
    """CPU seconds, ratios and MB by number of keyframes, each size in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return dict(zip(sizes, pool.map(_measure, sizes, chunksize=1), strict=True))


def table(found: dict[int, Json]) -> str:
    """The figures for people."""
    lines = []
    for size, figures in found.items():
        lines += ["", f"{size} keyframes, CPU seconds"]
        for name, (what, asked) in FIGURES.items():
            wanted = f" (asked: {asked[size]})" if size in asked else ""
            lines.append(f"{figures[name]:8.2f}  {name}: {what}{wanted}")
    return "\n".join(lines)


def make_embeddings(n: int, seed: int = 0) -> tuple[Embeddings, list[str]]:
    """(n keyframes in order of their shots, their categories)"""
    rng = np.random.default_rng(seed)
    frequency = np.arange(1, _CATEGORIES + 1) ** -0.5
    category = rng.choice(_CATEGORIES, max(1, n // 60), p=frequency / frequency.sum())  # of each look
    look = rng.integers(0, len(category), max(1, n // 6))  # of each shot
    shot = np.sort(rng.integers(0, len(look), n))

    def spread(count: int, deviation: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return rng.standard_normal((count, _LATENT), np.float32) * np.float32(deviation)

    middles = (spread(_CATEGORIES, 1)[category] + spread(len(category), 0.9))[look] + spread(len(look), 0.8)
    falling = np.arange(1, _LATENT + 1, dtype=np.float32) ** -0.5  # as variances do along a model's components
    directions = rng.standard_normal((_LATENT, _DIMENSIONS), np.float32) * falling[:, None]
    vectors = np.empty((n, _DIMENSIONS), np.float32)
    for start in range(0, n, 10_000):
        part = slice(start, start + 10_000)
        vectors[part] = (middles[shot[part]] + spread(len(shot[part]), 0.75)) @ directions
        vectors[part] += rng.standard_normal(vectors[part].shape, np.float32)
    return Embeddings(np.arange(n), vectors, "made-up"), [f"category {c}" for c in category[look[shot]]]


def peak_mb() -> float:
    """The largest memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss counts what the parent held when it started this process
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(CPU seconds, result)"""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def _measure(n: int) -> Json:
    embeddings, truth = make_embeddings(n)
    categories = sorted(set(truth))
    few = max(1, n // 100)
    known, new = (
        Embeddings(embeddings.keyframe_ids[part], embeddings.vectors[part], embeddings.model)
        for part in (slice(n - few), slice(n - few, n))
    )
    building, graph = timed(lambda: build_graph(known))
    adding, graph = timed(lambda: add(graph, embeddings))
    clusters, grouped = timed(lambda: clustering.cluster(known))
    extending, grouped = timed(lambda: clustering.extend(grouped, known, new))
    places = min(n, 2 * len(grouped.centroids))  # as many as a companion project's first tab asks for
    first, chosen = timed(lambda: planner.next_to_label(graph, None, places))
    labels = [Label(row, truth[row], row) for row in chosen[: min(_LABELS, n // 2)]]
    few_labels = labels[:_FIRST_LABELS]
    run = propagate(None, few_labels, categories, graph=graph)
    advice, _ = timed(lambda: planner.stop_advice(graph, few_labels, categories, run))
    run = propagate(None, labels, categories, graph=graph)
    spreading, planning = [], []
    for _ in range(_MORE_LABELS + 1):
        seconds, chosen = timed(lambda: planner.next_to_label(graph, run, places))  # noqa: B023  called at once
        planning.append(seconds)
        labels.append(Label(chosen[0], truth[chosen[0]], -1))
        seconds, run = timed(lambda: propagate(None, labels, categories, graph=graph))
        spreading.append(seconds)
    label, plan = (statistics.median(seconds[1:]) for seconds in (spreading, planning))  # the first warms up
    return {
        "label_all": label + plan,
        "label_propagate": label,
        "label_plan": plan,
        "advice": advice,
        "first_plan": first,
        "graph_build": building,
        "graph_build_to_add": building / adding,
        "graph_build_to_label": building / label,
        "cluster": clusters,
        "cluster_to_extend": clusters / extending,
        "peak_mb": peak_mb(),
    }
