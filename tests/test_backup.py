"""Backup and restore: real servers, embedded and not, of two major versions of PostgreSQL."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest
from psycopg import sql

from conftest import new_database
from embedding_studio import Context
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.keys import Scope, new_key
from embedding_studio.domain.objects import CatalogueObject, PersonalState
from embedding_studio.domain.sessions import SearchResultItem, Session, SessionEvent
from embedding_studio.errors import (
    ConflictError,
    InvalidDataError,
    StorageError,
    StorageUnavailableError,
    UnsupportedDatabaseError,
)
from embedding_studio.settings import Settings
from embedding_studio.storage.embedded.server import installed_programs
from embedding_studio.storage.ports import QuarantineDecision
from embedding_studio.storage.postgres import PostgresStorage, backup
from embedding_studio.storage.postgres import codes as pg_codes
from embedding_studio.storage.postgres.backup import back_up, find_programs, restore
from test_schema import without_names_of_models

OF_16 = installed_programs().parents[1] / "pginstall" / "bin"
"""The wheel brings an older PostgreSQL with pgvector too."""


def context(url):
    return Context(Settings(_env_file=None, database_url=url, embedder="none", shared_min_users=2))


def vectors(count, dimensions, seed=3):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def fill(storage):
    """Store two collections, one of which is searched by codes, and what five users did."""
    films = storage.collections.create("films", SearchIndexInfo(dimensions=5))
    storage.objects.upsert(
        films,
        [
            CatalogueObject(f"o{k}", part[None], {"title": f"STRASSE der Größe {k}", "k": k})
            for k, part in enumerate(vectors(50, 5))
        ],
    )
    books = storage.collections.create("books", SearchIndexInfo(dimensions=7, metric_type=MetricType.DOT))
    storage.objects.upsert(books, [CatalogueObject("b", vectors(2, 7), {"n": None})])
    storage.collections.set_alias("default", "films")
    for k in range(5):
        search_and_click(storage, f"s{k}", f"user {k} 'é\\", f"o{k + 7}", vectors(1, 5, seed=k % 2))
    search_and_click(storage, "anonymous", None, "o1", vectors(1, 5))
    storage.clickstream.push_events([SessionEvent(session_id="not yet", object_id="o1")])
    storage.keys.add(new_key("shop", [Scope.SEARCH], now=1)[0])
    storage.quarantine.decide("known", QuarantineDecision(is_quarantined=False, reason="ours", decided_at=1))
    with storage.personal.learning(films, ["robot"]) as transaction:
        transaction.replace_states({"robot": PersonalState()}, {"robot": "clicks everything"})


def search_and_click(storage, session_id, user_id, object_id, query):
    shown = tuple(SearchResultItem(object_id=f"o{k}", meta={"at": k}) for k in range(12))
    session = Session(
        session_id=session_id,
        user_id=user_id,
        search_query="ein\tText\n\\.",
        created_at=100,
        search_results=shown,
    )
    storage.clickstream.register_session(session, query)
    event = SessionEvent(session_id=session_id, object_id=object_id, created_at=120)
    storage.clickstream.push_events([event])


def learn(opened):
    while opened.improver().improve_once(users=10).users:
        pass


@pytest.fixture(scope="module")
def template(postgres_server):
    """The name of a database that holds something in each of its tables."""
    with new_database(postgres_server) as url:
        with pytest.MonkeyPatch.context() as patched, context(url) as opened:
            patched.setattr(pg_codes, "LARGE", 40)
            fill(opened.storage)
            learn(opened)
            search_and_click(opened.storage, "pending", "user 1 'é\\", "o9", vectors(1, 5))
        with psycopg.connect(url) as connection:  # as if an engine that finds the films had not been told
            connection.execute(
                "INSERT INTO embedding_studio.outbox (collection_id, object_no, parts)"
                " SELECT collection_id, 1, 0 FROM embedding_studio.collections WHERE name = 'films'"
            )
        yield urlsplit(url).path[1:]


@pytest.fixture
def shop(postgres_server, template):
    """The URL of a copy of it."""
    with new_database(postgres_server, template) as url:
        yield url


@pytest.fixture
def empty(postgres_server):
    with new_database(postgres_server) as url:
        yield url


def contents(url):
    """Return table -> its rows as sorted texts, of every table but PostgreSQL's own."""
    with psycopg.connect(url) as connection:
        connection.execute("SET extra_float_digits = 3")
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        return {
            table: sorted(
                row
                for (row,) in connection.execute(
                    sql.SQL("SELECT entry::text FROM {} AS entry").format(sql.Identifier(*table))
                )
            )
            for table in tables
        }


