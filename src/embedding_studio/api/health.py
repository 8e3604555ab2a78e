"""Whether the service lives, whether it can serve, and how it fares."""

import logging
import threading
import time
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext, InMetrics
from embedding_studio.api.metrics import CONTENT_TYPE_LATEST, Metrics
from embedding_studio.api.problems import problem_response
from embedding_studio.errors import CollectionNotFoundError, StorageError
from embedding_studio.storage.ports import Storage

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"


@router.get("/healthz", operation_id="get_health")
async def healthz() -> Alive:  # in the loop: threads may all be waiting for the database
    """Return 200 while the process answers at all. Needs no key."""
    return Alive()


@router.get("/readyz", operation_id="get_readiness", response_model=Ready)
def readyz(request: Request, context: InContext) -> Ready | Response:
    """Return 200 if searches and events can be served, else 503 naming what fails. Needs no key."""
    failing = []
    try:
        context.storage.ping()
    except StorageError:
        logger.exception("storage does not answer")
        failing.append("storage does not answer")
    background: threading.Thread | None = request.app.state.background
    if background is not None and not background.is_alive():
        failing.append("the worker inside this process has ended")
    if failing:
        return problem_response(request.scope, 503, "; ".join(failing), kind="not ready")
    return Ready()


@router.get(
    "/metrics",
    operation_id="get_metrics",
    dependencies=[ADMIN],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"example": 'embedding_studio_orders{status="pending"} 0.0'}}}
    },
)
def metrics(context: InContext, metrics: InMetrics) -> Response:
    """Return the numbers that Prometheus collects."""
    now = time.monotonic()
    try:
        metrics.set_orders(context.sessions_for_improvement.counts())
        _set_collections(context.storage, metrics, now)
    except (StorageError, CollectionNotFoundError):  # a collection may be dropped meanwhile
        logger.exception("storage cannot be asked for its numbers")
        metrics.set_orders({})
        metrics.set_objects({}, now)
        metrics.set_codes({})
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _set_collections(storage: Storage, metrics: Metrics, now: float) -> None:
    """Tell of collections; this process holds the codes of those alone that it has searched."""
    collections = storage.collections.list()
    if not metrics.are_counted({each.name for each in collections}, now):
        metrics.set_objects({each.name: storage.objects.count(each) for each in collections}, now)
    searched = [each for each in collections if each.name in metrics.searched]
    metrics.set_codes({each.name: storage.objects.codes(each) for each in searched})
