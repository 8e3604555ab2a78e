"""The service as one ASGI application, and the HTTP status of every error."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from embedding_studio import errors
from embedding_studio.api import (
    clickstream,
    collections,
    collectors,
    embeddings,
    health,
    improvement,
    users,
)
from embedding_studio.api.border import Answers, BodyLimit, RequestIds
from embedding_studio.api.problems import MEDIA_TYPE, Problem, field_problems, kind_of, problem_response
from embedding_studio.bootstrap import Context

logger = logging.getLogger(__name__)

PREFIX = "/api/v1"

STATUSES: Mapping[type[errors.EmbeddingStudioError], int] = {
    errors.InvalidInputError: 422,
    errors.InvalidSettingError: 500,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.SessionRefusedError: 422,
    errors.StorageUnavailableError: 503,
    errors.EmbeddingError: 502,
    errors.EmbeddingStudioError: 500,
}
"""An error has the status of the nearest class above it."""

OUR_FAULT = {
    500: "the service failed",
    502: "texts cannot be embedded just now",
    503: "storage cannot be reached; try again in a moment",
}
"""What a caller is told instead of an error that may name hosts, models or rows."""

TAGS = [
    {"name": "embeddings", "description": "Search, and the objects that are searched for."},
    {"name": "clickstream", "description": "Searches that were shown, and what users did with them."},
    {"name": "collectors", "description": "Events as the clients of Algolia and OpenSearch UBI send them."},
    {"name": "improvement", "description": "Orders: sessions waiting to be learnt from."},
    {"name": "collections", "description": "Objects embedded by one model, under one metric."},
    {"name": "users", "description": "Forgetting."},
    {"name": "health", "description": "Whether the service lives, can serve, and how it fares."},
]


class Service(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with problems under their own media type."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                content = operation["responses"]["default"]["content"]
                if "application/json" in content:  # which FastAPI takes every model for
                    content[MEDIA_TYPE] = content.pop("application/json")
        return document


def create_app(context: Context, *, background: Callable[[threading.Event], None] | None = None) -> FastAPI:
    """Return the service; whoever made ``context`` closes it.

    Args:
        background: runs in a thread of its own from start-up until its event is set, at shutdown,
            which waits for it; for the worker of a one-process set-up.
    """
    settings = context.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if background is None:
            yield
            return
        stop = threading.Event()
        app.state.background = threading.Thread(
            target=background, args=(stop,), name="background", daemon=True
        )
        app.state.background.start()
        try:
            yield
        finally:
            stop.set()
            await run_in_threadpool(app.state.background.join)

    app = Service(
        title="Embedding Studio",
        summary="Search that learns from clicks.",
        version="1",
        openapi_tags=TAGS,
        responses={"default": {"description": "What went wrong (RFC 9457)", "model": Problem}},
        lifespan=lifespan,
    )
    app.state.context = context
    app.state.metrics = context.metrics.service
    app.state.background = None

    versioned = APIRouter(prefix=PREFIX)
    for routes in (embeddings, clickstream, improvement, collections, users):
        versioned.include_router(routes.router)
    app.include_router(versioned)
    app.include_router(collectors.router)
    app.include_router(health.router)

    app.exception_handler(errors.EmbeddingStudioError)(_answer_our_error)
    app.exception_handler(RequestValidationError)(_answer_invalid_request)
    app.exception_handler(HTTPException)(_answer_http_error)

    # The last one added is the first that a request meets.
    app.add_middleware(
        Answers, metrics=app.state.metrics, search_path=f"{PREFIX}/embeddings/similarity-search"
    )
    app.add_middleware(BodyLimit, max_request_bytes=settings.max_request_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "X-Request-ID", *collectors.HEADERS],
            expose_headers=["X-Request-ID"],
            allow_credentials=False,
        )
    app.add_middleware(RequestIds)
    return app


def status_of(error: errors.EmbeddingStudioError) -> int:
    """Return the HTTP status of an error.

    >>> status_of(errors.SessionNotFoundError("no session has the id 's1'"))
    404
    """
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def _answer_our_error(request: Request, error: errors.EmbeddingStudioError) -> Response:
    status = status_of(error)
    kind = kind_of(type(error))
    if status < 500:
        return problem_response(request.scope, status, str(error), kind=kind)
    request_id = request.scope["state"]["request_id"]
    logger.error("request %s failed", request_id, exc_info=error)
    detail = f"{OUR_FAULT[status]}; the service's log says why under request id {request_id}"
    headers = {"Retry-After": "1"} if status == 503 else None
    return problem_response(
        request.scope, status, detail, kind=kind if status != 500 else None, headers=headers
    )


def _answer_invalid_request(request: Request, error: RequestValidationError) -> Response:
    wrong = field_problems(error)
    first = wrong[0]
    detail = f"{first.pointer or first.parameter}: {first.detail}"
    if len(wrong) > 1:
        detail += f" (and {len(wrong) - 1} more under errors)"
    return problem_response(request.scope, 422, detail, kind="invalid input", errors=wrong)


def _answer_http_error(request: Request, error: HTTPException) -> Response:
    return problem_response(request.scope, error.status_code, error.detail, headers=error.headers)
