"""Small pictures; how they are served is tried in test_pages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from backend.thumbnails import keep, shrink, small_picture


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "small"),
    [((1280, 720), (320, 180)), ((720, 1280), (180, 320)), ((100, 50), (100, 50)), ((1, 900), (1, 320))],
)
def test_shrink__fits_and_never_grows(size: tuple[int, int], small: tuple[int, int]) -> None:
    assert Image.open(io.BytesIO(shrink(jpeg(*size)))).size == small


def test_shrink__grey_and_cmyk_become_rgb() -> None:
    for mode in ("L", "CMYK"):
        assert Image.open(io.BytesIO(shrink(jpeg(64, 64, mode)))).mode == "RGB"


def test_shrink__of_nonsense_is_an_oserror() -> None:
    for content in (b"", b"nonsense", jpeg(640, 480)[:300]):
        with pytest.raises(OSError, match=r"(?i)identify|truncated"):
            shrink(content)


def test_small_picture__is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "0000001.jpg"
    path.write_bytes(jpeg(640, 480))
    small = small_picture(path)
    stamp = small.stat().st_mtime_ns
    assert small_picture(path).stat().st_mtime_ns == stamp
    assert [p.name for p in small.parent.iterdir()] == ["0000001.jpg"]


def test_keep__replaces_whole(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        keep(tmp_path / "new" / "file", content)
        assert (tmp_path / "new" / "file").read_bytes() == content
