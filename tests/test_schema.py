"""Migrations, and what a database must be before any is applied."""

import re
import subprocess
import sys
from contextlib import closing

import numpy as np
import psycopg
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, PersonalState, SharedVote
from embedding_studio.domain.sessions import (
    FurtherPage,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionForImprovementCreateSchema,
)
from embedding_studio.errors import StorageError, StorageUnavailableError, UnsupportedDatabaseError
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres import codes as pg_codes
from embedding_studio.storage.postgres.schema import migrate, require_supported, without_password
from embedding_studio.storage.postgres.sql import FOLDER, migrations

OPEN = (
    "import sys; from embedding_studio.storage.postgres import PostgresStorage as S; S(sys.argv[1]).close()"
)


@pytest.fixture
def connection(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        yield opened


def tables(connection):
    """Return (schema, table, column, type) of all that is ours."""
    return connection.execute(
        "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'embedding_studio' ORDER BY 1, 2, 3"
    ).fetchall()


def definitions(connection):
    """Return what says what the tables of collections are: columns, constraints, indexes."""
    return connection.execute(
        """
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attstorage::text,
            attnotnull::text, attcollation::regcollation::text
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'collection_1'::regnamespace AND relkind = 'r' AND attnum > 0
            AND NOT attisdropped
        UNION ALL
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', '', ''
        FROM pg_constraint
        WHERE connamespace = 'collection_1'::regnamespace
        UNION ALL
        SELECT tablename, indexname, indexdef, '', '', '' FROM pg_indexes WHERE schemaname = 'collection_1'
        ORDER BY 1, 2, 3
        """
    ).fetchall()


def test_migrations_are_numbered_from_1_without_a_gap():
    numbers = [number for number, _ in migrations()]

    assert numbers == list(range(1, len(numbers) + 1))


def test_each_migration_is_applied_once(connection):
    first = migrate(connection)
    made = tables(connection)
    second = migrate(connection)

    assert first == [number for number, _ in migrations()]
    assert second == []
    assert len(made) > 30
    assert tables(connection) == made


@pytest.mark.parametrize("from_number", [0, 19])
def test_tables_whose_migrations_are_not_noted_are_told_with_what_to_do(
    connection, postgres_url, from_number
):
    PostgresStorage(postgres_url).close()
    connection.execute("DELETE FROM embedding_studio.schema_migrations WHERE number >= %s", (from_number,))

    with pytest.raises(StorageError, match=r"already exists\); restore a backup, or drop the schema"):
        PostgresStorage(postgres_url)


@pytest.mark.parametrize("dimensions", [3, 2001])
def test_collections_made_before_votes_are_like_those_made_since(connection, postgres_url, dimensions):
    with closing(PostgresStorage(postgres_url)) as storage:
        films = storage.collections.create("films", SearchIndexInfo(dimensions=dimensions))
    made = definitions(connection)
    without_codes(connection)
    connection.execute("DROP TABLE collection_1.shared_votes, collection_1.shared_queries")
    connection.execute("DELETE FROM embedding_studio.schema_migrations WHERE number >= 2")
    before = definitions(connection)

    query = np.ones(dimensions, dtype=np.float32)
    with closing(PostgresStorage(postgres_url)) as storage:
        with storage.personal.learning(films, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState((), {}, (SharedVote("red", query, query, 1),))})
        heard = storage.personal.near_memories(films, "bob", query, 0.5, shared_by=1).shared

    assert [memory.users for memory in heard] == [1]
    assert {row[0].removeprefix("collection_1.") for row in set(made) - set(before)} >= {
        "shared_queries",
        "shared_votes",
    }
    assert definitions(connection) == made


