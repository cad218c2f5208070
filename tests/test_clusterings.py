"""Clusterings as pages see them: read once, and never an old one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.clusterings import Clusterings
from lookalike.edits import known_by
from lookalike.finder import Finder
from lookalike.settings import Settings
from lookalike.store import Project, Store
from tests.gallery import Gallery, claim, label_config, seed

UID = "7.2026"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def gallery(store: Store, settings: Settings) -> Gallery:
    return seed(store, settings, Project(UID, 7, "Streets", label_config()), pictures=[])


@pytest.fixture
def clusterings(store: Store, settings: Settings) -> Iterator[Clusterings]:
    finder = Finder(store, settings)
    yield Clusterings(store, finder)
    finder.close()


def test_get__reads_again_only_what_has_changed(store: Store, gallery: Gallery, clusterings: Clusterings) -> None:
    first = clusterings.get(UID)
    assert first is not None
    assert np.array_equal(first.clusters, gallery.grouped.clusters)
    assert clusterings.get(UID) is first
    named = store.edits.add(UID, "name", "ann", text="lorries", cluster=known_by(first, 0))
    second = clusterings.get(UID)
    assert second is not None
    assert second.names == {0: "lorries"}
    store.edits.put_undone(named)
    third = clusterings.get(UID)
    assert third is not None
    assert third.names == {}


def test_get__sees_a_new_clustering(
    store: Store, settings: Settings, gallery: Gallery, clusterings: Clusterings
) -> None:
    assert clusterings.get(UID) is not None
    before = clusterings.now(UID)
    store.want("cluster", UID)
    everything = replace(
        gallery.grouped, clusters=np.zeros_like(gallery.grouped.clusters), centroids=gallery.grouped.centroids[:1]
    )
    store.put_clustering(claim(store, "cluster", UID), settings.embedder, everything, len(gallery.ids), {})
    assert clusterings.now(UID) != before
    found = clusterings.get(UID)
    assert found is not None
    assert set(found.clusters.tolist()) == {0}


def test_get__before_the_first(store: Store, clusterings: Clusterings) -> None:
    store.put_project(Project(UID, 7, "Streets", label_config()))
    assert clusterings.get(UID) is None
