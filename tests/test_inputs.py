"""Inputs: of each keyframe a model is given what it takes, and the vectors come back in the keyframes' order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.errors import EmbedderError, MediaError
from lookalike.records import Keyframe, keyframe_id
from lookalike.settings import Settings
from lookalike.vectors import VectorFile
from tests.test_sound import tones
from workers import inputs
from workers.embedders import VectorsMadeElsewhere
from workers.inputs import Origin, embed_keyframes, embed_pictures


class Fake:
    """A model that is easy to follow: what it is given, as a vector of two numbers."""

    name, dim, rate_hz = "fake", 2, 8000

    def __init__(self, takes: str) -> None:
        self.takes = takes
        self.given: list[Any] = []

    def embed(self, images: Sequence[Any], /) -> NDArray[np.float32]:
        self.given += images
        measure = (
            (lambda text: (len(text), 0)) if self.takes == "text" else (lambda a: (a.sum() / max(1, a.size), a.size))
        )
        return np.asarray([measure(item) for item in images], np.float32).reshape(-1, 2)

    def embed_text(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        raise AssertionError("nobody asks for words here")


def frames(*times_s: float, shot: int = 0) -> list[Keyframe]:
    return [
        Keyframe(keyframe_id(3, n), 3, n, time, 1.0, n, n, time - 0.5, time + 0.5, shot + n)
        for n, time in enumerate(times_s)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keyframe pictures, each brighter than the one before."""
    for number in range(5):
        picture = np.full((8, 8, 3), 40 * number, np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number:07d}.jpg"), picture)
    return tmp_path


def test_embed_pictures__none(tmp_path: Path) -> None:
    found = embed_pictures(Fake("pictures"), [], tmp_path)
    assert (found.vectors.shape, found.keyframe_ids.shape, found.model) == ((0, 2), (0,), "fake")


@pytest.mark.parametrize("at_a_time", [2, 64])
def test_embed_pictures__keep_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(inputs, "_AT_A_TIME", at_a_time)
    found = embed_pictures(Fake("pictures"), frames(1, 2, 3, 4, 5), folder)
    assert found.vectors[:, 0].round().tolist() == [0, 40, 80, 120, 160]
    assert found.keyframe_ids.tolist() == [keyframe_id(3, n) for n in range(5)]


def test_embed_pictures__one_is_gone(folder: Path) -> None:
    (folder / "0000003.jpg").unlink()
    with pytest.raises(MediaError, match=r"0000003\.jpg is missing or broken; ask for the video again"):
        embed_pictures(Fake("pictures"), frames(1, 2, 3, 4, 5), folder)


def test_embed_keyframes__sound_of_their_shots(tmp_path: Path) -> None:
    film = tones(tmp_path / "a.mkv", 300, 1000, 2000, pictures=True)
    model = Fake("sound")
    origin = Origin("a.mkv", film)
    found = embed_keyframes(model, frames(1.0, 3.0, 50.0), tmp_path, origin, Settings(data_dir=tmp_path))
    assert found.vectors.shape == (3, 2)
    assert [round(len(samples) / 8000, 1) for samples in model.given] == [1.0, 1.0, 0.0]
    tone = np.abs(np.fft.rfft(model.given[1])).argmax() / (len(model.given[1]) / 8000)
    assert tone == pytest.approx(1000, abs=5)


def test_embed_keyframes__a_shot_is_heard_once(tmp_path: Path) -> None:
    film = tones(tmp_path / "a.mkv", 300, 1000, pictures=True)
    model = Fake("sound")
    shot = [
        Keyframe(keyframe_id(3, n), 3, n, time, 1.0, n, n, time - 0.5, time + 0.5) for n, time in enumerate((1.0, 2.0))
    ]
    found = embed_keyframes(model, shot, tmp_path, Origin("a.mkv", film), Settings(data_dir=tmp_path))
    assert len(model.given) == 1
    assert found.vectors[0].tolist() == found.vectors[1].tolist()


def test_embed_keyframes__sound_of_what_has_none_at_hand(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(EmbedderError, match=r"fake takes sound, and a\.jpg is a picture; choose a model of pictures"):
        embed_keyframes(Fake("sound"), frames(1.0), tmp_path, Origin("a.jpg", pictures=True), settings)
    with pytest.raises(MediaError, match=r"takes sound, and a\.mp4 is not at hand; ask for the video again"):
        embed_keyframes(Fake("sound"), frames(1.0), tmp_path, Origin("a.mp4"), settings)


def test_embed_keyframes__words(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:02,600 --> 00:00:03,000\nA fox!\n")
    model = Fake("text")
    origin = Origin("a.mp4", tmp_path / "a.mp4")
    found = embed_keyframes(model, frames(1.0, 3.0, 9.0), tmp_path, origin, Settings(data_dir=tmp_path))
    assert sorted(model.given) == ["A fox!", "a"]  # each once
    assert found.vectors[:, 0].tolist() == [1, 6, 1]


def test_embed_keyframes__vectors_made_elsewhere(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", X=[[1.0, 2.0], [3.0, 4.0]], task=[7, 8])
    model = VectorsMadeElsewhere("./v.npz", VectorFile.read(tmp_path / "v.npz"))
    found = embed_keyframes(model, frames(1.0, 2.0), tmp_path, Origin("a.mp4", task=8), Settings(data_dir=tmp_path))
    assert (found.vectors.tolist(), found.model) == ([[3, 4], [3, 4]], "./v.npz")
