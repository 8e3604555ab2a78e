"""Is anything lost, doubled or stuck when processes are killed, the disk is full and an adjuster hangs?

    python benchmarks/chaos.py [--seconds 480] [--kills 30] [--seed 7] [--json OUT] [--markdown OUT]

A service of two processes, two workers and a database are killed with -9 and started again, while clients
search, click and store objects over HTTP and write down what was acknowledged before they count it. At the
end the log is compared with what they wrote down, and each user's state with one that is folded from the log
in memory. Exits with 1 if anything is not as it should be.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psycopg
from rich.console import Console
from rich.table import Table

from embedding_studio import Context, SearchIndexInfo, load_settings
from embedding_studio.domain.objects import CatalogueObject, Collection, PersonalState
from embedding_studio.domain.sessions import RecordedSession, SessionForImprovementStatus
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage
from embedding_studio.storage.postgres import PostgresStorage

STATUS = SessionForImprovementStatus

D = 32
OBJECTS = 4_000
"""More than the 3,000 from which on a collection is searched by codes."""

CLIENTS = 3
USERS_OF_EACH = 12
DISK_MB = 512
RESTART_SECONDS = 0.1
"""As systemd waits before it restarts a service, where nothing else is said."""
PATIENCE_SECONDS = 240.0
"""At the end, for the last requests to be answered, and then for all orders to end."""

PROCESSES = 2
"""Of the service."""
PROCESS, PARENT = "a process of the service", "the service's parent"
KILLED = (
    *(PROCESS, "worker 1", "worker 2", "database", "database's backend"),
    *(PROCESS, "worker 1", "worker 2", "database", PARENT),
)
HANGS = "an adjuster hangs"
FULL = "disk full"
OTHERS = ("database stopped", "service told to end", "all connections cut")

CULPRIT = "hangs the adjuster"
PLUGIN = f"""
import time
from embedding_studio import PassiveAggressiveAdjuster, SearchIndexInfo


class Hanging(PassiveAggressiveAdjuster):
    def adjust_vectors(self, improvement_inputs):
        if any(each.user_id == {CULPRIT!r} for each in improvement_inputs):
            time.sleep(10_000)
        return super().adjust_vectors(improvement_inputs)


class HangingPlugin:
    def get_vectors_adjuster(self):
        return Hanging(SearchIndexInfo())
"""
A_BACKEND = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY backend_start DESC LIMIT 1
"""
CUT = """
SELECT pg_terminate_backend(pid)::int FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


# What is killed


class Supervised:
    """A process that is started again whenever it ends, as systemd would, until it is to stop."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, within: Sequence[str] = ()
    ) -> None:
        self._command = [*within, str(Path(sys.executable).with_name("embedding-studio")), *command]
        self._environment = environment
        self._log = log
        self._is_over = threading.Event()
        self.ready_at: list[float] = []
        """When it said that it is ready, for each start."""
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    def children(self) -> list[int]:
        """Return the processes that it has started."""
        process_id = self._process.pid
        return [*map(int, Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split())]

    def kill_child(self, rng: random.Random) -> None:
        """Kill one of the processes that it has started.

        Raises:
            ProcessLookupError: it has none just now.
        """
        if not (children := self.children()):
            raise ProcessLookupError("it is being started")
        os.kill(rng.choice(children), signal.SIGKILL)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> float:
        """Let it end, and return how many seconds that took."""
        told_at = time.monotonic()
        self._is_over.set()
        self._process.terminate()
        self._thread.join()
        return time.monotonic() - told_at

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._command, env=self._environment, stderr=subprocess.PIPE, text=True)

    def _keep_running(self) -> None:
        while True:
            with self._log.open("a") as log:
                for line in self._process.stderr or ():
                    log.write(f"{time.monotonic():.2f} {line}")
                    if "serves on" in line or "worker is ready" in line:
                        self.ready_at.append(time.monotonic())
            self._process.wait()
            if self._is_over.wait(RESTART_SECONDS):
                return
            self._process = self._start()
            if self._is_over.is_set():  # only just
                self._process.terminate()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Make a folder a file system of ``DISK_MB``, in memory; yield whether that is allowed here."""
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "tmpfs", str(folder)]
    is_mounted = False
    with suppress(OSError):
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["/bin/umount", "-l", folder], check=True)


def fill_disk(folder: Path, seconds: float) -> None:
    """Leave no byte free on the folder's file system for so long."""
    balloon = folder / "balloon"
    ends, size = time.monotonic() + seconds, 0
    with balloon.open("wb") as file:
        while time.monotonic() < ends:
            free = shutil.disk_usage(folder).free  # what others gave back since, too
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), size, free or 1)
                size += free
            time.sleep(0.02)
    balloon.unlink()


