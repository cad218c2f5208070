"""Similar keyframes for whoever asks over HTTP: requests read, questions put to the workers, results told.

Knows no Flask: the API and Label Studio's /predict both answer with these functions.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from backend.services import Services
from lookalike import wire
from lookalike.errors import LookalikeError, NotYet, RequestError
from lookalike.finder import MOST, Example, Found, Wanted, example_of
from lookalike.questions import Question, QuestionKind
from lookalike.records import Json, LabelConfig, cluster_name, cluster_number, keyframe_id
from lookalike.store import Project
from lookalike.views import Views
from lookalike.wire import PredictRequest, TaskRef

log = logging.getLogger("lookalike.backend")

#: how long a request waits for a worker to make a vector: one with a warm model takes 0.2 s, one that loads it 5 s
_WAIT_S = 3.0
#: … and an annotator who has drawn a region: Label Studio waits 100 s, its editor shows a spinner
_WAIT_FOR_REGION_S = 10.0
_LOOK_EVERY_S = 0.04
#: a photograph of a telephone has 3 to 12 MB
MOST_IMAGE_BYTES = 16_000_000
_MOST_EXAMPLES = 256
_MOST_TEXT = 1000
#: tasks, or clusters, that a search is kept to
_MOST_LISTED = 10_000
#: similar keyframes that an interactive answer lists, unless the context says otherwise
_LISTED = 20

_FIELDS = ("category", "like", "unlike", "text", "top", "tasks", "clusters", "labelled", "fold")


def search(services: Services, project: Project, body: Any) -> Json:
    """The answer to a search, as `backend/openapi.py` describes both.

    Raises RequestError with what is wrong; NotYet where a worker, or the index, takes longer than a few seconds.
    """
    wanted, asked = parse(services, project.uid, body)
    return shown(services, project, services.finder.find(project.uid, wanted), asked)


def parse(services: Services, uid: str, body: Any) -> tuple[Wanted, dict[str, str]]:
    """A request's body as a search, and what was asked of the workers for it: kind by digest.

    Raises RequestError, NotYet as `search`.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    unknown = [name for name in body if name not in _FIELDS]
    if unknown:
        raise RequestError(f"{unknown[0][:50]!r} is no field of a search; the fields are {', '.join(_FIELDS)}")
    until = time.monotonic() + _WAIT_S
    asked: dict[str, str] = {}
    like, examples = _examples(services, uid, body.get("like"), "like", asked, until)
    unlike, counterexamples = _examples(services, uid, body.get("unlike"), "unlike", asked, until)
    words = None
    if (text := _text(body, "text")).strip():
        example = embed(services, uid, "text", text.strip().encode(), until)
        asked[str(example.name)] = "text"
        words = example.vector
    tasks = _list(body, "tasks")
    clusters = _list(body, "clusters")
    wanted = Wanted(
        top=_number(body.get("top", 50), "top", 1, MOST),
        category=_text(body, "category"),
        like=tuple(like),
        unlike=tuple(unlike),
        examples=tuple(examples),
        counterexamples=tuple(counterexamples),
        words=words,
        videos=None if tasks is None else tuple(services.store.questions.videos_of(uid, _ids(tasks, "tasks"))),
        clusters=None if clusters is None else tuple(_cluster(name) for name in clusters),
        labelled=_flag(body, "labelled", None),
        fold=_flag(body, "fold", True) is not False,
    )
    return wanted, asked


def embed(services: Services, uid: str, kind: QuestionKind, content: bytes, until: float) -> Example:
    """The vector of a picture, a region or words, by a worker: at once where it was made before.

    until: on the monotonic clock. Raises NotYet then, and RequestError where there can be none, with the reason.
    """
    if services.finder.model_of(uid) != services.settings.embedder:
        raise NotYet(
            f"the keyframes are still being embedded by {services.settings.embedder}; until then, search by a category "
            "or by keyframes"
        )
    question = services.store.questions.ask(uid, services.settings.embedder, kind, content)
    return example_of(_answered(services, question, until))


def shown(services: Services, project: Project, found: Found, asked: dict[str, str]) -> Json:
    """A result for people and programs."""
    tiles = {
        tile.id: tile for tile in Views(services.store.engine).tiles(project, [h.keyframe for h in found.hits], None)
    }
    results = []
    for hit in found.hits:
        tile = tiles.get(hit.keyframe)
        if tile is None:
            continue  # its video was deleted a moment ago
        nearest = {"example": hit.nearest, "similarity": round(hit.nearest_similarity, 4)}
        results.append(
            {
                "keyframe": hit.keyframe,
                "similarity": round(hit.similarity, 4),
                "task": tile.task,
                "video": tile.video,
                "time_s": round(tile.time_s, 3),
                "thumbnail": f"/thumbnails/{hit.keyframe}.jpg",
                "cluster": cluster_name(hit.cluster),
                "labels": list(hit.categories),
                "proposed": tile.category if tile.state == "proposed" else None,
                "nearest": nearest if hit.nearest is not None else None,
                "duplicates": list(hit.duplicates),
            }
        )
    return {
        "project": project.label_studio_id,
        "results": results,
        "searched": found.searched,
        "examples": found.examples,
        "complete": found.complete,
        "asked": [{"asked": digest, "kind": kind} for digest, kind in asked.items()],
    }


