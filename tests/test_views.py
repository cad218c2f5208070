"""What the pages read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.labels import LabelRow
from lookalike.settings import Settings
from lookalike.store import Project, Store, open_store
from lookalike.views import Summary, Views
from tests.gallery import CATEGORIES, Gallery, label_config, seed


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings.sqlalchemy_url)
    yield opened
    opened.close()


@pytest.fixture
def gallery(store: Store, settings: Settings) -> Gallery:
    return seed(store, settings, Project("7.1", 7, "Streets", label_config()))


def test_summaries__count_each_project_by_itself(store: Store, settings: Settings, gallery: Gallery) -> None:
    store.put_project(Project("8.1", 8, "Empty", label_config()))
    found = Views(store.engine).summaries(["7.1", "8.1"])
    assert found == {"7.1": Summary(2, 60, 2, 0), "8.1": Summary()}


def test_tiles__keep_the_order_and_leave_out_what_is_not_here(
    store: Store, settings: Settings, gallery: Gallery
) -> None:
    other = seed(store, settings, Project("8.1", 8, "Others", label_config()))
    ids = [int(gallery.ids[5]), int(other.ids[0]), 1, int(gallery.ids[2])]
    tiles = Views(store.engine).tiles(gallery.project, ids, gallery.grouped)
    assert [tile.id for tile in tiles] == [ids[0], ids[3]]
    assert tiles[0].video == "clip 0.mp4"
    assert tiles[0].time_s == 5.0
    assert tiles[0].cluster == gallery.grouped.clusters[5]
    assert tiles[0].similarity == pytest.approx(gallery.grouped.similarity[5])


def test_tiles__say_what_people_and_we_say(store: Store, gallery: Gallery) -> None:
    views = Views(store.engine)
    tiles = {t.id: t for t in views.tiles(gallery.project, gallery.ids.tolist(), gallery.grouped)}
    labelled = tiles[gallery.labelled[0]]
    assert (labelled.state, labelled.category, labelled.score) == ("labelled", CATEGORIES[0], None)
    assert labelled.said is not None
    assert labelled.said.people == ("ann@example.com",)
    proposed = [tile for tile in tiles.values() if tile.state == "proposed"]
    assert proposed
    for tile in proposed:
        assert tile.score is not None
        assert tile.score > 0.85
        assert tile.nearest == (gallery.labelled[tile.cluster],)
        assert tile.run == gallery.run.id
    assert {tile.state for tile in tiles.values() if tile.cluster == 2} == {"open"}


def test_tiles__near_duplicates_share_what_was_said(store: Store, gallery: Gallery) -> None:
    leader = gallery.labelled[0]
    follower = next(int(k) for k in gallery.ids if k not in gallery.labelled and k > leader)
    from sqlalchemy import update

    from lookalike.schema import keyframe_tasks

    with store.engine.begin() as connection:
        connection.execute(update(keyframe_tasks).where(keyframe_tasks.c.keyframe == follower).values(leader=leader))
    [tile] = Views(store.engine).tiles(gallery.project, [follower], gallery.grouped)
    assert (tile.state, tile.category) == ("labelled", CATEGORIES[0])


def test_tiles__on_which_people_disagree(store: Store, gallery: Gallery) -> None:
    keyframe = gallery.labelled[0]
    row = LabelRow(keyframe, CATEGORIES[1], "video", 100, 77, "bob@example.com", 2e9)
    store.labels.put_labels(gallery.project.uid, "video", {100: "read"}, [row])
    [tile] = Views(store.engine).tiles(gallery.project, [keyframe], gallery.grouped)
    assert (tile.state, tile.category) == ("disputed", "")


def test_tiles__before_the_first_clustering_and_without_a_usable_configuration(store: Store, gallery: Gallery) -> None:
    bare = Project(gallery.project.uid, 7, "Streets", "<View/>")
    [tile] = Views(store.engine).tiles(bare, [int(gallery.ids[0])], None)
    assert (tile.cluster, tile.cluster_name, tile.similarity) == (-1, "c----", 0.0)


def test_sight__leads_to_the_picture_of_the_near_duplicate(store: Store, gallery: Gallery) -> None:
    views = Views(store.engine)
    keyframe = int(gallery.ids[0])
    store.labels.put_images({keyframe: "/data/upload/9/a.jpg"})
    sight = views.sight(keyframe)
    assert sight is not None
    assert (sight.project, sight.label_studio_id, sight.image) == ("7.1", 7, "/data/upload/9/a.jpg")
    assert views.sight(12345678901) is None
