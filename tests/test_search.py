"""A world on an arc: the object ``at30`` stands 30 degrees from the query, so its distance is 1 - cos(30)."""

import gc
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import (
    CatalogueObject,
    Collection,
    Neighbour,
    OwnPast,
    PersonalState,
    QueryMemory,
)
from embedding_studio.domain.sessions import (
    EventDisposition,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.domain.storable import as_json
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    EmbeddingError,
    InvalidFilterError,
    InvalidInputError,
    InvalidVectorsError,
    SessionNotFoundError,
)
from embedding_studio.feedback.improve import Improver
from embedding_studio.logs import own as own_log
from embedding_studio.search import MAX_LIMIT, MAX_REACH, SearchPage, SearchService
from embedding_studio.search.mixing import slots_of
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage

QUERY = np.array([1, 0, 0], dtype=np.float32)
ANGLES = (10, 20, 30, 40, 50, 60, 70)


def at(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


def distance_at(degrees: float) -> float:
    return 1 - math.cos(math.radians(degrees))


def ids(page: SearchPage) -> list[str]:
    return [result.object_id for result in page.results]


def distances(page: SearchPage) -> list[float]:
    return [result.distance for result in page.results]


def memory_of(
    query: np.ndarray, clicked_mean: np.ndarray, moved: Sequence[str] = (), session_id: str = "past"
) -> QueryMemory:
    return QueryMemory(
        session_id, f"text of {session_id}", 1_000, query, clicked_mean, ("at70",), tuple(moved)
    )


def learn(
    storage: Storage,
    collection: Collection,
    user_id: str,
    memories: Sequence[QueryMemory],
    moved: Mapping[str, np.ndarray] | None = None,
) -> None:
    with storage.personal.learning(collection, [user_id]) as transaction:
        transaction.replace_states({user_id: PersonalState(tuple(memories), moved or {})})


@pytest.fixture
def arc(storage: Storage) -> Collection:
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(
        collection,
        [
            CatalogueObject(f"at{degrees}", at(degrees), {"angle": degrees, "half": {"of": degrees / 2}})
            for degrees in ANGLES
        ],
    )
    return collection


def learn_that_70_is_near(storage: Storage, arc: Collection, user_id: str = "ann") -> None:
    """For the very same query ``at70`` was moved to 5 degrees; nothing was learnt of the query."""
    memory = memory_of(QUERY, np.zeros(3, dtype=np.float32), ["at70"])
    learn(storage, arc, user_id, [memory], {"at70": at(5)})


@pytest.mark.parametrize("user_id", [None, "new", "far", "at the gate"])
def test_who_has_no_past_query_near_this_one_gets_exactly_the_plain_search(storage, arc, user_id):
    learn(storage, arc, "far", [memory_of(at(90)[0], at(70)[0], ["at10"])], {"at10": at(90)})
    threshold = float(np.cos(np.radians(40)))
    learn(storage, arc, "at the gate", [memory_of(at(41)[0], at(70)[0], ["at10"])], {"at10": at(90)})

    page = SearchService(storage, gate_threshold=threshold).search(QUERY, user_id=user_id, limit=5)

    nearest = storage.objects.nearest(arc, QUERY[None], 5)
    assert ids(page) == ["at10", "at20", "at30", "at40", "at50"] == [each.object_id for each in nearest]
    assert distances(page) == [each.distance for each in nearest]
    assert distances(page) == pytest.approx([distance_at(degrees) for degrees in ANGLES[:5]], abs=1e-6)
    assert not page.personalised
    assert not any(result.personalised for result in page.results)


def test_what_was_learnt_of_one_user_changes_nothing_for_another(storage, arc):
    learn_that_70_is_near(storage, arc, "ann")

    assert ids(SearchService(storage).search(QUERY, user_id="bob")) == [f"at{degrees}" for degrees in ANGLES]


def test_an_object_that_was_moved_near_stands_where_its_personal_vectors_are(storage, arc):
    learn_that_70_is_near(storage, arc)

    page = SearchService(storage).search(QUERY, user_id="ann", limit=3)

    assert ids(page) == ["at70", "at10", "at20"]
    assert distances(page) == pytest.approx([distance_at(5), distance_at(10), distance_at(20)], abs=1e-6)
    assert page.personalised
    assert page.results[0].payload == {"angle": 70, "half": {"of": 35.0}}
    assert [result.position for result in page.results] == [1, 2, 3]


def test_a_query_half_way_to_the_gate_blends_by_half(storage, arc):
    # closeness cos(a) with the gate at (cos(a) - 0.75) / 0.25 = 0.25 opens the object's gate by 0.5
    remembered = at(math.degrees(math.acos(0.8125)))[0]
    learn(storage, arc, "ann", [memory_of(remembered, np.zeros(3, np.float32), ["at70"])], {"at70": at(5)})

    page = SearchService(storage).search(QUERY, user_id="ann")

    moved = next(result for result in page.results if result.object_id == "at70")
    assert moved.distance == pytest.approx((distance_at(5) + distance_at(70)) / 2, abs=1e-6)


def test_the_query_goes_towards_what_was_clicked_for_the_same_query(storage, arc):
    learn(storage, arc, "ann", [memory_of(QUERY, at(60)[0])])

    page = SearchService(storage, query_shift=2.0).search(QUERY, user_id="ann", limit=1)

    # (1, 0) + 2 * 1/2 * (cos 60, sin 60) stands at 30 degrees
    assert ids(page) == ["at30"]
    assert distances(page) == pytest.approx([0], abs=1e-6)


def test_without_query_shift_only_moved_objects_change(storage, arc):
    learn(storage, arc, "ann", [memory_of(QUERY, at(60)[0], ["at70"])], {"at70": at(5)})

    page = SearchService(storage, query_shift=0).search(QUERY, user_id="ann")

    assert distances(page)[1:] == pytest.approx([distance_at(degrees) for degrees in ANGLES[:-1]], abs=1e-6)


def test_the_collections_own_gate_threshold_outweighs_the_services(storage):
    strict = storage.collections.create("strict", SearchIndexInfo(dimensions=3), gate_threshold=0.99)
    storage.objects.upsert(strict, [CatalogueObject("at70", at(70))])
    learn(storage, strict, "ann", [memory_of(at(20)[0], at(70)[0])])

    assert not SearchService(storage).search(QUERY, collection="strict", user_id="ann").personalised
    assert SearchService(storage).search(at(15)[0], collection="strict", user_id="ann").personalised


def test_a_page_is_full_when_everything_on_it_was_moved_away(storage, arc):
    moved = {f"at{degrees}": at(89) for degrees in (10, 20, 30, 40)}
    learn(storage, arc, "ann", [memory_of(QUERY, np.zeros(3, np.float32), list(moved))], moved)

    page = SearchService(storage).search(QUERY, user_id="ann", limit=4)

    assert ids(page) == ["at50", "at60", "at70", "at10"]


def test_copies_of_twenty_users_leave_everybody_else_a_full_page(storage, arc):
    for number in range(20):
        learn_that_70_is_near(storage, arc, f"user {number}")

    assert len(SearchService(storage).search(QUERY, limit=6).results) == 6
    assert ids(SearchService(storage).search(QUERY, user_id="user 7", limit=2)) == ["at70", "at10"]


@pytest.mark.parametrize("user_id", [None, "ann"])
def test_pages_follow_each_other_without_gap_or_repetition(storage, arc, user_id):
    learn_that_70_is_near(storage, arc)
    search = SearchService(storage).search
    whole = search(QUERY, user_id=user_id, limit=7)

    pages = [search(QUERY, user_id=user_id, limit=3, offset=offset) for offset in (0, 3, 6)]

    assert [*itertools.chain(*map(ids, pages))] == ids(whole)
    assert [page.next_page_offset for page in pages] == [3, 6, None]
    assert [result.position for page in pages for result in page.results] == [1, 2, 3, 4, 5, 6, 7]
    assert search(QUERY, user_id=user_id, limit=3, offset=7).results == ()


def test_objects_at_one_distance_stand_in_the_order_of_their_ids_moved_or_not(storage):
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(collection, [CatalogueObject(name, at(90)) for name in "dbca"])
    learn(storage, collection, "ann", [memory_of(QUERY, np.zeros(3, np.float32), ["c"])], {"c": at(90)})

    assert ids(SearchService(storage).search(QUERY, user_id="ann")) == ["a", "b", "c", "d"]


def test_max_distance_bounds_the_distance_that_results_are_ranked_by(storage, arc):
    moved = {"at70": at(5), "at10": at(80)}
    learn(storage, arc, "ann", [memory_of(QUERY, np.zeros(3, np.float32), list(moved))], moved)

    page = SearchService(storage).search(QUERY, user_id="ann", max_distance=distance_at(35))
    plain = SearchService(storage).search(QUERY, max_distance=distance_at(35))

    assert ids(page) == ["at70", "at20", "at30"]
    assert ids(plain) == ["at10", "at20", "at30"]
    assert page.next_page_offset is None


def test_a_filter_holds_for_moved_objects_too(storage, arc):
    learn_that_70_is_near(storage, arc)
    near = PayloadFilter.parse({"query": {"field": "angle", "range": {"lt": 40}}})
    far = PayloadFilter.parse({"query": {"field": "angle", "range": {"gte": 40}}})

    assert ids(SearchService(storage).search(QUERY, user_id="ann", filter=near)) == ["at10", "at20", "at30"]
    assert ids(SearchService(storage).search(QUERY, user_id="ann", filter=far, limit=2)) == ["at70", "at40"]


def test_a_misspelt_filter_is_refused():
    with pytest.raises(InvalidFilterError, match="is no kind of query"):
        PayloadFilter.parse({"query": {"trem": {"field": "angle", "value": 10}}})


@pytest.mark.parametrize("user_id", ["o'brien", "' OR '1'='1", '"; DROP TABLE sessions; --', "%s", "ann\\"])
def test_a_user_id_is_only_ever_a_name(storage, arc, user_id):
    learn_that_70_is_near(storage, arc, "ann")

    assert ids(SearchService(storage).search(QUERY, user_id=user_id, limit=2)) == ["at10", "at20"]


def test_an_object_whose_id_looks_like_anothers_copy_is_an_object_of_its_own(storage):
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(collection, [CatalogueObject("o1", at(70)), CatalogueObject("o1_5", at(20))])
    learn(storage, collection, "5", [memory_of(QUERY, np.zeros(3, np.float32), ["o1"])], {"o1": at(5)})

    page = SearchService(storage).search(QUERY, user_id="5")

    assert ids(page) == ["o1", "o1_5"]
    assert distances(page) == pytest.approx([distance_at(5), distance_at(20)], abs=1e-6)


def test_an_object_with_copies_can_be_updated_and_deleted(storage, arc):
    learn_that_70_is_near(storage, arc)
    search = SearchService(storage).search

    storage.objects.upsert(arc, [CatalogueObject("at70", at(25), {"new": True})])

    updated = search(QUERY, user_id="ann", limit=3)
    assert ids(updated) == ["at10", "at20", "at70"]
    assert updated.results[2].payload == {"new": True}
    storage.objects.delete(arc, ["at70"])
    assert "at70" not in ids(search(QUERY, user_id="ann"))


def test_an_object_of_several_parts_comes_once_and_by_its_best_part_moved_or_not(storage):
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    both = np.concatenate
    storage.objects.upsert(
        collection,
        [
            CatalogueObject("a", both([at(80), at(10), at(60)])),
            CatalogueObject("b", both([at(20), at(75)])),
            CatalogueObject("c", both([at(70), at(30), at(31), at(32), at(33)])),
        ],
    )
    moved = {"c": both([at(70), at(15), at(31), at(32), at(33)])}
    learn(storage, collection, "ann", [memory_of(QUERY, np.zeros(3, np.float32), ["c"])], moved)

    plain = SearchService(storage).search(QUERY, limit=3)
    personalised = SearchService(storage).search(QUERY, user_id="ann", limit=3)

    assert (ids(plain), ids(personalised)) == (["a", "b", "c"], ["a", "c", "b"])
    assert distances(plain) == pytest.approx([distance_at(degrees) for degrees in (10, 20, 30)], abs=1e-6)
    assert distances(personalised) == pytest.approx(
        [distance_at(degrees) for degrees in (10, 15, 20)], abs=1e-6
    )


def test_under_average_aggregation_all_parts_count_moved_or_not(storage):
    index = SearchIndexInfo(dimensions=3, metric_aggregation_type=MetricAggregationType.AVG)
    collection = storage.collections.create("default", index)
    storage.objects.upsert(
        collection,
        [
            CatalogueObject("a", np.concatenate([at(80), at(10), at(60)])),
            CatalogueObject("b", np.concatenate([at(20), at(40)])),
        ],
    )
    moved = {"a": np.concatenate([at(30), at(0), at(10)])}
    learn(storage, collection, "ann", [memory_of(QUERY, np.zeros(3, np.float32), ["a"])], moved)

    plain = SearchService(storage).search(QUERY)
    personalised = SearchService(storage).search(QUERY, user_id="ann")

    of_b = (distance_at(20) + distance_at(40)) / 2
    assert (ids(plain), ids(personalised)) == (["b", "a"], ["a", "b"])
    assert distances(plain) == pytest.approx(
        [of_b, (distance_at(80) + distance_at(10) + distance_at(60)) / 3], abs=1e-6
    )
    assert distances(personalised) == pytest.approx([(distance_at(30) + distance_at(10)) / 3, of_b], abs=1e-6)


@pytest.mark.parametrize(
    ("metric_type", "of_original", "of_personal"),
    [(MetricType.DOT, -3.0, -8.0), (MetricType.EUCLID, math.sqrt(4 + 4), math.sqrt(49 + 4))],
)
def test_moved_objects_are_compared_under_the_collections_metric(
    storage, metric_type, of_original, of_personal
):
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=2, metric_type=metric_type))
    storage.objects.upsert(collection, [CatalogueObject("o", np.array([[3, 2]], np.float32))])
    query = np.array([1, 0], np.float32)
    memory = memory_of(query, np.zeros(2, np.float32), ["o"])
    learn(storage, collection, "ann", [memory], {"o": np.array([[8, 2]], np.float32)})
    search = SearchService(storage, query_shift=0).search

    assert distances(search(query, user_id="bob")) == pytest.approx([of_original], rel=1e-6)
    assert distances(search(query, user_id="ann")) == pytest.approx([of_personal], rel=1e-6)


