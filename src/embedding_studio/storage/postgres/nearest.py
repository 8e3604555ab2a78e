"""Which objects are nearest: the plans, and the choice between them.

A small collection is compared as a whole. In a large one, codes say which objects are likely to be the
nearest (``embeddings/codes``), and these are compared; then whatever else may still be nearer than the last
of them that is wanted. Where too few of the likeliest match a filter, the database says which objects match
at all, and only the codes of these are asked. Where codes cannot tell enough apart, all is compared. A list
is short only if no more objects match.

For what a user has copies of, it is asked first how near these are; codes bound how near the originals are,
and so, by the gates, both together. Then they stand in line with all others.
"""

import math
import statistics
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Cursor, sql
from psycopg.errors import UndefinedTable
from psycopg.pq import TransactionStatus

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.embeddings.codes import Ranking, View
from embedding_studio.embeddings.personal import ObjectGates, blend
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.embeddings.similarity import distances, similarities
from embedding_studio.storage.ports import OutdatedError, Vectors
from embedding_studio.storage.postgres.codes import CodesOfCollection, State
from embedding_studio.storage.postgres.database import (
    BehindError,
    Connection,
    one_moment,
    only_row,
    server_of,
)
from embedding_studio.storage.postgres.filters import condition
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements
from embedding_studio.storage.postgres.users import OwnVectors, read_vectors
from embedding_studio.storage.postgres.vectors import pack, pack_numbers, unpack_numbers

FEWEST = 16
"""Codes are asked for at least so many objects: a few more cost nothing, and save a second question."""
FILTERED = 4
"""A filter is asked first of the likeliest of so many times the objects wanted."""
MOST_FILTERED = 2000
"""Where more must be asked whether they match, it is faster to find all that match."""
MOST_COMPARED = 0.25
"""Where a larger share of all parts must be compared one by one, to compare all in their order is as fast."""
FEW = 1000
"""So many that match are compared without asking their codes."""
ATTEMPTS = 4
"""So often codes are brought up to date when originals change while they are asked."""
REMEMBERED_FILTERS = 64
REMEMBERED_MATCHES = 4_000_000
"""For so many filters it is remembered what matches (as long as no object changes), together at most so many
objects."""

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
class TakenForGranted:
    """What a search is made of without a look whether it is still so; each answer says whether it is.

    Attributes:
        server: of which it was read.
        name: of a collection.
        collection: version of what the name stood for.
        user_id: None: no user's state takes part.
        state: version of the user's.
    """

    server: str
    name: str
    collection: str
    user_id: str | None = None
    state: str | None = None

    def check(self, connection: Connection, versions: Sequence[str | None]) -> None:
        """Return if these are the versions of collection and state, and of the same server.

        Raises:
            OutdatedError: they are not.
        """
        if (self.server, self.collection, self.state) != (server_of(connection), *versions):
            raise OutdatedError("the collection, or what is learnt about the user, is not what it was")


