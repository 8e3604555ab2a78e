"""What is shared among users, in PostgreSQL: a vote of a user for a query, counted with those of others.

What changes is noted, query by query, for those who keep votes (``kept_votes``).

A query stands as long as there is a vote for it. Who only adds votes holds a collection's votes lock
together with others; who takes some away, so that a query may be left without any, holds it alone. So
no one adds to a query that another finds empty. Where there are no votes, before or after, nothing is locked.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from psycopg import Cursor, sql

from embedding_studio.domain.objects import Collection, SeenObject, SharedMemory, SharedObject, SharedVote
from embedding_studio.storage.ports import (
    MOST_HALF_LIVES,
    SHARED_HALF_LIFE,
    SHARED_QUERIES,
    SHARED_VOTES,
    Vectors,
)
from embedding_studio.storage.postgres.database import Connection
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.schema import VOTES_LOCK
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements
from embedding_studio.storage.postgres.vectors import PackedVector, pack, unpack, unpack_numbers
from embedding_studio.storage.votes import Listener

Row = tuple[Any, ...]

NOTED_SECONDS = 600
"""What changed is noted for so long. No transaction that changes votes takes a part of it."""


def ask_near(connection: Connection, collection: Collection, listener: Listener) -> Cursor[Row]:
    """Ask for what others say for near queries; ``shared_memories`` reads the answer."""
    given = {
        "user_id": listener.user_id,
        "query": pack(listener.query[None])[0],
        "threshold": listener.threshold,
    }
    return connection.execute(_near(collection, listener.shared_by), given, binary=True)


def shared_memories(rows: Sequence[Row]) -> list[SharedMemory]:
    queries, clicked_means = unpack([row[0] for row in rows]), unpack([row[1] for row in rows])
    return [
        SharedMemory(
            query,
            mean,
            users,
            tuple(map(SharedObject, ids or (), unpack_numbers(counts).tolist(), clicks or (), looks or ())),
        )
        for (_, _, users, ids, counts, clicks, looks), query, mean in zip(
            rows, queries, clicked_means, strict=True
        )
    ]


def ask_votes(connection: Connection, collection: Collection, user_id: str) -> Cursor[Row]:
    """Ask for a user's votes, by ``query_key``; ``shared_votes`` reads the answer."""
    return connection.execute(_of(collection, "votes"), {"user_id": user_id}, binary=True)


def shared_votes(rows: Sequence[Row]) -> tuple[SharedVote, ...]:
    queries, clicked_means = unpack([row[1] for row in rows]), unpack([row[2] for row in rows])
    return tuple(
        SharedVote(query_key, query, mean, created_at, tuple(map(SeenObject, *seen)))
        for (query_key, _, _, created_at, *seen), query, mean in zip(
            rows, queries, clicked_means, strict=True
        )
    )


def ask_queries(connection: Connection, collection: Collection, most: int) -> Cursor[Row]:
    """Ask for queries that anybody voted for.

    Returns:
        Rows of the moment in which they were read, number, key and query, at least one; where there are no
        queries all but the moment is None.
    """
    return connection.execute(_of(collection, "queries"), {"most": most}, binary=True)


def ask_changed_queries(connection: Connection, collection: Collection, moment: str) -> Cursor[Row]:
    """Ask for the queries whose votes are not what they were in a moment of less than ``NOTED_SECONDS`` ago.

    Returns:
        Rows as of ``ask_queries``; key and query of those that have gone are None.
    """
    return connection.execute(_changed_queries(collection), {"votes": moment}, binary=True)


def ask_latest(
    connection: Connection, collection: Collection, query_keys: Sequence[str], count: int
) -> Cursor[Row]:
    """Ask for the ``count`` latest votes for each of some queries.

    Returns:
        Rows of key, user_id, clicked mean, time, object_ids, clicks and looks, those of one key together.
    """
    given = {"query_keys": list(query_keys), "count": count}
    return connection.execute(_of(collection, "latest"), given, binary=True)


def ask_voted(connection: Connection, collection: Collection, user_ids: Sequence[str]) -> Cursor[Row]:
    """Ask which queries these users voted for; ``replace_votes`` reads the answer."""
    return connection.execute(_of(collection, "voted"), {"user_ids": list(user_ids)})


def replace_votes(
    connection: Connection,
    collection: Collection,
    votes: Mapping[str, Sequence[SharedVote]],
    voted: Cursor[Row],
) -> None:
    """Replace the votes of each user named.

    Args:
        voted: the answer to ``ask_voted`` for these users, who have been locked since before.
    """
    before = set(voted.fetchall())
    rows = [(user_id, vote) for user_id, theirs in sorted(votes.items()) for vote in theirs]
    if not before and not rows:
        return
    query_keys = [vote.query_key for _, vote in rows]
    gone = sorted(before.difference((user_id, vote.query_key) for user_id, vote in rows))
    dropped = sorted({query_key for _, query_key in before}.difference(query_keys))
    lock = {"lock_class": VOTES_LOCK, "collection_id": collection.collection_id}
    given = {
        "gone_user_ids": [user_id for user_id, _ in gone],
        "gone_query_keys": [query_key for _, query_key in gone],
        "user_ids": [user_id for user_id, _ in rows],
        "query_keys": query_keys,
        "queries": _packed([vote.query for _, vote in rows]),
        "clicked_means": _packed([vote.clicked_mean for _, vote in rows]),
        "created_ats": [vote.created_at for _, vote in rows],
        "vote_ordinals": [ordinal for ordinal, (_, vote) in enumerate(rows, start=1) for _ in vote.seen],
        "object_ids": [seen.object_id for _, vote in rows for seen in vote.seen],
        "clicks": [seen.clicks for _, vote in rows for seen in vote.seen],
        "looks": [seen.looks for _, vote in rows for seen in vote.seen],
    }
    with connection.pipeline():
        connection.execute(statements("votes.sql")["lock_votes" if dropped else "share_votes"], lock)
        if rows:
            connection.execute(_of(collection, "insert_queries"), given)
        connection.execute(_of(collection, "write_votes"), given)
        if dropped:
            connection.execute(_of(collection, "delete_queries"), {"query_keys": dropped})
        connection.execute(_of(collection, "forget_changes"), {"seconds": NOTED_SECONDS})


def _packed(vectors: Sequence[Vectors]) -> list[PackedVector]:
    return pack(np.stack(vectors)) if vectors else []


def _of(collection: Collection, name: str) -> bytes:
    return in_schema("votes.sql", name, collection.collection_id)


@lru_cache(maxsize=1024)
def _near(collection: Collection, shared_by: int) -> bytes:
    return (
        statements("votes.sql")["near"]
        .format(
            schema=schema_of(collection.collection_id),
            cast=Geometry(collection.index).pieces()["cast"],
            queries=sql.Literal(SHARED_QUERIES),
            votes=sql.Literal(max(SHARED_VOTES, shared_by)),
            shared_by=sql.Literal(shared_by),
            half_life=sql.Literal(float(SHARED_HALF_LIFE)),
            most=sql.Literal(MOST_HALF_LIVES),
        )
        .as_bytes()
    )


@lru_cache(maxsize=1024)
def _changed_queries(collection: Collection) -> bytes:
    pieces = {"schema": schema_of(collection.collection_id), "is_since": statements("votes.sql")["is_since"]}
    return statements("votes.sql")["changed_queries"].format(**pieces).as_bytes()
