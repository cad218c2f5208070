"""`lookalike similar`: more keyframes like these, of a project, or of a folder that `prelabel` made."""

from __future__ import annotations

import base64
import json
import math
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from lookalike import wire
from lookalike.companion import find_project
from lookalike.errors import LabelConfigError, QueueError, RequestError, SetupError
from lookalike.finder import Example, Finder, Hit, Wanted, search
from lookalike.folder import check_there
from lookalike.grouping import unit
from lookalike.queue import Queue, redis_url
from lookalike.records import cluster_name, cluster_number, split_keyframe_id
from lookalike.said import categories_of
from lookalike.settings import Settings, share_cores
from lookalike.similarity import Index
from lookalike.store import Project, Store, open_store
from lookalike.views import Views
from workers import answers, companion, sheet
from workers.archive import Archive, Source
from workers.inputs import read_picture
from workers.pictures import fingerprint

if TYPE_CHECKING:
    from workers.embedders import Embedder


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asks for on the command line."""

    category: str = ""
    like: tuple[str, ...] = ()  # keyframe ids, and paths of pictures
    unlike: tuple[str, ...] = ()
    text: str = ""
    top: int = 50
    tasks: tuple[int, ...] = ()
    clusters: tuple[str, ...] = ()
    labelled: bool | None = None

    @property
    def title(self) -> str:
        names = [self.category, *(Path(name).name for name in self.like), f"“{self.text}”" if self.text else ""]
        less = f", less like {', '.join(Path(name).name for name in self.unlike)}" if self.unlike else ""
        return f"Similar to {', '.join(name for name in names if name)}{less}"


@dataclass(frozen=True, slots=True)
class Row:
    """A result for people."""

    keyframe: int
    similarity: float
    name: str  # of its video, or picture
    time_s: float | None
    cluster: str
    nearest: str  # the example that it is most like
    nearest_similarity: float
    duplicates: int  # near-duplicates that it stands for
    picture: str  # path


@click.command()
@click.option("--project", type=int, help="Label Studio's id of a connected project.")
@click.option(
    "--index",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that 'lookalike prelabel' made, instead: no server is needed.",
)
@click.option("--category", default="", help="More like the keyframes that people labelled so.")
@click.option(
    "--like", multiple=True, metavar="IMAGE", help="More like this picture, or keyframe (its id); repeatable."
)
@click.option("--unlike", multiple=True, metavar="IMAGE", help="Less like this one; repeatable.")
@click.option("--text", default="", help="More like what these words say, for models that embed words too.")
@click.option("--top", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@click.option("--task", "tasks", type=int, multiple=True, help="Only of this task's video; repeatable.")
@click.option("--cluster", "clusters", multiple=True, metavar="c0007", help="Only of this cluster; repeatable.")
@click.option("--labelled/--unlabelled", default=None, help="Only those that people labelled, or did not.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a page that shows them.")
@click.option(
    "--tab", is_flag=True, help='Have a tab "Similar to CATEGORY" made in Label Studio, by the workers of up.'
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="With --project: that of 'up'.")
def command(
    project: int | None,
    index: Path | None,
    category: str,
    like: tuple[str, ...],
    unlike: tuple[str, ...],
    text: str,
    top: int,
    tasks: tuple[int, ...],
    clusters: tuple[str, ...],
    labelled: bool | None,
    out: Path | None,
    tab: bool,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Find keyframes like those of a category, like pictures, or like words, most similar first.

    \b
      lookalike similar --project 7 --category Car --unlike taxi.jpg
      lookalike similar --index results --like car.jpg --out similar.html
    """
    if (project is None) == (index is None):
        raise click.UsageError("give either --project or --index")
    if not (category or like or text):
        raise click.UsageError("say what to look for: --category, --like or --text")
    if index is not None and (category or tasks or labelled is not None or tab):
        raise click.UsageError("a folder has no labels and no tasks: --index takes --like, --unlike, --text, --cluster")
    if tab and not category:
        raise click.UsageError("--tab needs a --category: its tab has that name")
    share_cores()
    settings = Settings.from_environment(data_dir=index or data_dir)
    asked = Asked(category, like, unlike, text, top, tasks, clusters, labelled)
    if index is not None:
        rows = of_folder(index, settings, asked)
    else:
        assert project is not None
        check_there(settings)
        with closing(open_store(settings.sqlalchemy_url)) as store:
            rows = of_project(store, settings, project, asked)
            if tab:
                _ask_tab(store, settings, project, category, top)
    if out is not None:
        write_page(out, asked.title, rows)
    if as_json:
        click.echo(json.dumps({"results": [asdict(row) for row in rows]}))
        return
    for row in rows:
        click.echo(_line(row))
    if out is not None:
        click.echo(f"{len(rows)} keyframes → {out}")
    if tab:
        click.echo(f'the tab "Similar to {category}" is being made in Label Studio')


