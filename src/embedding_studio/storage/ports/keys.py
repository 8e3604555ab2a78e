"""API keys."""

from typing import Protocol

from embedding_studio.domain.keys import ApiKey
from embedding_studio.errors import ConflictError


def require_active(key: ApiKey, now: int) -> None:
    """Return if a key is good, so that another can take its place.

    Raises:
        ConflictError: it ended.
    """
    if (status := key.status(now)) != "active":
        raise ConflictError(f"the key {key.key_id!r} is {status}; create a new one instead")


class Keys(Protocol):
    """API keys, without their secrets. Those that ended stay."""

    def add(self, key: ApiKey) -> None:
        """Keep a new key."""
        ...

    def get(self, key_id: str) -> ApiKey:
        """Return a key, whether it is still good or not.

        Raises:
            KeyNotFoundError: there never was one of this id.
        """
        ...

    def has_any(self) -> bool:
        """Return whether there ever was a key."""
        ...

    def list(self) -> list[ApiKey]:
        """Return all keys by (created_at, key_id)."""
        ...

    def replace(self, key_id: str, key: ApiKey, *, until: int, now: int) -> None:
        """Keep a new key in place of another, which expires at ``until`` if it did not before.

        Raises:
            KeyNotFoundError: there is none of this id.
            ConflictError: it is no longer good.
        """
        ...

    def revoke(self, key_id: str, *, now: int) -> ApiKey:
        """Return a key that is good no more from ``now`` on, or since it was revoked before.

        Raises:
            KeyNotFoundError: there is none of this id.
        """
        ...

    def note_use(self, key_id: str, *, now: int) -> None:
        """Note that a key was used, if there is one."""
        ...
