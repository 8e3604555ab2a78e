"""Axes: P parts · D dimensions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.embeddings.trust_region import ROUNDING, into_trust_region

COSINE = SearchIndexInfo(metric_type=MetricType.COSINE)
DOT = SearchIndexInfo(metric_type=MetricType.DOT)
EUCLID = SearchIndexInfo(metric_type=MetricType.EUCLID)


def f32(*rows):
    return np.array(rows, dtype=np.float32)


def at_angle(degrees, norm=1.0):
    return (norm * np.cos(np.radians(degrees)), norm * np.sin(np.radians(degrees)))


def unit(vectors):
    return vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


def angle(a, b):
    """Return radians [P], exact for small angles too."""
    a, b = unit(a), unit(b)
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))


@pytest.mark.parametrize("index", [COSINE, DOT])
def test_a_vector_outside_is_brought_to_the_edge_on_its_own_side_with_the_norm_of_the_original(index):
    original = f32((2, 0), (2, 0), (2, 0))
    moved = f32(at_angle(90, 5), at_angle(-25, 1), at_angle(10, 1))

    brought = into_trust_region(index, original, moved, 20.0)

    np.testing.assert_allclose(brought, [at_angle(20, 2), at_angle(-20, 2), at_angle(10, 2)], rtol=1e-6)


def test_the_region_of_euclid_is_the_ball_whose_radius_is_the_chord_of_the_angle():
    radius = 2 * np.sin(np.radians(10)) * 2  # of 20 degrees on a circle of radius 2

    brought = into_trust_region(EUCLID, f32((2, 0), (2, 0)), f32((2, 5), (2.1, 0)), 20.0)

    np.testing.assert_allclose(brought, [(2, radius), (2.1, 0)], rtol=1e-6)


@pytest.mark.parametrize("index", [COSINE, DOT, EUCLID])
def test_vectors_inside_are_the_very_same_array(index):
    original = f32(at_angle(0), at_angle(40))
    moved = f32(at_angle(19.9), at_angle(40))

    assert into_trust_region(index, original, moved, 20.0) is moved


@pytest.mark.parametrize("index", [COSINE, DOT])
@pytest.mark.parametrize("moved", [(-1.0, 0.0, 0.0), (-3.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_where_no_point_is_nearest_the_original_stays(index, moved):
    assert into_trust_region(index, f32((1, 0, 0)), f32(moved), 20.0).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("index", [DOT, EUCLID])
def test_a_zero_original_stays(index):
    assert into_trust_region(index, f32((0, 0, 0)), f32((1, 2, 3)), 20.0).tolist() == [[0, 0, 0]]


@given(
    seed=st.integers(0, 2**32 - 1),
    index=st.sampled_from([COSINE, DOT, EUCLID]),
    degrees=st.floats(0.01, 180),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    reach=st.sampled_from([1e-4, 0.1, 1.0, 100.0]),
)
def test_nothing_leaves_the_region_and_a_second_time_changes_no_bit(seed, index, degrees, scale, reach):
    rng = np.random.default_rng(seed)
    original = scale * rng.normal(size=(7, 33)).astype(np.float32)
    moved = original + scale * reach * rng.normal(size=(7, 33)).astype(np.float32)

    brought = into_trust_region(index, original, moved, degrees)

    norms = np.linalg.norm(original.astype(np.float64), axis=1)
    if index is EUCLID:
        way = np.linalg.norm(brought - original.astype(np.float64), axis=1)
        assert (way <= (2 * np.sin(np.radians(degrees) / 2) + 2 * ROUNDING) * norms).all()
    else:
        assert (angle(original, brought) <= np.radians(degrees) + 2 * ROUNDING).all()
        np.testing.assert_allclose(np.linalg.norm(brought, axis=1), norms, rtol=2 * ROUNDING)
    assert into_trust_region(index, original, brought, degrees) is brought


@given(
    seed=st.integers(0, 2**32 - 1),
    degrees=st.floats(0.01, 179),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    reach=st.sampled_from([1e-4, 0.1, 1.0, 100.0]),
)
def test_the_point_on_the_edge_is_the_original_turned_by_the_angle_towards_the_moved(
    seed, degrees, scale, reach
):
    """Written out with unit vectors, where the product uses lengths and inner products alone."""
    rng = np.random.default_rng(seed)
    original = scale * rng.normal(size=(7, 33)).astype(np.float32)
    moved = original + scale * reach * rng.normal(size=(7, 33)).astype(np.float32)

    brought = into_trust_region(COSINE, original, moved, degrees)

    norm, a, b = (
        np.linalg.norm(original.astype(np.float64), axis=1, keepdims=True),
        *map(unit, (original, moved)),
    )
    aside = unit(b - np.vecdot(a, b)[:, None] * a)
    turn = np.minimum(angle(original, moved), np.radians(degrees))[:, None]
    expected = norm * (np.cos(turn) * a + np.sin(turn) * aside)
    assert (np.linalg.norm(brought - expected, axis=1) <= 2 * ROUNDING * norm[:, 0]).all()


@pytest.mark.parametrize("degrees_off", [0.0, 0.01])
def test_what_is_next_to_the_antipode_is_on_no_side(degrees_off):
    original, moved = f32((1, 0)), f32(at_angle(180 - degrees_off))

    assert into_trust_region(COSINE, original, moved, 20.0).tolist() == [[1, 0]]


@given(seed=st.integers(0, 2**32 - 1), index=st.sampled_from([COSINE, EUCLID]))
def test_the_nearest_point_is_taken(seed, index):
    """No point of the region, of many drawn at random, is nearer to the moved vector."""
    rng = np.random.default_rng(seed)
    original, moved = rng.normal(size=(2, 1, 3)).astype(np.float32)
    original, moved = (v / np.linalg.norm(v) for v in (original, moved))
    others = into_trust_region(
        index, np.repeat(original, 99, axis=0), rng.normal(size=(99, 3)).astype(np.float32), 20.0
    )

    brought = into_trust_region(index, original, moved, 20.0)

    assert np.linalg.norm(moved - brought) <= np.linalg.norm(moved - others, axis=1).min() + 1e-6


@given(seed=st.integers(0, 2**32 - 1), index=st.sampled_from([DOT, EUCLID]))
def test_scaling_everything_scales_the_result(seed, index):
    rng = np.random.default_rng(seed)
    original, moved = rng.normal(size=(2, 5, 9)).astype(np.float32)

    np.testing.assert_array_equal(
        into_trust_region(index, 8 * original, 8 * moved, 20.0),
        8 * into_trust_region(index, original, moved, 20.0),
    )
