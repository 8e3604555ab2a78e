"""Payload filters: what an object's payload must say to be found.

The grammar is the one that clients of the existing system send. One key names the kind of query::

    {"query": {"term": {"field": "brand", "value": "acme"}}}
    {"query": {"terms": {"field": "brand", "values": ["acme", "apex"]}}}
    {"query": {"field": "price", "range": {"gte": 10, "lt": 20}}}
    {"query": {"field": "price"}}                                        the field exists
    {"query": {"match": {"field": "title", "value": "red shoe"}}}        all words, any order
    {"query": {"match_phrase": {"field": "title", "value": "red shoe"}}}
    {"query": {"wildcard": {"field": "sku", "value": "A-*"}}}
    {"query": {"any": {"field": "tags", "values": ["x", "y"]}}}          the list holds one of them
    {"query": {"all": {"field": "tags", "values": ["x", "y"]}}}          the list holds all of them
    {"query": {"must": [...], "should": [...], "must_not": [...], "filter": [...]}}

A range is of numbers, or of texts by their code points: ``{"gte": "2024-02-01"}`` is one of ISO dates.

A dot in a field steps into an object, and may also be part of a key at the top of the payload, as in
flattened exports: ``color.name`` is found in ``{"color": {"name": ...}}`` and in ``{"color.name": ...}``.

A misspelt filter is refused, never ignored. How much one may hold stands in ``domain/limits.py``.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)

from embedding_studio.domain.limits import (
    MAX_FIELD_LENGTH,
    MAX_FIELD_STEPS,
    MAX_FILTER_CONDITIONS,
    MAX_FILTER_TEXT,
    MAX_FILTER_VALUES,
    MAX_FILTER_WORDS,
)
from embedding_studio.domain.storable import check_json
from embedding_studio.errors import InvalidFilterError, shown


def _scalar(given: Any) -> Any:
    if not isinstance(given, str | int | float):  # a bool is an int
        raise ValueError(f"a text, a number, true or false is needed; there is {shown(given)}")  # noqa: TRY004, pydantic reports ValueError
    return given


def _bound(given: Any) -> Any:
    if given is not None and not isinstance(given, str) and not _is_number(given):
        raise ValueError(f"a number or a text is needed; there is {shown(given)}")
    return given


Scalar = Annotated[
    str | int | float | bool, PlainValidator(_scalar, json_schema_input_type=str | int | float | bool)
]
Bound = Annotated[int | float | str | None, PlainValidator(_bound, json_schema_input_type=float | str | None)]


def check_field(given: str) -> str:
    """Return what was given if it can name a field of a payload.

    Raises:
        ValueError: it is empty, too long, or has too many dots.
    """
    if not given:
        raise ValueError("the name of a field is empty")
    if len(given) > MAX_FIELD_LENGTH:
        raise ValueError(f"the name of a field has {len(given)} characters; at most {MAX_FIELD_LENGTH} fit")
    if (dots := given.count(".")) >= MAX_FIELD_STEPS:
        raise ValueError(f"the name of a field has {dots} dots; fewer than {MAX_FIELD_STEPS} fit")
    return given


def ways(field: str) -> list[list[str]]:
    """Return the keys by which a field is reached: the longest first key first.

    >>> ways("color.name")
    [['color.name'], ['color', 'name']]
    """
    steps = field.split(".")
    return [[".".join(steps[:n]), *steps[n:]] for n in range(len(steps), 0, -1)]


def values(payload: Any, field: str) -> Iterator[Any]:
    """Yield what stands in a field and is not null: nothing, one value, or one for each way to it."""
    for keys in ways(field):
        value = payload
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
            if value is None:
                break
        else:
            yield value


FieldName = Annotated[str, AfterValidator(check_field)]


class _Query(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FieldValue(_Query):
    field: FieldName
    value: Scalar


class FieldText(_Query):
    field: FieldName
    value: str = Field(min_length=1)


class FieldValues(_Query):
    field: FieldName
    values: tuple[Scalar, ...] = Field(min_length=1, strict=False)


class RangeCondition(_Query):
    gte: Bound = None
    lte: Bound = None
    gt: Bound = None
    lt: Bound = None
    eq: Bound = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        kinds = {isinstance(bound, str) for bound in self.bounds().values()}
        if not kinds:
            raise ValueError("a range needs at least one of gte, gt, lte, lt, eq")
        if len(kinds) > 1:
            raise ValueError("the bounds of a range are all numbers, or all texts")
        return self

    def bounds(self) -> dict[str, float | str]:
        """Return the bounds there are: all numbers, or all texts."""
        return {name: bound for name, bound in self if bound is not None}

    def holds(self, found: Any) -> bool:
        bounds = self.bounds()
        is_of_texts = isinstance(next(iter(bounds.values())), str)
        if not (isinstance(found, str) if is_of_texts else _is_number(found)):
            return False
        return all(_COMPARED[name](_exact(found), _exact(bound)) for name, bound in bounds.items())


class TermQuery(_Query):
    """The field is this value: same type, same value; 1 and 1.0 are the same number."""

    term: FieldValue

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(_same(found, self.term.value) for found in values(payload, self.term.field))


class TermsQuery(_Query):
    """The field is one of these values."""

    terms: FieldValues

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(_holds(self.terms.values, found) for found in values(payload, self.terms.field))


class ListHasAnyQuery(_Query):
    """The field is a list that holds at least one of these values."""

    any: FieldValues

    def matches(self, payload: Mapping[str, Any]) -> bool:
        lists = (found for found in values(payload, self.any.field) if isinstance(found, list))
        return any(_holds(found, value) for found in lists for value in self.any.values)


class ListHasAllQuery(_Query):
    """The field is a list that holds all of these values."""

    all: FieldValues

    def matches(self, payload: Mapping[str, Any]) -> bool:
        lists = (found for found in values(payload, self.all.field) if isinstance(found, list))
        return any(all(_holds(found, value) for value in self.all.values) for found in lists)


class MatchQuery(_Query):
    """The field is a text in which every word of the value occurs, whatever the case and order."""

    match: FieldText

    def matches(self, payload: Mapping[str, Any]) -> bool:
        wanted = set(_words(self.match.value))
        return any(wanted <= set(_words(found)) for found in _texts(payload, self.match.field))


class MatchPhraseQuery(_Query):
    """The field is a text in which the words of the value occur one after the other."""

    match_phrase: FieldText

    def matches(self, payload: Mapping[str, Any]) -> bool:
        phrase = _words(self.match_phrase.value)
        return any(_has_phrase(_words(found), phrase) for found in _texts(payload, self.match_phrase.field))


class WildcardQuery(_Query):
    """The field is a text like the value, whole and with its case; ``*`` is any text, ``?`` one character."""

    wildcard: FieldText

    def matches(self, payload: Mapping[str, Any]) -> bool:
        pattern = _pattern(self.wildcard.value)
        return any(pattern.fullmatch(found) is not None for found in _texts(payload, self.wildcard.field))


class RangeQuery(_Query):
    """The field is a number, or a text, within bounds of its kind."""

    field: FieldName
    range: RangeCondition

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(self.range.holds(found) for found in values(payload, self.field))


class ExistsQuery(_Query):
    """The field is there and not null."""

    field: FieldName

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(True for _ in values(payload, self.field))


class BoolQuery(_Query):
    """All of ``must`` and ``filter``, none of ``must_not``, and at least one of ``should`` if given."""

    must: "tuple[Query, ...] | None" = Field(default=None, strict=False)
    should: "tuple[Query, ...] | None" = Field(default=None, strict=False)
    filter: "tuple[Query, ...] | None" = Field(default=None, strict=False)
    must_not: "tuple[Query, ...] | None" = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any((self.must, self.should, self.filter, self.must_not)):
            raise ValueError("a bool query needs a non-empty must, should, filter or must_not")
        return self

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return (
            all(query.matches(payload) for query in (*(self.must or ()), *(self.filter or ())))
            and not any(query.matches(payload) for query in self.must_not or ())
            and (not self.should or any(query.matches(payload) for query in self.should))
        )


EXAMPLES = {
    "term query": {"term": {"field": "brand", "value": "acme"}},
    "terms query": {"terms": {"field": "brand", "values": ["acme", "apex"]}},
    "match query": {"match": {"field": "title", "value": "red shoe"}},
    "match_phrase query": {"match_phrase": {"field": "title", "value": "red shoe"}},
    "wildcard query": {"wildcard": {"field": "sku", "value": "A-*"}},
    "any query": {"any": {"field": "tags", "values": ["x", "y"]}},
    "all query": {"all": {"field": "tags", "values": ["x", "y"]}},
    "range query": {"field": "price", "range": {"gte": 10, "lt": 20}},
    "exists query": {"field": "price"},
    "bool query": {"must": [{"term": {"field": "brand", "value": "acme"}}], "must_not": [{"field": "sold"}]},
}
"""An example of each kind of query; the names are tags, which stand in the places of pydantic's errors."""