class NearestSearch:
    """Finds neighbours; keeps a copy of the codes of each collection that it searched.

    Args:
        recall_target: in (0, 1], the share of the nearest that is to be found where a collection's own margin
            was not measured; 1 compares all, always.
    """

    def __init__(self, recall_target: float) -> None:
        self._recall_target = recall_target
        self.margin = margin_for(recall_target)
        self._codes: dict[int, tuple[str, CodesOfCollection]] = {}
        self._lock = threading.Lock()
        self._matches = _Matches()

    def __call__(
        self,
        connection: Connection,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        payload_filter: PayloadFilter | None,
        moved: Moved | None = None,
        margin: float | None = None,
        taken: TakenForGranted | None = None,
    ) -> list[Neighbour]:
        """Return the nearest; one round trip where nothing changed since the last search.

        Args:
            margin: in standard errors, instead of the collection's; infinite: compare all.

        Raises:
            OutdatedError: what was taken for granted is so no longer.
        """
        question = _Question(collection, queries, max(limit, 1), payload_filter, moved, taken=taken)
        try:
            return self._answered(connection, question, margin)[:limit]
        except UndefinedTable:
            self._codes.pop(collection.collection_id, None)  # it was dropped
            raise

    def _answered(
        self, connection: Connection, question: "_Question", margin: float | None
    ) -> list[Neighbour]:
        if margin != math.inf:
            at = _moment_of(connection, question)
            for _ in range(ATTEMPTS):
                answer = self._by_codes(connection, question, margin, at)
                if answer is None:
                    break
                if not answer.is_old:
                    return answer.neighbours
        answer = self._exact(connection, question)
        if self._recall_target < 1:  # a collection that was small may have codes by now, for the next search
            codes = self._codes_of(connection, question.collection)
            codes.state(connection, at_least=answer.revision)
        return answer.neighbours

    def among(
        self,
        connection: Connection,
        collection: Collection,
        queries: Vectors,
        limit: int,
        candidates: Numbers,
        *,
        payload_filter: PayloadFilter | None,
        moved: Moved | None = None,
        taken: TakenForGranted | None = None,
    ) -> tuple[list[Neighbour], int]:
        """Return the nearest of some objects and all that were moved, and the revision of the originals."""
        question = _Question(collection, queries, max(limit, 1), payload_filter, moved, taken=taken)
        copies = question.copies(connection)
        plan = question.chosen(
            np.union1d(candidates, copies.object_nos), copies, is_filtered=payload_filter is not None
        )
        answer = self._ask(connection, question, plan, copies)
        return answer.neighbours, answer.revision

    def state(self, connection: Connection, collection: Collection) -> State:
        """Return the codes of a collection, up to date."""
        revision, *_ = only_row(
            connection.execute(in_schema("codes.sql", "revision", collection.collection_id))
        )
        return self._codes_of(connection, collection).state(connection, at_least=revision)

    def _codes_of(self, connection: Connection, collection: Collection) -> CodesOfCollection:
        """Return the codes of a collection; those of another server are dropped."""
        server = server_of(connection)
        with self._lock:
            kept = self._codes.get(collection.collection_id)
            if kept is None or kept[0] != server:
                kept = self._codes[collection.collection_id] = server, CodesOfCollection(collection)
        return kept[1]

    def _by_codes(
        self, connection: Connection, question: "_Question", margin: float | None, at: int | None
    ) -> "_Answer | None":
        """Return an answer from codes, which may be old; None where codes do not help.

        Args:
            at: the revision of all that is read.

        Raises:
            BehindError: the codes are newer. What matches a filter is remembered by their revision.
        """
        if margin is None and self._recall_target == 1:
            return None
        codes = self._codes_of(connection, question.collection)
        state = codes.state(connection, at_least=at or 0)
        if at is not None and state.revision > at:
            raise BehindError
        if state.view is None:
            return None
        if margin is None:
            margin = self.margin if state.margin is None else state.margin
        answer = self._asked_of(connection, question, state.view, state.revision, margin)
        if answer is not None and answer.revision != state.revision:
            codes.state(connection, at_least=answer.revision)
            return replace(answer, is_old=True)
        return answer

    def _asked_of(
        self, connection: Connection, question: "_Question", view: View, revision: int, margin: float
    ) -> "_Answer | None":
        """Return what codes and, for what they say is likely, the database answer."""
        copies = question.copies(connection)
        copies = copies.at(view.has(copies.object_nos))  # who searched before may know some that have gone
        among: Numbers | None = None
        if question.condition is not None:
            if not self._matches.are_known(question):
                ranking = view.ranking(question.compared, margin)
                count = max(FEWEST, FILTERED * question.limit)
                answer = self._compared(
                    connection, question, ranking, copies, count, most=MOST_FILTERED, is_filtered=True
                )
                if answer is not None:
                    return answer
            among = self._matches.find(connection, question, revision)
            if len(among) <= FEW:
                return self._ask(connection, question, question.chosen(among, copies), copies)
            copies = copies.at(np.isin(copies.object_nos, among))
        ranking = view.ranking(question.compared, margin, among)
        count, most = max(FEWEST, question.limit), int(MOST_COMPARED * len(view))
        return self._compared(connection, question, ranking, copies, count, most=most, is_filtered=False)

    def _compared(
        self,
        connection: Connection,
        question: "_Question",
        ranking: Ranking,
        copies: "_Copies",
        count: int,
        *,
        most: int,
        is_filtered: bool,
    ) -> "_Answer | None":
        """Return what is nearest among the likeliest and whatever else may be nearer.

        Args:
            count: of objects that are asked for first.
            most: None is returned where more must be compared.
            is_filtered: whether a filter is to be asked of them; then None also where too few match.
        """
        least, largest = copies.bounds(ranking, question.geometry)
        if len(copies):
            ranking.leave_out(copies.object_nos)
        reach = _smallest(largest, question.limit)
        likeliest = ranking.likeliest(count, reach - question.geometry.offset)
        if len(likeliest) > most:
            return None
        if reach == math.inf:
            reach = _smallest(least, question.limit)
        compared = np.union1d(likeliest, copies.object_nos[least <= reach])
        plan = question.chosen(compared, copies, is_filtered=is_filtered)
        answer = self._ask(connection, question, plan, copies)
        is_full = len(answer.neighbours) == question.limit
        if is_filtered and not is_full:
            return None
        # One that is not full has all there is, unless some went meanwhile, which its revision tells.
        farthest = answer.neighbours[-1].distance if is_full else math.inf
        others = copies.object_nos[least <= farthest]
        if is_full:
            others = np.union1d(others, ranking.within(farthest - question.geometry.offset))
        others = np.setdiff1d(others, compared, assume_unique=True)
        if not len(others):
            return answer
        if len(others) > most:
            return None
        plan = question.chosen(others, copies, is_filtered=is_filtered)
        return self._ask(connection, question, plan, copies).joined_to(answer, question.limit)

    def _exact(self, connection: Connection, question: "_Question") -> "_Answer":
        """Return what is nearest, with all compared."""
        copies = question.copies(connection)
        if not len(copies):
            return self._ask(connection, question, question.exact(copies), copies)
        is_filtered = question.condition is not None
        # Of one moment, else what changes meanwhile would be missed by both.
        with connection.pipeline(), one_moment(connection):
            connection.execute(_SQL["settings"])
            others = question.send(connection, question.exact(copies))
            moved = question.send(
                connection, question.chosen(copies.object_nos, copies, is_filtered=is_filtered)
            )
        answer = question.answer(connection, moved, copies)
        return answer.joined_to(question.answer(connection, others, copies), question.limit)

    def _ask(
        self, connection: Connection, question: "_Question", plan: "_Plan", copies: "_Copies"
    ) -> "_Answer":
        """Return what a plan brings, in one round trip."""
        if plan.needs_snapshot:
            with connection.pipeline(), one_moment(connection):
                connection.execute(_SQL["settings"])
                found = question.send(connection, plan)
        else:
            found = question.send(connection, plan)
        return question.answer(connection, found, copies)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one plan brought.

    Attributes:
        revision: of the originals; all that it brought is of this one, if the codes were.
        is_old: originals have changed since the codes were read.
    """

    neighbours: list[Neighbour]
    revision: int
    is_old: bool

    def joined_to(self, earlier: "_Answer", limit: int) -> "_Answer":
        """Return one that has also the neighbours of an earlier one, which are others."""
        return replace(self, neighbours=_in_order(earlier.neighbours + self.neighbours)[:limit])


@dataclass(frozen=True, slots=True, eq=False)
class _Copies:
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

    def at(self, kept: NDArray[np.bool_]) -> "_Copies":
        """Return some of them."""
        if kept.all():
            return self
        return _Copies(self.object_nos[kept], self.gates[kept], self.distances[kept])

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


_NO_COPIES = _Copies(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A statement."""

    statement: bytes
    parameters: dict[str, Any]
    needs_snapshot: bool


