"""API keys in PostgreSQL."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from embedding_studio.domain.keys import ApiKey, Scope
from embedding_studio.errors import KeyNotFoundError
from embedding_studio.storage.ports import require_active
from embedding_studio.storage.postgres.database import Connection, Database, only_row
from embedding_studio.storage.postgres.sql import statements

_SQL = statements("keys.sql")


class PostgresKeys:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: ApiKey) -> None:
        self._database.write(lambda connection: _insert(connection, key), alone=True)

    def get(self, key_id: str) -> ApiKey:
        return self._database.read(lambda connection: _key(connection, "get", key_id))

    def has_any(self) -> bool:
        (has_any,) = self._database.read(lambda connection: only_row(connection.execute(_SQL["has_any"])))
        return bool(has_any)

    def replace(self, key_id: str, key: ApiKey, *, until: int, now: int) -> None:
        def work(connection: Connection) -> None:
            require_active(_key(connection, "lock", key_id), now)
            connection.execute(_SQL["expire"], {"key_id": key_id, "at": until})
            _insert(connection, key)

        self._database.write(work)

    def revoke(self, key_id: str, *, now: int) -> ApiKey:
        def work(connection: Connection) -> ApiKey:
            _key(connection, "lock", key_id)
            connection.execute(_SQL["revoke"], {"key_id": key_id, "at": now})
            return _key(connection, "lock", key_id)

        return self._database.write(work)

    def note_use(self, key_id: str, *, now: int) -> None:
        given = {"key_id": key_id, "at": now}
        self._database.write(lambda connection: connection.execute(_SQL["note_use"], given), alone=True)

    # Last, for it hides the builtin from the annotations after it.
    def list(self) -> list[ApiKey]:
        return self._database.read(
            lambda connection: [_loaded(row) for row in connection.execute(_statement("list"))]
        )


def _insert(connection: Connection, key: ApiKey) -> None:
    given = asdict(key)
    connection.execute(
        _SQL["insert"], given | {"scopes": list(key.scopes), "collections": list(key.collections)}
    )


def _key(connection: Connection, statement: str, key_id: str) -> ApiKey:
    row = connection.execute(_statement(statement), {"key_id": key_id}).fetchone()
    if row is None:
        raise KeyNotFoundError(f"there is no key with the id {key_id!r}; list the keys to see their ids")
    return _loaded(row)


def _loaded(row: Sequence[Any]) -> ApiKey:
    key_id, secret_hash, name, scopes, collections, *others = row
    return ApiKey(key_id, secret_hash, name, tuple(map(Scope, scopes)), tuple(collections), *others)


@cache
def _statement(name: str) -> bytes:
    return _SQL[name].format(told=_SQL["told"]).as_bytes()
