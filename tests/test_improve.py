"""A world on an arc: the object ``at30`` stands 30 degrees from the query that everybody sends."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, Collection, PersonalState
from embedding_studio.domain.sessions import (
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import EmbeddingError, OrderNotFoundError, StorageUnavailableError
from embedding_studio.feedback.fold import fold
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage

DONE = SessionForImprovementStatus.DONE
REFUSED = SessionForImprovementStatus.REFUSED
FAILED = SessionForImprovementStatus.FAILED
PENDING = SessionForImprovementStatus.PENDING

INDEX = SearchIndexInfo(dimensions=3)
ANGLES = (10, 20, 30, 40, 50)


def at(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


QUERY = at(0)
ORIGINALS = {f"at{degrees}": at(degrees) for degrees in ANGLES}
ALL = tuple(ORIGINALS)


def session_of(
    session_id: str,
    clicked: Sequence[str] = ("at40",),
    *,
    user_id: str | None = "ann",
    shown: Sequence[str] = ALL,
    kind: str = "click",
    created_at: int = 100,
    text: str = "",
    collection: str = "default",
) -> Session:
    return Session(
        session_id=session_id,
        user_id=user_id,
        search_query=text,
        created_at=created_at,
        collection=collection,
        search_results=tuple(SearchResultItem(object_id=name) for name in shown),
        events=tuple(
            SessionEvent(session_id=session_id, object_id=name, event_type=kind, created_at=created_at + 1)
            for name in clicked
        ),
    )


def recorded(session_id: str, clicked: Sequence[str] = ("at40",), query=QUERY, **given) -> RecordedSession:
    return RecordedSession(session_of(session_id, clicked, **given), query)


def assert_same_state(one: PersonalState, other: PersonalState) -> None:
    assert [memory.session_id for memory in one.memories] == [memory.session_id for memory in other.memories]
    for mine, theirs in zip(one.memories, other.memories, strict=True):
        assert (mine.clicked_ids, mine.moved_ids) == (theirs.clicked_ids, theirs.moved_ids)
        np.testing.assert_array_equal(mine.query, theirs.query)
        np.testing.assert_array_equal(mine.clicked_mean, theirs.clicked_mean)
    assert one.vectors.keys() == other.vectors.keys()
    for name, vectors in one.vectors.items():
        np.testing.assert_array_equal(vectors, other.vectors[name])


def folded(sessions, adjuster=None, **settings):
    return fold(sessions, ORIGINALS, adjuster or PassiveAggressiveAdjuster(INDEX), INDEX, **settings)


class Moving:
    """An adjuster of a plugin's: does to every clicked vector what it is told to."""

    def __init__(self, move) -> None:
        self.move = move

    def adjust_vectors(self, improvement_inputs):
        return [
            ImprovementInput(
                each.session_id,
                each.query,
                tuple(
                    ImprovementElement(element.id, self.move(each, element), element.weight)
                    for element in each.clicked_elements
                ),
                each.non_clicked_elements,
                each.user_id,
            )
            for each in improvement_inputs
        ]


class Poisoned(PassiveAggressiveAdjuster):
    """Fails on any batch that holds one of the sessions named."""

    def __init__(self, *session_ids: str, saying: str = "boom") -> None:
        super().__init__(INDEX)
        self.session_ids, self.saying = session_ids, saying

    def adjust_vectors(self, improvement_inputs):
        if any(each.session_id in self.session_ids for each in improvement_inputs):
            raise RuntimeError(self.saying)
        return super().adjust_vectors(improvement_inputs)


# --- the fold -------------------------------------------------------------------------------------


def test_a_session_is_remembered_with_its_query_its_clicks_and_what_it_moved():
    result = folded([recorded("s", ["at40"], query=2 * QUERY, text="how to")])

    (memory,) = result.states["ann"].memories
    assert (memory.session_id, memory.search_query, memory.created_at) == ("s", "how to", 100)
    np.testing.assert_allclose(memory.query, [1, 0, 0])
    np.testing.assert_allclose(memory.clicked_mean, at(40)[0], atol=1e-6)
    assert memory.clicked_ids == ("at40",)
    assert memory.moved_ids == tuple(sorted(result.states["ann"].vectors))
    assert "at40" in memory.moved_ids
    assert result.outcomes["s"].status is DONE


def test_what_was_clicked_comes_nearer_and_what_was_passed_over_above_it_goes_away():
    vectors = folded([recorded("s")]).states["ann"].vectors

    assert vectors["at40"][0, 0] > at(40)[0, 0]
    assert vectors["at10"][0, 0] < at(10)[0, 0]


def test_all_sessions_count_not_only_the_last():
    first, second = recorded("s1", ["at40"]), recorded("s2", ["at50"], created_at=200)

    both = folded([first, second]).states["ann"]

    assert [memory.session_id for memory in both.memories] == ["s1", "s2"]
    assert "at40" in both.vectors
    assert "at40" not in folded([second]).states["ann"].vectors


def test_a_session_moved_only_what_it_changed_itself():
    far = at(90)
    sessions = [
        recorded("s1", ["at40"]),
        recorded("s2", ["at50"], query=far, shown=["at50", "at40"], created_at=200),
    ]

    memories = folded(sessions).states["ann"].memories

    assert memories[0].moved_ids
    assert memories[1].moved_ids == ()  # at50 stands 40 degrees from this query, at40 more: nothing to mend


