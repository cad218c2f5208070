"""`lookalike status`: what is queued, running, done and failed, and why."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from lookalike.folder import check_there
from lookalike.records import Json
from lookalike.runs import NO_PROJECT, ago, facts, tell
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--retry", is_flag=True, help="Ask again for everything that failed.")
def command(data_dir: Path | None, as_json: bool, retry: bool) -> None:
    """Show where each project's videos are, and the reason of each that failed."""
    settings = Settings.from_environment(data_dir=data_dir)
    check_there(settings)
    with closing(open_store(settings.sqlalchemy_url)) as store:
        if retry:
            rows = store.ledger.retry()
            click.echo(f"asked again for {rows} row{'' if rows == 1 else 's'} of work", err=as_json)
        report = [_of_project(store, project) for project in store.projects()]
    if as_json:
        click.echo(json.dumps({"projects": report}))
        return
    if not report:
        click.echo(NO_PROJECT)
    for row in report:
        states = ", ".join(f"{count} {state}" for state, count in sorted(row["videos"].items())) or "no videos"
        click.echo(f"project {row['project']} {row['title']!r}: {states}")
        for video in row["failed"]:
            click.echo(f"  task {video['task']} failed {ago(video['updated_at'])}: {video['error']}")
        for video in row["waiting"]:
            click.echo(f"  task {video['task']} waits ({video['state']}): {video['error']}")
        for trouble in row["troubles"]:
            click.echo(f"  {trouble['kind']} ({trouble['state']}): {trouble['error']}")
        if row["keyframes_project"]:
            where = (
                "in its own tabs"
                if row["keyframes_project"] == row["project"]
                else f"project {row['keyframes_project']}"
            )
            click.echo(f"  keyframes to label: {where}; {row['labelled']} labelled")
        if row["advice"]:
            click.echo(f"  {row['advice']}")
        for run in row["runs"]:
            click.echo(f"  {tell(run)}")


def _of_project(store: Store, project: Project) -> Json:
    videos = store.video_status(project.uid)
    runs = store.labels.runs(project.uid, limit=3)
    labels = store.labels.labels(project.uid)
    companion = store.labels.companion(project.uid)
    return {
        "project": project.label_studio_id,
        "title": project.title,
        "videos": dict(Counter(video.state for video in videos)),
        "failed": [asdict(video) for video in videos if video.state == "failed"],
        "waiting": [asdict(video) for video in videos if video.error and video.state != "failed"],
        "troubles": [asdict(row) for row in store.ledger.troubles(project.uid)],
        "keyframes_project": companion.label_studio_id if companion and companion.uid else None,
        "labelled": len({row.keyframe for row in labels}),
        "advice": runs[0].advice if runs else "",
        "runs": [facts(run) for run in runs],
    }
