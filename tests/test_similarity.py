"""The index against the exact scan, and what queries of examples find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest

from lookalike.grouping import unit
from lookalike.records import keyframe_id
from lookalike.similarity import Background, Index, Query, Vectors, query_of, with_words

PER_VIDEO = 100


class Videos:
    """Vectors by video, (PER_VIDEO, d) each; every fifth around one of a few middles."""

    def __init__(self, count: int, d: int = 64, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        middles = random.normal(size=(40, d))
        self.kinds = random.integers(40, size=(count, PER_VIDEO))
        noise = random.normal(size=(count, PER_VIDEO, d)) * np.linspace(4, 0.4, d)
        self.vectors = {v + 1: unit(middles[self.kinds[v]] + noise[v]) for v in range(count)}
        self.read: list[int] = []

    def load(self, videos: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for video in videos:
            self.read.append(video)
            ids = np.asarray([keyframe_id(video, frame) for frame in range(len(self.vectors[video]))])
            yield video, ids, self.vectors[video]

    def revisions(self, *without: int) -> dict[int, int]:
        return {video: 1 for video in self.vectors if video not in without}


@pytest.fixture
def videos() -> Videos:
    """More than are ranked exactly, which depends on d."""
    return Videos(60, d=128)


@pytest.fixture
def index(tmp_path: Path, videos: Videos) -> Index:
    made = Index(tmp_path / "index")
    made.update(videos.revisions(), videos.load)
    return made


def exact(videos: Videos, query: Query, k: int, *without: int) -> list[int]:
    ids, rows = [], []
    for video in videos.vectors:
        if video not in without:
            ids += [keyframe_id(video, frame) for frame in range(len(videos.vectors[video]))]
            rows.append(videos.vectors[video])
    return [ids[row] for row in np.argsort(-query.similarity(np.concatenate(rows)), kind="stable")[:k]]


def found(index: Index, query: Query, k: int, allowed: np.ndarray | None = None) -> list[int]:
    assert index.view is not None
    rows, _ = index.view.search(query, k, allowed)
    return index.view.keyframe_ids[rows].tolist()  # type: ignore[no-any-return]


def probe(index: Index, videos: Videos, kind: int = 3, count: int = 10) -> Query:
    assert index.view is not None
    likes = np.concatenate([videos.vectors[v + 1][videos.kinds[v] == kind] for v in range(10)])[:count]
    return query_of(likes, likes[:0], index.view.background)


def test_update__a_video_without_vectors_is_one_that_is_known(index: Index, videos: Videos) -> None:
    before, videos.vectors[99] = len(index), np.zeros((0, 128), np.float32)
    index.update(videos.revisions(), videos.load)
    assert len(index) == before
    assert len(Index(index.folder)) == before


def test_search__finds_what_the_exact_scan_finds(index: Index, videos: Videos) -> None:
    recalls = []
    for kind in range(40):
        query = probe(index, videos, kind, 1 + kind % 10)
        recalls.append(len(set(found(index, query, 50)) & set(exact(videos, query, 50))) / 50)
    assert np.mean(recalls) >= 0.99


def test_search__is_ordered_and_one_for_the_examples_themselves(index: Index, videos: Videos) -> None:
    assert index.view is not None
    like = videos.vectors[5][:1]
    rows, similarity = index.view.search(query_of(like, like[:0], index.view.background), 20)
    assert index.view.keyframe_ids[rows[0]] == keyframe_id(5, 0)
    assert similarity[0] == pytest.approx(1, abs=0.01)
    assert (np.diff(similarity) <= 0).all()
    everything = index.view.vectors(np.arange(len(index)))
    mean = query_of(like, like[:0], index.view.background).similarity(everything).mean()
    assert mean == pytest.approx(0, abs=0.02)


def test_search__rows_that_are_not_allowed_are_not_found(index: Index, videos: Videos) -> None:
    query = probe(index, videos)
    view = index.view
    assert view is not None
    for share in (0.005, 0.4, 0.999):  # ranked exactly; by their bits
        allowed = np.random.default_rng(1).random(len(index)) < share
        got = found(index, query, 30, allowed)
        everything = exact(videos, query, len(index))
        wanted = [k for k in everything if allowed[view.rows_of([k])[0]]][:30]
        assert len(set(got) & set(wanted)) >= 0.96 * len(wanted), share
        assert allowed[view.rows_of(got)].all()


def test_search__what_is_allowed_lies_far_from_the_query(tmp_path: Path) -> None:
    videos = Videos(60, d=640)
    index = Index(tmp_path / "index")
    index.update(videos.revisions(), videos.load)
    query, view = probe(index, videos), index.view
    assert view is not None
    far = view.rows_of(exact(videos, query, len(index))[-2500:])
    allowed = np.zeros(len(index), bool)
    allowed[far] = True
    rows, similarity = view.search(query, 150, allowed)
    assert allowed[rows].all()
    assert similarity == pytest.approx(query.similarity(view.vectors(far[:150])), abs=0.01)


def test_search__more_than_there_are(tmp_path: Path) -> None:
    few = Videos(1, d=8)
    few.vectors = {1: few.vectors[1][:3]}
    index = Index(tmp_path / "few")
    index.update(few.revisions(), few.load)
    query = query_of(few.vectors[1][:1], few.vectors[1][:0], index.view.background)  # type: ignore[union-attr]
    assert len(found(index, query, 50)) == 3


def test_update__reads_only_what_is_new_and_drops_what_is_gone(index: Index, videos: Videos) -> None:
    videos.read.clear()
    index.update(videos.revisions(7) | {9: 2}, videos.load)
    assert videos.read == [9]
    assert len(index) == 59 * PER_VIDEO
    query = probe(index, videos)
    assert keyframe_id(7, 0) // PER_VIDEO not in {k // PER_VIDEO for k in found(index, query, 500)}
    assert set(found(index, query, 50)) == set(exact(videos, query, 50, 7))
    videos.read.clear()
    index.update(videos.revisions(7) | {9: 2}, videos.load)
    assert videos.read == []


def test_update__a_video_that_was_worked_on_once_more_has_its_new_vectors(index: Index, videos: Videos) -> None:
    videos.vectors[4] = -videos.vectors[4]
    index.update(videos.revisions() | {4: 2}, videos.load)
    view = index.view
    assert view is not None
    row = view.rows_of([keyframe_id(4, 0)])
    np.testing.assert_allclose(view.vectors(row)[0], videos.vectors[4][0], atol=1e-3)
    assert len(index) == 60 * PER_VIDEO


def test_update__searches_that_are_under_way_see_what_there_was(index: Index, videos: Videos) -> None:
    before, query = index.view, probe(index, videos)
    assert before is not None
    rows, _ = before.search(query, 50)
    wanted = before.keyframe_ids[rows].tolist()
    index.update(dict.fromkeys(range(40, 61), 1), videos.load)  # so few that all is written anew
    again, _ = before.search(query, 50)
    assert before.keyframe_ids[again].tolist() == wanted
    assert len(index) == 21 * PER_VIDEO
    assert set(found(index, query, 20)) == set(exact(videos, query, 20, *range(1, 40)))


def test_update__down_to_nothing_and_up_again(index: Index, videos: Videos) -> None:
    index.update({}, videos.load)
    assert len(index) == 0
    assert index.view is None
    index.update({1: 1, 2: 1}, videos.load)
    assert len(index) == 2 * PER_VIDEO
    assert len(list(index.folder.glob("rows-*"))) == 2


def test_view__is_there_or_not_while_an_update_takes_it_away(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([index._state, None, None])
    monkeypatch.setattr(Index, "_state", property(lambda _: next(states)), raising=False)
    view = index.view
    assert view is not None
    assert len(view) == 60 * PER_VIDEO


def test_index__is_what_it_was_when_it_is_opened_again(index: Index, videos: Videos) -> None:
    query = probe(index, videos)
    again = Index(index.folder)
    assert found(again, query, 50) == found(index, query, 50)
    videos.read.clear()
    again.update(videos.revisions(), videos.load)
    assert videos.read == []


def test_index__another_process_has_written_it(index: Index, videos: Videos) -> None:
    other = Index(index.folder)
    other.update(videos.revisions(1, 2), videos.load)
    videos.read.clear()
    index.update(videos.revisions(1, 2), videos.load)
    assert videos.read == []
    assert len(index) == 58 * PER_VIDEO


@pytest.mark.parametrize("harm", ["manifest.npz", "bits", "rows", "half"])
def test_index__broken_files_are_made_again(index: Index, videos: Videos, harm: str) -> None:
    query = probe(index, videos)
    wanted = set(exact(videos, query, 50))
    name = next(path.name for path in index.folder.glob("rows-*.f16"))
    file = index.folder / {"bits": f"{name}.bits", "rows": name, "half": name}.get(harm, harm)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if harm == "half" else b"nonsense")
    again = Index(index.folder)
    again.update(videos.revisions(), videos.load)
    assert set(found(again, query, 50)) == wanted


def test_index__bits_of_an_earlier_release_are_made_anew(index: Index, videos: Videos) -> None:
    [file] = index.folder.glob("*.bits")
    old = faiss.IndexRaBitQ(128, faiss.METRIC_INNER_PRODUCT)
    old.train(np.zeros((1, 128), np.float32))
    faiss.write_index(old, str(file))
    query = probe(index, videos)
    again = Index(index.folder)
    assert again.view is None
    again.update(videos.revisions(), videos.load)
    assert set(found(Index(index.folder), query, 50)) == set(found(index, query, 50))


def test_index__what_a_stopped_update_left_is_overwritten(index: Index, videos: Videos) -> None:
    rows = next(index.folder.glob("rows-*.f16"))
    with rows.open("ab") as file:
        file.write(b"\1" * 1000)
    more = Videos(62, d=128)
    again = Index(index.folder)
    again.update({**videos.revisions(), 61: 1, 62: 1}, lambda ids: more.load(ids))
    view = again.view
    assert view is not None
    np.testing.assert_allclose(view.vectors(view.rows_of([keyframe_id(61, 0)]))[0], more.vectors[61][0], atol=1e-3)


def test_query_of__ten_examples_beat_their_mean(videos: Videos) -> None:
    everything = np.concatenate(list(videos.vectors.values()))
    truth = videos.kinds.reshape(-1)
    background = Background.of(everything)

    def precision(vector: Vectors, kind: int, n: int) -> float:
        return float((truth[np.argsort(-(everything @ vector))[:n]] == kind).mean())

    ours, plain = [], []
    for kind in range(40):
        likes = everything[np.flatnonzero(truth == kind)[:10]]
        n = int((truth == kind).sum())
        ours.append(precision(query_of(likes, likes[:0], background).vector, kind, n))
        plain.append(precision(likes.mean(0), kind, n))
    assert np.mean(ours) > np.mean(plain) + 0.05


def test_query_of__unlikes_push_away(videos: Videos) -> None:
    everything = np.concatenate(list(videos.vectors.values()))
    background = Background.of(everything)
    a, b = videos.vectors[1][:1], videos.vectors[2][:3]
    without = query_of(a, b[:0], background).similarity(b).mean()
    assert query_of(a, b, background).similarity(b).mean() < without - 0.05


def test_query_of__nothing_liked() -> None:
    none = np.zeros((0, 4), np.float32)
    with pytest.raises(ValueError, match="at least one example"):
        query_of(none, none, Background.of(none))


def test_background__of_one_row_and_of_none() -> None:
    for n in (0, 1, 2):
        background = Background.of(unit(np.eye(4)[:n]))
        query = query_of(unit(np.eye(4)[:1]), np.zeros((0, 4), np.float32), background)
        assert np.isfinite(query.vector).all()


def test_with_words__alone_is_the_cosine_and_beside_examples_counts_as_much(videos: Videos) -> None:
    everything = np.concatenate(list(videos.vectors.values()))
    background = Background.of(everything)
    words = videos.vectors[3][0]
    np.testing.assert_allclose(with_words(None, words, background).similarity(everything), everything @ words)
    like = query_of(videos.vectors[1][:1], videos.vectors[1][:0], background)
    both = with_words(like, words, background)
    best = both.similarity(everything)
    assert best[np.argsort(-(everything @ words))[:50]].mean() > 0.2
    assert best[np.argsort(-like.similarity(everything))[:50]].mean() > 0.2


def test_search__without_the_best_ones_finds_the_next(index: Index, videos: Videos) -> None:
    query, view = probe(index, videos), index.view
    assert view is not None
    everything = exact(videos, query, 700)
    for few in (30, 600):  # left out afterwards, and looked up
        rows, _ = view.search(query, 20, without=view.rows_of(everything[:few]))
        assert len(set(view.keyframe_ids[rows].tolist()) & set(everything[few : few + 20])) >= 19
