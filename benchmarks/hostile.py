"""What one hostile caller costs all others: how long `/healthz` takes meanwhile, and how memory grows.

.venv/bin/python benchmarks/hostile.py [attack ...]    (about a minute; with a service of its own)
"""

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

import httpx

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


ATTACKS: dict[str, Callable[[str], str]] = {"F1": f1, "F2": f2, "F3": f3, "F5": f5}


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


def main() -> None:
    wanted = sys.argv[1:] or list(ATTACKS)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        process, url = serve(f"{folder}/data")
        try:
            index = {"name": "default", "index": {"dimensions": 8}}
            httpx.post(f"{url}/api/v1/collections", json=index, timeout=60).raise_for_status()
            items = [
                {"object_id": str(n), "vectors": [[0.1 + n] * 8], "payload": {"title": f"red {n}"}}
                for n in range(2_000)
            ]
            httpx.post(f"{url}/api/v1/embeddings/upsert", json={"items": items}, timeout=120)
            print("| attack | longest /healthz, ms | memory, MB | |\n|---|---|---|---|")
            for name in wanted:
                longest, grown, told = measure(ATTACKS[name], url, process.pid)
                print(f"| {name} | {longest:.0f} | {grown:+.0f} | {told} |", flush=True)
        finally:
            process.terminate()
            process.wait(timeout=60)


if __name__ == "__main__":
    main()
