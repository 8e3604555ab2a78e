"""What a process keeps of votes says what the database says, in whichever process it was changed."""

import itertools
import math
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, PersonalState, SeenObject, SharedVote
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import OutdatedError
from embedding_studio.storage.postgres import PostgresStorage, kept_votes
from embedding_studio.storage.postgres.kept_votes import AskedVotes, VotesOfCollection
from embedding_studio.storage.postgres.vectors import pack
from embedding_studio.storage.votes import Asked, Listener

USERS = ["ann", "bob", "cat", "dan"]
KEYS = [f"k{n}" for n in range(6)]


def at(degrees):
    radians = math.radians(degrees)
    return np.array([math.cos(radians), math.sin(radians), 0], dtype=np.float32)


def vote_for(key, created_at, clicked):
    n = KEYS.index(key)
    seen = (SeenObject("a", float(clicked), 1.0), SeenObject(f"o{n}", 1.0, 0.5))
    return SharedVote(key, at(25 * n), at(25 * n + created_at % 7), created_at, seen)


def vote(storage, collection, user_id, *votes):
    with storage.personal.learning(collection, [user_id]) as transaction:
        transaction.replace_states({user_id: PersonalState((), {}, votes)})


def fill(storage, name="films"):
    collection = storage.collections.create(name, SearchIndexInfo(dimensions=3))
    storage.objects.upsert(collection, [CatalogueObject("a", at(0)[None])])
    return collection


def rounded(numbers):
    return np.round(numbers, 5).tolist()


def told(memories):
    """Return memories of others as something that can be compared."""
    return [
        (
            memory.query.tolist(),
            rounded(memory.clicked_mean),
            memory.users,
            [(each.object_id, each.users, *rounded([each.clicks, each.looks])) for each in memory.seen],
        )
        for memory in memories
    ]


def heard(storage, degrees=0, user_id="eve", shared_by=1, *, name="films"):
    """Return what a search hears of others, as it is checked when the nearest are found."""
    collection, query = storage.collections.seen(name), at(degrees)
    given = {"shared_by": shared_by, "seen_as": name}
    near = storage.personal.near_memories(collection, user_id, query, 0.5, is_checked_later=True, **given)
    try:
        storage.personal.nearest(
            collection, user_id, query[None], 1, {}, objects=storage.objects, own=near.read
        )
    except OutdatedError:  # as a search does
        near = storage.personal.near_memories(collection, user_id, query, 0.5, **given)
    return near.shared


