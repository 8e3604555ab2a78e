"""What a search asks of the database, statement by statement, and what these bring."""

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Cursor, sql

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.embeddings.code_columns import are_among
from embedding_studio.embeddings.codes import Ranking
from embedding_studio.embeddings.personal import ObjectGates, blend
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.embeddings.similarity import distances, similarities
from embedding_studio.storage.elsewhere import places_of_nearest, the_nearest
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.postgres.database import Connection, only_row
from embedding_studio.storage.postgres.filters import condition
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements
from embedding_studio.storage.postgres.users import OwnVectors, TakenForGranted, read_vectors
from embedding_studio.storage.postgres.vectors import pack_array, pack_numbers, unpack_numbers

_SQL = statements("nearest.sql")

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moved:
    """How much a user's copies count, for the objects of which there are any.

    Attributes:
        gates: object_id -> in (0, 1].
        vectors: the user's own, as far as they are known.
    """

    user_id: str
    gates: ObjectGates
    vectors: OwnVectors


@dataclass(frozen=True, slots=True)
class Answer:
    """What one plan brought.

    Attributes:
        object_nos: of all that was compared and is there.
        named_nos: object_id -> its number, of those that are named.
        revision: of the originals; all that it brought is of this one, if the codes were.
        is_old: originals have changed since the codes were read.
    """

    neighbours: list[Neighbour]
    object_nos: Numbers
    named_nos: Mapping[str, int]
    revision: int
    is_old: bool


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """A user's own copies, M objects, and how they bear on a query.

    Attributes:
        object_nos: [M], sorted.
        gates: [M], in (0, 1].
        distances: [M], from the query to the user's vectors.
    """

    object_nos: Numbers
    gates: Floats
    distances: Floats

    def __len__(self) -> int:
        return len(self.object_nos)

    def at(self, kept: NDArray[np.bool_]) -> "Copies":
        """Return some of them."""
        if kept.all():
            return self
        return Copies(self.object_nos[kept], self.gates[kept], self.distances[kept])

    def blended(self, object_nos: Numbers, distances: Floats) -> Floats:
        """Return the distances [N] of objects, given those to their originals."""
        places = np.searchsorted(self.object_nos, object_nos).clip(max=len(self) - 1)
        gates = np.where(self.object_nos[places] == object_nos, self.gates[places], 0)
        return np.where(gates > 0, blend(distances, self.distances[places], gates), distances)

    def bounds(self, ranking: Ranking, geometry: Geometry) -> Floats:
        """Return the least and the largest distance that each may have, [2, M], from what codes say."""
        if not len(self):
            return np.empty((2, 0))
        bounds = np.stack([self.distances, self.distances])
        weighed = np.flatnonzero(self.gates < 1)  # the others stand where the user's own vectors do
        if len(weighed):
            least, largest = ranking.bounds(self.object_nos[weighed]) + geometry.offset
            if geometry.averages_draw:  # the average stands no farther than its parts do on average
                largest = np.full_like(largest, np.inf)
            of_originals = np.stack([least, largest])
            bounds[:, weighed] = blend(of_originals, self.distances[weighed], self.gates[weighed])
        return bounds


NOTHING_TAKEN = {"name": None, "user_id": None, "votes": None}
NONE_RANKED: AbstractSet[str] = frozenset()
NO_COPIES = Copies(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))


@dataclass(frozen=True, slots=True)
class Plan:
    """A statement."""

    statement: bytes
    parameters: dict[str, Any]
    needs_snapshot: bool