def answers(opened):
    """Return what several users find, by text of the payload too."""
    storage = opened.storage
    films, user = storage.collections.get("films"), "user 1 'é\\"
    filtered = PayloadFilter.parse({"query": {"match": {"field": "title", "value": "strasse GRÖßE"}}})
    state = storage.personal.state(films, user)
    found = opened.search.search(vectors(1, 5, seed=1), collection="films", limit=9, user_id=user)
    plain = storage.objects.nearest(films, vectors(1, 5), 50)
    by_word = storage.objects.nearest(films, vectors(1, 5), 50, filter=filtered)
    return found.results, plain, by_word, len(state.memories), sorted(state.vectors), storage.orders.counts()


def test_what_is_restored_is_the_same_in_every_table_and_answer_and_goes_on_learning(shop, empty, tmp_path):
    file = tmp_path / "shop.backup"

    back_up(shop, file)
    restore(empty, file)

    assert {
        table for table, rows in contents(shop).items() if not rows and table[0] != "collection_2"
    } == set()
    assert contents(empty) == contents(shop)
    assert file.stat().st_mode & 0o077 == 0
    with context(shop) as before, context(empty) as after:
        assert answers(after) == answers(before)
        for each in (before, after):
            learn(each)
            search_and_click(each.storage, "new", "user 2", "o3", vectors(1, 5, seed=8))
            collection = each.storage.collections.create("third", SearchIndexInfo(dimensions=3))
            each.storage.objects.upsert(collection, [CatalogueObject("o", vectors(1, 3))])
            learn(each)
        assert answers(after) == answers(before)
        assert after.storage.orders.get("new").status.value == "done"


def test_a_backup_is_of_one_instant_while_others_write(shop, empty, tmp_path):
    """Each transaction stores a session, its event and an order."""
    stop, written = threading.Event(), []

    def write():
        with closing(PostgresStorage(shop)) as storage:
            while not stop.is_set():
                number = len(written)
                session = Session(
                    session_id=f"w{number}",
                    user_id="writer",
                    events=[SessionEvent(session_id=f"w{number}", object_id="o1")],
                )
                storage.clickstream.register_session(session)
                written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 20:
            pass
        before = len(written)
        back_up(shop, tmp_path / "b")
        after = len(written)
    finally:
        stop.set()
        writer.join()
    restore(empty, tmp_path / "b")

    with psycopg.connect(empty) as connection:
        counted = connection.execute(
            "SELECT count(DISTINCT session_id), count(event.session_id), count(placed.session_id)"
            " FROM embedding_studio.sessions"
            " LEFT JOIN embedding_studio.session_events AS event USING (session_id)"
            " LEFT JOIN embedding_studio.sessions_for_improvement AS placed USING (session_id)"
            " WHERE sessions.user_id = 'writer'"
        ).fetchone()
    assert before <= counted[0] <= after + 1
    assert counted[1:] == (counted[0],) * 2


def test_a_database_that_holds_something_is_replaced_only_where_that_is_told(shop, empty, tmp_path):
    back_up(shop, tmp_path / "b")
    with closing(PostgresStorage(empty)) as storage:
        for name in ("books", "films", "toys"):
            storage.collections.create(name, SearchIndexInfo(dimensions=2))
    before = contents(empty)

    with pytest.raises(ConflictError, match=r"is not empty; .* --replace"):
        restore(empty, tmp_path / "b")
    assert contents(empty) == before
    restore(empty, tmp_path / "b", replace=True)

    assert contents(empty) == contents(shop)


