"""Whether search finds the nearest, beside bare pgvector, in catalogues of many shapes.

    python benchmarks/recall.py [--quick] [--large] [--data FOLDER] [--json OUT] [--markdown docs/recall.md]

Everything runs in one go over the embedded PostgreSQL. What is true is computed with numpy.

Axes: N objects · P parts of an object · Q queries · D dimensions.
"""

import argparse
import gzip
import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from embedding_studio import Context, SearchIndexInfo, SessionEvent, load_settings
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.recall import bootstrap_interval, share_found
from embedding_studio.search import SearchResult
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.postgres.vectors import pack, register

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]
Search = Callable[[Vectors], Sequence[int]]
"""From a query [D] to the numbers of the objects found, nearest first."""

K = 10
D = 384
INDEX = SearchIndexInfo(dimensions=D)
BATCH = 1_000
WARM_UP = 10
SEED = 7
EXACT_TIMED = 40
HNSW = "m = 16, ef_construction = 64"
LIVE_FROM = 3_000
"""Rows after which the index exists that the further ones are inserted into."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a world.

    Attributes:
        asked: name of the queries.
        where: field and value that a result's payload must have.
    """

    title: str
    asked: str
    where: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A catalogue, in the order in which it is loaded, and what is asked of it.

    Attributes:
        parts: [N, P, D].
        fields: payload, [N] by name.
        queries: [Q, D] by name.
    """

    title: str
    parts: Vectors
    queries: Mapping[str, Vectors]
    cases: Sequence[Case]
    fields: Mapping[str, Numbers] = field(default_factory=dict)
    index: SearchIndexInfo = INDEX

    def payload(self, n: int) -> dict[str, Any]:
        return {name: int(values[n]) for name, values in self.fields.items()}

    def objects(self, numbers: Sequence[int]) -> list[CatalogueObject]:
        return [CatalogueObject(str(n), self.parts[n], self.payload(n)) for n in numbers]

    def matching(self, where: tuple[str, int] | None) -> Numbers:
        return (
            np.arange(len(self.parts)) if where is None else np.flatnonzero(self.fields[where[0]] == where[1])
        )


@dataclass(frozen=True, slots=True)
class Row:
    """How one searcher fared in one case."""

    case: str
    by: str
    recall: float
    low: float
    high: float
    right_first: float
    p50_ms: float
    p95_ms: float
    queries: int


@dataclass(slots=True)
class Told:
    """A table of the page, and the facts under it."""

    title: str
    objects: int
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


# Worlds


def unit(vectors: NDArray[Any]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def near(rng: np.random.Generator, vectors: Vectors, noise: float = 0.5) -> Vectors:
    """Return queries near to vectors [Q, D]: noise of so many of their lengths is added."""
    direction = unit(rng.normal(size=vectors.shape))
    return np.asarray(
        vectors + noise * np.linalg.norm(vectors, axis=1, keepdims=True) * direction, np.float32
    )


def shares(rng: np.random.Generator, N: int) -> dict[str, Numbers]:
    """Return fields that are 1 for 50 %, 10 % and 1 % of the objects, whatever these are."""
    return {
        name: (rng.random(N) < share).astype(np.int64)
        for name, share in (("half", 0.5), ("tenth", 0.1), ("hundredth", 0.01))
    }


def share_cases(asked: str) -> list[Case]:
    return [
        Case(f"a filter that {share} match", asked, (name, 1))
        for name, share in (("half", "50 %"), ("tenth", "10 %"), ("hundredth", "1 %"))
    ]


def three_subjects(data: Path, queries: int) -> World:
    """Return cranfield, nfcorpus and movielens in one collection, one after the other.

    Raises:
        FileNotFoundError: the data are not there.
    """
    rng = np.random.default_rng(SEED)
    names = ("cranfield", "nfcorpus", "movielens")
    items = [unit(np.load(data / name / "items.f16.npy").astype(np.float32)) for name in names]
    subject = np.repeat(np.arange(3), [len(each) for each in items])
    asked = {}
    for name in names[:2]:
        vectors = unit(np.load(data / name / "queries.f16.npy").astype(np.float32))
        if name == "nfcorpus":
            vectors = vectors[well_judged(data / name)]
        asked[name] = vectors[rng.permutation(len(vectors))[:queries]]
    cases = [
        *(Case(f"queries of {name}", name) for name in asked),
        Case("queries of cranfield, films alone", "cranfield", ("subject", 2)),
        Case("queries of cranfield, nfcorpus alone", "cranfield", ("subject", 1)),
        Case("queries of nfcorpus, cranfield alone", "nfcorpus", ("subject", 0)),
        Case("queries of nfcorpus, films alone", "nfcorpus", ("subject", 2)),
        *share_cases("nfcorpus"),
    ]
    parts = np.concatenate(items)[:, None]
    return World("three subjects", parts, asked, cases, {"subject": subject} | shares(rng, len(parts)))


def well_judged(folder: Path) -> Numbers:
    """Return the rows of queries with at least five relevant items."""
    judged = Counter(line.split("\t")[0] for line in lines_of(folder / "qrels.tsv.gz"))
    ids = [line.split("\t")[0] for line in lines_of(folder / "queries.tsv.gz")]
    return np.array([row for row, each in enumerate(ids) if judged[each] >= 5])


def lines_of(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def two_clusters(N: int, queries: int) -> World:
    rng = np.random.default_rng(SEED)
    centres = unit(rng.normal(size=(2, D)))
    points = unit(np.repeat(centres, N // 2, axis=0) + 0.3 * unit(rng.normal(size=(N, D))))
    cluster = np.repeat([0, 1], N // 2)
    first = points[rng.integers(N // 2, size=queries)]
    cases = [
        Case("near the first cluster", "first"),
        Case("near the first cluster, the second alone", "first", ("cluster", 1)),
        *share_cases("first"),
    ]
    return World(
        "two far, tight clusters", points[:, None], {"first": near(rng, first, 0.15)}, cases,
        {"cluster": cluster} | shares(rng, N),
    )  # fmt: skip


def many_equal(N: int, queries: int) -> World:
    """Half of the objects are one vector; five others are beside it, and queries are near to these."""
    rng = np.random.default_rng(SEED)
    one = unit(rng.normal(size=(1, D)))
    beside = unit(one + 0.1 * unit(rng.normal(size=(1, D))) + 0.01 * unit(rng.normal(size=(5, D))))
    rest = unit(rng.normal(size=(N - N // 2 - 5, D)))
    points = np.concatenate([np.repeat(one, N // 2, axis=0), rest, beside])
    asked = near(rng, beside[rng.integers(5, size=queries)], 0.02)
    return World(
        "half of all vectors equal, five beside them",
        points[:, None],
        {"five": asked},
        [Case("near the five", "five")],
    )


def gaussian(N: int, queries: int) -> World:
    rng = np.random.default_rng(SEED)
    points = rng.normal(size=(N, 1, D)).astype(np.float32)
    asked = rng.normal(size=(queries, D)).astype(np.float32)
    return World("noise: nothing is like anything", points, {"any": asked}, [Case("noise", "any")])


def alike(base: World) -> World:
    """Return a world as a model sees it to which all is alike: what is unrelated has a cosine of .8."""
    common = 2 * unit(np.random.default_rng(SEED).normal(size=D))
    return replace(
        base,
        title=f"{base.title}, to a model that finds all texts alike",
        parts=unit(unit(base.parts) + common),
        queries={name: unit(unit(queries) + common) for name, queries in base.queries.items()},
        cases=[case for case in base.cases if case.where is None or case.where[0] == "subject"],
    )


def subjects(N: int, queries: int) -> World:
    """Return made vectors of three subjects with sixty topics each, for where the real ones are absent."""
    rng = np.random.default_rng(SEED)
    subject = np.sort(rng.integers(3, size=N))
    centres, topics = rng.normal(size=(3, D)), rng.normal(size=(3, 60, D))
    points = centres[subject] + topics[subject, rng.integers(60, size=N)] + rng.normal(size=(N, D))
    own = points[rng.choice(np.flatnonzero(subject == 0), size=queries)]
    cases = [
        Case("queries of the first", "first"),
        Case("queries of the first, the third alone", "first", ("subject", 2)),
        *share_cases("first"),
    ]
    return World(
        "three made subjects", unit(points)[:, None], {"first": near(rng, unit(own))}, cases,
        {"subject": subject} | shares(rng, N),
    )  # fmt: skip


def grown(base: World, N: int) -> World:
    """Return a world of another size: vectors lie between two near ones of the base, and a bit beside."""
    rng = np.random.default_rng(N)
    vectors = base.parts[:, 0]
    neighbours = np.concatenate(
        [
            np.argpartition(-(vectors[s : s + 2000] @ vectors.T), 11, axis=1)[:, :12]
            for s in range(0, len(vectors), 2000)
        ]
    )
    made = np.empty((N, D), dtype=np.float32)
    source = np.sort(rng.integers(len(vectors), size=N))  # by subject, as the base is
    for start in range(0, N, 50_000):
        rows = source[start : start + 50_000]
        other = neighbours[rows, rng.integers(12, size=len(rows))]
        weight = 0.7 * rng.random((len(rows), 1), dtype=np.float32)
        between = unit((1 - weight) * vectors[rows] + weight * vectors[other])
        made[start : start + len(rows)] = unit(
            between + 0.45 * unit(rng.standard_normal((len(rows), D), dtype=np.float32))
        )
    fields = {"subject": base.fields["subject"][source]} | shares(rng, N)
    plain = [case for case in base.cases if case.where is None]
    other_subject = [case for case in base.cases if case.where and case.where[0] == "subject"][:1]
    return World(
        f"{N:,} objects, mixtures of {base.title} with noise", made[:, None], base.queries,
        [*plain, *other_subject, *share_cases(base.cases[0].asked)], fields,
    )  # fmt: skip


def geometries(base: World, N: int, queries: int) -> Iterator[World]:
    """Yield worlds of other metrics, aggregations and parts; lengths are unequal where they count."""
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(len(base.parts), size=min(N, len(base.parts)), replace=False))
    name, asked = next(iter(base.queries.items()))
    for metric in MetricType:
        for P, aggregation in ((1, "min"), (4, "min"), (4, "avg")):
            if P == 1 and metric is MetricType.COSINE:
                continue  # is all the other tables
            parts = base.parts[rows]
            if P > 1:
                parts = parts + np.float32(0.7) * unit(rng.normal(size=(len(rows), P, D)))
            if metric is not MetricType.COSINE:
                parts = parts * rng.uniform(0.8, 1.25, size=(*parts.shape[:2], 1)).astype(np.float32)
            yield World(
                f"{metric.value}, {P} part{'s, ' + aggregation if P > 1 else ''}",
                parts.astype(np.float32),
                {name: asked[:queries]},
                [Case(f"{metric.value}, {P} part{'s, ' + aggregation if P > 1 else ''}", name)],
                index=SearchIndexInfo(
                    dimensions=D,
                    metric_type=metric,
                    metric_aggregation_type=MetricAggregationType(aggregation),
                ),
            )


# What is true


def distances(world: World, queries: Vectors, rows: Numbers) -> NDArray[np.float64]:
    """Return [Q, N] by the definitions, of the objects in ``rows``."""
    metric = world.index.metric_type
    q = queries.astype(np.float64)
    if metric is MetricType.COSINE:
        q /= np.linalg.norm(q, axis=1, keepdims=True)
    found = np.empty((len(q), len(rows)))
    for start in range(0, len(rows), 20_000):
        parts = world.parts[rows[start : start + 20_000]].astype(np.float64)
        lengths = np.linalg.norm(parts, axis=2)
        products = np.einsum("npd,qd->qnp", parts, q, optimize=True)
        if metric is MetricType.COSINE:
            pairs = 1 - products / lengths
        elif metric is MetricType.DOT:
            pairs = -products
        else:
            squares = (q**2).sum(axis=1)[:, None, None] + lengths**2 - 2 * products
            pairs = np.sqrt(np.maximum(squares, 0))
        is_min = world.index.metric_aggregation_type is MetricAggregationType.MIN
        found[:, start : start + 20_000] = pairs.min(axis=2) if is_min else pairs.mean(axis=2)
    return found


class Truth:
    """How near everything that matches is to the queries of a case."""

    def __init__(self, world: World, case: Case) -> None:
        self.queries = world.queries[case.asked]
        self.rows = world.matching(case.where)
        self.row_of = {int(n): i for i, n in enumerate(self.rows)}
        self._distances = distances(world, self.queries, self.rows).astype(
            np.float32 if len(self.rows) > 200_000 else np.float64
        )

    def compare(self, n: int, found: Sequence[int], k: int = K) -> tuple[float, bool]:
        """Return the share found of the k nearest to the n-th query, and whether the first one is right."""
        of = self._distances[n]
        nearest = np.sort(np.partition(of, k - 1)[:k]) if len(of) > k else np.sort(of)
        own = [float(of[self.row_of[each]]) if each in self.row_of else math.inf for each in found[:k]]
        return share_found(own, nearest.tolist())


def measured(truth: Truth, case: str, by: str, search: Search, *, queries: int | None = None) -> Row:
    asked = truth.queries[:queries]
    for query in asked[:WARM_UP]:
        search(query)
    recalls, firsts, seconds = (np.empty(len(asked)) for _ in range(3))
    for n, query in enumerate(asked):
        started = time.perf_counter()
        found = search(query)
        seconds[n] = time.perf_counter() - started
        recalls[n], firsts[n] = truth.compare(n, found)
    return row_of(case, by, recalls, firsts, seconds)


def row_of(
    case: str, by: str, recalls: NDArray[Any], firsts: NDArray[Any], seconds: NDArray[Any], *, k: int = K
) -> Row:
    low, high = bootstrap_interval(recalls, k)
    p50, p95 = np.percentile(1000 * seconds, [50, 95])
    told = Row(
        case, by, float(recalls.mean()), low, high, float(firsts.mean()), float(p50), float(p95), len(recalls)
    )
    print(
        f"  {case:45} {by:28} recall {told.recall:.4f} (from {low:.4f})  first {told.right_first:.3f}  "
        f"p50 {p50:.1f}  p95 {p95:.1f} ms",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return told


# The product


def load(context: Context, world: World, *, name: str = "benchmark") -> tuple[Collection, float]:
    """Store a world in batches, in its order; return the collection and seconds."""
    storage = context.storage
    if any(each.name == name for each in storage.collections.list()):
        storage.collections.drop(name)
    collection = storage.collections.create(name, world.index)
    seconds = 0.0
    for start in range(0, len(world.parts), BATCH):
        objects = world.objects(range(start, min(start + BATCH, len(world.parts))))
        started = time.perf_counter()
        storage.objects.upsert(collection, objects)
        seconds += time.perf_counter() - started
    return collection, seconds


def by_product(
    context: Context, collection: Collection, where: tuple[str, int] | None, margin: float | None = None
) -> Search:
    wanted = None
    if where is not None:
        wanted = PayloadFilter.parse({"query": {"term": {"field": where[0], "value": where[1]}}})

    def search(query: Vectors) -> Sequence[int]:
        found = context.storage.objects.nearest(collection, query[None], K, filter=wanted, margin=margin)
        return [int(each.object_id) for each in found]

    return search


def examined(context: Context, world: World, *, bare: bool, is_growing: bool = False) -> Told:
    """Measure the product in a world, and bare pgvector in the same database."""
    print(f"{world.title}: {len(world.parts):,} objects", file=sys.stderr, flush=True)
    told = Told(world.title, len(world.parts))
    collection, seconds = load(context, world)
    codes = context.storage.objects.codes(collection)
    told.facts = {
        "loaded, objects a second": len(world.parts) / seconds,
        "bytes of codes a part, in memory": codes.bytes_in_memory / max(1, codes.parts),
        "margin": codes.margin or math.inf,
    }
    truths = {case.title: Truth(world, case) for case in world.cases}
    for case in world.cases:
        truth = truths[case.title]
        told.rows.append(
            measured(truth, case.title, "Embedding Studio", by_product(context, collection, case.where))
        )
        exact = by_product(context, collection, case.where, math.inf)
        told.rows.append(measured(truth, case.title, "all compared", exact, queries=EXACT_TIMED))
    if bare:
        with connected(context) as connection:
            for row in bare_rows(connection, world, truths, told.facts, is_growing=is_growing):
                told.rows.append(row)
    told.rows.sort(key=lambda row: list(truths).index(row.case))
    return told


def rewritten(context: Context, world: World) -> Told:
    """Measure after six rewrites of all objects in another order, each with small changes."""
    rng = np.random.default_rng(SEED)
    print(f"{world.title}, rewritten six times", file=sys.stderr, flush=True)
    collection, _ = load(context, world)
    parts = world.parts
    for _ in range(6):
        parts = unit(parts + 0.02 * unit(rng.normal(size=parts.shape)))
        world = replace(world, parts=parts)
        order = rng.permutation(len(parts))
        for start in range(0, len(order), BATCH):
            context.storage.objects.upsert(collection, world.objects(order[start : start + BATCH].tolist()))
    told = Told(f"{world.title}, after six rewrites", len(parts))
    for case in world.cases:
        if case.where is None:
            search = by_product(context, collection, None)
            told.rows.append(measured(Truth(world, case), case.title, "Embedding Studio", search))
    return told


def personal(context: Context, exact: Context, world: World) -> Told:
    """Measure personal search of users who have clicked for near queries, against comparing all.

    Each user searched twice for something near the query, clicked the fifth result, and was learnt from.
    """
    rng = np.random.default_rng(SEED)
    print(f"{world.title}, personal", file=sys.stderr, flush=True)
    collection, _ = load(context, world)
    told = Told(f"{world.title}, personal", len(world.parts))
    for case in [each for each in world.cases if each.where is None or each.where[0] == "subject"][:3]:
        queries = world.queries[case.asked][:100]
        users = [f"{case.title} {n}" for n in range(len(queries))]
        for user, query in zip(users, queries, strict=True):
            for past in near(rng, np.stack([query, query]), 0.3):
                page = context.search.search(
                    past, collection=collection.name, user_id=user, create_session=True
                )
                clicked = SessionEvent(session_id=page.session_id, object_id=page.results[4].object_id)
                context.clickstream_dao.push_events([clicked])
        improver = context.improver()
        while improver.improve_once(users=100).users:
            pass
        wanted = None
        if case.where is not None:
            wanted = PayloadFilter.parse(
                {"query": {"term": {"field": case.where[0], "value": case.where[1]}}}
            )
        recalls, firsts, seconds = (np.empty(len(queries)) for _ in range(3))
        seconds_exact, bent = np.empty(len(queries)), 0
        for n, (user, query) in enumerate(zip(users, queries, strict=True)):
            given: dict[str, Any] = {"collection": collection.name, "user_id": user, "filter": wanted}
            started = time.perf_counter()
            page = context.search.search(query, **given)
            seconds[n] = time.perf_counter() - started
            started = time.perf_counter()
            true = exact.search.search(query, **given)
            seconds_exact[n] = time.perf_counter() - started
            bent += page.personalised
            recalls[n], firsts[n] = share_found(
                [each.distance for each in page.results], [each.distance for each in true.results]
            )
        told.rows.append(row_of(case.title, "Embedding Studio", recalls, firsts, seconds))
        told.rows.append(
            row_of(case.title, "all compared", np.ones(len(queries)), np.ones(len(queries)), seconds_exact)
        )
        told.facts[f"searches that clicks bear on, {case.title}"] = bent / len(queries)
    return told


def paged(context: Context, world: World) -> Told:
    """Measure pages of ten up to a hundred results: what they show together, and whether each object once."""
    print(f"{world.title}, page by page", file=sys.stderr, flush=True)
    collection, _ = load(context, world)
    told = Told(f"{world.title}, pages of ten up to the hundredth result", len(world.parts))
    case = world.cases[0]
    truth = Truth(world, case)
    queries = truth.queries[:50]
    recalls, firsts, seconds = np.empty(len(queries)), np.empty(len(queries)), []
    repeated = disordered = 0
    for n, query in enumerate(queries):
        shown: list[SearchResult] = []
        for offset in range(0, 100, 10):
            started = time.perf_counter()
            shown += context.search.search(query, collection=collection.name, offset=offset).results
            seconds.append(time.perf_counter() - started)
        found = [int(each.object_id) for each in shown]
        recalls[n], firsts[n] = truth.compare(n, found, k=100)
        repeated += len(found) - len(set(found))
        keys = [(each.distance, each.object_id) for each in shown]
        disordered += keys != sorted(keys)
    told.rows.append(
        row_of(f"{case.title}, recall@100", "Embedding Studio", recalls, firsts, np.array(seconds), k=100)
    )
    told.facts = {"results shown twice": repeated, "lists out of order": disordered}
    return told


# Bare pgvector


@contextmanager
def served() -> Iterator[str]:
    """Run a server; yield its URL."""
    with tempfile.TemporaryDirectory(prefix="embedding-studio-recall-") as folder:
        Path(folder).chmod(0o755)  # as root the server runs as somebody else, who must get in
        with EmbeddedServer(Path(folder) / "data") as url:
            yield url


@contextmanager
def connected(context: Context) -> Iterator[psycopg.Connection]:
    url = context.settings.database_url
    assert url is not None
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        register(connection)
        connection.execute("SET jit = off")
        connection.execute("SET maintenance_work_mem = '4GB'")
        yield connection


def bare_rows(
    connection: psycopg.Connection,
    world: World,
    truths: Mapping[str, Truth],
    facts: dict[str, float],
    *,
    is_growing: bool,
) -> Iterator[Row]:
    """Yield how graphs and lists of pgvector fare, asked by hand."""
    N = len(world.parts)
    lists = round(math.sqrt(N))
    kinds = [
        ("hnsw", f"hnsw (embedding vector_cosine_ops) WITH ({HNSW})", False),
        ("ivfflat", f"ivfflat (embedding vector_cosine_ops) WITH (lists = {lists})", False),
    ]
    if is_growing:
        kinds.insert(1, ("hnsw, loaded into", kinds[0][1], True))
    for kind, definition, is_live in kinds:
        seconds = fill(connection, world, definition if is_live else None)
        if not is_live:
            seconds = index(connection, definition)
        facts[f"{kind}: seconds of {'loading' if is_live else 'building'}"] = seconds
        [(size,)] = connection.execute("SELECT pg_relation_size('bare_nearest')").fetchall()
        facts[f"{kind}: bytes a part, on disk"] = size / N
        for by, settings in tried(kind):
            for setting in settings:
                connection.execute(setting)
            for case in world.cases:
                yield measured(truths[case.title], case.title, by, by_hand(connection, case.where))
            for setting in ("RESET hnsw.iterative_scan", "RESET ivfflat.iterative_scan"):
                connection.execute(setting)
    connection.execute("DROP TABLE bare")


def tried(kind: str) -> Iterator[tuple[str, list[str]]]:
    if kind == "ivfflat":
        for probes in (10, 40):
            yield f"ivfflat, probes {probes}", [f"SET ivfflat.probes = {probes}"]
        return
    for ef in (100, 400):
        yield f"{kind}, ef_search {ef}", [f"SET hnsw.ef_search = {ef}"]
    if kind == "hnsw":
        yield (
            f"{kind}, 100, iterative",
            ["SET hnsw.ef_search = 100", "SET hnsw.iterative_scan = strict_order"],
        )


def fill(connection: psycopg.Connection, world: World, live_index: str | None) -> float:
    connection.execute("DROP TABLE IF EXISTS bare")
    columns = sql.SQL("").join(sql.SQL("{} int, ").format(sql.Identifier(name)) for name in world.fields)
    connection.execute(
        sql.SQL("CREATE TABLE bare (id int PRIMARY KEY, {}embedding vector({}))").format(
            columns, sql.Literal(D)
        )
    )
    connection.execute("ALTER TABLE bare ALTER COLUMN embedding SET STORAGE PLAIN")
    started = time.perf_counter()
    for start in range(0, len(world.parts), BATCH):
        if live_index is not None and start == LIVE_FROM:
            index(connection, live_index)
        rows = range(start, min(start + BATCH, len(world.parts)))
        with connection.cursor() as cursor, cursor.copy("COPY bare FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4"] * (1 + len(world.fields)) + ["vector"])
            for n, vector in zip(rows, pack(world.parts[rows.start : rows.stop, 0]), strict=True):
                copy.write_row((n, *(int(values[n]) for values in world.fields.values()), vector))
    seconds = time.perf_counter() - started
    connection.execute("ANALYZE bare")
    return seconds


def index(connection: psycopg.Connection, definition: str) -> float:
    started = time.perf_counter()
    connection.execute(f"CREATE INDEX bare_nearest ON bare USING {definition}".encode())
    return time.perf_counter() - started


def by_hand(connection: psycopg.Connection, where: tuple[str, int] | None) -> Search:
    condition: sql.Composable = sql.SQL("")
    if where is not None:
        condition = sql.SQL(" WHERE {} = {}").format(sql.Identifier(where[0]), sql.Literal(where[1]))
    statement = sql.SQL("SELECT id FROM bare{} ORDER BY embedding <=> %s LIMIT {}").format(
        condition, sql.Literal(K)
    )
    text = statement.as_bytes()

    def search(query: Vectors) -> Sequence[int]:
        return [n for (n,) in connection.execute(text, (pack(query[None])[0],), prepare=True, binary=True)]

    return search


# The page

PAGE = """# Are the nearest found?

