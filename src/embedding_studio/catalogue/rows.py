"""Rows of catalogue files of every kind, each with its place, and a fault for each that cannot be read.

A path is a file, or a folder of parts as Spark and Hive write them: files whose names begin with ``_`` or
``.`` are none, and a folder ``brand=acme`` gives the rows below it one more column.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from embedding_studio.catalogue.delimited import (
    HEAD_LINES,
    NULL,
    QUOTING_SEPARATORS,
    Dialect,
    NotATableError,
    encloses_values,
    find_dialect,
    swallows_rows,
)
from embedding_studio.domain.storable import check_text
from embedding_studio.errors import InvalidDataError, counted, shown
from embedding_studio.files import STDIN, readable, unpacked
from embedding_studio.parquet import BATCH_ROWS, NotJsonError, json_columns, parquet_file

SEPARATOR_OF = {".csv": ",", ".tsv": "\t"}
KINDS = {*SEPARATOR_OF, ".jsonl", ".ndjson", ".json", ".parquet"}
PACKED = {".gz", ".zst"}

UNDECODABLE = re.compile("[\udc80-\udcff]")
"""How ``surrogateescape`` tells a byte that is none of the encoding."""

MOST_DIGITS = 308
"""Of a whole number: no float is larger."""

Row = tuple[str, dict[str, Any]]
"""Where it stands, for errors (``line 7``); its values by column, those of a table as texts."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row cannot be used; those of one kind are counted."""

    kind: str
    said: str


