"""Vectors that a catalogue file brings, in a column or a .npy file. Axes: N rows · P parts · D dimensions."""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MAX_DIMENSIONS, MetricType, SearchIndexInfo
from embedding_studio.embeddings.preparation import (
    SMALLEST_SQUARE,
    Vectors,
    check_vectors,
    squared_lengths,
)
from embedding_studio.errors import InvalidDataError
from embedding_studio.files import readable


class FileVectors:
    """What is known of the vectors of a file after all were looked at, whatever the metric.

    Attributes:
        dimensions: D; None: no vector was seen.
    """

    def __init__(self) -> None:
        self.dimensions: int | None = None
        self._first: tuple[Any, str] | None = None
        self._first_zero: tuple[Any, str] | None = None

    def see(self, given: Any, where: str) -> None:
        """Look at the vectors of one row.

        Raises:
            InvalidDataError: they are no vectors.
            InvalidVectorsError: they do not fit those before, or are not finite.
        """
        parts = self.parts(given, where)
        if self.dimensions is None:
            if (D := parts.shape[1]) > MAX_DIMENSIONS:
                raise InvalidDataError(f"{where}: {D} dimensions; at most {MAX_DIMENSIONS} can be indexed")
            self.dimensions, self._first = D, (parts, where)
        if self._first_zero is None and (squared_lengths(parts) < SMALLEST_SQUARE).any():
            self._first_zero = parts, where

    def parts(self, given: Any, where: str) -> Vectors:
        """Return [P, D] of what a row brings."""
        index = SearchIndexInfo(metric_type=MetricType.EUCLID, dimensions=self.dimensions)
        try:
            return check_vectors(index, _numbers(given, where), where)
        except OverflowError as error:
            raise InvalidDataError(f"{where}: a number is larger than a float can be") from error

    def check_fit(self, index: SearchIndexInfo) -> None:
        """Return if they can live in such a collection.

        Raises:
            InvalidVectorsError: they cannot.
        """
        for seen in (self._first, self._first_zero):
            if seen is not None:
                check_vectors(index, *seen)


def _numbers(value: Any, where: str) -> Any:
    """Return [P, D], each part a list of numbers or an array."""
    if isinstance(value, str):  # CSV
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidDataError(f"{where}: not a JSON list of numbers: {error}") from error
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value
    has_parts = isinstance(value, list) and value and isinstance(value[0], list | np.ndarray)
    parts = value if has_parts else [value]
    for part in parts:
        if isinstance(part, np.ndarray):
            is_vector = part.dtype.kind in "fiu"
        else:
            is_vector = isinstance(part, list) and set(map(type, part)) <= {int, float}
        if not is_vector:
            raise InvalidDataError(
                f"{where}: a vector is a list of numbers, or several such lists in a list; "
                f"there is {repr(part)[:80]}"
            )
    return parts


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def open_matrix(npy: str | Path) -> NDArray[Any]:
    """Return [N, D], left on the disk until it is looked at."""
    with readable(npy):
        try:
            matrix: NDArray[Any] = np.lib.format.open_memmap(npy, mode="r")
        except ValueError as error:
            raise InvalidDataError(f"{npy}: not a .npy file of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise InvalidDataError(
            f"{npy}: an array [rows, dimensions] of float16, float32 or float64 is needed; there is one of "
            f"{matrix.dtype} with the shape {matrix.shape}"
        )
    return matrix
