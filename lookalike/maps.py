"""A project's map as it is kept: where each keyframe lies in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from lookalike.ledger import Claim, Ledger, Part, Work, insert
from lookalike.schema import maps, work


@dataclass(frozen=True, slots=True)
class Map:
    """Keyframes that look alike lie side by side."""

    keyframe_ids: NDArray[np.int64]  # (n,) ascending
    places: NDArray[np.float32]  # (n, 2) within -1 … 1
    fitted: int  # keyframes that there were when all of it was drawn

    def __post_init__(self) -> None:
        if self.places.shape != (len(self.keyframe_ids), 2):
            raise ValueError(f"places must be ({len(self.keyframe_ids)}, 2), got {self.places.shape}")


class Maps(Part):
    """Verbs on maps. Each raises StoreError where the database does not answer."""

    def get(self, project: str, model: str) -> Map | None:
        c = maps.c
        query = select(c.keyframe_ids, c.places, c.fitted).where(c.project == project, c.model == model)
        with self.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        places = np.frombuffer(row[1], np.float32).reshape(-1, 2)
        return Map(np.frombuffer(row[0], np.int64), places, row[2])

    def work(self, project: str) -> Work | None:
        """What the drawing of a project's map is doing."""
        c = work.c
        query = select(*(c[name] for name in Work.__dataclass_fields__)).where(c.kind == "map", c.subject == project)
        with self.read() as connection:
            row = connection.execute(query).one_or_none()
        return Work(*row) if row else None

    def put(self, ledger: Ledger, claim: Claim, model: str, drawn: Map) -> None:
        """Keep a project's map and end the work that made it. Raises ClaimLost where another worker has taken over."""
        values = {
            "keyframe_ids": np.ascontiguousarray(drawn.keyframe_ids, np.int64).tobytes(),
            "places": np.ascontiguousarray(drawn.places, np.float32).tobytes(),
            "fitted": drawn.fitted,
        }
        with ledger.finishing(claim) as connection:
            statement = insert(connection, maps).values(project=claim.project, model=model, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["project", "model"], set_=values))
