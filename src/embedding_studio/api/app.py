"""The service as one ASGI application, and the HTTP status of every error."""

import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from embedding_studio import errors
from embedding_studio.api import (
    clickstream,
    collections,
    collectors,
    doctor,
    elsewhere,
    embeddings,
    health,
    improvement,
    keys,
    presets,
    quarantine,
    reports,
    static,
    users,
)
from embedding_studio.api.access_log import AccessLog, templates
from embedding_studio.api.bodies import StraightRoutes
from embedding_studio.api.border import (
    TOO_LARGE,
    Answers,
    BodyLimit,
    HangUps,
    HeadRequests,
    RequestIds,
    SafeHeaders,
)
from embedding_studio.api.dependencies import Threads, check_parameters
from embedding_studio.api.first import AnsweredElsewhere, give_back
from embedding_studio.api.guard import USER_TOKEN_HEADER, Guard, Refused
from embedding_studio.api.problems import MEDIA_TYPE, Problem, field_problems, problem_response
from embedding_studio.api.rate_limits import shared_memory
from embedding_studio.bootstrap import Context
from embedding_studio.errors import kind_of
from embedding_studio.reports import Reports

logger = logging.getLogger(__name__)

T = TypeVar("T")

PREFIX = "/api/v1"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

STATUSES: Mapping[type[errors.EmbeddingStudioError], int] = {
    errors.InvalidInputError: 422,
    errors.InvalidSettingError: 500,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.SessionRefusedError: 422,
    errors.StorageUnavailableError: 503,
    errors.AttachedUnavailableError: 503,
    errors.StorageTimeoutError: 503,
    errors.StorageNotWritableError: 503,
    errors.AbandonedError: 499,
    errors.EmbeddingError: 502,
    errors.EmbedderUnavailableError: 503,
    errors.EmbeddingStudioError: 500,
}
"""An error has the status of the nearest class above it."""

OUR_FAULT: Mapping[type[errors.EmbeddingStudioError], str] = {
    errors.EmbeddingStudioError: "the service failed",
    errors.EmbeddingError: "texts cannot be embedded just now",
    errors.EmbedderUnavailableError: "texts cannot be embedded just now; try again in a moment",
    errors.StorageUnavailableError: "storage cannot be reached; try again in a moment",
    errors.AttachedUnavailableError: (
        "the store that this collection is attached to cannot be read just now; try again in a moment "
        "(`embedding-studio doctor` says why)"
    ),
    errors.StorageTimeoutError: "this took longer than a request may; ask for less, or try again in a moment",
    errors.StorageNotWritableError: (
        "storage can be read but not written: its disk is full, or it is read-only"
    ),
}
"""What a caller is answered instead of an error that may name hosts, models or rows; by the nearest class."""

RETRY_AFTER: Mapping[type[errors.EmbeddingStudioError], float] = {
    errors.EmbedderUnavailableError: 1,
    errors.StorageUnavailableError: 1,
    errors.AttachedUnavailableError: 5,
    errors.StorageTimeoutError: 5,
    errors.StorageNotWritableError: 30,
}
"""In seconds: whoever asked for much waits longer, and until a disk is cleared it takes still longer."""

