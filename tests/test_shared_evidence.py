"""What others clicked for near queries, off unless it is asked for: from clicks to everybody's search.

The world is an arc: the object ``at30`` stands 30 degrees from the query that everybody sends.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, SeenObject, SharedObject
from embedding_studio.domain.sessions import RecordedSession, SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.personal import object_factors, shared_evidence, weighed_distances
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import InvalidSettingError
from embedding_studio.feedback.fold import MOST_SEEN, fold
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.settings import load_settings

ANGLES = (10, 20, 30, 40, 50, 60, 70)
INDEX = SearchIndexInfo(dimensions=3)
PLAIN = [f"at{degrees}" for degrees in ANGLES]


def at(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


def ids(page):
    return [result.object_id for result in page.results]


@pytest.fixture
def arc(storage):
    collection = storage.collections.create("default", INDEX)
    storage.objects.upsert(collection, [CatalogueObject(f"at{degrees}", at(degrees)) for degrees in ANGLES])
    return collection


class World:
    """Users who search and click in a storage, with what they click shared from three others on."""

    def __init__(self, storage, shared_min_users=3):
        self.storage = storage
        self.search = SearchService(storage, shared_min_users=shared_min_users).search
        self.improver = Improver(storage, PassiveAggressiveAdjuster, is_shared=shared_min_users > 0)
        self.clicks = 0

    def click(self, user_id, object_id, query=0.0):
        self.clicks += 1
        page = self.search(at(query)[0], user_id=user_id, create_session=True, now=self.clicks)
        [_] = self.storage.clickstream.push_events(
            [SessionEvent(session_id=page.session_id, object_id=object_id, created_at=self.clicks)]
        )
        self.improver.improve_once()

    def found(self, user_id, query=0.0, **asked):
        return self.search(at(query)[0], user_id=user_id, **asked)


@pytest.fixture
def world(storage, arc):
    return World(storage)


# --- the formula ----------------------------------------------------------------------------------


def test_others_count_together_as_one_memory_by_hand():
    means = np.array([[1, 0], [0, 3]], dtype=np.float32)

    gate, mean = shared_evidence(np.array([1.0, 0.5]), [2, 2], means, min_users=3)

    assert gate == pytest.approx(2 * 3 / (2 + 3))  # S = 1 * 2 + 0.5 * 2
    np.testing.assert_allclose(mean, [2 / 3, 1], rtol=1e-6)


@given(
    gates=st.lists(st.floats(0.01, 1), min_size=1, max_size=7),
    more=st.integers(1, 1000),
    data=st.data(),
)
def test_more_users_count_for_more_and_never_for_two_searches_of_ones_own(gates, more, data):
    users = data.draw(st.lists(st.integers(1, 1000), min_size=len(gates), max_size=len(gates)))
    means = np.random.default_rng(len(gates)).normal(size=(len(gates), 5)).astype(np.float32)

    few, _ = shared_evidence(np.array(gates), users, means, min_users=1)
    many, _ = shared_evidence(np.array(gates), [users[0] + more, *users[1:]], means, min_users=1)

    assert 0 < few <= many < 2


def test_where_one_stands_so_near_that_the_mean_would_be_theirs_nothing_is_told():
    means = np.array([[1, 0], [0, 1]], dtype=np.float32)

    assert shared_evidence(np.array([1.0, 0.02]), [1, 2], means, min_users=3) is None
    assert shared_evidence(np.array([1.0, 1.0]), [1, 2], means, min_users=3) is not None
    assert shared_evidence(np.array([0.1, 0.1]), [1, 2], means, min_users=3) is not None


def test_what_is_clicked_more_than_its_place_makes_likely_comes_nearer_by_hand():
    seen = [
        [SharedObject("ignored", 0, 0.0, 3.0), SharedObject("liked", 2, 2.0, 0.5)],
        [SharedObject("liked", 1, 1.0, 1.0), SharedObject("usual", 1, 0.5, 1.0)],
    ]

    factors = object_factors(np.array([1.0, 0.5]), [3, 1], seen, min_users=3)

    liked = (0.5 * (0.5 + 1 / 8) + 1.5) / (2 + 1 / 8 + 1.5)

    assert factors == pytest.approx({"ignored": 2**0.4, "liked": liked**0.4})


def test_where_most_places_are_not_known_clicks_decide_and_once_more_those_of_enough_for_the_same_query():
    same = [
        SharedObject("few", 2, 2.0, 0.0),
        SharedObject("many", 3, 3.0, 0.0),
        SharedObject("seen", 4, 4.0, 0.1),
        SharedObject("shown", 0, 0.0, 3.0),
    ]

    factors = object_factors(np.array([1.0]), [4], [same], min_users=3)
    nearly = object_factors(np.array([0.99]), [4], [same], min_users=3)

    assert factors == pytest.approx(
        {"few": 0.1 / 2.1, "many": 0.1 / 3.1 * 0.03 / 3.03, "seen": 0.1 / 4.1 * 0.03 / 4.03}
    )
    assert nearly["many"] == pytest.approx(0.1 / (0.1 + 3 * 0.99**3))


def test_one_account_that_hides_places_or_tells_of_some_does_not_change_how_all_others_count():
    honest = [SharedObject("liked", 9, 9.0, 5.0), SharedObject("shown", 0, 0.0, 9.0)]
    of_shop = [SharedObject("liked", 9, 9.0, 0.0)]

    [hidden, told] = (
        object_factors(np.array([1.0]), [9], [[*many, one]], min_users=3)
        for many, one in (
            (honest, SharedObject("mine", 1, 1.0, 0.0)),
            (of_shop, SharedObject("mine", 1, 1.0, 1.0)),
        )
    )

    assert hidden["mine"] == pytest.approx((1.5 / 2.5) ** 0.4)
    assert hidden["liked"] == object_factors(np.array([1.0]), [9], [honest], min_users=3)["liked"]
    assert told["liked"] == object_factors(np.array([1.0]), [9], [of_shop], min_users=3)["liked"]


@given(clicks=st.floats(0, 32), more=st.floats(0.1, 9), looks=st.floats(0, 32), gate=st.floats(0.1, 1))
def test_a_click_never_sends_an_object_away_and_a_look_never_brings_it_nearer(clicks, more, looks, gate):
    def factor(clicks, looks):
        seen = [[SharedObject("a", 3, clicks, looks)]]
        return object_factors(np.array([gate]), [3], seen, min_users=3).get("a", 1.0)

    assert 0 < factor(clicks + more, looks) <= factor(clicks, looks) <= factor(clicks, looks + more)


@pytest.mark.parametrize("metric_type", list(MetricType))
@pytest.mark.parametrize("aggregation", list(MetricAggregationType))
def test_what_a_factor_makes_of_a_distance_stays_between_the_least_there_is_and_the_distance(
    metric_type, aggregation
):
    rng = np.random.default_rng(0)
    index = SearchIndexInfo(dimensions=4, metric_type=metric_type, metric_aggregation_type=aggregation)
    queries = rng.normal(size=(2, 4)).astype(np.float32)
    objects = [rng.normal(size=(P, 4)).astype(np.float32) for P in (1, 2, 3, 1)]
    found = distances(index, similarities_of(index, queries, objects))

    def weighed(factor):
        return weighed_distances(index, queries, found, np.full(4, factor), objects)

    assert (weighed(1.0) == found).all()
    assert (weighed(1e-9) <= weighed(0.5)).all()
    assert (weighed(0.5) <= found).all()
    assert (found <= weighed(2.0)).all()
    if metric_type is MetricType.DOT and aggregation is MetricAggregationType.MIN:
        longest = [np.linalg.norm(parts, axis=1).max() for parts in objects]
        least = -np.linalg.norm(queries, axis=1).max() * np.array(longest)
        np.testing.assert_allclose(weighed(1e-9), least, rtol=1e-5)


# --- what a user says to others ---------------------------------------------------------------------


def recorded(session_id, clicked, *, query=0.0, text="", created_at=100, user_id="ann"):
    return RecordedSession(
        Session(
            session_id=session_id,
            user_id=user_id,
            search_query=text,
            created_at=created_at,
            search_results=tuple(SearchResultItem(object_id=name) for name in PLAIN),
            events=(SessionEvent(session_id=session_id, object_id=clicked, created_at=created_at),),
        ),
        at(query),
    )


def votes_of(*sessions):
    originals = {f"at{degrees}": at(degrees) for degrees in ANGLES}
    return (
        fold(sessions, originals, PassiveAggressiveAdjuster(INDEX), INDEX, is_shared=True).states["ann"].votes
    )


def test_a_query_asked_often_is_one_vote_for_the_mean_of_what_was_clicked():
    (vote,) = votes_of(
        recorded("1", "at30", text="Red  shoes", created_at=100),
        recorded("2", "at50", text=" red shoes\n", created_at=200, query=1e-4),
    )

    np.testing.assert_allclose(vote.clicked_mean, (at(30)[0] + at(50)[0]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(vote.query, at(1e-4)[0])
    assert vote.created_at == 200


def test_queries_without_a_text_are_the_same_where_their_vectors_are():
    one, two = votes_of(recorded("1", "at30"), recorded("2", "at40"), recorded("3", "at50", query=5.0))

    np.testing.assert_allclose(one.clicked_mean, (at(30)[0] + at(40)[0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(two.clicked_mean, at(50)[0], rtol=1e-6)
    assert one.query_key != two.query_key


def test_a_vote_does_not_hold_the_text_of_the_query():
    (vote,) = votes_of(recorded("1", "at30", text="my secret"))

    assert len(vote.query_key) == 64
    assert "secret" not in str(vote)


def test_nothing_is_said_to_others_unless_it_is_asked_for():
    originals = {f"at{degrees}": at(degrees) for degrees in ANGLES}

    folded = fold([recorded("1", "at30")], originals, PassiveAggressiveAdjuster(INDEX), INDEX)

    assert folded.states["ann"].votes == ()


def test_a_vote_tells_what_was_clicked_and_where_that_is_known_looked_at():
    unknown = Session(
        session_id="2",
        user_id="ann",
        created_at=101,
        events=(SessionEvent(session_id="2", object_id="at30", created_at=101),),
    )

    (vote,) = votes_of(recorded("1", "at20", created_at=100), RecordedSession(unknown, at(0)))

    assert vote.seen == (
        SeenObject("at10", 0.0, 1 / 2),  # looked at in one of two sessions
        SeenObject("at20", 0.5, 1 / 4),
        SeenObject("at30", 0.5, 1 / 6),
        *(SeenObject(f"at{10 * position}", 0.0, 1 / position / 2) for position in (4, 5, 6, 7)),
    )


def test_a_click_far_down_is_held_against_its_place_and_a_result_shown_twice_against_its_first():
    shown = ("twice", *(f"o{place}" for place in range(2, 12)), "twice", "unclicked")
    session = Session(
        session_id="1",
        user_id="ann",
        search_results=tuple(SearchResultItem(object_id=name) for name in shown),
        events=tuple(SessionEvent(session_id="1", object_id=name) for name in ("o11", "twice")),
    )
    originals = {name: at(place) for place, name in enumerate(shown)}

    [vote] = (
        fold(
            [RecordedSession(session, at(0))],
            originals,
            PassiveAggressiveAdjuster(INDEX),
            INDEX,
            is_shared=True,
        )
        .states["ann"]
        .votes
    )

    told = {each.object_id: each for each in vote.seen}
    assert told["o11"] == SeenObject("o11", 1.0, 1 / 11)
    assert told["twice"] == SeenObject("twice", 1.0, 1.0)
    assert "unclicked" not in told


def test_a_vote_tells_of_so_many_objects_however_many_were_clicked_or_said_to_be_shown():
    names = [f"o{n:03}" for n in range(2 * MOST_SEEN)]
    sessions = [
        Session(
            session_id=session_id,
            user_id="ann",
            created_at=int(session_id),
            search_results=tuple(SearchResultItem(object_id=name, position=1) for name in shown),
            events=tuple(SessionEvent(session_id=session_id, object_id=name) for name in clicked),
        )
        for session_id, shown, clicked in (("1", (), names), ("2", names, names[-3:]), ("3", (), names[-9:]))
    ]
    originals = {name: at(n / 10) for n, name in enumerate(names)}

    folded = fold(
        [RecordedSession(session, at(0)) for session in sessions],
        originals,
        PassiveAggressiveAdjuster(INDEX),
        INDEX,
        is_shared=True,
    )

    [vote] = folded.states["ann"].votes
    assert [each.object_id for each in vote.seen] == names[: MOST_SEEN - 9] + names[-9:]
    assert vote.seen[0] == SeenObject("o000", 1 / 3, 1 / 3)
    assert vote.seen[-1] == SeenObject(names[-1], 1.0, 1 / 3)


# --- from clicks to everybody's search ------------------------------------------------------------


def test_what_enough_others_clicked_comes_nearer_for_somebody_new_and_for_nobody_known(world):
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at70")

    for user_id in ("new", None):
        page = world.found(user_id, limit=3)
        # k = 6 / 5, so the pull is 6 / 11 towards 70 degrees, and the query turns by 23.36
        assert ids(page) == ["at20", "at30", "at10"]
        # at20 was looked at by each with probability 1/2, and clicked by nobody
        factor = ((0.5 * 1.5 + 1.5) / 1.5) ** 0.4
        gap = 1 - math.cos(math.radians(23.36 - 20))
        assert page.results[0].distance == pytest.approx(factor * gap, abs=1e-5)
        assert page.personalised


def test_what_fewer_clicked_changes_nothing_in_any_bit(world):
    before = world.found("new")
    for user_id in ("ann", "bob"):
        world.click(user_id, "at40")

    assert world.found("new") == before
    assert world.found(None) == before


def test_a_user_does_not_count_among_the_others_of_their_own_search(world):
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at40")

    explained = world.found("ann", explain=True).results[0].explanation

    assert explained.shared is None  # bob and cid are two
    assert [influence.gate for influence in explained.influences] == [pytest.approx(1)]


def test_one_user_however_busy_is_one(world):
    before = world.found("new")
    for query in (0.0, 1.0, 2.0, 3.0):
        world.click("busy", "at70", query)
        world.click("busy", "at70", query)

    assert world.found("new") == before


def test_queries_that_others_never_asked_for_are_plain(storage, arc, world):
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at40")

    far = world.found("new", query=-60.0)

    assert far == SearchService(storage).search(at(-60.0)[0], user_id="new")
    assert not far.personalised


def test_who_does_not_ask_for_it_gets_the_plain_search_whatever_others_did(storage, arc):
    world = World(storage)
    before = world.found("new")
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at40")

    assert SearchService(storage).search(at(0)[0], user_id="new") == before


def test_what_others_clicked_appears_however_far_away_it_is(storage, world, arc):
    for user_id in "abcdef":
        told = Session(session_id=user_id, user_id=user_id, search_query="red")
        storage.clickstream.register_session(told, at(-40))
        storage.clickstream.push_events([SessionEvent(session_id=user_id, object_id="at70")])
        world.improver.improve_once()

    for user_id in ("new", None):
        page = world.found(user_id, query=-40, limit=1, explain=True)
        assert ids(page) == ["at70"]
        shared = page.results[0].explanation.shared
        assert shared.factor == pytest.approx(0.1 / 6.1 * 0.03 / 6.03, rel=1e-5)  # clicks are seconds old
        change = page.results[0].distance - page.results[0].explanation.base_distance
        assert shared.distance_change == pytest.approx(change, abs=1e-6)

    storage.objects.delete(arc, ["at70"])
    assert "at70" not in ids(world.found("new", query=-40))


@pytest.mark.parametrize("metric_type", list(MetricType))
@pytest.mark.parametrize("aggregation", list(MetricAggregationType))
def test_a_short_list_begins_the_long_one_whatever_others_bring_nearer_or_send_away(
    storage, metric_type, aggregation
):
    rng = np.random.default_rng(5)
    index = SearchIndexInfo(dimensions=6, metric_type=metric_type, metric_aggregation_type=aggregation)
    collection = storage.collections.create("default", index)
    storage.objects.upsert(
        collection,
        [
            CatalogueObject(
                f"o{n:02}",
                rng.normal(size=(1 + n % 3, 6)).astype(np.float32),
                {"kind": "odd" if n % 2 else "even"},
            )
            for n in range(60)
        ],
    )
    world = World(storage)
    query = rng.normal(size=6).astype(np.float32)
    everything = ids(world.search(query, user_id=None, limit=60))
    for n, user_id in enumerate(("ann", "bob", "cid", "dan", "eve")):
        page = world.search(query, user_id=user_id, create_session=True, now=n)
        clicked = (everything[40 + n], everything[33]) if n % 2 else (ids(page)[n], everything[50])
        shown = [SearchResultItem(object_id=each) for each in clicked]
        storage.clickstream.append_results(page.session_id, shown)
        storage.clickstream.push_events(
            [SessionEvent(session_id=page.session_id, object_id=each, created_at=n) for each in clicked]
        )
        world.improver.improve_once()

    for user_id in ("ann", "new", None):
        for wanted in (None, PayloadFilter.parse({"query": {"term": {"field": "kind", "value": "even"}}})):

            def found(limit, max_distance=None, user_id=user_id, wanted=wanted):
                return world.search(
                    query, user_id=user_id, limit=limit, filter=wanted, max_distance=max_distance
                )

            whole = found(60)
            assert ids(whole) != ids(SearchService(storage).search(query, limit=60, filter=wanted))
            assert [r.distance for r in whole.results] == sorted(r.distance for r in whole.results)
            for limit in (1, 2, 5, 11, 30):
                page = found(limit)
                near = [r.distance for r in whole.results[:limit]]
                assert ids(page) == ids(whole)[:limit]
                assert [r.distance for r in page.results] == pytest.approx(near, abs=1e-6)
            assert ids(found(60, max_distance=whole.results[12].distance + 1e-6)) == ids(whole)[:13]


def test_what_is_as_near_as_can_be_is_ordered_by_id_whatever_others_did(storage, world, arc):
    storage.objects.upsert(arc, [CatalogueObject("a", at(0)), CatalogueObject("b", at(0))])
    for user_id in ("ann", "bob", "cid"):
        storage.clickstream.register_session(Session(session_id=user_id, user_id=user_id), at(0))
        storage.clickstream.push_events([SessionEvent(session_id=user_id, object_id="b")])
        world.improver.improve_once()

    page = world.found("new", limit=2, explain=True)

    assert [result.distance for result in page.results] == [0, 0]
    assert [result.explanation.shared.factor < 1 for result in page.results] == [False, True]
    assert ids(page) == ["a", "b"]


def test_what_others_clicked_is_explained_without_a_name(world):
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at40")

    page = world.found("new", explain=True)

    for result in page.results:
        assert result.explanation.influences == ()
        assert result.explanation.shared.users == 3
        assert result.explanation.shared.gate == pytest.approx(6 / 5, abs=1e-5)
        change = result.explanation.distance - result.explanation.base_distance
        assert result.explanation.shared.distance_change == pytest.approx(change, abs=1e-6)
    at40 = next(result for result in page.results if result.object_id == "at40")
    assert at40.explanation.shared.distance_change < 0
    assert "ann" not in str(page)


def test_a_query_that_one_asked_and_others_nearly_tells_nothing_of_the_one(world):
    before = world.found("new")
    world.click("ann", "at70")
    for user_id in ("bob", "cid"):
        world.click(user_id, "at40", query=41.2)  # the gate is just open

    assert world.found("new") == before


def test_what_others_clicked_for_other_words_brings_objects_nearer_and_leaves_the_query_where_it_is(
    storage, arc, world
):
    """Their queries stand at 50 degrees: too far for the gate, and within 1.8 times its reach."""
    before = world.found("new")
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at70", query=50.0)

    page, plain = world.found("new"), SearchService(storage).search(at(0)[0], user_id="new")

    assert before == plain
    far = {each.object_id: each.distance for each in plain.results}
    changes = {each.object_id: each.distance - far[each.object_id] for each in page.results}
    assert changes["at70"] < 0
    assert changes["at10"] >= 0  # nobody clicked it, and a query that turned would have left it
    assert world.found("new", query=-10.0) == SearchService(storage).search(at(-10.0)[0], user_id="new")


def test_one_who_asked_the_same_is_not_hidden_among_many_who_asked_something_else(world, storage):
    world.click("ann", "at70")
    for number in range(10):
        world.click(f"other {number}", "at40", query=50.0)

    assert world.found("new") == SearchService(storage).search(at(0)[0], user_id="new")


def test_under_euclid_whom_the_gate_shuts_out_does_not_make_up_the_number(storage):
    collection = storage.collections.create(
        "default", SearchIndexInfo(dimensions=3, metric_type=MetricType.EUCLID)
    )
    storage.objects.upsert(collection, [CatalogueObject(f"at{degrees}", at(degrees)) for degrees in ANGLES])
    world = World(storage)
    before = world.found("new")
    world.click("ann", "at70")
    for user_id, angle in (("bob", 1.0), ("cid", 2.0)):
        page = world.search(10 * at(angle)[0], user_id=user_id, create_session=True)
        storage.clickstream.push_events([SessionEvent(session_id=page.session_id, object_id="at40")])
        world.improver.improve_once()

    assert world.found("new") == before


def test_a_vote_for_a_text_with_another_direction_does_not_turn_the_votes_of_others(world):
    def click(user_id, object_id, direction):
        page = world.search(at(direction)[0], user_id=user_id)
        session = Session(
            session_id=f"{user_id}-{direction}",
            user_id=user_id,
            search_query="red shoes",
            search_results=tuple(SearchResultItem(object_id=found) for found in ids(page)),
        )
        world.storage.clickstream.register_session(session, at(direction))
        world.storage.clickstream.push_events(
            [SessionEvent(session_id=session.session_id, object_id=object_id)]
        )
        world.improver.improve_once()

    click("mallory", "at10", -80.0)
    for user_id in ("ann", "bob", "cid"):
        click(user_id, "at70", 0.0)

    assert ids(world.found("new", limit=1)) == ["at20"]
    assert not world.found("new", query=-80.0).personalised


def test_without_a_shift_there_is_nothing_that_others_could_do(storage, arc, world):
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at70")

    page = SearchService(storage, query_shift=0, shared_min_users=3).search(at(0)[0], user_id="new")

    assert page == SearchService(storage).search(at(0)[0], user_id="new")


def test_more_users_than_votes_are_looked_at_can_be_asked_for(storage, arc):
    world = World(storage, shared_min_users=35)
    for n in range(34):
        world.click(f"user-{n}", "at70")
    assert not world.found("new").personalised

    world.click("one more", "at70")

    assert world.found("new").personalised


def test_a_user_with_clicks_of_their_own_has_both(world):
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at30")
    world.click("dan", "at70")

    page = world.found("dan", explain=True)

    explained = page.results[0].explanation
    assert len(explained.influences) == 1
    assert explained.shared.users == 3
    assert explained.shared.distance_change != 0


def test_a_forgotten_user_no_longer_counts(world):
    before = world.found("new")
    for user_id in ("ann", "bob", "cid"):
        world.click(user_id, "at40")
    assert world.found("new") != before

    world.storage.clickstream.forget_user("bob")

    assert world.found("new") == before


def test_a_session_marked_irrelevant_takes_its_vote_back(world):
    before = world.found("new")
    for user_id in ("ann", "bob"):
        world.click(user_id, "at40")
    page = world.search(at(0)[0], user_id="cid", create_session=True)
    world.storage.clickstream.push_events([SessionEvent(session_id=page.session_id, object_id="at40")])
    world.improver.improve_once()
    assert world.found("new") != before

    world.storage.clickstream.mark_irrelevant(page.session_id)
    world.improver.improve_once()

    assert world.found("new") == before


def test_turning_it_off_takes_votes_back_as_users_are_learnt_anew(storage, arc):
    on, off = World(storage), World(storage, shared_min_users=0)
    for user_id in ("ann", "bob", "cid"):
        on.click(user_id, "at40")

    off.click("cid", "at40")

    assert not on.found("new").personalised


def test_turned_on_later_it_counts_what_was_clicked_before_once_everyone_is_learnt_anew(storage, arc):
    off, on = World(storage, shared_min_users=0), World(storage)
    for user_id in ("ann", "bob", "cid"):
        off.click(user_id, "at70")
    assert not on.found("new").personalised

    storage.collections.order_for_everyone(arc.name)
    on.improver.improve_once()

    assert ids(on.found("new", limit=1)) == ["at20"]


@pytest.mark.parametrize("given_users", [-1, 1])
def test_a_number_of_users_that_tells_of_one_is_refused(given_users):
    with pytest.raises(InvalidSettingError, match="SHARED_MIN_USERS"):
        load_settings(shared_min_users=given_users)
