"""Users whose sessions are a robot's: each rule at its edge; what becomes of who is caught, or released."""

from dataclasses import replace

import numpy as np
import pytest

from embedding_studio.domain.sessions import DEFAULT_EVENT_WEIGHTS, SessionForImprovementStatus
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.robots import reason_to_quarantine
from embedding_studio.storage.ports import QuarantineDecision
from test_improve import ALL, QUERY, assert_same_state, open_catalogue, recorded

DONE, REFUSED = SessionForImprovementStatus.DONE, SessionForImprovementStatus.REFUSED
DAY = 86_400


def sessions(number, clicked=("at40",), *, every=DAY, text="", first=100, user_id="ann", shown=ALL):
    """Return so many sessions, one after the other; ``text`` may say which it is."""
    return [
        recorded(
            f"{user_id}-{first}-{k}",
            clicked,
            created_at=first + k * every,
            text=text.format(k),
            user_id=user_id,
            shown=shown,
        )
        for k in range(number)
    ]


def reason(given, *, after=-1):
    times = [each.session.created_at for each in given]
    return reason_to_quarantine(given, DEFAULT_EVENT_WEIGHTS, times, after=after)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (sessions(241, every=14), "more than 240 searches within an hour"),
        (sessions(241, every=15), None),
        (sessions(240, every=0), None),
        (sessions(10, ALL), "clicks on all that was shown, or nearly all, in 10 of 10 searches"),
        (sessions(10, ALL[1:]), "in 10 of 10 searches"),
        (sessions(10, ALL[2:]), None),
        (sessions(9, ALL), None),
        (sessions(10, ALL) + sessions(10, first=150), "in 10 of 20 searches"),
        (sessions(10, ALL) + sessions(11, first=150), None),
        (sessions(30, ALL[:2], shown=ALL[:2]), None),
        (sessions(30, shown=()), None),
        (sessions(20, text="query {}"), "clicks on one object for each of 20 different queries"),
        (sessions(19, text="query {}"), None),
        (sessions(50, text="red shoe"), None),
        (sessions(27, text="query {}") + sessions(3, ("at30",), first=150), "each of 27 different queries"),
        (sessions(26, text="query {}") + sessions(3, ("at30",), first=150), None),
    ],
)
def test_a_robot_is_who_does_what_no_user_does(given, says):
    told = reason(given)

    assert (told is None) == (says is None), told
    assert says is None or says in told


def test_queries_without_a_text_are_told_apart_by_their_vectors():
    alike = sessions(20)
    different = [
        recorded(f"s{k}", query=np.array([[1, k, 0]], np.float32), created_at=100 + k * DAY)
        for k in range(20)
    ]

    assert reason(alike) is None
    assert "one object" in reason(different)


def test_the_reason_tells_by_which_keys_sessions_came():
    given = sessions(20, text="query {}")
    by_keys = [replace(each, sender="stolen" if place > 3 else "") for place, each in enumerate(given)]

    assert reason(by_keys) == f"{reason(given)} (of those that count 16 by the key stolen)"


def test_what_says_nothing_for_an_object_is_no_click():
    views = [
        recorded(f"s{k}", ALL, kind="view", created_at=100 + k * DAY, text=f"query {k}") for k in range(30)
    ]

    assert reason(views) is None


def test_what_was_looked_at_by_a_person_is_not_held_against_a_user():
    past, later = sessions(20, text="query {}"), sessions(20, text="word {}", first=100 + 20 * DAY)

    assert reason(past + later[:19], after=100 + 19 * DAY) is None
    assert "20 different" in reason(past + later, after=100 + 19 * DAY)


# What becomes of them


def improver(storage, **options):
    return Improver(storage, PassiveAggressiveAdjuster, **options)


def improve(storage, **options):
    while improver(storage, **options).improve_once(users=1).users:
        pass


def record(storage, given):
    storage.clickstream.record(given)


def statuses(storage, user_id):
    orders = [order for order in storage.orders.list(limit=1000) if order.user_id == user_id]
    return {order.status for order in orders}, {order.detail for order in orders}


def test_nothing_is_learnt_from_a_robot_and_its_orders_say_why(storage):
    collection = open_catalogue(storage)
    record(storage, sessions(19, text="query {}") + sessions(3, user_id="bob"))
    improve(storage)
    before = storage.personal.state(collection, "ann")
    record(storage, sessions(1, text="one more", first=100 + 19 * DAY))
    improve(storage)

    assert len(before.memories) == 19
    state = storage.personal.state(collection, "ann")
    assert (state.memories, state.vectors, state.votes) == ((), {}, ())
    [caught] = storage.quarantine.list()
    assert (caught.user_id, caught.collection) == ("ann", "default")
    ended, details = statuses(storage, "ann")
    assert ended == {REFUSED}
    assert details == {f"the user is quarantined ({caught.reason}); release them to learn from it"}
    assert storage.quarantine.count() == 1
    assert statuses(storage, "bob")[0] == {DONE}


