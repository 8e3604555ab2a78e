"""How near the parts of objects may be to one part of a query, by their codes.

All codes are compared, first by their signs alone, then finer those that this does not rule out.

Axes: N parts of objects · D dimensions · W words of 64 bits.

Source: [gao2024] (``coder``) and [charikar2002], "Similarity estimation techniques from rounding algorithms".
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.embeddings.code_columns import Columns, are_among, packed, rows_of
from embedding_studio.embeddings.coder import Coder, blocks

Vectors = NDArray[np.float32]
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Given = float | NDArray[np.float64]

COARSE = 2048
"""From so many codes on, signs are compared before all else."""
BLOCK, FINE_BLOCK = 16_384, 256
"""Codes compared at a time, by their signs and finely: what is between stays in the processor's cache."""
SHARED_AMONG_THREADS, FINE_SHARED_AMONG_THREADS = 200_000, 20_000
"""From so many codes on all processors compare them; numpy lets go of Python's lock meanwhile."""
STRETCHES = 64
FIRST = 16
"""So many times the objects wanted are first estimated finely, to learn what others must reach."""
CUT, WIDEST = 0.15, 16
"""Where more than this share of what is found needs more than half the margin of its signs, that is doubled,
up to so many times."""
LOWEST = float(np.finfo(np.float32).min)
"""No score is lower but that of what is not there, which is infinitely so."""
_TINY = np.float32(1e-30)


