"""The page "Search": keyframes like a category, a picture, a region, words or other keyframes, round by round.

The query stands in the address, as far as it can; `static/search.js` reads it there, sends it, and shows what comes.
Searches are those of the API (`backend.searches`), shown as tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flask import Blueprint, jsonify, render_template, request
from flask.typing import ResponseReturnValue

from backend import api, pages, searches
from lookalike import models
from lookalike.errors import NotYet
from lookalike.finder import MOST, Hit
from lookalike.records import cluster_name, split_keyframe_id
from lookalike.store import Project
from lookalike.wire import video_name

#: results that are shown at first, and how many more at a time
_STEP = 60
#: videos that are listed to choose from; one among more is named by the number of its task
_LISTED = 300


def blueprint() -> Blueprint:
    """GET …/search is the page; POST …/search, with the body of the API's search, its results as tiles of a sheet."""
    routes = Blueprint("search", __name__, url_prefix="/projects/<int:label_studio_id>", template_folder="templates")

    @routes.get("/search")
    def page(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        here = pages.services()
        return render_template(
            "search.html",
            project=project,
            step=_STEP,
            most=MOST,
            embedder=here.settings.embedder,
            takes_words=takes_words(here.settings.embedder),
            labelled=sorted({name for said in here.store.questions.labelled(project.uid).values() for name in said}),
            **_filters(project),
            **pages.choices_of(project),
        )

    @routes.post("/search")
    def results(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        request.max_content_length = api.MOST_BYTES
        here = pages.services()
        wanted, asked = searches.parse(here, project.uid, api.sent())
        found = here.finder.find(project.uid, wanted)
        return jsonify(
            tiles=render_template("search_tiles.html", listed=_listed(project, found.hits)),
            count=len(found.hits),
            searched=found.searched,
            complete=found.complete,
            asked=[{"asked": digest, "kind": kind} for digest, kind in asked.items()],
        )

    routes.register_error_handler(NotYet, api.not_yet)
    return routes


def takes_words(embedder: str) -> bool:
    """Whether words may lie in the space of its pictures; of a model that we do not know, a worker will tell."""
    known = models.card(embedder)
    if known is not None:
        return "text" in known.takes
    return embedder not in models.functions() and Path(embedder).suffix not in models.VECTOR_FILES


def _filters(project: Project) -> dict[str, Any]:
    """Clusters as (name, title, size), the largest first, and videos as (task, name); None where they are too many."""
    here = pages.services()
    grouped = here.clusterings.get(project.uid)
    if grouped is None:
        return {"clusters": [], "videos": []}
    numbers, sizes = np.unique(grouped.clusters, return_counts=True)
    clusters = [
        (cluster_name(number), grouped.names.get(number, ""), size)
        for number, size in sorted(zip(numbers.tolist(), sizes.tolist(), strict=True), key=lambda one: -one[1])
    ]
    video_ids, _ = split_keyframe_id(grouped.keyframe_ids)  # type: ignore[arg-type]
    if len(np.unique(video_ids)) > _LISTED:
        return {"clusters": clusters, "videos": None}
    videos = [(video.task, video_name(video.url)) for video in here.store.videos(project.uid)]
    return {"clusters": clusters, "videos": sorted(videos, key=lambda one: (one[1], one[0]))}


def _listed(project: Project, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """For each hit that is still there its tile, and the tile of the labelled keyframe that it is most like."""
    nearest = pages.services().finder.nearest_labelled(project.uid, [hit.keyframe for hit in hits])
    wanted = dict.fromkeys([*(hit.keyframe for hit in hits), *(keyframe for keyframe, _ in nearest.values())])
    tiles = {tile.id: tile for tile in pages.tiles(project, list(wanted))}
    listed = []
    for hit in hits:
        if hit.keyframe in tiles:
            example, cosine = nearest.get(hit.keyframe, (-1, 0.0))
            listed.append({"hit": hit, "tile": tiles[hit.keyframe], "example": tiles.get(example), "cosine": cosine})
    return listed
