"""What every adjuster keeps, whatever the metric, the aggregation and the shape of the sessions.

Axes: Q parts of a query · I objects · P parts of an object · D dimensions.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.similarity import similarities
from embedding_studio.embeddings.trust_region import ROUNDING
from embedding_studio.errors import InvalidInputError, InvalidSettingError, InvalidVectorsError

D = 7
ADJUSTERS = [PassiveAggressiveAdjuster, TorchBasedAdjuster]
INDEXES = [
    SearchIndexInfo(metric_type=metric, metric_aggregation_type=aggregation)
    for metric, aggregation in itertools.product(MetricType, MetricAggregationType)
]

seeds = st.integers(0, 2**32 - 1)
adjusters = st.sampled_from(ADJUSTERS)
indexes = st.sampled_from(INDEXES)
each_adjuster = pytest.mark.parametrize("adjuster", ADJUSTERS)
few = settings(max_examples=50)


def element(object_id, *parts, weight=1.0):
    return ImprovementElement(object_id, np.array(parts, dtype=np.float32), weight)


def random_sessions(rng, *, users=3, sessions=5, max_query_parts=3):
    """Return ragged sessions over a catalogue in which the users' sessions meet again and again."""
    scale = 10 ** rng.uniform(-2, 2)
    catalogue = [scale * (rng.normal(size=(rng.integers(1, 4), D)) + rng.normal(size=D)) for _ in range(11)]
    made = []
    for s in range(sessions):
        shown = rng.permutation(11)[: rng.integers(2, 9)]
        C = rng.integers(1, len(shown))
        elements = [
            element(f"o{o}", *catalogue[o], weight=1.0 if i < C else 1 / (i + 1)) for i, o in enumerate(shown)
        ]
        query = scale * (rng.normal(size=(rng.integers(1, max_query_parts + 1), D)) + rng.normal(size=D))
        made.append(
            ImprovementInput(
                f"s{s}",
                element(f"s{s}", *query),
                tuple(elements[:C]),
                tuple(elements[C:]),
                f"u{rng.integers(users)}" if rng.random() < 0.9 else None,
            )
        )
    return made


def shown(session):
    return (*session.clicked_elements, *session.non_clicked_elements)


def vectors_of(sessions):
    return [e.vector for session in sessions for e in shown(session)]


def similarity(index, session, parts):
    return similarities(index, session.query.vector, parts, np.array([0]))[0]


