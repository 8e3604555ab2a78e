"""Which objects are nearest: the plans, and the choice between them.

A small collection is compared as a whole. In a large one, codes say which objects may be among the nearest
(``embeddings/codes``), and these are compared. A filter is asked of the nearest; where too few of them match,
the database says which objects match at all, and the codes of these say which may be the nearest. Where codes
cannot tell enough apart, all is compared. A list is short only if no more objects match.
"""

import math
import statistics
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Cursor, sql

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, MovedObject, Neighbour
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.pg_codes import CodesOfCollection, State
from embedding_studio.storage.pg_database import Connection, only_row
from embedding_studio.storage.pg_filters import condition
from embedding_studio.storage.pg_geometry import Geometry
from embedding_studio.storage.pg_vectors import pack, pack_numbers, unpack, unpack_numbers
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.sql import in_schema, schema_of, statements

RECALL_TARGET = 0.99

FEWEST = 16
"""Codes are asked for at least so many objects, and for twice as many each time: pages near to each other are
made from the same candidates."""
CONSIDERED = (4, 32)
"""A filter is asked of so many times the objects wanted, one after the other, before all that match are
looked for. So many are drawn, too, by their averages where the parts decide."""
SPARE = 32
"""So many neighbours more are asked for first, where some may turn out to be moved."""
MOST_COMPARED = 0.25
"""Where the candidates are a larger share of all parts, to compare all in their order is as fast."""
FEW = 1000
"""So many that match are compared without asking their codes."""
ATTEMPTS = 4
"""So often codes are brought up to date when originals change while they are asked."""
REMEMBERED_FILTERS = 64
REMEMBERED_MATCHES = 4_000_000
"""For so many filters it is remembered what matches (as long as no object changes), together at most so many
objects."""

_SQL = statements("nearest.sql")

