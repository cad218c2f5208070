"""The pages: what a person sees of projects, videos and keyframes.

Drawn by the server, from queries that read no more than the page shows; scripts only select, refresh and draw the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    flash,
    g,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from backend import access, thumbnails
from backend.services import Services
from lookalike import wire
from lookalike.companion import ask as ask_for_companion
from lookalike.errors import LabelConfigError, NotYet
from lookalike.finder import Wanted
from lookalike.runs import ago
from lookalike.said import categories_of
from lookalike.store import Project
from lookalike.undo import undo
from lookalike.views import Tile
from lookalike.wire import category_colours, parse_label_config

#: the tabs of a project: key, name, endpoint; those whose pages are not served are left out
_TABS = (
    ("overview", "Overview", "pages.project"),
    ("clusters", "Clusters", "sheets.clusters"),
    ("categories", "Categories", "sheets.categories"),
    ("search", "Search", "search.page"),
    ("map", "Map", "map.page"),
)
#: in the order in which a video goes through them
_ORDER = (
    *("queued", "starting", "fetching", "extracting", "embedding", "clustering", "delivering", "nothing to show yet"),
    *("updating", "delivered", "failed"),
)
_SETTLED = ("updating", "delivered", "nothing to show yet", "failed")
_BEFORE_EMBEDDED = ("queued", "starting", "fetching", "extracting", "embedding")
_RUNNING = ("starting", "fetching", "extracting", "embedding", "delivering")
#: rows that a page lists at most
_FAILED, _BUSY, _RUNS, _PAGE = 50, 12, 8, 200
#: tiles on a keyframe's page: most like it, labelled ones that it has its label from, before and after in its video
_NEAREST, _REASONS, _AROUND = 60, 6, 6
#: the pace is that of the last minutes
_PACE_S = 600.0


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
        summaries = here.views.summaries([project.uid for project in known])
        found = [(project, summaries[project.uid]) for project in known]
        return render_template("projects.html", found=found, backend_url=services().settings.backend_url)

    @routes.get("/projects/<int:label_studio_id>")
    def project(label_studio_id: int) -> ResponseReturnValue:
        owner = _of_companion(label_studio_id)
        if owner is not None and access.access().uid(access.person(), owner):
            return redirect(url_for("pages.project", label_studio_id=owner))
        of = project_of(label_studio_id)
        return render_template("project.html", project=of, **_overview(of))

    @routes.get("/projects/<int:label_studio_id>/overview")
    def overview(label_studio_id: int) -> ResponseReturnValue:
        """What changes by itself, as a fragment."""
        of = project_of(label_studio_id)
        return render_template("overview.html", project=of, **_overview(of))

    @routes.get("/projects/<int:label_studio_id>/videos")
    def videos(label_studio_id: int) -> ResponseReturnValue:
        of, state = project_of(label_studio_id), request.args.get("state", "")
        store, states = services().store, (state,) if state else ()
        after = request.args.get("after", 0, type=int)
        found = store.video_status(of.uid, _PAGE, states=states, after=after)
        return render_template(
            "videos.html",
            project=of,
            state=state,
            counts=_counts(of.uid),
            found=found,
            after=found[-1].video if len(found) == _PAGE else 0,
            video_name=wire.video_name,
        )

    @routes.post("/projects/<int:label_studio_id>/retry")
    def retry(label_studio_id: int) -> ResponseReturnValue:
        uid = access.require_project(label_studio_id)
        rows = services().store.ledger.retry(uid, numbers(request.form.getlist("work")))
        services().kick()
        flash(f"{rows} tried again" if rows else "Nothing has failed any more")
        return _back(label_studio_id)

    @routes.post("/projects/<int:label_studio_id>/companion")
    def companion(label_studio_id: int) -> ResponseReturnValue:
        access.require_project(label_studio_id)
        access.studio()
        ask_for_companion(services().store, label_studio_id)
        services().kick()
        flash("Asked for; the keyframes appear at Label Studio as soon as the workers come to it")
        return _back(label_studio_id)

    @routes.post("/projects/<int:label_studio_id>/runs/<int:run>/undo")
    def undo_run(label_studio_id: int, run: int) -> ResponseReturnValue:
        uid = access.require_project(label_studio_id)
        access.studio()
        known = services().store.labels.run(run)
        if known is None or known.project != uid:
            abort(404, f"there is no run {run} in this project")
        undone = undo(services().store, run)
        services().kick()
        done = undone.withdrawn.total(), undone.restored.total(), undone.left
        told = zip(done, ("proposals withdrawn", "proposed again", "left alone: changed since"), strict=True)
        flash(", ".join(f"{number} {what}" for number, what in told if number) or "Nothing of it is left to undo")
        return _back(label_studio_id)

    @routes.get("/projects/<int:label_studio_id>/keyframes/<int:keyframe>")
    def keyframe(label_studio_id: int, keyframe: int) -> ResponseReturnValue:
        of = project_of(label_studio_id)
        found = tiles(of, [keyframe])
        if not found:
            abort(404, f"there is no keyframe {keyframe} in this project")
        return render_template("keyframe.html", project=of, shown=found[0], **_about(of, found[0]))

    @routes.get("/projects/<int:label_studio_id>/keyframes/<int:keyframe>/nearest")
    def nearest(label_studio_id: int, keyframe: int) -> ResponseReturnValue:
        """Its nearest as tiles of a sheet; 202 while the index is made."""
        of = project_of(label_studio_id)
        try:
            found = services().finder.find(of.uid, Wanted(top=_NEAREST, like=(keyframe,)), wait_s=1.0)
        except NotYet as error:
            return str(error), 202
        similarity = {hit.keyframe: hit.similarity for hit in found.hits if hit.keyframe != keyframe}
        listed = [(tile, f"{similarity[tile.id]:.2f}") for tile in tiles(of, list(similarity))]
        return render_template("sheet.html", listed=listed, more="")

    thumbnails.add_routes(routes)
    for function in (ago, clock, count, lasting, percent):
        routes.add_app_template_filter(function)
    for helper in (asset, thumbnail, picture):  # macros see these too
        routes.add_app_template_global(helper)
    return routes


def _back(label_studio_id: int) -> ResponseReturnValue:
    return redirect(url_for("pages.project", label_studio_id=label_studio_id), 303)


def _of_companion(label_studio_id: int) -> int | None:
    """The project of videos whose keyframes this one shows."""
    owner = services().store.labels.owner_of(label_studio_id)
    return int(owner.split(".")[0]) if owner is not None else None


def _overview(project: Project) -> dict[str, Any]:
    """What the project's page shows."""
    here, store = access.access(), services().store
    counts = dict(_counts(project.uid))
    total, settled = sum(counts.values()), sum(counts.get(state, 0) for state in _SETTLED)
    waiting = sum(counts.get(state, 0) for state in _BEFORE_EMBEDDED)
    pace = here.views.pace(project.uid, _PACE_S) if waiting else 0.0
    held = [state for state in counts if state not in (*_RUNNING, "delivered", "nothing to show yet", "failed")]
    runs = here.views.runs(project.uid, _RUNS)
    companion = store.labels.companion(project.uid)
    return {
        "counts": list(counts.items()),
        "bars": _bars(counts, total),
        "total": total,
        "settled": settled,
        "per_minute": pace * 60,
        "left_s": waiting / pace if pace else 0.0,
        "failed": store.video_status(project.uid, _FAILED, states=("failed",)) if counts.get("failed") else [],
        "failures": counts.get("failed", 0),
        "busy": [
            *store.video_status(project.uid, _BUSY, states=_RUNNING),
            *(store.video_status(project.uid, _BUSY, states=held, told=True) if held else []),
        ],
        "troubles": store.ledger.troubles(project.uid),
        "coverage": here.views.coverage(project.uid),
        "promise": here.settings.promise,
        "runs": runs,
        "undone": {run.undoes for run in runs if run.undoes is not None},
        "advice": next((run.advice for run in runs if run.advice), ""),
        "companion": companion if companion and companion.uid else None,
        "asked": bool(companion and companion.asked),
        "video_name": wire.video_name,
    }


