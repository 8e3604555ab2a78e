"""Whether somebody still waits for what storage reads; who has gone lets it stop."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from embedding_studio.errors import AbandonedError


class Waiter:
    """Somebody who waits for an answer. Reading for them stops once they have gone; writing does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancel: Callable[[], object] | None = None
        self.has_gone = False

    def go(self) -> None:
        """Let what is read for them stop; may wait for the database."""
        with self._lock:
            self.has_gone = True
            if self._cancel is not None:
                self._cancel()

    @contextmanager
    def reading(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Let ``cancel`` be called while the block runs, and never after it.

        Raises:
            AbandonedError: they have gone.
        """
        with self._lock:
            self.check()
            self._cancel = cancel
        try:
            yield
        finally:
            with self._lock:
                self._cancel = None

    def check(self) -> None:
        """Return if they are still there.

        Raises:
            AbandonedError: they have gone.
        """
        if self.has_gone:
            raise AbandonedError("the caller has gone, so the request was given up")


WAITER: ContextVar[Waiter | None] = ContextVar("WAITER", default=None)
"""Who waits for what this thread does; None: no caller, as of a worker."""
