"""Collections that another engine finds for us: what is written here is found there, whatever goes wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import httpx
import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from embedding_studio.api.app import create_app
from embedding_studio.cli import app
from embedding_studio.doctor import examine
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, PersonalState
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import (
    AttachedUnavailableError,
    CollectionNotFoundError,
    ConflictError,
    InvalidInputError,
)
from embedding_studio.storage.attached.engines import Point
from embedding_studio.storage.attached.filling import Backlog, Mended
from embedding_studio.storage.postgres import outbox as pg_outbox
from processes import environment_of
from test_api_service import serving
from test_attached import learn, opened, rank_of, results, search_and_click, told, twin_of, vectors
from test_attached_engines import APEX, assert_found_alike, milvus

N = 211
D = 5
NAME = "embedding_studio_test_filled"


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("qdrant_edge", reason="Qdrant's engine is not installed here")
    import qdrant_server

    with qdrant_server.qdrant(tmp_path) as server:
        yield server


@pytest.fixture
def context(server, postgres_url):
    with opened(postgres_url, shared_min_users=0, attached_stores={"vectors": server.url}) as context:
        yield context


@pytest.fixture(params=["qdrant", "lancedb", "milvus"])
def each_context(request, tmp_path, postgres_url):
    """Return a context beside each engine that can be had here."""
    if request.param == "qdrant":
        url = request.getfixturevalue("server").url
    elif request.param == "lancedb":
        pytest.importorskip("lancedb", reason="LanceDB is not installed here: pip install '.[lancedb]'")
        url = f"lancedb://{tmp_path}"
    else:
        with closing(milvus()) as store:  # which says why if there is none
            url = store.url
    with opened(postgres_url, shared_min_users=0, attached_stores={"vectors": url}) as context:
        yield context
        for each in context.storage.collections.list():
            context.storage.collections.drop(each.name)


@pytest.fixture
def products(context):
    known = filled(context)
    context.storage.objects.upsert(known, objects())
    return known


def objects(count=N, parts=1, seed=3):
    given = vectors(count * parts, seed).reshape(count, parts, -1)
    return [
        CatalogueObject(f"p{k:03}", each, {"brand": "acme" if k % 3 else "apex", "price": k / 4})
        for k, each in enumerate(given)
    ]


def filled(context, name="products", metric=MetricType.COSINE, aggregation=MetricAggregationType.MIN):
    index = SearchIndexInfo(dimensions=D, metric_type=metric, metric_aggregation_type=aggregation)
    return context.collection(name, index=index, fill="vectors")


def points(server, name="products"):
    """Return what the engine has: object_id -> (direction, payload) of a collection of one part each."""
    found = server.shards[name].retrieve(numbers(server, name), True, True)
    return {each.payload["_object_id"]: each for each in found}


def numbers(server, name="products"):
    import qdrant_edge as edge

    found, _ = server.shards[name].scroll(edge.ScrollRequest(limit=10_000))
    return [each.id for each in found]


def nearest(context, known, query, limit=10, **more):
    return [each.object_id for each in context.storage.objects.nearest(known, query, limit, **more)]


def engine_of(context, known):
    return context.storage.objects.filling._engine(known)


def backlog(context):
    [each] = context.storage.objects.filling.backlog()
    return each


@pytest.mark.parametrize("aggregation", MetricAggregationType)
@pytest.mark.parametrize("metric", MetricType)
def test_what_is_found_is_what_the_twin_in_memory_finds(each_context, metric, aggregation, monkeypatch):
    known = filled(each_context, NAME, metric=metric, aggregation=aggregation)
    each_context.storage.objects.upsert(known, objects(parts=3))
    memory, twin = twin_of(known, objects(parts=3))
    queries = vectors(2, seed=11)
    engine = engine_of(each_context, known)
    asked, near = [], engine.near

    def counted(*given, **more):
        asked.append(given)
        return near(*given, **more)

    monkeypatch.setattr(engine, "near", counted)

    for limit in (1, 10, 97, N + 3):
        for wanted in (None, APEX):
            found = each_context.storage.objects.nearest(known, queries, limit, filter=wanted)
            expected = memory.objects.nearest(twin, queries, limit, filter=wanted)
            assert told(found) == [(e.object_id, e.distance, e.payload) for e in expected]
    assert len(asked) >= 8
    assert backlog(each_context) == Backlog(known.name, 0, 0, 0, None)


def test_what_is_written_and_removed_is_so_in_every_engine(each_context):
    known = filled(each_context, NAME)
    storage, query = each_context.storage, vectors(1, seed=9)
    storage.objects.upsert(known, objects())
    first, second, third = nearest(each_context, known, query, 3)

    storage.objects.upsert(known, [CatalogueObject(first, -query, {"brand": "new", "n": [1, None, 0.5]})])
    storage.objects.update_payloads(known, {second: {"price": 7}})
    storage.objects.delete(known, [third])

    engine, view = engine_of(each_context, known), pg_outbox._view(known)
    there = sorted(engine.numbers(view))
    got = {each.payload["_object_id"]: each for each in engine.get(view, list(map(str, there)))}
    assert len(there) == len(got) == N - 1
    assert got[first].payload == {"_object_id": first, "brand": "new", "n": [1, None, 0.5]}
    assert got[second].payload == {"_object_id": second, "price": 7}
    assert third not in got
    assert nearest(each_context, known, query, 1) == [second]


def test_every_engine_is_mended(each_context):
    known = filled(each_context, NAME)
    each_context.storage.objects.upsert(known, objects())
    engine, view = engine_of(each_context, known), pg_outbox._view(known)
    there = {
        each.payload["_object_id"]: each for each in engine.get(view, list(map(str, engine.numbers(view))))
    }
    p003, p005, p006 = (int(there[each].object_id) for each in ("p003", "p005", "p006"))
    engine.remove(view, [p003])
    other, payload = vectors(1, seed=77)[0], there["p005"].payload
    engine.put(view, [Point(p005, other, payload), Point(p006, vectors(N)[6], {}), Point(9 << 40, other, {})])

    filling = each_context.storage.objects.filling
    assert filling.reconcile(known) == Mended(missing=1, stale=2, leftover=1)
    assert filling.reconcile(known) == Mended(0, 0, 0)
    engine.drop(view)
    assert filling.reconcile(known) == Mended(missing=N, stale=0, leftover=0)
    assert filling.reconcile(known) == Mended(0, 0, 0)


def test_a_user_finds_what_the_twin_in_memory_finds_by_the_same_copies(server, context, products):
    memory, twin = twin_of(products, objects())
    moved = {f"p{k:03}": vectors(1, seed=k) for k in (7, 70, 170)}
    for storage, known in ((context.storage, products), (memory, twin)):
        with storage.personal.learning(known, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState(vectors=moved)})
    server.requests.clear()

    assert_found_alike((context.storage, products), (memory, twin), moved)
    assert server.requests


def test_what_is_written_changed_or_removed_is_so_there_when_the_call_returns(server, context, products):
    storage, query = context.storage, vectors(1, seed=9)
    first, second = nearest(context, products, query, 2)
    assert points(server)[first].payload == {
        "_object_id": first,
        **storage.objects.get(products, [first])[0].payload,
    }

    storage.objects.upsert(products, [CatalogueObject(first, -query, {"brand": "new"})])
    storage.objects.update_payloads(products, {second: {"price": 7}})
    storage.objects.delete(products, ["p000"])

    there = points(server)
    assert len(numbers(server)) == N - 1
    assert "p000" not in there
    assert there[first].payload == {"_object_id": first, "brand": "new"}
    assert there[second].payload == {"_object_id": second, "price": 7}
    assert nearest(context, products, query, 1) == [second]
    assert nearest(context, products, query, N + 1)[-1] == first
    assert backlog(context).objects == 0


def test_what_changes_while_the_engine_is_away_is_found_at_once_and_told_later(server, context, products):
    storage, query = context.storage, vectors(1, seed=9)
    first, second = nearest(context, products, query, 2)
    server.answer = (503, {"status": {"error": "not now"}})

    storage.objects.upsert(products, [CatalogueObject("fresh", query)])
    storage.objects.delete(products, [first])

    waiting = backlog(context)
    assert waiting.objects == 2
    assert "answered 503" in waiting.away
    assert nearest(context, products, query, 2) == ["fresh", second]
    assert "fresh" not in points(server)

    server.answer = None
    context.storage.objects.filling._failed.clear()
    assert nearest(context, products, query, 2) == [
        "fresh",
        second,
    ]  # it is not there yet, and compared besides
    storage.objects.filling.deliver_all()
    assert points(server).keys() >= {"fresh", second}
    assert first not in points(server)
    assert backlog(context) == Backlog("products", 0, 0, 0, None)
    assert nearest(context, products, query, 2) == ["fresh", second]


def test_an_engine_that_is_away_is_not_asked_by_each_search(server, context, products):
    server.answer = (503, {"status": {"error": "not now"}})
    nearest(context, products, vectors(1))
    server.answer = None
    server.requests.clear()

    found = nearest(context, products, vectors(1, seed=9))

    assert not server.requests
    assert found == nearest(context, products, vectors(1, seed=9), margin=np.inf)


def test_an_object_that_the_engine_refuses_fails_alone_is_told_of_and_is_found(server, context, products):
    server.refused = "gold"
    query = vectors(1, seed=9)
    given = [CatalogueObject(f"n{k}", vectors(1, seed=k), {"of": "tin"}) for k in range(7)]

    context.storage.objects.upsert(products, [*given, CatalogueObject("bar", query, {"of": "gold"})])

    waiting = backlog(context)
    assert (waiting.objects, waiting.refused) == (1, 1)
    assert "it holds gold" in waiting.error
    assert points(server).keys() >= {each.object_id for each in given}
    assert nearest(context, products, query, 1) == ["bar"]

    context.storage.objects.update_payloads(products, {"bar": {"of": "lead"}})
    assert points(server)["bar"].payload["of"] == "lead"


def test_who_moved_an_object_that_changes_is_learnt_anew(context, products):
    query = vectors(1, seed=9)
    clicked = results(context, query)[9].object_id
    search_and_click(context, "s1", "ann", clicked, query)
    learn(context)
    assert rank_of(results(context, query), clicked) < 9
    assert [each.object_id for each in results(context, query, "bob")][9] == clicked

    context.storage.objects.upsert(products, [CatalogueObject(clicked, -query)])

    assert context.storage.personal.copies(products, "ann", [clicked]) == {}
    assert context.storage.queue.info().waiting == 1


def test_a_collection_that_is_dropped_goes_there_and_what_is_there_is_not_taken(server, context, products):
    server.create("theirs", {"size": D, "distance": "Cosine"})
    server.upsert("theirs", [(1, [1.0] * D, {})])
    with pytest.raises(ConflictError, match="theirs of vectors is there already: attach"):
        filled(context, "theirs")
    server.create("wider", {"size": D + 1, "distance": "Cosine"})
    with pytest.raises(ConflictError, match="wider of vectors is there already, and it has 6 dimensions"):
        filled(context, "wider")
    own = context.storage.collections.create("own", products.index)
    with pytest.raises(ConflictError, match=r"asked for is .* found by the table own of vectors"):
        filled(context, own.name)
    assert filled(context) == products == context.storage.collections.create("products", products.index)

    context.storage.collections.drop("products")

    assert set(server.shards) == {"theirs", "wider"}
    assert filled(context).collection_id != products.collection_id


def test_a_name_that_an_engine_does_not_take_is_told_of(server, context, monkeypatch):
    monkeypatch.setattr(server, "refused_name", "bad name")

    with pytest.raises(
        InvalidInputError, match=r"bad name of vectors cannot be made there, is it the name\?"
    ):
        filled(context, "bad name")
    with pytest.raises(CollectionNotFoundError):
        context.storage.collections.get("bad name")


def test_a_database_is_not_filled(postgres_url):
    with (
        opened(postgres_url, attached_stores={"vectors": postgres_url}) as context,
        pytest.raises(InvalidInputError, match="'vectors' is a database, whose tables can be attached"),
    ):
        filled(context)


WRITER = """
import sys
import numpy as np
from embedding_studio import Context, load_settings
from embedding_studio.domain.objects import CatalogueObject
with Context(load_settings(embedder="none")) as context:
    known = context.storage.collections.get("products")
    rng = np.random.default_rng(int(sys.argv[1]))
    for k in range(100_000):
        ids = rng.choice(300, 20, replace=False)
        given = [CatalogueObject(f"w{n}", rng.normal(size=(2, 5)), {"k": k}) for n in ids]
        context.storage.objects.upsert(known, given)
        context.storage.objects.delete(known, [f"w{n}" for n in rng.choice(300, 5)])
        print(k, flush=True)
