"""Collections whose objects are kept here, and found by another engine that we fill.

Originals and payloads stay in PostgreSQL, as of any collection. The engine has a copy of what is compared:
it brings candidates, and these are compared here, so filters, distances and what users moved are as
elsewhere. What changes is noted in the ``outbox`` by the transaction that changes it, and goes from there
once the engine has it: sent by whoever wrote it, or by a worker. Until then each search compares it besides.

A vector is a point there, numbered by the number of its object, which changes whenever vectors do, and its
place in it: so a point is written or removed, and but for its payload never another than it was.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import Attachment, CatalogueObject, Collection, Neighbour
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import (
    AttachedUnavailableError,
    CollectionNotFoundError,
    ConflictError,
    InvalidInputError,
    StorageError,
)
from embedding_studio.storage.attached.engines import Engine, Examined, FilledEngine, Point, RefusedError
from embedding_studio.storage.attached.filling import Backlog, Mended
from embedding_studio.storage.attached.objects import GROWTH, AttachedObjects, asked_first, is_whole
from embedding_studio.storage.elsewhere import the_nearest
from embedding_studio.storage.ports import NOTHING_NAMED, Vectors
from embedding_studio.storage.postgres.collections import list_collections
from embedding_studio.storage.postgres.database import Connection, Database, only_row
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.nearest import NearestSearch
from embedding_studio.storage.postgres.plans import Moved
from embedding_studio.storage.postgres.replica import Searches
from embedding_studio.storage.postgres.schema import OUTBOX_LOCK
from embedding_studio.storage.postgres.sql import in_schema, statements
from embedding_studio.storage.postgres.users import TakenForGranted
from embedding_studio.storage.postgres.vectors import pack_numbers, unpack, unpack_numbers

Numbers = NDArray[np.int64]

PART_BITS = 20
"""Of the number of a point, the lowest: which vector of its object it is."""
AT_ONCE = 1000
"""Changes a transaction."""
MOST_ASKED = 10_000
"""Where more candidates would be needed, all that match are compared here."""
ATTEMPTS = 3
"""So often it is looked again where originals change while an engine is asked."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 30.0
"""After so long an engine that failed is asked again."""
FIRST_REFUSED_SECONDS, LAST_REFUSED_SECONDS = 10.0, 3600.0
"""After so long an object that an engine refused is sent again."""
OBJECT_ID = "_object_id"
"""The field of a payload in which an engine has the id, for others who read there."""
NEAR_ENOUGH = 1e-5
"""So much a vector may differ from what was sent, relative to its length."""

_SQL = statements("outbox.sql")
_log = logging.getLogger(__name__)


def note(
    connection: Connection, collection: Collection, object_nos: Numbers, parts: Numbers | None = None
) -> None:
    """Note that objects came, changed or went, in the transaction in which they do.

    Args:
        object_nos: [N].
        parts: [N], how many vectors each had, of those that went; None: they are there.
    """
    if collection.filled is None or not len(object_nos):
        return
    given = {
        "collection_id": collection.collection_id,
        "object_nos": pack_numbers(object_nos),
        "parts": pack_numbers(np.zeros(len(object_nos), dtype=np.int64) if parts is None else parts),
    }
    connection.execute(_SQL["note"], given)


@dataclass(slots=True)
class _Failed:
    """How often in a row an engine did not answer, until when it is not asked, and why it failed last."""

    times: int = 0
    until: float = 0.0
    why: str = ""


