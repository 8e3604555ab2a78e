"""The queue of users whose state is stale: who is claimed, held, given back and refused."""

import contextlib
import threading
import time

from contract.conftest import (
    DONE,
    FAILED,
    NOW,
    PENDING,
    PROCESSING,
    REFUSED,
    beside,
    claim,
    claimed,
    click,
    clicked,
    complete,
    fail,
    index,
    place,
    search,
    settle,
)
from embedding_studio.domain.sessions import SearchResultItem
from embedding_studio.storage.ports import OrderOutcome


def test_a_user_is_claimed_once_under_each_name_however_many_sessions_there_are(storage, films):
    storage.collections.create("books", index())
    for number in range(7):
        clicked(storage, f"s{number}", "ann")
    clicked(storage, "b1", "ann", collection="books")
    clicked(storage, "b2", "bob")

    entries = claim(storage).entries

    assert sorted((entry.collection, entry.user_id) for entry in entries) == [
        ("books", "ann"),
        ("films", "ann"),
        ("films", "bob"),
    ]


def test_users_are_claimed_by_priority_and_then_by_age(storage, films):
    for session_id, user_id, object_id in [
        ("s1", "zoe", "a"),
        ("s2", "bob", "b"),
        ("s3", "ann", "d"),
        ("s4", "zoe", "b"),
        ("s5", "bob", "a"),
    ]:
        search(storage, session_id, user_id, shown="abcd")
        click(storage, session_id, object_id)

    claims = [claimed(storage, users=1) for _ in range(4)]

    assert claims == [["ann"], ["zoe"], ["bob"], []]


def test_a_further_page_of_a_session_that_was_clicked_marks_its_user(storage, films):
    clicked(storage, "s1", "ann")
    search(storage, "s2", "bob")
    settle(storage)

    for session_id in ("s1", "s2"):
        storage.clickstream.append_results(session_id, [SearchResultItem(object_id="further")])
    marked = claimed(storage)
    again = claim(storage, now=NOW + 100)
    complete(storage, again, OrderOutcome("s1", DONE))
    storage.clickstream.append_results("s1", [SearchResultItem(object_id="further")])

    assert marked == ["ann"]
    assert claim(storage, now=NOW + 1000) is None


def test_a_user_marked_anew_keeps_age_and_priority(storage, films):
    search(storage, "s1", "bob", shown="abcd")
    click(storage, "s1", "d")
    clicked(storage, "s2", "ann")
    search(storage, "s3", "cat", shown="abcd")
    click(storage, "s3", "d")

    clicked(storage, "s4", "bob")

    assert [claimed(storage, users=1) for _ in range(3)] == [["bob"], ["cat"], ["ann"]]


def test_no_more_users_are_claimed_than_asked_for(storage, films):
    for number in range(7):
        clicked(storage, f"s{number}", f"u{number}")

    assert [len(claimed(storage, users=3)) for _ in range(4)] == [3, 3, 1, 0]


def test_a_lease_that_has_ended_lets_others_claim(storage, films):
    clicked(storage, "s1")
    claim(storage, lease_seconds=60)

    assert claim(storage, now=NOW + 59) is None
    assert claimed(storage, now=NOW + 61) == ["ann"]


