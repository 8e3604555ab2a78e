"""What a payload filter means. The same table is put to every storage by the contract suite."""

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.errors import InvalidFilterError

RED = {"field": "colour", "value": "red"}

CASES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    # term: same type, same value
    ({"term": RED}, {"colour": "red"}, True),
    ({"term": RED}, {"colour": "Red"}, False),
    ({"term": RED}, {"colour": "red "}, False),
    ({"term": RED}, {"colour": ["red"]}, False),
    ({"term": RED}, {"colour": None}, False),
    ({"term": RED}, {}, False),
    ({"term": {"field": "price", "value": 1}}, {"price": 1.0}, True),
    ({"term": {"field": "price", "value": 0.1}}, {"price": 0.1}, True),
    ({"term": {"field": "price", "value": 9007199254740993}}, {"price": 9007199254740992}, False),
    ({"term": {"field": "price", "value": 1e23}}, {"price": 10**23}, True),
    ({"field": "price", "range": {"gt": 1e23}}, {"price": 10**23}, False),
    ({"term": {"field": "price", "value": 1}}, {"price": "1"}, False),
    ({"term": {"field": "price", "value": "1"}}, {"price": 1}, False),
    ({"term": {"field": "price", "value": 1}}, {"price": True}, False),
    ({"term": {"field": "price", "value": 0}}, {"price": False}, False),
    ({"term": {"field": "sold", "value": True}}, {"sold": True}, True),
    ({"term": {"field": "sold", "value": True}}, {"sold": 1}, False),
    ({"term": {"field": "sold", "value": True}}, {"sold": "true"}, False),
    ({"term": {"field": "sold", "value": False}}, {"sold": False}, True),
    ({"term": {"field": "sold", "value": False}}, {}, False),
    ({"term": {"field": "title", "value": ""}}, {"title": ""}, True),
    ({"term": {"field": "title", "value": 'it\'s 100 %s \\ "so"'}}, {"title": 'it\'s 100 %s \\ "so"'}, True),
    ({"term": {"field": 'it\'s "so"', "value": "x"}}, {'it\'s "so"': "x"}, True),
    ({"term": {"field": "größe", "value": "groß 靴"}}, {"größe": "groß 靴"}, True),
    # a dot steps into an object, and into nothing else
    ({"term": {"field": "maker.name", "value": "acme"}}, {"maker": {"name": "acme"}}, True),
    ({"term": {"field": "a.b.c", "value": 3}}, {"a": {"b": {"c": 3}}}, True),
    # or is part of a key at the top, as in flattened exports; either will do
    ({"term": {"field": "maker.name", "value": "acme"}}, {"maker.name": "acme"}, True),
    ({"term": {"field": "maker.name", "value": "acme"}}, {"maker.name": "apex"}, False),
    ({"term": {"field": "a.b", "value": 1}}, {"a.b": 2, "a": {"b": 1}}, True),
    ({"term": {"field": "a.b", "value": 1}}, {"a.b": 1, "a": {"b": 2}}, True),
    ({"term": {"field": "a.b", "value": 1}}, {"a.b": 2, "a": {"b": 3}}, False),
    ({"term": {"field": "a.b.c", "value": 1}}, {"a.b": {"c": 1}}, True),
    ({"term": {"field": "a.b.c", "value": 1}}, {"a": {"b.c": 1}}, False),
    ({"must_not": [{"term": {"field": "a.b", "value": 1}}]}, {"a.b": 2, "a": {"b": 1}}, False),
    ({"terms": {"field": "a.b", "values": [1, 2]}}, {"a.b": 2}, True),
    ({"terms": {"field": "a.b", "values": [1, 2]}}, {"a.b": 3}, False),
    ({"any": {"field": "a.b", "values": ["x", "y"]}}, {"a.b": ["y"]}, True),
    ({"all": {"field": "a.b", "values": ["x", "y"]}}, {"a.b": ["y"], "a": {"b": ["x"]}}, False),
    ({"all": {"field": "a.b", "values": ["x", "y"]}}, {"a.b": ["y"], "a": {"b": ["x", "y"]}}, True),
    ({"field": "Metafield: custom.size", "range": {"gt": 3}}, {"Metafield: custom.size": 4}, True),
    ({"field": "a.b", "range": {"gt": 3, "lt": 5}}, {"a.b": 6, "a": {"b": 2}}, False),
    ({"field": "a.b"}, {"a.b": 0}, True),
    ({"field": "a.b"}, {"a.b": None, "a": {"b": 0}}, True),
    ({"field": "a.b"}, {"a.b": None, "a": {}}, False),
    ({"match": {"field": "a.b", "value": "red"}}, {"a.b": "red shoe"}, True),
    ({"match": {"field": "a.b", "value": "red shoe"}}, {"a.b": "red", "a": {"b": "shoe"}}, False),
    ({"match_phrase": {"field": "a.b", "value": "red shoe"}}, {"a.b": "a red shoe"}, True),
    ({"wildcard": {"field": "a.b", "value": "r*"}}, {"a.b": "red"}, True),
    ({"term": {"field": ".", "value": 1}}, {".": 1}, True),
    ({"term": {"field": "a.", "value": 1}}, {"a": {"": 1}}, True),
    ({"term": {"field": "maker.name", "value": "acme"}}, {"maker": "acme"}, False),
    ({"term": {"field": "tags.0", "value": "x"}}, {"tags": ["x"]}, False),
    # terms: one of these values
    ({"terms": {"field": "size", "values": ["s", 40]}}, {"size": 40.0}, True),
    ({"terms": {"field": "size", "values": ["s", 40]}}, {"size": "s"}, True),
    ({"terms": {"field": "size", "values": ["s", 40]}}, {"size": "40"}, False),
    ({"terms": {"field": "size", "values": [1]}}, {"size": True}, False),
    ({"terms": {"field": "size", "values": ["s"]}}, {"size": ["s"]}, False),
    ({"terms": {"field": "size", "values": ["s"]}}, {}, False),
    # any and all: of a list
    ({"any": {"field": "tags", "values": ["x", "y"]}}, {"tags": ["z", "y"]}, True),
    ({"any": {"field": "tags", "values": ["x", "y"]}}, {"tags": ["z"]}, False),
    ({"any": {"field": "tags", "values": ["x", "y"]}}, {"tags": []}, False),
    ({"any": {"field": "tags", "values": ["x"]}}, {"tags": "x"}, False),
    ({"any": {"field": "tags", "values": ["x"]}}, {"tags": [["x"]]}, False),
    ({"any": {"field": "tags", "values": ["x"]}}, {"tags": {"x": 1}}, False),
    ({"any": {"field": "tags", "values": [1]}}, {"tags": [True]}, False),
    ({"any": {"field": "tags", "values": [1]}}, {"tags": [1.0]}, True),
    ({"all": {"field": "tags", "values": ["x", "y"]}}, {"tags": ["y", "z", "x"]}, True),
    ({"all": {"field": "tags", "values": ["x", "y"]}}, {"tags": ["x"]}, False),
    ({"all": {"field": "tags", "values": ["x"]}}, {"tags": "x"}, False),
    ({"all": {"field": "tags", "values": [True, 1]}}, {"tags": [1, "1"]}, False),
    # range: a number within the bounds
    ({"field": "price", "range": {"gte": 10, "lt": 20}}, {"price": 10}, True),
    ({"field": "price", "range": {"gte": 10, "lt": 20}}, {"price": 19.99}, True),
    ({"field": "price", "range": {"gte": 10, "lt": 20}}, {"price": 20}, False),
    ({"field": "price", "range": {"gt": 10, "lte": 20}}, {"price": 10}, False),
    ({"field": "price", "range": {"gt": 10, "lte": 20}}, {"price": 20}, True),
    ({"field": "price", "range": {"eq": 0.1}}, {"price": 0.1}, True),
    ({"field": "price", "range": {"eq": 5}}, {"price": 6}, False),
    ({"field": "price", "range": {"gte": 0}}, {"price": -0.5}, False),
    ({"field": "price", "range": {"gte": 0}}, {"price": "12"}, False),
    ({"field": "price", "range": {"gte": 0}}, {"price": True}, False),
    ({"field": "price", "range": {"gte": 0}}, {"price": None}, False),
    ({"field": "price", "range": {"gte": 0}}, {}, False),
    ({"field": "size.cm", "range": {"gte": 0}}, {"size": {"cm": 3}}, True),
    ({"field": "price", "range": {"gt": 9007199254740992}}, {"price": 9007199254740993}, True),
    ({"field": "price", "range": {"lt": 10**400}}, {"price": 10**399}, True),
    ({"field": "price", "range": {"gt": 1e300}}, {"price": 10**399}, True),
    # or a text within bounds that are texts: ISO dates
    ({"field": "seen", "range": {"gte": "2024-02-01"}}, {"seen": "2024-02-01"}, True),
    ({"field": "seen", "range": {"gte": "2024-02-01"}}, {"seen": "2024-02-01T09:30:00Z"}, True),
    ({"field": "seen", "range": {"gte": "2024-02-01"}}, {"seen": "2024-01-31T23:59:59Z"}, False),
    ({"field": "seen", "range": {"gte": "2024-02", "lt": "2024-03"}}, {"seen": "2024-02-29"}, True),
    ({"field": "seen", "range": {"gte": "2024-02", "lt": "2024-03"}}, {"seen": "2024-03-01"}, False),
    ({"field": "seen", "range": {"gt": "2024"}}, {"seen": 2025}, False),
    ({"field": "seen", "range": {"gt": "2024"}}, {"seen": ["2025"]}, False),
    ({"field": "seen", "range": {"gt": 2024}}, {"seen": "2025"}, False),
    ({"field": "seen", "range": {"gt": "2024"}}, {}, False),
    ({"must_not": [{"field": "seen", "range": {"gt": "2024"}}]}, {"seen": 2025}, True),
    ({"field": "name", "range": {"gt": "Z"}}, {"name": "a"}, True),
    ({"field": "name", "range": {"gt": "z"}}, {"name": "ä"}, True),
    ({"field": "name", "range": {"gt": "\uff5e"}}, {"name": "🙂"}, True),
    ({"field": "name", "range": {"eq": "größe"}}, {"name": "größe"}, True),
    # a field alone: it is there and not null
    ({"field": "price"}, {"price": 0}, True),
    ({"field": "price"}, {"price": False}, True),
    ({"field": "price"}, {"price": []}, True),
    ({"field": "price"}, {"price": None}, False),
    ({"field": "price"}, {"cost": 1}, False),
    ({"field": "size.cm"}, {"size": {"cm": ""}}, True),
    ({"field": "size.cm"}, {"size": 3}, False),
    # match: all words, any order, any case
    ({"match": {"field": "title", "value": "shoe RED"}}, {"title": "A red, red SHOE!"}, True),
    ({"match": {"field": "title", "value": "red shoe"}}, {"title": "red shoes"}, False),
    ({"match": {"field": "title", "value": "red"}}, {"title": "infrared"}, False),
    ({"match": {"field": "title", "value": "snake_case"}}, {"title": "a snake_case name"}, True),
    ({"match": {"field": "title", "value": "snake"}}, {"title": "a snake_case name"}, False),
    ({"match": {"field": "title", "value": "ÉCOLE größe"}}, {"title": "Größe: école"}, True),
    ({"match": {"field": "title", "value": "мир"}}, {"title": "Война и МИР"}, True),
    ({"match": {"field": "title", "value": "50% o'clock"}}, {"title": "o clock, 50"}, True),
    ({"match": {"field": "title", "value": "red"}}, {"title": ["red"]}, False),
    ({"match": {"field": "title", "value": "7"}}, {"title": 7}, False),
    ({"match": {"field": "title", "value": "red"}}, {}, False),
    # match_phrase: the words one after the other
    ({"match_phrase": {"field": "title", "value": "Red shoe"}}, {"title": "The RED -- shoe."}, True),
    ({"match_phrase": {"field": "title", "value": "red shoe"}}, {"title": "shoe red"}, False),
    ({"match_phrase": {"field": "title", "value": "red shoe"}}, {"title": "red suede shoe"}, False),
    ({"match_phrase": {"field": "title", "value": "red shoe"}}, {"title": "red shoes"}, False),
    ({"match_phrase": {"field": "title", "value": "red shoe"}}, {"title": "infra red shoe"}, True),
    ({"match_phrase": {"field": "title", "value": "red shoe"}}, {"title": "infrared shoe"}, False),
    ({"match_phrase": {"field": "title", "value": "a b a c"}}, {"title": "a b a b a c"}, True),
    ({"match_phrase": {"field": "title", "value": "große Straße"}}, {"title": "Die GROßE straße"}, True),
    ({"match_phrase": {"field": "title", "value": "red"}}, {"title": None}, False),
    # wildcard: the whole text, with its case
    ({"wildcard": {"field": "sku", "value": "A-*"}}, {"sku": "A-17"}, True),
    ({"wildcard": {"field": "sku", "value": "A-*"}}, {"sku": "A-"}, True),
    ({"wildcard": {"field": "sku", "value": "A-*"}}, {"sku": "a-17"}, False),
    ({"wildcard": {"field": "sku", "value": "A-*"}}, {"sku": "BA-17"}, False),
    ({"wildcard": {"field": "sku", "value": "A-?"}}, {"sku": "A-1"}, True),
    ({"wildcard": {"field": "sku", "value": "A-?"}}, {"sku": "A-17"}, False),
    ({"wildcard": {"field": "sku", "value": "A-?"}}, {"sku": "A-靴"}, True),
    ({"wildcard": {"field": "sku", "value": "*7*"}}, {"sku": "line\n7\nline"}, True),
    ({"wildcard": {"field": "sku", "value": "a*b*c"}}, {"sku": "a-b-b-c"}, True),
    ({"wildcard": {"field": "sku", "value": "a*b*c"}}, {"sku": "a-c-b"}, False),
    ({"wildcard": {"field": "sku", "value": "*a*a"}}, {"sku": "a"}, False),
    ({"wildcard": {"field": "sku", "value": "a**a"}}, {"sku": "aa"}, True),
    ({"wildcard": {"field": "sku", "value": "100%"}}, {"sku": "100%"}, True),
    ({"wildcard": {"field": "sku", "value": "100%"}}, {"sku": "1000"}, False),
    ({"wildcard": {"field": "sku", "value": "a_b"}}, {"sku": "a_b"}, True),
    ({"wildcard": {"field": "sku", "value": "a_b"}}, {"sku": "axb"}, False),
    ({"wildcard": {"field": "sku", "value": "a\\*"}}, {"sku": "a\\b"}, True),
    ({"wildcard": {"field": "sku", "value": "[ab].+"}}, {"sku": "[ab].+"}, True),
    ({"wildcard": {"field": "sku", "value": "[ab].+"}}, {"sku": "a.x"}, False),
    ({"wildcard": {"field": "sku", "value": "*"}}, {"sku": 7}, False),
    # must, filter, should, must_not
    ({"must": [{"term": RED}, {"field": "price"}]}, {"colour": "red", "price": 1}, True),
    ({"must": [{"term": RED}, {"field": "price"}]}, {"colour": "red"}, False),
    ({"filter": [{"term": RED}]}, {"colour": "blue"}, False),
    ({"filter": [{"term": RED}], "must": [{"field": "price"}]}, {"colour": "red", "price": 1}, True),
    ({"should": [{"term": RED}, {"field": "price"}]}, {"price": 1}, True),
    ({"should": [{"term": RED}, {"field": "price"}]}, {}, False),
    ({"should": [{"term": RED}], "must": [{"field": "price"}]}, {"price": 1}, False),
    ({"should": [], "must": [{"field": "price"}]}, {"price": 1}, True),
    ({"must_not": [{"term": RED}]}, {"colour": "blue"}, True),
    ({"must_not": [{"term": RED}]}, {"colour": "red"}, False),
    ({"must_not": [{"term": RED}]}, {}, True),
    ({"must_not": [{"term": RED}]}, {"colour": None}, True),
    ({"must_not": [{"field": "price", "range": {"gt": 3}}]}, {}, True),
    ({"must_not": [{"field": "price", "range": {"gt": 3}}]}, {"price": "many"}, True),
    ({"must_not": [{"match": {"field": "title", "value": "red"}}]}, {"title": 3}, True),
    ({"must_not": [{"any": {"field": "tags", "values": ["x"]}}]}, {"tags": "x"}, True),
    ({"must_not": [{"must_not": [{"term": RED}]}]}, {"colour": "red"}, True),
    ({"must_not": [{"must_not": [{"term": RED}]}]}, {}, False),
    ({"must": [{"should": [{"term": RED}, {"must": [{"field": "a.b"}]}]}]}, {"a": {"b": 1}}, True),
]