@pytest.mark.parametrize("metric_type", MetricType)
@pytest.mark.parametrize("aggregation", MetricAggregationType)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_page_is_what_scoring_every_object_by_the_formula_gives(metric_type, aggregation, seed):
    rng = np.random.default_rng(seed)
    D, Q, limit, offset = 3, 2, int(rng.integers(1, 9)), int(rng.integers(0, 5))
    index = SearchIndexInfo(dimensions=D, metric_type=metric_type, metric_aggregation_type=aggregation)
    storage = MemoryStorage()
    collection = storage.collections.create("default", index)
    objects = {f"o{i}": rng.normal(size=(rng.integers(1, 4), D)).astype(np.float32) for i in range(11)}
    storage.objects.upsert(collection, [CatalogueObject(name, parts) for name, parts in objects.items()])
    queries = rng.normal(size=(Q, D)).astype(np.float32)
    mean = (
        np.mean([q / np.linalg.norm(q) for q in queries], 0) if metric_type == "cosine" else queries.mean(0)
    )
    memories = [
        memory_of(
            (mean + rng.normal(size=D) / 3).astype(np.float32),
            rng.normal(size=D).astype(np.float32),
            sorted(rng.choice(list(objects), 3, replace=False)),
            session_id,
        )
        for session_id in ("s1", "s2", "s3")
    ]
    moved_by = {name for memory in memories for name in memory.moved_ids}
    moved = {name: rng.normal(size=objects[name].shape).astype(np.float32) for name in sorted(moved_by)[:4]}
    learn(storage, collection, "ann", memories, moved)

    page = SearchService(storage).search(queries, user_id="ann", limit=limit, offset=offset)

    scored = slow_search(
        metric_type, aggregation, queries, mean=mean, objects=objects, memories=memories, moved=moved
    )
    expected = sorted((distance, name) for name, distance in scored.items())[offset : offset + limit]
    assert ids(page) == [name for _, name in expected]
    assert distances(page) == pytest.approx([distance for distance, _ in expected], abs=1e-5)


