"""`lookalike bench`: speed, everything in one run, as ratios.

CPU seconds of this process (user and system, all threads), not wall time: machines are shared and noisy. What is
compared is measured in turns, several times, and the median of the ratios is shown.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from PIL import Image

from lookalike import wire
from lookalike.errors import SetupError
from lookalike.label_config import shipped_config
from lookalike.ledger import Claim
from lookalike.records import Clustering, Extraction, Json
from lookalike.settings import Settings, share_cores
from lookalike.store import Project, Store, open_store
from workers import clustering, demo, inputs, jobs, keyframes, scale, searching, speed

if TYPE_CHECKING:
    from workers.embedders import Embedder

T = TypeVar("T")

_PICTURES = 64  # of embedding against eager
_CUT_SHOTS = 60

#: ratio: (what it says, what is asked for)
RATIOS = {
    "keyframes_exact_to_decode": (
        "CPU of exact keyframes, pictures written, over CPU of pure decoding",
        "at most 1.25",
    ),
    "keyframes_fast_to_decode": ("times faster than pure decoding", "at least 10"),
    "embed_to_eager": ("times faster than torch eager, picture by picture", "at least 2.5"),
    "job_exact_to_article": ("times faster than the article's recipe, exact mode", "at least 2.3"),
    "job_fast_to_article": ("times faster than the article's recipe, fast mode", "at least 8"),
}


@click.command()
@click.option("--clips", type=click.Path(path_type=Path), help="Folder of videos.  [default: two sample clips]")
@click.option(
    "--repeat", default=3, type=click.IntRange(1), show_default=True, help="Rounds; the median of the ratios is shown."
)
@click.option(
    "--clusters",
    default=20,
    type=click.IntRange(1),
    show_default=True,
    help="Clusters, here and in the article's recipe.",
)
@click.option(
    "--scale", "sizes", type=click.IntRange(100), multiple=True, help="Instead: a project of so many keyframes; repeat."
)
@click.option(
    "--search", "searched", type=click.IntRange(1000), multiple=True, help="Instead: searches among so many; repeat."
)
@click.option("--embedder", "embedders", multiple=True, help="Instead: the speed of this embedder; repeat.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    clips: Path | None,
    repeat: int,
    clusters: int,
    sizes: tuple[int, ...],
    searched: tuple[int, ...],
    embedders: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure decoding, keyframes, embedding, clustering, writing and the whole job against their limits.

    With --scale, 14000 and 100000 say: what one more label and 1 % more keyframes cost there, in vectors made up.

    With --search, 14000 and 200000 say: what a search for similar keyframes takes, over HTTP and beside an exact scan.

    With --embedder: CPU time per picture against plain transformers, by each way of inference that is installed.

    Needs the source tree, without --scale, --search and --embedder: the article's recipe and the clips with known cuts
    are in benchmarks/.
    """
    share_cores()
    if sizes:
        grown = scale.measure(sizes)
        click.echo(json.dumps({"scale": grown}) if as_json else scale.table(grown))
        return
    if searched:
        quick = searching.measure(searched)
        click.echo(json.dumps({"search": [asdict(s) for s in quick]}) if as_json else searching.table(quick))
        return
    settings = Settings.from_environment()
    if embedders:
        speeds = speed.measure(embedders, settings, settings.data_dir / "models", repeat)
        click.echo(json.dumps({"speeds": [asdict(s) for s in speeds]}) if as_json else speed.table(speeds), nl=as_json)
        return
    found = demo.find_clips(clips) if clips else demo.sample_clips(settings.data_dir.resolve() / "clips")
    readable = [clip for clip in found if _readable(clip)]
    if not readable:
        raise SetupError(f"none of the {len(found)} clips can be read; 'lookalike prelabel' tells why")
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        report = measure(readable, settings, Path(folder), repeat, clusters)
    report["clips_left_out"] = [clip.name for clip in found if clip not in readable]
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(_table(report))


