"""How well a collection is searched: tune, recall."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from embedding_studio import tuning
from embedding_studio.cli.console import (
    AsJson,
    CollectionArgument,
    err,
    opened_context,
    out,
    print_value,
)
from embedding_studio.domain import DEFAULT_COLLECTION
from embedding_studio.domain.objects import OwnPast
from embedding_studio.errors import InvalidInputError
from embedding_studio.recall import QUERIES, RESULTS, measure_recall
from embedding_studio.tuning import TunedPast, reset_gate, reset_own_past


def tune(
    collection: CollectionArgument = DEFAULT_COLLECTION,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Go back to GATE_THRESHOLD, and let all of a user's past count.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a collection to its log: the gate to queries, a user's own past to what people come back for."""
    with opened_context() as context:
        setting = f"{context.settings.gate_threshold} (GATE_THRESHOLD)"
        if reset:
            tuned = reset_gate(context.storage, collection, dry_run=dry_run)
            past = reset_own_past(context.storage, collection, dry_run=dry_run)
        else:
            threshold = context.settings.gate_threshold
            tuned, past = tuning.tune(context.storage, collection, gate_threshold=threshold, dry_run=dry_run)
    if as_json:
        print_value(tuning.as_json(tuned, past), as_json=True)
        return
    told = asdict(tuned)
    print_value(told | {name: setting for name in ("before", "after") if told[name] is None}, as_json=False)
    out.print(_own_past_table(past))


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
            f"{measured.recorded} recorded queries"
            + (f", and {made} objects slightly changed." if made else ".")
        )
    out.print(measured.told[:1].upper() + measured.told[1:] + ".", soft_wrap=True)
