"""The documented gradient adjuster.

Source: passive-aggressive ranking, after Crammer et al. (2006), "Online Passive-Aggressive Algorithms"; our
measurements of it stand in docs/how-it-learns.md.
"""

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.improvement.fold import Wave, fold
from embedding_studio.embeddings.trust_region import into_trust_region

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]


class TorchBasedAdjuster:
    def __init__(
        self,
        search_index_info: SearchIndexInfo,
        adjustment_rate: float = 0.1,
        num_iterations: int = 10,
        softmin_temperature: float = 1.0,
        *,
        max_angle_degrees: float | None = 20.0,
    ) -> None:
        self.search_index_info = search_index_info
        self.adjustment_rate = adjustment_rate
        self.num_iterations = num_iterations
        self.softmin_temperature = softmin_temperature
        self.max_angle_degrees = max_angle_degrees

    def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
        """Return the same sessions with the vectors that their objects have after each."""
        return fold(self.search_index_info, improvement_inputs, self._move)

    def _move(self, wave: Wave) -> tuple[Rows, Vectors]:
        raise NotImplementedError(wave, MetricAggregationType, MetricType, into_trust_region)
