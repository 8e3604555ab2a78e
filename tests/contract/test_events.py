"""Events: what becomes of each, those that wait for their session, and those that are taken back."""

import datetime as dt
import threading
import time
from decimal import Decimal

import numpy as np
import pytest

from contract.conftest import (
    ACCEPTED,
    CONFLICT,
    DONE,
    DUPLICATE,
    NOW,
    PENDING,
    REFUSED,
    UNKNOWN_OBJECT,
    UNKNOWN_SESSION,
    WAITING,
    claim,
    claimed,
    click,
    clicked,
    complete,
    event,
    recorded,
    search,
    settle,
)
from embedding_studio.domain.sessions import (
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.errors import InvalidInputError, OrderNotFoundError, SessionNotFoundError
from embedding_studio.storage.ports import OrderOutcome


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"session_id": "s1"}], r"event 0 is \{'session_id': 's1'\}, a dict; give a SessionEvent"),
        (event("s1", "a"), "event 0 is .*, a tuple; give a SessionEvent"),
        ("s1", "event 0 is 's', a str; give a SessionEvent"),
    ],
)
def test_what_is_no_list_of_events_is_refused_with_a_sentence(storage, films, given, said):
    with pytest.raises(InvalidInputError, match=said):
        storage.clickstream.push_events(given)
    with pytest.raises(InvalidInputError, match=r"the session is .*, a dict; give a Session"):
        storage.clickstream.register_session({"session_id": "s1"})


def test_what_python_has_and_json_has_not_is_kept_with_an_event_as_with_an_object(storage, films):
    search(storage, "s1", shown="ab")
    meta = {"on": dt.date(2024, 1, 5), "price": Decimal("9.50"), "at": (1, np.int64(2))}

    storage.clickstream.push_events([SessionEvent(session_id="s1", object_id="a", meta=meta)])

    [kept] = storage.clickstream.get_session("s1").events
    assert kept.meta == {"on": "2024-01-05", "price": 9.5, "at": [1, 2]}
    with pytest.raises(ValueError, match="a set has no place in JSON"):
        SessionEvent(session_id="s1", object_id="a", meta={"x": {1}})


def test_every_event_gets_its_disposition_in_order(storage, films):
    search(storage, "s1", shown="ab")
    search(storage, "s2", shown="")

    dispositions = storage.clickstream.push_events(
        [
            event("s1", "a"),
            event("nowhere", "a"),
            event("s1", "z"),
            event("s1", "a"),
            event("s1", "a", at=102),
            event("s2", "z"),
            event("s1", "z"),
        ]
    )

    assert dispositions == [
        ACCEPTED,
        WAITING,
        UNKNOWN_OBJECT,
        DUPLICATE,
        ACCEPTED,
        ACCEPTED,
        DUPLICATE,
    ]
    assert storage.clickstream.push_events([event("s1", "a"), event("s1", "b")]) == [DUPLICATE, ACCEPTED]
    assert storage.clickstream.push_events([]) == []


