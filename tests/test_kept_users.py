"""What a process keeps of users and collections that it searched for: never what is no longer so."""

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import product
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import new_database
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    CatalogueObject,
    PersonalState,
    QueryMemory,
    SeenObject,
    SharedVote,
)
from embedding_studio.embeddings.personal import ObjectGates
from embedding_studio.errors import CollectionNotFoundError, EmbeddingError, InvalidInputError
from embedding_studio.search import SearchService
from embedding_studio.storage.ports import OutdatedError
from embedding_studio.storage.postgres import PostgresStorage, users
from embedding_studio.storage.postgres.users import KeptUser, KeptUsers, OwnVectors
from embedding_studio.storage.postgres.vectors import pack

QUERY = [1.0, 0.0, 0.0]


def at(degrees):
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


@pytest.fixture
def two(postgres_url):
    """Two processes' storages of one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(PostgresStorage(postgres_url))) for _ in range(2)]


def fill(storage, name="films", *, size=100, turned=0.0):
    collection = storage.collections.create(name, SearchIndexInfo(dimensions=3))
    objects = [CatalogueObject(f"o{n:03}", at(turned + 5 + 80 * n / size)) for n in range(size)]
    storage.objects.upsert(collection, objects)
    return collection


def learn(storage, collection, moved, *, user="ann", past="past", to=0.0, more=0):
    """Replace a user's state: of a query that is near, the objects in ``moved``, now at ``to`` degrees."""
    memory = QueryMemory(past, "", 1, at(3)[0], at(20)[0], (moved[0],), tuple(sorted(moved)))
    others = [QueryMemory(f"far {n}", "", 0, at(100)[0], at(120)[0], ("o001",), ()) for n in range(more)]
    vote = SharedVote("near", at(3)[0], at(20)[0], 1, (SeenObject(moved[0], 1.0, 0.5),))
    state = PersonalState((*others, memory), {name: at(to) for name in moved}, (vote,))
    with storage.personal.learning(collection, [user]) as transaction:
        transaction.replace_states({user: state})


def found(storage, *, collection="films", user="ann", shared_by=0, **given):
    shift = 0.5 if shared_by else 0.0
    search = SearchService(storage, query_shift=shift, shared_min_users=shared_by).search
    page = search(QUERY, collection=collection, user_id=user, limit=5, **given)
    return [each.object_id for each in page.results]


PLAIN = ["o000", "o001", "o002", "o003", "o004"]


@pytest.mark.parametrize("size", [100, 3_100])
def test_what_another_process_learnt_is_in_the_next_search(two, size):
    here, there = two
    films = fill(here, size=size)
    for last in (60, 70, 80, 60):
        learn(there, films, [f"o0{last}"])

        assert found(here)[0] == f"o0{last}"
        assert found(here)[0] == f"o0{last}"  # of what is kept


@pytest.mark.parametrize("is_kept", [False, True])
def test_memories_and_vectors_that_a_search_reads_are_of_one_state(two, postgres_url, is_kept):
    here, there = two
    films = fill(here)
    learn(here, films, ["o060"])
    if is_kept:  # as of another state, so that all is read again
        found(here)
        learn(there, films, ["o060"])
    schema = f"collection_{films.collection_id}"
    with psycopg.connect(postgres_url) as writer, ThreadPoolExecutor(1) as thread:
        writer.execute(f"LOCK TABLE {schema}.personal_parts")
        searching = thread.submit(found, here)
        with psycopg.connect(postgres_url, autocommit=True) as watcher:
            waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
            while not watcher.execute(waiting, (f"{schema}.personal_parts",)).rowcount:
                assert not searching.done()
        writer.execute(f"SET LOCAL search_path = {schema}, public")
        writer.execute("UPDATE query_memory SET moved_ids = '{o070}'")
        writer.execute(
            "UPDATE personal_parts AS p SET object_id = 'o070', object_no = o.object_no "
            "FROM objects AS o WHERE o.object_id = 'o070'"
        )
        writer.commit()

        assert searching.result()[0] == "o060"
    assert found(here)[0] == "o070"