class Question:
    """What is asked, in pieces of SQL and parameters."""

    def __init__(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        payload_filter: PayloadFilter | None,
        moved: Moved | None,
        *,
        taken: TakenForGranted | None,
        named: Mapping[str, float],
    ) -> None:
        parts = check_vectors(collection.index, queries, "the query")
        self.collection = collection
        self.limit = limit
        self.named = named
        self.reach = limit + len(named)
        """Among so many of the nearest are all the nearest of those that are not named."""
        self.geometry = Geometry(collection.index)
        self.is_multiplied = (
            collection.index.metric_type is not MetricType.DOT and not self.geometry.averages_draw
        )
        """Whether codes can tell where objects stand once their distances are multiplied."""
        self.filter = payload_filter
        self.condition: sql.Composable | None = None
        self.revision = in_schema("codes.sql", "revision", collection.collection_id)
        self.compared = self.geometry.average(parts) if self.geometry.has_averages else parts
        """[Q, D], what codes are asked with."""
        self.parameters: dict[str, Any] = {
            "queries": pack_array(self.compared if self.geometry.averages_decide else parts),
            **(NOTHING_TAKEN if taken is None else taken.given),
        }
        if payload_filter is not None:
            self.condition, values = condition(payload_filter)
            self.parameters |= values
        self._parts = parts
        self._moved = moved
        self._taken = taken

    def copies(self, connection: Connection) -> Copies:
        """Return what the user moved and a gate is open for; in no round trip where it is known already."""
        if self._moved is None:
            return NO_COPIES
        gates, vectors = self._moved.gates, self._moved.vectors
        if lacking := vectors.lacking(object_ids for object_ids, _ in gates.groups):
            vectors |= read_vectors(connection, self.collection, self._moved.user_id, lacking)
        own, opened = vectors.opened(gates)
        if not len(opened):
            return NO_COPIES
        index = self.collection.index
        alike = similarities(index, self._parts, own.parts, own.starts, own.lengths)
        return Copies(own.object_nos, opened, distances(index, alike))

    def rank_named(self, numbers: Mapping[str, int], ranking: Ranking, copies: Copies) -> AbstractSet[str]:
        """Let those that are named stand in a ranking where they come to by their factors.

        Args:
            numbers: of objects, as far as they are known.

        Returns:
            Those of which codes tell that: they need not be looked for by their ids.
        """
        if not self.named or not self.is_multiplied or self.condition is not None:
            return NONE_RANKED
        names = sorted((name for name in self.named if name in numbers), key=numbers.__getitem__)
        object_nos = np.array([numbers[name] for name in names], dtype=np.int64)
        if len(copies):
            kept = np.flatnonzero(~are_among(object_nos, copies.object_nos))
            names, object_nos = [names[place] for place in kept.tolist()], object_nos[kept]
        if not names:
            return NONE_RANKED
        factors = np.array([self.named[name] for name in names])
        are_there = ranking.multiply(object_nos, factors, self.geometry.offset)
        return {name for name, is_there in zip(names, are_there.tolist(), strict=True) if is_there}

    def exact(self, without: Copies) -> Plan:
        among = "all" if self.condition is None else "matching"
        given = {"limit": self.reach, "without": pack_numbers(without.object_nos)}
        return Plan(self._statement("exact", among), given, needs_snapshot=True)

    def chosen(
        self,
        candidates: Numbers,
        copies: Copies,
        *,
        is_filtered: bool = False,
        ranked: AbstractSet[str] = NONE_RANKED,
    ) -> Plan:
        """Return a plan that compares candidates, and asks whether they match where that is not known.

        Args:
            ranked: of those that are named, these need not be looked for by their ids.
        """
        sought = self.named.keys() - ranked
        # What stands far may have a copy that stands near, or be named.
        most = None if len(copies) or self.named else self.limit
        given = {
            "candidates": pack_numbers(candidates),
            "considered": None if is_filtered else most,
            "limit": most,
            "named": sorted(sought),
        }
        if is_filtered or sought:  # these were asked nothing yet
            statement = self._statement("chosen", "all", has_named=bool(sought))
        else:
            statement = _unfiltered(self.collection, "chosen")
        return Plan(statement, given, needs_snapshot=False)

    def matching(self, connection: Connection) -> Numbers:
        """Return the numbers of all objects that match, sorted."""
        # Never prepared: whether the index on payloads is used depends on the value asked for.
        statement = self._statement("matching", "all")
        (packed,) = only_row(connection.execute(statement, self.parameters, prepare=False, binary=True))
        return unpack_numbers(packed)

    def send(self, connection: Connection, plan: Plan) -> Cursor[tuple[Any, ...]]:
        return connection.execute(plan.statement, self.parameters | plan.parameters, binary=True)

    def answer(self, connection: Connection, found: Cursor[tuple[Any, ...]], copies: Copies) -> Answer:
        """Return what a plan brought.

        Raises:
            OutdatedError: what was taken for granted is so no longer.
        """
        rows = found.fetchall()
        if rows:
            revision, *versions = rows[0][4:]
        else:
            moment = connection.execute(_unfiltered(self.collection, "only_moment"), self.parameters)
            revision, *versions = only_row(moment)
        if self._taken is not None:
            self._taken.check(connection, versions)
        object_nos = np.array([row[3] for row in rows], dtype=np.int64)
        distances = np.array([row[1] for row in rows]) + self.geometry.offset
        if len(copies):
            distances = copies.blended(object_nos, distances)
        stand = [(distance, row[0]) for distance, row in zip(distances.tolist(), rows, strict=True)]
        places = places_of_nearest(stand, self.limit, self.named)
        payloads = json.loads(f"[{','.join([rows[place][2] for place in places])}]")  # of all in one go
        neighbours = [
            Neighbour(object_id, distance, payload)
            for place, payload in zip(places, payloads, strict=True)
            for distance, object_id in [stand[place]]
        ]
        named_nos = {row[0]: row[3] for row in rows if row[0] in self.named} if self.named else {}
        return Answer(neighbours, object_nos, named_nos, revision, is_old=False)

    def joined(self, one: Answer, other: Answer) -> Answer:
        """Return the nearest of what two plans brought, with the revision of the second."""
        together = {each.object_id: each for each in one.neighbours + other.neighbours}
        return replace(
            other,
            neighbours=the_nearest(list(together.values()), self.limit, self.named),
            named_nos={**one.named_nos, **other.named_nos},
        )

    def farthest(self, neighbours: Sequence[Neighbour]) -> float:
        """Return how far the last stands that is wanted; infinite where there are fewer than are wanted."""
        if not self.is_multiplied:  # those that are named may come to stand anywhere
            neighbours = [each for each in neighbours if each.object_id not in self.named]
        stand = [self.named.get(each.object_id, 1.0) * each.distance for each in neighbours]
        return sorted(stand)[self.limit - 1] if len(stand) >= self.limit else math.inf

    def _statement(self, name: str, among: str, *, has_named: bool = False) -> bytes:
        if self.condition is None:
            return _unfiltered(self.collection, name, among, has_named=has_named)
        return _composed(self.collection, name, among, self.condition, has_named=has_named)


