"""A table that was there before, as the objects of a collection: read by its own index, and never written.

Its database may be the one in which all else is kept, or another; either way the connections are of their
own, and the server lets none of them write.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.types.json import set_json_loads
from psycopg_pool import PoolTimeout

from embedding_studio.domain.filters import MatchPhraseQuery, MatchQuery, PayloadFilter, Query
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection
from embedding_studio.errors import AttachedUnavailableError, EmbeddingStudioError, InvalidInputError, shown
from embedding_studio.storage.attached.engines import (
    MANY_ROWS,
    NUMBER,
    PUT_BACK,
    UUID,
    Candidates,
    Examined,
    advice_on_dimensions,
    advice_on_index,
    attachment_of,
    check_dimensions,
    how_searched,
    no_longer,
)
from embedding_studio.storage.conditions import leaf
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.postgres.column_conditions import ColumnConditions
from embedding_studio.storage.postgres.database import Connection, Database, only_row
from embedding_studio.storage.postgres.filters import condition
from embedding_studio.storage.postgres.geometry import OPERATORS
from embedding_studio.storage.postgres.relations import (
    ID_TYPES,
    LARGEST,
    METRICS,
    Table,
    VectorIndex,
    completed,
    escaped,
    in_quotes,
    looked_at,
)
from embedding_studio.storage.postgres.schema import without_password
from embedding_studio.storage.postgres.sql import statements
from embedding_studio.storage.postgres.vectors import pack, unpack

KIND = "table"
OBJECT_ID, VECTOR = "id", "embedding"
"""The columns where none are named."""
LOOK_AGAIN_SECONDS = 60.0
"""So long an index that is made, or dropped, is not noticed."""
MOST_CANDIDATES = 1_000
"""The largest ``hnsw.ef_search``."""
LARGEST_HALF = 65_504.0
MOST_DIGITS = 4_000
"""A longer number of a payload is shown as a text: Python reads no more than 4,300."""
ARGUMENTS = 100
"""Of one function, at the most."""
CLASSES = {metric: name for name, metric in METRICS.items()}
"""What the operators of an index are called by."""
_SQL = statements("tables.sql")


class TablesDatabase(Database):
    """A database whose tables are read; no statement can write there."""

    def __init__(self, *given: Any, name: str | None, **limits: Any) -> None:
        self._name = name
        super().__init__(*given, is_ours=False, **limits)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise whatever the driver raises as one kind of error, that says which store and what to do."""
        try:
            with super().errors():
                yield
        except EmbeddingStudioError as error:
            if not isinstance(cause := error.__cause__, psycopg.Error | PoolTimeout):
                raise
            place = without_password(self.url) if hasattr(self, "url") else "its database"
            store = place if self._name is None else f"the store {self._name!r} ({place})"
            raise AttachedUnavailableError(
                f"{store} cannot be read: {str(cause).splitlines()[0]}{_remedy(cause)}"
            ) from error

    def _configure(self, connection: Connection) -> None:
        super()._configure(connection)
        set_json_loads(_loads, connection)


def _loads(data: str | bytes) -> Any:
    return json.loads(data, parse_int=lambda digits: int(digits) if len(digits) <= MOST_DIGITS else digits)


def _remedy(cause: Exception) -> str:
    match cause:
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedColumn():
            return PUT_BACK
        case psycopg.errors.InsufficientPrivilege():
            return "; GRANT SELECT to its user"
        case psycopg.errors.UndefinedObject() | psycopg.errors.UndefinedFunction():
            return "; CREATE EXTENSION vector there, in a schema of its user's search_path"
        case psycopg.errors.QueryCanceled():
            return "; give it an index that finds what is near, or raise STATEMENT_SECONDS"
        case _:
            return ""