@pytest.fixture
def connection(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def postgres(postgres_url):
    with closing(PostgresStorage(postgres_url)) as storage:
        yield storage


@pytest.fixture
def two(postgres_url):
    """Two processes' storages of one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(PostgresStorage(postgres_url))) for _ in range(2)]


@pytest.fixture
def asked(monkeypatch):
    """Return a list that grows whenever the database is asked what others say."""
    times = []
    ask = AskedVotes._ask
    monkeypatch.setattr(AskedVotes, "_ask", lambda self, connection: times.append(ask(self, connection)))
    return times


PROGRAMS = st.lists(
    st.one_of(
        st.tuples(
            st.just("vote"),
            st.integers(0, 1),
            st.sampled_from(USERS),
            st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 9), st.booleans()), max_size=4),
        ),
        st.tuples(st.just("forget"), st.integers(0, 1), st.sampled_from(USERS)),
        st.tuples(
            st.just("hear"),
            st.integers(0, 1),
            st.sampled_from([None, *USERS]),
            st.integers(0, 130),
            st.integers(1, 3),
        ),
    ),
    min_size=4,
    max_size=25,
)  # fmt: skip


def run(program, storages, name):
    """Do the same to two processes' storages and to the twin in memory, and compare what is heard."""
    twin = MemoryStorage()
    films, ours = fill(storages[0], name), fill(twin, name)
    for kind, which, who, *rest in program:
        if kind == "vote":
            votes = {key: vote_for(key, created_at, clicked) for key, created_at, clicked in rest[0]}
            vote(storages[which], films, who, *votes.values())
            vote(twin, ours, who, *votes.values())
        elif kind == "forget":
            storages[which].clickstream.forget_user(who)
            twin.clickstream.forget_user(who)
        else:
            degrees, shared_by = rest[0] + 0.3, rest[1]  # no two queries are equally near
            expected = told(heard(twin, degrees, who, shared_by, name=name))
            assert told(heard(storages[which], degrees, who, shared_by, name=name)) == expected


@pytest.mark.parametrize("kept", ["all", "few", "later", "none"])
def test_whatever_is_kept_each_process_hears_what_the_twin_in_memory_says(postgres_url, monkeypatch, kept):
    monkeypatch.setattr(kept_votes, "STEADY_SECONDS", 1e9 if kept == "later" else 0.0)
    monkeypatch.setattr(kept_votes, "LATEST_BYTES", 3_000 if kept == "few" else 1 << 20)
    monkeypatch.setattr(kept_votes, "MOST_BYTES", 24 if kept == "none" else 1 << 20)

    numbers = itertools.count()

    @settings(max_examples=15, deadline=None)
    @given(PROGRAMS)
    def check(program):
        run(program, storages, f"films {next(numbers)}")

    with ExitStack() as stack:
        storages = [stack.enter_context(closing(PostgresStorage(postgres_url))) for _ in range(2)]
        check()


def test_where_nothing_changed_the_database_is_asked_nothing(two, asked):
    here, _ = two
    films = fill(here)
    vote(here, films, "ann", vote_for("k0", 1, clicked=True))
    first = told(heard(here))
    once = len(asked)

    again = [told(heard(here, degrees)) for degrees in (0, 1, 2)]

    assert once == 1
    assert again == [first] * 3
    assert len(asked) == 1


def test_what_was_heard_before_another_process_changed_it_does_not_reach_a_page(two):
    here, there = two
    films = fill(here)
    vote(here, films, "ann", vote_for("k0", 1, clicked=True))
    heard(here)
    seen = here.collections.seen("films")
    given = {"shared_by": 1, "seen_as": "films", "is_checked_later": True}
    near = here.personal.near_memories(seen, "eve", at(0), 0.5, **given)

    there.clickstream.forget_user("ann")

    assert [memory.users for memory in near.shared] == [1]
    with pytest.raises(OutdatedError):
        here.personal.nearest(seen, "eve", at(0)[None], 1, {}, objects=here.objects, own=near.read)
    assert heard(here) == []


def test_a_user_is_kept_though_votes_of_others_change(two):
    here, there = two
    films = fill(here)
    vote(here, films, "ann", vote_for("k0", 1, clicked=True))
    heard(here)
    [before] = here.personal._users._kept.values()
    vote(there, films, "bob", vote_for("k0", 1, clicked=True))
    seen = here.collections.seen("films")
    given = {"shared_by": 1, "seen_as": "films", "is_checked_later": True}
    near = here.personal.near_memories(seen, "eve", at(0), 0.5, **given)

    with pytest.raises(OutdatedError):
        here.personal.nearest(seen, "eve", at(0)[None], 1, {}, objects=here.objects, own=near.read)

    [after] = here.personal._users._kept.values()
    assert after[-1] is before[-1]


def test_while_votes_change_the_database_is_asked_beforehand(two, asked):
    here, there = two
    films = fill(here)
    vote(here, films, "ann", vote_for("k0", 1, clicked=True))
    heard(here)
    vote(there, films, "bob", vote_for("k0", 1, clicked=True))
    heard(here)
    before = len(asked)

    vote(there, films, "cat", vote_for("k0", 1, clicked=True))
    seen = here.collections.seen("films")
    near = here.personal.near_memories(
        seen, "eve", at(0), 0.5, shared_by=1, seen_as="films", is_checked_later=True
    )

    assert [memory.users for memory in near.shared] == [3]
    assert len(asked) == before + 1


def test_what_a_user_says_as_before_is_not_written_again(postgres, connection):
    films = fill(postgres)
    votes = [vote_for(key, 1, clicked=True) for key in KEYS[:3]]
    vote(postgres, films, "ann", *votes)

    vote(postgres, films, "ann", *votes[1:], vote_for("k0", 2, clicked=True))
    noted = connection.execute("SELECT query_nos FROM collection_1.vote_changes ORDER BY at").fetchall()
    rows = connection.execute("SELECT count(DISTINCT xmin::text) FROM collection_1.shared_votes").fetchone()
    vote(postgres, films, "ann", *votes[1:], vote_for("k0", 2, clicked=True))

    assert [len(numbers) for (numbers,) in noted] == [3, 1]
    assert rows == (2,)
    assert connection.execute("SELECT count(*) FROM collection_1.vote_changes").fetchone() == (2,)


def test_notes_go_after_a_while_and_who_knows_nothing_newer_reads_all(two, connection, monkeypatch):
    here, there = two
    films = fill(here)
    vote(here, films, "ann", vote_for("k0", 1, clicked=True))
    assert len(heard(here)) == 1
    for user_id in ("bob", "cat"):
        vote(there, films, user_id, vote_for("k1", 1, clicked=True))
        connection.execute("UPDATE collection_1.vote_changes SET at = at - interval '700 seconds'")
    vote(there, films, "dan", vote_for("k5", 1, clicked=True))
    left = connection.execute("SELECT count(*) FROM collection_1.vote_changes").fetchone()
    connection.execute("DELETE FROM collection_1.vote_changes")

    monkeypatch.setattr(kept_votes, "NOTED_SECONDS", 0)

    assert left == (1,)
    assert sorted(memory.users for memory in heard(here)) == [1, 2]


def test_notes_that_came_with_a_copy_of_another_server_are_not_taken_for_news(postgres, connection, asked):
    films = fill(postgres)
    vote(postgres, films, "ann", vote_for("k0", 1, clicked=True))
    connection.execute(
        "INSERT INTO collection_1.vote_changes (xid, query_nos) VALUES ('900719925474099', '{1}')"
    )

    assert [len(heard(postgres)) for _ in range(3)] == [1] * 3
    assert len(asked) == 1


def test_a_note_by_the_number_of_a_transaction_of_another_server_does_not_go_with_that_ones(two, connection):
    here, there = two
    films = fill(here)
    vote(here, films, "ann", vote_for("k0", 1, clicked=True))
    assert [memory.users for memory in heard(here)] == [1]
    connection.execute(
        "INSERT INTO collection_1.vote_changes (xid, query_nos, at) "
        "SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + n)::text::xid8, '{}', "
        "now() - interval '1 hour' FROM generate_series(0, 50) AS n"
    )

    vote(there, films, "bob", vote_for("k0", 1, clicked=True))

    assert [memory.users for memory in heard(here)] == [2]


def test_who_is_searched_all_the_time_reads_all_queries_once(postgres, monkeypatch):
    films = fill(postgres)
    vote(postgres, films, "ann", vote_for("k0", 1, clicked=True))
    read = []
    ask = kept_votes.ask_queries

    def ask_and_count(*given):
        read.append(given)
        return ask(*given)

    monkeypatch.setattr(kept_votes, "ask_queries", ask_and_count)

    for _ in range(4):
        assert len(heard(postgres)) == 1
        [kept] = postgres.personal._votes._kept.values()
        kept._moment = replace(kept.moment, known_since=kept.moment.known_since - 200)

    assert len(read) == 1


def test_behind_a_pooler_what_was_read_before_another_thread_took_in_a_change_is_not_kept(
    pooled_url, monkeypatch
):
    """There all that one reads is of the moment in which it began."""
    with closing(PostgresStorage(pooled_url)) as here, closing(PostgresStorage(pooled_url)) as there:
        films = fill(here)
        vote(here, films, "ann", vote_for("k0", 1, clicked=True))
        vote(here, films, "bob", vote_for("k0", 1, clicked=True))
        near = VotesOfCollection.near

        def late(*given):
            monkeypatch.setattr(VotesOfCollection, "near", near)
            there.clickstream.forget_user("ann")
            assert heard(here, 170) == []  # takes in the change, and needs no votes
            return near(*given)

        monkeypatch.setattr(VotesOfCollection, "near", late)
        heard(here)

        assert [memory.users for memory in heard(here)] == [1]


def test_after_a_crash_a_transaction_that_has_the_number_of_one_undone_is_not_missed():
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedding-studio-tests-")))
        folder.chmod(0o755)  # as root the server runs as somebody else, who must get in
        url = stack.enter_context(EmbeddedServer(folder))
        here, there = (stack.enter_context(closing(PostgresStorage(url))) for _ in range(2))
        films = fill(here)
        vote(here, films, "ann", vote_for("k0", 1, clicked=True))
        with psycopg.connect(url) as connection:
            for _ in range(5):
                connection.execute("SELECT pg_current_xact_id()")
                connection.rollback()
            assert [memory.users for memory in heard(here)] == [1]
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_sleep(10)")
        for _ in range(100):
            try:
                psycopg.connect(url).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.1)

        vote(there, films, "bob", vote_for("k0", 1, clicked=True))
        with suppress(OutdatedError):  # then what the name stands for is looked up, too
            assert [memory.users for memory in heard(here)] == [2]
        here.collections.get("films")

        assert [memory.users for memory in heard(here)] == [2]


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(kept_votes, "MOST_COLLECTIONS", 2)
    return kept_votes.KeptVotes()


