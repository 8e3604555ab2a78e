"""What columns of LanceDB can hold, by their types in Arrow."""

from collections.abc import Mapping
from typing import Any

from embedding_studio.domain.objects import Attachment
from embedding_studio.errors import InvalidInputError

Arrow = Any
"""Of pyarrow, which comes with LanceDB: a table, a schema, a type."""


def check_columns(wanted: Attachment, kinds: Mapping[str, Arrow]) -> None:
    """Return if columns of these types can be attached.

    Raises:
        InvalidInputError: they cannot; the message says what to do.
    """
    for name in (wanted.object_id, wanted.vector, *wanted.payload, *filter(None, [wanted.document])):
        if name not in kinds:
            raise InvalidInputError(f"{wanted.source!r} has no column {name!r}; it has {', '.join(kinds)}")
        if "`" in name:
            raise InvalidInputError(f"LanceDB cannot be asked for the column {name!r}; rename it")
    kind = kinds[wanted.object_id]
    if not (is_text(kind) or is_whole(kind)):
        raise InvalidInputError(
            f"the ids of {wanted.source!r} are of the type {kind}, and can be string or a whole number; name "
            "another column"
        )
    if not dimensions_of(kind := kinds[wanted.vector]):
        raise InvalidInputError(
            f"the column {wanted.vector!r} of {wanted.source!r} is of the type {kind}, and vectors are "
            "fixed_size_list of float, double or halffloat"
        )
    if wanted.document is not None and not is_document(kind := kinds[wanted.document]):
        raise InvalidInputError(
            f"the column {wanted.document!r} of {wanted.source!r} is of the type {kind}; the payload can be "
            "one column of JSON, as texts, of struct or of map, or several of any type"
        )


def dimensions_of(kind: Arrow) -> int:
    """Return of how many dimensions the vectors of a type are; 0: it holds none."""
    import pyarrow as pa

    return kind.list_size if pa.types.is_fixed_size_list(kind) and is_float(kind.value_type) else 0


def is_payload(kind: Arrow) -> bool:
    """Return whether filters and results may see a column: no vectors, and no bytes."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind) or is_list(kind):
        return not dimensions_of(kind) and is_payload(kind.value_type)
    return not (isinstance(kind, pa.BaseExtensionType) or "binary" in str(kind))


def is_document(kind: Arrow) -> bool:
    """Return whether a column can hold objects of JSON; a type of LanceDB for these are bytes to Arrow."""
    import pyarrow as pa

    return is_text(kind) or pa.types.is_struct(kind) or pa.types.is_map(kind) or "binary" in str(kind)


def is_text(kind: Arrow) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_whole(kind: Arrow) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def is_float(kind: Arrow) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind))


def is_list(kind: Arrow) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def whole_numbers(kind: Arrow) -> tuple[int, int]:
    """Return the least and the largest of a type."""
    import pyarrow as pa

    if pa.types.is_signed_integer(kind):
        return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
    return 0, 2**kind.bit_width - 1
