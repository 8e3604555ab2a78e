"""What a worker does after it has died, or while its storage is away."""

import threading

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
from embedding_studio.errors import StorageUnavailableError
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.worker import Worker

INDEX = SearchIndexInfo(dimensions=2)
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

    monkeypatch.setattr(memory.folds, "claim", away)
    waits = Waits(9)

    Worker(Improver(memory, PassiveAggressiveAdjuster), memory).run(waits)

    assert waits.seconds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
