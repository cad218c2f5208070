"""Media: a video or picture of a task as a local file, and a guarded child process to decode it in.

A task's URL is whatever somebody wrote into it. Label Studio's token goes to Label Studio alone; other hosts must have
public addresses, checked on the address that is connected to, since a name may point elsewhere a moment later; local
files must lie below `local_files_root`. A decoder only ever sees a regular file, never a URL.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import create_connection

from lookalike.errors import (
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnreachable,
    LookalikeError,
    MediaError,
    MediaHeldUp,
    MediaUnreachable,
)
from lookalike.label_studio import LabelStudio
from lookalike.records import Media
from lookalike.settings import Settings

T = TypeVar("T")

#: names of files that are taken for videos
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".ts", ".m2ts"),
    *(".mts", ".mxf", ".3gp", ".asf", ".vob"),
)

_MAX_REDIRECTS = 3
_CONNECT_TIMEOUT_S = 10.0
_SILENCE_S = 30.0  # longest wait for the next bytes
_CHUNK_BYTES = 1 << 18
_DISK_CHECK_BYTES = 64 << 20
_MB = 1_000_000

#: where Label Studio serves media; the token opens everything else too, so nothing else is asked for
_LABEL_STUDIO_MEDIA = re.compile(r"/(data|storage-data)/|/(tasks|projects)/\d+/(presign|resolve)/")
#: imported once by the process that children are forked from: it makes a child cost milliseconds, not a second
_PRELOAD = [__name__, "workers.keyframes"]
_FILE_MB = 256  # largest file that a child may write; its pictures have a few megabytes at most
_OPEN_FILES = 256
_starting = threading.Lock()


# --- fetching ---


def fetch(media: Media, into: Path, settings: Settings, label_studio: LabelStudio | None) -> Path:
    """The media as a regular local file: where it lies, or downloaded to `into/<sha256 of its address>`.

    A file that was downloaded before is not fetched again. Raises MediaError (it can never be had) or MediaUnreachable
    (not now: the server is down or slow, or the disk is full).
    """
    url = media.url
    local = _local_file(url, settings, label_studio)
    if local is not None:
        return local
    sought = settings.local_files_root if url.startswith("/data/local-files") else ""
    if url.startswith("/"):
        if label_studio is None and sought:
            raise MediaError(f"{shown_url(url)} does not exist below {sought}; put it there, or correct the task")
        if label_studio is None:
            raise MediaError(
                f"{shown_url(url)} is Label Studio's, and none is connected; set LOOKALIKE_LABEL_STUDIO_URL"
            )
        url = label_studio.url + url
    _check_scheme(url)

    target = into / hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()
    if target.exists():
        return target
    into.mkdir(parents=True, exist_ok=True)
    _sweep(into, settings)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with _opened(url, settings, label_studio) as response:
            _save(response, part, settings, shown_url(url))
        part.rename(target)
    except MediaError as error:
        if error.outage or not sought:
            raise
        raise type(error)(f"{shown_url(media.url)} does not exist below {sought}, and Label Studio: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet at large: not private, loopback, link-local, multicast, …"""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip.sixtofour or ip.teredo or ip in ipaddress.ip_network("64:ff9b::/96"):
            return False  # an IPv4 address in disguise, which some routers unpack
    return ip.is_global and not ip.is_multicast


# --- guarding ---


