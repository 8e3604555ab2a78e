"""SQL, in files, under names.

A file holds blocks, each beginning with a line ``-- name: what_it_does``. Braces name what a parameter
cannot be: the schema of a collection, its vector type, an operator, a condition. Percent signs name
parameters.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from psycopg import sql

FOLDER = Path(__file__).parent
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def statements(file: str) -> Mapping[str, sql.SQL]:
    """Return name -> statement, in the order of the file."""
    _, *blocks = _NAME.split((FOLDER / file).read_text(encoding="utf-8"))
    named = dict(zip(blocks[::2], (sql.SQL(text.strip()) for text in blocks[1::2]), strict=True))
    assert len(named) * 2 == len(blocks), f"a name stands twice in {file}"
    return MappingProxyType(named)


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Return (number, text) of every migration, in the order in which they are applied."""
    files = sorted((FOLDER / "migrations").glob("*.sql"))
    return tuple((int(file.name.split("_")[0]), file.read_text(encoding="utf-8")) for file in files)
