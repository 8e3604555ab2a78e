"""Storage in the memory of one process: the twin of ``postgres``, for tests and for evaluation.

Threads may share it: one lock guards everything, and nobody holds it while waiting for somebody
else. What it stores and what it answers are copies, so a caller's later changes reach neither.
"""

import copy
import heapq
import secrets
import time
from collections.abc import Collection as Container
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    JSON,
    TEXT_HASH_LENGTH,
    CatalogueObject,
    Collection,
    NearMemories,
    Neighbour,
    PersonalState,
)
from embedding_studio.domain.sessions import (
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
)
from embedding_studio.embeddings.personal import blend
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import CollectionNotFoundError, ConflictError, InvalidInputError
from embedding_studio.storage.memory.state import (
    Entry,
    Shelf,
    State,
    Status,
    Visit,
    copied_object,
    copied_state,
    cosines,
    stored_object,
    stored_payload,
)
from embedding_studio.storage.ports import (
    Claim,
    CodesInfo,
    Fold,
    OrderOutcome,
    PassedOver,
    Vectors,
    check_margin,
)


class MemoryStorage:
    """All of ``ports.Storage``; gone when the process ends.

    >>> storage = MemoryStorage()
    >>> films = storage.collections.create("films", SearchIndexInfo(dimensions=2))
    >>> storage.objects.upsert(films, [CatalogueObject("up", np.array([[0.0, 1.0]], dtype=np.float32))])
    >>> storage.objects.nearest(films, np.array([[0.0, 2.0]], dtype=np.float32), limit=1)
    [Neighbour(object_id='up', distance=0.0, payload={})]
    """

    def __init__(self, *, order_on: Container[str] = frozenset({"click", "add_to_cart", "purchase"})) -> None:
        state = State(order_on)
        self.collections = MemoryCollections(state)
        self.objects = MemoryObjects(state)
        self.clickstream = MemoryClickstream(state)
        self.orders = MemoryOrders(state)
        self.folds = MemoryFolds(state)
        self.personal = MemoryPersonal(state)

    def ping(self) -> None:
        """Return, for memory always answers."""

    def about(self) -> str:
        return "in the memory of this process"

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


class MemoryCollections:
    def __init__(self, state: State) -> None:
        self._state = state

    def create(
        self,
        name: str,
        index: SearchIndexInfo,
        *,
        embedder: str | None = None,
        gate_threshold: float | None = None,
    ) -> Collection:
        if index.dimensions is None:
            raise InvalidInputError(
                f"collection {name!r} needs to know its dimensions; give index.dimensions"
            )
        with self._state.lock:
            if name in self._state.aliases:
                raise ConflictError(f"{name!r} is an alias; choose another name for the collection")
            shelf = self._state.shelves.get(name)
            number = shelf.collection.collection_id if shelf else next(self._state.numbers)
            if shelf is not None and gate_threshold is None:
                gate_threshold = shelf.collection.gate_threshold
            wanted = Collection(number, name, index, embedder, gate_threshold)
            if shelf is None:
                self._state.shelves[name] = Shelf(wanted)
            elif shelf.collection != wanted:
                raise ConflictError(
                    f"collection {name!r} exists as {shelf.collection}; drop it first, or choose another name"
                )
            return wanted

    def get(self, name: str) -> Collection:
        with self._state.lock:
            return self._state.named(name).collection

    def list(self) -> list[Collection]:
        with self._state.lock:
            return [shelf.collection for _, shelf in sorted(self._state.shelves.items())]

    def aliases(self) -> dict[str, str]:
        with self._state.lock:
            return dict(self._state.aliases)

    def set_gate_threshold(self, name: str, gate_threshold: float | None) -> Collection:
        with self._state.lock:
            shelf = self._state.named(name)
            shelf.collection = replace(shelf.collection, gate_threshold=gate_threshold)
            return shelf.collection

    def drop(self, name: str) -> None:
        with self._state.lock:
            if name not in self._state.shelves:
                raise CollectionNotFoundError(
                    f"there is no collection {name!r} to drop (an alias is not one)"
                )
            self._state.wait_for_folds_of_collection(self._state.shelves[name].collection)
            self._state.shelves.pop(name, None)
            aliases = self._state.aliases
            self._state.aliases = {alias: stands for alias, stands in aliases.items() if stands != name}

    def set_alias(self, alias: str, name: str) -> None:
        with self._state.lock:
            if alias in self._state.shelves:
                raise ConflictError(f"{alias!r} is a collection; choose another name for the alias")
            self._state.aliases[alias] = self._state.named(name).collection.name
            self._state.mark_everyone({alias})

    def order_for_everyone(self, name: str) -> int:
        with self._state.lock:
            return self._state.mark_everyone(self._state.names(self._state.named(name).collection))


