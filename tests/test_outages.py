"""A server that is away for a while: it is found again soon after it is back, however long that was."""

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import psycopg_pool.pool
import pytest

from embedding_studio.errors import StorageUnavailableError
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.database import READY_SECONDS, Database

OUTAGE_SECONDS = 8
"""A pool that waits twice as long after each call that fails calls after 7 seconds, and then after 15."""
SOON_SECONDS = 3


@pytest.fixture
def server():
    with tempfile.TemporaryDirectory(prefix="embedding-studio-outage-") as name:
        Path(name).chmod(0o755)  # as root the server runs as somebody else, who must get in
        server = EmbeddedServer(Path(name) / "data")
        server.start()
        yield server
        server.stop()


def test_who_waits_for_a_server_is_answered_soon_after_it_is_back(server):
    with closing(PostgresStorage(server.start())) as storage, ThreadPoolExecutor(1) as pool:
        server.stop()
        waiting = pool.submit(storage.collections.list)
        time.sleep(OUTAGE_SECONDS)
        server.start()
        back = time.monotonic()

        assert waiting.result() == []
        assert time.monotonic() - back < SOON_SECONDS


def test_whether_a_server_is_there_is_told_while_it_is_away_and_not_after(server):
    """A probe gives up after a second or a few; the last ones would hold all threads of the service."""
    with closing(PostgresStorage(server.start())) as storage:
        server.stop()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(StorageUnavailableError):
                storage.ping()

        assert time.monotonic() - began < 3 * READY_SECONDS
        server.start()
        storage.ping()


def test_who_waited_for_a_server_need_not_wait_for_each_other_once_it_is_back(server):
    """As many connections are opened as there are who wait, though each took only one to be missed."""
    with closing(Database(server.start(), pool_size=4)) as database, ThreadPoolExecutor(4) as pool:
        use_at_once(database, 4)
        server.stop()
        all_here = threading.Barrier(4)
        waiting = [pool.submit(database.read, lambda _: all_here.wait(timeout=20)) for _ in range(4)]
        time.sleep(2)  # all that were open are given up by then
        server.start()

        assert sorted(each.result() for each in waiting) == [0, 1, 2, 3]


def test_connections_that_the_server_closed_are_replaced_without_a_pause(server, monkeypatch):
    url = server.start()
    pauses = []
    monkeypatch.setattr(psycopg_pool.pool, "sleep", pauses.append)
    with closing(Database(url, pool_size=4)) as database:
        use_at_once(database, 4)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

        assert database.read(lambda connection: connection.execute("SELECT 1").fetchall()) == [(1,)]
        assert pauses == []


def use_at_once(database, number):
    """Let so many connections be opened."""
    all_here = threading.Barrier(number)

    def use():
        with database.transaction():
            all_here.wait()

    with ThreadPoolExecutor(number) as pool:
        for each in [pool.submit(use) for _ in range(number)]:
            each.result()
