"""Embedders and clusterings side by side, on one's own clips or pictures: what is measured.

Keyframes are found once, each model embeds them once in a process of its own, every clustering is tried on each.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike import __version__, models
from lookalike.errors import EmbedderError, RequestError
from lookalike.grouping import Proposal
from lookalike.records import Clustering, Embeddings
from lookalike.settings import Settings
from workers import clustering, evaluate
from workers.agreement import Agreement, agree
from workers.archive import Archive, Result, Source, find_sources, save_npz, work_through
from workers.batch import IMAGE_SUFFIXES, numbered, shown_frames
from workers.embedders import open_embedder
from workers.inputs import Origin, embed_keyframes, read_picture
from workers.media import VIDEO_SUFFIXES
from workers.sheet import Shown

T = TypeVar("T")

_PICTURES = 64  # in memory at a time
_STABLE_SHARE = 0.9  # of the keyframes that each fit of the stability test sees


@dataclass(frozen=True, slots=True)
class Embedded:
    """All keyframes by one model, and what that took."""

    spec: str
    vectors: NDArray[np.float32]  # (n, d)
    per_s: float  # keyframes, reading their files left out
    cpu_ms: float  # per keyframe, all cores together
    peak_mb: float  # of a process that does nothing else

    @property
    def name(self) -> str:
        """For people: a folder or file by its last name."""
        path = Path(self.spec).expanduser()
        return path.name if path.exists() else self.spec

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def card(self) -> models.Card | None:
        return models.card(self.spec)


@dataclass(frozen=True, slots=True)
class Variant:
    """One clustering of one model's vectors."""

    embedder: int  # its place among the embedders
    method: str
    grouped: Clustering
    seconds: float  # CPU
    separation: float  # mean silhouette, -1..1
    stability: float  # mean adjusted Rand index of fits on other parts, with other seeds
    named: float | None  # share of the labelled keyframes that have the category of their group's centroid
    actions: int | None  # of a person until all labelled ones are right; None: no labels

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.bincount(self.grouped.clusters[self.grouped.clusters >= 0], minlength=len(self.grouped.centroids))

    @property
    def alone(self) -> int:
        """Keyframes like nothing else, or the only one of their group."""
        return int(np.sum(self.grouped.clusters < 0) + np.sum(self.sizes == 1))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that the page tells."""

    noun: str  # picture, video
    shown: tuple[Shown, ...]  # (n,)
    failed: tuple[tuple[str, str], ...]
    truth: tuple[str, ...]  # (n,) category, "" where there is none; () where no labels were given
    embedded: tuple[Embedded, ...]
    variants: tuple[Variant, ...]  # by embedder, then by clustering
    proposals: tuple[Proposal, ...]  # by embedder
    replays: tuple[tuple[evaluate.Result, ...], ...]  # by embedder; empty without labels
    promise: float
    note: str = ""

    @property
    def unit(self) -> str:
        """What is grouped, in the singular."""
        return "picture" if self.noun == "picture" else "keyframe"

    @property
    def labelled(self) -> int:
        return sum(bool(category) for category in self.truth)

    def needed(self, place: int) -> int:
        """Labels that people give one by one with this embedder for the promise to hold; all, where it was not kept."""
        found = evaluate.labels_needed(self.replays[place], self.labelled, self.promise) if self.replays else None
        return found[1] if found else self.labelled

    def agreements(self) -> list[list[Agreement]]:
        """Of each variant with each."""
        groups = [variant.grouped.clusters for variant in self.variants]
        return [[agree(one, other) for other in groups] for one in groups]

    def name(self, variant: Variant) -> str:
        """For people."""
        return f"{self.embedded[variant.embedder].name} · {variant.method}"


def compare(
    paths: Sequence[Path],
    out: Path,
    settings: Settings,
    embedders: Sequence[str],
    clusterings: Sequence[str],
    *,
    labels: str = "",
    workers: int = 1,
    seeds: int = 3,
    clips: int = 0,
) -> Comparison:
    """All models and clusterings on these files; keyframes, thumbnails and vectors are kept in `out`.

    labels: "folders", a CSV file, or empty. clips: at most so many of the files, chosen by the seed; then the clusters
    are fewer in the same proportion where there are fewer files. Raises RequestError, SetupError, EmbedderError or
    SettingsError, before anything is decoded where it can be known then.
    """

    for what, names in (("embedders", embedders), ("clusterings", clusterings)):
        if not names or len(set(names)) < len(names):
            raise RequestError(f"--{what} must name each once and at least one, got {', '.join(names) or 'none'}")
    found = find_sources(paths, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES), skip=out)
    sources = [source for source in found.sources if source.name.lower().endswith(IMAGE_SUFFIXES)]
    noun = "picture" if sources else "video"
    if sources and len(sources) < len(found.sources):
        others = len(found.sources) - len(sources)
        raise RequestError(f"name videos or pictures, not both: there are {others} and {len(sources)}")
    sources = sources or list(found.sources)
    if not sources:
        named = ", ".join(map(str, paths))
        raise RequestError(f"there is no video and no picture in {named}; name files, or folders that have some")
    note = ""
    if clips and len(sources) > clips:
        chosen = np.random.default_rng(settings.seed).permutation(len(sources))[:clips]
        note = f"{clips} of the {len(sources):,} {noun}s, chosen at random by seed {settings.seed}"
        sources = [sources[i] for i in sorted(chosen)]
    elif clips and len(sources) < clips and settings.clusters:
        fewer = max(2, round(settings.clusters * len(sources) / clips))
        note = f"{fewer} clusters of {len(sources)} {noun}s, as {settings.clusters} of {clips}"
        settings = settings.with_(clusters=fewer)
    category_of = _categories(labels, sources, found.folder) if labels else None

    archive = Archive(out, settings, pictures=noun == "picture", embed=False)
    for spec in embedders:
        _try(spec, archive)
    results = work_through(sources, archive, workers)
    done = numbered([result for result in results if result.extraction], {})
    failed = [*found.refused, *((result.source.name, result.trouble) for result in results if result.error)]
    shown = tuple(shown_frames(archive, done))
    if len(shown) < 4:
        raise RequestError(f"there must be at least 4 keyframes to compare anything, got {len(shown)}")
    if settings.clusters > len(shown):
        raise RequestError(f"clusters must be at most the number of keyframes, {len(shown)}, got {settings.clusters}")
    truth = tuple(category_of(result.source.path) for result in done for _ in result.keyframes) if category_of else ()

    embedded = tuple(_embedded(spec, archive, done) for spec in embedders)
    comparison = _measured(shown, truth, embedded, clusterings, settings, seeds)
    return replace(comparison, noun=noun, failed=tuple(failed), note=note)


# --- what is measured ---


def _measured(
    shown: tuple[Shown, ...],
    truth: tuple[str, ...],
    embedded: tuple[Embedded, ...],
    clusterings: Sequence[str],
    settings: Settings,
    seeds: int,
) -> Comparison:
    ids = np.asarray([each.keyframe_id for each in shown], np.int64)
    variants, proposals, replays = [], [], []
    rows = np.flatnonzero([bool(category) for category in truth])
    for place, model in enumerate(embedded):
        embeddings = Embeddings(ids, model.vectors, model.spec)
        proposals.append(clustering.propose_k(embeddings, settings.seed))
        for method in clusterings:
            k = 0 if method == "hdbscan" else settings.clusters
            began = time.process_time()
            grouped = clustering.cluster(embeddings, k, settings.seed, method)
            seconds = time.process_time() - began
            variants.append(
                Variant(
                    place,
                    method,
                    grouped,
                    seconds,
                    clustering.separated(embeddings, grouped, settings.seed),
                    _stability(embeddings, k or len(grouped.centroids), method, seeds, settings.seed),
                    *_named(grouped, truth),
                )
            )
        if len(rows):
            labelled = Embeddings(ids[rows], model.vectors[rows], model.spec)
            said = [truth[row] for row in rows]
            replays.append(
                tuple(evaluate.evaluate(labelled, said, _budgets(said), seeds=seeds, promise=settings.promise))
            )
    return Comparison(
        "", shown, (), truth, embedded, tuple(variants), tuple(proposals), tuple(replays), settings.promise
    )


def _stability(embeddings: Embeddings, k: int, method: str, seeds: int, seed: int) -> float:
    """Mean adjusted Rand index of all pairs of fits, each with another seed on its own nine tenths of the keyframes."""
    n = len(embeddings.keyframe_ids)
    fits = []
    for each in range(seeds):
        rows = np.sort(np.random.default_rng(seed + each).permutation(n)[: max(2, round(n * _STABLE_SHARE))])
        part = Embeddings(embeddings.keyframe_ids[rows], embeddings.vectors[rows], embeddings.model)
        wanted = 0 if method == "hdbscan" else min(k, len(rows))
        fits.append((rows, clustering.cluster(part, wanted, seed + each, method).clusters))
    found = [
        agree(a[np.isin(rows, others)], b[np.isin(others, rows)]).ari
        for i, (rows, a) in enumerate(fits)
        for others, b in fits[i + 1 :]
    ]
    return float(np.mean(found)) if found else 1.0


def _named(grouped: Clustering, truth: Sequence[str]) -> tuple[float | None, int | None]:
    """What comes of naming each group by its centroid: the share that is right, and the actions until all are.

    An action is a name for a group, or a label for a keyframe that has none by then or a wrong one.
    """
    if not truth:
        return None, None
    said = np.asarray(truth)
    row = {identifier: i for i, identifier in enumerate(grouped.keyframe_ids.tolist())}
    names = np.asarray([said[row[int(centroid)]] for centroid in grouped.centroids] + [""])
    labelled = said != ""
    right = (names[grouped.clusters] == said) & labelled
    return float(right.sum() / labelled.sum()), len(grouped.centroids) + int((labelled & ~right).sum())


def _budgets(truth: Sequence[str]) -> list[int]:
    """1, 2 and 5 labels per category, as far as there are so many."""
    return sorted({min(len(truth), len(set(truth)) * each) for each in (1, 2, 5)})


# --- embedding ---


def _try(spec: str, archive: Archive) -> None:
    """Raises EmbedderError for a new model that cannot be opened, while nothing has been decoded yet."""
    if not _vectors_file(spec, archive).exists():
        _alone(_open, spec, archive.settings, archive.out)


def _embedded(spec: str, archive: Archive, done: Sequence[Result]) -> Embedded:
    """As measured now, or in an earlier run over the same keyframes."""
    file = _vectors_file(spec, archive)
    key = _key(spec, archive, done)
    try:
        with np.load(file, allow_pickle=False) as kept:
            meta = json.loads(str(kept["meta"]))
            if meta.pop("key") == key:
                return Embedded(vectors=kept["vectors"], **meta)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    embedded = _alone(_embed, spec, archive.settings, archive.out, archive.pictures, done)
    file.parent.mkdir(exist_ok=True)
    meta = {name: value for name, value in asdict(embedded).items() if name != "vectors"} | {"key": key}
    save_npz(file, meta=json.dumps(meta), vectors=embedded.vectors)
    return embedded


def _vectors_file(spec: str, archive: Archive) -> Path:
    digest = hashlib.sha256(spec.encode()).hexdigest()[:8]
    return archive.out / "vectors" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', Path(spec).name)[-60:]}-{digest}.npz"


def _key(spec: str, archive: Archive, done: Sequence[Result]) -> str:
    """What the vectors depend on: the keyframes, the model, and the version that made them."""
    model = Path(spec).expanduser()
    stamps = [
        path.stat().st_mtime_ns for path in [*sorted(model.glob("*")), model] if model.exists() and path.is_file()
    ]
    frames = [(str(r.source.path), r.source.mtime_ns, [f.frame_index for f in r.keyframes]) for r in done]
    settings = archive.settings
    choices = [__version__, spec, stamps, settings.device, settings.inference, settings.keyframe_width_px, frames]
    return hashlib.sha256(json.dumps(choices).encode()).hexdigest()


def _alone(function: Callable[..., T], spec: str, *arguments: object) -> T:
    """Called in a process of its own, so that its memory is the model's alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, spec, *arguments).result()
        except BrokenProcessPool:
            raise EmbedderError(
                f"{spec}: its process was killed, likely for want of memory; choose a smaller model"
            ) from None


