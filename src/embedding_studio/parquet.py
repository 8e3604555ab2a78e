"""Parquet files, column by column, as JSON has their values.

A type of Parquet becomes one type of JSON for the whole column: times are ISO 8601 texts with as many digits
as they have, UUIDs and bytes in UTF-8 are texts, decimals and durations (seconds) are numbers, maps are
objects, and NaN (how pandas writes what is missing) is null.
"""

import datetime as dt
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from embedding_studio.errors import InvalidDataError

BATCH_ROWS = 1024

TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""So many in a second, by unit of time."""

Array = Any
"""Of pyarrow, which is loaded where a Parquet file is."""


class NotJsonError(ValueError):
    """A column holds what has no place in JSON; the message ends a sentence that begins with the column.

    Attributes:
        offset: of the first value that is so; None: unknown.
    """

    def __init__(self, said: str, offset: int | None = None) -> None:
        super().__init__(said)
        self.offset = offset


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InvalidDataError(
            f"{path}: Parquet needs a package that is missing; pip install 'embedding-studio[parquet]'"
        ) from error
    try:
        # In nanoseconds, INT96 as Spark writes it would wrap around after 2262: 9999-12-31 becomes 1816.
        with ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
            yield file
    except (pa.ArrowException, OverflowError, MemoryError) as error:
        raise InvalidDataError(
            f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}"
        ) from error


def json_columns(
    batch: Any, names: Collection[str], unusable: dict[str, NotJsonError], *, id_column: str | None = None
) -> dict[str, list[Any]]:
    """Return the values of columns of a batch.

    Args:
        unusable: columns that are left out; those that turn out to be so are added.
        id_column: its decimals become texts with all their digits.
    """
    columns: dict[str, list[Any]] = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if name not in names or name in unusable:
            continue
        try:
            columns[name] = _exact(array) if name == id_column else json_values(array)
        except NotJsonError as error:
            unusable[name] = error
    return columns


def json_values(array: Array) -> list[Any]:
    """Return an array of Arrow as JSON has its values.

    Raises:
        NotJsonError: a value has no place there.
    """
    for is_kind, converted in _conversions():
        if is_kind(array.type):
            return converted(array)
    raise NotJsonError(f"holds {array.type}, which has no place in JSON")


@cache
def _conversions() -> list[tuple[Callable[[Any], bool], Callable[[Array], list[Any]]]]:
    import pyarrow as pa

    kinds = pa.types

    def is_any(*names: str) -> Callable[[Any], bool]:
        known = [getattr(kinds, f"is_{name}") for name in names if hasattr(kinds, f"is_{name}")]
        return lambda kind: any(is_kind(kind) for is_kind in known)

    return [
        (lambda kind: isinstance(kind, pa.BaseExtensionType), _extensions),
        (is_any("null", "boolean", "integer"), lambda array: array.to_pylist()),
        (is_any("string", "large_string", "string_view"), _texts),
        (is_any("binary", "large_binary", "binary_view", "fixed_size_binary"), _bytes_as_text),
        (is_any("floating"), _floats),
        (is_any("decimal"), _decimals),
        (is_any("timestamp"), _timestamps),
        (is_any("date"), _dates),
        (is_any("time"), _times),
        (is_any("duration"), _durations),
        (is_any("map"), _maps),
        (is_any("list", "large_list", "fixed_size_list", "list_view", "large_list_view"), _lists),
        (is_any("struct"), _structs),
        (is_any("dictionary"), lambda array: json_values(array.dictionary_decode())),
    ]


def _exact(array: Array) -> list[Any]:
    """Return values that name something: whole numbers and texts as they are, decimals as texts."""
    import pyarrow as pa

    if not pa.types.is_decimal(array.type):
        return json_values(array)
    # 17.00 is how Spark writes an Oracle NUMBER that is 17.
    return [None if value is None else _plain(format(value, "f")) for value in array.to_pylist()]


def _plain(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _extensions(array: Array) -> list[Any]:
    if array.type.extension_name == "arrow.uuid":
        return [None if value is None else str(UUID(bytes=value)) for value in array.storage.to_pylist()]
    return json_values(array.storage)


def _texts(array: Array) -> list[Any]:
    import pyarrow as pa

    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:  # it says that it is UTF-8, and is not
        return _bytes_as_text(array.cast(pa.large_binary()))
    return values


def _bytes_as_text(array: Array) -> list[Any]:
    texts: list[str | None] = []
    for offset, value in enumerate(array.to_pylist()):
        try:
            text = None if value is None else value.decode()
        except UnicodeDecodeError as error:
            raise NotJsonError("holds bytes that are no UTF-8 text", offset) from error
        if text is not None and "\0" in text:
            raise NotJsonError("holds bytes that are no text", offset)
        texts.append(text)
    return texts


def _floats(array: Array) -> list[Any]:
    return [
        float(value) if value is not None and math.isfinite(value) else None for value in array.to_pylist()
    ]


def _decimals(array: Array) -> list[Any]:
    number = int if array.type.scale <= 0 else float
    return [None if value is None else number(value) for value in array.to_pylist()]


def _ticks(array: Array) -> list[int | None]:
    import pyarrow as pa

    if array.type.bit_width == 32:
        array = array.cast(pa.int32())
    ticks: list[int | None] = array.cast(pa.int64()).to_pylist()
    return ticks


def _timestamps(array: Array) -> list[Any]:
    zone = _zone(array.type.tz)
    return [None if tick is None else _iso(tick, array.type.unit, zone) for tick in _ticks(array)]


def _dates(array: Array) -> list[Any]:
    a_day = TICKS["ms"] * 86_400 if array.type.bit_width == 64 else 1
    days = [None if tick is None else tick // a_day for tick in _ticks(array)]
    return [None if day is None else _iso(day * 86_400, "s", None).partition("T")[0] for day in days]


def _times(array: Array) -> list[Any]:
    unit = array.type.unit
    return [None if tick is None else _iso(tick, unit, None).partition("T")[2] for tick in _ticks(array)]


def _durations(array: Array) -> list[Any]:
    a_second = TICKS[array.type.unit]
    return [
        None if tick is None else tick / a_second if tick % a_second else tick // a_second
        for tick in _ticks(array)
    ]


def _zone(name: str | None) -> dt.tzinfo | None:
    import pyarrow as pa

    if name is None:
        return None
    try:
        zone: dt.tzinfo = pa.lib.string_to_tzinfo(name)
    except (ValueError, KeyError):
        return dt.UTC
    return zone


def _iso(ticks: int, unit: str, zone: dt.tzinfo | None) -> str:
    """Return a time since 1970 in ISO 8601, with no fraction, six digits of one, or nine.

    >>> _iso(1700000000123456789, "ns", dt.UTC)
    '2023-11-14T22:13:20.123456789+00:00'
    """
    seconds, rest = divmod(ticks, TICKS[unit])
    microseconds, nanoseconds = divmod(rest * 1_000_000_000 // TICKS[unit], 1_000)
    try:
        moment = dt.datetime(1970, 1, 1, tzinfo=None if zone is None else dt.UTC) + dt.timedelta(
            seconds=seconds, microseconds=microseconds
        )
        if zone is not None:
            moment = moment.astimezone(zone)
    except OverflowError:  # before year 1, or after 9999
        import numpy as np

        return str(np.datetime64(seconds, "s")) + ("" if zone is None else "+00:00")
    if not nanoseconds:
        return moment.isoformat()
    told = moment.isoformat(timespec="microseconds")
    end = len("1970-01-01T00:00:00.000000")
    return f"{told[:end]}{nanoseconds:03}{told[end:]}"


def _lists(array: Array) -> list[Any]:
    elements = iter(json_values(array.flatten()))
    return [
        None if length is None else [next(elements) for _ in range(length)]
        for length in array.value_lengths().to_pylist()
    ]


def _maps(array: Array) -> list[Any]:
    import pyarrow as pa

    pairs = array.cast(pa.list_(pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])))
    return [
        None if each is None else {str(pair["key"]): pair["value"] for pair in each} for each in _lists(pairs)
    ]


def _structs(array: Array) -> list[Any]:
    names = [array.type.field(n).name for n in range(array.type.num_fields)]
    fields = [json_values(field) for field in array.flatten()]
    return [
        {name: field[n] for name, field in zip(names, fields, strict=True)} if is_there else None
        for n, is_there in enumerate(array.is_valid().to_pylist())
    ]
