"""`lookalike similar`: of a project, and of a folder that prelabel made."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lookalike.errors import RequestError, SetupError
from lookalike.label_config import shipped_config
from lookalike.records import Clustering, keyframe_id
from lookalike.settings import Settings
from lookalike.store import Project, open_store
from tests.gallery import Gallery, seed
from workers.archive import Archive, Source, save_npz
from workers.similar import Asked, command, of_folder, of_project

HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=f"unix://{tmp_path}/nobody.sock")


@pytest.fixture
def gallery(settings: Settings) -> Gallery:
    with closing(open_store(settings.sqlalchemy_url)) as store:
        return seed(store, settings, Project("7.1", 7, "Streets", "<View/>"), names=[f"{HOSTILE}.mp4"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What prelabel leaves behind: two clips, whose keyframes are red and blue."""
    import cv2

    out = tmp_path / "results"
    archive = Archive(out, Settings())
    random = np.random.default_rng(0)
    middles = random.normal(size=(2, 16))
    ids, vectors, rows, frames = [], [], [], []
    for number in (1, 2):
        place = out / "keyframes" / archive.folder(Source(Path(f"/clips/{number}.mp4"), "", 0, 0))
        place.mkdir(parents=True)
        for frame in range(20):
            picture = random.integers(0, 255, (9, 8, 3), np.uint8)  # no two alike
            cv2.imwrite(str(place / f"{frame:07d}.jpg"), cv2.resize(picture, (160, 90)))
            ids.append(keyframe_id(number, frame))
            vectors.append(middles[number - 1] + 0.2 * random.normal(size=16))
            rows.append(number - 1)
            frames.append(frame)
    grouped = Clustering(
        np.asarray(ids), np.asarray(rows, np.int64), np.asarray([ids[0], ids[20]]), np.ones(40, np.float32)
    )
    save_npz(
        out / "embeddings.npz",
        vectors=np.asarray(vectors, np.float16),
        keyframe_ids=grouped.keyframe_ids,
        video=np.asarray(rows),
        frame_index=np.asarray(frames),
        time_s=np.asarray(frames, float),
        clusters=grouped.clusters,
        similarity=grouped.similarity,
        centroids=grouped.centroids,
        files=np.asarray(["/clips/1.mp4", "/clips/2.mp4"]),
        file_ids=np.asarray([1, 2]),
        choices=json.dumps({"embedder": "efficientnet-lite0", "files": "videos"}),
    )
    return out


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def test_of_project__a_category(settings: Settings, gallery: Gallery) -> None:
    with closing(open_store(settings.sqlalchemy_url)) as store:
        rows = of_project(store, settings, 7, Asked(category="Car", top=5))
        assert [row.cluster for row in rows] == ["c0000"] * 5
        assert {row.nearest for row in rows} == {str(gallery.labelled[0])}
        assert all(Path(row.picture).is_file() for row in rows)
        one = of_project(store, settings, 7, Asked(category="Car", tasks=(101,), top=5))
        assert {row.name for row in one} == {"clip 1.mp4"}
        with pytest.raises(SetupError, match="project 9 is not connected"):
            of_project(store, settings, 9, Asked(category="Car"))


def test_command__of_a_project(settings: Settings, gallery: Gallery, tmp_path: Path) -> None:
    page = tmp_path / "similar.html"
    arguments = ["--project", "7", "--category", "Car", "--top", "4", "--data-dir", str(settings.data_dir)]
    result = run(*arguments, "--out", str(page), "--tab")
    assert result.exit_code == 0
    assert result.output.count("keyframe ") == 4
    assert "the tab is made once 'lookalike up' runs" in result.output
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 4
    assert HOSTILE not in html
    found = json.loads(run(*arguments, "--json").output)["results"]
    assert [row["similarity"] for row in found] == sorted((row["similarity"] for row in found), reverse=True)
    with closing(open_store(settings.sqlalchemy_url)) as store:
        assert [tab.category for tab in store.questions.tabs("7.1")] == ["Car"]


def test_of_folder__like_a_keyframe_and_unlike_another(folder: Path) -> None:
    rows = of_folder(
        folder, Settings(), Asked(like=(str(keyframe_id(1, 3)),), unlike=(str(keyframe_id(2, 1)),), top=19)
    )
    assert {row.name for row in rows} == {"1.mp4"}
    assert {row.time_s for row in rows} == set(range(20)) - {3}
    assert {row.cluster for row in rows} == {"c0000"}
    again = of_folder(folder, Settings(), Asked(like=(str(keyframe_id(2, 3)),), clusters=("c0000",), top=5))
    assert {row.name for row in again} == {"1.mp4"}


def test_of_folder__a_keyframe_that_it_does_not_have(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"^keyframe 3 is not in the folder .*results$"):
        of_folder(folder, Settings(), Asked(like=("3",)))


def test_of_project__a_category_that_the_configuration_does_not_have(settings: Settings) -> None:
    config = shipped_config("video_timeline")
    with closing(open_store(settings.sqlalchemy_url)) as store:
        seed(store, settings, Project("7.1", 7, "Streets", config))
        with pytest.raises(RequestError, match=r"^there is no category 'Persn'; there are .*Person"):
            of_project(store, settings, 7, Asked(category="Persn"))


def test_of_folder__near_duplicates_are_one(folder: Path) -> None:
    pictures = sorted((folder / "keyframes").glob("1.mp4-*/*.jpg"))
    for copy in pictures[6:10]:
        copy.write_bytes(pictures[5].read_bytes())
    rows = of_folder(folder, Settings(), Asked(like=(str(keyframe_id(1, 3)),), top=12))
    assert sorted(row.duplicates for row in rows)[-1] == 4


def test_of_folder__what_is_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SetupError, match="has no embeddings"):
        of_folder(tmp_path, Settings(), Asked(like=("5",)))
    with pytest.raises(RequestError, match="is no file"):
        of_folder(folder, Settings(), Asked(like=("car.jpg",)))
    with pytest.raises(RequestError, match="a cluster has a name such as c0007"):
        of_folder(folder, Settings(), Asked(like=(str(keyframe_id(1, 3)),), clusters=("7",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --project or --index"),
        (["--project", "7"], "say what to look for"),
        (["--index", ".", "--category", "Car"], "a folder has no labels"),
        (["--project", "7", "--text", "car", "--tab"], "--tab needs a --category"),
    ],
)
def test_command__what_does_not_go_together(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
