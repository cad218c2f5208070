"""Label Studio's wire format: what it sends us, what we send it, as pure functions without I/O.

The only place where frames are counted as Label Studio counts them: from 1, both ends included, at the rate that the
Video tag claims (24 frames/s unless it says otherwise), never at the file's own rate.

Frame N is shown from (N - 1) / fps seconds on, so the frame at t seconds is floor(t * fps) + 1.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree.ElementTree import Element, ParseError, SubElement, indent, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from lookalike.errors import LabelConfigError, RequestError
from lookalike.records import Json, LabelConfig, Segment

#: the label that marks a segment as a cluster that nobody has named yet. A label in another language is recognised by
#: `alias="Cluster (unnamed)"`: that is the name which Label Studio stores.
RESERVED_CATEGORY = "Cluster (unnamed)"

#: what the version of each of our predictions begins with, whatever the embedder
MODEL_FAMILY = "lookalike-"
#: what we put into the data of people's own tasks begins with this
OUR_FIELDS = "lookalike_"

#: the Choices of the configuration that we give to a project of keyframes; people may put others beside it
KEYFRAME_CHOICES = "category"

#: Label Studio's own default, used wherever the Video tag says nothing that JavaScript reads as a number
DEFAULT_FRAME_RATE = Fraction(24)

_MAX_CONFIG_CHARS = 1_000_000
#: Matroska rounds times to a millisecond, so a frame may seem to start half of one too early; and a bit, for ties
_CLOCK_S = Fraction(6, 10_000)
#: (control, object) that we can fill, the best first
_SHAPES = (("TimelineLabels", "Video"), ("Choices", "Video"), ("Choices", "Image"))
_CHILD = {"TimelineLabels": "label", "Choices": "choice"}
_MAX_ID = 2**63 - 1


class TimedLabel(NamedTuple):
    """What a person said about a stretch of video: it covers the times t with first_s <= t < last_s."""

    first_s: float
    last_s: float  # end of the last frame, not included
    category: str
    key: str | None  # the key of the segment that it was made from, if it was made from one


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task as Label Studio names it in any of its payloads."""

    id: int
    project_id: int | None = None
    project_uid: str | None = None  # "<id>.<created_at>"
    data: Json = field(default_factory=dict)
    created_at: str | None = None
    updated_at: str | None = None


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Body of POST /predict."""

    tasks: tuple[TaskRef, ...]  # in the order in which the answers must come
    project_uid: str | None
    label_config: str
    context: Json  # what an interactive annotation sends along; {} otherwise


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """Body of POST /setup, without its access token: that is of the kind which Label Studio refuses by default."""

    project_uid: str | None
    label_config: str
    hostname: str
    extra_params: Json


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """Body of POST /webhook, the singular and the bulk events in one form."""

    action: str
    project_id: int | None
    project_uid: str | None
    label_config: str | None
    tasks: tuple[TaskRef, ...]
    annotations: tuple[Json, ...]  # each with a whole-number "id"; deleted ones have nothing else

    @property
    def task_ids(self) -> tuple[int, ...]:
        """Every task that the event is about, named as a task or by an annotation."""
        ids = [task.id for task in self.tasks]
        ids += [a["task"] for a in self.annotations if _is_id(a.get("task"))]
        return tuple(dict.fromkeys(ids))

    @property
    def annotation_ids(self) -> tuple[int, ...]:
        return tuple(annotation["id"] for annotation in self.annotations)


# --- labeling configuration ---


@functools.lru_cache(64)
def parse_label_config(xml: str, preferred: str = "") -> LabelConfig:
    """The control that we fill: TimelineLabels on a Video, else Choices on a Video, else Choices on an Image.

    Of several of a kind it is the one whose name is `preferred`, else the first. Tags and attributes are read in any
    case, as Label Studio's editor does. Categories are the names that Label Studio stores: `alias` where there is one.
    Raises LabelConfigError with a sentence that names what is missing.
    """
    if len(xml) > _MAX_CONFIG_CHARS:
        raise LabelConfigError(
            f"the labeling configuration must be at most {_MAX_CONFIG_CHARS} characters long, got {len(xml)}"
        )
    try:
        root = fromstring(xml, forbid_dtd=True)
    except (DefusedXmlException, ParseError, ValueError) as error:
        raise LabelConfigError(f"the labeling configuration is not XML that we can read: {error}; mend it") from None

    objects = {_attributes(e).get("name", ""): e for e in root.iter() if _tag(e) in ("video", "image")}
    problems = []
    for control_tag, object_tag in _SHAPES:
        controls = [element for element in root.iter() if _tag(element) == control_tag.lower()]
        for control in sorted(controls, key=lambda control: _attributes(control).get("name") != preferred):
            found, problem = _read_control(control, control_tag, object_tag, objects)
            if found is not None:
                return found
            problems.append(problem)
    wanted = ", ".join(f"{control} on {thing}" for control, thing in _SHAPES)
    why = f" ({'; '.join(dict.fromkeys(filter(None, problems)))})" if any(problems) else ""
    raise LabelConfigError(f"the labeling configuration has no control that we can fill{why}; add one of: {wanted}")


def category_colours(xml: str) -> dict[str, str]:
    """The colours that labels have in a labeling configuration, by category; {} for one that we cannot read."""
    try:
        root = fromstring(xml, forbid_dtd=True)
    except (DefusedXmlException, ParseError, ValueError):
        return {}
    children = [_attributes(child) for child in root.iter() if _tag(child) in _CHILD.values()]
    return {c.get("alias") or c.get("value", ""): c["background"] for c in children if c.get("background")}


def with_choices(xml: str, name: str, categories: Sequence[str], colours: Mapping[str, str], *, multiple: bool) -> str:
    """A labeling configuration that we can read, whose Choices of this name has these; all else in it stays, and so do
    the hotkeys and what else those have that were there."""
    root = fromstring(xml, forbid_dtd=True)
    control = next(e for e in root.iter() if _tag(e) == "choices" and _attributes(e).get("name") == name)
    had = {_category(child): child.attrib for child in control.iter() if _tag(child) == "choice"}
    for child in list(control):
        control.remove(child)
    control.set("choice", "multiple" if multiple else "single")
    for category in categories:
        choice = SubElement(control, "Choice", had.get(category, {"value": category}))
        if category in colours:
            choice.set("style", f"border-left: 4px solid {colours[category]}")
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def frame_rate_of(config: LabelConfig, task_data: Mapping[str, Any]) -> Fraction:
    """Frames per second at which Label Studio counts this task's frames.

    A number, or "$field" of the task's data; below 1 it is the length of a frame in seconds; 24 for anything else.
    """
    value: Any = config.frame_rate
    if isinstance(value, str) and value.startswith("$"):
        value = task_data.get(value[1:])
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return DEFAULT_FRAME_RATE
    try:
        rate = float(value)
    except (ValueError, OverflowError):
        return DEFAULT_FRAME_RATE
    if not math.isfinite(rate) or not 1e-6 <= rate <= 1e6:
        return DEFAULT_FRAME_RATE
    exact = Fraction(rate).limit_denominator(1_000_000)
    return 1 / exact if exact < 1 else exact


def project_uid(project_id: int, created_at: str) -> str:
    """`<id>.<seconds since 1970>`: project ids are used again after a project is deleted, this is not.

    The same string as in /predict and /setup, from the `created_at` that webhooks and the REST API give.
    """
    try:
        seconds = int(datetime.fromisoformat(created_at).timestamp())
    except (ValueError, OverflowError):
        raise RequestError(f"created_at must be a time such as 2026-11-23T07:13:48Z, got {_show(created_at)}") from None
    return f"{project_id}.{seconds}"


@functools.lru_cache(4096)
def video_name(url: str) -> str:
    """What people call a video: the last part of its address, without the digits that Label Studio puts before it."""
    parts = urlsplit(url)
    path = parse_qs(parts.query).get("d", [parts.path])[0]
    name = PurePosixPath(unquote(path)).name or url
    head, dash, tail = name.partition("-")
    upload = dash and len(head) == 8 and all(c in "0123456789abcdef" for c in head)
    return tail if upload and tail else name


# --- predictions ---


def frame_at(time_s: float, fps: Fraction) -> int:
    """Label Studio's number of the frame that is shown at a time: 1-based, not clamped."""
    return math.floor((Fraction(time_s) + _clock(fps)) * fps) + 1