NO_KIND = "no_kind_of_query"

_TAG_OF_KEY = {
    **{key: f"{key} query" for key in ("term", "terms", "match", "match_phrase", "wildcard", "any", "all")},
    **dict.fromkeys(("must", "should", "filter", "must_not"), "bool query"),
    "range": "range query",
    "field": "exists query",
}


def _tag(given: Any) -> str | None:
    keys = given if isinstance(given, Mapping) else getattr(given, "model_fields_set", ())
    return next((tag for key, tag in _TAG_OF_KEY.items() if key in keys), None)


Query = Annotated[
    Annotated[TermQuery, Tag("term query")]
    | Annotated[TermsQuery, Tag("terms query")]
    | Annotated[MatchQuery, Tag("match query")]
    | Annotated[MatchPhraseQuery, Tag("match_phrase query")]
    | Annotated[WildcardQuery, Tag("wildcard query")]
    | Annotated[ListHasAnyQuery, Tag("any query")]
    | Annotated[ListHasAllQuery, Tag("all query")]
    | Annotated[RangeQuery, Tag("range query")]
    | Annotated[ExistsQuery, Tag("exists query")]
    | Annotated[BoolQuery, Tag("bool query")],
    Discriminator(
        _tag,
        custom_error_type=NO_KIND,
        custom_error_message="is no kind of query; there are term, terms, match, match_phrase, wildcard, "
        "any, all, field + range, field alone (exists), and must, should, filter, must_not",
    ),
]