def test_a_search_that_a_deadlock_ends_is_done_again(two, postgres_url):
    here, _ = two
    schema = f"collection_{fill(here).collection_id}"
    found(here, user=None)
    with psycopg.connect(postgres_url) as dropping, ThreadPoolExecutor(1) as thread:
        dropping.execute(f"LOCK TABLE {schema}.query_memory")
        searching = thread.submit(found, here, user=None)
        with psycopg.connect(postgres_url, autocommit=True) as watcher:
            waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
            while not watcher.execute(waiting, (f"{schema}.query_memory",)).rowcount:
                assert not searching.done()
        with suppress(psycopg.errors.DeadlockDetected):  # of this one, on a machine that stood still
            dropping.execute(f"LOCK TABLE {schema}.parts")
        dropping.rollback()

        assert searching.result() == PLAIN


def test_who_was_forgotten_elsewhere_searches_as_if_new(two):
    here, there = two
    films = fill(here)
    learn(here, films, ["o060"])
    assert found(here)[0] == "o060"

    there.clickstream.forget_user("ann")

    assert found(here) == PLAIN


def test_two_users_are_kept_apart(two):
    here, _ = two
    films = fill(here)
    learn(here, films, ["o060"])
    learn(here, films, ["o070"], user="bob")

    for _ in range(2):
        assert [found(here, user=user)[0] for user in ("ann", "bob", "eve")] == ["o060", "o070", "o000"]


def test_an_object_that_changed_elsewhere_is_what_it_is_now(two):
    here, there = two
    films = fill(here)
    learn(here, films, ["o060", "o061"])
    assert found(here)[:2] == ["o060", "o061"]

    there.objects.upsert(films, [CatalogueObject("o060", at(50))])  # which drops what ann has of it
    there.objects.delete(films, ["o061"])

    assert "o060" not in found(here)
    assert "o061" not in found(here)


@pytest.mark.parametrize("size", [100, 3_100])
def test_objects_that_went_elsewhere_leave_no_gap_among_those_that_were_moved(two, postgres_url, size):
    here, there = two
    films = fill(here, size=size)
    moved = [f"o{n:03}" for n in range(20, 60)]
    learn(here, films, moved)
    search = SearchService(here, query_shift=0.0).search
    search(QUERY, collection="films", user_id="ann", limit=15)

    there.objects.delete(films, moved[:8])
    there.objects.upsert(films, [CatalogueObject(name, at(50)) for name in moved[8:12]])

    with closing(PostgresStorage(postgres_url, recall_target=1.0)) as fresh:
        wanted = SearchService(fresh, query_shift=0.0).search(
            QUERY, collection="films", user_id="ann", limit=35
        )
    got = search(QUERY, collection="films", user_id="ann", limit=35)
    assert [each.object_id for each in got.results] == [each.object_id for each in wanted.results]


def test_objects_that_another_query_opens_are_read_when_they_are_needed(two):
    here, _ = two
    films = fill(here)
    near, far = (
        QueryMemory(name, "", 1, at(where)[0], at(where)[0], (moved,), (moved,))
        for name, where, moved in (("near", 3, "o060"), ("far", 88, "o010"))
    )
    with here.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((near, far), {"o060": at(0), "o010": at(90)})})

    assert found(here)[0] == "o060"
    page = SearchService(here).search(at(90)[0], collection="films", user_id="ann", limit=5)
    assert page.results[0].object_id == "o010"
    assert found(here)[0] == "o060"


def test_of_who_has_many_memories_the_near_ones_count_and_nothing_is_kept(two, monkeypatch):
    here, there = two
    films = fill(here)
    monkeypatch.setattr("embedding_studio.storage.postgres.personal.MOST_MEMORIES", 3)
    learn(here, films, ["o060"], more=3)

    for _ in range(2):
        assert found(here)[0] == "o060"
    assert here.personal._users.get((here.personal._database.server, films.collection_id, "ann")) is None

    learn(there, films, ["o070"], more=2)
    for _ in range(2):
        assert found(here)[0] == "o070"
    assert here.personal._users.get((here.personal._database.server, films.collection_id, "ann")) is not None


