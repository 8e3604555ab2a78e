"""What the service answers when it cannot do what was asked: RFC 9457 ``application/problem+json``."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from embedding_studio.errors import ConflictError

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_PROBLEMS = 100
MAX_TOLD_LENGTH = 500
"""Characters of one sentence: what was sent is not sent back as a whole."""


AN_OBJECT, A_LIST = "a JSON object is needed", "a list is needed"
IN_WORDS_OF_JSON = {
    "model_type": AN_OBJECT,
    "model_attributes_type": AN_OBJECT,
    "dict_type": AN_OBJECT,
    "tuple_type": A_LIST,
    "list_type": A_LIST,
    "string_unicode": "a text may not hold half a surrogate pair (U+D800 to U+DFFF)",
    "extra_forbidden": "this field is not known here; is it misspelt?",
}
"""What pydantic says in Python's."""


class FieldProblem(BaseModel):
    """One thing that is wrong: ``pointer`` names its place in the body, ``parameter`` in the URL."""

    pointer: str | None = Field(
        default=None, description="JSON pointer into the body, as a URI fragment", examples=["#/limit"]
    )
    parameter: str | None = Field(default=None, description="parameter of the path or query")
    detail: str = Field(examples=["Input should be greater than or equal to 1"])


class Problem(BaseModel):
    """RFC 9457 problem details. ``type`` names the kind of problem for programs, ``detail`` tells people."""

    type: str = Field(examples=["urn:embedding-studio:invalid-input"])
    title: str = Field(examples=["Invalid input"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["#/limit: Input should be greater than or equal to 1"])
    instance: str = Field(
        description="path of the request", examples=["/api/v1/embeddings/similarity-search"]
    )
    errors: list[FieldProblem] | None = Field(default=None, description="what is wrong, place by place")
    parts: dict[str, str] | None = Field(default=None, description="of /readyz: how each part fares")


def problem_response(
    scope: Mapping[str, Any],
    status: int,
    detail: str,
    *,
    kind: str | None = None,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    parts: dict[str, str] | None = None,
) -> JSONResponse:
    """Return the answer to the request in ``scope``.

    Args:
        scope: of ASGI.
        kind: what went wrong in a few words; absent: nothing beyond what the status says.
    """
    problem = Problem(
        type=f"urn:embedding-studio:{kind.replace(' ', '-')}" if kind else "about:blank",
        title=kind.capitalize() if kind else HTTPStatus(status).phrase,
        status=status,
        detail=_cut(detail),
        instance=quote(scope["path"], errors="replace"),
        errors=list(errors) or None,
        parts=parts,
    )
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(
        content, status_code=status, headers=dict(headers) if headers else None, media_type=MEDIA_TYPE
    )


def wrong_body(detail: str, *place: str | int) -> RequestValidationError:
    """Return the error that a route raises about one place in its body, named from the top."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", *place), "msg": detail}])


def session_taken(session_id: str | None) -> ConflictError:
    """Return what is said about a session id in use: nothing of whose it is, as storage's own error says."""
    return ConflictError(
        f"the session id {session_id!r} is taken by a search of another user, query or collection, or one "
        "that showed other results; "
        "give each search an id of its own"
    )


def field_problems(error: RequestValidationError) -> list[FieldProblem]:
    """Return what pydantic found wrong, each with its place; at most ``MAX_FIELD_PROBLEMS``."""
    return [_field_problem(found) for found in error.errors()[:MAX_FIELD_PROBLEMS]]


def _field_problem(found: Mapping[str, Any]) -> FieldProblem:
    where, *place = found["loc"]
    detail = IN_WORDS_OF_JSON.get(found["type"]) or found["msg"].removeprefix("Value error, ")
    if found["type"] in {"too_long", "too_short"}:
        detail = _of_another_length(**found["ctx"])
    if where == "body":
        pointer = "#" + "".join(f"/{_escape(_cut(str(step)))}" for step in place)
        return FieldProblem(pointer=pointer, detail=_cut(detail))
    return FieldProblem(parameter=_cut(".".join(map(str, place))), detail=_cut(detail))


def _of_another_length(
    *, field_type: str, actual_length: int, min_length: int = 0, max_length: int | None = None
) -> str:
    what = "characters" if field_type == "Value" else "items"
    bound = f"at least {min_length:,}" if max_length is None else f"at most {max_length:,}"
    return f"give {bound} {what}; there are {actual_length:,}"


def _cut(told: str) -> str:
    return told if len(told) <= MAX_TOLD_LENGTH else f"{told[:MAX_TOLD_LENGTH]}..."


def _escape(step: str) -> str:
    pointer = step.replace("~", "~0").replace("/", "~1")  # RFC 6901, section 3
    return quote(pointer, safe="~", errors="replace")  # section 6
