"""A collection of Milvus that was there before, found by the server at MILVUS_URL."""

import json
from contextlib import closing
from typing import Any

import numpy as np
import orjson
import pytest

from embedding_studio.api.app import create_app
from embedding_studio.doctor import examine
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import Attachment, Collection
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError
from embedding_studio.storage.attached.objects import AttachedObjects
from embedding_studio.storage.milvus import Milvus
from test_api_service import SEARCH, serving
from test_attached import D, opened, vectors
from test_attached_engines import HOSTILE, N, milvus, points
from test_filters import CASES


@pytest.fixture
def store():
    with closing(milvus()) as store:
        yield store


@pytest.fixture
def context(store, postgres_url):
    with opened(postgres_url, attached_stores={"far": store.url}) as context:
        yield context


def attached(store, source, **given):
    """Return the objects of a collection there, and one attached to it, without a database of ours."""
    objects = AttachedObjects(Milvus(store.url, name="far"))
    place, index = objects.found(Attachment("", source, "far", **given), None)
    return objects, Collection(1, "x", index, attached=place)


def is_found(objects, collection, query):
    wanted = PayloadFilter.parse({"query": query})
    at = np.eye(1, collection.index.dimensions, dtype=np.float32)
    return {each.object_id for each in objects.nearest(collection, at, 999, filter=wanted)}


def storable():
    """Return the cases whose payloads Milvus can hold: numbers of 64 bits, names that are not empty."""
    for k, (query, payload, expected) in enumerate(CASES):
        try:
            orjson.dumps(payload)
        except TypeError:
            continue
        yield k, query, payload, expected


@pytest.mark.parametrize("place", ["fields", "document"])
def test_a_filter_means_of_milvus_what_it_means_of_our_own_objects(store, place):
    from pymilvus import DataType

    cases = list(storable())
    if place == "document":
        known = [(f"{k}", [1.0, 0.0], {"body": payload}) for k, _, payload, _ in cases]
        source = store.create("documents", "dot", known, body=(DataType.JSON, {}))
        objects, collection = attached(store, source, document="body")
    else:
        known = [(f"{k}", [1.0, 0.0], payload) for k, _, payload, _ in cases]
        objects, collection = attached(store, store.create("documents", "dot", known))

    wrong = [
        (given, payload)
        for k, query, payload, expected in cases
        for given, is_expected in ((query, expected), ({"must_not": [query]}, not expected))
        if (f"{k}" in is_found(objects, collection, given)) is not is_expected
    ]

    assert len(cases) > 150
    assert wrong == []


def test_a_filter_means_of_fields_of_a_schema_what_it_means_of_our_own_objects(store):
    from pymilvus import DataType

    text, real, whole = (DataType.VARCHAR, {"max_length": 99}), (DataType.FLOAT, {}), (DataType.INT8, {})
    tags = (DataType.ARRAY, {"element_type": DataType.VARCHAR, "max_capacity": 9, "max_length": 99})
    sizes = (DataType.ARRAY, {"element_type": DataType.INT32, "max_capacity": 9})
    payloads = [
        {"colour": "red", "price": 0.1, "n": 127, "sold": True, "tags": ["x", "y"], "sizes": [1]},
        {"colour": "blue", "price": 1e38, "n": -128, "sold": False, "tags": [], "sizes": [2, 3]},
        {"colour": "it's", "price": -0.5, "n": 5, "sold": False, "tags": ["x"], "sizes": []},
    ]
    known = [(k, [1.0, 0.0], payload) for k, payload in enumerate(payloads)]
    kinds = {"colour": text, "price": real, "n": whole, "sold": (DataType.BOOL, {})}
    source = store.create("typed", "euclid", known, **kinds, tags=tags, sizes=sizes)
    objects, collection = attached(store, source)
    there = {each.object_id: each.payload for each in objects.get(collection, ["0", "1", "2"])}
    ranges = [("gte", 0.1), ("gt", 0.1), ("lt", 1e300), ("gt", 1e300), ("eq", 5.5), ("lte", 127), ("gt", 127)]
    queries = [
        *({"field": name, "range": {op: b}} for name in ("price", "n", "colour") for op, b in ranges),
        *({"term": {"field": name, "value": v}} for name in kinds for v in ("red", "it's", 5, 0.1, True, 1)),
        *({"any": {"field": name, "values": [v]}} for name in ("tags", "sizes") for v in ("x", 1, 2.0, True)),
        {"field": "colour", "range": {"gte": "c"}},
        {"term": {"field": "colour.name", "value": "red"}},
        {"field": "price"},
    ]

    for query in queries:
        meant = {k for k, payload in there.items() if PayloadFilter.parse({"query": query}).matches(payload)}
        assert is_found(objects, collection, query) == meant, query


