"""What an annotator sees and does: the loop in a real Chromium, with everything running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lookalike import wire
from lookalike.errors import SetupError
from lookalike.label_studio import LabelStudio
from lookalike.labels import Companion
from lookalike.settings import Settings
from lookalike.store import Store, open_store
from tests.e2e import loops
from tests.services import LabelStudioServer, free_port, wait_until_up
from workers.demo import sample_clips

pytestmark = pytest.mark.e2e

STREET, FILM = "Street", "Film"
CLIPS = {"bikes.mp4": STREET, "bigbuckbunny.mp4": FILM}
VIDEOS = (
    '<View><Video name="video" value="$video" frameRate="25"/><TimelineLabels name="timeline" toName="video">'
    + "".join(f'<Label value="{name}"/>' for name in (wire.RESERVED_CATEGORY, STREET, FILM))
    + "</TimelineLabels></View>"
)


#: what is chosen in Label Studio's editor
_CHOSEN = (
    "(window.Htx?.annotationStore?.selected?.serializeAnnotation() ?? []).flatMap((region) => region.value.choices)"
)


@dataclass
class Everything:
    """`lookalike up` at a Label Studio, and a browser that is logged in there."""

    server: LabelStudioServer
    studio: LabelStudio
    settings: Settings
    store: Store
    page: Any
    shots: Path

    def connect(self, title: str, config: str) -> int:
        number = int(self.studio.create_project(title, config)["id"])
        self.studio.connect_ml(number, self.settings.backend_url, wire.model_version(self.settings.embedder))
        return number

    def companion(self, project: int, within_s: float = 300) -> Companion:
        """Once its tabs are there and nothing is left to do."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for served in self.store.projects():
                found = self.store.labels.companion(served.uid)
                if served.label_studio_id == project and found and found.tabs and not self.is_busy(served.uid):
                    return found
            time.sleep(0.5)
        pytest.fail(f"no companion of project {project}: {self.store.ledger.rows()}")

    def is_busy(self, uid: str) -> bool:
        rows = [row for row in self.store.ledger.rows() if row.project == uid and row.kind != "sync"]
        return any(row.state in ("due", "running") for row in rows)

    def tab(self, known: Companion, key: str) -> list[int]:
        params = {"view": known.tabs[key], "page_size": 500, "include": "id"}
        return [task["id"] for task in self.studio._object("GET", "/api/tasks", params=params)["tasks"]]

    def open_tab(self, known: Companion, key: str) -> None:
        self.page.goto(f"{self.server.url}/projects/{known.label_studio_id}/data?tab={known.tabs[key]}")
        self.page.get_by_role("button", name=re.compile("Label All Tasks|Label \\d+ Task")).first.wait_for()

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"))

    def until(self, said: str, check: Callable[[], object], within_s: float = 120) -> float:
        """Seconds until it is so."""
        began = time.monotonic()
        while not check():
            if time.monotonic() - began > within_s:
                self.shoot("late")
                pytest.fail(f"not within {within_s} s: {said}")
            self.page.wait_for_timeout(100)
        return time.monotonic() - began

    def label(self, known: Companion, count: int, truth: Callable[[dict[str, Any]], str]) -> int:
        """Click through the first tasks of tab 1, as the label stream shows them; the last one."""
        tasks = {task["id"]: task["data"] for task in self.studio.tasks(known.label_studio_id)}
        self.open_tab(known, "next")
        self.shoot(f"next-{known.label_studio_id}")
        order = self.tab(known, "next")
        # the button itself takes all tasks of the project, in Label Studio's own order; this is behind its arrow
        arrow = self.page.get_by_role("button", name=re.compile("Label All Tasks")).locator(
            "xpath=following::button[1]"
        )
        arrow.click()
        button = self.page.get_by_text("Label Tasks As Displayed")
        picture = self.page.locator("img[src^='blob:']")
        task, seen = 0, ""
        for number in range(count):
            with self.page.expect_response(lambda answer: "id=next_task" in answer.url) as answered:
                button.click()
            task = answered.value.json()["id"]
            assert number or task == order[0], "the stream begins where the tab does"
            category = truth(tasks[task])
            self.until("the next picture", lambda seen=seen: picture.count() and picture.get_attribute("src") != seen)
            seen = picture.get_attribute("src")
            # the editor is slower than its picture
            self.until("the editor", lambda task=task: self.page.evaluate(f"window.Htx?.task?.id === {task}"))
            choice = self.page.locator("label").filter(has_text=re.compile(f"^{category}")).first

            def chosen(choice: Any = choice, category: str = category) -> bool:
                if not choice.locator("input").is_checked():  # it may be pre-labelled by what was submitted before
                    choice.click()
                return category in self.page.evaluate(_CHOSEN)

            self.until(f"{category} is chosen", chosen)
            if number == 0:
                self.shoot(f"editor-{known.label_studio_id}")
            # nor does it submit while it saves a draft
            self.until("no draft", lambda: not self.page.evaluate("Htx.annotationStore.selected.isDraftSaving"))
            button = self.page.get_by_test_id("bottombar-submit-button")
        button.click()
        return int(task)

    def state(self, known: Companion, task: int) -> str:
        return str(self.studio.task(known.label_studio_id, task)["data"].get(f"{known.prefix}state"))

    def confirm(self, known: Companion, category: str) -> int:
        """All that tab 2 shows, by the Data Manager's own action; how many."""
        tasks = self.tab(known, f"confirm {category}")
        self.open_tab(known, f"confirm {category}")
        self.page.locator("img[src*='/data/upload/']").first.wait_for()
        self.shoot(f"confirm-{known.label_studio_id}")
        for task in tasks:
            self.page.get_by_label(f"Select Task {task}", exact=True).evaluate("box => box.click()")
        self.shoot(f"chosen-{known.label_studio_id}")
        self.page.get_by_text(re.compile(r"^\d+ Tasks?$")).first.click()
        self.page.wait_for_timeout(1000)  # the menu does not listen while it opens
        accept = self.page.locator("button").filter(has_text=re.compile("^OK$"))
        self.page.get_by_text("Create Annotations From Predictions").click()
        accept.wait_for()
        self.shoot(f"dialog-{known.label_studio_id}")
        accept.click()
        return len(tasks)

    def run(self, *command: str) -> str:
        command = (sys.executable, "-m", "lookalike.cli", *command)
        environment = os.environ | self.settings.to_environment()
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout


