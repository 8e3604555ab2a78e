"""What is learnt about users, in memory: written as a whole at the commit, read for one user."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import (
    Collection,
    NearMemories,
    Neighbour,
    PersonalState,
    QueryMemory,
)
from embedding_studio.embeddings.personal import shared_threshold
from embedding_studio.embeddings.similarity import cosines
from embedding_studio.storage.elsewhere import nearest_of_user
from embedding_studio.storage.memory.state import State
from embedding_studio.storage.ports import (
    NOTHING_NAMED,
    BaseIndex,
    OrderOutcome,
    OutdatedError,
    PassedOver,
    Vectors,
)
from embedding_studio.storage.votes import Listener


class MemoryPersonal:
    def __init__(self, state: State) -> None:
        self._state = state

    def near_memories(
        self,
        collection: Collection,
        user_id: str | None,
        query: Vectors,
        threshold: float,
        *,
        shared_by: int = 0,
        seen_as: str | None = None,
        is_checked_later: bool = False,  # noqa: ARG002, it is looked at here and now
    ) -> NearMemories:
        with self._state.lock:
            if seen_as is not None and self._state.named(seen_as).collection != collection:
                raise OutdatedError(f"the collection {seen_as!r} is another now; look it up again")
            tables = self._state.tables(collection)
            own = tables.states.get(user_id) if user_id is not None else None
            memories = () if own is None else copied_state(own).memories
            near = cosines(np.array([memory.query for memory in memories]), query) > threshold
            return NearMemories(
                [memory for memory, is_near in zip(memories, near, strict=True) if is_near],
                tables.votes.near(Listener(user_id, query, shared_threshold(threshold), shared_by))
                if shared_by
                else [],
            )

    def nearest(
        self,
        collection: Collection,
        user_id: str | None,
        queries: Vectors,
        limit: int,
        gates: Mapping[str, float],
        *,
        objects: BaseIndex,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        own: object = None,  # noqa: ARG002, all is at hand
        named: Mapping[str, float] = NOTHING_NAMED,
    ) -> list[Neighbour]:
        with self._state.lock:
            copies = {} if user_id is None else self.copies(collection, user_id, list(gates))
            made_of = dict(self._state.tables(collection).noticed) if collection.attached else None
            return nearest_of_user(
                objects,
                copies,
                collection,
                queries,
                limit,
                gates=gates,
                filter=filter,
                made_of=made_of,
                named=named,
            )

    def outdate(self, collection: Collection, object_ids: Sequence[str]) -> None:
        with self._state.lock:
            self._state.wait_for_folds_of_collection(collection)
            self._state.fold_again(self._state.tables(collection), set(object_ids))

    def notice(self, collection: Collection, digests: Mapping[str, str | None]) -> list[str]:
        with self._state.lock:
            self._state.wait_for_folds_of_collection(collection)
            tables = self._state.tables(collection)
            known = tables.noticed
            changed = sorted(each for each, digest in digests.items() if known.get(each, digest) != digest)
            if changed:
                self._state.fold_again(tables, set(changed))
            known.update(digests)
            return changed

    def noticed(
        self,
        collection: Collection,
        *,
        among: Sequence[str] | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> dict[str, str | None]:
        with self._state.lock:
            known = self._state.tables(collection).noticed
            if among is not None:
                return {each: known[each] for each in among if each in known}
            beyond = sorted(each for each in known if after is None or each > after)
            return {each: known[each] for each in beyond[:limit]}

    def copies(self, collection: Collection, user_id: str, object_ids: Sequence[str]) -> dict[str, Vectors]:
        with self._state.lock:
            copies = self._state.tables(collection).states.get(user_id, PersonalState()).vectors
            return {object_id: copies[object_id].copy() for object_id in object_ids if object_id in copies}

    def state(self, collection: Collection, user_id: str) -> PersonalState:
        with self._state.lock:
            return copied_state(self._state.tables(collection).states.get(user_id, PersonalState()))

    def latest_memories(self, collection: Collection, count: int) -> list[list[QueryMemory]]:
        with self._state.lock:
            states = self._state.tables(collection).states
            latest_first = sorted(
                (-max(memory.created_at for memory in state.memories), user_id)
                for user_id, state in states.items()
                if len(state.memories) > 1
            )
            before = [0, *accumulate(len(states[user_id].memories) for _, user_id in latest_first)]
            return [
                list(copied_state(states[user_id]).memories)
                for (_, user_id), told in zip(latest_first, before[:-1], strict=True)
                if told < count
            ]

    @contextmanager
    def learning(self, collection: Collection, user_ids: Sequence[str]) -> Iterator["MemoryLearning"]:
        held = {(collection.collection_id, user_id) for user_id in user_ids}
        with self._state.lock:
            self._state.lock.wait_for(lambda: not held & self._state.folding)
            self._state.tables(collection)
            self._state.folding |= held
        try:
            transaction = MemoryLearning(self._state, collection, user_ids)
            yield transaction
            transaction.commit()
        finally:
            with self._state.lock:
                self._state.folding -= held
                self._state.lock.notify_all()


class MemoryLearning:
    """A ``LearningTransaction``: what it writes waits for the commit."""

    def __init__(self, state: State, collection: Collection, user_ids: Sequence[str]) -> None:
        self._state = state
        self._collection = collection
        self._user_ids = user_ids
        self._query_vectors: dict[str, Vectors] = {}
        self._states: dict[str, PersonalState] = {}
        self._quarantined: dict[str, str] = {}
        self._completed: list[tuple[str, Sequence[OrderOutcome], PassedOver]] = []

    def held(self, token: str) -> set[str]:
        with self._state.lock:
            names = self._state.names(self._collection)
            return {
                user_id
                for (name, user_id), stored in self._state.queue.items()
                if stored.token == token and name in names and user_id in self._user_ids
            }

    def store_query_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        self._query_vectors.update({i: np.atleast_2d(np.array(v, np.float32)) for i, v in vectors.items()})

    def replace_states(
        self, states: Mapping[str, PersonalState], quarantined: Mapping[str, str] | None = None
    ) -> None:
        self._quarantined |= quarantined or {}
        self._states.update({user_id: copied_state(state) for user_id, state in states.items()})

    def complete(
        self, token: str, outcomes: Sequence[OrderOutcome], passed_over: PassedOver
    ) -> list[OrderOutcome]:
        self._completed.append((token, outcomes, passed_over))
        with self._state.lock:  # what it will come to, undone until the commit
            orders, queue = self._state.orders_by_id(self._user_ids), dict(self._state.queue)
            new = self._complete(token, outcomes, passed_over)
            self._state.orders.update(orders)
            self._state.queue = queue
        return new

    def _complete(
        self, token: str, outcomes: Sequence[OrderOutcome], passed_over: PassedOver
    ) -> list[OrderOutcome]:
        return self._state.complete(
            token,
            outcomes,
            passed_over,
            user_ids=self._user_ids,
            names=self._state.names(self._collection),
        )

    def commit(self) -> None:
        with self._state.lock:
            for session_id, vectors in self._query_vectors.items():
                if session_id in self._state.sessions:
                    self._state.sessions[session_id].query_vectors = vectors
            tables = self._state.tables(self._collection)
            tables.replace_states(self._states)
            tables.quarantine(self._states, self._quarantined)
            for given in self._completed:
                self._complete(*given)


def copied_state(state: PersonalState) -> PersonalState:
    memories = tuple(
        replace(memory, query=memory.query.copy(), clicked_mean=memory.clicked_mean.copy())
        for memory in state.memories
    )
    votes = tuple(
        replace(vote, query=vote.query.copy(), clicked_mean=vote.clicked_mean.copy()) for vote in state.votes
    )
    return PersonalState(
        memories, {i: np.array(parts, dtype=np.float32) for i, parts in state.vectors.items()}, votes
    )