class Outbox:
    """What is told to the engines that we fill, and asked of them.

    Args:
        opened: makes the base index of a store; asked once for each address and kind.
    """

    def __init__(
        self,
        database: Database,
        search: NearestSearch,
        searches: Searches,
        opened: Callable[[Attachment], AttachedObjects],
    ) -> None:
        self._database = database
        self._search = search
        self._searches = searches
        self._opened = opened
        self._lock = threading.Lock()
        self._failed: dict[int, _Failed] = {}
        self._owned_as: tuple[str, str] | None = None

    def make(self, collection: Collection, store: str) -> Attachment:
        """Return where a collection is to be filled, under its name: made there.

        Raises:
            InvalidInputError: the store cannot be filled.
            ConflictError: there is something of this name; it is left alone.
            AttachedUnavailableError: it does not answer.
        """
        engine = self._fillable(Attachment("", collection.name, store))
        filled = replace(engine.place(collection.name), store=store, owner=self._owner())
        view = _view(replace(collection, filled=filled))
        try:
            is_new = engine.make(view)
        except RefusedError as error:
            raise InvalidInputError(f"{filled} cannot be made there, is it the name? {error}") from error
        if not is_new:
            if advice := engine.examined(view).advice:
                raise ConflictError(f"{filled} is there already, and {advice[0]}")
            raise ConflictError(
                f"{filled} is there already: attach to it, choose another name, or remove it there first"
            )
        return filled

    def drop(self, collection: Collection) -> None:
        """Remove what was filled; where that fails it stays there, and is reported."""
        if collection.filled is None:
            return
        try:
            self._engine(collection).drop(_view(collection))
        except (AttachedUnavailableError, InvalidInputError) as error:
            _log.warning("%s is left there, for somebody to remove: %s", collection.filled, error)

    def examined(self, collection: Collection) -> Examined:
        examined = self._engine(collection).examined(_view(collection))
        return replace(examined, told=f"kept here, found by {collection.filled}")

    def backlog(self) -> list[Backlog]:
        rows = self._database.read(lambda connection: connection.execute(_SQL["backlog"]).fetchall())
        failed = {number: each.why for number, each in dict(self._failed).items()}
        return [
            Backlog(name, objects, oldest_seconds, refused, error, failed.get(collection_id))
            for collection_id, name, objects, oldest_seconds, refused, error in rows
        ]

    def deliver(self, collection: Collection, *, changes: float = math.inf) -> None:
        """Send an engine what it lacks, unless it does not answer, or another process does so.

        Args:
            changes: so many are sent, and a few more: of whoever wrote these and waits.
        """
        if not self._may_ask(collection):
            return
        try:
            while changes > -AT_ONCE and self._delivered(collection):
                changes -= AT_ONCE
        except AttachedUnavailableError as error:
            self._count_failure(collection, error)
        except (StorageError, CollectionNotFoundError) as error:  # what was written is, and is sent later
            _log.warning("what changed in %r is not told to its engine yet: %s", collection.name, error)
        else:
            self._failed.pop(collection.collection_id, None)

    def deliver_all(self) -> None:
        """Send all engines what they lack."""
        rows = self._database.read(lambda connection: connection.execute(_SQL["due_collections"]).fetchall())
        if due := {collection_id for (collection_id,) in rows}:
            for each in self._database.read(list_collections):
                if each.collection_id in due and each.filled is not None:
                    self.deliver(each)

    def reconcile(self, collection: Collection, *, takes_over: bool = False) -> Mended:
        """Compare what an engine has with what is here, and mend it there.

        Args:
            takes_over: this database fills it from now on, whichever did before.

        Raises:
            AttachedUnavailableError: it does not answer, and what was found so far is noted, and sent later;
                or another database fills it.
        """
        if takes_over and collection.filled is not None:
            ours = replace(collection.filled, owner=self._owner())
            given = {"collection_id": collection.collection_id, "owner": ours.owner}
            self._database.write(lambda connection: connection.execute(_SQL["take_over"], given))
            collection = replace(collection, filled=ours)
        engine, view = self._engine(collection), _view(collection)
        engine.make(view)  # somebody may have dropped it
        self._failed.pop(collection.collection_id, None)
        self.deliver(collection)
        missing = stale = leftover = after = 0
        while len(numbers := self._numbers_after(collection, after)):
            after = int(numbers[-1])
            objects = self._objects(collection, numbers)
            wanted = [str(point.number) for points in objects.values() for point in points]
            there = {each.object_id: each for each in engine.get(view, wanted)}
            lacking, changed = [], []
            for no, points in objects.items():
                if any(str(each.number) not in there for each in points):
                    lacking.append(no)
                elif not all(_is(view, each, there[str(each.number)]) for each in points):
                    changed.append(no)
            missing, stale = missing + len(lacking), stale + len(changed)
            told_anew = _array(lacking + changed)
            self._database.write(partial(note, collection=collection, object_nos=told_anew))
        filled = sorted(engine.numbers(view))
        for start in range(0, len(filled), AT_ONCE):
            some = filled[start : start + AT_ONCE]
            objects = self._objects(collection, np.unique(_array(some) >> PART_BITS))
            known = {point.number for points in objects.values() for point in points}
            if left := [number for number in some if number not in known]:
                engine.remove(view, left)
                leftover += len(left)
        self.deliver(collection)
        return Mended(missing, stale, leftover)

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        payload_filter: PayloadFilter | None,
        max_distance: float | None = None,
        moved: Moved | None = None,
        taken: TakenForGranted | None = None,
        named: Mapping[str, float] = NOTHING_NAMED,
    ) -> list[Neighbour]:
        """Return the nearest of what the engine finds near, what it was not sent yet, and what a user moved.

        Where it does not answer, all are compared here. What changes in the very moment of a search may be
        missing from it, where originals change all the time.
        """
        queries = check_vectors(collection.index, queries, "the query")
        user_id = None if moved is None else moved.user_id
        wanted, attempts = asked_first(limit + len(named)), ATTEMPTS
        while wanted <= MOST_ASKED and self._may_ask(collection):
            # First, for what an engine is sent afterwards it may not have had when it was asked.
            revision, pending = self._database.read(lambda connection: _pending(connection, collection))
            if len(pending) > MOST_ASKED:
                break
            try:
                near, bound = self._near(collection, queries, wanted, payload_filter)
            except RefusedError as error:  # this question alone
                _log.warning("all are compared here, for %s was not asked: %s", collection.filled, error)
                break
            except AttachedUnavailableError as error:
                self._count_failure(collection, error)
                break
            known = np.union1d(near, pending)
            if bound == math.inf and payload_filter is None and self._lacks(collection, known, revision):
                why = f"{collection.filled} has lost points; run embedding-studio reconcile {collection.name}"
                self._count_failure(collection, AttachedUnavailableError(why))
                break
            self._failed.pop(collection.collection_id, None)
            found, seen = self._searches.read(
                partial(
                    self._search.among,
                    collection=collection,
                    queries=queries,
                    limit=limit,
                    candidates=known,
                    payload_filter=payload_filter,
                    moved=moved,
                    taken=taken,
                    named=named,
                ),
                collection,
                user_id,
            )
            attempts -= 1
            if seen > revision and attempts:
                continue
            kept = _within(found, max_distance)
            others = [each for each in kept if each.object_id not in named]
            if is_whole(others, limit, bound=bound, max_distance=max_distance):
                return the_nearest(kept, limit, named)
            wanted *= GROWTH
        search = partial(
            self._search,
            collection=collection,
            queries=queries,
            limit=limit,
            payload_filter=payload_filter,
            moved=moved,
            margin=math.inf,
            taken=taken,
            named=named,
        )
        found = self._searches.read(search, collection, user_id)
        return _within(found, max_distance)

    def _near(
        self, collection: Collection, queries: Vectors, wanted: int, payload_filter: PayloadFilter | None
    ) -> tuple[Numbers, float]:
        """Return the objects that an engine finds near, and how far all others are at least."""
        geometry = Geometry(collection.index)
        engine, view = self._engine(collection), _view(collection)
        answers = [
            engine.near(view, row, wanted, filter=payload_filter, is_exact=False)
            for row in (geometry.average(queries) if geometry.has_averages else queries)
        ]
        is_all = any(answer.bound == math.inf for answer in answers)
        bound = math.inf if is_all else min(answer.bound for answer in answers) + geometry.offset
        ids = {each.object_id for answer in answers for each in answer.objects if each.object_id.isdigit()}
        return _array([int(each) >> PART_BITS for each in ids]), bound

    def _lacks(self, collection: Collection, known: Numbers, revision: int) -> bool:
        """Return whether there are objects beside those known, and were when these were looked up."""
        statement = in_schema("outbox.sql", "objects_beside", collection.collection_id)
        given = {"object_nos": pack_numbers(known)}
        lacks, at = self._database.read(lambda connection: only_row(connection.execute(statement, given)))
        return bool(lacks and at == revision)

    def _owner(self) -> str:
        """Return which database this is: a copy of it is another, a replica that takes its place is not."""
        server = self._database.server
        if self._owned_as is None or self._owned_as[0] != server:
            (owner,) = self._database.read(lambda connection: only_row(connection.execute(_SQL["owner"])))
            self._owned_as = server, owner
        return self._owned_as[1]

    def _delivered(self, collection: Collection) -> bool:
        """Send an engine the first of what it lacks; return whether there may be more."""
        engine, view = self._engine(collection), _view(collection)
        given = {"lock_class": OUTBOX_LOCK, "collection_id": collection.collection_id, "limit": AT_ONCE}
        with self._database.transaction() as connection:
            (is_ours,) = only_row(connection.execute(_SQL["try_lock"], given))
            rows = connection.execute(_SQL["due"], given).fetchall() if is_ours else []
            if not rows:
                return False
            objects = _objects(connection, collection, _array(sorted({no for _, no, _ in rows})))
            gone = [_number(no, n) for _, no, parts in rows if no not in objects for n in range(parts)]
            if gone:
                engine.remove(view, gone)
            refused = _put(engine, view, list(objects.values()))
            told = [change for change, no, _ in rows if no not in refused]
            connection.execute(_SQL["delivered"], {"changes": told})
            for no, why in refused.items():
                changes = [change for change, each, _ in rows if each == no]
                waits = {"first": FIRST_REFUSED_SECONDS, "longest": LAST_REFUSED_SECONDS}
                connection.execute(_SQL["refused"], {"changes": changes, "error": why, **waits})
        return True

    def _objects(self, collection: Collection, object_nos: Numbers) -> dict[int, list[Point]]:
        return self._database.read(partial(_objects, collection=collection, object_nos=object_nos))

    def _numbers_after(self, collection: Collection, after: int) -> Numbers:
        statement = in_schema("outbox.sql", "numbers_after", collection.collection_id)
        given = {"after": after, "limit": AT_ONCE}
        (packed,) = self._database.read(
            lambda connection: only_row(connection.execute(statement, given, binary=True))
        )
        return np.sort(unpack_numbers(packed))

    def _may_ask(self, collection: Collection) -> bool:
        """Return whether an engine answered last, or is to be asked again: by one of those who come."""
        with self._lock:
            failed = self._failed.get(collection.collection_id)
            if failed is None:
                return True
            now = time.monotonic()
            is_due = now >= failed.until
            if is_due:
                failed.until = now + LAST_RETRY_SECONDS
            return is_due

    def _count_failure(self, collection: Collection, error: AttachedUnavailableError) -> None:
        with self._lock:
            failed = self._failed.setdefault(collection.collection_id, _Failed())
            seconds = min(FIRST_RETRY_SECONDS * 2.0 ** min(failed.times, 30), LAST_RETRY_SECONDS)
            failed.times, failed.until, failed.why = failed.times + 1, time.monotonic() + seconds, str(error)
        _log.warning(
            "%s is not sent what changes, and all are compared here, for %.0f s: %s",
            collection.filled, seconds, error,
        )  # fmt: skip

    def _engine(self, collection: Collection) -> FilledEngine:
        assert collection.filled is not None  # noqa: S101, others do not come here
        if collection.filled.owner not in ("", self._owner()):
            raise AttachedUnavailableError(
                f"{collection.filled} is filled by another database, of which this one is a copy, or which "
                "was restored or upgraded; if this one is to fill it from now on, run embedding-studio "
                f"reconcile {collection.name} --take-over"
            )
        try:
            return self._fillable(collection.filled)
        except InvalidInputError as error:
            raise AttachedUnavailableError(str(error)) from error

    def _fillable(self, filled: Attachment) -> FilledEngine:
        engine: Engine = self._opened(filled).engine
        if not hasattr(engine, "put"):
            raise InvalidInputError(
                f"the store {filled.store!r} is a database, whose tables can be attached; fill another one"
            )
        return cast("FilledEngine", engine)


