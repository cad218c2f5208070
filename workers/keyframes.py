"""From a video file to its keyframes, in one pass. The only door to PyAV.

A film is cut into stretches that look alike (`_Stretches`), and the album keeps the picture that stands for each. In
the exact mode `_Picker` walks over all frames, in the fast mode `_Skimmer` over the I-frames.
"""

from __future__ import annotations

import os
import re
import stat
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from numpy.typing import NDArray

from lookalike.errors import MediaError
from lookalike.records import Extraction, Keyframe, VideoFacts, keyframe_id
from lookalike.settings import Settings
from workers import shots
from workers.album import Album
from workers.pictures import Sampler, fingerprint, luma, sharpness, shown_size

Times = NDArray[np.float64]  # (frame_count,) seconds from the first frame

__all__ = ["KeyframeOptions", "decode_only", "extract", "fingerprint", "probe", "sharpness"]

#: containers that are read; playlists and the like, which make ffmpeg open other files, are not among them
FORMATS = (
    "mov,mp4,matroska,webm,avi,flv,live_flv,mpeg,mpegts,mpegvideo,ogg,asf,gif,mxf,h264,hevc,m4v,ivf,obu,av1,"
    "nut,yuv4mpegpipe,dv,rm,wtv,apng,vc1,nsv,swf,3gp,3g2"
)
_SPACING = 16  # frames for which one candidate is kept
_BATCH, _BATCH_BYTES = 64, 128 << 20  # decoded frames in memory at once, at most
_FADE_BYTES = 0.03  # of a key frame: packets of a black stretch are smaller
_LIT_FRAMES, _CALM = 12, 1.0  # a fade is over after so many frames, or when so few levels change
_OUTLIER, _OUTLIER_AT_END = 0.9, 2.0  # times the largest packet around it: what a cut without an I-frame makes

