"""Finding keyframes of a project that look alike: the page, the API, the command line and /predict all ask here.

    found = finder.find(project, Wanted(category="Car", top=50))

The index of a project is kept in the data folder and brought up to date when somebody searches and something has
changed since: only the vectors of new videos are read. That happens beside the searches, which see what there is.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import NotYet, RequestError
from lookalike.grouping import unit
from lookalike.questions import Question, Revision
from lookalike.settings import Settings
from lookalike.similarity import Index, Query, Vectors, View, query_of, with_words
from lookalike.store import Store

#: results that may be asked for at once
MOST = 1000
#: examples of a category that a query is made of: more make it slower, not better
_MOST_EXAMPLES = 256
#: rows that are looked at, at most, for enough that are no near-duplicates of each other
_MOST_LOOKED_AT = 20_000
#: how long a search waits for an index that is there, and for one that is made for the first time
_WAIT_FOR_CHANGES_S = 0.2
_WAIT_FOR_FIRST_S = 3.0
#: indexes that are kept open; one of 1,000,000 keyframes takes 0.15 GB
_OPEN = 8
#: labelled keyframes that are compared at a time: 20 MB of vectors
_COMPARED = 4096
#: labelled keyframes that have a say in what a picture may show
_VOTERS = 15


@dataclass(frozen=True, slots=True)
class Example:
    """Something that results are to look like, or not."""

    name: int | str  # a keyframe's id, or the digest of the question that its vector answers
    vector: Vectors  # (d,) of length 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A search. At least one of category, like, examples and words."""

    top: int = 50
    category: str = ""  # like what people labelled so
    like: tuple[int, ...] = ()  # keyframe ids
    unlike: tuple[int, ...] = ()
    examples: tuple[Example, ...] = ()
    counterexamples: tuple[Example, ...] = ()
    words: Vectors | None = None  # (d,)
    videos: tuple[int, ...] | None = None  # only these
    clusters: tuple[int, ...] | None = None  # only these, -1 for like nothing else
    labelled: bool | None = None  # only those that people labelled, or did not
    fold: bool = True  # near-duplicates count once

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MOST:
            raise RequestError(f"top must be between 1 and {MOST}, got {self.top}")
        if not (self.category or self.like or self.examples or self.words is not None):
            raise RequestError("name a category, keyframes, an image, a region or words to search by")


@dataclass(frozen=True, slots=True)
class Hit:
    """A keyframe that was found."""

    keyframe: int
    similarity: float  # 0: like anything in the project, 1: like the examples' mean; of words alone, the cosine
    nearest: int | str | None  # the example that it is most like
    nearest_similarity: float  # cosine
    duplicates: tuple[int, ...]  # its near-duplicates among what was looked at, most similar first
    cluster: int  # -1: like nothing else, or not yet clustered
    categories: tuple[str, ...]  # what people called it


@dataclass(frozen=True, slots=True)
class Found:
    hits: tuple[Hit, ...]  # most similar first
    searched: int  # keyframes
    complete: bool  # False: newer keyframes are still being taken in
    examples: int  # that the query was made of


@dataclass
class _Known:
    """What is kept of a project between searches."""

    model: str
    index: Index
    revision: int = -1  # of the vectors that the index has
    update: Future[None] | None = None
    labelled: tuple[str | None, dict[int, tuple[str, ...]]] = (None, {})
    # each with the rows that it was made for
    examples: tuple[object, NDArray[np.int64] | None, dict[str, list[int]]] = (None, None, {})
    clusters: tuple[int, NDArray[np.int64] | None, NDArray[np.int32]] = (-1, None, np.zeros(0, np.int32))


