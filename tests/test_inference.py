"""Inference: each way gives the same vectors, or is not taken; OpenVINO reports to nobody."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from lookalike.errors import EmbedderError
from tests.models import FAMILIES, cosines, pictures, saved
from workers import inference
from workers.embedders import open_embedder
from workers.inference import batch_that_fits, own_pooling, power_of_two

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


@needs_openvino
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino__gives_what_torch_gives(family, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    saved(tmp_path, family)
    ways = [
        open_embedder(str(tmp_path), device="cpu", inference=way, cache_dir=tmp_path) for way in ("torch", "openvino")
    ]
    images = pictures(7)
    torchs, openvinos = (way.embed(images) for way in ways)
    assert cosines(torchs, openvinos).min() > 0.9999
    assert ways[1]._forward(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, ways[1].dim)  # another batch size


@needs_openvino
def test_openvino__same_picture_same_vector_from_many_threads(tmp_path):
    saved(tmp_path, "dinov2")
    embedder = open_embedder(str(tmp_path), device="cpu", inference="openvino", cache_dir=tmp_path)
    images = pictures(7)
    vectors = embedder.embed(images * 8)
    assert all((vectors[at : at + 7] == vectors[:7]).all() for at in range(0, 56, 7))


@needs_openvino
def test_openvino__what_it_cannot_run_torch_runs(tmp_path, monkeypatch):
    def refuse(encoder, sample):
        raise RuntimeError("long story\nno such operation")

    saved(tmp_path, "vit")
    monkeypatch.setattr(inference, "_converted", refuse)
    assert open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path).embed(pictures(1)).shape == (1, 48)
    with pytest.raises(EmbedderError, match=r"by OpenVINO \(no such operation\); set LOOKALIKE_INFERENCE to torch"):
        open_embedder(str(tmp_path), device="cpu", inference="openvino", cache_dir=tmp_path)


@needs_openvino
def test_openvino__reports_to_nobody():
    code = (
        "import sys; from workers.inference import _openvino; _openvino().Core();"
        "print([m for m, module in sys.modules.items() if m.startswith('openvino_telemetry') and module])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_openvino__that_is_not_installed(tmp_path, monkeypatch):
    saved(tmp_path, "vit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbedderError, match=r"is not installed: pip install 'lookalike\[openvino\]'"):
        open_embedder(str(tmp_path), device="cpu", inference="openvino", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no such primitive\nlong story"), AttributeError("'_Linear' object has no attribute 'in_features'")],
)
def test_forward__that_cannot_be_fused(error, tmp_path, monkeypatch):
    def fail(encoder, batch):
        raise error

    saved(tmp_path, "vit")
    images = pictures(3)
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    true = open_embedder(str(tmp_path), device="cpu", inference="torch", cache_dir=tmp_path).embed(images)
    monkeypatch.setattr(inference, "fuse", fail)
    plain = open_embedder(str(tmp_path), device="cpu", inference="torch", cache_dir=tmp_path).embed(images)
    assert cosines(plain, true).min() > 0.9999


@pytest.mark.parametrize("way", ["torch", "auto"])
def test_forward__that_loses_precision_is_not_taken(way, tmp_path, monkeypatch):
    saved(tmp_path, "vit")
    images = pictures(3)
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    true = open_embedder(str(tmp_path), device="cpu", inference="torch", cache_dir=tmp_path).embed(images)
    monkeypatch.setattr(inference, "_alike", lambda a, b: False)
    assert (
        open_embedder(str(tmp_path), device="cpu", inference=way, cache_dir=tmp_path).embed(images) - true
    ).max() < 1e-4


@pytest.mark.parametrize(
    ("model_type", "missing", "pooling"),
    [
        ("vit_mae", set(), "sum"),
        ("vit", set(), "cls"),
        ("beit", {"pooler.layernorm.weight"}, "cls"),
        ("dinov2", set(), "pooled"),
    ],
)
def test_pooling__of_its_own(model_type, missing, pooling):
    assert own_pooling(model_type, missing) == pooling


@pytest.mark.parametrize(
    ("number", "most", "expected"), [(0, 256, 1), (1, 256, 1), (7, 256, 4), (64, 256, 64), (9999, 256, 256)]
)
def test_batch__power_of_two(number, most, expected):
    assert power_of_two(number, most) == expected


def test_batch__on_a_gpu_is_what_half_of_its_free_memory_takes(monkeypatch):
    """No GPU here: torch's answers are made up. 8 pictures take 800 MB of the 10 GB that are free."""
    taken = iter([100 << 20])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(taken))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 900 << 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000 << 20, 80_000 << 20))
    shapes = []
    fits = batch_that_fits(lambda batch: shapes.append(batch.shape), np.zeros((1, 4, 4, 3)), torch.device("cuda"))
    assert (fits, shapes) == (32, [(8, 4, 4, 3)])
