"""Axes: Q parts of a query · I objects · N parts of all objects · D dimensions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.embeddings.preparation import check_vectors, prepare_vectors
from embedding_studio.embeddings.similarity import distances, similarities
from embedding_studio.errors import InvalidVectorsError

COSINE = SearchIndexInfo(metric_type=MetricType.COSINE)


def index_of(metric, aggregation=MetricAggregationType.MIN, dimensions=None):
    return SearchIndexInfo(metric_type=metric, metric_aggregation_type=aggregation, dimensions=dimensions)


def f32(*rows):
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize(
    ("metric", "similarity", "distance"),
    [
        (MetricType.COSINE, 0.6, 0.4),
        (MetricType.DOT, 12.0, -12.0),
        (MetricType.EUCLID, -np.sqrt(17), np.sqrt(17)),
    ],
)
def test_each_metric_has_its_similarity_and_its_distance(metric, similarity, distance):
    index = index_of(metric)

    found = similarities(index, f32([4, 0]), f32([3, 4]), np.array([0]))

    assert found == pytest.approx([similarity], rel=1e-6)
    assert distances(index, found) == pytest.approx([distance], rel=1e-6)


def test_the_nearest_pair_of_parts_decides_under_min_and_the_mean_of_all_pairs_under_avg():
    queries = f32([1, 0], [0, 1])
    parts = f32([1, 0], [-1, 0], [0, -1], [0.6, 0.8])  # the first object has three parts, the second one
    starts = np.array([0, 3])

    nearest = similarities(index_of(MetricType.DOT), queries, parts, starts)
    mean = similarities(index_of(MetricType.DOT, MetricAggregationType.AVG), queries, parts, starts)

    assert nearest == pytest.approx([1.0, 0.8])
    assert mean == pytest.approx([(1 + 0 - 1 + 0 + 0 - 1) / 6, (0.6 + 0.8) / 2])


@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(MetricType),
    aggregation=st.sampled_from(MetricAggregationType),
)
def test_an_object_has_the_same_similarity_in_every_bit_whoever_stands_beside_it(seed, metric, aggregation):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, size=7)
    starts = np.cumsum(counts) - counts
    parts = rng.normal(size=(counts.sum(), 37)).astype(np.float32)
    queries = rng.normal(size=(3, 37)).astype(np.float32)
    index = index_of(metric, aggregation)

    together = similarities(index, queries, parts, starts)
    alone = [
        similarities(index, queries, parts[start : start + count], np.array([0]))[0]
        for start, count in zip(starts, counts, strict=True)
    ]

    assert together.tolist() == alone


def test_no_objects_have_no_similarities():
    assert similarities(COSINE, f32([1, 0]), np.zeros((0, 2), np.float32), np.zeros(0, np.int64)).shape == (
        0,
    )


def test_a_zero_vector_is_alike_to_nothing_under_cosine():
    assert similarities(COSINE, f32([0, 0]), f32([1, 0], [0, 0]), np.array([0, 1])).tolist() == [0, 0]


def test_vectors_of_the_right_kind_are_returned_as_the_very_same_array():
    vectors = f32([3, 4, 0], [0, 0, 1])

    assert check_vectors(COSINE, vectors, "object 'o1'") is vectors


def test_a_single_vector_is_one_part():
    assert check_vectors(COSINE, [3, 4, 0], "the query").shape == (1, 3)


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        ([[1.0, np.nan, 0.0]], "part 0 of object 'o1' is not finite"),
        ([[1.0, 0.0, 0.0], [np.inf, 0.0, 0.0]], "part 1 of object 'o1' is not finite"),
        ([[1e300, 0.0, 0.0]], "part 0 of object 'o1' is not finite"),
        ([[1e30, 0.0, 0.0]], "longer than float32 can square"),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], "part 1 of object 'o1' is zero"),
        ([[1.0, 0.0]], "object 'o1' have 2 dimensions, the collection has 3"),
        ([[1.0, 0.0, 0.0], [1.0]], "object 'o1' are not an array of numbers"),
        ([["one", "two", "three"]], "object 'o1' are not an array of numbers"),
        ([], r"shape \(0,\)"),
        (1.0, r"shape \(\)"),
        ([[[1.0, 0.0, 0.0]]], r"shape \(1, 1, 3\)"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_by_name(vectors, complaint):
    with pytest.raises(InvalidVectorsError, match=complaint):
        check_vectors(index_of(MetricType.COSINE, dimensions=3), vectors, "object 'o1'")


@pytest.mark.parametrize("metric", [MetricType.DOT, MetricType.EUCLID])
def test_a_zero_vector_is_welcome_where_lengths_count(metric):
    assert check_vectors(index_of(metric), [0.0, 0.0, 0.0], "object 'o1'").tolist() == [[0, 0, 0]]


def test_cosine_vectors_are_prepared_to_unit_length_even_where_their_squares_leave_float32():
    prepared = prepare_vectors(f32([3, 4], [3e25, 4e25], [3e-25, -4e-25]), MetricType.COSINE)

    np.testing.assert_allclose(prepared, [[0.6, 0.8], [0.6, 0.8], [0.6, -0.8]], rtol=1e-6)
    assert prepared.dtype == np.float32


def test_a_zero_vector_cannot_be_prepared_for_cosine():
    with pytest.raises(InvalidVectorsError, match="zero vector has no direction"):
        prepare_vectors(f32([1, 0], [0, 0]), MetricType.COSINE)


@pytest.mark.parametrize("metric", [MetricType.DOT, MetricType.EUCLID])
def test_preparation_leaves_vectors_alone_where_lengths_count(metric):
    vectors = f32([3, 4], [0, 0])

    assert prepare_vectors(vectors, metric) is vectors


def test_min_max_scaling_would_change_the_order_of_results_and_depend_on_the_batch():
    """Why ``prepare_vectors`` does not do for inner products what is sometimes advised."""

    def min_max(vectors):
        return (vectors - vectors.min()) / (vectors.max() - vectors.min())

    query, first, second = (np.array(vector) for vector in ([3.0, -1.0], [1.0, 0.0], [1.2, 2.0]))

    scaled_query, scaled_first, scaled_second = min_max(np.stack([query, first, second]))
    with_another_in_the_batch = min_max(np.stack([query, first, second, np.array([0.0, 9.0])]))[1]

    assert query @ first > query @ second
    assert scaled_query @ scaled_first < scaled_query @ scaled_second
    assert not np.allclose(scaled_first, with_another_in_the_batch)
