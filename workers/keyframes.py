"""From a video file to its keyframes, in one pass. The only door to PyAV."""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from lookalike.errors import MediaError
from lookalike.records import Extraction, Keyframe, VideoFacts, keyframe_id
from workers import shots

Picture = NDArray[np.uint8]  # (height, width, 3), BGR

JPEG_QUALITY = 90

#: containers that are read; playlists and the like, which make ffmpeg open other files, are not among them
_FORMATS = (
    "mov,mp4,matroska,webm,avi,flv,live_flv,mpeg,mpegts,mpegvideo,ogg,asf,gif,mxf,h264,hevc,m4v,ivf,obu,av1,"
    "nut,yuv4mpegpipe,dv,rm,wtv,apng,vc1,nsv,swf,3gp,3g2"
)
_SPACING = 16  # frames for which one candidate is kept
_BATCH, _BATCH_BYTES = 64, 128 << 20  # decoded frames in memory at once, at most
_SAME_MEAN, _SAME_MAX = 5.0, 24.0  # levels, of 16 x 9 block means: near-duplicates
_BLURRED = 0.3  # of the sharpness of its shot's sharpest keyframe
_FLICKER = 4  # frames between two near-duplicates that are one shot nevertheless
_COMB = 300  # squared levels
_UNSPECIFIED = 2  # a colour space that nobody has named, see ITU-T H.273

#: planar formats whose samples can be read in place: bits per sample
_PLANAR = {f"yuv{j}{s}p": 8 for s in (420, 422, 444) for j in ("", "j")} | {
    f"yuv{s}p{bits}le": bits for s in (420, 422, 444) for bits in (10, 12)
}
_FADE_BYTES = 0.03  # of a key frame: packets of a black stretch are smaller
_OUTLIER, _OUTLIER_ON_BEAT, _OUTLIER_AT_END = 3.0, 1.15, 2.0  # times the largest packet around it

#: decoders that make one frame of each packet; VP8 and MPEG-4 Part 2 have packets without a frame
_PACKET_IS_FRAME = frozenset(
    ("h264", "hevc", "vp9", "libdav1d", "av1", "mpeg1video", "mpeg2video", "flv", "msmpeg4", "msmpeg4v2", "wmv1", "wmv2")
)
_MOVED = 14.0  # levels, of block means: a picture has become another one without a cut


@dataclass(frozen=True)
class KeyframeOptions:
    """How keyframes are chosen and what is refused."""

    mode: str = "exact"  # exact: every frame is decoded; fast: I-frames, and more only where needed
    share: float = 0.01  # of the frames that is kept, about: every shot gets one, a long or moving one more
    width_px: int = 1280  # widest picture written
    max_pixels: int = 4096 * 2304
    max_duration_s: float = 12 * 3600.0

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "fast"):
            raise ValueError(f"mode must be exact or fast, got {self.mode!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")


def extract(
    path: Path,
    video_id: int,
    out: Path,
    options: KeyframeOptions | None = None,
    progress: Callable[[float], None] | None = None,
) -> Extraction:
    """Find the keyframes of a video and write each as `out/<frame_index, 7 digits>.jpg`.

    Pictures are upright, have square pixels, are free of interlacing combs and at most `width_px` wide. The spans of
    the keyframes partition every shot: a near-duplicate of the keyframe just before it adds its span to that one; a
    picture that comes back later keeps a keyframe of its own, so that a timeline can be cut without gaps. Only black
    and blank stretches belong to no keyframe: a wholly black video has none. A truncated file gives what can be
    decoded. `progress` is called with the share done, 0..1.

    Raises MediaError for a file that can never be worked on.
    """
    options = options or KeyframeOptions()
    begun = time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda _: None)
    packets = _list_packets(path, options) if options.mode == "fast" else None
    with _open(path, options) as video:
        album = _Album(out, options, video.aspect)
        facts = _read_some(video, packets, album, tell) if packets else _read_all(video, album, tell)
        drafts = album.publish()
    rate = float(facts.fps)
    keyframes = tuple(
        Keyframe(
            keyframe_id(video_id, d.frame_index),
            video_id,
            d.frame_index,
            d.time_s,
            d.sharpness,
            d.first,
            d.last,
            first_s=d.first / rate,
            last_s=d.last / rate,
            shot=d.shot,
        )
        for d in drafts
    )
    cuts = tuple(d.first for before, d in pairwise(drafts) if d.shot != before.shot)
    seconds = {"keyframes": time.process_time() - begun}
    return Extraction(facts, keyframes, cuts, tuple(d.fingerprint for d in drafts), seconds)


