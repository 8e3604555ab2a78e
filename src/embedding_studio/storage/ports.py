"""What the product needs of its storage.

Two implementations keep this promise and pass one contract suite: ``postgres`` (the product) and
``memory`` (its twin, for tests and for evaluation). Every method that writes is one transaction.
Originals are written by ``BaseIndex`` alone, personal state by ``LearningTransaction`` alone.

A method that takes a ``Collection`` takes what ``Collections.get`` returned; it may be kept, for
its number never changes (its ``gate_threshold`` and ``own_past`` may). Methods that take a name resolve
aliases.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.keys import ApiKey
from embedding_studio.domain.objects import (
    JSON,
    Attachment,
    CatalogueObject,
    Collection,
    NearMemories,
    Neighbour,
    OwnPast,
    PersonalState,
    QueryMemory,
)
from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    EventDisposition,
    FurtherPage,
    RecordedSession,
    Recording,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.errors import ConflictError, InvalidInputError, StorageError

Vectors = NDArray[np.float32]

EventContent = tuple[str, str]
"""The object and the type: what two events of one id have to have in common."""

RECALL_TARGET = 0.99
"""The share of the true nearest that a search is to find."""

POOL_SIZE = 8
"""Connections to a database."""

STATEMENT_SECONDS = 30.0
LOCK_SECONDS = 10.0
"""So long a statement may take, and wait for a lock, before the database gives up on it."""

WAITING_EVENTS = 100_000
"""So many events wait for sessions that are not recorded yet; more are not taken."""
WAITING_EVENTS_OF_SESSION = 100
"""So many of them for one session."""
WAITING_SECONDS = 86_400
"""So long they wait."""

WIDEST_MARGIN = 100
"""In standard errors."""

LONGEST_OUTAGE_WAIT_SECONDS = 60.0
"""So long a user waits at the most before learning is tried again that an outage interrupted."""

MAX_DETAIL_LENGTH = 2000
"""Characters to which storage cuts the detail of an order."""

SHARED_QUERIES = 20
SHARED_VOTES = 32
"""So many queries of others are looked at for one search, and of each so many votes, or ``shared_by``."""
SHARED_HALF_LIFE = 7 * 86_400
"""Seconds by which a vote has to be older than the latest ``shared_by`` that are counted to weigh half."""
MOST_HALF_LIVES = 1000
"""What is still older weighs as much, so that no number becomes too small to be one."""


def check_margin(margin: float | None) -> None:
    """Return if a margin can be stored.

    Raises:
        InvalidInputError: it is not above 0, or above ``WIDEST_MARGIN``.
    """
    if margin is not None and not 0 < margin <= WIDEST_MARGIN:
        raise InvalidInputError(
            f"the margin is {margin}; give a number of standard errors above 0 and up to {WIDEST_MARGIN}, or "
            "set RECALL_TARGET=1 to compare all"
        )


def require_shown(session: Session, positions: Mapping[str, int | None]) -> None:
    """Return if a session that comes again shows nothing that it did not show before.

    Args:
        positions: object_id -> position, of the session as it is recorded.

    Raises:
        ConflictError: it shows something else, or elsewhere.
    """
    for result in session.search_results:
        if positions.get(result.object_id, 0) != result.position:
            raise ConflictError(
                f"session {session.session_id!r} is recorded already, and did not show "
                f"{result.object_id!r} at position {result.position}; give each search an id of its own"
            )


def require_active(key: ApiKey, now: int) -> None:
    """Return if a key is good, so that another can take its place.

    Raises:
        ConflictError: it ended.
    """
    if (status := key.status(now)) != "active":
        raise ConflictError(f"the key {key.key_id!r} is {status}; create a new one instead")


def room_of(sender: str, *, free: int, held: int) -> int:
    """Return how many more events of one sender may wait.

    So many that as many places stay free as it holds: one alone has half of all, and the next finds room.

    >>> room_of("a key", free=100, held=0), room_of("a key", free=50, held=50), room_of("", free=100, held=0)
    (50, 0, 100)

    Args:
        free: places that are not held.
        held: by this sender.
    """
    return max(0, (free - held) // 2) if sender else free


def admit(
    events: Sequence[SessionEvent], waiting: Mapping[str, Mapping[str, EventContent]], room: int
) -> tuple[list[EventDisposition], list[SessionEvent]]:
    """Return what becomes of events of sessions that are not recorded, and those that are to wait.

    Args:
        waiting: session_id -> event_id -> content, of those that wait for these sessions already.
        room: so many may begin to wait.
    """
    of_session = {session_id: dict(there) for session_id, there in waiting.items()}
    became: list[EventDisposition] = []
    admitted: list[SessionEvent] = []
    for event in events:
        there = of_session.setdefault(event.session_id, {})
        content = event.object_id, event.event_type
        if event.event_id in there:
            is_equal = there[event.event_id] == content
            became.append(EventDisposition.DUPLICATE if is_equal else EventDisposition.CONFLICT)
        elif len(admitted) < room and len(there) < WAITING_EVENTS_OF_SESSION:
            there[event.event_id] = content
            admitted.append(event)
            became.append(EventDisposition.WAITING)
        else:
            became.append(EventDisposition.UNKNOWN_SESSION)
    return became, admitted


ORDER_ON = frozenset(kind for kind, weight in DEFAULT_EVENT_WEIGHTS.items() if weight > 0)
"""Event types that place an order where a storage is not given any."""


class OutdatedError(StorageError):
    """What a search was made of is so no longer: what a name stands for, or what is learnt about a user."""


class Collections(Protocol):
    def create(
        self,
        name: str,
        index: SearchIndexInfo,
        *,
        embedder: str | None = None,
        gate_threshold: float | None = None,
        attached: Attachment | None = None,
        filled: Attachment | None = None,
    ) -> Collection:
        """Return the new collection, or the one of this name if it is the same in every respect.

        Args:
            gate_threshold: None: that of the one that is there, for it may have been tuned; else the setting.
            attached: where its objects are, if another system keeps them; it is not asked.
            filled: what finds them, if another system does, which we fill; it is not asked. None: whatever
                finds those of the one that is there.

        Raises:
            InvalidInputError: ``index.dimensions`` is not known.
            ConflictError: the name is taken by an alias or a collection of another kind.
        """
        ...

    def get(self, name: str) -> Collection:
        """Return the collection that a name or alias stands for.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def seen(self, name: str) -> Collection:
        """Return as ``get``, or as it was when this process last looked; for what looks whether it still is.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def list(self) -> list[Collection]:
        """Return all collections by name."""
        ...

    def aliases(self) -> dict[str, str]:
        """Return alias -> collection name."""
        ...

    def set_gate_threshold(self, name: str, gate_threshold: float | None) -> Collection:
        """Return the collection with another threshold, which every search from now on uses.

        Args:
            gate_threshold: in [0, 1); None: the setting.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def set_own_past(self, name: str, own_past: OwnPast | None) -> Collection:
        """Return the collection with other weights of a user's own past, which every search from now on uses.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def rename_embedder(self, name: str, embedder: str) -> Collection:
        """Return the collection with another name for the model that embedded it: the same one, so all stays.

        What its content hashes were made with is kept, so that no text is embedded again.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def drop(self, name: str) -> None:
        """Remove a collection (not an alias) with its objects and all personal state in it.

        Sessions stay: they are what users did. Aliases to it go.
        """
        ...

    def set_alias(self, alias: str, name: str) -> None:
        """Let an alias stand for a collection from now on, and have its users folded again.

        The sessions recorded under the alias are folded against the collection's objects; where it stood
        for another collection before, what was learnt from them there is unlearnt.
        """
        ...

    def drop_alias(self, alias: str) -> None:
        """Let an alias stand for nothing; what was learnt under it is unlearnt.

        Raises:
            CollectionNotFoundError: there is no such alias.
        """
        ...

    def order_for_everyone(self, name: str) -> int:
        """Place an order for every user of a collection who has any, and return for how many.

        All are folded again: what is learnt depends on the settings, and these may have changed.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...


@dataclass(frozen=True, slots=True)
class CodesInfo:
    """How a collection is searched.

    Attributes:
        parts: for which there are codes; 0 where all are compared, so that nothing can be missed.
        margin: in standard errors: an object is left out where its estimated nearness misses that of the
            nearest by so much; None where that does not matter.
    """

    parts: int
    bytes_in_memory: int
    margin: float | None


class BaseIndex(Protocol):
    """Objects and their originals: what the embedding model made of a catalogue. It knows no user."""

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        """Store objects and their originals, replacing those of equal id.

        All are looked at first, and stored by thousands, each in one transaction, so that learning and
        clicks never wait long; where one fails, those before it are stored, and to repeat it does no harm.

        Users' copies of an object whose parts change are dropped with the old originals, and an order
        is placed for each user who was shown or clicked an object that is new or whose parts change, in
        a session that has an order: their state is folded again.

        Raises:
            InvalidVectorsError: wrong dimensions, not finite, no part, or zero under cosine; the
                message names the object. Nothing is stored.
            InvalidInputError: an id or a payload that cannot be stored. Nothing is stored.
        """
        ...

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        """Replace the payloads of those that exist, all or none; return the other ids, sorted.

        Vectors and users' copies stay, and no order is placed. Of a content hash the text's part stays.
        """
        ...

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        """Remove objects with all copies of them; return how many were there. Orders as in ``upsert``."""
        ...

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        """Return those that exist, in the order asked for."""
        ...

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        """Return object_id -> [P, D] for those that exist, to learn from them.

        Whatever changes one of them later marks the users who met it, if the sessions in which they did
        were recorded before this call.
        """
        ...

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the field's name in the documented request
    ) -> list[CatalogueObject]:
        """Return the first ``limit`` objects by object_id, in the order of its UTF-8 bytes.

        Args:
            after: only ids beyond this one, which need not exist; None: from the first.

        A page shorter than ``limit`` is the last. Each page is of its own instant: an object that is
        stored or removed between two pages may be missing from the whole, or in it.
        """
        ...

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        """Return object_id -> content hash for those that exist and have one."""
        ...

    def count(self, collection: Collection) -> int: ...

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the field's name in the documented request
        max_distance: float | None = None,
        margin: float | None = None,
    ) -> list[Neighbour]:
        """Return the ``limit`` nearest objects by (distance, object_id); fewer only if fewer match.

        Args:
            queries: [Q, D] float32, the parts of one query.
            max_distance: inclusive.
            margin: instead of the collection's (see ``CodesInfo``); infinite: compare all, at whatever cost.

        The distance of an object is under the collection's metric and aggregation over all pairs of
        query part and object part, and by its originals. A longer list begins with the shorter one.
        """
        ...

    def codes(self, collection: Collection) -> CodesInfo:
        """Return how the collection is searched."""
        ...

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        """Let every search from now on use a margin; None: that of the storage's own recall target.

        Raises:
            InvalidInputError: it is not above 0, or above ``WIDEST_MARGIN``.
        """
        ...


@dataclass(frozen=True, slots=True)
class SessionOwner:
    """Whose a session is.

    Attributes:
        collection: the name under which it was recorded.
    """

    user_id: str | None
    collection: str


class Clickstream(Protocol):
    """The log: what was searched, shown and done. It is appended to, and forgets users alone.

    Events may come before their session: they wait for it, and are joined to it in the transaction that
    records it, as if they had come just after.
    """

    def record(self, sessions: Sequence[RecordedSession]) -> list[Recording]:
        """Record sessions with the events they bring; return what became of each, in order.

        A session that is there already, of the same user, query and collection, by whichever of its names, is
        continued: what it shows for the first time is added, at the positions that it gives (a session
        numbers its results from 1 on without positions), as a further page if it has a request, and its
        events are pushed.

        Raises:
            CollectionNotFoundError: the collection of one that is new does not exist. Nothing is stored.
        """
        ...

    def register_session(
        self, session: Session, query_vectors: Vectors | None = None, *, sender: str = ""
    ) -> bool:
        """Record a session; events it brings are pushed too. The same session again changes nothing.

        Args:
            sender: by which key it came, as of a ``RecordedSession``.

        Returns:
            Whether it is new.

        Raises:
            CollectionNotFoundError: its collection does not exist.
            ConflictError: the id is taken by a session of another user, query or collection.
        """
        ...

    def append_results(
        self, session_id: str, results: Sequence[SearchResultItem], page: FurtherPage | None = None
    ) -> None:
        """Add a further page to what a session has shown; objects already shown keep their position.

        Args:
            page: kept with the session if it shows something new.

        If the session has an order, its user is marked, for what was passed over is learnt from too.

        Raises:
            SessionNotFoundError: it was never registered.
        """
        ...

    def push_events(
        self, events: Sequence[SessionEvent], *, may_wait: bool = True, sender: str = ""
    ) -> list[EventDisposition]:
        """Record events, one disposition each in order.

        In the same transaction an order is placed for each session that got a new event of a type
        for which the storage was opened with ``order_on``.
        An event is ``UNKNOWN_OBJECT`` when its session shows results and the object is not among them.

        Args:
            may_wait: whether those are kept whose session is not recorded yet: for ``WAITING_SECONDS``, up to
                ``WAITING_EVENTS_OF_SESSION`` for each, and as many as the storage was opened for in all.
            sender: who sent them, of whom never more begin to wait than ``room_of`` leaves; empty: it
                is unknown.
        """
        ...

    def owners(self, session_ids: Iterable[str]) -> dict[str, SessionOwner]:
        """Return session_id -> whose it is, for those that were registered."""

    def waiting_events(self) -> int:
        """Return how many events wait for sessions that are not recorded yet."""
        ...

    def drop_waiting(self, now: float) -> int:
        """Drop events that have waited for ``WAITING_SECONDS`` by ``now``; return how many."""
        ...

    def get_session(self, session_id: str) -> Session:
        """Return a session with its results by position and its events by (created_at, event_id).

        Raises:
            SessionNotFoundError: it was never registered.
        """
        ...

    def scan(
        self,
        *,
        collection: Collection | None = None,
        user_id: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> Iterator[RecordedSession]:
        """Yield sessions by (created_at, session_id), with results, events and the vectors of their queries.

        Args:
            collection: only what was recorded for it or an alias of it.
            since, until: UTC seconds; from the first on, and before the second.

        They are read by pages, each of its own instant. A session that is recorded meanwhile with a time
        that was passed already is not among them.
        """
        ...

    def latest(
        self,
        *,
        collection: Collection | None = None,
        user_id: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int,
    ) -> list[Session]:
        """Return sessions with results and events, latest first by (created_at, session_id).

        Args:
            collection: only what was recorded for it or an alias of it.
            before: created_at and session_id of the session after which to go on.
        """
        ...

    def recent_queries(self, collection: Collection, limit: int) -> list[Vectors]:
        """Return the vectors [Q, D] of the latest different queries, latest first.

        They are those of sessions that were recorded for this collection or an alias of it, by anyone who is
        not quarantined, are not irrelevant and have vectors of the collection's size. Queries of one text
        are the same,
        and of those without a text such that have the same vectors.
        """
        ...

    def recent_sessions(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[RecordedSession]]:
        """Return for each user the latest sessions, oldest first by (created_at, session_id).

        Those that count have an order that has not failed, are not irrelevant, have at least one event, and
        were recorded for this collection or an alias of it. Query vectors of another size than the
        collection's come back as None. Whatever changes one of them later marks its user.
        """
        ...

    def latest_times(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[int]]:
        """Return when the latest sessions of each user were, in UTC seconds, of those that may count.

        They are those of ``recent_sessions``, and further back.
        """
        ...

    def mark_irrelevant(self, session_id: str) -> None:
        """Let a session no longer count, and place an order if it ever did.

        Raises:
            SessionNotFoundError: it was never registered.
        """
        ...

    def disregard(self, sender: str) -> int:
        """Let no session count any longer that came by a key, as ``mark_irrelevant`` does; return how many.

        Args:
            sender: not empty.
        """
        ...

    def take_back(self, session_id: str, object_id: str) -> int:
        """Let what a user did with an object in a session no longer count; return how many events that were.

        They stay in the log as ``TAKEN_BACK``, so that one that is sent once more is known. Where the session
        has an order, a new one is placed. Events that wait for their session are dropped.

        Raises:
            SessionNotFoundError: it was never registered, and nothing on the object waits for it.
        """
        ...

    def remove_before(self, before: int, *, limit: int) -> "Removed":
        """Remove the ``limit`` oldest sessions from before a time, with results, events and orders.

        Those that somebody writes to just now stay. Users who have orders for one are marked.

        Args:
            before: UTC seconds, exclusive.
        """
        ...

    def forget_user(self, user_id: str) -> dict[str, int]:
        """Remove all that is known of a user, in every collection.

        Returns:
            How many rows of each table there were, under PostgreSQL's names, of all that have users' rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Removed:
    """How much of the log went for its age."""

    sessions: int
    events: int


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A user whose state is stale, and is folded again.

    Attributes:
        collection: the name under which the sessions were recorded.
        attempts: claims since this was last asked for, with this one.
        waited_seconds: from the mark that made the state stale, the first since it was learnt, to the claim.
    """

    collection: str
    user_id: str
    attempts: int
    waited_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """Users that one worker holds until its lease ends.

    Attributes:
        token: random; whatever comes with a token that no longer holds a user changes nothing for them.
        entries: at least one, in the order in which they are due.
    """

    token: str
    entries: tuple[QueueEntry, ...]


@dataclass(frozen=True, slots=True)
class OrderOutcome:
    """How an order ended: done, refused or failed, with a sentence if there is one to say."""

    session_id: str
    status: SessionForImprovementStatus
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Why nothing is learnt from a session that a fold does not look at, in sentences."""

    irrelevant: str
    no_events: str
    too_old: str


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """How much there is to learn.

    Attributes:
        waiting: entries that are not held.
        held: entries that a worker holds, or held when it ended.
        oldest_seconds: since the entry was marked that has been in the queue for longest; 0 in an empty one.
    """

    waiting: int
    held: int
    oldest_seconds: float


