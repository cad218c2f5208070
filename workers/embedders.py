"""Pictures in, vectors out, by any transformers vision model, a function of the user's, or vectors made elsewhere.

The door of the stage. A model is a Hugging Face id, a folder, or `efficientnet-lite0`, whose weights come with a
Python package, so that nothing has to be reached over the network. Models of sound and of words open by the same
function; `takes` says what each is to be given.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import EmbedderError
from lookalike.models import ENTRY_POINTS, LITE0, VECTOR_FILES, Spec, functions, parse_spec
from lookalike.vectors import VectorFile
from workers.inference import CPU_BATCH, Encoder, batch_that_fits, open_forward, out_of_memory
from workers.preparation import Picture, Preparation, probe_picture
from workers.sound_embedder import SoundEmbedder, words_of
from workers.text_embedder import TextEmbedder
from workers.weights import load_image_processor, load_model, model_folder, takes

Vectors = NDArray[np.float32]  # (n, d)

_log = logging.getLogger(__name__)


class Embedder(Protocol):
    """The seam: what the other stages know of a model."""

    @property
    def name(self) -> str:
        """What it was opened by; vectors of two names are never compared."""

    @property
    def takes(self) -> str:
        """`pictures`, `sound`, `text`, or `keyframes`: then it looks up what was made elsewhere."""

    @property
    def dim(self) -> int: ...

    def embed(self, images: Sequence[Any], /) -> Vectors:
        """(n, dim) float32, finite, not normalised, in order.

        Of pictures (h, w, 3) uint8 RGB of any size, of sounds (samples,) float32 mono at its `rate_hz`, of texts str.
        """

    def embed_text(self, texts: Sequence[str], /) -> Vectors:
        """(n, dim) float32: words in the space of the pictures. Raises EmbedderError where the model has none."""


def open_embedder(
    spec: str, *, device: str = "auto", batch_size: int = 0, inference: str = "auto", cache_dir: Path
) -> Embedder:
    """A model that is ready to use, loaded once and kept warm.

    spec: `NAME[@REVISION][#POOLING]`: `efficientnet-lite0`, a Hugging Face id, or a folder with config.json,
    model.safetensors and preprocessor_config.json; the name of an entry point; or a file of vectors. device: auto (CUDA
    where there is one), cpu, cuda, cuda:1, … batch_size 0: found by itself. inference: auto (OpenVINO on a CPU, where
    it is installed), torch, openvino. cache_dir is where `efficientnet-lite0` is unpacked as such a folder; models of
    the hub go to its own cache.

    Raises EmbedderError where the model cannot be had or used, with what to do.
    """
    place = _device(device)
    if spec.endswith(VECTOR_FILES):
        return VectorsMadeElsewhere(spec, VectorFile.read(Path(spec).expanduser()))
    parsed = parse_spec(spec)
    if parsed.name != LITE0 and (point := functions().get(parsed.name)):
        try:
            function = point.load()
        except Exception as error:  # the user's code
            raise EmbedderError(f"embedder {spec} cannot be loaded from {point.value}: {error}") from error
        return FunctionEmbedder(spec, function)
    folder = model_folder(parsed, cache_dir)
    match takes(spec, folder):
        case "sound":
            return SoundEmbedder(spec, folder, place, parsed.pooling)
        case "text":
            return TextEmbedder(spec, folder, place, parsed.pooling)
    return PictureEmbedder(spec, folder, place, batch_size, parsed.pooling, inference)


class PictureEmbedder:
    """A transformers model with its image processor.

    The same picture always gives the same vector, whatever the pictures beside it: every batch has the same shape, the
    last one being filled up. Across batch sizes and machines vectors agree to bfloat16's precision (1e-2 relative).
    """

    takes = "pictures"

    def __init__(
        self,
        name: str,
        folder: Path,
        device: torch.device,
        batch_size: int = 0,
        pooling: str = "",
        inference: str = "auto",
    ) -> None:
        self.name = name
        self._folder, self._device = folder, device
        # CPU: each core has batches of its own. Sharing one batch among cores, torch waits for the slowest at each
        # layer, spinning: on 2 busy cores 50 ms of CPU time per picture instead of 16. CUDA: they prepare, one runs.
        self._threads = torch.get_num_threads()
        self._prepare = Preparation(name, load_image_processor(name, folder))
        self.input_px = self._prepare.input_px
        sample = self._prepare(probe_picture())[None]

        def load() -> Encoder:
            model, missing = load_model(name, folder)
            return Encoder(model, pooling, missing, self._prepare.scale, self._prepare.shift)

        with self._pool() as pool:
            opening = pool.submit(
                lambda: open_forward(
                    name,
                    load,
                    sample,
                    device,
                    batch_size=batch_size or CPU_BATCH,
                    inference=inference,
                    streams=self._threads,
                )
            )
            self._forward, self.dim = opening.result()
            self.batch_size = batch_size or pool.submit(batch_that_fits, self._forward, sample, device).result()

    def embed(self, images: Sequence[Picture], /) -> Vectors:
        """See Embedder. Raises EmbedderError where not even one picture fits into memory or a vector is not finite."""
        check_pictures(images)
        if not len(images):
            return np.empty((0, self.dim), np.float32)
        batches = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        with self._pool() as pool:
            if self._device.type == "cuda":  # this thread keeps the GPU busy while others prepare what comes next
                prepared = pool.map(self._prepared, batches)
                vectors = np.concatenate([self._vectors(batch) for batch in prepared])
            else:
                vectors = np.concatenate(list(pool.map(lambda batch: self._vectors(self._prepared(batch)), batches)))
        return check_vectors(self.name, vectors)

    def embed_text(self, texts: Sequence[str], /) -> Vectors:
        """See Embedder."""
        return self._words.embed(texts)

    @functools.cached_property
    def _words(self) -> TextEmbedder:
        return words_of(self.name, self._folder, self._device, load_model(self.name, self._folder)[0])

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))

    def _prepared(self, images: Sequence[Picture]) -> NDArray[Any]:
        return np.stack([self._prepare(image) for image in images])

    def _vectors(self, batch: NDArray[Any]) -> Vectors:
        """Vectors of one batch; where memory does not suffice, batches are half as large from now on."""
        size = self.batch_size
        if len(batch) > size:
            return np.concatenate([self._vectors(batch[at : at + size]) for at in range(0, len(batch), size)])
        try:
            return self._forward(np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]))[
                : len(batch)
            ]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
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
        return self._vectors(batch)


class EagerEmbedder:
    """What plain transformers gives, one picture at a time in float32: for measuring against."""

    def __init__(self, spec: Spec, cache_dir: Path) -> None:
        folder = model_folder(spec, cache_dir)
        self._processor = load_image_processor(spec.name, folder)
        model, missing = load_model(spec.name, folder)
        # the processor has seen to the brightness
        self._encoder = Encoder(model, spec.pooling, missing, np.ones(3), np.zeros(3))

    def embed(self, images: Sequence[Picture]) -> Vectors:
        """(n, d) float32, on one thread."""
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return np.concatenate(list(pool.map(self._vector, images)))

    def _vector(self, image: Picture) -> Vectors:
        inputs = self._processor(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            vector: Vectors = self._encoder(inputs.permute(0, 2, 3, 1)).numpy()
        return vector


class FunctionEmbedder:
    """A function of the user's: pictures, each (h, w, 3) uint8 RGB, to (n, d) of any numbers."""

    takes = "pictures"

    def __init__(self, name: str, function: Callable[[Sequence[Picture]], Any]) -> None:
        """Tries the function on a picture. Raises EmbedderError where it is none or gives no vector."""
        self.name = name
        if not callable(function):
            raise EmbedderError(f"embedder {name}: its entry point must be a function of pictures, got {function!r}")
        self._function = function
        self.dim = 0
        self.dim = int(self.embed([probe_picture()]).shape[1])

    def embed(self, images: Sequence[Picture], /) -> Vectors:
        """See Embedder. Raises EmbedderError where the function gives something else than one vector per picture."""
        check_pictures(images)
        if not len(images):
            return np.empty((0, self.dim), np.float32)
        try:
            vectors = np.asarray(self._function(images), np.float32)
        except Exception as error:  # the user's code
            raise EmbedderError(f"embedder {self.name} failed: {type(error).__name__}: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(images) or self.dim not in (0, vectors.shape[1]):
            raise EmbedderError(
                f"embedder {self.name} must give ({len(images)}, {self.dim or 'd'}) for {len(images)} pictures, it "
                f"gave {vectors.shape}"
            )
        return check_vectors(self.name, vectors)

    def embed_text(self, texts: Sequence[str], /) -> Vectors:
        raise EmbedderError(f"{self.name}, a function of pictures ({ENTRY_POINTS}), does not embed words")


class VectorsMadeElsewhere:
    """A file of vectors: it is not shown anything, it is asked by file, task and time."""

    takes = "keyframes"

    def __init__(self, name: str, file: VectorFile) -> None:
        self.name, self.file, self.dim = name, file, file.vectors.shape[1]

    def embed(self, images: Sequence[Any], /) -> Vectors:
        raise EmbedderError(f"{self.name} holds vectors that were made elsewhere; it cannot embed new pictures")

    def embed_text(self, texts: Sequence[str], /) -> Vectors:
        raise EmbedderError(f"{self.name} holds vectors that were made elsewhere; it cannot embed words")


def check_pictures(images: Sequence[Picture]) -> None:
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"a picture must be (h, w, 3) uint8, got {image.shape} {image.dtype}")


def check_vectors(name: str, vectors: Vectors) -> Vectors:
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise EmbedderError(
            f"{name} gave NaN or infinity for picture {wrong[0]} of {len(vectors)}: its weights are damaged or "
            "it does not bear bfloat16; choose another model"
        )
    return vectors


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise EmbedderError(f"LOOKALIKE_DEVICE must be auto, cpu, cuda or cuda:<number>, got {device!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise EmbedderError(
            f"LOOKALIKE_DEVICE is {device}, but torch sees {torch.cuda.device_count()} CUDA devices here; "
            "set it to auto or cpu, or install a CUDA build of torch"
        )
    return place