class System:
    """A service, two workers and a database."""

    def __init__(self, folder: Path, seed: int, *, is_external: bool) -> None:
        self._rng = random.Random(seed)
        self._data_dir = folder / "disk" / "data"
        self._server = EmbeddedServer(self._data_dir)
        self.database_url = self._server.start()
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '96MB'")  # of the disk's 512
            connection.execute("SELECT pg_reload_conf()")
        (folder / "plugin.py").write_text(PLUGIN)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.service_url = f"http://127.0.0.1:{port}"
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {
            "EMBEDDER": "none",
            "DATA_DIR": str(self._data_dir),
            "PORT": str(port),
            "PLUGINS_PATH": str(folder / "plugin.py"),
            "LEASE_SECONDS": "5",
            "QUARANTINE": "false",  # who searches hundreds of times an hour would have no state to compare
        }
        self._is_over = threading.Event()
        if is_external:
            environment["DATABASE_URL"] = self.database_url
            threading.Thread(target=self._keep_database_running, daemon=True).start()
        commands = {
            "service": ["serve", "--no-worker", "--processes", str(PROCESSES)],
            "worker 1": ["worker"],
            "worker 2": ["worker"],
        }
        self.parts = {
            name: Supervised(command, environment, folder / f"{name}.log")
            for name, command in commands.items()
        }
        while not all(part.ready_at for part in self.parts.values()):
            time.sleep(0.05)
        while len(self.parts["service"].children()) < PROCESSES:
            time.sleep(0.05)

    def suffer(self, what: str, seconds: float) -> None:
        """Let something be done; what lasts, lasts so many seconds."""
        if what == FULL:
            fill_disk(self._data_dir.parent, seconds)
        elif what == "database killed":
            self._signal_postmaster(signal.SIGKILL)
        elif what == "database stopped":
            self._signal_postmaster(signal.SIGINT)  # as ``pg_ctl stop`` does
        elif what == "database's backend killed":
            for process_id in self._ask(A_BACKEND):
                os.kill(process_id, signal.SIGKILL)
        elif what == "all connections cut":
            self._ask(CUT)
        elif what == "service told to end":
            self.parts["service"].signal(signal.SIGTERM)
        elif what == f"{PROCESS} killed":
            self.parts["service"].kill_child(self._rng)
        else:
            name = "service" if what == f"{PARENT} killed" else what.removesuffix(" killed")
            self.parts[name].signal(signal.SIGKILL)

    def stop(self) -> float:
        """Let all end, and return how many seconds the slowest took."""
        self._is_over.set()
        slowest = max([part.stop() for part in self.parts.values()])
        self._server.stop()
        return slowest

    def _signal_postmaster(self, number: int) -> None:
        lines = (self._data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        os.kill(int(lines[0]), number)

    def _ask(self, statement: str) -> list[int]:
        with psycopg.connect(self.database_url, connect_timeout=5) as connection:
            return [value for (value,) in connection.execute(statement.encode())]

    def _keep_database_running(self) -> None:
        while not self._is_over.wait(RESTART_SECONDS):
            with suppress(EmbeddingStudioError):
                self._server.start()


# Clients


class Journal:
    """What clients asked for, and what was acknowledged; its line is in the file before anything counts."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self.sent: dict[str, tuple[str, str]] = {}
        self.events: dict[str, tuple[str, str]] = {}
        """event_id -> its session and object, acknowledged; ``sent``: whether or not."""
        self.sessions: dict[str, list[str]] = {}
        """session_id -> the objects that were shown."""
        self.objects: dict[str, int] = {}
        """object_id -> the last version acknowledged."""
        self.refused: dict[str, str] = {}

    def write(self, into: str, key: str, value: object) -> None:
        with self._lock:
            self._file.write(json.dumps([into, key, value]) + "\n")
            getattr(self, into)[key] = value


class Client:
    """Asks again until it is answered, as one does that must not lose anything."""

    def __init__(
        self, url: str, journal: Journal, is_over: threading.Event, headers: Mapping[str, str] | None = None
    ) -> None:
        self.is_over = is_over
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=5, headers=headers)
        self._journal = journal
        self._until: float | None = None
        self.refusals: Counter[str] = Counter()
        """What it met instead of an answer."""

    def search(self, rng: np.random.Generator, user_id: str) -> tuple[str, list[str]]:
        """Return the session of a search, and what it shows."""
        query = rng.standard_normal(D).tolist()
        asked = {"search_query": query, "limit": 10, "user_id": user_id, "create_session": True}
        shown = self._post("/embeddings/similarity-search", asked)
        session_id, object_ids = shown["session_id"], [each["object_id"] for each in shown["search_results"]]
        self._journal.write("sessions", session_id, object_ids)
        return session_id, object_ids

    def click(self, event_id: str, session_id: str, object_id: str) -> None:
        self._journal.write("sent", event_id, (session_id, object_id))
        event = {"event_id": event_id, "object_id": object_id}
        receipt = self._post("/clickstream/session/events", {"session_id": session_id, "events": [event]})
        disposition = receipt["events"][0]["disposition"]
        self._journal.write("events", event_id, (session_id, object_id))
        if disposition not in {"accepted", "duplicate"}:
            self._journal.write("refused", event_id, disposition)

    def store(self, rng: np.random.Generator, object_ids: Iterable[str], version: int) -> None:
        items = [
            {"object_id": each, "vectors": [rng.standard_normal(D).tolist()], "payload": {"version": version}}
            for each in object_ids
        ]
        self._post("/embeddings/upsert", {"items": items})
        for each in items:
            self._journal.write("objects", str(each["object_id"]), version)

    def _post(self, path: str, body: object) -> Any:
        while True:
            try:
                answer = self._http.post(path, json=body)
                if answer.is_success:
                    return answer.json()
                if answer.status_code != 503:
                    raise SystemExit(f"{path}: {answer.status_code} {answer.text}")
                self.refusals["503"] += 1
            except httpx.TransportError as error:
                self.refusals[type(error).__name__] += 1
            if self.is_over.is_set():
                self._until = self._until or time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > self._until:
                    raise SystemExit(f"{path}: no answer to the end")
            time.sleep(0.05)


def keep_clicking(client: Client, number: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    events = count()
    while not client.is_over.wait(0.05):
        session_id, object_ids = client.search(rng, f"user {number}-{rng.integers(USERS_OF_EACH)}")
        for _ in range(rng.integers(0, 3)):
            client.click(f"{number}-{next(events)}", session_id, str(rng.choice(object_ids)))


def keep_storing(client: Client, number: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    versions = count(1)
    while not client.is_over.wait(0.3):
        client.store(rng, {f"o{n}" for n in rng.integers(0, OBJECTS, size=3)}, next(versions))


class Probe:
    """One search after another, each with a second's time: when it was asked, when answered, how well."""

    def __init__(self, url: str, is_over: threading.Event) -> None:
        self._url = f"{url}/api/v1/embeddings/similarity-search"
        self._is_over = is_over
        self.seen: list[tuple[float, float, bool]] = []

    def run(self) -> None:
        rng = np.random.default_rng(0)
        with httpx.Client(timeout=1) as client:
            while not self._is_over.wait(0.02):
                asked_at, is_good = time.monotonic(), False
                with suppress(httpx.TransportError):
                    query = rng.standard_normal(D).tolist()
                    answer = client.post(self._url, json={"search_query": query, "limit": 5})
                    is_good = answer.is_success and len(answer.json()["search_results"]) == 5
                self.seen.append((asked_at, time.monotonic(), is_good))

    def answered_again(self, since: float, until: float) -> float | None:
        """Return when the first search was answered after which no other failed; None: none was."""
        # One that is under way when the next thing is done is of that.
        seen = [each for each in self.seen if since <= each[1] < until]
        last_bad = max((n for n, (_, _, is_good) in enumerate(seen) if not is_good), default=-1)
        return seen[last_bad + 1][1] if last_bad + 1 < len(seen) else None


# What happens


@dataclass(frozen=True)
class Incident:
    """What was done, when, and when the next thing was."""

    what: str
    at: float
    until: float


def plan(rng: random.Random, kills: int, *, is_disk_small: bool) -> list[str]:
    """Return what is done, in order: each part is killed about as often as the others."""
    incidents = [f"{KILLED[n % len(KILLED)]} killed" for n in range(kills)]
    incidents += [*OTHERS, *([FULL] if is_disk_small else [])]
    rng.shuffle(incidents)
    return [HANGS, *incidents]  # first, for it takes minutes until it is given up


def run(
    system: System, journal: Journal, incidents: Sequence[str], seconds: float, seed: int
) -> tuple[list[Incident], Probe]:
    """Let things happen, one in each slot of equal length, while clients are at work."""
    is_over = threading.Event()
    probe = Probe(system.service_url, is_over)
    client = Client(system.service_url, journal, is_over)
    for start in range(0, OBJECTS, 500):
        ids = [f"o{n}" for n in range(start, start + 500)]
        client.store(np.random.default_rng(start), ids, 0)
    threads = [threading.Thread(target=probe.run)]
    for number, work in enumerate([keep_storing, *[keep_clicking] * CLIENTS]):
        own = Client(system.service_url, journal, is_over)
        threads.append(threading.Thread(target=work, args=(own, number, seed)))
    for thread in threads:
        thread.start()
    rng = random.Random(seed)
    began, slot = time.monotonic(), seconds / len(incidents)
    happened, starts = [], []
    for n, what in enumerate(incidents):
        time.sleep(max(0.0, began + (n + 0.3 * rng.random()) * slot - time.monotonic()))
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)
        starts.append(time.monotonic())
        if what == HANGS:
            session_id, object_ids = client.search(np.random.default_rng(seed), CULPRIT)
            client.click("culprit", session_id, object_ids[3])
        else:
            with suppress(OSError, psycopg.Error):  # it is not there at the moment
                system.suffer(what, 0.5 * slot)
        happened.append((what, time.monotonic()))
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    is_over.set()
    ends = [*starts[1:], time.monotonic()]
    for thread in threads:
        thread.join()
    return [Incident(*each, until) for each, until in zip(happened, ends, strict=True)], probe