@pytest.fixture
def collections():
    memory = MemoryStorage()
    return [
        memory.collections.create(name, SearchIndexInfo(dimensions=3)) for name in ("films", "books", "songs")
    ]


def test_of_many_collections_those_searched_last_are_kept(kept, collections, monkeypatch):
    monkeypatch.setattr(kept_votes, "IDLE_SECONDS", -1.0)
    films, books, songs = collections

    of_films, of_books = kept.of("server", films), kept.of("server", books)
    assert kept.of("server", films) is of_films
    kept.of("server", songs)

    assert kept.of("server", films) is of_films
    assert kept.of("server", books) is not of_books
    assert kept.of("another", films) is not of_films


def test_collections_searched_in_turns_do_not_drive_each_other_out(kept, collections):
    films, books, songs = collections

    first = [kept.of("server", each) for each in (films, books)]
    others = [kept.of("server", songs) for _ in range(2)]

    assert [each.is_large for each in first + others] == [False, False, True, True]
    assert [kept.of("server", each) for each in (films, books)] == first


def test_what_is_kept_of_all_collections_is_bounded(kept, collections, monkeypatch):
    films, books, _ = collections
    of_films, of_books = kept.of("server", films), kept.of("server", books)
    of_books.take_queries([("1:1:", n, f"k{n}", packed(at(n))) for n in range(99)], None, are_all=True)
    monkeypatch.setattr(kept_votes, "KEPT_BYTES", of_books.nbytes)

    assert kept.of("server", books) is of_books
    assert kept.of("server", films) is not of_films
    assert kept.of("server", films).is_large


