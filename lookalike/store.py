"""The store: what we know of projects, videos, keyframes, vectors, clusters and predictions.

The one door to SQL. SQLite in WAL mode on one machine, PostgreSQL on many, chosen by the URL. What is to be done
about a video stands in `Store.ledger`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Text, and_, case, cast, create_engine, delete, event, func, null, or_, select, update
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError

from lookalike import edits, migrations
from lookalike.errors import SettingsError
from lookalike.grouping import Choice, Fit, Proposal, Tree
from lookalike.labels import Labels
from lookalike.ledger import Claim, Kind, Ledger, Part, insert, portions, translated
from lookalike.maps import Maps
from lookalike.questions import Questions
from lookalike.records import Clustering, Embeddings, Extraction, Json, Keyframe
from lookalike.schema import (
    clusterings,
    fits,
    keyframes,
    models,
    predictions,
    projects,
    readings,
    vectors,
    videos,
    work,
)

#: least cosine between what a model gives for one picture at two times, in whatever precision
_SAME_MODEL = 0.98


@dataclass(frozen=True, slots=True)
class Project:
    """A Label Studio project that we serve."""

    uid: str
    label_studio_id: int
    title: str
    label_config: str


@dataclass(frozen=True, slots=True)
class StoredVideo:
    """A video as the ledger knows it; what only decoding tells is None until then."""

    id: int
    project: str
    task: int
    url: str
    data: Json
    fps: Fraction | None
    frame_count: int | None
    duration_s: float | None
    width_px: int | None
    height_px: int | None


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    video: int
    task: int
    body: Json
    digest: str
    delivered: str
    answered_at: float


@dataclass(frozen=True, slots=True)
class VideoStatus:
    """Where one video is, for people."""

    video: int
    task: int
    url: str
    state: str  # queued, a running job's stage, clustering, delivering, delivered, updating, failed
    error: str
    work: int
    updated_at: float


def open_store(url: str) -> Store:
    """Open the store at a SQLAlchemy URL; its tables are made, or brought up to date.

    Raises SettingsError for a URL that is none, StoreError where the database does not answer or is a newer program's.
    """
    engine = open_engine(url)
    with translated():
        migrations.upgrade(engine)
    return Store(engine)


def open_engine(url: str) -> Engine:
    """The database at a SQLAlchemy URL as it is. Raises SettingsError for a URL that is none."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise SettingsError(f"LOOKALIKE_STORE_URL must be a sqlite or postgresql URL, got {backend}")
        if backend == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        elif parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=backend == "postgresql")
    except ArgumentError:
        raise SettingsError("LOOKALIKE_STORE_URL must be a SQLAlchemy URL such as sqlite:///ledger.sqlite3") from None
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"LOOKALIKE_STORE_URL needs the package {error.name}: pip install 'lookalike[postgresql]'"
        ) from None
    if backend == "sqlite":
        _prepare_sqlite(engine)
    return engine


