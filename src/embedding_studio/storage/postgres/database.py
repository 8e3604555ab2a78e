"""One PostgreSQL database: its connections, and its errors as ours."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from embedding_studio.errors import (
    CollectionNotFoundError,
    InvalidInputError,
    StorageError,
    StorageUnavailableError,
)
from embedding_studio.storage.postgres.address import checked_address
from embedding_studio.storage.postgres.schema import migrate, without_password
from embedding_studio.storage.postgres.vectors import register

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

CONNECT_SECONDS = 10
WAIT_FOR_CONNECTION_SECONDS = 30.0
RETRIED_CONFLICTS = 3
PAUSE_SECONDS = 0.05


class Database:
    """A pool of connections.

    Connections commit by themselves; a batch sent in pipeline mode is one transaction and one round trip.
    """

    def __init__(self, database_url: str | Callable[[], str], *, pool_size: int) -> None:
        address = database_url if callable(database_url) else checked_address(database_url)
        self._locate = address if callable(address) else lambda: address
        self.url = self._locate()
        with self.errors(), self.connect() as connection:
            self.applied = migrate(connection)
            """The migrations applied just now."""
        self._pool = ConnectionPool(
            self._locate,
            min_size=1,
            max_size=pool_size,
            open=False,
            kwargs={"autocommit": True, "connect_timeout": CONNECT_SECONDS},
            configure=_configure,
            check=_require_open,
            timeout=WAIT_FOR_CONNECTION_SECONDS,
            name="embedding-studio",
        )
        with self.errors():
            self._pool.open(wait=True)  # a search before would make it open one more, and use both in turns

    def connect(self) -> Connection:
        """Return a connection of its own, outside the pool; for the caller to close."""
        return psycopg.connect(self._locate(), autocommit=True, connect_timeout=CONNECT_SECONDS)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what ``work`` reads, tried once more where the connection is lost meanwhile.

        A backend that dies takes all connections of its server with it, for a tenth of a second.
        """
        with self.errors():
            try:
                with self._pool.connection() as connection:
                    return work(connection)
            except PoolTimeout:
                raise  # waited long enough
            except psycopg.OperationalError as error:
                if not _is_lost(error):
                    raise
            with self._pool.connection() as connection:
                return work(connection)

    def write(self, work: Callable[[Connection], T], *, alone: bool = False) -> T:
        """Return what ``work`` returns, in one transaction, committed.

        Args:
            alone: it writes by one statement, which is a transaction without being told so.

        It is repeated after a deadlock, for then nothing of it was done; not where the connection is lost,
        for then that is unknown. A connection lost *before* is noticed and replaced.
        """
        with self.errors():
            for _ in range(RETRIED_CONFLICTS):
                try:
                    with self._transaction(alone=alone) as connection:
                        return work(connection)
                except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                    time.sleep(PAUSE_SECONDS)  # lets the other finish first
            with self._transaction(alone=alone) as connection:
                return work(connection)

    @contextmanager
    def _transaction(self, *, alone: bool) -> Iterator[Connection]:
        with (
            self._pool.connection() as connection,
            nullcontext() if alone else connection.transaction(),
        ):
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Lend a connection with an open transaction: committed at the end, rolled back on an exception."""
        with self.errors(), self._pool.connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the driver's errors as ours, with the driver's as their cause."""
        try:
            yield
        except psycopg.errors.UndefinedTable as error:
            raise CollectionNotFoundError(
                "the collection was dropped meanwhile; create it anew, or look it up again by its name"
            ) from error
        except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, UnicodeEncodeError) as error:
            raise InvalidInputError(
                f"the database cannot store this value: {error}; mend or drop it"
            ) from error
        except PoolTimeout as error:
            raise StorageUnavailableError(
                f"no connection to {without_password(self.url)} became free within "
                f"{WAIT_FOR_CONNECTION_SECONDS:.0f} s; is the server up, and are there enough connections?"
            ) from error
        except psycopg.OperationalError as error:
            kind = StorageUnavailableError if _is_lost(error) else StorageError
            raise kind(f"{without_password(self.url)} failed: {error}") from error
        except psycopg.Error as error:
            raise StorageError(f"{without_password(self.url)} refused a statement: {error}") from error

    def close(self) -> None:
        self._pool.close()


def only_row(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the row of a statement that has exactly one."""
    [row] = cursor.fetchall()
    return row


def _configure(connection: Connection) -> None:
    register(connection)
    connection.execute(
        "SELECT set_config('jit', 'off', false)"
    )  # to compile takes longer than our statements


def _require_open(connection: Connection) -> None:
    """Raise if the server has hung up; costs a system call, not a round trip."""
    connection.pgconn.consume_input()  # its farewell, if there is one
    connection.pgconn.consume_input()  # and then the end
    if connection.closed:
        raise psycopg.OperationalError("the server has closed the connection")


def _is_lost(error: psycopg.Error) -> bool:
    """Return whether the connection is gone: no word from the server, or its farewell."""
    return error.sqlstate is None or error.sqlstate[:2] in {"08", "53"} or error.sqlstate[:3] == "57P"
