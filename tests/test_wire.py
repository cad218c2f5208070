"""Label Studio's wire format: labeling configurations, frames, predictions, annotations, request bodies."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import wire
from lookalike.errors import LabelConfigError, RequestError
from lookalike.records import LabelConfig, Segment
from lookalike.wire import RESERVED_CATEGORY, TaskRef, TimedLabel
from tests.services import LabelStudioServer

CONFIGS = Path(__file__).parent.parent / "label_config"

TIMELINE = LabelConfig(
    control_tag="TimelineLabels",
    from_name="tl",
    to_name="video",
    object_tag="Video",
    data_key="video",
    categories=(RESERVED_CATEGORY, "Car", "Person"),
    reserved=RESERVED_CATEGORY,
    multiple=False,
)
CHOICES = LabelConfig(
    control_tag="Choices",
    from_name="ch",
    to_name="image",
    object_tag="Image",
    data_key="image",
    categories=("Car", "Person", RESERVED_CATEGORY),
    reserved=RESERVED_CATEGORY,
    multiple=False,
)

#: what Label Studio 1.23.2 sent, shortened
TASK = {
    "id": 40,
    "data": {"video": "http://x/a.mp4", "n": 0},
    "meta": {},
    "created_at": "2026-11-23T07:13:49.386710Z",
    "updated_at": "2026-11-23T07:13:49.386745Z",
    "project": 2,
    "annotations": [],
    "predictions": [],
}
PROJECT = {"id": 2, "title": "batch", "label_config": "<View/>", "created_at": "2026-11-23T07:13:48.970312Z"}
ANNOTATION = {
    "id": 3,
    "result": [{"id": "a1", "from_name": "ch", "to_name": "image", "type": "choices", "value": {"choices": ["Car"]}}],
    "was_cancelled": False,
    "task": 1240,
    "project": 2,
    "parent_prediction": 1231,
}


def video_xml(inside: str, video: str = '<Video name="video" value="$video" frameRate="10"/>') -> str:
    return f"<View>{inside}{video}</View>"


LABELS = '<Label value="Car" background="red"/><Label value="Person"/>'


# --- labeling configuration ---


def test_config__timeline() -> None:
    xml = video_xml(f'<TimelineLabels name="tl" toName="video">{LABELS}</TimelineLabels>')
    assert wire.parse_label_config(xml) == LabelConfig(
        control_tag="TimelineLabels",
        from_name="tl",
        to_name="video",
        object_tag="Video",
        data_key="video",
        categories=("Car", "Person"),
        reserved=None,
        multiple=False,
        frame_rate="10",
    )


@pytest.mark.parametrize(
    ("file", "control", "thing", "key", "multiple"),
    [
        ("video_timeline.xml", "TimelineLabels", "Video", "video", False),
        ("video_choices.xml", "Choices", "Video", "video", True),
        ("keyframe_choices.xml", "Choices", "Image", "image", False),
        ("keyframe_choices_interactive.xml", "Choices", "Image", "image", False),
    ],
)
def test_config__ours_can_be_filled(file: str, control: str, thing: str, key: str, multiple: bool) -> None:
    config = wire.parse_label_config((CONFIGS / file).read_text())
    assert (config.control_tag, config.object_tag, config.data_key, config.multiple) == (control, thing, key, multiple)
    assert config.reserved == RESERVED_CATEGORY


def test_config__all_of_ours_are_tested() -> None:
    assert sorted(path.name for path in CONFIGS.iterdir()) == [
        "keyframe_choices.xml",
        "keyframe_choices_interactive.xml",
        "video_choices.xml",
        "video_timeline.xml",
    ]


def test_config__timeline_wins_over_choices_and_video_over_image() -> None:
    choices = '<Choices name="ch" toName="{}"><Choice value="A"/></Choices>'
    image = '<Image name="image" value="$image"/>'
    timeline = f'<TimelineLabels name="tl" toName="video">{LABELS}</TimelineLabels>'
    xml = video_xml(choices.format("image") + image + choices.format("video") + timeline)
    assert wire.parse_label_config(xml).control_tag == "TimelineLabels"
    xml = video_xml(choices.format("image") + image + choices.format("video"))
    assert wire.parse_label_config(xml).object_tag == "Video"


def test_config__any_case_comments_and_alias() -> None:
    xml = f"""<view><!-- a comment --><VIDEO NAME="v" Value="$clip" framerate="$fps"/>
      <timelinelabels name="tl" toname="v" choice="multiple">
        <label value="Voiture" alias="Car"/><label value="Grappe" alias="{RESERVED_CATEGORY.upper()}"/>
      </timelinelabels></view>"""
    config = wire.parse_label_config(xml)
    assert config.categories == ("Car", RESERVED_CATEGORY.upper())
    assert config.reserved == RESERVED_CATEGORY.upper()
    assert (config.multiple, config.frame_rate, config.data_key) == (True, "$fps", "clip")


@pytest.mark.parametrize(
    ("xml", "sentence"),
    [
        ("", "not XML"),
        ("<View>", "not XML"),
        ("not xml", "not XML"),
        ("<View></View>", "no control that we can fill; add one of: TimelineLabels on Video, Choices on Video"),
        (video_xml(f'<TimelineLabels name="tl">{LABELS}</TimelineLabels>'), "TimelineLabels tl has no toName"),
        (video_xml(f'<TimelineLabels toName="video">{LABELS}</TimelineLabels>'), "a TimelineLabels has no name"),
        (video_xml(f'<TimelineLabels name="tl" toName="x">{LABELS}</TimelineLabels>'), "for x, which is no Video"),
        (video_xml('<TimelineLabels name="tl" toName="video"/>'), "tl has no Label in it"),
        (video_xml('<Choices name="c" toName="video" value="$dynamic"/>'), "Choices c has no Choice in it"),
        (
            video_xml(f'<TimelineLabels name="t" toName="video">{LABELS}</TimelineLabels>', '<Video name="video"/>'),
            'value="\\$video"',
        ),
        (
            video_xml('<Choices name="c" toName="video" perRegion="true"><Choice value="A"/></Choices>'),
            "single regions",
        ),
        (video_xml('<TextArea name="t" toName="video"/>'), "no control that we can fill"),
        ("<View>" + " " * 1_000_000 + "</View>", "at most 1000000 characters"),
        ('<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>', "not XML that we can read"),
        ('<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>', "not XML that we can read"),
        ("<View>\x00</View>", "not XML"),
        ("<View>\ud800</View>", "not XML"),
    ],
)
def test_config__unusable_gets_a_sentence(xml: str, sentence: str) -> None:
    with pytest.raises(LabelConfigError, match=sentence):
        wire.parse_label_config(xml)


def test_config__deep_nesting_is_no_crash() -> None:
    with pytest.raises(LabelConfigError):
        wire.parse_label_config("<View>" * 50_000 + "</View>" * 50_000)


@given(st.text(alphabet='<>/="$ abViewdoTmlnLs\n&;', max_size=200))
def test_config__noise_raises_nothing_else(xml: str) -> None:
    with pytest.raises(LabelConfigError):
        wire.parse_label_config(xml)


@pytest.mark.parametrize(
    ("attribute", "data", "rate"),
    [
        (None, {}, Fraction(24)),
        ("10", {}, Fraction(10)),
        ("29.97", {}, Fraction(2997, 100)),
        ("0.04", {}, Fraction(25)),
        ("$fps", {"fps": "25"}, Fraction(25)),
        ("$fps", {"fps": 30000 / 1001}, Fraction(30000, 1001)),
        ("$fps", {"fps": 50}, Fraction(50)),
        ("$fps", {}, Fraction(24)),
        ("$fps", {"fps": None}, Fraction(24)),
        ("$fps", {"fps": True}, Fraction(24)),
        ("$fps", {"fps": [25]}, Fraction(24)),
        ("$fps", {"fps": 10**400}, Fraction(24)),
        *((text, {}, Fraction(24)) for text in ("", "x", "30000/1001", "nan", "inf", "0", "-5", "1e-300", "1e300")),
    ],
)
def test_frame_rate__is_what_label_studio_takes(attribute: str | None, data: dict[str, Any], rate: Fraction) -> None:
    assert wire.frame_rate_of(replace(TIMELINE, frame_rate=attribute), data) == rate


def test_project_uid__is_the_one_of_predict_and_setup() -> None:
    assert wire.project_uid(2, "2026-11-23T07:13:48.970312Z") == "2.1795418028"
    assert wire.project_uid(2, "2026-11-23T08:13:48+01:00") == "2.1795418028"
    with pytest.raises(RequestError, match="created_at"):
        wire.project_uid(2, "yesterday")


# --- frames ---


def test_frames__of_a_six_second_clip() -> None:
    """A 6 s clip of 25 frames/s: Label Studio counts 144 frames at its default rate, 150 at the right one."""
    assert wire.frame_count(6.0, Fraction(24)) == 144
    assert wire.frame_count(6.0, Fraction(25)) == 150
    assert wire.frame_at(0.0, Fraction(25)) == 1
    assert wire.frame_at(0.2, Fraction(25)) == 6
    assert wire.frame_at(5.96, Fraction(25)) == 150


@given(st.integers(0, 500_000), st.sampled_from(["24", "25", "30000/1001", "2997/100", "60", "240", "1"]))
def test_frames__own_rate_gives_own_numbers_also_from_milliseconds(index: int, rate: str) -> None:
    fps = Fraction(rate)
    assert wire.frame_at(float(index / fps), fps) == index + 1
    assert wire.frame_at(round(float(index / fps), 3), fps) == index + 1  # as Matroska stores it
    assert wire.frame_count(float((index + 1) / fps), fps) == index + 1


# --- predictions ---


def segment(first: int, last: int, rate: float = 10, **fields: Any) -> Segment:
    return Segment(first, last, first / rate, last / rate, fields.pop("category", "Car"), **fields)


def ranges(result: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(r["value"]["ranges"][0]["start"], r["value"]["ranges"][0]["end"]) for r in result]


def test_timeline__one_segment_written_out() -> None:
    (region,) = wire.timeline_result(
        TIMELINE, [segment(0, 9, score=0.75, note="c0007", key="c0007-0")], Fraction(10), 6.0
    )
    assert region == {
        "id": "c0007-0",
        "from_name": "tl",
        "to_name": "video",
        "type": "timelinelabels",
        "value": {"ranges": [{"start": 1, "end": 10}], "timelinelabels": ["Car"]},
        "score": 0.75,
        "meta": {"text": ["c0007"]},
    }
    json.dumps(region)


def test_timeline__own_rate_keeps_the_frames() -> None:
    result = wire.timeline_result(TIMELINE, [segment(0, 9), segment(10, 29), segment(40, 59)], Fraction(10), 6.0)
    assert ranges(result) == [(1, 10), (11, 30), (41, 60)]


def test_timeline__other_rate_keeps_neighbours_together() -> None:
    """10 frames/s shown at Label Studio's default of 24: neither hole nor overlap, and the last one ends at the end."""
    segments = [segment(first, first + 6) for first in range(0, 56, 7)] + [segment(56, 59)]
    found = ranges(wire.timeline_result(TIMELINE, segments, Fraction(24), 6.0))
    assert found[0][0] == 1
    assert found[-1][1] == 144
    assert all(before[1] + 1 == after[0] for before, after in pairwise(found))


