"""The ledger's tables. SQLite on one machine, PostgreSQL on many: nothing here is special to either.

Times are seconds since 1970 (float); frames are counted from 0.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite numbers rows by itself only where the key is called INTEGER
_Id = BigInteger().with_variant(Integer, "sqlite")

projects = Table(
    "projects",
    metadata,
    Column("uid", Text, primary_key=True),  # Label Studio's "<id>.<created_at>": ids alone are reused
    Column("label_studio_id", Integer, nullable=False),
    Column("title", Text, nullable=False, server_default=""),
    Column("label_config", Text, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
)

videos = Table(
    "videos",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("task", Integer, nullable=False),
    Column("url", Text, nullable=False),
    Column("data", Text, nullable=False),  # the task's data, JSON: the frame rate may stand there
    Column("fps", Text),  # a fraction, "30000/1001"
    Column("frame_count", Integer),
    Column("duration_s", Float),
    Column("width_px", Integer),
    Column("height_px", Integer),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("project", "task"),
    sqlite_autoincrement=True,  # an id is never used again: pictures and keyframe ids are made of it
)

keyframes = Table(
    "keyframes",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # lookalike.records.keyframe_id
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("frame_index", Integer, nullable=False),
    Column("time_s", Float, nullable=False),
    Column("sharpness", Float, nullable=False),
    Column("first_frame", Integer, nullable=False),
    Column("last_frame", Integer, nullable=False),
    Column("first_s", Float, nullable=False),
    Column("last_s", Float, nullable=False),
    Column("shot", Integer, nullable=False),
    Column("fingerprint", BigInteger, nullable=False),
)

vectors = Table(
    "vectors",
    metadata,
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("dim", Integer, nullable=False),
    Column("keyframe_ids", LargeBinary, nullable=False),  # (n,) int64
    Column("matrix", LargeBinary, nullable=False),  # (n, dim) float16
)

clusterings = Table(
    "clusterings",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("fitted", Integer, nullable=False),  # keyframes there were at the last full fit
    Column("keyframe_ids", LargeBinary, nullable=False),  # (n,) int64, ascending
    Column("clusters", LargeBinary, nullable=False),  # (n,) int64
    Column("centroids", LargeBinary, nullable=False),  # (k,) int64
    Column("similarity", LargeBinary, nullable=False),  # (n,) float32
)

predictions = Table(  # what Label Studio should hold for a video, and what it holds
    "predictions",
    metadata,
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),  # JSON
    Column("digest", Text, nullable=False),
    Column("delivered", Text, nullable=False, server_default=""),  # the digest that Label Studio has
    Column("answered_at", Float, nullable=False, server_default="0"),  # last given out by /predict
)

companions = Table(  # a video project's project of keyframes at Label Studio
    "companions",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("uid", Text, nullable=False, index=True),  # "" while it is only asked for, or was deleted by somebody
    Column("label_studio_id", Integer, nullable=False),
    Column("label_config", Text, nullable=False),
    Column("tabs", Text, nullable=False),  # JSON: the tab's id by what it is for; one that a person deleted stays away
    Column("asked", Integer, nullable=False),  # 1: somebody asked for it, whatever the settings say
)

keyframe_tasks = Table(  # which keyframes are to be looked at together, and by which task of the companion
    "keyframe_tasks",
    metadata,
    Column("keyframe", BigInteger, primary_key=True, autoincrement=False),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False, index=True),
    # not the keyframe: a video that is worked on once more gets its keyframes, but not its labels, anew
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("leader", BigInteger, nullable=False),  # the keyframe whose near-duplicate it is, or itself
    Column("image", Text, nullable=False, server_default=""),  # its address at Label Studio once it is uploaded
    Column("task", Integer),
    Index("keyframe_tasks_by_leader", "project", "leader"),
)

shown = Table(  # what a task of the companion shows
    "shown",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("task", Integer, primary_key=True),
    Column("data", Text, nullable=False),  # JSON
)

labels = Table(  # people's words
    "labels",
    metadata,
    Column("keyframe", BigInteger, primary_key=True, autoincrement=False),
    Column("source", Text, primary_key=True),  # companion or video: where the annotation stands
    Column("annotation", Integer, primary_key=True),
    Column("category", Text, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("task", Integer, nullable=False),
    Column("person", Text, nullable=False),
    Column("at", Float, nullable=False),
    Index("labels_by_task", "project", "source", "task"),
)

readings = Table(  # how far a task's annotations were read
    "readings",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("source", Text, primary_key=True),
    Column("task", Integer, primary_key=True),
    Column("stamp", Text, nullable=False),
)

propagated = Table(  # guesses
    "propagated",
    metadata,
    Column("keyframe", BigInteger, primary_key=True, autoincrement=False),
    Column("category", Text, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False, index=True),
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("score", Float, nullable=False),
    Column("nearest", Text, nullable=False),  # JSON: the labelled keyframes that gave it
    Column("run", _Id, nullable=False),
    Column("state", Text, nullable=False),  # proposed, unsure, conflict
    Index("propagated_by_category", "project", "category"),
)

runs = Table(  # one propagation that changed something, or the undoing of one
    "runs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("undoes", _Id),
    Column("labels", Integer, nullable=False),  # keyframes that people had labelled
    Column("changes", Text, nullable=False),  # JSON: [keyframe, what was proposed, what is proposed]
    Column("advice", Text, nullable=False, server_default=""),  # the planner's sentence
    sqlite_autoincrement=True,
)

withdrawn = Table(  # what a person has undone and is not proposed again
    "withdrawn",
    metadata,
    Column("keyframe", BigInteger, primary_key=True, autoincrement=False),
    Column("category", Text, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
)

outcomes = Table(  # what people made of proposals
    "outcomes",
    metadata,
    Column("keyframe", BigInteger, primary_key=True, autoincrement=False),
    Column("category", Text, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("video", _Id, ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("score", Float, nullable=False),
    Column("confirmed", Integer, nullable=False),  # 1: the person said the same
)

work = Table(  # everything that is to be done, or was
    "work",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),  # a video's id or a project's uid
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("state", Text, nullable=False),  # due, running, done, failed
    Column("stage", Text, nullable=False, server_default=""),  # where a running job is
    Column("wanted", Integer, nullable=False),  # times asked for …
    Column("done", Integer, nullable=False, server_default="0"),  # … and the asking that was last served
    Column("crashes", Integer, nullable=False, server_default="0"),  # claims in a row that came to no orderly end
    Column("tries", Integer, nullable=False, server_default="0"),  # orderly "not now" in a row
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("worker", Text, nullable=False, server_default=""),
    Column("next_at", Float, nullable=False),  # when a worker may claim it: a running row, when its lease has run out
    Column("error", Text, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("asked_at", Float, nullable=False, server_default="0"),  # since when it is waited for; 0: an old ledger
    UniqueConstraint("kind", "subject"),
    Index("work_by_state", "kind", "state", "next_at"),
    Index("work_by_project", "project", "kind", "state"),
    sqlite_autoincrement=True,  # nor is this one: a claim on a row that is gone must not fit a new row
)

spent = Table(  # sessions that were ended and sign-in addresses that were used, until they would have run out anyway
    "spent",
    metadata,
    Column("id", Text, primary_key=True),
    Column("until", Float, nullable=False),
)

durations = Table(  # how long the stages of jobs took: a histogram that all workers write and Prometheus reads
    "durations",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("at_most_s", Float, primary_key=True),  # the upper bound of the bucket
    Column("count", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
)

endings = Table(  # what became of jobs, counted
    "endings",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("outcome", Text, primary_key=True),  # done, later, failed, stumbled, dropped, died
    Column("reason", Text, primary_key=True),  # the class of the error, or nothing
    Column("count", BigInteger, nullable=False),
)

edits = Table(  # what a person did to clusters, labels and proposals, each to be undone as a whole
    "edits",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),  # name, junk, keep, exclude, split, merge, group, label, reject, propose
    Column("text", Text, nullable=False),  # the name, the category, or how many groups
    Column("number", Integer),  # of the cluster that a split made
    Column("person", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),  # when it was made, undone or made again
    Column("undone", Integer, nullable=False),
    Index("edits_by_project", "project", "id"),
    sqlite_autoincrement=True,
)

edit_keyframes = Table(  # what an edit was done to: keyframes, as clusters get other numbers
    "edit_keyframes",
    metadata,
    Column("edit", _Id, ForeignKey("edits.id", ondelete="CASCADE"), primary_key=True),
    Column("role", Text, primary_key=True),  # chosen, cluster (by these it is known again), other (the one merged)
    Column("keyframe", BigInteger, primary_key=True, autoincrement=False),
    Column("similarity", Float, nullable=False),  # to the middle of what was chosen
)

written = Table(  # annotations that were written for a person, and what stood there before
    "written",
    metadata,
    Column("edit", _Id, ForeignKey("edits.id", ondelete="CASCADE"), primary_key=True),
    Column("annotation", Integer, primary_key=True),
    Column("keyframe", BigInteger, nullable=False),
    Column("task", Integer, nullable=False),
    Column("before", Text),  # JSON: the result; None where there was no annotation
    Column("after", Text, nullable=False),  # JSON
)

touched = Table(  # tasks that Label Studio does not list as changed although they were annotated
    "touched",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("source", Text, primary_key=True),
    Column("task", Integer, primary_key=True),
    Column("at", Float, nullable=False),
)

fits = Table(  # what the last full fit of the clusters left behind
    "fits",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("choice", Text, nullable=False),  # the settings that it was made with
    Column("proposal", Text, nullable=False, server_default=""),  # JSON: lookalike.grouping.Proposal
    Column("tree", LargeBinary),  # lookalike.grouping.Tree, where the clustering has one
)

questions = Table(  # pictures, regions and words that people search by: a worker with the model makes their vectors
    "questions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), nullable=False),
    Column("model", Text, nullable=False),
    Column("digest", Text, nullable=False),  # of kind and content: asked twice, answered once
    Column("kind", Text, nullable=False),  # image, region, text
    Column("content", LargeBinary, nullable=False),  # the picture's file; JSON of keyframe and box; the words
    Column("vector", LargeBinary),  # (d,) float32, once it is answered
    Column("error", Text, nullable=False, server_default=""),
    Column("at", Float, nullable=False),
    UniqueConstraint("project", "model", "digest"),
    Index("questions_by_age", "at"),
    sqlite_autoincrement=True,
)

similar_tabs = Table(  # "Similar to …": tabs of the Data Manager, made when somebody asks
    "similar_tabs",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("category", Text, primary_key=True),
    Column("uid", Text, nullable=False),  # the project at Label Studio that has it: another one's tab is no tab of ours
    Column("tab", Integer, nullable=False),  # 0 before there is one
    Column("asked", Text, nullable=False),  # JSON: how many, from which similarity on
    Column("shown", Text, nullable=False),  # JSON: similarity by task
)

models = Table(  # what each embedder gives for one and the same picture: whether it is still the one that it was
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("probe", LargeBinary, nullable=False),  # (d,) float32
)

maps = Table(  # where a project's keyframes lie on its map: lookalike.maps.Map
    "maps",
    metadata,
    Column("project", Text, ForeignKey("projects.uid", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("keyframe_ids", LargeBinary, nullable=False),  # (n,) int64, ascending
    Column("places", LargeBinary, nullable=False),  # (n, 2) float32
    Column("fitted", Integer, nullable=False),  # keyframes there were when all of it was drawn
)
