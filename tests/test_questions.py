"""Questions, what a search depends on, and tabs, in both kinds of ledger."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import NotYet
from lookalike.ledger import ClaimLost
from lookalike.settings import Settings
from lookalike.store import Project, Store
from tests.gallery import Gallery, claim, seed

UID = "7.2026"
MODEL = "efficientnet-lite0"


@pytest.fixture
def gallery(store: Store, tmp_path: Path) -> Gallery:
    return seed(store, Settings(data_dir=tmp_path), Project(UID, 7, "Streets", "<View/>"), keyframes=5, pictures=[])


def test_revision__moves_with_whatever_changes_keyframes(store: Store, gallery: Gallery) -> None:
    questions = store.questions
    before = questions.revision(UID)
    assert questions.revision(UID) == before
    store.delete_videos(UID, [100])
    gone = questions.revision(UID)
    assert gone.vectors != before.vectors
    assert len(questions.revisions(UID, MODEL)) == 1
    store.add_videos(UID, [(101, "/data/upload/7/new.mp4", {"video": "/data/upload/7/new.mp4"})])
    assert questions.revision(UID).vectors != gone.vectors
    assert questions.revisions(UID, MODEL) == {}


def test_revision__of_clusters_and_of_labels(store: Store, gallery: Gallery) -> None:
    before = store.questions.revision(UID)
    store.want("cluster", UID)
    store.put_clustering(claim(store, "cluster", UID), MODEL, gallery.grouped, 10, {})
    assert store.questions.revision(UID).clusters != before.clusters
    store.want("propagate", UID)
    work = claim(store, "propagate", UID)
    reading = store.questions.revision(UID).labels
    assert store.ledger.renew(work, lease_s=60, stage="propagating")
    assert store.questions.revision(UID).labels != reading


def test_revisions__a_video_that_was_worked_on_once_more_has_another(store: Store, gallery: Gallery) -> None:
    video = store.videos(UID)[0].id
    before = store.questions.revisions(UID, MODEL)[video]
    store.add_videos(UID, [(100, f"https://elsewhere{store.videos(UID)[0].url}", {})])
    assert video not in store.questions.revisions(UID, MODEL)
    from lookalike.records import Embeddings, Extraction, VideoFacts

    facts = VideoFacts(store.video(video).fps or 25, 1, 1.0, 10, 10)  # type: ignore[union-attr,arg-type]
    vectors = Embeddings(np.asarray([1]), np.ones((1, 16), np.float32), MODEL)
    store.put_extraction(claim(store, "video", str(video)), Extraction(facts, (), ()), vectors)
    assert store.questions.revisions(UID, MODEL)[video] != before


def test_vectors__are_those_of_the_videos_asked_for(store: Store, gallery: Gallery) -> None:
    first, second = (video.id for video in store.videos(UID))
    [(video, ids, vectors)] = list(store.questions.vectors(MODEL, [second]))
    assert video == second
    np.testing.assert_array_equal(ids, gallery.ids[5:])
    np.testing.assert_allclose(vectors.astype(np.float32), gallery.vectors[5:], atol=1e-3)
    assert list(store.questions.vectors("another", [first])) == []


def test_ask__twice_is_once_and_an_answer_is_kept(store: Store, gallery: Gallery) -> None:
    first = store.questions.ask(UID, MODEL, "text", b"a red car")
    assert first.vector is None
    assert not store.questions.is_answered(first.id)
    assert store.questions.ask(UID, MODEL, "text", b"a red car").id == first.id
    store.questions.answer(claim(store, "question", str(first.id)), np.arange(4, dtype=np.float32))
    again = store.questions.ask(UID, MODEL, "text", b"a red car")
    assert again.vector is not None
    np.testing.assert_array_equal(again.vector, [0, 1, 2, 3])
    assert store.questions.ask(UID, MODEL, "image", b"a red car").id != first.id
    known = store.questions.asked(UID, MODEL, first.digest)
    assert known is not None
    assert known.id == first.id
    assert store.questions.asked("8.2026", MODEL, first.digest) is None


@pytest.mark.parametrize("workers_died", [False, True])
def test_ask__one_that_failed_says_why_and_is_tried_again(store: Store, gallery: Gallery, workers_died: bool) -> None:
    first = store.questions.ask(UID, MODEL, "image", b"nonsense")
    work, reason = claim(store, "question", str(first.id)), "cannot be read as a picture"
    if workers_died:
        store.ledger.fail(work, reason)
    else:
        store.questions.answer(work, None, reason)
    assert store.questions.is_answered(first.id)
    found = store.questions.question(first.id)
    assert found is not None
    assert found.error == reason
    assert store.questions.ask(UID, MODEL, "image", b"nonsense").error == ""
    assert not store.questions.is_answered(first.id)
    claim(store, "question", str(first.id))


def test_answer__no_picture_is_kept_longer_than_its_vector(store: Store, gallery: Gallery) -> None:
    for error, again in (("", True), ("cannot be read as a picture", False)):
        content = b"somebody's picture" + error.encode()
        asked = store.questions.ask(UID, MODEL, "image", content)
        vector = None if error else np.ones(4, np.float32)
        store.questions.answer(claim(store, "question", str(asked.id)), vector, error)
        kept = store.questions.question(asked.id)
        assert kept is not None
        assert kept.content == b""
        assert (store.questions.ask(UID, MODEL, "image", content).vector is not None) == again
        asked_again = store.questions.question(asked.id)
        assert asked_again is not None
        assert asked_again.content == (b"" if again else content)


def test_ask__not_more_than_some_wait_in_a_project(store: Store, gallery: Gallery) -> None:
    first = store.questions.ask(UID, MODEL, "text", b"0")
    for number in range(1, 50):
        store.questions.ask(UID, MODEL, "text", str(number).encode())
    with pytest.raises(NotYet, match="50 questions of this project wait"):
        store.questions.ask(UID, MODEL, "text", b"one too many")
    assert store.questions.ask(UID, MODEL, "text", b"0").id == first.id  # asking again is no new one
    store.questions.answer(claim(store, "question", str(first.id)), np.ones(4, np.float32))
    store.questions.ask(UID, MODEL, "text", b"one too many")


def test_forget__what_was_asked_a_day_ago_and_its_work(
    store: Store, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.questions.ask(UID, MODEL, "text", b"a red car")
    store.questions.answer(claim(store, "question", str(old.id)), np.ones(4, np.float32))
    store.questions.forget()
    assert store.questions.question(old.id) is not None
    now = time.time()
    monkeypatch.setattr("lookalike.questions.time.time", lambda: now + 25 * 3600)
    store.questions.forget()
    assert store.questions.question(old.id) is None
    assert not [row for row in store.ledger.rows() if row.kind == "question"]


def test_answer__of_a_claim_that_was_lost_is_not_kept(store: Store, gallery: Gallery) -> None:
    question = store.questions.ask(UID, MODEL, "text", b"bus")
    work = claim(store, "question", str(question.id))
    store.ledger.release()
    claim(store, "question", str(question.id))
    with pytest.raises(ClaimLost):
        store.questions.answer(work, np.ones(4, np.float32))
    assert not store.questions.is_answered(question.id)


def test_leaders__of_keyframes_that_nobody_has_folded_yet_are_themselves(store: Store, gallery: Gallery) -> None:
    first, second = gallery.ids[:2].tolist()
    unknown = second + 1
    store.labels.fold(UID, {unknown: first})
    assert store.questions.leaders([second, unknown, 5]) == {second: second, unknown: first, 5: 5}


def test_tabs__remember_what_they_show(store: Store, gallery: Gallery) -> None:
    store.questions.ask_tab(UID, "Car", {"top": 10})
    [tab] = store.questions.tabs(UID)
    assert (tab.tab, tab.asked, tab.shown) == (0, {"top": 10}, {})
    from dataclasses import replace

    store.questions.put_tab(replace(tab, uid="9.1", tab=43, shown={5: 0.9}))
    store.questions.ask_tab(UID, "Car", {"top": 20})
    [tab] = store.questions.tabs(UID)
    assert (tab.uid, tab.tab, tab.asked, tab.shown) == ("9.1", 43, {"top": 20}, {5: 0.9})