class _Question:
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
    ) -> None:
        parts = check_vectors(collection.index, queries, "the query")
        self.collection = collection
        self.limit = limit
        self.geometry = Geometry(collection.index)
        self.filter = payload_filter
        self.condition: sql.Composable | None = None
        self.revision = in_schema("codes.sql", "revision", collection.collection_id)
        self.compared = self.geometry.average(parts) if self.geometry.has_averages else parts
        """[Q, D], what codes are asked with."""
        self.parameters: dict[str, Any] = {
            "queries": pack(self.compared if self.geometry.averages_decide else parts),
            "name": None if taken is None else taken.name,
            "user_id": None if taken is None else taken.user_id,
        }
        if payload_filter is not None:
            self.condition, values = condition(payload_filter)
            self.parameters |= values
        self._parts = parts
        self._moved = moved
        self._taken = taken

    def copies(self, connection: Connection) -> _Copies:
        """Return what the user moved and a gate is open for; in no round trip where it is known already."""
        if self._moved is None:
            return _NO_COPIES
        gates, vectors = self._moved.gates, self._moved.vectors
        if lacking := vectors.lacking(object_ids for object_ids, _ in gates.groups):
            vectors |= read_vectors(connection, self.collection, self._moved.user_id, lacking)
        own, opened = vectors.opened(gates)
        if not len(opened):
            return _NO_COPIES
        index = self.collection.index
        alike = similarities(index, self._parts, own.parts, own.starts, own.lengths)
        return _Copies(own.object_nos, opened, distances(index, alike))

    def exact(self, without: _Copies) -> _Plan:
        among = "all" if self.condition is None else "matching"
        given = {"limit": self.limit, "without": pack_numbers(without.object_nos)}
        return _Plan(self._statement("exact", among), given, needs_snapshot=True)

    def chosen(self, candidates: Numbers, copies: _Copies, *, is_filtered: bool = False) -> _Plan:
        """Return a plan that compares candidates, and asks whether they match where that is not known."""
        most = None if len(copies) else self.limit  # what stands far may have a copy that stands near
        given = {
            "candidates": pack_numbers(candidates),
            "considered": None if is_filtered else most,
            "limit": most,
        }
        if is_filtered:
            statement = self._statement("chosen", "all")
        else:
            statement = _unfiltered(self.collection, "chosen")
        return _Plan(statement, given, needs_snapshot=False)

    def matching(self, connection: Connection) -> Numbers:
        """Return the numbers of all objects that match, sorted."""
        # Never prepared: whether the index on payloads is used depends on the value asked for.
        statement = self._statement("matching", "all")
        (packed,) = only_row(connection.execute(statement, self.parameters, prepare=False, binary=True))
        return unpack_numbers(packed)

    def send(self, connection: Connection, plan: _Plan) -> Cursor[tuple[Any, ...]]:
        return connection.execute(plan.statement, self.parameters | plan.parameters, binary=True)

    def answer(self, connection: Connection, found: Cursor[tuple[Any, ...]], copies: _Copies) -> _Answer:
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
        distances = np.array([row[1] for row in rows]) + self.geometry.offset
        if len(copies):
            distances = copies.blended(np.array([row[3] for row in rows]), distances)
        neighbours = [
            Neighbour(object_id, distance, payload)
            for (object_id, _, payload, *_), distance in zip(rows, distances.tolist(), strict=True)
        ]
        if len(copies):
            neighbours = _in_order(neighbours)
        return _Answer(neighbours[: self.limit], revision, is_old=False)

    def _statement(self, name: str, among: str) -> bytes:
        if self.condition is None:
            return _unfiltered(self.collection, name)
        return _composed(self.collection, name, among, self.condition)


