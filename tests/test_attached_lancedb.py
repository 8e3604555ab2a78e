"""A table of LanceDB that was there before, found by LanceDB itself."""

import json
import shutil
from decimal import Decimal

import numpy as np
import pytest

from embedding_studio.api.app import create_app
from embedding_studio.doctor import examine
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import Attachment, Collection
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError, InvalidSettingError
from embedding_studio.storage.attached.objects import AttachedObjects
from embedding_studio.storage.lancedb import LanceDB, place_of
from test_api_service import SEARCH, serving
from test_attached import D, opened, told, twin_of, vectors
from test_attached_engines import HOSTILE, N, points
from test_filters import CASES

ONE = np.eye(1, 2, dtype=np.float32)

lancedb = pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install '.[lancedb]'")
pa = pytest.importorskip("pyarrow")
from lancedb_tables import Tables, with_vectors  # noqa: E402, it needs LanceDB


@pytest.fixture
def store(tmp_path):
    return Tables(tmp_path)


@pytest.fixture
def context(store, postgres_url):
    with opened(postgres_url, attached_stores={"lake": store.url}) as context:
        yield context


def attached(store, table, **given):
    """Return the objects of a table, and a collection that is attached to it, without a database of ours."""
    objects = AttachedObjects(LanceDB(store.url, name="lake"))
    place, index = objects.found(Attachment("", table, "lake", **given), None)
    return objects, Collection(1, table, index, attached=place)


def is_found(objects, collection, query):
    wanted = PayloadFilter.parse({"query": query})
    return {
        each.object_id
        for each in objects.nearest(
            collection, np.eye(1, collection.index.dimensions, dtype=np.float32), 999, filter=wanted
        )
    }


def test_a_filter_means_of_texts_of_json_what_it_means_of_our_own_objects(store):
    rows = [
        {"id": k, "embedding": [1.0, 0.0], "body": json.dumps(payload)}
        for k, (_, payload, _) in enumerate(CASES)
    ]
    store.database.create_table("documents", with_vectors(pa.Table.from_pylist(rows), "embedding", 2))
    objects, collection = attached(store, "documents", document="body")

    wrong = [
        (given, payload)
        for k, (query, payload, expected) in enumerate(CASES)
        for given, is_expected in ((query, expected), ({"must_not": [query]}, not expected))
        if (str(k) in is_found(objects, collection, given)) is not is_expected
    ]

    assert wrong == []


def test_a_filter_means_of_columns_what_it_means_of_our_own_objects(store):
    """Those payloads that columns can hold: a table for each set of columns and types."""
    of_schema = {}
    for k, (_, payload, _) in enumerate(CASES):
        try:
            kind = pa.Table.from_pylist([payload]).schema
        except (pa.ArrowException, OverflowError):
            continue
        if not any("." in name or "`" in name or '"' in name for name in payload):
            of_schema.setdefault(kind.to_string(), []).append(k)
    wrong, asked = [], 0
    for n, cases in enumerate(of_schema.values()):
        rows = [{"id": k, "embedding": [1.0, 0.0], **CASES[k][1]} for k in cases]
        store.database.create_table(f"t{n}", with_vectors(pa.Table.from_pylist(rows), "embedding", 2))
        objects, collection = attached(store, f"t{n}")
        for k in cases:
            query, payload, expected = CASES[k]
            for given, is_expected in ((query, expected), ({"must_not": [query]}, not expected)):
                asked += 1
                if (str(k) in is_found(objects, collection, given)) is not is_expected:
                    wrong.append((given, payload))

    assert wrong == []
    assert asked > 250


def test_what_sql_can_look_for_is_left_to_lancedb(store, monkeypatch):
    """Else a filter that finds few would have all rows read here."""
    store.create("products", "cosine", points(), index=None)
    objects, collection = attached(store, "products", object_id="sku")
    read, near = [], objects._engine.near

    def counted(*given, **more):
        read.append(near(*given, **more))
        return read[-1]

    monkeypatch.setattr(objects._engine, "near", counted)
    wanted = {
        "must": [
            {"term": {"field": "brand", "value": "apex"}},
            {"any": {"field": "tags", "values": ["new"]}},
            {"field": "price", "range": {"gt": 3, "lt": 9}},
        ],
    }

    found = is_found(objects, collection, wanted)

    assert found == {f"p{k:03}" for k in range(N) if k % 3 == 0 and k % 2 and 3 < k / 4 < 9}
    assert {len(each.objects) for each in read} == {len(found)}


