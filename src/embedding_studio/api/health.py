"""Whether the service lives, whether it can serve, and how it fares."""

import logging
import threading
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.problems import problem_response
from embedding_studio.bootstrap import Context
from embedding_studio.errors import EmbeddingStudioError, StorageError, StorageNotWritableError, counted
from embedding_studio.storage.attached import backlog_of
from embedding_studio.telemetry.metrics import CONTENT_TYPE_LATEST

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


OK = "ok"

DATABASE, EVENTS, WORKER, TEXTS, LEARNING = "database", "events", "worker", "texts", "learning"
ENGINES = "engines"
NEEDED = (DATABASE, EVENTS, WORKER)
"""Parts without which nothing can be served."""


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    failing: list[str] | None = Field(
        default=None,
        description="what does not work while the rest is served; absent: all works",
        examples=[["texts cannot be searched: the embedding endpoint does not answer"]],
    )
    parts: dict[str, str] = Field(
        description="how each part fares",
        examples=[{"database": "ok", "events": "ok", "worker": "ok", "texts": "ok", "learning": "ok"}],
    )


@router.get("/healthz", operation_id="get_health")
async def healthz() -> Alive:  # in the loop: threads may all be waiting for the database
    """Return 200 while the process answers at all. Needs no key."""
    return Alive()


@router.get("/readyz", operation_id="get_readiness", response_model=Ready, response_model_exclude_none=True)
def readyz(request: Request, context: InContext) -> Ready | Response:
    """Return 200 if searches and events can be served, else 503 naming what fails. Needs no key.

    Searches by text may fail alone, learning may be late, and engines that are filled may be away: then 200
    says so, for the rest is served. Neither the embedder nor an engine is asked here.
    """
    parts = _parts_of_storage(context)
    background: threading.Thread | None = request.app.state.background
    if background is not None:
        parts[WORKER] = OK if background.is_alive() else "the worker inside this process has ended"
    needed = [parts[part] for part in NEEDED if parts.get(part, OK) != OK]
    if needed:
        return problem_response(request.scope, 503, "; ".join(needed), kind="not ready", parts=parts)
    trouble = _trouble_with_texts(context)
    parts[TEXTS] = OK if trouble is None else f"texts cannot be searched: {trouble}"
    parts[LEARNING] = _learning(context)
    if (engines := _engines(context)) is not None:
        parts[ENGINES] = engines
    return Ready(failing=[told for told in parts.values() if told != OK] or None, parts=parts)


def _parts_of_storage(context: Context) -> dict[str, str]:
    try:
        context.storage.ping()
    except StorageNotWritableError:
        logger.exception("storage cannot be written")
        return {
            DATABASE: OK,
            EVENTS: "events cannot be stored: the database's disk is full, or it is read-only",
        }
    except StorageError:
        logger.exception("storage does not answer")
        return {DATABASE: "storage does not answer"}
    return {DATABASE: OK, EVENTS: OK}


def _learning(context: Context) -> str:
    try:
        seconds = context.storage.queue.info().oldest_seconds
    except StorageError:
        return "the queue could not be read"
    is_late = seconds > context.settings.late_seconds
    return f"learning is late: the first user waits for {seconds:,.0f} s" if is_late else OK


def _engines(context: Context) -> str | None:
    """Return how the engines fare that are filled; None: there are none."""
    try:
        backlog = backlog_of(context.storage)
    except StorageError:
        return "what is to be sent to engines could not be read"
    late = context.settings.late_seconds
    failing = [
        f"what finds {each.collection!r} does not answer, so all is compared here"
        if each.away
        else f"what finds {each.collection!r} lacks {counted(each.objects, 'object', spec=',')}, "
        f"{each.refused:,} of which it refused, for {each.oldest_seconds:,.0f} s"
        for each in backlog
        if each.away or each.refused or each.oldest_seconds > late
    ]
    return ("; ".join(failing) or OK) if backlog else None


def _trouble_with_texts(context: Context) -> str | None:
    try:
        trouble: str | None = getattr(context.embedder, "trouble", None)
    except EmbeddingStudioError:
        logger.exception("there is no embedder")
        return "the embedder cannot be made"
    return trouble


@router.get(
    "/metrics",
    operation_id="get_metrics",
    dependencies=[ADMIN],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"example": 'embedding_studio_orders{status="pending"} 0.0'}}}
    },
)
def metrics(context: InContext) -> Response:
    """Return the numbers that Prometheus collects."""
    return Response(context.metrics.exposition(context.storage), media_type=CONTENT_TYPE_LATEST)
