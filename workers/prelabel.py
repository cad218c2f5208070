"""`lookalike prelabel`: many clips at once, without a server, or the tasks of a connected project."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

import click
from tqdm import tqdm

from lookalike import wire
from lookalike.errors import QueueError, SettingsError, SetupError
from lookalike.label_studio import LabelStudio
from lookalike.queue import Queue, redis_url
from lookalike.settings import CLUSTERINGS, Settings, share_cores
from lookalike.store import Project, Store, open_store
from workers.timeline import read_config

LABEL_CONFIG = Path(__file__).parent.parent / "label_config" / "video_timeline.xml"

_LOOK_EVERY_S = 1.0
_IDLE_S = 30.0  # work that nobody takes for so long: nobody is there


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--mode", type=click.Choice(["exact", "fast"]), help="Read every frame, or I-frames first.")
@click.option("--share", type=float, help="Share of the frames to keep, about.  [default: 0.01]")
@click.option("--clusters", type=int, help="Number of clusters; 0: proposed from the data.  [default: 0]")
@click.option("--clustering", type=click.Choice(CLUSTERINGS), help="How to group.  [default: pca-kmeans]")
@click.option("--embedder", help="Model of pictures, sound or text; 'lookalike models' lists some.")
@click.option(
    "--label-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=LABEL_CONFIG,
    help="Labeling configuration to predict for; with one for images, PATHS are pictures.  [default: video_timeline]",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Files decoded at a time.  [default: one per core]")
@click.option("--url-prefix", help="What the tasks' addresses begin with.  [default: /data/local-files/?d=]")
@click.option(
    "--local-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the rest of the addresses is relative to.",
)
@click.option("--project", type=int, help="Work on the tasks of this project instead, with the workers of 'up'.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="With --project: that of 'up'.")
def command(
    paths: tuple[Path, ...],
    out: Path | None,
    mode: str | None,
    share: float | None,
    clusters: int | None,
    clustering: str | None,
    embedder: str | None,
    label_config: Path,
    workers: int | None,
    url_prefix: str | None,
    local_root: Path | None,
    project: int | None,
    data_dir: Path | None,
) -> None:
    """Find the clusters of many clips at once, without a server.

    PATHS are video files, and folders to look through. The folder --out gets:

    \b
      clusters.html     contact sheet, to open in a browser
      tasks.json        tasks with predictions, to import into Label Studio
      label_config.xml  the labeling configuration that they are for
      keyframes/        their pictures
      embeddings.npz    their vectors, times and clusters
      report.json       what became of each file, and how long it took

    Run it again after adding files: only what is new is worked on, and clusters keep their names.

    \b
    To import tasks.json into Label Studio:
      1. Start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
         LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=the folder above your videos' folder
         (or --local-root, which then must lie above it too).
      2. Make a project with label_config.xml as its labeling interface.
      3. Settings, Cloud Storage: add local files, the path being your videos' folder. Do not sync.
      4. Import tasks.json.
    For videos that are served elsewhere: --url-prefix https://host/videos/ or s3://bucket/videos/, which your videos'
    paths within their folder are appended to.
    """
    settings = Settings.from_environment(
        data_dir=data_dir,
        keyframe_mode=mode,
        keyframe_share=share,
        clusters=clusters,
        clustering=clustering,
        embedder=embedder,
    )
    if project is not None:
        if paths or out:
            raise click.UsageError("--project goes without PATHS and --out: its videos are Label Studio's")
        sys.exit(0 if prelabel_project(project, settings.or_demo()) else 1)
    if not paths or out is None:
        raise click.UsageError("name videos and a folder for the results: lookalike prelabel clips --out results")
    share_cores()
    from workers.batch import prelabel  # not atop: torch takes seconds, which --help and --project need not wait for

    try:
        done = prelabel(
            paths,
            out,
            settings,
            label_config.read_text(encoding="utf-8"),
            workers=workers or os.cpu_count() or 1,
            url_prefix=url_prefix,
            local_root=local_root,
        )
    except KeyboardInterrupt:
        click.echo(f"\nstopped; what is done is kept in {out}, and the same command goes on from there", err=True)
        sys.exit(130)
    sys.exit(0 if done else 1)


def prelabel_project(project_id: int, settings: Settings) -> int:
    """Have the running workers do everything that is left of a project's tasks; the number of tasks delivered.

    Raises SetupError where nothing runs, SettingsError or LabelConfigError where the project cannot be served.
    """
    queue = Queue(redis_url(settings.redis_url, settings.data_dir))
    try:
        queue.ping()
    except QueueError as error:
        raise SetupError(
            f"'lookalike up' is not running with the data folder {settings.data_dir} ({error}); start it, or name its "
            "folder with --data-dir"
        ) from None
    store = open_store(settings.sqlalchemy_url)
    project = _project(store, project_id, settings)
    read_config(project.label_config)
    store.want("sync", project.uid)
    store.ledger.retry(project.uid)
    queue.kick_due(store.ledger)
    try:
        _watch(store, project)
    except KeyboardInterrupt:
        click.echo("\nnot watching any more; the workers go on: see 'lookalike status'", err=True)
    videos = store.video_status(project.uid)
    for video in videos:
        if video.error:
            click.echo(f"task {video.task}: {video.error}", err=True)
    states = Counter(video.state for video in videos)
    counts = [_counted(len(videos), "video"), *(f"{count} {state}" for state, count in sorted(states.items()))]
    click.echo(f"{', '.join(counts)} → project {project_id} {project.title!r}")
    return states["delivered"]


# --- a connected project ---


def _project(store: Store, project_id: int, settings: Settings) -> Project:
    """The project as the ledger knows it, or else as Label Studio does."""
    known = [project for project in store.projects() if project.label_studio_id == project_id]
    if known:
        return known[-1]  # the newest: Label Studio uses ids again
    if not settings.label_studio_url or not settings.label_studio_token:
        raise SettingsError(
            f"project {project_id} is not connected yet: in Label Studio open its Settings, Model, and connect "
            f"{settings.backend_url}; or set LOOKALIKE_LABEL_STUDIO_URL and LOOKALIKE_LABEL_STUDIO_TOKEN"
        )
    with LabelStudio(settings.label_studio_url, settings.label_studio_token) as studio:
        found = studio.project(project_id)
    uid = wire.project_uid(found["id"], found["created_at"])
    project = Project(uid, project_id, found["title"], found["label_config"])
    store.put_project(project)
    return project


def _watch(store: Store, project: Project) -> None:
    """Show how far the workers are until nothing of the project is left to do."""
    last, since, told = None, time.monotonic(), False
    with tqdm(desc="reading the project", unit="video", disable=None) as bar:
        while True:
            videos = store.video_status(project.uid)
            states = Counter(video.state for video in videos)
            rows = store.ledger.counts(project.uid)
            if not any(state in ("due", "running") for _, state in rows):
                return
            bar.total = len(videos)
            bar.n = states["delivered"] + states["updating"] + states["failed"]
            busy = sorted(state for state in states if state not in ("delivered", "failed"))
            bar.set_description(", ".join(f"{states[state]} {state}" for state in busy) or "reading the project")
            running = any(state == "running" for _, state in rows)
            if rows != last or running:
                last, since = rows, time.monotonic()
            elif time.monotonic() - since > _IDLE_S and not told:
                bar.write("no worker has taken anything for a while; is 'lookalike up' running?", file=sys.stderr)
                told = True
            time.sleep(_LOOK_EVERY_S)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
