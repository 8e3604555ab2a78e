"""Storage in the memory of one process: the twin of ``postgres``, for tests and for evaluation.

Threads may share it: one lock guards everything, and no thread holds it while it waits for another.
What it stores and what it answers are copies, so a caller's later changes reach neither.
"""

import time
from collections.abc import Collection as Container

from embedding_studio.storage.memory.clickstream import MemoryClickstream
from embedding_studio.storage.memory.collections import MemoryCollections
from embedding_studio.storage.memory.keys import MemoryKeys
from embedding_studio.storage.memory.objects import MemoryObjects
from embedding_studio.storage.memory.orders import MemoryOrders
from embedding_studio.storage.memory.personal import MemoryPersonal
from embedding_studio.storage.memory.quarantine import MemoryQuarantine
from embedding_studio.storage.memory.queue import MemoryQueue
from embedding_studio.storage.memory.state import State
from embedding_studio.storage.ports import ORDER_ON, SHARED_HALF_LIFE, WAITING_EVENTS, Storage, Vitals


class MemoryBackend:
    def ping(self) -> None:
        """Return, for memory always answers."""

    def about(self) -> str:
        return "in the memory of this process"

    def vitals(self) -> Vitals:
        return Vitals(time.time(), 0)

    def give_up(self) -> None:
        """Do nothing: memory is never away."""

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


class MemoryStorage(Storage):
    """A storage that is gone when the process ends.

    Args:
        shared_half_life: seconds by which what others clicked loses half of its weight; for measuring, which
            of them is right (``benchmarks/months.py``).

    >>> import numpy as np
    >>> from embedding_studio import CatalogueObject, SearchIndexInfo
    >>> storage = MemoryStorage()
    >>> films = storage.collections.create("films", SearchIndexInfo(dimensions=2))
    >>> storage.objects.upsert(films, [CatalogueObject("up", np.array([[0.0, 1.0]], dtype=np.float32))])
    >>> storage.objects.nearest(films, np.array([[0.0, 2.0]], dtype=np.float32), limit=1)
    [Neighbour(object_id='up', distance=0.0, payload={})]
    """

    def __init__(
        self,
        *,
        order_on: Container[str] = ORDER_ON,
        waiting_events: int = WAITING_EVENTS,
        shared_half_life: float = SHARED_HALF_LIFE,
    ) -> None:
        state = State(order_on, waiting_events, shared_half_life)
        super().__init__(
            collections=MemoryCollections(state),
            objects=MemoryObjects(state),
            clickstream=MemoryClickstream(state),
            orders=MemoryOrders(state),
            quarantine=MemoryQuarantine(state),
            queue=MemoryQueue(state),
            personal=MemoryPersonal(state),
            keys=MemoryKeys(state),
            backend=MemoryBackend(),
        )
