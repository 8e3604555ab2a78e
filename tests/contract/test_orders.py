"""Orders, the journal of what is to become, or became, of a session."""

import dataclasses
import time

import pytest

from contract.conftest import (
    DONE,
    FAILED,
    NOW,
    PENDING,
    PROCESSING,
    REFUSED,
    claim,
    claimed,
    clicked,
    complete,
    fail,
    place,
    search,
)
from embedding_studio.domain.sessions import SessionForImprovementStatus
from embedding_studio.errors import ConflictError, OrderNotFoundError
from embedding_studio.storage.ports import OrderOutcome


def test_an_order_is_placed_for_any_session_that_is_known(storage, films):
    search(storage, "s1")

    placed = place(storage, "s1")

    assert (placed.session_id, placed.user_id, placed.collection) == ("s1", "ann", "films")
    assert (placed.status, placed.priority, placed.attempts, placed.detail) == (PENDING, 0, 0, None)
    assert storage.orders.get("s1") == placed


def test_an_order_that_nobody_placed_is_not_found(storage, films):
    search(storage, "s1")

    with pytest.raises(OrderNotFoundError, match="s1"):
        storage.orders.get("s1")
    with pytest.raises(OrderNotFoundError, match="s1"):
        storage.orders.cancel("s1")


def test_an_order_of_a_claimed_user_is_processing_with_one_attempt_more(storage, films):
    clicked(storage, "s1")

    given = claim(storage)

    [entry] = given.entries
    order = storage.orders.get("s1")
    assert (entry.collection, entry.user_id, entry.attempts) == ("films", "ann", 1)
    assert (order.status, order.attempts, order.not_before) == (PROCESSING, 1, NOW + 60)
    assert claim(storage) is None


def test_an_order_of_an_anonymous_session_is_refused_at_once(storage, films):
    clicked(storage, "s1", None)

    order = storage.orders.get("s1")
    again = place(storage, "s1")

    assert (order.status, again.status) == (REFUSED, REFUSED)
    assert "anonymous" in order.detail
    assert claim(storage) is None


@pytest.mark.parametrize("status", [PENDING, FAILED, REFUSED])
def test_whoever_learns_from_an_order_that_is_cancelled_begins_again(storage, films, status):
    clicked(storage, "s1")
    given = claim(storage)
    if status is FAILED:
        fail(storage, given)
    elif status is REFUSED:
        complete(storage, given, OrderOutcome("s1", REFUSED, "why"))
    else:
        storage.queue.release(given.token)
    if status is not PENDING:
        clicked(storage, "s2")
        given = claim(storage)

    storage.orders.cancel("s1")

    with storage.personal.learning(films, ["ann"]) as transaction:
        assert transaction.held(given.token) == set()
    assert claimed(storage) == ["ann"]


def test_an_attempt_that_an_outage_spoilt_does_not_count_and_the_order_says_why(storage, films):
    clicked(storage, "s1")
    for _ in range(5):
        given = claim(storage, lease_seconds=60, now=time.time() + 61)
        fail(storage, given, "the model is away", max_attempts=2, is_outage=True)

    order = storage.orders.get("s1")
    assert (order.status, order.attempts, order.detail) == (PENDING, 0, "the model is away")
    assert claim(storage, lease_seconds=60, now=time.time() + 61).entries[0].attempts == 1


def test_a_completion_ends_the_orders_it_names_and_says_why_of_the_others(storage, films):
    for session_id in ("s1", "s2", "old", "irrelevant"):
        clicked(storage, session_id)
    search(storage, "eventless")
    place(storage, "eventless")
    storage.clickstream.mark_irrelevant("irrelevant")
    clicked(storage, "bob's", "bob")
    given = claim(storage)
    anns = [entry for entry in given.entries if entry.user_id == "ann"]

    new = complete(
        storage,
        dataclasses.replace(given, entries=tuple(anns)),
        OrderOutcome("s1", DONE),
        OrderOutcome("s2", REFUSED, "why"),
        OrderOutcome("unknown", DONE),
        OrderOutcome("bob's", DONE),
    )

    expected = {
        "s1": (DONE, None),
        "s2": (REFUSED, "why"),
        "old": (REFUSED, "too old"),
        "irrelevant": (REFUSED, "irrelevant"),
        "eventless": (REFUSED, "no events"),
    }
    assert {each.session_id: (each.status, each.detail) for each in new} == expected
    orders = {session_id: storage.orders.get(session_id) for session_id in expected}
    assert {key: (order.status, order.detail) for key, order in orders.items()} == expected
    assert {order.attempts for order in orders.values()} == {1}
    assert storage.orders.get("bob's").status is PROCESSING
    assert claimed(storage, now=NOW + 1000) == ["bob"]


