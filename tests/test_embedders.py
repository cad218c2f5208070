"""Embedders: the vectors that plain transformers gives, faster; and a sentence where there is no such model.

Every family is held against transformers' own processor and model, one picture at a time in float32.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lookalike.errors import EmbedderError
from workers import embedders
from workers.embedders import lite0_folder, open_embedder

PHOTOS = Path(__file__).parents[1] / "../shared/data/images/caltech20"


def pictures(n=6, seed=0):
    """Pictures of many sizes with slopes, shapes and grain; some small, some upright."""
    random = np.random.default_rng(seed)
    sizes = [(720, 1280), (240, 320), (300, 200), (97, 131), (32, 48), (224, 224), (500, 333)]
    made = []
    for number in range(n):
        height, width = sizes[number % len(sizes)]
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[:] = np.linspace(0, 255, width)[None, :, None] * random.uniform(0.3, 1, 3)
        for _ in range(6):
            centre = random.integers(0, width), random.integers(0, height)
            cv2.circle(canvas, [int(c) for c in centre], max(3, height // 6), random.integers(0, 255, 3).tolist(), -1)
        grain = random.normal(0, 6, canvas.shape)
        made.append((canvas + grain).clip(0, 255).astype(np.uint8))
    return made


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def plain(folder, images, pool):
    """What transformers gives, one by one in float32."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, small tensors mostly wait for each other
    try:
        with torch.no_grad():
            inputs = [processor(images=Image.fromarray(image), return_tensors="pt") for image in images]
            return np.stack([pool(model, i).numpy() for i in inputs])
    finally:
        torch.set_num_threads(threads)


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
    monkeypatch.setattr(embedders, "_has_bfloat16", lambda device: False)
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


def test_lite0__unpacked_twice_at_once(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lite0_folder, [tmp_path, tmp_path]))
    assert folders == [tmp_path / "efficientnet-lite0"] * 2
    assert list(tmp_path.iterdir()) == folders[:1]


def test_lite0__cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedderError, match="cannot be unpacked to"):
        lite0_folder(tmp_path / "file" / "cache")


# --- every family, small and random, against plain transformers

VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SMALL = {"image_size": 64, "patch_size": 16}


def square(side=64):
    return transformers.ViTImageProcessorPil(size={"height": side, "width": side})


def cropped(edge=72, side=64):
    size, crop = {"shortest_edge": edge}, {"height": side, "width": side}
    return transformers.CLIPImageProcessorPil(size=size, crop_size=crop)


def class_token(model, inputs):
    return model(**inputs).last_hidden_state[0, 0]


def pooled(model, inputs):
    return model(**inputs).pooler_output[0].flatten()


def tokens_summed(model, inputs):
    model.config.mask_ratio = 0.0
    return model(**inputs).last_hidden_state[0].sum(0)


def image_features(model, inputs):
    return model.get_image_features(**inputs).pooler_output[0]


TEXT = {**VIT, "vocab_size": 99}
FAMILIES = {
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT, **SMALL)), square, class_token, 48),
    "vit_mae": (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT, **SMALL)), square, tokens_summed, 48),
    "dinov2": (
        lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16
            )
        ),
        cropped,
        pooled,
        48,
    ),
    "clip": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=TEXT, vision_config={**VIT, **SMALL}, projection_dim=24)
        ),
        cropped,
        image_features,
        24,
    ),
    "convnext": (
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)),
        lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875),
        pooled,
        32,
    ),
    "resnet": (
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])
        ),
        cropped,
        pooled,
        32,
    ),
    "efficientnet": (
        lambda: transformers.EfficientNetModel(
            transformers.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320)
        ),
        # as google/efficientnet-b0 ships: normalised twice
        lambda: transformers.EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, include_top=True),
        pooled,
        320,
    ),
}


def saved(folder, family):
    make_model, make_processor, pool, dim = FAMILIES[family]
    torch.manual_seed(1)
    model = make_model()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.ones_(norm.weight)
        norm.momentum = 1.0
    with torch.no_grad():
        if family in ("efficientnet", "resnet"):  # the norms get to know some pictures, else the signal fades away
            model.train()(pixel_values=torch.randn(8, 3, 64, 64))
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return pool, dim


@pytest.mark.parametrize("family", FAMILIES)
def test_family__equals_plain_transformers(family, tmp_path, monkeypatch):
    monkeypatch.setattr(embedders, "_has_bfloat16", lambda device: False)
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


