"""Catalogues in CSV, JSON Lines and Parquet files, read row by row.

Each row is an object. One column names it, others hold its text, and all but the first become its
payload, the text included: a result is shown by it. Payload keeps JSON's types:

- CSV: a value that is a JSON number becomes that number (``007`` is none and stays text), an empty
  one becomes null.
- JSON Lines: as it stands.
- Parquet: times become ISO 8601 text, decimals become numbers, a NaN (how pandas writes what is
  missing) becomes null.

A row whose text is empty is read like any other: whoever indexes decides what to do with it.
"""

import csv
import datetime as dt
import decimal
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from embedding_studio.catalogue.text import CatalogueText
from embedding_studio.domain.sessions import MAX_ID_LENGTH
from embedding_studio.errors import InvalidDataError

STDIN = "-"

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

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
    seen: dict[str, str] = {}
    for place, row, json_row in _rows(path):
        for column in (id_column, *text_columns):
            if column not in row:
                raise InvalidDataError(f"{path}, {place}: no column {column!r}; there are {_listed(row)}")
        object_id = _object_id(row[id_column], f"{path}, {place}, column {id_column!r}")
        if object_id in seen:
            raise InvalidDataError(
                f"{path}, {place}: the id {object_id!r} stands in {seen[object_id]} too; it names one object"
            )
        seen[object_id] = place
        lines = [_text(row[column], f"{path}, {place}, column {column!r}") for column in text_columns]
        payload = {column: value for column, value in json_row.items() if column != id_column}
        yield CatalogueText(object_id, "\n".join(line for line in lines if line), payload)


def _rows(path: str | Path) -> Iterator[Row]:
    if str(path) == STDIN:
        yield from _json_rows(sys.stdin.buffer, path)
        return
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    with _readable(path):
        if kind == ".parquet" and not packed:
            yield from _parquet_rows(path)
            return
        if kind not in {".csv", ".tsv", ".jsonl", ".ndjson"}:
            raise InvalidDataError(
                f"{path}: not a kind of file that is read; these are .csv, .tsv, .jsonl, .ndjson "
                "(each also with .gz) and .parquet"
            )
        with cast("IO[bytes]", gzip.open(path) if packed else path.open("rb")) as file:
            if kind in {".csv", ".tsv"}:
                yield from _csv_rows(file, path, "," if kind == ".csv" else "\t")
            else:
                yield from _json_rows(file, path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Give what a file can do wrong this package's words."""
    try:
        yield
    except FileNotFoundError as error:
        raise InvalidDataError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise InvalidDataError(
            f"{path}: not UTF-8 text ({error.reason}); convert it and try again"
        ) from error
    except (EOFError, zlib.error, OSError) as error:
        raise InvalidDataError(f"{path}: cannot be read: {error}") from error


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


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InvalidDataError(
            f"{path}: Parquet needs a package that is missing; pip install 'embedding-studio[parquet]'"
        ) from error
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    place = f"row {number}"
                    json_row = {
                        column: _from_parquet(value, f"{path}, {place}, column {column!r}")
                        for column, value in row.items()
                    }
                    yield place, json_row, json_row
    except pa.ArrowException as error:
        raise InvalidDataError(f"{path}: cannot be read as Parquet: {error}") from error


def _from_parquet(value: Any, where: str) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float() | decimal.Decimal():
            return float(value) if math.isfinite(value) else None
        case dt.date() | dt.time():
            return value.isoformat()
        case dict():
            return {str(key): _from_parquet(element, where) for key, element in value.items()}
        case list():
            return [_from_parquet(element, where) for element in value]
    raise InvalidDataError(f"{where}: a {type(value).__name__} has no place in JSON; leave the column out")


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