@pytest.mark.parametrize(("query", "payload", "found"), CASES)
def test_a_filter_finds_what_its_table_says(query, payload, found):
    assert PayloadFilter.parse({"query": query}).matches(payload) is found


def test_the_table_holds_both_answers_for_every_kind_of_query():
    answers = {}
    for query, _, found in CASES:
        kind = next(iter(query)) if next(iter(query)) != "field" else "-".join(query)
        answers.setdefault(kind, set()).add(found)

    assert len(answers) == 13
    assert all(both == {True, False} for both in answers.values())


TERM = '{"query": {"term": {"field": "brand", "value": "acme"}}}'
TERMS = '{"query": {"terms": {"field": "brand", "values": ["acme", "apex"]}}}'
MATCH = '{"query": {"match": {"field": "title", "value": "red shoe"}}}'
RANGE = '{"query": {"field": "price", "range": {"gte": 10, "lt": 20}}}'


@pytest.mark.parametrize(
    ("misspelt", "place", "shape"),
    [
        ([1], "a filter is a JSON object", TERM),
        ("price > 3", "a filter is a JSON object", TERM),
        ({}, "filter.query: it is missing", TERM),
        ({"query": {}}, "filter.query: ", TERM),
        ({"query": [1]}, "filter.query: [1] is no kind of query", TERM),
        ({"query": {"trem": RED}}, "filter.query: ['trem'] is no kind of query", TERM),
        ({"query": {"bool": {"must": []}}}, "there are term, terms, match, match_phrase", TERM),
        ({"query": {"term": {"fields": "colour", "value": "red"}}}, "filter.query.term.field: ", TERM),
        ({"query": {"term": {"colour": "red"}}}, "filter.query.term.field: it is missing", TERM),
        ({"query": {"term": RED}, "limit": 3}, "filter.limit: this key is not known", TERM),
        ({"query": {"term": RED, "field": "price"}}, "filter.query.field: this key is not known", TERM),
        ({"query": {"term": {"field": "", "value": "red"}}}, "filter.query.term.field: ", TERM),
        ({"query": {"term": {"field": "colour", "value": None}}}, "filter.query.term.value: ", TERM),
        ({"query": {"term": {"field": "colour", "value": ["red"]}}}, "filter.query.term.value: ", TERM),
        ({"query": {"terms": {"field": "colour", "values": []}}}, "filter.query.terms.values: ", TERMS),
        ({"query": {"terms": {"field": "colour", "values": "red"}}}, "terms.values: a list is needed", TERMS),
        ({"query": {"terms": {"field": "a", "values": [1, {}]}}}, "filter.query.terms.values[1]: ", TERMS),
        ({"query": {"match": {"field": "title", "value": ""}}}, "filter.query.match.value: ", MATCH),
        ({"query": {"match": {"field": "title", "value": 3}}}, "filter.query.match.value: ", MATCH),
        ({"query": {"field": "price", "range": {}}}, "filter.query.range: ", RANGE),
        ({"query": {"field": "price", "range": {"gte": True}}}, "filter.query.range.gte: ", RANGE),
        ({"query": {"field": "price", "range": {"gte": "1", "lt": 2}}}, "filter.query.range: ", RANGE),
        ({"query": {"field": "price", "range": {"ge": 10}}}, "filter.query.range.ge: ", RANGE),
        ({"query": {"field": "price", "ranges": {"gte": 10}}}, "filter.query.ranges: ", '{"field": "price"}'),
        ({"query": {"must": []}}, "filter.query: ", '"must_not": '),
        (
            {"query": {"must": [{"term": RED}, {"trem": RED}]}},
            "filter.query.must[1]: ['trem']",
            '"must_not": ',
        ),
        ({"query": {"must": {"term": RED}}}, "filter.query.must: a list is needed", '"must_not": '),
        ({"query": {"term": {"field": "a", "value": "\0"}}}, "the filter cannot be used: ", "NUL"),
        ({"query": {"term": {"field": "a", "value": math.nan}}}, "the filter cannot be used: ", "nan"),
    ],
)
def test_a_misspelt_filter_is_refused_with_its_place_and_the_shape_of_its_kind(misspelt, place, shape):
    with pytest.raises(InvalidFilterError) as refused:
        PayloadFilter.parse(misspelt)

    assert place in str(refused.value)
    assert shape in str(refused.value)


