"""What an engine that we fill is sent, and what it lacks."""

import math
from dataclasses import dataclass
from typing import Protocol

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Attachment, Collection, Neighbour
from embedding_studio.storage.attached.engines import Examined
from embedding_studio.storage.ports import Vectors


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the engine of a collection lacks.

    Attributes:
        oldest_seconds: since when; 0 where it has all.
        refused: so many objects it refused.
        error: why, of one of these.
        away: why the engine did not answer this process last; None: it did, or was not asked.
    """

    collection: str
    objects: int
    oldest_seconds: float
    refused: int
    error: str | None
    away: str | None = None


@dataclass(frozen=True, slots=True)
class Mended:
    """What was found where an engine was compared with what is here.

    Attributes:
        missing, stale: objects that it did not have, or not so.
        leftover: points of what is no longer there.
    """

    missing: int
    stale: int
    leftover: int


class Filling(Protocol):
    """What is told to engines that we fill, and asked of them; ``postgres.outbox`` is it."""

    def make(self, collection: Collection, store: str) -> Attachment: ...

    def examined(self, collection: Collection) -> Examined: ...

    def backlog(self) -> list[Backlog]: ...

    def deliver(self, collection: Collection, *, changes: float = math.inf) -> None: ...

    def deliver_all(self) -> None: ...

    def reconcile(self, collection: Collection, *, takes_over: bool = False) -> Mended: ...

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        payload_filter: PayloadFilter | None,
        max_distance: float | None = None,
    ) -> list[Neighbour]: ...
