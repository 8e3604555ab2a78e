"""Short codes of vectors, from which it can be said which objects may be among the nearest.

A code keeps a byte for each component of a vector after a rotation, and four numbers. From it an inner
product with a query is estimated together with the standard error of that estimate, so the candidates are
not "the first so many" but all that the error does not rule out; their exact distances are computed
elsewhere. All codes are compared, first by their signs alone, so neither the shape of a catalogue (several
subjects, far clusters) nor a filter can hide an object, as they do in a graph of neighbours. Vectors of few
components are kept as they are.

Axes: N parts of objects · D dimensions · W words of 64 bits.

Source: [gao2024] Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound
for Approximate Nearest Neighbor Search", SIGMOD 2024; rotating by signs and Hadamard matrices is theirs too.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricType
from embedding_studio.embeddings.preparation import prepare_vectors

Vectors = NDArray[np.float32]
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

WHOLE_DIMENSIONS = 64
"""Up to so many dimensions a vector is its own code: few signs say little, and it is not much longer."""

LARGEST_LEVEL = 127
"""A component x is kept as the level floor(x / step), from -128 to 127, which stands for the middle of its
step; so its sign is that of the component."""

ROUNDS = 8
COARSE = 2048
"""From so many codes on, signs are compared before all else."""
BLOCK = 16_384
"""Codes compared at a time: their intermediate results stay in the processor's cache."""

FINE_BLOCK, ENCODED_BLOCK = 256, 128
"""The same of those compared finely, and of vectors that are encoded."""
SMALLEST_BLOCK = 64
SHARED_AMONG_THREADS, FINE_SHARED_AMONG_THREADS = 200_000, 20_000
"""From so many codes on all processors compare them; numpy lets go of Python's lock meanwhile."""
STRETCHES = 64
FIRST = 16
"""So many times the objects wanted are first estimated finely, to learn what others must reach."""
CUT, WIDEST = 0.15, 16
"""Where more than this share of what is found needs more than half the margin of its signs, that is doubled,
up to so many times."""
LARGEST_MATRIX = 1024
"""Up to so many dimensions a query is rotated by a matrix, for one vector needs less calls so."""
NUMBERS = ("factor", "error", "offset", "length")
"""What a code holds beside the levels."""
ROUNDING = 4e-6
"""Relative error of an inner product in float32, which is all the error that a whole vector has."""


