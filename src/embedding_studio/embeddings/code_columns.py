"""The codes of a collection by columns, as they lie in memory.

Axes: N parts of objects · D dimensions · W words of 64 bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.embeddings.coder import NUMBERS, WHOLE_DIMENSIONS, Coder

Vectors = NDArray[np.float32]
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Codes by columns, so that what is done to one column of all is done in one go.

    Attributes:
        content: [capacity, D] levels, int8, or whole vectors, float32.
        signs: [W, capacity] words of the levels' signs; W is 0 where whole vectors are kept.
        factor, error, offset, length: [capacity].
        numbers: [capacity], of the objects.
    """

    content: NDArray[np.int8] | Vectors
    signs: NDArray[np.uint64]
    factor: Floats
    error: Floats
    offset: Floats
    length: Floats
    numbers: Numbers

    @property
    def capacity(self) -> int:
        return len(self.numbers)

    @property
    def is_whole(self) -> bool:
        return not len(self.signs)

    @classmethod
    def empty(cls, coder: Coder, capacity: int) -> "Columns":
        D = coder.dimensions
        content = coder.record["content"]
        return cls(
            content=np.empty((capacity, D), dtype=content.base),
            signs=np.empty((0 if D <= WHOLE_DIMENSIONS else words_of(D), capacity), dtype=np.uint64),
            factor=np.empty(capacity, dtype=np.float32),
            error=np.empty(capacity, dtype=np.float32),
            offset=np.empty(capacity, dtype=np.float32),
            length=np.empty(capacity, dtype=np.float32),
            numbers=np.empty(capacity, dtype=np.int64),
        )

    def copied(self, coder: Coder, capacity: int, size: int) -> "Columns":
        """Return the first ``size`` in new arrays; whoever reads the old ones is not disturbed."""
        new = Columns.empty(coder, capacity)
        new.content[:size], new.signs[:, :size] = self.content[:size], self.signs[:, :size]
        for name in (*NUMBERS, "numbers"):
            getattr(new, name)[:size] = getattr(self, name)[:size]
        return new

    def write(self, rows: slice, numbers: Numbers, codes: NDArray[np.void]) -> None:
        self.content[rows] = codes["content"]
        if not self.is_whole:
            self.signs[:, rows] = packed(codes["content"] >= 0).T
        for name in NUMBERS:
            getattr(self, name)[rows] = codes[name]
        self.numbers[rows] = numbers

    def records(self, coder: Coder, rows: Numbers) -> NDArray[np.void]:
        codes = np.empty(len(rows), dtype=coder.record)
        for name in ("content", *NUMBERS):
            codes[name] = getattr(self, name)[rows]
        return codes


def words_of(D: int) -> int:
    return -(-D // 64)


def packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return [..., W] of [..., D]."""
    D = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], 64 * words_of(D)), dtype=bool)
    padded[..., :D] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


def rows_of(sorted_numbers: Numbers, wanted: Numbers) -> Numbers:
    """Return where sorted numbers, which may repeat, are one of those wanted, which are sorted."""
    starts = np.searchsorted(sorted_numbers, wanted, side="left")
    counts = np.searchsorted(sorted_numbers, wanted, side="right") - starts
    if (counts == 1).all():
        return starts
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(total)


def are_among(numbers: Numbers, ordered: Numbers) -> NDArray[np.bool_]:
    """Return which numbers are among ordered ones."""
    if not len(ordered):
        return np.zeros(len(numbers), dtype=bool)
    there: NDArray[np.bool_] = ordered.take(np.searchsorted(ordered, numbers), mode="clip") == numbers
    return there


def is_last(ordered: Numbers) -> NDArray[np.bool_]:
    """Return which of ordered numbers are not followed by an equal one."""
    is_last = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_last[:-1])
    return is_last
