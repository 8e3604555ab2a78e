"""Which objects are nearest: the plans, and the choice between them.

A small collection has no vector index: all is compared. A large one draws objects from its index in order
of distance. A filter that few objects match is answered first and the matches are compared; one that many
match is asked of each object drawn. Where an index brings too few, all is compared, so a list is short only
if no more objects match.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from pgvector import Vector
from psycopg import sql

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, MovedObject, Neighbour
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.pg_database import Connection
from embedding_studio.storage.pg_filters import condition
from embedding_studio.storage.pg_geometry import Geometry, index_name
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.sql import statements

MANY = 3001
"""So many matches are too many to be compared one by one."""
SCANNED = 20_000
SCANNED_FILTERED = 200_000
"""How many parts pgvector looks at before it gives up on a limit."""

_SQL = statements("nearest.sql")

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """Objects that are left out of the neighbours, and returned apart, where the user has copies."""

    user_id: str
    object_ids: Sequence[str]


class NearestSearch:
    """Finds neighbours; remembers which collections have an index, so as to choose a plan without asking."""

    def __init__(self) -> None:
        self._is_indexed: dict[int, bool] = {}

    def __call__(
        self,
        connection: Connection,
        collection: Collection,
        queries: Vectors,
        limit: int,
        payload_filter: PayloadFilter | None,
        moved: Moved | None = None,
    ) -> tuple[list[Neighbour], list[MovedObject]]:
        """Return neighbours and moved objects; one round trip, two more at the most (see the plans)."""
        question = _Question(collection, queries, limit, payload_filter, moved)
        near: list[Row] = []
        found: list[MovedObject] | None = None
        for plan in self._plans(connection, question):
            with connection.pipeline():
                settings = connection.execute(_SQL["settings"], question.parameters | plan.parameters)
                nearest = connection.execute(plan.statement, question.parameters | plan.parameters, binary=True)
                if found is None:
                    moved_parts = question.ask_moved(connection)
            self._is_indexed[collection.collection_id] = settings.fetchall()[0][-1]
            near = nearest.fetchall()
            if found is None:
                found = [] if moved_parts is None else _moved_objects(moved_parts.fetchall())
            if plan.is_exact or len(near) == limit:
                break
        offset = question.geometry.offset
        neighbours = [Neighbour(object_id, distance + offset, payload) for object_id, distance, payload in near]
        return neighbours, found or []

    def _plans(self, connection: Connection, question: "_Question") -> Iterator["_Plan"]:
        """Yield plans until one brings enough; the last is exact."""
        number = question.collection.collection_id
        if number not in self._is_indexed:
            row = connection.execute(_SQL["is_indexed"], question.parameters).fetchone()
            self._is_indexed[number] = row is not None and row[0]
        if self._is_indexed[number]:
            if question.condition is None:
                yield question.indexed(None, at_least=question.collection.index.hnsw.ef_search, scanned=SCANNED)
                yield question.indexed(None, at_least=8 * question.limit, scanned=8 * SCANNED)
            elif len(matching := question.first_matching(connection)) < MANY:
                yield question.exact("of_few", matching)
            else:
                yield question.indexed("of_many", at_least=0, scanned=SCANNED_FILTERED)
        yield question.exact("of_all")


@dataclass(frozen=True, slots=True)
class _Plan:
    """A statement; only an exact one may bring fewer objects than wanted."""

    statement: sql.Composed
    parameters: dict[str, Any]
    is_exact: bool


class _Question:
    """What is asked, in pieces of SQL and parameters."""

    def __init__(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        payload_filter: PayloadFilter | None,
        moved: Moved | None,
    ) -> None:
        index = collection.index
        parts = check_vectors(index, queries, "the query")
        self.collection = collection
        self.limit = limit
        self.geometry = Geometry(index)
        self.moved = moved
        self.pieces = self.geometry.pieces(collection)
        self.condition: sql.Composable | None = None
        mean = self.geometry.average(parts)
        compared = mean[np.newaxis] if self.geometry.averages_decide else parts
        self.parameters: dict[str, Any] = {
            "queries": [Vector(part) for part in compared],
            "mean_query": Vector(mean),
            "limit": limit,
            "many": MANY,
            "index": index_name(collection),
            "ef_search": index.hnsw.ef_search,
            "max_scan_tuples": SCANNED,
        }
        if payload_filter is not None:
            self.condition, values = condition(payload_filter)
            self.parameters |= values
        if moved is not None:
            self.parameters |= {"user_id": moved.user_id, "moved_ids": list(moved.object_ids)}

    def exact(self, which: str, matching: Sequence[str] = ()) -> _Plan:
        statement = self._composed("exact", which, averages=self.geometry.averages_decide)
        return _Plan(statement, {"matching": list(matching)}, is_exact=True)

    def indexed(self, which: str | None, *, at_least: int, scanned: int) -> _Plan:
        """Return the plan that draws from the index.

        The number drawn depends on the limit in coarse steps where it can change what is found, so that a
        longer list begins with the shorter one.
        """
        draws = max(at_least, 2 * self.limit)
        name = "indexed"
        if self.geometry.has_averages and not self.geometry.averages_decide:
            name = "indexed_average_euclid"
            draws = max(at_least, 1 << (5 * self.limit).bit_length())
        statement = self._composed(name, which, averages=self.geometry.has_averages)
        return _Plan(
            statement, {"draws": draws, "max_scan_tuples": max(scanned, 4 * draws)}, is_exact=False
        )

    def first_matching(self, connection: Connection) -> list[str]:
        """Return the ids of objects that match, ``MANY`` at the most."""
        assert self.condition is not None
        statement = _SQL["matching"].format(condition=self.condition, schema=self.pieces["schema"])
        return [object_id for (object_id,) in connection.execute(statement, self.parameters, binary=True)]

    def ask_moved(self, connection: Connection) -> Any:
        if self.moved is None or not self.moved.object_ids:
            return None
        matching = sql.SQL("true") if self.condition is None else self.condition
        statement = _SQL["moved"].format(condition=matching, schema=self.pieces["schema"])
        return connection.execute(statement, self.parameters, binary=True)

    def _composed(self, name: str, which: str | None, *, averages: bool) -> sql.Composed:
        conditions: list[sql.Composable] = [sql.SQL("true")]
        if self.condition is not None and which is not None:
            piece = _SQL[which].format(condition=self.condition, schema=self.pieces["schema"])
            conditions.append(piece)
        if self.moved is not None and self.moved.object_ids:
            conditions.append(_SQL["without_moved"].format(schema=self.pieces["schema"]))
        among = sql.SQL(" AND ").join(conditions)
        return _SQL[name].format(**self.pieces, among=among, is_average=sql.Literal(averages))


def _moved_objects(rows: Sequence[Row]) -> list[MovedObject]:
    """Return the objects of rows (object_id, payload with the first part, original part, personal part)."""
    moved = []
    for object_id, parts in groupby(rows, itemgetter(0)):
        _, payloads, originals, personals = zip(*parts, strict=True)
        moved.append(MovedObject(object_id, payloads[0], stacked(originals), stacked(personals)))
    return moved


def stacked(parts: Sequence[Vector]) -> Vectors:
    """Return [P, D] float32."""
    return np.stack([part.to_numpy() for part in parts])