def slow_search(metric_type, aggregation, queries, *, mean, objects, memories, moved):
    """Return object_id -> distance as docs/how-it-learns.md says, one number at a time."""
    length = np.linalg.norm

    def gate(memory):
        cosine = mean @ memory.query / length(mean) / length(memory.query)
        if metric_type == "euclid":
            cosine = 1 - length(mean - memory.query) ** 2 / (2 * length(mean) * length(memory.query))
        return min(1.0, max(0.0, (cosine - 0.75) / 0.25))

    def bent(query):
        pull = sum(gate(m) * m.clicked_mean for m in memories) / (1 + sum(gate(m) for m in memories))
        towards = (query if metric_type == "euclid" else query / length(query)) + pull
        return length(query) * towards / length(towards)

    def alike(parts):
        pairs = {
            "cosine": lambda q, v: q @ v / length(q) / length(v),
            "dot": lambda q, v: q @ v,
            "euclid": lambda q, v: -length(q - v),
        }[metric_type]
        numbers = [pairs(bent(q), v) for q in queries.astype(float) for v in parts.astype(float)]
        return max(numbers) if aggregation == "min" else sum(numbers) / len(numbers)

    scored = {}
    for name, parts in objects.items():
        g = min(1.0, 2 * max((gate(m) for m in memories if name in m.moved_ids), default=0.0))
        similarity = (1 - g) * alike(parts) + g * alike(moved[name]) if name in moved else alike(parts)
        scored[name] = 1 - similarity if metric_type == "cosine" else -similarity
    return scored


def test_results_can_be_sorted_by_a_field_with_missing_values_last(storage, arc):
    storage.objects.upsert(
        arc, [CatalogueObject("nameless", at(1)), CatalogueObject("text", at(2), {"angle": "x"})]
    )
    search = SearchService(storage).search

    descending = search(QUERY, sort_by=("angle", "descending"), limit=20)
    nested = search(QUERY, sort_by=("half.of", "ascending"), max_distance=distance_at(25), limit=2)

    assert ids(descending) == ["text", "at70", "at60", "at50", "at40", "at30", "at20", "at10", "nameless"]
    assert ids(nested) == ["at10", "at20"]
    assert nested.next_page_offset == 2
    rest = search(QUERY, sort_by=("half.of", "ascending"), max_distance=distance_at(25), limit=2, offset=2)
    assert ids(rest) == ["nameless", "text"]