def _about(project: Project, shown: Tile) -> dict[str, Any]:
    """What the page of a keyframe says beside its picture."""
    store = services().store
    frames = store.keyframes([shown.video_id])[shown.video_id]
    place = next((n for n, frame in enumerate(frames) if frame.id == shown.id), 0)
    beside = frames[max(0, place - _AROUND) : place + _AROUND + 1]
    frame = frames[place] if frames else None
    known = {tile.id: tile for tile in tiles(project, [*shown.nearest[:_REASONS], *(frame.id for frame in beside)])}
    companion = store.labels.companion(project.uid)
    row = store.edits.tasks(project.uid, [shown.id]).get(shown.id)
    task = row.task if row and companion and companion.uid else None
    return {
        "reasons": [known[keyframe] for keyframe in shown.nearest[:_REASONS] if keyframe in known],
        "around": [known[frame.id] for frame in beside if frame.id in known],
        "frames": (frame.first_frame, frame.last_frame, frame.first_s, frame.last_s) if frame else None,
        "label_task": (companion.label_studio_id, task) if companion and task else None,
        "endpoints": current_app.view_functions,
        **choices_of(project),
    }


def _counts(uid: str) -> list[tuple[str, int]]:
    """Videos by state, in the order of the states."""
    return sorted(services().store.video_counts(uid).items(), key=lambda item: _place(item[0]))


