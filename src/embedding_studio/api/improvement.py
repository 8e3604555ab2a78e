"""Orders: sessions waiting to be learnt from, and what became of them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id
from embedding_studio.domain.sessions import (
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)

router = APIRouter(prefix="/improvement", tags=["improvement"], dependencies=[ADMIN])

SessionId = Annotated[Id, Path(description="the session that the order is for")]


class OrdersPage(BaseModel):
    """Orders, latest change first."""

    orders: list[SessionForImprovement]
    next_page_offset: int | None = Field(default=None, description="absent on the last page")


class ImprovementSummary(BaseModel):
    orders: dict[SessionForImprovementStatus, int] = Field(
        description="how many orders stand in each status",
        examples=[{"pending": 2, "processing": 1, "done": 40, "failed": 0, "refused": 3}],
    )


@router.get("/summary", operation_id="get_improvement_summary")
def get_improvement_summary(context: InContext) -> ImprovementSummary:
    """Return how many orders stand in each status."""
    return ImprovementSummary(orders=context.sessions_for_improvement.counts())


@router.get("/orders", operation_id="list_orders")
def list_orders(
    context: InContext,
    status: Annotated[SessionForImprovementStatus | None, Query(description="absent: any")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> OrdersPage:
    """Return orders, latest change first."""
    found = context.sessions_for_improvement.list(status=status, limit=limit + 1, offset=offset)
    return OrdersPage(orders=found[:limit], next_page_offset=offset + limit if len(found) > limit else None)


@router.get("/orders/{session_id:id}", operation_id="get_order")
def get_order(session_id: SessionId, context: InContext) -> SessionForImprovement:
    """Return the order of a session, with its attempts and why it was refused or failed."""
    return context.sessions_for_improvement.get(session_id)


@router.post("/orders/{session_id:id}/retry", operation_id="retry_order")
def retry_order(session_id: SessionId, context: InContext) -> SessionForImprovement:
    """Place an order again, whatever became of it: it is pending and has no attempts behind it."""
    context.sessions_for_improvement.get(session_id)
    return context.sessions_for_improvement.create(
        schema=SessionForImprovementCreateSchema(session_id=session_id)
    )


@router.delete("/orders/{session_id:id}", status_code=204, operation_id="cancel_order")
def cancel_order(session_id: SessionId, context: InContext) -> None:
    """Remove an order that is pending, failed or refused; its session counts no longer.

    What was learnt from the session before is unlearnt when its user is next learnt from; to unlearn it at
    once, mark the session irrelevant.
    """
    context.sessions_for_improvement.cancel(session_id)
