"""Searching as a person does it: a real browser, backend, model and Label Studio, with pictures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import loops
from tests.e2e.loops import CATEGORIES, Loop
from tests.e2e.test_sheets import _until
from tests.services import LabelStudioServer, wait_until_up

pytestmark = pytest.mark.e2e


@dataclass
class Desk:
    """60 pictures of five categories, one of each labelled; the browser's owner is signed in."""

    loop: Loop
    page: Any
    mine: dict[str, Path]  # a picture of each category that is not in the project
    truth: dict[int, str]  # by keyframe

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.loop.place.settings.port}/projects/{self.loop.project}"

    def open(self, path: str) -> Any:
        self.page.goto(f"{self.base}{path}")
        return self.page

    def found(self, said: str) -> list[str]:
        """What the results show, once the page tells of them so."""
        self.page.locator("#note", has_text=said).wait_for(timeout=60_000)
        return [self.truth[keyframe] for keyframe in self.ids()]

    def ids(self) -> list[int]:
        return [int(n) for n in self.page.evaluate("document.querySelector('#sheet').sheet.ids")]

    def answer(self, number: int) -> None:
        """Be the worker for a question, once it is asked; the page asks on until then."""
        _until(lambda: self.loop.store.questions.question(number) is not None)
        self.loop.work()