"""


def test_writers_that_are_killed_lose_nothing_and_leave_nothing(server, context, postgres_url):
    known = filled(context)
    environment = environment_of(postgres_url) | {"ATTACHED_STORES": f'{{"vectors": "{server.url}"}}'}
    stop = threading.Event()
    teller = threading.Thread(target=context.worker().run, args=(stop,))
    teller.start()
    for seed in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(seed + n)], env=environment, stdout=subprocess.PIPE
            )
            for n in (10, 20)
        ]
        for each in writers:
            each.stdout.readline()
        time.sleep(0.2 * (1 + seed))
        for each in writers:
            os.kill(each.pid, signal.SIGKILL)
            each.stdout.close()
            each.wait()
    stop.set()
    teller.join()
    with psycopg.connect(postgres_url) as connection:
        [(rows,)] = connection.execute("SELECT count(*) FROM embedding_studio.outbox")

    context.storage.objects.filling.deliver_all()

    count = context.storage.objects.count(known)
    assert backlog(context).objects == 0
    assert len(numbers(server)) == 2 * count > 200
    assert context.storage.objects.filling.reconcile(known) == Mended(0, 0, 0), f"{rows} were waiting"


def test_doctor_readyz_and_metrics_tell_of_what_an_engine_does_not_know(server, context, products):
    with serving(create_app(context)) as client:
        ready = client.get("/readyz").json()
        assert ready["parts"]["engines"] == "ok"
        server.refused = "gold"
        context.storage.objects.upsert(products, [CatalogueObject("bar", vectors(1), {"of": "gold"})])
        ready = client.get("/readyz")
        assert ready.status_code == 200
        [told] = ready.json()["failing"]
        assert "'products' lacks 1 object, 1 of which it refused" in told
        server.answer = (503, {"status": {"error": "not now"}})
        context.storage.objects.delete(products, ["p000"])
        [told] = client.get("/readyz").json()["failing"]
        assert told == "what finds 'products' does not answer, so all is compared here"
        numbers_told = client.get("/metrics").text
    assert 'embedding_studio_outbox_objects{collection="products",state="refused"} 1.0' in numbers_told
    assert 'embedding_studio_outbox_objects{collection="products",state="waiting"} 1.0' in numbers_told
    assert 'embedding_studio_engine_away{collection="products"} 1.0' in numbers_told
    server.answer = None
    findings = {each.what: each for each in examine(context)}
    assert findings["engine"].grade == "WARN"
    assert "it refused 1, one of them so:" in findings["engine"].told
    assert findings["collection products"].told.endswith(
        "kept here, found by Qdrant's collection products of vectors"
    )


def test_a_collection_is_filled_over_http_and_from_the_command_line(server, context, postgres_url):
    environment = {"DATABASE_URL": postgres_url, "ATTACHED_STORES": f'{{"vectors": "{server.url}"}}'}
    with serving(create_app(context)) as client:
        body = {"name": "films", "index": {"dimensions": D}, "fill": "vectors"}
        made = client.post("/api/v1/collections", json=body)
        refused = client.post("/api/v1/collections", json=body | {"fill": "elsewhere"})
    assert made.json()["filled"] == "Qdrant's collection films of vectors"
    assert refused.status_code == 422
    assert "name one of ATTACHED_STORES" in refused.text

    def said(*arguments):
        done = CliRunner().invoke(app, arguments, env=environment | {"EMBEDDER": "none"})
        assert done.exit_code == 0, done.output
        return done.stdout

    said("collections", "create", "books", "--dimensions", "5", "--fill", "vectors")
    assert json.loads(said("collections", "show", "books", "--json"))["filled"].endswith("books of vectors")
    told_by = json.loads(said("reconcile", "books", "--json"))
    assert told_by == {"missing": 0, "stale": 0, "leftover": 0}
    assert set(server.shards) == {"films", "books"}


def test_who_writes_sends_no_long_backlog_and_a_refused_question_is_not_an_outage(
    server, context, products, monkeypatch
):
    monkeypatch.setattr(pg_outbox, "AT_ONCE", 10)
    filling, storage = context.storage.objects.filling, context.storage
    with psycopg.connect(context.settings.database_url.get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO embedding_studio.outbox (collection_id, object_no, parts)"
            " SELECT %s, n, 0 FROM generate_series(1, 100) AS n",
            (products.collection_id,),
        )

    storage.objects.update_payloads(products, {"p000": {"brand": "late"}})

    assert 70 <= backlog(context).objects <= 90
    filling.deliver_all()
    assert points(server)["p000"].payload["brand"] == "late"
    assert backlog(context).objects == 0

    server.answer = (400, {"status": {"error": "what is that?"}})
    found = nearest(context, products, vectors(1, seed=9))
    server.answer = None
    assert found == nearest(context, products, vectors(1, seed=9))
    assert backlog(context).away is None


def test_a_copy_of_a_database_leaves_alone_what_another_fills_until_it_takes_over(server, context, products):
    query, storage = vectors(1, seed=9), context.storage
    expected, there = nearest(context, products, query), points(server).keys()
    with psycopg.connect(context.settings.database_url.get_secret_value()) as connection:
        connection.execute(
            """UPDATE embedding_studio.collections SET filled = filled || '{"owner": "another"}'"""
        )
    copy = storage.collections.get("products")

    storage.objects.delete(copy, ["p000"])
    with pytest.raises(AttachedUnavailableError, match="filled by another database"):
        storage.objects.filling.reconcile(copy)
    storage.objects.filling.deliver_all()

    assert nearest(context, copy, query) == [each for each in expected if each != "p000"][:10]
    assert points(server).keys() == there
    assert "filled by another database" in backlog(context).away
    storage.objects.filling.reconcile(copy, takes_over=True)
    assert points(server).keys() == there - {"p000"}
    assert backlog(context).away is None
    with psycopg.connect(context.settings.database_url.get_secret_value()) as connection:
        connection.execute(
            """UPDATE embedding_studio.collections SET filled = filled || '{"owner": "another"}'"""
        )
    storage.collections.drop("products")
    assert "products" in server.shards


def test_what_is_emptied_there_is_compared_here_until_it_is_reconciled(server, context, products):
    query = vectors(1, seed=9)
    expected = nearest(context, products, query)
    context.storage.objects.filling._engine(products).remove(
        dataclasses.replace(products, attached=products.filled), numbers(server)
    )

    assert nearest(context, products, query) == expected
    assert "has lost points" in backlog(context).away
    assert context.storage.objects.filling.reconcile(products).missing == N
    assert nearest(context, products, query) == expected
    assert backlog(context).away is None


@pytest.mark.parametrize(
    "result", [None, [], {"points": "no"}, {"points": [{"id": 1}]}, {"points": [{"score": 1}]}, {"points": 7}]
)
def test_an_engine_that_answers_nonsense_is_away(server, context, products, result):
    query = vectors(1, seed=9)
    expected = nearest(context, products, query)
    server.answer = (200, {"result": result})

    assert nearest(context, products, query) == expected

    server.answer = None
    assert "not as Qdrant would" in backlog(context).away


def test_qdrant_asked_by_what_bend_says_finds_what_a_search_here_finds(server, context):
    """As docs/your-own-search.md says: an engine of somebody's own, which we neither fill nor read."""
    known = context.storage.collections.create("products", SearchIndexInfo(dimensions=D))
    context.storage.objects.upsert(known, objects())
    server.create("theirs", {"size": D, "distance": "Cosine"})
    numbered = list(enumerate(objects()))
    server.upsert("theirs", [(k, each.parts[0].tolist(), {"sku": each.object_id}) for k, each in numbered])
    query = vectors(1, seed=9)
    search_and_click(context, "s1", "ann", results(context, query)[9].object_id, query)
    learn(context)
    found = {each.object_id: each.distance for each in results(context, query)}

    bent = context.search.bent(query, collection="products", user_id="ann")
    asked = {"query": bent.queries[0].tolist(), "limit": N, "params": {"exact": True}}
    asked |= {"with_payload": True, "with_vector": False}
    answer = httpx.post(f"{server.url}/collections/theirs/points/query", json=asked).json()

    far = {each["payload"]["sku"]: 1 - each["score"] for each in answer["result"]["points"]}
    for each in bent.moved:
        own = distances(known.index, similarities_of(known.index, bent.queries, [each.vectors]))[0]
        far[each.object_id] = (1 - each.gate) * far[each.object_id] + each.gate * own
    far = {name: distance * bent.factors.get(name, 1.0) for name, distance in far.items()}
    assert bent.personalised
    assert bent.moved
    assert sorted(far, key=far.__getitem__)[:10] == list(found)
    assert sorted(far.values())[:10] == pytest.approx(list(found.values()), abs=1e-5)
