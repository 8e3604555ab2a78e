"""The queue of users: what a claim costs, and that nothing stops learning.

    python benchmarks/queue_of_users.py [--quick] [--json OUT]

Claims behind one user with 5,000 sessions, re-learning all, orders that are counted and placed behind many
done ones, a flood of events by one user, clicks while a large catalogue is loaded, and workers that are
killed again and again.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from rich.console import Console
from rich.table import Table

from embedding_studio import Context, SearchIndexInfo, SessionEvent, load_settings
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import (
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.storage.embedded.server import EmbeddedServer

D = 384
SESSIONS = """
INSERT INTO embedding_studio.sessions (session_id, user_id, search_query, collection, created_at)
SELECT format('%%s %%s', %(name)s || number, session), %(name)s || number, 'q', 'default', 100 + session
FROM generate_series(1, %(users)s) AS number, generate_series(1, %(sessions)s) AS session
"""
ORDERS = """
INSERT INTO embedding_studio.sessions_for_improvement
    (session_id, user_id, collection, created_at, updated_at)
SELECT session_id, user_id, collection, 1, 1
FROM embedding_studio.sessions
WHERE starts_with(user_id, %(name)s)
"""
MARKS = """
INSERT INTO embedding_studio.queue (collection, user_id, since)
SELECT DISTINCT collection, user_id, %(since)s
FROM embedding_studio.sessions
WHERE starts_with(user_id, %(name)s)
"""


class Bench:
    def __init__(self, url: str) -> None:
        self.context = Context(load_settings(embedder="none", database_url=url))
        self.connection = psycopg.connect(url, autocommit=True)
        self.url = url
        self.figures: dict[str, Any] = {}
        self.rng = np.random.default_rng(7)
        index = SearchIndexInfo(dimensions=D)
        self.collection = self.context.storage.collections.create("default", index)

    def tell(self, what: str, figure: float | str) -> None:
        self.figures[what] = round(figure, 3) if isinstance(figure, float) else figure
        print(f"{what}: {self.figures[what]}", flush=True)

    def users(self, name: str, users: int, sessions: int = 1) -> None:
        given = {"name": name, "users": users, "sessions": sessions}
        self.connection.execute(SESSIONS, given)
        self.connection.execute(ORDERS, given)
        self.connection.execute("ANALYZE")

    def mark(self, name: str, since: float) -> None:
        self.connection.execute(MARKS, {"name": name, "since": since})

    def vectors(self, count: int) -> np.ndarray:
        drawn = self.rng.standard_normal((count, D)).astype(np.float32)
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))

    def load(self, prefix: str, count: int) -> None:
        objects = [CatalogueObject(f"{prefix}{n}", v[None]) for n, v in enumerate(self.vectors(count))]
        self.context.storage.objects.upsert(self.collection, objects)

    def search(self, user_id: str) -> tuple[str, str]:
        """Return a session that was recorded, and the third result of it."""
        page = self.context.search.search(self.vectors(1)[0], user_id=user_id, limit=10, create_session=True)
        assert page.session_id is not None
        return page.session_id, page.results[2].object_id

    def click(self, session_id: str, object_id: str) -> None:
        event = SessionEvent(session_id=session_id, object_id=object_id)
        self.context.storage.clickstream.push_events([event])

    def is_learnt(self, session_id: str) -> bool:
        return self.context.storage.orders.get(session_id).status is SessionForImprovementStatus.DONE


def milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def measure_claims(bench: Bench, rounds: int, everyone: int) -> None:
    queue = bench.context.storage.queue
    bench.users("few ", 100)
    bench.users("big ", 1, 5_000)

    def claim(*, behind: bool) -> float:
        bench.connection.execute("DELETE FROM embedding_studio.queue")
        if behind:
            bench.mark("big ", 0)
        bench.mark("few ", 1)
        return milliseconds(lambda: queue.claim(users=101, lease_seconds=60))

    alone, behind = [], []
    for _ in range(rounds):
        alone.append(claim(behind=False))
        behind.append(claim(behind=True))
    bench.tell("claiming 100 users, ms", statistics.median(alone))
    bench.tell("the same behind one with 5,000 sessions, ms", statistics.median(behind))
    bench.tell("ratio (aim: <= 2)", statistics.median(behind) / statistics.median(alone))
    bench.users("every ", everyone)
    collections = bench.context.storage.collections
    took = milliseconds(lambda: collections.order_for_everyone("default"))
    bench.tell(f"re-learning all, {everyone:,} users, one statement, s", took / 1000)
    bench.tell("claiming 100 of them, ms", milliseconds(lambda: queue.claim(users=100, lease_seconds=60)))
    bench.connection.execute("TRUNCATE embedding_studio.sessions, embedding_studio.queue CASCADE")


def measure_counts(bench: Bench, many: int) -> None:
    orders = bench.context.storage.orders
    for done in (10, many):
        bench.users(f"done {done} ", done)
        bench.connection.execute("UPDATE embedding_studio.sessions_for_improvement SET status = 'done'")
        bench.users("placing ", 101)
        counted = [milliseconds(orders.counts) for _ in range(21)]
        sessions = [SessionForImprovementCreateSchema(session_id=f"placing {n} 1") for n in range(1, 102)]
        placed = [milliseconds(partial(orders.create, each)) for each in sessions]
        bench.tell(f"counting orders behind {done:,} done ones, ms", statistics.median(counted))
        bench.tell(f"placing one behind {done:,} done ones, ms", statistics.median(placed))
        bench.connection.execute("TRUNCATE embedding_studio.sessions, embedding_studio.queue CASCADE")


def measure_flood(bench: Bench, events: int) -> None:
    """One user sends many events, in 250 sessions; then clicks once more."""
    bench.load("o", 2_000)
    shown = [bench.search("flood") for _ in range(250)]
    storage, improver = bench.context.storage, bench.context.improver()
    for start in range(0, events, 1_000):
        batch = [
            SessionEvent(
                session_id=shown[n % 250][0], object_id=shown[n % 250][1], event_type="view", event_id=f"e{n}"
            )
            for n in range(start, min(start + 1_000, events))
        ]
        storage.clickstream.push_events(batch)
    bench.click(*shown[-1])
    took = milliseconds(improver.improve_once) / 1000
    bench.tell(f"next fold of a user with {events:,} events, s (aim: <= 0.5)", took)
    assert bench.is_learnt(shown[-1][0])


def worker(url: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DATABASE_URL": url, "EMBEDDER": "none", "LEASE_SECONDS": "5"}
    command = [str(Path(sys.executable).with_name("embedding-studio")), "worker"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure_clicks_while_loading(bench: Bench, count: int) -> None:
    waits = []
    learning = worker(bench.url)
    try:
        warm = bench.search("warm")
        bench.click(*warm)
        while not bench.is_learnt(warm[0]):
            time.sleep(0.05)
        loading = threading.Thread(target=lambda: bench.load("load", count))
        sessions = [bench.search(f"clicker {n}") for n in range(200)]
        started = time.monotonic()
        loading.start()
        while loading.is_alive() and len(waits) < len(sessions):
            session_id, object_id = sessions[len(waits)]
            clicked = time.monotonic()
            bench.click(session_id, object_id)
            while not bench.is_learnt(session_id):
                time.sleep(0.002)
            waits.append(time.monotonic() - clicked)
        loading.join()
        bench.tell(f"loading {count:,} objects in one call meanwhile, s", time.monotonic() - started)
    finally:
        learning.terminate()
        learning.wait()
    bench.tell("clicks made meanwhile", len(waits))
    bench.tell("from click to learnt, p50, s", statistics.median(waits))
    bench.tell("the longest, s (aim: <= 1)", max(waits))


def measure_kills(bench: Bench, kills: int, seconds: float) -> None:
    """Workers are killed with -9 while clicks come in; no order may end as failed, none may be lost."""
    rng = random.Random(7)
    workers = [worker(bench.url) for _ in range(2)]
    sessions: list[str] = []
    ends = time.monotonic() + seconds
    is_over = threading.Event()

    def click() -> None:
        while not is_over.is_set():
            session_id, object_id = bench.search(f"user {rng.randrange(40)}")
            bench.click(session_id, object_id)
            sessions.append(session_id)
            time.sleep(0.02)

    clicking = threading.Thread(target=click)
    clicking.start()
    for kill in range(kills):
        time.sleep(max(0.0, (ends - time.monotonic()) / (kills - kill)))
        n = rng.randrange(2)
        workers[n].send_signal(signal.SIGKILL)
        workers[n].wait()
        workers[n] = worker(bench.url)
    is_over.set()
    clicking.join()
    limit = time.monotonic() + 120
    status = SessionForImprovementStatus
    while time.monotonic() < limit:
        counts = bench.context.storage.orders.counts()
        if not counts[status.PENDING] + counts[status.PROCESSING]:
            break
        time.sleep(0.2)
    for each in workers:
        each.terminate()
        each.wait()
    statuses = [bench.context.storage.orders.get(session_id).status for session_id in sessions]
    bench.tell(f"orders placed while workers were killed {kills} times", len(sessions))
    bench.tell("of these failed (aim: 0)", sum(status == "failed" for status in statuses))
    bench.tell("not learnt after all (aim: 0)", sum(status != "done" for status in statuses))


def main() -> None:
    parser = argparse.ArgumentParser(description="The queue of users.")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that all runs")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    given = parser.parse_args()
    share = 0.1 if given.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        bench = Bench(server.start())
        try:
            measure_claims(bench, rounds=5 if given.quick else 21, everyone=int(100_000 * share))
            measure_counts(bench, int(300_000 * share))
            measure_flood(bench, int(100_000 * share))
            measure_clicks_while_loading(bench, int(20_000 * share))
            measure_kills(bench, max(3, int(30 * share)), 480 * share)
        finally:
            bench.connection.close()
            bench.context.close()
            server.stop()
    table = Table("what", "figure", title="The queue of users")
    for what, figure in bench.figures.items():
        table.add_row(what, str(figure))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(bench.figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