def _view(collection: Collection) -> Collection:
    """Return the collection as its engine has it: what is compared there, and how."""
    averages_decide = Geometry(collection.index).averages_decide
    index = collection.index
    if averages_decide and index.metric_type is MetricType.COSINE:  # averages of directions, of any length
        index = index.model_copy(update={"metric_type": MetricType.DOT})
    return replace(collection, index=index, attached=collection.filled)


def _pending(connection: Connection, collection: Collection) -> tuple[int, Numbers]:
    """Return the revision of the originals, and the objects of which an engine was not sent all."""
    statement = in_schema("outbox.sql", "pending", collection.collection_id)
    given = {"collection_id": collection.collection_id, "limit": MOST_ASKED + 1}
    revision, packed = only_row(connection.execute(statement, given, binary=True))
    return revision, unpack_numbers(packed)


def _objects(connection: Connection, collection: Collection, object_nos: Numbers) -> dict[int, list[Point]]:
    """Return the points of those objects that are there."""
    given = {
        "object_nos": pack_numbers(object_nos),
        "is_average": Geometry(collection.index).has_averages,
    }
    statement = in_schema("outbox.sql", "objects", collection.collection_id)
    rows = connection.execute(statement, given, binary=True).fetchall()
    vectors = unpack([row[2] for row in rows])
    objects: dict[int, list[Point]] = {}
    for no, group in groupby(zip(rows, vectors, strict=True), lambda each: int(each[0][0])):
        payload: dict[str, object] = {}
        for n, ((_, _, _, object_id, given_payload), vector) in enumerate(group):
            payload = payload if n else {OBJECT_ID: object_id} | given_payload
            objects.setdefault(no, []).append(Point(_number(no, n), vector, payload))
    return objects


