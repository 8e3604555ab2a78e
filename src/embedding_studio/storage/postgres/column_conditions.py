"""Filters as conditions on the columns of a table that a collection is attached to."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from psycopg import sql

from embedding_studio.domain.filters import ways
from embedding_studio.domain.objects import Attachment
from embedding_studio.storage.attached.engines import UUID
from embedding_studio.storage.conditions import Bound, as_float64, comparisons, numbers_in
from embedding_studio.storage.postgres.filters import joined, nested, tested
from embedding_studio.storage.postgres.relations import LARGEST, Table, escaped

TEXTS = ("text", "varchar", "bpchar", "uuid")
"""Types of which JSON has texts."""
LISTS = {f"_{element}": element for element in (*TEXTS, *LARGEST, "bool")}
"""Types of which JSON has lists, and those of their elements."""


@dataclass(frozen=True, slots=True)
class ColumnConditions:
    """Conditions on columns as such, as ``Words``, so that their own indexes are used.

    A place is a column, and steps into its value. Of types that do not stand here nothing is said.
    """

    attached: Attachment
    table: Table
    parameters: dict[str, Any]

    def places(self, field: str) -> list[tuple[str, list[str]]]:
        if self.attached.document is not None:
            return [(self.attached.document, steps) for steps in ways(field)]
        return [(name, steps) for name, *steps in ways(field) if name in self.attached.payload]

    def is_one_of(self, place: tuple[str, list[str]], values: Sequence[Any]) -> sql.Composable | None:
        name, steps = place
        kind = self.table.columns[name][0]
        if kind == "jsonb":
            return self._test(name, "@> ANY ({}::jsonb[])", [nested(steps, each) for each in values])
        if steps or kind in LISTS:
            return self.some([]) if kind in (*TEXTS, *LARGEST, "bool", *LISTS) else None
        given = _values(kind, values)
        return None if given is None else self._test(name, f"= ANY ({{}}::{kind}[])", given)

    def has_any(self, place: tuple[str, list[str]], values: Sequence[Any]) -> sql.Composable | None:
        name, steps = place
        kind = self.table.columns[name][0]
        if kind == "jsonb":
            return self._test(name, "@> ANY ({}::jsonb[])", [nested(steps, [each]) for each in values])
        if kind not in LISTS:
            return None
        given = [] if steps else _values(LISTS[kind], values)
        return self._test(name, f"&& {{}}::{LISTS[kind]}[]", given)

    def is_within(self, place: tuple[str, list[str]], low: Bound, high: Bound) -> sql.Composable | None:
        name, steps = place
        kind = self.table.columns[name][0]
        told = [
            self._test(name, f"{op} {{}}::{'int8' if kind in LARGEST else kind}", _end(kind, bound, to_whole))
            for op, bound, to_whole in comparisons(low, high)
            if not isinstance(bound, str)
        ]
        if not told or steps or kind not in (*LARGEST, "numeric", "float8"):
            return None
        return self.every(told)

    def is_there(self, place: tuple[str, list[str]]) -> sql.Composable | None:
        name, steps = place
        return None if steps else self._test(name, "IS NOT NULL")

    def every(self, conditions: list[sql.Composable]) -> sql.Composable:
        return joined(" AND ", conditions)

    def some(self, conditions: list[sql.Composable]) -> sql.Composable:
        return joined(" OR ", conditions) if conditions else sql.SQL("false")

    def _test(self, name: str, template: str, *values: Any) -> sql.Composable:
        column = sql.SQL("t.{} ").format(sql.Identifier(escaped(name)))
        return sql.Composed([column, tested(self.parameters, template, *values)])


def _values(kind: str, values: Sequence[Any]) -> list[Any] | None:  # noqa: PLR0911, one case a kind of type
    """Return those values that a column of a type can have; None: unknown."""
    numbers = numbers_in(values)
    texts = [each for each in values if isinstance(each, str)]
    if kind in TEXTS:
        return [each for each in texts if kind != "uuid" or UUID.fullmatch(each)]
    if kind in LARGEST:
        return [int(each) for each in numbers if -LARGEST[kind] <= each < LARGEST[kind] and each == int(each)]
    if kind == "bool":
        return [each for each in values if isinstance(each, bool)]
    if texts:  # JSON has no number for NaN
        return None
    if kind == "numeric":
        return [Decimal(repr(each)) for each in numbers]
    if kind == "float8":
        return [float(each) for each in numbers if abs(each) <= sys.float_info.max]
    return None


def _end(kind: str, bound: float, to_whole: Callable[[float], int]) -> Any:
    if kind == "numeric":
        return Decimal(repr(bound))
    if kind == "float8":
        return as_float64(bound)
    return max(-(2**63), min(2**63 - 1, to_whole(bound)))
