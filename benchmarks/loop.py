"""The whole loop, measured: learning, the worker, click to effect, plain and personalised search.

    python benchmarks/loop.py [--quick] [--json OUT] [--markdown docs/how-fast.md]

Everything runs on this machine in one go, over the embedded PostgreSQL, with clustered unit vectors of
384 dimensions and ten results a session. Absolute numbers are this machine's; quote the ratios.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from adjusters import sessions_per_second
from embedding_studio import Context, SearchIndexInfo, SearchResultItem, Session, SessionEvent, load_settings
from embedding_studio.domain.objects import CatalogueObject

D = 384
SHOWN = 10
COLLECTION = "benchmark"


def clustered(rng: np.random.Generator, count: int, centres: int = 200) -> NDArray[np.float32]:
    """Return [count, D] unit vectors about as alike within a cluster as texts on one subject are."""
    middle = rng.standard_normal((centres, D))
    vectors = middle[rng.integers(centres, size=count)] + 0.8 * rng.standard_normal((count, D))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def fill(context: Context, vectors: NDArray[np.float32]) -> float:
    """Store the objects; return seconds."""
    collection = context.storage.collections.create(COLLECTION, SearchIndexInfo(dimensions=D))
    objects = [CatalogueObject(f"o{n}", vector[None], {"number": n}) for n, vector in enumerate(vectors)]
    started = time.perf_counter()
    for start in range(0, len(objects), 1000):
        context.storage.objects.upsert(collection, objects[start : start + 1000])
    return time.perf_counter() - started


def near(rng: np.random.Generator, vector: NDArray[np.float32], noise: float = 0.3) -> NDArray[np.float32]:
    direction = rng.standard_normal(D)
    query = vector + noise * direction / np.linalg.norm(direction)
    return np.asarray(query / np.linalg.norm(query), dtype=np.float32)


def record(
    context: Context, rng: np.random.Generator, vectors: NDArray[np.float32], sessions: int
) -> list[NDArray[np.float32]]:
    """Give each of so many users one session with one click, all waiting to be learnt from.

    Returns:
        The queries that they share.
    """
    collection = context.storage.collections.get(COLLECTION)
    lists = []
    for n in range(sessions // 10):  # each query is asked by ten users
        query = near(rng, vectors[n])
        lists.append((query, context.storage.objects.nearest(collection, query[None], SHOWN)))
    events = []
    for n in range(sessions):
        query, found = lists[n % len(lists)]
        session = Session(
            session_id=f"w{n}",
            user_id=f"worker-user-{n}",
            collection=COLLECTION,
            search_results=tuple(
                SearchResultItem(object_id=each.object_id, rank=each.distance) for each in found
            ),
        )
        context.clickstream_dao.register_session(session, query[None])
        clicked = found[int(rng.integers(2, SHOWN))]
        events.append(SessionEvent(session_id=session.session_id, object_id=clicked.object_id))
    for start in range(0, len(events), 1000):
        context.clickstream_dao.push_events(events[start : start + 1000])
    return [query for query, _ in lists]


def worker_sessions_per_second(context: Context) -> dict[str, float]:
    improver = context.improver()
    learnt, started = 0, time.perf_counter()
    while (report := improver.improve_once(users=context.settings.users_per_batch)).users:
        learnt += report.users  # each of whom has one session
        if report.refused or report.failed:
            raise RuntimeError(f"the worker refused {report.refused} and failed {report.failed}")
    seconds = time.perf_counter() - started
    return {"sessions": learnt, "seconds": seconds, "sessions_per_second": learnt / seconds}


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "count": len(seconds)}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def search_times(
    context: Context,
    sharing: Context,
    rng: np.random.Generator,
    vectors: NDArray[np.float32],
    *,
    asked: list[NDArray[np.float32]],
    count: int,
) -> dict[str, dict[str, float]]:
    """Time plain and personalised search in turns, each user with 20 sessions, the query a near one.

    Args:
        sharing: the same with sharing on; there an unknown user searches near one of ``asked``.
    """
    collection = context.storage.collections.get(COLLECTION)
    improver = context.improver()
    users = [f"reader-{n}" for n in range(10)]
    queries: dict[str, list[NDArray[np.float32]]] = {}
    for user in users:
        queries[user] = [near(rng, vectors[rng.integers(len(vectors))]) for _ in range(20)]
        for n, query in enumerate(queries[user]):
            found = context.storage.objects.nearest(collection, query[None], SHOWN)
            session = Session(
                session_id=f"{user}-{n}",
                user_id=user,
                collection=COLLECTION,
                search_results=tuple(SearchResultItem(object_id=each.object_id) for each in found),
            )
            context.clickstream_dao.register_session(session, query[None])
            context.clickstream_dao.push_events(
                [
                    SessionEvent(
                        session_id=session.session_id, object_id=found[int(rng.integers(3, SHOWN))].object_id
                    )
                ]
            )
    while improver.improve_once().users:
        pass
    times: dict[str, list[float]] = {"plain": [], "no memory near": [], "personalised": [], "shared": []}
    personalised = shared = 0
    for n in range(count + 20):
        user = users[n % len(users)]
        known = near(rng, queries[user][int(rng.integers(20))], noise=0.1)
        unknown = near(rng, vectors[rng.integers(len(vectors))])
        plain = timed(lambda: context.search.search(known, collection=COLLECTION))  # noqa: B023
        far = timed(lambda: context.search.search(unknown, collection=COLLECTION, user_id=user))  # noqa: B023
        started = time.perf_counter()
        page = context.search.search(known, collection=COLLECTION, user_id=user)
        own = time.perf_counter() - started
        personalised += page.personalised
        query = near(rng, asked[int(rng.integers(len(asked)))], noise=0.1)
        started = time.perf_counter()
        page = sharing.search.search(query, collection=COLLECTION)
        of_others = time.perf_counter() - started
        shared += page.personalised
        if n >= 20:  # the first searches fill caches
            for name, seconds in zip(times, (plain, far, own, of_others), strict=True):
                times[name].append(seconds)
    if min(personalised, shared) < count:
        raise RuntimeError(f"of {count} searches {personalised} were personalised and {shared} shared")
    return {name: percentiles(seconds) for name, seconds in times.items()}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def running(*arguments: str, environment: dict[str, str]) -> Iterator[None]:
    program = str(Path(sys.executable).with_name("embedding-studio"))
    process = subprocess.Popen([program, *arguments], env=os.environ | environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def click_to_effect(
    data_dir: Path, rng: np.random.Generator, vectors: NDArray[np.float32], clicks: int
) -> dict[str, float]:
    """Time from sending a click to a changed list, through a service and a worker in their own processes."""
    port = free_port()
    environment = {"DATA_DIR": str(data_dir), "EMBEDDER": "none", "PORT": str(port)}
    base = f"http://127.0.0.1:{port}"
    times = []
    with ExitStack() as stack:
        stack.enter_context(running("serve", "--no-worker", environment=environment))
        stack.enter_context(running("worker", environment=environment))
        client = stack.enter_context(httpx.Client(base_url=f"{base}/api/v1", timeout=30))
        _until_ready(base)

        def search(user: str, query: list[float], *, recorded: bool) -> dict[str, object]:
            body = {"search_query": query, "limit": SHOWN, "user_id": user, "collection": COLLECTION}
            answer = client.post("/embeddings/similarity-search", json=body | {"create_session": recorded})
            answer.raise_for_status()
            return dict(answer.json())

        for n in range(clicks + 3):
            user, query = f"clicker-{n}", near(rng, vectors[n]).tolist()
            shown = search(user, query, recorded=True)
            before = [each["object_id"] for each in shown["search_results"]]  # type: ignore[index,attr-defined]
            event = {"object_id": before[6], "event_type": "click"}
            started = time.perf_counter()
            client.post(
                "/clickstream/session/events", json={"session_id": shown["session_id"], "events": [event]}
            ).raise_for_status()
            while (
                [e["object_id"] for e in search(user, query, recorded=False)["search_results"]] == before  # type: ignore[index,attr-defined]
            ):
                if time.perf_counter() - started > 30:
                    raise RuntimeError("a click had no effect within 30 seconds")
            if n >= 3:  # the first clicks warm both processes up
                times.append(time.perf_counter() - started)
    return percentiles(times)


def _until_ready(base: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{base}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service did not start within 120 seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sessions, clicks and searches")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--markdown", type=Path, help="write the page docs/how-fast.md here")
    arguments = parser.parse_args()
    scale = 1 if arguments.quick else 5
    rng = np.random.default_rng(7)
    vectors = clustered(rng, 10_000)
    results: dict[str, object] = {"adjusters_sessions_per_second": sessions_per_second()}
    with tempfile.TemporaryDirectory(prefix="embedding-studio-benchmark-") as folder:
        Path(folder).chmod(0o755)
        data_dir = Path(folder) / "data"
        settings = load_settings(data_dir=data_dir, embedder="none", database_url=None, plugins_path=None)
        shared = settings.model_copy(update={"shared_min_users": 3})
        with Context(settings) as context, Context(shared) as sharing:
            results["upsert_10000_objects_seconds"] = fill(context, vectors)
            asked = record(context, rng, vectors, 1000 * scale)
            results["worker"] = worker_sessions_per_second(context)
            sharing.storage.collections.order_for_everyone(COLLECTION)
            results["worker, sharing"] = worker_sessions_per_second(sharing)
            results["search"] = search_times(context, sharing, rng, vectors, asked=asked, count=200 * scale)
        results["click_to_effect"] = click_to_effect(data_dir, rng, vectors, 20 * scale)
    search = results["search"]
    for name in ("personalised", "shared"):
        results[f"{name}_over_plain_p50"] = search[name]["p50_ms"] / search["plain"]["p50_ms"]  # type: ignore[index]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    table = Table("what", "figure", title="The loop: 10,000 objects, 384 dimensions, 10 results a session")
    for name, figure in _flat(results):
        table.add_row(name, figure)
    Console().print(table)
    if arguments.markdown:
        arguments.markdown.write_text(page(results))


def page(results: dict[str, object]) -> str:
    rows = "\n".join(f"| {name} | {figure} |" for name, figure in _flat(results))
    return f"""# How fast?

This page is the output of one command. Absolute numbers are those of the machine that ran it last
({os.cpu_count()} cores, shared with other work); ratios travel better.

```console
$ python {shlex.join(sys.argv)}
```

10,000 objects, {D} dimensions, {SHOWN} results a session, the embedded PostgreSQL.

- **adjusters** learn from 1,000 sessions at once; `reference_autograd` is the documented gradient formula.
- **worker** is the whole of it: claim, load, adjust, store and commit.
- **search** is with vectors, without the time to embed a text; *no memory near* is a user whose past queries
  are all about something else; *shared* is an unknown user, near to what at least three others clicked for.
- **click_to_effect** goes through a service and a worker in processes of their own, over HTTP, from sending
  the click to a search that shows it.

| what | figure |
|---|---|
{rows}
"""


def _flat(results: dict[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            number = float(value)  # type: ignore[arg-type]
            yield f"{prefix}{name}", f"{number:,.3g}" if number < 100 else f"{number:,.0f}"


if __name__ == "__main__":
    main()
