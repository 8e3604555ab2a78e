"""What users tell each other: votes for a query, and when others hear of them."""

import threading

import numpy as np
import pytest

from contract.conftest import beside, heard, index, learn, memory_of, thing, told_votes, vectors, vote
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import PersonalState, SeenObject, SharedObject
from embedding_studio.storage.ports import SHARED_HALF_LIFE, SHARED_QUERIES, SHARED_VOTES


def test_what_others_clicked_for_a_query_comes_as_one_memory_of_it_nearest_first(storage, films):
    learn(storage, films, "bob", votes=[vote("far", query=(3, 4, 0), mean=(0, 0, 2))])
    learn(storage, films, "cat", votes=[vote("near", query=(5, 0, 0), mean=(0, 1, 0))])
    learn(storage, films, "dan", votes=[vote("near", query=(5, 0, 0), mean=(0, 3, 0))])
    learn(storage, films, "eve", votes=[vote("elsewhere", query=(0, 0, 1))])

    near = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=2)

    assert near.own == []
    assert heard(storage, films, shared_by=2) == [([5, 0, 0], [0, 2, 0], 2), ([3, 4, 0], [0, 0, 2], 1)]
    assert [(m.query.dtype, m.clicked_mean.dtype) for m in near.shared] == [(np.float32, np.float32)] * 2


@pytest.mark.parametrize("user_id", ["ann", None])
def test_nothing_is_told_that_fewer_users_said_than_are_asked_for(storage, films, user_id):
    learn(storage, films, "bob", votes=[vote("red"), vote("blue", query=(0, 1, 0))])
    learn(storage, films, "cat", votes=[vote("reddish", query=(4, 3, 0))])

    assert heard(storage, films, user_id, shared_by=3) == []
    assert [users for *_, users in heard(storage, films, user_id, shared_by=2)] == [1, 1]
    assert heard(storage, films, user_id, shared_by=2, threshold=0.9) == []
    assert heard(storage, films, user_id, shared_by=0) == []


def test_a_users_own_vote_never_comes_back_to_them(storage, films):
    for user_id, mean in {"ann": (9, 9, 9), "bob": (0, 3, 0), "cat": (0, 0, 3)}.items():
        learn(storage, films, user_id, memories=[memory_of("s1")], votes=[vote("red", mean=mean)])

    assert heard(storage, films, "ann", shared_by=2) == [([1, 0, 0], [0, 1.5, 1.5], 2)]
    assert heard(storage, films, "ann", shared_by=3) == []
    assert heard(storage, films, None, shared_by=3) == [([1, 0, 0], [3, 4, 4], 3)]


def test_own_memories_and_those_of_others_come_together(storage, films):
    learn(storage, films, "ann", memories=[memory_of("s1")])
    learn(storage, films, "bob", memories=[memory_of("s2")], votes=[vote("red")])

    anns, nobodys = (
        storage.personal.near_memories(films, user_id, vectors(1, 0, 0), 0.5, shared_by=1)
        for user_id in ("ann", None)
    )

    assert [memory.session_id for memory in anns.own] == ["s1"]
    assert nobodys.own == []
    assert [memory.users for memory in anns.shared] == [memory.users for memory in nobodys.shared] == [1]


def test_a_user_who_asked_in_several_ways_counts_once_for_the_nearest(storage, films):
    learn(
        storage,
        films,
        "bob",
        votes=[
            vote("a far", query=(4, 3, 0), mean=(7, 7, 7), at=900),
            vote("b same", mean=(0, 2, 0)),
            vote("c same", mean=(7, 7, 7), at=900),
        ],
    )
    learn(storage, films, "cat", votes=[vote("c same", mean=(0, 0, 2)), vote("b same", mean=(0, 4, 0))])
    learn(storage, films, "dan", votes=[vote("a far", query=(4, 3, 0), mean=(1, 0, 0))])

    assert heard(storage, films, shared_by=3) == [([1, 0, 0], [0, 3, 0], 2), ([4, 3, 0], [1, 0, 0], 1)]
    assert heard(storage, films, shared_by=4) == []


def test_of_the_votes_for_one_query_the_latest_count(storage, films):
    old, new = [f"old {k:02}" for k in range(9)], [f"new {k:02}" for k in range(SHARED_VOTES - 3)]
    for user_id in old:
        learn(storage, films, user_id, votes=[vote("red", mean=(0, 0, 1 if user_id <= "old 02" else 9))])
    for user_id in [*new, "ann"]:
        learn(storage, films, user_id, votes=[vote("red", mean=(0, 0, 1), at=101)])

    assert heard(storage, films, "ann") == [([1, 0, 0], [0, 0, 1], SHARED_VOTES)]
    [(_, (*_, mean), users)] = heard(storage, films, "ann", shared_by=SHARED_VOTES + 1)
    assert (users, mean) == (SHARED_VOTES + 1, pytest.approx((SHARED_VOTES + 9) / (SHARED_VOTES + 1)))
    assert heard(storage, films, "ann", shared_by=len(old) + len(new) + 1) == []


