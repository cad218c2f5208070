"""The clusterings of the projects that people look at, as people have edited them, each kept until it changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from lookalike.finder import Finder
from lookalike.questions import Revision
from lookalike.records import Clustering
from lookalike.store import Store

#: projects whose clusterings are kept; one of 100,000 keyframes takes 2 MB
_KEPT = 8


class Moment(NamedTuple):
    """Changes with all that pages tell of a project's clusters."""

    model: str  # that the project is shown by
    revision: Revision
    edits: str


class Clusterings:
    """Of one process, shared by its threads: a page needs few of the rows, and reading all is most of its work."""

    def __init__(self, store: Store, finder: Finder) -> None:
        self._store = store
        self._finder = finder
        self._known: OrderedDict[str, tuple[tuple[object, ...], Clustering | None]] = OrderedDict()
        self._lock = threading.Lock()

    def now(self, project: str) -> Moment:
        """Three small queries."""
        revision = self._store.questions.revision(project)
        return Moment(self._finder.model_of(project, revision), revision, self._store.edits.stamp(project))

    def get(self, project: str, at: Moment | None = None) -> Clustering | None:
        """None before the first. `at`: the moment that `now` has told, for whoever has asked already."""
        at = at or self.now(project)
        key = (at.model, at.revision.clusters, at.edits)
        with self._lock:
            known = self._known.get(project)
        if known is not None and known[0] == key:
            return known[1]
        found = self._store.clustering(project, at.model)
        grouped = found[0] if found else None
        with self._lock:
            self._known[project] = (key, grouped)
            self._known.move_to_end(project)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return grouped
