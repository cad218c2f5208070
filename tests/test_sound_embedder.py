"""Sound: the vectors of plain transformers for each kind of model that hears."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lookalike.errors import EmbedderError
from tests.models import cosines, real_families
from workers.embedders import open_embedder

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def ast() -> Any:
    return transformers.ASTModel(transformers.ASTConfig(**TINY))


def wav2vec2() -> Any:
    return transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(**TINY, conv_dim=[16] * 7, num_conv_pos_embeddings=16)
    )


def whisper() -> Any:
    sizes = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": 99, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return transformers.WhisperModel(transformers.WhisperConfig(**sizes, **heads, **tokens))


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[Any, Any], Any]]] = {
    "ast": (ast, transformers.ASTFeatureExtractor, lambda model, i: model(**i).pooler_output),
    "wav2vec2": (
        wav2vec2,
        transformers.Wav2Vec2FeatureExtractor,
        lambda model, i: model(**i).last_hidden_state.mean(1),
    ),
    "whisper": (
        whisper,
        transformers.WhisperFeatureExtractor,
        lambda model, i: model.encoder(**i).last_hidden_state.mean(1),
    ),
}


def sounds(rate: int = 16000) -> list[np.ndarray]:
    """A tone, noise, a short click, silence."""
    t = np.arange(3 * rate) / rate
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * rate)
    made = [0.3 * np.sin(2 * np.pi * 440 * t), noise, np.ones(30), np.zeros(rate)]
    return [np.asarray(sound, np.float32) for sound in made]


@pytest.mark.parametrize("family", FAMILIES)
def test_sound__equals_plain_transformers(family: str, tmp_path: Path) -> None:
    make, extractor, pool = FAMILIES[family]
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    extractor().save_pretrained(tmp_path)
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    assert (embedder.takes, embedder.dim, embedder.rate_hz) == ("sound", 48, 16000)  # type: ignore[attr-defined]
    model, extract = transformers.AutoModel.from_pretrained(tmp_path).eval(), extractor()
    truth = []
    with torch.no_grad():
        for sound in sounds()[:2]:
            truth.append(pool(model, extract([sound], sampling_rate=16000, return_tensors="pt"))[0].numpy())
    vectors = embedder.embed(sounds())
    assert vectors.shape == (4, 48)
    assert cosines(vectors[:2], np.stack(truth)).min() > 0.9999
    assert (embedder.embed(sounds()[::-1])[::-1] == vectors).all()
    assert embedder.embed([]).shape == (0, 48)


def test_sound__clap_shares_its_space_with_words(tmp_path: Path) -> None:
    """At its real size, 28 M parameters that hear; its extractor cuts sounds above 10 s at random, so ours are not."""
    folder = real_families().make("clap", tmp_path)
    embedder = open_embedder(str(folder), device="cpu", cache_dir=tmp_path)
    made = sounds(48000)[:2]
    vectors = embedder.embed(made)
    assert (embedder.dim, embedder.embed_text(["a dog barks"]).shape) == (512, (1, 512))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    extract = transformers.AutoFeatureExtractor.from_pretrained(folder)
    with torch.no_grad():
        inputs = [extract([sound], sampling_rate=48000, return_tensors="pt") for sound in made]
        truth = [model.get_audio_features(**i).pooler_output[0].numpy() for i in inputs]
    assert cosines(vectors, np.stack(truth)).min() > 0.9999


def test_sound__what_is_none(tmp_path: Path) -> None:
    wav2vec2().save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"a sound must be \(samples,\) float32, got \(2, 5\) float64"):
        embedder.embed([np.zeros((2, 5))])
    with pytest.raises(EmbedderError, match="does not embed words"):
        embedder.embed_text(["x"])
    for pooling, sentence in [("cls", "takes #pooled or #mean, got #cls"), ("pooled", "gives no vector for the whole")]:
        with pytest.raises(EmbedderError, match=sentence):
            open_embedder(f"{tmp_path}#{pooling}", device="cpu", cache_dir=tmp_path)


def test_sound__damaged_settings(tmp_path: Path) -> None:
    wav2vec2().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(EmbedderError, match=r"preprocessor_config\.json cannot be read"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16000, "x": 1}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(EmbedderError, match="cannot be loaded"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
