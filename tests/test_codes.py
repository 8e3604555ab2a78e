"""What codes promise: estimates whose errors are as large as they say, and candidates that leave out none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricType
from embedding_studio.embeddings import estimates
from embedding_studio.embeddings.coder import ROUNDING, WHOLE_DIMENSIONS, Coder
from embedding_studio.embeddings.codes import Codes
from embedding_studio.embeddings.preparation import prepare_vectors
from embedding_studio.embeddings.rotation import rotate

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
    made = Codes(coder)
    made.add(np.arange(len(given)) if numbers is None else numbers, coder.encode(given))
    return made


def by_object(numbers, distances):
    """Return the smallest distance of each object."""
    smallest = np.full(numbers.max() + 1, np.inf)
    np.minimum.at(smallest, numbers, distances)
    return smallest


def candidates(view, query, count, distances, *, margin=CAUTIOUS, among=None):
    """Return what a search compares: the likeliest, then what may be as near as the last wanted of them."""
    ranking = view.ranking(np.atleast_2d(query), margin, among)
    likeliest = ranking.likeliest(count)
    farthest = np.sort(distances[likeliest])[min(count, len(likeliest)) - 1]
    return np.union1d(likeliest, ranking.within(farthest))


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


@pytest.mark.parametrize("D", [97, 127, 250, 255, 384, 1000])
def test_the_rotation_spreads_what_stands_in_one_component_over_all(D):
    rotated = rotate(np.eye(D, dtype=np.float32))

    assert np.abs(rotated).max() < 7 / np.sqrt(D)


@pytest.mark.parametrize("D", [97, 127, 250, 255, 384, 500, 1000])
@pytest.mark.parametrize("side", ["front", "back"])
def test_the_rotation_spreads_what_stands_in_one_half_over_both(D, side):
    given = np.random.default_rng(2).normal(size=(300, D)).astype(np.float32)
    given[:, slice(D // 2, None) if side == "front" else slice(D // 2)] = 0

    rotated = rotate(given)

    shares = np.square(rotated[:, : D // 2]).sum(axis=1) / np.square(rotated).sum(axis=1)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.std() < 1.5 * np.sqrt(1 / (2 * D))


@pytest.mark.parametrize("D", [127, 255])
@pytest.mark.parametrize("kind", ["padded", "falling", "sparse"])
def test_vectors_whose_components_differ_in_weight_hide_nothing(D, kind):
    rng = np.random.default_rng(4)
    weights = {"padded": np.arange(D) < D // 2, "falling": 1 / np.arange(1, D + 1), "sparse": np.ones(D)}[
        kind
    ]
    given, queries = ((rng.normal(size=(n, D)) * weights).astype(np.float32) for n in (4000, 20))
    if kind == "sparse":
        given *= rng.random(given.shape) < 8 / D
        given[:, 0] += 0.01
    view = coded(given).view()

    missed = 0
    for query in queries:
        distances = distances_by_definition(MetricType.COSINE, query.astype(np.float64), given)
        found = candidates(view, query, 10, distances)
        missed += len(set(np.argsort(distances)[:10].tolist()) - set(found.tolist()))

    assert missed <= 3  # of 200


def test_an_object_of_many_parts_is_removed_in_proportion_to_them():
    given = vectors(30_000, 5)
    made = coded(given, numbers=np.arange(30_000) // 15_000)

    made.remove(np.zeros(15_000, dtype=np.int64))  # a row for each pair would be 2 GB

    assert made.view().ranking(given[:1], 1.0).likeliest(10).tolist() == [1]


def test_codes_stay_what_they_are():
    """A process with other libraries must read what this one has written; these numbers are of the first
    version."""
    code = Coder(MetricType.COSINE, np.zeros(97, dtype=np.float32)).encode(
        np.arange(97, dtype=np.float32)[None] - 40
    )

    assert code.dtype.itemsize == 97 + 4 * 4
    assert code["content"][0].tobytes().hex() == GOLDEN


GOLDEN = (
    "f0ff0f74f72b080ef7cceed8192424ffecd945fb4af5d816d1103323c20048c3b718eae802d22bf2fbf6c8e81923e0b903"
    "04dc24fecc09fd0138fd301a092024f1111649c002134d3a8fd57c460cea58e480bdf5fe13e0fe1ff817de3203f9004b"
)


@pytest.mark.parametrize("metric", MetricType)
@pytest.mark.parametrize("D", SIZES)
@pytest.mark.parametrize("parts", [1, 4])
def test_all_that_are_nearest_are_candidates(metric, D, parts):
    given = vectors(3001, D, spread=0.7)
    numbers = np.arange(3001) // parts
    view = coded(given, metric, numbers=numbers).view()

    missed = 0
    for query in vectors(20, D, seed=7):
        distances = by_object(numbers, distances_by_definition(metric, query, given))

        found = candidates(view, query, 16, distances)

        assert np.array_equal(found, np.unique(found))
        missed += len(set(np.argsort(distances)[:16].tolist()) - set(found.tolist()))

    assert missed <= 2  # of 320; one at the edge is missed with a probability of .6 %


@pytest.mark.parametrize(
    ("metric", "offset"), [(MetricType.COSINE, 0.0), (MetricType.EUCLID, 0.0), (MetricType.DOT, 1.0)]
)
@pytest.mark.parametrize("D", SIZES)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("N", [600, 3001], ids=["finely", "signs-first"])
def test_what_is_multiplied_stands_where_it_comes_to(metric, offset, D, parts, N):
    rng = np.random.default_rng(D)
    given = vectors(N, D, spread=0.7)
    if metric is MetricType.DOT:  # as averages of directions are compared
        given /= np.linalg.norm(given, axis=1, keepdims=True)
    numbers = np.arange(N) // parts
    made = coded(given, metric, numbers=numbers)
    named = np.unique(rng.integers(numbers[-1] + 1, size=60))
    gone = named[::7]
    made.remove(gone)
    view = made.view()
    factors = rng.choice([0.0, 0.3, 0.8, 1.5], size=len(named))

    for query in vectors(10, D, seed=7):
        asked = query / np.linalg.norm(query) if metric is MetricType.DOT else query
        distances = by_object(numbers, distances_by_definition(metric, asked, given)) + offset
        distances[named] *= factors
        distances[gone] = np.inf
        nearest = np.argsort(distances, kind="stable")[:16]
        farthest = distances[nearest[-1]] - offset
        ranking = view.ranking(asked[None], 6.0)

        are_there = ranking.multiply(named, factors, offset)
        likeliest, within = ranking.likeliest(16), ranking.within(farthest)

        assert are_there.tolist() == [number not in gone for number in named]
        assert set(nearest) <= set(likeliest) | set(within)
        assert set(np.flatnonzero(distances - offset <= farthest)) <= set(within)
        assert set(within).isdisjoint(gone)
        far = named[(factors == 1.5) & (distances[named] > 2 * distances[nearest[-1]] + 0.2)]
        assert len(far)
        assert set(within).isdisjoint(far)


def test_threads_compare_as_one_does(monkeypatch):
    given = vectors(40_000, 97)
    view = coded(given).view()
    alone = view.ranking(given[:1], 2.0).likeliest(30).tolist()

    monkeypatch.setattr(estimates, "SHARED_AMONG_THREADS", 1)

    assert view.ranking(given[:1], 2.0).likeliest(30).tolist() == alone


def test_candidates_are_few():
    given = vectors(20_000, 384)
    view = coded(given).view()

    for noise in vectors(10, 384, seed=7):
        query = given[3] + 0.5 * noise
        distances = distances_by_definition(MetricType.COSINE, query, given)
        assert len(candidates(view, query, 16, distances)) < 2000


@pytest.mark.parametrize("D", [5, 384])
def test_what_is_not_among_the_wanted_is_no_candidate_and_hides_none(D):
    given = vectors(3001, D)
    view = coded(given).view()
    among = np.arange(2, 3001, 3)

    for query in vectors(10, D, seed=7):
        distances = distances_by_definition(MetricType.COSINE, query, given)
        nearest = among[np.argsort(distances[among])[:16]]

        found = candidates(view, query, 16, distances, among=among)

        assert set(nearest.tolist()) <= set(found.tolist()) <= set(among.tolist())


def test_each_part_of_a_query_has_its_candidates():
    given = vectors(2000, 97)
    view = coded(given).view()
    queries = vectors(2, 97, seed=3)

    both = view.ranking(queries, 1.5).likeliest(16)

    one_by_one = [view.ranking(query[None], 1.5).likeliest(16).tolist() for query in queries]
    assert both.tolist() == sorted(set(one_by_one[0] + one_by_one[1]))


@pytest.mark.parametrize("D", [5, 384])
@pytest.mark.parametrize("metric", MetricType)
def test_vectors_that_are_equal_are_all_candidates_or_none_is(D, metric):
    same, other = vectors(2, D, seed=11)
    view = coded(np.concatenate([np.tile(same, (2500, 1)), np.tile(other, (5, 1))]), metric).view()
    of_other = distances_by_definition(metric, other, np.stack([same, other]))
    of_same = distances_by_definition(metric, same, np.stack([same, other]))
    far, near = (np.repeat(each, [2500, 5]) for each in (of_other, of_same))

    assert set(range(2500, 2505)) <= set(candidates(view, other, 5, far).tolist())
    assert set(range(2500)) <= set(candidates(view, same, 16, near).tolist())


@pytest.mark.parametrize("D", [5, 97, 384])
@pytest.mark.parametrize("spread", [0.01, 0.1, 1])
def test_far_and_tight_clusters_hide_nothing(D, spread):
    rng = np.random.default_rng(5)
    ends = 10 * np.eye(2, D) + 20
    given = (np.repeat(ends, 1500, axis=0) + spread * rng.normal(size=(3000, D))).astype(np.float32)
    view = coded(given, MetricType.EUCLID, centre=given[:300].mean(axis=0)).view()  # as it was loaded first

    missed = 0
    for query in np.repeat(ends, 10, axis=0) + spread * rng.normal(size=(20, D)):
        asked = query.astype(np.float32)
        distances = distances_by_definition(MetricType.EUCLID, asked.astype(np.float64), given)
        found = candidates(view, asked, 10, distances)
        missed += len(set(np.argsort(distances)[:10].tolist()) - set(found.tolist()))

    assert missed <= 2  # of 200


@pytest.mark.parametrize("D", [127, 384])
def test_nothing_is_hidden_on_the_far_side_of_two_opposite_subjects(D):
    rng = np.random.default_rng(6)
    subject = rng.normal(size=D) / np.sqrt(D)
    side = np.repeat([1, -1], 3000)
    given = (side[:, None] * subject + 0.05 * rng.normal(size=(6000, D)) / np.sqrt(D)).astype(np.float32)
    view = coded(given).view()
    far = np.arange(3000, 6000)

    missed = 0
    for noise in rng.normal(size=(20, D)):
        query = (subject + 0.05 * noise / np.sqrt(D)).astype(np.float32)
        distances = distances_by_definition(MetricType.COSINE, query.astype(np.float64), given)
        found = candidates(view, query, 10, distances, among=far)
        missed += len(set(far[np.argsort(distances[far])[:10]].tolist()) - set(found.tolist()))

    assert missed <= 3  # of 200


def test_what_was_removed_is_no_candidate_and_the_rest_still_is():
    given = vectors(1500, 97)
    made = coded(given)

    made.remove(np.array([8, 700, 9999]))

    found = made.view().ranking(given[8:9], 1.0).likeliest(1500)
    assert found.tolist() == [k for k in range(1500) if k not in {8, 700}]


def test_a_view_does_not_see_what_is_added_after_it():
    given = vectors(300, 97)
    made = coded(given)
    before = made.view()

    made.add(np.arange(300, 5300), made.coder.encode(vectors(5000, 97, seed=2)))

    assert before.ranking(given[:1], 1.0).likeliest(6000).tolist() == list(range(300))
    assert len(made.view().ranking(given[:1], 1.0).likeliest(6000)) == 5300


def test_a_view_has_what_is_removed_after_it():
    given = vectors(300, 97)
    made = coded(given)
    before = made.view()

    made.remove(np.array([7]))
    made.add(np.array([300]), made.coder.encode(given[7:8]))

    assert before.has(np.array([7, 300])).tolist() == [True, False]
    assert before.ranking(given[7:8], 1.0).likeliest(300).tolist() == list(range(300))
    assert made.view().has(np.array([7, 300])).tolist() == [False, True]


def test_what_lives_is_told_as_it_was_added():
    given = vectors(100, 97)
    made = coded(given)
    made.remove(np.arange(50))

    numbers, records = made.live()

    assert numbers.tolist() == list(range(50, 100))
    assert records.tobytes() == made.coder.encode(given)[50:].tobytes()


@pytest.mark.parametrize("D", [97, 384])
@pytest.mark.parametrize("metric", MetricType)
def test_the_error_is_as_large_as_it_says(D, metric):
    given, queries = vectors(2000, D), vectors(50, D, seed=9)
    coder = Coder(metric, prepare_vectors(given, metric).mean(axis=0))
    made = Codes(coder)
    made.add(np.arange(2000), coder.encode(given))
    view = made.view()
    prepared = prepare_vectors(given, metric) - coder.centre

    misses = []
    for query in queries:
        truth = prepared @ (prepare_vectors(query[None], metric)[0] - coder.centre)
        [part] = view.ranking(query[None], 1.0)._parts
        estimates, errors = part._estimates(np.arange(2000))
        misses.append((estimates - coder.encode(given)["offset"] - truth) / errors)

    assert np.std(misses) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(misses)) < 0.1


@settings(max_examples=40)
@given(st.integers(2, 130), st.integers(1, 60), st.integers(1, 70), st.sampled_from(list(MetricType)))
def test_where_all_are_wanted_all_are_candidates(D, n, count, metric):
    given = vectors(n, D, seed=n)

    found = coded(given, metric).view().ranking(given[:1], 1.0).likeliest(n + count)

    assert found.tolist() == list(range(n))


@settings(max_examples=60)
@given(st.integers(2, 130), st.integers(0, 999), st.sampled_from(list(MetricType)))
def test_a_score_at_a_distance_is_reached_by_what_is_there(D, seed, metric):
    given, [query] = vectors(200, D, seed=seed), vectors(1, D, seed=seed + 1)
    coder = Coder(metric, prepare_vectors(given, metric).mean(axis=0))
    prepared = prepare_vectors(given, metric).astype(np.float64)
    question = prepare_vectors(query[None], metric)[0].astype(np.float64) - coder.centre
    scores = (prepared - coder.centre) @ question + coder.encode(given)["offset"]
    distances = distances_by_definition(metric, query.astype(np.float64), given.astype(np.float64))

    reached = [coder.score_at(float(distance), coder.prepared(query)) for distance in distances]

    rounding = ROUNDING * np.linalg.norm(prepared - coder.centre, axis=1) * np.linalg.norm(question)
    assert (scores + rounding >= reached).all()
    assert (np.argsort(-scores)[:5] == np.argsort(distances)[:5]).all()


def test_an_object_in_the_centre_is_compared_like_others():
    given = vectors(50, 97)
    given[3] = given[:3].mean(axis=0)
    made = coded(given, MetricType.EUCLID, centre=given[3])

    assert 3 in made.view().ranking(given[3:4], 1.0).likeliest(1)