class PartRanking:
    """How near parts of objects may be to one part of a query.

    What is estimated is a score (``Coder.encode``): how high it may be by signs alone, of all, and finer
    of those that this does not rule out.
    """

    def __init__(
        self,
        coder: Coder,
        columns: Columns,
        query: Vectors,
        *,
        size: int,
        margin: float,
        rows: Numbers | None,
    ) -> None:
        self._coder = coder
        self._query = coder.prepared(query)
        self._question = coder.question(self._query)
        self._length = float(np.sqrt(self._question.dot(self._question)))
        self._columns = columns
        self._rows = rows
        self._chosen = slice(size) if rows is None else rows
        self._size = size if rows is None else len(rows)
        self._margin = margin
        self._is_coarse = not columns.is_whole and self._size > COARSE
        self._is_fine = np.zeros(self._size, dtype=bool)
        self._fine = np.empty(self._size, dtype=np.float32)
        self._fine_errors = np.empty(self._size, dtype=np.float32)
        """The finer estimates and their standard errors, as far as they were asked for."""
        self._widened = 1
        """So many times the margin signs are allowed to be wrong by."""
        self._reaching: tuple[float, Numbers, Floats, Floats] | None = None
        """A score, where it may be reached by signs, and there the least and the highest finer scores."""
        if self._is_coarse:
            self._compare_signs()

    def likeliest(self, count: int, within: float) -> Numbers:
        bound = least = -math.inf if within == math.inf else self._coder.score_at(within, self._query)
        if self._is_coarse and bound == -math.inf:
            first = _highest(self._highest, count)
            estimates, errors = self._finely(first)
            bound = _count_th(estimates - self._margin * errors, self._numbers(first), count)
        while True:
            places, lowest, highest = self._may_reach(bound)
            reached = max(_count_th(lowest, self._numbers(places), count), least)
            found = places[highest >= max(reached, LOWEST)]
            if not self._is_cut(found, reached):
                return self._numbers(found)
            self._widen()

    def within(self, distance: float) -> Numbers:
        score = self._coder.score_at(distance, self._query)
        places, _, highest = self._may_reach(score)
        return self._numbers(places[highest >= score])

    def bounds(self, numbers: Numbers) -> NDArray[np.float64]:
        places = rows_of(self._columns.numbers[self._chosen], numbers)
        estimates, errors = self._finely(places)
        rows = np.searchsorted(numbers, self._numbers(places))
        scores = np.full((2, len(numbers)), -np.inf, dtype=np.float32)
        np.maximum.at(scores[0], rows, estimates + self._margin * errors)
        np.maximum.at(scores[1], rows, estimates - self._margin * errors)
        return self._coder.distances_at(scores, self._query)

    def multiply(self, numbers: Numbers, factors: NDArray[np.float64], offset: float) -> NDArray[np.bool_]:
        places = rows_of(self._columns.numbers[self._chosen], numbers)
        estimates, errors = self._finely(places)
        is_there = np.isfinite(estimates)
        places, estimates, errors = places[is_there], estimates[is_there], self._margin * errors[is_there]
        rows = np.searchsorted(numbers, self._numbers(places))
        bounds = self._coder.distances_at(np.stack([estimates + errors, estimates - errors]), self._query)
        multiplied = (bounds + offset) * factors[rows] - offset
        scores, roundings = self._coder.scores_at(multiplied, self._query)
        highest, lowest = scores[0] + roundings[0], scores[1] - roundings[1]
        self._put(places, (highest + lowest) / 2, (highest - lowest) / (2 * self._margin), highest)
        return are_among(numbers, numbers[rows])

    def leave_out(self, numbers: Numbers) -> None:
        places = rows_of(self._columns.numbers[self._chosen], numbers)
        self._put(places, -np.inf, 0.0, -np.inf)

    def _put(self, places: Numbers, estimates: Given, errors: Given, highest: Given) -> None:
        """Take finer estimates and highest scores as given, whatever codes say."""
        self._fine[places], self._fine_errors[places] = estimates, errors
        self._is_fine[places] = True
        if self._is_coarse:
            self._highest[places] = highest
            self._differing[places] = 0  # by their signs they do not stand lower
            self._given.append((places, highest))
        self._reaching = None

    def _numbers(self, places: Numbers) -> Numbers:
        return self._columns.numbers[places if self._rows is None else self._rows[places]]

    def _compare_signs(self) -> None:
        """Bound all by their signs.

        The angle between two vectors is pi times the share p of rotated signs in which they differ
        ([charikar2002]), and the standard error of that share is sqrt(p (1 - p) / D).
        """
        signs = packed(self._question >= 0)
        self._differing = np.empty(self._size, dtype=np.uint16)
        self._highest = np.empty(self._size, dtype=np.float32)
        self._given: list[tuple[Numbers, Given]] = []
        self._bound_all(signs)

    def _bound_all(self, signs: NDArray[np.uint64] | None = None) -> None:
        """Compute the highest score that each may have by its signs.

        Args:
            signs: of the query, which are compared first; None: they were.
        """
        columns = self._columns
        cosines = _cosines(self._coder.dimensions, self._widened * self._margin)
        self._alike = cosines * np.float32(self._length)
        highest = self._alike[0]

        def compare(block: slice) -> None:
            chosen = block if self._rows is None else self._rows[block]
            if signs is not None:
                self._differing[block] = _differing(columns.signs, chosen, signs)
            part = self._highest[block]
            highest.take(self._differing[block], out=part, mode="clip")
            part *= columns.length[chosen]
            part += columns.offset[chosen]

        in_turn = map if self._size < SHARED_AMONG_THREADS else _threads(os.getpid()).map
        for _ in in_turn(compare, blocks(self._size, BLOCK)):
            pass
        for places, given in self._given:
            self._highest[places] = given

    def _is_cut(self, places: Numbers, score: float) -> bool:
        """Return whether so much of what was found stands far below a score by its signs that more must.

        Then signs are wrong about all of it in the same way, as they may be about objects that are alike.
        """
        if not self._is_coarse or self._widened >= WIDEST:
            return False
        rows = places if self._rows is None else self._rows[places]
        alike = self._alike[1].take(self._differing.take(places))
        is_low = alike * self._columns.length.take(rows) + self._columns.offset.take(rows) < score
        return bool(np.count_nonzero(is_low) > CUT * len(places))

    def _widen(self) -> None:
        self._widened *= 2
        self._reaching = None
        self._bound_all()

    def _may_reach(self, score: float) -> tuple[Numbers, Floats, Floats]:
        """Return where signs, if they were compared, do not rule out that a score is reached, or a lower one.

        And there, the least and the highest score by finer estimates.
        """
        if self._reaching is None or (self._is_coarse and score < self._reaching[0]):
            places = (self._highest >= score).nonzero()[0] if self._is_coarse else np.arange(self._size)
            estimates, errors = self._finely(places)
            errors *= self._margin
            self._reaching = score, places, estimates - errors, estimates + errors
        return self._reaching[1:]

    def _finely(self, places: Numbers) -> tuple[Floats, Floats]:
        """Return finer estimates and their standard errors, each computed once: [N], [N]."""
        missing = places[~self._is_fine.take(places)]
        if len(missing):
            self._fine[missing], self._fine_errors[missing] = self._estimates(missing)
            self._is_fine[missing] = True
        return self._fine.take(places), self._fine_errors.take(places)

    def _estimates(self, places: Numbers) -> tuple[Floats, Floats]:
        """Return finer estimates and their standard errors: [N], [N].

        Only the part of a query that stands at right angles to a vector is estimated with an error
        ([gao2024], eq. 15); how large it is follows from the estimate, up to that error itself.
        """
        columns = self._columns
        rows = places if self._rows is None else self._rows[places]
        if columns.is_whole:
            whole = columns.content[self._chosen if len(places) == self._size else rows]
            return whole.dot(self._question) + columns.offset[rows], columns.error[rows] * self._length
        products = columns.factor.take(rows) * _products(columns.content, rows, self._question)
        errors = columns.error.take(rows)
        lengths = np.maximum(columns.length.take(rows), _TINY)
        cosines = np.minimum(np.abs(products) / np.maximum(lengths * np.float32(self._length), _TINY), 1)
        across = np.minimum(1 - cosines**2 + (errors / lengths) ** 2, 1)
        return products + columns.offset.take(rows), errors * np.float32(self._length) * np.sqrt(across)