@pytest.mark.parametrize("num_iterations", [10, 15, 50])
def test_however_often_sessions_are_swept_each_moved_what_it_moved_itself(num_iterations):
    q_a, q_b = at(0), np.array([[0, 0, 1]], dtype=np.float32)
    tilted = {name: np.array([[x, 0.3, z]], dtype=np.float32) for name, (x, z) in
              {"X": (0.3, 0.5), "Y": (0.2, 0.9), "Z": (0.9, 0.2)}.items()}  # fmt: skip
    sessions = [
        recorded("a", ["Z"], query=q_a, shown=["Z", "X"]),
        recorded("b", ["X"], query=q_b, shown=["Y", "X"], created_at=200),
    ]

    result = fold(sessions, tilted, PassiveAggressiveAdjuster(INDEX, num_iterations=num_iterations), INDEX)

    first, second = result.states["ann"].memories
    assert (first.moved_ids, second.moved_ids) == ((), ("X", "Y"))


def test_where_lengths_differ_a_session_is_remembered_by_what_told_its_clicks_apart():
    index = SearchIndexInfo(dimensions=3, metric_type=MetricType.DOT)
    originals = {"at10": at(10), "at60": 3 * at(60)}
    session = recorded("s", ["at60"], shown=["at10", "at60"])

    state = fold([session], originals, PassiveAggressiveAdjuster(index), index).states["ann"]

    # Lengths 1 and 3 differ by far more than 0.05 of their mean, so the mean of both directions is taken out.
    expected = at(60)[0] - (at(10)[0] + at(60)[0]) / 2
    np.testing.assert_allclose(state.memories[0].clicked_mean, expected, atol=1e-6)


def test_a_session_is_remembered_by_how_like_its_query_each_click_is():
    originals = {"like": at(20), "unlike": at(90)}
    session = recorded("s", ["unlike", "like"], shown=["unlike", "like"])

    [remembered] = fold([session], originals, PassiveAggressiveAdjuster(INDEX), INDEX).states["ann"].memories
    [alike] = (
        fold([recorded("s", ["like"], shown=["like"])], originals, PassiveAggressiveAdjuster(INDEX), INDEX)
        .states["ann"]
        .memories
    )

    assert remembered.clicked_ids == ("like", "unlike")
    np.testing.assert_allclose(remembered.likeness, (1.0, 0.0), atol=1e-6)
    assert alike.likeness == ()


def test_a_session_without_contrast_is_remembered_and_says_that_nothing_moved():
    sessions = [
        recorded("all clicked", ["at10", "at20"], shown=["at10", "at20"]),
        recorded("no results", ["at40"], shown=[]),
    ]

    result = folded(sessions)

    assert [memory.session_id for memory in result.states["ann"].memories] == ["all clicked", "no results"]
    assert result.states["ann"].vectors == {}
    for session in sessions:
        outcome = result.outcomes[session.session.session_id]
        assert outcome.status is DONE
        assert "no result passed over" in outcome.detail


def test_a_click_on_what_stood_clear_already_is_done_and_says_so():
    outcome = folded([recorded("s", ["at10"], shown=["at10", "at50"])]).outcomes["s"]

    assert outcome.status is DONE
    assert "nothing had to move" in outcome.detail


@pytest.mark.parametrize(
    ("session", "says"),
    [
        (recorded("s", user_id=None), "anonymous"),
        (recorded("s", []), "no clicks"),
        (recorded("s", kind="impression"), "no clicks"),
        (recorded("s", ["gone"], shown=["at10", "gone"]), "exists any more"),
        (recorded("s", ["at40"], shown=["at10"]), "among the results"),
        (recorded("s", query=None), "neither a query text nor query vectors"),
        (recorded("s", query=None, text="shoes"), "no embedder"),
        (recorded("s", query=np.full((1, 3), np.nan, np.float32)), "not finite"),
    ],
)
def test_a_session_of_no_use_is_refused_and_the_others_are_learnt(session, says):
    result = folded([session, recorded("good", created_at=200)])

    assert result.outcomes["s"].status is REFUSED
    assert says in result.outcomes["s"].detail
    assert_same_state(result.states["ann"], folded([recorded("good", created_at=200)]).states["ann"])


@pytest.mark.parametrize("metric_type", MetricType)
def test_no_adjuster_takes_a_vector_out_of_its_trust_region(metric_type):
    index = SearchIndexInfo(dimensions=3, metric_type=metric_type)
    originals = {name: 3 * vectors for name, vectors in ORIGINALS.items()}
    away = Moving(lambda *_: np.array([[0, 0, 9]], np.float32))

    (vectors,) = (
        fold([recorded("s")], originals, away, index, max_angle_degrees=15).states["ann"].vectors.values()
    )

    moved, original = vectors[0].astype(float), originals["at40"][0].astype(float)
    if metric_type is MetricType.EUCLID:
        assert np.linalg.norm(moved - original) <= 2 * 3 * math.sin(math.radians(7.5)) + 1e-5
    else:
        angle = math.degrees(math.acos(moved @ original / np.linalg.norm(moved) / np.linalg.norm(original)))
        assert angle == pytest.approx(15, abs=0.01)
        assert np.linalg.norm(moved) == pytest.approx(3, rel=1e-5)
    raw = fold([recorded("s")], originals, away, index, max_angle_degrees=None).states["ann"].vectors["at40"]
    np.testing.assert_array_equal(raw, [[0, 0, 9]])


