"""What a comparison of embedders and clusterings tells people: advice, one page without a network, figures as JSON."""

from __future__ import annotations

import base64
import datetime
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lookalike import __version__
from lookalike.errors import SetupError
from lookalike.grouping import Proposal
from lookalike.records import Json, cluster_name
from lookalike.settings import CLUSTERINGS, Settings
from workers.agreement import overlap
from workers.comparison import Comparison, Variant
from workers.sheet import Shown, render

_TILE_PX = 168  # wide; about 4 kB each, as all are in the page
_SHOWN_GROUPS, _SHOWN_MEMBERS, _SHOWN_CENTROIDS = 6, 8, 40
_FOUND_BY_OTHERS = 0.5  # Jaccard index from which a group counts as found by another too


def write_report(comparison: Comparison, out: Path, settings: Settings) -> None:
    """Write `compare.html` and `compare.json` into the folder that the comparison was made in."""

    advice = advise(comparison)
    (out / "compare.json").write_text(json.dumps(_figures(comparison, advice), indent=1), encoding="utf-8")
    album = _Album(comparison.shown, out)
    variants = comparison.variants
    render(
        "compare.html",
        out / "compare.html",
        comparison=comparison,
        advice=advice,
        needed=[comparison.needed(place) for place in range(len(comparison.embedded))],
        names=[comparison.name(variant) for variant in variants],
        agreements=(agreements := comparison.agreements()),
        least=min(each.nmi for row in agreements for each in row),
        curves=[_curve_chart(proposal) for proposal in comparison.proposals],
        replay=_replay_chart(comparison),
        replayed=[[result for result in replay if result.method == "lookalike"] for replay in comparison.replays],
        by_embedder=_only(comparison, album, [v for v in variants if v.method == variants[0].method], "embedder"),
        by_method=_only(comparison, album, [v for v in variants if v.embedder == 0], "clustering"),
        overview=[(comparison.name(variant), _overview(comparison, album, variant)) for variant in variants],
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {settings.device}",
        date=datetime.date.today().isoformat(),
        version=__version__,
        seed=settings.seed,
    )


def advise(comparison: Comparison) -> str:
    """What the figures speak for, in two or three sentences."""
    embedded, variants = comparison.embedded, comparison.variants
    needed = [comparison.needed(place) for place in range(len(embedded))]
    stability = [
        float(np.mean([v.stability for v in variants if v.embedder == place])) for place in range(len(embedded))
    ]
    if comparison.labelled:
        cost, near = [each / comparison.labelled for each in needed], 0.05
        what, amounts = (
            f"labels that people give of {comparison.labelled}",
            [str(each) if each < comparison.labelled else f"all {each}" for each in needed],
        )
    else:
        cost, near = [-each for each in stability], 0.05
        what, amounts = "stability of its groups", [f"{each:.2f}" for each in stability]
    likely = [place for place in range(len(embedded)) if cost[place] <= min(cost) + near]
    best = max(likely, key=lambda place: embedded[place].per_s)
    methods = list(dict.fromkeys(variant.method for variant in variants))
    said = []
    if len(embedded) > 1:
        why = "about as good as any, and the fastest of those" if len(likely) > 1 else "ahead"
        against = ", ".join(
            f"{amounts[place]} with {model.name} ({_times(embedded[best].per_s / model.per_s)})"
            for place, model in enumerate(embedded)
            if place != best
        )
        said.append(
            f"Take {embedded[best].name}: it is {why}. {what.capitalize()}: {amounts[best]}, against {against}."
        )
    mine = [variant for variant in variants if variant.embedder == best]
    if len(methods) > 1:
        likely_groups = _best_clusterings(mine, comparison.labelled)
        first = likely_groups[0]
        equals = " and ".join(sorted((v.method for v in likely_groups), key=CLUSTERINGS.index))
        if comparison.labelled:
            counts = ", ".join(f"{v.method} {v.actions}" for v in mine)
            said.append(
                f"Group by {first.method}: naming each group by its centroid and mending the rest takes "
                f"{first.actions} actions for {comparison.labelled} labels ({counts})."
            )
            if len(likely_groups) > 1:
                stable = ", ".join(f"{v.method} {v.stability:.2f}" for v in likely_groups)
                said.append(f"{equals} do equally well; {_why_first(likely_groups)} ({stable}).")
        else:
            counts = ", ".join(f"{v.method} {v.stability:.2f}" for v in mine)
            if len(likely_groups) > 1:
                said.append(
                    f"Group by {first.method}: {equals} do equally well, as their groups come out alike each time "
                    f"({counts}); {_why_first(likely_groups)}."
                )
            else:
                said.append(f"Group by {first.method}, whose groups come out most alike each time ({counts}).")
    if not comparison.labelled:
        said.append(
            "Without labels nobody can tell which groups are right, only which are stable: give --labels to have the "
            "labels counted that each saves."
        )
    elif not said:
        said.append(f"People would have to give {needed[0]} of {comparison.labelled} labels one by one.")
    return " ".join(said)