class Store(Part):
    """Verbs on everything but the work itself, which is `self.ledger`'s.

    Each raises StoreError where the database does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.engine = engine
        self.ledger = Ledger(engine)
        self.labels = Labels(engine)
        self.questions = Questions(engine)
        self.edits = edits.Edits(engine)
        self.maps = Maps(engine)

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Raises StoreError where the ledger cannot be written."""
        with self.begin() as connection:
            connection.execute(update(work).where(work.c.id == -1).values(state="due"))

    # projects

    def put_project(self, project: Project) -> None:
        """Remember a project, or what has changed about it; an empty title or config changes nothing."""
        known = {"label_studio_id": project.label_studio_id}
        if project.title:
            known["title"] = project.title  # type: ignore[assignment]
        if project.label_config:
            known["label_config"] = project.label_config  # type: ignore[assignment]
        with self.begin() as connection:
            statement = insert(connection, projects).values(uid=project.uid, created_at=time.time(), **known)
            connection.execute(statement.on_conflict_do_update(index_elements=["uid"], set_=known))

    def project(self, uid: str) -> Project | None:
        with self.read() as connection:
            row = connection.execute(_project_query().where(projects.c.uid == uid)).one_or_none()
        return Project(*row) if row else None

    def projects(self) -> list[Project]:
        with self.read() as connection:
            return [Project(*row) for row in connection.execute(_project_query().order_by(projects.c.created_at))]

    def delete_project(self, uid: str) -> None:
        with self.begin() as connection:
            connection.execute(delete(projects).where(projects.c.uid == uid))

    # videos

    def add_videos(self, project: str, tasks: Sequence[tuple[int, str, Mapping[str, Any]]]) -> int:
        """Take in `(task, url, data)` and ask for their work, once each; how many are new or have a new url.

        One that names another file now is another video.
        """
        now = time.time()
        rows: list[dict[str, Any]] = [
            {"project": project, "task": task, "url": url, "data": json.dumps(data, sort_keys=True), "created_at": now}
            for task, url, data in sorted(tasks, key=lambda task: task[0])
        ]
        if not rows:
            return 0
        with self.begin(project) as connection:
            known = self._tasks(connection, project, [row["task"] for row in rows])
            moved = [row for row in rows if row["task"] in known and known[row["task"]][1] != row["url"]]
            # another file is another video: what people said of the one before is not said of this one
            replaced = [row["task"] for row in moved if _is_another_file(row["url"], known[row["task"]][1])]
            self._delete_videos(connection, project, {task: known.pop(task)[0] for task in replaced})
            new = [row for row in rows if row["task"] not in known]
            moved = [row for row in moved if row["task"] in known]
            if new:
                statement = insert(connection, videos).on_conflict_do_nothing(index_elements=["project", "task"])
                connection.execute(statement, new)
                ids = self._tasks(connection, project, [row["task"] for row in new])
                self.ledger.want(
                    connection, "video", [(str(video), project) for video, _, _ in ids.values()], again=False
                )
            for row in moved:
                video = known[row["task"]][0]
                connection.execute(delete(predictions).where(predictions.c.video == video))
                self._forget_results(connection, video)
                unknown = dict.fromkeys(("fps", "frame_count", "duration_s", "width_px", "height_px"))
                values = {"url": row["url"], "data": row["data"], **unknown}
                connection.execute(update(videos).where(videos.c.id == video).values(values))
                self.ledger.want(connection, "video", [(str(video), project)])
            edited = [row for row in rows if known.get(row["task"], (0, "", row["data"]))[2] != row["data"]]
            for row in edited:  # its frame rate may be another now
                chosen = videos.c.id == known[row["task"]][0]
                connection.execute(update(videos).where(chosen).values(data=row["data"]))
            if edited or replaced:
                self.ledger.want(connection, "cluster", [(project, project)])
        return len(new) + len(moved)

    def video(self, video_id: int) -> StoredVideo | None:
        found = self._videos(videos.c.id == video_id)
        return found[0] if found else None

    def videos(self, project: str, tasks: Sequence[int] | None = None) -> list[StoredVideo]:
        condition = videos.c.project == project
        if tasks is None:
            return self._videos(condition)
        c = videos.c
        return [video for some in portions(tasks) for video in self._videos(and_(condition, c.task.in_(some)))]

    def known_videos(self, video_ids: Sequence[int]) -> set[int]:
        """Those of some ids that are videos', of whatever project."""
        with self.read() as connection:
            return {
                video
                for some in portions(video_ids)
                for video in connection.execute(select(videos.c.id).where(videos.c.id.in_(some))).scalars()
            }

    def delete_videos(self, project: str, tasks: Sequence[int]) -> list[int]:
        """Forget tasks that are gone; the ids of their videos, whose pictures may go too."""
        with self.begin(project) as connection:
            gone = {task: row[0] for task, row in self._tasks(connection, project, tasks).items()}
            self._delete_videos(connection, project, gone)
            if gone:
                self.ledger.want(connection, "cluster", [(project, project)])
        return list(gone.values())

    # results of a video

    def put_extraction(self, claim: Claim, extraction: Extraction, embeddings: Embeddings | None) -> None:
        """Keep what one pass over a video gave and end its work, all or nothing; asks for clustering.

        Raises ClaimLost where another worker has taken over.
        """
        video = int(claim.subject)
        facts = extraction.facts
        with self.ledger.finishing(claim) as connection:
            self._forget_results(connection, video)
            connection.execute(
                update(videos)
                .where(videos.c.id == video)
                .values(
                    fps=str(facts.fps),
                    frame_count=facts.frame_count,
                    duration_s=facts.duration_s,
                    width_px=facts.width_px,
                    height_px=facts.height_px,
                )
            )
            if extraction.keyframes:
                connection.execute(
                    insert(connection, keyframes),
                    [
                        {
                            "id": keyframe.id,
                            "video": video,
                            "frame_index": keyframe.frame_index,
                            "time_s": keyframe.time_s,
                            "sharpness": keyframe.sharpness,
                            "first_frame": keyframe.first_frame,
                            "last_frame": keyframe.last_frame,
                            "first_s": keyframe.first_s,
                            "last_s": keyframe.last_s,
                            "shot": keyframe.shot,
                            "fingerprint": fingerprint,
                        }
                        for keyframe, fingerprint in zip(extraction.keyframes, extraction.fingerprints, strict=True)
                    ],
                )
            if embeddings is not None:
                self._insert_vectors(connection, video, embeddings)
            self.ledger.want(connection, "cluster", [(claim.project, claim.project)])

    def keyframes(self, video_ids: Sequence[int]) -> dict[int, list[Keyframe]]:
        """Keyframes by video, in the order shown."""
        found: dict[int, list[Keyframe]] = {video: [] for video in video_ids}
        c = keyframes.c
        columns = [c.video if name == "video_id" else c[name] for name in Keyframe.__dataclass_fields__]
        with self.read() as connection:
            for some in portions(video_ids):
                query = select(*columns).where(c.video.in_(some)).order_by(c.id)
                for row in connection.execute(query):
                    found[row[1]].append(Keyframe(*row))
        return found

    def load_embeddings(self, project: str, model: str) -> Embeddings:
        """All vectors of a project by one model, ascending by keyframe id. (n, d) float32."""
        query = (
            select(vectors.c.keyframe_ids, vectors.c.matrix, vectors.c.dim)
            .join(videos, videos.c.id == vectors.c.video)
            .where(videos.c.project == project, vectors.c.model == model)
            .order_by(vectors.c.video)
        )
        with self.read() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return Embeddings(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), model)
        ids = np.concatenate([_unpack(row[0], np.int64) for row in rows])
        matrix = np.empty((len(ids), rows[0][2]), np.float32)
        at = 0
        for row in rows:
            part = _unpack(row[1], np.float16).reshape(-1, row[2])
            matrix[at : at + len(part)] = part
            at += len(part)
        return Embeddings(ids, matrix, model)

    # models

    def serving(self, project: str, wanted: str) -> str:
        """The model whose clusters a project shows: `wanted`, or until all is embedded by that the one before."""
        query = select(clusterings.c.model).where(clusterings.c.project == project).order_by(clusterings.c.model)
        with self.read() as connection:
            found = connection.execute(query).scalars().all()
        return wanted if wanted in found or not found else found[0]

    def unembedded(self, project: str, model: str) -> list[int]:
        """Videos with keyframes but no vectors by a model, ascending; without those that failed: they get none."""
        failed = select(work.c.id).where(
            work.c.kind == "video", work.c.subject == cast(videos.c.id, Text), work.c.state == "failed"
        )
        query = select(videos.c.id).where(
            videos.c.project == project,
            select(keyframes.c.id).where(keyframes.c.video == videos.c.id).exists(),
            ~select(vectors.c.video).where(vectors.c.video == videos.c.id, vectors.c.model == model).exists(),
            ~failed.exists(),
        )
        with self.read() as connection:
            return list(connection.execute(query.order_by(videos.c.id)).scalars())

    def put_vectors(self, claim: Claim, video: int, embeddings: Embeddings) -> None:
        """Add one model's vectors of a video to those that there are, within a claim on its project's `embed`.

        Left out where the video's keyframes have become others meanwhile. Raises ClaimLost as `put_extraction` does.
        """
        with self.ledger.running(claim) as connection:
            known = connection.execute(select(keyframes.c.id).where(keyframes.c.video == video)).scalars().all()
            if sorted(known) != sorted(embeddings.keyframe_ids.tolist()):
                return
            connection.execute(delete(vectors).where(vectors.c.video == video, vectors.c.model == embeddings.model))
            self._insert_vectors(connection, video, embeddings)

    def want_videos(self, project: str, video_ids: Sequence[int]) -> None:
        """Ask for videos to be worked on once more, from the start."""
        with self.begin() as connection:
            self.ledger.want(connection, "video", [(str(video), project) for video in video_ids])

    def is_same_model(self, name: str, probe: NDArray[np.float32]) -> bool:
        """Whether a model still gives what it gave, (d,), when it was first met, but for rounding; keeps that then."""
        with self.begin() as connection:
            new = insert(connection, models).values(name=name, probe=_pack(probe, np.float32))
            connection.execute(new.on_conflict_do_nothing(index_elements=["name"]))
            packed = connection.execute(select(models.c.probe).where(models.c.name == name)).scalar_one()
        before = _unpack(packed, np.float32)
        lengths = float(np.linalg.norm(before) * np.linalg.norm(probe))
        return before.shape == probe.shape and float(before @ probe) >= _SAME_MODEL * lengths

    @staticmethod
    def _insert_vectors(connection: Connection, video: int, embeddings: Embeddings) -> None:
        if len(embeddings.vectors):
            connection.execute(
                insert(connection, vectors).values(
                    video=video,
                    model=embeddings.model,
                    dim=embeddings.vectors.shape[1],
                    keyframe_ids=_pack(embeddings.keyframe_ids, np.int64),
                    matrix=_pack(embeddings.vectors, np.float16),
                )
            )

    # clusters

    def put_clustering(
        self,
        claim: Claim,
        model: str,
        clustering: Clustering,
        fitted: int,
        bodies: Mapping[int, Json],
        fit: Fit | None = None,
        *,
        alone: bool = False,
    ) -> int:
        """Keep a project's clustering with the predictions that follow from it, and end the work that made it.

        `alone`: vectors and clusterings of all other models go.

        `fit`: what a full fit leaves behind; None where new keyframes only joined, and what there is stays.

        `bodies`: prediction by video id; those that differ from what Label Studio has are to be delivered. How many.
        """
        order = np.argsort(clustering.keyframe_ids)
        values = {
            "fitted": fitted,
            "keyframe_ids": _pack(clustering.keyframe_ids[order], np.int64),
            "clusters": _pack(clustering.clusters[order], np.int64),
            "centroids": _pack(clustering.centroids, np.int64),
            "similarity": _pack(clustering.similarity[order], np.float32),
        }
        with self.ledger.finishing(claim) as connection:
            if alone:
                own = select(videos.c.id).where(videos.c.project == claim.project)
                connection.execute(delete(vectors).where(vectors.c.video.in_(own), vectors.c.model != model))
                for table in (clusterings, fits):
                    others = and_(table.c.project == claim.project, table.c.model != model)
                    connection.execute(delete(table).where(others))
            statement = insert(connection, clusterings).values(project=claim.project, model=model, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["project", "model"], set_=values))
            if fit is not None:
                left = {
                    "choice": fit.choice.pack(),
                    "proposal": fit.proposal.pack() if fit.proposal else "",
                    "tree": fit.tree.pack() if fit.tree else None,
                }
                upsert = insert(connection, fits).values(project=claim.project, model=model, **left)
                connection.execute(upsert.on_conflict_do_update(index_elements=["project", "model"], set_=left))
            return self.put_predictions(connection, claim.project, bodies)

    def fit(self, project: str, model: str, *, with_tree: bool = True) -> Fit | None:
        """What the last full fit left behind; None before the first, and of a ledger older than that.

        `with_tree=False` leaves the tree out, which is megabytes in large projects.
        """
        c = fits.c
        tree = c.tree if with_tree else null().label("tree")
        query = select(c.choice, c.proposal, tree).where(c.project == project, c.model == model)
        with self.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return Fit(
            Choice.unpack(row.choice),
            Proposal.unpack(row.proposal) if row.proposal else None,
            Tree.unpack(row.tree) if row.tree is not None else None,
        )

    def clustering(self, project: str, model: str) -> tuple[Clustering, int] | None:
        """The clustering as people have edited it, and how many keyframes its last full fit saw."""
        found = self.fitted_clustering(project, model)
        return (edits.apply(found[0], self.edits.on_clusters(project)), found[1]) if found else None

    def fitted_clustering(self, project: str, model: str) -> tuple[Clustering, int] | None:
        """The same without people's edits: what the next clustering goes on from."""
        c = clusterings.c
        query = select(c.keyframe_ids, c.clusters, c.centroids, c.similarity, c.fitted)
        with self.read() as connection:
            row = connection.execute(query.where(c.project == project, c.model == model)).one_or_none()
        if row is None:
            return None
        ids, clusters, centroids = (_unpack(blob, np.int64) for blob in row[:3])
        return Clustering(ids, clusters, centroids, _unpack(row[3], np.float32)), row[4]

    # predictions

    def predictions(self, project: str, tasks: Sequence[int]) -> dict[int, StoredPrediction]:
        """What Label Studio should hold, by task."""
        c = predictions.c
        query = select(c.video, videos.c.task, c.body, c.digest, c.delivered, c.answered_at).join(
            videos, videos.c.id == c.video
        )
        found: dict[int, StoredPrediction] = {}
        with self.read() as connection:
            for some in portions(tasks):
                for row in connection.execute(query.where(videos.c.project == project, videos.c.task.in_(some))):
                    found[row[1]] = StoredPrediction(row[0], row[1], json.loads(row[2]), row[3], row[4], row[5])
        return found

    def answering(self, project: str, video_ids: Sequence[int], within_s: float) -> set[int]:
        """Claim the right to give predictions out now; the videos for which nobody did so within the last seconds.

        Label Studio opens a task with two requests at once, and saves whatever each gets.
        Each answer is looked after a little later by a delivery, which mends what both of them may have saved.
        """
        now = time.time()
        mine: set[int] = set()
        with self.begin(project) as connection:
            for some in portions(sorted(video_ids)):
                free = select(predictions.c.video).where(
                    predictions.c.video.in_(some), predictions.c.answered_at < now - within_s
                )
                taken = connection.execute(free).scalars().all()
                connection.execute(
                    update(predictions).where(predictions.c.video.in_(taken)).values(answered_at=now, delivered="")
                )
                mine.update(taken)
            self.ledger.want(connection, "deliver", [(str(video), project) for video in mine], delay_s=within_s)
        return mine

    def put_delivered(self, claim: Claim, digest: str) -> None:
        """Label Studio has the prediction with this digest; ends the delivery."""
        with self.begin(claim.project) as connection:
            connection.execute(
                update(predictions).where(predictions.c.video == int(claim.subject)).values(delivered=digest)
            )
            self.ledger.finish(claim, connection)

    def put_predictions(self, connection: Connection, project: str, bodies: Mapping[int, Json]) -> int:
        """Keep predictions by video id, within a transaction; those that are new are to be delivered. How many."""
        known = {
            row[0]: row[1]
            for row in connection.execute(
                select(predictions.c.video, predictions.c.digest)
                .join(videos, videos.c.id == predictions.c.video)
                .where(videos.c.project == project)
            )
        }
        alive = set(connection.execute(select(videos.c.id).where(videos.c.project == project)).scalars())
        changed = []
        for video, body in sorted(bodies.items()):
            encoded = json.dumps(body, sort_keys=True)
            digest = hashlib.sha256(encoded.encode()).hexdigest()[:32]
            if video in alive and known.get(video) != digest:
                changed.append({"video": video, "body": encoded, "digest": digest})
        if changed:
            statement = insert(connection, predictions)
            statement = statement.on_conflict_do_update(
                index_elements=["video"],
                set_={"body": statement.excluded.body, "digest": statement.excluded.digest},
            )
            connection.execute(statement, changed)
            self.ledger.want(connection, "deliver", [(str(row["video"]), project) for row in changed])
        return len(changed)

    # asking and looking

    def want(self, kind: Kind, project: str, *, again: bool = True, delay_s: float = 0.0) -> None:
        """Ask for a project's `cluster`, `sync`, `companion` or `propagate`."""
        with self.begin() as connection:
            self.ledger.want(connection, kind, [(project, project)], again=again, delay_s=delay_s)

    def video_status(
        self,
        project: str | None = None,
        limit: int = 100_000,
        *,
        states: Sequence[str] = (),
        after: int = 0,
        told: bool = False,
    ) -> list[VideoStatus]:
        """Where each video is, by id; of some `states` only, of videos whose ids are above `after`, or of those of
        which there is something to tell (`told`: why they wait, or failed)."""
        shown = _shown()
        query = _progress_query(project, videos.c.id, videos.c.task, videos.c.url, *shown)
        query = query.where(videos.c.id > after).order_by(videos.c.id).limit(limit)
        if states:
            query = query.where(shown[0].in_(states))
        if told:
            query = query.where(shown[1] != "")
        with self.read() as connection:
            return [VideoStatus(*row) for row in connection.execute(query)]

    def video_counts(self, project: str) -> dict[str, int]:
        """Videos by the state that people see: 15 ms for 10,000."""
        state = _shown()[0]
        query = _progress_query(project, state, func.count()).group_by("shown")
        with self.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def _delete_videos(self, connection: Connection, project: str, gone: Mapping[int, int]) -> None:
        """By task. What is known of them goes, and so does how far their annotations were read."""
        of_video = and_(readings.c.project == project, readings.c.source == "video")
        for some in portions(list(gone)):
            ids = [gone[task] for task in some]
            self.ledger.forget(connection, ("video", "deliver"), [str(video) for video in ids])
            connection.execute(delete(videos).where(videos.c.id.in_(ids)))
            connection.execute(delete(readings).where(of_video, readings.c.task.in_(some)))

    @staticmethod
    def _tasks(connection: Connection, project: str, tasks: Sequence[int]) -> dict[int, tuple[int, str, str]]:
        """(video id, url, data) of the tasks that are known."""
        found: dict[int, tuple[int, str, str]] = {}
        for some in portions(tasks):
            query = select(videos.c.task, videos.c.id, videos.c.url, videos.c.data)
            for row in connection.execute(query.where(videos.c.project == project, videos.c.task.in_(some))):
                found[row[0]] = (row[1], row[2], row[3])
        return found

    def _videos(self, condition: Any) -> list[StoredVideo]:
        columns = [videos.c[name] for name in StoredVideo.__dataclass_fields__]
        with self.read() as connection:
            rows = connection.execute(select(*columns).where(condition).order_by(videos.c.id)).mappings().all()
        return [
            StoredVideo(**{**row, "data": json.loads(row["data"]), "fps": row["fps"] and Fraction(row["fps"])})
            for row in rows
        ]

    @staticmethod
    def _forget_results(connection: Connection, video: int) -> None:
        connection.execute(delete(keyframes).where(keyframes.c.video == video))
        connection.execute(delete(vectors).where(vectors.c.video == video))


