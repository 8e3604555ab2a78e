"""API keys in memory."""

from dataclasses import replace

from embedding_studio.domain.keys import ApiKey
from embedding_studio.errors import KeyNotFoundError
from embedding_studio.storage.memory.state import State
from embedding_studio.storage.ports import require_active


class MemoryKeys:
    def __init__(self, state: State) -> None:
        self._state = state

    def add(self, key: ApiKey) -> None:
        with self._state.lock:
            self._state.keys[key.key_id] = key

    def get(self, key_id: str) -> ApiKey:
        with self._state.lock:
            return self._stored(key_id)

    def has_any(self) -> bool:
        with self._state.lock:
            return bool(self._state.keys)

    def replace(self, key_id: str, key: ApiKey, *, until: int, now: int) -> None:
        with self._state.lock:
            old = self._stored(key_id)
            require_active(old, now)
            self._state.keys[key_id] = replace(old, expires_at=min(old.expires_at or until, until))
            self._state.keys[key.key_id] = key

    def revoke(self, key_id: str, *, now: int) -> ApiKey:
        with self._state.lock:
            old = self._stored(key_id)
            revoked = replace(old, revoked_at=min(old.revoked_at or now, now))
            self._state.keys[key_id] = revoked
            return revoked

    def note_use(self, key_id: str, *, now: int) -> None:
        with self._state.lock:
            if (old := self._state.keys.get(key_id)) is not None:
                self._state.keys[key_id] = replace(old, last_used_at=max(old.last_used_at or now, now))

    # Last, for it hides the builtin from the annotations after it.
    def list(self) -> list[ApiKey]:
        with self._state.lock:
            return sorted(self._state.keys.values(), key=lambda key: (key.created_at, key.key_id))

    def _stored(self, key_id: str) -> ApiKey:
        if (stored := self._state.keys.get(key_id)) is None:
            raise KeyNotFoundError(f"there is no key with the id {key_id!r}; list the keys to see their ids")
        return stored
