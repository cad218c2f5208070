"""A picture file is its own only keyframe."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lookalike.errors import MediaError
from lookalike.records import keyframe_id
from workers.keyframes import KeyframeOptions
from workers.stills import extract


def _picture(path: Path, width: int = 320, height: int = 200) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3))
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_extract__one_keyframe(tmp_path: Path, suffix: str) -> None:
    found = extract(_picture(tmp_path / f"a.{suffix}"), 7, tmp_path / "out")
    [keyframe] = found.keyframes
    assert keyframe.id == keyframe_id(7, 0)
    assert (found.facts.width_px, found.facts.height_px, found.facts.frame_count) == (320, 200, 1)
    assert cv2.imread(str(tmp_path / "out" / "0000000.jpg")).shape == (200, 320, 3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0000000.jpg"]


def test_extract__wide_pictures_are_scaled(tmp_path: Path) -> None:
    extract(_picture(tmp_path / "a.jpg"), 1, tmp_path / "out", KeyframeOptions(width_px=160))
    assert cv2.imread(str(tmp_path / "out" / "0000000.jpg")).shape == (100, 160, 3)


def test_extract__too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a\.png is 320 x 200, more than the 1000 pixels allowed"):
        extract(_picture(tmp_path / "a.png"), 1, tmp_path / "out", KeyframeOptions(max_pixels=1000))


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\xff\xd8\xff\xe0 cut short"])
def test_extract__what_is_no_picture_gets_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"^broken\.jpg cannot be read as a picture; check that it opens$"):
        extract(path, 1, tmp_path / "out")


def test_extract__a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is not a regular file"):
        extract(tmp_path, 1, tmp_path / "out")
