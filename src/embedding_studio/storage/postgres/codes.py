"""Codes of originals in PostgreSQL, and a process's copy of them.

The table ``codes`` is a log: each change of originals appends what it added and removed, under one revision
more. A process reads what is new since the revision it knows. Below ``LARGE`` parts a collection has no
codes, for comparing all is as fast.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import Collection
from embedding_studio.embeddings.coder import Coder
from embedding_studio.embeddings.codes import Codes, View
from embedding_studio.embeddings.preparation import prepare_vectors
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.postgres.database import Connection, one_moment, only_row
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements

Numbers = NDArray[np.int64]

LARGE = 3000
"""From so many parts on a collection has codes."""

MOST_NUMBERS = 20_000
"""Of objects by their ids, kept in a process."""

READ_AT_ONCE = 1 << 22
"""Bytes of vectors that are encoded at a time, where all are."""

MANY_REMOVED, MANY_BLOCKS, PARTS_A_BLOCK = 10_000, 1_000, 100
"""The log is put in order once half of it is of no use, or its rows are short; but not for so few."""
MERGED = 8_192
"""Parts a row of a log in order."""
RECENTRED, RECENTRED_AT_MOST = 8, 250_000
"""Once there are so many times the parts, the centre is looked at again, for what came first may have been of
one subject; in a larger collection it has been chosen from enough."""
SAMPLED = 8_000
"""Parts of which the middle is taken, about, or all of fewer."""
FAR = 1.1
"""Codes are written around a new centre if the mean squared distance of parts to the old one is so many times
that to the new: errors grow with it, but each process that searches has to read all codes again."""

_SQL = statements("codes.sql")


@dataclass(frozen=True, slots=True)
class State:
    """The codes of a collection as one process knows them.

    Attributes:
        revision: of the originals; whatever is newer is not known here.
        view: None where there are no codes, and all are compared.
        margin: how cautious a search is, in standard errors; None where that was not measured.
    """

    revision: int
    epoch: int
    margin: float | None
    view: View | None


class CodesOfCollection:
    """A process's copy of one collection's codes, brought up to date when it is found to be old."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._lock = threading.Lock()
        self._codes: Codes | None = None
        self._state: State | None = None
        self._numbers: dict[str, int] = {}

    def state(self, connection: Connection, *, at_least: int = 0) -> State:
        """Return the codes at a revision or a later one, in no round trip where they are known."""
        state = self._state
        if state is not None and state.revision >= at_least:
            return state
        with self._lock:
            if self._state is None or self._state.revision < at_least:
                self._state = self._read(connection)
            return self._state

    def note(self, numbers: Mapping[str, int]) -> None:
        """Keep the numbers of some objects, to find their codes by their ids."""
        if len(self._numbers) > MOST_NUMBERS:
            self._numbers = {}
        self._numbers |= numbers

    @property
    def numbers(self) -> Mapping[str, int]:
        """The numbers that objects had; where a view has one, it is that very object, unchanged."""
        return self._numbers

    def _read(self, connection: Connection) -> State:
        known = self._state
        given = {"epoch": known.epoch if known else -1, "revision": known.revision if known else -1}
        with connection.pipeline(), one_moment(connection):
            revision_row = connection.execute(_of(self._collection, "revision"))
            centre_row = connection.execute(_of(self._collection, "centre"), binary=True)
            changes = connection.execute(_of(self._collection, "changes"), given, binary=True)
        revision, epoch, margin = only_row(revision_row)
        (centre,) = only_row(centre_row)
        if epoch == 0:
            self._codes = None
        elif self._codes is None or known is None or known.epoch != epoch:
            self._codes = Codes(coder_of(self._collection, np.frombuffer(centre, dtype="<f4")))
        if self._codes is not None:
            for change in changes:
                _apply(self._codes, *change)
        view = None if self._codes is None else self._codes.view()
        return State(revision, epoch, margin, view)


@dataclass(frozen=True, slots=True)
class Advance:
    """One revision more, within a transaction that changes originals.

    Attributes:
        first_no: of the object numbers given out with it.
    """

    collection: Collection
    revision: int
    epoch: int
    first_no: int
    centre: Vectors | None