def test_sorting_finds_the_field_that_a_filter_finds_and_says_whether_there_is_one(storage, arc):
    storage.objects.upsert(
        arc,
        [
            CatalogueObject("flat", at(3), {"half.of": 1}),
            CatalogueObject("huge", at(4), {"half": {"of": 10**400}}),
            CatalogueObject("both", at(5), {"half.of": True, "half": {"of": 0}}),
        ],
    )
    search = SearchService(storage).search

    largest = search(QUERY, sort_by={"field": "half.of", "order": "desc"}, limit=1)
    smallest = search(QUERY, sort_by=("half.of", "ascending"), limit=2)
    nowhere = search(QUERY, sort_by={"field": "prise"}, limit=2)

    assert (ids(largest), largest.is_sorted) == (["huge"], True)
    assert ids(smallest) == ["flat", "both"]  # the longest key at the top comes first
    assert (ids(nowhere), nowhere.is_sorted) == (["flat", "huge"], False)
    assert search(QUERY, limit=1).is_sorted is None


def test_sorting_takes_in_everything_within_max_distance_however_much_that_is():
    storage = MemoryStorage()
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    number = 1_203
    storage.objects.upsert(
        collection, [CatalogueObject(f"o{i}", at(i / 100), {"i": i}) for i in range(number)]
    )
    search = SearchService(storage).search

    assert ids(search(QUERY, sort_by=("i", "descending"), limit=1)) == ["o999"]
    assert ids(search(QUERY, sort_by=("i", "descending"), limit=1, max_distance=2)) == ["o1202"]


def test_exploration_of_everything_is_the_plain_order_and_of_nothing_the_users_own(storage, arc):
    learn_that_70_is_near(storage, arc)
    service = SearchService(storage, exploration_ratio=1.0)

    explored = service.search(QUERY, user_id="ann", limit=5)
    own = service.search(QUERY, user_id="ann", limit=5, exploration_ratio=0.0)

    assert ids(explored) == ["at10", "at20", "at30", "at40", "at50"]
    assert not any(result.personalised for result in explored.results)
    assert ids(own) == ["at70", "at10", "at20", "at30", "at40"]
    assert [result.propensity for result in own.results] == [1.0] * 5


def test_a_slot_tells_how_probably_it_shows_what_it_shows(storage, arc):
    learn_that_70_is_near(storage, arc)
    service = SearchService(storage, exploration_ratio=0.25)

    pages = [
        service.search(QUERY, user_id="ann", limit=2, rng=np.random.default_rng(seed)) for seed in range(60)
    ]

    shown = Counter(
        tuple((result.object_id, result.personalised, result.propensity) for result in page.results)
        for page in pages
    )
    # Own list: 70, 10, 20, ...; plain list: 10, 20, ... After 70 both lists go on with 10.
    assert set(shown) == {
        (("at70", True, 0.75), ("at10", True, 1.0)),
        (("at10", False, 0.25), ("at70", True, 0.75)),
        (("at10", False, 0.25), ("at20", False, 0.25)),
    }
    assert shown[(("at70", True, 0.75), ("at10", True, 1.0))] > 30


def test_one_seed_gives_one_page(storage, arc):
    learn_that_70_is_near(storage, arc)
    service = SearchService(storage, exploration_ratio=0.5)

    first, again = (
        service.search(QUERY, user_id="ann", limit=7, rng=np.random.default_rng(7)) for _ in range(2)
    )

    assert first == again


def names(letters: str) -> list[Neighbour]:
    return [Neighbour(letter, float(distance), {}) for distance, letter in enumerate(letters)]


lists = st.lists(st.sampled_from("abcdefg"), unique=True).map("".join)


@given(
    own=lists,
    plain=lists,
    draws=st.lists(st.floats(0, 1, exclude_max=True), max_size=9),
    ratio=st.floats(0, 1),
)
def test_exploring_lists_of_any_length_shows_no_object_twice_and_fills_the_page(own, plain, draws, ratio):
    slots = [found.object_id for found, _, _ in slots_of(names(own), names(plain), (), draws, ratio)]

    assert len(slots) == len(set(slots)) == min(len(draws), len({*own, *plain}))


@given(own=lists, plain=lists, shown=st.sets(st.sampled_from("abcdefg")), ratio=st.floats(0.01, 0.99))
def test_the_propensities_of_all_possible_pages_sum_to_one(own, plain, shown, ratio):
    pages = {
        tuple(slots): math.prod(propensity for _, _, propensity in slots)
        for outcomes in itertools.product((0.0, 0.999), repeat=4)
        for slots in [
            [
                (f.object_id, mine, p)
                for f, mine, p in slots_of(names(own), names(plain), shown, outcomes, ratio)
            ]
        ]
    }

    assert sum(pages.values()) == pytest.approx(1)


def test_pages_of_one_session_explore_without_gap_or_repetition(storage, arc):
    learn_that_70_is_near(storage, arc)
    search = SearchService(storage, exploration_ratio=0.5).search

    for number in range(9):
        asked: dict[str, Any] = {"user_id": "ann", "session_id": f"s{number}", "create_session": True}
        pages = [search(QUERY, limit=3, offset=offset, **asked) for offset in (0, 3, 6)]
        shown = [*itertools.chain(*map(ids, pages))]
        assert sorted(shown) == [f"at{degrees}" for degrees in ANGLES]
        assert shown == ids(search(QUERY, user_id="ann", session_id=f"s{number}", limit=7))


def test_an_explanation_says_which_past_query_moved_a_result_and_how_far(storage, arc):
    same = memory_of(QUERY, at(60)[0], ["at70"], "same")
    near = memory_of(at(math.degrees(math.acos(0.8125)))[0], at(0)[0], (), "near")  # gate 0.25
    far = memory_of(at(90)[0], at(90)[0], ["at10"], "far")
    learn(storage, arc, "ann", [far, near, same], {"at70": at(31), "at10": at(89)})

    page = SearchService(storage).search(QUERY, user_id="ann", explain=True)

    explained = {result.object_id: result.explanation for result in page.results}
    # The shift: (1, 0) + ((cos 60, sin 60) + 0.25 (1, 0)) / (1 + 1.25)
    shift = math.degrees(math.atan2(math.sin(math.radians(60)) / 2.25, 1 + (0.5 + 0.25) / 2.25))
    of_70 = explained["at70"]
    assert of_70.gate == 1
    assert of_70.base_distance == pytest.approx(distance_at(70), abs=1e-6)
    assert of_70.shifted_distance == pytest.approx(distance_at(70 - shift), abs=1e-6)
    assert of_70.distance == pytest.approx(distance_at(31 - shift), abs=1e-6)
    assert [(each.session_id, each.search_query, each.created_at) for each in of_70.influences] == [
        ("same", "text of same", 1_000),
        ("near", "text of near", 1_000),
    ]
    assert [each.gate for each in of_70.influences] == pytest.approx([1.0, 0.25], abs=1e-6)
    assert of_70.influences[0].clicked_ids == ("at70",)
    # By itself the same query shifts by 1/2 of a unit vector at 60 degrees; the near one only ahead.
    alone = math.degrees(math.atan2(math.sin(math.radians(60)) / 2, 1.25))
    assert [each.distance_change for each in of_70.influences] == pytest.approx(
        [distance_at(31 - alone) - distance_at(70), 0], abs=1e-6
    )
    of_10 = explained["at10"]
    assert of_10.gate == 0
    assert of_10.distance == pytest.approx(distance_at(shift - 10), abs=1e-6)
    assert of_10.shifted_distance == pytest.approx(distance_at(shift - 10), abs=1e-6)


