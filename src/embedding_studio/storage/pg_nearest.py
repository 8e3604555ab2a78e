"""Which objects are nearest: the plans, and the choice between them.

A small collection is compared as a whole. In a large one, codes say which objects are likely to be the
nearest (``embeddings/codes``), and these are compared; then whatever else may still be nearer than the last
of them that is wanted. Where too few of the likeliest match a filter, the database says which objects match
at all, and only the codes of these are asked. Where codes cannot tell enough apart, all is compared. A list
is short only if no more objects match.
"""

import math
import statistics
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Cursor, sql
from psycopg.errors import UndefinedTable

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.embeddings.codes import Ranking, View
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.pg_codes import CodesOfCollection, State
from embedding_studio.storage.pg_database import Connection, only_row
from embedding_studio.storage.pg_filters import condition
from embedding_studio.storage.pg_geometry import Geometry
from embedding_studio.storage.pg_vectors import pack, pack_numbers, unpack_numbers
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.sql import in_schema, schema_of, statements

RECALL_TARGET = 0.99

FEWEST = 16
"""Codes are asked for at least so many objects, for others are needed where some turn out to be moved."""
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
_NONE: NDArray[np.int64] = np.empty(0, dtype=np.int64)

Row = tuple[Any, ...]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Moved:
    """How much a user's copies count, for the objects of which there are any.

    Attributes:
        gates: object_id -> in (0, 1].
    """

    user_id: str
    gates: Mapping[str, float]


