"""What is known of users, and forgetting it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id
from embedding_studio.api.quarantine import Quarantined, quarantined
from embedding_studio.domain.objects import JSON
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.personal_data import BEYOND, exported
from embedding_studio.user_state import map_of, moved_objects

router = APIRouter(prefix="/users", tags=["users"], dependencies=[ADMIN])


LINES = "application/x-ndjson"

UserId = Annotated[Id, Path()]
Name = Annotated[Id, Query(description="a collection or an alias")]


class PastQuery(BaseModel):
    """A search that the user is remembered by."""

    session_id: str
    search_query: str
    created_at: int = Field(description="UTC seconds")
    clicked_ids: tuple[str, ...]
    moved_ids: tuple[str, ...] = Field(description="objects of which this search moved the user's vectors")


class MovedObject(BaseModel):
    object_id: str
    degrees: float = Field(description="between the original and the user's own vector, at the part furthest")
    payload: JSON


class UserState(BaseModel):
    """What is learnt about a user in a collection; empty for an unknown user."""

    user_id: str
    collection: str
    queries: list[PastQuery] = Field(description="latest first")
    moved: list[MovedObject] = Field(description="furthest first")
    votes: int = Field(description="queries that may be shared with others, without a name")
    quarantine: list[Quarantined] = Field(description="why nothing is learnt from them; empty for most")


class MapPoint(BaseModel):
    kind: Literal["query", "object"]
    identity: str = Field(description="the session_id of a query, the object_id of an object")
    label: str
    before: tuple[float, float]
    after: tuple[float, float] | None = Field(description="of the user's own vector; null: not moved")
    clicked: bool


class UserMap(BaseModel):
    """The user's latest queries, the objects near them and those that moved, in two dimensions."""

    points: list[MapPoint]
    explained: float = Field(description="share of the variance that two dimensions show, in [0, 1]")


class Forgotten(BaseModel):
    sessions: int = Field(description="how many sessions of the user there were", examples=[12])
    removed: dict[str, int] = Field(
        description="how many rows of each table that has rows of users",
        examples=[{"sessions": 12, "session_events": 31, "query_memory": 9}],
    )
    not_reached: tuple[str, ...] = Field(default=BEYOND, description="where something may be left")


@router.get("/{user_id:id}/state", operation_id="get_user_state")
def get_user_state(user_id: UserId, context: InContext, collection: Name = DEFAULT_COLLECTION) -> UserState:
    """Return what is learnt about a user: past queries with what was clicked, and objects that moved."""
    found = context.storage.collections.get(collection)
    state = context.storage.personal.state(found, user_id)
    return UserState(
        user_id=user_id,
        collection=found.name,
        queries=[
            PastQuery(
                session_id=each.session_id,
                search_query=each.search_query,
                created_at=each.created_at,
                clicked_ids=each.clicked_ids,
                moved_ids=each.moved_ids,
            )
            for each in state.memories[::-1]
        ],
        moved=[
            MovedObject(object_id=each.object_id, degrees=each.degrees, payload=each.payload)
            for each in moved_objects(context.storage, found, state)
        ],
        votes=len(state.votes),
        quarantine=[
            quarantined(each)
            for each in context.storage.quarantine.list(user_id=user_id)
            if each.collection in {None, found.name}
        ],
    )


@router.get("/{user_id:id}/map", operation_id="get_user_map")
def get_user_map(user_id: UserId, context: InContext, collection: Name = DEFAULT_COLLECTION) -> UserMap:
    """Return a map of a user's latest queries, what is near them, and where their own vectors stand."""
    found = context.storage.collections.get(collection)
    drawn = map_of(context.storage, found, context.storage.personal.state(found, user_id))
    points = [
        MapPoint(
            kind=each.kind,
            identity=each.identity,
            label=each.label,
            before=each.before,
            after=each.after,
            clicked=each.clicked,
        )
        for each in drawn.points
    ]
    return UserMap(points=points, explained=drawn.explained)


@router.delete("/{user_id:id}", operation_id="forget_user")
def forget_user(user_id: UserId, context: InContext) -> Forgotten:
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
def export_user(user_id: UserId, context: InContext) -> StreamingResponse:
    """Return all that is kept about a user as JSON Lines: sessions, orders and what was learnt from them.

    Each line has a `kind`: session, order, memory, vectors or vote.
    """
    return StreamingResponse(exported(context.storage, user_id), media_type=LINES)