class Queue(Protocol):
    """The queue: whose state is stale. One entry a user and name of a collection, however many sessions.

    An entry is made, or made due at once and with no attempts, in the transaction that makes the state
    stale: an order is placed, an original changes, an alias moves. It goes with ``complete``.
    """

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        """Claim at most so many entries; None if nothing is due.

        Due is what is not held, or no longer since the lease has ended. Higher priority first, then
        older. What was held by a worker that ended is claimed alone. Each claim is one attempt more, but
        after a worker that held several users ended, it is unknown for which of them it did. Never waits
        for another worker's claim.
        """
        ...

    def renew(self, token: str, lease_seconds: float) -> None:
        """Let the lease of what ``token`` holds end so much later than now."""
        ...

    def release(self, token: str) -> None:
        """Give back all that ``token`` holds as if it had not been claimed."""
        ...

    def put_off(self, token: str, *, backoff_seconds: float) -> None:
        """Give back all that ``token`` holds, whom the storage failed: no attempt is counted for that.

        Who was held together with others is due at once, alone; who was held alone, after as long as they
        have waited, within ``backoff_seconds`` and ``LONGEST_OUTAGE_WAIT_SECONDS``.
        """
        ...

    def fail(
        self,
        token: str,
        entry: QueueEntry,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
        max_attempts: int,
        backoff_seconds: float,
        is_outage: bool = False,
    ) -> list[str]:
        """Give back a user for another attempt, or give up, if ``entry`` was the last of ``max_attempts``.

        It is due again after ``backoff_seconds * 2 ** (attempts - 1)``.

        Args:
            is_outage: something failed that has nothing to do with this user: the attempt does not count,
                and they are due again as in ``put_off``.
            detail: why; kept with the orders, cut to 2,000 characters.
            sessions: session_id -> why, for orders that failed; None: all pending ones of this user did.

        Returns:
            The sessions whose orders are pending again or, given up, failed.
        """
        ...

    def refuse(self, token: str, entry: QueueEntry, detail: str) -> list[str]:
        """End all pending orders of a user as refused; return their sessions."""
        ...

    def info(self) -> QueueInfo:
        """Return how long the queue is; takes a look at each entry."""
        ...

    def wait(self, timeout_seconds: float) -> bool:
        """Block until something is due (True) or the time is over (False). May wake early."""
        ...


