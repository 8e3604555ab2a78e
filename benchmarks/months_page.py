"""What ``benchmarks/months.py`` measured, for people: a page of Markdown and a picture."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedding_studio.evaluation.report import signed

TEXT = Path(__file__).with_name("months.md")
"""The page without its figures."""
LINES: Mapping[str, str] = {
    "counts": "#d95f02",
    "own": "#7570b3",
    "shared, 7 days": "#1f77b4",
    "shared, for ever": "#2ca02c",
    "shared, 7 days, explored .1": "#e7298a",
}
"""Methods that are drawn, in colours that are seen on white and on black."""
PANELS: Mapping[str, str] = {
    "all": "nDCG@10, less plain search's",
    "later": "by objects that came later",
    "gini": "how unequal looks are (Gini)",
}
WIDTH, HEIGHT, MARGIN, GAP, LINE = 250, 150, 46, 62, 18
"""Of a panel, what stands around it, and a line of the legend, in pixels."""

QUALITY = ("all", "steady", "changed", "newcomer", "drift 1", "drift 2", "drift 3+")
LATER = ("later", "newest")
SHARED = "shared, 7 days"
"""As it was served when this was measured."""


def markdown(
    report: Mapping[str, Any], measures: Mapping[str, str], command: str, picture: Path | None, page: Path
) -> str:
    """Return the page; ``page`` is where it will stand."""
    figures = []
    if picture is not None:
        where = os.path.relpath(picture, page.parent)
        figures += [f"![Quality, later objects and concentration, month by month]({where})", ""]
    figures += [f"- **{each}**: {measures[each]}" for each in (*QUALITY, *LATER)]
    for name, found in report["folders"].items():
        figures += ["", *_folder(name, found)]
    plan = {name: f"{value:g}" for name, value in report["plan"].items()}
    text = TEXT.read_text(encoding="utf-8")
    return text.format(command=command, clicks=report["clicks"], figures="\n".join(figures).strip(), **plan)


def _folder(name: str, found: Mapping[str, Any]) -> list[str]:
    methods: Mapping[str, Any] = found["methods"]
    plain = methods["plain"]["measures"]
    seeds = ", ".join(map(str, found["seeds"]))
    lines = [
        f"## {name}",
        "",
        (
            f"{found['items']:,} objects, the half years of the seeds {seeds}: {found['searches']:,} "
            f"searches of {found['users']:,} users."
        ),
        "",
    ]
    lines += _table(
        ("difference to plain search", *QUALITY),
        [
            ("searches", *(f"{plain[each]['to plain'].get('searches', 0):,}" for each in QUALITY)),
            ("plain search's nDCG@10", *(f"{plain[each]['mean']:.3f}" for each in QUALITY)),
            *(
                (method, *(_cell(told["measures"][each]["to plain"]) for each in QUALITY))
                for method, told in methods.items()
                if method != "plain"
            ),
        ],
    )
    lines += _table(
        (
            *("difference to plain search", *LATER, "shown at the 1st / by the 3rd / 10th search", "Gini"),
            *("cost of exploring", "gained by it", "seed by seed"),
        ),
        [(method, *_told_of_later(method, told)) for method, told in methods.items()],
    )
    if SHARED in methods:
        measures = (*QUALITY[:3], *LATER)
        lines += _table(
            (f"difference to *{SHARED}*", *measures),
            [
                (method, *(_cell(told["measures"][each][f"to {SHARED}"]) for each in measures))
                for method, told in methods.items()
                if method.startswith("shared") and method != SHARED
            ],
        )
    return lines


def _told_of_later(method: str, told: Mapping[str, Any]) -> list[str]:
    """Return the cells of one method on later objects, on concentration, and on exploration."""
    total = told["to be found"]
    base = SHARED if method.startswith("shared") else "own" if method.startswith("own") else "counts"
    gained = told["measures"]["unexplored"].get(f"to {base}")
    explores = "explored" in method
    return [
        *(_cell(told["measures"][each]["to plain"]) for each in LATER),
        " / ".join(f"{number / total:.0%}" for number in told["found"].values()) if total else "none came",
        f"{told['by month']['gini'][-1]:.3f}",
        _cell(told["cost"]) if explores else "",
        _cell(gained) if explores and gained else "",
        " ".join(f"{mean:.3f}" for mean in told["worlds"]),
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _cell(found: Mapping[str, float]) -> str:
    if not found.get("searches"):
        return "none"
    return f"{signed(found['mean'])} [{signed(found['low'])}, {signed(found['high'])}]"


def picture(report: Mapping[str, Any]) -> str:
    """Return an SVG: a row of panels for each folder, a curve for each method of ``LINES``."""
    drawn = [name for name in LINES if any(name in each["methods"] for each in report["folders"].values())]
    shapes = []
    for row, (name, found) in enumerate(report["folders"].items()):
        y = GAP + row * (HEIGHT + GAP)
        for column, (key, title) in enumerate(PANELS.items()):
            x = MARGIN + column * (WIDTH + MARGIN)
            methods = ["plain", *drawn] if key == "gini" else drawn
            curves = {
                each: found["methods"][each]["by month"][key] for each in methods if each in found["methods"]
            }
            shapes += _panel(x, y, f"{name}: {title}" if column == 0 else title, curves)
    top = GAP + len(report["folders"]) * (HEIGHT + GAP) - GAP // 3
    for number, name in enumerate([*drawn, "plain"]):
        x = MARGIN + (number % 3) * (WIDTH + MARGIN)
        y = top + (number // 3) * LINE
        shapes.append(f'<path d="M{x} {y}h24" stroke="{LINES.get(name, GREY)}"/>')
        shapes.append(_text(x + 30, y, "plain search" if name == "plain" else name))
    width = MARGIN + len(PANELS) * (WIDTH + MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="month by month" '
        f'viewBox="0 0 {width} {top + 2 * LINE}" font-family="system-ui, sans-serif" font-size="11" '
        f'fill="none" stroke-width="2">{"".join(shapes)}</svg>\n'
    )


GREY = "#808080"


def _panel(left: int, top: int, title: str, curves: Mapping[str, Sequence[float | None]]) -> list[str]:
    values = [value for curve in curves.values() for value in curve if value is not None]
    is_difference = "Gini" not in title
    least, most = (
        min([*values, 0.0] if is_difference else values),
        max([*values, 0.0] if is_difference else values),
    )
    scale = (most - least) or 1.0
    months = max(len(curve) for curve in curves.values())

    def x(month: int) -> float:
        return left + WIDTH * month / max(months - 1, 1)

    def y(value: float) -> float:
        return top + HEIGHT * (most - value) / scale

    shapes = [_text(left, top - 14, title, weight="600")]
    for value in sorted({least, most, *([0.0] if is_difference else [])}):
        shapes.append(f'<path d="M{left} {y(value):.1f}h{WIDTH}" stroke="{GREY}" stroke-width=".5"/>')
        shapes.append(
            _text(left - 4, y(value), signed(value) if is_difference else f"{value:.2f}", anchor="end")
        )
    shapes += [
        _text(
            x(month),
            top + HEIGHT + 12,
            f"month {month + 1}" if month == 0 else str(month + 1),
            anchor="middle",
        )
        for month in range(months)
    ]
    for name, curve in curves.items():
        points = [f"{x(month):.1f} {y(value):.1f}" for month, value in enumerate(curve) if value is not None]
        shapes.append(f'<path d="M{"L".join(points)}" stroke="{LINES.get(name, GREY)}"/>')
    return shapes


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{GREY}" dominant-baseline="middle" text-anchor="{anchor}" '
        f'font-weight="{weight}">{html.escape(text)}</text>'
    )
