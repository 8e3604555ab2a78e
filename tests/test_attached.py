"""A collection of what stands in a table already: found by its own index, never written, and learnt from."""

import json
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import hypothesis
import numpy as np
import psycopg
import pytest
from hypothesis import strategies as st
from psycopg.sql import SQL
from typer.testing import CliRunner

from embedding_studio.api.app import create_app
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import CatalogueText
from embedding_studio.cli import app
from embedding_studio.doctor import examine
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import Attachment, CatalogueObject, PersonalState
from embedding_studio.domain.sessions import SessionEvent
from embedding_studio.errors import (
    AttachedUnavailableError,
    ConflictError,
    EmbeddingStudioError,
    InvalidInputError,
    InvalidSettingError,
)
from embedding_studio.settings import Settings
from embedding_studio.storage import attached as attached_module
from embedding_studio.storage import postgres as pg
from embedding_studio.storage.attached import reconcile
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.postgres import AttachedStores
from embedding_studio.storage.postgres import tables as pg_tables
from embedding_studio.storage.postgres.vectors import pack, register
from test_api_service import SEARCH, serving
from test_filters import CASES

D = 5
N = 311
LIMITS = {"statement_seconds": 0, "lock_seconds": 0}
CLASSES = {MetricType.COSINE: "cosine", MetricType.DOT: "ip", MetricType.EUCLID: "l2"}


def vectors(count, seed=3, dimensions=D):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def text_of(vector):
    return json.dumps([float(each) for each in vector])


@pytest.fixture
def shop(postgres_url):
    """Return a connection to a database in which a shop has had its products, by hand, for years."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(
            """
            CREATE SCHEMA shop;
            CREATE TABLE shop.products (
                sku text PRIMARY KEY,
                title text,
                brand text NOT NULL,
                price numeric(8, 2),
                tags text[],
                since date,
                embedding vector(5)
            );
            CREATE INDEX products_embedding ON shop.products USING hnsw (embedding vector_cosine_ops)
            """
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO shop.products VALUES (%s, %s, %s, %s, %s, %s, %s::vector)",
                [
                    (
                        f"p{k:03}",
                        f"Product number {k}",
                        "acme" if k % 3 else "apex",
                        k / 4,
                        ["new", "red"] if k % 2 else None,
                        "2024-02-01",
                        text_of(vector),
                    )
                    for k, vector in enumerate(vectors(N))
                ],
            )
        connection.execute("ANALYZE shop.products")
        yield connection


@contextmanager
def opened(url, **settings) -> Iterator[Context]:
    with Context(Settings(_env_file=None, database_url=url, embedder="none", **settings)) as context:
        yield context


@pytest.fixture
def context(shop, postgres_url):
    with opened(postgres_url, shared_min_users=0) as context:
        yield context


def attached(context, **given):
    return context.attach("products", "shop.products", **{"object_id": "sku"} | given)


def twin_of(collection, objects):
    """Return the in-memory twin of a collection that holds these objects, and the collection in it."""
    memory = MemoryStorage()
    known = memory.collections.create("twin", collection.index)
    memory.objects.upsert(known, objects)
    return memory, known


def everything(storage, collection):
    """Return all objects, page by page."""
    found = []
    while page := storage.objects.scroll(collection, after=found[-1].object_id if found else None, limit=100):
        found += page
    return found


def told(neighbours):
    return [(each.object_id, pytest.approx(each.distance, abs=1e-6), each.payload) for each in neighbours]


def search_and_click(context, session_id, user_id, clicked, query):
    context.search.search(
        query, collection="products", user_id=user_id, session_id=session_id, create_session=True
    )
    context.storage.clickstream.push_events(
        [SessionEvent(session_id=session_id, object_id=clicked, event_type="click")]
    )


def learn(context):
    while context.improver().improve_once(users=10).users:
        pass


def rank_of(page, object_id):
    return [each.object_id for each in page].index(object_id)


def copied(shop):
    """Return what of the shop's is kept in a second place."""
    return shop.execute("SELECT count(*) FROM collection_1.parts").fetchone()[0]


def contents(shop):
    return shop.execute(
        "SELECT md5(string_agg(p::text, '' ORDER BY sku)), count(*) FROM shop.products p"
    ).fetchone()


def test_a_table_is_searched_as_a_user_clicked_and_searched_again_over_http_and_stays_as_it_is(shop, context):
    before = contents(shop)
    collection = attached(context)
    query = vectors(1, seed=9)[0].tolist()
    with serving(create_app(context)) as client:

        def search(session_id):
            body = {
                "collection": "products",
                "search_query": [query],
                "user_id": "ann",
                "session_id": session_id,
                "create_session": True,
            }
            answer = client.post(SEARCH, json=body | {"limit": 10})
            assert answer.status_code == 200, answer.text
            return [each["object_id"] for each in answer.json()["search_results"]]

        first = search("s1")
        clicked = first[-1]
        event = {"session_id": "s1", "object_id": clicked, "event_type": "click"}
        assert client.post("/api/v1/clickstream/events", json={"events": [event]}).status_code < 300
        learn(context)
        again = search("s2")
        told = client.get("/api/v1/collections/products").json()

    assert again.index(clicked) < first.index(clicked)
    assert (told["objects"], told["attached"]) == (N, "the table shop.products")
    assert (contents(shop), copied(shop)) == (before, 0)
    assert collection.index.metric_type is MetricType.COSINE


