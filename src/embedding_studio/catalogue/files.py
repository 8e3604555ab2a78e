"""Catalogues in CSV, JSON Lines and Parquet files, read row by row. Axes: N rows · P parts · D dimensions.

Each row is an object. One column names it, others hold its text, and all but the first become its
payload, the text included: a result is shown by it. Where a row brings its vectors, in a column or in
a .npy file beside it, no text is needed. Payload keeps JSON's types:

- CSV: a value that is a JSON number becomes that number (``007`` is none and stays text), an empty
  one becomes null.
- JSON Lines: as it stands.
- Parquet: times become ISO 8601 text, decimals become numbers, a NaN (how pandas writes what is
  missing) becomes null.

A row whose text is empty is read like any other: whoever indexes decides what to do with it. A vector
is a list of numbers, in CSV written as JSON; several parts are a list of such lists.
"""

import csv
import gzip
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from embedding_studio.catalogue.text import CatalogueText
from embedding_studio.domain.index import MAX_DIMENSIONS, SearchIndexInfo
from embedding_studio.domain.limits import MAX_ID_LENGTH
from embedding_studio.domain.objects import JSON, CatalogueObject
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import InvalidDataError
from embedding_studio.files import STDIN, from_parquet, parquet_file, readable

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

Row = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""Where a row stands, for errors (``line 7``); its values by column as written; the same as JSON."""


def read_catalogue(
    path: str | Path, *, id_column: str, text_columns: Sequence[str]
) -> Iterator[CatalogueText]:
    """Yield the rows of a catalogue file as they are read.

    Args:
        path: ends in .csv, .tsv, .jsonl, .ndjson (these also .gz) or .parquet; ``-`` is JSON Lines
            from standard input.
        id_column: text or whole numbers, each once.
        text_columns: at least one; their values stand in the text one a line. A list's elements
            are joined by commas; null is empty.

    Raises:
        InvalidDataError: the file, a row or a value cannot be used; the message says which.
    """
    if not text_columns:
        raise InvalidDataError(f"{path}: no text column is named; name at least one to embed")
    for object_id, place, row, payload in _named_rows(path, id_column, text_columns):
        lines = [_text(row[column], f"{path}, {place}, column {column!r}") for column in text_columns]
        yield CatalogueText(object_id, "\n".join(line for line in lines if line), payload)


def read_vectors(
    path: str | Path,
    *,
    index: SearchIndexInfo,
    id_column: str,
    vector_column: str | None = None,
    npy: str | Path | None = None,
) -> Iterator[CatalogueObject]:
    """Yield the rows of a catalogue file as objects that bring their vectors, as they are read.

    Args:
        path, id_column: as for ``read_catalogue``; with ``npy`` not standard input.
        index: what the vectors must fit; where its size is not known, the first row tells it.
        vector_column: holds each row's vector, or a list of those of its parts; no part of the payload.
        npy: a file of numpy, [N, D] float16, float32 or float64, in the order of the rows; instead of
            ``vector_column``.

    Raises:
        InvalidDataError: a file, a row or a value cannot be used; the message says which.
        InvalidVectorsError: a vector does not fit the others, is not finite, or is zero under cosine.
    """
    matrix = None if npy is None else _matrix(npy, path)
    columns = [] if vector_column is None else [vector_column]
    for n, (object_id, place, row, payload) in enumerate(
        _named_rows(path, id_column, columns, vector_column)
    ):
        if matrix is not None:
            where = f"{npy}, row {n + 1}"
            given = matrix[n]
        else:
            assert vector_column is not None  # noqa: S101, one of the two is given
            where = f"{path}, {place}, column {vector_column!r}"
            given = _vectors(row[vector_column], where)
        try:
            parts = check_vectors(index, given, where)
        except OverflowError as error:
            raise InvalidDataError(f"{where}: a number is larger than a float can be") from error
        if index.dimensions is None:
            if (D := parts.shape[1]) > MAX_DIMENSIONS:
                raise InvalidDataError(f"{where}: {D} dimensions; at most {MAX_DIMENSIONS} can be indexed")
            index = index.model_copy(update={"dimensions": D})
        yield CatalogueObject(object_id, parts, payload)


def read_payloads(path: str | Path, *, id_column: str) -> Iterator[tuple[str, JSON]]:
    """Yield (object_id, payload) of the rows of a catalogue file, as ``read_catalogue`` reads them."""
    for object_id, _, _, payload in _named_rows(path, id_column, ()):
        yield object_id, payload


def count_rows(path: str | Path) -> int | None:
    """Return N, found without looking at values; None for standard input, which is read but once."""
    if str(path) == STDIN:
        return None
    path = Path(path)
    kind, packed = _kind(path)
    with readable(path):
        if kind == ".parquet":
            with parquet_file(path) as table:
                number: int = table.metadata.num_rows
                return number
        with _unpacked(path, packed=packed) as file:
            if kind in _DELIMITERS:
                return sum(1 for _ in _csv_rows(file, path, _DELIMITERS[kind]))
            return sum(1 for line in file if line.strip())


def _named_rows(
    path: str | Path, id_column: str, columns: Sequence[str], vector_column: str | None = None
) -> Iterator[tuple[str, str, Mapping[str, Any], JSON]]:
    """Yield (object_id, place, row, payload) of each row; ``columns`` must be there, and ids differ."""
    seen: dict[str, str] = {}
    for place, row, json_row in _rows(path, vector_column):
        for column in (id_column, *columns):
            if column not in row:
                raise InvalidDataError(f"{path}, {place}: no column {column!r}; there are {_listed(row)}")
        object_id = _object_id(row[id_column], f"{path}, {place}, column {id_column!r}")
        if object_id in seen:
            raise InvalidDataError(
                f"{path}, {place}: the id {object_id!r} stands in {seen[object_id]} too; it names one object"
            )
        seen[object_id] = place
        payload = {
            column: value for column, value in json_row.items() if column not in (id_column, vector_column)
        }
        yield object_id, place, row, payload


def _rows(path: str | Path, vector_column: str | None) -> Iterator[Row]:
    if str(path) == STDIN:
        yield from _json_rows(sys.stdin.buffer, path)
        return
    path = Path(path)
    kind, packed = _kind(path)
    with readable(path):
        if kind == ".parquet":
            yield from _parquet_rows(path, vector_column)
            return
        with _unpacked(path, packed=packed) as file:
            if kind in _DELIMITERS:
                yield from _csv_rows(file, path, _DELIMITERS[kind])
            else:
                yield from _json_rows(file, path)


def _kind(path: Path) -> tuple[str, bool]:
    """Return what kind of file it is by its name, and whether it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    if kind not in {*_DELIMITERS, ".jsonl", ".ndjson"} and (packed or kind != ".parquet"):
        raise InvalidDataError(
            f"{path}: not a kind of file that is read; these are .csv, .tsv, .jsonl, .ndjson "
            "(each also with .gz) and .parquet"
        )
    return kind, packed


