"""Objects in: index, payloads; into the database here, or through a service."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import (
    CatalogueFile,
    CatalogueText,
    OnDuplicate,
    Reading,
)
from embedding_studio.cli.console import (
    AsJson,
    InCollection,
    bar,
    opened_context,
    out,
    print_value,
    sentences,
    tell,
)
from embedding_studio.cli.services import Url, opened_service
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import CollectionNotFoundError, EmbeddingStudioError
from embedding_studio.indexing import IndexingReport, update_payloads
from embedding_studio.indexing import prune as prune_objects

if TYPE_CHECKING:
    from embedding_studio.client import Client

SHOWN_OBJECTS = 5
"""So many objects a dry run shows."""

File = Annotated[
    str,
    typer.Argument(
        help="CSV, TSV, JSONL (also .gz, .zst) or Parquet, or a folder of parts; `-` reads JSONL from stdin."
    ),
]
IdColumn = Annotated[str, typer.Option(help="Column that names each object.")]
PayloadColumns = Annotated[
    list[str] | None,
    typer.Option("--payload-column", help="Column of the payload; may be repeated. Default: all but the id."),
]
DropColumns = Annotated[
    list[str] | None, typer.Option("--drop-column", help="Column to leave out; may be repeated.")
]
OnDuplicateOption = Annotated[
    OnDuplicate,
    typer.Option(
        "--on-duplicate", help="Which row counts where several have one id; merge: lists of values."
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(help="Character between columns of CSV or TSV, or `tab`. Default: the one that is found."),
]
Encoding = Annotated[str | None, typer.Option(help="Of the text in FILE. Default: UTF-8.")]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to become of a catalogue.

    Attributes:
        chosen: how vectors are compared, as far as it was said.
        brings_vectors: whether they are in the catalogue; else its texts are embedded.
        prune: whether objects go that it does not name.
    """

    collection: str
    chosen: Mapping[str, Any]
    brings_vectors: bool
    prune: bool


