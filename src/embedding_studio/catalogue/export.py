"""Objects into a JSON Lines file that ``read_catalogue`` and ``read_vectors`` read. Axis: D dimensions.

Each line is an object: its id and, where wanted, its vectors in columns beside those of its payload.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.errors import InvalidDataError
from embedding_studio.files import replaced


def write_objects(
    path: str | Path, objects: Iterable[CatalogueObject], *, id_column: str, vector_column: str | None
) -> int:
    """Write a file whole or not at all, in place of one that is there; return the number of objects.

    Args:
        path: ends in .jsonl or .ndjson, also .gz; ``-`` is standard output.
        vector_column: None leaves vectors out; they are written so that float32 reads the same again.

    Raises:
        InvalidDataError: the file cannot be written, or a payload has a field named like a column.
    """
    number = 0
    with replaced(path) as file:
        for each in objects:
            line = json.dumps(_row(each, id_column, vector_column), ensure_ascii=False, separators=(",", ":"))
            file.write(line.encode() + b"\n")
            number += 1
    return number


def _row(item: CatalogueObject, id_column: str, vector_column: str | None) -> dict[str, Any]:
    columns: dict[str, Any] = {id_column: item.object_id}
    if vector_column is not None:
        parts = [_numbers(part) for part in item.parts]
        columns[vector_column] = parts[0] if len(parts) == 1 else parts
    if taken := columns.keys() & item.payload.keys():
        raise InvalidDataError(
            f"the payload of object {item.object_id!r} has a field {min(taken)!r} of its own; name that "
            "column otherwise (--id-column, --vector-column)"
        )
    return columns | item.payload


def _numbers(part: NDArray[np.float32]) -> list[float]:
    """Return [D], each number with as few digits as tell it from its neighbours in float32."""
    short = list(map(float, part.astype(str).tolist()))
    # Read by way of float64, a number that lies halfway between two neighbours could be rounded twice.
    exact: list[float] = part.tolist()
    return short if np.array_equal(np.array(short, dtype=np.float32), part) else exact
