"""Every page as people see it: a real project at a real Label Studio, worked on by the real stages, in a real browser.

    python -m tests.shots --out shots             all pages, at 1280 and 1920 px, light and dark, and at 820 px
    python -m tests.shots --out shots --only map,clusters
    python -m tests.shots --docs docs/images/pages   … its four forms as one picture, for docs/pages.md
    python -m tests.shots --serve                 only start it, and say where it is

The pictures are 20 categories of Caltech-101 (CC BY 4.0) where they are at ../shared/data, else drawn ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image, ImageOps

from lookalike.label_studio import LabelStudio, first_token
from lookalike.ledger import KINDS, Claim
from lookalike.schema import work
from lookalike.wire import RESERVED_CATEGORY
from tests.e2e import loops
from tests.e2e.loops import Loop
from tests.services import LabelStudioServer, migrated
from workers import jobs

#: width and height of the windows; the tablet is to be looked at, not shown
_DESKS = ((1280, 800), (1920, 1080))
_TABLET = (820, 1180)
_SCHEMES = ("light", "dark")
_SCENES = 36  # of a second each, in one video
_PER_CATEGORY = 24
_DOCS_WIDTH = 800  # of one form in the pictures of the docs


@dataclass(frozen=True)
class Site:
    loop: Loop
    studio: LabelStudioServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.loop.place.settings.port}"

    def pages(self) -> dict[str, str]:
        """Path by name."""
        here, store, uid = f"/projects/{self.loop.project}", self.loop.store, self.loop.uid
        proposed = store.labels.proposals(uid, "proposed")
        category = max({p.category for p in proposed}, key=[p.category for p in proposed].count)
        example = next(p.keyframe for p in proposed if p.category == category)
        grouped = store.clustering(uid, self.loop.place.settings.embedder)
        assert grouped is not None
        numbers, sizes = np.unique(grouped[0].clusters, return_counts=True)
        return {
            "projects": "/projects",
            "overview": here,
            "videos": f"{here}/videos",
            "clusters": f"{here}/clusters",
            "cluster": f"{here}/clusters/{numbers[sizes.argmax()]}",
            "categories": f"{here}/categories",
            "category": f"{here}/category?name={category}",
            "map": f"{here}/map",
            "keyframe": f"{here}/keyframes/{example}",
            "search": f"{here}/search?category={category}&labelled=no",
            "login": "/login",
            "error": f"{here}/keyframes/1",
        }


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("--out", type=Path)
    asks.add_argument("--docs", type=Path)
    asks.add_argument("--only", default="", help="names of pages, comma-separated")
    asks.add_argument("--serve", action="store_true")
    asked = asks.parse_args()
    logging.getLogger("lookalike").setLevel(logging.ERROR)  # there is no queue server, on purpose
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="lookalike-shots-") as folder, site(Path(folder)) as made:
        if asked.out or asked.docs:
            out = asked.out or Path(folder) / "shots"
            shoot(made, out, [name for name in asked.only.split(",") if name])
            if asked.docs:
                compose(out, asked.docs)
        if asked.serve:
            print(f"pages: {made.url}/projects, token: {made.studio.token}")
            print(f"Label Studio: {made.studio.url}, {made.studio.email}, {made.studio.password}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    _work(made.loop)
                    time.sleep(0.2)


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """A project of videos as it is in the middle of the work, with its backend."""
    shutil.copytree(migrated(), folder / "studio")
    server = LabelStudioServer(folder / "studio")
    try:
        server.start()
        server.token = first_token(server.url, server.email, server.password)
        categories = _categories()
        with _project(server, folder, categories) as loop:
            for _ in range(2):
                loop.label_next()
                loop.propagate()
            loop.store.want("map", loop.uid)
            loop.work()
            _more_to_do(loop)
            backend = subprocess.Popen(
                [sys.executable, "-m", "backend.serve"],
                env=os.environ | loop.place.settings.to_environment(),
                stderr=subprocess.DEVNULL,
            )
            try:
                made = Site(loop, server)
                _wait_for(made.url)
                yield made
            finally:
                backend.terminate()
                backend.wait(30)
    finally:
        server.stop()


def shoot(site: Site, out: Path, only: Sequence[str] = ()) -> None:
    """OUT/<page>-<width>-<scheme>.png of each page."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        signed, stranger = browser.new_context(), browser.new_context()
        page = signed.new_page()
        page.goto(f"{site.url}/login")
        page.fill('input[name="token"]', site.studio.token)
        page.press('input[name="token"]', "Enter")
        page.wait_for_url("**/projects")
        for name, path in site.pages().items():
            if only and name not in only:
                continue
            page = (stranger if name == "login" else signed).new_page()
            for scheme in _SCHEMES:
                for width, height in (*_DESKS, _TABLET):
                    page.set_viewport_size({"width": width, "height": height})
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    page.goto(f"{site.url}{path}")
                    _settle(page, name)
                    page.screenshot(path=out / f"{name}-{width}-{scheme}.png")
            page.close()
        browser.close()