def test_an_object_that_was_moved_back_has_no_personal_vectors():
    there_and_back = Moving(
        lambda each, element: at(45) if each.session_id == "s1" else ORIGINALS[element.id].copy()
    )

    state = folded([recorded("s1"), recorded("s2", created_at=200)], there_and_back).states["ann"]

    assert state.vectors == {}
    assert [memory.moved_ids for memory in state.memories] == [("at40",), ("at40",)]


def test_folding_leaves_the_originals_as_they_are():
    before = {name: vectors.copy() for name, vectors in ORIGINALS.items()}

    folded([recorded("s1"), recorded("s2", ["at50"], created_at=200)])

    for name, vectors in before.items():
        np.testing.assert_array_equal(ORIGINALS[name], vectors)


def test_a_session_on_which_the_adjuster_fails_harms_no_other(caplog):
    good = [
        recorded("a1", user_id="ann"),
        recorded("b1", ["at50"], user_id="bob"),
        recorded("b3", ["at30"], user_id="bob", created_at=300),
    ]
    bad = recorded("bad", user_id="bob", created_at=200)

    with caplog.at_level(logging.ERROR):
        result = folded([*good, bad], Poisoned("bad"))

    assert result.outcomes["bad"].status is FAILED
    assert result.outcomes["bad"].detail == "RuntimeError: boom"
    assert caplog.messages[-1] == "a session could not be learnt from; its order says why"
    for user_id in ("ann", "bob"):
        assert_same_state(result.states[user_id], folded(good).states[user_id])


def test_a_user_whose_sessions_fail_only_together_harms_no_other():
    class FailsOnTwoOfBob(PassiveAggressiveAdjuster):
        def adjust_vectors(self, improvement_inputs):
            if sum(each.user_id == "bob" for each in improvement_inputs) > 1:
                raise MemoryError
            return super().adjust_vectors(improvement_inputs)

    sessions = [recorded("a"), recorded("b1", user_id="bob"), recorded("b2", user_id="bob")]

    result = folded(sessions, FailsOnTwoOfBob(INDEX))

    assert {key: outcome.status for key, outcome in result.outcomes.items()} == {
        "a": DONE,
        "b1": FAILED,
        "b2": FAILED,
    }
    assert_same_state(result.states["bob"], PersonalState())


@pytest.mark.parametrize(
    ("adjuster", "says"),
    [
        (Moving(lambda _, element: np.full_like(element.vector, np.nan)), "not finite"),
        (Moving(lambda *_: np.ones((2, 3), np.float32)), "another object than 'at40'"),
        (type("Forgetful", (), {"adjust_vectors": lambda *_: []})(), "0 sessions for 1"),
        (
            type("Renaming", (), {"adjust_vectors": lambda _, given: [replace(given[0], session_id="t")]})(),
            "other sessions than 's'",
        ),
    ],
)
def test_an_adjuster_that_breaks_its_promise_fails_the_session_and_moves_nothing(adjuster, says):
    result = folded([recorded("s")], adjuster)

    assert result.outcomes["s"].status is FAILED
    assert says in result.outcomes["s"].detail
    assert_same_state(result.states["ann"], PersonalState())


@st.composite
def logs(draw) -> list[RecordedSession]:
    """Return sessions of a few users: any clicks, any results, many within one instant."""
    number = draw(st.integers(1, 7))
    return [
        recorded(
            f"s{i}",
            draw(st.lists(st.sampled_from(ALL), unique=True, max_size=3)),
            user_id=draw(st.sampled_from(["ann", "bob", "cem"])),
            shown=draw(st.lists(st.sampled_from(ALL), unique=True)),
            created_at=draw(st.integers(100, 102)),
            query=at(draw(st.sampled_from([0, 25, 45]))),
        )
        for i in range(number)
    ]


@given(log=logs(), data=st.data())
def test_the_order_in_which_sessions_arrive_changes_nothing(log, data):
    arrived = data.draw(st.permutations(log))

    one, other = folded(log), folded(arrived)

    assert one.outcomes == other.outcomes
    for user_id, state in one.states.items():
        assert_same_state(state, other.states[user_id])


@given(log=logs())
def test_who_else_is_in_the_batch_changes_nothing(log):
    together = folded(log)

    for user_id, state in together.states.items():
        alone = folded([each for each in log if each.session.user_id == user_id])
        assert_same_state(state, alone.states[user_id])


# --- the pass -------------------------------------------------------------------------------------


def open_catalogue(storage: Storage) -> Collection:
    collection = storage.collections.create("default", INDEX)
    storage.objects.upsert(collection, [CatalogueObject(name, parts) for name, parts in ORIGINALS.items()])
    return collection


@pytest.fixture
def arc(storage: Storage) -> Collection:
    return open_catalogue(storage)


def improver_of(storage: Storage, adjuster=None, **settings) -> Improver:
    return Improver(
        storage,
        PassiveAggressiveAdjuster if adjuster is None else lambda _: adjuster,
        **{"backoff_seconds": 0, **settings},
    )


