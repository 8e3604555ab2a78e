"""What is removed for its age, over both storages: what is left is as if the rest had never been."""

import threading

import numpy as np
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import InvalidInputError, SessionNotFoundError
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.worker import Worker
from embedding_studio.retention import Retention, prune, seconds_of_age
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Removed

INDEX = SearchIndexInfo(dimensions=5)
DAY = 86_400
NOW = 1_000 * DAY


def vectors(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def live(storage, sessions):
    """Record sessions, (age in days, user), each with a click, and learn from them."""
    films = storage.collections.create("default", INDEX)
    storage.objects.upsert(
        films, [CatalogueObject(f"o{k}", part[None]) for k, part in enumerate(vectors(9, 1))]
    )
    for number, age, user_id in sessions:
        at = NOW - age * DAY
        session = Session(
            session_id=f"s{number}",
            user_id=user_id,
            created_at=at,
            search_query=f"q{number % 3}",
            search_results=tuple(SearchResultItem(object_id=f"o{k}") for k in range(9)),
            events=[SessionEvent(session_id=f"s{number}", object_id=f"o{number % 9}", created_at=at + 9)],
        )
        storage.clickstream.register_session(session, vectors(1, number % 3))
    learn(storage)
    return films


def learn(storage):
    improver = Improver(storage, PassiveAggressiveAdjuster, is_shared=True)
    while improver.improve_once().users:
        pass


def states(storage, films):
    def told(user_id):
        state = storage.personal.state(films, user_id)
        return (
            [(each.session_id, each.query.tolist(), each.clicked_ids) for each in state.memories],
            {object_id: parts.tolist() for object_id, parts in state.vectors.items()},
            [(each.query_key, each.clicked_mean.tolist(), each.seen) for each in state.votes],
        )

    return {user_id: told(user_id) for user_id in ("ann", "bob", "cid")}


@pytest.fixture
def sessions():
    """Ann did much both long ago and lately, Bob only long ago, Cid only lately, others without a name."""
    users = {"ann": [400, 300, 200, 100, 90, 10], "bob": [400, 181], "cid": [179, 1], None: [500, 180, 20]}
    aged = [(age, user_id) for user_id, ages in users.items() for age in ages]
    return [(number, age, user_id) for number, (age, user_id) in enumerate(aged)]


def test_what_is_left_is_as_if_what_was_older_had_never_been(storage, sessions, monkeypatch):
    monkeypatch.setattr("embedding_studio.retention.BATCH", 2)
    films = live(storage, sessions)
    before = states(storage, films)
    young = [each for each in sessions if each[1] <= 180]
    other = MemoryStorage()
    expected = states(other, live(other, young))

    went = prune(storage, NOW - 180 * DAY)
    learn(storage)

    assert went == Removed(sessions=6, events=6)
    assert [each.session.session_id for each in storage.clickstream.scan()] == [
        each.session.session_id for each in other.clickstream.scan()
    ]
    left = states(storage, films)
    assert left["ann"] != before["ann"]
    assert left["bob"] == ([], {}, [])
    assert left["cid"] == before["cid"]
    for user_id in left:
        assert left[user_id][0] == expected[user_id][0]
        assert left[user_id][1].keys() == expected[user_id][1].keys()
        for object_id, parts in left[user_id][1].items():
            assert parts == [pytest.approx(part, abs=1e-6) for part in expected[user_id][1][object_id]]
        assert [vote[::2] for vote in left[user_id][2]] == [vote[::2] for vote in expected[user_id][2]]
    assert storage.orders.counts() == other.orders.counts()
    assert storage.queue.info().waiting == 0
    assert prune(storage, NOW - 180 * DAY) == Removed(0, 0)


def test_only_who_learnt_from_what_went_is_learnt_anew(storage, sessions):
    live(storage, sessions)

    prune(storage, NOW - 180 * DAY)

    claim = storage.queue.claim(users=9, lease_seconds=1)
    assert sorted(entry.user_id for entry in claim.entries) == ["ann", "bob"]


def test_a_batch_is_as_large_as_asked_for_and_of_the_oldest(storage, sessions):
    live(storage, sessions)

    went = storage.clickstream.remove_before(NOW, limit=3)

    assert went == Removed(3, 3)
    left = {each.session.created_at for each in storage.clickstream.scan()}
    assert min(left) == NOW - 300 * DAY


def test_what_is_written_to_meanwhile_is_not_waited_for(new_postgres_storage, sessions):
    with new_postgres_storage() as storage:
        live(storage, sessions)
        database = storage.clickstream._database
        with database.transaction() as connection:
            connection.execute("SELECT FROM embedding_studio.sessions WHERE session_id = 's0' FOR UPDATE")
            meanwhile = prune(storage, NOW - 180 * DAY)
        after = prune(storage, NOW - 180 * DAY)

    assert (meanwhile, after) == (Removed(5, 5), Removed(1, 1))


def test_a_worker_prunes_once_a_day_where_it_is_told_how_long_the_log_is_kept(memory, sessions):
    live(memory, sessions)
    retention, stop = Retention(memory, 180), threading.Event()

    first = retention.is_due(NOW)
    retention.prune(NOW, stop)

    assert first
    with pytest.raises(SessionNotFoundError):
        memory.clickstream.get_session("s0")
    assert [retention.is_due(NOW + seconds) for seconds in (0, DAY - 1, DAY)] == [False, False, True]


def test_a_worker_that_is_to_stop_leaves_the_rest_for_another_day(memory, sessions):
    live(memory, sessions)
    stop = threading.Event()
    stop.set()

    Retention(memory, 1).prune(NOW, stop)
    Worker(Improver(memory, PassiveAggressiveAdjuster), memory, retention=Retention(memory, 1)).run(stop)

    assert len(list(memory.clickstream.scan())) == len(sessions)


@pytest.mark.parametrize(
    ("given", "seconds"), [("1h", 3_600), ("180d", 180 * DAY), (" 2w ", 14 * DAY)], ids=str
)
def test_an_age_is_a_number_with_its_unit(given, seconds):
    assert seconds_of_age(given) == seconds


@pytest.mark.parametrize("given", ["", "180", "0d", "-1d", "1.5d", "1y", "1d1d", "9999999d"])
def test_what_is_no_age_is_refused_with_what_is_one(given):
    with pytest.raises(InvalidInputError, match="such as 180d"):
        seconds_of_age(given)
