"""The command line: tables for people, ``--json`` for machines, progress on stderr."""

import gc
import json
import logging
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from ipaddress import ip_address
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import (
    CatalogueText,
    count_rows,
    read_catalogue,
    read_payloads,
    read_python_documentation,
    read_vectors,
    write_objects,
)
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION, SearchRequest
from embedding_studio.errors import (
    CollectionNotFoundError,
    EmbeddingError,
    EmbeddingStudioError,
    InvalidDataError,
    InvalidFilterError,
    InvalidInputError,
    InvalidSettingError,
)
from embedding_studio.indexing import IndexingReport, every_object, update_payloads
from embedding_studio.indexing import prune as prune_objects
from embedding_studio.recall import QUERIES, RESULTS, measure_recall
from embedding_studio.settings import Settings, load_settings, settings_markdown
from embedding_studio.tuning import reset_gate, tune_gate

if TYPE_CHECKING:
    import uvicorn

app = typer.Typer(
    name="embedding-studio",
    help="Search that learns from clicks. Settings are environment variables: `embedding-studio settings`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SECONDS_TO_END = 8.0
"""After a worker was told to."""

out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

ASKED_BY_DEFAULT = SearchRequest()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CatalogueFile = Annotated[
    str, typer.Argument(help="CSV, JSONL or Parquet, also .gz; `-` reads JSONL from stdin.")
]
IdColumn = Annotated[str, typer.Option(help="Column that names each object.")]
ObjectIds = Annotated[list[str], typer.Argument(help="Ids of objects.")]
PayloadFilterOption = Annotated[str | None, typer.Option("--filter", help="A payload filter as JSON.")]
InCollection = Annotated[str, typer.Option("--collection", "-c", help="Name or alias of the collection.")]


@app.command()
def index(
    file: CatalogueFile,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    id_column: IdColumn = "id",
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column to embed; several are joined. Default: text.")
    ] = None,
    vector_column: Annotated[
        str | None,
        typer.Option(
            help="Column of ready vectors, a list of numbers each (or of parts); nothing is embedded."
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Ready vectors in a .npy file [rows, dimensions], in the order of FILE's rows."),
    ] = None,
    metric: Annotated[MetricType | None, typer.Option(help="For a new collection.")] = None,
    aggregation: Annotated[MetricAggregationType | None, typer.Option(help="For a new collection.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then remove the objects that FILE does not name.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read FILE, say how much would be done, and store nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a catalogue and store it, or store the vectors it brings; what is there is not embedded again."""
    brings_vectors = vector_column is not None or vectors is not None
    if vector_column is not None and vectors is not None:
        raise typer.BadParameter("give --vector-column or --vectors, not both")
    if brings_vectors and text_column:
        raise typer.BadParameter("nothing is embedded where vectors are brought; leave out --text-column")
    chosen = {"metric_type": metric, "metric_aggregation_type": aggregation}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    with _context() as context:
        total = count_rows(file)
        existing = _existing(context, collection)
        info = context.plugin.get_search_index_info().model_copy(update=chosen)
        if brings_vectors:
            known = existing.index if existing else info.model_copy(update={"dimensions": None})
            info = known.model_copy(update=chosen)
        objects = _read(
            file,
            info,
            id_column=id_column,
            text_columns=text_column or ["text"],
            vector_column=vector_column,
            npy=vectors,
        )
        first = next(objects, None)  # what cannot be read is told of before anything is made
        if first is None and (prune or (brings_vectors and existing is None)):
            raise InvalidDataError(
                f"{file}: there is no row in it, so "
                + ("--prune would remove every object" if prune else "the size of its vectors is unknown")
            )
        named: set[str] = set()
        objects = _noted(first, objects, named)
        if dry_run:
            _print(_rehearsed(context, existing, objects, named, prune=prune), as_json=as_json)
            return
        if isinstance(first, CatalogueObject):
            context.storage.collections.create(
                existing.name if existing else collection,
                info.model_copy(update={"dimensions": first.parts.shape[1]}),
                embedder=existing.embedder if existing else None,
            )
        elif not brings_vectors:
            context.collection(collection, index=info if chosen else None)
        told = asdict(_index(context, collection, objects, total))
        if prune:
            told["pruned"] = prune_objects(context.storage, context.collection(collection), named)
    _print(told, as_json=as_json)


@app.command()
def payloads(
    file: CatalogueFile,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    id_column: IdColumn = "id",
    as_json: AsJson = False,
) -> None:
    """Replace the payloads of objects by a file's other columns; nothing is embedded, vectors stay."""
    with _context() as context, _bar("Storing payloads", count_rows(file)) as advance:
        rows = read_payloads(file, id_column=id_column)
        stored = context.storage.collections.get(collection)
        report = update_payloads(context.storage, stored, rows, progress=advance)
    _print(report, as_json=as_json)


@app.command()
def get(ids: ObjectIds, *, collection: InCollection = DEFAULT_COLLECTION, as_json: AsJson = False) -> None:
    """Show objects: payload and, as JSON, vectors."""
    with _context() as context:
        found = context.storage.objects.get(context.storage.collections.get(collection), ids)
        if as_json:
            _print(
                [
                    {"id": each.object_id, "payload": each.payload, "vectors": each.parts.tolist()}
                    for each in found
                ],
                as_json=True,
            )
        else:
            table = Table("object", "vectors", "payload")
            for each in found:
                parts, dimensions = each.parts.shape
                shown = json.dumps(each.payload, ensure_ascii=False)
                table.add_row(escape(each.object_id), f"{parts} x {dimensions}", escape(shown))
            out.print(table)
        absent = sorted(set(ids) - {each.object_id for each in found})
        if absent:
            raise InvalidInputError(f"{collection!r} has no object {', '.join(map(repr, absent))}")


@app.command()
def delete(ids: ObjectIds, *, collection: InCollection = DEFAULT_COLLECTION, as_json: AsJson = False) -> None:
    """Remove objects, and all that was learnt about them."""
    with _context() as context:
        deleted = context.storage.objects.delete(context.storage.collections.get(collection), ids)
    _print({"deleted": deleted}, as_json=as_json)


@app.command()
def export(
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .jsonl file, also .jsonl.gz; `-` is stdout.")
    ] = "-",
    where: PayloadFilterOption = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write vectors too, in a column.")] = False,
    id_column: IdColumn = "id",
    vector_column: Annotated[str, typer.Option(help="Column for vectors.")] = "vector",
) -> None:
    """Write objects as JSON Lines that `index` and `payloads` read back; the file is whole or not there."""
    with _context() as context:
        stored = context.storage.collections.get(collection)
        wanted = PayloadFilter.parse(_json(where)) if where else None
        written = write_objects(
            output,
            every_object(context.storage, stored, filter=wanted),
            id_column=id_column,
            vector_column=vector_column if vectors else None,
        )
    err.print(f"Wrote {written} objects.")


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A text, or a vector as a JSON list.")],
    *,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Personalise for this user.")] = None,
    collection: InCollection = DEFAULT_COLLECTION,
    limit: Annotated[int, typer.Option(min=1, help="Results on a page.")] = ASKED_BY_DEFAULT.limit,
    offset: Annotated[
        int, typer.Option(min=0, help="Results to leave out at the top.")
    ] = ASKED_BY_DEFAULT.offset,
    max_distance: Annotated[float | None, typer.Option(help="Nothing further away.")] = None,
    where: PayloadFilterOption = None,
    explain: Annotated[bool, typer.Option(help="Say what moved each result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search a collection, personalised where a user is given."""
    with _context() as context:
        request = SearchRequest(
            limit=limit,
            offset=offset,
            max_distance=max_distance,
            filter=PayloadFilter.parse(_json(where)) if where else None,
        )
        page = context.search.search(
            _vector_or_text(query),
            request,
            collection=collection,
            user_id=user,
            explain=explain,
        )
    if as_json:
        _print(page, as_json=True)
        return
    table = Table("#", "object", "distance", "", "payload")
    for result in page.results:
        shown = json.dumps(result.payload, ensure_ascii=False)
        table.add_row(
            str(result.position),
            result.object_id,
            f"{result.distance:.4f}",
            "personal" if result.personalised else "",
            shown if len(shown) <= 120 else f"{shown[:119]}…",
        )
        if result.explanation is not None:
            table.add_row("", "", "", "", json.dumps(asdict(result.explanation), ensure_ascii=False))
    out.print(table)


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Default: HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: PORT; 0 takes a free one.")] = None,
    worker: Annotated[bool, typer.Option(help="Learn inside this process too.")] = True,
) -> None:
    """Serve the HTTP API, by default with a worker inside."""
    with _context() as context, _bound(context.settings, host, port) as listening:
        server = _server(context, worker=worker)
        # uvicorn ends by raising the signal again, for the handler that stood before its own.
        _on_stop(lambda: setattr(server, "should_exit", True))
        listening.listen()  # whoever reads the next line may call at once, and waits until uvicorn answers
        err.print(f"Embedding Studio serves on {_url(listening)} (documentation: {_url(listening)}/docs)")
        server.run(sockets=[listening])


@app.command()
def worker() -> None:
    """Learn from orders until SIGTERM or Ctrl-C; any number of workers may run."""
    stop = threading.Event()
    with _context() as context:
        _on_stop(stop.set)
        learning = context.worker()
        gc.freeze()  # what is loaded by now stays; searched through each time, it is a quarter of learning
        err.print("The worker is ready.")
        threading.Thread(target=_end_soon_after, args=(stop,), daemon=True).start()
        learning.run(stop)


@app.command()
def improve(
    *,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="Learn all users anew, as after a setting has changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Learn about all users whose state is stale, once."""
    users = learnt = 0
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    with _context() as context:
        improver = context.improver()
        if everyone:
            for collection in context.storage.collections.list():
                context.storage.collections.order_for_everyone(collection.name)
        while (report := improver.improve_once(users=context.settings.users_per_batch)).users:
            users += report.users
            learnt += report.learnt
            refused |= report.refused
            failed |= report.failed
    _print({"users": users, "learnt": learnt, "refused": refused, "failed": failed}, as_json=as_json)


@app.command()
def demo(
    *,
    objects: Annotated[int, typer.Option(min=100, help="How much of the documentation to index.")] = 10_000,
    keep_serving: Annotated[
        bool | None, typer.Option(help="Default: only in a terminal, and not where CI is set.")
    ] = None,
) -> None:
    """Index the documentation of Python and of the installed packages, and show the loop on it."""
    from embedding_studio.demo import COLLECTION, Demo

    if keep_serving is None:
        keep_serving = sys.stdout.isatty() and not os.environ.get("CI")
    with _context() as context, _bound(context.settings, None, None) as listening:
        logging.getLogger("embedding_studio").setLevel(logging.WARNING)  # the worker's lines cut the tables
        documentation = list(read_python_documentation(limit=objects))
        _index(context, COLLECTION, documentation, len(documentation))
        server = _server(context, worker=True)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        serving.start()
        try:
            with httpx.Client(base_url=_url(listening), headers=_authorization(context.settings)) as client:
                Demo(client, out).run()
            out.print(f"\nThe service is at {_url(listening)} (documentation: {_url(listening)}/docs)")
            if keep_serving:
                out.print("It serves until you press Ctrl-C.")
                with suppress(KeyboardInterrupt):
                    serving.join()
        finally:
            server.should_exit = True
            serving.join()


class Method(StrEnum):
    """What ``evaluate --method`` takes."""

    DEFAULT = "default"
    SHARED = "shared"
    TORCH = "torch"
    COPIES = "copies"
    REFERENCE = "reference"


class Baseline(StrEnum):
    """What ``evaluate --baseline`` takes."""

    PLAIN = "plain"
    DEFAULT = "default"
    SHARED = "shared"
    TORCH = "torch"
    COPIES = "copies"
    REFERENCE = "reference"


class Clicks(StrEnum):
    """What ``evaluate --clicks`` takes."""

    STANDARD = "standard"
    CAPPED = "capped"
    NOISY = "noisy"
    PERFECT = "perfect"


class Place(StrEnum):
    """Where ``evaluate`` keeps what it learns."""

    MEMORY = "memory"
    POSTGRES = "postgres"


@app.command()
def evaluate(
    folders: Annotated[list[Path], typer.Argument(help="Collection folders: items, queries, judgements.")],
    *,
    method: Annotated[
        list[Method] | None,
        typer.Option("--method", "--adjuster", help="What learns; may be repeated. Default: default."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All methods, side by side.")] = False,
    baseline: Annotated[Baseline, typer.Option(help="What methods are compared with.")] = Baseline.PLAIN,
    clicks: Annotated[
        list[Clicks] | None,
        typer.Option(help="How simulated users click; may be repeated. Default: standard."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Simulated users.")] = 200,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions of each user.")] = 10,
    others: Annotated[
        int, typer.Option(min=0, help="So many other users search for each user's wish beforehand.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal numbers.")] = 0,
    metric: Annotated[
        list[MetricType] | None,
        typer.Option(
            help="How vectors are compared; items get unequal norms where those count. May be repeated."
            " Default: cosine."
        ),
    ] = None,
    aggregation: Annotated[
        list[MetricAggregationType] | None,
        typer.Option(
            help="How parts of an item count: the nearest, or the mean. May be repeated. Default: min."
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(min=1, help="Split items at sentences into at most so many parts, and embed them anew."),
    ] = None,
    storage: Annotated[Place, typer.Option(help="Where to learn; the rankings are the same.")] = Place.MEMORY,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with learning curves here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write docs/does-it-help.md here.")] = None,
) -> None:
    """Measure whether learning helps, with simulated users on real judgements."""
    from embedding_studio import evaluation

    metrics = metric or [MetricType.COSINE]
    chosen = list(Method) if compare else (method or [Method.DEFAULT])
    if compare and metrics != [MetricType.COSINE]:
        chosen.remove(Method.REFERENCE)  # is given for cosine alone
    with _context() as context:
        if context.embedder is None:
            raise EmbeddingError("EMBEDDER is none, and an evaluation embeds rewordings; name an embedder")
        evaluations = []
        for folder in folders:
            with _shown_progress() as show:
                collection, simulated = evaluation.load_world(
                    folder,
                    embedder=context.embedder,
                    users=users,
                    sessions=sessions,
                    seed=seed,
                    parts=parts,
                    progress=show,
                )
            for compared_by, counted_by, click_model in product(
                metrics, aggregation or [MetricAggregationType.MIN], clicks or [Clicks.STANDARD]
            ):
                with _shown_progress() as show:
                    measured = evaluation.compare(
                        collection.compared_by(compared_by, counted_by, seed=seed),
                        simulated,
                        evaluation.methods_by_name([each.value for each in chosen]),
                        clicks=click_model.value,
                        others=others,
                        seed=seed,
                        baseline=baseline.value,
                        open_storage=context.open_storage if storage is Place.POSTGRES else None,
                        progress=show,
                    )
                out.print(evaluation.table(measured))
                evaluations.append(measured)
    if json_file is not None:
        told = [each.to_json() for each in evaluations]
        json_file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if html is not None:
        html.write_text(evaluation.html_report(evaluations))
    if markdown is not None:
        command = shlex.join(["embedding-studio", *sys.argv[1:]])
        markdown.write_text(evaluation.markdown(evaluations, command))


@app.command()
def tune(
    collection: Annotated[str, typer.Argument(help="Name or alias of the collection.")] = DEFAULT_COLLECTION,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to GATE_THRESHOLD.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit the gate's threshold to the queries of a collection's sessions; searches use it at once."""
    with _context() as context:
        tuned = (reset_gate if reset else tune_gate)(context.storage, collection, dry_run=dry_run)
        setting = f"{context.settings.gate_threshold} (GATE_THRESHOLD)"
    told = asdict(tuned)
    if not as_json:
        told |= {name: setting for name in ("before", "after") if told[name] is None}
    _print(told, as_json=as_json)


@app.command()
def recall(
    collection: Annotated[str, typer.Argument(help="Name or alias of the collection.")] = DEFAULT_COLLECTION,
    *,
    queries: Annotated[int, typer.Option(min=1, help="Compare so many of its latest queries.")] = QUERIES,
    k: Annotated[int, typer.Option("--k", min=1, help="Results looked at.")] = RESULTS,
    target: Annotated[
        float | None,
        typer.Option(help="Share of the nearest that is to be found. Default: RECALL_TARGET."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure whether the nearest are found, and let searches be as cautious as that needs."""
    with _context() as context:
        setting = context.settings.recall_target
        if setting == 1 and target not in (None, 1):
            raise InvalidInputError(
                f"RECALL_TARGET is 1, so all are compared, and there is nothing to measure for {target}; "
                "set it to less"
            )
        measured = measure_recall(
            context.storage,
            collection,
            queries=queries,
            k=k,
            target=setting if target is None else target,
            dry_run=dry_run,
        )
    if as_json:
        _print(measured, as_json=True)
        return
    table = Table("margin", f"recall@{k}", "95 % interval", "first is right", "p50 ms", "p95 ms", "")
    for each in measured.compared:
        notes = {
            "before": each.margin is not None and each.margin == measured.before,
            "chosen" if dry_run else "from now on": each.margin is not None and each.margin == measured.after,
        }
        table.add_row(
            "all" if each.margin is None else f"{each.margin:.3g}",
            f"{each.recall:.4f}",
            f"{each.low:.4f} to {each.high:.4f}",
            f"{each.right_first:.1%}",
            f"{each.p50_ms:.1f}",
            f"{each.p95_ms:.1f}",
            ", ".join(note for note, is_true in notes.items() if is_true),
        )
    if measured.compared:
        out.print(table)
        made = measured.queries - measured.recorded
        err.print(
            f"{measured.recorded} recorded queries"
            + (f", and {made} objects slightly changed." if made else ".")
        )
    out.print(escape(measured.told[:1].upper() + measured.told[1:] + "."), soft_wrap=True)


@app.command()
def doctor(
    *,
    embedder: Annotated[
        bool, typer.Option("--embedder", help="Load the embedder and embed a word with it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how everything fares: OK, WARN or FAIL and a sentence each; exits with 1 where anything fails."""
    from embedding_studio.doctor import examine

    with _context() as context:
        findings = examine(context, load_embedder=embedder)
    if as_json:
        _print([asdict(each) for each in findings], as_json=True)
    else:
        table = Table("", "what", "how it is")
        colours = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
        for each in findings:
            table.add_row(f"[{colours[each.grade]}]{each.grade}[/]", escape(each.what), escape(each.told))
        out.print(table)
    if any(each.grade == "FAIL" for each in findings):
        raise typer.Exit(1)


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    with _context() as context:
        context.storage.ping()
    err.print("The database is up to date.")


@app.command("settings")
def show_settings(
    *,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option(help="Print the table of docs/settings.md.")] = False,
) -> None:
    """List all settings with their present values."""
    if markdown:
        typer.echo(settings_markdown())
        return
    with _sentences():
        settings = load_settings()
    values = settings.model_dump(mode="json")
    if as_json:
        _print(values, as_json=True)
        return
    table = Table("variable", "value", "meaning")
    for name, field in Settings.model_fields.items():
        table.add_row(name.upper(), str(values[name]), field.description)
    out.print(table)


@app.command()
def collections(*, as_json: AsJson = False) -> None:
    """List collections with their size."""
    with _context() as context:
        storage = context.storage
        aliases = storage.collections.aliases()
        rows = [
            {
                "name": each.name,
                "objects": storage.objects.count(each),
                **each.index.model_dump(mode="json"),
                "embedder": each.embedder,
                "gate_threshold": each.gate_threshold,
                "aliases": [alias for alias, name in aliases.items() if name == each.name],
            }
            for each in storage.collections.list()
        ]
    if as_json:
        _print(rows, as_json=True)
        return
    table = Table(*(rows[0] if rows else ("name", "objects")))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)


@app.command()
def forget(user: Annotated[str, typer.Argument(help="The user's id.")]) -> None:
    """Remove all that is known of a user, in every collection."""
    with _context() as context:
        sessions = context.storage.clickstream.forget_user(user)
    err.print(f"Forgot {user!r}: {sessions} sessions and all that was learnt from them.")


@contextmanager
def _sentences() -> Iterator[None]:
    """Say an error in a sentence, and exit with 1."""
    try:
        yield
    except EmbeddingStudioError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _on_stop(work: Callable[[], object]) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: work())


@contextmanager
def _context() -> Iterator[Context]:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is closed
    with _sentences(), Context() as context:
        yield context


@contextmanager
def _bound(settings: Settings, host: str | None, port: int | None) -> Iterator[socket.socket]:
    """Listen before anything slow is done, so that a taken port is told at once."""
    host = host or settings.host
    if settings.admin_api_key is None and not _is_loopback(host):
        raise InvalidSettingError(
            f"without keys the service listens on this machine only, not on {host}: "
            "set ADMIN_API_KEY (and WRITE_API_KEY for browsers), or HOST=127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its name, for asyncio answers without delay only on what says that it is TCP; else the body of an
    # answer waits for the client's acknowledgement of the head, some 40 ms on Linux.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, settings.port if port is None else port))
        except OSError as error:
            raise InvalidSettingError(
                f"cannot listen on {host}:{settings.port if port is None else port} ({error.strerror}); "
                "choose another PORT, or 0 for a free one"
            ) from error
        yield listening


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _end_soon_after(stop: threading.Event) -> None:
    """End the process some seconds after it was told to, if a plugin keeps it; its users are due again."""
    stop.wait()
    time.sleep(SECONDS_TO_END)
    err.print("[bold red]error:[/] what is learnt does not come to an end; the worker ends without it")
    os._exit(1)


def _server(context: Context, *, worker: bool) -> "uvicorn.Server":
    import uvicorn

    from embedding_studio.api.app import create_app

    application = create_app(context, background=context.worker().run if worker else None)
    gc.freeze()  # as in ``worker``
    return uvicorn.Server(uvicorn.Config(application, log_level="warning"))


def _authorization(settings: Settings) -> dict[str, str]:
    key = settings.admin_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _existing(context: Context, name: str) -> Collection | None:
    with suppress(CollectionNotFoundError):
        return context.storage.collections.get(name)
    return None


def _read(
    file: str,
    info: SearchIndexInfo,
    *,
    id_column: str,
    text_columns: list[str],
    vector_column: str | None,
    npy: Path | None,
) -> Iterator[CatalogueText | CatalogueObject]:
    if vector_column is None and npy is None:
        return read_catalogue(file, id_column=id_column, text_columns=text_columns)
    return read_vectors(file, index=info, id_column=id_column, vector_column=vector_column, npy=npy)


def _noted(
    first: CatalogueText | CatalogueObject | None,
    rest: Iterable[CatalogueText | CatalogueObject],
    ids: set[str],
) -> Iterator[CatalogueText | CatalogueObject]:
    """Yield the objects, and leave their ids in ``ids``."""
    for each in chain(() if first is None else (first,), rest):
        ids.add(each.object_id)
        yield each


def _rehearsed(
    context: Context,
    existing: Collection | None,
    objects: Iterable[CatalogueText | CatalogueObject],
    named: set[str],
    *,
    prune: bool,
) -> dict[str, int]:
    """Return what ``index`` would do; ``named`` holds all ids once all objects are read."""
    would_index = sum(isinstance(each, CatalogueObject) or bool(each.text.strip()) for each in objects)
    told = {"would_index": would_index}
    if prune:
        told["would_prune"] = prune_objects(context.storage, existing, named, dry_run=True) if existing else 0
    return told


def _index(
    context: Context, name: str, objects: Iterable[CatalogueText | CatalogueObject], total: int | None
) -> IndexingReport:
    with _bar("Storing", total) as advance:
        return context.index_objects(name, objects, progress=advance)


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what moves a bar on; where the total is not known, it counts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what draws a bar for each thing that is told to be done so far of so much."""
    with Progress(console=err) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _vector_or_text(query: str) -> Any:
    return _json(query) if query.lstrip().startswith("[") else query


def _json(given: str) -> Any:
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise InvalidFilterError(f"not JSON: {error}; given was {given!r}") from error


def _print(value: Any, *, as_json: bool) -> None:
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if as_json:
        typer.echo(json.dumps(plain, ensure_ascii=False, default=str))
        return
    table = Table(show_header=False)
    for key, each in plain.items():
        table.add_row(key, str(each))
    out.print(table)
