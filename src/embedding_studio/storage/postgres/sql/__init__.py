"""SQL, in files, under names.

A file holds blocks, each beginning with a line ``-- name: what_it_does``. Braces name what a parameter
cannot be: the schema of a collection, its vector type, an operator, a condition. Percent signs name
parameters.
"""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

from psycopg import sql

FOLDER = Path(__file__).parent
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def statements(file: str) -> Mapping[str, sql.SQL]:
    """Return name -> statement, in the order of the file."""
    _, *blocks = _NAME.split((FOLDER / file).read_text(encoding="utf-8"))
    texts = (sql.SQL(text.strip()) for text in blocks[1::2])
    return MappingProxyType(dict(zip(blocks[::2], texts, strict=True)))


def schema_of(collection_id: int) -> sql.Identifier:
    return sql.Identifier(f"collection_{collection_id}")


@lru_cache(maxsize=4096)
def in_schema(file: str, name: str, collection_id: int) -> bytes:
    """Return a statement about the tables of one collection."""
    return statements(file)[name].format(schema=schema_of(collection_id)).as_bytes()


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Return (number, text) of every migration, in the order in which they are applied."""
    files = sorted((FOLDER / "migrations").glob("*.sql"))
    return tuple((int(file.name.split("_")[0]), file.read_text(encoding="utf-8")) for file in files)
