"""The pages in a real browser, with a real backend and a real Label Studio: each one, light and dark."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lookalike import wire
from lookalike.labels import Companion
from lookalike.maps import Map
from lookalike.settings import Settings
from lookalike.sign_in import SignIns, address
from lookalike.store import Project, Store, open_store
from tests.gallery import Gallery, claim, label_config, seed
from tests.services import LabelStudioServer, free_port, wait_until_up

pytestmark = pytest.mark.e2e

HOSTILE = '"><img src=x onerror=alert(1)>'
CATEGORIES = ("Car", HOSTILE, "Bicycle")


@dataclass
class Site:
    settings: Settings
    store: Store
    gallery: Gallery
    number: int  # of the project at Label Studio
    context: Any  # a browser, signed in
    problems: list[str] = field(default_factory=list)  # what its console said

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def base(self) -> str:
        return f"{self.url}/projects/{self.number}"

    def open(self, address: str, scheme: str = "light", width: int = 1280) -> Any:
        page = self.context.new_page()
        page.set_viewport_size({"width": width, "height": 860})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.on("console", lambda said: self.problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(address)
        page.wait_for_load_state("networkidle")
        return page


@pytest.fixture(scope="module")
def site(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    data_dir = tmp_path_factory.mktemp("pages")
    settings = Settings(
        data_dir=data_dir,
        redis_url=f"unix://{data_dir}/nobody.sock",
        label_studio_url=label_studio_server.url,
        label_studio_token=label_studio_server.token,
        port=free_port(),
    )
    config = label_config(CATEGORIES)
    with label_studio_server.client() as studio:
        made = studio.create_project(f"Streets {HOSTILE}"[:50], config)
    project = Project(wire.project_uid(made["id"], made["created_at"]), made["id"], made["title"], config)
    store = open_store(settings.sqlalchemy_url)
    gallery = seed(store, settings, project, videos=4, keyframes=60, categories=CATEGORIES, names=[f"{HOSTILE}.mp4"])
    store.labels.put_companion(Companion(project.uid, "0.0", 0, config, {}, True))
    store.want("map", project.uid)
    places = np.random.default_rng(0).uniform(-1, 1, (len(gallery.ids), 2)).astype(np.float32)
    drawn = Map(gallery.ids, places, len(gallery.ids))
    store.maps.put(store.ledger, claim(store, "map", project.uid), settings.embedder, drawn)
    environment = os.environ | settings.to_environment()
    backend = subprocess.Popen([sys.executable, "-m", "backend.serve"], env=environment)
    try:
        wait_until_up(f"http://127.0.0.1:{settings.port}/health", backend)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
            )
            context = browser.new_context()
            context.set_default_timeout(60_000)
            site = Site(settings, store, gallery, project.label_studio_id, context)
            first = site.open(address(settings, SignIns(data_dir, store.engine)))
            assert first.url == f"{site.url}/projects"
            first.close()
            yield site
            browser.close()
    finally:
        backend.terminate()
        backend.wait(60)
        store.close()


@pytest.fixture
def quiet(site: Site) -> Iterator[Site]:
    """The site, whose browser must have had nothing to complain about."""
    site.problems.clear()
    yield site
    assert site.problems == []


def paths(site: Site) -> list[str]:
    below = ["", "/videos", "/clusters", "/clusters/0", "/categories", "/category?name=Car", "/map", "/search"]
    below += ["/search?category=Car"]
    below += [f"/keyframes/{site.gallery.labelled[0]}", f"/keyframes/{site.gallery.run.changes[0].keyframe}"]
    return ["/projects", "/login", *(f"/projects/{site.number}{path}" for path in below)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages__are_accessible_and_take_names_as_text(quiet: Site, scheme: str) -> None:
    """axe finds nothing, no hostile name became a picture, and the pages fit a tablet."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = {}
    for path in paths(quiet):
        page = quiet.open(quiet.url + path, scheme)
        if path.endswith("/map"):
            page.wait_for_selector("#map[data-points]")
        if "/keyframes/" in path:
            page.wait_for_selector("#nearest .tile")
        if "/search?" in path:
            page.wait_for_selector("#sheet .tile")
        result = axe.run(page)
        if result.violations_count:
            found[path] = result.generate_report()
        assert page.locator('img[src="x"]').count() == 0, path
        page.set_viewport_size({"width": 820, "height": 1180})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.close()
    assert not found, "\n".join(f"{path}: {report}" for path, report in found.items())


def test_theme__is_chosen_by_hand_and_kept(quiet: Site) -> None:
    page = quiet.open(quiet.base)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after
    page.click("#theme")
    page.close()


def test_messages__go_by_themselves_but_what_went_wrong_stays(quiet: Site) -> None:
    signed_in = quiet.context.storage_state()
    context = quiet.context.browser.new_context(storage_state=signed_in)  # all its pages have one clock
    page = context.new_page()
    page.goto(quiet.base)
    page.clock.install(time=0)
    page.clock.pause_at(1_000)  # else time goes on by itself, too
    lines = page.locator("#say p")
    page.evaluate("Lookalike.say('3 labelled')")
    page.clock.run_for(5_000)
    assert lines.all_inner_texts() == ["3 labelled\n×"]
    lines.hover()
    page.clock.run_for(60_000)
    assert lines.count() == 1, "while the pointer is on it"
    page.mouse.move(1, 1)
    page.clock.run_for(7_000)
    assert lines.count() == 0
    page.evaluate("Lookalike.complain('The server answered 503.')")
    page.clock.run_for(60_000)
    assert lines.count() == 1
    page.get_by_role("button", name="Dismiss").click()
    assert lines.count() == 0
    context.close()


