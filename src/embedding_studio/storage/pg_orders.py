"""The queue of sessions to learn from, in PostgreSQL.

A claim is a lease: ``not_before`` moves ahead, so what a killed worker held is due again when it ends, and
a random token keeps the late worker from ending what is no longer its own.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.errors import ConflictError, OrderNotFoundError, SessionNotFoundError
from embedding_studio.storage.pg_database import Connection, Database, only_row
from embedding_studio.storage.ports import MAX_DETAIL_LENGTH, Claim, OrderOutcome
from embedding_studio.storage.schema import CLAIM_LOCK
from embedding_studio.storage.sql import statements

CHANNEL = "embedding_studio_orders"
CLICKS = [event_type for event_type, weight in DEFAULT_EVENT_WEIGHTS.items() if weight > 0]

_SQL = statements("orders.sql")

Status = SessionForImprovementStatus


class PostgresOrders:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle_listeners: list[Connection] = []

    def create(self, schema: SessionForImprovementCreateSchema) -> SessionForImprovement:
        placed = self._database.write(lambda connection: place(connection, [schema.session_id]))
        if not placed:
            raise SessionNotFoundError(
                f"session {schema.session_id!r} was never registered; register it before learning from it"
            )
        return placed[0]

    def get(self, session_id: str) -> SessionForImprovement:
        return self._database.read(lambda connection: _order(connection, session_id))

    def counts(self) -> dict[Status, int]:
        counted: dict[str, int] = dict(
            self._database.read(lambda connection: connection.execute(_SQL["counts"]).fetchall())
        )
        return {status: counted.get(status, 0) for status in Status}

    def cancel(self, session_id: str) -> None:
        def work(connection: Connection) -> None:
            if connection.execute(_SQL["cancel"], {"session_id": session_id}).rowcount == 0:
                status = _order(connection, session_id).status
                raise ConflictError(
                    f"the order of session {session_id!r} is {status}; only a pending, failed or refused one "
                    "can be cancelled (mark the session irrelevant to undo what was learnt)"
                )

        self._database.write(work)

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        token = secrets.token_hex(16)
        window = 8 * users
        passed_over: list[str] = []
        while True:
            given = {
                "users": users,
                "lease_seconds": lease_seconds,
                "now": now,
                "token": token,
                "window": window,
                "passed_over": passed_over,
                "lock_class": CLAIM_LOCK,
            }
            rows = self._database.write(partial(_claimed, given=given))
            n_due, held, *_ = rows[0]
            orders = tuple(_loaded(row[2:]) for row in rows if row[2] is not None)
            if orders:
                return Claim(token, orders)
            if held:  # another worker was faster with all of these
                passed_over += held
            elif n_due < window:
                return None
            else:  # the foremost are all being claimed by others at this moment
                window *= 8

    def complete(self, token: str, outcomes: Sequence[OrderOutcome]) -> None:
        self._database.write(lambda connection: complete(connection, token, outcomes))

    def fail(self, claim: Claim, detail: str, *, max_attempts: int, backoff_seconds: float) -> None:
        given = {
            "session_ids": [order.session_id for order in claim.orders],
            "token": claim.token,
            "detail": _storable(detail),
            "detail_length": MAX_DETAIL_LENGTH,
            "max_attempts": max_attempts,
            "backoff_seconds": backoff_seconds,
        }

        def work(connection: Connection) -> None:
            with connection.pipeline():
                connection.execute(_SQL["hold"], given)
                connection.execute(_SQL["fail"], given)

        self._database.write(work)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait on a connection that stays open, so what is placed between two calls is not missed."""
        with self._database.errors():
            listener, is_fresh = self._listener()
            try:
                return self._wait_on(listener, timeout_seconds)
            except psycopg.OperationalError:
                listener.close()
                if is_fresh:
                    raise
                listener, _ = self._listener()
                return self._wait_on(listener, timeout_seconds)

    def close(self) -> None:
        while self._idle_listeners:
            self._idle_listeners.pop().close()

    def _listener(self) -> tuple[Connection, bool]:
        with suppress(IndexError):
            return self._idle_listeners.pop(), False
        listener = self._database.connect()
        listener.execute(_SQL["listen"].format(channel=sql.Identifier(CHANNEL)))
        return listener, True

    def _wait_on(self, listener: Connection, timeout_seconds: float) -> bool:
        (is_due,) = only_row(listener.execute(_SQL["something_is_due"]))
        is_placed = is_due or any(True for _ in listener.notifies(timeout=timeout_seconds, stop_after=1))
        self._idle_listeners.append(listener)
        return is_placed

    # Last, for it hides the builtin from the annotations after it.
    def list(
        self, *, status: Status | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionForImprovement]:
        given = {"status": status, "limit": limit, "offset": offset}
        return self._database.read(
            lambda connection: [_loaded(row) for row in connection.execute(_SQL["list"], given)]
        )


def place(connection: Connection, session_ids: Sequence[str]) -> list[SessionForImprovement]:
    """Place an order for each session that exists, or place it anew, and wake who waits at the commit."""
    given = {"session_ids": list(session_ids), "clicks": CLICKS, "channel": CHANNEL}
    return [_loaded(row[:-1]) for row in connection.execute(_SQL["place"], given)]


def place_for_users(connection: Connection, user_ids: Sequence[str], collections: Sequence[str]) -> None:
    """Let those of the users be folded anew who have orders under one of these names."""
    given = {"user_ids": list(user_ids), "collections": list(collections)}
    _place_found(connection, _SQL["latest_of_users"], given)


def place_for_all_users(connection: Connection, collections: Sequence[str]) -> int:
    """Let all be folded anew who have orders under one of these names; return how many they are."""
    return _place_found(connection, _SQL["latest_of_all_users"], {"collections": list(collections)})


def complete(connection: Connection, token: str, outcomes: Sequence[OrderOutcome]) -> None:
    given = {
        "token": token,
        "session_ids": [outcome.session_id for outcome in outcomes],
        "statuses": [outcome.status for outcome in outcomes],
        "details": [None if outcome.detail is None else _storable(outcome.detail) for outcome in outcomes],
        "detail_length": MAX_DETAIL_LENGTH,
    }
    with connection.pipeline():
        connection.execute(_SQL["hold"], given)
        connection.execute(_SQL["complete"], given)


def _claimed(connection: Connection, given: dict[str, Any]) -> list[tuple[Any, ...]]:
    return connection.execute(_SQL["claim"], given).fetchall()


def _place_found(connection: Connection, statement: sql.SQL, given: dict[str, Any]) -> int:
    found = [session_id for (session_id,) in connection.execute(statement, given)]
    return len(place(connection, found)) if found else 0


def _order(connection: Connection, session_id: str) -> SessionForImprovement:
    row = connection.execute(_SQL["get"], {"session_id": session_id}).fetchone()
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


def _storable(detail: str) -> str:
    """Return a text that the database takes; an error's message may hold anything."""
    return detail.replace("\0", "").encode(errors="replace").decode()
