"""`lookalike up`: what is refused with a sentence before anything starts, its own queue server, and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lookalike.errors import LookalikeError, SettingsError, SetupError
from lookalike.queue import Queue, redis_url
from lookalike.settings import Settings
from tests.services import ROOT, free_port
from workers import up
from workers.supervisor import Supervisor

TOKEN = {"LOOKALIKE_LABEL_STUDIO_TOKEN": "0123456789abcdef0123456789abcdef01234567"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("LOOKALIKE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def start(data_dir: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lookalike.cli", "up", "--data-dir", str(data_dir), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=pipe, stderr=pipe, text=True)


def processes_of(data_dir: Path) -> list[str]:
    """The command lines of all processes that know the folder; zombies have none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if str(data_dir).encode() in command + (folder / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8080", "--ports must be two numbers such as 8080,9090, got '8080'"),
        ("a,b", "--ports must be two numbers such as 8080,9090, got 'a,b'"),
        ("1,2,3", "--ports must be two numbers such as 8080,9090, got '1,2,3'"),
        ("8080,99999", "--ports must be two different numbers from 1 to 65535, got '8080,99999'"),
        ("0,9090", "--ports must be two different numbers from 1 to 65535, got '0,9090'"),
        ("9090,9090", "--ports must be two different numbers from 1 to 65535, got '9090,9090'"),
    ],
)
def test_ports__wrong_ones(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        up._ports(text)
    assert str(error.value) == said


def test_ports() -> None:
    assert up._ports("8080, 9090") == (8080, 9090)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ([], {}, "name a Label Studio with --label-studio URL, or start a demo with --demo"),
        (["--label-studio", "http://x"], {}, "set LOOKALIKE_LABEL_STUDIO_TOKEN, or LOOKALIKE_LABEL_STUDIO_TOKEN_FILE"),
        (
            ["--label-studio", "x:8080"],
            TOKEN,
            "LOOKALIKE_LABEL_STUDIO_URL must start with http:// or https://, got 'x:8080'",
        ),
        (["--label-studio", "http://x", "--clips", "y"], TOKEN, "--clips goes with --demo"),
        (["--demo", "--ports", "8080"], {}, "--ports must be two numbers"),
        (["--demo", "--workers", "0"], {}, "LOOKALIKE_WORKERS must be between 1 and 256, got 0"),
        (["--demo", "--label-studio-bin", "/gone"], {}, "/gone is no program that can be run; 'make run' installs it"),
        (["--demo", "--label-studio-bin", "/"], {}, "/ is no program that can be run; 'make run' installs it"),
        (["--demo"], {"LOOKALIKE_COLOUR": "red"}, "LOOKALIKE_COLOUR is not a setting"),
    ],
)
def test_command__what_is_refused_leaves_nothing_behind(
    tmp_path: Path, options: list[str], environment: dict[str, str], said: str
) -> None:
    data_dir = tmp_path / "data"
    result = CliRunner().invoke(up.command, ["--data-dir", str(data_dir), *options], env=environment)
    assert isinstance(result.exception, LookalikeError), result.output
    assert str(result.exception).startswith(said)
    assert not data_dir.exists()


def test_command__a_busy_port_is_one_sentence_and_status_1(tmp_path: Path, busy_port: int) -> None:
    ports = f"{free_port()},{busy_port}"
    process = start(tmp_path, "--label-studio", "http://127.0.0.1:1", "--ports", ports, **TOKEN)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert error == (
        f"lookalike: port {busy_port} cannot be used (Address already in use); stop what uses it, or choose others: "
        "lookalike up --ports 8081,9091, or make run PORTS=8081,9091\n"
    )
    assert not (tmp_path / "logs").exists()  # where each process that is started writes


