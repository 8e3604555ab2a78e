"""How fast the adjusters are, beside the documented formula under autograd.

    python benchmarks/adjusters.py            all sizes; some minutes and 6 GB
    python benchmarks/adjusters.py --quick    the sizes that the aims are about
    python benchmarks/adjusters.py --json OUT --markdown docs/how-fast-adjusters.md

Axes: B sessions · I results of a session · P parts of a result · D dimensions.

All are measured in one run, in turns, on one thread, through the documented door: a list of sessions goes
in, a list comes out. Times are processor time, so that other work on the machine counts for less, and the
least of several rounds. ``door`` is the share of the time that goes into
lists and elements rather than mathematics. ``packed_arrays`` is no adjuster that one can call: it is the
mathematics of ``passive_aggressive`` alone, on arrays that were checked and packed before the clock started.
``GB/s`` is the least that must be moved by the time taken: for
``PassiveAggressiveAdjuster`` every vector read once and every moved one written once; for
``TorchBasedAdjuster`` per iteration vectors and both moments read and written, originals and queries read.
It is to be held against copying 256 MB from here to there, measured first.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.improvement.waves import Wave, moved_in_waves

Moved = tuple[NDArray[np.intp], NDArray[np.float32]]

ITERATIONS = 10
COLUMNS = ("ms", "sessions/s", "x ref", "door", "GB/s")
CLICKED = {2, 5}  # the third and the sixth result of every session
MOST_NUMBERS = 200_000_000  # components in a batch, 800 MB; what is larger is left out


class ReferenceAdjuster:
    """The documented formula: one rectangular batch, autograd, ``torch.optim.AdamW``."""

    def adjust_vectors(self, sessions: list[ImprovementInput]) -> list[ImprovementInput]:
        queries = torch.from_numpy(np.stack([s.query.vector[0] for s in sessions]))
        clicked = torch.from_numpy(np.stack([[e.vector for e in s.clicked_elements] for s in sessions]))
        skipped = torch.from_numpy(np.stack([[e.vector for e in s.non_clicked_elements] for s in sessions]))
        clicked.requires_grad_()
        skipped.requires_grad_()
        optimizer = torch.optim.AdamW([clicked, skipped], lr=0.1)
        for _ in range(ITERATIONS):
            optimizer.zero_grad()
            loss = -torch.mean(self.similarity(queries, clicked) ** 3) + torch.mean(
                self.similarity(queries, skipped) ** 3
            )
            torch.autograd.backward(loss)
            optimizer.step()
        return [
            ImprovementInput(
                s.session_id,
                s.query,
                tuple(
                    ImprovementElement(e.id, v, e.weight) for e, v in zip(s.clicked_elements, c, strict=True)
                ),
                tuple(
                    ImprovementElement(e.id, v, e.weight)
                    for e, v in zip(s.non_clicked_elements, n, strict=True)
                ),
                s.user_id,
            )
            for s, c, n in zip(sessions, clicked.detach().numpy(), skipped.detach().numpy(), strict=True)
        ]

    @staticmethod
    def similarity(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        similarities = torch.nn.functional.cosine_similarity(queries[:, None, None], vectors, dim=-1)
        weights = torch.exp(-similarities)
        return (weights / weights.sum(dim=2, keepdim=True) * similarities).sum(dim=2)


class SessionBySession:
    """The same, one session at a time: the only way in which it takes ragged sessions."""

    def adjust_vectors(self, sessions: list[ImprovementInput]) -> list[ImprovementInput]:
        return [ReferenceAdjuster().adjust_vectors([session])[0] for session in sessions]


class TimedPassiveAggressive(PassiveAggressiveAdjuster):
    mathematics = 0.0

    def _move(self, wave: Wave) -> Moved:
        start = time.process_time()
        moved = super()._move(wave)
        self.mathematics += time.process_time() - start
        return moved


class TimedTorchBased(TorchBasedAdjuster):
    mathematics = 0.0

    def _move(self, wave: Wave) -> Moved:
        start = time.process_time()
        moved = super()._move(wave)
        self.mathematics += time.process_time() - start
        return moved


class PackedArrays(PassiveAggressiveAdjuster):
    """The mathematics alone: what the fold makes of the sessions is kept, and gone through again."""

    def __init__(self, index: SearchIndexInfo, sessions: list[ImprovementInput]) -> None:
        super().__init__(index)
        self.waves: list[Wave] = []
        moved_in_waves(index, sessions, self._keep)

    def _keep(self, wave: Wave) -> Moved:
        self.waves.append(wave)
        return self._move(wave)

    def adjust_vectors(self, sessions: list[ImprovementInput]) -> list[ImprovementInput]:
        for wave in self.waves:
            self._move(wave)
        return sessions


def sessions_per_second() -> dict[str, float]:
    """Return how many sessions of 10 results, 384 dimensions and one part each adjuster learns from a second.

    1,000 sessions at once, on one thread; some ten seconds in all.
    """
    rng, index = np.random.default_rng(0), SearchIndexInfo()
    sessions = sessions_like_searches(1000, 1, 384, ragged=False, rng=rng)
    adjusters: dict[str, VectorsAdjuster] = {
        "passive_aggressive": PassiveAggressiveAdjuster(index),
        "torch": TorchBasedAdjuster(index, num_iterations=ITERATIONS),
        "reference_autograd": ReferenceAdjuster(),
    }
    found = measured(sessions, adjusters, rounds=9)
    return {name: len(sessions) / of_adjuster["seconds"] for name, of_adjuster in found.items()}


def sessions_like_searches(
    B: int, P: int, D: int, *, ragged: bool, rng: np.random.Generator
) -> list[ImprovementInput]:
    """Return sessions of distinct users, results by falling similarity around 0.5 as a search shows them.

    Ragged: 6 to 14 results, and 1 to 2 P - 1 parts each.
    """
    made = []
    for b in range(B):
        I = int(rng.integers(6, 15)) if ragged else 10
        query = rng.normal(size=D).astype(np.float32)
        query /= np.linalg.norm(query)
        best = np.sort(rng.normal(0.5, 0.05, I))[::-1]
        elements = []
        for i in range(I):
            parts = int(rng.integers(1, 2 * P)) if ragged else P
            noise = rng.normal(size=(parts, D)).astype(np.float32)
            noise -= (noise @ query)[:, None] * query
            noise /= np.linalg.norm(noise, axis=1, keepdims=True)
            cosines = (best[i] - 0.1 * np.arange(parts))[:, None].astype(np.float32)
            vectors = cosines * query + np.sqrt(1 - cosines**2) * noise
            clicked = i in CLICKED
            elements.append(ImprovementElement(f"o{i}", vectors, 1.0 if clicked else 1 / (i + 1)))
        made.append(
            ImprovementInput(
                f"s{b}",
                ImprovementElement(f"s{b}", query),
                tuple(e for i, e in enumerate(elements) if i in CLICKED),
                tuple(e for i, e in enumerate(elements) if i not in CLICKED),
                f"u{b}",
            )
        )
    return made


def vectors_of(sessions: list[ImprovementInput]) -> list[NDArray[np.float32]]:
    return [e.vector for s in sessions for e in (*s.clicked_elements, *s.non_clicked_elements)]


def measured(
    sessions: list[ImprovementInput], adjusters: dict[str, VectorsAdjuster], rounds: int
) -> dict[str, dict[str, float]]:
    """Return for each adjuster the seconds of its quickest round, and the share of the door in it."""
    best: dict[str, dict[str, float]] = {}
    torch.set_num_threads(1)
    for _, (name, adjuster) in product(range(rounds), adjusters.items()):
        inside = getattr(adjuster, "mathematics", 0.0)
        start = time.process_time()
        kept = adjuster.adjust_vectors(sessions)  # throwing it away is not part of learning
        taken = time.process_time() - start
        del kept
        if name not in best or taken < best[name]["seconds"]:
            best[name] = {"seconds": taken}
            if hasattr(adjuster, "mathematics"):
                best[name]["door"] = 1 - (adjuster.mathematics - inside) / taken
    return best


def bandwidth() -> float:
    """Return GB/s, read and written, of copying 256 MB."""
    source, target = np.ones(1 << 26, np.float32), np.empty(1 << 26, np.float32)
    times = []
    for _ in range(5):
        start = time.process_time()
        np.copyto(target, source)
        times.append(time.process_time() - start)
    return 2 * source.nbytes / min(times) / 1e9


def largest_difference(rng: np.random.Generator) -> float:
    """Return how far the raw update is from the reference where both say the same: weights 1, one part."""
    sessions = [
        ImprovementInput(
            s.session_id,
            s.query,
            s.clicked_elements,
            tuple(ImprovementElement(e.id, e.vector) for e in s.non_clicked_elements),
        )
        for s in sessions_like_searches(99, 1, 384, ragged=False, rng=rng)
    ]
    raw = TorchBasedAdjuster(SearchIndexInfo(), 0.1, ITERATIONS, max_angle_degrees=None)
    ours, theirs = (
        vectors_of(raw.adjust_vectors(sessions)),
        vectors_of(SessionBySession().adjust_vectors(sessions)),
    )
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def row(B: int, P: int, D: int, *, ragged: bool, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    sessions = sessions_like_searches(B, P, D, ragged=ragged, rng=rng)
    index = SearchIndexInfo()
    adjusters: dict[str, VectorsAdjuster] = {
        "passive_aggressive": TimedPassiveAggressive(index),
        "packed_arrays": PackedArrays(index, sessions),
        "torch": TimedTorchBased(index, num_iterations=ITERATIONS),
    }
    if not ragged:
        adjusters["reference_autograd"] = ReferenceAdjuster()
    found = measured(sessions, adjusters, rounds)
    if B <= 1000 and P == 1 and D == 384:
        found |= measured(sessions, {"session_by_session": SessionBySession()}, 1)
    size = sum(vector.nbytes for vector in vectors_of(sessions))
    after = vectors_of(adjusters["passive_aggressive"].adjust_vectors(sessions))
    moved = sum(b.nbytes for a, b in zip(vectors_of(sessions), after, strict=True) if a is not b)
    least = {
        "passive_aggressive": size + moved,
        "packed_arrays": size + moved,
        "torch": 8 * ITERATIONS * size,
    }
    slow = found.get("reference_autograd", found.get("session_by_session"))
    for name, of_adjuster in found.items():
        of_adjuster["sessions_per_second"] = B / of_adjuster["seconds"]
        if slow is not None:
            of_adjuster["times_reference"] = slow["seconds"] / of_adjuster["seconds"]
        if name in least:
            of_adjuster["gigabytes_per_second"] = least[name] / of_adjuster["seconds"] / 1e9
    return {"B": B, "P": P, "D": D, "ragged": ragged, "moved_share": moved / size, "adjusters": found}


def figures(of_adjuster: dict[str, float]) -> list[str]:
    """Return what stands under ``COLUMNS``; nothing where there is nothing to say."""
    written = (
        ("seconds", lambda number: f"{1000 * number:.2f}"),
        ("sessions_per_second", "{:,.0f}".format),
        ("times_reference", "{:.1f}".format),
        ("door", "{:.0%}".format),
        ("gigabytes_per_second", "{:.1f}".format),
    )
    return [write(of_adjuster[name]) if name in of_adjuster else "" for name, write in written]


def page(report: dict[str, Any]) -> str:
    rows = "\n".join(
        "| {} | {} | {} | {} |".format(
            f"{line['B']:,}",
            f"{line['P']}{' ragged' if line['ragged'] else ''}",
            line["D"],
            " | ".join([name, *figures(of_adjuster)]),
        )
        for line in report["rows"]
        for name, of_adjuster in line["adjusters"].items()
    )
    return f"""# How fast do the adjusters learn?

