"""A log that another system wrote: import."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain
from typing import Annotated

import typer
from rich.table import Table

from embedding_studio.cli.console import (
    AsJson,
    InCollection,
    bar,
    err,
    opened_context,
    out,
    print_value,
    tell,
)
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import InvalidInputError
from embedding_studio.files import STDIN
from embedding_studio.importing import LANES, Importer, ImportReport, collect_rarely
from embedding_studio.logs import Placed, flat, open_log
from embedding_studio.logs.entries import MAX_TYPE_LENGTH, seconds_of, type_of

ENTRIES_A_STEP = 1_000
"""After so many the bar moves."""


class Format(StrEnum):
    """What ``import --format`` takes."""

    AUTO = "auto"
    OWN = "own"
    UBI = "ubi"
    ALGOLIA = "algolia"
    METARANK = "metarank"
    SEGMENT = "segment"
    GA4 = "ga4"
    FLAT = "flat"


def import_log(
    logs: Annotated[
        list[str],
        typer.Argument(
            metavar="LOG...",
            help="Files of NDJSON, CSV, TSV or Parquet, also .gz and .zst; `-` is NDJSON on standard input.",
        ),
    ],
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    of_format: Annotated[
        Format, typer.Option("--format", help="Whose log it is; auto: found by its first rows.")
    ] = Format.AUTO,
    columns: Annotated[
        str | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN,...",
            help=f"Columns of a flat table. Fields: {', '.join(flat.FIELDS)}.",
        ),
    ] = None,
    event_type: Annotated[
        list[str] | None,
        typer.Option(metavar="THEIRS=OURS", help="What a type of event is called here. May be repeated."),
    ] = None,
    since: Annotated[str | None, typer.Option(help="What happened from this time on, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="What happened before this time.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read, say what is there, store nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Store searches and clicks that another system logged; running it again changes nothing."""
    with opened_context() as context:
        collect_rarely()
        mapped = flat.mapping(columns)
        importer = Importer(
            context.storage,
            context.storage.collections.get(collection),
            event_types=_types(event_type),
            weights=context.settings.event_weights,
            since=_time("--since", since),
            until=_time("--until", until),
            is_rehearsal=dry_run,
            lanes=LANES,
        )
        chosen = "flat" if columns is not None and of_format is Format.AUTO else of_format.value
        if logs.count(STDIN) > 1:
            raise InvalidInputError("standard input is read once; give `-` once")
        opened = []
        for log in logs:
            found = open_log(
                log, dialect=None if chosen == "auto" else chosen, columns=mapped, is_strict=strict
            )
            err.print(f"{log} is read as {found.dialect}.", highlight=False)
            opened.append(found.entries)
        report = importer.run(_counted(chain.from_iterable(opened)))
    if as_json:
        print_value(report, as_json=True)
    else:
        out.print(_table(report))
    for note in report.notes:
        tell("note", note)


def _counted(entries: Iterable[Placed]) -> Iterator[Placed]:
    """Yield entries under a bar that counts them."""
    with bar("Importing", None) as advance:
        number = 0
        for number, each in enumerate(entries, start=1):
            yield each
            if number % ENTRIES_A_STEP == 0:
                advance(ENTRIES_A_STEP)
        advance(number % ENTRIES_A_STEP)


def _table(report: ImportReport) -> Table:
    table = Table("", "what became of it", "number", "first")
    for what, became in (("searches", report.sessions), ("events", report.events)):
        for disposition, number in sorted(became.items()):
            table.add_row(what, disposition.replace("_", " "), str(number))
    for reason, left in sorted(report.left_out.items()):
        table.add_row("left out", reason, str(left.number), left.first)
    return table


def _types(given: Iterable[str] | None) -> dict[str, str]:
    types = {}
    for each in given or ():
        theirs, equals, ours = each.rpartition("=")
        if not equals or not theirs or not ours:
            raise InvalidInputError(f"--event-type is {each!r}; write THEIRS=OURS, as in conversion=purchase")
        if type_of(ours) != ours:
            raise InvalidInputError(
                f"--event-type is {each!r}; a type of event has 1 to {MAX_TYPE_LENGTH} characters, none of "
                "them a space at an end"
            )
        types[theirs] = ours
    return types


def _time(name: str, given: str | None) -> int | None:
    if given is None:
        return None
    if (at := seconds_of(given)) is None:
        raise InvalidInputError(f"{name} is {given!r}; give a date such as 2011-09-29, or UTC seconds")
    return at
