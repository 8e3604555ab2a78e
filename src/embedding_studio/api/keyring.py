"""The keys of the database, as this process holds them; each is asked for seldom, by one request for all."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import ApiKey
from embedding_studio.errors import KeyNotFoundError, StorageError
from embedding_studio.storage.ports import Keys
from embedding_studio.storage.waiting import WAITER

T = TypeVar("T")

LIFE_SECONDS = 2.0
"""So long a process goes on with what it read: a key that is revoked elsewhere is good no longer."""
USE_SECONDS = 3600
"""The use of a key is noted once in so long."""
THREADS = 8


class KeyRing:
    """Finds keys by their ids. For one event loop.

    Args:
        keys: returns where they are kept; not looked up before it is needed.
    """

    def __init__(self, keys: Callable[[], Keys]) -> None:
        self._keys = keys
        self._held: dict[str, tuple[ApiKey, float]] = {}
        self._asking: dict[str, asyncio.Future[ApiKey | None]] = {}
        self._wanted: dict[str, asyncio.Future[ApiKey | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._has_any = False
        self._knows_none_until = 0.0
        self._noting: set[asyncio.Task[None]] = set()
        self._threads = CapacityLimiter(THREADS)

    async def find(self, key_id: str) -> ApiKey | None:
        """Return a key as it was ``LIFE_SECONDS`` ago or later; None: there is none.

        Raises:
            StorageError: it cannot be read.
        """
        held, until = self._held.get(key_id, (None, 0.0))
        if time.monotonic() < until:
            return held
        answer = self._asking.get(key_id)
        if answer is None:
            answer = self._wanted.get(key_id)  # forgotten before it was read
            if answer is None:
                answer = asyncio.get_running_loop().create_future()
                answer.add_done_callback(_looked_at)
            self._wanted[key_id] = self._asking[key_id] = answer
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_wanted())
        return await asyncio.shield(answer)

    async def has_any(self) -> bool:
        """Return whether there ever was a key. While storage does not answer, what was so before is so."""
        if self._has_any or time.monotonic() < self._knows_none_until:
            return self._has_any
        try:
            self._has_any = await self._in_thread(lambda: self._keys().has_any())
        except StorageError:
            if not self._knows_none_until:
                raise
        self._knows_none_until = time.monotonic() + LIFE_SECONDS
        return self._has_any

    def note_use(self, key: ApiKey) -> None:
        """Have the use of a key noted, if that was not done for an hour."""
        now = utc_timestamp()
        if key.last_used_at is not None and now < key.last_used_at + USE_SECONDS:
            return
        held, until = self._held.get(key.key_id, (key, 0.0))
        self._held[key.key_id] = replace(held, last_used_at=now), until  # so that it is not noted twice
        task = asyncio.create_task(self._note(key.key_id, now))
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    def forget(self, key_id: str) -> None:
        """Let a key be read again when it is next asked for; what is being read just now is not held."""
        self._asking.pop(key_id, None)
        self._held.pop(key_id, None)

    async def _read_wanted(self) -> None:
        """Read what is wanted, all of it at once, until nothing is: wrong keys wait for one request alone."""
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                found: dict[str, ApiKey] | Exception
                try:
                    found = await self._in_thread(partial(self._find, list(wanted)))
                except Exception as error:  # noqa: BLE001, is raised to all who wait
                    found = error
                for key_id, answer in wanted.items():
                    self._answer(key_id, answer, found)
        finally:
            self._reading = None

    def _answer(
        self, key_id: str, answer: asyncio.Future[ApiKey | None], found: dict[str, ApiKey] | Exception
    ) -> None:
        key = None if isinstance(found, Exception) else found.get(key_id)
        if key is not None:
            self._held[key_id] = key, time.monotonic() + LIFE_SECONDS
        elif not isinstance(found, Exception):  # it may be there in a moment, so nothing is held
            self._held.pop(key_id, None)
        if self._asking.get(key_id) is answer:
            self._asking.pop(key_id, None)
        else:  # forgotten while it was read, which may have been before it was revoked
            self._held.pop(key_id, None)
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(key)

    def _find(self, key_ids: Sequence[str]) -> dict[str, ApiKey]:
        if len(key_ids) > 1:
            wanted = set(key_ids)
            return {each.key_id: each for each in self._keys().list() if each.key_id in wanted}
        with suppress(KeyNotFoundError):
            return {key_id: self._keys().get(key_id) for key_id in key_ids}
        return {}

    async def _note(self, key_id: str, now: int) -> None:
        with suppress(StorageError):  # it is noted when there is another use
            await self._in_thread(lambda: self._keys().note_use(key_id, now=now))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def alone() -> T:
            WAITER.set(None)  # others wait for it too, so it goes on where the first one has gone
            return work()

        return await to_thread.run_sync(alone, limiter=self._threads)


def _looked_at(answer: asyncio.Future[ApiKey | None]) -> None:
    if not answer.cancelled():
        answer.exception()  # is raised to all who wait; there may be none
