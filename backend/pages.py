"""The pages: what a person sees of projects, videos and keyframes.

Drawn by the server, from queries that read no more than the page shows; scripts only select, refresh and draw the map.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, abort, current_app, g, make_response, render_template, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from backend import access, thumbnails
from backend.contract import Services
from lookalike.store import Project
from lookalike.views import Tile, Views

#: the tabs of a project: key, name, endpoint; those whose pages are not served are left out
_TABS = (
    ("overview", "Overview", "pages.project"),
    ("clusters", "Clusters", "sheets.clusters"),
    ("categories", "Categories", "sheets.categories"),
    ("map", "Map", "map.page"),
)


def blueprint() -> Blueprint:
    """GET /projects and what lies below it, /thumbnails/<keyframe id>.jpg, /static."""
    routes = Blueprint("pages", __name__, template_folder="templates", static_folder="static")

    @routes.app_context_processor
    def always() -> dict[str, Any]:
        me = g.get("person")
        return {
            "me": me,
            "csrf_field": lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(me.csrf if me else ""),
            "studio_url": services().settings.label_studio_url.rstrip("/"),
            "page_tabs": [tab for tab in _TABS if tab[2] in current_app.view_functions],
        }

    @routes.get("/projects")
    def projects() -> ResponseReturnValue:
        here = access.access()
        known = here.projects(access.person())
        summaries = Views(here.store.engine).summaries([project.uid for project in known])
        found = [(project, summaries[project.uid]) for project in known]
        return render_template("projects.html", found=found, backend_url=services().settings.backend_url)

    @routes.get("/projects/<int:label_studio_id>")
    def project(label_studio_id: int) -> ResponseReturnValue:
        return render_template("project.html", project=project_of(label_studio_id))

    @routes.get("/projects/<int:label_studio_id>/keyframes/<int:keyframe>")
    def keyframe(label_studio_id: int, keyframe: int) -> ResponseReturnValue:
        of = project_of(label_studio_id)
        found = tiles(of, [keyframe])
        if not found:
            abort(404, f"there is no keyframe {keyframe} in this project")
        return render_template("keyframe.html", project=of, tile=found[0])

    thumbnails.add_routes(routes)
    for function in (ago, clock, count, percent):
        routes.add_app_template_filter(function)
    for helper in (asset, thumbnail, picture):  # macros see these too
        routes.add_app_template_global(helper)
    return routes


def project_of(label_studio_id: int) -> Project:
    """The project, if the person may see it; 404 if not. For views whose template extends layout.html."""
    found = services().store.project(access.require_project(label_studio_id))
    if found is None:
        abort(404, "the project was deleted a moment ago")
    return found


def tiles(project: Project, ids: Sequence[int]) -> list[Tile]:
    """These keyframes for the macro `tile`, in this order; those that are gone or another project's are left out."""
    here = services()
    found = here.store.clustering(project.uid, here.settings.embedder)
    return Views(here.store.engine).tiles(project, ids, found[0] if found else None)


def services() -> Services:
    found: Services = current_app.extensions["lookalike"]
    return found


def error_page(code: int, message: str) -> Response:
    """An error for a person's eyes."""
    try:
        heading = HTTPStatus(code).phrase
    except ValueError:
        heading = "Error"
    sentence = message[:1].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")
    return make_response(render_template("error.html", code=code, heading=heading, message=sentence), code)


# --- for templates ---


def asset(name: str) -> str:
    return url_for("pages.static", filename=name)


def thumbnail(tile: Tile) -> str:
    return url_for("pages.thumbnail", keyframe=tile.id, v=tile.version)


def picture(tile: Tile) -> str:
    return url_for("pages.picture", keyframe=tile.id, v=tile.version)


def ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def percent(share: float) -> str:
    """Never 100 % for less than all, and never 0 % for something."""
    rounded = round(share * 100)
    if rounded >= 100 and share < 1:
        return "> 99 %"
    if rounded <= 0 and share > 0:
        return "< 1 %"
    return f"{rounded} %"
