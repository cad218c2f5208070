"""The contact sheet: one page that shows every cluster, opened from disk without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lookalike.errors import MediaError
from lookalike.records import Clustering, cluster_name

THUMBNAIL_PX = 240  # wide; about 8 kB each
_JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Shown:
    """A keyframe as the sheet shows it. Paths are relative to the sheet's folder."""

    keyframe_id: int
    name: str  # of its video, for people
    time_s: float | None  # None: a picture, which has no time
    picture: str
    thumbnail: str
    aspect: float = 16 / 9  # width by height
    similarity: float = 0.0  # to the middle of its cluster, 0..1

    @property
    def picture_url(self) -> str:
        return quote(self.picture)

    @property
    def thumbnail_url(self) -> str:
        return quote(self.thumbnail)

    @property
    def time(self) -> str:
        """1:02.5, or 1:01:02.5 beyond an hour; empty for a picture."""
        if self.time_s is None:
            return ""
        tenths = round(self.time_s * 10)
        minutes, seconds = divmod(tenths, 600)
        hours, minutes = divmod(minutes, 60)
        ahead = f"{hours}:{minutes:02d}" if hours else str(minutes)
        return f"{ahead}:{seconds // 10:02d}.{seconds % 10}"


@dataclass(frozen=True, slots=True)
class Section:
    """One cluster: its centroid and the others, most similar first. Those like nothing else have no centroid."""

    name: str
    centroid: Shown | None
    members: tuple[Shown, ...]  # without the centroid
    size: int
    files: int  # videos, or pictures, that it is found in


def write_sheet(
    path: Path,
    shown: Sequence[Shown],
    clustering: Clustering,
    *,
    files: int,
    failed: Sequence[tuple[str, str]] = (),
    noun: str = "video",
) -> None:
    """Write the page: a summary, all centroids, then a section per cluster, the largest first.

    `shown`: the keyframes in the clustering's order. `files`: how many were worked on, `failed`: (name, reason) of each
    other one. `noun`: what they are, in the singular.
    """
    sections = list(sections_of(shown, clustering))
    render(
        "sheet.html",
        path,
        sections=sections,
        failed=failed,
        noun=noun,
        files=files,
        keyframes=len(shown),
        clusters=sum(section.centroid is not None for section in sections),
    )


def render(template: str, path: Path, **values: object) -> None:
    """Write a page from a template beside this file, whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).stream(**values)
    page.enable_buffering(200)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        page.dump(file, encoding="utf-8", errors="replace")  # names of files need not be Unicode
    part.replace(path)


def sections_of(shown: Sequence[Shown], clustering: Clustering) -> Iterator[Section]:
    """Clusters, the largest first; those like nothing else last."""
    order = np.lexsort((-clustering.similarity, clustering.clusters))
    numbers, starts = np.unique(clustering.clusters[order], return_index=True)
    groups = zip(numbers.tolist(), np.split(order, starts[1:]), strict=True) if len(order) else []
    for number, rows in sorted(groups, key=lambda group: (group[0] < 0, -len(group[1]), group[0])):
        members = [replace(shown[row], similarity=float(clustering.similarity[row])) for row in rows]
        center = int(clustering.centroids[number]) if number >= 0 else None
        centroid = next((each for each in members if each.keyframe_id == center), None)
        yield Section(
            name=cluster_name(number) if number >= 0 else "like nothing else",
            centroid=centroid,
            members=tuple(each for each in members if each is not centroid),
            size=len(members),
            files=len({each.name for each in members}),
        )


def write_thumbnail(picture: Path, thumbnail: Path) -> None:
    """A small copy of a JPEG, at most THUMBNAIL_PX wide. Raises MediaError where it cannot be read."""
    # the decoder itself leaves out what a quarter of the size does not show: a third of the time of a whole decode
    small = cv2.imread(str(picture), cv2.IMREAD_REDUCED_COLOR_4)
    if small is not None and small.shape[1] < THUMBNAIL_PX:
        small = cv2.imread(str(picture), cv2.IMREAD_COLOR)
    if small is None:
        raise MediaError(f"the keyframe picture {picture.name} is missing or broken; ask for the video again")
    height, width = small.shape[:2]
    if width > THUMBNAIL_PX:
        size = (THUMBNAIL_PX, max(1, round(height * THUMBNAIL_PX / width)))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    thumbnail.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    thumbnail.write_bytes(data.tobytes())