def measure(clips: Sequence[Path], settings: Settings, folder: Path, repeat: int, clusters: int) -> Json:
    """All figures of one run; `hard_cut_recall_fast` is None, with a reason, where the clips have nothing to splice.

    Raises SetupError where the source tree's `benchmarks/` is missing, for another embedder than efficientnet-lite0,
    whose folder the article's recipe takes too, and for clips without any keyframe.
    """
    if settings.embedder != "efficientnet-lite0":
        raise SetupError(f"bench measures efficientnet-lite0, got {settings.embedder!r}; unset LOOKALIKE_EMBEDDER")
    article, cuts = _benchmark("article"), _benchmark("cuts")
    settings = settings.with_(data_dir=folder, clusters=clusters, device="cpu")
    embedder = _embedder(settings)
    model = next((folder / "models").iterdir())
    eager = article.load(model)
    rounds: list[dict[str, float]] = []
    counts: Json = {}
    pictures: list[Any] = []
    for number in range(repeat + 1):  # the first warms caches and libraries up, and does not count
        cpu: dict[str, float] = {}
        cpu["decode"], frames = scale.timed(lambda: sum(keyframes.decode_only(clip) for clip in clips))
        for mode in ("exact", "fast"):
            out = folder / f"{mode}{number}"
            cpu[f"keyframes_{mode}"], found = scale.timed(partial(_extract, clips, out, settings, mode))
            counts[f"keyframes_{mode}"] = sum(len(extraction.keyframes) for extraction in found)
        if not pictures:
            files = sorted((folder / f"exact{number}").rglob("*.jpg"))
            if not files:
                raise SetupError("the clips have no keyframe to measure with: they are black or blank; name others")
            pictures = [inputs.read_picture(files[i % len(files)]) for i in range(_PICTURES)]
        cpu["embed"], _ = scale.timed(partial(embedder.embed, pictures))
        cpu["embed_eager"], _ = scale.timed(partial(article.embed, [Image.fromarray(p) for p in pictures], *eager))
        for mode in ("exact", "fast"):
            cpu |= _job(embedder, clips, settings.with_(keyframe_mode=mode), folder / f"job-{mode}{number}")
        recipe = article.run(list(clips), model, clusters)
        cpu |= {f"article_{step}": spent["cpu"] for step, spent in recipe["seconds"].items() if step != "load"}
        counts |= {"frames": frames, "keyframes_article": recipe["keyframes"]}
        if number:
            rounds.append(cpu)

    def median(ratio: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(ratio(cpu) for cpu in rounds), 3)

    return {
        "ratios": {
            "keyframes_exact_to_decode": median(lambda cpu: cpu["keyframes_exact"] / cpu["decode"]),
            "keyframes_fast_to_decode": median(lambda cpu: cpu["decode"] / cpu["keyframes_fast"]),
            "embed_to_eager": median(lambda cpu: cpu["embed_eager"] / cpu["embed"]),
            "job_exact_to_article": median(lambda cpu: cpu["article_all"] / cpu["job_exact"]),
            "job_fast_to_article": median(lambda cpu: cpu["article_all"] / cpu["job_fast"]),
        },
        **_hard_cut_recall(cuts, clips, settings, folder),
        "peak_rss_mb": round(_peak_rss_mb(max(clips, key=lambda clip: clip.stat().st_size), settings)),
        "kept_share": round(counts["keyframes_exact"] / counts["frames"], 4),
        "cpu_s": {name: median(itemgetter(name)) for name in rounds[0]},
        **counts,
        "clips": len(clips),
        "rounds": len(rounds),
    }


def _hard_cut_recall(cuts: ModuleType, clips: Sequence[Path], settings: Settings, folder: Path) -> Json:
    spliced = folder / "spliced.mp4"
    try:
        true = cuts.splice(clips, spliced, _CUT_SHOTS)
    except ValueError as error:
        return {"hard_cut_recall_fast": None, "hard_cut_recall_fast_reason": str(error)}
    fast = keyframes.extract(
        spliced, 1, folder / "spliced", replace(keyframes.KeyframeOptions.of(settings), mode="fast")
    )
    return {"hard_cut_recall_fast": round(cuts.recall(fast.cuts, true), 4)}


def _extract(clips: Sequence[Path], out: Path, settings: Settings, mode: str) -> list[Extraction]:
    options = keyframes.KeyframeOptions.of(settings.with_(keyframe_mode=mode))
    return [keyframes.extract(clip, n + 1, out / str(n), options) for n, clip in enumerate(clips)]