class Finder:
    """Searches of one process, shared by its threads."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._wanted_model = settings.embedder
        self._folder = settings.data_dir / "index"
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._models: dict[str, tuple[int, str]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="index")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def find(self, project: str, wanted: Wanted, *, wait_s: float = _WAIT_FOR_FIRST_S) -> Found:
        """Search a project, by its uid.

        Raises NotYet while its index is made for the first time, for longer than `wait_s`; RequestError for a category
        without labelled keyframes, for keyframes that are not the project's, and before there are any.
        """
        now = self._store.questions.revision(project)
        known, view, complete = self._current(project, now, wait_s)
        labelled = self._labelled(known, project, now)
        chosen: Sequence[int] = ()
        if wanted.category:
            chosen = self._examples(known, wanted.category, view, labelled, now)
            if not chosen and not (wanted.like or wanted.examples or wanted.words is not None):
                if not complete and any(wanted.category in said for said in labelled.values()):
                    raise NotYet(f"the keyframes labelled {wanted.category!r} are still being taken in; ask again soon")
                raise RequestError(f"nobody has labelled a keyframe {wanted.category!r} yet; label one, or choose some")
        clusters = self._clusters(known, project, view, now)
        found = search(view, wanted, clusters, labelled, self._store.questions.leaders, chosen)
        return replace(found, complete=complete)

    def guess(self, project: str, vector: Vectors) -> tuple[str, float] | None:
        """What a picture (d,) may show, by the labelled keyframes that it is most like, and how sure that is, 0..1;
        None while too little is known. Raises NotYet, RequestError as `find`."""
        now = self._store.questions.revision(project)
        known, view, _ = self._current(project, now, _WAIT_FOR_FIRST_S)
        labelled = self._labelled(known, project, now)
        allowed = np.zeros(len(view.keyframe_ids), bool)
        allowed[view.rows_of(list(labelled))] = True
        if not allowed.any():
            return None
        query = query_of(_fitting(unit(vector), view)[None], np.zeros((0, view.dim), np.float32), view.background)
        rows, similarity = view.search(query, _VOTERS, allowed)
        votes: dict[str, float] = defaultdict(float)
        for row, value in zip(rows.tolist(), np.clip(similarity, 0, 1).tolist(), strict=True):
            for category in labelled[int(view.keyframe_ids[row])]:
                votes[category] += value**2
        best = max(votes, key=lambda category: votes[category])
        total = sum(votes.values())
        return (best, votes[best] / total * float(np.clip(similarity[0], 0, 1))) if total else None

    def nearest_labelled(self, project: str, keyframes: Sequence[int]) -> dict[int, tuple[int, float]]:
        """By keyframe, the other one that people labelled and that it is most like, and their cosine; a page's worth,
        as all that is labelled is read. Keyframes without a vector are left out. Raises NotYet, RequestError as `find`.
        """
        now = self._store.questions.revision(project)
        known, view, _ = self._current(project, now, _WAIT_FOR_FIRST_S)
        rows, others = view.rows_of(keyframes), view.rows_of(list(self._labelled(known, project, now)))
        vectors = view.vectors(rows)
        nearest, best = np.full(len(rows), -1), np.full(len(rows), -1.0)
        for at in range(0, len(others), _COMPARED):
            some = others[at : at + _COMPARED]
            cosine = vectors @ view.vectors(some).T
            cosine[rows[:, None] == some] = -1  # no keyframe is its own example
            most = cosine.argmax(axis=1)
            value = cosine[np.arange(len(rows)), most]
            nearest, best = np.where(value > best, some[most], nearest), np.maximum(value, best)
        ids = view.keyframe_ids
        return {
            int(ids[row]): (int(ids[other]), max(0.0, float(cosine)))
            for row, other, cosine in zip(rows, nearest, best, strict=True)
            if other >= 0
        }

    def vector(self, project: str, keyframe: int) -> Vectors:
        """(d,) of a keyframe. Raises NotYet, RequestError as `find`."""
        _, view, _ = self._current(project, self._store.questions.revision(project), _WAIT_FOR_FIRST_S)
        return _keyframes(view, (keyframe,))[0].vector

    def model_of(self, project: str, now: Revision | None = None) -> str:
        """The model whose vectors are searched: that of the settings, or until all is embedded by it the one before."""
        clusters = (now or self._store.questions.revision(project)).clusters
        known = self._models.get(project)
        if known is None or known[0] != clusters:
            known = self._models[project] = (clusters, self._store.serving(project, self._wanted_model))
        return known[1]

    # keeping the index

    def _current(self, project: str, now: Revision, wait_s: float) -> tuple[_Known, View, bool]:
        known = self._keep(project, self.model_of(project, now))
        seen = known.index.view is not None and wait_s < math.inf
        until = time.monotonic() + (_WAIT_FOR_CHANGES_S if seen else wait_s)
        complete = known.revision == now.vectors
        while not complete:
            with self._lock:
                update, ours = known.update, False
                if update is None or update.done():  # one that is under way may not know of `now`
                    update, ours = self._pool.submit(self._update, project, known, now.vectors), True
                    known.update = update
            wait_for([update], None if until == math.inf else max(0.0, until - time.monotonic()))
            if not update.done():
                break
            update.result()
            complete = ours or known.revision == now.vectors
        view = known.index.view
        if view is None:
            if not complete:
                raise NotYet("the keyframes of this project are being taken in for the first search; ask again soon")
            raise RequestError(
                f"this project has no keyframes with vectors by {known.model} yet; see how far its videos are"
            )
        return known, view, complete

    def _keep(self, project: str, model: str) -> _Known:
        with self._lock:
            known = self._known.get((project, model))
            if known is None:
                digest = hashlib.sha256(model.encode()).hexdigest()[:12]
                known = self._known[project, model] = _Known(model, Index(self._folder / f"{project}-{digest}"))
                while len(self._known) > _OPEN:
                    self._known.popitem(last=False)
            self._known.move_to_end((project, model))
            return known

    def _update(self, project: str, known: _Known, revision: int) -> None:
        questions = self._store.questions
        known.index.update(
            questions.revisions(project, known.model), lambda videos: questions.vectors(known.model, videos)
        )
        known.revision = revision
        self._sweep()

    def _sweep(self) -> None:
        """Remove the indexes of projects that are gone."""
        folders = list(self._folder.iterdir())  # first: a project comes before its folder
        alive = {project.uid for project in self._store.projects()}
        for folder in folders:
            if folder.name.rpartition("-")[0] not in alive:
                shutil.rmtree(folder, ignore_errors=True)

    # what goes into a search

    def _labelled(self, known: _Known, project: str, now: Revision) -> dict[int, tuple[str, ...]]:
        made, labelled = known.labelled
        if made != now.labels:
            labelled = self._store.questions.labelled(project)
            known.labelled = (now.labels, labelled)
        return labelled

    def _clusters(self, known: _Known, project: str, view: View, now: Revision) -> NDArray[np.int32]:
        """(rows,) the cluster of each row."""
        made, rows_then, numbers = known.clusters
        if made != now.clusters or rows_then is not view.keyframe_ids:
            numbers = np.full(len(view.keyframe_ids), -1, np.int32)
            found = self._store.clustering(project, known.model)
            if found is not None:
                rows, have = view.locate(found[0].keyframe_ids)
                numbers[rows] = found[0].clusters[have]
            known.clusters = (now.clusters, view.keyframe_ids, numbers)
        return numbers

    def _examples(
        self,
        known: _Known,
        category: str,
        view: View,
        labelled: Mapping[int, tuple[str, ...]],
        now: Revision,
    ) -> list[int]:
        # other keyframes are in the view while they are taken in
        key = (now.labels, now.vectors, len(view))
        made, rows_then, found = known.examples
        if made != key or rows_then is not view.keyframe_ids:
            found = {}
            known.examples = (key, view.keyframe_ids, found)
        if category not in found:
            found[category] = self._examples_of(category, view, labelled)
        return found[category]

    def _examples_of(self, category: str, view: View, labelled: Mapping[int, tuple[str, ...]]) -> list[int]:
        """Keyframes that people called so and nothing else, one of each group of near-duplicates."""
        only = [keyframe for keyframe, said in labelled.items() if said == (category,)]
        found = np.asarray(only or [k for k, said in labelled.items() if category in said], np.int64)
        found = view.keyframe_ids[view.rows_of(found)]
        shuffled = np.random.default_rng(0).permutation(found)[: 2 * _MOST_EXAMPLES].tolist()
        leaders = self._store.questions.leaders(shuffled)
        first: dict[int, int] = {}
        for keyframe in shuffled:
            first.setdefault(leaders[keyframe], keyframe)
        return sorted(first.values())[:_MOST_EXAMPLES]


def search(
    view: View,
    wanted: Wanted,
    clusters: NDArray[np.int32],
    labelled: Mapping[int, tuple[str, ...]],
    leaders: Callable[[Sequence[int]], Mapping[int, int]],
    chosen: Sequence[int] = (),
) -> Found:
    """Search one view. clusters: (rows,) of each row; labelled: categories by keyframe; leaders: whose near-duplicate
    each of these keyframes is; chosen: the examples of the category that is wanted.

    Raises RequestError for keyframes that are not in it.
    """
    leave_out = {*wanted.like, *wanted.unlike}
    if wanted.category:
        leave_out |= {keyframe for keyframe, said in labelled.items() if wanted.category in said}
    names = [keyframe for keyframe in dict.fromkeys((*wanted.like, *chosen)) if keyframe not in wanted.unlike]
    likes = [*_keyframes(view, names), *wanted.examples]
    unlikes = [*_keyframes(view, wanted.unlike), *wanted.counterexamples]
    query = query_of(_stack(likes, view), _stack(unlikes, view), view.background) if likes else None
    if wanted.words is not None:
        query = with_words(query, _fitting(wanted.words, view), view.background)
    if query is None:
        raise RequestError("all that is wanted is unwanted, too: leave something to look for")
    groups = _ranked(view, query, wanted, _allowed(view, wanted, clusters, labelled), leave_out, leaders)
    rows = np.asarray([members[0][0] for members in groups], np.int64)
    ids = view.keyframe_ids
    nearest, cosine = _nearest(view.vectors(rows), likes)
    hits = tuple(
        Hit(
            int(ids[row]),
            min(1.0, max(0.0, similarity)),
            likes[nearest[place]].name if likes else None,
            float(cosine[place]),
            tuple(int(ids[other]) for other, _ in others),
            int(clusters[row]),
            labelled.get(int(ids[row]), ()),
        )
        for place, ((row, similarity), *others) in enumerate(groups)
    )
    return Found(hits, len(view), True, len(likes))


def example_of(question: Question) -> Example:
    """An answered question as an example. Raises RequestError where there is no vector, with the reason."""
    if question.vector is None:
        raise RequestError(question.error or "this question was not answered")
    return Example(question.digest, unit(question.vector))


# --- steps ---


def _ranked(
    view: View,
    query: Query,
    wanted: Wanted,
    allowed: NDArray[np.bool_] | None,
    leave_out: set[int],
    leaders: Callable[[Sequence[int]], Mapping[int, int]],
) -> list[list[tuple[int, float]]]:
    """Groups of (row, similarity), the best first, in groups and among them."""
    ids = view.keyframe_ids
    gone = view.rows_of(sorted(leave_out))
    looked_at = (2 if wanted.fold else 1) * wanted.top
    while True:
        rows, similarity = view.search(query, looked_at, allowed, gone)
        pairs = list(zip(rows.tolist(), similarity.tolist(), strict=True))
        first = leaders(ids[[row for row, _ in pairs]].tolist()) if wanted.fold else {}
        groups: dict[int, list[tuple[int, float]]] = {}
        for row, value in pairs:
            keyframe = int(ids[row])
            groups.setdefault(first.get(keyframe, keyframe), []).append((row, value))
        if len(groups) >= wanted.top or len(rows) < looked_at or looked_at >= _MOST_LOOKED_AT:
            return list(groups.values())[: wanted.top]
        looked_at *= 4


def _keyframes(view: View, keyframes: Sequence[int]) -> list[Example]:
    """Raises RequestError for keyframes that the project does not have."""
    rows = view.rows_of(keyframes)
    found = view.keyframe_ids[rows].tolist()
    if len(found) < len(keyframes):
        missing = sorted(set(keyframes) - set(found))
        raise RequestError(f"keyframe {missing[0]} is not in this project, or has no vector yet")
    return [Example(keyframe, vector) for keyframe, vector in zip(found, view.vectors(rows), strict=True)]


def _stack(examples: Sequence[Example], view: View) -> Vectors:
    """(n, d)"""
    if not examples:
        return np.zeros((0, view.dim), np.float32)
    return np.stack([_fitting(example.vector, view) for example in examples])


def _fitting(vector: Vectors, view: View) -> Vectors:
    if vector.shape != (view.dim,):
        raise RequestError(
            f"a vector of {len(vector)} numbers cannot be compared with keyframes of {view.dim}: it is another model's"
        )
    return vector


def _nearest(vectors: Vectors, examples: Sequence[Example]) -> tuple[NDArray[np.int64], Vectors]:
    """(the place of the example that each row (n, d) is most like, their cosine)"""
    if not examples or not len(vectors):
        return np.zeros(len(vectors), np.int64), np.zeros(len(vectors), np.float32)
    cosine = vectors @ np.stack([example.vector for example in examples]).T
    best = cosine.argmax(axis=1)
    return best, np.clip(cosine[np.arange(len(best)), best], 0, 1)


def _allowed(
    view: View, wanted: Wanted, clusters: NDArray[np.int32], labelled: Mapping[int, tuple[str, ...]]
) -> NDArray[np.bool_] | None:
    """(rows,) which pass the filters; None where there are none."""
    allowed: NDArray[np.bool_] | None = None

    def narrow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return mask if allowed is None else allowed & mask

    if wanted.videos is not None:
        allowed = narrow(view.of_videos(wanted.videos))
    if wanted.clusters is not None:
        allowed = narrow(np.isin(clusters, wanted.clusters))
    if wanted.labelled is not None:
        mask = np.zeros(len(view.keyframe_ids), bool)
        mask[view.rows_of(sorted(labelled))] = True
        allowed = narrow(mask if wanted.labelled else ~mask)
    return allowed