This page is the output of one command. Absolute times are those of the machine that ran it last (2 cores,
shared with other work); what is found does not depend on it.

```console
$ {command}
```

## How search works

- A collection of fewer than {large:,} parts is compared as a whole by PostgreSQL. Nothing can be missed.
- From there on each process keeps a *code* of every part in memory: a byte for each of the vector's
  components after a rotation, and four numbers (after RaBitQ, Gao and Long, SIGMOD 2024). A search compares
  the query with **all** codes, first by their signs alone, which tells how near each part is up to an error
  whose size is known. What this error does not rule out, within `margin` standard errors, PostgreSQL compares
  exactly. So distances are true and lists are in their true order; what can happen is that one is missing.
- Under a filter the nearest are asked whether they match; if too few do, PostgreSQL says what matches, and
  the codes of these alone are compared. Where the error rules out too little, all is compared.
- There is no graph and there are no lists of cells, so neither the shape of a catalogue, nor the order or age
  of its objects, nor a filter decides what can be reached.

## What it costs

In memory {bytes_a_part:.0f} bytes a part of {D} dimensions, in each process that searches the collection (the
vector itself has {vector_bytes:,}), and about the same once in the database, from where a process reads it at
its first search. Times are in the tables; they grow with the number of parts.

## What is guaranteed, and what is not

