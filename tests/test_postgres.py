"""What only PostgreSQL can show: codes, lost connections, several processes, its errors as ours."""

import itertools
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pytest

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, PersonalState, QueryMemory, SharedVote
from embedding_studio.domain.sessions import (
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
)
from embedding_studio.errors import (
    CollectionNotFoundError,
    InvalidInputError,
    SessionNotFoundError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from embedding_studio.search import SearchService
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.postgres import PostgresStorage, kept_votes, recording
from embedding_studio.storage.postgres import codes as pg_codes
from embedding_studio.storage.postgres import nearest as pg_nearest
from embedding_studio.storage.postgres import replica as pg_replica
from embedding_studio.storage.postgres.database import BehindError, Database, only_row, text_array

GEOMETRIES = list(itertools.product(MetricType, MetricAggregationType))
I, D = 211, 5


@pytest.fixture
def postgres(postgres_url):
    with closing(PostgresStorage(postgres_url)) as storage:
        yield storage


@pytest.fixture
def connection(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def indexing(postgres_url, monkeypatch):
    """Return a storage that has codes from 40 parts on, and asks them even where they tell little apart."""
    monkeypatch.setattr(pg_codes, "LARGE", 40)
    monkeypatch.setattr(pg_nearest, "MOST_COMPARED", 1)
    monkeypatch.setattr(pg_nearest, "FEW", 3)
    with closing(PostgresStorage(postgres_url)) as storage:
        yield storage


def catalogue(seed=3):
    """Return objects of 1 to 4 parts; a third are red, every 20th is rare."""
    rng = np.random.default_rng(seed)
    return [
        CatalogueObject(
            f"o{number}",
            rng.normal(size=(1 + number % 4, D)).astype(np.float32),
            {"colour": "red" if number % 3 == 0 else "blue", "rare": number % 20 == 0, "number": number},
        )
        for number in range(I)
    ]


def info(metric_type=MetricType.COSINE, aggregation=MetricAggregationType.MIN):
    return SearchIndexInfo(dimensions=D, metric_type=metric_type, metric_aggregation_type=aggregation)


def filled(storage, index):
    collection = storage.collections.create("things", index)
    storage.objects.upsert(collection, catalogue())
    return collection


def a_query(Q=2, seed=5):
    return np.random.default_rng(seed).normal(size=(Q, D)).astype(np.float32)


def ids(neighbours):
    return [neighbour.object_id for neighbour in neighbours]


def a_filter(**query):
    return PayloadFilter.parse({"query": query})


FILTERS = {
    "none": None,
    "few": a_filter(term={"field": "rare", "value": True}),
    "many": a_filter(term={"field": "colour", "value": "red"}),
    "no index": a_filter(field="number", range={"gte": 100}),
    "nothing": a_filter(term={"field": "colour", "value": "green"}),
}
NAMED = [set(), {f"o{number}" for number in range(0, I, 7)} | {"unknown"}, {f"o{n}" for n in range(I)}]


def index_scans(connection, name):
    """Return how often a vector index was used by connections that have ended."""
    wait_for_the_end_of_others(connection)
    [(scans,)] = connection.execute(
        "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes WHERE indexrelname = %s", [name]
    )
    return scans


def wait_for_the_end_of_others(connection):
    while connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).rowcount:
        pass


def place_anything(storage, session_id="s1"):
    storage.collections.create("things", info())
    storage.clickstream.register_session(Session(session_id=session_id, user_id="ann", collection="things"))
    storage.orders.create(SessionForImprovementCreateSchema(session_id=session_id))


# Codes


@pytest.mark.parametrize(("metric_type", "aggregation"), GEOMETRIES)
def test_a_large_collection_is_searched_like_a_small_one(indexing, metric_type, aggregation):
    index = info(metric_type, aggregation)
    twin = MemoryStorage()
    theirs, ours = filled(twin, index), filled(indexing, index)

    for limit, wanted in itertools.product([1, 9, 60, I, 3 * I], FILTERS.values()):
        expected = twin.objects.nearest(theirs, a_query(), limit, filter=wanted)
        found = indexing.objects.nearest(ours, a_query(), limit, filter=wanted)

        assert ids(found) == ids(expected)
        assert [n.payload for n in found] == [n.payload for n in expected]
        np.testing.assert_allclose([n.distance for n in found], [n.distance for n in expected], atol=1e-5)


@pytest.mark.parametrize(("metric_type", "aggregation"), GEOMETRIES)
def test_the_nearest_for_a_user_come_from_codes_as_from_comparing_all(indexing, metric_type, aggregation):
    index = info(metric_type, aggregation)
    copies = {item.object_id: item.parts + 1 for item in catalogue()[:50]}
    gates = {f"o{number}": 1 / (1 + number % 3) for number in range(20, 80)}
    answers = []
    for storage in (MemoryStorage(), indexing):
        things = filled(storage, index)
        with storage.personal.learning(things, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState((), copies)})
        for wanted, named in itertools.product(FILTERS.values(), NAMED):
            near = storage.personal.nearest(
                things,
                "ann",
                a_query(),
                15,
                gates,
                filter=wanted,
                objects=storage.objects,
                named=dict.fromkeys(named, 0.0),
            )
            answers.append(ids(near))

    asked = len(FILTERS) * len(NAMED)
    assert answers[:asked] == answers[asked:]


