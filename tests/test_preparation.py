"""Preparation: what the model's own image processor does, faster, or that itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers

from lookalike.errors import EmbedderError
from tests.models import cosines, pictures, plain, real_families, saved
from workers import inference
from workers.embedders import open_embedder
from workers.preparation import Preparation, probe_picture
from workers.weights import load_image_processor

RESAMPLINGS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


@pytest.mark.parametrize("resample", RESAMPLINGS.values(), ids=RESAMPLINGS)
@pytest.mark.parametrize(
    "geometry",
    [
        {"size": {"height": 48, "width": 64}},
        {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
    ],
    ids=["squashed", "cropped"],
)
def test_preparation__gives_what_the_processor_gives(resample, geometry):
    processor = transformers.CLIPImageProcessorPil(resample=resample, **({"do_center_crop": False} | geometry))
    preparation = Preparation("x", processor)
    for picture in pictures(4):
        fast = preparation(picture)
        assert fast.dtype == np.uint8  # it does not fall back on the processor
        true = processor(images=[picture], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        # a step of 255 here and there: Pillow rounds between its two passes
        assert np.abs(fast * preparation.scale + preparation.shift - true).max() <= 2.1 / 255 / 0.26


@pytest.mark.parametrize("name", ["efficientnet-b0", "dinov2-small", "dinov3-vits16", "convnext-tiny", "siglip2-base"])
def test_preparation__of_the_families_is_the_fast_one(name, tmp_path):
    """Their preprocessing as it stands on the hub. DINOv3's processor needs torchvision, which is not here."""
    settings = real_families().FAMILIES[name].processor
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    preparation = Preparation(name, load_image_processor(name, tmp_path))
    assert preparation(probe_picture()).dtype == np.uint8
    assert preparation.input_px == (224, 224)


def test_preparation__of_dinov3_is_what_its_settings_say(tmp_path):
    settings = real_families().FAMILIES["dinov3-vits16"].processor
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
    grey = np.full((300, 400, 3), 51, np.uint8)
    preparation = Preparation("x", load_image_processor("x", tmp_path))
    seen = preparation(grey) * preparation.scale + preparation.shift
    expected = (51 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert np.abs(seen - expected).max() < 1e-4


def test_preparation__pictures_of_different_sizes_are_refused():
    processor = transformers.ViTImageProcessorPil(do_resize=False)
    with pytest.raises(EmbedderError, match="gives pictures of different sizes"):
        Preparation("x", processor)


def test_family__unknown_preparation_is_left_to_the_processor(tmp_path, monkeypatch):
    """A processor that pads: not what we do ourselves, so it is used itself."""
    pool, _ = saved(tmp_path, "vit")
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings |= {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 40, "width": 40},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
    }
    path.write_text(json.dumps(settings))
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    images = pictures(3)
    vectors = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path).embed(images)
    assert cosines(vectors, plain(tmp_path, images, pool)).min() > 0.99999


def test_family__strip_does_not_blow_up(tmp_path):
    saved(tmp_path, "clip")
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    strip = np.random.default_rng(0).integers(0, 255, (1, 2_000_000, 3)).astype(np.uint8)
    assert np.isfinite(embedder.embed([strip])).all()
