"""A database as a file, and back: backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from embedding_studio.cli.console import check_writable, err, opened_context
from embedding_studio.files import STDIN

BackupFile = Annotated[
    str, typer.Argument(metavar="FILE", help="The backup; `-` is standard output or input.")
]


def backup(file: BackupFile) -> None:
    """Write all that is stored into one file, as of one instant, while the service and workers go on."""
    check_writable(None if file == STDIN else Path(file))
    with opened_context() as context:
        database = context.back_up(file)
    size = "" if file == STDIN else f", {Path(file).stat().st_size / 1e6:,.1f} MB"
    err.print(f"Backed up {database}{size}. It holds what users did: keep it as you keep the database.")


def restore(
    file: BackupFile,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Drop what is in the database.")] = False,
) -> None:
    """Make the database what it was when a backup was written: as a whole, or nothing is changed.

    The service and the workers must be stopped. The backup may be of another server, embedded or not, of
    another version of PostgreSQL, and of an earlier version of this program.
    """
    with opened_context() as context:
        database = context.restore(file, replace=replace)
    err.print(f"Restored {database}, and its tables are up to date.")