def nested(levels):
    query: dict[str, Any] = {"term": RED}
    for _ in range(levels):
        query = {"must": [query]}
    return query


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"term": {"field": "a" + ".a" * 2_000, "value": 1}}, "more than 256 conditions"),
        ({"field": "." * 20_000}, "more than 256 conditions"),
        ({"field": "a" * 20_000}, "more than 1,024 characters"),
        ({"field": "." * 16}, "16 dots"),
        ({"field": "a" * 513}, "513 characters"),
        ({"terms": {"field": "a", "values": list(range(66_000))}}, "more than 1,024 values"),
        ({"should": [{"terms": {"field": "a", "values": [1] * 600}}] * 2}, "more than 1,024 values"),
        ({"terms": {"field": "a.b", "values": list(range(513))}}, "more than 1,024 values"),
        ({"match": {"field": "a", "value": "red " * 33}}, "more than 32 words"),
        ({"must": [{"match_phrase": {"field": "a", "value": "red " * 17}}] * 2}, "more than 32 words"),
        ({"match": {"field": "a", "value": "red " * 500_000}}, "more than 1,024 characters"),
        ({"wildcard": {"field": "a", "value": "*" * 1_025}}, "more than 1,024 characters"),
        ({"should": [{"field": "a"}] * 257}, "more than 256 conditions"),
        ({"should": [{"field": "a.b.c"}] * 86}, "more than 256 conditions"),
        (nested(40), "more than 64 levels"),
        (nested(100_000), "more than 256 conditions"),
        ({"trem": "x" * 2_000_000}, "more than 1,024 characters"),
        ({f"key {number}": 1 for number in range(100_000)}, "is no kind of query"),
    ],
)
def test_too_large_a_filter_is_refused_at_once_and_not_repeated(query, said):
    started = time.thread_time()
    with pytest.raises(InvalidFilterError, match=said) as refused:
        PayloadFilter.parse({"query": query})

    assert time.thread_time() - started < 2
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "query",
    [
        {"should": [{"term": {"field": "a", "value": number}} for number in range(255)]},
        {"terms": {"field": "a", "values": list(range(1_024))}},
        {"terms": {"field": "a.b", "values": list(range(512))}},
        {"match": {"field": "a", "value": "red " * 32}},
        {"field": ".".join("a" * 16)},
        {"field": "a" * 512},
        nested(28),
    ],
)
def test_as_much_as_the_limits_say_is_taken(query):
    assert PayloadFilter.parse({"query": query}).matches({"a": "b"}) is False


