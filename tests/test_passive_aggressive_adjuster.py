"""The closed form against an oracle and by hand, and what each knob does.

Axes: S sessions · I objects · P parts of an object · D dimensions.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import (
    PassiveAggressiveAdjuster,
    least_changes,
)
from embedding_studio.embeddings.improvement.waves import SESSIONS_AT_ONCE
from embedding_studio.embeddings.similarity import similarities
from embedding_studio.errors import InvalidSettingError

COSINE = SearchIndexInfo()
COSINE_AVG = SearchIndexInfo(metric_aggregation_type=MetricAggregationType.AVG)
DOT = SearchIndexInfo(metric_type=MetricType.DOT)
EUCLID = SearchIndexInfo(metric_type=MetricType.EUCLID)
WIDE = 180.0  # degrees: a trust region that holds nothing back

seeds = st.integers(0, 2**32 - 1)


def element(object_id, *parts, weight=1.0):
    return ImprovementElement(object_id, np.array(parts, dtype=np.float32), weight)


def at_cosine(c, norm=1.0):
    """Return the vector of this cosine to (1, 0)."""
    return (norm * c, norm * math.sqrt(1 - c * c))


def session_of(query, clicked, skipped, user_id="u"):
    return ImprovementInput(
        "s",
        element("q", query),
        tuple(element(f"c{i}", *np.atleast_2d(parts)) for i, parts in enumerate(clicked)),
        tuple(element(f"n{i}", *np.atleast_2d(parts)) for i, parts in enumerate(skipped)),
        user_id,
    )


def hard(index, *knobs, **bounds):
    """Return an adjuster whose every session has its way in full, so that results can be reckoned by hand."""
    return PassiveAggressiveAdjuster(index, *knobs, aggressiveness=math.inf, **bounds)


def shown(session):
    return (*session.clicked_elements, *session.non_clicked_elements)


def similarities_of(index, session):
    return [similarities(index, session.query.vector, e.vector, np.array([0]))[0] for e in shown(session)]


def by_hildreth(scores, clicked, weights, margin, aggressiveness):
    """Solve the quadratic programme pair by pair: Hildreth (1957), dual coordinate ascent."""
    changes, shortfalls = np.zeros((2, len(scores)))
    slack = 1 / aggressiveness
    duals = {(c, n): 0.0 for c in np.flatnonzero(clicked) for n in np.flatnonzero(~clicked)}
    for _ in range(5000):
        for (c, n), dual in duals.items():
            reached = scores + changes + shortfalls
            lacking = margin - (reached[c] - reached[n])
            step = max(-dual, lacking / (weights[c] + slack + weights[n] + slack))
            duals[c, n] += step
            changes[c] += weights[c] * step
            changes[n] -= weights[n] * step
            shortfalls[c] += slack * step
            shortfalls[n] -= slack * step
    return changes


@settings(max_examples=30)
@given(seed=seeds, aggressiveness=st.sampled_from([0.1, 0.5, 3.0, math.inf]))
def test_the_closed_form_solves_the_quadratic_programme(seed, aggressiveness):
    rng = np.random.default_rng(seed)
    clicked = np.array([True, False, False, True, False])[: rng.integers(2, 6)]
    scores, weights = rng.uniform(-0.2, 0.2, len(clicked)), rng.uniform(0.2, 3, len(clicked))

    changes = least_changes(
        scores, clicked, weights, np.array([0, len(clicked)]), 0.05, aggressiveness=aggressiveness
    )

    expected = by_hildreth(scores, clicked, weights, 0.05, aggressiveness)
    np.testing.assert_allclose(changes, expected, atol=1e-7)


@given(seed=seeds)
def test_every_pair_keeps_the_margin_and_the_changes_balance(seed):
    """The conditions of optimality, on many ragged sessions at once."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 40, size=13)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    scores, weights = rng.normal(size=sizes.sum()), rng.uniform(0.01, 3, sizes.sum())
    clicked = rng.random(sizes.sum()) < 0.3
    clicked[starts[:-1]], clicked[starts[1:] - 1] = True, False

    changes = least_changes(scores, clicked, weights, starts, 0.05)

    for start, stop in itertools.pairwise(starts):
        own = slice(start, stop)
        after, clicks = scores[own] + changes[own], clicked[own]
        assert after[clicks].min() - after[~clicks].max() >= 0.05 - 1e-9
        assert (changes[own] / weights[own]).sum() == pytest.approx(0, abs=1e-7)
        assert (changes[own][clicks] >= 0).all()
        assert (changes[own][~clicks] <= 0).all()


