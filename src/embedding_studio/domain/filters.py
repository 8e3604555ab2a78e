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

A dot in a field steps into an object. A misspelt filter is refused, never ignored.
"""

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedding_studio.errors import InvalidFilterError

Scalar = str | int | float | bool


class _Query(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FieldValue(_Query):
    field: str = Field(min_length=1)
    value: Scalar


class FieldText(_Query):
    field: str = Field(min_length=1)
    value: str = Field(min_length=1)


class FieldValues(_Query):
    field: str = Field(min_length=1)
    values: tuple[Scalar, ...] = Field(min_length=1, strict=False)


class RangeCondition(_Query):
    gte: float | None = None
    lte: float | None = None
    gt: float | None = None
    lt: float | None = None
    eq: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if all(bound is None for bound in (self.gte, self.lte, self.gt, self.lt, self.eq)):
            raise ValueError("a range needs at least one of gte, gt, lte, lt, eq")
        return self


class TermQuery(_Query):
    """The field is this value: same type, same value; 1 and 1.0 are the same number."""

    term: FieldValue

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return _same(_value(payload, self.term.field), self.term.value)


class TermsQuery(_Query):
    """The field is one of these values."""

    terms: FieldValues

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.terms.field)
        return any(_same(found, value) for value in self.terms.values)


class ListHasAnyQuery(_Query):
    """The field is a list that holds at least one of these values."""

    any: FieldValues

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.any.field)
        return isinstance(found, list) and any(_holds(found, value) for value in self.any.values)


class ListHasAllQuery(_Query):
    """The field is a list that holds all of these values."""

    all: FieldValues

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.all.field)
        return isinstance(found, list) and all(_holds(found, value) for value in self.all.values)


class MatchQuery(_Query):
    """The field is a text in which every word of the value occurs, whatever the case and order."""

    match: FieldText

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.match.field)
        return isinstance(found, str) and set(_words(self.match.value)) <= set(_words(found))


class MatchPhraseQuery(_Query):
    """The field is a text in which the words of the value occur one after the other."""

    match_phrase: FieldText

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.match_phrase.field)
        if not isinstance(found, str):
            return False
        words, phrase = _words(found), _words(self.match_phrase.value)
        starts = range(len(words) - len(phrase) + 1)
        return any(words[start : start + len(phrase)] == phrase for start in starts)


class WildcardQuery(_Query):
    """The field is a text like the value, whole and with its case; ``*`` is any text, ``?`` one character."""

    wildcard: FieldText

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.wildcard.field)
        pieces = (_WILDCARDS.get(character) or re.escape(character) for character in self.wildcard.value)
        return isinstance(found, str) and re.fullmatch("".join(pieces), found, re.DOTALL) is not None


class RangeQuery(_Query):
    """The field is a number within the bounds."""

    field: str = Field(min_length=1)
    range: RangeCondition

    def matches(self, payload: Mapping[str, Any]) -> bool:
        found = _value(payload, self.field)
        bounds = self.range
        return (
            _is_number(found)
            and (bounds.gte is None or found >= bounds.gte)
            and (bounds.gt is None or found > bounds.gt)
            and (bounds.lte is None or found <= bounds.lte)
            and (bounds.lt is None or found < bounds.lt)
            and (bounds.eq is None or found == bounds.eq)
        )


class ExistsQuery(_Query):
    """The field is there and not null."""

    field: str = Field(min_length=1)

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return _value(payload, self.field) is not None


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


Query = (
    TermQuery
    | TermsQuery
    | MatchQuery
    | MatchPhraseQuery
    | WildcardQuery
    | ListHasAnyQuery
    | ListHasAllQuery
    | RangeQuery
    | ExistsQuery
    | BoolQuery
)


class PayloadFilter(_Query):
    query: Query

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Return the filter that a JSON object stands for.

        Raises:
            InvalidFilterError: it is none; the message says where and lists the kinds there are.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidFilterError(
                f"the filter {dict(given)!r} is not understood; a filter is "
                '{"query": ...} with one of term, terms, match, match_phrase, wildcard, any, all, '
                "field + range, field alone (exists), or must/should/filter/must_not"
            ) from error

    def as_sent(self) -> dict[str, Any]:
        """Return the JSON object that ``parse`` reads back."""
        return self.model_dump(mode="json", exclude_unset=True)

    def matches(self, payload: Mapping[str, Any]) -> bool:
        """Return whether an object with this payload is found.

        >>> tall = PayloadFilter.parse({"query": {"field": "size.cm", "range": {"gt": 10}}})
        >>> tall.matches({"size": {"cm": 11}})
        True
        """
        return self.query.matches(payload)


_WORD = re.compile(r"\w+")
_WILDCARDS = {"*": ".*", "?": "."}


def _value(payload: Any, field: str) -> Any:
    """Return what stands in a field, None where nothing does; a dot steps into an object."""
    for key in field.split("."):
        if not isinstance(payload, Mapping):
            return None
        payload = payload.get(key)
    return payload


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(found: Any, value: Scalar) -> bool:
    """Return whether two JSON values are equal; to Python ``True == 1``, to JSON not."""
    return (type(found) is type(value) or (_is_number(found) and _is_number(value))) and found == value


def _holds(found: list[Any], value: Scalar) -> bool:
    return any(_same(item, value) for item in found)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


BoolQuery.model_rebuild()