@lru_cache(maxsize=64)
def _cosines(D: int, margin: float) -> Floats:
    """Return the cosine of two vectors by the signs in which they differ, [2, D + 1].

    At most, and half-way from there to what is estimated. It is not linear in the margin: where nearly all
    signs differ, a cosine of -1 changes with the square.
    """
    shares = np.arange(D + 1) / D
    inside = np.clip(shares, 1 / D, 1 - 1 / D)  # also where none or all differ, some error is possible
    least = np.maximum(shares - margin * np.sqrt(inside * (1 - inside) / D), 0)
    estimated, most = np.cos(np.pi * np.stack([shares, least]))
    return np.stack([most, (estimated + most) / 2]).astype(np.float32)


def _differing(
    codes: NDArray[np.uint64], chosen: slice | Numbers, signs: NDArray[np.uint64]
) -> NDArray[np.uint16]:
    """Return in how many signs each chosen code differs from a query."""
    words = codes[:, chosen]
    total: NDArray[np.uint16] = np.bitwise_count(words[0] ^ signs[0]).astype(np.uint16)
    for word, sign in zip(words[1:], signs[1:], strict=True):
        total += np.bitwise_count(word ^ sign)
    return total


def _products(levels: NDArray[Any], rows: Numbers, question: Vectors) -> Floats:
    """Return the inner products [N] of what levels stand for with a query."""
    products = np.empty(len(rows), dtype=np.float32)

    def multiply(stretch: slice) -> None:
        part, chosen = products[stretch], rows[stretch]
        for block in blocks(len(part), FINE_BLOCK):
            np.dot(levels.take(chosen[block], axis=0).astype(np.float32), question, out=part[block])

    in_turn = map if len(rows) < FINE_SHARED_AMONG_THREADS else _threads(os.getpid()).map
    for _ in in_turn(multiply, blocks(len(rows), BLOCK)):
        pass
    products += question.sum() / 2
    return products


@lru_cache(maxsize=1)
def _threads(process_id: int) -> ThreadPoolExecutor:  # noqa: ARG001, a fork has none of its parent's threads
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="codes")


def _highest(scores: Floats, count: int) -> Numbers:
    """Return where some ``FIRST * count`` of the highest are, and whatever is as high as these."""
    wanted, stretches = FIRST * count, STRETCHES * count
    length = len(scores) // stretches
    best = scores if length < 2 else scores[: stretches * length].reshape(length, stretches).max(axis=0)
    if len(best) <= wanted:
        return np.arange(len(scores))
    least = np.partition(best, len(best) - wanted)[len(best) - wanted]
    places: Numbers = (scores >= least).nonzero()[0]
    return places


def _count_th(values: Floats, numbers: Numbers, count: int) -> float:
    """Return what ``count`` different objects reach, each by its largest value; -inf if they are fewer."""
    for most in (4 * count, len(values)):
        some = values.argpartition(-most)[-most:] if len(values) > most else np.arange(len(values))
        order = some[(-values.take(some)).argsort()]
        reached = set()
        for number, value in zip(numbers.take(order).tolist(), values.take(order).tolist(), strict=True):
            reached.add(number)
            if len(reached) == count:
                return float(value)
    return -math.inf