def _open(spec: str, settings: Settings, out: Path) -> str:

    return open_embedder(
        spec,
        device=settings.device,
        batch_size=settings.batch_size,
        inference=settings.inference,
        cache_dir=out / "models",
    ).takes


def _embed(spec: str, settings: Settings, out: Path, pictures: bool, done: Sequence[Result]) -> Embedded:

    archive = Archive(out, settings, pictures=pictures, embed=False)
    embedder = open_embedder(
        spec,
        device=settings.device,
        batch_size=settings.batch_size,
        inference=settings.inference,
        cache_dir=out / "models",
    )
    parts, spent = [], []  # spent: (wall seconds, CPU seconds) per keyframe, of each portion

    def timed(embed: Callable[[], NDArray[np.float32]]) -> None:
        before = time.perf_counter(), time.process_time()
        parts.append(embed())
        count = max(1, len(parts[-1]))
        spent.append(((time.perf_counter() - before[0]) / count, (time.process_time() - before[1]) / count))

    if embedder.takes == "pictures":
        files = [out / archive.picture(result.source, frame) for result in done for frame in result.keyframes]
        embedder.embed([read_picture(files[0])])  # what is slow the first time only
        for at in range(0, len(files), _PICTURES):
            some = [read_picture(file) for file in files[at : at + _PICTURES]]
            timed(functools.partial(embedder.embed, some))
    else:
        for result in done:
            origin = Origin(result.source.name, result.source.path, pictures=pictures)
            folder = out / "keyframes" / archive.folder(result.source)
            timed(lambda: embed_keyframes(embedder, result.keyframes, folder, origin, settings).vectors)  # noqa: B023
    vectors = np.concatenate(parts).astype(np.float32)
    seconds, cpu_s = np.median(np.asarray(spent), axis=0).tolist()  # other work on the machine disturbs the mean
    return Embedded(spec, vectors, 1 / max(seconds, 1e-9), 1000 * cpu_s, peak_mb())