def test_timeline__beyond_the_end_is_clamped_or_dropped() -> None:
    assert ranges(wire.timeline_result(TIMELINE, [segment(50, 90)], Fraction(10), 6.0)) == [(51, 60)]
    assert wire.timeline_result(TIMELINE, [segment(70, 90)], Fraction(10), 6.0) == []


def test_timeline__more_segments_than_frames() -> None:
    segments = [segment(n, n) for n in range(10)]
    assert ranges(wire.timeline_result(TIMELINE, segments, Fraction(5), 1.0)) == [(n, n) for n in range(1, 6)]


def test_timeline__video_of_one_frame() -> None:
    assert ranges(wire.timeline_result(TIMELINE, [segment(0, 0)], Fraction(24), 0.0)) == [(1, 1)]


def test_timeline__order_and_ids_do_not_depend_on_the_call() -> None:
    segments = [segment(10, 19), segment(0, 9)]
    result = wire.timeline_result(TIMELINE, segments, Fraction(10), 2.0)
    assert result == wire.timeline_result(TIMELINE, segments[::-1], Fraction(10), 2.0)
    assert [region["id"] for region in result] == ["0-9", "10-19"]


def test_timeline__equal_keys_are_a_bug() -> None:
    with pytest.raises(ValueError, match="keys"):
        wire.timeline_result(TIMELINE, [segment(0, 1, key="k"), segment(2, 3, key="k")], Fraction(10), 1.0)


