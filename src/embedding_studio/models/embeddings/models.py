"""The documented import path of index values."""

from embedding_studio.domain.index import (
    HnswParameters,
    MetricAggregationType,
    MetricType,
    SearchIndexInfo,
)

__all__ = ["HnswParameters", "MetricAggregationType", "MetricType", "SearchIndexInfo"]
