"""What holds of every engine beside PostgreSQL: found and learnt as over objects that are kept here."""

import itertools
import os
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import PersonalState
from embedding_studio.errors import ConflictError
from embedding_studio.storage.attached import reconcile
from test_attached import (
    everything,
    learn,
    opened,
    rank_of,
    results,
    search_and_click,
    told,
    twin_of,
    vectors,
)

N = 211
ONE = np.eye(1, 5, dtype=np.float32)
APEX = PayloadFilter.parse({"query": {"term": {"field": "brand", "value": "apex"}}})

HOSTILE = ["it's", "x' OR 'a'='a", "a\x00b", "a\nb", "\\'", "--", ";drop table t", '"`', "%_", "é靴🙂", "''"]
"""Texts that end a literal, or a statement, if they are not quoted as they should be."""


def points(count=N):
    return [
        (
            k,
            vector.tolist(),
            {
                "sku": f"p{k:03}",
                "brand": "acme" if k % 3 else "apex",
                "price": k / 4,
                "tags": ["new"] * (k % 2),
            },
        )
        for k, vector in enumerate(vectors(count))
    ]


def assert_found_alike(ours, theirs, moved):
    """Check that Ann, who moved some objects, finds the same in two storages, each with its collection."""
    for wanted, named in itertools.product((None, APEX), (set(), {"p007", "p011", "p200", "unknown"})):
        found, expected = (
            storage.personal.nearest(
                known,
                "ann",
                vectors(2, seed=5),
                30,
                dict.fromkeys(moved, 0.7),
                objects=storage.objects,
                filter=wanted,
                named=dict.fromkeys(named, 0.0),
            )
            for storage, known in (ours, theirs)
        )
        assert found
        assert told(found) == [(each.object_id, each.distance, each.payload) for each in expected]


