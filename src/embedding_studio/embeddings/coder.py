"""What a code of a vector is: a byte for each component after a rotation, and four numbers.

From it an inner product with a query is estimated together with the standard error of that estimate. Vectors
of few components are kept as they are.

Axes: N parts of objects · D dimensions.

Source: [gao2024] Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound
for Approximate Nearest Neighbor Search", SIGMOD 2024.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricType
from embedding_studio.embeddings.preparation import prepare_vectors
from embedding_studio.embeddings.rotation import rotate, rotation_matrix

Vectors = NDArray[np.float32]
Floats = NDArray[np.float32]
Number = TypeVar("Number", float, NDArray[np.float64])

WHOLE_DIMENSIONS = 64
"""Up to so many dimensions a vector is its own code: few signs say little, and it is not much longer."""

LARGEST_LEVEL = 127
"""A component x is kept as the level floor(x / step), from -128 to 127, which stands for the middle of its
step; so its sign is that of the component."""
ENCODED_BLOCK = 128
"""Vectors encoded at a time: their intermediate results stay in the processor's cache."""
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
        for block in blocks(len(vectors), ENCODED_BLOCK):
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

    def prepared(self, query: Vectors) -> "Prepared":
        """Return a query [D] as the other methods take it."""
        vector = prepare_vectors(query[None], self.metric)[0]
        exact = vector.astype(np.float64)
        return Prepared(vector, float(exact @ exact), float(exact @ self.centre.astype(np.float64)))

    def score_at(self, distance: float, prepared: "Prepared") -> float:
        """Return a score that no object at this distance from a query, or nearer, fails to reach."""
        score, error = self.scores_at(distance, prepared)
        return score - error

    def scores_at(self, distances: Number, prepared: "Prepared") -> tuple[Number, Number]:
        """Return the scores of objects at distances from a query, and by how much rounding may be wrong."""
        if self.metric is MetricType.EUCLID:
            score, size = (prepared.square - distances**2) / 2, (prepared.square + distances**2) / 2
        else:
            score = size = 1 - distances if self.metric is MetricType.COSINE else -distances
        return score - prepared.at_centre, ROUNDING * (abs(size) + abs(prepared.at_centre))

    def distances_at(self, scores: Floats, prepared: "Prepared") -> NDArray[np.float64]:
        """Return the distances [...] from a query at which objects have these scores."""
        alike: NDArray[np.float64] = scores.astype(np.float64) + prepared.at_centre
        if self.metric is MetricType.EUCLID:
            alike = -np.sqrt(np.maximum(prepared.square - 2 * alike, 0))
        return (1.0 if self.metric is MetricType.COSINE else 0.0) - alike

    def question(self, prepared: "Prepared") -> Vectors:
        """Return [D] what codes are compared with for a query."""
        from_centre: Vectors = prepared.vector - self.centre
        if self.dimensions <= WHOLE_DIMENSIONS:
            return from_centre
        if self.dimensions <= LARGEST_MATRIX:
            return np.asarray(from_centre @ rotation_matrix(self.dimensions))
        rotated: Vectors = rotate(from_centre[None])[0]
        return rotated


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A query as a coder takes it.

    Attributes:
        vector: [D].
        square, at_centre: its inner products with itself and with the centre.
    """

    vector: Vectors
    square: float
    at_centre: float


def blocks(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
