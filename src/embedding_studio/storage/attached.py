"""Collections whose objects another system keeps: it brings candidates, the rest is ours.

An ``Engine`` is a store as it is, a table or an index of another product. ``AttachedObjects`` makes a base
index of one that is only ever read: what a filter means, distances and pages are ours, so they are the same
over every engine. ``ByCollection`` sends each collection to where its objects are.
"""

import heapq
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MAX_DIMENSIONS, MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection, Neighbour
from embedding_studio.domain.storable import is_id
from embedding_studio.embeddings.preparation import SMALLEST_SQUARE, squared_lengths
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import (
    AttachedUnavailableError,
    CollectionNotFoundError,
    ConflictError,
    InvalidInputError,
    InvalidSettingError,
)
from embedding_studio.storage.elsewhere import digest_of
from embedding_studio.storage.ports import BaseIndex, CodesInfo, Storage, Vectors

FIRST = 200
"""Candidates that an engine is asked for first. So many searches are answered by the first, that their lists
begin alike: an approximate index finds other neighbours where it is asked for more."""
GROWTH = 4
ROUNDING = 1e-6
"""So much, relatively, an engine's distance in float32 may differ from ours."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""As servers write it: another spelling is the id of nothing."""
NUMBER = re.compile(r"0|-?[1-9]\d{0,19}")
"""A whole number as an id is written."""
MANY_ROWS = 10_000
"""To compare more at each search takes long."""
RECONCILED_AT_ONCE = 1000
"""Objects whose originals are compared at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What an engine found near a query.

    Attributes:
        objects: of one part each.
        bound: what is not among them is at least so far, under the metric; infinite: nothing is left that
            could match.
    """

    objects: list[CatalogueObject]
    bound: float


@dataclass(frozen=True, slots=True)
class Examined:
    """What an operator sees of an attached collection.

    Attributes:
        told: how it is searched.
        advice: what is wrong, a sentence each.
        is_exact: whether all are compared.
    """

    told: str
    advice: tuple[str, ...]
    is_exact: bool


class Engine(Protocol):
    """A store that was there before; what fails in it is an ``AttachedUnavailableError``."""

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        """Return those that exist, in any order."""
        ...

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None,
        limit: int,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        """Return as ``BaseIndex.scroll``."""
        ...

    def count(self, collection: Collection) -> int: ...

    def near(
        self,
        collection: Collection,
        query: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
        is_exact: bool,
    ) -> Candidates:
        """Return about the ``limit`` nearest to one vector, [D], by the collection's metric.

        Args:
            filter: may be understood more widely than it is meant, never more narrowly.
            is_exact: compare all, whatever index there is.
        """
        ...

    def examined(self, collection: Collection) -> Examined:
        """Look at what the collection is attached to, as it is now."""
        ...

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        """Return what to attach to, with all that was left open, and how its vectors are compared.

        Raises:
            InvalidInputError: it cannot be attached; the message says what to do.
        """
        ...

    def close(self) -> None: ...


class RefusedError(AttachedUnavailableError):
    """An engine answers, and does not take what it was given."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A vector, [D], as an engine has it that we fill."""

    number: int
    vector: Vectors
    payload: JSON


