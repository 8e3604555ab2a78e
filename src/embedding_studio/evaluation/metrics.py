"""nDCG@10, and how sure a difference is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import EmbeddingStudioError

CUTOFF = 10
RESAMPLES = 2_000
NOTICEABLE = 0.01


def ndcg_at_10(rankings: Sequence[Sequence[str]], grades: Sequence[Mapping[str, int]]) -> NDArray[np.float64]:
    """Return the nDCG@10 of each ranking, in [0, 1], under its own grades.

    Gain is the grade itself and the discount log2(rank + 1), as trec_eval has it; computed by
    ir-measures, so the numbers compare with those of other publications.

    Raises:
        EmbeddingStudioError: ir-measures is not installed.

    >>> ndcg_at_10([["b", "a"]], [{"a": 1, "b": 3}])
    array([1.])
    """
    try:
        from ir_measures import iter_calc, nDCG
    except ImportError as error:
        raise EmbeddingStudioError(
            "evaluating needs the extra 'evaluate'; pip install 'embedding-studio[evaluate]'"
        ) from error
    names = [str(number) for number in range(len(rankings))]
    runs = {
        name: {object_id: float(-rank) for rank, object_id in enumerate(ranking)}
        for name, ranking in zip(names, rankings, strict=True)
        if len(ranking)
    }
    values = np.zeros(len(rankings))
    judged = {name: dict(graded) for name, graded in zip(names, grades, strict=True)}
    for metric in iter_calc([nDCG @ CUTOFF], judged, runs):
        values[int(metric.query_id)] = metric.value
    return values


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How a method differs from another, or from plain search, over users.

    Attributes:
        low, high: 95 % bootstrap interval of the mean over users.
        better, worse: share of users whose mean differs by more than .01.
    """

    mean: float
    low: float
    high: float
    better: float
    worse: float


def paired_difference(differences: NDArray[np.float64], rng: np.random.Generator) -> PairedDifference:
    """Return the mean of the users' differences with a percentile interval.

    Args:
        differences: [U], one mean difference a user, U >= 1.
    """
    U = len(differences)
    means = differences[rng.integers(U, size=(RESAMPLES, U))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return PairedDifference(
        mean=float(differences.mean()),
        low=float(low),
        high=float(high),
        better=float((differences > NOTICEABLE).mean()),
        worse=float((differences < -NOTICEABLE).mean()),
    )