def register(storage: Storage, *sessions: RecordedSession) -> None:
    for each in sessions:
        storage.clickstream.register_session(each.session, each.query_vectors)


def outcome_of(storage: Storage, session_id: str) -> tuple[SessionForImprovementStatus, str | None]:
    order = storage.orders.get(session_id)
    return order.status, order.detail


def first_result(storage: Storage, user_id: str | None) -> str:
    return SearchService(storage).search(QUERY, user_id=user_id, limit=1).results[0].object_id


def test_a_click_changes_what_its_user_finds_and_nobody_else(storage, arc):
    register(storage, *[recorded(f"s{i}", ["at20"], created_at=100 + i) for i in range(3)])

    report = improver_of(storage).improve_once()

    assert (report.orders, report.users, report.learnt) == (3, 1, 3)
    assert (report.refused, report.failed) == ({}, {})
    assert report.seconds > 0
    assert outcome_of(storage, "s0")[0] is DONE
    assert [first_result(storage, user_id) for user_id in ("ann", "bob", None)] == ["at20", "at10", "at10"]
    assert improver_of(storage).improve_once().users == 0


def test_the_loop_never_writes_an_original(storage, arc):
    register(storage, recorded("s"))

    improver_of(storage).improve_once()

    for stored in storage.objects.get(arc, ALL):
        np.testing.assert_array_equal(stored.parts, ORIGINALS[stored.object_id])


def test_a_session_is_learnt_when_it_is_marked_as_the_documentation_shows(storage, arc):
    session = session_of("s", kind="click").model_copy(update={"events": ()})
    storage.clickstream.register_session(session, QUERY)
    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s")
    storage.clickstream.push_events(session_of("s").events)

    storage.orders.create(SessionForImprovementCreateSchema(session_id="s"))
    storage.orders.create(SessionForImprovementCreateSchema(session_id="s"))
    improver_of(storage).improve_once()

    assert outcome_of(storage, "s")[0] is DONE
    assert len(storage.personal.state(arc, "ann").memories) == 1


def test_a_click_later_in_a_session_folds_it_anew(storage, arc):
    register(storage, recorded("s", ["at40"]))
    improver_of(storage).improve_once()

    storage.clickstream.push_events([SessionEvent(session_id="s", object_id="at50", created_at=105)])
    improver_of(storage).improve_once()

    (memory,) = storage.personal.state(arc, "ann").memories
    assert memory.clicked_ids == ("at40", "at50")


def test_sessions_that_cannot_be_learnt_from_are_refused_with_reasons_and_the_rest_is_learnt(storage, arc):
    storage.objects.upsert(arc, [CatalogueObject("doomed", at(35))])
    register(
        storage,
        recorded("good", created_at=500),
        recorded("deleted", ["doomed"], shown=["at10", "doomed"]),
        recorded("outside", ["at50"], shown=["at10"]),
        recorded("no vector", query=None),
        recorded("irrelevant"),
        recorded("nobody", user_id=None),
        recorded("many", ["at10", "at20"]),
        recorded("other", user_id="bob"),
    )
    storage.objects.delete(arc, ["doomed"])
    storage.clickstream.mark_irrelevant("irrelevant")
    session = session_of("clickless", []).model_copy(update={"user_id": "bob"})
    storage.clickstream.register_session(session, QUERY)
    storage.orders.create(SessionForImprovementCreateSchema(session_id="clickless"))

    report = improver_of(storage, max_sessions_per_user=9).improve_once()

    assert report.learnt == 3
    assert {key: outcome_of(storage, key)[0] for key in ("good", "many", "other")} == dict.fromkeys(
        ("good", "many", "other"), DONE
    )
    for session_id, says in {
        "deleted": "exists any more",
        "outside": "among the results",
        "no vector": "neither a query text nor query vectors",
        "irrelevant": "marked irrelevant",
        "clickless": "no clicks: the session has no events",
    }.items():
        status, detail = outcome_of(storage, session_id)
        assert (session_id, status) == (session_id, REFUSED)
        assert says in detail
        assert report.refused[session_id] == detail
    status, detail = outcome_of(storage, "nobody")
    assert (status, "anonymous" in detail, "nobody" in report.refused) == (REFUSED, True, False)


def test_only_so_many_of_a_users_latest_sessions_count(storage, arc):
    register(storage, *[recorded(f"s{i}", created_at=100 + i) for i in range(3)])

    improver_of(storage, max_sessions_per_user=2).improve_once()

    assert [memory.session_id for memory in storage.personal.state(arc, "ann").memories] == ["s1", "s2"]
    status, detail = outcome_of(storage, "s0")
    assert status is REFUSED
    assert "older than the last 2" in detail


def test_a_hundred_views_do_not_hide_the_click(storage, arc):
    register(storage, recorded("s", []))
    storage.clickstream.push_events(
        [
            SessionEvent(session_id="s", object_id=ALL[i % 5], event_type="view", created_at=101 + i)
            for i in range(100)
        ]
    )
    storage.clickstream.push_events([SessionEvent(session_id="s", object_id="at40", created_at=300)])

    improver_of(storage).improve_once()

    (memory,) = storage.personal.state(arc, "ann").memories
    assert memory.clicked_ids == ("at40",)


