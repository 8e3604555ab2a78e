"""Memories that are near, and the nearest objects for a user."""

import dataclasses

import numpy as np
import pytest

from contract.conftest import (
    CLOSED_FORMS,
    NOTHING,
    distance_by_definition,
    ids,
    index,
    learn,
    memory_of,
    thing,
    told,
    told_memory,
    vectors,
)
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import CatalogueObject, Neighbour, PersonalState


def test_the_latest_memories_are_of_those_who_have_two(storage, films):
    ages = {"ann": (5, 9), "bob": (7, 9, 1), "cat": (10,), "dan": (2, 3), "eve": (12, 11)}
    with storage.personal.learning(films, list(ages)) as transaction:
        transaction.replace_states(
            {
                user: PersonalState(tuple(memory_of(f"{user}{at}", at=at) for at in sorted(times)))
                for user, times in ages.items()
            }
        )

    def told(count):
        found = storage.personal.latest_memories(films, count)
        return [[memory.session_id for memory in memories] for memories in found]

    assert told(100) == [["eve11", "eve12"], ["ann5", "ann9"], ["bob1", "bob7", "bob9"], ["dan2", "dan3"]]
    assert told(5) == told(100)[:3]
    assert told(2) == told(100)[:1]
    [first, _] = storage.personal.latest_memories(films, 1)[0]
    np.testing.assert_array_equal(first.query, memory_of("eve11").query)
    assert (first.created_at, first.clicked_ids) == (11, ("a", "b"))


def test_a_memory_keeps_how_like_its_query_each_click_is(storage, films):
    unlike = dataclasses.replace(memory_of("s1"), likeness=(0.25, 1.0))
    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((unlike, memory_of("s2")))})

    [near, _] = storage.personal.near_memories(films, "ann", unlike.query, 0.5).own
    [stored, other] = storage.personal.state(films, "ann").memories
    assert near.likeness == stored.likeness == (0.25, 1.0)
    assert other.likeness == ()


def test_memories_are_active_above_the_threshold(storage, films):
    queries = {"same": (2, 0, 0), "near": (4, 3, 0), "square": (0, 1, 0), "opposite": (-1, 0, 0)}
    learn(
        storage, films, memories=[memory_of(session_id, query=query) for session_id, query in queries.items()]
    )

    def active(threshold, query=(5, 0, 0)):
        memories = storage.personal.near_memories(films, "ann", vectors(*query), threshold).own
        return sorted(memory.session_id for memory in memories)

    assert active(0.9) == ["same"]
    assert active(0.81) == ["same"]
    assert active(0.79) == ["near", "same"]
    assert active(0.0) == ["near", "same"]
    assert active(-0.5) == ["near", "same", "square"]
    assert active(0.5, query=(0, 0, 1)) == []


def test_an_active_memory_comes_whole(storage, films):
    memory = memory_of("s1", query=(1, 0.1, 0), mean=(0.3, 2, 0), moved=("a", "c"), at=123)
    learn(storage, films, memories=[memory])

    [active] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.75).own

    assert told_memory(active) == told_memory(memory)


@pytest.mark.parametrize("metric_type", list(MetricType))
def test_nearness_to_a_memory_is_the_cosine_whatever_the_metric(storage, metric_type):
    shoes = storage.collections.create("shoes", index(metric_type))
    learn(
        storage, shoes, memories=[memory_of("far along", query=(9, 0, 0)), memory_of("zero", query=(0, 0, 0))]
    )

    near = storage.personal.near_memories(shoes, "ann", vectors(1, 0, 0), 0.5).own
    assert [memory.session_id for memory in near] == ["far along"]
    assert storage.personal.near_memories(shoes, "ann", vectors(0, 0, 0), 0.5).own == []


@pytest.mark.parametrize("intruder", ["nobody", "ann' OR '1'='1", "an%", "ann\\", "ANN", "ann "])
def test_a_users_state_is_read_for_that_user_alone(storage, films, intruder):
    learn(storage, films, "ann", memories=[memory_of("s1")], moved={"b": [[1, 1, 0]]})
    plain = storage.objects.nearest(films, vectors([1, 0, 0]), 3)

    assert told(storage.personal.state(films, intruder)) == NOTHING
    assert storage.personal.near_memories(films, intruder, vectors(1, 0, 0), 0.0).own == []
    assert (
        storage.personal.nearest(films, intruder, vectors([1, 0, 0]), 3, {"b": 1.0}, objects=storage.objects)
        == plain
    )
    assert storage.personal.copies(films, intruder, ["b"]) == {}


