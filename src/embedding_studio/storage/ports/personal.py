"""State: personal vectors, query memory and what is shared of them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Protocol

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import (
    Collection,
    NearMemories,
    Neighbour,
    PersonalState,
    QueryMemory,
)
from embedding_studio.storage.ports.objects import BaseIndex
from embedding_studio.storage.ports.orders import OrderOutcome, PassedOver
from embedding_studio.storage.ports.vectors import Vectors

SHARED_QUERIES = 20

SHARED_VOTES = 32
"""So many queries of others are looked at for one search, and of each so many votes, or ``shared_by``."""

SHARED_HALF_LIFE = 7 * 86_400
"""Seconds by which a vote has to be older than the latest ``shared_by`` that are counted to weigh half."""

NOTHING_NAMED: Mapping[str, float] = MappingProxyType({})

MOST_HALF_LIVES = 1000
"""What is still older weighs as much, so that no number becomes too small to be one."""


class LearningTransaction(Protocol):
    """One transaction in which the states of some users of one collection are written.

    The users are locked, and none is marked for a change of originals meanwhile. Leaving the ``with``
    block commits, an exception rolls back. What was folded before it holds of those whom the claim still
    holds (``held``), for all that makes a state stale marks its user: sessions are read first, then the
    originals, and then is written.
    """

    def held(self, token: str) -> set[str]:
        """Return which of the users ``token`` holds; they are not marked until the end of the block."""
        ...

    def store_query_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        """Keep query vectors ([Q, D] by session id) that had to be embedded."""
        ...

    def replace_states(
        self, states: Mapping[str, PersonalState], quarantined: Mapping[str, str] | None = None
    ) -> None:
        """Replace the whole state of each user named, their votes with it.

        Args:
            quarantined: user_id -> why, of those among them whose sessions are a robot's.

        All votes of one ``query_key`` have the same query: that of the first, as long as any is left.
        """
        ...

    def complete(
        self, token: str, outcomes: Sequence[OrderOutcome], passed_over: PassedOver
    ) -> list[OrderOutcome]:
        """Write what became of sessions, and take the users whom ``token`` still holds out of the queue.

        Users marked meanwhile stay in it, and all their orders stay as they are. So does, but held, one
        for whom an outcome is failed of whose order this is not known yet: it is to be given back by
        ``Queue.fail``. A claim that holds one of these users under another name of the collection loses
        them, for it may have read less.

        Args:
            outcomes: of all the sessions that were looked at.
            passed_over: what to say of the other pending orders of these users.

        Returns:
            What is new: of orders that ended, or ended in another way; and what failed.
        """
        ...


class Personal(Protocol):
    def near_memories(
        self,
        collection: Collection,
        user_id: str | None,
        query: Vectors,
        threshold: float,
        *,
        shared_by: int = 0,
        seen_as: str | None = None,
        is_checked_later: bool = False,
    ) -> NearMemories:
        """Return the memories whose query has a cosine above ``threshold`` to ``query``.

        In one round trip, or in none.

        Args:
            user_id: None: a user without memories, to whom what others share applies all the same.
            query: [D]; a zero vector is near nothing, and nothing is near to one.
            shared_by: how many others must have voted for anything to be shared of them; 0: nothing ever is.
            seen_as: the name by which the collection was ``seen``.
            is_checked_later: what is returned may be what was so a while ago, for it is given to
                ``nearest`` before anything is made of it.

        Raises:
            OutdatedError: the name stands for something else by now.

        What others say is counted so. Of all queries that anybody voted for, the ``SHARED_QUERIES`` nearest
        are looked at (ties by query_key), as far as they are above ``shared_threshold(threshold)``. Of each
        the ``SHARED_VOTES`` latest votes of others are taken, or ``shared_by`` if that is more (ties by
        user_id). Who voted for several of these queries counts once, for the nearest. The votes for one query
        are one memory; what they did with objects is summed up, each vote weighing 2^(-age /
        ``SHARED_HALF_LIFE``), where the latest ``shared_by`` votes counted have the age 0: fewer cannot make
        those of all others old. If fewer than ``shared_by`` users are counted, ``shared`` is empty.
        """
        ...

    def nearest(
        self,
        collection: Collection,
        user_id: str | None,
        queries: Vectors,
        limit: int,
        gates: Mapping[str, float],
        *,
        objects: BaseIndex,
        filter: PayloadFilter | None = None,  # noqa: A002
        own: object = None,
        named: Mapping[str, float] = NOTHING_NAMED,
    ) -> list[Neighbour]:
        """Return the ``limit`` nearest objects to a query, for one user, and where some others stand.

        These others are named because the caller multiplies their distances. All that are among the ``limit``
        nearest after that are returned.

        Args:
            objects: where the originals are; one of the same database is searched together with the copies.
            gates: object_id -> in (0, 1], how much the user's copy counts, where there is one; the distance
                is then a mean of those to the original and to the copy (``embeddings.personal.blend``).
            own: ``NearMemories.read``; what it does not hold of the user's own vectors is read.
            named: object_id -> what its distance is to be multiplied by, >= 0. For dot, where that is not all
                that the caller does, all that are named and match are returned, and ``limit`` others; else a
                storage may do so.

        Returns:
            Each object once, by (distance, object_id).

        Raises:
            OutdatedError: what was to be checked here is so no longer.
        """
        ...

    def outdate(self, collection: Collection, object_ids: Sequence[str]) -> None:
        """Drop copies of objects whose originals came, changed or went, and mark the users who met them.

        Those met them who were shown them, or clicked them, in a session that has an order. For base indexes
        that are elsewhere: one of the same storage does so in the transaction that changes the originals.
        """
        ...

    def notice(self, collection: Collection, digests: Mapping[str, str | None]) -> list[str]:
        """Keep what originals that are elsewhere are now; return those that are not what they were, sorted.

        Of these users' copies are dropped, and who met them is marked, as by ``outdate``, in the transaction
        that keeps what they are. So all copies of an object are of the original that is kept here.

        Args:
            digests: object_id -> of the original as it was just read (``elsewhere.digest_of``); None: there
                is none.
        """
        ...

    def noticed(
        self,
        collection: Collection,
        *,
        among: Sequence[str] | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> dict[str, str | None]:
        """Return the first ``limit`` of what is kept by ``notice``, by object_id beyond ``after``.

        Args:
            among: of these objects alone, however many they are.
        """
        ...

    def copies(self, collection: Collection, user_id: str, object_ids: Sequence[str]) -> dict[str, Vectors]:
        """Return object_id -> [P, D], the user's own vectors, of those objects for which there are any."""
        ...

    def state(self, collection: Collection, user_id: str) -> PersonalState:
        """Return all that is learnt about a user; empty for an unknown user."""
        ...

    def latest_memories(self, collection: Collection, count: int) -> list[list[QueryMemory]]:
        """Return the memories of users who have two at least, each user's in order of time.

        They do not say whose they are. Whose latest is latest comes first (ties by user_id), and so many
        users are returned as it takes to have ``count`` memories.
        """
        ...

    def learning(
        self, collection: Collection, user_ids: Sequence[str]
    ) -> AbstractContextManager[LearningTransaction]:
        """Open the transaction in which these users are folded again."""
        ...
