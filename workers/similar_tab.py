"""Tabs "Similar to …" of the Data Manager: the tasks most like a category, most similar first.

A tab is everybody's, so nothing of it is a person's: which tasks are in it, and in which order, stands in a field of
their data, one field per category. Two who ask for two categories do not meet, and whoever labels in a tab keeps their
place while it is brought up to date. Tasks that somebody labels leave it, and are examples from then on.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from lookalike.errors import LabelStudioNotFound, LookalikeError
from lookalike.finder import Finder, Wanted
from lookalike.label_studio import Filter, LabelStudio
from lookalike.labels import Companion
from lookalike.questions import SimilarTab
from lookalike.store import Store
from workers import companion

log = logging.getLogger("lookalike.similar")

#: tasks of a tab, unless asked otherwise
TOP = 100
#: similarities are shown to two places: each value that differs is a call to Label Studio, 0.1 s for some tens of tasks
_PLACES = 2


def keep(studio: LabelStudio, store: Store, finder: Finder, known: Companion) -> None:
    """Make the tabs that people asked for, and bring those that there are up to date.

    Raises LabelStudioUnreachable; what was done until then is remembered.
    """
    for tab in store.questions.tabs(known.project):
        try:
            _keep(studio, store, finder, known, tab)
        except LabelStudioNotFound as error:
            log.warning("the tab of %s: %s", tab.category, error)


def field_of(category: str, prefix: str = "") -> str:
    """The field of a task's data that orders a category's tab: categories may have any sign in them, fields may not."""
    return f"{prefix}similar_{hashlib.sha256(category.encode()).hexdigest()[:8]}"


def ranked(store: Store, finder: Finder, project: str, category: str, top: int) -> dict[int, float]:
    """Similarity by task of the companion, of keyframes that nobody has labelled."""
    found = finder.find(project, Wanted(category=category, top=top, labelled=False), wait_s=float("inf"))
    tasks = store.labels.keyframe_tasks(project)
    shown: dict[int, float] = {}
    for hit in found.hits:
        row = tasks.get(hit.keyframe)
        if row is not None and row.task is not None:
            # 0.01 at least: 0 is what a task gets that has left the tab
            shown.setdefault(row.task, max(0.01, round(hit.similarity, _PLACES)))
    return shown


def _keep(studio: LabelStudio, store: Store, finder: Finder, known: Companion, tab: SimilarTab) -> None:
    if tab.uid != known.uid:  # the companion was made anew since: neither tab nor fields are there
        tab = replace(tab, uid=known.uid, tab=0, shown={})
    try:
        wanted = ranked(store, finder, known.project, tab.category, int(tab.asked.get("top", TOP)))
    except LookalikeError as error:  # nobody has labelled it any more
        if error.temporary:
            raise
        log.info("the tab of %s is empty: %s", tab.category, error)
        wanted = {}
    field = field_of(tab.category, known.prefix)
    _set_field(studio, known, field, tab.shown, wanted)
    tab = replace(tab, shown=wanted)
    store.questions.put_tab(tab)
    if tab.tab and tab.tab not in {view["id"] for view in studio.views(known.label_studio_id)}:
        tab = replace(tab, tab=0)  # a person closed it, and somebody asked again
    if not tab.tab:
        made = studio.create_view(
            known.label_studio_id,
            f"Similar to {tab.category}",
            [Filter(f"data.{field}", "greater", 0, "Number"), Filter("total_annotations", "equal", 0, "Number")],
            ordering=f"-data.{field}",
            grid=True,
            number_columns=(f"data.{field}",),
            hidden_columns=companion.hidden_columns(known.prefix),
        )
        store.questions.put_tab(replace(tab, tab=made["id"]))


def _set_field(
    studio: LabelStudio, known: Companion, field: str, before: Mapping[int, float], wanted: Mapping[int, float]
) -> None:
    """Change the field where it is not yet what it should be, all tasks that get one value at once."""
    groups: dict[float, list[int]] = defaultdict(list)
    for task in sorted(before.keys() | wanted.keys()):
        value = wanted.get(task, 0.0)
        if before.get(task, 0.0) != value:
            groups[value].append(task)
    for value, tasks in sorted(groups.items(), reverse=True):
        studio.set_task_field(known.label_studio_id, tasks, field, value)