@pytest.mark.parametrize("aggregation", MetricAggregationType)
@pytest.mark.parametrize("metric", MetricType)
@pytest.mark.parametrize("kind", ["vector", "halfvec", "halfvec of vector", "no index"])
def test_what_a_table_finds_is_what_the_twin_in_memory_finds(shop, context, metric, aggregation, kind):
    shop.execute("DROP INDEX shop.products_embedding")
    operators = CLASSES[metric]
    if kind == "halfvec":
        shop.execute("ALTER TABLE shop.products ALTER COLUMN embedding TYPE halfvec(5)")
    if kind != "no index":
        held, family = {
            "vector": ("embedding", "vector"),
            "halfvec": ("embedding", "halfvec"),
            "halfvec of vector": ("(embedding::halfvec(5))", "halfvec"),
        }[kind]
        shop.execute(f"CREATE INDEX ON shop.products USING hnsw ({held} {family}_{operators}_ops)")
    known = attached(context, metric_type=metric)
    index = known.index.model_copy(update={"metric_aggregation_type": aggregation})
    collection = context.storage.collections.create("averaged", index, attached=known.attached)
    objects = everything(context.storage, collection)
    memory, twin = twin_of(collection, objects)
    queries = vectors(3, seed=11)
    acme = PayloadFilter.parse({"query": {"term": {"field": "brand", "value": "apex"}}})

    for limit in (1, 10, 97, N + 3):
        for wanted in (None, acme):
            found = context.storage.objects.nearest(collection, queries, limit, filter=wanted)
            expected = memory.objects.nearest(twin, queries, limit, filter=wanted)
            assert told(found) == [(e.object_id, e.distance, e.payload) for e in expected], (limit, wanted)
    furthest = expected[20].distance
    within = context.storage.objects.nearest(collection, queries, 300, max_distance=furthest, filter=acme)
    assert len(within) == 21


def test_a_user_finds_what_the_twin_in_memory_finds_by_the_same_copies(context):
    collection = attached(context)
    memory, twin = twin_of(collection, everything(context.storage, collection))
    moved = {f"p{k:03}": vectors(1, seed=k) for k in (7, 70, 170)}
    for storage, known in ((context.storage, collection), (memory, twin)):
        storage.objects.originals(known, list(moved))
        with storage.personal.learning(known, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState(vectors=moved)})
    gates = dict.fromkeys(moved, 0.7)
    queries = vectors(2, seed=5)

    for wanted in (None, PayloadFilter.parse({"query": {"match": {"field": "title", "value": "NUMBER 7"}}})):
        found, expected = (
            storage.personal.nearest(known, "ann", queries, 30, gates, objects=storage.objects, filter=wanted)
            for storage, known in ((context.storage, collection), (memory, twin))
        )
        assert found
        assert told(found) == [(each.object_id, each.distance, each.payload) for each in expected]


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_filter_means_of_a_table_what_it_means_of_our_own_objects(shop, postgres_url, is_elsewhere):
    shop.execute("CREATE TABLE shop.documents (id int PRIMARY KEY, body jsonb, embedding vector(2) NOT NULL)")
    with shop.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO shop.documents VALUES (%s, %s, '[1, 0]')",
            [(k, json.dumps(payload)) for k, (_, payload, _) in enumerate(CASES)],
        )
    store = "shop" if is_elsewhere else None
    with opened(postgres_url, attached_stores={"shop": postgres_url}) as context:
        collection = context.attach("documents", "shop.documents", document="body", store=store)
        wrong = []
        for k, (query, payload, is_found) in enumerate(CASES):
            for given, expected in ((query, is_found), ({"must_not": [query]}, not is_found)):
                wanted = PayloadFilter.parse({"query": given})
                found = context.storage.objects.nearest(
                    collection, np.eye(1, 2, dtype=np.float32), 999, filter=wanted
                )
                if (str(k) in {each.object_id for each in found}) is not expected:
                    wrong.append((given, payload))

    assert wrong == []