def packed(vector):
    return pack(np.asarray(vector, dtype=np.float32)[None])[0]


def test_what_was_read_before_another_thread_took_in_a_change_is_not_kept():
    films = MemoryStorage().collections.create("films", SearchIndexInfo(dimensions=3))
    kept, listener = VotesOfCollection(films), Listener(None, at(0), 0.5, 1)
    votes = [("k0", "ann", packed(at(0)), 1, ["a"], [1.0], [1.0])]
    first = kept.take_queries([("1:1:", 7, "k0", packed(at(0)))], None, are_all=True)
    late = kept.take_queries([("2:2:", 7, "k0", packed(at(0)))], None, are_all=True)
    second = kept.take_queries([("3:3:", 7, "k0", packed(at(0)))], first, are_all=False)

    read = kept.take_latest(votes, listener.votes, first)
    in_vain = kept.near(listener, {})
    kept.take_latest(votes, listener.votes, second)

    assert late is None
    assert kept.near(listener, read)[1] == []
    assert in_vain == ([], ["k0"])
    assert kept.near(listener, {})[1] == []
    assert kept.moment is second


def test_a_query_that_went_and_came_again_is_not_kept_as_it_was_between():
    films = MemoryStorage().collections.create("films", SearchIndexInfo(dimensions=3))
    kept, listener = VotesOfCollection(films), Listener(None, at(0), 0.5, 1)
    first = kept.take_queries([("1:1:", 7, "k0", packed(at(0)))], None, are_all=True)
    gone = kept.take_queries([("2:2:", 7, None, None)], first, are_all=False)

    # read later than that it had gone, when it was there again
    kept.take_latest([("k0", "ann", packed(at(0)), 1, ["a"], [1.0], [1.0])], listener.votes, gone)
    kept.take_queries([("3:3:", 9, "k0", packed(at(0)))], gone, are_all=False)

    assert kept.near(listener, {}) == ([], ["k0"])


