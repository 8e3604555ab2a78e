"""What commands share: options, a context, tables and JSON on stdout, sentences and progress on stderr."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from embedding_studio.bootstrap import Context
from embedding_studio.errors import EmbeddingStudioError, InvalidFilterError

out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PayloadFilterOption = Annotated[str | None, typer.Option("--filter", help="A payload filter as JSON.")]
InCollection = Annotated[str, typer.Option("--collection", "-c", help="Name or alias of the collection.")]
CollectionArgument = Annotated[str, typer.Argument(help="Name or alias of the collection.")]


@contextmanager
def opened_context() -> Iterator[Context]:
    """Yield the context that a command works in; an error becomes a sentence."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is closed
    with sentences(), Context() as context:
        yield context


@contextmanager
def sentences() -> Iterator[None]:
    """Say an error in a sentence, and exit with 1."""
    try:
        yield
    except EmbeddingStudioError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def on_stop(work: Callable[[], object]) -> None:
    """Let SIGTERM and Ctrl-C do this, and nothing else."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: work())


@contextmanager
def bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what moves a bar on; where the total is not known, it counts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what draws a bar for each thing that is told to be done so far of so much."""
    with Progress(console=err) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def parse_json(given: str) -> Any:
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise InvalidFilterError(f"not JSON: {error}; given was {given!r}") from error


def print_value(value: Any, *, as_json: bool) -> None:
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if as_json:
        typer.echo(json.dumps(plain, ensure_ascii=False, default=str))
        return
    table = Table(show_header=False)
    for key, each in plain.items():
        table.add_row(key, str(each))
    out.print(table)