def test_timeline__category_that_is_gone_from_the_configuration() -> None:
    with pytest.raises(LabelConfigError, match=r"'Bus' is not in the labeling configuration, which has .*Car, Person"):
        wire.timeline_result(TIMELINE, [segment(0, 1, category="Bus")], Fraction(10), 1.0)


@st.composite
def videos(draw: st.DrawFn) -> tuple[list[Segment], Fraction, float]:
    """Segments with and without gaps, of a video of constant or variable rate; Label Studio's rate; the duration."""
    lengths = draw(st.lists(st.tuples(st.integers(1, 80), st.integers(0, 5)), min_size=1, max_size=20))
    rate = draw(st.floats(1, 120))
    count = sum(length + gap for length, gap in lengths)
    late = draw(st.sampled_from([0.0, 0.2, 0.4]))  # frames that come early or late, by turns
    times = [max(0.0, (n + late * (-1) ** n) / rate) for n in range(count)]
    segments, at = [], 0
    for length, gap in lengths:
        segments.append(Segment(at, at + length - 1, times[at], times[at + length - 1], "Car"))
        at += length + gap
    return segments, Fraction(draw(st.sampled_from(["24", "25", "30000/1001", "1", "10", "120"]))), count / rate


@settings(max_examples=300)
@given(videos())
def test_timeline__always_in_order_within_the_video_and_without_overlap(
    video: tuple[list[Segment], Fraction, float],
) -> None:
    segments, fps, duration_s = video
    found = ranges(wire.timeline_result(TIMELINE, segments, fps, duration_s))
    assert all(1 <= start <= end <= wire.frame_count(duration_s, fps) for start, end in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))
    for number in range(1, len(found)):
        if segments[number].first_frame == segments[number - 1].last_frame + 1:
            assert found[number - 1][1] + 1 == found[number][0]
    if len(found) == len(segments) and fps >= 120:  # no frame of Label Studio's is longer than one of the video's
        for (start, _), each in zip(found, segments, strict=True):
            assert start >= wire.frame_at(each.first_s, fps)


