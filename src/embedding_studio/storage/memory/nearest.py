"""Which objects are nearest: all are compared."""

from collections.abc import Collection as Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    CatalogueObject,
)
from embedding_studio.embeddings.similarity import distances, similarities
from embedding_studio.storage.ports import (
    Vectors,
)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The parts of all objects in one array, object after object by object_id.

    Attributes:
        rows: object_id -> [I].
        parts: [N, D] float32.
        starts: [I], where each object's parts begin.
    """

    index: SearchIndexInfo
    object_ids: list[str]
    rows: dict[str, int]
    parts: Vectors
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, index: SearchIndexInfo, objects: dict[str, CatalogueObject]) -> "Stack":
        object_ids = sorted(objects)
        rows = {object_id: row for row, object_id in enumerate(object_ids)}
        parts = [objects[object_id].parts for object_id in object_ids]
        starts = np.cumsum([0, *map(len, parts)][:-1] if parts else [], dtype=np.int64)
        nothing = np.empty((0, index.dimensions or 0), dtype=np.float32)
        return cls(index, object_ids, rows, np.concatenate([nothing, *parts]), starts)

    def nearest(
        self, queries: Vectors, limit: int, max_distance: float | None, without: Container[str]
    ) -> list[tuple[str, float]]:
        """Return (object_id, distance) of the nearest by (distance, object_id)."""
        found = distances(self.index, similarities(self.index, queries, self.parts, self.starts))
        found[[self.rows[object_id] for object_id in without if object_id in self.rows]] = np.inf
        reach = np.inf if max_distance is None else max_distance
        if 0 < limit < len(found):  # all that tie with the last stay until the order of ids has decided
            reach = min(reach, np.partition(found, limit - 1)[limit - 1])
        near = np.flatnonzero((found <= reach) & (found < np.inf))
        near = near[np.argsort(found[near], kind="stable")][:limit]  # rows are in the order of ids
        return [
            (self.object_ids[row], distance) for row, distance in zip(near, found[near].tolist(), strict=True)
        ]
