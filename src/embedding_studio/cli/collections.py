"""Collections: list, show, create, drop, alias, unalias; rename-embedder."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from embedding_studio.cli.console import (
    AsJson,
    CollectionArgument,
    err,
    opened_context,
    out,
    print_value,
)
from embedding_studio.cli.services import Url, opened_service
from embedding_studio.client.answers import CollectionInfo
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.errors import InvalidInputError

AliasArgument = Annotated[str, typer.Argument(help="The other name.")]

collections = typer.Typer(add_completion=False)


@collections.callback(invoke_without_command=True)
def options(context: typer.Context, *, url: Url = None, as_json: AsJson = False) -> None:
    """List collections with their size, or do something to one."""
    if context.invoked_subcommand is None:
        list_collections(url=url, as_json=as_json)
    elif url and getattr(context.get_parameter_source("url"), "name", "") == "COMMANDLINE":
        raise typer.BadParameter(f"give --url after {context.invoked_subcommand!r}")


@collections.command("list")
def list_collections(*, url: Url = None, as_json: AsJson = False) -> None:
    """List collections with their size."""
    with opened_service(url) as service:
        rows = list(map(_row, service.collections()))
    if as_json:
        print_value(rows, as_json=True)
        return
    table = Table(*(rows[0] if rows else ("name", "objects")))
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    out.print(table)


@collections.command()
def show(collection: CollectionArgument, *, url: Url = None, as_json: AsJson = False) -> None:
    """Show what is known of a collection."""
    with opened_service(url) as service:
        row = _row(service.collection(collection))
    print_value(row if as_json else {name: _cell(value) for name, value in row.items()}, as_json=as_json)


@collections.command()
def create(
    collection: CollectionArgument,
    *,
    dimensions: Annotated[
        int | None,
        typer.Option(min=1, help="Of the vectors that are brought. Default: EMBEDDER makes them."),
    ] = None,
    metric: Annotated[MetricType, typer.Option(help="How vectors are compared.")] = MetricType.COSINE,
    aggregation: Annotated[
        MetricAggregationType, typer.Option(help="How parts count: the nearest, or the mean.")
    ] = MetricAggregationType.MIN,
    embedder: Annotated[
        str | None, typer.Option(help="What EMBEDDER is of the service that is asked, which then makes them.")
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="The name in ATTACHED_STORES of what finds its objects, and is filled with them.",
        ),
    ] = None,
    url: Url = None,
) -> None:
    """Create a collection; one of the same name and kind is left as it is."""
    with opened_service(url) as service:
        service.create_collection(
            collection,
            dimensions=dimensions,
            metric_type=metric.value,
            metric_aggregation_type=aggregation.value,
            embedder=embedder,
            fill=fill,
        )
    err.print(f"There is a collection {collection!r}.")


@collections.command()
def drop(
    collection: Annotated[str, typer.Argument(help="Name of the collection, not an alias.")],
    *,
    url: Url = None,
) -> None:
    """Remove a collection with its objects and all that was learnt in it; sessions stay."""
    with opened_service(url) as service:
        service.drop_collection(collection)
    err.print(f"Dropped the collection {collection!r}.")


@collections.command()
def alias(alias: AliasArgument, collection: CollectionArgument, *, url: Url = None) -> None:
    """Let an alias stand for a collection from now on; what was learnt under it is re-learnt there."""
    with opened_service(url) as service:
        service.set_alias(alias, collection)
    err.print(f"{alias!r} stands for {collection!r} from now on.")


@collections.command()
@collections.command("drop-alias", hidden=True)
def unalias(alias: AliasArgument, *, url: Url = None) -> None:
    """Let an alias stand for nothing; what was learnt under it is unlearnt."""
    with opened_service(url) as service:
        service.drop_alias(alias)
    err.print(f"Dropped the alias {alias!r}.")


@collections.command()
def rename_embedder(collection: CollectionArgument) -> None:
    """Record that a collection was embedded by what is EMBEDDER now: the same model under another name.

    Nothing is embedded again. The model's folder has moved, or an endpoint calls it something else.
    """
    from embedding_studio.indexing import rename_embedder as rename_embedder_of

    with opened_context() as context:
        known = context.storage.collections.get(collection)
        if context.embedder is None:
            raise InvalidInputError("EMBEDDER is none; set it to what the model is called now")
        renamed = rename_embedder_of(context.storage, known, context.embedder)
    err.print(f"{known.name!r} was recorded as embedded by {known.embedder!r}, now by {renamed.embedder!r}.")


def _row(info: CollectionInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "objects": info.objects,
        **asdict(info.index),
        "embedder": info.embedder,
        "gate_threshold": info.gate_threshold,
        "own_past": info.own_past,
        "aliases": list(info.aliases),
        "attached": info.attached,
        "filled": info.filled,
    }


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {each:.2f}" for name, each in value.items())
    return "" if value is None else str(value)
