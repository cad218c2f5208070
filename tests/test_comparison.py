"""Models and clusterings measured on pictures and clips whose groups are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.errors import EmbedderError, RequestError
from lookalike.records import Clustering, Embeddings
from lookalike.settings import Settings
from tests.clips import Scene, make_clip
from workers import comparison as comparisons
from workers.comparison import Comparison, Variant, compare

SETTINGS = Settings(disk_free_mb=0, clusters=3)


class Colours:
    """An embedder that can be reckoned by hand: the mean of each channel; `grey`: of all of them."""

    takes = "pictures"
    shown = 0

    def __init__(self, name: str) -> None:
        self.name, self.dim = name, 1 if name == "grey" else 3

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        Colours.shown += len(images)
        means = np.asarray([image.mean(axis=(0, 1)) for image in images], np.float32).reshape(-1, 3)
        return means.mean(axis=1, keepdims=True) if self.dim == 1 else means


def direct(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@pytest.fixture
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours in place of models, in this process."""
    Colours.shown = 0
    monkeypatch.setattr(comparisons, "_alone", direct)
    monkeypatch.setattr(comparisons, "open_embedder", lambda spec, **_: Colours(spec))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten each that are mostly blue, green and red, by folder; blue and green are equally bright."""
    random = np.random.default_rng(0)
    for name, colour in (("blue", (200, 20, 20)), ("green", (20, 200, 20)), ("red", (20, 20, 90))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(10):
            picture = (np.asarray(colour) + random.integers(0, 20, (40, 60, 3))).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "in" / name / f"{number}.jpg"), picture)
    return tmp_path / "in"


def run(pictures: Path, embedders: Sequence[str] = ("colours",), **options: Any) -> Comparison:
    settings = options.pop("settings", SETTINGS)
    methods = options.pop("clusterings", ["pca-kmeans"])
    return compare([pictures], pictures.parent / "out", settings, embedders, methods, **options)


@pytest.mark.usefixtures("_colours")
def test_compare__each_model_by_each_clustering(pictures: Path) -> None:
    found = run(pictures, ["colours", "grey"], clusterings=["pca-kmeans", "kmeans", "ward"], labels="folders")
    assert (found.noun, len(found.shown), found.labelled) == ("picture", 30, 30)
    assert [(v.embedder, v.method) for v in found.variants] == [
        (place, method) for place in (0, 1) for method in ("pca-kmeans", "kmeans", "ward")
    ]
    assert [model.dim for model in found.embedded] == [3, 1]
    first, grey = found.variants[0], found.variants[3]
    assert (first.named, first.actions, first.stability) == (1.0, 3, 1.0)
    assert first.separation > 0.9
    assert grey.named is not None
    assert grey.named < 1
    assert grey.actions is not None
    assert grey.actions > 3
    assert [{r.budget for r in replay} for replay in found.replays] == [{3, 6, 15}] * 2
    assert len(found.proposals) == 2


@pytest.mark.usefixtures("_colours")
def test_compare__without_labels_nothing_is_said_of_them(pictures: Path) -> None:
    found = run(pictures)
    assert (found.truth, found.replays, found.labelled) == ((), (), 0)
    assert (found.variants[0].named, found.variants[0].actions) == (None, None)


@pytest.mark.usefixtures("_colours")
def test_compare__a_second_run_embeds_what_is_new_only(pictures: Path) -> None:
    first = run(pictures)
    assert Colours.shown == 31  # one to warm up
    again = run(pictures)
    assert Colours.shown == 31
    assert np.array_equal(again.embedded[0].vectors, first.embedded[0].vectors)
    assert again.embedded[0].per_s == first.embedded[0].per_s
    run(pictures, ["colours", "grey"])
    assert Colours.shown == 62
    cv2.imwrite(str(pictures / "red" / "3.jpg"), np.zeros((40, 60, 3), np.uint8))
    run(pictures)
    assert Colours.shown == 93


@pytest.mark.usefixtures("_colours")
def test_compare__clips_and_a_csv_of_labels(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        make_clip(tmp_path / "in" / f"{name}.mp4", [Scene(30, seed=seed), Scene(30, seed=seed + 4)])
    (tmp_path / "in" / "broken.mp4").write_text("no video")
    csv = tmp_path / "labels.csv"
    csv.write_text("file,category\na.mp4,one\nb.mp4,two\nc.mp4,\nelsewhere.mp4,three\n")
    found = compare([tmp_path / "in"], tmp_path / "out", SETTINGS, ["colours"], ["pca-kmeans"], labels=str(csv))
    assert (found.noun, found.labelled) == ("video", 4)
    assert found.truth == ("one", "one", "two", "two", "", "", "", "")
    assert [name for name, _ in found.failed] == ["broken.mp4"]


@pytest.mark.usefixtures("_colours")
def test_compare__fewer_files_than_the_preset_make_fewer_clusters(pictures: Path) -> None:
    found = run(pictures, settings=SETTINGS.with_(clusters=100), clips=300)
    assert len(found.variants[0].grouped.centroids) == 10
    assert found.note == "10 clusters of 30 pictures, as 100 of 300"
    some = run(pictures, clips=12)
    assert len(some.shown) == 12
    assert some.note == "12 of the 30 pictures, chosen at random by seed 0"


@pytest.mark.usefixtures("_colours")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"embedders": ["a", "a"]}, "--embedders must name each once and at least one, got a, a"),
        ({"clusterings": []}, "--clusterings must name each once and at least one, got none"),
        ({"settings": SETTINGS.with_(clusters=31)}, "at most the number of keyframes, 30, got 31"),
        ({"labels": "none.csv"}, "cannot read none.csv as CSV"),
    ],
)
def test_compare__what_cannot_be_is_a_sentence(pictures: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        run(pictures, **options)


@pytest.mark.usefixtures("_colours")
def test_compare__labels_that_tell_nothing_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least two categories, it gives none; put the files into a folder per"):
        run(pictures / "red", labels="folders")
    csv = tmp_path / "labels.csv"
    csv.write_text("name,label\na,b\n")
    with pytest.raises(RequestError, match="must have the columns file and category, it has name, label"):
        run(pictures, labels=str(csv))
    csv.write_text("file,category\n3.jpg,which of the three\n")
    with pytest.raises(RequestError, match="it gives none; its files must be named as below"):
        run(pictures, labels=str(csv))


@pytest.mark.usefixtures("_colours")
def test_compare__videos_and_pictures_are_not_mixed(pictures: Path) -> None:
    (pictures / "a.mp4").write_bytes(b"x")
    with pytest.raises(RequestError, match="not both: there are 1 and 30"):
        run(pictures)
    with pytest.raises(RequestError, match="no video and no picture"):
        compare([pictures / "red" / "gone"], pictures.parent / "out", SETTINGS, ["colours"], ["ward"])


def test_compare__a_model_that_is_none_ends_it_before_anything_is_decoded(pictures: Path) -> None:
    with pytest.raises(EmbedderError, match="no/such/model"):
        run(pictures, ["no/such/model"])
    assert not list((pictures.parent / "out" / "keyframes").iterdir())


def test_alone__a_process_that_was_killed_is_a_sentence() -> None:
    with pytest.raises(EmbedderError, match="9: its process was killed, likely for want of memory"):
        comparisons._alone(os._exit, 9)  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "low", "high"), [("pca-kmeans", 0.99, 1), ("kmeans", 0.0, 0.6)])
def test_stability__is_that_of_the_groups(method: str, low: float, high: float) -> None:
    random = np.random.default_rng(0)
    if method == "pca-kmeans":
        vectors = np.repeat(random.normal(size=(4, 16)), 20, axis=0) + random.normal(0, 0.01, (80, 16))
    else:  # nothing to be found
        vectors = random.normal(size=(80, 16))
    embeddings = Embeddings(np.arange(80), vectors.astype(np.float32), "m")
    assert low <= comparisons._stability(embeddings, 4, method, 3, 0) <= high


def test_variant__counts_those_that_are_alone() -> None:
    grouped = Clustering(np.arange(6), np.array([0, 0, 1, -1, -1, 0]), np.array([0, 2]), np.ones(6, np.float32))
    variant = Variant(0, "hdbscan", grouped, 0.1, 0.5, 0.9, None, None)
    assert (variant.alone, variant.sizes.tolist()) == (3, [3, 1])


def test_named__those_like_nothing_else_have_no_name() -> None:
    grouped = Clustering(np.arange(5), np.array([0, 0, 1, -1, 1]), np.array([0, 2]), np.ones(5, np.float32))
    assert comparisons._named(grouped, ["a", "a", "b", "a", ""]) == (0.75, 3)
    assert comparisons._named(grouped, ["a", "b", "b", "a", ""]) == (0.5, 4)
    assert comparisons._named(grouped, ()) == (None, None)
