"""What the texts in a table stand for, by column: numbers, booleans, JSON, or texts.

A column is of one type, so that one kind of filter finds all its rows: of numbers only if each of its values
is a plain number. Codes such as 02134, 1E5 or +1 are none, and make texts of the whole column, so 1.10 stays.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from embedding_studio.domain.storable import check_json

PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-][0-9]+)?")
"""An exponent has a sign, as programs write it; 1E5 may be a code."""

NUMBER_WITH_COMMA = re.compile(r"-?([0-9]+(\.[0-9]{3})*,[0-9]+|[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?)")
"""As 12,50 or 1.234,50, which is 1,234.50 to others: so it is not read as a number, but noted."""

Read = Callable[[str], Any]
"""Returns what a text stands for.

Raises:
    ValueError: it is nothing of this type.
"""


def _number(text: str) -> float:
    if not PLAIN_NUMBER.fullmatch(text):
        raise ValueError(text)
    if text.lstrip("-").isdigit():
        number = int(text)
        if not -(2**63) <= number < 2**63:  # who reads it by 64 bits would change it
            raise ValueError(text)
        return number
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _json(text: str) -> Any:
    if text[:1] not in ("[", "{"):
        raise ValueError(text)
    value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_twins)
    check_json({"": value})  # what cannot be kept as JSON can be as the text that it is
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("more than one key has this name")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(name)


TYPES: dict[str, Read] = {"numbers": _number, "booleans": _boolean, "JSON": _json}


class ColumnTypes:
    """The types that the values of each column still allow, once all of them are seen: its type."""

    def __init__(self) -> None:
        self._possible: dict[str, str | None] = {}
        self._exceptions: dict[str, str] = {}
        self._with_comma: dict[str, str] = {}

    def see(self, column: str, text: str, place: str) -> None:
        """Look at one more value, which is not empty."""
        if column not in self._possible:
            self._possible[column] = next((name for name in TYPES if _stands_for(name, text)), None)
            if NUMBER_WITH_COMMA.fullmatch(text):
                self._with_comma[column] = (
                    f"though they look like numbers with a comma, as {text[:40]!r} in {place}; a filter by "
                    "range finds numbers that are written with a point"
                )
            return
        if not (NUMBER_WITH_COMMA.fullmatch(text) or _stands_for("numbers", text)):
            self._with_comma.pop(column, None)
        name = self._possible[column]
        if name is not None and not _stands_for(name, text):
            self._possible[column] = None
            self._exceptions[column] = f"not of {name}, since {place} has {text[:40]!r}"

    def read(self, column: str, text: str) -> Any:
        """Return what a text of a column stands for."""
        name = self._possible.get(column)
        return text if name is None else TYPES[name](text)

    @property
    def exceptions(self) -> dict[str, str]:
        """Why a column is one of texts whose values look like something else: its first ones, or all."""
        return self._exceptions | self._with_comma


def _stands_for(name: str, text: str) -> bool:
    try:
        TYPES[name](text)
    except (ValueError, KeyError, RecursionError):
        return False
    return True