@pytest.mark.parametrize(("metric_type", "aggregation"), GEOMETRIES)
def test_what_is_near_once_it_is_multiplied_comes_from_codes_as_from_comparing_all(
    indexing, metric_type, aggregation
):
    twin = MemoryStorage()
    rng = np.random.default_rng(7)
    copies = {item.object_id: item.parts + 1 for item in catalogue()[:50]}
    gates = {f"o{number}": 0.5 for number in range(30, 70)}
    collections = [filled(storage, info(metric_type, aggregation)) for storage in (twin, indexing)]
    for storage, things in zip((twin, indexing), collections, strict=True):
        with storage.personal.learning(things, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState((), copies)})
    named = {f"o{number}": float(rng.uniform(0.3, 2)) for number in range(0, I, 3)} | {"unknown": 0.5}

    def found(storage, things, query, limit, *, gates=(), wanted=None):
        near = storage.personal.nearest(
            things, "ann", query, limit, dict(gates), filter=wanted, objects=storage.objects, named=named
        )
        multiplied = sorted((named.get(each.object_id, 1) * each.distance, each.object_id) for each in near)
        return near, [object_id for _, object_id in multiplied[:limit]]

    for turn in range(12):
        # From the second turn on their numbers are known, of some an old one.
        changed = [item for item in catalogue(seed=turn) if int(item.object_id[1:]) % 12 == turn]
        for storage, things in zip((twin, indexing), collections, strict=True):
            storage.objects.upsert(things, changed)
            storage.objects.delete(things, [f"o{3 * turn + 100}"])
        for limit, some, wanted in itertools.product([1, 15], [{}, gates], FILTERS.values()):
            query = a_query(seed=turn)
            expected, first = found(twin, collections[0], query, limit, gates=some, wanted=wanted)
            near, ours = found(indexing, collections[1], query, limit, gates=some, wanted=wanted)

            if metric_type is MetricType.DOT:  # these are not multiplied as they stand
                assert ids(near) == ids(expected)
            else:
                assert ours == first
    is_bounded = metric_type is not MetricType.DOT and (metric_type, aggregation) != (
        MetricType.EUCLID,
        MetricAggregationType.AVG,
    )
    few, _ = found(indexing, collections[1], a_query(), 5)
    asked = [each for each in few if each.object_id in named]
    there, _ = found(twin, collections[0], a_query(), 5)
    assert (len(asked) < len([each for each in there if each.object_id in named]) / 2) == is_bounded


def test_a_filter_asked_many_times_is_planned_for_its_value_each_time(indexing):
    index = info()
    twin = MemoryStorage()
    theirs, ours = filled(twin, index), filled(indexing, index)

    for number in range(0, I, 13):  # the driver prepares a statement after five times
        least = a_filter(field="number", range={"gte": number})
        expected = twin.objects.nearest(theirs, a_query(), 9, filter=least)

        assert ids(indexing.objects.nearest(ours, a_query(), 9, filter=least)) == ids(expected)


def test_a_search_of_a_large_collection_does_not_read_it(indexing, connection):
    things = filled(indexing, info())

    def vectors_read():
        wait_for_the_end_of_others(connection)
        [(read,)] = connection.execute(
            "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'parts'"
        )
        return read

    indexing.close()
    before = vectors_read()
    with closing(PostgresStorage(connection.info.dsn)) as storage:
        for seed in range(3):
            storage.objects.nearest(things, a_query(Q=1, seed=seed), 5)

    assert vectors_read() == before


def test_a_longer_list_begins_with_the_shorter_one(indexing):
    things = filled(indexing, info())

    longest = ids(indexing.objects.nearest(things, a_query(), 150))

    for limit in range(1, 150, 13):
        assert ids(indexing.objects.nearest(things, a_query(), limit)) == longest[:limit]


def test_a_small_collection_has_no_codes_and_gets_them_as_it_grows(indexing):
    things = indexing.collections.create("things", info())
    few = [item for item in catalogue() if len(item.parts) == 1]

    indexing.objects.upsert(things, few[:39])
    while_small = indexing.objects.codes(things)
    indexing.objects.upsert(things, few)

    assert while_small.parts == 0
    assert indexing.objects.codes(things).parts == len(few)
    assert len(indexing.objects.nearest(things, a_query(Q=1), 50)) == 50


