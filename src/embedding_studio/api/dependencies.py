"""What a route may ask for. Looking it up is ``async``, which spares a hop to another thread."""

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from embedding_studio.api.problems import wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.telemetry.metrics import ServiceMetrics

THREADS = 40
"""As many as serve everything else (anyio's own limit)."""


@dataclass(frozen=True, slots=True)
class TextThreads:
    """Threads for what may wait for an embedder, so that nothing else waits for it."""

    searches: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(THREADS))
    upserts: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(THREADS))


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _metrics(request: Request) -> ServiceMetrics:
    metrics: ServiceMetrics = request.app.state.metrics
    return metrics


async def _threads(request: Request) -> TextThreads:
    threads: TextThreads = request.app.state.threads
    return threads


InContext = Annotated[Context, Depends(_context)]
InMetrics = Annotated[ServiceMetrics, Depends(_metrics)]
InThreads = Annotated[TextThreads, Depends(_threads)]


def check_embedder(context: Context, *place: str | int) -> None:
    """Return if texts can be embedded.

    Raises:
        RequestValidationError: they cannot; of the text at this place of the body.
    """
    if context.embedder is None:
        raise wrong_body("this service has no embedder for texts; send vectors", *place)