def ask_tab(services: Services, uid: str, body: Any) -> None:
    """Have a tab "Similar to …" made at Label Studio, or brought up to date. Raises RequestError."""
    if not isinstance(body, dict) or set(body) - {"category", "top"}:
        raise RequestError('the body must be {"category": …, "top": …}')
    category = _text(body, "category")
    if category not in {said for known in services.store.questions.labelled(uid).values() for said in known}:
        raise RequestError(f"nobody has labelled a keyframe {category!r} yet; label one first")
    top = _number(body.get("top", 100), "top", 1, MOST)
    with services.turn:
        services.store.questions.ask_tab(uid, category, {"top": top})
    services.kick()


def tabs(services: Services, uid: str) -> Json:
    """The tabs that people asked for, and where they are."""
    companion = services.store.labels.companion(uid)
    url = services.settings.label_studio_url.rstrip("/")
    rows = []
    for tab in services.store.questions.tabs(uid):
        made = companion is not None and tab.tab > 0 and tab.uid == companion.uid
        rows.append(
            {
                "category": tab.category,
                "tasks": len(tab.shown) if made else 0,
                "url": f"{url}/projects/{companion.label_studio_id}/data?tab={tab.tab}" if made and companion else None,
            }
        )
    return {"tabs": rows}


# --- Label Studio's /predict with a context ---


def suggest(services: Services, asked: PredictRequest, tasks: Sequence[TaskRef | None]) -> list[Json | list[Json]]:
    """What to suggest for what a person has just drawn in a task, or what a script asks for by `context`.

    Label Studio sends the region that a smart tool has drawn (`context.result`), takes the choice of the first answer
    at once, and with "Auto-Accept Suggestions" removes the region, of which it tells by an empty result: that asks for
    nothing. The answer is the category of the labelled keyframes that the region, or else the whole picture, is most
    like. Any other context comes from a script, through
    `POST /api/ml/<id>/interactive-annotating`: with `{"category": …}` or `{"event": "find_similar"}` the answer lists
    similar keyframes as well, under `similar`.

    Never raises: an annotator sees what goes wrong as an answer without suggestions, the log says why.
    """
    try:
        return [_suggestion(services, asked, task) for task in tasks]
    except LookalikeError as error:
        log.info("nothing is suggested: %s", error)
        return [wire.prediction([], None, services.model_version) for _ in tasks]


def _suggestion(services: Services, asked: PredictRequest, task: TaskRef | None) -> Json:
    nothing = wire.prediction([], None, services.model_version)
    place = None if asked.context.get("result") == [] else _place_of(services, asked, task)
    if place is None:
        return nothing
    project, keyframe, config = place
    answer = nothing
    if config is not None:
        guess = services.finder.guess(project.uid, _seen(services, project.uid, keyframe, asked.context))
        if guess is not None and guess[0] in config.categories:
            category, score = guess[0], round(guess[1], 3)
            result = wire.choices_result(config, [category], score=score, note=f"looks like {category}")
            answer = wire.prediction(result, score, services.model_version)
    named = asked.context.get("category")
    if isinstance(named, str) or asked.context.get("event") == "find_similar":
        top = asked.context.get("top", _LISTED)
        body = {"top": top, "category": named} if isinstance(named, str) else {"top": top, "like": [keyframe]}
        answer = {**answer, "similar": search(services, project, body)["results"]}
    return answer


def _place_of(
    services: Services, asked: PredictRequest, task: TaskRef | None
) -> tuple[Project, int, LabelConfig | None] | None:
    """The project that we search in, the keyframe that the task shows (a picture's own, or a companion's), and the
    choices there."""
    if task is None or asked.project_uid is None:
        return None
    store = services.store
    uid: str = asked.project_uid
    if "." not in uid:
        uid = next((p.uid for p in reversed(store.projects()) if p.label_studio_id == int(uid)), "")
    owner = store.labels.owner(uid)
    project = store.project(owner or uid)
    if project is None:
        return None
    if owner and owner != uid:
        keyframe = str(task.data.get("keyframe", ""))
        config = _choices_of(asked.label_config, wire.KEYFRAME_CHOICES)
        return (project, int(keyframe), config) if keyframe.isdecimal() and len(keyframe) < 18 else None
    videos, config = store.videos(project.uid, [task.id]), _choices_of(asked.label_config)
    return (
        (project, keyframe_id(videos[0].id, 0), config) if videos and config and config.object_tag == "Image" else None
    )


