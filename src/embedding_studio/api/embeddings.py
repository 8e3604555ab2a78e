"""Search, and the objects that are searched for."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import to_json

from embedding_studio.api.authentication import OBJECTS, SEARCH, InCaller
from embedding_studio.api.bodies import Body, BodyRoute, Many
from embedding_studio.api.dependencies import (
    InContext,
    InMetrics,
    InThreads,
    check_embedder,
    in_thread,
    threads_for,
)
from embedding_studio.api.fields import Filter, Id, Json, Query, Text, Vectors, check_fit
from embedding_studio.api.guard import Caller
from embedding_studio.api.permissions import check_new, require_collection, require_session, user_of
from embedding_studio.api.problems import session_taken, wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.filters import check_field
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.keys import Scope
from embedding_studio.domain.objects import JSON, CatalogueObject
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import ConflictError, InvalidVectorsError
from embedding_studio.search import MAX_LIMIT, MAX_REACH, Explanation, SearchPage, SearchRequest, SortBy

router = APIRouter(prefix="/embeddings", tags=["embeddings"], route_class=BodyRoute)

MAX_OBJECTS = 1_000
"""So many objects are read, or payloads replaced, in one request."""

ASKED_BY_DEFAULT = SearchRequest()

FILTER = (
    "what the payload must say, as a query of one of the kinds below. A dot in a field steps into an object, "
    "or is part of a key at the top; a range is of numbers, or of texts such as ISO dates"
)


class SortBody(Body):
    field: Annotated[
        Text,
        Field(min_length=1, description="of the payload, as in a filter; objects without it come last"),
        AfterValidator(check_field),
    ]
    order: Literal["asc", "desc"] = "asc"

    def pair(self) -> SortBy:
        return self.field, "ascending" if self.order == "asc" else "descending"


class SearchBody(Body):
    search_query: Query = Field(description="a text, or the query's vector, or the vectors of its parts")
    limit: int = Field(default=ASKED_BY_DEFAULT.limit, ge=1, le=MAX_LIMIT)
    offset: int = Field(default=ASKED_BY_DEFAULT.offset, ge=0, le=MAX_REACH)
    max_distance: float | None = Field(default=None, description="inclusive")
    filter: Filter | None = Field(default=None, description=FILTER)
    user_id: Id | None = Field(default=None, description="absent: the plain search")
    create_session: bool = Field(default=False, description="record the query and what is shown for it")
    session_id: Id | None = Field(
        default=None, description="id of the session to record; with an offset, the session to continue"
    )
    sort_by: SortBody | None = Field(default=None, description="absent: by distance")
    explain: bool = Field(
        default=False, description="say which past queries moved each result; needs the admin key"
    )
    exploration_ratio: float | None = Field(
        default=None, ge=0, le=1, description="share of slots that show the plain search's next result"
    )
    collection: Id = DEFAULT_COLLECTION

    def request(self) -> SearchRequest:
        return SearchRequest(
            limit=self.limit,
            offset=self.offset,
            max_distance=self.max_distance,
            filter=self.filter and self.filter.as_sent(),
            sort_by=self.sort_by and self.sort_by.pair(),
            exploration_ratio=self.exploration_ratio,
        )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "search_query": "read a table from a file",
                    "limit": 5,
                    "filter": {"query": {"term": {"field": "package", "value": "csv"}}},
                    "user_id": "ada",
                    "create_session": True,
                },
                {"search_query": [[0.12, -0.4, 0.9]], "collection": "shoes-2"},
            ]
        }
    )


class ItemBody(Body):
    object_id: Id
    payload: Json = Field(default_factory=dict)
    text: Text | None = Field(default=None, description="is embedded by the service")
    vectors: Vectors | None = Field(default=None, description="one for each part, as your model gave them")
    item_info: Json | None = Field(
        default=None, description="accepted from clients of the existing system; not kept"
    )


class UpsertBody(Body):
    items: Many[ItemBody]
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "object_id": "csv.reader",
                            "text": "Return a reader object that will process lines from the given csvfile.",
                            "payload": {"package": "csv", "kind": "function"},
                        }
                    ]
                },
                {
                    "collection": "shoes-2",
                    "items": [{"object_id": "s1", "vectors": [[0.1, 0.7, -0.2]], "payload": {"price": 70}}],
                },
            ]
        }
    )


class DeleteBody(Body):
    object_ids: Many[Id]
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(json_schema_extra={"examples": [{"object_ids": ["csv.reader"]}]})


class PayloadBody(Body):
    object_id: Id
    payload: Json


class PayloadsBody(Body):
    payloads: Annotated[Many[PayloadBody], Field(max_length=MAX_OBJECTS)]
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"payloads": [{"object_id": "csv.reader", "payload": {"package": "csv"}}]}]
        }
    )


class ObjectsBody(Body):
    object_ids: Annotated[Many[Id], Field(max_length=MAX_OBJECTS)]
    with_vectors: bool = True
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(json_schema_extra={"examples": [{"object_ids": ["csv.reader"]}]})


class ScrollBody(Body):
    after: Id | None = Field(default=None, description="`next_after` of the page before; absent: the first")
    limit: int = Field(default=100, ge=1, le=MAX_OBJECTS)
    filter: Filter | None = Field(default=None, description=FILTER)
    with_vectors: bool = False
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"limit": 50, "filter": {"query": {"term": {"field": "package", "value": "csv"}}}},
                {"after": "csv.reader", "with_vectors": True},
            ]
        }
    )


class FoundObject(BaseModel):
    object_id: str
    distance: float = Field(description="smaller is nearer, under every metric")
    payload: JSON
    position: int = Field(description="1 is the top of the first page")
    personalised: bool = Field(
        description="whether clicks took part in its distance: the user's own, or shared ones of others"
    )
    explanation: Explanation | None = None


class FoundPage(BaseModel):
    search_results: list[FoundObject]
    session_id: str | None = Field(description="the session that recorded this page; null if none did")
    next_page_offset: int | None = Field(description="null on the last page")
    personalised: bool = Field(description="whether clicks bear on this query")
    metric_type: MetricType
    metric_aggregation_type: MetricAggregationType
    distance_direction: Literal["smaller_is_nearer"] = "smaller_is_nearer"
    is_sorted: bool | None = Field(
        description="whether any object has a value in the field of sort_by; null where none was asked for"
    )


class Indexed(BaseModel):
    """What became of the items; their number is the sum."""

    indexed: int = Field(description="stored with new vectors")
    updated: int = Field(
        description="stored with a new payload; the text is the same, and so are its vectors"
    )
    unchanged: int = Field(description="there already, text and payload")


class Deleted(BaseModel):
    deleted: int = Field(description="how many were there")


class PayloadsReplaced(BaseModel):
    updated: int
    unknown: list[str] = Field(description="ids of which there is no object, sorted")


class StoredObject(BaseModel):
    object_id: str
    payload: JSON
    vectors: list[list[float]] | None = Field(description="one for each part; null where not asked for")


class StoredObjects(BaseModel):
    objects: list[StoredObject]


class ScrolledPage(BaseModel):
    objects: list[StoredObject] = Field(description="by object_id, in the order of its UTF-8 bytes")
    next_after: str | None = Field(description="where the next page begins; null on the last page")


@router.post(
    "/similarity-search", operation_id="similarity_search", response_model=FoundPage, dependencies=[SEARCH]
)
async def similarity_search(
    *,
    request: Request,
    body: SearchBody,
    context: InContext,
    metrics: InMetrics,
    caller: InCaller,
    threads: InThreads,
) -> Response:
    """Return what is nearest to a query, for this user."""
    if body.explain:
        caller.require(Scope.ADMIN)
    those = threads_for(body.search_query, context, threads)
    page, content = await in_thread(those, _searched, body, context, caller)
    metrics.searched.add(page.collection.name)
    request.state.personalised = page.personalised
    request.state.explored_slots = [result.propensity < 1 for result in page.results].count(True)
    return Response(content, media_type="application/json")


def _searched(body: SearchBody, context: Context, caller: Caller) -> tuple[SearchPage, bytes]:
    """Return a page, and the answer in JSON, which takes its time where payloads are large."""
    user_id = user_of(caller, body.user_id)
    require_collection(context, caller, body.collection)
    if body.session_id is not None and body.offset > 0:
        require_session(context, caller, body.session_id)
    elif body.create_session:
        check_new(caller, body.session_id)
    try:
        page = context.search.search(
            body.search_query,
            body.request(),
            collection=body.collection,
            user_id=user_id,
            explain=body.explain,
            create_session=body.create_session,
            session_id=body.session_id,
            sender=caller.name,
        )
    except ConflictError as error:
        raise session_taken(body.session_id) from error
    except InvalidVectorsError:
        if not isinstance(body.search_query, str):
            check_fit(context.storage.collections.get(body.collection), body.search_query, "search_query")
        raise
    return page, _written(page)


def _written(page: SearchPage) -> bytes:
    """Return a page in the JSON of a ``FoundPage``, which takes a third of the time without making one."""
    index = page.collection.index
    return to_json(
        {
            "search_results": [
                {
                    "object_id": result.object_id,
                    "distance": result.distance,
                    "payload": result.payload,
                    "position": result.position,
                    "personalised": result.personalised,
                    "explanation": result.explanation,
                }
                for result in page.results
            ],
            "session_id": page.session_id,
            "next_page_offset": page.next_page_offset,
            "personalised": page.personalised,
            "metric_type": index.metric_type,
            "metric_aggregation_type": index.metric_aggregation_type,
            "distance_direction": "smaller_is_nearer",
            "is_sorted": page.is_sorted,
        },
        inf_nan_mode="null",
    )


@router.post("/upsert", operation_id="upsert_objects", dependencies=[OBJECTS])
async def upsert_objects(
    body: UpsertBody, context: InContext, caller: InCaller, threads: InThreads
) -> Indexed:
    """Store objects, replacing those of equal id. If an item is refused, nothing is stored."""
    has_texts = any(item.text is not None for item in body.items)
    those = threads.text_upserts if has_texts else threads.others
    return await in_thread(those, _upserted, body, context, caller)


def _upserted(body: UpsertBody, context: Context, caller: Caller) -> Indexed:
    require_collection(context, caller, body.collection)
    if body.collection == DEFAULT_COLLECTION and context.embedder is not None:
        collection = context.collection()  # made on first use, so that nothing must be set up to begin
    else:
        collection = context.storage.collections.get(body.collection)
    _check_each_once([item.object_id for item in body.items], "items")
    objects: list[CatalogueText | CatalogueObject] = []
    for place, item in enumerate(body.items):
        if item.text is not None and item.vectors is None:
            check_embedder(context, "items", place, "text")
            if not item.text.strip():
                raise wrong_body("the text is empty, so there is nothing to embed", "items", place, "text")
            objects.append(CatalogueText(item.object_id, item.text, item.payload))
        elif item.vectors is not None and item.text is None:
            check_fit(collection, item.vectors, "items", place, "vectors")
            objects.append(CatalogueObject(item.object_id, item.vectors, item.payload))
        else:
            raise wrong_body("give either text or vectors", "items", place)
    report = context.index_objects(body.collection, objects)
    return Indexed(indexed=report.indexed, updated=report.updated, unchanged=report.unchanged)


@router.post("/delete", operation_id="delete_objects", dependencies=[OBJECTS])
def delete_objects(body: DeleteBody, context: InContext, caller: InCaller) -> Deleted:
    """Remove objects, and all that was learnt about them."""
    require_collection(context, caller, body.collection)
    collection = context.storage.collections.get(body.collection)
    return Deleted(deleted=context.storage.objects.delete(collection, body.object_ids))


@router.post("/payloads", operation_id="update_payloads", dependencies=[OBJECTS])
def update_payloads(body: PayloadsBody, context: InContext, caller: InCaller) -> PayloadsReplaced:
    """Replace the payloads of objects, each as a whole; vectors, and what was learnt about them, stay."""
    require_collection(context, caller, body.collection)
    _check_each_once([each.object_id for each in body.payloads], "payloads")
    collection = context.storage.collections.get(body.collection)
    unknown = context.storage.objects.update_payloads(
        collection, {each.object_id: each.payload for each in body.payloads}
    )
    return PayloadsReplaced(updated=len(body.payloads) - len(unknown), unknown=unknown)


@router.post("/objects", operation_id="get_objects", dependencies=[OBJECTS])
def get_objects(body: ObjectsBody, context: InContext, caller: InCaller) -> StoredObjects:
    """Return objects, those that exist, in the order asked for."""
    require_collection(context, caller, body.collection)
    collection = context.storage.collections.get(body.collection)
    found = context.storage.objects.get(collection, body.object_ids)
    return StoredObjects(objects=[_stored(each, with_vectors=body.with_vectors) for each in found])


@router.post("/scroll", operation_id="scroll_objects", dependencies=[OBJECTS])
def scroll_objects(body: ScrollBody, context: InContext, caller: InCaller) -> ScrolledPage:
    """Return the objects of a collection page by page, whatever it holds."""
    require_collection(context, caller, body.collection)
    collection = context.storage.collections.get(body.collection)
    found = context.storage.objects.scroll(
        collection, after=body.after, limit=body.limit + 1, filter=body.filter
    )
    page = found[: body.limit]
    return ScrolledPage(
        objects=[_stored(each, with_vectors=body.with_vectors) for each in page],
        next_after=page[-1].object_id if len(found) > len(page) else None,
    )


def _stored(item: CatalogueObject, *, with_vectors: bool) -> StoredObject:
    vectors = item.parts.tolist() if with_vectors else None
    return StoredObject(object_id=item.object_id, payload=item.payload, vectors=vectors)


def _check_each_once(object_ids: Sequence[str], field: str) -> None:
    places: dict[str, int] = {}
    for place, object_id in enumerate(object_ids):
        if (first := places.setdefault(object_id, place)) != place:
            raise wrong_body(
                f"number {first} has this id too; send an object once", field, place, "object_id"
            )
