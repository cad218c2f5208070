"""A project as the workers leave it, made in a moment: videos, keyframes with pictures, clusters, labels, guesses.

    gallery = seed(store, settings, project, videos=4, keyframes=50)

Keyframes of one category look alike: their vectors lie around one direction, their pictures have one colour.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from lookalike.grouping import unit
from lookalike.labels import LabelRow, Proposal, Run
from lookalike.ledger import Claim, Kind
from lookalike.records import Clustering, Embeddings, Extraction, Keyframe, VideoFacts, keyframe_id
from lookalike.settings import Settings
from lookalike.store import Project, Store

CATEGORIES = ("Car", "Bus", "Bicycle")


@dataclass(frozen=True)
class Gallery:
    project: Project
    ids: np.ndarray  # (n,) ascending
    truth: np.ndarray  # (n,) number of the category
    vectors: np.ndarray  # (n, d) float32, rows of length 1
    grouped: Clustering
    labelled: list[int]
    run: Run


def label_config(categories: Sequence[str] = CATEGORIES) -> str:
    from xml.sax.saxutils import quoteattr

    labels = "".join(f"<Label value={quoteattr(category)}/>" for category in categories)
    return f'<View><Video name="v" value="$video"/><TimelineLabels name="t" toName="v">{labels}</TimelineLabels></View>'


def seed(
    store: Store,
    settings: Settings,
    project: Project,
    *,
    videos: int = 2,
    keyframes: int = 30,
    categories: Sequence[str] = CATEGORIES,
    dim: int = 16,
    pictures: Sequence[bytes] | None = None,
    truth: Sequence[int] | None = None,
    names: Sequence[str] = (),
    task_ids: Sequence[int] = (),
) -> Gallery:
    """`keyframes` per video. `pictures`, with their `truth` (number of the category), are repeated as often as needed;
    an empty list: none on this machine. `names`: of the videos' files; `task_ids`: theirs at Label Studio."""
    random = np.random.default_rng(0)
    store.put_project(project)
    tasks = [
        (
            task_ids[n] if task_ids else 100 + n,
            f"/data/upload/{project.label_studio_id}/0123abcd-{names[n] if n < len(names) else f'clip {n}.mp4'}",
            {},
        )
        for n in range(videos)
    ]
    store.add_videos(project.uid, tasks)
    if pictures is None:
        truth = list(range(len(categories)))
        pictures = [_plain(n) for n in range(len(categories))]
    middles = unit(random.normal(size=(max(len(categories), *(truth or [0])) + 1, dim)))
    all_ids, all_truth, all_vectors = [], [], []
    for video in store.videos(project.uid):
        ids, found, kinds = [], [], []
        folder = settings.picture_path(video.id, 0).parent
        folder.mkdir(parents=True, exist_ok=True)
        for place in range(keyframes):
            frame = place * 25
            at = int(random.integers(len(truth or categories)))
            kind = int(truth[at]) if truth else at
            found.append(
                Keyframe(
                    keyframe_id(video.id, frame),
                    video.id,
                    frame,
                    place * 1.0,
                    9.0,
                    frame,
                    frame + 24,
                    place,
                    place + 0.96,
                )
            )
            ids.append(found[-1].id)
            kinds.append(kind)
            if pictures:
                settings.picture_path(video.id, frame).write_bytes(pictures[at])
        vectors = unit(middles[kinds] + 0.5 * dim**-0.5 * random.normal(size=(keyframes, dim)))
        facts = VideoFacts(Fraction(25), keyframes * 25, float(keyframes), 320, 200)
        prints = tuple(int(n) for n in random.integers(-(2**62), 2**62, keyframes))
        embeddings = Embeddings(np.asarray(ids), vectors, settings.embedder)
        store.put_extraction(
            claim(store, "video", str(video.id)), Extraction(facts, tuple(found), (), prints), embeddings
        )
        all_ids += ids
        all_truth += kinds
        all_vectors.append(vectors)
    ids_, truth_, vectors_ = np.asarray(all_ids), np.asarray(all_truth), np.concatenate(all_vectors)
    similarity = (vectors_ * middles[truth_]).sum(axis=1).clip(0, 1).astype(np.float32)
    kinds_, numbers = np.unique(truth_, return_inverse=True)
    centroids = [int(ids_[m][similarity[m].argmax()]) for m in (numbers == n for n in range(len(kinds_)))]
    grouped = Clustering(ids_, numbers.astype(np.int64), np.asarray(centroids, np.int64), similarity)
    work = claim(store, "cluster", project.uid)
    store.put_clustering(work, settings.embedder, grouped, len(ids_), {})
    store.labels.fold(project.uid, {int(k): int(k) for k in ids_})
    labelled = centroids[: len(categories) - 1]
    rows = [
        LabelRow(k, categories[min(n, len(categories) - 1)], "companion", 900 + n, 1 + n, "ann@example.com", 1e9 + n)
        for n, k in enumerate(labelled)
    ]
    store.labels.put_labels(project.uid, "companion", {row.task: "read" for row in rows}, rows)
    guesses = [
        Proposal(
            int(k), categories[number], round(float(s), 3), (labelled[number],), "proposed" if s > 0.85 else "unsure"
        )
        for k, number, s in zip(ids_, numbers, similarity, strict=True)
        if number < len(labelled) and k not in labelled
    ]
    with store.labels.begin() as connection:
        run = store.labels.put_run(
            connection, project.uid, guesses, {k: (row.category,) for k, row in zip(labelled, rows, strict=True)}
        )
    assert run is not None
    store.labels.put_advice(project.uid, "Label 3 more keyframes; about 40 % of the rest would follow.")
    return Gallery(project, ids_, truth_, vectors_, grouped, labelled, run)


def claim(store: Store, kind: Kind, subject: str) -> Claim:
    """The right to work on what has been asked for."""
    from lookalike.schema import work

    [row] = store.ledger.rows((work.c.kind == kind) & (work.c.subject == subject))
    found = store.ledger.claim(row.id, "test", lease_s=60, max_crashes=3)
    assert found is not None
    return found


def _plain(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (640, 400), [(190, 60, 50), (50, 120, 190), (70, 150, 80), (200, 160, 40)][number % 4]).save(
        out, "JPEG"
    )
    return out.getvalue()
