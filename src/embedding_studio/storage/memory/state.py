"""What is kept in memory, under one lock, and the few things that more than one port does with it."""

import copy
import itertools
import threading
import time
from collections.abc import Collection as Container
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.keys import ApiKey
from embedding_studio.domain.objects import (
    JSON,
    CatalogueObject,
    Collection,
    Neighbour,
    PersonalState,
)
from embedding_studio.domain.sessions import (
    ANONYMOUS,
    TAKEN_BACK,
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import (
    CollectionNotFoundError,
    OrderNotFoundError,
    SessionNotFoundError,
)
from embedding_studio.storage.memory.nearest import Stack
from embedding_studio.storage.memory.votes import Votes
from embedding_studio.storage.ports import (
    LONGEST_OUTAGE_WAIT_SECONDS,
    MAX_DETAIL_LENGTH,
    OrderOutcome,
    PassedOver,
    QuarantineDecision,
    QueueEntry,
    Vectors,
)

Status = SessionForImprovementStatus


@dataclass(slots=True)
class State:
    """Everything, under one lock.

    Attributes:
        lock: notified when a user is marked and when a fold ends.
        watching: so many wait for a mark.
        schemas: by the collection's name.
        of_user: user_id -> session_id -> session, so that a user's are found without a look at all.
        most_waiting: so many events wait.
        shared_half_life: seconds.
        waiting: session_id -> event_id -> event, UTC seconds of its arrival and who sent it, of sessions that
            are not recorded yet.
        queue: (name of a collection, user_id) -> whose state is stale.
        folding: (collection_id, user_id) of those that somebody is folding again just now.
        ticks: numbers every change of an order, so that two within one second have an order.
    """

    order_on: Container[str]
    most_waiting: int
    shared_half_life: float
    lock: threading.Condition = field(default_factory=threading.Condition)
    watching: int = 0
    schemas: dict[str, "Tables"] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, "StoredSession"] = field(default_factory=dict)
    of_user: dict[str | None, dict[str, "StoredSession"]] = field(default_factory=dict)
    orders: dict[str, "StoredOrder"] = field(default_factory=dict)
    waiting: dict[str, dict[str, tuple[SessionEvent, float, str]]] = field(default_factory=dict)
    decisions: dict[str, QuarantineDecision] = field(default_factory=dict)
    queue: dict[tuple[str, str], "StoredEntry"] = field(default_factory=dict)
    folding: set[tuple[int, str]] = field(default_factory=set)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    ticks: Iterator[int] = field(default_factory=itertools.count)

    def named(self, name: str) -> "Tables":
        tables = self.schemas.get(self.aliases.get(name, name))
        if tables is None:
            raise CollectionNotFoundError(f"no collection or alias has the name {name!r}; create it first")
        return tables

    def tables(self, collection: Collection) -> "Tables":
        tables = self.schemas.get(collection.name)
        if tables is None or tables.collection.collection_id != collection.collection_id:
            raise CollectionNotFoundError(f"the collection {collection.name!r} has been dropped")
        return tables

    def names(self, collection: Collection) -> set[str]:
        """Return every name that stands for a collection now."""
        return {collection.name} | {alias for alias, name in self.aliases.items() if name == collection.name}

    def stored_session(self, session_id: str) -> "StoredSession":
        stored = self.sessions.get(session_id)
        if stored is None:
            raise SessionNotFoundError(f"no session {session_id!r} was registered")
        return stored

    def stored_order(self, session_id: str) -> "StoredOrder":
        placed = self.orders.get(session_id)
        if placed is None:
            raise OrderNotFoundError(f"no improvement order was placed for session {session_id!r}")
        return placed

    def wait_for_folds_of_collection(self, collection: Collection) -> None:
        number = collection.collection_id
        self.lock.wait_for(lambda: not any(folded == number for folded, _ in self.folding))

    def wait_for_folds_of_user(self, user_id: str) -> None:
        self.lock.wait_for(lambda: not any(folded == user_id for _, folded in self.folding))

    def place(self, session_id: str) -> SessionForImprovement:
        """Place an order, or place it again whatever became of it."""
        session = self.sessions[session_id].whole()
        placed = self.orders.get(session_id)
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
        self.orders[session_id] = StoredOrder(order, next(self.ticks))
        if session.user_id is not None:
            self.mark(session.collection, session.user_id, order.priority)
        return order

    def mark(self, name: str, user_id: str, priority: int = 0) -> None:
        """Let a user be folded again."""
        stored = self.queue.get((name, user_id))
        since = next(self.ticks) if stored is None else stored.since
        marked_at = time.time() if stored is None else stored.marked_at
        priority = priority if stored is None else max(priority, stored.priority)
        self.queue[name, user_id] = StoredEntry(QueueEntry(name, user_id, 0), priority, since, marked_at)
        self.lock.notify_all()

    def mark_everyone(self, names: Container[str]) -> int:
        """Let all be folded again who have orders under these names; return how many they are."""
        users = {placed.order.user_id for placed in self.orders.values()}
        return self.mark_users(users - {None}, names)

    def mark_left(self, alias: str, name: str) -> None:
        """Let the users of an alias be folded again in the collection for which it stands no longer."""
        orders = (placed.order for placed in self.orders.values())
        users = {order.user_id for order in orders if order.collection == alias}
        for user_id in sorted(user_id for user_id in users if user_id is not None):
            self.mark(name, user_id)

    def mark_users(self, user_ids: Iterable[str | None], names: Container[str]) -> int:
        """Let those of the users be folded again who have orders under one of these names."""
        wanted = set(user_ids)
        found = {
            (placed.order.collection, placed.order.user_id)
            for placed in self.orders.values()
            if placed.order.user_id in wanted and placed.order.collection in names
        }
        for name, user_id in sorted((name, user_id) for name, user_id in found if user_id is not None):
            self.mark(name, user_id)
        return len({user_id for _, user_id in found})

    def is_counted(self, session_id: str) -> bool:
        placed = self.orders.get(session_id)
        return placed is not None and placed.order.status is not Status.FAILED

    def shown(self, placed: "StoredOrder") -> SessionForImprovement:
        """Return an order as it is shown: of a pending one, its user's entry says whether it is in hand."""
        order = placed.order
        stored = self.queue.get((order.collection, order.user_id or ""))
        if order.status is not Status.PENDING:
            return order
        if stored is None:
            return order.model_copy(update={"attempts": 0, "not_before": 0.0})
        status = Status.PENDING if stored.token is None else Status.PROCESSING
        return order.model_copy(
            update={"status": status, "attempts": stored.entry.attempts, "not_before": stored.not_before}
        )

    def end(self, session_id: str, status: Status, detail: str | None, attempts: int) -> OrderOutcome | None:
        """Write what became of a session; return it if that is something new."""
        placed = self.orders[session_id]
        detail = None if detail is None else detail[:MAX_DETAIL_LENGTH]
        if (placed.order.status, placed.order.detail) == (status, detail):
            return None
        changes = {"status": status, "detail": detail, "attempts": attempts, "updated_at": utc_timestamp()}
        self.orders[session_id] = StoredOrder(placed.order.model_copy(update=changes), next(self.ticks))
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
            key: stored
            for key, stored in self.queue.items()
            if stored.token == token and key[0] in names and key[1] in user_ids
        }
        attempts: dict[str | None, int] = {
            user_id: stored.entry.attempts for (_, user_id), stored in held.items()
        }
        looked_at = {
            outcome.session_id: outcome
            for outcome in outcomes
            if (placed := self.orders.get(outcome.session_id)) and placed.order.user_id in attempts
        }
        new = []
        failed = []
        for placed in self._orders_of(attempts):
            order = placed.order
            session_id, outcome = order.session_id, looked_at.get(order.session_id)
            if outcome is not None and outcome.status is Status.FAILED:
                failed += [outcome] if order.status is not Status.FAILED else []
            elif outcome is not None:
                new.append(self.end(session_id, outcome.status, outcome.detail, attempts[order.user_id]))
            elif order.status is Status.PENDING and order.collection in names:
                why = self._why_passed_over(session_id, passed_over)
                new.append(self.end(session_id, Status.REFUSED, why, attempts[order.user_id]))
        kept = {self.orders[outcome.session_id].order.user_id for outcome in failed}
        for key in held:
            if key[1] not in kept:
                del self.queue[key]
        for (name, user_id), stored in self.queue.items():
            if user_id in attempts and name in names and stored.token not in {None, token}:
                self.queue[name, user_id] = stored.released()
        return [outcome for outcome in new if outcome is not None] + failed

    def _orders_of(self, user_ids: Iterable[str | None]) -> list["StoredOrder"]:
        """Return the orders of some users, the least recently changed first."""
        return sorted(self.orders_by_id(user_ids).values(), key=lambda placed: placed.changed)

    def orders_by_id(self, user_ids: Iterable[str | None]) -> dict[str, "StoredOrder"]:
        """Return session_id -> order of some users."""
        ids = (session_id for user_id in user_ids for session_id in self.of_user.get(user_id, ()))
        return {session_id: self.orders[session_id] for session_id in ids if session_id in self.orders}

    def _why_passed_over(self, session_id: str, passed_over: PassedOver) -> str:
        stored = self.sessions[session_id]
        if stored.session.is_irrelevant:
            return passed_over.irrelevant
        return passed_over.too_old if stored.events else passed_over.no_events

    def fold_again(self, tables: "Tables", object_ids: AbstractSet[str]) -> None:
        """Drop copies of objects whose originals came, changed or went; have users who met them folded again.

        They met them if they were shown them, or clicked them, in a session that has an order.
        """
        for user_id, state in tables.states.items():
            kept = {i: vectors for i, vectors in state.vectors.items() if i not in object_ids}
            tables.states[user_id] = replace(state, vectors=kept)
        names = self.names(tables.collection)
        users = set()
        for session_id in self.orders:
            session = self.sessions[session_id].whole()
            met = {result.object_id for result in session.search_results}
            met |= {event.object_id for event in session.events}
            if session.collection in names and met & object_ids:
                users.add(session.user_id)
        self.mark_users(users - {None}, names)


