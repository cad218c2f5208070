"""What the companion project shows, as pure functions: keyframes with a choice, one task for all near-duplicates.

The project of videos has timelines; its companion has one task per keyframe, so that a person labels a picture with one
key and confirms many at once. What people said (`settle`) and what we guess become what timelines show (`name`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike import wire
from lookalike.label_studio import Filter
from lookalike.labels import Proposal
from lookalike.records import Clustering, Json, Keyframe, cluster_name, split_keyframe_id
from lookalike.said import Said
from workers.timeline import Named, lookup

#: bits of 64 in which the fingerprints of near-duplicates differ at most; four bands of 16 then share at least one
_NEAR_BITS = 3
#: … and the least cosine of their embeddings: flat pictures have equal fingerprints whatever they show
_NEAR_COSINE = 0.9
_BANDS = (0, 16, 32, 48)
#: Label Studio's limits for a project's title
_TITLE_CHARS = 50
_SUFFIX = " · keyframes"
#: columns of the Data Manager that tell a person nothing here
_OUR_COLUMNS = ("order", "state", "centroid", "category")
_HIDDEN_COLUMNS = (
    "completed_at",
    "cancelled_annotations",
    "total_predictions",
    "annotators",
    "annotations_results",
    "annotations_ids",
    "predictions_results",
    "predictions_model_versions",
    "file_upload",
    "storage_filename",
    "created_at",
    "updated_at",
    "updated_by",
    "avg_lead_time",
    "draft_exists",
    "inner_id",
)


@dataclass(frozen=True, slots=True)
class Tab:
    """A tab of the Data Manager."""

    title: str
    filters: tuple[Filter, ...]
    ordering: str
    conjunction: str = "and"
    grid: bool = False
    numbers: tuple[str, ...] = ()


# --- the project ---

#: Markdown, not HyperText: a tag with a name would be a second data field, and then Label Studio refuses uploads
_CONFIG = f"""<View>
  <Markdown value="$links"/>
  <Choices name="{wire.KEYFRAME_CHOICES}" toName="image" showInline="true"/>
  <Image name="image" value="$image"/>
