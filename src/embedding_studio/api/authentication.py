"""What a route asks of its caller: a key with a scope, and where it names a user, the user's token.

Without any key, in the environment or in the database, the service is open, which is for one's own machine.
A guard is a dependency of a route; ``InCaller`` is who passed it.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, APIKeyQuery, HTTPAuthorizationCredentials, HTTPBearer

from embedding_studio.api.guard import USER_TOKEN_HEADER, Caller, Guard
from embedding_studio.domain.keys import Scope

KEY_IN_URL, USER_TOKEN_IN_URL = "api_key", "user_token"

BEARER = HTTPBearer(
    auto_error=False,
    description="a key with the scope of the route, ADMIN_API_KEY, or WRITE_API_KEY for searching and"
    " sending events",
)
TOKEN = APIKeyHeader(
    name=USER_TOKEN_HEADER, auto_error=False, scheme_name="UserToken", description="who the user is, signed"
)
URL_KEY = APIKeyQuery(name=KEY_IN_URL, auto_error=False, scheme_name="KeyInUrl")
URL_TOKEN = APIKeyQuery(name=USER_TOKEN_IN_URL, auto_error=False, scheme_name="UserTokenInUrl")

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
Token = Annotated[str | None, Depends(TOKEN)]
UrlKey = Annotated[str | None, Depends(URL_KEY)]
UrlToken = Annotated[str | None, Depends(URL_TOKEN)]


async def identify(request: Request, key: str | None, token: str | None) -> Caller:
    """Return who calls; a request is looked at once, whatever asks for it.

    Args:
        key: in Latin-1, as headers are read.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        address = request.client.host if request.client else ""
        host = request.headers.get("host", "")
        caller = request.state.caller = await guard_of(request).caller(key, token, address, host)
    return caller


def guard_of(request: Request) -> Guard:
    """Return the guard of the service, which is of its context."""
    state = request.app.state
    if state.guard.context is not state.context:
        state.guard = Guard(state.context, state.memory)
    guard: Guard = state.guard
    return guard


def key_of(credentials: HTTPAuthorizationCredentials | None, in_url: str | None = None) -> str | None:
    """Return the key that was sent, in Latin-1; that of the header, or else that of the URL."""
    if credentials is not None:
        return credentials.credentials
    return in_url.encode(errors="replace").decode("latin-1") if in_url else None


async def _in_headers(request: Request, credentials: Credentials, token: Token) -> Caller:
    return await identify(request, key_of(credentials), token)


async def _of_beacon(
    request: Request,
    credentials: Credentials,
    token: Token,
    in_url: UrlKey,
    token_in_url: UrlToken,
) -> Caller:
    """Return who calls, as above or by what the URL says: ``sendBeacon`` sends no headers."""
    return await identify(request, key_of(credentials, in_url), token or token_in_url)


def needs(scope: Scope, who: Callable[..., Awaitable[Caller]] = _in_headers) -> Any:
    """Return a guard: it raises ``Refused`` where the caller has not the scope."""

    async def check(caller: Annotated[Caller, Depends(who)]) -> Caller:
        caller.require(scope)
        return caller

    return Depends(check)


async def _who_passed(request: Request) -> Caller:
    """Return who passed the guard of a route; there is none where a route has no guard."""
    caller: Caller = request.state.caller
    return caller


SEARCH = needs(Scope.SEARCH)
EVENTS = needs(Scope.EVENTS)
BEACON = needs(Scope.EVENTS, _of_beacon)
OBJECTS = needs(Scope.OBJECTS)
ADMIN = needs(Scope.ADMIN)
InCaller = Annotated[Caller, Depends(_who_passed)]
