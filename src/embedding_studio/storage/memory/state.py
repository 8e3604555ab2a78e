"""What ``memory`` keeps, and the few things that more than one of its doors do with it."""

import copy
import heapq
import itertools
import json
import threading
from collections.abc import Collection as Container
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    JSON,
    CatalogueObject,
    Collection,
    Neighbour,
    PersonalState,
    SharedMemory,
    SharedVote,
    payload_as_json,
)
from embedding_studio.domain.sessions import (
    ANONYMOUS,
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.embeddings.similarity import distances, similarities
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    OrderNotFoundError,
    SessionNotFoundError,
)
from embedding_studio.storage.ports import (
    MAX_DETAIL_LENGTH,
    SHARED_QUERIES,
    SHARED_VOTES,
    Fold,
    OrderOutcome,
    PassedOver,
    Vectors,
)

Status = SessionForImprovementStatus


@dataclass(slots=True)
class State:
    """Everything, under one lock.

    Attributes:
        lock: notified when a user is marked and when a fold ends.
        shelves: by the collection's name.
        queue: (name of a collection, user_id) -> whose state is stale.
        folding: (collection_id, user_id) of those that somebody is folding anew just now.
        ticks: numbers every change of an order, so that two within one second have an order.
    """

    order_on: Container[str]
    lock: threading.Condition = field(default_factory=threading.Condition)
    shelves: dict[str, "Shelf"] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    visits: dict[str, "Visit"] = field(default_factory=dict)
    tickets: dict[str, "Ticket"] = field(default_factory=dict)
    queue: dict[tuple[str, str], "Entry"] = field(default_factory=dict)
    folding: set[tuple[int, str]] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    ticks: Iterator[int] = field(default_factory=itertools.count)

    def named(self, name: str) -> "Shelf":
        shelf = self.shelves.get(self.aliases.get(name, name))
        if shelf is None:
            raise CollectionNotFoundError(f"no collection or alias has the name {name!r}; create it first")
        return shelf

    def shelf(self, collection: Collection) -> "Shelf":
        shelf = self.shelves.get(collection.name)
        if shelf is None or shelf.collection.collection_id != collection.collection_id:
            raise CollectionNotFoundError(f"the collection {collection.name!r} has been dropped")
        return shelf

    def names(self, collection: Collection) -> set[str]:
        """Return every name that stands for a collection now."""
        return {collection.name} | {alias for alias, name in self.aliases.items() if name == collection.name}

    def visit(self, session_id: str) -> "Visit":
        visit = self.visits.get(session_id)
        if visit is None:
            raise SessionNotFoundError(f"no session {session_id!r} was registered")
        return visit

    def ticket(self, session_id: str) -> "Ticket":
        ticket = self.tickets.get(session_id)
        if ticket is None:
            raise OrderNotFoundError(f"no improvement order was placed for session {session_id!r}")
        return ticket

    def wait_for_folds_of_collection(self, collection: Collection) -> None:
        number = collection.collection_id
        self.lock.wait_for(lambda: not any(folded == number for folded, _ in self.folding))

    def wait_for_folds_of_user(self, user_id: str) -> None:
        self.lock.wait_for(lambda: not any(folded == user_id for _, folded in self.folding))

    def place(self, session_id: str) -> SessionForImprovement:
        """Place an order, or place it anew whatever became of it."""
        session = self.visits[session_id].whole()
        placed = self.tickets.get(session_id)
        now = utc_timestamp()
        positions = {result.object_id: result.position or 0 for result in session.search_results}
        order = SessionForImprovement(
            session_id=session_id,
            user_id=session.user_id,
            collection=session.collection,
            status=Status.REFUSED if session.user_id is None else Status.PENDING,
            detail=ANONYMOUS if session.user_id is None else None,
            priority=int(any(positions.get(object_id, 0) > 3 for object_id in session.clicked())),
            created_at=placed.order.created_at if placed else now,
            updated_at=now,
        )
        self.tickets[session_id] = Ticket(order, next(self.ticks))
        if session.user_id is not None:
            self.mark(session.collection, session.user_id, order.priority)
        return order

    def mark(self, name: str, user_id: str, priority: int = 0) -> None:
        """Let a user be folded anew."""
        entry = self.queue.get((name, user_id))
        since = next(self.ticks) if entry is None else entry.since
        priority = priority if entry is None else max(priority, entry.priority)
        self.queue[name, user_id] = Entry(Fold(name, user_id, 0), priority, since)
        self.lock.notify_all()

    def mark_everyone(self, names: Container[str]) -> int:
        """Let all be folded anew who have orders under these names; return how many they are."""
        users = {ticket.order.user_id for ticket in self.tickets.values()}
        return self.mark_users(users - {None}, names)

    def mark_users(self, user_ids: Iterable[str | None], names: Container[str]) -> int:
        """Let those of the users be folded anew who have orders under one of these names."""
        wanted = set(user_ids)
        found = {
            (ticket.order.collection, ticket.order.user_id)
            for ticket in self.tickets.values()
            if ticket.order.user_id in wanted and ticket.order.collection in names
        }
        for name, user_id in sorted((name, user_id) for name, user_id in found if user_id is not None):
            self.mark(name, user_id)
        return len({user_id for _, user_id in found})

    def is_counted(self, session_id: str) -> bool:
        ticket = self.tickets.get(session_id)
        return ticket is not None and ticket.order.status is not Status.FAILED

    def told(self, ticket: "Ticket") -> SessionForImprovement:
        """Return an order as it is told: of a pending one, its user's entry says whether it is in hand."""
        order = ticket.order
        entry = self.queue.get((order.collection, order.user_id or ""))
        if order.status is not Status.PENDING or entry is None:
            return order
        status = Status.PENDING if entry.token is None else Status.PROCESSING
        return order.model_copy(
            update={"status": status, "attempts": entry.fold.attempts, "not_before": entry.not_before}
        )

    def end(self, session_id: str, status: Status, detail: str | None, attempts: int) -> OrderOutcome | None:
        """Write what became of a session; return it if that is something new."""
        ticket = self.tickets[session_id]
        detail = None if detail is None else detail[:MAX_DETAIL_LENGTH]
        if (ticket.order.status, ticket.order.detail) == (status, detail):
            return None
        changes = {"status": status, "detail": detail, "attempts": attempts, "updated_at": utc_timestamp()}
        self.tickets[session_id] = Ticket(ticket.order.model_copy(update=changes), next(self.ticks))
        return OrderOutcome(session_id, status, detail)

    def complete(
        self,
        token: str,
        outcomes: Sequence[OrderOutcome],
        passed_over: PassedOver,
        *,
        user_ids: Container[str],
        names: Container[str],
    ) -> list[OrderOutcome]:
        """Do as ``LearningTransaction.complete`` says, for some users under some names."""
        held = {
            key: entry
            for key, entry in self.queue.items()
            if entry.token == token and key[0] in names and key[1] in user_ids
        }
        attempts: dict[str | None, int] = {
            user_id: entry.fold.attempts for (_, user_id), entry in held.items()
        }
        looked_at = {
            outcome.session_id: outcome
            for outcome in outcomes
            if (ticket := self.tickets.get(outcome.session_id)) and ticket.order.user_id in attempts
        }
        new = []
        failed = []
        for session_id, ticket in list(self.tickets.items()):
            order, outcome = ticket.order, looked_at.get(session_id)
            if outcome is not None and outcome.status is Status.FAILED:
                failed += [outcome] if order.status is not Status.FAILED else []
            elif outcome is not None:
                new.append(self.end(session_id, outcome.status, outcome.detail, attempts[order.user_id]))
            elif order.status is Status.PENDING and order.user_id in attempts and order.collection in names:
                why = self._why_passed_over(session_id, passed_over)
                new.append(self.end(session_id, Status.REFUSED, why, attempts[order.user_id]))
        kept = {self.tickets[outcome.session_id].order.user_id for outcome in failed}
        for key in held:
            if key[1] not in kept:
                del self.queue[key]
        return [outcome for outcome in new if outcome is not None] + failed

    def _why_passed_over(self, session_id: str, passed_over: PassedOver) -> str:
        visit = self.visits[session_id]
        if visit.session.is_irrelevant:
            return passed_over.irrelevant
        return passed_over.too_old if visit.events else passed_over.no_events

    def fold_anew(self, shelf: "Shelf", object_ids: AbstractSet[str]) -> None:
        """Drop copies of objects whose originals came, changed or went; have users who met them folded anew.

        They met them if they were shown them, or clicked them, in a session that has an order.
        """
        for user_id, state in shelf.states.items():
            kept = {i: vectors for i, vectors in state.vectors.items() if i not in object_ids}
            shelf.states[user_id] = replace(state, vectors=kept)
        names = self.names(shelf.collection)
        users = set()
        for session_id in self.tickets:
            session = self.visits[session_id].whole()
            met = {result.object_id for result in session.search_results}
            met |= {event.object_id for event in session.events}
            if session.collection in names and met & object_ids:
                users.add(session.user_id)
        self.mark_users(users - {None}, names)