def index(
    file: File,
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
    payload_column: PayloadColumns = None,
    drop_column: DropColumns = None,
    on_duplicate: OnDuplicateOption = OnDuplicate.REFUSE,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    metric: Annotated[MetricType | None, typer.Option(help="For a new collection.")] = None,
    aggregation: Annotated[MetricAggregationType | None, typer.Option(help="For a new collection.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then remove the objects that FILE does not name.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read FILE, show what would be stored, and store nothing.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Embed a catalogue and store it, or store the vectors it brings; what is there is not embedded again."""
    brings_vectors = vector_column is not None or vectors is not None
    if vector_column is not None and vectors is not None:
        raise typer.BadParameter("give --vector-column or --vectors, not both")
    if brings_vectors and text_column:
        raise typer.BadParameter("nothing is embedded where vectors are brought; leave out --text-column")
    reading = Reading(
        id_column=id_column,
        text_columns=() if brings_vectors else tuple(text_column or ["text"]),
        vector_column=vector_column,
        npy=vectors,
        payload_columns=_columns(payload_column),
        drop_columns=tuple(drop_column or ()),
        on_duplicate=on_duplicate,
        separator=_separator(delimiter),
        encoding=encoding,
    )
    chosen = {"metric_type": metric, "metric_aggregation_type": aggregation}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if url and chosen and not brings_vectors:
        raise typer.BadParameter(
            "a service makes a collection for texts by `collections create`, which takes --metric and "
            "--aggregation; leave them out here"
        )
    if url and dry_run and prune:
        raise typer.BadParameter("a dry run with --url looks into FILE alone; leave --prune out")
    with sentences(), _opened(file, reading) as catalogue:
        wanted = Wanted(collection, chosen, brings_vectors=brings_vectors, prune=prune)
        if url and dry_run:
            made = SearchIndexInfo(**chosen, dimensions=catalogue.dimensions)
            told = _rehearsed(catalogue, catalogue.objects(made) if brings_vectors else catalogue.texts())
        elif url:
            told = _sent(url, catalogue, wanted)
        else:
            told = _stored(catalogue, wanted, dry_run=dry_run)
    _show(told) if dry_run and not as_json else print_value(told, as_json=as_json)


def payloads(
    file: File,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    id_column: IdColumn = "id",
    payload_column: PayloadColumns = None,
    drop_column: DropColumns = None,
    on_duplicate: OnDuplicateOption = OnDuplicate.REFUSE,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Replace the payloads of objects by a file's other columns; nothing is embedded, vectors stay."""
    reading = Reading(
        id_column=id_column,
        payload_columns=_columns(payload_column),
        drop_columns=tuple(drop_column or ()),
        on_duplicate=on_duplicate,
        separator=_separator(delimiter),
        encoding=encoding,
    )
    if url:
        from embedding_studio.client.answers import PayloadsReplaced
        from embedding_studio.client.calls import MOST_OBJECTS

        with sentences(), _opened(file, reading) as catalogue, opened_service(url) as service:
            replaced, rows = PayloadsReplaced(), catalogue.payloads()
            with bar("Sending payloads", catalogue.number) as advance:
                while batch := dict(islice(rows, MOST_OBJECTS)):
                    replaced += cast("Client", service).update_payloads(batch, collection=collection)
                    advance(len(batch))
        print_value({"updated": replaced.updated, "unknown": len(replaced.unknown)}, as_json=as_json)
        return
    with sentences(), _opened(file, reading) as catalogue, opened_context() as context:
        stored = context.storage.collections.get(collection)
        with bar("Storing payloads", catalogue.number) as advance:
            report = update_payloads(context.storage, stored, catalogue.payloads(), progress=advance)
    print_value(report, as_json=as_json)


def store(
    context: Context, name: str, objects: Iterable[CatalogueText | CatalogueObject], total: int | None
) -> IndexingReport:
    """Index objects under a bar, as far as their number is known."""
    with bar("Storing", total) as advance:
        return context.index_objects(name, objects, progress=advance)


def _existing(context: Context, name: str) -> Collection | None:
    with suppress(CollectionNotFoundError):
        return context.storage.collections.get(name)
    return None


def _columns(named: list[str] | None) -> tuple[str, ...] | None:
    return tuple(named) if named else None


def _separator(given: str | None) -> str | None:
    if given in ("tab", r"\t"):
        return "\t"
    if given is not None and (len(given) != 1 or given in '"\r\n'):
        raise typer.BadParameter("give one character, as in --delimiter ';', or tab")
    return given


@contextmanager
def _opened(file: str, reading: Reading) -> Iterator[CatalogueFile]:
    """Yield a file that was looked at whole, and say what was found in it."""
    with CatalogueFile(file, reading) as catalogue:
        for note in catalogue.notes:
            tell("note", note)
        yield catalogue


def _stored(catalogue: CatalogueFile, wanted: Wanted, *, dry_run: bool) -> dict[str, Any]:
    """Store a catalogue in the database here, and return what became of its objects."""
    name, chosen = wanted.collection, wanted.chosen
    with opened_context() as context:
        existing = _existing(context, name)
        info = context.plugin.get_search_index_info().model_copy(update=dict(chosen))
        objects: Iterator[CatalogueText | CatalogueObject] = catalogue.texts()
        if wanted.brings_vectors:
            known = existing.index if existing else info.model_copy(update={"dimensions": None})
            info = known.model_copy(update=dict(chosen))
            objects = catalogue.objects(info)
            info = info.model_copy(update={"dimensions": catalogue.dimensions})
        if dry_run:
            told = _rehearsed(catalogue, objects)
            if wanted.prune:
                ids = catalogue.ids
                told["would_prune"] = (
                    prune_objects(context.storage, existing, ids, dry_run=True) if existing else 0
                )
            return told
        with nullcontext() if existing else _empty_is_dropped(context, name):
            if wanted.brings_vectors:
                known_embedder = existing.embedder if existing else None
                context.storage.collections.create(
                    existing.name if existing else name, info, embedder=known_embedder
                )
            else:
                context.collection(name, index=info if chosen else None)
            told = asdict(store(context, name, objects, catalogue.number))
        told["seconds"] = round(told["seconds"], 2)
        if wanted.prune:
            told["pruned"] = prune_objects(context.storage, context.collection(name), catalogue.ids)
    return told


@contextmanager
def _empty_is_dropped(context: Context, name: str) -> Iterator[None]:
    """Drop a collection in which nothing was stored before a failure: the next attempt may be for another."""
    try:
        yield
    except BaseException:
        with suppress(EmbeddingStudioError):
            if not context.storage.objects.count(context.storage.collections.get(name)):
                context.storage.collections.drop(name)
        raise


def _sent(url: str, catalogue: CatalogueFile, wanted: Wanted) -> dict[str, Any]:
    """Send a catalogue to a service, and return what became of its objects."""
    name, started, empty = wanted.collection, time.monotonic(), 0
    with opened_service(url) as service:
        client = cast("Client", service)
        objects: Iterator[CatalogueText | CatalogueObject] = catalogue.texts()
        if wanted.brings_vectors:
            objects = catalogue.objects(_index_there(client, catalogue, wanted))

        def to_send() -> Iterator[CatalogueText | CatalogueObject]:
            nonlocal empty
            for each in objects:
                if isinstance(each, CatalogueObject) or each.text.strip():
                    yield each
                else:
                    empty += 1
                advance(1)

        with bar("Sending", catalogue.number) as advance:
            try:
                report = client.upsert(to_send(), collection=name)
            except CollectionNotFoundError as error:
                make = f"`embedding-studio collections create {name} --embedder MODEL --url {url}` makes it"
                raise CollectionNotFoundError(f"{error}; {make}") from error
        told = {**asdict(report), "empty": empty, "seconds": round(time.monotonic() - started, 2)}
        if wanted.prune:
            there = [each.object_id for each in client.scroll(collection=name)]
            gone = [object_id for object_id in there if object_id not in catalogue.ids]
            told["pruned"] = client.delete(gone, collection=name)
    return told


def _index_there(client: "Client", catalogue: CatalogueFile, wanted: Wanted) -> SearchIndexInfo:
    """Return how a service's collection compares vectors; where there is none, it is made."""
    chosen = dict(wanted.chosen)
    try:
        there = SearchIndexInfo(**asdict(client.collection(wanted.collection).index))
    except CollectionNotFoundError:
        there = None
    made = SearchIndexInfo(dimensions=catalogue.dimensions) if there is None else there
    made = made.model_copy(update=chosen)
    if made != there:  # one that compares otherwise is refused
        client.create_collection(wanted.collection, **made.model_dump(mode="json"))
    return made


def _rehearsed(
    catalogue: CatalogueFile, objects: Iterator[CatalogueText | CatalogueObject]
) -> dict[str, Any]:
    """Return what ``index`` would do, and how the first objects would be stored."""
    first = list(islice(objects, SHOWN_OBJECTS))
    would_index = sum(
        isinstance(each, CatalogueObject) or bool(each.text.strip()) for each in chain(first, objects)
    )
    told: dict[str, Any] = {
        "would_index": would_index,
        "would_leave_out": catalogue.number - would_index,
    }
    told["first"] = [
        {"object_id": each.object_id, "text": each.text, "payload": each.payload}
        if isinstance(each, CatalogueText)
        else {
            "object_id": each.object_id,
            "vectors": "{} x {}".format(*each.parts.shape),
            "payload": each.payload,
        }
        for each in first
    ]
    return told


def _show(told: dict[str, Any]) -> None:
    first = told.pop("first")
    print_value(told, as_json=False)
    table = Table(*first[0])
    for each in first:
        object_id, brought, payload = each.values()
        table.add_row(object_id, brought, json.dumps(payload, ensure_ascii=False))
    out.print(table)
