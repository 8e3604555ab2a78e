"""What people are shown of a user: how far things moved, and a map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio import CatalogueObject, SearchIndexInfo
from embedding_studio.domain.objects import PersonalState, QueryMemory
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.user_state import map_of, moved_objects


def unit(*degrees: float) -> np.ndarray:
    """Return rows of length 1 at angles in the plane of the first two of four dimensions."""
    radians = np.radians(degrees)
    zero = np.zeros_like(radians)
    return np.stack([np.cos(radians), np.sin(radians), zero, zero], axis=1).astype(np.float32)


def memory(session_id: str, query: np.ndarray, clicked: tuple[str, ...]) -> QueryMemory:
    return QueryMemory(session_id, f"query {session_id}", 100, query, query, clicked, clicked)


@pytest.fixture(scope="module")
def films():
    storage = MemoryStorage()
    collection = storage.collections.create("films", SearchIndexInfo(dimensions=4))
    storage.objects.upsert(
        collection,
        [
            CatalogueObject("a", unit(0), {"title": "A"}),
            CatalogueObject("b", unit(30, 90), {}),
            CatalogueObject("c", 5 * unit(60), {}),
        ],
    )
    return storage, collection


@given(degrees=st.floats(0, 180))
def test_degrees_are_those_between_the_original_and_the_users_own_vector(films, degrees):
    storage, collection = films

    moved = moved_objects(storage, collection, PersonalState(vectors={"a": 3 * unit(degrees)}))

    assert [each.object_id for each in moved] == ["a"]
    assert moved[0].degrees == pytest.approx(degrees, abs=0.05)  # of float32, near 180
    assert moved[0].payload == {"title": "A"}


def test_the_part_that_moved_most_counts_and_the_furthest_comes_first(films):
    storage, collection = films
    state = PersonalState(vectors={"a": unit(5), "b": unit(32, 98), "c": unit(60), "gone": unit(1)})

    moved = moved_objects(storage, collection, state)

    assert [each.object_id for each in moved] == ["b", "a", "c"]
    assert [each.degrees for each in moved] == pytest.approx([8, 5, 0], abs=1e-3)


def test_a_map_of_what_lies_in_a_plane_keeps_all_distances(films):
    storage, collection = films
    state = PersonalState(
        memories=(memory("s1", unit(10)[0], ("a",)), memory("s2", unit(70)[0], ())), vectors={"a": unit(8)}
    )

    drawn = map_of(storage, collection, state)

    points = {each.identity: each for each in drawn.points}
    assert [(each.kind, each.identity) for each in drawn.points[:2]] == [("query", "s1"), ("query", "s2")]
    assert set(points) == {"s1", "s2", "a", "b", "c"}
    assert drawn.explained == pytest.approx(1, abs=1e-6)
    stand = {"s1": unit(10)[0], "s2": unit(70)[0], "a": unit(0)[0], "c": unit(60)[0]}
    stand["b"] = unit(30, 90).mean(axis=0)
    for one, at in stand.items():
        for other, there in stand.items():
            apart = np.hypot(*np.subtract(points[one].before, points[other].before))
            assert apart == pytest.approx(np.linalg.norm(at - there), abs=1e-5)
    moved_apart = np.hypot(*np.subtract(points["a"].after, points["s1"].before))
    assert moved_apart == pytest.approx(np.linalg.norm(unit(8) - unit(10)), abs=1e-5)
    assert [each.identity for each in drawn.points if each.clicked] == ["a"]
    assert [each.identity for each in drawn.points if each.after is not None] == ["a"]


def test_a_user_nobody_knows_has_an_empty_map(films):
    storage, collection = films

    drawn = map_of(storage, collection, PersonalState())

    assert (drawn.points, drawn.explained) == ((), 0.0)


def test_a_map_of_one_point_is_one_point():
    storage = MemoryStorage()
    collection = storage.collections.create("films", SearchIndexInfo(dimensions=4))
    state = PersonalState(memories=(memory("s1", unit(10)[0], ("gone",)),))

    drawn = map_of(storage, collection, state)

    assert [each.before for each in drawn.points] == [(0.0, 0.0)]