def test_empty_tables_are_nothing_that_would_be_lost(shop, empty, tmp_path):
    back_up(shop, tmp_path / "b")
    PostgresStorage(empty).close()

    restore(empty, tmp_path / "b")

    assert contents(empty) == contents(shop)


def test_tables_of_others_in_the_database_are_neither_backed_up_nor_touched(shop, empty, tmp_path):
    for url in (shop, empty):
        with psycopg.connect(url) as connection:
            connection.execute(
                "CREATE SCHEMA collection_9000;"
                "CREATE TABLE collection_9000.theirs AS SELECT current_database()"
            )
    back_up(shop, tmp_path / "b")
    theirs = contents(empty)["collection_9000", "theirs"]

    restore(empty, tmp_path / "b")

    assert contents(empty)["collection_9000", "theirs"] == theirs


@pytest.mark.parametrize("left_of_it", [0.2, 0.6, 0.98])
def test_of_a_damaged_backup_nothing_is_restored(shop, empty, tmp_path, left_of_it):
    back_up(shop, tmp_path / "b")
    whole = (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(whole[: int(len(whole) * left_of_it)])
    with closing(PostgresStorage(empty)) as storage:
        storage.collections.create("toys", SearchIndexInfo(dimensions=2))
    before = contents(empty)

    with pytest.raises((InvalidDataError, StorageError), match="pg_restore failed"):
        restore(empty, tmp_path / "b", replace=True)

    assert contents(empty) == before


def test_what_is_no_backup_is_refused_in_a_sentence(shop, empty, tmp_path):
    (tmp_path / "text").write_text("id,title\n1,hat\n")
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (n int)")
    subprocess.run(
        [installed_programs() / "pg_dump", "-Fc", f"--file={tmp_path / 'other'}", empty], check=True
    )

    for name, said in (("text", "is no backup"), ("other", r"none that .* wrote")):
        with pytest.raises(InvalidDataError, match=said):
            restore(empty, tmp_path / name)
    with pytest.raises(InvalidDataError, match="no backup"):
        restore(empty, tmp_path / "absent")
    with pytest.raises(StorageError, match="nothing to back up"):
        back_up(empty, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_backup_of_an_earlier_version_is_brought_up_to_date_and_of_a_later_one_refused(
    shop, empty, tmp_path
):
    whole = contents(shop)
    with psycopg.connect(shop, autocommit=True) as connection:
        without_names_of_models(connection)
        back_up(shop, tmp_path / "earlier")
        connection.execute("INSERT INTO embedding_studio.schema_migrations (number) VALUES (907)")
    back_up(shop, tmp_path / "later")

    with pytest.raises(InvalidDataError, match=r"newer version .*907.*upgrade embedding-studio"):
        restore(empty, tmp_path / "later")
    with context(empty) as opened:
        opened.restore(tmp_path / "earlier")

    migrations = ("embedding_studio", "schema_migrations")
    later = {
        ("embedding_studio", table)
        for table in ("api_keys", "waiting_events", "quarantined", "quarantine_decisions", "outbox")
    }
    later |= {(schema, table) for schema, table in whole if table == "vote_changes"}
    restored = contents(empty)
    for tables in (whole, restored):
        for schema, table in tables:
            if table == "shared_queries":  # their numbers are of the database
                tables[schema, table] = sorted(row.rsplit(",", 1)[0] for row in tables[schema, table])
    assert {k: v for k, v in restored.items() if k != migrations and k not in later} == {
        k: v for k, v in whole.items() if k != migrations and k not in later
    }
    assert [restored[table] for table in sorted(later)] == [[]] * 7
    assert len(contents(empty)[migrations]) == len(whole[migrations])


def test_one_server_is_read_into_another_through_a_pipe(shop, empty):
    command = Path(sys.executable).with_name("embedding-studio")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}

    with subprocess.Popen(
        [command, "backup", "-"], env=environment | {"DATABASE_URL": shop}, stdout=subprocess.PIPE
    ) as writing:
        read = subprocess.run(
            [command, "restore", "-"],
            env=environment | {"DATABASE_URL": empty},
            stdin=writing.stdout,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (writing.returncode, read.returncode) == (0, 0), read.stderr
    assert "Restored" in read.stderr
    assert contents(empty) == contents(shop)


def test_a_restore_under_a_running_service_is_refused(shop, empty, tmp_path):
    back_up(shop, tmp_path / "b")

    with closing(PostgresStorage(empty)), pytest.raises(ConflictError, match="stop these first"):
        restore(empty, tmp_path / "b")

    restore(empty, tmp_path / "b")


# Programs


def test_programs_that_are_older_than_the_server_or_absent_are_told_with_the_package(monkeypatch):
    with pytest.raises(UnsupportedDatabaseError, match=r"of version 99 or later.*postgresql-client-99"):
        find_programs(99)
    monkeypatch.setattr(backup, "_folders", lambda: iter(()))
    with pytest.raises(UnsupportedDatabaseError, match=r"there are none here; .*postgresql-client-15"):
        find_programs(15)


def test_an_address_is_handed_over_where_no_other_user_reads_it():
    address = "postgresql://ann:s%40fe@db.example:5433/shop?sslmode=require&keepalives=1"

    assert backup._environment(address) == {
        "PGUSER": "ann",
        "PGPASSWORD": "s@fe",
        "PGHOST": "db.example",
        "PGPORT": "5433",
        "PGDATABASE": "shop",
        "PGSSLMODE": "require",
    }


def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path):
    with pytest.raises(StorageUnavailableError) as told:
        back_up("postgresql://ann:secret@127.0.0.1:1/shop", tmp_path / "b")

    assert "secret" not in str(told.value)


# Moves


@pytest.fixture
def server_of_16():
    """The URL of a server of PostgreSQL 16 on a socket, which lives as long as the test."""
    folder = Path(tempfile.mkdtemp(prefix="es-16-", dir="/dev/shm"))
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)

    def run(program, *arguments):
        return subprocess.run(
            [OF_16 / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )

    data = folder / "data"
    with ExitStack() as at_end:
        at_end.callback(shutil.rmtree, folder)
        kind = ("--username=ann", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
        run("initdb", f"--pgdata={data}", *kind)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "start", "-w", f"--pgdata={data}", f"--log={folder / 'log'}", f"--options={options}")
        at_end.callback(run, "pg_ctl", "stop", "-w", "-m", "immediate", f"--pgdata={data}")
        yield f"postgresql://ann@/postgres?host={folder}"


@contextmanager
def embedded(folder):
    with Context(Settings(_env_file=None, data_dir=folder, embedder="none", shared_min_users=2)) as opened:
        yield opened


def test_a_shop_moves_from_the_embedded_server_to_an_older_one_of_its_own_and_back(
    server_of_16, tmp_path, monkeypatch
):
    monkeypatch.setattr(pg_codes, "LARGE", 40)
    places = [Path(tempfile.mkdtemp(prefix="es-", dir="/dev/shm")) for _ in range(2)]
    try:
        for place in places:
            place.chmod(0o755)
        with embedded(places[0]) as opened:
            fill(opened.storage)
            learn(opened)
            there = answers(opened)
            opened.back_up(tmp_path / "embedded")
        with context(server_of_16) as opened:
            opened.restore(tmp_path / "embedded")
            moved = answers(opened)
            search_and_click(opened.storage, "new", "user 1 'é\\", "o3", vectors(1, 5, seed=8))
            learn(opened)
            went_on = answers(opened)
            opened.back_up(tmp_path / "own")
        with embedded(places[1]) as opened:
            opened.restore(tmp_path / "own")
            back = answers(opened)
    finally:
        for place in places:
            shutil.rmtree(place)

    assert moved == there
    assert len(moved[2]) == 50
    assert went_on != moved
    assert back == went_on
