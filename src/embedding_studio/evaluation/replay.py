"""A log lived through again: each search ranked at its own time by each method, then its clicks are learnt.

Nothing comes from the future: a search sees the clicks that were made before its own second began, of the
sessions before it. Each method is compared with plain search, search by search.

Axes: N measured searches · U users · M methods · K metrics · R resamples.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.errors import InvalidInputError, counted, plural
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.metrics import CUTOFF, NOTICEABLE, RESAMPLES
from embedding_studio.evaluation.replay_processes import OpenMethod, Played, play, ranks_of
from embedding_studio.evaluation.replay_steps import SLICE_MEANINGS, Steps, steps_of
from embedding_studio.evaluation.replayed_methods import PlainSearch
from embedding_studio.evaluation.session_log import SessionLog
from embedding_studio.storage.ports import Vectors

METRICS = ("reciprocal_rank", "ndcg@10", "hit@1", "hit@5")
FEWEST_SEARCHES = 100
FEWEST_USERS = 20


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
        places_kept: of plain search's first ten, so many are among the method's; mean over searches.
    """

    metrics: Mapping[str, Measured]
    users_better: float
    users_worse: float
    places_kept: float


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
                    | {
                        "users_better": found.users_better,
                        "users_worse": found.users_worse,
                        "places_kept": found.places_kept,
                    }
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
    methods: Mapping[str, OpenMethod],
    *,
    plain: PlainSearch,
    index: SearchIndexInfo,
    gate_threshold: float,
    query_vectors: Mapping[str, Vectors],
    measure_from: int | None = None,
    seed: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> Replay:
    """Return how methods would have ranked what users of a log clicked.

    Args:
        methods: by name; each opens one that has seen nothing of the log yet.
        plain: what methods are compared with, and what was shown where the log does not say so.
        gate_threshold: the cosine from which on two queries are near.
        query_vectors: text -> [Q, D], for sessions that bring no vectors.
        measure_from: UTC milliseconds; what was searched before is learnt, and not measured.
        seed: of the bootstrap.
        processes: so many methods at once, each in another process; they change no figure.

    Raises:
        InvalidInputError: nothing is left to measure.
        EmbeddingStudioError: a method failed.
    """
    steps = steps_of(
        log,
        plain=plain,
        index=index,
        gate_threshold=gate_threshold,
        query_vectors=query_vectors,
        measure_from=measure_from,
        progress=progress,
    )
    measured = steps.measured
    if not measured:
        raise InvalidInputError(_nothing_to_measure(steps))
    played = play(steps.each, methods, processes=processes, progress=progress)
    sizes, results = _results(steps, played, seed)
    return Replay(
        sessions=len(log.sessions),
        slices=sizes,
        methods=results,
        left_out=dict(steps.left_out),
        notes=[*_reading(log, steps.before), *_untaught(played)],
        warnings=_warnings(sizes["all"], steps.shown, steps.first),
        ranks={
            name: {step.search.session_id: ranks for step, ranks in zip(measured, each.ranks, strict=True)}
            for name, each in played.items()
        },
    )


def values_of(ranks: Sequence[int | None]) -> list[float]:
    """Return ``METRICS`` of a ranking, where each clicked object is worth the same.

    >>> values_of([2, None])
    [0.5, 0.387, 0.0, 1.0]
    """
    found = [rank for rank in ranks if rank is not None]
    best = float(min(found, default=math.inf))
    gain = sum(1 / np.log2(1 + rank) for rank in found if rank <= CUTOFF)
    ideal = sum(1 / np.log2(1 + rank) for rank in range(1, min(len(ranks), CUTOFF) + 1))
    return [1 / best, float(gain / ideal), float(best <= 1), float(best <= 5)]


