"""`lookalike undo`: withdraw exactly what one propagation did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from lookalike.folder import check_there
from lookalike.labels import Proposal, Run
from lookalike.runs import find_run
from lookalike.settings import Settings
from lookalike.store import Store, open_store


@dataclass(frozen=True, slots=True)
class Undone:
    """What undoing a run did."""

    run: Run | None  # the run that it is itself, which may be undone, too; None if nothing was left to undo
    withdrawn: Counter[str]  # keyframes by category that are not proposed any more
    restored: Counter[str]  # … that are proposed again
    left: int  # keyframes that people have labelled or a later run has changed since: left alone


@click.command()
@click.argument("run_id", type=int, metavar="RUN")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
def command(run_id: int, data_dir: Path | None) -> None:
    """Withdraw the propagated labels of a run, and say what that did. Labels of people stay. Undoing may be undone."""
    settings = Settings.from_environment(data_dir=data_dir)
    check_there(settings)
    store = open_store(settings.sqlalchemy_url)
    undone = undo(store, run_id)
    for verb, counts in (("withdrawn", undone.withdrawn), ("proposed again", undone.restored)):
        for category, count in sorted(counts.items()):
            click.echo(f"{verb}: {category} on {count} keyframe{'s' if count > 1 else ''}")
    if undone.left:
        click.echo(f"left alone: {undone.left} that people have labelled, or a later run has changed, since")
    if undone.run is None:
        click.echo(f"nothing of run {run_id} is left to undo")
    else:
        click.echo(f"this is run {undone.run.id}; 'lookalike undo {undone.run.id}' takes it back")


def undo(store: Store, run_id: int) -> Undone:
    """Withdraw what a run proposed, propose again what it had replaced; what was changed since is left alone.

    What is withdrawn is not proposed again by later runs, until the undoing is undone. Raises SetupError for a run that
    there never was.
    """
    run = find_run(store, run_id)
    withdrawn: Counter[str] = Counter()
    restored: Counter[str] = Counter()
    never: set[tuple[int, str]] = set()
    again: set[tuple[int, str]] = set()
    left = 0
    with store.labels.begin(run.project) as connection:  # no propagation between what is read and what is written
        now: dict[int, list[Proposal]] = {}
        for proposal in store.labels.proposals(run.project):
            now.setdefault(proposal.keyframe, []).append(proposal)
        said = {row.keyframe: (row.category,) for row in store.labels.labels(run.project)}
        standing = _standing(run, store.labels.runs_after(run))
        for change in run.changes:
            current = [p for p in now.get(change.keyframe, []) if p.state == "proposed"]
            same = tuple(sorted(p.category for p in current)) == change.after
            # a later run may have withdrawn it and made it again: that one is to be undone then
            if change.keyframe in said or not same or standing[change.keyframe] != run_id:
                left += 1
                continue
            now[change.keyframe] = [Proposal(change.keyframe, c, change.score, (), "proposed") for c in change.before]
            never |= {(change.keyframe, category) for category in change.after}
            again |= {(change.keyframe, category) for category in change.before}
            withdrawn.update(set(change.after) - set(change.before))
            restored.update(set(change.before) - set(change.after))
        store.labels.withdraw(connection, run.project, never - again)
        store.labels.allow(connection, again)
        proposals = [proposal for found in now.values() for proposal in found]
        made = store.labels.put_run(connection, run.project, proposals, said, undoes=run_id)
        store.ledger.want(connection, "propagate", [(run.project, run.project)])
    return Undone(made, withdrawn, restored, left)


def _standing(run: Run, later: Sequence[Run]) -> dict[int, int]:
    """By keyframe of a run, the last run whose change stands; 0 where none does.

    An undoing takes away what another run changed, an undoing of that gives it back, and so on, so that undoing all
    runs, the newest first, leaves nothing proposed. `later`: the oldest first.
    """
    stands = {change.keyframe: {run.id} for change in run.changes}
    about: dict[int, int] = {}  # by undoing, the run that it takes away or gives back
    for one in later:
        about[one.id] = one.id if one.undoes is None else about.get(one.undoes, one.undoes)
        for keyframe in stands.keys() & {change.keyframe for change in one.changes}:
            stands[keyframe] ^= {about[one.id]}
    return {keyframe: max(there, default=0) for keyframe, there in stands.items()}
