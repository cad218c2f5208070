"""How well similar keyframes are found: every category of labelled data searched for by a few of its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import RequestError
from lookalike.grouping import unit
from lookalike.records import Embeddings
from lookalike.similarity import Background, query_of

#: rows that the background is measured on, as in the index
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over the categories and the seeds; the examples themselves are never among the results."""

    examples: int
    categories: int  # that have more keyframes than that
    precision_at_10: float
    precision_at_50: float  # at most what a category has left, by 50
    mean_average_precision: float


def retrieve(embeddings: Embeddings, truth: Sequence[str], examples: int = 10, seeds: int = 5) -> Retrieval:
    """Search for each category of `truth` (n,) by `examples` of its keyframes, chosen at random.

    The truth is used for nothing but choosing examples and scoring. Raises RequestError where no category has more.
    """
    names = np.asarray(truth)
    rows = unit(embeddings.vectors)
    scores = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        background = Background.of(rows[random.permutation(len(rows))[:_SAMPLE]])
        for category in np.unique(names):
            members = random.permutation(np.flatnonzero(names == category))
            if len(members) > examples:
                scores.append(_score(rows, names == category, members[:examples], background))
    if not scores:
        raise RequestError(f"no category has more than {examples} keyframes; choose fewer --examples")
    at_10, at_50, average = np.mean(scores, axis=0)
    return Retrieval(examples, len(scores) // seeds, float(at_10), float(at_50), float(average))


def table(found: Retrieval) -> str:
    """The result for people."""
    return (
        f"{found.categories} categories, {found.examples} examples each: P@10 {found.precision_at_10:.3f}, "
        f"P@50 {found.precision_at_50:.3f}, mAP {found.mean_average_precision:.3f}"
    )


def average_precision(relevant: NDArray[np.bool_]) -> float:
    """Of a ranking (n,), best first: the mean of the precision at each relevant place; 0 without any."""
    places = np.flatnonzero(relevant) + 1
    return float((np.arange(1, len(places) + 1) / places).mean()) if len(places) else 0.0


def _score(
    rows: NDArray[np.float32], relevant: NDArray[np.bool_], chosen: NDArray[np.int64], background: Background
) -> tuple[float, float, float]:
    query = query_of(rows[chosen], rows[:0], background)
    others = np.ones(len(rows), bool)
    others[chosen] = False
    order = np.argsort(-query.similarity(rows[others]), kind="stable")
    ranked = relevant[others][order]
    return float(ranked[:10].mean()), float(ranked[:50].mean()), average_precision(ranked)
