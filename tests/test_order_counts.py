"""Orders are not counted but summed up as they change; the sum is what counting them would give.

Random sequences of operations are compared with the count of the memory twin in ``test_storage_congruence``.
"""

import random
import threading
from contextlib import closing

import psycopg
import pytest
from psycopg import sql

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import PersonalState
from embedding_studio.domain.sessions import (
    Session,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.storage.ports import OrderOutcome, PassedOver
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.orders import _statement
from embedding_studio.storage.postgres.sql import statements

Status = SessionForImprovementStatus

PASSED_OVER = PassedOver("irrelevant", "no events", "too old")


@pytest.fixture
def postgres(postgres_url):
    with closing(PostgresStorage(postgres_url)) as storage:
        storage.collections.create("films", SearchIndexInfo(dimensions=3))
        yield storage


def test_a_click_is_looked_for_in_a_hash_of_what_was_shown(postgres, postgres_url):
    """Else each click on a long list would be compared with all of it, at each further click."""
    priority = statements("orders.sql")["priority"]
    asked = sql.SQL("EXPLAIN SELECT {} FROM embedding_studio.sessions AS session").format(priority)
    with psycopg.connect(postgres_url) as connection:
        plan = "\n".join(line for (line,) in connection.execute(asked, {"clicks": ["click"]}))

    assert "hashed SubPlan" in plan
    assert "Join" not in plan
    assert "Nested Loop" not in plan


@pytest.fixture
def connection(postgres, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        yield opened


def place(storage, session_id, user_id="ann"):
    session = Session(session_id=session_id, user_id=user_id, collection="films", created_at=100)
    storage.clickstream.register_session(session)
    storage.orders.create(SessionForImprovementCreateSchema(session_id=session_id))


def learn(storage, *user_ids, ends):
    claim = storage.queue.claim(users=100, lease_seconds=60)
    films = storage.collections.get("films")
    with storage.personal.learning(films, sorted(user_ids)) as transaction:
        transaction.replace_states(dict.fromkeys(transaction.held(claim.token), PersonalState()))
        outcomes = [OrderOutcome(session_id, status) for session_id, status in ends.items()]
        transaction.complete(claim.token, outcomes, PASSED_OVER)


def counted(connection):
    """Return how many orders there are by status, by looking at each."""
    found = dict(
        connection.execute(
            "SELECT status, count(*) FROM embedding_studio.sessions_for_improvement GROUP BY status"
        ).fetchall()
    )
    return {status: found.get(status, 0) for status in ("pending", "done", "failed", "refused")}


def summed(connection):
    [row] = connection.execute(
        "SELECT sum(pending)::int, sum(done)::int, sum(failed)::int, sum(refused)::int"
        " FROM embedding_studio.order_counts"
    )
    return dict(zip(("pending", "done", "failed", "refused"), (number or 0 for number in row), strict=True))


def test_what_is_pending_of_users_in_hand_is_counted_as_processing(postgres):
    for session_id, user_id in {"s1": "ann", "s2": "ann", "s3": "bob", "s4": None}.items():
        place(postgres, session_id, user_id)
    postgres.queue.claim(users=1, lease_seconds=60)

    assert postgres.orders.counts() == {
        Status.PENDING: 1,
        Status.PROCESSING: 2,
        Status.DONE: 0,
        Status.FAILED: 0,
        Status.REFUSED: 1,
    }


def test_counting_reads_as_much_however_many_orders_are_done(postgres, connection):
    def pages_read():
        explained = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + _statement("counts")
        [([told],)] = connection.execute(explained)
        return told["Plan"]["Shared Hit Blocks"] + told["Plan"]["Shared Read Blocks"]

    place(postgres, "s1", "ann")
    postgres.queue.claim(users=1, lease_seconds=60)
    few = pages_read()
    connection.execute(
        """
        INSERT INTO embedding_studio.sessions (session_id, user_id, search_query, collection, created_at)
        SELECT 'done ' || number, 'bob', '', 'films', 1 FROM generate_series(1, 5000) AS number;
        INSERT INTO embedding_studio.sessions_for_improvement
            (session_id, user_id, collection, status, created_at, updated_at)
        SELECT session_id, user_id, collection, 'done', 1, 1
        FROM embedding_studio.sessions
        WHERE user_id = 'bob';
        ANALYZE
        """
    )

    assert postgres.orders.counts()[Status.DONE] == 5000
    assert pages_read() <= few + 2  # a level more of an index; all orders are on 60


def test_a_forgotten_user_and_a_dropped_collection_leave_the_sum_right(postgres, connection):
    for number in range(7):
        place(postgres, f"a{number}", "ann")
        place(postgres, f"b{number}", "bob")
    learn(postgres, "ann", "bob", ends={"a0": Status.DONE, "a1": Status.DONE, "b0": Status.DONE})
    before = counted(connection), summed(connection)

    postgres.clickstream.forget_user("ann")
    forgotten = counted(connection), summed(connection)
    postgres.collections.drop("films")
    dropped = counted(connection), summed(connection)

    assert before[0] == before[1] == {"pending": 0, "done": 3, "failed": 0, "refused": 11}
    assert forgotten[0] == forgotten[1] == {"pending": 0, "done": 1, "failed": 0, "refused": 6}
    assert dropped[0] == dropped[1]


def test_what_is_rolled_back_was_never_counted(postgres, connection):
    place(postgres, "s1")

    with connection.transaction(force_rollback=True):
        connection.execute("UPDATE embedding_studio.sessions_for_improvement SET status = 'done'")
        within = summed(connection)
        with connection.transaction(force_rollback=True):
            connection.execute("DELETE FROM embedding_studio.sessions_for_improvement")
        after_the_inner_one = summed(connection)

    assert within == after_the_inner_one == {"pending": 0, "done": 1, "failed": 0, "refused": 0}
    assert summed(connection) == {"pending": 1, "done": 0, "failed": 0, "refused": 0}


@pytest.mark.parametrize(
    "statement",
    ["TRUNCATE embedding_studio.sessions_for_improvement", "TRUNCATE embedding_studio.sessions CASCADE"],
)
def test_after_a_truncate_nothing_is_counted_until_an_order_is_placed(postgres, connection, statement):
    place(postgres, "s1")
    connection.execute(statement)
    emptied = summed(connection)
    place(postgres, "s2")

    assert set(emptied.values()) == {0}
    assert summed(connection) == counted(connection) == {"pending": 1, "done": 0, "failed": 0, "refused": 0}


def test_orders_placed_before_there_was_a_sum_are_in_it(postgres_url, postgres, connection):
    for session_id, user_id in {"s1": "ann", "s2": "ann", "s3": None}.items():
        place(postgres, session_id, user_id)
    connection.execute(
        "DROP TABLE embedding_studio.order_counts;"
        "DROP FUNCTION embedding_studio.count_orders, embedding_studio.count_no_orders CASCADE;"
        "DELETE FROM embedding_studio.schema_migrations WHERE number = 7"
    )

    with closing(PostgresStorage(postgres_url)) as reopened:
        place(reopened, "s4")
        counts = reopened.orders.counts()

    assert (counts[Status.PENDING], counts[Status.REFUSED]) == (3, 1)


def test_a_writer_does_not_wait_for_another_that_has_changed_orders_and_not_committed(postgres, connection):
    place(postgres, "s1")
    place(postgres, "s2")

    with connection.transaction():
        connection.execute(
            "UPDATE embedding_studio.sessions_for_improvement SET status = 'done' WHERE session_id = 's1'"
        )
        cancelling = threading.Thread(target=postgres.orders.cancel, args=("s2",))
        cancelling.start()
        cancelling.join(timeout=10)
        has_waited = cancelling.is_alive()
        meanwhile = postgres.orders.counts()
    cancelling.join()

    assert not has_waited
    assert (meanwhile[Status.PENDING], meanwhile[Status.DONE]) == (1, 0)
    assert summed(connection) == {"pending": 0, "done": 1, "failed": 0, "refused": 0}


def test_readers_see_every_order_once_while_writers_change_them_and_rows_do_not_pile_up(
    postgres, connection, postgres_url
):
    """Each transaction moves orders from one status to another, or is rolled back: there are always 60."""
    for number in range(60):
        place(postgres, f"s{number:02}", f"u{number % 6}")
    is_over = threading.Event()
    wrong = []

    def write(seed):
        rng = random.Random(seed)
        with psycopg.connect(postgres_url, autocommit=True) as mine:
            for _ in range(120):
                with mine.transaction(force_rollback=rng.random() < 0.2):
                    for status in rng.sample(["pending", "done", "failed", "refused"], 2):
                        mine.execute(
                            "UPDATE embedding_studio.sessions_for_improvement"
                            " SET status = %s WHERE user_id = %s",
                            [status, f"u{seed}"],
                        )

    def read():
        while not is_over.is_set():
            counts = postgres.orders.counts()
            if sum(counts.values()) != 60 or min(counts.values()) < 0:
                wrong.append(counts)

    writing = [threading.Thread(target=write, args=(seed,)) for seed in range(6)]
    reading = threading.Thread(target=read)
    for thread in [*writing, reading]:
        thread.start()
    for thread in writing:
        thread.join()
    is_over.set()
    reading.join()

    assert wrong == []
    assert summed(connection) == counted(connection)
    [(rows,)] = connection.execute("SELECT count(*) FROM embedding_studio.order_counts")
    assert rows <= 6 * 2 + 1  # each of 6 has changed some twice before it ends; 1,440 changes in all
