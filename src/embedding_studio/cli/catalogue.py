"""Objects in and out: index, payloads, get, delete, export."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import (
    CatalogueText,
    count_rows,
    read_catalogue,
    read_payloads,
    read_vectors,
    write_objects,
)
from embedding_studio.cli.console import (
    AsJson,
    InCollection,
    PayloadFilterOption,
    bar,
    err,
    opened_context,
    out,
    parsed_filter,
    print_value,
)
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import CollectionNotFoundError, InvalidDataError, InvalidInputError
from embedding_studio.indexing import IndexingReport, every_object, update_payloads
from embedding_studio.indexing import prune as prune_objects
from embedding_studio.logs import write_sessions

CatalogueFile = Annotated[
    str, typer.Argument(help="CSV, JSONL or Parquet, also .gz; `-` reads JSONL from stdin.")
]
IdColumn = Annotated[str, typer.Option(help="Column that names each object.")]
ObjectIds = Annotated[list[str], typer.Argument(help="Ids of objects.")]


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
    with opened_context() as context:
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
            print_value(_rehearsed(context, existing, objects, named, prune=prune), as_json=as_json)
            return
        if isinstance(first, CatalogueObject):
            context.storage.collections.create(
                existing.name if existing else collection,
                info.model_copy(update={"dimensions": first.parts.shape[1]}),
                embedder=existing.embedder if existing else None,
            )
        elif not brings_vectors:
            context.collection(collection, index=info if chosen else None)
        told = asdict(store(context, collection, objects, total))
        if prune:
            told["pruned"] = prune_objects(context.storage, context.collection(collection), named)
    print_value(told, as_json=as_json)


def payloads(
    file: CatalogueFile,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    id_column: IdColumn = "id",
    as_json: AsJson = False,
) -> None:
    """Replace the payloads of objects by a file's other columns; nothing is embedded, vectors stay."""
    with opened_context() as context, bar("Storing payloads", count_rows(file)) as advance:
        rows = read_payloads(file, id_column=id_column)
        stored = context.storage.collections.get(collection)
        report = update_payloads(context.storage, stored, rows, progress=advance)
    print_value(report, as_json=as_json)


def get(ids: ObjectIds, *, collection: InCollection = DEFAULT_COLLECTION, as_json: AsJson = False) -> None:
    """Show objects: payload and, as JSON, vectors."""
    with opened_context() as context:
        found = context.storage.objects.get(context.storage.collections.get(collection), ids)
        if as_json:
            print_value(
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
                table.add_row(each.object_id, f"{parts} x {dimensions}", shown)
            out.print(table)
        absent = sorted(set(ids) - {each.object_id for each in found})
        if absent:
            raise InvalidInputError(f"{collection!r} has no object {', '.join(map(repr, absent))}")


def delete(ids: ObjectIds, *, collection: InCollection = DEFAULT_COLLECTION, as_json: AsJson = False) -> None:
    """Remove objects, and all that was learnt about them."""
    with opened_context() as context:
        deleted = context.storage.objects.delete(context.storage.collections.get(collection), ids)
    print_value({"deleted": deleted}, as_json=as_json)


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
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions",
            help="Write what was searched, shown and done instead; `import` and `replay` read it.",
        ),
    ] = False,
) -> None:
    """Write objects as JSON Lines that `index` and `payloads` read back; the file is whole or not there."""
    if sessions and where:
        raise typer.BadParameter("a filter is on objects, and --sessions writes none; leave one of them out")
    with opened_context() as context:
        stored = context.storage.collections.get(collection)
        if sessions:
            log = context.storage.clickstream.scan(collection=stored)
            err.print(f"Wrote {write_sessions(output, log, vectors=vectors)} sessions.")
            return
        wanted = parsed_filter(where)
        written = write_objects(
            output,
            every_object(context.storage, stored, filter=wanted),
            id_column=id_column,
            vector_column=vector_column if vectors else None,
        )
    err.print(f"Wrote {written} objects.")


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