@pytest.mark.parametrize("user", ["ann", None])
def test_an_alias_that_was_switched_elsewhere_stands_for_the_other_at_once(two, user):
    here, there = two
    films, _ = fill(here), fill(here, "books", turned=-3)
    there.collections.set_alias("best", "films")
    learn(here, films, ["o060"])
    service = SearchService(here)
    assert found(here, collection="best", user=user)[0] == ("o060" if user else "o000")

    there.collections.set_alias("best", "books")

    page = service.search(QUERY, collection="best", user_id=user, limit=5)
    assert page.collection.name == "books"
    assert [each.object_id for each in page.results] == PLAIN


@pytest.mark.parametrize("user", ["ann", None])
def test_a_collection_of_other_dimensions_under_the_same_name_is_searched_at_once(two, user):
    here, there = two
    fill(here)
    found(here, user=user)

    there.collections.drop("films")
    films = there.collections.create("films", SearchIndexInfo(dimensions=2))
    there.objects.upsert(films, [CatalogueObject("flat", np.array([[1, 0]], dtype=np.float32))])

    page = SearchService(here).search([1.0, 0.0], collection="films", user_id=user)
    assert [each.object_id for each in page.results] == ["flat"]
    with pytest.raises(InvalidInputError, match="2"):
        found(here, user=user)


class Counting:
    """An embedder that counts how often it is asked."""

    name, dimensions = "counts", 3

    def __init__(self, *, fails=False):
        self.asked = 0
        self._fails = fails

    def split(self, text):
        return [text]

    def embed(self, texts, *, progress=None):
        self.asked += 1
        if self._fails:
            raise EmbeddingError(f"it fails for {len(texts)}, {progress}")
        return np.array([QUERY] * len(texts), dtype=np.float32)


@pytest.mark.parametrize("user", ["ann", None])
def test_an_embedder_that_fails_is_asked_once(two, user):
    here, _ = two
    here.collections.create("texts", SearchIndexInfo(dimensions=3), embedder="counts")
    failing = Counting(fails=True)

    with pytest.raises(EmbeddingError, match="it fails"):
        SearchService(here, embedder=failing).search("shoe", collection="texts", user_id=user)

    assert failing.asked == 1


def test_a_text_is_embedded_once_though_the_users_state_is_another_by_now(two):
    here, there = two
    texts = here.collections.create("texts", SearchIndexInfo(dimensions=3), embedder="counts")
    here.objects.upsert(texts, [CatalogueObject(f"o0{n}", at(n)) for n in range(20, 80)])
    embedder = Counting()
    search = SearchService(here, embedder=embedder, query_shift=0.0).search
    for asked, last in enumerate((60, 70, 60), 1):
        learn(there, texts, [f"o0{last}"])

        page = search("shoe", collection="texts", user_id="ann")

        assert page.results[0].object_id == f"o0{last}"
        assert embedder.asked == asked


@pytest.mark.parametrize("user", ["ann", None])
def test_a_text_is_embedded_once_though_a_threshold_was_set_elsewhere(two, user):
    here, there = two
    texts = here.collections.create("texts", SearchIndexInfo(dimensions=3), embedder="counts")
    here.objects.upsert(texts, [CatalogueObject("a", at(0))])
    embedder = Counting()
    search = SearchService(here, embedder=embedder).search
    search("shoe", collection="texts", user_id=user)
    for asked, threshold in enumerate((0.5, 0.6), 2):
        there.collections.set_gate_threshold("texts", threshold)

        page = search("shoe", collection="texts", user_id=user)

        assert page.collection.gate_threshold == threshold
        assert embedder.asked == asked


@pytest.mark.parametrize("user", ["ann", None])
def test_a_collection_that_was_dropped_elsewhere_is_not_found(two, user):
    here, there = two
    fill(here)
    found(here, user=user)

    there.collections.drop("films")

    with pytest.raises(CollectionNotFoundError, match="films"):
        found(here, user=user)


