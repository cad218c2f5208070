"""The main job, as a new user meets it: `lookalike up --demo`, a real Label Studio, a real browser."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from lookalike.label_studio import LabelStudio
from lookalike.schema import work
from lookalike.store import open_store
from tests.services import free_port

pytestmark = pytest.mark.e2e

PROGRAM = Path(".venv-label-studio/bin/label-studio")


@dataclass
class Demo:
    process: subprocess.Popen[str]
    data_dir: Path
    url: str
    backend: str
    email: str
    password: str
    studio: LabelStudio
    output: list[str]

    @property
    def project(self) -> dict:
        return next(p for p in self.studio.projects() if p["title"] == "Lookalike demo")  # not that of its keyframes

    def tasks(self) -> list[dict]:
        return list(self.studio.tasks(self.project["id"]))


def _up(data_dir: Path, ports: tuple[int, int]) -> list[str]:
    command = [sys.executable, "-m", "lookalike.cli", "up", "--demo", "--data-dir", str(data_dir)]
    return [*command, "--ports", f"{ports[0]},{ports[1]}"]


def _start(data_dir: Path, ports: tuple[int, int]) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(_up(data_dir, ports), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        output.extend(iter(process.stdout.readline, ""))

    threading.Thread(target=read, daemon=True).start()
    return process, output


def _refused(data_dir: Path, ports: tuple[int, int]) -> list[str]:
    """What it says where it does not start."""
    done = subprocess.run(
        _up(data_dir, ports), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 1
    return done.stdout.splitlines()


def _wait_for(output: list[str], text: str, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 700
    while time.monotonic() < deadline:
        for line in list(output):
            if text in line:
                return line
        if process.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"{text!r} did not come:\n{''.join(output)}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is missing; make test installs it")
    data_dir = tmp_path_factory.mktemp("demo")
    ports = free_port(), free_port()
    process, output = _start(data_dir, ports)
    try:
        _wait_for(output, "ready:", process)
        login = json.loads((data_dir / "login.json").read_text())
        url = f"http://127.0.0.1:{ports[0]}"
        studio = LabelStudio(url, login["token"])
        backend = f"http://127.0.0.1:{ports[1]}"
        yield Demo(process, data_dir, url, backend, login["email"], login["password"], studio, output)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def test_demo__every_clip_has_one_prediction_that_covers_its_timeline(demo: Demo) -> None:
    tasks = demo.tasks()
    assert sorted(Path(task["data"]["video"]).name.split("-", 1)[1] for task in tasks) == [
        "bigbuckbunny.mp4",
        "bikes.mp4",
        "opossum_snow.mp4",
    ]
    for task in tasks:
        predictions = demo.studio.predictions(task["id"])
        assert len(predictions) == 1
        ranges = [region["value"]["ranges"][0] for region in predictions[0]["result"]]
        assert ranges[0]["start"] == 1
        assert all(b["start"] == a["end"] + 1 for a, b in itertools.pairwise(ranges))


def test_demo__bikes_is_cut_where_its_shots_change(demo: Demo) -> None:
    """bikes.mp4 has hard cuts near 1.20, 5.48, 7.48 and 9.68 s; the configuration counts 25 frames a second."""
    task = next(task for task in demo.tasks() if "bikes" in task["data"]["video"])
    result = demo.studio.predictions(task["id"])[0]["result"]
    starts = {region["value"]["ranges"][0]["start"] for region in result}
    for cut_s in (1.20, 5.48, 7.48):
        assert any(abs(start - 1 - cut_s * 25) <= 2 for start in starts), (cut_s, sorted(starts))
    assert all(region["value"]["timelinelabels"] == ["Cluster (unnamed)"] for region in result)
    assert all(re.match(r"c\d{4} · \d+ keyframe", region["meta"]["text"][0]) for region in result)


def test_demo__two_openings_at_once_give_one_prediction(demo: Demo) -> None:
    """What the browser does: two requests for the task, a moment apart, after its predictions were deleted."""
    task = demo.tasks()[0]
    for prediction in demo.studio.predictions(task["id"]):
        demo.studio.delete_prediction(prediction["id"])
    headers = demo.studio._authorization()
    answers: list[int] = []

    def open_task() -> None:
        answers.append(requests.get(f"{demo.url}/api/tasks/{task['id']}", headers=headers, timeout=60).status_code)

    threads = [threading.Thread(target=open_task) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    with contextlib.closing(open_store(f"sqlite:///{demo.data_dir / 'ledger.sqlite3'}")) as store:
        deadline = time.monotonic() + 60
        while any(row.state in ("due", "running") for row in store.ledger.rows(work.c.kind == "deliver")):
            assert time.monotonic() < deadline  # for the delivery that looks after what the two have saved
            time.sleep(0.2)
    assert len(demo.studio.predictions(task["id"])) == 1


def test_demo__an_import_by_hand_is_pre_annotated_by_itself(demo: Demo, tmp_path: Path) -> None:
    clip = tmp_path / "again, with a comma.mp4"
    shutil.copy(demo.data_dir / "clips" / "bikes.mp4", clip)
    [url] = demo.studio.upload_files(demo.project["id"], [clip])
    [task] = demo.studio.import_tasks(demo.project["id"], [{"data": {"video": url}}])
    deadline = time.monotonic() + 180
    while not demo.studio.predictions(task) and time.monotonic() < deadline:
        time.sleep(0.5)
    [prediction] = demo.studio.predictions(task)
    first = next(t for t in demo.tasks() if t["data"]["video"].endswith("-bikes.mp4"))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        notes = [region["meta"]["text"][0][:5] for region in demo.studio.predictions(first["id"])[0]["result"]]
        if [region["meta"]["text"][0][:5] for region in prediction["result"]] == notes:
            return  # the same pictures, the same clusters
        time.sleep(1)
        prediction = demo.studio.predictions(task)[0]
    pytest.fail(f"the copy's clusters differ: {prediction['result']} and {notes}")


def test_demo__status_and_doctor_find_all_well(demo: Demo) -> None:
    environment = os.environ | {
        "LOOKALIKE_DATA_DIR": str(demo.data_dir),
        "LOOKALIKE_LABEL_STUDIO_URL": demo.url,
        "LOOKALIKE_PORT": demo.backend.rsplit(":", 1)[1],
        "LOOKALIKE_LABEL_STUDIO_TOKEN": demo.studio._token,
    }

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lookalike.cli", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    status = run("status")
    assert status.returncode == 0, status.stderr
    assert "'Lookalike demo'" in status.stdout
    assert "delivered" in status.stdout
    doctor = run("doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "wrong" not in doctor.stdout
    environment["LOOKALIKE_LABEL_STUDIO_TOKEN"] = "0123456789abcdef0123456789abcdef01234567"
    refused = run("doctor")
    assert refused.returncode == 1
    assert "personal access token" in refused.stdout


def test_demo__doctor_needs_nothing_but_the_folder(demo: Demo) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "lookalike.cli", "doctor", "--data-dir", str(demo.data_dir)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "acts as demo@example.com" in found.stdout


def test_demo__a_person_sees_the_segments(demo: Demo, tmp_path: Path) -> None:
    """Log in, open the first task, and see its regions in the list and on the timeline."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    task = next(task for task in demo.tasks() if task["data"]["video"].endswith("-bikes.mp4"))
    expected = len(demo.studio.predictions(task["id"])[0]["result"])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{demo.url}/user/login/")
        page.fill("input[name=email]", demo.email)
        page.fill("input[name=password]", demo.password)
        page.click("button[type=submit]")
        page.wait_for_load_state()
        page.goto(f"{demo.url}/projects/{demo.project['id']}/data?task={task['id']}")
        page.get_by_text("Cluster (unnamed)").nth(expected).wait_for()
        regions = page.locator(".lsf-outliner-item, [class*=outliner-item]").filter(has_text="Cluster (unnamed)")
        page.screenshot(path=str(tmp_path / "timeline.png"))
        assert regions.count() >= expected
        browser.close()


