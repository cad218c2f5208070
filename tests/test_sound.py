"""Sound: what is heard with a keyframe is what the file has at that time, and no more than its shot."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from lookalike.errors import MediaError
from lookalike.records import Keyframe, keyframe_id
from workers import sound
from workers.sound import Window, windows

RATE = 8000


def frame(number: int, time_s: float, first_s: float, last_s: float, shot: int) -> Keyframe:
    return Keyframe(keyframe_id(1, number), 1, number, time_s, 1.0, number, number, first_s, last_s, shot)


def tones(path: Path, *hertz: float, seconds: float = 2.0, pictures: bool = False) -> Path:
    """A film without pictures (or with a few): a tone of `seconds` after the other, at 44.1 kHz in stereo."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=44100, layout="stereo")
        video = container.add_stream("mpeg4", rate=10) if pictures else None
        if video is not None:
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
        at = 0
        for hz in hertz:
            t = np.arange(int(44100 * seconds)) / 44100
            samples = (8000 * np.sin(2 * np.pi * hz * t)).astype(np.int16)
            block = av.AudioFrame.from_ndarray(np.repeat(samples, 2)[None], format="s16", layout="stereo")
            block.sample_rate, block.pts = 44100, at
            at += len(t)
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
        if video is not None:
            for _ in range(10):
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
    return path


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency, Hz."""
    return float(np.fft.rfftfreq(len(samples), 1 / RATE)[np.abs(np.fft.rfft(samples)).argmax()])


def test_windows__lie_within_their_shot() -> None:
    frames = [
        frame(0, 1.0, 0.0, 2.0, 0),
        frame(1, 3.0, 2.0, 4.0, 0),
        frame(2, 30.0, 4.0, 40.0, 1),
        frame(3, 39.0, 40.0 - 1, 40.0, 1),
    ]
    assert windows(frames) == [
        Window(0, 0.0, 4.0),  # a short shot: all of it
        Window(1, 0.0, 4.0),
        Window(2, 25.0, 35.0),
        Window(3, 30.0, 40.0),  # ends with the shot
    ]


def test_extract__each_window_has_its_own_sound(tmp_path: Path) -> None:
    film = tones(tmp_path / "a.mkv", 300, 1000, 2000)
    wanted = [Window(0, 0.2, 1.8), Window(7, 2.2, 3.8), Window(9, 4.5, 5.5), Window(10, 1.0, 5.0), Window(11, 7.0, 8.0)]
    assert sound.extract(film, wanted, RATE, tmp_path / "out")
    heard = {window.frame_index: sound.read(tmp_path / "out", window) for window in wanted}
    assert {number: pitch(samples) for number, samples in heard.items() if number in (0, 7, 9)} == {
        0: pytest.approx(300, abs=2),
        7: pytest.approx(1000, abs=2),
        9: pytest.approx(2000, abs=2),
    }
    assert len(heard[7]) == pytest.approx(1.6 * RATE, abs=RATE // 100)
    assert len(heard[10]) == pytest.approx(4.0 * RATE, abs=RATE // 100)
    assert 0.1 < np.abs(heard[0]).max() < 0.4
    assert len(heard[11]) == 0  # the film is over


def test_extract__a_film_without_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    assert not sound.extract(tmp_path / "a.mp4", [Window(0, 0.0, 1.0)], RATE, tmp_path / "out")
    assert sound.read(tmp_path / "out", Window(0, 0.0, 1.0)).shape == (0,)


def test_extract__what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    film = tones(tmp_path / "a.mkv", 300, 1000)
    data = bytearray(film.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    film.write_bytes(data)
    sound.extract(film, [Window(0, 0.2, 0.8), Window(1, 2.5, 3.5)], RATE, tmp_path / "out")
    assert pitch(sound.read(tmp_path / "out", Window(0, 0.2, 0.8))) == pytest.approx(300, abs=3)


@pytest.mark.parametrize(
    "content", [b"", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mkv\n", b"nothing of the kind"]
)
def test_extract__what_is_no_film(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"x\.mp4 cannot be opened"):
        sound.extract(tmp_path / "x.mp4", [Window(0, 0.0, 1.0)], RATE, tmp_path / "out")