TYPES: dict[str, list[str | None]] = {
    "text": ["red", "Red", "", "it's", "1", "NaN", "é靴🙂", None],
    "varchar(9)": ["red", "red ", "%", None],
    "char(4)": ["ab", "abcd", None],
    "uuid": ["00000000-0000-0000-0000-00000000000a", None],
    "int2": ["-32768", "32767", "0", "1", None],
    "int4": ["-2147483648", "2147483647", "5", None],
    "int8": ["-9223372036854775808", "9223372036854775807", "9007199254740993", "0", "1", None],
    "numeric": ["0.1", "-2.50", "1e300", "5e-324", "9007199254740993", "NaN", "Infinity", None],
    "numeric(8, 2)": ["0.10", "-2.5", "7", None],
    "float8": ["0.1", "-0.0", "1e300", "5e-324", "NaN", "-Infinity", None],
    "float4": ["0.1", "3.4028235e38", "NaN", None],
    "bool": ["true", "false", None],
    "date": ["2024-02-01", "0044-03-15 BC", "infinity", None],
    "timestamptz": ["2024-02-01T09:30:00Z", None],
    "text[]": ["{red, NULL}", "{}", "{it's}", "{{red}}", None],
    "int4[]": ["{1, 2}", "{}", "{5}", None],
    "float8[]": ["{0.1, NaN}", "{}", None],
    "bool[]": ["{true}", "{false, NULL}", None],
    "json": ['{"n": 1, "red": ["red"]}', '"red"', "1", "[1]", "null", None],
    "jsonb": ['{"n": 1, "red": ["red"]}', '{"n": {"n": "red"}}', '"red"', "1", "[1]", "[]", "null", None],
}
"""Of each type, what its column holds."""
ENDS = ["gte", "gt", "lte", "lt", "eq"]
SOUGHT = st.sampled_from(
    [
        *(
            "red",
            "Red",
            "red ",
            "ab",
            "ab  ",
            "",
            "it's",
            "NaN",
            "Infinity",
            "1",
            "2024-02-01",
            "infinity",
            "A",
        ),
        *("00000000-0000-0000-0000-00000000000A", "00000000-0000-0000-0000-00000000000a", True, False),
        *(0, 1, 5, 7.0, -2.5, 0.1, 0.10000000149011612, 3.4028235e38, 1e300, 5e-324, -0.0, 10**400),
        *(2**15, 2**31, 2**53 + 1, 9007199254740993.0, 2**63, 2**63 - 1, -(2**63)),
    ]
)
COLUMNS = st.builds(
    "".join,
    st.tuples(st.sampled_from([f"c{n}" for n in range(len(TYPES))]), st.sampled_from(["", "", ".n", ".red"])),
)
ASKED = st.one_of(
    st.builds(lambda field, value: {"term": {"field": field, "value": value}}, COLUMNS, SOUGHT),
    *(
        st.builds(
            lambda kind, field, given: {kind: {"field": field, "values": given}},
            st.just(kind),
            COLUMNS,
            st.lists(SOUGHT, min_size=1, max_size=4),
        )
        for kind in ("terms", "any", "all")
    ),
    st.builds(
        lambda field, ends: {"field": field, "range": ends},
        COLUMNS,
        st.one_of(
            *(
                st.dictionaries(st.sampled_from(ENDS), SOUGHT.filter(is_kind), min_size=1, max_size=2)
                for is_kind in (lambda v: isinstance(v, str), lambda v: not isinstance(v, str | bool))
            )
        ),
    ),
    st.builds(lambda field: {"field": field}, COLUMNS),
)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_filter_means_of_columns_of_each_type_what_it_means_in_memory(shop, postgres_url, is_elsewhere):
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(TYPES))
    shop.execute(f"CREATE TABLE shop.types (id int PRIMARY KEY, {columns}, embedding vector(2))")
    for k in range(max(map(len, TYPES.values()))):
        values = [given[k % len(given)] for given in TYPES.values()]
        shop.execute(
            f"INSERT INTO shop.types VALUES (%s, {', '.join(['%s'] * len(TYPES))}, '[1, 0]')",  # noqa: S608
            (k, *values),
        )
    with opened(postgres_url, attached_stores={"shop": postgres_url}) as context:
        types = context.attach("types", "shop.types", store="shop" if is_elsewhere else None)
        payloads = {each.object_id: each.payload for each in everything(context.storage, types)}

        @hypothesis.given(ASKED, st.booleans())
        @hypothesis.example({"term": {"field": "c7", "value": 1e300}}, True)
        @hypothesis.example({"term": {"field": "c10", "value": 3.4028235e38}}, True)
        @hypothesis.example({"field": "c9", "range": {"eq": 1e300}}, True)
        @hypothesis.example({"field": "c10", "range": {"gt": 3.4028235e38}}, False)
        @hypothesis.settings(max_examples=300)
        def means_the_same(query, is_not):
            wanted = PayloadFilter.parse({"query": {"must_not": [query]} if is_not else query})
            found = context.storage.objects.nearest(types, np.eye(1, 2, dtype=np.float32), 99, filter=wanted)

            assert {each.object_id for each in found} == {
                object_id for object_id, payload in payloads.items() if wanted.matches(payload)
            }

        means_the_same()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({"term": {"field": "brand", "value": "only"}}, "(brand)"),
        ({"terms": {"field": "brand", "values": ["only", "x"]}}, "(brand)"),
        ({"field": "price", "range": {"gte": 1, "lt": 1.2}}, "(price)"),
        ({"any": {"field": "tags", "values": ["only", "x"]}}, "USING gin (tags)"),
        (
            {"must": [{"term": {"field": "brand", "value": "only"}}], "must_not": [{"field": "since"}]},
            "(brand)",
        ),
    ],
)
def test_a_filter_on_a_column_is_answered_by_its_index(shop, context, query, index):
    shop.execute(
        "INSERT INTO shop.products (sku, brand, price, embedding) "
        "SELECT 'q' || n, 'b' || n, n, '[1, 2, 3, 4, 5]' FROM generate_series(1, 3000) AS n"
    )
    shop.execute(f"CREATE INDEX by_column ON shop.products {index}")
    shop.execute("ANALYZE shop.products")
    collection = attached(context)
    engine = context.storage.objects.of(collection)._engine
    register(shop)
    place, table = engine._of(collection)
    matches, given = engine._condition(place, table, PayloadFilter.parse({"query": query}))
    statement = pg_tables._near(collection, place, table, None, matches)

    given |= {"query": pack(vectors(1))[0], "limit": 200}
    plan = shop.execute(SQL("EXPLAIN ") + statement, given)

    assert "by_column" in str(plan.fetchall())