class Tables:
    """The engine of all tables of one database.

    Args:
        has_functions: whether it is the database in which our functions for filters stand.
    """

    def __init__(self, database: Database, *, has_functions: bool) -> None:
        self.database = database
        self._has_functions = has_functions
        self._seen: dict[Attachment, tuple[float, Table]] = {}
        self._seeing = threading.Lock()

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        attached, table = self._of(collection)
        kind = ID_TYPES[table.columns[attached.object_id][0]]
        wanted = [object_id for object_id in object_ids if _can_be(kind, object_id)]
        statement = _SQL["get"].format(**_pieces(attached, table), type=sql.SQL(kind))
        return self._objects(statement, {"object_ids": wanted}) if wanted else []

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None,
        limit: int,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        attached, table = self._of(collection)
        matches, values = self._condition(attached, table, filter)
        statement = _SQL["scroll"].format(**_pieces(attached, table), condition=matches)
        return self._objects(statement, values | {"after": after, "limit": limit})

    def count(self, collection: Collection) -> int:
        attached, table = self._of(collection)
        statement = _SQL["count"].format(**_pieces(attached, table))
        number: int
        (number,) = self.database.read(lambda connection: only_row(connection.execute(statement, {})))
        return number

    def near(
        self,
        collection: Collection,
        query: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
        is_exact: bool,
    ) -> Candidates:
        attached, table = self._of(collection)
        index = None if is_exact else table.index(collection.index.metric_type)
        if index is not None and _is_half(attached, table, index) and np.abs(query).max() > LARGEST_HALF:
            index = None  # it cannot be asked
        matches, values = self._condition(attached, table, filter)
        given = values | {"query": pack(query[None])[0], "limit": limit}
        statement = _near(collection, attached, table, index, matches)

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            with connection.transaction(), connection.pipeline():
                for name, value in _plan(index, limit).items():
                    connection.execute("SELECT set_config(%s, %s, true)", (name, value))
                # Never prepared: which plan is good depends on the values.
                rows = connection.execute(statement, given, prepare=False, binary=True)
            return rows.fetchall()

        rows = self.database.read(work)
        if len(rows) < limit and index is not None:  # an index may give up before it has found all that match
            return self.near(collection, query, limit, filter=filter, is_exact=True)
        furthest = max((row[3] for row in rows if not math.isnan(row[3])), default=-math.inf)
        is_all = len(rows) < limit or math.isnan(rows[-1][3])  # what has no direction comes last
        return Candidates(_read(rows), math.inf if is_all else furthest)

    def examined(self, collection: Collection) -> Examined:
        attached, table = self._of(collection, is_fresh=True)
        metric = collection.index.metric_type
        index = table.index(metric)
        dimensions = table.columns[attached.vector][1]
        advice = [] if dimensions == -1 else advice_on_dimensions(collection, dimensions)
        if not table.is_unique:
            advice.append(
                f"no index holds each {attached.object_id} once: if one comes twice, either row is taken for "
                f"the object; CREATE UNIQUE INDEX ON {attached.source} ({in_quotes(attached.object_id)})"
            )
        rows = self.count(collection) if table.rows < 0 else table.rows  # never analysed
        if index is None and rows > MANY_ROWS:
            kind = table.columns[attached.vector][0]
            remedy = (
                f"CREATE INDEX ON {attached.source} USING hnsw "
                f"({in_quotes(attached.vector)} {kind}_{CLASSES[metric]}_ops)"
            )
            advice.append(advice_on_index(metric, rows, remedy))
        told = how_searched(attached, None if index is None else index.name)
        return Examined(told, tuple(advice), is_exact=index is None)

    def found(
        self, wanted: Attachment, metric: MetricType | None = None
    ) -> tuple[Attachment, SearchIndexInfo]:
        """Return what to attach to, and how its vectors are compared, after a look at the table.

        Args:
            wanted: its ``source`` as in a statement; without columns for the payload, all but those of
                vectors are taken.
            metric: None: that of the only index of the vectors, or cosine.

        Raises:
            InvalidInputError: it cannot be attached; the message says what to do.
        """
        wanted = replace(
            wanted,
            kind=KIND,
            object_id=wanted.object_id or OBJECT_ID,
            vector=wanted.vector or VECTOR,
        )
        table = self.database.read(lambda connection: looked_at(connection, wanted))
        attached = completed(wanted, table)
        kind, dimensions = table.columns[attached.vector]
        if dimensions < 0:
            dimensions = self._dimensions(attached, table)
        self._check_ids(attached, table)
        metrics = {each.metric for each in table.indexes}
        if metric is None:
            metric = metrics.pop() if len(metrics) == 1 else MetricType.COSINE
        check_dimensions(f"the {kind} column {attached.vector!r} of {attached.source}", dimensions)
        return attached, SearchIndexInfo(dimensions=dimensions, metric_type=metric)

    def close(self) -> None:
        self.database.close()

    def _of(self, collection: Collection, *, is_fresh: bool = False) -> tuple[Attachment, Table]:
        attached = attachment_of(collection)
        now = time.monotonic()
        with self._seeing:
            seen_at, table = self._seen.get(attached, (-math.inf, None))
        if table is None or is_fresh or now >= seen_at + LOOK_AGAIN_SECONDS:
            try:
                table = self.database.read(lambda connection: looked_at(connection, attached))
            except InvalidInputError as error:
                raise no_longer(collection, error) from error
            with self._seeing:
                self._seen[attached] = now, table
        return attached, table

    def _condition(
        self, attached: Attachment, table: Table, payload_filter: PayloadFilter | None
    ) -> tuple[sql.Composable, dict[str, Any]]:
        """Return what finds all that is meant, and perhaps more; by columns, as far as that can be said."""
        if payload_filter is not None and not self._has_functions:
            payload_filter = payload_filter.widened(_needs_no_function, _needs_no_function)
        if payload_filter is None:
            return sql.SQL("true"), {}
        return condition(
            payload_filter,
            lambda query, parameters: leaf(query, ColumnConditions(attached, table, parameters)),
        )

    def _objects(self, statement: sql.Composed, given: dict[str, Any]) -> list[CatalogueObject]:
        rows = self.database.read(
            lambda connection: connection.execute(statement, given, prepare=False, binary=True).fetchall()
        )
        return _read(rows)

    def _dimensions(self, attached: Attachment, table: Table) -> int:
        statement = _SQL["dimensions"].format(**_pieces(attached, table), schema=sql.SQL(""))
        least, most = self.database.read(lambda connection: only_row(connection.execute(statement, {})))
        column = f"the column {attached.vector!r} of {attached.source}"
        if least is None:
            raise InvalidInputError(
                f"{column} holds no vector and does not say how many dimensions it has; declare it, as in "
                f"ALTER TABLE {attached.source} ALTER COLUMN {in_quotes(attached.vector)} TYPE vector(384)"
            )
        if least != most:
            raise InvalidInputError(
                f"{column} holds vectors of {least} to {most} dimensions; attach a view of those of one model"
            )
        number: int = least
        return number

    def _check_ids(self, attached: Attachment, table: Table) -> None:
        if table.is_unique:
            return
        statement = _SQL["repeated"].format(**_pieces(attached, table))
        repeated = self.database.read(lambda connection: connection.execute(statement, {}).fetchone())
        if repeated is not None:
            raise InvalidInputError(
                f"{attached.object_id!r} of {attached.source} is {shown(repeated[0])} in several rows; name "
                "a column that tells each row from all others"
            )