#: a video's delivery, and its project's clustering
_delivery, _grouping = work.alias("delivery"), work.alias("grouping")


def _shown() -> tuple[Any, Any, Any, Any]:
    """What people are told of a video: its state, the error, the row of work that it is about, and since when."""
    done = and_(work.c.state == "done", predictions.c.digest.is_not(None))
    not_grouped = and_(work.c.state == "done", predictions.c.digest.is_(None), _grouping.c.state == "failed")
    not_sent = and_(done, _delivery.c.state == "failed")
    sent = and_(done, predictions.c.digest == predictions.c.delivered)
    # people have an earlier one, or were given this one when they opened the task
    sent_before = or_(predictions.c.delivered != "", predictions.c.answered_at > 0)
    state = case(
        (work.c.state == "failed", "failed"),
        (work.c.state == "running", case((work.c.stage != "", work.c.stage), else_="starting")),
        (work.c.state == "due", "queued"),
        (or_(not_grouped, not_sent), "failed"),
        # a configuration without the reserved label has nothing to show before somebody has labelled something
        (and_(predictions.c.digest.is_(None), _grouping.c.state == "done"), "nothing to show yet"),
        (predictions.c.digest.is_(None), "clustering"),
        (sent, "delivered"),
        (sent_before, "updating"),
        else_="delivering",
    )
    error = case((not_grouped, _grouping.c.error), (sent, ""), (done, _delivery.c.error), else_=work.c.error)
    row = case((not_grouped, _grouping.c.id), (not_sent, _delivery.c.id), else_=work.c.id)
    at = case((not_grouped, _grouping.c.updated_at), (or_(not_sent, sent), _delivery.c.updated_at))
    empty = func.coalesce(error, "")
    return state.label("shown"), empty, row, func.coalesce(at, work.c.updated_at)