def frame_count(duration_s: float, fps: Fraction) -> int:
    """How many frames Label Studio counts in a video: ceil(duration * fps), at least 1."""
    return max(1, math.ceil((Fraction(duration_s) - _clock(fps)) * fps))


def timeline_result(config: LabelConfig, segments: Sequence[Segment], fps: Fraction, duration_s: float) -> list[Json]:
    """Regions of a TimelineLabels control, one per segment, in order of time.

    Segments must not overlap. Neighbours stay neighbours: where one begins on the frame after another's last, the
    other ends on the frame before. Frames lie in 1..ceil(duration_s * fps); a segment shorter than a frame of Label
    Studio's still gets one, pushed to the next free one if need be; one for which none is left is dropped.
    """
    _check_categories(config, [s.category for s in segments])
    total = frame_count(duration_s, fps)
    ordered = sorted(segments, key=lambda s: s.first_frame)
    spans: list[tuple[int, int]] = []
    free = 1
    for number, segment in enumerate(ordered):
        start = max(frame_at(segment.first_s, fps), free)
        end = _end_frame(segment, fps, duration_s)
        if number + 1 < len(ordered):
            following = ordered[number + 1]
            before_next = frame_at(following.first_s, fps) - 1
            adjacent = following.first_frame == segment.last_frame + 1
            end = before_next if adjacent else min(end, before_next)
        end = min(max(end, start), total)
        if start > total:
            break
        spans.append((start, end))
        free = end + 1

    regions = []
    for segment, (start, end) in zip(ordered, spans, strict=False):
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [segment.category]}
        key = segment.key or f"{segment.first_frame}-{segment.last_frame}"
        regions.append(_region(config, key, "timelinelabels", value, segment.score, segment.note))
    if len({region["id"] for region in regions}) != len(regions):
        raise ValueError("the keys of a video's segments must differ: Label Studio's editor breaks on equal region ids")
    return regions


