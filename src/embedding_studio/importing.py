"""The logs of other systems into the log of a collection; what is there already is not stored twice.

All ids come from the log itself or are derived from what a row says. So an import that was stopped is simply
run again, and one that overlaps another adds what is new.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count, islice
from zlib import crc32

from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import (
    CLOCK_SECONDS,
    DEFAULT_EVENT_WEIGHTS,
    EventDisposition,
    RecordedSession,
    Session,
    SessionDisposition,
    SessionEvent,
    disposition_of_type,
    listed,
    name_of_event,
    not_ahead,
    trusted,
)
from embedding_studio.errors import SessionNotFoundError, counted, plural
from embedding_studio.logs import WINDOW_SECONDS, Event, Left, Placed, Search, Shown, join, made_search
from embedding_studio.logs.entries import Entry
from embedding_studio.logs.joining import SEARCHES_OF_USER
from embedding_studio.storage.ports import Clickstream, Storage

BATCH = 4_000
"""Sessions and events that are stored at once. After each answer of the database the thread that stores may
wait 5 ms for the one that reads, so the answers are few; and no click waits long for a lock."""
LANES = 2
"""In which a file is stored: so Python is busy while PostgreSQL is."""
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

Place = tuple[int, str]
"""The number of an entry, and where it stands."""
Numbered = tuple[int, str, Entry | Left]

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


class Importer:
    """Stores what a log says for one collection, and counts what becomes of it.

    Args:
        event_types: what an event of the log's type is here; of the same type where it is not named.
        weights: how much an event of each type says for its object.
        since, until: UTC seconds; what happened from the first on, and before the second.
        is_rehearsal: whether nothing is stored.
        pushed: is called with events as they are stored.
        may_wait: whether events are kept for a while whose search is neither in the log nor recorded.
        sender: by which key all this comes, as for ``Clickstream.push_events``.
        lanes: so many batches are stored at once: while the database stores one, the other is made ready.
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
        lanes: int = 1,
    ) -> None:
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
        self._is_object: dict[str, bool] = {}
        self._lanes = [_Lane() for _ in range(lanes)]

    def run(self, entries: Iterable[Placed]) -> ImportReport:
        """Store all that is in a log; while a batch is stored, the next one is read.

        What is said of one search is stored in one lane, in order.
        """
        numbers = count()
        told = join(self._chosen(entries))
        with ExitStack() as stack:
            pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in self._lanes]
            while batch := list(islice(told, BATCH * len(self._lanes))):
                parts: list[list[Numbered]] = [[] for _ in self._lanes]
                for place, entry in batch:
                    parts[_lane_of(entry, len(parts))].append((next(numbers), place, entry))
                for lane, pool, part in zip(self._lanes, pools, parts, strict=True):
                    lane.wait()
                    lane.storing = pool.submit(self._store, lane, part)
            for lane in self._lanes:
                lane.wait()
        for lane in self._lanes:
            self._settle(lane)
        return _report_of(self._lanes, self._weights)

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

    def _store(self, lane: "_Lane", batch: Sequence[Numbered]) -> None:
        searches: list[tuple[Place, RecordedSession]] = []
        events: list[tuple[Place, Event]] = []
        for number, name, entry in batch:
            place = number, name
            match entry:
                case Left(reason):
                    lane.leave_out(reason, place)
                case Event():
                    events.append((place, entry))
                case Search():
                    if entry.shown or entry.search_id not in lane.searched_at:
                        searches.append((place, self._remembered(lane, self._session(entry))))
                case RecordedSession():
                    session = trusted(Session, **vars(entry.session) | {"collection": self._collection.name})
                    recorded = RecordedSession(session, entry.query_vectors, self._sender)
                    searches.append((place, self._remembered(lane, recorded)))
                case Shown():  # the joiner keeps lists
                    raise AssertionError(entry)
        self._record(lane, searches)
        lane.late += self._push(lane, self._on_objects(lane, events))
        if len(lane.late) > LATE_EVENTS // len(self._lanes):
            self._settle(lane)

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
                search_results=listed(search.shown),
            ),
            sender=self._sender,
        )

    def _remembered(self, lane: "_Lane", recorded: RecordedSession) -> RecordedSession:
        session = recorded.session
        lane.searched_at[session.session_id] = session.created_at
        if len(lane.searched_at) > SEARCHES_REMEMBERED // len(self._lanes) and not self._is_rehearsal:
            del lane.searched_at[next(iter(lane.searched_at))]
        if len(lane.users) < 2:
            lane.users.add(session.user_id)
        return recorded

    def _record(self, lane: "_Lane", searches: Sequence[tuple[Place, RecordedSession]]) -> None:
        if self._is_rehearsal:
            lane.sessions["read"] += len(searches)
            return
        if not searches:
            return
        became = self._storage.clickstream.record([session for _, session in searches])
        for (place, recorded), (disposition, events) in zip(searches, became, strict=True):
            lane.sessions[disposition.value] += 1
            for event, each in zip(recorded.session.events, events, strict=False):  # none where it is taken
                lane.events[disposition_of_type(each, event.event_type, self._weights).value] += 1
            if disposition is SessionDisposition.TAKEN:
                lane.leave_out(TAKEN, place)
                lane.taken.add(recorded.session.session_id)

    def _on_objects(self, lane: "_Lane", events: Sequence[tuple[Place, Event]]) -> list[tuple[Place, Event]]:
        """Return events on objects of the collection."""
        if new := {event.object_id for _, event in events} - self._is_object.keys():
            there = self._existing(sorted(new))
            self._is_object.update({object_id: object_id in there for object_id in new})
        kept = []
        for place, event in events:
            if self._is_object[event.object_id]:
                kept.append((place, event))
            else:
                number, name = place
                lane.leave_out(NO_SUCH_OBJECT, (number, f"{name}, {event.object_id!r}"))
        return kept

    def _existing(self, object_ids: Sequence[str]) -> set[str]:
        """Return those that the collection has; objects that brought their vectors have no content hash."""
        objects = self._storage.objects
        hashed = objects.content_hashes(self._collection, object_ids).keys()
        return hashed | objects.originals(self._collection, set(object_ids) - hashed).keys()

    def _push(
        self, lane: "_Lane", events: Sequence[tuple[Place, Event]], *, may_wait: bool = False
    ) -> list[tuple[Place, Event]]:
        """Store events of searches that are recorded, or that may wait for theirs; return the others."""
        ours = []
        for place, event in events:
            if event.search_id in lane.taken:
                lane.leave_out(EVENT_OF_TAKEN, place)
            else:
                ours.append((place, event))
        if self._is_rehearsal:
            late = [(place, event) for place, event in ours if event.search_id not in lane.searched_at]
            known = [event for _, event in ours if event.search_id in lane.searched_at]
            lane.events["read"] += len(known)
            lane.look_at(known)
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
            lane.events[disposition_of_type(disposition, event_type, self._weights).value] += number
        lane.look_at(stored)
        return late

    def _settle(self, lane: "_Lane") -> None:
        """Store events whose searches came after them, or can be made of them; leave out the others."""
        late, lane.late = lane.late, []
        if self._is_rehearsal:
            self._remember_recorded(lane, {event.search_id for _, event in late if event.search_id})
        for start in range(0, len(late), BATCH):
            batch = self._push(lane, late[start : start + BATCH])
            made: dict[str, tuple[Place, RecordedSession]] = {}
            events, early = [], []
            for place, event in batch:
                if (search := made_search(event)) is None:
                    early.append((place, event))
                else:
                    session = self._remembered(lane, self._session(search))
                    made.setdefault(session.session.session_id, (place, session))
                    events.append((place, event))
            self._record(lane, list(made.values()))
            self._push(lane, events)
            for place, _ in self._push(lane, early, may_wait=True) if self._may_wait else early:
                lane.leave_out(NO_SUCH_SEARCH, place)

    def _remember_recorded(self, lane: "_Lane", search_ids: Iterable[str]) -> None:
        """Remember those searches that are recorded, which nothing tells where events are not stored."""
        for search_id in search_ids:
            with suppress(SessionNotFoundError):
                self._storage.clickstream.get_session(search_id)
                lane.searched_at.setdefault(search_id, 0)


