"""The tables, and how a database comes to have them.

Migrations are numbered files in ``sql/migrations``, applied once each, all in one transaction under an
advisory lock, so processes that start together wait for the first of them.
"""

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from embedding_studio.errors import StorageError, UnsupportedDatabaseError
from embedding_studio.storage.postgres.sql import migrations, statements

MINIMUM_SERVER = (15,)
MINIMUM_PGVECTOR = (0, 8)

# First keys of two-key advisory locks; chosen so that other programs in the same database are unlikely
# to use them. Who takes several takes them in this order, and after them rows of the queue, then of orders.
MIGRATIONS_LOCK = 1_163_284_301
NAMES_LOCK = 1_163_284_305
WRITERS_LOCK = 1_163_284_307
"""Of a collection's originals: one writes at a time."""
STATE_LOCK = 1_163_284_302
"""Of a collection's personal state: shared by learning; alone is who marks users since originals changed."""
USER_LOCK = 1_163_284_303
VOTES_LOCK = 1_163_284_306
OUTBOX_LOCK = 1_163_284_309
"""Of what a collection's engine lacks: one sends it at a time. No one waits for it."""
SESSION_LOCK = 1_163_284_308
"""Of sessions' ids: shared by who records one; alone is who lets events wait for it."""

_SQL = statements("schema.sql")
_THERE_ALREADY = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateFunction,
)


def migrate(connection: psycopg.Connection) -> list[int]:
    """Check the server and bring its tables up to date; return the migrations applied, if any.

    Raises:
        UnsupportedDatabaseError: PostgreSQL or pgvector is too old or missing, or this program is older
            than the tables.
        StorageError: what is needed may not be created.
    """
    with connection.transaction():
        [(server, installed, available)] = connection.execute(_SQL["versions"])
        require_supported(where(connection), server=server, installed=installed, available=available)
        if _pending(connection) == []:
            return []
        connection.execute(_SQL["lock_migrations"], {"lock_class": MIGRATIONS_LOCK})
        try:
            for name in ("create_extension", "create_schema", "create_migrations"):
                connection.execute(_SQL[name])
            applied = []
            for number in _pending(connection) or []:
                connection.execute(dict(migrations())[number].encode())
                connection.execute(_SQL["record_migration"], {"number": number})
                applied.append(number)
        except psycopg.errors.InsufficientPrivilege as error:
            raise StorageError(
                f"the user {connection.info.user!r} may not create what is needed in {where(connection)} "
                f"({str(error).splitlines()[0]}); let an administrator run CREATE EXTENSION vector there and "
                "GRANT CREATE ON DATABASE to this user"
            ) from error
        except _THERE_ALREADY as error:
            raise StorageError(
                f"{where(connection)} has tables of which embedding_studio.schema_migrations does not tell "
                f"({str(error).splitlines()[0]}); restore a backup, or drop the schema embedding_studio and "
                "those of its collections to begin again"
            ) from error
        return applied


def require_supported(
    place: str, *, server: str, installed: str | None = None, available: str | None = None
) -> None:
    """Return if a server will do.

    Args:
        server: the version of PostgreSQL.
        installed: the version of pgvector in this database.
        available: the one that CREATE EXTENSION would install.

    Raises:
        UnsupportedDatabaseError: it is too old, or lacks pgvector; the message says what to do.
    """
    if _version(server) < MINIMUM_SERVER:
        raise UnsupportedDatabaseError(
            f"{place} is PostgreSQL {server}; upgrade it to {MINIMUM_SERVER[0]} or later, or unset "
            "DATABASE_URL to use the embedded database"
        )
    found = installed or available
    if found is None:
        raise UnsupportedDatabaseError(
            f"{place} has no pgvector; install its package for PostgreSQL {_version(server)[0]} there, or "
            "unset DATABASE_URL to use the embedded database"
        )
    if _version(found) < MINIMUM_PGVECTOR:
        is_there = available is not None and _version(available) >= MINIMUM_PGVECTOR
        remedy = "run ALTER EXTENSION vector UPDATE there" if is_there else "upgrade its package there"
        raise UnsupportedDatabaseError(f"{place} has pgvector {found}, and 0.8 or later is needed: {remedy}")


def describe(connection: psycopg.Connection) -> str:
    """Return which database this is, and the versions of server, pgvector and tables."""
    [(server, installed, _)] = connection.execute(_SQL["versions"])
    applied = max(number for (number,) in connection.execute(_SQL["applied_migrations"]))
    return (
        f"{where(connection)}, PostgreSQL {server}, pgvector {installed}, tables of migration {applied}, "
        "the latest that this program knows"
    )


def measure(connection: psycopg.Connection) -> tuple[float, int]:
    """Return the database's clock, in UTC seconds, and its size in bytes."""
    [(clock, size)] = connection.execute(_SQL["vitals"])
    return clock, size


def where(connection: psycopg.Connection) -> str:
    """Return which database this is, without its password."""
    return f"database {connection.info.dbname!r} at {connection.info.host}:{connection.info.port}"


def without_password(database_url: str) -> str:
    """Return a name of the database that may stand in a message.

    >>> without_password("postgresql://ann:secret@db.example:5432/shop")
    "database 'shop' at db.example:5432"
    """
    try:
        given = conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        return "the database"
    host, port = given.get("host", "the local socket"), given.get("port", 5432)
    return f"database {given.get('dbname', given.get('user'))!r} at {host}:{port}"


def _pending(connection: psycopg.Connection) -> list[int] | None:
    """Return the migrations that are not applied; None where none ever was."""
    [(has_migrations,)] = connection.execute(_SQL["has_migrations"])
    if not has_migrations:
        return None
    applied = {number for (number,) in connection.execute(_SQL["applied_migrations"])}
    known = [number for number, _ in migrations()]
    if unknown := applied - set(known):
        raise UnsupportedDatabaseError(
            f"the tables in {where(connection)} were made by a newer version of this program "
            f"(migration {max(unknown)}, this one knows up to {max(known)}); upgrade embedding-studio"
        )
    return [number for number in known if number not in applied]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", text))
