"""Whether what a search calls the nearest is the nearest: measured on a collection's own queries.

Where a collection is searched by codes, ``margin`` says how cautiously: wider finds more and costs more. Each
of a few margins is compared with comparing all, and the collection gets the smallest that finds enough.

Axes: N queries · R resamples.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.errors import InvalidInputError
from embedding_studio.storage.ports import Storage, Vectors

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

MARGINS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""In standard errors. Normal errors are worse than the widest once in 30,000 times."""

ENOUGH_QUERIES = 50
"""Where fewer are recorded, objects that are slightly changed stand for the missing ones."""

CHANGE = 0.3
"""The length of the change, in lengths of the vector: the cosine to what was changed is about .96."""

RESAMPLES = 2_000
TOLERANCE = 2e-6
"""Relative: distances this close are the same distance."""

READ_AT_ONCE = 1_000
SEED = 0

QUERIES = 200
RESULTS = 10


@dataclass(frozen=True, slots=True)
class RecallAtMargin:
    """What searches with one margin find of what comparing all finds.

    Attributes:
        margin: in standard errors; None: all are compared.
        recall: mean share of the k nearest that is found (see ``share_found``).
        low, high: the 95 % bootstrap interval of the mean. One query more that misses one result is drawn
            for ``low``: that nothing was missed in few queries does not make it certain.
        right_first: share of queries whose first result is as near as the nearest.
        p50_ms, p95_ms: of one search.
    """

    margin: float | None
    recall: float
    low: float
    high: float
    right_first: float
    p50_ms: float
    p95_ms: float

    def reaches(self, target: float) -> bool:
        return self.low >= target and self.right_first >= target


@dataclass(frozen=True, slots=True)
class MeasuredRecall:
    """How well a collection is searched, and with which margin from now on.

    Attributes:
        collection: its name, also where an alias was given.
        parts: that have codes; 0: all are compared.
        queries: compared.
        recorded: how many of them somebody asked; the others are objects slightly changed.
        before: the margin it was searched with; None where all are compared.
        after: the one to search with; the same as ``before`` where nothing is to change.
        is_stored: whether searches use ``after`` from now on.
        is_reached: whether ``after`` finds enough.
        told: the outcome as a sentence.
        compared: by margin, that of comparing all last.
    """

    collection: str
    objects: int
    parts: int
    queries: int
    recorded: int
    k: int
    target: float
    before: float | None
    after: float | None
    is_stored: bool
    is_reached: bool
    told: str
    compared: tuple[RecallAtMargin, ...] = ()


def measure_recall(
    storage: Storage,
    name: str,
    *,
    queries: int = QUERIES,
    k: int = RESULTS,
    target: float,
    dry_run: bool = False,
) -> MeasuredRecall:
    """Compare searches by codes with comparing all, and store the smallest margin that finds enough.

    Where none does, the widest that was tried is stored, which misses least, and a warning is logged.

    Args:
        name: of the collection, or an alias.
        queries: at the most; the latest different ones that were recorded.
        k: results looked at.
        target: what recall (its lower bound) and the share of right first results are to reach. 1 is had by
            comparing all alone, which is a setting: nothing is measured then.
        dry_run: store nothing.

    Raises:
        CollectionNotFoundError: nothing has this name.
        InvalidInputError: an argument is out of bounds.
    """
    if not (0.5 < target <= 1 and queries >= 1 and k >= 1):
        raise InvalidInputError(
            f"queries={queries}, k={k}, target={target}: give at least one query and one result, and a "
            "target above 0.5 and up to 1"
        )
    collection = storage.collections.get(name)
    codes = storage.objects.codes(collection)
    before = codes.margin if codes.parts else None
    unmeasured = MeasuredRecall(
        collection=collection.name,
        objects=storage.objects.count(collection),
        parts=codes.parts,
        queries=0,
        recorded=0,
        k=k,
        target=target,
        before=before,
        after=before,
        is_stored=False,
        is_reached=True,
        told=f"all objects of {collection.name!r} are compared: recall is 1 by construction"
        if (engine := collection.attached or collection.filled) is None
        else f"{collection.name!r} is found by the index of {engine}, which has no margin here",
    )
    if before is None:
        return unmeasured
    if target == 1:
        return replace(
            unmeasured, told="a recall of 1 needs no margin: with RECALL_TARGET=1 all are compared"
        )
    asked, recorded = _queries(storage, collection, queries)
    *compared, exact = _compared(storage, collection, asked, k, sorted({*MARGINS, before}))
    enough = [each for each in compared if each.reaches(target)]
    best = enough[0] if enough else compared[-1]
    told = (
        f"with a margin of {best.margin:g} {collection.name!r} finds {best.recall:.2%} of the {k} nearest "
        f"(at least {best.low:.2%}), and the first of {best.right_first:.1%} of the queries is right"
    )
    if not enough:
        told += (
            f"; no wider one was tried, and the target is {target:.2%}: measure with more queries, or set "
            "RECALL_TARGET=1, which compares all"
        )
        logger.warning(told)
    if not dry_run:
        storage.objects.set_margin(collection, best.margin)
    return replace(
        unmeasured,
        queries=len(asked),
        recorded=recorded,
        after=best.margin,
        is_stored=not dry_run,
        is_reached=bool(enough),
        told=told,
        compared=(*compared, exact),
    )