def test_choices__one_and_several() -> None:
    assert wire.choices_result(CHOICES, ["Car"], score=1, note="c0001") == [
        {
            "id": "choice",
            "from_name": "ch",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": ["Car"]},
            "score": 1.0,
            "meta": {"text": ["c0001"]},
        }
    ]
    assert wire.choices_result(CHOICES, []) == []
    with pytest.raises(ValueError, match="one choice"):
        wire.choices_result(CHOICES, ["Car", "Person"])
    (region,) = wire.choices_result(replace(CHOICES, multiple=True), ["Car", "Person"])
    assert region["value"] == {"choices": ["Car", "Person"]}


def test_prediction__checks_what_label_studio_does_not() -> None:
    assert wire.prediction([], None, "v1") == {"result": [], "score": None, "model_version": "v1"}
    with pytest.raises(ValueError, match="model_version"):
        wire.prediction([], None, "")
    for score in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="score must be between 0 and 1"):
            wire.prediction([], score, "v1")


def test_model_version__is_a_plain_word() -> None:
    assert wire.model_version("efficientnet-lite0") == "lookalike-efficientnet-lite0"
    assert wire.model_version("facebook/dinov2 small/") == "lookalike-facebook-dinov2-small"


# --- annotations ---


def timeline_annotation(*regions: tuple[int, int, str, str], **fields: Any) -> dict[str, Any]:
    result = [
        {
            "id": key,
            "from_name": "tl",
            "to_name": "video",
            "type": "timelinelabels",
            "origin": "prediction-changed",
            "value": {"ranges": [{"start": start, "end": end}], "timelinelabels": [category]},
        }
        for start, end, category, key in regions
    ]
    return {"id": 1, "result": result, "was_cancelled": False, **fields}


