"""Originals and users' copies of them: apart, and what a change of the one does to the other."""

import pytest

from contract.conftest import (
    NOTHING,
    claim,
    claimed,
    click,
    clicked,
    index,
    learn,
    memory_of,
    search,
    settle,
    thing,
    told,
    vectors,
)
from embedding_studio.domain.objects import Attachment
from embedding_studio.errors import InvalidVectorsError


def test_object_o1_of_user_5_is_not_object_o1_5(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("o1", [1, 0, 0]), thing("o1_5", [0, 1, 0])])

    learn(storage, shoes, "5", moved={"o1": [[1, 1, 0]]})
    learn(storage, shoes, "1_5", moved={"o1": [[1, 0, 1]]})

    assert [o.parts.tolist() for o in storage.objects.get(shoes, ["o1", "o1_5"])] == [
        [[1, 0, 0]],
        [[0, 1, 0]],
    ]
    assert told(storage.personal.state(shoes, "5")) == ([], {"o1": [[1, 1, 0]]})
    assert told(storage.personal.state(shoes, "1_5")) == ([], {"o1": [[1, 0, 1]]})
    assert storage.objects.count(shoes) == 2


def test_copies_of_many_users_leave_the_plain_search_as_it_is(storage, films):
    query = vectors([1, 0.5, 0.25])
    before = storage.objects.nearest(films, query, 3)

    for number in range(20):
        learn(storage, films, f"u{number}", moved={i: [[1, 0.5, 0.25]] for i in "abc"})

    assert storage.objects.nearest(films, query, 3) == before
    assert storage.personal.nearest(films, "nobody", query, 3, {}, objects=storage.objects) == before
    assert (
        storage.personal.nearest(
            films, "nobody", query, 3, dict.fromkeys("abc", 1.0), objects=storage.objects
        )
        == before
    )
    assert storage.personal.nearest(films, "u1", query, 3, {}, objects=storage.objects) == before


def test_changed_parts_drop_the_copies_and_fold_whoever_met_the_object(storage, films):
    clicked(storage, "s1", "ann", shown=["a"])
    clicked(storage, "s2", "bob", shown=["b", "a"])
    search(storage, "s3", "cat", shown=["b"])
    click(storage, "s3", "b")
    search(storage, "s4", "dan", shown=["a"])  # nothing is learnt from this one
    settle(storage)
    learn(storage, films, "ann", memories=[memory_of("s1")], moved={"a": [[1, 0.1, 0]], "b": [[0, 1, 0.1]]})
    learn(storage, films, "bob", moved={"a": [[1, 0, 0.1]]})
    learn(storage, films, "cat", moved={"b": [[0, 1, 0.2]]})

    storage.objects.upsert(films, [thing("a", [1, 0, 1])])

    ann = storage.personal.state(films, "ann")
    assert told(ann)[1] == {"b": vectors([0, 1, 0.1]).tolist()}
    assert told(storage.personal.state(films, "bob")) == NOTHING
    assert list(storage.personal.state(films, "cat").vectors) == ["b"]
    assert claimed(storage) == ["ann", "bob"]


def test_another_number_of_parts_is_a_change_too(storage, films):
    learn(storage, films, moved={"a": [[1, 0.1, 0]]})

    storage.objects.upsert(films, [thing("a", [1, 0, 0], [1, 0, 0])])

    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_another_payload_alone_keeps_the_copies_and_places_no_order(storage, films):
    clicked(storage, "s1")
    settle(storage)
    learn(storage, films, moved={"a": [[1, 0.5, 0]]})

    storage.objects.upsert(films, [thing("a", [1, 0, 0], content_hash="h", name="new")])

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 0.5, 0]]})
    assert storage.objects.get(films, ["a"])[0].payload == {"name": "new"}
    assert claim(storage) is None


def test_a_refused_upsert_keeps_the_copies(storage, films):
    learn(storage, films, moved={"a": [[1, 0.5, 0]]})

    with pytest.raises(InvalidVectorsError):
        storage.objects.upsert(films, [thing("a", [0, 1, 0]), thing("b", [0, 0, 0])])

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 0.5, 0]]})


