"""What is suggested to an annotator who draws, and to scripts that ask over /predict."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend import contract
from backend.services import Services, open_services
from lookalike.labels import Companion
from lookalike.records import Json
from lookalike.settings import Settings
from lookalike.store import Project
from tests.gallery import Gallery, claim, label_config, seed

UID, KEYFRAMES = "7.1795419793", "8.1795419793"
CHOICES = (
    '<View><Image name="image" value="$image"/><Choices name="ch" toName="image">'
    '<Choice value="Car"/><Choice value="Bus"/></Choices>'
    '<RectangleLabels name="rl" toName="image" smart="true"><Label value="Car"/></RectangleLabels></View>'
)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    opened = open_services(Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock"))
    yield opened
    opened.close()


@pytest.fixture
def gallery(services: Services) -> Gallery:
    made = seed(services.store, services.settings, Project(UID, 7, "Streets", label_config()), pictures=[])
    services.store.labels.put_companion(Companion(UID, KEYFRAMES, 8, CHOICES))
    return made


def ask(services: Services, keyframe: int, context: Json, project: str = KEYFRAMES) -> Json:
    """As Label Studio sends it from a task of the keyframes project."""
    task = {"id": 51273, "data": {"image": "/data/upload/8/x.jpg", "keyframe": str(keyframe)}, "project": 8}
    body = {
        "tasks": [task],
        "project": project,
        "label_config": CHOICES,
        "params": {"login": None, "password": None, "context": context},
    }
    [answer] = contract.predict(services, body)["results"]
    return answer  # type: ignore[no-any-return]


def rectangle(**value: float) -> Json:
    region = {"id": "x", "type": "rectanglelabels", "from_name": "rl", "to_name": "image", "value": value}
    return {"result": [region]}


def test_suggest__the_category_that_a_clicked_picture_is_most_like(services: Services, gallery: Gallery) -> None:
    for kind, category in ((0, "Car"), (1, "Bus")):
        keyframe = int(gallery.ids[gallery.truth == kind][2])
        answer = ask(services, keyframe, {"result": [{"type": "keypointlabels", "value": {"x": 1, "y": 2}}]})
        [region] = answer["result"]
        assert region["from_name"] == "ch"
        assert region["value"] == {"choices": [category]}
        assert 0 < answer["score"] <= 1
        assert answer["model_version"] == services.model_version


def test_suggest__a_drawn_rectangle_is_looked_at_by_itself(
    services: Services, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker embeds what lies in it: here it shows a bus, whatever the whole picture is."""
    monkeypatch.setattr("backend.searches._WAIT_FOR_REGION_S", 60.0)
    car = int(gallery.ids[gallery.truth == 0][2])
    asked: list[Any] = []

    def work() -> None:
        while not asked:
            question = services.store.questions.question(1)
            if question is not None:
                asked.append(question.region)
                bus = gallery.vectors[gallery.truth == 1][0]
                services.store.questions.answer(claim(services.store, "question", "1"), bus)

    worker = threading.Thread(target=work)
    worker.start()
    answer = ask(services, car, rectangle(x=50, y=25, width=60, height=50))
    worker.join()
    assert answer["result"][0]["value"] == {"choices": ["Bus"]}
    assert asked == [(car, (0.5, 0.25, 0.5, 0.5))]


def test_suggest__without_a_worker_the_whole_picture_counts(
    services: Services, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searches._WAIT_FOR_REGION_S", 0.0)
    car = int(gallery.ids[gallery.truth == 0][2])
    answer = ask(services, car, rectangle(x=0, y=0, width=10, height=10))
    assert answer["result"][0]["value"] == {"choices": ["Car"]}


@pytest.mark.parametrize(
    "context",
    [
        *({"result": "x"}, {"result": [5]}, {"result": [{"value": {"x": "a"}}]}, {"event": "else"}),
        *(rectangle(x=odd, y=0, width=10, height=10) for odd in (float("nan"), float("inf"), 10**400, -(10**400))),
    ],
)
def test_suggest__whatever_is_sent_gets_an_answer(services: Services, gallery: Gallery, context: Json) -> None:
    answer = ask(services, int(gallery.ids[gallery.truth == 0][2]), context)
    assert answer["result"][0]["value"] == {"choices": ["Car"]}
    assert services.store.questions.question(1) is None  # no worker is troubled with it


def test_suggest__nothing_when_the_region_is_gone(services: Services, gallery: Gallery) -> None:
    """The editor tells of it when it has taken a suggestion; another one would take its place."""
    assert ask(services, int(gallery.ids[0]), {"result": []})["result"] == []


def test_suggest__similar_keyframes_for_a_script(services: Services, gallery: Gallery) -> None:
    keyframe = int(gallery.ids[gallery.truth == 1][2])
    found = ask(services, keyframe, {"event": "find_similar", "top": 5})["similar"]
    kinds = {int(gallery.truth[np.searchsorted(gallery.ids, row["keyframe"])]) for row in found}
    assert (len(found), kinds) == (5, {1})
    found = ask(services, keyframe, {"category": "Car"})["similar"]
    assert {row["nearest"]["example"] for row in found} == {gallery.labelled[0]}


def test_suggest__a_task_that_names_no_keyframe_is_answered(services: Services, gallery: Gallery) -> None:
    for odd in ("9" * 5000, "9" * 30, "-1", "\N{SUPERSCRIPT TWO}"):
        assert ask(services, odd, {"result": []})["result"] == []  # type: ignore[arg-type]


def test_suggest__nothing_where_nothing_is_known(services: Services, gallery: Gallery) -> None:
    nothing = {"result": [], "score": None, "model_version": services.model_version}
    for answer in (
        ask(services, 12345, {"result": []}),  # a keyframe that there is not
        ask(services, int(gallery.ids[0]), {"category": "Boat"}),
        ask(services, int(gallery.ids[0]), {"result": []}, project="99.1"),
    ):
        assert {**nothing, **answer} == nothing
