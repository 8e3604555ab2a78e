"""What is kept about a user: users export, users forget."""

from typing import Annotated

import typer
from rich.table import Table

from embedding_studio.cli.console import AsJson, err, opened_context, out, print_value
from embedding_studio.files import replaced
from embedding_studio.personal_data import BEYOND, exported

UserArgument = Annotated[str, typer.Argument(help="The user's id.")]

users = typer.Typer(no_args_is_help=True, help="Hand out or remove all that is kept about a user.")


@users.command()
def export(
    user: UserArgument,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .jsonl file, also .jsonl.gz; `-` is stdout.")
    ] = "-",
) -> None:
    """Write all that is kept about a user as JSON Lines: sessions, orders and what was learnt from them."""
    lines = 0
    with opened_context() as context, replaced(output) as file:
        for line in exported(context.storage, user):
            file.write(line)
            lines += 1
    err.print(f"Wrote {lines} lines about {user!r}.")


@users.command()
def forget(user: UserArgument, *, as_json: AsJson = False) -> None:
    """Remove all that is known of a user, in every collection, and say how many rows of which table."""
    with opened_context() as context:
        removed = context.storage.clickstream.forget_user(user)
    if as_json:
        print_value({"user": user, "removed": removed, "not_reached": BEYOND}, as_json=True)
        return
    table = Table("table", "rows removed")
    for name, number in removed.items():
        table.add_row(name, f"{number:,}")
    out.print(table)
    err.print(f"Forgot {user!r}: {removed['sessions']} sessions and all that was learnt from them.")
    for each in BEYOND:
        err.print(f"Not reached: {each}.")