def test_a_lease_that_is_renewed_lets_nobody_claim(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    given = claim(storage, users=1, now=None)
    other = claim(storage, users=1, lease_seconds=0, now=None)

    storage.queue.renew(given.token, 10_000)

    assert [entry.user_id for entry in other.entries] == ["bob"]
    assert claimed(storage, now=time.time() + 9_000) == ["bob"]
    assert claimed(storage, users=1, now=time.time() + 11_000) == ["ann"]


def test_who_is_released_is_due_at_once_with_no_attempt_more(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    given = claim(storage, users=1)

    storage.queue.release(given.token)

    again = claim(storage)
    assert [(entry.user_id, entry.attempts) for entry in again.entries] == [("ann", 1), ("bob", 1)]


def test_held_are_those_of_the_block_that_a_token_still_holds(storage, films):
    storage.collections.set_alias("best", "films")
    storage.collections.create("books", index())
    for user_id, name in [("ann", "best"), ("bob", "films"), ("cat", "films"), ("dan", "books")]:
        clicked(storage, f"s {user_id}", user_id, collection=name)
    given = claim(storage)
    clicked(storage, "another", "bob")

    with storage.personal.learning(films, ["ann", "bob", "dan", "eve"]) as transaction:
        assert transaction.held(given.token) == {"ann"}
        assert transaction.held("another token") == set()


def test_who_is_learnt_under_one_name_is_no_longer_held_under_another(storage, films):
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", "ann", collection="best")
    clicked(storage, "s2", "bob", collection="best")
    of_best = claim(storage)
    clicked(storage, "s3", "ann")
    of_films = claim(storage)

    complete(storage, of_films, OrderOutcome("s1", DONE), OrderOutcome("s3", DONE))

    with storage.personal.learning(films, ["ann", "bob"]) as transaction:
        assert transaction.held(of_best.token) == {"bob"}
        assert transaction.held(of_films.token) == set()
    again = claim(storage)
    assert [(entry.collection, entry.user_id, entry.attempts) for entry in again.entries] == [
        ("best", "ann", 1)
    ]


def test_whoever_was_held_by_a_worker_that_ended_is_claimed_alone_and_not_blamed(storage, films):
    for user_id in ("ann", "bob", "cat"):
        clicked(storage, f"s {user_id}", user_id)
    claim(storage, lease_seconds=10)
    clicked(storage, "s dan", "dan")

    claims = [claim(storage, lease_seconds=10, now=NOW + seconds) for seconds in (11, 12, 13, 14)]

    found = [[(entry.user_id, entry.attempts) for entry in given.entries] for given in claims]
    assert found == [[("ann", 1)], [("bob", 1)], [("cat", 1)], [("dan", 1)]]


def test_who_was_alone_in_hand_when_a_worker_ended_has_one_attempt_more(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    claim(storage, users=2, lease_seconds=10)

    attempts = []
    for turn in range(1, 4):
        [entry] = claim(storage, lease_seconds=10, now=NOW + 11 * turn).entries  # ann is the older
        attempts.append((entry.user_id, entry.attempts))

    assert attempts == [("ann", 1), ("ann", 2), ("ann", 3)]


def test_whom_the_storage_failed_is_due_at_once_alone_and_then_later_and_is_never_blamed(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    found = []

    def interrupted(now=None):
        given = claim(storage, users=2, lease_seconds=10_000, now=now)
        found.append(given and [(entry.user_id, entry.attempts) for entry in given.entries])
        if given:
            storage.queue.put_off(given.token, backoff_seconds=50)

    for _ in range(4):
        interrupted(now=None)
    for _ in range(7):
        interrupted(now=time.time() + 61)  # not later than a minute, however often

    assert found[:4] == [[("ann", 1), ("bob", 1)], [("ann", 1)], [("bob", 1)], None]
    assert found[4:] == [[("ann", 1)]] * 7


def test_a_token_that_holds_nobody_any_more_changes_nothing(storage, films):
    clicked(storage, "s1")
    lost = claim(storage, lease_seconds=60)
    held = claim(storage, lease_seconds=60, now=NOW + 61)
    before = storage.orders.get("s1")

    assert complete(storage, lost, OrderOutcome("s1", REFUSED, "late")) == []
    assert fail(storage, lost, "late") == []
    assert storage.queue.refuse(lost.token, lost.entries[0], "late") == []
    storage.queue.renew(lost.token, 10_000)
    storage.queue.put_off(lost.token, backoff_seconds=1)

    assert storage.orders.get("s1") == before
    assert complete(storage, held, OrderOutcome("s1", DONE)) == [OrderOutcome("s1", DONE)]


def test_a_user_marked_while_in_hand_stays_in_the_queue_with_all_orders(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2")
    given = claim(storage)
    click(storage, "s1", "b")

    assert complete(storage, given, OrderOutcome("s1", DONE), OrderOutcome("s2", DONE)) == []
    assert fail(storage, given) == []

    for session_id in ("s1", "s2"):
        order = storage.orders.get(session_id)
        assert (order.status, order.attempts, order.detail) == (PENDING, 0, None)
    assert claimed(storage) == ["ann"]


def test_a_user_of_whom_a_session_failed_stays_held_until_given_back(storage, films):
    clicked(storage, "bad")
    clicked(storage, "good")
    clicked(storage, "bob's", "bob")
    given = claim(storage)

    new = complete(
        storage,
        given,
        OrderOutcome("bad", FAILED, "boom"),
        OrderOutcome("good", DONE),
        OrderOutcome("bob's", DONE),
    )
    between = storage.orders.get("bad").status
    anns = next(entry for entry in given.entries if entry.user_id == "ann")
    given_back = storage.queue.fail(
        given.token, anns, "", sessions={"bad": "boom"}, max_attempts=2, backoff_seconds=0
    )

    assert OrderOutcome("bad", FAILED, "boom") in new
    assert between is PROCESSING
    assert given_back == ["bad"]
    bad = storage.orders.get("bad")
    assert (bad.status, bad.detail, storage.orders.get("good").status) == (PENDING, "boom", DONE)
    assert claimed(storage) == ["ann"]


def test_a_session_that_is_known_to_fail_holds_nobody(storage, films):
    clicked(storage, "bad")
    fail(storage, claim(storage))
    clicked(storage, "good")
    given = claim(storage)

    new = complete(storage, given, OrderOutcome("bad", FAILED, "boom"), OrderOutcome("good", DONE))

    assert new == [OrderOutcome("good", DONE)]
    assert storage.orders.get("bad").status is FAILED
    assert claim(storage, now=NOW + 1000) is None


def test_a_failed_attempt_is_due_again_after_a_backoff_that_doubles(storage, films):
    clicked(storage, "s1")

    for attempt, backoff in [(1, 100), (2, 200), (3, 400)]:
        given = claim(storage)
        before = time.time()
        assert fail(storage, given, f"attempt {attempt}", max_attempts=9, backoff_seconds=100) == ["s1"]
        after = time.time()

        order = storage.orders.get("s1")
        assert (order.status, order.attempts, order.detail) == (PENDING, attempt, f"attempt {attempt}")
        assert before + backoff - 1 <= order.not_before <= after + backoff + 1
        assert claim(storage, now=order.not_before - 1) is None
    assert claimed(storage, now=order.not_before + 1) == ["ann"]


def test_refusing_a_user_ends_what_is_pending_and_nothing_else(storage, films):
    clicked(storage, "done")
    complete(storage, claim(storage), OrderOutcome("done", DONE))
    clicked(storage, "s1")
    given = claim(storage)

    assert storage.queue.refuse(given.token, given.entries[0], "no such place") == ["s1"]

    assert (storage.orders.get("s1").status, storage.orders.get("s1").detail) == (REFUSED, "no such place")
    assert storage.orders.get("done").status is DONE
    assert claim(storage, now=NOW + 1000) is None


def test_no_user_is_given_to_two_workers(storage, films):
    for number in range(60):
        clicked(storage, f"s{number}", f"u{number % 40}")
    taken, start = [[] for _ in range(4)], threading.Barrier(4)

    def work(mine):
        start.wait(timeout=30)
        while given := claim(storage, users=3):
            mine += [entry.user_id for entry in given.entries]

    with contextlib.ExitStack() as workers:
        for mine in taken:
            workers.enter_context(beside(lambda mine=mine: work(mine)))
    rest = claimed(storage)

    assert sorted([user_id for mine in taken for user_id in mine] + rest) == sorted(
        f"u{number}" for number in range(40)
    )


def test_waiting_ends_when_an_order_is_placed(storage, films):
    search(storage, "s1")
    woken = []

    with beside(lambda: woken.append(storage.queue.wait(30))) as ended:
        while not ended.wait(0.01):  # nobody says when the other has begun to wait
            place(storage, "s1")

    assert woken == [True]


def test_waiting_ends_when_a_click_places_the_order(storage, films):
    search(storage, "s1")
    woken = []

    with beside(lambda: woken.append(storage.queue.wait(30))) as ended:
        at = 101
        while not ended.wait(0.01):
            click(storage, "s1", at=(at := at + 1))

    assert woken == [True]


def test_a_worker_is_seen_while_it_waits(storage, films):
    search(storage, "s1")
    before = storage.queue.info().workers

    with beside(lambda: storage.queue.wait(30)) as ended:
        while (during := storage.queue.info().workers) == 0:
            assert not ended.is_set()
        place(storage, "s1")

    assert (before, during) == (0, 1)


def test_a_worker_is_seen_while_it_holds_users_until_its_lease_ends(storage, films):
    for user_id in ("ann", "bob", "cat"):
        search(storage, user_id, user_id=user_id)
        place(storage, user_id)

    waiting = storage.queue.info().workers
    storage.queue.claim(users=1, lease_seconds=0)
    ended = storage.queue.info().workers
    storage.queue.claim(users=1, lease_seconds=60)
    storage.queue.claim(users=1, lease_seconds=60)
    held = storage.queue.info()

    assert (waiting, ended) == (0, 0)
    assert held.workers == 2


def test_waiting_for_an_order_that_nobody_places_ends_with_the_time(storage):
    assert storage.queue.wait(0.01) is False
