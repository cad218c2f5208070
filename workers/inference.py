"""A model made fast: the same vectors as it came with, in less time. Plain torch, or OpenVINO where that is installed.

What is done, measured with EfficientNet-Lite0 on one core with AVX-512 bf16, CPU time per picture: eager, one by one
20 ms; batch normalisation folded into the convolutions, squeeze-excites that do nothing left out, channels_last 14 ms;
bfloat16 as well 8 ms; 4 pictures at a time 5 ms; layers fused (`fusion.py`) 4 ms. Larger batches are slower again,
because their buffers no longer stay in the cache and are fetched from the system anew each time. What OpenVINO gives
stands in docs/models.md.

Each way proves at opening, on a sample, that it still gives the model's own vectors, or another one is taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lookalike.errors import EmbedderError
from workers.fusion import fold, fuse
from workers.weights import quiet

Vectors = NDArray[np.float32]  # (n, d)
Forward = Callable[[NDArray[Any]], Vectors]  # (b, h, w, 3) as prepared -> (b, d)

#: pictures at a time on a CPU, see atop
CPU_BATCH = 4
#: and at most on a GPU: whoever embeds has some 100 pictures in memory, and what is wanting is filled up
GPU_BATCH = 64
#: least cosine, on the sample, to what the model gives as it came
_ALIKE = 0.99

_log = logging.getLogger(__name__)


class Encoder(nn.Module):
    """(b, h, w, 3) as prepared -> (b, d) float32: brightness, the model, its pooling."""

    scale: torch.Tensor  # (3,)
    shift: torch.Tensor

    def __init__(self, model: Any, pooling: str, missing: set[str], scale: NDArray[Any], shift: NDArray[Any]) -> None:
        """pooling: one of lookalike.models.POOLINGS, or empty for the model's own. missing: weights it came without."""
        super().__init__()
        if model.config.model_type == "vit_mae":
            # it hides a random 75 % of the picture, also when not training, and shuffles the rest
            model.config.mask_ratio = 0.0
            model.embeddings.random_masking = lambda patches, noise=None: (patches, noise, noise)
        if isinstance(getattr(model, "pooler", None), nn.AvgPool2d):
            # EfficientNet's window is larger than its picture, which OpenVINO refuses; the mean is the same
            model.pooler = nn.AdaptiveAvgPool2d(1)
        if hasattr(model, "get_image_features"):
            model.text_model = None  # of SigLIP 2 that is 282 M of 375 M parameters
        self.model = model
        self.pooling = pooling or own_pooling(model.config.model_type, missing)
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)))
        self.register_buffer("shift", torch.from_numpy(shift.astype(np.float32)))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        # channels last in memory all the way
        pixels = (batch.float() * self.scale + self.shift).permute(0, 3, 1, 2).to(self.model.dtype)
        model = self.model
        if hasattr(model, "get_image_features"):  # pictures and words (CLIP, SigLIP): the vector that both share
            call = model.get_image_features if self.pooling == "pooled" else model.vision_model
        else:
            call = model
        px = (int(pixels.shape[2]), int(pixels.shape[3]))
        return pool(call(pixel_values=pixels), self.pooling, px, model.config).float()


def own_pooling(model_type: str, missing: set[str]) -> str:
    """The families that need a choice; all others give their own pooled output."""
    if model_type == "vit_mae":
        return "sum"
    # ViT's pooler was trained for its classifier only, and most checkpoints lack it: transformers then makes it of
    # random numbers. The class token is what is compared in the literature.
    return "cls" if model_type in ("vit", "deit") or any("pooler" in key for key in missing) else "pooled"


def pool(output: Any, pooling: str, px: tuple[int, int], config: Any) -> torch.Tensor:
    """A model's output -> (b, d). Raises EmbedderError for a pooling that it cannot be given."""
    if isinstance(output, torch.Tensor):
        return output
    tokens = output.last_hidden_state
    if pooling == "pooled":
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)  # type: ignore[no-any-return]
        return tokens.float().mean(dim=(2, 3)) if tokens.ndim == 4 else tokens[:, 0]  # type: ignore[no-any-return]
    if tokens.ndim == 4:
        if pooling != "mean":
            raise EmbedderError(f"{config.model_type} gives no tokens to take {pooling} of; leave #{pooling} out")
        return tokens.float().mean(dim=(2, 3))  # type: ignore[no-any-return]
    if pooling == "sum":
        return tokens.float().sum(dim=1)  # type: ignore[no-any-return]
    before = _tokens_before_patches(tokens.shape[1], px, config)
    if pooling == "mean":
        return tokens[:, before:].float().mean(dim=1)  # type: ignore[no-any-return]
    if not before:
        raise EmbedderError(f"{config.model_type} has no class token; choose #mean instead of #cls")
    return tokens[:, 0]  # type: ignore[no-any-return]


