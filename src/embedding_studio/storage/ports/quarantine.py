"""Who is not learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class QuarantineDecision:
    """What a person decided of a user.

    Attributes:
        is_quarantined: True: nothing is learnt from them. False: they are released: what they did up to
            ``decided_at`` is not held against them.
        decided_at: UTC seconds.
    """

    is_quarantined: bool
    reason: str
    decided_at: int


@dataclass(frozen=True, slots=True)
class QuarantinedUser:
    """A user from whom nothing is learnt.

    Attributes:
        collection: in which their sessions were found to be a robot's; None: a person decided so.
        since: UTC seconds.
    """

    user_id: str
    collection: str | None
    reason: str
    since: int


class Quarantine(Protocol):
    """Users from whom nothing is learnt, with the reason.

    What a person decided is part of the log: the user is marked, and folded by it. What a fold found is
    part of the state, and written with it (``LearningTransaction.replace_states``).
    """

    def decide(self, user_id: str, decision: QuarantineDecision) -> None:
        """Quarantine a user, or release them, in place of what was decided before; they are folded again."""
        ...

    def decisions(self, user_ids: Sequence[str]) -> dict[str, QuarantineDecision]:
        """Return what was decided last of those of whom anything was."""
        ...

    def count(self) -> int:
        """Return how many users are quarantined, in whichever collection."""
        ...

    def list(self, *, user_id: str | None = None, limit: int = 100, offset: int = 0) -> list[QuarantinedUser]:
        """Return who is quarantined, the latest first; of one user alone if that is named."""
        ...