def _put(engine: FilledEngine, view: Collection, objects: Sequence[Sequence[Point]]) -> dict[int, str]:
    """Write objects; return why, by their number, of those that the engine refused: each fails alone."""
    if not objects:
        return {}
    try:
        engine.put(view, [point for points in objects for point in points])
    except RefusedError as error:
        if len(objects) == 1:
            return {objects[0][0].number >> PART_BITS: str(error)}
        half = len(objects) // 2
        return _put(engine, view, objects[:half]) | _put(engine, view, objects[half:])
    return {}


def _is(view: Collection, point: Point, there: CatalogueObject) -> bool:
    """Return whether a point is what an engine has; under cosine it may keep the direction alone."""
    own, other = point.vector.astype(np.float64), there.parts[0].astype(np.float64)
    if view.index.metric_type is MetricType.COSINE:
        own, other = own / np.linalg.norm(own), other / max(float(np.linalg.norm(other)), 1e-30)
    length, apart = float(np.linalg.norm(own)), float(np.linalg.norm(own - other))
    return apart <= NEAR_ENOUGH * max(length, NEAR_ENOUGH) and there.payload == point.payload


def _within(found: list[Neighbour], max_distance: float | None) -> list[Neighbour]:
    return [each for each in found if max_distance is None or each.distance <= max_distance]


def _number(object_no: int, part: int) -> int:
    return object_no << PART_BITS | part


def _array(numbers: Sequence[int]) -> Numbers:
    return np.array(numbers, dtype=np.int64)
