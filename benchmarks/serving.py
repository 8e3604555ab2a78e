"""Search as it is served, against hand-written pgvector in the same database and the same run.

    python benchmarks/serving.py [--quick] [--large] [--parts] [--data FOLDER] [--json OUT] [--markdown PAGE]

The floor of a row is the fastest of all contenders that reach the recall which the product reaches there, or
.98 if that is lower: bare pgvector over one connection with prepared statements, on the same vectors, with
HNSW, IVFFlat or no index, over ``vector`` and over ``halfvec`` (ranked again in full precision). Product and
floor are asked in turns, so that what else the machine does hits both. Sections that OUT holds already are
kept, so that one page tells of several runs.

Axes: N objects · P parts of an object · D dimensions · Q queries.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psycopg
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedding_studio import Context, SearchIndexInfo, SessionEvent, load_settings
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import CatalogueObject, PersonalState, QueryMemory
from embedding_studio.search import SearchService
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.vectors import pack, register

D, SHOWN = 384, 10
TARGET = 0.98
SUBJECTS = ("cranfield", "nfcorpus", "movielens")
KEPT = {"half": 2, "tenth": 10, "hundredth": 100}
"""A filter on one value of such a field keeps so much."""
EF_SEARCH = (40, 100, 200, 400, 800, 1000)
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SLOW_SECONDS, PATIENCE_SECONDS = 0.05, 5.0
"""What takes a multiple of the first is asked in fewer turns; recall is measured for the second."""

VERSIONS = """SELECT current_setting('server_version')
UNION ALL SELECT extversion FROM pg_extension WHERE extname = 'vector'"""
SEARCH = "/api/v1/embeddings/similarity-search"

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]
Ask = Callable[[int], object]
"""Asks the query of a number."""


# What is searched for


def unit(vectors: NDArray[Any]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def near(rng: np.random.Generator, vectors: Vectors, noise: float) -> Vectors:
    return unit(vectors + noise * unit(rng.standard_normal(vectors.shape)))


@dataclass(frozen=True)
class Catalogue:
    """Objects in the order in which they are loaded.

    Attributes:
        vectors: [N, P, D], at unit length.
        labels: name -> [N], what filters ask for; "subject" where there are several.
        other: the subject that no query is about.
    """

    title: str
    vectors: Vectors
    labels: dict[str, Numbers]
    queries: Vectors
    other: int | None = None

    def objects(self) -> Iterator[CatalogueObject]:
        for n, parts in enumerate(self.vectors):
            yield CatalogueObject(f"o{n}", parts, {name: int(of[n]) for name, of in self.labels.items()})

    def nearest(self, queries: Vectors, count: int, **label: int) -> list[Numbers]:
        """Return the numbers of the ``count`` nearest objects, of all or of those with a label."""
        [(name, value)] = label.items() or [("", 0)]
        among = np.flatnonzero(self.labels[name] == value) if label else np.arange(len(self.vectors))
        vectors = self.vectors[among] if label else self.vectors
        N, P, _ = vectors.shape
        found = []
        for start in range(0, len(queries), 16):
            products = vectors.reshape(N * P, D) @ queries[start : start + 16].T
            for alike in products.reshape(N, P, -1).max(axis=1).T:
                best = np.argpartition(-alike, min(count, N - 1))[:count]
                found.append(among[best[np.argsort(-alike[best], kind="stable")]])
        return found


def catalogue(kind: str, folder: Path | None, size: int, P: int, queries: int) -> Catalogue:
    """Return a catalogue of one or three subjects of real vectors, or a made one."""
    rng = np.random.default_rng(7)
    labels = {name: rng.integers(parts, size=size) for name, parts in KEPT.items()}
    if folder is None:
        middles = unit(rng.standard_normal((2_000, D)))
        mixed = middles[rng.integers(2_000, size=size)][:, None]
        vectors = near(rng, np.broadcast_to(mixed, (size, P, D)), 0.8)
        asked = near(rng, vectors[rng.integers(size, size=queries), 0], 0.3)
        return Catalogue("made vectors, a mixture of 2,000 normal distributions", vectors, labels, asked)
    names = SUBJECTS if kind == "three" else ("nfcorpus",)
    real = [unit(np.load(folder / name / "items.f16.npy").astype(np.float32)) for name in names]
    base, of = np.concatenate(real), np.repeat(np.arange(len(names)), [len(each) for each in real])
    alike = (base[start : start + 2000] @ base.T for start in range(0, len(base), 2000))
    neighbours = np.concatenate([np.argsort(-each, axis=1)[:, 1:12] for each in alike])
    chosen = rng.integers(len(base), size=size)
    if kind == "three":
        chosen = chosen[np.argsort(of[chosen], kind="stable")]
    vectors = np.empty((size, P, D), dtype=np.float32)
    for start in range(0, size, 50_000):
        ones = chosen[start : start + 50_000]
        others = neighbours[ones[:, None], rng.integers(11, size=(len(ones), P))]
        share = 0.7 * rng.random((len(ones), P, 1), dtype=np.float32)
        mixed = unit((1 - share) * base[ones][:, None] + share * base[others])
        vectors[start : start + 50_000] = near(rng, mixed, 0.45)
    files = [folder / name / "queries.f16.npy" for name in names]
    every = [np.load(file).astype(np.float32) for file in files if file.exists()]
    asked = np.concatenate([rng.permutation(each)[: queries // len(every)] for each in every])
    title = "three subjects, loaded one after the other" if kind == "three" else "one subject"
    if kind == "three":
        labels["subject"] = of[chosen]
    return Catalogue(title, vectors, labels, unit(asked), 2 if kind == "three" else None)


# Bare pgvector


def connect(url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(url, autocommit=True)
    register(connection)
    connection.execute("SET plan_cache_mode = force_generic_plan")  # every value that matters is in the text
    return connection


def copied(connection: psycopg.Connection[Any], given: Catalogue) -> float:
    """Load ``bare.items`` (a row a part) and ``bare.objects`` by COPY; return seconds."""
    fields = "".join(f", {name} int" for name in given.labels)
    connection.execute("DROP SCHEMA IF EXISTS bare CASCADE")
    connection.execute("CREATE SCHEMA bare")
    connection.execute(f"CREATE TABLE bare.items (id text, payload jsonb{fields}, embedding vector({D}))")
    columns = [[int(value) for value in of] for of in given.labels.values()]
    started = time.perf_counter()
    with connection.cursor() as cursor, cursor.copy("COPY bare.items FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["text", "jsonb", *["int4"] * len(columns), "vector"])
        for n, parts in enumerate(given.vectors):
            values = [column[n] for column in columns]
            payload = dict(zip(given.labels, values, strict=True))
            for part in pack(parts):
                copy.write_row((f"o{n}", payload, *values, part))
    seconds = time.perf_counter() - started
    connection.execute("CREATE TABLE bare.objects AS SELECT DISTINCT ON (id) id, payload FROM bare.items")
    connection.execute("ALTER TABLE bare.objects ADD PRIMARY KEY (id)")
    return seconds


@dataclass(eq=False)
class Contender:
    """One way to search by hand, in a table of its own.

    Attributes:
        kind: hnsw, ivfflat or exact.
        form: what the index holds, vector or halfvec.
        options: of the index.
        P: parts of an object.
    """

    url: str
    kind: str
    form: str
    options: str
    P: int
    number: int
    build_seconds: float = 0.0
    index_bytes: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} ({self.options}), {self.form}" if self.options else "no index, all compared"

    @property
    def table(self) -> str:
        return f"bare.items_{self.number}" if self.options else "bare.items"

    @property
    def key(self) -> str:
        return f"(embedding::halfvec({D}))" if self.form == "halfvec" else "embedding"

    @cached_property
    def connection(self) -> psycopg.Connection[Any]:
        connection = connect(self.url)
        if self.kind != "exact":
            for path in ("seqscan", "bitmapscan", "sort"):
                connection.execute(f"SET enable_{path} = off")
        return connection

    def build(self, labels: Sequence[str]) -> Self:
        with connect(self.url) as connection:
            if self.kind != "exact":
                connection.execute(f"CREATE TABLE {self.table} AS TABLE bare.items")
                connection.execute("SET maintenance_work_mem = '4GB'")
                connection.execute(f"SET max_parallel_maintenance_workers = {os.cpu_count()}")
                started = time.perf_counter()
                connection.execute(
                    f"CREATE INDEX nearest_{self.number} ON {self.table} "
                    f"USING {self.kind} ({self.key} {self.form}_cosine_ops) WITH ({self.options})"
                )
                self.build_seconds = time.perf_counter() - started
                self.index_bytes = size_of(connection, f"bare.nearest_{self.number}")
            for label in labels:
                connection.execute(f"CREATE INDEX ON {self.table} ({label})")
            connection.execute(f"VACUUM ANALYZE {self.table}")
        return self

    @property
    def efforts(self) -> tuple[int, ...]:
        return {"hnsw": EF_SEARCH, "ivfflat": PROBES, "exact": (0,)}[self.kind]

    def tune(self, effort: int, *, filtered: bool) -> None:
        iterative = "relaxed_order" if filtered else "off"
        if self.kind == "hnsw":
            self.connection.execute(f"SET hnsw.ef_search = {effort}")
            self.connection.execute(f"SET hnsw.iterative_scan = {iterative}")
            self.connection.execute("SET hnsw.scan_mem_multiplier = 16")
        elif self.kind == "ivfflat":
            self.connection.execute(f"SET ivfflat.probes = {effort}")
            self.connection.execute(f"SET ivfflat.iterative_scan = {iterative}")

    @cache  # noqa: B019, contenders live as long as the run
    def statement(self, where: str, offset: int) -> bytes:
        drawn = (offset + SHOWN) * self.P * (2 if self.form == "halfvec" else 1)
        page = f"ORDER BY distance LIMIT {SHOWN} OFFSET {offset}"
        rows = f"FROM {self.table} {where and 'WHERE ' + where}"
        query = "%(query)b::vector" + (f"::halfvec({D})" if self.form == "halfvec" else "")
        drawing = "" if self.kind == "exact" else f"ORDER BY {self.key} <=> {query} LIMIT {drawn}"
        measured = "embedding <=> %(query)b::vector AS distance"
        if self.P > 1:
            text = f"""WITH drawn AS (SELECT id, {measured} {rows} {drawing}),
                best AS (SELECT id, min(distance) AS distance FROM drawn GROUP BY id {page})
                SELECT id, distance, payload FROM best JOIN bare.objects USING (id) ORDER BY distance"""  # noqa: S608
        elif self.kind == "exact" or (self.form == "vector" and not where):
            text = f"SELECT id, {measured}, payload {rows} {page}"
        else:
            text = f"""WITH drawn AS MATERIALIZED (SELECT id, {measured}, payload {rows} {drawing})
                SELECT id, distance, payload FROM drawn {page}"""  # noqa: S608
        return text.encode()

    def ask(self, query: Vectors, where: str = "", offset: int = 0) -> list[str]:
        given = {"query": pack(query[None])[0]}
        statement = self.statement(where, offset)
        return [row[0] for row in self.connection.execute(statement, given, prepare=True, binary=True)]

    def check_plan(self, query: Vectors, where: str, offset: int) -> None:
        given = {"query": pack(query[None])[0]}
        plan = self.connection.execute(b"EXPLAIN " + self.statement(where, offset), given).fetchall()
        if self.options and f"Index Scan using nearest_{self.number}" not in str(plan):
            raise RuntimeError(f"{self.name} does not use its index: {plan}")


@dataclass(frozen=True)
class Found:
    """What a contender reached, with the least effort (ef_search, probes) that reaches enough."""

    contender: Contender
    effort: int
    recall: float
    p50_ms: float
    reaches: bool

    def told(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("effort", "recall", "p50_ms", "reaches")}
        return told | {
            name: getattr(self.contender, name) for name in ("name", "build_seconds", "index_bytes")
        }


def least_effort(
    contender: Contender,
    queries: Vectors,
    wanted: Sequence[set[str]],
    target: float,
    efforts: Sequence[int] = (),
    *,
    where: str = "",
    offset: int = 0,
) -> Found:
    """Return what the contender reaches with the first effort that reaches the target."""
    found = None
    few = 15 if contender.kind == "exact" else len(queries)
    for effort in efforts or contender.efforts:
        contender.tune(effort, filtered=bool(where))
        contender.check_plan(queries[0], where, offset)
        times, hits = [], []
        for query, right in zip(queries[:few], wanted, strict=False):
            started = time.perf_counter()
            ids = contender.ask(query, where, offset)
            times.append(time.perf_counter() - started)
            hits.append(len(right.intersection(ids)) / len(right))
        recall = float(np.mean(hits))
        p50_ms = 1000 * float(np.median(times))
        if found is None or recall > found.recall:
            found = Found(contender, effort, recall, p50_ms, recall >= target - 1e-9)
        if found.reaches:
            break
    assert found is not None
    return found


def size_of(connection: psycopg.Connection[Any], relation: str) -> int:
    [(size,)] = connection.execute("SELECT pg_total_relation_size(%s::regclass)", (relation,)).fetchall()
    return int(size)


# The product


class Served:
    """A client of ``embedding-studio serve`` that keeps its connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def search(self, query: Vectors, **more: object) -> list[str]:
        body = json.dumps({"search_query": query.tolist(), "limit": SHOWN} | more)
        for is_last in (False, True):
            try:
                self._connection.request("POST", SEARCH, body, {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                break
            except ConnectionError:  # the service hangs up after five seconds of silence
                self._connection.close()
                if is_last:
                    raise
        content = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"the service answered {answer.status}: {content}")
        return [each["object_id"] for each in content["search_results"]]


@contextmanager
def running(url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    program = str(Path(sys.executable).with_name("embedding-studio"))
    environment = os.environ | {"DATABASE_URL": url, "EMBEDDER": "none"}
    process = subprocess.Popen([program, *arguments], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def serving(url: str) -> Iterator[tuple[int, int]]:
    """Serve; yield port and process id."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    with running(url, "serve", "--no-worker", "--port", str(port)) as process:
        for _ in range(1200):
            with suppress(OSError):
                asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                asked.request("GET", "/readyz")
                if asked.getresponse().status == 200:
                    break
            time.sleep(0.1)
        yield port, process.pid


def context_of(url: str) -> Context:
    return Context(load_settings(database_url=url, embedder="none", plugins_path=None))


def load(url: str, name: str, vectors: Vectors, prefix: str) -> float:
    """Load objects into a collection as a user does, made if it is not there; return seconds."""
    with context_of(url) as context:
        context.storage.collections.create(name, SearchIndexInfo(dimensions=D))
        objects = (CatalogueObject(f"{prefix}{n}", parts, {"number": n}) for n, parts in enumerate(vectors))
        started = time.perf_counter()
        context.index_objects(name, objects)
        return time.perf_counter() - started


@dataclass(frozen=True)
class Condition:
    """What is known of a user: so many memories and personal objects, so many of them near the query."""

    memories: int
    near: int
    objects: int
    near_objects: int

    @property
    def name(self) -> str:
        objects = f"{self.objects:,} personal objects, {self.near_objects:,} near"
        return f"{self.memories} memories, {self.near} near; {objects}"

    @property
    def aim(self) -> float:
        if not self.near:
            return 1.2
        return 1.5 if self.near >= 200 or self.near_objects > 1000 else 1.35

    def state(
        self, rng: np.random.Generator, given: Catalogue, query: Vectors, ranked: Numbers
    ) -> PersonalState:
        """Return a state; ``ranked`` are the objects nearest to the query, as many as ever are moved."""
        memories = [near(rng, query, 0.3) for _ in range(self.near)]
        while len(memories) < self.memories:
            other = near(rng, given.vectors[rng.integers(len(given.vectors)), 0], 0.3)
            if other @ query < 0.6:
                memories.append(other)
        others = rng.permutation(np.setdiff1d(np.arange(len(given.vectors)), ranked))
        of_near, of_others = ranked[: self.near_objects], others[: self.objects - self.near_objects]
        shares = [of_near[k :: self.near] for k in range(self.near)]
        shares += [of_others[k :: self.memories - self.near] for k in range(self.memories - self.near)]
        built, moved = [], {}
        for k, (memory, share) in enumerate(zip(memories, shares, strict=True)):
            ids = tuple(sorted(f"o{n}" for n in share))
            clicked = share[:2] if len(share) else ranked[k % len(ranked)][None]
            mean = given.vectors[clicked].mean(axis=(0, 1))
            moved |= {f"o{n}": unit(given.vectors[n] + 0.1 * memory) for n in share}
            built.append(QueryMemory(f"m{k}", "", k, memory, mean, tuple(f"o{n}" for n in clicked), ids))
        return PersonalState(tuple(built), moved)


CONDITIONS = tuple(
    Condition(*each)
    for each in (
        [(0, 0, 0, 0), (10, 0, 100, 0), (200, 0, 5000, 0), (200, 10, 1000, 50)]
        + [(10, 10, objects, objects) for objects in (0, 100, 1000, 5000)]
        + [(200, 200, objects, objects) for objects in (1000, 5000)]
    )
)


# Measuring


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def in_turns(asks: dict[str, Ask], count: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each; who begins changes in turn, and who is slow is asked less often."""
    first = {name: min(_seconds(ask, n % count) for n in range(3)) for name, ask in asks.items()}
    every = {name: 1 + int(seconds / SLOW_SECONDS) for name, seconds in first.items()}
    times: dict[str, list[float]] = {name: [] for name in asks}
    names = list(asks)
    for turn in range(rounds * count):
        for k in range(len(names)):
            name = names[(k + turn) % len(names)]
            if turn % every[name] == 0:
                times[name].append(_seconds(asks[name], turn % count))
    return times


def _seconds(ask: Ask, n: int) -> float:
    started = time.perf_counter()
    ask(n)
    return time.perf_counter() - started


def together(work: Callable[[Any], None], given: Iterable[Any]) -> None:
    """Do a work for all that is given, each in a thread of its own."""
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(work, given))


def at_once(make: Callable[[], Ask], clients: int, seconds: float, count: int) -> dict[str, float]:
    """Return rate and times of clients that ask without pause."""
    times: list[float] = []

    def go_on(first: int) -> None:
        ask = make()
        ask(first)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            first += 1
            times.append(_seconds(ask, first % count))

    together(go_on, range(0, 7 * clients, 7))
    return {"clients": clients, "queries_per_second": clients * len(times) / sum(times)} | percentiles(times)


@dataclass(frozen=True)
class Variant:
    """One way to ask the product.

    Attributes:
        ask: returns the ids found for the query of a number.
        exact: the same where all is compared; None: what is right is what is nearest.
        aim: for the ratio of its median to that of the floor.
    """

    name: str
    ask: Callable[[int], list[str]]
    exact: Callable[[int], list[str]] | None = None
    aim: float | None = None


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    size: int
    P: int
    queries: int = 200
    rounds: int = 2
    users: int = 8
    turns: int = 12
    checked: int = 24
    crowd: int = 10_000
    searches: int = 10_000
    loaded: int = 20_000
    seconds: float = 4.0


@dataclass(eq=False)
class Bench:
    """One catalogue in the product and in bare tables, and what was found."""

    url: str
    given: Catalogue
    scale: Scale
    context: Context
    exact: SearchService
    contenders: list[Contender]
    port: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(11))
    section: dict[str, Any] = field(
        default_factory=lambda: {"contenders": [], "rows": [], "clients": [], "facts": []}
    )

    def found_by(self, service: SearchService, query: Vectors, **more: Any) -> list[str]:
        page = service.search(query, collection="items", limit=SHOWN, **more)
        return [each.object_id for each in page.results]

    def product(self, queries: Vectors, **more: Any) -> Callable[[int], list[str]]:
        return lambda n: self.found_by(self.context.search, queries[n], **more)

    def tell(self, what: str, figure: str, aim: str = "", met: bool | None = None) -> None:  # noqa: FBT001
        self.section["facts"].append({"what": what, "figure": figure, "aim": aim, "met": met})

    def compare(
        self,
        case: str,
        queries: Vectors,
        wanted: Sequence[set[str]],
        variants: Sequence[Variant],
        *,
        contenders: Sequence[Contender] | None = None,
        tuned: Sequence[Found] = (),
        where: str = "",
        offset: int = 0,
    ) -> list[Found]:
        """Choose the floor by the first variant's recall, ask all in turns, add a row for each variant.

        Those that are ``tuned`` keep the effort which was found for them.
        """
        recalls = [self._recall(variant, wanted) for variant in variants]
        if tuned:
            found = [
                replace(again, reaches=each.reaches)
                for each in tuned
                for again in [least_effort(each.contender, queries, wanted, 0, (each.effort,))]
            ]
        else:
            target = min(recalls[0], TARGET)
            found = [
                least_effort(each, queries, wanted, target, where=where, offset=offset)
                for each in contenders or self.contenders
            ]
        floor = min((each for each in found if each.reaches), key=lambda each: each.p50_ms)
        floor.contender.tune(floor.effort, filtered=bool(where))
        asks: dict[str, Ask] = {"floor": lambda n: floor.contender.ask(queries[n], where, offset)}
        times = in_turns(asks | {each.name: each.ask for each in variants}, len(queries), self.scale.rounds)
        floor_p50 = percentiles(times["floor"])["p50_ms"]
        for variant, recall in zip(variants, recalls, strict=True):
            ratio = percentiles(times[variant.name])["p50_ms"] / floor_p50
            self.section["rows"].append(
                {"case": case, "variant": variant.name, "recall": recall}
                | percentiles(times[variant.name])
                | {"floor": floor.contender.name, "effort": floor.effort, "floor_recall": floor.recall}
                | {"floor_p50_ms": floor_p50, "ratio": ratio, "aim": variant.aim}
                | {"met": None if variant.aim is None else ratio <= variant.aim}
            )
        return sorted(
            found, key=lambda each: (not each.reaches, -each.recall * (not each.reaches), each.p50_ms)
        )

    def _recall(self, variant: Variant, wanted: Sequence[set[str]]) -> float:
        step = 1 if variant.exact is None else max(1, len(wanted) // self.scale.checked)
        hits, deadline = [], time.monotonic() + PATIENCE_SECONDS
        for n in range(0, len(wanted), step):
            right = wanted[n] if variant.exact is None else set(variant.exact(n))
            hits.append(len(right.intersection(variant.ask(n))) / max(1, len(right)))
            if len(hits) >= 5 and time.monotonic() > deadline:
                break
        return float(np.mean(hits))

    def ratio(self, case: str, variant: str) -> float:
        [row] = [each for each in self.section["rows"] if (each["case"], each["variant"]) == (case, variant)]
        return float(row["ratio"])


def named(lists: Sequence[Numbers], offset: int = 0) -> list[set[str]]:
    return [{f"o{n}" for n in numbers[offset : offset + SHOWN].tolist()} for numbers in lists]


def measure_plain(bench: Bench) -> list[Found]:
    """First page, further pages and filters; return what the contenders reached, the floor first."""
    given, queries, client = bench.given, bench.given.queries, Served(bench.port)
    right = given.nearest(queries, 10 * SHOWN)
    variants = [
        Variant("plain", bench.product(queries), aim=1.15),
        Variant("plain, over HTTP", lambda n: client.search(queries[n], collection="items")),
    ]
    found = bench.compare("page 1", queries, named(right), variants)
    bench.section["contenders"] = [each.told() for each in found]
    plain, over_http = bench.section["rows"][:2]
    added = over_http["p50_ms"] - plain["p50_ms"]
    bench.tell("HTTP adds to a search, p50", f"{added:.2f} ms", "<= 2 ms", added <= 2)
    kept = [each.contender for each in worth_asking(found)]
    for number in (2, 10):
        offset = (number - 1) * SHOWN
        variant = Variant("plain", bench.product(queries, offset=offset), aim=1.2 if number == 10 else None)
        case, wanted = f"page {number}", named(right, offset)
        bench.compare(case, queries, wanted, [variant], contenders=kept, offset=offset)
    asked = [(f"filter that keeps {100 // parts} %", name, 1) for name, parts in KEPT.items()]
    if given.other is not None:
        asked.append(("filter on another subject", "subject", given.other))
    for case, name, value in asked:
        matching = PayloadFilter.parse({"query": {"term": {"field": name, "value": value}}})
        wanted = named(given.nearest(queries, SHOWN, **{name: value}))
        variant = Variant("plain", bench.product(queries, filter=matching))
        bench.compare(case, queries, wanted, [variant], contenders=kept, where=f"{name} = {value}")
    return found


def worth_asking(found: Sequence[Found]) -> list[Found]:
    """Return the two fastest indexes that reach enough, or come nearest to it, and none."""
    none = [each for each in found if not each.contender.options]
    return [each for each in found if each.contender.options][:2] + none


def measure_personal(bench: Bench, tuned: Sequence[Found], *, with_crowd: bool) -> None:
    """Users of all conditions, each asked near queries of their own; then again beside many other users.

    By hand an index has one effort for all who search: what the queries of the first page needed. (The few
    that users ask here would each time choose another: a graph is drawn at random.)
    """
    given, scale, rng = bench.given, bench.scale, bench.rng
    storage, collection = bench.context.storage, bench.context.storage.collections.get("items")
    asked = given.queries[rng.permutation(len(given.queries))[: scale.users]]
    ranked = given.nearest(asked, max(each.near_objects for each in CONDITIONS))
    for condition in CONDITIONS:
        for user in range(scale.users if condition.memories else 0):
            state = condition.state(rng, given, asked[user], ranked[user])
            with storage.personal.learning(collection, [f"{condition.name} {user}"]) as transaction:
                transaction.replace_states({f"{condition.name} {user}": state})
    with connect(bench.url) as connection:
        connection.execute("VACUUM ANALYZE")
    queries = near(rng, np.repeat(asked, scale.turns, axis=0), 0.1)
    wanted = named(given.nearest(queries, SHOWN))

    def variant(condition: Condition) -> Variant:
        def ask(service: SearchService, n: int) -> list[str]:
            return bench.found_by(service, queries[n], user_id=f"{condition.name} {n // scale.turns}")

        asked_by = f"{condition.name} 0"
        page = bench.context.search.search(queries[0], collection="items", user_id=asked_by)
        assert page.personalised == (condition.near > 0), condition
        by_product, by_all = partial(ask, bench.context.search), partial(ask, bench.exact)
        return Variant(condition.name, by_product, by_all, condition.aim)

    plain = Variant("plain", bench.product(queries), aim=1.15)
    found = bench.compare("personal", queries, wanted, [plain, *map(variant, CONDITIONS)], tuned=tuned)
    if not with_crowd:
        return
    some = [plain, *map(variant, (CONDITIONS[2], CONDITIONS[5]))]
    before, after = (f"beside {users:,} others with state" for users in (0, scale.crowd))
    bench.compare(before, queries, wanted, some, tuned=found[:1])
    add_crowd(bench)
    bench.compare(after, queries, wanted, some, tuned=found[:1])
    for each in some:
        change = bench.ratio(after, each.name) / bench.ratio(before, each.name)
        bench.tell(f"{after}, times before: {each.name}", f"{change:.2f}", "<= 1.05", change <= 1.05)


def add_crowd(bench: Bench) -> None:
    """Give many users a state of three memories and ten personal objects each."""
    given, rng, storage = bench.given, bench.rng, bench.context.storage
    collection = storage.collections.get("items")
    for start in range(0, bench.scale.crowd, 500):
        states = {}
        for user in range(start, min(start + 500, bench.scale.crowd)):
            numbers = rng.integers(len(given.vectors), size=10)
            queries = near(rng, given.vectors[numbers[:3], 0], 0.3)
            moved = near(rng, given.vectors[numbers], 0.1)
            memories = []
            for k, query in enumerate(queries):
                mean, ids = given.vectors[numbers[k], 0], {f"o{n}" for n in numbers[k::3]}
                clicked = (f"o{numbers[k]}",)
                memories.append(QueryMemory(f"m{k}", "", k, query, mean, clicked, tuple(sorted(ids))))
            vectors = {f"o{n}": parts for n, parts in zip(numbers, moved, strict=True)}
            states[f"crowd {user}"] = PersonalState(tuple(memories), vectors)
        with storage.personal.learning(collection, list(states)) as transaction:
            transaction.replace_states(states)
    with connect(bench.url) as connection:
        connection.execute("VACUUM ANALYZE")


def measure_clients(bench: Bench, floor: Found) -> None:
    queries, count = bench.given.queries, len(bench.given.queries)

    def by_hand() -> Ask:
        own = replace(floor.contender)
        own.tune(floor.effort, filtered=False)
        return lambda n: own.ask(queries[n])

    def over_http() -> Ask:
        client = Served(bench.port)
        return lambda n: client.search(queries[n], collection="items")

    ways: dict[str, Callable[[], Ask]] = {
        "floor": by_hand,
        "product, threads of one process": lambda: bench.product(queries),
        "product, over HTTP": over_http,
    }
    for clients in (1, 4):
        for name, make in ways.items():
            figures = at_once(make, clients, bench.scale.seconds, count)
            bench.section["clients"].append({"who": name} | figures)


def measure_memory(bench: Bench, process: int) -> None:
    """Tell what the tables, the codes and the service take, and whether searches let the service grow."""
    collection = bench.context.storage.collections.get("items")
    schema = f"collection_{collection.collection_id}"
    with connect(bench.url) as connection:
        for table in ("objects", "parts", "codes", "personal_parts", "query_memory"):
            bench.tell(f"table {table} with its indexes", mb(size_of(connection, f"{schema}.{table}")))
        bench.tell("bare table without an index on vectors", mb(size_of(connection, "bare.items")))
    codes = bench.context.storage.objects.codes(collection)
    bench.tell("codes in memory, each process", mb(codes.bytes_in_memory))
    queries = bench.given.queries
    users = [f"{each.name} 0" for each in CONDITIONS if each.near_objects <= 100]

    def resident() -> int:
        status = Path(f"/proc/{process}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024

    def ask(numbers: range) -> None:
        client = Served(bench.port)
        for n in numbers:
            who = {"user_id": users[n % len(users)]} if n % 2 else {}
            client.search(queries[n % len(queries)], collection="items", **who)

    ask(range(400))
    before, started = resident(), time.perf_counter()
    together(ask, [range(k, bench.scale.searches, 2) for k in range(2)])
    after, seconds = resident(), time.perf_counter() - started
    growth = after / before - 1
    figure = f"{mb(before)} before, {mb(after)} after ({100 * growth:+.1f} %, {seconds:.0f} s)"
    aim = "bounded: <= 5 % more"
    bench.tell(f"memory of the service over {bench.scale.searches:,} searches", figure, aim, growth <= 0.05)


def mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def measure_learning_beside_loading(bench: Bench) -> None:
    """Load more objects, alone and while users click, and tell how long a click waits for its effect."""
    given, rng, scale = bench.given, bench.rng, bench.scale
    more = near(rng, given.vectors[rng.integers(len(given.vectors), size=scale.loaded)], 0.3)
    seconds = load(bench.url, "items", more[: scale.loaded // 2], "alone")
    tell_rate(bench, f"loading {scale.loaded // 2:,} more into the collection", scale.loaded // 2 / seconds)

    def waits(go_on: Callable[[int], bool], prefix: str, pause: float) -> list[float]:
        times: list[float] = []
        ask = partial(bench.context.search.search, collection="items")
        while go_on(len(times)):
            user, query = f"{prefix} {len(times)}", near(rng, given.vectors[len(times)][0], 0.3)
            session = f"{prefix}-{len(times)}"
            page = ask(query, user_id=user, create_session=True, session_id=session)
            clicked = SessionEvent(session_id=session, object_id=page.results[6].object_id)
            started = time.perf_counter()
            bench.context.clickstream_dao.push_events([clicked])
            while not ask(query, user_id=user).personalised:
                if time.perf_counter() - started > 120:
                    raise RuntimeError("a click had no effect within 120 seconds")
                time.sleep(pause)
            times.append(time.perf_counter() - started)
        return times

    with (
        running(bench.url, "worker"),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        alone = waits(lambda done: done < 23, "quiet", 0.002)[3:]
        loading: Future[float] = pool.submit(load, bench.url, "items", more, "beside")
        # A search every 10 ms, and not as many as two processors can do, of which loading had none left.
        beside = waits(lambda _: not loading.done(), "busy", 0.01)
        seconds = loading.result()
    told = f"p50 {1000 * np.median(alone):.0f} ms, longest {1000 * max(alone):.0f} ms"
    bench.tell("click to effect, nothing else going on", told)
    told = f"p50 {1000 * np.median(beside):.0f} ms, longest {1000 * max(beside):.0f} ms, {len(beside)} clicks"
    bench.tell(f"click to effect while {scale.loaded:,} objects are loaded in {seconds:.1f} s", told)
    tell_rate(bench, f"loading {scale.loaded:,} more, searches and learning going on", scale.loaded / seconds)


def tell_rate(bench: Bench, what: str, rate: float) -> None:
    bench.tell(what, f"{rate:,.0f} objects/s", ">= 5,000", rate >= 5000)


def measure_loading(bench: Bench, seconds: float, bare_seconds: float) -> None:
    N, P, _ = bench.given.vectors.shape
    tell_rate(bench, f"loading {N:,} objects of {P} part(s) into an empty collection", N / seconds)
    bench.tell("bare COPY of the same, without an index", f"{N / bare_seconds:,.0f} objects/s")
    for each in bench.contenders:
        if each.kind != "exact":
            rate = N / (bare_seconds + each.build_seconds)
            bench.tell(f"bare COPY, then {each.name}", f"{rate:,.0f} objects/s")
    if P == 1 and bench.given.other is None:
        parts = bench.given.vectors[: 4 * (N // 10)].reshape(-1, 4, D)
        for prefix, told in (("first", "an empty collection"), ("second", "the same again")):
            rate = len(parts) / load(bench.url, "parts", parts, prefix)
            tell_rate(bench, f"loading {len(parts):,} objects of 4 parts into {told}", rate)


# Runs and their page


def contenders_of(url: str, size: int, P: int, *, with_hnsw: bool, is_whole: bool) -> list[Contender]:
    root, is_huge = round(float(np.sqrt(size * P))), size * P > 200_000
    ways = [("ivfflat", "halfvec", f"lists = {root}")]
    if with_hnsw:
        ways.append(("hnsw", "halfvec", "m = 16, ef_construction = 64"))
    if not is_huge:
        ways.append(("ivfflat", "vector", f"lists = {root}"))
        if not is_whole:  # a minute to build, of 100,000
            ways.append(("ivfflat", "halfvec", f"lists = {size // 100}"))
        if with_hnsw:
            ways.append(("hnsw", "vector", "m = 16, ef_construction = 64"))
            ways.append(("hnsw", "halfvec", "m = 32, ef_construction = 200"))
    ways.append(("exact", "vector", ""))
    return [Contender(url, *way, P, number) for number, way in enumerate(dict.fromkeys(ways))]


def run(kind: str, folder: Path | None, scale: Scale, *, with_hnsw: bool, is_whole: bool) -> dict[str, Any]:
    """Measure one catalogue in a database of its own; return the section of the results."""
    given = catalogue(kind, folder, scale.size, scale.P, scale.queries)
    clock = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - clock:6.0f} s  {given.title}: {what}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedding-studio-serving-")))
        home.chmod(0o755)
        server = EmbeddedServer(home / "data")
        url = server.start()
        stack.callback(server.stop)
        context = stack.enter_context(context_of(url))
        compared = PostgresStorage(url, recall_target=1.0)
        stack.callback(compared.close)
        say("loading into the product")
        context.storage.collections.create("items", SearchIndexInfo(dimensions=D))
        seconds = context.index_objects("items", given.objects()).seconds
        say("loading by hand")
        contenders = contenders_of(url, scale.size, scale.P, with_hnsw=with_hnsw, is_whole=is_whole)
        with connect(url) as connection:
            bare_seconds = copied(connection, given)
            [(server_version,), (vector_version,)] = connection.execute(VERSIONS).fetchall()
        for contender in contenders:
            say(f"building {contender.name}")
            contender.build(list(given.labels))
            stack.callback(contender.connection.close)
        with connect(url) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        port, process = stack.enter_context(serving(url))
        bench = Bench(url, given, scale, context, SearchService(compared), contenders, port)
        say("plain search")
        found = measure_plain(bench)
        say("personal search")
        measure_personal(bench, worth_asking(found), with_crowd=is_whole)
        say("several clients")
        measure_clients(bench, found[0])
        say("memory")
        measure_memory(bench, process)
        say("loading and learning")
        measure_loading(bench, seconds, bare_seconds)
        if is_whole:
            measure_learning_beside_loading(bench)
        say("done")
    N, P, _ = given.vectors.shape
    parts = "" if P == 1 else f" x {P} parts"
    return bench.section | {
        "title": f"{N:,} objects{parts} x {D}: {given.title}",
        "command": f"python {shlex.join(sys.argv)}",
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "minutes": (time.perf_counter() - clock) / 60,
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f}",
        "versions": f"PostgreSQL {server_version}, pgvector {vector_version}",
        "queries": len(given.queries),
        "asked": min(TARGET, bench.section["rows"][0]["recall"]),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")


def outcome(each: dict[str, Any]) -> str:
    return "" if each["met"] is None else ("met" if each["met"] else "**not met**")


def tables(section: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield (title, head, rows)."""
    for title, head, rows in _tables(section):
        yield title, head.split(", "), rows


def _tables(section: dict[str, Any]) -> Iterator[tuple[str, str, list[list[str]]]]:
    yield (
        "Against bare pgvector",
        "case, who, p50, p95, p99 ms, recall, floor, its p50, its recall, ratio, aim, ",
        [
            [each["case"], each["variant"]]
            + [f"{each[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
            + [f"{each['recall']:.3f}", _floor(each["floor"], each["effort"])]
            + [f"{each['floor_p50_ms']:.2f}", f"{each['floor_recall']:.3f}", f"{each['ratio']:.2f}"]
            + [f"<= {each['aim']}" if each["aim"] else "", outcome(each)]
            for each in section["rows"]
        ],
    )
    yield (
        "Bare pgvector on the first page, fastest first",
        "how, ef_search or probes, recall, p50 ms, build s, index",
        [
            [
                each["name"],
                str(each["effort"] or ""),
                f"{each['recall']:.3f}"
                + ("" if each["reaches"] else f": does not reach {section['asked']:.2f}"),
                f"{each['p50_ms']:.2f}",
                f"{each['build_seconds']:.1f}",
                mb(each["index_bytes"]),
            ]
            for each in section["contenders"]
        ],
    )
    yield (
        "Several clients",
        "clients, who, queries/s, p50, p95, p99 ms",
        [
            [str(each["clients"]), each["who"], f"{each['queries_per_second']:,.0f}"]
            + [f"{each[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
            for each in section["clients"]
        ],
    )
    yield (
        "Loading, memory, clicks",
        "what, figure, aim, ",
        [[each["what"], each["figure"], each["aim"], outcome(each)] for each in section["facts"]],
    )


def _floor(name: str, effort: int) -> str:
    return f"{name}, {effort}" if effort else name


PAGE = f"""# Serving

What a search costs beside the same search written by hand in SQL over pgvector. This page is the output of
the commands that stand below; times are those of the machine that ran them, ratios travel better.

- **Floor**: bare pgvector, one connection, prepared statements, the same vectors in the same database. HNSW
  and IVFFlat over `vector` and `halfvec` (twice as many drawn, ranked again in full precision), with the
  smallest `ef_search` of {", ".join(map(str, EF_SEARCH))} or `probes` of {", ".join(map(str, PROBES))}
  that reaches the recall which the product reaches, or {TARGET} if that is lower; and no index at all. The
  fastest of those that reach it is the floor of the row: of all on the first page, elsewhere of the two
  fastest indexes and of none. With a filter, scans are iterative and the columns asked for have indexes.
  Of more than 200,000 vectors only `halfvec` indexes are built.
  A graph of HNSW is drawn at random, and with it how large `ef_search` must be: of few objects that alone can
  move the floor, and so all ratios of a section, by half from one run to the next.
  Under personal searches stands what the queries of the first page needed: by hand `ef_search` is set once.
- **Product**: `SearchService.search` with the query's vectors, in one thread, at default settings, over the
  embedded PostgreSQL as it is shipped. *Over HTTP* is `embedding-studio serve` and a client that keeps its
  connection, with the time to write and read JSON.
- **In turns**: product and floor are asked the same query one after the other, who begins changes, and
  medians are compared. The floor of a personal search is the *plain* search by hand: pgvector has no other.
- **Recall** is of the {SHOWN} results of the page, against all compared in numpy; of a personal search,
  against the product with everything compared (`recall_target=1`), which tests hold to brute force.
- **Users**: a memory that is *near* has a cosine of about .95 to the query. Personal objects that are *near*
  are those nearest to the query and were moved by such memories, so that all of them take part in the search.
- **Vectors**: a real vector mixed with one of its neighbours, and noise; queries are real. *One subject* is
  nfcorpus; *three* are cranfield, nfcorpus and movielens one after the other, with queries about the first
  two.
- **Aims** are those of the project. Where one is not met, that is said.
"""


def meaning(section: dict[str, Any]) -> str:
    """Return in words what the figures say."""
    rows = section["rows"]
    plain, personal = rows[0], [each for each in rows if each["case"] == "personal"][1:]
    far = max(each["ratio"] for each in personal if " 0 near;" in each["variant"])
    worst = max(personal, key=lambda each: float(each["ratio"]))
    told = [*rows, *section["facts"]]
    missed = [each for each in told if each["met"] is False]
    failed = [each["name"] for each in section["contenders"] if not each["reaches"]]
    lines = [
        f"A search finds {100 * plain['recall']:.1f} % of the nearest in {plain['p50_ms']:.1f} ms,",
        f"{plain['ratio']:.2f} times the {plain['floor_p50_ms']:.1f} ms of the fastest way by hand:",
        f"{plain['floor']}, which finds {100 * plain['floor_recall']:.1f} %.",
        f"For a user whose past is not near the query it takes {far:.2f} times its floor, at most.",
        f"At worst ({worst['variant']}) a personal search takes {worst['ratio']:.1f} times the plain floor.",
        f"By hand {', '.join(failed)} did not find enough at any setting." if failed else "",
        f"{sum(bool(each['met']) for each in told)} aims are met, {len(missed)} are not.",
    ]
    return "\n".join(filter(None, lines))


def page(sections: dict[str, Any]) -> str:
    text = [PAGE]
    for section in sections.values():
        ran = "; ".join(section[name] for name in ("when", "machine", "versions"))
        text.append(f"## {section['title']}\n\n```console\n$ {section['command']}\n```\n")
        text.append(f"{ran}; {section['minutes']:.0f} minutes, {section['queries']} queries.\n")
        text.append(meaning(section) + "\n")
        for title, head, rows in tables(section):
            lines = [head, ["---"] * len(head), *rows]
            text.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 objects, to see that it runs")
    parser.add_argument("--large", action="store_true", help="1,000,000 objects")
    parser.add_argument("--parts", action="store_true", help="4 parts an object")
    parser.add_argument(
        "--no-hnsw", action="store_true", help="leave out the graphs, which take long to build"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with cranfield, nfcorpus and movielens; else made vectors"
    )
    parser.add_argument("--sets", help="of: one,three; default: both, with --large or --parts the first")
    parser.add_argument("--json", type=Path, help="the results; sections that it holds already stay")
    parser.add_argument("--markdown", type=Path, help="write the page docs/serving.md here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the servers would go on without us
    size, P = 1_000_000 if arguments.large else 100_000, 4 if arguments.parts else 1
    scale = Scale(size, P)
    if arguments.large:
        scale = Scale(size, P, queries=100, users=4, checked=8, searches=1_000)
    if arguments.quick:
        scale = Scale(size // 10, P, 60, users=3, crowd=1_000, searches=1_000, loaded=4_000, seconds=1)
    kinds = arguments.sets or ("one" if arguments.large or arguments.parts else "one,three")
    sections: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        sections = json.loads(arguments.json.read_text())
    for kind in kinds.split(",") if arguments.data else ["made"]:
        is_whole = kind != "three"
        searches = scale.searches if is_whole else scale.searches // 5
        section = run(
            kind,
            arguments.data,
            replace(scale, searches=searches),
            with_hnsw=not arguments.no_hnsw,
            is_whole=is_whole,
        )
        sections[f"{kind}, {scale.size} x {P}"] = section
        for title, head, rows in tables(section):
            table = Table(*head, title=f"{section['title']}: {title}")
            for row in rows:
                table.add_row(*map(Text, row))
            Console(width=220).print(table)
        if arguments.json:
            arguments.json.write_text(json.dumps(sections, indent=2) + "\n")
        if arguments.markdown:
            arguments.markdown.write_text(page(sections))


if __name__ == "__main__":
    main()
