"""Collections of objects, and the aliases that stand for them."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, OBJECTS, InCaller
from embedding_studio.api.bodies import Body, BodyRoute
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id
from embedding_studio.api.permissions import may_use, require_collection
from embedding_studio.api.problems import wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import Collection, OwnPast
from embedding_studio.embedders.names import is_called
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.storage.attached import count_if_known
from embedding_studio.storage.attached import create_collection as create_in
from embedding_studio.storage.ports import Storage

router = APIRouter(prefix="/collections", tags=["collections"], route_class=BodyRoute)

Name = Annotated[Id, Path()]


class CollectionBody(Body):
    name: Id
    index: SearchIndexInfo = SearchIndexInfo()
    embedder: Id | None = Field(
        default=None,
        description="the service's embedder, by its name or as EMBEDDER has it, which then embeds texts;"
        " absent: callers bring vectors",
    )
    gate_threshold: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="cosine below which a past query is not near; absent: what it has, else the setting",
    )
    fill: Id | None = Field(
        default=None,
        description="the name in ATTACHED_STORES of a store that finds the objects, and is filled with them;"
        " absent: they are found here",
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "shoes-2",
                    "index": {"dimensions": 384, "metric_type": "cosine", "metric_aggregation_type": "min"},
                }
            ]
        }
    )


class CollectionChangesBody(Body):
    gate_threshold: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="cosine below which a past query is not near; null: that of the settings",
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"gate_threshold": 0.7}]})


class AliasBody(Body):
    collection: Id

    model_config = ConfigDict(json_schema_extra={"examples": [{"collection": "shoes-2"}]})


class CollectionInfo(BaseModel):
    name: str
    index: SearchIndexInfo
    embedder: str | None
    gate_threshold: float | None
    own_past: OwnPast | None = Field(
        description="how much a user's past queries count, in [0, 1], as learnt from the log; null: in full"
    )
    aliases: list[str]
    objects: int | None = Field(description="how many it holds; null: another system does not say just now")
    attached: str | None = Field(
        default=None, description="where its objects are, if another system keeps them, which is only read"
    )
    filled: str | None = Field(
        default=None, description="what finds its objects, if another system does, which is filled with them"
    )


class CollectionsInfo(BaseModel):
    collections: list[CollectionInfo]
    embedder: str | None = Field(
        description="by which the service embeds texts; null: callers bring vectors, or it cannot be made"
    )


class AliasInfo(BaseModel):
    alias: str
    collection: str


@router.get("", operation_id="list_collections", dependencies=[OBJECTS])
def list_collections(context: InContext, caller: InCaller) -> CollectionsInfo:
    """Return all collections by name, or those that the key is for."""
    collections = context.storage.collections
    told = [each for each in collections.list() if may_use(collections, caller, each.name)]
    return CollectionsInfo(
        collections=[_info(each, context.storage) for each in told], embedder=_embedder_of(context)
    )


@router.post("", status_code=201, operation_id="create_collection", dependencies=[ADMIN])
def create_collection(body: CollectionBody, context: InContext) -> CollectionInfo:
    """Create a collection; one of the same name and kind is left as it is."""
    index, name = body.index, None
    if body.embedder is not None:
        embedder = context.embedder
        if embedder is None or not is_called(embedder.name, body.embedder):
            has = f"embeds with {embedder.name!r}" if embedder else "has no embedder"
            raise wrong_body(f"this service {has}; leave the field out to bring vectors", "embedder")
        name = embedder.name
        if index.dimensions not in (None, embedder.dimensions):
            raise wrong_body(
                f"the embedder {name!r} makes vectors of {embedder.dimensions} dimensions",
                "index",
                "dimensions",
            )
        index = index.of_size(embedder.dimensions, f"the vectors of {name!r}")
    elif index.dimensions is None:
        raise wrong_body(
            "say how many dimensions the vectors have, or name an embedder", "index", "dimensions"
        )
    if body.fill not in (None, *context.settings.attached_stores):
        raise wrong_body("there is no store of this name; name one of ATTACHED_STORES", "fill")
    collection = create_in(
        context.storage,
        body.name,
        index,
        embedder=name,
        gate_threshold=body.gate_threshold,
        fill=body.fill,
    )
    return _info(collection, context.storage)


@router.put("/aliases/{alias:id}", operation_id="set_alias", dependencies=[ADMIN])
def set_alias(alias: Name, body: AliasBody, context: InContext) -> AliasInfo:
    """Let an alias stand for a collection from now on; what was learnt under it is re-learnt there."""
    context.storage.collections.set_alias(alias, body.collection)
    return AliasInfo(alias=alias, collection=body.collection)


@router.delete("/aliases/{alias:id}", status_code=204, operation_id="drop_alias", dependencies=[ADMIN])
def drop_alias(alias: Name, context: InContext) -> None:
    """Let an alias stand for nothing; what was learnt under it is unlearnt."""
    context.storage.collections.drop_alias(alias)


@router.get("/{name:id}", operation_id="get_collection", dependencies=[OBJECTS])
def get_collection(name: Name, context: InContext, caller: InCaller) -> CollectionInfo:
    """Return the collection that a name or alias stands for."""
    require_collection(context, caller, name)
    return _info(context.storage.collections.get(name), context.storage)


@router.patch("/{name:id}", operation_id="update_collection", dependencies=[ADMIN])
def update_collection(name: Name, body: CollectionChangesBody, context: InContext) -> CollectionInfo:
    """Change what a collection has of its own; the fields that are left out stay."""
    collections = context.storage.collections
    if "gate_threshold" in body.model_fields_set:
        collections.set_gate_threshold(collections.get(name).name, body.gate_threshold)
    return _info(collections.get(name), context.storage)


@router.delete("/{name:id}", status_code=204, operation_id="drop_collection", dependencies=[ADMIN])
def drop_collection(name: Name, context: InContext) -> None:
    """Remove a collection with its objects and all that was learnt in it; sessions stay."""
    context.storage.collections.drop(name)


def _embedder_of(context: Context) -> str | None:
    try:
        return None if context.embedder is None else context.embedder.name
    except EmbeddingStudioError:  # as readyz says it; collections are there without
        return None


def _info(collection: Collection, storage: Storage) -> CollectionInfo:
    return CollectionInfo(
        name=collection.name,
        index=collection.index,
        embedder=collection.embedder,
        gate_threshold=collection.gate_threshold,
        own_past=collection.own_past,
        aliases=sorted(
            alias for alias, name in storage.collections.aliases().items() if name == collection.name
        ),
        objects=count_if_known(storage, collection),
        attached=None if collection.attached is None else str(collection.attached),
        filled=None if collection.filled is None else str(collection.filled),
    )
