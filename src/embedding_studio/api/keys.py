"""API keys: made, listed, replaced and revoked."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN, guard_of
from embedding_studio.api.bodies import Body, BodyRoute
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id, Text
from embedding_studio.api.problems import wrong_body
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import (
    MAX_COLLECTIONS,
    OF_ENVIRONMENT,
    ApiKey,
    KeyStatus,
    Scope,
    new_key,
    renewed,
)
from embedding_studio.domain.storable import check_id
from embedding_studio.errors import InvalidInputError

router = APIRouter(prefix="/keys", tags=["keys"], route_class=BodyRoute, dependencies=[ADMIN])

KeyId = Annotated[
    str,
    Path(min_length=1, max_length=64, description="the second last part of a key"),
    AfterValidator(check_id),
]
DAY_SECONDS = 86_400
OLD_SECONDS = 7 * DAY_SECONDS
MOST_SECONDS = 366 * DAY_SECONDS


class KeyBody(Body):
    name: Text = Field(description="who uses it")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
    collections: Annotated[list[Id], Field(max_length=MAX_COLLECTIONS)] = Field(
        default=[], description="names or aliases of those that it is for; empty: all"
    )
    requires_user_token: bool = Field(
        default=False, description="it speaks for a user only with the user's token: for browsers"
    )
    expires_at: int | None = Field(default=None, description="UTC seconds; absent: never")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "the shop's server", "scopes": ["search", "events"], "collections": ["shoes-2"]}
            ]
        }
    )


class RotationBody(Body):
    old_seconds: int = Field(
        default=OLD_SECONDS, ge=0, le=MOST_SECONDS, description="so long the old key stays good"
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"old_seconds": DAY_SECONDS}]})


class KeyInfo(BaseModel):
    """What is known of a key; the key itself is not."""

    key_id: str
    name: str
    scopes: list[Scope]
    collections: list[str] = Field(description="empty: all")
    requires_user_token: bool
    status: KeyStatus
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None = Field(description="UTC seconds, up to an hour too early; null: never")


class NewKey(KeyInfo):
    key: str = Field(description="the key, which is shown this once and never again")


class KeysInfo(BaseModel):
    keys: list[KeyInfo]


class Disregarded(BaseModel):
    sessions: int = Field(description="how many count no longer")


@router.get("", operation_id="list_keys")
def list_keys(context: InContext) -> KeysInfo:
    """Return all keys in the order in which they were made, those that ended too."""
    return KeysInfo(keys=[KeyInfo(**_shown(key)) for key in context.storage.keys.list()])


@router.post("", status_code=201, operation_id="create_key")
def create_key(body: KeyBody, context: InContext, request: Request) -> NewKey:
    """Make a key. The answer alone has it; what is kept is its hash."""
    if body.requires_user_token and guard_of(request).tokens is None:
        raise wrong_body(
            "this service cannot check tokens; set USER_TOKEN_SECRET or USER_TOKEN_JWKS",
            "requires_user_token",
        )
    try:
        kept, key = new_key(
            body.name,
            body.scopes,
            collections=body.collections,
            requires_user_token=body.requires_user_token,
            expires_at=body.expires_at,
            now=utc_timestamp(),
        )
    except InvalidInputError as error:
        raise wrong_body(str(error)) from error
    context.storage.keys.add(kept)
    return NewKey(**_shown(kept), key=key)


@router.post("/{key_id}/rotate", status_code=201, operation_id="rotate_key")
def rotate_key(key_id: KeyId, body: RotationBody, context: InContext, request: Request) -> NewKey:
    """Make a key that may do the same; the old one stays good for a while, or until it is revoked."""
    keys, now = context.storage.keys, utc_timestamp()
    kept, key = renewed(keys.get(key_id), now=now)
    keys.replace(key_id, kept, until=now + body.old_seconds, now=now)
    guard_of(request).ring.forget(key_id)
    return NewKey(**_shown(kept), key=key)


@router.delete("/{key_id}", operation_id="revoke_key")
def revoke_key(key_id: KeyId, context: InContext, request: Request) -> KeyInfo:
    """Let a key be good no more: here at once, and in two seconds in every process."""
    revoked = context.storage.keys.revoke(key_id, now=utc_timestamp())
    guard_of(request).ring.forget(key_id)
    return KeyInfo(**_shown(revoked))


@router.post("/{key_id}/disregard", operation_id="disregard_key")
def disregard_key(key_id: KeyId, context: InContext) -> Disregarded:
    """Let no session count any longer that came by a key, as of one that was stolen; a worker unlearns them.

    For one of the environment the id is its name. A key that is still good goes on recording.
    """
    if key_id not in OF_ENVIRONMENT:
        context.storage.keys.get(key_id)
    return Disregarded(sessions=context.clickstream_dao.disregard(key_id))


def _shown(key: ApiKey) -> dict[str, Any]:
    told = asdict(key) | {"status": key.status(utc_timestamp())}
    del told["secret_hash"]
    return told
