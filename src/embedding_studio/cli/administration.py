"""An installation and what it holds: doctor, migrate, settings, collections, forget."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from embedding_studio.cli.console import AsJson, err, opened_context, out, print_value, sentences
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


def show_settings(
    *,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option(help="Print the table of docs/settings.md.")] = False,
) -> None:
    """List all settings with their present values."""
    if markdown:
        typer.echo(settings_markdown())
        return
    with sentences():
        settings = load_settings()
    values = settings.model_dump(mode="json")
    if as_json:
        print_value(values, as_json=True)
        return
    table = Table("variable", "value", "meaning")
    for name, field in Settings.model_fields.items():
        table.add_row(name.upper(), str(values[name]), field.description)
    out.print(table)


def collections(*, as_json: AsJson = False) -> None:
    """List collections with their size."""
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


def forget(user: Annotated[str, typer.Argument(help="The user's id.")]) -> None:
    """Remove all that is known of a user, in every collection."""
    with opened_context() as context:
        sessions = context.storage.clickstream.forget_user(user)
    err.print(f"Forgot {user!r}: {sessions} sessions and all that was learnt from them.")
