"""An evaluation for people: a table in the terminal, a page of Markdown, one HTML file with pictures."""

import html
import io
from collections.abc import Iterable, Sequence

from rich.table import Table

from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.errors import EmbeddingStudioError, counted
from embedding_studio.evaluation.collection_folder import NORM_SIGMA
from embedding_studio.evaluation.methods import DESCRIPTIONS, PLAIN
from embedding_studio.evaluation.run import Evaluation, MethodResult, SliceResult

HEADINGS = (
    "method",
    "sessions",
    "slice",
    "users",
    "plain",
    "nDCG@10",
    "difference",
    "95 % interval",
    "better",
    "worse",
    "identical",
    "kept",
)

SLICE_MEANINGS = {
    "same": "the query the user keeps asking",
    "para": "the same wish in words never issued",
    "near": "other queries close to it, never issued",
    "far": "queries that have nothing to do with anything the user asked",
    "unseen": "the same query, judged by what the user liked later and never clicked",
}


def table(evaluation: Evaluation) -> Table:
    """Return the whole evaluation as a table for the terminal."""
    drawn = Table(title=_title(evaluation), caption=_costs(evaluation), title_justify="left")
    for heading in HEADINGS:
        drawn.add_column(heading, justify="left" if heading in {"method", "slice"} else "right", no_wrap=True)
    for name, method in evaluation.methods.items():
        for sessions, slices in method.after.items():
            for number, (slice_name, found) in enumerate(slices.items()):
                drawn.add_row(*_row(name, sessions, slice_name, found), end_section=number == len(slices) - 1)
    return drawn


def markdown(evaluations: Sequence[Evaluation], command: str) -> str:
    """Return the page that says whether learning helps, with the command that makes it on top.

    Args:
        command: the command line under which this page was made.
    """
    lines = [
        "# Does it help?",
        "",
        "This page is the output of one command on real relevance judgements with simulated users:",
        "",
        "```console",
        f"$ {command}",
        "```",
        "",
        "Each user searches, is shown ten results, clicks some of them, and the product learns: the same",
        "search, the same learning and the same code as in service. Then each query is ranked again and",
        "compared with plain search. A cell is the mean difference in nDCG@10 with its 95 % bootstrap",
        "interval over users; in brackets the share of users better / worse by more than .01.",
        *(
            ["Where a heading names another baseline, differences are to that after as many sessions."]
            if any(each.baseline != PLAIN for each in evaluations)
            else []
        ),
        "",
        *(
            f"- **{name}**: {meaning}"
            for name, meaning in SLICE_MEANINGS.items()
            if _occurs(name, evaluations)
        ),
        "",
    ]
    for evaluation in evaluations:
        lines += _markdown_of(evaluation)
    return "\n".join(lines).rstrip() + "\n"


def html_report(evaluations: Sequence[Evaluation]) -> str:
    """Return one self-contained page: learning curves as pictures, and all numbers.

    Raises:
        EmbeddingStudioError: matplotlib is not installed.
    """
    sections = []
    for evaluation in evaluations:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in _rows(evaluation)
        )
        sections.append(
            f"<h2>{html.escape(_title(evaluation))}</h2>\n{_learning_curves(evaluation)}\n"
            f"<p>{html.escape(_costs(evaluation))}</p>\n<table><thead><tr>"
            + "".join(f"<th>{heading}</th>" for heading in HEADINGS)
            + f"</tr></thead><tbody>{rows}</tbody></table>"
        )
    meanings = "".join(
        f"<dt>{name}</dt><dd>{html.escape(meaning)}</dd>"
        for name, meaning in SLICE_MEANINGS.items()
        if _occurs(name, evaluations)
    )
    return _PAGE.format(meanings=meanings, sections="\n".join(sections))


def _markdown_of(evaluation: Evaluation) -> list[str]:
    lines = [f"## {_title(evaluation)}", ""]
    slices = list(_first(evaluation).after[evaluation.sessions])
    lines.append("| method | sessions | " + " | ".join(slices) + " | ms per session |")
    lines.append("|---|---|" + "---|" * (len(slices) + 1))
    plain = _first(evaluation).after[evaluation.sessions]
    lines.append(
        "| plain search (nDCG@10) | | " + " | ".join(_fraction(plain[name].plain) for name in slices) + " | |"
    )
    for name, method in evaluation.methods.items():
        for sessions, found in method.after.items():
            cells = " | ".join(_cell(found[slice_name]) for slice_name in slices)
            cost = f"{method.milliseconds_per_session:.1f}" if sessions == evaluation.sessions else ""
            lines.append(f"| {name} | {sessions} | {cells} | {cost} |")
    lines += [
        "",
        *(f"- {name}: {DESCRIPTIONS[name]}" for name in evaluation.methods if name in DESCRIPTIONS),
        "",
    ]
    return lines


def _cell(found: SliceResult) -> str:
    difference = found.difference
    if found.identical == 1.0:
        return "0, identical lists"
    return (
        f"{signed(difference.mean)} [{signed(difference.low)}, {signed(difference.high)}] "
        f"({difference.better:.0%} / {difference.worse:.0%})"
    )