def test_what_is_kept_is_checked_though_the_originals_are_elsewhere(two):
    class Elsewhere:
        """A base index that the storage does not take for its own."""

        def __init__(self, objects):
            self._objects = objects

        def __getattr__(self, name):
            return getattr(self._objects, name)

    here, there = two
    films = fill(here)
    composed = here.having(objects=Elsewhere(here.objects))
    for last in (60, 70):
        learn(there, films, [f"o0{last}"])
        for _ in range(2):
            assert found(composed)[0] == f"o0{last}"
            assert found(composed, user=None) == PLAIN


STEPS = st.one_of(
    st.tuples(
        st.just("learn"),
        st.sampled_from(["films", "books"]),
        st.sampled_from(["ann", "bob"]),
        st.integers(10, 90),
    ),
    st.tuples(st.just("forget"), st.sampled_from(["ann", "bob"])),
    st.tuples(st.just("alias"), st.sampled_from(["films", "books"])),
    st.tuples(st.just("threshold"), st.sampled_from(["films", "books"]), st.sampled_from([0.5, 0.9999])),
    st.tuples(st.just("move"), st.sampled_from(["films", "books"]), st.integers(10, 90), st.integers(0, 80)),
    st.tuples(st.just("drop"), st.sampled_from(["films", "books"])),
)


@settings(max_examples=15)
@given(steps=st.lists(st.tuples(st.booleans(), STEPS), min_size=1, max_size=12))
def test_two_processes_always_find_what_a_new_one_finds(postgres_server, steps):
    with ExitStack() as stack:
        url = stack.enter_context(new_database(postgres_server))
        opened = [stack.enter_context(closing(PostgresStorage(url))) for _ in range(2)]
        cold: Any = stack.enter_context(closing(PostgresStorage(url)))
        for name, turned in (("films", 0.0), ("books", -3.0)):
            fill(opened[0], name, turned=turned)
        opened[0].collections.set_alias("best", "films")
        for by, step in steps:
            _take(opened[by], *step)
            for name in ("films", "best"):
                for user, shared_by in product(("ann", "bob", None), (0, 1)):
                    cold.personal._users._kept.clear()
                    cold.collections._seen.clear()
                    given = {"collection": name, "user": user, "shared_by": shared_by}
                    wanted = found(cold, **given)
                    assert [found(each, **given) for each in opened] == [wanted] * 2


def _take(storage, what, *given):
    if what == "learn":
        name, user, moved = given
        learn(storage, storage.collections.get(name), [f"o0{moved}"], user=user, past=f"{user} {name}")
    elif what == "forget":
        storage.clickstream.forget_user(*given)
    elif what == "alias":
        storage.collections.set_alias("best", *given)
    elif what == "threshold":
        storage.collections.set_gate_threshold(*given)
    elif what == "move":
        name, moved, to = given
        storage.objects.upsert(storage.collections.get(name), [CatalogueObject(f"o0{moved}", at(to))])
    elif what == "drop":
        [name] = given
        is_aliased = storage.collections.get("best").name == name
        storage.collections.drop(name)
        fill(storage, name)
        if is_aliased:
            storage.collections.set_alias("best", name)


def test_a_threshold_that_was_set_elsewhere_holds_for_the_next_search(two):
    here, there = two
    films = fill(here)
    learn(here, films, ["o060"])
    assert found(here)[0] == "o060"

    there.collections.set_gate_threshold("films", 0.9999)

    assert found(here) == PLAIN


def test_memories_are_not_read_under_a_name_that_stands_for_something_else(storage):
    films, books = fill(storage), fill(storage, "books")

    storage.personal.near_memories(films, "ann", at(0)[0], 0.5, seen_as=storage.collections.get("films").name)
    with pytest.raises(OutdatedError):
        storage.personal.near_memories(books, "ann", at(0)[0], 0.5, seen_as="films")


# Own vectors


PARTS = st.lists(st.integers(1, 3), max_size=5)


def own(counts, numbers, names):
    parts = {
        number: np.full((count, 2), number) + np.arange(count)[:, None]
        for number, count in zip(numbers, counts, strict=True)
    }
    rows = [
        (name, number, each)
        for number, name in sorted(zip(numbers, names, strict=True))
        for each in pack(parts[number].astype(np.float32))
    ]
    return OwnVectors.read(rows, [*names, f"none of {len(names)}"])


