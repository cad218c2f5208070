"""What would it have saved? An annotator replayed on data whose labels are known.

    results = evaluate(embeddings, categories, budgets=[20, 40], seeds=5)

Three ways to spend the same number of labels: ours (the planner chooses, labels spread over the graph), the seed
article's (StandardScaler, KMeans, the centroid's label for its whole cluster), and random choice with the nearest
labelled neighbour.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from lookalike import wire
from lookalike.companion import find_project
from lookalike.errors import RequestError
from lookalike.folder import check_there
from lookalike.grouping import unit
from lookalike.records import Embeddings, Label
from lookalike.said import categories_of, representatives, settle
from lookalike.settings import Settings
from lookalike.store import Store, open_store
from lookalike.vectors import VectorFile
from workers.clustering import article_cluster
from workers.planner import next_to_label
from workers.propagation import Propagation, build_graph, propagate
from workers.retrieval import retrieve
from workers.retrieval import table as table_of_retrieval

Texts = NDArray[np.str_]

#: labelled keyframes of a project below which the replay says nothing
_ENOUGH = 20
#: shares of a project's labelled keyframes that the replayed annotator labels
_SHARES = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Result:
    """One method at one budget; means over the seeds."""

    budget: int
    method: str  # lookalike, article, random
    accuracy: float  # share of all keyframes that end with the right category, the labelled ones included
    coverage: float  # share of the keyframes nobody labelled that get a proposal at the promise
    precision: float | None  # share of right ones among these proposals; None if there are none
    ece: float | None  # expected calibration error of the scores of all unlabelled keyframes, 15 bins; None: no scores
    classes_seen: float  # categories that came before the annotator
    actions: float  # human actions until every keyframe is right, see `actions_to_finish`
    labels: float  # keyframes labelled one by one


def evaluate(
    embeddings: Embeddings,
    truth: Sequence[str],
    budgets: Sequence[int],
    *,
    seeds: int = 5,
    promise: float = 0.95,
) -> list[Result]:
    """Replay an annotator who always says `truth` (n,), for each budget and method.

    A seed shuffles the keyframes, so that no luck of order counts; it also seeds KMeans and the random choice.
    The truth is used for nothing but answering and scoring. Raises RequestError for a budget outside 1..n.
    """
    names = np.asarray(truth)
    n = len(embeddings.keyframe_ids)
    if names.shape != (n,):
        raise RequestError(f"there must be one category for each of the {n} embeddings, got {len(names)}")
    if seeds < 1:
        raise RequestError(f"seeds must be at least 1, got {seeds}")
    for budget in budgets:
        if not 1 <= budget <= n:
            raise RequestError(f"budget must be between 1 and the number of keyframes, {n}, got {budget}")
    runs: dict[tuple[int, str], list[Result]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(n)
        shuffled = Embeddings(embeddings.keyframe_ids[order], embeddings.vectors[order], embeddings.model)
        for budget in budgets:
            for result in (
                _lookalike(shuffled, names[order], budget, promise),
                _article(shuffled, names[order], budget, seed),
                _random(shuffled, names[order], budget, seed),
            ):
                runs.setdefault((result.budget, result.method), []).append(result)
    return [_mean(results) for results in runs.values()]


def actions_to_finish(labels: int, proposed: Texts, wrong: int, left_open: int) -> int:
    """What a person clicks until every keyframe has its right category; without a tool it is one action per keyframe.

    One for each label; one for each category among the `proposed`, whose list is confirmed as a whole (tab 2 in Label
    Studio: select all, create annotations); one to correct each `wrong` one among them; and one for each keyframe left
    open: nothing is shown there to confirm, right as the guess may be, it is opened and its category chosen.

    The same for all methods. One that proposes everything leaves nothing open, and its wrong ones must be found among
    the right ones: looking at a list is no action here, whether 1 or 40 in 100 are wrong.
    """
    return labels + len(np.unique(proposed)) + wrong + left_open


def _lookalike(embeddings: Embeddings, truth: Texts, budget: int, promise: float) -> Result:
    graph = build_graph(embeddings)
    categories = sorted(set(truth.tolist()))
    known = dict(zip(embeddings.keyframe_ids.tolist(), truth.tolist(), strict=True))
    labels: list[Label] = []
    run: Propagation | None = None
    step = max(1, budget // 40)  # the annotator's list is made anew after every few labels
    while len(labels) < budget:
        for identifier in next_to_label(graph, run, min(step, budget - len(labels))):
            labels.append(Label(identifier, known[identifier], len(labels)))
        run = propagate(None, labels, categories, promise=promise, graph=graph)
    assert run is not None
    said = {label.keyframe_id: label.category for label in labels}
    guessed = {p.keyframe_id: (p.category, p.score) for p in run.proposed}
    rest = {g.keyframe_id: (g.category, g.score) for g in run.open}
    right = np.array([known[i] == category for i, (category, _) in guessed.items()], bool)
    everything = list((guessed | rest).items())
    hits = np.array([known[i] == category for i, (category, _) in everything], bool)
    scores = np.array([score for _, (_, score) in everything])
    n = len(truth)
    return Result(
        budget=budget,
        method="lookalike",
        accuracy=(len(said) + int(hits.sum())) / n,
        coverage=len(guessed) / max(1, n - len(said)),
        precision=float(right.mean()) if len(right) else None,
        ece=calibration_error(scores, hits),
        classes_seen=len(set(said.values())),
        actions=actions_to_finish(
            len(said), np.array([category for category, _ in guessed.values()]), int((~right).sum()), len(rest)
        ),
        labels=len(said),
    )


def _article(embeddings: Embeddings, truth: Texts, budget: int, seed: int) -> Result:
    clustering = article_cluster(embeddings, budget, seed)
    row = {identifier: i for i, identifier in enumerate(embeddings.keyframe_ids.tolist())}
    chosen = np.array([row[identifier] for identifier in clustering.centroids.tolist()])
    return _everything("article", budget, truth, chosen, truth[chosen][clustering.clusters])


def _random(embeddings: Embeddings, truth: Texts, budget: int, seed: int) -> Result:
    chosen = np.random.default_rng(seed).permutation(len(truth))[:budget]
    directions = unit(embeddings.vectors)
    nearest = (directions @ directions[chosen].T).argmax(axis=1)
    return _everything("random", budget, truth, chosen, truth[chosen][nearest])


def _everything(method: str, budget: int, truth: Texts, chosen: NDArray[np.int64], guess: Texts) -> Result:
    """A method that proposes something for every keyframe and has no scores."""
    rest = np.ones(len(truth), bool)
    rest[chosen] = False
    right = (guess == truth)[rest]
    return Result(
        budget=budget,
        method=method,
        accuracy=(len(chosen) + int(right.sum())) / len(truth),
        coverage=1.0,
        precision=float(right.mean()) if len(right) else None,
        ece=None,
        classes_seen=len(set(truth[chosen].tolist())),
        actions=actions_to_finish(len(chosen), guess[rest], int((~right).sum()), 0),
        labels=len(chosen),
    )


def calibration_error(scores: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017): mean distance of score and share right, over equally wide bins."""
    if not len(scores):
        return 0.0
    which = np.minimum((scores * bins).astype(int), bins - 1)
    return sum(abs(float(scores[which == b].sum() - right[which == b].sum())) for b in range(bins)) / len(scores)