def test_what_a_user_moved_stands_where_its_gate_puts_it(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], [k, 1, 0], number=k) for k in range(9)])
    learn(storage, shoes, moved={f"o{k}": [[k, 5, 0], [k, 6, 0]] for k in (0, 3)} | {"o8": [[1, 0, 0]] * 2})

    near = storage.personal.nearest(
        shoes,
        "ann",
        vectors([0, 0, 0]),
        5,
        {"o8": 1.0, "o0": 0.5, "o5": 1.0, "unknown": 1.0},
        objects=storage.objects,
    )

    assert near == [
        Neighbour("o1", 1.0, {"number": 1}),
        Neighbour("o8", 1.0, {"number": 8}),  # (1 - 1) * 8 + 1 * 1
        Neighbour("o2", 2.0, {"number": 2}),
        Neighbour("o0", 2.5, {"number": 0}),  # (1 - 1/2) * 0 + 1/2 * 5
        Neighbour("o3", 3.0, {"number": 3}),  # moved, and no gate is open for it
    ]


def test_copies_are_those_that_there_are(storage, films):
    learn(storage, films, moved={"b": [[1, 1, 0]], "c": [[0, 1, 1]]})

    copies = storage.personal.copies(films, "ann", ["a", "b", "unknown"])

    assert {object_id: parts.tolist() for object_id, parts in copies.items()} == {"b": [[1, 1, 0]]}
    assert copies["b"].dtype == np.float32
    assert storage.personal.copies(films, "ann", []) == {}


def test_a_filter_holds_for_moved_objects_too(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], even=k % 2 == 0) for k in range(9)])
    learn(storage, shoes, moved={f"o{k}": [[k, 5, 0]] for k in range(4)})
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    near = storage.personal.nearest(
        shoes,
        "ann",
        vectors([0, 0, 0]),
        4,
        dict.fromkeys(["o0", "o1", "o2", "o3"], 1.0),
        filter=even,
        objects=storage.objects,
    )

    assert ids(near) == ["o4", "o0", "o2", "o6"]


def test_what_is_named_is_returned_however_far_it_is_and_takes_no_place_of_others(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], even=k % 2 == 0) for k in range(9)])
    learn(storage, shoes, moved={f"o{k}": [[0, 5, 0]] for k in (1, 7)})
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    def found(limit, named, gates, wanted=None):
        near = storage.personal.nearest(
            shoes,
            "ann",
            vectors([0, 0, 0]),
            limit,
            dict.fromkeys(gates, 1.0),
            objects=storage.objects,
            filter=wanted,
            named=dict.fromkeys(named, 0.0),
        )
        return [(each.object_id, each.distance) for each in near]

    assert found(2, {"o8", "o0", "unknown"}, []) == [("o0", 0), ("o1", 1), ("o2", 2), ("o8", 8)]
    assert found(2, {"o1", "o7"}, ["o1", "o7"]) == [("o0", 0), ("o2", 2), ("o1", 5), ("o7", 5)]
    assert found(2, {"o7", "o8"}, ["o7"], even) == [("o0", 0), ("o2", 2), ("o8", 8)]
    assert found(0, {"o3"}, []) == [("o3", 3)]
    assert found(9, {"o3"}, []) == [(f"o{k}", k) for k in range(9)]


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_the_nearest_for_a_user_are_those_by_definition(storage, metric_type, aggregation):
    rng = np.random.default_rng(19)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    objects = rng.normal(size=(57, 3, 5)).astype(np.float32)
    copies = rng.normal(size=(20, 3, 5)).astype(np.float32)
    storage.objects.upsert(shoes, [CatalogueObject(f"o{k}", parts) for k, parts in enumerate(objects)])
    learn(storage, shoes, moved={f"o{k}": parts for k, parts in enumerate(copies)})
    queries = rng.normal(size=(2, 5)).astype(np.float32)
    gates = {f"o{k}": 1 / (1 + k % 4) for k in range(0, 40, 3)}

    def distance(parts):
        return distance_by_definition(metric_type, aggregation, queries, parts)

    expected = {f"o{k}": distance(parts) for k, parts in enumerate(objects)}
    for k in range(0, 20, 3):
        gate = gates[f"o{k}"]
        expected[f"o{k}"] = (1 - gate) * expected[f"o{k}"] + gate * distance(copies[k])

    plain = storage.personal.nearest(shoes, "ann", queries, 9, {}, objects=storage.objects)
    near = storage.personal.nearest(shoes, "ann", queries, 57, gates, objects=storage.objects)

    assert plain == storage.objects.nearest(shoes, queries, 9)
    assert ids(near) == sorted(expected, key=lambda object_id: (expected[object_id], object_id))
    assert [n.distance for n in near] == pytest.approx([expected[n.object_id] for n in near], abs=1e-5)
    for limit in (1, 9, 30):
        assert (
            storage.personal.nearest(shoes, "ann", queries, limit, gates, objects=storage.objects)
            == near[:limit]
        )
        named = {f"o{k}" for k in range(0, 57, 5)}
        others = [each.object_id for each in near if each.object_id not in named][:limit]
        found = storage.personal.nearest(
            shoes, "ann", queries, limit, gates, objects=storage.objects, named=dict.fromkeys(named, 0.0)
        )
        wanted = [each for each in near if each.object_id in named.union(others)]
        assert ids(found) == ids(wanted)
        assert [n.distance for n in found] == pytest.approx([n.distance for n in wanted], abs=1e-5)
