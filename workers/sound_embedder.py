"""Sound in, vectors out, by a transformers model that hears."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from lookalike.errors import EmbedderError
from workers.text_embedder import TextEmbedder
from workers.weights import load, load_model

Sound = NDArray[np.float32]  # (samples,) mono, -1..1
Vectors = NDArray[np.float32]  # (n, d)

#: shorter sounds are filled up with silence: models have a shortest that they take
_LEAST_S = 1.0


class SoundEmbedder:
    """A transformers model of sound with its feature extractor: AST, CLAP, wav2vec 2.0, HuBERT, WavLM, Whisper …"""

    takes = "sound"

    def __init__(self, name: str, folder: Path, device: torch.device, pooling: str = "") -> None:
        """pooling: pooled (where the model has a vector for the whole) or mean over time (elsewhere the default)."""
        self.name = name
        self._folder, self._device, self._pooling = folder, device, pooling
        if pooling not in ("", "pooled", "mean"):
            raise EmbedderError(f"embedder {name}: a model of sound takes #pooled or #mean, got #{pooling}")
        self._extractor = load(name, folder, transformers.AutoFeatureExtractor)
        self.rate_hz = int(self._extractor.sampling_rate)
        self._model = load_model(name, folder)[0].to(device)
        if hasattr(self._model, "get_audio_features"):  # sound and words (CLAP): the vector that both share
            self._call = self._model.get_audio_features
        else:  # of a model that also writes down what it hears (Whisper), the half that hears
            self._call = self._model.get_encoder() if self._model.config.is_encoder_decoder else self._model
        self.dim = int(self.embed([np.zeros(self.rate_hz, np.float32)]).shape[1])

    def embed(self, sounds: Sequence[Sound]) -> Vectors:
        """(n, dim) float32, finite, not normalised: (samples,) float32 mono at `rate_hz`, of any length.

        One at a time: some of these models see what a batch is filled up with.
        """
        vectors = [self._vector(sound) for sound in sounds]
        if not vectors:
            return np.empty((0, self.dim), np.float32)
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise EmbedderError(f"{self.name} gave NaN or infinity for sound {wrong[0]} of {len(sounds)}")
        return np.stack(vectors)

    def embed_text(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32: words in the space of the sounds. Raises EmbedderError where the model has none."""
        return self._words.embed(texts)

    @functools.cached_property
    def _words(self) -> TextEmbedder:
        return words_of(self.name, self._folder, self._device, self._model)

    def _vector(self, sound: Sound) -> Vectors:
        if sound.ndim != 1 or sound.dtype != np.float32:
            raise ValueError(f"a sound must be (samples,) float32, got {sound.shape} {sound.dtype}")
        sound = np.pad(sound, (0, max(0, int(self.rate_hz * _LEAST_S) - len(sound))))
        inputs = self._extractor([sound], sampling_rate=self.rate_hz, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            output: Any = self._call(**inputs)
            if isinstance(output, torch.Tensor):
                pooled = output
            elif self._pooling != "mean" and getattr(output, "pooler_output", None) is not None:
                pooled = output.pooler_output
            elif self._pooling == "pooled":
                raise EmbedderError(f"{self.name} gives no vector for the whole; choose #mean instead of #pooled")
            else:
                pooled = output.last_hidden_state.float().mean(dim=1)
            vector: Vectors = pooled[0].float().cpu().numpy()
        return vector


def words_of(name: str, folder: Path, device: torch.device, model: Any) -> TextEmbedder:
    """The half of a model that takes words. Raises EmbedderError where it has none."""
    if not hasattr(model, "get_text_features"):
        raise EmbedderError(
            f"{name} does not embed words; choose a model that shares one space with them, such as "
            "google/siglip2-base-patch16-224 for pictures or laion/clap-htsat-unfused for sound"
        )
    return TextEmbedder(name, folder, device)
