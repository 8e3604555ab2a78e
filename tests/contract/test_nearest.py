"""What is nearest to a query: distances, their order, filters and margins."""

import numpy as np
import pytest

from contract.conftest import CLOSED_FORMS, distance_by_definition, ids, index, learn, thing, vectors
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import CatalogueObject, Neighbour
from embedding_studio.errors import InvalidInputError, InvalidVectorsError
from test_filters import CASES


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_a_distance_is_what_its_metric_and_aggregation_say(storage, metric_type, aggregation):
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=2))
    storage.objects.upsert(shoes, [thing("a", [3, 0], [0, 4])])

    [a] = storage.objects.nearest(shoes, vectors([4, 3]), 5)

    assert a.distance == pytest.approx(CLOSED_FORMS[metric_type, aggregation], abs=1e-6)


@pytest.mark.parametrize("query_parts", [1, 3])
@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_the_nearest_are_those_of_the_definition(storage, metric_type, aggregation, query_parts):
    rng = np.random.default_rng(7)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    objects = {
        f"o{number}": rng.normal(size=(rng.integers(1, 5), 5)).astype(np.float32) for number in range(211)
    }
    storage.objects.upsert(shoes, [CatalogueObject(*item) for item in objects.items()])
    queries = rng.normal(size=(query_parts, 5)).astype(np.float32)
    true = {i: distance_by_definition(metric_type, aggregation, queries, objects[i]) for i in objects}
    expected = sorted(true, key=true.get)

    ten = storage.objects.nearest(shoes, queries, 10)
    everything = storage.objects.nearest(shoes, queries, 1000)
    near = storage.objects.nearest(shoes, queries, 1000, max_distance=true[expected[29]] + 1e-5)

    assert ids(ten) == expected[:10]
    assert ids(everything) == expected
    assert ids(near) == expected[:30]
    assert [n.distance for n in everything] == pytest.approx([true[i] for i in expected], abs=1e-5)


def test_an_object_of_many_parts_comes_once_and_takes_one_place(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("many", *[[1, 0, k / 100] for k in range(40)])])
    storage.objects.upsert(shoes, [thing(f"o{k}", [1, 1 + k / 10, 0]) for k in range(5)])

    near = storage.objects.nearest(shoes, vectors([1, 0, 0]), 4)

    assert ids(near) == ["many", "o0", "o1", "o2"]


def test_equal_distances_are_in_the_order_of_ids_by_code_point(storage):
    shoes = storage.collections.create("shoes", index())
    tied = ["b", "a", "B", "é", "z", "a1", "_", "靴", "a b", "10", "9"]
    storage.objects.upsert(shoes, [thing(object_id, [1, 2, 3]) for object_id in tied])
    storage.objects.upsert(shoes, [thing("0 far", [1, 0, 0]), thing("zz near", [1, 2, 4])])

    near = storage.objects.nearest(shoes, vectors([1, 2, 4]), 20)

    assert ids(near) == ["zz near", "10", "9", "B", "_", "a", "a b", "a1", "b", "z", "é", "靴", "0 far"]


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_a_longer_list_begins_with_the_shorter_one(storage, metric_type, aggregation):
    rng = np.random.default_rng(11)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=3))
    grid = rng.integers(1, 3, size=(97, 2, 3)).astype(np.float32)  # few different vectors, so many ties
    storage.objects.upsert(shoes, [CatalogueObject(f"o{k}", parts) for k, parts in enumerate(grid)])
    queries = vectors([1, 2, 1], [2, 2, 1])

    everything = storage.objects.nearest(shoes, queries, 97)

    assert len(everything) == 97
    assert everything == sorted(everything, key=lambda n: (n.distance, n.object_id))
    for limit in (0, 1, 2, 3, 5, 10, 30, 60, 96):
        assert storage.objects.nearest(shoes, queries, limit) == everything[:limit]


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_the_largest_distance_is_inclusive(storage, metric_type, aggregation):
    rng = np.random.default_rng(13)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    objects = rng.normal(size=(31, 3, 5)).astype(np.float32)
    storage.objects.upsert(shoes, [CatalogueObject(f"o{k}", parts) for k, parts in enumerate(objects)])
    query = rng.normal(size=(1, 5)).astype(np.float32)
    everything = storage.objects.nearest(shoes, query, 31)

    for last in (0, 1, 15, 30):
        near = storage.objects.nearest(shoes, query, 31, max_distance=everything[last].distance)
        assert near == everything[: last + 1]
    assert storage.objects.nearest(shoes, query, 31, max_distance=everything[0].distance - 1e-3) == []


@pytest.mark.parametrize("bad", [[[1, 0]], [[1, 0, np.nan]], [[1, 0, 0], [0, 0, 0]], np.empty((0, 3))])
def test_a_query_that_cannot_be_compared_is_refused(storage, films, bad):
    query = np.array(bad, dtype=np.float32)

    with pytest.raises(InvalidVectorsError, match="query"):
        storage.objects.nearest(films, query, 3)
    with pytest.raises(InvalidVectorsError, match="query"):
        storage.personal.nearest(films, "ann", query, 3, {}, objects=storage.objects)


def test_an_empty_collection_has_nothing_near(storage):
    shoes = storage.collections.create("shoes", index())

    assert storage.objects.nearest(shoes, vectors([1, 0, 0]), 5) == []