def test_annotation__timeline() -> None:
    read = wire.read_annotation(TIMELINE, timeline_annotation((11, 20, "Car", "c0001-0")), Fraction(10))
    (label,) = read
    assert isinstance(label, TimedLabel)
    assert (label.category, label.key) == ("Car", "c0001-0")
    assert label.first_s == pytest.approx(1.0, abs=0.001)
    assert label.last_s == pytest.approx(2.0, abs=0.001)


def test_annotation__several_ranges_and_reversed_ones() -> None:
    annotation = timeline_annotation((20, 11, "Car", "k"))
    annotation["result"][0]["value"]["ranges"].append({"start": 31, "end": 31})
    read = wire.read_annotation(TIMELINE, annotation, Fraction(10))
    spans = [(round(label[0], 2), round(label[1], 2)) for label in read if isinstance(label, TimedLabel)]
    assert spans == [(1.0, 2.0), (3.0, 3.1)]


@given(st.floats(0, 5000), st.integers(1, 5000), st.integers(0, 500), st.sampled_from(["24", "30000/1001", "120"]))
def test_annotation__covers_exactly_the_times_of_its_frames(time_s: float, start: int, more: int, rate: str) -> None:
    fps = Fraction(rate)
    (label,) = wire.read_annotation(TIMELINE, timeline_annotation((start, start + more, "Car", "k")), fps)
    assert isinstance(label, TimedLabel)
    edge = min(abs(time_s - label.first_s), abs(time_s - label.last_s))
    if edge > 1e-9:
        assert (label.first_s <= time_s < label.last_s) == (start <= wire.frame_at(time_s, fps) <= start + more)


@given(videos())
def test_annotation__gives_back_what_was_sent(video: tuple[list[Segment], Fraction, float]) -> None:
    segments, _, duration_s = video
    fps = Fraction(1000)  # fine enough that nothing moves
    result = wire.timeline_result(TIMELINE, segments, fps, duration_s)
    read = wire.read_annotation(TIMELINE, {"id": 1, "result": result}, fps)
    for each, label in zip(segments, read, strict=False):
        assert isinstance(label, TimedLabel)
        assert label.key == f"{each.first_frame}-{each.last_frame}"
        assert label.first_s == pytest.approx(each.first_s, abs=0.002)


def test_annotation__choices() -> None:
    assert wire.read_annotation(CHOICES, ANNOTATION) == ["Car"]


@pytest.mark.parametrize(
    "annotation",
    [
        {"id": 1},
        {"id": 1, "result": None},
        {"id": 1, "result": []},
        timeline_annotation((1, 2, "Car", "k"), was_cancelled=True),
        timeline_annotation((1, 2, RESERVED_CATEGORY, "k")),
        timeline_annotation((1, 2, "Renamed since", "k")),
        {"result": [{"from_name": "other", "value": {"ranges": [{"start": 1, "end": 2}], "timelinelabels": ["Car"]}}]},
        {"result": [{"from_name": "tl", "value": {"ranges": [{"start": 1, "end": 2}]}}]},
    ],
)
def test_annotation__says_nothing(annotation: dict[str, Any]) -> None:
    assert wire.read_annotation(TIMELINE, annotation, Fraction(10)) == []


@pytest.mark.parametrize("frame", [0, -1, None, "1", True, 1e300, float("nan"), float("inf"), [1]])
def test_annotation__frame_that_is_none(frame: Any) -> None:
    with pytest.raises(RequestError, match="frame numbers of 1 or more"):
        wire.read_annotation(TIMELINE, timeline_annotation((frame, 5, "Car", "k")), Fraction(10))