def choices_result(
    config: LabelConfig, categories: Sequence[str], *, score: float | None = None, note: str = "", key: str = "choice"
) -> list[Json]:
    """The one region of a Choices control; none for no category."""
    _check_categories(config, categories)
    if len(categories) > 1 and not config.multiple:
        raise ValueError(f"{config.from_name} takes one choice, got {len(categories)}")
    if not categories:
        return []
    return [_region(config, key, "choices", {"choices": list(categories)}, score, note)]


def model_version(embedder: str) -> str:
    """The version that all our predictions carry: one per installation, so that rows do not pile up per version."""
    return MODEL_FAMILY + re.sub(r"[^A-Za-z0-9._-]+", "-", embedder).strip("-")


def prediction(result: Sequence[Json], score: float | None, model_version: str) -> Json:
    """A prediction as /predict answers it and as the REST API takes it. Label Studio answers 400 to a null version."""
    if not model_version:
        raise ValueError("model_version must not be empty")
    return {"result": list(result), "score": _checked_score(score), "model_version": model_version}


# --- annotations ---


def read_annotation(
    config: LabelConfig, annotation: Mapping[str, Any], fps: Fraction = DEFAULT_FRAME_RATE
) -> list[TimedLabel] | list[str]:
    """What a person said: TimedLabels for a timeline, category names for Choices.

    Left out: skipped tasks, other controls' regions, categories that the configuration does not have, and the reserved
    one, since "unnamed" says nothing. The times of a TimedLabel cover exactly the times for which `frame_at` gives a
    frame within the range. Raises RequestError, and nothing else, for a payload that is not an annotation.
    """
    if not isinstance(annotation, Mapping):
        raise RequestError(f"an annotation must be an object, got {_show(annotation)}")
    result = annotation.get("result")
    if result is None or annotation.get("was_cancelled") is True:
        result = []
    if not isinstance(result, list):
        raise RequestError(f"an annotation's result must be a list, got {_show(result)}")
    timeline = config.control_tag == "TimelineLabels"
    labels: list[TimedLabel] = []
    choices: list[str] = []
    for region in result:
        if not isinstance(region, Mapping):
            raise RequestError(f"a region must be an object, got {_show(region)}")
        if region.get("from_name") != config.from_name:
            continue
        value = region.get("value")
        if not isinstance(value, Mapping):
            raise RequestError(f"a region's value must be an object, got {_show(value)}")
        named = _categories_of(config, value.get("timelinelabels" if timeline else "choices"))
        if not timeline:
            choices += named
        elif named:
            key = region.get("id")
            for first_s, last_s in _times_of(value, fps):
                labels += [TimedLabel(first_s, last_s, c, key if isinstance(key, str) else None) for c in named]
    return labels if timeline else list(dict.fromkeys(choices))


# --- requests ---


