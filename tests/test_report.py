"""What the page of a comparison says, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lookalike.grouping import Proposal, Tried
from lookalike.records import Clustering
from lookalike.settings import Settings
from tests.test_sheet import Page
from workers.comparison import Comparison, Embedded, Variant
from workers.evaluate import Result
from workers.report import advise, write_report
from workers.sheet import Shown

N = 12
HOSTILE = '<script>alert("x")</script>.mp4'


def model(spec: str, per_s: float) -> Embedded:
    return Embedded(spec, np.zeros((N, 8), np.float32), per_s, 1000 / per_s, 500)


def variant(embedder: int, method: str, groups: list[int], stability: float, actions: int | None) -> Variant:
    numbers = np.array(groups, np.int64)
    centroids = np.array([np.flatnonzero(numbers == c)[0] for c in range(numbers.max() + 1)], np.int64)
    grouped = Clustering(np.arange(N), numbers, centroids, np.ones(N, np.float32))
    named = None if actions is None else 1 - (actions - len(centroids)) / N
    return Variant(embedder, method, grouped, 0.1, 0.5, stability, named, actions)


def replay(budget: int, precision: float, coverage: float) -> tuple[Result, ...]:
    return (Result(budget, "lookalike", 0.9, coverage, precision, 0.02, 3, 20, budget),)


THREE = [0] * 4 + [1] * 4 + [2] * 4
MIXED = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """A fast model and a slow one that finds other groups; no labels."""
    shown = tuple(
        Shown(i, HOSTILE if i == 0 else f"clip {i // 4}.mp4", i / 2, "", f"thumbs/{i}.jpg", 1.5) for i in range(N)
    )
    (tmp_path / "thumbs").mkdir()
    for i in range(N):
        cv2.imwrite(str(tmp_path / f"thumbs/{i}.jpg"), np.full((20, 30, 3), 20 * i, np.uint8))
    proposal = Proposal(3, (Tried(2, 0.2, 0.3, 0.4), Tried(3, 0.5, 0.6, -0.1)), "3 clusters: because")
    variants = (
        variant(0, "pca-kmeans", THREE, 0.9, None),
        variant(0, "hdbscan", [0] * 4 + [1] * 4 + [-1] * 4, 0.7, None),
        variant(1, "pca-kmeans", MIXED, 0.5, None),
        variant(1, "hdbscan", [-1, *MIXED[1:]], 0.45, None),
    )
    models = (model("efficientnet-lite0", 100), model("own/slow", 25))
    return Comparison("video", shown, (("bad.mp4", "is broken"),), (), models, variants, (proposal,) * 2, (), 0.95)


def with_labels(comparison: Comparison, *needed: tuple[float, float]) -> Comparison:
    variants = tuple(
        replace(v, actions=actions, named=0.5) for v, actions in zip(comparison.variants, (3, 8, 9, 10), strict=True)
    )
    truth = tuple("abc"[group] for group in THREE)
    return replace(comparison, variants=variants, truth=truth, replays=tuple(replay(4, *each) for each in needed))


def test_advise__without_labels_by_stability_and_with_a_warning(comparison: Comparison) -> None:
    assert advise(comparison) == (
        "Take efficientnet-lite0: it is ahead. Stability of its groups: 0.80, against 0.47 with own/slow (4.0 times "
        "slower). Group by pca-kmeans, whose groups come out most alike each time (pca-kmeans 0.90, hdbscan 0.70). "
        "Without labels nobody can tell which groups are right, only which are stable: give --labels to have the "
        "labels counted that each saves."
    )


def test_advise__with_labels_by_what_people_do(comparison: Comparison) -> None:
    assert advise(with_labels(comparison, (0.99, 0.5), (0.96, 1.0))) == (
        "Take own/slow: it is ahead. Labels that people give of 12: 4, against 8 with efficientnet-lite0 (4.0 times "
        "faster). Group by pca-kmeans: naming each group by its centroid and mending the rest takes 9 actions for 12 "
        "labels (pca-kmeans 9, hdbscan 10)."
    )


def test_advise__of_equals_the_fastest(comparison: Comparison) -> None:
    said = advise(with_labels(comparison, (0.99, 1.0), (0.96, 1.0)))
    assert said.startswith("Take efficientnet-lite0: it is about as good as any, and the fastest of those.")


def test_advise__of_equal_clusterings_the_more_stable(comparison: Comparison) -> None:
    labelled = with_labels(comparison, (0.99, 1.0), (0.96, 1.0))
    kmeans, hdbscan, *others = labelled.variants
    equal = replace(labelled, variants=(replace(kmeans, stability=0.6), replace(hdbscan, actions=3), *others))
    said = advise(equal)
    assert "Group by hdbscan: " in said
    assert "pca-kmeans and hdbscan do equally well; hdbscan is the more stable (hdbscan 0.70, pca-kmeans 0.60)." in said
    alike = replace(comparison, variants=(kmeans, replace(hdbscan, stability=0.9), *others))
    assert (
        "Group by pca-kmeans: pca-kmeans and hdbscan do equally well, as their groups come out alike each time "
        "(pca-kmeans 0.90, hdbscan 0.90); as stable as any, pca-kmeans comes first in the settings."
    ) in advise(alike)


def test_advise__a_promise_that_is_not_kept_saves_nothing(comparison: Comparison) -> None:
    said = advise(with_labels(comparison, (0.99, 0.5), (0.5, 1.0)))
    assert "Labels that people give of 12: 8, against all 12 with own/slow" in said


def test_advise__one_model_and_one_clustering(comparison: Comparison) -> None:
    alone = replace(comparison, embedded=comparison.embedded[:1], variants=comparison.variants[:1])
    assert advise(alone).startswith("Without labels")
    labelled = with_labels(comparison, (0.99, 0.5), (0.96, 1.0))
    labelled = replace(
        labelled, embedded=labelled.embedded[:1], variants=labelled.variants[:1], replays=labelled.replays[:1]
    )
    assert advise(labelled) == "People would have to give 8 of 12 labels one by one."


def test_write_report__needs_nothing_but_itself(comparison: Comparison, tmp_path: Path) -> None:
    write_report(comparison, tmp_path, Settings())
    page = Page(tmp_path / "compare.html")
    for element, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (element, name)
        assert element not in ("script", "link", "iframe", "base")
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", (tmp_path / "compare.html").read_text())
    assert not list(tmp_path.glob("*.part"))


def test_write_report__says_everything_and_shows_what_one_finds_alone(comparison: Comparison, tmp_path: Path) -> None:
    write_report(comparison, tmp_path, Settings())
    page = Page(tmp_path / "compare.html")
    text = re.sub(r"\s+", " ", page.text)
    assert "12 keyframes of 4 videos · 2 models · 2 clusterings" in text
    assert advise(comparison) in text
    assert "bad.mp4: is broken" in text
    assert "Apache-2.0" in text
    assert "3.4 M" in text
    assert "unknown" in text
    assert "efficientnet-lite0: 3 of 3 groups" in text
    assert "own/slow: spread over 3 groups" in text
    assert "hdbscan: spread over 4 groups" in text
    assert "3 clusters: because" in text
    assert "What labels buy" not in text
    assert sum(element == "svg" for element, _ in page.elements) == 2
    assert f"{HOSTILE} 0:00.0" in [attributes.get("title") for _, attributes in page.elements]


def test_write_report__with_labels(comparison: Comparison, tmp_path: Path) -> None:
    write_report(with_labels(comparison, (0.99, 0.5), (0.96, 1.0)), tmp_path, Settings())
    page = Page(tmp_path / "compare.html")
    text = re.sub(r"\s+", " ", page.text)
    assert "12 labelled in 3 categories" in text
    assert "What labels buy" in text
    assert "a 4" in text, "what a group holds"
    assert sum(element == "svg" for element, _ in page.elements) == 3
    figures = json.loads((tmp_path / "compare.json").read_text())
    assert [each["labels_needed"] for each in figures["embedders"]] == [8, 4]
    assert [each["actions"] for each in figures["clusterings"]] == [3, 8, 9, 10]
    assert figures["agreement"][0][0] == {"nmi": 1.0, "ari": 1.0, "matched": 3, "of": 3}


def test_write_report__one_of_each_has_nothing_to_set_against(comparison: Comparison, tmp_path: Path) -> None:
    alone = replace(
        comparison,
        embedded=comparison.embedded[:1],
        variants=comparison.variants[:1],
        proposals=(Proposal(3, (), "3 keyframes are too few"),),
    )
    write_report(alone, tmp_path, Settings())
    text = Page(tmp_path / "compare.html").text
    assert "Agreement" not in text
    assert "What only one" not in text