def peak_mb() -> float:
    """The largest memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss counts what the parent held when it started this process
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


# --- labels ---


def _categories(labels: str, sources: Sequence[Source], folder: Path) -> Callable[[Path], str]:
    """The category of each file, "" where it has none. Raises RequestError for labels that tell nothing."""
    if labels == "folders":
        of = {source.path: source.path.parent.name for source in sources if source.path.parent != folder}
        hint = "put the files into a folder per category, or name a CSV file"
    else:
        rows = _read_csv(Path(labels))
        by_name = Counter(source.path.name for source in sources)
        of = {}
        for source in sources:
            category = rows.get(source.path.relative_to(folder).as_posix())
            if category is None and by_name[source.path.name] == 1:
                category = rows.get(source.path.name)
            if category:
                of[source.path] = category
        hint = f"its files must be named as below {folder}, or by their last name where that is the only one"
    counts = Counter(of.values())
    if len(counts) < 2:
        raise RequestError(
            f"--labels {labels} must give at least two categories, it gives {', '.join(counts) or 'none'}; {hint}"
        )
    return lambda path: of.get(path, "")


def _read_csv(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"file", "category"} <= set(rows.fieldnames or ()):
                raise RequestError(
                    f"{path} must have the columns file and category, it has {', '.join(rows.fieldnames or ['none'])}"
                )
            return {row["file"]: (row["category"] or "").strip() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"cannot read {path} as CSV: {error}; or write --labels folders") from None
