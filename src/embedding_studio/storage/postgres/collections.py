"""Collections in PostgreSQL: a row each, and a schema with the tables of its objects and users."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from psycopg import Cursor, sql
from psycopg.types.json import Jsonb

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import Attachment, Collection, OwnPast
from embedding_studio.domain.storable import check_id
from embedding_studio.errors import CollectionNotFoundError, ConflictError, InvalidInputError
from embedding_studio.storage.ports import OutdatedError
from embedding_studio.storage.postgres.database import Connection, Database, only_row, server_of
from embedding_studio.storage.postgres.geometry import Geometry
from embedding_studio.storage.postgres.queue import mark_everyone, mark_under
from embedding_studio.storage.postgres.schema import NAMES_LOCK, STATE_LOCK, WRITERS_LOCK
from embedding_studio.storage.postgres.sql import in_schema, schema_of, statements

MOST_SEEN = 1000
"""Names whose collections a process remembers."""
LARGEST_INLINE_DIMENSIONS = 2000
"""A row with more does not fit a page of 8 kB: its vector stands outside the table."""

_SQL = statements("collections.sql")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a name stood for, and its version, on a server."""

    collection: Collection
    version: str
    server: str


class PostgresCollections:
    """Collections.

    Args:
        dropped: called with each that was dropped.
    """

    def __init__(self, database: Database, dropped: Callable[[Collection], object] = lambda _: None) -> None:
        self._database = database
        self._dropped = dropped
        self._seen: dict[str, Seen] = {}

    def create(
        self,
        name: str,
        index: SearchIndexInfo,
        *,
        embedder: str | None = None,
        gate_threshold: float | None = None,
        attached: Attachment | None = None,
        filled: Attachment | None = None,
    ) -> Collection:
        check_id(name, "the name of a collection")
        if index.dimensions is None:
            raise InvalidInputError(
                f"collection {name!r} needs to know its dimensions; give index.dimensions"
            )

        def work(connection: Connection) -> Collection:
            lock_names(connection)
            taken = _find(connection, name)
            if taken is None:
                return _create(
                    connection,
                    name,
                    index,
                    embedder=embedder,
                    gate_threshold=gate_threshold,
                    attached=attached,
                    filled=filled,
                )
            threshold = taken.gate_threshold if gate_threshold is None else gate_threshold
            wanted = replace(
                taken,
                name=name,
                index=index,
                embedder=embedder,
                gate_threshold=threshold,
                attached=attached,
                filled=filled or taken.filled,
            )
            if taken.name != name:
                raise ConflictError(f"{name!r} is an alias; choose another name for the collection")
            if taken != wanted:
                raise taken.conflict(wanted)
            return taken

        return self._database.write(work)

    def get(self, name: str) -> Collection:
        check_id(name, "the name of a collection")

        def work(connection: Connection) -> tuple[str, tuple[Any, ...]]:
            return server_of(connection), _row_of(connection, name)

        server, row = self._database.read(work)
        collection = _loaded(row)
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[name] = Seen(collection, f"{row[0]} {row[-1]}", server)
        return collection

    def seen(self, name: str) -> Collection:
        seen = self._seen.get(name)
        return self.get(name) if seen is None else seen.collection

    def version_seen(self, name: str, collection: Collection) -> str | None:
        """Return the version that a name was seen with; None where it was not seen, or as something else."""
        seen = self._seen.get(name)
        if seen is None or seen.collection != collection or seen.server != self._database.server:
            return None
        return seen.version

    def ask_version(self, connection: Connection, name: str) -> Cursor[tuple[Any, ...]]:
        """Ask what a name stands for, for ``check_seen``."""
        return connection.execute(_SQL["version"], {"name": name})

    def check_seen(self, answer: Cursor[tuple[Any, ...]], name: str, collection: Collection) -> None:
        """Return if a name stands for the collection, as it is.

        Raises:
            OutdatedError: it does not, or that is not known.
        """
        version = self.version_seen(name, collection)
        is_same_server = server_of(answer.connection) == self._database.server
        if version is None or not is_same_server or answer.fetchone() != (version,):
            raise OutdatedError(f"the collection {name!r} is another now; look it up again")

    def list(self) -> list[Collection]:
        return self._database.read(list_collections)

    def aliases(self) -> dict[str, str]:
        return self._database.read(names_by_alias)

    def set_gate_threshold(self, name: str, gate_threshold: float | None) -> Collection:
        def work(connection: Connection) -> Collection:
            lock_names(connection)
            collection = find_collection(connection, name)
            given = {"collection_id": collection.collection_id, "gate_threshold": gate_threshold}
            connection.execute(_SQL["set_gate_threshold"], given)
            return replace(collection, gate_threshold=gate_threshold)

        return self._database.write(work)

    def set_own_past(self, name: str, own_past: OwnPast | None) -> Collection:
        def work(connection: Connection) -> Collection:
            lock_names(connection)
            collection = find_collection(connection, name)
            stored = None if own_past is None else Jsonb(asdict(own_past))
            connection.execute(
                _SQL["set_own_past"], {"collection_id": collection.collection_id, "own_past": stored}
            )
            return replace(collection, own_past=own_past)

        return self._database.write(work)

    def rename_embedder(self, name: str, embedder: str) -> Collection:
        def work(connection: Connection) -> Collection:
            lock_names(connection)
            collection = find_collection(connection, name)
            given = {"collection_id": collection.collection_id, "embedder": embedder}
            connection.execute(_SQL["rename_embedder"], given)
            return find_collection(connection, name)

        return self._database.write(work)

    def drop(self, name: str) -> None:
        def work(connection: Connection) -> Collection:
            lock_names(connection)
            collection = _find(connection, name)
            if collection is None or collection.name != name:
                raise CollectionNotFoundError(
                    f"there is no collection {name!r} to drop (an alias is not one)"
                )
            lock_originals(connection, collection)
            lock_state(connection, collection)
            connection.execute(in_schema("collections.sql", "drop_schema", collection.collection_id))
            connection.execute(_SQL["delete"], {"collection_id": collection.collection_id})
            return collection

        self._dropped(self._database.write(work, is_upkeep=True))

    def set_alias(self, alias: str, name: str) -> None:
        check_id(alias, "an alias")

        def work(connection: Connection) -> None:
            lock_names(connection)
            collection = find_collection(connection, name)
            taken = _find(connection, alias)
            if taken is not None and taken.name == alias:
                raise ConflictError(f"{alias!r} is a collection; choose another name for the alias")
            sides = {each.collection_id: each for each in (collection, taken) if each is not None}
            for _, side in sorted(sides.items()):
                lock_state(connection, side)  # who learns meanwhile is marked below, or reads the alias again
            given = {"alias": alias, "collection_id": collection.collection_id}
            connection.execute(_SQL["set_alias"], given)
            left = [] if taken is None or taken.name == collection.name else [taken.name]
            mark_under(connection, [alias, *left], ordered_under=alias)

        self._database.write(work, is_upkeep=True)

    def drop_alias(self, alias: str) -> None:
        def work(connection: Connection) -> None:
            lock_names(connection)
            collection = _find(connection, alias)
            if collection is None or collection.name == alias:
                raise CollectionNotFoundError(f"there is no alias {alias!r} to drop")
            lock_state(connection, collection)
            connection.execute(_SQL["drop_alias"], {"alias": alias})
            mark_under(connection, [collection.name], ordered_under=alias)

        self._database.write(work)

    def order_for_everyone(self, name: str) -> int:
        def work(connection: Connection) -> int:
            return mark_everyone(connection, names_of(connection, find_collection(connection, name)))

        return self._database.write(work, is_upkeep=True)


