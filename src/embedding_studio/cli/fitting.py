"""How well a collection is searched: tune, recall."""

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from embedding_studio import tuning
from embedding_studio.cli.console import (
    AsJson,
    CollectionArgument,
    check_writable,
    err,
    opened_context,
    out,
    print_value,
    quiet,
    shown_progress,
    tell,
)
from embedding_studio.domain import DEFAULT_COLLECTION
from embedding_studio.domain.objects import OwnPast
from embedding_studio.errors import InvalidInputError, counted
from embedding_studio.evaluation.judging import interval
from embedding_studio.evaluation.replay import FEWEST_SEARCHES
from embedding_studio.evaluation.report import signed
from embedding_studio.evaluation.session_log import given_time
from embedding_studio.recall import QUERIES, RESULTS, measure_recall
from embedding_studio.settings_file import read_lines, write_settings
from embedding_studio.tuning import TunedPast, reset_gate, reset_own_past

if TYPE_CHECKING:
    from embedding_studio.tuned_settings import TunedSettings

BEST_SHOWN = 5


def tune(
    collection: CollectionArgument = DEFAULT_COLLECTION,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Go back to GATE_THRESHOLD, and let all of a user's past count.")
    ] = False,
    settings: Annotated[
        bool,
        typer.Option(
            "--settings", help="Look for settings that serve the log better, and judge them: minutes."
        ),
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(help="With --settings: a log as `replay` reads it. Default: the collection's own."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="With --settings: so many are tried. Default: 24.")
    ] = None,
    judge_from: Annotated[
        str | None,
        typer.Option(help="With --settings: judge on searches from this time on. Default: the last third."),
    ] = None,
    max_worse: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --settings: recommend none with which a larger share of users fares worse than with"
            " plain search. Default: 0.1.",
        ),
    ] = None,
    share: Annotated[
        int | None,
        typer.Option(
            min=2, help="With --settings: also try SHARED_MIN_USERS=N, which is else left as it is."
        ),
    ] = None,
    searches: Annotated[
        int | None,
        typer.Option(min=FEWEST_SEARCHES, help="With --settings: rank so many in a trial. Default: 2000."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --settings: an equal one, an equal answer. Default: 0.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --settings: so many trials at once. Default: the number of processors."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="With --settings: write what is recommended into this file, such as .env."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a collection to its log: the gate and a user's own past, or (--settings) the settings."""
    options = {
        "log": log,
        "trials": trials,
        "judge_from": judge_from,
        "max_worse": max_worse,
        "share": share,
        "searches": searches,
        "seed": seed,
        "processes": processes,
        "write": write,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if settings:
        _tune_settings(collection, given, dry_run=dry_run, reset=reset, as_json=as_json)
        return
    with opened_context() as context:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InvalidInputError(f"{names} is for tuning settings: give --settings too")
        setting = f"{context.settings.gate_threshold} (GATE_THRESHOLD)"
        if reset:
            tuned = reset_gate(context.storage, collection, dry_run=dry_run)
            past = reset_own_past(context.storage, collection, dry_run=dry_run)
        else:
            tuned, past = tuning.tune(context.storage, collection, dry_run=dry_run)
    if as_json:
        print_value(tuning.as_json(tuned, past), as_json=True)
        return
    told = asdict(tuned)
    print_value(told | {name: setting for name in ("before", "after") if told[name] is None}, as_json=False)
    out.print(_own_past_table(past))


def _tune_settings(
    collection: str, given: dict[str, Any], *, dry_run: bool, reset: bool, as_json: bool
) -> None:
    from embedding_studio.tuned_settings import tune_settings

    write = given.pop("write", None)
    check_writable(write)
    # Quiet, for it would tell of replayed days, not of today.
    with opened_context() as context, quiet("embedding_studio.tuning"), shown_progress() as show:
        if reset:
            raise InvalidInputError(
                "--reset takes back what a collection has stored; settings are in your environment or .env"
            )
        if write is not None:
            read_lines(write)
        if "judge_from" in given:
            given["judge_from"] = given_time("--judge-from", given["judge_from"])
        given.setdefault("processes", os.cpu_count() or 1)
        tuned = tune_settings(context, collection, progress=show, **given)
        is_written = write is not None and bool(tuned.changes) and not dry_run
        if is_written:
            write_settings(write, tuned.changes)
    if as_json:
        print_value(tuned.to_json(), as_json=True)
        return
    out.print(_trials_table(tuned))
    out.print(_judged_table(tuned))
    for each in tuned.notes:
        tell("note", each, style="")
    if write is not None:
        tell("note", _of_file(write, tuned, is_written=is_written), style="")
    out.print(tuned.told, soft_wrap=True)


def _of_file(file: Path, tuned: "TunedSettings", *, is_written: bool) -> str:
    if is_written:
        return (
            f"{file} has them now: a process reads .env of its working folder when it starts, and variables "
            "of the environment outweigh it. `embedding-studio improve --everyone` then re-learns all users"
        )
    return f"{file} is as it was" + ("" if tuned.changes else ", since nothing is recommended")


def _trials_table(tuned: "TunedSettings") -> Table:
    """Return the best of what was tried on the earlier part."""
    searches, users = tuned.tuned_on
    table = Table(
        "settings",
        "RR to plain",
        "users worse",
        title=f"Tried on {counted(searches, 'earlier search', 'earlier searches')} of "
        f"{counted(users, 'user')}",
        title_justify="left",
    )
    best, in_force = tuned.trials[:BEST_SHOWN], [each for each in tuned.trials if not each.settings]
    for each in [*best, *(each for each in in_force if each not in best)]:
        changed = " ".join(f"{name.upper()}={value}" for name, value in each.settings.items())
        table.add_row(changed or "(in force)", signed(each.difference), f"{each.users_worse:.1%}")
    return table


def _judged_table(tuned: "TunedSettings") -> Table:
    """Return what came out on the later part; a row for each slice and comparison."""
    changes = [
        f"{name.upper()} {value} -> {tuned.after[name]}"
        for name, value in tuned.before.items()
        if value != tuned.after[name]
    ]
    table = Table(
        "searches",
        "number",
        "users",
        "compared",
        "RR",
        "first",
        "better",
        "worse",
        title=f"Judged from {_time(tuned.judge_from)} on: {', '.join(changes) or 'the settings in force'}",
        title_justify="left",
    )
    for name, judged in tuned.judged.items():
        pairs = {
            "found to in force": judged.found_to_in_force,
            "found to plain": judged.found_to_plain,
            "in force to plain": judged.in_force_to_plain,
        }
        cells = (name, str(judged.searches), str(judged.users))
        for pair, found in pairs.items():
            if found is not None:
                table.add_row(
                    *cells,
                    pair,
                    interval(found.difference),
                    signed(found.first.mean),
                    f"{found.users_better:.1%}",
                    f"{found.users_worse:.1%}",
                )
                cells = ("", "", "")
    return table


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _own_past_table(tuned: TunedPast) -> Table:
    """Return how much a user's own past counts, and why."""
    table = Table("own past", "before", "after", "searches", "clicked the same again")
    for kind, searches in tuned.returns.searches.items():
        counts = (getattr(past or OwnPast(), kind) for past in (tuned.before, tuned.after))
        table.add_row(
            kind.replace("_", " "),
            *(f"{weight:.2f}" for weight in counts),
            f"{searches:.0f}",
            f"{tuned.returns.again[kind] / searches:.0%}" if searches else "",
        )
    return table


def recall(
    collection: CollectionArgument = DEFAULT_COLLECTION,
    *,
    queries: Annotated[int, typer.Option(min=1, help="Compare so many of its latest queries.")] = QUERIES,
    k: Annotated[int, typer.Option("--k", min=1, help="Results looked at.")] = RESULTS,
    target: Annotated[
        float | None,
        typer.Option(help="Share of the nearest that is to be found. Default: RECALL_TARGET."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure whether the nearest are found, and let searches be as cautious as that needs."""
    with opened_context() as context:
        setting = context.settings.recall_target
        if setting == 1 and target not in (None, 1):
            raise InvalidInputError(
                f"RECALL_TARGET is 1, so all are compared, and there is nothing to measure for {target}; "
                "set it to less"
            )
        measured = measure_recall(
            context.storage,
            collection,
            queries=queries,
            k=k,
            target=setting if target is None else target,
            dry_run=dry_run,
        )
    if as_json:
        print_value(measured, as_json=True)
        return
    table = Table("margin", f"recall@{k}", "95 % interval", "first is right", "p50 ms", "p95 ms", "")
    for each in measured.compared:
        notes = {
            "before": each.margin is not None and each.margin == measured.before,
            "chosen" if dry_run else "from now on": each.margin is not None and each.margin == measured.after,
        }
        table.add_row(
            "all" if each.margin is None else f"{each.margin:.3g}",
            f"{each.recall:.4f}",
            f"{each.low:.4f} to {each.high:.4f}",
            f"{each.right_first:.1%}",
            f"{each.p50_ms:.1f}",
            f"{each.p95_ms:.1f}",
            ", ".join(note for note, is_true in notes.items() if is_true),
        )
    if measured.compared:
        out.print(table)
        made = measured.queries - measured.recorded
        err.print(
            counted(measured.recorded, "recorded query", "recorded queries")
            + (f", and {counted(made, 'object')} slightly changed." if made else ".")
        )
    out.print(measured.told[:1].upper() + measured.told[1:] + ".", soft_wrap=True)
