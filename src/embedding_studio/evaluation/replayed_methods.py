"""What can rank a log's searches and learn from its clicks: plain search, the product, click counts."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import RecordedSession, SearchResultItem, Session, SessionEvent
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.ports import Storage, Vectors
from embedding_studio.tuning import OwnPastKeeper

DEPTH = 100
"""What stands below is taken as not found: its reciprocal rank is 0."""
USERS_AT_ONCE = 500


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """A search as it is ranked again.

    Attributes:
        key: the same for the same query, whatever its spaces and capitals.
        vectors: [Q, D].
        at: UTC seconds.
        plain: the ids of the ``DEPTH`` best objects of plain search, best first.
    """

    session_id: str
    user_id: str
    text: str
    key: str
    vectors: Vectors
    at: int
    plain: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Click:
    """What a user did with one result of a search; ``shown`` is best first, ``at`` UTC seconds."""

    search: Search
    shown: tuple[str, ...]
    object_id: str
    event_type: str
    at: int


class ReplayedMethod(Protocol):
    """Ranks searches in the order of time, and learns of each click before the first search after it."""

    def rank(self, search: Search) -> Sequence[str]:
        """Return the ids of the ``DEPTH`` best objects, best first."""
        ...

    def learn(self, clicks: Sequence[Click]) -> None:
        """Take in what was clicked since the last call, in the order of time."""
        ...

    @property
    def untaught(self) -> Mapping[str, str]:
        """session_id -> why nothing was learnt from it, though something was clicked."""
        ...


class PlainSearch:
    """Search that learns nothing; what it finds for a query is found once."""

    def __init__(self, search: SearchService, collection: Collection) -> None:
        self._search = search
        self._collection = collection
        self._found: dict[bytes, tuple[str, ...]] = {}

    def best(self, vectors: Vectors) -> tuple[str, ...]:
        """Return the ids of the ``DEPTH`` best objects for a query [Q, D], best first."""
        key = vectors.tobytes()
        if key not in self._found:
            page = self._search.search(vectors, collection=self._collection.name, limit=DEPTH)
            self._found[key] = tuple(result.object_id for result in page.results)
        return self._found[key]


class Plain:
    """Plain search, as it was found beforehand."""

    untaught: Mapping[str, str] = {}

    def rank(self, search: Search) -> Sequence[str]:
        return search.plain

    def learn(self, clicks: Sequence[Click]) -> None:
        """Do nothing."""


class Counts:
    """What was clicked most for exactly this query, by anyone, then plain search. It protects no user."""

    untaught: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._clicks: dict[str, Counter[str]] = defaultdict(Counter)

    def rank(self, search: Search) -> list[str]:
        plain = search.plain
        counted = self._clicks.get(search.key, Counter[str]())
        position = {object_id: position for position, object_id in enumerate(plain)}
        clicked = sorted(counted, key=lambda each: (-counted[each], position.get(each, DEPTH), each))
        return [*clicked, *(object_id for object_id in plain if object_id not in counted)][:DEPTH]

    def learn(self, clicks: Sequence[Click]) -> None:
        for click in clicks:
            self._clicks[click.search.key][click.object_id] += 1


class Served:
    """The product as it serves and learns, on a storage of its own in which only the log's users are.

    A click is learnt when somebody next searches for whom it could matter: its own user, or, where what
    others clicked counts, anybody. What they see is the same as if it had been learnt at once. Who clicked
    nothing yet gets the plain search where nothing is shared (law 1): it is not done twice.

    Args:
        own_past: is fitted when a day has gone by, as a worker does.
    """

    def __init__(
        self,
        storage: Storage,
        collection: Collection,
        search: SearchService,
        improver: Improver,
        *,
        is_shared: bool,
        own_past: OwnPastKeeper | None,
    ) -> None:
        self._storage = storage
        self._collection = collection
        self._search = search
        self._improver = improver
        self._is_shared = is_shared
        self._own_past = own_past
        self._waiting: list[Click] = []
        self._waiting_users: set[str] = set()
        self._known_users: set[str] = set()
        self.untaught: dict[str, str] = {}

    def rank(self, search: Search) -> Sequence[str]:
        if not self._is_shared and search.user_id not in self._known_users:
            return search.plain
        if self._waiting and (self._is_shared or search.user_id in self._waiting_users):
            self._catch_up()
        if self._own_past is not None and self._own_past.is_due(search.at):
            self._catch_up()
            self._own_past.fit(search.at)
        page = self._search.search(
            search.vectors,
            collection=self._collection.name,
            user_id=search.user_id,
            limit=DEPTH,
            now=search.at,
            session_id=search.session_id,  # from which exploration is drawn, as in service
        )
        return [result.object_id for result in page.results]

    def learn(self, clicks: Sequence[Click]) -> None:
        self._waiting += clicks
        self._waiting_users.update(click.search.user_id for click in clicks)
        self._known_users.update(click.search.user_id for click in clicks)

    def _catch_up(self) -> None:
        first = {click.search.session_id: click for click in self._waiting}
        log = self._storage.clickstream
        log.record([RecordedSession(self._session(click), click.search.vectors) for click in first.values()])
        log.push_events(
            [
                SessionEvent(
                    session_id=click.search.session_id,
                    object_id=click.object_id,
                    event_type=click.event_type,
                    created_at=click.at,
                )
                for click in self._waiting
            ]
        )
        self._waiting.clear()
        self._waiting_users.clear()
        while (report := self._improver.improve_once(users=USERS_AT_ONCE)).users:
            self.untaught.update({**report.refused, **report.failed})

    def _session(self, click: Click) -> Session:
        search = click.search
        return Session(
            session_id=search.session_id,
            search_query=search.text,
            user_id=search.user_id,
            created_at=search.at,
            collection=self._collection.name,
            search_results=tuple(
                SearchResultItem(object_id=object_id, position=position)
                for position, object_id in enumerate(click.shown, start=1)
            ),
        )