def _place(state: str) -> int:
    return _ORDER.index(state) if state in _ORDER else len(_ORDER)


def _bars(counts: dict[str, int], total: int) -> list[tuple[str, float, float]]:
    """(state, start, width) of the progress bar's parts, in percent."""
    bars, start = [], 0.0
    for state in sorted(counts, key=lambda state: (state == "failed", -_place(state))):
        width = 100 * counts[state] / total
        bars.append((state, start, width))
        start += width
    return bars


def project_of(label_studio_id: int) -> Project:
    """The project, if the person may see it; 404 if not. For views whose template extends layout.html."""
    found = services().store.project(access.require_project(label_studio_id))
    if found is None:
        abort(404, f"project {label_studio_id} was deleted a moment ago")
    g.project = found  # for the page of an error
    return found


def tiles(project: Project, ids: Sequence[int]) -> list[Tile]:
    """These keyframes for the macro `tile`, in this order; those that are gone or another project's are left out."""
    return access.access().views.tiles(project, ids, services().clusterings.get(project.uid))


def choices_of(project: Project) -> dict[str, Any]:
    """What a page needs to let people label: the categories with their colours, and whether they may."""
    store = services().store
    known = store.labels.companion(project.uid)
    try:
        config = known.config if known is not None and known.uid else parse_label_config(project.label_config)
        categories = categories_of(config)
    except LabelConfigError:
        categories = ()
    may = bool(known is not None and known.uid and access.person().label_studio_token)
    return {"categories": categories, "colours": category_colours(project.label_config), "may_label": may}


def numbers(texts: Sequence[str]) -> list[int]:
    """Those that are ids."""
    return [int(text) for text in texts if text.isdecimal() and len(text) < 18]


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
    page = render_template("error.html", code=code, heading=heading, message=sentence, project=g.get("project"))
    return make_response(page, code)


# --- for templates ---


def asset(name: str) -> str:
    return url_for("pages.static", filename=name)


def thumbnail(tile: Tile) -> str:
    return url_for("pages.thumbnail", keyframe=tile.id, v=tile.version)


def picture(tile: Tile) -> str:
    return url_for("pages.picture", keyframe=tile.id, v=tile.version)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def lasting(seconds: float) -> str:
    """How long, roughly."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {name}"
    return "a minute"


def percent(share: float) -> str:
    """Never 100 % for less than all, and never 0 % for something."""
    rounded = round(share * 100)
    if rounded >= 100 and share < 1:
        return "> 99 %"
    if rounded <= 0 and share > 0:
        return "< 1 %"
    return f"{rounded} %"