def _unpacked(path: Path, *, packed: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if packed else path.open("rb"))


def _csv_rows(file: IO[bytes], path: str | Path, delimiter: str) -> Iterator[Row]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        place = "line 1"
        try:
            header = next(reader, [])
            if not header or len(set(header)) < len(header):
                raise InvalidDataError(
                    f"{path}, line 1: column names, each once, are needed; there are {_listed(header)}"
                )
            while True:
                place = f"line {reader.line_num + 1}"
                values = next(reader, None)
                if values is None:
                    return
                if not values:  # an empty line is no row
                    continue
                if len(values) != len(header):
                    raise InvalidDataError(
                        f"{path}, {place}: {len(values)} values for {len(header)} columns, {_listed(header)}"
                    )
                row = dict(zip(header, values, strict=True))
                yield place, row, {column: _from_csv(value) for column, value in row.items()}
        except csv.Error as error:
            raise InvalidDataError(f"{path}, {place}: not CSV as it should be: {error}") from error


def _from_csv(value: str) -> str | float | None:
    if not value:
        return None
    if _JSON_NUMBER.fullmatch(value):
        number: float = json.loads(value)
        if math.isfinite(number):
            return number
    return value


def _json_rows(file: Iterable[bytes], path: str | Path) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(
                line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_refuse_constant
            )
        except ValueError as error:
            raise InvalidDataError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InvalidDataError(f"{path}, line {number}: a JSON object is needed; there is {line[:80]!r}")
        yield f"line {number}", row, row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; write null where a number is missing")