class NearestSearch:
    """Finds neighbours; keeps a copy of the codes of each collection that it searched.

    Args:
        recall_target: in (0, 1], the share of the nearest that is to be found where a collection's own margin
            was not measured; 1 compares all, always.
    """

    def __init__(self, recall_target: float = RECALL_TARGET) -> None:
        self._recall_target = recall_target
        self.margin = margin_for(recall_target)
        self._codes: dict[int, CodesOfCollection] = {}
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
    ) -> list[Neighbour]:
        """Return the nearest; one round trip where nothing changed since the last search.

        Args:
            margin: in standard errors, instead of the collection's; infinite: compare all.
        """
        question = _Question(collection, queries, limit, payload_filter, moved)
        try:
            return self._answered(connection, question, margin)
        except UndefinedTable:
            self._codes.pop(collection.collection_id, None)  # it was dropped
            raise

    def _answered(
        self, connection: Connection, question: "_Question", margin: float | None
    ) -> list[Neighbour]:
        if margin != math.inf:
            for _ in range(ATTEMPTS):
                answer = self._by_codes(connection, question, margin)
                if answer is None:
                    break
                if not answer.is_old:
                    return answer.merged(question.limit)
        answer = self._ask(connection, question, question.exact())
        if self._recall_target < 1:  # a collection that was small may have codes by now, for the next search
            self._codes_of(question.collection).state(connection, at_least=answer.revision)
        return answer.merged(question.limit)

    def state(self, connection: Connection, collection: Collection) -> State:
        """Return the codes of a collection, up to date."""
        revision, *_ = only_row(
            connection.execute(in_schema("codes.sql", "revision", collection.collection_id))
        )
        return self._codes_of(collection).state(connection, at_least=revision)

    def _codes_of(self, collection: Collection) -> CodesOfCollection:
        return self._codes.setdefault(collection.collection_id, CodesOfCollection(collection))

    def _by_codes(
        self, connection: Connection, question: "_Question", margin: float | None
    ) -> "_Answer | None":
        """Return an answer from codes, which may be old; None where codes do not help."""
        if margin is None and self._recall_target == 1:
            return None
        codes = self._codes_of(question.collection)
        state = codes.state(connection)
        if state.view is None:
            return None
        if margin is None:
            margin = self.margin if state.margin is None else state.margin
        among: Numbers | None = None
        answer: _Answer | None = None
        if question.condition is not None:
            if not self._matches.are_known(question):
                answer = self._tried(connection, question, state.view.ranking(question.compared, margin))
            if answer is None:
                among = self._matches.find(connection, question, state.revision)
        if answer is None:
            answer = self._compared(connection, question, state.view, margin, among)
        if answer is not None and answer.revision != state.revision:
            codes.state(connection, at_least=answer.revision)
            return replace(answer, is_old=True)
        return answer

    def _tried(self, connection: Connection, question: "_Question", ranking: Ranking) -> "_Answer | None":
        """Return the nearest that match a filter; None where too many had to be asked for that."""
        likeliest = ranking.likeliest(max(FEWEST, FILTERED * question.limit))
        if len(likeliest) > MOST_FILTERED:
            return None
        answer = self._ask(connection, question, question.chosen(likeliest, is_filtered=True))
        if len(answer.neighbours) < question.limit:
            return None
        others = question.others(ranking, answer, likeliest)
        if len(others) > MOST_FILTERED:
            return None
        return self._with_others(connection, question, answer, others, is_filtered=True)

    def _compared(
        self,
        connection: Connection,
        question: "_Question",
        view: View,
        margin: float,
        among: Numbers | None,
    ) -> "_Answer | None":
        """Return what is nearest among the likeliest and whatever else may be nearer."""
        if among is not None and len(among) <= FEW:
            return self._ask(connection, question, question.chosen(among, is_filtered=False))
        most = MOST_COMPARED * len(view)
        ranking = view.ranking(question.compared, margin, among)
        count = max(FEWEST, question.limit)
        likeliest = ranking.likeliest(count)
        known: _Answer | None = None
        while len(likeliest) <= most:
            plan = question.chosen(likeliest, is_filtered=False)
            answer = self._ask(connection, question, plan, known=known)
            if len(answer.neighbours) == question.limit:
                others = question.others(ranking, answer, likeliest)
                if len(others) > most:
                    return None
                return self._with_others(connection, question, answer, others, is_filtered=False)
            if len(likeliest) < count or known is not None:
                return answer  # there are no more, or some went meanwhile, which its revision tells
            ranking.leave_out(answer.moved_nos)
            likeliest = ranking.likeliest(count)
            known = answer
        return None

    def _with_others(
        self,
        connection: Connection,
        question: "_Question",
        answer: "_Answer",
        others: Numbers,
        *,
        is_filtered: bool,
    ) -> "_Answer":
        if not len(others):
            return answer
        plan = question.chosen(others, is_filtered=is_filtered)
        more = self._ask(connection, question, plan, known=answer)
        neighbours = _in_order(answer.neighbours + more.neighbours)
        return replace(answer, neighbours=neighbours[: question.limit], revision=more.revision)

    def _ask(
        self, connection: Connection, question: "_Question", plan: "_Plan", *, known: "_Answer | None" = None
    ) -> "_Answer":
        """Return what a plan brings, in one round trip.

        Args:
            known: an answer to the same question, which has found already what is moved.
        """
        given = question.parameters | plan.parameters
        with connection.pipeline():
            if plan.needs_snapshot:
                connection.execute(_SQL["begin"])
                connection.execute(_SQL["settings"], given)
            asked = question.ask_moved(connection) if known is None else None
            nearest = connection.execute(plan.statement, given, binary=True)
            revision = connection.execute(question.revision)
            if plan.needs_snapshot:
                connection.execute(_SQL["commit"])
        near = nearest.fetchall()
        if known is not None:
            moved, nos = known.moved, known.moved_nos
        else:
            moved, nos = ([], _NONE) if asked is None else _moved(asked.fetchall())
        is_moved = set(nos.tolist())
        offset = question.geometry.offset
        neighbours = [
            Neighbour(object_id, distance + offset, payload)
            for object_id, distance, payload, object_no in near
            if object_no not in is_moved
        ]
        return _Answer(neighbours[: question.limit], moved, nos, only_row(revision)[0], is_old=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one plan brought.

    Attributes:
        moved: the nearest of what is moved.
        moved_nos: the numbers of all that is moved, sorted.
        revision: of the originals after it; all that it brought is of this one, if the codes were.
        is_old: originals have changed since the codes were read.
    """

    neighbours: list[Neighbour]
    moved: list[Neighbour]
    moved_nos: Numbers
    revision: int
    is_old: bool

    def merged(self, limit: int) -> list[Neighbour]:
        if not self.moved:
            return self.neighbours
        return _in_order(self.neighbours + self.moved)[:limit]


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
    ) -> None:
        parts = check_vectors(collection.index, queries, "the query")
        self.collection = collection
        self.limit = limit
        self.spare = 0 if moved is None else len(moved.gates)
        self.geometry = Geometry(collection.index)
        self.filter = payload_filter
        self.condition: sql.Composable | None = None
        self.revision = in_schema("codes.sql", "revision", collection.collection_id)
        self.compared = self.geometry.average(parts) if self.geometry.has_averages else parts
        """[Q, D], what codes are asked with."""
        self.parameters: dict[str, Any] = {
            "queries": pack(self.compared if self.geometry.averages_decide else parts),
        }
        if payload_filter is not None:
            self.condition, values = condition(payload_filter)
            self.parameters |= values
        self.has_moved = moved is not None
        if moved is not None:
            self.parameters |= {
                "user_id": moved.user_id,
                "moved_ids": list(moved.gates),
                "gates": list(moved.gates.values()),
                "parts": pack(parts),
                "offset": self.geometry.offset,
                "wanted": limit,
            }

    def exact(self) -> _Plan:
        among = "all" if self.condition is None else "matching"
        return _Plan(self._statement("exact", among), {"limit": self.limit + self.spare}, needs_snapshot=True)

    def chosen(self, candidates: Numbers, *, is_filtered: bool) -> _Plan:
        """Return a plan that compares candidates, and asks whether they match where that is not known."""
        most = self.limit + self.spare
        given = {
            "candidates": pack_numbers(candidates),
            "considered": len(candidates) if is_filtered else most,
            "limit": most,
        }
        if is_filtered:
            statement = self._statement("chosen", "all")
        else:
            statement = _unfiltered(self.collection, "chosen")
        return _Plan(statement, given, needs_snapshot=False)

    def others(self, ranking: Ranking, answer: "_Answer", compared: Numbers) -> Numbers:
        """Return the numbers of what was not compared and may be as near as the last of a full answer."""
        if self.limit == 0:
            return _NONE
        farthest = answer.neighbours[-1].distance - self.geometry.offset
        return np.setdiff1d(ranking.within(farthest), compared, assume_unique=True)

    def matching(self, connection: Connection) -> Numbers:
        """Return the numbers of all objects that match, sorted."""
        # Never prepared: whether the index on payloads is used depends on the value asked for.
        statement = self._statement("matching", "all")
        (packed,) = only_row(connection.execute(statement, self.parameters, prepare=False, binary=True))
        return unpack_numbers(packed)

    def ask_moved(self, connection: Connection) -> Cursor[Row] | None:
        if not self.has_moved:
            return None
        return connection.execute(self._statement("moved", "all"), self.parameters, binary=True)

    def _statement(self, name: str, among: str) -> bytes:
        if self.condition is None:
            return _unfiltered(self.collection, name)
        return _composed(self.collection, name, among, self.condition)


class _Matches:
    """What matches the filters for which this had to be found. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[int, str], tuple[int, Numbers]] = OrderedDict()

    def are_known(self, question: _Question) -> bool:
        """Return whether what matches had to be found before."""
        with self._lock:
            return _key(question) in self._found

    def find(self, connection: Connection, question: _Question, revision: int) -> Numbers:
        """Return the numbers of all objects that match, sorted, as of a revision or a later one."""
        with self._lock:
            known, numbers = self._found.get(_key(question), (-1, None))
        if numbers is not None and known == revision:
            return numbers
        matching = question.matching(connection)
        with self._lock:
            self._found.pop(_key(question), None)
            self._found[_key(question)] = revision, matching
            while (
                len(self._found) > REMEMBERED_FILTERS
                or sum(len(numbers) for _, numbers in self._found.values()) > REMEMBERED_MATCHES
            ):
                self._found.popitem(last=False)
        return matching


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
def _unfiltered(collection: Collection, name: str) -> bytes:
    return _composed(collection, name, "all", sql.SQL("true"))


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
        )
        .as_bytes()
    )


def _moved(rows: Sequence[Row]) -> tuple[list[Neighbour], Numbers]:
    """Return the nearest of what is moved, and the numbers of all."""
    nos = next(packed for object_id, *_, packed in rows if object_id is None)
    nearest = [
        Neighbour(object_id, distance, payload)
        for object_id, distance, payload, _ in rows
        if object_id is not None
    ]
    return nearest, unpack_numbers(nos)


def _in_order(neighbours: Sequence[Neighbour]) -> list[Neighbour]:
    return sorted(neighbours, key=lambda each: (each.distance, each.object_id))