</View>"""


def title(video_project: str) -> str:
    """3 to 50 characters, as Label Studio wants it."""
    return (video_project.strip()[: _TITLE_CHARS - len(_SUFFIX)].rstrip() or "Videos") + _SUFFIX


def label_config(categories: Sequence[str], colours: Mapping[str, str], *, multiple: bool) -> str:
    """One picture, one choice, in the order and the colours of the video project."""
    return wire.with_choices(_CONFIG, wire.KEYFRAME_CHOICES, categories, colours, multiple=multiple)


def tabs(categories: Sequence[str], prefix: str = "") -> dict[str, Tab]:
    """By what each is for. Only operators that the Data Manager's page knows: one `in_list` breaks it for good.

    `prefix`: of our fields in the tasks' data.
    """
    centroid, order, category_, state = (f"data.{prefix}{name}" for name in ("centroid", "order", "category", "state"))
    open_ = Filter("total_annotations", "equal", 0, "Number")
    found = {
        "next": Tab("1 · Label these next", (Filter(centroid, "equal", "yes"), open_), order, numbers=(order,)),
    }
    for category in categories:
        found[f"confirm {category}"] = Tab(
            f"2 · Confirm: {category}",
            (Filter(category_, "equal", category), open_),
            "-predictions_score",
            grid=True,
        )
    found["unsure"] = Tab(
        "3 · Unsure or in conflict",
        (Filter(state, "equal", "conflict"), Filter(state, "equal", "unsure")),
        state,
        conjunction="or",
        grid=True,
    )
    return found


def hidden_columns(prefix: str = "") -> tuple[str, ...]:
    """Columns that our tabs leave out."""
    ours = _OUR_COLUMNS if prefix else (*_OUR_COLUMNS, "keyframe", "links")
    return (*(f"data.{prefix}{name}" for name in ours), *_HIDDEN_COLUMNS)


def tabs_of(made: Mapping[str, int]) -> set[str]:
    """The categories that have a tab to confirm them."""
    return {key.removeprefix("confirm ") for key in made if key.startswith("confirm ")}


def task_data(
    frame: Keyframe,
    image: str,
    cluster: int,
    similarity: float,
    *,
    centroid: bool,
    order: int,
    video: str,
    link: str,
    page: str = "",
) -> Json:
    """The fields of a keyframe's task. Clusters are text, since Label Studio compares 7 with "7" as different.

    `link`: to the video's task; `page`: the keyframe's page with us, "" for none.
    """
    at = f"{int(frame.time_s) // 60}:{int(frame.time_s) % 60:02d}"
    name = _without_markup(video)
    return {
        "image": image,
        "keyframe": str(frame.id),
        "cluster": cluster_name(cluster),
        "similarity": round(float(similarity), 3),
        "centroid": "yes" if centroid else "no",
        "order": order,
        "video": video,
        "time": round(frame.time_s, 2),
        "category": "",
        "state": "open",
        "links": f"[{name} at {at}]({link}) · {cluster_name(cluster)}" + (f" · [more like it]({page})" if page else ""),
    }


# --- near-duplicates ---


def fold(
    ids: NDArray[np.int64], fingerprints: NDArray[np.int64], vectors: NDArray[np.float32], known: Mapping[int, int]
) -> dict[int, int]:
    """For each keyframe that is not `known` yet: the leader whose near-duplicate it is, or itself.

    `vectors` (n, d), rows of length 1; `known`: keyframe -> leader. Leaders stay leaders, so that tasks keep their
    keyframes whatever comes later.
    """
    prints = fingerprints.astype(np.uint64)
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)  # by band and its bits: rows of leaders

    def bands(row: int) -> list[tuple[int, int]]:
        return [(band, int(prints[row] >> np.uint64(band)) & 0xFFFF) for band in _BANDS]

    found: dict[int, int] = {}
    leader_of = dict(known)
    present: set[int] = set()
    for row, keyframe in enumerate(ids.tolist()):
        if keyframe in known and known[keyframe] not in present:
            present.add(known[keyframe])  # the first that is left stands for the leader
            for key in bands(row):
                rows[key].append(row)
    for row, keyframe in enumerate(ids.tolist()):
        if keyframe in known:
            continue
        candidates = sorted({other for key in bands(row) for other in rows[key]})
        best = min(
            (
                (distance, other)
                for other in candidates
                if (distance := (int(prints[row]) ^ int(prints[other])).bit_count()) <= _NEAR_BITS
                and float(vectors[row] @ vectors[other]) >= _NEAR_COSINE
            ),
            default=None,
        )
        found[keyframe] = leader_of[keyframe] = keyframe if best is None else leader_of[int(ids[best[1]])]
        if best is None:
            for key in bands(row):
                rows[key].append(row)
    return found


# --- people's words, and guesses ---


def name(
    agreed: Mapping[int, Said],
    proposals: Sequence[Proposal],
    standing_for: Mapping[int, int],
    grouped: Clustering,
    categories: Sequence[str],
) -> dict[int, tuple[Named, ...]]:
    """What each keyframe's timeline is to show, with the reason; near-duplicates like the one that stands for them."""
    named: dict[int, list[Named]] = defaultdict(list)
    for keyframe, said in agreed.items():
        people = ", ".join(dict.fromkeys(said.people))
        named[keyframe] = [Named(category, 1.0, f"{category}, labelled by {people}") for category in said.categories]
    for guess in proposals:
        if guess.state == "proposed" and guess.category in categories and guess.keyframe not in agreed:
            note = f"{guess.category} {guess.score:.2f}{_reason(guess, agreed, grouped)}"
            named[guess.keyframe].append(Named(guess.category, round(guess.score, 3), note))
    return {
        keyframe: tuple(named[representative])
        for keyframe, representative in standing_for.items()
        if representative in named
    }


def _reason(guess: Proposal, agreed: Mapping[int, Said], grouped: Clustering) -> str:
    known = [keyframe for keyframe in guess.nearest if keyframe in agreed]
    if not known:
        return ""
    number = int(lookup(grouped, np.asarray(known[:1], np.int64))[0][0])
    frame = split_keyframe_id(known[0])[1]
    more = f", and {len(known) - 1} more" if len(known) > 1 else ""
    return f", like {cluster_name(number)}-{frame} which {agreed[known[0]].people[-1]} labelled{more}"


def _without_markup(text: str) -> str:
    """A file's name may have what Markdown reads as markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]()<>#&|~" else c for c in text)
