"""Logs of other systems, row by row in a small vocabulary. No row is worth losing the others.

rows  what stands in a file    entries  a search, a list, an event    joining  events to their search
own, ubi, algolia, metarank, segment, ga4, flat  a dialect each
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

from embedding_studio.errors import InvalidDataError
from embedding_studio.logs import algolia, flat, ga4, metarank, own, segment, ubi
from embedding_studio.logs.entries import (
    Beside,
    Dialect,
    Entry,
    Event,
    Left,
    Placed,
    Row,
    Search,
    Shown,
    Unusable,
)
from embedding_studio.logs.joining import WINDOW_SECONDS, join, made_search
from embedding_studio.logs.own import session_row, write_sessions
from embedding_studio.logs.rows import NumberedRow, read_rows

__all__ = [
    "DIALECTS",
    "WINDOW_SECONDS",
    "Entry",
    "Event",
    "Left",
    "Log",
    "NumberedRow",
    "Placed",
    "Search",
    "Shown",
    "Unusable",
    "join",
    "made_search",
    "open_log",
    "placed_entries",
    "session_row",
    "write_sessions",
]

DIALECTS = {"own": own, "ubi": ubi, "algolia": algolia, "metarank": metarank, "segment": segment, "ga4": ga4}
"""Those that need no mapping of columns, in the order in which they are tried."""


ROWS_TO_TELL_BY = 100


@dataclass(frozen=True, slots=True)
class Log:
    """A log that is being read.

    Attributes:
        dialect: its name.
        entries: with the place of each; what cannot be used is reported there.
    """

    dialect: str
    entries: Iterator[Placed]


def open_log(
    path: str, *, dialect: str | None = None, columns: Mapping[str, str], is_strict: bool = False
) -> Log:
    """Return what a file of NDJSON, CSV, TSV or Parquet says; ``-`` is NDJSON on standard input.

    Args:
        dialect: a name of ``DIALECTS``, or "flat"; None: what most of the first rows speak.
        columns: of a flat table.
        is_strict: whether the first row that cannot be used ends it.

    Raises:
        InvalidDataError: it cannot be read at all, or its dialect is unknown.
    """
    rows = read_rows(path)
    first = list(islice(rows, ROWS_TO_TELL_BY))
    if dialect is None:
        dialect = _spoken([row for _, row in first if not isinstance(row, Unusable)], columns, path)
    read = flat.reader(columns) if dialect == "flat" else DIALECTS[dialect].read
    return Log(dialect, placed_entries(read, chain(first, rows), source=path, is_strict=is_strict))


def placed_entries(
    read: Dialect, rows: Iterable[NumberedRow], *, source: str, is_strict: bool = False
) -> Iterator[Placed]:
    """Yield what rows say in a dialect.

    Raises:
        InvalidDataError: it is to be strict, and a row cannot be used.
    """
    for number, row in rows:
        place = f"{source}:{number}"
        try:
            if isinstance(row, Unusable):
                raise row
            for entry in read(row):
                yield place, entry
        except Unusable as reason:
            if is_strict and not isinstance(reason, Beside):
                raise InvalidDataError(f"{place}: {reason}") from None
            yield place, Left(str(reason))


def _spoken(rows: Sequence[Row], columns: Mapping[str, str], source: str) -> str:
    """Return the name of the dialect that most of some rows speak."""
    speakers: dict[str, Callable[[Row], bool]] = {name: each.speaks for name, each in DIALECTS.items()}
    speakers["flat"] = partial(flat.speaks, columns=columns)
    spoken = Counter(name for row in rows for name, speaks in speakers.items() if speaks(row))
    if not spoken:
        seen = ", ".join(map(repr, list(rows[0])[:20])) if rows else "nothing that can be read"
        raise InvalidDataError(
            f"{source}: no log of a known format; its first row has {seen}. Say which column is what, as "
            f"--map query=COLUMN,user=COLUMN,object=COLUMN,time=COLUMN, or give a --format: "
            f"{', '.join(speakers)}"
        )
    return spoken.most_common(1)[0][0]
