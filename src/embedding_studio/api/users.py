"""What is known of users, and forgetting it."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id
from embedding_studio.personal_data import BEYOND, exported

router = APIRouter(prefix="/users", tags=["users"], dependencies=[ADMIN])


LINES = "application/x-ndjson"


class Forgotten(BaseModel):
    sessions: int = Field(description="how many sessions of the user there were", examples=[12])
    removed: dict[str, int] = Field(
        description="how many rows of each table that has rows of users",
        examples=[{"sessions": 12, "session_events": 31, "query_memory": 9}],
    )
    not_reached: tuple[str, ...] = Field(default=BEYOND, description="where something may be left")


@router.delete("/{user_id:id}", operation_id="forget_user")
def forget_user(user_id: Annotated[Id, Path()], context: InContext) -> Forgotten:
    """Remove all that is known of a user in every collection: sessions, events, orders, what was learnt."""
    removed = context.clickstream_dao.forget_user(user_id)
    return Forgotten(sessions=removed["sessions"], removed=removed)


@router.get(
    "/{user_id:id}/export",
    operation_id="export_user",
    response_class=StreamingResponse,
    responses={
        200: {"content": {LINES: {"example": '{"kind":"session","session_id":"s1","user_id":"ada"}'}}}
    },
)
def export_user(user_id: Annotated[Id, Path()], context: InContext) -> StreamingResponse:
    """Return all that is kept about a user as JSON Lines: sessions, orders and what was learnt from them.

    Each line has a `kind`: session, order, memory, vectors or vote.
    """
    return StreamingResponse(exported(context.storage, user_id), media_type=LINES)
