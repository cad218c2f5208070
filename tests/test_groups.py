"""Why a project has so many groups, as numbers and as a drawing."""

from __future__ import annotations

import numpy as np
import pytest

from backend.groups import Groups, draw, preview
from lookalike.edits import Edit
from lookalike.grouping import Choice, Fit, Proposal, Tree, Tried
from lookalike.settings import Settings

CURVE = (Tried(2, 0.2, 0.1, 1.0), Tried(8, 0.6, 0.5, 0.9), Tried(32, -0.2, 0.9, 0.89))
ASKED = Edit(1, "group", "12", None, "ann", 0.0)


def fit(method: str = "pca-kmeans", k: int = 0) -> Fit:
    return Fit(Choice(method, k, 0), Proposal(8, CURVE, "because"), None)


def test_draw__every_point_in_its_place() -> None:
    chart = draw(CURVE, 8, 32)
    assert chart is not None
    lines = {line.name: [tuple(map(float, xy.split(","))) for xy in line.points.split()] for line in chart.lines}
    for points in lines.values():
        assert [x for x, _ in points] == [chart.left, (chart.left + chart.right) / 2, chart.right], "by the logarithm"
    assert lines["distinct"][2][1] == chart.bottom, "below nothing is drawn as nothing"
    assert lines["stable"][0][1] == chart.top
    words = [line.at for line in chart.lines]
    assert min(np.diff(words)) >= 15, "names do not cover each other"
    assert [(mark.k, mark.name) for mark in chart.marks] == [(8, "proposed"), (32, "now")]
    assert [mark.name for mark in (draw(CURVE, 8, 8) or pytest.fail("drawn")).marks] == ["now, as proposed"]
    assert [mark.k for mark in (draw(CURVE, 8, 500) or pytest.fail("drawn")).marks] == [8], "500 is not in the drawing"
    assert draw(CURVE[:1], 2, 2) is None


def test_preview__of_a_tree() -> None:
    merges = np.array([[0, 1], [4, 2], [5, 3]])
    tree = Tree(np.arange(10, 14), np.arange(4), merges, np.array([1, 2, 3], np.float32), np.eye(4, dtype=np.float32))
    assert preview(tree, 1) == {"groups": 1, "largest": 4, "alone": 0}
    assert preview(tree, 3) == {"groups": 3, "largest": 2, "alone": 2}
    assert preview(tree, 99) == {"groups": 4, "largest": 1, "alone": 4}


@pytest.mark.parametrize(
    ("settings", "left", "asked", "expected"),
    [
        (Settings(), fit(), None, (8, False, 100)),
        (Settings(), fit(), ASKED, (8, True, 100)),
        (Settings(), fit(k=12), ASKED, (12, False, 100)),
        (Settings(), fit(k=12), None, (12, True, 100)),
        (Settings(clusters=5), fit(k=5), None, (5, False, 100)),
        (Settings(clustering="hdbscan"), Fit(Choice("hdbscan", 0, 0), None, None), ASKED, (0, False, 0)),
        (Settings(), None, None, (0, False, 100)),
        (Settings(), None, ASKED, (0, True, 100)),
    ],
)
def test_groups__whether_the_workers_are_waited_for(
    settings: Settings, left: Fit | None, asked: Edit | None, expected: tuple[int, bool, int]
) -> None:
    groups = Groups.of(settings, left, asked, 100)
    assert (groups.k, groups.waiting, groups.most) == expected
    assert Groups.of(settings, left, asked, 10**6).most in (0, 2000)
