"""Is what `embedding-studio tune --settings` says true? Made logs of which one knows what is right.

    python benchmarks/tuned_settings.py --logs 40 --markdown docs/tuned-settings.md

Each log is of users who search again and again. Where clicks are of any object at random, no settings can
win, and whatever is recommended is a mistake.

Axes: U users · T searches of each · I objects · D dimensions.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from embedding_studio import CatalogueObject, Context, SearchIndexInfo, Session, SessionEvent
from embedding_studio.domain.sessions import RecordedSession, SearchResultItem
from embedding_studio.evaluation.report import signed
from embedding_studio.settings import load_settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.tuned_settings import tune_settings

U, T, I, D = 64, 6, 60, 12
QUERIES = 10
SHOWN = 10
FIRST_SECOND = 1_700_000_000
SECONDS_APART = 90_000
"""More than a day: people come back."""

Clicked = Callable[[np.random.Generator, list[int], int], int]
"""Returns a number of an object, from the plain order of a query's objects and what the user wants of it."""


def anything(rng: np.random.Generator, plain: list[int], wanted: int) -> int:  # noqa: ARG001
    return int(rng.integers(I))


def anything_shown(rng: np.random.Generator, plain: list[int], wanted: int) -> int:  # noqa: ARG001
    return plain[int(rng.integers(SHOWN))]


def wanted_half_of_the_time(rng: np.random.Generator, plain: list[int], wanted: int) -> int:
    return plain[wanted] if rng.random() < 0.5 else anything_shown(rng, plain, wanted)


def always_wanted(rng: np.random.Generator, plain: list[int], wanted: int) -> int:  # noqa: ARG001
    return plain[wanted]


@dataclass(frozen=True)
class Case:
    """A kind of log, and the settings in force."""

    meaning: str
    clicked: Clicked
    settings: Mapping[str, object]
    share: int | None = None


PAGE = """# How often tuned settings are wrong

This page is the output of one command, on made logs of which one knows what is right:

```console
$ {command}
```

Each log has {users} users who search {searches} times each, a day apart. `embedding-studio tune
--settings` is asked for each, with another seed. *Before* and *after* are differences to plain
search in reciprocal rank on the later searches, mean over the logs: of the settings in force, and
of those in force after its advice was taken. Where any object is clicked at random no settings can
win, so each recommendation is a mistake; of 95 % intervals one in forty lies above 0 by chance, and
a recommendation needs two.

| log | clicks | logs | recommended | before | after |
|---|---|---:|---:|---:|---:|
{rows}
"""

OFF: Mapping[str, object] = {"query_shift": 0, "adjustment_rate": 0.01}
ALL_PAST: Mapping[str, object] = {"learn_own_past": False}

CASES = {
    "any object": Case("any object at random; all of a user's past counts", anything, ALL_PAST),
    "any object, shared": Case(
        "the same, and what three others clicked may count", anything, ALL_PAST, share=3
    ),
    "any result": Case("any of ten results at random; all of a user's past counts", anything_shown, ALL_PAST),
    "fit as it is": Case("a user's favourite, always", always_wanted, {}),
    "turned off": Case("a user's favourite, always; QUERY_SHIFT=0 in force", always_wanted, OFF),
    "half at random": Case(
        "a user's favourite, half of the time; QUERY_SHIFT=0 in force", wanted_half_of_the_time, OFF
    ),
}


def context_of(case: Case, seed: int) -> Context:
    """Return a storage in memory that holds a log."""
    rng = np.random.default_rng(seed)
    storage = MemoryStorage()
    context = Context(load_settings(embedder="none", **case.settings), storage=storage)
    collection = storage.collections.create("made", SearchIndexInfo(dimensions=D))
    objects = rng.normal(size=(I, D)).astype(np.float32)
    objects /= np.linalg.norm(objects, axis=1, keepdims=True)
    storage.objects.upsert(collection, [CatalogueObject(f"o{i}", objects[i : i + 1]) for i in range(I)])
    queries = rng.normal(size=(QUERIES, D)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    plain = np.argsort(-(queries @ objects.T), axis=1)
    wanted = rng.integers(1, SHOWN // 2, size=(U, QUERIES))  # a place among the plain results, not the first
    asked_by = rng.integers(QUERIES, size=U)
    log = storage.clickstream
    for t in range(T):
        for u in range(U):
            query = int(asked_by[u])
            clicked = case.clicked(rng, plain[query].tolist(), int(wanted[u, query]))
            session = Session(
                session_id=f"s{t}-{u}",
                user_id=f"u{u}",
                collection="made",
                search_query=f"query {query}",
                created_at=FIRST_SECOND + t * SECONDS_APART + u * 60,
                search_results=tuple(
                    SearchResultItem(object_id=f"o{i}", position=position)
                    for position, i in enumerate(plain[query, :SHOWN].tolist(), start=1)
                ),
            )
            log.record([RecordedSession(session, queries[query : query + 1])])
            event = SessionEvent(
                session_id=session.session_id, object_id=f"o{clicked}", created_at=session.created_at + 9
            )
            log.push_events([event])
    return context


Verdict = tuple[bool, float, float]
"""Whether something was recommended, and what it and the settings in force gain over plain search."""


def verdict_of(name: str, seed: int, trials: int) -> Verdict:
    case = CASES[name]
    tuned = tune_settings(context_of(case, seed), "made", trials=trials, seed=seed, share=case.share)
    judged = next(iter(tuned.judged.values()))
    before = judged.in_force_to_plain.difference.mean
    after = (
        judged.found_to_plain.difference.mean if tuned.is_recommended and judged.found_to_plain else before
    )
    return tuned.is_recommended, before, after


def row_of(name: str, verdicts: list[Verdict]) -> str:
    recommended = sum(verdict[0] for verdict in verdicts)
    before, after = (signed(float(np.mean([verdict[at] for verdict in verdicts]))) for at in (1, 2))
    return f"| {name} | {CASES[name].meaning} | {len(verdicts)} | {recommended} | {before} | {after} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=int, default=40, help="of each kind")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        for name in given.only:
            verdicts = list(
                pool.map(verdict_of, repeat(name), range(given.logs), repeat(given.trials, given.logs))
            )
            rows.append(row_of(name, verdicts))
            print(rows[-1], flush=True)
    if given.markdown is not None:
        command = shlex.join(["python", *sys.argv])
        given.markdown.write_text(PAGE.format(command=command, users=U, searches=T, rows="\n".join(rows)))


if __name__ == "__main__":
    main()
