"""Who calls: a key and a user's token become a caller, with what it may do."""

import hmac
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from pydantic import SecretStr
from starlette.exceptions import HTTPException

from embedding_studio.api.keyring import KeyRing
from embedding_studio.api.rate_limits import Buckets, retry_after, shared_memory
from embedding_studio.api.user_tokens import KeysUnavailableError, UserTokenError, user_tokens
from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import ADMIN_API_KEY, WRITE_API_KEY, Scope, parsed_key
from embedding_studio.errors import shown

REALM = 'Bearer realm="embedding-studio"'
USER_TOKEN_HEADER = "X-User-Token"  # noqa: S105, the name of a header

WRONG_KEYS_PER_SECOND = 1.0
WRONG_KEYS_AT_ONCE = 20
"""Of one address; beyond, it is told to wait."""
BURST_SECONDS = 10
"""Whoever was quiet may ask as often at once as in so many seconds."""


class Refused(HTTPException):
    """A caller may not do this.

    Attributes:
        reason: under which it is counted.
    """

    def __init__(
        self, status: int, detail: str, *, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        collections: names of those that it may use; empty: all.
        is_one_user: whether it speaks for the user of its token alone, or for no user where it sent none.
        user_id: of the token.
        name: of the key.
    """

    scopes: frozenset[Scope]
    collections: tuple[str, ...] = ()
    is_one_user: bool = False
    user_id: str | None = None
    name: str = ""

    @property
    def is_bound(self) -> bool:
        """Whether there is something of others that it may not touch."""
        return self.is_one_user or bool(self.collections)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def require(self, scope: Scope) -> None:
        """Return if the caller may do what belongs to a scope.

        Raises:
            Refused: 403.
        """
        if not self.may(scope):
            has = " and ".join(sorted(self.scopes))
            raise Refused(
                403,
                f"this key is for {has}; this needs one with the scope {scope}",
                reason="scope",
                headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope"'},
            )


@dataclass(frozen=True, slots=True)
class _Known:
    """What a key stands for."""

    name: str
    scopes: frozenset[Scope]
    collections: tuple[str, ...] = ()
    requires_user_token: bool = False


ADMIN_KEY = _Known(ADMIN_API_KEY, frozenset({Scope.ADMIN}))
ANYBODY = _Known("", frozenset({Scope.ADMIN}))


@lru_cache(maxsize=64)
def is_own_name(host: str) -> bool:
    """Return whether a ``Host`` header is an address, or a name that no other site can have.

    A page of another site may let its own name stand for this machine, and would then be of one origin with
    an open service here (DNS rebinding).

    >>> [is_own_name(each) for each in ("localhost:8000", "[::1]:8000", "10.0.0.7", "evil.example")]
    [True, True, True, False]
    """
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if "." not in name.rstrip(".") or name.rstrip(".").endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Knows keys, and reads the tokens of users.

    Args:
        memory: in which it stands who asked how often; None: its own.

    Raises:
        InvalidSettingError: tokens cannot be read as the settings want it.
    """

    def __init__(self, context: Context, memory: mmap.mmap | None = None) -> None:
        settings = context.settings
        memory = memory or shared_memory()
        self.context = context
        self.ring = KeyRing(lambda: context.storage.keys)
        self.tokens = user_tokens(settings)
        self._write_key = _Known(
            WRITE_API_KEY,
            frozenset({Scope.SEARCH, Scope.EVENTS}),
            requires_user_token=settings.write_api_key_requires_user_token,
        )
        self._wrong = Buckets("wrong", WRONG_KEYS_PER_SECOND, WRONG_KEYS_AT_ONCE, memory=memory)
        self._of_keys = _buckets("keys", settings.key_requests_per_second, memory)
        self._of_users = _buckets("users", settings.user_requests_per_second, memory)

    async def caller(self, key: str | None, token: str | None, address: str, host: str) -> Caller:
        """Return who calls.

        Args:
            key: in Latin-1, as headers are read.
            host: by which name the service is called.

        Raises:
            Refused: 401, the key or the token is missing or wrong; 421, an open service is called by a name
                that another site may have; 429, too often.
            StorageError: the key is one of the database, which does not answer.
        """
        known = await self._known(key, address)
        if known is ANYBODY and not is_own_name(host):
            raise Refused(
                421,
                f"without keys this service answers to addresses and to localhost, not to {shown(host)}, "
                "which a page of another site might let stand for it; set ADMIN_API_KEY",
                reason="host",
            )
        _check_rate(self._of_keys, known.name, "this key")  # before the token: a wrong one costs as much
        user_id = None if token is None else await self._user_of(token)
        _check_rate(self._of_users, user_id, "this user")
        return Caller(
            known.scopes,
            known.collections,
            known.requires_user_token or user_id is not None,
            user_id,
            known.name,
        )

    async def _known(self, key: str | None, address: str) -> _Known:
        settings = self.context.settings
        admin_key, write_key = settings.admin_api_key, settings.write_api_key
        if key is None:
            if admin_key is None and write_key is None and not await self.ring.has_any():
                return ANYBODY
            raise Refused(
                401,
                "this service asks for a key: send `Authorization: Bearer ...`",
                reason="no_key",
                headers={"WWW-Authenticate": REALM},
            )
        is_admin, is_write = _is(admin_key, key), _is(write_key, key)
        if is_admin or is_write:
            return ADMIN_KEY if is_admin else self._write_key
        if (found := await self._of_database(key)) is not None:
            return found
        if admin_key is None and write_key is None and not await self.ring.has_any():
            return ANYBODY
        if wait := self._wrong.take(network_of(address)):
            raise _too_often("too many wrong keys came from this address", wait)
        raise Refused(
            401,
            "this key is not known",
            reason="unknown_key",
            headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'},
        )

    async def _of_database(self, key: str) -> _Known | None:
        if (parsed := parsed_key(key)) is None:
            return None
        key_id, secret = parsed
        kept = await self.ring.find(key_id)
        if kept is None or not kept.has_secret(secret) or kept.status(utc_timestamp()) != "active":
            return None
        self.ring.note_use(kept)
        return _Known(key_id, frozenset(kept.scopes), kept.collections, kept.requires_user_token)

    async def _user_of(self, token: str) -> str:
        if self.tokens is None:
            raise _wrong_token("this service has neither USER_TOKEN_SECRET nor USER_TOKEN_JWKS to check it")
        try:
            return await self.tokens.user_of(token)
        except UserTokenError as error:
            raise _wrong_token(str(error)) from None
        except KeysUnavailableError:
            raise Refused(
                503,
                "the keys by which tokens of users are checked cannot be read; try again in a moment",
                reason="user_token",
                headers={"Retry-After": "10"},
            ) from None


def network_of(address: str) -> str:
    """Return what is counted by: an address, or in IPv6 the network of which anybody has many.

    >>> network_of("192.0.2.7"), network_of("2001:db8:1:2:3:4:5:6"), network_of("?")
    ('192.0.2.7', '2001:db8:1:2', '?')
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return ":".join(f"{int(part, 16):x}" for part in found.exploded.split(":")[:4])
    return address


def _buckets(kind: str, per_second: float, memory: mmap.mmap) -> Buckets | None:
    if per_second <= 0:
        return None
    return Buckets(kind, per_second, max(1.0, per_second * BURST_SECONDS), memory=memory)


def _check_rate(buckets: Buckets | None, name: str | None, whose: str) -> None:
    if buckets is not None and name and (wait := buckets.take(name)):
        raise _too_often(f"{whose} asks more often than this service allows", wait)


def _too_often(what: str, wait: float) -> Refused:
    seconds = retry_after(wait)
    return Refused(429, f"{what}; try again in {seconds} s", reason="rate", headers={"Retry-After": seconds})


def _wrong_token(why: str) -> Refused:
    return Refused(
        401,
        f"the token in {USER_TOKEN_HEADER} says nothing: {why}",
        reason="user_token",
        headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'},
    )


def _is(key: SecretStr | None, given: str) -> bool:
    """Compare in a time that does not tell how much of the key was right.

    Starlette reads headers as Latin-1; the bytes that were sent are those of UTF-8.
    """
    return key is not None and hmac.compare_digest(key.get_secret_value().encode(), given.encode("latin-1"))