def test_votes_of_before_changes_were_noted_are_heard_and_so_is_what_changes(connection, postgres_url):
    query = np.ones(3, dtype=np.float32)

    def vote(storage, user_id):
        with storage.personal.learning(films, [user_id]) as transaction:
            transaction.replace_states(
                {user_id: PersonalState((), {}, (SharedVote("red", query, query, 1),))}
            )

    def users(storage):
        return [
            each.users for each in storage.personal.near_memories(films, None, query, 0.5, shared_by=1).shared
        ]

    with closing(PostgresStorage(postgres_url)) as storage:
        films = storage.collections.create("films", SearchIndexInfo(dimensions=3))
        made = definitions(connection)
        vote(storage, "ann")
    without_vote_changes(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        before = users(storage)
        vote(storage, "bob")
        after = users(storage)

    assert (before, after) == ([1], [2])
    assert definitions(connection) == made


def test_votes_of_before_they_told_of_objects_stay_and_tell_of_none(connection, postgres_url):
    query = np.ones(3, dtype=np.float32)
    with closing(PostgresStorage(postgres_url)) as storage:
        films = storage.collections.create("films", SearchIndexInfo(dimensions=3))
        made = definitions(connection)
        with storage.personal.learning(films, ["ann"]) as transaction:
            transaction.replace_states({"ann": PersonalState((), {}, (SharedVote("red", query, query, 1),))})
    without_votes_by_object(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        [vote] = storage.personal.state(films, "ann").votes
        [told] = storage.personal.near_memories(films, None, query, 0.5, shared_by=1).shared

    assert (vote.query_key, vote.created_at, vote.seen) == ("red", 1, ())
    assert (told.users, told.seen) == (1, ())
    assert definitions(connection) == made


def test_a_model_behind_an_endpoint_loses_its_address_and_nothing_is_embedded_again(connection, postgres_url):
    index = SearchIndexInfo(dimensions=3)
    names = {
        "moved": "openai:org/tiny@http://ann:secret@host/v1?key=secret@https://x",
        "local": "sentence-transformers:mail@https",
        "own": None,
    }
    with closing(PostgresStorage(postgres_url)) as storage:
        for name, embedder in names.items():
            storage.collections.create(name, index, embedder=embedder)
    made = definitions(connection)
    without_names_of_models(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        found = {each.name: (each.embedder, each.hashed_as) for each in storage.collections.list()}

    assert found == {
        "moved": ("openai:org/tiny", names["moved"]),
        "local": (names["local"], None),
        "own": (None, None),
    }
    assert definitions(connection) == made


def with_keys_of_parts(connection):
    """Make parts what they were when the database looked up the object of each."""
    names = connection.execute("SELECT collection_id FROM embedding_studio.collections").fetchall()
    for (collection_id,) in names:
        connection.execute(
            f"""
            ALTER TABLE collection_{collection_id}.parts
                ADD FOREIGN KEY (object_id) REFERENCES collection_{collection_id}.objects ON DELETE CASCADE
            """
        )
    connection.execute("DELETE FROM embedding_studio.schema_migrations WHERE number >= 23")


def test_parts_of_before_go_with_their_object_though_the_database_looks_up_none(connection, postgres_url):
    vectors = np.ones((3, 3), dtype=np.float32)
    with closing(PostgresStorage(postgres_url)) as storage:
        films = storage.collections.create("films", SearchIndexInfo(dimensions=3))
        storage.objects.upsert(films, [CatalogueObject(each, vectors) for each in "abc"])
    made = definitions(connection)
    with_keys_of_parts(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        deleted = storage.objects.delete(films, ["a", "c", "d"])
        left = connection.execute(
            "SELECT object_id, part_no FROM collection_1.parts ORDER BY 1, 2"
        ).fetchall()
        storage.objects.upsert(films, [CatalogueObject("a", vectors[:1])])
        again = storage.objects.get(films, ["a", "b", "c"])

    assert deleted == 2
    assert left == [("b", 0), ("b", 1), ("b", 2)]
    assert [(each.object_id, len(each.parts)) for each in again] == [("a", 1), ("b", 3)]
    assert not [row for row in made if row[:2] == ("collection_1.parts", "parts_object_id_fkey")]
    assert definitions(connection) == made


def without_vote_changes(connection):
    """Make votes what they were when nothing was noted where they changed."""
    with_keys_of_parts(connection)
    names = connection.execute("SELECT collection_id FROM embedding_studio.collections").fetchall()
    for (collection_id,) in names:
        connection.execute(
            f"""
            DROP TABLE collection_{collection_id}.vote_changes;
            ALTER TABLE collection_{collection_id}.shared_queries DROP COLUMN query_no;
            """
        )
    connection.execute("DELETE FROM embedding_studio.schema_migrations WHERE number >= 22")


def without_pages(connection):
    """Make sessions what they were when only the request of their first page was kept."""
    without_vote_changes(connection)
    connection.execute(
        """
        ALTER TABLE embedding_studio.sessions DROP COLUMN pages;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 21;
        """
    )


def test_sessions_of_before_their_further_pages_were_kept_stay_and_are_continued(connection, postgres_url):
    session = Session(session_id="s", collection="films", search_results=[{"object_id": "a"}])
    page = FurtherPage(request=SearchRequest(offset=1), created_at=7, object_ids=("b",))
    with closing(PostgresStorage(postgres_url)) as storage:
        storage.collections.create("films", SearchIndexInfo(dimensions=3))
        storage.clickstream.register_session(session)
    made = tables(connection)
    without_pages(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        before = storage.clickstream.get_session("s")
        storage.clickstream.append_results("s", [SearchResultItem(object_id="b")], page)
        after = storage.clickstream.get_session("s")

    assert (before.pages, after.pages) == ((), (page,))
    assert [result.object_id for result in after.search_results] == ["a", "b"]
    assert tables(connection) == made


def without_shown(connection):
    """Make sessions what they were when each of their results was a row."""
    without_pages(connection)
    connection.execute(
        """
        CREATE TABLE embedding_studio.session_results (
            session_id text COLLATE "C" REFERENCES embedding_studio.sessions ON DELETE CASCADE,
            object_id text COLLATE "C",
            position integer NOT NULL,
            distance double precision,
            personalised boolean NOT NULL,
            propensity double precision NOT NULL,
            meta jsonb,
            PRIMARY KEY (session_id, object_id)
        );
        INSERT INTO embedding_studio.session_results
        SELECT
            session_id, shown[n], coalesce(positions[n], n), distances[n], coalesce(personalised[n], false),
            coalesce(propensities[n], 1), nullif(metas -> (n - 1), 'null')
        FROM embedding_studio.sessions CROSS JOIN LATERAL generate_subscripts(shown, 1) AS n;
        ALTER TABLE embedding_studio.sessions
            DROP COLUMN shown, DROP COLUMN positions, DROP COLUMN distances, DROP COLUMN personalised,
            DROP COLUMN propensities, DROP COLUMN metas, DROP COLUMN sender;
        ALTER TABLE embedding_studio.collections DROP COLUMN filled;
        DROP TABLE embedding_studio.outbox;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 18;
        """
    )


def test_sessions_whose_results_were_rows_show_the_same_as_before(connection, postgres_url):
    told = {"personalised": True, "propensity": 0.5, "meta": {"a": [1]}}
    a, b, c = ({"object_id": each} for each in "abc")
    shown = {
        "nothing": [],
        "in order": [c, a, b],
        "with a gap": [a | {"position": 2}, b | {"position": 2}, c],
        "all that is known": [
            c,
            b | told | {"rank": 0.1, "position": 7},
            a | {"position": 3, "rank": 1e-300},
        ],
    }
    with closing(PostgresStorage(postgres_url)) as storage:
        storage.collections.create("films", SearchIndexInfo(dimensions=3))
        for session_id, results in shown.items():
            session = Session(session_id=session_id, collection="films", search_results=results)
            storage.clickstream.register_session(session, np.ones((2, 3), np.float32))
        before = [each.session for each in storage.clickstream.scan()]
    made = definitions(connection)
    without_shown(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        after = [each.session for each in storage.clickstream.scan()]

    assert after == before
    assert sorted(len(each.search_results) for each in after) == [0, 3, 3, 3]
    assert definitions(connection) == made


def without_senders(connection):
    """Make events that wait what they were when none said who had sent it."""
    without_shown(connection)
    connection.execute(
        """
        ALTER TABLE embedding_studio.waiting_events DROP COLUMN sender;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 17;
        """
    )


def without_attached(connection):
    """Make tables what they were when every collection's objects were here."""
    without_senders(connection)
    connection.execute(
        """
        ALTER TABLE embedding_studio.collections DROP COLUMN attached;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 16;
        """
    )


def without_api_keys(connection):
    """Make tables what they were before keys were kept in them."""
    without_attached(connection)
    connection.execute(
        """
        DROP TABLE embedding_studio.api_keys;
        ALTER TABLE embedding_studio.queue RENAME TO folds;
        ALTER INDEX embedding_studio.queue_pkey RENAME TO folds_pkey;
        ALTER INDEX embedding_studio.queue_to_claim RENAME TO folds_to_claim;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 13;
        """
    )


def without_names_of_models(connection):
    """Make collections what they were when a model behind an endpoint was named with its address."""
    without_api_keys(connection)
    connection.execute(
        """
        DROP TABLE embedding_studio.waiting_events, embedding_studio.quarantined,
            embedding_studio.quarantine_decisions;
        DROP FUNCTION embedding_studio.is_awaited;
        ALTER TABLE embedding_studio.collections DROP COLUMN hashed_as;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 11;
        """
    )


def without_votes_by_object(connection):
    """Make the votes of the first collection what they were before they told of objects."""
    without_names_of_models(connection)
    connection.execute(
        """
        ALTER TABLE collection_1.shared_votes
            DROP COLUMN object_ids, DROP COLUMN clicks, DROP COLUMN looks;
        ALTER TABLE embedding_studio.collections DROP COLUMN own_past;
        ALTER TABLE collection_1.query_memory DROP COLUMN likeness;
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 9;
        """
    )


def without_queue(connection):
    """Make the queue what it was when its rows were sessions."""
    without_votes_by_object(connection)
    connection.execute(
        """
        DROP INDEX embedding_studio.sessions_by_time;
        DROP TABLE embedding_studio.order_counts;
        DROP FUNCTION embedding_studio.count_orders, embedding_studio.count_no_orders CASCADE;
        ALTER TABLE embedding_studio.sessions DROP COLUMN request;
        DROP TABLE embedding_studio.folds;
        DROP INDEX embedding_studio.orders_pending, embedding_studio.orders_of_user;
        ALTER TABLE embedding_studio.sessions_for_improvement
            DROP CONSTRAINT sessions_for_improvement_status_check,
            ADD CHECK (status IN ('pending', 'processing', 'done', 'failed', 'refused')),
            ADD COLUMN not_before double precision NOT NULL DEFAULT 0,
            ADD COLUMN token text,
            ADD COLUMN unit text COLLATE "C"
                GENERATED ALWAYS AS (coalesce('user ' || user_id, 'session ' || session_id)) STORED,
            ADD CHECK ((status = 'processing') = (token IS NOT NULL));
        CREATE INDEX orders_to_claim ON embedding_studio.sessions_for_improvement (priority);
        CREATE INDEX orders_of_unit ON embedding_studio.sessions_for_improvement (unit);
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 5;
        """
    )


def test_a_queue_of_sessions_becomes_one_of_users_and_nothing_pending_is_lost(connection, postgres_url):
    sessions = {"s1": "ann", "s2": "ann", "s3": "bob", "s4": None, "s5": "cat", "s6": "dan"}
    with closing(PostgresStorage(postgres_url)) as storage:
        storage.collections.create("films", SearchIndexInfo(dimensions=3))
        for session_id, user_id in sessions.items():
            session = Session(session_id=session_id, user_id=user_id, collection="films")
            storage.clickstream.register_session(session)
            storage.orders.create(SessionForImprovementCreateSchema(session_id=session_id))
    made = definitions(connection)
    without_queue(connection)
    connection.execute(
        """
        UPDATE embedding_studio.sessions_for_improvement
        SET status = 'pending', priority = (session_id = 's3')::int;
        UPDATE embedding_studio.sessions_for_improvement
        SET status = 'processing', token = 't'
        WHERE user_id = 'cat';
        UPDATE embedding_studio.sessions_for_improvement SET status = 'done' WHERE user_id = 'dan';
        """
    )

    with closing(PostgresStorage(postgres_url)) as storage:
        claim = storage.queue.claim(users=9, lease_seconds=1)
        statuses = {session_id: storage.orders.get(session_id).status.value for session_id in sessions}

    assert [(entry.collection, entry.user_id, entry.attempts) for entry in claim.entries] == [
        ("films", "bob", 1),
        ("films", "ann", 1),
        ("films", "cat", 1),
    ]
    assert statuses == dict.fromkeys(("s1", "s2", "s3", "s5"), "processing") | {"s4": "refused", "s6": "done"}
    assert definitions(connection) == made


def without_codes(connection):
    """Make the first collection what it was before codes."""
    without_queue(connection)
    connection.execute(
        """
        DROP TABLE collection_1.codes, collection_1.revision;
        ALTER TABLE collection_1.objects DROP COLUMN object_no;
        ALTER TABLE collection_1.parts DROP COLUMN object_no;
        ALTER TABLE collection_1.personal_parts DROP COLUMN object_no;
        CREATE INDEX parts_nearest ON collection_1.parts (part_no);
        UPDATE embedding_studio.collections SET index_info = index_info || '{"hnsw": {"m": 16}}';
        DELETE FROM embedding_studio.schema_migrations WHERE number >= 3;
        """
    )


def test_collections_made_before_codes_get_them_and_are_searched_as_before(
    connection, postgres_url, monkeypatch
):
    monkeypatch.setattr(pg_codes, "LARGE", 40)
    vectors = np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)
    objects = [CatalogueObject(f"o{k}", vectors[k : k + 1], {"k": k}) for k in range(50)]
    with closing(PostgresStorage(postgres_url)) as storage:
        films = storage.collections.create("films", SearchIndexInfo(dimensions=3))
        storage.objects.upsert(films, objects)
        before = storage.objects.nearest(films, vectors[:1], 50)
    made = definitions(connection)
    without_codes(connection)

    with closing(PostgresStorage(postgres_url)) as storage:
        films = storage.collections.get("films")
        after = storage.objects.nearest(films, vectors[:1], 50)
        codes = storage.objects.codes(films)
        storage.objects.upsert(films, [CatalogueObject("new", vectors[:1])])
        [nearest] = storage.objects.nearest(films, vectors[:1], 1)

    assert after == before
    assert codes.parts == 50
    assert nearest.object_id == "new"
    assert definitions(connection) == made


def test_a_migration_that_failed_left_nothing(connection):
    connection.execute("CREATE SCHEMA embedding_studio")
    connection.execute("CREATE TABLE embedding_studio.session_events (somebody_elses integer)")

    with pytest.raises(StorageError, match=r"session_events.* already exists"):
        migrate(connection)

    assert tables(connection) == [("embedding_studio", "session_events", "somebody_elses", "integer")]


def test_processes_that_start_together_apply_them_once(postgres_url):
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN, postgres_url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    errors = [process.communicate(timeout=120)[1] for process in processes]

    assert [(process.returncode, error) for process, error in zip(processes, errors, strict=True)] == [
        (0, "")
    ] * 4
    with psycopg.connect(postgres_url) as connection:
        applied = connection.execute(
            "SELECT number FROM embedding_studio.schema_migrations ORDER BY 1"
        ).fetchall()
    assert applied == [(number,) for number, _ in migrations()]


def test_tables_of_a_newer_version_are_left_alone(connection, postgres_url):
    migrate(connection)
    connection.execute("INSERT INTO embedding_studio.schema_migrations (number) VALUES (907)")

    with pytest.raises(UnsupportedDatabaseError, match=r"newer version.*migration 907.*upgrade"):
        PostgresStorage(postgres_url)


def test_a_user_who_may_not_create_is_told_what_an_administrator_can_do(connection, postgres_url):
    connection.execute("CREATE ROLE guest LOGIN")
    try:
        with psycopg.connect(postgres_url, autocommit=True) as theirs:
            theirs.execute("SET SESSION AUTHORIZATION guest")
            with pytest.raises(StorageError, match=r"may not create.*CREATE EXTENSION vector.*GRANT CREATE"):
                migrate(theirs)
    finally:
        connection.execute("DROP ROLE guest")


def test_what_the_embedded_database_brings_is_supported():
    require_supported("here", server="18.4", available="0.8.5")
    require_supported("here", server="15.0 (Debian 15.0-1)", installed="0.8.0", available="0.8.1")


@pytest.mark.parametrize(
    ("versions", "remedy"),
    [
        ({"server": "14.12", "installed": "0.8.0"}, "PostgreSQL 14.12; upgrade it to 15"),
        ({"server": "17.2"}, "no pgvector; install its package for PostgreSQL 17"),
        ({"server": "17.2", "available": "0.7.4"}, "pgvector 0.7.4, and 0.8 or later is needed: upgrade"),
        ({"server": "17.2", "installed": "0.5.1", "available": "0.8.1"}, "ALTER EXTENSION vector UPDATE"),
    ],
)
def test_a_server_that_will_not_do_is_refused_in_one_sentence(versions, remedy):
    with pytest.raises(UnsupportedDatabaseError, match=re.escape(remedy)) as caught:
        require_supported("database 'shop' at db.example:5432", **versions)

    assert str(caught.value).startswith("database 'shop' at db.example:5432 ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://ann:secret@127.0.0.1:1/shop", "postgresql://ann:secret@/shop?host=/no"]
)
def test_a_server_that_is_not_there_is_named_without_its_password(url):
    with pytest.raises(StorageUnavailableError, match="database 'shop' at") as caught:
        PostgresStorage(url)

    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert "secret" not in str(caught.value)
    assert without_password(url).startswith("database 'shop' at ")


def test_a_storage_that_was_opened_before_is_opened_without_waiting_for_the_migrations_lock(postgres_url):
    PostgresStorage(postgres_url).close()

    with psycopg.connect(postgres_url) as somebody_elses:
        somebody_elses.execute("SELECT pg_advisory_xact_lock(1163284301, 0)")
        with closing(PostgresStorage(postgres_url)) as storage:
            storage.ping()


def test_every_statement_has_one_name_and_is_used():
    names = [
        (file.name, name)
        for file in FOLDER.glob("*.sql")
        for name in re.findall(r"^-- name: (\w+)$", file.read_text(), re.MULTILINE)
    ]
    code = "".join(file.read_text() for file in FOLDER.parent.glob("*.py"))
    built = {"among_all", "among_some", "among_matching"}  # f"among_{...}"

    assert len(names) == len(set(names)) > 60
    unused = {
        (file, name)
        for file, name in names
        if f'"{name}"' not in code and name not in built and not name.startswith(("create_", "index_"))
    }
    assert unused == set()