def test_equal_distances_make_pages_that_follow_each_other(shop, context):
    shop.execute("UPDATE shop.products SET embedding = '[1, 1, 0, 0, 0]' WHERE sku >= 'p020'")
    collection = attached(context)
    query = np.array([[1, 1, 0, 0, 0]], dtype=np.float32)

    longest = context.storage.objects.nearest(collection, query, N)

    assert [each.object_id for each in longest[:3]] == ["p020", "p021", "p022"]
    for limit in (1, 5, 50, 205):
        assert context.storage.objects.nearest(collection, query, limit) == longest[:limit]


def test_what_is_no_object_is_not_found(shop, context):
    collection = attached(context)
    shop.execute(
        """
        UPDATE shop.products SET embedding = NULL WHERE sku = 'p001';
        UPDATE shop.products SET embedding = '[0, 0, 0, 0, 0]' WHERE sku = 'p002';
        UPDATE shop.products SET sku = repeat('x', 600) WHERE sku = 'p003'
        """
    )

    everyone = context.storage.objects.nearest(collection, vectors(1), N)

    assert len(everyone) == N - 3
    assert (
        context.storage.objects.get(collection, ["p001", "p002", "x" * 600, "p004", "a\x00b"])[0].object_id
        == "p004"
    )


@pytest.mark.parametrize(
    ("kind", "there", "others"),
    [
        ("bigint", "7", ["007", "7.0", "-0", "", "seven", "99999999999999999999"]),
        ("smallint", "7", ["40000", "+7"]),
        ("uuid", "00000000-0000-0000-0000-000000000007", ["00000000000000000000000000000007", "7"]),
    ],
)
def test_ids_of_other_types_are_texts(shop, context, kind, there, others):
    shop.execute(f"CREATE TABLE things (id {kind} PRIMARY KEY, embedding vector(3))")
    shop.execute("INSERT INTO things VALUES (%s, '[1, 0, 0]')", (there,))
    collection = context.attach("things", "things")

    found = context.storage.objects.get(collection, [*others, there])

    assert [each.object_id for each in found] == [there]


def test_a_payload_is_the_columns_as_json(context):
    of_all, of_some = (
        attached(context),
        context.attach("few", "shop.products", object_id="sku", payload=["price"]),
    )

    [all_of_it], [some] = (context.storage.objects.get(each, ["p005"]) for each in (of_all, of_some))

    assert all_of_it.payload == {
        "title": "Product number 5",
        "brand": "acme",
        "price": 1.25,
        "tags": ["new", "red"],
        "since": "2024-02-01",
    }
    assert some.payload == {"price": 1.25}


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO shop.products (sku, brand) VALUES ('x', 'y')",
        "UPDATE shop.products SET brand = 'y'",
        "DELETE FROM shop.products",
        "TRUNCATE shop.products",
        "CREATE TABLE shop.others (id int)",
        "DROP INDEX shop.products_embedding",
    ],
)
def test_no_statement_of_an_attached_store_could_write(shop, context, statement):
    before = contents(shop)
    collection = attached(context)
    database = context.storage.objects.of(collection)._engine.database

    for way in (database.read, database.write):
        with pytest.raises(AttachedUnavailableError, match="read-only transaction"):
            way(lambda connection: connection.execute(statement))

    assert contents(shop) == before


