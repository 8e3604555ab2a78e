"""The documented import path of index values."""

from embedding_studio.domain.index import (
    MetricAggregationType,
    MetricType,
    SearchIndexInfo,
)

__all__ = ["MetricAggregationType", "MetricType", "SearchIndexInfo"]
