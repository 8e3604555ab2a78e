"""How much a user's own past counts in a collection: learnt from whether people come back for the same.

Some come back for what they clicked before (documentation, orders), some for something else (a shop, where
who bought one is done). A search for which past queries of its user are near is told apart by what is asked
and how long ago: the same query again or a near one, within a day or later. Of n_b such searches, in a_b
something was clicked that had been clicked for those past queries, and their gates count by

    w_b = clip((p_b - 1/4) / (1/2 - 1/4), 0, 1),    p_b = (3 + a_b) / (5 + n_b)                   eq. 14

What was clicked before is then shown first. Where the first result of plain search is what is wanted in four
or five of ten searches, that gains where it is right in more than about a quarter of them. No user counts as
more than three searches of a kind. As long as nothing is known w_b is 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import OwnPast, QueryMemory
from embedding_studio.embeddings.personal import EXACT, gates

Floats = NDArray[np.float64]

SOON_SECONDS = 86_400
"""What is clicked within a day is often of the same errand; later, people come back."""

WORTHLESS, CERTAIN = 0.25, 0.5
"""Shares of searches in which the same was clicked: up to the first the past says nothing, from the second on
it counts in full."""

EXPECTED_SEARCHES, EXPECTED_AGAIN = 5.0, 3.0
"""As if so many had been seen, and in so many of them the same had been clicked again."""

MOST_OF_ONE_USER = 3.0


class Kind(StrEnum):
    """Of past queries that are near to a search; the names are those of the fields of ``OwnPast``."""

    REPEATED_SOON = "repeated_soon"
    REPEATED_LATER = "repeated_later"
    NEAR_SOON = "near_soon"
    NEAR_LATER = "near_later"


@dataclass(slots=True)
class Returns:
    """How often people came back for what they had clicked.

    Attributes:
        searches: kind -> how many had past queries of this kind; not whole, for no user counts for too many.
        again: kind -> in how many of them something was clicked that had been clicked for one of these.
    """

    searches: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(Kind, 0.0))
    again: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(Kind, 0.0))

    def weights(self) -> OwnPast:
        """Return eq. 14, to two decimals.

        >>> Returns().weights()
        OwnPast(repeated_soon=1.0, repeated_later=1.0, near_soon=1.0, near_later=1.0)
        """
        return OwnPast(**{kind.value: self._weight(kind) for kind in Kind})

    def _weight(self, kind: Kind) -> float:
        share = (EXPECTED_AGAIN + self.again[kind]) / (EXPECTED_SEARCHES + self.searches[kind])
        return round(min(1.0, max(0.0, (share - WORTHLESS) / (CERTAIN - WORTHLESS))), 2)


def returns_of(index: SearchIndexInfo, users: Iterable[Sequence[QueryMemory]], threshold: float) -> Returns:
    """Return how often users came back for what they had clicked.

    Args:
        users: the memories of each.
        threshold: of the gate.
    """
    returns = Returns()
    for memories in users:
        counted: dict[Kind, list[bool]] = defaultdict(list)
        in_time = sorted(memories, key=lambda memory: (memory.created_at, memory.session_id))
        for number, memory in enumerate(in_time[1:], start=1):
            for kind, clicked_before in _clicked_before(index, memory, in_time[:number], threshold).items():
                counted[kind].append(not clicked_before.isdisjoint(memory.clicked_ids))
        for kind, again in counted.items():
            counts_as = min(float(len(again)), MOST_OF_ONE_USER)
            returns.searches[kind] += counts_as
            returns.again[kind] += counts_as * sum(again) / len(again)
    return returns


def own_weights(past: OwnPast, gates: Floats, ages: Sequence[int]) -> Floats:
    """Return how much past queries count: [J], in [0, 1].

    Args:
        gates: [J], how near they are.
        ages: [J], seconds ago.
    """
    of_kind = [getattr(past, kind.value) for kind in _kinds(gates, ages)]
    return np.array(of_kind, dtype=np.float64)


def _kinds(gates: Floats, ages: Sequence[int]) -> list[Kind]:
    return [
        (Kind.REPEATED_SOON if age < SOON_SECONDS else Kind.REPEATED_LATER)
        if gate >= EXACT
        else (Kind.NEAR_SOON if age < SOON_SECONDS else Kind.NEAR_LATER)
        for gate, age in zip(gates.tolist(), ages, strict=True)
    ]


def _clicked_before(
    index: SearchIndexInfo, memory: QueryMemory, earlier: Sequence[QueryMemory], threshold: float
) -> dict[Kind, set[str]]:
    """Return kind -> what had been clicked for past queries of this kind, of those near to one."""
    near = gates(index, memory.query, np.stack([each.query for each in earlier]), threshold)
    kinds = _kinds(near, [memory.created_at - each.created_at for each in earlier])
    clicked: dict[Kind, set[str]] = {}
    for each, kind, gate in zip(earlier, kinds, near.tolist(), strict=True):
        if gate > 0:
            clicked.setdefault(kind, set()).update(each.clicked_ids)
    return clicked
