"""What is to become, or became, of sessions that somebody asked to learn from, in memory."""

from collections.abc import Sequence

from embedding_studio.domain.sessions import (
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.errors import ConflictError
from embedding_studio.storage.memory.state import State

Status = SessionForImprovementStatus


class MemoryOrders:
    def __init__(self, state: State) -> None:
        self._state = state

    def create(self, schema: SessionForImprovementCreateSchema) -> SessionForImprovement:
        with self._state.lock:
            self._state.stored_session(schema.session_id)
            return self._state.place(schema.session_id)

    def get(self, session_id: str) -> SessionForImprovement:
        with self._state.lock:
            return self._state.shown(self._state.stored_order(session_id))

    def of(self, session_ids: Sequence[str]) -> dict[str, SessionForImprovement]:
        with self._state.lock:
            placed = self._state.orders
            return {each: self._state.shown(placed[each]) for each in session_ids if each in placed}

    def list(
        self, *, status: Status | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionForImprovement]:
        with self._state.lock:
            latest = sorted(self._state.orders.values(), key=lambda placed: -placed.changed)
            told = [self._state.shown(placed) for placed in latest]
            return [order for order in told if status in {None, order.status}][offset : offset + limit]

    def counts(self) -> dict[Status, int]:
        with self._state.lock:
            statuses = [self._state.shown(placed).status for placed in self._state.orders.values()]
            return {status: statuses.count(status) for status in Status}

    def cancel(self, session_id: str) -> None:
        with self._state.lock:
            order = self._state.shown(self._state.stored_order(session_id))
            status = order.status
            if status in {Status.PROCESSING, Status.DONE}:
                raise ConflictError(
                    f"the order of session {session_id!r} is {status}; only a pending, failed or refused "
                    "one can be cancelled (mark the session irrelevant to undo what was learnt)"
                )
            if order.user_id is not None:
                self._state.mark(order.collection, order.user_id)
            del self._state.orders[session_id]