def of_project(store: Store, settings: Settings, project_id: int, asked: Asked) -> list[Row]:
    """Search a connected project. Raises SetupError, RequestError, MediaError, EmbedderError."""
    project = find_project(store, project_id)
    with closing(Finder(store, settings)) as finder:
        wanted = _wanted(asked, settings.with_(embedder=finder.model_of(project.uid)), settings.data_dir / "models")
        if asked.tasks:
            wanted = replace(wanted, videos=tuple(store.questions.videos_of(project.uid, asked.tasks)))
        try:
            found = finder.find(project.uid, wanted, wait_s=math.inf)
        except RequestError:
            _check_category(project, asked.category)
            raise
    tiles = Views(store.engine).tiles(project, [hit.keyframe for hit in found.hits], None)
    hits = {hit.keyframe: hit for hit in found.hits}
    return [
        _row(hits[tile.id], tile.video, tile.time_s, settings.picture_path(*split_keyframe_id(tile.id)))
        for tile in tiles
    ]


def of_folder(folder: Path, settings: Settings, asked: Asked) -> list[Row]:
    """Search what `prelabel` left in a folder. Raises SetupError where that is not what it is, else as `of_project`."""
    kept = _read_folder(folder)
    choices, ids, vectors = json.loads(str(kept["choices"])), kept["keyframe_ids"], kept["vectors"]
    settings = settings.with_(embedder=choices["embedder"])
    wanted = _wanted(asked, settings, folder / "models")
    if missing := sorted({*wanted.like, *wanted.unlike} - set(ids.tolist())):
        raise RequestError(f"keyframe {missing[0]} is not in the folder {folder}")
    by_file = {int(number): kept["video"] == row for row, number in enumerate(kept["file_ids"].tolist())}

    def load(files: Sequence[int]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[Any]]]:
        for number in files:
            yield number, ids[by_file[number]], vectors[by_file[number]]

    index = Index(folder / "index")
    index.update({number: zlib.crc32(vectors[rows].tobytes()) for number, rows in by_file.items() if rows.any()}, load)
    view = index.view
    assert view is not None
    clusters = np.full(len(view.keyframe_ids), -1, np.int32)
    rows, have = view.locate(ids)
    clusters[rows] = kept["clusters"][have]
    row_of = {int(keyframe): row for row, keyframe in enumerate(ids.tolist())}
    archive = Archive(folder, settings)

    def file_of(keyframe: int) -> Path:
        return Path(str(kept["files"][kept["video"][row_of[keyframe]]]))

    def picture_of(keyframe: int) -> Path:
        name = f"{split_keyframe_id(keyframe)[1]:07d}.jpg"
        return folder / "keyframes" / archive.folder(Source(file_of(keyframe), "", 0, 0)) / name

    def leaders(keyframes: Sequence[int]) -> dict[int, int]:
        """Pictures are read for this: a folder keeps no fingerprints."""
        prints = [fingerprint(read_picture(picture_of(keyframe))[..., ::-1]) for keyframe in keyframes]
        own = unit(vectors[[row_of[keyframe] for keyframe in keyframes]])
        return companion.fold(np.asarray(keyframes, np.int64), np.asarray(prints, np.int64), own, {})

    found = search(view, wanted, clusters, {}, leaders)
    return [
        _row(
            hit,
            file_of(hit.keyframe).name,
            float(kept["time_s"][row_of[hit.keyframe]]) if choices.get("files") != "pictures" else None,
            picture_of(hit.keyframe),
        )
        for hit in found.hits
    ]


