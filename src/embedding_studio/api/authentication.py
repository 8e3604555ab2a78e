"""Bearer keys: who may do what.

With neither key set the service is open, which is for one's own machine. With one set, the write
key may search and send sessions and events (it may live in a browser, so it reads nothing back
about a user); the admin key may do everything.
"""

import hmac
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from embedding_studio.api.dependencies import InContext

REALM = 'Bearer realm="embedding-studio"'
BEARER = HTTPBearer(
    auto_error=False, description="ADMIN_API_KEY, or WRITE_API_KEY for searching and sending events"
)

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]


async def may_write(context: InContext, credentials: Credentials) -> bool:
    """Return whether the caller may also administer.

    Raises:
        HTTPException: 401, the key is missing or unknown.
    """
    admin_key, write_key = context.settings.admin_api_key, context.settings.write_api_key
    if admin_key is None and write_key is None:
        return True
    if credentials is None:
        raise HTTPException(
            401,
            "this service asks for a key: send `Authorization: Bearer ...`",
            headers={"WWW-Authenticate": REALM},
        )
    is_admin = _is(admin_key, credentials.credentials)
    if not (_is(write_key, credentials.credentials) or is_admin):
        raise HTTPException(
            401, "this key is not known", headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
        )
    return is_admin


IsAdmin = Annotated[bool, Depends(may_write)]


async def may_administer(is_admin: IsAdmin) -> None:
    """Return if the caller may do everything.

    Raises:
        HTTPException: 401, or 403: the key is the write key.
    """
    check_admin(is_admin=is_admin)


def check_admin(*, is_admin: bool) -> None:
    if not is_admin:
        raise HTTPException(
            403,
            "the write key may search and send sessions and events; this needs the admin key",
            headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope"'},
        )


WRITE = Depends(may_write)
ADMIN = Depends(may_administer)


def _is(key: SecretStr | None, given: str) -> bool:
    """Compare in a time that does not tell how much of the key was right.

    Starlette reads headers as Latin-1; the bytes that were sent are those of UTF-8.
    """
    return key is not None and hmac.compare_digest(key.get_secret_value().encode(), given.encode("latin-1"))
