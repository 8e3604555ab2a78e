"""For engines that search elsewhere: a query as clicks bend it, and candidates in the order for a user."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, SEARCH, InCaller
from embedding_studio.api.bodies import Body, BodyRoute, Many
from embedding_studio.api.dependencies import InContext, InThreads, in_thread, threads_for
from embedding_studio.api.fields import Id, Query, Vectors, check_fit
from embedding_studio.api.guard import Caller
from embedding_studio.api.permissions import check_new, require_collection, user_of
from embedding_studio.api.problems import session_taken, wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.domain.limits import MAX_CANDIDATES
from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.errors import ConflictError
from embedding_studio.search import BentQuery, RankedPage

router = APIRouter(prefix="/embeddings", tags=["embeddings"], route_class=BodyRoute)


class CandidateBody(Body):
    object_id: Id
    vectors: Vectors | None = Field(
        default=None, description="one for each part; absent: those of the collection, if it has the object"
    )


class RankBody(Body):
    search_query: Query = Field(description="a text, or the query's vector, or the vectors of its parts")
    candidates: Annotated[Many[CandidateBody], Field(max_length=MAX_CANDIDATES)] = Field(
        description="what your search found, the best first, each object once"
    )
    limit: int | None = Field(
        default=None, ge=1, le=MAX_CANDIDATES, description="how many are returned, and recorded; absent: all"
    )
    user_id: Id | None = Field(default=None, description="absent: the user is unknown")
    create_session: bool = Field(default=False, description="record the query and what is shown for it")
    session_id: Id | None = Field(default=None, description="id of the session to record")
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "search_query": "read a table from a file",
                    "candidates": [{"object_id": "csv.reader"}, {"object_id": "pandas.read_csv"}],
                    "user_id": "ada",
                    "create_session": True,
                }
            ]
        }
    )


class BendBody(Body):
    search_query: Query = Field(description="a text, or the query's vector, or the vectors of its parts")
    user_id: Id | None = Field(default=None, description="absent: the user is unknown")
    collection: Id = DEFAULT_COLLECTION

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"search_query": "read a table from a file", "user_id": "ada"}]}
    )


class Ranked(BaseModel):
    object_id: str
    position: int = Field(description="1 is the top")
    given_position: int = Field(description="where it stood among the candidates")
    distance_change: float = Field(description="by clicks; below 0 is nearer")
    personalised: bool = Field(description="whether clicks took part in its place")


class RankedAnswer(BaseModel):
    results: list[Ranked]
    session_id: str | None = Field(description="the session that recorded this page; null if none did")
    personalised: bool = Field(
        description="whether clicks bear on this query; if not, the order is the one given"
    )
    unknown: list[str] = Field(
        description="not in the collection, and without vectors: these keep their places, and nothing is "
        "learnt from clicks on them"
    )


class Moved(BaseModel):
    object_id: str
    gate: float = Field(description="g: it is as similar as (1 - g) by its originals + g by these vectors")
    vectors: list[list[float]] = Field(description="the user's own, one for each part")


class Factor(BaseModel):
    object_id: str
    factor: float = Field(description="its distance is multiplied by it (under dot, the gap to the least)")


class BentAnswer(BaseModel):
    query_vectors: list[list[float]] = Field(
        description="one for each part of the query; those of the query itself where no click bears on it"
    )
    personalised: bool = Field(description="whether clicks bear on this query")
    moved: list[Moved] = Field(description="objects of which the user's own vectors count for this query")
    factors: list[Factor] = Field(
        description="objects brought nearer (below 1) or sent away by what was clicked"
    )


@router.post("/rank", operation_id="rank_candidates", dependencies=[SEARCH])
async def rank_candidates(
    body: RankBody, context: InContext, caller: InCaller, threads: InThreads
) -> RankedAnswer:
    """Return what another search found in the order for this user.

    Where no click bears on the query, the order stays as it is.
    """
    those = threads_for(body.search_query, context, threads)
    return await in_thread(those, _ranked, body, context, caller)


@router.post("/bend", operation_id="bend_query", dependencies=[ADMIN])
async def bend_query(body: BendBody, context: InContext, threads: InThreads) -> BentAnswer:
    """Return what clicks make of a query, for an engine that searches elsewhere. Nothing is recorded."""
    return await in_thread(threads_for(body.search_query, context, threads), _bent, body, context)


def _known(body: RankBody | BendBody, context: Context) -> Collection:
    """Return the collection that is asked, once the vectors of the query are seen to fit."""
    collection = context.storage.collections.get(body.collection)
    if not isinstance(body.search_query, str):
        check_fit(collection, body.search_query, "search_query")
    return collection


def _ranked(body: RankBody, context: Context, caller: Caller) -> RankedAnswer:
    user_id = user_of(caller, body.user_id)
    require_collection(context, caller, body.collection)
    if body.create_session:
        check_new(caller, body.session_id)
    places: dict[str, int] = {}
    for place, each in enumerate(body.candidates):
        if (first := places.setdefault(each.object_id, place)) != place:
            raise wrong_body(
                f"number {first} has this id too; send each once", "candidates", place, "object_id"
            )
    collection = _known(body, context)
    for place, each in enumerate(body.candidates):
        if each.vectors is not None:
            check_fit(collection, each.vectors, "candidates", place, "vectors")
    try:
        page = context.search.rank(
            body.search_query,
            [each.object_id for each in body.candidates],
            vectors={each.object_id: each.vectors for each in body.candidates if each.vectors is not None},
            limit=body.limit,
            collection=body.collection,
            user_id=user_id,
            create_session=body.create_session,
            session_id=body.session_id,
            sender=caller.name,
        )
    except ConflictError as error:
        raise session_taken(body.session_id) from error
    return _ranked_answer(page)


def _ranked_answer(page: RankedPage) -> RankedAnswer:
    return RankedAnswer(
        results=[
            Ranked(
                object_id=each.object_id,
                position=each.position,
                given_position=each.given_position,
                distance_change=each.distance_change,
                personalised=each.personalised,
            )
            for each in page.results
        ],
        session_id=page.session_id,
        personalised=page.personalised,
        unknown=list(page.unknown),
    )


def _bent(body: BendBody, context: Context) -> BentAnswer:
    _known(body, context)
    bent: BentQuery = context.search.bent(body.search_query, collection=body.collection, user_id=body.user_id)
    return BentAnswer(
        query_vectors=bent.queries.tolist(),
        personalised=bent.personalised,
        moved=[
            Moved(object_id=each.object_id, gate=each.gate, vectors=each.vectors.tolist())
            for each in bent.moved
        ],
        factors=[Factor(object_id=name, factor=factor) for name, factor in bent.factors.items()],
    )
