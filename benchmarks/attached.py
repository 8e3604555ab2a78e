"""A search of what is attached, beside the same store asked by hand and the same objects indexed here.

    python benchmarks/attached.py [--quick] [--data FOLDER] [--json OUT] [--markdown docs/your-own-store.md]

A table with pgvector is always measured; Qdrant's own engine (behind the server of the tests, in a process of
its own), LanceDB, and the Milvus at MILVUS_URL where they are installed. By hand is what their documentation
shows: ten results with id and payload, at the effort that they have by default. All are asked the same
queries in turns, in one thread, and medians are compared. With --markdown the figures of that page are
rewritten; its words stay.

Axes: N objects · D dimensions.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # whose stores these are

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from embedding_studio import Context, SearchIndexInfo, load_settings
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.postgres.vectors import pack
from serving import (
    SHOWN,
    Ask,
    Catalogue,
    Condition,
    D,
    Vectors,
    catalogue,
    connect,
    in_turns,
    named,
    near,
    percentiles,
)

FIELD, VALUE = "hundredth", 1
RARE = PayloadFilter.parse({"query": {"term": {"field": FIELD, "value": VALUE}}})
USERS, TURNS = 8, 6
NEAR, FAR = Condition(10, 10, 100, 100), Condition(10, 0, 100, 0)
PLAIN, FILTERED, PERSONAL, OTHERS = (
    "plain",
    f"filter that keeps 1 % ({FIELD})",
    "personal, ten past queries near",
    "personal, none near",
)
BEGIN, END = "<!-- figures of benchmarks/attached.py -->", "<!-- end of figures -->"

ByHand = Callable[[Vectors, bool], list[str]]
"""Asks a store for the page of a query, [D]; with the filter or without."""


@dataclass(frozen=True)
class Store:
    """One that holds the catalogue.

    Attributes:
        address: of ATTACHED_STORES; None: the database in which all else is kept.
        given: what ``Context.attach`` takes.
    """

    name: str
    address: str | None
    given: dict[str, Any]
    by_hand: ByHand


def rows_of(given: Catalogue) -> Iterator[tuple[str, Vectors, dict[str, Any]]]:
    """Yield id, vector and payload."""
    for n, each in enumerate(given.objects()):
        yield (
            each.object_id,
            each.parts[0],
            each.payload | {"title": f"a title of some forty characters, {n}"},
        )


# The stores


@contextmanager
def table(url: str, given: Catalogue) -> Iterator[Store]:
    with connect(url) as connection:
        connection.execute(
            f"CREATE TABLE public.shop (id text PRIMARY KEY, {FIELD} int, title text, embedding vector({D}))"
        )
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY public.shop FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.set_types(["text", "int4", "text", "vector"])
            for object_id, vector, payload in rows_of(given):
                copy.write_row((object_id, payload[FIELD], payload["title"], pack(vector[None])[0]))
        connection.execute(f"CREATE INDEX ON public.shop ({FIELD})")
        connection.execute("SET maintenance_work_mem = '1GB'")
        connection.execute("CREATE INDEX ON public.shop USING hnsw (embedding vector_cosine_ops)")
        connection.execute("VACUUM ANALYZE public.shop")
        connection.execute("SET hnsw.iterative_scan = strict_order")
        connection.execute("SET plan_cache_mode = auto")
        statements = [
            f"SELECT id, title, {FIELD} FROM public.shop {which} ORDER BY embedding <=> %s LIMIT 10".encode()  # noqa: S608
            for which in ("", f"WHERE {FIELD} = {VALUE}")
        ]

        def by_hand(query: Vectors, is_filtered: bool) -> list[str]:  # noqa: FBT001
            rows = connection.execute(statements[is_filtered], pack(query[None]), prepare=True, binary=True)
            return [row[0] for row in rows]

        yield Store("pgvector, HNSW", None, {"source": "public.shop"}, by_hand)


def serve_qdrant(folder: str, given: Catalogue, told: Connection) -> None:
    """Fill Qdrant's engine, build its graph, tell the address, and serve until something is sent."""
    server = importlib.import_module("qdrant_server")
    with server.qdrant(Path(folder)) as qdrant:
        qdrant.create("shop", {"size": D, "distance": "Cosine"})
        rows = [
            (n, vector.tolist(), {"sku": sku, **payload})
            for n, (sku, vector, payload) in enumerate(rows_of(given))
        ]
        for start in range(0, len(rows), 1000):
            qdrant.upsert("shop", rows[start : start + 1000])
        qdrant.shards["shop"].optimize()
        told.send(qdrant.url)
        told.recv()


