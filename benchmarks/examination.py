"""How far down a page people look: a position-based click model, fitted to a log of clicks.

    python benchmarks/examination.py FOLDER [--seed 0]

FOLDER holds sessions.jsonl.gz, a page of results a line:
{"query": ..., "results": [ids in the order shown], "clicks": [{"object_id": ...}, ...]}.

    P(click) = examination[rank] x attractiveness[query, document]                              eq. 1

is fitted by expectation maximisation on three quarters of the pages. What others hold is then predicted by
the fitted examination and by fixed ones, each with the attractiveness that fits it best; the perplexity
of a rank is 2 to the mean surprise in bits, so 1 is certainty and 2 a coin.

Axes: N pairs of query and document · R ranks.

Source: docs/how-it-learns.md, "Sources", 4.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

Floats = NDArray[np.float64]

SWEEPS = 5_000
HELD_OUT = 0.25


@dataclass(frozen=True)
class Counts:
    """How often each pair was shown and clicked at each rank, both [N, R]; clicks that fit no rank."""

    shown: Floats
    clicked: Floats
    outside: int


def count(pages: Iterable[Mapping[str, Any]], row_of: dict[tuple[str, str], int], ranks: int) -> Counts:
    """Return the counts over pages; ``row_of`` numbers the pairs of (query, document)."""
    shown, clicked = np.zeros((2, len(row_of), ranks))
    outside = 0
    for page in pages:
        clicks = {click["object_id"] for click in page["clicks"]}
        outside += len(clicks - set(page["results"]))
        for rank, document in enumerate(page["results"][:ranks]):
            row = row_of[page["query"], document]
            shown[row, rank] += 1
            clicked[row, rank] += document in clicks
    return Counts(shown, clicked, outside)


def fit(counts: Counts, examination: Floats | None = None) -> tuple[Floats, Floats]:
    """Return examination [R] and attractiveness [N], each in (0, 1).

    Args:
        examination: [R], held as it is; None: fitted too. Only its shape says something, for half the
            examination and twice the attractiveness make the same clicks.
    """
    N, R = counts.shown.shape
    looked = np.full(R, 0.5) if examination is None else examination
    attracts = np.full(N, 0.5)
    passed_over = counts.shown - counts.clicked
    for _ in range(SWEEPS):
        before = attracts
        left = passed_over / np.maximum(1 - np.outer(attracts, looked), 1e-12)
        attracted = counts.clicked + left * np.outer(attracts, 1 - looked)
        looked_at = counts.clicked + left * np.outer(1 - attracts, looked)
        # One success and one failure more than were seen, so that nothing is certain.
        attracts = (attracted.sum(axis=1) + 1) / (counts.shown.sum(axis=1) + 2)
        if examination is None:
            looked = (looked_at.sum(axis=0) + 1) / (counts.shown.sum(axis=0) + 2)
        if np.abs(attracts - before).max() < 1e-9:
            break
    return looked, attracts


def surprise(counts: Counts, examination: Floats, attractiveness: Floats) -> Floats:
    """Return the bits by which each rank's clicks surprise eq. 1, summed over what was shown: [R]."""
    chance = np.clip(np.outer(attractiveness, examination), 1e-9, 1 - 1e-9)
    told = counts.clicked * np.log2(chance) + (counts.shown - counts.clicked) * np.log2(1 - chance)
    return np.asarray(-told.sum(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit examination by rank to a log of clicks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="which pages are held out")
    given = parser.parse_args()

    with gzip.open(given.folder / "sessions.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line) for line in lines]
    R = max(len(page["results"]) for page in pages)
    pairs = dict.fromkeys((page["query"], document) for page in pages for document in page["results"])
    row_of = {pair: row for row, pair in enumerate(pairs)}
    held_out = np.random.default_rng(given.seed).random(len(pages)) < HELD_OUT
    learnt, held = (
        count((page for page, out in zip(pages, held_out, strict=True) if out == of), row_of, R)
        for of in (False, True)
    )
    ranks = np.arange(1, R + 1)
    curves: dict[str, NDArray[np.float64] | None] = {
        "fitted": None,
        "1 / rank": 1 / ranks,
        "1 / sqrt(rank)": 1 / np.sqrt(ranks),
        "1 / log2(rank + 1)": 1 / np.log2(ranks + 1),
        "all the same": np.ones(R),
    }
    table = Table("examination", "nats a page", "perplexity", *(f"at {rank}" for rank in ranks))
    for name, curve in curves.items():
        looked, attracts = fit(learnt, curve)
        bits = surprise(held, looked, attracts)
        at = 2 ** (bits / held.shown.sum(axis=0))
        likelihood = -bits.sum() * np.log(2) / held_out.sum()
        table.add_row(name, f"{likelihood:.4f}", f"{at.mean():.4f}", *(f"{each:.3f}" for each in at))
        if curve is None:
            print("fitted, against rank 1:", *np.round(looked / looked[0], 3))
    print(f"{len(pages)} pages, {len(row_of)} pairs; {learnt.outside + held.outside} clicks outside dropped")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
