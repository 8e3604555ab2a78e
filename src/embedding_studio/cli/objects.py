"""Objects that are stored: objects get, list, delete, export; and the same without ``objects`` before."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from embedding_studio.cli.console import (
    AsJson,
    InCollection,
    PayloadFilterOption,
    err,
    json_filter,
    opened_context,
    out,
    payload_line,
    print_value,
)
from embedding_studio.cli.services import Service, Url, opened_service
from embedding_studio.domain import DEFAULT_COLLECTION
from embedding_studio.errors import InvalidInputError, counted

if TYPE_CHECKING:
    from embedding_studio.domain.objects import CatalogueObject

ObjectIds = Annotated[list[str], typer.Argument(help="Ids of objects.")]

objects = typer.Typer(add_completion=False, no_args_is_help=True, help="Objects that are stored.")


@objects.command()
def get(
    ids: ObjectIds,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show objects: payload and, as JSON, vectors."""
    with opened_service(url) as service:
        found = service.get(ids, collection=collection)
        if as_json:
            print_value(
                [{"id": each.object_id, "payload": each.payload, "vectors": each.vectors} for each in found],
                as_json=True,
            )
        else:
            table = Table("object", "vectors", "payload")
            for each in found:
                parts = each.vectors or [[]]
                shown = json.dumps(each.payload, ensure_ascii=False)
                table.add_row(each.object_id, f"{len(parts)} x {len(parts[0])}", shown)
            out.print(table)
        absent = sorted(set(ids) - {each.object_id for each in found})
        if absent:
            raise InvalidInputError(f"{collection!r} has no object {', '.join(map(repr, absent))}")


@objects.command("list")
def list_objects(
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    where: PayloadFilterOption = None,
    limit: Annotated[int, typer.Option(min=1, help="So many are shown.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the objects of a collection by id."""
    with opened_service(url) as service:
        found = list(islice(service.scroll(filter=json_filter(where), collection=collection), limit + 1))
    shown = found[:limit]
    if as_json:
        print_value([{"id": each.object_id, "payload": each.payload} for each in shown], as_json=True)
        return
    table = Table("object")
    table.add_column("payload", no_wrap=True, overflow="ellipsis")
    for each in shown:
        table.add_row(each.object_id, payload_line(each.payload))
    out.print(table)
    if len(found) > limit:
        err.print("There are more; --limit shows them, and `objects export` writes all to a file.")


@objects.command()
def delete(
    ids: ObjectIds,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Remove objects, and all that was learnt about them."""
    with opened_service(url) as service:
        deleted = service.delete(ids, collection=collection)
    print_value({"deleted": deleted}, as_json=as_json)


@objects.command()
def export(
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .jsonl file, also .jsonl.gz; `-` is stdout.")
    ] = "-",
    where: PayloadFilterOption = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write vectors too, in a column.")] = False,
    id_column: Annotated[str, typer.Option(help="Column that names each object.")] = "id",
    vector_column: Annotated[str, typer.Option(help="Column for vectors.")] = "vector",
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions",
            help="Write what was searched, shown and done instead; `import` and `replay` read it.",
        ),
    ] = False,
    url: Url = None,
) -> None:
    """Write objects as JSON Lines that `index` and `payloads` read back; the file is whole or not there."""
    from embedding_studio.catalogue import write_objects

    if sessions and where:
        raise typer.BadParameter("a filter is on objects, and --sessions writes none; leave one of them out")
    if sessions:
        _export_sessions(collection, output, url=url, vectors=vectors)
        return
    with opened_service(url) as service:
        wanted = json_filter(where)
        written = write_objects(
            output,
            _read(service, collection, wanted, vectors=vectors),
            id_column=id_column,
            vector_column=vector_column if vectors else None,
        )
    err.print(f"Wrote {counted(written, 'object')}.")


def _export_sessions(collection: str, output: str, *, url: str | None, vectors: bool) -> None:
    from embedding_studio.logs import write_sessions

    if url:
        raise typer.BadParameter("--sessions reads the database itself; leave out --url")
    with opened_context() as context:
        stored = context.storage.collections.get(collection)
        log = context.storage.clickstream.scan(collection=stored)
        written = write_sessions(output, log, vectors=vectors)
        err.print(f"Wrote {counted(written, 'session')}.")


def _read(
    service: Service, collection: str, wanted: Mapping[str, Any] | None, *, vectors: bool
) -> "Iterator[CatalogueObject]":
    """Yield objects as they are written to a file."""
    import numpy as np

    from embedding_studio.domain.objects import CatalogueObject

    for each in service.scroll(filter=wanted, with_vectors=vectors, collection=collection):
        yield CatalogueObject(each.object_id, np.array(each.vectors or [[]], dtype=np.float32), each.payload)
