"""`lookalike runs`: what propagations did, one by one, and what lies between two of them."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from lookalike.companion import find_project
from lookalike.errors import SetupError
from lookalike.folder import check_there
from lookalike.labels import Change, Run
from lookalike.records import Json, split_keyframe_id
from lookalike.settings import Settings
from lookalike.store import Store, open_store

#: said where no project is served yet
NO_PROJECT = "no project yet: connect one to the ML backend in Label Studio, under Settings, Model"
#: tasks that a line names; --json names all
_TASKS = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """What is proposed after one run and was not after another, whatever came between."""

    before: Run
    after: Run
    changes: tuple[Change, ...]


@click.command()
@click.argument("run", type=int, required=False, metavar="[RUN]")
@click.option("--project", "project_id", type=int, help="Only the runs of this project.")
@click.option("--diff", type=int, nargs=2, metavar="A B", help="What is proposed after run B and was not after run A.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with each keyframe.")
def command(
    run: int | None, project_id: int | None, diff: tuple[int, int] | None, data_dir: Path | None, as_json: bool
) -> None:
    """Show the last runs; or what one RUN changed, or the difference between two, category by category.

    What people labelled is never part of a run. `lookalike undo RUN` withdraws one.
    """
    settings = Settings.from_environment(data_dir=data_dir).or_demo()
    check_there(settings)
    with closing(open_store(settings.sqlalchemy_url)) as store:
        if diff:
            found = difference(store, *diff)
            report = {
                "before": found.before.id,
                "after": found.after.id,
                **describe(store, found.after.project, found.changes),
            }
            lines = [f"from run {found.before.id} to run {found.after.id}:", *_lines(report)]
        elif run is not None:
            one = find_run(store, run)
            report = {**facts(one), **describe(store, one.project, one.changes)}
            lines = [tell(facts(one)), *_lines(report)]
        else:
            projects = store.projects() if project_id is None else [find_project(store, project_id)]
            rows: list[Json] = [
                {
                    "project": project.label_studio_id,
                    "title": project.title,
                    "runs": [facts(one) for one in store.labels.runs(project.uid)],
                }
                for project in projects
            ]
            report = {"projects": rows}
            lines = [] if rows else [NO_PROJECT]
            for row in rows:
                lines.append(f"project {row['project']} {row['title']!r}:" + ("" if row["runs"] else " no run yet"))
                lines += [f"  {tell(one)}" for one in row["runs"]]
    click.echo(json.dumps(report) if as_json else "\n".join(lines))


def difference(store: Store, before: int, after: int) -> Difference:
    """From what run `before` left to what run `after` left, either of which may be the older one.

    A keyframe that people have labelled meanwhile is no change: nothing is proposed for it any more. Raises SetupError
    for a run that there never was, and for runs of two projects.
    """
    first, last = (find_run(store, number) for number in (before, after))
    if first.project != last.project:
        raise SetupError(f"run {before} is of project {first.project}, run {after} of project {last.project}")
    old, new = sorted((first, last), key=lambda run: run.id)
    changed: dict[int, Change] = {}
    for run in store.labels.runs_after(old, new):
        for change in run.changes:
            known = changed.get(change.keyframe, change)
            changed[change.keyframe] = Change(change.keyframe, known.before, change.after, known.score)
    found = [change for _, change in sorted(changed.items()) if change.before != change.after]
    if old is last:
        found = [Change(change.keyframe, change.after, change.before) for change in found]
    return Difference(first, last, tuple(found))


def find_run(store: Store, number: int) -> Run:
    """Raises SetupError for a run that there never was."""
    run = store.labels.run(number)
    if run is None:
        raise SetupError(f"there is no run {number}; 'lookalike runs' shows the last ones")
    return run


def facts(run: Run) -> Json:
    """A run as plain data, without its keyframes."""
    proposed = sum(1 for change in run.changes if change.after)
    return {
        "run": run.id,
        "at": run.at,
        "undoes": run.undoes,
        "labels": run.labels,
        "proposed": proposed,
        "withdrawn": len(run.changes) - proposed,
    }


def tell(run: Json) -> str:
    """The facts of a run in one line."""
    what = f"undid run {run['undoes']}" if run["undoes"] else "propagated"
    proposed = f"{run['proposed']} keyframe{'' if run['proposed'] == 1 else 's'} proposed"
    return f"run {run['run']} {what} {ago(run['at'])}: {proposed}, {run['withdrawn']} withdrawn"


def ago(when: float) -> str:
    """How long ago, for people."""
    seconds = max(0.0, time.time() - when)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


def describe(store: Store, project: str, changes: Sequence[Change]) -> Json:
    """Changes as plain data: `counts` by what was and is proposed, and each keyframe with its task."""
    tasks = {video.id: video.task for video in store.videos(project)}
    counts = Counter((change.before, change.after) for change in changes)
    return {
        "counts": [{"before": b, "after": a, "keyframes": n} for (b, a), n in sorted(counts.items())],
        "keyframes": [
            {
                "keyframe": change.keyframe,
                "task": tasks.get(split_keyframe_id(change.keyframe)[0]),  # None: it was deleted
                "before": change.before,
                "after": change.after,
            }
            for change in changes
        ],
    }


def _lines(report: Json) -> Iterator[str]:
    if not report["counts"]:
        yield "  nothing"
    tasks: dict[tuple[tuple[str, ...], tuple[str, ...]], set[int]] = defaultdict(set)
    for row in report["keyframes"]:
        if row["task"] is not None:
            tasks[row["before"], row["after"]].add(row["task"])
    for row in report["counts"]:
        before, after = (", ".join(row[side]) or "nothing" for side in ("before", "after"))
        found = sorted(tasks[row["before"], row["after"]])
        named = ", ".join(map(str, found[:_TASKS])) + (f" and {len(found) - _TASKS} more" if found[_TASKS:] else "")
        count = row["keyframes"]
        line = f"  {before} -> {after}: {count} keyframe{'s' if count > 1 else ''}"
        yield line + (f", in task{'s' if len(found) > 1 else ''} {named}" if found else "")
