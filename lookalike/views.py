"""What the pages read: queries that give no more than a page shows. `Store.…` and `Labels.…` have the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, and_, func, select

from lookalike.ledger import reader, translated
from lookalike.schema import keyframes, labels, videos, work


@dataclass(frozen=True, slots=True)
class Summary:
    """A project in numbers."""

    videos: int = 0
    keyframes: int = 0
    labelled: int = 0  # keyframes with a person's word
    failed: int = 0  # videos


class Views:
    """Verbs that only read. Each raises StoreError where the database does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._reader = reader(engine)

    def summaries(self, uids: Sequence[str]) -> dict[str, Summary]:
        """By project uid; some tens of them."""
        p = videos.c.project
        queries = {
            "videos": select(p, func.count()).where(p.in_(uids)).group_by(p),
            "keyframes": select(p, func.count())
            .join(keyframes, keyframes.c.video == videos.c.id)
            .where(p.in_(uids))
            .group_by(p),
            "labelled": select(labels.c.project, func.count(labels.c.keyframe.distinct()))
            .where(labels.c.project.in_(uids))
            .group_by(labels.c.project),
            "failed": select(work.c.project, func.count())
            .where(and_(work.c.project.in_(uids), work.c.kind.in_(("video", "deliver")), work.c.state == "failed"))
            .group_by(work.c.project),
        }
        numbers: dict[str, dict[str, int]] = {uid: {} for uid in uids}
        with translated(), self._reader.connect() as connection:
            for name, query in queries.items():
                for uid, number in connection.execute(query):
                    numbers[uid][name] = number
        return {uid: Summary(**found) for uid, found in numbers.items()}
