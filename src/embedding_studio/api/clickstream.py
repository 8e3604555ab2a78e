"""Searches that were shown, and what users did with them."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, BEACON, EVENTS, InCaller
from embedding_studio.api.bodies import Body, BodyRoute, Many
from embedding_studio.api.dependencies import InContext, InMetrics
from embedding_studio.api.fields import Id, Json, Text, UtcSeconds, Vectors, check_fit
from embedding_studio.api.guard import Caller
from embedding_studio.api.permissions import (
    check_new,
    own_sessions,
    require_collection,
    require_session,
    user_of,
)
from embedding_studio.api.problems import session_taken, wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import Scope
from embedding_studio.domain.sessions import (
    DEFAULT_COLLECTION,
    MAX_POSITION,
    MAX_REACH,
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    disposition_of_type,
    name_of_event,
    not_ahead,
    trusted,
)
from embedding_studio.errors import ConflictError
from embedding_studio.telemetry.metrics import ServiceMetrics

router = APIRouter(prefix="/clickstream", tags=["clickstream"], route_class=BodyRoute)


WHAT = {"events": "events", "sessions": "sessions and events"}
"""What is counted under a field of a body."""


class ShownResult(Body):
    object_id: Id
    rank: float | None = Field(default=None, description="distance under which it was ranked")
    meta: Json | None = None
    position: int | None = Field(
        default=None,
        ge=0,
        le=MAX_POSITION,
        description="1 is the top, or 0 where a list begins with it; absent: the order of the list",
    )


class SessionBody(Body):
    session_id: Id
    search_query: Text = ""
    search_results: Annotated[Many[ShownResult], Field(max_length=MAX_REACH)] = ()
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
    takes_text: ClassVar[bool] = True

    session_id: Id
    events: Many[EventBody]

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
    events: Many[EventBody] = Field(default=(), description="what was done with the results so far")


class SessionsBody(Body):
    sessions: Many[RecordedSessionBody]

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
    takes_text: ClassVar[bool] = True

    events: Many[EventOfSessionBody]

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


class SessionSummary(BaseModel):
    """A search, what was done with it, and what became of it."""

    session_id: str
    collection: str
    user_id: str | None
    search_query: str
    created_at: int = Field(description="UTC seconds")
    is_irrelevant: bool
    results: int = Field(description="how many were shown")
    events: list[SessionEvent] = Field(description="by time; taken back ones have the type taken_back")
    order: SessionForImprovement | None = Field(
        description="what is to be learnt from it, or became of that; null: nothing was asked for"
    )


class SessionsPage(BaseModel):
    """Sessions, latest first."""

    sessions: list[SessionSummary]
    next_before: str | None = Field(description="where the next page begins; null on the last page")


class TakenBack(BaseModel):
    taken_back: int = Field(description="how many events no longer count")


class EventReceipt(BaseModel):
    """What became of one event.

    One whose session is not recorded yet is ``waiting`` for it, for a day; where too many wait, it is of an
    ``unknown_session`` and not kept. Nor is one in ``conflict``, whose id is that of an event of another type
    or on another object. Kept but not learnt from are one of an ``unknown_object``, which was
    not shown, one of an ``unknown_type``, which EVENT_WEIGHTS does not have, and one that is ``too_early``:
    dated more than a minute before its search.
    """

    event_id: str
    object_id: str
    event_type: str
    created_at: int = Field(description="UTC seconds; those of arrival where what was sent lies ahead")
    disposition: EventDisposition


class EventsReceipt(BaseModel):
    """One receipt for each event, in the order in which they were sent."""

    session_id: str
    events: list[EventReceipt]


class SessionReceipt(BaseModel):
    """What became of a session, and of its events in the order in which they were sent.

    One that is ``taken``, by another user, query or collection, is not kept, nor are its events.
    """

    session_id: str
    created_at: int = Field(description="UTC seconds; those of arrival where what was sent lies ahead")
    disposition: SessionDisposition
    events: list[EventReceipt]


class SessionsReceipt(BaseModel):
    """One receipt for each session, in the order in which they were sent."""

    sessions: list[SessionReceipt]


class EventOfSessionReceipt(EventReceipt):
    session_id: str


class EventsOfSessionsReceipt(BaseModel):
    """One receipt for each event, in the order in which they were sent."""

    events: list[EventOfSessionReceipt]


@router.post("/session", status_code=201, operation_id="register_session", dependencies=[EVENTS])
def register_session(body: SessionBody, context: InContext, caller: InCaller) -> Session:
    """Record a search and what it showed. The same session again changes nothing.

    With other results, of another user, or for another query it is a conflict.
    """
    session = _session(body, caller)
    require_collection(context, caller, body.collection)
    if body.query_vectors is not None:
        check_fit(context.storage.collections.get(body.collection), body.query_vectors, "query_vectors")
    try:
        is_new = context.clickstream_dao.register_session(session, body.query_vectors, sender=caller.name)
    except ConflictError as error:
        raise session_taken(body.session_id) from error
    stored = context.clickstream_dao.get_session(body.session_id)
    hidden: dict[str, Any] = {"events": ()}  # the key may write, and reads nothing back about a user
    if not is_new and not caller.may(Scope.ADMIN):
        hidden |= {
            "search_results": session.search_results,
            "search_meta": session.search_meta,
            "request": None,
            "is_irrelevant": False,
        }
    return stored.model_copy(update=hidden)


@router.get("/session", operation_id="get_session", dependencies=[ADMIN])
def get_session(session_id: Annotated[Id, Query()], context: InContext) -> Session:
    """Return a session with its results by position and its events by time."""
    return context.clickstream_dao.get_session(session_id)


@router.get("/sessions", operation_id="list_sessions", dependencies=[ADMIN])
def list_sessions(
    context: InContext,
    collection: Annotated[Id | None, Query(description="or an alias of it; absent: any")] = None,
    user_id: Annotated[Id | None, Query(description="absent: of anybody")] = None,
    before: Annotated[
        str | None,
        Query(
            description="`next_before` of the page before; absent: the latest",
            pattern=r"^[0-9]{1,18}:[^\x00]{1,512}$",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> SessionsPage:
    """Return sessions with what became of them, latest first."""
    found = context.clickstream_dao.latest(
        collection=None if collection is None else context.storage.collections.get(collection),
        user_id=user_id,
        before=None if before is None else _cursor(before),
        limit=limit + 1,
    )
    orders = context.sessions_for_improvement.of([each.session_id for each in found[:limit]])
    sessions = [
        SessionSummary(
            session_id=each.session_id,
            collection=each.collection,
            user_id=each.user_id,
            search_query=each.search_query,
            created_at=each.created_at,
            is_irrelevant=each.is_irrelevant,
            results=len(each.search_results),
            events=list(each.events),
            order=orders.get(each.session_id),
        )
        for each in found[:limit]
    ]
    last = sessions[-1] if len(found) > limit else None
    return SessionsPage(sessions=sessions, next_before=last and f"{last.created_at}:{last.session_id}")


@router.delete(
    "/session/events",
    operation_id="take_back_events",
    dependencies=[EVENTS],
)
def take_back_events(
    session_id: Annotated[Id, Query()],
    object_id: Annotated[Id, Query()],
    context: InContext,
    caller: InCaller,
) -> TakenBack:
    """Let what a user did with one result no longer count; what was learnt from it is unlearnt."""
    require_session(context, caller, session_id)
    return TakenBack(taken_back=context.clickstream_dao.take_back(session_id, object_id))


@router.post("/session/events", operation_id="push_events", dependencies=[BEACON])
def push_events(body: EventsBody, context: InContext, metrics: InMetrics, caller: InCaller) -> EventsReceipt:
    """Record what a user did with results, and say of each event what became of it."""
    events = [_event(body.session_id, event) for event in body.events]
    dispositions = _push(events, context, metrics, caller)
    return EventsReceipt(session_id=body.session_id, events=_receipts(events, dispositions))


@router.post("/sessions", operation_id="record_sessions", dependencies=[EVENTS])
def record_sessions(
    body: SessionsBody, context: InContext, metrics: InMetrics, caller: InCaller
) -> SessionsReceipt:
    """Record many searches with what they showed and what was done; those that are known are continued."""
    _check_number(sum(1 + len(session.events) for session in body.sessions), context, "sessions")
    recorded = [
        RecordedSession(_session(each, caller, each.events), each.query_vectors, caller.name)
        for each in body.sessions
    ]
    for name in sorted({session.collection for session in body.sessions}):
        require_collection(context, caller, name)
    collections = {session.collection for session in body.sessions if session.query_vectors is not None}
    known = {name: context.storage.collections.get(name) for name in collections}
    for number, session in enumerate(body.sessions):
        if session.query_vectors is not None:
            check_fit(known[session.collection], session.query_vectors, "sessions", number, "query_vectors")
    receipts = []
    for each, (disposition, became) in zip(recorded, context.clickstream_dao.record(recorded), strict=True):
        events = each.session.events if became else ()
        receipts.append(
            SessionReceipt(
                session_id=each.session.session_id,
                created_at=each.session.created_at,
                disposition=disposition,
                events=_receipts(events, _counted(events, became, context, metrics)),
            )
        )
    return SessionsReceipt(sessions=receipts)


@router.post("/events", operation_id="push_events_of_sessions", dependencies=[BEACON])
def push_events_of_sessions(
    body: EventsOfSessionsBody, context: InContext, metrics: InMetrics, caller: InCaller
) -> EventsOfSessionsReceipt:
    """Record what users did in several sessions, and say of each event what became of it."""
    events = [_event(each.session_id, each) for each in body.events]
    dispositions = _push(events, context, metrics, caller)
    return EventsOfSessionsReceipt(
        events=[
            EventOfSessionReceipt(
                session_id=event.session_id,
                event_id=event.event_id,
                object_id=event.object_id,
                event_type=event.event_type,
                created_at=event.created_at,
                disposition=disposition,
            )
            for event, disposition in zip(events, dispositions, strict=True)
        ]
    )


@router.post(
    "/session/irrelevant", status_code=204, operation_id="mark_session_irrelevant", dependencies=[EVENTS]
)
def mark_session_irrelevant(body: SessionIdBody, context: InContext, caller: InCaller) -> None:
    """Let a session no longer count; what was learnt from it is unlearnt."""
    require_session(context, caller, body.session_id)
    context.clickstream_dao.mark_irrelevant(body.session_id)


@router.post(
    "/internal/session/use-for-improvement", operation_id="use_session_for_improvement", dependencies=[ADMIN]
)
def use_session_for_improvement(body: SessionIdBody, context: InContext) -> SessionForImprovement:
    """Place an order to learn from a session, or place it again."""
    return context.sessions_for_improvement.create(
        schema=SessionForImprovementCreateSchema(session_id=body.session_id)
    )


def _cursor(given: str) -> tuple[int, str]:
    at, _, session_id = given.partition(":")
    return int(at), session_id


def _session(body: SessionBody, caller: Caller, events: Iterable[EventBody] = ()) -> Session:
    check_new(caller, body.session_id)
    return Session(
        session_id=body.session_id,
        search_query=body.search_query,
        user_id=user_of(caller, body.user_id),
        created_at=body.created_at,
        collection=body.collection,
        search_results=_shown(body.search_results),
        search_meta=body.search_meta,
        events=tuple(_event(body.session_id, event) for event in events),
    )


# What a body was checked for is not checked again: to do so took as long as to read it.


def _shown(results: Sequence[ShownResult]) -> tuple[SearchResultItem, ...]:
    """Return results as they were shown, from position 1 on also where they are counted from 0 on."""
    first = 1 if any(result.position == 0 for result in results) else 0
    return tuple(
        trusted(
            SearchResultItem,
            object_id=result.object_id,
            rank=result.rank,
            meta=result.meta,
            position=slot if result.position is None else result.position + first,
        )
        for slot, result in enumerate(results, start=1)
    )


def _event(session_id: str, body: EventBody) -> SessionEvent:
    return trusted(
        SessionEvent,
        session_id=session_id,
        object_id=body.object_id,
        event_type=body.event_type,
        created_at=not_ahead(body.created_at),
        event_id=body.event_id or name_of_event(session_id, body.object_id, body.event_type, body.created_at),
        meta=body.meta,
    )


def _push(
    events: list[SessionEvent], context: Context, metrics: ServiceMetrics, caller: Caller
) -> list[EventDisposition]:
    _check_number(len(events), context, "events")
    return _counted(events, _pushed(events, context, caller), context, metrics)


def _counted(
    events: Sequence[SessionEvent],
    dispositions: Sequence[EventDisposition],
    context: Context,
    metrics: ServiceMetrics,
) -> list[EventDisposition]:
    """Count events, and return what became of them."""
    metrics.count_events(events, dispositions)
    weights = context.settings.event_weights
    return [
        disposition_of_type(disposition, event.event_type, weights)
        for event, disposition in zip(events, dispositions, strict=True)
    ]


def _receipts(events: Sequence[SessionEvent], dispositions: Sequence[EventDisposition]) -> list[EventReceipt]:
    return [
        EventReceipt(
            event_id=event.event_id,
            object_id=event.object_id,
            event_type=event.event_type,
            created_at=event.created_at,
            disposition=disposition,
        )
        for event, disposition in zip(events, dispositions, strict=True)
    ]


def _pushed(events: list[SessionEvent], context: Context, caller: Caller) -> list[EventDisposition]:
    """Return what became of events; for a bound caller a session of another is one that is not known.

    Nor do its events wait for a session: it might become another's.
    """
    if not caller.is_bound:
        return context.clickstream_dao.push_events(events, sender=caller.name)
    is_own = own_sessions(context, caller, [event.session_id for event in events])
    own = [event for event in events if is_own.get(event.session_id)]
    became = iter(context.clickstream_dao.push_events(own, may_wait=False))
    return [
        next(became) if is_own.get(event.session_id) else EventDisposition.UNKNOWN_SESSION for event in events
    ]


def _check_number(number: int, context: Context, place: str) -> None:
    most = context.settings.max_events_per_request
    if number > most:
        raise wrong_body(f"{number} {WHAT[place]} at once are too many; send at most {most}", place)
