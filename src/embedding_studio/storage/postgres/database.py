"""One PostgreSQL database: its connections, and its errors as ours."""

import logging
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from embedding_studio.errors import (
    CollectionNotFoundError,
    InvalidInputError,
    SessionNotFoundError,
    StorageError,
    StorageNotWritableError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from embedding_studio.storage.ports import LOCK_SECONDS, STATEMENT_SECONDS
from embedding_studio.storage.postgres.address import checked_address
from embedding_studio.storage.postgres.schema import migrate, without_password
from embedding_studio.storage.postgres.vectors import register
from embedding_studio.storage.waiting import WAITER

# That an error has others come after it, as a pipeline or a transaction ends, is no news: it is raised.
logging.getLogger("psycopg").addFilter(lambda record: not str(record.msg).startswith("error ignored"))


class _SaidSeldom(logging.Filter):
    """Lets a pool say once in ``SAID_SECONDS`` that it calls in vain, and never that it gives up."""

    last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        said = str(record.msg)
        if not said.startswith("error connecting"):
            return not said.startswith(_NOT_SAID)
        is_news = time.monotonic() - self.last >= SAID_SECONDS
        if is_news:
            self.last = time.monotonic()
        return is_news


SAID_SECONDS = 10.0
_NOT_SAID = ("reconnection attempt", "discarding closed connection", "couldn't stop thread")
logging.getLogger("psycopg.pool").addFilter(_SaidSeldom())

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

APPLICATION_NAME = "embedding-studio"
"""By which the server's list of connections names ours."""
CONNECT_SECONDS = 10
WAIT_FOR_CONNECTION_SECONDS = 30.0
WAIT_FOR_REPLICA_SECONDS = 1.0
READY_SECONDS = 5.0
"""Whoever asks whether the server is there waits no longer."""
RECONNECT_SECONDS = 0.5
"""Within such a time a server that is away is called twice: after an hour as at once."""
CANCEL_SECONDS = 2.0
CLOSE_SECONDS = 0.25
"""A pool that is closed waits so long for each of its threads, which may be calling a silent server."""
HANG_UP_SECONDS = 0.1
LAST_CALL_SECONDS = 2
LAST_CALL_PAUSE_SECONDS = 0.2
SILENT_SECONDS = 20
"""A server whose machine does not even say that it received something is taken to be gone."""
IDLE_IN_TRANSACTION_SECONDS = 60.0
RETRIED_CONFLICTS = 3
PAUSE_SECONDS = 0.05

_CONNECTING: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_SECONDS,
    "fallback_application_name": APPLICATION_NAME,
    # Of what was sent, and where nothing is to be sent.
    "tcp_user_timeout": SILENT_SECONDS * 1000,
    "keepalives_idle": SILENT_SECONDS // 2,
    "keepalives_interval": SILENT_SECONDS // 4,
    "keepalives_count": 2,
}
_BEGIN = b"BEGIN"
_BEGIN_ONE_MOMENT = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

CONFLICTS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
NOT_WRITABLE = (psycopg.errors.DiskFull, psycopg.errors.ReadOnlySqlTransaction)


class GoneError(SessionNotFoundError):
    """A session went between two statements of a transaction, which is then done again."""


class BehindError(Exception):
    """What is read is older than what was read before, or than what is needed."""


