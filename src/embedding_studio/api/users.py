"""What is known of users, and forgetting it."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id

router = APIRouter(prefix="/users", tags=["users"], dependencies=[ADMIN])


class Forgotten(BaseModel):
    sessions: int = Field(description="how many sessions of the user there were", examples=[12])


@router.delete("/{user_id:id}", operation_id="forget_user")
def forget_user(user_id: Annotated[Id, Path()], context: InContext) -> Forgotten:
    """Remove all that is known of a user in every collection: sessions, events, orders, what was learnt."""
    return Forgotten(sessions=context.clickstream_dao.forget_user(user_id))