This page is the output of one command. Absolute numbers are those of the machine that ran it last, on one
thread and beside other work; ratios travel better.

```console
$ python {shlex.join(sys.argv)}
```

Sessions of ten results (ragged: of 6 to 14), each of another user. A list of sessions goes in, a list comes
out. Times are processor time, the least of several rounds, all adjusters in turns.

- **reference_autograd** is the documented gradient formula, one rectangular batch under autograd and
  `torch.optim.AdamW`; **session_by_session** is the same for one session after the other.
- **torch** is `TorchBasedAdjuster` in {ITERATIONS} iterations. Where the definitions agree (one part, weights
  of 1, no trust region) no component differs from the reference by more than
  {report["largest_difference_to_reference"]:.1e}.
- **packed_arrays** is the mathematics of **passive_aggressive** alone, on arrays checked and packed before.
- **x ref** is how many times faster than `reference_autograd` (ragged: than `session_by_session`); **door**
  the share of the time that goes into lists and elements; **GB/s** the least that must be moved by the time
  taken. Copying memory ran at {report["copy_gigabytes_per_second"]:.0f} GB/s.

| sessions | parts | dimensions | adjuster | {" | ".join(COLUMNS)} |
|---:|---|---:|---|{"---:|" * len(COLUMNS)}
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Adjusters beside the documented formula under autograd.")
    parser.add_argument("--quick", action="store_true", help="only D = 384 and at most 1,000 sessions")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as a page here")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, one thread",
        "copy_gigabytes_per_second": bandwidth(),
        "largest_difference_to_reference": largest_difference(rng),
        "rows": [],
    }
    print(f"{report['machine']}; copying: {report['copy_gigabytes_per_second']:.1f} GB/s")
    print(f"raw update and reference differ by at most {report['largest_difference_to_reference']:.1e}")
    print("     B  P     D        adjuster          ", "".join(f"{column:>11}" for column in COLUMNS))
    for D, P, ragged, B in product(
        (384,) if given.quick else (384, 1024),
        (1, 4),
        (False, True),
        (1, 100, 1000) if given.quick else (1, 100, 1000, 10_000),
    ):
        if B * 10 * P * D > MOST_NUMBERS:
            continue
        line = row(B, P, D, ragged=ragged, rounds=given.rounds, rng=rng)
        report["rows"].append(line)
        for name, of_adjuster in line["adjusters"].items():
            print(
                f"{B:>6} {P:>2} {D:>5} {'ragged' if ragged else '':6} {name:18} ",
                "".join(f"{number:>11}" for number in figures(of_adjuster)),
                flush=True,
            )
        if given.json:
            given.json.write_text(json.dumps(report, indent=2) + "\n")
        if given.markdown:
            given.markdown.write_text(page(report))


if __name__ == "__main__":
    main()
