"""Keeps callers from waiting for a service that fails again and again.

The pattern: https://martinfowler.com/bliki/CircuitBreaker.html
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedding_studio.errors import EmbedderUnavailableError, counted

logger = logging.getLogger(__name__)

FAILURES = 3
OPEN_SECONDS = 5.0
LONGEST_OPEN_SECONDS = 60.0


class CircuitBreaker:
    """Lets calls through while they succeed. Safe to use from several threads.

    After ``failures`` in succession it is open: calls are refused at once. When ``open_seconds`` have passed,
    or as many as the service asked for, it is half open: one call goes through and decides for all.

    Args:
        what: is refused, for messages.
    """

    def __init__(
        self,
        what: str,
        *,
        failures: int = FAILURES,
        open_seconds: float = OPEN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._most = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._is_probing = False

    @property
    def has_tripped(self) -> bool:
        """Whether the last calls failed, and none has succeeded since."""
        return self._failures >= self._most

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Run the block if it may run, and learn from what becomes of it.

        ``EmbedderUnavailableError`` is a failure. Any other ``Exception`` is not: the service answered.

        Raises:
            EmbedderUnavailableError: it is open.
        """
        is_probe = self._enter()
        failed = answered = False
        retry_after_seconds: float | None = None
        try:
            yield
            answered = True
        except EmbedderUnavailableError as error:
            failed, retry_after_seconds = True, error.retry_after_seconds
            raise
        except Exception:
            answered = True
            raise
        finally:
            self._leave(retry_after_seconds, is_probe=is_probe, failed=failed, answered=answered)

    def _enter(self) -> bool:
        with self._lock:
            if not self.has_tripped:
                return False
            left = self._open_until - self._clock()
            if left > 0 or self._is_probing:
                raise EmbedderUnavailableError(
                    f"{self._what} failed {counted(self._failures, 'time')} in succession, and is not asked "
                    f"just now; it is tried again in {max(left, 1):.0f} s",
                    retry_after_seconds=max(left, 1),
                )
            self._is_probing = True
            return True

    def _leave(
        self, retry_after_seconds: float | None, *, is_probe: bool, failed: bool, answered: bool
    ) -> None:
        with self._lock:
            was_open = self.has_tripped
            self._is_probing &= not is_probe
            if failed:
                self._failures += 1
                asked = min(retry_after_seconds or 0, LONGEST_OPEN_SECONDS)
                self._open_until = self._clock() + max(self._open_seconds, asked)
            elif answered:
                self._failures = 0
            is_open = self.has_tripped
        if is_open and not was_open:
            logger.warning(
                "%s failed %d times in succession; calls are refused for now", self._what, self._most
            )
        elif was_open and not is_open:
            logger.info("%s answers again", self._what)
