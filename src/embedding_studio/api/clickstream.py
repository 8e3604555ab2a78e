"""Searches that were shown, and what users did with them."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, WRITE
from embedding_studio.api.dependencies import InContext, InMetrics
from embedding_studio.api.fields import Body, Id, Json, Text, UtcSeconds, Vectors, check_fit
from embedding_studio.api.problems import session_taken, wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.sessions import (
    DEFAULT_COLLECTION,
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
)
from embedding_studio.errors import ConflictError
from embedding_studio.telemetry.metrics import ServiceMetrics

router = APIRouter(prefix="/clickstream", tags=["clickstream"])


WHAT = {"events": "events", "sessions": "sessions and events"}
"""What is counted under a field of a body."""


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


class RecordedSessionBody(SessionBody):
    events: tuple[EventBody, ...] = Field(default=(), description="what was done with the results so far")


class SessionsBody(Body):
    sessions: tuple[RecordedSessionBody, ...]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "sessions": [
                        {
                            "session_id": "6cf4a6a5-0f7b-4c4f-9d4c-3f6f7b1c2d3e",
                            "search_query": "read a table from a file",
                            "search_results": [{"object_id": "csv.reader"}, {"object_id": "pandas.read_csv"}],
                            "user_id": "ada",
                            "created_at": 1760000000,
                            "events": [{"object_id": "pandas.read_csv", "created_at": 1760000012}],
                        }
                    ]
                }
            ]
        }
    )


class EventOfSessionBody(EventBody):
    session_id: Id


class EventsOfSessionsBody(Body):
    events: tuple[EventOfSessionBody, ...]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "session_id": "6cf4a6a5-0f7b-4c4f-9d4c-3f6f7b1c2d3e",
                            "object_id": "pandas.read_csv",
                            "created_at": 1760000012,
                        }
                    ]
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


class SessionReceipt(BaseModel):
    """What became of a session; one that is ``taken``, by another user, query or collection, is not kept."""

    session_id: str
    disposition: SessionDisposition


class SessionsReceipt(BaseModel):
    """One receipt for each session, in the order in which they were sent."""

    sessions: list[SessionReceipt]


class EventOfSessionReceipt(EventReceipt):
    session_id: str


class EventsOfSessionsReceipt(BaseModel):
    """One receipt for each event, in the order in which they were sent."""

    events: list[EventOfSessionReceipt]


@router.post("/session", status_code=201, operation_id="register_session", dependencies=[WRITE])
def register_session(body: SessionBody, context: InContext) -> Session:
    """Record a search and what it showed. The same session again changes nothing."""
    if body.query_vectors is not None:
        check_fit(context.storage.collections.get(body.collection), body.query_vectors, "query_vectors")
    try:
        context.clickstream_dao.register_session(_session(body), body.query_vectors)
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
    events = [_event(body.session_id, event) for event in body.events]
    dispositions = _push(events, context, metrics)
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


@router.post("/sessions", operation_id="record_sessions", dependencies=[WRITE])
def record_sessions(body: SessionsBody, context: InContext) -> SessionsReceipt:
    """Record many searches with what they showed and what was done; those that are known are continued."""
    _check_number(sum(1 + len(session.events) for session in body.sessions), context, "sessions")
    collections = {session.collection for session in body.sessions if session.query_vectors is not None}
    known = {name: context.storage.collections.get(name) for name in collections}
    for number, session in enumerate(body.sessions):
        if session.query_vectors is not None:
            check_fit(known[session.collection], session.query_vectors, "sessions", number, "query_vectors")
    recorded = [RecordedSession(_session(each, each.events), each.query_vectors) for each in body.sessions]
    dispositions = context.clickstream_dao.record(recorded)
    return SessionsReceipt(
        sessions=[
            SessionReceipt(session_id=each.session_id, disposition=disposition)
            for each, disposition in zip(body.sessions, dispositions, strict=True)
        ]
    )


@router.post("/events", operation_id="push_events_of_sessions", dependencies=[WRITE])
def push_events_of_sessions(
    body: EventsOfSessionsBody, context: InContext, metrics: InMetrics
) -> EventsOfSessionsReceipt:
    """Record what users did in several sessions, and say of each event what became of it."""
    events = [_event(each.session_id, each) for each in body.events]
    dispositions = _push(events, context, metrics)
    return EventsOfSessionsReceipt(
        events=[
            EventOfSessionReceipt(
                session_id=event.session_id,
                event_id=event.event_id,
                object_id=event.object_id,
                event_type=event.event_type,
                disposition=disposition,
            )
            for event, disposition in zip(events, dispositions, strict=True)
        ]
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


def _session(body: SessionBody, events: Iterable[EventBody] = ()) -> Session:
    return Session(
        session_id=body.session_id,
        search_query=body.search_query,
        user_id=body.user_id,
        created_at=body.created_at,
        collection=body.collection,
        search_results=tuple(SearchResultItem(**dict(result)) for result in body.search_results),
        search_meta=body.search_meta,
        events=tuple(_event(body.session_id, event) for event in events),
    )


def _event(session_id: str, body: EventBody) -> SessionEvent:
    return SessionEvent(
        session_id=session_id,
        object_id=body.object_id,
        event_type=body.event_type,
        created_at=body.created_at,
        event_id=body.event_id or "",
        meta=body.meta,
    )


def _push(events: list[SessionEvent], context: Context, metrics: ServiceMetrics) -> list[EventDisposition]:
    _check_number(len(events), context, "events")
    dispositions = context.clickstream_dao.push_events(events)
    metrics.count_events(events, dispositions)
    return dispositions


def _check_number(number: int, context: Context, place: str) -> None:
    most = context.settings.max_events_per_request
    if number > most:
        raise wrong_body(f"{number} {WHAT[place]} at once are too many; send at most {most}", place)
