"""Embedders: the vectors that plain transformers gives, faster, whatever the model, its size and what it takes.

Every family is held against transformers' own processor and model, one picture at a time in float32: small, and at its
real size with random weights. tests/models.py has what that is.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import transformers

from lookalike.errors import EmbedderError
from lookalike.models import CARDS
from tests.models import FAMILIES, SMALL, VIT, cosines, pictures, plain, real_families, saved, square
from workers import embedders, inference
from workers.embedders import open_embedder
from workers.weights import lite0_folder

PHOTOS = Path(__file__).parents[1] / "../shared/data/images/caltech20"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def lite0(cache):
    return open_embedder("efficientnet-lite0", device="cpu", cache_dir=cache)


# --- EfficientNet-Lite0 with its real weights


def test_lite0__says_what_it_is(lite0):
    assert (lite0.name, lite0.dim, lite0.input_px) == ("efficientnet-lite0", 1280, (224, 224))


def test_lite0__folder_is_loaded_like_any_other(cache, lite0):
    folder = lite0_folder(cache)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    images = pictures()
    other = open_embedder(str(folder), device="cpu", cache_dir=cache)
    assert (other.embed(images) == lite0.embed(images)).all()
    assert other.name == str(folder)


def test_lite0__equals_plain_transformers(cache, lite0):
    images = pictures(7)
    truth = plain(lite0_folder(cache), images, lambda model, i: model(**i).pooler_output[0])
    vectors = lite0.embed(images)
    assert vectors.dtype == np.float32
    assert vectors.shape == (7, 1280)
    assert cosines(vectors, truth).min() > 0.99


def test_lite0__float32_equals_plain_transformers_closely(cache, monkeypatch):
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    images = pictures(7)
    truth = plain(lite0_folder(cache), images, lambda model, i: model(**i).pooler_output[0])
    vectors = open_embedder("efficientnet-lite0", device="cpu", cache_dir=cache).embed(images)
    assert cosines(vectors, truth).min() > 0.9995


def test_lite0__same_picture_same_vector_in_any_batch(lite0):
    images = pictures(7)
    together = lite0.embed(images)
    alone = np.concatenate([lite0.embed([image]) for image in images])
    backwards = lite0.embed(images[::-1])[::-1]
    assert (together == alone).all()
    assert (together == backwards).all()


def test_lite0__other_batch_size_same_vectors_but_for_rounding(cache, lite0):
    images = pictures(5)
    others = open_embedder("efficientnet-lite0", device="cpu", batch_size=3, cache_dir=cache).embed(images)
    vectors = lite0.embed(images)
    assert np.linalg.norm(others - vectors, axis=1).max() < 1e-2 * np.linalg.norm(vectors, axis=1).min()


def test_lite0__views_and_read_only_pictures_are_taken(lite0):
    image = pictures(1)[0]
    frozen = image.copy()
    frozen.flags.writeable = False
    mirrored_twice = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    assert (lite0.embed([frozen, mirrored_twice]) == lite0.embed([image, image])).all()


def test_lite0__nothing_in_nothing_out(lite0):
    assert lite0.embed([]).shape == (0, 1280)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 4, 3), (1, 4000, 3), (4000, 2, 3)])
def test_lite0__odd_sizes(lite0, shape):
    assert np.isfinite(lite0.embed([np.full(shape, 77, np.uint8)])).all()


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_lite0__what_is_no_picture_is_refused(lite0, image):
    with pytest.raises(ValueError, match=r"must be \(h, w, 3\) uint8, got \(9, 9"):
        lite0.embed([image])


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos of Caltech-101 are not here")
def test_lite0__photos_are_nearest_to_photos_of_the_same_thing(lite0):
    files = sorted(PHOTOS.glob("*/*.jpg"))[::2]
    classes = np.array([file.parent.name for file in files])
    vectors = lite0.embed([cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    nearest = classes[np.argsort(-similarity, axis=1)[:, :5]]
    most = [max(set(row), key=list(row).count) for row in nearest]
    assert (most == classes).mean() > 0.95


# --- every family, small and random, against plain transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_family__equals_plain_transformers(family, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    pool, dim = saved(tmp_path, family)
    images = pictures(7)
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    assert (embedder.dim, embedder.input_px) == (dim, (64, 64))
    assert cosines(embedder.embed(images), plain(tmp_path, images, pool)).min() > 0.9995


@pytest.mark.parametrize("family", FAMILIES)
def test_family__fast_way_is_the_same_but_for_rounding(family, tmp_path):
    pool, _ = saved(tmp_path, family)
    images = pictures(7)
    vectors = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path).embed(images)
    assert cosines(vectors, plain(tmp_path, images, pool)).min() > 0.99


def test_family__vit_mae_hides_nothing(tmp_path):
    saved(tmp_path, "vit_mae")
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    image = pictures(1)
    assert (embedder.embed(image) == embedder.embed(image)).all()


def test_family__missing_pooler_is_not_made_up(tmp_path):
    """A checkpoint without a pooler: transformers fills it with random numbers, another vector at each start."""
    config = transformers.BeitConfig(**VIT, **SMALL, use_mean_pooling=True)
    model = transformers.BeitModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    square().save_pretrained(tmp_path)
    first, second = (open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path) for _ in range(2))
    assert (first.embed(pictures(2)) == second.embed(pictures(2))).all()


# --- the families at their real size


def first_token(model, inputs):
    return model(**inputs).last_hidden_state[0, 0]


def pooler(model, inputs):
    return model(**inputs).pooler_output[0].flatten()


def all_tokens(model, inputs):
    """As the article sums them, but of the whole picture: it has 75 % of it left out at random."""
    model.config.mask_ratio = 0.0
    patches = model.embeddings.patch_embeddings.num_patches
    return model(**inputs, noise=torch.arange(float(patches))[None]).last_hidden_state[0].sum(0)


def features(model, inputs):
    return model.get_image_features(**inputs).pooler_output[0]


REAL = {
    "efficientnet-b0": pooler,
    "vit-mae-base": all_tokens,
    "dinov2-small": pooler,
    "dinov3-vits16": pooler,
    "vit-base": first_token,
    "convnext-tiny": pooler,
    "clip-vit-base-patch32": features,
    "siglip2-base": features,
}


@pytest.fixture
def disk():
    """A folder that is gone right after the test: these models are large."""
    folder = Path(tempfile.mkdtemp(prefix="lookalike-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", REAL)
def test_real__equals_plain_transformers(name, disk, monkeypatch):
    families = real_families()
    folder = families.make(name, disk)
    images = pictures(2)
    truth = plain(folder, images, REAL[name])
    fast = open_embedder(str(folder), device="cpu", batch_size=1, cache_dir=disk)
    card = CARDS[families.FAMILIES[name].card]
    assert (fast.dim, truth.shape) == (card.dim, (2, card.dim))
    assert cosines(fast.embed(images), truth).min() >= 0.99
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    exact = open_embedder(str(folder), device="cpu", inference="torch", batch_size=1, cache_dir=disk)
    assert cosines(exact.embed(images), truth).min() >= 0.9999


# --- which vector


@pytest.mark.parametrize(
    ("family", "pooling", "expected"),
    [
        ("vit_mae", "sum", lambda tokens: tokens.sum(0)),
        ("vit_mae", "mean", lambda tokens: tokens[1:].mean(0)),
        ("vit_mae", "cls", lambda tokens: tokens[0]),
        ("dinov2", "mean", lambda tokens: tokens[1:].mean(0)),
        ("vit", "mean", lambda tokens: tokens[1:].mean(0)),
    ],
)
def test_pooling__as_asked_for(family, pooling, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_has_bfloat16", lambda device: False)
    saved(tmp_path, family)
    images = pictures(3)

    def truth(model, inputs):
        if family == "vit_mae":
            model.config.mask_ratio = 0.0
            inputs["noise"] = torch.arange(16.0)[None]
        return expected(model(**inputs).last_hidden_state[0])

    embedder = open_embedder(f"{tmp_path}#{pooling}", device="cpu", cache_dir=tmp_path)
    assert embedder.name == f"{tmp_path}#{pooling}"
    assert cosines(embedder.embed(images), plain(tmp_path, images, truth)).min() > 0.9995


def test_pooling__of_clip_is_of_its_picture_half(tmp_path):
    saved(tmp_path, "clip")
    embedder = open_embedder(f"{tmp_path}#mean", device="cpu", cache_dir=tmp_path)
    assert embedder.dim == 48  # not the 24 that it shares with words


@pytest.mark.parametrize(
    ("family", "pooling", "sentence"),
    [("resnet", "cls", "resnet gives no tokens to take cls of"), ("resnet", "sum", "leave #sum out")],
)
def test_pooling__that_the_model_cannot_give(family, pooling, sentence, tmp_path):
    saved(tmp_path, family)
    with pytest.raises(EmbedderError, match=sentence):
        open_embedder(f"{tmp_path}#{pooling}", device="cpu", cache_dir=tmp_path)


# --- memory


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Opens a small model of pictures, given the batch size."""
    folder = tmp_path_factory.mktemp("small")
    saved(folder, "resnet")
    return lambda size: open_embedder(str(folder), device="cpu", batch_size=size, inference="torch", cache_dir=folder)