def _job(embedder: Embedder, clips: Sequence[Path], settings: Settings, folder: Path) -> dict[str, float]:
    """The whole job on all clips, as the workers do it, into a ledger of its own; CPU seconds by step."""
    name = f"job_{settings.keyframe_mode}"
    steps = dict.fromkeys((f"{name}_{step}" for step in ("keyframes", "embed", "cluster", "write")), 0.0)

    def timed(step: str, work: Callable[[], T]) -> T:
        seconds, result = scale.timed(work)
        steps[f"{name}_{step}"] += seconds
        return result

    store = open_store(f"sqlite:///{folder / 'ledger.sqlite3'}")
    project = Project("1.1", 1, "bench", shipped_config("video_timeline"))
    store.put_project(project)
    store.add_videos(project.uid, [(n + 1, str(clip), {}) for n, clip in enumerate(clips)])
    for row in store.ledger.due(("video",), len(clips)):
        claim = _claim(store, row.id)
        clip, video = clips[int(claim.subject) - 1], int(claim.subject)
        out = folder / str(video)
        options = keyframes.KeyframeOptions.of(settings)
        extraction = timed("keyframes", partial(keyframes.extract, clip, video, out, options))
        embeddings = timed("embed", partial(inputs.embed_pictures, embedder, extraction.keyframes, out))
        timed("write", partial(store.put_extraction, claim, extraction, embeddings))
    claim = _claim(store, store.ledger.due(("cluster",), 1)[0].id)
    config, version = wire.parse_label_config(project.label_config), wire.model_version(embedder.name)

    def cluster() -> Clustering:
        embeddings = store.load_embeddings(project.uid, embedder.name)
        return clustering.cluster(embeddings, min(settings.clusters, len(embeddings.keyframe_ids)), settings.seed)

    grouped = timed("cluster", cluster)

    def write() -> None:
        bodies = jobs.compose(store, config, store.videos(project.uid), grouped, version, {})
        store.put_clustering(claim, embedder.name, grouped, len(grouped.keyframe_ids), bodies)

    timed("write", write)
    store.close()
    return {**steps, name: sum(steps.values())}


def _claim(store: Store, row: int) -> Claim:
    claim = store.ledger.claim(row, "bench", lease_s=3600, max_crashes=3)
    assert claim is not None
    return claim


def _peak_rss_mb(clip: Path, settings: Settings) -> float:
    """The largest memory that a process which does nothing but one whole job ever held, decoding included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_one_job, (clip, settings))


def _one_job(clip: Path, settings: Settings) -> float:
    _job(_embedder(settings), [clip], settings, settings.data_dir / "peak")
    return scale.peak_mb()


def _embedder(settings: Settings) -> Embedder:
    from workers.embedders import open_embedder  # not before share_cores

    return open_embedder(
        settings.embedder,
        device=settings.device,
        inference=settings.inference,
        cache_dir=settings.data_dir / "models",
    )


def _readable(clip: Path) -> bool:
    try:
        keyframes.probe(clip)
    except Exception:  # a benchmark measures what can be read; prelabel tells what cannot
        return False
    return True


def _benchmark(name: str) -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    if not path.exists():
        raise SetupError(f"{path} is missing; 'lookalike bench' runs in a clone of the source tree")
    spec = importlib.util.spec_from_file_location(f"benchmarks.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(report: Json) -> str:
    lines = [
        f"{report['clips']} clips, {report['frames']} frames, "
        f"{report['keyframes_exact']} keyframes (fast {report['keyframes_fast']}, article "
        f"{report['keyframes_article']}), median of {report['rounds']} rounds",
        "",
    ]
    lines += [
        f"{report['ratios'][name]:8.2f}  {name}: {what} (asked: {asked})" for name, (what, asked) in RATIOS.items()
    ]
    recall = report["hard_cut_recall_fast"]
    lines += [
        f"     ---  hard_cut_recall_fast: not measured: {report['hard_cut_recall_fast_reason']}"
        if recall is None
        else f"{recall:8.3f}  hard_cut_recall_fast: share of hard cuts found (asked: at least .98)",
        f"{report['peak_rss_mb']:8.0f}  peak_rss_mb: a worker's peak memory (asked: under 1200)",
        f"{report['kept_share']:8.4f}  kept_share: keyframes per frame, exact mode (about .01)",
        "",
        "CPU seconds",
    ]
    lines += [f"{seconds:8.2f}  {name}" for name, seconds in report["cpu_s"].items()]
    return "\n".join(lines)