@dataclass(slots=True)
class Votes:
    """What users say for queries.

    Attributes:
        of_query: query_key -> user_id -> vote; those of one key have one and the same query.
        stack: the keys, sorted, and their queries, [N, D] float32; absent from a write to the next search.
    """

    of_query: dict[str, dict[str, SharedVote]] = field(default_factory=dict)
    stack: "tuple[list[str], Vectors] | None" = None

    def replace(
        self, before: Mapping[str, Sequence[SharedVote]], after: Mapping[str, Sequence[SharedVote]]
    ) -> dict[str, tuple[SharedVote, ...]]:
        """Let each user's votes take the place of those before; return them as they are stored."""
        stored = {}
        for user_id, votes in sorted(after.items()):
            ordered = sorted(votes, key=lambda vote: vote.query_key)
            stored[user_id] = tuple(replace(vote, query=self._query_for(vote)) for vote in ordered)
            for vote in stored[user_id]:
                self.of_query.setdefault(vote.query_key, {})[user_id] = vote
        for user_id, votes in before.items():
            for key in {vote.query_key for vote in votes} - {vote.query_key for vote in after[user_id]}:
                del self.of_query[key][user_id]
                if not self.of_query[key]:
                    del self.of_query[key]
        if any(before.values()) or any(after.values()):
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
            self.stack = keys, np.array([next(iter(self.of_query[key].values())).query for key in keys])
        keys, queries = self.stack
        alike = cosines(queries, query)
        counted: set[str] = set()
        shared = []
        for row in np.argsort(-alike, kind="stable")[:SHARED_QUERIES]:  # rows are in the order of keys
            if alike[row] <= threshold:
                break
            votes = self.of_query[keys[row]].items()
            latest = heapq.nsmallest(
                max(SHARED_VOTES, shared_by),
                ((-vote.created_at, name, vote.clicked_mean) for name, vote in votes if name != user_id),
                key=itemgetter(0, 1),
            )
            means = {name: mean for _, name, mean in latest if name not in counted}
            if means:
                mean = np.stack(list(means.values())).mean(axis=0, keepdims=True, dtype=np.float64)
                shared.append(SharedMemory(queries[row].copy(), mean[0].astype(np.float32), len(means)))
                counted |= means.keys()
        return shared if len(counted) >= shared_by else []


