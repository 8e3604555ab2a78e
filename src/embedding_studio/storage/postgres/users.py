"""What a process keeps of the users whose searches it ran lately, so that the next one has little to read.

Each search asks whether a user's state is still the one that is kept, in the round trip in which it would
read it. What is kept of somebody who is forgotten goes with their next search, with ``KEPT_SECONDS``, or when
others need the room.

Axes: M objects · T parts of theirs · D dimensions.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sys import getsizeof
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import Collection, QueryMemory
from embedding_studio.embeddings.personal import ObjectGates
from embedding_studio.embeddings.similarity import cosines, lengths_of
from embedding_studio.storage.ports import OutdatedError, Vectors
from embedding_studio.storage.postgres.database import Connection, server_of
from embedding_studio.storage.postgres.sql import in_schema
from embedding_studio.storage.postgres.vectors import unpack

KEPT_BYTES = 128 << 20
"""About so much is kept in all."""
KEPT_SECONDS = 600.0
"""What was not asked for so long goes, once something else is kept."""
MOST_MEMORIES = 500
"""Of who has more, only those near a query are read, and nothing is kept."""

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OwnVectors:
    """A user's own vectors, of the objects of which is known whether there are any.

    Attributes:
        places: object_id -> where it stands in ``object_nos``; -1: the user has none of their own.
        object_nos: [M], ascending; the numbers of the originals that the vectors were made of.
        starts: [M], where the parts of each begin.
        parts: [T, D].
        lengths: [T], theirs.
        placed: of ids that were asked for together, the places of those that the user has vectors for.
    """

    places: Mapping[str, int] = field(default_factory=dict)
    object_nos: Numbers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    starts: Numbers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    parts: Vectors = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    lengths: Vectors = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    placed: dict[tuple[str, ...], Numbers] = field(default_factory=dict)

    @classmethod
    def read(cls, rows: Sequence[tuple[str, int, bytes]], asked: Iterable[str]) -> Self:
        """Return what the database brought of the objects asked for.

        Args:
            rows: (object_id, object_no, a part as it was sent), ascending by number.
        """
        object_nos, starts = np.unique(
            np.array([number for _, number, _ in rows], np.int64), return_index=True
        )
        found = {rows[start][0]: place for place, start in enumerate(starts.tolist())}
        parts = unpack([part for *_, part in rows])
        return cls({**dict.fromkeys(asked, -1), **found}, object_nos, starts, parts, lengths_of(parts))

    def __or__(self, others: "OwnVectors") -> "OwnVectors":
        """Return these and others, of other objects."""
        if not len(others.object_nos):
            return replace(self, places={**self.places, **others.places}, placed={})
        if not len(self.object_nos):
            return replace(others, places={**self.places, **others.places}, placed={})
        M, T = len(self.object_nos), len(self.parts)
        moved = {name: place + M if place >= 0 else place for name, place in others.places.items()}
        together = replace(
            self,
            object_nos=np.concatenate([self.object_nos, others.object_nos]),
            starts=np.concatenate([self.starts, others.starts + T]),
            parts=np.concatenate([self.parts, others.parts]),
            lengths=np.concatenate([self.lengths, others.lengths]),
        )
        order = np.argsort(together.object_nos)
        new_places = np.append(np.argsort(order), -1)
        places = {name: int(new_places[place]) for name, place in {**self.places, **moved}.items()}
        return replace(together._at(order), places=places)

    def lacking(self, groups: Iterable[tuple[str, ...]]) -> list[str]:
        """Return those ids of which is not known whether the user has vectors of their own."""
        unplaced = [object_ids for object_ids in groups if object_ids not in self.placed]
        return sorted({name for object_ids in unplaced for name in object_ids} - self.places.keys())

    def opened(self, gates: ObjectGates) -> "tuple[OwnVectors, Floats]":
        """Return those of objects that have a gate, without their ids, and the gates [M]."""
        wide = np.zeros(len(self.object_nos))
        for object_ids, gate in gates.groups:
            wide[self._places_of(object_ids)] = gate
        places = np.flatnonzero(wide > 0)
        return (self if len(places) == len(self.object_nos) else self._at(places)), wide[places]

    def _places_of(self, object_ids: tuple[str, ...]) -> Numbers:
        """Return where ids stand, of those that the user has vectors for; looked up once for all searches."""
        if (known := self.placed.get(object_ids)) is None:
            places = np.fromiter(map(self.places.__getitem__, object_ids), np.int64, len(object_ids))
            known = self.placed[object_ids] = places[places >= 0]
        return known

    def _at(self, places: Numbers) -> "OwnVectors":
        if len(self.parts) == len(self.object_nos):  # each is of one part
            starts = np.arange(len(places))
            return OwnVectors({}, self.object_nos[places], starts, self.parts[places], self.lengths[places])
        counts = np.diff(self.starts, append=len(self.parts))[places]
        starts = np.cumsum(counts) - counts
        rows = np.repeat(self.starts[places] - starts, counts) + np.arange(counts.sum())
        return OwnVectors({}, self.object_nos[places], starts, self.parts[rows], self.lengths[rows])

    @property
    def nbytes(self) -> int:
        return 200 * len(self.places) + self.parts.nbytes + self.lengths.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class KeptUser:
    """A user's state, as far as searches needed it.

    Attributes:
        version: of the state; None: nothing is learnt.
        memories: in order of time; of many those that are near to one query.
        are_all: whether these are all.
        lengths: [len(memories)], those of their queries.
    """

    version: str | None
    memories: Sequence[QueryMemory]
    are_all: bool
    queries: Vectors
    lengths: Floats
    vectors: OwnVectors

    @classmethod
    def of(cls, version: str | None, memories: Sequence[QueryMemory], *, are_all: bool) -> Self:
        queries = np.array([memory.query for memory in memories], dtype=np.float32)
        lengths = np.linalg.norm(queries.astype(np.float64), axis=-1) if memories else np.empty(0)
        return cls(version, memories, are_all, queries, lengths, OwnVectors())

    def near(self, query: Vectors, threshold: float) -> list[QueryMemory]:
        """Return the memories whose query has a cosine above a threshold to one [D]."""
        places = np.flatnonzero(cosines(self.queries, query, self.lengths) > threshold)
        return [self.memories[place] for place in places.tolist()]

    def having(self, vectors: OwnVectors) -> "KeptUser":
        return replace(self, vectors=self.vectors | vectors)

    @property
    def nbytes(self) -> int:
        texts = sum(
            getsizeof(each.search_query)
            + sum(map(getsizeof, each.clicked_ids))
            + sum(16 + getsizeof(name) for name in each.moved_ids)
            + 40 * len(each.likeness)
            for each in self.memories
        )
        return 2000 + 1000 * len(self.memories) + texts + 3 * self.queries.nbytes + self.vectors.nbytes


class VotesOutdatedError(OutdatedError):
    """Votes are not what they were taken for; the collection and the user's state are."""