@pytest.mark.parametrize(
    ("kind", "value", "given", "is_expected"),
    [
        (pa.float32(), 0.1, {"gte": 0.1}, True),
        (pa.float32(), 0.1, {"gt": 0.1}, True),  # it holds 0.10000000149
        (pa.float32(), 1e38, {"lt": 1e300}, True),
        (pa.float32(), 1e38, {"gt": 1e300}, False),
        (pa.int8(), 127, {"lte": 1e300}, True),
        (pa.int8(), 127, {"gt": 127}, False),
        (pa.int8(), -128, {"gte": -(10**400)}, True),
        (pa.int8(), 5, {"gt": 4.5, "lt": 5.5}, True),
        (pa.int8(), 5, {"eq": 5.5}, False),
        (pa.uint64(), 2**64 - 1, {"gt": 2**64 - 2}, True),
        (pa.int64(), 2**53 + 1, {"gt": 2**53}, True),
        (pa.decimal128(9, 2), Decimal("3.00"), {"gt": 2.5}, True),
        (pa.date32(), 0, {"gte": "1970"}, True),
        (pa.timestamp("us"), 0, {"lt": "1970-01-02"}, True),
        (pa.float16(), np.float16(1.5), {"gt": 1.49999, "lt": 1e300}, True),
        (pa.float32(), -0.0, {"gte": 0}, True),
        (pa.float64(), 0.0, {"lte": -0.0}, True),
        (pa.int64(), -(2**63), {"lte": -(2**63)}, True),
        (pa.int64(), -(2**63), {"gte": -(2**63), "lt": 0}, True),
    ],
)
def test_a_range_over_columns_of_each_type(store, kind, value, given, is_expected):
    rows = pa.table({"id": ["x"], "embedding": [[1.0, 0.0]], "n": pa.array([value], kind)})
    store.database.create_table("t", with_vectors(rows, "embedding", 2))
    objects, collection = attached(store, "t")

    assert bool(is_found(objects, collection, {"field": "n", "range": given})) is is_expected


@pytest.mark.parametrize(
    ("kind", "value", "given", "is_expected"),
    [
        (pa.uint64(), 2**64 - 1, 2**64 - 1, True),
        (pa.uint64(), 5, 5, True),
        (pa.uint8(), 200, 200, True),
        (pa.int64(), -(2**63), -(2**63), True),
        (pa.float16(), np.float16(1.5), 1.5, True),
        (pa.float16(), np.float16(1.5), 0.1, False),
        (pa.float32(), -0.0, 0, True),
        (pa.float64(), 0.0, -0.0, True),
    ],
)
def test_a_number_is_found_in_columns_and_in_lists_of_each_type(store, kind, value, given, is_expected):
    column = pa.array([value], kind)
    rows = pa.table(
        {"id": ["x"], "embedding": [[1.0, 0.0]], "n": column, "l": pa.ListArray.from_arrays([0, 1], column)}
    )
    store.database.create_table("t", with_vectors(rows, "embedding", 2))
    objects, collection = attached(store, "t")

    assert bool(is_found(objects, collection, {"term": {"field": "n", "value": given}})) is is_expected
    assert bool(is_found(objects, collection, {"any": {"field": "l", "values": [given]}})) is is_expected


def test_ids_and_values_are_texts_whatever_they_hold(store):
    rows = [{"id": each, "embedding": [1.0, 0.0], "title": each} for each in HOSTILE]
    store.database.create_table("t", with_vectors(pa.Table.from_pylist(rows), "embedding", 2))
    objects, collection = attached(store, "t")

    for each in HOSTILE:
        if "\x00" not in each:  # no id of ours
            assert [found.payload for found in objects.get(collection, [each])] == [{"title": each}]
            assert is_found(objects, collection, {"term": {"field": "title", "value": each}}) == {each}
    assert objects.get(collection, ["x"]) == []


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64()])
def test_vectors_of_other_sizes_of_numbers_are_found_as_in_memory(store, kind):
    rows = pa.Table.from_pylist([{"id": k, "at": vector} for k, vector, _ in points()])
    store.database.create_table("t", with_vectors(rows, "at", D, kind))
    objects, collection = attached(store, "t")
    of_all = objects.get(collection, [str(k) for k in range(N)])
    memory, twin = twin_of(collection, of_all)

    found = objects.nearest(collection, vectors(1, seed=11), 30)

    expected = memory.objects.nearest(twin, vectors(1, seed=11), 30)
    assert told(found) == [(each.object_id, each.distance, each.payload) for each in expected]
    assert [each.object_id for each in objects.get(collection, ["007", "7.0", "-0", "", "x", "9" * 20])] == []


@pytest.mark.parametrize("index", ["IvfFlat", "IvfPq", "IvfSq", "HnswSq", "HnswPq"])
def test_each_kind_of_index_fills_a_page_whatever_the_filter_leaves(store, index):
    known = points(600)
    store.create("t", "cosine", known, index=getattr(lancedb.index, index))
    objects, collection = attached(store, "t")
    rare = PayloadFilter.parse({"query": {"match": {"field": "sku", "value": "p007"}}})
    query = vectors(1, seed=11)
    exact = objects.nearest(collection, query, 10, margin=np.inf)

    assert [each.object_id for each in objects.nearest(collection, query, 10, filter=rare)] == ["7"]
    assert len(objects.nearest(collection, query, 999)) == 600
    found = {each.object_id for each in objects.nearest(collection, query, 10)}
    assert len(found & {each.object_id for each in exact}) >= 8
    assert "found by its index embedding_idx" in objects.examined(collection).told