def test_a_field_of_json_as_a_whole_and_the_ends_of_whole_numbers_are_asked(store):
    from pymilvus import DataType

    known = [(str(k), [1.0, 0.0], {"any": {"n": k}, "n": (2**63 - 1) // (k + 1)}) for k in range(5)]
    source = store.create("whole", "dot", known, any=(DataType.JSON, {}), n=(DataType.INT64, {}))
    objects, collection = attached(store, source)
    deep: dict[str, Any] = {"term": {"field": "any.n", "value": 0}}
    for _ in range(28):
        deep = {"must": [{"field": "n", "range": {"gt": 1}}], "should": [deep, {"field": "nothing"}]}

    for query in (
        {"term": {"field": "any", "value": "red"}},
        {"field": "any", "range": {"lte": 3}},
        {"any": {"field": "any", "values": ["red"]}},
        {"term": {"field": "n", "value": -(2**63)}},
    ):
        assert is_found(objects, collection, query) == set()
    assert is_found(objects, collection, {"term": {"field": "any.n", "value": 1}}) == {"1"}
    most = {"field": "n", "range": {"gte": -(2**63), "lt": 2**62}}
    assert is_found(objects, collection, most) == {"1", "2", "3", "4"}
    assert is_found(objects, collection, deep) == {"0"}


def test_fields_are_named_whatever_they_are_called(store):
    names = ("n", "x y", "a.b", 'q"q', "größe")
    known = [(k, [1.0, 0.0], dict.fromkeys(names, k) | {"other": 1}) for k in range(3)]
    objects, collection = attached(store, store.create("named", "dot", known), payload=names)

    [found] = objects.get(collection, ["1"])

    assert found.payload == dict.fromkeys(names, 1)
    assert {
        json.dumps(each.payload) for each in objects.nearest(collection, np.eye(1, 2, dtype=np.float32), 9)
    } == {json.dumps(dict.fromkeys(names, k)) for k in range(3)}
    for name in names:
        assert is_found(objects, collection, {"term": {"field": name, "value": 2}}) == {"2"}
    assert objects.get(collection, [str(-(2**63)), str(2**70), "-0"]) == []


def test_ids_and_values_are_texts_whatever_they_hold(store, monkeypatch):
    monkeypatch.setattr(
        "embedding_studio.storage.milvus.READ_AT_ONCE", 2
    )  # of which one is the last of a page
    source = store.create("texts", "dot", [(each, [1.0, 0.0], {"title": each}) for each in HOSTILE])
    objects, collection = attached(store, source)

    for each in HOSTILE:
        if "\x00" not in each:  # no id of ours
            assert [found.payload for found in objects.get(collection, [each])] == [{"title": each}]
            assert is_found(objects, collection, {"term": {"field": "title", "value": each}}) == {each}
    assert objects.get(collection, ["x"]) == []
    assert {each.object_id for each in objects.scroll(collection, limit=99)} == {
        each for each in HOSTILE if "\x00" not in each
    }


@pytest.mark.parametrize(("name", "most"), [("MOST_CANDIDATES", 100), ("MOST_BYTES", 100 * 4 * D)])
def test_more_than_a_search_can_bring_is_read_and_compared_here(store, monkeypatch, name, most):
    monkeypatch.setattr(f"embedding_studio.storage.milvus.{name}", most)
    objects, collection = attached(store, store.create("products", "cosine", points()), object_id="sku")
    rare = PayloadFilter.parse({"query": {"match": {"field": "sku", "value": "p007"}}})
    query = vectors(1, seed=11)

    assert [each.object_id for each in objects.nearest(collection, query, 9, filter=rare)] == []
    assert len(objects.nearest(collection, query, 999)) == N
    assert objects.nearest(collection, query, 9) == objects.nearest(collection, query, 9, margin=np.inf)


def test_what_cannot_be_attached_is_told_in_a_sentence(store):
    plain = store.create("plain", "cosine", points(7))
    bare = store.create("bare", "cosine", points(7), index=None)
    released = store.create("released", "cosine", points(7))
    store.client.release_collection(released)
    engine = Milvus(store.url, name="far")

    cases: list[tuple[str, dict[str, Any], MetricType | None, str]] = [
        ("nowhere", {}, None, "has no collection 'nowhere'; it has "),
        (plain, {"object_id": "brand"}, None, "has no field 'brand'; it has id, embedding, sku"),
        (plain, {"object_id": "embedding"}, None, "are of the type FLOAT_VECTOR, and can be VARCHAR"),
        (plain, {"vector": "sku"}, None, "is of the type VARCHAR, and vectors are FLOAT_VECTOR"),
        (plain, {"document": "sku"}, None, "is of the type VARCHAR; the payload can be one field of JSON"),
        (plain, {}, MetricType.DOT, "is compared by cosine, and not by dot"),
        (bare, {}, None, "has no index, so Milvus cannot search it; index its vectors, load"),
        (released, {}, None, "is not loaded, so Milvus cannot search it; load the collection there"),
    ]
    for source, given, metric, said in cases:
        with pytest.raises(InvalidInputError, match=said):
            engine.found(Attachment("", source, "far", **given), metric)
    store.put(plain, (8, [1.0] * 5, {"sku": "p003"}))
    with pytest.raises(InvalidInputError, match="'sku' is 'p003' in several entities"):
        engine.found(Attachment("", plain, "far", object_id="sku"), None)


@pytest.mark.parametrize("wrong", ["gone", "released", "slow"])
def test_a_milvus_that_is_away_makes_a_503_and_other_collections_go_on(store, context, wrong, caplog):
    source = store.create("products", "cosine", points())
    products = context.attach("products", source, object_id="sku", store="far")
    context.storage.collections.create("films", products.index)
    match wrong:
        case "gone":
            store.drop(source)
            said = "put it back, or drop the collection"
        case "released":
            store.client.release_collection(source)
            said = "load the collection there"
        case "slow":
            context.storage.objects.of(products)._engine._seconds = 1e-6
            said = "did not answer in time"
    query = {"search_query": vectors(1).tolist(), "user_id": "ann"}

    with serving(create_app(context)) as client:
        away, other = (
            client.post(SEARCH, json=query | {"collection": name}) for name in ("products", "films")
        )
    [grade] = {each.grade for each in examine(context) if each.what == "collection products"}

    assert (away.status_code, other.status_code) == (503, 200)
    assert said in caplog.text
    assert "Traceback" not in caplog.text
    assert grade == "FAIL"


def test_what_an_operator_should_know_is_told(store, context):
    source = store.create("products", "euclid", points())
    known = context.attach("products", source, object_id="sku", store="far")

    examined = context.storage.objects.examined(known)

    assert examined.told == (
        f"Milvus's collection {source} of far, only read, by sku and embedding, found by its index "
        "embedding (HNSW)"
    )
    assert (examined.advice, examined.is_exact) == ((), False)


def test_a_server_that_does_not_answer_is_named_without_its_password():
    pytest.importorskip("pymilvus", reason="pymilvus is not installed here: pip install '.[milvus]'")

    with pytest.raises(AttachedUnavailableError, match=r"the store 'far' \(http://127.0.0.1:1\)") as e:
        Milvus("milvus+http://ann:secret@127.0.0.1:1", name="far", statement_seconds=0.5)

    assert "secret" not in str(e.value)
