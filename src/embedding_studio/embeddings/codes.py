"""Short codes of vectors, from which it can be said which objects may be among the nearest.

A code keeps the signs of a vector's components after a rotation, one bit each, and four numbers. From it an
inner product with a query is estimated together with the standard error of that estimate, so the candidates
are not "the first so many" but all that the error does not rule out; their exact distances are computed
elsewhere. All codes are compared, so neither the shape of a catalogue (several subjects, far clusters) nor a
filter can hide an object, as they do in a graph of neighbours. Vectors of few components are kept as they
are.

Axes: N parts of objects · D dimensions · W words of 64 bits.

Source: [gao2024] Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound
    for
Approximate Nearest Neighbor Search", SIGMOD 2024; the rotation by signs and Hadamard matrices is theirs too.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricType
from embedding_studio.embeddings.preparation import prepare_vectors

Vectors = NDArray[np.float32]
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

WHOLE_DIMENSIONS = 64
"""Up to so many dimensions a vector is its own code: few signs say little, and it is not much longer."""

ROUNDS = 4
UNPACKED = 1024
"""Up to so many codes it is faster to unpack their bits."""
BLOCK = 16_384
"""Codes compared at a time: their intermediate results stay in the processor's cache."""

SMALLEST_BLOCK = 64
STRETCHES = 64
NUMBERS = ("factor", "error", "offset", "length")
"""What a code holds beside the signs."""
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
        content = ("<f4", (D,)) if D <= WHOLE_DIMENSIONS else ("<u8", (_words(D),))
        return np.dtype([("content", *content), *((name, "<f4") for name in NUMBERS)])

    def encode(self, vectors: Vectors) -> NDArray[np.void]:
        """Return the codes of [N, D], N records.

        The *score* of a part, larger where it is nearer, is ``<x - centre, q - centre>`` plus ``offset``: but
        for what is the same for all parts it is the inner product for cosine and dot, and for euclid it falls
        as the distance rises.
        """
        N, D = vectors.shape
        prepared = prepare_vectors(vectors, self.metric).astype(np.float64)
        from_centre = prepared - self.centre
        squares = np.vecdot(from_centre, from_centre)
        codes = np.zeros(N, dtype=self.record)
        codes["length"] = np.sqrt(squares)
        codes["offset"] = from_centre @ self.centre.astype(np.float64)
        if self.metric is MetricType.EUCLID:
            codes["offset"] -= (np.vecdot(prepared, prepared) / 2).astype(np.float32)
        if D <= WHOLE_DIMENSIONS:
            codes["content"] = from_centre
            codes["factor"] = 1
            codes["error"] = ROUNDING * np.sqrt(squares)
            return codes
        rotated = rotate(from_centre.astype(np.float32))
        lengths = np.abs(rotated).sum(axis=1, dtype=np.float64)
        bits = np.zeros((N, 64 * _words(D)), dtype=bool)
        bits[:, :D] = rotated >= 0
        codes["content"] = np.packbits(bits, axis=1, bitorder="little").view("<u8")
        # [gao2024], eq. 12 and theorem 3.2: <r, y> is estimated by factor <signs of r, y>, and the standard
        # error is |y| times the second number, both after the rotation.
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = np.where(lengths > 0, squares / lengths, 0)
            missed = 1 - np.where(squares > 0, lengths**2 / (D * squares), 1)
        codes["factor"] = factors
        codes["error"] = factors * np.sqrt(np.clip(missed, 0, 1) * D / (D - 1))
        return codes

    def question(self, query: Vectors) -> Vectors:
        """Return [D] what codes are compared with for a query [D]."""
        prepared: Vectors = prepare_vectors(query[None], self.metric)[0] - self.centre
        return prepared if self.dimensions <= WHOLE_DIMENSIONS else rotate(prepared[None])[0]


