"""Filters as expressions of Milvus, which find what is meant and perhaps more.

An expression compares a number in JSON with a whole number otherwise than with one of a fraction, and is
refused where the types of a field and a value differ.

Source: https://milvus.io/docs, of versions 2.3 and 2.6.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from embedding_studio.domain.filters import PayloadFilter, ways
from embedding_studio.domain.objects import Attachment
from embedding_studio.storage.attached.engines import NUMBER
from embedding_studio.storage.conditions import Bound, comparisons, translated

DYNAMIC = "$meta"
"""All the fields that a schema does not name."""
DEEPEST = 40
"""Conditions inside of each other: of 50 the server understands nothing."""
WHOLE = ("INT8", "INT16", "INT32", "INT64")
REAL = ("FLOAT", "DOUBLE")


def condition_of(
    attached: Attachment, fields: Mapping[str, Mapping[str, Any]], payload_filter: PayloadFilter
) -> str | None:
    """Return an expression that finds all that is meant, and perhaps more; None: it would find all."""
    condition = translated(payload_filter, _Expression(attached, fields))
    return None if condition is None or _depth(condition) > DEEPEST else condition


def kind_of(field: Mapping[str, Any]) -> str:
    """Return the type of a field; that of those that a schema does not name is JSON."""
    return field["type"].name if "type" in field else "JSON"


def whole_ids(object_ids: Iterable[str]) -> list[str]:
    """Return those that are of 64 bits, but for the least of these, which an expression cannot hold."""
    return [each for each in object_ids if NUMBER.fullmatch(each) and abs(int(each)) < 2**63]


@dataclass(frozen=True, slots=True)
class _Expression:
    """The words of an expression, as ``Words``.

    A place is a path, its type, and that of the elements of an ARRAY.
    """

    attached: Attachment
    fields: Mapping[str, Mapping[str, Any]]

    def places(self, field: str) -> list[tuple[str, str, str]] | None:
        if "" in field.split("."):  # a name that an expression cannot have
            return None
        if self.attached.document is not None:
            return [(_path(self.attached.document, steps), "JSON", "") for steps in ways(field)]
        places = []
        for name, *steps in ways(field):
            if name in self.fields and name in self.attached.payload and name != DYNAMIC:
                kind = kind_of(self.fields[name])
                if kind == "JSON" and not steps:
                    return None  # of which an expression can only look at what is in it
                if kind == "JSON" or not steps:
                    element = self.fields[name].get("element_type")
                    places.append((_path(name, steps), kind, "" if element is None else element.name))
            elif DYNAMIC in self.attached.payload or name in self.attached.payload:
                places.append((_path(DYNAMIC, [name, *steps]), "JSON", ""))
        return places or None

    def is_one_of(self, place: tuple[str, str, str], values: Sequence[Any]) -> str | None:
        path, kind, _ = place
        of_kind: dict[type, list[str | None]] = {}
        for each in values:
            sort = type(each) if isinstance(each, str | bool) else float
            of_kind.setdefault(sort, []).append(_literal(kind, each))
        told = [
            f"{path} in [{', '.join(each for each in literals if each)}]"
            for literals in of_kind.values()
            if None not in literals
        ]
        return self.some(told) if len(told) == len(of_kind) else None

    def has_any(self, place: tuple[str, str, str], values: Sequence[Any]) -> str | None:
        path, kind, element = place
        if kind not in ("JSON", "ARRAY"):
            return None
        told = [_elements(kind, element, each) for each in values]
        name = "json_contains_any" if kind == "JSON" else "array_contains_any"
        return f"{name}({path}, [{', '.join(each for some in told for each in some)}])" if all(told) else None

    def is_within(self, place: tuple[str, str, str], low: Bound, high: Bound) -> str | None:
        path, kind, _ = place
        told = [(op, _end(kind, bound, to_whole)) for op, bound, to_whole in comparisons(low, high)]
        if any(literal is None for _, literal in told):
            return None
        return self.every([f"{path} {op} {literal}" for op, literal in told])

    def is_there(self, place: tuple[str, str, str]) -> None:  # noqa: ARG002, it has no word for that
        return None

    def every(self, conditions: list[str]) -> str:
        return _joined("and", conditions)

    def some(self, conditions: list[str]) -> str:
        return _joined("or", conditions)


def _depth(condition: str) -> int:
    """Return how many brackets are open at once in a condition, at the most."""
    return max(accumulate({"(": 1, ")": -1}.get(each, 0) for each in condition))


def _joined(by: str, conditions: Sequence[str]) -> str:
    """Return conditions joined in halves: a list of them is to the server one inside of the other."""
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    return f"({_joined(by, conditions[:half])} {by} {_joined(by, conditions[half:])})"


def _path(name: str, steps: Sequence[str]) -> str:
    return name + "".join(f"[{quoted(each)}]" for each in steps)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(kind: str, value: float | str) -> str | None:
    """Return a value as it is compared with a field of a type; None: it cannot be."""
    if isinstance(value, bool):
        return str(value).lower() if kind in ("JSON", "BOOL") else None
    if isinstance(value, str) or kind not in WHOLE or value == int(value):
        return _end(kind, value, math.floor)
    return None


def _elements(kind: str, element: str, value: Any) -> list[str]:
    """Return a value as it is looked for in a list, by each way to write it; none: it cannot be."""
    if isinstance(value, str):
        return [quoted(value)] if kind == "JSON" or element == "VARCHAR" else []
    if isinstance(value, bool):
        return [str(value).lower()] if kind == "JSON" or element == "BOOL" else []
    if abs(value) > 2**53 or not (kind == "JSON" or element in (*WHOLE, *REAL)):
        return []
    whole = [f"{int(value)}"] if value == int(value) and element not in REAL else []
    return whole + ([] if element in WHOLE else [repr(float(value))])


def _end(kind: str, bound: float | str, to_whole: Callable[[float], int]) -> str | None:
    """Return the end of a range: of JSON, a number of more than 53 bits is no other than its neighbour."""
    if isinstance(bound, str):
        return quoted(bound) if kind in ("JSON", "VARCHAR") else None
    if kind in WHOLE:
        whole = to_whole(bound)
        return f"{whole}" if abs(whole) < 2**63 else None
    if kind not in ("JSON", *REAL) or abs(bound) > 1e300:
        return None
    return repr(float(bound))
