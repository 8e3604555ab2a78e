"""Search, and the objects that are searched for."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, IsAdmin, check_admin
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Body, Id, Json, Query, Text, Vectors, check_fit
from embedding_studio.api.problems import session_taken, wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.domain.objects import JSON, CatalogueObject
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import ConflictError, InvalidFilterError
from embedding_studio.search import MAX_LIMIT, MAX_REACH, Explanation, SortBy

router = APIRouter(prefix="/embeddings", tags=["embeddings"])


class SortBody(Body):
    field: Annotated[Text, Field(min_length=1, description="of the payload; a dot steps into an object")]
    order: Literal["asc", "desc"] = "asc"


class SearchBody(Body):
    search_query: Query = Field(description="a text, or the query's vector, or the vectors of its parts")
    limit: int = Field(default=10, ge=1, le=MAX_LIMIT)
    offset: int = Field(default=0, ge=0, le=MAX_REACH)
    max_distance: float | None = Field(default=None, description="inclusive")
    filter: Json | None = Field(default=None, description='what the payload must say: `{"query": ...}`')
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
    items: tuple[ItemBody, ...]
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
    object_ids: tuple[Id, ...]
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(json_schema_extra={"examples": [{"object_ids": ["csv.reader"]}]})


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


class Indexed(BaseModel):
    """What became of the items; their number is the sum."""

    indexed: int = Field(description="stored with new vectors")
    updated: int = Field(
        description="stored with a new payload; the text is the same, and so are its vectors"
    )
    unchanged: int = Field(description="there already, text and payload")


class Deleted(BaseModel):
    deleted: int = Field(description="how many were there")


@router.post("/similarity-search", operation_id="similarity_search")
def similarity_search(request: Request, body: SearchBody, context: InContext, is_admin: IsAdmin) -> FoundPage:
    """Return what is nearest to a query, for this user."""
    if body.explain:
        check_admin(is_admin=is_admin)
    collection = context.storage.collections.get(body.collection)
    if isinstance(body.search_query, str):
        _check_embedder(context, "search_query")
    else:
        check_fit(collection, body.search_query, "search_query")
    sort_by: SortBy | None = None
    if body.sort_by is not None:
        sort_by = (body.sort_by.field, "ascending" if body.sort_by.order == "asc" else "descending")
    try:
        page = context.search.search(
            body.search_query,
            collection=body.collection,
            user_id=body.user_id,
            limit=body.limit,
            offset=body.offset,
            max_distance=body.max_distance,
            filter=_filter(body.filter),
            sort_by=sort_by,
            explain=body.explain,
            exploration_ratio=body.exploration_ratio,
            create_session=body.create_session,
            session_id=body.session_id,
        )
    except ConflictError as error:
        raise session_taken(body.session_id) from error
    request.state.personalised = page.personalised
    request.state.explored_slots = sum(result.propensity < 1 for result in page.results)
    found = [
        FoundObject(
            object_id=result.object_id,
            distance=result.distance,
            payload=result.payload,
            position=result.position,
            personalised=result.personalised,
            explanation=result.explanation,
        )
        for result in page.results
    ]
    return FoundPage(
        search_results=found,
        session_id=page.session_id,
        next_page_offset=page.next_page_offset,
        personalised=page.personalised,
        metric_type=collection.index.metric_type,
        metric_aggregation_type=collection.index.metric_aggregation_type,
    )


@router.post("/upsert", operation_id="upsert_objects", dependencies=[ADMIN])
def upsert_objects(body: UpsertBody, context: InContext) -> Indexed:
    """Store objects, replacing those of equal id. If an item is refused, nothing is stored."""
    if body.collection == DEFAULT_COLLECTION and context.embedder is not None:
        collection = context.collection()  # made on first use, so that nothing must be set up to begin
    else:
        collection = context.storage.collections.get(body.collection)
    places: dict[str, int] = {}
    objects: list[CatalogueText | CatalogueObject] = []
    for place, item in enumerate(body.items):
        if places.setdefault(item.object_id, place) != place:
            raise wrong_body(
                f"item {places[item.object_id]} has this id too; send an object once",
                "items",
                place,
                "object_id",
            )
        if item.text is not None and item.vectors is None:
            _check_embedder(context, "items", place, "text")
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


@router.post("/delete", operation_id="delete_objects", dependencies=[ADMIN])
def delete_objects(body: DeleteBody, context: InContext) -> Deleted:
    """Remove objects, and all that was learnt about them."""
    collection = context.storage.collections.get(body.collection)
    return Deleted(deleted=context.storage.objects.delete(collection, body.object_ids))


def _check_embedder(context: Context, *place: str | int) -> None:
    if context.embedder is None:
        raise wrong_body("this service has no embedder for texts; send vectors", *place)


def _filter(given: JSON | None) -> PayloadFilter | None:
    if given is None:
        return None
    try:
        return PayloadFilter.parse(given)
    except InvalidFilterError as error:
        raise wrong_body(str(error), "filter") from error
