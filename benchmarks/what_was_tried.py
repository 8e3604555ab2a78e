"""What each knob of the default does to quality: one changed at a time, on users that nothing is reported on.

    python benchmarks/what_was_tried.py ../shared/data/cranfield ../shared/data/nfcorpus
    python benchmarks/what_was_tried.py FOLDER... --markdown docs/what-was-tried.md --json OUT

The defaults were chosen on these seeds; docs/does-it-help.md reports others. Some twenty minutes.

Axes: N vectors · D dimensions.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.bootstrap import Context
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.personal import gate_threshold_of
from embedding_studio.evaluation import load_world
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery
from embedding_studio.evaluation.methods import OpenMethod, Product
from embedding_studio.evaluation.report import signed
from embedding_studio.evaluation.run import compare
from embedding_studio.evaluation.users import SimulatedUser

SEEDS = (100, 101)
CLICKS = ("standard", "noisy")
COLUMNS = ((1, "same"), (10, "same"), (10, "para"), (10, "near"), (10, "far"))
WORSE = ("same", "far")
CROWDED_COSINE = 0.8
SESSIONS = 10


def by_adjuster(**knobs: Any) -> OpenMethod:
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
clicked). *Worse* is the share of users for whom a slice is worse by more than .01 after ten sessions.

A model *to which all texts are alike* has one direction added to all vectors, so that what has nothing to do
with each other has a cosine of 0.8, as with E5. There the default gate is open to everything; the product
narrows it when objects are loaded, and `embedding-studio tune` fits it to what is asked.

Tried beside these, by changing the code, and dropped since nothing was gained on these users: clicks weighted
by 1 / examination (worse: rare clicks far down decide), skipped results taken out of the clicked mean (worse
under noise, but where lengths count it gains: there it is done), clicks weighted by how often the object was
clicked when it was looked at (nothing beside the slack), gates of another shape (square root, square), a pull
that grows faster or slower with the number of memories, margins relative to the spread of scores, and
memories that fade with age (these users never change their minds).
"""

World = tuple[int, JudgedCollection, list[SimulatedUser]]
Cells = dict[str, dict[str, float]]


def worlds_of(folder: Path, seeds: Sequence[int], users: int) -> list[World]:
    with Context() as context:
        embedder = context.embedder
        assert embedder is not None
        worlds = []
        for seed in seeds:
            collection, simulated = load_world(
                folder, embedder=embedder, users=users, sessions=SESSIONS, seed=seed
            )
            worlds.append((seed, collection, simulated))
        return worlds


def crowded(world: World) -> World:
    """Return the same world as a model sees it to which all texts are alike.

    One direction is added to all vectors, so that two that were at right angles have a cosine of 0.8.
    """
    seed, collection, users = world
    common = np.random.default_rng(seed).normal(size=collection.parts[0].shape[1])
    common *= np.sqrt(CROWDED_COSINE / (1 - CROWDED_COSINE)) / np.linalg.norm(common)
    seen: dict[int, JudgedQuery] = {}

    def bent(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        both = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) + common
        return np.asarray(both / np.linalg.norm(both, axis=-1, keepdims=True), dtype=np.float32)

    def query(given: JudgedQuery) -> JudgedQuery:
        return seen.setdefault(id(given), replace(given, vector=bent(given.vector)))

    return (
        seed,
        replace(
            collection,
            parts=tuple(map(bent, collection.parts)),
            queries=tuple(map(query, collection.queries)),
        ),
        [
            replace(
                user,
                issued=tuple(map(query, user.issued)),
                slices={name: tuple(map(query, asked)) for name, asked in user.slices.items()},
            )
            for user in users
        ],
    )


def measured(worlds: Sequence[World], open_method: OpenMethod) -> Cells:
    """Return clicks -> column -> mean over the worlds."""
    found: Cells = {}
    for clicks in CLICKS:
        runs = [
            compare(collection, users, {"tried": open_method}, clicks=clicks, seed=seed).methods["tried"]
            for seed, collection, users in worlds
        ]
        found[clicks] = {
            f"{slice_name} T={after}": float(
                np.mean([run.after[after][slice_name].difference.mean for run in runs])
            )
            for after, slice_name in COLUMNS
        } | {
            f"worse, {slice_name}": float(
                np.mean([run.after[SESSIONS][slice_name].difference.worse for run in runs])
            )
            for slice_name in WORSE
        }
    return found


def gates_tried(worlds: Sequence[World]) -> Mapping[str, OpenMethod]:
    """Return the default gate and the one that fits what the collection's users ask."""
    _, collection, users = worlds[0]
    issued = np.stack([query.vector for user in users for query in user.issued])
    fitted = gate_threshold_of(collection.index, issued)
    return {
        "GATE_THRESHOLD 0.75": partial(Product, gate_threshold=0.75),
        "as it is served, narrowed by the objects": Product,
        f"fitted by `tune`: {fitted:.3f}": partial(Product, gate_threshold=fitted),
    }


def table(found: Mapping[str, Cells]) -> list[str]:
    columns = list(next(iter(found.values()))[CLICKS[0]])
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, by_clicks in found.items():
        cells = (
            " / ".join(told(column, by_clicks[clicks][column]) for clicks in CLICKS) for column in columns
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def told(column: str, number: float) -> str:
    return f"{number:.0%}" if column.startswith("worse") else signed(number)


def main() -> None:
    parser = argparse.ArgumentParser(description="One knob of the default changed at a time.")
    parser.add_argument("folders", nargs="+", type=Path, help="collection folders with judgements")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the page here")
    given = parser.parse_args()
    report: dict[str, Any] = {"seeds": SEEDS, "users": given.users}
    command = f"python {shlex.join(sys.argv)}"
    lines = [PAGE.format(seeds=" and ".join(map(str, SEEDS)), command=command).rstrip(), ""]
    for folder in given.folders:
        worlds = worlds_of(folder, SEEDS, given.users)
        alike = [crowded(world) for world in worlds]
        for title, seen, variants in (
            (folder.name, worlds, VARIANTS),
            (f"{folder.name}, seen by a model to which all texts are alike", alike, gates_tried(alike)),
        ):
            found: dict[str, Cells] = {}
            for name, open_method in variants.items():
                print(f"{title}: {name}", file=sys.stderr)
                found[name] = measured(seen, open_method)
            report[title] = found
            rows = table(found)
            print(f"{title}\n" + "\n".join(rows), flush=True)
            lines += [f"## {title}", "", *rows, ""]
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    if given.markdown:
        given.markdown.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
