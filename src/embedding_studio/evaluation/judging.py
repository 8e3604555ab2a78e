"""What settings that were found come to on searches that had no part in finding them.

Axes: N searches · K metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import counted
from embedding_studio.evaluation.replay import (
    FEWEST_USERS,
    METRICS,
    Difference,
    ReplayedSlice,
    compared,
    values_of,
)
from embedding_studio.evaluation.replay_processes import Played, ranks_of
from embedding_studio.evaluation.replay_steps import SLICE_MEANINGS, Step
from embedding_studio.evaluation.report import signed

Values = NDArray[np.float64]

IN_FORCE, FOUND = "in force", "found"
"""The methods that are judged."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One method against another, over some searches.

    Attributes:
        difference: in reciprocal rank.
        first: by how much more of the searches had what was clicked in the first place; a share.
        users_better, users_worse: share of users whose mean reciprocal rank differs by more than .01.
    """

    difference: Difference
    first: Difference
    users_better: float
    users_worse: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Some searches of the later part.

    Attributes:
        meaning: which.
        found_to_plain, found_to_in_force: None where nothing but the settings in force was found.
    """

    meaning: str
    searches: int
    users: int
    in_force_to_plain: Compared
    found_to_plain: Compared | None
    found_to_in_force: Compared | None


class Part:
    """The measured steps of a part, and what plain search comes to in them."""

    def __init__(self, steps: Sequence[Step], seed: int) -> None:
        self.measured = [step for step in steps if step.slices]
        self.users = [step.search.user_id for step in self.measured]
        self._plain = self._values([ranks_of(step.search.plain, step.clicked) for step in self.measured])
        self._seed = seed

    def against_plain(self, played: Played) -> ReplayedSlice:
        return self._compared(np.arange(len(self.users)), self._plain, self._values(played.ranks))

    def judged(self, meaning: str, rows: Sequence[int], played: Mapping[str, Played]) -> Judged:
        at = np.array(rows)
        in_force = self._values(played[IN_FORCE].ranks)
        found = self._values(played[FOUND].ranks) if FOUND in played else None
        return Judged(
            meaning,
            len(rows),
            len({self.users[row] for row in rows}),
            in_force_to_plain=_as_compared(self._compared(at, self._plain, in_force)),
            found_to_plain=None if found is None else _as_compared(self._compared(at, self._plain, found)),
            found_to_in_force=None if found is None else _as_compared(self._compared(at, in_force, found)),
        )

    def _values(self, ranks: Sequence[Sequence[int | None]]) -> Values:
        return np.array([values_of(each) for each in ranks])  # [N, K]

    def _compared(self, rows: NDArray[np.int_], to: Values, values: Values) -> ReplayedSlice:
        users = [self.users[row] for row in rows]
        both = np.stack([to[rows], values[rows]], axis=1)  # [N, 2, K]
        return compared(users, both, np.zeros(1), self._seed)[0]


def _as_compared(found: ReplayedSlice) -> Compared:
    return Compared(
        found.metrics[METRICS[0]].difference,
        found.metrics["hit@1"].difference,
        found.users_better,
        found.users_worse,
    )


def rows_judged(part: Part, earlier: Sequence[Step], slice_name: str) -> dict[str, tuple[str, list[int]]]:
    """Return name -> what searches of the later part these are, and which; the first decides."""
    users = {step.search.user_id for step in earlier}
    keys = {step.search.key for step in earlier}
    could = [row for row, step in enumerate(part.measured) if slice_name in step.slices]
    steps = part.measured
    rows = {
        slice_name: (SLICE_MEANINGS[slice_name], could),
        "all": (SLICE_MEANINGS["all"], list(range(len(steps)))),
        "new users": (
            "of these, by users who had not searched before the later part",
            [row for row in could if steps[row].search.user_id not in users],
        ),
        "new queries": (
            "of these, queries that no user had asked before the later part",
            [row for row in could if steps[row].search.key not in keys],
        ),
    }
    return {name: (meaning, at) for name, (meaning, at) in rows.items() if at}


def reasons_against(judged: Judged, max_worse: float) -> list[str]:
    """Return why what was found is not to be recommended; nothing where it is.

    Args:
        max_worse: the largest share of users that may fare worse than with plain search.
    """
    gain, over_plain = judged.found_to_in_force, judged.found_to_plain
    if gain is None or over_plain is None:
        most = f"at most {max_worse:.1%} of the users may fare worse than with plain search"
        return [f"of the settings tried none does better on the earlier searches, where {most}"]
    reasons = []
    apart, apart_from_plain = (
        round((each.users_better + each.users_worse) * judged.users) for each in (gain, over_plain)
    )
    if gain.difference.low <= 0:
        reasons.append(
            f"what did best on the earlier searches gains {interval(gain.difference)} in reciprocal rank on "
            "the later ones, so chance may have done it"
        )
    elif apart < FEWEST_USERS:
        reasons.append(
            f"what did best on the earlier searches makes a difference to "
            f"{counted(apart, 'user')} in the later ones, and it takes {FEWEST_USERS} to tell"
        )
    if over_plain.difference.low <= 0:
        reasons.append(f"it does not win against plain search there ({interval(over_plain.difference)})")
    elif apart_from_plain < FEWEST_USERS:
        reasons.append(
            f"for all but {counted(apart_from_plain, 'user')} it is as good as plain search there, "
            f"and it takes {FEWEST_USERS} to tell"
        )
    if over_plain.users_worse > max_worse:
        reasons.append(
            f"with it {over_plain.users_worse:.1%} of the users fare worse than with plain search there, and "
            f"{max_worse:.1%} may"
        )
    return reasons


def verdict(found: Mapping[str, object], reasons: Sequence[str], judged: Judged) -> str:
    """Return what is to be done, and why.

    Args:
        found: name of a setting -> value.
        reasons: why it is not recommended.
    """
    in_force, gain, over_plain = judged.in_force_to_plain, judged.found_to_in_force, judged.found_to_plain
    if reasons or gain is None or over_plain is None:
        loses = (
            f" The settings in force lose to plain search there ({interval(in_force.difference)}): on this "
            "log learning does not pay. See what is clicked, and by whom, before you change a setting."
        )
        return f"Leave it as it is: {'; '.join(reasons)}.{loses if in_force.difference.high < 0 else ''}"
    settings = " ".join(f"{name.upper()}={value}" for name, value in found.items())
    return (
        f"Set {settings}: on the later searches, which had no part in the choice, what was clicked stands "
        f"higher than with the settings in force, by {interval(gain.difference)} in reciprocal rank, and "
        f"than in plain search, by {interval(over_plain.difference)}; {over_plain.users_better:.1%} of the "
        f"users fare better than with plain search, {over_plain.users_worse:.1%} worse."
    )


def interval(difference: Difference) -> str:
    """Return a difference for people.

    >>> interval(Difference(0.0123, -0.001, 0.02))
    '+.012 [-.001, +.020]'
    """
    return f"{signed(difference.mean)} [{signed(difference.low)}, {signed(difference.high)}]"