def test_a_completion_tells_what_is_new_alone(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2")
    complete(storage, claim(storage), OrderOutcome("s1", DONE), OrderOutcome("s2", DONE))
    clicked(storage, "s3")

    new = complete(
        storage,
        claim(storage),
        OrderOutcome("s1", DONE),
        OrderOutcome("s2", REFUSED, "gone"),
        OrderOutcome("s3", DONE),
    )

    assert sorted(new, key=lambda each: each.session_id) == [
        OrderOutcome("s2", REFUSED, "gone"),
        OrderOutcome("s3", DONE),
    ]


def test_an_order_whose_user_is_due_no_more_counts_no_attempts(storage, films):
    clicked(storage, "s1")
    far = 5_000_000_000.0  # ahead of what is put off
    first = storage.queue.claim(users=1, lease_seconds=10, now=far)
    assert fail(storage, first, max_attempts=2) == ["s1"]
    last = storage.queue.claim(users=1, lease_seconds=10, now=far)

    assert fail(storage, last, max_attempts=2, sessions={}) == []

    order = storage.orders.get("s1")
    assert (order.status, order.attempts, order.not_before) == (PENDING, 0, 0)
    assert storage.queue.info().waiting == 0


def test_orders_of_a_user_whose_attempts_are_used_up_are_failed_until_somebody_places_them_anew(
    storage, films
):
    clicked(storage, "s1")
    fail(storage, claim(storage), "first", max_attempts=2, backoff_seconds=0)
    fail(storage, claim(storage), "second", max_attempts=2, backoff_seconds=0)

    dead = storage.orders.get("s1")
    none = claim(storage)
    retried = place(storage, "s1")

    assert (dead.status, dead.attempts, dead.detail) == (FAILED, 2, "second")
    assert none is None
    assert (retried.status, retried.attempts, retried.detail) == (PENDING, 0, None)
    assert claimed(storage) == ["ann"]


def test_an_over_long_detail_is_cut_and_the_order_stays_readable(storage, films):
    for session_id in ("s1", "s2", "s3"):
        clicked(storage, session_id, user_id=session_id)
    detail = "靴" * 2000 + "x" * 100_000

    given = [claim(storage, users=1) for _ in range(3)]
    complete(storage, given[0], OrderOutcome("s1", REFUSED, detail))
    fail(storage, given[1], detail)
    fail(storage, given[2], "", sessions={"s3": detail})

    assert [order.detail for order in storage.orders.list()] == ["靴" * 2000] * 3
    assert storage.orders.counts()[FAILED] == 2


def test_orders_are_listed_by_their_latest_change_page_by_page(storage, films):
    for number in range(5):
        clicked(storage, f"s{number}")
    place(storage, "s1")

    everything = [order.session_id for order in storage.orders.list()]
    pages = [[o.session_id for o in storage.orders.list(limit=2, offset=offset)] for offset in (0, 2, 4, 6)]

    assert everything == ["s1", "s4", "s3", "s2", "s0"]
    assert pages == [["s1", "s4"], ["s3", "s2"], ["s0"], []]


def test_orders_are_listed_and_counted_by_status(storage, films):
    for number in range(5):
        clicked(storage, f"s{number}", f"u{number}")
    given = [claim(storage, users=1) for _ in range(5)]
    complete(storage, given[1], OrderOutcome("s1", DONE))
    complete(storage, given[2], OrderOutcome("s2", REFUSED, "why"))
    for failed in (given[0], given[3]):
        fail(storage, failed)
    place(storage, "s4")

    assert storage.orders.counts() == {PENDING: 1, PROCESSING: 0, DONE: 1, FAILED: 2, REFUSED: 1}
    assert [order.session_id for order in storage.orders.list(status=PENDING)] == ["s4"]
    assert sorted(order.session_id for order in storage.orders.list(status=FAILED)) == ["s0", "s3"]
    assert len(storage.orders.list(status=FAILED, limit=1)) == 1
    assert storage.orders.list(status=PROCESSING) == []


def test_nothing_placed_is_counted_as_nothing_in_every_status(storage):
    assert storage.orders.counts() == dict.fromkeys(SessionForImprovementStatus, 0)
    assert storage.orders.list() == []


def test_a_cancelled_order_is_gone_and_its_session_counts_no_longer(storage, films):
    for session_id in ("pending", "failed", "refused"):
        clicked(storage, session_id)
    given = claim(storage)
    outcomes = [OrderOutcome("failed", FAILED, "why"), OrderOutcome("refused", REFUSED, "why")]
    complete(storage, given, *outcomes)
    fail(storage, given, sessions={"failed": "why"})
    place(storage, "pending")

    for session_id in ("pending", "failed", "refused"):
        storage.orders.cancel(session_id)

    assert storage.orders.list() == []
    assert len(storage.clickstream.get_session("pending").events) == 1
    assert storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"] == []


def test_an_order_that_is_processing_or_done_is_not_cancelled(storage, films):
    clicked(storage, "s1")
    complete(storage, claim(storage), OrderOutcome("s1", DONE))
    clicked(storage, "s2")
    claim(storage)

    for session_id, status in [("s1", DONE), ("s2", PROCESSING)]:
        with pytest.raises(ConflictError, match=session_id):
            storage.orders.cancel(session_id)
        assert storage.orders.get(session_id).status is status
