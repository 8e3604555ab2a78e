"""What a process keeps of what is shared among users.

The queries that anybody voted for, and the latest votes for those of them that searches came near to lately.
It is as the database was in one moment. A transaction that changes votes notes for which queries; a search
asks what was noted since, or, where nothing was for a while, whether anything was, in the very statement that
finds what is nearest. Where queries are too many to be compared here, the database is asked for all of it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from psycopg import Cursor

from embedding_studio.domain.objects import Collection, SeenObject, SharedMemory
from embedding_studio.storage.ports import SHARED_HALF_LIFE, Vectors
from embedding_studio.storage.postgres.database import Connection
from embedding_studio.storage.postgres.vectors import unpack
from embedding_studio.storage.postgres.votes import (
    NOTED_SECONDS,
    ask_changed_queries,
    ask_latest,
    ask_near,
    ask_queries,
    shared_memories,
)
from embedding_studio.storage.votes import Asked, Latest, Listener, said_together

MOST_BYTES = 16 << 20
"""Queries of so many bytes are compared here about as fast as the database finds those that are near."""
LATEST_BYTES = 32 << 20
"""So many bytes have the latest votes that are kept of one collection."""
MOST_COLLECTIONS = 200
KEPT_BYTES = 128 << 20
"""About so much is kept in all."""
IDLE_SECONDS = 60.0
"""Who was not searched for so long makes room for others; who finds none is answered by the database."""
STEADY_SECONDS = 1.0
"""Where nothing changed for so long, nothing is expected to have changed since."""
LARGE_SECONDS = 600.0
"""So long a collection that had too many queries is taken to have too many."""
ATTEMPTS = 3
"""So often what is kept is brought up to date while other threads do so, too."""

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """When something was so in the database.

    Attributes:
        snapshot: as PostgreSQL writes one: what it does not see came later.
        known_since: seconds of the clock of this process.
    """

    snapshot: str
    known_since: float = field(default_factory=time.monotonic)

    @property
    def is_noted_since(self) -> bool:
        """Return whether all that changed since is still noted."""
        return time.monotonic() < self.known_since + NOTED_SECONDS / 2

    @property
    def is_recent(self) -> bool:
        """Return whether it is early to ask what changed since, lest all has to be read."""
        return time.monotonic() < self.known_since + NOTED_SECONDS / 4


@dataclass(frozen=True, slots=True)
class Said:
    """What others say for near queries.

    Attributes:
        moment: in which it was so, as a snapshot; None: it is not taken for granted.
    """

    memories: list[SharedMemory]
    moment: str | None


NOTHING = Said([], None)


class KeptVotes:
    """What is kept of the collections that were searched last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], VotesOfCollection] = OrderedDict()
        self._bytes = 0

    def of(self, server: str, collection: Collection) -> "VotesOfCollection":
        key, now = (server, collection.collection_id), time.monotonic()
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None:
                kept = VotesOfCollection(collection)
                while self._is_full and next(iter(self._kept.values())).used < now - IDLE_SECONDS:
                    self._drop_oldest()
                if self._is_full:
                    kept.leave_to_database()
                    return kept
            self._bytes += (nbytes := kept.nbytes) - kept.counted_bytes
            kept.used, kept.counted_bytes = now, nbytes
            self._kept[key] = kept
            while len(self._kept) > 1 and self._bytes > KEPT_BYTES:
                self._drop_oldest()
        return kept

    def _drop_oldest(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        self._bytes -= oldest.counted_bytes

    @property
    def _is_full(self) -> bool:
        """Return whether one more is too much; it will grow, and is not to drive out others in turns."""
        return len(self._kept) >= MOST_COLLECTIONS or self._bytes > KEPT_BYTES / 2


class VotesOfCollection:
    """What is kept of one collection. Safe to use from several threads."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.used = -1.0
        self.counted_bytes = 0
        """When it was searched last and how large it was then, as ``KeptVotes`` noted."""
        self.most_queries = MOST_BYTES // (4 * (collection.index.dimensions or 1))
        self._lock = threading.Lock()
        self._large_until = -1.0
        self._changed = -1.0
        self._forget()

    def _forget(self) -> None:
        self._moment: Moment | None = None
        self._asked = Asked()
        self._keys: dict[int, str] = {}
        """Of queries, by their numbers."""
        self._latest: OrderedDict[str, tuple[int, Latest]] = OrderedDict()
        self._bytes = 0

    @property
    def moment(self) -> Moment | None:
        """All that is kept is of this moment, or was so in it and later; None: nothing is kept."""
        return self._moment

    @property
    def is_large(self) -> bool:
        return time.monotonic() < self._large_until

    @property
    def nbytes(self) -> int:
        return self._bytes + self._asked.nbytes

    def leave_to_database(self) -> None:
        """Keep nothing for a while."""
        self._forget()
        self._large_until = time.monotonic() + LARGE_SECONDS

    def _is_steady(self, moment: Moment) -> bool:
        """Return whether all is expected to be as it was in the moment of what is kept."""
        return moment.is_recent and time.monotonic() >= self._changed + STEADY_SECONDS

    def said(self, listener: Listener) -> Said | None:
        """Return what is expected to be said; None where that is not known."""
        moment = self._moment
        if moment is None or not self._is_steady(moment):
            return None
        near, missing = self.near(listener, {})
        return None if missing else Said(_together(near, listener), moment.snapshot)

    def near(
        self, listener: Listener, read: Mapping[str, Latest]
    ) -> tuple[list[tuple[Vectors, Latest]], list[str]]:
        """Return near queries with the latest votes for them, and the keys of those of which these lack.

        Args:
            read: query_key -> the same, as it was just read.
        """
        known, missing = [], []
        with self._lock:
            for key in self._asked.nearest(listener.query, listener.threshold):
                if (kept := self._latest.get(key)) is not None and kept[0] >= listener.votes:
                    self._latest.move_to_end(key)
                    known.append((self._asked.query(key), kept[1]))
                elif key in read:
                    known.append((self._asked.query(key), read[key]))
                else:
                    missing.append(key)
        return known, missing

    def take_queries(self, rows: Sequence[Row], seen: Moment | None, *, are_all: bool) -> Moment | None:
        """Take in what changed since a moment, or all, and return the moment in which it was read.

        None: another thread took in something meanwhile, or there is too much to be kept.
        """
        changed = [(number, key, query) for _, number, key, query in rows if number is not None]
        queries = iter(unpack([query for _, key, query in changed if key is not None]))
        with self._lock:
            if seen is not self._moment:
                return None
            if are_all:
                self._forget()
            for number, key, _ in changed:
                self._outdate(self._keys.get(number) or key)
                if key is None and number in self._keys:
                    self._asked.remove(self._keys.pop(number))
            for number, key, _ in changed:
                if key is not None:
                    query = next(queries)
                    if number not in self._keys:
                        self._keys[number] = key
                        self._asked.add(key, query)
            if len(self._asked) > self.most_queries:
                self.leave_to_database()
                return None
            if changed and not are_all:
                self._changed = time.monotonic()
            self._moment = Moment(rows[0][0])
            return self._moment

    def take_latest(self, rows: Sequence[Row], count: int, moment: Moment | None) -> dict[str, Latest]:
        """Return query_key -> the latest votes for it, and keep them where all that is kept is of a moment.

        Args:
            moment: they were read in it, or later.
        """
        means = iter(unpack([row[2] for row in rows]))
        read = {
            key: Latest.of(
                [
                    (user_id, next(means), created_at, tuple(map(SeenObject, *seen)))
                    for _, user_id, _, created_at, *seen in of_query
                ]
            )
            for key, of_query in groupby(rows, itemgetter(0))
        }
        with self._lock:
            if moment is not None and moment is self._moment:
                for key, latest in read.items():
                    self._outdate(key)
                    self._latest[key] = count, latest
                    self._bytes += latest.nbytes
                while self._bytes > LATEST_BYTES:
                    self._outdate(next(iter(self._latest)))
        return read

    def _outdate(self, key: str | None) -> None:
        if key is not None and (former := self._latest.pop(key, None)) is not None:
            self._bytes -= former[1].nbytes


class AskedVotes:
    """What others say for near queries, asked in a pipeline or not, and what is kept brought up to date."""

    def __init__(self, connection: Connection, kept: VotesOfCollection, listener: Listener) -> None:
        self._kept = kept
        self._listener = listener
        self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        kept = self._kept
        self._near = self._latest = None
        self._seen = kept.moment
        self._are_all = self._seen is None or not self._seen.is_noted_since
        if kept.is_large:
            self._near = ask_near(connection, kept.collection, self._listener)
        elif self._seen is None or self._are_all:
            self._queries = ask_queries(connection, kept.collection, kept.most_queries + 1)
        else:
            self._queries = ask_changed_queries(connection, kept.collection, self._seen.snapshot)
            if missing := kept.near(self._listener, {})[1]:
                self._latest = ask_latest(connection, kept.collection, missing, self._listener.votes)

    def read(self, connection: Connection) -> list[SharedMemory]:
        """Return the answer; in a round trip more where queries are near whose votes are not kept."""
        for _ in range(ATTEMPTS):
            if self._near is not None:
                break
            moment = self._kept.take_queries(self._queries.fetchall(), self._seen, are_all=self._are_all)
            read = {} if self._latest is None else self._take_latest(self._latest, moment)
            near, missing = self._kept.near(self._listener, read)
            if moment is not None and missing:
                latest = ask_latest(connection, self._kept.collection, missing, self._listener.votes)
                near, missing = self._kept.near(self._listener, read | self._take_latest(latest, moment))
            if moment is not None and not missing:
                return _together(near, self._listener)
            self._ask(connection)
        near_ones = self._near or ask_near(connection, self._kept.collection, self._listener)
        return shared_memories(near_ones.fetchall())

    def _take_latest(self, answer: Cursor[Row], moment: Moment | None) -> dict[str, Latest]:
        return self._kept.take_latest(answer.fetchall(), self._listener.votes, moment)


def _together(near: Sequence[tuple[Vectors, Latest]], listener: Listener) -> list[SharedMemory]:
    return said_together(near, listener, float(SHARED_HALF_LIFE))
