"""What codes promise: estimates whose errors are as large as they say, and candidates that leave out none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricType
from embedding_studio.embeddings.codes import WHOLE_DIMENSIONS, Coder, Codes, rotate
from embedding_studio.embeddings.preparation import prepare_vectors

SIZES = [5, WHOLE_DIMENSIONS, WHOLE_DIMENSIONS + 1, 97, 384]
CAUTIOUS = 2.5


def vectors(n, D, seed=0, spread=1.0):
    """Return points around three centres, as a catalogue of three subjects has them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, D))
    points = centres[rng.integers(3, size=n)] + spread * rng.normal(size=(n, D))
    return points.astype(np.float32)


def coded(given, metric=MetricType.COSINE, centre=None, numbers=None):
    coder = Coder(metric, prepare_vectors(given, metric).mean(axis=0) if centre is None else centre)
    codes = Codes(coder)
    codes.add(np.arange(len(given)) if numbers is None else numbers, coder.encode(given))
    return codes


def distances_by_definition(metric, query, given):
    if metric is MetricType.DOT:
        return -(given @ query)
    if metric is MetricType.EUCLID:
        return np.linalg.norm(given - query, axis=1)
    return 1 - given @ query / np.linalg.norm(given, axis=1) / np.linalg.norm(query)


@pytest.mark.parametrize("D", [2, 3, 65, 97, 384, 1000])
def test_the_rotation_keeps_lengths_and_angles(D):
    given = np.random.default_rng(1).normal(size=(7, D)).astype(np.float32)

    rotated = rotate(given)

    np.testing.assert_allclose(rotated @ rotated.T, given @ given.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("D", [97, 384])
def test_the_rotation_spreads_what_stands_in_one_component_over_all(D):
    rotated = rotate(np.eye(D, dtype=np.float32))

    assert np.abs(rotated).max() < 7 / np.sqrt(D)


def test_codes_stay_what_they_are():
    """A process with other libraries must read what this one has written; these numbers are of the first
    version."""
    code = Coder(MetricType.COSINE, np.zeros(97, dtype=np.float32)).encode(
        np.arange(97, dtype=np.float32)[None] - 40
    )

    assert code.dtype.itemsize == 2 * 8 + 4 * 4
    assert code["content"][0].tobytes().hex() == GOLDEN


GOLDEN = "fa83d1117c4dee8a0eb6752600000000"


@pytest.mark.parametrize("metric", MetricType)
@pytest.mark.parametrize("D", SIZES)
@pytest.mark.parametrize("parts", [1, 4])
def test_all_that_are_nearest_are_candidates(metric, D, parts):
    given = vectors(3001, D, spread=0.7)
    numbers = np.arange(3001) // parts
    view = coded(given, metric, numbers=numbers).view()

    for query in vectors(20, D, seed=7):
        by_part = distances_by_definition(metric, query, given)
        distances = np.full(numbers[-1] + 1, np.inf)
        np.minimum.at(distances, numbers, by_part)
        nearest = np.argsort(distances)[:16]

        found = view.candidates(query[None], 16, CAUTIOUS)

        assert set(nearest.tolist()) <= set(found.tolist())
        assert np.array_equal(found, np.unique(found))


@pytest.mark.parametrize("D", [5, 384])
def test_what_is_not_among_the_wanted_is_no_candidate_and_hides_none(D):
    given = vectors(3001, D)
    view = coded(given).view()
    among = np.arange(2, 3001, 3)

    for query in vectors(10, D, seed=7):
        nearest = among[np.argsort(distances_by_definition(MetricType.COSINE, query, given[among]))[:16]]

        found = view.candidates(query[None], 16, CAUTIOUS, among=among)

        assert set(nearest.tolist()) <= set(found.tolist()) <= set(among.tolist())


def test_each_part_of_a_query_has_its_candidates():
    given = vectors(2000, 97)
    view = coded(given).view()
    queries = vectors(2, 97, seed=3)

    both = view.candidates(queries, 16, 1.5)

    one_by_one = [view.candidates(query[None], 16, 1.5).tolist() for query in queries]
    assert both.tolist() == sorted(set(one_by_one[0] + one_by_one[1]))


@pytest.mark.parametrize("D", [5, 384])
def test_vectors_that_are_equal_are_all_candidates_or_none_is(D):
    same, other = vectors(2, D, seed=11)
    view = coded(np.concatenate([np.tile(same, (2500, 1)), np.tile(other, (5, 1))])).view()

    assert view.candidates(other[None], 5, 1.5).tolist() == list(range(2500, 2505))
    assert set(range(2500)) <= set(view.candidates(same[None], 16, 1.5).tolist())


@pytest.mark.parametrize("D", [5, 384])
def test_far_and_tight_clusters_hide_nothing(D):
    rng = np.random.default_rng(5)
    ends = 10 * np.eye(2, D) + 20
    given = (np.repeat(ends, 1500, axis=0) + 0.1 * rng.normal(size=(3000, D))).astype(np.float32)
    view = coded(given, MetricType.EUCLID, centre=given[:300].mean(axis=0)).view()  # as it was loaded first

    for end in ends:
        query = (end + 0.1 * rng.normal(size=D)).astype(np.float32)
        nearest = np.argsort(distances_by_definition(MetricType.EUCLID, query, given))[:16]

        assert set(nearest.tolist()) <= set(view.candidates(query[None], 16, CAUTIOUS).tolist())


def test_what_was_removed_is_no_candidate_and_the_rest_still_is():
    given = vectors(1500, 97)
    codes = coded(given)
    query = given[8]

    codes.remove(np.array([8, 700, 9999]))

    found = codes.view().candidates(query[None], 1500, 1.0)
    assert found.tolist() == [k for k in range(1500) if k not in {8, 700}]


def test_a_view_does_not_see_what_is_added_after_it():
    given = vectors(300, 97)
    codes = coded(given)
    before = codes.view()

    codes.add(np.arange(300, 5300), codes.coder.encode(vectors(5000, 97, seed=2)))

    assert before.candidates(given[:1], 6000, 1.0).tolist() == list(range(300))
    assert len(codes.view().candidates(given[:1], 6000, 1.0)) == 5300


@pytest.mark.parametrize("D", [97, 384])
@pytest.mark.parametrize("metric", MetricType)
def test_the_error_is_as_large_as_it_says(D, metric):
    given, queries = vectors(2000, D), vectors(50, D, seed=9)
    coder = Coder(metric, prepare_vectors(given, metric).mean(axis=0))
    codes = Codes(coder)
    codes.add(np.arange(2000), coder.encode(given))
    view = codes.view()
    prepared = prepare_vectors(given, metric) - coder.centre

    misses = []
    for query in queries:
        question = coder.question(query)
        estimates, errors = view._estimates(question, np.arange(2000))
        truth = prepared @ (prepare_vectors(query[None], metric)[0] - coder.centre)
        misses.append((estimates - coder.encode(given)["offset"] - truth) / errors)

    assert np.std(misses) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(misses)) < 0.1


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 130), st.integers(1, 60), st.integers(1, 70), st.sampled_from(list(MetricType)))
def test_where_all_are_wanted_all_are_candidates(D, n, count, metric):
    given = vectors(n, D, seed=n)

    found = coded(given, metric).view().candidates(given[:1], n + count, 1.0)

    assert found.tolist() == list(range(n))


def test_an_object_in_the_centre_is_compared_like_others():
    given = vectors(50, 97)
    given[3] = given[:3].mean(axis=0)
    codes = coded(given, MetricType.EUCLID, centre=given[3])

    assert 3 in codes.view().candidates(given[3:4], 1, 1.0)
