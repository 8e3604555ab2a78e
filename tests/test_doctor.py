"""What the doctor says of keys, clock, disk and queue; test_recall has what it says of collections."""

import math
import threading
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from embedding_studio import (
    CatalogueObject,
    Context,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.doctor import A_WORKER, examine
from embedding_studio.settings import load_settings
from embedding_studio.storage.ports import QueueInfo, Vitals
from embedding_studio.storage.postgres import PostgresStorage
from processes import eventually

LONG = "k" * 32


def found(storage, **settings):
    with Context(load_settings(embedder="none", **settings), storage=storage) as context:
        return {each.what: (each.grade, each.told) for each in examine(context)}


@pytest.mark.parametrize(
    ("settings", "grade", "said"),
    [
        ({}, "OK", "this machine only"),
        ({"host": "10.0.0.7"}, "WARN", "set it to listen on 10.0.0.7"),
        ({"admin_api_key": LONG}, "OK", "set: ADMIN_API_KEY"),
        ({"admin_api_key": LONG, "write_api_key": "w" * 31}, "WARN", "WRITE_API_KEY can be guessed"),
    ],
)
def test_keys_are_looked_at_and_never_told(memory, settings, grade, said):
    findings = found(memory, **settings)

    assert findings["keys"][0] == grade
    assert said in findings["keys"][1]
    assert LONG not in str(findings)


@pytest.mark.parametrize(("ahead", "grade"), [(1, "OK"), (60, "WARN"), (-60, "WARN")])
def test_a_database_whose_clock_is_another_is_told(memory, monkeypatch, ahead, grade):
    clock = memory.vitals().clock + ahead
    monkeypatch.setattr(memory.backend, "vitals", lambda: Vitals(clock, 0))

    found_grade, told = found(memory)["clock"]

    assert found_grade == grade
    assert ("ahead of" in told) == (ahead > 0)


@pytest.mark.parametrize(
    ("lag", "told"),
    [
        (None, None),
        (0.2, ("OK", "shows what was true 0.2 s ago")),
        (60, ("WARN", "shows what was true 60.0 s ago; the database searches for whom it misses something")),
        (math.inf, ("WARN", "does not answer, so the database searches")),
    ],
)
def test_a_replica_that_is_late_or_away_is_told(memory, monkeypatch, lag, told):
    monkeypatch.setattr(memory.backend, "vitals", lambda: Vitals(0, 0, replica_lag=lag))

    grade, said = found(memory).get("replica", (None, ""))

    assert (told is None) == (grade is None)
    assert told is None or (grade == told[0] and said.startswith(told[1]))


@pytest.mark.parametrize(("free", "grade"), [(2**40, "OK"), (2**29, "WARN"), (2**20, "FAIL")])
def test_a_disk_that_is_nearly_full_is_told_before_it_is_full(memory, monkeypatch, tmp_path, free, grade):
    (tmp_path / "postgres").mkdir()
    monkeypatch.setattr("embedding_studio.doctor.shutil.disk_usage", lambda _: SimpleNamespace(free=free))

    beside, elsewhere = (
        found(memory, data_dir=tmp_path)["disk"],
        found(memory, data_dir=tmp_path / "x")["disk"],
    )

    assert beside[0] == grade
    assert elsewhere[0] == "OK"


def test_a_queue_that_nobody_drains_is_told(memory, monkeypatch):
    empty = found(memory)["queue"]
    info = QueueInfo(waiting=3, held=1, oldest_seconds=61.0)
    monkeypatch.setattr(memory.queue, "info", lambda: info)
    late = found(memory)["queue"]

    assert empty == ("OK", "0 users wait to be learnt, 0 are in hand")
    assert late[0] == "WARN"
    assert late[1] == "3 users wait to be learnt, 1 is in hand, the first for 61 s"


@pytest.mark.parametrize(
    ("workers", "oldest", "finding"),
    [
        (0, 0.0, ("OK", f"none is seen just now; what is clicked waits for {A_WORKER}")),
        (0, 61.0, ("WARN", f"none is seen, and the first user waits for 61 s; run {A_WORKER}")),
        (1, 61.0, ("OK", "one is seen")),
        (3, 0.0, ("OK", "3 are seen")),
    ],
)
def test_whether_a_worker_runs_is_said(memory, monkeypatch, workers, oldest, finding):
    info = QueueInfo(waiting=0, held=0, oldest_seconds=oldest, workers=workers)
    monkeypatch.setattr(memory.queue, "info", lambda: info)

    findings = found(memory)

    assert findings["worker"] == finding
    assert ("more workers may run" in findings["queue"][1]) == (oldest > 60 and workers > 0)


def test_a_worker_of_a_real_database_is_seen_and_when_it_last_learnt(postgres_url):
    with (
        closing(PostgresStorage(postgres_url)) as storage,
        Context(load_settings(embedder="none", database_url=postgres_url)) as context,
    ):
        collection = storage.collections.create("default", SearchIndexInfo(dimensions=2))
        storage.objects.upsert(collection, [CatalogueObject("a", np.ones((1, 2), dtype=np.float32))])
        session = Session(session_id="s", user_id="ann", search_results=(SearchResultItem(object_id="a"),))
        storage.clickstream.register_session(session, np.ones((1, 2), dtype=np.float32))
        storage.clickstream.push_events([SessionEvent(session_id="s", object_id="a")])
        before = found(storage)["worker"][1]
        stop = threading.Event()
        worker = threading.Thread(target=context.worker().run, args=(stop,))
        worker.start()
        eventually(60, lambda: storage.queue.info() == QueueInfo(0, 0, 0.0, workers=1))
        during = found(storage)["worker"][1]
        stop.set()
        worker.join()

    assert before.startswith("none is seen just now")
    assert "the last session was learnt" not in before
    assert during.startswith("one is seen; the last session was learnt ")


def test_a_real_database_tells_its_clock_and_its_size(postgres_url):
    storage = PostgresStorage(postgres_url)
    try:
        findings = found(storage)
    finally:
        storage.close()

    assert findings["clock"][0] == "OK"
    assert findings["disk"][1].startswith("the database takes 0.0")