@pytest.fixture(scope="module")
def everything(
    label_studio_server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Everything]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    server, folder = label_studio_server, tmp_path_factory.mktemp("display")
    settings = Settings(
        data_dir=folder / "data",
        label_studio_url=server.url,
        label_studio_token=server.token,
        keyframe_share=0.1,
        port=free_port(),
    )
    command = [sys.executable, "-m", "lookalike.cli", "up", "--label-studio", server.url]
    ports = f"{free_port()},{settings.port}"
    process = subprocess.Popen(
        [*command, "--data-dir", str(settings.data_dir), "--ports", ports],
        env=os.environ | settings.to_environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until_up(f"{settings.backend_url}/ready", process)
        with closing(open_store(settings.sqlalchemy_url)) as store, sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
            )
            page = browser.new_page(viewport={"width": 1440, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(f"{server.url}/user/login/")
            page.fill("input[name=email]", server.email)
            page.fill("input[name=password]", server.password)
            page.click("button[type=submit]")
            page.wait_for_load_state()
            yield Everything(server, server.client(), settings, store, page, folder)
            browser.close()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0


def test_display__pictures_labelled_confirmed_and_undone_by_clicking(everything: Everything, tmp_path: Path) -> None:
    it, studio = everything, everything.studio
    project = it.connect("Pictures by hand", loops.IMAGES)
    pictures = loops.pictures(tmp_path, 8)
    files = {f"{name}-{n}.jpg": path.read_bytes() for name, some in pictures.items() for n, path in enumerate(some)}
    urls = studio.upload_pictures(project, list(files.items()))
    studio.import_tasks(project, [{"data": {"image": url}} for url in urls.values()])
    it.until("all pictures are worked on", lambda: len(_delivered(it, project)) == len(files), 300)
    known = it.companion(project)
    assert known.own

    last = it.label(known, 5, lambda data: wire.video_name(data["image"]).split("-")[0])
    seconds = it.until("what follows is shown", lambda: it.state(known, last) == "labelled")
    it.until("at rest", lambda: not it.is_busy(known.project))
    tabs = {name: it.tab(known, f"confirm {name}") for name in loops.CATEGORIES}
    print(f"{sum(map(len, tabs.values()))} pictures in tabs 2, {seconds:.1f} s after Submit")
    name = max(tabs, key=lambda name: len(tabs[name]))
    confirmed = it.confirm(known, name)
    assert confirmed
    it.until("tab 2 is empty", lambda: not set(it.tab(known, f"confirm {name}")) & set(tabs[name]))
    it.until("read back", lambda: it.store.labels.labels(known.project)[confirmed + 4 :])
    it.shoot("confirmed")

    it.until("at rest", lambda: not it.is_busy(known.project))
    others = {name: it.tab(known, f"confirm {name}") for name in loops.CATEGORIES}
    assert any(others.values())
    for run in it.store.labels.runs(known.project):
        it.run("undo", str(run.id))
    it.until("what was proposed is gone", lambda: not any(it.tab(known, f"confirm {name}") for name in others))
    assert len({row.keyframe for row in it.store.labels.labels(known.project)}) == confirmed + 5, "people's words stay"
    it.open_tab(known, f"confirm {name}")
    it.shoot("undone")


def test_display__keyframes_labelled_and_confirmed_show_on_the_timeline(everything: Everything, tmp_path: Path) -> None:
    it, studio, page = everything, everything.studio, everything.page
    try:
        clips = sample_clips(tmp_path / "clips")
    except SetupError as error:
        pytest.skip(str(error))
    project = it.connect("Clips by hand", VIDEOS)
    urls = studio.upload_files(project, clips)
    tasks = studio.import_tasks(project, [{"data": {"video": url}} for url in urls])
    it.until("all clips are worked on", lambda: len(_delivered(it, project)) == len(clips), 300)
    known = it.companion(project)
    assert not known.own

    def timelines() -> set[str]:
        rows = [row for task in tasks for row in studio.predictions(task)]
        return {region["value"]["timelinelabels"][0] for row in rows for region in row["result"]}

    assert timelines() == {wire.RESERVED_CATEGORY}
    last = it.label(known, 5, lambda data: CLIPS[data["video"]])
    seconds = it.until("what follows is shown", lambda: it.state(known, last) == "labelled")
    seconds += it.until("the timeline", lambda: len(timelines()) > 1)
    print(f"keyframes and timelines show {timelines()} {seconds:.1f} s after Submit")
    it.until("at rest", lambda: not it.is_busy(known.project))
    found = max((STREET, FILM), key=lambda name: len(it.tab(known, f"confirm {name}")))
    waiting = it.tab(known, f"confirm {found}")
    if waiting:
        it.confirm(known, found)
        it.until("tab 2 is empty", lambda: not set(it.tab(known, f"confirm {found}")) & set(waiting))
    it.until("at rest", lambda: not it.is_busy(known.project))
    page.goto(f"{it.server.url}/projects/{project}/data?task={tasks[0]}")
    page.get_by_text(re.compile(f"{STREET}|{FILM}")).nth(2).wait_for()
    page.wait_for_timeout(2000)
    it.shoot("timeline")

    proposed = {p.category for p in it.store.labels.proposals(known.project, "proposed")}
    for run in it.store.labels.runs(known.project):
        it.run("undo", str(run.id))
    it.until("nothing is proposed", lambda: not it.store.labels.proposals(known.project, "proposed"))
    it.until("at rest", lambda: not it.is_busy(known.project))
    assert all(it.tab(known, f"confirm {name}") == [] for name in (STREET, FILM)), proposed


def _delivered(it: Everything, project: int) -> list[str]:
    uids = [served.uid for served in it.store.projects() if served.label_studio_id == project]
    return [video.state for uid in uids for video in it.store.video_status(uid) if video.state == "delivered"]