class FilledEngine(Engine, Protocol):
    """One that we fill: of what it finds near it tells the numbers of points alone, as ids."""

    def place(self, name: str) -> Attachment:
        """Return where a collection of this name is filled."""
        ...

    def make(self, collection: Collection) -> bool:
        """Make it, empty; False: there is one of its name."""
        ...

    def put(self, collection: Collection, points: Sequence[Point]) -> None:
        """Write points, in place of those of their numbers; whoever asks afterwards finds them.

        Raises:
            RefusedError: not all are taken, and some may be written.
        """
        ...

    def remove(self, collection: Collection, numbers: Sequence[int]) -> None:
        """Remove the points of these numbers, as far as there are any."""
        ...

    def numbers(self, collection: Collection) -> Iterable[int]:
        """Return the numbers of all points."""
        ...

    def drop(self, collection: Collection) -> None:
        """Remove it with all that is in it."""
        ...


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the engine of a collection lacks.

    Attributes:
        oldest_seconds: since when; 0 where it has all.
        refused: so many objects it refused.
        error: why, of one of these.
        away: why the engine did not answer this process last; None: it did, or was not asked.
    """

    collection: str
    objects: int
    oldest_seconds: float
    refused: int
    error: str | None
    away: str | None = None


@dataclass(frozen=True, slots=True)
class Mended:
    """What was found where an engine was compared with what is here.

    Attributes:
        missing, stale: objects that it did not have, or not so.
        leftover: points of what is no longer there.
    """

    missing: int
    stale: int
    leftover: int


class Filling(Protocol):
    """What is told to engines that we fill, and asked of them; ``postgres.outbox`` is it."""

    def make(self, collection: Collection, store: str) -> Attachment: ...

    def examined(self, collection: Collection) -> Examined: ...

    def backlog(self) -> list[Backlog]: ...

    def deliver(self, collection: Collection, *, changes: float = math.inf) -> None: ...

    def deliver_all(self) -> None: ...

    def reconcile(self, collection: Collection, *, takes_over: bool = False) -> Mended: ...

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        payload_filter: PayloadFilter | None,
        max_distance: float | None = None,
    ) -> list[Neighbour]: ...


class AttachedObjects:
    """The base index that an engine is when its candidates are verified. It refuses to write."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def engine(self) -> Engine:
        return self._engine

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        there = self._engine.get(collection, list(dict.fromkeys(object_ids)))
        found = {each.object_id: each for each in _usable(collection, there)}
        return [found[object_id] for object_id in object_ids if object_id in found]

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        return {each.object_id: each.parts for each in self.get(collection, list(object_ids))}

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        found: list[CatalogueObject] = []
        while len(found) < limit:
            page = self._engine.scroll(collection, after=after, limit=limit, filter=filter)
            found += [each for each in _usable(collection, page) if _matches(filter, each)]
            if len(page) < limit:
                break
            after = page[-1].object_id
        return found[:limit]

    def content_hashes(
        self,
        collection: Collection,  # noqa: ARG002, there are none
        object_ids: Sequence[str],  # noqa: ARG002
    ) -> dict[str, str]:
        return {}

    def count(self, collection: Collection) -> int:
        return self._engine.count(collection)

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        max_distance: float | None = None,
        margin: float | None = None,
    ) -> list[Neighbour]:
        """Return as ``BaseIndex.nearest``, of the engine's candidates; of all where a margin is infinite.

        The engine is asked for more until nothing beyond its candidates can belong to the list.
        """
        wanted = FIRST
        while wanted < limit:
            wanted *= GROWTH
        while True:
            found, bound = self._found(collection, queries, wanted, filter, is_exact=margin == math.inf)
            kept = [each for each in found if max_distance is None or each.distance <= max_distance]
            last = kept[limit - 1].distance if 0 < limit <= len(kept) else math.inf
            reach = last if max_distance is None else min(last, max_distance)
            if limit < 1 or bound == math.inf or reach < bound - ROUNDING * max(1.0, abs(bound)):
                return kept[: max(limit, 0)]
            wanted *= GROWTH

    def _found(
        self,
        collection: Collection,
        queries: Vectors,
        wanted: int,
        payload_filter: PayloadFilter | None,
        *,
        is_exact: bool,
    ) -> tuple[list[Neighbour], float]:
        """Return the candidates by (distance, object_id), and how far all others are at least."""
        rows, bounded = _asked(collection, queries)
        answers = [
            self._engine.near(collection, row, wanted, filter=payload_filter, is_exact=is_exact)
            for row in rows
        ]
        there = {
            each.object_id: each
            for answer in answers
            for each in _usable(collection, answer.objects)
            if _matches(payload_filter, each)
        }
        # All that matches was found where one of the rows has nothing left: they are asked the same filter.
        is_all = any(answer.bound == math.inf for answer in answers)
        bound = math.inf if is_all else bounded(min(answer.bound for answer in answers))
        if not there:
            return [], bound
        objects = list(there.values())
        told = distances(
            collection.index, similarities_of(collection.index, queries, [each.parts for each in objects])
        ).tolist()
        neighbours = (
            Neighbour(each.object_id, distance, each.payload)
            for each, distance in zip(objects, told, strict=True)
        )
        return sorted(neighbours, key=lambda each: (each.distance, each.object_id)), bound

    def codes(self, collection: Collection) -> CodesInfo:  # noqa: ARG002, there are none
        return CodesInfo(parts=0, bytes_in_memory=0, margin=None)

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:  # noqa: ARG002
        refuse_writing(collection)

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:  # noqa: ARG002
        refuse_writing(collection)

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:  # noqa: ARG002
        refuse_writing(collection)

    def set_margin(self, collection: Collection, margin: float | None) -> None:  # noqa: ARG002
        raise ConflictError(f"{_attached(collection)}: its own index finds what is near, and has no margin")

    def examined(self, collection: Collection) -> Examined:
        return self._engine.examined(collection)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        return self._engine.found(wanted, metric)

    def close(self) -> None:
        self._engine.close()


