"""How much a user's own past counts, learnt from what people come back for."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, OwnPast, PersonalState, QueryMemory
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.own_past import SOON_SECONDS, Kind, Returns, own_weights, returns_of
from embedding_studio.errors import StorageUnavailableError
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.worker import Worker
from embedding_studio.search import SearchService
from embedding_studio.tuning import FIT_EVERY_SECONDS, OwnPastKeeper, reset_own_past, tune_own_past

INDEX = SearchIndexInfo(dimensions=3)
THRESHOLD = 0.75
NOW = 10 * SOON_SECONDS


def at(degrees):
    radians = np.radians(degrees)
    return np.array([np.cos(radians), np.sin(radians), 0], dtype=np.float32)


def memory(number, created_at, clicked, degrees=0.0):
    return QueryMemory(
        f"s{number}", "coat", created_at, at(degrees), at(20), tuple(sorted(clicked)), tuple(sorted(clicked))
    )


def remember(storage, collection, users):
    with storage.personal.learning(collection, list(users)) as transaction:
        transaction.replace_states({user: PersonalState(tuple(found)) for user, found in users.items()})


@pytest.fixture
def coats(storage):
    collection = storage.collections.create("coats", INDEX)
    storage.objects.upsert(
        collection, [CatalogueObject(f"at{degrees}", at(degrees)[None]) for degrees in (0, 20, 40)]
    )
    return collection


def test_searches_are_told_apart_by_what_is_asked_and_how_long_ago():
    past = [
        memory(0, 0, {"a"}),
        memory(1, SOON_SECONDS - 1, {"a"}),  # the same, soon: again
        memory(2, 3 * SOON_SECONDS, {"b"}, degrees=10),  # near, later: something else
        memory(3, 3 * SOON_SECONDS + 1, {"b"}),  # near soon: again; the same, later: something else
        memory(4, 9 * SOON_SECONDS, {"c"}, degrees=90),  # near to nothing
    ]

    found = returns_of(INDEX, [past[::-1]], THRESHOLD)

    assert found.searches == {
        Kind.REPEATED_SOON: 1,
        Kind.REPEATED_LATER: 1,
        Kind.NEAR_SOON: 1,
        Kind.NEAR_LATER: 1,
    }
    assert found.again == {
        Kind.REPEATED_SOON: 1,
        Kind.REPEATED_LATER: 0,
        Kind.NEAR_SOON: 1,
        Kind.NEAR_LATER: 0,
    }


def test_nobody_counts_for_more_than_three_searches_of_a_kind():
    keen = [memory(number, number, {"a"}) for number in range(201)]
    others = [[memory(0, 0, {"a"}), memory(1, 1, {"b"})] for _ in range(5)]

    found = returns_of(INDEX, [keen, *others], THRESHOLD)

    assert found.searches[Kind.REPEATED_SOON] == 3 + 5
    assert found.again[Kind.REPEATED_SOON] == 3


@pytest.mark.parametrize(
    ("searches", "again", "weight"),
    [
        (0, 0, 1.0),
        (5, 0, 0.2),  # (3 of 10 - .25) / .25
        (7, 0, 0.0),
        (95, 47, 1.0),
        (95, 34.5, 0.5),  # 37.5 of 100
    ],
)
def test_the_past_counts_as_people_come_back_for_it(searches, again, weight):
    returns = Returns()
    returns.searches[Kind.NEAR_LATER], returns.again[Kind.NEAR_LATER] = searches, again

    assert returns.weights() == OwnPast(near_later=weight)


@given(st.floats(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_weights_are_shares_that_grow_with_what_people_come_back_for(searches, one, other):
    def weight(share):
        returns = Returns()
        returns.searches[Kind.NEAR_SOON], returns.again[Kind.NEAR_SOON] = searches, share * searches
        return returns.weights().near_soon

    less, more = sorted((one, other))
    assert 0 <= weight(less) <= weight(more) <= 1


def test_a_past_query_counts_by_its_kind_and_age():
    past = OwnPast(repeated_soon=0.1, repeated_later=0.2, near_soon=0.3, near_later=0.4)

    counts = own_weights(past, np.array([1.0, 1.0, 0.5, 0.5]), [0, SOON_SECONDS, SOON_SECONDS - 1, NOW])

    assert counts.tolist() == [0.1, 0.2, 0.3, 0.4]


def ids(page):
    return [result.object_id for result in page.results]


def test_a_past_that_counts_for_nothing_leaves_the_plain_search_in_every_bit(storage, coats):
    remember(storage, coats, {"ann": [memory(0, NOW - 60, {"at40"})]})
    service = SearchService(storage)
    plain = service.search(at(0), collection="coats", now=NOW)
    before = service.search(at(0), collection="coats", user_id="ann", now=NOW)

    storage.collections.set_own_past("coats", OwnPast(repeated_soon=0.0))
    soon = service.search(at(0), collection="coats", user_id="ann", now=NOW)
    later = service.search(at(0), collection="coats", user_id="ann", now=NOW + SOON_SECONDS)

    assert before.personalised
    assert (soon.results, soon.personalised) == (plain.results, False)
    assert [r.distance for r in later.results] == [r.distance for r in before.results]


def test_a_past_that_counts_by_half_shifts_half_as_a_gate_half_open(storage, coats):
    remember(storage, coats, {"ann": [memory(0, NOW - 60, {"at40"})]})
    storage.collections.set_own_past("coats", OwnPast(repeated_soon=0.5))

    page = SearchService(storage).search(at(0), collection="coats", user_id="ann", now=NOW, explain=True)

    shifted = at(0) + 0.5 * at(20) / 1.5
    expected = 1 - shifted @ at(0) / np.linalg.norm(shifted)
    [nearest] = [result for result in page.results if result.object_id == "at0"]
    assert nearest.explanation.shifted_distance == pytest.approx(expected, abs=1e-6)
    assert nearest.explanation.influences[0].gate == 0.5


def shoppers(again, count=20):
    return {
        f"user{number}": [memory(2 * number, 0, {"a"}), memory(2 * number + 1, 9, {"a"} if again else {"b"})]
        for number in range(count)
    }


def test_a_collection_learns_what_its_users_come_back_for(storage, coats):
    remember(storage, coats, shoppers(again=False))

    tuned = tune_own_past(storage, "coats", gate_threshold=THRESHOLD)

    assert (tuned.before, tuned.after) == (None, OwnPast(repeated_soon=0.0))
    assert storage.collections.get("coats").own_past == tuned.after

    remember(storage, coats, shoppers(again=True))
    assert tune_own_past(storage, "coats", gate_threshold=THRESHOLD).after == OwnPast()
    assert reset_own_past(storage, "coats").after is None
    assert storage.collections.get("coats").own_past is None


def test_a_dry_run_stores_nothing(storage, coats):
    remember(storage, coats, shoppers(again=False))

    tuned = tune_own_past(storage, "coats", gate_threshold=THRESHOLD, dry_run=True)

    assert (tuned.after, tuned.is_stored) == (OwnPast(repeated_soon=0.0), False)
    assert storage.collections.get("coats").own_past is None


def test_where_people_come_back_for_the_same_nothing_is_stored(storage, coats):
    remember(storage, coats, shoppers(again=True))

    assert tune_own_past(storage, "coats", gate_threshold=THRESHOLD).after is None
    assert storage.collections.get("coats").own_past is None


def test_the_past_is_fitted_once_a_day(storage, coats):
    keeper = OwnPastKeeper(storage, gate_threshold=THRESHOLD)
    assert keeper.is_due(NOW)

    keeper.fit(NOW)

    assert not keeper.is_due(NOW + FIT_EVERY_SECONDS - 1)
    assert keeper.is_due(NOW + FIT_EVERY_SECONDS)


def test_a_worker_that_is_to_stop_does_not_fit_the_past_to_the_end(storage, coats):
    remember(storage, coats, shoppers(again=False))
    asked = []

    def is_over():
        asked.append(None)
        return len(asked) > 3

    OwnPastKeeper(storage, gate_threshold=THRESHOLD).fit(NOW, is_over)

    assert 3 < len(asked) < 10  # and not once for each user
    assert storage.collections.get("coats").own_past is None


def test_a_worker_fits_the_past_when_nobody_is_due(storage, coats, monkeypatch):
    remember(storage, coats, shoppers(again=False))
    stop = threading.Event()
    worker = Worker(
        Improver(storage, PassiveAggressiveAdjuster),
        storage,
        own_past=OwnPastKeeper(storage, gate_threshold=THRESHOLD),
    )
    monkeypatch.setattr(worker, "_wait", lambda stop: stop.set())

    worker.run(stop)

    assert storage.collections.get("coats").own_past == OwnPast(repeated_soon=0.0)


def test_a_collection_that_cannot_be_fitted_keeps_no_other_from_it(storage, coats, monkeypatch):
    storage.collections.create("a shop", coats.index)
    remember(storage, coats, shoppers(again=0))
    real = storage.personal.latest_memories

    def latest_memories(collection, count):
        if collection.name == "a shop":
            raise StorageUnavailableError("the statement took too long")
        return real(collection, count)

    monkeypatch.setattr(storage.personal, "latest_memories", latest_memories)
    OwnPastKeeper(storage, gate_threshold=0.75).fit(0)

    assert storage.collections.get(coats.name).own_past is not None
