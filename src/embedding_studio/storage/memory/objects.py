"""Objects and their originals in memory."""

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import (
    JSON,
    TEXT_HASH_LENGTH,
    CatalogueObject,
    Collection,
    Neighbour,
    payload_as_json,
)
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.storage.memory.state import State, copied_payload
from embedding_studio.storage.ports import (
    CodesInfo,
    Vectors,
    check_margin,
)


class MemoryObjects:
    def __init__(self, state: State) -> None:
        self._state = state

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        given = {item.object_id: stored_object(collection, item) for item in objects}
        with self._state.lock:
            self._state.wait_for_folds_of_collection(collection)
            tables = self._state.tables(collection)
            changed = {
                object_id
                for object_id, item in given.items()
                if object_id not in tables.objects
                or not np.array_equal(item.parts, tables.objects[object_id].parts)
            }
            tables.objects.update(given)
            tables.stack = None
            self._state.fold_again(tables, changed)

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        given = {object_id: stored_payload(object_id, payload) for object_id, payload in payloads.items()}
        with self._state.lock:
            objects = self._state.tables(collection).objects
            for object_id in given.keys() & objects.keys():
                known = objects[object_id]
                text_hash = known.content_hash and known.content_hash[:TEXT_HASH_LENGTH]
                objects[object_id] = replace(known, payload=given[object_id], content_hash=text_hash)
            return sorted(given.keys() - objects.keys())

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        with self._state.lock:
            self._state.wait_for_folds_of_collection(collection)
            tables = self._state.tables(collection)
            there = set(object_ids) & tables.objects.keys()
            for object_id in there:
                del tables.objects[object_id]
            tables.stack = None
            self._state.fold_again(tables, set(object_ids))
            return len(there)

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        with self._state.lock:
            objects = self._state.tables(collection).objects
            there = [objects[object_id] for object_id in object_ids if object_id in objects]
            return [copied_object(item) for item in there]

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        with self._state.lock:
            objects = self._state.tables(collection).objects
            return {i: objects[i].parts.copy() for i in object_ids if i in objects}

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        with self._state.lock:
            objects = self._state.tables(collection).objects
            matching = (
                object_id
                for object_id, item in objects.items()
                if (after is None or object_id > after) and (filter is None or filter.matches(item.payload))
            )
            return [copied_object(objects[object_id]) for object_id in heapq.nsmallest(limit, matching)]

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        with self._state.lock:
            objects = self._state.tables(collection).objects
            hashes = {i: objects[i].content_hash for i in object_ids if i in objects}
        return {object_id: content for object_id, content in hashes.items() if content is not None}

    def count(self, collection: Collection) -> int:
        with self._state.lock:
            return len(self._state.tables(collection).objects)

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        max_distance: float | None = None,
        margin: float | None = None,  # noqa: ARG002, all are compared
    ) -> list[Neighbour]:
        with self._state.lock:
            tables = self._state.tables(collection)
            return tables.nearest(queries, limit, payload_filter=filter, max_distance=max_distance)

    def codes(self, collection: Collection) -> CodesInfo:
        with self._state.lock:
            return CodesInfo(parts=0, bytes_in_memory=0, margin=self._state.tables(collection).margin)

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        check_margin(margin)
        with self._state.lock:
            self._state.tables(collection).margin = margin


def stored_object(collection: Collection, given: CatalogueObject) -> CatalogueObject:
    """Return an object as storage keeps it: vectors checked, payload as JSON gives it back."""
    parts = check_vectors(collection.index, given.parts, f"object {given.object_id!r}")
    return replace(given, parts=parts.copy(), payload=stored_payload(given.object_id, given.payload))


def stored_payload(object_id: str, payload: JSON) -> JSON:
    stored: JSON = json.loads(payload_as_json(object_id, payload))
    return stored


def copied_object(item: CatalogueObject) -> CatalogueObject:
    return replace(item, parts=item.parts.copy(), payload=copied_payload(item.payload))