def _queries(storage: Storage, collection: Collection, count: int) -> tuple[list[Vectors], int]:
    """Return queries [Q, D], those that were recorded first, and how many these are."""
    recorded = storage.clickstream.recent_queries(collection, count)
    if len(recorded) >= min(ENOUGH_QUERIES, count):
        return recorded, len(recorded)
    rng = np.random.default_rng(SEED)
    return recorded + _changed_objects(storage, collection, count - len(recorded), rng), len(recorded)


def _changed_objects(
    storage: Storage, collection: Collection, count: int, rng: np.random.Generator
) -> list[Vectors]:
    """Return a part [1, D] of each of so many objects, or of all, moved in a random direction.

    Every object has the same chance. The whole collection is read: ids say nothing of what is like what.
    """
    sample: list[Vectors] = []
    for number, each in enumerate(_objects(storage, collection)):
        place = number if number < count else int(rng.integers(number + 1))
        if place < count:
            part = each.parts[int(rng.integers(len(each.parts)))]
            sample[place : place + 1] = [part]
    changed = []
    for part in sample:
        direction = rng.normal(size=len(part))
        direction *= CHANGE * np.linalg.norm(part) / np.linalg.norm(direction)
        changed.append((part + direction).astype(np.float32)[None])
    return changed


def _objects(storage: Storage, collection: Collection) -> Iterator[CatalogueObject]:
    after: str | None = None
    while page := storage.objects.scroll(collection, after=after, limit=READ_AT_ONCE):
        yield from page
        after = page[-1].object_id


def _compared(
    storage: Storage, collection: Collection, queries: Sequence[Vectors], k: int, margins: Sequence[float]
) -> list[RecallAtMargin]:
    """Return what each margin finds, and last what comparing all does.

    All margins take turns at each query, so what else the machine does slows all of them alike.
    """
    rng = np.random.default_rng(SEED)
    tried = [*margins, math.inf]
    recalls, firsts, seconds = (np.ones((len(tried), len(queries))) for _ in range(3))

    def search(query: Vectors, margin: float) -> list[float]:
        return [each.distance for each in storage.objects.nearest(collection, query, k, margin=margin)]

    for margin in tried:  # the first of each is slower
        search(queries[0], margin)
    for n, query in enumerate(queries):
        found: list[list[float]] = [[] for _ in tried]
        for t in rng.permutation(len(tried)).tolist():
            started = time.perf_counter()
            found[t] = search(query, tried[t])
            seconds[t, n] = time.perf_counter() - started
        for t, each in enumerate(found):
            recalls[t, n], firsts[t, n] = share_found(each, found[-1])
    rows = []
    for t, margin in enumerate(tried):
        low, high = bootstrap_interval(recalls[t], k)
        p50, p95 = np.percentile(1000 * seconds[t], [50, 95])
        rows.append(
            RecallAtMargin(
                margin=None if margin == math.inf else margin,
                recall=float(recalls[t].mean()),
                low=1.0 if margin == math.inf else low,
                high=high,
                right_first=float(firsts[t].mean()),
                p50_ms=round(float(p50), 3),
                p95_ms=round(float(p95), 3),
            )
        )
    return rows


def share_found(found: Sequence[float], nearest: Sequence[float]) -> tuple[float, bool]:
    """Return the share of the k nearest that is found, and whether the first is as near as can be.

    Of objects that are as near as the k-th, any will do, but only for as many as there are places.

    Args:
        found: distances of at most k results.
        nearest: the k smallest distances, ascending; fewer only where there are fewer objects.

    >>> share_found([0.1, 0.3, 0.3], [0.1, 0.2, 0.3])
    (0.6666666666666666, True)
    """
    if len(nearest) == 0:
        return 1.0, True
    k, last = len(nearest), nearest[-1]
    slack = TOLERANCE * max(1.0, abs(last))
    nearer, places = (sum(each < last - slack for each in distances) for distances in (found, nearest))
    equal = sum(abs(each - last) <= slack for each in found)
    return (nearer + min(equal, k - places)) / k, len(found) > 0 and found[0] <= nearest[0] + slack


def bootstrap_interval(recalls: Floats, k: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of [N]; the lower end as ``RecallAtMargin`` says."""
    rng = np.random.default_rng(SEED)
    missing = np.append(recalls, min(1 - 1 / k, recalls.mean()))

    def means(sample: Floats) -> Floats:
        drawn = rng.integers(len(sample), size=(RESAMPLES, len(sample)))
        return np.asarray(sample[drawn].mean(axis=1))

    return float(np.quantile(means(missing), 0.025)), float(np.quantile(means(recalls), 0.975))
