"""Who writes events or orders while their sessions are removed: they go with them, or are refused."""

import threading
import time
from collections.abc import Callable
from contextlib import closing, contextmanager

import psycopg
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.sessions import (
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
)
from embedding_studio.errors import SessionNotFoundError
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres import clickstream as pg_clickstream

BEFORE = 1_000


@pytest.fixture
def storages(postgres_url):
    """Two of one database, with a session of Ann of long ago, and one of nobody's."""
    with closing(PostgresStorage(postgres_url)) as one, closing(PostgresStorage(postgres_url)) as other:
        one.collections.create("films", SearchIndexInfo(dimensions=3))
        one.clickstream.register_session(session_of("s1", "ann"))
        one.clickstream.register_session(session_of("s2", None))
        yield one, other


@pytest.fixture
def connection(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        yield opened


def session_of(session_id, user_id, clicks=0):
    return Session(
        session_id=session_id,
        user_id=user_id,
        collection="films",
        created_at=BEFORE - 1,
        search_results=[SearchResultItem(object_id="a")],
        events=[event_of(session_id, "click", f"e{number}") for number in range(clicks)],
    )


def event_of(session_id, event_type, event_id):
    return SessionEvent(
        session_id=session_id, object_id="a", event_type=event_type, event_id=event_id, created_at=BEFORE
    )


def push(event_type, session_id):
    event = event_of(session_id, event_type, "e0")
    return lambda storage: storage.clickstream.push_events([event], may_wait=False)


def record(session_id, user_id):
    recorded = RecordedSession(session_of(session_id, user_id, clicks=2), None)
    return lambda storage: [each for told in storage.clickstream.record([recorded]) for each in told.events]


def order(session_id):
    schema = SessionForImprovementCreateSchema(session_id=session_id)
    return lambda storage: storage.orders.create(schema)


WRITERS = {
    "click": push("click", "s1"),
    "view": push("view", "s1"),
    "anonymous": push("view", "s2"),
    "order": order("s1"),
    "anonymous order": order("s2"),
    "continued": record("s1", "ann"),
    "new": record("s3", "ann"),
}
REMOVERS = {
    "forget": lambda storage: storage.clickstream.forget_user("ann"),
    "prune": lambda storage: storage.clickstream.remove_before(BEFORE, limit=9),
    "by hand": lambda storage: storage.clickstream._database.write(
        lambda connection: connection.execute("DELETE FROM embedding_studio.sessions")
    ),
}


class Doing:
    """What a thread does, and the answer or the refusal that it got."""

    def __init__(self, does: Callable[[], object]) -> None:
        self.answer: object = None
        self._thread = threading.Thread(target=self._run, args=[does])
        self._thread.start()

    def _run(self, does):
        try:
            self.answer = does()
        except SessionNotFoundError as error:
            self.answer = error

    def wait_until_over_or_blocked(self, connection):
        while self._thread.is_alive():
            [(blocked,)] = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            )
            if blocked:
                return
            time.sleep(0.01)

    def join(self):
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


@contextmanager
def held_before_its_commit(storage, does):
    """Do something in another thread up to its commit, which comes at the end."""
    database = storage.clickstream._database
    write, is_written, may_commit = database.write, threading.Event(), threading.Event()

    def held(work, **options):
        def working(connection):
            answer = work(connection)
            is_written.set()
            assert may_commit.wait(30)
            return answer

        return write(working, **options)

    database.write = held
    doing = Doing(lambda: does(storage))
    try:
        assert is_written.wait(30)
        yield doing
    finally:
        may_commit.set()
        doing.join()
        database.write = write


def kept(connection):
    """Return the ids of sessions, and of those of events and of orders."""
    selected = connection.execute(
        "SELECT 'sessions', session_id FROM embedding_studio.sessions"
        " UNION SELECT 'events', session_id FROM embedding_studio.session_events"
        " UNION SELECT 'orders', session_id FROM embedding_studio.sessions_for_improvement"
    ).fetchall()
    return [
        {session_id for of, session_id in selected if of == table}
        for table in ("sessions", "events", "orders")
    ]


@pytest.mark.parametrize("is_writer_first", [True, False], ids=["written first", "removed first"])
@pytest.mark.parametrize("remover", REMOVERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_while_sessions_are_removed_goes_with_them_or_stays_with_them(
    storages, connection, writer, remover, is_writer_first
):
    one, other = storages
    first, then = WRITERS[writer], REMOVERS[remover]
    if not is_writer_first:
        first, then = then, first

    with held_before_its_commit(one, first) as doing:
        later = Doing(lambda: then(other))
        later.wait_until_over_or_blocked(connection)
    later.join()

    sessions, with_events, with_orders = kept(connection)
    assert with_events | with_orders <= sessions
    told = (doing if is_writer_first else later).answer
    written = {"anonymous": "s2", "anonymous order": "s2", "new": "s3"}.get(writer, "s1")
    is_refused = isinstance(told, SessionNotFoundError) or told == ["unknown_session"]
    assert not (is_refused and written in sessions)
    if written in sessions:
        assert written in (with_orders if "order" in writer else with_events)


def test_an_event_that_comes_while_its_session_is_deleted_goes_with_it(storages, connection, monkeypatch):
    """The session came after those of its user were locked, the event after the deletion looked."""
    one, other = storages
    forget, holding = pg_clickstream.forget, None

    def forget_after_a_click(*given):
        nonlocal holding
        other.clickstream.register_session(session_of("s4", "ann"))
        holding = held_before_its_commit(other, push("view", "s4"))
        holding.__enter__()
        return forget(*given)

    monkeypatch.setattr(pg_clickstream, "forget", forget_after_a_click)
    forgetting = Doing(lambda: one.clickstream.forget_user("ann"))
    forgetting.wait_until_over_or_blocked(connection)
    holding.__exit__(None, None, None)
    forgetting.join()

    assert kept(connection) == [{"s2"}, set(), set()]