@given(first=PARTS, second=PARTS, data=st.data())
def test_own_vectors_put_together_are_those_of_each_object(first, second, data):
    numbers = data.draw(st.permutations(range(10, 10 + 7 * (len(first) + len(second)), 7)))
    names = [f"o{number}" for number in numbers]
    cut = len(first)
    both = own(first, numbers[:cut], names[:cut]) | own(second, numbers[cut:], names[cut:])
    counts = dict(zip(numbers, [*first, *second], strict=True))

    chosen = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    gates = {name: (1 + k) / 20 for k, name in enumerate(chosen)}
    opened, wide = both.opened(ObjectGates.of(gates))

    assert both.lacking([tuple(names), ("strange",)]) == ["strange"]
    assert opened.object_nos.tolist() == sorted(int(name[1:]) for name in chosen)
    assert wide.tolist() == [gates[f"o{number}"] for number in opened.object_nos.tolist()]
    ends = [*opened.starts.tolist(), len(opened.parts)][1:]
    for number, start, end in zip(opened.object_nos.tolist(), opened.starts.tolist(), ends, strict=True):
        assert opened.parts[start:end].tolist() == [[number + k] * 2 for k in range(counts[number])]


def kept_user(name, size):
    memory = QueryMemory(name, "", 1, np.ones(size, np.float32), np.ones(size, np.float32), ("a",), ())
    return KeptUser.of("1", [memory], are_all=True)


def key(name):
    return "server", 1, name


def test_those_who_searched_longest_ago_go_when_there_is_no_room(monkeypatch):
    monkeypatch.setattr(users, "KEPT_BYTES", 3 * kept_user("", 1000).nbytes)
    kept = KeptUsers()
    for name in ("ann", "bob", "eve"):
        kept.keep(key(name), kept_user(name, 1000))
    kept.keep(key("ann"), kept.get(key("ann")))  # who searches again

    kept.keep(key("joe"), kept_user("joe", 1000))
    kept.keep(key("big"), kept_user("big", 100_000))

    assert [kept.get(key(name)) is not None for name in ("ann", "bob", "eve", "joe", "big")] == [
        True, False, True, True, False,
    ]  # fmt: skip


def test_searches_of_ever_new_users_of_whom_nothing_is_known_are_not_kept_without_end(monkeypatch):
    nobody = KeptUser.of(None, [], are_all=True)
    monkeypatch.setattr(users, "KEPT_BYTES", 10 * nobody.nbytes)
    kept = KeptUsers()

    for number in range(100):
        kept.keep(key(f"user {number}"), KeptUser.of(None, [], are_all=True))

    there = [number for number in range(100) if kept.get(key(f"user {number}")) is not None]
    assert there == list(range(90, 100))


def test_who_did_not_search_for_long_goes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(users.time, "monotonic", lambda: now[0])
    kept = KeptUsers()
    kept.keep(key("ann"), kept_user("ann", 10))
    now[0] = users.KEPT_SECONDS + 1

    kept.keep(key("bob"), kept_user("bob", 10))

    assert kept.get(key("ann")) is None
    assert kept.get(key("bob")) is not None


@pytest.mark.parametrize(
    ("number", "text", "named"),
    [(0, "", 0), (20, "shoe", 2), (20, "\N{GRINNING FACE}" * 16_384, 2), (20, "shoe", 30)],
)
def test_what_is_kept_takes_no_more_memory_than_is_counted(number, text, named):
    def user():
        ones = np.ones((2, number, 8), np.float32)
        texts = [[f"{n} {k:0500}" for k in range(named)] for n in range(number)]
        memories = [
            QueryMemory(f"s{n}", text + str(n), n, query, mean, tuple(ids), tuple(ids))
            for n, (ids, query, mean) in enumerate(zip(texts, *ones, strict=True))
        ]
        return KeptUser.of(None, memories, are_all=True)

    kept = KeptUsers()
    tracemalloc.start()
    try:
        for n in range(20):
            kept.keep(key(f"user {n:0500}"), user())
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 0.3 * kept._bytes < taken < 1.1 * kept._bytes
