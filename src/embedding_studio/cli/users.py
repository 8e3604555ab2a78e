"""What is kept about a user: users export, users forget."""

from typing import Annotated

import orjson
import typer
from rich.table import Table

from embedding_studio.cli.console import AsJson, err, out, print_value
from embedding_studio.cli.services import Url, opened_service
from embedding_studio.errors import counted, plural
from embedding_studio.files import replaced

UserArgument = Annotated[str, typer.Argument(help="The user's id.")]

users = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Hand out or remove all that is kept about a user."
)


@users.command()
def export(
    user: UserArgument,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .jsonl file, also .jsonl.gz; `-` is stdout.")
    ] = "-",
    url: Url = None,
) -> None:
    """Write all that is kept about a user as JSON Lines: sessions, orders and what was learnt from them."""
    lines = 0
    with opened_service(url) as service, replaced(output) as file:
        for row in service.export_user(user):
            file.write(orjson.dumps(row) + b"\n")
            lines += 1
    err.print(f"Wrote {counted(lines, 'line')} about {user!r}.")


@users.command()
def forget(user: UserArgument, *, url: Url = None, as_json: AsJson = False) -> None:
    """Remove all that is known of a user, in every collection, and say how many rows of which table."""
    with opened_service(url) as service:
        forgotten = service.forget_user(user)
    if as_json:
        told = {"user": user, "removed": forgotten.removed, "not_reached": forgotten.not_reached}
        print_value(told, as_json=True)
        return
    table = Table("table", "rows removed")
    for name, number in forgotten.removed.items():
        table.add_row(name, f"{number:,}")
    out.print(table)
    sessions, them = counted(forgotten.sessions, "session"), plural(forgotten.sessions, "it", "them")
    err.print(f"Forgot {user!r}: {sessions} and all that was learnt from {them}.")
    for each in forgotten.not_reached:
        err.print(f"Not reached: {each}.")
