"""Does it help? evaluate."""

import json
import shlex
import sys
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from embedding_studio.cli.console import check_writable, opened_context, out, shown_progress
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.errors import EmbeddingError


class Method(StrEnum):
    """What ``evaluate --method`` takes."""

    DEFAULT = "default"
    SHARED = "shared"
    TORCH = "torch"
    COPIES = "copies"
    REFERENCE = "reference"


class Baseline(StrEnum):
    """What ``evaluate --baseline`` takes."""

    PLAIN = "plain"
    DEFAULT = "default"
    SHARED = "shared"
    TORCH = "torch"
    COPIES = "copies"
    REFERENCE = "reference"


class Clicks(StrEnum):
    """What ``evaluate --clicks`` takes."""

    STANDARD = "standard"
    CAPPED = "capped"
    NOISY = "noisy"
    PERFECT = "perfect"


class Place(StrEnum):
    """Where ``evaluate`` keeps what it learns."""

    MEMORY = "memory"
    POSTGRES = "postgres"


def evaluate(
    folders: Annotated[list[Path], typer.Argument(help="Collection folders: items, queries, judgements.")],
    *,
    method: Annotated[
        list[Method] | None,
        typer.Option("--method", "--adjuster", help="What learns; may be repeated. Default: default."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All methods, side by side.")] = False,
    baseline: Annotated[Baseline, typer.Option(help="What methods are compared with.")] = Baseline.PLAIN,
    clicks: Annotated[
        list[Clicks] | None,
        typer.Option(help="How simulated users click; may be repeated. Default: standard."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Simulated users.")] = 200,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions of each user.")] = 10,
    others: Annotated[
        int, typer.Option(min=0, help="So many other users search for each user's wish beforehand.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal numbers.")] = 0,
    metric: Annotated[
        list[MetricType] | None,
        typer.Option(
            help="How vectors are compared; items get unequal norms where those count. May be repeated."
            " Default: cosine."
        ),
    ] = None,
    aggregation: Annotated[
        list[MetricAggregationType] | None,
        typer.Option(
            help="How parts of an item count: the nearest, or the mean. May be repeated. Default: min."
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(min=1, help="Split items at sentences into at most so many parts, and embed these."),
    ] = None,
    storage: Annotated[Place, typer.Option(help="Where to learn; the rankings are the same.")] = Place.MEMORY,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with learning curves here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write docs/does-it-help.md here.")] = None,
) -> None:
    """Measure whether learning helps, with simulated users on real judgements."""
    from embedding_studio import evaluation

    check_writable(json_file, html, markdown)
    metrics = metric or [MetricType.COSINE]
    chosen = list(Method) if compare else (method or [Method.DEFAULT])
    if compare and metrics != [MetricType.COSINE]:
        chosen.remove(Method.REFERENCE)  # is given for cosine alone
    with opened_context() as context:
        if context.embedder is None:
            raise EmbeddingError("EMBEDDER is none, and an evaluation embeds rewordings; name an embedder")
        evaluations = []
        for folder in folders:
            with shown_progress() as show:
                collection, simulated = evaluation.load_world(
                    folder,
                    embedder=context.embedder,
                    users=users,
                    sessions=sessions,
                    seed=seed,
                    parts=parts,
                    progress=show,
                )
            for compared_by, counted_by, click_model in product(
                metrics, aggregation or [MetricAggregationType.MIN], clicks or [Clicks.STANDARD]
            ):
                with shown_progress() as show:
                    measured = evaluation.compare(
                        collection.compared_by(compared_by, counted_by, seed=seed),
                        simulated,
                        evaluation.methods_by_name([each.value for each in chosen]),
                        clicks=click_model.value,
                        others=others,
                        seed=seed,
                        baseline=baseline.value,
                        open_storage=context.open_storage if storage is Place.POSTGRES else None,
                        progress=show,
                    )
                out.print(evaluation.table(measured))
                evaluations.append(measured)
    if json_file is not None:
        told = [each.to_json() for each in evaluations]
        json_file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if html is not None:
        html.write_text(evaluation.html_report(evaluations))
    if markdown is not None:
        command = shlex.join(["embedding-studio", *sys.argv[1:]])
        markdown.write_text(evaluation.markdown(evaluations, command))
