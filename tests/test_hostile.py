"""What is made to do harm: files, given to the guarded decoder as a job gives them, and requests.

Each file must end within 15 s: with keyframes, or with a sentence (MediaError). The process that asked lives on, no
file but the named one is read and nothing is fetched. A request that Label Studio would not send is refused with a
sentence, never with a fault of ours.
"""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from backend.app import create_app
from lookalike.errors import LookalikeError, MediaError
from lookalike.records import Extraction, Media
from lookalike.settings import Settings
from lookalike.store import Project
from tests.clips import Scene, make_clip, write_clip
from tests.gallery import label_config, seed
from workers import keyframes, media, stills
from workers.keyframes import KeyframeOptions

LIMIT_S = 60.0  # where nothing is cut off, it takes for ever
SECRET = "keep this to yourself"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small good clips in five containers, to be damaged."""
    folder = tmp_path_factory.mktemp("good")
    made = {}
    for name, how in {"mp4": {}, "mkv": {}, "ts": {}, "webm": {"codec": "libvpx"}, "avi": {"codec": "mpeg4"}}.items():
        path = folder / f"a.{name}"
        make_clip(path, [Scene(12, seed=1), Scene(12, seed=2, motion=2)], size=(160, 96), **how)
        made[name] = path.read_bytes()
    return made


@pytest.fixture
def canary() -> Iterator[tuple[int, list[str]]]:
    """A server that nobody must ask: its port, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], asked
    server.shutdown()
    server.server_close()


def decode(
    path: Path, out: Path, how: Callable[..., Extraction] = keyframes.extract, mode: str = "exact"
) -> Extraction | str:
    """What a job would get: keyframes (none, if all is black now), or the sentence that people see; no other error."""
    begun = time.monotonic()
    options = KeyframeOptions(mode=mode)
    try:
        found = media.run_guarded(how, path, 1, out, options, timeout_s=10.0, memory_mb=1500.0)
    except MediaError as error:
        sentence = str(error)
        assert "Traceback" not in sentence, sentence
        assert 20 < len(sentence) < 400, sentence
        return sentence
    finally:
        assert time.monotonic() - begun < LIMIT_S
    assert isinstance(found, Extraction)
    for keyframe in found.keyframes:
        assert cv2.imread(str(out / f"{keyframe.frame_index:07d}.jpg")) is not None
    return found


# --- videos ---


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "avi", "ts"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_video__flipped_bits(clips: dict[str, bytes], tmp_path: Path, container: str, mode: str) -> None:
    """15 variants a container and mode, 150 in all; half of them hit the headers, which steer the most."""
    dice = random.Random(f"{container} {mode}")
    good = clips[container]
    for variant in range(15):
        data = bytearray(good)
        for _ in range(dice.choice([1, 8, 64])):
            data[dice.randrange(min(len(data), 600 if variant % 2 else len(data)))] ^= 1 << dice.randrange(8)
        path = tmp_path / f"{variant}.{container}"
        path.write_bytes(data)
        decode(path, tmp_path / f"{variant}", mode=mode)
    path.write_bytes(good)
    assert isinstance(decode(path, tmp_path / "good", mode=mode), Extraction)


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "avi"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_video__truncated(clips: dict[str, bytes], tmp_path: Path, container: str, share: float) -> None:
    path = tmp_path / f"a.{container}"
    path.write_bytes(clips[container][: int(len(clips[container]) * share)])
    found = decode(path, tmp_path / "out")
    if share < 0.1:
        assert isinstance(found, str), "a file without its pictures has no keyframes"


@pytest.mark.parametrize("head", [b"", b"\x00\x00\x00\x20ftypisom", b"\x1a\x45\xdf\xa3", b"RIFF\xff\xff\xff\x7fAVI "])
@pytest.mark.parametrize("fill", ["zeros", "random", "ones"])
def test_video__nonsense_behind_a_good_beginning(tmp_path: Path, head: bytes, fill: str) -> None:
    body = {"zeros": bytes(200_000), "ones": b"\xff" * 200_000, "random": random.Random(7).randbytes(200_000)}[fill]
    path = tmp_path / "a.mp4"
    path.write_bytes(head + body)
    assert isinstance(decode(path, tmp_path / "out"), str)


