"""Users from whom nothing is learnt: quarantine, and what is done to one."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from embedding_studio.cli.console import AsJson, err, opened_context, out, print_value
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.storable import check_id
from embedding_studio.storage.ports import QuarantineDecision

UserArgument = Annotated[str, typer.Argument(help="The user's id.")]

quarantine = typer.Typer(add_completion=False)


@quarantine.callback(invoke_without_command=True)
def list_quarantined(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, help="So many at the most, the latest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List users from whom nothing is learnt, with the reason, or quarantine or release one."""
    if context.invoked_subcommand is not None:
        return
    with opened_context() as opened:
        rows = [asdict(each) for each in opened.storage.quarantine.list(limit=limit)]
    if as_json:
        print_value(rows, as_json=True)
        return
    table = Table("user_id", "collection", "reason", "since")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    out.print(table)


@quarantine.command()
def add(
    user: UserArgument,
    *,
    reason: Annotated[str, typer.Option(help="Shown with each of the user's sessions.")] = "by hand",
) -> None:
    """Learn nothing from a user until they are released, and unlearn what was learnt."""
    _decide(user, is_quarantined=True, reason=reason)
    err.print(f"Nothing is learnt from {user!r} from now on; a worker unlearns what was.")


@quarantine.command()
def release(user: UserArgument) -> None:
    """Learn from a user again; what they did up to now is not held against them any more."""
    _decide(user, is_quarantined=False, reason="released")
    err.print(f"Released {user!r}; a worker learns from their sessions.")


def _decide(user: str, *, is_quarantined: bool, reason: str) -> None:
    decision = QuarantineDecision(is_quarantined, reason, utc_timestamp())
    with opened_context() as context:
        context.storage.quarantine.decide(check_id(user), decision)
