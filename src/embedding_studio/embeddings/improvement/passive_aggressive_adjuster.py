"""The default adjuster: the least move that ranks what was clicked above what was skipped, in closed form.

Axes: S sessions · K query parts of all of them · I objects · N parts of all objects · D dimensions.

For one session let s_i be the similarity of object i to the query, w_i its weight, m the margin and A the
aggressiveness. A click may be a mistake and a skip an oversight, so each object may fall short by some xi_i:
of all changes b and xi that satisfy

    (s_c + b_c + xi_c) - (s_n + b_n - xi_n) >= m      for every clicked c and skipped n               eq. 3

those of least sum_i b_i^2 / w_i + A xi_i^2 are, with v_i = w_i + 1/A,

    b_i = w_i / v_i d_i,   d_c = max(0, t + m/2 - s_c),   d_n = -max(0, s_n - t + m/2),               eq. 4
    t the root of sum_i d_i / v_i = 0

(of a way d_i, moved by b_i and short by the rest, b_i^2 / w_i + A (d_i - b_i)^2 is least at this share and
is d_i^2 / v_i; then the conditions of Karush, Kuhn and Tucker: the multipliers of the pairs sum to d_c / v_c
over the pairs of c and to -d_n / v_n over those of n). The sum grows with t and is linear between the edges
s_c - m/2 and s_n + m/2, so t is found exactly, by sorting them. Where the margin holds already nothing moves.

So one session takes each object a share w / (w + 1/A) of its way, less for what was probably not seen, and
sessions that say the same again take it further: one wrong click moves little, and is outvoted.

Source: passive-aggressive ranking with squared slack, after [crammer2006], "Online Passive-Aggressive
Algorithms", sections 3 and 4 (PA-II).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.improvement.waves import (
    ADJUSTMENT_RATE,
    NUM_ITERATIONS,
    SOFTMIN_TEMPERATURE,
    Wave,
    check_knobs,
    moved_in_waves,
)
from embedding_studio.embeddings.similarity import similarities
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES, into_trust_region
from embedding_studio.errors import InvalidSettingError

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]

AGGRESSIVENESS = 0.5
"""A of eq. 4: one session takes a clicked object a third of its way.

