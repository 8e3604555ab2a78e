"""What a route may ask for."""

from typing import Annotated

from fastapi import Depends, Request

from embedding_studio.api.metrics import Metrics
from embedding_studio.bootstrap import Context


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


InContext = Annotated[Context, Depends(_context)]
InMetrics = Annotated[Metrics, Depends(_metrics)]
