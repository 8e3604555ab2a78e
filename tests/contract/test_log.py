"""What is read of the log of sessions, and what of it goes with a user who is forgotten."""

import numpy as np
import pytest

from contract.conftest import (
    NOTHING,
    claimed,
    click,
    clicked,
    event,
    index,
    learn,
    memory_of,
    place,
    recorded,
    search,
    settle,
    thing,
    told,
    told_memory,
    vectors,
)
from embedding_studio.domain.sessions import Session
from embedding_studio.errors import CollectionNotFoundError, OrderNotFoundError, SessionNotFoundError
from embedding_studio.storage.ports import SessionOwner
from embedding_studio.storage.postgres import clickstream as pg_clickstream


def test_the_log_is_read_by_time(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    storage.clickstream.record(
        [
            recorded("s3", at=300, collection="best", done=[event("s3")]),
            recorded("s1b", "bob", at=100, query=None),
            recorded("s1a", None, at=100),
            recorded("s2", at=200, collection="books", query=(1, 2)),
        ]
    )

    def keys(**wanted):
        return [each.session.session_id for each in storage.clickstream.scan(**wanted)]

    assert keys() == ["s1a", "s1b", "s2", "s3"]
    assert keys(collection=films) == ["s1a", "s1b", "s3"]
    assert keys(user_id="ann") == ["s2", "s3"]
    assert keys(since=200) == ["s2", "s3"]
    assert keys(until=200) == ["s1a", "s1b"]
    assert keys(since=101, until=300, user_id="bob") == []
    whole = list(storage.clickstream.scan())
    assert [each.session for each in whole] == list(map(storage.clickstream.get_session, keys()))
    assert [None if v is None else v.tolist() for v in (each.query_vectors for each in whole)] == [
        [[1, 0, 0]],
        None,
        [[1, 2]],
        [[1, 0, 0]],
    ]


def test_a_long_log_is_read_whole_and_while_it_grows(storage, films):
    storage.clickstream.record([recorded(f"s{k:04}", at=k // 7) for k in range(1234)])

    log = storage.clickstream.scan()
    first = next(log)
    storage.clickstream.record([recorded("later", at=5000)])
    rest = list(log)

    keys = [each.session.session_id for each in [first, *rest]]
    assert keys[:1234] == [f"s{k:04}" for k in range(1234)]
    assert keys[1234:] in ([], ["later"])


def test_the_latest_sessions_come_page_by_page_with_their_orders(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", at=100)
    search(storage, "s2", "bob", at=101, collection="best")
    search(storage, "s3", None, at=101)
    search(storage, "s4", at=102, collection="books")

    def ids(**wanted):
        return [each.session_id for each in storage.clickstream.latest(**{"limit": 10} | wanted)]

    assert ids() == ["s4", "s3", "s2", "s1"]
    assert ids(limit=2) == ["s4", "s3"]
    assert ids(before=(101, "s3")) == ["s2", "s1"]
    assert ids(collection=films) == ["s3", "s2", "s1"]
    assert ids(user_id="ann") == ["s4", "s1"]
    [*_, first] = storage.clickstream.latest(limit=10)
    assert first == storage.clickstream.get_session("s1")
    assert storage.orders.of(["s1", "s2", "gone"]) == {"s1": storage.orders.get("s1")}


def test_what_came_by_one_key_counts_no_longer_and_what_came_by_others_does(storage, films, monkeypatch):
    monkeypatch.setattr(pg_clickstream, "PAGE", 2)  # several pages
    whose = {f"s{number}": "stolen" for number in range(5)} | {"s5": "", "s6": "other"}
    for session_id, sender in whose.items():
        user_id = "bob" if session_id == "s6" else "ann"
        session = Session(session_id=session_id, user_id=user_id, collection="films", created_at=100)
        storage.clickstream.register_session(session, vectors((1, 0, 0)), sender=sender)
        click(storage, session_id)
    storage.clickstream.register_session(
        Session(session_id="s7", user_id="cat", collection="films"), sender="stolen"
    )
    settle(storage)
    kept = {each.session.session_id: each.sender for each in storage.clickstream.scan()}
    [of_bob] = storage.clickstream.recent_sessions(films, ["bob"], 5)["bob"]

    went = [storage.clickstream.disregard("stolen") for _ in range(2)]

    assert kept == whose | {"s7": "stolen"}
    assert of_bob.sender == "other"
    assert went == [6, 0]
    assert claimed(storage) == ["ann"]
    [left] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert left.session.session_id == "s5"


def test_the_latest_different_queries_are_those_of_anybody_under_any_name(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    search(storage, "s1", search_query="wing", query=(1, 0, 0), at=100)
    search(storage, "s2", "bob", search_query="cone", query=(0, 1, 0), at=101)
    search(storage, "s3", None, search_query="heat", query=(0, 0, 1), at=102, collection="best")
    search(storage, "s4", search_query="wing", query=(1, 0, 2), at=103)  # embedded again
    search(storage, "s5", search_query="irrelevant", is_irrelevant=True, at=104)
    search(storage, "s6", search_query="of another collection", collection="books", at=104)
    search(storage, "s7", search_query="not embedded", query=None, at=104)
    search(storage, "s8", search_query="of another size", query=(1, 0), at=104)

    latest = storage.clickstream.recent_queries(films, 2)
    everything = storage.clickstream.recent_queries(films, 10)

    assert [each.tolist() for each in everything] == [[[1, 0, 2]], [[0, 0, 1]], [[0, 1, 0]]]
    assert [each.tolist() for each in latest] == [[[1, 0, 2]], [[0, 0, 1]]]
    assert everything[0].dtype == np.float32
    assert storage.clickstream.recent_queries(films, 0) == []


def test_queries_without_a_text_differ_by_their_vectors(storage, films):
    several = vectors([1, 0, 0], [0, 1, 0])
    session = Session(session_id="s3", user_id="ann", created_at=102, collection="films")
    search(storage, "s1", search_query="", query=(1, 0, 0), at=100)
    search(storage, "s2", "bob", search_query="", query=(0, 1, 0), at=101)
    storage.clickstream.register_session(session, several)
    search(storage, "s4", search_query="", query=(1, 0, 0), at=103)

    queries = storage.clickstream.recent_queries(films, 10)

    assert [each.tolist() for each in queries] == [[[1, 0, 0]], several.tolist(), [[0, 1, 0]]]


def test_a_collection_that_was_dropped_has_no_queries_to_tell(storage, films):
    search(storage, "s1")
    storage.collections.drop("films")

    with pytest.raises(CollectionNotFoundError, match="films"):
        storage.clickstream.recent_queries(films, 10)


REMOVED = {
    "queue": 1,
    "personal_parts": 2,
    "query_memory": 1,
    "session_events": 1,
    "sessions": 2,
    "sessions_for_improvement": 1,
    "shared_votes": 0,
}


def test_a_forgotten_user_leaves_nothing_behind_and_nobody_else_is_touched(storage, films):
    books = storage.collections.create("books", index())
    storage.objects.upsert(books, [thing("a", [1, 0, 0])])
    for user_id in ("ann", "bob", None):
        clicked(storage, f"{user_id} 1", user_id)
        search(storage, f"{user_id} 2", user_id, collection="books")
    for user_id in ("ann", "bob"):
        learn(storage, films, user_id, memories=[memory_of(f"{user_id} 1")], moved={"b": [[0, 1, 1]]})
        learn(storage, books, user_id, moved={"a": [[1, 1, 0]]})
    bobs = [storage.clickstream.get_session("bob 1"), storage.orders.get("bob 1")]

    forgotten = storage.clickstream.forget_user("ann")

    assert {table: forgotten[table] for table in REMOVED} == REMOVED
    for session_id in ("ann 1", "ann 2"):
        with pytest.raises(SessionNotFoundError):
            storage.clickstream.get_session(session_id)
        with pytest.raises(OrderNotFoundError):
            storage.orders.get(session_id)
    assert told(storage.personal.state(films, "ann")) == NOTHING
    assert told(storage.personal.state(books, "ann")) == NOTHING
    assert [storage.clickstream.get_session("bob 1"), storage.orders.get("bob 1")] == bobs
    assert told(storage.personal.state(films, "bob"))[0] == [told_memory(memory_of("bob 1"))]
    assert told(storage.personal.state(films, "bob"))[1] == {"b": [[0, 1, 1]]}
    assert told(storage.personal.state(books, "bob")) == ([], {"a": [[1, 1, 0]]})
    assert claimed(storage) == ["bob"]
    assert set(storage.clickstream.forget_user("ann").values()) == {0}


def test_the_id_of_a_forgotten_session_is_free_again(storage, films):
    clicked(storage, "s1", "ann")
    storage.clickstream.forget_user("ann")

    search(storage, "s1", "bob")

    assert storage.clickstream.get_session("s1").events == ()


def test_recent_sessions_are_the_latest_that_count_oldest_first(storage, films):
    for session_id, at in [("s4", 400), ("s1", 100), ("s3b", 300), ("s3a", 300), ("S3", 300)]:
        clicked(storage, session_id, at=at)
    clicked(storage, "bobs", "bob")

    everything = storage.clickstream.recent_sessions(films, ["ann", "bob", "cat"], 10)
    latest = storage.clickstream.recent_sessions(films, ["ann", "bob", "cat"], 3)
    none = storage.clickstream.recent_sessions(films, ["ann", "bob", "cat"], 0)

    named = {u: [recorded.session.session_id for recorded in sessions] for u, sessions in everything.items()}
    assert named == {"ann": ["s1", "S3", "s3a", "s3b", "s4"], "bob": ["bobs"], "cat": []}
    assert [recorded.session.session_id for recorded in latest["ann"]] == ["s3a", "s3b", "s4"]
    assert none == {"ann": [], "bob": [], "cat": []}


def test_a_session_counts_with_an_order_an_event_and_relevance(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "counts")
    clicked(storage, "under an alias", collection="best", at=200)
    search(storage, "ordered without an event")
    place(storage, "ordered without an event")
    search(storage, "viewed without an order")
    click(storage, "viewed without an order", event_type="view")
    search(storage, "viewed and ordered", at=300)
    click(storage, "viewed and ordered", event_type="view")
    place(storage, "viewed and ordered")
    clicked(storage, "irrelevant", is_irrelevant=True)
    clicked(storage, "of another collection", collection="books")
    clicked(storage, "of another user", "bob")
    clicked(storage, "of nobody", None)
    click(storage, "counts", "z")

    recent = storage.clickstream.recent_sessions(films, ["ann"], 2)
    everything = storage.clickstream.recent_sessions(films, ["ann"], 100)

    counting = ["counts", "under an alias", "viewed and ordered"]
    assert [recorded.session for recorded in everything["ann"]] == list(
        map(storage.clickstream.get_session, counting)
    )
    assert list(everything) == ["ann"]
    assert recent["ann"][0].session.session_id == "under an alias"


def test_sessions_under_a_moved_alias_count_for_the_new_collection_alone(storage, films):
    books = storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", collection="best")

    storage.collections.set_alias("best", "books")

    assert storage.clickstream.recent_sessions(films, ["ann"], 5) == {"ann": []}
    assert [
        recorded.session.session_id
        for recorded in storage.clickstream.recent_sessions(books, ["ann"], 5)["ann"]
    ] == ["s1"]


def test_the_owners_of_sessions_are_told_of_those_that_are_there(storage, films):
    storage.collections.set_alias("pictures", "films")
    for session_id, user_id, name in (("s1", "ann", "films"), ("s2", None, "pictures")):
        session = Session(session_id=session_id, user_id=user_id, collection=name)
        storage.clickstream.register_session(session)

    assert storage.clickstream.owners(["s2", "gone", "s1", "s1"]) == {
        "s1": SessionOwner("ann", "films"),
        "s2": SessionOwner(None, "pictures"),
    }
    assert storage.clickstream.owners([]) == {}