def test_demo__a_busy_port_is_one_sentence(demo: Demo, tmp_path: Path) -> None:
    """Runs while the demo holds its ports."""
    ports = int(demo.url.rsplit(":", 1)[1]), int(demo.backend.rsplit(":", 1)[1])
    [said] = _refused(tmp_path / "other", ports)
    assert re.match(r"lookalike: port \d+ cannot be used .* choose others", said)


def test_demo__the_same_folder_twice_is_one_sentence(demo: Demo) -> None:
    assert "another 'lookalike up' uses" in _refused(demo.data_dir, (free_port(), free_port()))[-1]


def test_demo__the_token_is_nowhere_but_in_its_file(demo: Demo) -> None:
    """After all of the above: neither in logs, the queue, the ledger, arguments of processes, metrics, nor pages."""
    token = json.loads((demo.data_dir / "login.json").read_text())["token"].encode()
    signature = token.rsplit(b".", 1)[1]
    looks_like_one = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}")  # a JSON Web Token: those that we were lent, too
    searched = 0
    for path in demo.data_dir.rglob("*"):
        # Label Studio keeps its own tokens; what we downloaded or were given to keep is no text
        if path.is_file() and path.name != "login.json" and "label-studio" not in path.parts and path.suffix != ".jpg":
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # it is all at work
            assert signature not in content, path
            assert not looks_like_one.search(content), path
            searched += 1
    assert searched > 5
    assert {"ledger.sqlite3", "appendonlydir", "backend.log"} <= {path.name for path in demo.data_dir.rglob("*")}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert signature not in entry.read_bytes()
    for page in ("/metrics", "/health", "/ready", "/login", "/versions", "/no-such-page"):
        answer = requests.get(demo.backend + page, timeout=60)
        assert signature not in answer.content, page
        assert b"Traceback" not in answer.content, page
    assert signature.decode() not in "".join(demo.output)


def test_demo__stops_and_comes_back_with_everything(demo: Demo) -> None:
    """The last test of the module: Ctrl-C, no process left, then the same data again.

    It comes back without its token, as if it had been killed between making and remembering it.
    """
    before = {task["id"]: demo.studio.predictions(task["id"])[0]["id"] for task in demo.tasks()}
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(120) == 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(demo.data_dir).encode() not in entry.read_bytes(), entry.read_bytes()
        except OSError:
            continue  # it ended meanwhile
    ports = int(demo.url.rsplit(":", 1)[1]), int(demo.backend.rsplit(":", 1)[1])
    login = json.loads((demo.data_dir / "login.json").read_text())
    (demo.data_dir / "login.json").write_text(json.dumps(login | {"token": ""}))
    process, output = _start(demo.data_dir, ports)
    try:
        _wait_for(output, "ready:", process)
        demo.studio = LabelStudio(demo.url, json.loads((demo.data_dir / "login.json").read_text())["token"])
        after = {task["id"]: demo.studio.predictions(task["id"])[0]["id"] for task in demo.tasks()}
        assert after == before
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
