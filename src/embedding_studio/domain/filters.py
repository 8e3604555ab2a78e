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


class TermsQuery(_Query):
    """The field is one of these values."""

    terms: FieldValues


class ListHasAnyQuery(_Query):
    """The field is a list that holds at least one of these values."""

    any: FieldValues


class ListHasAllQuery(_Query):
    """The field is a list that holds all of these values."""

    all: FieldValues


class MatchQuery(_Query):
    """The field is a text in which every word of the value occurs, whatever the case and order."""

    match: FieldText


class MatchPhraseQuery(_Query):
    """The field is a text in which the words of the value occur one after the other."""

    match_phrase: FieldText


class WildcardQuery(_Query):
    """The field is a text like the value, whole and with its case; ``*`` is any text, ``?`` one character."""

    wildcard: FieldText


class RangeQuery(_Query):
    """The field is a number within the bounds."""

    field: str = Field(min_length=1)
    range: RangeCondition


class ExistsQuery(_Query):
    """The field is there and not null."""

    field: str = Field(min_length=1)


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


BoolQuery.model_rebuild()