Row = tuple[Any, ...]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Moved:
    """Objects that are left out of the neighbours, and returned apart, where the user has copies."""

    user_id: str
    object_ids: Sequence[str]


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
    ) -> tuple[list[Neighbour], list[MovedObject]]:
        """Return neighbours and moved objects; one round trip where nothing changed since the last search.

        Args:
            margin: in standard errors, instead of the collection's; infinite: compare all.
        """
        question = _Question(collection, queries, limit, payload_filter, moved)
        if margin != math.inf:
            for _ in range(ATTEMPTS):
                answer = self._by_codes(connection, question, margin)
                if answer is None:
                    break
                if not answer.is_old:
                    return answer.neighbours, answer.moved
        answer = self._ask(connection, question, question.exact())
        return answer.neighbours, answer.moved

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
        """Return an answer from codes; None where they do not help."""
        codes = self._codes_of(question.collection)
        state = codes.state(connection)
        if state.view is None or self._recall_target == 1:
            return None
        margin = margin or state.margin or self.margin
        answer = None
        for plan in self._plans(connection, question, state, margin):
            if plan is None:
                return None
            answer = self._ask(connection, question, plan)
            if answer.revision != state.revision:
                codes.state(connection, at_least=answer.revision)
                return replace(answer, is_old=True)
            if len(answer.neighbours) >= question.limit:
                return answer
        return None if question.geometry.averages_draw else answer

    def _plans(
        self, connection: Connection, question: "_Question", state: State, margin: float
    ) -> Iterator["_Plan | None"]:
        """Yield plans until one brings enough; None where all must be compared."""
        view = state.view
        assert view is not None  # noqa: S101, its only caller has looked
        some = min(question.spare, SPARE)

        def plan(wanted: int, spare: int, among: Numbers | None = None) -> "_Plan | None":
            count = max(FEWEST, 1 << (wanted + spare - 1).bit_length())
            if among is not None and len(among) <= FEW:
                found = among
            else:
                found = view.candidates(question.compared, count, margin, among=among)
                if len(found) > MOST_COMPARED * len(view):
                    return None
            return question.chosen(
                found, considered=count, spare=spare, is_filtered=among is None, are_all=found is among
            )

        if question.condition is None and not question.geometry.averages_draw:
            yield from (plan(question.limit, spare) for spare in _spares(question.spare))
            return
        for times in CONSIDERED[self._matches.level(question) :]:
            if times * question.limit <= len(view):
                yield plan(times * question.limit, some)
                self._matches.raise_level(question)
        if question.condition is None:
            yield None
            return
        matching = self._matches.get(connection, question, state.revision)
        times = CONSIDERED[-1] if question.geometry.averages_draw else 1
        yield from (plan(times * question.limit, spare, matching) for spare in _spares(question.spare))

    def _ask(self, connection: Connection, question: "_Question", plan: "_Plan") -> "_Answer":
        given = question.parameters | plan.parameters
        with connection.pipeline():
            if question.needs_snapshot:
                connection.execute(_SQL["begin"])
            asked = question.ask_moved(connection)
            if plan.needs_custom_plan:
                connection.execute(_SQL["settings"], given)
            nearest = connection.execute(plan.statement, given, binary=True)
            revision = connection.execute(question.revision)
            if question.needs_snapshot:
                connection.execute(_SQL["commit"])
        near = nearest.fetchall()
        found = [] if asked is None else _moved_objects(asked.fetchall())
        moved_ids = {each.object_id for each in found}
        offset = question.geometry.offset
        neighbours = [
            Neighbour(object_id, distance + offset, payload)
            for object_id, distance, payload in near
            if object_id not in moved_ids
        ]
        return _Answer(neighbours[: question.limit], found, only_row(revision)[0], is_old=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one plan brought.

    Attributes:
        revision: of the originals after it; all that it brought is of this one, if the codes were.
        is_old: originals have changed since the codes were read.
    """

    neighbours: list[Neighbour]
    moved: list[MovedObject]
    revision: int
    is_old: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """A statement."""

    statement: bytes
    parameters: dict[str, Any]
    needs_custom_plan: bool


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
        self.spare = 0 if moved is None else len(moved.object_ids)
        self.geometry = Geometry(collection.index)
        self.filter = payload_filter
        self.condition: sql.Composable | None = None
        self.revision = in_schema("codes.sql", "revision", collection.collection_id)
        self.compared = self.geometry.average(parts) if self.geometry.has_averages else parts
        """[Q, D], what codes are asked with."""
        self.parameters: dict[str, Any] = {
            "queries": pack(self.compared if self.geometry.averages_decide else parts),
            "average_query": pack(self.compared)[0],
        }
        if payload_filter is not None:
            self.condition, values = condition(payload_filter)
            self.parameters |= values
        self.has_moved = moved is not None and bool(moved.object_ids)
        self.needs_snapshot = self.has_moved and self.condition is not None
        if moved is not None:
            self.parameters |= {"user_id": moved.user_id, "moved_ids": list(moved.object_ids)}

    def exact(self) -> _Plan:
        among = "all" if self.condition is None else "matching"
        return _Plan(
            self._statement("exact", among), {"limit": self.limit + self.spare}, needs_custom_plan=True
        )

    def chosen(
        self, candidates: Numbers, *, considered: int, spare: int, is_filtered: bool, are_all: bool
    ) -> _Plan:
        """Return a plan that compares candidates.

        Args:
            considered: so many of the nearest are asked whether they match.
            is_filtered: whether that must be asked at all.
            are_all: whether nothing else can be among the nearest.
        """
        name = "chosen_by_average" if self.geometry.averages_draw else "chosen"
        given = {
            "candidates": pack_numbers(candidates),
            "considered": max(considered, len(candidates)) if are_all else considered,
            "limit": self.limit + spare,
            "are_all": are_all,
        }
        statement = self._statement(name, "all") if is_filtered else _unfiltered(self.collection, name)
        return _Plan(statement, given, needs_custom_plan=False)

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
    """What matches the filters asked last, and how far one had to look. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[int, str], tuple[int, Numbers]] = OrderedDict()
        self._levels: OrderedDict[tuple[int, str], int] = OrderedDict()

    def level(self, question: _Question) -> int:
        with self._lock:
            return self._levels.get(_key(question), 0)

    def raise_level(self, question: _Question) -> None:
        """Remember that what was tried first brought too little."""
        with self._lock:
            key = _key(question)
            self._levels[key] = min(self._levels.pop(key, 0) + 1, len(CONSIDERED))
            while len(self._levels) > REMEMBERED_FILTERS:
                self._levels.popitem(last=False)

    def get(self, connection: Connection, question: _Question, revision: int) -> Numbers:
        """Return the numbers of all objects that match at a revision, sorted."""
        key = _key(question)
        with self._lock:
            found = self._found.get(key)
        if found is not None and found[0] == revision:
            return found[1]
        matching = question.matching(connection)
        with self._lock:
            self._found.pop(key, None)
            self._found[key] = revision, matching
            while (
                len(self._found) > REMEMBERED_FILTERS
                or sum(len(numbers) for _, numbers in self._found.values()) > REMEMBERED_MATCHES
            ):
                self._found.popitem(last=False)
        return matching


def margin_for(recall_target: float) -> float:
    """Return a margin, in standard errors, that has kept a recall wherever tried (docs/recall.md).

    An object at the very edge is missed where its error and that of the edge together pass twice the margin;
    the factor is what remained of that on real vectors.
    """
    return 0.65 * statistics.NormalDist().inv_cdf((1 + min(recall_target, 0.999999)) / 2)


def _key(question: _Question) -> tuple[int, str]:
    return (
        question.collection.collection_id,
        "" if question.filter is None else question.filter.model_dump_json(),
    )


def _spares(most: int) -> Iterator[int]:
    """Yield how many neighbours more are asked for, one number after the other."""
    spare = min(most, SPARE)
    while spare < most:
        yield spare
        spare *= 8
    yield most


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
