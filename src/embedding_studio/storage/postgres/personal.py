"""What is learnt about users, in PostgreSQL: written as a whole in one transaction, read for one user."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from psycopg import Cursor

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import (
    Collection,
    NearMemories,
    Neighbour,
    PersonalState,
    QueryMemory,
    SharedMemory,
)
from embedding_studio.embeddings.personal import ObjectGates, shared_threshold
from embedding_studio.storage.attached import ByCollection
from embedding_studio.storage.elsewhere import nearest_of_user
from embedding_studio.storage.ports import (
    NOTHING_NAMED,
    BaseIndex,
    OrderOutcome,
    OutdatedError,
    PassedOver,
    Vectors,
)
from embedding_studio.storage.postgres.clickstream import keep_query_vectors, lock_users
from embedding_studio.storage.postgres.collections import (
    PostgresCollections,
    ask_names,
    lock_originals,
    lock_state,
    names_in,
    share_state,
)
from embedding_studio.storage.postgres.database import (
    Connection,
    Database,
    one_moment,
    only_row,
    server_of,
    text_array,
)
from embedding_studio.storage.postgres.kept_votes import NOTHING, AskedVotes, KeptVotes, Said
from embedding_studio.storage.postgres.nearest import NearestSearch
from embedding_studio.storage.postgres.objects import PostgresObjects, grouped_parts
from embedding_studio.storage.postgres.outbox import Outbox
from embedding_studio.storage.postgres.plans import Moved, check
from embedding_studio.storage.postgres.quarantine import keep_found
from embedding_studio.storage.postgres.queue import Held, complete, find_held, mark_users
from embedding_studio.storage.postgres.replica import Searches
from embedding_studio.storage.postgres.sql import in_schema
from embedding_studio.storage.postgres.users import (
    MOST_MEMORIES,
    KeptUser,
    KeptUsers,
    OwnVectors,
    TakenForGranted,
    VotesOutdatedError,
)
from embedding_studio.storage.postgres.vectors import PackedVector, pack, unpack
from embedding_studio.storage.postgres.votes import ask_voted, ask_votes, replace_votes, shared_votes
from embedding_studio.storage.votes import Listener

Row = tuple[Any, ...]

ROUNDING = 1e-5
"""By so much lower a threshold the database finds near whatever is near here, though both round."""


class PostgresPersonal:
    def __init__(
        self,
        database: Database,
        search: NearestSearch,
        searches: Searches,
        collections: PostgresCollections,
    ) -> None:
        self._database = database
        self._searches = searches
        self._search = search
        self._collections = collections
        self._users = KeptUsers()
        self._votes = KeptVotes()

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
        listener = Listener(user_id, query, shared_threshold(threshold), shared_by) if shared_by else None
        if is_checked_later and seen_as is not None:
            known = self._known(collection, user_id, query, threshold, seen_as, listener=listener)
            if known is not None:
                return known

        def work(connection: Connection) -> NearMemories:
            asked = votes = None
            # Of one moment: memories of one state open no gates for the vectors of another.
            with connection.pipeline(), one_moment(connection):
                seen = None if seen_as is None else self._collections.ask_version(connection, seen_as)
                if user_id is not None:
                    kept = self._users.get((server_of(connection), collection.collection_id, user_id))
                    asked = _AskedUser(connection, collection, user_id, query, threshold=threshold, kept=kept)
                if listener is not None:
                    votes = AskedVotes(
                        connection, self._votes.of(server_of(connection), collection), listener
                    )
            if seen_as is not None and seen is not None:
                self._collections.check_seen(seen, seen_as, collection)
            shared = [] if votes is None else votes.read(connection)
            if asked is None:
                return NearMemories([], shared)
            user, found = asked.read(connection)
            self._users.keep((server_of(connection), collection.collection_id, asked.user_id), user)
            return NearMemories(found, shared, _Read(user.vectors))

        if user_id is None and not shared_by and seen_as is None:
            return NearMemories([], [])
        return self._database.read(work, begins=True)

    def _known(
        self,
        collection: Collection,
        user_id: str | None,
        query: Vectors,
        threshold: float,
        name: str,
        *,
        listener: Listener | None,
    ) -> NearMemories | None:
        """Return what this process knows; None where that is not all that a search needs.

        Only for what others say the database may be asked.
        """
        version = self._collections.version_seen(name, collection)
        if version is None or collection.attached is not None or self._searches.have_replica:
            return None
        near: list[QueryMemory] = []
        vectors, state = _OF_NO_USER, None
        server = self._database.server
        if user_id is not None:
            key = server, collection.collection_id, user_id
            user = self._users.get(key)
            if user is None:
                return None
            near = user.near(query, threshold)
            if user.vectors.lacking(memory.moved_ids for memory in near):
                return None
            self._users.keep(key, user)
            vectors, state = user.vectors, user.version
        said = NOTHING if listener is None else self._said(server, collection, listener)
        taken = TakenForGranted(server, name, version, user_id, state, said.moment)
        return NearMemories(near, said.memories, _Read(vectors, taken), is_checked=False)

    def _said(self, server: str, collection: Collection, listener: Listener) -> Said:
        """Return what others say; where this process cannot tell, the database is asked."""
        said = self._votes.of(server, collection).said(listener)
        if said is not None:
            return said

        def work(connection: Connection) -> list[SharedMemory]:
            kept = self._votes.of(server_of(connection), collection)
            with connection.pipeline(), one_moment(connection):
                asked = AskedVotes(connection, kept, listener)
            return asked.read(connection)

        return Said(self._database.read(work, begins=True), None)

    def nearest(
        self,
        collection: Collection,
        user_id: str | None,
        queries: Vectors,
        limit: int,
        gates: Mapping[str, float],
        *,
        objects: BaseIndex,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        own: object = None,
        named: Mapping[str, float] = NOTHING_NAMED,
    ) -> list[Neighbour]:
        read = own if isinstance(own, _Read) else _Read()
        with self._forgetting_what_is_old(collection, user_id):
            filling = objects.filling if isinstance(objects, ByCollection) and collection.filled else None
            if isinstance(objects, ByCollection):
                objects = objects.of(collection)
            if not isinstance(objects, PostgresObjects) or objects.database is not self._database:
                if (taken := read.taken) is not None:
                    self._database.read(lambda connection: check(connection, collection, taken))
                copies, made_of = (
                    self._copies(collection, user_id, list(gates))
                    if gates and user_id is not None
                    else ({}, None)
                )
                return nearest_of_user(
                    objects,
                    copies,
                    collection,
                    queries,
                    limit,
                    gates=gates,
                    filter=filter,
                    made_of=made_of,
                    named=named,
                )
            moved = (
                Moved(user_id, ObjectGates.of(gates), read.vectors) if gates and user_id is not None else None
            )
            if isinstance(filling, Outbox):
                return filling.nearest(
                    collection,
                    queries,
                    limit,
                    payload_filter=filter,
                    moved=moved,
                    taken=read.taken,
                    named=named,
                )
            return self._searches.read(
                lambda connection: self._search(
                    connection,
                    collection,
                    queries,
                    limit,
                    payload_filter=filter,
                    moved=moved,
                    taken=read.taken,
                    named=named,
                ),
                collection,
                user_id,
            )

    @contextmanager
    def _forgetting_what_is_old(self, collection: Collection, user_id: str | None) -> Iterator[None]:
        """Forget a user who turns out to be another by now, so that all is read at once the next time."""
        try:
            yield
        except VotesOutdatedError:
            raise
        except OutdatedError:
            if user_id is not None:
                self._users.forget((self._database.server, collection.collection_id, user_id))
            raise

    def outdate(self, collection: Collection, object_ids: Sequence[str]) -> None:
        self._database.write(lambda connection: outdate(connection, collection, object_ids))

    def notice(self, collection: Collection, digests: Mapping[str, str | None]) -> list[str]:
        given = {"object_ids": sorted(digests), "digests": [digests[each] for each in sorted(digests)]}

        def news(connection: Connection) -> list[tuple[str, bool]]:
            return connection.execute(_of(collection, "not_noticed"), given).fetchall()

        def work(connection: Connection) -> list[str]:
            lock_originals(connection, collection)
            changed = [object_id for object_id, is_new in news(connection) if not is_new]
            if changed:
                outdate(connection, collection, changed)
            connection.execute(_of(collection, "notice"), given)
            return changed

        return self._database.write(work) if self._database.read(news) else []

    def noticed(
        self,
        collection: Collection,
        *,
        among: Sequence[str] | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> dict[str, str | None]:
        name = "noticed" if among is None else "made_of"
        given = {"object_ids": list(among or ()), "after": after, "limit": limit}
        return self._database.read(
            lambda connection: dict(connection.execute(_of(collection, name), given).fetchall())
        )

    def copies(self, collection: Collection, user_id: str, object_ids: Sequence[str]) -> dict[str, Vectors]:
        copies, _ = self._copies(collection, user_id, object_ids)
        return copies

    def _copies(
        self, collection: Collection, user_id: str, object_ids: Sequence[str]
    ) -> tuple[dict[str, Vectors], dict[str, str | None] | None]:
        """Return the copies and, of an attached collection, the digests of what they were made of."""
        given = {"user_id": user_id, "object_ids": list(object_ids)}

        def work(
            connection: Connection,
        ) -> tuple[dict[str, Vectors], dict[str, str | None] | None]:
            if collection.attached is None:
                rows = connection.execute(_of(collection, "copies"), given, binary=True)
                return grouped_parts(rows.fetchall()), None
            with connection.pipeline():  # in this order, as ``attached.current_copies`` says
                made_of = connection.execute(_of(collection, "made_of"), given)
                rows = connection.execute(_of(collection, "copies"), given, binary=True)
            return grouped_parts(rows.fetchall()), dict(made_of.fetchall())

        return self._database.read(work)

    def state(self, collection: Collection, user_id: str) -> PersonalState:
        given = {"user_id": user_id}

        def work(connection: Connection) -> PersonalState:
            with connection.pipeline():
                memories = connection.execute(_of(collection, "memories"), given, binary=True)
                vectors = connection.execute(_of(collection, "vectors"), given, binary=True)
                votes = ask_votes(connection, collection, user_id)
            return PersonalState(
                tuple(_memories(memories.fetchall())),
                grouped_parts(vectors.fetchall()),
                shared_votes(votes.fetchall()),
            )

        return self._database.read(work)

    def latest_memories(self, collection: Collection, count: int) -> list[list[QueryMemory]]:
        rows = self._database.read(
            lambda connection: connection.execute(
                _of(collection, "latest_memories"), {"count": count}, binary=True
            ).fetchall()
        )
        of_user: dict[int, list[Row]] = {}
        for number, *row in rows:
            of_user.setdefault(number, []).append(tuple(row))
        return [_memories(of_one) for of_one in of_user.values()]

    @contextmanager
    def learning(self, collection: Collection, user_ids: Sequence[str]) -> Iterator["PostgresLearning"]:
        with self._database.transaction() as connection:
            with connection.pipeline():
                share_state(connection, collection)
                lock_users(connection, user_ids)
                answer = ask_names(connection, collection)
            yield PostgresLearning(connection, collection, names_in(answer, collection), user_ids)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What ``near_memories`` leaves to ``nearest``.

    Attributes:
        taken: what is still to be checked.
    """

    vectors: OwnVectors = field(default_factory=OwnVectors)
    taken: TakenForGranted | None = None