@dataclass(slots=True)
class Tables:
    """A collection's content.

    Attributes:
        quarantined: user_id -> why, and since when in UTC seconds.
        noticed: object_id -> digest of the original, of an attached collection.
        stack: absent from a write to the next search.
    """

    collection: Collection
    votes: Votes
    objects: dict[str, CatalogueObject] = field(default_factory=dict)
    states: dict[str, PersonalState] = field(default_factory=dict)
    quarantined: dict[str, tuple[str, int]] = field(default_factory=dict)
    noticed: dict[str, str | None] = field(default_factory=dict)
    stack: "Stack | None" = None
    margin: float | None = None

    def quarantine(self, user_ids: Iterable[str], found: Mapping[str, str]) -> None:
        """Keep which of some users are quarantined, and why."""
        for user_id in user_ids:
            _, since = self.quarantined.pop(user_id, ("", utc_timestamp()))
            if user_id in found:
                self.quarantined[user_id] = found[user_id], since

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
            Neighbour(object_id, distance, copied_payload(self.objects[object_id].payload))
            for object_id, distance in itertools.islice(matching, limit)
        ]


def copied_payload(payload: JSON) -> JSON:
    return copy.deepcopy(payload) if payload else {}


@dataclass(slots=True)
class StoredSession:
    """A session as it grows; ``session`` holds neither its results nor its events."""

    session: Session
    query_vectors: Vectors | None
    sender: str = ""
    results: dict[str, SearchResultItem] = field(default_factory=dict)
    events: dict[str, SessionEvent] = field(default_factory=dict)

    def age(self) -> tuple[int, str]:
        return self.session.created_at, self.session.session_id

    def unit(self) -> tuple[str, str]:
        """Return under which name and whose it is."""
        return self.session.collection, self.session.user_id or ""

    def difference(self, other: Session) -> tuple[str, str | None] | None:
        """Return in what this is another session, and what it has there."""
        for what in ("user_id", "search_query", "collection"):
            ours = getattr(self.session, what)
            if ours != getattr(other, what):
                return what, ours
        return None

    def show(self, results: Iterable[SearchResultItem]) -> None:
        for result in results:
            stored = result
            if result.position is None:
                last = max((each.position or 0 for each in self.results.values()), default=0)
                stored = result.model_copy(update={"position": last + 1})
            self.results.setdefault(stored.object_id, stored)

    def note(self, event: SessionEvent) -> EventDisposition:
        if (same := self.events.get(event.event_id)) is not None:
            is_equal = (same.object_id, same.event_type) == (event.object_id, event.event_type)
            return EventDisposition.DUPLICATE if is_equal else EventDisposition.CONFLICT
        self.events[event.event_id] = event
        if not self.session.counts(event):
            return EventDisposition.TOO_EARLY
        if self.results and event.object_id not in self.results:
            return EventDisposition.UNKNOWN_OBJECT
        return EventDisposition.ACCEPTED

    def take_back(self, object_id: str) -> int:
        """Let the events on an object no longer count; return how many."""
        taken = {
            event_id: event.model_copy(update={"event_type": TAKEN_BACK})
            for event_id, event in self.events.items()
            if event.object_id == object_id and event.event_type != TAKEN_BACK
        }
        self.events |= taken
        return len(taken)

    def whole(self) -> Session:
        results = sorted(self.results.values(), key=lambda result: (result.position or 0, result.object_id))
        events = sorted(self.events.values(), key=lambda event: (event.created_at, event.event_id))
        return self.session.model_copy(update={"search_results": tuple(results), "events": tuple(events)})

    def recorded(self) -> RecordedSession:
        vectors = self.query_vectors
        return RecordedSession(self.whole(), None if vectors is None else vectors.copy(), self.sender)


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """An order.

    Attributes:
        changed: tick of its latest change.
    """

    order: SessionForImprovement
    changed: int


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A user in the queue.

    Attributes:
        since: tick at which the user was marked first.
        marked_at: UTC seconds at which that was.
        not_before: UTC seconds; until then no worker claims the user.
        token: of the claim that holds the user, or held when its worker ended.
        is_alone: whether the latest claim held no other user.
    """

    entry: QueueEntry
    priority: int
    since: int
    marked_at: float
    not_before: float = 0.0
    token: str | None = None
    is_alone: bool = False

    def released(self) -> "StoredEntry":
        """Return it as it was before the claim."""
        entry = replace(self.entry, attempts=self.entry.attempts - 1)
        return replace(self, entry=entry, token=None, not_before=0.0)

    def put_off(self, backoff_seconds: float) -> "StoredEntry":
        """Return it with the attempt taken back, due after as long as it has waited, within bounds."""
        now = time.time()
        seconds = min(LONGEST_OUTAGE_WAIT_SECONDS, max(backoff_seconds, now - self.marked_at))
        entry = replace(self.entry, attempts=self.entry.attempts - 1)
        return replace(self, entry=entry, not_before=now + seconds)

    def place(self) -> tuple[int, int]:
        return -self.priority, self.since
