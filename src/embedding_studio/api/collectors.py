"""Where clients of other systems send what users did: Algolia's Insights, and OpenSearch UBI's collector.

The paths are theirs, so that a site changes the host and nothing else. The key comes as Algolia's does, in a
header or in the URL (``sendBeacon`` sends no headers), or as ``Authorization: Bearer``. A body is JSON,
whatever its type is said to be: a beacon's is ``text/plain``.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.security import APIKeyHeader, APIKeyQuery
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import (
    Credentials,
    InCaller,
    Token,
    UrlToken,
    identify,
    key_of,
    needs,
)
from embedding_studio.api.bodies import read
from embedding_studio.api.dependencies import InContext, InMetrics
from embedding_studio.api.fields import Id
from embedding_studio.api.guard import Caller
from embedding_studio.api.permissions import may_use, own_entries, require_collection
from embedding_studio.api.problems import wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import Scope
from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.domain.storable import is_id
from embedding_studio.errors import CollectionNotFoundError
from embedding_studio.importing import Importer, join_recorded
from embedding_studio.logs import Entry, NumberedRow, Placed, Unusable, algolia, placed_entries, ubi
from embedding_studio.logs.entries import Beside, id_of, seconds_of
from embedding_studio.telemetry.metrics import ServiceMetrics

router = APIRouter(tags=["collectors"])

HEADERS = ("X-Algolia-API-Key", "X-Algolia-Application-Id", "X-Algolia-Agent")
MOST_EVENTS = 1_000
MOST_DAYS = 30
DAY_SECONDS = 86_400

IN_HEADER = APIKeyHeader(name=HEADERS[0], auto_error=False, scheme_name="AlgoliaHeader")
IN_URL = APIKeyQuery(name=HEADERS[0], auto_error=False, scheme_name="AlgoliaUrl")


class Received(BaseModel):
    """What Algolia answers, and what became of the events: not each that is received can be used."""

    status: int = 200
    message: str = "OK"
    sessions: dict[str, int] = Field(default={}, description="disposition -> how many")
    events: dict[str, int] = Field(default={}, description="disposition -> how many")
    left_out: dict[str, int] = Field(default={}, description="reason -> how many are not stored")


async def _caller(  # noqa: PLR0917, a dependency's
    request: Request,
    credentials: Credentials,
    in_header: Annotated[str | None, Depends(IN_HEADER)],
    in_url: Annotated[str | None, Depends(IN_URL)],
    token: Token,
    token_in_url: UrlToken,
) -> Caller:
    in_url = in_url or request.query_params.get(HEADERS[0].lower())
    key = key_of(credentials) or in_header or key_of(None, in_url)
    return await identify(request, key, token or token_in_url)


async def _json(request: Request) -> Any:
    return await read(request, lambda given: given)


EVENTS = needs(Scope.EVENTS, _caller)
ADMIN = needs(Scope.ADMIN, _caller)
Json = Annotated[Any, Depends(_json)]


ALGOLIA_BODY = {"type": "object", "required": ["events"], "properties": {"events": {"type": "array"}}}
UBI_BODY = {"description": "One object, or a list of them; whatever is none is counted as left out."}


def _taking(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what the OpenAPI document says of a body that no model describes."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/1/events",
    operation_id="push_algolia_events",
    dependencies=[EVENTS],
    openapi_extra=_taking(ALGOLIA_BODY),
)
def push_algolia_events(body: Json, context: InContext, metrics: InMetrics, caller: InCaller) -> Received:
    """Record events of Algolia's Insights API: queryID is a session's id, and index its collection.

    An event without a queryID belongs to the latest search of its user that showed the object. Those whose
    search is unknown are counted under ``left_out``.
    """
    events = body.get("events") if isinstance(body, dict) else None
    if not isinstance(events, list):
        raise wrong_body("events are a list", "events")
    if len(events) > MOST_EVENTS:
        raise wrong_body(f"{len(events)} events at once are too many; send at most {MOST_EVENTS}", "events")
    by_index: dict[str, list[Placed]] = {}
    for number, event in enumerate(events):
        read = _algolia_event(event, number)
        by_index.setdefault(str(event["index"]), []).extend((f"events/{number}", each) for each in read)
    received = Received()
    for index, entries in by_index.items():
        require_collection(context, caller, index)
        collection = _collection(context, index)
        if collection is None:
            received.left_out[f"there is no collection {index!r}"] = len(entries)
        else:
            _store(
                context, metrics, collection, caller, own_entries(context, caller, entries), received=received
            )
    return received


@router.delete("/1/usertokens/{token:id}", operation_id="forget_algolia_user", dependencies=[ADMIN])
def forget_algolia_user(token: Annotated[Id, Path()], context: InContext) -> Received:
    """Remove all that is known of a user in every collection."""
    context.clickstream_dao.forget_user(token)
    return Received()


@router.post(
    "/ubi_queries",
    operation_id="push_ubi_queries",
    dependencies=[EVENTS],
    openapi_extra=_taking(UBI_BODY),
)
def push_ubi_queries(body: Json, context: InContext, metrics: InMetrics, caller: InCaller) -> Received:
    """Record queries of OpenSearch UBI, one or a list; application names the collection, if there is such."""
    return _ubi(body, context, metrics, caller)


@router.post(
    "/ubi_events",
    operation_id="push_ubi_events",
    dependencies=[EVENTS],
    openapi_extra=_taking(UBI_BODY),
)
def push_ubi_events(body: Json, context: InContext, metrics: InMetrics, caller: InCaller) -> Received:
    """Record events of OpenSearch UBI, one or a list; application names the collection, if there is such."""
    return _ubi(body, context, metrics, caller)


def _ubi(body: Any, context: Context, metrics: ServiceMetrics, caller: Caller) -> Received:
    rows = body if isinstance(body, list) else [body]
    if len(rows) > (most := context.settings.max_events_per_request):
        raise wrong_body(f"{len(rows)} rows at once are too many; send at most {most}")
    of_application: dict[str | None, Collection] = {}
    by_collection: dict[Collection, list[NumberedRow]] = {}
    for number, row in enumerate(rows):
        application = id_of(row.get("application")) if isinstance(row, dict) else None
        if application not in of_application:
            of_application[application] = _of_application(context, caller, application)
        usable = row if isinstance(row, dict) else Unusable("a row that is no JSON object")
        by_collection.setdefault(of_application[application], []).append((number, usable))
    received = Received()
    for collection, theirs in by_collection.items():
        require_collection(context, caller, collection.name)
        entries = own_entries(context, caller, placed_entries(ubi.read, theirs, source="row"))
        _store(context, metrics, collection, caller, entries, received=received)
    return received


def _of_application(context: Context, caller: Caller, application: str | None) -> Collection:
    # A bound key does not even learn whether there is another collection.
    is_known = application is not None and may_use(context.storage.collections, caller, application)
    named = _collection(context, application) if application is not None and is_known else None
    return named or context.storage.collections.get(DEFAULT_COLLECTION)


def _algolia_event(event: Any, number: int) -> Sequence[Entry]:
    if not isinstance(event, dict) or not is_id(event.get("index")):
        raise wrong_body("an event is a JSON object with the name of an index", "events", number)
    now = utc_timestamp()
    at = seconds_of(event.get("timestamp", now))
    if at is None or at < now - MOST_DAYS * DAY_SECONDS:
        raise wrong_body(
            f"timestamp is in milliseconds, at most {MOST_DAYS} days ago", "events", number, "timestamp"
        )
    try:
        return algolia.read_event(event | {"timestamp": at})
    except Beside:
        return ()
    except Unusable as reason:
        raise wrong_body(str(reason), "events", number) from None


def _collection(context: Context, name: str) -> Collection | None:
    with suppress(CollectionNotFoundError):
        return context.storage.collections.get(name)
    return None


def _store(
    context: Context,
    metrics: ServiceMetrics,
    collection: Collection,
    caller: Caller,
    entries: Iterable[Placed],
    *,
    received: Received,
) -> None:
    importer = Importer(
        context.storage,
        collection,
        weights=context.settings.event_weights,
        pushed=metrics.count_events,
        may_wait=True,
        sender=caller.name,
    )
    report = importer.run(join_recorded(context.clickstream_dao, collection, entries))
    for told, became in ((received.sessions, report.sessions), (received.events, report.events)):
        for disposition, number in became.items():
            told[disposition] = told.get(disposition, 0) + number
    for reason, left in report.left_out.items():
        received.left_out[reason] = received.left_out.get(reason, 0) + left.number
