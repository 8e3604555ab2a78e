"""Short codes of vectors, from which it can be said which objects may be among the nearest.

A code (``coder``) gives an inner product with a query together with the standard error of that estimate
(``estimates``), so the candidates are not "the first so many" but all that the error does not rule out; their
exact distances are computed elsewhere. All codes are compared, so neither the shape of a catalogue (several
subjects, far clusters) nor a filter can hide an object, as they do in a graph of neighbours.

Axes: N parts of objects · D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedding_studio.embeddings.code_columns import Columns, is_last, rows_of
from embedding_studio.embeddings.coder import Coder
from embedding_studio.embeddings.estimates import PartRanking

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]

SMALLEST_BLOCK = 64


class Codes:
    """The codes of a collection.

    One thread changes them, under a lock of the caller's; any number read a ``View``.
    """

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._size = 0
        self._columns = Columns.empty(coder, SMALLEST_BLOCK)
        self._is_viewed = False
        """Whether a view may read what would be removed."""

    def add(self, numbers: Numbers, codes: NDArray[np.void]) -> None:
        """Append parts.

        Args:
            numbers: [N] of the objects whose parts they are: those of one object one after the other, and
                each object's above those of all that were added before.
            codes: [N] records of the coder.
        """
        end = self._size + len(codes)
        if end > self._columns.capacity:
            self._columns = self._columns.copied(self.coder, max(end, 2 * self._columns.capacity), self._size)
        self._columns.write(slice(self._size, end), numbers, codes)
        self._size = end

    def remove(self, numbers: Numbers) -> None:
        """Let objects be found no more; those that are not there are passed over."""
        rows = rows_of(self._columns.numbers[: self._size], np.unique(numbers))
        if self._is_viewed and len(rows):
            kept = self._columns
            self._columns = replace(kept, offset=kept.offset.copy(), error=kept.error.copy())
            self._is_viewed = False
        self._columns.offset[rows] = -np.inf
        self._columns.error[rows] = 0

    def view(self) -> "View":
        self._is_viewed = True
        return View(self.coder, self._columns, self._size)

    def live(self) -> tuple[Numbers, NDArray[np.void]]:
        """Return the numbers and codes that have not been removed."""
        kept = np.flatnonzero(np.isfinite(self._columns.offset[: self._size]))
        return self._columns.numbers[kept], self._columns.records(self.coder, kept)

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The codes as they are at one time; what is added or removed later is not seen."""

    coder: Coder
    _columns: Columns
    _size: int

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        return self._size * (self.coder.record.itemsize + 8 * (len(self._columns.signs) + 1))

    def has(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return [N], whether each object is there."""
        if not self._size:
            return np.zeros(len(numbers), dtype=bool)
        known = self._columns.numbers[: self._size]
        rows = np.searchsorted(known, numbers).clip(max=self._size - 1)
        there: NDArray[np.bool_] = (known[rows] == numbers) & np.isfinite(self._columns.offset[rows])
        return there

    def ranking(self, queries: Vectors, margin: float, among: Numbers | None = None) -> "Ranking":
        """Compare a query with all codes.

        Args:
            queries: [Q, D], the parts of the query.
            margin: > 0; so many standard errors an estimate may be wrong.
            among: sorted numbers of the only objects that count; None: all count.
        """
        rows = None if among is None else rows_of(self._columns.numbers[: self._size], among)
        return Ranking(
            [
                PartRanking(self.coder, self._columns, query, size=self._size, margin=margin, rows=rows)
                for query in queries
            ]
        )


class Ranking:
    """How near objects may be to a query of one or several parts.

    First the likeliest are compared exactly, elsewhere; then ``within`` the distance of the last one wanted
    there is whatever else could still be nearer.
    """

    def __init__(self, parts: Sequence[PartRanking]) -> None:
        self._parts = parts

    def likeliest(self, count: int, within: float = math.inf) -> Numbers:
        """Return the numbers of objects, sorted, that are probably the ``count`` nearest, and some more.

        Args:
            within: objects farther than this are not wanted.
        """
        return _union([part.likeliest(count, within) for part in self._parts])

    def within(self, distance: float) -> Numbers:
        """Return the numbers of all objects, sorted, that may be as near as this."""
        return _union([part.within(distance) for part in self._parts])

    def bounds(self, numbers: Numbers) -> NDArray[np.float64]:
        """Return the least and the largest distance that each object may have: [2, N].

        Args:
            numbers: [N], sorted; of what is not there, or was left out, both distances are infinite.
        """
        bounds: NDArray[np.float64] = np.min([part.bounds(numbers) for part in self._parts], axis=0)
        return bounds

    def multiply(self, numbers: Numbers, factors: NDArray[np.float64], offset: float) -> NDArray[np.bool_]:
        """Let objects stand at a multiple of the distance, once ``offset`` is added to it.

        Args:
            numbers: [N], sorted.
            factors: [N], >= 0.

        Returns:
            [N], which of them are there.
        """
        [are_there, *_] = [part.multiply(numbers, factors, offset) for part in self._parts]
        return are_there

    def leave_out(self, numbers: Numbers) -> None:
        """Let objects, given by their sorted numbers, be returned no more."""
        for part in self._parts:
            part.leave_out(numbers)


def _union(numbers: Sequence[Numbers]) -> Numbers:
    together = numbers[0] if len(numbers) == 1 else np.sort(np.concatenate(numbers))  # each is sorted
    return together[is_last(together)]
