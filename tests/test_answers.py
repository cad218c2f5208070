"""Questions answered by a model that tells what it was given."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import EmbedderError, MediaError, RequestError
from lookalike.questions import Question, QuestionKind
from lookalike.settings import Settings
from workers.answers import crop, read_file, vector_of


class MeanColour:
    """A model whose vector is the picture's mean colour."""

    name, takes, dim = "mean colour", "pictures", 3

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack([image.mean(axis=(0, 1)) for image in images]).astype(np.float32)

    def embed_text(self, texts: list[str]) -> np.ndarray:
        raise EmbedderError("mean colour does not embed words")


def halves(left: tuple[int, int, int], right: tuple[int, int, int], kind: str = "JPEG") -> bytes:
    picture = Image.new("RGB", (200, 100), left)
    picture.paste(right, (100, 0, 200, 100))
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def asked(kind: QuestionKind, content: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "frame.jpg").write_bytes(halves((250, 10, 10), (10, 10, 250)))
    question = Question(1, "7.1", "mean colour", "abc", kind, content, None, "")
    settings = Settings(data_dir=tmp_path)
    return vector_of(question, MeanColour(), settings, lambda keyframe: tmp_path / "frame.jpg")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_answer__a_picture(tmp_path: Path, kind: str) -> None:
    vector = asked("image", halves((10, 250, 10), (10, 250, 10), kind), tmp_path)
    np.testing.assert_allclose(vector, [10, 250, 10], atol=4)


def test_answer__a_region_of_a_keyframe(tmp_path: Path) -> None:
    for box, colour in (([0, 0, 0.5, 1], [250, 10, 10]), ([0.5, 0, 0.5, 1], [10, 10, 250])):
        vector = asked("region", json.dumps({"keyframe": 5, "box": box}).encode(), tmp_path)
        np.testing.assert_allclose(vector, colour, atol=6)


def test_answer__words_of_a_model_that_knows_none(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="does not embed words"):
        asked("text", b"a red car", tmp_path)


@pytest.mark.parametrize("content", [b"no picture at all", halves((0, 0, 0), (9, 9, 9))[:300]])
def test_answer__what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MediaError, match="the picture"):
        asked("image", content, tmp_path)


def test_crop__too_small_or_outside() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    assert crop(picture, (0.25, 0.5, 0.5, 0.5)).shape == (50, 100, 3)
    with pytest.raises(RequestError, match="choose one of at least 8 x 8"):
        crop(picture, (0.5, 0.5, 0.01, 0.5))


def test_read_file__more_pixels_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(halves((0, 0, 0), (9, 9, 9), "PNG"))
    with pytest.raises(MediaError, match="more than the 1000 pixels allowed"):
        read_file(tmp_path / "large.png", Settings(data_dir=tmp_path, max_pixels=1000))