class PayloadFilter(_Query):
    query: Query

    @classmethod
    def parse(cls, given: object) -> Self:
        """Return the filter that a JSON object stands for.

        Raises:
            InvalidFilterError: it is none; the message says where, and shows one of the kind.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise InvalidFilterError(
                f"a filter is a JSON object, such as {_filter_like('term query')}; there is {shown(given)}"
            )
        try:
            _check_size(given)
            check_json(dict(given))
        except ValueError as error:
            raise InvalidFilterError(f"the filter cannot be used: {error}") from error
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidFilterError(_described(error)) from error

    def as_sent(self) -> dict[str, Any]:
        """Return the JSON object that ``parse`` reads back."""
        return self.model_dump(mode="json", exclude_unset=True)

    def widened(
        self, is_known: "Callable[[Query], bool]", is_exact: "Callable[[Query], bool]"
    ) -> Self | None:
        """Return one that finds all that this does and perhaps more; None: it would find everything.

        For an engine that does not know each kind of query, and means something wider by others.

        Args:
            is_known: whether the engine finds all that a query, not a bool one, does.
            is_exact: whether it finds that and nothing else, so that ``must_not`` can be left to it.
        """
        query = _widened(self.query, is_known, is_exact)
        return None if query is None else self.model_copy(update={"query": query})

    def matches(self, payload: Mapping[str, Any]) -> bool:
        """Return whether an object with this payload is found.

        >>> tall = PayloadFilter.parse({"query": {"field": "size.cm", "range": {"gt": 10}}})
        >>> tall.matches({"size": {"cm": 11}})
        True
        """
        return self.query.matches(payload)


def _widened(
    query: "Query", is_known: "Callable[[Query], bool]", is_exact: "Callable[[Query], bool]"
) -> "Query | None":
    if not isinstance(query, BoolQuery):
        return query if is_known(query) else None

    def those_of(queries: "Iterable[Query] | None") -> "list[Query | None]":
        return [_widened(each, is_known, is_exact) for each in queries or ()]

    must = [each for each in (*those_of(query.must), *those_of(query.filter)) if each is not None]
    should = those_of(query.should)
    must_not = [each for each in query.must_not or () if _is_whole(each, is_exact)]
    sides = {
        "must": tuple(must),
        "should": () if None in should else tuple(should),
        "must_not": tuple(must_not),
    }
    return BoolQuery.model_validate(given) if (given := {k: v for k, v in sides.items() if v}) else None


def _is_whole(query: "Query", is_exact: "Callable[[Query], bool]") -> bool:
    if not isinstance(query, BoolQuery):
        return is_exact(query)
    clauses = (*(query.must or ()), *(query.filter or ()), *(query.should or ()), *(query.must_not or ()))
    return all(_is_whole(each, is_exact) for each in clauses)


_COMPARED = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
    "eq": operator.eq,
}
_WORD = re.compile(r"\w+")


_REASONS = {
    "extra_forbidden": "this key is not known here; is it misspelt?",
    "missing": "it is missing",
    "tuple_type": "a list is needed",
    "model_type": "a JSON object is needed",
}


def _described(error: ValidationError) -> str:
    """Return where a filter is wrong, why, and what its kind of query looks like."""
    problem = error.errors(include_url=False)[0]
    kind = next((str(step) for step in reversed(problem["loc"]) if step in EXAMPLES), None)
    place = "filter"
    for step in problem["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step not in EXAMPLES:
            place += f".{shown(step)[1:-1]}"
    why = _REASONS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    if problem["type"] == NO_KIND:
        given = problem["input"]
        why = f"{shown(list(given) if isinstance(given, Mapping) else given)} {why}"
    what = "a filter" if kind is None else f"{'an' if kind[0] in 'ae' else 'a'} {kind}"
    return f"{place[:200]}: {why}; {what} looks like {_filter_like(kind or 'term query')}"


def _filter_like(kind: str) -> str:
    return json.dumps({"query": EXAMPLES[kind]})


def _check_size(given: Mapping[str, Any]) -> None:
    """Return if a filter is small enough to be looked at; it need not be one.

    Raises:
        ValueError: it holds too much.
    """
    conditions = listed = words = 0
    waiting: list[Any] = [given]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            conditions += _tag(value) is not None and not value.keys() & {"value", "values"}
            waiting.extend(value.values())
            further_ways, further_values = _further(value)
            conditions, listed = conditions + further_ways, listed + further_values
            words += sum(_number_of_words(value.get(kind)) for kind in ("match", "match_phrase"))
        elif isinstance(value, list | tuple):
            listed += len(value)
            waiting.extend(value)
        elif isinstance(value, str) and len(value) > MAX_FILTER_TEXT:
            raise ValueError(f"one of its texts has more than {MAX_FILTER_TEXT:,} characters")
        if conditions > MAX_FILTER_CONDITIONS:
            raise ValueError(f"it has more than {MAX_FILTER_CONDITIONS} conditions")
        if listed > MAX_FILTER_VALUES:
            raise ValueError(f"it lists more than {MAX_FILTER_VALUES:,} values")
        if words > MAX_FILTER_WORDS:
            raise ValueError(f"its match and match_phrase have more than {MAX_FILTER_WORDS} words")


def _further(condition: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many ways to its field, and values looked for by them, a condition has beside the first."""
    field, listed = condition.get("field"), condition.get("values")
    dots = field.count(".") if isinstance(field, str) else 0
    return dots, dots * len(listed) if isinstance(listed, list) else 0