def test_video__small_file_of_a_huge_picture(tmp_path: Path) -> None:
    """8192 x 8192 of one colour takes kilobytes on disk and gigabytes decoded."""
    path = tmp_path / "bomb.mp4"
    write_clip(path, [np.zeros((8192, 8192, 3), np.uint8)] * 2, size=(8192, 8192), options={"preset": "ultrafast"})
    assert path.stat().st_size < 200_000
    found = decode(path, tmp_path / "out")
    assert isinstance(found, str)
    assert "8192 x 8192" in found
    assert "LOOKALIKE_MAX_PIXELS" in found


def test_video__that_goes_on_and_on(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_clip(path, [np.full((48, 64, 3), 90, np.uint8)] * 3000, size=(64, 48), fps=1, options={"preset": "ultrafast"})
    allowed = KeyframeOptions(max_duration_s=600)
    with pytest.raises(MediaError, match="raise LOOKALIKE_MAX_DURATION_S"):
        media.run_guarded(keyframes.extract, path, 1, tmp_path / "out", allowed, timeout_s=10.0, memory_mb=1500.0)
    with pytest.raises(MediaError, match="raise LOOKALIKE_DECODE_TIMEOUT_S"):
        media.run_guarded(_dawdle, timeout_s=0.5, memory_mb=500.0)


def _dawdle() -> None:
    time.sleep(60)


PLAYLISTS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
    "hls-file.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "concat.mkv": "ffconcat version 1.0\nfile '{url}/a.mp4'\nfile '{secret}'\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<BaseURL>{url}/</BaseURL><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"/>'
    "</AdaptationSet></Period></MPD>",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "list.m3u": "{url}/a.mp4\n",
    "smil.mov": "RTSPtext\nrtsp://{host}/a.mov\n",
    "subtitle.vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\n<img src={url}/a.png>\n",
    "drawing.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}/a.png" width="9" height="9"/></svg>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_video__playlist_that_points_elsewhere(tmp_path: Path, canary: tuple[int, list[str]], name: str) -> None:
    port, asked = canary
    secret = tmp_path / "secret.mp4"
    make_clip(secret, [Scene(10, seed=1)], size=(64, 48))
    path = tmp_path / name
    where = {"url": f"http://127.0.0.1:{port}", "host": f"127.0.0.1:{port}", "secret": str(secret)}
    path.write_text(PLAYLISTS[name].format(**where))
    assert isinstance(decode(path, tmp_path / "out"), str), "it showed pictures of another file"
    assert isinstance(decode(path, tmp_path / "out", stills.extract), str)
    assert asked == []


def test_file__that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "folder.mp4", "missing.mp4"):
        for how in (keyframes.extract, stills.extract):
            assert isinstance(decode(tmp_path / name, tmp_path / "out", how), str)


def test_file__link_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.mp4"
    root.mkdir()
    outside.write_text(SECRET)
    (root / "link.mp4").symlink_to(outside)
    (root / "zero.mp4").symlink_to("/dev/zero")
    settings = Settings(local_files_root=str(root))
    for url in ("/data/local-files/?d=link.mp4", "link.mp4", "zero.mp4", f"file://{root}/link.mp4"):
        with pytest.raises(LookalikeError):
            media.fetch(Media("1.x", 1, url), tmp_path / "downloads", settings, None)


# --- pictures ---


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG that claims a size and has so many rows of black: packed a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "rows"), [(20_000, 20_000, 40), (2**31 - 1, 1, 0), (100_000, 100_000, 0), (0, 0, 0)]
)
def test_picture__decompression_bomb(tmp_path: Path, width: int, height: int, rows: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, rows))
    assert isinstance(decode(path, tmp_path / "out", stills.extract), str)