@contextmanager
def qdrant(folder: Path, given: Catalogue) -> Iterator[Store]:
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=serve_qdrant, args=(str(folder), given, theirs))
    process.start()
    url = ours.recv()
    condition = {"must": [{"key": FIELD, "match": {"value": VALUE}}]}
    with httpx.Client(base_url=url) as client:

        def by_hand(query: Vectors, is_filtered: bool) -> list[str]:  # noqa: FBT001
            body = {"query": query.tolist(), "limit": SHOWN, "with_payload": True, "with_vector": False}
            body |= {"params": {}} | ({"filter": condition} if is_filtered else {})
            points = client.post("/collections/shop/points/query", json=body).json()["result"]["points"]
            return [each["payload"]["sku"] for each in points]

        yield Store("Qdrant's engine, HNSW", url, {"source": "shop", "object_id": "sku"}, by_hand)
    ours.send(None)
    process.join()


@contextmanager
def lancedb(folder: Path, given: Catalogue) -> Iterator[Store]:
    tables = importlib.import_module("lancedb_tables").Tables(folder)
    index = importlib.import_module("lancedb").index.IvfPq
    points = [
        (n, vector.tolist(), {"sku": sku, **payload})
        for n, (sku, vector, payload) in enumerate(rows_of(given))
    ]
    tables.create("shop", "cosine", points, index)
    opened = tables.database.open_table("shop")

    def by_hand(query: Vectors, is_filtered: bool) -> list[str]:  # noqa: FBT001
        search = (
            opened.search(query)
            .distance_type("cosine")
            .limit(SHOWN)
            .select(["sku", "title", FIELD, "_distance"])
        )
        found = (search.where(f"{FIELD} = {VALUE}", prefilter=True) if is_filtered else search).to_arrow()
        return list(found["sku"].to_pylist())

    yield Store("LanceDB, IVF_PQ", tables.url, {"source": "shop", "object_id": "sku"}, by_hand)


@contextmanager
def milvus(url: str, given: Catalogue) -> Iterator[Store]:
    with closing(importlib.import_module("milvus_collections").Collections(url)) as collections:
        points = [
            (n, vector.tolist(), {"sku": sku, **payload})
            for n, (sku, vector, payload) in enumerate(rows_of(given))
        ]
        source = collections.create("shop", "cosine", points[:1])
        for start in range(1, len(points), 1000):
            some = points[start : start + 1000]
            collections.client.insert(
                source, [{"id": k, "embedding": at, **payload} for k, at, payload in some]
            )
        collections.client.flush(source)
        collections.wait(source)

        def by_hand(query: Vectors, is_filtered: bool) -> list[str]:  # noqa: FBT001
            [hits] = collections.client.search(
                source,
                data=[query.tolist()],
                limit=SHOWN,
                filter=f"{FIELD} == {VALUE}" if is_filtered else "",
                output_fields=["sku", "title", FIELD],
            )
            return [each["entity"]["sku"] for each in hits]

        given_there = {"source": source, "object_id": "sku"}
        yield Store("Milvus, HNSW", collections.url, given_there, by_hand)


@contextmanager
def stores(url: str, folder: Path, given: Catalogue) -> Iterator[tuple[list[Store], list[str]]]:
    """Yield those that can be had here, and the names of those that cannot."""
    with ExitStack() as stack:
        start, there, missing = stack.enter_context, [], []
        there.append(start(table(url, given)))
        for name, package, make in (
            ("Qdrant's engine", "qdrant_edge", lambda: qdrant(folder, given)),
            ("LanceDB", "lancedb", lambda: lancedb(folder / "lance", given)),
            ("Milvus", "pymilvus", lambda: milvus(os.environ["MILVUS_URL"], given)),
        ):
            if find_spec(package) and (name != "Milvus" or "MILVUS_URL" in os.environ):
                there.append(start(make()))
            else:
                missing.append(name)
        yield there, missing


# Measuring


@dataclass(frozen=True)
class Way:
    """One way to ask a query of a number, and how the ids found are known to the truth."""

    ask: Callable[[int], list[str]]


def give_states(
    context: Context, collections: Sequence[Collection], given: Catalogue, asked: Vectors
) -> None:
    """Give the same users the same state in each collection."""
    rng = np.random.default_rng(11)
    ranked = given.nearest(asked, NEAR.near_objects)
    for condition in (NEAR, FAR):
        for user in range(USERS):
            state = condition.state(rng, given, asked[user], ranked[user])
            for collection in collections:
                context.storage.objects.originals(collection, list(state.vectors))
                name = f"{condition.name} {user}"
                with context.storage.personal.learning(collection, [name]) as transaction:
                    transaction.replace_states({name: state})