def run_guarded(function: Callable[..., T], *args: Any, timeout_s: float, memory_mb: float) -> T:
    """What a module-level function returns, run in a child process of its own with limits.

    The child may take `memory_mb` MB of address space and `timeout_s` seconds; it dies with us. It is forked from a
    small server process, never from this one: a process that has run torch hangs when it is forked. Errors of our own
    tree come through as they are, as do bugs; a child that crashes or breaks a limit gives a MediaError.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, args, timeout_s, memory_mb), daemon=True)
    try:
        with _without_main():
            process.start()
        sender.close()
        if not receiver.poll(timeout_s):
            raise MediaError(
                f"it took longer than {timeout_s:g} s to decode; raise LOOKALIKE_DECODE_TIMEOUT_S if that is right"
            )
        try:
            done, value = receiver.recv()
        except EOFError:
            process.join()
            raise MediaError(_last_words(process.exitcode)) from None
        process.join(1)
    finally:
        if process.pid is not None and process.is_alive():
            process.kill()
            process.join()
        sender.close()
        receiver.close()
    if done:
        return value  # type: ignore[no-any-return]
    raise value


# --- steps: local files ---


def _local_file(url: str, settings: Settings, label_studio: LabelStudio | None) -> Path | None:
    """The file that a path, file:// or /data/local-files/ address means; None if it is to be downloaded."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise MediaError(f"{shown_url(url)} is no address that can be read: {error}") from None
    if label_studio is not None and parts.scheme and label_studio.is_own(url):
        url = url[url.index("/", len(parts.scheme) + 3) :] if parts.path else "/"
        parts = urlsplit(url)
    if parts.path.rstrip("/") == "/data/local-files" and not parts.scheme and not parts.netloc:
        name = parse_qs(url.partition("?")[2]).get("d", [""])[0].lstrip("/")
        return _below_root(name, url, settings, must_exist=False) if settings.local_files_root else None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise MediaError(f"{shown_url(url)} names another machine; a file:// address must begin with file:///")
        return _below_root(unquote(parts.path), url, settings)
    if not url or "://" in url or url.startswith("//") or re.match(r"[a-z][a-z0-9+.-]+:", url, re.IGNORECASE):
        return None
    if _LABEL_STUDIO_MEDIA.match(url):
        return _below_root(url, url, settings, must_exist=False, may_escape=True) if settings.local_files_root else None
    return _below_root(url, url, settings)


def _below_root(
    name: str, url: str, settings: Settings, *, must_exist: bool = True, may_escape: bool = False
) -> Path | None:
    """A regular file below local_files_root, every link followed."""
    if not settings.local_files_root:
        raise MediaError(
            f"{shown_url(url)} is a local file, and none may be read; set LOOKALIKE_LOCAL_FILES_ROOT to its folder"
        )
    try:
        root = Path(settings.local_files_root).resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            if may_escape:
                return None
            raise MediaError(
                f"{shown_url(url)} lies outside LOOKALIKE_LOCAL_FILES_ROOT, {settings.local_files_root}; move it there"
            )
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise MediaError(f"{shown_url(url)} does not exist below {settings.local_files_root}") from None
        return None
    except OSError as error:
        raise MediaError(f"{shown_url(url)} cannot be read: {error.strerror}") from None
    except (ValueError, RuntimeError):  # a NUL byte; a circle of links
        raise MediaError(f"{shown_url(url)} is no path that can be read") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise MediaError(f"{shown_url(url)} is {what}, not a file")
    return path


# --- steps: the network ---


@contextmanager
def _opened(url: str, settings: Settings, label_studio: LabelStudio | None) -> Iterator[requests.Response]:
    """The answer at the end of the redirects, its body unread. Errors while it is read are translated too."""
    trusted = frozenset(host.strip().lower() for host in settings.trusted_hosts.split(",") if host.strip())
    shown = shown_url(url)
    with _Guard(trusted, settings.media_timeout_s) as guard:
        try:
            response = _follow(url, guard, label_studio)
            with response:
                yield response
            if guard.expired:
                raise TimeoutError
        except MediaError:
            if guard.expired:  # an answer that is cut may look empty, short, or whole
                raise MediaUnreachable(_too_slow(shown, settings)) from None
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if guard.expired:
                raise MediaUnreachable(_too_slow(shown, settings)) from None
            if isinstance(error, requests.exceptions.SSLError):
                raise MediaError(f"{shown} has no certificate that we can trust: {error}") from None
            if isinstance(error, ValueError):
                raise MediaError(f"{shown} is no address that can be read: {error}") from None
            raise MediaUnreachable(f"{shown} could not be fetched: {_reason(error)}; it is tried again later") from None


def _follow(url: str, guard: _Guard, label_studio: LabelStudio | None) -> requests.Response:
    by_label_studio = True  # whoever sends us to Label Studio from outside does not send our token along
    for _ in range(_MAX_REDIRECTS + 1):
        _check_scheme(url)
        if guard.expired:
            raise TimeoutError
        by_label_studio = by_label_studio and label_studio is not None and label_studio.is_own(url)
        if by_label_studio and label_studio is not None:
            response = _ask_label_studio(url, label_studio)
        else:
            response = guard.session.get(
                url,
                stream=True,
                allow_redirects=False,
                timeout=(min(_CONNECT_TIMEOUT_S, guard.limit_s), min(_SILENCE_S, guard.limit_s)),
            )
        if not response.is_redirect:
            _check_status(response)
            return response
        url = urljoin(response.url, response.headers["Location"])
        response.close()
    raise MediaError(f"{shown_url(url)} is behind more than {_MAX_REDIRECTS} redirects; use the address it ends at")