def test_whatever_would_write_objects_is_refused_in_a_sentence(context):
    collection = attached(context)
    writes = [
        lambda: context.index_objects("products", [CatalogueObject("x", vectors(1))]),
        lambda: context.index_objects("products", [CatalogueText("x", "without an embedder")]),
        lambda: context.storage.objects.delete(collection, ["p001"]),
        lambda: context.storage.objects.update_payloads(collection, {"p001": {}}),
    ]

    for write in writes:
        with pytest.raises(
            ConflictError, match=r"'products' is attached to the table shop\.products, which is only"
        ):
            write()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"table": "shop.goods"}, "there is no table 'shop.goods'"),
        ({"table": '"a'}, "there is no table"),
        ({"table": "embedding_studio.sessions"}, "not a table of yours"),
        ({"table": "pg_catalog.pg_class"}, "not a table of yours"),
        ({"table": "shop.products_embedding"}, "no table and no view"),
        ({"object_id": "id"}, "has no column 'id'; it has sku, title"),
        ({"object_id": "price"}, "ids of shop.products are of the type numeric"),
        ({"object_id": "brand"}, "in several rows; name a column that tells each row"),
        ({"vector": "title"}, "is of the type text, and vectors are vector or halfvec"),
        ({"payload": ["colour"]}, "has no column 'colour'"),
        ({"document": "title"}, "is of the type text; the payload can be one column of json"),
        ({"payload": ["title"], "document": "title"}, "only one of the two"),
        ({"store": "warehouse"}, "no address of the store 'warehouse': ATTACHED_STORES names none"),
    ],
)
def test_what_cannot_be_attached_is_told_in_a_sentence_and_leaves_no_collection(context, given, said):
    name = given.pop("table", "shop.products")

    with pytest.raises(EmbeddingStudioError, match=said):
        context.attach("products", name, **{"object_id": "sku"} | given)

    assert context.storage.collections.list() == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("(id int PRIMARY KEY, embedding vector)", "does not say how many dimensions"),
        ("AS SELECT 1 AS id, '[1]'::vector AS embedding UNION SELECT 2, '[1, 2]'", "of 1 to 2 dimensions"),
    ],
)
def test_vectors_of_no_size_are_told(shop, context, table, said):
    shop.execute(f"CREATE TABLE odd {table}")

    with pytest.raises(InvalidInputError, match=said):
        context.attach("odd", "odd")


def test_attaching_again_changes_nothing_and_something_else_is_refused(context):
    first = attached(context)

    assert attached(context) == first
    assert attached(context, metric_type=MetricType.COSINE) == first
    with pytest.raises(ConflictError, match=r"attached to the table shop\.products; asked for is dot/min"):
        attached(context, metric_type=MetricType.DOT)
    with pytest.raises(ConflictError, match=r"exists as cosine/min"):
        context.storage.collections.create("products", first.index)


def test_what_an_operator_should_know_is_told(shop, context):
    collection = attached(context)
    good = context.storage.objects.examined(collection)
    shop.execute("CREATE TABLE shop.copy AS SELECT * FROM shop.products; ANALYZE shop.copy")
    bad = context.storage.objects.examined(context.attach("copy", "shop.copy", object_id="sku"))

    assert (good.advice, good.is_exact) == ((), False)
    assert "found by its index products_embedding" in good.told
    assert bad.is_exact
    assert [each.split(";")[1].strip() for each in bad.advice] == ['CREATE UNIQUE INDEX ON shop.copy ("sku")']


def test_an_index_that_gives_up_is_followed_by_a_look_at_all(shop, context):
    """Of 3,000 rows one matches, and it is the furthest: the index alone would not come so far."""
    with shop.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO shop.products (sku, brand, embedding) VALUES (%s, 'x', %s::vector)",
            [(f"q{k}", text_of(vector)) for k, vector in enumerate(vectors(3000, seed=8))],
        )
    shop.execute(f"ALTER DATABASE {shop.info.dbname} SET hnsw.max_scan_tuples = 50")
    collection = attached(context)
    query = vectors(1, seed=4)
    exact = context.storage.objects.nearest(collection, query, 4000, margin=math.inf)
    shop.execute("UPDATE shop.products SET brand = 'only' WHERE sku = %s", (exact[-1].object_id,))
    wanted = PayloadFilter.parse({"query": {"term": {"field": "brand", "value": "only"}}})

    found = context.storage.objects.nearest(collection, query, 10, filter=wanted)

    assert [each.object_id for each in found] == [exact[-1].object_id]


@pytest.fixture
def learnt(context):
    """Return a context in which Ann and Bob clicked the tenth result of one query, and what they clicked."""
    attached(context)
    query = vectors(1, seed=9)
    clicked = context.search.search(query, collection="products").results[9].object_id
    for user_id in ("ann", "bob"):
        search_and_click(context, f"s-{user_id}", user_id, clicked, query)
    learn(context)
    return context, clicked, query


def results(context, query, user_id="ann"):
    return context.search.search(query, collection="products", user_id=user_id, create_session=False).results


def test_a_copy_of_an_original_that_changed_does_not_count_at_once_and_is_learnt_anew(shop, learnt):
    context, clicked, query = learnt
    collection = context.storage.collections.get("products")
    assert set(context.storage.personal.copies(collection, "ann", [clicked])) == {clicked}
    before = rank_of(results(context, query), clicked)
    away = 0.3 * vectors(1, seed=77)[0] - query[0]
    shop.execute("UPDATE shop.products SET embedding = %s::vector WHERE sku = %s", (text_of(away), clicked))

    at_once = results(context, query)
    reconciled = reconcile(context.storage, collection)
    dropped = context.storage.personal.copies(collection, "ann", [clicked])
    waiting = context.storage.queue.info().waiting
    learn(context)
    anew = context.storage.personal.copies(collection, "ann", [clicked])[clicked]

    assert before < 9
    assert clicked not in [each.object_id for each in at_once]
    assert (reconciled.changed, reconciled.gone) == (1, 0)
    assert (dropped, waiting) == ({}, 2)
    assert anew[0] @ away > 0
    again = reconcile(context.storage, collection)
    assert (again.changed, again.gone) == (0, 0)