#: what the fast mode needs: a container with an index, and a decoder that makes one frame of each packet (VP8 and
#: MPEG-4 Part 2 have packets without a frame); all else is read in the exact mode
_SEEKS_EXACTLY = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"))
_PACKET_IS_FRAME = frozenset(("h264", "hevc", "vp9", "libdav1d", "av1", "mpeg1video", "mpeg2video"))
_MOVED, _COMPARE_EVERY = 14.0, 8  # levels of block means: a picture has become another without a cut; frames


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

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What a person has chosen."""
        return cls(
            settings.keyframe_mode,
            settings.keyframe_share,
            settings.keyframe_width_px,
            settings.max_pixels,
            settings.max_duration_s,
        )


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

    The fast mode knows frame counts, indexes and times from the packets, exactly, and looks at I-frames; it decodes all
    frames between two of them that differ unless the encoder is known to put I-frames at cuts (x264, x265). It misses
    most dissolves, and black that begins without an I-frame counts to the keyframe before it. A file whose packets
    cannot be trusted to be frames is read in the exact mode.

    Raises MediaError for a file that can never be worked on.
    """
    options = options or KeyframeOptions()
    begun = time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda _: None)
    with ExitStack() as files:
        video = files.enter_context(_open(path, options))
        album = Album(out, video.aspect, options.width_px, options.share)
        if options.mode == "fast":
            packets, between = _list_packets(video), video
            video = files.enter_context(_open(path, options))  # from the start again
            read = _read_some(video, packets, between, album, tell) if packets else _read_all(video, album, tell)
        else:
            read = _read_all(video, album, tell)
        drafts = album.publish()
    facts, times_s = read
    keyframes = tuple(
        Keyframe(
            keyframe_id(video_id, d.frame_index),
            video_id,
            d.frame_index,
            d.time_s,
            d.sharpness,
            d.first,
            d.last,
            first_s=float(times_s[d.first]),
            last_s=float(times_s[d.last]),
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
        width, height = shown_size(frame, video.aspect)
        fps = video.rate or Fraction(25)
        return VideoFacts(fps, video.stream.frames, video.duration_s or 0.0, width, height)


def decode_only(path: Path) -> int:
    """Decode every frame and do nothing with it: the limit that `extract` is measured against. Frames decoded."""
    with _open(path, KeyframeOptions()) as video:
        return sum(1 for _ in video.frames())


# -- one pass over all frames ------------------------------------------------------------------------------------


def _read_all(video: _Video, album: Album, progress: Callable[[float], None]) -> tuple[VideoFacts, Times]:
    stretches = _Stretches(album)
    clock, sampler, picker = _Clock(video), Sampler(), _Picker(stretches)
    size = (0, 0)
    for batch in _batches(video.frames()):
        if not clock.times_s:
            size = shown_size(batch[0], video.aspect)
        times = [clock.tick(frame) for frame in batch]
        picker.take(batch, times, sampler.sample(batch))
        progress(clock.share_done)
    if not clock.times_s:
        raise MediaError(f"{video.path.name} holds no picture that can be decoded; check that it plays")
    picker.finish()
    stretches.finish(len(clock.times_s))
    progress(1.0)
    return _facts(video, len(clock.times_s), clock.time_s, size), np.asarray(clock.times_s)


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

    def __init__(self, index: int, time_s: float, frame: Any, unrest: float) -> None:
        self.index, self.time_s, self.frame = index, time_s, frame
        self.unrest = unrest  # change of the picture just before and after it, in levels
        self.dissolving = False

    @cached_property
    def fitness(self) -> float:
        """Sharp and calm is best; one field is enough to see it, at half the price."""
        return sharpness(luma(self.frame)[::2]) / (1 + self.unrest / 2)


def _preference(candidate: _Candidate) -> tuple[bool, float]:
    return not candidate.dissolving, candidate.fitness


class _Stretches:
    """Cuts the film into stretches that look alike, and gives the best candidate of each to the album."""

    def __init__(self, album: Album) -> None:
        self._album = album
        self._longest = max(2, round(1 / album.share))
        self._candidates: list[_Candidate] = []
        self._begin = self._end = 0  # of the stretch at hand; the frame after the last one seen
        self._begin_blocks: NDArray[np.float32] | None = None
        self._shot_begins = True
        self._compared = 0  # frame

    def offer(self, candidate: _Candidate) -> None:
        """Must come before a frame is seen that ends its stretch."""
        self._candidates.append(candidate)

    def rule_out(self, indexes: NDArray[np.int64]) -> None:
        """Frames in the middle of a dissolve: better any other."""
        for candidate in self._candidates:
            candidate.dissolving |= candidate.index in indexes

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
        if length >= self._longest:
            self._close(frame)
        elif length >= self._longest // 2 and frame >= self._compared + _COMPARE_EVERY:
            self._compared = frame
            if shots.distance(blocks, self._begin_blocks) > _MOVED:
                self._close(frame)

    def break_at(self, frame: int) -> None:
        """A shot begins with this frame."""
        self._close(frame, whole=True)

    def thin(self) -> None:
        """Of the candidates of the stretch at hand three are enough."""
        seen = [c for c in self._candidates if c.index < self._end]
        if len(seen) > 3:
            seen = sorted(seen, key=_preference, reverse=True)[:3]
        self._candidates = seen + [c for c in self._candidates if c.index >= self._end]

    def finish(self, frame_count: int) -> None:
        self._close(frame_count, whole=True)

    def _close(self, end: int, whole: bool = False) -> None:
        """The stretch `begin .. end - 1` is over: the fittest candidate stands for it; its shot may be over too."""
        own = [c for c in self._candidates if self._begin <= c.index < end]
        if own:
            best = max(own, key=_preference) if len(own) > 1 else own[0]
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
    beat: int  # frames after which a key frame comes, cut or no cut; 0: not known
    at_cuts: bool  # whether the encoder puts I-frames at cuts, off the beat

    def index(self, pts: int) -> int:
        return int(np.searchsorted(self.pts, pts))

    def on_beat(self, before: int, index: int) -> bool:
        """Whether an I-frame is there only because it was time for one."""
        return bool(self.key[index]) and 0 < self.beat <= index - before + 1


def _list_packets(video: _Video) -> _Packets | None:
    """None where packets cannot be trusted to be frames, or where I-frames would save nothing."""
    if video.stream.codec_context.name not in _PACKET_IS_FRAME or video.container.format.name not in _SEEKS_EXACTLY:
        return None
    pts, sizes, keys, head = array("q"), array("q"), array("b"), b""
    for packet in video.packets():
        if packet.is_discard:
            continue
        if packet.pts is None or packet.is_corrupt:
            return None
        head = head or bytes(packet)
        pts.append(packet.pts)
        sizes.append(packet.size)
        keys.append(packet.is_keyframe)
    times, key, size = np.array(pts), np.array(keys, np.bool_), np.array(sizes, np.float32)
    order = np.argsort(times, kind="stable")
    if not len(times) or not key[0] or order[0] != 0 or 4 * key.sum() > len(key) or (np.diff(times[order]) == 0).any():
        return None
    key_bytes, between = float(np.median(size[key])), np.where(key, 0, size)[order]
    beat, at_cuts = _beat(key[order], head)
    return _Packets(times[order], key[order], between, _outliers(between), key_bytes, beat, at_cuts)


def _beat(key: NDArray[np.bool_], head: bytes) -> tuple[int, bool]:
    """`_Packets.beat` and `at_cuts`: x264 and x265 write their settings into the first packet. Others: no trust."""
    longest, scene_cut = (re.search(rb"[ /]" + name + rb"=(\d+)", head) for name in (b"keyint", b"scenecut"))
    if longest and scene_cut:
        return int(longest[1]), int(scene_cut[1]) > 0
    gops = np.diff(np.flatnonzero(key))
    usual = int(gops.max(initial=0))
    return (usual if (gops >= usual - 1).sum() >= 2 else 0), False


def _outliers(sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) each size as a ratio to the largest of the 8 before and the 8 after it."""
    reach, n = 8, len(sizes)
    padded = np.pad(sizes, reach)
    around = np.ones(n, np.float32)
    for offset in chain(range(reach), range(reach + 1, 2 * reach + 1)):
        np.maximum(around, padded[offset : offset + n], out=around)
    return sizes / around


@dataclass(frozen=True, slots=True)
class _Intra:
    """An I-frame."""

    index: int
    frame: Any
    blocks: NDArray[np.float32]  # (432,)
    empty: bool


class _Skimmer:
    """Walks from I-frame to I-frame, and looks between two of them where something may hide."""

    def __init__(self, video: _Video, packets: _Packets, between: _Video, stretches: _Stretches) -> None:
        self._video, self._packets, self._stretches = video, packets, stretches
        self._between = between  # the same file, opened once more
        self._unit_s = float(video.stream.time_base)

    def time_s(self, frame: Any) -> float:
        return float((frame.pts - int(self._packets.pts[0])) * self._unit_s)

    def intra_frames(self) -> Iterator[_Intra]:
        """In the order shown. A decoder that skips may give an I-frame that is no key frame too early."""
        sampler, waiting = Sampler(), []
        for frame in chain(self._video.intra_frames(), [None, None]):
            if frame is not None:
                waiting.append((self._packets.index(frame.pts), frame))
                waiting.sort(key=lambda item: item[0])
            if waiting and (len(waiting) > 2 or frame is None):
                index, frame = waiting.pop(0)
                samples = sampler.sample([frame])
                yield _Intra(index, frame, shots.block_means(samples)[0], bool(shots.is_empty(samples)[0]))

    def step(self, here: _Intra, coming: _Intra | None) -> None:
        """Everything from one I-frame to before the next, and whether a shot begins with that one."""
        packets, stretches = self._packets, self._stretches
        inside = slice(here.index + 1, coming.index if coming else len(packets.pts))
        outlier = packets.outlier[inside].max(initial=0)
        differ = coming is not None and shots.differ(here.blocks, coming.blocks)
        if here.empty and packets.size[inside].max(initial=0) > _FADE_BYTES * packets.key_bytes:
            self._look_for_light(here, inside.stop)
        elif not packets.at_cuts and outlier > (_OUTLIER if differ else _OUTLIER_AT_END if not coming else np.inf):
            self._look_at_all(here, coming, inside.stop)
            return
        else:
            stretches.offer(_Candidate(here.index, self.time_s(here.frame), here.frame, 0.0))
            stretches.see(here.index, here.blocks, False, here.empty)
        if coming and differ and packets.at_cuts and not packets.on_beat(here.index, coming.index):
            stretches.break_at(coming.index)

    def _look_at_all(self, here: _Intra, coming: _Intra | None, stop: int) -> None:
        picker, sampler = _Picker(self._stretches, here.index), Sampler()
        for batch in _batches(self._frames(here.index, stop, "DEFAULT")):
            picker.take(batch, [self.time_s(frame) for frame in batch], sampler.sample(batch))
        picker.finish()
        if coming and picker.breaks_before(coming.blocks):
            self._stretches.break_at(coming.index)

    def _look_for_light(self, here: _Intra, stop: int) -> None:
        """Out of black, until the picture stands still. Frames that no other needs are left out: 2 x as fast."""
        sampler, before, lit = Sampler(), here.blocks, 0
        for frame in self._frames(here.index, stop, "NONREF"):
            samples = sampler.sample([frame])
            blocks, empty = shots.block_means(samples)[0], bool(shots.is_empty(samples)[0])
            index = self._packets.index(frame.pts)
            lit += not empty
            if empty or (lit < _LIT_FRAMES and shots.distance(blocks, before) > _CALM):
                before = blocks
                if empty:
                    self._stretches.see(index, blocks, False, True)
                continue
            self._stretches.offer(_Candidate(index, self.time_s(frame), frame, 0.0))
            self._stretches.see(index, blocks, False, False)
            return

    def _frames(self, begin: int, end: int, skip: str) -> Iterator[Any]:
        for frame in self._between.frames_from(int(self._packets.pts[begin]), skip):
            index = self._packets.index(frame.pts)
            if index >= end:
                return
            if index >= begin:
                yield frame


def _read_some(
    video: _Video, packets: _Packets, between: _Video, album: Album, progress: Callable[[float], None]
) -> tuple[VideoFacts, Times]:
    count = len(packets.pts)
    times_s = (np.asarray(packets.pts, np.float64) - packets.pts[0]) * float(video.stream.time_base)
    last_s = float(times_s[-1])
    if last_s > video.longest_s:
        raise MediaError(_too_long(video.path, last_s, video.longest_s))
    stretches = _Stretches(album)
    skimmer = _Skimmer(video, packets, between, stretches)
    here: _Intra | None = None
    for coming in skimmer.intra_frames():
        if here:
            skimmer.step(here, coming)
            stretches.thin()
            progress(here.index / count)
        here = coming
    if not here:
        raise MediaError(f"{video.path.name} holds no picture that can be decoded; check that it plays")
    skimmer.step(here, None)
    stretches.finish(count)
    progress(1.0)
    return _facts(video, count, last_s, shown_size(here.frame, video.aspect)), times_s


# -- the file ----------------------------------------------------------------------------------------------------


class _Video:
    """An open file and the one video stream of it that is worked on."""

    def __init__(self, path: Path, container: Any, stream: Any, longest_s: float) -> None:
        self.path, self.container, self.stream = path, container, stream
        self.longest_s = longest_s  # that is allowed
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
            except IndexError:  # PyAV on a packet of a stream that begins midway, as MPEG-TS allows: read on behind it
                packets = self.container.demux(self.stream)
                continue
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

    def frames_from(self, pts: int, skip: str) -> Iterator[Any]:
        """Frames from the key frame at or before a time of the stream; those of the kind `skip` are left out."""
        self.container.seek(pts, stream=self.stream)
        self.stream.codec_context.skip_frame = skip
        yield from self.frames()

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return list(self.stream.codec_context.decode(packet))
        except (av.error.FFmpegError, EOFError):
            return []


class _Clock:
    """Counts frames and tells their times, from the first one."""

    def __init__(self, video: _Video) -> None:
        self.times_s: array[float] = array("d")  # of every frame
        self.time_s = 0.0  # of the last one
        self._video = video
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
        if self.time_s > self._video.longest_s:
            raise MediaError(_too_long(self._video.path, self.time_s, self._video.longest_s))
        self.times_s.append(self.time_s)
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
        container = av.open(str(path), options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{name} cannot be read as a video ({_reason(error)}); check that it plays") from None
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{name} has no video in it, only sound or text; choose a file with a picture")
        streams = [s for s in streams if s.codec_context is not None]
        if not streams:
            raise MediaError(
                f"{name} is coded in a way that no decoder here knows; convert it to H.264, and check that it plays"
            )
        stream = max(streams, key=lambda s: (s.codec_context.width or 0) * (s.codec_context.height or 0))
        context = stream.codec_context
        pixels = context.width * context.height
        if pixels > options.max_pixels:
            raise MediaError(
                f"{name} is {context.width} x {context.height}, more than the {options.max_pixels} pixels allowed; "
                "scale it down or raise LOOKALIKE_MAX_PIXELS"
            )
        video = _Video(path, container, stream, options.max_duration_s)
        if video.duration_s and video.duration_s > options.max_duration_s:
            raise MediaError(_too_long(path, video.duration_s, options.max_duration_s))
        # the Theora decoder gives other frames on each run of threads when a packet is damaged
        stream.thread_type = "NONE" if context.name == "theora" else "AUTO"
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
    return (
        f"{path.name} lasts {got_s:.0f} s or more, {longest_s:.0f} s are allowed; "
        "cut it or raise LOOKALIKE_MAX_DURATION_S"
    )


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
