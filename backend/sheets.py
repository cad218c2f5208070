"""The pages of clusters and categories: contact sheets that people look through and act on.

What somebody does is kept as an edit (`lookalike.edits`), can be undone as a whole, and is seen by everybody at once. A
category given here is an annotation at Label Studio, by the account of whoever gives it (`backend.labelling`).

A page reads what it shows, and the numbers that stand for the project as a whole are put together once for each change.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from flask import Blueprint, abort, jsonify, render_template, request, url_for
from flask.typing import ResponseReturnValue
from numpy.typing import NDArray

from backend import access, labelling, pages
from backend.boards import Board, Boards
from backend.groups import Groups, preview
from lookalike import edits
from lookalike.edits import Edit
from lookalike.errors import RequestError
from lookalike.finder import MOST, Wanted
from lookalike.grouping import Numbers, divide, middles, unit
from lookalike.ledger import Kind
from lookalike.records import cluster_name, split_keyframe_id
from lookalike.store import Project
from lookalike.views import Tile

#: clusters on a page, and members of each that are shown beside its centroid
_CLUSTERS = 20
_BESIDE = 24
#: tiles that come at a time; the next ones when they come into sight
_TILES = 120
#: keyframes that one request names at most
_MOST = 20_000
#: … to search on with: the vectors of each are held in memory, 5 kB
_MOST_EXAMPLES = 2_000
_LONGEST_NAME = 80
_ORDERS = {"size": "largest first", "open": "most to do first", "mixed": "least pure first"}


def blueprint() -> Blueprint:
    """GET …/clusters, …/clusters/<number>, …/categories, …/category, and what their scripts ask for.

    POST …/edits, …/labels, …/rejections, …/proposals and …/undo change something; …/ranking does not.
    """
    routes = Blueprint("sheets", __name__, url_prefix="/projects/<int:label_studio_id>", template_folder="templates")
    boards = Boards()

    @routes.get("/clusters")
    def clusters(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        board = boards.get(pages.services(), project.uid)
        order, junk = request.args.get("by", "size"), request.args.get("junk") == "1"
        if order not in _ORDERS:
            raise RequestError(f"by must be one of {', '.join(_ORDERS)}, got {order!r}")
        first = max(0, request.args.get("from", 0, int))
        cards = board.cards(order, junk=junk) if board else []
        some = cards[first : first + _CLUSTERS]
        shown: dict[int, list[int]] = {}
        for card in some:
            assert board is not None
            centroid = int(board.grouped.centroids[card.number])
            beside = [keyframe for keyframe in board.members(card.number) if keyframe != centroid][:_BESIDE]
            shown[card.number] = [centroid, *beside]
        tiles = {tile.id: tile for tile in _tiles(project, board, [k for ids in shown.values() for k in ids])}
        listed = [(card, [tiles[k] for k in shown[card.number] if k in tiles]) for card in some]
        return render_template(
            "clusters.html",
            project=project,
            listed=listed,
            order=order,
            orders=_ORDERS,
            junk=junk,
            junk_count=len(board.grouped.junk) if board else 0,
            total=len(cards),
            first=first,
            size=_CLUSTERS,
            loose=board.card(-1) if board else None,
            groups=_groups(project, board) if board else None,
            alive=len(board.alive) if board else 0,
            **pages.choices_of(project),
        )

    @routes.get("/clusters/<int(signed=True):number>")
    def cluster(label_studio_id: int, number: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        board = _board(boards, project)
        ids = board.members(number)
        if not ids:
            named = f"cluster {cluster_name(number)} any more" if number >= 0 else "keyframe that is like nothing else"
            abort(404, f"there is no {named}; see the clusters that there are under Clusters")
        after = max(0, request.args.get("after", 0, int))
        some = ids[after : after + _TILES]
        more = url_for(".cluster", label_studio_id=label_studio_id, number=number, after=after + _TILES)
        listed = {
            "listed": [(tile, f"{tile.similarity:.2f}") for tile in _tiles(project, board, some)],
            "more": more if len(ids) > after + _TILES else "",
            "of_cluster": True,
        }
        if "X-Fragment" in request.headers:
            return render_template("sheet.html", **listed)
        card = board.card(number)
        others = [other for other in board.cards("size", junk=False) if other.number != number]
        guess = (board.labelled.get(number) or board.proposed.get(number) or Counter()).most_common(4)
        return render_template(
            "cluster.html",
            project=project,
            card=card,
            others=others,
            guess=guess,
            **listed,
            **pages.choices_of(project),
        )

    @routes.get("/clusters/groups")
    def groups(label_studio_id: int) -> ResponseReturnValue:
        """Whether the workers are still to make another number of groups; of a tree, what cutting it into k gives."""
        project = pages.project_of(label_studio_id)
        found = _groups(project, _board(boards, project))
        answer: dict[str, Any] = {"waiting": found.waiting, "groups": found.k}
        if found.is_tree and (k := request.args.get("k", 0, int)) > 0:
            fit = pages.services().store.fit(project.uid, _model(project))
            answer["preview"] = preview(fit.tree, k) if fit and fit.tree else None
        return jsonify(answer)

    @routes.get("/clusters/<int(signed=True):number>/keyframes")
    def keyframes(label_studio_id: int, number: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        return jsonify(keyframes=_board(boards, project).members(number))

    @routes.get("/categories")
    def categories(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        counts = pages.services().store.edits.counts(project.uid)
        choices = pages.choices_of(project)
        used = [category for category in counts if category not in choices["categories"]]
        listed = [(category, counts.get(category, edits.Counts())) for category in (*choices["categories"], *used)]
        return render_template("categories.html", project=project, listed=listed, **choices)

    @routes.get("/category")
    def category(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        name = request.args.get("name", "")
        what, order = request.args.get("show", "guessed"), request.args.get("by", "surest")
        if what not in ("guessed", "labelled") or order not in ("surest", "unsure"):
            raise RequestError("show must be guessed or labelled, and by surest or unsure")
        choices, store = pages.choices_of(project), pages.services().store
        counts = store.edits.counts(project.uid).get(name)
        if name not in choices["categories"] and counts is None:
            abort(404, f"there is no category {name!r} in this project")
        after = max(0, request.args.get("after", 0, int))
        if what == "labelled":
            ids = store.edits.labelled(project.uid, name, first=after, count=_TILES + 1)
        else:
            ids = store.edits.guessed(project.uid, name, surest=order == "surest", first=after, count=_TILES + 1)
        more = url_for(
            ".category", label_studio_id=label_studio_id, name=name, show=what, by=order, after=after + _TILES
        )
        listed = {
            "listed": [(tile, "") for tile in _tiles(project, boards.get(pages.services(), project.uid), ids[:_TILES])],
            "more": more if len(ids) > _TILES else "",
        }
        if "X-Fragment" in request.headers:
            return render_template("sheet.html", **listed)
        counts = counts or edits.Counts()
        return render_template(
            "category.html", project=project, name=name, show=what, by=order, counts=counts, **listed, **choices
        )

    @routes.post("/edits")
    def edit(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        body = _body()
        board = _board(boards, project)
        kinds = {
            **{"name": _name, "junk": _junk, "keep": _junk, "exclude": _exclude, "split": _split, "merge": _merge},
            "group": _group,
        }
        if (kind := _text(body, "kind")) not in kinds:
            raise RequestError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
        answer = kinds[kind](project, board, body)
        _ask(project, "cluster")
        return jsonify(answer)

    @routes.post("/labels")
    def labels(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        body, store, who = _body(), pages.services().store, access.person()
        place = labelling.place_of(store.labels.companion(project.uid))
        studio, chosen, given = access.studio(), _keyframes(body), _text(body, "category")
        number = _optional(body, "edit")
        known = store.edits.edit(project.uid, number) if number is not None else None
        if number is not None and (
            known is None or (known.kind, known.text, known.person) != ("label", given, who.name)
        ):
            raise RequestError(f"edit {number} is not yours, or is about something else")
        number = known.id if known else store.edits.add(project.uid, "label", who.name, text=given)
        try:
            outcome = labelling.label(studio, store, place, number, given, chosen)
        finally:  # an edit that wrote nothing, refused or not, is none to undo
            store.edits.put_undone(number, not store.edits.written(number, 1))
        if outcome.done:
            _ask(project, "propagate")
        return jsonify(
            edit=number,
            done=outcome.done,
            skipped=outcome.skipped,
            failed=[{"keyframe": keyframe, "reason": reason} for keyframe, reason in outcome.failed.items()],
        )

    @routes.post("/rejections")
    def rejections(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        body, store, who = _body(), pages.services().store, access.person()
        wrong: dict[str, list[int]] = defaultdict(list)
        for keyframe, guess in store.edits.proposals_of(project.uid, _keyframes(body)):
            if body.get("category") in (None, "", guess):
                wrong[guess].append(keyframe)
        number, now = None, time.time()  # of all categories at once: they are undone as one
        for guess, ids in wrong.items():
            number = store.edits.add(project.uid, "reject", who.name, text=guess, chosen=ids, at=now)
        with store.labels.begin(project.uid) as connection:
            pairs = [(keyframe, guess) for guess, ids in wrong.items() for keyframe in ids]
            store.labels.withdraw(connection, project.uid, pairs)
        if wrong:
            _ask(project, "propagate")
        return jsonify(edit=number, done=sum(map(len, wrong.values())))

    @routes.post("/proposals")
    def proposals(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        body, store = _body(), pages.services().store
        category, known = _text(body, "category"), pages.choices_of(project)["categories"]
        if category not in known:
            raise RequestError(f"{category!r} is not a category of this project; it has {', '.join(known)}")
        leaders = sorted({row.leader for row in store.edits.tasks(project.uid, _keyframes(body)).values()})
        made = _add(project, "propose", text=category, chosen=leaders)
        _ask(project, "propagate")
        return jsonify(edit=made, done=len(leaders))

    @routes.post("/undo")
    def undo(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        store, who = pages.services().store, access.person()
        number = _optional(_body(), "edit")
        found = (
            store.edits.edit(project.uid, number) if number is not None else store.edits.to_undo(project.uid, who.name)
        )
        if found is None or found.undone:
            return jsonify(edit=None, remaining=0, message="There is nothing of yours to undo.")
        if found.person != who.name:
            raise RequestError(f"this was done by {found.person}, who may undo it")
        return jsonify(edit=found.id, **_undo(project, found))

    @routes.post("/ranking")
    def ranking(label_studio_id: int) -> ResponseReturnValue:
        """What nobody has labelled, most like a category first; only asks, and is a POST for the examples' sake."""
        project = pages.project_of(label_studio_id)
        body, here = _body(), pages.services()
        name, board = _text(body, "category"), _board(boards, project)
        known = here.store.edits.counts(project.uid).get(name, edits.Counts()).labelled
        like = _keyframes(body, "like", none=True, most=_MOST_EXAMPLES)
        if not (known or like):
            raise RequestError(f"nobody has labelled a keyframe {name} yet; label some first")
        wanted = Wanted(
            _optional(body, "top") or MOST,
            name if known else "",
            tuple(like),
            tuple(_keyframes(body, "unlike", none=True, most=_MOST_EXAMPLES)),
            clusters=tuple(sorted(set(range(-1, len(board.grouped.centroids))) - board.grouped.junk)),
            labelled=False,
        )
        hits = here.finder.find(project.uid, wanted).hits
        wrong = here.store.edits.rejected(project.uid, name, [hit.keyframe for hit in hits])
        kept = [hit for hit in hits if hit.keyframe not in wrong]
        return jsonify(keyframes=[hit.keyframe for hit in kept], similarity=[round(hit.similarity, 3) for hit in kept])

    @routes.get("/tiles")
    def tiles(label_studio_id: int) -> ResponseReturnValue:
        project = pages.project_of(label_studio_id)
        board, ids = boards.get(pages.services(), project.uid), pages.numbers(request.args.get("ids", "").split(","))
        listed = [(tile, "") for tile in _tiles(project, board, ids[:_TILES])]
        return render_template("sheet.html", listed=listed, more="")

    return routes