def test_a_result_that_nothing_personal_bears_on_is_explained_by_its_distance_alone(storage, arc):
    learn_that_70_is_near(storage, arc)
    service = SearchService(storage)

    plain = service.search(QUERY, user_id="bob", explain=True, limit=1).results[0]
    explored = service.search(QUERY, user_id="ann", explain=True, limit=1, exploration_ratio=1).results[0]

    for result in (plain, explored):
        assert result.explanation.base_distance == result.explanation.distance == result.distance
        assert (result.explanation.gate, result.explanation.influences) == (0, ())
    assert service.search(QUERY, limit=1).results[0].explanation is None


def test_a_session_is_recorded_as_it_was_served(storage, arc):
    learn_that_70_is_near(storage, arc)

    page = SearchService(storage).search(QUERY, user_id="ann", limit=2, create_session=True, now=1_234)

    session = storage.clickstream.get_session(page.session_id)
    assert (session.user_id, session.collection, session.created_at) == ("ann", "default", 1_234)
    assert [
        (shown.object_id, shown.position, shown.personalised, shown.propensity)
        for shown in session.search_results
    ] == [("at70", 1, True, 1.0), ("at10", 2, True, 1.0)]
    assert [shown.rank for shown in session.search_results] == distances(page)


def test_a_search_records_nothing_unless_asked(storage, arc):
    page = SearchService(storage).search(QUERY, user_id="ann", session_id="s")

    assert page.session_id is None
    with pytest.raises(SessionNotFoundError):
        storage.clickstream.get_session("s")


def test_a_click_on_page_two_counts(storage, arc):
    search = SearchService(storage).search
    first = search(QUERY, user_id="ann", limit=2, create_session=True)

    second = search(QUERY, user_id="ann", limit=2, offset=2, session_id=first.session_id)

    click = SessionEvent(session_id=first.session_id, object_id="at40")
    assert second.session_id == first.session_id
    assert storage.clickstream.push_events([click]) == [EventDisposition.ACCEPTED]
    session = storage.clickstream.get_session(first.session_id)
    assert [(shown.object_id, shown.position) for shown in session.search_results] == [
        ("at10", 1),
        ("at20", 2),
        ("at30", 3),
        ("at40", 4),
    ]


def test_page_two_shows_nothing_of_page_one_even_if_a_click_changed_the_order_meanwhile(storage, arc):
    search = SearchService(storage).search
    first = search(QUERY, user_id="ann", limit=2, create_session=True)
    learn_that_70_is_near(storage, arc)

    second = search(QUERY, user_id="ann", limit=2, offset=2, session_id=first.session_id)
    third = search(QUERY, user_id="ann", limit=3, offset=4, session_id=first.session_id)

    assert (ids(first), ids(second), ids(third)) == (
        ["at10", "at20"],
        ["at70", "at30"],
        ["at40", "at50", "at60"],
    )


def test_a_first_page_shown_twice_in_another_order_hides_no_later_one(storage, arc):
    search = SearchService(storage).search
    search(QUERY, user_id="ann", limit=2, create_session=True, session_id="s")
    learn_that_70_is_near(storage, arc)
    again = search(QUERY, user_id="ann", limit=2, create_session=True, session_id="s")

    second = search(QUERY, user_id="ann", limit=2, offset=2, session_id="s")
    third = search(QUERY, user_id="ann", limit=2, offset=second.next_page_offset, session_id="s")

    assert ids(again) == ["at70", "at10"]
    assert ids(second) == ["at30", "at40"]  # at20 was shown the first time
    assert ids(third) == ["at50", "at60"]


@pytest.mark.parametrize(
    "other", [{"user_id": "bob"}, {"user_id": None}, {"user_id": "ann", "collection": "other"}]
)
def test_a_further_page_needs_the_user_and_collection_of_the_first(storage, arc, other):
    storage.collections.create("other", SearchIndexInfo(dimensions=3))
    search = SearchService(storage).search
    first = search(QUERY, user_id="ann", limit=2, create_session=True)

    with pytest.raises(ConflictError, match="another user, query or collection"):
        search(QUERY, limit=2, offset=2, session_id=first.session_id, **other)


def test_a_further_page_of_a_session_that_was_never_registered_is_refused(storage, arc):
    with pytest.raises(SessionNotFoundError):
        SearchService(storage).search(QUERY, offset=2, session_id="nobody's")


class SyllableEmbedder:
    """Embeds by length, a part a word: enough to see what is asked of an embedder."""

    name = "syllables"
    dimensions = 3

    def embed(self, texts, **_):
        return np.concatenate([at(10 * len(text)) for text in texts])

    def split(self, text):
        return text.split()


def test_a_text_is_searched_part_by_part_and_recorded_with_its_vectors(storage, arc):
    service = SearchService(storage, embedder=SyllableEmbedder())

    page = service.search("of kingdoms", user_id="ann", limit=1, create_session=True)

    assert ids(page) == ["at20"]
    storage.clickstream.push_events([SessionEvent(session_id=page.session_id, object_id="at20")])
    (recorded,) = storage.clickstream.recent_sessions(arc, ["ann"], 9)["ann"]
    assert recorded.session.search_query == "of kingdoms"
    np.testing.assert_allclose(recorded.query_vectors, np.concatenate([at(20), at(80)]), atol=1e-6)


def test_a_text_that_cannot_be_embedded_as_the_collection_was_is_refused(storage, arc):
    storage.collections.create("other", SearchIndexInfo(dimensions=3), embedder="another model")

    with pytest.raises(EmbeddingError, match="set EMBEDDER"):
        SearchService(storage).search("a text")
    with pytest.raises(InvalidInputError, match="embedded by 'another model'"):
        SearchService(storage, embedder=SyllableEmbedder()).search("a text", collection="other")


