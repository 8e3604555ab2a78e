"""A table of LanceDB that was there before, as the objects of a collection: read where it lies, not written.

LanceDB is a library: it reads a folder, or a bucket, in this process, and each read sees what was written
there until then. A filter becomes one of SQL (``conditions``). What SQL is not sure to find is left out of
that, and what comes is looked at.

Source: https://lancedb.github.io/lancedb, of version 0.40.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection
from embedding_studio.errors import AttachedUnavailableError, InvalidInputError, InvalidSettingError, shown
from embedding_studio.parquet import NotJsonError, json_values
from embedding_studio.storage.attached.engines import (
    MANY_ROWS,
    PUT_BACK,
    Candidates,
    Examined,
    NotInstalledError,
    Point,
    advice_on_dimensions,
    advice_on_index,
    attachment_of,
    check_dimensions,
    columns_of,
    furthest,
    how_searched,
    no_longer,
    page_of,
    repeated,
)
from embedding_studio.storage.lancedb.columns import Arrow, check_columns, dimensions_of, is_payload
from embedding_studio.storage.lancedb.conditions import condition_of, ids_of, path_of
from embedding_studio.storage.ports import STATEMENT_SECONDS, Vectors

KIND = "lancedb"
SCHEMES = ("lancedb://", "lancedb+")
BUCKETS = ("s3", "gs", "az")
OBJECT_ID = "id"
"""The column of ids where none is named."""
READ_AT_ONCE = 1_000
"""Rows a batch, where all are read."""
DISTANCE = "_distance"
METRICS = {"cosine": MetricType.COSINE, "dot": MetricType.DOT, "l2": MetricType.EUCLID}
_DISTANCE_TYPES = {metric: name for name, metric in METRICS.items()}


def place_of(address: str, setting: str = "ATTACHED_STORES") -> str:
    """Return the folder or bucket of an address, as LanceDB has it.

    >>> place_of("lancedb:///srv/lance"), place_of("lancedb+s3://bucket/lance")
    ('/srv/lance', 's3://bucket/lance')

    Raises:
        InvalidSettingError: it is none; the message says nothing of it, for any part may be a secret.
    """
    try:
        parts = urlsplit(address.strip())
        bucket = parts.scheme.partition("+")[2]
        is_one = address.strip().startswith(SCHEMES) and "@" not in parts.netloc and not parts.query
        is_one &= (
            bool(parts.netloc) and bucket in BUCKETS if bucket else not parts.netloc and parts.path > "/"
        )
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidSettingError(
            f"{setting} is no address of LanceDB: write lancedb:///FOLDER, or lancedb+s3://BUCKET/FOLDER "
            f"(one of {', '.join(BUCKETS)}); the keys of a bucket stand in the variables that its own tools "
            "read, as AWS_ACCESS_KEY_ID"
        )
    return f"{bucket}://{parts.netloc}{parts.path}" if bucket else parts.path


class LanceDB:
    """The engine of all tables in one folder or bucket.

    Args:
        address: ``lancedb:///folder``, or ``lancedb+s3://bucket/folder``.
        name: by which messages name the store.
        statement_seconds: a search may take so long; 0: as long as it likes.

    Raises:
        AttachedUnavailableError: LanceDB is not installed, or there is no such folder.
    """

    def __init__(
        self, address: str, *, name: str | None = None, statement_seconds: float = STATEMENT_SECONDS
    ) -> None:
        self._name = name
        self._place = place_of(address)
        self._timeout = timedelta(seconds=statement_seconds) if statement_seconds else None
        self._tables: dict[str, Any] = {}
        limits = {}
        if self._place.startswith("/"):
            if not Path(self._place).is_dir():  # LanceDB would make it
                raise AttachedUnavailableError(
                    f"{self._named()} is no folder that is there; write the one in which the tables lie, "
                    "NAME.lance each"
                )
        elif self._timeout:
            seconds = math.ceil(statement_seconds)
            limits = {"timeout": f"{seconds}s", "client_retry_timeout": f"{seconds}"}
        try:
            import lancedb
        except ImportError as error:
            raise NotInstalledError(self._named(), "lancedb") from error
        with self._asking():
            self._database = lancedb.connect(
                self._place,
                read_consistency_interval=timedelta(0),  # else what another process writes is never seen
                storage_options=limits,
            )

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        attached = attachment_of(collection)
        table = self._table(attached)
        with self._asking():
            literals = ids_of(table.schema.field(attached.object_id).type, object_ids)
        if not literals:
            return []
        where = f"{path_of([attached.object_id])} IN ({', '.join(literals)})"
        with self._asking():
            rows = table.search().where(where).select(columns_of(attached)).limit(None)
            return _objects(attached, rows.to_arrow(timeout=self._timeout))

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None,
        limit: int,
        filter: PayloadFilter | None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        """Return as ``Engine.scroll``; each page reads the ids of all, for LanceDB has another order."""
        return page_of(
            self, collection, partial(self._ids_of, attachment_of(collection), filter), after, limit
        )

    def count(self, collection: Collection) -> int:
        attached = attachment_of(collection)
        table = self._table(attached)
        with self._asking():
            number: int = table.count_rows(
                f"{path_of([attached.object_id])} IS NOT NULL AND {path_of([attached.vector])} IS NOT NULL"
            )
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
        attached = attachment_of(collection)
        table = self._table(attached)
        with self._asking():
            condition = condition_of(attached, table.schema, filter)
            rows = table.search(query, vector_column_name=attached.vector)
            rows = rows.distance_type(_DISTANCE_TYPES[collection.index.metric_type]).limit(limit)
            if collection.filled is not None:  # whose payloads are known here
                attached = replace(attached, document=None)
            rows = rows.select([*columns_of(attached), DISTANCE])
            if condition is not None:
                rows = rows.where(condition, prefilter=True)
            if is_exact:
                rows = rows.bypass_vector_index()
            rows = rows.to_arrow(timeout=self._timeout)
            objects = _objects(attached, rows)
        if len(rows) < limit and not is_exact:  # an index may give up before it has found all that match
            return self.near(collection, query, limit, filter=filter, is_exact=True)
        return Candidates(objects, math.inf if len(rows) < limit else furthest(collection, query, objects))

    def examined(self, collection: Collection) -> Examined:
        attached = attachment_of(collection)
        metric = collection.index.metric_type
        try:
            _, dimensions = self._looked_at(attached)
            indexes = self._indexes(attached)
        except InvalidInputError as error:
            raise no_longer(collection, error) from error
        advice = advice_on_dimensions(collection, dimensions)
        index = next((name for name, other in indexes.items() if other is metric), None)
        if index is None and (number := self.count(collection)) > MANY_ROWS:
            remedy = (
                f'table.create_index("{attached.vector}", config=lancedb.index.IvfPq('
                f'distance_type="{_DISTANCE_TYPES[metric]}"))'
            )
            advice.append(advice_on_index(metric, number, remedy))
        return Examined(how_searched(attached, index), tuple(advice), is_exact=index is None)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        attached, dimensions = self._looked_at(
            replace(wanted, kind=KIND, object_id=wanted.object_id or OBJECT_ID)
        )
        check_dimensions(f"the column {attached.vector!r} of {attached.source!r}", dimensions)
        known = set(self._indexes(attached).values())
        if metric is None:
            metric = known.pop() if len(known) == 1 else MetricType.COSINE
        elif known and metric not in known:
            raise InvalidInputError(
                f"the index of {attached.vector!r} of {attached.source!r} compares by "
                f"{', '.join(each.value for each in known)}, and not by {metric.value}; attach by that, or "
                "make another"
            )
        if (twice := repeated(self._ids_of(attached, None))) is not None:
            raise InvalidInputError(
                f"{attached.object_id!r} is {shown(twice)} in several rows of {attached.source!r}; name a "
                "column that tells each row from all others"
            )
        return attached, SearchIndexInfo(dimensions=dimensions, metric_type=metric)

    def place(self, name: str) -> Attachment:
        return Attachment(KIND, name, object_id=OBJECT_ID, vector="vector", document="payload")

    def make(self, collection: Collection) -> bool:
        source = attachment_of(collection).source
        with self._asking():
            if source in self._database.list_tables(limit=MANY_ROWS).tables:
                return False
            self._database.create_table(source, _rows(collection, []))
        self._tables.pop(source, None)
        return True

    def put(self, collection: Collection, points: Sequence[Point]) -> None:
        table = self._table(attachment_of(collection))
        with self._asking():
            writing = table.merge_insert(OBJECT_ID).when_matched_update_all().when_not_matched_insert_all()
            writing.execute(_rows(collection, points))

    def remove(self, collection: Collection, numbers: Sequence[int]) -> None:
        table = self._table(attachment_of(collection))
        with self._asking():
            table.delete(f"{OBJECT_ID} IN ({', '.join(map(str, numbers))})")

    def numbers(self, collection: Collection) -> Iterator[int]:
        return map(int, self._ids_of(attachment_of(collection), None))

    def drop(self, collection: Collection) -> None:
        source = attachment_of(collection).source
        with self._asking():
            self._database.drop_table(source)
        self._tables.pop(source, None)

    def close(self) -> None:
        self._tables.clear()

    def _table(self, attached: Attachment) -> Any:
        """Return a table, which stays the one of its name whatever becomes of it."""
        if (known := self._tables.get(attached.source)) is None:
            with self._asking():
                known = self._tables[attached.source] = self._database.open_table(attached.source)
        return known

    def _looked_at(self, wanted: Attachment) -> tuple[Attachment, int]:
        """Return what to attach to, with all that was left open, and how many dimensions its vectors have.

        Raises:
            InvalidInputError: it cannot be attached; the message says what to do.
        """
        try:
            table = self._table(wanted)
        except AttachedUnavailableError:
            with self._asking():
                there = list(self._database.list_tables(limit=MANY_ROWS).tables)
            if wanted.source in there:
                raise
            raise InvalidInputError(
                f"{self._named()} has no table {wanted.source!r}; it has {', '.join(there) or 'none'}"
            ) from None
        with self._asking():
            schema = table.schema
        kinds = dict(zip(schema.names, schema.types, strict=True))
        vectors = [name for name, kind in kinds.items() if dimensions_of(kind)]
        if not wanted.vector and len(vectors) != 1:
            raise InvalidInputError(
                f"{wanted.source!r} has {len(vectors) or 'no'} columns of vectors; name one of "
                f"{', '.join(vectors) or 'another table'}"
            )
        wanted = replace(wanted, vector=wanted.vector or vectors[0])
        check_columns(wanted, kinds)
        if not wanted.payload and wanted.document is None:
            others = (name for name, kind in kinds.items() if "`" not in name and is_payload(kind))
            wanted = replace(
                wanted,
                payload=tuple(each for each in others if each not in (wanted.object_id, wanted.vector)),
            )
        return wanted, dimensions_of(kinds[wanted.vector])

    def _indexes(self, attached: Attachment) -> dict[str, MetricType]:
        """Return the metrics of the indexes of the vectors, by name."""
        table = self._table(attached)
        with self._asking():
            named = [each.name for each in table.list_indices() if list(each.columns) == [attached.vector]]
            told = {name: getattr(table.index_stats(name), "distance_type", None) for name in named}
        return {name: METRICS[each] for name, each in told.items() if each in METRICS}

    def _ids_of(self, attached: Attachment, payload_filter: PayloadFilter | None) -> Iterator[str]:
        table = self._table(attached)
        columns = [attached.object_id] if payload_filter is None else columns_of(attached)[:-1]
        with self._asking():
            rows = table.search().select(columns).limit(None)
            if (where := condition_of(attached, table.schema, payload_filter)) is not None:
                rows = rows.where(where)
            for batch in rows.to_batches(READ_AT_ONCE, timeout=self._timeout):
                payloads = _payloads(attached, batch) if payload_filter is not None else []
                for n, object_id in enumerate(batch.column(attached.object_id).to_pylist()):
                    is_meant = payload_filter is None or payload_filter.matches(payloads[n])
                    if object_id is not None and is_meant:
                        yield str(object_id)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            if isinstance(error, AttachedUnavailableError):
                raise
            said = str(error).partition("\n")[0].partition(", /")[0]  # where in its sources it failed follows
            if "timeout" in said:
                raise AttachedUnavailableError(
                    f"{self._named()} did not answer in time; is STATEMENT_SECONDS enough?"
                ) from error
            is_gone = "not found" in said.lower()
            remedy = PUT_BACK if is_gone else ""
            raise AttachedUnavailableError(f"{self._named()} cannot be read: {said}{remedy}") from error

    def _named(self) -> str:
        return f"the store {self._name!r} ({self._place})"


def _rows(collection: Collection, points: Sequence[Point]) -> Arrow:
    """Return points as the rows of a table that we fill."""
    import pyarrow as pa

    D = collection.index.dimensions or 0
    vectors = np.concatenate([each.vector for each in points]) if points else np.empty(0, dtype=np.float32)
    columns = {
        OBJECT_ID: pa.array([each.number for each in points], pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors, pa.float32()), D),
        "payload": pa.array([json.dumps(each.payload) for each in points], pa.string()),
    }
    return pa.table(columns)


def _objects(attached: Attachment, rows: Arrow) -> list[CatalogueObject]:
    """Return the rows that have an id and a vector."""
    import pyarrow.compute as pc

    there = pc.and_(pc.is_valid(rows[attached.object_id]), pc.is_valid(rows[attached.vector]))
    found: list[CatalogueObject] = []
    for batch in rows.filter(there).to_batches():
        vectors = batch.column(attached.vector).flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and no object
            parts = vectors.reshape(len(batch), 1, -1).astype(np.float32)
        ids = map(str, batch.column(attached.object_id).to_pylist())
        found += map(CatalogueObject, ids, parts, _payloads(attached, batch))
    return found


def _payloads(attached: Attachment, batch: Arrow) -> list[JSON]:
    if attached.document is not None:
        return [_document(each) for each in json_values(batch.column(attached.document))]
    columns: dict[str, list[Any]] = {}
    for name in attached.payload:
        with suppress(NotJsonError):  # bytes that are no text; it is not there
            columns[name] = json_values(batch.column(name))
    return [{name: values[n] for name, values in columns.items()} for n in range(len(batch))]


def _document(given: Any) -> JSON:
    try:
        told = json.loads(given, parse_constant=lambda _: None) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}
