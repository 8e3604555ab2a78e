"""A replay for people: a table in the terminal, a page of Markdown, one HTML file with a picture."""

import html
from collections.abc import Iterable, Sequence

from rich.table import Table

from embedding_studio.errors import counted
from embedding_studio.evaluation.replay import METRICS, Replay, ReplayedSlice
from embedding_studio.evaluation.replay_steps import SHOWN
from embedding_studio.evaluation.report import signed

SIZES = ("slice", "searches", "users")
HEADINGS = (*SIZES, "method", "RR", "difference", *METRICS[1:], "better", "worse", "kept")
WORDS = {"slice", "method"}
"""Headings of columns that hold no numbers."""

METHOD_MEANINGS = {
    "plain": "search that learns nothing",
    "default": "the product with the settings in force, where each user's clicks bear on their own searches",
    "shared": "the same, and what several others clicked for near queries bears on everybody's",
    "counts": "what anyone clicked most for exactly the same query, then plain search; it protects no user",
}
HOW = (
    "Each search is ranked again at its own time, from what had been clicked before its second began, by the "
    "code that serves; then its clicks are learnt. What was clicked is taken to be what was wanted. RR is "
    "its mean reciprocal rank: 1 where it stands first, 1/2 where it stands second. nDCG@10, hit@1 and hit@5 "
    "say how high it stands among the first ten, whether it stands first, and whether it is among the first "
    "five. Differences are to plain search, mean over searches; in brackets the 95 % bootstrap interval over "
    "users. Better and worse: share of users whose mean reciprocal rank differs by more than .01. Kept: so "
    f"many of plain search's first {SHOWN} are among the method's first {SHOWN}. * too few to tell."
)

ROW, GROUP, NAME, LETTER, PLOT, RIGHT = 18, 10, 90, 7, 560, 100
"""Of the picture, in pixels: a method's height, the space between slices, and the widths of a slice's name,
of a letter of a method's, of the intervals, and of what stands right of them."""
COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#17768a")


def replay_table(replay: Replay, collection: str) -> Table:
    """Return how each method did in each slice; differences are to plain search."""
    drawn = Table(
        title=_title(replay, collection),
        caption="Differences are to plain search, mean over searches; in brackets 95 % over users. Better "
        "and worse: users whose mean reciprocal rank differs by more than .01. Kept: of plain search's first "
        f"{SHOWN}. * too few to tell",
        title_justify="left",
    )
    for heading in HEADINGS:
        drawn.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    for rows in _rows(replay):
        for number, row in enumerate(rows, start=1):
            drawn.add_row(*row, end_section=number == len(rows))
    return drawn


