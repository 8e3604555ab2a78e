"""Vectors and numbers on the wire, many at a time.

pgvector's binary format is two 16-bit numbers (D and 0), then floats; that of an array of numbers is a
header, then a length and a number each.

Packing and unpacking row by row took most of the time of loading and storing what is learnt.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.errors import UndefinedObject
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.string import ByteaBinaryLoader

from embedding_studio.storage.ports import Vectors

BIGINT, BIGINTS = 20, 1016
"""PostgreSQL's numbers of the types bigint and bigint[]."""
_NUMBER = np.dtype([("length", ">i4"), ("value", ">i8")])


class PackedVector(bytes):
    """One vector as pgvector receives it."""

    __slots__ = ()


class PackedVectors(bytes):
    """An array of vectors as PostgreSQL receives it, after the number of their type."""

    __slots__ = ()


class PackedNumbers(bytes):
    """An array of bigint as PostgreSQL receives it."""

    __slots__ = ()


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


class _VectorsDumper(_Dumper):
    vector: int

    def dump(self, obj: bytes) -> bytes:
        return struct.pack(">iii", 1, 0, self.vector) + obj


class _NumbersDumper(_Dumper):
    oid = BIGINTS


def register(connection: Connection[Any]) -> None:
    """Let a connection send what is packed and, where results are binary, bring it as bytes."""
    info = TypeInfo.fetch(connection, "vector")
    if info is None:
        raise UndefinedObject("the type vector is not in the search path of this user")
    info.register(connection)
    dumper = type("_VectorDumper", (_Dumper,), {"oid": info.oid})
    connection.adapters.register_dumper(PackedVector, dumper)
    of_array = type("_VectorsDumper", (_VectorsDumper,), {"oid": info.array_oid, "vector": info.oid})
    connection.adapters.register_dumper(PackedVectors, of_array)
    connection.adapters.register_loader(info.oid, ByteaBinaryLoader)
    connection.adapters.register_dumper(PackedNumbers, _NumbersDumper)
    connection.adapters.register_loader(BIGINTS, ByteaBinaryLoader)


def pack(vectors: Vectors) -> list[PackedVector]:
    """Return the rows of [N, D] as pgvector receives them."""
    N, D = vectors.shape
    rows = np.zeros(N, dtype=_vector(D))
    rows["dimensions"] = D
    rows["values"] = vectors
    size = rows.dtype.itemsize
    data = rows.tobytes()
    return [PackedVector(data[start : start + size]) for start in range(0, N * size, size)]


def pack_array(vectors: Vectors) -> PackedVectors:
    """Return [N, D] as PostgreSQL receives a vector[]; a list takes the driver twice as long."""
    packed = pack(vectors)
    length = struct.pack(">i", len(packed[0]))
    return PackedVectors(struct.pack(">ii", len(packed), 1) + b"".join([length + each for each in packed]))


@lru_cache(maxsize=16)
def _vector(D: int) -> np.dtype[np.void]:
    return np.dtype([("dimensions", ">u2"), ("unused", ">u2"), ("values", ">f4", (D,))])


def unpack(rows: Sequence[bytes]) -> Vectors:
    """Return [N, D] float32."""
    if not rows:
        return np.empty((0, 0), dtype=np.float32)
    size = len(rows[0])
    data = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), size)
    return data[:, 4:].copy().view(">f4").astype(np.float32)


def pack_numbers(numbers: NDArray[np.int64]) -> PackedNumbers:
    """Return [N] as PostgreSQL receives a bigint[]."""
    header = np.array([1, 0, BIGINT, len(numbers), 1] if len(numbers) else [0, 0, BIGINT], dtype=">i4")
    items = np.empty(len(numbers), dtype=_NUMBER)
    items["length"], items["value"] = 8, numbers
    return PackedNumbers(header.tobytes() + items.tobytes())


def unpack_numbers(data: bytes | None) -> NDArray[np.int64]:
    """Return [N] of a bigint[] without NULLs as PostgreSQL sends it; none of NULL."""
    if data is None or len(data) <= 12:
        return np.empty(0, dtype=np.int64)
    items = np.frombuffer(data, dtype=_NUMBER, offset=20)
    return items["value"].astype(np.int64)
