"""How fast a log is imported, from a file and over HTTP, and what it costs.

    python benchmarks/import_log.py [--quick] [--json OUT]

Logs of our own NDJSON and of OpenSearch UBI, of searches that show 10 objects and have 1, 3 or 10 events, of
which each third is a click, from the first on; there are 2,000 users and 5,000 objects. PostgreSQL is the
embedded one, with its durable settings. Over HTTP a process of its own sends 100 events or sessions a
request, as one client or four. Python's CPU time is that of the process that imports or serves, PostgreSQL's
that of all its processes (Linux alone). On a machine that does nothing else, a file takes about as long as
the larger of the two.
"""

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import uvicorn
from rich.console import Console
from rich.table import Table

from embedding_studio import Context, SearchIndexInfo, load_settings
from embedding_studio.api.app import create_app
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.importing import LANES, Importer, collect_rarely
from embedding_studio.logs import flat, open_log
from embedding_studio.storage.embedded.server import EmbeddedServer

SHOWN = 10
EVENTS_A_SEARCH = (1, 3, 10)
USERS = 2_000
OBJECTS = 5_000
A_REQUEST = 100
CLIENTS = (1, 4)
FIRST_SECOND = 1_760_000_000

Row = dict[str, Any]


def searches(events: int, a_search: int, name: str) -> Iterator[tuple[Row, list[Row]]]:
    """Yield searches, each with its events, in our own words."""
    for number in range(events // a_search):
        at = FIRST_SECOND + number
        shown = [f"o{(number * 7 + slot) % OBJECTS}" for slot in range(SHOWN)]
        session = {
            "session_id": f"{name}-{number}",
            "user_id": f"u{number % USERS}",
            "query": f"query {number % 700}",
            "timestamp": at,
        }
        yield (
            session | {"results": shown},
            [
                {
                    "object_id": shown[slot],
                    "event_type": "view" if slot % 3 else "click",
                    "t": at + 5 + slot,
                    "event_id": f"{name}-{number}-{slot}",
                }
                for slot in range(a_search)
            ],
        )


def as_own(search: Row, events: list[Row]) -> Iterator[Row]:
    yield search | {"clicks": events}


def as_ubi(search: Row, events: list[Row]) -> Iterator[Row]:
    ids = {"query_id": search["session_id"], "client_id": search["user_id"]}
    yield ids | {
        "user_query": search["query"],
        "timestamp": search["timestamp"] * 1_000,
        "query_response_hit_ids": search["results"],
    }
    for slot, each in enumerate(events, start=1):
        about = {"object": {"object_id": each["object_id"]}, "position": {"ordinal": slot}}
        event = {"action_name": each["event_type"], "timestamp": each["t"] * 1_000}
        yield ids | event | {"event_attributes": about}


DIALECTS: dict[str, Callable[[Row, list[Row]], Iterator[Row]]] = {"own": as_own, "ubi": as_ubi}


def postgres_seconds(data_dir: Path) -> float:
    """Return the CPU time of a server's processes, also of those that ended; 0 where nothing tells it."""
    ticks = 0
    with suppress(OSError, StopIteration):
        first = next(data_dir.rglob("postmaster.pid")).read_text().split()[0]
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if first in (process.name, fields[1]):
                    ticks += sum(map(int, fields[11 : 15 if process.name == first else 13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def send(url: str, route: str, bodies: list[bytes], clients: int) -> float:
    """Send bodies from several clients at once; return how many seconds it took."""

    def send_some(client: int) -> None:
        with httpx.Client(base_url=url, timeout=60, headers={"content-type": "application/json"}) as http:
            for body in bodies[client::clients]:
                http.post(route, content=body).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send_some, range(clients)))
    return time.perf_counter() - started


@contextmanager
def serving(context: Context) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(context), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Figures:
    """What was measured, a row each."""

    def __init__(self, data_dir: Path) -> None:
        self.rows: list[Row] = []
        self._data_dir = data_dir

    def measure(self, what: str, events: int, work: Callable[[], float | None]) -> None:
        """Add how long some work took: the seconds that it returns, or else those that pass."""
        python, postgres, started = time.process_time(), postgres_seconds(self._data_dir), time.perf_counter()
        told = work()
        took = time.perf_counter() - started if told is None else told
        python, postgres = time.process_time() - python, postgres_seconds(self._data_dir) - postgres
        self.rows.append(
            {
                "what": what,
                "events": events,
                "seconds": round(took, 2),
                "events/s": round(events / took),
                "Python CPU s": round(python, 2),
                "PostgreSQL CPU s": round(postgres, 2),
            }
        )


def measure_files(context: Context, folder: Path, events: int, figures: Figures) -> None:
    collection = context.storage.collections.get("default")
    for dialect, rows_of in DIALECTS.items():
        for a_search in EVENTS_A_SEARCH:
            path = folder / f"{dialect}-{a_search}.ndjson"
            told = searches(events, a_search, path.stem)
            path.write_bytes(
                b"\n".join(orjson.dumps(row) for search, done in told for row in rows_of(search, done))
            )
            number = events // a_search * a_search
            name = f"{dialect}, {a_search} events a search"

            def read(path: Path = path, dialect: str = dialect) -> Any:
                return open_log(str(path), dialect=dialect, columns=flat.mapping(None)).entries

            def read_alone() -> None:
                for _ in read():
                    pass

            def store(number: int = number) -> None:
                report = Importer(context.storage, collection, lanes=LANES).run(read())
                assert sum(report.events.values()) == number, report

            figures.measure(f"read alone, {name}", number, read_alone)
            figures.measure(f"stored, {name}", number, store)
            if a_search == EVENTS_A_SEARCH[1]:
                figures.measure(f"stored again, {name}", number, store)


def measure_http(context: Context, events: int, figures: Figures) -> None:
    now = int(time.time() * 1_000)
    with serving(context) as url, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        def post(route: str, what: str, bodies: list[Any], number: int, clients: int) -> None:
            sent = [orjson.dumps(each) for each in bodies]
            figures.measure(
                f"POST {route}, {what}, {clients} client{'s' * (clients > 1)}",
                number,
                lambda: pool.submit(send, url, route, sent, clients).result(),
            )

        pool.submit(send, url, "/", [], 1).result()  # a process takes a while to start
        for clients in CLIENTS:
            sessions = [
                {
                    "session_id": search["session_id"],
                    "user_id": search["user_id"],
                    "search_query": search["query"],
                    "created_at": search["timestamp"],
                    "search_results": [{"object_id": each} for each in search["results"]],
                    "events": [
                        {"created_at" if k == "t" else k: v for k, v in each.items()} for each in done
                    ],
                }
                for search, done in searches(events, 3, f"http{clients}")
            ]
            pushed = [
                {**event, "session_id": each["session_id"], "event_id": f"again-{event['event_id']}"}
                for each in sessions
                for event in each["events"]
            ]
            algolia = [
                {
                    "eventName": "Clicked",
                    "eventType": "view" if each["event_type"] == "view" else "click",
                    "index": "default",
                    "userToken": "someone",
                    "queryID": each["session_id"],
                    "objectIDs": [each["object_id"]],
                    "timestamp": now,
                }
                for each in pushed
            ]
            for route, key, what, sent in (
                ("/api/v1/clickstream/sessions", "sessions", "100 sessions of 3 events", sessions),
                ("/api/v1/clickstream/events", "events", "100 events", pushed),
                ("/1/events", "events", "100 events", algolia),
            ):
                bodies = [{key: sent[n : n + A_REQUEST]} for n in range(0, len(sent), A_REQUEST)]
                post(route, what, bodies, len(pushed), clients)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="6,000 events of each log, not 60,000")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    events = 6_000 if arguments.quick else 60_000
    with tempfile.TemporaryDirectory(prefix="embedding-studio-import-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root the server runs as somebody else, who must get in
        data_dir = folder / "data"
        data_dir.mkdir(mode=0o755)
        settings = {"embedder": "none"}
        with EmbeddedServer(data_dir) as url, Context(load_settings(database_url=url, **settings)) as context:
            collection = context.storage.collections.create("default", SearchIndexInfo(dimensions=8))
            vectors = np.random.default_rng(7).standard_normal((OBJECTS, 1, 8)).astype(np.float32)
            context.storage.objects.upsert(
                collection, [CatalogueObject(f"o{n}", each) for n, each in enumerate(vectors)]
            )
            figures = Figures(data_dir)
            usual = gc.get_threshold()
            collect_rarely()
            measure_files(context, folder, events, figures)
            gc.set_threshold(*usual)  # as in the service
            measure_http(context, events, figures)
    table = Table(*figures.rows[0], title=f"Import, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for each in figures.rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int | float) else value for value in each.values()))
    Console(width=120).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures.rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
