"""Files found, worked on once, and each failure a sentence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.errors import SetupError
from lookalike.settings import Settings
from tests.clips import Scene, make_clip
from workers import archive as archives
from workers.archive import Archive, find_sources, work_through

SUFFIXES = (".mp4", ".mkv")


class MeanColour:
    """An embedder that can be reckoned by hand: the mean of each channel."""

    takes, dim = "pictures", 3

    def __init__(self, name: str = "mean-colour") -> None:
        self.name = name
        self.pictures = 0

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.pictures += len(images)
        return np.asarray([image.mean(axis=(0, 1)) for image in images], np.float32).reshape(-1, 3)


def open_archive(out: Path, model: str = "mean-colour", *, pictures: bool = False, **settings: object) -> Archive:
    archive = Archive(out, Settings(embedder=model, disk_free_mb=0, **settings), pictures=pictures)  # type: ignore[arg-type]
    archive.embedder = MeanColour(model)
    return archive


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    make_clip(tmp_path / "in" / "a.mp4", [Scene(30, seed=1), Scene(30, seed=2)])
    make_clip(tmp_path / "in" / "sub" / "b.MKV", [Scene(30, seed=3)])
    return tmp_path / "in"


def names(found: archives.Found) -> list[str]:
    return [source.name for source in found.sources]


def test_find_sources__folders_below_by_suffix_results_left_out(clips: Path) -> None:
    for name in ("note.txt", "._a.mp4", "out/keyframes/x.mp4", ".cache/c.mp4"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        (clips / name).write_bytes(b"x")
    found = find_sources([clips], SUFFIXES, skip=clips / "out")
    assert names(found) == ["a.mp4", "sub/b.MKV"]
    assert found.folder == clips
    assert not found.refused


def test_find_sources__same_file_counts_once(clips: Path) -> None:
    (clips / "link.mp4").symlink_to(clips / "a.mp4")
    found = find_sources([clips / "a.mp4", clips, clips / "sub" / ".." / "a.mp4"], SUFFIXES, skip=clips / "out")
    assert names(found) == ["a.mp4", "sub/b.MKV"]


def test_find_sources__a_named_file_needs_no_suffix(clips: Path) -> None:
    (clips / "a.mp4").rename(clips / "clip")
    assert names(find_sources([clips / "clip"], SUFFIXES, skip=clips / "out")) == ["clip"]


def test_find_sources__what_gives_nothing_is_told(clips: Path) -> None:
    (clips / "empty").mkdir()
    found = find_sources([clips / "empty", clips / "missing.mp4", clips / "a.mp4"], SUFFIXES, skip=clips / "out")
    assert names(found) == ["a.mp4"]
    assert dict(found.refused) == {
        "empty": "is a folder without any of .mp4, .mkv; name another",
        "missing.mp4": "cannot be opened: no such file or directory",
    }


def test_work_through__pictures_thumbnails_and_vectors(clips: Path, tmp_path: Path) -> None:
    found = find_sources([clips], SUFFIXES, skip=tmp_path / "out")
    archive = open_archive(tmp_path / "out")
    first, second = work_through(found.sources, archive, 2)
    assert (first.source.name, second.source.name) == ("a.mp4", "sub/b.MKV")
    assert [frame.first_frame for frame in first.keyframes] == [0, 30]
    assert first.vectors is not None
    assert first.vectors.shape == (2, 3)
    for frame in first.keyframes:
        for kind in ("keyframes", "thumbs"):
            assert (tmp_path / "out" / archive.picture(first.source, frame, kind)).is_file()
    assert set(first.cpu_s) == {"keyframes", "thumbnails", "embedding"}
    assert not list((tmp_path / "out").rglob("*.part"))


def test_work_through__second_run_does_only_what_is_new(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = work_through(find_sources([clips], SUFFIXES, skip=out).sources, open_archive(out), 1)
    make_clip(clips / "c.mp4", [Scene(30, seed=5)])
    os.utime(clips / "a.mp4", ns=(1, 1))  # changed
    archive = open_archive(out)
    after = work_through(find_sources([clips], SUFFIXES, skip=out).sources, archive, 1)
    assert {result.source.name: result.kept for result in after} == {"a.mp4": False, "c.mp4": False, "sub/b.MKV": True}
    assert after[2].extraction == before[1].extraction
    np.testing.assert_array_equal(after[2].vectors, before[1].vectors)  # type: ignore[arg-type]


def test_work_through__other_options_or_a_lost_picture_mean_again(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sources = find_sources([clips / "a.mp4"], SUFFIXES, skip=out).sources
    (result,) = work_through(sources, open_archive(out), 1)
    (again,) = work_through(sources, open_archive(out, keyframe_width_px=100), 1)
    assert not again.kept
    archive = open_archive(out, keyframe_width_px=100)
    (out / archive.picture(result.source, result.keyframes[0])).unlink()
    (again,) = work_through(sources, archive, 1)
    assert not again.kept
    assert (out / archive.picture(result.source, result.keyframes[0])).is_file()


def test_work_through__another_model_embeds_again_without_decoding(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sources = find_sources([clips / "a.mp4"], SUFFIXES, skip=out).sources
    work_through(sources, open_archive(out), 1)
    monkeypatch.setattr(archives.media, "run_guarded", lambda *_, **__: pytest.fail("decoded again"))
    other = open_archive(out, "another-model")
    (result,) = work_through(sources, other, 1)
    assert other.embedder.pictures == len(result.keyframes) > 0  # type: ignore[attr-defined]
    (kept,) = work_through(sources, open_archive(out, "another-model"), 1)
    assert kept.kept


def test_work_through__broken_files_are_rows(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "a.mp4").read_bytes()
    (clips / "truncated.mp4").write_bytes(whole[: len(whole) // 3])
    (clips / "empty.mp4").touch()
    (clips / "text.mp4").write_text("no video")
    make_clip(clips / "sound.mp4", [], audio=True)
    os.mkfifo(clips / "fifo.mp4")
    (clips / "folder.mp4").mkdir()
    found = find_sources([clips], SUFFIXES, skip=tmp_path / "out")
    results = {r.source.name: r for r in work_through(found.sources, open_archive(tmp_path / "out"), 2)}
    said = {name: result.error for name, result in results.items() if result.error}
    assert set(said) == {"truncated.mp4", "empty.mp4", "text.mp4", "sound.mp4", "fifo.mp4", "folder.mp4"}
    assert "is empty" in said["empty.mp4"]
    assert "no video in it" in said["sound.mp4"]
    assert "not a regular file" in said["fifo.mp4"]
    assert "is a folder" in said["folder.mp4"]
    assert not any("Traceback" in text or "unforeseen" in text for text in said.values())
    assert {name for name, result in results.items() if result.extraction} == {"a.mp4", "sub/b.MKV"}


def test_work_through__picture_is_its_own_keyframe(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    blue = np.zeros((300, 2600, 3), np.uint8)
    blue[..., 0] = 200
    cv2.imwrite(str(folder / "blue.png"), blue)
    (folder / "text.png").write_text("no picture")
    archive = open_archive(out, pictures=True, keyframe_width_px=1300)
    sources = find_sources([folder], (".png",), skip=out).sources
    blue_result, text_result = work_through(sources, archive, 2)
    assert len(blue_result.keyframes) == 1
    assert blue_result.vectors is not None
    assert blue_result.vectors[0] == pytest.approx([0, 0, 200], abs=3)  # RGB
    stored = cv2.imread(str(out / archive.picture(blue_result.source, blue_result.keyframes[0])))
    assert stored.shape == (150, 1300, 3)
    assert "cannot be read as a picture" in text_result.error
    (too_large, _) = work_through(sources, open_archive(tmp_path / "o", pictures=True, max_pixels=1000), 1)
    assert "more than the 1000 pixels allowed" in too_large.error


def test_work_through__full_disk_stops_with_a_sentence(clips: Path, tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "out")
    archive.settings = archive.settings.with_(disk_free_mb=1e12)
    with pytest.raises(SetupError, match="make room"):
        work_through(find_sources([clips], SUFFIXES, skip=tmp_path / "out").sources, archive, 1)


def test_work_through__interrupted_keeps_what_is_done(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sources = find_sources([clips], SUFFIXES, skip=out).sources
    save = Archive.save

    def save_and_interrupt(self: Archive, result: archives.Result) -> None:
        save(self, result)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            work_through(sources, open_archive(out), 1)
    assert not list(out.rglob("*.part"))
    assert sorted(result.kept for result in work_through(sources, open_archive(out), 1)) == [False, True]


def test_archive__damaged_memory_is_no_memory(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sources = find_sources([clips / "a.mp4"], SUFFIXES, skip=out).sources
    work_through(sources, open_archive(out), 1)
    (known,) = (out / "videos").iterdir()
    for damaged in (b"", b"PK\x03\x04 nothing", known.read_bytes()[:-40]):
        known.write_bytes(damaged)
        assert open_archive(out).load(sources[0]) is None


def test_archive__folder_is_safe_and_the_files_own(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "out")
    hostile = [archives.Source(Path(p), "", 0, 0) for p in ("/a/x.mp4", "/b/x.mp4", "/a/../..\n<'\".mp4", "/é" * 90)]
    folders = [archive.folder(source) for source in hostile]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert folder.isascii()
        assert len(folder) < 120
        assert not set(folder) & set("/\n<>'\"# ?%")
        assert not folder.startswith(".")


def test_load__vectors_made_elsewhere_that_are_others_now(clips: Path, tmp_path: Path) -> None:
    made, out = tmp_path / "made.npz", tmp_path / "out"
    for number in (1.0, 2.0):
        np.savez(made, path=["a.mp4", "b.MKV"], X=np.full((2, 3), number))
        archive = Archive(out, Settings(embedder=str(made), disk_free_mb=0))
        results = work_through(find_sources([clips], SUFFIXES, skip=out).sources, archive, 1)
        assert [result.vectors[0].tolist() for result in results if result.vectors is not None] == [[number] * 3] * 2
