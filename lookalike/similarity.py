"""Similarity search over a project's keyframes: what a query is made of, and an index that answers it.

    background = Background.of(sample)
    query = query_of(likes, unlikes, background)
    rows, similarity = index.search(query, 50)

A query is one direction: rows are ranked by their inner product with it. That of a few examples is their mean against
the project's own mean and spread (linear discriminant analysis, with the spread taken as the rounder the fewer examples
there are), which for one example is nearly the cosine and for ten a linear probe.

The index is a folder that can always be made again from the store: the vectors, of length 1, as float16 rows on disk,
and one bit per axis of each in memory (faiss' RaBitQ). The bits find the best few hundred, whose rows are then read and
ranked exactly. 1,000,000 rows of 1280 take 2.6 GB of disk and 0.15 GB of memory.

The one door to faiss; knows neither ledger nor web, and imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from lookalike.grouping import unit
from lookalike.records import split_keyframe_id

Vectors = NDArray[np.float32]  # (n, d)
_Found = tuple[int, int, NDArray[np.int64], NDArray[np.float16]]
Load = Callable[[Sequence[int]], Iterator[tuple[int, NDArray[np.int64], NDArray[Any]]]]

#: How round the spread is taken for one example, in units of its mean; shrinkage is this by the number of examples. It
#: must be rounder where the project is small: its categories are then a large part of the spread, which whitening would
#: take away. Chosen on every second category of Caltech-101 and Grocery, whole and in parts of 32 to 1,500 pictures:
#: with 20 for all, mAP with 3 examples was up to .09 lower in projects of 600, with 300 for all .04 lower in large ones
_ROUNDNESS = 16.0
_ROUNDNESS_BY_COUNT = 50_000.0
_MOST_ROUNDNESS = 300.0
#: … with ever more examples: below this the spread's own noise counts
_LEAST_ROUNDNESS = 0.2
#: what unliked examples weigh against the background: this much when there are many, a third of it for one
_UNLIKED = 0.3
#: axes that are told apart. The rest has 6 % of the spread of EfficientNet-Lite0 and is taken as round; with all 1280
#: axes a scan takes twice as long
_AXES = 640
#: rows that the background is measured on
_SAMPLE = 4096
#: rows that are ranked exactly, at least, and by how many wanted: recall@50 .998 of 1,000,000 rows made up, 1 to 10
#: examples; .988 with 400
_RERANKED = 600
_RERANKED_PER_WANTED = 4
#: rows taken in at a time, and after how many of them others may search what there is
_PORTION = 8192
_PUBLISH_EVERY = 100_000
#: share of rows that may be dead before the folder is written anew, and growth after which the bits are
_DEAD_SHARE = 0.3
_SAVE_GROWTH = 1.1
_REFIT_GROWTH = 2.0


@dataclass(frozen=True, slots=True)
class Background:
    """How a project's rows lie: mean and spread, along the main axes and, as one figure, across all others."""

    mean: Vectors  # (d,)
    axes: Vectors  # (d, m), columns of length 1
    spread: Vectors  # (m,) variance along each
    rest: float  # variance along any other
    count: int  # rows that it was measured on

    @property
    def roundness(self) -> float:
        """That of a query of one example."""
        return min(_MOST_ROUNDNESS, _ROUNDNESS + _ROUNDNESS_BY_COUNT / max(1, self.count))

    @classmethod
    def of(cls, sample: Vectors) -> Background:
        """From rows (n, d) of length 1; any number of them, even none of d."""
        n, d = sample.shape
        mean = sample.mean(0) if n else np.zeros(d, np.float32)
        centred = sample - mean
        m = min(_AXES, d, max(1, n - 1))
        if n > m:
            values, vectors = np.linalg.eigh((centred.T @ centred) / n)
            spread, axes = np.maximum(values[::-1][:m], 0.0), vectors[:, ::-1][:, :m]
        else:
            spread, axes = np.zeros(m), np.eye(d, m)
        left = max(0.0, float((centred**2).sum() / max(1, n)) - float(spread.sum()))
        return cls(
            mean.astype(np.float32),
            np.ascontiguousarray(axes, np.float32),
            spread.astype(np.float32),
            left / max(1, d - m),
            n,
        )

    @property
    def mean_spread(self) -> float:
        d, m = self.axes.shape
        return float(max(1e-9, (float(self.spread.sum()) + self.rest * (d - m)) / d))

    def whiten(self, direction: Vectors, roundness: float) -> Vectors:
        """(d,) -> (d,): by the inverse of the spread, `roundness` times its mean added along every axis."""
        extra = roundness * self.mean_spread
        along = direction @ self.axes
        across = direction - self.axes @ along
        return self.axes @ (along / (self.spread + extra)) + across / (self.rest + extra)


