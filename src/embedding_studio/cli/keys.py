"""API keys: made, listed, replaced and revoked."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from embedding_studio.bootstrap import Context
from embedding_studio.cli.console import AsJson, err, opened_context, out, print_value
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import OF_ENVIRONMENT, ApiKey, Scope, new_key, renewed
from embedding_studio.errors import InvalidInputError, counted, plural

DAY_SECONDS = 86_400

KeyId = Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")]

keys = typer.Typer(add_completion=False, help="API keys of the HTTP service.", no_args_is_help=True)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses it.")],
    *,
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given several times.")],
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="That it is for; default: all.")
    ] = None,
    requires_user_token: Annotated[
        bool, typer.Option("--requires-user-token", help="For browsers: it needs the user's signed token.")
    ] = False,
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="Default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: this once, for what is kept is its hash."""
    now = utc_timestamp()
    with opened_context() as context:
        if requires_user_token:
            _check_tokens(context)
        kept, key = new_key(
            name,
            scope,
            collections=collection or (),
            requires_user_token=requires_user_token,
            expires_at=None if expires_in_days is None else now + round(expires_in_days * DAY_SECONDS),
            now=now,
        )
        context.storage.keys.add(kept)
    _print_new(kept, key, as_json=as_json)


@keys.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """Show all keys, those that ended too."""
    with opened_context() as context:
        rows = [_shown(key) for key in context.storage.keys.list()]
    if as_json:
        print_value(rows, as_json=True)
        return
    table = Table("id", "name", "scopes", "collections", "user token", "status", "expires", "last used")
    for row in rows:
        table.add_row(
            row["key_id"],
            row["name"],
            " ".join(row["scopes"]),
            " ".join(row["collections"]) or "all",
            "required" if row["requires_user_token"] else "",
            row["status"],
            _day(row["expires_at"]),
            _day(row["last_used_at"]),
        )
    out.print(table)


@keys.command()
def rotate(
    key_id: KeyId,
    *,
    old_days: Annotated[
        float, typer.Option(min=0, max=366, help="So long the old key stays good beside the new one.")
    ] = 7,
    as_json: AsJson = False,
) -> None:
    """Make a key that may do the same and print it; the old one stays good until clients have the new one."""
    now = utc_timestamp()
    with opened_context() as context:
        stored = context.storage.keys
        kept, key = renewed(stored.get(key_id), now=now)
        stored.replace(key_id, kept, until=now + round(old_days * DAY_SECONDS), now=now)
    _print_new(kept, key, as_json=as_json)
    days = "day" if old_days == 1 else "days"
    err.print(f"The key {key_id} stays good for {old_days:g} {days}; `keys revoke {key_id}` ends it before.")


@keys.command()
def revoke(key_id: KeyId) -> None:
    """Let a key be good no more; services notice within two seconds."""
    with opened_context() as context:
        revoked = context.storage.keys.revoke(key_id, now=utc_timestamp())
    err.print(f"Revoked the key {key_id} of {revoked.name!r}.")


@keys.command()
def disregard(
    key_id: Annotated[str, typer.Argument(help="Its id, or ADMIN_API_KEY or WRITE_API_KEY.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Let no session count any longer that came by a key, as where it was stolen; a worker unlearns them."""
    with opened_context() as context:
        if key_id not in OF_ENVIRONMENT:
            kept = context.storage.keys.get(key_id)
            if kept.status(utc_timestamp()) == "active":
                err.print(f"The key {key_id} is still good; `keys revoke {key_id}` ends it.")
        number = context.storage.clickstream.disregard(key_id)
    if as_json:
        print_value({"sessions": number}, as_json=True)
    else:
        sessions, them = counted(number, "session", spec=","), plural(number, "it", "them")
        count = plural(number, "counts", "count")
        err.print(f"{sessions} of the key {key_id} {count} no longer; a worker unlearns {them}.")


def _check_tokens(context: Context) -> None:
    settings = context.settings
    if settings.user_token_secret is None and settings.user_token_jwks is None:
        raise InvalidInputError(
            "no token could be checked: set USER_TOKEN_SECRET or USER_TOKEN_JWKS, here and for the service"
        )


def _print_new(kept: ApiKey, key: str, *, as_json: bool) -> None:
    if as_json:
        print_value(_shown(kept) | {"key": key}, as_json=True)
    else:
        typer.echo(key)
    err.print(f"This is the key of {kept.name!r}, with the id {kept.key_id}; it is not shown again.")


def _shown(key: ApiKey) -> dict[str, Any]:
    told = asdict(key) | {"status": key.status(utc_timestamp())}
    del told["secret_hash"]
    return told


def _day(at: int | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