def find_collection(connection: Connection, name: str) -> Collection:
    """Return the collection that a name or alias stands for.

    Raises:
        CollectionNotFoundError: nothing has this name.
    """
    return _loaded(_row_of(connection, name))


def names_by_alias(connection: Connection) -> dict[str, str]:
    return dict(connection.execute(_SQL["aliases"]).fetchall())


def names_of(connection: Connection, collection: Collection) -> list[str]:
    """Return every name that stands for the collection.

    Raises:
        CollectionNotFoundError: it has been dropped.
    """
    return names_in(ask_names(connection, collection), collection)


def ask_names(connection: Connection, collection: Collection) -> Cursor[tuple[Any, ...]]:
    """Ask for every name that stands for the collection; ``names_in`` reads the answer."""
    return connection.execute(_SQL["names"], {"collection_id": collection.collection_id})


def names_in(answer: Cursor[tuple[Any, ...]], collection: Collection) -> list[str]:
    names = [name for (name,) in answer]
    if not names:
        raise CollectionNotFoundError(
            f"the collection {collection.name!r} has been dropped; look it up again by its name"
        )
    return names


def list_collections(connection: Connection) -> list[Collection]:
    return [_loaded(row) for row in connection.execute(_SQL["list"])]


def lock_names(connection: Connection) -> None:
    """Keep collections and aliases as they are till the commit."""
    connection.execute(_SQL["lock_names"], {"lock_class": NAMES_LOCK})


