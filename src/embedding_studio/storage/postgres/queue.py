"""The queue of users whose state is stale, in PostgreSQL.

A claim is a lease: ``not_before`` moves ahead, so whom a killed worker held is due again when it ends, and a
random token keeps the late worker from ending what is no longer its own.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import psycopg
from psycopg import sql

from embedding_studio.domain.sessions import DEFAULT_EVENT_WEIGHTS, SessionForImprovementStatus
from embedding_studio.storage.ports import (
    LONGEST_OUTAGE_WAIT_SECONDS,
    MAX_DETAIL_LENGTH,
    Claim,
    OrderOutcome,
    PassedOver,
    QueueEntry,
    QueueInfo,
)
from embedding_studio.storage.postgres.database import (
    APPLICATION_NAME,
    Connection,
    Database,
    only_row,
    text_array,
)
from embedding_studio.storage.postgres.sql import statements

CHANNEL = "embedding_studio_orders"
WORKER_NAME = f"{APPLICATION_NAME} worker"
"""By which everybody may see of a connection that a worker waits on it."""
POLL_SECONDS = 0.1
"""Between two looks, where no notice arrives."""
CLICKS = [event_type for event_type, weight in DEFAULT_EVENT_WEIGHTS.items() if weight > 0]

_SQL = statements("queue.sql")

Status = SessionForImprovementStatus

Held = tuple[str, str, int]
"""Of what a token holds: the name of the collection, the user, the attempts."""


class PostgresQueue:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle_listeners: list[Connection] = []

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        token = secrets.token_hex(16)
        given = {"users": users, "lease_seconds": lease_seconds, "now": now, "token": token}
        rows = self._database.write(
            lambda connection: connection.execute(_SQL["claim"], given).fetchall(), alone=True
        )
        rows.sort(key=lambda row: (-row[3], row[4], row[:2]))
        entries = (
            QueueEntry(collection, user_id, attempts, waited_seconds=waited)
            for collection, user_id, attempts, _, _, waited in rows
        )
        return Claim(token, tuple(entries)) if rows else None

    def renew(self, token: str, lease_seconds: float) -> None:
        given = {"token": token, "lease_seconds": lease_seconds}
        self._database.write(lambda connection: connection.execute(_SQL["renew"], given), alone=True)

    def release(self, token: str) -> None:
        given = {"token": token}
        self._database.write(lambda connection: connection.execute(_SQL["release"], given), alone=True)

    def put_off(self, token: str, *, backoff_seconds: float) -> None:
        given = {
            "token": token,
            "backoff_seconds": backoff_seconds,
            "longest_seconds": LONGEST_OUTAGE_WAIT_SECONDS,
        }
        self._database.write(lambda connection: connection.execute(_SQL["put_off"], given), alone=True)

    def fail(
        self,
        token: str,
        entry: QueueEntry,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
        max_attempts: int,
        backoff_seconds: float,
        is_outage: bool = False,
    ) -> list[str]:
        is_last = entry.attempts >= max_attempts and not is_outage
        return self._given_back(
            "end_entry" if is_last else "give_back",
            {
                "token": token,
                "backoff_seconds": backoff_seconds,
                "longest_seconds": LONGEST_OUTAGE_WAIT_SECONDS,
                "is_outage": is_outage,
                "status": Status.FAILED if is_last else Status.PENDING,
                "detail": storable(detail),
                "session_ids": None if sessions is None else list(sessions),
                "details": None if sessions is None else [storable(why) for why in sessions.values()],
            },
            entry,
        )

    def refuse(self, token: str, entry: QueueEntry, detail: str) -> list[str]:
        given = {
            "token": token,
            "status": Status.REFUSED,
            "detail": storable(detail),
            "session_ids": None,
            "details": None,
        }
        return self._given_back("end_entry", given, entry)

    def info(self) -> QueueInfo:
        given = {"worker": WORKER_NAME}
        return QueueInfo(
            *self._database.read(lambda connection: only_row(connection.execute(_SQL["queue_info"], given)))
        )

    def wait(self, timeout_seconds: float) -> bool:
        """Wait on a connection that stays open, so what is marked between two calls is not missed."""
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

    def _given_back(self, how: str, given: dict[str, Any], entry: QueueEntry) -> list[str]:
        given |= {
            "collection": entry.collection,
            "user_id": entry.user_id,
            "attempts": entry.attempts,
            "detail_length": MAX_DETAIL_LENGTH,
        }

        def work(connection: Connection) -> list[str]:
            if connection.execute(_SQL[how], given).rowcount == 0:
                return []  # somebody else holds the user, or a click came meanwhile
            return [session_id for (session_id,) in connection.execute(_SQL["end_orders"], given)]

        return self._database.write(work)

    def _listener(self) -> tuple[Connection, bool]:
        with suppress(IndexError):
            return self._idle_listeners.pop(), False
        # A pooler leaves a name with a connection that is another's by then.
        listener = self._database.connect(None if self._database.is_pooled else WORKER_NAME)
        if not self._database.is_pooled:
            listener.execute(_SQL["listen"].format(channel=sql.Identifier(CHANNEL)))
        return listener, True

    def _wait_on(self, listener: Connection, timeout_seconds: float) -> bool:
        is_marked = _is_due(listener) or (
            self._polls(listener, timeout_seconds)
            if self._database.is_pooled
            else any(True for _ in listener.notifies(timeout=timeout_seconds, stop_after=1))
        )
        self._idle_listeners.append(listener)
        return is_marked

    def _polls(self, connection: Connection, timeout_seconds: float) -> bool:
        """Return whether something comes to be due in time; asked for, as no notice passes a pooler."""
        ends_at = time.monotonic() + timeout_seconds
        while (left := ends_at - time.monotonic()) > 0:
            time.sleep(min(POLL_SECONDS, left))
            if _is_due(connection):
                return True
        return False


def mark(connection: Connection, session_ids: Sequence[str], also: Sequence[str] = ()) -> None:
    """Let the users of these sessions be folded again, and wake who waits at the commit.

    Args:
        also: further sessions, that say nothing of a priority.
    """
    given = {"session_ids": text_array(session_ids), "also": text_array(also), "clicks": CLICKS}
    connection.execute(_marking("mark"), given)
    connection.execute(_SQL["notify"], {"channel": CHANNEL})


def mark_learnt(connection: Connection, session_ids: Sequence[str]) -> None:
    """Let the users of those sessions be folded again that have orders."""
    if (
        session_ids
        and connection.execute(_marking("mark_learnt"), {"session_ids": list(session_ids)}).rowcount
    ):
        connection.execute(_SQL["notify"], {"channel": CHANNEL})


def mark_users(connection: Connection, user_ids: Sequence[str], collections: Sequence[str]) -> None:
    """Let those of the users be folded again who have orders under one of these names."""
    given = {"user_ids": list(user_ids), "collections": list(collections)}
    connection.execute(_marking("mark_users"), given)
    connection.execute(_SQL["notify"], {"channel": CHANNEL})


def mark_user(connection: Connection, user_id: str) -> None:
    """Let a user be folded again under each name that they have orders under."""
    connection.execute(_marking("mark_user"), {"user_id": user_id})
    connection.execute(_SQL["notify"], {"channel": CHANNEL})


def mark_everyone(connection: Connection, collections: Sequence[str]) -> int:
    """Let all be folded again who have orders under one of these names; return how many they are."""
    given = {"collections": list(collections)}
    number: int
    (number,) = only_row(connection.execute(_marking("mark_everyone"), given))
    connection.execute(_SQL["notify"], {"channel": CHANNEL})
    return number


def mark_under(connection: Connection, names: Sequence[str], *, ordered_under: str) -> None:
    """Let those be folded again under each of ``names`` who have orders under one name."""
    connection.execute(_marking("mark_under"), {"names": list(names), "ordered_under": ordered_under})
    connection.execute(_SQL["notify"], {"channel": CHANNEL})


def find_held(
    connection: Connection, token: str, user_ids: Sequence[str], collections: Sequence[str]
) -> list[Held]:
    """Return what ``token`` holds; it is not changed until the commit."""
    given = {"token": token, "user_ids": list(user_ids), "collections": list(collections)}
    return [(*row,) for *row, is_held in connection.execute(_SQL["held"], given) if is_held]


def complete(
    connection: Connection,
    token: str,
    held: Sequence[Held],
    outcomes: Sequence[OrderOutcome],
    passed_over: PassedOver,
    *,
    collections: Sequence[str],
) -> list[OrderOutcome]:
    """Do as ``LearningTransaction.complete`` says, for users whom a token holds."""
    if not held:
        return []
    ended = [outcome for outcome in outcomes if outcome.status is not Status.FAILED]
    why = {outcome.session_id: outcome.detail for outcome in outcomes if outcome.status is Status.FAILED}
    attempts = {user_id: number for _, user_id, number in held}
    given = {
        "token": token,
        "collections": list(collections),
        "session_ids": [outcome.session_id for outcome in ended],
        "statuses": [outcome.status for outcome in ended],
        "details": [None if outcome.detail is None else storable(outcome.detail) for outcome in ended],
        "detail_length": MAX_DETAIL_LENGTH,
        "held_collections": [collection for collection, *_ in held],
        "held_entries": [user_id for _, user_id, _ in held],
        "held_users": list(attempts),
        "held_attempts": list(attempts.values()),
        "looked_at": [outcome.session_id for outcome in outcomes],
        "failed": list(why),
        "irrelevant": passed_over.irrelevant,
        "no_events": passed_over.no_events,
        "too_old": passed_over.too_old,
    }
    with connection.pipeline():
        learnt = connection.execute(_SQL["learnt"], given)
        skipped = connection.execute(_SQL["passed_over"], given)
        failed = connection.execute(_SQL["newly_failed"], given)
        connection.execute(_SQL["ended"], given)
        connection.execute(_SQL["release_others"], given)
    new = [
        OrderOutcome(session_id, Status(status), detail) for session_id, status, detail in [*learnt, *skipped]
    ]
    return new + [OrderOutcome(session_id, Status.FAILED, why[session_id]) for (session_id,) in failed]


def _is_due(connection: Connection) -> bool:
    (is_due,) = only_row(connection.execute(_SQL["something_is_due"]))
    return bool(is_due)


def storable(detail: str) -> str:
    """Return a text that the database takes; an error's message may hold anything."""
    return detail.replace("\0", "").encode(errors="replace").decode()


@cache
def _marking(name: str) -> bytes:
    pieces = {"priority": statements("orders.sql")["priority"], "on_conflict": _SQL["on_conflict"]}
    return _SQL[name].format(**pieces).as_bytes()