def test_a_worker_that_is_to_stop_compares_no_more_originals(shop, learnt, monkeypatch):
    context, *_ = learnt
    collection = context.storage.collections.get("products")
    shop.execute("DELETE FROM shop.products")
    monkeypatch.setattr(attached_module, "RECONCILED_AT_ONCE", 1)
    left = iter([False, True])

    partly = reconcile(context.storage, collection, is_over=lambda: next(left))

    assert partly.gone == 1
    assert len(context.storage.personal.noticed(collection, limit=100)) > 1


def test_an_object_that_a_user_moved_and_that_went_is_left_out_and_counts_again_when_it_comes_back(
    shop, learnt
):
    context, clicked, query = learnt
    collection = context.storage.collections.get("products")
    kept = shop.execute("SELECT to_jsonb(p) FROM shop.products AS p WHERE sku = %s", (clicked,)).fetchone()[0]
    shop.execute("DELETE FROM shop.products WHERE sku = %s", (clicked,))

    at_once = results(context, query)
    gone = reconcile(context.storage, collection)
    learn(context)
    without = results(context, query)
    shop.execute(
        "INSERT INTO shop.products (sku, brand, embedding) VALUES (%s, 'acme', %s)",
        (clicked, kept["embedding"]),
    )
    back = reconcile(context.storage, collection)
    learn(context)

    assert len(at_once) == len(without) == 10
    assert clicked not in [each.object_id for each in [*at_once, *without]]
    assert (gone.changed, gone.gone) == (0, 1)
    assert (back.changed, back.gone) == (1, 0)
    assert rank_of(results(context, query), clicked) < 9


def test_a_change_while_somebody_learns_is_not_lost(shop, learnt, monkeypatch):
    """Between reading originals and writing states the table changes and another worker notices."""
    context, clicked, _ = learnt
    storage, collection = context.storage, context.storage.collections.get("products")
    storage.collections.order_for_everyone("products")
    improver = context.improver()
    select = improver._select

    def changed_meanwhile(recent):
        monkeypatch.undo()
        shop.execute("UPDATE shop.products SET embedding = '[0, 0, 0, 0, 1]' WHERE sku = %s", (clicked,))
        assert reconcile(storage, collection).changed == 1
        return select(recent)

    monkeypatch.setattr(improver, "_select", changed_meanwhile)
    improver.improve_once(users=10)

    assert storage.personal.copies(collection, "ann", [clicked]) == {}
    assert storage.queue.info().waiting == 2


@pytest.mark.parametrize(
    "spoil",
    [
        "ALTER TABLE shop.products RENAME TO goods",
        "ALTER TABLE shop.products RENAME COLUMN embedding TO vector",
        "DROP TABLE shop.products",
    ],
)
def test_a_table_that_is_away_makes_a_clear_503_and_the_next_worker_tries_again(shop, learnt, spoil, caplog):
    context, _, query = learnt
    context.storage.collections.order_for_everyone("products")
    shop.execute(spoil)
    body = {"collection": "products", "search_query": query.tolist(), "user_id": "ann"}

    with serving(create_app(context)) as client:
        answer = client.post(SEARCH, json=body)
        metrics = client.get("/metrics")
        ready = client.get("/api/v1/collections")
    report = context.improver().improve_once(users=10)

    assert answer.status_code == 503
    assert "the store that this collection is attached to" in answer.json()["detail"]
    assert "; put it back, or drop the collection and attach again" in caplog.text or "was: " in caplog.text
    assert "Traceback" not in caplog.text
    assert metrics.status_code == 200
    assert ready.json()["collections"][0]["objects"] is None
    assert (report.users, report.learnt, report.given_up) == (2, 0, 0)
    assert context.storage.queue.info().waiting == 2


def test_a_store_that_is_slow_is_given_up_on(shop, postgres_url):
    shop.execute(
        "CREATE VIEW shop.slow AS"
        " SELECT * FROM shop.products WHERE (SELECT pg_sleep(9)) IS NOT NULL OR sku = ''"
    )
    with (
        opened(postgres_url, statement_seconds=0.3) as context,
        pytest.raises(AttachedUnavailableError, match="statement timeout"),
    ):
        context.attach("slow", "shop.slow", object_id="sku")