class _Matches:
    """What matches the filters for which this had to be found. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[int, str], tuple[str, int, Numbers]] = OrderedDict()

    def are_known(self, question: _Question) -> bool:
        """Return whether what matches had to be found before."""
        with self._lock:
            return _key(question) in self._found

    def find(self, connection: Connection, question: _Question, revision: int) -> Numbers:
        """Return the numbers of all objects that match, sorted, as of a revision or a later one."""
        with self._lock:
            *known, numbers = self._found.get(_key(question), ("", -1, None))
        if numbers is not None and known == [server_of(connection), revision]:
            return numbers
        matching = question.matching(connection)
        with self._lock:
            self._found.pop(_key(question), None)
            self._found[_key(question)] = server_of(connection), revision, matching
            while (
                len(self._found) > REMEMBERED_FILTERS
                or sum(len(numbers) for *_, numbers in self._found.values()) > REMEMBERED_MATCHES
            ):
                self._found.popitem(last=False)
        return matching


def check(connection: Connection, collection: Collection, taken: TakenForGranted) -> None:
    """Return if what was taken for granted is so.

    Raises:
        OutdatedError: it is not.
    """
    given = {"name": taken.name, "user_id": taken.user_id}
    _, *versions = only_row(connection.execute(_unfiltered(collection, "only_moment"), given))
    taken.check(connection, versions)


def _moment_of(connection: Connection, question: _Question) -> int | None:
    """Return the revision of all that is read, where that is of one moment; None where it may change."""
    if connection.info.transaction_status == TransactionStatus.IDLE:
        return None
    revision: int
    revision, *_ = only_row(connection.execute(question.revision))
    return revision


def margin_for(recall_target: float) -> float:
    """Return so many standard errors as an estimate stays within with a probability.

    An object at the very edge of a list is missed as often as its estimate is worse than that; others less.
    """
    return statistics.NormalDist().inv_cdf((1 + min(recall_target, 0.999999)) / 2)


def _key(question: _Question) -> tuple[int, str]:
    return (
        question.collection.collection_id,
        "" if question.filter is None else question.filter.model_dump_json(),
    )


@lru_cache(maxsize=1024)
def _unfiltered(collection: Collection, name: str, among: str = "all") -> bytes:
    return _composed(collection, name, among, sql.SQL("true"))


def _composed(collection: Collection, name: str, among: str, condition: sql.Composable) -> bytes:
    geometry = Geometry(collection.index)
    schema = schema_of(collection.collection_id)
    is_average = geometry.averages_decide
    return (
        _SQL[name]
        .format(
            **geometry.pieces(),
            schema=schema,
            condition=condition,
            among=_SQL[f"among_{among}"].format(schema=schema, condition=condition),
            is_average=sql.Literal(is_average),
            moment=_SQL["moment"].format(schema=schema),
        )
        .as_bytes()
    )


def _smallest(values: Floats, count: int) -> float:
    """Return the ``count``-th smallest; infinite where they are fewer."""
    return float(np.partition(values, count - 1)[count - 1]) if len(values) >= count else math.inf


def _in_order(neighbours: Sequence[Neighbour]) -> list[Neighbour]:
    return sorted(neighbours, key=lambda each: (each.distance, each.object_id))
