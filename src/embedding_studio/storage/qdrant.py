"""A collection of Qdrant that was there before, as the objects of one of ours: read over HTTP, never written.

What Qdrant means by a filter is not what is meant here: a condition on a field also finds lists that hold the
value, texts are split into words as its index has it, and whole numbers are not numbers with a fraction. So
it is asked for more than what matches, and what it brings is looked at.

Source: https://api.qdrant.tech, of version 1.19.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any
from urllib.parse import quote, unquote

import httpx
import numpy as np

from embedding_studio.domain.filters import PayloadFilter, ways
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import Attachment, CatalogueObject, Collection
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError, shown
from embedding_studio.storage.attached.engines import (
    NUMBER,
    UUID,
    Candidates,
    Examined,
    Point,
    RefusedError,
    attachment_of,
    check_dimensions,
    furthest,
    no_longer,
    numbered,
    page_of,
    portions,
    repeated,
    split_address,
)
from embedding_studio.storage.conditions import Bound, translated
from embedding_studio.storage.ports import STATEMENT_SECONDS, Vectors

KIND = "qdrant"
SCHEMES = ("http://", "https://")
REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY)
WRITTEN_AT_ONCE = 250_000
"""Numbers of vectors a request, some 5 MB: a server takes 32."""
READ_AT_ONCE = 1_000
"""Points a request, where all are read."""
LARGEST_NUMBER = 2**64
"""Ids of points are below it, and at least 0."""
METRICS = {"Cosine": MetricType.COSINE, "Dot": MetricType.DOT, "Euclid": MetricType.EUCLID}
PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")

JSON = dict[str, Any]


def place_and_key(address: str, setting: str = "ATTACHED_STORES") -> tuple[str, str, str]:
    """Return server, path and key of an address.

    >>> place_and_key("https://:s%2Fecret@qdrant.example:6333/one")
    ('https://qdrant.example:6333', '/one', 's/ecret')

    Raises:
        InvalidSettingError: it is none; the message says nothing of it, for any part may be the key.
    """
    parts, place = split_address(address, setting, "Qdrant: write https://:KEY@HOST:6333")
    return place, parts.path, unquote(parts.password or "")


class Qdrant:
    """The engine of all collections of one server.

    Args:
        address: ``http://host:6333``; a key stands as the password, ``https://:KEY@host:6333``.
        name: by which messages name the store.
        statement_seconds: a request may take so long; 0: as long as it likes.
    """

    def __init__(
        self, address: str, *, name: str | None = None, statement_seconds: float = STATEMENT_SECONDS
    ) -> None:
        self._name = name
        self._place, path, key = place_and_key(address)
        self._client = httpx.Client(
            base_url=f"{self._place}{path}",
            headers={"api-key": key} if key else {},
            timeout=statement_seconds or None,
        )

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        attached = attachment_of(collection)
        if attached.object_id:
            return [
                found
                for point in self._points(attached, _one_of(attached.object_id, object_ids))
                if (found := _object(attached, point)) is not None
            ]
        ids = [point_id for each in object_ids if (point_id := _point_id(each)) is not None]
        if not ids:
            return []
        body = {"ids": ids, "with_payload": True, "with_vector": _with_vector(attached)}
        points = self._ask("POST", f"{_path(attached)}/points", body)
        return [found for point in points if (found := _object(attached, point)) is not None]

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None,
        limit: int,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        """Return as ``Engine.scroll``; each page reads the ids of all, for Qdrant has another order."""
        attached = attachment_of(collection)

        def ids() -> Iterator[str]:
            for point in self._points(attached, _condition(filter), with_vector=False):
                object_id = _id_of(attached, point)
                if object_id is not None and (filter is None or filter.matches(point.get("payload") or {})):
                    yield object_id

        return page_of(self, collection, ids, after, limit)

    def count(self, collection: Collection) -> int:
        path = f"{_path(attachment_of(collection))}/points/count"
        return int(self._ask("POST", path, {"exact": True}, itemgetter("count")))

    def near(
        self,
        collection: Collection,
        query: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
        is_exact: bool,
    ) -> Candidates:
        attached = attachment_of(collection)
        is_ours = collection.filled is not None
        body: JSON = {
            "query": query.astype(np.float64).tolist(),
            "limit": limit,
            "with_payload": not is_ours,
            "with_vector": not is_ours and _with_vector(attached),
            "params": {"exact": True} if is_exact else {"hnsw_ef": limit},
        }
        if attached.vector:
            body["using"] = attached.vector
        if (condition := _condition(filter)) is not None:
            body["filter"] = condition
        points = self._ask("POST", f"{_path(attached)}/points/query", body, _found_points)
        if len(points) < limit and not is_exact:  # a graph may give up before it has found all that match
            return self.near(collection, query, limit, filter=filter, is_exact=True)
        if is_ours:
            bound = _distance(collection.index.metric_type, points[-1]["score"]) if points else math.inf
            found_there = numbered(each["id"] for each in points)
            return Candidates(found_there, math.inf if len(points) < limit else bound)
        objects = [found for point in points if (found := _object(attached, point)) is not None]
        if len(points) < limit:
            return Candidates(objects, math.inf)
        return Candidates(objects, furthest(collection, query, objects))

    def examined(self, collection: Collection) -> Examined:
        attached = attachment_of(collection)
        try:
            index = self._index_of(attached, None)
        except InvalidInputError as error:
            raise no_longer(collection, error) from error
        advice = []
        if index != collection.index.model_copy(
            update={"metric_aggregation_type": index.metric_aggregation_type}
        ):
            advice.append(
                f"it has {index.dimensions} dimensions compared by {index.metric_type.value} by now; drop "
                "the collection and attach again"
            )
        by = attached.object_id or "the ids of its points"
        told = f"{attached}, only read, by {by}, found by its own index"
        return Examined(told, tuple(advice), is_exact=False)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        wanted = replace(wanted, kind=KIND)
        index = self._index_of(wanted, metric)
        self._check_ids(wanted)
        return wanted, index

    def _index_of(self, wanted: Attachment, metric: MetricType | None) -> SearchIndexInfo:
        """Return how the vectors of a collection are compared.

        Raises:
            InvalidInputError: it cannot be attached; the message says what to do.
        """
        if wanted.payload or wanted.document is not None:
            raise InvalidInputError(
                "the whole payload of a point is the payload of an object; name no part of it"
            )
        try:
            info = self._ask("GET", _path(wanted), None)
        except _NotFoundError:
            there = ", ".join(
                sorted(each["name"] for each in self._ask("GET", "/collections", None)["collections"])
            )
            raise InvalidInputError(
                f"{self._named()} has no collection {wanted.source!r}; it has {there or 'none'}"
            ) from None
        vectors = info["config"]["params"].get("vectors") or {}
        named = {"": vectors} if "size" in vectors else vectors
        if wanted.vector not in named:
            raise InvalidInputError(
                f"the points of {wanted.source!r} have no vector {wanted.vector!r}; name one of "
                f"{', '.join(map(repr, named)) or 'none'}"
            )
        given = named[wanted.vector]
        own = METRICS.get(given["distance"])
        if own is None or given.get("multivector_config") is not None:
            what = "several vectors a point" if own else f"the distance {given['distance']}"
            raise InvalidInputError(
                f"{wanted.source!r} has {what}, and can be attached with one vector a point, compared by "
                f"{', '.join(METRICS)}"
            )
        if metric not in (None, own):
            raise InvalidInputError(f"{wanted.source!r} is compared by {own.value}, and not by {metric}")
        check_dimensions(repr(wanted.source), given["size"])
        return SearchIndexInfo(dimensions=given["size"], metric_type=own)

    def _check_ids(self, attached: Attachment) -> None:
        """Return if each point has an id of its own; reads all of them.

        Raises:
            InvalidInputError: one comes twice, or there are points and none has one.
        """
        if not attached.object_id:
            return
        points = self._points(attached, None, with_vector=False, with_payload=[attached.object_id])
        ids = [_id_of(attached, point) for point in points]
        if (twice := repeated(each for each in ids if each is not None)) is not None:
            raise InvalidInputError(
                f"{attached.object_id!r} is {shown(twice)} in several points of {attached.source!r}; "
                "name a field that tells each from all others, or none, for the ids of the points"
            )
        if ids and not any(each is not None for each in ids):
            raise InvalidInputError(
                f"no point of {attached.source!r} has a text or a whole number as {attached.object_id!r} in "
                "its payload; name another field, or none, for the ids of the points"
            )

    def place(self, name: str) -> Attachment:
        return Attachment(KIND, name)

    def make(self, collection: Collection) -> bool:
        index = collection.index
        distance = next(name for name, metric in METRICS.items() if metric is index.metric_type)
        path = _path(attachment_of(collection))
        try:
            self._ask("GET", path, None)
        except _NotFoundError:
            self._ask("PUT", path, {"vectors": {"size": index.dimensions, "distance": distance}})
            return True
        return False

    def put(self, collection: Collection, points: Sequence[Point]) -> None:
        path = f"{_path(attachment_of(collection))}/points?wait=true"
        for some in portions(collection, points, WRITTEN_AT_ONCE):
            told = [{"id": p.number, "vector": p.vector.tolist(), "payload": p.payload} for p in some]
            self._ask("PUT", path, {"points": told})

    def remove(self, collection: Collection, numbers: Sequence[int]) -> None:
        path = f"{_path(attachment_of(collection))}/points/delete?wait=true"
        self._ask("POST", path, {"points": list(numbers)})

    def numbers(self, collection: Collection) -> Iterator[int]:
        points = self._points(attachment_of(collection), None, with_vector=False, with_payload=False)
        return (each["id"] for each in points if isinstance(each["id"], int))

    def drop(self, collection: Collection) -> None:
        self._ask("DELETE", _path(attachment_of(collection)), None)

    def close(self) -> None:
        self._client.close()

    def _points(
        self,
        attached: Attachment,
        condition: JSON | None,
        *,
        with_vector: bool = True,
        with_payload: bool | list[str] = True,
    ) -> Iterator[JSON]:
        body: JSON = {
            "limit": READ_AT_ONCE,
            "with_payload": with_payload,
            "with_vector": _with_vector(attached) if with_vector else False,
        }
        if condition is not None:
            body["filter"] = condition
        while True:
            points, following = self._ask("POST", f"{_path(attached)}/points/scroll", body, _page)
            yield from points
            if following is None:
                return
            body["offset"] = following

    def _ask(
        self, method: str, path: str, body: JSON | None, read: Callable[[Any], Any] = lambda result: result
    ) -> Any:
        """Return what ``read`` makes of a result; where it raises, that is no answer of Qdrant's."""
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.TimeoutException as error:
            raise AttachedUnavailableError(
                f"{self._named()} did not answer in time; is it up, and is STATEMENT_SECONDS enough?"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AttachedUnavailableError(
                f"{self._named()} cannot be reached: {error}; is it up?"
            ) from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise _NotFoundError(f"{self._named()} does not have {path}; put it back, or attach again")
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AttachedUnavailableError(
                f"{self._named()} wants another key; give it as in https://:KEY@HOST:6333"
            )
        try:
            answer.raise_for_status()
            return read(answer.json()["result"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            kind = RefusedError if answer.status_code in REFUSED else AttachedUnavailableError
            raise kind(
                f"{self._named()} answered {answer.status_code}, not as Qdrant would: {shown(answer.text)}"
            ) from error

    def _named(self) -> str:
        return f"the store {self._name!r} ({self._place})"


class _NotFoundError(AttachedUnavailableError):
    """There is no such collection."""


def _path(attached: Attachment) -> str:
    return f"/collections/{quote(attached.source, safe='')}"


def _distance(metric: MetricType, score: float) -> float:
    if metric is MetricType.EUCLID:
        return score
    return 1 - score if metric is MetricType.COSINE else -score


def _found_points(result: Any) -> list[Any]:
    """Return the points of a question's answer, each with its id and how near it is."""
    points = list(result["points"])
    for each in points:
        each["id"], float(each["score"])
    return points


def _page(result: Any) -> tuple[list[Any], Any]:
    """Return points, each with its id, and where the next page begins; None: there is none."""
    points = list(result["points"])
    for each in points:
        each["id"]
    return points, result.get("next_page_offset")


def _with_vector(attached: Attachment) -> bool | list[str]:
    return [attached.vector] if attached.vector else True


def _point_id(object_id: str) -> int | str | None:
    """Return the id of a point as Qdrant writes it; None: it is of no point."""
    if NUMBER.fullmatch(object_id) and 0 <= int(object_id) < LARGEST_NUMBER:
        return int(object_id)
    return object_id if UUID.fullmatch(object_id) else None


def _id_of(attached: Attachment, point: Mapping[str, Any]) -> str | None:
    if not attached.object_id:
        return str(point["id"])
    given = (point.get("payload") or {}).get(attached.object_id)
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) else None


def _object(attached: Attachment, point: Mapping[str, Any]) -> CatalogueObject | None:
    """Return what a point is; None: it has no vector of that name, or no id."""
    vector = point.get("vector")
    if isinstance(vector, Mapping):
        vector = vector.get(attached.vector)
    object_id = _id_of(attached, point)
    if object_id is None or not vector:
        return None
    payload = dict(point.get("payload") or {})
    return CatalogueObject(object_id, np.array([vector], dtype=np.float32), payload)


def _one_of(field: str, object_ids: Sequence[str]) -> JSON:
    key = _key([field])
    numbers = [int(each) for each in object_ids if NUMBER.fullmatch(each) and -(2**63) <= int(each) < 2**63]
    conditions: list[JSON] = [{"key": key, "match": {"any": list(object_ids)}}]
    if numbers:
        conditions.append({"key": key, "match": {"any": numbers}})
    return {"should": conditions}


def _condition(payload_filter: PayloadFilter | None) -> JSON | None:
    """Return a filter of Qdrant that finds all that is meant, and perhaps more; None: it would find all."""
    said = translated(payload_filter, _Conditions())
    return None if said is None else {"must": [said]}


class _Conditions:
    """The words of Qdrant, as ``Words``; a place is a key."""

    def places(self, field: str) -> list[str] | None:
        keys = [_key(steps) for steps in ways(field)]
        told = [key for key in keys if key is not None]
        return told if len(told) == len(keys) else None

    def is_one_of(self, place: str, values: Sequence[Any]) -> JSON | None:
        conditions = [
            {"key": place, "match": {"value": each}}
            if isinstance(each, str | bool)
            else self.is_within(place, each, each)
            for each in values
        ]
        told = [each for each in conditions if each is not None]
        return self.some(told) if len(told) == len(conditions) else None

    def has_any(self, place: str, values: Sequence[Any]) -> JSON | None:
        return self.is_one_of(place, values)  # of a list it is asked the same

    def is_within(self, place: str, low: Bound, high: Bound) -> JSON | None:
        """Return a range: a number of more than 53 bits is no other than its neighbour there."""
        if isinstance(low, str) or isinstance(high, str):
            return None
        given = {name: bound for name, bound in (("gte", low), ("lte", high)) if bound is not None}
        try:
            return {"key": place, "range": {name: float(bound) for name, bound in given.items()}}
        except OverflowError:
            return None

    def is_there(self, place: str) -> None:  # noqa: ARG002, it is not asked
        return None

    def every(self, conditions: list[JSON]) -> JSON:
        return {"must": conditions}

    def some(self, conditions: list[JSON]) -> JSON:
        return {"should": conditions}


def _key(steps: Sequence[str]) -> str | None:
    """Return a path in a payload as Qdrant writes it; None: it cannot be written."""
    if any('"' in step or "\\" in step or not step for step in steps):
        return None
    return ".".join(step if PLAIN_KEY.fullmatch(step) else f'"{step}"' for step in steps)
