"""Tokens that say who a user is: JSON Web Tokens, signed by whoever signs users in.

By which algorithm is a matter of the settings and never of the token: HS256 with a secret that both sides
share, or RS256 with the public keys of a JWKS (RFC 7517). A token expires, always.
"""

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anyio import to_thread

from embedding_studio.domain.storable import is_id
from embedding_studio.errors import InvalidSettingError
from embedding_studio.settings import Settings

if TYPE_CHECKING:  # heavy, and most services have no tokens
    import jwt

logger = logging.getLogger(__name__)

LEEWAY_SECONDS = 10
"""So much the clocks of who signs and of this service may differ."""
FRESH_SECONDS = 600
"""So long the keys of a JWKS are used before they are read again."""
PAUSE_SECONDS = 10
"""So long it is not read again, whatever keys tokens name."""
FETCH_SECONDS = 5
MAX_JWKS_BYTES = 200_000
FEWEST_BITS = 2048


class UserTokenError(Exception):
    """A token says nothing; the message says why."""


class KeysUnavailableError(Exception):
    """There are no keys to check tokens by, for they cannot be fetched."""


class VerificationKeys(Protocol):
    """By what tokens are checked."""

    algorithm: str

    async def key_for(self, token: str) -> Any:
        """Return the key for a token.

        Raises:
            UserTokenError: it names none of the keys.
            KeysUnavailableError: the keys cannot be read just now.
        """
        ...


