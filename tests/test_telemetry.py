"""What the worker and the queue tell, and the listener of a worker that is a process of its own."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing

import httpx
import numpy as np
import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from embedding_studio.api.app import create_app
from embedding_studio.bootstrap import Context
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.keys import ApiKey, Scope
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import RecordedSession, SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import InvalidSettingError, StorageUnavailableError
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.worker import Worker
from embedding_studio.settings import Settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.telemetry.listener import listening
from embedding_studio.telemetry.metrics import Metrics, WorkerMetrics
from test_api_service import samples, serving
from test_settings_act import ANYWHERE
from test_worker import LONG, click, running, search, with_objects


def told(exposed: bytes) -> dict[str, float]:
    lines = [line for line in exposed.decode().splitlines() if not line.startswith("#")]
    return {
        name.removeprefix("embedding_studio_"): float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines)
    }


def passed(storage, improver, *, until):
    """Return what a worker has told once it has counted so many passes."""
    registry = CollectorRegistry()
    with running(Worker(improver, storage, metrics=WorkerMetrics(registry=registry))):
        limit = time.monotonic() + LONG
        while until(seen := told(generate_latest(registry))) is False:
            assert time.monotonic() < limit, seen
            time.sleep(0.01)
    return seen


def passes(seen):
    return sum(number for name, number in seen.items() if name.startswith("learning_passes_total"))


def test_a_worker_counts_users_and_sessions_by_what_became_of_them(storage):
    with_objects(storage)
    for session_id, user_id in {"s1": "ann", "s2": "ann", "s3": "bob"}.items():
        search(storage, session_id, user_id)
        click(storage, session_id)
    storage.clickstream.mark_irrelevant("s2")

    seen = passed(storage, Improver(storage, PassiveAggressiveAdjuster), until=lambda seen: passes(seen) == 1)

    assert seen['learning_sessions_total{outcome="done"}'] == 2
    assert seen['learning_sessions_total{outcome="refused"}'] == 1
    assert seen['learning_sessions_total{outcome="failed"}'] == 0
    assert seen['learning_users_total{outcome="learnt"}'] == 2
    assert seen['learning_users_total{outcome="given_up"}'] == 0
    assert seen['learning_passes_total{outcome="completed"}'] == 1
    assert seen["learning_pass_duration_seconds_count"] == 1
    assert seen["learning_delay_seconds_count"] == 2
    assert 0 < seen["learning_delay_seconds_sum"] < 2 * LONG
    assert seen["learning_pass_duration_seconds_sum"] <= seen["learning_delay_seconds_sum"]


def test_a_user_who_is_tried_again_is_counted_at_the_end_alone_and_their_session_each_time(storage):
    with_objects(storage)
    search(storage, "s")
    click(storage, "s")

    def adjuster(_):
        raise OSError("disk")

    improver = Improver(storage, adjuster, max_attempts=3, backoff_seconds=0)

    seen = passed(storage, improver, until=lambda seen: passes(seen) == 3)

    assert seen['learning_sessions_total{outcome="failed"}'] == 3
    assert seen['learning_users_total{outcome="given_up"}'] == 1
    assert seen['learning_users_total{outcome="learnt"}'] == 0
    assert seen["learning_delay_seconds_count"] == 0


def test_a_pass_that_storage_breaks_off_is_counted_as_failed():
    storage = with_objects(MemoryStorage())

    class Unlucky(Improver):
        def improve_once(self, **_):
            raise StorageUnavailableError("restarting")

    seen = passed(storage, Unlucky(storage, PassiveAggressiveAdjuster), until=lambda seen: passes(seen) == 1)

    assert seen['learning_passes_total{outcome="failed"}'] == 1


def test_the_delay_begins_with_the_first_click_since_the_user_was_learnt(storage):
    with_objects(storage)
    search(storage, "s")
    click(storage, "s")
    time.sleep(0.2)
    search(storage, "t")
    click(storage, "t")
    waiting = storage.queue.info()

    claim = storage.queue.claim(users=9, lease_seconds=60)
    held = storage.queue.info()
    storage.queue.release(claim.token)
    report = Improver(storage, PassiveAggressiveAdjuster).improve_once()

    assert (waiting.waiting, waiting.held) == (1, 0)
    assert (held.waiting, held.held) == (0, 1)
    assert 0.2 <= waiting.oldest_seconds <= held.oldest_seconds < LONG
    assert 0.2 <= claim.entries[0].waited_seconds <= report.delays[0] < LONG
    assert storage.queue.info().oldest_seconds == storage.queue.info().waiting == 0


@pytest.fixture
def context():
    with Context(Settings(_env_file=None, embedder="none"), storage=with_objects(MemoryStorage())) as made:
        yield made


def test_a_worker_inside_the_service_tells_its_numbers_at_the_services_metrics(context):
    search(context.storage, "zebra", "zebra")
    click(context.storage, "zebra")

    with serving(create_app(context, background=context.worker().run)) as client:
        limit = time.monotonic() + LONG
        learnt = 'embedding_studio_learning_users_total{outcome="learnt"}'
        while not (seen := samples(client))[learnt]:
            assert time.monotonic() < limit
        exposed = client.get("/metrics").text

    assert seen[learnt] == 1
    assert "embedding_studio_search_duration_seconds_count" in seen
    assert "zebra" not in exposed


def test_a_process_without_a_service_tells_nothing_of_searches(context):
    context.worker()

    seen = told(context.metrics.exposition(context.storage))

    assert seen['orders{status="pending"}'] == seen['learning_users_total{outcome="learnt"}'] == 0
    assert not any(name.startswith(("search_", "collection_")) for name in seen)


# The listener


def of(text, *, host="127.0.0.1", port=0, key=None):
    return listening(lambda: text, host=host, port=port, key=key)


def test_the_listener_tells_at_metrics_alone_until_its_block_ends():
    with of(b"a 1\n") as url:
        answer = httpx.get(url)
        elsewhere = httpx.get(url.removesuffix("metrics"))

    assert (answer.status_code, answer.text) == (200, "a 1\n")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert elsewhere.status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.parametrize(
    ("sent", "status"), [(None, 401), ("Bearer wrong", 401), ("k", 401), ("Bearer é", 401), ("Bearer k", 200)]
)
def test_the_listener_asks_for_the_key_that_there_is(sent, status):
    with of(b"a 1\n", key="k") as url:
        answer = httpx.get(url, headers={} if sent is None else {"Authorization": sent.encode()})

    assert answer.status_code == status


def test_without_a_key_the_listener_listens_to_this_machine_only():
    with (
        pytest.raises(InvalidSettingError, match=r"this machine only.*ADMIN_API_KEY"),
        of(b"", host=ANYWHERE),
    ):
        pass
    with of(b"a 1\n", host=ANYWHERE, key="k") as url:
        assert url.startswith("http://0.0.0.0:")


def test_a_port_that_is_taken_is_told_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with (
            pytest.raises(InvalidSettingError, match=rf"127.0.0.1:{port} \(.*WORKER_METRICS_PORT"),
            of(b"", port=port),
        ):
            pass


def test_who_does_not_finish_a_request_keeps_nobody_from_asking_nor_the_block_from_ending():
    with of(b"a 1\n") as url:
        slow = socket.create_connection(("127.0.0.1", httpx.URL(url).port))
        slow.sendall(b"GET /met")
        answer = httpx.get(url)
        started = time.monotonic()
    took = time.monotonic() - started
    slow.close()

    assert answer.status_code == 200
    assert took < 5


def test_a_scrape_sees_all_that_is_told_while_others_scrape():
    storage, metrics = with_objects(MemoryStorage()), Metrics()
    seen: list[bool] = []

    def scrape():
        seen.extend('orders{status="done"}' in told(metrics.exposition(storage)) for _ in range(50))

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == [True] * 200


def test_who_sends_a_request_too_slowly_is_hung_up_on(monkeypatch):
    monkeypatch.setattr("embedding_studio.telemetry.listener.REQUEST_SECONDS", 0.5)
    with of(b"numbers") as url:
        host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n")
            with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012, until it happens
                for _ in range(200):
                    client.sendall(b"X")
                    time.sleep(0.05)
        assert httpx.get(url).status_code == 200


def pages_read(postgres_url: str, storage_asked: Callable[[Storage], object]) -> int:
    """Return how many pages of tables and indexes a storage reads that is opened for one thing."""
    total = (
        "SELECT coalesce(sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0)), 0)"
        " FROM pg_statio_user_tables"
    )
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        [(before,)] = connection.execute(total)
        with closing(PostgresStorage(postgres_url)) as storage:
            storage_asked(storage)
        limit = time.monotonic() + LONG
        while connection.execute(others).fetchone() != (1,):  # who ends says before what it has read
            assert time.monotonic() < limit
            time.sleep(0.01)
        [(after,)] = connection.execute(total)
    return after - before


def test_a_scrape_reads_as_much_however_much_was_ever_learnt(postgres_url):
    """Sessions, events, orders that ended, states and keys: none is looked at.

    What there is just now is counted: users in the queue and in quarantine, and events that wait.
    """

    def scraped(storage):
        metrics = Metrics()
        assert metrics.service  # without it no collection is asked about
        exposed.append(told(metrics.exposition(storage)))

    def learn(*user_ids):
        with closing(PostgresStorage(postgres_url)) as storage:
            sessions = [
                RecordedSession(
                    Session(
                        session_id=f"of {user_id}",
                        user_id=user_id,
                        search_results=[SearchResultItem(object_id=each) for each in ("near", "far")],
                        events=[SessionEvent(session_id=f"of {user_id}", object_id="far")],
                    ),
                    np.ones((1, 3), np.float32),
                )
                for user_id in user_ids
            ]
            storage.clickstream.record(sessions)
            improver = Improver(storage, PassiveAggressiveAdjuster)
            while storage.queue.info().waiting:
                improver.improve_once(users=200)
            for user_id in user_ids:
                key = ApiKey(user_id, bytes(32), user_id, (Scope.SEARCH,), expires_at=1)
                storage.keys.add(key)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")

    exposed: list[dict[str, float]] = []
    with closing(PostgresStorage(postgres_url)) as storage:
        collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
        axes = np.eye(3, dtype=np.float32)
        storage.objects.upsert(
            collection, [CatalogueObject("near", axes[:1]), CatalogueObject("far", axes[1:2])]
        )
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for (table,) in connection.execute(
            "SELECT relid::regclass::text FROM pg_stat_user_tables"
        ).fetchall():
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")  # type: ignore[arg-type]

    learn("ann")
    few = pages_read(postgres_url, scraped)
    learn(*(f"user {number}" for number in range(1_000)))
    many = pages_read(postgres_url, scraped)

    assert [each['orders{status="done"}'] for each in exposed] == [1, 1_001]
    assert all(each['queue_users{state="waiting"}'] == each["quarantined_users"] == 0 for each in exposed)
    assert few > 0
    assert many <= few + 5, (few, many)
