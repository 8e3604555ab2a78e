"""What each knob of the default does to quality: one changed at a time, on users that nothing is reported on.

    python benchmarks/what_was_tried.py ../shared/data/cranfield ../shared/data/nfcorpus
    python benchmarks/what_was_tried.py FOLDER... --markdown docs/what-was-tried.md --json OUT

The defaults were chosen on these seeds; docs/does-it-help.md reports others. Some twenty minutes.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from embedding_studio.bootstrap import Context
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.evaluation.collection_folder import load_collection
from embedding_studio.evaluation.methods import OpenMethod, Product
from embedding_studio.evaluation.run import compare
from embedding_studio.evaluation.users import simulate_users

SEEDS = (100, 101)
CLICKS = ("standard", "noisy")
COLUMNS = ((1, "same"), (10, "same"), (10, "para"), (10, "near"))
SESSIONS = 10


def by_adjuster(**knobs: float) -> OpenMethod:
    return partial(Product, adjuster=partial(PassiveAggressiveAdjuster, **knobs))


VARIANTS: Mapping[str, OpenMethod] = {
    "as it is served": Product,
    **{f"aggressiveness {a}": by_adjuster(aggressiveness=a) for a in (0.1, 0.25, 1.0, 3.0, inf)},
    **{f"ADJUSTMENT_RATE {rate}": by_adjuster(adjustment_rate=rate) for rate in (0.05, 0.2, 0.4)},
    **{f"NUM_ITERATIONS {n}": by_adjuster(num_iterations=n) for n in (20, 50)},
    "MAX_ANGLE_DEGREES 5": by_adjuster(max_angle_degrees=5.0),
    **{f"GATE_THRESHOLD {c}": partial(Product, gate_threshold=c) for c in (0.65, 0.7, 0.8, 0.85)},
    **{f"QUERY_SHIFT {alpha}": partial(Product, query_shift=alpha) for alpha in (0.0, 0.5, 1.5, 2.0)},
}

PAGE = """# What was tried

This page is the output of one command, on simulated users of the seeds {seeds}, which
[does it help](does-it-help.md) does not report on:

```console
$ {command}
```

Each row changes one knob of the default. A cell is the mean difference in nDCG@10 to plain search after so
many sessions, under *standard* clicks / *noisy* clicks (30 % of the irrelevant results that are looked at are
clicked). *Worse* is the share of users whose own query is worse by more than .01 after ten sessions.

Tried beside these, by changing the code, and dropped since nothing was gained on these users: clicks weighted
by 1 / examination (worse: rare clicks far down decide), skipped results taken out of the clicked mean (worse
under noise), clicks weighted by how often the object was clicked when it was looked at (nothing beside the
slack), gates of another shape (square root, square), a pull that grows faster or slower with the number of
memories, margins relative to the spread of scores, and memories that fade with age (these users never
change their minds).
"""


def tried(
    folder: Path, seeds: Sequence[int], users: int, show: Callable[[str], None]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return variant -> clicks -> column -> mean over the seeds."""
    with Context() as context:
        embedder = context.embedder
        assert embedder is not None
        worlds = []
        for seed in seeds:
            collection = load_collection(folder, embedder=embedder, seed=seed)
            simulated = simulate_users(
                collection, users=users, sessions=SESSIONS, embedder=embedder, seed=seed
            )
            worlds.append((seed, collection, simulated))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, open_method in VARIANTS.items():
        for clicks in CLICKS:
            show(f"{folder.name}: {name}, {clicks} clicks")
            runs = [
                compare(collection, simulated, {name: open_method}, clicks=clicks, seed=seed).methods[name]
                for seed, collection, simulated in worlds
            ]
            cells = {
                f"{slice_name} T={after}": float(
                    np.mean([run.after[after][slice_name].difference.mean for run in runs])
                )
                for after, slice_name in COLUMNS
            }
            cells["worse"] = float(np.mean([run.after[SESSIONS]["same"].difference.worse for run in runs]))
            found.setdefault(name, {})[clicks] = cells
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    columns = [*(f"{slice_name} T={after}" for after, slice_name in COLUMNS), "worse"]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, by_clicks in found.items():
        cells = (
            " / ".join(
                f"{by_clicks[clicks][column]:.0%}"
                if column == "worse"
                else f"{by_clicks[clicks][column]:+.3f}".replace("0.", ".")
                for clicks in CLICKS
            )
            for column in columns
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="One knob of the default changed at a time.")
    parser.add_argument("folders", nargs="+", type=Path, help="collection folders")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the page here")
    given = parser.parse_args()
    report: dict[str, Any] = {"seeds": SEEDS, "users": given.users}
    command = f"python {shlex.join(sys.argv)}"
    lines = [PAGE.format(seeds=" and ".join(map(str, SEEDS)), command=command).rstrip(), ""]
    for folder in given.folders:
        report[folder.name] = tried(folder, SEEDS, given.users, lambda text: print(text, file=sys.stderr))
        rows = table(report[folder.name])
        print(f"{folder.name}\n" + "\n".join(rows))
        lines += [f"## {folder.name}", "", *rows, ""]
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    if given.markdown:
        given.markdown.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