def test_a_click_on_page_two_is_learnt_against_all_that_was_shown(storage, arc):
    search = SearchService(storage).search
    first = search(QUERY, user_id="ann", limit=2, create_session=True)
    search(QUERY, user_id="ann", limit=2, offset=2, session_id=first.session_id)
    storage.clickstream.push_events([SessionEvent(session_id=first.session_id, object_id="at40")])

    improver_of(storage).improve_once()

    state = storage.personal.state(arc, "ann")
    assert state.memories[0].clicked_ids == ("at40",)
    assert {"at40", "at10"} <= state.vectors.keys()


def test_refusing_a_session_undoes_what_it_had_taught(storage, arc):
    register(storage, recorded("kept"), recorded("undone", ["at50"], created_at=200))
    improver_of(storage).improve_once()

    storage.clickstream.mark_irrelevant("undone")
    improver_of(storage).improve_once()

    assert_same_state(storage.personal.state(arc, "ann"), folded([recorded("kept")]).states["ann"])


def test_a_user_is_folded_anew_when_an_object_gets_new_originals(storage, arc):
    register(storage, recorded("s"))
    improver_of(storage).improve_once()

    storage.objects.upsert(arc, [CatalogueObject("at40", at(43))])
    improver_of(storage).improve_once()

    expected = fold([recorded("s")], {**ORIGINALS, "at40": at(43)}, PassiveAggressiveAdjuster(INDEX), INDEX)
    assert_same_state(storage.personal.state(arc, "ann"), expected.states["ann"])


class ModelEmbedder:
    """Gives every text that is not refused one and the same vector."""

    def __init__(self, name: str, vector: np.ndarray) -> None:
        self.name, self.vector, self.dimensions = name, vector, vector.shape[1]
        self.asked: list[str] = []

    def embed(self, texts, **_):
        self.asked += texts
        if "refused" in texts:
            raise EmbeddingError("a refused text")
        return np.repeat(self.vector, len(texts), axis=0)

    def split(self, text):
        return [text]


def test_queries_without_vectors_are_embedded_once_and_remembered(storage, arc):
    embedder = ModelEmbedder("m", QUERY)
    register(storage, recorded("s1", query=None, text="shoes"), recorded("s2", query=None, text="boots"))
    improver = improver_of(storage, embedder=embedder)

    improver.improve_once()
    storage.orders.create(SessionForImprovementCreateSchema(session_id="s1"))
    improver.improve_once()

    assert embedder.asked == ["boots", "shoes"]
    assert outcome_of(storage, "s1")[0] is DONE
    assert len(storage.personal.state(arc, "ann").memories) == 2


def test_a_query_that_cannot_be_embedded_fails_and_the_others_are_learnt(storage, arc):
    register(
        storage,
        recorded("bad", query=None, text="refused"),
        recorded("good", query=None, text="shoes"),
        recorded("bob's", user_id="bob"),
    )

    report = improver_of(storage, embedder=ModelEmbedder("m", QUERY)).improve_once()

    assert report.failed == {"bad": "the query could not be embedded: a refused text"}
    assert report.learnt == 2
    assert outcome_of(storage, "bad")[0] is PENDING


def test_an_embedder_of_another_model_than_the_collections_is_not_used(storage):
    index = SearchIndexInfo(dimensions=3)
    collection = storage.collections.create("default", index, embedder="a model")
    storage.objects.upsert(collection, [CatalogueObject(name, parts) for name, parts in ORIGINALS.items()])
    embedder = ModelEmbedder("another model", QUERY)
    register(storage, recorded("s", query=None, text="shoes"))

    improver_of(storage, embedder=embedder).improve_once()

    assert embedder.asked == []
    status, detail = outcome_of(storage, "s")
    assert status is REFUSED
    assert "no embedder of this collection" in detail


def test_a_new_model_keeps_what_was_learnt(storage):
    old = storage.collections.create("old", INDEX, embedder="three")
    new = storage.collections.create("new", SearchIndexInfo(dimensions=2), embedder="two")
    for collection in (old, new):
        D = collection.index.dimensions
        storage.objects.upsert(
            collection, [CatalogueObject(name, parts[:, :D]) for name, parts in ORIGINALS.items()]
        )
    storage.collections.set_alias("shop", "old")
    register(storage, recorded("s", text="shoes", collection="shop"))
    improver_of(storage, embedder=ModelEmbedder("three", QUERY)).improve_once()
    before = storage.personal.state(old, "ann")

    storage.collections.set_alias("shop", "new")
    improver_of(storage, embedder=ModelEmbedder("two", QUERY[:, :2])).improve_once()

    after = storage.personal.state(new, "ann")
    assert [memory.session_id for memory in after.memories] == ["s"]
    assert after.vectors.keys() == before.vectors.keys()
    assert after.vectors["at40"].shape == (1, 2)


def test_moving_an_alias_unlearns_what_it_taught_the_collection_it_leaves(storage, arc):
    storage.collections.create("other", INDEX)
    storage.collections.set_alias("best", "default")
    register(storage, recorded("s1", collection="best"), recorded("s2", user_id="bob"))
    improver_of(storage).improve_once()
    assert storage.personal.state(arc, "ann").memories

    storage.collections.set_alias("best", "other")
    improver_of(storage).improve_once()

    assert_same_state(storage.personal.state(arc, "ann"), PersonalState())
    assert storage.personal.state(arc, "bob").memories