def _best_clusterings(variants: Sequence[Variant], labelled: int) -> list[Variant]:
    """Those with the fewest actions, or without labels the most stable, and those next to it: the most stable first, of
    equals the one that comes first in the settings."""
    if labelled:
        least = min(variant.actions or 0 for variant in variants)
        near = [variant for variant in variants if (variant.actions or 0) <= least + 0.01 * labelled]
    else:
        most = max(variant.stability for variant in variants)
        near = [variant for variant in variants if variant.stability >= most - 0.02]
    return sorted(near, key=lambda variant: (-round(variant.stability, 2), CLUSTERINGS.index(variant.method)))


def _why_first(equals: Sequence[Variant]) -> str:
    first, second = equals[:2]
    if round(first.stability, 2) > round(second.stability, 2):
        return f"{first.method} is the more stable" if len(equals) == 2 else f"{first.method} is the most stable"
    return f"as stable as any, {first.method} comes first in the settings"


def _times(ratio: float) -> str:
    return (
        f"{ratio:.1f} times slower"
        if ratio >= 1.05
        else f"{1 / ratio:.1f} times faster"
        if ratio <= 0.95
        else "as fast"
    )


# --- the page ---


@dataclass(frozen=True, slots=True)
class Tile:
    """A keyframe on the page."""

    picture: str  # data URL
    name: str
    time: str
    aspect: float


@dataclass(frozen=True, slots=True)
class Group:
    """A group on the page."""

    name: str
    size: int
    tiles: tuple[Tile, ...]
    note: str  # what it holds, where that is known
    elsewhere: str  # what became of it in the others


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart, in its pixels."""

    name: str
    dots: tuple[tuple[float, float, str], ...]  # x, y, what a pointer over it tells

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.dots)


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over logarithmic x and y from 0 to 1, or the least y if that is below 0."""

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: float | None  # x of a vertical line
    mark_name: str
    width: int = 440
    height: int = 200


def _figures(comparison: Comparison, advice: str) -> Json:
    """All figures of the page, for programs."""
    return {
        "lookalike": __version__,
        "advice": advice,
        "keyframes": len(comparison.shown),
        "labelled": comparison.labelled,
        "embedders": [
            {
                "embedder": model.spec,
                "dimensions": model.dim,
                "per_s": round(model.per_s, 2),
                "cpu_ms": round(model.cpu_ms, 2),
                "peak_mb": round(model.peak_mb),
                "licence": model.card.licence if model.card else None,
                "proposed_clusters": asdict(comparison.proposals[place]),
                "labels_needed": comparison.needed(place) if comparison.labelled else None,
                "replay": [asdict(result) for result in comparison.replays[place]] if comparison.replays else [],
            }
            for place, model in enumerate(comparison.embedded)
        ],
        "clusterings": [
            {
                "embedder": comparison.embedded[variant.embedder].spec,
                "clustering": variant.method,
                "groups": len(variant.grouped.centroids),
                "alone": variant.alone,
                "largest": int(variant.sizes.max(initial=0)),
                "cpu_s": round(variant.seconds, 3),
                "separation": round(variant.separation, 4),
                "stability": round(variant.stability, 4),
                "named_right": variant.named,
                "actions": variant.actions,
            }
            for variant in comparison.variants
        ],
        "agreement": [[asdict(each) for each in row] for row in comparison.agreements()],
    }


class _Album:
    """Small copies of the keyframes' pictures, each made once."""

    def __init__(self, shown: Sequence[Shown], out: Path) -> None:
        self._shown, self._out = shown, out
        self._made: dict[int, Tile] = {}

    def __getitem__(self, row: int) -> Tile:
        if row not in self._made:
            each = self._shown[row]
            picture = cv2.imread(str(self._out / each.thumbnail), cv2.IMREAD_COLOR)
            if picture is None:
                raise SetupError(f"{self._out / each.thumbnail} cannot be read; remove {self._out} and run again")
            size = (_TILE_PX, max(1, round(_TILE_PX / each.aspect)))
            done, data = cv2.imencode(
                ".jpg", cv2.resize(picture, size, interpolation=cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 72]
            )
            assert done
            url = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
            self._made[row] = Tile(url, each.name, each.time, each.aspect)
        return self._made[row]