- Guaranteed: distances are exact, and a list is in their order; a list is short only if no more objects
  match; with fewer than {large:,} parts, and at any size with `RECALL_TARGET=1`, nothing is missed.
- Not guaranteed, but measured: how little is missed otherwise. The margin for a `RECALL_TARGET` (.99 unless
  you set it) comes from the error's distribution and from the catalogues below; yours may be another.
  `embedding-studio recall COLLECTION` measures yours, on its own queries, and stores the margin it needs.
- An interval is a 95 % bootstrap interval over queries. Where nothing was missed, its lower end is what one
  query more that misses one result makes possible.

## Read the tables

Recall is the mean share of the {K} nearest that is found; of objects as near as the last of these any will
do. *First* is the share of queries whose first result is as near as can be. *All compared* is this product
with an infinite margin, on {exact_timed} queries. *hnsw* (m 16, ef_construction 64) and *ivfflat* (as many
lists as the root of the number of objects) are indexes of pgvector in the same database, asked by
hand-written SQL over one table. They are built after loading, but for *loaded into*, where the index is there
from {live:,} objects on, as in a catalogue that grows. *Iterative* is pgvector's iterative scan in strict
order. Objects are loaded in the order of their subject, in batches of {batch:,}.
"""


def page(report: Sequence[Told], skipped: Sequence[str], command: str) -> str:
    facts = [each.facts for each in report if "bytes of codes a part, in memory" in each.facts]
    lines = [
        PAGE.format(
            command=command, K=K, D=D, large=3_000, live=LIVE_FROM, batch=BATCH, exact_timed=EXACT_TIMED,
            vector_bytes=4 * D, bytes_a_part=facts[0]["bytes of codes a part, in memory"],
        ).rstrip()
    ]  # fmt: skip
    lines += [f"\nNot measured in this run: {each}." for each in skipped]
    for told in report:
        lines += [
            f"\n## {told.title[:1].upper()}{told.title[1:]}\n",
            f"{told.objects:,} objects.\n",
            "| | searched by | recall | 95 % interval | first | p50 ms | p95 ms |",
            "|---|---|---|---|---|---|---|",
        ]
        last = ""
        for row in told.rows:
            name = f"**{row.by}**" if row.by == "Embedding Studio" else row.by
            lines.append(
                f"| {row.case if row.case != last else ''} | {name} | {row.recall:.4f} | "
                f"{row.low:.4f} to {row.high:.4f} | {row.right_first:.1%} | {row.p50_ms:.1f} | "
                f"{row.p95_ms:.1f} |"
            )
            last = row.case
        if told.facts:
            shown = "; ".join(f"{name} {number:,.4g}" for name, number in told.facts.items())
            lines.append(f"\n{shown[:1].upper()}{shown[1:]}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Are the nearest found?")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that all runs")
    parser.add_argument("--large", action="store_true", help="1,000,000 objects too; takes long")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of real collections"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the page here")
    given = parser.parse_args()
    queries, made, sizes = (40, 4_000, [10_000]) if given.quick else (200, 10_000, [10_000, 100_000])
    sizes += [1_000_000] * given.large
    skipped = []
    try:
        base = three_subjects(given.data, queries)
    except FileNotFoundError as error:
        skipped.append(f"real vectors, for there is no {error.filename}; made ones stand for them")
        base = subjects(made, queries)
    report: list[Told] = []
    with (
        served() as url,
        Context(load_settings(embedder="none", database_url=url)) as context,
        Context(load_settings(embedder="none", database_url=url, recall_target=1)) as exact,
    ):
        report.append(examined(context, base, bare=True, is_growing=True))
        report.append(rewritten(context, base))
        report.append(personal(context, exact, base))
        report.append(paged(context, base))
        report += [
            examined(context, world, bare=True)
            for world in (
                alike(base), two_clusters(made, queries), many_equal(made, queries), gaussian(made, queries)
            )
        ]  # fmt: skip
        others = Told(f"{base.title}, other metrics and several parts", 0)
        for world in geometries(base, made // 2, queries):
            told = examined(context, world, bare=False)
            others.objects = told.objects
            others.rows += told.rows
        report.append(others)
        report += [examined(context, grown(base, size), bare=True) for size in sizes]
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in report], indent=2) + "\n")
    text = page(report, skipped, f"python {shlex.join(sys.argv)}")
    if given.markdown:
        given.markdown.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