def advance(connection: Connection, collection: Collection, count: int) -> Advance:
    """Begin a revision and give out so many object numbers."""
    revision, epoch, last_no, centre = only_row(
        connection.execute(_of(collection, "advance"), {"count": count}, binary=True)
    )
    vectors = None if centre is None else np.frombuffer(centre, dtype="<f4")
    return Advance(collection, revision, epoch, last_no - count + 1, vectors)


def codes_of(change: Advance, vectors: Vectors) -> NDArray[np.void]:
    """Return the codes of [N, D] in the epoch of a revision; none where it has no codes. No round trip."""
    if change.centre is None or not len(vectors):
        return np.empty(0, dtype=np.void)
    return coder_of(change.collection, change.centre).encode(vectors)


def record(
    connection: Connection, change: Advance, object_nos: Numbers, codes: NDArray[np.void], removed: Numbers
) -> None:
    """Append what a revision added and removed.

    Args:
        object_nos: [N], ascending, of the objects that the parts with these codes are of.
        removed: numbers that are no longer anybody's, one for each part.
    """
    if change.epoch > 0 and (len(codes) or len(removed)):
        _add(connection, change, object_nos, codes, removed)


class Untidiness(Enum):
    """What is to be done about the codes of a collection."""

    NONE = auto()
    UNWRITTEN = auto()
    """It has become large, or so much larger that another centre may be better."""
    LONG = auto()
    """Their log has become long."""