class MemoryObjects:
    def __init__(self, state: State) -> None:
        self._state = state

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        given = {item.object_id: stored_object(collection, item) for item in objects}
        with self._state.lock:
            self._state.wait_for_folds_of_collection(collection)
            shelf = self._state.shelf(collection)
            changed = {
                object_id
                for object_id, item in given.items()
                if object_id not in shelf.objects
                or not np.array_equal(item.parts, shelf.objects[object_id].parts)
            }
            shelf.objects.update(given)
            shelf.stack = None
            self._state.fold_anew(shelf, changed)

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        given = {object_id: stored_payload(object_id, payload) for object_id, payload in payloads.items()}
        with self._state.lock:
            objects = self._state.shelf(collection).objects
            for object_id in given.keys() & objects.keys():
                known = objects[object_id]
                text_hash = known.content_hash and known.content_hash[:TEXT_HASH_LENGTH]
                objects[object_id] = replace(known, payload=given[object_id], content_hash=text_hash)
            return sorted(given.keys() - objects.keys())

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        with self._state.lock:
            self._state.wait_for_folds_of_collection(collection)
            shelf = self._state.shelf(collection)
            there = set(object_ids) & shelf.objects.keys()
            for object_id in there:
                del shelf.objects[object_id]
            shelf.stack = None
            self._state.fold_anew(shelf, set(object_ids))
            return len(there)

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        with self._state.lock:
            objects = self._state.shelf(collection).objects
            there = [objects[object_id] for object_id in object_ids if object_id in objects]
            return [copied_object(item) for item in there]

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        with self._state.lock:
            objects = self._state.shelf(collection).objects
            matching = (
                object_id
                for object_id, item in objects.items()
                if (after is None or object_id > after) and (filter is None or filter.matches(item.payload))
            )
            return [copied_object(objects[object_id]) for object_id in heapq.nsmallest(limit, matching)]

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        with self._state.lock:
            objects = self._state.shelf(collection).objects
            hashes = {i: objects[i].content_hash for i in object_ids if i in objects}
        return {object_id: content for object_id, content in hashes.items() if content is not None}

    def count(self, collection: Collection) -> int:
        with self._state.lock:
            return len(self._state.shelf(collection).objects)

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        max_distance: float | None = None,
        margin: float | None = None,  # noqa: ARG002, all are compared
    ) -> list[Neighbour]:
        with self._state.lock:
            shelf = self._state.shelf(collection)
            return shelf.nearest(queries, limit, payload_filter=filter, max_distance=max_distance)

    def codes(self, collection: Collection) -> CodesInfo:
        with self._state.lock:
            return CodesInfo(parts=0, bytes_in_memory=0, margin=self._state.shelf(collection).margin)

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        check_margin(margin)
        with self._state.lock:
            self._state.shelf(collection).margin = margin


