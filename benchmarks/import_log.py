"""How fast a log is imported: reading alone, storing it, and storing it again; and events over HTTP.

    python benchmarks/import_log.py [--quick] [--json OUT]

The log is OpenSearch UBI's: each search shows 10 objects and has 5 events, of which one is a click; there are
2,000 users and 5,000 objects. PostgreSQL is the embedded one, with its durable settings.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from embedding_studio.importing import Importer
from embedding_studio.logs import flat, open_log
from embedding_studio.storage.embedded.server import EmbeddedServer

SHOWN = 10
EVENTS = ("view", "view", "click", "view", "view")
USERS = 2_000
OBJECTS = 5_000
EVENTS_A_REQUEST = 100


def write_log(path: Path, searches: int, *, shown: int) -> None:
    """Write searches, each with its events after it."""
    with path.open("wb") as file:
        for number in range(searches):
            at = 1_760_000_000_000 + number * 1_000
            ids = {"query_id": f"q{shown}-{number}", "client_id": f"u{number % USERS}"}
            hits = [f"o{(number * 7 + slot) % OBJECTS}" for slot in range(SHOWN)]
            query = {"user_query": f"query {number % 700}", "timestamp": at}
            file.write(orjson.dumps(ids | query | {"query_response_hit_ids": hits[:shown]}) + b"\n")
            for slot, action in enumerate(EVENTS):
                about = {"object": {"object_id": hits[slot]}, "position": {"ordinal": slot + 1}}
                event = {"action_name": action, "timestamp": at + 5_000 + slot * 1_000}
                file.write(orjson.dumps(ids | event | {"event_attributes": about}) + b"\n")


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def serving(context: Context) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(create_app(context), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def measure(context: Context, folder: Path, searches: int) -> list[dict[str, Any]]:
    storage = context.storage
    collection = storage.collections.create("default", SearchIndexInfo(dimensions=8))
    vectors = np.random.default_rng(7).standard_normal((OBJECTS, 1, 8)).astype(np.float32)
    storage.objects.upsert(collection, [CatalogueObject(f"o{n}", each) for n, each in enumerate(vectors)])
    figures: list[dict[str, Any]] = []

    def tell(what: str, events: int, took: float) -> None:
        figures.append(
            {"what": what, "events": events, "seconds": round(took, 2), "events/s": round(events / took)}
        )

    def entries(path: Path) -> Any:
        return open_log(str(path), columns=flat.mapping(None)).entries

    for shown in (0, SHOWN):
        path = folder / f"{shown}.ndjson"
        write_log(path, searches, shown=shown)
        events = searches * len(EVENTS)
        name = f"{shown} results a search" if shown else "results not logged"
        tell(f"read alone, {name}", events, seconds(lambda path=path: sum(1 for _ in entries(path))))
        for again in ("stored", "stored again"):
            importer = Importer(storage, collection)
            took = seconds(lambda path=path, importer=importer: importer.run(entries(path)))
            assert sum(importer.report.events.values()) == events, importer.report
            tell(f"{again}, {name}", events, took)
    rows = [json.loads(line) for line in (folder / "0.ndjson").open()]
    pushed = [
        {
            "session_id": row["query_id"],
            "object_id": row["event_attributes"]["object"]["object_id"],
            "event_id": f"h{n}",
            "event_type": row["action_name"],
            "created_at": row["timestamp"] // 1_000,
        }
        for n, row in enumerate(rows)
        if "action_name" in row
    ]
    bodies = [{"events": pushed[n : n + EVENTS_A_REQUEST]} for n in range(0, len(pushed), EVENTS_A_REQUEST)]
    now = int(time.time() * 1_000)
    algolia = [
        {
            "events": [
                {
                    "eventName": "Clicked",
                    "eventType": "view" if each["event_type"] == "view" else "click",
                    "index": "default",
                    "userToken": "someone",
                    "queryID": each["session_id"],
                    "objectIDs": [each["object_id"]],
                    "timestamp": now,
                }
                for each in body["events"]
            ]
        }
        for body in bodies
    ]
    with serving(context) as client:
        for route, sent in (("/api/v1/clickstream/events", bodies), ("/1/events", algolia)):
            took = seconds(
                lambda route=route, sent=sent: [
                    client.post(route, json=each).raise_for_status() for each in sent
                ]
            )
            tell(f"POST {route}, {EVENTS_A_REQUEST} events each, one client", len(pushed), took)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the log")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    searches = 2_000 if arguments.quick else 20_000
    with tempfile.TemporaryDirectory(prefix="embedding-studio-import-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root the server runs as somebody else, who must get in
        data_dir = folder / "data"
        data_dir.mkdir(mode=0o755)
        settings = {"embedder": "none"}
        with EmbeddedServer(data_dir) as url, Context(load_settings(database_url=url, **settings)) as context:
            figures = measure(context, folder, searches)
    table = Table(*figures[0], title=f"Import, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for each in figures:
        table.add_row(*(f"{value:,}" if isinstance(value, int | float) else value for value in each.values()))
    Console(width=110).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