def test_a_wildcard_of_many_stars_is_answered_at_once():
    looked_for = PayloadFilter.parse({"query": {"wildcard": {"field": "a", "value": "*a" * 30 + "*b"}}})

    started = time.thread_time()
    found = looked_for.matches({"a": "a" * 20_000})

    assert not found
    assert time.thread_time() - started < 5


scalars = st.one_of(
    st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0, -0.0]), st.sampled_from(["", "1", "a"])
)
payloads = st.dictionaries(
    st.sampled_from(["a", "b"]), st.one_of(st.none(), scalars, st.lists(scalars, max_size=3)), max_size=2
)
leaves = st.one_of(
    st.builds(
        lambda field, value: {"term": {"field": field, "value": value}}, st.sampled_from("ab"), scalars
    ),
    st.builds(
        lambda field, bound: {"field": field, "range": {"gt": bound}},
        st.sampled_from("ab"),
        st.integers(-2, 2),
    ),
    st.builds(lambda field: {"field": field}, st.sampled_from("ab")),
)


def matches(query, payload):
    return PayloadFilter.parse({"query": query}).matches(payload)


@given(leaves, payloads)
def test_not_is_the_complement_whatever_the_payload(query, payload):
    assert matches({"must_not": [query]}, payload) is not matches(query, payload)


@given(st.lists(leaves, min_size=1, max_size=3), payloads)
def test_none_of_several_is_the_complement_of_one_of_them(queries, payload):
    assert matches({"must_not": queries}, payload) is not matches({"should": queries}, payload)


@given(scalars, payloads)
def test_a_term_is_terms_with_one_value(value, payload):
    term = matches({"term": {"field": "a", "value": value}}, payload)

    assert matches({"terms": {"field": "a", "values": [value]}}, payload) is term


@given(st.lists(scalars, min_size=1, max_size=3), payloads)
def test_holding_all_values_is_holding_each(values, payload):
    each = [matches({"any": {"field": "a", "values": [value]}}, payload) for value in values]

    assert matches({"all": {"field": "a", "values": values}}, payload) is all(each)
    assert matches({"any": {"field": "a", "values": values}}, payload) is any(each)
