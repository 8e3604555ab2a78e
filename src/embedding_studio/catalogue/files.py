"""Catalogues in CSV, TSV, JSON Lines and Parquet files. Axes: N rows · P parts · D dimensions.

Each row is an object. One column names it, others hold its text, and all but the first become its
payload, the text included: a result is shown by it. Where a row brings its vectors, in a column or in
a .npy file beside it, no text is needed.

A file is looked at whole before its first object is given, and read a second time for the objects: what
is wrong is reported before anything is made of it. ``docs/catalogue-files.md`` says how each kind is read.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from embedding_studio.catalogue.cells import ColumnTypes
from embedding_studio.catalogue.reading import OnDuplicate, Reading
from embedding_studio.catalogue.rows import UNDECODABLE, Fault, Faults, Row, Rows, listed, not_decoded
from embedding_studio.catalogue.text import CatalogueText
from embedding_studio.catalogue.vectors import FileVectors, open_matrix
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.limits import MAX_ID_LENGTH
from embedding_studio.domain.objects import JSON, CatalogueObject
from embedding_studio.domain.storable import check_json, check_text
from embedding_studio.errors import InvalidDataError, InvalidVectorsError, counted
from embedding_studio.files import read_again


@dataclass(frozen=True, slots=True)
class _Object:
    """An object's row, or rows.

    Attributes:
        vectors: what each of its rows brings, and where.
    """

    object_id: str
    values: dict[str, Any]
    vectors: list[tuple[Any, str]] = field(default_factory=list)


class CatalogueFile:
    """A file of objects that was looked at whole.

    Args:
        path: ends in .csv, .tsv, .jsonl, .ndjson (these also .gz, .zst) or .parquet, or is a folder of such;
            ``-`` is JSON Lines from standard input.

    Attributes:
        number: of the objects in it.
        notes: what was found that whoever reads it may not expect.

    Raises:
        InvalidDataError: it cannot be used. The message names the first row of each kind of fault, and says
            how many there are.
    """

    def __init__(self, path: str | Path, reading: Reading) -> None:
        self._shown = str(path)
        self._reading = reading
        self._types = ColumnTypes()
        self._vectors = FileVectors()
        self._row_that_counts: dict[str, int] = {}
        self._repeated = 0
        self._list_columns: set[str] = set()
        self.notes: list[str] = []
        with ExitStack() as stack:
            self._rows = Rows(
                stack.enter_context(read_again(path)),
                self._shown,
                named=reading.named,
                is_wanted=reading.is_wanted,
                id_column=reading.id_column,
                vector_column=reading.vector_column,
                separator=reading.separator,
                encoding=reading.encoding,
            )
            self._matrix = None if reading.npy is None else open_matrix(reading.npy)
            self._look()
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy that is kept of standard input."""
        self._closing.close()

    @property
    def number(self) -> int:
        return len(self._row_that_counts)

    @property
    def ids(self) -> AbstractSet[str]:
        return self._row_that_counts.keys()

    @property
    def dimensions(self) -> int | None:
        """D of the vectors that it brings; None: it brings none."""
        return self._vectors.dimensions

    def texts(self) -> Iterator[CatalogueText]:
        """Yield the objects as texts to embed; an empty one is left to whoever indexes."""
        for each in self._objects():
            lines = [_text(each.values.get(column)) for column in self._reading.text_columns]
            text = "\n".join(line for line in lines if line)
            yield CatalogueText(each.object_id, text, self._payload(each.values))

    def objects(self, index: SearchIndexInfo) -> Iterator[CatalogueObject]:
        """Return the objects with the vectors that they bring.

        Raises:
            InvalidVectorsError: they cannot live in a collection of such an index; nothing is yielded.
        """
        self._vectors.check_fit(index)
        return self._with_vectors()

    def payloads(self) -> Iterator[tuple[str, JSON]]:
        """Yield (object_id, payload)."""
        for each in self._objects():
            yield each.object_id, self._payload(each.values)

    def _with_vectors(self) -> Iterator[CatalogueObject]:
        for each in self._objects():
            parts = [self._vectors.parts(given, where) for given, where in each.vectors]
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            yield CatalogueObject(each.object_id, joined, self._payload(each.values))

    def _payload(self, values: Mapping[str, Any]) -> JSON:
        return {column: value for column, value in values.items() if self._reading.is_in_payload(column)}

    def _look(self) -> None:
        """Look at every row.

        Raises:
            InvalidDataError: something cannot be used.
        """
        reading, faults, number = self._reading, Faults(self._shown), 0
        for number, row in enumerate(self._rows, start=1):
            if isinstance(row, Fault):
                faults.add(row)
                continue
            for fault in self._faults(row, number):
                faults.add(fault)
        self._refuse_columns(number)
        if self._matrix is not None and len(self._matrix) != number:
            raise InvalidDataError(
                f"{reading.npy}: {counted(len(self._matrix), 'vector')} for the "
                f"{counted(number, 'row')} of {self._shown}; each row needs its own"
            )
        faults.raise_first()
        if reading.on_duplicate is OnDuplicate.MERGE and self._repeated:
            for _ in self._merged():
                """It finds the columns of lists."""
        self._note()

    def _refuse_columns(self, number: int) -> None:
        reading, there = self._reading, self._rows.columns
        if not number:
            raise InvalidDataError(f"{self._shown}: it is empty; there is no row in it")
        named = {*reading.named, *(reading.payload_columns or ()), *reading.drop_columns}
        if there and (absent := sorted(named - there.keys())):
            raise InvalidDataError(f"{self._shown}: no column {absent[0]!r}; there are {listed(there)}")
        for column, why in self._rows.left_out.items():
            if column in reading.named:
                raise InvalidDataError(f"{self._shown}, column {column!r}: {why}")

    def _note(self) -> None:
        for column, why in self._rows.left_out.items():
            self.notes.append(f"the column {column!r} is left out: {why}")
        self.notes += [
            f"{place}: a value in quotes goes on over lines that would be rows of their own; if it should "
            "not, its quotes are part of it: write each twice, and one more around the value"
            for place in self._rows.swallowing()
        ]
        for column, why in self._types.exceptions.items():
            if column not in self._reading.named:
                self.notes.append(f"the column {column!r} is of texts, {why}")
        if self._repeated:
            self.notes.append(
                f"{counted(self._repeated, 'row has', 'rows have')} the id of another; of an "
                "object's rows "
                + {
                    OnDuplicate.FIRST: "the first counts",
                    OnDuplicate.LAST: "the last counts",
                    OnDuplicate.MERGE: f"one is made, with lists in {listed(sorted(self._list_columns))}",
                }[self._reading.on_duplicate]
            )

    def _faults(self, row: Row, number: int) -> Iterator[Fault]:
        """Yield what is wrong with a row, and keep what must be known of all."""
        place, values = row
        reading = self._reading
        try:
            object_id = _object_id(values.get(reading.id_column))
        except ValueError as error:
            yield Fault("id", f"{place}, column {reading.id_column!r}: {error}")
        else:
            yield from self._faults_of_id(object_id, place, number)
        for column, value in values.items():
            if column == reading.vector_column:
                continue
            if isinstance(value, str) and self._rows.is_table:
                self._types.see(column, value, place)
            try:
                self._check_storable(column, value)
                if column in reading.text_columns:
                    _text(value)
            except ValueError as error:
                yield Fault("value", f"{place}, column {column!r}: {error}")
        for given, where in self._brought(place, values, number):
            try:
                self._vectors.see(given, where)
            except (InvalidDataError, InvalidVectorsError) as error:
                yield Fault("vector", str(error).removeprefix(f"{self._shown}, "))

    def _check_storable(self, column: str, value: Any) -> None:
        """Return if a value is one that PostgreSQL keeps.

        Raises:
            ValueError: it is not.
        """
        if not isinstance(value, str):
            check_json({column: value})
        elif self._rows.is_table and UNDECODABLE.search(value):
            raise ValueError(not_decoded(value, self._reading.encoding))
        else:
            check_text(value)

    def _faults_of_id(self, object_id: str, place: str, number: int) -> Iterator[Fault]:
        which = self._reading.on_duplicate
        is_first = object_id not in self._row_that_counts
        self._repeated += not is_first
        if is_first or which in (OnDuplicate.LAST, OnDuplicate.MERGE):
            self._row_that_counts[object_id] = number
        if is_first or which is not OnDuplicate.REFUSE:
            return
        earlier = "another row"
        if self._repeated == 1:  # only the first is reported
            first = next(islice(self._rows, self._row_that_counts[object_id] - 1, None))
            earlier = first[0] if isinstance(first, tuple) else earlier
        yield Fault(
            "id that is another row's",
            f"{place}: the id {object_id!r} stands in {earlier} too; it names one object "
            "(--on-duplicate says which row counts)",
        )

    def _brought(self, place: str, values: Mapping[str, Any], number: int) -> list[tuple[Any, str]]:
        """Return the vectors that a row brings, and where they stand."""
        reading = self._reading
        if self._matrix is not None:
            is_there = number <= len(self._matrix)
            return [(self._matrix[number - 1], f"{reading.npy}, row {number}")] if is_there else []
        if reading.vector_column is None:
            return []
        where = f"{self._shown}, {place}, column {reading.vector_column!r}"
        return [(values.get(reading.vector_column), where)]

    def _objects(self) -> Iterator[_Object]:
        if self._reading.on_duplicate is not OnDuplicate.MERGE or not self._repeated:
            for number, each in self._typed_rows():
                if self._row_that_counts.get(each.object_id) == number:
                    yield each
            return
        for each in self._merged():
            values = {
                column: values if column in self._list_columns else next(iter(values), None)
                for column, values in each.values.items()
            }
            yield _Object(each.object_id, values, each.vectors)

    def _merged(self) -> Iterator[_Object]:
        """Yield each object with lists of the values that its rows have, once its last row is read."""
        unfinished: dict[str, _Object] = {}
        for number, row in self._typed_rows():
            made = unfinished.setdefault(row.object_id, _Object(row.object_id, {}))
            for column, value in row.values.items():
                kept = made.values.setdefault(column, [])
                if isinstance(value, list):  # what it holds twice, or empty, it holds on purpose
                    kept += [each for each in value if not _holds(kept, each)]
                elif value not in (None, "") and not _holds(kept, value):
                    kept.append(value)
                if len(kept) > 1 or isinstance(value, list):
                    self._list_columns.add(column)
            made.vectors.extend(row.vectors)
            if self._row_that_counts.get(row.object_id) == number:
                yield unfinished.pop(row.object_id)

    def _typed_rows(self) -> Iterator[tuple[int, _Object]]:
        """Yield each row, with its number, as an object of its own.

        Raises:
            InvalidDataError: it is not what it was when the file was looked at.
        """
        reading = self._reading
        for number, row in enumerate(self._rows, start=1):
            if isinstance(row, Fault):
                self._changed(row.said)
            place, values = row
            try:
                object_id = _object_id(values.get(reading.id_column))
            except ValueError as error:
                self._changed(f"{place}: {error}")
            vectors = self._brought(place, values, number)
            typed = {
                column: self._typed(column, value)
                for column, value in values.items()
                if column != reading.vector_column
            }
            yield number, _Object(object_id, typed, vectors)

    def _changed(self, said: str) -> NoReturn:
        raise InvalidDataError(f"{self._shown}, {said}; the file changed while it was read")

    def _typed(self, column: str, value: Any) -> Any:
        if not isinstance(value, str) or not self._rows.is_table or column == self._reading.id_column:
            return value
        typed = self._types.read(column, value)
        if column not in self._reading.text_columns or _is_list_of_words(typed):
            return typed
        return value


def _holds(kept: list[Any], value: Any) -> bool:
    """Return whether a value is among others; true is not 1."""
    return any(each == value and isinstance(each, bool) == isinstance(value, bool) for each in kept)


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str | int | float | None) for each in value)


def _object_id(value: Any) -> str:
    if (
        isinstance(value, float) and value.is_integer()
    ):  # how pandas writes whole numbers where some are missing
        value = int(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("there is no id")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"an id is a text or a number; there is {value!r}")  # noqa: TRY004, as of a wrong text
    given = str(value)
    if (length := len(given.encode("utf-8", "surrogatepass"))) > MAX_ID_LENGTH:
        raise ValueError(f"the id {given[:40]!r}... has {length} bytes; at most {MAX_ID_LENGTH} fit")
    return given


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value.strip()
        case bool() | dict():
            raise ValueError(f"{value!r} is no text to embed; name a column that holds text")
        case list():
            return ", ".join(map(_text, value))
    return str(value)
