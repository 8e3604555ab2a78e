"""Simulated users live with a method, session by session, and what they find is measured.

Each session: rank by the user's present state, show ten, simulate clicks, learn. After 1, 3 and all
sessions every slice is ranked anew and compared with the baseline, which is plain search unless another
method is named, query by query.
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
from embedding_studio.evaluation.methods import (
    PLAIN,
    Method,
    OpenMethod,
    Ranked,
    ServedSession,
    methods_by_name,
)
from embedding_studio.evaluation.metrics import CUTOFF, PairedDifference, ndcg_at_10, paired_difference
from embedding_studio.evaluation.users import SimulatedUser
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage

CHECKPOINTS = (1, 3)
_Asked = tuple[SimulatedUser, str, JudgedQuery]
"""Who asks, in which slice, and what."""


@dataclass(frozen=True, slots=True)
class SliceResult:
    """One slice of the queries, measured for all users after some sessions.

    Attributes:
        users: those that have queries in this slice.
        plain: mean nDCG@10 of plain search, mean over users.
        ndcg: the same with the method.
        difference: to the baseline after as many sessions.
        identical: share of ranked lists that are the same as the baseline's, objects and distances.
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
        baseline: what each method is compared with: ``plain``, or a name from ``METHODS``.
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
    baseline: str
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
    baseline: str = PLAIN,
    open_storage: Callable[[], Storage] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Let the same users live with each method, and compare each with the baseline.

    Args:
        methods: by name; each is opened on a storage of its own.
        clicks: a name from ``CLICK_MODELS``.
        baseline: ``plain``, or a name from ``METHODS``; if it is not one of the methods, users live with it
            too, but it is not reported.
        open_storage: where the methods keep their objects, sessions and states; in memory if absent.

    Raises:
        InvalidInputError: there are no such clicks, no such baseline, or no users.
    """
    model = click_model(clicks)
    if not users:
        raise InvalidInputError("an evaluation needs at least one user")
    unreported = {} if baseline in (PLAIN, *methods) else methods_by_name([baseline])
    lives = {}
    for name, open_method in {**methods, **unreported}.items():
        with (
            closing((open_storage or MemoryStorage)()) as storage,
            closing(open_method(storage, collection)) as method,
        ):
            lives[name] = _live(
                name,
                method,
                users,
                model,
                highest_grade=_highest_grade(users),
                seed=seed,
                progress=progress,
            )
    compared = None if baseline == PLAIN else lives[baseline]
    return Evaluation(
        collection.name,
        len(collection.item_ids),
        len(collection.queries),
        collection.metric,
        collection.aggregation,
        collection.most_parts,
        clicks,
        len(users),
        len(users[0].issued),
        seed,
        baseline,
        {
            name: _measured(name, lives[name], compared, users, np.random.default_rng(seed))
            for name in methods
        },
    )


@dataclass(frozen=True, slots=True)
class _Life:
    """What users found with one method.

    Attributes:
        plain: for each query that is measured, user by user and slice by slice, what plain search finds.
        after: number of sessions -> the same with the method.
    """

    plain: list[list[Ranked]]
    after: Mapping[int, list[list[Ranked]]]
    learning_seconds: float
    clicked_sessions: int


def _live(
    name: str,
    method: Method,
    users: Sequence[SimulatedUser],
    clicks: ClickModel,
    *,
    highest_grade: int,
    seed: int,
    progress: Progress | None,
) -> _Life:
    asked = _asked(users)
    plain = {
        id(query): method.rank(None, query) for query in {id(each): each for _, _, each in asked}.values()
    }
    sessions = len(users[0].issued)
    checkpoints = {*(point for point in CHECKPOINTS if point <= sessions), sessions}
    after: dict[int, list[list[Ranked]]] = {}
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
            after[number + 1] = [method.rank(_user_id(user), query) for user, _, query in asked]
        if progress is not None:
            progress(name, number + 1, sessions)
    return _Life([plain[id(query)] for _, _, query in asked], after, learning_seconds, clicked_sessions)


def _measured(
    name: str, life: _Life, baseline: _Life | None, users: Sequence[SimulatedUser], rng: np.random.Generator
) -> MethodResult:
    """Return what a method did; ``baseline`` None: compared with plain search."""
    asked = _asked(users)
    plain = _ndcg(life.plain, asked)
    after = {}
    for sessions, mine in life.after.items():
        others = life.plain if baseline is None else baseline.after[sessions]
        identical = np.array([one == other for one, other in zip(mine, others, strict=True)], float)
        measured = np.stack([plain, _ndcg(mine, asked), _ndcg(others, asked), identical])
        after[sessions] = {
            slice_name: _slice(measured, _rows_of_users(asked, slice_name), rng)
            for slice_name in dict.fromkeys(slice_name for _, slice_name, _ in asked)
        }
    milliseconds = 1000 * life.learning_seconds / max(life.clicked_sessions, 1)
    return MethodResult(name, after, milliseconds, life.clicked_sessions)


def _slice(
    measured: NDArray[np.float64], rows_of_users: Sequence[Sequence[int]], rng: np.random.Generator
) -> SliceResult:
    """Return one slice; ``measured`` holds rows of plain, mine, other and identical, a column a query."""
    plain, mine, other, _ = np.stack([measured[:, rows].mean(axis=1) for rows in rows_of_users], axis=1)
    return SliceResult(
        users=len(rows_of_users),
        plain=float(plain.mean()),
        ndcg=float(mine.mean()),
        difference=paired_difference(mine - other, rng),
        identical=float(measured[3, list(itertools.chain(*rows_of_users))].mean()),
    )


def _asked(users: Sequence[SimulatedUser]) -> list[_Asked]:
    return [
        (user, slice_name, query)
        for user in users
        for slice_name, queries in user.slices.items()
        for query in queries
    ]


def _rows_of_users(asked: Sequence[_Asked], slice_name: str) -> list[list[int]]:
    """Return the rows of one slice, for each user who has some."""
    rows_of: dict[int, list[int]] = {}
    for row, (user, of_slice, _) in enumerate(asked):
        if of_slice == slice_name:
            rows_of.setdefault(user.number, []).append(row)
    return list(rows_of.values())


def _ndcg(found: Sequence[Sequence[Ranked]], asked: Sequence[_Asked]) -> NDArray[np.float64]:
    rankings = [[object_id for object_id, _ in ranked] for ranked in found]
    return ndcg_at_10(rankings, [query.grades for _, _, query in asked])


def _user_id(user: SimulatedUser) -> str:
    return f"user-{user.number}"


def _highest_grade(users: Sequence[SimulatedUser]) -> int:
    queries: itertools.chain[JudgedQuery] = itertools.chain(*(user.issued for user in users))
    return max((grade for query in queries for grade in query.grades.values()), default=1)