def _progress_query(project: str | None, *columns: Any) -> Any:
    query = (
        select(*columns)
        .join_from(videos, work, and_(work.c.kind == "video", work.c.subject == cast(videos.c.id, Text)))
        .outerjoin(predictions, predictions.c.video == videos.c.id)
        .outerjoin(_delivery, and_(_delivery.c.kind == "deliver", _delivery.c.subject == cast(videos.c.id, Text)))
        .outerjoin(_grouping, and_(_grouping.c.kind == "cluster", _grouping.c.subject == videos.c.project))
    )
    return query if project is None else query.where(videos.c.project == project)


def _is_another_file(url: str, before: str) -> bool:
    """Whether an address names another file: one that was signed anew, or leads to where a file was moved, does not.

    Label Studio names the file in the query: of a local one as `d`, of a storage's as `fileuri`, in base 64.
    """

    def name(address: str) -> str:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
        path = query.get("d", [parts.path])[0]
        if "fileuri" in query:
            path = base64.b64decode(query["fileuri"][0] + "==", altchars="-_").decode()
        return path.rstrip("/").rpartition("/")[2]

    try:
        return before != "" and name(url) != name(before)
    except ValueError:
        return True


def _project_query() -> Any:
    return select(projects.c.uid, projects.c.label_studio_id, projects.c.title, projects.c.label_config)


def _prepare_sqlite(engine: Engine) -> None:
    """WAL with full sync: a commit that was answered survives kill -9 and power loss (2 to 6 ms each)."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, see below
        connection.execute("PRAGMA busy_timeout = 20000")
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # taking the write lock at once: a transaction that reads first and writes later would fail with
        # "database is locked" instead of waiting its turn
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _use_wal(connection: Any) -> None:
    """SQLite does not wait here as busy_timeout says: of 800 that made a file with others, 25 found it locked."""
    for left in reversed(range(100)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if not left:
                raise
            time.sleep(0.02)


def _pack(array: NDArray[Any], dtype: Any) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _unpack(blob: bytes, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(blob, dtype=dtype)
