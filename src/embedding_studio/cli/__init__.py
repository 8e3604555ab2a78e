"""The command line: tables for people, ``--json`` for machines, progress on stderr.

catalogue       index, payloads
objects         objects, and get, delete, export
searching       search
fitting         tune, recall
importing       import
serving         serve
demonstration   demo
learning        worker, improve
evaluation      evaluate
replaying       replay
quarantine      quarantine, and what is done to a user
administration  doctor, migrate, prune, settings
attaching       attach
collections     collections, and what is done to one
users           users export, users forget, forget
keys            keys
backup          backup, restore
services        whom a command asks: a service (``--url``), or what is here (``in_process``)
console         what they share

A command's module is imported when the command is asked for: searching through a service loads no model,
no database and no evaluation.
"""

import errno
import gc
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from embedding_studio.cli.console import end_in_order, tell, write_any_character

__all__ = ["app"]

gc.set_threshold(100_000)  # by default cycles are looked for so often that it is a fifth of a start

COMMANDS = {
    "index": "catalogue:index",
    "payloads": "catalogue:payloads",
    "objects": "objects:objects",
    "attach": "attaching:attach",
    "collections": "collections:collections",
    "search": "searching:search",
    "serve": "serving:serve",
    "worker": "learning:worker",
    "improve": "learning:improve",
    "demo": "demonstration:demo",
    "evaluate": "evaluation:evaluate",
    "replay": "replaying:replay",
    "tune": "fitting:tune",
    "recall": "fitting:recall",
    "import": "importing:import_log",
    "users": "users:users",
    "forget": "users:forget",
    "quarantine": "quarantine:quarantine",
    "keys": "keys:keys",
    "doctor": "administration:doctor",
    "reconcile": "attaching:reconcile",
    "migrate": "administration:migrate",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "prune": "administration:prune",
    "settings": "administration:show_settings",
    "get": "objects:get",
    "delete": "objects:delete",
    "export": "objects:export",
}
"""In the order in which help lists them."""

ONE_THREAD_A_PRODUCT = "OPENBLAS_NUM_THREADS", "1"
"""A search multiplies small matrices. Threads that share one wait for each other, while others search; and
numpy asks before it is imported."""

HIDDEN = {"get", "delete", "export"}
"""What ``objects`` has too."""


class _OnFirstUse(MutableMapping[str, Any]):
    """The commands, each made when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, _, attribute = COMMANDS[name].partition(":")
            command = getattr(import_module(f"{__name__}.{module}"), attribute)
            if not isinstance(command, typer.Typer):
                function, command = command, typer.Typer(add_completion=False)
                command.command(name, hidden=name in HIDDEN)(function)
            self._made[name] = get_command(command)
            self._made[name].name = name
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Commands(TyperGroup):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _OnFirstUse()

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            with suppress(OSError):
                os.dup2(
                    os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
                )  # what is left is not tried again
            tell("error", f"what was to be written could not be: {error.strerror}", style="bold red")
            raise typer.Exit(1) from error

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002, typer's name
        return list(self.commands)


def _show_version(*, is_wanted: bool) -> None:
    if is_wanted:
        from embedding_studio import __version__

        typer.echo(__version__)
        raise typer.Exit


class _App(typer.Typer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; its help and its errors can be written to any terminal, too."""
        end_in_order()  # at once: process 1 of a container takes no signal that it does not ask for
        write_any_character()
        os.environ.setdefault(*ONE_THREAD_A_PRODUCT)
        return super().__call__(*args, **kwargs)


app = _App(
    name="embedding-studio",
    cls=_Commands,
    help="Search that learns from clicks. Settings are environment variables: `embedding-studio settings`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None: ...