class Database:
    """A pool of connections.

    Connections commit by themselves; a batch sent in pipeline mode is one transaction and one round trip.

    Behind a pooler (PgBouncer in transaction mode, say) a connection is another one from transaction to
    transaction. So there whatever is done is a transaction that begins with its limits, nothing is prepared,
    and no notice arrives.

    Args:
        statement_seconds: a statement may take so long, but those of maintenance; 0: as long as it likes.
        lock_seconds: a statement may wait for a lock so long; 0: as long as it has to.
        replica_of: of this one; it is read as behind a pooler, and need not be there.
        is_ours: False: it is somebody else's: no table is made there, and the server lets nothing be written.
    """

    def __init__(
        self,
        database_url: str | Callable[[], str],
        *,
        pool_size: int,
        statement_seconds: float = STATEMENT_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
        replica_of: "Database | None" = None,
        is_ours: bool = True,
    ) -> None:
        self._limits = {
            "statement_timeout": _milliseconds(statement_seconds),
            "lock_timeout": _milliseconds(lock_seconds),
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
        }
        if not is_ours:
            self._limits |= {"default_transaction_read_only": "on", "transaction_read_only": "on"}
        is_replica = replica_of is not None
        self._is_writable = True
        self._is_over = threading.Event()
        self._gives_up = False
        self._connections: WeakSet[Connection] = WeakSet()
        self._noting = threading.Lock()
        self._replica_of = replica_of
        self.server = ""
        """Which server answered last, as ``server_of`` has it."""
        address = database_url if callable(database_url) else checked_address(database_url)
        self._locate = address if callable(address) else lambda: address
        self.url = self._locate()
        self.applied: list[int] = []
        """The migrations applied just now."""
        self.is_pooled = is_replica
        """Whether a pooler may stand between."""
        if not is_replica:
            with self.errors(), self.connect() as connection:
                self.applied = migrate(connection) if is_ours else []
                self.is_pooled = _is_pooled(connection)
                register(connection)  # what is missing there is reported at once; the pool would go on trying
        self._pool = ConnectionPool(
            self._locate,
            min_size=0 if is_replica else 1,
            max_size=pool_size,
            open=False,
            kwargs={
                **_CONNECTING,
                **({"prepare_threshold": None} if self.is_pooled else {}),
            },
            configure=self._configure,
            timeout=WAIT_FOR_REPLICA_SECONDS if is_replica else WAIT_FOR_CONNECTION_SECONDS,
            reconnect_timeout=WAIT_FOR_REPLICA_SECONDS if is_replica else RECONNECT_SECONDS,
            reconnect_failed=None if is_replica else self._call_again,
            name="embedding-studio",
        )
        with self.errors():
            # A search before would make it open one more, and use both in turns.
            self._pool.open(wait=not is_replica)

    def _call_again(self, pool: ConnectionPool[Connection]) -> None:
        """Go on calling where the last call was given up; left alone, a pool calls ever more seldom."""
        if not pool.get_stats()["pool_size"]:
            pool.check()  # it calls, and goes on growing while somebody waits

    def connect(self, application_name: str | None = None) -> Connection:
        """Return a connection of its own, outside the pool; for the caller to close.

        Args:
            application_name: by which the server names it; None: as the others.
        """
        named: dict[str, Any] = {} if application_name is None else {"application_name": application_name}
        connection = psycopg.connect(self._locate(), prepare_threshold=None, **_CONNECTING, **named)
        self._note(connection)
        return connection

    def read(
        self, work: Callable[[Connection], T], *, begins: bool = False, seconds: float | None = None
    ) -> T:
        """Return what ``work`` reads, tried once more where the connection is lost or a deadlock ends it.

        Who drops a collection locks its tables in another order than who searches it.

        A backend that dies takes all connections of its server with it, for a tenth of a second.

        Args:
            begins: it reads through ``one_moment``; behind a pooler all of it is of one moment.
            seconds: so long it may wait for a connection; None: as long as everybody.
        """
        begin = _BEGIN_ONE_MOMENT if begins else _BEGIN
        lent = partial(self._lent, begin=begin, stops_with_waiter=True, seconds=seconds)
        with self.errors():
            try:
                with lent() as connection:
                    return work(connection)
            except PoolTimeout:
                raise  # waited long enough
            except psycopg.OperationalError as error:
                if not (_is_lost(error) or isinstance(error, CONFLICTS)):
                    raise
            with lent() as connection:
                return work(connection)

    def write(self, work: Callable[[Connection], T], *, alone: bool = False, is_upkeep: bool = False) -> T:
        """Return what ``work`` returns, in one transaction, committed.

        Args:
            alone: it writes by one statement, which is a transaction of its own.
            is_upkeep: it may take as long as it needs.

        It is repeated after a deadlock or a ``GoneError``, for then nothing of it was done, and, where
        no caller waits for it, after it waited too long for a lock; not where the connection is lost, for
        then that is unknown. A connection lost *before* is noticed and replaced.
        """
        again: tuple[type[Exception], ...] = (*CONFLICTS, GoneError)
        if WAITER.get() is None:
            again = (*again, psycopg.errors.LockNotAvailable)
        with self.errors():
            for _ in range(RETRIED_CONFLICTS):
                try:
                    with self._transaction(alone=alone, is_upkeep=is_upkeep) as connection:
                        return work(connection)
                except again:
                    time.sleep(PAUSE_SECONDS)  # lets the other finish first
            with self._transaction(alone=alone, is_upkeep=is_upkeep) as connection:
                return work(connection)

    def check_writable(self) -> None:
        """Return if the server takes changes: what was changed last, or else something now.

        Raises:
            StorageNotWritableError: its disk is full, or it is read-only.
        """
        (is_read_only,) = self.read(
            lambda connection: only_row(
                connection.execute("SELECT current_setting('transaction_read_only')::boolean")
            ),
            seconds=READY_SECONDS,
        )
        if is_read_only or not self._is_writable:
            self.write(lambda connection: connection.execute(_PROBE))

    @contextmanager
    def _connection(self, seconds: float | None) -> Iterator[Connection]:
        """Lend a connection that is open.

        The pool's own check pauses for a second where it finds two that are not.

        Raises:
            PoolTimeout: none became free in time.
        """
        ends = time.monotonic() + (self._pool.timeout if seconds is None else seconds)
        while True:
            connection = self._pool.getconn(ends - time.monotonic())
            try:
                if not _is_hung_up(connection):
                    with connection:
                        yield connection
                    return
            except psycopg.InternalError as error:
                # The driver's word on a farewell that it met where it awaited a commit.
                if error.sqlstate is None and _hangs_up(connection):
                    raise psycopg.OperationalError(f"the server hung up: {error}") from error
                raise
            finally:
                self._pool.putconn(connection)  # which opens another for one that is closed

    @contextmanager
    def _lent(
        self, *, begin: bytes = _BEGIN, stops_with_waiter: bool = False, seconds: float | None = None
    ) -> Iterator[Connection]:
        waiter = WAITER.get() if stops_with_waiter else None
        with self._connection(seconds) as connection:
            cancel = partial(connection.cancel_safe, timeout=CANCEL_SECONDS)
            try:
                with waiter.reading(cancel) if waiter else nullcontext():
                    if self.is_pooled:  # the pool commits it, or rolls it back
                        with connection.pipeline():
                            connection.execute(begin)
                            limited = self._limit(connection, is_local=True)
                        self._note_server(connection, limited)
                    yield connection
            except psycopg.Error as error:
                _prepare_again(connection)
                if not isinstance(error, psycopg.OperationalError):
                    raise
                if error.sqlstate is None and not _hangs_up(connection):
                    # Not the server's word, nor its silence.
                    raise StorageError(f"the driver refused a statement: {error}") from error
                if waiter:
                    waiter.check()
                raise

    @contextmanager
    def _transaction(self, *, alone: bool, is_upkeep: bool) -> Iterator[Connection]:
        try:
            with self._lent() as connection, self._begun(connection, alone=alone):
                if is_upkeep:
                    connection.execute("SELECT set_config('statement_timeout', '0', true)")
                yield connection
        except NOT_WRITABLE:
            self._is_writable = False
            raise
        self._is_writable = True

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Lend a connection with an open transaction: committed at the end, rolled back on an exception."""
        with self.errors(), self._lent() as connection, self._begun(connection):
            yield connection

    def _begun(self, connection: Connection, *, alone: bool = False) -> AbstractContextManager[object]:
        """Return a transaction, where one is needed that has not begun."""
        return nullcontext() if alone or self.is_pooled else connection.transaction()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the driver's errors as ours, with the driver's as their cause."""
        try:
            yield
        except psycopg.errors.UndefinedTable as error:
            raise CollectionNotFoundError(
                "the collection was dropped meanwhile; create it again, or look it up again by its name"
            ) from error
        except UnicodeEncodeError as error:
            raise InvalidInputError("a text may not hold half a surrogate pair (U+D800 to U+DFFF)") from error
        except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded) as error:
            if "cannot contain NUL" in str(error):
                raise InvalidInputError("a text may not hold the character NUL (U+0000)") from error
            raise InvalidInputError(
                f"the database cannot store this value: {error}; mend or drop it"
            ) from error
        except PoolTimeout as error:
            raise StorageUnavailableError(
                f"no connection to {without_password(self.url)} became free in time; "
                "is the server up, and are there enough connections?"
            ) from error
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable) as error:
            raise StorageTimeoutError(
                f"{without_password(self.url)} gave up: {error}; ask for less, or raise STATEMENT_SECONDS or "
                "LOCK_SECONDS"
            ) from error
        except NOT_WRITABLE as error:
            raise StorageNotWritableError(
                f"{without_password(self.url)} cannot be written: {error}"
            ) from error
        except psycopg.OperationalError as error:
            kind = StorageUnavailableError if _is_lost(error) else StorageError
            raise kind(f"{without_password(self.url)} failed: {_said(error)}") from error
        except psycopg.Error as error:
            raise StorageError(f"{without_password(self.url)} refused a statement: {_said(error)}") from error

    def _note(self, connection: Connection) -> None:
        with self._noting:
            self._connections.add(connection)

    def _configure(self, connection: Connection) -> None:
        self._note(connection)
        register(connection)
        if not self.is_pooled:
            self._note_server(connection, self._limit(connection, is_local=False))

    def _note_server(self, connection: Connection, limited: psycopg.Cursor[tuple[Any, ...]]) -> None:
        self.server, _ = only_row(limited) if self._replica_of is None else (self._replica_of.server, 0)
        _SERVERS[connection] = self.server

    def _limit(self, connection: Connection, *, is_local: bool) -> psycopg.Cursor[tuple[Any, ...]]:
        """Set the limits, and ask which server it is."""
        settings = {"jit": "off", **self._limits}  # to compile takes longer than our statements
        return connection.execute(
            # A crash of a backend leaves the time of the start as it is, but not that of the statistics.
            "SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()), "
            "(SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter)), "
            "count(set_config(name, value, %s)) "
            "FROM (SELECT * FROM unnest(%s::text[], %s::text[]) AS given(name, value) UNION ALL "
            # What was acknowledged is there after a crash, and so are the numbers of transactions.
            "SELECT 'synchronous_commit', 'on' WHERE current_setting('synchronous_commit') = 'off') AS given",
            (is_local, list(settings), list(settings.values())),
        )

    def give_up(self) -> None:
        """Return at once, and let nothing wait any longer for a server that is away: the process ends."""
        if not self._gives_up:
            self._gives_up = True
            threading.Thread(target=self._end_waits, name="last calls", daemon=True).start()

    def _end_waits(self) -> None:
        """Call the server until ``close``: in vain, and who waits for a connection is sent away.

        Silent twice, and who reads from it is, too: it may be gone with its machine.
        """
        silences = 0
        while silences < 2 and not self._is_over.wait(LAST_CALL_PAUSE_SECONDS):
            try:
                psycopg.connect(self.url, **{**_CONNECTING, "connect_timeout": LAST_CALL_SECONDS}).close()
            except psycopg.OperationalError as error:
                self._pool.close(timeout=0)
                silences += isinstance(error, psycopg.errors.ConnectionTimeout)
        self._hang_up()

    def _hang_up(self) -> None:
        with self._noting:
            connections = list(self._connections)
        for each in connections:
            # Whoever reads from it in another thread reads that it has ended.
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(each.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._is_over.set()
        self._pool.close(CLOSE_SECONDS)


_SERVERS: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


def server_of(connection: Connection) -> str:
    """Return which server a connection is to; of a replica its database's. What was read is of that one.

    A server that takes the place of another may lack transactions that the other had, and use the numbers of
    these, and of their revisions, again. It was started at another time. After a crash one gives the numbers
    of transactions that were not committed again; then its statistics are of another time.
    """
    return _SERVERS.get(connection, "")


@contextmanager
def one_moment(connection: Connection) -> Iterator[None]:
    """Let what is read be of one moment; in work for ``Database.read`` with ``begins``.

    Entered and left in a pipeline it costs no round trip. What fails in it is ended by the pool.
    """
    begins = connection.info.transaction_status == TransactionStatus.IDLE
    if begins:
        connection.execute(_BEGIN_ONE_MOMENT)
    yield
    if begins:
        connection.execute("COMMIT")


def only_row(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the row of a statement that has exactly one."""
    [row] = cursor.fetchall()
    return row


def text_array(values: Sequence[str]) -> str:
    r"""Return a ``text[]`` as PostgreSQL reads it, which the driver makes of a list in ten times the time.

    >>> print(text_array([]), text_array(["a", "b,c", 'd"e']))
    {} {"a","b,c","d\"e"}
    """
    together = "".join(values)
    if '"' in together or "\\" in together:
        values = [value.replace("\\", r"\\").replace('"', r"\"") for value in values]
    return '{"' + '","'.join(values) + '"}' if values else "{}"


_PROBE = "CREATE TEMPORARY TABLE probe ON COMMIT DROP AS SELECT repeat('x', 1000) FROM generate_series(1, 64)"


def _is_pooled(connection: Connection) -> bool:
    """Return whether a pooler stands between: it names a process of its own making as the server's."""
    (process_id,) = only_row(connection.execute("SELECT pg_backend_pid()"))
    return bool(process_id != connection.info.backend_pid)


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _is_hung_up(connection: Connection) -> bool:
    """Return whether the server has hung up; costs a system call, not a round trip."""
    try:
        connection.pgconn.consume_input()  # its farewell, if there is one
        connection.pgconn.consume_input()  # and then the end
    except psycopg.OperationalError:
        return True
    return connection.closed


def _hangs_up(connection: Connection) -> bool:
    """Return whether the server hangs up after an error: a pooler does so once it has said why."""
    if not connection.closed:
        with selectors.DefaultSelector() as said:  # ``select.select`` takes no file above the 1024th
            said.register(connection, selectors.EVENT_READ)
            said.select(HANG_UP_SECONDS)
    return _is_hung_up(connection)


def _prepare_again(connection: Connection) -> None:
    """Forget what is prepared, after an error in no transaction, for the driver does so only after one.

    It takes for prepared what was to be prepared in a pipeline after the statement that failed, and is not.
    It notices this statement where it has not counted it before, and does not count what is to be prepared.
    """
    if connection.info.transaction_status == TransactionStatus.IDLE:
        try:
            connection.execute("DEALLOCATE ALL", prepare=True)
        except psycopg.Error:
            connection.close()


def _said(error: psycopg.Error) -> str:
    """Return what the server says, without its details, which hold values of the row."""
    return error.diag.message_primary or str(error)


def _is_lost(error: psycopg.Error) -> bool:
    """Return whether the connection is gone: no word from the server, or its farewell."""
    return error.sqlstate is None or error.sqlstate[:2] in {"08", "53"} or error.sqlstate[:3] == "57P"
