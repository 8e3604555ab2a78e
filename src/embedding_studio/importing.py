"""The logs of other systems into the log of a collection; what is there already is not stored twice.

All ids come from the log itself or are derived from what a row says. So an import that was stopped is simply
run again, and one that overlaps another adds what is new.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import (
    CLOCK_SECONDS,
    DEFAULT_EVENT_WEIGHTS,
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    name_of_event,
    not_ahead,
    told_of_type,
    trusted,
)
from embedding_studio.errors import SessionNotFoundError
from embedding_studio.logs import WINDOW_SECONDS, Event, Left, Placed, Search, Shown, join, made_search
from embedding_studio.logs.joining import SEARCHES_OF_USER
from embedding_studio.storage.ports import Clickstream, Storage

BATCH = 4_000
"""Sessions and events that are stored at once. After each answer of the database the thread that stores may
wait 5 ms for the one that reads, so the answers are few; and nobody who clicks waits long for a lock."""
GARBAGE_AFTER = 50_000
"""Objects that are made before garbage is looked for: a batch and what is read meanwhile."""
LATE_EVENTS = 500_000
"""So many events wait, at most, for a search that comes later in the log."""
SEARCHES_REMEMBERED = 500_000
WINDOWS_KEPT = 100
"""Half hours of users whose recorded searches are kept while events are joined to them."""

TAKEN = "a search whose id is that of another user's, text's or collection's search"
EVENT_OF_TAKEN = "an event of a search whose id is taken"
NO_SUCH_SEARCH = "an event whose search is neither in the log nor recorded, and that does not know its text"
NO_SUCH_OBJECT = "an event on an object that the collection does not have"
TOO_EARLY = "before --since"
TOO_LATE = "not before --until"

Pushed = Callable[[Sequence[SessionEvent], Sequence[EventDisposition]], None]


@dataclass
class LeftOut:
    """How often something was left out for one reason, and where first."""

    number: int
    first: str


@dataclass
class ImportReport:
    """What became of a log.

    Attributes:
        sessions: disposition -> how many; "read" where nothing is stored.
        events: disposition -> how many; "read" where nothing is stored.
        left_out: reason -> what is not stored.
        notes: sentences on what is stored and will not be learnt from as one might think.
    """

    sessions: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, place: str) -> None:
        if (known := self.left_out.get(reason)) is not None:
            known.number += 1
        else:
            self.left_out[reason] = LeftOut(1, place)


class Importer:
    """Stores what a log says for one collection, and counts what becomes of it.

    Args:
        event_types: what an event of the log's type is here; of the same type where it is not named.
        weights: how much an event of each type says for its object.
        since, until: UTC seconds; what happened from the first on, and before the second.
        is_rehearsal: whether nothing is stored.
        pushed: is told of events as they are stored.
        may_wait: whether events are kept for a while whose search is neither in the log nor recorded.
        sender: by which key all this comes, as for ``Clickstream.push_events``.
    """

    def __init__(
        self,
        storage: Storage,
        collection: Collection,
        *,
        event_types: Mapping[str, str] | None = None,
        weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
        since: int | None = None,
        until: int | None = None,
        is_rehearsal: bool = False,
        pushed: Pushed | None = None,
        may_wait: bool = False,
        sender: str = "",
    ) -> None:
        self.report = ImportReport()
        self._storage = storage
        self._collection = collection
        self._event_types = event_types or {}
        self._weights = weights
        self._since = since
        self._until = until
        self._is_rehearsal = is_rehearsal
        self._pushed = pushed
        self._may_wait = may_wait
        self._sender = sender
        self._searched_at: dict[str, int] = {}
        self._is_object: dict[str, bool] = {}
        self._taken: set[str] = set()
        self._late: list[tuple[str, Event]] = []
        self._users: set[str | None] = set()
        self._types: Counter[str] = Counter()
        self._early = 0

    def run(self, entries: Iterable[Placed]) -> ImportReport:
        """Store all that is in a log; while a batch is stored, the next one is read."""
        told = join(self._chosen(entries))
        with ThreadPoolExecutor(1) as storing:
            stored: Future[None] | None = None
            while batch := list(islice(told, BATCH)):
                if stored is not None:
                    stored.result()
                stored = storing.submit(self._store, batch)
            if stored is not None:
                stored.result()
        self._settle()
        self._note()
        return self.report

    def _chosen(self, entries: Iterable[Placed]) -> Iterator[Placed]:
        for place, entry in entries:
            if isinstance(entry, Left):
                yield place, entry
                continue
            at = entry.session.created_at if isinstance(entry, RecordedSession) else entry.at
            if self._since is not None and at < self._since:
                yield place, Left(TOO_EARLY)
            elif self._until is not None and at >= self._until:
                yield place, Left(TOO_LATE)
            elif isinstance(entry, Event) and entry.event_type in self._event_types:
                yield place, replace(entry, event_type=self._event_types[entry.event_type])
            else:
                yield place, entry

    def _store(self, batch: Sequence[Placed]) -> None:
        searches: list[tuple[str, RecordedSession]] = []
        events: list[tuple[str, Event]] = []
        for place, entry in batch:
            match entry:
                case Left(reason):
                    self.report.leave_out(reason, place)
                case Event():
                    events.append((place, entry))
                case Search():
                    if entry.shown or entry.search_id not in self._searched_at:
                        searches.append((place, self._remembered(self._session(entry))))
                case RecordedSession():
                    session = entry.session.model_copy(update={"collection": self._collection.name})
                    recorded = replace(entry, session=session, sender=self._sender)
                    searches.append((place, self._remembered(recorded)))
                case Shown():  # the joiner keeps lists
                    raise AssertionError(entry)
        self._record(searches)
        self._late += self._push(self._on_objects(events))
        if len(self._late) > LATE_EVENTS:
            self._settle()

    def _session(self, search: Search) -> RecordedSession:
        assert search.search_id is not None  # noqa: S101, joined
        return RecordedSession(
            trusted(
                Session,
                session_id=search.search_id,
                search_query=search.query,
                user_id=search.user_id,
                created_at=not_ahead(search.at, before=1),
                collection=self._collection.name,
                search_results=tuple(
                    trusted(SearchResultItem, object_id=object_id, position=position)
                    for position, object_id in enumerate(search.shown, start=1)
                ),
            ),
            sender=self._sender,
        )

    def _remembered(self, recorded: RecordedSession) -> RecordedSession:
        session = recorded.session
        self._searched_at[session.session_id] = session.created_at
        if len(self._searched_at) > SEARCHES_REMEMBERED and not self._is_rehearsal:
            del self._searched_at[next(iter(self._searched_at))]
        if len(self._users) < 2:
            self._users.add(session.user_id)
        return recorded

    def _record(self, searches: Sequence[tuple[str, RecordedSession]]) -> None:
        if self._is_rehearsal:
            _count(self.report.sessions, "read", len(searches))
            return
        if not searches:
            return
        became = self._storage.clickstream.record([session for _, session in searches])
        for (place, recorded), (disposition, events) in zip(searches, became, strict=True):
            _count(self.report.sessions, disposition.value)
            for event, each in zip(recorded.session.events, events, strict=False):  # none where it is taken
                _count(self.report.events, told_of_type(each, event.event_type, self._weights).value)
            if disposition is SessionDisposition.TAKEN:
                self.report.leave_out(TAKEN, place)
                self._taken.add(recorded.session.session_id)

    def _on_objects(self, events: Sequence[tuple[str, Event]]) -> list[tuple[str, Event]]:
        """Return events on objects of the collection."""
        if new := {event.object_id for _, event in events} - self._is_object.keys():
            there = self._existing(sorted(new))
            self._is_object |= {object_id: object_id in there for object_id in new}
        kept = []
        for place, event in events:
            if self._is_object[event.object_id]:
                kept.append((place, event))
            else:
                self.report.leave_out(NO_SUCH_OBJECT, f"{place}, {event.object_id!r}")
        return kept

    def _existing(self, object_ids: Sequence[str]) -> set[str]:
        """Return those that the collection has; objects that brought their vectors have no content hash."""
        objects = self._storage.objects
        hashed = objects.content_hashes(self._collection, object_ids).keys()
        return hashed | objects.originals(self._collection, set(object_ids) - hashed).keys()

    def _push(
        self, events: Sequence[tuple[str, Event]], *, may_wait: bool = False
    ) -> list[tuple[str, Event]]:
        """Store events of searches that are recorded, or that may wait for theirs; return the others."""
        ours = []
        for place, event in events:
            if event.search_id in self._taken:
                self.report.leave_out(EVENT_OF_TAKEN, place)
            else:
                ours.append((place, event))
        if self._is_rehearsal:
            late = [(place, event) for place, event in ours if event.search_id not in self._searched_at]
            known = [event for _, event in ours if event.search_id in self._searched_at]
            _count(self.report.events, "read", len(known))
            self._look_at(known)
            return late
        if not ours:
            return []
        pushed = [_session_event(event) for _, event in ours]
        became = self._storage.clickstream.push_events(pushed, may_wait=may_wait, sender=self._sender)
        if self._pushed is not None:
            self._pushed(pushed, became)
        late = []
        stored = []
        counted: Counter[tuple[EventDisposition, str]] = Counter()
        for each, disposition in zip(ours, became, strict=True):
            if disposition is EventDisposition.UNKNOWN_SESSION:
                late.append(each)
            else:
                counted[disposition, each[1].event_type] += 1
                stored.append(each[1])
        for (disposition, event_type), number in counted.items():
            told = told_of_type(disposition, event_type, self._weights)
            _count(self.report.events, told.value, number)
        self._look_at(stored)
        return late

    def _look_at(self, events: Iterable[Event]) -> None:
        for event in events:
            self._types[event.event_type] += 1
            if event.at < self._searched_at.get(event.search_id or "", 0) - CLOCK_SECONDS:
                self._early += 1

    def _settle(self) -> None:
        """Store events whose searches came after them, or can be made of them; leave out the others."""
        late, self._late = self._late, []
        if self._is_rehearsal:
            self._remember_recorded({event.search_id for _, event in late if event.search_id})
        for start in range(0, len(late), BATCH):
            batch = self._push(late[start : start + BATCH])
            made: dict[str, tuple[str, RecordedSession]] = {}
            events, early = [], []
            for place, event in batch:
                if (search := made_search(event)) is None:
                    early.append((place, event))
                else:
                    session = self._remembered(self._session(search))
                    made.setdefault(session.session.session_id, (place, session))
                    events.append((place, event))
            self._record(list(made.values()))
            self._push(events)
            for place, _ in self._push(early, may_wait=True) if self._may_wait else early:
                self.report.leave_out(NO_SUCH_SEARCH, place)

    def _remember_recorded(self, search_ids: Iterable[str]) -> None:
        """Remember those searches that are recorded, which nothing tells where events are not stored."""
        for search_id in search_ids:
            with suppress(SessionNotFoundError):
                self._storage.clickstream.get_session(search_id)
                self._searched_at.setdefault(search_id, 0)

    def _note(self) -> None:
        if self._users == {None}:
            self.report.notes.append(
                "no search names a user, so nothing personal is learnt; is the column of users mapped?"
            )
        elif len(self._users) == 1:
            self.report.notes.append("all searches are one user's; is the column of users the right one?")
        silent = {name: number for name, number in self._types.items() if self._weights.get(name, 0.0) <= 0}
        self.report.notes += [
            f"{number} events are of type {name!r}, which says nothing for an object by EVENT_WEIGHTS"
            for name, number in sorted(silent.items())
        ]
        if self._early:
            self.report.notes.append(
                f"{self._early} events are more than {CLOCK_SECONDS} s earlier than the search that they "
                "name; they are not learnt from"
            )
        if number := self.report.events.get(EventDisposition.UNKNOWN_OBJECT.value):
            self.report.notes.append(
                f"{number} events are on objects that their search did not show; they are not learnt from"
            )


def join_recorded(
    clickstream: Clickstream, collection: Collection, entries: Iterable[Placed]
) -> Iterator[Placed]:
    """Yield entries, events without a search with the one that is recorded for their user and fits.

    It is the latest of the half hour before that showed the object, or of which is not known what it showed;
    one for the text that the event names, if it does.
    """

    @lru_cache(WINDOWS_KEPT)
    def searches(user_id: str, window: int) -> list[tuple[int, str, list[str], frozenset[str]]]:
        """Return time, id, words and objects of a user's searches in a window and before, latest first."""
        start = window * WINDOW_SECONDS
        found = clickstream.scan(
            collection=collection,
            user_id=user_id,
            since=start - WINDOW_SECONDS,
            until=start + WINDOW_SECONDS,
        )
        return [
            (
                each.created_at,
                each.session_id,
                each.search_query.split(),
                frozenset(shown.object_id for shown in each.search_results),
            )
            for each in (recorded.session for recorded in found)
        ][::-1]

    for place, entry in entries:
        if isinstance(entry, Event) and entry.search_id is None and entry.user_id is not None:
            recent = [
                (search_id, shown)
                for at, search_id, words, shown in searches(entry.user_id, entry.at // WINDOW_SECONDS)
                if entry.at - WINDOW_SECONDS <= at <= entry.at
                and (entry.query is None or words == entry.query.split())
            ][:SEARCHES_OF_USER]
            showing = [search_id for search_id, shown in recent if entry.object_id in shown]
            found = next(iter(showing or [search_id for search_id, shown in recent if not shown]), None)
            yield place, entry if found is None else replace(entry, search_id=found)
        else:
            yield place, entry


def collect_rarely() -> None:
    """Let Python look for garbage seldom; for a process that imports and ends.

    What an import makes goes without being looked for, which takes a third of Python's time.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER)


def _count(counts: dict[str, int], disposition: str, number: int = 1) -> None:
    if number:
        counts[disposition] = counts.get(disposition, 0) + number


def _session_event(event: Event) -> SessionEvent:
    assert event.search_id is not None  # noqa: S101, joined
    return trusted(
        SessionEvent,
        session_id=event.search_id,
        object_id=event.object_id,
        event_type=event.event_type,
        created_at=not_ahead(event.at),
        event_id=event.event_id
        or name_of_event(event.search_id, event.object_id, event.event_type, event.at),
        meta=None if event.meta is None else dict(event.meta),
    )