With the hard margin (A infinite) thirty per cent of random clicks made search worse on cranfield; from 0.1
to 1 they do not, and standard clicks gain as much or more on both collections (docs/what-was-tried.md)."""

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
        num_iterations: ten are one sweep over a user's sessions. Each sweep takes objects further, and a
            later session undoes some of an earlier one; more sweeps bring them nearer to all holding at
            once. Fewer than 15 are one sweep.
        softmin_temperature: under MIN, how the raise of a clicked object is shared among its parts: the
            best part gets all of it, one that is less similar by 0.05 x temperature gets 1/e of it.
            Towards 0 the best part alone moves. A skipped object is lowered in every part that is above
            the target. Under AVG all parts change alike and the temperature says nothing.
        max_angle_degrees: the trust region, see ``into_trust_region``.
        aggressiveness: A, more than 0; infinite lets every session have its way in full.
    """

    def __init__(
        self,
        search_index_info: SearchIndexInfo,
        adjustment_rate: float = ADJUSTMENT_RATE,
        num_iterations: int = NUM_ITERATIONS,
        softmin_temperature: float = SOFTMIN_TEMPERATURE,
        *,
        max_angle_degrees: float = MAX_ANGLE_DEGREES,
        aggressiveness: float = AGGRESSIVENESS,
    ) -> None:
        """Keep the knobs.

        Raises:
            InvalidSettingError: a knob that cannot work.
        """
        check_knobs(adjustment_rate, num_iterations, softmin_temperature, max_angle_degrees)
        if not aggressiveness > 0:
            raise InvalidSettingError(f"aggressiveness is {aggressiveness}; it must be more than 0")
        self.search_index_info = search_index_info
        self.adjustment_rate = adjustment_rate
        self.num_iterations = num_iterations
        self.softmin_temperature = softmin_temperature
        self.max_angle_degrees = max_angle_degrees
        self.aggressiveness = aggressiveness

    def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
        """Return the same sessions with the vectors that their objects have after each.

        See ``VectorsAdjuster``.
        """
        sweeps = max(1, (self.num_iterations + ITERATIONS_PER_SWEEP // 2) // ITERATIONS_PER_SWEEP)
        return moved_in_waves(self.search_index_info, improvement_inputs, self._move, sweeps=sweeps)

    def _move(self, wave: Wave) -> tuple[Rows, Vectors]:
        index, margin = self.search_index_info, self.adjustment_rate * MARGIN_PER_RATE
        sight = _look(index, wave)
        wanted = (
            self._wanted(wave, sight.similarities(), margin) if margin > 0 else np.zeros(len(wave.vectors))
        )
        wanted[(np.abs(wanted) < SMALLEST_CHANGE) | sight.is_stuck] = 0
        objects = np.flatnonzero(np.logical_or.reduceat(wanted != 0, wave.part_starts[:-1]))
        if len(objects) == 0:
            return objects, wave.vectors[:0]
        rows = wave.parts_of(objects)
        moved = into_trust_region(
            index,
            wave.originals.take(rows, axis=0),
            _move_parts(index, wave, sight, rows, wanted[rows]),
            self.max_angle_degrees,
        )
        return _without_setbacks(index, wave, objects, moved)

    def _wanted(self, wave: Wave, of_parts: Floats, margin: float) -> Floats:
        """Return [N], the change of each part's similarity that changes its object's as eq. 4 says."""
        heads, owner = wave.part_starts[:-1], wave.object_of_parts()
        if self.search_index_info.metric_aggregation_type is MetricAggregationType.AVG:
            scores = np.add.reduceat(of_parts, heads) / np.diff(wave.part_starts)
        else:
            scores = np.maximum.reduceat(of_parts, heads)
        changes = least_changes(
            scores, wave.clicked, wave.weights, wave.object_starts, margin, aggressiveness=self.aggressiveness
        )[owner]
        if self.search_index_info.metric_aggregation_type is MetricAggregationType.AVG:
            return changes
        behind = of_parts - scores[owner]
        raised = changes * np.exp(behind / (SHARING_PER_TEMPERATURE * self.softmin_temperature))
        return np.where(changes > 0, raised, np.minimum(0, changes - behind))


def least_changes(
    scores: Floats,
    clicked: NDArray[np.bool_],
    weights: Floats,
    starts: Rows,
    margin: float,
    *,
    aggressiveness: float = math.inf,
) -> Floats:
    """Return the least changes of similarity that satisfy eq. 3 in each session (eq. 4).

    Args:
        scores: [I], the similarities.
        clicked: [I], False where skipped.
        weights: [I], > 0; what weighs more changes more readily.
        starts: [S + 1], where each session's objects begin; the last is I. No session is empty.
        margin: at least 0.
        aggressiveness: A, more than 0; infinite allows no shortfall, so that every pair keeps the margin.

    Returns:
        [I]; at least 0 for clicked, at most 0 for skipped.

    >>> least_changes(np.array([0.5, 0.6]), np.array([True, False]), np.ones(2), np.array([0, 2]), 0.05)
    array([ 0.075, -0.075])
    """
    slack_weights = weights + 1 / aggressiveness
    heads, sizes = starts[:-1], np.diff(starts)
    session = np.repeat(np.arange(len(sizes)), sizes)
    edges = np.where(clicked, scores - margin / 2, scores + margin / 2)

    def changes(t: Floats) -> Floats:
        gaps = t[session] - edges
        return np.where(clicked, np.maximum(gaps, 0), np.minimum(gaps, 0))

    # The lowest edge at which the sum of eq. 4 is not negative: the root lies between it and the edge before.
    # Complex numbers are sorted by their real parts, then by their imaginary; three times as fast as lexsort.
    ascending = np.sort(session + 1j * edges).imag
    low, high = np.zeros_like(sizes), sizes - 1
    while (low < high).any():
        middle = (low + high) // 2
        negative = np.add.reduceat(changes(ascending[heads + middle]) / slack_weights, heads) < 0
        low, high = np.where(negative, middle + 1, low), np.where(negative, high, middle)
    top = ascending[heads + high]
    # Between the two the same objects count, and the root is the mean of their edges.
    counts = np.where(clicked, edges < top[session], edges >= top[session]) / slack_weights
    total = np.add.reduceat(counts, heads)
    t = np.divide(np.add.reduceat(counts * edges, heads), total, out=top, where=total > 0)
    return weights / slack_weights * changes(t)


@dataclass(frozen=True, slots=True, eq=False)
class _Sight:
    """What the parts of a wave look like from the query vector that each is compared to.

    Attributes:
        queries: [., D].
        query_of_parts: [N], rows of ``queries``.
        raw: [N], the inner product with that query vector; for euclid minus the distance to it.
        reach: [N], the product of the two lengths, the most that ``raw`` can be turned to; for euclid the
            distance.
        units: [N], by which ``raw`` is divided to be a similarity in the units of the margin.
        is_stuck: [N], True where no way leads towards or away from the query vector.
    """

    queries: Vectors
    query_of_parts: Rows
    raw: Floats
    reach: Floats
    units: Floats
    is_stuck: NDArray[np.bool_]

    def similarities(self) -> Floats:
        """Return [N]; 0 where there is nothing to measure by."""
        return _divide(self.raw, self.units)


def _look(index: SearchIndexInfo, wave: Wave) -> _Sight:
    """Return how parts look: from the session's mean query (AVG), or each from its nearest part (MIN).

    The mean inner product with several query parts is that with their mean. For euclid the mean distance
    is not the distance to the mean; ``_without_setbacks`` sees to it that no harm comes of that.
    """
    metric = index.metric_type
    session = wave.session_of_objects()[wave.object_of_parts()]
    heads, counts = wave.query_starts[:-1], np.diff(wave.query_starts)
    queries = wave.queries
    if metric is MetricType.COSINE:
        queries = queries / np.sqrt(np.vecdot(queries, queries))[:, None]

    def raw_of(vectors: Vectors, query_of_vectors: Rows) -> Floats:
        seen_from = queries.take(query_of_vectors, axis=0)
        if metric is MetricType.EUCLID:
            seen_from -= vectors
            distances: Floats = np.sqrt(np.vecdot(seen_from, seen_from), dtype=np.float64)
            return -distances
        return np.asarray(np.vecdot(vectors, seen_from), dtype=np.float64)

    if index.metric_aggregation_type is MetricAggregationType.AVG and len(queries) > len(heads):
        queries = (np.add.reduceat(queries, heads, axis=0) / counts[:, None]).astype(np.float32)
        heads, counts = np.arange(len(heads)), np.ones_like(counts)
    nearest = heads[session]
    raw = raw_of(wave.vectors, nearest)
    for k in range(1, counts.max()):
        rows = np.flatnonzero(counts[session] > k)
        other = raw_of(wave.vectors[rows], heads[session[rows]] + k)
        nearer = other > raw[rows]
        raw[rows[nearer]] = other[nearer]
        nearest[rows[nearer]] = heads[session[rows[nearer]]] + k

    if metric is MetricType.EUCLID:
        reach = -raw
        is_stuck = reach == 0
    else:
        query_lengths = np.sqrt(np.vecdot(queries, queries), dtype=np.float64)
        reach = np.sqrt(wave.squares, dtype=np.float64) * query_lengths[nearest]
        is_stuck = np.abs(raw) >= math.sqrt(1 - SMALLEST_SINE**2) * reach
    units = reach
    if metric is not MetricType.COSINE:
        first_parts = wave.part_starts[wave.object_starts]
        units = (np.add.reduceat(reach, first_parts[:-1]) / np.diff(first_parts))[session]
    return _Sight(queries, nearest, raw, reach, units, is_stuck)


def _move_parts(index: SearchIndexInfo, wave: Wave, sight: _Sight, rows: Rows, wanted: Floats) -> Vectors:
    """Return [M, D], the parts of some rows with their similarities changed as wanted, as far as possible."""
    raw, reach = sight.raw[rows], sight.reach[rows]
    target = raw + wanted * sight.units[rows]
    queries = sight.queries.take(sight.query_of_parts[rows], axis=0)
    if index.metric_type is MetricType.EUCLID:
        keep = _divide(-np.minimum(target, 0), reach, otherwise=1)
        pull = 1 - keep
    else:
        now, then = (np.clip(_divide(product, reach), -1, 1) for product in (raw, target))
        # In the plane of part v and query q, from angle a to a': v' = v sin a' / sin a + q (...), norm kept.
        keep = _divide(np.sqrt(1 - then**2), np.sqrt(1 - now**2), otherwise=1)
        pull = (then - now * keep) * _divide(wave.squares[rows].astype(np.float64), reach)
    keep, pull = np.where(wanted == 0, 1, keep), np.where(wanted == 0, 0, pull)
    moved = wave.vectors.take(rows, axis=0)
    moved *= keep[:, None].astype(np.float32)
    queries *= pull[:, None].astype(np.float32)
    moved += queries
    return moved


def _without_setbacks(
    index: SearchIndexInfo, wave: Wave, objects: Rows, moved: Vectors
) -> tuple[Rows, Vectors]:
    """Return the moves but for those that a query of several parts turns into their opposite.

    What leads away from the nearest part of a query may lead to another; such an object stays.
    """
    if len(wave.queries) == len(wave.query_starts) - 1:
        return objects, moved
    counts = np.diff(wave.part_starts)[objects]
    starts = np.cumsum(counts) - counts
    session = wave.session_of_objects()[objects]
    before = wave.vectors[wave.parts_of(objects)]
    is_setback = np.zeros(len(objects), dtype=bool)
    for s in np.flatnonzero(np.diff(wave.query_starts) > 1):
        queries = wave.queries[wave.query_starts[s] : wave.query_starts[s + 1]]
        for i in np.flatnonzero(session == s):
            rows = slice(starts[i], starts[i] + counts[i])
            was, now = (
                similarities(index, queries, vectors[rows], np.zeros(1, dtype=np.intp))[0]
                for vectors in (before, moved)
            )
            is_setback[i] = now < was if wave.clicked[objects[i]] else now > was
    return objects[~is_setback], moved[np.repeat(~is_setback, counts)]


def _divide(dividend: Floats, divisor: Floats, otherwise: float = 0) -> Floats:
    """Return the quotient, or ``otherwise`` where the divisor is 0."""
    quotient: Floats = np.divide(
        dividend, divisor, out=np.full(len(dividend), float(otherwise)), where=divisor != 0
    )
    return quotient
