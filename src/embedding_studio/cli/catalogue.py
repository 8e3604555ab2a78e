"""Objects in: index, payloads."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

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
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import CollectionNotFoundError
from embedding_studio.indexing import IndexingReport, update_payloads
from embedding_studio.indexing import prune as prune_objects

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
    with sentences(), _opened(file, reading) as catalogue, opened_context() as context:
        existing = _existing(context, collection)
        info = context.plugin.get_search_index_info().model_copy(update=chosen)
        objects: Iterator[CatalogueText | CatalogueObject] = catalogue.texts()
        if brings_vectors:
            known = existing.index if existing else info.model_copy(update={"dimensions": None})
            info = known.model_copy(update=chosen)
            objects = catalogue.objects(info)
            info = info.model_copy(update={"dimensions": catalogue.dimensions})
        if dry_run:
            told = _rehearsed(context, existing, catalogue, objects, prune=prune)
            print_value(told, as_json=True) if as_json else _show(told)
            return
        if brings_vectors:
            context.storage.collections.create(
                existing.name if existing else collection,
                info,
                embedder=existing.embedder if existing else None,
            )
        else:
            context.collection(collection, index=info if chosen else None)
        told = asdict(store(context, collection, objects, catalogue.number))
        told["seconds"] = round(told["seconds"], 2)
        if prune:
            told["pruned"] = prune_objects(context.storage, context.collection(collection), catalogue.ids)
    print_value(told, as_json=as_json)


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


def _rehearsed(
    context: Context,
    existing: Collection | None,
    catalogue: CatalogueFile,
    objects: Iterator[CatalogueText | CatalogueObject],
    *,
    prune: bool,
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
    if prune:
        told["would_prune"] = (
            prune_objects(context.storage, existing, catalogue.ids, dry_run=True) if existing else 0
        )
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