@pytest.fixture(scope="module")
def desk(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("search")
    mine = {category: paths[-1] for category, paths in loops.pictures(folder, 13).items()}
    with loops.images(label_studio_server, folder, 12) as loop:
        loop.label_next()
        loop.propagate()
        settings = loop.place.settings
        backend = subprocess.Popen(
            [sys.executable, "-m", "backend.serve"],
            env=os.environ | settings.to_environment(),
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until_up(f"http://127.0.0.1:{settings.port}/health", backend)
            with sync_api.sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.set_default_timeout(60_000)
                page.goto(f"http://127.0.0.1:{settings.port}/login")
                page.fill('input[name="token"]', label_studio_server.token)
                page.press('input[name="token"]', "Enter")
                page.wait_for_url("**/projects")
                tasks = loop.tasks()
                truth = {
                    keyframe: loop.truth_of(tasks[row.task])
                    for keyframe, row in loop.store.labels.keyframe_tasks(loop.uid).items()
                }
                yield Desk(loop, page, mine, truth)
                browser.close()
        finally:
            backend.terminate()
            backend.wait(60)


@pytest.fixture(autouse=True)
def quiet(desk: Desk) -> Iterator[None]:
    """The browser must have nothing to complain about."""
    problems: list[str] = []

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    desk.page.on("console", heard)
    yield
    desk.page.remove_listener("console", heard)
    assert problems == []


def test_search__a_picture_then_round_by_round(desk: Desk) -> None:
    page = desk.open("/search")
    page.locator("#note", has_text="Choose a category").wait_for()
    page.set_input_files("#drop input", desk.mine["airplanes"])
    desk.answer(1)
    found = desk.found("by 1 example;")
    assert found[:5].count("airplanes") >= 4
    assert "picture=" in page.url, "known by its digest from now on"
    assert page.locator(".example canvas").count() == 1
    assert page.locator("#sheet .tile .kin", has_text="like").count() == len(found)

    liked, unliked = desk.ids()[0], desk.ids()[-1]
    page.locator(f'[data-id="{liked}"]').click()
    page.keyboard.press("l")
    desk.found("by 2 examples;")
    assert liked not in desk.ids()
    page.locator(f'[data-id="{unliked}"]').click()
    page.click('[data-do="less"]')
    assert desk.found("away from 1")[:5].count("airplanes") >= 4
    assert unliked not in desk.ids()

    page.reload()
    assert desk.found("by 2 examples, away from 1")[:5].count("airplanes") >= 4
    page.go_back()
    desk.found("by 2 examples;")
    page.get_by_role("button", name="Search without: Your picture").click()
    desk.found("by 1 example;")
    assert "picture=" not in page.url


def test_search__a_part_of_a_keyframe(desk: Desk) -> None:
    keyframe = next(k for k, category in desk.truth.items() if category == "Motorbikes")
    page = desk.open(f"/keyframes/{keyframe}")
    box = page.locator(".large img").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 100, y - 80)
    page.mouse.down()
    page.mouse.move(x + 100, y + 80, steps=4)
    page.mouse.up()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowUp")
    region = page.locator(".region")
    drawn = [float(n) for n in region.get_attribute("href").partition("region=")[2].split(",")]
    assert drawn[0] == keyframe
    x, y, width, height = drawn[1:]
    assert min(x, y, width, height) > 0
    assert max(x + width, y + height) <= 1
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?region=*")
    desk.answer(2)
    assert desk.found("by 1 example;")[:3].count("Motorbikes") >= 2
    page.go_back()
    page.wait_for_url(f"**/keyframes/{keyframe}")


def test_search__a_category_filtered_and_labelled(desk: Desk) -> None:
    page = desk.open("/search")
    page.select_option('select[name="category"]', "Leopards")
    everything = desk.found("most similar first")
    page.select_option('select[name="labelled"]', "no")
    page.wait_for_url("**labelled=no")
    _until(lambda: 0 < len(desk.ids()) < len(everything))
    chosen = desk.ids()[:2]
    page.evaluate("ids => document.querySelector('#sheet').sheet.choose(ids)", chosen)
    page.locator("#sheet .tile").first.focus()
    page.keyboard.press(str(CATEGORIES.index("Leopards") + 1))
    page.locator("#say p", has_text="2 labelled Leopards").wait_for(timeout=60_000)
    tasks = desk.loop.store.labels.keyframe_tasks(desk.loop.uid)
    desk.loop.propagate()
    said = desk.loop.said()
    assert {tuple(said[tasks[keyframe].task]) for keyframe in chosen} == {("Leopards",)}
    page.keyboard.press("u")
    page.locator("#say p", has_text="2 annotations Leopards taken back").wait_for(timeout=60_000)
    desk.loop.propagate()
    assert not {tasks[keyframe].task for keyframe in chosen} & set(desk.loop.said())


def test_search__a_tab_at_label_studio(desk: Desk) -> None:
    page = desk.open("/search?category=Faces")
    desk.found("most similar first")
    page.get_by_role("button", name="Make “Similar to Faces” a tab").click()
    page.locator("#say p", has_text="The tab is being made").wait_for()
    desk.loop.work()
    link = page.get_by_role("link", name="“Similar to Faces” in Label Studio")
    link.wait_for()
    [tab] = desk.loop.store.questions.tabs(desk.loop.uid)
    assert link.get_attribute("href").endswith(f"/projects/{desk.loop.companion.label_studio_id}/data?tab={tab.tab}")
    page.reload()
    link.wait_for()


def test_search__what_is_no_picture_is_said(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page = desk.open("/search")
    page.set_input_files("#drop input", tmp_path / "notes.png")
    page.locator("#say p", has_text="notes.png is no picture that the browser can read").wait_for()
    assert desk.ids() == []


def test_editor__a_box_drawn_with_the_smart_tool_chooses_what_it_shows(
    desk: Desk, label_studio_server: LabelStudioServer
) -> None:
    """Label Studio's own editor asks /predict with what was drawn."""
    loop, port = desk.loop, desk.loop.place.settings.port
    smart = '<Rectangle name="look" toName="image" smart="true" smartOnly="true"/></View>'
    loop.studio.update_project(loop.project, label_config=loops.IMAGES.replace("</View>", smart))
    connection = {"project": loop.project, "url": f"http://127.0.0.1:{port}", "title": "ours", "is_interactive": True}
    loop.studio._object("POST", "/api/ml/", json=connection)
    loop.work()
    tasks, labelled = loop.tasks(), loop.said()
    task = next(number for number in tasks if number not in labelled)
    loop.studio.delete_predictions(loop.project, [task])  # so that nothing is chosen yet
    page = desk.page.context.browser.new_page()  # Label Studio's own pages do complain
    page.set_default_timeout(60_000)
    page.goto(f"{label_studio_server.url}/user/login/")
    page.fill('input[name="email"]', label_studio_server.email)
    page.fill('input[name="password"]', label_studio_server.password)
    page.press('input[name="password"]', "Enter")
    page.wait_for_url(lambda url: "/login" not in url)
    page.evaluate("for (const on of ['autoAnnotation', 'autoAcceptSuggestions']) localStorage.setItem(on, true)")
    page.goto(f"{label_studio_server.url}/projects/{loop.project}/data?task={task}")
    right = loop.truth_of(tasks[task])
    wrong = next(category for category in CATEGORIES if category != right)
    page.locator(".lsf-choice__item, .lsf-choices label", has_text=wrong).first.click()
    page.wait_for_function("Htx.annotationStore.selected.names.get('image').imageIsLoaded")
    page.locator(".lsf-toolbar .lsf-tool_smart").first.click()
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.05 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.95 * box["height"], steps=8)
    page.mouse.up()
    _until(lambda: bool(loop.store.ledger.due(("question",), 1)))
    loop.work("question")
    said = "Htx.annotationStore.selected.serializeAnnotation().map(region => region.value.choices)"
    page.wait_for_function(f"JSON.stringify({said}) === JSON.stringify([['{right}']])")
    page.close()