def test_a_store_that_does_not_answer_is_named_without_its_password(postgres_url):
    stores = {"shop": "postgresql://ann:secret@127.0.0.1:1/shop"}
    with (
        opened(postgres_url, attached_stores=stores) as context,
        pytest.raises(
            AttachedUnavailableError, match=r"the store 'shop' \(database 'shop' at 127.0.0.1:1\)"
        ) as e,
    ):
        context.attach("products", "products", store="shop")

    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ann:p%zzsecret@db.example/shop",
        "mysql://ann:secret@db.example/shop",
        "https://:secret/1@db.example:6333",
        "https://:secret#1@db.example:6333",
        "https://:secreté@db.example:6333",
        "http://[secret",
        "milvus+http://ann:secret/1@db.example",
        "milvus+https://ann:secreté@db.example:19530",
        "lancedb://secret@host/folder",
        "lancedb+ftp://secret/folder",
    ],
)
def test_an_address_of_a_store_that_is_none_is_told_at_the_start_without_its_password(postgres_url, address):
    with (
        pytest.raises(InvalidSettingError, match=r"^ATTACHED_STORES, of 'shop', is no address") as e,
        opened(postgres_url, attached_stores={"shop": address}) as context,
    ):
        context.storage.collections.list()

    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    ("package", "address"),
    [("lancedb", "lancedb:///"), ("milvus", "milvus+http://db.example:19530")],
)
def test_a_package_that_is_missing_is_told_with_how_it_is_installed(
    postgres_url, tmp_path, monkeypatch, package, address
):
    monkeypatch.setitem(sys.modules, {"milvus": "pymilvus"}.get(package, package), None)
    stores = {"far": address.replace("///", f"//{tmp_path}")}
    with (
        opened(postgres_url, attached_stores=stores) as context,
        pytest.raises(AttachedUnavailableError, match=rf"pip install 'embedding-studio\[{package}\]'"),
    ):
        context.attach("products", "products", store="far")


def test_a_store_that_hangs_keeps_nobody_from_another_and_its_own_wait_only_the_first_time(
    postgres_url, monkeypatch
):
    tried, go_on = threading.Semaphore(0), threading.Event()

    def hang(*_, **__):
        tried.release()
        go_on.wait(30)
        raise AttachedUnavailableError("it hangs")

    monkeypatch.setattr(pg, "TablesDatabase", hang)
    stores = AttachedStores(postgres_url, {"hangs": postgres_url, "there": "http://db.example"}, LIMITS)
    hanging = Attachment("", "products", "hangs", "", "")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(stores, hanging)
        assert tried.acquire(timeout=30)
        other = threads.submit(stores, replace(hanging, store="there"))
        try:
            assert other.result(timeout=10)
        finally:
            go_on.set()
        with pytest.raises(AttachedUnavailableError, match="it hangs"):
            first.result()

    with pytest.raises(AttachedUnavailableError, match="it hangs"):
        stores(hanging)
    assert not tried.acquire(blocking=False), "it was left alone for a while"
    stores.close()


def test_an_index_of_a_column_whose_name_is_a_word_of_sql_is_used(shop, context):
    shop.execute('CREATE TABLE shop.pages (id int PRIMARY KEY, "values" vector(3))')
    shop.execute('CREATE INDEX "by" ON shop.pages USING hnsw ("values" vector_ip_ops)')
    shop.execute('CREATE INDEX half ON shop.pages USING hnsw (("values"::halfvec(3)) halfvec_l2_ops)')

    for metric, name in [(MetricType.DOT, "by"), (MetricType.EUCLID, "half")]:
        collection = context.attach(metric.value, "shop.pages", vector="values", metric_type=metric)
        assert f"found by its index {name}" in context.storage.objects.examined(collection).told


def test_documents_and_numbers_that_only_the_table_can_hold_take_nothing_away(shop, context):
    shop.execute(
        r"""
        CREATE TABLE shop.notes (id int PRIMARY KEY, note json, more json, long numeric, embedding vector(3));
        INSERT INTO shop.notes VALUES
            (1, '{"a": "\u0000"}', '"\ud800"', 7, '[1, 0, 0]'),
            (2, '{"a": 1}', '[1]', 10::numeric ^ 4999, '[0, 1, 0]')
        """
    )
    by_document = context.attach("document", "shop.notes", document="note")
    by_columns = context.attach("columns", "shop.notes", payload=["more", "long"])
    is_one = PayloadFilter.parse({"query": {"term": {"field": "a", "value": 1}}})

    found = context.storage.objects.get(by_document, ["1", "2"])
    assert [each.payload for each in found] == [{}, {"a": 1}]
    found = context.storage.objects.get(by_columns, ["1", "2"])
    assert [each.payload for each in found] == [
        {"more": None, "long": 7},
        {"more": [1], "long": "1" + "0" * 4999},
    ]
    [found] = context.storage.objects.nearest(by_document, np.eye(1, 3, dtype=np.float32), 5, filter=is_one)
    assert found.object_id == "2"


def test_a_large_table_that_nobody_ever_analysed_is_advised_an_index_by_a_statement_that_works(
    shop, context, monkeypatch
):
    monkeypatch.setattr("embedding_studio.storage.postgres.tables.MANY_ROWS", 1)
    shop.execute('CREATE TABLE shop.kinds (id int PRIMARY KEY, "order" vector(3))')
    shop.execute("INSERT INTO shop.kinds VALUES (1, '[1, 0, 0]'), (2, '[1, 0, 0]')")
    collection = context.attach("kinds", "shop.kinds", vector="order")

    [advice] = context.storage.objects.examined(collection).advice
    assert "compares all 2 rows" in advice
    shop.execute(advice.split(";")[1])
    assert context.storage.objects.examined(collection).advice == ()


