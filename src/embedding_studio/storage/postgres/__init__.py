"""Storage in PostgreSQL with pgvector: the product's. Many processes may use one database at once.

    database     connections, transactions, errors      schema  migrations, locks, what a server must be
    collections  a schema each: objects, parts, personal_parts, query_memory, shared_queries, shared_votes
    objects      originals                              nearest, filters, geometry  search among them
    codes        which may be nearest                   replica  where searches are run
    clickstream  sessions and events
    queue        the queue of users                     orders  what became of sessions
    quarantine   from whom nothing is learnt
    personal     what is learnt                         votes   what users tell each other
    vectors      on the wire
    keys         who may call the service

Their SQL stands in ``sql/``, the tables in ``sql/migrations`` and ``sql/collections.sql``.
"""

from collections.abc import Callable
from collections.abc import Collection as Container
from functools import partial

from embedding_studio.storage.ports import (
    LOCK_SECONDS,
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
from embedding_studio.storage.postgres.personal import PostgresPersonal, outdate
from embedding_studio.storage.postgres.quarantine import PostgresQuarantine
from embedding_studio.storage.postgres.queue import PostgresQueue
from embedding_studio.storage.postgres.replica import Searches
from embedding_studio.storage.postgres.schema import describe, measure

CODES = 4
"""The migration after which the program writes the codes of what is there already."""


class PostgresBackend:
    def __init__(self, database: Database, queue: PostgresQueue, searches: Searches) -> None:
        self._database = database
        self._queue = queue
        self._searches = searches

    def ping(self) -> None:
        self._database.check_writable()

    def about(self) -> str:
        return self._database.read(describe)

    def vitals(self) -> Vitals:
        return Vitals(*self._database.read(measure))

    def close(self) -> None:
        self._queue.close()
        self._searches.close()
        self._database.close()


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

    Raises:
        StorageUnavailableError: no server answers there.
        UnsupportedDatabaseError: the server is too old, or has no pgvector.
    """

    def __init__(
        self,
        database_url: str | Callable[[], str],
        *,
        order_on: Container[str] = frozenset({"click", "add_to_cart", "purchase"}),
        recall_target: float = RECALL_TARGET,
        pool_size: int = POOL_SIZE,
        statement_seconds: float = STATEMENT_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
        waiting_events: int = WAITING_EVENTS,
        read_url: str | None = None,
        tell_replica: Callable[[str], object] | None = None,
    ) -> None:
        connect = partial(
            Database, pool_size=pool_size, statement_seconds=statement_seconds, lock_seconds=lock_seconds
        )
        replica = None if read_url is None else checked_address(read_url, "DATABASE_READ_URL")
        database = connect(database_url)
        searches = Searches(
            database, None if replica is None else connect(replica, is_replica=True), tell_replica
        )
        search = NearestSearch(recall_target)
        collections, queue = PostgresCollections(database), PostgresQueue(database)
        objects = PostgresObjects(database, search, outdate, searches)
        super().__init__(
            collections=collections,
            objects=objects,
            clickstream=PostgresClickstream(database, order_on, waiting_events),
            orders=PostgresOrders(database),
            quarantine=PostgresQuarantine(database),
            queue=queue,
            personal=PostgresPersonal(database, search, searches),
            keys=PostgresKeys(database),
            backend=PostgresBackend(database, queue, searches),
        )
        if CODES in database.applied:
            for collection in collections.list():
                objects.tidy(collection)