def compose(shots: Path, out: Path) -> None:
    """OUT/<page>.webp: its four forms as one picture."""
    out.mkdir(parents=True, exist_ok=True)
    for first in sorted(shots.glob(f"*-{_DESKS[0][0]}-{_SCHEMES[0]}.png")):
        name, gap = first.name.rsplit("-", 2)[0], 12
        rows = []
        for width, _ in _DESKS:
            forms = [Image.open(shots / f"{name}-{width}-{scheme}.png").convert("RGB") for scheme in _SCHEMES]
            rows.append([ImageOps.contain(form, (_DOCS_WIDTH, _DOCS_WIDTH)) for form in forms])
        height = sum(row[0].height for row in rows) + gap
        sheet = Image.new("RGB", (2 * _DOCS_WIDTH + gap, height), (128, 128, 128))
        top = 0
        for row in rows:
            for n, form in enumerate(row):
                sheet.paste(form, (n * (_DOCS_WIDTH + gap), top))
            top += row[0].height + gap
        sheet.save(out / f"{name}.webp", quality=80, method=6)


# --- steps ---


def _categories() -> tuple[str, ...]:
    if not loops.PICTURES.exists():
        return loops.CATEGORIES
    return tuple(sorted(path.name for path in loops.PICTURES.iterdir())[:12])


@contextlib.contextmanager
def _project(server: LabelStudioServer, folder: Path, categories: Sequence[str]) -> Iterator[Loop]:
    if loops.PICTURES.exists():
        found = [(name, path) for name in categories for path in sorted((loops.PICTURES / name).iterdir())]
    else:
        found = [(name, path) for name, paths in loops.pictures(folder, _PER_CATEGORY).items() for path in paths]
    order = np.random.default_rng(0).permutation(len(found))[: _PER_CATEGORY * len(categories)]
    shown = [(found[at][0], _cropped(found[at][1], folder / f"{at}.jpg")) for at in order]
    truth: dict[str | tuple[str, int], str] = {}
    clips = []
    for n, start in enumerate(range(0, len(shown), _SCENES)):
        scenes = shown[start : start + _SCENES]
        clips.append(folder / f"catalogue-{n + 1}.mp4")
        loops.clip(clips[-1], [path for _, path in scenes])
        truth |= {(clips[-1].name, second): name for second, (name, _) in enumerate(scenes)}

    def fill(studio: LabelStudio, project: int) -> None:
        urls = studio.upload_files(project, clips)
        studio.import_tasks(project, [{"data": {"video": url}} for url in urls])

    colours = ("#1a73e8", "#d93025", "#188038", "#f9ab00", "#9334e6", "#12b5cb")
    labels = "".join(f'<Label value="{name}" background="{colours[n % 6]}"/>' for n, name in enumerate(categories))
    config = (
        '<View><Video name="video" value="$video" frameRate="8"/><TimelineLabels name="timeline" toName="video">'
        f'<Label value="{RESERVED_CATEGORY}" background="#9aa0a6"/>{labels}</TimelineLabels></View>'
    )
    with loops.worked_on(server, folder, "Catalogue, spring", config, fill, truth, clusters=0) as loop:
        yield loop


def _cropped(path: Path, to: Path) -> Path:
    with Image.open(path) as image:
        out = io.BytesIO()
        ImageOps.fit(image.convert("RGB"), (320, 240)).save(out, "JPEG", quality=92)
    to.write_bytes(out.getvalue())
    return to


def _more_to_do(loop: Loop) -> None:
    """A video that is at work, one that waits, and one that is none."""
    names = ("catalogue-next.mp4", "catalogue-after.mp4", "notes.mp4")
    loop.store.add_videos(loop.uid, [(9000 + n, f"/data/upload/1/0123abcd-{name}", {}) for n, name in enumerate(names)])
    ids = {video.task: video.id for video in loop.store.videos(loop.uid)}
    _claim(loop, ids[9000])
    loop.store.ledger.fail(_claim(loop, ids[9002]), "notes.mp4 is no video that can be decoded; convert it")


def _claim(loop: Loop, video: int) -> Claim:
    [row] = loop.store.ledger.rows((work.c.kind == "video") & (work.c.subject == str(video)))
    claim = loop.store.ledger.claim(row.id, "shots", lease_s=3600, max_crashes=3)
    assert claim is not None
    return claim


def _work(loop: Loop) -> None:
    """What a person asks for on the pages; the videos stay as they are shown."""
    for row in loop.store.ledger.due([kind for kind in KINDS if kind != "video"], 10):
        getattr(jobs, row.kind)(row.id)


def _wait_for(url: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{url}/health", timeout=1)
            return
        time.sleep(0.1)
    raise TimeoutError(url)


def _settle(page: Any, name: str) -> None:
    shown = {"map": "#map[data-points]", "keyframe": "#nearest .tile", "search": "#sheet .tile"}.get(name, "main")
    page.wait_for_selector(shown, timeout=120_000)  # the first search makes the index
    seen = "image => image.getBoundingClientRect().top > innerHeight || image.complete"
    while not page.evaluate(f"[...document.images].every({seen})"):  # wait_for_function is against the pages' policy
        page.wait_for_timeout(50)
    page.wait_for_timeout(300)


if __name__ == "__main__":
    main()
