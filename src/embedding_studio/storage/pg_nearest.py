"""Which objects are nearest: the plans, and the choice between them.

A small collection has no vector index: all is compared. A large one draws objects from its index in order
of distance. A filter that few objects match is answered first and the matches are compared; one that many
match is asked of each object drawn. Where an index brings too few, all is compared, so a list is short only
if no more objects match.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

from psycopg import Cursor, sql

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, MovedObject, Neighbour
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.pg_database import Connection, only_row
from embedding_studio.storage.pg_filters import condition
from embedding_studio.storage.pg_geometry import Geometry, index_name
from embedding_studio.storage.pg_vectors import pack, unpack
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.sql import schema_of, statements

MANY = 3001
"""So many matches are too many to be compared one by one."""
SCANNED = 20_000
SCANNED_FILTERED = 200_000
"""How many parts pgvector looks at before it gives up on a limit."""

_SQL = statements("nearest.sql")

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """Objects that are left out of the neighbours, and returned apart, where the user has copies.

    So many neighbours more are asked for, and those that are moved left out here: a condition on each object
    drawn would make the vector index, which finds ``ef_search`` at a time, search a second time for the rest.
    """

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
        *,
        payload_filter: PayloadFilter | None,
        moved: Moved | None = None,
    ) -> tuple[list[Neighbour], list[MovedObject]]:
        """Return neighbours and moved objects; one round trip, one more where there is a filter."""
        question = _Question(collection, queries, limit, payload_filter, moved)
        near: list[Row] = []
        found: list[MovedObject] = []
        for plan in self._plans(connection, question):
            given = question.parameters | plan.parameters
            with connection.pipeline():
                if question.needs_snapshot:
                    connection.execute(_SQL["begin"])
                asked = question.ask_moved(connection)
                settings = connection.execute(_SQL["settings"], given)
                nearest = connection.execute(plan.statement, given, binary=True)
                if question.needs_snapshot:
                    connection.execute(_SQL["commit"])
            *_, self._is_indexed[collection.collection_id] = only_row(settings)
            near = nearest.fetchall()
            found = [] if asked is None else _moved_objects(asked.fetchall())
            if plan.is_exact or len(near) == question.limit:
                break
        offset = question.geometry.offset
        moved_ids = {each.object_id for each in found}
        neighbours = [
            Neighbour(object_id, distance + offset, payload)
            for object_id, distance, payload in near
            if object_id not in moved_ids
        ]
        return neighbours[:limit], found

    def _plans(self, connection: Connection, question: "_Question") -> Iterator["_Plan"]:
        """Yield plans until one brings enough; the last is exact."""
        number = question.collection.collection_id
        if number not in self._is_indexed:
            (self._is_indexed[number],) = only_row(
                connection.execute(_SQL["is_indexed"], question.parameters)
            )
        if self._is_indexed[number]:
            if question.condition is None:
                ef_search = question.collection.index.hnsw.ef_search
                yield question.indexed("all", at_least=ef_search, scanned=SCANNED)
                yield question.indexed("all", at_least=8 * question.limit, scanned=8 * SCANNED)
            elif (matching := question.matching_if_few(connection)) is not None:
                yield question.exact("few", matching)
            else:
                yield question.indexed("many", at_least=0, scanned=SCANNED_FILTERED)
        yield question.exact("all" if question.condition is None else "matching")


@dataclass(frozen=True, slots=True)
class _Plan:
    """A statement; only an exact one may bring fewer objects than wanted."""

    statement: bytes
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
        parts = check_vectors(collection.index, queries, "the query")
        self.collection = collection
        self.spare = 0 if moved is None else len(moved.object_ids)
        self.limit = limit + self.spare
        self.geometry = Geometry(collection.index)
        self.condition: sql.Composable | None = None
        self.has_moved = moved is not None and bool(moved.object_ids)
        average = self.geometry.average(parts) if self.geometry.has_averages else parts[:1]
        self.parameters: dict[str, Any] = {
            "queries": pack(average if self.geometry.averages_decide else parts),
            "average_query": pack(average)[0],
            "limit": self.limit,
            "many": MANY,
            "index": index_name(collection.collection_id),
            "ef_search": collection.index.hnsw.ef_search,
            "scanned": SCANNED,
        }
        if payload_filter is not None:
            self.condition, values = condition(payload_filter)
            self.parameters |= values
        self.needs_snapshot = self.has_moved and self.condition is not None
        if moved is not None:
            self.parameters |= {"user_id": moved.user_id, "moved_ids": list(moved.object_ids)}

    def exact(self, among: str, matching: Sequence[str] = ()) -> _Plan:
        return _Plan(self._statement("exact", among), {"matching": list(matching)}, is_exact=True)

    def indexed(self, among: str, *, at_least: int, scanned: int) -> _Plan:
        """Return a plan that draws from the index.

        How many it draws makes a longer list find what the shorter one found, and more; only where averages
        draw and the parts decide, a further draw can also come in between, so it grows in coarse steps.
        """
        draws = max(at_least, 2 * self.limit - self.spare)
        if self.geometry.averages_draw:
            draws = max(at_least, 1 << (5 * self.limit).bit_length())
        name = "drawn_by_average" if self.geometry.averages_draw else "drawn"
        return _Plan(
            self._statement(name, among),
            {"draws": draws, "scanned": max(scanned, 4 * draws)},
            is_exact=False,
        )

    def matching_if_few(self, connection: Connection) -> list[str] | None:
        """Return the ids of all objects that match, None where these are many."""
        statement = self._statement("matching_if_few", "all")
        matching: list[str] | None
        # Never prepared: whether the index on payloads is used depends on the value asked for.
        (matching,) = only_row(connection.execute(statement, self.parameters, prepare=False, binary=True))
        return matching

    def ask_moved(self, connection: Connection) -> Cursor[Row] | None:
        if not self.has_moved:
            return None
        return connection.execute(self._statement("moved", "all"), self.parameters, binary=True)

    def _statement(self, name: str, among: str) -> bytes:
        if self.condition is None:
            return _unfiltered(self.collection, name)
        return _composed(self.collection, name, among, self.condition)


@lru_cache(maxsize=1024)
def _unfiltered(collection: Collection, name: str) -> bytes:
    return _composed(collection, name, "all", sql.SQL("true"))


def _composed(collection: Collection, name: str, among: str, condition: sql.Composable) -> bytes:
    geometry = Geometry(collection.index)
    schema = schema_of(collection.collection_id)
    is_average = geometry.averages_decide or name == "drawn_by_average"
    return (
        _SQL[name]
        .format(
            **geometry.pieces(),
            schema=schema,
            condition=condition,
            among=_SQL[f"among_{among}"].format(schema=schema, condition=condition),
            is_average=sql.Literal(is_average),
        )
        .as_bytes()
    )


def _moved_objects(rows: Sequence[Row]) -> list[MovedObject]:
    """Return the objects of rows (object_id, payload with the first part, original part, personal part)."""
    originals, personals = unpack([row[2] for row in rows]), unpack([row[3] for row in rows])
    moved, start = [], 0
    for object_id, parts in groupby(rows, itemgetter(0)):
        payloads = [payload for _, payload, *_ in parts]
        end = start + len(payloads)
        moved.append(MovedObject(object_id, payloads[0], originals[start:end], personals[start:end]))
        start = end
    return moved
