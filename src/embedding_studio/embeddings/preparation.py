"""What vectors must be before anything is computed with them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.errors import InvalidVectorsError

Vectors = NDArray[np.float32]

SMALLEST_SQUARE = np.float32(1e-30)
"""Squared length below which a vector is zero for cosine: float32 can no longer tell its direction."""


def check_vectors(index: SearchIndexInfo, vectors: ArrayLike, what: str) -> Vectors:
    """Return the parts of one thing as a contiguous array; the very same array if it is one already.

    Args:
        vectors: [P, D] or, for a single part, [D].
        what: names the thing in the error, such as ``object 'o1'``.

    Returns:
        [P, D], P >= 1.

    Raises:
        InvalidVectorsError: not numbers, no part, another D than the collection's, not finite (in
            float32), or zero under cosine, where only the direction counts.
    """
    given = _floats(vectors, what)
    checked = np.ascontiguousarray(given.reshape(1, -1) if given.ndim == 1 else given)
    if given.ndim not in {1, 2} or checked.size == 0:
        raise InvalidVectorsError(
            f"the vectors of {what} have the shape {given.shape}; give [parts, dimensions], "
            "at least one of each"
        )
    D = checked.shape[1]
    if index.dimensions is not None and index.dimensions != D:
        raise InvalidVectorsError(
            f"the vectors of {what} have {D} dimensions, the collection has {index.dimensions}; "
            "embed with the collection's model, or make a new collection"
        )
    squares = squared_lengths(checked)
    if not squares.max() < np.inf:  # nor is NaN
        part = int(np.flatnonzero(~np.isfinite(squares))[0])
        raise InvalidVectorsError(
            f"part {part} of {what} is not finite, or longer than float32 can square; embed it again"
        )
    if index.metric_type is MetricType.COSINE and squares.min() < SMALLEST_SQUARE:
        part = int(np.flatnonzero(squares < SMALLEST_SQUARE)[0])
        raise InvalidVectorsError(
            f"part {part} of {what} is zero, which has no direction to compare by cosine; embed it again, "
            "or leave it out"
        )
    return checked


def _floats(vectors: ArrayLike, what: str) -> Vectors:
    if type(vectors) is np.ndarray and vectors.dtype == np.float32:
        given: Vectors = vectors
        return given
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            return np.asarray(vectors, dtype=np.float32)
    except OverflowError as error:
        raise InvalidVectorsError(f"the vectors of {what} hold a whole number that no float can") from error
    except (TypeError, ValueError) as error:
        raise InvalidVectorsError(
            f"the vectors of {what} are not an array of numbers, all parts of one length: {error}"
        ) from error


def squared_lengths(vectors: Vectors) -> Vectors:
    """Return [N] of [N, D]; infinite or NaN, without a warning, where a vector is no good."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.vecdot(vectors, vectors), dtype=np.float32)


def prepare_vectors(vectors: Vectors, metric_type: MetricType) -> Vectors:
    """Return vectors as the metric wants them: unit length for cosine, the same array otherwise.

    Args:
        vectors: [..., D].

    Inner products are *not* scaled to [0, 1] by the smallest and largest component of the batch, as is
    sometimes advised: subtracting a number from every component turns each vector towards (1, ..., 1),
    so the order of results changes, and the numbers depend on which vectors happen to share the batch.

    Raises:
        InvalidVectorsError: a vector is zero under cosine.
    """
    if metric_type is not MetricType.COSINE:
        return vectors
    # Dividing by the largest component first keeps squares of very small or large numbers in range.
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0)
    if not (largest > 0).all():
        raise InvalidVectorsError("a zero vector has no direction to compare by cosine; leave it out")
    scaled: Vectors = vectors / largest
    # As ``np.linalg.norm`` has it, which takes twice as long for one query.
    lengths = np.sqrt(np.add.reduce(scaled * scaled, axis=-1, keepdims=True))
    return np.asarray(scaled / lengths, dtype=np.float32)