def _only(comparison: Comparison, album: _Album, variants: Sequence[Variant], by: str) -> list[tuple[str, list[Group]]]:
    """(whose, groups) that none of the other variants has, the most coherent first."""

    if len(variants) < 2:
        return []
    found = []
    for variant in variants:
        grouped = variant.grouped
        others = [
            (other, *overlap(grouped.clusters, other.grouped.clusters)) for other in variants if other is not variant
        ]
        most = np.max([share for _, share, _ in others], axis=0)
        likeness = np.asarray([grouped.similarity[grouped.clusters == c].mean() for c in range(len(most))])
        chosen = [c for c in np.argsort(-likeness) if most[c] < _FOUND_BY_OTHERS and variant.sizes[c] >= 3]
        groups = [
            _group(comparison, album, variant, int(c), [(other, int(best[c])) for other, _, best in others])
            for c in chosen[:_SHOWN_GROUPS]
        ]
        model = comparison.embedded[variant.embedder].name
        found.append((f"{model if by == 'embedder' else variant.method}: {len(chosen)} of {len(most)} groups", groups))
    return found


def _group(
    comparison: Comparison, album: _Album, variant: Variant, number: int, others: Sequence[tuple[Variant, int]]
) -> Group:
    grouped = variant.grouped
    rows = np.flatnonzero(grouped.clusters == number)
    nearest = rows[np.argsort(-grouped.similarity[rows], kind="stable")][:_SHOWN_MEMBERS]
    elsewhere = []
    for other, best in others:
        there = other.grouped.clusters[rows]
        parts = len(set(there[there >= 0].tolist())) + int((there < 0).sum())
        name = comparison.embedded[other.embedder].name if other.method == variant.method else other.method
        size = int(other.sizes[best]) if best >= 0 else 0
        elsewhere.append(
            f"{name}: spread over {parts} groups"
            if parts > 1
            else f"{name}: within a group of {size}, {cluster_name(best)}"
        )
    return Group(
        cluster_name(number),
        len(rows),
        tuple(album[int(row)] for row in nearest),
        _held(comparison, rows),
        "; ".join(elsewhere),
    )


def _held(comparison: Comparison, rows: NDArray[np.int64]) -> str:
    """The categories of a group, the two most frequent ones."""
    counts = Counter(comparison.truth[row] for row in rows if comparison.truth and comparison.truth[row])
    return ", ".join(f"{category} {count}" for category, count in counts.most_common(2))


def _overview(comparison: Comparison, album: _Album, variant: Variant) -> list[Group]:
    """The largest groups by their centroids."""
    row = {identifier: i for i, identifier in enumerate(variant.grouped.keyframe_ids.tolist())}
    order = np.argsort(-variant.sizes, kind="stable")[:_SHOWN_CENTROIDS].tolist()
    return [
        Group(
            cluster_name(number),
            int(variant.sizes[number]),
            (album[row[int(variant.grouped.centroids[number])]],),
            _held(comparison, np.flatnonzero(variant.grouped.clusters == number)),
            "",
        )
        for number in order
    ]


def _curve_chart(proposal: Proposal) -> Chart | None:
    if len(proposal.curve) < 2:
        return None
    series = {
        name: [
            (tried.k, getattr(tried, name), f"{tried.k} groups: {getattr(tried, name):.2f}") for tried in proposal.curve
        ]
        for name in ("silhouette", "explained", "stability")
    }
    return _chart(series, proposal.k, f"{proposal.k} proposed")


def _replay_chart(comparison: Comparison) -> Chart | None:
    if not comparison.replays:
        return None
    series: dict[str, list[tuple[float, float, str]]] = {}
    for model, replay in zip(comparison.embedded, comparison.replays, strict=True):
        mine = [result for result in replay if result.method == "lookalike"]
        series[model.name] = [(r.budget, r.accuracy, f"{r.budget} labels: {r.accuracy:.1%} right") for r in mine]
    return _chart(series, None, "")


def _chart(series: Mapping[str, Sequence[tuple[float, float, str]]], mark: float | None, mark_name: str) -> Chart:
    width, height, left, right, top, bottom = 440, 200, 34, 12, 12, 24
    xs = sorted({x for line in series.values() for x, _, _ in line})
    low = min(0.0, *(y for line in series.values() for _, y, _ in line))
    first, last = math.log(xs[0]), math.log(xs[-1])

    def at_x(x: float) -> float:
        return left + (width - left - right) * ((math.log(x) - first) / (last - first) if last > first else 0.5)

    def at_y(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - low) / (1 - low))

    ticks: list[float] = []
    for x in xs:
        if not ticks or at_x(x) - at_x(ticks[-1]) >= 30:
            ticks.append(x)
    return Chart(
        tuple(Line(name, tuple((at_x(x), at_y(y), text) for x, y, text in line)) for name, line in series.items()),
        tuple((at_x(x), f"{x:,.0f}") for x in ticks),
        tuple((at_y(y), f"{y:g}") for y in (0, 0.25, 0.5, 0.75, 1)),
        at_x(min(max(mark, xs[0]), xs[-1])) if mark else None,
        mark_name,
        width,
        height,
    )
