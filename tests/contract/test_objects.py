"""Objects as they are kept, replaced, scrolled and deleted."""

import itertools

import numpy as np
import pytest

from contract.conftest import (
    ODD_IDS,
    claimed,
    clicked,
    ids,
    index,
    learn,
    memory_of,
    settle,
    thing,
    told,
    vectors,
)
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import CatalogueObject, Neighbour
from embedding_studio.errors import InvalidInputError, InvalidVectorsError


def test_objects_come_back_whole_and_in_the_order_asked_for(storage):
    shoes = storage.collections.create("shoes", index())
    payload = {"name": "größe 靴", "price": 1.5, "tags": ["x", None, True], "maker": {"name": "o'Neill"}}
    many_parts = [[1, 2, 3], [-4, 5.5, 0], [0.1, 0, 7], [1, 1, 1], [0, 0, 1e-3]]
    storage.objects.upsert(
        shoes, [thing("a", [1, 0, 0], content_hash="h"), CatalogueObject("b", vectors(*many_parts), payload)]
    )

    b, a = storage.objects.get(shoes, ["b", "unknown", "a"])

    assert (b.object_id, b.payload, b.content_hash) == ("b", payload, None)
    assert (a.object_id, a.payload, a.content_hash) == ("a", {}, "h")
    assert (b.parts.dtype, b.parts.shape, a.parts.shape) == (np.float32, (5, 3), (1, 3))
    np.testing.assert_array_equal(b.parts, vectors(*many_parts))


def test_an_upserted_object_replaces_the_one_of_its_id_altogether(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("a", [1, 0, 0], [0, 1, 0], content_hash="h", price=3)])

    storage.objects.upsert(shoes, [thing("a", [0, 0, 1], name="new")])

    [a] = storage.objects.get(shoes, ["a"])
    assert (a.parts.tolist(), a.payload, a.content_hash) == ([[0, 0, 1]], {"name": "new"}, None)
    assert storage.objects.count(shoes) == 1
    assert storage.objects.nearest(shoes, vectors([1, 0, 0]), 5) == [Neighbour("a", 1.0, {"name": "new"})]


@pytest.mark.parametrize(
    ("metric_type", "parts"),
    [
        (MetricType.COSINE, [[1, 0]]),
        (MetricType.COSINE, [[1, 0, np.nan]]),
        (MetricType.DOT, [[1, 0, 0], [1, 0, np.inf]]),
        (MetricType.EUCLID, np.empty((0, 3))),
        (MetricType.COSINE, [[1, 0, 0], [0, 0, 0]]),
    ],
)
def test_bad_vectors_are_refused_by_the_name_of_their_object_and_nothing_is_stored(
    storage, metric_type, parts
):
    shoes = storage.collections.create("shoes", index(metric_type))
    bad = CatalogueObject("the bad one", np.array(parts, dtype=np.float32))

    with pytest.raises(InvalidVectorsError, match="the bad one"):
        storage.objects.upsert(shoes, [thing("a", [1, 0, 0]), bad, thing("c", [1, 0, 0])])

    assert storage.objects.count(shoes) == 0


@pytest.mark.parametrize("metric_type", [MetricType.DOT, MetricType.EUCLID])
def test_a_zero_vector_is_a_point_where_direction_does_not_count(storage, metric_type):
    shoes = storage.collections.create("shoes", index(metric_type))

    storage.objects.upsert(shoes, [thing("a", [0, 0, 0])])

    assert storage.objects.nearest(shoes, vectors([0, 0, 0]), 5) == [Neighbour("a", 0.0, {})]


def test_a_payload_that_is_not_json_is_refused_and_nothing_is_stored(storage, films):
    with pytest.raises(InvalidInputError):
        storage.objects.upsert(films, [thing("d", [1, 0, 0]), thing("e", [1, 0, 0], price=float("nan"))])

    assert storage.objects.count(films) == 3


