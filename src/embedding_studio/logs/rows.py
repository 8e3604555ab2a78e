"""Rows of a log file; one that cannot be read is reported by its line, and the next one is read.

NDJSON, of which a line may hold a list of rows, or by its name CSV, TSV or Parquet; packed by gzip or
Zstandard; ``-`` is NDJSON on standard input. A value of CSV holds no line break, so that a quote too many
costs its own line and no other.
"""

import codecs
import csv
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson

from embedding_studio.errors import InvalidDataError
from embedding_studio.files import STDIN, readable, unpacked
from embedding_studio.logs.entries import Row, Unusable
from embedding_studio.parquet import BATCH_ROWS, NotJsonError, json_columns, parquet_file

BEGIN_OF_LIST = re.compile(rb"\[(.*,)?", re.DOTALL)
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
TABLES = (".csv", ".tsv")
DELIMITERS = ",;\t|"
QUOTING = ",;"
"""Whoever writes these puts values in quotes; of others some programs do not."""
NULL = r"\N"
"""How databases write what is missing where tabs separate columns."""

NumberedRow = tuple[int, Row | Unusable]
"""Where it stands, from 1 on: a line, or a row of Parquet."""


def read_rows(path: str | Path) -> Iterator[NumberedRow]:
    """Yield the rows of a file as they are read, and for each that is none the reason.

    Raises:
        InvalidDataError: there is no such file, it is no log at all, or a package that reads it is missing.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in {".gz", ".zst"}]
    kind = suffixes[-1] if suffixes and str(path) != STDIN else ""
    if kind == ".parquet":
        with readable(Path(path)):
            yield from _parquet_rows(Path(path))
        return
    with unpacked(path) as file:
        lines = _lines(file, path)
        yield from _table_rows(lines, path) if kind in TABLES else _json_rows(lines, path)


def _lines(file: IO[bytes], path: str | Path) -> Iterator[tuple[int, bytes | Unusable]]:
    """Yield lines that hold something, for as long as they can be unpacked."""
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith(UTF_16):
                raise InvalidDataError(f"{path}: it is UTF-16, and UTF-8 is needed; convert it and try again")
            if line.strip():
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (OSError, EOFError, zlib.error):
        yield number + 1, Unusable("the rest of the file, which cannot be unpacked")


def _json_rows(lines: Iterator[tuple[int, bytes | Unusable]], path: str | Path) -> Iterator[NumberedRow]:
    for number, line in lines:
        if isinstance(line, Unusable):
            yield number, line
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            if number == 1 and (line.strip() == b"{" or BEGIN_OF_LIST.fullmatch(line.strip())):
                raise InvalidDataError(
                    f"{path}: it is one JSON value over many lines, and a row a line is needed; "
                    f"`jq -c '.[]'` writes a list so"
                ) from None
            yield number, Unusable("a line that is no JSON")
            continue
        for each in row if isinstance(row, list) else [row]:
            yield number, each if isinstance(each, dict) else Unusable("a line that is no JSON object")


def _table_rows(lines: Iterator[tuple[int, bytes | Unusable]], path: str | Path) -> Iterator[NumberedRow]:
    header: list[str] | None = None
    delimiter = ","
    for number, line in lines:
        if isinstance(line, Unusable):
            yield number, line
            continue
        reason = "a line that has not a value for each column"
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            text, reason = "", "a line that is not UTF-8"
        if header is None:
            delimiter = max(DELIMITERS, key=text.count)
        values = _values(text, delimiter, None if header is None else len(header))
        if header is None:
            if not values or len(set(values)) < len(values):
                raise InvalidDataError(f"{path}, line {number}: column names, each once, are needed")
            header = [name.strip() for name in values]
        elif len(values) != len(header):
            yield number, Unusable(reason)
        else:
            yield number, dict(zip(header, values, strict=True))


def _values(text: str, delimiter: str, width: int | None) -> list[str]:
    """Return the values of a line; where quotes plainly enclose none, they are part of them."""
    try:
        values = values_of(text, delimiter)
    except csv.Error:
        values = []
    if len(values) != width and delimiter not in QUOTING and text.count(delimiter) + 1 == width:
        values = text.split(delimiter)
    return ["" if value == NULL else value for value in values] if delimiter == "\t" else values


def values_of(text: str, delimiter: str) -> list[str]:
    """Return the values of a line of CSV.

    Raises:
        csv.Error: it is none.
    """
    if text and '"' not in text and "\r" not in text and len(text) <= csv.field_size_limit():
        return text.split(delimiter)  # as the reader does, in a sixth of its time
    [values] = csv.reader([text], delimiter=delimiter, strict=True)
    return values


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    """Yield the rows without what has no place in JSON: no log says anything by it."""
    number = 0
    unusable: dict[str, NotJsonError] = {}
    with parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            columns = json_columns(batch, batch.schema.names, unusable)
            for n in range(batch.num_rows):
                number += 1
                yield number, {name: values[n] for name, values in columns.items()}