class MemoryClickstream:
    def __init__(self, state: State) -> None:
        self._state = state

    def register_session(self, session: Session, query_vectors: Vectors | None = None) -> bool:
        with self._state.lock:
            self._state.named(session.collection)
            visit = self._state.visits.get(session.session_id)
            if visit is not None:
                visit.check_same(session)
                return False
            vectors = None if query_vectors is None else np.atleast_2d(np.array(query_vectors, np.float32))
            bare = session.model_copy(update={"search_results": (), "events": ()})
            self._state.visits[session.session_id] = visit = Visit(bare, vectors)
            visit.show(session.search_results)
            self.push_events(session.events)
            return True

    def append_results(self, session_id: str, results: Sequence[SearchResultItem]) -> None:
        with self._state.lock:
            visit = self._state.visit(session_id)
            before = len(visit.results)
            visit.show(results)
            ticket = self._state.tickets.get(session_id)
            if before and len(visit.results) == before:
                return  # a page shown again teaches nothing
            if ticket is not None and ticket.order.user_id is not None:
                self._state.mark(ticket.order.collection, ticket.order.user_id)

    def push_events(self, events: Sequence[SessionEvent]) -> list[EventDisposition]:
        with self._state.lock:
            dispositions = []
            touched: dict[str, None] = {}
            for event in events:
                visit = self._state.visits.get(event.session_id)
                disposition = EventDisposition.UNKNOWN_SESSION if visit is None else visit.note(event)
                dispositions.append(disposition)
                is_new = disposition in {EventDisposition.ACCEPTED, EventDisposition.UNKNOWN_OBJECT}
                if is_new and event.event_type in self._state.order_on:
                    touched[event.session_id] = None
            for session_id in sorted(touched, key=lambda each: self._state.visits[each].unit()):
                self._state.place(session_id)
            return dispositions

    def get_session(self, session_id: str) -> Session:
        with self._state.lock:
            return self._state.visit(session_id).whole()

    def recent_queries(self, collection: Collection, limit: int) -> list[Vectors]:
        with self._state.lock:
            self._state.shelf(collection)
            names = self._state.names(collection)
            latest: dict[tuple[str, bytes], Vectors] = {}
            for visit in sorted(self._state.visits.values(), key=Visit.age, reverse=True):
                session = visit.session
                vectors = visit.query_vectors
                if (
                    session.collection in names
                    and not session.is_irrelevant
                    and vectors is not None
                    and vectors.shape[1] == collection.index.dimensions
                ):
                    wordless = b"" if session.search_query else vectors.tobytes()
                    latest.setdefault((session.search_query, wordless), vectors)
            return [vectors.copy() for vectors in list(latest.values())[:limit]]

    def mark_irrelevant(self, session_id: str) -> None:
        with self._state.lock:
            visit = self._state.visit(session_id)
            visit.session = visit.session.model_copy(update={"is_irrelevant": True})
            if session_id in self._state.tickets:
                self._state.place(session_id)

    def forget_user(self, user_id: str) -> int:
        with self._state.lock:
            self._state.wait_for_folds_of_user(user_id)
            theirs = [i for i, visit in self._state.visits.items() if visit.session.user_id == user_id]
            for session_id in theirs:
                del self._state.visits[session_id]
                self._state.tickets.pop(session_id, None)
            for key in [key for key in self._state.queue if key[1] == user_id]:
                del self._state.queue[key]
            for shelf in self._state.shelves.values():
                shelf.replace_states({user_id: PersonalState()})
                del shelf.states[user_id]
            return len(theirs)


class MemoryOrders:
    def __init__(self, state: State) -> None:
        self._state = state

    def create(self, schema: SessionForImprovementCreateSchema) -> SessionForImprovement:
        with self._state.lock:
            self._state.visit(schema.session_id)
            return self._state.place(schema.session_id)

    def get(self, session_id: str) -> SessionForImprovement:
        with self._state.lock:
            return self._state.told(self._state.ticket(session_id))

    def list(
        self, *, status: Status | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionForImprovement]:
        with self._state.lock:
            latest = sorted(self._state.tickets.values(), key=lambda ticket: -ticket.changed)
            told = [self._state.told(ticket) for ticket in latest]
            return [order for order in told if status in {None, order.status}][offset : offset + limit]

    def counts(self) -> dict[Status, int]:
        with self._state.lock:
            statuses = [self._state.told(ticket).status for ticket in self._state.tickets.values()]
            return {status: statuses.count(status) for status in Status}

    def cancel(self, session_id: str) -> None:
        with self._state.lock:
            status = self._state.told(self._state.ticket(session_id)).status
            if status in {Status.PROCESSING, Status.DONE}:
                raise ConflictError(
                    f"the order of session {session_id!r} is {status}; only a pending, failed or refused "
                    "one can be cancelled (mark the session irrelevant to undo what was learnt)"
                )
            del self._state.tickets[session_id]


