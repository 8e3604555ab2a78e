"""Engines that search elsewhere: candidates in the order for one user, and a query as clicks bend it.

The world is that of ``test_search``: ``at30`` stands 30 degrees from the query.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.limits import MAX_CANDIDATES
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import ConflictError, InvalidInputError, InvalidVectorsError
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.memory import MemoryStorage
from test_search import ANGLES, QUERY, arc, at, distance_at, learn, learn_that_70_is_near, memory_of

__all__ = ["arc"]

NAMES = [f"at{degrees}" for degrees in ANGLES]


def ids(page):
    return [each.object_id for each in page.results]


def clicked(storage, page, object_id, now=2_000):
    storage.clickstream.push_events(
        [SessionEvent(session_id=page.session_id, object_id=object_id, created_at=now)]
    )
    Improver(storage, PassiveAggressiveAdjuster).improve_once()


# --- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", [None, "new", "far"])
def test_where_no_click_bears_on_a_query_the_order_stays_as_it_was_found(storage, arc, user_id):
    learn(storage, arc, "far", [memory_of(at(90)[0], at(70)[0], ["at10"])], {"at10": at(90)})
    found = ["at70", "gone", "at10", "at40"]

    page = SearchService(storage).rank(QUERY, found, user_id=user_id)

    assert ids(page) == found
    assert [each.given_position for each in page.results] == [1, 2, 3, 4]
    assert {each.distance_change for each in page.results} == {0}
    assert not page.personalised
    assert not any(each.personalised for each in page.results)
    assert page.unknown == ("gone",)


@pytest.mark.parametrize("metric", list(MetricType))
@pytest.mark.parametrize("aggregation", list(MetricAggregationType))
def test_candidates_that_were_found_by_the_same_distances_stand_as_a_search_has_them(
    storage, metric, aggregation
):
    index = SearchIndexInfo(dimensions=3, metric_type=metric, metric_aggregation_type=aggregation)
    films = storage.collections.create("default", index)
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(30, 2, 3)).astype(np.float32)
    storage.objects.upsert(films, [CatalogueObject(f"o{k:02}", parts) for k, parts in enumerate(vectors)])
    service = SearchService(storage)
    plain = ids(service.search(QUERY, limit=30))
    page = service.search(QUERY, user_id="ann", limit=30, create_session=True, now=1_000)
    clicked(storage, page, plain[20])

    searched = service.search(QUERY, user_id="ann", limit=30)
    ranked = service.rank(QUERY, plain, user_id="ann")

    assert ids(ranked) == ids(searched) != plain
    assert ranked.personalised
    before = {each.object_id: each.distance for each in service.search(QUERY, limit=30).results}
    for each, result in zip(ranked.results, searched.results, strict=True):
        change = result.distance - before[each.object_id]
        assert each.distance_change == pytest.approx(change, abs=1e-6)


def test_another_order_keeps_what_its_places_are_worth_by_hand(storage, arc):
    learn_that_70_is_near(storage, arc)

    page = SearchService(storage).rank(QUERY, ["at50", "at10", "at70", "at60"], user_id="ann")

    # At the places stand, sorted, the distances of 10, 50, 60 and 70 degrees; only at70 came nearer.
    change = distance_at(5) - distance_at(70)
    assert distance_at(60) + change < distance_at(10)
    assert ids(page) == ["at70", "at50", "at10", "at60"]
    assert [each.distance_change for each in page.results] == pytest.approx([change, 0, 0, 0], abs=1e-6)
    assert [each.given_position for each in page.results] == [3, 1, 2, 4]


def test_a_little_nearer_overtakes_little(storage, arc):
    memory = memory_of(QUERY, np.zeros(3, dtype=np.float32), ["at70"])
    learn(storage, arc, "ann", [memory], {"at70": at(65)})

    page = SearchService(storage).rank(QUERY, [*reversed(NAMES)], user_id="ann")

    # at70 stands first already; where it stands last it does not pass at60, which is 5 degrees nearer still
    assert ids(page) == [*reversed(NAMES)]
    assert ids(SearchService(storage).rank(QUERY, NAMES, user_id="ann")) == NAMES


@given(order=st.permutations([*NAMES, "x", "y"]))
def test_every_candidate_comes_back_once_and_unknown_ones_keep_their_places(order):
    storage = MemoryStorage()
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(collection, [CatalogueObject(f"at{degrees}", at(degrees)) for degrees in ANGLES])
    learn_that_70_is_near(storage, collection)

    page = SearchService(storage).rank(QUERY, order, user_id="ann")

    assert sorted(ids(page)) == sorted(order)
    for name in ("x", "y"):
        assert ids(page).index(name) == order.index(name)
    assert page.unknown == tuple(name for name in order if name in "xy")
    others = [name for name in ids(page) if name not in ("at70", "x", "y")]
    assert others == [name for name in order if name not in ("at70", "x", "y")]
    assert [each.position for each in page.results] == list(range(1, len(order) + 1))
    assert [order[each.given_position - 1] for each in page.results] == ids(page)


def test_vectors_that_a_candidate_brings_stand_for_those_that_the_collection_lacks_or_has(storage, arc):
    learn(storage, arc, "ann", [memory_of(QUERY, at(80)[0])])
    vectors = {"new": at(60)[0].tolist(), "at10": at(-80)}

    page = SearchService(storage).rank(QUERY, ["at60", "new", "at10"], vectors=vectors, user_id="ann")

    changes = {each.object_id: each.distance_change for each in page.results}
    assert changes["new"] == pytest.approx(changes["at60"])
    assert changes["at60"] < 0 < changes["at10"]
    assert page.unknown == ()


def test_no_candidates_is_an_empty_page(storage, arc):
    learn_that_70_is_near(storage, arc)

    assert SearchService(storage).rank(QUERY, [], user_id="ann").results == ()
    assert ids(SearchService(storage).rank(QUERY, ["x", "y"], user_id="ann")) == ["x", "y"]


# --- the loop -------------------------------------------------------------------------------------


def test_a_click_on_what_was_ranked_is_learnt_for_its_user_alone(storage, arc):
    service = SearchService(storage)
    found = ["at30", "gone", "at10", "at60"]
    page = service.rank(QUERY, found, user_id="ann", create_session=True, now=1_000)

    clicked(storage, page, "at60")

    again = service.rank(QUERY, found, user_id="ann")
    changes = {each.object_id: each.distance_change for each in again.results}
    assert min(changes, key=changes.__getitem__) == "at60"
    assert again.personalised
    assert ids(service.rank(QUERY, found, user_id="bob")) == found
    assert ids(service.search(QUERY, user_id="ann")) != NAMES


def test_what_is_returned_is_recorded_as_shown(storage, arc):
    learn_that_70_is_near(storage, arc)

    page = SearchService(storage).rank(
        QUERY,
        ["at10", "gone", "at70", "at20"],
        user_id="ann",
        limit=3,
        create_session=True,
        session_id="s",
        now=9,
    )

    session = storage.clickstream.get_session("s")
    assert ids(page) == ["at70", "gone", "at10"]
    assert [(each.object_id, each.position) for each in session.search_results] == [
        ("at70", 1),
        ("gone", 2),
        ("at10", 3),
    ]
    assert [each.personalised for each in session.search_results] == [True, False, True]
    assert (session.user_id, session.created_at, session.request) == ("ann", 9, None)
    with pytest.raises(ConflictError, match="another user"):
        SearchService(storage).rank(QUERY, ["at10"], user_id="bob", create_session=True, session_id="s")


# --- a query, bent --------------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", [None, "new", "far"])
def test_where_no_click_bears_on_a_query_it_comes_back_as_it_is(storage, arc, user_id):
    learn(storage, arc, "far", [memory_of(at(90)[0], at(70)[0], ["at10"])], {"at10": at(90)})

    bent = SearchService(storage).bent(QUERY, user_id=user_id)

    assert bent.queries.tolist() == [QUERY.tolist()]
    assert (bent.moved, bent.factors, bent.personalised) == ((), {}, False)


@pytest.mark.parametrize("metric", [MetricType.COSINE, MetricType.EUCLID])
def test_an_engine_that_does_what_is_said_finds_what_a_search_finds(storage, metric):
    """The rule of ``BentQuery``: search by the query's vectors, blend what moved, then apply the factors."""
    index = SearchIndexInfo(dimensions=3, metric_type=metric)
    films = storage.collections.create("default", index)
    rng = np.random.default_rng(5)
    originals = {f"o{k:02}": rng.normal(size=(1, 3)).astype(np.float32) for k in range(30)}
    storage.objects.upsert(films, [CatalogueObject(name, parts) for name, parts in originals.items()])
    service = SearchService(storage)
    plain = ids(service.search(QUERY, limit=30))
    for number, name in enumerate((plain[8], plain[29])):  # the last is unlike the query, and has a factor
        page = service.search(QUERY, user_id="ann", limit=30, create_session=True, now=1_000 + number)
        clicked(storage, page, name, 2_000 + number)

    bent = service.bent(QUERY, user_id="ann")

    assert bent.personalised
    assert bent.moved
    similar = dict(
        zip(originals, similarities_of(index, bent.queries, list(originals.values())), strict=True)
    )
    for each in bent.moved:
        [own] = similarities_of(index, bent.queries, [each.vectors])
        similar[each.object_id] = (1 - each.gate) * similar[each.object_id] + each.gate * own
    far = dict(zip(similar, distances(index, np.array(list(similar.values()))).tolist(), strict=True))
    far = {name: distance * bent.factors.get(name, 1.0) for name, distance in far.items()}
    found = service.search(QUERY, user_id="ann", limit=30)
    assert ids(found) == sorted(far, key=far.__getitem__)
    assert [each.distance for each in found.results] == pytest.approx(sorted(far.values()), abs=1e-6)
    assert metric is MetricType.EUCLID or min(bent.factors.values()) < 1


def test_bending_a_query_records_nothing(storage, arc):
    learn_that_70_is_near(storage, arc)

    SearchService(storage).bent(QUERY, user_id="ann")

    assert not list(storage.clickstream.scan())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"candidates": ["at10", "at20", "at10"]}, "'at10' stands at 0 and at 2"),
        ({"candidates": [f"o{k}" for k in range(MAX_CANDIDATES + 1)]}, "1,001 candidates are too many"),
        ({"candidates": [""]}, "candidate"),
        ({"candidates": ["a"], "limit": 0}, "limit is 0"),
        ({"candidates": ["a"], "vectors": {"b": [1, 0, 0]}}, "'b', which is no candidate"),
        ({"candidates": ["a"], "user_id": ""}, "user_id"),
    ],
)
def test_candidates_that_cannot_be_ranked_are_refused(storage, arc, asked, told):
    with pytest.raises(InvalidInputError, match=told):
        SearchService(storage).rank(QUERY, **asked)


def test_vectors_of_another_size_are_refused(storage, arc):
    with pytest.raises(InvalidVectorsError, match="candidate 'a'"):
        SearchService(storage).rank(QUERY, ["a"], vectors={"a": [1, 0]})
