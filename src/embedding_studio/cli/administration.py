"""An installation: doctor, migrate, prune, settings."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from embedding_studio.cli.console import (
    AsJson,
    err,
    opened_context,
    out,
    print_value,
    tell,
)
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.errors import InvalidSettingError
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
