"""Backup and restore of a database, by PostgreSQL's own programs: ``pg_dump``, ``pg_restore`` and ``psql``.

A backup is an archive of ``pg_dump`` (its custom format) with the schemas of this program and nothing else of
the database. It is of one instant, while everything goes on. A restore is one transaction, from dropping
what is there to the last index: it is done as a whole, or everything stays as it is.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import psycopg
from psycopg import sql
from psycopg.pq import Conninfo

from embedding_studio.errors import (
    ConflictError,
    InvalidDataError,
    StorageError,
    StorageUnavailableError,
    UnsupportedDatabaseError,
    counted,
    plural,
)
from embedding_studio.files import STDIN, read_again, replaced
from embedding_studio.storage.embedded.server import installed_programs
from embedding_studio.storage.postgres.address import checked_address
from embedding_studio.storage.postgres.database import APPLICATION_NAME, CONNECT_SECONDS, Connection
from embedding_studio.storage.postgres.schema import MIGRATIONS_LOCK, require_supported, where
from embedding_studio.storage.postgres.sql import migrations, statements

HEADER_LINES = 100
"""Of a script of ``pg_restore``: its settings stand in there."""

_SQL = statements("backup.sql")


@dataclass(frozen=True, slots=True)
class Programs:
    """Where PostgreSQL's programs are, and of which major version."""

    folder: Path
    version: int


def back_up(address: str, path: str | Path) -> str:
    """Write a backup, whole or not at all, in place of a file that is there; ``-`` is standard output.

    Returns:
        Of which database it is.

    Raises:
        StorageError: ``pg_dump`` failed, or is missing; the message says which package has it.
        InvalidDataError: the file cannot be written.
    """
    with _connected(address) as connection:
        connection.execute(_SQL["begin_snapshot"])
        schemas = _schemas(connection)
        if not schemas:
            raise StorageError(
                f"there is nothing to back up in {where(connection)}: it has no tables of ours"
            )
        [(snapshot,)] = connection.execute(_SQL["snapshot"])
        programs = find_programs(_server_version(connection))
        with replaced(path, is_lines=False) as file:
            if str(path) != STDIN:
                os.fchmod(file.fileno(), 0o600)  # it says what users searched for
            options = ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
            options += [f"--schema={schema}" for schema in schemas]
            # Not into our stream: what can be rewound it would end with its table of contents once more.
            if str(path) == STDIN:
                with _running(programs, "pg_dump", *options, stdout=subprocess.PIPE, address=address) as dump:
                    shutil.copyfileobj(cast("IO[bytes]", dump.stdout), file)
            else:
                options.append(f"--file={file.name}")
                with _running(programs, "pg_dump", *options, stdout=subprocess.DEVNULL, address=address):
                    pass
                os.fsync(file.fileno())
        return where(connection)


def restore(address: str, path: str | Path, *, replace: bool = False) -> str:
    """Make a database what it was when a backup was written; ``-`` is standard input.

    The tables are those of the program that wrote it: whoever opens the database next brings them up to date.

    Args:
        replace: drop what is there.

    Returns:
        Which database it is.

    Raises:
        InvalidDataError: the file is no backup of ours, is damaged, or a newer version wrote it.
        ConflictError: the database holds something, or the service or a worker is connected to it.
        StorageError: it failed; everything is as it was.
    """
    with _connected(address) as connection:
        [(server, installed, available)] = connection.execute(statements("schema.sql")["versions"])
        require_supported(where(connection), server=server, installed=installed, available=available)
        version = _server_version(connection)
        programs = find_programs(version)
        with read_again(path) as file:
            _check_archive(programs, file, path)
            _check_alone(connection)
            schemas = _schemas(connection)
            if not replace and _holds_rows(connection, schemas):
                raise ConflictError(
                    f"{where(connection)} is not empty; restore into an empty one, or drop what is in this "
                    "one with --replace"
                )
            _replace(programs, address, file, schemas, version)
        connection.execute("ANALYZE")  # before the first search, not some time after it
        return where(connection)


def find_programs(server: int) -> Programs:
    """Return programs that can speak to a server of this major version: those of the wheel, or on the PATH.

    Raises:
        UnsupportedDatabaseError: there are none, or they are older than the server.
    """
    found = []
    for folder in _folders():
        told = subprocess.run(  # noqa: S603, a program of PostgreSQL's
            [str(folder / "pg_dump"), "--version"], capture_output=True, text=True, check=False
        )
        if (named := re.search(r"\b(\d+)\.?\w*\s*(\(|$)", told.stdout.strip())) is not None:
            found.append(Programs(folder, int(named[1])))
    for each in found:
        if each.version >= server:
            return each
    there = f"those here are of {max(each.version for each in found)}" if found else "there are none here"
    raise UnsupportedDatabaseError(
        f"this needs PostgreSQL's programs pg_dump, pg_restore and psql, of version {server} or later, and "
        f"{there}; install the package postgresql-client-{server}"
    )


def _folders() -> Iterator[Path]:
    with suppress(UnsupportedDatabaseError):  # it is not installed
        yield installed_programs()
    on_path = [shutil.which(program) for program in ("pg_dump", "pg_restore", "psql")]
    if all(on_path):
        yield Path(str(on_path[0])).parent


