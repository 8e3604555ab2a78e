"""A log lived through again: each search ranked at its own time by each method, then its clicks are learnt.

Nothing comes from the future: a search sees the clicks that were made before its own second began, of the
sessions before it. Each method is compared with plain search, search by search.

Axes: N measured searches · U users · M methods · K metrics · R resamples.
"""

import heapq
import itertools
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.embeddings.personal import query_mean
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import InvalidInputError, InvalidVectorsError
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.metrics import CUTOFF, NOTICEABLE, RESAMPLES
from embedding_studio.evaluation.replayed_methods import Click, PlainSearch, ReplayedMethod, Search
from embedding_studio.evaluation.session_log import LoggedSession, SessionLog
from embedding_studio.storage.ports import Vectors

METRICS = ("reciprocal_rank", "ndcg@10", "hit@1", "hit@5")
FEWEST_SEARCHES = 100
FEWEST_USERS = 20
HEAD_FROM = 50
TAIL_BELOW = 5
SHOWN = 10
"""Where a log does not say what was shown, it is taken to be so many results of plain search."""

SLICE_MEANINGS: Mapping[str, str] = {
    "all": "all measured searches",
    "past": "of users who clicked something in an earlier session",
    "repeated": "of these: the same query again, but for capitals and spaces",
    "near": "of these: another query, nearer than the gate to an earlier one of the user",
    "new": "of these: a query that is near to none of the user's",
    "head": f"queries that were asked {HEAD_FROM} times or more before, by anyone",
    "torso": f"queries that were asked {TAIL_BELOW} to {HEAD_FROM - 1} times before",
    "tail": f"queries that were asked fewer than {TAIL_BELOW} times before",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over searches, with its 95 % bootstrap interval over users."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of one method in one slice: its mean over searches, and the difference to plain search."""

    mean: float
    difference: Difference


@dataclass(frozen=True, slots=True)
class ReplayedSlice:
    """One method in one slice.

    Attributes:
        metrics: by name, see ``METRICS``.
        users_better, users_worse: share of users whose mean reciprocal rank differs by more than .01.
    """

    metrics: Mapping[str, Measured]
    users_better: float
    users_worse: float


@dataclass(frozen=True, slots=True)
class SliceSize:
    searches: int
    users: int
    meaning: str

    @property
    def is_too_small(self) -> bool:
        return self.searches < FEWEST_SEARCHES or self.users < FEWEST_USERS


@dataclass(frozen=True, slots=True)
class Replay:
    """A log replayed.

    Attributes:
        sessions: that were read, and learnt from if something was clicked.
        slices: how large each is; one without a search is absent.
        methods: method -> slice -> result.
        left_out: reason -> how many sessions or clicks.
        notes: what was taken to be so, and how the log was read.
        warnings: why the figures may mislead.
        ranks: method -> session_id -> the rank of each clicked object, None where it was not found.
    """

    sessions: int
    slices: Mapping[str, SliceSize]
    methods: Mapping[str, Mapping[str, ReplayedSlice]]
    left_out: Mapping[str, int]
    notes: Sequence[str]
    warnings: Sequence[str]
    ranks: Mapping[str, Mapping[str, Sequence[int | None]]]

    def to_json(self) -> dict[str, Any]:
        return {
            "sessions": self.sessions,
            "slices": {name: asdict(size) for name, size in self.slices.items()},
            "methods": {
                method: {
                    name: {metric: asdict(measured) for metric, measured in found.metrics.items()}
                    | {"users_better": found.users_better, "users_worse": found.users_worse}
                    for name, found in slices.items()
                }
                for method, slices in self.methods.items()
            },
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def replay(
    log: SessionLog,
    methods: Mapping[str, ReplayedMethod],
    *,
    plain: PlainSearch,
    index: SearchIndexInfo,
    gate_threshold: float,
    query_vectors: Mapping[str, Vectors],
    measure_from: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Replay:
    """Return how methods would have ranked what users of a log clicked.

    Args:
        methods: by name; none has seen anything of the log yet.
        plain: what methods are compared with, and what was shown where the log does not say so.
        gate_threshold: the cosine from which on two queries are near.
        query_vectors: text -> [Q, D], for sessions that bring no vectors.
        measure_from: UTC milliseconds; what was searched before is learnt, and not measured.
        seed: of the bootstrap.

    Raises:
        InvalidInputError: nothing is left to measure.
    """
    left_out = Counter(log.left_out)
    past = _Past(index, gate_threshold)
    coming: list[tuple[int, int, Click]] = []
    measured: list[_MeasuredSearch] = []
    ranks: dict[str, dict[str, list[int | None]]] = {name: {} for name in methods}
    numbers = Counter[str]()
    turns = itertools.count()
    for number, session in enumerate(log.sessions):
        _tell(progress, number + 1, len(log.sessions))
        search = _search_of(session, index, query_vectors)
        if search is None:
            left_out["a session whose query has no usable vectors"] += 1
            continue
        due = []
        while coming and coming[0][0] // 1000 < search.at:
            due.append(heapq.heappop(coming)[2])
        past.learn(due)
        for method in methods.values():
            method.learn(due)
        clicked = tuple(dict.fromkeys(click.object_id for click in session.clicks))
        if measure_from is not None and session.at < measure_from:
            numbers["before"] += 1
        elif reason := _why_unmeasured(session):
            left_out[reason] += 1
        else:
            plain_ranks = _ranks(plain.rank(search), clicked)
            by_method = {name: _ranks(method.rank(search), clicked) for name, method in methods.items()}
            for name, found in by_method.items():
                ranks[name][session.session_id] = found
            values = np.array([_values(plain_ranks), *map(_values, by_method.values())])
            measured.append(_MeasuredSearch(search.user_id, past.slices_of(search), values))
            numbers["shown"] += bool(session.shown)
            numbers["first"] += bool(session.shown) and session.shown[0] in clicked
        past.asked[search.key] += 1
        shown = session.shown or _taken_as_shown(plain.rank(search), clicked)
        for click in session.clicks:
            made = Click(search, shown, click.object_id, click.event_type, click.at // 1000)
            heapq.heappush(coming, (click.at, next(turns), made))
    if not measured:
        raise InvalidInputError(_nothing_to_measure(left_out, numbers["before"]))
    sizes, results = _results(measured, list(methods), seed)
    return Replay(
        sessions=len(log.sessions),
        slices=sizes,
        methods=results,
        left_out=dict(left_out),
        notes=_reading(log, numbers["before"]),
        warnings=_warnings(sizes["all"], numbers["shown"], numbers["first"]),
        ranks=ranks,
    )


def query_key(text: str, vectors: Vectors) -> str:
    """Return what is the same for the same query: its text without capitals and spaces, or its vectors.

    >>> query_key("  Call of  DUTY ", np.zeros((1, 3)))
    'call of duty'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) or vectors.tobytes().hex()


@dataclass(frozen=True, slots=True, eq=False)
class _MeasuredSearch:
    """A search and what was found; ``values`` is [1 + M, K], plain search first."""

    user_id: str
    slices: tuple[str, ...]
    values: NDArray[np.float64]


class _Past:
    """What was asked and clicked so far, to say to which slices a search belongs."""

    def __init__(self, index: SearchIndexInfo, gate_threshold: float) -> None:
        self._index = index
        self._gate_threshold = gate_threshold
        self._of_user: dict[str, dict[str, Vectors]] = defaultdict(dict)
        self.asked: Counter[str] = Counter()

    def learn(self, clicks: Sequence[Click]) -> None:
        for click in clicks:
            self._of_user[click.search.user_id][click.search.key] = self._direction(click.search)

    def slices_of(self, search: Search) -> tuple[str, ...]:
        times = self.asked[search.key]
        by_times = "head" if times >= HEAD_FROM else "torso" if times >= TAIL_BELOW else "tail"
        month = datetime.fromtimestamp(search.at, UTC).strftime("%Y-%m")
        mine = self._of_user.get(search.user_id)
        if not mine:
            return "all", by_times, month
        if search.key in mine:
            return "all", "past", "repeated", by_times, month
        alike = np.stack(list(mine.values())) @ self._direction(search)
        return "all", "past", "near" if alike.max() > self._gate_threshold else "new", by_times, month

    def _direction(self, search: Search) -> Vectors:
        mean = query_mean(self._index, search.vectors)
        length = float(np.linalg.norm(mean))
        return (mean / (length or 1.0)).astype(np.float32)


def _search_of(
    session: LoggedSession, index: SearchIndexInfo, query_vectors: Mapping[str, Vectors]
) -> Search | None:
    given = session.query_vectors
    if given is None or given.shape[-1] != index.dimensions:
        given = query_vectors.get(session.query)
    if given is None:
        return None
    try:
        vectors = check_vectors(index, given, "the query")
    except InvalidVectorsError:
        return None
    key = query_key(session.query, vectors)
    return Search(session.session_id, session.user_id, session.query, key, vectors, session.at // 1000)


def _taken_as_shown(plain: Sequence[str], clicked: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*plain[:SHOWN], *clicked)))


def _ranks(ranking: Sequence[str], clicked: Sequence[str]) -> list[int | None]:
    rank = {object_id: rank for rank, object_id in enumerate(ranking, start=1)}
    return [rank.get(object_id) for object_id in clicked]


def _values(ranks: Sequence[int | None]) -> list[float]:
    """Return ``METRICS`` of a ranking, where each clicked object is worth the same.

    >>> _values([2, None])
    [0.5, 0.387, 0.0, 1.0]
    """
    found = [rank for rank in ranks if rank is not None]
    best = float(min(found, default=math.inf))
    gain = sum(1 / np.log2(1 + rank) for rank in found if rank <= CUTOFF)
    ideal = sum(1 / np.log2(1 + rank) for rank in range(1, min(len(ranks), CUTOFF) + 1))
    return [1 / best, float(gain / ideal), float(best <= 1), float(best <= 5)]


def _slices(measured: Sequence[_MeasuredSearch]) -> dict[str, list[int]]:
    """Return slice -> rows; those of months only where there is more than one month."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, each in enumerate(measured):
        for name in each.slices:
            rows[name].append(row)
    months = sorted(rows.keys() - SLICE_MEANINGS.keys())
    return {
        name: rows[name] for name in (*SLICE_MEANINGS, *(months if len(months) > 1 else ())) if name in rows
    }


def _results(
    measured: Sequence[_MeasuredSearch], methods: Sequence[str], seed: int
) -> tuple[dict[str, SliceSize], dict[str, dict[str, ReplayedSlice]]]:
    """Return slice -> its size, and method -> slice -> result."""
    sizes: dict[str, SliceSize] = {}
    results: dict[str, dict[str, ReplayedSlice]] = {name: {} for name in methods}
    for name, rows in _slices(measured).items():
        found = [measured[row] for row in rows]
        meaning = SLICE_MEANINGS.get(name, f"searches of the month {name}")
        sizes[name] = SliceSize(len(found), len({each.user_id for each in found}), meaning)
        for method, result in zip(methods, _compared(found, seed), strict=True):
            results[method][name] = result
    return sizes, results


def _compared(measured: Sequence[_MeasuredSearch], seed: int) -> list[ReplayedSlice]:
    """Return what each method comes to; users are drawn anew with all their searches."""
    number: dict[str, int] = {}
    users = np.array([number.setdefault(each.user_id, len(number)) for each in measured])
    values = np.stack([each.values for each in measured])  # [N, 1 + M, K]
    differences = values[:, 1:] - values[:, :1]  # [N, M, K]
    N, M, K = differences.shape
    U = len(number)
    searches = np.bincount(users, minlength=U).astype(np.float64)
    sums = np.zeros((U, M * K))
    np.add.at(sums, users, differences.reshape(N, M * K))
    rng = np.random.default_rng(seed)
    resampled = np.empty((RESAMPLES, M * K))
    for r in range(RESAMPLES):
        drawn = np.bincount(rng.integers(U, size=U), minlength=U)
        resampled[r] = drawn @ sums / (drawn @ searches)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0).reshape(2, M, K)
    means, mean_differences = values.mean(axis=0), differences.mean(axis=0)
    of_users = sums.reshape(U, M, K)[:, :, 0] / searches[:, None]  # of the reciprocal rank
    return [
        ReplayedSlice(
            metrics={
                metric: Measured(
                    float(means[1 + m, k]),
                    Difference(float(mean_differences[m, k]), float(low[m, k]), float(high[m, k])),
                )
                for k, metric in enumerate(METRICS)
            },
            users_better=float((of_users[:, m] > NOTICEABLE).mean()),
            users_worse=float((of_users[:, m] < -NOTICEABLE).mean()),
        )
        for m in range(M)
    ]


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None and (done % 100 == 0 or done == total):
        progress("replay", done, total)


def _why_unmeasured(session: LoggedSession) -> str | None:
    if not session.clicks:
        return "not measured: a search after which nothing was clicked"
    if not session.is_plain_request:
        return "not measured: a search with a filter, a sorting or a maximum distance"
    return None


def _nothing_to_measure(left_out: Mapping[str, int], before: int) -> str:
    reasons = [f"{before} searches are before the measuring begins"] if before else []
    reasons += [f"{number} x {reason}" for reason, number in left_out.items()]
    return f"there is no search to measure: {'; '.join(reasons) or 'the log is empty'}"


def _reading(log: SessionLog, before: int) -> list[str]:
    notes = [f"times are given in {unit} ({number})" for unit, number in log.units.items()]
    notes += [f"{what} ({number})" for what, number in log.assumed.items()]
    return [*notes, *([f"learnt before the measuring begins, and not measured ({before})"] if before else [])]


def _warnings(size: SliceSize, shown: int, first: int) -> list[str]:
    """Return why figures may mislead.

    Args:
        shown: of how many measured searches the log says what was shown.
        first: at how many of these the first result was clicked.
    """
    warnings = []
    if size.is_too_small:
        warnings.append(
            f"{size.searches} measured searches of {size.users} users are too few to tell; it takes "
            f"{FEWEST_SEARCHES} of {FEWEST_USERS} at least, and more for small differences"
        )
    if shown < size.searches:
        warnings.append(
            f"what was shown was not logged for {size.searches - shown} of {size.searches} measured "
            f"searches: it is taken to be plain search's first {SHOWN}, and what was clicked. People clicked "
            "on another list than that, and a method that imitates it, such as counts of clicks, looks "
            "better than it is"
        )
    if shown:
        warnings.append(
            f"{shown} of {size.searches} measured searches were answered with a logged list, whose first "
            f"result was clicked in {first / shown:.0%}: people click what stands high, so a method that "
            "ranks as that list did looks better than it is"
        )
    return warnings
