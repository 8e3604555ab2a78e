"""The worker runs in a thread; tests wait for the reports that its improver puts into a queue."""

import math
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import (
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import StorageUnavailableError
from embedding_studio.feedback.improve import ImprovementReport, Improver
from embedding_studio.feedback.worker import Worker
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage

LONG = 60.0
"""Seconds after which a condition that is awaited is taken not to come."""

DONE = SessionForImprovementStatus.DONE


def at(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


@pytest.fixture
def shop(storage: Storage) -> Storage:
    return with_objects(storage)


def with_objects(storage: Storage) -> Storage:
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=3))
    storage.objects.upsert(
        collection, [CatalogueObject(f"at{degrees}", at(degrees)) for degrees in (10, 20, 30)]
    )
    return storage


def search(storage: Storage, session_id: str, user_id: str = "ann") -> None:
    shown = tuple(SearchResultItem(object_id=f"at{degrees}") for degrees in (10, 20, 30))
    session = Session(session_id=session_id, user_id=user_id, search_results=shown, created_at=100)
    storage.clickstream.register_session(session, at(0))


def click(storage: Storage, session_id: str) -> None:
    storage.clickstream.push_events([SessionEvent(session_id=session_id, object_id="at20", created_at=101)])


class ReportingImprover(Improver):
    """Tells the test of every pass, and lets it step in before one."""

    def __init__(self, storage: Storage, adjuster=PassiveAggressiveAdjuster) -> None:
        super().__init__(storage, adjuster)
        self.reports: queue.Queue[ImprovementReport] = queue.Queue()
        self.before: Callable[[], None] = lambda: None

    def improve_once(self, **given) -> ImprovementReport:
        self.before()
        report = super().improve_once(**given)
        self.reports.put(report)
        return report

    def next_report(self, timeout_seconds: float = LONG) -> ImprovementReport:
        return self.reports.get(timeout=timeout_seconds)

    def next_learnt(self) -> ImprovementReport:
        while not (report := self.next_report()).learnt:
            pass
        return report


@contextmanager
def running(worker: Worker) -> Iterator[threading.Event]:
    """Run a worker as long as the block; it must then end by itself."""
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_worker_learns_all_that_is_due_batch_after_batch(shop):
    for i in range(7):
        search(shop, f"s{i}", f"user {i}")
        click(shop, f"s{i}")
    improver = ReportingImprover(shop)

    with running(Worker(improver, shop, users_per_batch=3)):
        learnt = [improver.next_report().learnt for _ in range(4)]

    assert learnt == [3, 3, 1, 0]
    assert shop.orders.counts()[DONE] == 7


def test_a_click_wakes_a_worker_at_once(shop):
    improver = ReportingImprover(shop)
    search(shop, "s")

    with running(Worker(improver, shop, interval_seconds=10_000)):
        assert improver.next_report().users == 0
        click(shop, "s")

        assert improver.next_learnt().learnt == 1


def test_a_worker_that_is_not_woken_by_clicks_looks_every_interval():
    storage = with_objects(MemoryStorage())
    improver = ReportingImprover(storage)
    search(storage, "s")

    with running(Worker(improver, storage, interval_seconds=0.2, wake_on_click=False)):
        assert improver.next_report().users == 0
        click(storage, "s")

        assert improver.next_learnt().learnt == 1


def test_a_worker_that_is_not_woken_by_clicks_lets_them_wait():
    storage = with_objects(MemoryStorage())
    improver = ReportingImprover(storage)
    search(storage, "s")

    with running(Worker(improver, storage, interval_seconds=10_000, wake_on_click=False)):
        assert improver.next_report().users == 0
        click(storage, "s")

        with pytest.raises(queue.Empty):
            improver.next_report(timeout_seconds=0.3)


def test_an_order_that_failed_is_tried_again_when_it_is_due_without_any_click():
    storage = with_objects(MemoryStorage())
    search(storage, "s")
    click(storage, "s")
    failures = iter([OSError("disk")])

    def adjuster(index):
        for failure in failures:
            raise failure
        return PassiveAggressiveAdjuster(index)

    improver = ReportingImprover(storage, adjuster)

    with running(Worker(improver, storage, interval_seconds=10_000)):
        assert improver.next_report().failed == {"s": "OSError: disk"}

        assert improver.next_learnt().learnt == 1


def test_a_worker_outlives_a_storage_that_is_away(caplog):
    storage = with_objects(MemoryStorage())
    search(storage, "s")
    click(storage, "s")
    improver = ReportingImprover(storage)
    outages = iter(["restarting", "still restarting"])

    def fail_twice() -> None:
        for outage in outages:
            raise StorageUnavailableError(outage)

    improver.before = fail_twice

    with running(Worker(improver, storage)):
        assert improver.next_report().learnt == 1

    assert [message for message in caplog.messages if "learning failed" in message] == [
        "learning failed, trying again in 0.5 s: restarting",
        "learning failed, trying again in 1.0 s: still restarting",
    ]


def test_a_worker_that_is_told_to_stop_finishes_the_batch_in_hand_and_begins_no_other():
    storage = with_objects(MemoryStorage())
    for i in range(3):
        search(storage, f"s{i}", f"user {i}")
        click(storage, f"s{i}")
    in_hand, may_go_on = threading.Event(), threading.Event()

    def adjuster(index):
        in_hand.set()
        assert may_go_on.wait(LONG)
        return PassiveAggressiveAdjuster(index)

    with running(Worker(ReportingImprover(storage, adjuster), storage, users_per_batch=1)) as stop:
        assert in_hand.wait(LONG)
        stop.set()
        may_go_on.set()

    counts = storage.orders.counts()
    assert (counts[DONE], counts[SessionForImprovementStatus.PENDING]) == (1, 2)


def test_several_workers_share_the_work_and_do_nothing_twice(shop):
    for i in range(30):
        search(shop, f"s{i}", f"user {i}")
        click(shop, f"s{i}")
    improvers = [ReportingImprover(shop) for _ in range(3)]

    with (
        running(Worker(improvers[0], shop, users_per_batch=2)),
        running(Worker(improvers[1], shop, users_per_batch=2)),
        running(Worker(improvers[2], shop, users_per_batch=2)),
    ):
        for improver in improvers:
            while improver.next_report().users:
                pass

    assert shop.orders.counts()[DONE] == 30
    assert {order.attempts for order in shop.orders.list(limit=100)} == {1}