class MemoryFolds:
    def __init__(self, state: State) -> None:
        self._state = state

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        now = time.time() if now is None else now
        with self._state.lock:
            due = [entry for entry in self._state.queue.values() if entry.not_before <= now]
            due = sorted(due, key=Entry.turn)[:users]
            if not due:
                return None
            is_alone = due[0].token is not None
            token = secrets.token_hex(16)
            folds = []
            for entry in due[:1] if is_alone else [entry for entry in due if entry.token is None]:
                fold = replace(
                    entry.fold, attempts=entry.fold.attempts + (entry.token is None or entry.is_alone)
                )
                folds.append(fold)
                self._state.queue[fold.collection, fold.user_id] = replace(
                    entry, fold=fold, token=token, is_alone=is_alone, not_before=now + lease_seconds
                )
            return Claim(token, tuple(folds))

    def renew(self, token: str, lease_seconds: float) -> None:
        with self._state.lock:
            for key, entry in self._state.queue.items():
                if entry.token == token:
                    self._state.queue[key] = replace(entry, not_before=time.time() + lease_seconds)

    def release(self, token: str) -> None:
        with self._state.lock:
            for key, entry in self._state.queue.items():
                if entry.token == token:
                    fold = replace(entry.fold, attempts=entry.fold.attempts - 1)
                    self._state.queue[key] = replace(entry, fold=fold, token=None, not_before=0.0)
            self._state.lock.notify_all()

    def fail(
        self,
        token: str,
        fold: Fold,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
        max_attempts: int,
        backoff_seconds: float,
    ) -> list[str]:
        is_last = fold.attempts >= max_attempts
        due_at = None if is_last else time.time() + backoff_seconds * 2 ** (fold.attempts - 1)
        status = Status.FAILED if is_last else Status.PENDING
        return self._given_back(token, fold, status, detail, sessions=sessions, due_at=due_at)

    def refuse(self, token: str, fold: Fold, detail: str) -> list[str]:
        return self._given_back(token, fold, Status.REFUSED, detail)

    def wait(self, timeout_seconds: float) -> bool:
        def something_is_due() -> bool:
            now = time.time()
            return any(entry.not_before <= now for entry in self._state.queue.values())

        with self._state.lock:
            return self._state.lock.wait_for(something_is_due, timeout_seconds)

    def _given_back(
        self,
        token: str,
        fold: Fold,
        status: Status,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
        due_at: float | None = None,
    ) -> list[str]:
        key = fold.collection, fold.user_id
        with self._state.lock:
            entry = self._state.queue.get(key)
            if entry is None or entry.token != token:
                return []
            del self._state.queue[key]
            if due_at is not None:
                self._state.queue[key] = replace(entry, token=None, not_before=due_at)
            if sessions is None:
                orders = [ticket.order for ticket in self._state.tickets.values()]
                sessions = {
                    order.session_id: detail
                    for order in orders
                    if (order.collection, order.user_id, order.status) == (*key, Status.PENDING)
                }
            theirs = [
                session_id
                for session_id in sessions
                if (ticket := self._state.tickets.get(session_id)) and ticket.order.user_id == fold.user_id
            ]
            for session_id in theirs:
                self._state.end(session_id, status, sessions[session_id], fold.attempts)
            return theirs


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
    ) -> NearMemories:
        with self._state.lock:
            shelf = self._state.shelf(collection)
            own = shelf.states.get(user_id) if user_id is not None else None
            memories = () if own is None else copied_state(own).memories
            near = cosines(np.array([memory.query for memory in memories]), query) > threshold
            return NearMemories(
                [memory for memory, is_near in zip(memories, near, strict=True) if is_near],
                shelf.votes.near(user_id, query, threshold, shared_by) if shared_by else [],
            )

    def nearest(
        self,
        collection: Collection,
        user_id: str,
        queries: Vectors,
        limit: int,
        gates: Mapping[str, float],
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[Neighbour]:
        index = collection.index
        with self._state.lock:
            shelf = self._state.shelf(collection)
            copies = shelf.states.get(user_id, PersonalState()).vectors
            moved = [i for i in gates if i in copies and i in shelf.objects]
            near = shelf.nearest(queries, limit, payload_filter=filter, without=frozenset(moved))
            if moved:
                blended = blend(
                    similarities_of(index, queries, [shelf.objects[i].parts for i in moved]),
                    similarities_of(index, queries, [copies[i] for i in moved]),
                    np.array([gates[i] for i in moved]),
                )
                near += [
                    Neighbour(object_id, distance, copy.deepcopy(shelf.objects[object_id].payload))
                    for object_id, distance in zip(moved, distances(index, blended).tolist(), strict=True)
                    if filter is None or filter.matches(shelf.objects[object_id].payload)
                ]
            return sorted(near, key=lambda each: (each.distance, each.object_id))[:limit]

    def copies(self, collection: Collection, user_id: str, object_ids: Sequence[str]) -> dict[str, Vectors]:
        with self._state.lock:
            copies = self._state.shelf(collection).states.get(user_id, PersonalState()).vectors
            return {object_id: copies[object_id].copy() for object_id in object_ids if object_id in copies}

    def state(self, collection: Collection, user_id: str) -> PersonalState:
        with self._state.lock:
            return copied_state(self._state.shelf(collection).states.get(user_id, PersonalState()))

    @contextmanager
    def learning(self, collection: Collection, user_ids: Sequence[str]) -> Iterator["MemoryLearning"]:
        held = {(collection.collection_id, user_id) for user_id in user_ids}
        with self._state.lock:
            self._state.lock.wait_for(lambda: not held & self._state.folding)
            self._state.shelf(collection)
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
        self._completed: list[tuple[str, Sequence[OrderOutcome], PassedOver]] = []

    def recent_sessions(self, limit_per_user: int) -> dict[str, list[RecordedSession]]:
        with self._state.lock:
            names = self._state.names(self._collection)
            recent: dict[str, list[RecordedSession]] = {user_id: [] for user_id in self._user_ids}
            theirs = (visit for visit in self._state.visits.values() if visit.session.user_id in recent)
            for visit in sorted(theirs, key=Visit.age, reverse=True):
                session = visit.session
                if (
                    session.user_id is not None
                    and len(recent[session.user_id]) < limit_per_user
                    and session.collection in names
                    and self._state.is_counted(session.session_id)
                    and visit.events
                    and not session.is_irrelevant
                ):
                    recent[session.user_id].append(visit.recorded(self._collection.index))
            return {user_id: latest[::-1] for user_id, latest in recent.items()}

    def originals(self, object_ids: Iterable[str]) -> dict[str, Vectors]:
        with self._state.lock:
            objects = self._state.shelf(self._collection).objects
            return {i: objects[i].parts.copy() for i in object_ids if i in objects}

    def held(self, token: str) -> set[str]:
        with self._state.lock:
            names = self._state.names(self._collection)
            return {
                user_id
                for (name, user_id), entry in self._state.queue.items()
                if entry.token == token and name in names and user_id in self._user_ids
            }

    def store_query_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        self._query_vectors.update({i: np.atleast_2d(np.array(v, np.float32)) for i, v in vectors.items()})

    def replace_states(self, states: Mapping[str, PersonalState]) -> None:
        self._states.update({user_id: copied_state(state) for user_id, state in states.items()})

    def complete(
        self, token: str, outcomes: Sequence[OrderOutcome], passed_over: PassedOver
    ) -> list[OrderOutcome]:
        self._completed.append((token, outcomes, passed_over))
        with self._state.lock:  # what it will come to, undone until the commit
            tickets, queue = dict(self._state.tickets), dict(self._state.queue)
            new = self._complete(token, outcomes, passed_over)
            self._state.tickets, self._state.queue = tickets, queue
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
                if session_id in self._state.visits:
                    self._state.visits[session_id].query_vectors = vectors
            self._state.shelf(self._collection).replace_states(self._states)
            for given in self._completed:
                self._complete(*given)
