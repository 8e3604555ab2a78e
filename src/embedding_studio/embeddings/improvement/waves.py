"""Sessions that move vectors, wave after wave: order, accumulation and layout, the same for every adjuster.

Axes: S sessions · K query parts of all of them · I objects · N parts of all objects · D dimensions. Sessions
are laid flat, object after object, with offsets. Nothing is padded, so nothing that is not there takes part.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.embeddings.preparation import SMALLEST_SQUARE, check_vectors, squared_lengths
from embedding_studio.errors import InvalidInputError, InvalidSettingError, InvalidVectorsError

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]

ADJUSTMENT_RATE = 0.1
NUM_ITERATIONS = 10
SOFTMIN_TEMPERATURE = 1.0
"""The three knobs of every adjuster, as the reference page has them."""

SESSIONS_AT_ONCE = 128
"""Sessions of ten results and 384 dimensions that fit a processor's last cache; more gain nothing."""


def check_knobs(
    adjustment_rate: float, num_iterations: int, softmin_temperature: float, max_angle_degrees: float | None
) -> None:
    """Raise ``InvalidSettingError`` for a knob that cannot work."""
    for name, value, works, range_ in (
        ("adjustment_rate", adjustment_rate, 0 <= adjustment_rate < math.inf, "0 or more"),
        ("num_iterations", num_iterations, num_iterations >= 1, "1 or more"),
        ("softmin_temperature", softmin_temperature, 0 < softmin_temperature < math.inf, "more than 0"),
        (
            "max_angle_degrees",
            max_angle_degrees,
            max_angle_degrees is None or 0 < max_angle_degrees <= 180,
            "in (0, 180]",
        ),
    ):
        if not works:
            raise InvalidSettingError(f"{name} is {value}; it must be {range_}")


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """One session of each of several users, laid flat.

    Attributes:
        queries: [K, D].
        query_starts: [S + 1], where each session's query parts begin; the last is K.
        vectors: [N, D], as the users have them now.
        squares: [N], their squared lengths.
        originals: [N, D]; the very same array as ``vectors`` where nothing has moved before.
        part_starts: [I + 1], where each object's parts begin; the last is N.
        object_starts: [S + 1], where each session's objects begin; the last is I.
        clicked: [I], False where skipped; a session may lack the one or the other.
        weights: [I], > 0.
    """

    queries: Vectors
    query_starts: Rows
    vectors: Vectors
    squares: Vectors
    originals: Vectors
    part_starts: Rows
    object_starts: Rows
    clicked: NDArray[np.bool_]
    weights: Floats

    def session_of_objects(self) -> Rows:
        """Return [I]."""
        return np.repeat(np.arange(len(self.object_starts) - 1), np.diff(self.object_starts))

    def object_of_parts(self) -> Rows:
        """Return [N]."""
        return np.repeat(np.arange(len(self.part_starts) - 1), np.diff(self.part_starts))

    def parts_of(self, objects: Rows) -> Rows:
        """Return the rows of the parts of some objects, one object after the other."""
        return ranges(self.part_starts[objects], np.diff(self.part_starts)[objects])


Move = Callable[[Wave], tuple[Rows, Vectors]]
"""Returns the objects that move, ascending, and the new vectors of all of their parts, laid flat."""

Book = dict[str, Vectors]
"""object_id -> personal vectors, of the objects of one user that have moved."""

Moving = tuple[ImprovementInput, Book, set[str]]
"""A session, its user's book, and the ids of the objects that the session has moved."""


def moved_in_waves(
    index: SearchIndexInfo, improvement_inputs: Sequence[ImprovementInput], move: Move, *, sweeps: int = 1
) -> list[ImprovementInput]:
    """Return the sessions with the vectors that their objects have after each, as ``VectorsAdjuster`` says.

    The t-th sessions of all users move together, as one wave; the next wave finds the vectors that it
    left. An object that a session shows twice is one object, and clicked if it was clicked at all.

    Args:
        sweeps: how often each user's sessions are gone through; the result is that of the last time.

    Raises:
        InvalidVectorsError: as ``VectorsAdjuster`` says; names the session and the object or query.
        InvalidInputError: a weight is not a positive number.
    """
    after = list(improvement_inputs)
    books: dict[Hashable, Book] = defaultdict(dict)
    waves: list[list[int]] = []
    owners: list[Hashable] = []
    sessions_of: dict[Hashable, int] = defaultdict(int)
    for s, given in enumerate(improvement_inputs):
        owner = s if given.user_id is None else given.user_id  # one without a user stands alone
        owners.append(owner)
        if sessions_of[owner] == len(waves):
            waves.append([])
        waves[sessions_of[owner]].append(s)
        sessions_of[owner] += 1
    moved_ids: list[set[str]] = [set() for _ in after]
    for sweep in range(sweeps):
        for wave in waves:
            for first in range(0, len(wave), SESSIONS_AT_ONCE):
                at_once = wave[first : first + SESSIONS_AT_ONCE]
                _move(index, [(after[s], books[owners[s]], moved_ids[s]) for s in at_once], move)
                if sweep == sweeps - 1:
                    for s in at_once:
                        after[s] = _as_it_stands(after[s], books[owners[s]], moved_ids[s])
    return after


def _move(index: SearchIndexInfo, moving: list[Moving], move: Move) -> None:
    """Let sessions of different users move what they move; write down what has moved, and where to."""
    moving = [each for each in moving if each[0].clicked_elements or each[0].non_clicked_elements]
    if not moving:
        return
    wave, ids = _lay_flat(index, moving)
    objects, vectors = move(wave)
    sessions = wave.session_of_objects()[objects].tolist()
    stops = np.cumsum(np.diff(wave.part_starts)[objects]).tolist()
    for s, i, start, stop in zip(sessions, objects.tolist(), [0, *stops], stops, strict=False):
        _, book, moved_ids = moving[s]
        book[ids[i]] = vectors[start:stop]
        moved_ids.add(ids[i])


