"""Files as people hand them in and want them back: packed or not, ``-`` for standard streams."""

import gzip
import io
import os
import shutil
import sys
import tempfile
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
            yield io.BufferedReader(_Zstandard(file, path), 1 << 17)
        else:
            yield file


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard unpacked, one after the other; a frame that is cut off is an error, not an end."""

    def __init__(self, file: IO[bytes], path: str | Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise InvalidDataError(
                f"{path}: Zstandard needs a package that is missing; pip install 'embedding-studio[import]'"
            ) from error
        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._file = file
        self._packed = b""
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._unpacked:
            packed = self._packed or self._file.read(1 << 15)
            if not packed:
                if self._frame is None:
                    return 0
                raise EOFError("it is cut off in the middle of a frame of Zstandard")
            self._unpack(packed)
        given = self._unpacked[: len(into)]
        into[: len(given)] = given
        self._unpacked = self._unpacked[len(given) :]
        return len(given)

    def _unpack(self, packed: bytes) -> None:
        self._frame = self._frame or self._new_frame()
        try:
            self._unpacked = memoryview(self._frame.decompress(packed))
        except self._error as error:
            raise OSError(f"it is no Zstandard: {error}") from error
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Give what a file can do wrong this package's words."""
    try:
        yield
    except FileNotFoundError as error:
        raise InvalidDataError(f"{path}: there is no such file") from error
    except UnicodeError as error:
        raise InvalidDataError(f"{path}: not text in its encoding: {error}") from error
    except (EOFError, zlib.error, OSError) as error:
        raise InvalidDataError(f"{path}: cannot be read: {error}") from error


@contextmanager
def read_again(path: str | Path) -> Iterator[Path]:
    """Lend the path of a file that can be read more than once: a copy where it is a stream."""
    if str(path) != STDIN and not Path(path).is_fifo():
        yield Path(path)
        return
    with tempfile.NamedTemporaryFile() as copy:
        with readable(path), sys.stdin.buffer if str(path) == STDIN else Path(path).open("rb") as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def replaced(path: str | Path, *, is_lines: bool = True) -> Iterator[IO[bytes]]:
    """Lend a file beside ``path``, which takes its place once all is written.

    Args:
        is_lines: of JSON, packed where the name says so; False: anything, as it is.
    """
    if str(path) == STDIN:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = is_lines and suffixes[-1:] == [".gz"]
    if is_lines and (suffixes[-2:-1] if packed else suffixes[-1:]) not in ([".jsonl"], [".ndjson"]):
        raise InvalidDataError(f"{path}: lines are written as .jsonl or .ndjson, each also with .gz")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with cast("IO[bytes]", gzip.open(unfinished, "wb") if packed else unfinished.open("wb")) as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise InvalidDataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is not there, or never was
            unfinished.unlink()