def untidiness(connection: Connection, collection: Collection) -> Untidiness:
    row = only_row(connection.execute(_of(collection, "sizes"), binary=True))
    epoch, _, encoded, added, removed, blocks = row
    if epoch == 0:
        given = {"large": LARGE, "is_average": Geometry(collection.index).has_averages}
        (is_due,) = only_row(connection.execute(_of(collection, "is_large"), given))
    else:
        is_due = RECENTRED * encoded <= added - removed <= RECENTRED_AT_MOST
    if is_due:
        return Untidiness.UNWRITTEN
    is_long = removed > max(MANY_REMOVED, added // 2) or blocks > max(MANY_BLOCKS, added // PARTS_A_BLOCK)
    return Untidiness.LONG if is_long else Untidiness.NONE


def tidy(connection: Connection, collection: Collection) -> None:
    """Write the codes, or merge their log, where that is due. In a transaction that holds the originals."""
    untidy = untidiness(connection, collection)
    if untidy is Untidiness.NONE:
        return
    epoch, packed, encoded, *_ = only_row(connection.execute(_of(collection, "sizes"), binary=True))
    centre = None if epoch == 0 else np.frombuffer(packed, dtype="<f4")
    if untidy is Untidiness.UNWRITTEN:
        _write_around_middle(connection, collection, centre)
        # Without statistics a few objects are looked for by reading all parts, until the server analyses.
        connection.execute(_of(collection, "analyze"))
    elif centre is not None:
        _merge(connection, collection, centre, encoded)


def _write_around_middle(connection: Connection, collection: Collection, known: Vectors | None) -> None:
    """Rewrite the codes of all parts, unless they are around a centre that is near the middle."""
    D = collection.index.dimensions or 0
    (count,) = only_row(connection.execute(_parts_of(collection, "count_parts")))
    percent = min(100.0, 100 * SAMPLED / max(count, 1))
    some = list(_copied(connection, collection, "some_parts", percent=sql.Literal(percent)))
    rows = np.concatenate([np.empty(0, dtype=_row_of(D)), *some])
    sample = prepare_vectors(rows["values"].astype(np.float32), _metric_of(collection))
    middle = sample.mean(axis=0, dtype=np.float64) if len(sample) else np.zeros(D)
    if known is not None:
        spread = np.square(sample - middle).sum() / max(len(sample), 1)
        if np.square(known - middle).sum() <= (FAR - 1) * spread:
            connection.execute(_of(collection, "keep_centre"), {"encoded": count})
            return
    coder = coder_of(collection, middle)
    parts = some if percent == 100 else _copied(connection, collection, "all_parts")
    blocks = [(part["object_no"], coder.encode(part["values"].astype(np.float32))) for part in parts]
    _begin_epoch(connection, collection, coder.centre, count, blocks)


def _merge(connection: Connection, collection: Collection, centre: Vectors, encoded: int) -> None:
    """Write the codes of what is left into few rows."""
    codes = Codes(coder_of(collection, centre))
    for object_nos, added, removed in connection.execute(_of(collection, "all_blocks"), binary=True):
        _apply(codes, object_nos, added, removed)
    numbers, records = codes.live()
    blocks = [
        (numbers[start : start + MERGED], records[start : start + MERGED])
        for start in range(0, len(numbers), MERGED)
    ]
    _begin_epoch(connection, collection, centre, encoded, blocks)


def _begin_epoch(
    connection: Connection,
    collection: Collection,
    centre: Vectors,
    encoded: int,
    blocks: Sequence[tuple[Numbers, NDArray[np.void]]],
) -> None:
    given = {"centre": centre.astype("<f4").tobytes(), "encoded": encoded}
    connection.execute(_of(collection, "clear"))
    connection.execute(_of(collection, "begin_epoch"), given)
    change = advance(connection, collection, 0)
    for object_nos, codes in blocks:
        _add(connection, change, object_nos, codes, np.empty(0, dtype=np.int64))


def _apply(codes: Codes, object_nos: bytes, added: bytes, removed: bytes) -> None:
    codes.remove(np.frombuffer(removed, dtype="<i8"))
    codes.add(np.frombuffer(object_nos, dtype="<i8"), np.frombuffer(added, dtype=codes.coder.record))


def coder_of(collection: Collection, centre: NDArray[np.floating]) -> Coder:
    return Coder(_metric_of(collection), centre.astype(np.float32))


def _metric_of(collection: Collection) -> MetricType:
    """Return what codes are compared under: averages of directions have lengths that count."""
    return MetricType.DOT if Geometry(collection.index).averages_decide else collection.index.metric_type


def _add(
    connection: Connection, change: Advance, object_nos: Numbers, codes: NDArray[np.void], removed: Numbers
) -> None:
    given = {
        "revision": change.revision,
        "added": len(object_nos),
        "gone": len(removed),
        "object_nos": object_nos.astype("<i8").tobytes(),
        "codes": codes.tobytes(),
        "removed": removed.astype("<i8").tobytes(),
    }
    connection.execute(_of(change.collection, "add"), given)


def _row_of(D: int) -> np.dtype[np.void]:
    """Return what a row (bigint, vector) is in a binary COPY."""
    return np.dtype(
        [
            ("fields", ">i2"), ("length_1", ">i4"), ("object_no", ">i8"), ("length_2", ">i4"),
            ("dimensions", ">u2"), ("unused", ">u2"), ("values", ">f4", (D,)),
        ]
    )  # fmt: skip


def _copied(
    connection: Connection, collection: Collection, name: str, **pieces: sql.Literal
) -> Iterator[NDArray[np.void]]:
    """Yield the rows of a COPY of parts, many at a time."""
    with connection.cursor() as cursor, cursor.copy(_parts_of(collection, name, **pieces)) as copy:
        yield from _records(copy, _row_of(collection.index.dimensions or 0))


def _parts_of(collection: Collection, name: str, **pieces: sql.Literal) -> bytes:
    statement = _SQL[name].format(
        schema=schema_of(collection.collection_id),
        is_average=sql.Literal(Geometry(collection.index).has_averages),
        **pieces,
    )
    return statement.as_bytes()


def _records(
    chunks: Iterable[bytes | bytearray | memoryview], row: np.dtype[np.void]
) -> Iterator[NDArray[np.void]]:
    """Yield the rows of a binary COPY whose rows are all of one size, many at a time."""
    header = 19
    rest = b""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        pending.append(bytes(chunk))
        size += len(chunk)
        if size < READ_AT_ONCE:
            continue
        rest, rows = _cut(rest + b"".join(pending), row, header)
        header, pending, size = 0, [], 0
        yield rows
    _, rows = _cut(rest + b"".join(pending), row, header)
    if len(rows):
        yield rows


def _cut(data: bytes, row: np.dtype[np.void], header: int) -> tuple[bytes, NDArray[np.void]]:
    count = (len(data) - header) // row.itemsize
    end = header + count * row.itemsize
    return data[end:], np.frombuffer(data, dtype=row, count=count, offset=header)


def _of(collection: Collection, name: str) -> bytes:
    return in_schema("codes.sql", name, collection.collection_id)