def test_another_process_that_knew_the_collection_as_small_finds_what_was_added(indexing, postgres_url):
    things = indexing.collections.create("things", info())
    with closing(PostgresStorage(postgres_url)) as other:
        assert other.objects.nearest(things, a_query(), 3) == []
        indexing.objects.upsert(things, catalogue())

        found = [ids(other.objects.nearest(things, a_query(), I)) for _ in range(2)]
        objects: Any = other.objects
        known = objects.own._search._codes[things.collection_id][1]._state

    assert known.view is not None  # it does not compare all for ever
    assert [len(objects) for objects in found] == [I, I]


@pytest.mark.parametrize("dimensions", [5, 97])
@pytest.mark.parametrize(("metric_type", "aggregation"), GEOMETRIES)
def test_personal_search_is_that_of_the_users_own_catalogue(indexing, metric_type, aggregation, dimensions):
    """The twin compares all, and is itself held to the formulas (test_search)."""
    rng = np.random.default_rng(31)
    index = SearchIndexInfo(
        dimensions=dimensions, metric_type=metric_type, metric_aggregation_type=aggregation
    )
    centres = rng.normal(size=(3, dimensions))
    objects = [
        CatalogueObject(
            f"o{k}",
            (centres[k // 80] + 0.7 * rng.normal(size=(1 + k % 3, dimensions))).astype(np.float32),
            {"colour": "red" if k % 3 == 0 else "blue", "rare": k % 20 == 0, "number": k},
        )
        for k in range(240)
    ]
    queries = (centres + 0.3 * rng.normal(size=(3, dimensions))).astype(np.float32)
    memories = [
        QueryMemory(
            f"s{j}",
            f"text {j}",
            j,
            queries[j % 2],
            objects[9 * j].parts[0],
            (f"o{9 * j}",),
            tuple(sorted({f"o{k}" for k in rng.integers(240, size=30)})),
        )
        for j in range(4)
    ]
    moved_ids = sorted({name for memory in memories for name in memory.moved_ids})[:70]
    copies = {name: objects[int(name[1:])].parts + np.float32(0.2) for name in moved_ids}
    answers = []
    for storage in (MemoryStorage(), indexing):
        things = storage.collections.create("default", index)
        storage.objects.upsert(things, objects)
        with storage.personal.learning(things, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState(tuple(memories), copies)})
        search = SearchService(storage).search
        answers.append(
            [
                ids(search(query, user_id=user, limit=limit, offset=offset, filter=wanted).results)
                for query, user in itertools.product([queries[0], queries[2], queries[:2]], ["ann", "bob"])
                for limit, offset in ((3, 3), (20, 7))
                for wanted in FILTERS.values()
            ]
        )

    assert answers[0] == answers[1]


@pytest.mark.parametrize("dimensions", [5, 97])
def test_while_others_come_change_and_go_what_stays_is_found_by_each_search(
    indexing, postgres_url, dimensions
):
    rng = np.random.default_rng(9)
    query = rng.normal(size=dimensions).astype(np.float32)
    staying = [
        CatalogueObject(f"stays{k}", (query + 0.01 * k * rng.normal(size=(1, dimensions))).astype(np.float32))
        for k in range(5)
    ]
    things = indexing.collections.create("things", SearchIndexInfo(dimensions=dimensions))
    indexing.objects.upsert(things, [*staying, *(CatalogueObject(f"o{k}", -query[None]) for k in range(60))])
    end = threading.Event()
    rounds = itertools.count()

    def change():
        with closing(PostgresStorage(postgres_url)) as other:
            while not end.is_set():
                number = next(rounds)
                chosen = rng.choice(60, size=20, replace=False)
                other.objects.upsert(
                    things,
                    [
                        CatalogueObject(f"o{k}", rng.normal(size=(1, dimensions)).astype(np.float32) - query)
                        for k in chosen
                    ],
                )
                if number % 3 == 0:
                    other.objects.delete(things, [f"o{k}" for k in chosen[:7]])

    changing = threading.Thread(target=change)
    changing.start()
    try:
        lists = [ids(indexing.objects.nearest(things, query[None], 5)) for _ in range(150)]
    finally:
        end.set()
        changing.join()

    assert next(rounds) > 5
    assert {tuple(sorted(found)) for found in lists} == {tuple(f"stays{k}" for k in range(5))}
    assert indexing.objects.codes(things).parts >= indexing.objects.count(things)


def test_what_matches_a_filter_is_looked_for_anew_once_a_payload_has_changed(indexing, postgres_url):
    things = filled(indexing, info())
    wanted = a_filter(field="number", range={"gte": I - 9})
    before = [ids(indexing.objects.nearest(things, a_query(), 20, filter=wanted)) for _ in range(3)]

    with closing(PostgresStorage(postgres_url)) as other:
        other.objects.update_payloads(things, {"o3": {"number": I}, f"o{I - 1}": {"number": 0}})
        after = [
            ids(storage.objects.nearest(things, a_query(), 20, filter=wanted))
            for storage in (indexing, other)
        ]

    assert [sorted(found) for found in before] == 3 * [sorted(f"o{k}" for k in range(I - 9, I))]
    assert [sorted(found) for found in after] == 2 * [sorted(["o3", *(f"o{k}" for k in range(I - 9, I - 1))])]


def test_codes_of_a_dropped_collection_are_let_go(indexing, postgres_url):
    things = filled(indexing, info())
    indexing.objects.nearest(things, a_query(), 3)
    with closing(PostgresStorage(postgres_url)) as other:
        other.collections.drop("things")

    with pytest.raises(CollectionNotFoundError):
        indexing.objects.nearest(things, a_query(), 3)

    assert indexing.objects.own._search._codes == {}


def test_codes_of_what_is_gone_do_not_pile_up(indexing, monkeypatch):
    monkeypatch.setattr(pg_codes, "MANY_REMOVED", 100)
    things = filled(indexing, info())

    for seed in range(6):
        indexing.objects.upsert(things, catalogue(seed=seed + 20))
        indexing.objects.nearest(things, a_query(), 3)

    parts = sum(len(item.parts) for item in catalogue())
    assert parts <= indexing.objects.codes(things).parts <= 2 * parts
    twin = MemoryStorage()
    theirs = filled(twin, info())
    twin.objects.upsert(theirs, catalogue(seed=25))
    expected = twin.objects.nearest(theirs, a_query(), 20)
    assert ids(indexing.objects.nearest(things, a_query(), 20)) == ids(expected)


@pytest.mark.parametrize("sampled", [30, 1000])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_codes_are_written_again_only_if_what_came_later_lies_elsewhere(
    indexing, connection, geometry, sampled, monkeypatch
):
    metric_type, aggregation = geometry
    monkeypatch.setattr(pg_codes, "RECENTRED", 2)
    monkeypatch.setattr(pg_codes, "SAMPLED", sampled)
    rng = np.random.default_rng(17)
    twin = MemoryStorage()
    index = SearchIndexInfo(dimensions=D, metric_type=metric_type, metric_aggregation_type=aggregation)
    things, theirs = (storage.collections.create("things", index) for storage in (indexing, twin))

    def come(kind, count, centre):
        parts = (centre + rng.normal(size=(count, 3, D))).astype(np.float32)
        objects = [CatalogueObject(f"{kind}{k}", each) for k, each in enumerate(parts)]
        for storage, collection in ((indexing, things), (twin, theirs)):
            storage.objects.upsert(collection, objects)
        [state] = connection.execute("SELECT epoch, encoded FROM collection_1.revision").fetchall()
        return state

    of_each = 1 if aggregation is MetricAggregationType.AVG else 3
    first = come("first", 50, 4)
    more = come("more", 100, 4)
    elsewhere = come("elsewhere", 200, -4)

    assert [first, more, elsewhere] == [(1, 50 * of_each), (1, 150 * of_each), (2, 350 * of_each)]
    for query in (np.full((1, D), 4, np.float32), a_query()):
        found = ids(indexing.objects.nearest(things, query, 40))
        assert found == ids(twin.objects.nearest(theirs, query, 40))


def test_many_dimensions_are_stored_as_given_and_found(indexing):
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(45, 2001)).astype(np.float32)
    wide = indexing.collections.create("wide", SearchIndexInfo(dimensions=2001))
    indexing.objects.upsert(wide, [CatalogueObject(f"o{k}", vectors[k : k + 1]) for k in range(45)])

    found = indexing.objects.nearest(wide, vectors[8:9], 45)
    [stored] = indexing.objects.get(wide, ["o8"])

    cosines = vectors @ vectors[8] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[8])
    assert ids(found) == [f"o{k}" for k in np.argsort(-cosines)]
    np.testing.assert_allclose([n.distance for n in found], np.sort(1 - cosines), atol=1e-5)
    np.testing.assert_array_equal(stored.parts, vectors[8:9])