class Faults:
    """Faults by kind, in the order in which the first of each kind was found."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._first: dict[str, str] = {}
        self._number: Counter[str] = Counter()

    def add(self, fault: Fault) -> None:
        self._first.setdefault(fault.kind, fault.said)
        self._number[fault.kind] += 1

    def raise_first(self) -> None:
        """Return if there is none.

        Raises:
            InvalidDataError: it names the first of each kind, and says how many more there are.
        """
        told = [
            said + (f" (and {self._number[kind] - 1} more so)" if self._number[kind] > 1 else "")
            for kind, said in self._first.items()
        ]
        if told:
            raise InvalidDataError(f"{self._shown}, {'; '.join(told)}")


@dataclass(frozen=True, slots=True)
class Part:
    """A file of rows.

    Attributes:
        shown: how errors call it.
        kind: as in ``KINDS``.
        before: stands before the places of its rows.
        columns: what the names of its folders say.
    """

    path: Path
    shown: str
    kind: str
    before: str = ""
    columns: dict[str, str | None] = field(default_factory=dict)


class Rows:
    """The rows of a catalogue file, read again whenever they are iterated.

    Args:
        path: where it is read.
        shown: how errors call it; ``-`` is JSON Lines.
        named: columns that a table must hold.
        is_wanted: whether a column is to be read.
        vector_column: of it Parquet gives arrays.
        id_column: of it Parquet gives decimals with all their digits.
        separator: of a table's columns; None: it is found.
        encoding: None: UTF-8.

    Attributes:
        columns: those seen so far.
        left_out: why columns are not read, and where the first value is that gave the reason.
    """

    def __init__(
        self,
        path: Path,
        shown: str,
        *,
        named: AbstractSet[str],
        is_wanted: Callable[[str], bool],
        id_column: str,
        vector_column: str | None = None,
        separator: str | None = None,
        encoding: str | None = None,
    ) -> None:
        self._shown = shown
        self._named = named
        self._is_wanted = is_wanted
        self._id_column = id_column
        self._vector_column = vector_column
        self._separator = separator
        self._encoding = encoding
        self._parts = _parts(path, shown)
        self._dialects: dict[Path, Dialect] = {}
        self._unusable: dict[str, NotJsonError] = {}
        self._over_lines: dict[Path, str] = {}
        self.columns: dict[str, None] = {}
        self.left_out: dict[str, str] = {}

    @property
    def is_table(self) -> bool:
        """Whether values are texts, whose types are still to be found."""
        return self._parts[0].kind in SEPARATOR_OF

    def swallowing(self) -> Iterator[str]:
        """Yield where the first value stands that may have taken in rows by its quotes, of each table."""
        for part in self._parts:
            place = self._over_lines.get(part.path)
            if place is not None and swallows_rows(partial(self._lines, part), self._dialects[part.path]):
                yield place

    def __iter__(self) -> Iterator[Row | Fault]:
        for part in self._parts:
            self.columns.update(dict.fromkeys(part.columns))
            with readable(part.shown):
                if part.kind == ".parquet":
                    rows = self._parquet_rows(part)
                elif part.kind in SEPARATOR_OF:
                    rows = self._table_rows(part)
                else:
                    rows = self._json_rows(part)
                yield from rows if not part.columns else (_with_columns(row, part.columns) for row in rows)

    def _lines(self, part: Part, newline: str = "") -> Iterator[str]:
        with unpacked(part.path) as file:
            try:
                text = io.TextIOWrapper(
                    file, self._encoding or "utf-8-sig", errors="surrogateescape", newline=newline
                )
            except LookupError as error:
                raise InvalidDataError(
                    f"--encoding is {self._encoding!r}, which is no encoding of texts; "
                    "try windows-1252 or utf-16"
                ) from error
            for number, line in enumerate(text):
                if number == 0 and self._encoding is None and (found := _utf_16(line)):
                    raise InvalidDataError(
                        f"{part.shown}, line 1: it is UTF-16, and UTF-8 is read; give --encoding {found}"
                    )
                yield line

    def _table_rows(self, part: Part) -> Iterator[Row | Fault]:
        dialect = self._dialects.get(part.path) or self._dialect(part)
        self._dialects[part.path] = dialect
        null = None if dialect.is_quoted else NULL
        rows = dialect.rows(self._lines(part))
        try:
            _, header = next(rows, (0, []))
            names = self._names(header, f"{part.shown}, line {dialect.skipped + 1}")
            for line, values in rows:
                place = f"{part.before}line {line}"
                if part.path not in self._over_lines and "\n" in "".join(values):
                    self._over_lines[part.path] = place
                if len(values) != len(names):
                    told = f"{counted(len(values), 'value')} for {counted(len(names), 'column')}"
                    yield Fault("width", f"{place}: {told}, {listed(names)}")
                    continue
                yield (
                    place,
                    {
                        name: None if value in ("", null) else value
                        for name, value in zip(names, values, strict=True)
                        if name and self._is_wanted(name)
                    },
                )
        except NotATableError as error:
            raise InvalidDataError(
                f"{part.shown}, line {error.line}: not CSV as it should be: {error}; a quote in a value "
                "stands twice, in a value that stands in quotes"
            ) from error

    def _dialect(self, part: Part) -> Dialect:
        """Return how a table is written.

        Raises:
            InvalidDataError: its header has not the columns that it must have.
        """
        head = list(islice(self._lines(part), HEAD_LINES))
        named = self._named - part.columns.keys()
        dialect, header = find_dialect(head, named, told=self._separator, first=SEPARATOR_OF[part.kind])
        if UNDECODABLE.search("".join(header)):
            raise InvalidDataError(
                f"{part.shown}, line {dialect.skipped + 1}: {not_decoded(''.join(header), self._encoding)}"
            )
        if head and (absent := sorted(named - set(header))):
            raise InvalidDataError(
                f"{part.shown}, line {dialect.skipped + 1}: no column {absent[0]!r}; there are "
                f"{listed(header)} where {dialect.separator!r} separates columns"
                + ("" if self._separator else " (--delimiter names another separator)")
            )
        if dialect.separator in QUOTING_SEPARATORS:
            return dialect
        read = partial(self._lines, part)
        is_quoted = (
            encloses_values(read, dialect) if dialect.separator == "\t" else not swallows_rows(read, dialect)
        )
        return Dialect(dialect.separator, is_quoted, dialect.skipped)

    def _names(self, header: list[str], where: str) -> list[str]:
        """Return names of columns, with those unnamed empty."""
        names = [name.strip() for name in header]
        for name in names:
            if (why := _why_no_name(name)) is not None:
                raise InvalidDataError(f"{where}: a name of a column that cannot be kept: {why}")
        self._refuse_twins(names, where)
        for number, name in enumerate(names, start=1):
            if name:
                self.columns[name] = None
            else:
                self.left_out[f"number {number}"] = "it has no name"
        return names

    def _refuse_twins(self, names: list[str], where: str) -> None:
        twins = [
            name for name, times in Counter(names).items() if times > 1 and name and self._is_wanted(name)
        ]
        if twins:
            raise InvalidDataError(
                f"{where}: more than one column is named {listed(twins)}; rename all but one, "
                "or leave them out by --drop-column"
            )

    def _json_rows(self, part: Part) -> Iterator[Row | Fault]:
        begun = False
        for number, line in enumerate(self._lines(part, newline="\n"), start=1):
            if not line.strip():
                continue
            place = f"{part.before}line {number}"
            row = _json_row(line, place, self._encoding)
            if isinstance(row, Fault) and not begun and (line.strip() == "{" or line.lstrip()[:1] == "["):
                raise InvalidDataError(
                    f"{part.shown}, line {number}: it is one JSON value, and an object a line is needed; "
                    "`jq -c '.[]'` writes a list so"
                )
            begun = True
            if isinstance(row, Fault):
                yield row
                continue
            for name in [name for name in row if name not in self.columns]:
                self.columns[name] = None
                if (why := _why_no_name(name)) is not None:
                    yield Fault("name", f"{place}: a key that cannot be kept: {why}")
            yield place, {name: value for name, value in row.items() if self._is_wanted(name)}

    def _parquet_rows(self, part: Part) -> Iterator[Row | Fault]:
        with parquet_file(part.path) as file:
            names: list[str] = file.schema_arrow.names
            self._refuse_twins(names, part.shown)
            self.columns.update(dict.fromkeys(names))
            wanted = [name for name in names if self._is_wanted(name)]
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                columns = json_columns(
                    batch,
                    set(wanted) - {self._vector_column},
                    self._unusable,
                    id_column=self._id_column,
                )
                for name in self._unusable.keys() - self.left_out.keys():
                    offset = self._unusable[name].offset
                    at = "" if offset is None else f", as in {part.before}row {number + offset + 1}"
                    self.left_out[name] = f"it {self._unusable[name]}{at}"
                if self._vector_column in wanted:
                    vectors = batch.column(batch.schema.names.index(self._vector_column))
                    columns[self._vector_column] = [_from_arrow(vector) for vector in vectors]
                for n in range(batch.num_rows):
                    number += 1
                    yield f"{part.before}row {number}", {name: values[n] for name, values in columns.items()}


def _with_columns(row: Row | Fault, columns: dict[str, str | None]) -> Row | Fault:
    """Return a row with what the names of its folders say."""
    if isinstance(row, Fault):
        return row
    place, values = row
    for name, said in columns.items():
        if (value := values.get(name)) is not None and str(value) != said:
            return Fault(
                "folder",
                f"{place}: the column {name!r} is {shown(value)} in the row and {shown(said)} by its folder; "
                "leave one out",
            )
    return place, values | columns


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


def _parts(path: Path, shown: str) -> list[Part]:
    if shown == STDIN:
        return [Part(path, shown, ".jsonl")]
    if not path.exists():
        raise InvalidDataError(f"{shown}: there is no such file")
    if not path.is_dir():
        return [Part(path, shown, kind_of(Path(shown)))]
    if (path / "_delta_log").is_dir():
        raise InvalidDataError(
            f"{shown}: it is a table of Delta Lake, in whose folder are also files that are no part of it "
            "any more; write what it holds as Parquet"
        )
    parts = []
    for each in sorted(path.rglob("*")):
        within = each.relative_to(path)
        if not each.is_file() or any(name.startswith(("_", ".")) for name in within.parts):
            continue
        columns = {}
        for name in within.parts[:-1]:
            key, equals, value = name.partition("=")
            if equals:
                columns[unquote(key)] = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        parts.append(Part(each, f"{shown}, {within}", kind_of(each), f"{within}, ", columns))
    kinds = {part.kind for part in parts}
    if len(kinds) != 1:
        raise InvalidDataError(
            f"{shown}: a folder is read whose files are all parts of one kind; there are "
            f"{listed(sorted(kinds))}"
        )
    return parts


def kind_of(path: Path) -> str:
    """Return what kind of file it is by its name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in PACKED:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS:
        raise InvalidDataError(
            f"{path}: not a kind of file that is read; these are .csv, .tsv, .jsonl, .ndjson "
            "(each also with .gz or .zst) and .parquet, and folders of them"
        )
    return kind