# --- edits of clusters ---


def _name(project: Project, board: Board, body: dict[str, Any]) -> dict[str, Any]:
    number, text = _number(board, body), " ".join(_text(body, "text", empty=True).split())
    if len(text) > _LONGEST_NAME:
        raise RequestError(f"a cluster's name has at most {_LONGEST_NAME} characters, got {len(text)}")
    if not text.isprintable():  # PostgreSQL takes no NUL, and what turns the writing round makes one name look another
        raise RequestError(f"a cluster's name has visible characters only, got {text!r}")
    made = _add(project, "name", text=text, cluster=edits.known_by(board.grouped, number))
    return {"edit": made, "message": f"{cluster_name(number)} is called {text}" if text else "The name is gone"}


def _junk(project: Project, board: Board, body: dict[str, Any]) -> dict[str, Any]:
    number = _number(board, body)
    made = _add(project, body["kind"], cluster=edits.known_by(board.grouped, number))
    said = "is junk: not shown on timelines, not offered" if body["kind"] == "junk" else "is no junk any more"
    return {"edit": made, "message": f"{board.card(number).title} {said}"}


def _exclude(project: Project, board: Board, body: dict[str, Any]) -> dict[str, Any]:
    number = _number(board, body)
    chosen, rest = _part(board, number, _keyframes(body), "mark it as junk, or rename it, instead")
    made = _add(project, "exclude", chosen=chosen, cluster=rest)
    return {"edit": made, "message": f"{_many(chosen)} taken out of {board.card(number).title}"}