class Noticing(Protocol):
    """What is kept of the originals that something was learnt from: ``Personal`` has it."""

    def notice(self, collection: Collection, digests: Mapping[str, str | None]) -> list[str]: ...


class ByCollection:
    """A base index in which each collection's objects are where it says.

    What is read of an attached store to learn from is noticed: a copy of a user is of the original that was.

    Args:
        own: of those that are attached to nothing.
        opened: makes the base index of a store; asked once for each address and kind.
        filling: of those collections that another engine finds.
    """

    def __init__(
        self,
        own: BaseIndex,
        noticing: Noticing,
        opened: Callable[[Attachment], AttachedObjects],
        filling: Filling,
    ) -> None:
        self.own = own
        self.filling = filling
        self._noticing = noticing
        self._opened = opened

    def of(self, collection: Collection) -> BaseIndex:
        """Return the base index that has the objects of a collection."""
        return self.own if collection.attached is None else self._opened(collection.attached)

    def examined(self, collection: Collection) -> Examined | None:
        """Return what an operator sees of what another system finds; None: of what is found here."""
        if collection.filled is not None:
            return self.filling.examined(collection)
        return None if collection.attached is None else self._opened(collection.attached).examined(collection)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        """Return what to attach a collection to, as ``Engine.found``."""
        return self._opened(wanted).found(wanted, metric)

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        try:
            self.of(collection).upsert(collection, objects)
        finally:  # of what is stored by thousands, the first may be
            self._deliver(collection, 2 * len(objects))

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        absent = self.of(collection).update_payloads(collection, payloads)
        self._deliver(collection, len(payloads))
        return absent

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        deleted = self.of(collection).delete(collection, object_ids)
        self._deliver(collection, len(object_ids))
        return deleted

    def _deliver(self, collection: Collection, changes: int) -> None:
        if collection.filled is not None:
            self.filling.deliver(collection, changes=changes)

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        return self.of(collection).get(collection, object_ids)

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        asked = set(object_ids)
        found = self.of(collection).originals(collection, asked)
        if collection.attached is not None and asked:
            self._noticing.notice(collection, _digests(asked, found))
        return found

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        return self.of(collection).scroll(collection, after=after, limit=limit, filter=filter)

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        return self.of(collection).content_hashes(collection, object_ids)

    def count(self, collection: Collection) -> int:
        return self.of(collection).count(collection)

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        max_distance: float | None = None,
        margin: float | None = None,
    ) -> list[Neighbour]:
        if collection.filled is not None and margin != math.inf:
            return self.filling.nearest(
                collection, queries, limit, payload_filter=filter, max_distance=max_distance
            )
        return self.of(collection).nearest(
            collection, queries, limit, filter=filter, max_distance=max_distance, margin=margin
        )

    def codes(self, collection: Collection) -> CodesInfo:
        return self.of(collection).codes(collection)

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        self.of(collection).set_margin(collection, margin)