def smallest(values: Floats, count: int) -> float:
    """Return the ``count``-th smallest; infinite where they are fewer."""
    return float(np.partition(values, count - 1)[count - 1]) if len(values) >= count else math.inf


def check(connection: Connection, collection: Collection, taken: TakenForGranted) -> None:
    """Return if what was taken for granted is so.

    Raises:
        OutdatedError: it is not.
    """
    _, *versions = only_row(connection.execute(_unfiltered(collection, "only_moment"), taken.given))
    taken.check(connection, versions)


@lru_cache(maxsize=1024)
def _unfiltered(collection: Collection, name: str, among: str = "all", *, has_named: bool = False) -> bytes:
    return _composed(collection, name, among, sql.SQL("true"), has_named=has_named)


def _composed(
    collection: Collection, name: str, among: str, condition: sql.Composable, *, has_named: bool
) -> bytes:
    geometry = Geometry(collection.index)
    schema = schema_of(collection.collection_id)
    is_average = geometry.averages_decide
    return (
        _SQL[name]
        .format(
            **geometry.pieces(),
            schema=schema,
            condition=condition,
            candidates=_SQL["candidates_and_named" if has_named else "candidates"].format(schema=schema),
            among=_SQL[f"among_{among}"].format(schema=schema, condition=condition),
            is_average=sql.Literal(is_average),
            moment=_SQL["moment"].format(schema=schema, is_since=statements("votes.sql")["is_since"]),
        )
        .as_bytes()
    )
