"""The documented gradient adjuster: AdamW on a cubic loss, held in the trust region.

Axes: I objects · N parts of all of them · M pairs of a query part and an object part · D dimensions.

For one session, with S_i the similarity of object i, w_i its weight and C clicked and n skipped objects:

    loss = -1/C sum_{clicked} w_i S_i^3 + 1/n sum_{skipped} w_i S_i^3                                 eq. 7
    S_i  = T log mean_p exp(s_p / T) over its pairs (MIN),   mean_p s_p (AVG)                         eq. 8

The gradient of eq. 8 is softmax(s / T): towards T = 0 all weight is on the most similar pair, and unlike a
softmax-weighted mean it grows with every pair. The gradient of s_p is in the plane of query and part, so the
whole gradient is written down (``_gradient``); nothing is recorded and replayed at run time.

AdamW divides each coordinate's step by that coordinate's own past gradients, so a factor on the loss of a
vector that nothing else moves cancels: weights w_i and shares of parts would say nothing. Here they also
scale the step, the part with the largest share taking the whole of it.

Source: docs/how-it-learns.md; [loshchilov2019], "Decoupled Weight Decay Regularization", algorithm 2.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

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
    ranges,
)
from embedding_studio.embeddings.preparation import squared_lengths
from embedding_studio.embeddings.trust_region import FLOAT32_ERROR, into_trust_region, nearest_in_caps
from embedding_studio.errors import EmbeddingStudioError

try:
    import torch
    from torch import Tensor
    from torch.optim.adamw import adamw
except ImportError as error:
    raise EmbeddingStudioError(
        "the gradient adjuster needs torch; pip install 'embedding-studio[torch]', or set "
        "ADJUSTER=passive_aggressive"
    ) from error

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]

BETA_1, BETA_2, EPSILON, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01
"""The defaults of ``torch.optim.AdamW``."""

REGISTER = 16
"""Numbers of the widest vector register."""

NUMBERS_AT_ONCE = 500_000
"""Components that all iterations run on before the next are taken up, so that they stay in the cache."""


class TorchBasedAdjuster:
    """Moves vectors down the gradient of eq. 7, every session by its own loss.

    After every step norms are restored (cosine, dot) and what left the trust region is brought back, and
    an object that all steps together took the wrong way (they overshoot where a query is very near) stays
    where it was. Steps are in units of the vectors' own lengths: of each vector for cosine, of the
    session's mean for dot and euclid. There is no weight decay: the trust region does its work, and decay
    towards zero means nothing for a direction.

    Attributes:
        adjustment_rate: the step of AdamW, about the change of every component per iteration.
        num_iterations: steps per session.
        softmin_temperature: T of eq. 8, in units of similarity.
        max_angle_degrees: the trust region; 5, since at 20 degrees the nDCG@10 of the same queries after ten
            sessions of each of 80 users fell, by .062 on cranfield and .078 on nfcorpus, and at 5 it rose,
            by .108 and .062. None is for comparison only and was measured to harm: the raw update, in the
            vectors' own units, unbounded and with AdamW's weight decay of 0.01.
    """

    def __init__(
        self,
        search_index_info: SearchIndexInfo,
        adjustment_rate: float = ADJUSTMENT_RATE,
        num_iterations: int = NUM_ITERATIONS,
        softmin_temperature: float = SOFTMIN_TEMPERATURE,
        *,
        max_angle_degrees: float | None = 5.0,
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
        return moved_in_waves(self.search_index_info, improvement_inputs, self._move)

    def _move(self, wave: Wave) -> tuple[Rows, Vectors]:
        task = _Task.of(self.search_index_info, wave, bounded=self.max_angle_degrees is not None)
        objects = np.flatnonzero(task.pulls)
        if len(objects) == 0 or self.adjustment_rate == 0:
            return objects[:0], wave.vectors[:0]
        numbers = np.cumsum(np.diff(wave.part_starts)[objects]) * wave.vectors.shape[1]
        cuts = np.flatnonzero(np.diff(numbers // NUMBERS_AT_ONCE)) + 1
        moves = [self._descend(task, block) for block in np.split(objects, cuts)]
        if len(moves) == 1:
            return moves[0]
        return np.concatenate([moved for moved, _ in moves]), np.concatenate([new for _, new in moves])

    def _descend(self, task: "_Task", objects: Rows) -> tuple[Rows, Vectors]:
        """Return which of some objects move, and their parts after all iterations."""
        index, max_angle_degrees = self.search_index_info, self.max_angle_degrees
        bounded = max_angle_degrees is not None
        rows = task.wave.parts_of(objects)
        units = task.part_units[rows, None].astype(np.float32)
        original_parts = task.wave.originals[rows]
        loss = task.loss(index, self.softmin_temperature, objects)
        vectors = torch.from_numpy(task.wave.vectors[rows] / units)
        originals = torch.from_numpy(original_parts / units)
        region = _TrustRegion(index.metric_type, originals, max_angle_degrees or 180)
        optimizer = _AdamW(vectors)
        lengths = region.lengths if bounded and index.metric_type is not MetricType.EUCLID else None
        before = loss.aggregated(loss.similarities(vectors))
        for _ in range(self.num_iterations):
            shares = loss.gradient(vectors, optimizer.gradient, lengths)
            optimizer.take_step()
            if not bounded:
                vectors.mul_(1 - self.adjustment_rate * WEIGHT_DECAY)
            vectors.addcmul_(optimizer.step, _column(self.adjustment_rate * shares, vectors))
            if bounded:
                region.bring_in(vectors)
        moved = vectors.numpy() * units
        if max_angle_degrees is None:
            return objects, moved
        after = loss.aggregated(loss.similarities(vectors))
        goes = (after - before) * loss.pulls <= 0  # what steps took the wrong way stays
        rows_that_go = np.repeat(goes, np.diff(task.wave.part_starts)[objects])
        moved = into_trust_region(index, original_parts, moved, max_angle_degrees)
        return objects[goes], moved if goes.all() else moved[rows_that_go]


@dataclass(frozen=True, eq=False)
class _Loss:
    """Eq. 1 of some objects.

    Attributes:
        pulls: [I], the factor of S_i^3: below 0 for clicked, above 0 for skipped.
        weights: [I].
        asked: [M, D], the query part of each pair; of length 1 for cosine.
        part_of_pairs: [M], ascending.
        pairs_of_parts: [N], where each part's pairs begin.
        pairs_of_objects: [I], where each object's pairs begin.
        parts_of_objects: [I], where each object's parts begin.
    """

    index: SearchIndexInfo
    temperature: float
    pulls: Floats
    weights: Floats
    asked: Tensor
    part_of_pairs: Rows
    pairs_of_parts: Rows
    pairs_of_objects: Rows
    parts_of_objects: Rows

    def similarities(self, vectors: Tensor, lengths: Floats | None = None) -> Floats:
        """Return [M], of each pair; ``lengths`` [N] of the vectors spares counting them again."""
        paired = vectors
        if len(self.asked) > len(vectors):
            paired = vectors[torch.from_numpy(self.part_of_pairs)]
        if self.index.metric_type is MetricType.EUCLID:
            return -_lengths(self.asked - paired)
        products = _products(self.asked, paired)
        if self.index.metric_type is MetricType.DOT:
            return products
        return products / (_lengths(vectors) if lengths is None else lengths)[self.part_of_pairs]

    def aggregated(self, similarities: Floats) -> Floats:
        """Return [I], what search makes of the pairs: the best (MIN) or the mean (AVG)."""
        if self.index.metric_aggregation_type is MetricAggregationType.MIN:
            return np.maximum.reduceat(similarities, self.pairs_of_objects)
        return np.add.reduceat(similarities, self.pairs_of_objects) / self._pair_counts

    def softened(self, similarities: Floats) -> tuple[Floats, Floats]:
        """Return S [I] of eq. 8 and its derivative by each pair [M]."""
        if len(similarities) == len(self.pulls):
            return similarities, np.ones_like(similarities)
        counts = self._pair_counts
        if self.index.metric_aggregation_type is MetricAggregationType.AVG:
            return self.aggregated(similarities), np.repeat(1 / counts, counts)
        best = np.maximum.reduceat(similarities, self.pairs_of_objects)
        powers = np.exp((similarities - np.repeat(best, counts)) / self.temperature)
        sums = np.add.reduceat(powers, self.pairs_of_objects)
        return best + self.temperature * np.log(sums / counts), powers / np.repeat(sums, counts)

    def gradient(self, vectors: Tensor, into: Tensor, lengths: Floats | None = None) -> Floats:
        """Write the gradient [N, D] of eq. 7 ``into`` a tensor, and return each part's share of the step [N].

        Args:
            lengths: [N] of the vectors, where they are known.
        """
        if lengths is None:
            lengths = _lengths(vectors)
        similarities = self.similarities(vectors, lengths)
        softened, derivatives = self.softened(similarities)
        slopes = np.repeat(3 * self.pulls * self.weights * softened**2, self._pair_counts) * derivatives
        match self.index.metric_type:
            case MetricType.COSINE:  # d cos(q, v) / dv = (q - cos(q, v) v/|v|) / |v| for q of length 1
                along_query = slopes / lengths[self.part_of_pairs]
                along_part = -along_query * similarities / lengths[self.part_of_pairs]
            case MetricType.DOT:
                along_query, along_part = slopes, np.zeros_like(slopes)
            case MetricType.EUCLID:  # d -|q - v| / dv = (q - v) / |q - v|, and 0 where they meet
                along_query = np.divide(
                    slopes, -similarities, out=np.zeros_like(slopes), where=similarities < 0
                )
                along_part = -along_query
        torch.mul(vectors, _column(np.add.reduceat(along_part, self.pairs_of_parts), vectors), out=into)
        along_queries = _column(along_query, vectors)
        if len(self.asked) == len(vectors):
            into.addcmul_(self.asked, along_queries)
        else:
            # One pair of every part at a time: the same operation as above, rounded alike, for which of
            # the two ways a session goes depends on who else is there.
            ordinals = np.arange(len(self.asked)) - self.pairs_of_parts[self.part_of_pairs]
            for ordinal in range(ordinals.max() + 1):
                pairs = np.flatnonzero(ordinals == ordinal)
                rows = self.part_of_pairs[pairs]
                into[rows] = torch.addcmul(into[rows], self.asked[pairs], along_queries[pairs])
        of_parts = np.add.reduceat(derivatives, self.pairs_of_parts)
        largest = np.maximum.reduceat(of_parts, self.parts_of_objects)
        return of_parts * np.repeat(self.weights / largest, self._part_counts)

    @cached_property
    def _pair_counts(self) -> Rows:
        return np.diff(self.pairs_of_objects, append=len(self.asked))

    @cached_property
    def _part_counts(self) -> Rows:
        return np.diff(self.parts_of_objects, append=len(self.pairs_of_parts))


class _AdamW:
    """The steps of ``torch.optim.AdamW`` at a rate of 1.

    Attributes:
        gradient: [N, D], to be written before a step is taken.
        step: [N, D], the last step taken.
    """

    def __init__(self, vectors: Tensor) -> None:
        """Start with moments of zero."""
        # Whole registers, so that each number goes the same way through the processor, wherever it stands:
        # what is left over is counted by other code, and rounded otherwise.
        whole = torch.zeros(4, math.ceil(vectors.numel() / REGISTER) * REGISTER, dtype=vectors.dtype)
        self._gradient, self._step, self._first, self._second = whole
        self._steps_taken = torch.zeros(())
        self.gradient, self.step = (
            numbers[: vectors.numel()].view(vectors.shape) for numbers in (self._gradient, self._step)
        )

    def take_step(self) -> None:
        """Write ``step`` down the gradient."""
        adamw(
            [self._step],
            [self._gradient],
            [self._first],
            [self._second],
            [],
            [self._steps_taken],
            fused=True,
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=1.0,
            weight_decay=1.0,  # of the last step nothing is left
            eps=EPSILON,
            maximize=False,
        )


class _TrustRegion:
    """``into_trust_region`` on tensors, in place: the same formulas, at the accuracy of the tensors."""

    def __init__(self, metric_type: MetricType, originals: Tensor, max_angle_degrees: float) -> None:
        self.metric_type = metric_type
        self.originals = originals
        # Inside by what float32 leaves in doubt, so that nothing has to be looked at closely in the end.
        cosine = math.cos(math.radians(max_angle_degrees)) + 2 * FLOAT32_ERROR
        self.max_angle = math.acos(min(cosine, 1))
        self.lengths = _lengths(originals)

    def bring_in(self, vectors: Tensor) -> None:
        """Replace each vector by the nearest in its region: keep x vector + pull x original."""
        if self.metric_type is MetricType.EUCLID:
            radius = 2 * math.sin(self.max_angle / 2) * self.lengths
            way = _lengths(vectors - self.originals)
            keep = np.divide(radius, way, out=np.ones_like(way), where=way > radius)
            pull = 1 - keep
        else:
            products = _products(vectors, self.originals)
            keep, pull = nearest_in_caps(self.lengths, _lengths(vectors), products, self.max_angle)
        vectors.mul_(_column(keep, vectors)).addcmul_(self.originals, _column(pull, vectors))


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """A wave, and what is counted once for all of it.

    Attributes:
        session_of_parts: [N].
        pulls: [I], the factor of S_i^3 in eq. 7 without its weight; 0 where a session has no contrast.
        queries: [K, D], of length 1 for cosine; else measured by the session's mean, or raw as given.
        part_units: [N], the lengths in which parts are measured; 1 in the raw update.
    """

    wave: Wave
    session_of_parts: Rows
    pulls: Floats
    queries: Vectors
    part_units: Floats

    @classmethod
    def of(cls, index: SearchIndexInfo, wave: Wave, *, bounded: bool) -> Self:
        heads, session = wave.object_starts[:-1], wave.session_of_objects()
        clicked = np.add.reduceat(wave.clicked.astype(np.float64), heads)[session]
        skipped = np.add.reduceat((~wave.clicked).astype(np.float64), heads)[session]
        pulls = np.where(wave.clicked, -1 / np.maximum(clicked, 1), 1 / np.maximum(skipped, 1))
        pulls[(clicked == 0) | (skipped == 0)] = 0
        session_of_parts = session[wave.object_of_parts()]
        query_units = np.sqrt(squared_lengths(wave.queries), dtype=np.float64)
        part_units = np.sqrt(wave.squares, dtype=np.float64)
        if index.metric_type is not MetricType.COSINE:
            part_units = _mean_of_sessions(part_units, wave.part_starts[wave.object_starts])
            query_units = _mean_of_sessions(query_units, wave.query_starts)
            if index.metric_type is MetricType.EUCLID:  # distances need one measure
                of_sessions = part_units[wave.part_starts[wave.object_starts[:-1]]]
                query_units = np.repeat(of_sessions, np.diff(wave.query_starts))
        if not bounded:
            part_units = np.ones_like(part_units)
            query_units = query_units if index.metric_type is MetricType.COSINE else np.ones_like(query_units)
        queries = np.asarray(wave.queries / query_units[:, None].astype(np.float32), dtype=np.float32)
        return cls(wave, session_of_parts, pulls, queries, part_units)

    def loss(self, index: SearchIndexInfo, temperature: float, objects: Rows) -> _Loss:
        """Return eq. 7 of some objects."""
        wave, rows = self.wave, self.wave.parts_of(objects)
        part_counts = np.diff(wave.part_starts)[objects]
        session = self.session_of_parts[rows]
        pair_counts = np.diff(wave.query_starts)[session]
        asked = ranges(wave.query_starts[session], pair_counts)
        parts_of_objects = np.cumsum(part_counts) - part_counts
        pairs_of_parts = np.cumsum(pair_counts) - pair_counts
        return _Loss(
            index=index,
            temperature=temperature,
            pulls=self.pulls[objects],
            weights=wave.weights[objects],
            asked=torch.from_numpy(self.queries[asked]),
            part_of_pairs=np.repeat(np.arange(len(rows)), pair_counts),
            pairs_of_parts=pairs_of_parts,
            pairs_of_objects=pairs_of_parts[parts_of_objects],
            parts_of_objects=parts_of_objects,
        )


def _mean_of_sessions(lengths: Floats, starts: Rows) -> Floats:
    """Return for each length the mean of its session's, or 1 where all are 0."""
    counts = np.diff(starts)
    means = np.add.reduceat(lengths, starts[:-1]) / counts
    return np.repeat(np.where(means > 0, means, 1), counts)


def _column(numbers: Floats, like: Tensor) -> Tensor:
    """Return numbers [N] as [N, 1], to multiply the rows of a tensor by."""
    return torch.from_numpy(numbers).to(like.dtype)[:, None]


def _products(one: Tensor, other: Tensor) -> Floats:
    """Return the inner products of rows [N]; by numpy, whose sums depend on the row alone in every bit."""
    return np.asarray(np.vecdot(one.numpy(), other.numpy()), dtype=np.float64)


def _lengths(vectors: Tensor) -> Floats:
    """Return [N]."""
    return np.sqrt(_products(vectors, vectors))
