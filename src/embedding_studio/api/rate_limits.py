"""How often somebody may ask: a token bucket for each, in the memory of this process."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_NAMES = 10_000
"""So many are remembered; beyond, those are forgotten that have not asked for longest."""


class Buckets:
    """A bucket for each name; asking takes a token out of it, and time puts them back.

    >>> clock = iter([0.0, 0.0, 0.0, 0.5])
    >>> buckets = Buckets(per_second=2, burst=2, clock=lambda: next(clock))
    >>> [buckets.take("ann") for _ in range(4)]
    [0.0, 0.0, 0.5, 0.0]

    Args:
        per_second: above 0.
        burst: so many at once, at least 1.
    """

    def __init__(
        self,
        per_second: float,
        burst: float,
        *,
        most: int = MOST_NAMES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._most = most
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take a token and return 0, or return in how many seconds there will be one."""
        now = self._clock()
        tokens, at = self._left.get(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._left[name] = tokens if wait else tokens - 1, now
        self._left.move_to_end(name)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return wait


def retry_after(seconds: float) -> str:
    """Return the header's value: whole seconds, after which there is a token.

    >>> retry_after(0.2), retry_after(3.0)
    ('1', '3')
    """
    return str(max(1, math.ceil(seconds)))
