"""Kinds of field that several bodies share, with what each refuses.

What PostgreSQL cannot keep is refused here with its place in the body: a NUL character, half a
surrogate pair, a number that is not finite.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
from starlette.convertors import Convertor, register_url_convertor

from embedding_studio.api.problems import wrong_body
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.limits import MAX_ID_LENGTH, MAX_QUERY_LENGTH, MAX_QUERY_PARTS
from embedding_studio.domain.objects import Collection
from embedding_studio.domain.storable import check_id, check_json, check_text
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import InvalidVectorsError

MAX_SECONDS = 100_000_000_000
"""UTC seconds beyond this lie after the year 5100; in milliseconds it is March 1973."""

ANY_INDEX = SearchIndexInfo(metric_type=MetricType.EUCLID)
"""Of any size, where every finite vector has a place: which collection is meant is known only later."""


ENCODED_DOTS = re.compile("(%(25)*2E){1,2}", re.IGNORECASE)


class AnyId(Convertor[str]):
    """Lets ``{user_id:id}`` in a path be any id; Starlette's ``path`` stops at a line's end.

    Browsers and proxies take ``.`` and ``..`` in a path for ways to other folders, percent-encoded or not. So
    these come encoded twice, and so does what would then look like them.

    >>> AnyId().convert("a%2Fb"), AnyId().convert("%2E%2E"), AnyId().convert("%252E")
    ('a%2Fb', '..', '%2E')
    """

    regex = r"(?s:.+)"

    def convert(self, value: str) -> str:
        return unquote(value) if ENCODED_DOTS.fullmatch(value) else value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", AnyId())


def to_seconds(given: Any) -> Any:
    """Return the seconds of a time in ISO 8601, in UTC where it names no zone; whole numbers as they are.

    >>> to_seconds("2024-12-10T00:01:29.378Z"), to_seconds("2024-12-10T01:01:29+01:00"), to_seconds(12)
    (1733788889, 1733788889, 12)
    """
    if type(given) is int:
        return given
    if isinstance(given, str) and "-" in given:
        with suppress(ValueError, OverflowError):
            at = datetime.fromisoformat(given)
            return min(int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() // 1), MAX_SECONDS)
    raise ValueError(
        "a time is in whole UTC seconds, such as 1760000000, or in ISO 8601, such as 2025-10-09T08:53:20Z"
    )


def check_seconds(given: int) -> int:
    if given > MAX_SECONDS:
        raise ValueError(
            f"{given} looks like milliseconds; a time here is in whole UTC seconds, such as {given // 1000}"
        )
    return given


def to_vectors(given: Any) -> NDArray[np.float32]:
    """Return [P, D] for a list of lists of numbers, or for one such list.

    >>> to_vectors([[0.5, 1]])
    array([[0.5, 1. ]], dtype=float32)
    """
    rows = given if isinstance(given, list) and given and isinstance(given[0], list) else [given]
    are_lists = all(isinstance(row, list) for row in rows)
    kinds: set[type] = set().union(*(map(type, row) for row in rows)) if are_lists else {type(None)}
    if not kinds <= {int, float}:  # a bool is an int to isinstance
        raise ValueError("vectors are a list of lists of numbers, and nothing else")
    return check_vectors(ANY_INDEX, rows, "this field")


def to_query(given: Any) -> str | NDArray[np.float32]:
    """Return a text as it is, and numbers as [Q, D]."""
    if isinstance(given, str):
        if len(given) > MAX_QUERY_LENGTH:
            raise ValueError(
                f"a query has at most {MAX_QUERY_LENGTH:,} characters; this one has {len(given):,}"
            )
        return check_text(given)
    if isinstance(given, list) and len(given) > MAX_QUERY_PARTS and isinstance(given[0], list):
        raise ValueError(f"a query has at most {MAX_QUERY_PARTS} parts; this one has {len(given):,}")
    if not isinstance(given, list):
        raise ValueError("a query is a text, a vector (list of numbers) or a list of vectors")  # noqa: TRY004, pydantic reports ValueError
    return to_vectors(given)


def check_fit(collection: Collection, vectors: NDArray[np.float32], *place: str | int) -> None:
    """Return if vectors can live in a collection.

    Raises:
        RequestValidationError: they cannot; it names their place in the body.
    """
    try:
        check_vectors(collection.index, vectors, "this field")
    except InvalidVectorsError as error:
        raise wrong_body(str(error), *place) from error


Text = Annotated[str, AfterValidator(check_text)]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH), AfterValidator(check_id)]
Filter = Annotated[PayloadFilter, PlainValidator(PayloadFilter.parse, json_schema_input_type=PayloadFilter)]
Json = Annotated[dict[str, Any], AfterValidator(check_json)]
UtcSeconds = Annotated[
    int,
    Field(ge=0, description="UTC seconds since 1970, or ISO 8601; now where it lies ahead"),
    AfterValidator(check_seconds),
    BeforeValidator(
        to_seconds,
        json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_SECONDS)]
        | Annotated[str, Field(json_schema_extra={"format": "date-time"})],
    ),
]
Vectors = Annotated[
    NDArray[np.float32],
    PlainValidator(to_vectors, json_schema_input_type=list[list[float]] | list[float]),
]
Query = Annotated[
    str | NDArray[np.float32],
    PlainValidator(to_query, json_schema_input_type=str | list[float] | list[list[float]]),
]
