"""The log: sessions and events, also those that wait for their session."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedding_studio.domain.objects import (
    Collection,
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
)
from embedding_studio.errors import ConflictError
from embedding_studio.storage.ports.vectors import Vectors

EventContent = tuple[str, str]
"""The object and the type: what two events of one id have to have in common."""

WAITING_EVENTS = 100_000
"""So many events wait for sessions that are not recorded yet; more are not taken."""

WAITING_EVENTS_OF_SESSION = 100
"""So many of them for one session."""

WAITING_SECONDS = 86_400
"""So long they wait."""

ORDER_ON = frozenset(kind for kind, weight in DEFAULT_EVENT_WEIGHTS.items() if weight > 0)
"""Event types that place an order where a storage is not given any."""


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