def fold(storage, collection, user_id, seed):
    """Let a user vote for some queries, and for others, and so on."""
    rng = np.random.default_rng(seed)
    for number in range(30):
        keys = [KEYS[k] for k in np.flatnonzero(rng.random(len(KEYS)) < 0.4)]
        vote(storage, collection, user_id, *(vote_for(key, number, clicked=bool(number % 2)) for key in keys))


def test_threads_that_hear_while_others_vote_end_with_what_the_database_has(two, monkeypatch):
    monkeypatch.setattr(kept_votes, "STEADY_SECONDS", 0.0)
    here, there = two
    films = fill(here)
    ended = threading.Event()

    def listen(seed):
        rng = np.random.default_rng(seed)
        while not ended.is_set():
            assert all(memory.users for memory in heard(here, int(rng.integers(130)), "eve", 1))

    with ThreadPoolExecutor(7) as threads:
        listening = [threads.submit(listen, seed) for seed in range(3)]
        folding = [threads.submit(fold, there, films, who, seed) for seed, who in enumerate(USERS)]
        wait(folding, timeout=120)
        ended.set()
    for each in listening + folding:
        each.result(timeout=60)

    twin = MemoryStorage()
    ours = fill(twin)
    for user_id in USERS:
        vote(twin, ours, user_id, *there.personal.state(films, user_id).votes)
    for degrees in range(0, 130, 10):
        assert told(heard(here, degrees)) == told(heard(twin, degrees))


def test_queries_that_are_near_nothing_do_not_hide_those_that_are_far():
    asked = Asked()
    for n in range(30):
        asked.add(f"zero {n}", np.zeros(3, dtype=np.float32))
    asked.add("far", at(100))

    assert asked.nearest(at(0), -0.5) == ["far"]


VECTORS = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda v: np.array(v, dtype=np.float32))


@given(
    st.lists(VECTORS, max_size=60), st.lists(st.integers(0, 59), max_size=20), VECTORS, st.floats(-0.9, 0.99)
)
def test_the_nearest_queries_are_those_of_all_compared_one_by_one(vectors, gone, query, threshold):
    asked = Asked()
    queries = {f"k{n:02}": vector for n, vector in enumerate(vectors)}
    for key, vector in queries.items():
        asked.add(key, vector)
    for key in {f"k{n:02}" for n in gone} & queries.keys():
        asked.remove(key)
        del queries[key]

    def cosine(vector):
        lengths = np.linalg.norm(vector.astype(float)) * np.linalg.norm(query.astype(float))
        return float(vector.astype(float) @ query.astype(float)) / lengths if lengths else -math.inf

    near = sorted((-cosine(vector), key) for key, vector in queries.items() if cosine(vector) > threshold)
    found = asked.nearest(query, threshold)

    assert len(found) == min(len(near), 20)
    assert [-cosine(queries[key]) for key in found] == pytest.approx([minus for minus, _ in near[:20]])
    assert {key for key in queries if key in asked} == queries.keys()
