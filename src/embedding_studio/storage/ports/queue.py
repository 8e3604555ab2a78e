"""The queue: whose state is stale."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

LONGEST_OUTAGE_WAIT_SECONDS = 60.0
"""So long a user waits at the most before learning is tried again that an outage interrupted."""


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A user whose state is stale, and is folded again.

    Attributes:
        collection: the name under which the sessions were recorded.
        attempts: claims since this was last asked for, with this one.
        waited_seconds: from the mark that made the state stale, the first since it was learnt, to the claim.
    """

    collection: str
    user_id: str
    attempts: int
    waited_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """Users that one worker holds until its lease ends.

    Attributes:
        token: random; whatever comes with a token that no longer holds a user changes nothing for them.
        entries: at least one, in the order in which they are due.
    """

    token: str
    entries: tuple[QueueEntry, ...]


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """How much there is to learn.

    Attributes:
        waiting: entries that are not held.
        held: entries that a worker holds, or held when it ended.
        oldest_seconds: since the entry was marked that has been in the queue for longest; 0 in an empty one.
        workers: so many are seen, for they wait for a mark or hold users; more may run. Behind a pooler, or
            where a worker does not wait for marks, it is seen only while it holds users.
    """

    waiting: int
    held: int
    oldest_seconds: float
    workers: int = 0


class Queue(Protocol):
    """The queue: whose state is stale. One entry a user and name of a collection, however many sessions.

    An entry is made, or made due at once and with no attempts, in the transaction that makes the state
    stale: an order is placed, an original changes, an alias moves. It goes with ``complete``.
    """

    def claim(self, *, users: int, lease_seconds: float, now: float | None = None) -> Claim | None:
        """Claim at most so many entries; None if nothing is due.

        Due is what is not held, or no longer since the lease has ended. Higher priority first, then
        older. What was held by a worker that ended is claimed alone. Each claim is one attempt more, but
        after a worker that held several users ended, it is unknown for which of them it did. Never waits
        for another worker's claim.
        """
        ...

    def renew(self, token: str, lease_seconds: float) -> None:
        """Let the lease of what ``token`` holds end so much later than now."""
        ...

    def release(self, token: str) -> None:
        """Give back all that ``token`` holds as if it had not been claimed."""
        ...

    def put_off(self, token: str, *, backoff_seconds: float) -> None:
        """Give back all that ``token`` holds, whom the storage failed: no attempt is counted for that.

        Who was held together with others is due at once, alone; who was held alone, after as long as they
        have waited, within ``backoff_seconds`` and ``LONGEST_OUTAGE_WAIT_SECONDS``.
        """
        ...

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
        """Give back a user for another attempt, or give up, if ``entry`` was the last of ``max_attempts``.

        It is due again after ``backoff_seconds * 2 ** (attempts - 1)``.

        Args:
            is_outage: something failed that has nothing to do with this user: the attempt does not count,
                and they are due again as in ``put_off``.
            detail: why; kept with the orders, cut to 2,000 characters.
            sessions: session_id -> why, for orders that failed; None: all pending ones of this user did.

        Returns:
            The sessions whose orders are pending again or, given up, failed.
        """
        ...

    def refuse(self, token: str, entry: QueueEntry, detail: str) -> list[str]:
        """End all pending orders of a user as refused; return their sessions."""
        ...

    def info(self) -> QueueInfo:
        """Return how long the queue is; takes a look at each entry."""
        ...

    def wait(self, timeout_seconds: float) -> bool:
        """Block until something is due (True) or the time is over (False). May wake early."""
        ...