@dataclass(frozen=True, slots=True)
class Query:
    """A direction and what it makes of a row: `row @ vector - offset` is 1 for its examples' mean, 0 for anything."""

    vector: Vectors  # (d,)
    offset: float = 0.0

    def similarity(self, rows: Vectors) -> Vectors:
        """(n, d) -> (n,)"""
        return rows @ self.vector - np.float32(self.offset)


def query_of(likes: Vectors, unlikes: Vectors, background: Background) -> Query:
    """The query for "more like `likes` (n, d), less like `unlikes` (m, d)", n at least 1; rows of length 1.

    Linear discriminant analysis: the likes' mean against the background's, of which the unlikes are a part that counts
    more. Shrinkage falls with the number of examples, so that one is compared by cosine, nearly, and ten by a probe.
    """
    if not len(likes):
        raise ValueError("a query needs at least one example that is liked")
    liked = likes.mean(0)
    other = background.mean
    if len(unlikes):
        share = _UNLIKED * len(unlikes) / (len(unlikes) + 2)
        other = (1 - share) * other + share * unlikes.mean(0)
    vector = background.whiten(liked - other, max(_LEAST_ROUNDNESS, background.roundness / len(likes)))
    return _scaled(vector, float(vector @ background.mean), float(vector @ liked))


def with_words(query: Query | None, words: Vectors, background: Background) -> Query:
    """The query for words alone (d,), ranked and shown by cosine, or for words and examples, counting alike."""
    if query is None:
        return Query(words.astype(np.float32))

    def in_units(vector: Vectors) -> Vectors:  # of how far the project's rows differ by it
        along, d = vector @ background.axes, len(vector)
        across = max(0.0, float(vector @ vector - along @ along)) / d
        spread = float(along**2 @ background.spread) + background.rest * across
        return vector / np.float32(max(1e-6, spread**0.5))

    vector = in_units(query.vector) + in_units(words)
    zero = float(vector @ background.mean)
    return _scaled(vector, zero, zero + 6.0)  # three times the spread of each


def _scaled(vector: Vectors, zero: float, one: float) -> Query:
    scale = 1 / max(1e-12, one - zero)
    return Query((vector * scale).astype(np.float32), zero * scale)


@dataclass(frozen=True)
class _State:
    """What searches see: never changed, only replaced, so that they need not wait for each other or for updates."""

    rows: IO[bytes]  # (n, d) float16
    name: str  # of that file
    ids: NDArray[np.int64]  # (n,) keyframe id of each row
    alive: NDArray[np.bool_]  # (n,)
    order: NDArray[np.int64]  # (alive,) rows by ascending keyframe id
    revisions: Mapping[int, int]  # by video
    codes: Any  # faiss.IndexRaBitQFastScan over all n rows
    saved: int  # rows of it that are on disk
    background: Background
    fitted: int  # rows alive when the background was measured
    turn: Vectors  # (d, m): from a row to the axes of its bits
    back: Vectors  # (d, m): from a query to them

    @functools.cached_property
    def known(self) -> NDArray[np.int64]:
        """(alive,) keyframe ids, ascending: once for all searches, as 1,000,000 take some milliseconds to gather."""
        return self.ids[self.order]


