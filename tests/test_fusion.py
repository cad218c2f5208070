"""Fusion: layers put together give the same numbers, and are indeed put together."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tests.models import FAMILIES
from workers.fusion import _Convolution, _Linear, fold, fuse

SIGLIP = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}


def siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP, image_size=64, patch_size=16))


def mobilenet():
    return transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.25))


def convnext():
    model = FAMILIES["convnext"][0]()
    for block in model.modules():
        if hasattr(block, "layer_scale_parameter"):
            nn.init.uniform_(block.layer_scale_parameter, 0.5, 2)  # a millionth at first, as if nothing came of it
    return model


def convnextv2():
    config = transformers.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    model = transformers.ConvNextV2Model(config)
    for block in model.modules():
        if hasattr(block, "grn"):
            nn.init.uniform_(block.grn.weight, 0.5, 2)  # 0 at first
            nn.init.uniform_(block.grn.bias, 0.5, 2)
    return model


MADE = {**{name: family[0] for name, family in FAMILIES.items() if name != "clip"}, "convnext": convnext}


@pytest.mark.parametrize(
    "make", [*MADE.values(), convnextv2, siglip, mobilenet], ids=[*MADE, "convnextv2", "siglip", "mobilenet"]
)
def test_fuse__gives_the_same_numbers_at_any_batch_size(make):
    torch.manual_seed(1)
    model, pixels = make().eval(), torch.randn(5, 3, 64, 64)
    if model.config.model_type == "vit_mae":
        model.config.mask_ratio = 0.0
        model.embeddings.random_masking = lambda patches, noise=None: (patches, noise, noise)
    with torch.inference_mode():
        true = model(pixels)
        fold(model)
        fuse(model, pixels[:4])
        for size in (1, 4, 5):
            made = model(pixels[:size])
            for name in {"last_hidden_state", "pooler_output"} & set(made):
                torch.testing.assert_close(made[name], true[name][:size], rtol=1e-3, atol=1e-4)
    assert any(isinstance(module, _Convolution) for module in model.modules())
    assert not any(type(module) in (nn.Linear, nn.Conv2d) for module in model.modules())


class Tangled(nn.Module):
    """An activation after two layers, after a sum, after a layer that is used twice, after what is added in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(8, 8) for _ in range(5))
        self.shared, self.of_sum, self.of_c, self.of_d, self.of_e = (nn.SiLU() for _ in range(5))

    def forward(self, x):
        x = self.shared(self.b(self.shared(self.a(x))))
        x = self.of_sum(x + 1) + self.of_c(self.c(x)) + self.c(x)
        y = self.d(x)
        y += x
        return self.of_e(self.e(self.of_d(y)))


def test_fuse__only_what_follows_and_only_once():
    torch.manual_seed(1)
    model, x = Tangled(), torch.randn(3, 8)
    with torch.inference_mode():
        true = model(x)
        fuse(model, x)
        torch.testing.assert_close(model(x), true)
    left = {name for name, module in model.named_children() if isinstance(module, nn.SiLU)}
    assert left == {"shared", "of_sum", "of_c", "of_d"}
    assert isinstance(model.d, _Linear)


@pytest.mark.parametrize(
    "conv",
    [
        pytest.param(nn.Conv2d(4, 4, 2, padding="same"), marks=pytest.mark.filterwarnings("ignore:Using padding")),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2),
        nn.Conv2d(4, 4, 3, padding="valid"),
    ],
)
def test_fuse__odd_paddings(conv):
    model, maps = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1)), torch.randn(2, 4, 9, 7)
    with torch.inference_mode():
        true = model(maps)
        fuse(model, maps)
        torch.testing.assert_close(model(maps), true)


def test_fuse__where_torch_has_no_onednn(monkeypatch):
    monkeypatch.delattr(torch.ops.mkldnn, "_linear_pointwise")
    monkeypatch.setattr(type(torch.ops.mkldnn), "__getattr__", lambda self, name: (_ for _ in ()).throw(AttributeError))
    model, x = nn.Sequential(nn.Linear(8, 8), nn.SiLU()), torch.randn(3, 8)
    fuse(model, x)
    assert isinstance(model[0], nn.Linear)