def test_parts_that_do_not_change_are_not_written_again(postgres, connection):
    things = filled(postgres, info(aggregation=MetricAggregationType.AVG))
    rows = "SELECT object_id, part_no, ctid::text FROM collection_1.parts ORDER BY 1, 2"
    before = connection.execute(rows).fetchall()

    postgres.objects.upsert(things, [CatalogueObject(o.object_id, o.parts, {"new": 1}) for o in catalogue()])

    assert connection.execute(rows).fetchall() == before
    assert postgres.objects.get(things, ["o7"])[0].payload == {"new": 1}


# What users tell each other


def vote_for_all(storage, collection, queries):
    """Let 40 users vote for random queries, 9 of them each."""
    rng = np.random.default_rng(11)
    states = {
        f"user {number}": PersonalState(
            (), {}, tuple(SharedVote(f"q{k:04}", queries[k], -queries[k], 100 + number) for k in chosen)
        )
        for number, chosen in enumerate(rng.permuted([range(len(queries))] * 40, axis=1)[:, :9])
    }
    with storage.personal.learning(collection, list(states)) as transaction:
        transaction.replace_states(states)


def vote(storage, collection, user_id, *query_keys):
    votes = tuple(SharedVote(key, np.ones(D, np.float32), np.ones(D, np.float32), 100) for key in query_keys)
    with storage.personal.learning(collection, [user_id]) as transaction:
        transaction.replace_states({user_id: PersonalState((), {}, votes)})


