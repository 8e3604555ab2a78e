"""What is shared among users, in memory: a vote of a user for a query, counted with those of others."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from embedding_studio.domain.objects import SharedMemory, SharedVote
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.votes import Asked, Latest, Listener, said_together


@dataclass(slots=True)
class Votes:
    """What users say for queries.

    Attributes:
        half_life: seconds by which clicks and looks lose half of their weight.
        of_query: query_key -> user_id -> vote; those of one key have one and the same query.
        asked: the queries, to be compared with.
        latest: query_key -> the latest of its votes, as many as were wanted; absent since one changed.
    """

    half_life: float
    of_query: dict[str, dict[str, SharedVote]] = field(default_factory=dict)
    asked: Asked = field(default_factory=Asked)
    latest: dict[str, tuple[int, Latest]] = field(default_factory=dict)

    def replace(
        self, before: Mapping[str, Sequence[SharedVote]], after: Mapping[str, Sequence[SharedVote]]
    ) -> dict[str, tuple[SharedVote, ...]]:
        """Let each user's votes take the place of those before; return them as they are stored."""
        stored = {}
        for user_id, votes in sorted(after.items()):
            ordered = sorted(votes, key=lambda vote: vote.query_key)
            stored[user_id] = tuple(replace(vote, query=self._query_for(vote)) for vote in ordered)
            for vote in stored[user_id]:
                if vote.query_key not in self.asked:
                    self.asked.add(vote.query_key, vote.query)
                self.of_query.setdefault(vote.query_key, {})[user_id] = vote
                self.latest.pop(vote.query_key, None)
        for user_id, votes in before.items():
            for key in {vote.query_key for vote in votes} - {vote.query_key for vote in after[user_id]}:
                del self.of_query[key][user_id]
                self.latest.pop(key, None)
                if not self.of_query[key]:
                    del self.of_query[key]
                    self.asked.remove(key)
        return stored

    def _query_for(self, vote: SharedVote) -> Vectors:
        theirs = self.of_query.get(vote.query_key)
        return next(iter(theirs.values())).query if theirs else vote.query

    def near(self, listener: Listener) -> list[SharedMemory]:
        """Return what others say for near queries; nothing if they are too few."""
        keys = self.asked.nearest(listener.query, listener.threshold)
        near = [(self.asked.query(key), self._latest(key, listener.votes)) for key in keys]
        return said_together(near, listener, self.half_life)

    def _latest(self, query_key: str, count: int) -> Latest:
        known = self.latest.get(query_key)
        if known is None or known[0] != count:
            votes = [
                (user_id, vote.clicked_mean, vote.created_at, vote.seen)
                for user_id, vote in self.of_query[query_key].items()
            ]
            newest = heapq.nsmallest(count, votes, key=lambda vote: (-vote[2], vote[0]))
            known = self.latest[query_key] = count, Latest.of(newest)
        return known[1]