def create_collection(
    storage: Storage,
    name: str,
    index: SearchIndexInfo,
    *,
    embedder: str | None = None,
    gate_threshold: float | None = None,
    fill: str | None = None,
) -> Collection:
    """Return as ``Collections.create``.

    Args:
        fill: the name of a store that is to find its objects, in which it is made, too.

    Raises:
        InvalidInputError: the store cannot be filled, or not with such a collection.
        ConflictError: the name is taken, here or there, by something else.
        AttachedUnavailableError: the store does not answer.
    """
    filled = None
    if fill is not None:
        if not isinstance(storage.objects, ByCollection):
            raise ConflictError("this storage has a base index of its own; fill one beside PostgreSQL's")
        try:
            there = storage.collections.get(name).filled
        except CollectionNotFoundError:
            filled = storage.objects.filling.make(Collection(0, name, index), fill)
        else:  # which is as it is asked for, or refused
            filled = there if there and there.store == fill else Attachment("", name, fill)
    return storage.collections.create(
        name, index, embedder=embedder, gate_threshold=gate_threshold, filled=filled
    )


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many objects that something was learnt from have another original by now, or none."""

    changed: int
    gone: int


def reconcile(
    storage: Storage, collection: Collection, *, is_over: Callable[[], bool] = lambda: False
) -> Reconciled:
    """Compare the originals that something was learnt from with what they are in the attached store now.

    Copies of those that changed or went are dropped, and the users who met them are marked.

    Args:
        is_over: asked between batches.
    """
    changed = gone = 0
    after: str | None = None
    while not is_over() and (
        known := storage.personal.noticed(collection, after=after, limit=RECONCILED_AT_ONCE)
    ):
        after = max(known)
        found = {each.object_id: each.parts for each in storage.objects.get(collection, list(known))}
        news = storage.personal.notice(collection, _digests(known, found))
        changed += len([each for each in news if each in found])
        gone += len([each for each in news if each not in found])
    return Reconciled(changed, gone)


def backlog_of(storage: Storage) -> list[Backlog]:
    """Return what has not been sent to each engine that is filled."""
    return storage.objects.filling.backlog() if isinstance(storage.objects, ByCollection) else []


def count_if_known(storage: Storage, collection: Collection) -> int | None:
    """Return how many objects a collection has; None: another system keeps them, and does not answer."""
    try:
        return storage.objects.count(collection)
    except AttachedUnavailableError:
        return None


def current_copies(
    storage: Storage, collection: Collection, user_id: str, object_ids: Sequence[str]
) -> dict[str, Vectors]:
    """Return the user's own vectors of those objects that are what they were when these were learnt."""
    if collection.attached is None:
        return storage.personal.copies(collection, user_id, object_ids)
    # In this order: copies of what is noticed later are either of that, or gone.
    made_of = storage.personal.noticed(collection, among=object_ids)
    copies = storage.personal.copies(collection, user_id, object_ids)
    there = {each.object_id: digest_of(each.parts) for each in storage.objects.get(collection, list(copies))}
    return {each: parts for each, parts in copies.items() if there.get(each, "") == made_of.get(each)}


def _digests(asked: Iterable[str], found: Mapping[str, Vectors]) -> dict[str, str | None]:
    return {each: digest_of(found[each]) if each in found else None for each in asked}


def _asked(collection: Collection, queries: Vectors) -> tuple[list[Vectors], Callable[[float], float]]:
    """Return the vectors that an engine is asked for, and what turns its bound of them into one of the query.

    The nearest by MIN are among the nearest to one of the query's parts. By AVG of inner products they are
    the nearest to the mean of the parts (of their directions, for cosine); by AVG of Euclidean distances no
    object is nearer than it is to the mean.
    """
    index = collection.index
    if index.metric_aggregation_type is MetricAggregationType.MIN or len(queries) == 1:
        return list(queries), lambda bound: bound
    rows = queries.astype(np.float64)
    if index.metric_type is not MetricType.COSINE:
        return [rows.mean(axis=0).astype(np.float32)], lambda bound: bound
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:  # all are equally far: every one has to be looked at
        return [queries[0]], lambda _: -math.inf
    return [(mean / length).astype(np.float32)], lambda bound: 1 - length * (1 - bound)


def _usable(collection: Collection, found: Sequence[CatalogueObject]) -> list[CatalogueObject]:
    """Return those of one part each that can be objects: their ids can be stored, their vectors compared."""
    D = collection.index.dimensions
    fitting = [each for each in found if is_id(each.object_id) and each.parts.shape == (1, D)]
    if not fitting:
        return []
    squares = squared_lengths(np.concatenate([each.parts for each in fitting]))
    least = SMALLEST_SQUARE if collection.index.metric_type is MetricType.COSINE else 0.0
    is_good = np.isfinite(squares) & (squares >= least)
    return [each for each, good in zip(fitting, is_good.tolist(), strict=True) if good]