def parse_task(task: Any) -> TaskRef:
    """A task out of any payload. Only `id` must be there. Raises RequestError."""
    task = _object(task, "a task")
    created_at, updated_at = (_text(task.get(key), f"a task's {key}") or None for key in ("created_at", "updated_at"))
    project = task.get("project")
    return TaskRef(
        id=_id(task.get("id"), "a task's id"),
        project_id=None if project is None else _id(project, "a task's project"),
        data=data_of_others(_object(task.get("data"), "a task's data")),
        created_at=created_at,
        updated_at=updated_at,
    )


def data_of_others(data: Mapping[str, Any]) -> Json:
    """A task's data without what we have put there: else each change of ours would look like an edit by people."""
    return {key: value for key, value in data.items() if not key.startswith(OUR_FIELDS)}


def parse_predict(body: Any) -> PredictRequest:
    """Body of POST /predict, as Label Studio and label-studio-ml's tests send it. Raises RequestError."""
    body = _object(body, "the body")
    uid = _uid(body.get("project"))
    tasks = [parse_task(task) for task in _list(body.get("tasks"), "tasks")]
    return PredictRequest(
        tasks=tuple(_with_uid(task, uid) for task in tasks),
        project_uid=uid,
        label_config=_text(body.get("label_config"), "label_config"),
        context=_object(_object(body.get("params"), "params").get("context"), "params.context"),
    )


def parse_setup(body: Any) -> SetupRequest:
    """Body of POST /setup. `extra_params` is an object, or text out of the form in the user interface."""
    body = _object(body, "the body")
    return SetupRequest(
        project_uid=_uid(body.get("project")),
        label_config=_text(body.get("schema"), "schema"),
        hostname=_text(body.get("hostname"), "hostname"),
        extra_params=_extra_params(body.get("extra_params")),
    )


def parse_webhook(body: Any) -> WebhookEvent:
    """Body of POST /webhook; `task`, `tasks`, `annotation`, `annotations` may each be missing, one object or a list."""
    body = _object(body, "the body")
    action = body.get("action")
    if not isinstance(action, str) or not action:
        raise RequestError(f"a webhook's action must be text such as TASKS_CREATED, got {_show(action)}")
    project = _object(body.get("project"), "a webhook's project")
    project_id = None if project.get("id") is None else _id(project["id"], "a project's id")
    created_at = _text(project.get("created_at"), "a project's created_at")
    uid = project_uid(project_id, created_at) if project_id is not None and created_at else None
    annotations = [_object(a, "an annotation") for k in ("annotation", "annotations") for a in _list(body.get(k), k)]
    for annotation in annotations:
        _id(annotation.get("id"), "an annotation's id")
    tasks = [parse_task(task) for key in ("task", "tasks") for task in _list(body.get(key), key)]
    return WebhookEvent(
        action=action,
        project_id=project_id,
        project_uid=uid,
        label_config=_text(project.get("label_config"), "a project's label_config") or None,
        tasks=tuple(_with_uid(task, uid) for task in tasks),
        annotations=tuple(annotations),
    )


# --- steps: labeling configuration ---


def _tag(element: Element) -> str:
    return element.tag.lower() if isinstance(element.tag, str) else ""  # a comment's tag is a function


def _attributes(element: Element) -> dict[str, str]:
    return {name.lower(): value for name, value in element.attrib.items()}


def _read_control(
    control: Element, control_tag: str, object_tag: str, objects: Mapping[str, Element]
) -> tuple[LabelConfig | None, str]:
    """The configuration of a control, or why it cannot be used for this kind of object ("" if it is for another)."""
    attributes = _attributes(control)
    name, to_names = attributes.get("name", ""), attributes.get("toname", "")
    if not name:
        return None, f"a {control_tag} has no name"
    if not to_names:
        return None, f"{control_tag} {name} has no toName"
    target = next((to for to in to_names.split(",") if to.strip() in objects), None)
    if target is None:
        return None, f"{control_tag} {name} is for {to_names}, which is no Video or Image"
    thing = objects[target.strip()]
    if _tag(thing) != object_tag.lower():
        return None, ""
    if attributes.get("perregion", "").lower() == "true":
        return None, f"{control_tag} {name} is for single regions (perRegion)"
    shown = _attributes(thing)
    if not re.fullmatch(r"\$.+", shown.get("value", "")):
        return None, f'{object_tag} {target.strip()} must take its value from the task, such as value="$video"'
    categories = tuple(_category_names(control, _CHILD[control_tag]))
    if not categories:
        return None, f"{control_tag} {name} has no {_CHILD[control_tag].title()} in it"
    reserved = next((c for c in categories if c.casefold() == RESERVED_CATEGORY.casefold()), None)
    return LabelConfig(
        control_tag=control_tag,
        from_name=name,
        to_name=target.strip(),
        object_tag=object_tag,
        data_key=shown["value"][1:],
        categories=categories,
        reserved=reserved,
        multiple=attributes.get("choice", "").lower() == "multiple",
        frame_rate=shown.get("framerate"),
    ), ""


