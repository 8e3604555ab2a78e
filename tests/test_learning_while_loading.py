"""Loading never stops learning, and learning never keeps what loading outdates (PostgreSQL)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import (
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
)
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.feedback.improve import Improver
from embedding_studio.storage.postgres import PostgresStorage, objects
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
        self.objects = PostgresObjects(storage.objects.database, NearestSearch(1.0), self._outdate)

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