@dataclass(frozen=True, slots=True)
class TakenForGranted:
    """What a search is made of without a look whether it is still so; each answer says whether it is.

    Attributes:
        server: of which it was read.
        name: of a collection.
        collection: version of what the name stood for.
        user_id: None: no user's state takes part.
        state: version of the user's.
        votes: the moment in which votes were what they are taken for; None: no votes take part.
    """

    server: str
    name: str
    collection: str
    user_id: str | None = None
    state: str | None = None
    votes: str | None = None

    @property
    def given(self) -> dict[str, str | None]:
        """Return the parameters of a statement that brings the versions."""
        return {"name": self.name, "user_id": self.user_id, "votes": self.votes}

    def check(self, connection: Connection, versions: Sequence[str | bool | None]) -> None:
        """Return if these are the versions of collection and state, of the same server, and no votes changed.

        Raises:
            OutdatedError: they are not.
            VotesOutdatedError: they are, but for votes.
        """
        *others, have_votes_changed = versions
        if (self.server, self.collection, self.state) != (server_of(connection), *others):
            raise OutdatedError("the collection, or what is learnt about the user, is not what it was")
        if have_votes_changed:
            raise VotesOutdatedError("what others clicked is not what it was")


UserKey = tuple[str, int, str]


@dataclass(slots=True, eq=False)
class KeptUsers:
    """The users of a process, those who searched last. Safe to use from several threads.

    Users are told apart by their server, the number of a collection, which is given once there, and their id.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: OrderedDict[UserKey, tuple[float, int, KeptUser]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, key: UserKey) -> KeptUser | None:
        with self._lock:
            found = self._kept.get(key)
            return None if found is None else found[2]

    def forget(self, key: UserKey) -> None:
        with self._lock:
            self._drop(key)

    def keep(self, key: UserKey, user: KeptUser) -> None:
        """Keep a user, who searched just now, instead of what was kept of them."""
        now = time.monotonic()
        with self._lock:
            _, nbytes, kept = self._kept.get(key, (now, 0, None))
        if user is not kept:
            nbytes = user.nbytes
        with self._lock:
            self._drop(key)
            if user.are_all and nbytes <= KEPT_BYTES:
                self._kept[key] = now, nbytes, user
                self._bytes += nbytes
            while self._kept:
                oldest, (used, *_) = next(iter(self._kept.items()))
                if self._bytes <= KEPT_BYTES and used >= now - KEPT_SECONDS:
                    break
                self._drop(oldest)

    def _drop(self, key: UserKey) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self._bytes -= found[1]


def read_vectors(
    connection: Connection, collection: Collection, user_id: str, object_ids: Sequence[str]
) -> OwnVectors:
    """Return what the database has of objects, in one round trip."""
    statement = in_schema("personal.sql", "vectors_of", collection.collection_id)
    given = {"user_id": user_id, "object_ids": list(object_ids)}
    return OwnVectors.read(connection.execute(statement, given, binary=True).fetchall(), object_ids)
