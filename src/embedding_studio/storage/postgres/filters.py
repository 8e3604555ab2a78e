"""Payload filters as SQL conditions; every field and value is a parameter.

What a filter means is defined by ``PayloadFilter.matches``; this is the same for the database. Conditions on
containment (``@>``) are answered by the index on the payload.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_studio.domain.filters import (
    BoolQuery,
    ExistsQuery,
    ListHasAllQuery,
    ListHasAnyQuery,
    MatchPhraseQuery,
    MatchQuery,
    PayloadFilter,
    Query,
    RangeQuery,
    TermQuery,
    TermsQuery,
    WildcardQuery,
    ways,
)

_CONTAINS = "o.payload @> {}"
_CONTAINS_ONE = "o.payload @> ANY ({}::jsonb[])"
_TEXT = "(jsonb_path_query_first(o.payload, {}::jsonpath, '{{}}', true) #>> '{{}}')"
_MATCHES = f"embedding_studio.holds({_TEXT}, embedding_studio.each_word({{}}))"
_HAS_PHRASE = f"embedding_studio.holds({_TEXT}, embedding_studio.phrase({{}}))"
_IS_LIKE = f"coalesce({_TEXT} LIKE {{}}, false)"
_IS_TEXT = '@.type() == "string"'
_EXISTS = "coalesce(jsonb_path_exists(o.payload, {}::jsonpath, {}, true), false)"

_BOUNDS = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<", "eq": "=="}
_LIKE = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_", "*": "%", "?": "_"})


Instead = Callable[[Query, dict[str, Any]], sql.Composable | None]
"""Says one query in other words, with what it adds to the parameters; None: it cannot."""


def condition(
    payload_filter: PayloadFilter, instead: Instead | None = None
) -> tuple[sql.Composable, dict[str, Any]]:
    """Return what ``o.payload`` must fulfil, true or false but never NULL, and its parameters.

    Args:
        instead: is asked first of all that is not within a ``must_not``; what it says may be NULL for
            false, and find more than is meant, as the condition does then.
    """
    parameters: dict[str, Any] = {}
    return _compile(payload_filter.query, parameters, instead), parameters


def tested(parameters: dict[str, Any], template: str, *values: Any) -> sql.Composable:
    """Return the template with each value as a parameter: filter_0, filter_1, ..."""
    names = [f"filter_{len(parameters) + k}" for k in range(len(values))]
    parameters.update(zip(names, values, strict=True))
    return sql.SQL(template).format(*map(sql.Placeholder, names))


def _compile(query: Query, parameters: dict[str, Any], instead: Instead | None) -> sql.Composable:
    if instead is not None and (said := instead(query, parameters)) is not None:
        return said
    match query:
        case BoolQuery():
            return joined(" AND ", _clauses(query, parameters, instead))
        case TermQuery() | TermsQuery() | ListHasAnyQuery() | ListHasAllQuery():
            field, candidates = _wanted(query)
            payloads = [nested(keys, each) for keys in ways(field) for each in candidates]
            if len(payloads) == 1:
                return tested(parameters, _CONTAINS, *payloads)
            return tested(parameters, _CONTAINS_ONE, payloads)
        case _:
            field, template, which, value = _looked_for(query)
            by_each = (f"{_path(keys)} ? ({which})" for keys in ways(field))
            return _one_of([tested(parameters, template, path, value) for path in by_each])


def _wanted(query: TermQuery | TermsQuery | ListHasAnyQuery | ListHasAllQuery) -> tuple[str, Sequence[Any]]:
    """Return a field and its candidates: it is one of them, or a list that holds all of one."""
    match query:
        case TermQuery(term=term):
            return term.field, [term.value]
        case TermsQuery(terms=terms):
            return terms.field, terms.values
        case ListHasAnyQuery(any=wanted):
            return wanted.field, [[value] for value in wanted.values]
        case ListHasAllQuery(all=wanted):
            return wanted.field, [list(wanted.values)]


def _looked_for(
    query: MatchQuery | MatchPhraseQuery | WildcardQuery | RangeQuery | ExistsQuery,
) -> tuple[str, str, str, Any]:
    """Return a field, the test of what stands there, what is looked at, as a JSON path, and a parameter."""
    match query:
        case MatchQuery(match=text):
            return text.field, _MATCHES, _IS_TEXT, text.value
        case MatchPhraseQuery(match_phrase=text):
            return text.field, _HAS_PHRASE, _IS_TEXT, text.value
        case WildcardQuery(wildcard=text):
            return text.field, _IS_LIKE, _IS_TEXT, text.value.translate(_LIKE)
        case RangeQuery(field=field, range=bounds):
            given = bounds.bounds()
            within = " && ".join(f"@ {_BOUNDS[bound]} ${bound}" for bound in given)
            return field, _EXISTS, within, Jsonb(given)
        case ExistsQuery(field=field):
            return field, _EXISTS, "@ != null", Jsonb({})


def _clauses(
    query: BoolQuery, parameters: dict[str, Any], instead: Instead | None
) -> Iterator[sql.Composable]:
    for clause in (*(query.must or ()), *(query.filter or ())):
        yield _compile(clause, parameters, instead)
    if query.should:
        yield _one_of(_compile(clause, parameters, instead) for clause in query.should)
    for clause in query.must_not or ():
        yield sql.SQL("NOT {}").format(_compile(clause, parameters, None))


def _one_of(conditions: Iterable[sql.Composable]) -> sql.Composable:
    return joined(" OR ", conditions)


def joined(by: str, conditions: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL("({})").format(sql.SQL(by).join(conditions))


def nested(keys: Iterable[str], value: Any) -> Jsonb:
    """Return the smallest payload in which this value is reached by these keys."""
    for key in reversed(list(keys)):
        value = {key: value}
    return Jsonb(value)


def _path(keys: Iterable[str]) -> str:
    """Return keys as a JSON path; in strict mode it steps into objects alone, not through lists."""
    return "strict $" + "".join(f".{json.dumps(key)}" for key in keys)