def recoveries(
    system: System, happened: Sequence[Incident], probe: Probe
) -> dict[str, dict[str, float | None]]:
    """Return what -> how often, and the seconds until searches were answered again for good."""
    ready_at = system.parts["service"].ready_at
    of_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    unanswered: Counter[str] = Counter()
    for each in happened:
        again = probe.answered_again(each.at, each.until)
        if again is None:
            unanswered[each.what] += 1
            continue
        ready = [at for at in ready_at if each.at < at <= again]
        of_kind[each.what].append((again - each.at, again - (ready[-1] if ready else each.at)))
    return {
        what: {
            "times": len(of_kind[what]) + unanswered[what],
            "not before the next": unanswered[what],
            "median": _rounded([whole for whole, _ in of_kind[what]], median),
            "longest": _rounded([whole for whole, _ in of_kind[what]], max),
            "longest since ready": _rounded([since for _, since in of_kind[what]], max),
        }
        for what in sorted({each.what for each in happened})
    }


def _rounded(seconds: list[float], of_all: Callable[[list[float]], float]) -> float | None:
    return round(of_all(seconds), 2) if seconds else None


# What is left


def still_open(storage: Storage) -> int:
    """Wait for all orders to end, and return how many do not."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        counts = storage.orders.counts()
        left = counts[STATUS.PENDING] + counts[STATUS.PROCESSING]
        if not left or time.monotonic() > ends:
            return left
        time.sleep(0.2)


def violations(storage: Storage, journal: Journal) -> dict[str, int]:
    """Return how much is not as it should be."""
    log = {each.session.session_id: each for each in storage.clickstream.scan()}
    kept = Counter(
        (event.event_id, (session_id, event.object_id))
        for session_id, each in log.items()
        for event in each.session.events
    )
    shown = {key: [result.object_id for result in each.session.search_results] for key, each in log.items()}
    collection = storage.collections.get("default")
    versions = {each.object_id: each.payload["version"] for each in all_objects(storage, collection)}
    failed = storage.orders.list(status=STATUS.FAILED, limit=100_000)
    return {
        "events lost": sum(each not in kept for each in journal.events.items()),
        "events doubled": kept.total() - len({event_id for event_id, _ in kept}),
        "events that were never sent": sum(journal.sent.get(key or "") != what for key, what in kept),
        "events and sessions refused": len(journal.refused),
        "sessions lost": sum(shown.get(key) != result for key, result in journal.sessions.items()),
        "objects lost": sum(versions.get(key) != version for key, version in journal.objects.items()),
        "innocent orders failed": sum(each.user_id != CULPRIT for each in failed),
        "states that differ from a fold of the log": different_states(storage, collection, log.values()),
    }


def all_objects(storage: Storage, collection: Collection) -> Iterator[CatalogueObject]:
    after = None
    while page := storage.objects.scroll(collection, after=after):
        yield from page
        after = page[-1].object_id


def different_states(storage: Storage, collection: Collection, log: Iterable[RecordedSession]) -> int:
    """Return how many users have another state than the log of the innocent comes to, in memory."""
    twin = MemoryStorage()
    same = twin.collections.create(collection.name, collection.index)
    twin.objects.upsert(same, list(all_objects(storage, collection)))
    twin.clickstream.record(log := [each for each in log if each.session.user_id != CULPRIT])
    with Context(load_settings(embedder="none", quarantine=False), storage=twin) as context:
        improver = context.improver()
        while improver.improve_once().users:
            pass
    users = {CULPRIT, *(each.session.user_id or "" for each in log)}
    return sum(
        told(storage.personal.state(collection, user)) != told(twin.personal.state(same, user))
        for user in users
    )


def users_with_a_state(storage: Storage) -> int:
    collection = storage.collections.get("default")
    users = {each.session.user_id or "" for each in storage.clickstream.scan()} - {CULPRIT}
    return sum(bool(storage.personal.state(collection, user).memories) for user in users)


def told(state: PersonalState) -> object:
    """Return a state as what can be compared."""
    memories = [
        {name: np.asarray(value).tolist() for name, value in asdict(each).items()} for each in state.memories
    ]
    return memories, {object_id: vectors.tolist() for object_id, vectors in state.vectors.items()}


def measure(folder: Path, given: argparse.Namespace, *, is_disk_small: bool) -> dict[str, Any]:
    incidents = plan(random.Random(given.seed), given.kills, is_disk_small=is_disk_small)
    journal = Journal(folder / "journal.jsonl")
    system = System(folder, given.seed, is_external=given.external)
    try:
        with closing(PostgresStorage(system.database_url)) as storage:
            storage.collections.create("default", SearchIndexInfo(dimensions=D))
        happened, probe = run(system, journal, incidents, given.seconds, given.seed)
        with closing(PostgresStorage(system.database_url)) as storage:
            stuck = still_open(storage)
            wrong = {"orders stuck": stuck} | violations(storage, journal)
            orders = {status.value: number for status, number in storage.orders.counts().items()}
            learnt = users_with_a_state(storage)
    finally:
        slowest = system.stop()
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            for each in [
                *folder.glob("*.log"),
                *folder.glob("*.jsonl"),
                *folder.glob("disk/data/postgres/*.log*"),
            ]:
                shutil.copy(each, given.keep)
    wrong["database servers left running"] = len([*folder.glob("disk/data/postgres/postmaster.pid")])
    return {
        "seconds": given.seconds,
        "kills": given.kills,
        "seed": given.seed,
        "searches": len(journal.sessions),
        "events acknowledged": len(journal.events),
        "objects stored": len(journal.objects),
        "orders": orders,
        "users with a state to compare": learnt,
        "wrong": wrong,
        "answered again": recoveries(system, happened, probe),
        "from SIGTERM to the end of the slowest": round(slowest, 2),
        "searches by the probe": len(probe.seen),
        "of these not answered": sum(not is_good for *_, is_good in probe.seen),
    }


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is counted, in words."""
    for what, figure in figures.items():
        if what == "wrong":
            yield from ((f"{name} (aim: 0)", f"{number:,}") for name, number in figure.items())
        elif what == "orders":
            yield from ((f"orders {name}", f"{number:,}") for name, number in figure.items())
        elif what != "answered again":
            yield what, f"{figure:,}"


