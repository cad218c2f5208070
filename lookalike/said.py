"""What people have said about keyframes: whose word counts, and for which near-duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookalike.labels import LabelRow
from lookalike.records import LabelConfig


@dataclass(frozen=True, slots=True)
class Said:
    """What people agree on about a keyframe."""

    categories: tuple[str, ...]
    people: tuple[str, ...]
    annotation: int  # the last one
    at: float


def categories_of(config: LabelConfig) -> tuple[str, ...]:
    """What people may say: all but the reserved one."""
    return tuple(category for category in config.categories if category != config.reserved)


def representatives(ids: Sequence[int], leaders: Mapping[int, int]) -> dict[int, int]:
    """By keyframe, the one that stands for it and its near-duplicates: its leader, or the first that is left."""
    first: dict[int, int] = {}
    alive = set(ids)
    for keyframe in sorted(ids):
        leader = leaders.get(keyframe, keyframe)
        first.setdefault(leader, leader if leader in alive else keyframe)
    return {keyframe: first[leaders.get(keyframe, keyframe)] for keyframe in ids}


def settle(
    rows: Sequence[LabelRow], standing_for: Mapping[int, int], categories: Sequence[str], *, multiple: bool
) -> tuple[dict[int, Said], set[int]]:
    """(what people agree on, keyframes on which they disagree), both by representative.

    A person's last word counts, wherever it was said; different persons must agree. Categories that the labeling
    configuration no longer has are left out, and so are keyframes that are gone.
    """
    last: dict[tuple[int, str], tuple[float, int, set[str]]] = {}
    for row in sorted(rows, key=lambda row: (row.at, row.annotation)):
        keyframe = standing_for.get(row.keyframe)
        if keyframe is None or row.category not in categories:
            continue
        _, annotation, said = last.get((keyframe, row.person), (0.0, None, set()))
        said = said | {row.category} if annotation == row.annotation else {row.category}
        last[keyframe, row.person] = (row.at, row.annotation, said)
    words: dict[int, list[tuple[float, int, str, set[str]]]] = defaultdict(list)
    for (keyframe, person), (at, annotation, said) in last.items():
        words[keyframe].append((at, annotation, person, said))
    agreed: dict[int, Said] = {}
    disputed: set[int] = set()
    for keyframe, found in words.items():
        found.sort()
        said = found[0][3]
        if any(other[3] != said for other in found) or (len(said) > 1 and not multiple):
            disputed.add(keyframe)
        else:
            order = tuple(category for category in categories if category in said)
            agreed[keyframe] = Said(order, tuple(word[2] for word in found), found[-1][1], found[-1][0])
    return agreed, disputed
