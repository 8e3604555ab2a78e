"""A streaming replica on which searches are run, where it knows what they need.

What a search needs is asked of the database, which costs it little, and then of the replica, in the
transaction in which it searches:

- the state of the user: the transaction that wrote it, which is the same number on both. So who sees that a
  click was learnt sees it in each search from then on, wherever it is run;
- a place in the database's log: where that stood a second or two ago. So what came, changed or went without
  the user is seen that much later at the most, however long the replica may lag.

Where it does not know them yet, or does not answer, the database searches.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from embedding_studio.domain.objects import Collection
from embedding_studio.errors import CollectionNotFoundError, StorageError, StorageTimeoutError
from embedding_studio.storage.postgres.database import BehindError, Connection, Database, only_row
from embedding_studio.storage.postgres.sql import in_schema, statements

AWAY_SECONDS = 5.0
"""So long a replica that failed is not asked again; then by one search, until it answers."""
LAG_SECONDS = 1.0
"""A replica that has not reached in this time what the database had is behind; twice as long at the most."""
ATTEMPTS = 4
PAUSE_SECONDS = 0.005

USED, BEHIND, AWAY = OUTCOMES = "used", "behind", "away"

T = TypeVar("T")

_SQL = statements("replica.sql")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the log of the database stood at a time, in seconds, or later."""

    at: float
    place: str


@dataclass(frozen=True, slots=True)
class _Need:
    """What a search is to see: a place in the log, and the user's state, if there is a user."""

    place: str
    state: tuple[Any, ...] | None


class Searches:
    """Where searches are run: on a database or, where there is one, on its replica.

    Args:
        tell: called with what became of the replica for each search: ``used``, ``behind`` or ``away``.
    """

    def __init__(
        self, database: Database, replica: Database | None = None, tell: Callable[[str], object] | None = None
    ) -> None:
        self._database = database
        self._replica = replica
        self._tell = tell or (lambda _: None)
        self._lock = threading.Lock()
        self._away_until = 0.0
        self._place = self._next_place = _Place(-math.inf, "0/0")
        self._asked_at = -math.inf

    def read(
        self,
        search: Callable[[Connection], T],
        collection: Collection,
        user_id: str | None = None,
        *,
        is_measured: bool = False,
    ) -> T:
        """Return what a search finds.

        Args:
            user_id: whose state it is to see as the database has it.
            is_measured: it is compared with others, and so is run on the database.
        """
        if self._replica is not None and not is_measured:
            if self._is_away():
                self._tell(AWAY)
            else:
                need = _Need(self._place_reached(), self._state(self._database, collection, user_id))
                try:
                    found = self._read_replica(self._replica, search, need, collection, user_id)
                except (BehindError, CollectionNotFoundError):
                    self._tell(BEHIND)
                except StorageTimeoutError:
                    raise
                except StorageError as error:
                    self._away_until = time.monotonic() + AWAY_SECONDS
                    self._tell(AWAY)
                    _log.warning("the replica is away, so the database searches: %s", error)
                else:
                    self._away_until = 0.0
                    self._tell(USED)
                    return found
        for _ in range(ATTEMPTS):
            try:
                return self._database.read(search, begins=True)
            except BehindError:
                time.sleep(PAUSE_SECONDS)
        raise StorageTimeoutError(
            f"objects of {collection.name!r} changed {ATTEMPTS} times while they were searched; try again in "
            "a moment"
        )

    @property
    def have_replica(self) -> bool:
        return self._replica is not None

    def lag(self) -> float | None:
        """Return how many seconds ago what the replica shows was true (``Vitals``)."""
        if self._replica is None:
            return None
        (reached,) = self._database.read(lambda connection: only_row(connection.execute(_SQL["reached"])))
        given = {"place": reached}
        try:
            (lag,) = self._replica.read(lambda connection: only_row(connection.execute(_SQL["lag"], given)))
        except StorageError:
            return math.inf
        return float(lag)

    def close(self) -> None:
        if self._replica is not None:
            self._replica.close()

    def _is_away(self) -> bool:
        """Return whether the replica failed lately; one search of those who come after that looks again."""
        with self._lock:
            now = time.monotonic()
            if self._away_until > now:
                return True
            if self._away_until:
                self._away_until = now + AWAY_SECONDS
            return False

    def _place_reached(self) -> str:
        """Return where the log of the database stood a second ago, or two, or now where that is not known."""
        with self._lock:
            now = time.monotonic()
            if now >= min(self._asked_at + LAG_SECONDS, self._place.at + 2 * LAG_SECONDS):
                self._place = self._next_place
            is_known = now < self._place.at + 2 * LAG_SECONDS
            if is_known and now < self._asked_at + LAG_SECONDS:
                return self._place.place
            if is_known:  # others need not ask, too
                self._asked_at = now
        (reached,) = self._database.read(lambda connection: only_row(connection.execute(_SQL["reached"])))
        with self._lock:
            self._next_place = _Place(now, reached)
            if not is_known:
                self._place, self._asked_at = self._next_place, now
            return self._place.place

    @staticmethod
    def _state(database: Database, collection: Collection, user_id: str | None) -> tuple[Any, ...] | None:
        if user_id is None:
            return None
        return database.read(lambda connection: _state_of(connection, collection, user_id))

    @staticmethod
    def _read_replica(
        replica: Database,
        search: Callable[[Connection], T],
        need: _Need,
        collection: Collection,
        user_id: str | None,
    ) -> T:
        def work(connection: Connection) -> T:
            (is_there,) = only_row(connection.execute(_SQL["has_reached"], {"place": need.place}))
            if not is_there:
                raise BehindError
            if user_id is not None and _state_of(connection, collection, user_id) != need.state:
                raise BehindError
            return search(connection)

        return replica.read(work, begins=True)


def _state_of(connection: Connection, collection: Collection, user_id: str) -> tuple[Any, ...]:
    statement = in_schema("personal.sql", "version", collection.collection_id)
    return only_row(connection.execute(statement, {"user_id": user_id}))
