"""Searches of a project: by category, keyframes and words, filtered, folded, and while the project grows."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lookalike import similarity
from lookalike.errors import NotYet, RequestError
from lookalike.finder import Example, Finder, Wanted, example_of
from lookalike.labels import LabelRow
from lookalike.questions import Question
from lookalike.records import Embeddings, Extraction, Keyframe, VideoFacts, keyframe_id, split_keyframe_id
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store
from tests.gallery import Gallery, claim, seed

UID = "7.2026"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")) as opened:
        yield opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def finder(store: Store, settings: Settings) -> Iterator[Finder]:
    with contextlib.closing(Finder(store, settings)) as opened:
        yield opened


@pytest.fixture
def gallery(store: Store, settings: Settings) -> Gallery:
    return seed(store, settings, Project(UID, 7, "Streets", "<View/>"), videos=3, keyframes=40, pictures=[])


def kind_of(gallery: Gallery, keyframe: int) -> int:
    return int(gallery.truth[np.searchsorted(gallery.ids, keyframe)])


def test_find__by_category(finder: Finder, gallery: Gallery) -> None:
    found = finder.find(UID, Wanted(category="Car", top=20))
    assert len(found.hits) == 20
    assert {kind_of(gallery, hit.keyframe) for hit in found.hits} == {0}
    assert [hit.similarity for hit in found.hits] == sorted((hit.similarity for hit in found.hits), reverse=True)
    assert {hit.nearest for hit in found.hits} == {gallery.labelled[0]}
    assert gallery.labelled[0] not in {hit.keyframe for hit in found.hits}
    assert (found.searched, found.examples, found.complete) == (120, 1, True)
    assert {hit.cluster for hit in found.hits} == {0}


def test_find__a_category_that_nobody_has_used(finder: Finder, gallery: Gallery) -> None:
    with pytest.raises(RequestError, match="nobody has labelled a keyframe 'Bicycle' yet"):
        finder.find(UID, Wanted(category="Bicycle"))


def test_find__chosen_keyframes_and_less_like_others(finder: Finder, gallery: Gallery) -> None:
    bus, car = (int(gallery.ids[gallery.truth == kind][0]) for kind in (1, 0))
    found = finder.find(UID, Wanted(like=(bus, car), top=40))
    assert {kind_of(gallery, hit.keyframe) for hit in found.hits[:30]} == {0, 1}
    found = finder.find(UID, Wanted(like=(bus,), unlike=(car,), top=10))
    assert {kind_of(gallery, hit.keyframe) for hit in found.hits} == {1}
    assert not {bus, car} & {hit.keyframe for hit in found.hits}


def test_find__a_keyframe_of_another_project(finder: Finder, gallery: Gallery) -> None:
    with pytest.raises(RequestError, match="keyframe 12345 is not in this project"):
        finder.find(UID, Wanted(like=(12345,)))


def test_find__words_and_pictures_by_their_vectors(finder: Finder, gallery: Gallery) -> None:
    middle = gallery.vectors[gallery.truth == 2].mean(0)
    for wanted in (Wanted(words=middle, top=10), Wanted(examples=(Example("abc", middle),), top=10)):
        found = finder.find(UID, wanted)
        assert {kind_of(gallery, hit.keyframe) for hit in found.hits} == {2}
        assert {hit.nearest for hit in found.hits} == ({"abc"} if wanted.examples else {None})
    with pytest.raises(RequestError, match="a vector of 3 numbers cannot be compared"):
        finder.find(UID, Wanted(examples=(Example("abc", np.ones(3, np.float32)),)))


def test_find__filters(finder: Finder, store: Store, gallery: Gallery) -> None:
    second = store.videos(UID)[1].id
    found = finder.find(UID, Wanted(category="Car", videos=(second,)))
    assert {split_keyframe_id(hit.keyframe)[0] for hit in found.hits} == {second}
    found = finder.find(UID, Wanted(category="Car", clusters=(1,)))
    assert {kind_of(gallery, hit.keyframe) for hit in found.hits} == {1}
    found = finder.find(UID, Wanted(like=(int(gallery.ids[0]),), labelled=True))
    assert {hit.keyframe for hit in found.hits} == set(gallery.labelled) - {int(gallery.ids[0])}
    assert {hit.categories for hit in found.hits} <= {("Car",), ("Bus",)}
    found = finder.find(UID, Wanted(category="Car", labelled=False, top=1000))
    assert not set(gallery.labelled) & {hit.keyframe for hit in found.hits}
    assert len(found.hits) == 120 - len(gallery.labelled)
    assert finder.find(UID, Wanted(category="Car", videos=())).hits == ()


def test_find__near_duplicates_are_one_result(finder: Finder, store: Store, gallery: Gallery) -> None:
    cars = gallery.ids[gallery.truth == 0].tolist()
    store.labels.lose_companion(UID)  # as nothing is folded after it
    store.labels.fold(UID, dict.fromkeys(cars[:20], cars[0]) | {k: k for k in cars[20:]})
    found = finder.find(UID, Wanted(like=(cars[25],), top=8))
    folded = [hit for hit in found.hits if hit.duplicates]
    assert len(folded) == 1
    assert len(found.hits) == 8
    assert {folded[0].keyframe, *folded[0].duplicates} <= set(cars[:20])
    apart = finder.find(UID, Wanted(like=(cars[25],), top=8, fold=False))
    assert not any(hit.duplicates for hit in apart.hits)


def test_find__new_videos_are_found_and_deleted_ones_are_not(
    finder: Finder, store: Store, settings: Settings, gallery: Gallery
) -> None:
    assert finder.find(UID, Wanted(category="Car")).searched == 120
    gone = store.videos(UID)[0]
    store.delete_videos(UID, [gone.task])
    found = finder.find(UID, Wanted(like=(int(gallery.ids[-1]),), top=1000), wait_s=float("inf"))
    assert found.searched == 80
    assert gone.id not in {split_keyframe_id(hit.keyframe)[0] for hit in found.hits}


def test_find__labels_count_once_they_are_read(finder: Finder, store: Store, gallery: Gallery) -> None:
    finder.find(UID, Wanted(category="Car"))
    bicycle = int(gallery.ids[gallery.truth == 2][0])
    store.want("propagate", UID)
    work = claim(store, "propagate", UID)
    row = LabelRow(bicycle, "Bicycle", "companion", 990, 99, "ann@example.com", 2e9)
    store.labels.put_labels(UID, "companion", {990: "read"}, [row])
    store.ledger.finish(work)
    found = finder.find(UID, Wanted(category="Bicycle", top=10))
    assert {kind_of(gallery, hit.keyframe) for hit in found.hits} == {2}


def test_find__one_of_each_group_of_near_duplicates_is_an_example(
    finder: Finder, store: Store, gallery: Gallery
) -> None:
    cars = gallery.ids[gallery.truth == 0].tolist()
    store.labels.lose_companion(UID)
    store.labels.fold(UID, dict.fromkeys(cars[:10], cars[0]))
    rows = [LabelRow(k, "Car", "companion", 990, 99, "ann@example.com", 2e9) for k in cars[:10]]
    store.labels.put_labels(UID, "companion", {990: "read"}, rows)
    found = finder.find(UID, Wanted(category="Car", top=10))
    assert found.examples == 1
    assert not set(cars[:10]) & {hit.keyframe for hit in found.hits}


def test_find__before_there_is_anything(finder: Finder, store: Store) -> None:
    store.put_project(Project(UID, 7, "Streets", "<View/>"))
    with pytest.raises(RequestError, match="no keyframes with vectors"):
        finder.find(UID, Wanted(like=(1,)))


def test_find__says_so_while_the_first_index_is_made(
    finder: Finder, store: Store, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, load = threading.Event(), store.questions.vectors

    def slow(model: str, videos: object) -> object:
        assert go.wait(60)
        return load(model, videos)  # type: ignore[arg-type]

    monkeypatch.setattr(store.questions, "vectors", slow)
    with pytest.raises(NotYet, match="ask again"):
        finder.find(UID, Wanted(category="Car"), wait_s=0.05)
    go.set()
    assert finder.find(UID, Wanted(category="Car"), wait_s=float("inf")).searched == 120


def test_find__says_so_while_what_is_labelled_is_taken_in(
    finder: Finder, store: Store, settings: Settings, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = LabelRow(int(gallery.ids[-1]), "Tram", "companion", 990, 99, "ann@example.com", 2e9)
    store.labels.put_labels(UID, "companion", {row.task: "read"}, [row])
    reached, go_on = threading.Event(), threading.Event()
    read = store.questions.vectors

    def in_parts(model: str, videos: Sequence[int]) -> Iterator[object]:
        *first, latest = read(model, videos)
        yield from first
        reached.set()
        assert go_on.wait(60)
        yield latest

    monkeypatch.setattr(store.questions, "vectors", in_parts)
    monkeypatch.setattr(similarity, "_PORTION", 1)
    monkeypatch.setattr(similarity, "_PUBLISH_EVERY", 1)
    with pytest.raises(NotYet):
        finder.find(UID, Wanted(category="Tram"), wait_s=0)
    assert reached.wait(60)
    with pytest.raises(NotYet, match="labelled 'Tram' are still being taken in"):
        finder.find(UID, Wanted(category="Tram"), wait_s=0)
    go_on.set()
    assert finder.find(UID, Wanted(category="Tram"), wait_s=float("inf")).examples == 1


def test_find__as_many_keyframes_are_taken_in_as_go(
    finder: Finder, store: Store, settings: Settings, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder.find(UID, Wanted(category="Car"))
    store.delete_videos(UID, [102])
    store.add_videos(UID, [(200, "/data/upload/1/tram.mp4", {})])
    video = store.videos(UID, [200])[0].id
    frames = tuple(Keyframe(keyframe_id(video, n), video, n, n / 25, 1.0, n, n) for n in range(40))
    vectors = np.random.default_rng(0).standard_normal((40, gallery.vectors.shape[1]), np.float32)
    embeddings = Embeddings(np.asarray([frame.id for frame in frames]), vectors, settings.embedder)
    facts = VideoFacts(Fraction(25), 40, 1.6, 640, 360)
    store.put_extraction(claim(store, "video", str(video)), Extraction(facts, frames, (), (0,) * 40), embeddings)
    row = LabelRow(frames[0].id, "Tram", "companion", 990, 99, "ann@example.com", 2e9)
    store.labels.put_labels(UID, "companion", {row.task: "read"}, [row])
    store.want("propagate", UID)
    store.ledger.finish(claim(store, "propagate", UID))
    go, read = threading.Event(), store.questions.vectors

    def slow(model: str, videos: Sequence[int]) -> object:
        assert go.wait(60)
        return read(model, videos)

    monkeypatch.setattr(store.questions, "vectors", slow)
    with pytest.raises(NotYet, match="labelled 'Tram' are still being taken in"):
        finder.find(UID, Wanted(category="Tram"), wait_s=0)
    go.set()
    assert finder.find(UID, Wanted(category="Tram"), wait_s=float("inf")).examples == 1


def test_find__that_waits_for_all_does_not_make_do_with_an_update_begun_before(
    finder: Finder, store: Store, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, read = threading.Event(), threading.Event(), store.questions.revisions

    def slow(project: str, model: str) -> dict[int, int]:
        found = read(project, model)
        began.set()
        assert go.wait(60)
        return found

    monkeypatch.setattr(store.questions, "revisions", slow)
    with pytest.raises(NotYet):
        finder.find(UID, Wanted(category="Car"), wait_s=0)
    assert began.wait(60)
    store.delete_videos(UID, [102])
    threading.Timer(0.2, go.set).start()
    found = finder.find(UID, Wanted(category="Car"), wait_s=float("inf"))
    assert (found.searched, found.complete) == (80, True)


def test_find__from_many_threads_while_it_changes(finder: Finder, store: Store, gallery: Gallery) -> None:
    failed: list[BaseException] = []

    def search() -> None:
        try:
            for _ in range(15):
                assert len(finder.find(UID, Wanted(category="Car", top=10)).hits) == 10
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(6)]
    for thread in threads:
        thread.start()
    store.delete_videos(UID, [102])
    for thread in threads:
        thread.join()
    assert failed == []
    assert finder.find(UID, Wanted(category="Car"), wait_s=float("inf")).searched == 80


def test_index__of_a_project_that_is_gone_goes_too(
    finder: Finder, store: Store, settings: Settings, gallery: Gallery
) -> None:
    finder.find(UID, Wanted(category="Car"))
    store.delete_project(UID)
    other = Project("8.2026", 8, "Roads", "<View/>")
    seed(store, settings, other, keyframes=5, pictures=[])
    finder.find("8.2026", Wanted(category="Car"))
    assert [folder.name.split("-")[0] for folder in (settings.data_dir / "index").iterdir()] == ["8.2026"]


def test_index__of_a_project_that_comes_while_others_go_stays(
    finder: Finder, store: Store, settings: Settings, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects, new = store.projects, settings.data_dir / "index" / "8.2026-0"

    def just_before() -> list[Project]:
        """Another process has the new project, and begins its index."""
        found = projects()
        new.mkdir()
        return found

    monkeypatch.setattr(store, "projects", just_before)
    finder.find(UID, Wanted(category="Car"), wait_s=float("inf"))
    assert new.exists()


def test_index__that_somebody_removed_is_made_again(
    finder: Finder, store: Store, settings: Settings, gallery: Gallery
) -> None:
    finder.find(UID, Wanted(category="Car"))
    shutil.rmtree(settings.data_dir / "index")
    with contextlib.closing(Finder(store, settings)) as another:
        assert another.find(UID, Wanted(category="Car")).searched == 120


def test_guess__by_the_labelled_keyframes_it_is_most_like(finder: Finder, gallery: Gallery) -> None:
    for kind, category in ((0, "Car"), (1, "Bus")):
        guess = finder.guess(UID, gallery.vectors[gallery.truth == kind][3])
        assert guess is not None
        assert guess[0] == category
        assert 0.5 < guess[1] <= 1


@pytest.mark.parametrize("top", [0, 1001])
def test_wanted__top_has_bounds(top: int) -> None:
    with pytest.raises(RequestError, match="top must be between 1 and 1000"):
        Wanted(category="Car", top=top)


def test_wanted__nothing() -> None:
    with pytest.raises(RequestError, match="name a category"):
        Wanted()


def test_example_of__a_question_without_an_answer() -> None:
    question = Question(1, UID, "m", "abc", "image", b"", None, "the picture cannot be read as a picture")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        example_of(question)
    assert example_of(replace(question, vector=np.ones(4, np.float32))).vector.tolist() == [0.5] * 4
