"""Words in, vectors out: captions and file names by a text model, or what a picture is searched with.

The tokenizer is read from its tokenizer.json, for which the package `tokenizers`, part of transformers, is enough. A
model that has only a sentencepiece file needs the package sentencepiece as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from lookalike.errors import EmbedderError
from workers.weights import load, load_model

Vectors = NDArray[np.float32]  # (n, d)

_BATCH = 16


class TextEmbedder:
    """A transformers model of words; of one that embeds pictures or sound too, the half that takes words."""

    takes = "text"

    def __init__(self, name: str, folder: Path, device: torch.device, pooling: str = "") -> None:
        """pooling: mean (of the words, as sentence models are trained; the default), cls or pooled."""
        self.name = name
        self._device = device
        self._pooling = pooling or "mean"
        self._tokenizer = load(name, folder, transformers.AutoTokenizer)
        model, missing = load_model(name, folder)
        if self._pooling == "pooled" and any("pooler" in key for key in missing):
            raise EmbedderError(f"embedder {name} lacks the weights of its pooler; choose #mean or #cls")
        if self._pooling == "sum":
            raise EmbedderError(f"embedder {name}: a sum grows with the number of words; choose #mean, #cls or #pooled")
        self._shared = getattr(model, "get_text_features", None)
        self._model = model.to(device)
        config = getattr(model.config, "text_config", model.config)
        self._most = min(int(getattr(config, "max_position_embeddings", 512)), 512)
        # SigLIP was trained on words in lower case, always filled up to the same number
        self._siglip = str(model.config.model_type).startswith("siglip")
        self.dim = int(self.embed(["a"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32, finite, not normalised. Raises EmbedderError where the model gives something else."""
        if not len(texts):
            return np.empty((0, self.dim), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")  # little is filled up, so
        vectors = np.concatenate(
            [self._vectors([texts[i] for i in order[at : at + _BATCH]]) for at in range(0, len(order), _BATCH)]
        )
        if not np.isfinite(vectors).all():
            raise EmbedderError(f"{self.name} gave NaN or infinity for a text: its weights are damaged")
        placed = np.empty_like(vectors)
        placed[order] = vectors
        return placed

    embed_text = embed

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        if self._siglip:
            texts = [text.lower() for text in texts]
        inputs = self._tokenizer(
            list(texts),
            padding="max_length" if self._siglip else True,
            truncation=True,
            max_length=self._most,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            output: Any = (self._shared or self._model)(**inputs)
            if isinstance(output, torch.Tensor):
                pooled = output
            elif self._shared or self._pooling == "pooled":
                pooled = output.pooler_output
            elif self._pooling == "cls":
                pooled = output.last_hidden_state[:, 0]
            else:
                share = inputs["attention_mask"][..., None].float()
                pooled = (output.last_hidden_state.float() * share).sum(dim=1) / share.sum(dim=1).clamp(min=1)
            vectors: Vectors = pooled.float().cpu().numpy()
        return vectors
