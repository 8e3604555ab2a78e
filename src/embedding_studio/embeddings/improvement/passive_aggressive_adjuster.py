"""The default adjuster: the least move that ranks what was clicked above what was skipped, in closed form.

Axes: S sessions · K query parts of all of them · I objects · N parts of all objects · D dimensions.

For one session let s_i be the similarity of object i to the query, w_i its weight and m the margin. Of all
changes b that satisfy

    (s_c + b_c) - (s_n + b_n) >= m        for every clicked c and skipped n                           eq. 1

those of least sum_i b_i^2 / w_i are

    b_c = max(0, t + m/2 - s_c),   b_n = -max(0, s_n - t + m/2),   t the root of sum_i b_i / w_i = 0  eq. 2

(the conditions of Karush, Kuhn and Tucker: the multipliers of the pairs sum to b_c / w_c over the pairs of c
and to -b_n / w_n over those of n). The sum grows with t and is linear between the edges s_c - m/2 and
s_n + m/2, so t is found exactly, by sorting them. Where eq. 1 holds already nothing moves.

Source: passive-aggressive ranking, after [crammer2006], "Online Passive-Aggressive Algorithms", section 3.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.improvement.fold import Wave, fold
from embedding_studio.embeddings.preparation import prepare_vectors
from embedding_studio.embeddings.similarity import similarities
from embedding_studio.embeddings.trust_region import into_trust_region
from embedding_studio.errors import InvalidSettingError

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]

MARGIN_PER_RATE = 0.5
"""The default rate of 0.1 gives the margin of 0.05 that measured best."""

ITERATIONS_PER_SWEEP = 10
"""The default of 10 iterations is one sweep over a user's sessions."""

SHARING_PER_TEMPERATURE = 0.05
"""In units of cosine: between 0.05 and 0.2 measured best for objects of several parts."""

SMALLEST_CHANGE = 1e-6
"""In units of similarity; less is rounding, and worth no personal copy."""

SMALLEST_SINE = 1e-3
"""A part nearer than this to the line through the query has no side to be turned to, and stays."""


class PassiveAggressiveAdjuster:
    """Moves vectors by the least that puts every clicked object a margin above every skipped one.

    A similarity is changed by turning the part in the plane of the part and the query (cosine, dot; the
    norm is kept), or by moving it along the line through the query (euclid).

    Margins are relative, so that scaling all vectors of a collection changes nothing: for cosine the
    margin is a difference of cosines; for dot a share of (mean norm of the query's parts x mean norm of
    the session's parts), which is the same for unit vectors; for euclid a share of the session's mean
    distance to the query.

    Attributes:
        adjustment_rate: twice the margin; larger moves more. 0 learns nothing.
        num_iterations: ten are one sweep over a user's sessions. A later session undoes some of an
            earlier one; more sweeps bring them nearer to all holding at once. Fewer than 15 are one sweep.
        softmin_temperature: under MIN, how the raise of a clicked object is shared among its parts: the
            best part gets all of it, one that is less similar by 0.05 x temperature gets 1/e of it.
            Towards 0 the best part alone moves. A skipped object is lowered in every part that is above
            the target. Under AVG all parts change alike and the temperature says nothing.
        max_angle_degrees: the trust region, see ``into_trust_region``.
    """

    def __init__(
        self,
        search_index_info: SearchIndexInfo,
        adjustment_rate: float = 0.1,
        num_iterations: int = 10,
        softmin_temperature: float = 1.0,
        *,
        max_angle_degrees: float = 20.0,
    ) -> None:
        """Keep the knobs.

        Raises:
            InvalidSettingError: a knob that cannot work.
        """
        check_knobs(adjustment_rate, num_iterations, softmin_temperature, max_angle_degrees)
        self.search_index_info = search_index_info
        self.adjustment_rate = adjustment_rate
        self.num_iterations = num_iterations
        self.softmin_temperature = softmin_temperature
        self.max_angle_degrees = max_angle_degrees

    def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
        """Return the same sessions with the vectors that their objects have after each.

        See ``VectorsAdjuster``.
        """
        sweeps = max(1, round(self.num_iterations / ITERATIONS_PER_SWEEP))
        return fold(self.search_index_info, improvement_inputs, self._move, sweeps=sweeps)

    def _move(self, wave: Wave) -> tuple[Rows, Vectors]:
        sight = _look(self.search_index_info, wave)
        scores = _of_objects(self.search_index_info, sight.similarities, wave.part_starts)
        changes = least_changes(
            scores, wave.clicked, wave.weights, wave.object_starts, self.adjustment_rate * MARGIN_PER_RATE
        )
        ...


def least_changes(
    scores: Floats, clicked: NDArray[np.bool_], weights: Floats, starts: Rows, margin: float
) -> Floats:
    """Return the least changes of similarity that satisfy eq. 1 in each session (eq. 2).

    Args:
        scores: [I], the similarities.
        clicked: [I], False where skipped.
        weights: [I], > 0; what weighs more changes more readily.
        starts: [S + 1], where each session's objects begin; the last is I. No session is empty.
        margin: at least 0.

    Returns:
        [I]; at least 0 for clicked, at most 0 for skipped.

    >>> least_changes(np.array([0.5, 0.6]), np.array([True, False]), np.ones(2), np.array([0, 2]), 0.05)
    array([ 0.075, -0.075])
    """
    heads, sizes = starts[:-1], np.diff(starts)
    session = np.repeat(np.arange(len(sizes)), sizes)
    edges = np.where(clicked, scores - margin / 2, scores + margin / 2)

    def changes(t: Floats) -> Floats:
        gaps = t[session] - edges
        return np.where(clicked, np.maximum(gaps, 0), np.minimum(gaps, 0))

    # The lowest edge at which the sum of eq. 2 is not negative: the root lies between it and the edge before.
    ascending = edges[np.lexsort((edges, session))]
    low, high = np.zeros_like(sizes), sizes - 1
    while (low < high).any():
        middle = (low + high) // 2
        negative = np.add.reduceat(changes(ascending[heads + middle]) / weights, heads) < 0
        low, high = np.where(negative, middle + 1, low), np.where(negative, high, middle)
    top = ascending[heads + high]
    # Between the two the same objects count, and the root is the mean of their edges.
    counts = np.where(clicked, edges < top[session], edges >= top[session]) / weights
    total = np.add.reduceat(counts, heads)
    t = np.divide(np.add.reduceat(counts * edges, heads), total, out=top, where=total > 0)
    return changes(t)


def check_knobs(
    adjustment_rate: float, num_iterations: int, softmin_temperature: float, max_angle_degrees: float | None
) -> None:
    """Raise ``InvalidSettingError`` for a knob that cannot work."""
    for name, value, works, range_ in (
        ("adjustment_rate", adjustment_rate, 0 <= adjustment_rate < math.inf, "0 or more"),
        ("num_iterations", num_iterations, num_iterations >= 1, "1 or more"),
        ("softmin_temperature", softmin_temperature, 0 < softmin_temperature < math.inf, "more than 0"),
        ("max_angle_degrees", max_angle_degrees, 0 < (max_angle_degrees or 180) <= 180, "in (0, 180]"),
    ):
        if not works:
            raise InvalidSettingError(f"{name} is {value}; it must be {range_}")
