"""The base index that an engine is: what a filter means, distances and pages are ours, over every engine."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection, Neighbour
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import ConflictError
from embedding_studio.storage.attached.engines import Engine, Examined, attached_to, usable
from embedding_studio.storage.ports import CodesInfo, Vectors

FIRST = 200
"""Candidates that an engine is asked for first. So many searches are answered by the first, that their lists
begin alike: an approximate index finds other neighbours where it is asked for more."""
GROWTH = 4
ROUNDING = 1e-6
"""So much, relatively, an engine's distance in float32 may differ from ours."""


class AttachedObjects:
    """The base index that an engine is when its candidates are verified. It refuses to write."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def engine(self) -> Engine:
        return self._engine

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        there = self._engine.get(collection, list(dict.fromkeys(object_ids)))
        found = {each.object_id: each for each in usable(collection, there)}
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
            found += [each for each in usable(collection, page) if _matches(filter, each)]
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
        wanted = asked_first(limit)
        while True:
            found, bound = self._found(collection, queries, wanted, filter, is_exact=margin == math.inf)
            kept = [each for each in found if max_distance is None or each.distance <= max_distance]
            if is_whole(kept, limit, bound=bound, max_distance=max_distance):
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
            for each in usable(collection, answer.objects)
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
        raise ConflictError(f"{attached_to(collection)}: its own index finds what is near, and has no margin")

    def examined(self, collection: Collection) -> Examined:
        return self._engine.examined(collection)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        return self._engine.found(wanted, metric)

    def close(self) -> None:
        self._engine.close()


def asked_first(limit: int) -> int:
    """Return how many candidates are asked for first; where more are needed, ``GROWTH`` times as many."""
    wanted = FIRST
    while wanted < limit:
        wanted *= GROWTH
    return wanted


def is_whole(kept: Sequence[Neighbour], limit: int, *, bound: float, max_distance: float | None) -> bool:
    """Return whether nothing but what was kept can belong to a list.

    Args:
        kept: what was found within ``max_distance``, the nearest first.
        bound: of ``Candidates``.
    """
    last = kept[limit - 1].distance if 0 < limit <= len(kept) else math.inf
    reach = last if max_distance is None else min(last, max_distance)
    return limit < 1 or bound == math.inf or reach < bound - ROUNDING * max(1.0, abs(bound))


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


def _matches(payload_filter: PayloadFilter | None, found: CatalogueObject) -> bool:
    return payload_filter is None or payload_filter.matches(found.payload)


def refuse_writing(collection: Collection) -> NoReturn:
    """Say that another system keeps the objects.

    Raises:
        ConflictError: always.
    """
    raise ConflictError(
        f"{attached_to(collection)}, which is only read; write there, and the next search finds it"
    )
