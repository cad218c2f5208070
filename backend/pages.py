"""The pages: what a person sees of projects, videos and keyframes.

Drawn by the server, from queries that read no more than the page shows; scripts only select, refresh and draw the map.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, abort, current_app, g, make_response, render_template, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from backend import access
from backend.contract import Services
from lookalike.store import Project
from lookalike.views import Views

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
            "asset": lambda name: url_for("pages.static", filename=name),
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

    for name in (ago, clock, count, percent):
        routes.add_app_template_filter(name)
    return routes


def project_of(label_studio_id: int) -> Project:
    """The project, if the person may see it; 404 if not. For views whose template extends layout.html."""
    found = services().store.project(access.require_project(label_studio_id))
    if found is None:
        abort(404, "the project was deleted a moment ago")
    return found


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


# --- how numbers look ---


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