def _pieces(attached: Attachment, table: Table) -> dict[str, sql.Composable]:
    return {
        "table": table.identifier,
        "object_id": sql.Identifier(escaped(attached.object_id)),
        "vector": sql.Identifier(escaped(attached.vector)),
        "payload": _payload(attached, table),
    }


def _payload(attached: Attachment, table: Table) -> sql.Composable:
    if attached.document is not None:
        return sql.SQL("CASE jsonb_typeof({0}) WHEN 'object' THEN {0} ELSE '{{}}'::jsonb END").format(
            _value(attached.document, table)
        )
    objects = [
        sql.SQL("jsonb_build_object({})").format(
            sql.SQL(", ").join(
                sql.SQL("{}::text, {}").format(sql.Literal(escaped(name)), _value(name, table))
                for name in some
            )
        )
        for start in range(0, len(attached.payload), ARGUMENTS // 2)
        if (some := attached.payload[start : start + ARGUMENTS // 2])
    ]
    return sql.SQL(" || ").join(objects) if objects else sql.SQL("'{{}}'::jsonb").format()


def _value(name: str, table: Table) -> sql.Composable:
    """Return a column's value; that of ``json`` as ``jsonb``, which does not hold all that is ``json``."""
    column = sql.SQL("t.{}").format(sql.Identifier(escaped(name)))
    if table.columns[name][0] != "json":
        return column
    if not table.has_checks:
        return sql.SQL("{}::jsonb").format(column)
    return sql.SQL("CASE WHEN pg_input_is_valid({0}::text, 'jsonb') THEN {0}::jsonb END").format(column)


def _near(
    collection: Collection,
    attached: Attachment,
    table: Table,
    index: VectorIndex | None,
    matches: sql.Composable,
) -> sql.Composed:
    column = sql.SQL("t.{}").format(sql.Identifier(escaped(attached.vector)))
    D = collection.index.dimensions or 0
    is_half = index is not None and _is_half(attached, table, index)
    ordered = column if index is not None else sql.SQL("{}::vector").format(column)
    if index is not None and index.is_cast:
        ordered = sql.SQL("{}::halfvec({})").format(column, sql.Literal(D))
    half = sql.SQL("::halfvec({})").format(sql.Literal(D)) if is_half else sql.SQL("")
    return _SQL["near"].format(
        **_pieces(attached, table),
        condition=matches,
        ordered=ordered,
        operator=sql.SQL(OPERATORS[collection.index.metric_type]),
        query=sql.SQL("%(query)b::vector{}").format(half),
    )


def _is_half(attached: Attachment, table: Table, index: VectorIndex) -> bool:
    """Return whether an index compares at half precision."""
    return index.is_cast or table.columns[attached.vector][0] == "halfvec"


def _plan(index: VectorIndex | None, limit: int) -> dict[str, str]:
    """Return the settings of the server under which candidates are looked for."""
    if index is None:
        return {"enable_indexscan": "off"}
    if index.method == "ivfflat":
        return {"ivfflat.iterative_scan": "relaxed_order"}
    return {"hnsw.iterative_scan": "strict_order", "hnsw.ef_search": str(min(limit, MOST_CANDIDATES))}


def _read(rows: Sequence[tuple[Any, ...]]) -> list[CatalogueObject]:
    of_size: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows:
        of_size.setdefault(len(row[1]), []).append(row)
    found: dict[str, CatalogueObject] = {}
    for some in of_size.values():
        for (object_id, _, payload, *_), part in zip(some, unpack([row[1] for row in some]), strict=True):
            found.setdefault(object_id, CatalogueObject(object_id, part[None], _as_payload(payload)))
    return [found[object_id] for object_id in dict.fromkeys(row[0] for row in rows)]


def _as_payload(given: Any) -> JSON:
    return given if isinstance(given, dict) else {}


def _can_be(kind: str, object_id: str) -> bool:
    """Return whether an id can be a value of a column, written as the server writes it."""
    if kind == "text":
        return "\x00" not in object_id
    if kind == "uuid":
        return UUID.fullmatch(object_id) is not None
    if NUMBER.fullmatch(object_id) is None:
        return False
    return -LARGEST[kind] <= int(object_id) < LARGEST[kind]


def _needs_no_function(query: Query) -> bool:
    return not isinstance(query, MatchQuery | MatchPhraseQuery)