def _ask_label_studio(url: str, label_studio: LabelStudio) -> requests.Response:
    path = urlsplit(url).path.removeprefix(urlsplit(label_studio.url).path)
    # Python's requests, or a proxy before Label Studio, takes %2e for a dot
    if not _LABEL_STUDIO_MEDIA.match(path) or ".." in unquote(path).split("/"):
        raise MediaError(
            f"{shown_url(url)} is no media of Label Studio's; use /data/upload/… or /data/local-files/?d=…"
        )
    try:
        return label_studio.open_media(url)
    except (LabelStudioUnreachable, LabelStudioRefused) as error:  # a new token may mend it
        raise (MediaHeldUp if error.outage else MediaUnreachable)(str(error)) from None
    except LabelStudioError as error:
        raise MediaError(str(error)) from None


def _check_scheme(url: str) -> None:
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise MediaError(
            f"{shown_url(url)} is of an unknown kind; the known ones are http://, https://, file://, a path, "
            "/data/upload/… and /data/local-files/?d=…"
        )


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    sentence = f"{shown_url(response.url)} answers {status} {response.reason or ''}".rstrip()
    if status >= 500 or status in (408, 425, 429):
        raise MediaUnreachable(f"{sentence}; it is tried again later")
    raise MediaError(f"{sentence}; check that it is there and needs no login")


def _save(response: requests.Response, part: Path, settings: Settings, shown: str) -> None:
    """The body as it comes, not unpacked, within all limits."""
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise MediaError(f"{shown} is sent compressed although we did not ask for it; serve it as it is")
    length = response.headers.get("Content-Length", "")
    expected = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    limit = settings.media_max_mb * _MB
    until = time.monotonic() + settings.media_timeout_s
    _check_size(expected or 0, limit, shown)
    _check_disk(part.parent, expected or 0, settings)
    received = 0
    next_check = _DISK_CHECK_BYTES
    with part.open("wb") as file:
        # one recv at a time: a slow server must not keep us in a read that never looks at the clock
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
            received += len(chunk)
            _check_size(received, limit, shown)
            if time.monotonic() > until:
                raise MediaUnreachable(_too_slow(shown, settings))
            if received >= next_check:
                _check_disk(part.parent, (expected or 0) - received, settings)
                next_check = received + _DISK_CHECK_BYTES
            file.write(chunk)
    if expected is not None and received != expected:
        raise MediaUnreachable(f"{shown} broke off after {received} of {expected} bytes; it is tried again later")
    if not received:
        raise MediaError(f"{shown} is empty")


def _check_size(size: float, limit: float, shown: str) -> None:
    if size > limit:
        raise MediaError(f"{shown} is larger than {limit / _MB:g} MB; raise LOOKALIKE_MEDIA_MAX_MB if that is right")


def _check_disk(folder: Path, coming: int, settings: Settings) -> None:
    free_mb = (shutil.disk_usage(folder).free - max(coming, 0)) / _MB
    if free_mb < settings.disk_free_mb:
        raise MediaHeldUp(
            f"waiting for disk: {folder} would have {max(free_mb, 0):.0f} MB left, and LOOKALIKE_DISK_FREE_MB is "
            f"{settings.disk_free_mb:g}; make room"
        )


def _sweep(into: Path, settings: Settings) -> None:
    """Remove what a killed process left half done."""
    oldest = time.time() - settings.media_timeout_s - _SILENCE_S
    for part in into.glob("*.part"):
        try:
            if part.stat().st_mtime < oldest:
                part.unlink()
        except FileNotFoundError:
            continue  # another worker was faster


def _too_slow(shown: str, settings: Settings) -> str:
    return f"{shown} took longer than {settings.media_timeout_s:g} s; raise LOOKALIKE_MEDIA_TIMEOUT_S if that is right"


