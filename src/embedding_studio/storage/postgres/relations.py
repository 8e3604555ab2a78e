"""What a table that was there before, or a view, is at one moment: its columns, its indexes, its size.

Whether a collection can be attached to it is found out here.
"""

import re
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from embedding_studio.domain.index import MetricType
from embedding_studio.domain.objects import Attachment
from embedding_studio.errors import InvalidInputError
from embedding_studio.storage.postgres.database import Connection, only_row
from embedding_studio.storage.postgres.sql import statements

CHECKS_SINCE = 160_000
"""The version of the server that has ``pg_input_is_valid``."""
ID_TYPES = {"text": "text", "varchar": "text", "uuid": "uuid", "int2": "int2", "int4": "int4", "int8": "int8"}
VECTOR_TYPES = ("vector", "halfvec")
NO_PAYLOAD = ("sparsevec", "bytea", "tsvector", "bit", "varbit")
"""Types of columns, beside vectors, that cannot be filtered or shown."""
LARGEST = {"int2": 2**15, "int4": 2**31, "int8": 2**63}
METRICS = {"cosine": MetricType.COSINE, "ip": MetricType.DOT, "l2": MetricType.EUCLID}
_SQL = statements("tables.sql")


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """An index of the column of vectors.

    Attributes:
        method: ``hnsw`` or ``ivfflat``.
        is_cast: whether it holds the column as ``halfvec``.
    """

    name: str
    method: str
    metric: MetricType
    is_cast: bool


@dataclass(frozen=True, slots=True)
class Table:
    """What a table is at one moment.

    Attributes:
        name: of schema and table, quoted where that is needed.
        columns: name -> type, those of vectors with their number of dimensions (-1: any).
        rows: as far as the server knows; -1: it never looked.
        has_checks: whether the server can say what is no ``jsonb``, as from version 16 on.
    """

    oid: int
    schema: str
    relation: str
    columns: dict[str, tuple[str, int]]
    indexes: tuple[VectorIndex, ...]
    is_unique: bool
    rows: float
    has_checks: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(escaped(self.schema), escaped(self.relation))

    def index(self, metric: MetricType) -> VectorIndex | None:
        """Return the index that finds what is near by a metric, if there is one."""
        return next((each for each in self.indexes if each.metric is metric), None)


def looked_at(connection: Connection, attached: Attachment) -> Table:
    """Return what the table is now.

    Raises:
        InvalidInputError: it cannot be attached; the message says why, and what to do.
    """
    place = f"database {connection.info.dbname!r}"
    try:
        found = connection.execute(_SQL["find"], {"name": attached.source}).fetchone()
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError) as error:
        told = f"{attached.source!r} is no name of a table: {error.diag.message_primary}"
        raise InvalidInputError(told) from None
    if found is None:
        raise InvalidInputError(
            f"there is no table {attached.source!r} in {place}, or none that this user may see; write "
            "schema.table, and in double quotes what has capitals"
        )
    oid, schema, relation, kind, is_readable, rows = found
    if schema == "embedding_studio" or re.fullmatch(r"collection_\d+", schema) or schema.startswith("pg_"):
        raise InvalidInputError(
            f"{schema}.{relation} is not a table of yours; name one that holds your objects"
        )
    if kind not in "rpmvf":
        raise InvalidInputError(f"{attached.source!r} is no table and no view")
    if not is_readable:
        raise InvalidInputError(
            f"the user {connection.info.user!r} may not read {attached.source}; GRANT SELECT ON "
            f"{attached.source} TO {in_quotes(connection.info.user)}"
        )
    columns = _columns(connection, oid, attached)
    given = {"table": oid, "column": attached.object_id}
    (is_unique,) = only_row(connection.execute(_SQL["is_unique"], given))
    indexes = [
        index
        for row in connection.execute(_SQL["indexes"], given).fetchall()
        if (index := _index(attached.vector, *row)) is not None
    ]
    has_checks = connection.info.server_version >= CHECKS_SINCE
    return Table(oid, schema, relation, columns, tuple(indexes), is_unique, rows, has_checks)


def _columns(connection: Connection, table: int, attached: Attachment) -> dict[str, tuple[str, int]]:
    """Return name -> type and size of a table's columns.

    Raises:
        InvalidInputError: those that are named are not there, or of another type than they have to be.
    """
    given = {"table": table}
    columns = {
        name: (kind, size) for name, kind, size in connection.execute(_SQL["columns"], given).fetchall()
    }
    for name in (attached.object_id, attached.vector, *attached.payload, *filter(None, [attached.document])):
        if name not in columns:
            raise InvalidInputError(f"{attached.source} has no column {name!r}; it has {', '.join(columns)}")
    if (kind := columns[attached.object_id][0]) not in ID_TYPES:
        raise InvalidInputError(
            f"the ids of {attached.source} are of the type {kind}, and can be text, varchar, uuid, smallint, "
            f"integer or bigint; attach a view with {in_quotes(attached.object_id)}::text"
        )
    if (kind := columns[attached.vector][0]) not in VECTOR_TYPES:
        raise InvalidInputError(
            f"the column {attached.vector!r} of {attached.source} is of the type {kind}, and vectors are "
            "vector or halfvec"
        )
    if attached.document is not None and (kind := columns[attached.document][0]) not in ("json", "jsonb"):
        raise InvalidInputError(
            f"the column {attached.document!r} of {attached.source} is of the type {kind}; the payload can "
            "be one column of json or jsonb, or several of any type"
        )
    return columns


def _index(column: str, name: str, method: str, operators: str, held: str) -> VectorIndex | None:
    """Return an index if it is of a column, and of a metric that collections have."""
    parts = re.fullmatch(r"(vector|halfvec)_(cosine|ip|l2)_ops", operators)
    names = {column, quoted(column), in_quotes(column)}  # the server also quotes words of SQL, as "values"
    cast = re.fullmatch(r"\(?(.*)::halfvec\(\d+\)\)?", held, re.DOTALL)
    is_cast = cast is not None and cast[1] in names
    if parts is None or not (is_cast or held in names):
        return None
    return VectorIndex(name, method, METRICS[parts[2]], is_cast)


def completed(wanted: Attachment, table: Table) -> Attachment:
    """Return an attachment with the whole name of its table, and the columns that are its payload."""
    payload = wanted.payload
    if not payload and wanted.document is None:
        payload = tuple(
            name
            for name, (kind, _) in table.columns.items()
            if name not in (wanted.object_id, wanted.vector) and kind not in (*VECTOR_TYPES, *NO_PAYLOAD)
        )
    return replace(wanted, source=f"{quoted(table.schema)}.{quoted(table.relation)}", payload=payload)


def quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else in_quotes(name)


def in_quotes(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def escaped(name: str) -> str:
    """Return a name as it stands in a statement with parameters."""
    return name.replace("%", "%%")