def _split(project: Project, board: Board, body: dict[str, Any]) -> dict[str, Any]:
    """The selected members become a cluster of their own; with none selected, the smaller of two parts: the branches of
    the tree where there is one, else what 2-means finds."""
    number, store = _number(board, body), pages.services().store
    members, model = board.members(number), _model(project)
    wanted = _keyframes(body) if body.get("keyframes") else members
    vectors = _vectors(model, wanted)
    if not body.get("keyframes"):
        known = [keyframe for keyframe in members if keyframe in vectors]
        half = _halves(project, model, known, np.stack([vectors[k] for k in known])) if known else np.zeros(0, bool)
        wanted = [keyframe for keyframe, smaller in zip(known, half, strict=True) if smaller]
        if not wanted:
            raise RequestError("the members of this cluster look all the same; select those that you want apart")
    chosen, rest = _part(board, number, wanted, "it is a cluster already")
    middle = unit(np.sum([vectors[k] for k in chosen if k in vectors], axis=0, keepdims=True))[0]
    near = {k: max(0.0, float(vectors[k] @ middle)) if k in vectors else 0.0 for k in chosen}
    new = max(len(board.grouped.centroids), store.edits.numbers(project.uid))
    made = _add(project, "split", number=new, chosen=near, cluster=rest)
    said = f"{_many(chosen)} split off as {cluster_name(new)}"
    return {"edit": made, "number": new, "message": said, "keyframes": chosen}