def _utf_16(line: str) -> str | None:
    """Return which UTF-16 it is that was read as UTF-8, if it is."""
    if line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        return "utf-16"
    return {0: "utf-16-be", 1: "utf-16-le"}.get(line[:2].find("\0"))


def _json_row(line: str, place: str, encoding: str | None) -> dict[str, Any] | Fault:
    if UNDECODABLE.search(line):
        return Fault("encoding", f"{place}: {not_decoded(line, encoding)}")
    try:
        row = json.loads(
            line, parse_constant=_refuse_constant, parse_int=_whole_number, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        return Fault("JSON", f"{place}: not JSON: {error.msg} at character {error.pos + 1}")
    except ValueError as error:
        return Fault("JSON", f"{place}: not JSON: {error}")
    except RecursionError:
        return Fault("JSON", f"{place}: it is nested too deep")
    if not isinstance(row, dict):
        return Fault("JSON", f"{place}: a JSON object is needed; there is {line[:80].strip()!r}")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; write null where a number is missing")


def _why_no_name(name: str) -> str | None:
    try:
        check_text(name)
    except ValueError as error:
        return str(error)
    return None


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(
            f"a number of {len(digits)} digits; at most {MOST_DIGITS} are kept, so write it as a text"
        )
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        [name, *_] = (name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"more than one key is named {name!r}; keep one")
    return made


def not_decoded(text: str, encoding: str | None) -> str:
    """Return what is wrong with a text that holds a byte which is none of its encoding."""
    found = UNDECODABLE.search(text)
    byte = ord(found[0]) - 0xDC00 if found else 0
    return (
        f"not {encoding or 'UTF-8'} (byte 0x{byte:02x}); say what it is, as in --encoding windows-1252, "
        "or convert it"
    )


def listed(columns: Any) -> str:
    """Return names of columns, the first of many."""
    names = [repr(column) for column in columns]
    if len(names) > 20:
        names[20:] = [f"and {len(names) - 20} more"]
    return ", ".join(names) or "none"