def test_orders_of_a_dropped_collection_are_refused(storage, arc):
    storage.collections.create("doomed", INDEX)
    register(storage, recorded("lost", collection="doomed"), recorded("good"))
    storage.collections.drop("doomed")

    improver_of(storage).improve_once()

    assert outcome_of(storage, "good")[0] is DONE
    status, detail = outcome_of(storage, "lost")
    assert status is REFUSED
    assert "doomed" in detail


def test_a_session_that_fails_is_tried_again_later_then_given_up_and_can_be_retried(storage, arc):
    register(storage, recorded("bad"), recorded("good", user_id="ann", created_at=200))
    failing = improver_of(storage, Poisoned("bad"), max_attempts=2)

    first = failing.improve_once()

    assert first.learnt == 1
    assert outcome_of(storage, "good")[0] is DONE
    assert outcome_of(storage, "bad") == (PENDING, "RuntimeError: boom")
    failing.improve_once()
    assert outcome_of(storage, "bad")[0] is FAILED
    assert failing.improve_once().users == 0
    storage.orders.create(SessionForImprovementCreateSchema(session_id="bad"))
    improver_of(storage).improve_once()
    assert outcome_of(storage, "bad")[0] is DONE
    assert len(storage.personal.state(arc, "ann").memories) == 2


def test_a_failed_order_waits_before_it_is_tried_again(storage, arc):
    register(storage, recorded("bad"))
    failing = improver_of(storage, Poisoned("bad"), backoff_seconds=1_000)
    failing.improve_once()
    due_at = storage.orders.get("bad").not_before

    assert failing.improve_once().users == 0
    assert failing.improve_once(now=due_at + 1).users == 1


def test_an_endless_error_text_stays_readable_and_stops_nothing(storage, arc):
    register(storage, recorded("bad"), recorded("good", user_id="bob"))

    improver_of(storage, Poisoned("bad", saying="x" * 100_000), max_attempts=1).improve_once()

    status, detail = outcome_of(storage, "bad")
    assert status is FAILED
    assert len(detail) <= 2_000
    assert outcome_of(storage, "good")[0] is DONE


def test_an_adjuster_that_cannot_even_be_made_fails_its_orders(storage, arc):
    def no_adjuster(index):
        raise OSError("no such model")

    register(storage, recorded("s"), recorded("t", user_id="bob"))

    report = Improver(storage, no_adjuster).improve_once()

    assert report.failed == dict.fromkeys(("s", "t"), "OSError: no such model")


class Hanging(PassiveAggressiveAdjuster):
    """Goes on for ever on any batch that holds one of the sessions named, or until it is let go."""

    def __init__(self, *session_ids: str) -> None:
        super().__init__(INDEX)
        self.session_ids, self.at_work, self.may_go_on = session_ids, threading.Event(), threading.Event()

    def adjust_vectors(self, improvement_inputs):
        if any(each.session_id in self.session_ids for each in improvement_inputs):
            self.at_work.set()
            self.may_go_on.wait(100)
        return super().adjust_vectors(improvement_inputs)


def test_a_session_whose_adjuster_hangs_fails_alone(storage, arc):
    register(storage, recorded("bad"), recorded("good", created_at=200), recorded("bob's", user_id="bob"))

    report = improver_of(storage, Hanging("bad"), adjuster_seconds=0.2, max_attempts=1).improve_once()

    assert report.failed.keys() == {"bad"}
    assert "longer than 0.205 s" in report.failed["bad"]
    assert outcome_of(storage, "bad")[0] is FAILED
    assert {outcome_of(storage, key)[0] for key in ("good", "bob's")} == {DONE}
    assert [memory.session_id for memory in storage.personal.state(arc, "ann").memories] == ["good"]


def test_who_keeps_an_adjuster_too_long_as_a_whole_keeps_the_state_there_is_until_attempts_are_used_up(
    storage, arc
):
    class Slow(PassiveAggressiveAdjuster):
        """Takes its time for more than one session."""

        def adjust_vectors(self, improvement_inputs):
            time.sleep(2 if len(improvement_inputs) > 1 else 0)
            return super().adjust_vectors(improvement_inputs)

    register(storage, recorded("s1"), recorded("s2", ["at50"], created_at=200))
    improver_of(storage).improve_once()
    before = storage.personal.state(arc, "ann")
    register(storage, recorded("s3", ["at30"], created_at=300))
    slow = improver_of(storage, Slow(INDEX), adjuster_seconds=0.2, max_attempts=2)

    first = slow.improve_once()
    between = storage.personal.state(arc, "ann")
    slow.improve_once()

    assert (first.learnt, set(first.failed)) == (0, {"s1", "s2", "s3"})
    assert_same_state(between, before)
    assert storage.personal.state(arc, "ann").memories == ()
    assert outcome_of(storage, "s3")[0] is FAILED


