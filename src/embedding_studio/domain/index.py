"""How the vectors of a collection are compared."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.errors import InvalidVectorsError

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

    def of_size(self, dimensions: int, whose: str) -> "SearchIndexInfo":
        """Return it for vectors of so many dimensions; ``whose`` they are is said in the error.

        >>> SearchIndexInfo().of_size(4096, "the vectors")
        Traceback (most recent call last):
        embedding_studio.errors.InvalidVectorsError: the vectors have 4096 dimensions, and a collection has
        at most 4000; ask a model that can give fewer for them (EMBEDDER_DIMENSIONS), or use another
        """
        if dimensions > MAX_DIMENSIONS:
            raise InvalidVectorsError(
                f"{whose} have {dimensions} dimensions, and a collection has at most {MAX_DIMENSIONS}; "
                "ask a model that can give fewer for them (EMBEDDER_DIMENSIONS), or use another"
            )
        return self.model_copy(update={"dimensions": dimensions})
