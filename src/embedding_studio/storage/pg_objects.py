"""Objects and their originals in PostgreSQL."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import CatalogueObject, Collection, Neighbour
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.pg_collections import lock_collection, names_of, schema_of
from embedding_studio.storage.pg_database import Connection, Database
from embedding_studio.storage.pg_geometry import Geometry, index_name
from embedding_studio.storage.pg_nearest import NearestSearch, stacked
from embedding_studio.storage.pg_orders import place_for_users
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.sql import statements

BATCH = 500
"""Objects a statement."""
LARGE = 3000
"""From so many parts on a collection has a vector index: below, comparing all is as fast, and exact."""

_SQL = statements("objects.sql")


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

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            lock_collection(connection, collection)
            deleted = connection.execute(_of(collection, "delete"), {"object_ids": list(object_ids)}).rowcount
            _drop_copies(connection, collection, object_ids)
            return deleted

        return self._database.write(work)

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        given = {"object_ids": list(object_ids)}

        def work(connection: Connection) -> list[CatalogueObject]:
            with connection.pipeline():
                objects = connection.execute(_of(collection, "get"), given, binary=True)
                parts = connection.execute(_of(collection, "existing_parts"), given, binary=True)
            found = {object_id: (payload, content_hash) for object_id, payload, content_hash in objects}
            vectors = grouped_parts(parts)
            return [
                CatalogueObject(object_id, vectors[object_id], *found[object_id])
                for object_id in object_ids
                if object_id in vectors
            ]

        return self._database.read(work)

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        given = {"object_ids": list(object_ids)}
        return self._database.read(
            lambda connection: dict(connection.execute(_of(collection, "content_hashes"), given).fetchall())
        )

    def count(self, collection: Collection) -> int:
        row = self._database.read(lambda connection: connection.execute(_of(collection, "count")).fetchone())
        return 0 if row is None else int(row[0])

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
            lambda connection: self._search(connection, collection, queries, limit, filter)
        )
        return [
            neighbour for neighbour in neighbours if max_distance is None or neighbour.distance <= max_distance
        ]


def grouped_parts(rows: Iterable[tuple[Any, ...]]) -> dict[str, Vectors]:
    """Return object_id -> [P, D] of rows (object_id, part), those of one object in a row and in order."""
    return {
        object_id: stacked([part for _, part in parts]) for object_id, parts in groupby(rows, itemgetter(0))
    }


def _of(collection: Collection, name: str) -> sql.Composed:
    return _SQL[name].format(schema=schema_of(collection))


def _upsert(connection: Connection, collection: Collection, objects: Mapping[str, CatalogueObject]) -> None:
    """Store a batch; parts that are the same stay, and so does what users moved from them."""
    geometry = Geometry(collection.index)
    ids = {"object_ids": list(objects)}
    existing = grouped_parts(connection.execute(_of(collection, "existing_parts"), ids, binary=True))
    changed = [
        item
        for item in objects.values()
        if item.object_id not in existing or not np.array_equal(item.parts, existing[item.object_id])
    ]
    replaced = [item.object_id for item in changed if item.object_id in existing]
    rows: list[tuple[str, int, Vector]] = []
    for item in changed:
        rows += [(item.object_id, part_no, Vector(part)) for part_no, part in enumerate(item.parts)]
        if geometry.has_averages:
            rows.append((item.object_id, -1, Vector(geometry.average(item.parts))))
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
        _drop_copies(connection, collection, replaced)
    if rows:
        columns = zip(("object_ids", "part_nos", "embeddings"), map(list, zip(*rows, strict=True)), strict=True)
        connection.execute(_of(collection, "insert_parts"), dict(columns))


def _drop_copies(connection: Connection, collection: Collection, object_ids: Sequence[str]) -> None:
    """Drop users' copies of objects whose originals are gone, and have these users folded anew."""
    given = {"object_ids": list(object_ids)}
    users = [user_id for (user_id,) in connection.execute(_of(collection, "drop_copies"), given)]
    if users:
        place_for_users(connection, users, names_of(connection, collection))


def _ensure_index(connection: Connection, collection: Collection) -> None:
    """Build the vector index once it pays; to load first and index after is many times faster."""
    given = {"index": index_name(collection), "large": LARGE}
    row = connection.execute(_of(collection, "needs_index"), given).fetchone()
    if row is not None and row[0]:
        geometry = Geometry(collection.index)
        pieces = geometry.pieces(collection)
        connection.execute(
            _SQL["create_index"].format(**pieces, is_average=sql.Literal(geometry.has_averages))
        )