@dataclass(frozen=True, slots=True)
class Coder:
    """Makes codes of vectors; two with the same arguments make the same codes, on every machine.

    Attributes:
        centre: [D] float32, a point in the middle of the vectors. Any will do; the nearer it is, the smaller
            the error.
    """

    metric: MetricType
    centre: Vectors

    @property
    def dimensions(self) -> int:
        return len(self.centre)

    @property
    def record(self) -> np.dtype[np.void]:
        """How the code of one part is stored: little-endian, without gaps."""
        D = self.dimensions
        kind = "<f4" if D <= WHOLE_DIMENSIONS else "i1"
        return np.dtype([("content", kind, (D,)), *((name, "<f4") for name in NUMBERS)])

    def encode(self, vectors: Vectors) -> NDArray[np.void]:
        """Return the codes of [N, D], N records.

        The *score* of a part, larger where it is nearer, is ``<x - centre, q - centre>`` plus ``offset``: but
        for what is the same for all parts it is the inner product for cosine and dot, and for euclid it falls
        as the distance rises.
        """
        codes = np.zeros(len(vectors), dtype=self.record)
        for block in _blocks(len(vectors), ENCODED_BLOCK):
            self._encode(vectors[block], codes[block])
        return codes

    def _encode(self, vectors: Vectors, codes: NDArray[np.void]) -> None:
        """Fill the codes of [N, D], which are 0."""
        D = self.dimensions
        prepared = prepare_vectors(vectors, self.metric).astype(np.float64)
        from_centre = prepared - self.centre
        squares = np.vecdot(from_centre, from_centre)
        codes["length"] = np.sqrt(squares)
        codes["offset"] = from_centre @ self.centre.astype(np.float64)
        if self.metric is MetricType.EUCLID:
            codes["offset"] -= (np.vecdot(prepared, prepared) / 2).astype(np.float32)
        if D <= WHOLE_DIMENSIONS:
            codes["content"] = from_centre
            codes["factor"] = 1
            codes["error"] = ROUNDING * np.sqrt(squares)
            return
        rotated = rotate(from_centre.astype(np.float32))
        steps = np.abs(rotated).max(axis=1, keepdims=True) / LARGEST_LEVEL
        levels = np.floor(rotated / np.where(steps > 0, steps, 1)).clip(-LARGEST_LEVEL - 1, LARGEST_LEVEL)
        codes["content"] = levels
        middles = (levels + np.float32(0.5)).astype(np.float64)
        products = np.vecdot(middles, rotated.astype(np.float64))
        # [gao2024], eq. 12 and theorem 3.2: <r, y> is estimated by factor <middles of r, y>, and the standard
        # error is |y| times the second number, both after the rotation.
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = np.where(products > 0, squares / products, 0)
            missed = np.vecdot(middles, middles) - np.where(squares > 0, products**2 / squares, np.inf)
        codes["factor"] = factors
        codes["error"] = factors * np.sqrt(np.clip(missed, 0, None) / (D - 1)) + ROUNDING * np.sqrt(squares)

    def score_at(self, distance: float, query: Vectors) -> float:
        """Return a score that no object at this distance from a query [D], or nearer, fails to reach."""
        [prepared] = prepare_vectors(query[None], self.metric).astype(np.float64)
        if self.metric is MetricType.EUCLID:
            square = float(prepared @ prepared)
            score, size = (square - distance**2) / 2, (square + distance**2) / 2
        else:
            score = size = 1 - distance if self.metric is MetricType.COSINE else -distance
        at_centre = float(prepared @ self.centre.astype(np.float64))
        return score - at_centre - ROUNDING * (abs(size) + abs(at_centre))

    def distances_at(self, scores: Floats, query: Vectors) -> NDArray[np.float64]:
        """Return the distances [N] from a query [D] at which objects have these scores."""
        [prepared] = prepare_vectors(query[None], self.metric).astype(np.float64)
        alike: NDArray[np.float64] = scores + prepared @ self.centre.astype(np.float64)
        if self.metric is MetricType.EUCLID:
            alike = -np.sqrt(np.maximum(prepared @ prepared - 2 * alike, 0))
        return (1.0 if self.metric is MetricType.COSINE else 0.0) - alike

    def question(self, query: Vectors) -> Vectors:
        """Return [D] what codes are compared with for a query [D]."""
        prepared: Vectors = prepare_vectors(query[None], self.metric)[0] - self.centre
        if self.dimensions <= WHOLE_DIMENSIONS:
            return prepared
        if self.dimensions <= LARGEST_MATRIX:
            return np.asarray(prepared @ _rotation_matrix(self.dimensions))
        rotated: Vectors = rotate(prepared[None])[0]
        return rotated


class Codes:
    """The codes of a collection.

    One thread changes them, under a lock of the caller's; any number read a ``View``.
    """

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._size = 0
        self._columns = _Columns.empty(coder, SMALLEST_BLOCK)
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
        rows = _rows_of(self._columns.numbers[: self._size], np.unique(numbers))
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
class _Columns:
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
    def empty(cls, coder: Coder, capacity: int) -> "_Columns":
        D = coder.dimensions
        content = coder.record["content"]
        return cls(
            content=np.empty((capacity, D), dtype=content.base),
            signs=np.empty((0 if D <= WHOLE_DIMENSIONS else _words(D), capacity), dtype=np.uint64),
            factor=np.empty(capacity, dtype=np.float32),
            error=np.empty(capacity, dtype=np.float32),
            offset=np.empty(capacity, dtype=np.float32),
            length=np.empty(capacity, dtype=np.float32),
            numbers=np.empty(capacity, dtype=np.int64),
        )

    def copied(self, coder: Coder, capacity: int, size: int) -> "_Columns":
        """Return the first ``size`` in new arrays; whoever reads the old ones is not disturbed."""
        new = _Columns.empty(coder, capacity)
        new.content[:size], new.signs[:, :size] = self.content[:size], self.signs[:, :size]
        for name in (*NUMBERS, "numbers"):
            getattr(new, name)[:size] = getattr(self, name)[:size]
        return new

    def write(self, rows: slice, numbers: Numbers, codes: NDArray[np.void]) -> None:
        self.content[rows] = codes["content"]
        if not self.is_whole:
            self.signs[:, rows] = _packed(codes["content"] >= 0).T
        for name in NUMBERS:
            getattr(self, name)[rows] = codes[name]
        self.numbers[rows] = numbers

    def records(self, coder: Coder, rows: Numbers) -> NDArray[np.void]:
        codes = np.empty(len(rows), dtype=coder.record)
        for name in ("content", *NUMBERS):
            codes[name] = getattr(self, name)[rows]
        return codes


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The codes as they are at one time; what is added or removed later is not seen."""

    coder: Coder
    _columns: _Columns
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
        rows = None if among is None else _rows_of(self._columns.numbers[: self._size], among)
        return Ranking(
            [
                _Ranking(self.coder, self._columns, query, size=self._size, margin=margin, rows=rows)
                for query in queries
            ]
        )


class Ranking:
    """How near objects may be to a query of one or several parts.

    First the likeliest are compared exactly, elsewhere; then ``within`` the distance of the last one wanted
    there is whatever else could still be nearer.
    """

    def __init__(self, parts: "Sequence[_Ranking]") -> None:
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
            numbers: [N], sorted; of what is not there both distances are infinite.
        """
        bounds: NDArray[np.float64] = np.min([part.bounds(numbers) for part in self._parts], axis=0)
        return bounds

    def leave_out(self, numbers: Numbers) -> None:
        """Let objects, given by their sorted numbers, be returned no more."""
        for part in self._parts:
            part.leave_out(numbers)