@dataclass(slots=True, eq=False)
class _Lane:
    """What becomes of a part of the searches, with all that is said of them.

    Attributes:
        storing: a batch that is being stored.
        searched_at: search_id -> UTC seconds, of the latest.
        taken: the ids of searches that are somebody else's.
        late: events whose search did not come yet.
        users: two of those who searched, or all.
        types: event type -> how many.
        early: events long before their search.
    """

    storing: Future[None] | None = None
    searched_at: dict[str, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    late: list[tuple[Place, Event]] = field(default_factory=list)
    users: set[str | None] = field(default_factory=set)
    types: Counter[str] = field(default_factory=Counter)
    early: int = 0
    sessions: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, tuple[int, Place]] = field(default_factory=dict)

    def wait(self) -> None:
        if self.storing is not None:
            self.storing.result()

    def leave_out(self, reason: str, place: Place) -> None:
        number, first = self.left_out.get(reason, (0, place))
        self.left_out[reason] = number + 1, min(first, place)

    def look_at(self, events: Iterable[Event]) -> None:
        for event in events:
            self.types[event.event_type] += 1
            if event.at < self.searched_at.get(event.search_id or "", 0) - CLOCK_SECONDS:
                self.early += 1


def _lane_of(entry: object, lanes: int) -> int:
    match entry:
        case RecordedSession():
            search_id: str | None = entry.session.session_id
        case Search() | Event():
            search_id = entry.search_id
        case _:
            search_id = None
    return crc32((search_id or "").encode()) % lanes