def test_a_text_is_refused_for_brought_vectors_of_another_size(storage):
    storage.collections.create("brought", SearchIndexInfo(dimensions=5))

    with pytest.raises(InvalidInputError, match=r"has vectors of 5 dimensions .* makes 3: search it with"):
        SearchService(storage, embedder=SyllableEmbedder()).search("a text", collection="brought")


@pytest.mark.parametrize(
    "vectors", [[math.nan, 0, 0], [0, 0, 0], [1, 0], [[[1, 0, 0]]], [], [math.inf, 0, 1]]
)
def test_a_query_that_is_no_vector_of_the_collection_is_refused(memory, vectors):
    memory.collections.create("default", SearchIndexInfo(dimensions=3))

    with pytest.raises(InvalidVectorsError, match="the query"):
        SearchService(memory).search(vectors)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"limit": MAX_LIMIT + 1}, "limit is 1001"),
        ({"offset": -1}, "offset is -1"),
        ({"offset": MAX_REACH - 9}, "narrow the search"),
        ({"max_distance": math.nan}, "max_distance is nan"),
        ({"exploration_ratio": 1.5}, "exploration_ratio is 1.5"),
        ({"sort_by": ("price", "down")}, "sort_by is"),
        ({"user_id": ""}, "user_id is empty"),
        ({"session_id": "s" * 513}, "session_id has 513 bytes"),
        ({"user_id": "靴" * 171}, "user_id has 513 bytes"),
        ({"user_id": 17}, "user_id is 17, a int; give a text, such as '17'"),
        ({"query": "  "}, "the query is empty"),
        ({"query": "x" * 16_385}, "the query has 16,385 characters"),
        ({"query": "red\0"}, "the query cannot be searched for: a text may not hold the character NUL"),
        ({"query": "red\udcff"}, "the query cannot be searched for: a text may not hold half a surrogate"),
        ({"collection": ""}, "the name of a collection is empty"),
        ({"collection": "\ud800"}, "the name of a collection holds half a surrogate"),
        ({"collection": 17}, "the name of a collection is 17, a int"),
        ({"query": [[1.0, 0.0, 0.0]] * 65}, "the query has 65 parts"),
        ({"sort_by": ("", "ascending")}, "the name of a field is empty"),
        ({"sort_by": ("a" * 513, "ascending")}, "the name of a field has 513 characters"),
        ({"sort_by": (".".join("a" * 17), "ascending")}, "the name of a field has 16 dots"),
        ({"sort_by": {"field": "price", "order": "down"}}, "sort_by is"),
        ({"sort_by": {"fields": "price"}}, "sort_by is"),
    ],
)
def test_an_argument_out_of_bounds_is_refused_with_a_sentence(memory, wrong, says):
    memory.collections.create("default", SearchIndexInfo(dimensions=3))

    with pytest.raises(InvalidInputError, match=says):
        SearchService(memory, embedder=SyllableEmbedder()).search(**{"query": QUERY, **wrong})


def test_an_unknown_collection_is_named(storage):
    with pytest.raises(CollectionNotFoundError, match="nowhere"):
        SearchService(storage).search(QUERY, collection="nowhere")


def test_no_page_is_offered_that_would_be_refused(memory):
    collection = memory.collections.create("default", SearchIndexInfo(dimensions=3))
    objects = [CatalogueObject(f"o{i}", at(i / 1000)) for i in range(MAX_REACH + 1)]
    memory.objects.upsert(collection, objects)
    search = SearchService(memory).search

    assert search(QUERY, limit=5, offset=MAX_REACH - 10).next_page_offset == MAX_REACH - 5
    assert search(QUERY, limit=5, offset=MAX_REACH - 5).next_page_offset is None


class Counting:
    """A port that counts the calls to its methods; ``test_round_trips.py`` counts what these cost."""

    def __init__(self, port, calls):
        self._port, self._calls = port, calls

    def __getattr__(self, name):
        self._calls.append(name)
        return getattr(self._port, name)


@given(seed=st.integers(0, 2**32 - 1), degrees=st.floats(1, 60))
def test_no_object_comes_nearer_or_goes_farther_than_its_trust_region_allows(seed, degrees):
    """Whatever was clicked, for the very query that was asked; without the shift, which moves no object."""
    rng = np.random.default_rng(seed)
    storage = MemoryStorage(order_on={"click"})
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=5))
    objects = [CatalogueObject(f"o{i}", rng.normal(size=(1, 5)).astype(np.float32)) for i in range(17)]
    storage.objects.upsert(collection, objects)
    queries = rng.normal(size=(3, 5)).astype(np.float32)
    service = SearchService(storage, query_shift=0)
    improver = Improver(
        storage,
        lambda index: PassiveAggressiveAdjuster(index, 1.0, 50, max_angle_degrees=degrees),
        max_angle_degrees=degrees,
    )
    for n in range(7):
        page = service.search(queries[n % 3], user_id="ann", create_session=True, now=n)
        clicked = page.results[int(rng.integers(len(page.results)))].object_id
        storage.clickstream.push_events([SessionEvent(session_id=page.session_id, object_id=clicked)])
        improver.improve_once()

    for query in queries:
        plain, bent = (
            {
                found.object_id: found.distance
                for found in service.search(query, user_id=user, limit=17).results
            }
            for user in (None, "ann")
        )
        turned = {name: math.acos(1 - bent[name]) - math.acos(1 - plain[name]) for name in plain}
        assert max(map(abs, turned.values())) <= math.radians(degrees) + 1e-3


def test_a_search_asks_for_the_collection_then_for_memories_then_for_the_nearest_each_once(memory):
    collection = memory.collections.create("default", SearchIndexInfo(dimensions=3))
    memory.objects.upsert(collection, [CatalogueObject("at70", at(70))])
    learn_that_70_is_near(memory, collection)
    calls = []
    for port in ("collections", "objects", "personal", "clickstream", "orders"):
        setattr(memory, port, Counting(getattr(memory, port), calls))
    search = SearchService(memory).search

    search(QUERY)
    search(QUERY, user_id="new")
    search(QUERY, user_id="ann")

    asked = ["seen", "near_memories", "nearest"]
    composed = ["get", "nearest"]  # in memory, of the base index
    assert calls == [*asked, *asked, *asked, *composed]


