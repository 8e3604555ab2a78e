"""The methods of ``Client`` that commands use, answered by a context: no service has to run."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from embedding_studio.bootstrap import Context
from embedding_studio.client import (
    CollectionInfo,
    Forgotten,
    FoundObject,
    FoundPage,
    SearchIndexInfo,
    StoredObject,
)
from embedding_studio.domain import DEFAULT_COLLECTION, DEFAULT_LIMIT, index
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.embedders.names import is_called
from embedding_studio.errors import InvalidInputError
from embedding_studio.indexing import every_object
from embedding_studio.personal_data import BEYOND, exported
from embedding_studio.storage.attached import count_if_known, create_collection


class InProcess:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._storage = context.storage

    def search(
        self,
        query: str | Sequence[Any],
        *,
        user_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        max_distance: float | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the client's name
        explain: bool = False,
        collection: str | None = None,
    ) -> FoundPage:
        wanted = None if filter is None else PayloadFilter.parse(filter)
        page = self._context.search.search(
            query,
            collection=collection or DEFAULT_COLLECTION,
            user_id=user_id,
            explain=explain,
            limit=limit,
            offset=offset,
            max_distance=max_distance,
            filter=wanted,
        )
        found = tuple(
            FoundObject(
                each.object_id,
                each.distance,
                each.payload,
                each.position,
                each.personalised,
                each.explanation,
            )
            for each in page.results
        )
        info = page.collection.index
        return FoundPage(
            found,
            page.session_id,
            page.next_page_offset,
            page.personalised,
            info.metric_type.value,
            info.metric_aggregation_type.value,
            page.is_sorted,
        )

    def get(self, object_ids: Iterable[str], *, collection: str | None = None) -> list[StoredObject]:
        found = self._storage.objects.get(self._known(collection), list(object_ids))
        return [_stored(each, with_vectors=True) for each in found]

    def delete(self, object_ids: Iterable[str], *, collection: str | None = None) -> int:
        return self._storage.objects.delete(self._known(collection), list(object_ids))

    def scroll(
        self,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the client's name
        with_vectors: bool = False,
        collection: str | None = None,
    ) -> Iterator[StoredObject]:
        wanted = None if filter is None else PayloadFilter.parse(filter)
        for each in every_object(self._storage, self._known(collection), filter=wanted):
            yield _stored(each, with_vectors=with_vectors)

    def collections(self) -> tuple[CollectionInfo, ...]:
        return tuple(map(self._info, self._storage.collections.list()))

    def collection(self, name: str) -> CollectionInfo:
        return self._info(self._known(name))

    def create_collection(
        self,
        name: str,
        *,
        dimensions: int | None = None,
        metric_type: str = "cosine",
        metric_aggregation_type: str = "min",
        embedder: str | None = None,
        fill: str | None = None,
    ) -> CollectionInfo:
        info = index.SearchIndexInfo(
            dimensions=dimensions,
            metric_type=index.MetricType(metric_type),
            metric_aggregation_type=index.MetricAggregationType(metric_aggregation_type),
        )
        own = self._context.embedder
        if embedder is not None and (own is None or not is_called(own.name, embedder)):
            has = f"EMBEDDER is {own.name!r}" if own else "EMBEDDER is none"
            raise InvalidInputError(f"{has}; leave --embedder out, or name that one")
        if dimensions is None:
            return self._info(self._context.collection(name, index=info, fill=fill))
        return self._info(create_collection(self._storage, name, info, fill=fill))

    def drop_collection(self, name: str) -> None:
        self._storage.collections.drop(name)

    def set_alias(self, alias: str, collection: str) -> None:
        self._storage.collections.set_alias(alias, collection)

    def drop_alias(self, alias: str) -> None:
        self._storage.collections.drop_alias(alias)

    def forget_user(self, user_id: str) -> Forgotten:
        removed = self._storage.clickstream.forget_user(user_id)
        return Forgotten(removed["sessions"], dict(removed), BEYOND)

    def export_user(self, user_id: str) -> Iterator[dict[str, Any]]:
        yield from map(json.loads, exported(self._storage, user_id))

    def _known(self, name: str | None) -> Collection:
        return self._storage.collections.get(name or DEFAULT_COLLECTION)

    def _info(self, collection: Collection) -> CollectionInfo:
        aliases = self._storage.collections.aliases()
        own_past = collection.own_past
        return CollectionInfo(
            collection.name,
            SearchIndexInfo(**collection.index.model_dump(mode="json")),
            collection.embedder,
            collection.gate_threshold,
            None if own_past is None else asdict(own_past),
            tuple(sorted(alias for alias, name in aliases.items() if name == collection.name)),
            count_if_known(self._storage, collection),
            None if collection.attached is None else str(collection.attached),
            None if collection.filled is None else str(collection.filled),
        )


def _stored(given: CatalogueObject, *, with_vectors: bool) -> StoredObject:
    return StoredObject(given.object_id, given.payload, given.parts.tolist() if with_vectors else None)
