"""What users say for queries: which of these are near to another, and what is said together.

``ports.Personal.near_memories`` says what is counted. Axes: N queries · V votes for one of them · O objects
that these tell of · D dimensions.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import SeenObject, SharedMemory, SharedObject
from embedding_studio.embeddings.similarity import cosines
from embedding_studio.storage.ports import MOST_HALF_LIVES, SHARED_QUERIES, SHARED_VOTES, Vectors

ROUGH = 1e-5
"""By so much a cosine in single precision may be wrong."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """Who is to hear what others say, and for which query.

    Attributes:
        user_id: their own votes are not heard; None: they have none.
        query: [D].
        threshold: of its cosine to queries that are near.
        shared_by: so many others must have voted, or nothing is heard.
    """

    user_id: str | None
    query: Vectors
    threshold: float
    shared_by: int

    @property
    def votes(self) -> int:
        """Return how many of the latest votes for a query are looked at; one may be the listener's own."""
        return self.most + 1

    @property
    def most(self) -> int:
        """Return how many of them may be heard."""
        return max(SHARED_VOTES, self.shared_by)


def said_together(
    near: Iterable[tuple[Vectors, "Latest"]], listener: Listener, half_life: float
) -> list[SharedMemory]:
    """Return what others say for queries; nothing if they are too few.

    Args:
        near: queries [D], the nearest first, and the latest votes for each, as many as are looked at.
        half_life: seconds by which clicks and looks lose half of their weight.
    """
    counted: set[str] = set()
    said: list[tuple[Vectors, Latest, list[int]]] = []
    for query, latest in near:
        if places := latest.heard_by(listener, counted):
            said.append((query, latest, places))
            counted.update(latest.users[place] for place in places)
    if not said or len(counted) < listener.shared_by:
        return []
    times = [latest.created_ats[place] for _, latest, places in said for place in places]
    now = sorted(times)[-max(listener.shared_by, 1)]
    return [latest.together(query, places, now, half_life) for query, latest, places in said]


@dataclass(frozen=True, slots=True, eq=False)
class Latest:
    """The latest votes for one query, the latest first (ties by user_id).

    Attributes:
        users: V ids.
        clicked_means: [V, D].
        created_ats: V times, UTC seconds.
        object_ids: O, sorted.
        clicks, looks: [V, O], as of ``SeenObject``.
        are_known: [V, O], of which object a vote says anything.
        said: what was said together last, by whose it was and as of when.
    """

    users: Sequence[str]
    clicked_means: Vectors
    created_ats: Sequence[int]
    object_ids: Sequence[str]
    clicks: Floats
    looks: Floats
    are_known: NDArray[np.bool_]
    said: dict[tuple[tuple[int, ...], int, float], SharedMemory] = field(default_factory=dict)

    @classmethod
    def of(cls, votes: Sequence[tuple[str, Vectors, int, Sequence[SeenObject]]]) -> Self:
        """Return votes for one query, at least one: user_id, clicked mean [D], time, and what was seen."""
        object_ids = sorted({each.object_id for *_, seen in votes for each in seen})
        column = {object_id: o for o, object_id in enumerate(object_ids)}
        clicks, looks = np.zeros((2, len(votes), len(object_ids)))
        are_known = np.zeros(clicks.shape, dtype=bool)
        for v, (*_, seen) in enumerate(votes):
            columns = [column[each.object_id] for each in seen]
            clicks[v, columns] = [each.clicks for each in seen]
            looks[v, columns] = [each.looks for each in seen]
            are_known[v, columns] = True
        users, means, created_ats, _ = zip(*votes, strict=True)
        return cls(users, np.stack(means), created_ats, object_ids, clicks, looks, are_known)

    @property
    def nbytes(self) -> int:
        texts = sum(map(len, self.users)) + sum(map(len, self.object_ids))
        numbers = self.clicked_means.nbytes + 17 * self.are_known.size
        return 1000 + 100 * len(self.users) + 300 * len(self.object_ids) + texts + numbers

    def heard_by(self, listener: Listener, counted: AbstractSet[str]) -> list[int]:
        """Return where the latest of others stand, without those users who are counted elsewhere."""
        if listener.user_id not in self.users and counted.isdisjoint(self.users):
            return list(range(min(len(self.users), listener.most)))
        others = [place for place, name in enumerate(self.users) if name != listener.user_id]
        return [place for place in others[: listener.most] if self.users[place] not in counted]

    def together(self, query: Vectors, places: list[int], now: int, half_life: float) -> SharedMemory:
        """Return what some of the votes say of a query [D], as old as they are at a time.

        It is mostly what it was the last time, and kept for that.
        """
        asked = tuple(places), now, half_life
        said = self.said.get(asked)
        if said is None:
            self.said.clear()
            said = self.said[asked] = self._together(query, places, now, half_life)
        return said

    def _together(self, query: Vectors, places: list[int], now: int, half_life: float) -> SharedMemory:
        ages = np.maximum(now - np.array([self.created_ats[place] for place in places]), 0)
        weights = 0.5 ** np.minimum(ages / half_life, MOST_HALF_LIVES)
        clicked = self.clicks[places]
        known = np.any(self.are_known[places], axis=0).tolist()
        sums = zip(
            self.object_ids,
            np.count_nonzero(clicked, axis=0).tolist(),
            (weights @ clicked).tolist(),
            (weights @ self.looks[places]).tolist(),
            strict=True,
        )
        return SharedMemory(
            query,
            self.clicked_means[places].mean(axis=0, dtype=np.float64).astype(np.float32),
            len(places),
            tuple(SharedObject(*of_one) for of_one, is_known in zip(sums, known, strict=True) if is_known),
        )