def voted_for(connection):
    """Return the keys of the queries that are stored, and of those that have votes."""
    stored = connection.execute("SELECT query_key FROM collection_1.shared_queries ORDER BY 1").fetchall()
    used = connection.execute(
        "SELECT DISTINCT query_key FROM collection_1.shared_votes ORDER BY 1"
    ).fetchall()
    return [key for (key,) in stored], [key for (key,) in used]


@pytest.mark.parametrize("dimensions", [7, 2001])
def test_near_queries_of_others_come_from_their_index_as_from_all(
    indexing, connection, dimensions, monkeypatch
):
    monkeypatch.setattr(kept_votes, "MOST_BYTES", 0)  # else they are compared in the process
    index = SearchIndexInfo(dimensions=dimensions)
    centres, spread = np.random.default_rng(3).normal(size=(2, 211, dimensions))
    queries = (centres[np.arange(211) % 4] + 0.4 * spread).astype(np.float32)
    answers = []
    for storage in (MemoryStorage(), indexing):
        things = storage.collections.create("things", index)
        vote_for_all(storage, things, queries)
        answers.append(
            [
                storage.personal.near_memories(things, user_id, query, 0.5, shared_by=3).shared
                for user_id in (None, "user 7")
                for query in queries[:9]
            ]
        )
    indexing.close()

    assert index_scans(connection, "shared_queries_nearest") == 18
    for expected, found in zip(*answers, strict=True):
        assert [memory.users for memory in found] == [memory.users for memory in expected]
        assert len(expected) > 9
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.query, theirs.query)
            np.testing.assert_allclose(ours.clicked_mean, theirs.clicked_mean, atol=1e-5)


def test_a_list_of_texts_is_read_as_it_was_written(connection):
    pieces = ['"', "\\", ",", "{", "}", "NULL", "", " ", "\n", "é", "%", "'", "\\x41"]
    texts = [*pieces, *map("".join, itertools.product(pieces, repeat=2)), *map("a{}b".format, pieces)]

    assert connection.execute("SELECT %s::text[]", [text_array(texts)]).fetchone() == (texts,)
    assert connection.execute("SELECT %s::text[]", [text_array([])]).fetchone() == ([],)
    assert connection.execute("SELECT %s::text[]", [text_array(["NULL"])]).fetchone() == (["NULL"],)


def test_a_query_goes_with_its_last_vote(postgres, connection):
    things = postgres.collections.create("things", info())
    vote(postgres, things, "ann", "k1", "k2", "k3")
    vote(postgres, things, "bob", "k2")

    vote(postgres, things, "ann", "k3", "k4")
    after_a_fold = voted_for(connection)
    postgres.clickstream.forget_user("ann")

    assert after_a_fold == (["k2", "k3", "k4"],) * 2
    assert voted_for(connection) == (["k2"], ["k2"])


@pytest.mark.parametrize("last_goes_first", [True, False])
def test_a_query_whose_last_vote_goes_while_another_comes_stays(postgres, connection, last_goes_first):
    things = postgres.collections.create("things", info())
    vote(postgres, things, "ann", "k1")
    writes = [
        ("ann", PersonalState()),
        ("bob", PersonalState((), {}, (SharedVote("k1", a_query(Q=1)[0], a_query(Q=1)[0], 100),))),
    ]
    (first, firsts), (second, seconds) = writes if last_goes_first else writes[::-1]

    def follow():
        with postgres.personal.learning(things, [second]) as transaction:
            transaction.replace_states({second: seconds})

    following = threading.Thread(target=follow)
    with postgres.personal.learning(things, [first]) as transaction:
        transaction.replace_states({first: firsts})
        following.start()
        following.join(timeout=0.3)
        waited = following.is_alive()
    following.join(timeout=30)

    assert waited
    assert voted_for(connection) == (["k1"], ["k1"])
    assert [vote.query_key for vote in postgres.personal.state(things, "bob").votes] == ["k1"]


def test_folds_without_votes_and_folds_that_add_some_do_not_wait_for_each_other(postgres):
    things = postgres.collections.create("things", info())
    added = PersonalState((), {}, (SharedVote("k1", a_query(Q=1)[0], a_query(Q=1)[0], 100),))

    def go_on():
        vote(postgres, things, "bob", "k0", "k2")
        with postgres.personal.learning(things, ["cat"]) as transaction:
            transaction.replace_states({"cat": PersonalState()})
        postgres.clickstream.forget_user("dan")

    beside = threading.Thread(target=go_on)
    with postgres.personal.learning(things, ["ann"]) as transaction:
        transaction.replace_states({"ann": added})
        beside.start()
        beside.join(timeout=30)
        waited = beside.is_alive()
    beside.join(timeout=30)

    assert not waited