def test_what_is_no_object_is_not_found(store):
    rows = {
        "id": ["a", None, "zero", "none", "nan", "x" * 600],
        "at": [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1.0, 0.0]],
    }
    table = store.database.create_table("t", with_vectors(pa.table(rows), "at", 2))
    table.update(where="id = 'none'", values_sql={"at": "NULL"})
    objects, collection = attached(store, "t")

    assert [each.object_id for each in objects.nearest(collection, ONE, 9)] == ["a", "nan"]
    assert [each.object_id for each in objects.scroll(collection, limit=100)] == ["a", "nan"]
    assert [each.object_id for each in objects.scroll(collection, after="a", limit=1)] == ["nan"]
    assert objects.get(collection, ["none", "zero", "x" * 600]) == []
    assert objects.count(collection) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "produce"}, "has no table 'produce'; it has odd, products, several"),
        ({"source": "../products"}, r"has no table '\.\./products'"),
        ({"object_id": "colour"}, "has no column 'colour'; it has id, embedding, sku"),
        ({"object_id": "price"}, "are of the type double, and can be string or a whole number"),
        ({"object_id": "brand"}, "'brand' is 'acme' in several rows of 'products'"),
        ({"vector": "brand"}, "is of the type string, and vectors are fixed_size_list"),
        ({"source": "several"}, "has 2 columns of vectors; name one of one, two"),
        ({"source": "odd"}, "has no columns of vectors"),
        ({"payload": ("colour",)}, "has no column 'colour'"),
        ({"document": "price"}, "is of the type double; the payload can be one column of JSON"),
        (
            {"source": "several", "vector": "one", "object_id": "a`b"},
            "LanceDB cannot be asked for the column",
        ),
        ({"metric": MetricType.DOT}, "compares by cosine, and not by dot"),
    ],
)
def test_what_cannot_be_attached_is_told_in_a_sentence(store, given, said):
    store.create("products", "cosine", points(7))
    both = pa.table({"id": [1], "one": [[1.0, 0.0]], "two": [[1.0, 0.0]], "a`b": [1]})
    store.database.create_table("several", with_vectors(with_vectors(both, "one", 2), "two", 2))
    store.database.create_table("odd", pa.table({"id": [1], "at": [[1.0]]}))
    engine = LanceDB(store.url, name="lake")
    metric = given.pop("metric", None)

    with pytest.raises(InvalidInputError, match=said):
        engine.found(Attachment("", given.pop("source", "products"), "lake", **given), metric)


@pytest.mark.parametrize(
    "address",
    [
        "lancedb:folder",
        "lancedb:///",
        "lancedb://host/folder",
        "lancedb+ftp://b/c",
        "lancedb+s3://k:secret@b/c",
    ],
)
def test_an_address_that_is_none_is_told_without_its_secret(address):
    with pytest.raises(InvalidSettingError, match="is no address of LanceDB: write lancedb:///FOLDER") as e:
        place_of(address)

    assert "secret" not in str(e.value)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(AttachedUnavailableError, match="is no folder that is there"):
        LanceDB(f"lancedb://{tmp_path}/lance", name="lake")

    assert not (tmp_path / "lance").exists()


@pytest.mark.parametrize("wrong", ["table", "folder", "column", "slow"])
def test_a_table_that_is_away_makes_a_503_and_other_collections_go_on(
    store, context, wrong, caplog, tmp_path
):
    store.create("products", "cosine", points(), index=None)
    products = context.attach("products", "products", object_id="sku", store="lake")
    context.storage.collections.create("films", products.index)
    match wrong:
        case "table":
            store.drop("products")
            said = "put it back, or drop the collection"
        case "folder":
            shutil.rmtree(tmp_path)
            said = "put it back, or drop the collection"
        case "column":
            store.database.open_table("products").drop_columns(["brand"])
            said = "brand"
        case "slow":
            engine = context.storage.objects.of(products)._engine
            engine._timeout = engine._timeout / 1e9
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
    assert "/src/" not in caplog.text
    assert grade == ("OK" if wrong == "slow" else "FAIL")


def test_what_an_operator_should_know_is_told(store, context, monkeypatch):
    monkeypatch.setattr("embedding_studio.storage.lancedb.MANY_ROWS", 100)
    store.create("products", "dot", points())
    store.create("plain", "dot", points(), index=None)
    indexed, plain = (
        context.attach(name, name, object_id="sku", store="lake") for name in ("products", "plain")
    )
    good, bad = (context.storage.objects.examined(each) for each in (indexed, plain))

    assert (indexed.index.metric_type, plain.index.metric_type) == (MetricType.DOT, MetricType.COSINE)
    assert good.told == (
        "LanceDB's table products of lake, only read, by sku and embedding, found by its index embedding_idx"
    )
    assert (good.advice, good.is_exact, bad.is_exact) == ((), False, True)
    assert 'compares all 211 rows; table.create_index("embedding", config=' in bad.advice[0]