def test_of_all_queries_the_nearest_count(storage, films):
    angles = np.radians(range(1, SHARED_QUERIES + 3))
    for k, angle in enumerate(angles):
        query = (np.cos(angle), np.sin(angle), 0)
        learn(storage, films, f"user {k}", votes=[vote(f"query {k}", query=query, mean=(k, 0, 0))])
    learn(storage, films, "last", votes=[vote("query 0", query=(1, 0, 0), mean=(2, 0, 0))])

    told = heard(storage, films)

    assert [mean for _, mean, _ in told] == [[1 if k == 0 else k, 0, 0] for k in range(SHARED_QUERIES)]
    assert [users for *_, users in told] == [2] + [1] * (SHARED_QUERIES - 1)


def test_what_others_did_with_objects_is_summed_up_query_by_query_and_fades_with_age(storage, films):
    at = 100 + SHARED_HALF_LIFE
    learn(storage, films, "bob", votes=[vote("red", seen=[("x", 1, 0.5), ("y", 0, 1)])])
    learn(storage, films, "cat", votes=[vote("red", seen=[("a\u00e9", 0.5, 0), ("x", 0.25, 0)], at=at)])
    learn(storage, films, "dan", votes=[vote("reddish", query=(3, 4, 0), seen=[("x", 1, 1)], at=at)])
    learn(storage, films, "eve", votes=[vote("reddish", query=(3, 4, 0), at=at)])
    learn(storage, films, "fay", votes=[vote("green", query=(0, 0, 1), seen=[("z", 1, 1)], at=9 * at)])

    red, reddish = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=3).shared

    assert red.seen == (
        SharedObject("a\u00e9", 1, 0.5, 0),
        SharedObject("x", 2, 0.75, 0.25),
        SharedObject("y", 0, 0, 0.5),
    )
    assert reddish.seen == (SharedObject("x", 1, 1, 1),)


@pytest.mark.parametrize("ahead", [2**62, 10**12])
def test_fewer_than_are_needed_cannot_make_what_others_did_old(storage, films, ahead):
    for user_id in ("bob", "cat", "dan"):
        learn(storage, films, user_id, votes=[vote("red", seen=[("x", 1, 1)])])
    for user_id in ("eve", "mallory"):
        learn(storage, films, user_id, votes=[vote("red", seen=[("y", 1, 0)], at=ahead)])

    [red] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=3).shared

    assert red.seen == (SharedObject("x", 3, 3, 3), SharedObject("y", 2, 2, 0))


def test_what_is_very_old_still_weighs_something_and_the_same_everywhere(storage, films):
    learn(storage, films, "bob", votes=[vote("red", seen=[("x", 1, 0.5)], at=0)])
    learn(storage, films, "cat", votes=[vote("red", seen=[("x", 0, 0)], at=2**62)])

    [red] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=1).shared

    [x] = red.seen
    assert (x.clicks / 0.5**1000, x.looks / 0.5**1000) == (pytest.approx(1), pytest.approx(0.5))


def test_what_a_user_did_with_objects_never_comes_back_to_them_nor_twice(storage, films):
    seen = [("x", 1, 0)]
    learn(storage, films, "ann", votes=[vote("red", seen=seen, at=10**9)])
    learn(storage, films, "bob", votes=[vote("red", seen=seen), vote("reddish", query=(3, 4, 0), seen=seen)])

    [red] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=1).shared

    assert red.seen == (SharedObject("x", 1, 1, 0),)


@pytest.mark.parametrize("metric_type", list(MetricType))
def test_nearness_to_what_others_asked_is_the_cosine_whatever_the_metric(storage, metric_type):
    shoes = storage.collections.create("shoes", index(metric_type))
    learn(
        storage,
        shoes,
        "bob",
        votes=[vote("far along", query=(9, 0, 0), mean=(1, 2, 3)), vote("zero", query=(0, 0, 0))],
    )

    assert heard(storage, shoes) == [([9, 0, 0], [1, 2, 3], 1)]
    assert heard(storage, shoes, query=(0, 0, 0), threshold=0) == []
    assert told_votes(storage, shoes, "bob")[1] == ("zero", [0, 0, 0], [0, 1, 0], 100)


def test_votes_come_back_by_the_key_of_their_query(storage, films):
    seen = [("a", 0.5, 0.25), ("\u00e9 b", 1, 0)]
    votes = [vote("red", mean=(0.5, 1, 0), at=7, seen=seen), vote("blue", query=(0, 1, 0))]
    learn(storage, films, votes=votes)

    assert told_votes(storage, films) == [
        ("blue", [0, 1, 0], [0, 1, 0], 100),
        ("red", [1, 0, 0], [0.5, 1, 0], 7, SeenObject("a", 0.5, 0.25), SeenObject("\u00e9 b", 1, 0)),
    ]
    assert storage.personal.state(films, "ann").votes[0].query.dtype == np.float32