def assert_same(one, other):
    for a, b in zip(vectors_of(one), vectors_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_element_moved_to_another_vector_is_otherwise_the_same():
    before, there = element("a", [0.5, 0.8, 0.1], weight=0.25), np.ones((2, 3), dtype=np.float32)

    after = before.moved_to(there)

    assert (type(after), after.id, after.weight) == (ImprovementElement, "a", 0.25)
    assert after.vector is there
    assert before.vector.tolist() == np.array([[0.5, 0.8, 0.1]], dtype=np.float32).tolist()


def test_an_element_keeps_the_very_array_that_it_was_given_if_it_needs_no_change():
    vector = np.ones((2, 3), dtype=np.float32)

    assert ImprovementElement("a", vector).vector is vector
    assert ImprovementElement("a", vector[0]).vector.shape == (1, 3)
    assert ImprovementElement("a", vector.astype(np.float64)).vector.dtype == np.float32


@each_adjuster
def test_it_is_a_vectors_adjuster(adjuster):
    assert isinstance(adjuster(SearchIndexInfo()), VectorsAdjuster)


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_the_same_sessions_come_back_in_order_with_their_queries_untouched(seed, adjuster, index):
    sessions = random_sessions(np.random.default_rng(seed))
    before = [session.query.vector.copy() for session in sessions]

    adjusted = adjuster(index).adjust_vectors(sessions)

    for session, after, query in zip(sessions, adjusted, before, strict=True):
        assert (after.session_id, after.user_id) == (session.session_id, session.user_id)
        assert after.query is session.query
        np.testing.assert_array_equal(after.query.vector, query)
        assert [(e.id, e.weight, e.vector.shape) for e in after.clicked_elements] == [
            (e.id, e.weight, e.vector.shape) for e in session.clicked_elements
        ]
        assert [e.id for e in after.non_clicked_elements] == [e.id for e in session.non_clicked_elements]


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_what_it_was_given_is_not_written_to(seed, adjuster, index):
    sessions = random_sessions(np.random.default_rng(seed))
    before = [vector.copy() for vector in vectors_of(sessions)]

    adjuster(index).adjust_vectors(sessions)

    for vector, copy in zip(vectors_of(sessions), before, strict=True):
        np.testing.assert_array_equal(vector, copy)


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_who_else_is_in_the_batch_changes_no_bit(seed, adjuster, index):
    sessions = random_sessions(np.random.default_rng(seed), sessions=7)
    users = {session.user_id for session in sessions}

    together = adjuster(index).adjust_vectors(sessions)

    for user in users - {None}:
        own = [s for s, session in enumerate(sessions) if session.user_id == user]
        alone = adjuster(index).adjust_vectors([sessions[s] for s in own])
        assert_same(alone, [together[s] for s in own])
    for s, session in enumerate(sessions):
        if session.user_id is None:
            assert_same(adjuster(index).adjust_vectors([session]), [together[s]])


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_the_order_in_which_results_are_listed_changes_nothing(seed, adjuster, index):
    rng = np.random.default_rng(seed)
    (session,) = random_sessions(rng, sessions=1)
    clicks = rng.permutation(len(session.clicked_elements))
    skips = rng.permutation(len(session.non_clicked_elements))
    shuffled = ImprovementInput(
        session.session_id,
        session.query,
        tuple(session.clicked_elements[i] for i in clicks),
        tuple(session.non_clicked_elements[i] for i in skips),
        session.user_id,
    )

    (straight,) = adjuster(index).adjust_vectors([session])
    (other,) = adjuster(index).adjust_vectors([shuffled])

    found = {e.id: e.vector for e in shown(other)}
    for e in shown(straight):
        np.testing.assert_allclose(found[e.id], e.vector, rtol=2e-5, atol=2e-6 * np.abs(e.vector).max())


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_a_rate_of_zero_returns_the_very_same_arrays(seed, adjuster, index):
    sessions = random_sessions(np.random.default_rng(seed))

    adjusted = adjuster(index, 0.0).adjust_vectors(sessions)

    assert all(a is b for a, b in zip(vectors_of(adjusted), vectors_of(sessions), strict=True))


@few
@given(seed=seeds, adjuster=adjusters, index=indexes, rate=st.sampled_from([0.01, 0.1, 0.5]))
def test_what_was_clicked_does_not_fall_and_what_was_skipped_does_not_rise(seed, adjuster, index, rate):
    """Session by session, against the vectors that the user had before it."""
    sessions = random_sessions(np.random.default_rng(seed), users=1)
    sessions = [s for s in sessions if s.user_id is not None]
    now = {e.id: e.vector for session in reversed(sessions) for e in shown(session)}

    for session, after in zip(sessions, adjuster(index, rate).adjust_vectors(sessions), strict=True):
        for e in after.clicked_elements:
            was, is_ = similarity(index, session, now[e.id]), similarity(index, session, e.vector)
            assert is_ >= was - 1e-5 * max(1.0, abs(was))
        for e in after.non_clicked_elements:
            was, is_ = similarity(index, session, now[e.id]), similarity(index, session, e.vector)
            assert is_ <= was + 1e-5 * max(1.0, abs(was))
        now |= {e.id: e.vector for e in shown(after)}


@few
@given(
    seed=seeds,
    adjuster=adjusters,
    index=indexes,
    rate=st.sampled_from([0.1, 0.5, 50.0]),
    degrees=st.sampled_from([1.0, 20.0, 75.0]),
)
def test_no_vector_leaves_its_trust_region_whatever_the_events(seed, adjuster, index, rate, degrees):
    sessions = random_sessions(np.random.default_rng(seed), users=1, sessions=9)

    adjusted = adjuster(index, rate, max_angle_degrees=degrees).adjust_vectors(sessions)

    for original, moved in zip(vectors_of(sessions), vectors_of(adjusted), strict=True):
        o, m = original.astype(np.float64), moved.astype(np.float64)
        norms = np.linalg.norm(o, axis=1)
        chord = 2 * np.sin(np.radians(degrees) / 2)
        if index.metric_type is not MetricType.EUCLID:
            np.testing.assert_allclose(np.linalg.norm(m, axis=1), norms, rtol=2 * ROUNDING)
            m *= (norms / np.linalg.norm(m, axis=1))[:, None]
        assert (np.linalg.norm(m - o, axis=1) <= (chord + 2 * ROUNDING) * norms).all()


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_a_session_without_contrast_or_without_results_moves_nothing(seed, adjuster, index):
    (session,) = random_sessions(np.random.default_rng(seed), sessions=1)
    everything = shown(session)
    sessions = [
        ImprovementInput("all", session.query, everything, (), "u1"),
        ImprovementInput("none", session.query, (), everything, "u2"),
        ImprovementInput("empty", session.query, (), (), "u3"),
    ]

    adjusted = adjuster(index).adjust_vectors(sessions)

    assert all(a is b for a, b in zip(adjusted, sessions, strict=True))
    assert adjuster(index).adjust_vectors([]) == []


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_sessions_without_contrast_beside_it_change_no_bit_of_a_session(seed, adjuster, index):
    (session,) = random_sessions(np.random.default_rng(seed), sessions=1)
    idle = ImprovementInput("idle", session.query, shown(session), (), "another")
    empty = ImprovementInput("empty", session.query, (), (), "a third")

    alone = adjuster(index).adjust_vectors([session])
    _, among, _ = adjuster(index).adjust_vectors([empty, session, idle])

    assert_same(alone, [among])


@few
@given(seed=seeds, adjuster=adjusters, index=indexes)
def test_a_session_without_contrast_shows_what_an_earlier_one_left_and_leaves_it(seed, adjuster, index):
    rng = np.random.default_rng(seed)
    first, last = random_sessions(rng, sessions=2)
    first = ImprovementInput("first", first.query, first.clicked_elements, first.non_clicked_elements, "u")
    last = ImprovementInput("last", last.query, last.clicked_elements, last.non_clicked_elements, "u")
    look = ImprovementInput(
        "look", last.query, (), (*first.clicked_elements, *first.non_clicked_elements), "u"
    )

    (alone,) = adjuster(index).adjust_vectors([first])
    after_first, _ = adjuster(index).adjust_vectors([first, look])
    _, after_look = adjuster(index).adjust_vectors([first, look])

    assert_same([alone], [after_first])
    assert_same([after_first], [after_look])


@each_adjuster
def test_two_sessions_are_not_the_last_one_alone(adjuster):
    query = element("q", [1, 0, 0])
    a, b, c = element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2]), element("c", [0.55, 0, 0.8])
    first = ImprovementInput("first", query, (a,), (b,), "u")
    last = ImprovementInput("last", element("q", [0, 0, 1]), (c,), (b,), "u")

    _, folded = adjuster(SearchIndexInfo()).adjust_vectors([first, last])
    (alone,) = adjuster(SearchIndexInfo()).adjust_vectors([last])
    (_, of_two_users) = adjuster(SearchIndexInfo()).adjust_vectors(
        [first, ImprovementInput("last", last.query, last.clicked_elements, last.non_clicked_elements, "w")]
    )

    assert not np.allclose(folded.non_clicked_elements[0].vector, alone.non_clicked_elements[0].vector)
    assert_same([of_two_users], [alone])