def _parquet_rows(path: Path, vector_column: str | None) -> Iterator[Row]:
    with parquet_file(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            vectors = None
            if vector_column in batch.schema.names:
                vectors = batch.column(vector_column)
                batch = batch.drop_columns([vector_column])  # noqa: PLW2901, the rest of it
            for n, row in enumerate(batch.to_pylist()):
                number += 1
                place = f"row {number}"
                json_row = {
                    column: from_parquet(value, f"{path}, {place}, column {column!r}")
                    for column, value in row.items()
                }
                raw = {} if vectors is None else {vector_column: _from_arrow(vectors[n])}
                yield place, json_row | raw, json_row


def _from_arrow(value: Any) -> Any:
    """Return a list of numbers as an array, which is many times faster than one by one."""
    import pyarrow as pa

    kind = value.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not value.is_valid or not is_list:
        return value.as_py()
    if pa.types.is_nested(kind.value_type):
        return [_from_arrow(part) for part in value.values]
    return value.values.to_numpy(zero_copy_only=False)


def _vectors(value: Any, where: str) -> list[Any]:
    """Return [P, D], each part a list of numbers or an array."""
    if isinstance(value, str):  # CSV
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except ValueError as error:
            raise InvalidDataError(f"{where}: not a JSON list of numbers: {error}") from error
    has_parts = isinstance(value, list) and value and isinstance(value[0], list | np.ndarray)
    parts = value if has_parts else [value]
    for part in parts:
        if isinstance(part, np.ndarray):
            is_vector = part.dtype.kind in "fiu"
        else:
            is_vector = isinstance(part, list) and set(map(type, part)) <= {int, float}
        if not is_vector:
            raise InvalidDataError(
                f"{where}: a vector is a list of numbers, or several such lists in a list; "
                f"there is {repr(part)[:80]}"
            )
    return parts


def _matrix(npy: str | Path, path: str | Path) -> NDArray[Any]:
    """Return [N, D], left on the disk until it is looked at."""
    with readable(Path(npy)):
        try:
            matrix: NDArray[Any] = np.lib.format.open_memmap(npy, mode="r")
        except ValueError as error:
            raise InvalidDataError(f"{npy}: not a .npy file of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise InvalidDataError(
            f"{npy}: an array [rows, dimensions] of float16, float32 or float64 is needed; there is one of "
            f"{matrix.dtype} with the shape {matrix.shape}"
        )
    number = count_rows(path)
    if number is None:
        raise InvalidDataError(f"{npy}: its rows are those of a file; standard input cannot be counted")
    if len(matrix) != number:
        raise InvalidDataError(
            f"{npy}: {len(matrix)} vectors for the {number} rows of {path}; each row needs its own"
        )
    return matrix


def _object_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InvalidDataError(f"{where}: an id is a text or a whole number; there is {value!r}")
    if (length := len(str(value))) > MAX_ID_LENGTH:
        raise InvalidDataError(
            f"{where}: the id {str(value)[:40]!r}... has {length} characters; at most {MAX_ID_LENGTH} fit"
        )
    return str(value)


def _text(value: Any, where: str) -> str:
    match value:
        case None:
            return ""
        case str():
            return value.strip()
        case bool() | dict():
            raise InvalidDataError(f"{where}: {value!r} is no text to embed; name a column that holds text")
        case list():
            return ", ".join(_text(element, where) for element in value)
    return str(value)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(repr(column) for column in columns) or "none"