def _matches(payload_filter: PayloadFilter | None, found: CatalogueObject) -> bool:
    return payload_filter is None or payload_filter.matches(found.payload)


def _attached(collection: Collection) -> str:
    return f"the collection {collection.name!r} is attached to {collection.attached}"


def attachment_of(collection: Collection) -> Attachment:
    """Return what an engine has of a collection that is attached to it."""
    assert collection.attached is not None  # noqa: S101, others do not come here
    return collection.attached


def furthest(collection: Collection, query: Vectors, objects: Sequence[CatalogueObject]) -> float:
    """Return how far from one vector, [D], the furthest of what an engine found is; of nothing, -inf."""
    parts = [each.parts for each in _usable(collection, objects)]
    if not parts:
        return -math.inf
    return float(distances(collection.index, similarities_of(collection.index, query[None], parts)).max())


def numbered(points: Iterable[object]) -> list[CatalogueObject]:
    """Return what an engine found of what we filled, whose vectors and payloads are known here."""
    nothing = np.empty((0, 0), dtype=np.float32)
    return [CatalogueObject(str(each), nothing) for each in points]


def advice_on_dimensions(collection: Collection, dimensions: int) -> list[str]:
    """Return the advice to an operator where a store's vectors are of another size than they were."""
    if dimensions == collection.index.dimensions:
        return []
    told = f"its vectors have {dimensions} dimensions by now, and the collection has "
    return [f"{told}{collection.index.dimensions}: nothing is found; drop the collection and attach again"]


def check_dimensions(what: str, dimensions: int) -> None:
    """Return if vectors of this size can be learnt from.

    Raises:
        InvalidInputError: they cannot.
    """
    if dimensions > MAX_DIMENSIONS:
        raise InvalidInputError(
            f"{what} has {dimensions} dimensions; at most {MAX_DIMENSIONS:,} can be learnt from"
        )


def split_address(address: str, setting: str, write: str) -> tuple[SplitResult, str]:
    """Return the parts of an address with a host, and it without user, password and path.

    Args:
        write: of what it is the address, and how that is written.

    Raises:
        InvalidSettingError: it is none; the message says nothing of it, for any part may be the password.
    """
    try:
        parts = urlsplit(address.strip())
        port = parts.port
        is_one = bool(parts.hostname) and "@" not in parts.path + parts.query + parts.fragment
        is_one &= unquote(f"{parts.username or ''}{parts.password or ''}").isascii()
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidSettingError(
            f"{setting} is no address of a server of {write}, and in user and password %2F for /, %40 for @, "
            "%3A for :, %3F for ?, %23 for # and %25 for %"
        )
    return parts, f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")


def page_of(
    engine: Engine, collection: Collection, ids: Callable[[], Iterable[str]], after: str | None, limit: int
) -> list[CatalogueObject]:
    """Return the objects of a page of the ids of all, in the order of ``BaseIndex.scroll``.

    Args:
        ids: reads those of all; asked again where some of a page are of nothing, or went meanwhile.
    """
    found: list[CatalogueObject] = []
    while len(found) < limit:
        page = heapq.nsmallest(
            limit, (each for each in ids() if after is None or each > after), key=str.encode
        )
        there = {each.object_id: each for each in engine.get(collection, page)}
        found += [there[object_id] for object_id in dict.fromkeys(page) if object_id in there]
        if len(page) < limit:
            break
        after = page[-1]
    return found[:limit]


def columns_of(attached: Attachment) -> list[str]:
    """Return the columns that make an object, that of the vectors last."""
    payload = attached.payload if attached.document is None else (attached.document,)
    return list(dict.fromkeys([attached.object_id, *payload, attached.vector]))


def repeated(ids: Iterable[str]) -> str | None:
    """Return an id that comes twice, if there is one."""
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            return each
        seen.add(each)
    return None


def no_longer(collection: Collection, error: InvalidInputError) -> AttachedUnavailableError:
    """Return what is said where a store could not be attached as it is now."""
    return AttachedUnavailableError(f"{_attached(collection)}, which is no longer what it was: {error}")


def refuse_writing(collection: Collection) -> NoReturn:
    """Say that another system keeps the objects.

    Raises:
        ConflictError: always.
    """
    raise ConflictError(
        f"{_attached(collection)}, which is only read; write there, and the next search finds it"
    )
