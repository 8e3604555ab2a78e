"""Objects and their originals in PostgreSQL."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import accumulate, groupby, islice
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    JSON,
    TEXT_HASH_LENGTH,
    CatalogueObject,
    Collection,
    Neighbour,
    payload_as_json,
)
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import InvalidVectorsError
from embedding_studio.storage.ports import CodesInfo, Vectors, check_margin
from embedding_studio.storage.postgres.codes import (
    Advance,
    Untidiness,
    advance,
    codes_of,
    record,
    tidy,
    untidiness,
)
from embedding_studio.storage.postgres.collections import lock_originals, share_state
from embedding_studio.storage.postgres.database import Connection, Database, only_row, text_array
from embedding_studio.storage.postgres.filters import condition
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.nearest import NearestSearch
from embedding_studio.storage.postgres.outbox import note
from embedding_studio.storage.postgres.replica import Searches
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements
from embedding_studio.storage.postgres.vectors import pack_numbers, unpack

Numbers = NDArray[np.int64]
Coded = tuple[Numbers, NDArray[np.void]]
"""Codes, and for each the number of its object."""
Outdate = Callable[[Connection, Collection, Sequence[str]], None]

BATCH = 1000
"""Objects a statement."""
FEW = 20
"""Objects that are encoded sooner than a thread for it is there."""
AVERAGE = -1
"""The part_no of an average."""
SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"
"""With what a binary COPY begins and ends."""


class PostgresObjects:
    """The base index.

    Args:
        outdate: called in the transaction in which originals of objects come, change or go, with their ids.
        searches: where it is searched; absent: on the database.
    """

    def __init__(
        self,
        database: Database,
        search: NearestSearch,
        outdate: Outdate,
        searches: Searches | None = None,
    ) -> None:
        self.database = database
        self._searches = searches or Searches(database)
        self._search = search
        self._outdate = outdate

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        given = {item.object_id: item for item in checked_objects(collection.index, objects)}
        payloads = {object_id: payload_as_json(object_id, item.payload) for object_id, item in given.items()}
        ordered = sorted(given)

        def store(object_ids: Sequence[str], connection: Connection) -> None:
            lock_originals(connection, collection)
            batch = [given[object_id] for object_id in object_ids]
            changed = _upsert(connection, collection, batch, payloads)
            if changed:
                self._outdate(connection, collection, changed)

        for start in range(0, len(ordered), BATCH):
            self.database.write(partial(store, ordered[start : start + BATCH]))
        self.tidy(collection)

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        object_ids = sorted(payloads)
        given = {
            "object_ids": text_array(object_ids),
            "payloads": text_array([payload_as_json(key, payloads[key]) for key in object_ids]),
            "text_hash_length": TEXT_HASH_LENGTH,
        }

        def work(connection: Connection) -> set[str]:
            advance(connection, collection, 0)  # what matches a filter is remembered by the revision
            updated = connection.execute(_of(collection, "update_payloads"), given).fetchall()
            note(connection, collection, np.array([no for _, no in updated], dtype=np.int64))
            return {object_id for object_id, _ in updated}

        return sorted(payloads.keys() - self.database.write(work))

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            lock_originals(connection, collection)
            given = {"object_ids": list(object_ids), "is_average": Geometry(collection.index).has_averages}
            compared = connection.execute(_of(collection, "compared_parts"), given).fetchall()
            if compared:
                object_nos = np.array([object_no for (object_no,) in compared])
                change = advance(connection, collection, 0)
                record(connection, change, *_coded(change, []), object_nos)
                note(connection, collection, *np.unique(object_nos, return_counts=True))
            deleted = connection.execute(_of(collection, "delete"), given).rowcount
            self._outdate(connection, collection, object_ids)
            return deleted

        deleted = self.database.write(work)
        self.tidy(collection)
        return deleted

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        given = {"object_ids": list(object_ids)}

        def work(connection: Connection) -> list[CatalogueObject]:
            with connection.pipeline():
                objects = connection.execute(_of(collection, "get"), given, binary=True)
                parts = connection.execute(_of(collection, "existing_parts"), given, binary=True)
            found = {object_id: (payload, content_hash) for object_id, payload, content_hash in objects}
            vectors = grouped_parts(parts.fetchall())
            return [
                CatalogueObject(object_id, vectors[object_id], *found[object_id])
                for object_id in object_ids
                if object_id in vectors
            ]

        return self.database.read(work)

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        given = {"object_ids": list(set(object_ids))}

        def work(connection: Connection) -> dict[str, Vectors]:
            with connection.transaction(), connection.pipeline():
                share_state(connection, collection)
                parts = connection.execute(_of(collection, "existing_parts"), given, binary=True)
            return grouped_parts(parts.fetchall())

        return self.database.read(work)

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        matches, values = (sql.SQL("true"), {}) if filter is None else condition(filter)
        statement = statements("objects.sql")["scroll"].format(
            schema=schema_of(collection.collection_id), condition=matches
        )
        given = values | {"after": after, "limit": limit}
        # Never prepared: which index is used depends on the values.
        rows = self.database.read(
            lambda connection: connection.execute(statement, given, prepare=False, binary=True).fetchall()
        )
        parts = grouped_parts([(object_id, part) for object_id, part, *_ in rows])
        told = {
            object_id: (payload, content_hash)
            for object_id, _, content_hash, payload in rows
            if payload is not None
        }
        return [CatalogueObject(object_id, parts[object_id], *told[object_id]) for object_id in told]

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        given = {"object_ids": list(object_ids)}
        return self.database.read(
            lambda connection: dict(connection.execute(_of(collection, "content_hashes"), given).fetchall())
        )

    def count(self, collection: Collection) -> int:
        number: int
        (number,) = self.database.read(
            lambda connection: only_row(connection.execute(_of(collection, "count")))
        )
        return number

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
        neighbours = self._searches.read(
            lambda connection: self._search(
                connection, collection, queries, limit, payload_filter=filter, margin=margin
            ),
            collection,
            is_measured=margin is not None,
        )
        return [
            neighbour
            for neighbour in neighbours
            if max_distance is None or neighbour.distance <= max_distance
        ]

    def codes(self, collection: Collection) -> CodesInfo:
        def work(connection: Connection) -> CodesInfo:
            state = self._search.state(connection, collection)
            if state.view is None:
                return CodesInfo(parts=0, bytes_in_memory=0, margin=state.margin)
            return CodesInfo(len(state.view), state.view.nbytes, state.margin or self._search.margin)

        return self.database.read(work, begins=True)

    def tidy(self, collection: Collection) -> None:
        """Write the codes of a collection that is large and has none, and order their log where it is long.

        In a transaction of its own, for it may take seconds: no learning waits for it. Where it does
        not come to it, all are compared, or a longer log is read, until the next change of originals.
        """

        def work(connection: Connection) -> None:
            lock_originals(connection, collection)
            tidy(connection, collection)

        if collection.filled is not None:  # nothing is found by codes; but planned by what is there
            has_none = in_schema("codes.sql", "has_no_statistics", collection.collection_id)
            if self.database.read(lambda connection: connection.execute(has_none).fetchall()):
                analyze = in_schema("codes.sql", "analyze", collection.collection_id)
                self.database.write(lambda connection: connection.execute(analyze), is_upkeep=True)
            return
        if self.database.read(lambda connection: untidiness(connection, collection)) is not Untidiness.NONE:
            self.database.write(work, is_upkeep=True)

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        check_margin(margin)

        def work(connection: Connection) -> None:
            lock_originals(connection, collection)
            connection.execute(
                in_schema("codes.sql", "set_margin", collection.collection_id), {"margin": margin}
            )

        self.database.write(work)


def checked_objects(index: SearchIndexInfo, objects: Sequence[CatalogueObject]) -> list[CatalogueObject]:
    """Return the objects with their parts as arrays, all looked at in one go where they are arrays already.

    Raises:
        InvalidVectorsError: as ``check_vectors`` says; the message names the object.
    """
    shaped = [
        item
        for item in objects
        if isinstance(item.parts, np.ndarray)
        and item.parts.dtype == np.float32
        and item.parts.ndim == 2
        and item.parts.shape[0] > 0
        and item.parts.shape[1] == index.dimensions
    ]
    if shaped and len(shaped) == len(objects):
        with suppress(InvalidVectorsError):  # below the object is named
            check_vectors(index, np.concatenate([item.parts for item in shaped]), "the objects")
            return shaped
    return [
        replace(item, parts=check_vectors(index, item.parts, f"object {item.object_id!r}"))
        for item in objects
    ]


def grouped_parts(rows: Sequence[tuple[str, bytes]]) -> dict[str, Vectors]:
    """Return object_id -> [P, D] of rows (object_id, part), those of one object in a row and in order."""
    parts = unpack([part for _, part in rows])
    counts = [(object_id, len(list(group))) for object_id, group in groupby(rows, itemgetter(0))]
    ends = accumulate(count for _, count in counts)
    return {object_id: parts[end - count : end] for (object_id, count), end in zip(counts, ends, strict=True)}


def _of(collection: Collection, name: str) -> bytes:
    return in_schema("objects.sql", name, collection.collection_id)


def _upsert(
    connection: Connection,
    collection: Collection,
    objects: Sequence[CatalogueObject],
    payloads: Mapping[str, str],
) -> list[str]:
    """Store a batch, parts that are the same stay; return the ids of those whose parts are not."""
    geometry = Geometry(collection.index)
    ids = {"object_ids": text_array([item.object_id for item in objects])}
    with connection.pipeline():
        nos_found = connection.execute(_of(collection, "existing_nos"), ids)
        parts_found = connection.execute(_of(collection, "existing_parts"), ids, binary=True)
    existing_nos: dict[str, int] = dict(nos_found.fetchall())
    existing = grouped_parts(parts_found.fetchall()) if existing_nos else {}
    changed = [
        item
        for item in objects
        if item.object_id not in existing or not np.array_equal(item.parts, existing[item.object_id])
    ]
    replaced = [item.object_id for item in changed if item.object_id in existing]
    counts = [1 if geometry.has_averages else len(existing[object_id]) for object_id in replaced]
    removed = np.repeat(np.array([existing_nos[object_id] for object_id in replaced], dtype=np.int64), counts)
    change = advance(connection, collection, len(changed))
    nos = existing_nos | {item.object_id: change.first_no + k for k, item in enumerate(changed)}
    given = ids | {
        "payloads": text_array([payloads[item.object_id] for item in objects]),
        "content_hashes": [item.content_hash for item in objects],
        "object_nos": pack_numbers(np.array([nos[item.object_id] for item in objects], dtype=np.int64)),
    }
    with ThreadPoolExecutor(1) as pool:
        coded: Callable[[], Coded] = partial(_coded, change, changed)
        if len(changed) > FEW:  # while the server stores them
            coded = pool.submit(coded).result
        connection.execute(_of(collection, "upsert_objects"), given)
        note(connection, collection, np.array(list(nos.values()), dtype=np.int64))
        note(connection, collection, *np.unique(removed, return_counts=True))
        if replaced:
            connection.execute(_of(collection, "delete_parts"), {"object_ids": text_array(replaced)})
        if changed:
            with connection.cursor() as cursor, cursor.copy(_of(collection, "copy_parts")) as copy:
                copy.write(b"".join(_part_rows(collection, changed, change.first_no)))
        record(connection, change, *coded(), removed)
    return [item.object_id for item in changed]


def _coded(change: Advance, objects: Sequence[CatalogueObject]) -> Coded:
    geometry = Geometry(change.collection.index)
    compared = [geometry.average(item.parts) if geometry.has_averages else item.parts for item in objects]
    nos = np.arange(change.first_no, change.first_no + len(objects))
    vectors = np.concatenate(compared) if compared else np.empty((0, 0), dtype=np.float32)
    return np.repeat(nos, [len(parts) for parts in compared]), codes_of(change, vectors)


def _part_rows(
    collection: Collection, objects: Sequence[CatalogueObject], first_no: int
) -> Iterator[bytes | memoryview]:
    """Yield a binary COPY of all parts, piece by piece."""
    geometry = Geometry(collection.index)
    kept = [_kept_parts(geometry, item) for item in objects]
    counts = [len(parts) for parts in kept]
    rows = np.zeros(sum(counts), dtype=_rest_of_row(kept[0].shape[1]))
    rows["length_1"], rows["length_2"], rows["length_3"], rows["length_4"] = 4, 1, 4 + kept[0][0].nbytes, 8
    rows["part_no"] = [
        no for item in objects for no in (*range(len(item.parts)), *geometry.has_averages * [AVERAGE])
    ]
    rows["is_average"] = rows["part_no"] == AVERAGE
    rows["dimensions"] = kept[0].shape[1]
    rows["values"] = np.concatenate(kept)
    rows["object_no"] = np.repeat(np.arange(first_no, first_no + len(objects)), counts)
    data, size = rows.view(np.uint8).data, rows.itemsize
    starts = iter(range(0, len(data), size))
    yield SIGNATURE
    for item, count in zip(objects, counts, strict=True):
        object_id = item.object_id.encode()
        head = _ROW_HEAD.pack(5, len(object_id)) + object_id
        for start in islice(starts, count):
            yield head
            yield data[start : start + size]
    yield END


def _kept_parts(geometry: Geometry, item: CatalogueObject) -> Vectors:
    """Return what is stored of an object, [P, D] or, with the average of all last, [P + 1, D]."""
    return np.concatenate([item.parts, geometry.average(item.parts)]) if geometry.has_averages else item.parts


_ROW_HEAD = struct.Struct(">hi")


@lru_cache(maxsize=16)
def _rest_of_row(D: int) -> np.dtype[np.void]:
    """Return what a row of parts is in a binary COPY, behind the id of its object."""
    return np.dtype(
        [
            ("length_1", ">i4"), ("part_no", ">i4"), ("length_2", ">i4"), ("is_average", "?"),
            ("length_3", ">i4"), ("dimensions", ">u2"), ("unused", ">u2"), ("values", ">f4", (D,)),
            ("length_4", ">i4"), ("object_no", ">i8"),
        ]
    )  # fmt: skip
