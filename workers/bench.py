"""`lookalike bench`: speed, everything in one run, as ratios.

CPU seconds of this process (user and system, all threads), not wall time: machines are shared and noisy. What is
compared is measured in turns, several times, and the median of the ratios is shown.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from lookalike import wire
from lookalike.errors import SetupError
from lookalike.label_config import shipped_config
from lookalike.records import Embeddings, Extraction, Json
from lookalike.settings import Settings, share_cores
from lookalike.store import Project, open_store
from workers import clustering, demo, jobs, keyframes

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
@click.option("--repeat", default=3, show_default=True, help="Rounds; the median of the ratios is shown.")
@click.option("--clusters", default=20, show_default=True, help="Clusters, here and in the article's recipe.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(clips: Path | None, repeat: int, clusters: int, as_json: bool) -> None:
    """Measure decoding, keyframes, embedding, clustering, writing and the whole job against their limits.

    Needs the source tree: the article's recipe and the clips with known cuts are in benchmarks/.
    """
    share_cores()
    settings = Settings.from_environment()
    found = demo.find_clips(clips) if clips else demo.sample_clips(settings.data_dir.resolve() / "clips")
    readable = [clip for clip in found if _readable(clip)]
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        report = measure(readable, settings, Path(folder), repeat, clusters)
    report["clips_left_out"] = [clip.name for clip in found if clip not in readable]
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(_table(report))


def measure(clips: Sequence[Path], settings: Settings, folder: Path, repeat: int, clusters: int) -> Json:
    """All figures of one run. Raises SetupError where the source tree's `benchmarks/` is missing."""
    article, cuts = _benchmark("article"), _benchmark("cuts")
    settings = settings.with_(data_dir=folder, clusters=clusters, device="cpu")
    place = jobs.Workplace(settings, open_store(settings.sqlalchemy_url), None, "bench")  # type: ignore[arg-type]
    embedder = place.embedder
    model_folder = settings.data_dir / "models"
    model = next(model_folder.iterdir())
    rounds: list[dict[str, float]] = []
    ratios: dict[str, list[float]] = {name: [] for name in RATIOS}
    kept: list[float] = []
    pictures = []
    for number in range(repeat + 1):  # the first warms caches and libraries up, and does not count
        cpu: dict[str, float] = {}
        cpu["decode"] = _cpu(lambda: [keyframes.decode_only(clip) for clip in clips])
        extracted: dict[str, list[Extraction]] = {}
        for mode in ("exact", "fast"):
            options = replace(jobs.keyframe_options(settings), mode=mode)
            out = folder / f"{mode}{number}"
            cpu[f"keyframes_{mode}"], extracted[mode] = _cpu_and(
                lambda out=out, options=options: [
                    keyframes.extract(clip, n + 1, out / str(n), options) for n, clip in enumerate(clips)
                ]
            )
        if not pictures:
            files = sorted((folder / f"exact{number}").rglob("*.jpg"))
            pictures = [jobs.read_picture(files[i % len(files)]) for i in range(_PICTURES)]
        cpu["embed"] = _cpu(lambda p=pictures: embedder.embed(p))
        cpu["embed_eager"] = _cpu(lambda p=pictures: article.embed_one_by_one(p, model))
        for mode in ("exact", "fast"):
            cpu |= _job(place, clips, mode, folder / f"job-{mode}{number}")
        cpu["article"] = float(article.run(clips, model, clusters)["cpu_s"]["total"])
        if number == 0:
            continue
        rounds.append(cpu)
        ratios["keyframes_exact_to_decode"].append(cpu["keyframes_exact"] / cpu["decode"])
        ratios["keyframes_fast_to_decode"].append(cpu["decode"] / cpu["keyframes_fast"])
        ratios["embed_to_eager"].append(cpu["embed_eager"] / cpu["embed"])
        ratios["job_exact_to_article"].append(cpu["article"] / cpu["job_exact"])
        ratios["job_fast_to_article"].append(cpu["article"] / cpu["job_fast"])
        frames = sum(e.facts.frame_count for e in extracted["exact"])
        kept.append(sum(len(e.keyframes) for e in extracted["exact"]) / frames)

    spliced = folder / "spliced.mp4"
    true = cuts.splice(clips, spliced, _CUT_SHOTS)
    fast = keyframes.extract(spliced, 1, folder / "spliced", replace(jobs.keyframe_options(settings), mode="fast"))
    return {
        "ratios": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "cpu_s": {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]},
        "hard_cut_recall_fast": round(cuts.recall(fast.cuts, true), 4),
        "peak_rss_mb": round(_peak_rss_mb(max(clips, key=lambda clip: clip.stat().st_size), settings)),
        "kept_share": round(statistics.median(kept), 4),
        "clips": len(clips),
        "rounds": len(rounds),
        "frames": sum(e.facts.frame_count for e in extracted["exact"]),
    }


