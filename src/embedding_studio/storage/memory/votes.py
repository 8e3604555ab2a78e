"""What users tell each other, in memory: a vote of a user for a query, counted with those of others."""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import SharedMemory, SharedObject, SharedVote
from embedding_studio.storage.ports import (
    SHARED_HALF_LIFE,
    SHARED_QUERIES,
    SHARED_VOTES,
    Vectors,
)


@dataclass(slots=True)
class Votes:
    """What users say for queries.

    Attributes:
        of_query: query_key -> user_id -> vote; those of one key have one and the same query.
        stack: the keys, sorted, their queries, [N, D] float32, and those made ready to be compared; absent
            from the write that brings a key or takes one away to the next search.
    """

    of_query: dict[str, dict[str, SharedVote]] = field(default_factory=dict)
    stack: "tuple[list[str], Vectors, Rows] | None" = None

    def replace(
        self, before: Mapping[str, Sequence[SharedVote]], after: Mapping[str, Sequence[SharedVote]]
    ) -> dict[str, tuple[SharedVote, ...]]:
        """Let each user's votes take the place of those before; return them as they are stored."""
        stored = {}
        keys = len(self.of_query)
        for user_id, votes in sorted(after.items()):
            ordered = sorted(votes, key=lambda vote: vote.query_key)
            stored[user_id] = tuple(replace(vote, query=self._query_for(vote)) for vote in ordered)
            for vote in stored[user_id]:
                self.of_query.setdefault(vote.query_key, {})[user_id] = vote
        if len(self.of_query) > keys:
            self.stack = None
        for user_id, votes in before.items():
            for key in {vote.query_key for vote in votes} - {vote.query_key for vote in after[user_id]}:
                del self.of_query[key][user_id]
                if not self.of_query[key]:
                    del self.of_query[key]
                    self.stack = None
        return stored

    def _query_for(self, vote: SharedVote) -> Vectors:
        theirs = self.of_query.get(vote.query_key)
        return next(iter(theirs.values())).query if theirs else vote.query

    def near(
        self, user_id: str | None, query: Vectors, threshold: float, shared_by: int
    ) -> list[SharedMemory]:
        """Return what others than ``user_id`` say for near queries; nothing if they are too few."""
        if self.stack is None:
            keys = sorted(self.of_query)
            queries = np.array([next(iter(self.of_query[key].values())).query for key in keys])
            self.stack = keys, queries, Rows.of(queries)
        keys, queries, rows = self.stack
        alike = rows.cosines(query)
        counted: set[str] = set()
        said: list[tuple[Vectors, list[SharedVote]]] = []
        for row in np.argsort(-alike, kind="stable")[:SHARED_QUERIES]:  # rows are in the order of keys
            if alike[row] <= threshold:
                break
            votes = self.of_query[keys[row]].items()
            latest = heapq.nsmallest(
                max(SHARED_VOTES, shared_by),
                ((-vote.created_at, name, vote) for name, vote in votes if name != user_id),
                key=itemgetter(0, 1),
            )
            told = {name: vote for _, name, vote in latest if name not in counted}
            if told:
                said.append((queries[row].copy(), list(told.values())))
                counted |= told.keys()
        if not said or len(counted) < shared_by:
            return []
        now = max(vote.created_at for _, told in said for vote in told)
        return [_memory(query, told, now) for query, told in said]


def _memory(query: Vectors, votes: Sequence[SharedVote], now: int) -> SharedMemory:
    mean = np.stack([vote.clicked_mean for vote in votes]).mean(axis=0, dtype=np.float64)
    users: dict[str, int] = defaultdict(int)
    clicks: dict[str, float] = defaultdict(float)
    looks: dict[str, float] = defaultdict(float)
    for vote in votes:
        weight = 0.5 ** ((now - vote.created_at) / SHARED_HALF_LIFE)
        for seen in vote.seen:
            users[seen.object_id] += seen.clicks > 0
            clicks[seen.object_id] += weight * seen.clicks
            looks[seen.object_id] += weight * seen.looks
    summed = [SharedObject(each, users[each], clicks[each], looks[each]) for each in sorted(users)]
    return SharedMemory(query, mean.astype(np.float32), len(votes), tuple(summed))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Vectors to which many are compared, and their lengths."""

    vectors: NDArray[np.float64]
    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Vectors) -> "Rows":
        rows = vectors.astype(np.float64)
        return cls(rows, np.linalg.norm(rows, axis=-1))

    def cosines(self, query: Vectors) -> NDArray[np.float64]:
        """Return [N], the cosine of each of [N, D] to [D]; -inf where one of the two is zero."""
        if len(self.vectors) == 0:
            return np.empty(0)
        q = query.astype(np.float64)
        lengths = self.lengths * np.linalg.norm(q)
        found: NDArray[np.float64] = np.full(len(lengths), -np.inf)
        np.divide(np.vecdot(self.vectors, q), lengths, out=found, where=lengths > 0)
        return found


def cosines(vectors: Vectors, query: Vectors) -> NDArray[np.float64]:
    """Return [N], the cosine of each of [N, D] to [D]; -inf where one of the two is zero."""
    return Rows.of(vectors).cosines(query)