def _rows(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    for name, method in evaluation.methods.items():
        for sessions, slices in method.after.items():
            for slice_name, found in slices.items():
                yield _row(name, sessions, slice_name, found)


def _row(name: str, sessions: int, slice_name: str, found: SliceResult) -> tuple[str, ...]:
    difference = found.difference
    return (
        name,
        str(sessions),
        slice_name,
        str(found.users),
        _fraction(found.plain),
        _fraction(found.ndcg),
        signed(difference.mean),
        f"{signed(difference.low)} .. {signed(difference.high)}",
        f"{difference.better:.0%}",
        f"{difference.worse:.0%}",
        f"{found.identical:.0%}",
        f"{found.kept:.1f}",
    )


def _title(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.collection}: {evaluation.items} items, "
        f"{counted(evaluation.users, 'user')} with "
        f"{counted(evaluation.sessions, 'session')}, "
        f"{evaluation.clicks} clicks, seed {evaluation.seed}"
        f"{_comparison(evaluation)}"
    )


def _comparison(evaluation: Evaluation) -> str:
    """Return what is unusual: others beforehand, and what is not cosine, single vectors, and plain search."""
    told = ""
    if evaluation.others:
        told += f", {counted(evaluation.others, 'other')} beforehand"
    if evaluation.metric is not MetricType.COSINE:
        told += f", {evaluation.metric} (norms of items log-normal, sigma {NORM_SIGMA})"
    if evaluation.parts > 1:
        told += f", up to {evaluation.parts} parts an item"
    if evaluation.aggregation is not MetricAggregationType.MIN:
        told += f", {evaluation.aggregation} over parts"
    if evaluation.baseline != PLAIN:
        told += f", compared with {evaluation.baseline}"
    return told


def _costs(evaluation: Evaluation) -> str:
    costs = ", ".join(
        f"{name} {method.milliseconds_per_session:.1f} ms" for name, method in evaluation.methods.items()
    )
    return f"learning one session: {costs}"


def _occurs(slice_name: str, evaluations: Sequence[Evaluation]) -> bool:
    return any(slice_name in _first(each).after[each.sessions] for each in evaluations)


def _first(evaluation: Evaluation) -> MethodResult:
    return next(iter(evaluation.methods.values()))


def signed(number: float) -> str:
    """Return a difference with three decimals and its sign, as in +.051; 0 without one.

    >>> signed(0.0512), signed(-0.1), signed(0.0), signed(-0.00001)
    ('+.051', '-.100', '.000', '.000')
    """
    rounded = round(number, 3)
    if rounded == 0:
        return ".000"
    return f"{rounded:+.3f}".replace("0.", ".", 1)


def _fraction(number: float) -> str:
    return f"{number:.3f}"


def _learning_curves(evaluation: Evaluation) -> str:
    """Return an SVG element: a panel a slice, the difference to the baseline over sessions."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EmbeddingStudioError(
            "the HTML report needs the extra 'evaluate'; pip install 'embedding-studio[evaluate]'"
        ) from error

    slices = list(_first(evaluation).after[evaluation.sessions])
    with rc_context({"svg.hashsalt": evaluation.collection, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(3.0 * len(slices), 3.0), layout="constrained")
        panels = figure.subplots(1, len(slices), sharey=True, squeeze=False)[0]
        for panel, slice_name in zip(panels, slices, strict=True):
            panel.axhline(0, color="0.6", linewidth=1)
            for name, method in evaluation.methods.items():
                # Who has not searched yet finds what plain search does, unless others searched beforehand.
                curve = {0: (0.0, 0.0, 0.0)}
                for sessions, of_slices in method.after.items():
                    found = of_slices[slice_name].difference
                    curve[sessions] = (found.mean, found.low, found.high)
                means, lows, highs = zip(*curve.values(), strict=True)
                panel.plot(list(curve), means, marker="o", markersize=3, label=name)
                panel.fill_between(list(curve), lows, highs, alpha=0.15)
            panel.set_title(slice_name)
            panel.set_xlabel("sessions")
        baseline = "plain search" if evaluation.baseline == PLAIN else evaluation.baseline
        panels[0].set_ylabel(f"nDCG@10 minus {baseline}")
        panels[0].legend()
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Embedding Studio: evaluation</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:nth-child(1), td:nth-child(1), th:nth-child(3), td:nth-child(3) {{ text-align: left; }}
dt {{ font-weight: 600; float: left; clear: left; width: 5rem; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Does learning from clicks help?</h1>
<p>Simulated users search, are shown ten results, click, and the product learns. Every query is then ranked
again and compared with plain search, or with the method that a heading names, in nDCG@10 (gain is the grade,
as in trec_eval). Bands and intervals: 95 % bootstrap over users. Better and worse: share of users by more
than .01. Identical: share of result lists that are the same, object by object and distance by distance.</p>
<dl>{meanings}</dl>
{sections}
</body>
</html>
"""