def test_content_hashes_are_told_of_those_that_exist_and_have_one(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("a", [1, 0, 0], content_hash="h"), thing("b", [1, 0, 0])])

    assert storage.objects.content_hashes(shoes, ["a", "b", "unknown"]) == {"a": "h"}
    assert storage.objects.content_hashes(shoes, []) == {}


def test_a_payload_is_replaced_alone(storage, films):
    clicked(storage, "s1", "ann", shown="ab")
    settle(storage)
    learn(storage, films, moved={"a": [[1, 1, 0]]})
    storage.objects.upsert(films, [thing("b", [0, 1, 0], content_hash="t" * 32 + "p" * 32, price=3)])

    unknown = storage.objects.update_payloads(
        films, {"unknown": {"price": 1}, "b": {"tags": ["größe", None]}, "a": {"price": 2}, "also": {}}
    )

    a, b, c = storage.objects.get(films, ["a", "b", "c"])
    assert unknown == ["also", "unknown"]
    assert (a.payload, b.payload, c.payload) == ({"price": 2}, {"tags": ["größe", None]}, {})
    assert (a.parts.tolist(), b.parts.tolist()) == ([[1, 0, 0]], [[0, 1, 0]])
    assert (a.content_hash, b.content_hash) == (None, "t" * 32)  # of the text; the payload is another now
    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})
    assert claimed(storage) == []
    assert storage.objects.count(films) == 3
    assert storage.objects.nearest(films, vectors([1, 0, 0]), 1) == [Neighbour("a", 0.0, {"price": 2})]


def test_payloads_are_replaced_all_or_none(storage, films):
    with pytest.raises(InvalidInputError):
        storage.objects.update_payloads(films, {"a": {"price": 1}, "b": {"price": float("nan")}})

    assert [each.payload for each in storage.objects.get(films, ["a", "b"])] == [{}, {}]


def test_a_collection_is_scrolled_in_the_order_of_ids_page_by_page(storage):
    shoes = storage.collections.create("shoes", index(aggregation=MetricAggregationType.AVG))
    mixed = ["b", "a", "B", "é", "z", "a1", "_", "靴", "a b", "10", "9"]
    parts = {object_id: [[k + 1, 0, 1], [0, k, 2]][: 1 + k % 2] for k, object_id in enumerate(mixed)}
    storage.objects.upsert(shoes, [thing(i, *parts[i], content_hash=f"hash of {i}", name=i) for i in mixed])

    pages = [storage.objects.scroll(shoes, limit=4)]
    while len(pages[-1]) == 4:
        pages.append(storage.objects.scroll(shoes, after=pages[-1][-1].object_id, limit=4))

    assert [ids(page) for page in pages] == [
        ["10", "9", "B", "_"], ["a", "a b", "a1", "b"], ["z", "é", "靴"],
    ]  # fmt: skip
    for item in itertools.chain(*pages):
        assert item.parts.tolist() == parts[item.object_id]
        assert item.parts.dtype == np.float32
        assert item.payload == {"name": item.object_id}
        assert item.content_hash == f"hash of {item.object_id}"
    assert ids(storage.objects.scroll(shoes)) == ids(itertools.chain(*pages))


def test_scrolling_begins_after_an_id_that_need_not_exist_and_ends_with_an_empty_page(storage, films):
    assert ids(storage.objects.scroll(films, after="aa")) == ["b", "c"]
    assert ids(storage.objects.scroll(films, after="")) == ["a", "b", "c"]
    assert storage.objects.scroll(films, after="c") == []
    assert storage.objects.scroll(films, limit=0) == []


def test_scrolling_keeps_to_a_filter(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing(f"o{k}", [1, 0, k], even=k % 2 == 0) for k in range(9)])
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    first = storage.objects.scroll(shoes, limit=3, filter=even)
    second = storage.objects.scroll(shoes, after="o4", limit=3, filter=even)

    assert ids(first) == ["o0", "o2", "o4"]
    assert ids(second) == ["o6", "o8"]