def test_no_query_lacks_votes_and_no_vote_its_query_after_many_folds_at_once(postgres, connection):
    things = postgres.collections.create("things", info())
    errors = []

    def fold(user_ids, seed):
        rng = np.random.default_rng(seed)
        try:
            for number in range(40):
                for user_id in user_ids:
                    keys = rng.permutation([f"k{k}" for k in np.flatnonzero(rng.random(9) < 0.2)])
                    vote(postgres, things, user_id, *keys.tolist())
                if number % 7 == 0:
                    postgres.clickstream.forget_user(user_ids[0])
        except Exception as error:
            errors.append(error)
            raise

    threads = [
        threading.Thread(target=fold, args=(user_ids, seed))
        for seed, user_ids in enumerate([["ann", "bob"], ["cat", "dan"], ["eve", "fay"]])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)

    stored, used = voted_for(connection)
    assert errors == []
    assert stored == used != []


# Lost connections


def lose_connections(connection):
    """End all other connections to this database, and wait until they are gone."""
    connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_reading_and_writing_go_on_after_all_connections_were_lost(postgres, connection):
    things = filled(postgres, info())

    lose_connections(connection)
    number = postgres.objects.count(things)
    lose_connections(connection)
    postgres.objects.delete(things, ["o1"])

    assert (number, postgres.objects.count(things)) == (I, I - 1)


def test_a_read_whose_connection_is_lost_on_the_way_is_done_again(postgres, connection):
    tries = []

    def work(theirs):
        tries.append(theirs.info.backend_pid)
        if len(tries) == 1:
            lose_connections(connection)
        return theirs.execute("SELECT 7").fetchone()

    assert postgres.objects.own.database.read(work) == (7,)
    assert len(set(tries)) == 2


def test_a_write_whose_connection_is_lost_on_the_way_is_not_done_again(postgres, connection):
    tries = []

    def work(theirs):
        tries.append(theirs.info.backend_pid)
        lose_connections(connection)
        theirs.execute("SELECT 7")

    with pytest.raises(StorageUnavailableError):
        postgres.objects.own.database.write(work)
    assert len(tries) == 1