def measure(
    context: Context, exact: Context, store: Store, own: Collection, given: Catalogue
) -> list[dict[str, Any]]:
    name = re.sub(r"\W+", "_", store.name)
    attached = context.attach(name, **store.given, store=None if store.address is None else store.name)
    rng = np.random.default_rng(13)
    asked = given.queries[rng.permutation(len(given.queries))[:USERS]]
    give_states(context, [attached, own], given, asked)
    personal = near(rng, np.repeat(asked, TURNS, axis=0), 0.1)

    def product(collection: Collection, queries: Vectors, of: Context = context, **more: Any) -> Way:
        def ask(n: int) -> list[str]:
            user_id = f"{more['condition'].name} {n // TURNS}" if "condition" in more else None
            page = of.search.search(
                queries[n],
                collection=collection.name,
                limit=SHOWN,
                filter=more.get("filter"),
                user_id=user_id,
            )
            return [each.object_id for each in page.results]

        return Way(ask)

    rows = []
    for case, queries, is_filtered, more in (
        (PLAIN, given.queries, False, {}),
        (FILTERED, given.queries, True, {"filter": RARE}),
        (PERSONAL, personal, False, {"condition": NEAR}),
        (OTHERS, personal, False, {"condition": FAR}),
    ):
        ways = {
            "by hand": Way(lambda n, q=queries, f=is_filtered: store.by_hand(q[n], f)),  # type: ignore[misc]
            "attached": product(attached, queries, **more),
            "indexed here": product(own, queries, **more),
        }
        label = {FIELD: VALUE} if is_filtered else {}
        nearest = named(given.nearest(queries, SHOWN, **label))
        right = nearest
        if "condition" in more:
            right = [set(product(own, queries, exact, **more).ask(n)) for n in range(len(queries))]
        row: dict[str, Any] = {"store": store.name, "case": case}
        for name, way in ways.items():
            truth = nearest if name == "by hand" else right
            hits = [len(truth[n].intersection(way.ask(n))) / SHOWN for n in range(len(queries))]
            row[f"{name}, recall"] = float(np.mean(hits))
        asks: dict[str, Ask] = {name: way.ask for name, way in ways.items()}
        times = in_turns(asks, len(queries), 1)
        row |= {f"{name}, {what}": took for name in ways for what, took in percentiles(times[name]).items()}
        row["ratio"] = row["attached, p50_ms"] / row["by hand, p50_ms"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


HEAD = ("store", "search", "by hand", "attached", "times", "indexed here")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    ways = [f"{row[f'{way}, p50_ms']:.1f} ms, {row[f'{way}, recall']:.3f}" for way in HEAD[2:4] + HEAD[5:]]
    return (row["store"], row["case"], *ways[:2], f"{row['ratio']:.1f}", ways[2])


def figures(report: dict[str, Any]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, report["rows"])]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    missing = f" Not to be had there: {', '.join(report['missing'])}." if report["missing"] else ""
    ran = f"{report['when']}; {os.cpu_count()} cores, shared with other work"
    what = f"{report['objects']:,} objects of {D} dimensions, {report['title']}.{missing}"
    return f"```console\n$ {report['command']}\n```\n\n{ran};\n{what}\n\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4,000 objects, to see that it runs")
    parser.add_argument(
        "--data", type=Path, help="folder with cranfield, nfcorpus and movielens; else made vectors"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="rewrite the figures of this page")
    arguments = parser.parse_args()
    size, queries = (4_000, 20) if arguments.quick else (20_000, 60)
    given = catalogue("one", arguments.data, size, 1, queries)
    with tempfile.TemporaryDirectory(prefix="embedding-studio-attached-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root the server runs as somebody else, who must get in
        (folder / "lance").mkdir()
        with EmbeddedServer(folder / "data") as url, ExitStack() as stack:
            context = stack.enter_context(Context(load_settings(database_url=url, embedder="none")))
            own = context.collection("own", index=SearchIndexInfo(dimensions=D))
            objects = [CatalogueObject(sku, vector[None], payload) for sku, vector, payload in rows_of(given)]
            context.index_objects("own", objects)
            there, missing = stack.enter_context(stores(url, folder, given))
            addresses = {each.name: each.address for each in there if each.address is not None}
            settings: dict[str, Any] = {"database_url": url, "embedder": "none", "attached_stores": addresses}
            context = stack.enter_context(Context(load_settings(**settings)))
            exact = stack.enter_context(Context(load_settings(**settings, recall_target=1)))
            rows = [row for store in there for row in measure(context, exact, store, own, given)]
    said = ["--quick"] * arguments.quick
    said += ["--data ../shared/data"] if arguments.data else []
    said += [f"--markdown {arguments.markdown}"] if arguments.markdown else []
    report = {
        "command": " ".join(["python benchmarks/attached.py", *said]),
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "objects": size,
        "title": given.title,
        "missing": missing,
        "rows": rows,
    }
    shown = Table(*HEAD, title="p50 and recall")
    for row in rows:
        shown.add_row(*cells(row))
    Console(width=160).print(shown)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.markdown:
        before, _, rest = arguments.markdown.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.markdown.write_text(f"{before}{BEGIN}\n\n{figures(report)}\n{END}{after}")


if __name__ == "__main__":
    main()