@dataclass(slots=True)
class Shelf:
    """A collection's content; ``stack`` is absent from a write to the next search."""

    collection: Collection
    objects: dict[str, CatalogueObject] = field(default_factory=dict)
    states: dict[str, PersonalState] = field(default_factory=dict)
    votes: Votes = field(default_factory=Votes)
    stack: "Stack | None" = None
    margin: float | None = None

    def replace_states(self, states: Mapping[str, PersonalState]) -> None:
        before = {user_id: self.states.get(user_id, PersonalState()).votes for user_id in states}
        stored = self.votes.replace(before, {user_id: state.votes for user_id, state in states.items()})
        for user_id, state in states.items():
            self.states[user_id] = replace(state, votes=stored[user_id])

    def nearest(
        self,
        queries: Vectors,
        limit: int,
        *,
        payload_filter: PayloadFilter | None = None,
        max_distance: float | None = None,
        without: Container[str] = (),
    ) -> list[Neighbour]:
        queries = check_vectors(self.collection.index, queries, "the query")
        if self.stack is None:
            self.stack = Stack.of(self.collection.index, self.objects)
        number = limit if payload_filter is None else len(self.objects)
        found = self.stack.nearest(queries, number, max_distance, without)
        matching = (
            (object_id, distance)
            for object_id, distance in found
            if payload_filter is None or payload_filter.matches(self.objects[object_id].payload)
        )
        return [
            Neighbour(object_id, distance, copy.deepcopy(self.objects[object_id].payload))
            for object_id, distance in itertools.islice(matching, limit)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The parts of all objects in one array, object after object by object_id.

    Attributes:
        rows: object_id -> [I].
        parts: [N, D] float32.
        starts: [I], where each object's parts begin.
    """

    index: SearchIndexInfo
    object_ids: list[str]
    rows: dict[str, int]
    parts: Vectors
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, index: SearchIndexInfo, objects: dict[str, CatalogueObject]) -> "Stack":
        object_ids = sorted(objects)
        rows = {object_id: row for row, object_id in enumerate(object_ids)}
        parts = [objects[object_id].parts for object_id in object_ids]
        starts = np.cumsum([0, *map(len, parts)][:-1] if parts else [], dtype=np.int64)
        nothing = np.empty((0, index.dimensions or 0), dtype=np.float32)
        return cls(index, object_ids, rows, np.concatenate([nothing, *parts]), starts)

    def nearest(
        self, queries: Vectors, limit: int, max_distance: float | None, without: Container[str]
    ) -> list[tuple[str, float]]:
        """Return (object_id, distance) of the nearest by (distance, object_id)."""
        found = distances(self.index, similarities(self.index, queries, self.parts, self.starts))
        found[[self.rows[object_id] for object_id in without if object_id in self.rows]] = np.inf
        reach = np.inf if max_distance is None else max_distance
        if 0 < limit < len(found):  # all that tie with the last stay until the order of ids has decided
            reach = min(reach, np.partition(found, limit - 1)[limit - 1])
        near = np.flatnonzero((found <= reach) & (found < np.inf))
        near = near[np.argsort(found[near], kind="stable")][:limit]  # rows are in the order of ids
        return [
            (self.object_ids[row], distance) for row, distance in zip(near, found[near].tolist(), strict=True)
        ]


@dataclass(slots=True)
class Visit:
    """A session as it grows; ``session`` holds neither its results nor its events."""

    session: Session
    query_vectors: Vectors | None
    results: dict[str, SearchResultItem] = field(default_factory=dict)
    events: dict[str, SessionEvent] = field(default_factory=dict)

    def age(self) -> tuple[int, str]:
        return self.session.created_at, self.session.session_id

    def unit(self) -> tuple[str, str]:
        """Return under which name and whose it is."""
        return self.session.collection, self.session.user_id or ""

    def check_same(self, other: Session) -> None:
        for what in ("user_id", "search_query", "collection"):
            ours, theirs = getattr(self.session, what), getattr(other, what)
            if ours != theirs:
                raise ConflictError(
                    f"session {other.session_id!r} has {what} {ours!r} already, not {theirs!r}; "
                    "give each search a session_id of its own"
                )

    def show(self, results: Iterable[SearchResultItem]) -> None:
        for result in results:
            position = result.position or 1 + max((r.position or 0 for r in self.results.values()), default=0)
            self.results.setdefault(result.object_id, result.model_copy(update={"position": position}))

    def note(self, event: SessionEvent) -> EventDisposition:
        if event.event_id in self.events:
            return EventDisposition.DUPLICATE
        self.events[event.event_id] = event
        if self.results and event.object_id not in self.results:
            return EventDisposition.UNKNOWN_OBJECT
        return EventDisposition.ACCEPTED

    def whole(self) -> Session:
        results = sorted(self.results.values(), key=lambda result: (result.position or 0, result.object_id))
        events = sorted(self.events.values(), key=lambda event: (event.created_at, event.event_id))
        return self.session.model_copy(update={"search_results": tuple(results), "events": tuple(events)})

    def recorded(self, index: SearchIndexInfo) -> RecordedSession:
        vectors = self.query_vectors
        fits = vectors is not None and vectors.shape[1] == index.dimensions
        return RecordedSession(self.whole(), vectors.copy() if vectors is not None and fits else None)


@dataclass(frozen=True, slots=True)
class Ticket:
    """An order.

    Attributes:
        changed: tick of its latest change.
    """

    order: SessionForImprovement
    changed: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A user in the queue.

    Attributes:
        since: tick at which the user was marked first.
        not_before: UTC seconds; until then nobody claims the user.
        token: of the claim that holds the user, or held when its worker ended.
        is_alone: whether the latest claim held nobody else.
    """

    fold: Fold
    priority: int
    since: int
    not_before: float = 0.0
    token: str | None = None
    is_alone: bool = False

    def turn(self) -> tuple[int, int]:
        return -self.priority, self.since


def stored_object(collection: Collection, given: CatalogueObject) -> CatalogueObject:
    """Return an object as storage keeps it: vectors checked, payload as JSON gives it back."""
    parts = check_vectors(collection.index, given.parts, f"object {given.object_id!r}")
    return replace(given, parts=parts.copy(), payload=stored_payload(given.object_id, given.payload))


def stored_payload(object_id: str, payload: JSON) -> JSON:
    stored: JSON = json.loads(payload_as_json(object_id, payload))
    return stored


def copied_object(item: CatalogueObject) -> CatalogueObject:
    return replace(item, parts=item.parts.copy(), payload=copy.deepcopy(item.payload))


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


def cosines(vectors: Vectors, query: Vectors) -> NDArray[np.float64]:
    """Return [N], the cosine of each of [N, D] to [D]; -inf where one of the two is zero."""
    if len(vectors) == 0:
        return np.empty(0)
    rows, q = vectors.astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(q)
    found: NDArray[np.float64] = np.full(len(rows), -np.inf)
    np.divide(np.vecdot(rows, q), lengths, out=found, where=lengths > 0)
    return found
