"""Fetching from servers that behave and that do not, and children that crash, hang and eat memory."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import MediaError, MediaUnreachable
from lookalike.label_studio import LabelStudio
from lookalike.records import Media
from lookalike.settings import Settings
from tests.services import LabelStudioServer, free_port
from workers import media
from workers.media import fetch, is_public, run_guarded

VIDEO = bytes(range(256)) * 2000  # 512 kB


class Server:
    """A loopback server whose pages are functions. Remembers paths and Authorization headers."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[str, str]] = []
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization", "")))
                try:
                    outer.pages[self.path.split("?")[0]](self)
                except OSError:
                    self.close_connection = True  # the client had enough

            def log_message(self, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def page(body: bytes = b"", status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def get(url: str, into: Path, label_studio: LabelStudio | None = None, **settings: Any) -> Path:
    return fetch(Media("1.1", 1, url), into, Settings(disk_free_mb=0, **settings), label_studio)


def refused(url: str, into: Path, label_studio: LabelStudio | None = None, **settings: Any) -> MediaError:
    """The error, after a check that nothing is left behind."""
    with pytest.raises(MediaError) as caught:
        get(url, into, label_studio, **settings)
    assert not into.exists() or list(into.iterdir()) == []
    return caught.value


# --- http ---


def test_http__is_fetched_once_under_the_hash_of_its_address(server: Server, downloads: Path) -> None:
    server.pages["/a.mp4"] = page(VIDEO)
    url = server.url + "/a.mp4?x=1"
    path = get(url, downloads, trusted_hosts=server.host)
    assert path == downloads / hashlib.sha256(url.encode()).hexdigest()
    assert path.read_bytes() == VIDEO
    assert get(url, downloads, trusted_hosts=server.host) == path
    assert server.asked == [("/a.mp4?x=1", "")]
    assert os.listdir(downloads) == [path.name]


def test_http__body_without_length_and_in_chunks(server: Server, downloads: Path) -> None:
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (VIDEO[:7], VIDEO[7:]):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    server.pages |= {"/a": page(VIDEO, Content_Length=""), "/b": chunked}
    for name in "ab":
        assert get(f"{server.url}/{name}", downloads, trusted_hosts="127.0.0.1").read_bytes() == VIDEO


@pytest.mark.parametrize(
    ("status", "temporary"),
    [
        *((status, False) for status in (404, 410, 401, 403, 206, 204, 304)),
        *((status, True) for status in (500, 503, 429, 408)),
    ],
)
def test_http__status_says_whether_a_retry_helps(server: Server, downloads: Path, status: int, temporary: bool) -> None:
    server.pages["/a"] = page(b"" if status in (204, 304) else b"x", status)
    error = refused(server.url + "/a?sig=SECRET", downloads, trusted_hosts=server.host)
    assert isinstance(error, MediaUnreachable) is error.temporary is temporary
    assert str(status) in str(error)
    assert "SECRET" not in str(error)


def test_http__nobody_listens(downloads: Path) -> None:
    error = refused(f"http://127.0.0.1:{free_port()}/a", downloads, trusted_hosts="127.0.0.1")
    assert error.temporary
    assert "Connection refused" in str(error)


def test_http__unknown_name(downloads: Path) -> None:
    assert refused("http://no-such-host.invalid/a", downloads).temporary


def test_http__short_body(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(VIDEO, Content_Length=str(len(VIDEO) + 1))
    assert refused(server.url + "/a", downloads, trusted_hosts=server.host).temporary


def test_http__chunked_body_breaks_off(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(b"fff\r\nonly this", Content_Length="", Transfer_Encoding="chunked")
    assert refused(server.url + "/a", downloads, trusted_hosts=server.host).temporary


def test_http__not_http_at_all(server: Server, downloads: Path) -> None:
    server.pages["/a"] = lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9\r\n") and None  # type: ignore[func-returns-value]
    assert refused(server.url + "/a", downloads, trusted_hosts=server.host).temporary


def test_http__empty_body(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(b"")
    assert "is empty" in str(refused(server.url + "/a", downloads, trusted_hosts=server.host))


def test_http__announced_size_is_too_large(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(VIDEO)
    error = refused(server.url + "/a", downloads, trusted_hosts=server.host, media_max_mb=0.5)
    assert "larger than 0.5 MB; raise LOOKALIKE_MEDIA_MAX_MB" in str(error)
    assert not error.temporary


def test_http__endless_body_is_cut_at_the_limit(server: Server, downloads: Path) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        page(Content_Length="")(handler)
        while True:
            handler.wfile.write(VIDEO)

    server.pages["/a"] = endless
    error = refused(server.url + "/a", downloads, trusted_hosts=server.host, media_max_mb=2)
    assert "larger than 2 MB" in str(error)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    page(Content_Length="1000000")(handler)
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drip_body_of_unknown_length(handler: BaseHTTPRequestHandler) -> None:
    page(Content_Length="")(handler)
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drip_header(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def silence(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(100)


@pytest.mark.parametrize("slow", [drip_body, drip_body_of_unknown_length, drip_header, silence])
def test_http__slow_server_is_cut_off(
    server: Server, downloads: Path, slow: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    server.pages["/a"] = slow
    before = time.monotonic()
    error = refused(server.url + "/a", downloads, trusted_hosts=server.host, media_timeout_s=0.4)
    assert 0.3 < time.monotonic() - before < 60
    assert error.temporary


def test_http__what_connects_when_the_time_is_over_is_cut_off_too(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dripped = 0

    def drip(handler: BaseHTTPRequestHandler) -> None:
        nonlocal dripped
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
        for _ in range(200):
            handler.wfile.write(b"x")
            dripped += 1
            time.sleep(0.05)

    server.pages["/a"] = drip
    cut, over, connect = media._Guard._cut, threading.Event(), media.create_connection

    def tell(guard: media._Guard) -> None:
        cut(guard)
        over.set()

    def late(*args: Any, **kwargs: Any) -> socket.socket:
        assert over.wait(60)
        return connect(*args, **kwargs)

    monkeypatch.setattr(media._Guard, "_cut", tell)
    monkeypatch.setattr(media, "create_connection", late)
    assert refused(server.url + "/a", downloads, trusted_hosts=server.host, media_timeout_s=0.1).temporary
    assert dripped < 200


def test_http__compressed_body_is_refused(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
    assert "compressed" in str(refused(server.url + "/a", downloads, trusted_hosts=server.host))


def test_http__waits_for_disk(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(VIDEO)
    with pytest.raises(MediaUnreachable, match="waiting for disk"):
        fetch(
            Media("1.1", 1, server.url + "/a"),
            downloads,
            Settings(disk_free_mb=1e12, trusted_hosts=server.host),
            None,
        )
    assert list(downloads.iterdir()) == []


def test_http__old_parts_are_swept_and_new_ones_left(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(VIDEO)
    downloads.mkdir()
    old, new = downloads / "old.part", downloads / "new.part"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    get(server.url + "/a", downloads, trusted_hosts=server.host)
    assert (old.exists(), new.exists()) == (False, True)


# --- redirects ---


def test_redirect__up_to_three_are_followed(server: Server, downloads: Path) -> None:
    server.pages |= {f"/{n}": page(status=302, Location=f"/{n + 1}") for n in range(4)} | {"/4": page(VIDEO)}
    assert get(server.url + "/1", downloads, trusted_hosts=server.host).read_bytes() == VIDEO
    with pytest.raises(MediaError, match="more than 3 redirects"):
        get(server.url + "/0", downloads, trusted_hosts=server.host)


def test_redirect__to_a_private_address_is_refused(server: Server, downloads: Path) -> None:
    inner = Server()
    try:
        server.pages["/a"] = page(status=302, Location=inner.url + "/secret")
        assert "no public address" in str(refused(server.url + "/a", downloads, trusted_hosts=server.host))
        assert inner.connections == 0
    finally:
        inner.close()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/", "data:,x"])
def test_redirect__to_another_kind_is_refused(server: Server, downloads: Path, target: str) -> None:
    server.pages["/a"] = page(status=302, Location=target)
    assert "unknown kind" in str(refused(server.url + "/a", downloads, trusted_hosts=server.host))


# --- addresses ---


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "0",
        "user@127.0.0.1",
        "example.com@127.0.0.1",
    ],
)
def test_address__loopback_in_any_spelling_is_never_connected_to(server: Server, downloads: Path, host: str) -> None:
    server.pages["/a"] = page(VIDEO)
    error = refused(f"http://{host}:{server.port}/a", downloads)
    assert not error.temporary or "Name or service" in str(error)  # not every resolver knows every spelling
    assert server.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::", "::1", "fe80::1", "fc00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "fe80::1%eth0"),
    ],
)
def test_address__private_ones(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_address__public_ones(address: str) -> None:
    assert is_public(address)


def test_address__name_that_changes_after_the_check_gains_nothing(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first look-up gives a public address, every later one gives loopback."""
    server.pages["/a"] = page(VIDEO)
    real, seen = socket.getaddrinfo, []

    def rebinding(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *args, **kwargs)
        seen.append(host)
        address = "192.88.99.1" if len(seen) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr("workers.media._CONNECT_TIMEOUT_S", 0.3)
    refused(f"http://rebind.example:{server.port}/a", downloads)
    assert len(seen) == 1
    assert server.connections == 0


def test_address__one_private_among_public_ones_is_enough(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, server.port)) for a in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both)
    assert "no public address" in str(refused(f"http://two.example:{server.port}/a", downloads))


def test_address__trust_in_one_port_is_not_trust_in_others(server: Server, downloads: Path) -> None:
    server.pages["/a"] = page(VIDEO)
    refused(server.url + "/a", downloads, trusted_hosts=f"127.0.0.1:{server.port + 1}")
    assert server.connections == 0


def test_address__proxy_of_the_environment_is_not_used(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/a"] = page(VIDEO)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    get(server.url + "/a", downloads, trusted_hosts=server.host)


@pytest.mark.parametrize(
    "url",
    [
        *("", "s3://bucket/a.mp4", "ftp://x/a", "gopher://x/", "data:video/mp4;base64,AAAA", "javascript:alert(1)"),
        *("http://", "http:///a", "https://[::1", "http://a b/", "http://x:99999/", "http://x:port/", "//x/a"),
        *("http://" + "a" * 70 + ".com/", "http://\u2603\u200b.com:0/", "http://.", "concat:a|b", "\x00"),
    ],
)
def test_address__nonsense_gets_a_sentence(downloads: Path, url: str) -> None:
    assert len(str(refused(url, downloads))) > 20


def test_address__unknown_kind_lists_the_known_ones(downloads: Path) -> None:
    assert "https://, file://, a path" in str(refused("s3://bucket/a.mp4", downloads))


# --- Label Studio's own addresses ---


TOKEN = "Token " + "a" * 40


def test_label_studio__gets_the_token_and_nobody_else(server: Server, downloads: Path) -> None:
    other = Server()
    try:
        server.pages |= {
            "/data/upload/1/a.mp4": page(VIDEO),
            "/tasks/1/resolve/": page(status=302, Location=other.url + "/stored"),
        }
        other.pages |= {
            "/stored": page(VIDEO[:99]),
            "/back": page(status=302, Location=server.url + "/data/upload/1/a.mp4"),
        }
        studio = LabelStudio(server.url, "a" * 40)
        assert get("/data/upload/1/a.mp4", downloads, studio).read_bytes() == VIDEO
        assert get(server.url + "/data/upload/1/a.mp4?x", downloads, studio).read_bytes() == VIDEO
        stored = get("/tasks/1/resolve/?fileuri=x", downloads, studio, trusted_hosts=other.host)
        assert stored.read_bytes() == VIDEO[:99]
        assert [authorization for _, authorization in server.asked] == [TOKEN] * 3
        assert other.asked == [("/stored", "")]

        # somebody else sends us to Label Studio: the address is not trusted by itself, and gets no token if it is
        with pytest.raises(MediaError, match="no public address"):
            get(other.url + "/back", downloads, studio, trusted_hosts=other.host)
        get(other.url + "/back", downloads, studio, trusted_hosts="127.0.0.1")
        assert server.asked[-1] == ("/data/upload/1/a.mp4", "")
    finally:
        other.close()


@pytest.mark.parametrize(
    "path",
    [
        *("/api/users/", "/data/../api/users/", "/data/upload/../../api/users/", "/logout", "/tasks/1/", "/"),
        *("/data/%2e%2e/api/users/", "/data/upload/.%2E%2F%2e./api/users/"),
    ],
)
def test_label_studio__only_its_media_is_asked_for(server: Server, downloads: Path, path: str) -> None:
    refused(server.url + path, downloads, LabelStudio(server.url, "a" * 40))
    assert server.asked == []


def test_label_studio__missing_file_and_server_down(server: Server, downloads: Path) -> None:
    studio = LabelStudio(server.url, "a" * 40, tries=1)
    server.pages["/data/upload/1/a.mp4"] = page(b"{}", 404)
    assert not refused("/data/upload/1/a.mp4", downloads, studio).temporary
    server.pages["/data/upload/1/a.mp4"] = page(b"{}", 503)
    assert refused("/data/upload/1/a.mp4", downloads, studio).temporary
    server.pages["/data/upload/1/a.mp4"] = page(b"{}", 401)
    assert refused("/data/upload/1/a.mp4", downloads, studio).temporary


def test_label_studio__none_connected(downloads: Path) -> None:
    assert "set LOOKALIKE_LABEL_STUDIO_URL" in str(refused("/data/upload/1/a.mp4", downloads))


@pytest.mark.e2e
def test_label_studio__real_upload_and_local_file(
    label_studio_server: LabelStudioServer, downloads: Path, tmp_path: Path
) -> None:
    studio = label_studio_server.client()
    config = (Path(__file__).parent.parent / "label_config" / "video_timeline.xml").read_text()
    project = studio.create_project("Media", config)["id"]
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(VIDEO)
    (url,) = studio.upload_files(project, [clip])
    assert get(url, downloads, studio).read_bytes() == VIDEO
    assert "deleted" in str(refused("/data/upload/1/gone.mp4", downloads / "other", studio))

    folder = label_studio_server.files_dir / "kf"
    folder.mkdir()
    (folder / "a b.mp4").write_bytes(VIDEO[:50])
    url = "/data/local-files/?d=kf/a%20b.mp4"
    assert not refused(url, downloads / "other", studio).temporary  # no storage covers the folder yet
    studio._object(
        "POST", "/api/storages/localfiles/", json={"project": project, "path": str(folder), "use_blob_urls": True}
    )
    assert get(url, downloads, studio).read_bytes() == VIDEO[:50]  # through Label Studio
    direct = get(url, downloads, studio, local_files_root=str(label_studio_server.files_dir))
    assert direct == folder / "a b.mp4"


# --- local files ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "clips").mkdir(parents=True)
    (root / "clips" / "a b.mp4").write_bytes(VIDEO)
    (tmp_path / "outside.mp4").write_bytes(VIDEO)
    return root


@pytest.mark.parametrize(
    "url",
    [
        "/data/local-files/?d=clips/a%20b.mp4",
        "/data/local-files/?d=clips/a b.mp4",
        "/data/local-files/?d=clips%2Fa+b.mp4",
        "/data/local-files?d=/clips/a%20b.mp4",
        "http://studio.example/data/local-files/?d=clips/a%20b.mp4",
        "file://{root}/clips/a%20b.mp4",
        "file://localhost{root}/clips/a b.mp4",
        "{root}/clips/a b.mp4",
        "clips/a b.mp4",
        "clips/../clips/a b.mp4",
    ],
)
def test_local__file_below_the_root_is_used_where_it_lies(root: Path, downloads: Path, url: str) -> None:
    studio = LabelStudio("http://studio.example", "a" * 40)
    path = get(url.format(root=root), downloads, studio, local_files_root=str(root))
    assert path == root / "clips" / "a b.mp4"
    assert not downloads.exists()


@pytest.mark.parametrize(
    "url",
    [
        "/data/local-files/?d=../outside.mp4",
        "/data/local-files/?d=%2e%2e/outside.mp4",
        "/data/local-files/?d=clips/link.mp4",
        "../outside.mp4",
        "{root}/../outside.mp4",
        "file://{root}/%2e%2e/outside.mp4",
        "/etc/passwd",
        "file:///etc/passwd",
        "clips/link.mp4",
        "{root}2/a.mp4",
    ],
)
def test_local__file_outside_the_root_is_refused(root: Path, downloads: Path, url: str) -> None:
    (root / "clips" / "link.mp4").symlink_to(root.parent / "outside.mp4")
    error = refused(url.format(root=root), downloads, local_files_root=str(root))
    assert "outside LOOKALIKE_LOCAL_FILES_ROOT" in str(error)


@pytest.mark.parametrize("url", ["/data/local-files/?d=a%00b", "clips/a\0b", "file:///a%00b", "clips/circle"])
def test_local__name_that_is_no_path(root: Path, downloads: Path, url: str) -> None:
    (root / "clips" / "circle").symlink_to("circle")
    refused(url, downloads, local_files_root=str(root))


def test_local__folder_pipe_and_missing_file(root: Path, downloads: Path) -> None:
    os.mkfifo(root / "pipe")
    local = str(root)
    assert "is a folder" in str(refused("clips", downloads, local_files_root=local))
    assert "is a pipe" in str(refused("pipe", downloads, local_files_root=local))
    assert "does not exist" in str(refused("gone.mp4", downloads, local_files_root=local))
    assert "does not exist" in str(refused("clips/a b.mp4/x", downloads, local_files_root=local))
    assert "names another machine" in str(refused("file://host/a.mp4", downloads, local_files_root=local))


def test_local__none_may_be_read_without_a_root(root: Path, downloads: Path) -> None:
    for url in (f"{root}/clips/a b.mp4", f"file://{root}/clips/a b.mp4", "clips/a b.mp4"):
        assert "set LOOKALIKE_LOCAL_FILES_ROOT" in str(refused(url, downloads))


def test_local__missing_file_is_told_though_label_studio_only_forbids(
    server: Server, root: Path, downloads: Path
) -> None:
    server.pages["/data/local-files/"] = page(b'{"detail": "Forbidden"}', 403)
    studio = LabelStudio(server.url, "a" * 40, tries=1)
    error = refused("/data/local-files/?d=clips/gone.mp4", downloads, studio, local_files_root=str(root))
    assert f"gone.mp4 does not exist below {root}, and Label Studio:" in str(error)
    assert error.temporary, "another storage may serve it later"


# --- guarded children: the functions below run in them ---


def add(a: int, b: int) -> int:
    return a + b


def crash() -> None:
    ctypes.string_at(0)


def eat_memory() -> int:
    return len(bytearray(2_000_000_000))


def sleep_long() -> None:
    time.sleep(60)


def leave() -> None:
    os._exit(3)


def refuse() -> None:
    raise MediaError("it is a picture of a video")


def stumble() -> None:
    raise KeyError("bug")


def unsendable() -> Any:
    return threading.Lock()


def limits() -> tuple[int, bool, str]:
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)[0], "torch" in sys.modules, sys.modules["__main__"].__name__


def write_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300_000_000)


def guarded(function: Callable[..., Any], *args: Any, timeout_s: float = 60, memory_mb: float = 2000) -> Any:
    return run_guarded(function, *args, timeout_s=timeout_s, memory_mb=memory_mb)


def test_guard__result_comes_back() -> None:
    assert guarded(add, 2, 3) == 5


def test_guard__child_costs_milliseconds() -> None:
    """Importing PyAV and OpenCV in each would take half a second."""
    assert min(guarded(time.process_time) for _ in range(3)) < 0.1


def test_guard__child_is_clean() -> None:
    core, torch, main = guarded(limits)
    assert core == 0
    assert not torch
    assert main == "__main__"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (crash, "the decoder died of SIGSEGV"),
        (eat_memory, "needs more than 1000 MB of memory"),
        (leave, r"exit code 3"),
        (refuse, "it is a picture of a video"),
    ],
)
def test_guard__what_goes_wrong_gets_a_sentence(function: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(MediaError, match=sentence):
        guarded(function, memory_mb=1000)


def test_guard__time_limit() -> None:
    guarded(add, 1, 1)
    before = time.monotonic()
    with pytest.raises(MediaError, match=r"longer than 0\.3 s"):
        guarded(sleep_long, timeout_s=0.3)
    assert time.monotonic() - before < 30


def test_guard__bug_comes_through_with_its_traceback() -> None:
    with pytest.raises(KeyError, match="bug") as caught:
        guarded(stumble)
    assert "in stumble" in "".join(caught.value.__notes__)


def test_guard__result_that_cannot_be_sent() -> None:
    with pytest.raises(RuntimeError, match="could not send"):
        guarded(unsendable)


def test_guard__file_size_limit(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        guarded(write_large, tmp_path / "large")


def test_guard__children_at_the_same_time() -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(guarded(add, n, n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 2, 4, 6]


def test_guard__child_dies_with_its_parent(tmp_path: Path) -> None:
    """Also shows that it works from a plain script, whose top level is not run again in the child."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            print("top level", flush=True)
            from tests.test_media import report_and_sleep
            from workers.media import run_guarded
            run_guarded(report_and_sleep, Path(sys.argv[1]), timeout_s=60, memory_mb=2000)
            """
        )
    )
    note = tmp_path / "pid"
    root = Path(__file__).parent.parent
    parent = subprocess.Popen(
        [sys.executable, script, note],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    )
    try:
        wait_until(lambda: note.exists() and note.read_text().endswith("\n"), 60)
        child = int(note.read_text())
        assert is_running(child)
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_running(child), 30)
        assert parent.stdout is not None
        assert parent.stdout.read() == b"top level\n"
    finally:
        parent.kill()
        parent.wait()


def report_and_sleep(note: Path) -> None:
    note.write_text(f"{os.getpid()}\n")
    time.sleep(60)


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
