"""Maps as they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lookalike.ledger import ClaimLost
from lookalike.maps import Map
from lookalike.store import Project, open_store
from tests.gallery import claim


def test_map__shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"places must be \(3, 2\), got \(2, 3\)"):
        Map(np.arange(3), np.zeros((2, 3), np.float32), 3)


def test_maps__keep_the_last_of_who_holds_the_claim(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/ledger.sqlite3")
    store.put_project(Project("7.1", 7, "Streets", ""))
    assert store.maps.work("7.1") is None
    assert store.maps.get("7.1", "m") is None
    store.want("map", "7.1")
    mine = claim(store, "map", "7.1")
    first = Map(np.asarray([1, 5]), np.asarray([[0, 0.5], [-1, 1]], np.float32), 2)
    store.maps.put(store.ledger, mine, "m", first)
    kept = store.maps.get("7.1", "m")
    assert kept is not None
    assert (kept.keyframe_ids.tolist(), kept.places.tolist(), kept.fitted) == ([1, 5], [[0, 0.5], [-1, 1]], 2)
    with pytest.raises(ClaimLost):
        store.maps.put(store.ledger, mine, "m", Map(np.asarray([1]), np.zeros((1, 2), np.float32), 1))
    assert len(store.maps.get("7.1", "m").keyframe_ids) == 2  # type: ignore[union-attr]
    work = store.maps.work("7.1")
    assert work is not None
    assert work.state == "done"
    store.close()