TAGS = [
    {"name": "embeddings", "description": "Search, and the objects that are searched for."},
    {"name": "clickstream", "description": "Searches that were shown, and what users did with them."},
    {"name": "collectors", "description": "Events as the clients of Algolia and OpenSearch UBI send them."},
    {"name": "improvement", "description": "Orders: sessions waiting to be learnt from."},
    {"name": "collections", "description": "Objects embedded by one model, under one metric."},
    {"name": "users", "description": "Forgetting."},
    {"name": "keys", "description": "Who may do what."},
    {"name": "quarantine", "description": "Users from whom nothing is learnt."},
    {"name": "settings", "description": "What decides how is learnt, and what its presets do."},
    {"name": "reports", "description": "What takes minutes: recall, tuning, the log replayed."},
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


def create_app(
    context: Context,
    *,
    background: Callable[[threading.Event], None] | None = None,
    shown: Sequence[str] = (),
) -> FastAPI:
    """Return the service; whoever made ``context`` closes it.

    Args:
        background: runs in a thread of its own from start-up until its event is set, at shutdown,
            which waits for it; for the worker of a one-process set-up.
        shown: pages (``api.static``) beside those that every service has; the root leads to the last.
    """
    settings = context.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        if background is not None:
            app.state.background = threading.Thread(
                target=background, args=(stop,), name="background", daemon=True
            )
            app.state.background.start()
        try:
            yield
        finally:
            stop.set()
            await run_in_threadpool(app.state.reports.close)
            if background is not None:
                context.give_up()
                await run_in_threadpool(app.state.background.join)

    app = Service(
        title="Embedding Studio",
        summary="Search that learns from clicks.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_tags=TAGS,
        responses={"default": {"description": "What went wrong (RFC 9457)", "model": Problem}},
        lifespan=lifespan,
        # FastAPI's own, which records paths and what exceptions say; ours is ``telemetry.traces``.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.context = context
    app.state.metrics = context.metrics.service
    app.state.background = None
    app.state.threads = Threads()
    app.state.siblings = siblings = context.metrics.siblings
    app.state.memory = shared_memory(None if siblings is None else siblings.limits)
    app.state.guard = Guard(context, app.state.memory)
    app.state.reports = Reports(context)
    app.state.templates = {}

    learning = (embeddings, elsewhere, clickstream, improvement)
    versioned = [
        each.router for each in (*learning, collections, users, keys, quarantine, reports, doctor, presets)
    ]
    console = [static.CONSOLE] if settings.console else []
    others = [collectors.router, health.router, static.pages(static.DOCS, *console, *shown)]
    for prefix, routers in {PREFIX: versioned, "": others}.items():
        app.router.routes.insert(0, StraightRoutes(prefix, routers))
        for router in routers:
            app.include_router(
                router, prefix=prefix, dependencies=[Depends(check_parameters)] if prefix else None
            )
            app.state.templates |= templates(prefix, router)

    app.exception_handler(errors.EmbeddingStudioError)(_answer_our_error)
    app.exception_handler(RequestValidationError)(_answer_invalid_request)
    app.exception_handler(HTTPException)(_answer_http_error)
    app.exception_handler(AnsweredElsewhere)(give_back)

    # The last one added is the first that a request meets.
    app.add_middleware(HeadRequests)
    app.add_middleware(HangUps)
    app.add_middleware(
        Answers, metrics=app.state.metrics, search_path=f"{PREFIX}/embeddings/similarity-search"
    )
    app.add_middleware(BodyLimit, max_request_bytes=settings.max_request_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=["Authorization", USER_TOKEN_HEADER, "X-Request-ID", *collectors.HEADERS],
            expose_headers=["X-Request-ID", "Retry-After"],
            allow_credentials=False,
        )
    app.add_middleware(SafeHeaders)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestIds)
    return app


def status_of(error: errors.EmbeddingStudioError) -> int:
    """Return the HTTP status of an error.

    >>> status_of(errors.SessionNotFoundError("no session has the id 's1'"))
    404
    """
    return _by_kind(STATUSES, error)


def _by_kind(table: Mapping[type[errors.EmbeddingStudioError], T], error: errors.EmbeddingStudioError) -> T:
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def _answer_our_error(request: Request, error: errors.EmbeddingStudioError) -> Response:
    status = status_of(error)
    kind = kind_of(type(error))
    if status < 500:
        return problem_response(request.scope, status, str(error), kind=kind)
    request_id = request.scope["state"]["request_id"]
    if isinstance(
        error, errors.EmbedderUnavailableError | errors.AttachedUnavailableError
    ):  # an outage: one line a request says all
        logger.warning("request %s failed: %s", request_id, error)
    else:
        logger.error("request %s failed", request_id, exc_info=error)
    detail = f"{_by_kind(OUR_FAULT, error)}; the service's log says why under request id {request_id}"
    headers = {"Retry-After": _retry_after(error)} if status == 503 else None
    return problem_response(
        request.scope, status, detail, kind=kind if status != 500 else None, headers=headers
    )


def _retry_after(error: errors.EmbeddingStudioError) -> str:
    """Return after how many seconds to try again: as many as the error knows, or as its kind has."""
    seconds: float = getattr(error, "retry_after_seconds", None) or _by_kind(RETRY_AFTER, error)
    return str(math.ceil(seconds))


def _answer_invalid_request(request: Request, error: RequestValidationError) -> Response:
    wrong = field_problems(error)
    first = wrong[0]
    detail = f"{first.pointer or first.parameter}: {first.detail}"
    if len(wrong) > 1:
        detail += f" (and {len(wrong) - 1} more under errors)"
    return problem_response(request.scope, 422, detail, kind="invalid input", errors=wrong)


def _answer_http_error(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if isinstance(error, Refused):
        request.app.state.metrics.count_refused(error.reason)
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    kind = TOO_LARGE if error.status_code == 413 else None
    return problem_response(request.scope, error.status_code, error.detail, kind=kind, headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods that the path of a request takes."""
    routes = request.app.router.routes
    given = ({**request.scope, "method": method} for method in METHODS)
    taken = [
        scope["method"] for scope in given if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]
    return [*taken, "HEAD"] if "GET" in taken else taken