class _Ranking:
    """How near parts of objects may be to one part of a query.

    What is estimated is a score (``Coder.encode``): how high it may be by signs alone, of all, and finer
    of those that this does not rule out.
    """

    def __init__(
        self,
        coder: Coder,
        columns: _Columns,
        query: Vectors,
        *,
        size: int,
        margin: float,
        rows: Numbers | None,
    ) -> None:
        self._coder = coder
        self._query = query
        self._question = coder.question(query)
        self._length = float(np.linalg.norm(self._question))
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
        self._reached: tuple[float, Numbers] | None = None
        """A score, and where it may be reached by signs."""
        if self._is_coarse:
            self._compare_signs()

    def likeliest(self, count: int, within: float) -> Numbers:
        bound = least = -math.inf if within == math.inf else self._coder.score_at(within, self._query)
        if self._is_coarse and bound == -math.inf:
            likely = _likely(self._highest, count)
            if len(likely) > FIRST * count:
                last = len(likely) - FIRST * count
                likely = likely[np.argpartition(self._highest.take(likely), last)[last:]]
            bound = self._reached_by(count, likely)
        while True:
            places = self._above(bound)
            estimates, errors = self._finely(places)
            reached = max(self._reached_by(count, places[_likely(estimates, count)]), least)
            found = places[(estimates + self._margin * errors >= reached) & np.isfinite(estimates)]
            if not self._is_cut(found, reached):
                return self._numbers(found)
            self._widen()

    def within(self, distance: float) -> Numbers:
        score = self._coder.score_at(distance, self._query)
        places = self._above(score)
        estimates, errors = self._finely(places)
        return self._numbers(places[estimates + self._margin * errors >= score])

    def bounds(self, numbers: Numbers) -> NDArray[np.float64]:
        places = _rows_of(self._columns.numbers[self._chosen], numbers)
        estimates, errors = self._estimates(places)
        rows = np.searchsorted(numbers, self._numbers(places))
        scores = np.full((2, len(numbers)), -np.inf, dtype=np.float32)
        np.maximum.at(scores[0], rows, estimates + self._margin * errors)
        np.maximum.at(scores[1], rows, estimates - self._margin * errors)
        return self._coder.distances_at(scores, self._query)

    def leave_out(self, numbers: Numbers) -> None:
        places = _rows_of(self._columns.numbers[self._chosen], numbers)
        if self._is_coarse:
            self._highest[places] = -np.inf
            self._left_out = places
        self._fine[places], self._fine_errors[places] = -np.inf, 0
        self._is_fine[places] = True
        self._reached = None

    def _numbers(self, places: Numbers) -> Numbers:
        return self._columns.numbers[places if self._rows is None else self._rows[places]]

    def _compare_signs(self) -> None:
        """Bound all by their signs.

        The angle between two vectors is pi times the share p of rotated signs in which they differ, and the
        standard error of that share is sqrt(p (1 - p) / D); [charikar2002], "Similarity estimation techniques
        from rounding algorithms".
        """
        signs = _packed(self._question >= 0)
        self._differing = np.empty(self._size, dtype=np.uint16)
        self._highest = np.empty(self._size, dtype=np.float32)
        self._left_out = np.empty(0, dtype=np.int64)
        self._bound_all(signs)

    def _bound_all(self, signs: NDArray[np.uint64] | None = None) -> None:
        """Compute the highest score that each may have by its signs.

        Args:
            signs: of the query, which are compared first; None: they were.
        """
        columns, alike = self._columns, self._alike()[1]

        def compare(block: slice) -> None:
            chosen = block if self._rows is None else self._rows[block]
            if signs is not None:
                self._differing[block] = _differing(columns.signs, chosen, signs)
            part = self._highest[block]
            np.take(alike, self._differing[block], out=part, mode="clip")
            part *= columns.length[chosen]
            part += columns.offset[chosen]

        in_turn = map if self._size < SHARED_AMONG_THREADS else _threads(os.getpid()).map
        for _ in in_turn(compare, _blocks(self._size)):
            pass
        self._highest[self._left_out] = -np.inf

    def _alike(self) -> Floats:
        """Return the scores of a vector of unit length by the signs in which it differs (``_cosines``)."""
        cosines = _cosines(self._coder.dimensions, self._widened * self._margin)
        return np.asarray(cosines * np.float32(self._length))

    def _is_cut(self, places: Numbers, score: float) -> bool:
        """Return whether so much of what was found stands far below a score by its signs that more must.

        Then signs are wrong about all of it in the same way, as they may be about objects that are alike.
        """
        if not self._is_coarse or self._widened >= WIDEST:
            return False
        rows = places if self._rows is None else self._rows[places]
        alike = self._alike().mean(axis=0).take(self._differing.take(places))
        is_low = alike * self._columns.length.take(rows) + self._columns.offset.take(rows) < score
        return bool(np.count_nonzero(is_low) > CUT * len(places))

    def _widen(self) -> None:
        self._widened *= 2
        self._reached = None
        self._bound_all()

    def _reached_by(self, count: int, places: Numbers) -> float:
        """Return a score that ``count`` different objects probably reach, of those at some places."""
        estimates, errors = self._finely(places)
        return _count_th(estimates - self._margin * errors, self._numbers(places), count)

    def _above(self, score: float) -> Numbers:
        """Return where signs, if they were compared, do not rule out that a score is reached."""
        if not self._is_coarse:
            return np.arange(self._size)
        if self._reached is None or score < self._reached[0]:
            self._reached = score, np.flatnonzero(self._highest >= score)
        return self._reached[1]

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
            return whole @ self._question + columns.offset[rows], columns.error[rows] * self._length
        products = columns.factor.take(rows) * _products(columns.content, rows, self._question)
        errors = columns.error.take(rows)
        lengths = np.maximum(columns.length.take(rows), _TINY)
        cosines = np.minimum(np.abs(products) / np.maximum(lengths * np.float32(self._length), _TINY), 1)
        across = np.minimum(1 - cosines**2 + (errors / lengths) ** 2, 1)
        return products + columns.offset.take(rows), errors * np.float32(self._length) * np.sqrt(across)


