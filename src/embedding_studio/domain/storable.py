"""What PostgreSQL keeps: no NUL character, no half of a surrogate pair, no number that is not finite."""

import datetime as dt
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any, TypeGuard

import numpy as np
import orjson

from embedding_studio.domain.limits import MAX_ID_LENGTH
from embedding_studio.errors import InvalidInputError, shown

MAX_JSON_DEPTH = 64


def as_json(value: Any) -> bytes:
    """Return JSON, in which arrays of numbers are lists.

    >>> as_json({"x": [0.1, 2**70]})
    b'{"x": [0.1, 1180591620717411303424]}'
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # numbers of more than 64 bits
        return json.dumps(value, default=np.ndarray.tolist).encode()


def check_text(given: str) -> str:
    if "\x00" in given:
        raise ValueError("a text may not hold the character NUL (U+0000)")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ValueError("a text may not hold half a surrogate pair (U+D800 to U+DFFF)") from None
    return given


def is_id(given: object) -> TypeGuard[str]:
    """Return whether this can name a session, a user, an object or an event.

    >>> is_id("靴" * 170), is_id("靴" * 171), is_id(""), is_id(7)
    (True, False, False, False)
    """
    return isinstance(given, str) and _why_no_id(given) is None


def are_ids(given: Sequence[Any]) -> bool:
    """Return whether all are ids, looked at together; of what is not ASCII it is not said here.

    >>> are_ids(["a", "b"]), are_ids(["a", ""]), are_ids(["a", 7]), are_ids(["靴"]), are_ids([])
    (True, False, False, False, False)
    """
    try:
        together = "".join(given)
    except TypeError:
        return False
    lengths = {*map(len, given)}
    return (
        together.isascii()
        and "\0" not in together
        and min(lengths, default=0) > 0
        and max(lengths) <= MAX_ID_LENGTH
    )


def check_id(given: str, what: str = "an id") -> str:
    """Return what was given if it can name a session, a user, an object or an event.

    Raises:
        InvalidInputError: it cannot; the message begins with ``what``.
    """
    if not isinstance(given, str):
        raise InvalidInputError(
            f"{what} is {shown(given)}, a {type(given).__name__}; give a text, such as {str(given)[:40]!r}"
        )
    if (why := _why_no_id(given)) is not None:
        raise InvalidInputError(
            f"{what} {why}; give 1 to {MAX_ID_LENGTH} bytes in UTF-8 (given: {shown(given)})"
        )
    return given


def _why_no_id(given: str) -> str | None:
    if given.isascii() and 0 < len(given) <= MAX_ID_LENGTH and "\x00" not in given:
        return None  # as nearly all are
    if not given:
        return "is empty"
    try:
        length = len(given.encode())
    except UnicodeEncodeError:
        return "holds half a surrogate pair (U+D800 to U+DFFF)"
    if length > MAX_ID_LENGTH:
        return f"has {length} bytes"
    return "holds the character NUL (U+0000)" if "\x00" in given else None


def json_value(value: Any) -> Any:  # noqa: PLR0911, a table
    """Return the JSON value for something else, as of Parquet: for ``json.dumps(default=...)``.

    >>> json_value(dt.date(2024, 1, 5)), json_value(Decimal("9.50")), json_value(np.int64(3))
    ('2024-01-05', 9.5, 3)

    Raises:
        TypeError: there is none.
    """
    match value:
        case np.datetime64():
            return None if np.isnat(value) else str(value)
        case np.generic() | np.ndarray():
            return value.tolist()
        case dt.date() | dt.time():  # what is missing in pandas is a time that does not equal itself
            return value.isoformat() if value == value else None  # noqa: PLR0124
        case Decimal():
            return float(value)
        case uuid.UUID():
            return str(value)
        case Mapping():
            return dict(value)
        case Enum():
            return value.value
    raise TypeError(f"a {type(value).__name__} has no place in JSON")


def plain_json(given: dict[str, Any]) -> dict[str, Any]:
    """Return JSON in which what Python has and JSON has not is as ``json_value`` writes it.

    >>> plain_json({"on": dt.date(2024, 1, 5), "sizes": (38, 39)})
    {'on': '2024-01-05', 'sizes': [38, 39]}

    Raises:
        ValueError: it holds something that has no place there.
    """
    try:
        made: dict[str, Any] = json.loads(json.dumps(check_json(given), allow_nan=False, default=json_value))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return check_json(made)


def faults(value: Any, place: str) -> Iterator[str]:
    """Yield what has no place in JSON or in the database, each named by its place."""
    match value:
        case Mapping():
            yield from _faults_of_mapping(value, place)
        case list() | tuple():
            for number, each in enumerate(value):
                yield from faults(each, f"{place}[{number}]")
        case float() if not math.isfinite(value):
            yield f"{place} is {value}, and JSON has no such number; give null or leave it out"
        case _:
            try:
                if isinstance(value, str):
                    check_text(value)
                elif value is not None and not isinstance(value, int | float):
                    yield from faults(json_value(value), place)
            except (ValueError, TypeError) as error:
                yield f"{place}: {error}"


def _faults_of_mapping(value: Mapping[Any, Any], place: str) -> Iterator[str]:
    for key, each in value.items():
        if isinstance(key, str):
            yield from faults(key, f"the key {shown(key)} of {place}")
            yield from faults(each, f"{place}[{shown(key)}]")
        else:
            yield f"{place} has the key {shown(key)}, a {type(key).__name__}; keys are texts"


def check_json(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given if PostgreSQL can keep it as ``jsonb``.

    >>> check_json({"sizes": [38, 39.5], "brand": None})
    {'sizes': [38, 39.5], 'brand': None}
    """
    level: list[Any] = [given]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.keys())
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no number that JSON knows; send null or leave it out")
        if not below:
            return given
        level = below
    raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