def test_votes_are_replaced_with_the_state_and_not_added(storage, films):
    learn(storage, films, "bob", votes=[vote("red", mean=(0, 1, 0)), vote("reddish", query=(4, 3, 0))])
    learn(storage, films, "cat", votes=[vote("red", mean=(0, 1, 0))])

    learn(storage, films, "bob", votes=[vote("red", mean=(0, 3, 0), at=200)])

    assert told_votes(storage, films, "bob") == [("red", [1, 0, 0], [0, 3, 0], 200)]
    assert heard(storage, films) == [([1, 0, 0], [0, 2, 0], 2)]
    learn(storage, films, "bob", memories=[memory_of("s1")])
    assert heard(storage, films) == [([1, 0, 0], [0, 1, 0], 1)]


def test_votes_of_one_key_have_the_query_that_came_first_until_the_last_of_them_goes(storage, films):
    learn(storage, films, "bob", votes=[vote("red", query=(1, 0, 0))])
    learn(storage, films, "cat", votes=[vote("red", query=(4, 3, 0))])
    learn(storage, films, "bob")

    while_there_are_some = told_votes(storage, films, "cat")
    learn(storage, films, "cat")
    learn(storage, films, "cat", votes=[vote("red", query=(4, 3, 0))])

    assert while_there_are_some == [("red", [1, 0, 0], [0, 1, 0], 100)]
    assert told_votes(storage, films, "cat") == [("red", [4, 3, 0], [0, 1, 0], 100)]


def test_a_forgotten_user_is_heard_no_more_and_crowds_nobody_out(storage, films):
    books = storage.collections.create("books", index())
    learn(storage, films, "bob", votes=[vote(f"red {k:03}") for k in range(3 * SHARED_QUERIES)])
    learn(storage, films, "cat", votes=[vote("reddish", query=(4, 3, 0)), vote("red 007")])
    learn(storage, books, "bob", votes=[vote("red")])
    before = heard(storage, films)

    storage.clickstream.forget_user("bob")

    assert before == [([1, 0, 0], [0, 1, 0], 1), ([1, 0, 0], [0, 1, 0], 1)]
    assert heard(storage, films) == [([1, 0, 0], [0, 1, 0], 1)]
    learn(storage, films, "cat", votes=[vote("reddish", query=(4, 3, 0))])
    assert heard(storage, films) == [([4, 3, 0], [0, 1, 0], 1)]
    assert heard(storage, books) == []
    assert told_votes(storage, films, "bob") == []


def test_votes_are_heard_in_their_collection_alone_and_go_with_it(storage, films):
    books = storage.collections.create("books", index())
    learn(storage, films, "bob", votes=[vote("red")])

    elsewhere = heard(storage, books)
    storage.collections.drop("films")
    films = storage.collections.create("films", index())

    assert elsewhere == heard(storage, films) == []
    learn(storage, films, "cat", votes=[vote("red", query=(4, 3, 0))])
    assert heard(storage, films) == [([4, 3, 0], [0, 1, 0], 1)]


def test_an_error_in_a_learning_block_undoes_its_votes(storage, films):
    learn(storage, films, "bob", votes=[vote("red")])

    with (  # noqa: PT012, the block is what is tested
        pytest.raises(ZeroDivisionError),
        storage.personal.learning(films, ["bob"]) as transaction,
    ):
        transaction.replace_states({"bob": PersonalState((), {}, (vote("blue"),))})
        raise ZeroDivisionError

    assert told_votes(storage, films, "bob") == [("red", [1, 0, 0], [0, 1, 0], 100)]


def test_changed_objects_leave_votes_as_they_are(storage, films):
    learn(storage, films, "bob", moved={"a": [[1, 1, 0]]}, votes=[vote("red")])

    storage.objects.upsert(films, [thing("a", [0, 1, 1])])
    storage.objects.delete(films, ["b"])

    assert told_votes(storage, films, "bob") == [("red", [1, 0, 0], [0, 1, 0], 100)]


def test_users_who_share_queries_are_folded_and_forgotten_at_once(storage, films):
    start = threading.Barrier(3)
    keys = [f"query {k}" for k in range(7)]

    def fold(user_ids, seed):
        rng = np.random.default_rng(seed)
        start.wait(timeout=30)
        for _ in range(30):
            states = {
                user_id: PersonalState(
                    (), {}, tuple(vote(keys[k]) for k in np.flatnonzero(rng.random(7) < 0.3))
                )
                for user_id in user_ids
            }
            with storage.personal.learning(films, user_ids) as transaction:
                transaction.replace_states(states)
        learn(storage, films, user_ids[0], votes=map(vote, keys[:3]))
        learn(storage, films, user_ids[1], votes=map(vote, keys[4:5]))

    def forget():
        start.wait(timeout=30)
        for _ in range(30):
            learn(storage, films, "eve", votes=map(vote, reversed(keys)))
            storage.clickstream.forget_user("eve")

    with (
        beside(lambda: fold(["ann", "bob"], 5)),
        beside(lambda: fold(["cat", "dan"], 7)),
        beside(forget),
    ):
        pass

    assert [told[0] for told in told_votes(storage, films, "ann")] == keys[:3]
    assert [told[0] for told in told_votes(storage, films, "dan")] == keys[4:5]
    assert told_votes(storage, films, "eve") == []
    assert [users for *_, users in heard(storage, films, "eve")] == [2, 2]
