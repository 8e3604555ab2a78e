"""How long the log is kept: what is older goes, and who learnt from it is folded again from what is left."""

import logging
import re
import threading
from collections.abc import Callable

from embedding_studio.errors import InvalidInputError
from embedding_studio.storage.ports import Removed, Storage

logger = logging.getLogger(__name__)

BATCH = 500
"""Sessions that go in one transaction, so that no other waits long."""
PRUNE_EVERY_SECONDS = 86_400
SECONDS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}


def seconds_of_age(given: str) -> int:
    """Return the seconds of an age in hours, days or weeks.

    >>> seconds_of_age("2d")
    172800

    Raises:
        InvalidInputError: it is none.
    """
    if (found := re.fullmatch(r"([1-9]\d{0,5})([hdw])", given.strip())) is None:
        raise InvalidInputError(f"{given!r} is no age: write a number with h, d or w after it, such as 180d")
    return int(found[1]) * SECONDS[found[2]]


def prune(storage: Storage, before: int, *, is_over: Callable[[], bool] = lambda: False) -> Removed:
    """Remove all sessions from before a time with their events, of anonymous users too.

    Users of whom something was learnt from one are marked in the same transaction: once a worker has folded
    them, their state is that of what is left.

    Args:
        before: UTC seconds; of the search, whatever its events say.
        is_over: asked between batches.
    """
    sessions = events = 0
    while not is_over():
        went = storage.clickstream.remove_before(before, limit=BATCH)
        if not went.sessions:
            break
        sessions, events = sessions + went.sessions, events + went.events
    return Removed(sessions, events)


class Retention:
    """Prunes once a day.

    Args:
        days: so long a session is kept.
    """

    def __init__(self, storage: Storage, days: int) -> None:
        self._storage = storage
        self._seconds = days * 86_400
        self._pruned_at: int | None = None

    def is_due(self, now: int) -> bool:
        """Return whether a day has gone by; ``now`` is in UTC seconds."""
        return self._pruned_at is None or now - self._pruned_at >= PRUNE_EVERY_SECONDS

    def prune(self, now: int, stop: threading.Event) -> None:
        self._pruned_at = now
        went = prune(self._storage, now - self._seconds, is_over=stop.is_set)
        if went.sessions:
            logger.info("removed %d sessions and %d events for their age", went.sessions, went.events)
