"""A storage as a whole: a value of parts by owner."""

from dataclasses import dataclass, fields
from typing import Any, Protocol, TypedDict, Unpack

from embedding_studio.storage.ports.clickstream import Clickstream
from embedding_studio.storage.ports.collections import Collections
from embedding_studio.storage.ports.keys import Keys
from embedding_studio.storage.ports.objects import BaseIndex
from embedding_studio.storage.ports.orders import Orders
from embedding_studio.storage.ports.personal import Personal
from embedding_studio.storage.ports.quarantine import Quarantine
from embedding_studio.storage.ports.queue import Queue

POOL_SIZE = 8
"""Connections to a database."""

STATEMENT_SECONDS = 30.0

LOCK_SECONDS = 10.0
"""So long a statement may take, and wait for a lock, before the database gives up on it."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a database fares.

    Attributes:
        clock: UTC seconds by its own clock.
        bytes: its size on disk.
        replica_lag: how many seconds ago what is searched on its replica was true; infinite: the replica
            does not answer; None: there is none.
    """

    clock: float
    bytes: int
    replica_lag: float | None = None


class Backend(Protocol):
    """What the parts of a storage have in common."""

    def ping(self) -> None:
        """Return if storage answers, and takes events.

        Raises:
            StorageUnavailableError: it does not answer; the message says which and why.
            StorageNotWritableError: it takes no events.
        """
        ...

    def about(self) -> str:
        """Return which storage this is, with its versions and without a password."""
        ...

    def vitals(self) -> Vitals: ...

    def give_up(self) -> None:
        """Return at once, and let nothing wait any longer for a storage that is away: the process ends."""
        ...

    def close(self) -> None: ...


class StorageParts(TypedDict, total=False):
    """Parts of a storage by their names."""

    collections: Collections
    objects: BaseIndex
    clickstream: Clickstream
    orders: Orders
    quarantine: Quarantine
    queue: Queue
    personal: Personal
    keys: Keys
    backend: Backend


@dataclass(eq=False)
class Storage:
    """The whole of it, by owner. ``order_on`` at opening names the event types that place an order."""

    collections: Collections
    objects: BaseIndex
    clickstream: Clickstream
    orders: Orders
    quarantine: Quarantine
    queue: Queue
    personal: Personal
    keys: Keys
    backend: Backend

    def having(self, **parts: Unpack[StorageParts]) -> "Storage":
        """Return a storage with these parts in place of its own, over all that it has else.

        A base index has to call ``Personal.outdate`` when its originals change.
        """
        chosen: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(Storage)}
        chosen.update(parts)
        return Storage(**chosen)

    def ping(self) -> None:
        """Return if storage answers and takes events, as ``Backend.ping``."""
        self.backend.ping()

    def about(self) -> str:
        """Return which storage this is, with its versions and without a password."""
        return self.backend.about()

    def vitals(self) -> Vitals:
        return self.backend.vitals()

    def give_up(self) -> None:
        """Let nothing wait any longer where storage is away, as ``Backend.give_up``."""
        self.backend.give_up()

    def close(self) -> None:
        self.backend.close()
