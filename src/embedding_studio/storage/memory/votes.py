"""What is shared among users, in memory: a vote of a user for a query, counted with those of others."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import SharedMemory, SharedObject, SharedVote
from embedding_studio.embeddings.similarity import cosines
from embedding_studio.storage.ports import (
    MOST_HALF_LIVES,
    SHARED_QUERIES,
    SHARED_VOTES,
    Vectors,
)


@dataclass(slots=True)
class Votes:
    """What users say for queries.

    Attributes:
        half_life: seconds by which clicks and looks lose half of their weight.
        of_query: query_key -> user_id -> vote; those of one key have one and the same query.
        latest: query_key -> its votes, the latest first (ties by user_id); absent since one of them changed.
        asked: the queries, to be compared with; None since a key went.
    """

    half_life: float
    of_query: dict[str, dict[str, SharedVote]] = field(default_factory=dict)
    latest: dict[str, list[tuple[str, SharedVote]]] = field(default_factory=dict)
    asked: "Asked | None" = None

    def replace(
        self, before: Mapping[str, Sequence[SharedVote]], after: Mapping[str, Sequence[SharedVote]]
    ) -> dict[str, tuple[SharedVote, ...]]:
        """Let each user's votes take the place of those before; return them as they are stored."""
        stored = {}
        for user_id, votes in sorted(after.items()):
            ordered = sorted(votes, key=lambda vote: vote.query_key)
            stored[user_id] = tuple(replace(vote, query=self._query_for(vote)) for vote in ordered)
            for vote in stored[user_id]:
                if vote.query_key not in self.of_query and self.asked is not None:
                    self.asked.append(vote.query_key, vote.query)
                self.of_query.setdefault(vote.query_key, {})[user_id] = vote
                self.latest.pop(vote.query_key, None)
        for user_id, votes in before.items():
            for key in {vote.query_key for vote in votes} - {vote.query_key for vote in after[user_id]}:
                del self.of_query[key][user_id]
                self.latest.pop(key, None)
                if not self.of_query[key]:
                    del self.of_query[key]
                    self.asked = None
        return stored

    def _query_for(self, vote: SharedVote) -> Vectors:
        theirs = self.of_query.get(vote.query_key)
        return next(iter(theirs.values())).query if theirs else vote.query

    def near(
        self, user_id: str | None, query: Vectors, threshold: float, shared_by: int
    ) -> list[SharedMemory]:
        """Return what others than ``user_id`` say for near queries; nothing if they are too few."""
        if self.asked is None:
            self.asked = Asked()
            for key, votes in self.of_query.items():
                self.asked.append(key, next(iter(votes.values())).query)
        counted: set[str] = set()
        said: list[tuple[Vectors, list[SharedVote]]] = []
        for key in self.asked.nearest(query, threshold):
            others = ((name, vote) for name, vote in self._latest(key) if name != user_id)
            latest = itertools.islice(others, max(SHARED_VOTES, shared_by))
            told = {name: vote for name, vote in latest if name not in counted}
            if told:
                said.append((next(iter(told.values())).query.copy(), list(told.values())))
                counted |= told.keys()
        if not said or len(counted) < shared_by:
            return []
        latest_first = sorted((vote.created_at for _, told in said for vote in told), reverse=True)
        now = latest_first[max(shared_by, 1) - 1]
        return [_memory(query, told, now, self.half_life) for query, told in said]

    def _latest(self, key: str) -> list[tuple[str, SharedVote]]:
        if key not in self.latest:
            self.latest[key] = sorted(
                self.of_query[key].items(), key=lambda vote: (-vote[1].created_at, vote[0])
            )
        return self.latest[key]


class Asked:
    """Queries to which others are compared; room is made for twice as many when there is none."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._queries: NDArray[np.float64] = np.empty((0, 0))
        self._lengths: NDArray[np.float64] = np.empty(0)

    def append(self, key: str, query: Vectors) -> None:
        N = len(self._keys)
        if len(self._queries) == N:
            room = max(64, 2 * N)
            self._queries = np.resize(self._queries, (room, len(query)))
            self._lengths = np.resize(self._lengths, room)
        self._queries[N] = query
        self._lengths[N] = np.linalg.norm(self._queries[N])
        self._keys.append(key)

    def nearest(self, query: Vectors, threshold: float) -> list[str]:
        """Return the keys of the ``SHARED_QUERIES`` nearest, nearest first, ties by key."""
        N = len(self._keys)
        alike = cosines(self._queries[:N], query, self._lengths[:N])
        rows = np.flatnonzero(alike > threshold).tolist()
        rows.sort(key=lambda row: (-alike[row], self._keys[row]))
        return [self._keys[row] for row in rows[:SHARED_QUERIES]]


def _memory(query: Vectors, votes: Sequence[SharedVote], now: int, half_life: float) -> SharedMemory:
    mean = np.stack([vote.clicked_mean for vote in votes]).mean(axis=0, dtype=np.float64)
    users: dict[str, int] = defaultdict(int)
    clicks: dict[str, float] = defaultdict(float)
    looks: dict[str, float] = defaultdict(float)
    for vote in votes:
        weight = 0.5 ** min(max(now - vote.created_at, 0) / half_life, MOST_HALF_LIVES)
        for seen in vote.seen:
            users[seen.object_id] += seen.clicks > 0
            clicks[seen.object_id] += weight * seen.clicks
            looks[seen.object_id] += weight * seen.looks
    summed = [SharedObject(each, users[each], clicks[each], looks[each]) for each in sorted(users)]
    return SharedMemory(query, mean.astype(np.float32), len(votes), tuple(summed))