def _merge(project: Project, board: Board, body: dict[str, Any]) -> dict[str, Any]:
    number, other = _number(board, body), _number(board, body, "other")
    if number == other:
        raise RequestError("a cluster cannot be merged into itself; choose another one")
    made = _add(
        project,
        "merge",
        cluster=edits.known_by(board.grouped, number),
        other=edits.known_by(board.grouped, other),
    )
    return {
        "edit": made,
        "message": f"{board.card(other).title} is part of {board.card(number).title} now",
        "address": url_for(".cluster", label_studio_id=project.label_studio_id, number=number),
    }


def _group(project: Project, board: Board, body: dict[str, Any]) -> dict[str, Any]:
    """Another number of groups, or the one that would be without anybody's choice; the workers make them."""
    k, now = _optional(body, "groups"), _groups(project, board)
    if not now.most:
        raise RequestError("HDBSCAN finds the number of groups itself; choose another LOOKALIKE_CLUSTERING")
    if k is not None and k > now.most:
        raise RequestError(f"groups must be between 1 and {now.most}, got {k}")
    if str(k or "") == (now.asked.text if now.asked else ""):
        raise RequestError(f"{f'{k} groups are' if k else 'The proposed number is'} what was asked for last")
    made = _add(project, "group", text=str(k or ""))
    said = f"into {k}" if k else "without anybody's choice"
    return {"edit": made, "message": f"The workers group all keyframes {said}; this page follows"}


def _undo(project: Project, edit: Edit) -> dict[str, Any]:
    store = pages.services().store
    if edit.kind == "label":
        place = labelling.place_of(store.labels.companion(project.uid))
        taken = labelling.take_back(access.studio(), store, place, edit)
        _ask(project, "propagate")
        if not taken.remaining:
            store.edits.put_undone(edit.id)
        left = f"; {taken.left_alone} were changed since and stay" if taken.left_alone else ""
        said = f"{taken.done} annotation{'s' * (taken.done != 1)} {edit.text} taken back{left}"
        return {"kind": "label", "done": taken.done, "remaining": taken.remaining, "message": said}
    made = store.edits.together(project.uid, edit)
    with store.edits.begin() as connection:
        for one in made:
            if one.kind == "reject":
                store.labels.allow(connection, [(keyframe, one.text) for keyframe in one.chosen.tolist()])
            store.edits.put_undone(one.id, connection=connection)
    _ask(project, "propagate" if edit.kind in ("reject", "propose") else "cluster")
    return {
        "kind": edit.kind,
        "done": 1,
        "remaining": 0,
        "message": f"Undone: {edit.kind} {', '.join(one.text for one in made)}".strip(),
    }


