"""How often somebody may ask: a token bucket for each, in memory that all processes of a service share."""

import math
import mmap
import secrets
import struct
import time
from collections.abc import Callable
from hashlib import blake2b

ROWS = 4_096
PLACES = 8
"""In a row, which a name has by its hash; where a row is full, the fullest bucket goes. 32,768 in all."""

_KEY_BYTES = 16
_PLACE = struct.Struct("=Qd")
BYTES = _KEY_BYTES + ROWS * PLACES * _PLACE.size
"""Of the memory."""


def shared_memory(file: int | None = None) -> mmap.mmap:
    """Return memory for buckets: that of a file of ``BYTES``, which others may have too, or one's own."""
    memory = mmap.mmap(-1 if file is None else file, BYTES)
    if file is None:
        memory[:_KEY_BYTES] = secrets.token_bytes(_KEY_BYTES)
    return memory


class Buckets:
    """A bucket for each name; asking takes a token out of it, and time puts them back.

    Of each is known by when it will be full. Processes do not wait for one another: what two of them take
    from one bucket within the same microseconds may count once.

    >>> clock = iter([0.0, 0.0, 0.0, 0.5])
    >>> buckets = Buckets("keys", per_second=2, burst=2, memory=shared_memory(), clock=lambda: next(clock))
    >>> [buckets.take("ann") for _ in range(4)]
    [0.0, 0.0, 0.5, 0.0]

    Args:
        kind: buckets of another kind have other tokens for the same name.
        per_second: above 0.
        burst: so many at once, at least 1.
        clock: the same for all processes.
    """

    def __init__(
        self,
        kind: str,
        per_second: float,
        burst: float,
        *,
        memory: mmap.mmap,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = 1 / per_second
        self._at_once = (burst - 1) / per_second
        self._memory = memory
        self._hash = blake2b(kind.encode(), key=memory[:_KEY_BYTES], digest_size=8)
        self._clock = clock

    def take(self, name: str) -> float:
        """Take a token and return 0, or return in how many seconds there will be one."""
        now = self._clock()
        place, named, full_at = self._find(name)
        full_at = max(full_at, now)
        wait = full_at - now - self._at_once
        if wait > 1e-9:
            return wait
        _PLACE.pack_into(self._memory, place, named, full_at + self._seconds)
        return 0.0

    def _find(self, name: str) -> tuple[int, int, float]:
        """Return the place of a name's bucket, the name's hash, and by when the bucket is full."""
        hashed = self._hash.copy()
        hashed.update(name.encode(errors="surrogateescape"))
        named = int.from_bytes(hashed.digest(), "big")
        row = _KEY_BYTES + (named % ROWS) * PLACES * _PLACE.size
        fullest, fullest_at = row, math.inf
        for place in range(row, row + PLACES * _PLACE.size, _PLACE.size):
            whose, full_at = _PLACE.unpack_from(self._memory, place)
            if whose == named:
                return place, named, full_at
            if full_at < fullest_at:
                fullest, fullest_at = place, full_at
        return fullest, named, 0.0


def retry_after(seconds: float) -> str:
    """Return the header's value: whole seconds, after which there is a token.

    >>> retry_after(0.2), retry_after(3.0)
    ('1', '3')
    """
    return str(max(1, math.ceil(seconds)))