def rotate(vectors: Vectors) -> Vectors:
    """Return [N, D] after a fixed rotation that leaves no component more important than others.

    Signs are flipped, a Hadamard matrix is applied to as many components as a power of two covers, in turn
    from the front and from the back, and the two halves are mixed, which what is covered twice alone does
    not do where it is little.
    """
    D = vectors.shape[1]
    covered = 1 << (D.bit_length() - 1)
    left, right, signs = _rotation(D)
    half, even = D // 2, np.float32(math.sqrt(0.5))
    rotated = vectors.copy()
    for k in range(ROUNDS):
        rotated *= signs[k]
        part = rotated[:, :covered] if k % 2 == 0 else rotated[:, D - covered :]
        square = part.reshape(-1, len(left), len(right))
        part[:] = (left @ square @ right).reshape(-1, covered)
        front, back = rotated[:, :half] * even, rotated[:, D - half :] * even
        rotated[:, :half], rotated[:, D - half :] = front + back, front - back
    return rotated


@lru_cache(maxsize=16)
def _rotation(D: int) -> tuple[Floats, Floats, Floats]:
    """Return two Hadamard matrices whose Kronecker product is the one applied, and the signs [ROUNDS, D]."""
    power = D.bit_length() - 1
    digest = hashlib.shake_256(f"rotation of {D} dimensions".encode()).digest(ROUNDS * -(-D // 8))
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8).reshape(ROUNDS, -1), axis=1)[:, :D]
    return _hadamard(power // 2), _hadamard(power - power // 2), 1 - 2 * bits.astype(np.float32)


@lru_cache(maxsize=16)
def _rotation_matrix(D: int) -> Vectors:
    return rotate(np.eye(D, dtype=np.float32))


def _hadamard(power: int) -> Floats:
    """Return the matrix of 2 ** power rows whose columns have unit length."""
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / math.sqrt(2)
    return matrix.astype(np.float32)


@lru_cache(maxsize=64)
def _cosines(D: int, margin: float) -> Floats:
    """Return the cosine of two vectors by the signs in which they differ, [2, D + 1]: estimated, and at most.

    It is not linear in the margin: where nearly all signs differ, a cosine of -1 changes with the square.
    """
    shares = np.arange(D + 1) / D
    inside = np.clip(shares, 1 / D, 1 - 1 / D)  # also where none or all differ, some error is possible
    least = np.maximum(shares - margin * np.sqrt(inside * (1 - inside) / D), 0)
    return np.cos(np.pi * np.stack([shares, least])).astype(np.float32)


def _words(D: int) -> int:
    return -(-D // 64)


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return [..., W] of [..., D]."""
    D = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], 64 * _words(D)), dtype=bool)
    padded[..., :D] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)


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
        for block in _blocks(len(part), FINE_BLOCK):
            np.dot(levels.take(chosen[block], axis=0).astype(np.float32), question, out=part[block])

    in_turn = map if len(rows) < FINE_SHARED_AMONG_THREADS else _threads(os.getpid()).map
    for _ in in_turn(multiply, _blocks(len(rows))):
        pass
    products += question.sum() / 2
    return products


_TINY = np.float32(1e-30)


@lru_cache(maxsize=1)
def _threads(process_id: int) -> ThreadPoolExecutor:  # noqa: ARG001, a fork has none of its parent's threads
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="codes")


def _blocks(size: int, step: int = BLOCK) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _union(numbers: Sequence[Numbers]) -> Numbers:
    together = np.sort(np.concatenate(numbers))
    return together[_is_last(together)]


def _rows_of(sorted_numbers: Numbers, wanted: Numbers) -> Numbers:
    """Return where sorted numbers, which may repeat, are one of those wanted, which are sorted."""
    starts = np.searchsorted(sorted_numbers, wanted, side="left")
    counts = np.searchsorted(sorted_numbers, wanted, side="right") - starts
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(total)


def _likely(estimates: Floats, count: int) -> Numbers:
    """Return the best row of each stretch, among which most of the ``count`` best of all are."""
    stretches = STRETCHES * count
    length = len(estimates) // stretches
    if length < 2:
        return np.arange(len(estimates))
    covered = stretches * length
    best = estimates[:covered].reshape(stretches, length).argmax(axis=1) + np.arange(0, covered, length)
    return np.concatenate([best, np.arange(covered, len(estimates))])


def _count_th(values: Floats, numbers: Numbers, count: int) -> float:
    """Return what ``count`` different objects reach, each by its largest value; -inf if they are fewer."""
    most = 4 * count
    if len(values) > most:
        largest = np.argpartition(values, len(values) - most)[len(values) - most :]
        best = _best_of_objects(values[largest], numbers[largest])
        if len(best) >= count:
            return float(np.partition(best, len(best) - count)[len(best) - count])
    best = _best_of_objects(values, numbers)
    return (
        float(np.partition(best, len(best) - count)[len(best) - count]) if len(best) >= count else -math.inf
    )


def _best_of_objects(values: Floats, numbers: Numbers) -> Floats:
    order = np.lexsort((values, numbers))
    return np.asarray(values[order][_is_last(numbers[order])])


def _is_last(ordered: Numbers) -> NDArray[np.bool_]:
    """Return which of ordered numbers are not followed by an equal one."""
    is_last = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_last[:-1])
    return is_last
