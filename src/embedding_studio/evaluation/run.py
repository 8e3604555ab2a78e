"""Simulated users live with a method, session by session, and what they find is measured.

Each session: rank by the user's present state, show ten, simulate clicks, learn. After 1, 3 and all
sessions every slice is ranked anew and compared with plain search, query by query.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.errors import InvalidInputError
from embedding_studio.evaluation.clicks import ClickModel, click_draws, click_model
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery, Progress
from embedding_studio.evaluation.methods import Method, OpenMethod, Ranked, ServedSession
from embedding_studio.evaluation.metrics import CUTOFF, PairedDifference, ndcg_at_10, paired_difference
from embedding_studio.evaluation.users import SimulatedUser
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage

CHECKPOINTS = (1, 3)


@dataclass(frozen=True, slots=True)
class SliceResult:
    """One slice of the queries, measured for all users after some sessions.

    Attributes:
        users: those that have queries in this slice.
        plain: mean nDCG@10 of plain search, mean over users.
        ndcg: the same with the method.
        identical: share of ranked lists that are the same as plain, objects and distances.
    """

    users: int
    plain: float
    ndcg: float
    difference: PairedDifference
    identical: float


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one method did.

    Attributes:
        after: number of sessions -> slice -> result.
        milliseconds_per_session: wall time to learn, over the sessions with a click.
        clicked_sessions: sessions with at least one click.
    """

    name: str
    after: Mapping[int, Mapping[str, SliceResult]]
    milliseconds_per_session: float
    clicked_sessions: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Methods compared on one collection with the same users, queries and chances.

    Attributes:
        parts: the most that an item has.
    """

    collection: str
    items: int
    queries: int
    metric: MetricType
    aggregation: MetricAggregationType
    parts: int
    clicks: str
    users: int
    sessions: int
    seed: int
    methods: Mapping[str, MethodResult]

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON; equal runs differ in ``milliseconds_per_session`` alone."""
        return asdict(self)


def compare(
    collection: JudgedCollection,
    users: Sequence[SimulatedUser],
    methods: Mapping[str, OpenMethod],
    *,
    clicks: str = "standard",
    seed: int = 0,
    open_storage: Callable[[], Storage] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Let the same users live with each method, and compare each with plain search.

    Args:
        methods: by name; each is opened on a storage of its own.
        clicks: a name from ``CLICK_MODELS``.
        open_storage: where the methods keep their objects, sessions and states; in memory if absent.

    Raises:
        InvalidInputError: there are no such clicks, or no users.
    """
    model = click_model(clicks)
    if not users:
        raise InvalidInputError("an evaluation needs at least one user")
    sessions = len(users[0].issued)
    results = {}
    for name, open_method in methods.items():
        with (
            closing((open_storage or MemoryStorage)()) as storage,
            closing(open_method(storage, collection)) as method,
        ):
            results[name] = _live(
                name,
                method,
                users,
                model,
                highest_grade=_highest_grade(users),
                seed=seed,
                progress=progress,
            )
    return Evaluation(
        collection.name,
        len(collection.item_ids),
        len(collection.queries),
        collection.metric,
        collection.aggregation,
        collection.most_parts,
        clicks,
        len(users),
        sessions,
        seed,
        results,
    )


def _live(
    name: str,
    method: Method,
    users: Sequence[SimulatedUser],
    clicks: ClickModel,
    *,
    highest_grade: int,
    seed: int,
    progress: Progress | None,
) -> MethodResult:
    measured = _Measured(method, users, np.random.default_rng(seed))
    sessions = len(users[0].issued)
    checkpoints = sorted({*(point for point in CHECKPOINTS if point <= sessions), sessions})
    after: dict[int, Mapping[str, SliceResult]] = {}
    learning_seconds, clicked_sessions = 0.0, 0
    for number in range(sessions):
        served = []
        for user in users:
            query = user.issued[number]
            shown = method.serve(_user_id(user), query, number)
            chosen = clicks.clicked(
                shown,
                query.grades,
                highest_grade=highest_grade,
                draws=click_draws(seed, user.number, number, CUTOFF),
            )
            if chosen:
                served.append(ServedSession(_user_id(user), number, query, tuple(shown), tuple(chosen)))
        started = time.perf_counter()
        method.learn(served)
        learning_seconds += time.perf_counter() - started
        clicked_sessions += len(served)
        if number + 1 in checkpoints:
            after[number + 1] = measured.now()
        if progress is not None:
            progress(name, number + 1, sessions)
    return MethodResult(name, after, 1000 * learning_seconds / max(clicked_sessions, 1), clicked_sessions)


class _Measured:
    """What is to be measured, with plain search's answers, which never change."""

    def __init__(self, method: Method, users: Sequence[SimulatedUser], rng: np.random.Generator) -> None:
        self._method = method
        self._rng = rng
        self._asked = [
            (user, slice_name, query)
            for user in users
            for slice_name, queries in user.slices.items()
            for query in queries
        ]
        self._grades = [query.grades for _, _, query in self._asked]
        plain: dict[int, list[Ranked]] = {}
        for _, _, query in self._asked:
            if id(query) not in plain:
                plain[id(query)] = method.rank(None, query)
        self._plain = [plain[id(query)] for _, _, query in self._asked]
        self._plain_ndcg = ndcg_at_10([_ids(ranked) for ranked in self._plain], self._grades)

    def now(self) -> dict[str, SliceResult]:
        """Return slice -> result for the users' present states."""
        ranked = [self._method.rank(_user_id(user), query) for user, _, query in self._asked]
        ndcg = ndcg_at_10([_ids(found) for found in ranked], self._grades)
        identical = np.array([mine == plain for mine, plain in zip(ranked, self._plain, strict=True)], float)
        slices = dict.fromkeys(slice_name for _, slice_name, _ in self._asked)
        return {slice_name: self._slice(slice_name, ndcg, identical) for slice_name in slices}

    def _slice(
        self, slice_name: str, ndcg: NDArray[np.float64], identical: NDArray[np.float64]
    ) -> SliceResult:
        rows_of: dict[int, list[int]] = {}
        for row, (user, of_slice, _) in enumerate(self._asked):
            if of_slice == slice_name:
                rows_of.setdefault(user.number, []).append(row)
        plain = np.array([self._plain_ndcg[rows].mean() for rows in rows_of.values()])
        mine = np.array([ndcg[rows].mean() for rows in rows_of.values()])
        return SliceResult(
            users=len(rows_of),
            plain=float(plain.mean()),
            ndcg=float(mine.mean()),
            difference=paired_difference(mine - plain, self._rng),
            identical=float(identical[list(itertools.chain(*rows_of.values()))].mean()),
        )


def _ids(ranked: Sequence[Ranked]) -> list[str]:
    return [object_id for object_id, _ in ranked]


def _user_id(user: SimulatedUser) -> str:
    return f"user-{user.number}"


def _highest_grade(users: Sequence[SimulatedUser]) -> int:
    queries: itertools.chain[JudgedQuery] = itertools.chain(*(user.issued for user in users))
    return max((grade for query in queries for grade in query.grades.values()), default=1)
