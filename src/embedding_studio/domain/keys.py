"""API keys: what one may do, and how it is written.

A key is ``es_<scopes>_<id>_<secret>``. Its secret has 256 bits of chance, so what is kept of it is one round
of SHA-256: a slow hash protects what people think up, and no secret is.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from embedding_studio.domain.storable import check_id, check_text
from embedding_studio.errors import InvalidInputError

ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
ID_LENGTH = 12
SECRET_BYTES = 32
MAX_NAME_LENGTH = 100
MAX_COLLECTIONS = 100
ADMIN_API_KEY, WRITE_API_KEY = OF_ENVIRONMENT = "ADMIN_API_KEY", "WRITE_API_KEY"
"""By which names those of the environment are known."""
SECOND_OF_NEVER = 253_402_300_800
"""The year 10000."""

PATTERN = re.compile(r"es_[a-z-]{1,40}_([a-z2-9]{12})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a key may do."""

    SEARCH = "search"
    EVENTS = "events"
    OBJECTS = "objects"
    ADMIN = "admin"
    """Everything."""


KeyStatus = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key.

    Attributes:
        secret_hash: SHA-256 of the secret.
        collections: names or aliases of those that it may use; empty: all.
        requires_user_token: it speaks for a user only with a token that names the user.
        created_at, expires_at, revoked_at: UTC seconds; it is good until before the second and third.
        last_used_at: UTC seconds, up to an hour too early.
    """

    key_id: str
    secret_hash: bytes
    name: str
    scopes: tuple[Scope, ...]
    collections: tuple[str, ...] = ()
    requires_user_token: bool = False
    created_at: int = 0
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None

    def status(self, now: float) -> KeyStatus:
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def has_secret(self, secret: str) -> bool:
        return hmac.compare_digest(self.secret_hash, hash_of(secret))


def hash_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def parsed_key(given: str) -> tuple[str, str] | None:
    """Return id and secret of what is written as a key; None where it is no key of this kind.

    >>> parsed_key("es_search-events_abcdefghij23_" + "x" * 43)
    ('abcdefghij23', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx')
    >>> parsed_key("es_search_abcdefghij23_short")
    """
    found = PATTERN.fullmatch(given)
    return (found[1], found[2]) if found else None


def new_key(
    name: str,
    scopes: Iterable[Scope],
    *,
    collections: Iterable[str] = (),
    requires_user_token: bool = False,
    expires_at: int | None = None,
    now: int,
) -> tuple[ApiKey, str]:
    """Return what is to be kept of a new key, and the key, which nothing tells again.

    Raises:
        InvalidInputError: it would be good for nothing, or for more than it says.
    """
    wanted = tuple(scope for scope in Scope if scope in set(scopes))
    bound = tuple(sorted(set(collections)))
    _check(name, wanted, bound, expires_at, now=now, requires_user_token=requires_user_token)
    kept = ApiKey(
        key_id="",
        secret_hash=b"",
        name=name.strip(),
        scopes=wanted,
        collections=bound,
        requires_user_token=requires_user_token,
        created_at=now,
        expires_at=expires_at,
    )
    return renewed(kept, now=now)


def renewed(key: ApiKey, *, now: int) -> tuple[ApiKey, str]:
    """Return a key that may do the same for as long, and how it is written."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    other = replace(
        key,
        key_id="".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH)),
        secret_hash=hash_of(secret),
        created_at=now,
        expires_at=None if key.expires_at is None else now + key.expires_at - key.created_at,
        revoked_at=None,
        last_used_at=None,
    )
    return other, f"es_{'-'.join(key.scopes)}_{other.key_id}_{secret}"


def _check(
    name: str,
    scopes: tuple[Scope, ...],
    collections: tuple[str, ...],
    expires_at: int | None,
    *,
    now: int,
    requires_user_token: bool,
) -> None:
    if not 1 <= len(name.strip()) <= MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidInputError(
            f"a key has a name of 1 to {MAX_NAME_LENGTH} printable characters, such as who uses it"
        )
    check_text(name)
    if not scopes:
        raise InvalidInputError(f"a key has at least one scope of {', '.join(Scope)}")
    if Scope.ADMIN in scopes and (collections or requires_user_token):
        raise InvalidInputError(
            "a key with the scope admin may do everything, so neither collections nor user tokens bind it; "
            f"leave them out, or give it scopes of {', '.join(each for each in Scope if each != 'admin')}"
        )
    if len(collections) > MAX_COLLECTIONS:
        raise InvalidInputError(f"a key is bound to at most {MAX_COLLECTIONS} collections; leave out for all")
    for each in collections:
        check_id(each, "the name of a collection")
    if expires_at is not None and not now < expires_at < SECOND_OF_NEVER:
        raise InvalidInputError("a key expires at a time that lies ahead; leave it out for never")
