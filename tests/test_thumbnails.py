"""Small pictures; how they are served is tried in test_pages."""

from __future__ import annotations

import contextlib
import io
import os
import random
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


def test_shrink__postscript_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *rest, **more: started.append(rest))
    with pytest.raises(OSError, match="identify"):
        shrink(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert not started


def test_shrink__of_a_damaged_or_bombed_picture_is_an_oserror() -> None:
    picture = Image.effect_noise((90, 70), 50).convert("RGB")
    dice = random.Random(2)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        out = io.BytesIO()
        picture.save(out, kind)
        for _ in range(150):
            data = bytearray(out.getvalue())
            for _ in range(dice.choice((1, 8))):
                data[dice.randrange(min(len(data), 200))] = dice.randrange(256)
            with contextlib.suppress(OSError):
                shrink(bytes(data))
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    with pytest.raises(OSError, match="400000000"):
        shrink(out.getvalue())


def test_small_picture__is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "0000001.jpg"
    path.write_bytes(jpeg(640, 480))
    os.utime(path, (1e9, 1e9))
    small = small_picture(path)
    stamp = small.stat().st_mtime_ns
    assert small_picture(path).stat().st_mtime_ns == stamp
    assert [p.name for p in small.parent.iterdir()] == ["0000001.jpg"]


def test_small_picture__is_made_anew_with_a_picture_of_the_same_tick(tmp_path: Path) -> None:
    path = tmp_path / "0000001.jpg"
    path.write_bytes(jpeg(640, 480))
    small = small_picture(path)
    path.write_bytes(jpeg(480, 640))
    for file in (path, small):
        os.utime(file, (1e9, 1e9))
    assert Image.open(small_picture(path)).size == (240, 320)


def test_keep__replaces_whole(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        keep(tmp_path / "new" / "file", content)
        assert (tmp_path / "new" / "file").read_bytes() == content
