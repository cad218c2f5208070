"""Captions: what is said when, from files as they are found beside videos; else the name."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.captions import read_captions

SRT = """1
00:00:01,000 --> 00:00:03,500
<i>Look,</i> a fox!

2
00:01:00,000 --> 00:01:02,000
{\\an8}It is
gone.
"""
VTT = "WEBVTT\n\n00:01.000 --> 00:03.500 align:start\nLook, a <c.red>fox</c>!\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_fox-03.mp4", "red fox 03"),
        ("clips/Straße im Regen.mp4", "Straße im Regen"),
        ("https://host/a/red%20fox.mp4?token=x", "red fox"),
        ("/data/local-files/?d=clips/red_fox.mp4", "red fox"),
        ("___.mp4", "___"),
    ],
)
def test_read_captions__the_name(name: str, words: str) -> None:
    assert read_captions(name).at(0, 9) == words


def test_read_captions__subtitles(tmp_path: Path) -> None:
    (tmp_path / "clip.srt").write_bytes(b"\xef\xbb\xbf" + SRT.replace("\n", "\r\n").encode())
    captions = read_captions("clip.mp4", tmp_path / "clip.mp4")
    assert captions.at(0, 1.5) == "Look, a fox!"
    assert captions.at(3, 61) == "Look, a fox! It is gone."
    assert captions.at(10, 20) == "clip"  # nothing is said


def test_read_captions__web_subtitles(tmp_path: Path) -> None:
    (tmp_path / "clip.vtt").write_text(VTT)
    assert read_captions("clip.mp4", tmp_path / "clip.mp4").at(3, 3) == "Look, a fox!"


def test_read_captions__a_caption(tmp_path: Path) -> None:
    (tmp_path / "0001.txt").write_text("a fox\nin the snow\n")
    assert read_captions("0001.jpg", tmp_path / "0001.jpg").at(0, 0) == "a fox in the snow"
    (tmp_path / "0001.txt").write_text(" \n")
    assert read_captions("0001.jpg", tmp_path / "0001.jpg").at(0, 0) == "0001"
