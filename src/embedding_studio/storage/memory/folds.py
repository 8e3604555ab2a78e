"""The queue of users whose state is stale, in memory."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace

from embedding_studio.domain.sessions import (
    SessionForImprovementStatus,
)
from embedding_studio.storage.memory.state import State, StoredFold
from embedding_studio.storage.ports import (
    Claim,
    Fold,
    QueueInfo,
)

Status = SessionForImprovementStatus


class MemoryFolds:
    def __init__(self, state: State) -> None:
        self._state = state

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        now = time.time() if now is None else now
        with self._state.lock:
            due = [entry for entry in self._state.folds.values() if entry.not_before <= now]
            due = sorted(due, key=StoredFold.turn)[:users]
            if not due:
                return None
            is_alone = due[0].token is not None
            token = secrets.token_hex(16)
            folds = []
            for entry in due[:1] if is_alone else [entry for entry in due if entry.token is None]:
                fold = replace(
                    entry.fold,
                    attempts=entry.fold.attempts + (entry.token is None or entry.is_alone),
                    waited_seconds=max(0.0, now - entry.marked_at),
                )
                folds.append(fold)
                self._state.folds[fold.collection, fold.user_id] = replace(
                    entry, fold=fold, token=token, is_alone=is_alone, not_before=now + lease_seconds
                )
            return Claim(token, tuple(folds))

    def renew(self, token: str, lease_seconds: float) -> None:
        with self._state.lock:
            for key, entry in self._state.folds.items():
                if entry.token == token:
                    self._state.folds[key] = replace(entry, not_before=time.time() + lease_seconds)

    def release(self, token: str) -> None:
        with self._state.lock:
            for key, entry in self._state.folds.items():
                if entry.token == token:
                    self._state.folds[key] = entry.released()
            self._state.lock.notify_all()

    def put_off(self, token: str, *, backoff_seconds: float) -> None:
        with self._state.lock:
            for key, entry in self._state.folds.items():
                if entry.token == token:
                    self._state.folds[key] = (
                        entry.put_off(backoff_seconds) if entry.is_alone else replace(entry, not_before=0.0)
                    )
            self._state.lock.notify_all()

    def fail(
        self,
        token: str,
        fold: Fold,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
        max_attempts: int,
        backoff_seconds: float,
        is_outage: bool = False,
    ) -> list[str]:
        is_last = fold.attempts >= max_attempts and not is_outage
        if is_last:
            return self._given_back(token, fold, Status.FAILED, detail, sessions=sessions)
        with self._state.lock:
            entry = self._state.folds.get((fold.collection, fold.user_id))
            if entry is None or entry.token != token:
                return []
            due_at = time.time() + backoff_seconds * 2 ** (fold.attempts - 1)
            later = entry.put_off(backoff_seconds) if is_outage else replace(entry, not_before=due_at)
            ended = self._given_back(token, later.fold, Status.PENDING, detail, sessions=sessions)
            self._state.folds[fold.collection, fold.user_id] = replace(later, token=None)
            return ended

    def refuse(self, token: str, fold: Fold, detail: str) -> list[str]:
        return self._given_back(token, fold, Status.REFUSED, detail)

    def info(self) -> QueueInfo:
        with self._state.lock:
            entries = self._state.folds.values()
            waiting = sum(entry.token is None for entry in entries)
            now = time.time()
            oldest = max((now - entry.marked_at for entry in entries), default=0.0)
            return QueueInfo(waiting, len(entries) - waiting, max(0.0, oldest))

    def wait(self, timeout_seconds: float) -> bool:
        def something_is_due() -> bool:
            now = time.time()
            return any(entry.not_before <= now for entry in self._state.folds.values())

        with self._state.lock:
            return self._state.lock.wait_for(something_is_due, timeout_seconds)

    def _given_back(
        self,
        token: str,
        fold: Fold,
        status: Status,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
    ) -> list[str]:
        key = fold.collection, fold.user_id
        with self._state.lock:
            entry = self._state.folds.get(key)
            if entry is None or entry.token != token:
                return []
            del self._state.folds[key]
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
                if (placed := self._state.orders.get(session_id)) and placed.order.user_id == fold.user_id
            ]
            for session_id in theirs:
                self._state.end(session_id, status, sessions[session_id], fold.attempts)
            return theirs