# --- steps ---


def _board(boards: Boards, project: Project) -> Board:
    board = boards.get(pages.services(), project.uid)
    if board is None:
        abort(404, "this project has no clusters yet; they come with its first videos")
    return board


def _model(project: Project) -> str:
    return pages.services().finder.model_of(project.uid)


def _groups(project: Project, board: Board) -> Groups:
    here = pages.services()
    fit = here.store.fit(project.uid, _model(project), with_tree=False)
    return Groups.of(here.settings, fit, here.store.edits.grouping(project.uid), len(board.grouped.keyframe_ids))


def _halves(project: Project, model: str, keyframes: Sequence[int], vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n,): the smaller of two parts; empty where all are equal."""
    fit = pages.services().store.fit(project.uid, model)
    parts: Numbers = np.full(len(keyframes), -1, np.int64)
    if fit and fit.tree:
        parts = divide(fit.tree, np.asarray(keyframes, np.int64))
    if parts.max() < 1:
        return edits.halves(vectors)
    younger = parts < 0  # than the tree: to the part that is nearer
    parts[younger] = (vectors[younger] @ middles(vectors[~younger], parts[~younger], 2).T).argmax(axis=1)
    return np.asarray(parts == (2 * (parts == 1).sum() <= len(parts)))


def _tiles(project: Project, board: Board | None, ids: Sequence[int]) -> list[Tile]:
    return access.access().views.tiles(project, ids, board.grouped if board else None)


def _vectors(model: str, keyframes: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """Vectors (d,) of length 1 by keyframe: the store's rows of their videos are read, and no others."""
    wanted = set(keyframes)
    videos = sorted({split_keyframe_id(keyframe)[0] for keyframe in wanted})
    found = {}
    for _, ids, matrix in pages.services().store.questions.vectors(model, videos):
        rows = [row for row, keyframe in enumerate(ids.tolist()) if keyframe in wanted]
        for row, vector in zip(rows, unit(matrix[rows].astype(np.float32)), strict=True):
            found[int(ids[row])] = vector
    return found


def _part(board: Board, number: int, wanted: Sequence[int], instead: str) -> tuple[list[int], list[int]]:
    """(those of the wanted that are members, by which the rest is known again)."""
    members = set(board.members(number))
    chosen = [keyframe for keyframe in wanted if keyframe in members]
    if not chosen:
        raise RequestError(f"select members of {board.card(number).title} first")
    if len(chosen) == len(members):
        raise RequestError(f"these are all members of {board.card(number).title}; {instead}")
    return chosen, edits.known_by(board.grouped, number, chosen)


def _add(project: Project, kind: edits.Kind, **what: Any) -> int:
    return pages.services().store.edits.add(project.uid, kind, access.person().name, **what)


def _ask(project: Project, kind: Kind) -> None:
    """Have the workers follow; what is shown here does not wait for them."""
    here = pages.services()
    here.store.want(kind, project.uid)
    here.kick()


def _many(keyframes: Sequence[int]) -> str:
    return f"{len(keyframes)} keyframe{'s' * (len(keyframes) != 1)}"


# --- what scripts send ---


def _body() -> dict[str, Any]:
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _keyframes(body: dict[str, Any], key: str = "keyframes", *, none: bool = False, most: int = _MOST) -> list[int]:
    ids = body.get(key)
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 53 for i in ids):
        raise RequestError(f"{key} must be a list of keyframe ids")
    if not (none or ids) or len(ids) > most:
        raise RequestError(f"{key} must name 1 to {most} keyframes at a time, got {len(ids)}")
    return list(dict.fromkeys(ids))


def _number(board: Board, body: dict[str, Any], key: str = "number") -> int:
    number = body.get(key)
    if type(number) is not int or number < 0 or not board.members(number):
        raise RequestError(f"{key} must be that of a cluster that there is, got {number!r}")
    return number


def _optional(body: dict[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is not None and (type(value) is not int or not 0 < value < 1 << 53):
        raise RequestError(f"{key} must be a number, got {value!r}")
    return value


def _text(body: dict[str, Any], key: str, *, empty: bool = False) -> str:
    text = body.get(key)
    if not isinstance(text, str) or not (text or empty):
        raise RequestError(f"{key} must be text, got {text!r}")
    return text