def test_picture__flipped_bits_and_truncated(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    dice = random.Random(3)
    for kind in (".jpg", ".png", ".webp", ".bmp", ".tiff"):
        good = cv2.imencode(kind, picture)[1].tobytes()
        for variant in range(8):
            data = bytearray(good[: int(len(good) * 0.6)] if variant == 0 else good)
            for _ in range(0 if variant == 0 else dice.choice([1, 8, 64])):
                data[dice.randrange(min(len(data), 60 if variant % 2 else len(data)))] ^= 1 << dice.randrange(8)
            path = tmp_path / f"{variant}{kind}"
            path.write_bytes(data)
            decode(path, tmp_path / f"{variant}{kind}.out", stills.extract)


@pytest.mark.parametrize(
    "content",
    [
        b"%PDF-1.7\n1 0 obj\n",
        b"#!/bin/sh\necho no\n",
        b"GIF89a",
        b"\xff\xd8\xff\xe0",
        b"<html></html>",
        b"PK\x03\x04" * 9,
    ],
    ids=["pdf", "script", "gif head", "jpeg head", "html", "zip"],
)
def test_picture__of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    sentence = decode(path, tmp_path / "out", stills.extract)
    assert isinstance(sentence, str)
    assert "check that it opens" in sentence


def test_picture__postscript_starts_no_program(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript, a program that runs what the file says, when it is decoded."""
    path = tmp_path / "a.jpg"
    trace = tmp_path / "ran"
    path.write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({trace}) (w) file closefile\n")
    assert isinstance(decode(path, tmp_path / "out", stills.extract), str)
    assert not trace.exists()


def test_guard__asker_neither_grows_nor_leaves_children(tmp_path: Path) -> None:
    """50 bad files one after the other, in a process of its own: 10 MB at most, and no child left."""
    path = tmp_path / "a.mp4"
    path.write_bytes(random.Random(1).randbytes(50_000))
    work = f"""if True:
        import sys
        from pathlib import Path
        from lookalike.errors import MediaError
        from workers import keyframes, media

        bad = Path({str(path)!r})

        def refused():
            try:
                media.run_guarded(keyframes.extract, bad, 1, bad.parent, timeout_s=10.0, memory_mb=900.0)
            except MediaError:
                return True

        def size():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        assert refused() and refused()
        before = size()
        assert all(refused() for _ in range(50))
        print(size() - before)
    """
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10_000_000


# --- requests ---

REAL = json.loads((Path(__file__).parent / "label_studio_requests.json").read_text())
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\0", "\ud800", "1e999", "../../etc/passwd", "' OR 1=1 --", "<View/>", 2**70, -1, "1.5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    folder = tmp_path_factory.mktemp("backend")
    app = create_app(Settings(data_dir=folder, redis_url=f"unix://{folder}/nobody.sock"))
    client = app.test_client()
    assert client.post("/setup", json=REAL["/setup"]).status_code == 200
    yield client
    app.extensions["lookalike"].close()


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something may be put in place of something else: every key and index of a body, and the body itself."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] + [place for key, value in inner for place in places(value, (*path, key))]


def odd_one(body: Any, data: st.DataObject) -> Any:
    """A copy with something odd in one to three places."""
    body = copy.deepcopy(body)
    for place in data.draw(st.lists(st.sampled_from(places(body)), min_size=1, max_size=3)):
        node, odd = body, data.draw(ODD)
        try:
            for key in place[:-1]:
                node = node[key]
            if place:
                node[place[-1]] = odd
            else:
                body = odd
        except (TypeError, KeyError, IndexError):  # an earlier change has taken the place away
            continue
    return body


@pytest.mark.parametrize("name", REAL)
@tried(max_examples=40)
@given(data=st.data())
def test_request__real_one_with_something_odd_in_it(client: FlaskClient, name: str, data: st.DataObject) -> None:
    body = odd_one(REAL[name], data)
    answer = client.post(name.split()[0], data=json.dumps(body), content_type="application/json")
    assert answer.status_code < 500, answer.get_data(as_text=True)
    assert answer.is_json
    if answer.status_code >= 400:
        assert answer.get_json()["error"]["message"]


def test_request__the_real_ones_are_still_answered(client: FlaskClient) -> None:
    for name, body in REAL.items():
        assert client.post(name.split()[0], json=body).status_code in (200, 201), name


# --- what scripts of pages and programs send ---

FORMS = {
    "/api/projects/7/similar": {
        "like": [5, {"keyframe": 5, "box": [0, 0, 1, 1]}, {"image": "aGk="}, {"asked": "0" * 32}],
        "unlike": [5],
        "category": "Car",
        "text": "a car",
        "top": 5,
        "tasks": [100],
        "clusters": ["c0000"],
        "labelled": False,
        "fold": True,
    },
    "/api/projects/7/similar/tabs": {"category": "Car", "top": 5},
    "/projects/7/edits": {"kind": "name", "number": 0, "other": 1, "text": "x", "keyframes": [5], "groups": 2},
    "/projects/7/labels": {"category": "Car", "keyframes": [5], "edit": 1},
    "/projects/7/rejections": {"category": "Car", "keyframes": [5]},
    "/projects/7/proposals": {"category": "Car", "keyframes": [5]},
    "/projects/7/undo": {"edit": 1},
    "/projects/7/ranking": {"category": "Car", "like": [5], "unlike": [6], "top": 5},
    "/projects/7/map/draw": {"again": True},
}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """Somebody who may see project 7, which has keyframes; no worker answers."""
    folder = tmp_path_factory.mktemp("pages")
    settings = Settings(data_dir=folder, redis_url=f"unix://{folder}/nobody.sock")
    settings = settings.with_(basic_auth_user="a", basic_auth_pass="b")
    app = create_app(settings)
    seed(app.extensions["lookalike"].store, settings, Project("7.1", 7, "Streets", label_config()), pictures=[])
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = "Basic YTpi"
    yield client
    app.extensions["lookalike"].close()


@pytest.mark.parametrize("route", FORMS)
@tried(max_examples=40)
@given(data=st.data())
def test_form__with_something_odd_in_it(
    person: FlaskClient, route: str, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searches._WAIT_S", 0.0)
    body = odd_one(FORMS[route], data)
    if isinstance(body, dict) and body:
        gone = data.draw(st.sets(st.sampled_from(sorted(body))))
        body = {name: value for name, value in body.items() if name not in gone}
    answer = person.post(route, data=json.dumps(body), content_type="application/json")
    assert answer.status_code < 500, (body, answer.get_data(as_text=True))
    if answer.status_code >= 400:
        assert answer.get_json()["error"]["message"]


KINDS = ("multipart/form-data", "application/x-www-form-urlencoded", "application/json", "text/plain")
BOUNDARIES = ("; boundary=b", "", "; boundary=", '; boundary="', "; boundary=\xff", "; charset=utf-7")
PARTS = (
    *(b"--b\r\n", b"\r\n--b--\r\n", b"\r\n\r\n", b"--", b"\0", b"\xff\xfe", b"%", b"&=", b"{", b'"\\ud800"'),
    b'Content-Disposition: form-data; name="token"',
    b'Content-Disposition: form-data; name="work"; filename="../x"',
    *(b"Content-Disposition: form-data; name=", b"Content-Type: multipart/mixed; boundary=b\r\n"),
    *(b"token=", b"work=9", b"csrf="),
)


@pytest.mark.parametrize("route", ["/login", "/projects/7/retry", *FORMS])
@tried(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    boundary=st.sampled_from(BOUNDARIES),
    parts=st.lists(st.sampled_from(PARTS), max_size=12),
)
def test_form__whatever_the_body_is(
    person: FlaskClient, route: str, kind: str, boundary: str, parts: list[bytes]
) -> None:
    answer = person.post(route, data=b"".join(parts), content_type=kind + boundary)
    assert answer.status_code < 500, answer.get_data(as_text=True)