class Index:
    """The rows of one project by one model, in a folder of their own that other processes may use too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._updating = threading.Lock()
        self._state: _State | None = None
        self._stamp = 0  # of the manifest that `_state` is
        with contextlib.suppress(FileNotFoundError):
            self._read_again()

    def __len__(self) -> int:
        return len(self.view or ())

    @property
    def view(self) -> View | None:
        """The index as it is now and stays, whatever updates follow; None while it is empty."""
        state = self._state  # looked at once: an update may take it away
        return View(state) if state is not None and len(state.order) else None

    # bringing it up to date

    def update(self, revisions: Mapping[int, int], load: Load) -> None:
        """Make it hold exactly these videos, each in this revision; the store's vectors of the others are not read.

        load: videos -> (video, keyframe ids (n,), vectors (n, d)) of each that still has some. Searches go on meanwhile
        and see what there is so far. What was done is kept if this is stopped, and one process does it at a time.
        """
        with self._updating, self._locked():
            self._read_again()
            state = self._state
            known = dict(state.revisions) if state else {}
            gone = [video for video, revision in known.items() if revisions.get(video) != revision]
            new = [video for video, revision in revisions.items() if known.get(video) != revision or video in gone]
            if not gone and not new:
                return
            if state is not None and gone:
                state = _without(state, gone)
            if state is not None and (~state.alive).sum() > _DEAD_SHARE * len(state.ids):
                state = self._rewritten(state)
            unseen = 0
            for part in _parts(sorted(new), revisions, load):
                if state is not None and not unseen:
                    # bits of our own: those that searches use stay as they are
                    state = replace(state, codes=self._copied(state.codes))
                state = self._taken_in(state, part)
                unseen += sum(len(found[2]) for found in part)
                if unseen > _PUBLISH_EVERY:
                    state, unseen = self._publish(state), 0
            if state is not None:
                self._publish(state)
            elif known:
                (self.folder / "manifest.npz").unlink()
                self._state, self._stamp = None, self._stamp + 1

    def _taken_in(self, state: _State | None, part: list[_Found]) -> _State:
        rows = np.concatenate([found[3] for found in part])
        ids = np.concatenate([found[2] for found in part])
        revisions = {video: revision for video, revision, _, _ in part}
        if state is None:
            state = self._begun(rows)
        with (self.folder / state.name).open("r+b") as file:  # over what an update left that was stopped
            file.truncate(len(state.ids) * rows.shape[1] * 2)
            file.seek(0, os.SEEK_END)
            file.write(rows.tobytes())
        grown = _joined(state, ids, revisions)
        if len(grown.order) > _REFIT_GROWTH * state.fitted:
            return self._fitted(grown)
        return _encoded(grown, rows)

    def _begun(self, rows: NDArray[np.float16]) -> _State:
        """Empty, with a background to begin with."""
        name = f"rows-{self._stamp + 1}.f16"
        path = self.folder / name
        path.write_bytes(b"")
        background = Background.of(rows[:_SAMPLE].astype(np.float32))
        turn, back = _axes_of_bits(background)
        none = np.zeros(0, np.int64)
        return _State(
            path.open("rb"), name, none, none.astype(bool), none, {}, _codes(turn), 0, background, len(rows), turn, back
        )  # fmt: skip

    def _fitted(self, state: _State) -> _State:
        """With the background of what is there now, and all bits made anew."""
        chosen = np.sort(np.random.default_rng(len(state.order)).permutation(state.order)[:_SAMPLE])
        background = Background.of(_read_rows(state.rows, chosen, len(state.background.mean)))
        turn, back = _axes_of_bits(background)
        codes = _codes(turn)
        fresh = replace(
            state, codes=codes, saved=0, background=background, fitted=len(state.order), turn=turn, back=back
        )
        return _caught_up(fresh)

    def _rewritten(self, state: _State) -> _State | None:
        """Without the dead rows, in a new file: searches that are under way still read the old one."""
        kept = np.flatnonzero(state.alive)
        if not len(kept):
            return None
        name, d = f"rows-{self._stamp + 1}.f16", len(state.background.mean)
        with (self.folder / name).open("wb") as file:
            for at in range(0, len(kept), _PORTION):
                file.write(_read_rows(state.rows, kept[at : at + _PORTION], d).astype(np.float16).tobytes())
        ids = state.ids[kept]
        fresh = replace(
            state,
            rows=(self.folder / name).open("rb"),
            name=name,
            ids=ids,
            alive=np.ones(len(ids), bool),
            order=np.argsort(ids, kind="stable"),
            codes=_codes(state.turn),
            saved=0,
        )
        return _caught_up(fresh)

    # the folder

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _copied(self, codes: Any) -> Any:
        """By way of a file: faiss cannot clone these, and in memory a third copy would be there for a moment."""
        part = self.folder / "bits.part"
        faiss.write_index(codes, str(part))
        copy = faiss.read_index(str(part))
        part.unlink()
        return copy

    def _publish(self, state: _State) -> _State:
        """Write what makes the rows an index beside its place, rename it, and let searches see it."""
        stamp, codes = self._stamp + 1, f"{state.name}.bits"
        if len(state.ids) > _SAVE_GROWTH * state.saved:
            part = self.folder / f"{codes}.part"
            faiss.write_index(state.codes, str(part))
            part.replace(self.folder / codes)
            state = replace(state, saved=len(state.ids))
        background = state.background
        part = self.folder / "manifest.npz.part"
        with part.open("wb") as file:
            np.savez(
                file,
                ids=state.ids,
                alive=state.alive,
                videos=np.asarray(list(state.revisions.items()), np.int64).reshape(-1, 2),
                mean=background.mean,
                axes=background.axes,
                spread=background.spread,
                meta=json.dumps(
                    {
                        "stamp": stamp,
                        "rows": state.name,
                        "rest": background.rest,
                        "count": background.count,
                        "fitted": state.fitted,
                    }
                ),
            )  # fmt: skip
        part.replace(self.folder / "manifest.npz")
        for other in self.folder.glob("rows-*"):
            if other.name not in (state.name, codes):
                other.unlink()
        self._state, self._stamp = state, stamp
        return state

    def _read_again(self) -> None:
        """Take what is in the folder if another process has written it since; nothing if there is none, or it is
        broken: it is made again then."""
        path = self.folder / "manifest.npz"
        if not path.exists():
            self._state, self._stamp = None, 0
            return
        try:
            with np.load(path, allow_pickle=False) as found:
                meta = json.loads(str(found["meta"]))
                if meta["stamp"] == self._stamp:
                    return
                background = Background(found["mean"], found["axes"], found["spread"], meta["rest"], meta["count"])
                ids, alive = found["ids"], found["alive"]
                revisions = dict(found["videos"].tolist())
            rows = (self.folder / meta["rows"]).open("rb")
            if os.fstat(rows.fileno()).st_size < len(ids) * len(background.mean) * 2:
                raise ValueError("rows are missing")
            turn, back = _axes_of_bits(background)
            codes = faiss.read_index(str(self.folder / f"{meta['rows']}.bits"))
            fits = (
                isinstance(codes, faiss.IndexRaBitQFastScan) and codes.d == turn.shape[1] and codes.ntotal <= len(ids)
            )
            if not fits:
                raise ValueError("the bits are another index's, or an earlier release's")
            order = np.flatnonzero(alive)
            order = order[np.argsort(ids[order], kind="stable")]
            state = _State(
                rows, meta["rows"], ids, alive, order, revisions, codes, codes.ntotal, background, meta["fitted"],
                turn, back,
            )  # fmt: skip
            self._state, self._stamp = _caught_up(state), meta["stamp"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            self._state, self._stamp = None, self._stamp + 1


class View:
    """An index at one moment: what one search, and what is asked about its result, see."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def __len__(self) -> int:
        return len(self._state.order)

    @property
    def dim(self) -> int:
        return len(self._state.background.mean)

    @property
    def background(self) -> Background:
        return self._state.background

    @property
    def keyframe_ids(self) -> NDArray[np.int64]:
        """(rows,) by row, dead ones included."""
        return self._state.ids

    def rows_of(self, keyframe_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of those keyframes that are there, in their order."""
        return self.locate(np.asarray(keyframe_ids, np.int64))[0]

    def locate(self, keyframe_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(rows of those that are there, which of them are there (n,))"""
        state = self._state
        have = state.known
        at = np.minimum(np.searchsorted(have, keyframe_ids), len(have) - 1)
        found = have[at] == keyframe_ids
        return state.order[at[found]], found

    def of_videos(self, videos: Sequence[int]) -> NDArray[np.bool_]:
        """(rows,) which belong to one of these."""
        return np.isin(split_keyframe_id(self._state.ids)[0], videos)  # type: ignore[arg-type]

    def vectors(self, rows: NDArray[np.int64]) -> Vectors:
        """(n, d) float32, of length 1, in the order of the rows."""
        return _read_rows(self._state.rows, rows, self.dim)

    def search(
        self,
        query: Query,
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        without: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], Vectors]:
        """The k rows most similar to the query, best first, and how similar each is; fewer if there are no more.

        allowed: (rows,) which may be found; without: a few rows that may not. 1,000,000 rows take 11 ms of CPU, about,
        and up to 0.4 s where what is allowed lies far from the query; only the best _RERANKED by their bits, or 4 per
        row wanted, are ranked exactly.
        """
        state = self._state
        may = state.alive if allowed is None else state.alive & allowed
        if without is not None and len(without):
            may = may.copy()
            may[without] = False
        count = int(np.count_nonzero(may))
        wanted = max(_RERANKED, _RERANKED_PER_WANTED * k) * _AXES // state.turn.shape[1]  # fewer bits tell less
        # reading a row takes 3 µs, and where few may be found 2 * wanted * rows / count are looked at, 0.5 µs each
        exactly = count <= wanted or 3 * count**2 <= wanted * len(may)
        rows = np.flatnonzero(may) if exactly else self._best_by_bits(query, wanted, may, count)
        similarity = query.similarity(self.vectors(rows))
        best = np.argsort(-similarity, kind="stable")[:k]
        return rows[best], similarity[best]

    def _best_by_bits(self, query: Query, wanted: int, may: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        """The rows, ascending, among which the best are. Bits are compared 32 rows at a time, allowed or not: so many
        more are found, and ever more where those that are allowed lie far from the query."""
        state = self._state
        faiss.omp_set_num_threads(1)  # of this thread: a query is no work to share, and web threads are many
        turned = (query.vector @ state.back)[None]
        others = len(may) - count
        looked_at = wanted + min(others, wanted + 2 * wanted * others // count)
        while True:
            _, found = state.codes.search(turned, min(looked_at, len(may)))
            rows = found[0][found[0] >= 0]
            rows = rows[may[rows]][:wanted]
            if len(rows) == wanted or looked_at >= len(may):
                return np.sort(rows)
            looked_at *= 8

    def scan(self, query: Query, k: int) -> tuple[NDArray[np.int64], Vectors]:
        """The same by reading everything: what `search` is measured against."""
        state = self._state
        similarity = np.full(len(state.ids), -np.inf, np.float32)
        for at in range(0, len(state.ids), _PORTION):
            rows = np.arange(at, min(at + _PORTION, len(state.ids)))
            similarity[rows] = query.similarity(self.vectors(rows))
        similarity[~state.alive] = -np.inf
        best = np.argsort(-similarity, kind="stable")[:k]
        best = best[similarity[best] > -np.inf]
        return best, similarity[best]


# --- steps ---


def _parts(videos: Sequence[int], revisions: Mapping[int, int], load: Load) -> Iterator[list[_Found]]:
    """(video, revision, keyframe ids, rows) of new videos, _PORTION rows at a time, about."""
    part: list[_Found] = []
    for video, ids, vectors in load(videos):
        part.append((video, revisions[video], ids, unit(vectors).astype(np.float16)))
        if sum(len(found[2]) for found in part) >= _PORTION:
            yield part
            part = []
    if part:
        yield part


def _without(state: _State, videos: Sequence[int]) -> _State:
    """With the rows of these videos dead."""
    gone = np.isin(split_keyframe_id(state.ids)[0], videos)  # type: ignore[arg-type]
    alive = state.alive & ~gone
    revisions = {video: revision for video, revision in state.revisions.items() if video not in set(videos)}
    return replace(state, alive=alive, order=state.order[alive[state.order]], revisions=revisions)


def _joined(state: _State, ids: NDArray[np.int64], revisions: Mapping[int, int]) -> _State:
    """With rows that the file has already and the bits do not yet."""
    everything = np.concatenate([state.ids, ids])
    order = np.concatenate([state.order, np.arange(len(state.ids), len(everything))])
    return replace(
        state,
        ids=everything,
        alive=np.concatenate([state.alive, np.ones(len(ids), bool)]),
        order=order[np.argsort(everything[order], kind="stable")],
        revisions={**state.revisions, **revisions},
    )


def _encoded(state: _State, rows: NDArray[Any]) -> _State:
    if len(rows):  # faiss ends the process where there is none
        state.codes.add((rows.astype(np.float32) - state.background.mean) @ state.turn)
    return state


def _caught_up(state: _State) -> _State:
    """With bits for all rows, from the file."""
    while state.codes.ntotal < len(state.ids):
        at = state.codes.ntotal
        rows = np.arange(at, min(at + _PORTION, len(state.ids)))
        _encoded(state, _read_rows(state.rows, rows, len(state.background.mean)))
    return state


def _codes(turn: Vectors) -> Any:
    faiss.omp_set_num_threads(1)
    codes = faiss.IndexRaBitQFastScan(turn.shape[1], faiss.METRIC_INNER_PRODUCT)
    codes.train(np.zeros((1, turn.shape[1]), np.float32))  # rows come centred
    return codes


def _axes_of_bits(background: Background) -> tuple[Vectors, Vectors]:
    """(d, m) twice: rows are whitened as for ten examples, so that no axis has more than its share of the bits, and
    then turned at random, so that every bit tells as much as every other."""
    m = background.axes.shape[1]
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((m, m)))
    scale = np.sqrt(background.spread + 2 * background.mean_spread)
    turn = (background.axes / scale) @ turned
    back = (background.axes * scale) @ turned
    return turn.astype(np.float32), back.astype(np.float32)


def _read_rows(file: IO[bytes], rows: NDArray[np.int64], d: int) -> Vectors:
    """(n, d) float32. Read, not mapped into memory: pages of a mapping count as ours until others need them."""
    width, descriptor = 2 * d, file.fileno()
    if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        data = os.pread(descriptor, width * len(rows), width * int(rows[0]))
    else:
        data = b"".join([os.pread(descriptor, width, width * row) for row in rows.tolist()])
    halves = faiss.ScalarQuantizer(d, faiss.ScalarQuantizer.QT_fp16)  # numpy takes half as long again
    decoded: Vectors = cast(Any, halves).decode(np.frombuffer(data, np.uint8).reshape(len(rows), width))
    return decoded