@pytest.mark.parametrize(
    ("scores", "weights", "changes"),
    [
        ([0.6, 0.5], [1, 1], [0, 0]),  # the margin holds
        ([0.5, 0.5], [1, 1], [0.025, -0.025]),  # a tie is parted evenly
        ([0.5, 0.6], [1, 1], [0.075, -0.075]),
        ([0.5, 0.6], [3, 1], [0.1125, -0.0375]),  # what weighs three times as much moves three times as far
        ([0.5, 0.6], [1, 0.5], [0.1, -0.05]),  # a skip half seen takes half the part
        ([0.5, 0.5, 0.2], [1, 1, 1], [0.025, -0.025, 0]),  # who is out of the way stays
    ],
)
def test_least_changes_by_hand(scores, weights, changes):
    clicked = np.array([True, False, False])[: len(scores)]

    found = least_changes(
        np.array(scores), clicked, np.array(weights, float), np.array([0, len(scores)]), 0.05
    )

    assert found == pytest.approx(changes, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "changes"),
    [
        ([1, 1], [0.025, -0.025]),  # a third of the way: 1 / (1 + 1 / 0.5)
        ([1, 0.1], [0.15 * 3 / 5.1 / 3, -0.15 * 2.1 / 5.1 * 0.1 / 2.1]),  # hardly seen, hardly moved
        ([3, 1], [0.15 * 5 / 8 * 3 / 5, -0.15 * 3 / 8 / 3]),  # a purchase goes further than a click
    ],
)
def test_a_session_that_may_be_wrong_goes_part_of_the_way_by_hand(weights, changes):
    found = least_changes(
        np.array([0.5, 0.6]),
        np.array([True, False]),
        np.array(weights, float),
        np.array([0, 2]),
        0.05,
        aggressiveness=0.5,
    )

    assert found == pytest.approx(changes, abs=1e-12)


def test_sessions_that_agree_take_an_object_further_and_never_beyond_the_margin():
    session = session_of((1, 0), [at_cosine(0.5)], [at_cosine(0.6)])

    adjusted = PassiveAggressiveAdjuster(COSINE).adjust_vectors([session] * 31)

    gaps = [clicked - skipped for clicked, skipped in (similarities_of(COSINE, each) for each in adjusted)]
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(-0.1 + 0.15 / 3, abs=1e-6)
    assert gaps[1] == pytest.approx(-0.05 + 0.1 / 3, abs=1e-6)
    assert gaps[-1] == pytest.approx(0.05, abs=1e-4)


def test_a_wrong_click_is_outvoted():
    """Once the worse of two results is clicked, then three times the better, as a hand slips."""
    good, bad = element("good", at_cosine(0.55)), element("bad", at_cosine(0.5))
    query = element("q", (1, 0))
    sessions = [ImprovementInput("slip", query, (bad,), (good,), "u")]
    sessions += [ImprovementInput(f"{n}", query, (good,), (bad,), "u") for n in range(3)]

    adjusted = PassiveAggressiveAdjuster(COSINE).adjust_vectors(sessions)

    final = {each.id: each.vector[0, 0] for each in shown(adjusted[-1])}
    assert final["good"] - final["bad"] > 0.03
    slipped = {each.id: each.vector[0, 0] for each in shown(adjusted[0])}
    assert slipped["good"] > slipped["bad"]  # one slip alone does not turn the two round


@pytest.mark.parametrize("aggressiveness", [0.0, -1.0, math.nan])
def test_an_aggressiveness_that_cannot_work_is_refused(aggressiveness):
    with pytest.raises(InvalidSettingError, match="aggressiveness is"):
        PassiveAggressiveAdjuster(COSINE, aggressiveness=aggressiveness)


def test_one_click_and_one_skip_by_hand():
    session = session_of((1, 0), [at_cosine(0.5)], [at_cosine(0.6)])

    (adjusted,) = hard(COSINE).adjust_vectors([session])

    np.testing.assert_allclose(adjusted.clicked_elements[0].vector, [at_cosine(0.575)], rtol=1e-6)
    np.testing.assert_allclose(adjusted.non_clicked_elements[0].vector, [at_cosine(0.525)], rtol=1e-6)