class Codes:
    """The codes of a collection.

    One thread changes them, under a lock of the caller's; any number read a ``View``.
    """

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._size = 0
        self._columns = _Columns.empty(coder, SMALLEST_BLOCK)

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
        rows = _rows_of(self._columns.numbers[: self._size], np.sort(numbers))
        self._columns.offset[rows] = -np.inf
        self._columns.error[rows] = 0

    def view(self) -> "View":
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
        signs: [W, capacity] words; W is 0 where whole vectors are kept.
        whole: [capacity, D] vectors; D is 0 where signs are kept.
        factor, error, offset, length: [capacity].
        numbers: [capacity], of the objects.
    """

    signs: NDArray[np.uint64]
    whole: Vectors
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
        return bool(self.whole.shape[1])

    @classmethod
    def empty(cls, coder: Coder, capacity: int) -> "_Columns":
        D = coder.dimensions
        W, D = (0, D) if D <= WHOLE_DIMENSIONS else (_words(D), 0)
        return cls(
            signs=np.empty((W, capacity), dtype=np.uint64),
            whole=np.empty((capacity, D), dtype=np.float32),
            factor=np.empty(capacity, dtype=np.float32),
            error=np.empty(capacity, dtype=np.float32),
            offset=np.empty(capacity, dtype=np.float32),
            length=np.empty(capacity, dtype=np.float32),
            numbers=np.empty(capacity, dtype=np.int64),
        )

    def copied(self, coder: Coder, capacity: int, size: int) -> "_Columns":
        """Return the first ``size`` in new arrays; whoever reads the old ones is not disturbed."""
        new = _Columns.empty(coder, capacity)
        new.write(slice(size), self.numbers[:size], self.records(coder, np.arange(size)))
        return new

    def write(self, rows: slice, numbers: Numbers, codes: NDArray[np.void]) -> None:
        if self.is_whole:
            self.whole[rows] = codes["content"]
        else:
            self.signs[:, rows] = codes["content"].T
        for name in NUMBERS:
            getattr(self, name)[rows] = codes[name]
        self.numbers[rows] = numbers

    def records(self, coder: Coder, rows: Numbers) -> NDArray[np.void]:
        codes = np.empty(len(rows), dtype=coder.record)
        codes["content"] = self.whole[rows] if self.is_whole else self.signs[:, rows].T
        for name in NUMBERS:
            codes[name] = getattr(self, name)[rows]
        return codes


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The codes as they are at one time; what is added later is not seen."""

    coder: Coder
    _columns: _Columns
    _size: int

    def candidates(
        self, queries: Vectors, count: int, margin: float, *, among: Numbers | None = None
    ) -> Numbers:
        """Return the numbers of all objects that may be among the ``count`` nearest to a query, sorted.

        Args:
            queries: [Q, D], the parts of the query.
            margin: > 0, in standard errors: an object is ruled out where its estimate plus so many of them
                lies below the ``count``-th largest estimate less so many.
            among: sorted numbers of the only objects that count; None: all count.
        """
        found = [self._candidates_of_part(query, count, margin, among) for query in queries]
        numbers = np.sort(np.concatenate(found))
        return numbers[_is_last(numbers)]

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        columns = self._columns
        return self._size * (self.coder.record.itemsize + columns.numbers.itemsize)

    def _candidates_of_part(
        self, query: Vectors, count: int, margin: float, among: Numbers | None
    ) -> Numbers:
        question = self.coder.question(query)
        rows = None if among is None else _rows_of(self._columns.numbers[: self._size], among)
        if not self._columns.is_whole and (self._size if rows is None else len(rows)) > UNPACKED:
            rows = self._survivors(question, count, margin, rows)
        elif rows is None:
            rows = np.arange(self._size)
        estimates, errors = self._estimates(question, rows)
        numbers = self._columns.numbers[rows]
        likely = _likely(estimates, count)
        bound = _count_th((estimates - margin * errors)[likely], numbers[likely], count)
        kept = np.flatnonzero((estimates + margin * errors >= bound) & np.isfinite(estimates))
        return numbers[kept]

    def _survivors(self, question: Vectors, count: int, margin: float, rows: Numbers | None) -> Numbers:
        """Return rows that a coarser estimate, by the signs of the query alone, does not rule out.

        The angle between two vectors is pi times the share p of rotated signs in which they differ, and the
        standard error of that share is sqrt(p (1 - p) / D); [charikar2002], "Similarity estimation techniques
        from rounding algorithms".
        """
        columns, D = self._columns, self.coder.dimensions
        size = self._size if rows is None else len(rows)
        length = float(np.linalg.norm(question))
        signs = _packed_signs(question)
        shares = np.arange(D + 1) / D
        inside = np.clip(shares, 0.5 / D, 1 - 0.5 / D)
        cosines = (length * np.cos(np.pi * shares)).astype(np.float32)
        doubts = (
            margin * length * np.pi * np.sin(np.pi * inside) * np.sqrt(inside * (1 - inside) / D)
        ).astype(np.float32)
        differing = np.empty(size, dtype=np.uint16)
        estimates = np.empty(size, dtype=np.float32)
        for block in _blocks(size):
            chosen = block if rows is None else rows[block]
            differing[block] = _differing(columns.signs, chosen, signs)
            part = estimates[block]
            np.take(cosines, differing[block], out=part, mode="clip")
            part *= columns.length[chosen]
            part += columns.offset[chosen]

        def doubt_of(places: Numbers) -> Floats:
            of = places if rows is None else rows[places]
            return np.asarray(doubts[differing[places]] * columns.length[of])

        likely = _likely(estimates, count)
        numbers = columns.numbers[likely if rows is None else rows[likely]]
        bound = _count_th(estimates[likely] - doubt_of(likely), numbers, count)
        longest = float(columns.length[:size].max() if rows is None else columns.length[rows].max())
        kept = np.flatnonzero(estimates >= bound - float(doubts.max()) * longest)
        kept = kept[estimates[kept] + doubt_of(kept) >= bound]
        return kept if rows is None else rows[kept]

    def _estimates(self, question: Vectors, rows: Numbers) -> tuple[Floats, Floats]:
        """Return the scores of rows and the standard errors of these: [N], [N]."""
        columns = self._columns
        length = np.float32(np.linalg.norm(question))
        if columns.is_whole:
            everything = len(rows) == self._size
            whole = columns.whole[: self._size] if everything else columns.whole[rows]
            products: Floats = whole @ question
        else:
            products = _products(columns.signs, rows, question)
        return columns.factor[rows] * products + columns.offset[rows], columns.error[rows] * length