def test_who_is_released_is_learnt_and_not_caught_again_for_the_same_past(storage):
    collection = open_catalogue(storage)
    given = sessions(25, text="query {}")
    record(storage, given)
    improve(storage)
    last = max(each.session.created_at for each in given)

    storage.quarantine.decide("ann", QuarantineDecision(False, "released", last))
    improve(storage)
    record(storage, sessions(19, text="word {}", first=last + DAY))
    improve(storage)

    assert storage.quarantine.list() == []
    assert len(storage.personal.state(collection, "ann").memories) == 44
    assert statuses(storage, "ann")[0] == {DONE}
    record(storage, sessions(1, text="one more", first=last + 20 * DAY))
    improve(storage)
    assert [each.user_id for each in storage.quarantine.list()] == ["ann"]


def test_who_is_quarantined_by_hand_is_unlearnt_until_released(storage):
    collection = open_catalogue(storage)
    record(storage, sessions(3))
    improve(storage)
    before = storage.personal.state(collection, "ann")

    storage.quarantine.decide("ann", QuarantineDecision(True, "sells at01", 500))
    improve(storage, quarantines=False)

    assert storage.personal.state(collection, "ann").memories == ()
    [told] = storage.quarantine.list()
    assert (told.user_id, told.collection, told.reason, told.since) == ("ann", None, "sells at01", 500)
    assert statuses(storage, "ann")[0] == {REFUSED}

    storage.quarantine.decide("ann", QuarantineDecision(False, "released", 600))
    improve(storage)

    assert storage.quarantine.count() == 0
    assert_same_state(storage.personal.state(collection, "ann"), before)


def test_a_flood_is_found_beyond_the_sessions_that_count(storage):
    collection = open_catalogue(storage)
    record(storage, sessions(241, every=14))
    improve(storage, max_sessions_per_user=5)
    first = storage.quarantine.list()
    record(storage, sessions(4, first=100 + DAY))
    improve(storage, max_sessions_per_user=5)

    assert [each.user_id for each in first] == ["ann"]
    assert storage.quarantine.list() == first
    record(storage, sessions(1, first=100 + 7 * DAY))
    improve(storage, max_sessions_per_user=5)
    assert storage.quarantine.list() == []  # the five that count are none of the flood
    assert len(storage.personal.state(collection, "ann").memories) == 5


def test_where_nobody_is_quarantined_a_robot_is_learnt(storage):
    collection = open_catalogue(storage)
    record(storage, sessions(20, text="query {}"))
    improve(storage, quarantines=False)

    assert len(storage.personal.state(collection, "ann").memories) == 20
    assert storage.quarantine.list() == []


def test_others_are_told_nothing_of_what_a_robot_clicked(storage):
    collection = open_catalogue(storage)
    asked = {"bob": sessions(3, user_id="bob"), "ann": sessions(3)}
    for given in asked.values():
        record(storage, given)
    improve(storage, is_shared=True)
    query = QUERY[0]
    heard = storage.personal.near_memories(collection, None, query, 0.5, shared_by=2).shared

    storage.quarantine.decide("ann", QuarantineDecision(True, "by hand", 500))
    improve(storage, is_shared=True)

    assert [memory.users for memory in heard] == [2]
    assert storage.personal.near_memories(collection, None, query, 0.5, shared_by=2).shared == []


@pytest.mark.parametrize("is_found", [True, False])
def test_a_robots_queries_do_not_fit_the_gate(storage, is_found):
    collection = open_catalogue(storage)
    theirs = [
        recorded(f"s{k}", query=np.array([[1, k, 0]], np.float32), created_at=100 + k * DAY)
        for k in range(20 if is_found else 3)
    ]
    record(storage, [*theirs, *sessions(1, user_id="bob"), *sessions(1, user_id=None)])
    before = len(storage.clickstream.recent_queries(collection, 100))

    if not is_found:
        storage.quarantine.decide("ann", QuarantineDecision(True, "by hand", 500))
    improve(storage)

    assert before == (20 if is_found else 3)
    assert len(storage.clickstream.recent_queries(collection, 100)) == 1


def test_who_is_forgotten_is_no_longer_in_quarantine_and_a_dropped_collection_has_nobody_in_it(storage):
    open_catalogue(storage)
    record(storage, sessions(20, text="query {}") + sessions(20, text="query {}", user_id="bob"))
    improve(storage)
    storage.quarantine.decide("ann", QuarantineDecision(True, "by hand", 500))

    assert sorted(each.user_id for each in storage.quarantine.list()) == ["ann", "bob"]
    storage.clickstream.forget_user("ann")
    assert [each.user_id for each in storage.quarantine.list()] == ["bob"]
    assert storage.quarantine.decisions(["ann", "bob"]) == {}
    storage.collections.drop("default")
    assert storage.quarantine.list() == []