def test_project__follows_what_happens(quiet: Site) -> None:
    page = quiet.open(quiet.base)
    uid = quiet.gallery.project.uid
    quiet.store.add_videos(uid, [(900, "/data/upload/1/0123abcd-bridge.mkv", {})])
    page.get_by_text("1 queued").wait_for(timeout=60_000)
    video = next(video.id for video in quiet.store.videos(uid) if video.task == 900)
    quiet.store.ledger.fail(claim(quiet.store, "video", str(video)), "bridge.mkv is no video; convert it")
    page.get_by_text("bridge.mkv is no video; convert it").wait_for(timeout=60_000)
    page.get_by_role("button", name="Try bridge.mkv again").click()
    page.get_by_text("1 tried again").wait_for()
    quiet.store.delete_videos(uid, [900])
    page.close()


def test_project__undoes_a_run(quiet: Site) -> None:
    uid, run = quiet.gallery.project.uid, quiet.gallery.run
    before = len(quiet.store.labels.proposals(uid, "proposed"))
    page = quiet.open(quiet.base)
    page.get_by_role("button", name=f"Undo run {run.id}").click()
    page.get_by_text(f"{before} proposals withdrawn").wait_for()
    assert quiet.store.labels.proposals(uid, "proposed") == []
    page.get_by_role("button", name=f"Undo run {run.id + 1}").click()
    page.get_by_text(f"{before} proposed again").wait_for()
    page.close()


def test_keyframe__nearest_are_a_sheet_for_mouse_and_keys(quiet: Site) -> None:
    page = quiet.open(f"{quiet.base}/keyframes/{quiet.gallery.labelled[0]}")
    page.wait_for_selector("#nearest .tile")
    chosen = lambda: page.evaluate("document.querySelector('#nearest .sheet').sheet.chosen")  # noqa: E731
    ids = page.evaluate("document.querySelector('#nearest .sheet').sheet.ids")
    tiles = page.locator("#nearest .tile")
    tiles.nth(1).click()
    tiles.nth(3).click(modifiers=["Shift"])
    assert chosen() == ids[1:4]
    page.keyboard.press("Escape")
    assert chosen() == []
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    assert chosen() == ids[2:4]
    page.keyboard.press("a")
    assert chosen() == ids
    page.keyboard.press("Escape")
    first, fourth = tiles.nth(0).bounding_box(), tiles.nth(3).bounding_box()
    page.mouse.move(first["x"] + 20, first["y"] + 20)
    page.mouse.down()
    page.mouse.move(fourth["x"] + 20, fourth["y"] + 20, steps=5)
    page.mouse.up()
    assert chosen() == ids[0:4]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"/keyframes/{ids[0]}$"))
    page.close()


def test_map__shows_selects_and_opens(quiet: Site) -> None:
    page = quiet.open(f"{quiet.base}/map")
    page.wait_for_selector("#map[data-points]")
    assert page.get_attribute("#map", "data-points") == str(len(quiet.gallery.ids))
    for way in ("category", "video", "confidence", "cluster"):
        page.select_option("[data-colour-by]", way)
    assert page.locator(".keys button").count() == len(np.unique(quiet.gallery.grouped.clusters))
    box = page.locator(".plane > canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.click("[data-lasso]")
    page.mouse.move(middle[0] - 200, middle[1] - 200)
    page.mouse.down()
    for x, y in ((200, -200), (200, 200), (-200, 200)):
        page.mouse.move(middle[0] + x, middle[1] + y, steps=4)
    page.mouse.up()
    page.wait_for_selector("#chosen .tile")
    drawn = quiet.store.maps.get(quiet.gallery.project.uid, quiet.settings.embedder)
    reach = 200 / (min(box["width"], box["height"]) / 2 * 0.94)
    expected = (np.abs(drawn.places).max(axis=1) < reach).sum()
    page.wait_for_function(f"Math.abs(document.querySelectorAll('#chosen .tile').length - {expected}) <= 2")
    page.locator("#chosen .tile").first.click()
    page.get_by_role("button", name="Close").click()
    page.click("[data-lasso]")
    page.locator(".plane > canvas").focus()
    for key in ("+", "+", "ArrowRight", "-", "0"):
        page.keyboard.press(key)
    point = page.locator(".plane > canvas").bounding_box()
    place = (drawn.places[0] * min(point["width"], point["height"]) / 2 * 0.94).tolist()
    x, y = point["x"] + point["width"] / 2 + place[0], point["y"] + point["height"] / 2 + place[1]
    page.mouse.move(x - 30, y)
    page.mouse.move(x, y)
    page.wait_for_selector(".hover:not([hidden])")
    page.mouse.click(x, y)
    page.wait_for_url(re.compile(r"/keyframes/\d+$"))
    page.close()


def test_sign_out__shows_nothing_any_more(site: Site) -> None:
    """The last test of the module."""
    page = site.open(site.base)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{site.url}/login")
    page.goto(f"{site.base}/map")
    assert "/login" in page.url
    page.close()