def _report_of(lanes: Sequence[_Lane], weights: Mapping[str, float]) -> ImportReport:
    """Return what became of all."""
    sessions, events, types = Counter[str](), Counter[str](), Counter[str]()
    left_out: dict[str, tuple[int, Place]] = {}
    for lane in lanes:
        sessions += lane.sessions
        events += lane.events
        types += lane.types
        for reason, (number, place) in lane.left_out.items():
            before, first = left_out.get(reason, (0, place))
            left_out[reason] = before + number, min(first, place)
    report = ImportReport(
        dict(sessions),
        dict(events),
        {reason: LeftOut(number, place) for reason, (number, (_, place)) in left_out.items()},
    )
    users = set[str | None]().union(*(lane.users for lane in lanes))
    if users == {None}:
        report.notes.append(
            "no search names a user, so nothing personal is learnt; is the column of users mapped?"
        )
    elif len(users) == 1:
        report.notes.append("all searches are one user's; is the column of users the right one?")
    silent = {name: number for name, number in types.items() if weights.get(name, 0.0) <= 0}
    report.notes += [
        f"{counted(number, 'event is', 'events are')} of type {name!r}, which says nothing for an "
        "object by EVENT_WEIGHTS"
        for name, number in sorted(silent.items())
    ]
    if early := sum(lane.early for lane in lanes):
        report.notes.append(
            f"{counted(early, 'event is', 'events are')} more than {CLOCK_SECONDS} s earlier than the "
            f"search that {plural(early, 'it names; it is', 'they name; they are')} not learnt from"
        )
    if strange := events.get(EventDisposition.UNKNOWN_OBJECT.value):
        report.notes.append(
            f"{counted(strange, 'event is on an object', 'events are on objects')} that "
            f"{plural(strange, 'its', 'their')} search did not show; "
            f"{plural(strange, 'it is', 'they are')} not learnt from"
        )
    return report


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
