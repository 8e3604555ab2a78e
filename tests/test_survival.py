"""What a worker does after it has died, or while its storage is away."""

import threading
import time

import numpy as np
import pytest

from embedding_studio import (
    CatalogueObject,
    PassiveAggressiveAdjuster,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
)
from embedding_studio.errors import (
    EmbedderUnavailableError,
    EmbeddingError,
    StorageNotWritableError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.worker import Worker

INDEX = SearchIndexInfo(dimensions=2)
QUERY = np.array([[1, 0]], dtype=np.float32)
OBJECTS = {"near": [[1, 0.1]], "far": [[0, 1]]}


class Deadly(PassiveAggressiveAdjuster):
    """Ends the process that learns from bob."""

    def adjust_vectors(self, improvement_inputs):
        if any(each.user_id == "bob" for each in improvement_inputs):
            raise KeyboardInterrupt
        return super().adjust_vectors(improvement_inputs)


def test_users_whose_worker_died_are_learnt_one_by_one_so_all_but_the_deadly_one_are_done(memory):
    collection = memory.collections.create("default", INDEX)
    memory.objects.upsert(
        collection,
        [CatalogueObject(name, np.array(parts, dtype=np.float32)) for name, parts in OBJECTS.items()],
    )
    for number, user_id in enumerate(("ann", "bob", "cid")):
        session = Session(
            session_id=user_id,
            user_id=user_id,
            created_at=number,
            search_results=[SearchResultItem(object_id=name) for name in OBJECTS],
            events=[SessionEvent(session_id=user_id, object_id="far", created_at=number)],
        )
        memory.clickstream.register_session(session, np.array([[1, 0]], dtype=np.float32))
        memory.orders.create(SessionForImprovementCreateSchema(session_id=user_id))
    improver = Improver(memory, lambda _: Deadly(INDEX), lease_seconds=10)

    def statuses():
        return [memory.orders.get(user_id).status.value for user_id in ("ann", "bob", "cid")]

    with pytest.raises(KeyboardInterrupt):
        improver.improve_once(now=1e10)
    together = statuses()
    improver.improve_once(now=1e10 + 11)
    with pytest.raises(KeyboardInterrupt):
        improver.improve_once(now=1e10 + 12)
    before_cid = statuses()
    improver.improve_once(now=1e10 + 13)

    assert together == ["processing"] * 3
    assert before_cid == ["done", "processing", "processing"]
    assert statuses() == ["done", "processing", "done"]


def with_clicks(memory, *users, query_vectors=QUERY, embedder=None):
    collection = memory.collections.create("default", INDEX, embedder=embedder)
    memory.objects.upsert(
        collection,
        [CatalogueObject(name, np.array(parts, dtype=np.float32)) for name, parts in OBJECTS.items()],
    )
    for number, user_id in enumerate(users):
        session = Session(
            session_id=user_id,
            user_id=user_id,
            search_query="shoes",
            created_at=number,
            search_results=[SearchResultItem(object_id=name) for name in OBJECTS],
        )
        memory.clickstream.register_session(session, query_vectors)
        memory.clickstream.push_events([SessionEvent(session_id=user_id, object_id="far", created_at=number)])
    return collection


@pytest.mark.parametrize(
    "error",
    [
        StorageUnavailableError("restarting"),
        StorageTimeoutError("overloaded"),
        StorageNotWritableError("its disk is full"),
    ],
)
def test_a_storage_that_is_away_for_more_attempts_than_there_are_makes_no_order_fail(
    memory, monkeypatch, error
):
    with_clicks(memory, "ann", "bob")
    improver = Improver(memory, PassiveAggressiveAdjuster, max_attempts=2, lease_seconds=1e9)
    learning = memory.personal.learning

    def away(*_):
        raise error

    monkeypatch.setattr(memory.personal, "learning", away)
    for _ in range(9):
        with pytest.raises(type(error)):
            improver.improve_once(now=time.time() + 61)
    monkeypatch.setattr(memory.personal, "learning", learning)
    learnt = [improver.improve_once(now=time.time() + 61).learnt for _ in range(3)]

    assert learnt == [1, 1, 0]
    orders = [memory.orders.get(user_id) for user_id in ("ann", "bob")]
    assert [(order.status.value, order.attempts) for order in orders] == [("done", 1)] * 2


def test_whom_the_storage_failed_is_given_back_only_once_it_answers(memory, monkeypatch):
    with_clicks(memory, "ann")
    improver = Improver(memory, PassiveAggressiveAdjuster, lease_seconds=1e9)

    def away(*_, **__):
        raise StorageUnavailableError("away")

    with monkeypatch.context() as outage:
        outage.setattr(memory.personal, "learning", away)
        outage.setattr(memory.queue, "put_off", away)
        for _ in range(3):
            with pytest.raises(StorageUnavailableError):
                improver.improve_once()

    assert improver.improve_once().learnt == 1


class Away:
    """An embedder that raises an error until it is back."""

    name, dimensions = "m", 2

    def __init__(self, error):
        self.error = error

    def embed(self, texts, **_):
        if self.error:
            raise self.error
        return np.repeat(np.array([[1, 0]], dtype=np.float32), len(texts), axis=0)

    def split(self, text):
        return [text]


@pytest.mark.parametrize(
    "error", [EmbedderUnavailableError("it does not answer"), ConnectionError("refused")]
)
def test_an_embedder_that_is_away_for_more_attempts_than_there_are_makes_no_order_fail(memory, error):
    collection = with_clicks(memory, "ann", "bob", query_vectors=None, embedder="m")
    embedder = Away(error)
    improver = Improver(memory, PassiveAggressiveAdjuster, embedder=embedder, max_attempts=2)

    reports = [improver.improve_once(now=time.time() + 61) for _ in range(7)]
    meanwhile = [memory.orders.get(user_id) for user_id in ("ann", "bob")]
    embedder.error = None
    learnt = improver.improve_once(now=time.time() + 61).learnt

    assert [(report.given_up, len(report.failed)) for report in reports] == [(0, 2)] * 7
    assert [(order.status.value, order.attempts) for order in meanwhile] == [("pending", 0)] * 2
    assert "the query could not be embedded" in meanwhile[0].detail
    assert learnt == 2
    assert memory.personal.state(collection, "ann").memories[0].session_id == "ann"


def test_a_text_that_an_embedder_refuses_fails_as_ever(memory):
    with_clicks(memory, "ann", query_vectors=None, embedder="m")
    improver = Improver(
        memory, PassiveAggressiveAdjuster, embedder=Away(EmbeddingError("refused")), max_attempts=2
    )

    for _ in range(2):
        improver.improve_once(now=time.time() + 61)

    assert memory.orders.get("ann").status.value == "failed"


class Waits(threading.Event):
    """Is set after so many waits, none of which takes time."""

    def __init__(self, count):
        super().__init__()
        self._count = count
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        if len(self.seconds) == self._count:
            self.set()
        return self.is_set()


def test_a_worker_waits_twice_as_long_each_time_that_its_storage_is_away_and_half_a_minute_at_most(
    memory, monkeypatch
):
    def away(**_):
        raise StorageUnavailableError("away")

    monkeypatch.setattr(memory.queue, "claim", away)
    waits = Waits(9)

    Worker(Improver(memory, PassiveAggressiveAdjuster), memory).run(waits)

    assert waits.seconds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
