"""The lists from which a page is made, and why they are as they are.

Axes: Q parts of a query · D dimensions · R results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.explanations import Explanation, Influence, SharedInfluence
from embedding_studio.domain.filters import PayloadFilter, values
from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import (
    JSON,
    Collection,
    NearMemories,
    Neighbour,
    QueryMemory,
)
from embedding_studio.domain.sessions import MAX_REACH, SearchRequest, SortBy
from embedding_studio.embeddings.bend import Bend
from embedding_studio.embeddings.personal import ObjectGates, blend, weighed_distances
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.storage.attached import current_copies
from embedding_studio.storage.ports import Storage, Vectors

SORT_WINDOW = 1_000
"""So many of the nearest are sorted by a payload field where no ``max_distance`` says how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The lists from which one page is made, and why they are as they are.

    Attributes:
        queries: [Q, D], as given.
        filter: of the request, parsed.
        bend: None where the plain list is the only one.
        near: what is remembered for queries near to this one; None: that was not asked.
    """

    storage: Storage
    collection: Collection
    queries: Vectors
    request: SearchRequest
    filter: PayloadFilter | None
    user_id: str | None
    bend: Bend | None
    near: NearMemories | None = None

    def plain(self, count: int) -> list[Neighbour]:
        """Return the ``count`` nearest for anybody."""
        return self._nearest(self.queries, count)

    def ranked(self, count: int) -> list[Neighbour]:
        """Return the ``count`` nearest for this user, each object once, by (distance, object_id).

        Raises:
            OutdatedError: what is remembered is not what it was. It is checked here, first.
        """
        factors = self.bend.object_factors() if self.bend else {}
        found = self._bent(count, factors)
        if self.bend and factors:
            found = self._weighed(found, factors)
        furthest = self.request.max_distance
        return [each for each in found[:count] if furthest is None or each.distance <= furthest]

    def _bent(self, count: int, factors: Mapping[str, float]) -> list[Neighbour]:
        """Return the ``count`` nearest by originals and the user's own vectors, and what factors move."""
        shifted = self.bend.shifted(self.collection.index, self.queries) if self.bend else self.queries
        gate_of = self.bend.object_gates() if self.bend else ObjectGates()
        is_checked = self.near is None or self.near.is_checked
        if is_checked and not factors and (self.user_id is None or not gate_of):
            return self._nearest(shifted, count)
        return self.storage.personal.nearest(
            self.collection,
            self.user_id,
            shifted,
            count,
            gate_of,
            filter=self.filter,
            objects=self.storage.objects,
            own=self.near and self.near.read,
            named=factors,
        )

    def _weighed(self, found: list[Neighbour], factors: Mapping[str, float]) -> list[Neighbour]:
        """Return objects by their distances after what was done with them.

        Args:
            found: by their distances before that; those that have a factor as far as they may come near.
        """
        index = self.collection.index
        weighed = [each for each in found if each.object_id in factors]
        originals: list[Vectors] = []
        if index.metric_type is MetricType.DOT:  # lengths matter
            items = self.storage.objects.get(self.collection, [each.object_id for each in weighed])
            parts = {item.object_id: item.parts for item in items}
            weighed = [each for each in weighed if each.object_id in parts]  # the others are gone by now
            originals = [parts[each.object_id] for each in weighed]
        after = weighed_distances(
            index,
            self.queries,  # as long as after the shift
            np.array([each.distance for each in weighed]),
            np.array([factors[each.object_id] for each in weighed]),
            originals,
        )
        moved = [
            Neighbour(each.object_id, distance, each.payload)
            for each, distance in zip(weighed, after.tolist(), strict=True)
        ]
        unmoved = [each for each in found if each.object_id not in factors]
        return sorted(moved + unmoved, key=lambda each: (each.distance, each.object_id))

    def _distances(
        self, bend: Bend, originals: Mapping[str, Vectors], copies: Mapping[str, Vectors]
    ) -> NDArray[np.float64]:
        """Return [R], how far objects are by originals and the user's own vectors, whatever others did.

        Args:
            originals: object_id -> [P, D], R of them.
            copies: the same of those that the user has vectors of their own for.
        """
        index, gate_of = self.collection.index, bend.object_gates()
        shifted = bend.shifted(index, self.queries)
        blended = blend(
            similarities_of(index, shifted, list(originals.values())),
            similarities_of(index, shifted, [copies.get(name, parts) for name, parts in originals.items()]),
            np.array([gate_of.get(name, 0.0) for name in originals]),
        )
        return distances(index, blended)

    def _distances_after(
        self, bend: Bend, originals: Mapping[str, Vectors], copies: Mapping[str, Vectors]
    ) -> NDArray[np.float64]:
        """Return [R], as ``_distances``, after what others did too."""
        index, factors = self.collection.index, bend.object_factors()
        return weighed_distances(
            index,
            bend.shifted(index, self.queries),
            self._distances(bend, originals, copies),
            np.array([factors.get(name, 1.0) for name in originals]),
            list(originals.values()),
        )

    def before_and_after(
        self, bend: Bend, originals: Mapping[str, Vectors]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return [R] and [R], how far objects are for anybody, and for this user.

        Args:
            originals: object_id -> [P, D], R of them, at least one.
        """
        index, gate_of = self.collection.index, bend.object_gates()
        copies = self._copies([name for name in originals if name in gate_of])
        before = distances(index, similarities_of(index, self.queries, list(originals.values())))
        return before, self._distances_after(bend, originals, copies)

    def own_vectors(self, bend: Bend) -> dict[str, Vectors]:
        """Return object_id -> [P, D], the user's own vectors that take part in this search."""
        return self._copies(sorted(bend.object_gates()))

    def _copies(self, object_ids: Sequence[str]) -> dict[str, Vectors]:
        """Return object_id -> the user's own vectors, of those that have some."""
        if self.user_id is None or not object_ids:
            return {}
        return current_copies(self.storage, self.collection, self.user_id, object_ids)

    def sorted_by(self, sort_by: SortBy) -> tuple[list[Neighbour], bool]:
        """Return all within ``max_distance``, or the nearest ``SORT_WINDOW``, by a payload field.

        And whether any of them has a value there; else they stand by distance.
        """
        count = SORT_WINDOW
        found = self.ranked(count)
        while self.request.max_distance is not None and len(found) == count < MAX_REACH:
            count = min(4 * count, MAX_REACH)
            found = self.ranked(count)
        name, direction = sort_by
        valued = [(_sort_key(each.payload, name), each) for each in found]
        present = [(key, each) for key, each in valued if key is not None]
        present.sort(key=lambda pair: pair[0], reverse=direction == "descending")
        return [each for _, each in present] + [each for key, each in valued if key is None], bool(present)

    def _nearest(self, queries: Vectors, count: int) -> list[Neighbour]:
        """Return the ``count`` nearest by the originals."""
        return self.storage.objects.nearest(
            self.collection,
            queries,
            count,
            filter=self.filter,
            max_distance=self.request.max_distance,
        )

    def explanations(self, results: Sequence[Neighbour]) -> dict[str, Explanation]:
        """Return object_id -> why it stands where it does, for results of ``ranked`` that are bent."""
        if self.bend is None:
            return {}
        index = self.collection.index
        ids = [each.object_id for each in results]
        originals = {each.object_id: each.parts for each in self.storage.objects.get(self.collection, ids)}
        gate_of = self.bend.object_gates()
        copies = self._copies([object_id for object_id in ids if object_id in gate_of])
        there = [each for each in results if each.object_id in originals]  # the others are gone by now
        if not there:
            return {}
        of_there = {each.object_id: originals[each.object_id] for each in there}
        original = list(of_there.values())

        def distances_by(bend: Bend) -> NDArray[np.float64]:
            return self._distances_after(bend, of_there, copies)

        base = distances(index, similarities_of(index, self.queries, original))
        shifted = distances(index, similarities_of(index, self.bend.shifted(index, self.queries), original))
        changes = [distances_by(self.bend.alone(j)) - base for j in range(len(self.bend.memories))]
        counts = self.bend.gates * self.bend.weights
        widest_first = np.argsort(-counts, kind="stable").tolist()
        shared = self.bend.shared
        shared_changes = distances_by(self.bend.shared_alone()) - base if shared else base
        return {
            each.object_id: Explanation(
                base_distance=float(base[r]),
                shifted_distance=float(shifted[r]),
                distance=each.distance,
                gate=gate_of[each.object_id] if each.object_id in copies else 0.0,
                influences=tuple(
                    _influence(self.bend.memories[j], float(counts[j]), float(changes[j][r]))
                    for j in widest_first
                ),
                shared=SharedInfluence(
                    shared.users,
                    shared.gate,
                    shared.factors.get(each.object_id, 1.0),
                    float(shared_changes[r]),
                )
                if shared
                else None,
            )
            for r, each in enumerate(there)
        }


def _sort_key(payload: JSON, name: str) -> tuple[int, float | str] | None:
    """Return what a payload is sorted by: numbers before texts; None where there is neither."""
    for value in values(payload, name):
        if isinstance(value, str):
            return (1, value)
        if isinstance(value, int | float) and value == value:  # noqa: PLR0124, no whole number is too large
            return (0, value)
    return None


def as_for_anybody(found: Neighbour) -> Explanation:
    return Explanation(found.distance, found.distance, found.distance, gate=0.0, influences=())


def _influence(memory: QueryMemory, gate: float, distance_change: float) -> Influence:
    return Influence(
        memory.session_id, memory.search_query, memory.created_at, gate, memory.clicked_ids, distance_change
    )
