"""What one hostile caller costs all others: how long `/healthz` takes meanwhile, and how memory grows.

.venv/bin/python benchmarks/hostile.py [attack ...]           (about a minute; with a service of its own)
.venv/bin/python benchmarks/hostile.py --loop [attack ...]    (how long the event loop stands still)
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson

from embedding_studio import Context, load_settings
from embedding_studio.api.app import create_app
from embedding_studio.api.connections import server
from embedding_studio.cli.learning import settle

JSON = {"content-type": "application/json"}
SEARCH = "/api/v1/embeddings/similarity-search"
EVENTS = "/api/v1/clickstream/session/events"
VECTOR = [0.1] * 8


def f1(url: str) -> str:
    body = '{"session_id":"s","events":[' + ",".join(["1"] * 900_000) + "]}"
    with httpx.Client(base_url=url, timeout=120) as client:
        return str(client.post(EVENTS, content=body, headers=JSON).status_code)


def f2(url: str) -> str:
    words = "title number red shoe " * 5_000
    asked = {"search_query": VECTOR, "limit": 1}
    asked["filter"] = {"query": {"match": {"field": "title", "value": words}}}

    def ask() -> None:
        with suppress(httpx.TimeoutException), httpx.Client(base_url=url, timeout=1) as client:
            client.post(SEARCH, json=asked)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began = time.perf_counter()
    with httpx.Client(base_url=url, timeout=120) as client:
        plain = client.post(SEARCH, json={"search_query": VECTOR, "limit": 1})
    return f"a plain search after: {plain.status_code} in {time.perf_counter() - began:.2f} s"


def f3(url: str) -> str:
    asked = {"search_query": VECTOR, "limit": 1, "sort_by": {"field": ".".join("a" * 50_000)}}
    with httpx.Client(base_url=url, timeout=120) as client:
        return str(client.post(SEARCH, json=asked).status_code)


def f5(url: str) -> str:
    at = httpx.URL(url)
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1900000\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(150):
            raw = stack.enter_context(socket.create_connection((at.host, at.port or 80)))
            with suppress(OSError):  # closed to make room for the next
                raw.sendall(head + b"a" * 100_000)
        time.sleep(5)
    return "150 half-sent requests at 128 open files"


def large(path: str, make: Callable[[], dict[str, Any]]) -> Callable[[str], str]:
    """Return an attack by valid bodies that are as large as they may be, or nearly, one after another."""

    def attack(url: str) -> str:
        body = orjson.dumps(make())
        with httpx.Client(base_url=url, timeout=120) as client:
            statuses = {client.post(path, content=body, headers=JSON).status_code for _ in range(TIMES)}
        return f"{statuses} {len(body) / 1e6:.2f} MB, {TIMES} times"

    return attack


def sessions() -> dict[str, Any]:
    shown = [{"object_id": f"{n}"} for n in range(1_000)]
    recorded = [{"session_id": f"{time.time()} {n}", "search_results": shown} for n in range(100)]
    return {"sessions": recorded}


def objects() -> dict[str, Any]:
    vector = [0.123456] * 8
    items = [
        {"object_id": f"{n}", "vectors": [vector], "payload": {"title": f"red {n}"}} for n in range(14_000)
    ]
    return {"items": items}


def parts() -> dict[str, Any]:
    return {"items": [{"object_id": "many parts", "vectors": [[0.123456] * 8] * 24_000}]}


def payload() -> dict[str, Any]:
    return {
        "items": [
            {
                "object_id": "large payload",
                "vectors": VECTOR,
                "payload": {"a": [[n, 0.125] for n in range(120_000)]},
            }
        ]
    }


def deep_filter() -> dict[str, Any]:
    term: dict[str, Any] = {"term": {"field": ".".join("a" * 16), "value": "x" * 1_024}}
    for _ in range(20):
        term = {"must": [term]}
    return {"search_query": VECTOR, "limit": 1, "filter": {"query": term}}


def wide_filter() -> dict[str, Any]:
    terms = [{"term": {"field": f"f{n}", "value": "x" * 1_024}} for n in range(200)]
    return {"search_query": VECTOR, "limit": 1_000, "filter": {"query": {"should": terms}}}


def events() -> dict[str, Any]:
    clicked = [{"object_id": f"{n}", "event_id": f"{time.time()} {n}"} for n in range(1_000)]
    return {"session_id": "1", "events": clicked}


def deleted() -> dict[str, Any]:
    return {"object_ids": [f"absent {n}" for n in range(100_000)]}


def whole_page() -> dict[str, Any]:
    return {"search_query": VECTOR, "limit": 1_000, "create_session": True, "user_id": "ann"}


TIMES = 5
UPSERT = "/api/v1/embeddings/upsert"
SESSIONS = "/api/v1/clickstream/sessions"


def nothing(_: str) -> str:
    time.sleep(3)
    return ""


ATTACKS: dict[str, Callable[[str], str]] = {"F1": f1, "F2": f2, "F3": f3, "F5": f5}
LARGE = {
    "nothing": nothing,
    **ATTACKS,
    "100 sessions of 1,000 results": large(SESSIONS, sessions),
    "14,000 objects": large(UPSERT, objects),
    "24,000 parts of one": large(UPSERT, parts),
    "a payload of 120,000 lists": large(UPSERT, payload),
    "the deepest filter": large(SEARCH, deep_filter),
    "the widest filter": large(SEARCH, wide_filter),
    "1,000 events": large(EVENTS, events),
    "100,000 ids to delete": large("/api/v1/embeddings/delete", deleted),
    "a page of 1,000": large(SEARCH, whole_page),
}


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(attack: Callable[[str], str], url: str, pid: int) -> tuple[float, float, str]:
    """Return the longest wait for `/healthz` in ms, the growth of memory in MB, and what the attack tells."""
    before = peak = resident_mb(pid)
    told: list[str] = []
    attacking = threading.Thread(target=lambda: told.append(attack(url)))
    attacking.start()
    longest = 0.0
    with httpx.Client(timeout=120, verify=False) as client:  # noqa: S501, there is no TLS
        while attacking.is_alive():
            asked = time.perf_counter()
            with suppress(httpx.RemoteProtocolError):  # an idle connection, closed to make room
                client.get(f"{url}/healthz", headers={"Connection": "close"})
            longest = max(longest, time.perf_counter() - asked)
            peak = max(peak, resident_mb(pid))
            time.sleep(0.02)
    attacking.join()
    return longest * 1000, peak - before, told[0]


def serve(folder: str) -> tuple[subprocess.Popen[str], str]:
    environment = os.environ | {"DATA_DIR": folder, "EMBEDDER": "none", "PORT": "0"}
    binary = Path(sys.executable).with_name("embedding-studio")
    command = f"ulimit -n 128; exec {binary} serve --no-worker"
    process = subprocess.Popen(
        ["/bin/bash", "-c", command], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "serves on" in line:
            url = line.split("serves on ")[1].split()[0]
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, url
    raise SystemExit("the service did not start")


class Probe:
    """Asks the event loop for its attention again and again, and notes how long that took.

    Attributes:
        lags: of each time, the seconds on the clock beyond those that were slept, and the seconds of this
            process's processors in that time: a lag with fewer is due to what else the machine does.
    """

    def __init__(self) -> None:
        self.lags: list[tuple[float, float]] = []

    async def run(self) -> None:
        while True:
            began, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(SLEPT)
            self.lags.append((time.perf_counter() - began - SLEPT, time.process_time() - used))

    def longest(self) -> float:
        """Return the longest for which the loop stood still for something of this process, in ms."""
        return 1000 * max((min(lag, used) for lag, used in self.lags), default=0.0)


SLEPT = 0.005


async def probe_loop(wanted: list[str], folder: str) -> None:
    """Serve in this process, attacked by others, with a probe in the loop."""
    probe = Probe()
    with Context(load_settings(embedder="none", data_dir=Path(folder))) as context:
        serving = server(create_app(context), context.settings)
        settle()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            tasks = [asyncio.create_task(serving.serve([listening]))]
            await asyncio.to_thread(fill, url)
            tasks.append(asyncio.create_task(probe.run()))
            print("| attack | the loop stood still, ms | on the clock, ms | |\n|---|---|---|---|")
            for name in wanted:
                probe.lags.clear()
                attacker = await asyncio.create_subprocess_exec(
                    sys.executable, __file__, "--attack", name, url, stdout=asyncio.subprocess.PIPE
                )
                told, _ = await attacker.communicate()
                clock = 1000 * max(lag for lag, _ in probe.lags)
                print(
                    f"| {name} | {probe.longest():.0f} | {clock:.0f} | {told.decode().strip()} |", flush=True
                )
            serving.should_exit = True
            await tasks[0]


def fill(url: str) -> None:
    index = {"name": "default", "index": {"dimensions": 8}}
    httpx.post(f"{url}/api/v1/collections", json=index, timeout=60).raise_for_status()
    items = [
        {"object_id": str(n), "vectors": [[0.1 + n] * 8], "payload": {"title": f"red {n}"}}
        for n in range(2_000)
    ]
    httpx.post(f"{url}/api/v1/embeddings/upsert", json={"items": items}, timeout=120).raise_for_status()


def main() -> None:
    if sys.argv[1:2] == ["--attack"]:
        print(LARGE[sys.argv[2]](sys.argv[3]))
        return
    if sys.argv[1:2] == ["--loop"]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            asyncio.run(probe_loop(sys.argv[2:] or list(LARGE), f"{folder}/data"))
        return
    wanted = sys.argv[1:] or list(ATTACKS)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        process, url = serve(f"{folder}/data")
        try:
            fill(url)
            print("| attack | longest /healthz, ms | memory, MB | |\n|---|---|---|---|")
            for name in wanted:
                longest, grown, told = measure(ATTACKS[name], url, process.pid)
                print(f"| {name} | {longest:.0f} | {grown:+.0f} | {told} |", flush=True)
        finally:
            process.terminate()
            process.wait(timeout=60)


if __name__ == "__main__":
    main()
