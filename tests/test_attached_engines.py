"""What holds of every engine beside PostgreSQL: found and learnt as over objects that are kept here."""

import os
from contextlib import closing

import pytest

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

    for wanted in (None, APEX):
        found, expected = (
            storage.personal.nearest(
                known,
                "ann",
                vectors(2, seed=5),
                30,
                dict.fromkeys(moved, 0.7),
                objects=storage.objects,
                filter=wanted,
            )
            for storage, known in ((context.storage, products), (memory, twin))
        )
        assert found
        assert told(found) == [(each.object_id, each.distance, each.payload) for each in expected]


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