def _job(place: jobs.Workplace, clips: Sequence[Path], mode: str, folder: Path) -> dict[str, float]:
    """The whole job on all clips, as the workers do it, into a ledger of its own; CPU seconds by step."""
    store = open_store(f"sqlite:///{folder / 'ledger.sqlite3'}")
    settings = place.settings.with_(keyframe_mode=mode)
    project = Project("1.1", 1, "bench", shipped_config("video_timeline"))
    store.put_project(project)
    store.add_videos("1.1", [(n + 1, str(clip), {}) for n, clip in enumerate(clips)])
    steps = {f"job_{mode}_{step}": 0.0 for step in ("keyframes", "embed", "cluster", "write")}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        seconds, result = _cpu_and(work)
        steps[f"job_{mode}_{step}"] += seconds
        return result

    for row in store.ledger.due(("video",), len(clips)):
        claim = store.ledger.claim(row.id, "bench", lease_s=600, max_crashes=3)
        assert claim is not None
        video = int(claim.subject)
        out = folder / str(video)
        extraction = timed(
            "keyframes",
            lambda v=video, o=out: keyframes.extract(clips[v - 1], v, o, jobs.keyframe_options(settings)),
        )
        embeddings = timed("embed", lambda e=extraction, o=out: jobs.embed_pictures(place.embedder, e.keyframes, o))
        timed("write", lambda c=claim, x=extraction, e=embeddings: store.put_extraction(c, x, e))
    [row] = store.ledger.due(("cluster",), 1)
    claim = store.ledger.claim(row.id, "bench", lease_s=600, max_crashes=3)
    assert claim is not None

    def cluster() -> Any:
        loaded: Embeddings = store.load_embeddings("1.1", place.embedder.name)
        k = min(settings.clusters, len(loaded.keyframe_ids))
        return clustering.cluster(loaded, k, settings.seed)

    grouped = timed("cluster", cluster)
    config = wire.parse_label_config(project.label_config)

    def write() -> None:
        bodies = jobs.compose(store, config, store.videos("1.1"), grouped, wire.model_version(place.embedder.name))
        store.put_clustering(claim, place.embedder.name, grouped, len(grouped.keyframe_ids), bodies)

    timed("write", write)
    store.close()
    return {**steps, f"job_{mode}": sum(steps.values())}


def _peak_rss_mb(clip: Path, settings: Settings) -> float:
    """The largest memory that a process which does nothing but one whole job ever held, decoding included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_one_job, (clip, settings))


def _one_job(clip: Path, settings: Settings) -> float:
    place = jobs.Workplace(settings, open_store(settings.sqlalchemy_url), None, "bench")  # type: ignore[arg-type]
    _job(place, [clip], "exact", settings.data_dir / "peak")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def _cpu(work: Callable[[], Any]) -> float:
    return _cpu_and(work)[0]


def _cpu_and(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


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
    lines = [f"{report['clips']} clips, {report['frames']} frames, median of {report['rounds']} rounds", ""]
    lines += [
        f"{report['ratios'][name]:8.2f}  {name}: {what} (asked: {asked})" for name, (what, asked) in RATIOS.items()
    ]
    lines += [
        f"{report['hard_cut_recall_fast']:8.3f}  hard_cut_recall_fast: share of hard cuts found (asked: at least .98)",
        f"{report['peak_rss_mb']:8.0f}  peak_rss_mb: a worker's peak memory (asked: under 1200)",
        f"{report['kept_share']:8.4f}  kept_share: keyframes per frame, exact mode (about .01)",
        "",
        "CPU seconds",
    ]
    lines += [f"{seconds:8.2f}  {name}" for name, seconds in report["cpu_s"].items()]
    return "\n".join(lines)
