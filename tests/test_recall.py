"""Nearest means nearest, whatever the catalogue's shape: compared with brute force in numpy.

Axes: N objects · P parts of an object · Q queries · D dimensions.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from embedding_studio import Context, SearchIndexInfo, Session, load_settings
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.doctor import examine
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SessionForImprovementCreateSchema
from embedding_studio.errors import CollectionNotFoundError, InvalidInputError, StorageUnavailableError
from embedding_studio.recall import ENOUGH_QUERIES, MARGINS, MeasuredRecall, measure_recall, share_found
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage
from embedding_studio.storage.postgres.nearest import margin_for

D = 97
K = 10
METRICS = list(MetricType)
MIN, AVG = MetricAggregationType
ENOUGH = 0.98


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def two_far_clusters(rng, N):
    """Return [N, D], the first half of one tight cluster, the second of another, and norms that differ."""
    centres = 3 * normal(rng, 2, D)
    points = np.repeat(centres, N // 2, axis=0) + 0.7 * normal(rng, N, D)
    return (points * rng.uniform(0.8, 1.25, size=(N, 1))).astype(np.float32)


@dataclass(eq=False)
class Catalogue:
    """Objects in PostgreSQL, and as arrays.

    Attributes:
        parts: [N, P, D], kept as it should be now.
    """

    storage: Storage
    index: SearchIndexInfo
    parts: np.ndarray
    payloads: list = field(default_factory=list)

    def __post_init__(self):
        self.payloads = self.payloads or [{} for _ in self.parts]
        self.collection = self.storage.collections.create("films", self.index)
        self.store(range(len(self.parts)))

    def store(self, numbers):
        numbers = list(numbers)
        for start in range(0, len(numbers), 1000):
            batch = numbers[start : start + 1000]
            objects = [CatalogueObject(f"o{n:06}", self.parts[n], self.payloads[n]) for n in batch]
            self.storage.objects.upsert(self.collection, objects)

    def distances(self, query):
        """Return [N] by the definitions of the reference, in float64."""
        parts, query = self.parts.astype(np.float64), query.astype(np.float64)
        match self.index.metric_type:
            case MetricType.COSINE:
                lengths = np.linalg.norm(parts, axis=2) * np.linalg.norm(query)
                pairs = 1 - parts @ query / lengths
            case MetricType.DOT:
                pairs = -(parts @ query)
            case MetricType.EUCLID:
                pairs = np.linalg.norm(parts - query, axis=2)
        return pairs.min(axis=1) if self.index.metric_aggregation_type is MIN else pairs.mean(axis=1)

    def compare(self, queries, where=None, matches=lambda _: True):
        """Return recall@10 and the share of right first results."""
        matching = np.array([matches(payload) for payload in self.payloads])
        recalls, firsts = [], []
        for query in queries:
            distances = np.where(matching, self.distances(query), np.inf)
            nearest = np.sort(distances)[:K]
            found = self.storage.objects.nearest(self.collection, query[None], K, filter=where)
            true = distances[[int(each.object_id[1:]) for each in found]]
            assert len(found) == K
            recall, first = share_found(true.tolist(), nearest.tolist())
            recalls.append(recall)
            firsts.append(first)
        return np.mean(recalls), np.mean(firsts)


def equals(name, value):
    return PayloadFilter.parse({"query": {"term": {"field": name, "value": value}}})


@pytest.fixture
def postgres(new_postgres_storage):
    with new_postgres_storage() as storage:
        yield storage


def assert_nearest(compared):
    recall, first = compared
    assert recall >= ENOUGH
    assert first >= ENOUGH


@pytest.mark.parametrize("metric", METRICS)
def test_two_far_clusters_hide_nothing_from_each_other_not_even_behind_a_filter(postgres, metric):
    rng = np.random.default_rng(1)
    N = 4_000
    payloads = [{"cluster": n // (N // 2), "tenth": n % 10 == 0, "hundredth": n % 100 == 0} for n in range(N)]
    index = SearchIndexInfo(dimensions=D, metric_type=metric)
    catalogue = Catalogue(postgres, index, two_far_clusters(rng, N)[:, None], payloads)
    asked = catalogue.parts[rng.integers(N // 2, size=15), 0] + 0.3 * normal(rng, 15, D)

    assert postgres.objects.codes(catalogue.collection).parts == N
    assert_nearest(catalogue.compare(asked))
    for name, value in (("cluster", 0), ("cluster", 1), ("tenth", True), ("hundredth", True)):
        matches = [payload[name] == value for payload in payloads]
        assert any(matches)
        found = catalogue.compare(
            asked, equals(name, value), lambda payload, name=name, value=value: payload[name] == value
        )
        assert_nearest(found)


@pytest.mark.parametrize("metric", METRICS)
def test_thousands_of_equal_vectors_hide_none_that_is_nearer(postgres, metric):
    rng = np.random.default_rng(2)
    equal = normal(rng, 1, D)
    equal /= np.linalg.norm(equal)
    few = equal + 0.05 * normal(rng, 1, D) + 0.001 * normal(rng, 5, D)
    few *= 1.5 / np.linalg.norm(few, axis=1, keepdims=True)  # nearest under dot too
    index = SearchIndexInfo(dimensions=D, metric_type=metric)
    catalogue = Catalogue(postgres, index, np.concatenate([np.repeat(equal, 5_000, axis=0), few])[:, None])

    assert_nearest(catalogue.compare(few))
    for query in few:
        nearest = np.sort(catalogue.distances(query))[:5]
        found = postgres.objects.nearest(catalogue.collection, query[None], 5)
        assert sorted(each.object_id for each in found) == [f"o{n:06}" for n in range(5_000, 5_005)]
        assert [each.distance for each in found] == pytest.approx(nearest.tolist(), abs=1e-4)


@pytest.mark.parametrize("margin", [None, math.inf])
def test_pages_over_ties_show_each_object_once_in_the_promised_order(postgres, margin):
    rng = np.random.default_rng(3)
    index = SearchIndexInfo(dimensions=D)
    vectors = np.repeat(normal(rng, 4, D), 1_000, axis=0)
    catalogue = Catalogue(postgres, index, vectors[:, None])
    query = vectors[:1] + 0.1 * normal(rng, 1, D)

    pages = [
        postgres.objects.nearest(catalogue.collection, query, limit, margin=margin)[-100:]
        for limit in range(100, 1_600, 100)
    ]

    shown = [each for page in pages for each in page]
    assert [each.object_id for each in shown] == [f"o{n:06}" for n in range(1_000)] + [
        each.object_id for each in shown[1_000:]
    ]
    assert len({each.object_id for each in shown}) == 1_500
    assert [(each.distance, each.object_id) for each in shown] == sorted(
        (each.distance, each.object_id) for each in shown
    )


def test_pages_of_ten_are_the_pages_of_the_whole_list(postgres):
    rng = np.random.default_rng(4)
    catalogue = Catalogue(postgres, SearchIndexInfo(dimensions=D), two_far_clusters(rng, 4_000)[:, None])
    service = Context(load_settings(embedder="none"), storage=postgres).search
    query = catalogue.parts[7, 0] + 0.3 * normal(rng, D)

    pages = [service.search(query, collection="films", offset=offset) for offset in range(0, 100, 10)]

    shown = [result.object_id for page in pages for result in page.results]
    assert shown == [f"o{n:06}" for n in np.argsort(catalogue.distances(query))[:100]]


def test_six_rewrites_with_small_changes_lose_nothing(postgres):
    rng = np.random.default_rng(5)
    N = 3_200
    catalogue = Catalogue(postgres, SearchIndexInfo(dimensions=D), two_far_clusters(rng, N)[:, None])

    for _ in range(6):
        catalogue.parts += 0.02 * normal(rng, N, 1, D)
        catalogue.store(rng.permutation(N))
    asked = catalogue.parts[rng.integers(N, size=50), 0] + 0.3 * normal(rng, 50, D)

    assert_nearest(catalogue.compare(asked))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("aggregation", [MIN, AVG])
def test_objects_of_four_parts_are_found_by_the_aggregation_of_all(postgres, metric, aggregation):
    rng = np.random.default_rng(6)
    index = SearchIndexInfo(dimensions=D, metric_type=metric, metric_aggregation_type=aggregation)
    N, P = 3_200, 4
    middle = two_far_clusters(rng, N)
    catalogue = Catalogue(postgres, index, middle[:, None] + 0.5 * normal(rng, N, P, D))
    asked = middle[rng.integers(N, size=15)] + 0.3 * normal(rng, 15, D)

    assert postgres.objects.codes(catalogue.collection).parts in (N, N * P)
    assert_nearest(catalogue.compare(asked))


def test_a_direction_that_all_vectors_share_makes_them_no_harder_to_tell_apart(postgres):
    rng = np.random.default_rng(7)
    common = normal(rng, D)
    common *= 2 * math.sqrt(D) / np.linalg.norm(common)  # a cosine of .8 between what is unrelated
    catalogue = Catalogue(postgres, SearchIndexInfo(dimensions=D), normal(rng, 5_000, 1, D) + common)
    asked = normal(rng, 25, D) + common

    assert_nearest(catalogue.compare(asked))


# Measuring


@pytest.mark.parametrize(
    ("found", "nearest", "share", "first"),
    [
        ([1, 2, 3], [1, 2, 3], 1, True),
        ([1, 3, 3], [1, 2, 3], 2 / 3, True),  # there is one place for what is as near as the last
        ([3, 3, 3], [1, 2, 3], 1 / 3, False),
        ([2, 3, 4], [1, 2, 3], 2 / 3, False),
        ([1], [1, 1, 1], 1 / 3, True),
        ([], [1, 2], 0, False),
        ([], [], 1, True),
        ([-2e6 + 1, -1e6], [-2e6, -1e6], 1, True),  # float32 cannot tell the first two apart
    ],
)
def test_what_is_as_near_as_the_last_fills_the_places_that_are_left(found, nearest, share, first):
    assert share_found(found, nearest) == (pytest.approx(share), first)


@pytest.fixture(scope="module")
def measured_storage(new_postgres_storage):
    """A storage with a collection of codes, ``films``, and one without, ``few``; and what films hold."""
    with new_postgres_storage() as storage:
        vectors = two_far_clusters(np.random.default_rng(8), 4_000)
        catalogue = Catalogue(storage, SearchIndexInfo(dimensions=D), vectors[:, None])
        few = storage.collections.create("few", SearchIndexInfo(dimensions=D))
        storage.objects.upsert(few, [CatalogueObject("o", vectors[:1])])
        yield storage, catalogue


@pytest.fixture
def films(measured_storage):
    """The storage and its catalogue, with no margin of its own and no query recorded."""
    storage, catalogue = measured_storage
    storage.objects.set_margin(catalogue.collection, None)
    storage.clickstream.forget_user("ann")
    return storage, catalogue


def record(storage, queries, collection="films"):
    for number, query in enumerate(queries):
        session = Session(
            session_id=f"q{number}", user_id="ann", search_query=f"query {number}", collection=collection
        )
        storage.clickstream.register_session(session, query[None])


def test_the_smallest_margin_that_finds_enough_is_stored(films):
    storage, catalogue = films
    storage.collections.set_alias("best", "films")

    measured = measure_recall(storage, "best", queries=20, target=0.8)

    tried = [each.margin for each in measured.compared]
    assert tried == [*sorted([*MARGINS, margin_for(0.99)]), None]
    assert next(each.margin for each in measured.compared if each.reaches(0.8)) == measured.after
    assert (measured.collection, measured.objects, measured.parts) == ("films", 4_000, 4_000)
    assert (measured.queries, measured.recorded) == (20, 0)
    assert (measured.before, measured.is_stored, measured.is_reached) == (margin_for(0.99), True, True)
    assert storage.objects.codes(catalogue.collection).margin == measured.after
    exact = measured.compared[-1]
    assert (exact.recall, exact.low, exact.high, exact.right_first) == (1, 1, 1, 1)


def test_recall_rises_with_the_margin_and_its_lower_bound_is_never_certainty(films):
    storage, _ = films

    measured = measure_recall(storage, "films", queries=40, target=0.99, dry_run=True)

    by_codes = measured.compared[:-1]
    assert all(each.low <= each.recall <= each.high for each in by_codes)
    assert all(each.low < 1 for each in by_codes)
    assert by_codes[0].recall <= by_codes[-1].recall
    assert by_codes[-1].recall == 1
    assert by_codes[-1].low == pytest.approx(1 - 3 / (40 * K), abs=0.002)  # the rule of three


def test_a_dry_run_of_measuring_stores_nothing(films):
    storage, catalogue = films

    measured = measure_recall(storage, "films", queries=20, target=0.9, dry_run=True)

    assert not measured.is_stored
    assert measured.after != measured.before
    assert storage.objects.codes(catalogue.collection).margin == margin_for(0.99)


@pytest.mark.parametrize(
    ("recorded", "queries", "counted"),
    [
        (ENOUGH_QUERIES, 200, (ENOUGH_QUERIES, ENOUGH_QUERIES)),
        (ENOUGH_QUERIES - 1, 52, (52, ENOUGH_QUERIES - 1)),
        (7, 5, (5, 5)),
    ],
)
def test_recorded_queries_come_first_and_changed_objects_stand_for_too_few(films, recorded, queries, counted):
    storage, catalogue = films
    record(storage, catalogue.parts[:recorded, 0])

    measured = measure_recall(storage, "films", queries=queries, target=0.99, dry_run=True)

    assert (measured.queries, measured.recorded) == counted


def test_a_target_that_no_margin_reaches_is_told_and_the_widest_is_taken(films, caplog):
    storage, catalogue = films

    measured = measure_recall(storage, "films", queries=10, target=0.999)

    assert not measured.is_reached
    assert measured.after == MARGINS[-1]
    assert storage.objects.codes(catalogue.collection).margin == MARGINS[-1]
    assert "the target is 99.90%: measure with more queries, or set RECALL_TARGET=1" in measured.told
    assert measured.told in caplog.text


def test_a_collection_without_codes_has_nothing_to_measure(films):
    storage, _ = films

    measured = measure_recall(storage, "few", target=0.99)

    assert measured == MeasuredRecall(
        "few", 1, 0, 0, 0, 10, 0.99, None, None, is_stored=False, is_reached=True,
        told="all objects of 'few' are compared: recall is 1 by construction",
    )  # fmt: skip


def test_a_recall_of_one_is_a_setting_and_not_a_margin(films):
    storage, _ = films

    measured = measure_recall(storage, "films", target=1)

    assert (measured.is_stored, measured.compared) == (False, ())
    assert "with RECALL_TARGET=1 all are compared" in measured.told


@pytest.mark.parametrize("given", [{"target": 0.5}, {"target": math.nan}, {"queries": 0}, {"k": 0}])
def test_what_cannot_be_measured_is_refused(memory, given):
    memory.collections.create("films", SearchIndexInfo(dimensions=D))

    with pytest.raises(InvalidInputError, match=r"at least one query.*above 0\.5"):
        measure_recall(memory, "films", **{"target": 0.99, **given})


def test_the_recall_of_no_collection_is_not_measured(memory):
    with pytest.raises(CollectionNotFoundError, match="films"):
        measure_recall(memory, "films", target=0.99)


# Doctor


def found(storage, **settings):
    with Context(load_settings(embedder="none", **settings), storage=storage) as context:
        return {each.what: (each.grade, each.told) for each in examine(context)}


def test_the_doctor_says_how_each_collection_is_searched(films):
    storage, catalogue = films

    unmeasured = found(storage)
    storage.objects.set_margin(catalogue.collection, 1.25)
    measured = found(storage)
    exact = found(storage, recall_target=1)

    assert unmeasured["storage"][0] == "OK"
    assert "PostgreSQL 18" in unmeasured["storage"][1]
    assert "pgvector 0.8" in unmeasured["storage"][1]
    assert unmeasured["embedder"] == ("OK", "none: callers bring vectors")
    assert unmeasured["collection few"] == (
        "OK",
        "1 object, all compared by each search: recall is 1 by construction",
    )
    grade, told = unmeasured["collection films"]
    assert grade == "WARN"
    assert "4,000 objects, searched by codes of 4,000 parts" in told
    assert "`embedding-studio recall films` measures" in told
    assert measured["collection films"][0] == "OK"
    assert "a margin of 1.25 standard errors, as measured" in measured["collection films"][1]
    assert "all compared by each search, for RECALL_TARGET is 1" in exact["collection films"][1]


def test_the_doctor_warns_of_orders_that_nobody_learns_from(memory, monkeypatch):
    memory.collections.create("films", SearchIndexInfo(dimensions=D))
    memory.clickstream.register_session(Session(session_id="old", user_id="ann", collection="films"))
    memory.orders.create(SessionForImprovementCreateSchema(session_id="old"))

    soon = found(memory)
    monkeypatch.setattr("embedding_studio.doctor.utc_timestamp", lambda: utc_timestamp() + 61)
    late = found(memory)
    later = found(memory, improve_on_click=False)

    assert soon["orders"] == ("OK", "1 pending, 0 processing, 0 done, 0 failed, 0 refused")
    assert soon["pending orders"][0] == later["pending orders"][0] == "OK"
    grade, told = late["pending orders"]
    assert (grade, told) == ("WARN", "the oldest pending order waits for 61 s")


def test_the_doctor_warns_of_orders_that_failed(memory):
    memory.collections.create("films", SearchIndexInfo(dimensions=D))
    memory.clickstream.register_session(Session(session_id="s", user_id="ann", collection="films"))
    memory.orders.create(SessionForImprovementCreateSchema(session_id="s"))
    claim = memory.queue.claim(users=1, lease_seconds=60)
    memory.queue.fail(claim.token, claim.entries[0], "no reason", max_attempts=1, backoff_seconds=0)

    grade, told = found(memory)["orders"]

    assert grade == "WARN"
    assert "1 failed" in told


def test_the_doctor_warns_of_a_collection_whose_texts_another_model_embedded(memory):
    films = memory.collections.create("films", SearchIndexInfo(dimensions=D), embedder="another")
    memory.objects.upsert(films, [CatalogueObject("o", np.ones((1, D), np.float32))])
    with Context(load_settings(), storage=memory) as context:
        told = [each for each in examine(context) if each.what == "collection films"]

    assert [each.grade for each in told] == ["OK", "WARN"]
    assert "was embedded by 'another'" in told[1].told


def test_the_doctor_fails_what_does_not_answer_and_still_tells_the_rest(monkeypatch):
    storage = MemoryStorage()

    def refuse():
        raise StorageUnavailableError("database 'shop' at db:5432 does not answer")

    monkeypatch.setattr(storage, "about", refuse)

    findings = found(storage)

    assert findings["storage"] == ("FAIL", "database 'shop' at db:5432 does not answer")
    assert findings["settings"][0] == "OK"
    assert "collections" not in findings


def test_an_empty_installation_is_healthy_and_told_what_comes_next():
    assert found(MemoryStorage())["collections"] == (
        "WARN",
        "there is none yet; `embedding-studio index` makes one",
    )
