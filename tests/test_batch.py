"""The whole of bulk pre-labelling, with a model that can be reckoned by hand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike import wire
from lookalike.errors import LabelConfigError, SettingsError
from lookalike.settings import Settings
from tests.clips import BLACK, Scene, make_clip
from tests.services import ROOT
from tests.test_archive import MeanColour
from workers import archive
from workers.batch import prelabel

TIMELINE = (ROOT / "label_config" / "video_timeline.xml").read_text()
CHOICES = (ROOT / "label_config" / "video_choices.xml").read_text()
IMAGES = (ROOT / "label_config" / "keyframe_choices.xml").read_text()


@pytest.fixture(autouse=True)
def _mean_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "open_embedder", lambda spec, **_: MeanColour(spec))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips that share a picture, and a broken one."""
    folder = tmp_path / "my clips"
    make_clip(folder / "a.mp4", [Scene(30, seed=1), Scene(50, seed=2)])
    make_clip(folder / "b 100%.mp4", [Scene(50, seed=2), Scene(30, seed=3)], fps=50)
    (folder / "broken.mp4").write_text("no video")
    return folder


def run(paths: list[Path], out: Path, config: str = TIMELINE, **options: Any) -> int:
    settings = Settings(embedder="mean-colour", disk_free_mb=0, clusters=options.pop("clusters", 0))
    return prelabel(paths, out, settings, config, **options)


def load(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def test_prelabel__tasks_segments_and_report(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run([clips], out, clusters=3) == 2
    a, b = load(out, "tasks.json")
    assert a["data"] == {"video": "/data/local-files/?d=my%20clips/a.mp4", "fps": "25"}
    assert b["data"] == {"video": "/data/local-files/?d=my%20clips/b%20100%25.mp4", "fps": "50"}
    (prediction,) = a["predictions"]
    assert prediction["model_version"] == "lookalike-mean-colour"
    spans = [region["value"]["ranges"][0] for region in prediction["result"]]
    assert spans[-1] == {"start": 31, "end": 80}
    assert {region["value"]["timelinelabels"][0] for region in prediction["result"]} == {wire.RESERVED_CATEGORY}
    # the picture that both show is one cluster, and b's frames are counted at the configuration's 25 per second
    shared = prediction["result"][-1]["id"].split("-")[0]
    first = b["predictions"][0]["result"][0]
    assert first["id"].startswith(shared)
    assert first["value"]["ranges"] == [{"start": 1, "end": 25}]
    assert first["meta"]["text"] == [f"{shared} · 2 keyframes like this in 2 videos"]

    report = load(out, "report.json")
    assert {row["file"]: row["outcome"] for row in report["files"]} == {
        "a.mp4": "ok",
        "b 100%.mp4": "ok",
        "broken.mp4": "failed",
    }
    assert report["totals"]["failed"] == 1
    assert set(report["seconds"]["wall"]) == {"files", "clustering", "writing"}
    said = capsys.readouterr()
    assert said.out.endswith(f"1 failed → {out / 'clusters.html'}\n")
    assert said.out.count("\n") == 1
    assert "broken.mp4: cannot be read as a video" in said.err
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path}" in said.err
    assert (out / "label_config.xml").read_text() == TIMELINE
    assert "broken.mp4" in (out / "clusters.html").read_text()


def test_prelabel__a_folder_of_pictures_says_what_they_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    assert run([tmp_path / "photos"], tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "; name another; pictures need a labeling configuration with Image: --label-config" in said


def test_prelabel__embeddings_tell_where_each_row_comes_from(clips: Path, tmp_path: Path) -> None:
    run([clips], tmp_path / "out")
    with np.load(tmp_path / "out" / "embeddings.npz", allow_pickle=False) as kept:
        n = len(kept["keyframe_ids"])
        assert kept["vectors"].shape == (n, 3)
        assert kept["vectors"].dtype == np.float16
        assert len(kept["video"]) == len(kept["frame_index"]) == len(kept["time_s"]) == len(kept["clusters"]) == n
        last = n - 1
        assert kept["files"][kept["video"][last]] == str(clips / "b 100%.mp4")
        assert kept["time_s"][last] == pytest.approx(kept["frame_index"][last] / 50, abs=1e-3)


def test_prelabel__clusters_keep_their_names_when_files_come_first(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([clips], out, clusters=3)
    before = {t["data"]["video"]: t["predictions"][0]["result"] for t in load(out, "tasks.json")}
    for i in range(4):  # more of one picture, so that by size the order would be another
        make_clip(clips / f"A{i}.mp4", [Scene(30, seed=3)])
    run([clips], out, clusters=3)
    after = {t["data"]["video"]: t["predictions"][0]["result"] for t in load(out, "tasks.json")}
    assert len(after) == 6
    for url, regions in before.items():
        assert [region["id"] for region in after[url]] == [region["id"] for region in regions]


def test_prelabel__none_worked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    assert run([tmp_path / "x.mp4", tmp_path / "gone.mp4"], tmp_path / "out") == 0
    assert capsys.readouterr().out == f"0 videos, 0 keyframes, 0 clusters, 2 failed → {tmp_path / 'out/report.json'}\n"
    assert not (tmp_path / "out" / "tasks.json").exists()


def test_prelabel__black_video_is_a_task_without_regions(tmp_path: Path) -> None:
    make_clip(tmp_path / "in" / "black.mp4", [BLACK(40)])
    assert run([tmp_path / "in"], tmp_path / "out") == 1
    (task,) = load(tmp_path / "out", "tasks.json")
    assert task["predictions"][0]["result"] == []


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"url_prefix": "https://host/v/"}, "https://host/v/b%20100%25.mp4"),
        ({"url_prefix": "s3://bucket/v/"}, "s3://bucket/v/b 100%.mp4"),
        ({"local_root": ".."}, "/data/local-files/?d=my%20clips/b%20100%25.mp4"),
    ],
)
def test_prelabel__addresses(clips: Path, tmp_path: Path, options: dict[str, Any], address: str) -> None:
    if "local_root" in options:
        options = {"local_root": clips / options["local_root"]}
    run([clips / "b 100%.mp4"], tmp_path / "out", **options)
    assert load(tmp_path / "out", "tasks.json")[0]["data"]["video"] == address


