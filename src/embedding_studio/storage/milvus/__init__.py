"""A collection of Milvus that was there before, as the objects of one of ours: read over gRPC, never written.

A filter becomes an expression that finds what is meant and perhaps more (``expressions``), and what it brings
is looked at. A search brings 16,384 at the most: beyond that, and where it brings fewer than it was asked
for, all that the expression finds are read and compared here.

Source: https://milvus.io/docs, of versions 2.3 and 2.6.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError, shown
from embedding_studio.storage.attached.engines import (
    PUT_BACK,
    Candidates,
    Examined,
    NotInstalledError,
    Point,
    RefusedError,
    advice_on_dimensions,
    attachment_of,
    check_dimensions,
    columns_of,
    furthest,
    how_searched,
    no_longer,
    numbered,
    page_of,
    portions,
    repeated,
    split_address,
)
from embedding_studio.storage.milvus.expressions import (
    DYNAMIC,
    WHOLE,
    condition_of,
    kind_of,
    quoted,
    whole_ids,
)
from embedding_studio.storage.ports import STATEMENT_SECONDS, Vectors

KIND = "milvus"
SCHEMES = ("milvus+http://", "milvus+https://")
MOST_CANDIDATES = 16_384
READ_AT_ONCE = 1_000
"""Entities a request, where all are read."""
WRITTEN_AT_ONCE = 1_000_000
"""Numbers of vectors a request, some 4 MB."""
GRAPH = {"M": 16, "efConstruction": 200}
"""Of the index of what we fill."""
MOST_BYTES = 2**25
"""Of the vectors of one answer: of more than 64 MB, with payloads, the server sends none."""
CONNECT_SECONDS = 10.0
METRICS = {"COSINE": MetricType.COSINE, "IP": MetricType.DOT, "L2": MetricType.EUCLID}


def place_of(address: str, setting: str = "ATTACHED_STORES") -> tuple[str, str, str]:
    """Return server, token and database of an address.

    >>> place_of("milvus+https://ann:s%2Fecret@milvus.example:19530/shop")
    ('https://milvus.example:19530', 'ann:s/ecret', 'shop')

    Raises:
        InvalidSettingError: it is none; the message says nothing of it, for any part may be the password.
    """
    parts, place = split_address(address, setting, "Milvus: write milvus+https://USER:PASSWORD@HOST:19530")
    token = ":".join(unquote(each) for each in (parts.username, parts.password) if each)
    return place.removeprefix("milvus+"), token, parts.path.strip("/")


class Milvus:
    """The engine of all collections of one database of a server.

    Args:
        address: ``milvus+http://host:19530``, with user and password, or a key as the password, and the name
            of a database as the path, where there are such.
        name: by which messages name the store.
        statement_seconds: a request may take so long; 0: as long as it likes.

    Raises:
        AttachedUnavailableError: pymilvus is not installed, or the server does not answer.
    """

    def __init__(
        self, address: str, *, name: str | None = None, statement_seconds: float = STATEMENT_SECONDS
    ) -> None:
        self._name = name
        self._place, token, database = place_of(address)
        self._seconds = statement_seconds or None
        try:
            import pymilvus
        except ImportError as error:
            raise NotInstalledError(self._named(), "milvus") from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it tells each error, with what was asked
        with self._asking():
            self._client = pymilvus.MilvusClient(
                self._place,
                token=token,
                db_name=database,
                timeout=min(CONNECT_SECONDS, self._seconds or CONNECT_SECONDS),
                dedicated=True,
            )

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        attached = attachment_of(collection)
        kind = kind_of(self._fields(attached).get(attached.object_id, {}))
        ids = [quoted(each) for each in object_ids] if kind == "VARCHAR" else whole_ids(object_ids)
        found: list[CatalogueObject] = []
        for start in range(0, len(ids), READ_AT_ONCE):
            some = ", ".join(ids[start : start + READ_AT_ONCE])
            with self._asking():
                rows = self._client.query(
                    attached.source,
                    filter=f"{attached.object_id} in [{some}]",
                    output_fields=_outputs(attached),
                    timeout=self._seconds,
                )
            found += _objects(attached, rows)
        return found

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None,
        limit: int,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        """Return as ``Engine.scroll``; each page reads the ids of all, for Milvus has another order."""
        return page_of(
            self, collection, partial(self._ids_of, attachment_of(collection), filter), after, limit
        )

    def count(self, collection: Collection) -> int:
        with self._asking():
            [counted] = self._client.query(
                attachment_of(collection).source,
                filter="",
                output_fields=["count(*)"],
                timeout=self._seconds,
            )
        return int(counted["count(*)"])

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
        if is_exact or limit > min(MOST_CANDIDATES, MOST_BYTES // query.nbytes):
            return self._all(attached, filter)
        condition = self._condition(attached, filter)
        with self._asking():
            [hits] = self._client.search(
                attached.source,
                data=[query.astype(np.float64).tolist()],
                anns_field=attached.vector,
                limit=limit,
                filter=condition or "",
                output_fields=[] if collection.filled else _outputs(attached),
                timeout=self._seconds,
            )
        if len(hits) < limit:  # an index may give up before it has found all that match
            return self._all(attached, filter)
        if collection.filled:
            bound = _distance(collection.index.metric_type, hits[-1]["distance"])
            return Candidates(numbered(hit["id"] for hit in hits), bound)
        objects = _objects(attached, (hit["entity"] for hit in hits))
        return Candidates(objects, furthest(collection, query, objects))

    def examined(self, collection: Collection) -> Examined:
        attached = attachment_of(collection)
        try:
            _, index, name = self._looked_at(attached, None)
        except InvalidInputError as error:
            raise no_longer(collection, error) from error
        advice = advice_on_dimensions(collection, index.dimensions or 0)
        if index.metric_type is not collection.index.metric_type:
            advice.append(
                f"its index compares by {index.metric_type.value} now; drop the collection and attach again"
            )
        return Examined(how_searched(attached, name), tuple(advice), is_exact=False)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        attached, index, _ = self._looked_at(replace(wanted, kind=KIND), metric)
        if (twice := repeated(self._ids_of(attached, None))) is not None:
            raise InvalidInputError(
                f"{attached.object_id!r} is {shown(twice)} in several entities of {attached.source!r}; name "
                "a field that tells each from all others, or none, for the primary key"
            )
        return attached, index

    def place(self, name: str) -> Attachment:
        return Attachment(KIND, name, object_id="id", vector="vector", document="payload")

    def make(self, collection: Collection) -> bool:
        from pymilvus import DataType, MilvusClient

        source, index = attachment_of(collection).source, collection.index
        metric = next(name for name, each in METRICS.items() if each is index.metric_type)
        with self._asking():
            if self._client.has_collection(source, timeout=self._seconds):
                return False
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.dimensions)
            schema.add_field("payload", DataType.JSON)
            indexes = MilvusClient.prepare_index_params()
            indexes.add_index("vector", index_type="HNSW", metric_type=metric, params=GRAPH)
            self._client.create_collection(
                source,
                schema=schema,
                index_params=indexes,
                consistency_level="Strong",  # what was written is seen by whoever asks next
                timeout=self._seconds,
            )
        return True

    def put(self, collection: Collection, points: Sequence[Point]) -> None:
        source = attachment_of(collection).source
        for some in portions(collection, points, WRITTEN_AT_ONCE):
            rows = [{"id": each.number, "vector": each.vector, "payload": each.payload} for each in some]
            with self._asking(is_given=True):
                self._client.upsert(source, rows, timeout=self._seconds)

    def remove(self, collection: Collection, numbers: Sequence[int]) -> None:
        with self._asking():
            self._client.delete(attachment_of(collection).source, ids=list(numbers), timeout=self._seconds)

    def numbers(self, collection: Collection) -> Iterator[int]:
        return map(int, self._ids_of(attachment_of(collection), None))

    def drop(self, collection: Collection) -> None:
        with self._asking():
            self._client.drop_collection(attachment_of(collection).source, timeout=self._seconds)

    def close(self) -> None:
        self._client.close()

    def _looked_at(
        self, wanted: Attachment, metric: MetricType | None
    ) -> tuple[Attachment, SearchIndexInfo, str]:
        """Return what to attach to, with all that was left open, how its vectors are compared, and by what.

        Raises:
            InvalidInputError: it cannot be attached; the message says what to do.
        """
        with self._asking():
            there = sorted(self._client.list_collections(timeout=self._seconds))
            is_there = self._client.has_collection(wanted.source, timeout=self._seconds)
        if not is_there:
            raise InvalidInputError(
                f"{self._named()} has no collection {wanted.source!r}; it has {', '.join(there) or 'none'}"
            )
        fields = self._fields(wanted)
        vectors = [name for name, each in fields.items() if kind_of(each) == "FLOAT_VECTOR"]
        if not wanted.vector and len(vectors) != 1:
            raise InvalidInputError(
                f"{wanted.source!r} has {len(vectors) or 'no'} fields of FLOAT_VECTOR; name one of "
                f"{', '.join(vectors) or 'another collection'}"
            )
        wanted = replace(
            wanted, object_id=wanted.object_id or _key(fields), vector=wanted.vector or vectors[0]
        )
        named = (wanted.object_id, wanted.vector, *filter(None, [wanted.document]))
        for name in (*named, *(() if DYNAMIC in fields else wanted.payload)):
            if name not in fields:
                raise InvalidInputError(
                    f"{wanted.source!r} has no field {name!r}; it has {', '.join(fields)}"
                )
        if (kind := kind_of(fields[wanted.object_id])) not in ("VARCHAR", *WHOLE):
            raise InvalidInputError(
                f"the ids of {wanted.source!r} are of the type {kind}, and can be VARCHAR or whole "
                "numbers; name another field, or none, for the primary key"
            )
        if (kind := kind_of(fields[wanted.vector])) != "FLOAT_VECTOR":
            raise InvalidInputError(
                f"the field {wanted.vector!r} of {wanted.source!r} is of the type {kind}, and vectors are "
                "FLOAT_VECTOR"
            )
        if wanted.document is not None and (kind := kind_of(fields[wanted.document])) != "JSON":
            raise InvalidInputError(
                f"the field {wanted.document!r} of {wanted.source!r} is of the type {kind}; the payload can "
                "be one field of JSON, or several of any type"
            )
        if not wanted.payload and wanted.document is None:
            others = (name for name in fields if name not in (wanted.object_id, wanted.vector))
            wanted = replace(
                wanted, payload=tuple(name for name in others if "VECTOR" not in kind_of(fields[name]))
            )
        dimensions = int(fields[wanted.vector]["params"]["dim"])
        check_dimensions(f"the field {wanted.vector!r} of {wanted.source!r}", dimensions)
        own, name = self._index_of(wanted)
        if metric not in (None, own):
            raise InvalidInputError(f"{wanted.source!r} is compared by {own.value}, and not by {metric}")
        return wanted, SearchIndexInfo(dimensions=dimensions, metric_type=own), name

    def _index_of(self, attached: Attachment) -> tuple[MetricType, str]:
        with self._asking():
            names = self._client.list_indexes(attached.source, attached.vector)
            told = [
                self._client.describe_index(attached.source, name, timeout=self._seconds) or {}
                for name in names
            ]
            state = self._client.get_load_state(attached.source, timeout=self._seconds)["state"]
        index = next((each for each in told if each.get("field_name") == attached.vector), None)
        if index is None or state.name != "Loaded":
            what, do = ("is not loaded", "load") if index else ("has no index", "index its vectors, load")
            raise InvalidInputError(
                f"{attached.source!r} {what}, so Milvus cannot search it; {do} the collection there"
            )
        metric = METRICS.get(str(index.get("metric_type")).upper())
        if metric is None:
            raise InvalidInputError(
                f"{attached.source!r} is compared by {index.get('metric_type')}, and can be attached where "
                f"it is by {', '.join(METRICS)}"
            )
        return metric, f"{index['index_name']} ({index['index_type']})"

    def _fields(self, attached: Attachment) -> dict[str, dict[str, Any]]:
        """Return the fields of a collection by name; those that its schema does not name are one of them."""
        with self._asking():
            told = self._client.describe_collection(attached.source, timeout=self._seconds)
        dynamic: dict[str, dict[str, Any]] = {DYNAMIC: {}} if told.get("enable_dynamic_field") else {}
        return {each["name"]: each for each in told["fields"] if each["name"] != DYNAMIC} | dynamic

    def _all(self, attached: Attachment, payload_filter: PayloadFilter | None) -> Candidates:
        """Return all that match, and perhaps more."""
        rows = self._rows(attached, payload_filter, _outputs(attached))
        if payload_filter is None:
            return Candidates(_objects(attached, rows), math.inf)
        objects = (each for row in rows for each in _objects(attached, [row]))
        return Candidates([each for each in objects if payload_filter.matches(each.payload)], math.inf)

    def _ids_of(self, attached: Attachment, payload_filter: PayloadFilter | None) -> Iterator[str]:
        outputs = [attached.object_id] if payload_filter is None else _outputs(attached)[:-1]
        for row in self._rows(attached, payload_filter, outputs):
            object_id = row.get(attached.object_id)
            if object_id is not None and (
                payload_filter is None or payload_filter.matches(_payload(attached, row))
            ):
                yield str(object_id)

    def _rows(
        self, attached: Attachment, payload_filter: PayloadFilter | None, outputs: list[str]
    ) -> Iterator[JSON]:
        fields = self._fields(attached)
        key = _key(fields)
        conditions = [each for each in [self._condition(attached, payload_filter)] if each is not None]
        after: list[str] = []
        while True:
            # Not pymilvus' iterator, which writes the last key into an expression as it stands.
            with self._asking():
                page = self._client.query(
                    attached.source,
                    filter=" and ".join([*after, *conditions]),
                    output_fields=[*outputs, key],
                    limit=READ_AT_ONCE,
                    timeout=self._seconds,
                    iterator="True",
                    reduce_stop_for_best="True",  # else a page is not of the smallest keys
                )
            yield from page
            if len(page) < READ_AT_ONCE:
                return
            last = page[-1][key]
            after = [f"{key} > {quoted(last) if isinstance(last, str) else last}"]

    def _condition(self, attached: Attachment, payload_filter: PayloadFilter | None) -> str | None:
        """Return an expression that finds all that is meant, and perhaps more; None: it would find all."""
        if payload_filter is None:
            return None
        return condition_of(attached, self._fields(attached), payload_filter)

    @contextmanager
    def _asking(self, *, is_given: bool = False) -> Iterator[None]:
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise AttachedUnavailableError(
                    f"{self._named()} cannot be read: {error.details()}"
                ) from error
            raise AttachedUnavailableError(
                f"{self._named()} did not answer in time; is it up, and is STATEMENT_SECONDS enough?"
            ) from error
        except MilvusException as error:
            said = error.message.partition("\n")[0].partition("expression")[0]  # what was asked follows
            remedy = ""
            if "not found" in said or "can't find" in said:
                remedy = PUT_BACK
            elif "not loaded" in said:
                remedy = "; load the collection there"
            kind = RefusedError if is_given and not remedy else AttachedUnavailableError
            raise kind(
                f"{self._named()} cannot be {'written' if is_given else 'read'}: {said}{remedy}"
            ) from error

    def _named(self) -> str:
        return f"the store {self._name!r} ({self._place})"


def _distance(metric: MetricType, score: float) -> float:
    if metric is MetricType.EUCLID:
        return math.sqrt(score)
    return 1 - score if metric is MetricType.COSINE else -score


def _key(fields: Mapping[str, Mapping[str, Any]]) -> str:
    return next(name for name, each in fields.items() if each.get("is_primary"))


def _outputs(attached: Attachment) -> list[str]:
    """Return what is asked of an entity, its vector last; a name that is no identifier is in no schema."""
    return list(
        dict.fromkeys(
            each if each.isidentifier() and each.isascii() else DYNAMIC for each in columns_of(attached)
        )
    )


def _objects(attached: Attachment, rows: Iterable[Mapping[str, Any]]) -> list[CatalogueObject]:
    """Return the entities that have an id and a vector."""
    return [
        CatalogueObject(
            str(row[attached.object_id]),
            np.array([row[attached.vector]], dtype=np.float32),
            _payload(attached, row),
        )
        for row in rows
        if row.get(attached.object_id) is not None and row.get(attached.vector) is not None
    ]


def _payload(attached: Attachment, row: Mapping[str, Any]) -> JSON:
    if attached.document is not None:
        given = row.get(attached.document)
        return given if isinstance(given, dict) else {}
    if DYNAMIC in attached.payload:
        return {
            name: value for name, value in row.items() if name not in (attached.object_id, attached.vector)
        }
    return {name: row[name] for name in attached.payload if name in row}
