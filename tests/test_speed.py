"""Speed: both ways of inference in one run, against plain transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike.errors import EmbedderError
from lookalike.settings import Settings
from tests.models import real_families, saved
from workers import bench, speed


def test_measure__each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_PICTURES", 3)
    saved(tmp_path / "small", "resnet")
    found = speed.measure([str(tmp_path / "small")], Settings(), tmp_path, rounds=1)
    ways = ["torch", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    assert [(s.embedder, s.inference) for s in found] == [("small", way) for way in ways]
    for s in found:
        assert s.ratio == pytest.approx(s.eager_ms / s.ms)
        assert s.cosine > 0.99
    table = speed.table(found)
    assert table.count("\n| small |") == len(ways)
    assert speed.machine() in table


def test_measure__what_takes_no_pictures(tmp_path: Path) -> None:
    folder = real_families().make("minilm", tmp_path)
    with pytest.raises(EmbedderError, match="only the speed of those that take pictures is measured"):
        speed.measure([str(folder)], Settings(), tmp_path)


def test_bench__by_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_PICTURES", 2)
    saved(tmp_path, "resnet")
    asked = ["--embedder", str(tmp_path), "--repeat", "1", "--json"]
    shown = CliRunner().invoke(bench.command, asked, env={"LOOKALIKE_INFERENCE": "torch"})
    assert [row["inference"] for row in json.loads(shown.output)["speeds"]] == ["torch"]
