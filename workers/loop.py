"""The loop's middle: what people have said, what follows from it, and what of it is to be shown, out of the ledger.

    know                     what people agree on, over the clusters that there are
    guess, advise            what follows from it, and what to label next
    name                     what is to be shown of each keyframe

`workers.readings` brings people's words in from Label Studio, `workers.display` brings the guesses out to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.grouping import unit
from lookalike.labels import Proposal
from lookalike.records import Clustering, Embeddings, Label, LabelConfig
from lookalike.said import Said, categories_of, representatives, settle
from lookalike.settings import Settings
from lookalike.store import Project, Store
from workers import companion, planner, timeline
from workers.propagation import Graph, Outcome, Propagation, add, build_graph, propagate

#: a guess below this is no guess: the task stays open and out of tab 3
_UNSURE = 0.5
#: keyframes up to which the planner takes a second at most
_QUICKLY_ADVISED = 15_000
_AT_REST_S = 30.0


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a project's keyframes, put together from the ledger."""

    grouped: Clustering
    standing_for: dict[int, int]  # keyframe -> representative
    agreed: dict[int, Said]
    disputed: set[int]
    answered: set[int]  # of which people have said anything, if only by a category that is gone


def know(store: Store, project: Project, config: LabelConfig, model: str) -> Knowledge | None:
    """What the ledger knows; None before the first clustering."""
    found = store.clustering(project.uid, model)
    if found is None:
        return None
    grouped, rows = found[0], store.labels.labels(project.uid)
    # of junk only what people have labelled: it is neither propagated in nor offered
    use = ~np.isin(grouped.clusters, list(grouped.junk)) | np.isin(grouped.keyframe_ids, [row.keyframe for row in rows])
    tasks, where = store.labels.keyframe_tasks(project.uid), store.labels.companion(project.uid)
    leaders = {k: task.leader for k, task in tasks.items()}
    standing_for = representatives(grouped.keyframe_ids[use].tolist(), leaders)
    agreed, disputed = settle(rows, standing_for, categories_of(config), multiple=config.multiple)
    annotated = store.labels.readings(project.uid, "video" if where and where.own else "companion")
    answered = agreed.keys() | disputed
    answered |= {standing_for[k] for k, task in tasks.items() if task.task in annotated and k in standing_for}
    return Knowledge(grouped, standing_for, agreed, disputed, answered)


def fold(store: Store, project: str, model: str, *, apart: bool = False) -> None:
    """Find out which new keyframes are near-duplicates of which; `apart`: none of any, each has a task of its own."""
    ids, fingerprints = store.labels.fingerprints(project)
    known = {keyframe: task.leader for keyframe, task in store.labels.keyframe_tasks(project).items()}
    new = [keyframe for keyframe in ids.tolist() if keyframe not in known]
    if not new:
        return
    if apart:
        return store.labels.fold(project, {keyframe: keyframe for keyframe in new})
    embeddings = store.load_embeddings(project, model)
    have = np.isin(ids, embeddings.keyframe_ids)
    rows = np.searchsorted(embeddings.keyframe_ids, ids[have])
    vectors = embeddings.vectors[rows] if have.any() else np.zeros((0, 1), np.float32)
    store.labels.fold(project, companion.fold(ids[have], fingerprints[have], unit(vectors), known))


# --- guesses ---


def extend_graph(store: Store, project: str, model: str, graph: Graph | None, knowledge: Knowledge) -> Graph:
    """The graph of all representatives; the one there was, where nothing has changed: reading vectors takes longer."""
    wanted = np.asarray(sorted(set(knowledge.standing_for.values())), np.int64)
    if graph is not None and graph.model == model and np.array_equal(np.sort(graph.keyframe_ids), wanted):
        return graph
    embeddings = store.load_embeddings(project, model)
    chosen = np.isin(embeddings.keyframe_ids, wanted)
    own = Embeddings(embeddings.keyframe_ids[chosen], embeddings.vectors[chosen], embeddings.model)
    return build_graph(own) if graph is None or graph.model != model else add(graph, own)


def guess(
    store: Store, settings: Settings, project: str, config: LabelConfig, knowledge: Knowledge, graph: Graph
) -> tuple[list[Proposal], Propagation, list[Label]]:
    """What we think of every keyframe that people have not labelled."""
    categories = categories_of(config)
    labels = [
        Label(keyframe, category, said.annotation)
        for keyframe, said in sorted(knowledge.agreed.items(), key=lambda item: item[1].at)
        for category in said.categories
    ]
    outcomes = [
        Outcome(o.keyframe, o.category, o.score, o.confirmed)
        for o in store.labels.outcomes(project)
        if o.category in categories
    ]
    found = propagate(
        None, labels, categories, multiple=config.multiple, promise=settings.promise, graph=graph, outcomes=outcomes
    )
    said = knowledge.answered
    withdrawn = store.labels.withdrawn(project)
    proposals = [
        Proposal(k, "", 0.0, (), "conflict") for k in sorted(knowledge.disputed | (set(found.conflict) - said))
    ]
    taken = {p.keyframe for p in proposals} | said
    alive = set(knowledge.standing_for.values())
    for keyframe, category in store.edits.vouched(project).items():
        if keyframe in alive - taken and category in categories and (keyframe, category) not in withdrawn:
            proposals.append(Proposal(keyframe, category, settings.promise, (), "proposed"))
    taken |= {p.keyframe for p in proposals}
    given = {label.category for label in labels}
    restored = {
        p.keyframe: p for p in store.labels.brought_back(project) if p.keyframe in alive and p.category in given
    }
    for p in found.proposed:
        if p.keyframe_id in taken:
            continue
        if (p.keyframe_id, p.category) not in withdrawn:
            proposals.append(Proposal(p.keyframe_id, p.category, round(p.score, 3), p.nearest, "proposed"))
        elif p.keyframe_id not in restored:
            proposals.append(Proposal(p.keyframe_id, p.category, round(p.score, 3), p.nearest, "unsure"))
    taken |= {p.keyframe for p in proposals}
    # an undoing holds until a person answers, or we come to propose something else
    proposals += [p for keyframe, p in sorted(restored.items()) if keyframe not in taken]
    taken |= restored.keys()
    for g in found.open:
        if g.keyframe_id not in taken and g.score >= _UNSURE:
            proposals.append(Proposal(g.keyframe_id, g.category, round(g.score, 3), (), "unsure"))
    return proposals, found, labels


def name(
    store: Store, project: str, config: LabelConfig, knowledge: Knowledge
) -> dict[int, tuple[timeline.Named, ...]]:
    """What timelines are to show of each keyframe, from the ledger."""
    return companion.name(
        knowledge.agreed,
        store.labels.proposals(project, "proposed"),
        knowledge.standing_for,
        knowledge.grouped,
        categories_of(config),
    )


def is_time_to_advise(store: Store, project: str, graph: Graph) -> bool:
    """Whether the last run has no advice yet; in the largest projects only once nobody labels."""
    runs = store.labels.runs(project, limit=1)
    if not runs or runs[0].advice:
        return False
    last = max((row.at for row in store.labels.labels(project)), default=0.0)
    return len(graph.keyframe_ids) <= _QUICKLY_ADVISED or time.time() - last > _AT_REST_S


def advise(graph: Graph, labels: Sequence[Label], config: LabelConfig, propagation: Propagation) -> str:
    """The planner's sentence."""
    categories = categories_of(config)
    return planner.stop_advice(graph, labels, categories, propagation, multiple=config.multiple).text
