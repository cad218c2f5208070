"""The pages of clusters and categories as a person uses them: a real browser, backend and Label Studio."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
import requests

from lookalike import wire
from lookalike.queue import Queue
from lookalike.records import Clustering
from lookalike.settings import Settings
from lookalike.store import Project, open_store
from tests.e2e import loops
from tests.e2e.loops import CATEGORIES, Loop
from tests.gallery import Gallery, seed
from tests.services import LabelStudioServer, free_port, wait_until_up
from workers import jobs
from workers.workplace import Workplace

pytestmark = pytest.mark.e2e

HOSTILE = '"><img src=x onerror=alert(1)>'


@dataclass
class Desk:
    """200 keyframes in five clusters, each with a task at Label Studio, and a browser whose owner is signed in."""

    loop: Loop
    gallery: Gallery
    url: str
    page: Any
    problems: list[str]  # what the browser's console said

    @property
    def base(self) -> str:
        return f"{self.url}/projects/{self.loop.project}"

    def open(self, path: str) -> Any:
        self.page.goto(f"{self.base}{path}")
        return self.page

    def chosen(self) -> list[int]:
        return [int(n) for n in self.page.evaluate("document.querySelector('.sheet[role=listbox]').sheet.chosen")]

    def tiles(self) -> list[int]:
        return [int(n) for n in self.page.evaluate("document.querySelector('.sheet[role=listbox]').sheet.ids")]

    def said(self, words: str) -> None:
        """Wait until the page says something."""
        self.page.locator("#say p", has_text=words).wait_for(timeout=60_000)

    def annotations(self) -> dict[int, list[str]]:
        """What stands at Label Studio, by keyframe; by whom is checked."""
        tasks = self.loop.store.labels.keyframe_tasks(self.loop.uid)
        leaders = {row.task: row.leader for row in tasks.values() if row.task}
        me = self.loop.studio.whoami()["id"]
        found = {}
        for row in self.loop.studio.annotated_tasks(self.loop.companion.label_studio_id, list(leaders)):
            assert all(a["completed_by"] == me for a in row["annotations"])
            said = [a["result"][0]["value"]["choices"][0] for a in row["annotations"]]
            if said:
                found[leaders[row["id"]]] = said
        return found

    def truth(self, keyframe: int) -> str:
        return CATEGORIES[int(self.gallery.truth[self.gallery.ids == keyframe][0])]

    def clusters(self) -> dict[int, set[int]]:
        ids, numbers = self.grouped.keyframe_ids, self.grouped.clusters
        return {n: set(ids[numbers == n].tolist()) for n in sorted(set(numbers.tolist()))}

    @property
    def grouped(self) -> Clustering:
        found = self.loop.store.clustering(self.loop.uid, self.loop.place.settings.embedder)
        assert found is not None
        return found[0]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        token = self.page.get_attribute('meta[name="csrf"]', "content")
        answer = self.page.request.post(f"{self.base}{path}", data=body, headers={"X-CSRF-Token": token})
        assert answer.ok, answer.text()
        found: dict[str, Any] = answer.json()
        return found

    def undo_all(self) -> None:
        while self.post("/undo", {})["edit"]:
            continue
        self.loop.work()


@pytest.fixture(scope="module")
def desk(label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("sheets")
    studio = label_studio_server.client()
    made = studio.create_project("Streets, spring", loops.VIDEOS)
    uid = wire.project_uid(made["id"], made["created_at"])
    tasks = studio.import_tasks(made["id"], [{"data": {"video": f"/data/upload/1/clip{n}.mp4"}} for n in range(4)])
    settings = Settings(
        data_dir=folder / "data",
        label_studio_url=label_studio_server.url,
        label_studio_token=label_studio_server.token,
        port=free_port(),
    )
    shown = [(kind, path) for kind, paths in enumerate(loops.pictures(folder, 20).values()) for path in paths]
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        gallery = seed(
            store,
            settings,
            Project(uid, made["id"], made["title"], loops.VIDEOS),
            videos=4,
            keyframes=50,
            categories=CATEGORIES,
            dim=64,
            pictures=[path.read_bytes() for _, path in shown],
            truth=[kind for kind, _ in shown],
            task_ids=tasks,
        )
        place = Workplace(settings, store, Queue(f"unix://{folder}/no-server"), "test")
        jobs._workplace = place
        loop = Loop(studio, place, uid, made["id"], {})
        loop.ask("companion")
        backend = subprocess.Popen(
            [sys.executable, "-m", "backend.serve"],
            env=os.environ | settings.to_environment(),
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{settings.port}"
        try:
            wait_until_up(f"{url}/health", backend)
            with sync_api.sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1920, "height": 1080})
                page.set_default_timeout(60_000)
                problems: list[str] = []
                page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
                page.on("pageerror", lambda error: problems.append(str(error)))
                page.goto(f"{url}/login")
                page.fill('input[name="token"]', label_studio_server.token)
                page.press('input[name="token"]', "Enter")
                page.wait_for_url("**/projects")
                yield Desk(loop, gallery, url, page, problems)
                browser.close()
        finally:
            jobs._workplace = None
            backend.terminate()
            backend.wait(60)


@pytest.fixture(autouse=True)
def quiet(desk: Desk) -> Iterator[None]:
    desk.problems.clear()
    yield
    assert desk.problems == []


def test_clusters__contact_sheets_with_the_keyboard(desk: Desk) -> None:
    page = desk.open("/clusters")
    assert page.locator(".cluster").count() == 5
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    second = page.locator(".cluster").nth(1)
    assert second.locator("h2 a").evaluate("link => link === document.activeElement")
    page.keyboard.press(" ")
    assert second.locator("input").is_checked()
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    assert "2 selected" in page.inner_text("[data-count]")
    number = int(second.get_attribute("data-number"))
    page.keyboard.press(" ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/clusters/{number}")
    assert set(desk.tiles()) == desk.clusters()[number]


def test_clusters__a_digit_labels_a_cluster_and_u_takes_it_back(desk: Desk) -> None:
    page = desk.open("/clusters")
    card = page.locator(".cluster").first
    number = int(card.get_attribute("data-number"))
    members = desk.clusters()[number]
    category = desk.truth(sorted(members)[0])
    page.keyboard.press("ArrowDown")
    began = time.monotonic()
    page.keyboard.press(str(CATEGORIES.index(category) + 1))
    desk.said(f"{len(members)} labelled {category}")
    seconds = time.monotonic() - began
    print(f"{len(members)} keyframes labelled in {seconds:.2f} s, {seconds / len(members) * 1000:.0f} ms each")
    assert f"✓ {category}" in card.inner_text()
    assert desk.annotations() == {keyframe: [category] for keyframe in members}
    desk.loop.work()  # what was asked for
    rows = desk.loop.store.labels.labels(desk.loop.uid)
    assert {row.keyframe for row in rows} == members, "the loop has read them"
    page.keyboard.press("u")
    desk.said(f"{len(members)} annotations {category} taken back")
    assert desk.annotations() == {}
    desk.loop.work()
    assert desk.loop.store.labels.labels(desk.loop.uid) == []


def test_clusters__merged_shows_a_hundred_thumbnails(desk: Desk) -> None:
    page = desk.open("/clusters")
    for box in page.locator(".cluster input").all():
        box.check()
    page.keyboard.press("m")
    desk.said("4 clusters merged into one")
    assert page.locator(".cluster").count() == 1
    assert len(desk.clusters()) == 1
    page.set_viewport_size({"width": 1920, "height": 2800})
    page.locator(".cluster h2 a").click()
    page.wait_for_url("**/clusters/*")
    on_screen = """[...document.querySelectorAll(".tile img")].filter((picture) => {
        const box = picture.getBoundingClientRect();
        return picture.complete && picture.naturalWidth > 0 && box.bottom > 0 && box.top < innerHeight;
    }).length"""
    _until(lambda: page.evaluate(on_screen) >= 100)
    page.locator(".tile").last.scroll_into_view_if_needed()
    _until(lambda: len(desk.tiles()) == 200)
    page.set_viewport_size({"width": 1920, "height": 1080})
    for _ in range(4):
        page.keyboard.press("u")
        desk.said("Undone: merge")
        page.wait_for_load_state("load")
        page.evaluate("document.getElementById('say').replaceChildren()")
    assert len(desk.clusters()) == 5


def test_cluster__selected_by_dragging_labelled_once_and_changed(desk: Desk) -> None:
    number, members = next(iter(desk.clusters().items()))
    page = desk.open(f"/clusters/{number}")
    page.locator(".tile").nth(10).wait_for()
    first, last = (page.locator(".tile").nth(n).bounding_box() for n in (0, 3))
    page.mouse.move(first["x"] + 20, first["y"] + 40)
    page.mouse.down()
    page.mouse.move(last["x"] + 30, last["y"] + 60, steps=6)
    page.mouse.up()
    chosen = desk.chosen()
    assert chosen == desk.tiles()[:4]
    assert page.inner_text("[data-scope]") == "Label 4 as"
    page.click(f'.label[data-category="{CATEGORIES[0]}"]')
    desk.said(f"4 labelled {CATEGORIES[0]}")
    assert page.locator('.tile[data-state="labelled"]').count() == 4
    sheet = "document.querySelector('.sheet').sheet"
    page.evaluate(f"{sheet}.choose({sheet}.ids.slice(0, 6))")
    page.locator(".tile").first.focus()
    page.keyboard.press("1")
    desk.said(f"2 labelled {CATEGORIES[0]}; 4 were already")
    page.evaluate(f"{sheet}.choose({sheet}.ids.slice(0, 2))")
    page.locator(".tile").first.focus()
    page.keyboard.press("2")
    desk.said(f"2 labelled {CATEGORIES[1]}")
    ids = desk.tiles()
    expected = {k: [CATEGORIES[1]] for k in ids[:2]} | {k: [CATEGORIES[0]] for k in ids[2:6]}
    assert desk.annotations() == expected
    for left in (6, 4):
        page.evaluate("document.getElementById('say').replaceChildren()")
        page.keyboard.press("u")
        desk.said("taken back")
        assert desk.annotations() == {keyframe: [CATEGORIES[0]] for keyframe in ids[:left]}
    desk.undo_all()
    assert desk.annotations() == {}
    assert len(members) == len(ids)


def test_cluster__none_selected_labels_all_of_it(desk: Desk) -> None:
    number, members = next(iter(desk.clusters().items()))
    page = desk.open(f"/clusters/{number}")
    assert page.inner_text("[data-scope]") == f"Label all {len(members)} as"
    page.click(f'.label[data-category="{CATEGORIES[2]}"]')
    desk.said(f"{len(members)} labelled {CATEGORIES[2]}")
    assert set(desk.annotations()) == members
    desk.undo_all()
    assert desk.annotations() == {}


def test_cluster__take_out_split_and_name(desk: Desk) -> None:
    before = desk.clusters()
    number, members = next(iter(before.items()))
    page = desk.open(f"/clusters/{number}")
    wrong, apart = desk.tiles()[:2], desk.tiles()[2:7]
    for place in (0, 1):
        page.locator(".tile").nth(place).click()
    page.keyboard.press("x")
    desk.said("2 keyframes taken out")
    assert desk.clusters()[-1] == set(wrong)
    assert not set(wrong) & set(desk.tiles())
    page.locator(".tile").first.click()
    page.locator(".tile").nth(4).click(modifiers=["Shift"])
    assert desk.chosen() == apart
    page.keyboard.press("s")
    desk.said("5 keyframes split off as c0005")
    assert desk.clusters()[5] == set(apart)
    desk.loop.work()
    assert desk.clusters()[5] == set(apart), "the workers keep it"
    page.keyboard.press("n")
    page.fill("#answer", HOSTILE)
    page.keyboard.press("Enter")
    desk.said("is called")
    assert HOSTILE in page.inner_text("h1")
    desk.open("/clusters")
    assert HOSTILE in page.inner_text(".clusters")
    desk.undo_all()
    assert desk.clusters() == before
    assert desk.grouped.names == {}
    page = desk.open(f"/clusters/{number}")
    page.locator(".tile").first.focus()
    page.keyboard.press("s")
    desk.said("split off as c0006")
    now = desk.clusters()
    assert now[number] | now[6] == members
    page.select_option("[data-merge]", "6")
    page.wait_for_url("**/clusters/6")
    desk.said("is part of c0006 now")
    assert set(desk.clusters()[6]) == members
    desk.undo_all()
    assert desk.clusters() == before


def test_keyframe__is_labelled_on_its_page(desk: Desk) -> None:
    keyframe = int(desk.gallery.ids[7])
    category, before = desk.truth(keyframe), desk.annotations()
    page = desk.open(f"/keyframes/{keyframe}")
    page.wait_for_selector("#nearest .tile")
    known = page.inner_text("#what")
    page.keyboard.press(str(CATEGORIES.index(category) + 1))
    desk.said(f"1 labelled {category}")
    assert page.inner_text("#what") == category
    assert desk.annotations() == before | {
        desk.loop.store.labels.keyframe_tasks(desk.loop.uid)[keyframe].leader: [category]
    }
    page.keyboard.press("u")
    desk.said("taken back")
    assert page.inner_text("#what") == known
    assert desk.annotations() == before


def test_clusters__junk_is_neither_offered_nor_shown(desk: Desk) -> None:
    number, members = next(iter(desk.clusters().items()))
    page = desk.open("/clusters")
    page.locator(f'[data-number="{number}"] h2 a').focus()
    page.keyboard.press("j")
    desk.said("is junk")
    assert page.locator(".cluster").count() == 4
    desk.loop.work()
    tasks = desk.loop.tasks()
    leaders = {row.task: row.leader for row in desk.loop.store.labels.keyframe_tasks(desk.loop.uid).values()}
    offered = {leaders[task] for task in desk.loop.tab("next") if task in tasks}
    assert offered
    assert not offered & members
    desk.open("/clusters?junk=1")
    assert page.locator(".cluster").count() == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    desk.said("is no junk any more")
    desk.undo_all()


def test_category__confirmed_rejected_and_searched_on(desk: Desk) -> None:
    for category in CATEGORIES:  # one example each
        number = next(n for n, ids in desk.clusters().items() if desk.truth(sorted(ids)[0]) == category)
        some = sorted(desk.clusters()[number])[:2]
        answer = desk.post("/labels", {"category": category, "keyframes": some})
        assert answer["done"] == some
    desk.loop.work()
    page = desk.open("/categories")
    page.click(f'.card a:text-is("{CATEGORIES[0]}")')
    page.wait_for_url("**/category?name=*")
    page.locator(".tile").first.wait_for()
    page.wait_for_load_state("load")
    proposed = desk.tiles()
    assert len(proposed) > 10
    right = (
        "(all) => all.map((e) => e.closest('.about').getBoundingClientRect().right - e.getBoundingClientRect().right)"
    )
    assert min(page.locator("#sheet .second > :last-child").evaluate_all(right)) >= 0  # the time is seen
    page.keyboard.press("a")  # wherever the focus is
    assert desk.chosen() == proposed
    page.keyboard.press("Escape")
    assert not desk.chosen()
    page.locator(".tile").nth(0).click()
    page.locator(".tile").nth(2).click(modifiers=["Shift"])
    page.keyboard.press("c")
    desk.said(f"3 labelled {CATEGORIES[0]}")
    assert all(desk.annotations()[k] == [CATEGORIES[0]] for k in proposed[:3])
    page.evaluate("document.querySelector('#sheet').sheet.clear()")
    page.locator(".tile").nth(3).click()
    page.keyboard.press("r")
    desk.said("1 rejected, not to be proposed again")
    assert proposed[3] not in desk.tiles()
    desk.loop.work()
    assert desk.loop.store.labels.withdrawn(desk.loop.uid) == {(proposed[3], CATEGORIES[0])}
    desk.open(f"/category?name={CATEGORIES[0]}&by=unsure")
    assert proposed[3] not in desk.tiles()
    page.locator(".tile").first.click()
    page.keyboard.press("l")
    desk.said("found")
    assert "1 more example" in page.inner_text("#round")
    assert not set(desk.annotations()) & set(desk.tiles())
    page.locator(".tile").last.click()
    page.keyboard.press("k")
    _until(lambda: "away from 1" in page.inner_text("#round"))
    desk.open(f"/category?name={CATEGORIES[0]}&show=labelled")
    assert set(proposed[:3]) <= set(desk.tiles())


def test_category__how_far_does_it_go(desk: Desk) -> None:
    page = desk.open(f"/category?name={CATEGORIES[1]}")
    page.click('[data-do="reach"]')
    asked = 0
    while not page.locator('[data-reach="label"]').is_visible():
        page.locator("#reach .tile").first.wait_for()
        question = page.inner_text('[data-reach="question"]')
        ids = page.evaluate("[...document.querySelectorAll('#reach .tile')].map((tile) => Number(tile.dataset.id))")
        right = sum(desk.truth(k) == CATEGORIES[1] for k in ids) >= len(ids) - 1
        page.keyboard.press("y" if right else "n")
        _until(lambda before=question: page.inner_text('[data-reach="question"]') != before)  # type: ignore[misc]
        asked += 1
        assert asked < 10
    count = int(re.findall(r"\d+", page.inner_text('[data-reach="label"]'))[0])
    print(f"{asked} questions, {count} within")
    assert abs(count - sum(desk.truth(k) == CATEGORIES[1] for k in desk.gallery.ids.tolist())) <= 12
    before = set(desk.annotations())
    page.click('[data-reach="label"]')
    desk.said(f"{count} labelled {CATEGORIES[1]}")
    after = desk.annotations()
    new = set(after) - before
    assert len(new) == count
    assert {tuple(after[k]) for k in new} == {(CATEGORIES[1],)}
    assert sum(desk.truth(k) == CATEGORIES[1] for k in new) >= 0.85 * count
    page.keyboard.press("Tab")
    page.click("[data-undo]")
    desk.said(f"{count} annotations")
    assert set(desk.annotations()) == before
    desk.loop.work()


def test_category__within_the_radius_as_proposals(desk: Desk) -> None:
    page = desk.open(f"/category?name={CATEGORIES[2]}")
    page.click('[data-do="reach"]')
    page.locator("#reach .tile").first.wait_for()
    page.locator("#reach input").fill("20")
    page.locator("#reach input").dispatch_event("change")
    page.locator('[data-reach="propose"]').click()
    desk.said(f"20 proposed as {CATEGORIES[2]}")
    vouched = desk.loop.store.edits.vouched(desk.loop.uid)
    assert set(vouched.values()) == {CATEGORIES[2]}
    desk.loop.work()
    proposals = {p.keyframe: p.category for p in desk.loop.store.labels.proposals(desk.loop.uid, "proposed")}
    assert all(proposals.get(keyframe) == CATEGORIES[2] for keyframe in vouched)


def test_labels__partial_failure_says_which_and_goes_on(desk: Desk) -> None:
    number = next(iter(desk.clusters()))
    ids = [k for k in sorted(desk.clusters()[number]) if k not in desk.annotations()][:4]
    task = desk.loop.store.labels.keyframe_tasks(desk.loop.uid)[ids[1]].task
    desk.loop.studio._call("DELETE", f"/api/tasks/{task}/")
    page = desk.open(f"/clusters/{number}")
    page.evaluate("ids => document.querySelector('.sheet').sheet.choose(ids)", ids)
    page.locator(".tile").first.focus()
    page.keyboard.press("3")
    desk.said(f"3 labelled {CATEGORIES[2]}; 1 failed: its task was deleted at Label Studio")
    assert desk.chosen() == [ids[1]], "what failed stays selected"


def test_clusters__in_another_number_of_groups(desk: Desk) -> None:
    page = desk.open("/clusters")
    page.locator(".how > summary").click()
    assert page.locator(".how svg").count() == 0, "it was not fitted here"
    page.fill("#groups", "3")
    page.click(".regroup .primary")
    page.locator(".how .tag.busy").wait_for()
    desk.loop.work("cluster")  # what it asks for in turn takes longer than the page says it
    desk.said("Grouped anew")
    assert page.locator(".cluster").count() == len(desk.clusters()) == 3
    assert page.locator(".how polyline").count() == 3, "the reason came with the fit"
    page.keyboard.press("u")
    page.locator(".how .tag.busy").wait_for()
    desk.loop.work("cluster")
    desk.said("Grouped anew")
    assert page.locator(".cluster").count() == len(desk.clusters()) >= 5
    desk.loop.work(may_fail="video")  # its clips are drawn keyframes only


def test_pages__nobody_else_gets_in(desk: Desk) -> None:
    assert requests.get(f"{desk.base}/clusters", timeout=10).status_code == 401
    assert requests.post(f"{desk.base}/edits", json={"kind": "junk", "number": 0}, timeout=10).status_code == 401
    other = desk.loop.studio.create_project("Another one", "<View/>")
    answer = desk.page.request.get(f"{desk.url}/projects/{other['id']}/clusters")
    assert answer.status == 404
    assert desk.page.request.get(f"{desk.base}/category?name={quote(HOSTILE)}").status == 404


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():  # not in the page: its policy lets nobody evaluate text there
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
