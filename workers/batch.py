"""A folder of clips in; a contact sheet, tasks with predictions, keyframes and vectors out. No server, no network."""

from __future__ import annotations

import json
import os
import shlex
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

import click
import numpy as np

from lookalike import __version__, wire
from lookalike.errors import SettingsError
from lookalike.records import Clustering, Embeddings, Json, LabelConfig, keyframe_id
from lookalike.settings import Settings
from workers import clustering, timeline
from workers.archive import Archive, Found, Result, Source, find_sources, save_npz, work_through
from workers.media import VIDEO_SUFFIXES
from workers.sheet import Shown, write_sheet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: how Label Studio serves the files of a folder of its own machine
LOCAL_FILES = "/data/local-files/?d="


def prelabel(
    paths: Sequence[Path],
    out: Path,
    settings: Settings,
    label_config: str,
    *,
    workers: int = 1,
    url_prefix: str | None = None,
    local_root: Path | None = None,
) -> int:
    """What `lookalike prelabel` says; the number of files that worked. One that does not is a row in the report.

    Raises LabelConfigError, SettingsError, SetupError or EmbedderError where nothing can be done at all.
    """
    config = timeline.read_config(label_config)
    noun, suffixes = ("picture", IMAGE_SUFFIXES) if config.object_tag == "Image" else ("video", VIDEO_SUFFIXES)
    advice = "; pictures need a labeling configuration with Image: --label-config" if noun == "video" else ""
    found = find_sources(paths, suffixes, skip=out, advice=advice)
    prefix = url_prefix or LOCAL_FILES
    addresses = _addresses(found, prefix, local_root)
    archive = Archive(out, settings, pictures=noun == "picture")
    clock = _Clock()

    with clock.stage("files"):
        results = work_through(found.sources, archive, workers)
    with clock.stage("clustering"):
        numbers, before = _last_run(archive)
        done = numbered([result for result in results if result.extraction], numbers)
        embeddings = _embeddings(done, settings.embedder)
        grouped = clustering.cluster(embeddings, settings.clusters, settings.seed, settings.clustering)
        if before:
            grouped = clustering.renumber(before, grouped)
    failed = [*found.refused, *((result.source.name, result.trouble) for result in results if result.error)]
    if done:
        with clock.stage("writing"):
            _write_embeddings(archive, done, embeddings, grouped)
            _write_json(out / "tasks.json", _tasks(config, done, grouped, addresses, settings, noun))
            _write(out / "label_config.xml", label_config)
            shown = list(shown_frames(archive, done))
            write_sheet(out / "clusters.html", shown, grouped, files=len(done), failed=failed, noun=noun)
    totals = {
        "files": len(done) + len(failed),
        "ok": len(done),
        "failed": len(failed),
        "kept_from_before": sum(result.kept for result in done),
        "frames": sum(result.extraction.facts.frame_count for result in done if result.extraction),
        "keyframes": len(embeddings.keyframe_ids),
        "clusters": int((grouped.centroids >= 0).sum()),
    }
    _write_json(
        out / "report.json",
        {
            "lookalike": __version__,
            "settings": _choices(archive),
            "totals": totals,
            "seconds": clock.report([result for result in results if not result.kept]),
            "files": [
                *(_row(archive, result) for result in results),
                *({"file": name, "outcome": "failed", "error": error} for name, error in found.refused),
            ],
        },
    )
    _tell(out, totals, noun, found)
    if done and prefix == LOCAL_FILES:
        _tell_how_to_import(out, found, local_root)
    return len(done)


# --- addresses ---


def _addresses(found: Found, prefix: str, local_root: Path | None) -> dict[Source, str]:
    """The address of each file in its task."""
    root = _document_root(found, local_root) if prefix == LOCAL_FILES or local_root else found.folder
    # cloud storages take their keys as they are; everything else is an address, with %20 for a blank
    key = "://" in prefix and not prefix.startswith(("http://", "https://"))
    addresses = {}
    for source in found.sources:
        if not source.path.is_relative_to(root):
            raise SettingsError(f"--local-root must be a folder above all PATHS, and {source.path} is not in {root}")
        relative = source.path.relative_to(root)
        addresses[source] = prefix + (relative.as_posix() if key else quote(os.fsencode(relative)))
    return addresses


def _document_root(found: Found, local_root: Path | None) -> Path:
    """By default one above the files' folder: Label Studio refuses a storage that is the whole of its root."""
    return Path(os.path.abspath(local_root)) if local_root else found.folder.parent


# --- the keyframes of all files together ---


def _last_run(archive: Archive) -> tuple[dict[str, int], Clustering | None]:
    """Each file's number and the clusters in the last run with the same choices: names are to stay what they are."""
    try:
        with np.load(archive.out / "embeddings.npz", allow_pickle=False) as last:
            if json.loads(str(last["choices"])) != _choices(archive):
                return {}, None
            numbers = dict(zip(last["files"].tolist(), last["file_ids"].tolist(), strict=True))
            grouped = Clustering(last["keyframe_ids"], last["clusters"], last["centroids"], last["similarity"])
            return numbers, grouped
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}, None  # none, or from another version


def numbered(done: Sequence[Result], numbers: dict[str, int]) -> list[Result]:
    """The results by number, the files known before having theirs, so that keyframe ids ascend and stay the same."""
    free = max(numbers.values(), default=0) + 1
    numbered = []
    for result in done:
        assert result.extraction is not None
        number = numbers.get(os.fspath(result.source.path))
        if number is None:
            number, free = free, free + 1
        frames = tuple(
            replace(frame, id=keyframe_id(number, frame.frame_index), video_id=number) for frame in result.keyframes
        )
        numbered.append(replace(result, number=number, extraction=replace(result.extraction, keyframes=frames)))
    return sorted(numbered, key=lambda result: result.number)


