"""Users from whom nothing is learnt: who they are, and what a person decides of one."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.bodies import Body, BodyRoute
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id, Text
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.storage.ports import QuarantineDecision, QuarantinedUser

router = APIRouter(prefix="/quarantine", tags=["quarantine"], dependencies=[ADMIN], route_class=BodyRoute)

UserId = Annotated[Id, Path()]


class Quarantined(BaseModel):
    """A user from whom nothing is learnt."""

    user_id: str
    collection: str | None = Field(
        description="in which their sessions were found to be a robot's; null: a person decided so, for all"
    )
    reason: str
    since: int = Field(description="UTC seconds")


class QuarantinePage(BaseModel):
    """Users from whom nothing is learnt, the latest first."""

    users: list[Quarantined]
    next_page_offset: int | None = Field(default=None, description="absent on the last page")


class ReasonBody(Body):
    reason: Annotated[Text, Field(min_length=1, max_length=500)] = "by hand"

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "our own crawler"}]})


@router.get("", operation_id="list_quarantined_users")
def list_quarantined_users(
    context: InContext,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> QuarantinePage:
    """Return users from whom nothing is learnt, with the reason, the latest first."""
    found = context.storage.quarantine.list(limit=limit + 1, offset=offset)
    return QuarantinePage(
        users=[quarantined(each) for each in found[:limit]],
        next_page_offset=offset + limit if len(found) > limit else None,
    )


@router.put("/{user_id:id}", status_code=204, operation_id="quarantine_user")
def quarantine_user(user_id: UserId, body: ReasonBody, context: InContext) -> None:
    """Learn nothing from a user until they are released, and unlearn what was learnt."""
    context.storage.quarantine.decide(user_id, QuarantineDecision(True, body.reason, utc_timestamp()))


@router.delete("/{user_id:id}", status_code=204, operation_id="release_user")
def release_user(user_id: UserId, context: InContext) -> None:
    """Learn from a user again; what they did up to now is not held against them any more."""
    context.storage.quarantine.decide(user_id, QuarantineDecision(False, "released", utc_timestamp()))


def quarantined(user: QuarantinedUser) -> Quarantined:
    return Quarantined(user_id=user.user_id, collection=user.collection, reason=user.reason, since=user.since)
