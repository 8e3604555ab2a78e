"""Searches that were shown, and what users did with them."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, WRITE
from embedding_studio.api.dependencies import InContext, InMetrics
from embedding_studio.api.fields import Body, Id, Json, Text, UtcSeconds, Vectors, check_fit
from embedding_studio.api.problems import session_taken, wrong_body
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.sessions import (
    DEFAULT_COLLECTION,
    EventDisposition,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
)
from embedding_studio.errors import ConflictError

router = APIRouter(prefix="/clickstream", tags=["clickstream"])


class ShownResult(Body):
    object_id: Id
    rank: float | None = Field(default=None, description="distance under which it was ranked")
    meta: Json | None = None
    position: int | None = Field(
        default=None, ge=1, description="1 is the top; absent: the order of the list"
    )


class SessionBody(Body):
    session_id: Id
    search_query: Text = ""
    search_results: tuple[ShownResult, ...] = ()
    search_meta: Json | None = None
    user_id: Id | None = Field(default=None, description="absent: nothing personal is learnt")
    created_at: UtcSeconds = Field(default_factory=utc_timestamp)
    collection: Id = DEFAULT_COLLECTION
    query_vectors: Vectors | None = Field(
        default=None,
        description="the query as it was embedded; absent: it is embedded when it is learnt from",
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "session_id": "6cf4a6a5-0f7b-4c4f-9d4c-3f6f7b1c2d3e",
                    "search_query": "read a table from a file",
                    "search_results": [
                        {"object_id": "csv.reader", "rank": 0.31},
                        {"object_id": "pandas.read_csv", "rank": 0.35},
                    ],
                    "user_id": "ada",
                    "created_at": 1760000000,
                }
            ]
        }
    )


class EventBody(Body):
    object_id: Id
    event_type: Annotated[Text, Field(min_length=1, max_length=64)] = "click"
    event_id: Annotated[Id | None, Field(description="makes an event that is sent twice count once")] = None
    created_at: UtcSeconds = Field(default_factory=utc_timestamp)
    meta: Json | None = None


class EventsBody(Body):
    session_id: Id
    events: tuple[EventBody, ...]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "session_id": "6cf4a6a5-0f7b-4c4f-9d4c-3f6f7b1c2d3e",
                    "events": [
                        {"object_id": "pandas.read_csv", "event_type": "click", "created_at": 1760000012}
                    ],
                }
            ]
        }
    )


class SessionIdBody(Body):
    session_id: Id

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"session_id": "6cf4a6a5-0f7b-4c4f-9d4c-3f6f7b1c2d3e"}]}
    )


class EventReceipt(BaseModel):
    """What became of one event.

    An event of an ``unknown_object`` is kept but not learnt from; one of an ``unknown_session`` is not kept.
    """

    event_id: str
    object_id: str
    event_type: str
    disposition: EventDisposition


class EventsReceipt(BaseModel):
    """One receipt for each event, in the order in which they were sent."""

    session_id: str
    events: list[EventReceipt]


@router.post("/session", status_code=201, operation_id="register_session", dependencies=[WRITE])
def register_session(body: SessionBody, context: InContext) -> Session:
    """Record a search and what it showed. The same session again changes nothing."""
    if body.query_vectors is not None:
        check_fit(context.storage.collections.get(body.collection), body.query_vectors, "query_vectors")
    session = Session(
        session_id=body.session_id,
        search_query=body.search_query,
        user_id=body.user_id,
        created_at=body.created_at,
        collection=body.collection,
        search_results=tuple(SearchResultItem(**dict(result)) for result in body.search_results),
        search_meta=body.search_meta,
    )
    try:
        context.clickstream_dao.register_session(session, body.query_vectors)
    except ConflictError as error:
        raise session_taken(body.session_id) from error
    stored = context.clickstream_dao.get_session(body.session_id)
    return stored.model_copy(update={"events": ()})  # the key may write, and reads nothing back about a user


@router.get("/session", operation_id="get_session", dependencies=[ADMIN])
def get_session(session_id: Annotated[Id, Query()], context: InContext) -> Session:
    """Return a session with its results by position and its events by time."""
    return context.clickstream_dao.get_session(session_id)


@router.post("/session/events", operation_id="push_events", dependencies=[WRITE])
def push_events(body: EventsBody, context: InContext, metrics: InMetrics) -> EventsReceipt:
    """Record what a user did with results, and say of each event what became of it."""
    most = context.settings.max_events_per_request
    if len(body.events) > most:
        raise wrong_body(f"{len(body.events)} events at once are too many; send at most {most}", "events")
    events = [
        SessionEvent(
            session_id=body.session_id,
            object_id=event.object_id,
            event_type=event.event_type,
            created_at=event.created_at,
            event_id=event.event_id or "",
            meta=event.meta,
        )
        for event in body.events
    ]
    dispositions = context.clickstream_dao.push_events(events)
    metrics.count_events(events, dispositions)
    return EventsReceipt(
        session_id=body.session_id,
        events=[
            EventReceipt(
                event_id=event.event_id,
                object_id=event.object_id,
                event_type=event.event_type,
                disposition=disposition,
            )
            for event, disposition in zip(events, dispositions, strict=True)
        ],
    )


@router.post(
    "/session/irrelevant", status_code=204, operation_id="mark_session_irrelevant", dependencies=[WRITE]
)
def mark_session_irrelevant(body: SessionIdBody, context: InContext) -> None:
    """Let a session no longer count; what was learnt from it is unlearnt."""
    context.clickstream_dao.mark_irrelevant(body.session_id)


@router.post(
    "/internal/session/use-for-improvement", operation_id="use_session_for_improvement", dependencies=[ADMIN]
)
def use_session_for_improvement(body: SessionIdBody, context: InContext) -> SessionForImprovement:
    """Place an order to learn from a session, or place it anew."""
    return context.sessions_for_improvement.create(
        schema=SessionForImprovementCreateSchema(session_id=body.session_id)
    )