class Orders(Protocol):
    """The journal: what is to become, or became, of each session that somebody asked to learn from.

    A pending order of which a worker holds the user is reported as processing.
    """

    def create(self, schema: SessionForImprovementCreateSchema) -> SessionForImprovement:
        """Place an order, or place it again (pending, no attempts) whatever became of it before.

        One of an anonymous session is refused at once.

        Raises:
            SessionNotFoundError: the session was never registered.
        """
        ...

    def get(self, session_id: str) -> SessionForImprovement:
        """Return the order of a session.

        Raises:
            OrderNotFoundError: none was placed.
        """
        ...

    def list(
        self, *, status: SessionForImprovementStatus | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionForImprovement]:
        """Return orders, latest change first."""
        ...

    def of(self, session_ids: Sequence[str]) -> dict[str, SessionForImprovement]:
        """Return the orders of sessions, by session_id; of those that have one."""
        ...

    def counts(self) -> dict[SessionForImprovementStatus, int]:
        """Return how many orders stand in each status; every status is a key."""
        ...

    def cancel(self, session_id: str) -> None:
        """Remove an order that is pending, failed or refused.

        Its session counts no longer from the next fold of its user on.

        Raises:
            OrderNotFoundError: none was placed.
            ConflictError: it is processing or done.
        """
        ...