def test_prelabel__local_root_elsewhere_is_refused_before_any_work(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(SettingsError, match="must be a folder above all PATHS"):
        run([clips], tmp_path / "out", local_root=tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_prelabel__config_without_the_reserved_label(clips: Path, tmp_path: Path) -> None:
    config = TIMELINE.replace(wire.RESERVED_CATEGORY, "Something")
    with pytest.raises(LabelConfigError, match='add <Label value="Cluster'):
        run([clips], tmp_path / "out", config)


def test_prelabel__video_choices_name_the_cluster_of_most_frames(clips: Path, tmp_path: Path) -> None:
    run([clips], tmp_path / "out", CHOICES, clusters=3)
    for task in load(tmp_path / "out", "tasks.json"):
        (region,) = task["predictions"][0]["result"]
        assert region["value"] == {"choices": [wire.RESERVED_CATEGORY]}
        assert "2 keyframes like this in 2 videos, and 1 other cluster" in region["meta"]["text"][0]


def test_prelabel__pictures(tmp_path: Path) -> None:
    data = ROOT.parent / "shared" / "data" / "images" / "caltech20"
    if not data.exists():
        pytest.skip("no ../shared/data/images")
    folders = [data / "pizza", data / "stop_sign"]
    out = tmp_path / "out"
    count = sum(len(list(folder.glob("*.jpg"))) for folder in folders)
    assert run(folders, out, IMAGES) == count
    tasks = load(out, "tasks.json")
    assert len(tasks) == count
    assert tasks[0]["data"]["image"].startswith("/data/local-files/?d=caltech20/pizza/image_")
    assert set(tasks[0]["data"]) == {"image"}
    (region,) = tasks[0]["predictions"][0]["result"]
    assert "like this" in region["meta"]["text"][0]
    assert "video" not in region["meta"]["text"][0]


def test_prelabel__label_studio_accepts_the_predictions(clips: Path, tmp_path: Path) -> None:
    python = ROOT / ".venv-label-studio" / "bin" / "python"
    if not python.exists():
        pytest.skip("no Label Studio in .venv-label-studio; `make test` puts it there")
    run([clips], tmp_path / "timeline")
    run([clips], tmp_path / "choices", CHOICES)
    ask = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
for folder in sys.argv[1:]:
    interface = LabelInterface(open(folder + "/label_config.xml").read())
    for task in json.load(open(folder + "/tasks.json")):
        print(interface.validate_prediction(task["predictions"][0], return_errors=True))
"""
    command = [python, "-c", ask, tmp_path / "timeline", tmp_path / "choices"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["[]"] * 4
