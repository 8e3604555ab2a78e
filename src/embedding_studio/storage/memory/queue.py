"""The queue of users whose state is stale, in memory."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace

from embedding_studio.domain.sessions import (
    SessionForImprovementStatus,
)
from embedding_studio.storage.memory.state import State, StoredEntry
from embedding_studio.storage.ports import (
    Claim,
    QueueEntry,
    QueueInfo,
)

Status = SessionForImprovementStatus


class MemoryQueue:
    def __init__(self, state: State) -> None:
        self._state = state

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        now = time.time() if now is None else now
        with self._state.lock:
            due = [stored for stored in self._state.queue.values() if stored.not_before <= now]
            due = sorted(due, key=StoredEntry.place)[:users]
            if not due:
                return None
            is_alone = due[0].token is not None
            token = secrets.token_hex(16)
            entries = []
            for stored in due[:1] if is_alone else [stored for stored in due if stored.token is None]:
                entry = replace(
                    stored.entry,
                    attempts=stored.entry.attempts + (stored.token is None or stored.is_alone),
                    waited_seconds=max(0.0, now - stored.marked_at),
                )
                entries.append(entry)
                self._state.queue[entry.collection, entry.user_id] = replace(
                    stored, entry=entry, token=token, is_alone=is_alone, not_before=now + lease_seconds
                )
            return Claim(token, tuple(entries))

    def renew(self, token: str, lease_seconds: float) -> None:
        with self._state.lock:
            for key, stored in self._state.queue.items():
                if stored.token == token:
                    self._state.queue[key] = replace(stored, not_before=time.time() + lease_seconds)

    def release(self, token: str) -> None:
        with self._state.lock:
            for key, stored in self._state.queue.items():
                if stored.token == token:
                    self._state.queue[key] = stored.released()
            self._state.lock.notify_all()

    def put_off(self, token: str, *, backoff_seconds: float) -> None:
        with self._state.lock:
            for key, stored in self._state.queue.items():
                if stored.token == token:
                    self._state.queue[key] = (
                        stored.put_off(backoff_seconds)
                        if stored.is_alone
                        else replace(stored, not_before=0.0)
                    )
            self._state.lock.notify_all()

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
        if is_last:
            return self._given_back(token, entry, Status.FAILED, detail, sessions=sessions)
        with self._state.lock:
            stored = self._state.queue.get((entry.collection, entry.user_id))
            if stored is None or stored.token != token:
                return []
            due_at = time.time() + backoff_seconds * 2 ** (entry.attempts - 1)
            later = stored.put_off(backoff_seconds) if is_outage else replace(stored, not_before=due_at)
            ended = self._given_back(token, later.entry, Status.PENDING, detail, sessions=sessions)
            self._state.queue[entry.collection, entry.user_id] = replace(later, token=None)
            return ended

    def refuse(self, token: str, entry: QueueEntry, detail: str) -> list[str]:
        return self._given_back(token, entry, Status.REFUSED, detail)

    def info(self) -> QueueInfo:
        with self._state.lock:
            entries = self._state.queue.values()
            waiting = sum(stored.token is None for stored in entries)
            now = time.time()
            oldest = max((now - stored.marked_at for stored in entries), default=0.0)
            in_hand = {stored.token for stored in entries if stored.token and stored.not_before > now}
            workers = max(len(in_hand), self._state.watching)
            return QueueInfo(waiting, len(entries) - waiting, max(0.0, oldest), workers)

    def wait(self, timeout_seconds: float) -> bool:
        def something_is_due() -> bool:
            now = time.time()
            return any(stored.not_before <= now for stored in self._state.queue.values())

        with self._state.lock:
            self._state.watching += 1
            try:
                return self._state.lock.wait_for(something_is_due, timeout_seconds)
            finally:
                self._state.watching -= 1

    def _given_back(
        self,
        token: str,
        entry: QueueEntry,
        status: Status,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
    ) -> list[str]:
        key = entry.collection, entry.user_id
        with self._state.lock:
            stored = self._state.queue.get(key)
            if stored is None or stored.token != token:
                return []
            del self._state.queue[key]
            if sessions is None:
                orders = [placed.order for placed in self._state.orders.values()]
                sessions = {
                    order.session_id: detail
                    for order in orders
                    if (order.collection, order.user_id, order.status) == (*key, Status.PENDING)
                }
            theirs = [
                session_id
                for session_id in sessions
                if (placed := self._state.orders.get(session_id)) and placed.order.user_id == entry.user_id
            ]
            for session_id in theirs:
                self._state.end(session_id, status, sessions[session_id], entry.attempts)
            return theirs