def test_a_deleted_object_takes_its_copies_along_and_places_orders(storage, films):
    clicked(storage, "s1", "ann", shown=["b", "a"])
    search(storage, "s2", "bob", shown=["b"])
    click(storage, "s2", "b")
    settle(storage)
    learn(storage, films, "ann", moved={"a": [[1, 0.5, 0]], "b": [[0, 1, 0.5]]})
    learn(storage, films, "bob", moved={"b": [[0, 1, 0.5]]})

    storage.objects.delete(films, ["a"])

    assert told(storage.personal.state(films, "ann")) == ([], {"b": [[0, 1, 0.5]]})
    assert told(storage.personal.state(films, "bob")) == ([], {"b": [[0, 1, 0.5]]})
    assert claimed(storage) == ["ann"]


def test_an_object_that_comes_back_is_learnt_from_again(storage, films):
    clicked(storage, "s1", "ann", shown=["a"])
    storage.objects.delete(films, ["a"])
    settle(storage)

    storage.objects.upsert(films, [thing("a", [1, 0, 0])])

    assert claimed(storage) == ["ann"]


def test_an_object_with_copies_can_be_updated_and_deleted_again_and_again(storage, films):
    for turn in range(3):
        learn(storage, films, moved={"a": [[1, 0.5, 0]]})
        storage.objects.upsert(films, [thing("a", [1, 0, turn + 1])])
        learn(storage, films, moved={"a": [[1, 0.5, 0]]})
        assert storage.objects.delete(films, ["a"]) == 1
        storage.objects.upsert(films, [thing("a", [1, 0, 0])])

    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_a_base_index_that_is_elsewhere_says_whose_originals_changed(storage, films):
    for user_id, shown in (("ann", "ab"), ("bob", "c"), ("cat", "z")):
        search(storage, f"s {user_id}", user_id, shown=shown)
        click(storage, f"s {user_id}", shown[-1])
        learn(storage, films, user_id, moved={"a": [[1, 1, 0]], "c": [[1, 1, 0]]})
    settle(storage)

    storage.personal.outdate(films, ["a", "z"])

    assert claimed(storage) == ["ann", "cat"]
    assert [list(storage.personal.state(films, u).vectors) for u in ("ann", "bob", "cat")] == [["c"]] * 3


def test_what_is_noticed_of_originals_elsewhere_is_told_and_what_changed_is_named(storage):
    far = storage.collections.create("films", index(), attached=Attachment("table", "public.films"))
    first = storage.personal.notice(far, {"a": "1", "c": "2", "z": None})

    noticed = storage.personal.noticed(far)
    again = storage.personal.notice(far, {"a": "1", "c": "2", "z": None, "b": "3"})
    changed = storage.personal.notice(far, {"b": "3", "z": "4", "c": None})

    assert noticed == {"a": "1", "c": "2", "z": None}
    assert (first, again, changed) == ([], [], ["c", "z"])
    assert storage.personal.noticed(far, after="a", limit=2) == {"b": "3", "c": None}
    assert storage.personal.noticed(far, among=["z", "gone"]) == {"z": "4"}
    assert storage.personal.noticed(far, after="z") == {}


def test_whoever_met_an_original_that_changed_elsewhere_is_folded_anew(storage):
    far = storage.collections.create("films", index(), attached=Attachment("table", "public.films"))
    for user_id, shown in (("ann", "ab"), ("bob", "c"), ("cat", "z")):
        search(storage, f"s {user_id}", user_id, shown=shown)
        click(storage, f"s {user_id}", shown[-1])
        learn(storage, far, user_id, moved={"a": [[1, 1, 0]], "c": [[1, 1, 0]]})
    settle(storage)
    storage.personal.notice(far, {"a": "1", "b": "2", "c": "3", "z": None})
    assert claimed(storage) == []

    storage.personal.notice(far, {"a": "5", "b": "2", "z": "6"})

    assert claimed(storage) == ["ann", "cat"]
    assert [list(storage.personal.state(far, u).vectors) for u in ("ann", "bob", "cat")] == [["c"]] * 3