def test_norms_that_are_not_one_are_kept_for_cosine():
    session = session_of((9, 0), [at_cosine(0.5, 7)], [at_cosine(0.6, 0.1)])

    (adjusted,) = hard(COSINE).adjust_vectors([session])

    np.testing.assert_allclose(adjusted.clicked_elements[0].vector, [at_cosine(0.575, 7)], rtol=1e-5)
    np.testing.assert_allclose(adjusted.non_clicked_elements[0].vector, [at_cosine(0.525, 0.1)], rtol=1e-5)


def test_dot_turns_at_constant_norm_to_the_wanted_inner_product_by_hand():
    # Norms 2 and 1, their mean 1.5, |q| = 3: the margin is 0.05 * 4.5. Products 3.0 and 2.4 hold it, so the
    # click goes to the lesser.
    session = session_of((3, 0), [at_cosine(0.8, 1)], [at_cosine(0.5, 2)])

    (adjusted,) = hard(DOT).adjust_vectors([session])

    middle, half = 2.7, 0.05 * 4.5 / 2
    np.testing.assert_allclose(
        adjusted.clicked_elements[0].vector, [at_cosine((middle + half) / 3, 1)], rtol=1e-6
    )
    np.testing.assert_allclose(
        adjusted.non_clicked_elements[0].vector, [at_cosine((middle - half) / 6, 2)], rtol=1e-6
    )


def test_dot_turns_as_far_as_the_query_where_the_norm_is_too_small_for_more():
    session = session_of((1, 0), [at_cosine(0.9, 0.1)], [at_cosine(0.9, 5)])

    (adjusted,) = hard(DOT, max_angle_degrees=WIDE).adjust_vectors([session])

    np.testing.assert_allclose(adjusted.clicked_elements[0].vector, [(0.1, 0)], atol=1e-6)


def test_euclid_moves_along_the_line_through_the_query_by_hand():
    # Distances 3 and 1, mean 2: the margin is 0.1; they meet at 2 and part to 1.95 and 2.05.
    session = session_of((0, 0), [(0, 30)], [(10, 0)])

    (adjusted,) = hard(EUCLID, max_angle_degrees=WIDE).adjust_vectors([session])

    np.testing.assert_allclose(adjusted.clicked_elements[0].vector, [(0, 19.5)], rtol=1e-6)
    np.testing.assert_allclose(adjusted.non_clicked_elements[0].vector, [(20.5, 0)], rtol=1e-6)


def test_what_keeps_the_margin_is_the_very_same_session():
    session = session_of((1, 0), [at_cosine(0.9)], [at_cosine(0.8), at_cosine(0.1)])

    (adjusted,) = PassiveAggressiveAdjuster(COSINE).adjust_vectors([session])

    assert adjusted is session


def test_what_is_out_of_the_way_is_the_very_same_array():
    session = session_of((1, 0), [at_cosine(0.5)], [at_cosine(0.52), at_cosine(0.1)])

    (adjusted,) = PassiveAggressiveAdjuster(COSINE).adjust_vectors([session])

    assert adjusted.non_clicked_elements[1].vector is session.non_clicked_elements[1].vector
    assert adjusted.non_clicked_elements[0].vector is not session.non_clicked_elements[0].vector


def test_the_same_session_again_moves_nothing_more():
    rng = np.random.default_rng(5)
    session = session_of(rng.normal(size=9), rng.normal(size=(2, 9)), rng.normal(size=(5, 9)))
    adjuster = hard(COSINE, max_angle_degrees=WIDE)

    (once,) = adjuster.adjust_vectors([session])
    _, twice = adjuster.adjust_vectors([session, session])

    for a, b in zip(shown(once), shown(twice), strict=True):
        np.testing.assert_array_equal(a.vector, b.vector)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_a_vector_on_the_line_of_the_query_has_no_side_to_turn_to_and_stays(cosine):
    session = session_of((2, 0, 0), [(0.5, 0.8, 0)], [(cosine, 0, 0), (0.9, 0.1, 0)])

    (adjusted,) = PassiveAggressiveAdjuster(COSINE).adjust_vectors([session])

    assert adjusted.non_clicked_elements[0].vector is session.non_clicked_elements[0].vector
    assert adjusted.clicked_elements[0].vector is not session.clicked_elements[0].vector