def test_a_failed_session_is_not_tried_again_until_somebody_asks_for_it(storage, arc):
    register(storage, recorded("bad"))
    improver_of(storage, Poisoned("bad"), max_attempts=1).improve_once()
    register(storage, recorded("good", created_at=200))

    improver_of(storage).improve_once()
    without = [memory.session_id for memory in storage.personal.state(arc, "ann").memories]
    storage.orders.create(SessionForImprovementCreateSchema(session_id="bad"))
    improver_of(storage).improve_once()

    assert without == ["good"]
    assert outcome_of(storage, "bad")[0] is DONE
    assert [m.session_id for m in storage.personal.state(arc, "ann").memories] == ["bad", "good"]


@pytest.mark.parametrize("error", [SystemExit(1), StorageUnavailableError("not the storage")])
def test_whatever_an_adjuster_raises_is_of_that_session_alone(storage, arc, error):
    class Odd(Poisoned):
        def adjust_vectors(self, improvement_inputs):
            if any(each.session_id in self.session_ids for each in improvement_inputs):
                raise error
            return super().adjust_vectors(improvement_inputs)

    register(storage, recorded("bad"), recorded("good", user_id="bob"))

    report = improver_of(storage, Odd("bad"), max_attempts=1).improve_once()

    assert (report.learnt, set(report.failed)) == (1, {"bad"})


@pytest.mark.parametrize("change", ["upsert", "click", "forget"])
def test_what_changes_while_an_adjuster_is_at_work_waits_for_nobody_and_is_not_lost(storage, arc, change):
    register(storage, recorded("s"), recorded("bob's", user_id="bob"))
    adjuster = Hanging("s", "bob's")
    learning = threading.Thread(target=improver_of(storage, adjuster).improve_once)
    learning.start()
    assert adjuster.at_work.wait(20)

    if change == "upsert":
        storage.objects.upsert(arc, [CatalogueObject("at40", at(43))])
    elif change == "click":
        storage.clickstream.push_events([SessionEvent(session_id="s", object_id="at50", created_at=105)])
    else:
        storage.clickstream.forget_user("ann")
    still_at_work = learning.is_alive()
    adjuster.may_go_on.set()
    learning.join(20)
    between = storage.personal.state(arc, "ann")
    improver_of(storage).improve_once()

    assert still_at_work
    assert_same_state(between, PersonalState())
    sessions = {
        "upsert": [recorded("s")],
        "click": [recorded("s", ["at40", "at50"])],
        "forget": [],
    }[change]
    originals = {**ORIGINALS, "at40": at(43)} if change == "upsert" else ORIGINALS
    expected = fold(sessions, originals, PassiveAggressiveAdjuster(INDEX), INDEX).states
    after = storage.personal.state(arc, "ann")
    assert_same_state(after, expected.get("ann", PersonalState()))
    assert len(storage.personal.state(arc, "bob").memories) == 1


def test_a_worker_that_is_to_stop_gives_back_whom_its_adjuster_does_not_end_with(storage, arc):
    register(storage, recorded("s"))
    adjuster, stop = Hanging("s"), threading.Event()
    reports = []
    learning = threading.Thread(
        target=lambda: reports.append(improver_of(storage, adjuster).improve_once(stop=stop))
    )
    learning.start()
    assert adjuster.at_work.wait(20)

    stop.set()
    learning.join(10)

    assert not learning.is_alive()
    assert (reports[0].learnt, reports[0].failed) == (0, {})
    order = storage.orders.get("s")
    assert (order.status, order.attempts) == (PENDING, 0)
    adjuster.may_go_on.set()
    assert improver_of(storage).improve_once().learnt == 1


def test_a_lease_is_renewed_while_its_worker_lives(storage, arc):
    register(storage, recorded("s"))
    adjuster = Hanging("s")
    learning = threading.Thread(target=improver_of(storage, adjuster, lease_seconds=0.3).improve_once)
    learning.start()
    assert adjuster.at_work.wait(20)

    taken = []
    for _ in range(10):
        time.sleep(0.1)
        taken.append(storage.queue.claim(users=1, lease_seconds=60))
    adjuster.may_go_on.set()
    learning.join(20)

    assert taken == [None] * 10
    assert outcome_of(storage, "s")[0] is DONE


def test_a_session_filter_that_fails_on_a_session_harms_no_other(storage, arc):
    def picky(session):
        if session.session_id == "bad":
            raise KeyError("price")
        return session.session_id != "unwanted"

    register(storage, recorded("bad"), recorded("good"), recorded("unwanted"))

    report = improver_of(storage, session_filter=picky).improve_once()

    assert report.failed == {"bad": "KeyError: 'price'"}
    assert report.refused == {"unwanted": "the session filter 'picky' refused it"}
    assert outcome_of(storage, "good")[0] is DONE


def test_orders_of_a_worker_that_died_are_learnt_when_its_lease_ends(storage, arc):
    register(storage, recorded("s"))
    claim = storage.queue.claim(users=9, lease_seconds=50, now=1_000)

    assert improver_of(storage).improve_once(now=1_049).users == 0
    assert improver_of(storage).improve_once(now=1_051).learnt == 1

    assert claim.entries[0].user_id == "ann"
    assert outcome_of(storage, "s")[0] is DONE


