"""Leases of claims, kept from ending while their worker lives."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.storage.ports import Storage

logger = logging.getLogger(__name__)

MOST_RENEWALS = 90
"""Of one lease, each for another third of its time; a worker that takes longer may hang."""


class Leases:
    """Renews the leases of one worker.

    One thread does it for all passes, and ends when there was nothing to renew for a third of a lease: a pass
    for a single click is shorter than the start of a thread on a busy machine.
    """

    def __init__(self, storage: Storage, lease_seconds: float) -> None:
        self._storage = storage
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._renewals_left: dict[str, int] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def renewed(self, token: str) -> Iterator[None]:
        """Renew a lease as long as the block runs; afterwards nothing of it is under way."""
        with self._lock:
            self._renewals_left[token] = MOST_RENEWALS
            if self._thread is None or not self._thread.is_alive():  # a fork has no thread of its parent
                self._thread = threading.Thread(target=self._renew_all, name="leases", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._renewals_left[token]

    def _renew_all(self) -> None:
        while True:
            time.sleep(self._lease_seconds / 3)
            with self._lock:
                if not self._renewals_left:
                    self._thread = None
                    return
                for token, left in self._renewals_left.items():
                    if left > 0:
                        self._renewals_left[token] = left - 1
                        self._renew(token)

    def _renew(self, token: str) -> None:
        try:
            self._storage.queue.renew(token, self._lease_seconds)
        except EmbeddingStudioError as error:
            logger.warning("a lease could not be renewed: %s", error)