def page(figures: dict[str, Any], *, is_disk_small: bool) -> str:
    counted = "\n".join(f"| {what} | {figure} |" for what, figure in rows(figures))
    again = "\n".join(
        f"| {what} | " + " | ".join("-" if each is None else str(each) for each in took.values()) + " |"
        for what, took in figures["answered again"].items()
    )
    disk = (
        f"The data lies on a disk of {DISK_MB} MB in memory, which is filled to the last byte for a while."
        if is_disk_small
        else "The full disk was left out: mounting a small file system was not allowed."
    )
    users = CLIENTS * USERS_OF_EACH
    return f"""# Chaos

Is anything lost, doubled or stuck when processes are killed? This page is the output of one command;
`make chaos` runs it. Times are those of the machine that ran it last ({os.cpu_count()} cores, shared with
other work).

```console
$ python {shlex.join(sys.argv)}
```

A service (`serve --processes {PROCESSES}`), two workers and the embedded PostgreSQL, each started again
{RESTART_SECONDS} s after it ended, as systemd would; a process of the service by its parent.
{CLIENTS} clients search and click for {users} users and one stores objects, over HTTP, each again and
again until it is answered, and write down what was acknowledged. Meanwhile one thing after another is done: a
part is killed with -9 (of the service one process, or their parent, whose port they hand on; of the database
the postmaster, or one backend), the database is stopped (`pg_ctl stop`), the service is told to end
(SIGTERM), all connections are cut (`pg_terminate_backend`), and an adjuster never comes back from one user's
session.
{disk}

At the end all orders have to end, what was acknowledged has to be in the log once, and the state of each
user has to be, bit for bit, the one that is folded from the log in memory. The order of the user who hangs
the adjuster may fail, and no other.

| what | figure |
|---|---|
{counted}

How many seconds it took until searches were answered again, without fail until the next thing was done.
*Since ready* is from when a service that was started again as a whole said that it serves, else the same. One
that is told to end takes some seconds to end and to start; for one of its processes the others answer
meanwhile, and for the parent all of them do, until its successor serves. Where searches must not wait for a
service that is told to end either, let two run on one database behind a proxy.

| what | times | not before the next | median | longest | longest since ready |
|---|---|---|---|---|---|
{again}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What is left of a service after kills.")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--external", action="store_true", help="by DATABASE_URL, which is restarted here")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and journal there")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write a page to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embedding-studio-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root the server runs as somebody else, who must get in
        (folder / "disk").mkdir()
        with small_disk(folder / "disk") as is_disk_small:
            figures = measure(folder, given, is_disk_small=is_disk_small)
    table = Table("what", "figure", title="Chaos")
    for what, figure in rows(figures):
        table.add_row(what, figure)
    Console().print(table)
    if given.markdown:
        given.markdown.write_text(page(figures, is_disk_small=is_disk_small))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    if any(figures["wrong"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
