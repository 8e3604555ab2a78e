"""Simulated users live with a method, session by session, and what they find is measured.

Each session: rank by the user's present state, show ten, simulate clicks, learn. After 1, 3 and all
sessions, and before the first where others searched beforehand, every slice is ranked again and compared
with the baseline, which is plain search unless another method is named, query by query.
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
from embedding_studio.evaluation.users import SimulatedUser, wording
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
        kept: of the baseline's ten results, how many are among the method's ten, whatever their order.
    """

    users: int
    plain: float
    ndcg: float
    difference: PairedDifference
    identical: float
    kept: float


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
        others: users who searched for each user's wish before the user did.
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
    others: int
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
    others: int = 0,
    seed: int = 0,
    baseline: str = PLAIN,
    open_storage: Callable[[], Storage] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Let the same users live with each method, and compare each with the baseline.

    Args:
        methods: by name; each is opened on a storage of its own.
        clicks: a name from ``CLICK_MODELS``.
        others: so many other users for each one search for the same wish beforehand, each once; then it is
            also measured what users find who have not searched yet.
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
                others=others,
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
        others,
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
    others: int,
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

    def served(
        user: SimulatedUser, user_id: str, query: JudgedQuery, number: int, draw: int
    ) -> ServedSession | None:
        """Return one session; None without a click."""
        shown = method.serve(user_id, query, number)
        draws = click_draws(seed, user.number, draw, CUTOFF)
        chosen = clicks.clicked(shown, query.grades, highest_grade=highest_grade, draws=draws)
        return ServedSession(user_id, number, query, tuple(shown), tuple(chosen)) if chosen else None

    def found() -> list[list[Ranked]]:
        return [method.rank(_user_id(user), query) for user, _, query in asked]

    for other in range(others):
        each = [
            served(user, f"other-{user.number}-{other}", wording(user, other), 0, sessions + other)
            for user in users
        ]
        method.learn([session for session in each if session is not None])
    if others:
        after[0] = found()
    for number in range(sessions):
        each = [served(user, _user_id(user), user.issued[number], number, number) for user in users]
        clicked = [session for session in each if session is not None]
        started = time.perf_counter()
        method.learn(clicked)
        learning_seconds += time.perf_counter() - started
        clicked_sessions += len(clicked)
        if number + 1 in checkpoints:
            after[number + 1] = found()
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
        kept = np.array([_common(one, other) for one, other in zip(mine, others, strict=True)], float)
        measured = np.stack([plain, _ndcg(mine, asked), _ndcg(others, asked), identical, kept])
        after[sessions] = {
            slice_name: _slice(measured, _rows_of_users(asked, slice_name), rng)
            for slice_name in _slice_names(users)
        }
    milliseconds = 1000 * life.learning_seconds / max(life.clicked_sessions, 1)
    return MethodResult(name, after, milliseconds, life.clicked_sessions)


def _slice(
    measured: NDArray[np.float64], rows_of_users: Sequence[Sequence[int]], rng: np.random.Generator
) -> SliceResult:
    """Return one slice; ``measured`` holds plain, mine, other, identical and kept, a column a query."""
    plain, mine, other, _, kept = np.stack([measured[:, rows].mean(axis=1) for rows in rows_of_users], axis=1)
    return SliceResult(
        users=len(rows_of_users),
        plain=float(plain.mean()),
        ndcg=float(mine.mean()),
        difference=paired_difference(mine - other, rng),
        identical=float(measured[3, list(itertools.chain(*rows_of_users))].mean()),
        kept=float(kept.mean()),
    )


def _common(one: Sequence[Ranked], other: Sequence[Ranked]) -> int:
    return len({object_id for object_id, _ in one} & {object_id for object_id, _ in other})


def _asked(users: Sequence[SimulatedUser]) -> list[_Asked]:
    return [
        (user, slice_name, query)
        for user in users
        for slice_name, queries in user.slices.items()
        for query in queries
    ]


def _slice_names(users: Sequence[SimulatedUser]) -> list[str]:
    """Return the slices that any user has, in the order of those who have most of them."""
    most_first = sorted(users, key=lambda user: -len(user.slices))
    return list(dict.fromkeys(slice_name for user in most_first for slice_name in user.slices))


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
