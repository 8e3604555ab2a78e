"""What commands share: options, a context, tables and JSON on stdout, sentences and progress on stderr.

What is printed is never read as markup, so a text may hold any brackets; colours are ``Text``. Nor does a
terminal obey it: what would command one is shown as an escape (``visible``).
"""

import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from embedding_studio.errors import (
    EmbeddingStudioError,
    InvalidFilterError,
    InvalidInputError,
    InvalidSettingError,
    shown,
)

if TYPE_CHECKING:  # what is heavy waits for the commands that need it: asking a service needs none of it
    from embedding_studio.bootstrap import Context
    from embedding_studio.domain.filters import PayloadFilter

logger = logging.getLogger(__name__)

LINE_SECONDS = 10.0

CONTROL_CHARACTERS = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - set(
    b"\n\t"
)
"""Those of C0 and C1 but a line's end and a tab, and those that turn around the order of what is shown."""

AS_ESCAPES = {each: repr(chr(each))[1:-1] for each in CONTROL_CHARACTERS}
AS_JSON_ESCAPES = {each: f"\\u{each:04x}" for each in CONTROL_CHARACTERS}


def visible(text: str) -> str:
    r"""Return a text in which what would command a terminal is shown, and no more than that.

    >>> print(visible("red: \x1b[31m, reversed: \u202e"))
    red: \x1b[31m, reversed: \u202e
    """
    return text.translate(AS_ESCAPES)


class _Console(Console):
    """A console that shows every string, also that of a cell, as ``visible`` has it; a ``Text`` as it is."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def _open_closed_streams() -> None:
    """Let a stream that is closed be one of nothing; no socket takes its number, either."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115, it stays open
            setattr(sys, name, nothing)


_open_closed_streams()
out = _Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)
err = _Console(stderr=True, markup=False, emoji=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PayloadFilterOption = Annotated[str | None, typer.Option("--filter", help="A payload filter as JSON.")]
InCollection = Annotated[str, typer.Option("--collection", "-c", help="Name or alias of the collection.")]
CollectionArgument = Annotated[str, typer.Argument(help="Name or alias of the collection.")]


URL_VARIABLE = "EMBEDDING_STUDIO_URL"

LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}


@contextmanager
def opened_context(make: "Callable[[], Context] | None" = None) -> "Iterator[Context]":
    """Yield the context that a command works in; an error becomes a sentence.

    Args:
        make: another than that of the environment.
    """
    from embedding_studio.telemetry.traces import tracing

    with untraced_context(make) as context, tracing():
        yield context