def _reason(error: BaseException) -> str:
    """The innermost reason of a requests or urllib3 error, without the address that they repeat."""
    inner: Any = error
    while inner is not None:
        error = inner
        inside = (getattr(error, "reason", None), *error.args)
        inner = next((each for each in inside if isinstance(each, Exception)), None)
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return "it does not answer any more"
    return str(getattr(error, "strerror", None) or type(error).__name__)


def shown_url(url: str) -> str:
    """An address without its login and query, which may hold secrets; a local file's name is shown."""
    text = url if url.startswith("/data/local-files") else url.split("?", 1)[0]
    text = re.sub(r"//[^/@]*@", "//", text)
    return ascii(text)[1:-1][:200] if not text.isprintable() else text[:200]


class _Guard:
    """A session that only connects where it may, and whose connections are all cut when the time is over.

    Cutting the sockets also ends what no read timeout ends: a server that sends one byte of a header now and then.
    """

    def __init__(self, trusted: frozenset[str], limit_s: float) -> None:
        self.limit_s = limit_s
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True
        self.session = requests.Session()
        self.session.trust_env = False  # neither proxy nor .netrc
        self.session.headers.update({"Accept-Encoding": "identity", "User-Agent": "lookalike"})
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _GuardedAdapter(trusted, self._hold))

    def __enter__(self) -> _Guard:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        self.session.close()
        for each in self._sockets:
            each.close()

    def _hold(self, connected: socket.socket) -> None:
        self._sockets.append(connected.dup())
        if self.expired:  # while it was connecting
            self._cut()

    def _cut(self) -> None:
        self.expired = True
        for each in self._sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, trusted: frozenset[str], hold: Callable[[socket.socket], None]) -> None:
        class Connection(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return _connect(self, trusted, hold)

        class SecureConnection(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return _connect(self, trusted, hold)

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = SecureConnection

        self._pools = {"http": Pool, "https": SecurePool}
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools


def _connect(
    connection: HTTPConnection, trusted: frozenset[str], hold: Callable[[socket.socket], None]
) -> socket.socket:
    """A connection to the very address that was checked: a second look-up could give another one."""
    host, port = connection.host.lower().rstrip("."), connection.port
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not trusted & {host, f"{host}:{port}"}:
        for address in addresses:
            if not is_public(address):
                raise MediaError(
                    f"{host} is at {address}, which is no public address; add {host}:{port} to LOOKALIKE_TRUSTED_HOSTS "
                    "if videos may come from there"
                )
    problem: OSError | None = None
    for address in addresses:
        try:
            sock = create_connection((address, port), connection.timeout, socket_options=connection.socket_options)
        except OSError as error:
            problem = error
            continue
        hold(sock)
        return sock
    raise problem or OSError(f"{host} has no address")


# --- steps: the child process ---


@contextmanager
def _without_main() -> Iterator[None]:
    """Hides our `__main__` while a child starts: multiprocessing would run it again in each child, which costs as much
    as starting the command line anew, and our functions never live there."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _child(
    sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float, memory_mb: float
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches our parent too, which ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    cpu_s = math.ceil(timeout_s * (os.cpu_count() or 1)) + 5
    for limit, value in (
        (resource.RLIMIT_AS, _address_space() + int(memory_mb * _MB)),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _FILE_MB * _MB),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    try:
        outcome: tuple[bool, Any] = (True, function(*args))
    except MemoryError:
        outcome = (
            False,
            MediaError(
                f"it needs more than {memory_mb:g} MB of memory to decode; "
                "raise LOOKALIKE_DECODE_MEMORY_MB if that is right"
            ),
        )
    except LookalikeError as error:
        outcome = False, error
    except Exception as error:  # the edge of this process: a bug, which is raised again in our parent
        error.add_note(f"in the guarded process:\n{traceback.format_exc()}")
        outcome = False, error
    try:
        sender.send(outcome)
    except Exception:
        sender.send((False, RuntimeError(f"the guarded process could not send this: {traceback.format_exc()}")))


def _address_space() -> int:
    """Bytes that the libraries take by themselves: 0.6 GB, hardly any of it used."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # not Linux, which is the one that holds a process to this limit
        return 0


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _last_words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ": this machine ran out of memory, or somebody killed it" if -exit_code == signal.SIGKILL else ""
        return f"the decoder died of {name}{hint}; the file is broken or hostile"
    return f"the decoder ended without a word (exit code {exit_code}); the file is broken or hostile"
