"""What a route may ask for. Looking it up is ``async``, which spares a hop to another thread."""

from typing import Annotated

from fastapi import Depends, Request

from embedding_studio.bootstrap import Context
from embedding_studio.telemetry.metrics import ServiceMetrics


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _metrics(request: Request) -> ServiceMetrics:
    metrics: ServiceMetrics = request.app.state.metrics
    return metrics


InContext = Annotated[Context, Depends(_context)]
InMetrics = Annotated[ServiceMetrics, Depends(_metrics)]