def test_a_user_whose_orders_end_every_worker_is_given_up_and_the_others_are_learnt(storage, arc):
    register(storage, *(recorded(f"s-{user}", user_id=user) for user in ("ann", "eve", "tom")))
    for attempt in range(4):  # workers that ended without a word; in the first all were in hand
        storage.queue.claim(users=10, lease_seconds=1.0, now=1e9 * (attempt + 1))

    report = improver_of(storage, max_attempts=2).improve_once(now=9e9)

    assert report.failed == {"s-ann": "the worker ended while it learnt from this user, in every attempt"}
    assert outcome_of(storage, "s-ann")[0] is SessionForImprovementStatus.FAILED
    left = [improver_of(storage, max_attempts=2).improve_once(now=9e9).learnt for _ in range(3)]
    assert left == [1, 1, 0]
    assert {storage.orders.get(f"s-{user}").attempts for user in ("eve", "tom")} == {1}


def test_learning_twice_from_the_same_sessions_applies_nothing_twice(storage, arc):
    register(storage, recorded("s1"), recorded("s2", ["at50"], created_at=200))
    improver_of(storage).improve_once()
    once = storage.personal.state(arc, "ann")

    for session_id in ("s1", "s2"):
        storage.orders.create(SessionForImprovementCreateSchema(session_id=session_id))
    improver_of(storage).improve_once()

    assert_same_state(storage.personal.state(arc, "ann"), once)


def test_a_session_that_vanishes_after_it_was_claimed_harms_no_other(memory):
    collection = open_catalogue(memory)
    register(memory, recorded("gone"), recorded("good", user_id="bob"))
    claim = memory.queue.claim

    def claim_and_forget(**given):
        claimed = claim(**given)
        memory.clickstream.forget_user("ann")
        return claimed

    memory.queue.claim = claim_and_forget

    report = improver_of(memory).improve_once()

    assert (report.learnt, report.refused, report.failed) == (1, {}, {})
    assert len(memory.personal.state(collection, "bob").memories) == 1


def test_a_storage_that_is_away_is_for_the_worker_to_wait_for(memory):
    open_catalogue(memory)
    register(memory, recorded("s"))

    def away(*_):
        raise StorageUnavailableError("gone")

    memory.personal.learning = away

    with pytest.raises(StorageUnavailableError):
        improver_of(memory).improve_once()
    assert memory.orders.get("s").attempts == 1


class Counting:
    """A port that counts the calls to its methods, also within its transactions."""

    def __init__(self, port, calls):
        self._port, self._calls = port, calls

    def __getattr__(self, name):
        self._calls.append(name)
        return getattr(self._port, name)

    def __enter__(self):
        return Counting(self._port.__enter__(), self._calls)

    def __exit__(self, *exception):
        return self._port.__exit__(*exception)


@pytest.mark.parametrize("number", [1, 20])
def test_a_pass_reads_and_writes_so_often_whatever_the_number_of_sessions(memory, number):
    open_catalogue(memory)
    register(memory, *[recorded(f"s{i}", user_id=f"u{i % 7}", created_at=100 + i) for i in range(number)])
    calls = []
    personal = memory.personal
    for port in ("collections", "objects", "clickstream", "orders", "queue", "personal"):
        setattr(memory, port, Counting(getattr(memory, port), calls))
    personal_learning = personal.learning
    personal.learning = lambda *given: Counting(personal_learning(*given), calls)

    assert improver_of(memory).improve_once().learnt == number

    assert calls == [
        *("claim", "get", "recent_sessions", "originals"),
        *("learning", "store_query_vectors", "held", "replace_states", "complete"),
    ]


@given(log=logs(), cuts=st.lists(st.integers(0, 7), max_size=3))
def test_learning_as_the_log_comes_in_is_learning_from_the_replayed_log(log, cuts):
    log = sorted(log, key=lambda each: each.session.created_at)
    live, replayed = MemoryStorage(), MemoryStorage()
    collections = [open_catalogue(storage) for storage in (live, replayed)]

    for i, each in enumerate(log):
        register(live, each)
        if i in cuts:
            improver_of(live).improve_once(users=2)
    while improver_of(live).improve_once(users=1).users:
        pass
    register(replayed, *log)
    improver_of(replayed).improve_once()

    expected = folded(log)
    for user_id in ("ann", "bob", "cem"):
        states = [s.personal.state(c, user_id) for s, c in zip((live, replayed), collections, strict=True)]
        assert_same_state(*states)
        assert_same_state(states[0], expected.states.get(user_id, PersonalState()))


@given(log=logs(), data=st.data())
def test_forgetting_a_session_is_never_having_seen_it(log, data):
    storage = MemoryStorage()
    collection = open_catalogue(storage)
    register(storage, *log)
    improver_of(storage).improve_once()

    forgotten = data.draw(st.sampled_from(log)).session
    storage.clickstream.mark_irrelevant(forgotten.session_id)
    improver_of(storage).improve_once()

    rest = folded([each for each in log if each.session is not forgotten])
    for user_id in ("ann", "bob", "cem"):
        expected = rest.states.get(user_id, PersonalState())
        assert_same_state(storage.personal.state(collection, user_id), expected)


def test_forgetting_a_user_leaves_nothing_to_learn(storage, arc):
    register(storage, recorded("s"))
    improver_of(storage).improve_once()
    storage.orders.create(SessionForImprovementCreateSchema(session_id="s"))

    storage.clickstream.forget_user("ann")

    assert improver_of(storage).improve_once().users == 0
    assert_same_state(storage.personal.state(arc, "ann"), PersonalState())
