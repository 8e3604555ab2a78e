"""What past queries do to one query: those of the user's own, those that others share, or both.

The formulas stand in ``personal``. Axes: J memories of the user's own · Q parts of the query · D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import NearMemories, OwnPast, QueryMemory, SharedMemory
from embedding_studio.embeddings.own_past import own_weights
from embedding_studio.embeddings.personal import (
    ObjectGates,
    closeness_of,
    gates,
    gates_at,
    object_factors,
    object_gates,
    shared_evidence,
    shared_threshold,
    shift_query,
    unlike_factors,
)

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What others clicked for near queries: as one memory (eq. 9), and object by object (eq. 11).

    Attributes:
        gate: 0 where no query is near enough for the query to be shifted.
        factors: object_id -> what its distance is multiplied by.
    """

    users: int
    gate: float
    clicked_mean: Vectors
    factors: Mapping[str, float]

    @classmethod
    def of(
        cls,
        index: SearchIndexInfo,
        query: Vectors,
        near: Sequence[SharedMemory],
        *,
        threshold: float,
        min_users: int,
    ) -> Self | None:
        """Return what others say for near queries; None where that is nothing.

        Args:
            threshold: of the gate for the user's own past.
        """
        if not near:
            return None
        closeness = closeness_of(index, query, np.stack([memory.query for memory in near]))
        reached = gates_at(closeness, shared_threshold(threshold))
        heard = np.flatnonzero(reached)
        if not len(heard):
            return None
        said, reached, opened = (
            [near[m] for m in heard.tolist()],
            reached[heard],
            gates_at(closeness[heard], threshold),
        )
        users = [memory.users for memory in said]
        means = np.stack([memory.clicked_mean for memory in said])
        gate, mean = shared_evidence(opened, users, means, min_users=min_users) or (0.0, means[0])
        factors = object_factors(reached, users, [memory.seen for memory in said], min_users=min_users)
        return cls(sum(users), gate, mean, factors) if gate or factors else None


@dataclass(frozen=True, slots=True, eq=False)
class Bend:
    """What past queries do to one query; there is one at least, or something shared.

    Attributes:
        memories: J of the user's own.
        gates: [J], all > 0.
        weights: [J], how much each counts by its kind and age, all > 0.
        strength: alpha of eq. 2.
    """

    memories: Sequence[QueryMemory]
    gates: Floats
    weights: Floats
    shared: Shared | None
    strength: float

    @classmethod
    def of(
        cls,
        index: SearchIndexInfo,
        query: Vectors,
        near: NearMemories,
        *,
        threshold: float,
        strength: float,
        min_users: int,
        own_past: OwnPast | None,
        now: int,
    ) -> Self | None:
        """Return what near memories do to a query; None where all gates are closed.

        Args:
            query: [D], the mean over the query's parts.
            threshold: of the gate.
            min_users: no user may count for more than one part in so many of what is shared.
            own_past: how much the user's own past counts; None: in full.
            now: UTC seconds of the search.
        """
        own, own_gates = _open(index, query, near.own, threshold)
        own, own_gates, weights = _weighed(own, own_gates, own_past, now)
        shared = Shared.of(index, query, near.shared, threshold=threshold, min_users=min_users)
        return cls(own, own_gates, weights, shared, strength) if own or shared else None

    def shifted(self, index: SearchIndexInfo, queries: Vectors) -> Vectors:
        """Return the parts of the query [Q, D] after the shift (eq. 2)."""
        opened, means = self.gates * self.weights, [memory.clicked_mean for memory in self.memories]
        if self.shared is not None and self.shared.gate > 0:
            opened, means = np.append(opened, self.shared.gate), [*means, self.shared.clicked_mean]
        if not means:
            return queries
        return shift_query(index, queries, opened, np.stack(means), self.strength)

    def object_gates(self) -> ObjectGates:
        """Return object_id -> how much the user's own vectors count (eq. 5)."""
        return object_gates(self.gates, [memory.moved_ids for memory in self.memories], self.weights)

    def object_factors(self) -> Mapping[str, float]:
        """Return object_id -> what its distance is multiplied by (eqs. 11 to 13)."""
        factors: Mapping[str, float] = {} if self.shared is None else self.shared.factors
        unlike = unlike_factors(
            min(1.0, self.strength) * self.gates * self.weights,
            [memory.clicked_ids for memory in self.memories],
            [memory.likeness for memory in self.memories],
        )
        if not unlike:
            return factors
        return {**factors, **{name: factor * factors.get(name, 1.0) for name, factor in unlike.items()}}

    def alone(self, j: int) -> Self:
        """Return what one of the user's past queries would do by itself."""
        one = slice(j, j + 1)
        return replace(
            self, memories=self.memories[one], gates=self.gates[one], weights=self.weights[one], shared=None
        )

    def shared_alone(self) -> Self:
        """Return what others' clicks would do by themselves."""
        return replace(self, memories=(), gates=self.gates[:0], weights=self.weights[:0])


def _open(
    index: SearchIndexInfo, query: Vectors, near: Sequence[QueryMemory], threshold: float
) -> tuple[list[QueryMemory], Floats]:
    """Return the memories whose gates are open for a query, and those gates."""
    if not near:
        return [], np.zeros(0)
    of_near = gates(index, query, np.stack([memory.query for memory in near]), threshold)
    return [memory for memory, gate in zip(near, of_near, strict=True) if gate > 0], of_near[of_near > 0]


def _weighed(
    own: list[QueryMemory], own_gates: Floats, own_past: OwnPast | None, now: int
) -> tuple[list[QueryMemory], Floats, Floats]:
    """Return the user's memories that count at all, with their gates and weights."""
    if own_past is None or not own:
        return own, own_gates, np.ones(len(own))
    weights = own_weights(own_past, own_gates, [now - memory.created_at for memory in own])
    counting = weights > 0
    memories = [memory for memory, counts in zip(own, counting.tolist(), strict=True) if counts]
    return memories, own_gates[counting], weights[counting]
