"""Sessions and events in memory."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from embedding_studio.domain.objects import (
    Collection,
    PersonalState,
)
from embedding_studio.domain.sessions import (
    EventDisposition,
    FurtherPage,
    RecordedSession,
    Recording,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    check_kind,
    pages_with,
)
from embedding_studio.errors import ConflictError
from embedding_studio.storage.memory.state import State, StoredSession
from embedding_studio.storage.ports import (
    WAITING_SECONDS,
    Removed,
    SessionOwner,
    Vectors,
    admit,
    require_shown,
    room_of,
)

UNKNOWN = EventDisposition.UNKNOWN_SESSION
STORED = {EventDisposition.ACCEPTED, EventDisposition.TOO_EARLY, EventDisposition.UNKNOWN_OBJECT}


class MemoryClickstream:
    def __init__(self, state: State) -> None:
        self._state = state

    def record(self, sessions: Sequence[RecordedSession]) -> list[Recording]:
        with self._state.lock:
            for each in sessions:
                if each.session.session_id not in self._state.sessions:
                    self._state.named(each.session.collection)
            return self._record(sessions)

    def register_session(
        self, session: Session, query_vectors: Vectors | None = None, *, sender: str = ""
    ) -> bool:
        check_kind(session, Session, "the session")
        with self._state.lock:
            stored = self._state.sessions.get(session.session_id)
            if stored is None:
                self._state.named(session.collection)
                self._record([RecordedSession(session, query_vectors, sender)])
                return True
            difference = stored.difference(session)
            if difference is not None:
                what, ours = difference
                raise ConflictError(
                    f"session {session.session_id!r} has {what} {ours!r} already, not "
                    f"{getattr(session, what)!r}; give each search a session_id of its own"
                )
            positions = {result.object_id: result.position for result in stored.results.values()}
            require_shown(session, positions)
            return False

    def append_results(
        self, session_id: str, results: Sequence[SearchResultItem], page: FurtherPage | None = None
    ) -> None:
        with self._state.lock:
            self._show(self._state.stored_session(session_id), results, [] if page is None else [page])

    def push_events(
        self, events: Sequence[SessionEvent], *, may_wait: bool = True, sender: str = ""
    ) -> list[EventDisposition]:
        for number, each in enumerate(events):
            check_kind(each, SessionEvent, f"event {number}")
        with self._state.lock:
            dispositions = []
            touched: dict[str, None] = {}
            for event in events:
                stored = self._state.sessions.get(event.session_id)
                disposition = EventDisposition.UNKNOWN_SESSION if stored is None else stored.note(event)
                dispositions.append(disposition)
                is_new = disposition in STORED
                if is_new and event.event_type in self._state.order_on:
                    touched[event.session_id] = None
            for session_id in sorted(touched, key=lambda each: self._state.sessions[each].unit()):
                self._state.place(session_id)
            return self._let_wait(events, dispositions, sender) if may_wait else dispositions

    def waiting_events(self) -> int:
        with self._state.lock:
            return sum(map(len, self._state.waiting.values()))

    def drop_waiting(self, now: float) -> int:
        with self._state.lock:
            before = self.waiting_events()
            for session_id, events in list(self._state.waiting.items()):
                for event_id, (_, arrived_at, _) in list(events.items()):
                    if arrived_at <= now - WAITING_SECONDS:
                        del events[event_id]
                if not events:
                    del self._state.waiting[session_id]
            return before - self.waiting_events()

    def owners(self, session_ids: Iterable[str]) -> dict[str, SessionOwner]:
        with self._state.lock:
            known = {each: self._state.sessions[each] for each in session_ids if each in self._state.sessions}
            return {
                session_id: SessionOwner(stored.session.user_id, stored.session.collection)
                for session_id, stored in known.items()
            }

    def get_session(self, session_id: str) -> Session:
        with self._state.lock:
            return self._state.stored_session(session_id).whole()

    def scan(
        self,
        *,
        collection: Collection | None = None,
        user_id: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> Iterator[RecordedSession]:
        with self._state.lock:
            names = None if collection is None else self._state.names(collection)
            stored = [
                each
                for each in self._state.sessions.values()
                if (names is None or each.session.collection in names)
                and user_id in {None, each.session.user_id}
                and (since is None or each.session.created_at >= since)
                and (until is None or each.session.created_at < until)
            ]
            recorded = [each.recorded() for each in sorted(stored, key=StoredSession.age)]
        yield from recorded

    def latest(
        self,
        *,
        collection: Collection | None = None,
        user_id: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int,
    ) -> list[Session]:
        found = [each.session for each in self.scan(collection=collection, user_id=user_id)]
        earlier = [
            each for each in found[::-1] if before is None or (each.created_at, each.session_id) < before
        ]
        return earlier[:limit]

    def recent_queries(self, collection: Collection, limit: int) -> list[Vectors]:
        with self._state.lock:
            names = self._state.names(collection)
            ignored = {user_id for user_id, each in self._state.decisions.items() if each.is_quarantined}
            ignored |= self._state.tables(collection).quarantined.keys()
            latest: dict[tuple[str, bytes], Vectors] = {}
            for stored in sorted(self._state.sessions.values(), key=StoredSession.age, reverse=True):
                session = stored.session
                vectors = stored.query_vectors
                if (
                    session.collection in names
                    and not session.is_irrelevant
                    and session.user_id not in ignored
                    and vectors is not None
                    and vectors.shape[1] == collection.index.dimensions
                ):
                    wordless = b"" if session.search_query else vectors.tobytes()
                    latest.setdefault((session.search_query, wordless), vectors)
            return [vectors.copy() for vectors in list(latest.values())[:limit]]

    def recent_sessions(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[RecordedSession]]:
        with self._state.lock:
            self._state.tables(collection)
            names = self._state.names(collection)
            recent: dict[str, list[RecordedSession]] = {user_id: [] for user_id in user_ids}
            theirs = (
                stored for user_id in recent for stored in self._state.of_user.get(user_id, {}).values()
            )
            for stored in sorted(theirs, key=StoredSession.age, reverse=True):
                session = stored.session
                if (
                    session.user_id is not None
                    and len(recent[session.user_id]) < limit_per_user
                    and session.collection in names
                    and self._state.is_counted(session.session_id)
                    and stored.events
                    and not session.is_irrelevant
                ):
                    recorded, vectors = stored.recorded(), stored.query_vectors
                    fits = vectors is not None and vectors.shape[1] == collection.index.dimensions
                    recent[session.user_id].append(
                        recorded if fits else replace(recorded, query_vectors=None)
                    )
            return {user_id: latest[::-1] for user_id, latest in recent.items()}

    def latest_times(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[int]]:
        recent = self.recent_sessions(collection, user_ids, limit_per_user)
        return {user_id: [each.session.created_at for each in theirs] for user_id, theirs in recent.items()}

    def mark_irrelevant(self, session_id: str) -> None:
        with self._state.lock:
            stored = self._state.stored_session(session_id)
            stored.session = stored.session.model_copy(update={"is_irrelevant": True})
            if session_id in self._state.orders:
                self._state.place(session_id)

    def disregard(self, sender: str) -> int:
        with self._state.lock:
            theirs = [
                session_id
                for session_id, stored in self._state.sessions.items()
                if stored.sender == sender and not stored.session.is_irrelevant
            ]
            for session_id in sorted(theirs):
                self.mark_irrelevant(session_id)
            return len(theirs)

    def take_back(self, session_id: str, object_id: str) -> int:
        with self._state.lock:
            waiting = self._state.waiting.get(session_id, {})
            dropped = [key for key, (event, *_) in waiting.items() if event.object_id == object_id]
            for event_id in dropped:
                del waiting[event_id]
            if dropped and not waiting:
                del self._state.waiting[session_id]
            if dropped and session_id not in self._state.sessions:
                return len(dropped)
            taken = self._state.stored_session(session_id).take_back(object_id)
            if taken and session_id in self._state.orders:
                self._state.place(session_id)
            return taken

    def _record(self, sessions: Sequence[RecordedSession]) -> list[Recording]:
        waited: list[SessionEvent] = []
        became = []
        for each in sessions:
            became.append(self._add(each))
            if became[-1] is SessionDisposition.RECORDED:
                early = self._state.waiting.pop(each.session.session_id, {}).values()
                waited += [event for event, *_ in early]
        events = [
            () if disposition is SessionDisposition.TAKEN else each.session.events
            for each, disposition in zip(sessions, became, strict=True)
        ]
        pushed = [*itertools.chain.from_iterable(events), *waited]
        told = iter(self.push_events(pushed, may_wait=False))
        return [
            Recording(disposition, tuple(itertools.islice(told, len(theirs))))
            for disposition, theirs in zip(became, events, strict=True)
        ]

    def _add(self, recorded: RecordedSession) -> SessionDisposition:
        """Add a session, or what it shows for the first time, without its events."""
        session, query_vectors = recorded.session, recorded.query_vectors
        stored = self._state.sessions.get(session.session_id)
        if stored is not None:
            named = session.model_copy(update={"collection": stored.session.collection})
            names = {
                self._state.aliases.get(each.collection, each.collection)
                for each in (session, stored.session)
            }
            if stored.difference(named) or len(names) > 1:
                return SessionDisposition.TAKEN
        if stored is None:
            vectors = None if query_vectors is None else np.atleast_2d(np.array(query_vectors, np.float32))
            bare = session.model_copy(update={"search_results": (), "events": ()})
            new = self._state.sessions[session.session_id] = StoredSession(bare, vectors, recorded.sender)
            self._state.of_user.setdefault(session.user_id, {})[session.session_id] = new
            new.show(session.search_results)
            return SessionDisposition.RECORDED
        self._show(stored, session.search_results, session.as_further_pages())
        return SessionDisposition.CONTINUED

    def _let_wait(
        self, events: Sequence[SessionEvent], dispositions: Sequence[EventDisposition], sender: str
    ) -> list[EventDisposition]:
        """Let events wait whose sessions are not recorded; return what became of all."""
        early = [event for event, each in zip(events, dispositions, strict=True) if each is UNKNOWN]
        if not early or not self._state.most_waiting:
            return list(dispositions)
        now = time.time()
        self.drop_waiting(now)
        waiting = {
            session_id: {key: (event.object_id, event.event_type) for key, (event, *_) in theirs.items()}
            for session_id, theirs in self._state.waiting.items()
        }
        senders = [who for theirs in self._state.waiting.values() for _, _, who in theirs.values()]
        free = self._state.most_waiting - len(senders)
        told, admitted = admit(early, waiting, room_of(sender, free=free, held=senders.count(sender)))
        for event in admitted:
            self._state.waiting.setdefault(event.session_id, {})[event.event_id] = event, now, sender
        of_early = iter(told)
        return [next(of_early) if each is UNKNOWN else each for each in dispositions]

    def _show(
        self, stored: StoredSession, results: Sequence[SearchResultItem], pages: Sequence[FurtherPage]
    ) -> None:
        before = set(stored.results)
        stored.show(results)
        if not (new := stored.results.keys() - before):
            return
        kept = pages_with(stored.session.pages, pages, new)
        stored.session = stored.session.model_copy(update={"pages": kept})
        placed = self._state.orders.get(stored.session.session_id)
        if placed is not None and placed.order.user_id is not None:
            self._state.mark(placed.order.collection, placed.order.user_id)

    def remove_before(self, before: int, *, limit: int) -> Removed:
        with self._state.lock:
            oldest = sorted(self._state.sessions.values(), key=StoredSession.age)[:limit]
            events = sessions = 0
            for each in oldest:
                if each.session.created_at >= before:
                    break
                self._remove(each)
                events, sessions = events + len(each.events), sessions + 1
            return Removed(sessions, events)

    def _remove(self, stored: StoredSession) -> None:
        session = stored.session
        if self._state.orders.pop(session.session_id, None) and session.user_id is not None:
            self._state.mark(session.collection, session.user_id)
        del self._state.sessions[session.session_id]
        del self._state.of_user[session.user_id][session.session_id]

    def forget_user(self, user_id: str) -> dict[str, int]:
        with self._state.lock:
            self._state.wait_for_folds_of_user(user_id)
            removed = self._rows_of_user(user_id)
            theirs = self._state.of_user.pop(user_id, {})
            for session_id in theirs:
                del self._state.sessions[session_id]
                self._state.orders.pop(session_id, None)
            for key in [key for key in self._state.queue if key[1] == user_id]:
                del self._state.queue[key]
            self._state.decisions.pop(user_id, None)
            for tables in self._state.schemas.values():
                tables.quarantined.pop(user_id, None)
                tables.replace_states({user_id: PersonalState()})
                del tables.states[user_id]
            return removed

    def _rows_of_user(self, user_id: str) -> dict[str, int]:
        """Return how many rows of each table PostgreSQL would have that are a user's."""
        sessions = self._state.of_user.get(user_id, {})
        states = [each.states.get(user_id, PersonalState()) for each in self._state.schemas.values()]
        return {
            "queue": sum(key[1] == user_id for key in self._state.queue),
            "personal_parts": sum(len(parts) for state in states for parts in state.vectors.values()),
            "quarantine_decisions": int(user_id in self._state.decisions),
            "quarantined": sum(user_id in each.quarantined for each in self._state.schemas.values()),
            "query_memory": sum(len(state.memories) for state in states),
            "session_events": sum(len(each.events) for each in sessions.values()),
            "sessions": len(sessions),
            "sessions_for_improvement": len(self._state.orders_by_id([user_id])),
            "shared_votes": sum(len(state.votes) for state in states),
            "waiting_events": 0,  # of sessions that are not recorded, and so of no user
        }