def rotate(vectors: Vectors) -> Vectors:
    """Return [N, D] after a fixed rotation that leaves no component more important than others.

    Signs are flipped and a Hadamard matrix is applied to as many components as a power of two covers, in turn
    from the front and from the back.
    """
    D = vectors.shape[1]
    covered = 1 << (D.bit_length() - 1)
    left, right, signs = _rotation(D)
    rotated = vectors.copy()
    for k in range(ROUNDS):
        rotated *= signs[k]
        part = rotated[:, :covered] if k % 2 == 0 else rotated[:, D - covered :]
        square = part.reshape(-1, len(left), len(right))
        part[:] = (left @ square @ right).reshape(-1, covered)
    return rotated


@lru_cache(maxsize=16)
def _rotation(D: int) -> tuple[Floats, Floats, Floats]:
    """Return two Hadamard matrices whose Kronecker product is the one applied, and the signs [ROUNDS, D]."""
    power = D.bit_length() - 1
    digest = hashlib.shake_256(f"rotation of {D} dimensions".encode()).digest(ROUNDS * -(-D // 8))
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8).reshape(ROUNDS, -1), axis=1)[:, :D]
    return _hadamard(power // 2), _hadamard(power - power // 2), 1 - 2 * bits.astype(np.float32)


def _hadamard(power: int) -> Floats:
    """Return the matrix of 2 ** power rows whose columns have unit length."""
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / math.sqrt(2)
    return matrix.astype(np.float32)


def _words(D: int) -> int:
    return -(-D // 64)


def _packed_signs(question: Vectors) -> NDArray[np.uint64]:
    return _packed(question >= 0)


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


def _products(codes: NDArray[np.uint64], rows: Numbers, question: Vectors) -> Floats:
    """Return the inner products [N] of the signs of codes with a query."""
    W, N = len(codes), len(rows)
    padded = np.zeros(64 * W, dtype=np.float32)
    padded[: len(question)] = question
    if N <= UNPACKED:
        bits = np.unpackbits(_bytes(codes[:, rows].T), axis=-1, bitorder="little").reshape(N, 64 * W)
        return np.asarray(2 * (bits.astype(np.float32) @ padded) - padded.sum())
    sums = padded.reshape(8 * W, 8) @ _SIGNS  # what each byte of a code adds, for all that it can be
    products = np.zeros(N, dtype=np.float32)
    for block in _blocks(N):
        part = products[block]
        summand = np.empty_like(part)
        for word, sums_of_word in zip(codes[:, rows[block]], sums.reshape(W, 8, 256), strict=True):
            for byte, sums_of_byte in zip(np.ascontiguousarray(_bytes(word).T), sums_of_word, strict=True):
                np.take(sums_of_byte, byte, out=summand, mode="clip")
                part += summand
    return products


def _bytes(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return [..., N, 8] of [..., N], the byte with the first signs first."""
    return np.ascontiguousarray(words, dtype="<u8")[..., None].view(np.uint8)


_SIGNS = (2 * np.unpackbits(np.arange(256, dtype=np.uint8)[None], axis=0, bitorder="little") - 1.0).astype(
    np.float32
)
"""[8, 256], the signs that a byte stands for."""


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


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