ARRIVALS = {
    "registered": lambda log, session: log.register_session(session),
    "recorded alone": lambda log, session: log.record([RecordedSession(session)]),
    "recorded with others": lambda log, session: log.record(
        [RecordedSession(session), RecordedSession(Session(session_id="other", collection="films"))]
    ),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_events_before_their_session_are_joined_to_it(storage, films, arrival):
    early = [event("s1", "b", at=102), event("s1", "a"), event("s1", "z"), event("s1", "a", "view")]
    shown = [SearchResultItem(object_id=object_id) for object_id in "ab"]
    session = Session(
        session_id="s1", user_id="ada", created_at=100, collection="films", search_results=tuple(shown)
    )

    assert storage.clickstream.push_events(early) == [WAITING] * 4
    assert storage.clickstream.waiting_events() == 4
    ARRIVALS[arrival](storage.clickstream, session)

    assert storage.clickstream.waiting_events() == 0
    told = storage.clickstream.get_session("s1").events
    assert sorted(each.event_id for each in told) == sorted(each.event_id for each in early)
    assert storage.orders.get("s1").status is PENDING
    [entry] = storage.queue.claim(users=5, lease_seconds=60, now=NOW).entries
    assert (entry.collection, entry.user_id) == ("films", "ada")
    assert storage.clickstream.push_events(early) == [DUPLICATE] * 4


def test_events_of_no_weight_that_waited_place_no_order(storage, films):
    storage.clickstream.push_events([event("s1", "a", "view")])

    search(storage, "s1", shown="ab")

    assert [each.event_type for each in storage.clickstream.get_session("s1").events] == ["view"]
    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s1")


def test_an_event_that_waits_is_known_by_its_id(storage, films):
    given = [
        SessionEvent(session_id="s1", object_id=object_id, event_id="e1", created_at=101)
        for object_id in "aab"
    ]

    assert storage.clickstream.push_events(given) == [WAITING, DUPLICATE, CONFLICT]
    assert storage.clickstream.push_events(given[1:]) == [DUPLICATE, CONFLICT]
    storage.clickstream.record(
        [recorded("s1", shown="ab", done=[given[2].model_copy(update={"event_type": "purchase"})])]
    )
    assert [each.event_type for each in storage.clickstream.get_session("s1").events] == ["purchase"]


def test_few_events_wait_for_one_session_and_none_where_they_may_not(storage, films):
    many = [event("s1", "a", at=at) for at in range(103)]

    assert storage.clickstream.push_events(many, may_wait=False) == [UNKNOWN_SESSION] * 103
    assert storage.clickstream.push_events(many) == [WAITING] * 100 + [UNKNOWN_SESSION] * 3
    assert storage.clickstream.push_events([event("s2", "a")]) == [WAITING]
    assert storage.clickstream.waiting_events() == 101


def test_events_wait_for_a_day(storage, films):
    storage.clickstream.push_events([event("s1", "a")])
    day = 86_400

    assert storage.clickstream.drop_waiting(time.time() + day - 60) == 0
    assert storage.clickstream.drop_waiting(time.time() + day + 1) == 1
    search(storage, "s1", shown="ab")
    assert storage.clickstream.get_session("s1").events == ()


def test_no_event_is_lost_between_its_arrival_and_that_of_its_session(storage, films):
    names = [f"s{number}" for number in range(40)]
    start = threading.Barrier(2)

    def push():
        start.wait()
        for name in names:
            storage.clickstream.push_events([event(name, "a")])

    pushing = threading.Thread(target=push)
    pushing.start()
    start.wait()
    for name in names:
        search(storage, name, shown="ab")
    pushing.join()

    assert storage.clickstream.waiting_events() == 0
    assert [len(storage.clickstream.get_session(name).events) for name in names] == [1] * 40


def test_an_event_on_an_object_that_was_not_shown_is_kept(storage, films):
    search(storage, "s1", shown="ab")

    click(storage, "s1", "z")

    assert [e.object_id for e in storage.clickstream.get_session("s1").events] == ["z"]


def test_equal_event_ids_in_two_sessions_are_two_events(storage, films):
    search(storage, "s1")
    search(storage, "s2")

    assert click(storage, "s1", event_id="1") is ACCEPTED
    assert click(storage, "s2", event_id="1") is ACCEPTED
    assert click(storage, "s2", event_id="1", at=102) is DUPLICATE


def test_three_hundred_views_do_not_hide_a_click(storage, films):
    search(storage, "s1")
    views = [event("s1", "a", "view", at=101 + second) for second in range(300)]

    storage.clickstream.push_events([*views[:150], event("s1", "b", at=500), *views[150:]])

    session = storage.clickstream.get_session("s1")
    assert len(session.events) == 301
    assert session.clicked() == {"b": 1.0}
    [recorded] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert recorded.session == session


def test_a_click_places_an_order_and_a_view_does_not(storage, films):
    search(storage, "s1")
    search(storage, "s2", "bob")
    search(storage, "s3", None)

    storage.clickstream.push_events(
        [
            event("s1", event_type="view"),
            event("s2", event_type="purchase"),
            event("s3", event_type="add_to_cart"),
        ]
    )

    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s1")
    order = storage.orders.get("s2")
    assert (order.session_id, order.user_id, order.collection) == ("s2", "bob", "films")
    assert (order.status, order.attempts, order.detail) == (PENDING, 0, None)
    assert storage.orders.get("s3").user_id is None


def test_a_click_sent_twice_places_no_second_order(storage, films):
    clicked(storage, "s1")
    settle(storage)

    assert click(storage, "s1") is DUPLICATE

    assert storage.orders.get("s1").status is DONE


def test_a_later_click_places_the_order_anew(storage, films):
    clicked(storage, "s1")
    complete(storage, claim(storage), OrderOutcome("s1", REFUSED, "nothing skipped"))

    click(storage, "s1", "b")

    order = storage.orders.get("s1")
    assert (order.status, order.attempts) == (PENDING, 0)
    assert claimed(storage) == ["ann"]


@pytest.mark.parametrize(("object_id", "priority"), [("c", 0), ("d", 1)])
def test_an_order_is_urgent_if_something_below_position_3_was_clicked(storage, films, object_id, priority):
    search(storage, "s1", shown="abcde")
    storage.clickstream.push_events([event("s1", "e", "view")])

    click(storage, "s1", object_id)

    assert storage.orders.get("s1").priority == priority


def test_a_click_that_is_taken_back_counts_no_longer_and_stays_known(storage, films):
    clicked(storage, "s1")
    click(storage, "s1", "b", event_id="of b")
    settle(storage)

    taken = storage.clickstream.take_back("s1", "b")

    assert taken == 1
    assert set(storage.clickstream.get_session("s1").clicked()) == {"a"}
    assert claimed(storage) == ["ann"]
    assert click(storage, "s1", "b", event_id="of b") is EventDisposition.CONFLICT  # sent late once more
    assert storage.clickstream.take_back("s1", "b") == 0
    assert click(storage, "s1", "b") is EventDisposition.ACCEPTED  # a new one
    assert set(storage.clickstream.get_session("s1").clicked()) == {"a", "b"}


def test_a_click_that_waits_for_its_session_is_taken_back_too(storage, films):
    early = event("s1", "b")
    assert storage.clickstream.push_events([early, event("s1", "c")]) == [EventDisposition.WAITING] * 2

    assert storage.clickstream.take_back("s1", "b") == 1

    search(storage, "s1")
    assert set(storage.clickstream.get_session("s1").clicked()) == {"c"}
    with pytest.raises(SessionNotFoundError):
        storage.clickstream.take_back("s2", "b")


def test_nothing_to_take_back_marks_nobody(storage, films):
    clicked(storage, "s1")
    settle(storage)

    assert storage.clickstream.take_back("s1", "c") == 0
    assert claimed(storage) == []
    with pytest.raises(SessionNotFoundError):
        storage.clickstream.take_back("s2", "c")