def test_every_kind_of_filter_finds_what_it_means(storage):
    shoes = storage.collections.create("shoes", index())
    payloads = {f"o{number}": payload for number, (_, payload, _) in enumerate(CASES)}
    storage.objects.upsert(shoes, [thing(i, [1, 0, 0], **payload) for i, payload in payloads.items()])

    disagreements = []
    for query, _, _ in CASES:
        wanted = PayloadFilter.parse({"query": query})
        found = set(ids(storage.objects.nearest(shoes, vectors([1, 0, 0]), 1000, filter=wanted)))
        expected = {i for i, payload in payloads.items() if wanted.matches(payload)}
        disagreements += [(query, payloads[i], i in found) for i in found ^ expected]

    assert disagreements == []


def test_a_filtered_list_is_shorter_only_if_fewer_match(storage):
    rng = np.random.default_rng(17)
    shoes = storage.collections.create("shoes", index(dimensions=5))
    objects = rng.normal(size=(801, 5)).astype(np.float32)
    query = rng.normal(size=(1, 5)).astype(np.float32)
    true = 1 - (objects @ query[0]) / np.linalg.norm(objects, axis=1) / np.linalg.norm(query)
    far_to_near = np.argsort(-true)  # rank 0 is farthest: what a filter seeks lies where a search looks last
    storage.objects.upsert(
        shoes, [thing(f"o{k}", objects[k], rank=rank) for rank, k in enumerate(far_to_near.tolist())]
    )

    for matching in (0, 1, 7, 80, 400, 801):
        wanted = PayloadFilter.parse({"query": {"field": "rank", "range": {"lt": matching}}})
        expected = [f"o{k}" for k in reversed(far_to_near[:matching].tolist())]
        assert ids(storage.objects.nearest(shoes, query, 10, filter=wanted)) == expected[:10]
        assert ids(storage.objects.nearest(shoes, query, 300, filter=wanted)) == expected[:300]


@pytest.mark.parametrize("margin", [0, -1, 101, np.inf, np.nan])
def test_a_margin_that_no_search_can_have_is_refused(storage, margin):
    shoes = storage.collections.create("shoes", index())

    with pytest.raises(InvalidInputError, match="margin"):
        storage.objects.set_margin(shoes, margin)


def test_a_margin_that_was_set_is_told_until_it_is_taken_back(storage):
    shoes = storage.collections.create("shoes", index())

    storage.objects.set_margin(shoes, 1.5)
    while_set = storage.objects.codes(shoes).margin
    storage.objects.set_margin(shoes, None)

    assert while_set == 1.5
    assert storage.objects.codes(shoes).margin is None


def test_filter_and_largest_distance_hold_together(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], even=k % 2 == 0) for k in range(9)])
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    near = storage.objects.nearest(shoes, vectors([0, 0, 0]), 9, filter=even, max_distance=4)

    assert near == [
        Neighbour("o0", 0.0, {"even": True}),
        Neighbour("o2", 2.0, {"even": True}),
        Neighbour("o4", 4.0, {"even": True}),
    ]


@pytest.mark.parametrize(
    ("metric_type", "aggregation"),
    [
        (MetricType.COSINE, MetricAggregationType.MIN),
        (MetricType.DOT, MetricAggregationType.AVG),
        (MetricType.EUCLID, MetricAggregationType.AVG),
    ],
)
def test_a_collection_large_enough_for_a_vector_index_keeps_the_promises(storage, metric_type, aggregation):
    rng = np.random.default_rng(23)
    objects = rng.normal(size=(3301, 2, 5)).astype(np.float32)  # parts of one thing are alike
    query = rng.normal(size=(1, 5)).astype(np.float32)
    true = np.array([distance_by_definition(metric_type, aggregation, query, parts) for parts in objects])
    order = [f"o{k}" for k in np.argsort(true)]
    rank = {object_id: place for place, object_id in enumerate(order)}
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    storage.objects.upsert(
        shoes, [CatalogueObject(f"o{k}", parts, {"rank": rank[f"o{k}"]}) for k, parts in enumerate(objects)]
    )
    learn(storage, shoes, moved={object_id: [[9] * 5, [9] * 5] for object_id in order[:40]})
    rare = PayloadFilter.parse({"query": {"field": "rank", "range": {"gte": 3280}}})
    common = PayloadFilter.parse({"query": {"field": "rank", "range": {"gte": 1500}}})

    near = storage.objects.nearest(shoes, query, 200)
    own = storage.personal.nearest(
        shoes, "ann", query, 70, dict.fromkeys(order[:40], 1.0), objects=storage.objects
    )
    far = distance_by_definition(metric_type, aggregation, query, np.full((2, 5), 9, dtype=np.float32))

    assert len(set(ids(near))) == 200
    assert near == sorted(near, key=lambda n: (n.distance, n.object_id))
    assert [n.distance for n in near] == pytest.approx([true[int(n.object_id[1:])] for n in near], abs=1e-5)
    assert len(set(ids(near)) & set(order[:200])) >= 170  # an index may miss some
    for limit in (1, 10, 50):
        assert storage.objects.nearest(shoes, query, limit) == near[:limit]
    assert storage.objects.nearest(shoes, query, 200, max_distance=near[19].distance) == near[:20]
    assert ids(storage.objects.nearest(shoes, query, 30, filter=rare)) == order[3280:]
    found = ids(storage.objects.nearest(shoes, query, 30, filter=common))
    assert len(set(found) & set(order[1500:1530])) >= 24
    assert len(found) == len(set(found)) == 30
    by_place = {object_id: far if n < 40 else true[int(object_id[1:])] for n, object_id in enumerate(order)}
    best = sorted(by_place, key=lambda object_id: (by_place[object_id], object_id))[:70]
    assert [n.distance for n in own] == pytest.approx([by_place[n.object_id] for n in own], abs=1e-5)
    assert len(set(ids(own)) & set(best)) >= 60
