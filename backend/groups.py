"""How many groups a project's keyframes are in: why so many, who chose it, and what other numbers would be like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.edits import Edit
from lookalike.grouping import Fit, Proposal, Tree, Tried, divide
from lookalike.settings import Settings

#: groups that a person may ask for: a tree of many keyframes has 2,000 leaves
_MOST = 2000
_METHODS = {
    "pca-kmeans": "KMeans",
    "kmeans": "KMeans as in the article",
    "minibatch": "MiniBatchKMeans",
    "ward": "a tree (Ward)",
    "hdbscan": "HDBSCAN",
}

#: the drawing, in its own units
WIDTH, HEIGHT = 640, 226
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 92, 38, 28
_APART = 15  # two words that stand one below the other
_TICKS_APART = 44


@dataclass(frozen=True, slots=True)
class Groups:
    """How a project is grouped."""

    method: str  # for people
    k: int  # that the last full fit made or was asked for; 0: not known
    asked: Edit | None  # who chose the number; None: nobody
    by_setting: bool
    proposal: Proposal | None
    waiting: bool  # for the workers, who are to make another number of groups
    most: int  # that may be asked for; 0: the method finds the number itself
    is_tree: bool

    @classmethod
    def of(cls, settings: Settings, fit: Fit | None, asked: Edit | None, keyframes: int) -> Groups:
        method = fit.choice.method if fit else settings.clustering
        k = _wanted(settings, asked)
        proposal = fit.proposal if fit else None
        return cls(
            _METHODS[method],
            (fit.choice.k if fit else 0) or (proposal.k if proposal else 0),
            asked if settings.clustering != "hdbscan" else None,
            settings.clusters > 0,
            proposal,
            fit.choice.k != k if fit else k != settings.clusters,
            0 if settings.clustering == "hdbscan" else min(keyframes, _MOST),
            method == "ward",
        )

    @property
    def chart(self) -> Chart | None:
        return draw(self.proposal.curve, self.proposal.k, self.k) if self.proposal else None


def _wanted(settings: Settings, asked: Edit | None) -> int:
    """As the workers see it: 0 for as many as are proposed."""
    return int(asked.text) if asked and settings.clustering != "hdbscan" else settings.clusters


def preview(tree: Tree, k: int) -> dict[str, int]:
    """What a tree cut into k is like: how many groups, keyframes in the largest, groups of one keyframe."""
    numbers = divide(tree, tree.keyframe_ids, k)
    sizes = np.bincount(numbers[numbers >= 0])
    return {"groups": len(sizes), "largest": int(sizes.max(initial=0)), "alone": int((sizes == 1).sum())}


# --- the curve ---


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: str  # of an SVG polyline
    at: float  # height of its name, at the right end


@dataclass(frozen=True, slots=True)
class Mark:
    at: float  # from the left; of a level, from above
    k: int
    name: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A curve as an SVG draws it: WIDTH x HEIGHT; numbers of groups from left to right, by their logarithm."""

    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    ticks: tuple[Mark, ...]
    levels: tuple[Mark, ...]  # 0, ½ and 1
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def draw(curve: Sequence[Tried], proposed: int, now: int) -> Chart | None:
    """None where there is nothing to compare. `now`: the number of groups that there are."""
    if len(curve) < 2:
        return None
    first, last = math.log(curve[0].k), math.log(curve[-1].k)

    def across(k: int) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (math.log(k) - first) / (last - first), 1)

    def down(share: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(1.0, max(0.0, share))), 1)

    lines: list[Line] = []
    shares = {
        "stable": [tried.stability for tried in curve],
        "explained": [tried.explained for tried in curve],
        "distinct": [tried.silhouette for tried in curve],
    }
    for name, found in sorted(shares.items(), key=lambda item: -item[1][-1]):
        points = " ".join(f"{across(tried.k)},{down(share)}" for tried, share in zip(curve, found, strict=True))
        lines.append(Line(name, points, max(down(found[-1]), lines[-1].at + _APART if lines else 0.0)))
    marked = {proposed: "proposed", now: "now"} | ({now: "now, as proposed"} if now == proposed else {})
    ticks = [curve[0].k]
    for tried in curve[1:]:
        if across(tried.k) - across(ticks[-1]) >= _TICKS_APART:
            ticks.append(tried.k)
    return Chart(
        tuple(lines),
        tuple(Mark(across(k), k, name) for k, name in marked.items() if curve[0].k <= k <= curve[-1].k),
        tuple(Mark(across(k), k, str(k)) for k in ticks),
        tuple(Mark(down(share), 0, name) for share, name in ((0.0, "0"), (0.5, "½"), (1.0, "1"))),
    )
