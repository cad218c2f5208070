"""The map page: all keyframes of a project as points, what looks alike side by side.

A worker draws it (`workers/map.py`) when somebody looks and the project has changed. The points go out in one piece of
binary data, some 27 bytes each, so that 50,000 of them take 1.4 MB and no time to read.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from flask import Blueprint, Response, abort, jsonify, render_template, request
from flask.typing import ResponseReturnValue

from backend import access, pages
from lookalike.maps import Map
from lookalike.records import Clustering, cluster_name
from lookalike.store import Project
from lookalike.wire import category_colours


def blueprint() -> Blueprint:
    """GET …/map, …/map/state, …/map/points; POST …/map/draw asks for a new one."""
    routes = Blueprint("map", __name__, url_prefix="/projects/<int:label_studio_id>/map", template_folder="templates")

    @routes.get("")
    def page(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        return render_template("map.html", project=project, **pages.choices_of(project))

    @routes.get("/state")
    def state(label_studio_id: int) -> ResponseReturnValue:
        """{keyframes, drawn, fresh, state, error}: how many there are, how many are on the map, whether it is the
        newest that can be had, and what its work is doing."""
        return jsonify(_state(pages.project_of(label_studio_id)))

    @routes.post("/draw")
    def draw(label_studio_id: int) -> ResponseReturnValue:
        """Ask for a map where there is none or an old one; after a failure only with {"again": true}."""
        project, store = pages.project_of(label_studio_id), pages.services().store
        sent = request.get_json(silent=True)
        now, again = _state(project), isinstance(sent, dict) and bool(sent.get("again"))
        if now["keyframes"] and not now["fresh"] and (now["state"] not in ("due", "running", "failed") or again):
            store.want("map", project.uid)
            pages.services().kick()
        return jsonify(_state(project))

    @routes.get("/points")
    def points(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        drawn, grouped = _drawn(project)
        if drawn is None:
            abort(404, "the map is not drawn yet")
        answer = Response(_packed(project, drawn, grouped), mimetype="application/octet-stream")
        answer.set_etag(hashlib.blake2b(answer.get_data(), digest_size=16).hexdigest())
        answer.headers["Cache-Control"] = "private, no-cache"
        return answer.make_conditional(request)

    return routes


def _drawn(project: Project) -> tuple[Map | None, Clustering | None]:
    here = pages.services()
    now = here.clusterings.now(project.uid)
    return here.store.maps.get(project.uid, now.model), here.clusterings.get(project.uid, now)


def _state(project: Project) -> dict[str, object]:
    drawn, grouped = _drawn(project)
    work = pages.services().store.maps.work(project.uid)
    there = grouped.keyframe_ids if grouped is not None else np.zeros(0, np.int64)
    return {
        "keyframes": len(there),
        "drawn": len(drawn.keyframe_ids) if drawn else 0,
        "fresh": drawn is not None and np.array_equal(drawn.keyframe_ids, there),
        "state": work.state if work else "",
        "error": work.error if work else "",
    }


def _packed(project: Project, drawn: Map, grouped: Clustering | None) -> bytes:
    """A header of JSON after its length, filled up to a multiple of 8 bytes; then one array after the other:
    ids float64, x and y float32, cluster int32, video uint32, category int16, confidence uint8."""
    ids = drawn.keyframe_ids
    named = access.access().views.named(project)
    kinds = sorted({category for category, _ in named.values() if category})
    number = {category: place for place, category in enumerate(kinds)}
    category = np.full(len(ids), -1, np.int16)
    confidence = np.zeros(len(ids), np.uint8)
    for row, keyframe in enumerate(ids.tolist()):
        if (found := named.get(keyframe)) is not None:
            category[row] = number.get(found[0], -1)
            confidence[row] = round(255 * found[1])
    clusters = np.full(len(ids), -1, np.int32)
    names: dict[int, str] = {}
    if grouped is not None:
        at = np.minimum(np.searchsorted(grouped.keyframe_ids, ids), len(grouped.keyframe_ids) - 1)
        known = grouped.keyframe_ids[at] == ids
        clusters[known] = grouped.clusters[at[known]]
        names = {int(n): grouped.names.get(int(n)) or cluster_name(int(n)) for n in np.unique(clusters)}
    video_ids, video = np.unique(ids >> 24, return_inverse=True)
    header = {
        "n": len(ids),
        "clusters": {str(n): name for n, name in names.items()},
        "categories": kinds,
        "colours": category_colours(project.label_config),
        "videos": access.access().views.video_names(project.uid, video_ids.tolist()),
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 8)
    arrays = (
        ids.astype("<f8"),
        drawn.places.astype("<f4"),
        clusters.astype("<i4"),
        video.astype("<u4"),
        category.astype("<i2"),
        confidence,
    )
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays)])