def test_a_part_on_the_line_of_the_query_stays_while_the_others_of_its_object_move():
    parts = [(3, 1, 2), (1, 0.5, -1), (-3, -1, -2)]
    session = session_of((3, 1, 2), [(0.1, 0.2, -1)], [parts])
    adjuster = PassiveAggressiveAdjuster(COSINE_AVG)

    (adjusted,) = adjuster.adjust_vectors([session])

    before, after = session.non_clicked_elements[0].vector, adjusted.non_clicked_elements[0].vector
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.allclose(after[1], before[1])


def test_a_vector_at_the_query_has_no_way_to_go_under_euclid_and_stays():
    session = session_of((2, 1), [(0.5, 0.8)], [(2, 1)])

    (adjusted,) = PassiveAggressiveAdjuster(EUCLID).adjust_vectors([session])

    assert adjusted.non_clicked_elements[0].vector is session.non_clicked_elements[0].vector


@pytest.mark.parametrize(("query", "part"), [((0, 0), (1, 2)), ((1, 2), (0, 0))])
def test_zero_vectors_move_nothing_and_are_not_moved_for_dot(query, part):
    session = session_of(query, [part], [part])

    (adjusted,) = PassiveAggressiveAdjuster(DOT).adjust_vectors([session])

    assert adjusted is session


def test_the_rate_is_twice_the_margin():
    session = session_of((1, 0), [at_cosine(0.5)], [at_cosine(0.51)])

    gaps = []
    for rate in (0.02, 0.1, 0.3):
        (adjusted,) = hard(COSINE, rate).adjust_vectors([session])
        clicked, skipped = similarities_of(COSINE, adjusted)
        gaps.append(clicked - skipped)

    assert gaps == pytest.approx([0.01, 0.05, 0.15], abs=1e-6)


def test_more_iterations_bring_sessions_that_disagree_nearer_to_all_holding():
    """The first session wants a above b, the second, of a query nearby, b above a."""
    a, b = element("a", (0.5, 0.8, 0.2)), element("b", (0.55, 0.7, 0.4))
    sessions = [
        ImprovementInput("1", element("q1", (1, 0, 0)), (a,), (b,), "u"),
        ImprovementInput("2", element("q2", (0.8, 0.6, 0)), (b,), (a,), "u"),
    ]

    lacking = {}
    for iterations in (1, 10, 14, 15, 30, 100):
        adjusted = hard(COSINE, 0.1, iterations, max_angle_degrees=WIDE).adjust_vectors(sessions)
        final = {e.id: e.vector for e in shown(adjusted[-1])}
        cosines = [
            [similarities(COSINE, s.query.vector, final[i], np.array([0]))[0] for i in ("a", "b")]
            for s in sessions
        ]
        lacking[iterations] = 0.05 - min(cosines[0][0] - cosines[0][1], cosines[1][1] - cosines[1][0])

    assert lacking[1] == lacking[10] == lacking[14]  # one sweep
    assert lacking[14] > lacking[15] > lacking[30] > lacking[100]


def test_a_lower_temperature_raises_the_best_part_alone():
    parts = [at_cosine(0.6), at_cosine(0.55), at_cosine(0.1)]
    session = session_of((1, 0), [parts], [at_cosine(0.7)])

    raises = {}
    for temperature in (0.1, 1.0, 5.0):
        (adjusted,) = hard(COSINE, 0.1, 10, temperature).adjust_vectors([session])
        raises[temperature] = adjusted.clicked_elements[0].vector[:, 0] - [0.6, 0.55, 0.1]

    for temperature, of_parts in raises.items():
        # One behind by 0.05 x temperature gets 1/e of what the best gets, which is all: (0.1 + 0.05) / 2.
        shares = np.exp(np.array([0, -0.05, -0.5]) / (0.05 * temperature))
        np.testing.assert_allclose(of_parts, 0.075 * shares, atol=1e-6)


def test_every_part_of_a_skipped_object_that_is_above_the_target_is_lowered_to_it():
    parts = [at_cosine(0.7), at_cosine(0.64), at_cosine(0.1)]
    session = session_of((1, 0), [at_cosine(0.6)], [parts])

    (adjusted,) = hard(COSINE).adjust_vectors([session])

    np.testing.assert_allclose(adjusted.non_clicked_elements[0].vector[:, 0], [0.625, 0.625, 0.1], rtol=1e-6)