@contextmanager
def untraced_context(make: "Callable[[], Context] | None" = None) -> "Iterator[Context]":
    """Yield as ``opened_context`` does, with no thread that sends traces: so the process may be forked."""
    from embedding_studio.bootstrap import Context
    from embedding_studio.telemetry.logs import EarlyLines

    lines = EarlyLines()
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    for chatty in ("httpx", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with sentences(), (make or Context)() as context:
        with suppress(InvalidSettingError):  # what needs a setting says what is wrong with it; doctor goes on
            lines.log_format = context.settings.log_format
        lines.write()
        if os.environ.get(URL_VARIABLE):
            tell("note", f"{URL_VARIABLE} is for commands with --url; this one opens the database itself")
        yield context


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let the loggers below a name tell of nothing that is less than a warning."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def sentences() -> Iterator[None]:
    """Say an error in a sentence, and exit with 1."""
    try:
        yield
    except EmbeddingStudioError as error:
        tell("error", str(error), style="bold red")
        raise typer.Exit(1) from error


def tell(kind: str, said: str, *, style: str = "bold yellow") -> None:
    """Say something on stderr, with what kind of thing it is before it."""
    if _lines_are_json():
        logger.log(LEVELS.get(kind, logging.INFO), "%s", said, stacklevel=2)
    else:
        err.print(Text.assemble((f"{kind}:", style), " ", visible(said)), soft_wrap=True)


def _lines_are_json() -> bool:
    from embedding_studio.telemetry.logs import are_json

    return are_json()


def announce(said: str) -> None:
    """Say on stderr what whoever started the process waits for; as a log line where these are JSON."""
    if _lines_are_json():
        logger.info("%s", said)
    else:
        err.print(said, soft_wrap=True)  # a line of a log, however long


def end_in_order() -> None:
    """Let all be closed at SIGTERM, and where the terminal is closed, unless nohup has that ignored."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def on_stop(work: Callable[[], object]) -> None:
    """Let SIGTERM and Ctrl-C do this, and nothing else."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: work())


def end_within(seconds: float, what: str) -> None:
    """Let the process end then, with 1, though a thread does not come back, as one that waits for a plugin.

    Args:
        what: for people: that which does not come to an end.
    """
    late = threading.Timer(seconds, _end_without, [what])
    late.daemon = True
    late.start()


def _end_without(what: str) -> None:
    tell("error", f"{what} does not come to an end; the process ends without it", style="bold red")
    os._exit(1)


@contextmanager
def bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what moves a bar on; where the total is not known, it counts.

    Where there is no terminal the bar is printed once, at its end; a line now and then says that it moves.
    """
    description = visible(description)
    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task(description, total=total)
        told_at, told = time.monotonic(), "" if total is None else f" of {total:,}"

        def move(done: int) -> None:
            nonlocal told_at
            progress.advance(task, done)
            if not err.is_terminal and time.monotonic() - told_at >= LINE_SECONDS:
                told_at = time.monotonic()
                err.print(f"{description}: {progress.tasks[0].completed:,.0f}{told}")

        yield move


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what draws a bar for each thing of which so much is reported as done."""
    with _progress(TaskProgressColumn()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(visible(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _progress(how_much: ProgressColumn) -> Progress:
    name = TextColumn("{task.description}", markup=False)
    return Progress(name, BarColumn(), how_much, TimeRemainingColumn(), console=err)


def json_filter(given: str | None) -> Any:
    """Return what ``--filter`` says, as JSON.

    Raises:
        InvalidFilterError: it is none.
    """
    if given is None:
        return None
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InvalidFilterError(f"--filter is not JSON: {error}; given was {shown(given)}") from error


def parsed_filter(given: str | None) -> "PayloadFilter | None":
    """Return what ``--filter`` says.

    Raises:
        InvalidFilterError: it is no JSON, or no filter.
    """
    from embedding_studio.domain.filters import PayloadFilter

    value = json_filter(given)
    return None if given is None else PayloadFilter.parse(value)


def as_json_line(value: Any) -> str:
    """Return JSON that stdout can write: in escapes where it is not in UTF-8; it commands no terminal."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return json.dumps(value, ensure_ascii=not is_unicode, default=str).translate(AS_JSON_ESCAPES)


def check_writable(*paths: Path | None) -> None:
    """Return if these files can be written, so that it is reported before the work; folders must exist."""
    with sentences():
        for path in paths:
            if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
                raise InvalidInputError(f"{path} cannot be written; its folder must be there")


def write_any_character() -> None:
    """Let a terminal or pipe in an older encoding show what it cannot write as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_value(value: Any, *, as_json: bool) -> None:
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if as_json:
        typer.echo(as_json_line(plain))
        return
    table = Table(show_header=False)
    for key, each in plain.items():
        table.add_row(key, f"{each:.3g}" if isinstance(each, float) else str(each))
    out.print(table)


TITLES = ("title", "name", "label", "heading", "question")
"""Fields of a payload that say best what an object is, so that they are shown first."""

SHOWN_CHARACTERS = 60
"""Of one value of a payload."""


def payload_line(payload: dict[str, Any]) -> str:
    """Return a payload in a line for people.

    >>> payload_line({"price": 70, "title": "A warm coat", "tags": ["wool", "winter"]})
    'A warm coat · price: 70 · tags: wool, winter'
    """
    first = next((each for each in TITLES if isinstance(payload.get(each), str)), None)
    told = [] if first is None else [_value(payload[first])]
    told += [f"{name}: {_value(value)}" for name, value in payload.items() if name != first]
    return " · ".join(told)


def _value(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
        value = ", ".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