def probe(path: Path, options: KeyframeOptions | None = None) -> VideoFacts:
    """What the header and the first frame say, cheaply; frame_count is the header's claim (0: none).

    Raises MediaError, with one sentence for a person, for what `extract` would refuse.
    """
    with _open(path, options or KeyframeOptions()) as video:
        frame = next(video.frames(), None)
        if frame is None:
            raise MediaError(f"{path.name} holds no picture that can be decoded; check that it plays")
        width, height = _shown_size(frame, video.aspect)
        fps = video.rate or Fraction(25)
        return VideoFacts(fps, video.stream.frames, video.duration_s or 0.0, width, height)


def decode_only(path: Path) -> int:
    """Decode every frame and do nothing with it: the limit that `extract` is measured against. Frames decoded."""
    with _open(path, KeyframeOptions()) as video:
        return sum(1 for _ in video.frames())


def fingerprint(picture: Picture) -> int:
    """64 bits that differ in few places between pictures that look alike (difference hash), as a signed number.

    Each bit says whether one of 8 x 9 block means of the grey picture is brighter than its left neighbour.
    """
    small = cv2.resize(_coarse(picture), (9, 8), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big", signed=True)


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a grey picture (Pech-Pacheco et al. 2000). Its mean is 0 but for the border."""
    return float(cv2.norm(cv2.Laplacian(grey, cv2.CV_16S)) ** 2 / grey.size)


# -- one pass over all frames ------------------------------------------------------------------------------------


def _read_all(video: _Video, album: _Album, progress: Callable[[float], None]) -> VideoFacts:
    stretches = _Stretches(album)
    clock, sampler, picker = _Clock(video, album.options.max_duration_s), _Sampler(), _Picker(stretches)
    size = (0, 0)
    for batch in _batches(video.frames()):
        if not clock.frame_count:
            size = _shown_size(batch[0], video.aspect)
        times = [clock.tick(frame) for frame in batch]
        picker.take(batch, times, sampler.sample(batch))
        progress(clock.share_done)
    if not clock.frame_count:
        raise MediaError(f"{video.path.name} holds no picture that can be decoded; check that it plays")
    picker.finish()
    stretches.finish(clock.frame_count)
    progress(1.0)
    return _facts(video, clock.frame_count, clock.time_s, size)


def _batches(frames: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == min(_BATCH, max(4, _BATCH_BYTES // (2 * frame.width * frame.height))):
            yield batch
            batch = []
    if batch:
        yield batch


class _Picker:
    """Takes all frames of a stretch of the file in order; holds few of them; finds its shots and their candidates."""

    def __init__(self, stretches: _Stretches, first_frame: int = 0) -> None:
        self._stretches = stretches
        self._finder = shots.ShotFinder(first_frame)
        self._waiting: list[tuple[int, float, Any]] = []  # frames whose hard cuts are not certain yet
        self._slot: _Candidate | None = None  # the calmest frame since `_slot_begin`
        self._slot_begin = first_frame

    def take(self, frames: list[Any], times: list[float], samples: NDArray[np.uint8]) -> None:
        first = self._finder.frame_count
        self._finder.push(samples)
        self._waiting += [(first + i, t, f) for i, (t, f) in enumerate(zip(times, frames, strict=True))]
        self._fill_slots(max(0, len(self._waiting) - shots.CUT_LAG))
        self._settle(self._finder.settle())

    def finish(self) -> None:
        self._fill_slots(len(self._waiting))
        self._end_slot()
        self._settle(self._finder.settle(last=True))

    def breaks_before(self, blocks: NDArray[np.float32]) -> bool:
        """Whether a picture that comes after all these would begin a new shot."""
        return self._finder.breaks_before(blocks)

    def _fill_slots(self, count: int) -> None:
        """Take the `count` oldest waiting frames into slots. Each slot's calmest frame is a candidate: motion blurs."""
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        if not ready:
            return
        begin, end = ready[0][0], ready[-1][0] + 1
        breaks = set(self._finder.breaks(begin, end))
        unrest = self._finder.unrest(begin, end)
        for index, time_s, frame in ready:
            if index in breaks or index - self._slot_begin >= _SPACING:
                self._end_slot()
                self._slot_begin = index
            if self._slot is None or unrest[index - begin] < self._slot.unrest:
                self._slot = _Candidate(index, time_s, frame, float(unrest[index - begin]))

    def _end_slot(self) -> None:
        if self._slot:
            self._stretches.offer(self._slot)
        self._slot = None

    def _settle(self, settled: shots.Settled) -> None:
        self._stretches.rule_out(settled.first + np.flatnonzero(settled.between))
        frames = range(settled.first, settled.first + len(settled.starts))
        for row, (frame, starts, empty) in enumerate(
            zip(frames, settled.starts.tolist(), settled.empty.tolist(), strict=True)
        ):
            self._stretches.see(frame, settled.blocks[row], starts, empty)
        self._stretches.thin()


class _Candidate:
    """A frame that may become a keyframe."""

    __slots__ = ("fitness", "frame", "index", "time_s", "unrest")

    def __init__(self, index: int, time_s: float, frame: Any, unrest: float) -> None:
        self.index, self.time_s, self.frame = index, time_s, frame
        self.unrest = unrest  # change of the picture just before and after it, in levels
        self.fitness = 0.0


class _Stretches:
    """Cuts the film into stretches that look alike, and gives the best candidate of each to the album."""

    def __init__(self, album: _Album) -> None:
        self._album = album
        self._longest = max(2, round(1 / album.options.share))
        self._candidates: list[_Candidate] = []
        self._begin = self._end = 0  # of the stretch at hand; the frame after the last one seen
        self._begin_blocks: NDArray[np.float32] | None = None
        self._shot_begins = True

    def offer(self, candidate: _Candidate) -> None:
        """Must come before a frame is seen that ends its stretch."""
        sharp = sharpness(_luma(candidate.frame)[::2])  # one field is enough, at half the price
        candidate.fitness = sharp / (1 + candidate.unrest / 2)  # calm frames are neither fades nor motion
        self._candidates.append(candidate)

    def rule_out(self, indexes: NDArray[np.int64]) -> None:
        """Frames in the middle of a dissolve: better any other."""
        for candidate in self._candidates:
            if candidate.index in indexes:
                candidate.fitness = -1.0

    def see(self, frame: int, blocks: NDArray[np.float32], starts: bool, empty: bool) -> None:
        """The next frame (or I-frame): close the stretch at a break, and where it has become long."""
        self._end = frame + 1
        if empty:
            self._close(frame, whole=True)
            self._begin = frame + 1
            return
        if starts:
            self.break_at(frame)
        if self._begin_blocks is None:
            self._begin_blocks = blocks
        length = frame - self._begin
        moved = length >= self._longest // 2 and shots.distance(blocks, self._begin_blocks) > _MOVED
        if length >= self._longest or moved:
            self._close(frame)

    def break_at(self, frame: int) -> None:
        """A shot begins with this frame."""
        self._close(frame, whole=True)

    def thin(self) -> None:
        """Of the candidates of the stretch at hand three are enough."""
        seen = sorted((c for c in self._candidates if c.index < self._end), key=lambda c: -c.fitness)
        self._candidates = seen[:3] + [c for c in self._candidates if c.index >= self._end]

    def finish(self, frame_count: int) -> None:
        self._close(frame_count, whole=True)

    def _close(self, end: int, whole: bool = False) -> None:
        """The stretch `begin .. end - 1` is over: the fittest candidate stands for it. `whole`: its shot is over too."""
        own = [c for c in self._candidates if self._begin <= c.index < end]
        if own:
            best = max(own, key=lambda c: c.fitness)
            self._album.add(best.frame, best.index, best.time_s, self._begin, end - 1, self._shot_begins)
            self._candidates = [c for c in self._candidates if c.index >= end]
        elif whole and self._begin < end:
            self._album.lengthen(self._begin, end - 1)
        if own or whole:
            self._begin, self._begin_blocks, self._shot_begins = end, None, whole


# -- the fast mode: I-frames, and more only where they say that something is hidden between them ------------------


@dataclass(frozen=True)
class _Packets:
    """What the file says about its frames without decoding one. Rows in the order shown."""

    pts: NDArray[np.int64]  # (n,)
    key: NDArray[np.bool_]  # (n,)
    size: NDArray[np.float32]  # (n,) bytes, 0 for key frames
    outlier: NDArray[np.float32]  # (n,) size as a ratio to the largest of those around it
    key_bytes: float  # median size of a key frame
    beat: int  # longest distance of two key frames, if it is usual; else 0

    def index(self, pts: int) -> int:
        return int(np.searchsorted(self.pts, pts))

    def on_beat(self, before: int, index: int) -> bool:
        """Whether a key frame is there only because it was time for one."""
        return bool(self.key[index]) and 0 < self.beat <= index - before + 1


def _list_packets(path: Path, options: KeyframeOptions) -> _Packets | None:
    """None where packets cannot be trusted to be frames, or I-frames would save nothing."""
    pts, sizes, keys = array("q"), array("q"), array("b")
    with _open(path, options) as video:
        if video.stream.codec_context.name not in _PACKET_IS_FRAME:
            return None
        for packet in video.packets():
            if packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt:
                return None
            pts.append(packet.pts)
            sizes.append(packet.size)
            keys.append(packet.is_keyframe)
    times, key, size = np.array(pts), np.array(keys, np.bool_), np.array(sizes, np.float32)
    order = np.argsort(times, kind="stable")
    if not len(times) or not key[0] or order[0] != 0 or 4 * key.sum() > len(key) or (np.diff(times[order]) == 0).any():
        return None
    gops = np.diff(np.flatnonzero(key[order]))
    longest = int(gops.max(initial=0))
    beat = longest if (gops >= longest - 1).sum() >= 2 else 0
    between = np.where(key, 0, size)[order]
    return _Packets(times[order], key[order], between, _outliers(between), float(np.median(size[key])), beat)


def _outliers(sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) each size as a ratio to the largest of the 8 before and the 8 after it."""
    reach = 8
    padded = np.pad(sizes, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach)
    around = np.maximum(windows[: len(sizes)].max(axis=1), windows[reach + 1 : reach + 1 + len(sizes)].max(axis=1))
    return np.asarray(sizes / (around + 1), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Intra:
    """An I-frame."""

    index: int
    frame: Any
    blocks: NDArray[np.float32]
    empty: bool


def _read_some(video: _Video, packets: _Packets, album: _Album, progress: Callable[[float], None]) -> VideoFacts:
    """Look at the I-frames, and between two of them where `_worth_decoding` says so."""
    count, zero = len(packets.pts), int(packets.pts[0])
    unit_s = float(video.stream.time_base)
    last_s = float(packets.pts[-1] - zero) * unit_s
    if last_s > album.options.max_duration_s:
        raise MediaError(_too_long(video.path, last_s, album.options.max_duration_s))
    stretches, size = _Stretches(album), (0, 0)
    with _open(video.path, album.options) as between:
        here: _Intra | None = None
        for coming in chain(_intra_frames(video, packets), [None]):
            if here is None:
                if coming is None:
                    raise MediaError(f"{video.path.name} holds no picture that can be decoded; check that it plays")
                size = _shown_size(coming.frame, video.aspect)
            elif _worth_decoding(here, coming, packets):
                picker, sampler = _Picker(stretches, here.index), _Sampler()
                stop = coming.index if coming else count
                for batch in _batches(_frames_between(between, packets, here.index, stop)):
                    times = [(frame.pts - zero) * unit_s for frame in batch]
                    picker.take(batch, times, sampler.sample(batch))
                picker.finish()
                if coming and picker.breaks_before(coming.blocks):
                    stretches.break_at(coming.index)
            else:
                stretches.offer(_Candidate(here.index, (here.frame.pts - zero) * unit_s, here.frame, 0.0))
                stretches.see(here.index, here.blocks, False, here.empty)
                if coming and not packets.on_beat(here.index, coming.index) and shots.differ(here.blocks, coming.blocks):
                    stretches.break_at(coming.index)
            stretches.thin()
            here = coming
            progress(here.index / count if here else 1.0)
    stretches.finish(count)
    return _facts(video, count, last_s, size)


def _worth_decoding(here: _Intra, coming: _Intra | None, packets: _Packets) -> bool:
    """Whether something may hide between two I-frames.

    An encoder that puts I-frames at cuts (x264, x265) puts them off the regular beat: then only a packet that stands
    far out is suspect. On the beat, pictures that differ are, if any packet stands out at all: motion alone makes
    none. Out of black, large packets are a fade.
    """
    inside = slice(here.index + 1, coming.index if coming else len(packets.pts))
    outlier = float(packets.outlier[inside].max(initial=0))
    if here.empty:
        return bool(packets.size[inside].max(initial=0) > _FADE_BYTES * packets.key_bytes)
    if coming is None:
        return outlier > _OUTLIER_AT_END
    if packets.on_beat(here.index, coming.index) and shots.differ(here.blocks, coming.blocks):
        return outlier > _OUTLIER_ON_BEAT
    return outlier > _OUTLIER


def _intra_frames(video: _Video, packets: _Packets) -> Iterator[_Intra]:
    sampler, last = _Sampler(), -1
    for frame in video.intra_frames():
        index = packets.index(frame.pts)
        if index > last:
            samples = sampler.sample([frame])
            yield _Intra(index, frame, shots.block_means(samples)[0], bool(shots.is_empty(samples)[0]))
            last = index


def _frames_between(video: _Video, packets: _Packets, begin: int, end: int) -> Iterator[Any]:
    video.seek(int(packets.pts[begin]))
    for frame in video.frames():
        index = packets.index(frame.pts)
        if index >= end:
            return
        if index >= begin:
            yield frame


# -- the pictures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Draft:
    """A keyframe, its picture written to a part file."""

    frame_index: int
    time_s: float
    sharpness: float
    first: int
    last: int
    shot: int
    fingerprint: int
    small: NDArray[np.float32] = field(compare=False)  # (9, 16, 3) block means


class _Album:
    """Writes pictures as they come, and chooses among them at the end."""

    def __init__(self, out: Path, options: KeyframeOptions, aspect: Fraction) -> None:
        self.options = options
        self._out, self._aspect = out, aspect
        self._drafts: list[_Draft] = []

    def add(self, frame: Any, index: int, time_s: float, first: int, last: int, shot_begins: bool) -> None:
        """A keyframe that stands for first..last; if it looks like the one before, that one stands for both."""
        picture = _picture(frame, self._aspect, self.options.width_px)
        small = cv2.resize(_coarse(picture), (16, 9), interpolation=cv2.INTER_AREA).astype(np.float32)
        before = self._drafts[-1] if self._drafts else None
        if before and first - before.last <= _FLICKER and _same(before.small, small):
            self._drafts[-1] = replace(before, last=last)
            return
        shot = before.shot + shot_begins if before else 0
        sharp = sharpness(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
        done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        self._path(index, ".part").write_bytes(data.tobytes())
        self._drafts.append(_Draft(index, time_s, sharp, first, last, shot, fingerprint(picture), small))

    def lengthen(self, first: int, last: int) -> None:
        """Frames without a candidate belong to the keyframe before them, if it is their neighbour."""
        if self._drafts and self._drafts[-1].last == first - 1:
            self._drafts[-1] = replace(self._drafts[-1], last=last)

    def publish(self) -> list[_Draft]:
        """Choose, and give the pictures chosen their names."""
        chosen = [draft for _, shot in groupby(self._drafts, key=lambda d: d.shot) for draft in _clear(list(shot))]
        chosen = _within_budget(chosen, self.options.share)
        names = {draft.frame_index for draft in chosen}
        for draft in self._drafts:
            part = self._path(draft.frame_index, ".part")
            if draft.frame_index in names:
                part.replace(self._path(draft.frame_index))
            else:
                part.unlink()
        return chosen

    def _path(self, index: int, suffix: str = "") -> Path:
        return self._out / f"{index:07d}.jpg{suffix}"


def _clear(shot: list[_Draft]) -> list[_Draft]:
    """Without those that are much less sharp than the sharpest of the shot."""
    sharpest = max(draft.sharpness for draft in shot)
    return _joined(shot, [draft for draft in shot if draft.sharpness >= _BLURRED * sharpest])


def _within_budget(drafts: list[_Draft], share: float) -> list[_Draft]:
    """One keyframe for each shot; beyond it `share` of the frames of long shots, the newest pictures first."""
    by_shot = [list(shot) for _, shot in groupby(drafts, key=lambda d: d.shot)]
    budget = sum(max(0, round(share * (shot[-1].last - shot[0].first + 1)) - 1) for shot in by_shot)
    novelty = {
        draft.frame_index: float(np.abs(draft.small - before.small).mean())
        for shot in by_shot
        for before, draft in pairwise(shot)
    }
    extra = set(sorted(novelty, key=lambda index: -novelty[index])[:budget])
    return [
        draft
        for shot in by_shot
        for draft in _joined(shot, [d for d in shot if d.frame_index in extra or d.frame_index not in novelty])
    ]


def _joined(shot: list[_Draft], kept: list[_Draft]) -> list[_Draft]:
    """The kept drafts of a shot, with the spans of the others: each reaches to where the next one kept begins."""
    ends = [draft.first - 1 for draft in kept[1:]] + [shot[-1].last]
    firsts = [shot[0].first] + [draft.first for draft in kept[1:]]
    return [replace(d, first=first, last=last) for d, first, last in zip(kept, firsts, ends, strict=True)]


def _same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    difference = np.abs(a - b)
    return bool(difference.mean() < _SAME_MEAN and difference.max() < _SAME_MAX)


def _coarse(picture: Picture) -> Picture:
    """Every k-th point, about 160 x 90 of them: the mean of all takes 20 times as long and hardly differs."""
    return np.ascontiguousarray(picture[:: max(1, picture.shape[0] // 90), :: max(1, picture.shape[1] // 160)])


def _picture(frame: Any, aspect: Fraction, width_px: int) -> Picture:
    """Upright, with square pixels, without combs, at most `width_px` wide, BGR."""
    hd = frame.colorspace == _UNSPECIFIED and frame.height >= 720  # players take HD for BT.709 if nothing is said
    picture = np.asarray(frame.to_ndarray(format="bgr24", src_colorspace="ITU709" if hd else None, threads=1))
    if frame.interlaced_frame:
        _comb_out(picture)
    picture = np.rot90(picture, round(frame.rotation / 90))
    width, height = _shown_size(frame, aspect)
    if width > width_px:
        width, height = width_px, max(1, round(height * width_px / width))
    if picture.shape[:2] != (height, width):
        smaller = width * height < picture.shape[0] * picture.shape[1]
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.ascontiguousarray(picture)


def _shown_size(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) of a decoded frame turned upright with square pixels."""
    size = max(1, round(frame.width * aspect)), int(frame.height)
    return (size[1], size[0]) if round(frame.rotation / 90) % 2 else size


def _comb_out(picture: Picture) -> None:
    """Where an odd line differs from both its neighbours to the same side, take their mean: spatial deinterlacing."""
    above = picture[0:-2:2].astype(np.int16)
    below = picture[2::2].astype(np.int16)
    odd = picture[1:-1:2]
    combed = ((odd - above) * (odd - below).clip(-100, 100)).max(axis=2, keepdims=True) > _COMB
    np.copyto(odd, ((above + below) >> 1).astype(np.uint8), where=combed)


def _luma(frame: Any) -> NDArray[np.uint8]:
    """(height, width) uint8: a view of the frame's own memory where its format allows."""
    depth = _PLANAR.get(frame.format.name)
    if depth is None:
        frame, depth = frame.reformat(format="gray"), 8
    return _points(frame.planes[0], depth, (frame.height, frame.width), 0, 0, 1, 1)


class _Sampler:
    """Reads few points of each frame out of its planes: converting a frame would cost more than decoding it."""

    def __init__(self) -> None:
        self._format: tuple[int, int, str] | None = None
        self._depth: int | None = None
        self._grids: list[tuple[tuple[int, int], int, int, int, int]] = []  # shape, top, left, down, right per plane

    def sample(self, frames: list[Any]) -> NDArray[np.uint8]:
        """(n, shots.SAMPLES) uint8 of n frames."""
        samples = np.empty((len(frames), shots.SAMPLES), np.uint8)
        for row, frame in zip(samples, frames, strict=True):
            if self._format != (frame.width, frame.height, frame.format.name):
                self._lay_grids(frame)
            if self._depth is None:
                frame = frame.reformat(2 * shots.LUMA[1], 2 * shots.LUMA[0], "yuv420p")  # noqa: PLW2901
            begin = 0
            for plane, (shape, top, left, down, right) in zip(frame.planes, self._grids, strict=False):
                end = begin + shape[0] * shape[1]
                row[begin:end] = _points(plane, self._depth or 8, shape, top, left, down, right).ravel()
                begin = end
        return samples

    def _lay_grids(self, frame: Any) -> None:
        """Evenly over each plane; a format that cannot be read in place, or a tiny frame, is converted first."""
        self._format = frame.width, frame.height, frame.format.name
        self._depth = _PLANAR.get(frame.format.name)
        if frame.width < 2 * shots.LUMA[1] or frame.height < 2 * shots.LUMA[0]:
            self._depth = None
        if self._depth is None:
            frame = frame.reformat(2 * shots.LUMA[1], 2 * shots.LUMA[0], "yuv420p")
        self._grids = []
        for plane, (rows, columns) in zip(frame.planes, (shots.LUMA, shots.CHROMA, shots.CHROMA), strict=True):
            down, right = plane.height // rows, plane.width // columns
            top, left = (plane.height - (rows - 1) * down) // 2, (plane.width - (columns - 1) * right) // 2
            self._grids.append(((rows, columns), top, left, down, right))


def _points(
    plane: Any, depth: int, shape: tuple[int, int], top: int, left: int, down: int, right: int
) -> NDArray[np.uint8]:
    """Every `down`-th line and `right`-th point of a plane, as 8 bits."""
    if depth == 8:
        offset, strides = top * plane.line_size + left, (down * plane.line_size, right)
        return np.ndarray(shape, np.uint8, plane, offset, strides)
    offset, strides = top * plane.line_size + 2 * left, (down * plane.line_size, 2 * right)
    return (np.ndarray(shape, "<u2", plane, offset, strides) >> (depth - 8)).astype(np.uint8)


# -- the file ----------------------------------------------------------------------------------------------------


class _Video:
    """An open file and the one video stream of it that is worked on."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self.path, self.container, self.stream = path, container, stream
        self.aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        rate = stream.average_rate or stream.guessed_rate
        self.rate = Fraction(rate) if rate else None
        self.duration_s: float | None = None
        if stream.duration and stream.time_base:
            self.duration_s = float(stream.duration * stream.time_base)
        elif container.duration:
            self.duration_s = container.duration / av.time_base

    def packets(self) -> Iterator[Any]:
        """All packets of the stream; a file cut short ends early. Theora repeats a picture by an empty packet."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.FFmpegError):
                return
            if packet.size:
                yield packet

    def frames(self) -> Iterator[Any]:
        """All frames in the order shown. What cannot be decoded is passed over."""
        for packet in chain(self.packets(), [None]):
            yield from self._decode(packet)

    def intra_frames(self) -> Iterator[Any]:
        """Only the frames that can be decoded by themselves."""
        context = self.stream.codec_context
        context.thread_count = 1  # threads decode ahead what is then thrown away
        all_kinds = context.name == "h264"  # which has I-frames that are no key frames: at cuts close to each other
        context.skip_frame = "NONINTRA" if all_kinds else "NONKEY"
        for packet in chain(self.packets(), [None]):
            if packet is None or all_kinds or packet.is_keyframe:
                yield from self._decode(packet)

    def seek(self, pts: int) -> None:
        """To the key frame at or before a time of the stream."""
        self.container.seek(pts, stream=self.stream)

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return list(self.stream.codec_context.decode(packet))
        except (av.error.FFmpegError, EOFError):
            return []


class _Clock:
    """Counts frames and tells their times, from the first one."""

    def __init__(self, video: _Video, longest_s: float) -> None:
        self.frame_count = 0
        self.time_s = 0.0  # of the last frame
        self._video, self._longest_s = video, longest_s
        self._unit_s = float(video.stream.time_base)
        self._step_s = float(1 / (video.rate or 25))
        self._zero: float | None = None

    @property
    def share_done(self) -> float:
        return min(1.0, self.time_s / self._video.duration_s) if self._video.duration_s else 0.0

    def tick(self, frame: Any) -> float:
        """Seconds from the first frame to this one; a frame without a time comes one frame after the last."""
        stamp = None if frame.pts is None else frame.pts * self._unit_s
        if self._zero is None:
            self._zero = stamp or 0.0
        elif stamp is not None:
            self.time_s = max(self.time_s, stamp - self._zero)
        else:
            self.time_s += self._step_s
        if self.time_s > self._longest_s:
            raise MediaError(_too_long(self._video.path, self.time_s, self._longest_s))
        self.frame_count += 1
        return self.time_s


def _facts(video: _Video, count: int, last_s: float, size: tuple[int, int]) -> VideoFacts:
    """The rate is the header's where that is right to 1 %, else what the frames say."""
    rate = video.rate or Fraction(25)
    if count > 1 and last_s > 0:
        measured = Fraction((count - 1) / last_s).limit_denominator(1001)
        rate = rate if video.rate and abs(rate / measured - 1) < 0.01 else measured
    return VideoFacts(rate, count, last_s + float(1 / rate), *size)


@contextmanager
def _open(path: Path, options: KeyframeOptions) -> Iterator[_Video]:
    """The file, checked. Raises MediaError with a sentence for whatever is wrong with it."""
    name = path.name
    _check_file(path)
    try:
        container = av.open(str(path), options={"protocol_whitelist": "file", "format_whitelist": _FORMATS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{name} cannot be read as a video ({_reason(error)}); check that it plays") from None
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{name} has no video in it, only sound or text; choose a file with a picture")
        stream = max(streams, key=lambda s: (s.codec_context.width or 0) * (s.codec_context.height or 0))
        context = stream.codec_context
        pixels = context.width * context.height
        if pixels > options.max_pixels:
            raise MediaError(
                f"{name} is {context.width} x {context.height}, more than the {options.max_pixels} pixels allowed; "
                "scale it down or raise max_pixels"
            )
        video = _Video(path, container, stream)
        if video.duration_s and video.duration_s > options.max_duration_s:
            raise MediaError(_too_long(path, video.duration_s, options.max_duration_s))
        stream.thread_type = "AUTO"
        context.options = {"max_pixels": str(options.max_pixels)}  # a later part of the stream may be larger
        try:
            yield video
        except av.error.FFmpegError as error:
            raise MediaError(f"{name} cannot be decoded ({_reason(error)}); check that it plays") from None


def _check_file(path: Path) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise MediaError(f"{path} cannot be opened: {(error.strerror or 'no such file').lower()}") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path} is a folder; name a video file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path} is not a regular file; name a video file")
    if not status.st_size:
        raise MediaError(f"{path.name} is empty; upload it again")


def _too_long(path: Path, got_s: float, longest_s: float) -> str:
    return f"{path.name} lasts {got_s:.0f} s or more, {longest_s:.0f} s are allowed; cut it or raise max_duration_s"


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