KEYS = """result value ranges start end choices timelinelabels from_name id task tasks action project data created_at
    annotation annotations params context schema label_config extra_params was_cancelled""".split()  # noqa: SIM905
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["tl", "Car"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


def region_like(value: Any) -> dict[str, Any]:
    return {"result": [{"id": "k", "from_name": "tl", "value": value}]}


@settings(max_examples=200)
@given(JSON)
def test_requests__noise_raises_nothing_but_request_error(body: Any) -> None:
    car = {"timelinelabels": ["Car"]}
    calls = [
        lambda: wire.read_annotation(TIMELINE, body, Fraction(24)),
        lambda: wire.read_annotation(CHOICES, body),
        lambda: wire.read_annotation(TIMELINE, region_like(body), Fraction(24)),
        lambda: wire.read_annotation(TIMELINE, region_like({**car, "ranges": [body]}), Fraction(24)),
        lambda: wire.read_annotation(TIMELINE, region_like(car | {"ranges": [{"start": 1, "end": body}]}), Fraction(9)),
        lambda: wire.parse_task(body),
        lambda: wire.parse_predict(body),
        lambda: wire.parse_setup(body),
        lambda: wire.parse_webhook(body),
        lambda: wire.parse_webhook({"action": "X", "project": {"id": 1, "created_at": body}}),
        lambda: wire.parse_setup({"extra_params": body}),
    ]
    for call in calls:
        with suppress(RequestError):
            call()


# --- requests ---


def test_predict__as_label_studio_sends_it() -> None:
    request = wire.parse_predict(
        {
            "tasks": [TASK, {**TASK, "id": 41}],
            "project": "2.1795418028",
            "label_config": "<View/>",
            "params": {"login": None, "password": None, "context": None},
        }
    )
    assert [task.id for task in request.tasks] == [40, 41]
    assert request.tasks[0] == TaskRef(
        id=40,
        project_id=2,
        project_uid="2.1795418028",
        data={"video": "http://x/a.mp4", "n": 0},
        created_at="2026-11-23T07:13:49.386710Z",
        updated_at="2026-11-23T07:13:49.386745Z",
    )
    assert (request.project_uid, request.label_config, request.context) == ("2.1795418028", "<View/>", {})


def test_predict__as_label_studio_ml_tests_send_it() -> None:
    request = wire.parse_predict(
        {"tasks": {"id": 1}, "label_config": "<View></View>", "project": "1.1000000000", "params": {"context": {}}}
    )
    assert request.tasks == (TaskRef(id=1, project_id=1, project_uid="1.1000000000"),)
    assert wire.parse_predict({}).tasks == ()
    assert wire.parse_predict({"tasks": {}}).tasks == ()


def test_predict__interactive_context_is_kept() -> None:
    context = {"result": [{"id": "x"}], "event": "find_similar"}
    assert wire.parse_predict({"tasks": [TASK], "params": {"context": context}}).context == context


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "the body must be an object, got list"),
        ("x", "the body must be an object, got 'x'"),
        ({"tasks": "x"}, "tasks must be a list or an object, got 'x'"),
        ({"tasks": [1]}, "a task must be an object, got 1"),
        ({"tasks": [{}]}, "a task's id must be a whole number of 0 or more, got None"),
        ({"tasks": [{"id": "1"}]}, "a task's id must be a whole number of 0 or more, got '1'"),
        ({"tasks": [{"id": True}]}, "got True"),
        ({"tasks": [{"id": -1}]}, "got -1"),
        ({"tasks": [{"id": 2**70}]}, "a task's id must be"),
        ({"tasks": [{"id": 1, "data": "x"}]}, "a task's data must be an object, got 'x'"),
        ({"project": "a" * 500}, r"project must be text such as 2\.1795418028, got 'aaaa"),
        ({"project": "../etc"}, "project must be text"),
        ({"label_config": 5}, "label_config must be text, got 5"),
        ({"params": []}, "params must be an object"),
    ],
)
def test_predict__wrong_types_get_a_sentence(body: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        wire.parse_predict(body)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("sent", "read"),
    [(None, {}), ("", {}), ("  ", {}), ({}, {}), ({"k": 1}, {"k": 1}), ('{"k": 1}', {"k": 1}), ("null", {})],
)
def test_setup__extra_params_as_text_or_object(sent: Any, read: dict[str, Any]) -> None:
    body = {
        "project": "1.1795417854",
        "schema": "<View/>",
        "hostname": "http://localhost:8181",
        "access_token": "SENTINEL",
        "extra_params": sent,
    }
    setup = wire.parse_setup(body)
    assert setup == wire.SetupRequest("1.1795417854", "<View/>", "http://localhost:8181", read)
    assert "SENTINEL" not in repr(setup)


