"""How alike a query and objects are. Larger is more alike, under every metric; a distance is smaller."""

from collections.abc import Sequence
from itertools import accumulate
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]


def similarities(
    index: SearchIndexInfo,
    queries: Vectors,
    parts: Vectors,
    starts: NDArray[np.int64],
    lengths: Vectors | None = None,
) -> Floats:
    """Return how alike each object is to one query.

    Args:
        queries: [Q, D], the parts of the query.
        parts: [N, D], the parts of all objects, object after object.
        starts: [I], where each object's parts begin; strictly ascending from 0, so no object is empty.
        lengths: [N], of the parts, where they are known.

    Returns:
        [I]; cosine: in [-1, 1]; dot: unbounded; euclid: at most 0. Of the nearest pair of parts (MIN) or
        the mean over all pairs (AVG). A zero vector has no direction: its cosine to anything is 0.
        An object's number does not depend, in any bit, on which others stand beside it.
    """
    pairs = pair_similarities(index.metric_type, queries, parts, lengths)
    is_min = index.metric_aggregation_type is MetricAggregationType.MIN
    of_parts: Floats = pairs.max(axis=0) if is_min else pairs.mean(axis=0)
    if len(starts) == len(parts):  # each object is of one part
        return of_parts
    if is_min:
        return np.maximum.reduceat(of_parts, starts)
    return np.add.reduceat(of_parts, starts) / np.diff(starts, append=len(parts))


def similarities_of(index: SearchIndexInfo, queries: Vectors, objects: Sequence[Vectors]) -> Floats:
    """Return how alike each object, R arrays [P, D], is to one query: [R]."""
    starts = np.array([0, *accumulate(len(parts) for parts in objects[:-1])])
    return similarities(index, queries, np.concatenate(objects), starts)


def pair_similarities(
    metric_type: MetricType, queries: Vectors, parts: Vectors, lengths: Vectors | None = None
) -> Floats:
    """Return [Q, N], how alike each part of the query is to each part of the objects."""
    Q, N = len(queries), len(parts)
    pairs = np.empty((Q, N))
    for k, query in enumerate(queries):  # a query has few parts; one matrix product would tie an object's
        match metric_type:  # last bits to how many others are scored with it
            case MetricType.COSINE | MetricType.DOT:
                pairs[k] = np.vecdot(parts, query)
            case MetricType.EUCLID:
                pairs[k] = -lengths_of(parts - query)
            case _:
                assert_never(metric_type)
    if metric_type is MetricType.COSINE:
        of_parts = lengths_of(parts) if lengths is None else lengths
        scale = lengths_of(queries).astype(np.float64)[:, None] * of_parts
        pairs = np.minimum(np.maximum(pairs / np.where(scale > 0, scale, 1.0), -1.0), 1.0)
    return pairs


def cosines(
    vectors: NDArray[np.floating], query: Vectors, lengths: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return [N], the cosine of each of [N, D] to [D]; -inf where one of the two is zero.

    Args:
        lengths: [N], of the vectors, where they are known.
    """
    if len(vectors) == 0:
        return np.empty(0)
    rows, q = vectors.astype(np.float64, copy=False), query.astype(np.float64)
    scale = (np.linalg.norm(rows, axis=-1) if lengths is None else lengths) * np.linalg.norm(q)
    found: NDArray[np.float64] = np.full(len(rows), -np.inf)
    np.divide(np.vecdot(rows, q), scale, out=found, where=scale > 0)
    return found


def lengths_of(vectors: Vectors) -> Vectors:
    """Return [N] of [N, D]; for a few ``np.linalg.norm`` takes twice as long."""
    lengths: Vectors = np.sqrt(np.vecdot(vectors, vectors))
    return lengths


def distances(index: SearchIndexInfo, similarities: Floats) -> Floats:
    """Return the distances that similarities stand for.

    cosine: 1 - s, in [0, 2]; dot: -s, as in pgvector's ``<#>``; euclid: -s, at least 0.

    >>> distances(SearchIndexInfo(metric_type=MetricType.COSINE), np.array([1.0, 0.25, -1.0]))
    array([0. , 0.75, 2. ])
    """
    if index.metric_type is MetricType.COSINE:
        return 1.0 - similarities
    return -similarities
