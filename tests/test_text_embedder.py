"""Text: the vectors of plain transformers, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lookalike.errors import EmbedderError
from tests.models import cosines, real_families
from workers.embedders import open_embedder
from workers.text_embedder import TextEmbedder

TEXTS = ["a red fox in the snow", "fox", "", "two owls " * 20]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence model of its real size, 22.7 M parameters."""
    folder: Path = real_families().make("minilm", tmp_path_factory.mktemp("text"))
    return folder


@pytest.mark.parametrize("pooling", ["", "mean", "cls"])
def test_text__equals_plain_transformers(minilm: Path, pooling: str) -> None:
    spec = f"{minilm}#{pooling}" if pooling else str(minilm)
    embedder = open_embedder(spec, device="cpu", cache_dir=minilm)
    assert (embedder.takes, embedder.dim, embedder.name) == ("text", 384, spec)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    texts = [text for text in TEXTS if text]
    truth = []
    with torch.no_grad():
        for text in texts:  # alone, so that nothing is filled up
            tokens = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
            truth.append((tokens[0] if pooling == "cls" else tokens.mean(0)).numpy())
    assert cosines(embedder.embed(texts), np.stack(truth)).min() > 0.9999


def test_text__any_texts_in_any_batch(minilm: Path) -> None:
    embedder = open_embedder(str(minilm), device="cpu", cache_dir=minilm)
    many = embedder.embed(TEXTS * 10)
    assert many.shape == (40, 384)
    assert np.isfinite(many).all()
    assert np.abs(many[:4] - many[36:]).max() < 1e-4
    assert embedder.embed([]).shape == (0, 384)


def test_text__a_sum_is_refused(minilm: Path) -> None:
    with pytest.raises(EmbedderError, match="a sum grows with the number of words"):
        open_embedder(f"{minilm}#sum", device="cpu", cache_dir=minilm)


def test_text__siglip_is_in_lower_case_and_of_one_length(tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    text = {**sizes, "vocab_size": 99, "max_position_embeddings": 16, "projection_size": 48}
    vision = {**sizes, "image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(
        tmp_path
    )
    real_families().letters().save_pretrained(tmp_path)
    embedder = TextEmbedder("x", tmp_path, torch.device("cpu"))
    assert (embedder.embed(["A Fox"]) == embedder.embed(["a fox"])).all()
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(["a fox"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        truth = model.get_text_features(**inputs).pooler_output.numpy()
    assert cosines(embedder.embed(["a fox"]), truth).min() > 0.9999


def test_text__without_a_tokenizer(minilm: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    with pytest.raises(EmbedderError, match="has no preprocessor_config"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
