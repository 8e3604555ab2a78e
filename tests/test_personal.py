"""Axes: J remembered queries · Q parts of a query · P parts of an object · D dimensions."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.personal import (
    blend,
    clicked_mean,
    gate_threshold_of,
    gates,
    object_gates,
    query_mean,
    shift_query,
)
from embedding_studio.errors import InvalidInputError

COSINE = SearchIndexInfo(metric_type=MetricType.COSINE)
DOT = SearchIndexInfo(metric_type=MetricType.DOT)
EUCLID = SearchIndexInfo(metric_type=MetricType.EUCLID)


def f32(*rows):
    return np.array(rows, dtype=np.float32)


def at_angle(degrees, norm=1.0):
    return (norm * np.cos(np.radians(degrees)), norm * np.sin(np.radians(degrees)))


@pytest.mark.parametrize("index", [COSINE, DOT, EUCLID])
def test_the_gate_is_closed_up_to_the_threshold_and_opens_linearly_in_the_cosine(index):
    query = f32(1, 0)
    remembered = f32(
        (1, 0), at_angle(np.degrees(np.arccos(0.9))), (0.75, np.sqrt(1 - 0.75**2)), (0, 1), (-1, 0)
    )

    opened = gates(index, query, remembered, 0.75)

    assert opened == pytest.approx([1.0, 0.6, 0.0, 0.0, 0.0], abs=1e-6)  # (0.9 - 0.75) / (1 - 0.75)


@pytest.mark.parametrize(("index", "opened"), [(COSINE, 1.0), (DOT, 1.0), (EUCLID, 0.0)])
def test_lengths_count_for_the_gate_under_euclid_alone(index, opened):
    remembered = f32((2, 0))  # closeness under euclid: 1 - 1 / (2 * 1 * 2) = 0.75

    assert gates(index, f32(1, 0), remembered, 0.75) == pytest.approx([opened])


@pytest.mark.parametrize("index", [COSINE, DOT, EUCLID])
def test_a_zero_query_is_near_nothing(index):
    assert gates(index, f32(0, 0), f32((1, 0), (0, 0)), 0.0).tolist() == [0, 0]
    assert gates(index, f32(1, 0), f32((0, 0)), 0.0).tolist() == [0]


def test_no_memory_opens_no_gate():
    assert gates(COSINE, f32(1, 0), np.zeros((0, 2), np.float32), 0.75).shape == (0,)


@pytest.mark.parametrize("index", [COSINE, DOT, EUCLID])
def test_a_fitted_gate_reaches_three_tenths_of_the_ordinary_distance(index):
    queries = f32((1, 0), at_angle(60), at_angle(90))

    threshold = gate_threshold_of(index, queries)

    assert threshold == pytest.approx(0.85)  # cosines 0.5, 0 and 0.87; 1 - 0.3 (1 - 0.5)


def test_lengths_count_for_a_fitted_gate_under_euclid():
    assert gate_threshold_of(EUCLID, f32((1, 0), (2, 0))) == pytest.approx(0.925)  # 1 - 0.3 (1 - 0.75)


@pytest.mark.parametrize("index", [COSINE, DOT])
@pytest.mark.parametrize("queries", [np.zeros((0, 2), np.float32), f32((1, 0), (0, 0), (1, 0), (2, 0))])
def test_a_gate_is_not_fitted_to_one_direction(index, queries):
    with pytest.raises(InvalidInputError, match="two different queries"):
        gate_threshold_of(index, queries)


def test_a_fitted_gate_is_never_wide_open_and_never_shut():
    assert gate_threshold_of(COSINE, f32((1, 0), (-1, 0))) == 0.6  # else 1 - 0.3 * 2
    assert gate_threshold_of(COSINE, f32((1, 0), (1, 0.001))) == 0.99


logs = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(2 + seed % 9, 3)).astype(np.float32)
)


@given(logs, st.randoms(use_true_random=False), st.sampled_from([COSINE, DOT, EUCLID]))
def test_neither_the_order_nor_the_repetition_of_queries_changes_the_fitted_gate(queries, random, index):
    again = random.choices(range(len(queries)), k=5)
    mixed = random.sample([*range(len(queries)), *again], k=len(queries) + 5)

    threshold = gate_threshold_of(index, queries[mixed])

    assert threshold == gate_threshold_of(index, queries)
    assert 0.6 <= threshold <= 0.99


@given(logs, st.floats(0.1, 2))
def test_what_all_queries_have_in_common_changes_no_fitted_gate(queries, common):
    directions = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    bent = np.hstack([directions, np.full((len(queries), 1), common, np.float32)])
    assume(0.6 < (threshold := gate_threshold_of(COSINE, queries)) < 0.95)

    bent_threshold = gate_threshold_of(COSINE, bent)

    # cos' = (cos + a^2) / (1 + a^2), for every pair and so for the median
    assert 1 - bent_threshold == pytest.approx((1 - threshold) / (1 + common**2), rel=1e-4)
    np.testing.assert_allclose(
        gates(COSINE, bent[0], bent, bent_threshold),
        gates(COSINE, queries[0], queries, threshold),
        atol=1e-4,
    )


def test_a_query_is_remembered_by_the_mean_of_its_parts():
    parts = f32((3, 0), (0, 1))

    np.testing.assert_allclose(query_mean(COSINE, parts), at_angle(45), rtol=1e-6)
    np.testing.assert_allclose(query_mean(DOT, parts), (1.5, 0.5))
    np.testing.assert_allclose(query_mean(EUCLID, parts), (1.5, 0.5))


def test_a_query_whose_parts_cancel_out_is_remembered_as_zero():
    assert query_mean(COSINE, f32((1, 0), (-1, 0))).tolist() == [0, 0]


def test_an_object_of_several_parts_is_clicked_for_its_best_part_under_min():
    clicked = [f32((0, 2), (2, 0), (-2, 0)), f32((0, 5))]

    mean = clicked_mean(COSINE, f32((1, 0.5)), clicked, [1.0, 3.0])

    np.testing.assert_allclose(mean, (0.25, 0.75))


def test_an_object_of_several_parts_is_clicked_for_all_of_them_under_avg():
    index = SearchIndexInfo(metric_type=MetricType.EUCLID, metric_aggregation_type=MetricAggregationType.AVG)

    mean = clicked_mean(index, f32((1, 0.5)), [f32((0, 2), (2, 0), (-2, 1))], [2.0])

    np.testing.assert_allclose(mean, (0, 1))


@pytest.mark.parametrize("index", [COSINE, EUCLID])
def test_what_was_passed_over_says_nothing_where_lengths_do_not_multiply(index):
    clicked, passed_over = [f32((0, 2))], [f32((3, 1)), f32((1, 0))]

    alone = clicked_mean(index, f32((1, 0.5)), clicked, [1.0])

    np.testing.assert_array_equal(clicked_mean(index, f32((1, 0.5)), clicked, [1.0], passed_over), alone)


def test_under_dot_a_pull_is_by_the_difference_as_far_as_lengths_differ():
    clicked, passed_over = [f32((0, 1.02))], [f32((0.98, 0))]

    mean = clicked_mean(DOT, f32((1, 0.5)), clicked, [1.0], passed_over)

    # Lengths 1.02 and 0.98: their deviation is 0.02 of their mean, two fifths of 0.05.
    np.testing.assert_allclose(mean, (-0.4 * 0.5, 1 - 0.4 * 0.5), atol=1e-6)
    far_apart = clicked_mean(DOT, f32((1, 0.5)), [f32((0, 3))], [1.0], [f32((1, 0))])
    np.testing.assert_allclose(far_apart, (-0.5, 0.5), atol=1e-6)


def test_inner_products_of_equal_lengths_are_pulled_as_cosines_are():
    clicked, passed_over = [f32((0, 3)), f32((3, 0))], [f32((-3, 0))]

    dot, cosine = (clicked_mean(i, f32((1, 0.5)), clicked, [1.0, 2.0], passed_over) for i in (DOT, COSINE))

    np.testing.assert_allclose(dot, cosine, atol=1e-6)


def test_a_mean_over_parts_that_differ_is_short_and_counts_so():
    index = SearchIndexInfo(metric_aggregation_type=MetricAggregationType.AVG)
    one_way, two_ways = f32((0, 1), (0, 2)), f32((1, 0), (0, 1))  # means of length 1 and 0.707

    mean = clicked_mean(index, f32((1, 0.5)), [one_way], [1.0], [two_ways])

    np.testing.assert_allclose(
        mean, (-0.25, 1 - 0.75), atol=1e-6
    )  # (0, 1) less the mean of (0, 1) and (.5, .5)


def test_where_all_was_clicked_the_pull_is_towards_it():
    mean = clicked_mean(DOT, f32((1, 0.5)), [f32((0, 9)), f32((1, 0))], [1.0, 1.0])

    np.testing.assert_allclose(mean, (0.5, 0.5))


def test_a_click_unlike_its_query_pulls_little():
    query, unlike, like = f32((1, 0)), f32((0.15, np.sqrt(1 - 0.15**2))), f32((0.3, -np.sqrt(1 - 0.3**2)))

    half, full = (clicked_mean(COSINE, query, [each], [1.0]) for each in (unlike, like))
    both = clicked_mean(COSINE, query, [unlike, like], [1.0, 1.0])

    np.testing.assert_allclose(half, unlike[0] / 2, rtol=1e-6)
    np.testing.assert_allclose(full, like[0], rtol=1e-6)
    np.testing.assert_allclose(both, (unlike[0] + 2 * like[0]) / 3, rtol=1e-5)
    assert not clicked_mean(COSINE, query, [f32((-1, 2))], [1.0]).any()


@given(seed=st.integers(0, 2**32 - 1), index=st.sampled_from([COSINE, DOT, EUCLID]))
def test_what_is_like_its_query_pulls_as_it_always_did(seed, index):
    rng = np.random.default_rng(seed)
    clicked = [np.abs(rng.normal(size=(1, 4))).astype(np.float32) for _ in range(3)]
    query = np.stack([each / np.linalg.norm(each) for each in clicked]).sum(axis=0)
    weights = rng.uniform(0.1, 2, 3).tolist()

    mean = clicked_mean(index, query, clicked, weights)

    vectors = [each[0] if index is EUCLID else each[0] / np.linalg.norm(each) for each in clicked]
    np.testing.assert_allclose(mean, np.average(vectors, axis=0, weights=weights), rtol=1e-5)


@pytest.mark.parametrize("index", [COSINE, DOT, EUCLID])
def test_a_query_with_all_gates_closed_is_the_very_same_array(index):
    query = f32((1, 0, 0), (0, 1, 0))

    assert shift_query(index, query, np.zeros(2), f32((0, 0, 1), (0, 1, 0)), 1.0) is query
    assert shift_query(index, query, np.zeros(0), np.zeros((0, 3), np.float32), 1.0) is query
    assert shift_query(index, query, np.ones(2), f32((0, 0, 1), (0, 1, 0)), 0.0) is query


def test_an_open_gate_shifts_the_direction_by_half_the_clicked_mean():
    shifted = shift_query(COSINE, f32((1, 0)), np.array([1.0]), f32((0, 1)), 1.0)

    # q + mu k / (1 + k) = (1, 0.5), at length 1
    np.testing.assert_allclose(shifted, [(1 / np.sqrt(1.25), 0.5 / np.sqrt(1.25))], rtol=1e-6)


def test_the_norm_of_every_part_is_kept_for_dot():
    queries = f32((3, 0), (0, 7), (0, 0))

    shifted = shift_query(DOT, queries, np.array([0.5, 1.0]), f32((0.6, 0.8), (0, 1)), 1.0)

    np.testing.assert_allclose(np.linalg.norm(shifted, axis=1), [3, 7, 0], rtol=1e-6)


def test_the_shift_under_euclid_turns_the_query_towards_the_clicked_mean_at_its_own_length():
    shifted = shift_query(EUCLID, f32((3, 0), (0, 3)), np.array([1.0]), f32((0, 6)), 1.0)

    np.testing.assert_allclose(shifted, [(3 / np.sqrt(2), 3 / np.sqrt(2)), (0, 3)], rtol=1e-6)  # a = 1/2


def test_a_pull_that_cancels_the_query_out_leaves_it():
    query = f32((1, 0))

    np.testing.assert_array_equal(shift_query(COSINE, query, np.array([1.0]), f32((-1, 0)), 2.0), query)


@given(seed=st.integers(0, 2**32 - 1), index=st.sampled_from([COSINE, DOT, EUCLID]))
def test_the_shifted_query_is_never_farther_from_the_clicked_mean(seed, index):
    rng = np.random.default_rng(seed)
    query, mean = rng.normal(size=(1, 5)).astype(np.float32), rng.normal(size=(1, 5)).astype(np.float32)

    def distance(vectors):
        if index is EUCLID:
            return np.linalg.norm(vectors - mean)
        return -(vectors @ mean.T).item()

    shifted = shift_query(
        index, query if index is not COSINE else query / np.linalg.norm(query), rng.random(1), mean, 1.0
    )

    start = query if index is not COSINE else query / np.linalg.norm(query)
    assert distance(shifted) <= distance(start) + 1e-5


def test_an_object_counts_by_twice_the_widest_gate_that_moved_it():
    moved = [("a", "b"), ("b",), ("c",), ("d",), ("e",)]
    gates, weights = np.array([0.2, 0.3, 0.9, 0.0, 0.9]), np.array([1.0, 1.0, 0.5, 1.0, 0.0])

    assert dict(object_gates(gates, moved, weights)) == {"a": 0.4, "b": 0.6, "c": 0.5}


def test_a_closed_gate_leaves_the_original_similarity_in_every_bit():
    assert blend(0.1, 0.7, 0.0) == 0.1
    assert blend(0.1, 0.7, 1.0) == 0.7
    assert blend(np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([0.25, 0.25])).tolist() == [0.25, 0.75]