def running_out(embedder, fits, monkeypatch, error):
    """The model as it is, on a machine where `fits` pictures at a time are the most; gives the batch sizes tried."""
    run, tried = embedder._forward, []

    def limited(batch):
        tried.append(len(batch))
        if len(batch) > fits:
            raise error
        return run(batch)

    monkeypatch.setattr(embedder, "_forward", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Exception from src/plugins/intel_cpu: std::bad_alloc"),
        MemoryError(),
    ],
)
def test_memory__out_of_memory_halves_the_batch_and_goes_on(small, monkeypatch, error):
    images = pictures(10)
    true = small(1).embed(images)
    embedder = small(8)
    monkeypatch.setattr(embedder, "_threads", 1)
    tried = running_out(embedder, 2, monkeypatch, error)
    vectors = embedder.embed(images)
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    assert cosines(vectors, true).min() > 0.999
    assert embedder.batch_size == 2


def test_memory__not_even_one_picture_fits(small, monkeypatch):
    embedder = small(4)
    running_out(embedder, 0, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(EmbedderError, match="does not fit into the memory of cpu, even one picture at a time"):
        embedder.embed(pictures(5))


def test_memory__other_errors_are_not_swallowed(small, monkeypatch):
    embedder = small(4)
    running_out(embedder, 0, monkeypatch, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        embedder.embed(pictures(1))


# --- words, and functions


def test_text__of_a_model_that_shares_one_space(tmp_path):
    saved(tmp_path, "clip")
    real_families().letters().save_pretrained(tmp_path)
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    texts = ["a red fox", "snow"]
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        truth = [model.get_text_features(**tokenizer([t], return_tensors="pt")).pooler_output[0].numpy() for t in texts]
    vectors = embedder.embed_text(texts)
    assert vectors.shape == (2, embedder.dim)
    assert cosines(vectors, np.stack(truth)).min() > 0.9999


def test_text__of_a_model_without_words(lite0):
    with pytest.raises(EmbedderError, match="efficientnet-lite0 does not embed words; choose a model that shares one"):
        lite0.embed_text(["fox"])


def entry_point(monkeypatch, function):
    monkeypatch.setattr(
        embedders, "functions", lambda: {"mine": SimpleNamespace(value="my:fox", load=lambda: function)}
    )


def test_function__of_the_users_own(monkeypatch, tmp_path):
    entry_point(monkeypatch, lambda images: [image.mean(axis=(0, 1)) for image in images])
    mine = open_embedder("mine", cache_dir=tmp_path)
    red = np.zeros((5, 7, 3), np.uint8) + np.uint8([200, 0, 0])
    vectors = mine.embed([red, red // 2])
    assert (mine.name, mine.dim, mine.takes, vectors.dtype) == ("mine", 3, "pictures", np.float32)
    assert vectors.tolist() == [[200, 0, 0], [100, 0, 0]]
    assert mine.embed([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("not a function", "must be a function of pictures, got 'not a function'"),
        (lambda images: np.zeros(3), r"must give \(1, d\) for 1 pictures, it gave \(3,\)"),
        (lambda images: np.zeros((7, 3)), r"it gave \(7, 3\)"),
        (lambda images: 1 / 0, "embedder mine failed: ZeroDivisionError: division by zero"),
        (lambda images: np.full((len(images), 3), np.nan), "gave NaN or infinity for picture 0 of 1"),
    ],
)
def test_function__that_is_none(monkeypatch, tmp_path, function, sentence):
    entry_point(monkeypatch, function)
    with pytest.raises(EmbedderError, match=sentence):
        open_embedder("mine", cache_dir=tmp_path)


def test_function__that_cannot_be_loaded(monkeypatch, tmp_path):
    def load():
        raise ModuleNotFoundError("No module named 'my'")

    monkeypatch.setattr(embedders, "functions", lambda: {"mine": SimpleNamespace(value="my:fox", load=load)})
    with pytest.raises(EmbedderError, match="embedder mine cannot be loaded from my:fox: No module named 'my'"):
        open_embedder("mine", cache_dir=tmp_path)


def test_vectors__made_elsewhere_embed_nothing_new(tmp_path):
    np.savez(tmp_path / "v.npz", X=np.ones((2, 4)), path=["a.mp4", "b.mp4"])
    found = open_embedder(str(tmp_path / "v.npz"), cache_dir=tmp_path)
    assert (found.takes, found.dim) == ("keyframes", 4)
    for verb in (found.embed, found.embed_text):
        with pytest.raises(EmbedderError, match="holds vectors that were made elsewhere"):
            verb(["x"])


# --- what cannot be had


def test_open__vectors_that_are_not_finite(tmp_path):
    saved(tmp_path, "vit")
    model = transformers.ViTModel.from_pretrained(tmp_path)
    model.layernorm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(EmbedderError, match="gave NaN or infinity for picture 0 of 2"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path).embed(pictures(2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_open__no_cuda(tmp_path):
    with pytest.raises(EmbedderError, match="torch sees 0 CUDA devices here; set it to auto or cpu"):
        open_embedder("efficientnet-lite0", device="cuda", cache_dir=tmp_path)


@pytest.mark.parametrize("device", ["gpu", "mps", "meta"])
def test_open__no_such_device(tmp_path, device):
    with pytest.raises(EmbedderError, match=f"_DEVICE must be auto, cpu, cuda or cuda:<number>, got '{device}'"):
        open_embedder("efficientnet-lite0", device=device, cache_dir=tmp_path)