@each_adjuster
def test_sessions_of_nobody_stand_alone(adjuster):
    query, a, b = element("q", [1, 0, 0]), element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2])
    session = ImprovementInput("s", query, (a,), (b,), None)

    first, second = adjuster(SearchIndexInfo()).adjust_vectors([session, session])

    assert_same([first], [second])


@each_adjuster
def test_an_object_shown_twice_is_one_object_and_clicked_if_it_was_clicked_at_all(adjuster):
    query, a, b = element("q", [1, 0, 0]), element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2])
    once = ImprovementInput("s", query, (a,), (b,), "u")
    twice = ImprovementInput("s", query, (a, a), (element("a", [0.5, 0.8, 0.1], weight=0.1), b, b), "u")

    (expected,) = adjuster(SearchIndexInfo()).adjust_vectors([once])
    (adjusted,) = adjuster(SearchIndexInfo()).adjust_vectors([twice])

    clicked, skipped = (side[0].vector for side in (expected.clicked_elements, expected.non_clicked_elements))
    for e in shown(adjusted):
        np.testing.assert_array_equal(e.vector, clicked if e.id == "a" else skipped)


@each_adjuster
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ([np.nan, 0, 0], "part 0 of object 'bad' of session 'second' is not finite"),
        ([np.inf, 0, 0], "part 0 of object 'bad' of session 'second' is not finite"),
        ([0, 0, 0], "part 0 of object 'bad' of session 'second' is zero"),
        ([1, 0], "object 'bad' of session 'second' have 2 dimensions, the collection has 3"),
    ],
)
@pytest.mark.parametrize("dimensions", [None, 3])
def test_a_bad_vector_is_refused_with_its_session_and_object(adjuster, wrong, complaint, dimensions):
    query, a, b = element("q", [1, 0, 0]), element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2])
    sessions = [
        ImprovementInput("first", query, (a,), (b,), "u"),
        ImprovementInput("second", query, (a, b), (element("bad", wrong),), "v"),
    ]

    with pytest.raises(InvalidVectorsError, match=complaint):
        adjuster(SearchIndexInfo(dimensions=dimensions)).adjust_vectors(sessions)


