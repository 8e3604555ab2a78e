"""Objects and their originals in PostgreSQL."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from operator import itemgetter

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import (
    JSON,
    TEXT_HASH_LENGTH,
    CatalogueObject,
    Collection,
    Neighbour,
)
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.pg_collections import lock_collection, names_of
from embedding_studio.storage.pg_database import Connection, Database, only_row
from embedding_studio.storage.pg_filters import condition
from embedding_studio.storage.pg_geometry import Geometry, index_name
from embedding_studio.storage.pg_nearest import NearestSearch
from embedding_studio.storage.pg_orders import place_for_users
from embedding_studio.storage.pg_vectors import pack, unpack
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.sql import in_schema, schema_of, statements

BATCH = 500
"""Objects a statement."""
LARGE = 3000
"""From so many parts on a collection has a vector index: below, comparing all is as fast, and exact."""
AVERAGE = -1
"""The part_no of an average."""


class PostgresObjects:
    def __init__(self, database: Database, search: NearestSearch) -> None:
        self._database = database
        self._search = search

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        given = {
            item.object_id: replace(
                item, parts=check_vectors(collection.index, item.parts, f"object {item.object_id!r}")
            )
            for item in objects
        }

        def work(connection: Connection) -> None:
            lock_collection(connection, collection)
            ordered = sorted(given.items())
            for start in range(0, len(ordered), BATCH):
                _upsert(connection, collection, dict(ordered[start : start + BATCH]))
            _ensure_index(connection, collection)

        self._database.write(work)

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        object_ids = sorted(payloads)
        given = {
            "object_ids": object_ids,
            "payloads": [Jsonb(payloads[object_id]) for object_id in object_ids],
            "text_hash_length": TEXT_HASH_LENGTH,
        }

        def work(connection: Connection) -> set[str]:
            updated = connection.execute(_of(collection, "update_payloads"), given)
            return {object_id for (object_id,) in updated}

        return sorted(payloads.keys() - self._database.write(work))

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            lock_collection(connection, collection)
            deleted = connection.execute(_of(collection, "delete"), {"object_ids": list(object_ids)}).rowcount
            _fold_anew(connection, collection, object_ids)
            return deleted

        return self._database.write(work)

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

        return self._database.read(work)

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
        rows = self._database.read(
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
        return self._database.read(
            lambda connection: dict(connection.execute(_of(collection, "content_hashes"), given).fetchall())
        )

    def count(self, collection: Collection) -> int:
        number: int
        (number,) = self._database.read(
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
    ) -> list[Neighbour]:
        neighbours, _ = self._database.read(
            lambda connection: self._search(connection, collection, queries, limit, payload_filter=filter)
        )
        return [
            neighbour
            for neighbour in neighbours
            if max_distance is None or neighbour.distance <= max_distance
        ]


def grouped_parts(rows: Sequence[tuple[str, bytes]]) -> dict[str, Vectors]:
    """Return object_id -> [P, D] of rows (object_id, part), those of one object in a row and in order."""
    parts = unpack([part for _, part in rows])
    counts = [(object_id, len(list(group))) for object_id, group in groupby(rows, itemgetter(0))]
    ends = accumulate(count for _, count in counts)
    return {object_id: parts[end - count : end] for (object_id, count), end in zip(counts, ends, strict=True)}


def _of(collection: Collection, name: str) -> bytes:
    return in_schema("objects.sql", name, collection.collection_id)


def _upsert(connection: Connection, collection: Collection, objects: Mapping[str, CatalogueObject]) -> None:
    """Store a batch; parts that are the same stay, and so does what users moved from them."""
    geometry = Geometry(collection.index)
    ids = {"object_ids": list(objects)}
    existing = grouped_parts(
        connection.execute(_of(collection, "existing_parts"), ids, binary=True).fetchall()
    )
    changed = [
        item
        for item in objects.values()
        if item.object_id not in existing or not np.array_equal(item.parts, existing[item.object_id])
    ]
    replaced = [item.object_id for item in changed if item.object_id in existing]
    rows = [(item.object_id, part_no) for item in changed for part_no in range(len(item.parts))]
    parts = [item.parts for item in changed]
    if geometry.has_averages:
        rows += [(item.object_id, AVERAGE) for item in changed]
        parts += [geometry.average(item.parts) for item in changed]
    connection.execute(
        _of(collection, "upsert_objects"),
        ids
        | {
            "payloads": [Jsonb(item.payload) for item in objects.values()],
            "content_hashes": [item.content_hash for item in objects.values()],
        },
    )
    if replaced:
        connection.execute(_of(collection, "delete_parts"), {"object_ids": replaced})
    if rows:
        given = {
            "object_ids": [object_id for object_id, _ in rows],
            "part_nos": [part_no for _, part_no in rows],
            "embeddings": pack(np.concatenate(parts)),
        }
        connection.execute(_of(collection, "insert_parts"), given)
        _fold_anew(connection, collection, [item.object_id for item in changed])


def _fold_anew(connection: Connection, collection: Collection, object_ids: Sequence[str]) -> None:
    """Drop copies of objects whose originals came, changed or went; have users who met them folded anew."""
    names = names_of(connection, collection)
    given = {"object_ids": list(object_ids), "collections": names}
    connection.execute(_of(collection, "drop_copies"), given)
    users = [user_id for (user_id,) in connection.execute(_of(collection, "users_of"), given)]
    if users:
        place_for_users(connection, users, names)


def _ensure_index(connection: Connection, collection: Collection) -> None:
    """Build the vector index once it pays; to load first and index after is many times faster."""
    given = {"index": index_name(collection.collection_id), "large": LARGE}
    (is_needed,) = only_row(connection.execute(_of(collection, "needs_index"), given))
    if is_needed:
        geometry = Geometry(collection.index)
        statement = statements("objects.sql")["create_index"].format(
            **geometry.pieces(),
            schema=schema_of(collection.collection_id),
            is_average=sql.Literal(geometry.has_averages),
        )
        connection.execute(statement)
        connection.execute(_of(collection, "analyze"))