def milvus():
    """Return the Milvus at MILVUS_URL, in which a test may make collections."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed here: pip install '.[milvus]'")
    if (url := os.environ.get("MILVUS_URL")) is None:
        pytest.skip("no server of Milvus: give its address, as MILVUS_URL=http://127.0.0.1:19530")
    from milvus_collections import Collections

    return Collections(url)


@pytest.fixture(params=["qdrant", "lancedb", "milvus"])
def store(request, tmp_path):
    """Return a store in which somebody had points before."""
    if request.param == "qdrant":
        pytest.importorskip("qdrant_edge", reason="Qdrant's engine is not installed here")
        import qdrant_server

        with qdrant_server.qdrant(tmp_path) as server:
            yield qdrant_server.Collections(server)
    elif request.param == "milvus":
        with closing(milvus()) as store:
            yield store
    else:
        pytest.importorskip("lancedb", reason="LanceDB is not installed here: pip install '.[lancedb]'")
        from lancedb_tables import Tables

        yield Tables(tmp_path)


@pytest.fixture
def context(store, postgres_url):
    with opened(postgres_url, shared_min_users=0, attached_stores={"vectors": store.url}) as context:
        yield context


@pytest.fixture
def products(store, context):
    """Return a collection of ours that is attached to one of theirs, which is compared by cosine."""
    source = store.create("products", "cosine", points())
    return context.attach("products", source, object_id="sku", vector="embedding", store="vectors")


@pytest.mark.parametrize("metric", MetricType)
def test_what_an_engine_finds_is_what_the_twin_in_memory_finds(store, context, metric):
    source = store.create("things", metric.value, points())
    known = context.attach("things", source, object_id="sku", vector="embedding", store="vectors")
    objects = everything(context.storage, known)
    queries = vectors(3, seed=11)

    assert known.index.metric_type is metric
    assert context.storage.objects.count(known) == len(objects) == N
    for aggregation in MetricAggregationType:
        index = known.index.model_copy(update={"metric_aggregation_type": aggregation})
        collection = context.storage.collections.create(aggregation.value, index, attached=known.attached)
        memory, twin = twin_of(collection, objects)
        for limit in (1, 10, 97, N + 3):
            for wanted in (None, APEX):
                found = context.storage.objects.nearest(collection, queries, limit, filter=wanted)
                expected = memory.objects.nearest(twin, queries, limit, filter=wanted)
                assert told(found) == [(e.object_id, e.distance, e.payload) for e in expected], (
                    limit,
                    wanted,
                )


def test_a_user_finds_what_the_twin_in_memory_finds_by_the_same_copies(context, products):
    memory, twin = twin_of(products, everything(context.storage, products))
    moved = {f"p{k:03}": vectors(1, seed=k) for k in (7, 70, 170)}
    for storage, known in ((context.storage, products), (memory, twin)):
        storage.objects.originals(known, list(moved))
        with storage.personal.learning(known, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState(vectors=moved)})

    assert_found_alike((context.storage, products), (memory, twin), moved)


def test_a_click_moves_what_was_clicked_and_nothing_is_written_there(store, context, products):
    before = everything(context.storage, products)
    query = vectors(1, seed=9)
    clicked = results(context, query)[9].object_id
    search_and_click(context, "s1", "ann", clicked, query)
    learn(context)

    assert rank_of(results(context, query), clicked) < 9
    assert [each.object_id for each in results(context, query, "bob")][9] == clicked
    after = everything(context.storage, products)
    assert [(each.object_id, each.parts.tolist(), each.payload) for each in after] == [
        (each.object_id, each.parts.tolist(), each.payload) for each in before
    ]
    said = f"attached to {store.kind} {products.attached.source} of vectors, which is only"
    with pytest.raises(ConflictError, match=said):
        context.storage.objects.delete(products, [clicked])


def test_what_changed_or_went_does_not_count_at_once_and_is_learnt_anew(store, context, products):
    query = vectors(1, seed=9)
    changed, gone = (each.object_id for each in results(context, query)[8:10])
    for clicked in (changed, gone):
        search_and_click(context, f"s {clicked}", "ann", clicked, query)
    learn(context)
    there = {each.object_id: each for each in everything(context.storage, products)}
    payload = {"sku": changed, **there[changed].payload}
    store.put(products.attached.source, (int(changed[1:]), (-query[0]).tolist(), payload))
    store.delete(products.attached.source, int(gone[1:]))

    at_once = [each.object_id for each in results(context, query)]
    found = reconcile(context.storage, products)

    assert not {changed, gone} & set(at_once)
    assert len(at_once) == 10
    assert (found.changed, found.gone) == (1, 1)
    assert context.storage.personal.copies(products, "ann", [changed, gone]) == {}


def test_what_goes_while_all_are_read_makes_no_page_the_last(store, context, products, monkeypatch):
    engine = context.storage.objects.of(products)._engine
    get = engine.get

    def gone_meanwhile(collection, object_ids):
        monkeypatch.undo()
        store.delete(products.attached.source, 0)
        return get(collection, object_ids)

    monkeypatch.setattr(engine, "get", gone_meanwhile)

    [first] = context.storage.objects.scroll(products, limit=1)

    assert first.object_id == "p001"


@pytest.mark.parametrize(
    "query",
    [
        {"terms": {"field": "price", "values": [n / 4 for n in range(7, 1031)]}},
        {"terms": {"field": "brand", "values": ["apex", *(f"x{n}" for n in range(1023))]}},
        {"terms": {"field": "price", "values": [*(f"x{n}" for n in range(500)), 1.75, *range(500, 900)]}},
        {"any": {"field": "tags", "values": ["new", *(f"x{n}" for n in range(1023))]}},
        {"should": [{"field": "price", "range": {"gte": n + 3, "lt": n + 4}} for n in range(255)]},
        {"must": [{"field": "price", "range": {"gte": n / 100}} for n in range(255)]},
    ],
)
def test_a_filter_as_long_as_filters_can_be_is_asked(context, products, query):
    wanted = PayloadFilter.parse({"query": query})

    found = context.storage.objects.nearest(products, ONE, N, filter=wanted)

    meant = {f"p{k:03}" for k, _, payload in points() if wanted.matches(payload)}
    assert {each.object_id for each in found} == meant != set()


WHOLE = [-(2**63) + 1, -(2**53) - 1, -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1]
REAL = [-1e300, -2.25, -0.0, 0.0, 5e-324, 0.1, 1.0, 3.0, 2.0**53, 1e300]
TEXTS = [*(each for each in HOSTILE if "\x00" not in each), "", "red", "Red", "1", "true", "\uff5e", "\t"]
KEPT: dict[str, list[Any]] = {
    "whole": WHOLE,
    "real": REAL,
    "text": TEXTS,
    "flag": [True, False],
    "texts": [[], ["red"], ["red", "it's"], [""], TEXTS],
    "wholes": [[], [0], [2**53 + 1, 1], [-1]],
    "reals": [[], [-0.0], [0.1, 3.0]],
}
SCALARS = st.sampled_from([*WHOLE, *REAL, *TEXTS, True, False, 2**64, 10**400, 0.5])
ENDS = st.one_of(
    st.dictionaries(
        st.sampled_from(["gte", "gt", "lte", "lt", "eq"]),
        st.sampled_from(WHOLE + REAL + [10**400]),
        min_size=1,
    ),
    st.dictionaries(st.sampled_from(["gte", "gt", "lte", "lt", "eq"]), st.sampled_from(TEXTS), min_size=1),
)
FIELDS = st.sampled_from([*KEPT, "flag.x", "nothing"])
LISTS = st.lists(SCALARS, min_size=1, max_size=4)
LEAVES = st.one_of(
    st.builds(lambda field, value: {"term": {"field": field, "value": value}}, FIELDS, SCALARS),
    *(
        st.builds(
            lambda kind, field, values: {kind: {"field": field, "values": values}},
            st.just(kind),
            FIELDS,
            LISTS,
        )
        for kind in ("terms", "any", "all")
    ),
    st.builds(lambda field, ends: {"field": field, "range": ends}, FIELDS, ENDS),
    st.builds(lambda field: {"field": field}, FIELDS),
    st.just({"match": {"field": "text", "value": "red"}}),
)
QUERIES = st.recursive(
    LEAVES,
    lambda each: st.dictionaries(
        st.sampled_from(["must", "should", "filter", "must_not"]),
        st.lists(each, min_size=1, max_size=2),
        min_size=1,
    ),
    max_leaves=5,
)


def test_a_filter_means_of_every_engine_what_it_means_in_memory(store, context):
    payloads = {
        f"p{k:03}": {
            name: values[(k * (n + 1)) % len(values)] for n, (name, values) in enumerate(KEPT.items())
        }
        for k in range(40)
    }
    rows = [
        (k, [1.0, 0, 0, 0, 0], {"sku": sku, **payload}) for k, (sku, payload) in enumerate(payloads.items())
    ]
    source = store.create("values", "dot", rows)
    collection = context.attach("values", source, object_id="sku", vector="embedding", store="vectors")

    @given(QUERIES)
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def means_the_same(query):
        wanted = PayloadFilter.parse({"query": query})
        found = context.storage.objects.nearest(collection, ONE, N, filter=wanted)

        meant = {sku for sku, payload in payloads.items() if wanted.matches(payload)}
        assert {each.object_id for each in found} == meant

    means_the_same()
