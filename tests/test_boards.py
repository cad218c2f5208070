"""Clusters in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backend.boards import Board, Boards
from backend.services import open_services
from lookalike.records import Clustering
from lookalike.settings import Settings
from lookalike.store import Project
from tests.gallery import claim, label_config, seed


def test_cards__in_each_order() -> None:
    numbers = np.asarray([0, 0, 0, 1, 1, 3, -1])
    similarity = np.asarray([0.5, 0.9, 0.5, 1, 1, 1, 0], np.float32)
    ids = np.arange(10, 17)
    grouped = Clustering(ids, numbers, np.asarray([11, 13, -1, 15]), similarity, {1: "Cats"}, frozenset({3}))
    said, guessed = [(10, "Cat"), (11, "Dog"), (13, "Cat"), (99, "Cat")], [(12, "Dog"), (14, "Cat")]
    board = Board.of(grouped, said, guessed)
    assert board.members(0) == [11, 10, 12], "most similar first"
    assert (board.members(-1), board.members(2), board.members(4)) == ([16], [], [])
    assert board.alive == [0, 1, 3]
    assert [card.title for card in board.cards("size", junk=False)] == ["c0000", "Cats"]
    assert [card.number for card in board.cards("open", junk=False)] == [0, 1]
    assert [card.purity for card in board.cards("mixed", junk=False)] == [0.5, 1.0]
    [junk] = board.cards("size", junk=True)
    assert (junk.code, junk.size, junk.category) == ("c0003", 1, "")
    card = board.card(1)
    assert (card.size, card.labelled, card.proposed, card.category) == (2, 1, 1, "Cat")


def test_get__the_same_until_something_changes(tmp_path: Path) -> None:
    services = open_services(Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock"))
    project, boards = Project("7.2026", 7, "Streets", label_config()), Boards()
    services.store.put_project(project)
    assert boards.get(services, project.uid) is None
    seed(services.store, services.settings, project, pictures=[])
    first = boards.get(services, project.uid)
    assert first is not None
    assert boards.get(services, project.uid) is first
    services.store.want("propagate", project.uid)
    services.store.ledger.finish(claim(services.store, "propagate", project.uid))
    assert boards.get(services, project.uid) is not first
    services.close()
