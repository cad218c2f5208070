"""What a project's clusters are like, in numbers: for the sheets, put together once for each change."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.clusterings import Moment
from backend.services import Services
from lookalike import edits
from lookalike.records import Clustering, cluster_name

#: boards that are kept: those of the projects that are looked at
_BOARDS = 8


@dataclass(frozen=True)
class Board:
    """A project's clusters and what is known of them, at one moment."""

    grouped: Clustering
    rows: NDArray[np.int64]  # (n,) of the clustering, by cluster, most similar first
    starts: NDArray[np.int64]  # (k + 2,) where clusters -1, 0, 1, … begin
    labelled: dict[int, Counter[str]]  # by cluster
    proposed: dict[int, Counter[str]]

    @classmethod
    def of(cls, grouped: Clustering, labelled: Sequence[tuple[int, str]], proposed: Sequence[tuple[int, str]]) -> Board:
        rows = np.lexsort((grouped.keyframe_ids, -grouped.similarity, grouped.clusters))
        starts = np.searchsorted(grouped.clusters[rows], np.arange(-1, len(grouped.centroids) + 1))
        return cls(grouped, rows, starts, _counted(grouped, labelled), _counted(grouped, proposed))

    def members(self, number: int) -> list[int]:
        """Keyframes, most similar first."""
        if not -1 <= number < len(self.grouped.centroids):
            return []
        rows = self.rows[self.starts[number + 1] : self.starts[number + 2]]
        return [int(keyframe) for keyframe in self.grouped.keyframe_ids[rows]]

    def card(self, number: int) -> Card:
        said, guessed = self.labelled.get(number, Counter()), self.proposed.get(number, Counter())
        return Card(
            number,
            self.grouped.names.get(number, ""),
            int(self.starts[number + 2] - self.starts[number + 1]),
            said.total(),
            edits.purity(said),
            (said or guessed).most_common(1)[0][0] if said or guessed else "",
            guessed.total(),
            number in self.grouped.junk,
        )

    @property
    def alive(self) -> list[int]:
        """Numbers of clusters that have members."""
        return np.flatnonzero(np.diff(self.starts[1:])).tolist()

    def cards(self, order: str, *, junk: bool) -> list[Card]:
        """Of all clusters that have members and are, or are not, junk."""
        found = [card for number in self.alive if (card := self.card(number)).is_junk == junk]
        keys: dict[str, Any] = {
            "size": lambda card: (-card.size, card.number),
            "open": lambda card: (card.labelled + card.proposed - card.size, card.number),
            "mixed": lambda card: (card.purity if card.labelled else 1.0, -card.labelled, -card.size, card.number),
        }
        return sorted(found, key=keys[order])


@dataclass(frozen=True, slots=True)
class Card:
    """A cluster in numbers."""

    number: int
    name: str  # that people gave, "" if none did
    size: int
    labelled: int  # members
    purity: float  # so far: the share of the most frequent category among them
    category: str  # what most members are labelled as, or proposed as; "" if nothing is known
    proposed: int  # members
    is_junk: bool

    @property
    def code(self) -> str:
        """c0007"""
        return cluster_name(self.number)

    @property
    def title(self) -> str:
        return self.name or (self.code if self.number >= 0 else "In no cluster")


class Boards:
    """The boards of the projects that people look at, each as it is now. Shared by threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Moment, Board]] = {}
        self._lock = threading.Lock()

    def get(self, here: Services, project: str) -> Board | None:
        """By the project's uid; None before the first clustering."""
        now = here.clusterings.now(project)
        with self._lock:
            known = self._known.get(project)
        if known is not None and known[0] == now:
            return known[1]
        grouped = here.clusterings.get(project, now)
        if grouped is None:
            return None
        said = here.store.questions.labelled(project)
        labelled = [(keyframe, category) for keyframe, categories in said.items() for category in categories]
        board = Board.of(grouped, labelled, here.store.edits.proposed(project))
        with self._lock:
            while len(self._known) >= _BOARDS:
                self._known.pop(next(iter(self._known)))
            self._known[project] = (now, board)
        return board


# --- steps ---


def _counted(grouped: Clustering, pairs: Sequence[tuple[int, str]]) -> dict[int, Counter[str]]:
    """How many members of each cluster have each category."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    if pairs and len(grouped.keyframe_ids):
        ids = np.fromiter((keyframe for keyframe, _ in pairs), np.int64, len(pairs))
        at = np.searchsorted(grouped.keyframe_ids, ids).clip(max=len(grouped.keyframe_ids) - 1)
        numbers = np.where(grouped.keyframe_ids[at] == ids, grouped.clusters[at], -2).tolist()
        for number, (_, category) in zip(numbers, pairs, strict=True):
            found[number][category] += 1
    return dict(found)
