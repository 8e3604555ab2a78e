"""Filters as SQL of LanceDB, on the columns of the payload, which find what is meant and perhaps more.

Source: https://lancedb.github.io/lancedb, of version 0.40.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from embedding_studio.domain.filters import PayloadFilter, ways
from embedding_studio.domain.objects import Attachment
from embedding_studio.storage.attached.engines import NUMBER
from embedding_studio.storage.conditions import Bound, as_float64, comparisons, numbers_in, translated
from embedding_studio.storage.lancedb.columns import (
    Arrow,
    is_float,
    is_list,
    is_text,
    is_whole,
    whole_numbers,
)


def ids_of(kind: Arrow, object_ids: Sequence[str]) -> list[str]:
    """Return those ids that a column can hold, as they stand in a condition."""
    if is_text(kind):
        return [_quoted(each) for each in object_ids]
    least, largest = whole_numbers(kind)
    numbers = [int(each) for each in object_ids if NUMBER.fullmatch(each)]
    return [_whole(each) for each in numbers if least <= each <= largest]


def condition_of(attached: Attachment, schema: Arrow, payload_filter: PayloadFilter | None) -> str | None:
    """Return a condition that finds all that is meant, and perhaps more; None: it would find all."""
    return translated(payload_filter, _Sql(attached, schema))


@dataclass(frozen=True, slots=True)
class _Sql:
    """The words of SQL for the columns of a table, as ``Words``; a place is a path and a type."""

    attached: Attachment
    schema: Arrow

    def places(self, field: str) -> list[tuple[str, Arrow]] | None:
        import pyarrow as pa

        if self.attached.document is not None:
            return None
        places = []
        for name, *steps in ways(field):
            if name not in self.attached.payload or self.schema.get_field_index(name) < 0:
                continue
            kind = self.schema.field(name).type
            for step in steps:
                if not pa.types.is_struct(kind) and (pa.types.is_nested(kind) or not _is_plain(kind)):
                    return None  # a map can have it, or not
                n = kind.get_field_index(step) if pa.types.is_struct(kind) else -1
                if n < 0:
                    break
                kind = kind.field(n).type
            else:
                if any(not each or "`" in each or "." in each for each in (name, *steps)):
                    return None
                places.append((path_of([name, *steps]), kind))
        return places

    def is_one_of(self, place: tuple[str, Arrow], values: Sequence[Any]) -> str | None:
        path, kind = place
        literals = _literals(kind, values)
        return None if literals is None else self.some([f"{path} = {each}" for each in literals])

    def has_any(self, place: tuple[str, Arrow], values: Sequence[Any]) -> str | None:
        path, kind = place
        if not is_list(kind) or str(kind.value_type) == "uint64":  # with which it compares no number
            return None
        literals = _literals(kind.value_type, values)
        return None if literals is None else self.some([f"array_has({path}, {each})" for each in literals])

    def is_within(self, place: tuple[str, Arrow], low: Bound, high: Bound) -> str | None:
        path, kind = place
        if not _is_plain(kind):
            return None
        told = [(op, _end(kind, bound, to_whole)) for op, bound, to_whole in comparisons(low, high)]
        if any(literal is None for _, literal in told):
            return self.some([])
        return self.every([f"{path} {op} {literal}" for op, literal in told])

    def is_there(self, place: tuple[str, Arrow]) -> str:
        return f"{place[0]} IS NOT NULL"

    def every(self, conditions: list[str]) -> str:
        return f"({' AND '.join(conditions)})"

    def some(self, conditions: list[str]) -> str:
        return f"({' OR '.join(conditions)})" if conditions else "false"


def _end(kind: Arrow, bound: float | str, to_whole: Callable[[float], int]) -> str | None:
    """Return the end of a range as it stands in a condition; None: no value of the type is within it."""
    if isinstance(bound, str):
        return _quoted(bound) if is_text(kind) else None
    if is_float(kind):
        return _real(bound) if bound else "-0.0" if to_whole is math.ceil else "0.0"  # to it not equal
    if not is_whole(kind):
        return None
    least, largest = whole_numbers(kind)
    whole = to_whole(bound)
    if to_whole is math.ceil:
        return _whole(max(least, whole)) if whole <= largest else None
    return _whole(min(largest, whole)) if whole >= least else None


def _literals(kind: Arrow, values: Sequence[Any]) -> list[str] | None:
    """Return those values that a type can hold, as they stand in a condition; None: unknown."""
    import pyarrow as pa

    numbers = numbers_in(values)
    if is_text(kind):
        return [_quoted(each) for each in values if isinstance(each, str)]
    if pa.types.is_boolean(kind):
        return [str(each).lower() for each in values if isinstance(each, bool)]
    if is_whole(kind):
        least, largest = whole_numbers(kind)
        return [_whole(int(each)) for each in numbers if least <= each <= largest and each == int(each)]
    if is_float(kind) and kind.bit_width > 16:  # of half precision it takes no number that it would round
        small = [each for each in numbers if abs(each) <= sys.float_info.max]
        return [_real(each) for each in small if each] + ["0.0", "-0.0"] * (0 in small)  # to it not equal
    return None


def _is_plain(kind: Arrow) -> bool:
    return _literals(kind, []) is not None


def _whole(number: int) -> str:
    """Return a whole number; the least of 64 bits it would read as one with a fraction."""
    return f"{number}" if number > -(2**63) else f"({number + 1} - 1)"


def _real(number: float) -> str:
    return repr(as_float64(number))


def path_of(steps: Sequence[str]) -> str:
    return ".".join(f"`{each}`" for each in steps)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
