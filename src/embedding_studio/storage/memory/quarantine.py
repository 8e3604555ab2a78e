"""Users from whom nothing is learnt, in memory."""

from collections.abc import Sequence

from embedding_studio.storage.memory.state import State
from embedding_studio.storage.ports import QuarantineDecision, QuarantinedUser


class MemoryQuarantine:
    def __init__(self, state: State) -> None:
        self._state = state

    def decide(self, user_id: str, decision: QuarantineDecision) -> None:
        with self._state.lock:
            self._state.decisions[user_id] = decision
            for tables in self._state.schemas.values():
                tables.quarantined.pop(user_id, None)
            names = {placed.order.collection for placed in self._state.orders.values()}
            self._state.mark_users([user_id], names)

    def decisions(self, user_ids: Sequence[str]) -> dict[str, QuarantineDecision]:
        with self._state.lock:
            decided = self._state.decisions
            return {user_id: decided[user_id] for user_id in user_ids if user_id in decided}

    def count(self) -> int:
        return len({each.user_id for each in self._all()})

    def _all(self) -> list[QuarantinedUser]:
        with self._state.lock:
            found = [
                QuarantinedUser(user_id, name, reason, since)
                for name, tables in self._state.schemas.items()
                for user_id, (reason, since) in tables.quarantined.items()
            ]
            decided = [
                QuarantinedUser(user_id, None, decision.reason, decision.decided_at)
                for user_id, decision in self._state.decisions.items()
                if decision.is_quarantined
            ]
        return sorted(found + decided, key=lambda each: (-each.since, each.user_id, each.collection or ""))

    # Last, for it hides the builtin from the annotations after it.
    def list(self, *, user_id: str | None = None, limit: int = 100, offset: int = 0) -> list[QuarantinedUser]:
        found = [each for each in self._all() if user_id in (None, each.user_id)]
        return found[offset : offset + limit]
