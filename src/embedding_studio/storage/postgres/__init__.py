"""Storage in PostgreSQL with pgvector: the product's. Many processes may use one database at once.

    database     connections, transactions, errors      schema  migrations, locks, what a server must be
    collections  a schema each: objects, parts, personal_parts, query_memory, shared_queries, shared_votes,
                 vote_changes
    objects      originals                              nearest, filters, geometry  search among them
    codes        which may be nearest                   replica  where searches are run
    clickstream  sessions and events
    queue        the queue of users                     orders  what became of sessions
    quarantine   from whom nothing is learnt
    personal     what is learnt                         votes   what is shared among users
    users        what a process keeps of it         kept_votes  and of votes
    vectors      on the wire
    keys         who may call the service               tables  objects that stood in a table before
    outbox       what another engine finds, and is to be sent

Their SQL stands in ``sql/``, the tables in ``sql/migrations`` and ``sql/collections.sql``.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as Container
from dataclasses import dataclass, field
from functools import partial

from embedding_studio.domain.objects import Attachment
from embedding_studio.errors import AttachedUnavailableError
from embedding_studio.storage.attached import ByCollection
from embedding_studio.storage.attached.engines import Engine
from embedding_studio.storage.attached.objects import AttachedObjects
from embedding_studio.storage.ports import (
    LOCK_SECONDS,
    ORDER_ON,
    POOL_SIZE,
    RECALL_TARGET,
    STATEMENT_SECONDS,
    WAITING_EVENTS,
    Storage,
    Vitals,
)
from embedding_studio.storage.postgres.address import checked_address
from embedding_studio.storage.postgres.clickstream import PostgresClickstream
from embedding_studio.storage.postgres.collections import PostgresCollections
from embedding_studio.storage.postgres.database import Database
from embedding_studio.storage.postgres.keys import PostgresKeys
from embedding_studio.storage.postgres.nearest import NearestSearch
from embedding_studio.storage.postgres.objects import PostgresObjects
from embedding_studio.storage.postgres.orders import PostgresOrders
from embedding_studio.storage.postgres.outbox import Outbox
from embedding_studio.storage.postgres.personal import PostgresPersonal, outdate
from embedding_studio.storage.postgres.quarantine import PostgresQuarantine
from embedding_studio.storage.postgres.queue import PostgresQueue
from embedding_studio.storage.postgres.replica import AWAY_SECONDS, Searches
from embedding_studio.storage.postgres.schema import describe, measure
from embedding_studio.storage.postgres.tables import Tables, TablesDatabase

CODES = 4
"""The migration after which the program writes the codes of what is there already."""


class PostgresBackend:
    def __init__(
        self,
        database: Database,
        queue: PostgresQueue,
        searches: Searches,
        attached: "AttachedStores",
    ) -> None:
        self._database = database
        self._queue = queue
        self._searches = searches
        self._attached = attached

    def ping(self) -> None:
        self._database.check_writable()

    def about(self) -> str:
        told = self._database.read(describe)
        return f"{told}, behind a pooler" if self._database.is_pooled else told

    def vitals(self) -> Vitals:
        return Vitals(*self._database.read(measure), replica_lag=self._searches.lag())

    def give_up(self) -> None:
        self._database.give_up()

    def close(self) -> None:
        self._attached.close()
        self._queue.close()
        self._searches.close()
        self._database.close()


@dataclass(slots=True)
class _Opening:
    """A store that is opened when it is first asked, by one while others of it wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    opened: AttachedObjects | None = None
    failed: AttachedUnavailableError | None = None
    failed_at: float = -math.inf


class AttachedStores:
    """The stores that collections are attached to, each opened when it is first asked.

    Args:
        address: of the database in which all else is kept, whose tables can be attached too.
        stores: name -> address, of others.
        limits: of a connection, as a ``Database`` takes them.
    """

    def __init__(
        self, address: str | Callable[[], str], stores: Mapping[str, str], limits: Mapping[str, float]
    ) -> None:
        self._address = address
        self._stores = {name: _checked(name, given) for name, given in stores.items()}
        self._limits = limits
        self._stores_opened: dict[str | None, _Opening] = {}
        self._lock = threading.Lock()

    def __call__(self, attached: Attachment) -> AttachedObjects:
        """Return the base index of a store. One that does not answer does not hold up the others.

        Raises:
            AttachedUnavailableError: it has no address any more, or does not answer, or did not just now.
        """
        with self._lock:
            opening = self._stores_opened.setdefault(attached.store, _Opening())
        if opening.opened is not None:
            return opening.opened
        # By one at a time: those who come first wait for it, those who come when it failed before do not.
        if not opening.lock.acquire(blocking=opening.failed is None):
            raise AttachedUnavailableError(str(opening.failed)) from opening.failed
        try:
            if opening.opened is None:
                if opening.failed is not None and time.monotonic() < opening.failed_at + AWAY_SECONDS:
                    raise AttachedUnavailableError(str(opening.failed)) from opening.failed
                try:
                    opening.opened = AttachedObjects(self._engine(attached))
                except AttachedUnavailableError as error:
                    opening.failed, opening.failed_at = error, time.monotonic()
                    raise
            return opening.opened
        finally:
            opening.lock.release()

    def _engine(self, attached: Attachment) -> Engine:
        if attached.store is not None and attached.store not in self._stores:
            named = ", ".join(sorted(self._stores)) or "none"
            raise AttachedUnavailableError(
                f"there is no address of the store {attached.store!r}: ATTACHED_STORES names {named}; give "
                f'one, as in {{"{attached.store}": "postgresql://USER:PASSWORD@HOST/NAME"}}'
            )
        address = self._address if attached.store is None else self._stores[attached.store]
        if isinstance(address, str):
            seconds = self._limits["statement_seconds"]
            for schemes, _, engine in _engines():
                if address.startswith(schemes):
                    return engine(address, name=attached.store, statement_seconds=seconds)
        database = TablesDatabase(address, name=attached.store, pool_size=POOL_SIZE, **self._limits)
        return Tables(database, has_functions=attached.store is None)

    def close(self) -> None:
        with self._lock:
            for opening in self._stores_opened.values():
                if opening.opened is not None:
                    opening.opened.close()
            self._stores_opened.clear()


