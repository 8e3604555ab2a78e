"""A log that trouble cannot fill."""

import logging
import time
from collections.abc import Callable

SECONDS = 1.0
MOST_KINDS = 1_000


class OnceASecond(logging.Filter):
    """Let one warning or error of each kind through a second, and say with the next how many there were.

    Of one kind is what comes from one line of the program with the same kind of exception.

    >>> clock = iter([0.0, 0.1, 0.2, 1.5])
    >>> once = OnceASecond(clock=lambda: next(clock))
    >>> record = logging.LogRecord("name", logging.WARNING, "file.py", 1, "no room", (), None)
    >>> [once.filter(record), once.filter(record), once.filter(record), once.filter(record)]
    [True, False, False, True]
    >>> record.getMessage()
    'no room (and 2 more of this kind)'
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[tuple[str, int, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = (record.pathname, record.lineno, record.exc_info[0] if record.exc_info else None)
        now = self._clock()
        at, held_back = self._told.get(kind, (now - SECONDS, 0))
        if now - at < SECONDS:
            self._told[kind] = at, held_back + 1
            return False
        if len(self._told) > MOST_KINDS:
            self._told.clear()
        self._told[kind] = now, 0
        if held_back:
            record.msg = f"{record.getMessage()} (and {held_back} more of this kind)"
            record.args = ()
        return True
