"""How the vectors of a collection are compared."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

MAX_DIMENSIONS = 4000
"""pgvector indexes at most 4,000 dimensions, as ``halfvec``."""


class MetricType(StrEnum):
    """What is near. A distance is smaller for what is nearer, under every metric.

    cosine: 1 - cos(q, v), in [0, 2]. dot: -q·v, unbounded. euclid: |q - v|, at least 0.
    """

    COSINE = "cosine"
    DOT = "dot"
    EUCLID = "euclid"


class MetricAggregationType(StrEnum):
    """How the distances between the parts of a query and of an object become one.

    min: the nearest pair of parts decides (documents in chunks).
    avg: the mean over all pairs (products, images).
    """

    MIN = "min"
    AVG = "avg"


class SearchIndexInfo(BaseModel):
    """Metric, aggregation and size of a collection's vectors.

    ``dimensions`` may stay empty until the first vectors are known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMENSIONS)
    metric_type: MetricType = MetricType.COSINE
    metric_aggregation_type: MetricAggregationType = MetricAggregationType.MIN
