"""A collection of Qdrant that was there before; the engine is Qdrant's own, the server is not."""

import uuid

import numpy as np
import orjson
import pytest

from embedding_studio.api.app import create_app
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError
from test_api_service import SEARCH, serving
from test_attached import (
    D,
    everything,
    opened,
    vectors,
)
from test_attached_engines import N, points
from test_filters import CASES

pytest.importorskip("qdrant_edge", reason="Qdrant's engine is not installed here")
from qdrant_server import qdrant


@pytest.fixture
def server(tmp_path):
    with qdrant(tmp_path) as server:
        yield server


@pytest.fixture
def context(server, postgres_url):
    with opened(postgres_url, shared_min_users=0, attached_stores={"vectors": server.url}) as context:
        yield context


@pytest.fixture
def products(server, context):
    """Return a collection of ours that is attached to one of Qdrant's, which is compared by cosine."""
    server.create("products", {"size": D, "distance": "Cosine"})
    server.upsert("products", points())
    return context.attach("products", "products", object_id="sku", store="vectors")


def _is_storable(payload):
    """Return whether all numbers have 64 bits at the most, as Qdrant's have."""
    try:
        orjson.dumps(payload)
    except TypeError:
        return False
    return True


def test_a_filter_means_of_qdrant_what_it_means_of_our_own_objects(server, context):
    server.create("documents", {"size": 2, "distance": "Dot"})
    storable = [(k, payload) for k, (_, payload, _) in enumerate(CASES) if _is_storable(payload)]
    server.upsert("documents", [(k, [1.0, 0.0], payload) for k, payload in storable])
    collection = context.attach("documents", "documents", store="vectors")
    wrong = []
    for k, payload in storable:
        query, _, is_found = CASES[k]
        for given, expected in ((query, is_found), ({"must_not": [query]}, not is_found)):
            wanted = PayloadFilter.parse({"query": given})
            found = context.storage.objects.nearest(
                collection, np.eye(1, 2, dtype=np.float32), 999, filter=wanted
            )
            if (str(k) in {each.object_id for each in found}) is not expected:
                wrong.append((given, payload))

    assert len(storable) > 100
    assert wrong == []


def test_a_bound_beyond_all_that_qdrant_can_compare_is_looked_at_here(context, products):
    wanted = {"field": "price", "range": {"lt": 10**400, "gte": N / 4 - 1}}

    found = context.storage.objects.nearest(
        products, vectors(1), 9, filter=PayloadFilter.parse({"query": wanted})
    )

    assert {each.object_id for each in found} == {"p207", "p208", "p209", "p210"}


def test_what_qdrant_can_look_for_is_left_to_it(server, context, products):
    """Else a filter that finds few would have all points sent here."""
    wanted = {
        "must": [
            {"term": {"field": "brand", "value": "apex"}},
            {"field": "price", "range": {"gt": 3, "lt": 9}},
            {"match": {"field": "sku", "value": "p"}},
        ],
        "must_not": [{"term": {"field": "tags", "value": "new"}}],
    }

    context.storage.objects.nearest(products, vectors(1), 5, filter=PayloadFilter.parse({"query": wanted}))

    brand = {"should": [{"key": "brand", "match": {"value": "apex"}}]}
    price = {"key": "price", "range": {"gte": 3.0, "lte": 9.0}}
    assert server.requests[0][1]["filter"] == {"must": [{"must": [brand, price]}]}


def test_points_are_objects_by_their_own_ids_or_by_a_field(server, context, products):
    named = uuid.UUID(int=7)
    server.upsert(
        "products", [(named, [1.0, 2.0, 3.0, 4.0, 5.0], {"sku": 77}), (999, [1.0] * D, {"brand": "x"})]
    )
    by_point = context.attach("points", "products", store="vectors")

    own, field = (
        [
            each.object_id
            for each in context.storage.objects.get(known, [str(named), "007", "77", "p005", "5", "-1"])
        ]
        for known in (by_point, products)
    )

    assert own == [str(named), "77", "5"]
    assert field == ["77", "p005"]
    assert len(context.storage.objects.nearest(products, vectors(1), 999)) == N + 1
    ids = [each.object_id for each in everything(context.storage, by_point)]
    assert ids == sorted(ids, key=str.encode)
    assert len(ids) == N + 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "produce"}, "has no collection 'produce'; it has brands, images, nothing, products"),
        ({"vector": "image"}, "no vector 'image'; name one of ''"),
        ({"source": "images"}, "no vector ''; name one of 'image', 'text'"),
        ({"object_id": "brand"}, "'brand' is 'acme' in several points"),
        ({"object_id": "colour"}, "no point of 'products' has a text or a whole number as 'colour'"),
        ({"source": "brands"}, "has the distance Manhattan"),
        ({"source": "images", "vector": "text"}, "has several vectors a point"),
        ({"metric_type": MetricType.DOT}, "is compared by cosine, and not by dot"),
        ({"payload": ["brand"]}, "the whole payload of a point"),
    ],
)
def test_what_cannot_be_attached_is_told_in_a_sentence(server, context, given, said):
    server.create("products", {"size": D, "distance": "Cosine"})
    server.upsert("products", points(7))
    server.create("nothing", {})
    server.create("brands", {"size": D, "distance": "Manhattan"})
    several = {"size": 3, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}
    server.create("images", {"image": {"size": 3, "distance": "Dot"}, "text": several})

    with pytest.raises(InvalidInputError, match=said):
        context.attach("x", given.pop("source", "products"), store="vectors", **given)

    assert context.storage.collections.list() == []


@pytest.mark.parametrize("wrong", ["key", "error", "nonsense", "gone", "slow"])
def test_a_qdrant_that_is_away_makes_a_503_and_other_collections_go_on(
    server, context, products, wrong, caplog
):
    context.storage.collections.create("films", products.index)
    said = "cannot be reached"
    match wrong:
        case "key":
            server.key, said = "secret", "wants another key"
        case "error":
            server.answer, said = (500, {"status": {"error": "disk full"}}), "answered 500, not as Qdrant"
        case "nonsense":
            server.answer, said = (200, {"hits": []}), "answered 200, not as Qdrant"
        case "gone":
            server.shards.pop("products").close()
            said = "does not have /collections/products"
        case "slow":
            context.storage.objects.of(products)._engine._client.timeout = 0.05
            server.seconds, said = 1.0, "did not answer in time"
    query = {"search_query": vectors(1).tolist(), "user_id": "ann"}

    with serving(create_app(context)) as client:
        away, other = (
            client.post(SEARCH, json=query | {"collection": name}) for name in ("products", "films")
        )
        listed = client.get("/api/v1/collections").json()["collections"]

    assert (away.status_code, other.status_code) == (503, 200)
    assert [(each["name"], each["objects"]) for each in listed] == [("films", 0), ("products", None)]
    assert said in caplog.text


def test_a_key_is_sent_and_never_told(server, postgres_url):
    server.create("products", {"size": D, "distance": "Cosine"})
    server.key = "very-secret"
    stores = {
        "good": server.url.replace("//", "//:very-secret@"),
        "bad": server.url.replace("//", "//:another@"),
    }
    with opened(postgres_url, attached_stores=stores) as context:
        attached = context.attach("products", "products", store="good")
        with pytest.raises(AttachedUnavailableError, match="wants another key") as refused:
            context.attach("others", "products", store="bad")

    assert str(attached.attached) == "Qdrant's collection products of good"
    assert "another@" not in str(refused.value)
    assert "very-secret" not in repr(context.settings)