def test_family__unknown_preparation_is_left_to_the_processor(tmp_path, monkeypatch):
    """A processor that pads: not what we do ourselves, so it is used itself."""
    pool, _ = saved(tmp_path, "vit")
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings |= {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 40, "width": 40},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
    }
    path.write_text(json.dumps(settings))
    monkeypatch.setattr(embedders, "_has_bfloat16", lambda device: False)
    images = pictures(3)
    vectors = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path).embed(images)
    assert cosines(vectors, plain(tmp_path, images, pool)).min() > 0.99999


def test_family__strip_does_not_blow_up(tmp_path):
    saved(tmp_path, "clip")
    embedder = open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)
    strip = np.random.default_rng(0).integers(0, 255, (1, 2_000_000, 3)).astype(np.uint8)
    assert np.isfinite(embedder.embed([strip])).all()


# --- memory


def running_out(embedder, fits, monkeypatch, error):
    """The model as it is, on a machine where `fits` pictures at a time are the most; gives the batch sizes tried."""
    run, tried = embedder._run, []

    def limited(batch):
        tried.append(len(batch))
        if len(batch) > fits:
            raise error
        return run(batch)

    monkeypatch.setattr(embedder, "_run", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_memory__out_of_memory_halves_the_batch_and_goes_on(cache, lite0, monkeypatch, error):
    embedder = open_embedder("efficientnet-lite0", device="cpu", batch_size=8, cache_dir=cache)
    monkeypatch.setattr(embedder, "_threads", 1)
    tried = running_out(embedder, 2, monkeypatch, error)
    images = pictures(10)
    vectors = embedder.embed(images)
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    assert cosines(vectors, lite0.embed(images)).min() > 0.999
    assert embedder.batch_size == 2


def test_memory__not_even_one_picture_fits(cache, monkeypatch):
    embedder = open_embedder("efficientnet-lite0", device="cpu", cache_dir=cache)
    running_out(embedder, 0, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(EmbedderError, match="does not fit into the memory of cpu, even one picture at a time"):
        embedder.embed(pictures(5))


def test_memory__other_errors_are_not_swallowed(cache, monkeypatch):
    embedder = open_embedder("efficientnet-lite0", device="cpu", cache_dir=cache)
    running_out(embedder, 0, monkeypatch, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        embedder.embed(pictures(1))


# --- what cannot be had


def test_open__vectors_that_are_not_finite(tmp_path):
    saved(tmp_path, "vit")
    model = transformers.ViTModel.from_pretrained(tmp_path)
    model.layernorm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(EmbedderError, match="gave NaN or infinity for picture 0 of 2"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path).embed(pictures(2))


def test_open__pickle_weights_are_refused(tmp_path):
    saved(tmp_path, "vit")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EmbedderError, match=r"no model.safetensors; weights in pickle files .* are refused"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_open__folder_lacks_a_file(tmp_path, name):
    saved(tmp_path, "vit")
    (tmp_path / name).unlink()
    with pytest.raises(EmbedderError, match=f"has no {name}"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


def test_open__damaged_weights(tmp_path):
    saved(tmp_path, "vit")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EmbedderError, match="cannot be loaded from"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


def test_open__weights_of_another_model(tmp_path):
    saved(tmp_path, "vit")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(EmbedderError, match="lacks weights that its config"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


def test_open__no_such_folder(tmp_path):
    with pytest.raises(EmbedderError, match="not a folder that exists"):
        open_embedder(str(tmp_path / "none"), device="cpu", cache_dir=tmp_path)


def test_open__no_such_name(tmp_path):
    with pytest.raises(EmbedderError, match="not efficientnet-lite0, a folder or a Hugging Face id"):
        open_embedder("effi cient", device="cpu", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "is not on huggingface.co"),
        ("LocalEntryNotFoundError", "huggingface.co cannot be reached; use efficientnet-lite0"),
        ("HfHubHTTPError", "huggingface.co answered"),
    ],
)
def test_open__what_the_hub_says(tmp_path, monkeypatch, error, sentence):
    raised = getattr(embedders, error)

    def refuse(*args, **kwargs):
        raise raised.__new__(raised, "said so")

    monkeypatch.setattr(embedders, "snapshot_download", refuse)
    with pytest.raises(EmbedderError, match=sentence):
        open_embedder("some/model", device="cpu", cache_dir=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_open__no_cuda(tmp_path):
    with pytest.raises(EmbedderError, match="torch sees 0 CUDA devices here; set device to auto or cpu"):
        open_embedder("efficientnet-lite0", device="cuda", cache_dir=tmp_path)


@pytest.mark.parametrize("device", ["gpu", "mps", "meta"])
def test_open__no_such_device(tmp_path, device):
    with pytest.raises(EmbedderError, match=f"device must be auto, cpu, cuda or cuda:<number>, got '{device}'"):
        open_embedder("efficientnet-lite0", device=device, cache_dir=tmp_path)
