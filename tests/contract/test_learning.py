"""States as they are stored, and the transaction in which users are learnt."""

import contextlib
import threading

import numpy as np
import pytest

from contract.conftest import (
    DONE,
    NOTHING,
    PASSED_OVER,
    PENDING,
    REFUSED,
    beside,
    claim,
    click,
    clicked,
    ids,
    index,
    learn,
    memory_of,
    search,
    thing,
    told,
    told_memory,
    vectors,
)
from embedding_studio.domain.objects import PersonalState
from embedding_studio.storage.ports import OrderOutcome


def test_a_state_comes_back_as_it_was_stored(storage, films):
    storage.objects.upsert(films, [thing("d", [1, 2, 3], [4, 5, 6])])
    memories = [
        memory_of("s2", at=100, moved=()),
        memory_of("s1", query=(0.1, 0, -1), mean=(0.3, 2, 0), at=200, moved=("a", "d")),
    ]

    learn(storage, films, memories=memories, moved={"d": [[1, 2, 3.5], [4, 5.1, 6]], "a": [[1, 0.1, 0]]})

    state = storage.personal.state(films, "ann")
    assert [told_memory(memory) for memory in state.memories] == [told_memory(memory) for memory in memories]
    assert state.vectors["d"].dtype == state.memories[0].query.dtype == np.float32
    np.testing.assert_array_equal(state.vectors["d"], vectors([1, 2, 3.5], [4, 5.1, 6]))
    np.testing.assert_array_equal(state.vectors["a"], vectors([1, 0.1, 0]))


def test_a_state_is_replaced_as_a_whole_and_nobody_else_is_touched(storage, films):
    books = storage.collections.create("books", index())
    storage.objects.upsert(books, [thing("a", [1, 0, 0])])
    for user_id in ("ann", "bob"):
        learn(storage, films, user_id, memories=[memory_of("s1")], moved={"a": [[1, 1, 0]], "b": [[1, 1, 0]]})
        learn(storage, books, user_id, moved={"a": [[1, 1, 0]]})
    bobs = told(storage.personal.state(films, "bob"))

    with storage.personal.learning(films, ["ann", "bob"]) as transaction:
        transaction.replace_states({"ann": PersonalState((memory_of("s2"),), {"c": vectors([0, 1, 1])})})

    assert told(storage.personal.state(films, "ann")) == ([told_memory(memory_of("s2"))], {"c": [[0, 1, 1]]})
    assert told(storage.personal.state(films, "bob")) == bobs
    assert told(storage.personal.state(books, "ann")) == ([], {"a": [[1, 1, 0]]})


def test_a_state_may_become_empty(storage, films):
    learn(storage, films, memories=[memory_of("s1")], moved={"a": [[1, 1, 0]]})

    learn(storage, films)

    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_the_loop_never_writes_an_original(storage, films):
    before = [(o.parts.tolist(), o.payload) for o in storage.objects.get(films, ["a", "b", "c"])]

    learn(storage, films, moved={"a": [[0, 1, 0]], "b": [[1, 0, 0]]})
    learn(storage, films)

    assert [(o.parts.tolist(), o.payload) for o in storage.objects.get(films, ["a", "b", "c"])] == before


def test_an_error_in_a_learning_block_undoes_all_of_it(storage, films):
    clicked(storage, "s1", query=None)
    learn(storage, films, moved={"a": [[1, 1, 0]]})
    given = claim(storage)
    before = storage.orders.get("s1")

    with (  # noqa: PT012, the block is what is tested
        pytest.raises(ZeroDivisionError),
        storage.personal.learning(films, ["ann"]) as transaction,
    ):
        transaction.store_query_vectors({"s1": vectors([1, 0, 0])})
        transaction.replace_states({"ann": PersonalState()})
        assert transaction.complete(given.token, [OrderOutcome("s1", DONE)], PASSED_OVER)
        raise ZeroDivisionError

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})
    assert storage.orders.get("s1") == before
    assert storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"][0].query_vectors is None


def test_state_and_completion_commit_together(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2")
    given = claim(storage)

    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})
        transaction.complete(
            given.token, [OrderOutcome("s1", DONE), OrderOutcome("s2", REFUSED, "why")], PASSED_OVER
        )

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})
    assert (storage.orders.get("s1").status, storage.orders.get("s1").detail) == (DONE, None)
    assert (storage.orders.get("s2").status, storage.orders.get("s2").detail) == (REFUSED, "why")


def test_what_a_learning_block_writes_is_unseen_until_it_commits(storage, films):
    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})
        during = told(storage.personal.state(films, "ann"))

    assert during == NOTHING
    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})


def test_two_learning_blocks_on_one_user_run_one_after_the_other(storage, films):
    seen = []

    def second():
        with storage.personal.learning(films, ["bob", "ann"]) as transaction:
            seen.append(told(storage.personal.state(films, "ann")))
            transaction.replace_states({"ann": PersonalState((), {"b": vectors([1, 1, 0])})})

    with contextlib.ExitStack() as stack, storage.personal.learning(films, ["ann", "cat"]) as transaction:
        ended = stack.enter_context(beside(second))
        assert not ended.wait(0.3)
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})

    assert seen == [([], {"a": [[1, 1, 0]]})]
    assert told(storage.personal.state(films, "ann")) == ([], {"b": [[1, 1, 0]]})


def test_learning_blocks_on_different_users_do_not_wait_for_each_other(storage, films):
    with (
        storage.personal.learning(films, ["ann"]),
        beside(lambda: learn(storage, films, "bob", moved={"a": [[1, 1, 0]]})) as ended,
    ):
        assert ended.wait(30)

    assert told(storage.personal.state(films, "bob")) == ([], {"a": [[1, 1, 0]]})


def test_two_learning_blocks_with_the_same_users_in_another_order_do_not_deadlock(storage, films):
    start = threading.Barrier(2)

    def work(user_ids):
        start.wait(timeout=30)
        for _ in range(20):
            with storage.personal.learning(films, user_ids) as transaction:
                transaction.replace_states(dict.fromkeys(user_ids, PersonalState()))

    with beside(lambda: work(["ann", "bob", "cat"])), beside(lambda: work(["cat", "bob", "ann"])):
        pass


@pytest.mark.parametrize("change", ["upsert", "delete", "drop", "forget"])
def test_what_would_outdate_a_learning_block_waits_for_its_end(storage, films, change):
    clicked(storage, "s1")
    changes = {
        "upsert": lambda: storage.objects.upsert(films, [thing("a", [0, 1, 1])]),
        "delete": lambda: storage.objects.delete(films, ["a"]),
        "drop": lambda: storage.collections.drop("films"),
        "forget": lambda: storage.clickstream.forget_user("ann"),
    }

    with contextlib.ExitStack() as stack, storage.personal.learning(films, ["ann"]) as transaction:
        ended = stack.enter_context(beside(changes[change]))
        assert not ended.wait(0.3)
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})

    films = storage.collections.create("films", index())
    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_clicks_and_searches_go_on_during_a_learning_block(storage, films):
    search(storage, "s1")
    found = []

    def go_on():
        click(storage, "s1")
        found.extend(ids(storage.objects.nearest(films, vectors([1, 0, 0]), 1)))

    with storage.personal.learning(films, ["ann"]), beside(go_on) as ended:
        assert ended.wait(30)

    assert found == ["a"]
    assert storage.orders.get("s1").status is PENDING