def _embeddings(done: Sequence[Result], model: str) -> Embeddings:
    """(n, d) float32 of all keyframes, ascending by id."""
    parts = [result.vectors for result in done if result.vectors is not None and len(result.vectors)]
    ids = np.asarray([frame.id for result in done for frame in result.keyframes], np.int64)
    vectors = np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 1), np.float32)
    return Embeddings(ids, vectors, model)


def _choices(archive: Archive) -> Json:
    """What the result depends on, besides the files."""
    settings = archive.settings
    return {
        **asdict(archive.options),
        "embedder": archive.model,
        "clustering": settings.clustering,
        "clusters": settings.clusters,
        "seed": settings.seed,
        "files": "pictures" if archive.pictures else "videos",
    }


# --- what comes out ---


def _tasks(
    config: LabelConfig,
    done: Sequence[Result],
    grouped: Clustering,
    addresses: dict[Source, str],
    settings: Settings,
    noun: str,
) -> list[Json]:
    members = timeline.describe_members(grouped, noun)
    version = wire.model_version(settings.embedder)
    tasks = []
    for result in sorted(done, key=lambda result: result.source.name):
        assert result.extraction is not None
        facts = result.extraction.facts
        data = {config.data_key: addresses[result.source]}
        if noun == "video":
            data["fps"] = f"{float(facts.fps):.6f}".rstrip("0").rstrip(".")
        prediction = timeline.compose(config, data, facts.duration_s, result.keyframes, grouped, members, version)
        tasks.append({"data": data, "predictions": [prediction]})
    return tasks


def shown_frames(archive: Archive, done: Sequence[Result]) -> Iterator[Shown]:
    for result in done:
        assert result.extraction is not None
        aspect = result.extraction.facts.width_px / result.extraction.facts.height_px
        for frame in result.keyframes:
            yield Shown(
                frame.id,
                result.source.name,
                None if archive.pictures else frame.time_s,
                archive.picture(result.source, frame),
                archive.picture(result.source, frame, "thumbs"),
                aspect,
            )


def _write_embeddings(archive: Archive, done: Sequence[Result], embeddings: Embeddings, grouped: Clustering) -> None:
    """One row per keyframe (n) and one per file (m)."""
    frames = [(row, frame) for row, result in enumerate(done) for frame in result.keyframes]
    save_npz(
        archive.out / "embeddings.npz",
        vectors=embeddings.vectors.astype(np.float16),  # (n, d)
        keyframe_ids=embeddings.keyframe_ids,  # (n,)
        video=np.asarray([row for row, _ in frames], np.int64),  # (n,) row of `files`
        frame_index=np.asarray([frame.frame_index for _, frame in frames], np.int64),  # (n,) 0-based
        time_s=np.asarray([frame.time_s for _, frame in frames], np.float64),  # (n,)
        clusters=grouped.clusters,  # (n,) 7 is c0007
        similarity=grouped.similarity,  # (n,) to the middle of the cluster
        centroids=grouped.centroids,  # (k,) keyframe id by cluster; -1: a name that is no longer in use
        files=np.asarray([os.fspath(result.source.path) for result in done], np.str_),  # (m,)
        file_ids=np.asarray([result.number for result in done], np.int64),  # (m,)
        choices=json.dumps(_choices(archive)),
    )


def _row(archive: Archive, result: Result) -> Json:
    row: Json = {"file": result.source.name, "outcome": "ok" if result.extraction else "failed"}
    if result.extraction is None:
        return row | {"error": result.error}
    facts = result.extraction.facts
    return row | {
        "keyframes": len(result.keyframes),
        "frames": facts.frame_count,
        "fps": str(facts.fps),
        "duration_s": round(facts.duration_s, 3),
        "size_px": [facts.width_px, facts.height_px],
        "kept_from_before": result.kept,
        "cpu_s": {stage: round(seconds, 3) for stage, seconds in result.cpu_s.items()},
        "pictures": f"keyframes/{archive.folder(result.source)}",
    }


def _write_json(path: Path, value: object) -> None:
    _write(path, json.dumps(value, indent=1))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _tell(out: Path, totals: dict[str, int], noun: str, found: Found) -> None:
    for name, error in found.refused:
        click.echo(f"{name}: {error}", err=True)
    counts = [(totals["ok"], noun), (totals["keyframes"], "keyframe"), (totals["clusters"], "cluster")]
    line = ", ".join(f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in counts)
    line += f", {totals['failed']:,} failed" if totals["failed"] else ""
    click.echo(f"{line} → {out / ('clusters.html' if totals['ok'] else 'report.json')}")


def _tell_how_to_import(out: Path, found: Found, local_root: Path | None) -> None:
    root = shlex.quote(os.fspath(_document_root(found, local_root)))
    click.echo(
        f"To import {out / 'tasks.json'}: start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, make a project with {out / 'label_config.xml'} and give it "
        f"the local storage {shlex.quote(os.fspath(found.folder))}; see 'lookalike prelabel --help'.",
        err=True,
    )


class _Clock:
    """Wall seconds by stage of the whole, CPU seconds of all processes by step."""

    def __init__(self) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall[name] = time.perf_counter() - wall
        self._cpu[name] = time.process_time() - cpu

    def report(self, results: Sequence[Result]) -> Json:
        steps = {
            step: sum(result.cpu_s.get(step, 0.0) for result in results)
            for step in ("keyframes", "thumbnails", "embedding")
        }
        cpu = steps | {stage: seconds for stage, seconds in self._cpu.items() if stage != "files"}
        return {
            "wall": {stage: round(seconds, 3) for stage, seconds in self._wall.items()},
            "cpu": {step: round(seconds, 3) for step, seconds in cpu.items()},
        }