@dataclass(frozen=True, slots=True)
class QuarantineDecision:
    """What a person decided of a user.

    Attributes:
        is_quarantined: True: nothing is learnt from them. False: they are released: what they did up to
            ``decided_at`` is not held against them.
        decided_at: UTC seconds.
    """

    is_quarantined: bool
    reason: str
    decided_at: int


@dataclass(frozen=True, slots=True)
class QuarantinedUser:
    """A user from whom nothing is learnt.

    Attributes:
        collection: in which their sessions were found to be a robot's; None: a person decided so.
        since: UTC seconds.
    """

    user_id: str
    collection: str | None
    reason: str
    since: int


class Quarantine(Protocol):
    """Users from whom nothing is learnt, with the reason.

    What a person decided is part of the log: the user is marked, and folded by it. What a fold found is
    part of the state, and written with it (``LearningTransaction.replace_states``).
    """

    def decide(self, user_id: str, decision: QuarantineDecision) -> None:
        """Quarantine a user, or release them, in place of what was decided before; they are folded again."""
        ...

    def decisions(self, user_ids: Sequence[str]) -> dict[str, QuarantineDecision]:
        """Return what was decided last of those of whom anything was."""
        ...

    def count(self) -> int:
        """Return how many users are quarantined, in whichever collection."""
        ...

    def list(self, *, user_id: str | None = None, limit: int = 100, offset: int = 0) -> list[QuarantinedUser]:
        """Return who is quarantined, the latest first; of one user alone if that is named."""
        ...


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
        are looked at (ties by query_key), as far as they are above the threshold. Of each the
        ``SHARED_VOTES`` latest votes of others are taken, or ``shared_by`` if that is more (ties by
        user_id). Who voted for several of these queries counts once, for the nearest. The votes for one
        query are one memory; what they did with objects is summed up, each vote weighing
        2^(-age / ``SHARED_HALF_LIFE``), where the latest ``shared_by`` votes counted have the age 0: fewer
        cannot make those of all others old. If fewer than ``shared_by`` users are counted, ``shared`` is
        empty.
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
    ) -> list[Neighbour]:
        """Return the nearest objects to a query, for one user.

        Args:
            objects: where the originals are; one of the same database is searched together with the copies.
            gates: object_id -> in (0, 1], how much the user's copy counts, where there is one; the distance
                is then a mean of those to the original and to the copy (``embeddings.personal.blend``).
            own: ``NearMemories.read``; what it does not hold of the user's own vectors is read.

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


class Keys(Protocol):
    """API keys, without their secrets. Those that ended stay."""

    def add(self, key: ApiKey) -> None:
        """Keep a new key."""
        ...

    def get(self, key_id: str) -> ApiKey:
        """Return a key, whether it is still good or not.

        Raises:
            KeyNotFoundError: there never was one of this id.
        """
        ...

    def has_any(self) -> bool:
        """Return whether there ever was a key."""
        ...

    def list(self) -> list[ApiKey]:
        """Return all keys by (created_at, key_id)."""
        ...

    def replace(self, key_id: str, key: ApiKey, *, until: int, now: int) -> None:
        """Keep a new key in place of another, which expires at ``until`` if it did not before.

        Raises:
            KeyNotFoundError: there is none of this id.
            ConflictError: it is no longer good.
        """
        ...

    def revoke(self, key_id: str, *, now: int) -> ApiKey:
        """Return a key that is good no more from ``now`` on, or since it was revoked before.

        Raises:
            KeyNotFoundError: there is none of this id.
        """
        ...

    def note_use(self, key_id: str, *, now: int) -> None:
        """Note that a key was used, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a database fares.

    Attributes:
        clock: UTC seconds by its own clock.
        bytes: its size on disk.
        replica_lag: how many seconds ago what is searched on its replica was true; infinite: the replica
            does not answer; None: there is none.
    """

    clock: float
    bytes: int
    replica_lag: float | None = None


class Backend(Protocol):
    """What the parts of a storage have in common."""

    def ping(self) -> None:
        """Return if storage answers, and takes events.

        Raises:
            StorageUnavailableError: it does not answer; the message says which and why.
            StorageNotWritableError: it takes no events.
        """
        ...

    def about(self) -> str:
        """Return which storage this is, with its versions and without a password."""
        ...

    def vitals(self) -> Vitals: ...

    def close(self) -> None: ...


class StorageParts(TypedDict, total=False):
    """Parts of a storage by their names."""

    collections: Collections
    objects: BaseIndex
    clickstream: Clickstream
    orders: Orders
    quarantine: Quarantine
    queue: Queue
    personal: Personal
    keys: Keys
    backend: Backend


@dataclass(eq=False)
class Storage:
    """The whole of it, by owner. ``order_on`` at opening names the event types that place an order."""

    collections: Collections
    objects: BaseIndex
    clickstream: Clickstream
    orders: Orders
    quarantine: Quarantine
    queue: Queue
    personal: Personal
    keys: Keys
    backend: Backend

    def having(self, **parts: Unpack[StorageParts]) -> "Storage":
        """Return a storage with these parts in place of its own, over all that it has else.

        A base index has to call ``Personal.outdate`` when its originals change.
        """
        chosen: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(Storage)}
        chosen.update(parts)
        return Storage(**chosen)

    def ping(self) -> None:
        """Return if storage answers and takes events, as ``Backend.ping``."""
        self.backend.ping()

    def about(self) -> str:
        """Return which storage this is, with its versions and without a password."""
        return self.backend.about()

    def vitals(self) -> Vitals:
        return self.backend.vitals()

    def close(self) -> None:
        self.backend.close()
