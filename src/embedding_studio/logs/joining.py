"""Events and lists without the id of a search, joined to theirs by user, time and object.

Rows may come out of order. Those without an id are put in order as far as ``ROWS_IN_ORDER`` of them reach,
and the searches of the last half hour are kept; so memory is bounded, however long the log is.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from embedding_studio.logs.entries import Event, Left, Placed, Search, Shown

WINDOW_SECONDS = 30 * 60
"""For so long after a search an event without an id may belong to it."""
LIST_SECONDS = 60
"""For so long after a search a list that its user sees is what it showed."""
ROWS_IN_ORDER = 100_000
SEARCHES_OF_USER = 100
"""Kept of one user, so that a robot costs no more than others."""
MADE = "~"
"""How an id begins that is derived of what a row says, and so can be guessed by whoever guesses that."""
IN_A_SECOND = (Search, Shown, Event)
"""The order of what has the same time."""

NO_SEARCH = "an event without the id of a search, before which its user did not search for half an hour"
NOT_SHOWN = "an event on an object that none of its user's searches of the last half hour showed"
NO_USER = "an event without the id of a search, and without a user"
NO_LIST = "a list of objects within no minute after a search"


def join(entries: Iterable[Placed]) -> Iterator[Placed]:
    """Yield searches and events, each with the id of its search and after it; what has one passes at once."""
    joiner = _Joiner()
    waiting: list[tuple[int, int, int, str, Search | Shown | Event]] = []
    for number, (place, entry) in enumerate(entries):
        if isinstance(entry, Shown) or (isinstance(entry, Search | Event) and entry.search_id is None):
            rank = IN_A_SECOND.index(type(entry))
            heapq.heappush(waiting, (entry.at, rank, number, place, entry))
            if len(waiting) > ROWS_IN_ORDER:
                yield from joiner.take(*heapq.heappop(waiting)[3:])
        else:
            yield place, entry
    while waiting:
        yield from joiner.take(*heapq.heappop(waiting)[3:])
    yield from joiner.close()


def name_of(*told: object) -> str:
    """Return an id for what has none, the same for the same."""
    return MADE + hashlib.sha256("\x1f".join(map(str, told)).encode()).hexdigest()[:32]


def made_search(event: Event) -> Search | None:
    """Return a search for an event that knows what was searched; None if it does not.

    Without an id it is the same one for all events of its user, text and half hour.
    """
    if event.query is None:
        return None
    query = " ".join(event.query.split())
    search_id = event.search_id or name_of(event.user_id, query, event.at // WINDOW_SECONDS)
    return Search(event.at, query, event.user_id, search_id)


@dataclass(slots=True)
class _Open:
    """A search whose lists and events may still come."""

    place: str
    search: Search
    events: list[Placed] = field(default_factory=list)

    def placed(self) -> Iterator[Placed]:
        yield self.place, self.search
        yield from self.events


class _Joiner:
    def __init__(self) -> None:
        self._of_user: dict[str, list[_Open]] = {}
        self._closed_at = 0
        self._now = 0

    def take(self, place: str, entry: Search | Shown | Event) -> Iterator[Placed]:
        self._now = max(self._now, entry.at)
        if self._now >= self._closed_at + 2 * WINDOW_SECONDS:
            yield from self._close_before(self._now - WINDOW_SECONDS)
        if isinstance(entry, Search):
            yield from self._open(
                place, replace(entry, search_id=name_of(entry.user_id, entry.query, entry.at))
            )
        elif isinstance(entry, Shown):
            yield from self._show(place, entry)
        else:
            yield from self._join(place, entry)

    def close(self) -> Iterator[Placed]:
        yield from self._close_before(self._now + 1)

    def _open(self, place: str, search: Search) -> Iterator[Placed]:
        if search.user_id is None:
            yield place, search
            return
        searches = self._of_user.setdefault(search.user_id, [])
        searches.append(_Open(place, search))
        if len(searches) > SEARCHES_OF_USER:
            yield from searches.pop(0).placed()

    def _close_before(self, at: int) -> Iterator[Placed]:
        kept: dict[str, list[_Open]] = {}
        for user_id, searches in self._of_user.items():
            for each in searches:
                if each.search.at >= at:
                    kept.setdefault(user_id, []).append(each)
                else:
                    yield from each.placed()
        self._of_user = kept
        self._closed_at = at

    def _recent(self, user_id: str, at: int, seconds: int) -> list[_Open]:
        """Return a user's searches up to a time, latest first."""
        searches = self._of_user.get(user_id, ())
        return [each for each in reversed(searches) if at - seconds <= each.search.at <= at]

    def _show(self, place: str, listed: Shown) -> Iterator[Placed]:
        recent = self._recent(listed.user_id, listed.at, LIST_SECONDS)
        if not recent:
            yield place, Left(NO_LIST)
            return
        search = recent[0].search
        recent[0].search = replace(search, shown=tuple(dict.fromkeys(search.shown + listed.shown)))

    def _join(self, place: str, event: Event) -> Iterator[Placed]:
        if event.user_id is None:
            yield place, Left(NO_USER)
            return
        recent = self._recent(event.user_id, event.at, WINDOW_SECONDS)
        if event.query is not None:
            recent = [each for each in recent if each.search.query.split() == event.query.split()]
        showing = [each for each in recent if event.object_id in each.search.shown]
        found = next(iter(showing or [each for each in recent if not each.search.shown]), None)
        if found is not None:
            found.events.append((place, replace(event, search_id=found.search.search_id)))
        elif (made := made_search(event)) is not None:
            yield place, made
            yield place, replace(event, search_id=made.search_id)
        else:
            yield place, Left(NOT_SHOWN if recent else NO_SEARCH)
