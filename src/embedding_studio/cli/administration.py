"""An installation and what it holds: doctor, migrate, prune, settings, collections."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from embedding_studio.cli.console import (
    AsJson,
    CollectionArgument,
    err,
    opened_context,
    out,
    print_value,
    tell,
)
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.errors import InvalidInputError, InvalidSettingError
from embedding_studio.indexing import rename_embedder as rename_embedder_of
from embedding_studio.retention import prune as remove_old
from embedding_studio.retention import seconds_of_age
from embedding_studio.settings import Settings, load_settings, settings_markdown


def doctor(
    *,
    embedder: Annotated[
        bool, typer.Option("--embedder", help="Load the embedder and embed a word with it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how everything fares: OK, WARN or FAIL and a sentence each; exits with 1 where anything fails."""
    from embedding_studio.doctor import examine

    with opened_context() as context:
        findings = examine(context, load_embedder=embedder)
    if as_json:
        print_value([asdict(each) for each in findings], as_json=True)
    else:
        table = Table("", "what", "how it is")
        colours = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
        for each in findings:
            table.add_row(Text(each.grade, style=colours[each.grade]), each.what, each.told)
        out.print(table)
    if any(each.grade == "FAIL" for each in findings):
        raise typer.Exit(1)


def migrate() -> None:
    """Bring the database's schema up to date."""
    with opened_context() as context:
        context.storage.ping()
    err.print("The database is up to date.")


def prune(
    *,
    older_than: Annotated[
        str, typer.Option(help="An age in hours, days or weeks, such as 180d.", metavar="AGE")
    ],
    as_json: AsJson = False,
) -> None:
    """Remove sessions that are older, with their events and orders; what was learnt from them goes with them.

    A worker then learns who had some from what is left. It goes by small batches, while all goes on.
    """
    with opened_context() as context:
        went = remove_old(context.storage, utc_timestamp() - seconds_of_age(older_than))
    print_value(went, as_json=as_json)


def show_settings(
    *,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option(help="Print the table of docs/settings.md.")] = False,
) -> None:
    """List all settings with their present values."""
    if markdown:
        typer.echo(settings_markdown())
        return
    try:
        values = load_settings().model_dump(mode="json")
    except InvalidSettingError as error:
        tell("error", str(error), style="bold red")
        values = None
    if as_json and values is not None:
        print_value(values, as_json=True)
    elif not as_json:
        table = Table("variable", *(["value"] if values else []), "meaning")
        for name, field in Settings.model_fields.items():
            table.add_row(name.upper(), *([str(values[name])] if values else []), field.description)
        out.print(table)
    if values is None:
        raise typer.Exit(1)


collections = typer.Typer()


@collections.callback(invoke_without_command=True)
def list_collections(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List collections with their size, or do something to one."""
    if context.invoked_subcommand is None:
        _list_collections(as_json=as_json)


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
) -> None:
    """Create a collection; one of the same name and kind is left as it is."""
    index = SearchIndexInfo(dimensions=dimensions, metric_type=metric, metric_aggregation_type=aggregation)
    with opened_context() as context:
        if dimensions is None:
            context.collection(collection, index=index)
        else:
            context.storage.collections.create(collection, index)
    err.print(f"There is a collection {collection!r}.")


@collections.command()
def drop(collection: Annotated[str, typer.Argument(help="Name of the collection, not an alias.")]) -> None:
    """Remove a collection with its objects and all that was learnt in it; sessions stay."""
    with opened_context() as context:
        context.storage.collections.drop(collection)
    err.print(f"Dropped the collection {collection!r}.")


@collections.command()
def alias(
    alias: Annotated[str, typer.Argument(help="The other name.")], collection: CollectionArgument
) -> None:
    """Let an alias stand for a collection from now on; what was learnt under it is learnt anew there."""
    with opened_context() as context:
        context.storage.collections.set_alias(alias, collection)
    err.print(f"{alias!r} stands for {collection!r} from now on.")


@collections.command()
def drop_alias(alias: Annotated[str, typer.Argument(help="The other name.")]) -> None:
    """Let an alias stand for nothing; what was learnt under it is unlearnt."""
    with opened_context() as context:
        context.storage.collections.drop_alias(alias)
    err.print(f"Dropped the alias {alias!r}.")


@collections.command()
def rename_embedder(collection: CollectionArgument) -> None:
    """Record that a collection was embedded by what is EMBEDDER now: the same model under another name.

    Nothing is embedded again. The model's folder has moved, or an endpoint calls it something else.
    """
    with opened_context() as context:
        known = context.storage.collections.get(collection)
        if context.embedder is None:
            raise InvalidInputError("EMBEDDER is none; set it to what the model is called now")
        renamed = rename_embedder_of(context.storage, known, context.embedder)
    err.print(f"{known.name!r} was recorded as embedded by {known.embedder!r}, now by {renamed.embedder!r}.")


def _list_collections(*, as_json: bool) -> None:
    with opened_context() as context:
        storage = context.storage
        aliases = storage.collections.aliases()
        rows = [
            {
                "name": each.name,
                "objects": storage.objects.count(each),
                **each.index.model_dump(mode="json"),
                "embedder": each.embedder,
                "gate_threshold": each.gate_threshold,
                "own_past": None if each.own_past is None else asdict(each.own_past),
                "aliases": [alias for alias, name in aliases.items() if name == each.name],
            }
            for each in storage.collections.list()
        ]
    if as_json:
        print_value(rows, as_json=True)
        return
    table = Table(*(rows[0] if rows else ("name", "objects")))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)
