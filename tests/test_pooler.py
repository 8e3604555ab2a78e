"""Behind PgBouncer in transaction mode, where each transaction may be of another connection."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import psycopg
import pytest

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import StorageUnavailableError
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres import codes as pg_codes
from embedding_studio.storage.postgres.database import Database, only_row
from embedding_studio.storage.postgres.nearest import NearestSearch

I, D = 61, 5
ODD = PayloadFilter.parse({"query": {"term": {"field": "odd", "value": 1}}})


@pytest.fixture
def pooled(pooled_url: str) -> Iterator[PostgresStorage]:
    with closing(PostgresStorage(pooled_url)) as storage:
        yield storage


def catalogue():
    rng = np.random.default_rng(5)
    return [
        CatalogueObject(f"o{n}", rng.normal(size=(1 + n % 3, D)).astype(np.float32), {"odd": n % 2})
        for n in range(I)
    ]


def click(storage, user_id, query, shown, clicked):
    results = [SearchResultItem(object_id=object_id) for object_id in shown]
    session = Session(
        session_id=f"of {user_id}", user_id=user_id, collection="things", search_results=results
    )
    storage.clickstream.register_session(session, query)
    storage.clickstream.push_events([SessionEvent(session_id=session.session_id, object_id=clicked)])


def limits(connection):
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit")
    return only_row(connection.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in names)))


def test_a_pooler_is_noticed_and_a_server_is_not_taken_for_one(pooled_url, postgres_url):
    with (
        closing(Database(pooled_url, pool_size=1)) as behind,
        closing(Database(postgres_url, pool_size=1)) as at,
    ):
        noticed = behind.is_pooled, at.is_pooled

    assert noticed == (True, False)
    with closing(PostgresStorage(pooled_url)) as behind_one, closing(PostgresStorage(postgres_url)) as at_one:
        assert behind_one.about().endswith(", behind a pooler")
        assert "pooler" not in at_one.about()


@pytest.mark.parametrize("large", [40, 3000])
def test_many_who_search_click_and_learn_at_once_behind_a_pooler_get_what_they_get_without(
    pooled, pooled_url, postgres_url, monkeypatch, large
):
    """Two storages of 10 connections share the pooler's 3: what is prepared or set is of one of these."""
    monkeypatch.setattr(pg_codes, "LARGE", large)
    objects = catalogue()
    collection = pooled.collections.create("things", SearchIndexInfo(dimensions=D))
    pooled.objects.upsert(collection, objects)
    users = [f"user {n}" for n in range(24)]
    query_of = {user_id: objects[n].parts[:1] for n, user_id in enumerate(users)}

    with closing(PostgresStorage(pooled_url)) as second, closing(PostgresStorage(postgres_url)) as direct:

        def live(number, user_id):
            storage = (pooled, second)[number % 2]
            query = query_of[user_id]
            for _ in range(7):  # psycopg prepares what it sees for the sixth time
                shown = [each.object_id for each in storage.objects.nearest(collection, query, 9)]
                filtered = storage.objects.nearest(collection, query, 9, filter=ODD)
                assert len(shown) == len(filtered) == 9
            click(storage, user_id, query, shown, shown[3])
            while Improver(storage, PassiveAggressiveAdjuster).improve_once(users=2).users:
                pass

        with ThreadPoolExecutor(len(users)) as threads:
            list(threads.map(live, range(len(users)), users))

        while Improver(second, PassiveAggressiveAdjuster).improve_once().users:
            pass
        statuses = {direct.orders.get(f"of {user_id}").status for user_id in users}
        for user_id in users:
            lists = [
                [
                    (each.object_id, each.distance)
                    for each in SearchService(storage)
                    .search(query_of[user_id], collection="things", user_id=user_id, limit=I)
                    .results
                ]
                for storage in (pooled, second, direct)
            ]
            assert lists[0] == lists[1] == lists[2]
            assert direct.personal.state(collection, user_id).memories

    assert statuses == {"done"}