def _category_names(control: Element, child_tag: str) -> Iterator[str]:
    seen = set()
    for child in control.iter():
        name = _category(child)
        if _tag(child) == child_tag and name and name not in seen:
            seen.add(name)
            yield name


def _category(child: Element) -> str:
    attributes = _attributes(child)
    return attributes.get("alias") or attributes.get("value", "")


# --- steps: predictions and annotations ---


def _clock(fps: Fraction) -> Fraction:
    return min(_CLOCK_S, 1 / (4 * fps))  # never more than a quarter of a frame


def _end_frame(segment: Segment, fps: Fraction, duration_s: float) -> int:
    """The last frame shown before the segment's last frame gives way to the next one."""
    frames = segment.last_frame - segment.first_frame
    length_s = (segment.last_s - segment.first_s) / frames if frames > 0 else 0.0
    end_s = segment.last_s + length_s
    # a video's last frame lasts until its end; half a frame more is no picture of its own
    return frame_count(duration_s if end_s + length_s / 2 > duration_s else end_s, fps)


def _region(config: LabelConfig, key: str, kind: str, value: Json, score: float | None, note: str) -> Json:
    region: Json = {
        "id": key,
        "from_name": config.from_name,
        "to_name": config.to_name,
        "type": kind,
        "value": value,
    }
    if score is not None:
        region["score"] = _checked_score(score)
    if note:
        region["meta"] = {"text": [note]}
    return region


def _check_categories(config: LabelConfig, categories: Sequence[str]) -> None:
    """Label Studio stores any name and then shows a broken region."""
    for category in categories:
        if category not in config.categories:
            raise LabelConfigError(
                f"{category!r} is not in the labeling configuration, which has {', '.join(config.categories)}; "
                "add it there"
            )


def _checked_score(score: float | None) -> float | None:
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"score must be between 0 and 1, got {score}")
    return None if score is None else float(score)


def _categories_of(config: LabelConfig, names: Any) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list):
        raise RequestError(f"a region's labels must be a list, got {_show(names)}")
    return [n for n in names if isinstance(n, str) and n in config.categories and n != config.reserved]


def _times_of(value: Mapping[str, Any], fps: Fraction) -> Iterator[tuple[float, float]]:
    ranges = value.get("ranges")
    if not isinstance(ranges, list):
        raise RequestError(f"a timeline region's ranges must be a list, got {_show(ranges)}")
    for span in ranges:
        if not isinstance(span, Mapping):
            raise RequestError(f"a range must be an object, got {_show(span)}")
        start, end = sorted((_frame(span.get("start")), _frame(span.get("end"))))
        yield max(0.0, float((start - 1) / fps - _clock(fps))), float(end / fps - _clock(fps))


def _frame(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 2**53:
        raise RequestError(f"start and end of a range must be frame numbers of 1 or more, got {_show(value)}")
    return math.floor(value)


# --- steps: requests ---


def _show(value: Any) -> str:
    """Enough of an outsider's value to recognise it."""
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _object(value: Any, what: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be an object, got {_show(value)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if value is None or value == {}:
        return []
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise RequestError(f"{what} must be a list or an object, got {_show(value)}")
    return value


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RequestError(f"{what} must be text, got {_show(value)}")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_ID


def _id(value: Any, what: str) -> int:
    if not _is_id(value):
        raise RequestError(f"{what} must be a whole number of 0 or more, got {_show(value)}")
    return int(value)


def _uid(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", str(value)):
        raise RequestError(f"project must be text such as 2.1795418028, got {_show(value)}")
    return str(value)


def _with_uid(task: TaskRef, uid: str | None) -> TaskRef:
    project_id = task.project_id
    if project_id is None and uid is not None:
        project_id = int(uid.split(".")[0])
    return TaskRef(task.id, project_id, uid, task.data, task.created_at, task.updated_at)


def _extra_params(value: Any) -> Json:
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RequestError(f'extra_params must be JSON such as {{"clusters": 20}}, got {_show(value)}') from None
    return _object(value, "extra_params")
