"""`lookalike compare` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from workers import comparison as comparisons
from workers.compare import command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, colour in (("blue", (200, 20, 20)), ("green", (20, 200, 20))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(4):
            picture = (np.asarray(colour) + random.integers(0, 20, (40, 60, 3))).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "in" / name / f"{number}.jpg"), picture)
    return tmp_path / "in"


@pytest.mark.slow
def test_command__pictures_to_a_page(pictures: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "mine.npz"
    files = sorted(f"{path.parent.name}/{path.name}" for path in pictures.rglob("*.jpg"))
    np.savez(vectors, vectors=np.eye(8), files=np.array(files), video=np.arange(8))
    out = tmp_path / "out"
    models = f"efficientnet-lite0,{vectors}"
    result = CliRunner().invoke(
        command, [str(pictures), "--out", str(out), "--embedders", models, "--labels", "folders", "--seeds", "2"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Take efficientnet-lite0: it is ")
    assert result.stdout.endswith(f"8 pictures, 4 variants → {out / 'compare.html'}\n")
    figures = json.loads((out / "compare.json").read_text())
    real, elsewhere = figures["embedders"]
    assert (real["dimensions"], real["licence"]) == (1280, "Apache-2.0")
    assert (elsewhere["dimensions"], elsewhere["licence"]) == (8, None)
    assert 100 < elsewhere["peak_mb"] < real["peak_mb"] < 3000
    assert real["per_s"] > 0


class Seen(Exception):
    """Carries what the command asked for."""


@pytest.fixture
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(paths: Any, out: Any, settings: Any, embedders: Any, clusterings: Any, **options: Any) -> None:
        raise Seen(settings.clusters, list(embedders), list(clusterings), options["clips"], settings.clustering)

    monkeypatch.setattr(comparisons, "compare", compare)


@pytest.mark.usefixtures("_asked")
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], (0, ["efficientnet-lite0"], ["pca-kmeans", "kmeans"], 0)),
        (["--preset", "article"], (100, ["google/efficientnet-b0", "facebook/vit-mae-base"], ["kmeans"], 300)),
        (
            ["--preset", "article", "--embedders", "a, b", "--clusterings", "ward,hdbscan", "--clusters", "50"],
            (50, ["a", "b"], ["ward", "hdbscan"], 300),
        ),
    ],
)
def test_command__what_is_asked_for(tmp_path: Path, arguments: list[str], asked: tuple[Any, ...]) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, Seen), result.output
    assert result.exception.args == (*asked, "pca-kmeans")


@pytest.mark.usefixtures("_asked")
def test_command__the_setting_of_a_clustering_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_CLUSTERING", "hdbscan")
    result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "out"), "--clusters", "7"])
    assert isinstance(result.exception, Seen)
    assert result.exception.args[0] == 7


def test_command__unknown_clustering_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "out"), "--clusterings", "ward,agnes"])
    assert result.exit_code == 2
    assert "'agnes' is not one of pca-kmeans, kmeans, minibatch, ward, hdbscan" in result.output