def test_no_objects_at_all_are_no_special_case(storage, films):
    storage.objects.upsert(films, [])

    assert storage.objects.get(films, []) == []
    assert storage.objects.delete(films, []) == 0
    assert storage.objects.update_payloads(films, {}) == []
    assert storage.objects.count(films) == 3


def test_deleted_objects_are_gone_and_counted(storage, films):
    assert storage.objects.delete(films, ["a", "unknown", "c", "a"]) == 2

    assert storage.objects.count(films) == 1
    assert storage.objects.get(films, ["a", "c"]) == []
    assert ids(storage.objects.nearest(films, vectors([1, 0, 0]), 5)) == ["b"]


@pytest.mark.parametrize("object_id", ODD_IDS)
def test_an_object_and_a_user_may_have_any_id(storage, films, object_id):
    user_id = object_id[::-1]
    storage.objects.upsert(films, [thing(object_id, [1, 1, 0])])
    clicked(storage, object_id, user_id, shown=["a", object_id])
    learn(
        storage,
        films,
        user_id,
        memories=[memory_of(object_id, moved=(object_id,))],
        moved={object_id: [[3, 1, 0]]},
    )

    near = storage.personal.nearest(
        films, user_id, vectors([1, 1, 0]), 2, {object_id: 1.0}, objects=storage.objects
    )

    assert ids(storage.objects.nearest(films, vectors([1, 1, 0]), 1)) == [object_id]
    assert [(n.object_id, n.distance) for n in near] == [
        (object_id, pytest.approx(1 - 4 / np.sqrt(20), abs=1e-6)),
        ("a", pytest.approx(1 - np.sqrt(0.5), abs=1e-6)),
    ]
    assert list(storage.personal.copies(films, user_id, [object_id])) == [object_id]
    assert claimed(storage) == [user_id]
    assert storage.objects.update_payloads(films, {object_id: {"new": True}}) == []
    assert object_id in ids(storage.objects.scroll(films))
    assert storage.objects.delete(films, [object_id]) == 1
    assert storage.clickstream.forget_user(user_id)["sessions"] == 1


def test_collections_share_no_objects(storage, films):
    books = storage.collections.create("books", index())
    storage.objects.upsert(books, [thing("a", [0, 0, 5], title="a book")])

    storage.objects.delete(films, ["a"])

    assert storage.objects.nearest(books, vectors([0, 0, 1]), 5) == [Neighbour("a", 0.0, {"title": "a book"})]


@pytest.mark.parametrize("bad", [{"price": float("nan")}, {"name": "a\0b"}, {"a\0": 1}, {"name": "\ud800"}])
def test_of_objects_of_which_one_cannot_be_stored_none_is(storage, films, bad):
    many = [thing(f"m{number:04}", [1, 0, number]) for number in range(2500)]
    many.append(CatalogueObject("z", vectors([1, 0, 0]), bad))

    with pytest.raises(InvalidInputError, match="'z'"):
        storage.objects.upsert(films, many)

    assert storage.objects.count(films) == 3
    storage.objects.upsert(films, [*many[:-1], thing("z", [1, 0, 0], name="a\\u0000b")])
    assert storage.objects.count(films) == 2504
    assert storage.objects.get(films, ["z"])[0].payload == {"name": "a\\u0000b"}


def test_originals_are_those_that_exist(storage, films):
    storage.objects.upsert(films, [thing("d", [1, 2, 3], [4, 5, 6])])

    originals = storage.objects.originals(films, iter(["d", "unknown", "a"]))
    none = storage.objects.originals(films, [])

    assert {i: parts.tolist() for i, parts in originals.items()} == {
        "a": [[1, 0, 0]],
        "d": [[1, 2, 3], [4, 5, 6]],
    }
    assert none == {}