def test_command__clips_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    data_dir, ports = tmp_path / "data", f"{free_port()},{free_port()}"
    options = ("--demo", "--label-studio-bin", sys.executable, "--clips", str(tmp_path / "gone"), "--ports", ports)
    process = start(data_dir, *options)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert error == f"lookalike: {tmp_path / 'gone'} is not a folder; name a folder with video files\n"
    assert not (data_dir / "logs").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_command__ctrl_c_while_it_starts_stops_everything(tmp_path: Path) -> None:
    ports = f"{free_port()},{free_port()}"
    process = start(tmp_path, "--label-studio", "http://127.0.0.1:1", "--ports", ports, **TOKEN)
    until = time.monotonic() + 120
    while not any("workers.worker" in command for command in processes_of(tmp_path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    assert any("valkey" in command for command in processes_of(tmp_path))
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out.splitlines()[1:], error) == (0, ["stopping …"], "")  # first: that it is not there
    assert processes_of(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_command__a_backend_that_does_not_start_ends_it_all_with_its_last_words(tmp_path: Path) -> None:
    ports = f"{free_port()},{free_port()}"
    options = ("--label-studio", "http://127.0.0.1:1", "--ports", ports)
    process = start(tmp_path, *options, LOOKALIKE_HOST="0.0.0.0", **TOKEN)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out.splitlines()[1:]) == (1, ["stopping …"])
    assert error.startswith("lookalike: backend does not start. The end of ")
    assert (
        "host 0.0.0.0 can be reached from other machines: set LOOKALIKE_BASIC_AUTH_USER and LOOKALIKE_BASIC_AUTH_PASS"
        in error
    )
    assert "Traceback" not in error
    assert processes_of(tmp_path) == []


def test_check_machine__disk_and_ports(tmp_path: Path, busy_port: int) -> None:
    settings = Settings(data_dir=tmp_path)
    up._check_machine(settings, [free_port()])
    with pytest.raises(SetupError, match=f"port {busy_port} cannot be used"):
        up._check_machine(settings, [free_port(), busy_port])
    with pytest.raises(SetupError, match=r"has \d+ MB free and 1000000000000 MB are needed; make room"):
        up._check_machine(settings.with_(disk_free_mb=1e12), [free_port()])


@pytest.mark.parametrize(
    ("states", "line", "finished"),
    [
        ([], "pre-annotated 0 of 0 videos", False),
        (["queued"], "pre-annotated 0 of 1 videos", False),
        (["extracting", "embedding", "delivered"], "pre-annotated 1 of 3 videos (embedding, extracting)", False),
        (["delivered", "failed"], "pre-annotated 1 of 2 videos, 1 failed", True),
        (["delivered"], "pre-annotated 1 of 1 videos", True),
        (["delivered", "updating"], "pre-annotated 2 of 2 videos (updating)", False),
    ],
)
def test_progress(states: list[str], line: str, finished: bool) -> None:
    assert up._progress(states) == (line, finished)


# --- our own queue server ---


def as_it_is(check: Callable[[], bool]) -> Callable[[], bool]:
    return check


def broken_folders(data_dir: Path) -> list[Path]:
    return sorted(data_dir.glob("valkey.broken-*"))


def test_valkey__starts_and_keeps_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data_dir=tmp_path)
    for _ in range(2):
        with Supervisor(tmp_path / "logs") as supervisor:
            up._start_valkey(supervisor, settings, as_it_is)
            Queue(redis_url("", tmp_path)).ping()
    assert broken_folders(tmp_path) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("broken", ["appendonly.aof.*.incr.aof", "appendonly.aof.manifest"])
def test_valkey__what_it_cannot_read_is_moved_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    settings = Settings(data_dir=tmp_path)
    with Supervisor(tmp_path / "logs") as supervisor:
        up._start_valkey(supervisor, settings, as_it_is)
    [file] = (tmp_path / "valkey" / "appendonlydir").glob(broken)
    file.write_bytes(b"garbage, and more of it\r\n" * 100)
    with Supervisor(tmp_path / "logs") as supervisor:
        up._start_valkey(supervisor, settings, as_it_is)
        queue = Queue(redis_url("", tmp_path))
        queue.ping()
        assert queue.depth() == {"videos": 0, "projects": 0}
        supervisor.watch()  # and does not bring the first one back
        assert not [path for path in (tmp_path / "logs").iterdir() if path.name not in ("valkey.log", "valkey1.log")]
    [aside] = broken_folders(tmp_path)
    assert (aside / "appendonlydir" / file.name).read_bytes().startswith(b"garbage")
    assert capsys.readouterr().out == (
        f"the queue server cannot read {tmp_path / 'valkey'}; it starts empty, and the old folder is {aside.name}\n"
    )


def test_valkey__comes_back_where_its_folder_was_deleted(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        up._start_valkey(supervisor, Settings(data_dir=tmp_path), as_it_is)
        [service] = supervisor._services
        assert service.process is not None
        shutil.rmtree(tmp_path / "valkey")
        service.process.kill()
        service.process.wait()
        while service.starts < 2:
            supervisor.watch()
        supervisor.wait(service, lambda: up._is_there(Queue(redis_url("", tmp_path))))


def test_valkey__slow_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o700)
    monkeypatch.setattr(up, "_valkey_program", lambda: str(slow))
    monkeypatch.setattr(up, "_VALKEY_WITHIN_S", 0.3)
    with Supervisor(tmp_path / "logs") as supervisor:
        with pytest.raises(SetupError, match="valkey was not ready within 0 s"):
            up._start_valkey(supervisor, Settings(data_dir=tmp_path), as_it_is)
        assert broken_folders(tmp_path) == []


def test_greet__a_label_studio_that_is_not_there_yet_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    up._greet(Settings(label_studio_url=url, label_studio_token="0" * 40))
    said = f"Label Studio at {url} does not answer (ConnectionError); is it running? The work starts when it answers\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("url", "token", "said"),
    [
        ("http://", "0" * 40, "LOOKALIKE_LABEL_STUDIO_URL must look like http://localhost:8080, got 'http://'"),
        (
            "http://localhost:8080",
            "two words",
            "LOOKALIKE_LABEL_STUDIO_TOKEN must be one word without spaces; copy it again",
        ),
    ],
)
def test_command__what_waiting_will_not_mend_is_one_sentence(tmp_path: Path, url: str, token: str, said: str) -> None:
    up_ = start(tmp_path / "data", "--label-studio", url, "--ports", f"{free_port()},{free_port()}",
                LOOKALIKE_LABEL_STUDIO_TOKEN=token)  # fmt: skip
    assert up_.communicate(timeout=120)[1].endswith(f"lookalike: {said}\n")
    assert up_.returncode == 1
    assert processes_of(tmp_path) == []