def _slices(steps: Steps) -> dict[str, list[int]]:
    """Return slice -> rows of measured searches; those of months only where there is more than one month."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, step in enumerate(steps.measured):
        for name in step.slices:
            rows[name].append(row)
    months = sorted(rows.keys() - SLICE_MEANINGS.keys())
    return {
        name: rows[name] for name in (*SLICE_MEANINGS, *(months if len(months) > 1 else ())) if name in rows
    }


def _results(
    steps: Steps, played: Mapping[str, Played], seed: int
) -> tuple[dict[str, SliceSize], dict[str, dict[str, ReplayedSlice]]]:
    """Return slice -> its size, and method -> slice -> result."""
    searches = [step.search for step in steps.measured]
    plain = [ranks_of(step.search.plain, step.clicked) for step in steps.measured]
    ranks = [plain, *(each.ranks for each in played.values())]
    values = np.array(  # [N, 1 + M, K]
        [[values_of(of_one) for of_one in of_search] for of_search in zip(*ranks, strict=True)]
    )
    kept = np.array([each.places_kept for each in played.values()])  # [M, N]
    sizes: dict[str, SliceSize] = {}
    results: dict[str, dict[str, ReplayedSlice]] = {name: {} for name in played}
    for name, rows in _slices(steps).items():
        users = [searches[row].user_id for row in rows]
        meaning = SLICE_MEANINGS.get(name, f"searches of the month {name}")
        sizes[name] = SliceSize(len(rows), len(set(users)), meaning)
        for method, result in zip(
            played, compared(users, values[rows], kept[:, rows].mean(axis=1), seed), strict=True
        ):
            results[method][name] = result
    return sizes, results


def compared(
    user_ids: Sequence[str], values: NDArray[np.float64], kept: NDArray[np.float64], seed: int
) -> list[ReplayedSlice]:
    """Return what each method comes to; users are resampled with all their searches.

    Args:
        user_ids: [N], who searched.
        values: [N, 1 + M, K], plain search first.
        kept: [M], mean places kept.
    """
    number: dict[str, int] = {}
    users = np.array([number.setdefault(user_id, len(number)) for user_id in user_ids])
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
            places_kept=float(kept[m]),
        )
        for m in range(M)
    ]


def _nothing_to_measure(steps: Steps) -> str:
    number = steps.before
    before = f"{counted(number, 'search is', 'searches are')} before the measuring begins"
    reasons = [before] if number else []
    reasons += [f"{number} x {reason}" for reason, number in steps.left_out.items()]
    return f"there is no search to measure: {'; '.join(reasons) or 'the log is empty'}"


def _reading(log: SessionLog, before: int) -> list[str]:
    notes = [f"times are given in {unit} ({number})" for unit, number in log.units.items()]
    notes += [f"{what} ({number})" for what, number in log.assumed.items()]
    return [*notes, *([f"learnt before the measuring begins, and not measured ({before})"] if before else [])]


def _untaught(played: Mapping[str, Played]) -> list[str]:
    return [
        f"{name} learnt nothing from {counted(len(each.untaught), 'session')} in which "
        f"something was clicked, such as: {next(iter(each.untaught.values()))}"
        for name, each in played.items()
        if each.untaught
    ]


def _warnings(size: SliceSize, shown: int, first: int) -> list[str]:
    """Return why figures may mislead.

    Args:
        shown: of how many measured searches the log says what was shown.
        first: at how many of these the first result was clicked.
    """
    warnings = []
    if size.is_too_small:
        warnings.append(
            f"{counted(size.searches, 'measured search', 'measured searches')} of "
            f"{counted(size.users, 'user')} are too few to tell; it takes {FEWEST_SEARCHES} of "
            f"{FEWEST_USERS} at least, and more for small differences"
        )
    if shown < size.searches:
        warnings.append(
            f"what was shown was not logged for {size.searches - shown} of {size.searches} measured "
            f"searches, so only clicks are learnt from there, and nothing is passed over. People clicked on "
            "another list than plain search's, and a method that imitates it, such as counts of clicks, "
            "looks better than it is"
        )
    if shown:
        warnings.append(
            f"{shown} of {size.searches} measured searches {plural(shown, 'was', 'were')} answered with a "
            f"logged list, whose first result was clicked in {first / shown:.0%}: people click what stands "
            "high, so a method that ranks as that list did looks better than it is"
        )
    return warnings