def replay_markdown(replay: Replay, collection: str, command: str, about: str) -> str:
    """Return a page that says what came out, with the command that makes it on top.

    Args:
        about: what log this is, in Markdown; may be empty.
    """
    lines = [
        "# On a real log",
        "",
        "This page is the output of one command on a log of searches and clicks:",
        "",
        "```console",
        f"$ {command}",
        "```",
        "",
        *([about.strip(), ""] if about.strip() else []),
        HOW,
        "",
        f"## {_title(replay, collection)}",
        "",
        *(f"- {each}" for each in _findings(replay)),
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "".join("---|" if heading in WORDS else "---:|" for heading in HEADINGS),
        *("| " + " | ".join(map(_cell, row)) + " |" for rows in _rows(replay) for row in rows),
        "",
        "Methods:",
        "",
        *(f"- **{name}**: {meaning}" for name, meaning in _methods(replay)),
        "",
        "Slices:",
        "",
        *(f"- **{name}**: {size.meaning}" for name, size in replay.slices.items()),
        "",
        "What stands beside the figures:",
        "",
        *(f"- {_cell(each)}" for each in beside(replay)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def replay_html(replay: Replay, collection: str, command: str, about: str) -> str:
    """Return one page that needs nothing else: the differences as a picture, and all numbers."""
    title = _title(replay, collection)
    rows = "".join(
        f"<tr{' class=first' if number == 0 else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for rows in _rows(replay)
        for number, row in enumerate(rows)
    )
    return _PAGE.format(
        title=html.escape(title),
        about="".join(f"<p>{html.escape(each)}</p>" for each in about.strip().split("\n\n") if each),
        findings=_items(_findings(replay)),
        picture=_picture(replay),
        headings="".join(f"<th>{heading}</th>" for heading in HEADINGS),
        rows=rows,
        methods=_meanings(_methods(replay)),
        slices=_meanings((name, size.meaning) for name, size in replay.slices.items()),
        beside=_items(beside(replay)),
        how=html.escape(HOW),
        command=html.escape(command),
    )


def beside(replay: Replay) -> list[str]:
    """Return what a reader of the figures must know: warnings, notes, and what was left out."""
    return [
        *(f"warning: {warning}" for warning in replay.warnings),
        *(f"note: {note}" for note in replay.notes),
        *(f"left out: {number} x {reason}" for reason, number in replay.left_out.items()),
    ]


def _title(replay: Replay, collection: str) -> str:
    whole = replay.slices["all"]
    searches = counted(whole.searches, "search", "searches")
    return f"{collection}: {searches} of {counted(whole.users, 'user')}"


def _rows(replay: Replay) -> list[list[tuple[str, ...]]]:
    """Return slice by slice a row for each method, whose first names the slice."""
    return [
        [
            (
                *(sizes if number == 0 else ("",) * len(SIZES)),
                method,
                *_numbers(slices[name]),
            )
            for number, (method, slices) in enumerate(replay.methods.items())
        ]
        for name, size in replay.slices.items()
        for sizes in [(_starred(replay, name), str(size.searches), str(size.users))]
    ]


def _starred(replay: Replay, name: str) -> str:
    return f"{name} *" if replay.slices[name].is_too_small else name


def _numbers(found: ReplayedSlice) -> tuple[str, ...]:
    rank = found.metrics[METRICS[0]]
    return (
        f"{rank.mean:.3f}",
        f"{signed(rank.difference.mean)} [{signed(rank.difference.low)}, {signed(rank.difference.high)}]",
        *(signed(found.metrics[metric].difference.mean) for metric in METRICS[1:]),
        f"{found.users_better:.1%}",
        f"{found.users_worse:.1%}",
        f"{found.places_kept:.1f}",
    )


def _findings(replay: Replay) -> list[str]:
    """Return a sentence on each method, over all searches."""
    told = []
    for name, slices in replay.methods.items():
        found = slices["all"]
        rank, first = found.metrics["reciprocal_rank"], found.metrics["hit@1"]
        if name == "plain":
            told.append(f"plain: what was clicked stands first in {first.mean:.1%} of the searches.")
            continue
        difference = rank.difference
        way = "higher" if difference.low > 0 else "lower" if difference.high < 0 else None
        judged = f"what was clicked stands {way}" if way else "no difference that can be told from chance"
        told.append(
            f"{name}: {judged}: {signed(difference.mean)} [{signed(difference.low)}, "
            f"{signed(difference.high)}] in reciprocal rank. It stands first in {first.mean:.1%} of the "
            f"searches instead of {first.mean - first.difference.mean:.1%}. {found.users_better:.1%} of the "
            f"users fare better, {found.users_worse:.1%} worse. {found.places_kept:.1f} of plain search's "
            f"first {SHOWN} are kept."
        )
    return told


def _methods(replay: Replay) -> list[tuple[str, str]]:
    settings = "the product with these settings in place of those in force"
    return [(name, METHOD_MEANINGS.get(name, settings)) for name in replay.methods]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{html.escape(each)}</li>" for each in texts)


def _meanings(named: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning)}</dd>" for name, meaning in named)


def _picture(replay: Replay) -> str:
    """Return an SVG element: slice by slice each method's difference in reciprocal rank, and its interval."""
    methods = [name for name in replay.methods if name != "plain"] or list(replay.methods)
    differences = {
        (slice_name, method): replay.methods[method][slice_name].metrics[METRICS[0]].difference
        for slice_name in replay.slices
        for method in methods
    }
    left = NAME + LETTER * max(map(len, methods)) + 2 * GROUP
    least = min(0.0, *(each.low for each in differences.values()))
    most = max(0.0, *(each.high for each in differences.values()))
    width = (most - least) or 1.0

    def x(value: float) -> float:
        return left + PLOT * (value - least) / width

    shapes = []
    y = GROUP
    for slice_name in replay.slices:
        shapes.append(_text(0, y + ROW / 2, _starred(replay, slice_name), weight="600"))
        for method, colour in zip(methods, _colours(len(methods)), strict=True):
            found, middle = differences[slice_name, method], y + ROW / 2
            shapes += [
                _text(NAME, middle, method, colour=colour),
                f'<path d="M{x(found.low):.1f} {middle}H{x(found.high):.1f}" stroke="{colour}"/>',
                f'<circle cx="{x(found.mean):.1f}" cy="{middle}" r="4" fill="{colour}"/>',
                _text(left + PLOT + 2 * GROUP, middle, signed(found.mean)),
            ]
            y += ROW
        y += GROUP
    zero = f'<path d="M{x(0):.1f} 0V{y}" stroke="#999" stroke-width="1" stroke-dasharray="3 3"/>'
    axis = _text(x(0), y + ROW / 2, "0 = plain search", anchor="middle")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="differences in reciprocal rank" '
        f'viewBox="0 0 {left + PLOT + RIGHT} {y + ROW + GROUP}" font-size="12" stroke-width="2">'
        f"{zero}{''.join(shapes)}{axis}</svg>"
    )


def _colours(number: int) -> Sequence[str]:
    return [COLOURS[each % len(COLOURS)] for each in range(number)]


def _text(
    x: float, y: float, text: str, *, colour: str = "#222", anchor: str = "start", weight: str = "400"
) -> str:
    return (
        f'<text stroke="none" x="{x:.1f}" y="{y}" dominant-baseline="middle" fill="{colour}" '
        f'text-anchor="{anchor}" font-weight="{weight}">{html.escape(text)}</text>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Embedding Studio: replay of {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .7rem; text-align: right; }}
tr.first td {{ border-top: 1px solid #ddd; }}
th:nth-child(1), td:nth-child(1), th:nth-child(4), td:nth-child(4) {{ text-align: left; }}
dt {{ font-weight: 600; float: left; clear: left; min-width: 6rem; margin-right: 1rem; }}
svg {{ max-width: 100%; height: auto; }}
pre {{ white-space: pre-wrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
{about}
<ul>{findings}</ul>
<h2>Differences to plain search in reciprocal rank, with 95 % intervals</h2>
{picture}
<h2>All figures</h2>
<table><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>
<p>{how}</p>
<h2>Methods</h2>
<dl>{methods}</dl>
<h2>Slices</h2>
<dl>{slices}</dl>
<h2>What stands beside the figures</h2>
<ul>{beside}</ul>
<h2>How this page was made</h2>
<pre>$ {command}</pre>
</body>
</html>
"""