def test_under_avg_all_parts_change_alike_and_the_mean_by_what_is_wanted():
    session = session_of((1, 0), [[at_cosine(0.6), at_cosine(0.2)]], [at_cosine(0.5)])

    (adjusted,) = hard(COSINE_AVG).adjust_vectors([session])

    np.testing.assert_allclose(adjusted.clicked_elements[0].vector[:, 0], [0.675, 0.275], rtol=1e-5)
    np.testing.assert_allclose(adjusted.non_clicked_elements[0].vector[:, 0], [0.425], rtol=1e-5)


def test_a_query_of_several_parts_moves_each_part_by_the_one_nearest_to_it():
    query = element("q", (1, 0, 0), (0, 1, 0))
    clicked, skipped = element("c", (0.5, 0, 0.8), (0, 0.5, 0.8)), element("n", (0.2, 0.6, 0.5))
    session = ImprovementInput("s", query, (clicked,), (skipped,), "u")

    (adjusted,) = PassiveAggressiveAdjuster(COSINE).adjust_vectors([session])

    moved = adjusted.clicked_elements[0].vector - clicked.vector
    assert moved[0, 0] > 0.01
    assert moved[1, 1] > 0.01
    assert moved[0, 1] == moved[1, 0] == 0


def test_a_skip_that_leaving_one_part_of_the_query_would_bring_to_another_stays():
    query = element("q", (1, 0, 0), (-1, 0.3, 0))
    clicked, skipped = element("c", (0, 0, 1)), element("n", (0.05, 0.4, 0.6))
    session = ImprovementInput("s", query, (clicked,), (skipped,), "u")

    (adjusted,) = PassiveAggressiveAdjuster(COSINE, 0.5).adjust_vectors([session])

    before, after = similarities_of(COSINE, session), similarities_of(COSINE, adjusted)
    assert after[1] <= before[1]


def test_the_trust_region_stops_what_the_margin_asks_for():
    session = session_of((1, 0), [at_cosine(0.0)], [at_cosine(1 / math.sqrt(2))])

    (adjusted,) = hard(COSINE, max_angle_degrees=5.0).adjust_vectors([session])

    np.testing.assert_allclose(
        adjusted.clicked_elements[0].vector, [at_cosine(math.cos(math.radians(85)))], rtol=1e-5
    )
    np.testing.assert_allclose(
        adjusted.non_clicked_elements[0].vector, [at_cosine(math.cos(math.radians(50)))], rtol=1e-5
    )


def test_many_small_pushes_stop_at_the_trust_region_of_the_original():
    pushes = [
        ImprovementInput(
            str(i),
            element("q", (1, 0)),
            (element("far", (0, 1)),),
            (element(f"near{i}", at_cosine(0.9)),),
            "u",
        )
        for i in range(9)
    ]

    adjusted = PassiveAggressiveAdjuster(COSINE, max_angle_degrees=30.0).adjust_vectors(pushes)

    turns = [math.degrees(math.atan2(*s.clicked_elements[0].vector[0])) for s in adjusted]
    assert turns == sorted(turns)
    assert turns[-1] == pytest.approx(30, abs=1e-3)


@settings(max_examples=25)
@given(seed=seeds, aggregation=st.sampled_from(MetricAggregationType))
def test_inner_products_of_unit_vectors_move_as_cosines_do(seed, aggregation):
    rng = np.random.default_rng(seed)

    def unit(*shape):
        vectors = rng.normal(size=shape)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    session = session_of(unit(5), unit(2, 3, 5), unit(3, 2, 5))
    cosine, dot = (
        PassiveAggressiveAdjuster(
            SearchIndexInfo(metric_type=metric, metric_aggregation_type=aggregation)
        ).adjust_vectors([session])[0]
        for metric in (MetricType.COSINE, MetricType.DOT)
    )

    for a, b in zip(shown(cosine), shown(dot), strict=True):
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-5)


def test_more_sessions_than_are_taken_at_once_are_all_learnt_from():
    sessions = [
        session_of((1, 0), [at_cosine(0.5)], [at_cosine(0.6)], user_id=f"u{u}")
        for u in range(2 * SESSIONS_AT_ONCE + 3)
    ]

    adjusted = hard(COSINE).adjust_vectors(sessions)

    raised = {float(s.clicked_elements[0].vector[0, 0]) for s in adjusted}
    assert len(raised) == 1
    assert raised.pop() == pytest.approx(0.575)