def test_searching_makes_no_classes(memory):
    collection = memory.collections.create("default", SearchIndexInfo(dimensions=3))
    memory.objects.upsert(collection, [CatalogueObject("at70", at(70))])
    learn_that_70_is_near(memory, collection)
    search = SearchService(memory).search

    def classes_after_a_search():
        search(QUERY, user_id="ann", explain=True, exploration_ratio=0.5, sort_by=("angle", "ascending"))
        return sum(issubclass(type(each), type) for each in gc.get_objects())

    assert classes_after_a_search() == classes_after_a_search()


def test_a_session_recorded_before_also_holds_what_its_repeated_search_shows(storage, arc):
    service = SearchService(storage)
    service.search(QUERY, limit=2, create_session=True, session_id="again")

    service.search(QUERY, limit=4, create_session=True, session_id="again")

    shown = storage.clickstream.get_session("again").search_results
    assert [result.object_id for result in shown] == [
        result.object_id for result in service.search(QUERY, limit=4).results
    ]


def test_what_a_search_asked_for_is_recorded_so_that_it_can_be_asked_again(memory):
    collection = memory.collections.create("default", SearchIndexInfo(dimensions=3))
    memory.objects.upsert(collection, [CatalogueObject("at70", at(70), {"price": 3})])
    cheap = PayloadFilter.parse({"query": {"field": "price", "range": {"lt": 5}}})
    search = SearchService(memory, exploration_ratio=0.2, settings="f00").search

    sorted_page = search(
        QUERY, create_session=True, limit=3, filter=cheap, sort_by=("price", "ascending"), max_distance=1.5
    )
    plain_page = search(QUERY, create_session=True, exploration_ratio=0.0)

    requests = [memory.clickstream.get_session(p.session_id).request for p in (sorted_page, plain_page)]
    assert requests[0] == SearchRequest(
        limit=3,
        max_distance=1.5,
        filter=cheap,
        sort_by=("price", "ascending"),
        exploration_ratio=0.2,
        settings="f00",
    )
    assert requests[1] == SearchRequest(limit=10, exploration_ratio=0.0, settings="f00")


def some_request(rng: np.random.Generator) -> dict[str, Any]:
    """Return options as a person might choose them who pages, filters and sorts."""
    cheap = PayloadFilter.parse({"query": {"field": "angle", "range": {"gte": int(rng.integers(5, 40))}}})
    return {
        "limit": int(rng.integers(1, 4)),
        "filter": cheap if rng.random() < 0.4 else None,
        "sort_by": ("angle", "descending") if rng.random() < 0.2 else None,
        "max_distance": float(rng.uniform(0.3, 1.2)) if rng.random() < 0.3 else None,
        "exploration_ratio": float(rng.random()) if rng.random() < 0.6 else None,
    }


def some_state(rng: np.random.Generator) -> PersonalState:
    moved = {f"at{degrees}": at(int(rng.integers(0, 80))) for degrees in rng.choice(ANGLES, 3, replace=False)}
    near, far = (at(int(rng.integers(0, 40)))[0] for _ in "ab")
    memories = memory_of(QUERY, near, sorted(moved)[:2], "a"), memory_of(at(20)[0], far, sorted(moved), "b")
    return PersonalState(memories, moved)


def set_state(storage: Storage, collection: Collection, state: PersonalState) -> None:
    with storage.personal.learning(collection, ["ann"]) as transaction:
        transaction.replace_states({"ann": state})


@pytest.mark.parametrize("seed", range(12))
def test_any_page_of_a_session_is_ranked_again_as_it_was_shown(storage, arc, seed):
    """What was learnt changes between the pages of a session, and pages are gone back to."""
    rng = np.random.default_rng(seed)
    arc = storage.collections.set_own_past(arc.name, OwnPast(1.0, 0.4, 0.9, 0.2))
    service = SearchService(storage, exploration_ratio=0.3, settings="f00")
    states = [some_state(rng)]
    set_state(storage, arc, states[0])
    now = 5_000
    first = service.search(QUERY, user_id="ann", create_session=True, now=now, **some_request(rng))
    shown = [(first, states[0])]
    known = set(ids(first))
    for _ in range(7):
        if rng.random() < 0.5:
            states.append(some_state(rng))
            set_state(storage, arc, states[-1])
        now += int(rng.integers(1, 200_000))
        asked: dict[str, Any] = {"session_id": first.session_id, "now": now, **some_request(rng)}
        page = service.search(
            QUERY, user_id="ann", create_session=True, offset=int(rng.integers(0, 5)), **asked
        )
        if not known.issuperset(ids(page)):  # others are not kept: they show nothing new
            shown.append((page, states[-1]))
            known.update(ids(page))

    [recorded] = storage.clickstream.scan()
    assert len(recorded.session.pages) == len(shown) - 1
    replayed, its_own = replayed_storage(recorded, arc, storage)
    [told] = replayed.clickstream.scan()
    log_before = storage.clickstream.get_session(first.session_id)
    for number, (page, state) in enumerate(shown):
        set_state(storage, arc, state)
        set_state(replayed, its_own, state)
        again = SearchService(storage).rank_again(recorded, number)
        in_replay = SearchService(replayed).rank_again(told, number)

        assert again.results == page.results
        assert (again.next_page_offset, again.is_sorted) == (page.next_page_offset, page.is_sorted)
        assert [(each.object_id, each.position, each.propensity) for each in in_replay.results] == [
            (each.object_id, each.position, each.propensity) for each in page.results
        ]
        assert distances(in_replay) == pytest.approx(distances(page), abs=1e-6)
    assert storage.clickstream.get_session(first.session_id) == log_before


def replayed_storage(
    recorded: RecordedSession, collection: Collection, storage: Storage
) -> tuple[Storage, Collection]:
    """Return a storage with the same objects, to which a session came as a line of an exported log."""
    replayed = MemoryStorage()
    own = replayed.collections.create(collection.name, collection.index)
    own = replayed.collections.set_own_past(own.name, collection.own_past)
    replayed.objects.upsert(own, storage.objects.scroll(collection))
    entry, *_ = own_log.read(orjson.loads(as_json(own_log.session_row(recorded, vectors=True))))
    assert isinstance(entry, RecordedSession)
    replayed.clickstream.record([entry])
    return replayed, own


