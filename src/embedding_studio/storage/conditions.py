"""A filter in the words of an engine, which finds what is meant, and perhaps more.

What each kind of query asks of a field stands here once; an engine says where a field can be, and how it
writes a condition on such a place. What it cannot say it leaves out: then all is looked at, and what a filter
means is found out here.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from embedding_studio.domain.filters import (
    BoolQuery,
    ExistsQuery,
    ListHasAllQuery,
    ListHasAnyQuery,
    PayloadFilter,
    Query,
    RangeQuery,
    TermQuery,
    TermsQuery,
)

Place = TypeVar("Place")
"""Where a field of a payload can be: a path, and what an engine knows of it."""
Said = TypeVar("Said")
"""A condition in the words of an engine."""
Bound = float | str | None
"""An end of a range, which belongs to it; None: there is none."""


class Words(Protocol[Place, Said]):
    """How an engine says a condition on one place; None: it cannot, so all has to be looked at."""

    def places(self, field: str) -> Sequence[Place] | None:
        """Return each place in which a filter's field can be, as ``ways``; None: unknown."""
        ...

    def is_one_of(self, place: Place, values: Sequence[Any]) -> Said | None: ...

    def has_any(self, place: Place, values: Sequence[Any]) -> Said | None:
        """Say that it is a list that holds one of the values."""
        ...

    def is_within(self, place: Place, low: Bound, high: Bound) -> Said | None:
        """Say that it is a number, or a text, from one end to the other; one of the two is not None."""
        ...

    def is_there(self, place: Place) -> Said | None: ...

    def every(self, conditions: list[Said]) -> Said: ...

    def some(self, conditions: list[Said]) -> Said:
        """Say that one of several holds; of none, that nothing is found."""
        ...


def translated(payload_filter: PayloadFilter | None, words: Words[Any, Said]) -> Said | None:
    """Return what finds all that a filter means, and perhaps more, in an engine's words; None: all does."""
    if payload_filter is None:
        return None
    wider = payload_filter.widened(lambda query: leaf(query, words) is not None, lambda _: False)
    return None if wider is None else _said(wider.query, words)


def _said(query: Query, words: Words[Any, Said]) -> Said:
    if not isinstance(query, BoolQuery):
        said = leaf(query, words)
        assert said is not None  # noqa: S101, what cannot be said was left out
        return said
    all_of = [_said(each, words) for each in (*(query.must or ()), *(query.filter or ()))]
    if query.should:
        all_of.append(words.some([_said(each, words) for each in query.should]))
    return words.every(all_of)


def leaf(query: Query, words: Words[Any, Said]) -> Said | None:
    """Return what one query is in an engine's words; None: it cannot be said, as a bool one."""
    said: Callable[[Any], Said | None]
    match query:
        case TermQuery(term=term):
            field, said = term.field, partial(words.is_one_of, values=[term.value])
        case TermsQuery(terms=terms):
            field, said = terms.field, partial(words.is_one_of, values=terms.values)
        case ListHasAnyQuery(any=wanted):
            field, said = wanted.field, partial(words.has_any, values=wanted.values)
        case ListHasAllQuery(all=wanted):
            field, said = wanted.field, partial(words.has_any, values=wanted.values[:1])
        case RangeQuery(field=name, range=bounds):
            low, high = _ends(bounds.bounds())
            field, said = name, partial(words.is_within, low=low, high=high)
        case ExistsQuery(field=name):
            field, said = name, words.is_there
        case _:
            return None
    places = words.places(field)
    if places is None:
        return None
    conditions = [said(place) for place in places]
    told = [each for each in conditions if each is not None]
    if len(told) < len(conditions):
        return None
    return told[0] if len(told) == 1 else words.some(told)


def comparisons(low: Bound, high: Bound) -> list[tuple[str, float | str, Callable[[float], int]]]:
    """Return of each end that there is the operator, itself, and how it is rounded into the range."""
    ends = [(">=", low, math.ceil), ("<=", high, math.floor)]
    return [(operator, bound, to_whole) for operator, bound, to_whole in ends if bound is not None]


def numbers_in(values: Sequence[Any]) -> list[int | float]:
    return [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]


def as_float64(number: float) -> float:
    """Return a number as float64 has it; one beyond it, as the nearest that it has."""
    return float(max(-sys.float_info.max, min(sys.float_info.max, number)))


def _ends(bounds: Mapping[str, float | str]) -> tuple[Bound, Bound]:
    """Return the ends of a range with both of them in it: an engine may round a bound to its neighbour."""
    low = [bound for name, bound in bounds.items() if name in ("gte", "gt", "eq")]
    high = [bound for name, bound in bounds.items() if name in ("lte", "lt", "eq")]
    return max(low, default=None), min(high, default=None)