def write_page(path: Path, title: str, rows: Sequence[Row]) -> None:
    """One page with small pictures in it, which opens anywhere."""
    shown = []
    with tempfile.TemporaryDirectory(prefix="lookalike-similar-") as folder:
        small = Path(folder, "small.jpg")
        for row in rows:
            picture = ""
            if Path(row.picture).is_file():
                sheet.write_thumbnail(Path(row.picture), small)
                picture = f"data:image/jpeg;base64,{base64.b64encode(small.read_bytes()).decode()}"
            shown.append((row, _place(row), picture))
    sheet.render("similar.html", path, title=title, shown=shown)


# --- steps ---


def _wanted(asked: Asked, settings: Settings, models: Path) -> Wanted:
    """The search, with the vectors of pictures and words by the model that the keyframes have."""
    embedder: list[Embedder] = []

    def model() -> Embedder:
        from workers.embedders import open_embedder  # torch takes seconds, which a category need not wait for

        if not embedder:
            options = {"device": settings.device, "batch_size": settings.batch_size, "inference": settings.inference}
            embedder.append(open_embedder(settings.embedder, cache_dir=models, **options))  # type: ignore[arg-type]
        return embedder[0]

    def read(names: Sequence[str]) -> tuple[tuple[int, ...], tuple[Example, ...]]:
        pictures = [name for name in names if not name.isdecimal()]
        return tuple(int(name) for name in names if name.isdecimal()), tuple(
            Example(Path(name).name, unit(model().embed([answers.read_file(_file(name), settings)])[0]))
            for name in pictures
        )

    like, examples = read(asked.like)
    unlike, counterexamples = read(asked.unlike)
    return Wanted(
        top=asked.top,
        category=asked.category,
        like=like,
        unlike=unlike,
        examples=examples,
        counterexamples=counterexamples,
        words=unit(model().embed_text([asked.text])[0]) if asked.text else None,
        clusters=tuple(_cluster(name) for name in asked.clusters) or None,
        labelled=asked.labelled,
    )


def _check_category(project: Project, category: str) -> None:
    """Raises RequestError for a category that the labeling configuration does not have."""
    try:
        config = wire.parse_label_config(project.label_config)
    except LabelConfigError:
        return
    known = categories_of(config)
    if category and category not in known:
        raise RequestError(f"there is no category {category!r}; there are {', '.join(known)}")


def _cluster(name: str) -> int:
    try:
        return cluster_number(name)
    except ValueError as error:
        raise RequestError(f"--cluster: {error}") from None


def _file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise RequestError(f"{name} is no file: give a picture, or the id of a keyframe")
    return path


def _read_folder(folder: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(folder / "embeddings.npz", allow_pickle=False) as data:
            kept = {name: data[name] for name in data.files}
        if not len(kept["keyframe_ids"]):
            raise SetupError(f"{folder} has no keyframes; see its report.json")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise SetupError(
            f"{folder} has no embeddings.npz that can be read; make it with 'lookalike prelabel CLIPS --out {folder}'"
        ) from None
    return kept


def _ask_tab(store: Store, settings: Settings, project_id: int, category: str, top: int) -> None:
    store.questions.ask_tab(find_project(store, project_id).uid, category, {"top": top})
    try:
        Queue(redis_url(settings.redis_url, settings.data_dir)).kick_due(store.ledger)
    except QueueError as error:
        click.echo(f"{error}; the tab is made once 'lookalike up' runs", err=True)


def _row(hit: Hit, name: str, time_s: float | None, picture: Path) -> Row:
    return Row(
        hit.keyframe,
        round(hit.similarity, 4),
        name,
        time_s,
        cluster_name(hit.cluster),
        "" if hit.nearest is None else str(hit.nearest),
        round(hit.nearest_similarity, 4),
        len(hit.duplicates),
        str(picture),
    )


def _line(row: Row) -> str:
    more = f"  and {row.duplicates} like it" if row.duplicates else ""
    nearest = f"  nearest {row.nearest} ({row.nearest_similarity:.2f})" if row.nearest else ""
    return f"{row.similarity:.2f}  {_place(row)}  {row.cluster}  keyframe {row.keyframe}{nearest}{more}"


def _place(row: Row) -> str:
    shown = sheet.Shown(row.keyframe, row.name, row.time_s, "", "")
    return f"{row.name} {shown.time}".strip()