def _seen(services: Services, uid: str, keyframe: int, context: Json) -> Any:
    """The vector (d,) of what was drawn: of a rectangle, or an ellipse's or a brush's, what lies in it."""
    regions = context.get("result")
    region = regions[-1] if isinstance(regions, list) and regions and isinstance(regions[-1], dict) else {}
    value = region.get("value")
    box = _percent(value) if isinstance(value, dict) else None
    if box is not None:
        try:
            content = _region({"keyframe": keyframe, "box": box})
            return embed(services, uid, "region", content, time.monotonic() + _WAIT_FOR_REGION_S).vector
        except (NotYet, RequestError) as error:
            log.info("the whole picture is looked at instead of a region: %s", error)
    return services.finder.vector(uid, keyframe)


def _percent(value: Json) -> list[float] | None:
    """A region of Label Studio's, in percent, as shares of the picture; None for a point, or something else."""
    sides = [value.get(name) for name in ("x", "y", "width", "height")]
    if not all(_is_number(side) for side in sides):
        return None
    x, y, width, height = (float(side) / 100 for side in sides if side is not None)
    left, top = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    return [left, top, min(width, 1 - left), min(height, 1 - top)]


def _choices_of(xml: str, preferred: str = "") -> LabelConfig | None:
    try:
        config = wire.parse_label_config(xml, preferred)
    except LookalikeError:
        return None
    return config if config.control_tag == "Choices" else None


# --- steps: reading a request ---


def _examples(
    services: Services, uid: str, given: Any, name: str, asked: dict[str, str], until: float
) -> tuple[list[int], list[Example]]:
    """(keyframe ids, examples that a worker made vectors of)"""
    if given is None:
        return [], []
    if not isinstance(given, list) or len(given) > _MOST_EXAMPLES:
        raise RequestError(f"{name} must be a list of at most {_MOST_EXAMPLES} examples")
    keyframes: list[int] = []
    examples: list[Example] = []
    for one in given:
        if isinstance(one, int) and not isinstance(one, bool):
            keyframes += _ids([one], name)
        elif isinstance(one, dict) and set(one) == {"asked"} and isinstance(one["asked"], str):
            question = services.store.questions.asked(uid, services.settings.embedder, one["asked"])
            if question is None:
                raise RequestError(f"{one['asked'][:40]!r} was not asked within the last day; send it anew")
            if question.vector is None and not question.error:
                question = _answered(services, question, until)
            examples.append(example_of(question))
            asked[question.digest] = question.kind
        elif isinstance(one, dict) and set(one) == {"image"}:
            examples.append(embed(services, uid, "image", _image(one["image"]), until))
            asked[str(examples[-1].name)] = "image"
        elif isinstance(one, dict) and set(one) == {"keyframe", "box"}:
            examples.append(embed(services, uid, "region", _region(one), until))
            asked[str(examples[-1].name)] = "region"
        else:
            raise RequestError(
                f'each of {name} must be a keyframe\'s id, {{"keyframe": id, "box": [x, y, width, height]}}, '
                '{"image": base64} or {"asked": …}'
            )
    return keyframes, examples


def _answered(services: Services, question: Question, until: float) -> Question:
    if question.vector is not None:
        return question
    services.kick()
    if not services.waiting_for_answers.acquire(blocking=False):
        raise NotYet("others wait for the workers as well; ask the same again in a moment")
    try:
        while not services.store.questions.is_answered(question.id):
            if time.monotonic() > until:
                raise NotYet("a worker is still reading what you search by; ask the same again in a moment")
            time.sleep(_LOOK_EVERY_S)
    finally:
        services.waiting_for_answers.release()
    found = services.store.questions.question(question.id)
    if found is None:
        raise NotYet("what you search by was forgotten; ask again")
    return found


def _image(text: Any) -> bytes:
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        content = b""
    if not 0 < len(content) <= MOST_IMAGE_BYTES:
        raise RequestError(f"image must be a picture's file in base64, of at most {MOST_IMAGE_BYTES / 1e6:g} MB")
    return content


def _region(one: Json) -> bytes:
    box = one["box"]
    numbers = isinstance(box, list) and len(box) == 4 and all(_is_number(side) for side in box)
    if not numbers or min(box) < 0 or box[0] + box[2] > 1.001 or box[1] + box[3] > 1.001 or not box[2] * box[3] > 0:
        raise RequestError(
            "box must be [x, y, width, height] as shares of the picture, from 0 to 1, from its upper left corner"
        )
    (keyframe,) = _ids([one["keyframe"]], "keyframe")
    return json.dumps({"keyframe": keyframe, "box": [round(float(side), 5) for side in box]}).encode()


def _ids(values: Sequence[Any], name: str) -> list[int]:
    return [_number(value, name, 0, 2**53 - 1) for value in values]


def _number(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:40]!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        raise RequestError(f"{name} must be text of at most {_MOST_TEXT} characters")
    return value


def _list(body: Json, name: str) -> list[Any] | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, list) or len(value) > _MOST_LISTED):
        raise RequestError(f"{name} must be a list of at most {_MOST_LISTED}")
    return value


def _flag(body: Json, name: str, default: bool | None) -> bool | None:
    value = body.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false")
    return value


def _cluster(name: Any) -> int:
    try:
        return cluster_number(str(name))
    except ValueError as error:
        raise RequestError(f"each of clusters must be the name of one: {error}") from None
