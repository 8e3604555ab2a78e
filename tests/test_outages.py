"""A server that is away for a while: it is found again soon after it is back, however long that was."""

import os
import signal
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import psycopg_pool.pool
import pytest

from embedding_studio.cli.processes import WORKER
from embedding_studio.errors import StorageUnavailableError
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.database import CONNECT_SECONDS, READY_SECONDS, Database
from processes import environment_of, running, url_in
from test_serve_processes import KEY, Caller

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


@pytest.mark.parametrize(
    "command", [("worker",), ("serve",), ("serve", "--processes", "2")], ids=["worker", "serve", "processes"]
)
@pytest.mark.parametrize("outage", ["stopped", "silent"])
def test_a_process_that_is_to_end_while_its_database_is_away_ends_as_ever(server, outage, command):
    environment = environment_of(server.start()) | {"EMBEDDER": "none", "ADMIN_API_KEY": KEY}
    ready = "is ready" if command == ("worker",) else "serves on"
    with running(environment, *command, ready=ready) as (process, line):
        if "--processes" in command:
            Caller(url_in(line)).are_all_there("1", "2", WORKER)
        with away(server, outage):
            time.sleep(3)  # its worker waits for the database by then
            process.send_signal(signal.SIGTERM)

            assert process.wait(60) == 0


@contextmanager
def away(server, outage):
    """Let a server be away as long as the block runs."""
    if outage == "stopped":
        server.stop()
        yield
        return
    postmaster = int((server.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
    processes = [postmaster, *map(int, children.split())]
    for each in processes:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in processes:
            os.kill(each, signal.SIGCONT)


def test_a_storage_that_waits_for_a_silent_server_is_closed_soon(server):
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(3) as pool:
        addresses = [server.start()]
        storage = PostgresStorage(lambda: addresses[-1])
        addresses.append("postgresql://ann@{}:{}/shop".format(*silent.getsockname()))
        server.stop()
        waiting = [pool.submit(storage.collections.list) for _ in range(3)]
        time.sleep(2)  # all that opens connections waits for the server
        began = time.monotonic()
        storage.close()
        took = time.monotonic() - began

        assert all(isinstance(each.exception(), StorageUnavailableError) for each in waiting)
    assert took < CONNECT_SECONDS / 2


def use_at_once(database, number):
    """Let so many connections be opened."""
    all_here = threading.Barrier(number)

    def use():
        with database.transaction():
            all_here.wait()

    with ThreadPoolExecutor(number) as pool:
        for each in [pool.submit(use) for _ in range(number)]:
            each.result()
