"""The families of embedding models at their real size, with random weights: for speed and for the code path.

    python benchmarks/families.py FOLDER [FAMILY...]

makes a folder for each, in which it looks like what `save_pretrained` leaves; `lookalike bench --embedder` takes them.
Random weights tell nothing of quality. What takes words gets a small tokenizer that knows letters only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
SQUASHED = {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2}
CROPPED = {"do_resize": True, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3}
PLAIN = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


@dataclass(frozen=True)
class Family:
    card: str  # the name in lookalike.models.CARDS
    model: Callable[[], Any]
    processor: dict[str, Any] | None  # preprocessor_config.json, as the hub has it
    words: bool = False


def dinov2(size: int, heads: int) -> Any:
    config = transformers.Dinov2Config(hidden_size=size, num_attention_heads=heads, image_size=518, patch_size=14)
    return transformers.Dinov2Model(config)


FAMILIES = {
    "efficientnet-b0": Family(
        "google/efficientnet-b0",
        lambda: transformers.EfficientNetModel(
            transformers.EfficientNetConfig(
                image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280
            )
        ),
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "do_center_crop": False,
            "do_resize": True,
            "include_top": True,
            "size": {"height": 224, "width": 224},
            "resample": 0,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.47853944, 0.4732864, 0.47434163],
        },
    ),
    "vit-mae-base": Family(
        "facebook/vit-mae-base",
        lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig()),
        {"image_processor_type": "ViTImageProcessor", **SQUASHED, **IMAGENET},
    ),
    "dinov2-small": Family(
        "facebook/dinov2-small",
        lambda: dinov2(384, 6),
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **CROPPED, **IMAGENET},
    ),
    "dinov2-base": Family(
        "facebook/dinov2-base",
        lambda: dinov2(768, 12),
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **CROPPED, **IMAGENET},
    ),
    "dinov3-vits16": Family(
        "facebook/dinov3-vits16-pretrain-lvd1689m",
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                hidden_size=384,
                intermediate_size=1536,
                num_attention_heads=6,
                num_register_tokens=4,
                key_bias=False,
            )
        ),
        {"image_processor_type": "DINOv3ViTImageProcessorFast", **SQUASHED, **PLAIN, **IMAGENET},
    ),
    "vit-base": Family(
        "google/vit-base-patch16-224",
        lambda: transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False),
        {"image_processor_type": "ViTImageProcessor", **SQUASHED, **HALF},
    ),
    "convnext-tiny": Family(
        "facebook/convnext-tiny-224",
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig()),
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "resample": 3,
            **IMAGENET,
        },
    ),
    "convnextv2-tiny": Family(
        "facebook/convnextv2-tiny-1k-224",
        lambda: transformers.ConvNextV2Model(transformers.ConvNextV2Config()),
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "resample": 3,
            **IMAGENET,
        },
    ),
    "clip-vit-base-patch32": Family(
        "openai/clip-vit-base-patch32",
        lambda: transformers.CLIPModel(transformers.CLIPConfig()),
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, **CROPPED, **CLIP},
        words=True,
    ),
    "siglip2-base": Family(
        "google/siglip2-base-patch16-224",
        # its real vocabulary of 256,000 would be 393 MB of numbers that nothing looks up
        lambda: transformers.SiglipModel(
            transformers.SiglipConfig(
                vision_config={"image_size": 224}, text_config={"vocab_size": 1000, "max_position_embeddings": 64}
            )
        ),
        {"image_processor_type": "SiglipImageProcessor", **SQUASHED, **PLAIN, **HALF},
        words=True,
    ),
    "ast": Family(
        "MIT/ast-finetuned-audioset-10-10-0.4593",
        lambda: transformers.ASTModel(transformers.ASTConfig()),
        {
            "feature_extractor_type": "ASTFeatureExtractor",
            "sampling_rate": 16000,
            "num_mel_bins": 128,
            "max_length": 1024,
        },
    ),
    "clap": Family(
        "laion/clap-htsat-unfused",
        lambda: transformers.ClapModel(
            transformers.ClapConfig(
                audio_config={"enable_fusion": False, "depths": [2, 2, 6, 2]},
                text_config={"vocab_size": 1000, "num_hidden_layers": 2},
            )
        ),
        {
            "feature_extractor_type": "ClapFeatureExtractor",
            "sampling_rate": 48000,
            "truncation": "rand_trunc",
            "padding": "repeatpad",
        },
        words=True,
    ),
    "wav2vec2-base": Family(
        "facebook/wav2vec2-base",
        lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()),
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True},
    ),
    "minilm": Family(
        "sentence-transformers/all-MiniLM-L6-v2",
        lambda: transformers.BertModel(
            transformers.BertConfig(
                hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
            )
        ),
        None,
        words=True,
    ),
}


def make(name: str, folder: Path) -> Path:
    """The folder `folder/name` with the family's model; one that is there is left as it is."""
    family, out = FAMILIES[name], folder / name
    if (out / "model.safetensors").is_file():
        return out
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    model = family.model()
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) and family.processor:
        _settle(model)
    model.save_pretrained(out)
    if family.processor is not None:
        (out / "preprocessor_config.json").write_text(json.dumps(family.processor))
    if family.words:
        letters().save_pretrained(out)
    return out


def _settle(model: Any) -> None:
    """The norms get to know some pictures, else the signal of random weights fades away."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.ones_(norm.weight)
        norm.momentum = 1.0
    if hasattr(model, "get_audio_features"):
        return
    with torch.no_grad():
        model.train()(pixel_values=torch.randn(4, 3, 224, 224))


def letters() -> Any:
    """A tokenizer that knows letters and digits, each of which it takes for a word."""
    known = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz0123456789 "]
    numbers = {letter: number for number, letter in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


if __name__ == "__main__":
    for chosen in sys.argv[2:] or FAMILIES:
        print(make(chosen, Path(sys.argv[1])))