@each_adjuster
def test_an_object_whose_parts_change_from_session_to_session_is_refused(adjuster):
    query, a, b = element("q", [1, 0, 0]), element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2])
    longer = element("a", [0.5, 0.8, 0.1], [0.1, 0.2, 0.3])

    with pytest.raises(InvalidVectorsError, match=r"object 'a' has vectors of shape \(2, 3\) here"):
        adjuster(SearchIndexInfo()).adjust_vectors(
            [
                ImprovementInput("1", query, (a,), (b,), "u"),
                ImprovementInput("2", query, (longer,), (b,), "u"),
            ]
        )


@each_adjuster
def test_a_bad_query_is_refused_with_its_session(adjuster):
    a, b = element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2])

    with pytest.raises(InvalidVectorsError, match="part 1 of the query of session 's' is not finite"):
        adjuster(SearchIndexInfo()).adjust_vectors(
            [ImprovementInput("s", element("q", [1, 0, 0], [np.nan, 0, 0]), (a,), (b,), "u")]
        )


@each_adjuster
@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_no_positive_number_is_refused(adjuster, weight):
    a, b = element("a", [0.5, 0.8, 0.1]), element("b", [0.6, 0.7, 0.2], weight=weight)

    with pytest.raises(InvalidInputError, match="object 'b' of session 's' has the weight"):
        adjuster(SearchIndexInfo()).adjust_vectors(
            [ImprovementInput("s", element("q", [1, 0, 0]), (a,), (b,))]
        )


@each_adjuster
@pytest.mark.parametrize(
    "knobs",
    [
        {"adjustment_rate": -0.1},
        {"adjustment_rate": np.nan},
        {"num_iterations": 0},
        {"softmin_temperature": 0.0},
        {"softmin_temperature": np.inf},
        {"max_angle_degrees": 0.0},
        {"max_angle_degrees": 181.0},
    ],
)
def test_a_knob_that_cannot_work_is_refused_by_name(adjuster, knobs):
    with pytest.raises(InvalidSettingError, match=next(iter(knobs))):
        adjuster(SearchIndexInfo(), **knobs)


@few
@given(seed=seeds, adjuster=adjusters, index=indexes, exponent=st.sampled_from([-9, 5]))
def test_scaling_all_vectors_scales_the_result(seed, adjuster, index, exponent):
    """By a power of two, so that not even rounding differs."""

    def scaled(e):
        return ImprovementElement(e.id, e.vector * np.float32(2.0**exponent), e.weight)

    sessions = random_sessions(np.random.default_rng(seed))
    larger = [
        ImprovementInput(
            s.session_id,
            scaled(s.query),
            tuple(map(scaled, s.clicked_elements)),
            tuple(map(scaled, s.non_clicked_elements)),
            s.user_id,
        )
        for s in sessions
    ]

    adjusted = adjuster(index).adjust_vectors(sessions)
    adjusted_larger = adjuster(index).adjust_vectors(larger)

    for a, b in zip(vectors_of(adjusted), vectors_of(adjusted_larger), strict=True):
        np.testing.assert_allclose(a * 2.0**exponent, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
