"""Models to test with: pictures, what plain transformers makes of them, and every family, small and random."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
import transformers
from PIL import Image

from workers.weights import load_image_processor


def pictures(n=6, seed=0):
    """Pictures of many sizes with slopes, shapes and grain; some small, some upright."""
    random = np.random.default_rng(seed)
    sizes = [(720, 1280), (240, 320), (300, 200), (97, 131), (32, 48), (224, 224), (500, 333)]
    made = []
    for number in range(n):
        height, width = sizes[number % len(sizes)]
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[:] = np.linspace(0, 255, width)[None, :, None] * random.uniform(0.3, 1, 3)
        for _ in range(6):
            centre = random.integers(0, width), random.integers(0, height)
            cv2.circle(canvas, [int(c) for c in centre], max(3, height // 6), random.integers(0, 255, 3).tolist(), -1)
        grain = random.normal(0, 6, canvas.shape)
        made.append((canvas + grain).clip(0, 255).astype(np.uint8))
    return made


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def plain(folder, images, pool):
    """What transformers gives, one by one in float32."""
    processor = load_image_processor("plain", Path(folder))
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, small tensors mostly wait for each other
    try:
        with torch.no_grad():
            inputs = [processor(images=Image.fromarray(image), return_tensors="pt") for image in images]
            return np.stack([pool(model, i).numpy() for i in inputs])
    finally:
        torch.set_num_threads(threads)


VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SMALL = {"image_size": 64, "patch_size": 16}


def square(side=64):
    return transformers.ViTImageProcessorPil(size={"height": side, "width": side})


def cropped(edge=72, side=64):
    size, crop = {"shortest_edge": edge}, {"height": side, "width": side}
    return transformers.CLIPImageProcessorPil(size=size, crop_size=crop)


def class_token(model, inputs):
    return model(**inputs).last_hidden_state[0, 0]


def pooled(model, inputs):
    return model(**inputs).pooler_output[0].flatten()


def tokens_summed(model, inputs):
    model.config.mask_ratio = 0.0
    return model(**inputs).last_hidden_state[0].sum(0)


def image_features(model, inputs):
    return model.get_image_features(**inputs).pooler_output[0]


TEXT = {**VIT, "vocab_size": 99}
FAMILIES = {
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT, **SMALL)), square, class_token, 48),
    "vit_mae": (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT, **SMALL)), square, tokens_summed, 48),
    "dinov2": (
        lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16
            )
        ),
        cropped,
        pooled,
        48,
    ),
    "clip": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=TEXT, vision_config={**VIT, **SMALL}, projection_dim=24)
        ),
        cropped,
        image_features,
        24,
    ),
    "convnext": (
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)),
        lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875),
        pooled,
        32,
    ),
    "resnet": (
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])
        ),
        cropped,
        pooled,
        32,
    ),
    "efficientnet": (
        lambda: transformers.EfficientNetModel(
            transformers.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320)
        ),
        # as google/efficientnet-b0 ships: normalised twice
        lambda: transformers.EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, include_top=True),
        pooled,
        320,
    ),
}


def saved(folder, family):
    make_model, make_processor, pool, dim = FAMILIES[family]
    torch.manual_seed(1)
    model = make_model()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.ones_(norm.weight)
        norm.momentum = 1.0
    with torch.no_grad():
        if family in ("efficientnet", "resnet"):  # the norms get to know some pictures, else the signal fades away
            model.train()(pixel_values=torch.randn(8, 3, 64, 64))
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return pool, dim


def real_families() -> ModuleType:
    """The families at their real size: benchmarks/families.py, which is no package."""
    path = Path(__file__).parents[1] / "benchmarks" / "families.py"
    spec = importlib.util.spec_from_file_location("benchmarks.families", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