class Asked:
    """Queries to which others are compared; room is made for twice as many when there is none.

    One thread at a time.
    """

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._rows: dict[str, int] = {}
        self._queries: Vectors = np.empty((0, 0), dtype=np.float32)
        self._directions: Vectors = self._queries
        """[N, D], of length 1; of zero vectors NaN, which is near nothing."""
        self._lengths: Floats = np.empty(0)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    @property
    def nbytes(self) -> int:
        return 1000 + 200 * len(self._keys) + self._queries.nbytes + self._directions.nbytes

    def query(self, key: str) -> Vectors:
        query: Vectors = self._queries[self._rows[key]].copy()
        return query

    def add(self, key: str, query: Vectors) -> None:
        N = len(self._keys)
        if len(self._queries) == N:
            room = max(64, 2 * N), len(query)
            self._queries, self._directions = (
                np.resize(self._queries, room),
                np.resize(self._directions, room),
            )
            self._lengths = np.resize(self._lengths, room[0])
        self._keys.append(key)
        self._rows[key] = N
        self._queries[N] = query
        self._lengths[N] = _length(query)
        self._directions[N] = _direction(query)

    def remove(self, key: str) -> None:
        """Let the last take the place of one that goes."""
        row, last = self._rows.pop(key), self._keys.pop()
        if last != key:
            N = len(self._keys)
            self._keys[row], self._rows[last] = last, row
            for column in (self._queries, self._directions, self._lengths):
                column[row] = column[N]

    def nearest(self, query: Vectors, threshold: float) -> list[str]:
        """Return the keys of the ``SHARED_QUERIES`` nearest above a cosine, nearest first, ties by key."""
        if not self._keys:
            return []
        about = self._directions[: len(self._keys)] @ _direction(query)
        rows = np.flatnonzero(about >= threshold - ROUGH)
        if len(rows) > SHARED_QUERIES:
            least = np.partition(about[rows], len(rows) - SHARED_QUERIES)[len(rows) - SHARED_QUERIES]
            rows = rows[about[rows] >= least - 2 * ROUGH]
        alike = cosines(self._queries[rows], query, self._lengths[rows]).tolist()
        found = [(-cosine, self._keys[row]) for cosine, row in zip(alike, rows.tolist(), strict=True)]
        return [key for minus, key in sorted(found)[:SHARED_QUERIES] if -minus > threshold]


def _length(vector: Vectors) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


def _direction(vector: Vectors) -> Vectors:
    length = _length(vector)
    return (vector / length if length > 0 else np.full_like(vector, np.nan)).astype(np.float32)
