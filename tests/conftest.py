"""Storages to test with: the in-memory twin, and PostgreSQL."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hypothesis
import psycopg
import pytest
from psycopg import sql

from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage
from embedding_studio.storage.postgres import PostgresStorage

collect_ignore = [
    file
    for file, package in (("lancedb_tables.py", "lancedb"), ("milvus_collections.py", "pymilvus"))
    if find_spec(package) is None  # it is looked through for examples, and needs what is not here
]

database_numbers = itertools.count(1)

hypothesis.settings.register_profile("project", deadline=None)  # a busy machine is no failure
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=1_000)  # `make fuzz`
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Return the URL of a server that lives as long as the tests do."""
    data_dir = Path(tempfile.mkdtemp(prefix="embedding-studio-tests-"))
    data_dir.chmod(0o755)  # as root the server runs as somebody else, who must get in
    try:
        with EmbeddedServer(data_dir) as url:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # no test pulls the plug on this one
                connection.execute("SELECT pg_reload_conf()")
            yield url
    finally:
        shutil.rmtree(data_dir)


@pytest.fixture(scope="session")
def pooler(postgres_server: str) -> Iterator[int]:
    """Return the port of a PgBouncer in transaction mode, which has three connections for each database."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("there is no PgBouncer; on Debian: apt-get install pgbouncer")
    folder = parse_qs(urlsplit(postgres_server).query)["host"][0]
    owner = Path(folder).stat()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = Path(tempfile.mkdtemp(prefix="embedding-studio-pgbouncer-"))
    place.chmod(0o755)  # as root it runs as the owner of the server, who must get in
    (place / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={folder} port=5432 user=embedding_studio\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\n"
    )
    as_owner: Any = {"user": owner.st_uid, "group": owner.st_gid} if os.getuid() == 0 else {}
    process = subprocess.Popen([program, "-q", str(place / "pgbouncer.ini")], **as_owner)
    try:
        while not _answers(port):
            assert process.poll() is None, "PgBouncer ended"
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(place)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def pooled_url(pooler: int, postgres_url: str) -> str:
    """Return the URL of the test's own database behind PgBouncer."""
    return f"postgresql://embedding_studio@127.0.0.1:{pooler}{urlsplit(postgres_url).path}"


def listening_socket(port: int = 0) -> socket.socket:
    """Return a socket on which a server in this process may listen; connections queue there until it does.

    As ``bound`` makes it: of one that does not say that it is TCP, asyncio answers 40 ms late.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen()
    return listening


@contextmanager
def new_database(server_url: str, template: str = "template1") -> Iterator[str]:
    """Return the URL of a database that is there as long as the block runs, a copy of ``template``."""
    name = f"test_{next(database_numbers)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(create)
        try:
            yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Return the URL of a database of the test's own, in which nothing is, not even a table."""
    with new_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def new_postgres_storage(postgres_server: str) -> Iterator[Callable[[], AbstractContextManager[Storage]]]:
    """Return what opens an empty storage, one at a time: all are in one database, emptied each time."""
    with new_database(postgres_server) as url:

        @contextmanager
        def new_storage() -> Iterator[Storage]:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(  # what a test that failed has left open
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                with closing(PostgresStorage(url)) as storage:
                    for collection in storage.collections.list():
                        storage.collections.drop(collection.name)
                    connection.execute(
                        "TRUNCATE embedding_studio.sessions, embedding_studio.queue, "
                        "embedding_studio.api_keys, "
                        "embedding_studio.waiting_events, embedding_studio.quarantine_decisions CASCADE"
                    )
                    yield storage

        yield new_storage


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture(params=["memory", "postgres"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """Return an empty storage of each kind."""
    if request.param == "memory":
        yield MemoryStorage()
    else:
        with request.getfixturevalue("new_postgres_storage")() as opened:
            yield opened