def _as_it_stands(given: ImprovementInput, book: Book, moved_ids: set[str]) -> ImprovementInput:
    """Return a session with its user's present vectors; itself where none of its objects has moved."""
    if not book:
        return given
    clicked, skipped = _present(given.clicked_elements, book), _present(given.non_clicked_elements, book)
    if clicked == given.clicked_elements and skipped == given.non_clicked_elements:
        return given
    return ImprovementInput(
        given.session_id, given.query, clicked, skipped, given.user_id, frozenset(moved_ids)
    )


def _present(elements: tuple[ImprovementElement, ...], book: Book) -> tuple[ImprovementElement, ...]:
    return tuple(
        [
            element if (moved := book.get(element.id)) is None else element.moved_to(moved)
            for element in elements
        ]
    )


def _lay_flat(index: SearchIndexInfo, moving: list[Moving]) -> tuple[Wave, list[str]]:
    """Return sessions that have results as a wave, and the ids of its objects."""
    elements: list[ImprovementElement] = []
    ids: list[str] = []
    books: list[Book] = []
    sides: list[int] = []
    for given, book, _ in moving:
        shown, C = given.clicked_elements + given.non_clicked_elements, len(given.clicked_elements)
        shown_ids = [element.id for element in shown]
        if len(set(shown_ids)) < len(shown):
            shown, C = _each_once(given)
            shown_ids = [element.id for element in shown]
        elements += shown
        ids += shown_ids
        sides += C, len(shown) - C
        books += [book] * len(shown)
    queries = [given.query.vector for given, _, _ in moving]
    originals = vectors = [element.vector for element in elements]
    if any(book for _, book, _ in moving):
        vectors = [
            book.get(object_id, original)
            for object_id, original, book in zip(ids, originals, books, strict=True)
        ]
        for object_id, original, known in zip(ids, originals, vectors, strict=True):
            if original.shape != known.shape:
                raise InvalidVectorsError(
                    f"object {object_id!r} has vectors of shape {original.shape} here and of "
                    f"{known.shape} in an earlier session of the same user; load both from one place"
                )
    D = vectors[0].shape[-1]
    shapes = {parts.shape for parts in [*vectors, *queries]}
    if index.dimensions not in (None, D) or any(len(shape) != 2 or shape[1] != D for shape in shapes):
        _refuse(index, moving)
    flat = _join(vectors)
    wave = Wave(
        queries=_join(queries),
        query_starts=_offsets(_counts(queries)),
        vectors=flat,
        squares=squared_lengths(flat),
        originals=flat if vectors is originals else _join(originals),
        part_starts=_offsets(_counts(vectors)),
        object_starts=_offsets(np.add.reduceat(sides, np.arange(0, len(sides), 2))),
        clicked=np.repeat(np.arange(len(sides)) % 2 == 0, sides),
        weights=np.array([element.weight for element in elements], dtype=np.float64),
    )
    if not _is_sound(index, wave):
        _refuse(index, moving)
    return wave, ids


def _each_once(given: ImprovementInput) -> tuple[tuple[ImprovementElement, ...], int]:
    """Return what was shown, each object once and the clicked first, and how many were clicked."""
    clicked = {element.id: element for element in reversed(given.clicked_elements)}
    skipped = {element.id: element for element in reversed(given.non_clicked_elements)}
    return tuple((clicked | {i: e for i, e in skipped.items() if i not in clicked}).values()), len(clicked)


def _join(arrays: Sequence[Vectors]) -> Vectors:
    """Return arrays [P, D] one after the other; three times as fast as ``np.concatenate`` where P is 1."""
    buffers = cast("Sequence[bytes]", arrays)  # arrays are buffers, though numpy has no words for it in 3.11
    return np.frombuffer(b"".join(buffers), dtype=np.float32).reshape(-1, arrays[0].shape[1])


def _counts(arrays: Sequence[Vectors]) -> Rows:
    return np.fromiter(map(len, arrays), dtype=np.intp, count=len(arrays))


def _offsets(counts: Rows) -> Rows:
    offsets = np.zeros(len(counts) + 1, dtype=np.intp)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ranges(starts: Rows, counts: Rows) -> Rows:
    """Return the numbers from each start on, as many as counted, one range after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(np.sum(counts))


def _is_sound(index: SearchIndexInfo, wave: Wave) -> bool:
    least = SMALLEST_SQUARE if index.metric_type is MetricType.COSINE else np.float32(0)
    return bool(
        (np.diff(wave.part_starts) > 0).all()
        and (np.diff(wave.query_starts) > 0).all()
        and all(
            least <= squares.min() and squares.max() < np.inf  # false for NaN
            for squares in (squared_lengths(wave.queries), wave.squares)
        )
        and wave.weights.min() > 0
        and wave.weights.max() < np.inf
    )


def _refuse(index: SearchIndexInfo, moving: list[Moving]) -> NoReturn:
    """Raise the error that names what is wrong; looked for only once something is."""
    D = index.dimensions or moving[0][0].query.vector.shape[-1] or None
    sized = index.model_copy(update={"dimensions": D})
    for given, _, _ in moving:
        check_vectors(sized, given.query.vector, f"the query of session {given.session_id!r}")
        for element in (*given.clicked_elements, *given.non_clicked_elements):
            what = f"object {element.id!r} of session {given.session_id!r}"
            check_vectors(sized, element.vector, what)
            if not 0 < element.weight < np.inf:
                raise InvalidInputError(
                    f"{what} has the weight {element.weight}; give a positive number, or leave it out"
                )
    raise AssertionError