@dataclass(frozen=True, slots=True)
class UserTokens:
    """Reads tokens.

    Attributes:
        claim: whose text is the user's id.
        audience, issuer: what ``aud`` and ``iss`` have to say; None: anything.
    """

    keys: VerificationKeys
    claim: str = "sub"
    audience: str | None = None
    issuer: str | None = None

    async def user_of(self, token: str) -> str:
        """Return the id of the user whose token this is.

        Raises:
            UserTokenError: it names no user, or is not valid.
            KeysUnavailableError: it cannot be checked just now.
        """
        import jwt

        key = await self.keys.key_for(token)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[self.keys.algorithm],
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", self.claim], "verify_aud": self.audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise UserTokenError("it has expired") from None
        except jwt.InvalidAlgorithmError:
            raise UserTokenError(f"it is not signed by {self.keys.algorithm}") from None
        except jwt.InvalidSignatureError:
            raise UserTokenError("its signature is wrong") from None
        except jwt.MissingRequiredClaimError as error:
            raise UserTokenError(f"it has no claim {error.claim!r}") from None
        except jwt.InvalidAudienceError:
            raise UserTokenError("it is for another audience") from None
        except jwt.InvalidIssuerError:
            raise UserTokenError("it is of another issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise UserTokenError("it is no JSON Web Token that can be used now") from None
        user_id = claims[self.claim]
        if not is_id(user_id):
            raise UserTokenError(f"its claim {self.claim!r} is no text that names a user")
        return user_id


def user_tokens(settings: Settings) -> UserTokens | None:
    """Return what reads tokens; None where the settings say nothing of them.

    Raises:
        InvalidSettingError: the keys cannot be used, or there is no package for them.
    """
    secret, jwks = settings.user_token_secret, settings.user_token_jwks
    keys: VerificationKeys
    if secret is not None:
        keys = SharedSecret(secret.get_secret_value())
    elif jwks is not None:
        keys = PublicKeys(jwks)
    else:
        return None
    import jwt  # noqa: F401, now and not in the loop, while a first request waits

    return UserTokens(
        keys,
        claim=settings.user_token_claim,
        audience=settings.user_token_audience,
        issuer=settings.user_token_issuer,
    )


class SharedSecret:
    algorithm = "HS256"

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def key_for(self, token: str) -> str:  # noqa: ARG002, the same for all
        return self._secret


class PublicKeys:
    """The RSA keys of a JWKS, in a file or at a URL.

    They are read again when they are old, and when a token names another; while they cannot be, those that
    were read before go on.

    Raises:
        InvalidSettingError: a file cannot be used. A URL is not asked before there is a token.
    """

    algorithm = "RS256"

    def __init__(self, source: str) -> None:
        if find_spec("cryptography") is None:
            raise InvalidSettingError(
                "USER_TOKEN_JWKS needs a package that is missing; pip install 'embedding-studio[jwks]'"
            )
        self._source = source
        self._keys: Sequence[jwt.PyJWK] = ()
        self._read_at = self._tried_at = float("-inf")
        self._reading = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        if not is_url(source):
            try:
                self._keys = usable_keys(_of_file(source))
            except (OSError, ValueError) as error:
                raise InvalidSettingError(f"USER_TOKEN_JWKS: {source} cannot be used: {error}") from error
            self._read_at = self._tried_at = time.monotonic()

    async def key_for(self, token: str) -> Any:
        import jwt

        try:
            named = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise UserTokenError("it is no JSON Web Token") from None
        found = self._named(named)
        if found is None:
            await self._read_again()
            found = self._named(named)
        elif time.monotonic() > self._read_at + FRESH_SECONDS and self._refreshing is None:
            self._refreshing = asyncio.create_task(self._read_again())  # in the background
            self._refreshing.add_done_callback(self._refreshed)
        if found is None and not self._keys:
            raise KeysUnavailableError
        if found is None:
            raise UserTokenError("it is signed by a key that is not known")
        return found.key

    def _named(self, name: str | None) -> "jwt.PyJWK | None":
        if name is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((each for each in self._keys if each.key_id == name), None)

    def _refreshed(self, _: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _read_again(self) -> None:
        import httpx

        async with self._reading:
            if time.monotonic() < self._tried_at + PAUSE_SECONDS:
                return
            self._tried_at = time.monotonic()
            try:
                self._keys = await to_thread.run_sync(self._read)
                self._read_at = time.monotonic()
            except (OSError, ValueError, httpx.HTTPError) as error:
                logger.warning("the keys of USER_TOKEN_JWKS cannot be read: %s", error)

    def _read(self) -> "list[jwt.PyJWK]":
        return usable_keys(_of_url(self._source) if is_url(self._source) else _of_file(self._source))


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def usable_keys(content: bytes) -> "list[jwt.PyJWK]":
    """Return the keys of a JWKS by which RS256 is checked.

    Raises:
        ValueError: there is none, or it holds a private key.
    """
    told = json.loads(content)
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        raise ValueError('a JWKS is a JSON object with a list "keys"')  # noqa: TRY004, of a file
    if any(isinstance(each, dict) and "d" in each for each in listed):
        raise ValueError("it holds a private key, which belongs to who signs alone; give the public ones")
    usable = [key for each in listed if (key := _public_key(each)) is not None]
    if not usable:
        raise ValueError(f"it holds no RSA key of at least {FEWEST_BITS} bits for RS256")
    return usable


def _public_key(given: Any) -> "jwt.PyJWK | None":
    if not isinstance(given, dict) or given.get("kty") != "RSA" or given.get("use", "sig") != "sig":
        return None
    if given.get("alg", "RS256") != "RS256":
        return None
    import jwt

    try:
        key = jwt.PyJWK(given, algorithm="RS256")
    except (jwt.PyJWTError, ValueError):
        return None
    return key if key.key.key_size >= FEWEST_BITS else None


def _of_file(path: str) -> bytes:
    return Path(path).read_bytes()


def _of_url(url: str) -> bytes:
    import httpx

    with httpx.stream("GET", url, timeout=FETCH_SECONDS, follow_redirects=False) as answer:
        answer.raise_for_status()
        content = b""
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > MAX_JWKS_BYTES:
                raise ValueError(f"it has more than {MAX_JWKS_BYTES} bytes")
        return content