@pytest.mark.parametrize("sent", ["{", "[1]", "5", [1], 5, "[" * 100_000])
def test_setup__extra_params_of_another_kind(sent: Any) -> None:
    with pytest.raises(RequestError, match="extra_params must be"):
        wire.parse_setup({"extra_params": sent})


def test_webhook__tasks_created() -> None:
    event = wire.parse_webhook({"action": "TASKS_CREATED", "tasks": [TASK], "project": PROJECT})
    assert (event.action, event.project_id, event.project_uid) == ("TASKS_CREATED", 2, "2.1795418028")
    assert event.label_config == "<View/>"
    assert event.tasks[0].project_uid == "2.1795418028"
    assert event.tasks[0].data["video"] == "http://x/a.mp4"
    assert event.task_ids == (40,)
    assert event.annotation_ids == ()


def test_webhook__single_and_bulk_annotations_look_the_same() -> None:
    task = {**TASK, "id": 1240}
    single = {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "task": task, "project": PROJECT}
    bulk = {"action": "ANNOTATIONS_CREATED", "annotation": [ANNOTATION], "task": [task], "project": PROJECT}
    for body in (single, bulk):
        event = wire.parse_webhook(body)
        assert event.annotations == (ANNOTATION,)
        assert event.annotation_ids == (3,)
        assert event.task_ids == (1240,)


def test_webhook__deleted_ones_are_ids_only() -> None:
    event = wire.parse_webhook({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": PROJECT})
    assert (event.annotation_ids, event.task_ids) == ((1,), ())
    event = wire.parse_webhook({"action": "TASKS_DELETED", "tasks": [{"id": 1243}], "project": PROJECT})
    assert event.task_ids == (1243,)


def test_webhook__with_little_in_it() -> None:
    event = wire.parse_webhook({"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": "<View></View>"}})
    assert (event.project_id, event.project_uid, event.tasks, event.annotations) == (1, None, (), ())
    event = wire.parse_webhook({"action": "SOMETHING_NEW"})
    assert event.project_id is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "action must be text such as TASKS_CREATED, got None"),
        ({"action": 5}, "got 5"),
        ({"action": "X", "project": "2"}, "project must be an object"),
        ({"action": "X", "project": {"id": "2"}}, "a project's id must be a whole number"),
        ({"action": "X", "project": {"id": 2, "created_at": "soon"}}, "created_at must be a time"),
        ({"action": "X", "annotation": [{}]}, "an annotation's id must be a whole number"),
        ({"action": "X", "annotation": "x"}, "annotation must be a list or an object"),
        ({"action": "X", "tasks": [[]]}, "a task must be an object"),
    ],
)
def test_webhook__wrong_types_get_a_sentence(body: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        wire.parse_webhook(body)


# --- with Label Studio ---


@pytest.mark.e2e
@pytest.mark.parametrize("file", ["video_timeline.xml", "video_choices.xml", "keyframe_choices.xml"])
def test_real__label_studio_takes_our_configurations_and_predictions(
    label_studio_server: LabelStudioServer, file: str
) -> None:
    """`import/predictions` validates what the other ways in store unseen."""
    xml = (CONFIGS / file).read_text()
    config = wire.parse_label_config(xml)
    studio = label_studio_server.client()
    project = studio.create_project(f"Wire {file}", xml)
    (task,) = studio.import_tasks(project["id"], [{config.data_key: "http://x.example/a"}])
    category = config.reserved or ""
    if config.control_tag == "TimelineLabels":
        result = wire.timeline_result(
            config, [segment(0, 9, category=category, score=0.5, note="c0001"), segment(10, 20, category=category)],
            wire.frame_rate_of(config, {}),
            3.0,
        )  # fmt: skip
    else:
        result = wire.choices_result(config, [category], score=0.5, note="c0001")
    prediction = wire.prediction(result, 0.5, wire.model_version("test"))
    answer = studio._object(
        "POST", f"/api/projects/{project['id']}/import/predictions", json=[{**prediction, "task": task}]
    )
    assert answer["created"] == 1
    (row,) = studio.predictions(task)
    assert row["result"] == result
    assert wire.project_uid(project["id"], project["created_at"]).startswith(f"{project['id']}.1")
