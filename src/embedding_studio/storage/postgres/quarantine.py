"""Users from whom nothing is learnt, in PostgreSQL."""

from collections.abc import Mapping, Sequence

from embedding_studio.domain.objects import Collection
from embedding_studio.storage.ports import QuarantineDecision, QuarantinedUser
from embedding_studio.storage.postgres.database import Connection, Database, only_row
from embedding_studio.storage.postgres.queue import mark_user
from embedding_studio.storage.postgres.sql import statements

_SQL = statements("quarantine.sql")


class PostgresQuarantine:
    def __init__(self, database: Database) -> None:
        self._database = database

    def decide(self, user_id: str, decision: QuarantineDecision) -> None:
        given = {
            "user_id": user_id,
            "is_quarantined": decision.is_quarantined,
            "reason": decision.reason,
            "now": decision.decided_at,
        }

        def work(connection: Connection) -> None:
            mark_user(connection, user_id)
            connection.execute(_SQL["decide"], given)
            connection.execute(_SQL["release"], given)

        self._database.write(work)

    def decisions(self, user_ids: Sequence[str]) -> dict[str, QuarantineDecision]:
        rows = self._database.read(
            lambda connection: connection.execute(_SQL["decisions"], {"user_ids": list(user_ids)}).fetchall()
        )
        return {user_id: QuarantineDecision(*decided) for user_id, *decided in rows}

    def count(self) -> int:
        (number,) = self._database.read(lambda connection: only_row(connection.execute(_SQL["count"])))
        return int(number)

    # Last, for it hides the builtin from the annotations after it.
    def list(self, *, user_id: str | None = None, limit: int = 100, offset: int = 0) -> list[QuarantinedUser]:
        given = {"user_id": user_id, "limit": limit, "offset": offset}
        return self._database.read(
            lambda connection: [QuarantinedUser(*row) for row in connection.execute(_SQL["list"], given)]
        )


def keep_found(
    connection: Connection, collection: Collection, user_ids: Sequence[str], found: Mapping[str, str]
) -> None:
    """Write which of some users are quarantined in a collection, and why; the others are no longer."""
    given = {
        "user_ids": list(user_ids),
        "collection_id": collection.collection_id,
        "found": list(found),
        "reasons": list(found.values()),
    }
    connection.execute(_SQL["keep"], given)


def forget(connection: Connection, user_id: str) -> None:
    connection.execute(_SQL["forget"], {"user_id": user_id})