def _number_of_words(match: Any) -> int:
    text = match.get("value") if isinstance(match, Mapping) else None
    return len(_WORD.findall(text)) if isinstance(text, str) and len(text) <= MAX_FILTER_TEXT else 0


def _texts(payload: Any, field: str) -> Iterator[str]:
    return (found for found in values(payload, field) if isinstance(found, str))


def _has_phrase(words: list[str], phrase: list[str]) -> bool:
    starts = range(len(words) - len(phrase) + 1)
    return any(words[start : start + len(phrase)] == phrase for start in starts)


@lru_cache
def _pattern(wildcard: str) -> re.Pattern[str]:
    """Return a pattern in which each ``*`` takes as little as it can, and nothing is tried again."""
    first, *others = (
        "".join("." if c == "?" else re.escape(c) for c in piece) for piece in wildcard.split("*")
    )
    *middle, last = others or [""]
    return re.compile(
        first + "".join(f"(?>.*?{piece})" for piece in middle) + (".*" if others else "") + last, re.DOTALL
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(found: Any, value: Any) -> bool:
    """Return whether two JSON values are equal; to Python ``True == 1``, to JSON not."""
    if _is_number(found) and _is_number(value):
        return bool(_exact(found) == _exact(value))
    return type(found) is type(value) and found == value


def _exact(value: Any) -> Any:
    """Return the number that JSON writes for a float too large to have a fraction: 10^23 for 1e23.

    To Python that is 99999999999999991611392, and so another number than the one that is written out.
    """
    is_large = isinstance(value, float) and 2**53 <= abs(value) < math.inf
    return int(Decimal(repr(value))) if is_large else value


def _holds(found: Iterable[Any], value: Any) -> bool:
    return any(_same(item, value) for item in found)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


BoolQuery.model_rebuild()