def test_a_write_that_met_a_deadlock_is_done_again(postgres, connection):
    connection.execute("CREATE TABLE pair (side text PRIMARY KEY, number integer)")
    connection.execute("INSERT INTO pair VALUES ('left', 0), ('right', 0)")
    both_hold_one = threading.Barrier(2)
    tries = []

    def count(sides):
        def work(theirs):
            is_first_try = not tries.count(sides)
            tries.append(sides)
            theirs.execute("UPDATE pair SET number = number + 1 WHERE side = %s", sides[:1])
            if is_first_try:
                both_hold_one.wait(timeout=30)
            theirs.execute("UPDATE pair SET number = number + 1 WHERE side = %s", sides[1:])

        postgres.objects.own.database.write(work)

    threads = [threading.Thread(target=count, args=(s,)) for s in (("left", "right"), ("right", "left"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert connection.execute("SELECT number FROM pair").fetchall() == [(2,), (2,)]
    assert len(tries) >= 3


def test_waiting_goes_on_after_its_connection_was_lost(postgres, connection):
    assert not postgres.queue.wait(0)
    lose_connections(connection)

    place_anything(postgres)

    assert postgres.queue.wait(30)


def test_an_order_placed_between_two_waits_ends_the_second_at_once(postgres):
    assert not postgres.queue.wait(0)
    place_anything(postgres)
    claim = postgres.queue.claim(users=1, lease_seconds=1e9)

    assert len(claim.entries) == 1
    assert postgres.queue.wait(30)
    assert not postgres.queue.wait(0)


def test_a_closed_storage_says_so(postgres):
    postgres.close()

    with pytest.raises(StorageError):
        postgres.ping()


# Several processes

CLAIM = """
import sys
from embedding_studio.storage.postgres import PostgresStorage

storage = PostgresStorage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while claim := storage.queue.claim(users=3, lease_seconds=600):
    for entry in claim.entries:
        print(claim.token, entry.user_id)
storage.close()
"""


def test_processes_claim_every_user_once(postgres, postgres_url):
    postgres.collections.create("things", info())
    sessions = {f"s{number}": f"user {number % 23}" for number in range(90)}
    for session_id, user_id in sessions.items():
        postgres.clickstream.register_session(
            Session(session_id=session_id, user_id=user_id, collection="things")
        )
    postgres.clickstream.push_events([SessionEvent(session_id=s, object_id="o1") for s in sessions])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, postgres_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"

    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    claimed = [
        line.split(" ", 1)[1] for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()
    ]

    assert sorted(claimed) == sorted(set(sessions.values()))


def test_a_user_who_is_marked_already_is_not_written_again(postgres, connection):
    place_anything(postgres)
    row = "SELECT ctid::text, since FROM embedding_studio.queue"
    before = connection.execute(row).fetchall()

    postgres.clickstream.push_events([SessionEvent(session_id="s1", object_id="o1")])

    assert connection.execute(row).fetchall() == before


@pytest.mark.parametrize(
    "state",
    [
        "UPDATE embedding_studio.queue SET priority = -1",
        "UPDATE embedding_studio.queue SET not_before = 9e9",
        "UPDATE embedding_studio.queue SET attempts = 2",
        "UPDATE embedding_studio.queue SET is_alone = true",
        "UPDATE embedding_studio.queue SET token = '1-2'",
    ],
)
def test_a_user_who_is_marked_is_due_at_once_whatever_became_of_them_before(postgres, connection, state):
    place_anything(postgres)
    entry = "SELECT priority, not_before, attempts, is_alone, token FROM embedding_studio.queue"
    before = connection.execute(entry).fetchall()
    connection.execute(state)

    postgres.clickstream.push_events([SessionEvent(session_id="s1", object_id="o1")])

    assert connection.execute(entry).fetchall() == before


def test_threads_that_create_one_collection_get_the_same(postgres):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(postgres.collections.create("things", info())))
        for _ in range(5)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert made == [postgres.collections.get("things")] * 5


def test_a_session_forgotten_while_an_event_arrives_leaves_no_event(postgres, connection):
    place_anything(postgres)
    with connection.transaction():
        connection.execute("DELETE FROM embedding_studio.sessions WHERE session_id = 's1'")
        told = []
        event = SessionEvent(session_id="s1", object_id="o1")
        push = postgres.clickstream.push_events
        pushing = threading.Thread(target=lambda: told.extend(push([event], may_wait=False)))
        pushing.start()
        pushing.join(timeout=0.3)
        waited = pushing.is_alive()
    pushing.join(timeout=30)

    assert waited
    assert told == ["unknown_session"]
    with pytest.raises(SessionNotFoundError):
        postgres.clickstream.get_session("s1")


# Errors


@pytest.mark.parametrize("text", ["a\0b", "lone \ud800 surrogate"])
def test_a_text_that_the_database_cannot_hold_is_refused_as_input(postgres, text):
    things = postgres.collections.create("things", info())

    with pytest.raises(InvalidInputError):
        postgres.objects.upsert(things, [CatalogueObject(text, a_query(Q=1))])
    with pytest.raises(InvalidInputError):
        postgres.objects.upsert(things, [CatalogueObject("o1", a_query(Q=1), {"title": text})])
    with pytest.raises(InvalidInputError, match=r"^a text may not hold (the|half)"):
        postgres.clickstream.get_session(text)

    assert postgres.objects.count(things) == 0


def test_a_number_that_json_lacks_is_refused_as_input(postgres):
    things = postgres.collections.create("things", info())

    with pytest.raises(InvalidInputError, match=r"price.* is nan"):
        postgres.objects.upsert(things, [CatalogueObject("o1", a_query(Q=1), {"price": float("nan")})])


def test_any_text_may_be_the_reason_of_a_failure(postgres):
    place_anything(postgres)
    claim = postgres.queue.claim(users=1, lease_seconds=60)
    reason = "\0 \ud800 " + "x" * 5000

    postgres.queue.fail(claim.token, claim.entries[0], reason, max_attempts=1, backoff_seconds=1)

    detail = postgres.orders.get("s1").detail
    assert len(detail) == 2000
    assert detail.endswith("xx")


def test_a_search_of_what_changes_faster_than_it_is_read_is_to_be_tried_again(postgres, monkeypatch):
    monkeypatch.setattr(pg_replica, "PAUSE_SECONDS", 0)
    shop = postgres.collections.create("shop", SearchIndexInfo(dimensions=2))

    def always_behind(_):
        raise BehindError

    with pytest.raises(
        StorageTimeoutError, match="objects of 'shop' changed 4 times while they were searched"
    ):
        pg_replica.Searches(postgres.objects.of(shop).database).read(always_behind, shop)


def learn_nothing(storage, collection):
    with storage.personal.learning(collection, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState()})


USES = {
    "nearest": lambda storage, shop: storage.objects.nearest(shop, a_query(), 1),
    "upsert": lambda storage, shop: storage.objects.upsert(shop, catalogue()[:3]),
    "delete": lambda storage, shop: storage.objects.delete(shop, ["a"]),
    "payloads": lambda storage, shop: storage.objects.update_payloads(shop, {"a": {}}),
    "memories": lambda storage, shop: storage.personal.near_memories(shop, "ann", a_query()[0], 0.5),
    "shared": lambda storage, shop: storage.personal.near_memories(
        shop, "ann", a_query()[0], 0.5, shared_by=3
    ),
    "own": lambda storage, shop: storage.personal.nearest(
        shop, "ann", a_query(), 1, {"a": 1.0}, objects=storage.objects
    ),
    "state": lambda storage, shop: storage.personal.state(shop, "ann"),
    "learning": learn_nothing,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_done_to_a_dropped_collection_fails_and_leaves_nothing_to_be_logged(indexing, caplog, use):
    things = filled(indexing, info())
    for _ in range(7):  # so often that its statements are prepared
        use(indexing, things)
    indexing.collections.drop("things")

    for _ in range(3):
        with pytest.raises(CollectionNotFoundError):
            use(indexing, things)

    assert caplog.records == []


def test_a_collection_that_was_dropped_meanwhile_is_not_found(postgres):
    things = filled(postgres, info())
    postgres.collections.drop("things")

    with pytest.raises(CollectionNotFoundError) as caught:
        postgres.objects.nearest(things, a_query(), 5)

    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)


def test_an_object_with_a_copy_is_found_while_its_originals_change(postgres):
    few = catalogue()[:50]
    things = postgres.collections.create("things", info())
    postgres.objects.upsert(things, few)
    gates = {item.object_id: 0.5 for item in few}
    is_over = threading.Event()

    def change():
        for step in itertools.count(1):
            changed = [replace(item, parts=item.parts + step) for item in few[:10]]
            postgres.objects.upsert(things, changed)
            with postgres.personal.learning(things, ["ann"]) as transaction:
                copies = {item.object_id: item.parts + 1 for item in changed}
                transaction.replace_states({"ann": PersonalState((), copies)})
            if is_over.is_set():
                break

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(150):
            near = postgres.personal.nearest(things, "ann", a_query(), 50, gates, objects=postgres.objects)

            assert sorted(ids(near)) == sorted(item.object_id for item in few)
    finally:
        is_over.set()
        changing.join(timeout=60)


def test_an_object_is_neighbour_or_moved_never_both_or_neither_while_it_is_being_learnt(postgres):
    things = filled(postgres, info())
    copies = {item.object_id: item.parts + 1 for item in catalogue()[:40]}
    is_over = threading.Event()

    def learn():
        for state in itertools.cycle([PersonalState((), copies), PersonalState()]):
            with postgres.personal.learning(things, ["ann"]) as transaction:
                transaction.replace_states({"ann": state})
            if is_over.is_set():
                break

    learning = threading.Thread(target=learn)
    learning.start()
    try:
        for _ in range(150):
            near = postgres.personal.nearest(
                things, "ann", a_query(), I, dict.fromkeys(copies, 1.0), objects=postgres.objects
            )

            assert sorted(ids(near)) == sorted(item.object_id for item in catalogue())
    finally:
        is_over.set()
        learning.join(timeout=60)


@pytest.mark.parametrize("route", ["record", "register_session"])
def test_a_session_that_is_sent_again_while_its_user_is_forgotten_fails_no_batch(
    postgres, postgres_url, monkeypatch, route
):
    """Found by an audit: the whole batch was answered 404, and nothing of it was recorded."""
    filled(postgres, info())
    shown = [SearchResultItem(object_id="o1")]
    sent = [
        Session(session_id=f"of {user}", user_id=user, collection="things", search_results=shown)
        for user in ("ann", "bob")
    ]
    postgres.clickstream.record([RecordedSession(sent[0])])
    look = recording.stored_rows
    forgotten = []

    def stored(connection, session_ids):
        if not forgotten:
            with closing(PostgresStorage(postgres_url)) as other:
                forgotten.append(other.clickstream.forget_user("ann")["sessions"])
        return look(connection, session_ids)

    monkeypatch.setattr(recording, "stored_rows", stored)
    if route == "record":
        became = [
            each.disposition for each in postgres.clickstream.record([RecordedSession(s) for s in sent])
        ]
    else:
        became = [postgres.clickstream.register_session(sent[0])]

    assert forgotten == [1]
    assert became == (["recorded", "recorded"] if route == "record" else [True])
    assert postgres.clickstream.get_session("of ann").user_id == "ann"


@pytest.mark.parametrize("failed_before", [0, 1, 3])
@pytest.mark.parametrize("times", range(8))
def test_what_was_to_be_prepared_after_a_statement_that_failed_works_afterwards(
    postgres_url, times, failed_before
):
    """psycopg prepares what it sees for the sixth time."""

    def work(connection, divisor):
        with connection.pipeline():
            connection.execute("SELECT 1 / %s::int", (divisor,))
            two = connection.execute("SELECT 2")
        return only_row(two)

    with closing(Database(postgres_url, pool_size=1)) as database:
        for _ in range(failed_before):
            with pytest.raises(InvalidInputError):
                database.read(partial(work, divisor=0))
        for _ in range(times):
            database.read(partial(work, divisor=1))
        with pytest.raises(InvalidInputError):
            database.read(partial(work, divisor=0))

        assert database.read(partial(work, divisor=1)) == (2,)


@pytest.mark.parametrize(("given", "kept"), [("off", "on"), ("local", "local"), ("on", "on")])
def test_what_is_acknowledged_is_on_the_disk_whatever_a_server_is_set_to(postgres_url, given, kept):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = {given}')

    with closing(Database(postgres_url, pool_size=1)) as database:
        asked = "SELECT current_setting('synchronous_commit')"
        [found] = database.read(lambda connection: connection.execute(asked).fetchone())

    assert found == kept
