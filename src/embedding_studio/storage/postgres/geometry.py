"""How a collection's metric and aggregation are put to pgvector."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.preparation import prepare_vectors
from embedding_studio.storage.ports import Vectors

LARGEST_INDEXED_DIMENSIONS = 2000
"""pgvector indexes more (what users asked, for shared evidence) at half precision only."""

OPERATORS = {MetricType.COSINE: "<=>", MetricType.DOT: "<#>", MetricType.EUCLID: "<->"}


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is compared with what.

    Under AVG the mean over all pairs is, for cosine and dot, one inner product of two means, so one vector
    an object is compared. For euclid it is not, and the means only find candidates.
    """

    index: SearchIndexInfo

    @property
    def has_averages(self) -> bool:
        return self.index.metric_aggregation_type is MetricAggregationType.AVG

    @property
    def averages_decide(self) -> bool:
        return self.has_averages and self.index.metric_type is not MetricType.EUCLID

    @property
    def averages_draw(self) -> bool:
        return self.has_averages and self.index.metric_type is MetricType.EUCLID

    @property
    def operator(self) -> str:
        return "<#>" if self.averages_decide else OPERATORS[self.index.metric_type]

    @property
    def offset(self) -> float:
        """What makes the operator's result the distance."""
        return 1.0 if self.averages_decide and self.index.metric_type is MetricType.COSINE else 0.0

    def average(self, parts: Vectors) -> Vectors:
        """Return [1, D], the mean of [P, D]; for cosine the mean of the directions."""
        directions = prepare_vectors(parts, self.index.metric_type)
        mean: NDArray[np.float64] = directions.mean(axis=0, dtype=np.float64, keepdims=True)
        return mean.astype(np.float32)

    def pieces(self) -> dict[str, sql.Composable]:
        """Return the pieces of SQL in which collections differ, beside their schema."""
        D = self.index.dimensions or 0
        kind = "vector" if D <= LARGEST_INDEXED_DIMENSIONS else "halfvec"
        return {
            "operator": sql.SQL(self.operator),
            "cosine_class": sql.SQL(f"{kind}_cosine_ops"),
            "cast": sql.SQL("" if kind == "vector" else f"::halfvec({D})"),
            "aggregate": sql.SQL("avg" if self.averages_draw else "min"),
        }
