"""What would a log have been with other settings? replay."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from embedding_studio.cli.console import (
    InCollection,
    check_writable,
    opened_context,
    out,
    quiet,
    shown_progress,
    tell,
)
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import InvalidDataError, InvalidInputError
from embedding_studio.evaluation.replay import replay as replay_log
from embedding_studio.evaluation.replay_report import beside, replay_html, replay_markdown, replay_table
from embedding_studio.evaluation.session_log import given_time
from embedding_studio.replaying import Replayed, World
from embedding_studio.settings import Settings, load_settings


def replay(
    log: Annotated[
        str | None,
        typer.Argument(
            help="NDJSON, gzipped or not, a session a line; - is the standard input."
            " Default: what was recorded for the collection.",
        ),
    ] = None,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    method: Annotated[
        list[Replayed] | None,
        typer.Option(
            help="May be repeated: plain; default: the settings in force without sharing; shared: with it;"
            " counts: what was clicked most for the same query, then plain. Default: all."
        ),
    ] = None,
    with_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="A method of other settings: NAME=VALUE, several with spaces. May be repeated."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Searches from this time on: a date, or as the log has it.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Searches before this time.")] = None,
    measure_from: Annotated[
        str | None, typer.Option(help="What was searched before is learnt, and not measured.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="So many methods at once. Default: as many as there are processors."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a page here, such as docs/on-a-real-log.md.")
    ] = None,
    about: Annotated[
        Path | None, typer.Option(help="A text for these pages that says what log this is.")
    ] = None,
) -> None:
    """Rank the searches of a log, each at its own time by each method, and compare with plain search."""
    check_writable(json_file, html, markdown)
    # Quiet, for it would tell of replayed days, not of today.
    with opened_context() as context, quiet("embedding_studio.tuning"), shown_progress() as show:
        first, last = given_time("--from", since), given_time("--until", until)
        told = _read(about) if about else ""
        measured_from = given_time("--measure-from", measure_from)
        wanted = method or ([] if with_settings else list(Replayed))
        changed = {given: _changed_settings(given) for given in with_settings or ()}
        known = context.storage.collections.get(collection)
        world = World(context, known)
        chosen = world.log(log).between(first, last)
        methods = world.methods(wanted) | {name: world.served(settings) for name, settings in changed.items()}
        found = replay_log(
            chosen,
            methods,
            plain=world.plain(),
            index=known.index,
            gate_threshold=world.gate_threshold,
            query_vectors=world.embedded(chosen, show),
            measure_from=measured_from,
            seed=seed,
            processes=processes or os.cpu_count() or 1,
            progress=show,
        )
    out.print(replay_table(found, known.name))
    for each in beside(found):
        kind, _, rest = each.partition(": ")
        tell(kind, rest, style="bold yellow" if kind == "warning" else "")
    command = shlex.join(["embedding-studio", *sys.argv[1:]])
    if html is not None:
        html.write_text(replay_html(found, known.name, command, told))
    if markdown is not None:
        markdown.write_text(replay_markdown(found, known.name, command, told))
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")


def _read(about: Path) -> str:
    try:
        return about.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataError(f"--about is {about}, which cannot be read: {error}") from error


def _changed_settings(given: str) -> Settings:
    """Return the settings in force with those of ``--with`` in their place."""
    changed: dict[str, object] = {}
    for each in given.split():
        name, equals, value = each.partition("=")
        if not equals or name.lower() not in Settings.model_fields:
            raise InvalidInputError(
                f"--with is {given!r}, where {each!r} names no setting; write NAME=VALUE as "
                "`embedding-studio settings` lists them"
            )
        try:
            changed[name.lower()] = json.loads(value) if value.startswith("{") else value
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(
                f"--with: {name} is not JSON: {error}; a space ends a setting, so write JSON without any"
            ) from error
    return load_settings(**changed)