@pytest.mark.parametrize("has_index", [False, True])
def test_a_query_beyond_half_precision_finds_what_is_near(shop, context, has_index):
    shop.execute("CREATE TABLE shop.halves (id int PRIMARY KEY, embedding halfvec(3))")
    shop.execute("INSERT INTO shop.halves VALUES (1, '[0, 9, 0]'), (2, '[9, 0, 0]')")
    if has_index:
        shop.execute("CREATE INDEX ON shop.halves USING hnsw (embedding halfvec_l2_ops)")
    collection = context.attach("halves", "shop.halves", metric_type=MetricType.EUCLID)

    found = context.storage.objects.nearest(collection, np.array([[1e6, 0, 0]], dtype=np.float32), 5)

    assert [each.object_id for each in found] == ["2", "1"]


def test_quoted_names_and_hostile_ones_are_names(shop, context):
    shop.execute(
        """
        CREATE TABLE shop."Odd ""one""; --"
            ("Id %s" text PRIMARY KEY, "the {0} vector" vector(3), "a""b'c" int);
        INSERT INTO shop."Odd ""one""; --" VALUES ('x'' --', '[1, 0, 0]', 7)
        """
    )
    collection = context.attach("odd", 'shop."Odd ""one""; --"', object_id="Id %s", vector="the {0} vector")

    [found] = context.storage.objects.nearest(collection, np.eye(1, 3, dtype=np.float32), 5)

    assert (found.object_id, found.payload) == ("x' --", {"a\"b'c": 7})
    assert context.storage.objects.get(collection, ["x' --"])[0].payload == found.payload
    assert "CREATE" not in str(context.storage.objects.examined(collection).advice)


def test_a_table_of_another_database_is_reached_by_the_name_of_its_store(shop, postgres_url, postgres_server):
    from conftest import new_database

    with new_database(postgres_server) as own, opened(own, attached_stores={"shop": postgres_url}) as context:
        collection = context.attach("products", "shop.products", object_id="sku", store="shop")
        found = context.storage.objects.nearest(collection, vectors(1), 3)
        assert found[0].object_id == "p000"
        with psycopg.connect(own) as connection:
            stored = connection.execute("SELECT attached::text FROM embedding_studio.collections").fetchone()[
                0
            ]

    assert "postgresql://" not in stored
    assert str(collection.attached) == "the table shop.products of shop"


def test_a_worker_notices_once_a_minute_what_changed_elsewhere_and_counts_it(shop, learnt):
    context, clicked, _ = learnt
    shop.execute("UPDATE shop.products SET embedding = '[0, 0, 0, 0, 1]' WHERE sku = %s", (clicked,))
    shop.execute("CREATE VIEW shop.others AS SELECT * FROM shop.products")
    other = context.attach("others", "shop.others", object_id="sku")
    context.storage.personal.notice(other, {"p001": "?"})
    shop.execute("DROP VIEW shop.others")
    worker = context.worker()

    worker._reconcile(1000.0)
    shop.execute("DELETE FROM shop.products WHERE sku = %s", (clicked,))
    worker._reconcile(1059.0)
    a_minute_early = context.metrics.exposition(context.storage).decode()
    worker._reconcile(1061.0)

    changed, gone = (
        f'embedding_studio_attached_originals_total{{became="{became}"}} 1.0'
        for became in ("changed", "gone")
    )
    assert changed in a_minute_early
    assert gone not in a_minute_early
    assert gone in context.metrics.exposition(context.storage).decode()


def test_doctor_tells_how_a_table_is_searched_and_what_is_wrong_with_it(shop, context):
    attached(context)
    shop.execute("CREATE TABLE shop.copy AS SELECT * FROM shop.products")
    context.attach("copy", "shop.copy", object_id="sku")
    context.attach("gone", "shop.copy", object_id="sku", payload=["brand"])
    shop.execute("ALTER TABLE shop.copy DROP COLUMN brand")

    of_collections = {each.what: each for each in examine(context) if each.what.startswith("collection ")}

    assert [(name, each.grade) for name, each in of_collections.items()] == [
        ("collection copy", "FAIL"),
        ("collection gone", "FAIL"),
        ("collection products", "OK"),
    ]
    assert "311 objects; the table shop.products, only read" in of_collections["collection products"].told
    assert "has no column 'brand'" in of_collections["collection gone"].told


def test_the_command_attaches_warns_and_says_what_it_did(shop, postgres_url, monkeypatch):
    shop.execute("CREATE TABLE shop.copy AS SELECT * FROM shop.products")
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("EMBEDDER", "none")
    run = CliRunner().invoke

    attached, warned, refused, listed = (
        run(app, arguments)
        for arguments in (
            ["attach", "--table", "shop.products", "--id", "sku"],
            [
                "attach",
                "again",
                "--table",
                "shop.copy",
                "--id",
                "sku",
                "--metric",
                "dot",
                "--payload",
                "brand",
            ],
            ["attach", "--table", "shop.nothing"],
            ["collections", "show", "products", "--json"],
        )
    )

    said = "There is a collection 'products' of 311 objects: cosine/min of 5 dimensions"
    assert said in " ".join(attached.stderr.split())
    assert "warning: no index holds each sku once" in warned.stderr
    assert (refused.exit_code, "there is no table 'shop.nothing'" in refused.stderr) == (1, True)
    assert json.loads(listed.stdout)["attached"] == "the table shop.products"