def test_behind_a_pooler_whatever_is_done_has_its_limits_and_leaves_none_behind(pooled_url):
    with (
        closing(Database(pooled_url, pool_size=5, statement_seconds=17, lock_seconds=3)) as database,
        psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as stranger,
    ):
        ours = ("17s", "3s", "1min", "off")
        theirs = limits(stranger)
        together = threading.Barrier(3)

        def look(connection):
            seen = limits(connection)
            together.wait(timeout=30)  # so that each server's connection is used
            return seen

        with ThreadPoolExecutor(3) as threads:
            read = list(threads.map(database.read, [look] * 3))
            written = list(threads.map(lambda work: database.write(work, alone=True), [look] * 3))
        upkeep = database.write(limits, is_upkeep=True)
        left = [limits(stranger) for _ in range(9)]

    assert set(read) == set(written) == {ours}
    assert upkeep == ("0", *ours[1:])
    assert set(left) == {theirs}
    assert theirs[0] == "0"


def test_behind_a_pooler_who_waits_for_work_is_woken_by_a_click(pooled, pooled_url):
    collection = pooled.collections.create("things", SearchIndexInfo(dimensions=D))
    pooled.objects.upsert(collection, catalogue())
    assert not pooled.queue.wait(0)

    with ThreadPoolExecutor(1) as threads, closing(PostgresStorage(pooled_url)) as other:
        woken = threads.submit(pooled.queue.wait, 60)
        click(other, "ann", catalogue()[0].parts[:1], ["o1", "o2"], "o2")

        assert woken.result(timeout=30)


def test_what_fails_behind_a_pooler_leaves_nothing_half_written(pooled):
    database = pooled.objects.own.database
    database.write(lambda connection: connection.execute("CREATE TABLE kept (number int)"), alone=True)

    def fail(connection):
        connection.execute("INSERT INTO kept VALUES (1)")
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        database.write(fail)

    count = database.read(lambda connection: only_row(connection.execute("SELECT count(*) FROM kept")))
    assert count == (0,)


def test_behind_a_pooler_what_is_replaced_while_a_search_runs_is_in_its_list_all_the_same(
    pooled, monkeypatch
):
    monkeypatch.setattr(pg_codes, "LARGE", 40)
    objects = catalogue()
    collection = pooled.collections.create("things", SearchIndexInfo(dimensions=D))
    pooled.objects.upsert(collection, objects)
    query = objects[5].parts[:1]
    before = [each.object_id for each in pooled.objects.nearest(collection, query, 9)]
    asked_of = NearestSearch._asked_of
    meanwhile = iter([CatalogueObject("o5", -objects[5].parts)])

    def replaced_first(*given):
        for item in meanwhile:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(pooled.objects.upsert, collection, [item]).result()
                after = thread.submit(pooled.objects.nearest, collection, query, 9).result()
                assert "o5" not in [each.object_id for each in after]
        return asked_of(*given)

    monkeypatch.setattr(NearestSearch, "_asked_of", replaced_first)

    assert [each.object_id for each in pooled.objects.nearest(collection, query, 9)] == before


@pytest.mark.parametrize("ends_while", ["a commit is awaited", "a pipeline is read"])
@pytest.mark.parametrize("files", [0, 1024])
def test_a_server_that_ends_behind_a_pooler_is_away_and_no_fault_of_a_statement(
    pooled_url, postgres_url, ends_while, files
):
    """PgBouncer says farewell in the middle of what the driver reads, which complains of something else."""
    with ExitStack() as open_files:
        threads = open_files.enter_context(ThreadPoolExecutor(1))
        for _ in range(files):  # of a service to which so many are connected
            open_files.enter_context(Path(os.devnull).open())
        database = open_files.enter_context(closing(Database(pooled_url, pool_size=1)))

        def work(connection):
            (process_id,) = only_row(connection.execute("SELECT pg_backend_pid()"))
            if ends_while == "a commit is awaited":
                terminate(postgres_url, process_id)
                return
            with connection.pipeline():
                connection.execute("SELECT pg_sleep(30)")
                connection.execute("SELECT 1")
                threads.submit(terminate, postgres_url, process_id)

        with pytest.raises(StorageUnavailableError):
            database.write(work)


def terminate(url, process_id):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_sleep(0.3), pg_terminate_backend(%s, 10000)", [process_id])