@contextmanager
def _connected(address: str) -> Iterator[Connection]:
    try:
        with psycopg.connect(
            checked_address(address), autocommit=True, connect_timeout=CONNECT_SECONDS
        ) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise StorageUnavailableError(f"the database failed: {error}") from error
    except psycopg.Error as error:
        raise StorageError(f"the database refused a statement: {error}") from error


def _server_version(connection: Connection) -> int:
    return connection.info.server_version // 10_000


def _schemas(connection: Connection) -> list[str]:
    """Return the schemas of this program's tables; of collections those that are in its list."""
    [(is_there,)] = connection.execute(_SQL["is_there"])
    if not is_there:
        return []
    return ["embedding_studio", *(name for (name,) in connection.execute(_SQL["collection_schemas"]))]


def _holds_rows(connection: Connection, schemas: Sequence[str]) -> bool:
    """Return whether anything was stored; empty tables are made by whoever opens the database."""
    tables = connection.execute(_SQL["tables"], {"schemas": list(schemas)}).fetchall()
    return any(
        connection.execute(_SQL["holds_a_row"].format(table=sql.Identifier(*table))).rowcount
        for table in tables
    )


def _check_alone(connection: Connection) -> None:
    """Return if no service and no worker is connected: they would go on with what they keep in memory."""
    [(others,)] = connection.execute(_SQL["others"], {"name": APPLICATION_NAME})
    if others:
        raise ConflictError(
            f"{counted(others, 'connection')} of the service, a worker or another command to "
            f"{where(connection)} {plural(others, 'is', 'are')} open; stop these first, and start them "
            "again after the restore"
        )


def _check_archive(programs: Programs, file: Path, path: str | Path) -> None:
    """Return if a file is a backup of ours that this version understands."""
    with tempfile.TemporaryFile() as told:
        options = ("--data-only", "--schema=embedding_studio", "--table=schema_migrations", "--file=-")
        try:
            with _running(programs, "pg_restore", *options, str(file), stdout=told):
                pass
        except StorageError as error:
            raise InvalidDataError(f"{path}: is no backup, or damaged: {error}") from error
        told.seek(0)
        applied = [int(line.split(b"\t")[0]) for line in told if re.match(rb"\d+\t", line)]
    if not applied:
        raise InvalidDataError(
            f"{path}: is an archive of pg_dump, but none that `embedding-studio backup` wrote"
        )
    if (known := migrations()[-1][0]) < max(applied):
        raise InvalidDataError(
            f"{path}: was written by a newer version of this program (migration {max(applied)}, this one "
            f"knows up to {known}); upgrade embedding-studio"
        )


def _replace(programs: Programs, address: str, file: Path, schemas: Sequence[str], version: int) -> None:
    """Drop what is there and restore, in one transaction: without its last word nothing is done."""
    script_options = ("--no-owner", "--no-privileges", "--file=-")
    psql_options = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-")
    with _running(
        programs, "psql", *psql_options, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, address=address
    ) as psql:
        into = cast("IO[bytes]", psql.stdin)
        into.write(
            b"BEGIN;\n" + _SQL["prepare"].format(lock=sql.Literal(MIGRATIONS_LOCK)).as_bytes() + b";\n"
        )
        for schema in schemas:
            into.write(_SQL["drop"].format(schema=sql.Identifier(schema)).as_bytes() + b";\n")
        with _running(programs, "pg_restore", *script_options, str(file), stdout=subprocess.PIPE) as archive:
            _copy_script(cast("IO[bytes]", archive.stdout), into, version)
        into.write(_SQL["functions_of_the_server"].as_bytes() + b";\nCOMMIT;\n")


def _copy_script(script: IO[bytes], into: IO[bytes], version: int) -> None:
    """Hand on a script of ``pg_restore`` without the setting that servers before 17 do not know."""
    for _ in range(HEADER_LINES):
        line = script.readline()
        if version >= 17 or not line.startswith(b"SET transaction_timeout"):
            into.write(line)
    shutil.copyfileobj(script, into)


@contextmanager
def _running(
    programs: Programs,
    program: str,
    *arguments: str,
    stdout: IO[bytes] | int,
    stdin: int = subprocess.DEVNULL,
    address: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """Lend one of PostgreSQL's programs, and wait for its end; it is killed where the block fails.

    Args:
        address: goes into its environment, where no other user reads the password.

    Raises:
        StorageError: it failed; the message is what it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603, a program of PostgreSQL's
            [str(programs.folder / program), *arguments],
            env=os.environ | _environment(address),
            stdin=stdin,
            stdout=stdout,
            stderr=said,
        )
        try:
            with suppress(BrokenPipeError):  # it has ended before, and says why
                yield process
        except BaseException:
            process.kill()
            raise
        finally:
            process.communicate()
        said.seek(0)
        if process.returncode:
            why = " ".join(said.read().decode(errors="replace").split())
            raise StorageError(f"{program} failed: {why or process.returncode}")


def _environment(address: str) -> dict[str, str]:
    """Return an address as the variables that PostgreSQL's programs read."""
    options = Conninfo.parse(checked_address(address).encode()) if address else []
    return {
        option.envvar.decode(): option.val.decode()
        for option in options
        if option.envvar is not None and option.val is not None
    }