def _mean(results: Sequence[Result]) -> Result:
    means: dict[str, Any] = {}
    for name in (field.name for field in fields(Result) if field.name not in ("budget", "method")):
        values = [value for result in results if (value := getattr(result, name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    return Result(budget=results[0].budget, method=results[0].method, **means)


def read_labelled(path: Path) -> tuple[Embeddings, list[str]]:
    """Embeddings and categories of a file as `lookalike.vectors` reads it, in which each row has a label.

    Raises RequestError with what is missing.
    """
    file = VectorFile.read(path)
    if not file.labels:
        raise RequestError(f"{path} must hold the category of each vector, as label or y")
    return Embeddings(np.arange(len(file.vectors)), file.vectors, path.stem), list(file.labels)


def read_project(store: Store, project_id: int, model: str) -> tuple[Embeddings, list[str]]:
    """Embeddings by `model` and categories of a project's keyframes that people gave one category, and agree on it.

    Near-duplicates count once, as they are labelled once. Raises SetupError for a project that we do not serve, and
    RequestError where too little is labelled, with what to do.
    """
    project = find_project(store, project_id)
    config = wire.parse_label_config(project.label_config)
    model = store.serving(project.uid, model)
    embeddings = store.load_embeddings(project.uid, model)
    leaders = {keyframe: task.leader for keyframe, task in store.labels.keyframe_tasks(project.uid).items()}
    standing_for = representatives(embeddings.keyframe_ids.tolist(), leaders)
    rows = store.labels.labels(project.uid)
    if rows and not standing_for:
        raise RequestError(f"project {project_id} has no embeddings by {model}; LOOKALIKE_EMBEDDER must name its own")
    agreed, _ = settle(rows, standing_for, categories_of(config), multiple=config.multiple)
    truth = {keyframe: said.categories[0] for keyframe, said in agreed.items() if len(said.categories) == 1}
    if len(truth) < _ENOUGH:
        raise RequestError(f"label at least {_ENOUGH} keyframes first; project {project_id} has {len(truth)}")
    names = sorted(set(truth.values()))
    if len(names) < 2:
        raise RequestError(f"label a second category first; all {len(truth)} of project {project_id} are {names[0]}")
    chosen = np.isin(embeddings.keyframe_ids, list(truth))
    labelled = Embeddings(embeddings.keyframe_ids[chosen], embeddings.vectors[chosen], model)
    return labelled, [truth[identifier] for identifier in labelled.keyframe_ids.tolist()]


def labels_needed(results: Sequence[Result], n: int, promise: float) -> tuple[Result, int] | None:
    """The cheapest budget that kept the promise, and the labels people give one by one with it: the budget's, and those
    that nothing was proposed for. None if no budget kept it."""
    kept = [
        (result, round(result.labels + (n - result.labels) * (1 - result.coverage)))
        for result in results
        if result.method == "lookalike" and result.precision is not None and result.precision >= promise
    ]
    return min(kept, key=lambda found: found[1], default=None)


def summary(results: Sequence[Result], n: int, promise: float) -> str:
    """One sentence for people on `labels_needed`."""
    found = labels_needed(results, n, promise)
    if found is None:
        return f"no budget kept the promise of {promise:.0%}: people would have had to give all {n} labels"
    result, needed = found
    return (
        f"people would have had to give {needed} of the {n} labels one by one: {result.budget} first, and "
        f"{needed - result.budget} that nothing was proposed for; the other {n - needed} were proposed, "
        f"{result.precision:.1%} of them right (asked: {promise:.0%})"
    )


def table(results: Sequence[Result], n: int) -> str:
    """The results for people."""
    lines = [
        f"{'budget':>6}  {'method':<9}  {'accuracy':>8}  {'coverage':>8}  {'precision':>9}  {'ece':>5}  "
        f"{'seen':>5}  {'actions':>7}  of {n}"
    ]
    for r in results:
        precision = "-" if r.precision is None else f"{r.precision:.3f}"
        ece = "-" if r.ece is None else f"{r.ece:.3f}"
        lines.append(
            f"{r.budget:>6}  {r.method:<9}  {r.accuracy:>8.3f}  {r.coverage:>8.3f}  {precision:>9}  {ece:>5}  "
            f"{r.classes_seen:>5.1f}  {r.actions:>7.0f}"
        )
    return "\n".join(lines)


@click.command("evaluate")
@click.argument(
    "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[VECTORS]", required=False
)
@click.option("--project", "project_id", type=int, help="Replay the labels that people gave in this project instead.")
@click.option("--budget", "budgets", type=click.IntRange(1), multiple=True, help="Labels to spend; may be repeated.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Repetitions that are averaged.")
@click.option("--promise", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True, help="Precision asked.")
@click.option("--retrieval", is_flag=True, help="Measure instead how well each category is found by examples.")
@click.option("--examples", type=click.IntRange(1), default=10, show_default=True, help="With --retrieval: of each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="With --project: that of 'up'.")
def command(
    path: Path | None,
    project_id: int | None,
    budgets: tuple[int, ...],
    seeds: int,
    promise: float,
    retrieval: bool,
    examples: int,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Replay an annotator on data whose labels are known, and say what Lookalike saves.

    VECTORS is an .npz that holds X (n, d), y (n,) and, if y are numbers, classes; or a Parquet file with the columns
    vector and label. Without --budget: 1, 2 and 5 labels per category.

    With --project: what would it have saved us? The data are the keyframes that people have labelled in Label Studio,
    those left out on which they disagree. Without --budget: 5, 10, 20 and 40 % of them. Where most were confirmed in
    bulk, they are the easier part of the project, and the rest saves less.
    """
    if (path is None) == (project_id is None):
        raise click.UsageError("give either VECTORS or --project")
    if path is not None:
        data, truth = read_labelled(path)
        count = len(set(truth))
        usual = {min(len(truth), k * count) for k in (1, 2, 5)}
    else:
        assert project_id is not None
        settings = Settings.from_environment(data_dir=data_dir)
        check_there(settings)
        data, truth = read_project(open_store(settings.sqlalchemy_url), project_id, settings.embedder)
        count = len(set(truth))
        usual = {max(2, round(share * len(truth))) for share in _SHARES}
    if retrieval:
        found = retrieve(data, truth, examples, seeds)
        return click.echo(json.dumps(asdict(found)) if as_json else table_of_retrieval(found))
    results = evaluate(data, truth, budgets or sorted(usual), seeds=seeds, promise=promise)
    if as_json:
        about = {"keyframes": len(truth), "categories": count, "seeds": seeds, "promise": promise}
        click.echo(json.dumps(about | {"results": [asdict(result) for result in results]}))
        return
    click.echo(table(results, len(truth)))
    if project_id is not None:
        click.echo(f"\nproject {project_id}: {summary(results, len(truth), promise)}")
