"""The journal: what becomes of each session from which is to be learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from embedding_studio.domain.sessions import (
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)

MAX_DETAIL_LENGTH = 2000
"""Characters to which storage cuts the detail of an order."""


@dataclass(frozen=True, slots=True)
class OrderOutcome:
    """How an order ended: done, refused or failed, with a sentence if there is one to say."""

    session_id: str
    status: SessionForImprovementStatus
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Why nothing is learnt from a session that a fold does not look at, in sentences."""

    irrelevant: str
    no_events: str
    too_old: str


class Orders(Protocol):
    """The journal: what is to become, or became, of each session that somebody asked to learn from.

    A pending order of which a worker holds the user is reported as processing.
    """

    def create(self, schema: SessionForImprovementCreateSchema) -> SessionForImprovement:
        """Place an order, or place it again (pending, no attempts) whatever became of it before.

        One of an anonymous session is refused at once.

        Raises:
            SessionNotFoundError: the session was never registered.
        """
        ...

    def get(self, session_id: str) -> SessionForImprovement:
        """Return the order of a session.

        Raises:
            OrderNotFoundError: none was placed.
        """
        ...

    def list(
        self, *, status: SessionForImprovementStatus | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionForImprovement]:
        """Return orders, latest change first."""
        ...

    def of(self, session_ids: Sequence[str]) -> dict[str, SessionForImprovement]:
        """Return the orders of sessions, by session_id; of those that have one."""
        ...

    def counts(self) -> dict[SessionForImprovementStatus, int]:
        """Return how many orders stand in each status; every status is a key."""
        ...

    def cancel(self, session_id: str) -> None:
        """Remove an order that is pending, failed or refused.

        Its session counts no longer from the next fold of its user on.

        Raises:
            OrderNotFoundError: none was placed.
            ConflictError: it is processing or done.
        """
        ...
