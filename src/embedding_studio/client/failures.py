"""What went wrong between a client and a service, as one of the errors of this package."""

import json
from collections.abc import Mapping
from typing import Any

import httpx

from embedding_studio import errors

URN = "urn:embedding-studio:"

KINDS: Mapping[str, type[errors.EmbeddingStudioError]] = {
    URN + errors.kind_of(each).replace(" ", "-"): each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.EmbeddingStudioError)
}
"""The ``type`` of a problem -> the error that the service raised."""

STATUSES: Mapping[int, type[errors.EmbeddingStudioError]] = {
    401: errors.AccessDeniedError,
    403: errors.AccessDeniedError,
    413: errors.InvalidInputError,
    422: errors.InvalidInputError,
    429: errors.TooManyRequestsError,
    502: errors.ServiceUnavailableError,
    503: errors.ServiceUnavailableError,
    504: errors.ServiceUnavailableError,
}
"""Where a problem has no type of its own, as those of a proxy."""

SHOWN_CHARACTERS = 200


def failure(answer: httpx.Response) -> errors.EmbeddingStudioError:
    """Return the error that an answer tells of: the one that the library itself would raise.

    Args:
        answer: which is read, and no success.
    """
    problem = _problem(answer)
    said, detail = problem.get("type"), problem.get("detail")
    kind = KINDS.get(said) if isinstance(said, str) else None
    kind = kind or STATUSES.get(answer.status_code, errors.ServiceError)
    error = kind(detail if isinstance(detail, str) and detail else _described(answer))
    error.problem = problem
    error.request_id = answer.headers.get("x-request-id")
    return error


def unreachable(url: str, error: httpx.HTTPError) -> errors.ServiceUnavailableError:
    """Return what is said where there was no answer."""
    what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
    return errors.ServiceUnavailableError(f"the service at {url} {what}: {error or type(error).__name__}")


def unreadable(url: str, answer: httpx.Response) -> errors.ServiceError:
    """Return what is said of an answer that makes no sense."""
    error = errors.ServiceError(
        f"{answer.request.method} {answer.request.url.path} was answered with {answer.status_code} by what "
        f"is no answer of Embedding Studio; is {url} the address of its service?"
    )
    error.request_id = answer.headers.get("x-request-id")
    return error


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = json.loads(answer.content)
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}


def _described(answer: httpx.Response) -> str:
    said = " ".join(answer.text.split())[:SHOWN_CHARACTERS]
    asked = f"{answer.request.method} {answer.request.url.path}"
    return f"{asked} was answered with {answer.status_code} {answer.reason_phrase}: {said}".removesuffix(": ")
