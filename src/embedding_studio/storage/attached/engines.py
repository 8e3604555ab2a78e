"""What a store of another product is asked, as it is, and what those who ask it share."""

import heapq
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MAX_DIMENSIONS, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection
from embedding_studio.domain.storable import is_id
from embedding_studio.embeddings.preparation import SMALLEST_SQUARE, squared_lengths
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError, InvalidSettingError, plural
from embedding_studio.storage.ports import Vectors

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""As servers write it: another spelling is the id of nothing."""
NUMBER = re.compile(r"0|-?[1-9]\d{0,19}")
"""A whole number as an id is written."""
PUT_BACK = "; put it back, or drop the collection and attach again"
"""What to do where what a collection is attached to is gone."""
MANY_ROWS = 10_000
"""To compare more at each search takes long."""


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


class NotInstalledError(AttachedUnavailableError):
    """The package of an engine is not there."""

    def __init__(self, store: str, extra: str) -> None:
        super().__init__(f"{store} needs a package that is missing; pip install 'embedding-studio[{extra}]'")


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


def attached_to(collection: Collection) -> str:
    return f"the collection {collection.name!r} is attached to {collection.attached}"


def usable(collection: Collection, found: Sequence[CatalogueObject]) -> list[CatalogueObject]:
    """Return those of one part each that can be objects: their ids can be stored, their vectors compared."""
    D = collection.index.dimensions
    fitting = [each for each in found if is_id(each.object_id) and each.parts.shape == (1, D)]
    if not fitting:
        return []
    squares = squared_lengths(np.concatenate([each.parts for each in fitting]))
    least = SMALLEST_SQUARE if collection.index.metric_type is MetricType.COSINE else 0.0
    is_good = np.isfinite(squares) & (squares >= least)
    return [each for each, good in zip(fitting, is_good.tolist(), strict=True) if good]


def attachment_of(collection: Collection) -> Attachment:
    """Return what an engine has of a collection that is attached to it."""
    assert collection.attached is not None  # noqa: S101, others do not come here
    return collection.attached


def furthest(collection: Collection, query: Vectors, objects: Sequence[CatalogueObject]) -> float:
    """Return how far from one vector, [D], the furthest of what an engine found is; of nothing, -inf."""
    parts = [each.parts for each in usable(collection, objects)]
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


def advice_on_index(metric: MetricType, rows: float, remedy: str) -> str:
    """Return the advice to an operator where many objects have no index."""
    compared = f"each search compares all {rows:,.0f} {plural(round(rows), 'row')}"
    return f"no index finds what is near by {metric.value}, so {compared}; {remedy}"


def how_searched(attached: Attachment, index: str | None) -> str:
    """Return what an operator is shown of a table that has this index of its vectors, or none."""
    found_by = "all compared by each search" if index is None else f"found by its index {index}"
    return f"{attached}, only read, by {attached.object_id} and {attached.vector}, {found_by}"


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


def portions(collection: Collection, points: Sequence[Point], numbers: int) -> Iterator[Sequence[Point]]:
    """Yield points, so many at once as have no more numbers in their vectors, but one at the least."""
    size = max(1, numbers // (collection.index.dimensions or 1))
    return (points[start : start + size] for start in range(0, len(points), size))


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
    return AttachedUnavailableError(f"{attached_to(collection)}, which is no longer what it was: {error}")