_OF_NO_USER = OwnVectors()


class PostgresLearning:
    """A ``LearningTransaction``. Everything is stored for all users at once."""

    def __init__(
        self, connection: Connection, collection: Collection, names: Sequence[str], user_ids: Sequence[str]
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._names = list(names)
        self._user_ids = list(dict.fromkeys(user_ids))
        self._held: dict[str, list[Held]] = {}

    def held(self, token: str) -> set[str]:
        return {user_id for _, user_id, _ in self._held_rows(token)}

    def store_query_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        keep_query_vectors(self._connection, vectors)

    def replace_states(
        self, states: Mapping[str, PersonalState], quarantined: Mapping[str, str] | None = None
    ) -> None:
        if not states:
            return
        given = {"user_ids": list(states)}
        with self._connection.pipeline():
            self._connection.execute(_of(self._collection, "delete_vectors"), given)
            self._connection.execute(_of(self._collection, "delete_memories"), given)
            keep_found(self._connection, self._collection, list(states), quarantined or {})
            voted = ask_voted(self._connection, self._collection, list(states))
            numbered = self._connection.execute(
                _of(self._collection, "object_nos"),
                {"object_ids": list({object_id for state in states.values() for object_id in state.vectors})},
            )
        rows = _vector_rows(states, dict(numbered.fetchall()))
        self._copy("copy_vectors", ["text", "text", "int4", "vector", "int8"], rows)
        self._copy(
            "copy_memories",
            ["text", "text", "text", "int8", "vector", "vector", "text[]", "text[]", "float8[]"],
            _memory_rows(states),
        )
        votes = {user_id: state.votes for user_id, state in states.items()}
        replace_votes(self._connection, self._collection, votes, voted)

    def complete(
        self, token: str, outcomes: Sequence[OrderOutcome], passed_over: PassedOver
    ) -> list[OrderOutcome]:
        held = self._held_rows(token)
        return complete(self._connection, token, held, outcomes, passed_over, collections=self._names)

    def _held_rows(self, token: str) -> list[Held]:
        if token not in self._held:
            self._held[token] = find_held(self._connection, token, self._user_ids, self._names)
        return self._held[token]

    def _copy(self, name: str, types: Sequence[str], rows: Iterator[Row]) -> None:
        first = next(rows, None)
        if first is None:
            return
        with (
            self._connection.cursor() as cursor,
            cursor.copy(_of(self._collection, name)) as copy,
        ):
            copy.set_types(types)
            for row in chain([first], rows):
                copy.write_row(row)


def outdate(connection: Connection, collection: Collection, object_ids: Sequence[str]) -> None:
    """Drop copies of objects whose originals come, change or go, and mark the users who met them.

    From here to the commit no worker learns in the collection, nor reads originals to learn from them: who
    read the old ones is marked, for the sessions that met them were recorded before; who comes later
    reads the new ones.
    """
    given = {"object_ids": text_array(object_ids)}
    with connection.pipeline():
        connection.execute(_of(collection, "order_showings"))
        lock_state(connection, collection)
        asked = ask_names(connection, collection)
        connection.execute(_of(collection, "drop_copies"), given)
    names = names_in(asked, collection)
    met = connection.execute(_of(collection, "users_of"), given | {"collections": names})
    users = [user_id for (user_id,) in met]
    if users:
        mark_users(connection, users, names)


class _AskedUser:
    """What is asked of a user in a pipeline: whether they are still as they are kept, and what is not kept.

    Args:
        query: [D], for which memories are near above the threshold.
        kept: what is kept of the user.
    """

    def __init__(
        self,
        connection: Connection,
        collection: Collection,
        user_id: str,
        query: Vectors,
        *,
        threshold: float,
        kept: KeptUser | None,
    ) -> None:
        self.user_id = user_id
        self._collection = collection
        self._near = partial(KeptUser.near, query=query, threshold=threshold)
        self._given = {
            "user_id": user_id,
            "query": _packed_one(query),
            "threshold": threshold - ROUNDING,
            "most": MOST_MEMORIES,
        }
        self._kept = kept
        self._found = [] if kept is None else self._near(kept)
        self._lacking: list[str] = []
        self._memories: Cursor[Row] | None = None
        self._vectors: Cursor[Row] | None = None
        self._version = self._ask(connection, "version")
        if kept is None:
            self._ask_all(connection)
        elif collection.attached is None and (
            lacking := kept.vectors.lacking(memory.moved_ids for memory in self._found)
        ):
            self._lacking = lacking
            self._vectors = self._ask(connection, "vectors_of", object_ids=lacking)

    def _ask(self, connection: Connection, name: str, **more: object) -> Cursor[Row]:
        return connection.execute(_of(self._collection, name), {**self._given, **more}, binary=True)

    def _ask_all(self, connection: Connection) -> None:
        self._memories = self._ask(connection, "memories_to_search")
        if self._collection.attached is None:  # else the search reads them with what they were made of
            self._vectors = self._ask(connection, "vectors_to_search")

    def read(self, connection: Connection) -> tuple[KeptUser, list[QueryMemory]]:
        """Return the user and their near memories; in a round trip more where what is kept of them is old."""
        (version,) = only_row(self._version)
        if self._memories is None and (self._kept is None or self._kept.version != version):
            with connection.pipeline(), one_moment(connection):
                again = self._ask(connection, "version")
                self._ask_all(connection)
            (version,) = only_row(again)
        rows = [] if self._vectors is None else self._vectors.fetchall()
        if self._memories is not None:
            read = self._memories.fetchall()
            are_all = version is None if not read else bool(read[0][-1])
            user = KeptUser.of(version, _memories([row[:-1] for row in read]), are_all=are_all)
            found = self._near(user)
            return user.having(OwnVectors.read(rows, _moved_by(found))), found
        assert self._kept is not None  # noqa: S101, else its memories were asked for
        user = self._kept.having(OwnVectors.read(rows, self._lacking)) if self._lacking else self._kept
        return user, self._found


def _moved_by(memories: Sequence[QueryMemory]) -> set[str]:
    return {object_id for memory in memories for object_id in memory.moved_ids}


def _of(collection: Collection, name: str) -> bytes:
    return in_schema("personal.sql", name, collection.collection_id)


def _packed_one(vector: Vectors) -> PackedVector:
    return pack(np.asarray(vector, dtype=np.float32).reshape(1, -1))[0]


def _vector_rows(states: Mapping[str, PersonalState], object_nos: Mapping[str, int]) -> Iterator[Row]:
    """Yield rows in the order of their key, so that what one search reads stands together."""
    keys: list[tuple[str, str, int]] = []
    vectors: list[Vectors] = []
    for user_id, state in sorted(states.items(), key=itemgetter(0)):
        for object_id, parts in sorted(state.vectors.items(), key=itemgetter(0)):
            keys += [(user_id, object_id, part_no) for part_no in range(len(parts))]
            vectors.append(parts)
    if keys:
        for key, packed_vector in zip(keys, pack(np.concatenate(vectors)), strict=True):
            yield *key, packed_vector, object_nos.get(key[1])


def _memory_rows(states: Mapping[str, PersonalState]) -> Iterator[Row]:
    for user_id, state in sorted(states.items(), key=itemgetter(0)):
        for memory in state.memories:
            yield (
                user_id,
                memory.session_id,
                memory.search_query,
                memory.created_at,
                _packed_one(memory.query),
                _packed_one(memory.clicked_mean),
                list(memory.clicked_ids),
                list(memory.moved_ids),
                list(memory.likeness),
            )


def _memories(rows: Sequence[Row]) -> list[QueryMemory]:
    queries, clicked_means = unpack([row[3] for row in rows]), unpack([row[4] for row in rows])
    return [
        QueryMemory(
            session_id, search_query, created_at, query, mean, tuple(clicked), tuple(moved), tuple(likeness)
        )
        for (session_id, search_query, created_at, _, _, clicked, moved, likeness), query, mean in zip(
            rows, queries, clicked_means, strict=True
        )
    ]
