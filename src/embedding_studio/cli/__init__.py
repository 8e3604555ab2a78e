"""The command line: tables for people, ``--json`` for machines, progress on stderr.

catalogue       index, payloads, get, delete, export
importing       import
searching       search, tune, recall
serving         serve
demonstration   demo
learning        worker, improve
evaluation      evaluate
replaying       replay
quarantine      quarantine, and what is done to a user
administration  doctor, migrate, prune, settings, collections (and what is done to one)
users           users export, users forget, forget
keys            keys
backup          backup, restore
console         what they share
"""

from typing import Annotated, Any

import typer

from embedding_studio import __version__
from embedding_studio.cli.administration import collections, doctor, migrate, prune, show_settings
from embedding_studio.cli.backup import backup, restore
from embedding_studio.cli.catalogue import delete, export, get, index, payloads
from embedding_studio.cli.console import write_any_character
from embedding_studio.cli.demonstration import demo
from embedding_studio.cli.evaluation import evaluate
from embedding_studio.cli.importing import import_log
from embedding_studio.cli.keys import keys
from embedding_studio.cli.learning import improve, worker
from embedding_studio.cli.quarantine import quarantine
from embedding_studio.cli.replaying import replay
from embedding_studio.cli.searching import recall, search, tune
from embedding_studio.cli.serving import serve
from embedding_studio.cli.users import forget, users

__all__ = ["app"]


def _show_version(*, is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(__version__)
        raise typer.Exit


class _App(typer.Typer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; its help and its errors can be written to any terminal, too."""
        write_any_character()
        return super().__call__(*args, **kwargs)


app = _App(
    name="embedding-studio",
    help="Search that learns from clicks. Settings are environment variables: `embedding-studio settings`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(index, payloads, get, delete, export, search),
    *(serve, worker, improve, demo),
    *(evaluate, replay, tune, recall, doctor, migrate, backup, restore, prune),
)


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None: ...


for command in COMMANDS:  # in the order in which help lists them
    app.command()(command)
app.command("import")(import_log)
app.command("settings")(show_settings)
app.add_typer(collections, name="collections")
app.add_typer(keys, name="keys")
app.add_typer(quarantine, name="quarantine")
app.add_typer(users, name="users")
app.command()(forget)
