"""What is to become, or became, of sessions that somebody asked to learn from, in PostgreSQL."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from psycopg import Cursor

from embedding_studio.domain.sessions import (
    ANONYMOUS,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.errors import ConflictError, OrderNotFoundError, SessionNotFoundError
from embedding_studio.storage.postgres.database import Connection, Database, only_row, text_array
from embedding_studio.storage.postgres.queue import CLICKS, mark, mark_learnt
from embedding_studio.storage.postgres.sql import statements

_SQL = statements("orders.sql")

Status = SessionForImprovementStatus

COUNTED = (Status.PENDING, Status.PROCESSING, Status.DONE, Status.FAILED, Status.REFUSED)
"""The columns of the statement that counts."""


class PostgresOrders:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, schema: SessionForImprovementCreateSchema) -> SessionForImprovement:
        def work(connection: Connection) -> list[tuple[Any, ...]]:
            with connection.pipeline():
                connection.execute(_SQL["hold_session"], {"session_id": schema.session_id})
                placed = place(connection, [schema.session_id])
            return placed.fetchall()

        placed = self._database.write(work)
        if not placed:
            raise SessionNotFoundError(
                f"session {schema.session_id!r} was never registered; register it before learning from it"
            )
        return _loaded(placed[0])

    def get(self, session_id: str) -> SessionForImprovement:
        return self._database.read(lambda connection: _order(connection, session_id))

    def of(self, session_ids: Sequence[str]) -> dict[str, SessionForImprovement]:
        given = {"session_ids": list(session_ids)}
        rows = self._database.read(lambda connection: connection.execute(_statement("of"), given).fetchall())
        return {order.session_id: order for order in map(_loaded, rows)}

    def counts(self) -> dict[Status, int]:
        counted = self._database.read(lambda connection: only_row(connection.execute(_statement("counts"))))
        return dict(zip(COUNTED, counted, strict=True))

    def cancel(self, session_id: str) -> None:
        def work(connection: Connection) -> None:
            status = _order(connection, session_id).status
            if status not in {Status.PROCESSING, Status.DONE}:
                mark_learnt(connection, [session_id])  # whoever learns from it just now begins again
                if connection.execute(_statement("cancel"), {"session_id": session_id}).rowcount:
                    return
                status = _order(connection, session_id).status
            raise ConflictError(
                f"the order of session {session_id!r} is {status}; only a pending, failed or refused one "
                "can be cancelled (mark the session irrelevant to undo what was learnt)"
            )

        self._database.write(work)

    # Last, for it hides the builtin from the annotations after it.
    def list(
        self, *, status: Status | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionForImprovement]:
        given = {"status": status, "limit": limit, "offset": offset}
        return self._database.read(
            lambda connection: [_loaded(row) for row in connection.execute(_statement("list"), given)]
        )


def place(
    connection: Connection, session_ids: Sequence[str], *, also: Sequence[str] = ()
) -> Cursor[tuple[Any, ...]]:
    """Place an order for each session that exists, or place it again, and let its user be folded again.

    The answer are the orders.

    Args:
        also: sessions of which only the users are marked.
    """
    given = {"session_ids": text_array(session_ids), "clicks": CLICKS, "anonymous": ANONYMOUS}
    with connection.pipeline():
        mark(connection, session_ids, also)
        return connection.execute(_statement("place"), given)


def _order(connection: Connection, session_id: str) -> SessionForImprovement:
    row = connection.execute(_statement("get"), {"session_id": session_id}).fetchone()
    if row is None:
        raise OrderNotFoundError(
            f"there is no improvement order for session {session_id!r}; place one, or push a click"
        )
    return _loaded(row)


def _loaded(row: Sequence[Any]) -> SessionForImprovement:
    session_id, user_id, collection, status, priority, attempts, detail, created_at, updated_at, due = row
    return SessionForImprovement(
        session_id=session_id,
        user_id=user_id,
        collection=collection,
        status=Status(status),
        priority=priority,
        attempts=attempts,
        detail=detail,
        created_at=int(created_at),
        updated_at=int(updated_at),
        not_before=due,
    )


@cache
def _statement(name: str) -> bytes:
    return _SQL[name].format(told=_SQL["told"], priority=_SQL["priority"]).as_bytes()
