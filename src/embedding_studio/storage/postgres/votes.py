"""What is shared among users, in PostgreSQL: a vote of a user for a query, counted with those of others.

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
from embedding_studio.storage.ports import MOST_HALF_LIVES, SHARED_HALF_LIFE, SHARED_QUERIES, SHARED_VOTES
from embedding_studio.storage.postgres.database import Connection
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.schema import VOTES_LOCK
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements
from embedding_studio.storage.postgres.vectors import pack, unpack, unpack_numbers

Row = tuple[Any, ...]


def ask_near(
    connection: Connection, collection: Collection, given: Mapping[str, Any], shared_by: int
) -> Cursor[Row]:
    """Ask for the votes of others for near queries; ``shared_memories`` reads the answer.

    Args:
        shared_by: at least 1.
    """
    return connection.execute(_near(collection, shared_by), given, binary=True)


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


def ask_voted(connection: Connection, collection: Collection, user_ids: Sequence[str]) -> Cursor[Row]:
    """Ask which queries these users voted for; ``replace_votes`` reads the answer."""
    return connection.execute(_of(collection, "query_keys"), {"user_ids": list(user_ids)})


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
    before = {query_key for (query_key,) in voted.fetchall()}
    rows = [(user_id, vote) for user_id, theirs in sorted(votes.items()) for vote in theirs]
    if not before and not rows:
        return
    query_keys = [vote.query_key for _, vote in rows]
    dropped = sorted(before.difference(query_keys))
    lock = {"lock_class": VOTES_LOCK, "collection_id": collection.collection_id}
    with connection.pipeline():
        connection.execute(statements("votes.sql")["lock_votes" if dropped else "share_votes"], lock)
        connection.execute(_of(collection, "delete_votes"), {"user_ids": list(votes)})
        if rows:
            given = {
                "user_ids": [user_id for user_id, _ in rows],
                "query_keys": query_keys,
                "queries": pack(np.stack([vote.query for _, vote in rows])),
                "clicked_means": pack(np.stack([vote.clicked_mean for _, vote in rows])),
                "created_ats": [vote.created_at for _, vote in rows],
                "vote_ordinals": [
                    ordinal for ordinal, (_, vote) in enumerate(rows, start=1) for _ in vote.seen
                ],
                "object_ids": [seen.object_id for _, vote in rows for seen in vote.seen],
                "clicks": [seen.clicks for _, vote in rows for seen in vote.seen],
                "looks": [seen.looks for _, vote in rows for seen in vote.seen],
            }
            connection.execute(_of(collection, "insert_queries"), given)
            connection.execute(_of(collection, "insert_votes"), given)
        if dropped:
            connection.execute(_of(collection, "delete_queries"), {"query_keys": dropped})


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
