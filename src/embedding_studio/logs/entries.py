"""What the log of any system says, in four words: a search, what was shown, an event, or our own session.

A dialect is a function from a row to such entries. What a row lacks is reported by ``Unusable``, whose
message is the reason under which it is counted; ``Beside`` is a row that is right, and about something else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from embedding_studio.domain.sessions import MAX_POSITION, RecordedSession
from embedding_studio.domain.storable import are_ids, is_id

Row = Mapping[str, Any]

FEWEST_MILLISECONDS = 100_000_000_000
"""A time from here on is in milliseconds, of March 1973; in seconds the last one lies in the year 5138."""
FEWEST_MICROSECONDS = 100_000_000_000_000
MAX_DIGITS = 18
LARGEST_EXACT = 2.0**53
"""From here on not every whole number is a float."""
MAX_TYPE_LENGTH = 64


class Unusable(Exception):  # noqa: N818, a reason rather than an error
    """Why nothing of a row is used."""


class Beside(Unusable):
    """A row about something else than searches and their results."""


@dataclass(frozen=True, slots=True)
class Search:
    """Somebody searched.

    Attributes:
        at: UTC seconds.
        search_id: the log's own; None: it has none, and events belong to it by user and time.
        shown: best first; empty where it was not logged.
    """

    at: int
    query: str
    user_id: str | None = None
    search_id: str | None = None
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """A list of objects that a user saw, in a log that does not say for which search."""

    at: int
    user_id: str
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Somebody did something with an object.

    Attributes:
        at: UTC seconds.
        query: as the event itself has it.
        event_id: makes an event that is logged twice count once; empty: what it says is its name.
    """

    at: int
    object_id: str
    event_type: str = "click"
    user_id: str | None = None
    search_id: str | None = None
    query: str | None = None
    event_id: str = ""
    meta: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """What is not used, and why."""

    reason: str


Entry = Search | Shown | Event | RecordedSession
Placed = tuple[str, Entry | Left]
"""Where an entry stands, for people, and the entry."""
Dialect = Callable[[Row], Sequence[Entry]]


def id_of(given: object) -> str | None:
    """Return an id, which may be a whole number; None if it can be none.

    A column of whole numbers in which some are missing is often one of floats.

    >>> id_of("a1"), id_of(17), id_of(17.0), id_of(""), id_of(1.5)
    ('a1', '17', '17', None, None)
    """
    if type(given) is str:
        return given if is_id(given) else None
    if isinstance(given, float) and given.is_integer() and abs(given) < LARGEST_EXACT:
        given = int(given)
    if type(given) is int:
        return str(given)
    return given if is_id(given) else None


def text_of(given: object) -> str | None:
    """Return a text with something in it, without the space around it."""
    if not isinstance(given, str) or "\0" in given:
        return None
    return given.strip() or None


def type_of(given: object) -> str | None:
    """Return the type of an event."""
    name = text_of(given)
    return name if name is not None and len(name) <= MAX_TYPE_LENGTH else None


def seconds_of(given: object) -> int | None:
    """Return a time as UTC seconds: it may be in seconds, milli- or microseconds, or ISO 8601.

    >>> seconds_of(1317337009), seconds_of("1317337009634"), seconds_of(1317337009634000)
    (1317337009, 1317337009, 1317337009)
    >>> seconds_of("2011-09-29T22:56:49Z"), seconds_of("2011-09-29 22:56:49.634 UTC"), seconds_of("yesterday")
    (1317337009, 1317337009, None)
    >>> seconds_of("20110929"), seconds_of("13172009")
    (1317254400, 13172009)
    >>> seconds_of("6000-01-01"), seconds_of("9" * 400)  # too late to be distinguished from milliseconds
    (None, None)
    """
    if isinstance(given, str):
        if len(given) == len("20110929") and (at := _seconds_of_date(given)) is not None:
            return at
        try:
            return seconds_of(float(given) if "." in given else int(given))
        except ValueError:
            return _seconds_of_date(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < float("inf"):
        return None
    if given >= FEWEST_MICROSECONDS:
        given //= 1_000_000
    elif given >= FEWEST_MILLISECONDS:
        given //= 1_000
    return int(given) if given < FEWEST_MILLISECONDS else None


def objects_of(given: object, *keys: str) -> tuple[str, ...]:
    """Return the ids in a list, each once: as they stand, or under the first of ``keys`` that each has.

    >>> objects_of(["a", 7, "a", None]), objects_of([{"id": "a"}, {"sku": "b"}], "id", "sku")
    (('a', '7'), ('a', 'b'))
    """
    if not isinstance(given, list) or not given:
        return ()
    if are_ids(given):  # as nearly all are
        return tuple(dict.fromkeys(given))
    ids: dict[str, None] = {}
    for each in given:
        named = first_of(each, *keys) if isinstance(each, dict) else each
        if (object_id := id_of(named)) is not None:
            ids[object_id] = None
    return tuple(ids)


def first_of(row: Row, *keys: str) -> Any:
    """Return the first value that is there and not empty."""
    for key in keys:
        if (value := row.get(key)) is not None and value != "":
            return value
    return None


def whole_of(given: object) -> int | None:
    """Return a whole number, which may be written as a text; None if it is none."""
    if isinstance(given, str) and given.isdecimal() and len(given) <= MAX_DIGITS:
        given = int(given)
    return given if type(given) is int else None


def position_of(given: object) -> Mapping[str, Any] | None:
    """Return where an object stood, from 1 on, as an event keeps it."""
    position = whole_of(given)
    return {"position": position} if position is not None and 1 <= position <= MAX_POSITION else None


def required_time(row: Row, *keys: str) -> int:
    """Return the time of a row.

    Raises:
        Unusable: it has none.
    """
    if (at := seconds_of(first_of(row, *keys))) is None:
        raise Unusable(f"no usable time ({', '.join(keys)})")
    return at


def _seconds_of_date(given: str) -> int | None:
    try:
        read = datetime.fromisoformat(given.removesuffix(" UTC"))
        at = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return int(at) if 0 <= at < FEWEST_MILLISECONDS else None