def _engines() -> Sequence[tuple[tuple[str, ...], Callable[[str, str], object], Callable[..., Engine]]]:
    """Return how addresses of a store begin, what refuses a wrong one, and its engine; else ``Tables``."""
    from embedding_studio.storage import lancedb, milvus, qdrant  # most have none, and these are heavy

    return (
        (qdrant.SCHEMES, qdrant.place_and_key, qdrant.Qdrant),
        (lancedb.SCHEMES, lancedb.place_of, lancedb.LanceDB),
        (milvus.SCHEMES, milvus.place_of, milvus.Milvus),
    )


def _checked(name: str, address: str) -> str:
    """Return the address of a store if it is one.

    Raises:
        InvalidSettingError: it is none; the message says nothing of it, for any part may be the password.
    """
    setting = f"ATTACHED_STORES, of {name!r},"
    for schemes, check, _ in _engines():
        if address.startswith(schemes):
            check(address, setting)
            return address
    return checked_address(address, setting)


class PostgresStorage(Storage):
    """A storage that is open from its creation until ``close``.

    Args:
        database_url: of a PostgreSQL 15 or later with pgvector 0.8 or later; its tables are brought up to
            date. A callable is asked for each connection: so a server of our own is brought back.
        order_on: event types that place an order.
        recall_target: in (0, 1], the share of the nearest that a search is to find in collections for which
            this was not measured; 1 compares all, always.
        statement_seconds: a statement may take so long, but those of maintenance; 0: as long as it likes.
        lock_seconds: a statement may wait for a lock so long; 0: as long as it has to.
        waiting_events: so many wait for sessions that are not recorded yet; 0: none.
        pool_size: connections at the most; one more listens for orders while ``queue.wait`` is used.
        read_url: of a streaming replica on which searches are run while it is there.
        tell_replica: called with what became of it for each search, one of ``replica.OUTCOMES``.
        attached_stores: name -> address, of what collections can be attached to.

    Raises:
        StorageUnavailableError: no server answers there.
        UnsupportedDatabaseError: the server is too old, or has no pgvector.
    """

    def __init__(
        self,
        database_url: str | Callable[[], str],
        *,
        order_on: Container[str] = ORDER_ON,
        recall_target: float = RECALL_TARGET,
        pool_size: int = POOL_SIZE,
        statement_seconds: float = STATEMENT_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
        waiting_events: int = WAITING_EVENTS,
        read_url: str | None = None,
        tell_replica: Callable[[str], object] | None = None,
        attached_stores: Mapping[str, str] | None = None,
    ) -> None:
        connect = partial(
            Database, pool_size=pool_size, statement_seconds=statement_seconds, lock_seconds=lock_seconds
        )
        replica = None if read_url is None else checked_address(read_url, "DATABASE_READ_URL")
        database = connect(database_url)
        searches = Searches(
            database, None if replica is None else connect(replica, replica_of=database), tell_replica
        )
        search = NearestSearch(recall_target)
        limits = {"statement_seconds": statement_seconds, "lock_seconds": lock_seconds}
        attached = AttachedStores(database_url, attached_stores or {}, limits)
        outbox = Outbox(database, search, searches, attached)
        collections, queue = PostgresCollections(database, outbox.drop), PostgresQueue(database)
        objects = PostgresObjects(database, search, outdate, searches)
        personal = PostgresPersonal(database, search, searches, collections)
        super().__init__(
            collections=collections,
            objects=ByCollection(objects, personal, attached, outbox),
            clickstream=PostgresClickstream(database, order_on, waiting_events),
            orders=PostgresOrders(database),
            quarantine=PostgresQuarantine(database),
            queue=queue,
            personal=personal,
            keys=PostgresKeys(database),
            backend=PostgresBackend(database, queue, searches, attached),
        )
        if CODES in database.applied:
            for collection in collections.list():
                objects.tidy(collection)