def lock_originals(connection: Connection, collection: Collection) -> None:
    """Keep others from changing the collection's originals till the commit; learning goes on."""
    _lock(connection, "lock_exclusively", WRITERS_LOCK, collection)


def lock_state(connection: Connection, collection: Collection) -> None:
    """Wait for those who ``share_state``, and let them wait till the commit."""
    _lock(connection, "lock_exclusively", STATE_LOCK, collection)


def share_state(connection: Connection, collection: Collection) -> None:
    """Wait for those who ``lock_state``, and let them wait till the commit."""
    _lock(connection, "lock_shared", STATE_LOCK, collection)


def _lock(connection: Connection, how: str, lock_class: int, collection: Collection) -> None:
    connection.execute(_SQL[how], {"lock_class": lock_class, "collection_id": collection.collection_id})


def _row_of(connection: Connection, name: str) -> tuple[Any, ...]:
    row = connection.execute(_SQL["get"], {"name": name}).fetchone()
    if row is None:
        raise CollectionNotFoundError(
            f"there is no collection or alias {name!r}; create it, or list what there is"
        )
    return row


def _find(connection: Connection, name: str) -> Collection | None:
    row = connection.execute(_SQL["get"], {"name": name}).fetchone()
    return None if row is None else _loaded(row)


def _loaded(row: tuple[Any, ...]) -> Collection:
    collection_id, name, index_info, embedder, gate_threshold, own_past, hashed_as, attached, filled, *_ = row
    return Collection(
        collection_id,
        name,
        SearchIndexInfo.model_validate(index_info),
        embedder,
        gate_threshold,
        None if own_past is None else OwnPast(**own_past),
        hashed_as,
        *(
            None if each is None else Attachment(**each | {"payload": tuple(each["payload"])})
            for each in (attached, filled)
        ),
    )


def _create(
    connection: Connection,
    name: str,
    index: SearchIndexInfo,
    *,
    embedder: str | None,
    gate_threshold: float | None,
    attached: Attachment | None,
    filled: Attachment | None,
) -> Collection:
    given = {
        "name": name,
        "index_info": Jsonb(index.model_dump(mode="json")),
        "embedder": embedder,
        "gate_threshold": gate_threshold,
        "attached": None if attached is None else Jsonb(asdict(attached)),
        "filled": None if filled is None else Jsonb(asdict(filled)),
    }
    (collection_id,) = only_row(connection.execute(_SQL["insert"], given))
    collection = Collection(
        collection_id, name, index, embedder, gate_threshold, attached=attached, filled=filled
    )
    D = index.dimensions or 0
    pieces = Geometry(index).pieces() | {
        "schema": schema_of(collection.collection_id),
        "vector": sql.SQL("vector({})").format(sql.Literal(D)),
        "storage": sql.SQL("PLAIN" if D <= LARGEST_INLINE_DIMENSIONS else "EXTERNAL"),
    }
    for statement, text in _SQL.items():
        if statement.startswith(("create_", "index_")):
            connection.execute(text.format(**pieces))
    return collection
