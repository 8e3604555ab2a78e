"""Files as people hand them in and want them back: packed or not, ``-`` for standard streams, Parquet."""

import datetime as dt
import decimal
import gzip
import io
import math
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from embedding_studio.errors import InvalidDataError

STDIN = "-"
"""Or standard output, for what is written."""

GZIP = b"\x1f\x8b"
ZSTANDARD = b"\x28\xb5\x2f\xfd"


@contextmanager
def unpacked(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file, or standard input, and unpack it where its first bytes are those of gzip or Zstandard.

    Raises:
        InvalidDataError: it cannot be opened, or the package that unpacks it is missing.
    """
    try:
        raw = sys.stdin.buffer if str(path) == STDIN else Path(path).open("rb")  # noqa: SIM115, closed below
    except OSError as error:
        raise InvalidDataError(f"{path}: it cannot be opened: {error.strerror or error}") from error
    with io.BufferedReader(cast("io.RawIOBase", raw), 1 << 17) as file:
        start = file.peek(4)[:4]
        if start[:2] == GZIP:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif start == ZSTANDARD:
            yield io.BufferedReader(_unpacked_zstandard(file, path), 1 << 17)
        else:
            yield file


def _unpacked_zstandard(file: IO[bytes], path: str | Path) -> io.RawIOBase:
    try:
        import zstandard
    except ImportError as error:
        raise InvalidDataError(
            f"{path}: Zstandard needs a package that is missing; pip install 'embedding-studio[import]'"
        ) from error
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return cast("io.RawIOBase", reader)


@contextmanager
def readable(path: Path) -> Iterator[None]:
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
        with ParquetFile(path) as file:
            yield file
    except pa.ArrowException as error:
        raise InvalidDataError(f"{path}: cannot be read as Parquet: {error}") from error


def from_parquet(value: Any, where: str) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float() | decimal.Decimal():
            return float(value) if math.isfinite(value) else None
        case dt.date() | dt.time():
            return value.isoformat()
        case dict():
            return {str(key): from_parquet(element, where) for key, element in value.items()}
        case list():
            return [from_parquet(element, where) for element in value]
    raise InvalidDataError(f"{where}: a {type(value).__name__} has no place in JSON; leave the column out")


@contextmanager
def replaced(path: str | Path) -> Iterator[IO[bytes]]:
    """Lend a file beside ``path``, which takes its place once all is written."""
    if str(path) == STDIN:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    if (suffixes[-2:-1] if packed else suffixes[-1:]) not in ([".jsonl"], [".ndjson"]):
        raise InvalidDataError(f"{path}: lines are written as .jsonl or .ndjson, each also with .gz")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with cast("IO[bytes]", gzip.open(unfinished, "wb") if packed else unfinished.open("wb")) as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise InvalidDataError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # it is not there, or never was
            unfinished.unlink()
