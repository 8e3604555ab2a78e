"""What a route may ask for. Looking it up is ``async``, which spares a hop to another thread."""

from typing import Annotated

from fastapi import Depends, Request

from embedding_studio.api.metrics import Metrics
from embedding_studio.bootstrap import Context


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


InContext = Annotated[Context, Depends(_context)]
InMetrics = Annotated[Metrics, Depends(_metrics)]
