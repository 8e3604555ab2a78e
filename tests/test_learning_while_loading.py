"""Loading never stops learning, and learning never keeps what loading outdates (PostgreSQL)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import (
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.feedback.improve import Improver
from embedding_studio.storage.postgres import PostgresStorage, clickstream, collections, events, objects
from embedding_studio.storage.postgres.codes import Untidiness
from embedding_studio.storage.postgres.nearest import NearestSearch
from embedding_studio.storage.postgres.objects import PostgresObjects
from embedding_studio.storage.postgres.personal import outdate

QUERY = np.array([[1, 0, 0]], dtype=np.float32)


def thing(object_id, *numbers):
    return CatalogueObject(object_id, np.array([numbers], dtype=np.float32))


@pytest.fixture
def storage(postgres_url):
    with closing(PostgresStorage(postgres_url)) as opened:
        yield opened


@pytest.fixture
def films(storage):
    collection = storage.collections.create("films", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(collection, [thing("a", 1, 1, 0), thing("b", 0, 1, 0), thing("c", 1, 0, 1)])
    return collection


@pytest.fixture
def beside():
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def click(storage, user_id, *, shown=("a", "b", "c", "new"), clicked="a"):
    results = [SearchResultItem(object_id=object_id) for object_id in shown]
    session = Session(
        session_id=f"of {user_id}", user_id=user_id, collection="films", created_at=1, search_results=results
    )
    storage.clickstream.register_session(session, QUERY)
    storage.clickstream.push_events([SessionEvent(session_id=session.session_id, object_id=clicked)])


def improve(storage):
    return Improver(storage, PassiveAggressiveAdjuster).improve_once()


def settled(storage, films, user_id):
    """Return what is learnt once nothing is due."""
    while improve(storage).users:
        pass
    return {i: parts.tolist() for i, parts in storage.personal.state(films, user_id).vectors.items()}


class Paused:
    """Originals of which a change waits, before or after the users concerned are marked, for ``go_on``."""

    def __init__(self, storage, *, before):
        self.is_there, self.go_on = threading.Event(), threading.Event()
        self._before = before
        self.objects = PostgresObjects(storage.objects.own.database, NearestSearch(1.0), self._outdate)

    def _outdate(self, connection, collection, object_ids):
        if not self._before:
            outdate(connection, collection, object_ids)
        self.is_there.set()
        assert self.go_on.wait(30)
        if self._before:
            outdate(connection, collection, object_ids)


def test_a_click_is_learnt_while_a_batch_of_originals_is_being_written(storage, films, beside):
    paused = Paused(storage, before=True)
    writing = beside(paused.objects.upsert, films, [thing("another", 1, 0, 0)])
    assert paused.is_there.wait(30)

    click(storage, "ann")
    report = improve(storage)

    assert not writing.done()
    assert report.learnt == 1
    paused.go_on.set()
    writing.result(30)


@pytest.mark.parametrize("change", ["upsert", "delete", "new"])
def test_what_was_learnt_from_originals_that_change_meanwhile_is_learnt_again(storage, films, beside, change):
    changes = {
        "upsert": lambda objects: objects.upsert(films, [thing("a", 0, 1, 1)]),
        "delete": lambda objects: objects.delete(films, ["a"]),
        "new": lambda objects: objects.upsert(films, [thing("new", 1, 0, 0.1)]),
    }
    click(storage, "ann")
    paused = Paused(storage, before=True)
    writing = beside(changes[change], paused.objects)
    assert paused.is_there.wait(30)

    improve(storage)
    old = storage.personal.state(films, "ann").vectors
    paused.go_on.set()
    writing.result(30)
    dropped = storage.personal.state(films, "ann").vectors.keys() & {"a"}

    assert "a" in old
    assert (dropped == set()) == (change != "new")
    learnt = settled(storage, films, "ann")
    assert ("new" in learnt) == (change == "new")
    assert ("a" in learnt) == (change != "delete")
    storage.orders.create(SessionForImprovementCreateSchema(session_id="of ann"))
    assert settled(storage, films, "ann") == learnt


def test_who_clicks_after_the_users_were_marked_is_learnt_from_the_new_originals(storage, films, beside):
    paused = Paused(storage, before=False)
    writing = beside(paused.objects.upsert, films, [thing("a", 0, 1, 1)])
    assert paused.is_there.wait(30)

    click(storage, "bob")
    learning = beside(improve, storage)
    with pytest.raises(TimeoutError):
        learning.result(0.3)
    paused.go_on.set()
    writing.result(30)

    assert learning.result(30).learnt == 1
    [[x, y, z]] = storage.personal.state(films, "bob").vectors["a"]
    assert (y, z) == (pytest.approx(z, abs=1e-5), pytest.approx(y, abs=1e-5))
    assert x > 0


def test_a_click_is_learnt_while_codes_are_being_written(storage, films, beside, monkeypatch):
    is_there, go_on = threading.Event(), threading.Event()

    def tidy(*_):
        is_there.set()
        assert go_on.wait(30)

    monkeypatch.setattr(objects, "untidiness", lambda *_: Untidiness.UNWRITTEN)
    monkeypatch.setattr(objects, "tidy", tidy)
    writing = beside(storage.objects.upsert, films, [thing("another", 1, 0, 0)])
    assert is_there.wait(30)

    click(storage, "ann")
    report = improve(storage)

    assert not writing.done()
    assert report.learnt == 1
    go_on.set()
    writing.result(30)


def stop_before(monkeypatch, room, name):
    """Let whoever next calls a function of a module wait; return when that is, and what lets it go on."""
    is_there, go_on, called = threading.Event(), threading.Event(), getattr(room, name)

    def wait(*given, **named):
        if not is_there.is_set():
            is_there.set()
            assert go_on.wait(30)
        return called(*given, **named)

    monkeypatch.setattr(room, name, wait)
    return is_there, go_on


def relearnt(storage, films, user_id):
    """Return what is learnt of a user when nothing is due, and what after learning all again."""
    while improve(storage).users:
        pass
    before = storage.personal.state(films, user_id)
    storage.collections.order_for_everyone(films.name)
    while improve(storage).users:
        pass
    after = storage.personal.state(films, user_id)
    return [
        ([memory.session_id for memory in state.memories], {k: v.tolist() for k, v in state.vectors.items()})
        for state in (before, after)
    ]


@pytest.mark.parametrize("how", ["append_results", "record"])
def test_a_first_click_on_a_session_that_is_being_continued_is_learnt_with_all_it_shows(
    storage, films, beside, monkeypatch, how
):
    session = Session(
        session_id="s", user_id="ann", collection="films", created_at=1, search_results=[{"object_id": "a"}]
    )
    storage.clickstream.register_session(session, QUERY)
    page = [SearchResultItem(object_id=object_id, position=2) for object_id in ("b", "c")]
    longer = session.model_copy(update={"search_results": tuple(page)})
    where = clickstream if how == "append_results" else events
    is_there, go_on = stop_before(monkeypatch, where, "mark_learnt")
    writing = (
        beside(storage.clickstream.append_results, "s", page)
        if how == "append_results"
        else beside(storage.clickstream.record, [RecordedSession(longer, QUERY)])
    )
    assert is_there.wait(30)

    clicking = beside(storage.clickstream.push_events, [SessionEvent(session_id="s", object_id="a")])
    with pytest.raises(TimeoutError):
        clicking.result(0.3)
    go_on.set()
    writing.result(30)
    clicking.result(30)

    before, after = relearnt(storage, films, "ann")
    assert before == after
    assert before[0] == ["s"]


def test_a_first_click_on_a_session_that_becomes_irrelevant_is_not_learnt(
    storage, films, beside, monkeypatch
):
    session = Session(session_id="s", user_id="ann", collection="films", created_at=1)
    storage.clickstream.register_session(session, QUERY)
    is_there, go_on = stop_before(monkeypatch, clickstream, "with_orders")
    marking = beside(storage.clickstream.mark_irrelevant, "s")
    assert is_there.wait(30)

    clicking = beside(storage.clickstream.push_events, [SessionEvent(session_id="s", object_id="a")])
    with pytest.raises(TimeoutError):
        clicking.result(0.3)
    go_on.set()
    marking.result(30)
    clicking.result(30)

    before, after = relearnt(storage, films, "ann")
    assert before == after == ([], {})


def test_who_clicks_while_an_alias_moves_is_learnt_where_it_stands_then(storage, films, beside, monkeypatch):
    books = storage.collections.create("books", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(books, [thing("a", 0, 1, 1)])
    storage.collections.set_alias("best", "films")
    session = Session(
        session_id="s", user_id="ann", collection="best", created_at=1, search_results=[{"object_id": "a"}]
    )
    storage.clickstream.register_session(session, QUERY)
    called = collections.mark_under

    def marked_and_waiting(*given, **named):
        called(*given, **named)
        is_there.set()
        assert go_on.wait(30)

    is_there, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(collections, "mark_under", marked_and_waiting)
    moving = beside(storage.collections.set_alias, "best", "books")
    assert is_there.wait(30)

    storage.clickstream.push_events([SessionEvent(session_id="s", object_id="a")])
    learning = beside(improve, storage)
    with pytest.raises(TimeoutError):
        learning.result(0.3)
    go_on.set()
    moving.result(30)
    learning.result(30)

    assert storage.personal.state(films, "ann").memories == ()
    storage.collections.order_for_everyone("books")
    assert relearnt(storage, books, "ann")[0][0] == ["s"]


def test_batches_that_continue_and_click_for_the_same_users_do_not_deadlock(storage, films, beside):
    def session(k, user, shown, **more):
        results = [SearchResultItem(object_id=i) for i in shown]
        return RecordedSession(
            Session(
                session_id=f"{user} {k}",
                user_id=user,
                collection="films",
                created_at=int(k),
                search_results=results,
                **more,
            ),
            QUERY,
        )

    users = [f"user {number}" for number in range(8)]
    storage.clickstream.record([session(0, user, "a") for user in users])
    storage.clickstream.push_events([SessionEvent(session_id=f"{u} 0", object_id="a") for u in users])

    def work(seed):
        rng = np.random.default_rng(seed)
        for turn in range(1, 9):
            batch = []
            for user in rng.permutation(users)[:6]:
                key = f"{user} {seed}{turn}"
                click = SessionEvent(session_id=key, object_id="a", event_id=f"{seed} {turn}")
                fresh = session(f"{seed}{turn}", str(user), "ab", events=[click])
                batch += [fresh] if rng.random() < 0.5 else [session(0, str(user), f"x{seed}y{turn}z")]
            storage.clickstream.record(batch)

    for done in [beside(work, seed) for seed in range(4)]:
        done.result(60)
    assert storage.orders.counts()[SessionForImprovementStatus.PENDING] > len(users)


def test_who_met_what_is_loaded_is_looked_up_where_showings_are_in_order(storage, films):
    """Each of many objects would be looked for in all of the list of what was shown lately."""

    def pages_out_of_order():
        cleaned = "SELECT gin_clean_pending_list('embedding_studio.sessions_that_showed')"
        return storage.objects.own.database.write(
            lambda connection: connection.execute(cleaned).fetchone()[0]
        )

    click(storage, "ann")
    assert pages_out_of_order() == 1
    click(storage, "bob")
    assert improve(storage).users == 2
    storage.objects.upsert(films, [thing("new", 1, 0, 0)])
    assert pages_out_of_order() == 0
    assert improve(storage).users == 2  # who were shown it