def _tokens_before_patches(count: int, px: tuple[int, int], config: Any) -> int:
    """The class token and the registers: what is more than the picture has patches."""
    config = getattr(config, "vision_config", config)
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int):
        return 0
    return max(0, int(count) - (int(px[0]) // size) * (int(px[1]) // size))


# --- the ways


def open_forward(
    name: str,
    load: Callable[[], Encoder],
    sample: NDArray[Any],
    device: torch.device,
    *,
    batch_size: int,
    inference: str,
    streams: int,
) -> tuple[Forward, int]:
    """The fastest way that gives the same vectors, and how long they are; for `streams` threads at once.

    load: gives the encoder as it came, anew each time. sample: (1, h, w, 3) as prepared. batch_size: how many pictures
    at a time there will mostly be. inference: auto, torch or openvino. Raises EmbedderError where openvino is asked for
    and cannot be had.
    """
    encoder = load().to(device)
    true = _plain(encoder, device)(sample)
    dim = int(true.shape[1])
    batch = np.repeat(sample, batch_size, axis=0)
    installed = importlib.util.find_spec("openvino") is not None
    if inference == "openvino" and (device.type != "cpu" or not installed):
        why = f"device is {device}" if installed else "is not installed: pip install 'lookalike[openvino]'"
        raise EmbedderError(f"LOOKALIKE_INFERENCE is openvino, which runs on the CPU only and {why}; or set it to auto")
    with torch.no_grad():
        fold(encoder.model)
    if inference != "torch" and installed and device.type == "cpu":
        for precision in ("bf16", "f32") if _has_bfloat16(device) else ("f32",):
            try:
                fast: Forward = _OpenVino(encoder, sample, precision, streams)
                if _alike(fast(batch)[:1], true):
                    return fast, dim
                reason = f"it loses precision in {precision}"
            except Exception as error:  # its converter raises what it likes
                reason = str(error).strip().split("\n")[-1]
            _log.info("%s: OpenVINO is not used: %s", name, reason)
        if inference == "openvino":
            raise EmbedderError(f"{name} cannot be run by OpenVINO ({reason}); set LOOKALIKE_INFERENCE to torch")
    with torch.inference_mode():
        if _has_bfloat16(device):
            encoder.model.to(torch.bfloat16)
        encoder.model.to(memory_format=torch.channels_last)
        try:
            if device.type == "cpu":
                fuse(encoder, torch.from_numpy(np.repeat(sample, CPU_BATCH, axis=0)))
            if _alike(_plain(encoder, device)(sample), true):
                return _plain(encoder, device), dim
            reason = "it loses precision"
        except Exception as error:  # oneDNN lacks something on this CPU, or the model looks for what a layer had
            reason = str(error).strip().split("\n")[0]
    _log.info("%s is not made fast, %s: used as it is, slower", name, reason)
    return _plain(load().to(device), device), dim


def out_of_memory(error: Exception) -> bool:
    # torch has a class for the GPU's memory; the CPU's allocators raise errors that say so
    said = ("can't allocate memory", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def batch_that_fits(forward: Forward, sample: NDArray[Any], device: torch.device) -> int:
    """How many pictures at a time are quickest: few on a CPU (see atop), on a GPU what half its free memory takes."""
    if device.type != "cuda":
        return CPU_BATCH
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward(np.repeat(sample, 8, axis=0))
    each = max(1, torch.cuda.max_memory_allocated(device) - before) // 8
    free, _ = torch.cuda.mem_get_info(device)
    return power_of_two(free // 2 // max(1, each), most=GPU_BATCH)


def power_of_two(number: int, most: int) -> int:
    """The largest power of two that is neither more than the number nor than `most`; at least 1."""
    return 1 << (min(max(1, number), most).bit_length() - 1)


def _plain(encoder: Encoder, device: torch.device) -> Forward:
    def forward(batch: NDArray[Any]) -> Vectors:
        with torch.inference_mode():
            pixels = torch.from_numpy(batch)
            if device.type == "cuda":  # pinned: the copy runs beside the computing
                pixels = pixels.pin_memory().to(device, non_blocking=True)
            vectors: Vectors = encoder(pixels).cpu().numpy()
        return vectors

    return forward


class _OpenVino:
    """A model compiled by OpenVINO for batches of one shape at a time."""

    def __init__(self, encoder: Encoder, sample: NDArray[Any], precision: str, streams: int) -> None:
        self._core = _openvino().Core()
        self._model = _converted(encoder, sample)
        self._options = {
            "INFERENCE_PRECISION_HINT": precision,
            # a stream for each thread that calls: one batch shared among cores waits for the slowest at each layer
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams),
            "ENABLE_CPU_PINNING": "NO",
        }
        self._streams = streams
        self._compiled: tuple[tuple[int, ...], queue.SimpleQueue[Any]] = ((), queue.SimpleQueue())
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[Any]) -> Vectors:
        requests = self._requests(batch.shape)
        request = requests.get()
        try:
            vectors: Vectors = next(iter(request.infer({0: batch}).values())).copy()
        finally:
            requests.put(request)
        return vectors

    def _requests(self, shape: tuple[int, ...]) -> queue.SimpleQueue[Any]:
        with self._lock:
            if self._compiled[0] != shape:
                self._model.reshape(list(shape))
                compiled = self._core.compile_model(self._model, "CPU", self._options)
                requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
                for _ in range(self._streams):
                    requests.put(compiled.create_infer_request())
                self._compiled = (shape, requests)
            return self._compiled[1]


def _openvino() -> Any:
    # merely importing it reports to Google Analytics, unless this part of it is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _converted(encoder: Encoder, sample: NDArray[Any]) -> Any:
    """The encoder as OpenVINO's model."""
    _openvino()
    frontends = importlib.import_module("openvino.frontend")
    decoders = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    with torch.no_grad(), quiet():
        traced = torch.jit.trace(encoder, torch.from_numpy(sample), check_trace=False)  # type: ignore[no-untyped-call]
        frontend = frontends.FrontEndManager().load_by_framework("pytorch")
        decoder = decoders.TorchScriptPythonDecoder(traced)  # held until all is converted, which it does not see to
        return frontend.convert(frontend.load(decoder))


def _alike(a: Vectors, b: Vectors) -> bool:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return bool((a * b).sum() >= _ALIKE * lengths)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(has for feature, has in torch.cpu.get_capabilities().items() if feature.endswith("_bf16"))