@pytest.mark.parametrize("page", [-1, 1])
def test_a_page_that_was_not_recorded_is_not_ranked_again(storage, arc, page):
    service = SearchService(storage)
    service.search(QUERY, user_id="ann", create_session=True, session_id="s")
    ranked = Session(session_id="by another system", search_results=[{"object_id": "at10"}])
    storage.clickstream.register_session(ranked)
    others, ours = storage.clickstream.scan()
    if ours.session.request is None:
        others, ours = ours, others

    with pytest.raises(InvalidInputError, match=rf"page {page} of the session 's'.*1 page was"):
        service.rank_again(ours, page)
    with pytest.raises(InvalidInputError, match=r"page 0 of the session 'by another system'.*0 pages were"):
        service.rank_again(others)


def test_a_recorded_request_given_back_ranks_the_same_first_page(storage, arc):
    learn_that_70_is_near(storage, arc)
    service = SearchService(storage, exploration_ratio=0.4)
    asked: dict[str, Any] = {
        "limit": 4,
        "max_distance": 1.2,
        "filter": PayloadFilter.parse({"query": {"field": "angle", "range": {"gte": 5}}}),
    }
    page = service.search(QUERY, user_id="ann", create_session=True, **asked)

    recorded = storage.clickstream.get_session(page.session_id)
    again = SearchService(storage).search(
        QUERY, recorded.request, user_id=recorded.user_id, session_id=recorded.session_id
    )

    assert again.personalised
    assert any(result.propensity < 1 for result in again.results)
    assert again.results == page.results
    assert again.next_page_offset == page.next_page_offset


def test_options_outweigh_those_of_a_request(storage, arc):
    service = SearchService(storage)

    page = service.search(QUERY, SearchRequest(limit=2), offset=2)

    assert [result.position for result in page.results] == [3, 4]
    assert page.results == service.search(QUERY, limit=2, offset=2).results


def test_a_misspelt_option_is_refused(memory):
    with pytest.raises(TypeError, match="no option limti; there are limit, offset"):
        SearchService(memory).search(QUERY, limti=3)  # type: ignore[call-arg]


def test_a_request_as_it_was_stored_is_read():
    # A row as of 0006_requests.sql: JSON of each field, with the filter as it is sent over HTTP.
    stored: dict[str, Any] = {
        "limit": 3,
        "offset": 0,
        "max_distance": 1.5,
        "filter": {"query": {"field": "price", "range": {"lt": 5}}},
        "sort_by": ["price", "ascending"],
        "exploration_ratio": 0.2,
        "settings": "f00",
    }

    request = SearchRequest.model_validate(stored)

    assert request.payload_filter == PayloadFilter.parse(stored["filter"])
    assert json.loads(json.dumps(request.model_dump())) == stored


def test_a_request_that_is_out_of_bounds_by_now_is_read_and_not_served(memory):
    request = SearchRequest.model_validate({"limit": MAX_LIMIT + 1})

    with pytest.raises(InvalidInputError, match="limit is 1001"):
        SearchService(memory).search(QUERY, request)


def test_a_recorded_filter_that_is_none_by_now_is_read_and_not_served(memory):
    request = SearchRequest.model_validate({"filter": {"query": {"like": "a%"}}})

    with pytest.raises(InvalidFilterError, match="is no kind of query"):
        SearchService(memory).search(QUERY, request)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": None},
        {"limit": 2.5},
        {"offset": 1.5},
        {"max_distance": "x"},
        {"filter": 5},
        {"sort_by": 5},
        {"sort_by": (5, "ascending")},
        {"exploration_ratio": "a"},
    ],
)
def test_an_option_of_another_type_is_refused_by_its_name(storage, arc, options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        SearchService(storage).search(QUERY, **options)


def test_numbers_of_numpy_are_options_and_are_recorded(storage, arc):
    options: dict = {"limit": np.int64(2), "max_distance": np.float32(0.5), "sort_by": ["x", "ascending"]}

    page = SearchService(storage).search(QUERY, create_session=True, **options)

    recorded = storage.clickstream.get_session(page.session_id).request
    assert (recorded.limit, recorded.max_distance, recorded.sort_by) == (2, 0.5, ("x", "ascending"))


@pytest.mark.parametrize("metric", list(MetricType))
def test_a_click_unlike_its_query_rises_and_brings_nothing_with_it(storage, metric):
    shop = storage.collections.create("shop", SearchIndexInfo(dimensions=4, metric_type=metric))
    rng = np.random.default_rng(4)
    toys = np.array([1, 0, 0, 0]) + 0.6 * rng.normal(size=(20, 4))
    audio = np.array([0, 1, 0, 0]) + 0.1 * rng.normal(size=(20, 4)) * (0, 1, 1, 1)
    named = {f"toy{n}": toy for n, toy in enumerate(toys)} | {f"audio{n}": it for n, it in enumerate(audio)}
    parts = {name: (it / np.linalg.norm(it)).astype(np.float32)[None] for name, it in named.items()}
    storage.objects.upsert(shop, [CatalogueObject(name, each) for name, each in parts.items()])
    query = np.array([[1, 0, 0, 0]], dtype=np.float32)
    service = SearchService(storage)
    plain = ids(service.search(query, collection="shop"))
    session = Session(
        session_id="s",
        search_query="gift for a child",
        user_id="ann",
        collection="shop",
        created_at=100,
        search_results=tuple(SearchResultItem(object_id=each) for each in ("toy0", "toy1", "audio0")),
    )
    storage.clickstream.register_session(session, query)
    storage.clickstream.push_events([SessionEvent(session_id="s", object_id="audio0", created_at=110)])
    Improver(storage, PassiveAggressiveAdjuster).improve_once()

    page = service.search(query, collection="shop", user_id="ann")

    assert {*ids(page)[:2]} == {plain[0], "audio0"}  # the first lies at a cosine of .98
    assert set(ids(page)) <= {*plain, "audio0"}
    assert len(page.results) == 10


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Session(session_id="s", search_query="a\0"), "NUL"),
        (lambda: Session(session_id="s", search_query="half \ud83d"), "half a surrogate pair"),
        (lambda: Session(session_id="s", search_meta={"a": float("nan")}), "nan"),
        (lambda: SearchResultItem(object_id="a", rank=float("inf")), "finite number"),
        (lambda: SearchResultItem(object_id="a", meta={"a": "\0"}), "NUL"),
        (lambda: SessionEvent(session_id="s", object_id="a", event_type="a\0"), "NUL"),
        (lambda: SessionEvent(session_id="s", object_id="a", meta={"\0": 1}), "NUL"),
    ],
)
def test_what_no_session_can_keep_is_refused_as_it_is_made(make, said):
    with pytest.raises(ValueError, match=said):
        make()
